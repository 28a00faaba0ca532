"""Exports checkpoints in every form and reads the folders with tests/witness/hf_models.py, which
must give the program's own logits; imports them again, which must give the same weights; and
exports those, which must give the same bytes.

    export_test.py WRITE_CASE SWITCHYARD [unittest arguments]
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import h5py
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "witness")]
import hf_models  # noqa: E402
import reference_forward  # noqa: E402
import reference_model  # noqa: E402

BOUND = 2e-5  # of the greatest logit; the program computes in f32
# A padded vocabulary for the byte tokenizer, and weights so large that every part matters.
SMALL = "run.dir=unused model.vocab_size=259 model.seq_len=20 model.init_std=0.2"
SIGMOID = "model.router.score=sigmoid"
NO_POSITIONS = f"model.position=none {SIGMOID} model.activation"
ROPE = "model.rope_scaling.original_seq_len=20 model.rope_scaling.factor=3 model.rope_scaling.type"
GPT = "model.norm=layer_norm model.position=learned model.activation=gelu model.num_kv_heads=4"
GROUPS = "model.router.num_groups=4 model.router.groups_per_token=2"
NORMALISED = "model.router.normalize_topk=true"

# (form that is asked for, model_type, configuration, overrides)
CASES = {
    "llama": ("auto", "llama", "dense", ""),
    "llama_tied": ("llama", "llama", "dense", "model.tie_embeddings=true model.head_dim=10"),
    "llama_attention_biases": ("llama", "llama", "dense", "model.bias=attention"),
    "llama_all_biases": ("llama", "llama", "dense", "model.bias=all model.norm_eps=0.3"),
    "llama_linear": ("llama", "llama", "dense", f"{ROPE}=linear"),
    "llama_llama3": ("llama", "llama", "dense", f"{ROPE}=llama3 model.rope_theta=100 "
                     "model.rope_scaling.low_freq_factor=0.8 "
                     "model.rope_scaling.high_freq_factor=2.5"),
    "llama_yarn": ("llama", "llama", "dense", f"{ROPE}=yarn model.rope_theta=100 "
                   "model.rope_scaling.beta_fast=2 model.rope_scaling.beta_slow=0.3"),
    "mistral": ("mistral", "mistral", "dense", ""),
    "qwen2": ("auto", "qwen2", "dense", "model.bias=qkv"),
    "qwen3": ("auto", "qwen3", "dense", "model.qk_norm=head model.head_dim=10"),
    "gpt2": ("auto", "gpt2", "dense", f"{GPT} model.bias=all model.tie_embeddings=true"),
    "gpt2_untied": ("auto", "gpt2", "dense", f"{GPT} model.bias=all"),
    "gpt2_without_biases": ("gpt2", "gpt2", "dense", f"{GPT} model.bias=qkv"),
    "mixtral": ("auto", "mixtral", "vanilla", NORMALISED),
    "qwen2_moe": ("auto", "qwen2_moe", "fine_grained", "model.bias=qkv model.num_shared_experts=2"),
    "qwen2_moe_zero_expert": ("auto", "qwen2_moe", "vanilla", "model.router.normalize_topk=false"),
    "qwen2_moe_dense_first": ("qwen2_moe", "qwen2_moe", "fine_grained", "model.first_dense_layers=1"),
    "qwen3_moe": ("auto", "qwen3_moe", "vanilla", "model.qk_norm=head model.bias=attention"),
    "qwen3_moe_dense_first": ("qwen3_moe", "qwen3_moe", "vanilla",
                              "model.qk_norm=head model.first_dense_layers=1"),
    "qwen2_moe_gated": ("auto", "qwen2_moe", "fine_grained", "model.shared_expert_gate=true"),
    "olmoe": ("auto", "olmoe", "vanilla", "model.qk_norm=projection model.bias=attention"),
    "glm4_moe_groups": ("auto", "glm4_moe", "fine_grained",
                        f"{SIGMOID} {GROUPS} model.router.bias_update_rate=0.01"),
    "nemotron_h_groups": ("auto", "nemotron_h", "bigmac", f"{NO_POSITIONS}=relu2 {GROUPS}"),
    "compact_documents": ("auto", "switchyard", "bigmac", "data.mask=document"),
    "compact_gated": ("auto", "switchyard", "bigmac",
                      f"model.shared_expert_gate=true model.qk_norm=projection {GROUPS}"),
    "glm4_moe": ("auto", "glm4_moe", "fine_grained",
                 f"{SIGMOID} model.router.bias_update_rate=0.01 model.first_dense_layers=1 "
                 "model.router.routed_scaling_factor=2.5 model.rotary_dim=4"),
    "glm4_moe_without_bias": ("glm4_moe", "glm4_moe", "vanilla",
                              f"{SIGMOID} model.qk_norm=head model.bias=qkv"),
    "glm4_moe_padded": ("auto", "glm4_moe", "fine_grained",
                        f"{SIGMOID} model.num_shared_experts=2 model.shared_expert_ffn_hidden=18"),
    "glm4_moe_narrow": ("auto", "glm4_moe", "fine_grained",
                        f"{SIGMOID} model.shared_expert_ffn_hidden=5"),
    "nemotron_h": ("auto", "nemotron_h", "bigmac",
                   f"{NO_POSITIONS}=relu2 model.router.bias_update_rate=0.01"),
    "nemotron_h_dense_first": ("auto", "nemotron_h", "bigmac",
                               f"{NO_POSITIONS}=silu model.first_dense_layers=1 "
                               "model.num_shared_experts=0"),
    "nemotron_h_without_latent": ("auto", "nemotron_h", "fine_grained", f"{NO_POSITIONS}=relu2"),
    "folded": ("folded", "qwen2_moe", "bigmac", ""),
    "folded_mixtral": ("mixtral", "mixtral", "bigmac", f"model.num_shared_experts=0 {NORMALISED}"),
    "folded_glm4_moe": ("folded", "glm4_moe", "bigmac", "model.shared_expert_ffn_hidden=32 "
                        f"{SIGMOID} model.router.bias_update_rate=0.01"),
    "compact": ("auto", "switchyard", "bigmac", ""),
    "compact_biases": ("compact", "switchyard", "fine_grained",
                       f"{GPT} {SIGMOID} model.bias=all model.router.bias_update_rate=0.01"),
}

UPCYCLED = {
    "vanilla": "model.num_experts=8",
    "vanilla_sigmoid": f"model.num_experts=5 model.router.top_k=3 {SIGMOID}",
    "fine_grained": "model.structure=fine_grained model.expert_ffn_hidden=16",
    "fine_grained_one_copy": "model.structure=fine_grained model.expert_ffn_hidden=32 "
                             "model.num_experts=6 model.router.top_k=2",
}

# (form, configuration, overrides, what the message must name)
REFUSALS = [
    ("llama", "dense", "model.norm=layer_norm",
     "the form llama cannot say model.norm = layer_norm; forms that can: compact"),
    ("mixtral", "fine_grained", SIGMOID, "cannot say model.router.score = sigmoid, "),
    ("mixtral", "fine_grained", SIGMOID, "forms that can: glm4_moe, compact"),
    ("glm4_moe", "dense", "", "model.structure = dense"),
    ("nemotron_h", "bigmac", "", "model.position = rope, model.activation = swiglu"),
    ("folded", "dense", "", "--form folded is for bigmac models; this one is dense"),
    ("bert", "dense", "", "there is no form bert; there are llama, qwen2"),
]


def run(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1",
                   "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return subprocess.run([str(argument) for argument in arguments], capture_output=True, text=True,
                          env=environment, check=False)


class ExportTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def write_case(self, config, overrides):
        """The checkpoint of a model with its logits in case.h5."""
        made = run(WRITE_CASE, ROOT / "configs" / f"tiny_{config}.yaml", self.folder,
                   *SMALL.split(), *overrides.split())
        self.assertEqual(made.returncode, 0, made.stderr)
        return self.folder / "step_00000000"

    def succeed(self, *arguments):
        done = run(SWITCHYARD, *arguments)
        self.assertEqual(done.returncode, 0, f"{arguments}: {done.stderr}")
        return done.stdout

    def check_logits(self, folder):
        with h5py.File(self.folder / "case.h5") as case:
            tokens, expected = case["tokens"][:], case["logits"][:].astype(float)
        for sequence, logits in zip(tokens, expected):
            actual, unread = hf_models.logits(folder, sequence)
            self.assertEqual(unread, set())
            self.assertLess(np.abs(actual - logits).max(), BOUND * np.abs(logits).max())

    def check_import(self, folder, checkpoint, is_exact):
        """The weights of the imported checkpoint, and the bytes of its own export."""
        experiment, run_dir, again = (self.folder / name for name in ("e.yaml", "run", "again"))
        self.succeed("import", folder, "--config", experiment, f"run.dir={run_dir}")
        config, weights, biases = reference_forward.load_checkpoint(run_dir)
        if is_exact:
            original = reference_forward.load_checkpoint(checkpoint)
            # An ungated shared expert comes back with a gate of zero, which halves twice as much.
            was_doubled = config["shared_expert_gate"] and not original[0]["shared_expert_gate"]
            for name, values in {**original[1], **original[2]}.items():
                factor = 2 if was_doubled and name.endswith("shared.down.weight") else 1
                imported = {**weights, **biases}[name]
                # A shared expert may come back wider, by zeros.
                wider = [(0, new - old) for new, old in zip(imported.shape, values.shape)]
                self.assertTrue(not np.any(wider) or ".shared." in name, name)
                np.testing.assert_array_equal(imported, factor * np.pad(values, wider), name)
        with h5py.File(self.folder / "case.h5") as case:
            tokens, expected = case["tokens"][:], case["logits"][:].astype(float)
            documents = case["document_start"][:] if "document_start" in case else None
        logits = reference_model.ReferenceModel(config, weights, biases).forward(tokens, documents)
        self.assertLess(np.abs(logits - expected).max(), BOUND * np.abs(expected).max())
        self.assertEqual("mask: document" in experiment.read_text(), documents is not None)
        form = json.loads((folder / "config.json").read_text())["model_type"]
        self.succeed("export", run_dir, "--to", again, "--form", form.replace("switchyard", "compact"))
        for name in ("config.json", "generation_config.json", "model.safetensors"):
            self.assertEqual((again / name).read_bytes(), (folder / name).read_bytes(), name)

    def check(self, form, model_type, config, overrides):
        checkpoint = self.write_case(config, overrides)
        folder = self.folder / "exported"

        self.succeed("export", checkpoint, "--to", folder, "--form", form)

        written = json.loads((folder / "config.json").read_text())
        self.assertEqual(written["model_type"], model_type)
        if model_type != "switchyard":
            self.check_logits(folder)
        self.check_import(folder, checkpoint, is_exact=form != "folded" and config != "bigmac"
                          or model_type in ("switchyard", "nemotron_h"))

    def test_a_form_that_cannot_say_the_model_names_the_option_and_the_forms_that_can(self):
        for number, (form, config, overrides, message) in enumerate(REFUSALS):
            checkpoint = self.write_case(config, overrides)
            to = self.folder / f"to_{number}"
            refused = run(SWITCHYARD, "export", checkpoint, "--to", to, "--form", form)
            self.assertNotEqual(refused.returncode, 0)
            self.assertIn(message, refused.stderr)
            self.assertEqual(refused.stderr.count("\n"), 1, refused.stderr)
            self.assertEqual(list(self.folder.glob(f"to_{number}*")), [])

    def test_upcycled_models_give_the_logits_of_the_dense_one(self):
        checkpoint = self.write_case("dense", "")
        folder = self.folder / "dense"
        self.succeed("export", checkpoint, "--to", folder)
        with h5py.File(self.folder / "case.h5") as case:
            tokens, expected = case["tokens"][:], case["logits"][:].astype(float)
        for name, settings in UPCYCLED.items():
            run_dir = self.folder / name
            self.succeed("import", folder, "--config", self.folder / f"{name}.yaml",
                         f"run.dir={run_dir}", "--upcycle", *settings.split())
            config, weights, biases = reference_forward.load_checkpoint(run_dir)
            model = reference_model.ReferenceModel(config, weights, biases)
            logits = model.forward(tokens, None)
            self.assertLess(np.abs(logits - expected).max(), BOUND * np.abs(expected).max(), name)
            busy = [np.count_nonzero(layer["expert_counts"]) for layer in model.moe_layers]
            self.assertGreater(min(busy), config["num_experts"] / 2, name)

    def test_bf16_and_shards(self):
        checkpoint = self.write_case("fine_grained", SIGMOID + " model.router.bias_update_rate=0.01")
        whole, parts = self.folder / "whole", self.folder / "parts"

        self.succeed("export", checkpoint, "--to", whole)
        self.succeed("export", checkpoint, "--to", parts, "--dtype", "bf16", "--shard-size", "20KB")

        exact, rounded = hf_models.read_safetensors(whole), hf_models.read_safetensors(parts)
        self.assertEqual(exact.keys(), rounded.keys())
        for name, values in exact.items():
            keeps_f32 = name.endswith("e_score_correction_bias")
            bound = 0 if keeps_f32 else np.abs(values) * 2.0 ** -8
            self.assertTrue((np.abs(values - rounded[name]) <= bound).all(), name)
        index = json.loads((parts / "model.safetensors.index.json").read_text())
        self.assertEqual(index["weight_map"].keys(), exact.keys())
        files = sorted(path.name for path in parts.glob("*.safetensors"))
        self.assertGreater(len(files), 3)
        self.assertEqual(files, sorted(set(index["weight_map"].values())))
        self.assertEqual(json.loads((parts / "config.json").read_text())["dtype"], "bfloat16")


def add_cases():
    for name, case in CASES.items():
        setattr(ExportTest, f"test_{name}", lambda self, case=case: self.check(*case))


if __name__ == "__main__":
    WRITE_CASE, SWITCHYARD = (pathlib.Path(sys.argv.pop(1)).resolve() for _ in range(2))
    add_cases()
    unittest.main()
