"""Compares scripts/reference_model.py with the program: both must give the same logits, losses and
expert counts from the same checkpoint, for every configs/tiny_*.yaml and every option of the model.

    reference_model_test.py WRITE_CASE [unittest arguments]
"""

import copy
import math
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import h5py
import numpy as np
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import reference_forward  # noqa: E402
import reference_model  # noqa: E402

# The program computes in f32: about 10 sums of 20 to 100 terms follow each other.
BOUND = 1e-5
# Odd sizes, and weights so large that every part of the model affects the logits.
SMALL = "run.dir=unused model.vocab_size=41 model.seq_len=20 model.init_std=0.2"

ROPE_SCALING = ("model.rope_scaling.original_seq_len=20 model.rope_scaling.factor=3 "
                "model.rope_scaling.type")

# name: configuration, overrides, another value. Options that do not change the tensors have another
# value, with which the reference must not agree; otherwise the case would not test the option.
OPTIONS = {
    "learned_positions": ("dense", "model.position=learned", {"position": "rope"}),
    "rope_theta": ("dense", "model.rope_theta=50", {"rope_theta": 10000}),
    "no_positions": ("dense", "model.position=none", {"position": "rope"}),
    "partial_rotation": ("dense", "model.rotary_dim=4", {"rotary_dim": 0}),
    "rope_linear": ("dense", "model.rope_scaling.type=linear model.rope_scaling.factor=3",
                    {"factor": 2}),
    # In a context of 20 the pairs turn 3.2, 1.8, 1.0, 0.6 ... times: above, between and below.
    "rope_llama3": ("dense", f"{ROPE_SCALING}=llama3 model.rope_theta=100 "
                    "model.rope_scaling.low_freq_factor=0.8 "
                    "model.rope_scaling.high_freq_factor=2.5", {"low_freq_factor": 0.4}),
    "rope_yarn": ("dense", f"{ROPE_SCALING}=yarn model.rope_theta=100 "
                  "model.rope_scaling.beta_fast=2 model.rope_scaling.beta_slow=0.3",
                  {"beta_slow": 0.9}),
    "rope_yarn_partial": ("bigmac", f"{ROPE_SCALING}=yarn model.rotary_dim=4 "
                          "model.rope_scaling.attention_factor=1.3", {"attention_factor": 0}),
    "qkv_biases": ("dense", "model.bias=qkv", {"bias": "none"}),
    "attention_biases": ("fine_grained", "model.bias=attention model.qk_norm=head",
                         {"bias": "qkv"}),
    "wide_heads": ("dense", "model.head_dim=10", {}),
    "no_grouped_queries": ("dense", "model.num_kv_heads=4", {}),
    "one_key_head": ("dense", "model.num_kv_heads=1", {}),
    "qk_norm": ("dense", "model.qk_norm=head", {"qk_norm": "none"}),
    "qk_norm_of_all_heads": ("dense", "model.qk_norm=projection", {"qk_norm": "none"}),
    "qk_norm_learned_positions": ("dense", "model.qk_norm=head model.position=learned", {}),
    "norm_eps": ("dense", "model.norm_eps=0.3", {"norm_eps": 1e-5}),
    "layer_norm": ("dense", "model.norm=layer_norm model.norm_eps=0.3", {"norm": "rms_norm"}),
    "biases": ("dense", "model.norm=layer_norm model.bias=all model.activation=gelu",
               {"bias": "attention"}),
    "biases_gated": ("dense", "model.bias=all", {"bias": "attention"}),
    "tied_head": ("dense", "model.tie_embeddings=true", {}),
    "document_mask": ("dense", "data.mask=document", {}),
    "gelu": ("dense", "model.activation=gelu", {"activation": "silu"}),
    "silu": ("dense", "model.activation=silu", {"activation": "gelu"}),
    "relu": ("dense", "model.activation=relu", {"activation": "relu2"}),
    "relu2": ("dense", "model.activation=relu2", {"activation": "relu"}),
    "experts_gelu": ("fine_grained", "model.activation=gelu", {"activation": "silu"}),
    "experts_silu": ("bigmac", "model.activation=silu", {"activation": "gelu"}),
    "experts_relu": ("vanilla", "model.activation=relu", {"activation": "relu2"}),
    "experts_relu2": ("bigmac", "model.activation=relu2", {"activation": "relu"}),
    "experts_biases": ("bigmac", "model.norm=layer_norm model.bias=all model.first_dense_layers=1",
                       {"bias": "none"}),
    "first_dense_layers": ("fine_grained", "model.first_dense_layers=1", {}),
    "no_shared_experts": ("bigmac", "model.num_shared_experts=0", {}),
    "two_shared_experts": ("fine_grained", "model.num_shared_experts=2", {}),
    "shared_expert_gate": ("fine_grained", "model.shared_expert_gate=true",
                           {"shared_expert_gate": False}),
    "shared_expert_gate_ungated": ("bigmac", "model.shared_expert_gate=true "
                                   "model.num_shared_experts=2 model.activation=relu2",
                                   {"shared_expert_gate": False}),
    "one_expert_per_token": ("vanilla", "model.router.top_k=1", {"top_k": 2}),
    "all_experts": ("vanilla", "model.router.top_k=8", {"top_k": 7}),
    "sum_is_not_one": ("fine_grained", "model.router.normalize_topk=false",
                       {"normalize_topk": True}),
    "sum_is_one": ("bigmac", "model.router.normalize_topk=true", {"normalize_topk": False}),
    "scaling_factor": ("bigmac", "model.router.routed_scaling_factor=2.5",
                       {"routed_scaling_factor": 1.0}),
    "sigmoid": ("bigmac", "model.router.score=sigmoid", {"score": "softmax"}),
    "sigmoid_as_it_is": ("fine_grained",
                         "model.router.score=sigmoid model.router.normalize_topk=false",
                         {"normalize_topk": True}),
    "global_balance": ("fine_grained", "model.router.balance_scope=global_batch",
                       {"balance_scope": "sequence"}),
    "balancing_bias": ("bigmac", "model.router.bias_update_rate=0.01", {}),
    "balancing_bias_sigmoid": ("fine_grained", "model.router.bias_update_rate=0.01 "
                               "model.router.score=sigmoid model.first_dense_layers=1", {}),
    "expert_groups": ("fine_grained", "model.router.num_groups=4 model.router.groups_per_token=2",
                      {"groups_per_token": 3}),
    "expert_groups_sigmoid": ("bigmac", "model.router.num_groups=2 model.router.score=sigmoid "
                              "model.router.bias_update_rate=0.01", {"num_groups": 1}),
    "drop_lowest": ("fine_grained", "model.router.capacity_factor=0.8",
                    {"drop_policy": "latest_position"}),
    "drop_latest": ("bigmac", "model.router.capacity_factor=0.8 "
                    "model.router.drop_policy=latest_position", {"drop_policy": "lowest_weight"}),
    # Experts with router weights of zero score 0.5 for every token: tied tokens are dropped.
    "drop_ties": ("fine_grained", "model.router.capacity_factor=0.5 model.router.score=sigmoid "
                  "model.router.normalize_topk=false", {"capacity_factor": 0.4}),
    "capacity_is_rounded_up": ("vanilla", "model.router.capacity_factor=1.05",
                               {"capacity_factor": 1.0}),
    "forced_balance": ("fine_grained", "model.router.force_balanced=true",
                       {"force_balanced": False}),
    "many_options": ("bigmac", "model.norm=layer_norm model.bias=all model.qk_norm=projection "
                     "model.tie_embeddings=true model.first_dense_layers=1 model.num_layers=3 "
                     "data.mask=document model.activation=relu2 model.router.score=sigmoid "
                     "model.router.routed_scaling_factor=2.5 model.router.bias_update_rate=0.01 "
                     "model.router.capacity_factor=1.1", {"routed_scaling_factor": 2.0}),
}


