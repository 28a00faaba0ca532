#!/usr/bin/env python3
"""plan --machine predicts the time of a step, and calibrate measures the machine for it."""

import json
import sys
import unittest

import yaml

from program import BAD_INPUT, CONFIGS, FAILED, Program, command, environment, run

MACHINES = sorted((CONFIGS / "machines").glob("*.yaml"))
XL = ["configs/gpt3_xl_bigmac.yaml", "--ranks", "32", "run.compute_dtype=bf16",
      "parallel.deduplicate=none"]
# BigMac's experiments: 64 sequences per step over ep = 32 (its Figure 4).
PAPER = [*XL, "parallel.tp=1", "parallel.ep=32", "train.global_batch_size=64",
         "train.micro_batch_size=1", "--machine", "configs/machines/bigmac_paper.yaml"]


class Plan(Program):
    def plan(self, *arguments):
        return json.loads(self.run_program(0, "plan", *arguments, "--json"))

    def test_every_described_machine_has_all_that_a_plan_needs(self):
        self.assertGreaterEqual(len(MACHINES), 5)
        for machine in MACHINES:
            with self.subTest(machine.name):
                plan = self.plan(*XL, "--machine", f"configs/machines/{machine.name}")
                self.assertAlmostEqual(sum(plan["phases"].values()), plan["step_ms"], places=3)
                waits = sum(t["exposed_ms"] for t in plan["transfers"].values())
                self.assertAlmostEqual(sum(plan["parts"].values()) + waits, plan["step_ms"],
                                       places=3)
                self.assertGreater(plan["verdict"]["speed_up"], 0.5)
                self.assertTrue(0.0 < plan["mfu"] < 1.0)

    def test_the_papers_speed_ups_come_out(self):
        for top_k, speed_up, exchange in [(8, 2.95, 3.72), (4, 2.37, 3.48)]:
            verdict = self.plan(*PAPER, f"model.router.top_k={top_k}")["verdict"]
            self.assertAlmostEqual(verdict["speed_up"] / speed_up, 1.0, delta=0.1)
            self.assertAlmostEqual(verdict["exchange_speed_up"] / exchange, 1.0, delta=0.1)
            self.assertGreater(verdict["fine_grained"]["exchange_share"], 0.8)

    def test_the_search_puts_the_fastest_first(self):
        found = self.plan(*XL, "--machine", "configs/machines/h200_8x400.yaml", "--search")
        times = [layout["step_ms"] for layout in found[:5]]
        self.assertEqual(times, sorted(times))
        table = self.run_program(0, "plan", *XL, "--machine", "configs/machines/h200_8x400.yaml",
                                 "--search")
        self.assertIn("micro-batch", table.splitlines()[0])

    def test_the_load_of_a_run_is_assumed(self):
        load = [0.5 / 2] * 2 + [0.5 / 62] * 62
        (self.folder / "metrics.jsonl").write_text(json.dumps({"expert_load": [load]}) + "\n")
        even, busy = self.plan(*PAPER), self.plan(*PAPER, "--expert-load", "metrics.jsonl")
        self.assertAlmostEqual(busy["load_of_busiest_rank"], 16.0, places=6)
        self.assertGreater(busy["step_ms"], 2.0 * even["step_ms"])
        for strange in ([0.0] * 64, [-0.5, 1.5] + [0.0] * 62):
            (self.folder / "metrics.jsonl").write_text(json.dumps({"expert_load": [strange]}) + "\n")
            output = self.run_program(0, "plan", "configs/bench_fine_grained.yaml", "--machine",
                                      "configs/machines/h200_8x400.yaml", "--expert-load",
                                      "metrics.jsonl", code=FAILED)
            self.assertIn("expert_load must hold shares", output)

    def test_links_that_were_not_measured_are_not_free(self):
        machine = (self.folder / "configs/machines/h200_8x400.yaml").read_text()
        before, between, _ = machine.partition("between_hosts:")
        (self.folder / "one_host.yaml").write_text(f"{before}{between} not measured\n")
        on_one_host = ["configs/gpt3_xl_bigmac.yaml", "parallel.deduplicate=none", "--machine",
                       "one_host.yaml", "--ranks"]
        self.plan(*on_one_host, "8")
        output = self.run_program(0, "plan", *on_one_host, "32", code=FAILED)
        self.assertIn("was measured without links between hosts", output)

    def test_mistakes_name_the_remedy(self):
        for arguments, message in [
                ([*XL, "--search"], "need --machine FILE"),
                ([*XL, "--machine", "none.yaml"], "cannot read the machine's description none.yaml"),
                ([*PAPER, "--expert-load", "none.jsonl"], "cannot read none.jsonl"),
                (["configs/tiny_bigmac.yaml", "--machine", "bad.yaml"], "device is missing")]:
            (self.folder / "bad.yaml").write_text("name: a\nsource: b\n")
            self.assertIn(message, self.run_program(0, "plan", *arguments, code=FAILED))
        self.run_program(0, "plan", *XL, "--machine", code=BAD_INPUT)


