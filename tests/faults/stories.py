"""A story is one run from its first start to its end, with some faults on the way."""

import collections
import contextlib
import os
import random
import re
import shutil
import subprocess
import time

import kinds
from jobs import SECONDS_TO_END, Job
from workplace import (STEPS, checkpoints_of, difference, identity, leftovers_of, metrics_of,
                       step_of, verify)

# Nothing that a run can meet may end like this, whatever the fault.
NONSENSE = re.compile(r"document_start|Segmentation fault|Bus error|Floating point exception|"
                      r"signal 11|signal 6\b|signal 7\b|signal 8\b|terminate called|free\(\): |"
                      r"malloc\(\): |double free|AddressSanitizer|ThreadSanitizer|runtime error:|"
                      r"Assertion .* failed")


class Tally:
    """What happened, per kind of fault."""

    COLUMNS = ["injected", "survived", "fell back", "said by error", "ended by it", "hangs",
               "bits lost", "other problems"]

    def __init__(self):
        self.kinds = collections.defaultdict(collections.Counter)
        self.problems = []
        self.not_struck = self.starts = self.stories = 0

    def add(self, kind, outcome):
        self.kinds[kind]["injected"] += 1
        self.kinds[kind][outcome] += 1

    def total(self, column):
        return sum(counts[column] for counts in self.kinds.values())


