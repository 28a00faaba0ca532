#!/usr/bin/env python3
"""Tests of corpora: mixtures of files, losses of each, and parts of records that are learned.

usage: data_test.py PATH_TO_SWITCHYARD PATH_TO_MPIEXEC [unittest options]
"""

import gzip
import json
import re
import sys
import unittest

from program import BAD_INPUT, FAILED, Program, kill

CONFIG = "configs/tiny_bigmac.yaml"
FILES = {"a": (range(14), 0.7), "b": (range(14, 20), 0.2), "c": (range(20, 23), 0.1)}
# Targets depend on the sequences of a step with this mask, so their number tells which they were.
MASK = "data.mask=document"


def mixture(**weights):
    files = [f"{{path: runs/mix/{name}.h5, weight: {weight}}}" for name, weight in weights.items()]
    return f"data.train=[{', '.join(files)}]"


MIX = mixture(**{name: weight for name, (_, weight) in FILES.items()})


class Data(Program):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for name, (documents, _) in FILES.items():
            texts = [f"text/document_{i:02}.txt" for i in documents]
            cls.prepare("tokenize", CONFIG, f"data.text={json.dumps(texts)}",
                        f"data.train=runs/mix/{name}.h5", 'data.validation=""')

    def test_a_killed_run_goes_on_with_the_same_samples_on_another_layout(self):
        self.train(0, MIX, MASK)
        expected = self.metrics()
        job = self.start_program(0, "train", CONFIG, MIX, MASK, "run.dir=runs/killed")
        self.wait_for(job, lambda: self.checkpoint(10, "killed").exists())
        kill(job)

        output = self.train(2, MIX, MASK, "run.dir=runs/killed", "parallel.ep=2")

        self.assertNotIn("the training data are not those", output)
        resumed = self.metrics("killed")
        self.assertEqual([(m["step"], m["tokens"]) for m in resumed],
                         [(m["step"], m["tokens"]) for m in expected])
        self.assertGreater(len({b["tokens"] - a["tokens"] for a, b in zip(expected, expected[1:])}),
                           1, "the number of targets must tell the samples apart")
        for before, after in zip(expected, resumed):
            self.assertAlmostEqual(before["loss"], after["loss"], delta=1e-5)

    def test_other_weights_on_resumption_are_listed(self):
        self.train(0, MIX, "train.max_steps=2")
        output = self.train(0, mixture(a=1, b=1), "train.max_steps=3")
        self.assertIn("the training data are not those of the checkpoint", output)
        self.assertIn('changed since then: data: train [{path: "runs/mix/a.h5", weight: 0.7}, '
                      '{path: "runs/mix/b.h5", weight: 0.2}, {path: "runs/mix/c.h5", weight: 0.1}] '
                      '-> ["runs/mix/a.h5", "runs/mix/b.h5"]', output)

    def test_another_loss_mask_on_resumption_is_told(self):
        def tokenize(cut):
            # The same tokens, of which others are learned.
            (self.folder / "asked.jsonl").write_text("".join(
                json.dumps({"prompt": line[:cut], "completion": line[cut:]}) + "\n"
                for line in (f"how many are {i} apples: {i}" for i in range(40))))
            self.run_program(0, "tokenize", CONFIG, "data.text=asked.jsonl",
                             "data.record=prompt_completion", "data.train=asked.h5",
                             'data.validation=""')

        asked = ("data.train=asked.h5", 'data.validation=""')
        tokenize(24)
        self.train(0, *asked, "train.max_steps=2")
        self.assertNotIn("the loss mask", self.train(0, *asked, "train.max_steps=3"))
        tokenize(8)
        for max_steps, told in ((4, True), (5, False)):
            output = self.train(0, *asked, f"train.max_steps={max_steps}")
            self.assertNotIn("the training data are not those", output)
            change = re.search("changed since then: the loss mask of data.train "
                               "([0-9a-f]{16}) -> ([0-9a-f]{16})\n", output)
            self.assertEqual(change is not None, told, output)
            if told:
                self.assertNotEqual(*change.groups())

    def test_a_held_out_loss_that_is_not_finite_is_no_success(self):
        # The first held-out batch lies in a prompt, of which nothing is a target.
        (self.folder / "asked.jsonl").write_text(
            json.dumps({"prompt": "why? " * 1000, "completion": "so"}) + "\n")
        self.run_program(0, "tokenize", CONFIG, "data.text=asked.jsonl",
                         "data.record=prompt_completion", "data.train=asked.h5",
                         'data.validation=""')
        output = self.train(0, MIX, "data.validation=asked.h5", "train.max_steps=2",
                            "train.eval_batches=1", code=FAILED)
        self.assertRegex(output, "switchyard: .*the held-out loss after step 2 is -?nan: either")
        self.assertTrue(self.checkpoint(2).exists())

    def test_each_held_out_file_has_a_loss_of_its_own(self):
        validation = "data.validation=[{path: runs/mix/b.h5, name: web}, runs/mix/c.h5]"
        output = self.train(0, validation)
        last = self.metrics()[-1]
        losses = last["val_losses"]
        self.assertEqual(list(losses), ["web", "c"])
        self.assertIn(f"val {last['val_loss']:.4f}  web {losses['web']:.4f}  c {losses['c']:.4f}",
                      output)
        alone = {name: self.held_out_loss(f"data.validation=runs/mix/{name}.h5")
                 for name in ("b", "c")}
        total, tokens = self.held_out_loss(validation)
        self.assertEqual(tokens, sum(count for _, count in alone.values()))
        self.assertAlmostEqual(total, sum(loss * n for loss, n in alone.values()) / tokens,
                               delta=2e-4)
        output = self.run_program(0, "eval", CONFIG, validation)
        self.assertIn(f"web: held-out loss {alone['b'][0]:.4f}", output)
        self.assertIn(f"c: held-out loss {alone['c'][0]:.4f}", output)

    def held_out_loss(self, *overrides):
        """The loss, and the number of its targets."""
        output = self.run_program(0, "eval", CONFIG, *overrides)
        loss, tokens = re.search(r"held-out loss ([\d.]+), .* over (\d+) tokens", output).groups()
        return float(loss), int(tokens)

    def test_projections_are_learned_from_a_mixture(self):
        self.train(0, MIX, "train.max_steps=2")
        output = self.run_program(
            0, "train-hash", CONFIG, MIX, "hash.dense_layers=1", "hash.bits=32",
            "hash.training.num_sequences=24", "hash.training.epochs=1",
            "data.validation=[runs/mix/b.h5, runs/mix/c.h5]")
        self.assertIn("hash_weights.h5", output)

    def test_a_few_held_out_sequences_are_of_every_file(self):
        self.train(0, "train.max_steps=2")

        def measure(sequences, *files):
            self.run_program(0, "eval-hash", CONFIG, "hash.dense_layers=1",
                             f"data.validation=[{', '.join(files)}]",
                             "hash.evaluation.methods=[exact_topk]", "hash.evaluation.budgets=[4]",
                             f"hash.evaluation.sequences={sequences}", "decode.eval_tokens=4",
                             "train.global_batch_size=2")
            path = self.folder / "runs" / "tiny_bigmac" / "hash" / "evaluation.json"
            measured = json.loads(path.read_text())
            return measured["dense"]["loss"], measured["decoded_targets"], measured["sequences"]

        (b, b_targets, _), (c, c_targets, _) = (measure(2, f"runs/mix/{name}.h5") for name in "bc")
        loss, targets, sequences = measure(4, "runs/mix/b.h5", "runs/mix/c.h5")
        self.assertEqual((targets, sequences), (b_targets + c_targets, 4))
        self.assertAlmostEqual(loss, (b * b_targets + c * c_targets) / targets, delta=1e-5)
        self.assertNotAlmostEqual(loss, b, delta=1e-4)

    def test_losses_are_divided_by_the_tokens_that_are_learned(self):
        self.train(0, "train.max_steps=5")
        losses = {}
        for name, learn in {"all": "11", "question": "10", "answer": "01"}.items():
            with gzip.open(self.folder / f"{name}.jsonl.gz", "wt") as file:
                for i in range(40):
                    parts = [f"how many are {i} apples", f": {i}"]
                    file.write(json.dumps({"parts": {"list": [
                        {"text": text, "learn": flag == "1"} for text, flag in zip(parts, learn)]}}))
                    file.write("\n")
            self.run_program(0, "tokenize", CONFIG, f"data.text={name}.jsonl.gz",
                             "data.record=segments", "data.text_field=parts.list",
                             f"data.train={name}.h5", 'data.validation=""')
            losses[name] = self.held_out_loss(f"data.validation={name}.h5")
        (all_loss, all_count), (question, questions), (answer, answers) = losses.values()
        self.assertEqual(all_count, questions + answers)
        self.assertEqual(answers, sum(len(f": {i}") + 1 for i in range(40)))
        self.assertAlmostEqual(all_loss, (question * questions + answer * answers) / all_count,
                               delta=2e-4)
        self.assertNotAlmostEqual(question, answer, delta=1e-2)

    def test_what_cannot_be_mixed_is_one_clear_error(self):
        (self.folder / "short.txt").write_text("short")
        self.run_program(0, "tokenize", CONFIG, "data.text=short.txt",
                         "data.train=runs/mix/short.h5", 'data.validation=""')
        self.run_program(0, "tokenize", CONFIG, "data.text=text", "data.train=runs/mix/pieces.h5",
                         "data.tokenizer.type=sentencepiece", "data.tokenizer.model=pieces.model",
                         "data.tokenizer.vocab_size=300", 'data.validation=""')
        same = "data.train=[runs/mix/a.h5, runs/mix/../mix/a.h5]"
        cases = [
            (same, "hold the same tokens; list one of them", FAILED),
            (mixture(a=1, short=1), "short.h5 has 6 tokens, too few", FAILED),
            (mixture(a=1, pieces=1), "pieces.h5 was made with the sentencepiece tokenizer", FAILED),
            (mixture(a=1, none=1), "none.h5 does not exist", FAILED),
            (mixture(a=1, b=0), "runs/mix/b.h5: weight must be from", BAD_INPUT),
            (mixture(a=1, b=-2), "runs/mix/b.h5: weight must be from", BAD_INPUT),
            (mixture(a=1, b="nan"), "runs/mix/b.h5: weight expected a number", BAD_INPUT),
            ("data.train=[{path: runs/mix/a.h5, name: x}]", "a name has no effect", BAD_INPUT),
            ("data.validation=[{path: runs/mix/a.h5, weight: 2}]", "a weight has no effect",
             BAD_INPUT),
            ("data.validation=[runs/mix/a.h5, {path: runs/mix/b.h5, name: a}]",
             "two files of data.validation are called a; give one of them a name", FAILED),
        ]
        for override, message, code in cases:
            for ranks in (0, 2):
                with self.subTest(override, ranks=ranks):
                    output = self.train(ranks, override, "run.dir=runs/none", code=code)
                    self.assertEqual(output.count(message), 1, output)
                    self.assertFalse((self.folder / "runs" / "none").exists())
        output = self.run_program(0, "tokenize", CONFIG, "data.text=text", MIX, code=FAILED)
        self.assertIn("data.train lists 3 files, and `tokenize` writes its text to one", output)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