# The numbers that the shapes of docs/formats.md are made of.
SIZES = ("vocab_size", "seq_len", "hidden", "num_heads", "num_kv_heads", "head_dim", "ffn_hidden",
         "num_experts", "expert_ffn_hidden", "latent", "num_shared_experts",
         "shared_expert_ffn_hidden")


def documented_tensors():
    """[(name, shape as text)] of the table of tensors in docs/formats.md; a tensor whose shape
    depends on an option has several rows."""
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    table = page.split("\n### Tensors\n")[1].split("\n### ")[0]
    return re.findall(r"^\| `([a-zA-Z0-9_.]+)` \| \[([^]]+)\] \|", table, re.M)


def documented_shape(text, config):
    """The shape that such a text means: extents are products of sizes of the model."""
    sizes = {key: config[key] for key in SIZES}
    sizes["width"] = sizes["latent" if config["structure"] == "bigmac" else "hidden"]
    return tuple(math.prod(sizes[factor] if factor in sizes else int(factor)
                           for factor in extent.strip().split(" * "))
                 for extent in text.split(","))


class TensorsRead(dict):
    """Remembers which of its tensors have not been read."""

    def __init__(self, tensors):
        super().__init__(tensors)
        self.unread = set(tensors)

    def __getitem__(self, name):
        self.unread.discard(name)
        return super().__getitem__(name)

    def get(self, name, default=None):
        return self[name] if name in self else default


def error(actual, expected):
    """Largest difference over the largest value; infinite for NaNs and for other shapes."""
    actual, expected = np.asarray(actual, dtype=float), np.asarray(expected, dtype=float)
    if actual.shape != expected.shape:
        return np.inf
    worst = np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30)
    return np.inf if np.isnan(worst) else worst