class Story:
    """A training."""

    def __init__(self, workplace, tally, seed, index, most_faults=6):
        self.workplace, self.tally, self.index = workplace, tally, index
        self.rng = random.Random(f"{seed}/{index}")
        self.layout = self.pick_layout()
        self.lineages = {}  # of the checkpoints, by step
        self.planned = self.rng.randint(1, most_faults)
        self.folder = workplace.folder(workplace.root / f"story_{index}")
        self.run = self.folder / "run"
        self.starts, self.problems, self.kinds = [], [], []
        self.damaged, self.verified = set(), set()  # identities of checkpoints
        self.may_lack, self.as_damaged = set(), {}
        self.lost_log_lines = False
        self.prepare()

    def prepare(self):
        pass

    def pick_layout(self):
        layouts = self.workplace.layouts
        return self.rng.choices(layouts, [4, 3, 2, 1][: len(layouts)])[0]

    def share_left(self):
        checkpoints = checkpoints_of(self.run)
        return 1 - (step_of(checkpoints[-1]) if checkpoints else 0) / STEPS

    def problem(self, category, text):
        kind = self.kinds[-1] if self.kinds else "none"
        column = {"hang": "hangs", "lost": "bits lost"}.get(category, "other problems")
        self.tally.kinds[kind][column] += 1
        self.problems.append({"category": category, "kind": kind, "text": text,
                              "start": len(self.starts)})

    def command(self):
        return self.workplace.train(self.layout)

    def choose(self):
        return kinds.choose_fault(self.rng, self)

    def signal(self):
        seconds = self.workplace.seconds[self.layout] * max(0.3, self.share_left())
        return kinds.Signal(self.rng, self.layout, seconds, in_save=True)

    def start(self, fault=None, companion=None):
        log = self.folder / f"start_{len(self.starts):02}.log"
        disturbance = fault.environment(self) if fault else {}
        job = Job(self.layout.ranks, self.command(), self.folder, log,
                  self.workplace.preload if disturbance else None, disturbance)
        if fault:
            (companion or fault).during(self, job)
        # A machine with other work may need longer for an undisturbed start.
        job.wait(max(SECONDS_TO_END, 4 * self.workplace.seconds[self.layout]))
        self.starts.append(f"{self.layout} {fault.text if fault else 'undisturbed'}: "
                           f"code {job.code} after {job.seconds:.1f} s")
        self.tally.starts += 1
        self.check_start(job, companion or fault)
        return job

    def lineage(self, output):
        """On which layouts the state came about that a start has trained, see expected_run."""
        resumed = re.search(r"resumed from step_\d+ at step (\d+)", output)
        step = int(resumed.group(1)) if resumed else 0
        before = self.lineages.get(step, ())
        if before and before[-1][0] == self.layout:
            return before
        return (*before, (self.layout, step))

    def check_start(self, job, struck):
        """`struck`: what came while the start ran, if anything."""
        if job.hung:
            self.problem("hang", f"not ended in time; stacks in {job.log.name}.stacks")
        output = job.output
        if found := NONSENSE.search(output):
            self.problem("crash", f"{found.group()!r} in {job.log.name}")
        for step in re.findall(r"step (\d+) is missing from the log", output):
            self.may_lack.update(range(int(step), STEPS + 1))
        # mpirun may end before it has started a rank, which could say why.
        silent = job.code > 0 and job.code != 75 and not output.strip()
        if silent and not job.hung and not (struck and struck.who == "mpirun"):
            self.problem("message", f"code {job.code} without a word")
        self.check_result(job, output)
        self.check_checkpoints(output)

    def check_result(self, job, output):
        final = self.run / "checkpoints" / f"step_{STEPS:08}"
        if job.code == 0 and not final.is_dir():
            self.problem("exit", "code 0 without the last checkpoint")
        # Before the first step of a start everything is saved already.
        if job.code == 75 and "by a signal before the first step" not in output:
            step = re.search(r"stopped by a signal after step (\d+)", output)
            name = f"step_{int(step.group(1)):08}" if step else None
            if name is None or not (self.run / "checkpoints" / name).is_dir():
                self.problem("exit", "code 75 without the checkpoint that it promises")

    def check_checkpoints(self, output):
        """Every new checkpoint under a final name must be whole, and that of an undisturbed run."""
        for checkpoint in checkpoints_of(self.run):
            if identity(checkpoint) in self.damaged | self.verified:
                continue
            self.verified.add(identity(checkpoint))
            lineage = self.lineages[step_of(checkpoint)] = self.lineage(output)
            if said := verify(checkpoint):
                self.damaged.add(identity(checkpoint))
                self.problem("damaged", f"{checkpoint.name} under its final name: {said}")
                continue
            expected = self.workplace.expected(lineage, step_of(checkpoint))
            if said := difference(checkpoint, expected):
                self.problem("lost", said)

    def metrics_were_damaged(self, resumes_at):
        path = self.run / "metrics.jsonl"
        lines = metrics_of(path) if path.exists() else {}
        lineage = self.lineages[resumes_at]
        intact = metrics_of(self.workplace.expected_run(lineage) / "metrics.jsonl")
        for step in range(1, resumes_at + 1):
            if lines.get(step) != intact[step]:
                # A line that cannot be read, or whose step is a later one, hides those behind it.
                self.as_damaged.update({s: lines.get(s) for s in range(step, resumes_at + 1)})
                self.may_lack.update(range(step, resumes_at + 1))
                break

    def meet(self, fault):
        """One fault. Returns whether the run has ended."""
        if not fault.before(self):
            return False
        self.kinds.append(fault.kind)
        before = len(self.problems)
        # A run that goes on after damage is disturbed again before its end.
        companion = self.signal() if fault.goes_on and self.rng.random() < 0.7 else None
        job = self.start(fault, companion)
        if not fault.struck(self, job):
            self.kinds.pop()
            self.tally.not_struck += 1
            return job.code == 0
        if fault.allowed_codes and job.code not in fault.allowed_codes and not job.hung:
            self.problem("exit", f"code {job.code}, not one of {fault.allowed_codes}: {fault.text}")
        for category, text in fault.check(self, job):
            self.problem(category, text)
        self.starts[-1] += f" [{fault.text}]"
        self.tally.add(fault.kind, self.outcome(job))
        if companion and companion.struck(self, job):
            self.tally.add(companion.kind, self.outcome(job))
            self.starts[-1] += f" [{companion.text}]"
        if len(self.problems) > before:
            self.starts[-1] += " PROBLEM"
        return job.code == 0

    @staticmethod
    def outcome(job):
        if "passed over step_" in job.output:
            return "fell back"
        if job.code in (0, 75):
            return "survived"
        return "said by error" if "switchyard: " in job.output else "ended by it"

    def maybe_change_layout(self):
        if len(self.workplace.layouts) > 1 and self.rng.random() < 0.15:
            others = [x for x in self.workplace.layouts if x != self.layout]
            self.layout = self.rng.choice(others)

    def tell(self):
        """Plays the story to its end. Returns its problems."""
        for _ in range(self.planned):
            if self.meet(self.choose()):
                break
            self.maybe_change_layout()
        self.finish()
        self.tally.stories += 1
        return self.problems

    def finish(self):
        for _ in range(2):
            job = self.start()
            if job.code == 0:
                break
            self.problem("exit", f"an undisturbed start ended with {job.code}: {job.output[-600:]}")
        else:
            return
        self.compare()
        link = self.run / "checkpoints" / "latest"
        if link.is_symlink() and link.resolve() != checkpoints_of(self.run)[-1].resolve():
            self.problem("leftover", f"latest is {link.readlink()}")
        if left := leftovers_of(self.run):
            self.problem("leftover", f"left behind: {', '.join(left)}")

    def compare(self):
        lack = self.may_lack if not self.lost_log_lines else set(range(1, STEPS + 1))
        lineage = self.lineages.get(STEPS, ((self.layout, 0),))
        said = self.workplace.compare(self.run, lineage, lack, self.as_damaged)
        if said:
            self.problem("lost", said)

    def remove(self):
        shutil.rmtree(self.folder)


