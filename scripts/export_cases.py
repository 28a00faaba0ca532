"""The models that scripts/export_check.py compares: for each form, configurations of configs/ with
every option that the form can say; for each architecture, models that transformers makes."""

import dataclasses

# Small weights make small models all alike; these make every part matter for the logits.
SIZES = ("run.seed=3 model.seq_len=160 model.init_std=0.15 train.global_batch_size=4 "
         "train.micro_batch_size=4 train.max_steps=12 optimizer.lr=0.02 checkpoint.interval=0 "
         "train.eval_interval=0 train.eval_batches=16 log.tensorboard=false").split()
YARN = ("model.rope_scaling.type=yarn model.rope_scaling.factor=4 "
        "model.rope_scaling.original_seq_len=40")
LLAMA3 = ("model.rope_scaling.type=llama3 model.rope_scaling.factor=8 model.rope_theta=500 "
          "model.rope_scaling.original_seq_len=40 model.rope_scaling.low_freq_factor=1 "
          "model.rope_scaling.high_freq_factor=4")
LINEAR = "model.rope_scaling.type=linear model.rope_scaling.factor=4"
GPT = ("model.position=learned model.norm=layer_norm model.bias=all model.activation=gelu "
       "model.num_kv_heads=4")
GROUPS = "model.router.num_groups=4 model.router.groups_per_token=2"
SIGMOID = ("model.router.score=sigmoid model.router.bias_update_rate=0.02 "
           "model.router.routed_scaling_factor=2.5")
LATENT = f"model.position=none model.activation=relu2 {SIGMOID}"
NO_SHARED = "model.num_shared_experts=0"


@dataclasses.dataclass(frozen=True)
class ExportCase:
    """A configuration to train, and the form in which it is exported."""
    form: str
    config: str  # configs/tiny_CONFIG.yaml
    overrides: str
    options: str  # what the table says


EXPORTS = [
    ExportCase("llama", "dense", "model.tie_embeddings=true model.norm_eps=1e-3",
               "grouped queries, tied"),
    ExportCase("llama", "dense", f"model.bias=all model.head_dim=10 {LLAMA3}",
               "all biases, wide heads, llama3"),
    ExportCase("llama", "dense", f"model.bias=attention {LINEAR}", "attention biases, linear"),
    ExportCase("llama", "dense", YARN, "yarn"),
    ExportCase("qwen2", "dense", "model.bias=qkv model.rope_theta=700", "q, k, v biases"),
    ExportCase("qwen3", "dense", "model.qk_norm=head model.head_dim=10 model.tie_embeddings=true",
               "q/k norm, wide heads, tied"),
    ExportCase("gpt2", "dense", f"{GPT} model.tie_embeddings=true", "tied"),
    ExportCase("gpt2", "dense", GPT, "own head"),
    ExportCase("mixtral", "vanilla", "model.router.normalize_topk=true", "top 2 of 8"),
    ExportCase("qwen2_moe", "fine_grained", "model.bias=qkv model.first_dense_layers=1",
               "shared expert without gate, dense first, biases"),
    ExportCase("qwen2_moe", "fine_grained",
               "model.shared_expert_gate=true model.router.normalize_topk=false",
               "gated shared expert, sum is not 1"),
    ExportCase("qwen2_moe", "vanilla", "model.router.top_k=3", "sum is not 1"),
    ExportCase("qwen3_moe", "fine_grained", f"model.qk_norm=head model.head_dim=10 {NO_SHARED}",
               "q/k norm, wide heads"),
    ExportCase("olmoe", "fine_grained",
               f"model.qk_norm=projection model.router.normalize_topk=false {NO_SHARED}",
               "q/k norm of the projection"),
    ExportCase("glm4_moe", "fine_grained",
               f"{SIGMOID} {GROUPS} model.bias=qkv model.qk_norm=head model.rotary_dim=4 "
               "model.first_dense_layers=1 model.num_layers=3",
               "sigmoid, balancing bias, groups, partial rotation, dense first, q/k norm, biases"),
    ExportCase("glm4_moe", "fine_grained", f"{SIGMOID} model.router.normalize_topk=false",
               "sum is not 1"),
    ExportCase("nemotron_h", "fine_grained", f"{LATENT} {GROUPS}", "groups"),
    ExportCase("nemotron_h", "bigmac", f"{LATENT} model.head_dim=10",
               "BigMac, latent kept, wide heads"),
    ExportCase("mixtral", "bigmac", NO_SHARED, "BigMac, folded"),
    ExportCase("qwen2_moe", "bigmac", "", "BigMac, folded, shared expert"),
    ExportCase("glm4_moe", "bigmac", f"{SIGMOID} model.shared_expert_ffn_hidden=32",
               "BigMac, folded, sigmoid, balancing bias"),
    ExportCase("compact", "bigmac", "", "BigMac"),
    ExportCase("compact", "bigmac",
               f"{SIGMOID} {GROUPS} {YARN} model.norm=layer_norm model.bias=all model.rotary_dim=4 "
               "model.qk_norm=projection model.tie_embeddings=true model.first_dense_layers=1 "
               "model.num_layers=3 model.num_shared_experts=2 model.shared_expert_gate=true",
               "BigMac, every option, yarn"),
    ExportCase("compact", "bigmac", "data.mask=document model.activation=gelu "
               f"model.qk_norm=head {LLAMA3}", "BigMac, documents, gelu, q/k norm, llama3"),
    ExportCase("compact", "fine_grained", f"{GPT} {GROUPS} model.router.normalize_topk=false",
               "fine-grained, GPT style, groups by softmax"),
    ExportCase("compact", "vanilla", f"model.activation=silu {LINEAR} data.mask=document "
               "model.tie_embeddings=true", "vanilla, documents, silu, linear, tied"),
    ExportCase("compact", "dense", "model.position=none model.activation=relu model.bias=qkv",
               "dense, no positions, relu"),
]

