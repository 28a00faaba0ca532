#!/usr/bin/env python3
"""Tests signals that end a run: at any moment, of every kind, to one process and under mpiexec.

usage: signal_test.py PATH_TO_SWITCHYARD PATH_TO_MPIEXEC [unittest options]
"""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import unittest

from program import DONE, STOPPED, Program, patience, ranks_of

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
           signal.SIGXCPU]
ENDLESS = "train.max_steps=1000000"
# One step takes many seconds.
LONG_STEP = ["train.global_batch_size=65536", "train.micro_batch_size=8", "checkpoint.interval=0"]


def by_default():
    """A test that a shell started in the background has inherited SIGINT as ignored."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def ignore_hangup():
    by_default()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def has_handlers(pid):
    """Whether main has begun: its first call installs the handlers."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return all(caught >> number - 1 & 1 for number in SIGNALS)


class Signals(Program):
    def begin(self, ranks, *arguments, **options):
        return self.start_program(ranks, *arguments, **{
            "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "preexec_fn": by_default,
            **options})

    def begin_training(self, ranks, *overrides, **options):
        layout = f"parallel.ep={max(ranks, 1)}"
        return self.begin(ranks, "train", "configs/tiny_bigmac.yaml", layout, *overrides,
                          **options)

    def last_checkpoint(self, run="tiny_bigmac"):
        steps = [int(path.name[5:]) for path in
                 (self.folder / "runs" / run / "checkpoints").glob("step_*")
                 if path.name[5:].isdigit()]
        return max(steps, default=0)

    def logged_steps(self, run="tiny_bigmac"):
        if not (self.folder / "runs" / run / "metrics.jsonl").exists():
            return []
        return [m["step"] for m in self.metrics(run)]

    def leftovers(self):
        return list((self.folder / "runs").rglob("*.tmp"))

    def expect_nothing_lost(self):
        """Every step that was taken is in the newest checkpoint."""
        steps = self.logged_steps()
        self.assertEqual(steps, list(range(1, len(steps) + 1)))
        self.assertEqual(self.last_checkpoint(), len(steps))

    def expect_the_bits_of_an_undisturbed_run(self, ranks):
        steps = max(self.last_checkpoint(), 1) + 1
        disturbed = self.begin_training(ranks, f"train.max_steps={steps}")
        self.assertEqual(disturbed.wait(60), DONE)
        shards = self.shards(steps)
        self.assertEqual(self.leftovers(), [])
        shutil.rmtree(self.folder / "runs" / "tiny_bigmac")
        straight = self.begin_training(ranks, f"train.max_steps={steps}")
        self.assertEqual(straight.wait(60), DONE)
        self.assertEqual(self.shards(steps), shards)