class HashStory(Story):
    """The training of hash codes on a finished run."""

    def prepare(self):
        counted = self.workplace.root / f"counted_{self.workplace.reference(self.layout).name}"
        shutil.copytree(counted / "run", self.run, symlinks=True)
        self.verified = {identity(c) for c in checkpoints_of(self.run)}
        self.planned = min(self.planned, 4)
        self.seconds = self.workplace.seconds[self.layout]

    def command(self):
        return self.workplace.train_hash(self.layout)

    def choose(self):
        fault = kinds.choose_hash_fault(self.rng, self)
        fault.kind = f"hash: {fault.kind}"
        return fault

    def maybe_change_layout(self):
        pass

    def meet(self, fault):
        # train-hash keeps what it has finished, so no signal has to be waited for.
        check = fault.check
        fault.check = lambda *a: [p for p in check(*a) if p[0] != "exit"]
        during = fault.during

        def without_promise(*arguments):
            during(*arguments)
            fault.allowed_codes = None

        fault.during = without_promise
        return super().meet(fault)

    def check_result(self, job, output):
        if job.code == 0 and not (self.run / "hash" / "hash_weights.h5").exists():
            self.problem("exit", "code 0 without hash weights")

    def compare(self):
        if said := self.workplace.compare_hash(self.run, self.layout):
            if "metrics" in said and self.lost_log_lines:
                return
            self.problem("lost", said)


