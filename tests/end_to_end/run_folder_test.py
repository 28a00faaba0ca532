#!/usr/bin/env python3
"""Tests the life of a run's folder: what is found out before the first step, where a run goes on,
what becomes of earlier runs, copies without links, and results that are lost.

usage: run_folder_test.py PATH_TO_SWITCHYARD PATH_TO_MPIEXEC [unittest options]
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import unittest

import h5py
import numpy

from program import DONE, FAILED, SWITCHYARD, Program, crc32c, environment, patience

CONFIG = "configs/tiny_bigmac.yaml"
RUN = pathlib.Path("runs/tiny_bigmac")


def set_first_value(checkpoint, kind, name, value):
    """Changes a value in a checkpoint of one rank, with all checksums that depend on it."""
    shard = checkpoint / "shard_00000.h5"
    with h5py.File(shard, "r+") as file:
        dataset = file[kind][name]
        dataset[0] = value
        piece_crc = crc32c(dataset[:].astype(numpy.float32).tobytes())
        dataset.attrs.modify("crc32c", numpy.int64(piece_crc))
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    entry = manifest["shards"][0]
    entry["crc32c"] = f"{crc32c(shard.read_bytes()):08x}"
    entry["bytes"] = shard.stat().st_size
    for piece in entry["pieces"]:
        if (piece["kind"], piece["name"]) == (kind, name):
            piece["crc32c"] = f"{piece_crc:08x}"
    manifest["crc32c_of_this_file"] = "00000000"
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text.replace('"crc32c_of_this_file": "00000000"',
                                 f'"crc32c_of_this_file": "{crc32c(text.encode()):08x}"', 1))


class RunFolder(Program):
    def names(self, run="tiny_bigmac"):
        return sorted(path.name for path in (self.folder / "runs" / run / "checkpoints").iterdir())

    def steps(self, run="tiny_bigmac"):
        return [metrics["step"] for metrics in self.metrics(run)]

    def origins(self, step, run):
        manifest = json.loads((self.checkpoint(step, run) / "manifest.json").read_text())
        return [origin["path"] for origin in manifest["state"].get("origins", [])]


class BeforeTheFirstStep(RunFolder):
    def test_checkpoints_that_cannot_be_written(self):
        checkpoints = self.folder / RUN / "checkpoints"
        checkpoints.parent.mkdir(parents=True)
        for name, make in [("no folder", lambda: checkpoints.symlink_to("/proc")),
                           ("a file", lambda: checkpoints.write_text("")),
                           ("dangling", lambda: checkpoints.symlink_to("nowhere/at/all"))]:
            for ranks in (0, 2):
                with self.subTest(f"{name}, {ranks} ranks"):
                    make()
                    output = self.train(ranks, f"parallel.ep={max(ranks, 1)}", code=FAILED)
                    self.assertEqual(output.count("checkpoints cannot be written: "), 1, output)
                    self.assertIn(str(RUN / "checkpoints"), output)
                    self.assertNotIn("training ", output)
                    checkpoints.unlink()

    def test_logs_that_cannot_be_written(self):
        run = self.folder / RUN
        for name in ("metrics.jsonl", "tensorboard"):
            with self.subTest(name):
                shutil.rmtree(run, ignore_errors=True)
                run.mkdir(parents=True)
                (run / name).symlink_to("/dev/full")
                output = self.train(2, "parallel.ep=2", code=FAILED)
                self.assertIn(str(RUN / name), output)
                self.assertNotIn("training ", output)
        self.train(0, "train.max_steps=2", "log.tensorboard=false")

    def test_a_disk_without_room_for_one_checkpoint(self):
        folder = self.checkpoint(20).parent
        folder.mkdir(parents=True)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder],
                                 capture_output=True, check=False)
        if mounted.returncode != 0:
            self.skipTest("a file system can only be mounted as root")
        try:
            output = self.train(2, "parallel.ep=2", code=FAILED)
        finally:
            subprocess.run(["umount", folder], check=True)
        self.assertRegex(output, r"checkpoints has [\d.]+ KiB free and a checkpoint needs [\d.]+ KiB")
        self.assertFalse((self.folder / RUN / "metrics.jsonl").exists())

    def test_a_run_that_is_done_writes_nothing(self):
        self.train(0)
        before = sorted((self.folder / RUN).rglob("*"))
        self.assertIn("already at step 20 of 20", self.train(0))
        self.assertEqual(sorted((self.folder / RUN).rglob("*")), before)


class LostResults(RunFolder):
    def test_a_run_whose_last_state_is_not_saved_fails_and_names_the_last_good_one(self):
        job = self.start_program(2, "train", CONFIG, "parallel.ep=2", "train.max_steps=100000",
                                 "checkpoint.interval=10", "train.eval_interval=0",
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.wait_for(job, self.checkpoint(10).exists)
        checkpoints = self.checkpoint(10).parent
        checkpoints.rename(self.folder / "elsewhere")
        checkpoints.write_text("in the way")
        job.send_signal(signal.SIGUSR1)
        output = job.communicate(timeout=patience(60))[0]

        self.assertEqual(job.returncode, FAILED, output)
        self.assertEqual(output.count("switchyard: "), 1, output)
        self.assertRegex(output, r"switchyard: the state after step \d+ is not saved: .*checkpoints.*"
                                 r"; the last good checkpoint is \S+step_\d{7}0")
        self.assertNotIn("start again", output)

    def test_state_that_is_not_finite_ends_the_run_and_replaces_nothing(self):
        # Infinite second moments stop their weights, and no loss shows it.
        self.train(0, "train.max_steps=10", "checkpoint.interval=5")
        set_first_value(self.checkpoint(10), "exp_avg_sq", "embedding.weight", numpy.inf)
        output = self.train(0, "checkpoint.interval=5", "checkpoint.keep=1", code=FAILED)

        self.assertIn("resumed from step_00000010", output)
        self.assertIn("after step 15 exp_avg_sq embedding.weight holds 1 infinity; nothing was saved",
                      output)
        self.assertIn(f"the last good checkpoint is {RUN}/checkpoints/step_00000010", output)
        self.assertEqual(self.names(), ["latest", "step_00000005", "step_00000010"])

    def test_output_that_cannot_be_written_fails(self):
        self.train(0)
        hash_stage = ["hash.dense_layers=1", "hash.bits=32", "hash.training.ranking.steps=2",
                      "hash.training.num_sequences=8", "hash.evaluation.sequences=2"]
        commands = [["tokenize", CONFIG, 'data.text=["text"]'], ["eval", RUN],
                    ["generate", RUN, "--max-tokens", "5"], ["inspect", RUN],
                    ["inspect", self.checkpoint(20), "--verify"], ["train-hash", RUN, *hash_stage],
                    ["eval-hash", RUN, *hash_stage], ["plan", CONFIG], ["train", CONFIG, "--dry-run"],
                    ["train", CONFIG, "--print-config"], ["config-reference"], ["--help"],
                    ["bench", "decode", "--lengths", "64", "--batch", "1", "--repetitions", "1",
                     "--memory", "0.01", "--prefill-tokens", "64", "--dtype", "f32"]]
        for command in commands:
            for redirect in ("> /dev/full", ">&-"):
                with self.subTest(f"{command[0]} {redirect}"):
                    shell = subprocess.run(["sh", "-c", f'"$@" {redirect}', "sh", SWITCHYARD,
                                            *map(str, command)], cwd=self.folder,
                                           env=environment(), capture_output=True, text=True,
                                           check=False, timeout=patience(120))
                    self.assertEqual(shell.returncode, FAILED, shell.stderr)
                    self.assertIn("standard output cannot be written", shell.stderr)

    def test_training_needs_no_console(self):
        for redirect in ("> /dev/full", ">&-"):
            shutil.rmtree(self.folder / RUN, ignore_errors=True)
            shell = subprocess.run(["sh", "-c", f'"$@" {redirect}', "sh", SWITCHYARD, "train", CONFIG],
                                   cwd=self.folder, env=environment(), capture_output=True,
                                   check=False, timeout=patience(120))
            self.assertEqual(shell.returncode, DONE, shell.stderr)
            self.assertEqual(self.steps(), list(range(1, 21)))
            self.assertTrue(self.checkpoint(20).exists())


class WhereARunGoesOn(RunFolder):
    def test_a_run_that_came_from_a_path_goes_on_from_its_own(self):
        self.train(2, "parallel.ep=2")
        start = ["run.dir=runs/tuned", f"checkpoint.resume={RUN}", "checkpoint.interval=5"]
        output = self.train(2, "parallel.ep=2", *start, "train.max_steps=30")
        self.assertIn(f"resumed from {RUN}/checkpoints/step_00000020 at step 20", output)
        self.assertEqual(self.origins(30, "tuned"), [str(RUN)])

        output = self.train(2, "parallel.ep=2", *start, "train.max_steps=35")
        self.assertIn(f"this run came from {RUN} and goes on from its own checkpoints", output)
        self.assertIn("resumed from step_00000030 at step 30", output)
        self.assertEqual(self.steps("tuned"), list(range(21, 36)))

        self.train(2, "parallel.ep=2", "run.dir=runs/tuned", "train.max_steps=40")
        self.assertEqual(self.origins(40, "tuned"), [str(RUN)])
        self.assertIn(f"came from            {RUN} (",
                      self.run_program(0, "inspect", self.checkpoint(40, "tuned")))

        # Its own newest one is damaged.
        (self.checkpoint(40, "tuned") / "shard_00001.h5").write_bytes(b"")
        shutil.move(self.folder / RUN, self.folder / "moved")
        output = self.train(2, "parallel.ep=2", "run.dir=runs/tuned", "train.max_steps=41",
                            "checkpoint.resume=moved")
        self.assertIn("passed over step_00000040", output)
        self.assertIn("resumed from step_00000035", output)

    def test_checkpoints_of_another_run_are_not_mixed(self):
        self.train(0, "train.max_steps=10")
        self.train(0, "run.dir=runs/other", "train.max_steps=10", "run.seed=8")
        before = self.names("other")
        for ranks in (0, 2):
            output = self.train(ranks, f"parallel.ep={max(ranks, 1)}", "run.dir=runs/other",
                                f"checkpoint.resume={RUN}", code=FAILED)
            self.assertEqual(output.count("switchyard: checkpoint.resume: "), 1, output)
            for text in ("runs/other/checkpoints", "step_00000010", f"do not come from {RUN}",
                         "checkpoint.resume=auto", "give run.dir a new folder"):
                self.assertIn(text, output)
        self.assertEqual(self.names("other"), before)
        self.assertIn("step_00000010", self.run_program(0, "eval", CONFIG, "run.dir=runs/other",
                                                        f"checkpoint.resume={RUN}"))

    def test_a_path_that_leaves_nothing_to_train_is_an_error(self):
        self.train(0)
        output = self.train(2, "parallel.ep=2", "run.dir=runs/tuned", f"checkpoint.resume={RUN}",
                            code=FAILED)
        self.assertIn("is at step 20 and train.max_steps is 20: there is nothing to train", output)

    def test_a_path_that_is_not_there_is_an_error_before_the_start(self):
        output = self.train(2, "parallel.ep=2", "checkpoint.resume=nowhere", code=FAILED)
        self.assertEqual(output.count("switchyard: nowhere does not exist"), 1, output)
        self.train(0, "checkpoint.resume=nowhere", "--dry-run")

    def test_a_run_goes_back_once_and_loses_nothing(self):
        self.train(0, "checkpoint.interval=5", "checkpoint.keep=0")
        straight = (self.folder / RUN / "metrics.jsonl").read_text()
        back = [f"checkpoint.resume={self.checkpoint(5)}", "checkpoint.interval=10",
                "checkpoint.keep=0", "optimizer.lr=1e-3"]
        output = self.train(0, *back, "train.max_steps=12")
        self.assertIn("back to step_00000005: the next checkpoint that is saved sets aside "
                      "step_00000020, step_00000015, step_00000010", output)
        self.assertIn("step_00000010 is not of this run's past: set aside as "
                      "step_00000010.abandoned", output)
        self.assertIn(f"metrics of another past are kept in {RUN}/metrics.jsonl.abandoned", output)
        self.assertEqual((self.folder / RUN / "metrics.jsonl.abandoned").read_text(), straight)
        self.assertEqual(self.names(), ["latest", "step_00000005", "step_00000010",
                                        "step_00000010.abandoned", "step_00000012",
                                        "step_00000015.abandoned", "step_00000020.abandoned"])

        output = self.train(0, *back, "train.max_steps=14")
        self.assertIn("resumed from step_00000012", output)
        self.assertEqual(self.steps(), list(range(1, 15)))
        self.assertFalse((self.folder / RUN / "metrics.jsonl.abandoned.abandoned").exists())


class StartingAfresh(RunFolder):
    def test_an_earlier_run_is_moved_aside_and_can_be_used(self):
        self.train(2, "parallel.ep=2")
        loss = re.search("held-out loss .*", self.run_program(0, "eval", RUN)).group()
        old = self.steps()
        output = self.train(2, "parallel.ep=2", "checkpoint.resume=none", "train.max_steps=12")
        self.assertEqual(output.count(f"the earlier run in {RUN} is now {RUN}.earlier_1\n"), 1,
                         output)
        self.assertEqual(self.steps(), list(range(1, 13)))
        self.assertEqual(self.steps("tiny_bigmac.earlier_1"), old)
        self.assertIn(loss, self.run_program(0, "eval", f"{RUN}.earlier_1"))
        output = self.train(0, f"run.dir={RUN}.earlier_1", "train.max_steps=21")
        self.assertIn("resumed from step_00000020", output)

        output = self.train(0, "checkpoint.resume=none", "train.max_steps=2")
        self.assertIn(f"is now {RUN}.earlier_2\n", output)
        self.assertEqual(self.steps("tiny_bigmac.earlier_1"), list(range(1, 22)))

    def test_what_cannot_be_moved_is_refused(self):
        self.train(0, "train.max_steps=2")
        (self.folder / RUN).rename(self.folder / "big")
        (self.folder / RUN).symlink_to(self.folder / "big")
        output = self.train(2, "parallel.ep=2", "checkpoint.resume=none", code=FAILED)
        self.assertEqual(output.count("cannot move the earlier run aside"), 1, output)
        self.assertIn("give run.dir a new folder", output)
        self.assertEqual(self.steps(), [1, 2])

    def test_metrics_of_a_run_without_checkpoints_are_kept(self):
        self.train(0)
        straight = (self.folder / RUN / "metrics.jsonl").read_text()
        shutil.rmtree(self.checkpoint(20).parent)
        output = self.train(0, "train.max_steps=5")
        self.assertIn(f"are kept in {RUN}/metrics.jsonl.abandoned", output)
        self.assertEqual((self.folder / RUN / "metrics.jsonl.abandoned").read_text(), straight)
        self.assertEqual(self.steps(), list(range(1, 6)))


class Copies(RunFolder):
    def test_a_copy_without_links_goes_on_and_prunes(self):
        self.train(2, "parallel.ep=2")
        straight = self.metrics()
        copy = self.folder / "runs" / "copy"
        shutil.copytree(self.folder / RUN, copy)  # follows links, as cp -rL does
        shutil.rmtree(self.folder / RUN)
        self.assertTrue((copy / "checkpoints" / "latest").is_dir())
        self.assertFalse((copy / "checkpoints" / "latest").is_symlink())
        # As an object store gives the files back: all have the same time.
        for path in copy.rglob("*"):
            os.utime(path, (0, 0))
        self.run_program(0, "eval", copy)

        output = self.train(2, "parallel.ep=2", "run.dir=runs/copy", "train.max_steps=40")

        self.assertIn("resumed from step_00000020", output)
        self.assertEqual(self.names("copy"), ["latest", "step_00000030", "step_00000040"])
        self.assertEqual(os.readlink(copy / "checkpoints" / "latest"), "step_00000040")
        self.assertEqual(self.metrics("copy")[:20], straight)

    def test_a_copy_of_the_newest_alone_is_a_run(self):
        self.train(0, "train.max_steps=10")
        latest = self.folder / "runs" / "copy" / "checkpoints" / "latest"
        shutil.copytree(self.checkpoint(10), latest)
        self.run_program(0, "eval", "runs/copy")
        output = self.train(0, "run.dir=runs/copy")
        self.assertIn("renamed to step_00000010", output)
        self.assertIn("resumed from step_00000010", output)
        self.assertEqual(self.names("copy"), ["latest", "step_00000010", "step_00000020"])


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
