#!/usr/bin/env python3
"""Tests which methods a run on an emulated CUDA device chooses for ops that have several.

usage: methods_test.py PATH_TO_SWITCHYARD PATH_TO_MPIEXEC [unittest options]
"""

import os
import sys
import unittest

from program import Program

SETTINGS = ["run.device=cuda:0", "run.compute_dtype=bf16", "parallel.ep=2", "model.seq_len=16",
            "train.global_batch_size=2", "train.eval_interval=0", "checkpoint.interval=2"]


class Methods(Program):
    def setUp(self):
        super().setUp()
        os.environ["SWITCHYARD_EMULATED_CUDNN"] = "4096"
        self.addCleanup(os.environ.pop, "SWITCHYARD_EMULATED_CUDNN", None)

    def test_stay_what_they_were_if_every_rank_has_them(self):
        told = self.train(2, *SETTINGS, "train.max_steps=2")
        measured = self.methods(2)
        self.assertEqual(measured.keys(), {"expert_products", "attention"})
        self.assertRegex(told, f"the method of attention is {measured['attention']}; "
                               "(own|cudnn) takes [0-9.]+ times as long")
        self.assertRegex(told, f"the method of expert products is {measured['expert_products']}; "
                               "[a-z_]+ takes [0-9.]+ times as long; [a-z_]+ takes")

        others = {"attention": {"own": "cudnn", "cudnn": "own"}[measured["attention"]],
                  "expert_products": {"streams": "cublas_lt"}.get(measured["expert_products"],
                                                                  "streams")}
        self.change_methods(2, **others)
        self.train(2, *SETTINGS, "train.max_steps=4")
        self.assertEqual(self.methods(4), others)

        # On a machine without the libraries.
        self.change_methods(4, attention="cudnn", expert_products="cublas_lt")
        del os.environ["SWITCHYARD_EMULATED_CUDNN"]
        os.environ["SWITCHYARD_EMULATED_CUBLAS_VERSION"] = "130800"
        self.addCleanup(os.environ.pop, "SWITCHYARD_EMULATED_CUBLAS_VERSION")
        told = self.train(2, *SETTINGS, "train.max_steps=6")
        for op, method in ("attention", "cudnn"), ("expert products", "cublas_lt"):
            self.assertRegex(told, f"the method of {op} of .*step_00000004 is {method}, which not "
                                   "every rank here has")
            self.assertRegex(told, f"the method of {op} is .*; not every rank has {method}")
        self.assertEqual(self.methods(6)["attention"], "own")
        self.assertIn(self.methods(6)["expert_products"], ("cublas", "streams"))

    def test_are_not_chosen_where_there_is_one_only(self):
        self.train(0, *SETTINGS, "parallel.ep=1", "train.max_steps=2", "run.compute_dtype=f32")
        self.assertEqual(self.methods(2), {})

    def test_are_shown(self):
        self.train(0, *SETTINGS, "parallel.ep=1", "train.max_steps=2")
        told = self.run_program(0, "inspect", self.checkpoint(2))
        for op, method in self.methods(2).items():
            self.assertRegex(told, f"{op.replace('_', ' ')} +{method}\n")
        told = self.run_program(0, "bench", "configs/tiny_bigmac.yaml", *SETTINGS,
                                "parallel.ep=1", "model.vocab_size=257", "--steps", "1",
                                "--warmup", "0")
        self.assertIn("the method of attention is ", told)
        self.assertIn("the method of expert products is ", told)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
