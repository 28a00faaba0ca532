"""The arguments and the results of compare_pytorch.py, with a module that stands in for PyTorch
up to the first tensor."""

import json
import os
import unittest

from script_test_case import ScriptTestCase

TORCH = {"torch/__init__.py": "bfloat16 = None\nfrom . import nn\n"
                              "def set_num_threads(count): raise SystemExit('the work begins')\n",
         "torch/nn/__init__.py": "class Module: pass\n", "torch/nn/functional.py": ""}
THEIRS = {"program": "PyTorch eager", "dtype": "f32", "rate": 2.5}
OURS = {"program": "switchyard", "dtype": "bf16", "rate": 5.0, "ceiling": 3.0, "gflop": 0.5}


class ComparePytorchTest(ScriptTestCase):
    def setUp(self):
        super().setUp()
        for name, text in TORCH.items():
            file = self.root / "modules" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        self.out = self.root / "results.jsonl"

    def compare(self, *arguments):
        return self.run_script("compare_pytorch.py", *arguments,
                               env=os.environ | {"PYTHONPATH": str(self.root / "modules")})

    def test_rounds_that_measure_nothing(self):
        for count in ("0", "-1", "many"):
            self.expect_refused_argument(self.compare("--rounds", count), "--rounds")

    def test_results_are_added_to_results_alone(self):
        whole = json.dumps(THEIRS) + "\n" + json.dumps(OURS) + "\n"
        for content, said in [
                ("# Notes\n", "results.jsonl, line 1, is torn or is no JSON"),
                (whole[:-9], "results.jsonl, line 2, is torn or is no JSON"),
                ("[1]\n", "results.jsonl, line 1, holds no JSON object"),
                *((json.dumps(record) + "\n", "results.jsonl holds something else than results")
                  for record in ({"step": 1, "loss": 3.5}, {**THEIRS, "rate": None},
                                 {**THEIRS, "rate": 0}, {**THEIRS, "dtype": "f16"},
                                 {**THEIRS, "program": "JAX"}, {**OURS, "ceiling": "3"}))]:
            with self.subTest(content):
                self.out.write_text(content)
                self.expect_sentence(self.compare("--out", self.out), said, "--out")
                self.assertEqual(self.out.read_text(), content)
        for content in ("", whole):
            self.out.write_text(content)
            self.expect_sentence(self.compare("--out", self.out), "the work begins")
            self.assertEqual(self.out.read_text(), content)

    def test_a_place_that_takes_no_results_is_found_before_the_work(self):
        self.expect_sentence(self.compare("--out", self.root / "new" / "results.jsonl"),
                             "the work begins")
        self.expect_sentence(self.compare("--out", "/proc/none"), "/proc/none")
        self.out.write_text("")
        self.expect_sentence(self.compare("--out", self.out / "x"), "results.jsonl is no folder")


if __name__ == "__main__":
    unittest.main()
