#!/usr/bin/env python3
"""Tests models that leave and enter: exports of any layout, imports and what is wrong with them,
training that begins with weights, upcycling.

usage: interop_test.py PATH_TO_SWITCHYARD PATH_TO_MPIEXEC [unittest options]
"""

import json
import math
import re
import shutil
import struct
import subprocess
import sys
import unittest

from program import BAD_INPUT, FAILED, Program, kill

# A step with this learning rate changes no bit of a weight, on any layout.
NO_STEP = ("optimizer.lr=1e-30", "optimizer.schedule.warmup_steps=0", "train.max_steps=1")
LOSS = re.compile(r"held-out loss ([0-9.]+)")


def read_safetensors(path):
    """(header, data) of a file."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8:8 + size]), content[8 + size:]


def write_safetensors(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


class Interop(Program):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.prepare("train", "configs/tiny_dense.yaml", "train.max_steps=12")
        cls.prepare("export", "runs/tiny_dense", "--to", "llama")

    def held_out_loss(self, *arguments, ranks=0):
        return float(LOSS.search(self.run_program(ranks, "eval", *arguments))[1])

    def losses(self, run):
        return [record["loss"] for record in self.metrics(run)]

    def import_llama(self, *settings):
        self.run_program(0, "import", "llama", "--config", "in.yaml", "run.dir=runs/in", *settings)


class Export(Interop):
    def test_every_layout_exports_the_same_bytes_alone_and_under_mpirun(self):
        files = {}
        for ranks, tp, ep in ((0, 1, 1), (8, 2, 2), (8, 1, 8)):
            run = f"runs/layout_{tp}_{ep}"
            self.train(ranks, *NO_STEP, f"run.dir={run}", f"parallel.tp={tp}", f"parallel.ep={ep}")
            to = self.folder / f"out_{tp}_{ep}"
            self.run_program(3 if tp == 2 else 0, "export", run, "--to", to, "--form", "folded",
                             "--shard-size", "20KB")
            files[tp, ep] = {path.name: path.read_bytes() for path in to.iterdir()
                             if path.name != "README.md"}

        first = files[1, 1]
        self.assertGreater(len([name for name in first if name.endswith(".safetensors")]), 3)
        self.assertEqual(files[2, 2], first)
        self.assertEqual(files[1, 8], first)

    def test_the_card_says_what_the_model_is(self):
        card = (self.folder / "llama" / "README.md").read_text()

        record = self.metrics("tiny_dense")[-1]
        self.assertIn("| step | 12 |", card)
        self.assertIn(f"| held-out loss, as training measured it | {record['val_loss']:.6f} (perplexity", card)
        self.assertIn("structure: dense", card)
        self.assertRegex(card, r"fingerprint `[0-9a-f]{16}`")

    def test_nothing_is_replaced_or_left_half_written(self):
        before = sorted(path.name for path in self.folder.iterdir())
        output = self.run_program(0, "export", "runs/tiny_dense", "--to", "llama", code=FAILED)
        self.assertIn("/llama exists already: name a new folder, or remove it", output)
        output = self.run_program(2, "export", "runs/tiny_dense", "--to", "text/a/../b",
                                  "--shard-size", "9QB", code=BAD_INPUT)
        self.assertIn("--shard-size", output)
        shard = self.checkpoint(12, "tiny_dense") / "shard_00000.h5"
        shard.write_bytes(shard.read_bytes()[:-100])
        output = self.run_program(2, "export", "runs/tiny_dense", "--to", "other", code=FAILED)
        self.assertIn("shard_00000.h5 has", output)
        self.assertEqual(sorted(path.name for path in self.folder.iterdir()), before)


class Import(Interop):
    def test_every_command_takes_it_on_every_layout(self):
        self.import_llama()

        expected = self.held_out_loss("runs/tiny_dense")
        data = ("data.validation=runs/tiny_data/validation.h5", "train.global_batch_size=2")
        for ranks, settings in ((0, ()), (2, ("parallel.tp=2",)), (2, ())):
            self.assertEqual(self.held_out_loss("in.yaml", *data, *settings, ranks=ranks), expected)
        self.run_program(0, "generate", "in.yaml", "--prompt", "abc", "--max-tokens", "4")
        self.assertIn("step 0", self.run_program(0, "inspect", "--verify", "runs/in"))

    def test_a_tokenizer_comes_along(self):
        self.export_with_tokenizer()

        self.run_program(0, "import", "out", "--config", "in.yaml", "run.dir=runs/in")

        model = (self.folder / "runs/in/tokenizer/tokenizer.model").read_bytes()
        self.assertEqual(model, (self.folder / "runs/sp/made.model").read_bytes())
        self.assertIn("type: sentencepiece", (self.folder / "in.yaml").read_text())
        shutil.rmtree(self.folder / "out")
        self.run_program(0, "eval", "in.yaml", "data.validation=runs/sp/validation.h5")
        # Bytes need no files, and a folder without a tokenizer is said.
        self.run_program(0, "import", "llama", "--config", "b.yaml")
        self.assertFalse((self.folder / "runs/b/tokenizer").exists())
        (self.folder / "llama" / "tokenizer.json").unlink()
        output = self.run_program(0, "import", "llama", "--config", "c.yaml")
        self.assertIn("the folder holds no tokenizer", output)

    def export_with_tokenizer(self):
        """A model in `out` whose tokenizer has files."""
        made = ("data.tokenizer.type=sentencepiece", "data.tokenizer.model=runs/sp/made.model",
                "data.train=runs/sp/train.h5", "data.validation=runs/sp/validation.h5",
                "run.dir=runs/sp")
        self.run_program(0, "tokenize", "configs/tiny_dense.yaml", *made,
                         "data.tokenizer.vocab_size=320", 'data.text=["text"]')
        self.train(0, *made, "train.max_steps=4", config="tiny_dense")
        self.run_program(0, "export", "runs/sp", "--to", "out")

    def test_an_experiment_that_cannot_be_written_leaves_nothing(self):
        self.export_with_tokenizer()
        output = self.run_program(0, "import", "out", "--config", "/proc/in.yaml", "run.dir=runs/in",
                                  code=FAILED)
        self.assertIn("/proc/in.yaml.tmp: ", output)
        self.assertFalse((self.folder / "runs" / "in").exists())

    def test_a_failure_at_the_end_leaves_nothing_and_a_killed_import_can_be_repeated(self):
        self.export_with_tokenizer()
        # A model whose import takes a while.
        arguments = ["import", "out", "--config", "in.yaml", "run.dir=runs/in", "--upcycle",
                     "model.structure=fine_grained", "model.num_experts=1024",
                     "model.expert_ffn_hidden=16"]
        run = self.folder / "runs" / "in"
        job = self.start_program(0, *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.wait_for(job, (run / "checkpoints" / "step_00000000.tmp").exists)
        (run / "checkpoints" / "step_00000000").write_text("in the way")
        output = job.communicate(timeout=60)[0]
        self.assertEqual(job.returncode, FAILED, output)
        self.assertIn("step_00000000", output)
        self.assertEqual(sorted(path.name for path in run.iterdir()), ["checkpoints"])
        self.assertFalse((self.folder / "in.yaml").exists())

        shutil.rmtree(run)
        self.run_program(0, *arguments)
        experiment = (self.folder / "in.yaml").read_text()
        shutil.rmtree(run / "checkpoints")  # as a kill before the last rename leaves it
        self.run_program(0, *arguments)
        self.assertTrue((run / "checkpoints" / "step_00000000").is_dir())
        self.assertEqual((self.folder / "in.yaml").read_text(), experiment)

    def test_training_begins_at_its_weights_and_goes_on(self):
        self.import_llama()
        settings = ("data.train=runs/tiny_data/train.h5", "train.max_steps=6", "optimizer.type=sgd",
                    "optimizer.lr=0.05", "train.global_batch_size=4", "checkpoint.keep=1",
                    "data.validation=runs/tiny_data/validation.h5")
        shutil.copytree(self.folder / "runs" / "in", self.folder / "runs" / "b")

        output = self.run_program(0, "train", "in.yaml", *settings, "checkpoint.interval=2")
        self.run_program(2, "train", "in.yaml", *settings, "run.dir=runs/b", "parallel.tp=2")

        self.assertIn("begins at step 0 with the weights of step_00000000", output)
        self.assertEqual([record["step"] for record in self.metrics("in")], [1, 2, 3, 4, 5, 6])
        for one, two in zip(self.losses("in"), self.losses("b")):
            self.assertAlmostEqual(one, two, delta=1e-5)
        self.assertLess(self.metrics("in")[0]["loss"], self.metrics("tiny_dense")[0]["loss"] - 0.3)
        # Imported weights are not pruned: no training makes them again.
        names = sorted(path.name for path in (self.folder / "runs/in/checkpoints").iterdir())
        self.assertEqual(names, ["latest", "step_00000000", "step_00000006"])
        output = self.run_program(0, "train", "in.yaml", *settings, "train.max_steps=8")
        self.assertIn("resumed from step_00000006 at step 6", output)

    def test_fine_tuning_takes_the_weights_of_a_run_alone(self):
        tune = ("configs/tiny_dense.yaml", "run.dir=runs/tuned", "train.max_steps=3",
                "optimizer.type=sgd", "checkpoint.resume=weights:runs/tiny_dense")

        output = self.run_program(0, "train", *tune)

        self.assertIn("begins at step 0 with the weights of runs/tiny_dense", output)
        self.assertEqual([record["step"] for record in self.metrics("tuned")], [1, 2, 3])
        self.assertEqual(self.metrics("tuned")[0]["tokens"],
                         self.metrics("tiny_dense")[0]["tokens"])
        last = self.metrics("tiny_dense")[-1]["loss"]
        self.assertLess(self.metrics("tuned")[0]["loss"], last + 0.1)
        # Started again, it goes on from its own checkpoint.
        output = self.run_program(0, "train", *tune[:2], "train.max_steps=5", *tune[3:])
        self.assertIn("resumed from step_00000003 at step 3", output)
        output = self.run_program(0, "train", *tune, "model.norm_eps=0.1", code=BAD_INPUT)
        self.assertIn("model.norm_eps: 0.1 is not the value of the checkpoint", output)

    def test_upcycled_models_begin_with_the_same_loss_and_learn(self):
        expected = self.held_out_loss("runs/tiny_dense")
        ways = {
            "vanilla": ("model.num_experts=8", "model.router.bias_update_rate=0.001"),
            "fine_grained": ("model.structure=fine_grained", "model.expert_ffn_hidden=16",
                             "model.num_experts=32", "model.router.top_k=8"),
        }
        for name, settings in ways.items():
            self.run_program(0, "import", "llama", "--config", f"{name}.yaml", "--upcycle",
                             f"run.dir=runs/{name}", "data.train=runs/tiny_data/train.h5",
                             "data.validation=runs/tiny_data/validation.h5",
                             "model.router.aux_loss_coef=0.01", *settings)
            self.assertAlmostEqual(self.held_out_loss(f"{name}.yaml"), expected, delta=1e-4)
            self.run_program(2, "train", f"{name}.yaml", "train.max_steps=20", "parallel.ep=2",
                             "train.global_batch_size=8", "optimizer.lr=3e-3")
            losses = self.losses(name)
            self.assertLess(sum(losses[-4:]), sum(losses[:4]) - 0.4)
        self.run_program(0, "export", "runs/vanilla", "--to", "experts")
        output = self.run_program(0, "import", "experts", "--config", "x.yaml", "--upcycle",
                                  code=BAD_INPUT)
        self.assertEqual(output, "switchyard: --upcycle: the imported model has experts already\n")

    def test_upcycling_refuses_what_would_change_the_logits(self):
        for settings, message in (
                (("model.router.normalize_topk=false",), "normalize_topk must be true"),
                (("model.structure=bigmac",), "model.structure is vanilla or fine_grained"),
                (("model.router.num_groups=2",), "model.router.num_groups must be 1"),
                (("model.structure=fine_grained", "model.expert_ffn_hidden=24"),
                 "model.expert_ffn_hidden must divide the feed-forward's width 64"),
                (("model.structure=fine_grained", "model.expert_ffn_hidden=16",
                  "model.router.top_k=6"), "must be multiples of 4")):
            output = self.run_program(0, "import", "llama", "--config", "x.yaml", "--upcycle",
                                      *settings, code=BAD_INPUT)
            self.assertIn(message, output)
        self.assertFalse((self.folder / "x.yaml").exists())


class BadImports(Interop):
    def setUp(self):
        super().setUp()
        self.before = sorted(path.name for path in self.folder.iterdir())
        self.weights = self.folder / "llama" / "model.safetensors"
        self.header, self.data = read_safetensors(self.weights)

    def refuse(self, message, *settings, code=FAILED):
        """One line that holds the message, and nothing is left."""
        output = self.run_program(0, "import", "llama", "--config", "in.yaml", *settings, code=code)
        self.assertIn(message, output)
        self.assertEqual(output.count("\n"), 1, output)
        self.assertEqual(sorted(path.name for path in self.folder.iterdir()), self.before)
        self.assertFalse((self.folder / "runs" / "in").exists())

    def set_config(self, **keys):
        path = self.folder / "llama" / "config.json"
        config = json.loads(path.read_text())
        config.update(keys)
        path.write_text(json.dumps({k: v for k, v in config.items() if v != "gone"}))

    def test_files(self):
        size = len(self.data)
        first, *_, last = (name for name in self.header if name != "__metadata__")
        self.weights.write_bytes(self.weights.read_bytes()[:-10])
        self.refuse("model.safetensors: the header: its tensors take")
        self.weights.write_bytes(struct.pack("<Q", 4 << 30) + b"{}")
        self.refuse("model.safetensors")
        write_safetensors(self.weights, b'{"a": 1, "a": 2}', b"")
        self.refuse("model.safetensors")
        overlapping = json.loads(json.dumps(self.header))
        overlapping[last]["data_offsets"] = [size - 8, size]
        write_safetensors(self.weights, overlapping, self.data)
        self.refuse(last)
        integers = json.loads(json.dumps(self.header))
        integers[first]["dtype"] = "I32"
        write_safetensors(self.weights, integers, self.data)
        self.refuse(f"{first} is of type I32")
        index = {"weight_map": {first: "model-00001-of-00002.safetensors"}}
        (self.folder / "llama" / "model.safetensors.index.json").write_text(json.dumps(index))
        self.refuse("files that it lists are missing: model-00001-of-00002.safetensors")
        (self.folder / "llama" / "config.json").unlink()
        self.refuse("llama has no config.json: name a folder with")

    def test_tensors(self):
        renamed = json.loads(json.dumps(self.header))
        renamed["model.layers.1.surplus.weight"] = renamed.pop("model.norm.weight")
        write_safetensors(self.weights, renamed, self.data)
        self.refuse("model.norm.weight is missing; model.layers.1.surplus.weight is left over")
        write_safetensors(self.weights, self.header, self.data)
        self.set_config(intermediate_size=32)
        self.refuse("model.layers.0.mlp.gate_proj.weight has shape [64, 32] instead of [32, 32]; "
                    "model.layers.0.mlp.up_proj.weight has shape")

    def add_tensor(self, name, values):
        """Appends a vector to the file."""
        begin = len(self.data)
        self.data += values
        self.header[name] = {"dtype": "F32", "shape": [len(values) // 4],
                             "data_offsets": [begin, len(self.data)]}

    def test_tensors_that_say_nothing_new(self):
        self.add_tensor("model.layers.0.self_attn.rotary_emb.inv_freq", struct.pack("<4f", 1, 2, 3, 4))
        self.set_config(tie_word_embeddings=True)
        head, embedding = (self.header[name]["data_offsets"]
                           for name in ("lm_head.weight", "model.embed_tokens.weight"))
        tied = bytearray(self.data)
        tied[head[0]:head[1]] = self.data[embedding[0]:embedding[1]]
        write_safetensors(self.weights, self.header, bytes(tied))
        self.import_llama()
        shutil.rmtree(self.folder / "runs" / "in")
        (self.folder / "in.yaml").unlink()
        write_safetensors(self.weights, self.header, self.data)
        self.refuse("lm_head.weight is left over")

    def test_values_that_are_not_finite(self):
        data = bytearray(self.data)
        for name, value in (("model.norm.weight", math.nan),
                            ("model.layers.0.self_attn.q_proj.weight", math.inf)):
            begin = self.header[name]["data_offsets"][0]
            data[begin:begin + 4] = struct.pack("<f", value)
        write_safetensors(self.weights, self.header, bytes(data))
        self.refuse("the weights are not finite: model.layers.0.self_attn.q_proj.weight holds "
                    "1 infinity; model.norm.weight holds 1 NaN")

    def test_values_that_many_experts_take_over_are_counted_once(self):
        data = bytearray(self.data)
        for name, count in (("model.layers.0.mlp.down_proj.weight", 2),
                            ("model.layers.1.mlp.gate_proj.weight", 3)):
            begin = self.header[name]["data_offsets"][0]
            data[begin:begin + 4 * count] = struct.pack(f"<{count}f", *[math.nan] * count)
        write_safetensors(self.weights, self.header, bytes(data))
        for structure in ((), ("model.structure=fine_grained", "model.expert_ffn_hidden=16")):
            self.refuse("model.layers.0.mlp.down_proj.weight holds 2 NaN; "
                        "model.layers.1.mlp.gate_proj.weight holds 3 NaN",
                        "--upcycle", "run.dir=runs/in", *structure)

    def test_a_folder_that_another_job_owns(self):
        job = self.start_program(0, "train", "configs/tiny_dense.yaml", "run.dir=runs/in",
                                 "train.max_steps=1000000", "checkpoint.interval=0",
                                 "train.eval_interval=0", stdout=subprocess.DEVNULL)
        metrics = self.folder / "runs" / "in" / "metrics.jsonl"
        self.wait_for(job, lambda: metrics.exists() and metrics.stat().st_size > 0)
        output = self.run_program(0, "import", "llama", "--config", "in.yaml", "run.dir=runs/in",
                                  code=FAILED)
        kill(job)
        self.assertIn(f"runs/in is in use (train, process {job.pid} on ", output)
        self.assertFalse((self.folder / "in.yaml").exists())
        self.assertFalse(self.checkpoint(0, "in").exists())

    def test_configurations(self):
        for keys, message in (
                ({"model_type": "bert"}, "there is no form bert; there are llama, qwen2"),
                ({"hidden_size": "gone"}, "config.json: hidden_size is missing"),
                ({"hidden_size": 32.5}, "hidden_size = 32.5 is not a whole number"),
                ({"tie_word_embeddings": "no"}, 'tie_word_embeddings = "no" is neither'),
                ({"hidden_act": "gelu"}, 'hidden_act = "gelu" cannot be honoured'),
                ({"rope_scaling": {"rope_type": "longrope"}}, '"longrope" cannot be honoured'),
                ({"rope_scaling": {"rope_type": "linear", "factor": "4"}},
                 'factor = "4" of the rotation is not a number'),
                ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}},
                 "low_freq_factor of the rotation is missing"),
                ({"rope_parameters": "linear"}, "rope_parameters is not an object"),
                ({"partial_rotary_factor": 0.5, "rope_parameters": "gone"},
                 "partial_rotary_factor = 0.5 cannot be honoured"),
                ({"num_hidden_layers": 4294967298}, "num_hidden_layers = 4294967298 is out of range"),
                ({"num_hidden_layers": 90000}, "speaks of 90000 layers and 0 experts"),
                ({"model_type": "mistral", "sliding_window": 32},
                 "sliding_window = 32 cannot be honoured: attention sees all 64 tokens"),
                ({"model_type": "mistral", "max_position_embeddings": 8192},
                 "sliding_window is missing, which means 4096: attention sees all 8192 tokens"),
                ({"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 63},
                 "sliding_window = 63 cannot be honoured")):
            shutil.copytree(self.template / "llama", self.folder / "llama", dirs_exist_ok=True)
            self.set_config(**keys)
            self.refuse(message)
        (self.folder / "llama" / "config.json").write_text("[1]")
        self.refuse("config.json is not a JSON object")

    def test_a_window_that_sequences_fit_in(self):
        self.set_config(model_type="mistral", sliding_window=32)
        self.import_llama("model.seq_len=32")

    def test_settings_that_contradict_the_files(self):
        self.refuse("model.norm_eps: 0.1 is not the value of llama/config.json, which says 1e-05",
                    "model.norm_eps=0.1", code=BAD_INPUT)

    def test_what_is_there_stays(self):
        self.import_llama()
        experiment = (self.folder / "in.yaml").read_text()
        output = self.run_program(0, "import", "llama", "--config", "in.yaml", "run.dir=runs/other",
                                  code=FAILED)
        self.assertIn("--config in.yaml exists already", output)
        (self.folder / "runs" / "old" / "tokenizer").mkdir(parents=True)
        output = self.run_program(0, "import", "llama", "--config", "b.yaml", "run.dir=runs/old",
                                  code=FAILED)
        self.assertIn("runs/old/tokenizer exists already", output)
        output = self.run_program(0, "import", "llama", "--config", "b.yaml", "run.dir=runs/in",
                                  code=FAILED)
        self.assertIn("holds checkpoints already: name another folder with run.dir=PATH", output)
        self.assertEqual((self.folder / "in.yaml").read_text(), experiment)
        self.assertFalse((self.folder / "b.yaml").exists())


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