class Training(Signals):
    def test_a_signal_at_any_moment_of_the_start_loses_nothing(self):
        rng = random.Random(5)
        for attempt in range(24):
            number = SIGNALS[attempt % len(SIGNALS)]
            in_main = attempt >= 6  # before main, a signal has its default action
            delay = rng.uniform(0.0, 0.5 if in_main else 0.02)
            with self.subTest(f"{number.name} {delay:.3f} s after {'main' if in_main else 'exec'}"):
                job = self.begin_training(0, ENDLESS)
                if in_main:
                    self.wait_for(job, lambda: has_handlers(job.pid), interval=0.0002)
                time.sleep(delay)
                job.send_signal(number)
                output = job.communicate(timeout=patience(60))[0]

                self.assertIn(job.returncode, (STOPPED,) if in_main else (STOPPED, -number), output)
                self.assertEqual(job.returncode == STOPPED, "stopped by a signal" in output)
                self.expect_nothing_lost()
        self.expect_the_bits_of_an_undisturbed_run(0)

    def test_a_signal_through_mpiexec_at_any_moment_of_the_start_loses_nothing(self):
        rng = random.Random(6)
        for attempt in range(8):
            number = (signal.SIGUSR1, signal.SIGUSR2)[attempt % 2]
            delay = rng.uniform(0.0, 1.0)
            with self.subTest(f"{number.name} after {delay:.3f} s"):
                job = self.begin_training(4, ENDLESS)
                time.sleep(delay)
                # mpiexec forgets a signal that comes before it has started the ranks, and is ended
                # by one that comes earlier still.
                output = None
                while output is None:
                    job.send_signal(number)
                    try:
                        output = job.communicate(timeout=patience(20))[0]
                    except subprocess.TimeoutExpired:
                        pass

                self.assertIn(job.returncode, (STOPPED, -number, 128 + number), output)
                self.expect_nothing_lost()
        self.expect_the_bits_of_an_undisturbed_run(4)

    def test_an_early_signal_to_one_rank_stops_all(self):
        rng = random.Random(9)
        for attempt in range(8):
            number = SIGNALS[attempt % len(SIGNALS)]
            delay = rng.uniform(0.0, 0.5)
            with self.subTest(f"{number.name} {delay:.3f} s after main"):
                job = self.begin_training(4, ENDLESS)
                self.wait_for(job, lambda: any(map(has_handlers, ranks_of(job))), interval=0.0002)
                time.sleep(delay)
                os.kill(rng.choice(list(filter(has_handlers, ranks_of(job)))), number)
                output = job.communicate(timeout=patience(60))[0]

                self.assertEqual(job.returncode, STOPPED, output)
                self.expect_nothing_lost()

    def test_a_signal_to_one_rank_stops_all(self):
        for number in SIGNALS:
            with self.subTest(number.name):
                job = self.begin_training(4, ENDLESS)
                before = len(self.logged_steps())
                self.wait_for(job, lambda: len(self.logged_steps()) > before)
                os.kill(random.choice(ranks_of(job)), number)
                output = job.communicate(timeout=patience(60))[0]

                self.assertEqual(job.returncode, STOPPED, output)
                self.assertIn("stopped by a signal after step", output)
                self.expect_nothing_lost()

    def test_mpiexec_gives_ranks_time_to_save_if_it_is_told_to(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            with self.subTest(number.name):
                job = self.begin_training(2, ENDLESS,
                                          env={**os.environ, **self.patience(seconds=4)})
                before = len(self.logged_steps())
                self.wait_for(job, lambda: len(self.logged_steps()) > before)
                job.send_signal(number)
                job.communicate(timeout=patience(60))

                self.assertNotEqual(job.returncode, DONE)
                self.expect_nothing_lost()

    @staticmethod
    def patience(seconds):
        return {"OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1",
                "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                "OMPI_MCA_odls_base_sigkill_timeout": str(seconds)}

    def test_a_second_signal_ends_at_once_but_not_within_a_second(self):
        for number in SIGNALS[:3]:
            with self.subTest(number.name):
                job = self.begin_training(0, ENDLESS, *LONG_STEP)
                while not job.stdout.readline().startswith("training"):
                    pass
                time.sleep(0.5)  # for the last look before the step
                job.send_signal(signal.SIGUSR1)
                time.sleep(0.4)
                job.send_signal(number)
                time.sleep(0.4)
                self.assertIsNone(job.poll())
                job.send_signal(signal.SIGXCPU)  # the kernel repeats it every second
                time.sleep(0.5)
                job.send_signal(signal.SIGXCPU)
                time.sleep(0.2)
                self.assertIsNone(job.poll())
                job.send_signal(number)
                output = job.communicate(timeout=patience(10))[0]

                self.assertEqual(job.returncode, -number, output)

    def test_thousands_of_signals_within_a_step_damage_nothing(self):
        job = self.begin_training(0, ENDLESS, *LONG_STEP)
        while not job.stdout.readline().startswith("training"):
            pass
        end = time.time() + 12
        while job.poll() is None and time.time() < end:
            job.send_signal(signal.SIGXCPU)
            time.sleep(0.001)
        # Products whose workspace a signal overwrote ended by SIGABRT within seconds.
        self.assertIn(job.poll(), (None, STOPPED))

    def test_nohup_keeps_a_run_alive(self):
        job = self.begin_training(0, preexec_fn=ignore_hangup)
        for _ in range(20):
            job.send_signal(signal.SIGHUP)
            time.sleep(0.02)
        output = job.communicate(timeout=patience(60))[0]

        self.assertEqual(job.returncode, DONE, output)
        self.assertEqual(self.last_checkpoint(), 20)

    def test_closed_outputs_do_not_end_a_training(self):
        job = self.begin_training(0, "log.interval=1", "train.max_steps=200",
                                  "checkpoint.interval=0")
        job.stdout.readline()
        job.stdout.close()  # of stderr, too

        self.assertEqual(job.wait(60), DONE)
        self.assertEqual(self.last_checkpoint(), 200)
        self.assertEqual(len(self.logged_steps()), 200)


class HashTraining(Signals):
    COMMAND = ["train-hash", "configs/tiny_bigmac.yaml", "hash.dense_layers=1", "hash.bits=32",
               "hash.training.num_sequences=24", "hash.training.held_out_sequences=8",
               "hash.training.keep_query_keys=true"]

    def test_a_signal_at_any_moment_loses_no_finished_head(self):
        self.train(0)
        folder = self.folder / "runs" / "tiny_bigmac" / "hash"
        self.run_program(0, *self.COMMAND)
        straight = (folder / "hash_weights.h5").read_bytes()
        shutil.rmtree(folder)
        (folder / "query_keys").mkdir(parents=True)
        (folder / "query_keys" / "train_000099.h5.tmp").write_text("of an earlier kill")
        rng = random.Random(7)
        code, done = None, 0
        while code != DONE:
            heads = set(path.name for path in folder.glob("heads/*.h5"))
            job = self.begin(0, *self.COMMAND)
            time.sleep(rng.uniform(0.0, 2.0))
            number = rng.choice(SIGNALS)
            job.send_signal(number)
            output = job.communicate(timeout=patience(60))[0]
            code = job.returncode
            self.assertIn(code, (DONE, STOPPED, -number), output)
            if code == STOPPED:
                self.assertIn("stopped by a signal; start again", output)
                self.assertLessEqual(heads, set(path.name for path in folder.glob("heads/*.h5")))
            done += 1
            self.assertLess(done, 40)

        self.assertEqual((folder / "hash_weights.h5").read_bytes(), straight)
        self.assertEqual(self.leftovers(), [])


class OtherCommands(Signals):
    def test_a_signal_ends_them_at_once_by_its_default_action(self):
        bench = ["bench", "configs/tiny_bigmac.yaml", "model.vocab_size=257", "--steps", "1000000"]
        plan = ["train", "configs/tiny_bigmac.yaml", "--dry-run"]
        rng = random.Random(8)
        for attempt in range(12):
            number = SIGNALS[attempt % len(SIGNALS)]
            delay = rng.uniform(0.0, 0.1) if attempt < 6 else rng.uniform(0.5, 1.0)
            with self.subTest(f"{number.name} after {delay:.3f} s"):
                job = self.begin(0, *bench)
                time.sleep(delay)
                job.send_signal(number)
                output = job.communicate(timeout=patience(10))[0]
                self.assertEqual(job.returncode, -number, output)
        job = self.begin(0, *plan)
        job.send_signal(signal.SIGTERM)
        job.communicate(timeout=patience(10))
        self.assertEqual(job.returncode, -signal.SIGTERM)

    def test_a_reader_that_closes_their_output_ends_them(self):
        job = self.begin(0, "config-reference", stderr=subprocess.DEVNULL)
        job.stdout.close()
        self.assertEqual(job.wait(10), -signal.SIGPIPE)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
