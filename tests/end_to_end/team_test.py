#!/usr/bin/env python3
"""Tests that a team of threads smaller than OMP_NUM_THREADS computes the same bits.

usage: team_test.py PATH_TO_SWITCHYARD PATH_TO_MPIEXEC [unittest options]
"""

import shutil
import sys
import unittest

from program import DONE, Program, command, environment, run

# Each grants fewer threads than are asked for, except for the first.
TEAMS = [{"OMP_DYNAMIC": "false"}, {"OMP_DYNAMIC": "true"}, {"OMP_THREAD_LIMIT": "1"},
         {"OMP_MAX_ACTIVE_LEVELS": "0"}]
CONFIG = "configs/tiny_bigmac.yaml"
HASH = ["hash.dense_layers=1", "hash.bits=32", "hash.training.num_sequences=24",
        "hash.training.held_out_sequences=8"]


class Teams(Program):
    def run_in(self, team, *arguments):
        code, output = run(command(0, *arguments), self.folder, timeout=240,
                           env=environment(OMP_NUM_THREADS="2", **team))
        self.assertEqual(code, DONE, output)
        return output

    def same_in_every_team(self, compute):
        """compute(team) must return the same for all; returns it."""
        expected = compute(TEAMS[0])
        for team in TEAMS[1:]:
            with self.subTest(team):
                self.assertTrue(compute(team) == expected, team)
        return expected

    def trained_in(self, team, *overrides):
        shutil.rmtree(self.folder / "runs" / "tiny_bigmac", ignore_errors=True)
        self.run_in(team, "train", CONFIG, *overrides)
        steps = [(m["step"], m["loss"], m["grad_norm"], m.get("val_loss")) for m in self.metrics()]
        self.assertEqual(len(steps), 20)
        return steps, self.shards(20)

    def test_training(self):
        self.same_in_every_team(self.trained_in)

    def test_training_in_bf16_with_muon(self):
        self.same_in_every_team(lambda team: self.trained_in(
            team, "run.compute_dtype=bf16", "optimizer.type=muon"))

    def test_evaluation_hash_training_and_decoding(self):
        self.trained_in(TEAMS[0])
        output = self.same_in_every_team(lambda team: self.run_in(team, "eval", CONFIG))
        self.assertIn("held-out loss", output)

        hash_folder = self.folder / "runs" / "tiny_bigmac" / "hash"

        def hashed_in(team):
            shutil.rmtree(hash_folder, ignore_errors=True)
            self.run_in(team, "train-hash", CONFIG, *HASH)
            return [(hash_folder / name).read_bytes()
                    for name in ("hash_weights.h5", "metrics.jsonl")]

        self.same_in_every_team(hashed_in)
        output = self.same_in_every_team(lambda team: self.run_in(
            team, "eval", CONFIG, *HASH, "decode.attention=hata", "decode.eval_tokens=4"))
        self.assertIn("hata: held-out loss", output)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
