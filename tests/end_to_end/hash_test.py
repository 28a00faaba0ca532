#!/usr/bin/env python3
"""Tests hash codes from the command line: learning them, decoding with them, measuring them.

usage: hash_test.py PATH_TO_SWITCHYARD PATH_TO_MPIEXEC [unittest options]
"""

import json
import shutil
import subprocess
import sys
import unittest

from program import BAD_INPUT, DONE, FAILED, Program, crc32c, kill


class HashTraining(Program):
    SETTINGS = ["hash.dense_layers=1", "hash.bits=32", "hash.training.objective=paper",
                "hash.training.sigma=1", "hash.training.balance_weight=0", "hash.training.num_sequences=24",
                "hash.training.held_out_sequences=8"]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.prepare("train", "configs/tiny_bigmac.yaml")

    def setUp(self):
        super().setUp()
        self.hash = self.folder / "runs" / "tiny_bigmac" / "hash"

    def train_hash(self, ranks, *overrides, code=DONE):
        return self.run_program(ranks, "train-hash", "configs/tiny_bigmac.yaml", *self.SETTINGS,
                                *overrides, code=code)

    def records(self):
        lines = (self.hash / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def losses(self, kv_head):
        return [r["loss"] for r in self.records() if "loss" in r and r["kv_head"] == kv_head]

    def held_out(self):
        return [r["held_out"] for r in self.records() if "held_out" in r]

    def test_a_killed_training_goes_on_bit_for_bit_and_leaves_the_old_weights(self):
        self.train_hash(0)
        straight = (self.hash / "hash_weights.h5").read_bytes()
        straight_metrics = (self.hash / "metrics.jsonl").read_text()
        shutil.rmtree(self.hash)
        self.train_hash(0, "hash.training.epochs=1")  # the old weights
        old = (self.hash / "hash_weights.h5").read_bytes()

        # The training is killed when one of the two heads is done.
        job = self.start_program(0, "train-hash", "configs/tiny_bigmac.yaml", *self.SETTINGS,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.wait_for(job, lambda: list(self.hash.glob("heads/*.h5")))
        kill(job)
        self.assertEqual((self.hash / "hash_weights.h5").read_bytes(), old)
        output = self.train_hash(0)

        self.assertRegex(output, r"train: .* 0 of \d+ passes run now")
        self.assertRegex(output, r"[12] heads are done already")
        self.assertEqual((self.hash / "hash_weights.h5").read_bytes(), straight)
        self.assertEqual((self.hash / "metrics.jsonl").read_text(), straight_metrics)
        self.assertEqual([path.name for path in sorted(self.hash.iterdir())],
                         [".lock", "hash_weights.h5", "metrics.jsonl"])

    def test_what_a_training_left_that_was_killed_behind_its_weights_is_removed(self):
        self.train_hash(0, "hash.training.keep_query_keys=true")
        self.assertTrue((self.hash / "query_keys").exists())
        (self.hash / "heads").mkdir()

        for keeps in (True, False):
            output = self.train_hash(0, f"hash.training.keep_query_keys={str(keeps).lower()}")

            self.assertIn("was learned on this checkpoint with these settings", output)
            self.assertFalse((self.hash / "heads").exists())
            self.assertEqual((self.hash / "query_keys").exists(), keeps)

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
                losses = self.losses(kv_head=1)
                self.assertEqual(len(losses), 16)
                self.assertLess(losses[-1], losses[0])
                last = [r["orthogonality"] for r in self.records() if r.get("epoch") == 15]
                # With 32 bits and heads of width 8 the minimum is sqrt(24).
                self.assertLess(max(last), 1.02 * 24 ** 0.5)
                self.assertEqual(len(self.held_out()), 2)
                shutil.rmtree(self.hash)

    def test_other_precisions_and_starts_learn_too(self):
        self.train_hash(2, "parallel.ep=2")
        in_f32 = self.held_out()
        self.assertEqual(len(in_f32), 2)
        shutil.rmtree(self.hash)
        for overrides in (["run.compute_dtype=bf16"], ["hash.training.init=gaussian"]):
            with self.subTest(overrides):
                self.train_hash(2, "parallel.ep=2", *overrides)
                losses = self.losses(kv_head=1)
                self.assertLess(losses[-1], losses[0])
                # The best keys do not depend on the learned weights, and hardly on the precision.
                for found, expected in zip(self.held_out(), in_f32, strict=True):
                    self.assertEqual(found["queries"], 8)
                    for mass, best in zip(found["attention_mass"], found["attention_mass_best"]):
                        self.assertLessEqual(mass, best)
                    for mass, other in zip(found["attention_mass_best"],
                                           expected["attention_mass_best"]):
                        self.assertAlmostEqual(mass, other, delta=0.01 * other)
                output = self.run_program(2, "eval", "configs/tiny_bigmac.yaml", *self.SETTINGS,
                                          "parallel.ep=2", "decode.attention=hata",
                                          "decode.eval_tokens=4", *overrides)
                self.assertIn("hata: held-out loss", output)
                shutil.rmtree(self.hash)

    def test_a_model_with_the_document_mask_learns_too(self):
        shutil.rmtree(self.hash.parent)
        self.train(0, "data.mask=document")
        self.train_hash(2, "parallel.ep=2")
        losses = self.losses(kv_head=1)
        self.assertLess(losses[-1], losses[0])
        output = self.run_program(2, "eval", "configs/tiny_bigmac.yaml", *self.SETTINGS,
                                  "parallel.ep=2", "decode.attention=hata", "decode.eval_tokens=4")
        self.assertIn("hata: held-out loss", output)

    def test_losses_of_epochs_are_of_the_same_pairs(self):
        # The steps are too small to change f32 weights, so the loss must be constant, whatever
        # pairs an epoch draws. Few positive labels make it negative.
        output = self.train_hash(0, "hash.training.lr=1e-12", "hash.training.pairs_per_epoch=256",
                                 "hash.training.positive_share=0.01",
                                 "hash.training.decorrelation_weight=0")
        losses = self.losses(kv_head=0)
        self.assertEqual(len(losses), 16)
        self.assertEqual(len(set(losses)), 1, losses)
        self.assertLess(losses[0], 0.0)
        self.assertNotIn("the loss rose", output)

    def test_finished_weights_are_left_alone(self):
        self.train_hash(0)
        before = (self.hash / "hash_weights.h5").stat().st_mtime_ns
        self.assertIn("was learned on this checkpoint with these settings", self.train_hash(2))
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

    def test_a_training_that_diverges_ends_with_an_error_and_replaces_nothing(self):
        def files():  # the lock names its latest owner
            return {path.name: path.read_bytes() for path in self.hash.iterdir()
                    if path.is_file() and path.name != ".lock"}
        self.train_hash(0)
        before = files()

        output = self.train_hash(2, "hash.training.lr=1e3", "hash.training.weight_decay=1e3",
                                 code=FAILED)

        self.assertRegex(output, r"switchyard: rank \d: layer 1 head \d: learning diverged: after epoch "
                                 r"\d+ of 15 .*; lower hash.training.lr")
        self.assertEqual(output.count("learning diverged"), 1, output)
        self.assertEqual(files(), before)
        output = self.run_program(0, "inspect", self.hash / "hash_weights.h5", "--verify")
        self.assertIn("every value is finite", output)

    def test_weights_replace_only_weights(self):
        (self.folder / "notes").write_text("my notes")
        for name in ("notes", "runs/tiny_data/train.h5", "runs/tiny_bigmac/hash/heads/w.h5"):
            path = self.folder / name
            before = path.read_bytes() if path.exists() else None
            output = self.train_hash(2, f"hash.weights={name}", code=FAILED)
            self.assertRegex(output, r"is not a file of hash weights, so hash.weights does not replace|"
                                     r"is removed when the weights are written")
            self.assertEqual(path.read_bytes() if path.exists() else None, before)
        self.hash.mkdir(exist_ok=True)
        (self.hash / "metrics.jsonl").write_text("mine")
        self.assertIn("is not the metrics of a hash training", self.train_hash(0, code=FAILED))
        self.assertEqual((self.hash / "metrics.jsonl").read_text(), "mine")

    def test_what_cannot_be_learned_is_said_once(self):
        for override, message in [("hash.bits=48", "is not a multiple of 32"),
                                  ("hash.training.seq_len=65", "is more than model.seq_len = 64"),
                                  ("hash.evaluation.seq_len=65", "is more than model.seq_len = 64")]:
            output = self.train_hash(2, override, code=BAD_INPUT)
            self.assertEqual(output.count(message), 1, output)
        output = self.train_hash(2, "hash.dense_layers=2", code=FAILED)
        self.assertEqual(output.count("leaves none of the 2 layers"), 1, output)


def put_nan(checkpoint, tensor):
    """Puts NaN into a tensor of a checkpoint, as an earlier program might have stored it."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    text = (checkpoint / "manifest.json").read_text()
    shard = manifest["shards"][0]
    piece = next(p for p in shard["pieces"] if p["kind"] == "weights" and p["name"] == tensor)
    content = bytearray((checkpoint / shard["file"]).read_bytes())
    begin, size = piece["address"], 4 * (piece["end"] - piece["begin"])
    content[begin:begin + 4] = b"\0\0\xc0\x7f"
    (checkpoint / shard["file"]).write_bytes(content)
    text = text.replace(piece["crc32c"], f"{crc32c(content[begin:begin + size]):08x}")
    text = text.replace(shard["crc32c"], f"{crc32c(content):08x}")
    text = text.replace(manifest["crc32c_of_this_file"], "00000000")
    own = f'"crc32c_of_this_file": "{crc32c(text.encode()):08x}"'
    text = text.replace('"crc32c_of_this_file": "00000000"', own)
    (checkpoint / "manifest.json").write_text(text)


class Diverged(Program):
    """Uses a model with a weight that is NaN."""
    CONFIG = ["configs/tiny_bigmac.yaml", "hash.dense_layers=1", "hash.bits=32"]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.prepare("train", "configs/tiny_bigmac.yaml")
        put_nan(cls.template / "runs/tiny_bigmac/checkpoints/step_00000020",
                "layers.1.norm1.weight")

    def test_no_command_succeeds_with_it(self):
        for name, message in [
                ("eval", r"the held-out loss of .*step_00000020 .* is -?nan: the model has diverged"),
                ("generate", r"the logits behind token 1 are not finite: the model has diverged"),
                ("train-hash", r"layer 1, sequence 0 of the text to learn from: the queries of head 0 "
                               r"hold .* NaN"),
                ("eval-hash", r"step_00000020 .*: the loss of dense decoding is -?nan")]:
            with self.subTest(name):
                more = ["hash.evaluation.methods=[exact_topk]", "hash.evaluation.sequences=4"]
                output = self.run_program(2, name, *self.CONFIG, "parallel.ep=2", *more, code=FAILED)
                self.assertRegex(output, message)
                self.assertEqual(output.count("switchyard: "), 1, output)
        run_folder = self.folder / "runs" / "tiny_bigmac"
        self.assertFalse((run_folder / "hash" / "evaluation.json").exists())
        self.assertFalse((run_folder / "hash" / "hash_weights.h5").exists())
        output = self.run_program(2, "eval", *self.CONFIG, "parallel.ep=2", "decode.eval_tokens=4",
                                  "decode.attention=exact_topk", code=FAILED)
        self.assertRegex(output, "the held-out loss of .* is -?nan")

    def test_inspect_counts_it(self):
        run_folder = self.folder / "runs" / "tiny_bigmac"
        output = self.run_program(0, "inspect", run_folder, "--verify", code=FAILED)
        self.assertRegex(output, r"weights/layers.1.norm1.weight .* 1 NaN\n")
        self.assertIn("every checksum matches, but it holds 1 NaN", output)
        self.assertIn("only manifests were read", self.run_program(0, "inspect", run_folder))
        output = self.run_program(0, "inspect", self.checkpoint(20) / "model.h5", "--verify",
                                  code=FAILED)
        self.assertIn("every checksum matches, but it holds 1 NaN", output)
        self.assertIn("every value is finite",
                      self.run_program(0, "inspect", self.checkpoint(10), "--verify"))


class Ranking(Program):
    """Learns codes by the ranking objective, and decodes with them."""
    CONFIG = ["configs/tiny_bigmac.yaml", "hash.dense_layers=1", "hash.bits=64", "decode.budget=6"]
    LEARNING = ["hash.training.num_sequences=24", "hash.training.held_out_sequences=8",
                "hash.training.queries=16"]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.prepare("train", *cls.CONFIG)
        cls.prepare("train-hash", *cls.CONFIG, *cls.LEARNING)

    def setUp(self):
        super().setUp()
        self.hash = self.folder / "runs" / "tiny_bigmac" / "hash"
        self.weights = self.hash / "hash_weights.h5"

    def records(self):
        return [json.loads(line) for line in (self.hash / "metrics.jsonl").read_text().splitlines()]

    def test_it_lowers_the_loss_and_names_every_form_that_it_is_compared_with(self):
        for kv_head in (0, 1):
            of = [r for r in self.records() if r["kv_head"] == kv_head]
            before, after = [r["loss"] for r in of if "loss" in r]
            self.assertLess(after, before)
            self.assertEqual([r["step"] for r in of if "step" in r], [0, 300])
            held_out = next(r["held_out"] for r in of if "held_out" in r)
            self.assertEqual(held_out["queries"], 8 * 16)
            for form in ("", "_random", "_centred", "_balanced", "_itq"):
                for value, best in zip(held_out["attention_mass" + form],
                                       held_out["attention_mass_best"]):
                    self.assertLess(value, best + 0.02)
                self.assertEqual(len(held_out["recall" + form]), 3)
            self.assertGreater(held_out["recall"][2], held_out["recall_random"][2])

    def test_ranks_and_a_kill_change_no_bit(self):
        straight, metrics = self.weights.read_bytes(), (self.hash / "metrics.jsonl").read_bytes()
        for ranks in (0, 4):
            shutil.rmtree(self.hash)
            job = self.start_program(ranks, "train-hash", *self.CONFIG, *self.LEARNING,
                                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self.wait_for(job, lambda: list(self.hash.glob("heads/*.h5")))
            kill(job)
            self.run_program(ranks, "train-hash", *self.CONFIG, *self.LEARNING)
            self.assertEqual(self.weights.read_bytes(), straight)
            self.assertEqual((self.hash / "metrics.jsonl").read_bytes(), metrics)

    def test_no_steps_give_the_closed_form(self):
        learned = self.weights.read_bytes()
        self.run_program(0, "train-hash", *self.CONFIG, *self.LEARNING,
                         "hash.training.ranking.steps=0")
        self.assertNotEqual(self.weights.read_bytes(), learned)
        before, after = [r["loss"] for r in self.records() if "loss" in r and r["kv_head"] == 0]
        self.assertEqual(before, after)
        held_out = next(r["held_out"] for r in self.records() if "held_out" in r)
        self.assertEqual(held_out["recall"], held_out["recall_itq"])

    def test_decoding_is_the_same_on_every_layout_and_near_to_exact_selection(self):
        figures = []
        for ranks, layout in [(0, []), (4, ["parallel.tp=2", "parallel.ep=4"])]:
            self.run_program(ranks, "eval-hash", *self.CONFIG, *layout, "decode.eval_tokens=8",
                             "hash.evaluation.methods=[hata, random_hash, exact_topk]",
                             "hash.evaluation.budgets=[6]", "hash.evaluation.sequences=8")
            results = json.loads((self.hash / "evaluation.json").read_text())["results"]
            # No second row with the keys' lengths: the scores have them.
            self.assertEqual([r["method"] for r in results], ["hata", "random_hash", "exact_topk"])
            figures.append({r["method"]: r for r in results})
        alone, split = figures
        self.assertGreater(alone["hata"]["recall"], alone["random_hash"]["recall"])
        for key in ("recall", "attention_mass", "loss"):
            self.assertAlmostEqual(alone["hata"][key], split["hata"][key], delta=0.01)

    def test_a_longer_context_than_the_learned_one_is_said_once(self):
        self.run_program(0, "train-hash", *self.CONFIG, *self.LEARNING, "hash.training.seq_len=32")
        said = ("hash_weights.h5 was learned from sequences of 32 tokens, and the context here has "
                "up to {}: beyond the learned length it chooses badly; run `switchyard train-hash` "
                "with hash.training.seq_len={}")
        evaluate = ["hash.evaluation.methods=[hata]", "hash.evaluation.budgets=[6]",
                    "decode.eval_tokens=8"]
        generate = ["decode.attention=hata", "--prompt", "f", "--max-tokens"]
        for context, arguments in [(64, ["eval-hash", *self.CONFIG, *evaluate]),
                                   (64, ["eval", *self.CONFIG, "decode.attention=hata",
                                         "decode.eval_tokens=1"]),
                                   (None, ["eval-hash", *self.CONFIG, *evaluate,
                                           "hash.evaluation.seq_len=32"]),
                                   (33, ["generate", *self.CONFIG, *generate, "32"]),
                                   (None, ["generate", *self.CONFIG, *generate, "31"])]:
            with self.subTest(arguments):
                output = self.run_program(2, *arguments[:2], "parallel.tp=2", *arguments[2:])
                self.assertEqual(output.count("was learned from"), 0 if context is None else 1)
                if context:
                    self.assertIn(said.format(context, context), output)
        # Signs are measured with and without the keys' lengths.
        self.run_program(0, "train-hash", *self.CONFIG, *self.LEARNING, "hash.training.seq_len=32",
                         "hash.training.objective=paper", "hash.training.epochs=1")
        output = self.run_program(0, "eval-hash", *self.CONFIG, *evaluate)
        self.assertIn("hata 64 norm", output)
        self.assertEqual(output.count("was learned from"), 1)

    def test_random_signs_whose_distances_do_not_fit_are_not_compared(self):
        wide = ["run.dir=runs/wide", "model.num_heads=32", "model.num_kv_heads=1",
                "model.head_dim=8", "hash.bits=2048"]
        self.run_program(0, "train", self.CONFIG[0], *wide, "train.max_steps=2")
        output = self.run_program(0, "train-hash", *self.CONFIG, *self.LEARNING, *wide,
                                  "hash.training.ranking.steps=0",
                                  "hash.training.held_out_sequences=2")
        self.assertRegex(output, r"recall 0\.\d+ \(itq 0\.\d+\)")
        output = self.run_program(0, "eval-hash", *self.CONFIG, *wide, code=FAILED)
        self.assertIn("random_hash: distances of 2048 bits, summed over the 32 query heads of a "
                      "group, do not fit 16 bits; choose at most 2016", output)

    def test_shorter_texts_than_the_models_are_evaluated(self):
        self.run_program(0, "eval-hash", *self.CONFIG, "hash.evaluation.methods=[exact_topk]",
                         "hash.evaluation.budgets=[0.25]", "hash.evaluation.sequences=8",
                         "hash.evaluation.seq_len=32", "decode.eval_tokens=8")
        measured = json.loads((self.hash / "evaluation.json").read_text())
        self.assertEqual(measured["context"], 32)
        self.assertEqual(measured["prefill"], 24)
        self.assertEqual(measured["decoded_targets"], 8 * 8)
        self.assertEqual(measured["results"][0]["budget_tokens"], 8)

    def test_the_length_of_keys_is_not_asked_for_twice(self):
        output = self.run_program(0, "generate", *self.CONFIG, "decode.attention=hata",
                                  "decode.key_norm=true", "--prompt", "f", code=FAILED)
        self.assertRegex(output, r"hash_weights.h5 was learned with hash.training.objective: ranking, "
                                 r"whose scores have the keys' lengths already; leave out "
                                 r"decode.key_norm")

    def test_inspect_tells_what_weights_are_of(self):
        output = self.run_program(0, "inspect", self.weights, "--verify")
        self.assertIn("64 bits for 2 key/value heads of width 8", output)
        self.assertIn("layer 1: [2, 8, 32] for keys (2 bits of each column) and for queries, "
                      "with thresholds\n", output)
        self.assertIn("hash.training.objective: ranking\n", output)

    def test_a_damaged_part_is_refused(self):
        content = bytearray(self.weights.read_bytes())
        content[-40] ^= 1
        self.weights.write_bytes(content)
        output = self.run_program(0, "generate", *self.CONFIG, "decode.attention=hata", "--prompt",
                                  "f", code=FAILED)
        self.assertIn("hash_weights.h5", output)


class Decoding(Program):
    """Decodes a trained model with every way to choose keys; hash weights have 32 bits."""
    METHODS = ["hata", "exact_topk", "random_hash", "quest", "loki", "streaming", "magicpig", "h2o",
               "snapkv"]
    # With small weights the model would learn in these few steps to ignore attention, and the
    # choice of keys would not matter.
    SETTINGS = ["model.init_std=0.2", "hash.dense_layers=1", "hash.bits=32", "decode.budget=6",
                "decode.quest_page=2", "decode.loki_channels=4", "decode.magicpig_bits=3",
                "decode.magicpig_tables=7", "decode.magicpig_sink=1", "decode.magicpig_local=2",
                "decode.snapkv_window=2"]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.prepare("train", "configs/tiny_bigmac.yaml", *cls.SETTINGS)
        cls.prepare("train-hash", "configs/tiny_bigmac.yaml", *cls.SETTINGS,
                    "hash.training.objective=paper", "hash.training.epochs=1",
                    "hash.training.pairs_per_epoch=256")

    def setUp(self):
        super().setUp()
        self.hash = self.folder / "runs" / "tiny_bigmac" / "hash"

    def generate(self, ranks, *overrides, code=DONE):
        return self.run_program(ranks, "generate", "configs/tiny_bigmac.yaml", *self.SETTINGS,
                                *overrides, "--prompt", "f", "--max-tokens", "40",
                                "--temperature", "0", code=code)

    def test_every_method_generates_the_same_text_on_every_layout(self):
        texts = set()
        for method in self.METHODS:
            with self.subTest(method):
                text = self.generate(0, f"decode.attention={method}")
                self.assertTrue(text.startswith("f"))
                self.assertEqual(self.generate(2, f"decode.attention={method}", "parallel.tp=2"),
                                 text)
                texts.add(text)
        self.assertGreater(len(texts), 1)  # the choice of keys changes the text

    def test_caches_off_the_device_generate_the_same_text(self):
        for method in ("dense", "hata", "random_hash"):
            text = self.generate(0, f"decode.attention={method}")
            for ranks, layout in ((0, []), (2, ["parallel.tp=2"])):
                for place in ("memory", "file"):
                    with self.subTest(method=method, ranks=ranks, place=place):
                        self.assertEqual(self.generate(ranks, f"decode.attention={method}", *layout,
                                                       f"decode.offload={place}"), text)
        self.assertEqual(list(self.folder.glob("runs/*/offload*")), [])

    def test_methods_that_read_every_key_cannot_be_off_the_device(self):
        output = self.generate(2, "decode.attention=quest", "parallel.tp=2", "decode.offload=memory",
                               code=BAD_INPUT)
        self.assertIn("decode.offload: quest reads the keys of every token on the device", output)

    def test_bench_generate_compares_the_ways_to_decode(self):
        text = self.folder / "text.txt"
        text.write_text("for i in range(10):\n    print(i)\n" * 4)
        arguments = ["bench", "generate", "configs/tiny_bigmac.yaml", *self.SETTINGS,
                     "decode.attention=hata", "decode.offload=file", "--text", text,
                     "--new-tokens", "9", "--samples", "1,3", "--json", self.folder / "bench.json"]
        output = self.run_program(0, *arguments)
        self.assertIn("hata, offloaded", output)
        report = json.loads((self.folder / "bench.json").read_text())
        self.assertEqual([(case["way"], case["batch"]) for case in report["generate"]],
                         [("dense", 1), ("dense, offloaded", 1), ("hata", 1), ("hata, offloaded", 1),
                          ("dense", 3), ("hata", 3)])
        self.assertEqual(["predicted" in case for case in report["generate"]],
                         [False, False, False, True, False, False])
        self.run_program(0, *arguments)  # It replaces its own report.
        output = self.run_program(0, *arguments, "--prompt-tokens", "100000", code=FAILED)
        self.assertIn("do not fit model.seq_len", output)

    def test_a_budget_of_everything_generates_what_dense_decoding_does(self):
        dense = self.generate(0)
        for method in self.METHODS:
            if method == "magicpig":
                continue  # it does not look at the budget
            with self.subTest(method):
                self.assertEqual(self.generate(0, f"decode.attention={method}",
                                               "decode.budget=1000"), dense)

    def test_eval_decodes_dense_and_with_the_method(self):
        arguments = ["configs/tiny_bigmac.yaml", *self.SETTINGS, "decode.attention=hata",
                     "decode.eval_tokens=4"]
        output = self.run_program(2, "eval", *arguments, "parallel.ep=2")
        losses = {line.split(":")[0]: float(line.split("held-out loss ")[1].split(",")[0])
                  for line in output.splitlines() if "held-out loss" in line}
        self.assertEqual(self.run_program(0, "eval", *arguments), output)

        # eval-hash decodes the same tokens.
        self.run_program(0, "eval-hash", *arguments, "hash.evaluation.methods=[hata]",
                         "hash.evaluation.budgets=[6]", "hash.evaluation.key_norm=false",
                         "hash.evaluation.sequences=0")
        measured = json.loads((self.hash / "evaluation.json").read_text())
        self.assertEqual(set(losses), {"dense", "hata"})
        self.assertAlmostEqual(losses["dense"], measured["dense"]["loss"], delta=1e-4)
        self.assertAlmostEqual(losses["hata"], measured["results"][0]["loss"], delta=1e-4)
        self.assertNotAlmostEqual(losses["hata"], losses["dense"], delta=1e-3)

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
        self.assertEqual(len(alone["results"]), 3 * (len(self.METHODS) + 1))  # + hata with key norm
        for one, other in zip(alone["results"], split["results"]):
            self.assertEqual(one["method"], other["method"])
            for key in ["recall", "attention_mass", "output_error", "loss"]:
                if one["method"] == "magicpig" and key == "recall":
                    continue  # one of its keys more or less may be one of the true ones
                # Where a product is zero except for rounding, a layout may choose another key: one
                # of 4 for each of the 32 tokens and 2 heads.
                self.assertAlmostEqual(one[key], other[key], delta=1.01 / (4 * 32 * 2))
            self.assertEqual([len(layer["heads"]) for layer in one["layers"]], [2])
        of = {(r["method"], r["budget"]): r for r in alone["results"]}
        self.assertEqual(of["exact_topk", 4]["recall"], 1.0)
        for method in self.METHODS:
            if method == "magicpig":
                for key in ["keys", "attention_mass", "output_error", "loss"]:
                    self.assertEqual(of[method, 64][key], of[method, 4][key])  # its own budget
                self.assertLess(of[method, 4]["keys"], 62.5)
                continue
            self.assertAlmostEqual(of[method, 64]["attention_mass"], 1.0, places=5)
            self.assertAlmostEqual(of[method, 64]["loss"], alone["dense"]["loss"], places=4)
            # Four tokens are decoded; snapkv keeps their keys beside the budget of the first.
            self.assertEqual(of[method, 4]["keys"], 5.5 if method == "snapkv" else 4)
            self.assertEqual(of[method, 64]["keys"], 62.5)
            if method != "snapkv":
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
        self.expect_refusal(r"does not exist: run `switchyard train-hash` with hash.bits=32")

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
        (self.folder / "notes.json").write_text("[]")
        output = self.run_program(0, "bench", "decode", "--json", "notes.json", code=FAILED)
        self.assertIn("notes.json is not a report of bench decode, so --json does not", output)
        for foreign in ("{", '{\n  "device": "phone"\n}\n',
                        '{\n  "format": "switchyard.bench_inference"\n}\n'):
            (self.folder / "notes.json").write_text(foreign)
            self.run_program(0, "bench", "decode", "--json", "notes.json", code=FAILED)
            self.assertEqual((self.folder / "notes.json").read_text(), foreign)
        # Known before the work, which would take minutes.
        output = self.run_program(0, "bench", "decode", "--json", "/proc/x.json", code=FAILED)
        self.assertIn("/proc/x.json.tmp: ", output)
        self.assertNotIn("MHA", output)
        self.run_program(0, "bench", "decode", "--lengths", "64", "--batch", "1", "--repetitions", "1",
                         "--prefill-tokens", "16", "--json", "bench.json")
        self.assertIn("config is required", self.run_program(0, "bench", code=BAD_INPUT))

    def test_options_that_cannot_work_are_named(self):
        for override, message in [("decode.budget=0", "decode.budget: 0 keys are none"),
                                  ("decode.attention=hatta", "expected one of dense | hata"),
                                  ("decode.eval_tokens=64", "leaves none of the model.seq_len"),
                                  ("decode.snapkv_kernel=4", "4 positions have none in their middle"),
                                  ("decode.magicpig_bits=17", "decode.magicpig_bits"),
                                  ("decode.magicpig_tables=5000", "5000 is more than 4096"),
                                  ("hash.evaluation.budgets=[0.1, 0]", "0 keys are none"),
                                  ("hash.evaluation.methods=[dense]", "expected some of hata")]:
            output = self.run_program(2, "eval", "configs/tiny_bigmac.yaml", override,
                                      code=BAD_INPUT)
            self.assertIn(message, output)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
