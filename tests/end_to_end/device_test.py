#!/usr/bin/python3
"""Compares the program on a CUDA device, real or emulated, with the program on the CPU.

Usage: device_test.py SWITCHYARD MPIEXEC
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

PROGRAM, MPIEXEC = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2]
SOURCE = pathlib.Path(__file__).resolve().parents[2]
# Real devices are fast enough for more steps and configurations.
THOROUGH = os.environ.get("SWITCHYARD_THOROUGH") == "1"
# Emulation is slow, so sizes are small.
SMALL = ["train.global_batch_size=2", "model.seq_len=16", "train.eval_interval=0",
         "checkpoint.interval=2"]


class DeviceTest(unittest.TestCase):
    def setUp(self):
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = pathlib.Path(self._temporary.name)
        (self.folder / "configs").symlink_to(SOURCE / "configs")
        text = "".join(f"the fox {i} jumps over {7 * i} lazy dogs\n" for i in range(300))
        (self.folder / "text").write_text(text)
        self.run_program(0, "tokenize", "configs/tiny_bigmac.yaml", 'data.text=["text"]')

    def tearDown(self):
        self._temporary.cleanup()

    def run_program(self, code, *arguments, ranks=1, ranks_see=None, **environment):
        command = [PROGRAM, *arguments]
        if ranks_see:
            parts = [["-n", "1", "-x", f"CUDA_VISIBLE_DEVICES={devices}", *command]
                     for devices in ranks_see]
            command = [MPIEXEC, "--oversubscribe", "--mca", "mpi_yield_when_idle", "1", *parts[0]]
            for part in parts[1:]:
                command += [":", *part]
        if ranks > 1:
            command = [MPIEXEC, "--oversubscribe", "--mca", "mpi_yield_when_idle", "1", "-n",
                       str(ranks), *command]
        result = subprocess.run(
            [str(part) for part in command], cwd=self.folder, capture_output=True, text=True,
            errors="replace", timeout=300, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1",
                 "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", **environment})
        output = result.stdout + result.stderr
        self.assertEqual(result.returncode, code, output)
        return output

    def train(self, run, device, steps, *overrides, config="tiny_bigmac", **options):
        self.run_program(0, "train", f"configs/{config}.yaml", f"run.dir=runs/{run}",
                         f"run.device={device}", f"train.max_steps={steps}", *SMALL, *overrides,
                         **options)
        lines = (self.folder / "runs" / run / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    def methods(self, run):
        """Those that the run's last checkpoint holds."""
        checkpoints = self.folder / "runs" / run / "checkpoints"
        state = json.loads((max(checkpoints.iterdir()) / "manifest.json").read_text())["state"]
        return {op: state.get(op) for op in ("expert_products", "attention")}

    def assert_close(self, losses, expected, bound):
        self.assertEqual(len(losses), len(expected))
        for loss, other in zip(losses, expected):
            self.assertAlmostEqual(loss, other, delta=bound)

    def test_gives_the_losses_of_the_cpu_and_repeats_them(self):
        steps = 20 if THOROUGH else 3
        for config in ("tiny_vanilla", "tiny_fine_grained", "tiny_bigmac") if THOROUGH else (
                "tiny_bigmac",):
            for dtype, bound in (("f32", 1e-5), ("bf16", 1e-2)):
                # SGD shows wrong gradients. Adam would make full steps of rounding errors where a
                # gradient is zero except for rounding.
                overrides = (f"run.compute_dtype={dtype}", "optimizer.type=sgd", "optimizer.lr=0.1")
                on_cpu, on_device, again = (
                    self.train(f"{config}_{dtype}_{run}", device, steps, *overrides, config=config)
                    for run, device in (("cpu", "cpu"), ("device", "cuda"), ("again", "cuda")))

                self.assert_close(on_device, on_cpu, bound)
                # A method that is measured may be another one, which rounds differently.
                if self.methods(f"{config}_{dtype}_device") == self.methods(
                        f"{config}_{dtype}_again"):
                    self.assertEqual(on_device, again)
                else:
                    self.assert_close(again, on_device, bound)

    def test_checkpoints_go_on_on_the_other_backend(self):
        straight = self.train("straight", "cpu", 4)
        self.train("there", "cpu", 2)
        self.train("back", "cuda", 2)

        self.assert_close(self.train("there", "cuda", 4), straight, 1e-5)
        self.assert_close(self.train("back", "cpu", 4), straight, 1e-5)

    def test_ranks_share_a_device(self):
        alone = self.train("alone", "cpu", 2)
        self.assert_close(self.train("shared", "cuda:0", 2, "parallel.ep=2", ranks=2), alone, 1e-5)

    def test_ranks_see_one_device_each(self):
        """As under Slurm's --gpus-per-task=1."""
        expected = self.train("alone", "cpu", 2)
        train = ["train", "configs/tiny_bigmac.yaml", "run.dir=runs/own", "run.device=cuda",
                 "train.max_steps=2", "parallel.ep=2", *SMALL]
        self.run_program(0, *train, ranks_see=("0", "1"), SWITCHYARD_EMULATED_DEVICES="2")
        lines = (self.folder / "runs" / "own" / "metrics.jsonl").read_text().splitlines()
        self.assert_close([json.loads(line)["loss"] for line in lines], expected, 1e-5)

        message = self.run_program(1, *train, ranks_see=("1", "1"), SWITCHYARD_EMULATED_DEVICES="2")
        self.assertIn("2 ranks run on this machine, which has 1 CUDA device", message)

    def test_measures_decoding_on_another_device_than_the_first(self):
        # The caches are skipped: kernels run all the same.
        arguments = ("bench", "decode", "--lengths", "16", "--batch", "1", "--repetitions", "1",
                     "--prefill-tokens", "1", "--dtype", "bf16", "--memory", "1e-6", "--device")
        self.run_program(0, *arguments, "cuda:1", SWITCHYARD_EMULATED_DEVICES="2")
        message = self.run_program(1, *arguments, "cuda:2", SWITCHYARD_EMULATED_DEVICES="2")
        self.assertIn("cuda:2 is not there: this machine has 2 CUDA devices", message)

    def test_evaluates_and_generates(self):
        self.train("model", "cuda", 2)
        arguments = ("configs/tiny_bigmac.yaml", "run.dir=runs/model", *SMALL)
        results = [self.run_program(0, "eval", *arguments, f"run.device={device}").splitlines()[-1]
                   for device in ("cpu", "cuda")]
        self.assertEqual(*results)
        text = [self.run_program(0, "generate", *arguments, f"run.device={device}", "--prompt",
                                 "the", "--max-tokens", "4", "--temperature", "0")
                for device in ("cpu", "cuda")]
        self.assertEqual(*text)

    def test_decodes_with_chosen_keys(self):
        self.train("model", "cpu", 2)
        arguments = ("configs/tiny_bigmac.yaml", "run.dir=runs/model", *SMALL,
                     "hash.dense_layers=1", "hash.bits=32", "decode.budget=5",
                     "decode.quest_page=2", "decode.loki_channels=4", "decode.magicpig_bits=3",
                     "decode.magicpig_tables=7", "decode.magicpig_local=2",
                     "decode.snapkv_window=2")
        self.run_program(0, "train-hash", *arguments, "hash.training.pairs_per_epoch=256",
                         "hash.training.epochs=1", "hash.training.num_sequences=11",
                         "hash.training.held_out_sequences=0")
        for method in ("hata", "exact_topk", "random_hash", "quest", "loki", "streaming",
                       "magicpig", "h2o", "snapkv"):
            with self.subTest(method):
                text = [self.run_program(0, "generate", *arguments, f"run.device={device}",
                                         f"decode.attention={method}",
                                         # Learned planes have the keys' lengths anyhow.
                                         f"decode.key_norm={str(method == 'random_hash').lower()}",
                                         "--prompt", "the fox", "--max-tokens", "4",
                                         "--temperature", "0")
                        for device in ("cpu", "cuda")]
                self.assertEqual(*text)

    def test_names_what_is_missing(self):
        arguments = ("train", "configs/tiny_bigmac.yaml", "run.dir=runs/none", *SMALL)
        message = self.run_program(1, *arguments, "run.device=cuda:99")
        self.assertRegex(message, r"cuda:99 is not there: this machine has \d+ CUDA devices?")
        # No machine has 17 GPUs.
        message = self.run_program(1, *arguments, "run.device=cuda", "train.global_batch_size=17",
                                   ranks=17)
        self.assertRegex(message, r"17 ranks run on this machine, which has \d+ CUDA devices?: start")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
