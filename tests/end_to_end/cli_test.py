#!/usr/bin/env python3
"""The program as a user meets it: commands, exit codes, messages, resume, under mpiexec.

usage: cli_test.py PATH_TO_SWITCHYARD PATH_TO_MPIEXEC [unittest options]
"""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

SWITCHYARD, MPIEXEC = (os.path.abspath(path) for path in sys.argv[1:3])
CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
MPI_FLAGS = ["--oversubscribe", "--mca", "mpi_yield_when_idle", "1"]
DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 75


def environment():
    return dict(os.environ, OMP_NUM_THREADS="1", OMPI_ALLOW_RUN_AS_ROOT="1",
                OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")


def command(ranks, *arguments):
    program = [SWITCHYARD, *map(str, arguments)]
    return program if ranks == 0 else [MPIEXEC, *MPI_FLAGS, "-n", str(ranks), *program]


def write_text(folder):
    """Words of a small language, so that there is something to learn."""
    rng = random.Random(3)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 6))) for _ in range(60)]
    folder.mkdir()
    for i in range(24):
        text = " ".join(rng.choice(words) for _ in range(300))
        (folder / f"document_{i:02}.txt").write_text(text + "\n")


class Program(unittest.TestCase):
    """A folder with token files; every test has a copy."""

    @classmethod
    def setUpClass(cls):
        cls.template = pathlib.Path(tempfile.mkdtemp())
        write_text(cls.template / "text")
        shutil.copytree(CONFIGS, cls.template / "configs")
        subprocess.run(command(0, "tokenize", "configs/tiny_bigmac.yaml", 'data.text=["text"]'),
                       cwd=cls.template, env=environment(), check=True, capture_output=True)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.template)

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        shutil.copytree(self.template, self.folder, dirs_exist_ok=True)

    def tearDown(self):
        shutil.rmtree(self.folder)

    def run_program(self, ranks, *arguments, code=DONE):
        result = subprocess.run(command(ranks, *arguments), cwd=self.folder, env=environment(),
                                capture_output=True, text=True, timeout=120)
        output = result.stdout + result.stderr
        self.assertEqual(result.returncode, code, output)
        return output

    def train(self, ranks, *overrides, config="tiny_bigmac", code=DONE):
        return self.run_program(ranks, "train", f"configs/{config}.yaml", *overrides, code=code)

    def metrics(self, run="tiny_bigmac"):
        lines = (self.folder / "runs" / run / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def checkpoint(self, step, run="tiny_bigmac"):
        return self.folder / "runs" / run / "checkpoints" / f"step_{step:08}"

    def shards(self, step, run="tiny_bigmac"):
        return {path.name: path.read_bytes() for path in sorted(self.checkpoint(step, run).iterdir())
                if path.name.startswith("shard")}


class Training(Program):
    def test_every_structure_learns_on_every_layout_that_is_tried(self):
        for structure, ranks, layout in [("dense", 2, ["parallel.tp=2"]),
                                         ("vanilla", 4, ["parallel.ep=4"]),
                                         ("fine_grained", 4, ["parallel.tp=2", "parallel.ep=4"]),
                                         ("bigmac", 4, ["parallel.ep=2"])]:
            with self.subTest(structure):
                self.train(ranks, *layout, config=f"tiny_{structure}")
                losses = [m["loss"] for m in self.metrics(f"tiny_{structure}")]
                self.assertEqual(len(losses), 20)
                self.assertLess(losses[-1], losses[0] - 1.0)

    def test_commands_work_on_what_was_trained_elsewhere(self):
        self.train(4, "parallel.ep=4")
        val_loss = self.metrics()[-1]["val_loss"]
        output = self.run_program(2, "eval", "configs/tiny_bigmac.yaml", "parallel.tp=2")
        self.assertIn("held-out loss", output)
        self.assertAlmostEqual(float(output.split("held-out loss ")[1].split(",")[0]), val_loss,
                               delta=0.5)
        text = self.run_program(0, "generate", "configs/tiny_bigmac.yaml", "--prompt", "ab",
                                "--max-tokens", "20")
        self.assertTrue(text.startswith("ab"))
        again = self.run_program(2, "generate", "configs/tiny_bigmac.yaml", "parallel.ep=2",
                                 "--prompt", "ab", "--max-tokens", "20")
        self.assertEqual(text, again)
        output = self.run_program(0, "inspect", self.checkpoint(20), "--verify")
        self.assertIn("layers.0.moe.descend.weight", output)
        self.run_program(0, "inspect", "runs/tiny_data/train.h5", "--verify")

    def test_recall_tasks_are_made_learned_and_scored(self):
        config = ["configs/tiny_bigmac.yaml", "data.tokenizer.type=recall", "data.mask=document",
                  "data.train=runs/recall/train.h5", "data.validation=runs/recall/validation.h5",
                  "data.recall.train_sequences=800", "data.recall.validation_sequences=10",
                  "data.recall.shortest=32", "data.recall.practice_share=0.9",
                  "run.dir=runs/recall", "train.max_steps=60"]
        self.run_program(0, "tokenize", *config)
        self.run_program(0, "train", *config)
        losses = [m["loss"] for m in self.metrics("recall")]
        # From ln 160, all of the vocabulary, towards ln 128, its keys and values.
        self.assertGreater(sum(losses[:5]) / 5, sum(losses[-20:]) / 20 + 0.08)
        output = self.run_program(2, "eval", *config, "parallel.tp=2")
        for task in ["single", "multi_key", "multi_value", "multi_query", "variable_tracking"]:
            self.assertRegex(output, rf"{task} +2 +[0-9.]+% +[0-9.]+%")
        told = self.run_program(0, "generate", *config, "--prompt", "single set k3 v5 ask k3",
                                "--max-tokens", "2")
        self.assertTrue(told.startswith("single set k3 v5 ask k3 "))
        told = self.run_program(0, "generate", *config, "--prompt", "hello", code=FAILED)
        self.assertIn("'hello' is no word of the recall tasks", told)

    def test_bf16_learns_too(self):
        self.train(2, "run.compute_dtype=bf16", "parallel.ep=2", "parallel.recompute=true")
        losses = [m["loss"] for m in self.metrics()]
        self.assertLess(losses[-1], losses[0] - 1.0)

    def test_dry_run_and_print_config_train_nothing(self):
        plan = self.run_program(0, "train", "configs/tiny_bigmac.yaml", "--dry-run")
        self.assertIn("parameters", plan)
        shown = self.run_program(0, "train", "configs/tiny_bigmac.yaml", "--print-config",
                                 "train.max_steps=7")
        self.assertRegex(shown, r"max_steps: 7 +# command line")
        self.assertRegex(shown, r"latent: 8 +# configs/tiny_bigmac.yaml:6")
        self.assertFalse((self.folder / "runs" / "tiny_bigmac").exists())


class Resume(Program):
    # 46 sequences or so per epoch: 20 steps of 8 cross the end of three.
    def test_a_killed_run_goes_on_bit_for_bit(self):
        self.train(4, "parallel.ep=4")
        straight, straight_shards = self.metrics(), self.shards(20)
        shutil.rmtree(self.folder / "runs" / "tiny_bigmac")

        # Killed between the checkpoint of step 10 and that of step 20.
        process = subprocess.Popen(command(4, "train", "configs/tiny_bigmac.yaml",
                                           "parallel.ep=4"),
                                   cwd=self.folder, env=environment(),
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.time() + 60
        while not self.checkpoint(10).exists() and time.time() < deadline:
            time.sleep(0.002)
        process.kill()
        process.wait()
        subprocess.run(["pkill", "-KILL", "-f", f"^{SWITCHYARD} train"], check=False)
        if self.checkpoint(20).exists():  # it was faster than the signal
            shutil.rmtree(self.checkpoint(20))
        output = self.train(4, "parallel.ep=4")

        self.assertIn("resumed from step_00000010", output)
        self.assertEqual([(m["step"], m["loss"], m["grad_norm"]) for m in self.metrics()],
                         [(m["step"], m["loss"], m["grad_norm"]) for m in straight])
        self.assertEqual(self.shards(20), straight_shards)

    def test_a_signal_saves_and_stops_with_its_own_code(self):
        process = subprocess.Popen(command(2, "train", "configs/tiny_bigmac.yaml", "parallel.ep=2",
                                           "train.max_steps=100000"),
                                   cwd=self.folder, env=environment(), text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        deadline = time.time() + 60
        while not self.checkpoint(10).exists() and time.time() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGUSR1)
        output = process.communicate(timeout=60)[0]

        self.assertEqual(process.returncode, STOPPED, output)
        self.assertIn("stopped by a signal after step", output)
        last = self.metrics()[-1]["step"]
        self.assertTrue(self.checkpoint(last).exists())

    def test_another_layout_goes_on_from_the_checkpoint(self):
        self.train(4, "parallel.ep=4", "train.max_steps=10")
        output = self.train(2, "parallel.tp=2", "train.max_steps=12")
        self.assertIn("resumed from step_00000010", output)
        self.assertEqual([m["step"] for m in self.metrics()], list(range(1, 13)))

    def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(self):
        self.train(2, "parallel.ep=2")
        shard = next(self.checkpoint(20).glob("shard*"))
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 4
        shard.write_bytes(content)

        output = self.train(2, "parallel.ep=2", "train.max_steps=12")

        self.assertIn(f"passed over step_00000020", output)
        self.assertIn(shard.name, output)
        self.assertIn("resumed from step_00000010", output)


class HashTraining(Program):
    SETTINGS = ["hash.dense_layers=1", "hash.bits=32", "hash.training.sigma=1",
                "hash.training.balance_weight=0", "hash.training.num_sequences=24",
                "hash.training.held_out_sequences=8"]

    def setUp(self):
        super().setUp()
        self.train(0)
        self.hash = self.folder / "runs" / "tiny_bigmac" / "hash"

    def train_hash(self, ranks, *overrides, code=DONE):
        return self.run_program(ranks, "train-hash", "configs/tiny_bigmac.yaml", *self.SETTINGS,
                                *overrides, code=code)

    def test_a_killed_one_goes_on_bit_for_bit_and_leaves_the_old_weights(self):
        self.train_hash(0)
        straight = (self.hash / "hash_weights.h5").read_bytes()
        straight_metrics = (self.hash / "metrics.jsonl").read_text()
        shutil.rmtree(self.hash)
        self.train_hash(0, "hash.training.epochs=1")  # what is there before
        old = (self.hash / "hash_weights.h5").read_bytes()

        # Killed when one of the two heads is done.
        process = subprocess.Popen(command(0, "train-hash", "configs/tiny_bigmac.yaml",
                                           *self.SETTINGS),
                                   cwd=self.folder, env=environment(),
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.time() + 60
        while (not list(self.hash.glob("heads/*.h5")) and process.poll() is None
               and time.time() < deadline):
            time.sleep(0.002)
        process.kill()
        process.wait()
        self.assertEqual((self.hash / "hash_weights.h5").read_bytes(), old)
        output = self.train_hash(0)

        self.assertRegex(output, r"train: .* 0 of \d+ passes run now")
        self.assertRegex(output, r"[12] heads are done already")
        self.assertEqual((self.hash / "hash_weights.h5").read_bytes(), straight)
        self.assertEqual((self.hash / "metrics.jsonl").read_text(), straight_metrics)
        self.assertEqual([path.name for path in sorted(self.hash.iterdir())],
                         ["hash_weights.h5", "metrics.jsonl"])

    def test_any_number_of_ranks_learns_the_same_bits(self):
        files = []
        for ranks in (0, 2, 4):
            self.train_hash(ranks)
            files.append((self.hash / "hash_weights.h5").read_bytes())
            shutil.rmtree(self.hash)
        self.assertEqual(files[0], files[1])
        self.assertEqual(files[0], files[2])

    def test_every_layout_learns_and_logs_what_it_found(self):
        for layout in (["parallel.tp=2"], ["parallel.ep=2"], ["parallel.tp=2", "parallel.ep=4"]):
            with self.subTest(layout):
                self.train_hash(4 if len(layout) == 2 else 2, *layout)
                records = [json.loads(line)
                           for line in (self.hash / "metrics.jsonl").read_text().splitlines()]
                losses = [r["loss"] for r in records if "loss" in r and r["kv_head"] == 1]
                self.assertEqual(len(losses), 16)
                self.assertLess(losses[-1], losses[0])
                last = [r["orthogonality"] for r in records if r.get("epoch") == 15]
                # 32 bits of heads of width 8: sqrt(24) is the least.
                self.assertLess(max(last), 1.02 * 24 ** 0.5)
                self.assertEqual(len([r for r in records if "held_out" in r]), 2)
                shutil.rmtree(self.hash)

    def test_other_precisions_masks_and_starts_learn_too(self):
        for overrides in (["run.compute_dtype=bf16"], ["data.mask=document"],
                          ["hash.training.init=gaussian"]):
            with self.subTest(overrides):
                self.train_hash(2, "parallel.ep=2", *overrides)
                records = [json.loads(line)
                           for line in (self.hash / "metrics.jsonl").read_text().splitlines()]
                losses = [r["loss"] for r in records if "loss" in r and r["kv_head"] == 1]
                self.assertLess(losses[-1], losses[0])
                for record in records:
                    if "held_out" in record:
                        self.assertEqual(record["held_out"]["queries"], 8)
                        self.assertGreater(record["held_out"]["recall"][2], 0.05)
                output = self.run_program(2, "eval", "configs/tiny_bigmac.yaml", *self.SETTINGS,
                                          "parallel.ep=2", "decode.attention=hata",
                                          "decode.eval_tokens=4", *overrides)
                self.assertIn("hata: held-out loss", output)
                shutil.rmtree(self.hash)

    def test_losses_of_epochs_are_of_the_same_pairs(self):
        # Steps too small for f32: whatever pairs an epoch draws, the loss stays.
        self.train_hash(0, "hash.training.lr=1e-12", "hash.training.pairs_per_epoch=256")
        records = [json.loads(line)
                   for line in (self.hash / "metrics.jsonl").read_text().splitlines()]
        losses = [r["loss"] for r in records if "loss" in r and r["kv_head"] == 0]
        self.assertEqual(len(losses), 16)
        self.assertEqual(len(set(losses)), 1, losses)

    def test_finished_weights_are_left_alone(self):
        self.train_hash(0)
        before = (self.hash / "hash_weights.h5").stat().st_mtime_ns
        self.assertIn("already", self.train_hash(2))
        self.assertEqual((self.hash / "hash_weights.h5").stat().st_mtime_ns, before)

    def test_damaged_weights_and_those_of_another_checkpoint_are_learned_again(self):
        self.train_hash(0)
        weights = self.hash / "hash_weights.h5"
        intact = weights.read_bytes()
        for damaged in (intact[:-1], intact[:len(intact) // 2], b"",
                        intact.replace(intact[-64:-32], bytes(32))):
            weights.write_bytes(damaged)
            self.train_hash(0)
            self.assertEqual(weights.read_bytes(), intact)
        output = self.train_hash(0, "checkpoint.resume=runs/tiny_bigmac/checkpoints/step_00000010")
        self.assertIn("wrote", output)
        self.assertNotEqual(weights.read_bytes(), intact)

    def test_what_cannot_be_learned_is_said_once(self):
        for override, message in [("hash.bits=48", "is not a multiple of 32"),
                                  ("hash.training.seq_len=65", "is more than model.seq_len = 64")]:
            output = self.train_hash(2, override, code=BAD_INPUT)
            self.assertEqual(output.count(message), 1, output)
        output = self.train_hash(2, "hash.dense_layers=2", code=FAILED)
        self.assertEqual(output.count("leaves none of the 2 layers"), 1, output)


class Decoding(Program):
    """Ways to choose keys, of a model that is there, with hash weights of 32 bits."""
    METHODS = ["hata", "exact_topk", "random_hash", "quest", "loki", "streaming"]
    SETTINGS = ["hash.dense_layers=1", "hash.bits=32", "decode.budget=6", "decode.quest_page=2",
                "decode.loki_channels=4"]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for arguments in [["train", "configs/tiny_bigmac.yaml"],
                          ["train-hash", "configs/tiny_bigmac.yaml", *cls.SETTINGS,
                           "hash.training.epochs=1", "hash.training.pairs_per_epoch=256"]]:
            subprocess.run(command(0, *arguments), cwd=cls.template, env=environment(), check=True,
                           capture_output=True)

    def setUp(self):
        super().setUp()
        self.hash = self.folder / "runs" / "tiny_bigmac" / "hash"

    def generate(self, ranks, *overrides, code=DONE):
        return self.run_program(ranks, "generate", "configs/tiny_bigmac.yaml", *self.SETTINGS,
                                *overrides, "--prompt", "abc de", "--max-tokens", "12",
                                "--temperature", "0", code=code)

    def test_every_method_generates_the_same_text_on_every_layout(self):
        for method in self.METHODS:
            with self.subTest(method):
                text = self.generate(0, f"decode.attention={method}")
                self.assertTrue(text.startswith("abc de"))
                self.assertEqual(self.generate(2, f"decode.attention={method}", "parallel.tp=2"),
                                 text)

    def test_a_budget_of_everything_generates_what_dense_decoding_does(self):
        dense = self.generate(0)
        for method in self.METHODS:
            with self.subTest(method):
                self.assertEqual(self.generate(0, f"decode.attention={method}",
                                               "decode.budget=1000"), dense)

    def test_eval_decodes_dense_and_with_the_method(self):
        output = self.run_program(2, "eval", "configs/tiny_bigmac.yaml", "parallel.ep=2",
                                  *self.SETTINGS, "decode.attention=hata", "decode.eval_tokens=4")
        losses = {line.split(":")[0]: float(line.split("held-out loss ")[1].split(",")[0])
                  for line in output.splitlines() if "held-out loss" in line}
        self.assertEqual(set(losses), {"dense", "hata"})
        self.assertAlmostEqual(losses["hata"], losses["dense"], delta=1.0)
        alone = self.run_program(0, "eval", "configs/tiny_bigmac.yaml", *self.SETTINGS,
                                 "decode.attention=hata", "decode.eval_tokens=4")
        self.assertEqual(alone, output)

    def test_eval_hash_measures_all_methods_alike_on_every_layout(self):
        arguments = ["eval-hash", "configs/tiny_bigmac.yaml", *self.SETTINGS,
                     "hash.evaluation.budgets=[4, 0.25, 64]", "hash.evaluation.sequences=8",
                     "decode.eval_tokens=4"]
        evaluations = []
        for ranks, layout in [(0, []), (4, ["parallel.tp=2", "parallel.ep=4"])]:
            self.run_program(ranks, *arguments, *layout)
            evaluations.append(json.loads((self.hash / "evaluation.json").read_text()))
        alone, split = evaluations
        self.assertEqual(alone["decoded_targets"], split["decoded_targets"])
        self.assertEqual(len(alone["results"]), 3 * (len(self.METHODS) + 1))  # and the key norm
        for one, other in zip(alone["results"], split["results"]):
            self.assertEqual(one["method"], other["method"])
            for key in ["recall", "attention_mass", "output_error", "loss"]:
                # Where a product is zero but for rounding, a layout may choose another key.
                self.assertAlmostEqual(one[key], other[key], delta=0.02)
            self.assertEqual([len(layer["heads"]) for layer in one["layers"]], [2])
        of = {(r["method"], r["budget"]): r for r in alone["results"]}
        self.assertEqual(of["exact_topk", 4]["recall"], 1.0)
        for method in self.METHODS:
            self.assertAlmostEqual(of[method, 64]["attention_mass"], 1.0, places=5)
            self.assertAlmostEqual(of[method, 64]["loss"], alone["dense"]["loss"], places=4)
            self.assertLessEqual(of[method, 4]["attention_mass"],
                                 of["exact_topk", 4]["attention_mass"] + 1e-9)

    def expect_refusal(self, message, *overrides):
        for name in ["generate", "eval"]:
            output = self.run_program(2, name, "configs/tiny_bigmac.yaml", *self.SETTINGS,
                                      "parallel.ep=2", "decode.attention=hata", *overrides,
                                      code=FAILED)
            self.assertRegex(output, message)
            self.assertEqual(output.count("switchyard: "), 1, output)

    def test_weights_that_do_not_fit_are_refused_by_name(self):
        self.expect_refusal(r"32 bits, but hash.bits is 64", "hash.bits=64")
        self.expect_refusal(r"no weights for layer 0, which hash.dense_layers = 0",
                            "hash.dense_layers=0")
        self.expect_refusal(r"learned on the checkpoint .*, but the model is",
                            "checkpoint.resume=runs/tiny_bigmac/checkpoints/step_00000010")

    def test_damaged_weights_are_refused_with_the_remedy(self):
        weights = self.hash / "hash_weights.h5"
        content = weights.read_bytes()
        weights.write_bytes(content[:len(content) // 2])
        self.expect_refusal(r"hash_weights\.h5")
        altered = bytearray(content)
        altered[-9] ^= 16
        weights.write_bytes(altered)
        self.expect_refusal(r"hash_weights\.h5")
        weights.unlink()
        self.expect_refusal(r"is not there: run `switchyard train-hash` with hash.bits=32")

    def test_inspect_tells_what_weights_are_of(self):
        output = self.run_program(0, "inspect", "runs/tiny_bigmac/hash/hash_weights.h5")
        self.assertIn("32 bits for 2 key/value heads of width 8", output)
        self.assertIn("layer 0: dense\nlayer 1: [2, 8, 32]\n", output)
        self.assertIn("hash.training.epochs: 1\n", output)

    def test_bench_decode_takes_its_own_options(self):
        output = self.run_program(0, "bench", "decode", "--lengths", "64,128", "--batch", "1",
                                  "--repetitions", "1", "--prefill-tokens", "16", "--json",
                                  "bench.json")
        self.assertIn("MHA 32/32, bf16, batch 1", output)
        figures = json.loads((self.folder / "bench.json").read_text())
        self.assertEqual({case["tokens"] for case in figures["decode"]}, {64, 128})
        self.assertIn("config is required", self.run_program(0, "bench", code=BAD_INPUT))

    def test_options_that_cannot_work_are_named(self):
        for override, message in [("decode.budget=0", "decode.budget: 0 keys are none"),
                                  ("decode.attention=hatta", "expected one of dense | hata"),
                                  ("decode.eval_tokens=64", "leaves none of the model.seq_len"),
                                  ("hash.evaluation.budgets=[0.1, 0]", "0 keys are none"),
                                  ("hash.evaluation.methods=[dense]", "expected some of hata")]:
            output = self.run_program(2, "eval", "configs/tiny_bigmac.yaml", override,
                                      code=BAD_INPUT)
            self.assertIn(message, output)


class BadInput(Program):
    def expect_error(self, output, *texts):
        for text in texts:
            self.assertIn(text, output)
        # From rank 0 only.
        self.assertEqual(output.count(f"switchyard: {texts[0]}"), 1, output)

    def test_all_mistakes_of_a_configuration_are_named_at_once(self):
        (self.folder / "bad.yaml").write_text(
            "base: configs/tiny_bigmac.yaml\n"
            "model:\n"
            "  hiden: 64\n"
            "  num_layers: two\n"
            "train: {max_steps: 5, max_steps: 6}\n")
        output = self.run_program(2, "train", "bad.yaml", "optimizer.lr=fast", code=BAD_INPUT)
        self.expect_error(output, "bad.yaml:3:3: unknown key model.hiden; did you mean model.hidden?",
                          "bad.yaml:4:15: model.num_layers: expected an integer, not 'two'",
                          "bad.yaml:5:23: train.max_steps is given twice in this file",
                          "command line: optimizer.lr: expected a number, not 'fast'")

    def test_impossible_combinations(self):
        for overrides, message in [
                (["parallel.ep=3"], "parallel.ep: 3 does not divide the 4 ranks"),
                (["parallel.ep=4", "model.num_experts=6"],
                 "parallel.ep: 4 does not divide model.num_experts = 6"),
                (["model.head_dim=7"], "rope rotates halves of a head: 7 must be even"),
                (["train.global_batch_size=6"], "6 is not divisible by micro_batch_size * dp"),
                (["model.router.top_k=17"], "17 is more than model.num_experts = 16")]:
            with self.subTest(message):
                output = self.train(4, *overrides, code=BAD_INPUT)
                self.assertIn(message, output)
                self.assertEqual(output.count(message), 1, output)

    def test_damaged_token_files(self):
        path = self.folder / "runs" / "tiny_data" / "train.h5"
        intact = path.read_bytes()
        flipped = bytearray(intact)
        flipped[len(intact) // 2] ^= 1
        for name, content in [("truncated", intact[: len(intact) // 2]), ("flipped", flipped),
                              ("empty", b"")]:
            with self.subTest(name):
                path.write_bytes(content)
                output = self.train(2, "parallel.ep=2", code=FAILED)
                self.expect_error(output, "rank", "train.h5")

    def test_a_file_that_is_missing_on_one_rank_only(self):
        # Rank 1 works in a folder without token files, as on a machine that lacks them.
        elsewhere = self.folder / "elsewhere"
        elsewhere.mkdir()
        arguments = [SWITCHYARD, "train", "configs/tiny_bigmac.yaml", "parallel.ep=2"]
        result = subprocess.run(
            [MPIEXEC, *MPI_FLAGS, "-n", "1", "--wdir", self.folder, *arguments, ":",
             "-n", "1", "--wdir", elsewhere, *arguments],
            cwd=self.folder, env=environment(), capture_output=True, text=True, timeout=60)
        self.assertEqual(result.returncode, FAILED)
        self.assertIn("switchyard: rank 1: ", result.stderr)
        self.assertIn("runs/tiny_data/train.h5", result.stderr)

    def test_commands_without_their_files(self):
        self.assertIn("no checkpoint", self.run_program(
            2, "eval", "configs/tiny_bigmac.yaml", "parallel.ep=2", code=FAILED))
        self.assertIn("is not there", self.run_program(0, "inspect", "nowhere", code=FAILED))
        self.assertIn("cannot be read", self.run_program(0, "train", "no.yaml", code=BAD_INPUT))
        self.run_program(0, "trian", "configs/tiny_bigmac.yaml", code=BAD_INPUT)

    def test_a_run_that_diverges_ends_with_an_error(self):
        output = self.train(2, "parallel.ep=2", "optimizer.lr=1e3", "optimizer.clip=0",
                            "train.max_steps=200", "checkpoint.interval=0", "optimizer.type=sgd",
                            "model.init_std=10", code=FAILED)
        self.assertIn("steps in a row had no finite gradient", output)

    def test_a_full_disk_does_not_end_the_training(self):
        folder = self.checkpoint(20).parent
        folder.mkdir(parents=True)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder],
                                 capture_output=True, check=False)
        if mounted.returncode != 0:
            self.skipTest("a file system can only be mounted as root")
        try:
            output = self.train(2, "parallel.ep=2")
        finally:
            subprocess.run(["umount", folder], check=True)
        self.assertIn("no checkpoint at step 20", output)
        self.assertIn("No space left on device", output)
        self.assertEqual(len(self.metrics()), 20)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
