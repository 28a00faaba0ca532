#!/usr/bin/env python3
"""Tests whose settings count: the checkpoint's for the model, the configuration's for the rest.

usage: settings_test.py PATH_TO_SWITCHYARD PATH_TO_MPIEXEC [unittest options]
"""

import json
import shutil
import sys
import unittest

from program import BAD_INPUT, FAILED, Program


class OtherModel(Program):
    """A model is trained with settings that its file does not mention."""
    MODEL = ["model.norm_eps=0.1", "model.router.routed_scaling_factor=100"]
    CONFIG = "configs/tiny_bigmac.yaml"
    HASH = ["hash.dense_layers=1", "hash.bits=32", "hash.training.epochs=1",
            "hash.training.pairs_per_epoch=256", "hash.training.num_sequences=8"]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.prepare("train", cls.CONFIG, *cls.MODEL, "train.eval_batches=100")

    def losses(self, output):
        return [line.split("held-out ")[1] for line in output.splitlines() if "held-out" in line]

    def test_eval_takes_the_models_settings_from_the_checkpoint(self):
        told = self.losses(self.run_program(0, "eval", self.CONFIG, *self.MODEL))
        self.assertAlmostEqual(float(told[0].split("loss ")[1].split(",")[0]),
                               self.metrics()[-1]["val_loss"], delta=1e-4)
        (self.folder / "short.yaml").write_text(
            "run: {dir: runs/tiny_bigmac}\ndata: {validation: runs/tiny_data/validation.h5}\n")
        for source in (self.CONFIG, "short.yaml", "runs/tiny_bigmac", "runs/tiny_bigmac/",
                       "runs/tiny_bigmac/checkpoints/step_00000020",
                       "runs/tiny_bigmac/checkpoints/latest"):
            with self.subTest(source):
                self.assertEqual(self.losses(self.run_program(0, "eval", source)), told)
        self.assertEqual(self.losses(self.run_program(2, "eval", "runs/tiny_bigmac",
                                                      "parallel.ep=2")), told)

    def test_a_moved_run_says_which_model_it_is(self):
        told = self.losses(self.run_program(0, "eval", "runs/tiny_bigmac"))
        shutil.move(self.folder / "runs" / "tiny_bigmac", self.folder / "moved")
        self.assertEqual(self.losses(self.run_program(0, "eval", "moved")), told)

    def test_generate_takes_them_too(self):
        options = ["--prompt", "ab", "--max-tokens", "20", "--temperature", "0"]
        told = self.run_program(0, "generate", self.CONFIG, *self.MODEL, *options)
        for source in (self.CONFIG, "runs/tiny_bigmac"):
            self.assertEqual(self.run_program(0, "generate", source, *options), told)

    def test_a_contradiction_names_the_key_and_both_values_once(self):
        for name in ("eval", "generate", "train-hash", "eval-hash", "train"):
            with self.subTest(name):
                output = self.run_program(2, name, self.CONFIG, "parallel.ep=2",
                                          "model.norm_eps=1e-5", "data.mask=document",
                                          code=BAD_INPUT)
                self.assertEqual(output.count("switchyard: "), 2, output)
                self.assertIn("command line: model.norm_eps: 1e-05 is not the value of the "
                              "checkpoint runs/tiny_bigmac/checkpoints/step_00000020, which has "
                              "0.1; take the key out", output)
                self.assertIn("data.mask: document is not the value", output)

    def test_the_hash_stage_takes_them_too(self):
        self.run_program(0, "train-hash", "runs/tiny_bigmac", *self.HASH)
        output = self.run_program(0, "train-hash", self.CONFIG, *self.MODEL, *self.HASH)
        self.assertIn("was learned on this checkpoint with these settings", output)
        arguments = [*self.HASH, "hash.evaluation.sequences=2", "hash.evaluation.methods=[hata]"]
        losses = []
        for source in ([self.CONFIG, *self.MODEL], ["runs/tiny_bigmac"]):
            self.run_program(0, "eval-hash", *source, *arguments)
            path = self.folder / "runs" / "tiny_bigmac" / "hash" / "evaluation.json"
            losses.append(json.loads(path.read_text())["dense"]["loss"])
        self.assertEqual(losses[0], losses[1])

    def test_print_config_says_where_the_model_comes_from(self):
        shown = self.run_program(0, "eval", self.CONFIG, "--print-config")
        self.assertRegex(shown, r"norm_eps: 0.1 +# runs/tiny_bigmac/checkpoints/step_00000020")
        self.assertRegex(shown, r"hidden: 32 +# configs/tiny_base.yaml")

    def test_a_run_goes_on_with_its_model_and_lists_what_changed(self):
        straight = self.shards(20)
        shutil.rmtree(self.checkpoint(20))
        output = self.train(0, "log.interval=5", "train.eval_batches=100")
        self.assertIn("changed since then: log: interval 10 -> 5\n", output)
        self.assertEqual(self.shards(20), straight)
        output = self.train(0, "optimizer.lr=1e-3", "optimizer.clip=2", "train.max_steps=21",
                            "train.eval_batches=100")
        self.assertIn("changed since then: optimizer: lr 0.005 -> 0.001, clip 1 -> 2\n", output)
        self.assertIn("changed since then: train: max_steps 20 -> 21\n", output)
        self.assertEqual(output.count("changed since then"), 3, output)  # and log.interval

    def test_state_of_another_update_rule_is_refused(self):
        for rule in ("sgd", "muon"):
            output = self.train(2, "parallel.ep=2", f"optimizer.type={rule}", "train.max_steps=21",
                                code=BAD_INPUT)
            self.assertEqual(output.count("switchyard: "), 1, output)
            self.assertIn(f"optimizer.type: {rule} is not the value of the checkpoint", output)
            self.assertIn("which has adamw", output)
            self.assertIn("give run.dir a new folder to start afresh", output)
        self.assertEqual(self.metrics()[-1]["step"], 20)

    def test_a_folder_without_a_checkpoint_is_named(self):
        (self.folder / "empty").mkdir()
        output = self.run_program(2, "eval", "empty", code=FAILED)
        self.assertEqual(output.count("empty/checkpoints holds no checkpoint"), 1, output)