class Calibrate(Program):
    def test_what_it_measures_predicts_a_step(self):
        job = command(2, "calibrate", "--out", "machine.yaml")
        returned, output = run(job, self.folder, timeout=800)
        self.assertEqual(returned, 0, output)
        plan = json.loads(self.run_program(
            0, "plan", "configs/tiny_bigmac.yaml", "--ranks", "2", "parallel.ep=2", "--machine",
            "machine.yaml", "--json", "model.vocab_size=257"))
        self.assertGreater(plan["transfers"]["exchange"]["ms"], 0.0)
        # Other work on the machine makes messages of milliseconds of what takes microseconds.
        self.assertTrue(0.1 < plan["step_ms"] < 1e5, plan["step_ms"])
        # Ranks of one host show nothing of links between hosts, and nothing is hidden there.
        machine = yaml.safe_load((self.folder / "machine.yaml").read_text())
        self.assertEqual(machine["background"], 0)
        output = self.run_program(0, "plan", "configs/tiny_bigmac.yaml", "--ranks", "4",
                                  "parallel.ep=4", "--machine", "machine.yaml",
                                  "model.vocab_size=257", code=FAILED)
        self.assertIn("was measured without links between hosts", output)

        self.measure_links_alone()

    def measure_links_alone(self):
        def of_compute(file):
            machine = yaml.safe_load((self.folder / file).read_text())
            return {key: machine[key] for key in ("products", "ops")}

        again = ["calibrate", "--compute", "machine.yaml", "--out", "links.yaml"]
        self.run_program(2, *again)
        self.assertEqual(of_compute("links.yaml"), of_compute("machine.yaml"))

        returned, output = run(command(2, *again), self.folder, timeout=120,
                               env=environment(OMP_NUM_THREADS="2"))
        self.assertEqual(returned, FAILED, output)
        self.assertIn("describes ranks of 1 threads on cpu, and these have 2", output)

    def test_it_replaces_only_its_own_files(self):
        (self.folder / "notes.yaml").write_text("mine\n")
        output = self.run_program(0, "calibrate", "--out", "notes.yaml", code=FAILED)
        self.assertIn("notes.yaml", output)
        self.assertEqual((self.folder / "notes.yaml").read_text(), "mine\n")

    def test_what_cannot_be_written_is_found_out_before_the_measurement(self):
        machine = self.folder / "machine.yaml"
        own = ("# A machine, for switchyard plan --machine.\n"
               + (CONFIGS / "machines" / "cpu_32x25gbe.yaml").read_text())
        machine.write_text(own)
        (self.folder / "link.yaml").symlink_to("machine.yaml")
        for out, message in [("link.yaml", "--out would overwrite machine.yaml, which --compute reads"),
                             ("/proc/x.yaml", "/proc/x.yaml.tmp: ")]:
            output = self.run_program(0, "calibrate", "--compute", "machine.yaml", "--out", out,
                                      code=FAILED)
            self.assertIn(message, output)
        self.assertEqual(machine.read_text(), own)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
