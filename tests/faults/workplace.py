"""The configuration that the campaign trains, its undisturbed runs, and how a run is compared with
them."""

import dataclasses
import json
import pathlib
import re
import shutil
import subprocess
import threading
import time

from jobs import Job, program

STEPS, INTERVAL = 40, 3
CONFIG = "configs/tiny_bigmac.yaml"
SETTINGS = [
    "run.dir=run", "run.collective_timeout=20", "data.train=data/train.h5",
    "data.validation=data/validation.h5", "data.mask=document",
    "data.tokenizer.type=sentencepiece", "data.tokenizer.model=data/tokenizer.model",
    "data.tokenizer.vocab_size=288", "model.seq_len=16", "train.global_batch_size=4",
    f"train.max_steps={STEPS}",
    "train.eval_interval=10", "train.eval_batches=1", f"checkpoint.interval={INTERVAL}",
    # With MPI in the background a start would measure the number of chunks, and two starts of the
    # same run differ then in the last bits.
    "parallel.exchange_chunks=2",
    "checkpoint.keep=2", "hash.dense_layers=1", "hash.bits=32", "hash.training.num_sequences=24",
    "hash.training.held_out_sequences=8", "hash.training.epochs=6"]
# Of metrics.jsonl; two runs with the same numbers take different times.
TIMES = re.compile(r"_ms$|^tokens_per_s$|^mfu$|^peak_memory_bytes$")
# Across layouts sums are grouped differently. That changes the loss of one step by less than this;
# later steps amplify it.
LOSS_BOUND = 1e-4


@dataclasses.dataclass(frozen=True)
class Layout:
    tp: int
    dp: int
    ep: int

    @property
    def ranks(self):
        """0: one process without mpirun."""
        return 0 if self.tp * self.dp == 1 else self.tp * self.dp

    @property
    def settings(self):
        return [f"parallel.tp={self.tp}", f"parallel.ep={self.ep}"]

    def __str__(self):
        return f"({self.tp},{self.dp},{self.ep})"


LAYOUTS = [Layout(1, 1, 1), Layout(1, 2, 2), Layout(2, 2, 2), Layout(2, 4, 2)]


def checkpoints_of(run):
    """The checkpoints under final names, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step_*") if re.fullmatch(r"step_\d+", p.name))


def step_of(checkpoint):
    return int(checkpoint.name.removeprefix("step_"))


def identity(checkpoint):
    """Differs for every folder that had this name; an inode alone may come back."""
    status = checkpoint.stat()
    return status.st_ino, status.st_mtime_ns


def metrics_of(path):
    """The lines by step, without times."""
    lines = {}
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            lines[record["step"]] = {k: v for k, v in record.items() if not TIMES.search(k)}
    return lines


def state_of(checkpoint):
    """The manifest's state without the configuration, which names the layout."""
    state = json.loads((checkpoint / "manifest.json").read_text())["state"]
    return {key: value for key, value in state.items() if key != "config"}


def shards_of(checkpoint):
    return {p.name: p.read_bytes() for p in checkpoint.glob("shard_*.h5")}


def difference(checkpoint, expected):
    """A sentence about the first difference of two checkpoints of one layout, or nothing."""
    if state_of(checkpoint) != state_of(expected):
        return f"{checkpoint.name}: state {state_of(checkpoint)}, not {state_of(expected)}"
    mine, theirs = shards_of(checkpoint), shards_of(expected)
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            return f"{checkpoint.name}/{name} has other bytes"
    return None


