#!/usr/bin/python3
"""Runs the points of a study file, and reports on them: tables, pictures, and each one's command.

  scripts/study.py configs/studies/bigmac_links.yaml --dry-run      # lists the points
  scripts/study.py configs/studies/bigmac_links.yaml                # runs what has no result yet
  scripts/study.py configs/studies/strong.yaml --slurm              # submits it as Slurm jobs

Results stand in runs/studies/NAME: results.jsonl has a line per run, report.html everything. A
study that was interrupted goes on where it stopped. Repetitions of all points are run by turns, so
that a machine that grows slower does so for all of them. docs/scaling.md describes study files.
"""

import argparse
import collections
import contextlib
import fcntl
import os
import pathlib
import shlex
import signal
import statistics
import sys
import time

import endings
from endings import Unusable

try:
    import study_file
    import study_runs
    import study_slurm
except ImportError as missing:
    endings.without(missing)


def load_report():
    """The module that draws. It is loaded before the first run, which may be hours before it is
    needed, and not before the study has been read, because it takes a second."""
    try:
        import study_report  # noqa: PLC0415
    except ImportError as missing:
        endings.without(missing)
    return study_report


@contextlib.contextmanager
def owned(folder):
    """Makes the study's folder and keeps others from it; the lock ends with the process, too."""
    endings.make_folder(folder)
    study_runs.refuse_foreign_files(folder)
    with open(folder / ".lock", "a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Unusable(f"another study runs in {folder}; wait for it, or name another folder "
                           "with --out") from error
        yield


def prepare(study, program):
    """Makes the files that a study needs and that are not there."""
    for file, commands in study.prepare.items():
        if pathlib.Path(file).exists():
            continue
        print(f"making {file}", flush=True)
        for command in commands:
            words = shlex.split(command)
            study_runs.call(
                [str(program) if words[0] == "build/switchyard" else words[0], *words[1:]])
        if not pathlib.Path(file).exists():
            raise Unusable(f"{study.path}: prepare: its commands did not make {file}")


def remaining_runs(study, done):
    """Runs without result: all points once, then all once again; each time in the study's order."""
    return [(point, repetition) for repetition in range(1, study.repetitions + 1)
            for point in study.points() if (point.id, repetition) not in done]


def at_once(study):
    """How many runs may go on together: one, where time is measured or links are shared; else what
    fits the cores."""
    points = study.points()
    if study.measure == "speed" or any("rate" in point.run for point in points):
        return 1
    most = max(point.ranks for point in points) * study.threads
    return max(1, len(os.sched_getaffinity(0)) // most)


def clock(seconds):
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


class Progress:
    """Says how each run went, and how long the rest will take: each point as long as its last run,
    and one that has not run yet as long as the others on average, which is said, because larger
    models often come last."""

    def __init__(self, study, done, total, together):
        self.study, self.total, self.together = study, total, together
        self.seconds = collections.defaultdict(list)
        known = {point.id for point in study.points()}
        for (point, _), result in done.items():
            if point in known:
                self.seconds[point].append(result["seconds"])
        self.ended = 0

    def time_left(self, rest):
        if not self.seconds:
            return ""
        known = {point: values[-1] for point, values in self.seconds.items()}
        mean = statistics.mean(known.values())
        left = clock(sum(known.get(point.id, mean) for point, _ in rest) / self.together) + " left"
        new = any(point.id not in known for point, _ in rest)
        return left + (", if new points take as long as those before" if new else "")

    def say(self, result, point, rest):
        self.ended += 1
        self.seconds[point.id].append(result["seconds"])
        if "error" in result:
            said = f"failed: {result['error']}"
        elif self.study.measure == "loss":
            said = f"loss {result['figures']['losses'][-1][1]:.4f}"
        else:
            said = study_runs.headline(point, result["figures"])
        left = self.time_left(rest) if rest else "done"
        print(f"[{self.ended}/{self.total}] {point.describe()}, repetition {result['repetition']}: "
              f"{said} ({left})", flush=True)


class Stop:
    """Whether the study has been asked to stop, by a signal or by the clock."""

    def __init__(self, minutes):
        self.deadline = time.monotonic() + 60 * minutes if minutes else None
        self.asked = 0
        for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(kind, self.ask)

    def ask(self, *_):
        self.asked += 1

    def now(self):
        return bool(self.asked) or (self.deadline is not None and time.monotonic() >= self.deadline)


def wait_for_one(running, stop, measure):
    """Returns a run that has ended. When the study is to stop, a training that can go on later
    saves and ends; a measurement is ended at once by a signal, and completed if only the time is
    up."""
    told = set()
    while True:
        for started in running:
            if started.process.poll() is not None:
                return started
            if stop.asked > 1:
                started.signal(signal.SIGKILL)
            elif stop.now() and started not in told:
                told.add(started)
                if measure == "loss":
                    started.signal(signal.SIGUSR1)
                elif stop.asked:
                    started.signal(signal.SIGTERM)
        time.sleep(0.02)


def calibrate(runner, point, lab, stop):
    """Describes the machine that a point runs on, as the program is started there. False if the
    study is to stop before that is done."""
    for file, command in runner.calibrations(point):
        print(f"making {file}", flush=True)
        started = wait_for_one([runner.start_calibration(point, file, command, lab)], stop,
                               runner.study.measure)
        if started.process.returncode != 0 and stop.asked:
            return False
        if not file.exists():
            raise Unusable(f"{shlex.join(command)} did not describe the machine: "
                           f"{study_runs.last_line(started.folder / 'output.txt')}")
    return True


def run_all(runner, rest, stop, progress, together):
    """Returns the number of points that failed, and whether the others' runs have all ended."""
    lab = study_runs.Lab()
    running, rest, failures = [], collections.deque(rest), 0
    try:
        while running or (rest and not stop.now()):
            while rest and len(running) < together and not stop.now():
                point, repetition = rest[0]
                lab.prepare(point.run)
                if runner.wants_calibration(point) and not calibrate(runner, point, lab, stop):
                    break
                rest.popleft()
                running.append(runner.start(point, repetition, lab))
            if not running:
                continue
            started = wait_for_one(running, stop, runner.study.measure)
            running.remove(started)
            code = started.process.returncode
            if code == study_runs.STOPPED or (stop.asked and code != 0):
                rest.appendleft((started.point, started.repetition))
                continue
            result = runner.finish(started)
            if "error" in result:  # its other repetitions would fail, too
                failures += 1
                rest = collections.deque(run for run in rest if run[0] is not started.point)
            waiting = [(one.point, one.repetition) for one in running] + list(rest)
            progress.say(result, started.point, waiting)
    finally:
        for started in running:
            started.signal(signal.SIGKILL)
            started.process.wait()
        lab.down()
    return failures, not rest


def list_points(study, runner, done):
    for part in study.parts:
        print(f"{part.name}: {len(part.points)} points, {study.repetitions} repetitions")
        for labels, point in part.labelled():
            count = sum(
                (point.id, repetition) in done for repetition in range(1, study.repetitions + 1))
            print(
                f"  {study_file.describe(labels)}: {point.ranks} ranks, "
                f"{count} of {study.repetitions} done"
            )
            print(f"    {runner.shown_command(point, 1)}")
    rest = remaining_runs(study, done)
    left = Progress(study, done, len(rest), at_once(study)).time_left(rest)
    print(f"{len(rest)} runs to do" + (f", {left}" if left else ""))


def notice_changes(study, results):
    """Says so if results.jsonl has points that the study, as it is now, does not have."""
    known = {point.id for point in study.points()}
    strange = {point for point, _ in results if point not in known}
    if strange:
        print(
            f"study: {study.path} or its configuration has changed: the results of "
            f"{len(strange)} points "
            "in results.jsonl belong to none of its points now, and do not count",
            file=sys.stderr)


def run_one(study, runner, name):
    """What a Slurm job does: one run, given as POINT:REPETITION."""
    point_id, _, repetition = name.partition(":")
    points = {point.id: point for point in study.points()}
    if point_id not in points or not repetition.isdigit():
        raise Unusable(
            f"{study.path} has no run {name}; it has changed since the job was submitted")
    return [(points[point_id], int(repetition))]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=pathlib.Path, help="study file")
    parser.add_argument("--out", type=pathlib.Path, help="folder; default: runs/studies/NAME")
    parser.add_argument("--dry-run", action="store_true", help="list the points, and end")
    parser.add_argument("--report", action="store_true", help="write the report anew, and end")
    parser.add_argument("--slurm",
                        action="store_true",
                        help="submit what has no result as Slurm jobs")
    parser.add_argument("--run",
                        metavar="POINT:REPETITION",
                        help="one run alone, as a Slurm job does")
    parser.add_argument("--stop-after", type=endings.positive_number, metavar="MINUTES",
                        help="begin no run later; trainings save and stop; start again to go on")
    parser.add_argument("--program", type=pathlib.Path, default=pathlib.Path("build/switchyard"))
    return parser.parse_args()


