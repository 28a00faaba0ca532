#!/usr/bin/env python3
"""Tests `eval-tasks`, English retrieval tasks answered by a model, from the command line.

usage: tasks_test.py PATH_TO_SWITCHYARD PATH_TO_MPIEXEC [unittest options]
"""

import json
import sys
import unittest

from hash_test import put_nan
from program import BAD_INPUT, DONE, FAILED, Program

# The answer of sample 0 of niah_single_1 at 700 tokens with seed SEED. Its digits differ, so that a
# model that knows pairs of bytes can say it.
SEED, NUMBER = 11, "1068743"


class Tasks(Program):
    """A tiny model of bytes goes on behind "is" with the answer of one sample, whatever the text."""
    CONFIG = ["configs/tiny_dense.yaml", "data.train=runs/numbers.h5", "data.validation=[]",
              "model.seq_len=1200"]
    TASKS = ["hash.dense_layers=1", f"tasks.seed={SEED}", "tasks.samples=2",
             "tasks.lengths=[700]", "tasks.names=[niah_single_1]", "tasks.least_dense=0.5",
             "hash.evaluation.methods=[exact_topk, random_hash, streaming]", "hash.bits=32",
             "hash.evaluation.budgets=[0.1, 1000]"]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        (cls.template / "numbers").mkdir()
        (cls.template / "numbers" / "a.txt").write_text(f"is {NUMBER}." * 4000)
        (cls.template / "essay.txt").write_text("Needles are thin. Hay is not! " * 20)
        cls.prepare("tokenize", *cls.CONFIG, 'data.text=["numbers"]')
        cls.prepare("train", *cls.CONFIG, "train.max_steps=60", "train.global_batch_size=2")

    def setUp(self):
        super().setUp()
        self.file = self.folder / "runs" / "tiny_dense" / "hash" / "tasks.json"

    def eval_tasks(self, ranks, *overrides, code=DONE):
        return self.run_program(ranks, "eval-tasks", *self.CONFIG, *self.TASKS, *overrides,
                                code=code)

    def results(self):
        return json.loads(self.file.read_text())

    def test_answers_are_counted_alike_on_every_layout(self):
        found = {"task": "niah_single_1", "length": 700, "samples": 2, "exact": 0.5, "answers": 0.5}
        contents = []
        for ranks, layout in [(0, []), (2, []), (3, []),
                              (2, ["parallel.tp=2"])]:
            with self.subTest(ranks=ranks, layout=layout):
                output = self.eval_tasks(ranks, *layout)

                content = self.results()
                contents.append(content)
                self.assertEqual(content["format"], "switchyard.task_evaluation")
                self.assertEqual(content["dense"], [found])
                self.assertRegex(output, r"tokens +niah_single_1\n700 +50\.00%\n")
                self.assertRegex(output, r"exact_topk +70 +50\.00% +50\.00%\n")
        self.assertEqual(contents.count(contents[0]), len(contents))
        self.assertEqual([(r["method"], r.get("bits"), r["budget"]) for r in contents[0]["results"]],
                         [("exact_topk", None, 0.1), ("exact_topk", None, 1000),
                          ("random_hash", 32, 0.1), ("random_hash", 32, 1000),
                          ("streaming", None, 0.1), ("streaming", None, 1000)])
        for result in contents[0]["results"]:
            tokens = 70 if result["budget"] == 0.1 else 700
            self.assertEqual(result["cases"], [{**found, "budget_tokens": tokens}])

    def test_methods_decode_what_dense_decoding_solves(self):
        self.eval_tasks(0, "tasks.names=[niah_single_1, niah_multivalue]",
                        "tasks.haystack=[essay.txt]", "tasks.lengths=[700, 900]")

        content = self.results()
        self.assertEqual([(c["task"], c["length"], c["answers"]) for c in content["dense"]],
                         [("niah_single_1", 700, 0.5), ("niah_multivalue", 700, 0),
                          ("niah_single_1", 900, 0), ("niah_multivalue", 900, 0)])
        for result in content["results"]:
            self.assertEqual([(c["task"], c["length"]) for c in result["cases"]],
                             [("niah_single_1", 700)])
        self.eval_tasks(0, "tasks.least_dense=0.6")
        self.assertEqual({len(r["cases"]) for r in self.results()["results"]}, {0})

    def test_what_the_running_text_lacks_is_said(self):
        essays = self.folder / "essays"
        essays.mkdir()
        (essays / "essay.txt").write_bytes((self.folder / "essay.txt").read_bytes() + b"Caf\xe9.\n")
        (essays / "thesis.tex").write_text("Not read.\n")
        arguments = ["tasks.names=[niah_single_2]", "tasks.haystack=[essays]", "tasks.lengths=[700]"]
        output = self.eval_tasks(2, *arguments, code=FAILED)
        self.assertRegex(output, r"essays/essay.txt: byte \d+ \(0xe9\) is not UTF-8.*"
                                 "data.encoding_errors=replace")
        output = self.eval_tasks(2, *arguments, "data.encoding_errors=replace")
        self.assertIn("tasks.haystack: changed: U+FFFD replaces 1 sequence of bytes", output)
        self.assertEqual(output.count("tasks.haystack: left out: 1 file"), 1, output)
        self.assertIn("essays/thesis.tex", output)

    def test_what_cannot_be_asked_is_said_once(self):
        for override, message in [
                ("tasks.lengths=[700, 1201]", "tasks.lengths: 1201 tokens are more than "
                                              "model.seq_len = 1200; choose fewer"),
                ("tasks.names=[niah_single_2]", "tasks.haystack is missing: niah_single_2 hides its"),
                ("tasks.names=[]", "tasks.names is empty"),
                ("tasks.lengths=[300]", "niah_single_1 does not fit 300 tokens")]:
            for ranks, layout in [(2, []), (2, ["parallel.tp=2"])]:
                with self.subTest(override, layout=layout):
                    output = self.eval_tasks(ranks, override, *layout, code=FAILED)
                    self.assertIn(message, output)
                    self.assertEqual(output.count("switchyard: "), 1, output)
        output = self.eval_tasks(2, "tasks.names=[niah_single_2]", "tasks.haystack=[none.txt]",
                                 code=FAILED)
        self.assertIn("tasks.haystack: none.txt does not exist", output)
        output = self.eval_tasks(2, "tasks.names=[niah_single_9]", code=BAD_INPUT)
        self.assertIn("expected some of niah_single_1 | niah_single_2", output)
        self.assertFalse(self.file.exists())

    def test_a_model_that_has_diverged_has_no_results(self):
        put_nan(self.checkpoint(60, "tiny_dense"), "norm.weight")
        for ranks, layout in [(2, []), (2, ["parallel.tp=2"])]:
            output = self.eval_tasks(ranks, *layout, code=FAILED)
            self.assertIn("the logits are not finite: the model has diverged", output)
            self.assertEqual(output.count("switchyard: "), 1, output)
        self.assertFalse(self.file.exists())

    def test_results_replace_only_results(self):
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text("mine")
        output = self.eval_tasks(2, code=FAILED)
        self.assertIn("is not an evaluation by eval-tasks", output)
        self.assertEqual(self.file.read_text(), "mine")


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