class Workplace:
    """A folder with data, one undisturbed run per layout, and what was measured on it."""

    def __init__(self, root, preload, layouts):
        self.root, self.preload, self.layouts = root, preload, layouts
        self.template = root / "template"
        self.seconds = {}  # of an undisturbed start, by layout
        self.calls = {}  # by layout: counts of (rank, kind of call)
        self.sends = {}  # by layout: MPI_Isends of floats per rank
        self.hash_calls = {}
        self.replays, self.lock = {}, threading.RLock()  # by lineage

    def prepare(self):
        self.template.mkdir(parents=True)
        program.write_text(self.template / "text")
        (self.template / "configs").symlink_to(program.CONFIGS)
        (self.template / "data").mkdir()
        self.must(Job(0, ["tokenize", CONFIG, *SETTINGS, 'data.text=["text"]'], self.template,
                      self.root / "tokenize.log"))
        for layout in self.layouts:
            self.train_reference(layout)
        for layout in self.layouts[1:]:
            self.require_same_loss(self.reference(self.layouts[0]) / "run",
                                   self.reference(layout) / "run", step=1)

    def must(self, job, seconds=600):
        if job.wait(seconds).code != 0:
            raise RuntimeError(f"an undisturbed job has failed:\n{job.output}")
        return job

    def reference(self, layout):
        return self.root / f"reference_{layout.tp}_{layout.dp}_{layout.ep}"

    def folder(self, path):
        """Makes a folder to start a run in."""
        path.mkdir(parents=True)
        (path / "configs").symlink_to(program.CONFIGS)
        shutil.copytree(self.template / "data", path / "data")
        return path

    def train_reference(self, layout):
        """Trains with a checkpoint after every step. Then trains and learns hash codes as the
        campaign does, under the library that only counts; the results must be the same."""
        reference = self.folder(self.reference(layout))
        self.must(Job(layout.ranks, self.train(layout, "checkpoint.interval=1",
                                               "checkpoint.keep=0"), reference,
                      self.root / f"{reference.name}.log"))
        counted = self.folder(self.root / f"counted_{reference.name}")
        begin = time.time()
        trace = self.root / f"{reference.name}.trace"
        self.must(Job(layout.ranks, self.train(layout), counted, f"{trace}.log", self.preload,
                      self.count_only(counted, trace)))
        self.seconds[layout] = time.time() - begin
        self.calls[layout], self.sends[layout] = self.read_trace(trace)
        if problem := self.compare(counted / "run", ((layout, 0),)):
            raise RuntimeError(f"{layout}: {problem}")
        trace = self.root / f"{reference.name}.hash_trace"
        self.must(Job(layout.ranks, self.train_hash(layout), counted, f"{trace}.log", self.preload,
                      self.count_only(counted, trace)))
        self.hash_calls[layout], _ = self.read_trace(trace)
        shutil.copytree(counted / "run" / "hash", reference / "run" / "hash")
        shutil.rmtree(counted / "run" / "hash")

    @staticmethod
    def train(layout, *more):
        return ["train", CONFIG, *SETTINGS, *layout.settings, *more]

    @staticmethod
    def train_hash(layout):
        return ["train-hash", CONFIG, *SETTINGS, *layout.settings]

    @staticmethod
    def count_only(folder, trace):
        return {"FAULT_ROOT": folder / "run", "FAULT_RANK": -1, "FAULT_TRACE": trace}

    @staticmethod
    def read_trace(trace):
        calls, sends = {}, {}
        for line in trace.read_text().splitlines():
            rank, kind, number, *_ = line.split()
            if kind == "sends":
                sends[int(rank)] = int(number)
            else:
                calls[int(rank), kind] = calls.get((int(rank), kind), 0) + 1
        return calls, sends

    def expected_run(self, lineage):
        """The undisturbed run that began on the first layout and went on with each other layout
        after a step. Made when it is first asked for, with a checkpoint after every step.
          lineage   pairs of a layout and the step after which it went on"""
        if len(lineage) == 1:
            return self.reference(lineage[0][0]) / "run"
        with self.lock:
            if lineage not in self.replays:
                self.replays[lineage] = self.replay(lineage)
            return self.replays[lineage]

    def replay(self, lineage):
        before, (layout, step) = self.expected_run(lineage[:-1]), lineage[-1]
        folder = self.folder(self.root / f"replay_{len(self.replays)}")
        (folder / "run" / "checkpoints").mkdir(parents=True)
        name = f"checkpoints/step_{step:08}"
        shutil.copytree(before / name, folder / "run" / name)
        shutil.copy(before / "metrics.jsonl", folder / "run")
        self.must(Job(layout.ranks, self.train(layout, "checkpoint.interval=1", "checkpoint.keep=0"),
                      folder, folder / "start.log"))
        self.require_same_loss(before, folder / "run", step + 1)
        return folder / "run"

    @staticmethod
    def require_same_loss(run, other, step):
        """The step after a change of layout has the weights and samples of the other layout's."""
        losses = [metrics_of(r / "metrics.jsonl")[step]["loss"] for r in (run, other)]
        if not abs(losses[0] - losses[1]) <= LOSS_BOUND:
            raise RuntimeError(f"{run} and {other}: the losses of step {step} are {losses}")

    def expected(self, lineage, step):
        return self.expected_run(lineage) / "checkpoints" / f"step_{step:08}"

    def compare(self, run, lineage, may_lack=frozenset(), as_damaged=None):
        """A sentence about the first difference between a finished run and the undisturbed one.
          may_lack     steps whose metrics may be missing, because the run said so
          as_damaged   what the metrics of a step were after they were damaged on purpose"""
        last = run / "checkpoints" / f"step_{STEPS:08}"
        if not last.is_dir():
            return f"{last.name} is missing"
        if problem := difference(last, self.expected(lineage, STEPS)):
            return problem
        mine = metrics_of(run / "metrics.jsonl")
        for step, expected in metrics_of(self.expected_run(lineage) / "metrics.jsonl").items():
            found = mine.get(step)
            if found is None and step not in may_lack:
                return f"metrics.jsonl has no step {step}"
            was_damaged = as_damaged and found == as_damaged.get(step)
            if found not in (None, expected) and not was_damaged:
                return f"metrics.jsonl: step {step} is {found}, not {expected}"
        return None

    def compare_hash(self, run, layout):
        for name in ("hash_weights.h5", "metrics.jsonl"):
            mine = run / "hash" / name
            theirs = self.reference(layout) / "run" / "hash" / name
            if not mine.exists() or mine.read_bytes() != theirs.read_bytes():
                return f"hash/{name} has other bytes" if mine.exists() else f"hash/{name} is missing"
        return None


def verify(path):
    """What `inspect --verify` says against a checkpoint, or nothing."""
    result = subprocess.run([program.SWITCHYARD, "inspect", "--verify", path], text=True,
                            errors="replace", capture_output=True, env=program.environment(),
                            timeout=60, check=False)
    return None if result.returncode == 0 else result.stderr.strip() or f"code {result.returncode}"


def leftovers_of(run):
    """Files that a run which has ended well must not leave."""
    names = re.compile(r"\.tmp$|\.unfinished$|\.replaced|^query_keys$|^heads$")
    return [str(path.relative_to(run)) for path in pathlib.Path(run).rglob("*")
            if names.search(path.name)]