class Case:
    """The program's results for a configuration, and the checkpoint."""

    def __init__(self, folder, config, overrides):
        folder = pathlib.Path(folder)
        subprocess.run([WRITE_CASE, ROOT / "configs" / f"tiny_{config}.yaml", folder,
                        *SMALL.split(), *overrides.split()], check=True)
        self.checkpoint = folder / "step_00000000"
        self.config, weights, biases = reference_forward.load_checkpoint(self.checkpoint)
        self.weights, self.biases = TensorsRead(weights), TensorsRead(biases)
        with h5py.File(folder / "case.h5") as file:
            self.program = {name: item[:] for name, item in file.items()}

    def errors(self, config):
        """The errors of all results that the reference computes with `config`."""
        model = reference_model.ReferenceModel(config, self.weights, self.biases)
        logits = model.forward(self.program["tokens"], self.program.get("document_start"))
        loss = reference_model.cross_entropy(logits, self.program["targets"])
        errors = {"logits": error(logits, self.program["logits"]),
                  "loss": error([loss], self.program["loss"])}
        layers, router = model.moe_layers, config["router"]
        if layers:
            errors["z_loss"] = error([layer["z_loss"] for layer in layers], self.program["z_loss"])
            errors["expert_counts"] = error([layer["expert_counts"] for layer in layers],
                                            self.program["expert_counts"])
            errors["dropped"] = error([sum(layer["dropped"] for layer in layers)],
                                      self.program["dropped"])
        if layers and router["aux_loss_coef"] > 0:
            errors["aux_loss"] = error([layer["aux_loss"] for layer in layers],
                                       self.program["aux_loss"])
        return errors


class ReferenceModelTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def check(self, config, overrides, other):
        case = Case(self.folder, config, overrides)

        errors = case.errors(case.config)

        wrong = {name: value for name, value in errors.items() if not value <= BOUND}
        self.assertEqual(wrong, {})
        self.assertEqual(case.weights.unread | case.biases.unread, set())
        for key, value in other.items():
            config = copy.deepcopy(case.config)
            section = next(part for part in (config, config["router"], config["rope_scaling"])
                           if key in part)
            self.assertNotEqual(section[key], value)
            section[key] = value
            self.assertGreater(max(case.errors(config).values()), 100 * BOUND, key)

    def test_documents_list_every_tensor(self):
        documented, seen = documented_tensors(), set()
        for number, (config, overrides) in enumerate(all_models()):
            case = Case(self.folder / str(number), config, overrides)
            for name, weight in case.weights.items():
                general = re.sub(r"^layers\.\d+", "layers.L", name)
                rows = [(row, shape) for row, shape in documented if row == general
                        and documented_shape(shape, case.config) == weight.shape]
                self.assertEqual(len(rows), 1, f"rows for {name} {weight.shape}")
                seen.update(rows)
            moe_blocks = case.config["num_layers"] - case.config["first_dense_layers"]
            self.assertIn(set(case.biases), (
                set(), {f"moe_layers.{layer}" for layer in range(moe_blocks)}))
        self.assertEqual(set(documented), seen)

    def test_balancing_bias_decides(self):
        case = Case(self.folder, "bigmac", OPTIONS["balancing_bias"][1])
        case.biases = TensorsRead({})

        self.assertGreater(case.errors(case.config)["logits"], 100 * BOUND)

    def test_documents_decide(self):
        case = Case(self.folder, "dense", OPTIONS["document_mask"][1])
        del case.program["document_start"]

        self.assertGreater(case.errors(case.config)["logits"], 100 * BOUND)

    def test_command_prints_the_loss(self):
        case = Case(self.folder, "bigmac", "")
        tokens = case.program["tokens"][1]
        logits = case.program["logits"][1].astype(float)
        expected = reference_model.cross_entropy(logits[:-1], tokens[1:])

        printed = subprocess.run(
            [sys.executable, ROOT / "scripts" / "reference_forward.py", case.checkpoint,
             *map(str, tokens)], capture_output=True, text=True, check=True).stdout

        loss = float(re.search("^loss of the tokens after the first (.*)$", printed, re.M)[1])
        self.assertLess(error([loss], [expected]), BOUND)
        self.assertIn(f"likeliest next token {logits[-1].argmax()}\n", printed)
        self.assertEqual(printed.count("MoE layer"), 2)

    def test_numbers_without_a_point(self):
        self.assertEqual(yaml.safe_load("{a: 1e-05, b: 1e+16, c: 3, d: text}"),
                         {"a": 1e-5, "b": 1e16, "c": 3, "d": "text"})


def all_cases():
    tiny = sorted(path.stem.removeprefix("tiny_") for path in ROOT.glob("configs/tiny_*.yaml"))
    return {f"config_{name}": (name, "", {}) for name in tiny} | OPTIONS


def all_models():
    """(configuration, overrides) of every case."""
    return sorted({(config, overrides) for config, overrides, _ in all_cases().values()})


def add_cases():
    cases = all_cases()
    for name, case in cases.items():
        setattr(ReferenceModelTest, f"test_{name}",
                lambda self, case=case: self.check(*case))


if __name__ == "__main__":
    WRITE_CASE = pathlib.Path(sys.argv.pop(1)).resolve()
    add_cases()
    unittest.main()