class NanStory(Story):
    """A NaN on one rank: all ranks skip the step and say so. Then the same run again, killed later:
    it must end with the same bytes."""

    def pick_layout(self):
        return self.rng.choice([x for x in self.workplace.layouts if x.ranks])

    def tell(self):
        fault = kinds.NanGradient(self.rng, self.workplace.sends[self.layout])
        self.kinds.append(fault.kind)
        job = self.start(fault)
        self.tally.stories += 1
        if not fault.struck(self, job):
            self.tally.not_struck += 1
            return self.problems
        self.tally.add(fault.kind, "survived" if job.code == 0 else "said by error")
        # With MPI in the background gathered weights are messages, too. Those that became NaN on
        # their way end the run before they are saved.
        in_background = os.environ.get("SWITCHYARD_BACKGROUND") == "1"
        if in_background and job.code != 0 and "NaN; nothing was saved" in job.output:
            return self.problems
        if job.code != 0:
            self.problem("exit", f"a NaN ended the run: {fault.text}: {job.output[-600:]}")
            return self.problems
        lines = metrics_of(self.run / "metrics.jsonl")
        skipped = [s for s, line in lines.items() if line["skipped"]]
        no_validation = [s for s, line in lines.items() if line.get("val_loss", 0) is None]
        if not skipped and not no_validation:  # It was in a message whose values nobody uses.
            if said := self.workplace.compare(self.run, ((self.layout, 0),)):
                self.problem("lost", f"{said} after {fault.text}")
            return self.problems
        if len(skipped) + len(no_validation) != 1:
            self.problem("nan", f"skipped {skipped}, validation {no_validation}: {fault.text}")
            return self.problems
        hit = (skipped + no_validation)[0]
        if skipped and f"step {hit} skipped" not in job.output:
            self.problem("nan", f"step {hit} was skipped without a word")
        expected = metrics_of(self.workplace.reference(self.layout) / "run" / "metrics.jsonl")
        for step in range(1, hit):
            if lines[step] != expected[step]:
                self.problem("lost", f"step {step} before the NaN is {lines[step]}")
        self.again_with_a_kill(fault, hit, lines)
        return self.problems

    def check_checkpoints(self, output):
        """The reference has skipped no step."""
        for checkpoint in checkpoints_of(self.run):
            if said := verify(checkpoint):
                self.problem("damaged", f"{checkpoint.name} under its final name: {said}")

    def again_with_a_kill(self, nan, hit, lines):
        first = self.run.rename(self.folder / "first_run")
        kill = kinds.Signal(self.rng, self.layout, 0.0, in_save=False)
        kill.name, kill.kind, kill.number = "SIGKILL", "SIGKILL", 9

        def wait(story, job):
            while job.alive() and not any(step_of(c) >= hit for c in checkpoints_of(self.run)):
                time.sleep(0.005)

        kill.wait_for_moment = wait
        kill.environment = nan.environment
        self.kinds.append(kill.kind)
        job = self.start(kill)
        if kill.struck(self, job):
            self.tally.add(kill.kind, "ended by it" if job.code else "survived")
        if self.start().code != 0:
            self.problem("exit", "an undisturbed start after a NaN has failed")
            return
        name = f"checkpoints/step_{STEPS:08}"
        if said := difference(self.run / name, first / name):
            self.problem("lost", said)
        if metrics_of(self.run / "metrics.jsonl") != lines:
            self.problem("lost", "metrics.jsonl differs after a NaN and a kill")


class SmallDiskStory(Story):
    """A file system with room for one checkpoint and a half. Saves fail; the run says so and ends
    with an error, because its last state is not saved. With room it goes on to the same bytes."""

    def prepare(self):
        expected = self.workplace.expected(((self.layout, 0),), STEPS)
        size = sum(path.stat().st_size for path in expected.iterdir())
        self.size = int(1.5 * size) + (64 << 10)
        self.run.mkdir()
        self.mounted = self.mount(f"size={self.size}")

    def mount(self, options):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.run],
                              capture_output=True, check=False).returncode == 0

    def tell(self):
        self.tally.stories += 1
        if not self.mounted:
            print("a small file system cannot be mounted here: skipped")
            return self.problems
        try:
            self.kinds.append("full file system")
            job = self.start()
            self.tally.add("full file system", self.outcome(job))
            if "no checkpoint at step" not in job.output:
                self.problem("message", "a full disk without a word")
            self.mount(f"remount,size={self.size * 20}")
            # Lines of the log are lost, too, where there was no room for them.
            self.lost_log_lines = "is missing from the log" in job.output
            self.finish()
        finally:
            with contextlib.suppress(OSError):
                shutil.copytree(self.run, self.folder / "run_at_the_end", symlinks=True)
            subprocess.run(["umount", self.run], check=False)
        return self.problems
