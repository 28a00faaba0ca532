"""The kinds of faults. Each fault is chosen by a random generator alone, so that a seed gives the
same faults again; when they strike depends on the machine.

A fault has up to three moments: `environment` for the library before the start, `during` while the
job runs, and `before` for damage to files between two starts.
"""

import signal
import time

from jobs import handles, processor_seconds
from workplace import checkpoints_of, identity, step_of, verify

# Loading the program's libraries takes less processor time than this.
SECONDS_TO_LOAD = 0.3
# What a signal that asks a run to end may lead to: it has saved and stopped, or had ended before.
STOPPED_OR_DONE = (75, 0)
ACTIONS = {
    "write": ["kill-before", "kill-after", "torn", "short", "ENOSPC", "EIO"],
    "sync": ["kill-before", "kill-after", "EIO", "ENOSPC"],
    "close": ["kill-before", "kill-after", "EIO"],
    "link": ["kill-before", "kill-after", "ENOSPC", "EIO"],
}
OTHER_ACTIONS = ["kill-before", "kill-after", "ENOSPC", "EIO"]


class Fault:
    kind = ""
    text = ""  # what was chosen
    allowed_codes = None  # any, if None
    goes_on = False  # whether the run trains in spite of it
    who = "rank"  # gets the signal: a rank, all of them, or mpirun

    def before(self, story):
        """Damages files. Returns whether there was something to damage."""
        return True

    def environment(self, story):
        return {}

    def during(self, story, job):
        pass

    def struck(self, story, job):
        return True

    def check(self, story, job):
        """Sentences about what went wrong, beside what is wrong after any fault."""
        return []


class Signal(Fault):
    """A signal to ranks or to mpirun at a random moment, perhaps while a checkpoint is saved."""

    NUMBERS = {"SIGKILL": 4, "SIGTERM": 3, "SIGINT": 2, "SIGUSR1": 3, "SIGHUP": 2}

    def __init__(self, rng, layout, seconds, in_save):
        names = list(self.NUMBERS)
        self.name = rng.choices(names, [self.NUMBERS[n] for n in names])[0]
        self.kind = self.name
        self.number = getattr(signal, self.name)
        self.who = rng.choice(["rank", "rank", "all", "mpirun"] if layout.ranks else ["rank"])
        self.moment = rng.uniform(0, seconds)
        self.in_save = in_save and rng.random() < 0.4
        self.extra = rng.uniform(0, 0.02)
        self.twice = rng.random() < 0.15
        self.pick = rng.random()
        self.sent = self.too_early = self.too_late = False
        self.text = (f"{self.name} to {self.who} after {self.moment:.2f} s"
                     f"{' and the begin of a save' if self.in_save else ''}"
                     f"{', twice' if self.twice else ''}")

    def choose(self, job):
        ranks = job.rank_pids()
        if self.who == "mpirun":
            return [job.process.pid] if job.process.poll() is None else []
        if self.who == "all" or not ranks:
            return ranks
        return [sorted(ranks)[int(self.pick * len(ranks))]]

    def wait_for_moment(self, story, job):
        end = job.begin + self.moment
        while time.time() < end and job.alive():
            time.sleep(0.005)
        checkpoints = story.run / "checkpoints"
        while self.in_save and job.alive() and time.time() < end + 20:
            if next(checkpoints.glob("*.tmp"), None):
                time.sleep(self.extra)
                break
            time.sleep(0.001)

    def during(self, story, job):
        self.wait_for_moment(story, job)
        pids = self.choose(job)
        while not pids and job.alive():  # mpirun has not started them yet
            time.sleep(0.005)
            pids = self.choose(job)
        # No program can handle a signal before it runs.
        lacking = [p for p in pids if self.who != "mpirun" and not handles(p, self.number)]
        self.too_early = bool(lacking)
        self.too_late = any(processor_seconds(p) > SECONDS_TO_LOAD for p in lacking)
        self.sent = job.send(pids, self.number)
        if self.twice:
            time.sleep(0.1)
            job.send(self.choose(job), self.number)
        # Open MPI 4.1 kills the ranks two seconds after SIGTERM or SIGINT, saved or not, and SIGHUP
        # kills it.
        promised = self.name == "SIGUSR1" or (self.name != "SIGKILL" and self.who != "mpirun")
        if promised and not self.twice and not self.too_early:
            self.allowed_codes = STOPPED_OR_DONE

    def struck(self, story, job):
        return self.sent

    def check(self, story, job):
        if self.sent and self.too_late and self.name != "SIGKILL":
            return [("exit", f"no handler of {self.name} when the program runs already")]
        return []


