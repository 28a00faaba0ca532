#!/usr/bin/env python3
"""Tests that a folder has one owner, and that readers beside a writer get right numbers or an error.

usage: owner_test.py PATH_TO_SWITCHYARD PATH_TO_MPIEXEC [unittest options]
"""

import fcntl
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import unittest

from program import (DONE, FAILED, MPIEXEC, MPI_FLAGS, STOPPED, SWITCHYARD, Program, command, kill,
                     patience, ranks_of, run)

ENDLESS = "train.max_steps=1000000"
TINY = "configs/tiny_bigmac.yaml"
IN_USE = r"runs/tiny_bigmac is in use \(train, process {} on {}, since 20[0-9: -]+ UTC\): wait"


class Owner(Program):
    def begin_training(self, ranks, *overrides):
        """Returns the job when it has logged a step."""
        metrics = self.folder / "runs" / "tiny_bigmac" / "metrics.jsonl"
        before = len(metrics.read_text()) if metrics.exists() else 0
        job = self.start_program(ranks, "train", TINY, f"parallel.ep={max(ranks, 1)}", *overrides,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.wait_for(job, lambda: metrics.exists() and len(metrics.read_text()) > before)
        return job

    def stop(self, job):
        job.send_signal(signal.SIGUSR1)
        output = job.communicate(timeout=patience(60))[0]
        self.assertEqual(job.returncode, STOPPED, output)
        steps = [m["step"] for m in self.metrics()]
        self.assertEqual(steps, list(range(1, len(steps) + 1)))
        self.run_program(0, "inspect", self.checkpoint(steps[-1]), "--verify")


class OneOwner(Owner):
    def test_a_second_training_is_refused_and_the_first_goes_on(self):
        for ranks in (0, 2):
            job = self.begin_training(ranks, ENDLESS)
            first = ranks_of(job)[0]
            for others in (0, 2):
                with self.subTest(f"{others} beside {ranks}"):
                    output = self.train(others, f"parallel.ep={max(others, 1)}", code=FAILED)
                    self.assertRegex(output, IN_USE.format(first, socket.gethostname()))
                    self.assertEqual(output.count("switchyard: "), 1, output)
            self.stop(job)

    def test_one_of_many_that_start_at_once_wins(self):
        jobs = [self.start_program(0, "train", TINY, "train.max_steps=300", "checkpoint.interval=0",
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                for _ in range(4)]
        outputs = [job.communicate(timeout=patience(120))[0] for job in jobs]
        codes = sorted(job.returncode for job in jobs)
        # A job that waits for the lock may get it when the first has finished.
        self.assertEqual(codes[0], DONE, outputs)
        self.assertLessEqual(set(codes), {DONE, FAILED})
        trained = [output for output in outputs if "training" in output]
        self.assertEqual(len(trained), 1, outputs)
        self.assertEqual(len(self.metrics()), 300)

    def test_a_killed_owner_leaves_nothing_behind(self):
        for ranks in (0, 2):
            for _ in range(3):
                job = self.begin_training(ranks, ENDLESS)
                for pid in ranks_of(job):
                    os.kill(pid, signal.SIGKILL)
                output = self.train(ranks, "train.max_steps=2", f"parallel.ep={max(ranks, 1)}")
                self.assertNotIn("in use", output)
                kill(job)

    def test_a_rank_that_outlives_its_rank_0_keeps_others_out(self):
        job = self.begin_training(2, ENDLESS)
        first, second = ranks_of(job)
        os.kill(job.pid, signal.SIGSTOP)  # mpiexec would end the second
        os.kill(second, signal.SIGSTOP)
        os.kill(first, signal.SIGKILL)

        output = self.train(0, "parallel.ep=1", code=FAILED)
        self.assertIn("runs/tiny_bigmac is in use by other ranks of a run whose rank 0 has ended "
                      f"(train, process {first} on ", output)

        os.kill(second, signal.SIGKILL)
        self.train(0, "parallel.ep=1", "train.max_steps=2")

    def test_a_copied_folder_has_no_owner(self):
        job = self.begin_training(0, ENDLESS)
        shutil.copytree(self.folder / "runs" / "tiny_bigmac", self.folder / "runs" / "copy",
                        symlinks=True, ignore=shutil.ignore_patterns("*.tmp"))
        self.assertTrue((self.folder / "runs" / "copy" / ".lock").exists())
        self.train(0, "parallel.ep=1", "run.dir=runs/copy", "train.max_steps=2")
        self.stop(job)

    def test_a_run_whose_folder_was_moved_saves_nothing_into_the_new_one(self):
        job = self.begin_training(0, ENDLESS, "checkpoint.interval=0")
        (self.folder / "runs" / "tiny_bigmac").rename(self.folder / "runs" / "moved")
        self.train(0, "parallel.ep=1", "train.max_steps=3")
        steps = self.metrics()
        job.send_signal(signal.SIGUSR1)
        output = job.communicate(timeout=patience(60))[0]

        self.assertIn("runs/tiny_bigmac was moved or removed while this run had it", output)
        self.assertEqual(self.metrics(), steps)
        self.assertEqual([path.name for path in sorted(self.checkpoint(3).parent.iterdir())],
                         ["latest", "step_00000003"])

    def test_other_commands_have_owners_too(self):
        self.train(0, "parallel.ep=1", "train.max_steps=2")
        hash_training = ["train-hash", TINY, "parallel.ep=1", "hash.dense_layers=1"]
        job = self.start_program(0, *hash_training, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT)
        heads = self.folder / "runs" / "tiny_bigmac" / "hash" / "heads"
        self.wait_for(job, heads.exists)
        job.send_signal(signal.SIGSTOP)
        for other in (hash_training,
                      ["eval-hash", TINY, "parallel.ep=1", "hash.dense_layers=1",
                       'hash.evaluation.methods=["random_hash"]']):
            output = self.run_program(0, *other, code=FAILED)
            self.assertIn(f"runs/tiny_bigmac/hash is in use (train-hash, process {job.pid} on ",
                          output)
        self.train(0, "parallel.ep=1", "train.max_steps=3")  # owns another folder
        job.send_signal(signal.SIGCONT)
        self.assertEqual(job.wait(60), DONE)


class Alone(Owner):
    def test_single_processes_share_no_files_of_open_mpi(self):
        """They have one name for Open MPI, so one would remove a folder while another makes it."""
        job = self.start_program(0, "train", TINY, "train.max_steps=4", stderr=subprocess.STDOUT,
                                 stdout=subprocess.PIPE, env=os.environ | {"TMPDIR": "/proc/none"})
        output = job.communicate(timeout=patience(60))[0]
        self.assertEqual(job.returncode, DONE, output)


class Tokenizing(Owner):
    def test_two_of_the_same_file(self):
        tokens = self.folder / "runs" / "big" / "train.h5"
        (self.folder / "big.txt").write_text("the quick brown fox\n" * 200000)
        tokenize = ["tokenize", TINY, 'data.text=["big.txt"]', f"data.train={tokens}",
                    "data.validation=runs/big/validation.h5"]
        job = self.start_program(0, *tokenize, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.wait_for(job, (tokens.parent / "train.h5.spool.tmp").exists)
        job.send_signal(signal.SIGSTOP)
        output = self.run_program(0, *tokenize, code=FAILED)
        self.assertIn(f"another process writes {tokens}: wait until it has ended", output)
        job.send_signal(signal.SIGCONT)

        self.assertEqual(job.wait(60), DONE)
        self.run_program(0, "inspect", tokens, "--verify")
        self.assertIn("up to date", self.run_program(0, *tokenize))
        self.assertEqual([path.name for path in sorted(tokens.parent.iterdir())],
                         ["train.h5", "validation.h5"])


class Exporting(Owner):
    def lock(self, path):
        """Locks the first byte as the owner of a folder does, until the returned file is closed."""
        path.parent.mkdir()
        file = path.open("w")
        file.write("export, process 7 on elsewhere, since yesterday\n")
        file.flush()
        byte = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, byte)
        return file

    def test_two_to_the_same_folder(self):
        self.train(0, "parallel.ep=1", "train.max_steps=2")
        unfinished = self.folder / "model.switchyard_export.tmp"
        half = unfinished / "model.safetensors.tmp"
        with self.lock(unfinished / ".lock"):
            half.write_text("half of the first one's weights")
            for ranks in (0, 2):
                output = self.run_program(ranks, "export", "runs/tiny_bigmac",
                                          f"parallel.ep={max(ranks, 1)}", "--to", "model", code=FAILED)
                self.assertIn("model.switchyard_export.tmp is in use (export, process 7 on elsewhere, "
                              "since yesterday): wait until that has ended, or name another folder "
                              "with --to", output)
            self.assertEqual(half.read_text(), "half of the first one's weights")
        (unfinished / "of_a_killed_job").mkdir()

        self.run_program(0, "export", "runs/tiny_bigmac", "parallel.ep=1", "--to", "model")
        self.assertFalse(unfinished.exists())
        names = {path.name for path in (self.folder / "model").iterdir()}
        self.assertIn("model.safetensors", names)
        self.assertTrue(names.isdisjoint({".lock", half.name, "of_a_killed_job"}), names)


class Readers(Owner):
    def test_they_read_a_run_that_trains_and_prunes(self):
        everything = ["train.eval_interval=1", "train.eval_batches=1000"]
        job = self.begin_training(0, ENDLESS, "checkpoint.interval=1", "checkpoint.keep=1",
                                  *everything)
        read = []
        for _ in range(6):
            output = self.run_program(2, "eval", TINY, "parallel.ep=2")
            read.append(re.search(r"\(step (\d+), .*held-out loss ([0-9.]+)", output, re.S).groups())
            for reader in (["inspect", "runs/tiny_bigmac", "--verify"],
                           ["generate", "runs/tiny_bigmac", "parallel.ep=1", "--prompt", "ab",
                            "--max-tokens", "3"]):
                self.run_program(0, *reader)
        self.stop(job)

        losses = {m["step"]: m["val_loss"] for m in self.metrics()}
        for step, loss in read:
            self.assertAlmostEqual(losses[int(step)], float(loss), delta=1e-3)

    def test_one_that_is_named_and_removed_is_an_error(self):
        job = self.begin_training(0, ENDLESS, "checkpoint.interval=1", "checkpoint.keep=1")
        latest = self.checkpoint(0).parent / "latest"
        self.wait_for(job, latest.exists)
        removed = 0
        for _ in range(40):
            code, output = self.run_any("inspect", latest.parent / os.readlink(latest), "--verify")
            if code != DONE:
                removed += 1
                self.assertRegex(output, "removed or replaced while it was read|does not exist|"
                                         "is neither a checkpoint nor a run|cannot open")
        self.assertGreater(removed, 0)
        self.stop(job)

    def run_any(self, *arguments):
        job = self.start_program(0, *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return job.wait(60), job.communicate()[0]

    def test_ranks_that_open_different_token_files_train_nothing(self):
        # Rank 1 works in a folder where the tokens were made anew from other text.
        elsewhere = self.folder / "elsewhere"
        shutil.copytree(self.template, elsewhere)
        (elsewhere / "text" / "more.txt").write_text("another document\n" * 50)
        code, output = run(command(0, "tokenize", TINY, 'data.text=["text"]'), elsewhere, timeout=60)
        self.assertEqual(code, DONE, output)
        train = [SWITCHYARD, "train", TINY, "parallel.ep=2"]
        code, output = run([MPIEXEC, *MPI_FLAGS, "-n", 1, "--wdir", self.folder, *train, ":",
                            "-n", 1, "--wdir", elsewhere, *train], self.folder, timeout=60)

        self.assertEqual(code, FAILED, output)
        self.assertIn("train.h5 of rank 1 is another one than that of rank 0", output)
        self.assertEqual(output.count("switchyard: "), 1, output)

    def test_they_need_no_right_to_write(self):
        self.train(0, "parallel.ep=1", "train.max_steps=2")
        run = self.folder / "runs" / "tiny_bigmac"
        mounted = subprocess.run(["mount", "--bind", run, run], capture_output=True, check=False)
        if mounted.returncode != 0:
            self.skipTest("a file system can only be mounted as root")
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", run], check=True)
            self.run_program(0, "eval", TINY, "parallel.ep=1")
            self.run_program(0, "generate", run, "parallel.ep=1", "--prompt", "ab")
            self.run_program(0, "inspect", run, "--verify")
            output = self.train(0, "parallel.ep=1", code=FAILED)
            self.assertIn("runs/tiny_bigmac/.lock: Read-only file system", output)
        finally:
            time.sleep(0.1)
            subprocess.run(["umount", run], check=True)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