def refuse_hidden_setting(study):
    """What decides a result must be named in the study, and so in the command of its report."""
    if study_runs.BACKGROUND in os.environ and any("background" not in point.run
                                                   for point in study.points()):
        raise Unusable(f"{study_runs.BACKGROUND} is set and would decide results without being "
                       f"named in them: unset it, or write background: true or false into the "
                       f"settings of {study.path}")


def run_here(study, runner, rest, stop_after):
    """Runs what is to do; returns why the study is not complete, as an exit code and a sentence."""
    progress = Progress(study, runner.results.read()[0], len(rest), at_once(study))
    failures, complete = run_all(runner, rest, Stop(stop_after), progress, at_once(study))
    if not complete:
        return study_runs.STOPPED, "stopped; start the same command again to go on"
    if failures:
        return 1, (
            f"{failures} points failed; {runner.results.file} says why, and the same command tries "
            "them again")
    return 0, ""


def main():
    arguments = parse_arguments()
    study = study_file.read_study(arguments.study)
    folder = arguments.out or pathlib.Path("runs/studies") / study.path.stem
    if not arguments.program.exists():
        raise Unusable(f"{arguments.program} does not exist; build it, or name it with --program")
    runner = study_runs.Runner(study, folder, arguments.program,
                               scheduled=bool(arguments.run or arguments.slurm))
    done, _ = runner.results.read()
    if arguments.dry_run:
        list_points(study, runner, done)
        return
    notice_changes(study, done)
    report = None if arguments.run or arguments.slurm else load_report()
    if arguments.report:
        if not done:
            raise Unusable(f"{runner.results.file} holds no results of this study; run it first")
        print(report.write(study, runner, folder))
        return
    # The jobs of a scheduler share the folder.
    refuse_hidden_setting(study)
    with contextlib.nullcontext() if arguments.run else owned(folder):
        prepare(study, runner.program)
        rest = remaining_runs(study, done)
        if arguments.slurm:
            study_slurm.submit(study, folder, runner.program, rest)
            return
        if arguments.run:
            rest = [run for run in run_one(study, runner, arguments.run) if run in rest]
        code, sentence = run_here(study, runner, rest, arguments.stop_after)
    if not arguments.run:
        print(report.write(study, runner, folder))
    if sentence:
        print(f"study: {sentence}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    endings.run(main)