class Stop(Signal):
    """SIGSTOP of ranks or mpirun, then SIGCONT or SIGKILL."""

    def __init__(self, rng, layout, seconds, in_save):
        super().__init__(rng, layout, seconds, in_save)
        self.kind, self.name, self.number = "SIGSTOP", "SIGSTOP", signal.SIGSTOP
        self.twice = False
        self.pause = rng.choice([0.3, 1.0, 3.0])
        self.then = rng.choice([signal.SIGCONT, signal.SIGCONT, signal.SIGKILL])
        self.text = (f"SIGSTOP to {self.who} after {self.moment:.2f} s, {self.then.name} "
                     f"{self.pause} s later")
        # Longer than run.collective_timeout: the others must end by themselves.
        if layout.ranks and self.who == "rank" and rng.random() < 0.1:
            self.pause, self.then = 0.0, None
            self.text = f"SIGSTOP to a rank after {self.moment:.2f} s, for ever"

    def during(self, story, job):
        self.wait_for_moment(story, job)
        pids = self.choose(job)
        self.sent = job.send(pids, signal.SIGSTOP)
        if self.then is None:
            return
        end = time.time() + self.pause
        while time.time() < end:
            time.sleep(0.01)
        job.send(pids, self.then)

    def check(self, story, job):
        return []


class AtCall(Fault):
    """The library kills the process at a call on a file, or lets the call fail."""

    def __init__(self, rng, layout, calls, share_left):
        present = sorted({key for key in calls if key[1] != "sends"})
        kinds = sorted({kind for _, kind in present})
        self.call = rng.choice(kinds + ["write", "sync", "rename"])
        ranks = sorted({rank for rank, kind in present if kind == self.call}) or [0]
        self.call = self.call if any(kind == self.call for _, kind in present) else kinds[0]
        self.rank = rng.choice(ranks)
        most = calls.get((self.rank, self.call), 1)
        self.at = rng.randint(1, max(1, int(most * share_left)))
        self.action = rng.choice(ACTIONS.get(self.call, OTHER_ACTIONS))
        self.span = 1
        if self.action in ("ENOSPC", "EIO", "short"):
            self.span = rng.choice([1, 1, 3, 0])
        if self.action in ("kill-before", "kill-after", "torn"):
            self.kind = f"{self.action} {self.call}"
        elif self.action == "ENOSPC" and self.span == 0:
            self.kind = "full disk"
        else:
            self.kind = f"{self.action} {self.call}"
        self.text = (f"{self.action} at {self.call} {self.at} of rank {self.rank}"
                     + {0: ", and all later ones", 1: ""}.get(self.span, f", {self.span} times"))

    def environment(self, story):
        self.log = story.folder / f"struck_{len(story.starts)}"
        # A full disk lets no file grow.
        calls = "write,allocate,open,mkdir,link" if self.kind == "full disk" else self.call
        return {"FAULT_ROOT": story.run, "FAULT_RANK": self.rank, "FAULT_CALLS": calls,
                "FAULT_AT": self.at, "FAULT_SPAN": self.span, "FAULT_ACTION": self.action,
                "FAULT_LOG": self.log}

    def struck(self, story, job):
        return self.log.exists()

    def check(self, story, job):
        if self.log.exists():
            self.text += f" ({self.log.read_text().splitlines()[0]})"
            if "metrics.jsonl" in self.log.read_text():
                story.lost_log_lines = True
        return []


def damage(path, rng):
    """Changes a file and says how."""
    content = bytearray(path.read_bytes())
    way = rng.choice(["flip", "flip", "flip", "truncate", "empty", "zero", "append", "remove"])
    place = rng.randrange(len(content)) if content else 0
    if way == "flip" and content:
        content[place] ^= 1 << rng.randrange(8)
    elif way == "truncate":
        del content[place:]
    elif way == "empty":
        content.clear()
    elif way == "zero":
        end = min(len(content), place + 512)
        if content[place:end] == bytes(end - place):
            content[place:end] = b"\1" * (end - place)
        else:
            content[place:end] = bytes(end - place)
    elif way == "append":
        content += rng.randbytes(64)
    if way == "remove":
        path.unlink()
    else:
        path.write_bytes(content)
    return f"{way} at {place} of {path.name}"


class DamagedCheckpoint(Fault):
    """A file of the newest checkpoint: the run must fall back to an older one, or pass over damage
    of files that it does not need."""

    kind = "damaged checkpoint"
    goes_on = True

    def __init__(self, rng):
        self.rng = rng

    def before(self, story):
        checkpoints = checkpoints_of(story.run)
        intact = [c for c in checkpoints if identity(c) not in story.damaged]
        if len(intact) < 2 or intact[-1] != checkpoints[-1]:
            return False
        self.newest = intact[-1]
        victim = self.rng.choice(sorted(self.newest.iterdir()))
        self.needed = victim.name != "model.h5"
        self.text = f"{damage(victim, self.rng)} of {self.newest.name}"
        story.damaged.add(identity(self.newest))
        self.unnoticed = verify(self.newest) is None
        return True

    def check(self, story, job):
        problems = []
        if self.unnoticed:
            problems.append(("damage", f"inspect --verify finds nothing: {self.text}"))
        began = "training " in job.output and " parameters on " in job.output
        passed = f"passed over {self.newest.name}" in job.output
        if self.needed and f"resumed from {self.newest.name} " in job.output:
            problems.append(("damage", f"a damaged checkpoint was loaded: {self.text}"))
        elif self.needed and began and not passed:
            problems.append(("damage", f"damage was passed over without a word: {self.text}"))
        return problems


