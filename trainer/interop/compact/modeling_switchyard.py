"""A Switchyard model of any structure for `transformers` 4.57 and later.

Modules are named as the tensors of a checkpoint. Weights are [out, in]. Shapes below: B sequences,
S new tokens of each, T = B * S, P tokens before them in the cache, H the width of the model, D that
of a head, E experts, k experts per token.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from .configuration_switchyard import SwitchyardConfig

# Modules whose weights stay in f32 whatever the dtype of the model.
PRECISE = {"router", "shared_gate", "balancing_bias", "norm", "norm1", "norm2", "q_norm", "k_norm"}
# transformers 4 and early 5 call the cache of an output past_key_values.
CACHE = "cache" if hasattr(CausalLMOutputWithPast, "cache") else "past_key_values"


def activate(kind, up, gate):
    """The activation of a feed-forward. swiglu (Shazeer 2020) is the only one with a gate; gelu is
    the form with tanh (Hendrycks and Gimpel 2016); relu2: So et al. 2021."""
    if kind == "swiglu":
        return F.silu(gate) * up
    if kind == "gelu":
        return F.gelu(up, approximate="tanh")
    return {"silu": F.silu, "relu": F.relu, "relu2": lambda x: F.relu(x).square()}[kind](up)


def rope_frequencies(model):
    """Angle per position of each pair, f64: theta^(-2i/D) (Su et al. 2021), for a longer context
    divided by a factor: of every pair (linear: Chen et al. 2023), or of those that turn seldom in
    the context before (llama3: by turns; yarn, Peng et al. 2023: by the pair's number)."""
    dim, scaling = model["rotary_dim"] or model["head_dim"], model["rope_scaling"]
    pair, theta = torch.arange(dim // 2, dtype=torch.float64, device="cpu"), model["rope_theta"]
    frequency, context = theta ** (-2 * pair / dim), scaling["original_seq_len"]
    if scaling["type"] == "none":
        return frequency
    if scaling["type"] == "linear":
        stretched = 1
    elif scaling["type"] == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = context * frequency / (2 * math.pi)
        stretched = ((high - turns) / (high - low)).clamp(0, 1)
    else:
        first, last = (math.log(context / (2 * math.pi * turns)) / math.log(theta) * dim / 2
                       for turns in (scaling["beta_fast"], scaling["beta_slow"]))
        first, last = max(math.floor(first), 0), min(math.ceil(last), dim - 1)
        stretched = ((pair - first) / max(last - first, 0.001)).clamp(0, 1)
    return frequency * (1 - stretched) + frequency / scaling["factor"] * stretched


def rope_table(model, position_ids):
    """(cos, sin), each f32 [B, 1, S, pairs]. YaRN also lengthens what turns."""
    scaling, length = model["rope_scaling"], 1.0
    if scaling["type"] == "yarn":
        length = scaling["attention_factor"] or 0.1 * math.log(scaling["factor"]) + 1
    # In f64, because the angle of a late position has few digits behind the point in f32.
    angle = position_ids[:, None, :, None] * rope_frequencies(model).to(position_ids.device)
    return (length * angle.cos()).float(), (length * angle.sin()).float()


def rotate(x, cos, sin):
    """Turns x [B, heads, S, D]. Channel i of the first half of those that turn and channel i of the
    second half form pair i; channels behind them do not turn."""
    pairs = cos.shape[-1]
    first, second, rest = x.float().split([pairs, pairs, x.shape[-1] - 2 * pairs], dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin, rest)
    return torch.cat(turned, dim=-1).to(x.dtype)


def document_starts(input_ids, end_of_document):
    """[B, S]: the position behind the last end-of-document token before each token, or 0."""
    behind = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
    ends = torch.where(input_ids == end_of_document, behind, 0)
    return F.pad(ends, (1, -1)).cummax(dim=1).values


def visible_keys(past, num_tokens, attention_mask, document_start, device):
    """[B or 1, 1, S, P + S]: whether a query (row) sees a key (column); None: only order counts.
      attention_mask  [B, P + S]: 0 for padding; None: no padding
      document_start  [B, S]: the first token that each new one may see; None: all"""
    if attention_mask is None and document_start is None and (past == 0 or num_tokens == 1):
        return None
    key = torch.arange(past + num_tokens, device=device)
    query = key[past:, None]
    visible = (key <= query)[None]
    if attention_mask is not None:
        visible = visible & attention_mask[:, None].bool()
    if document_start is not None:
        visible = visible & (key >= document_start[..., None])
    # Padding sees itself, because a softmax over nothing would not be finite.
    return (visible | (key == query))[:, None]


class Norm(nn.Module):
    """RMSNorm (Zhang and Sennrich 2019), or LayerNorm (Ba et al. 2016), in f32."""

    def __init__(self, width, model, kind):
        super().__init__()
        self.eps, self.centred = model["norm_eps"], kind == "layer_norm"
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if self.centred else None

    def forward(self, x):
        y = x.float()
        if self.centred:
            y = y - y.mean(-1, keepdim=True)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps) * self.weight.float()
        return (y + self.bias.float() if self.centred else y).to(x.dtype)


class Attention(nn.Module):
    """Vaswani et al. 2017, eq. 1, with grouped queries (Ainslie et al. 2023)."""

    def __init__(self, model, layer):
        super().__init__()
        hidden, heads, kv_heads = model["hidden"], model["num_heads"], model["num_kv_heads"]
        bias, norm = model["bias"], model["qk_norm"]
        self.layer, self.head_dim, self.norm_heads = layer, model["head_dim"], norm == "head"
        self.q = nn.Linear(hidden, heads * self.head_dim, bias=bias != "none")
        self.k = nn.Linear(hidden, kv_heads * self.head_dim, bias=bias != "none")
        self.v = nn.Linear(hidden, kv_heads * self.head_dim, bias=bias != "none")
        self.out = nn.Linear(heads * self.head_dim, hidden, bias=bias in ("attention", "all"))
        self.q_norm = self.k_norm = None
        if norm != "none":  # over each head, or over all of them
            width = 1 if self.norm_heads else heads
            self.q_norm = Norm(width * self.head_dim, model, "rms_norm")
            width = 1 if self.norm_heads else kv_heads
            self.k_norm = Norm(width * self.head_dim, model, "rms_norm")

    def by_head(self, x, norm):
        """[B, S, heads * D] to [B, heads, S, D]."""
        if norm is not None and not self.norm_heads:
            x = norm(x)
        x = x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return norm(x) if norm is not None and self.norm_heads else x

    def forward(self, x, rope, visible, cache):
        q, k = self.by_head(self.q(x), self.q_norm), self.by_head(self.k(x), self.k_norm)
        v = self.by_head(self.v(x), None)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        # Consecutive query heads share a key head.
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        causal = visible is None and q.shape[2] > 1
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=causal)
        return self.out(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, model, width, bias=False):
        super().__init__()
        self.kind = model["activation"]
        gated = self.kind == "swiglu"
        self.gate = nn.Linear(model["hidden"], width, bias=bias) if gated else None
        self.up = nn.Linear(model["hidden"], width, bias=bias)
        self.down = nn.Linear(width, model["hidden"], bias=bias)

    def forward(self, x):
        gate = self.gate(x) if self.gate is not None else None
        return self.down(activate(self.kind, self.up(x), gate))


