#!/usr/bin/env python3
"""Tests scripts/study.py: points and repetitions, where a study goes on, what it refuses, Slurm.

usage: study_test.py PATH_TO_SWITCHYARD PATH_TO_MPIEXEC [unittest options]
"""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import unittest

import links_test
import yaml

from program import (DONE, FAILED, STOPPED, SWITCHYARD, Program, environment, patience, ranks_of,
                     run, start)

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "study.py"
sys.path.insert(0, str(SCRIPT.parent))
import study_file  # noqa: E402
BIGMAC = {"model": {"structure": "bigmac", "num_experts": 16, "latent": 8, "expert_ffn_hidden": 32}}
TWIN = {"model": {"structure": "fine_grained", "num_experts": 16, "expert_ffn_hidden": 8}}


def tiny_study():
    """Two points of two repetitions; a step takes milliseconds."""
    speedup = {"figure": "speedup", "axis": "structure", "from": "fine_grained", "to": "bigmac",
               "by": "model.router.top_k"}
    return {"title": "Tiny <twins>", "config": "configs/tiny_base.yaml", "repetitions": 2,
            "settings": {"train.max_steps": 3, "train.eval_batches": 1, "log.tensorboard": False},
            "parts": {"twins": {"axes": {"structure": {"fine_grained": TWIN, "bigmac": BIGMAC},
                                         "model.router.top_k": [4]},
                                "show": [speedup]}}}


class StudyTest(Program):
    def setUp(self):
        super().setUp()
        self.out = self.folder / "runs" / "studies" / "tiny"

    def write(self, study):
        (self.folder / "tiny.yaml").write_text(yaml.safe_dump(study, sort_keys=False))

    def command(self, *options):
        return [sys.executable, SCRIPT, "tiny.yaml", "--program", SWITCHYARD, *options]

    def study(self, *options, code=DONE, **more):
        returned, output = run(self.command(*options), self.folder, timeout=120, **more)
        self.assertEqual(returned, code, output)
        return output

    def results(self):
        file = self.out / "results.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [json.loads(line) for line in lines]

    def has_trained(self):
        """Whether a run has taken its first step."""
        return any(file.stat().st_size > 0 for file in self.out.glob("runs/*/metrics.jsonl"))

    def runs(self):
        return [(result["labels"]["structure"], result["repetition"]) for result in self.results()]


