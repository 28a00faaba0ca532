"""Runs of a study's points: their commands, their results, and where the study goes on."""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import shlex
import shutil
import signal
import statistics
import subprocess
import time

from endings import Unusable, number

LAB = pathlib.Path(os.path.relpath(pathlib.Path(__file__).with_name("link_lab.sh")))
STOPPED = 75  # the program's exit code when it has saved and can go on
BACKGROUND = "SWITCHYARD_BACKGROUND"
MEASURED = "measured"  # a machine that the study describes itself, by `switchyard calibrate`
REPORT_MARK = "<p>Made by <code>scripts/study.py "  # stands in every report
SPEED_FIGURES = [
    "step_ms", "tokens_per_s", "forward_ms", "backward_ms", "exchange_ms", "optimizer_ms",
    "data_ms", "mfu", "exchange_bytes", "max_load_ratio", "peak_memory_bytes"
]


class Results:
    """results.jsonl: a line per run that has ended, well or not. Several processes may append."""

    def __init__(self, folder):
        self.file = folder / "results.jsonl"

    def read(self):
        """(point id, repetition) -> the newest whole result; and the same of failures that no
        result has replaced. Skips what is no whole line."""
        done, failed = {}, {}
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        for line in lines:
            try:
                result = json.loads(line)
                key = (result["point"], result["repetition"])
            except (ValueError, TypeError, KeyError):
                continue
            if "figures" in result:
                done[key] = result
                failed.pop(key, None)
            elif key not in done:
                failed[key] = result
        return done, failed

    def append(self, result):
        with open(self.file, "a+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            file.seek(0, os.SEEK_END)
            torn = file.tell() > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
            file.write((b"\n" if torn else b"") + json.dumps(result).encode() + b"\n")


def refuse_foreign_files(folder):
    """A study appends to its results and replaces its report, and no other file of their names."""
    remedy = "name another folder with --out, or move the file away"
    results, report = Results(folder), folder / "report.html"
    if results.file.exists() and results.file.stat().st_size > 0 and not any(results.read()):
        raise Unusable(f"{results.file} holds no results of a study; {remedy}")
    if report.exists() and REPORT_MARK not in report.read_text(encoding="utf-8", errors="replace"):
        raise Unusable(f"{report} is no report of a study; {remedy}")


class Lab:
    """Brings up the links that a point asks for, and takes them down when another wants others."""

    def __init__(self):
        self.links = None
        self.environment = {**os.environ, "SWITCHYARD_LINK_LAB": f"study{os.getpid()}"}

    @staticmethod
    def up_command(run):
        words = [LAB, "up", "--hosts", run["hosts"], "--ranks-per-host", run["ranks_per_host"],
                 "--rate", run["rate"]]
        return list(map(str, words + (["--latency", run["latency"]] if "latency" in run else [])))

    def prepare(self, run):
        wanted = self.up_command(run) if "rate" in run else None
        if wanted == self.links:
            return
        self.down()
        if wanted:
            call(wanted, self.environment)
            self.links = wanted

    def down(self):
        """The daemons of a run may live a moment longer than its mpirun."""
        deadline = time.monotonic() + 10
        while self.links:
            try:
                call([str(LAB), "down"], self.environment)
                self.links = None
            except Unusable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


def call(command, environment=None):
    """Runs a command that has to succeed. Throws Unusable with what it said last."""
    done = subprocess.run(command,
                          env=environment,
                          capture_output=True,
                          text=True,
                          errors="replace",
                          check=False)
    if done.returncode != 0:
        said = (done.stderr + done.stdout).strip().splitlines() or ["nothing"]
        raise Unusable(
            f"{shlex.join(command)} ended with exit code {done.returncode}, and said: {said[-1]}")
    return done.stdout


def last_line(file):
    """What a failed run said: the last line of the program itself, or the last one of mpirun."""
    lines = [line for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
             if line.strip(" -")]
    own = [line for line in lines if line.startswith("switchyard: ")]
    return (own or lines or ["it said nothing"])[-1]


class Runner:
    """Starts runs of points in their folders, and takes their figures."""

    def __init__(self, study, folder, program, scheduled=False):
        self.study, self.folder = study, folder
        self.program = program if len(program.parts) > 1 else program.absolute()  # not one of PATH
        self.scheduled = scheduled  # a scheduler has given this job its ranks
        self.results = Results(folder)

    def run_folder(self, point, repetition):
        return self.folder / "runs" / f"{point.name}.{repetition}"

    def program_command(self, point, run_folder):
        command = [str(self.program), *point.command.split(), *point.arguments(run_folder)]
        if point.command == "train":
            return command
        return [*command, *shlex.split(point.run.get("options", "")), "--json",
                str(run_folder / "bench.json")]

    def machine_file(self, point):
        """The description by which a point's time is predicted; None without one."""
        machine = point.run.get("machine")
        if machine != MEASURED:
            return pathlib.Path(machine) if machine else None
        links = ["hosts", "ranks_per_host", "rate", "latency", "background"]
        name = "_".join([f"ranks_{point.ranks}"] +
                        [f"{key}_{point.run[key]}" for key in links if key in point.run])
        return self.folder / "machines" / f"{name}.yaml"

    def wants_calibration(self, point):
        """Only step times are predicted."""
        return (point.run.get("machine") == MEASURED and point.command == "train" and
                self.study.measure == "speed" and not self.machine_file(point).exists())

    def command(self, point, repetition):
        return self.started_as(point,
                               self.program_command(point, self.run_folder(point, repetition)))

    def calibrations(self, point):
        """The files that describe a point's machine and are not there yet, each with the command
        that makes it. What ranks compute does not depend on their links, so it is measured once."""
        def made_by(file, *options):
            return [str(self.program), "calibrate", "--out", str(file), *map(str, options)]

        file = self.machine_file(point)
        compute = self.folder / "machines" / f"ranks_{point.ranks}.yaml"
        if file == compute:
            return [(file, self.started_as(point, made_by(file)))]
        files = [(file, self.started_as(point, made_by(file, "--compute", compute)))]
        if not compute.exists():
            files.insert(0, (compute, self.started_here(point, made_by(compute))))
        return files

    def started_as(self, point, program):
        """The command that starts `program` on a point's ranks."""
        if "rate" in point.run:
            return [str(LAB), "run", "--", *program]
        return self.started_here(point, program)

    def started_here(self, point, program):
        if self.scheduled:
            return ["mpirun", "-n", str(point.ranks), *program]
        if point.ranks == 1:
            return program
        # More ranks than cores: a rank that waits lets others work.
        return ["mpirun", "-n", str(point.ranks), "--oversubscribe", "--bind-to", "none", "--mca",
                "mpi_yield_when_idle", "1", *program]

    def environment(self, point):
        more = {"OMP_NUM_THREADS": str(self.study.threads)}
        if "background" in point.run:
            more[BACKGROUND] = str(int(point.run["background"]))
        if os.geteuid() == 0:  # Open MPI runs as root only if both are set
            more.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        return more

    def shown_command(self, point, repetition):
        """As a person would repeat it in a shell."""
        environment = [f"{key}={value}" for key, value in self.environment(point).items()]
        command = shlex.join(environment + self.command(point, repetition))
        if "rate" not in point.run:
            return command
        return f"{shlex.join(Lab.up_command(point.run))} && {command}; {LAB} down"

    def start(self, point, repetition, lab):
        """Starts a run in a process group of its own, so that only the study receives Ctrl-C."""
        folder = self.run_folder(point, repetition)
        if self.study.measure == "speed":
            shutil.rmtree(folder, ignore_errors=True)  # half a run is no measurement
        return Started(point, repetition, folder,
                       self.spawn(point, self.command(point, repetition), folder, lab))

    def start_calibration(self, point, file, command, lab):
        folder = file.with_suffix("")
        shutil.rmtree(folder, ignore_errors=True)
        return Started(point, 0, folder, self.spawn(point, command, folder, lab))

    def spawn(self, point, command, folder, lab):
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "output.txt", "a", encoding="utf-8") as output:
            return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT,
                                    stdin=subprocess.DEVNULL, process_group=0,
                                    env={**lab.environment, **self.environment(point)})

    def finish(self, started):
        """Appends the result of a run that has ended, and returns it."""
        code = started.process.returncode
        point, repetition = started.point, started.repetition
        result = {"point": point.id, "repetition": repetition, "labels": point.labels,
                  "ranks": point.ranks, **point.run,
                  "command": self.shown_command(point, repetition), "began": started.began,
                  "seconds": round(time.monotonic() - started.clock, 3), "load": started.load}
        try:
            if code != 0:
                raise Unusable(last_line(started.folder / "output.txt"))
            result["figures"] = figures_of(self.study, point, started.folder)
            # The figures are taken; checkpoints of many runs would fill the disk.
            shutil.rmtree(started.folder / "checkpoints", ignore_errors=True)
        except Unusable as error:
            result.update(exit_code=code, error=str(error))
        self.results.append(result)
        return result


