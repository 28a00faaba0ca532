#!/usr/bin/python3
"""Tests ranks that die, stop or run out of memory, and devices that do not exist. Every rank must
end soon, with a nonzero exit code and a message that names the place and the remedy.

usage: failure_test.py SWITCHYARD MPIEXEC cpu|cuda [unittest options]

With `cuda`, SWITCHYARD must be the emulated program, whose devices the environment describes.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import program
from program import CONFIGS, MPI_FLAGS, MPIEXEC, SWITCHYARD

ON_CUDA = sys.argv[3] == "cuda"
# A job must end within this time.
SECONDS_TO_END = 60
# Emulation is slow, so sizes are small.
SMALL = ["train.global_batch_size=4", "model.seq_len=16", "train.eval_interval=0",
         "checkpoint.interval=0", "parallel.ep=2", "checkpoint.resume=none"]
# The transports between two ranks, with the setting of run.device that selects each.
TRANSPORTS = {"staged": ["run.device=cuda:0"], "NCCL": ["run.device=cuda"]} if ON_CUDA else {
    "MPI": []}
WHERE = r"\(step \d+, [a-z ]+\)"


class Failure(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.temporary.name)
        (cls.folder / "configs").symlink_to(CONFIGS)
        text = "".join(f"the fox {i} jumps over {7 * i} lazy dogs\n" for i in range(300))
        (cls.folder / "text").write_text(text)
        subprocess.run([SWITCHYARD, "tokenize", "configs/tiny_bigmac.yaml", 'data.text=["text"]'],
                       cwd=cls.folder, env=cls.environment(), check=True, capture_output=True)

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    @staticmethod
    def environment(**more):
        return program.environment(**{"SWITCHYARD_EMULATED_DEVICES": "2", **more})

    def run_program(self, *command, **environment):
        """Exit code and output of a command that must end by itself."""
        return program.run(command, self.folder, timeout=300,
                           env=self.environment(**environment))

    def start(self, *overrides):
        """Starts two ranks that would train for ever and waits until step 2 has ended. Returns the
        job and the id of rank 1's process."""
        run = self.folder / "runs" / self.id()
        metrics = run / "metrics.jsonl"
        metrics.unlink(missing_ok=True)
        job = program.start(
            [*program.command(2, "train", "configs/tiny_bigmac.yaml"), f"run.dir={run}",
             "train.max_steps=1000000", *SMALL, *overrides],
            self.folder, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.addCleanup(program.kill, job)
        deadline = time.time() + program.patience(300)
        while time.time() < deadline and job.poll() is None:
            if metrics.exists() and metrics.read_text().count("\n") >= 2:
                return job, self.process_of_rank(job.pid, 1)
            time.sleep(0.05)
        program.kill(job)
        self.fail(f"no steps were trained:\n{job.communicate()[0]}")

    @staticmethod
    def process_of_rank(job, rank):
        for child in pathlib.Path(f"/proc/{job}/task/{job}/children").read_text().split():
            environment = pathlib.Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            if f"OMPI_COMM_WORLD_RANK={rank}".encode() in environment:
                return int(child)
        raise AssertionError(f"mpiexec has no child that is rank {rank}")

    def end_of(self, job):
        """Exit code and output of the job, and the seconds until it ended."""
        begin = time.time()
        output = job.communicate(timeout=program.patience(SECONDS_TO_END))[0]
        return job.returncode, output, time.time() - begin


class DyingRank(Failure):
    def test_the_others_of_a_killed_rank_end_and_say_where(self):
        for transport, overrides in TRANSPORTS.items():
            with self.subTest(transport):
                job, victim = self.start(*overrides)
                os.kill(victim, signal.SIGKILL)
                code, output, _ = self.end_of(job)

                self.assertNotEqual(code, 0, output)
                self.assertIn("rank 1", output)  # mpiexec names the rank and the signal
                self.assertIn("exited on signal 9", output)
                self.assertRegex(output, rf"switchyard: rank 0 {WHERE}: ")

    def test_a_rank_that_stops_is_waited_for_no_longer_than_configured(self):
        for transport, overrides in TRANSPORTS.items():
            with self.subTest(transport):
                limit = round(program.patience(10))
                job, victim = self.start(f"run.collective_timeout={limit}", *overrides)
                os.kill(victim, signal.SIGSTOP)
                code, output, seconds = self.end_of(job)

                self.assertNotEqual(code, 0, output)
                self.assertRegex(output, rf"switchyard: rank 0 {WHERE}: [a-z_]+ in group [a-z]+ has "
                                         rf"not finished after {limit} s \(run.collective_timeout\)")
                self.assertGreater(seconds, 0.8 * limit)

    @unittest.skipUnless(ON_CUDA, "needs a rank whose device is smaller than the others'")
    def test_an_error_of_one_rank_ends_all_and_says_where(self):
        for transport, overrides in TRANSPORTS.items():
            with self.subTest(transport):
                train = [SWITCHYARD, "train", "configs/tiny_bigmac.yaml", "run.dir=runs/none",
                         *SMALL, *overrides]
                code, output = self.run_program(
                    MPIEXEC, *MPI_FLAGS, "-n", 1, *train, ":", "-n", 1, "-x",
                    f"SWITCHYARD_EMULATED_DEVICE_BYTES={24 << 20}", *train)

                self.assertNotEqual(code, 0, output)
                # The first product needs more memory than the weights leave free.
                self.assertRegex(output, r"switchyard: rank 1 \((start|step 1, forward)\): out of "
                                         r"memory on cuda:\d: 32.0 MiB for the workspace of cuBLAS; ")


@unittest.skipUnless(ON_CUDA, "needs calls of CUDA that fail")
class FailingCalls(Failure):
    def train(self, rank_1, *overrides):
        """Trains for long, with a variable in the environment of rank 1."""
        train = [SWITCHYARD, "train", "configs/tiny_bigmac.yaml", "run.dir=runs/none",
                 "run.device=cuda", "train.max_steps=1000000", *SMALL, *overrides]
        return self.run_program(MPIEXEC, *MPI_FLAGS, "-n", 1, *train, ":", "-n", 1, "-x", rank_1,
                                *train)

    def test_an_error_that_only_the_watchdog_sees_is_named(self):
        code, output = self.train("SWITCHYARD_EMULATED_FAILURE=cudaEventQuery:1")

        self.assertNotEqual(code, 0, output)
        self.assertRegex(output, r"switchyard: rank 1 \([a-z0-9 ,]+\): cud[A-Za-z]+ failed: an illegal "
                                 r"memory access was encountered")
        self.assertNotIn("terminate called", output)

    def test_a_driver_that_does_not_answer_is_waited_for_no_longer_than_configured(self):
        code, output = self.train("SWITCHYARD_EMULATED_HANG=cudaEventQuery:1",
                                  "run.collective_timeout=5")

        self.assertNotEqual(code, 0, output)
        self.assertRegex(output, r"switchyard: rank 1 \([a-z0-9 ,]+\): the device has not answered for "
                                 r"5 s \(run.collective_timeout\): the watchdog asked whether [a-z_]+ in "
                                 r"group [a-z]+ has finished")

    def test_a_rank_that_stops_while_groups_are_made_is_waited_for_no_longer_than_configured(self):
        code, output = self.train("SWITCHYARD_EMULATED_HANG=ncclCommInitRank:1",
                                  "run.collective_timeout=5")

        self.assertNotEqual(code, 0, output)
        self.assertRegex(output, r"switchyard: rank \d \(start\): ncclCommInitRank in group world has "
                                 r"not finished after 5 s \(run.collective_timeout\)")


@unittest.skipUnless(ON_CUDA, "needs a device whose memory the test chooses")
class DeviceMemory(Failure):
    # cuBLAS and the stream take 33 MiB.
    MODEL = ["configs/tiny_bigmac.yaml", "model.vocab_size=257", "train.global_batch_size=8",
             "train.micro_batch_size=8", "run.device=cuda"]

    def bench(self, mebibytes, *overrides):
        return self.run_program(SWITCHYARD, "bench", *self.MODEL, *overrides, "--steps", 1,
                                "--warmup", 0,
                                SWITCHYARD_EMULATED_DEVICE_BYTES=str(int(mebibytes * (1 << 20))))

    def test_weights_that_do_not_fit_are_named(self):
        code, output = self.bench(5, "model.expert_ffn_hidden=2048")

        self.assertEqual(code, 1, output)
        self.assertRegex(output, r"switchyard: rank 0 \(start\): out of memory on cuda:0: [\d.]+ MiB "
                                 r"for the (values|gradients) of layers\.0\.[a-z_.]+ to "
                                 r"layers\.1\.[a-z_.]+ \(\d+ parameters\), f32 \[\d+\]; "
                                 r"[\d.]+ MiB of 5.0 MiB are free")

    def test_optimizer_state_that_does_not_fit_is_named(self):
        # 6 MiB of experts: values and gradients fit, the moments do not.
        _, output = self.bench(17, "model.expert_ffn_hidden=2048")

        self.assertRegex(output, r"for the optimizer state exp_avg(_sq)? of layers\.0\.")

    def test_the_advised_changes_fit(self):
        code, output = self.bench(40.4, "model.num_layers=4")
        self.assertEqual(code, 1, output)
        self.assertRegex(output, r"for a tensor of the workspace, f32 \[[\d, ]+\], beside [\d.]+ MiB "
                                 r"in use; [\d.]+ MiB of 40.4 MiB are free")
        changes = re.search(r"these would fit: (.*)", output).group(1)
        changes = re.findall(r"(train\.micro_batch_size=\d+|parallel\.recompute=true) \(", changes)

        self.assertEqual(len(changes), 2, output)
        for change in changes:
            code, output = self.bench(40.4, "model.num_layers=4", change)
            self.assertEqual(code, 0, output)


class MissingDevice(Failure):
    def train(self, ranks, *overrides, **environment):
        return self.run_program(MPIEXEC, *MPI_FLAGS, "-n", ranks, SWITCHYARD, "train",
                                "configs/tiny_bigmac.yaml", "run.dir=runs/none", *overrides,
                                **environment)

    def test_an_invalid_device_name_is_refused_with_the_rest_of_the_configuration(self):
        for name in ("gpu", "cuda:-1", "cuda:1x", "cuda:99999999999"):
            with self.subTest(name):
                code, output = self.train(2, f"run.device={name}")
                self.assertEqual(code, 2, output)
                self.assertEqual(output.count("switchyard: command line: run.device: "), 1, output)

    @unittest.skipUnless(ON_CUDA, "needs devices whose number the test chooses")
    def test_devices_that_are_not_there(self):
        for ranks, device, devices, message in [
                (1, "cuda:2", 2, "cuda:2 is not there: this machine has 2 CUDA devices"),
                (2, "cuda:1", 1, "cuda:1 is not there: this machine has 1 CUDA device ["),
                (1, "cuda", 0, "cuda:0 is not there: this machine has 0 CUDA devices"),
                (3, "cuda", 2, "3 ranks run on this machine, which has 2 CUDA devices: start as many")]:
            with self.subTest(message):
                code, output = self.train(ranks, f"run.device={device}", "train.global_batch_size=6",
                                          SWITCHYARD_EMULATED_DEVICES=str(devices))
                self.assertEqual(code, 1, output)
                self.assertEqual(output.count(message), 1, output)

    @unittest.skipIf(ON_CUDA, "the emulation needs no driver")
    def test_a_machine_without_a_driver(self):
        if pathlib.Path("/dev/nvidiactl").exists():
            self.skipTest("this machine has a driver")
        code, output = self.train(2, "run.device=cuda", "parallel.ep=2")

        self.assertIn(code, (1, 2), output)
        # The first message is of a build with CUDA, the second of one without.
        self.assertRegex(output, r"cuda:0 cannot be used: .*; install an NVIDIA driver|"
                                 r"device cuda is not in this build")
        self.assertEqual(output.count("switchyard: "), 1, output)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[4:]], verbosity=2)