class Running(StudyTest):
    def test_interrupted_and_started_again_runs_every_repetition_once(self):
        self.write(tiny_study())
        self.assertIn("4 runs to do", self.study("--dry-run"))
        self.assertFalse(self.out.exists())

        job = start(self.command(), self.folder, stdout=subprocess.DEVNULL)
        self.wait_for(job, lambda: len(self.results()) == 1)
        job.send_signal(signal.SIGINT)
        self.assertEqual(job.wait(timeout=patience(60)), STOPPED)
        before = self.runs()
        self.assertLess(len(before), 4)
        # A study that was killed may leave half a line.
        with open(self.out / "results.jsonl", "a") as file:
            file.write('{"point": "')
        output = self.study()
        lines = (self.out / "results.jsonl").read_text().splitlines()
        whole = [json.loads(line) for line in lines if line != '{"point": "']

        # By turns: the second repetitions come when both points have run once.
        self.assertEqual([(result["labels"]["structure"], result["repetition"])
                          for result in whole], [("fine_grained", 1), ("bigmac", 1),
                                                 ("fine_grained", 2), ("bigmac", 2)])
        self.assertIn(f"[1/{4 - len(before)}]", output)
        self.assertRegex(output, r"\(\d+ s left\)")
        self.assertGreater(whole[0]["figures"]["step_ms"], 0.0)
        self.assertEqual(whole[0]["figures"]["steps"], 3)

    def test_what_has_a_result_is_not_run_again_and_the_report_needs_no_other_file(self):
        self.write(tiny_study())
        self.study()
        before = self.results()

        self.study()

        self.assertEqual(self.results(), before)
        report = (self.out / "report.html").read_text()
        self.assertIn("<svg", report)
        self.assertIn("Tiny &lt;twins&gt;", report)
        self.assertIn("model.structure=bigmac", report)  # the command of a point
        self.assertIn("--report", report)  # that of the figures
        for other in ("<script", "<link", "<img", "src=", "@import"):
            self.assertNotIn(other, report)
        self.assertEqual(list(self.out.glob("runs/*/checkpoints")), [])

    def test_a_file_of_somebody_else_is_neither_replaced_nor_extended(self):
        self.write(tiny_study())
        self.out.mkdir(parents=True)
        for name, text in (("report.html", "<html>my notes</html>"), ("results.jsonl", '{"a": 1}\n')):
            with self.subTest(name):
                (self.out / name).write_text(text)
                self.assertIn(f"{name} ", self.study(code=FAILED))
                self.assertEqual((self.out / name).read_text(), text)
                (self.out / name).unlink()

    def test_what_decides_results_must_stand_in_the_study(self):
        study = tiny_study()
        self.write(study)
        output = self.study(code=FAILED, env={**os.environ, "SWITCHYARD_BACKGROUND": "0"})
        self.assertIn("SWITCHYARD_BACKGROUND is set and would decide results", output)
        self.assertEqual(self.results(), [])

    def test_a_changed_study_runs_what_has_changed(self):
        study = tiny_study()
        study["repetitions"] = 1
        self.write(study)
        self.assertRegex(self.study(), r"\d s left, if new points take as long as those before\)")
        study["parts"]["twins"]["axes"]["structure"]["bigmac"] = {**BIGMAC, "optimizer.lr": 1e-4}
        self.write(study)

        output = self.study()

        self.assertIn("the results of 1 points in results.jsonl belong to none of its points now",
                      output)
        self.assertEqual(self.runs(), [("fine_grained", 1), ("bigmac", 1), ("bigmac", 1)])
        # So does a change of the experiment file, which decides all points.
        config = self.folder / "configs" / "tiny_base.yaml"
        config.write_text(config.read_text().replace("seed: 7", "seed: 8"))
        self.assertIn("the results of 3 points", self.study("--report"))

    def test_a_failing_point_is_named_and_tried_again(self):
        study = tiny_study()
        study["parts"]["twins"]["axes"]["model.router.top_k"] = [4, 17]
        self.write(study)

        output = self.study(code=FAILED)

        self.assertIn("study: 2 points failed; runs/studies/tiny/results.jsonl says why", output)
        failed = [result for result in self.results() if "error" in result]
        self.assertEqual([result["repetition"] for result in failed], [1, 1])
        self.assertIn("top_k", failed[0]["error"])
        self.assertEqual(len(self.results()), 2 + 4)
        self.assertIn("Runs that failed", (self.out / "report.html").read_text())
        # When the program can do it, they get their results.
        config = self.folder / "configs" / "tiny_base.yaml"
        study["parts"]["twins"]["axes"]["model.router.top_k"] = [4]
        self.write(study)
        self.study()
        self.assertTrue(config.exists())

    def write_one_training(self):
        study = tiny_study()
        study.update(measure="loss", repetitions=1)
        study["settings"].update({"train.max_steps": 120, "train.eval_interval": 60})
        del study["parts"]["twins"]["axes"]["structure"]["fine_grained"]
        del study["parts"]["twins"]["show"]
        self.write(study)

    def test_trainings_that_were_stopped_go_on_from_their_checkpoints(self):
        self.write_one_training()
        job = start(self.command(), self.folder, stdout=subprocess.DEVNULL)
        self.wait_for(job, self.has_trained)
        job.send_signal(signal.SIGUSR1)
        self.assertEqual(job.wait(timeout=patience(60)), STOPPED)
        (metrics,) = self.out.glob("runs/*/metrics.jsonl")
        stopped_at = len(metrics.read_text().splitlines())
        self.assertLess(stopped_at, 120)
        self.assertEqual(self.results(), [])

        self.study()

        steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
        self.assertEqual(steps, list(range(1, 121)))
        self.assertIn("resum", (metrics.parent / "output.txt").read_text())
        (result,) = self.results()
        self.assertEqual([tokens for tokens, _ in result["figures"]["losses"]], [30720, 61440])

    def test_a_training_that_somebody_stopped_goes_on_at_once(self):
        self.write_one_training()
        job = start(self.command(), self.folder, stdout=subprocess.DEVNULL)
        self.wait_for(job, self.has_trained)

        os.kill(ranks_of(job)[0], signal.SIGUSR1)

        self.assertEqual(job.wait(timeout=patience(60)), DONE)
        self.assertEqual([result.get("error") for result in self.results()], [None])

    def test_the_time_is_up(self):
        self.write(tiny_study())

        output = self.study("--stop-after", "1e-9", code=STOPPED)

        self.assertEqual(self.results(), [])
        self.assertIn("start the same command again to go on", output)

    def test_times_that_mean_nothing_are_refused(self):
        self.write(tiny_study())
        for minutes in ("nan", "0", "-5", "inf", "soon"):
            with self.subTest(minutes):
                code, output = run(self.command(f"--stop-after={minutes}"), self.folder, timeout=60)
                self.assertEqual(code, 2, output)
                self.assertIn(f"argument --stop-after: '{minutes}' is no finite number greater "
                              "than 0", output)
        self.assertFalse(self.out.exists())

    def test_one_study_at_a_time_has_a_folder(self):
        study = tiny_study()
        study["settings"]["train.max_steps"] = 100000
        self.write(study)
        job = start(self.command(), self.folder, stdout=subprocess.DEVNULL)
        self.wait_for(job, self.has_trained)

        output = self.study(code=FAILED)
        job.send_signal(signal.SIGTERM)

        self.assertIn("another study runs in runs/studies/tiny", output)
        self.assertEqual(job.wait(timeout=patience(60)), STOPPED)

    def test_inference_is_measured_by_its_benchmark(self):
        study = tiny_study()
        study.update(command="bench inference", repetitions=1)
        study["settings"] = {"model.vocab_size": 257, "ranks": 2, "parallel.ep": 2,
                             "options": "--prompt 8 --generate 1,3 --sequences 2 --repetitions 2"}
        study["parts"]["twins"]["show"] = [{"figure": "generation", "axis": "structure",
                                            "from": "fine_grained", "to": "bigmac",
                                            "by": "model.router.top_k"}]
        self.write(study)

        self.study()

        figures = self.results()[0]["figures"]
        self.assertEqual([case["tokens"] for case in figures["generation"]], [1, 3])
        self.assertAlmostEqual(figures["generation"][0]["ms"], figures["prefill_ms"])
        self.assertIn("generated tokens", (self.out / "report.html").read_text())

    def test_every_point_of_the_ready_studies_can_be_run(self):
        files = sorted((SCRIPT.parents[1] / "configs" / "studies").glob("*.yaml"))
        self.assertGreater(len(files), 5)
        for file in files:
            points = study_file.read_study(file).points()
            self.assertTrue(points, file)
            # Seeds and links make no difference to what is checked.
            alike = {}
            for point in points:
                settings = {key: value for key, value in point.settings.items() if key != "run.seed"}
                alike.setdefault((str(settings), point.ranks, point.run.get("options", "")), point)
            for point in alike.values():
                command = [SWITCHYARD, *point.command.split(), *point.arguments("runs/r"),
                           *shlex.split(point.run.get("options", "")), "--print-config", "--ranks",
                           str(point.ranks)]
                with self.subTest(study=file.name, point=point.describe()):
                    code, output = run(command, self.folder, timeout=60)
                    self.assertEqual(code, DONE, output)

    def test_points_with_a_machine_file_get_their_prediction(self):
        study = tiny_study()
        study.update(repetitions=1)
        study["settings"]["machine"] = "machine_{ranks}.yaml"
        study["settings"]["ranks"] = 1
        self.write(study)
        self.assertIn("no machine is described in machine_1.yaml",
                      self.study())
        # A program that answers `plan` and leaves everything else to the real one.
        (self.folder / "machine_1.yaml").write_text("")
        program = self.folder / "program"
        program.write_text(f"""#!/bin/sh
[ "$1" = plan ] || exec {SWITCHYARD} "$@"
case "$*" in *--machine\\ machine_1.yaml*--ranks\\ 1*--json*)
  echo '{{"step_ms": 12345.5, "tokens_per_s": 10, "exchange_share": 0.5}}' ;; esac
""")
        program.chmod(0o755)

        self.study("--report", "--program", "./program")

        self.assertIn("12,345.5", (self.out / "report.html").read_text())

    def test_a_machine_that_is_measured_is_described_once_before_its_first_point(self):
        study = tiny_study()
        study.update(repetitions=1)
        study["settings"]["machine"] = "measured"
        self.write(study)
        # A program that notes when it describes the machine, predicts half a second for BigMac and
        # two for its twin, and leaves everything else to the real one.
        rest = '"tokens_per_s": 10, "exchange_share": 0.5'
        program = self.folder / "program"
        program.write_text(f"""#!/bin/sh
case "$*" in
calibrate\\ --out*) ls runs/studies/tiny/runs >> calibrated 2>&1; echo machine > "$3" ;;
plan\\ *=bigmac*--machine\\ runs/studies/tiny/machines/ranks_1.yaml\\ *) echo '{{"step_ms": 500, {rest}}}' ;;
plan\\ *--machine\\ runs/studies/tiny/machines/ranks_1.yaml\\ *) echo '{{"step_ms": 2000, {rest}}}' ;;
*) exec {SWITCHYARD} "$@" ;; esac
""")
        program.chmod(0o755)

        self.study("--program", "./program")

        noted = (self.folder / "calibrated").read_text().splitlines()
        self.assertEqual(len(noted), 1, noted)
        self.assertIn("cannot access", noted[0])
        self.assertEqual((self.out / "machines" / "ranks_1.yaml").read_text(), "machine\n")
        errors = sorted(abs((500 if result["labels"]["structure"] == "bigmac" else 2000) /
                            result["figures"]["step_ms"] - 1) for result in self.results())
        said = (f"Predicted step times of 2 points: median error {50 * sum(errors):.1f} %, "
                f"greatest {100 * errors[1]:.1f} %")
        self.assertTrue(said in (self.out / "report.html").read_text(), said)

    def test_a_machine_that_cannot_be_described_ends_the_study(self):
        study = tiny_study()
        study["settings"]["machine"] = "measured"
        self.write(study)
        program = self.folder / "program"
        program.write_text("#!/bin/sh\necho 'switchyard: no clock'; exit 1\n")
        program.chmod(0o755)

        output = self.study("--program", "./program", code=FAILED)

        self.assertIn("did not describe the machine: switchyard: no clock", output)
        self.assertEqual(self.results(), [])