class Matrices(nn.Module):
    """One matrix per expert, [E, out, in]."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))


class Experts(nn.Module):
    """The routed experts. With a gate, one matrix holds the rows of gate before those of up."""

    def __init__(self, model):
        super().__init__()
        self.kind, num_experts = model["activation"], model["num_experts"]
        inner = model["expert_ffn_hidden"]
        width = model["latent"] if model["structure"] == "bigmac" else model["hidden"]
        if self.kind == "swiglu":
            self.gate_up = Matrices(num_experts, 2 * inner, width)
        else:
            self.up = Matrices(num_experts, inner, width)
        self.down = Matrices(num_experts, width, inner)

    def expert(self, x, e):
        if self.kind == "swiglu":
            gate, up = F.linear(x, self.gate_up.weight[e]).chunk(2, dim=-1)
        else:
            gate, up = None, F.linear(x, self.up.weight[e])
        return F.linear(activate(self.kind, up, gate), self.down.weight[e])

    def forward(self, x, experts, weights):
        """The weighted sum of each token's experts, [T, width]. Summed in f32.
          x        [T, width]
          experts  [T, k]
          weights  [T, k] f32"""
        summed = torch.zeros_like(x, dtype=torch.float32)
        for e in experts.unique().tolist():
            token, slot = (experts == e).nonzero(as_tuple=True)
            y = self.expert(x[token], e).float() * weights[token, slot, None]
            summed.index_add_(0, token, y)
        return summed.to(x.dtype)


class Moe(nn.Module):
    """The weighted sum of the chosen experts, plus the shared ones (Dai et al. 2024). BigMac
    (arXiv 2502.16927, eq. 2) descends to a narrow width before the experts and ascends after their
    sum; its router and its shared experts read the full width."""

    def __init__(self, model):
        super().__init__()
        hidden, num_shared = model["hidden"], model["num_shared_experts"]
        self.options = model["router"]
        self.router = nn.Linear(hidden, model["num_experts"], bias=False)
        self.descend = self.ascend = self.shared = self.shared_gate = None
        if model["structure"] == "bigmac":
            self.descend = nn.Linear(hidden, model["latent"], bias=False)
            self.ascend = nn.Linear(model["latent"], hidden, bias=False)
        self.experts = Experts(model)
        if num_shared > 0:  # computed as one of their total width
            self.shared = FeedForward(model, num_shared * model["shared_expert_ffn_hidden"])
            if model["shared_expert_gate"]:
                self.shared_gate = nn.Linear(hidden, 1, bias=False)

    def without_other_groups(self, choice):
        """choice [T, E] with -inf for experts outside the best groups of each token. A group is as
        good as the sum of its two best experts with sigmoid scores, as its best with softmax."""
        groups = choice.unflatten(-1, (self.options["num_groups"], -1))
        best = min(2 if self.options["score"] == "sigmoid" else 1, groups.shape[-1])
        value = groups.topk(best, dim=-1).values.sum(-1)
        order = value.sort(dim=-1, descending=True, stable=True).indices
        others = order[:, self.options["groups_per_token"] :, None].expand(-1, -1, groups.shape[-1])
        return groups.scatter(1, others, -torch.inf).flatten(1)

    def route(self, x, balancing_bias):
        """(experts, weights), each [T, k], in f32. Ties go to the lower expert. The bias of
        loss-free balancing (Wang et al. 2024) does not change the weights."""
        logits = F.linear(x.float(), self.router.weight.float())
        scores = logits.sigmoid() if self.options["score"] == "sigmoid" else logits.softmax(-1)
        choice = scores if balancing_bias is None else scores + balancing_bias.to(scores)
        if self.options["num_groups"] > 1:
            choice = self.without_other_groups(choice)
        experts = choice.sort(dim=-1, descending=True, stable=True).indices
        experts = experts[:, : self.options["top_k"]]
        weights = scores.gather(-1, experts)
        if self.options["normalize_topk"]:
            weights = weights / weights.sum(-1, keepdim=True)
        return experts, weights * self.options["routed_scaling_factor"]

    def forward(self, x, balancing_bias):
        rows = x.flatten(0, 1)
        experts, weights = self.route(rows, balancing_bias)
        y = self.experts(rows if self.descend is None else self.descend(rows), experts, weights)
        if self.ascend is not None:
            y = self.ascend(y)
        if self.shared is not None:
            shared = self.shared(rows)
            if self.shared_gate is not None:
                gate = F.linear(rows.float(), self.shared_gate.weight.float()).sigmoid()
                shared = (gate * shared.float()).to(x.dtype)
            y = y + shared
        return y.view_as(x)


class Block(nn.Module):
    def __init__(self, model, layer):
        super().__init__()
        self.norm1 = Norm(model["hidden"], model, model["norm"])
        self.attention = Attention(model, layer)
        self.norm2 = Norm(model["hidden"], model, model["norm"])
        self.feed_forward = self.moe = None
        if model["structure"] == "dense" or layer < model["first_dense_layers"]:
            self.feed_forward = FeedForward(model, model["ffn_hidden"], model["bias"] == "all")
        else:
            self.moe = Moe(model)

    def forward(self, x, rope, visible, cache, balancing_bias):
        x = x + self.attention(self.norm1(x), rope, visible, cache)
        y = self.norm2(x)
        return x + (self.feed_forward(y) if self.moe is None else self.moe(y, balancing_bias))


class BalancingBias(nn.Module):
    """The biases of loss-free balancing, [E] for each MoE layer. They have no gradient."""

    def __init__(self, num_layers, num_experts):
        super().__init__()
        self.moe_layers = nn.Module()
        for layer in range(num_layers):
            self.moe_layers.register_buffer(str(layer), torch.zeros(num_experts))

    def of(self, layer):
        return self.moe_layers.get_buffer(str(layer))


class SwitchyardForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = SwitchyardConfig
    _no_split_modules = ["Block"]
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        model = config.model
        self.embedding = nn.Embedding(model["vocab_size"], model["hidden"])
        if model["position"] == "learned":
            self.positions = nn.Embedding(model["seq_len"], model["hidden"])
        self.layers = nn.ModuleList(Block(model, layer) for layer in range(model["num_layers"]))
        self.norm = Norm(model["hidden"], model, model["norm"])
        self.head = None
        if not model["tie_embeddings"]:
            self.head = nn.Linear(model["hidden"], model["vocab_size"], bias=False)
        self.balancing_bias = None
        moe_layers = model["num_layers"] - model["first_dense_layers"]
        if model["structure"] != "dense" and model["router"]["bias_update_rate"] > 0:
            self.balancing_bias = BalancingBias(moe_layers, model["num_experts"])
        self.post_init()
        # Assigned behind post_init, where transformers 4 refuses names that only buffers have.
        self._keep_in_fp32_modules_strict = set(PRECISE)

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding, Matrices)):
            nn.init.normal_(module.weight, std=self.config.model["init_std"])
        if isinstance(module, Norm):
            nn.init.ones_(module.weight)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, BalancingBias):
            for bias in module.buffers():
                nn.init.zeros_(bias)

    def get_input_embeddings(self):
        return self.embedding

    def set_input_embeddings(self, embedding):
        self.embedding = embedding

    def get_output_embeddings(self):
        return self.head

    def set_output_embeddings(self, head):
        self.head = head

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        # Only here all tokens are known; forward sees those that the cache lacks.
        if self.config.document_mask and inputs.get("input_ids") is not None:
            starts = document_starts(input_ids, self.config.eos_token_id)
            inputs["document_start"] = starts[:, -inputs["input_ids"].shape[1] :]
        return inputs

    def starts_of(self, input_ids, past):
        """The document starts of the tokens that forward was given."""
        if not self.config.document_mask:
            return None
        if input_ids is None or past > 0:
            raise ValueError("this model separates documents: pass document_start, the position of "
                             "the first token that each new one sees, or all tokens as input_ids")
        return document_starts(input_ids, self.config.eos_token_id)

    @can_return_tuple
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None,
                inputs_embeds=None, labels=None, use_cache=None, logits_to_keep=0, cache=None,
                document_start=None, output_hidden_states=None, **kwargs):
        """Logits [B, S, V], and the loss if labels [B, S] are given: the cross-entropy, without the
        router's losses. position_ids count from a sequence's first token, not a document's."""
        model, cache = self.config.model, cache if cache is not None else past_key_values
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and cache is None:
            cache = DynamicCache()
        past = cache.get_seq_length() if cache is not None else 0
        x = inputs_embeds if inputs_embeds is not None else self.embedding(input_ids)
        if document_start is None:
            document_start = self.starts_of(input_ids, past)
        if position_ids is None:
            position_ids = torch.arange(past + x.shape[1], device=x.device)[None]
            if attention_mask is not None:  # padding does not count
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            position_ids = position_ids[:, past:]
        if model["position"] == "learned":
            x = x + self.positions(position_ids)
        rope = rope_table(model, position_ids) if model["position"] == "rope" else None
        visible = visible_keys(past, x.shape[1], attention_mask, document_start, x.device)
        states = []
        for number, block in enumerate(self.layers):
            states.append(x)
            moe_layer = number - model["first_dense_layers"]
            biased = self.balancing_bias is not None and moe_layer >= 0
            bias = self.balancing_bias.of(moe_layer) if biased else None
            x = block(x, rope, visible, cache, bias)
        x = self.norm(x)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        head = self.embedding if self.head is None else self.head
        logits = F.linear(x[:, kept], head.weight.to(x.device))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=self.targets(input_ids, labels),
                                      vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=(*states, x) if output_hidden_states else None,
            **{CACHE: cache if use_cache else None})

    def targets(self, input_ids, labels):
        """labels without the first token of each document, which nothing before it can predict."""
        if not self.config.document_mask or input_ids is None:
            return labels
        begins = F.pad(input_ids == self.config.eos_token_id, (1, -1))
        return labels.masked_fill(begins, -100)