class DamagedLink(Fault):
    kind = "damaged latest"
    goes_on = True

    def __init__(self, rng):
        self.way = rng.choice(["remove", "dangle", "file"])
        self.text = f"latest: {self.way}"

    def before(self, story):
        link = story.run / "checkpoints" / "latest"
        if not link.is_symlink():
            return False
        link.unlink()
        if self.way == "dangle":
            link.symlink_to("step_99999999")
        elif self.way == "file":
            link.write_bytes(b"\0" * 100)
        return True


class DamagedMetrics(Fault):
    """No line has a checksum. What was damaged stays as it is, and nothing else changes."""

    kind = "damaged metrics"
    goes_on = True

    def __init__(self, rng):
        self.rng = rng

    def before(self, story):
        path = story.run / "metrics.jsonl"
        if not path.exists() or not path.stat().st_size or not checkpoints_of(story.run):
            return False
        self.text = damage(path, self.rng)
        story.metrics_were_damaged(step_of(checkpoints_of(story.run)[-1]))
        return True


class DamagedInput(Fault):
    """A token file or the tokenizer: an error that names it, or the same numbers."""

    kind = "damaged input"

    def __init__(self, rng):
        self.name = rng.choice(["train.h5", "train.h5", "validation.h5", "tokenizer.model"])
        self.rng = rng

    def before(self, story):
        self.path = story.folder / "data" / self.name
        self.text = damage(self.path, self.rng)
        return True

    def check(self, story, job):
        intact = story.workplace.template / "data" / self.name
        self.path.write_bytes(intact.read_bytes())
        if job.code == 0 or job.code == 75:
            return []  # The end of the story compares the numbers.
        if self.name not in job.output and self.path.stem not in job.output:
            return [("message", f"the message does not name {self.name}: {self.text}")]
        return []


class AllDamaged(Fault):
    """Every checkpoint: an error that says so. Restored from a copy the run goes on."""

    kind = "all checkpoints damaged"

    def __init__(self, rng):
        self.rng = rng

    def before(self, story):
        checkpoints = checkpoints_of(story.run)
        if not checkpoints:
            return False
        self.copies = {}
        for checkpoint in checkpoints:
            files = sorted(p for p in checkpoint.iterdir() if p.name != "model.h5")
            victim = self.rng.choice(files)
            self.copies[victim] = victim.read_bytes()
            self.text += f"{damage(victim, self.rng)} of {checkpoint.name}; "
            story.damaged.add(identity(checkpoint))
        return True

    def check(self, story, job):
        for path, content in self.copies.items():
            path.write_bytes(content)
            story.verified.add(identity(path.parent))  # as it was before
        if job.code in (0, 75) or "training " in job.output and " parameters on" in job.output:
            return [("damage", f"training began without an intact checkpoint: {self.text}")]
        if not any(path.parent.name in job.output for path in self.copies):
            return [("message", f"the message names no checkpoint: {self.text}")]
        return []


class NanGradient(Fault):
    """A NaN in what one rank sends in a pass or in the reduction of gradients."""

    kind = "NaN on one rank"

    def __init__(self, rng, sends):
        self.rank = rng.choice(sorted(sends))
        self.at = rng.randint(1, sends[self.rank])
        self.text = f"NaN in send {self.at} of rank {self.rank}"

    def environment(self, story):
        self.log = story.folder / f"nan_{len(story.starts)}"
        return {"FAULT_RANK": self.rank, "FAULT_NAN_AT": self.at, "FAULT_LOG": self.log}

    def struck(self, story, job):
        return self.log.exists()


def choose_fault(rng, story):
    """A fault of a training. `story.share_left` says how much of the run is still to come."""
    workplace, layout = story.workplace, story.layout
    seconds = workplace.seconds[layout] * max(0.3, story.share_left())
    weights = {"signal": 8, "stop": 2, "call": 10, "checkpoint": 4, "all": 1, "link": 1,
               "metrics": 1, "input": 2}
    kind = rng.choices(list(weights), list(weights.values()))[0]
    if kind == "signal":
        return story.signal()
    if kind == "stop":
        return Stop(rng, layout, seconds, in_save=True)
    if kind == "call":
        return AtCall(rng, layout, workplace.calls[layout], max(story.share_left(), 0.1))
    return {"checkpoint": DamagedCheckpoint, "all": AllDamaged, "link": DamagedLink,
            "metrics": DamagedMetrics, "input": DamagedInput}[kind](rng)


def choose_hash_fault(rng, story):
    """A fault of the training of hash codes."""
    workplace, layout = story.workplace, story.layout
    if rng.random() < 0.5:
        return Signal(rng, layout, story.seconds, in_save=False)
    return AtCall(rng, layout, workplace.hash_calls[layout], 1.0)