@unittest.skipIf(links_test.why_not(), links_test.why_not())
class Links(StudyTest):
    def test_points_with_a_rate_run_between_hosts_which_are_gone_afterwards(self):
        study = tiny_study()
        study.update(repetitions=1)
        study["settings"].update({"hosts": 2, "parallel.ep": 2})
        study["parts"]["twins"]["axes"] = {"structure": {"bigmac": BIGMAC},
                                           "rate": ["500mbit", "1gbit"]}
        study["parts"]["twins"].pop("show")
        self.write(study)

        self.study()

        results = self.results()
        self.assertEqual([(result["ranks"], result["rate"]) for result in results],
                         [(2, "500mbit"), (2, "1gbit")])
        self.assertIn("up --hosts 2 --ranks-per-host 1 --rate 500mbit", results[0]["command"])
        self.assertGreater(results[0]["figures"]["exchange_bytes"], 0)
        self.assertEqual(list(pathlib.Path("/run/netns").glob("switchyard-study*")), [])


class BrokenStudies(StudyTest):
    def test_each_fault_is_named_with_its_place(self):
        axes = {"axes": {"structure": {"fine_grained": TWIN, "bigmac": BIGMAC}}}
        speedup = {"figure": "speedup", "axis": "structure", "from": "fine_grained", "to": "bigmac",
                   "by": "structure"}
        part = lambda **more: {"parts": {"twins": {**axes, **more}}}  # noqa: E731
        for change, said in [
                ({"title": None}, "tiny.yaml: title must be text"),
                ({"titel": "x"}, "titel is not known here; it may be"),
                ({"config": "nowhere.yaml"},
                 "nowhere.yaml does not exist; config: names an experiment file"),
                ({"command": "eval"}, "command is eval; it may be train or bench inference"),
                ({"measure": "heat"}, "measure is heat; it may be speed or loss"),
                ({"repetitions": 0}, "repetitions is 0; it must be at least 1"),
                ({"settings": {"ranks": "two"}}, "ranks is two; it is a whole number, at least 1"),
                ({"settings": {"run.dir": "x"}}, "run.dir is chosen by the study"),
                ({"settings": {"hidden": 3}}, "hidden is neither a key of the program"),
                ({"settings": {"rate": "fast", "hosts": 2}},
                 "rate is fast; it is a whole number and kbit"),
                ({"settings": {"rate": "1mbit"}},
                 "rate is that of links between hosts; give hosts, too"),
                ({"settings": {"hosts": 2}}, "give their rate, too"),
                ({"settings": {"rate": "1mbit", "hosts": 2, "ranks": 3}},
                 "2 hosts of 1 ranks each are 2 ranks, not 3"),
                ({"settings": {"machine": "{speed}"}}, "machine may hold the names"),
                ({"settings": {"model.latent": "= model.hidden / 3"}},
                 "'= model.hidden / 3' must be"),
                ({"prepare": {"x": "make x"}},
                 "prepare: x needs a list of the commands that make it"),
                ({"prepare": {"x": ["false"]}}, "false ended with exit code 1"),
                ({"prepare": {"x": ["true"]}}, "its commands did not make x"),
                ({"parts": {}}, "parts is empty"),
                ({"parts": {"twins": {}}}, "part twins: axes is missing"),
                ({"parts": {"twins": {"axes": {"model.hidden": []}}}},
                 "axis model.hidden has no values"),
                ({"parts": {"twins": {"axes": {"model.hidden": 3}}}},
                 "give a list of the key's values"),
                ({"parts": {"twins": {"axes": {"model.hidden": [8, 8]}}}}, "a value stands twice"),
                (part(show=[{"figure": "cake"}]),
                 "show, 1: figure must be one of efficiency, speedup"),
                (part(show=[{**speedup, "figure": "exchange_share"}]),
                 "from is not known here"),
                (part(show=[{"figure": "exchange_share", "axis": "structure", "by": "structure"}]),
                 "axis must be that of top_k"),
                (part(show=[{**speedup, "to": "dense"}]),
                 "to must be a value of its axis: fine_grained, bigmac"),
                (part(show=[{**speedup, "by": "rate"}]),
                 "by must be an axis of the part: structure")]:
            with self.subTest(said):
                self.write({**tiny_study(), **change})

                output = self.study(code=FAILED)

                self.assertTrue(output.startswith("study: ") or "\nstudy: " in output, output)
                self.assertIn(said, output)
                self.assertNotIn("Traceback", output)
                self.assertEqual(self.results(), [])

    def test_files_that_are_no_study(self):
        for text, said in [("title: [", "line 1 is no YAML"),
                           ("- a list", "is no study: it has no keys"),
                           ("title: a\ntitle: b", "line 2 is no YAML: the key title stands twice")]:
            with self.subTest(said):
                (self.folder / "tiny.yaml").write_text(text)
                self.assertIn(said, self.study(code=FAILED))
        (self.folder / "tiny.yaml").unlink()
        self.assertIn("tiny.yaml does not exist; ready studies are in configs/studies",
                      self.study(code=FAILED))

    def test_a_program_that_is_not_built(self):
        self.write(tiny_study())
        self.assertIn("nothing/here does not exist; build it",
                      self.study("--program", "nothing/here", code=FAILED))