DENSE = dict(vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=160,
             bos_token_id=256, eos_token_id=256, pad_token_id=256, tie_word_embeddings=False,
             initializer_range=0.15)
ROUTED = DENSE | dict(num_experts=8, num_experts_per_tok=3, moe_intermediate_size=24)


def rope(kind, theta=10000.0, **values):
    """rope_parameters of transformers 5."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **values}}


@dataclasses.dataclass(frozen=True)
class ImportCase:
    """A model that transformers makes: the name of its configuration's class, and values."""
    form: str
    config_class: str
    values: dict
    options: str
    seed: int = 1  # the next one where two logits of a token are equal up to rounding


IMPORTS = [
    ImportCase("llama", "LlamaConfig", DENSE | dict(tie_word_embeddings=True) | rope(
        "llama3", 500.0, factor=8.0, original_max_position_embeddings=40, low_freq_factor=1.0,
        high_freq_factor=4.0), "tied, llama3"),
    ImportCase("llama", "LlamaConfig", DENSE | dict(attention_bias=True, mlp_bias=True, head_dim=12)
               | rope("linear", factor=4.0), "all biases, wide heads, linear"),
    ImportCase("llama", "LlamaConfig", DENSE | dict(attention_bias=True) | rope(
        "yarn", factor=4.0, original_max_position_embeddings=40), "attention biases, yarn"),
    ImportCase("mistral", "MistralConfig", DENSE | dict(sliding_window=None, head_dim=12),
               "wide heads", seed=2),
    ImportCase("qwen2", "Qwen2Config", DENSE | dict(tie_word_embeddings=True), "tied"),
    ImportCase("qwen2", "Qwen2Config", DENSE | rope(
        "yarn", factor=4.0, original_max_position_embeddings=40, beta_fast=16.0, beta_slow=2.0),
        "yarn"),
    ImportCase("qwen3", "Qwen3Config", DENSE | dict(head_dim=12, attention_bias=True),
               "wide heads, biases", seed=2),
    ImportCase("gpt2", "GPT2Config", dict(
        vocab_size=257, n_positions=160, n_embd=32, n_layer=2, n_head=4, n_inner=48,
        bos_token_id=256, eos_token_id=256), "tied"),
    ImportCase("mixtral", "MixtralConfig", DENSE | dict(
        num_local_experts=8, num_experts_per_tok=3, sliding_window=None, head_dim=12),
        "top 3 of 8, wide heads"),
    ImportCase("qwen2_moe", "Qwen2MoeConfig", ROUTED | dict(
        shared_expert_intermediate_size=40, norm_topk_prob=False, qkv_bias=True,
        mlp_only_layers=[0]), "gated shared expert, biases, dense first"),
    ImportCase("qwen2_moe", "Qwen2MoeConfig", ROUTED | dict(
        shared_expert_intermediate_size=40, norm_topk_prob=True, qkv_bias=False,
        tie_word_embeddings=True), "gated shared expert, sum is 1, tied"),
    ImportCase("qwen3_moe", "Qwen3MoeConfig", ROUTED | dict(
        norm_topk_prob=True, head_dim=12, attention_bias=True), "wide heads, biases"),
    ImportCase("olmoe", "OlmoeConfig", DENSE | dict(
        num_experts=8, num_experts_per_tok=3, norm_topk_prob=False, clip_qkv=None), "top 3 of 8"),
    ImportCase("glm4_moe", "Glm4MoeConfig", ROUTED | dict(
        n_routed_experts=8, n_shared_experts=2, n_group=4, topk_group=2, first_k_dense_replace=1,
        norm_topk_prob=True, routed_scaling_factor=1.7, use_qk_norm=True, attention_bias=True,
        head_dim=12, num_hidden_layers=3) | rope("default", partial_rotary_factor=0.5),
        "groups, correction bias, partial rotation, q/k norm, biases"),
    ImportCase("nemotron_h", "NemotronHConfig", dict(
        vocab_size=257, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=12,
        max_position_embeddings=160, layers_block_type=["attention", "moe"] * 2,
        moe_latent_size=16, n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=24,
        n_shared_experts=1, moe_shared_expert_intermediate_size=40, n_group=4, topk_group=2,
        norm_topk_prob=True, routed_scaling_factor=1.7, mlp_hidden_act="relu2", bos_token_id=256,
        eos_token_id=256, pad_token_id=256, tie_word_embeddings=False, initializer_range=0.15),
        "latent width, groups, correction bias"),
]
