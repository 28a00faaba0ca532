#!/usr/bin/env python3
"""Tests which methods a run on an emulated CUDA device chooses for ops that have several.

usage: methods_test.py PATH_TO_SWITCHYARD PATH_TO_MPIEXEC [unittest options]
"""

import os
import re
import sys
import unittest

from program import Program

SETTINGS = ["run.device=cuda:0", "run.compute_dtype=bf16", "parallel.ep=2", "model.seq_len=16",
            "train.global_batch_size=2", "train.eval_interval=0", "checkpoint.interval=1",
            "optimizer.schedule.warmup_steps=0"]


class WithLibraries(Program):
    def setUp(self):
        super().setUp()
        for variable in "SWITCHYARD_EMULATED_CUDNN", "SWITCHYARD_EMULATED_CUTLASS":
            os.environ[variable] = "4096"
            self.addCleanup(os.environ.pop, variable, None)


class OnAnyDevice(WithLibraries):
    """Real or emulated."""

    def test_stay_what_they_were_if_every_rank_has_them(self):
        told = self.train(2, *SETTINGS, "train.max_steps=1")
        measured = self.methods(1)
        self.assertEqual(measured.keys(), {"expert_products", "attention"})
        others = {}
        for op, method in measured.items():
            line = re.search(f"the method of {op.replace('_', ' ')} is {method}(; .*)", told)
            self.assertIsNotNone(line, told)
            others[op] = re.findall(r"; ([a-z_]+) takes [0-9.]+ times as long", line[1])
        self.assertTrue(others["expert_products"], told)

        # A restart goes on with the checkpoint's methods, whichever is the fastest: so each of them
        # takes up what another one has computed.
        step = 1
        for method in others["expert_products"]:
            changed = {"expert_products": method,
                       "attention": (others["attention"] or [measured["attention"]])[0]}
            self.change_methods(step, **changed)
            step += 1
            self.train(2, *SETTINGS, f"train.max_steps={step}")
            self.assertEqual(self.methods(step), changed)
        self.train(0, *SETTINGS, "parallel.ep=1", f"train.max_steps={step}", "run.dir=runs/straight")
        for mixed, straight in zip(self.metrics(), self.metrics("straight")):
            self.assertAlmostEqual(mixed["loss"], straight["loss"], delta=2e-2)


class Methods(WithLibraries):
    def test_that_are_missing_are_replaced(self):
        self.train(2, *SETTINGS, "train.max_steps=1")
        self.change_methods(1, attention="cudnn", expert_products="cutlass")
        del os.environ["SWITCHYARD_EMULATED_CUDNN"]
        os.environ["SWITCHYARD_EMULATED_CUBLAS_VERSION"] = "130800"
        self.addCleanup(os.environ.pop, "SWITCHYARD_EMULATED_CUBLAS_VERSION")
        told = self.train(2, *SETTINGS, "train.max_steps=2")
        for op, method in ("attention", "cudnn"), ("expert products", "cutlass"):
            self.assertRegex(told, f"the method of {op} of .*step_00000001 is {method}, which not "
                                   "every rank here has")
            self.assertRegex(told, f"the method of {op} is .*; not every rank has {method}")
        self.assertEqual(self.methods(2)["attention"], "own")
        self.assertIn(self.methods(2)["expert_products"], ("cublas", "streams"))

    def test_are_not_chosen_where_there_is_one_only(self):
        self.train(0, *SETTINGS, "parallel.ep=1", "train.max_steps=1", "run.compute_dtype=f32")
        self.assertEqual(self.methods(1), {})

    def test_are_shown(self):
        self.train(0, *SETTINGS, "parallel.ep=1", "train.max_steps=1")
        told = self.run_program(0, "inspect", self.checkpoint(1))
        for op, method in self.methods(1).items():
            self.assertRegex(told, f"{op.replace('_', ' ')} +{method}\n")
        told = self.run_program(0, "bench", "configs/tiny_bigmac.yaml", *SETTINGS,
                                "parallel.ep=1", "model.vocab_size=257", "--steps", "1",
                                "--warmup", "0")
        self.assertIn("the method of attention is ", told)
        self.assertIn("the method of expert products is ", told)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