SLURM = {
    # Job 70 waits; what is submitted gets the numbers behind it.
    "sbatch":
    'n=$(($(cat slurm.log 2>/dev/null | wc -l) + 70)); echo "$2" >>slurm.log; echo "$n;cluster"',
    "squeue": """[ ! -e broken ] || { echo "slurm_load_jobs error: Unable to
contact slurm controller" >&2; exit 1; }
cat waiting 2>/dev/null""",
    "scontrol": 'echo "$@" >>requeued',
}


class Slurm(StudyTest):
    def setUp(self):
        super().setUp()
        (self.folder / "bin").mkdir()
        for name, text in SLURM.items():
            path = self.folder / "bin" / name
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)
        self.environment = environment(PATH=f"{self.folder / 'bin'}:{os.environ['PATH']}",
                                       SLURM_JOB_ID="70")

    def submitted(self):
        return (self.folder / "slurm.log").read_text().splitlines()

    def test_a_job_per_run_and_none_twice(self):
        study = tiny_study()
        study.update(repetitions=1, slurm={"time": "00:10:00", "partition": "cpu"})
        self.write(study)

        output = self.study("--slurm", env=self.environment)
        (self.folder / "waiting").write_text("70\n")
        self.study("--slurm", env=self.environment)

        self.assertIn("job 70: fine_grained", output)
        scripts = self.submitted()
        self.assertEqual(len(scripts), 3)  # the second one no longer waits, and left no result
        self.assertEqual(scripts[1], scripts[2])
        text = (self.folder / scripts[0]).read_text()
        for line in ("--time=00:10:00", "--partition=cpu", "--ntasks=1", "--signal=B:USR1@120",
                     "--requeue"):
            self.assertIn(f"#SBATCH {line}\n", text)
        for script in scripts[:2]:
            self.assertEqual(
                run(["bash", script], self.folder, timeout=60, env=self.environment)[0], DONE)
        self.assertEqual(self.runs(), [("fine_grained", 1), ("bigmac", 1)])
        self.assertFalse((self.folder / "requeued").exists())

    def test_nothing_is_submitted_while_slurm_does_not_say_what_waits(self):
        self.write(tiny_study())
        self.study("--slurm", env=self.environment)
        before = self.submitted()
        (self.folder / "broken").touch()

        output = self.study("--slurm", env=self.environment, code=FAILED)

        self.assertEqual(self.submitted(), before)
        self.assertIn("study: squeue does not say which jobs wait (slurm_load_jobs error: Unable "
                      "to contact slurm controller), so nothing is submitted", output)
        self.assertIn("try again when Slurm answers", output)

    def test_a_torn_list_of_jobs_is_named(self):
        self.write(tiny_study())
        self.study("--slurm", env=self.environment)
        file = self.out / "slurm" / "jobs.json"
        whole = file.read_text()
        for content, said in [(whole[:20], "jobs.json is torn or is no JSON"),
                              ("[]", "jobs.json holds no JSON object"),
                              ('{"x:1": [70]}', "jobs.json has a job that is no text")]:
            with self.subTest(said):
                file.write_text(content)
                output = self.study("--slurm", env=self.environment, code=FAILED)
                self.assertNotIn("Traceback", output)
                self.assertIn(said, output)
                self.assertIn("when squeue shows none of this study, remove the file", output)
        self.assertEqual(len(self.submitted()), 4)

    def test_jobs_are_noted_one_by_one(self):
        self.write(tiny_study())
        # Whoever ends the script after the second job finds both noted.
        sbatch = self.folder / "bin" / "sbatch"
        sbatch.write_text(sbatch.read_text() + 'if [ "$n" = 72 ]; then kill -9 $PPID; fi\n')

        run(self.command("--slurm"), self.folder, timeout=60, env=self.environment)

        jobs = json.loads((self.out / "slurm" / "jobs.json").read_text())
        self.assertEqual(list(jobs.values()), ["70", "71"])

    def test_values_may_hold_what_sbatch_would_cut(self):
        study = tiny_study()
        study.update(repetitions=1, slurm={"comment": "it's #1, \\o/ \"all\"", "time": "00:10:00"})
        self.write(study)
        folder = "my studies #1/100%j's"

        self.study("--slurm", "--out", folder, env=self.environment)

        script = self.submitted()[0]
        self.assertTrue(script.startswith(f"{folder}/slurm/"), script)
        # sbatch reads words as a shell does, comments included.
        lines = [shlex.split(line.removeprefix("#SBATCH "), comments=True)
                 for line in (self.folder / script).read_text().splitlines()
                 if line.startswith("#SBATCH ")]
        self.assertEqual([line[1:] for line in lines], [[]] * len(lines))
        words = [line[0] for line in lines]
        log = script.removesuffix(".sh").replace("%", "%%") + ".log"
        for word in (f"--output={log}", "--comment=it's #1, \\o/ \"all\"", "--time=00:10:00",
                     "--signal=B:USR1@120", "--requeue", "--ntasks=1"):
            self.assertIn(word, words)

    def test_a_job_whose_time_is_up_saves_and_is_queued_again(self):
        study = tiny_study()
        study.update(measure="loss", repetitions=1)
        study["settings"].update({"train.max_steps": 100000})
        study["parts"]["twins"].pop("show")
        self.write(study)
        self.study("--slurm", env=self.environment)
        job = start(["bash", self.submitted()[0]], self.folder, env=self.environment)
        self.wait_for(job, self.has_trained)

        job.send_signal(signal.SIGUSR1)

        self.assertEqual(job.wait(timeout=patience(60)), STOPPED)
        self.assertEqual((self.folder / "requeued").read_text(), "requeue 70\n")
        self.assertTrue(any(self.out.glob("runs/*/checkpoints/step_*")))

    def test_links_exist_only_here(self):
        study = tiny_study()
        study["settings"].update(hosts=2, rate="1mbit")
        self.write(study)
        self.assertIn("has links of a given rate, which exist only on one machine",
                      self.study("--slurm", env=self.environment, code=FAILED))

    def test_no_slurm(self):
        self.write(tiny_study())
        self.assertIn("sbatch is not installed here", self.study("--slurm", code=FAILED))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
