#!/usr/bin/env python3
"""Tests scripts/link_lab.sh: training between hosts with slow links, and what the script leaves
alone.

usage: links_test.py PATH_TO_SWITCHYARD PATH_TO_MPIEXEC SUITES [unittest options]

SUITES are paths of MPI test programs, separated by commas, which must pass between hosts, too.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import unittest

from program import DONE, FAILED, SWITCHYARD, Program, environment, patience, run

LAB = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "link_lab.sh"
SUITES = sys.argv[3].split(",") if len(sys.argv) > 3 else []  # of a test that imports this one
NAME = f"test{os.getpid()}"
UP = ["up", "--hosts", 2, "--ranks-per-host", 2, "--rate", "200mbit"]
# One line per rank: its number, its number on its host, and the host.
WHERE = ["sh", "-c", "echo at $OMPI_COMM_WORLD_RANK $OMPI_COMM_WORLD_LOCAL_RANK $(hostname)"]


def why_not():
    """Why this machine cannot have a lab; empty if it can."""
    if os.getuid() != 0:
        return "only root may make network namespaces"
    for tool in ("ip", "tc", "nsenter", "unshare"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    if subprocess.run(["unshare", "--net", "--uts", "true"], check=False,
                      capture_output=True).returncode:
        return "this machine does not permit network namespaces"
    return ""


def namespaces():
    return {path.name for path in pathlib.Path("/run/netns").glob(f"switchyard-{NAME}-*")}


class Links(Program):
    def lab(self, *arguments, code=DONE, **more):
        returned, output = run([LAB, *arguments], self.folder, timeout=240,
                               env=environment(SWITCHYARD_LINK_LAB=NAME, **more))
        self.assertEqual(returned, code, output)
        return output

    def tearDown(self):
        run([LAB, "down"], self.folder, timeout=60, env=environment(SWITCHYARD_LINK_LAB=NAME))
        self.assertEqual(namespaces(), set())
        super().tearDown()

    def netns(self, *arguments):
        subprocess.run(["ip", "netns", *arguments], check=True)

    def steps(self):
        return [(m["step"], m["loss"], m["grad_norm"], m.get("val_loss")) for m in self.metrics()]

    def test_training_over_the_links_computes_what_it_computes_without(self):
        layouts = [["parallel.ep=4", "parallel.exchange_chunks=2"],
                   ["parallel.ep=2", "parallel.tp=2", "parallel.exchange_chunks=1",
                    "train.global_batch_size=16"]]
        for layout in layouts:
            with self.subTest(layout):
                shutil.rmtree(self.folder / "runs" / "tiny_bigmac", ignore_errors=True)
                self.train(4, *layout)
                steps, shards = self.steps(), self.shards(20)
                shutil.rmtree(self.folder / "runs" / "tiny_bigmac")

                self.lab(*UP)
                self.lab("run", "--", SWITCHYARD, "train", "configs/tiny_bigmac.yaml", *layout)
                self.lab("down")

                self.assertEqual(self.steps(), steps)
                self.assertTrue(self.shards(20) == shards)

    def test_rows_cross_a_link_once_per_host(self):
        train = ["run", "--", SWITCHYARD, "train", "configs/tiny_bigmac.yaml", "parallel.ep=4"]
        self.lab(*UP)
        losses, crossed = {}, {}
        for way in ("none", "rank", "host"):
            self.lab(*train, f"parallel.deduplicate={way}", f"run.dir=runs/{way}")
            metrics = [json.loads(line) for line in
                       (self.folder / "runs" / way / "metrics.jsonl").read_text().splitlines()]
            losses[way] = [m["loss"] for m in metrics]
            crossed[way] = metrics[0]["exchange_bytes_between_hosts"]
            self.assertLess(crossed[way], metrics[0]["exchange_bytes"])

        for way in ("none", "host"):
            for loss, expected in zip(losses[way], losses["rank"], strict=True):
                self.assertAlmostEqual(loss, expected, delta=1e-4)
        self.assertLess(crossed["host"], 0.9 * crossed["rank"])
        self.assertLess(crossed["rank"], crossed["none"])

    def test_hosts_that_cut_an_ep_group_unequally_are_refused(self):
        self.lab("up", "--hosts", 2, "--ranks-per-host", 3, "--rate", "200mbit")
        output = self.lab("run", "--", SWITCHYARD, "train", "configs/tiny_bigmac.yaml",
                          "parallel.ep=2", "parallel.deduplicate=host",
                          "train.global_batch_size=12", code=FAILED)
        self.assertIn("the group of rank 2 lie on hosts 0 3", output)
        self.assertEqual(output.count("parallel.deduplicate: host needs"), 1, output)

    def test_a_run_measures_the_number_of_chunks_once_and_keeps_it(self):
        train = ["run", "--", SWITCHYARD, "train", "configs/tiny_bigmac.yaml", "parallel.ep=4"]
        self.lab(*UP)
        output = self.lab(*train, "train.max_steps=10")
        chosen = re.search(r"tokens travel in (\d+) chunks", output)
        self.assertTrue(chosen, output)

        output = self.lab(*train)

        self.assertIn("at step 10", output)
        self.assertNotIn("tokens travel in", output)
        self.assertNotIn("exchange_chunks", output)
        state = (self.checkpoint(20) / "manifest.json").read_text()
        self.assertRegex(state, rf"exchange_chunks: {chosen[1]}\b")

    def test_suites_pass_between_hosts(self):
        self.lab("up", "--hosts", 2, "--ranks-per-host", 2, "--rate", "1gbit")
        for suite in SUITES:
            with self.subTest(suite):
                self.lab("run", "--", suite)

    def test_neighbouring_ranks_share_a_host_and_hosts_have_names(self):
        self.lab(*UP)
        output = self.lab("run", "--", *WHERE)
        lines = sorted(line for line in output.splitlines() if line.startswith("at "))
        self.assertEqual(lines, ["at 0 0 10.77.0.1", "at 1 1 10.77.0.1", "at 2 0 10.77.0.2",
                                 "at 3 1 10.77.0.2"])

    def test_a_checkout_may_lie_under_a_path_that_mpirun_would_cut(self):
        script = self.folder / "my check:out" / "scripts" / LAB.name
        script.parent.mkdir(parents=True)
        shutil.copy(LAB, script)
        named = environment(SWITCHYARD_LINK_LAB=NAME)

        for arguments in (UP, ["run", "--", *WHERE], ["down"]):
            code, output = run([script, *arguments], self.folder, timeout=240, env=named)
            self.assertEqual(code, DONE, output)
            if arguments[0] == "run":
                self.assertEqual(output.count("at "), 4, output)

    def test_the_link_bounds_the_rate_in_each_direction(self):
        self.lab("up", "--hosts", 2, "--ranks-per-host", 1, "--rate", "20mbit")
        for sender, receiver in ((0, 1), (1, 0)):
            code = ("import socket, time\n"
                    f"receiver = socket.create_server(('10.77.0.{receiver + 1}', 9000))\n"
                    "print('ready', flush=True)\n"
                    "peer = receiver.accept()[0]\n"
                    "begin, size = time.time(), 0\n"
                    "while part := peer.recv(65536): size += len(part)\n"
                    "print(8e-6 * size / (time.time() - begin))\n")
            enter = ["nsenter", f"--net=/run/netns/switchyard-{NAME}-{receiver}"]
            listening = subprocess.Popen([*enter, sys.executable, "-c", code], text=True,
                                         stdout=subprocess.PIPE)
            listening.stdout.readline()
            subprocess.run(
                ["nsenter", f"--net=/run/netns/switchyard-{NAME}-{sender}", sys.executable, "-c",
                 f"import socket; socket.create_connection(('10.77.0.{receiver + 1}', 9000))"
                 ".sendall(bytes(2500000))"], check=True)
            rate = float(listening.communicate(timeout=patience(30))[0])
            self.assertLess(rate, 20.5)
            self.assertGreater(rate, 10.0)

    def test_a_lab_that_is_up_is_not_made_again_and_one_that_is_not_up_runs_nothing(self):
        self.assertIn("is not up", self.lab("run", "--", "true", code=FAILED))
        self.assertIn("is not up", self.lab("down", code=FAILED))
        self.lab(*UP)
        before = namespaces()
        self.assertIn("is up already", self.lab(*UP, code=FAILED))
        self.assertEqual(namespaces(), before)

    def test_a_failed_up_leaves_nothing_and_removes_nothing_of_others(self):
        other = f"switchyard-{NAME}-1"
        self.netns("add", other)
        self.addCleanup(self.netns, "del", other)

        self.assertIn("has not recorded", self.lab(*UP, code=FAILED).replace("\n", " "))

        self.assertEqual(namespaces(), {other})
        self.assertIn("is not up", self.lab("down", code=FAILED))
        # tearDown expects that nothing is left.
        self.doCleanups()

    def test_down_leaves_a_namespace_that_took_the_name_of_its_own(self):
        self.lab(*UP)
        other = f"switchyard-{NAME}-1"
        self.netns("del", other)
        self.netns("add", other)
        self.addCleanup(self.netns, "del", other)

        self.assertIn("it stays", self.lab("down"))

        self.assertEqual(namespaces(), {other})
        self.doCleanups()

    def test_down_refuses_while_a_process_runs_on_a_host_and_names_it(self):
        self.lab(*UP)
        host = f"switchyard-{NAME}-1"
        inside = subprocess.Popen(["nsenter", f"--net=/run/netns/{host}", "sleep", "100"])
        while not subprocess.run(["ip", "netns", "pids", host], check=True,
                                 capture_output=True).stdout:
            self.assertIsNone(inside.poll())

        output = self.lab("down", code=FAILED)

        inside.kill()
        inside.wait()
        self.assertIn(f"processes still run in {host}: {inside.pid};", output)

    def test_bad_arguments_are_refused_by_a_sentence(self):
        for arguments, message in [
                (["up", "--hosts", 0], "--hosts is '0'"),
                (["up", "--hosts", 2, "--ranks-per-host", 2], "--rate is ''"),
                ([*UP[:-1], "fast"], "--rate is 'fast'"),
                ([*UP, "--latency", "soon"], "--latency is 'soon'"),
                ([*UP, "--colour", "red"], "no option '--colour'"),
                ([*UP, "--latency"], "--latency has no value"),
                (["run"], "needs a command"),
                (["fly"], "say what to do")]:
            with self.subTest(arguments):
                self.assertIn(message, self.lab(*arguments, code=FAILED))
        self.assertEqual(namespaces(), set())


if __name__ == "__main__":
    if reason := why_not():
        print(f"skipped: {reason}")
        sys.exit(77)
    unittest.main(argv=[sys.argv[0], *sys.argv[4:]])