class Started:
    """A run that goes on."""

    def __init__(self, point, repetition, folder, process):
        self.point, self.repetition, self.folder, self.process = point, repetition, folder, process
        self.clock = time.monotonic()
        self.began = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self.load = round(os.getloadavg()[0], 2)  # of the machine, before the run

    def signal(self, kind):
        with contextlib.suppress(ProcessLookupError):
            if kind == signal.SIGKILL:  # mpirun would leave its ranks
                os.killpg(self.process.pid, kind)
            else:
                self.process.send_signal(kind)


def headline(point, figures):
    """A run's figures in a few words."""
    if point.command == "train":
        return f"{figures['step_ms']:,.0f} ms a step, {figures['tokens_per_s']:,.0f} tokens/s"
    return f"prefill {figures['prefill_ms']:,.1f} ms, a later token {figures['token_ms']:,.1f} ms"


def figures_of(study, point, folder):
    """The figures of a run that has ended well. Throws Unusable if they are not there."""
    if point.command != "train":
        with contextlib.suppress(OSError, ValueError):
            return json.loads((folder / "bench.json").read_text(encoding="utf-8"))
        raise Unusable("the benchmark has left no figures")
    records = []
    with contextlib.suppress(OSError):
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
    timed = records[point.warmup_steps:]
    if not timed:
        raise Unusable(f"the run has {len(records)} steps, and warmup_steps leaves out "
                       f"{point.warmup_steps}; give it more by train.max_steps")
    figures = {key: statistics.median(number(record.get(key)) for record in timed)
               for key in SPEED_FIGURES}
    figures["exchange_share"] = statistics.median(record["exchange_ms"] / record["step_ms"]
                                                  for record in timed)
    figures["steps"] = len(records)
    if study.measure == "loss":
        evaluated = [record for record in records if "val_loss" in record]
        if not evaluated:
            raise Unusable("the run has measured no held-out loss; set train.eval_interval")
        for record in evaluated:
            if record["val_loss"] is None:
                raise Unusable(f"the held-out loss after step {record['step']} is not finite")
        figures["losses"] = [[record["tokens"], record["val_loss"]] for record in evaluated]
    return figures