class Ranges(Program):
    def test_options_have_ranges(self):
        for name, option, value, message in [
                ("generate", "--temperature", "nan", "expected a number, not 'nan'"),
                ("generate", "--temperature", "inf", "expected a number, not 'inf'"),
                ("generate", "--temperature", "-1", "must be from 0 to 1000000, not -1"),
                ("generate", "--top-p", "nan", "expected a number, not 'nan'"),
                ("generate", "--top-p", "1.5", "must be from 0 to 1, not 1.5"),
                ("generate", "--max-tokens", "0", "must be at least 1, not 0"),
                ("generate", "--max-tokens", "1e18", "at most 2147483647"),
                ("generate", "--samples", "1.5", "expected an integer, not '1.5'"),
                ("bench", "--steps", "nan", "expected an integer, not 'nan'"),
                ("bench", "--warmup", "-1", "must be at least 0, not -1"),
                ("export", "--shard-size", "0", "must be at least 1000, not 0"),
                ("export", "--shard-size", "5", "must be at least 1000, not 5"),
                ("export", "--shard-size", "-5GB", "must be at least 1000, not -5GB"),
                ("export", "--shard-size", "10EB", "is too large: at most 1000000000000000"),
                ("train", "--ranks", "1e9", "must be at most 1048576")]:
            with self.subTest(f"{name} {option} {value}"):
                output = self.run_program(0, name, "configs/tiny_bigmac.yaml", f"{option}={value}",
                                          code=BAD_INPUT)
                self.assertIn(f"{option}: ", output)
                self.assertIn(message, output)
        for option, value in [("--lengths", "64,0"), ("--batch", "-1"), ("--budget", "nan"),
                              ("--memory", "inf"), ("--bits", "nan")]:
            with self.subTest(f"bench decode {option} {value}"):
                self.assertIn(f"{option}: ", self.run_program(0, "bench", "decode",
                                                              f"{option}={value}", code=BAD_INPUT))

    def test_options_without_effect_are_refused(self):
        for command in ("tokenize", "train", "eval", "bench"):
            output = self.run_program(0, command, "configs/tiny_bigmac.yaml", "--ranks", "8",
                                      code=BAD_INPUT)
            self.assertIn("--ranks: only `plan`, --dry-run and --print-config assume other ranks than "
                          f"were started; start `{command}` by mpirun -n 8", output)
        self.assertFalse((self.folder / "runs" / "tiny_bigmac").exists())
        for shows in (["plan", "configs/tiny_bigmac.yaml"],
                      ["train", "configs/tiny_bigmac.yaml", "--dry-run"],
                      ["train", "configs/tiny_bigmac.yaml", "--print-config"]):
            self.run_program(0, *shows, "--ranks", "2", "parallel.ep=2")

        for arguments in (["--steps", "5"], ["configs/tiny_bigmac.yaml"]):
            output = self.run_program(0, "bench", *arguments, "decode", "--repetitions", "1",
                                      code=BAD_INPUT)
            self.assertIn(f"{'--steps' if len(arguments) > 1 else 'config'}: decode does not read the "
                          "arguments before its name; give its own behind `bench decode`", output)

    def test_schedules_longer_than_the_run_are_refused_before_it(self):
        for overrides, message in [
                (["optimizer.schedule.warmup_steps=21"],
                 "optimizer.schedule.warmup_steps: a warm-up of 21 steps is longer than the run"),
                (["optimizer.schedule.type=wsd", "optimizer.schedule.decay_steps=19"],
                 "a fall of 19 steps does not fit in the run, train.max_steps = 20")]:
            output = self.train(2, "parallel.ep=2", *overrides, code=BAD_INPUT)
            self.assertEqual(output.count(message), 1, output)
            self.assertFalse((self.folder / "runs" / "tiny_bigmac").exists())


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
