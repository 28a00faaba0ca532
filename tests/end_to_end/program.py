"""Shared by the tests of the program: a working folder, and functions that start and end jobs.

The first two arguments of such a test are the paths of switchyard and of mpiexec.
"""

import contextlib
import functools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

SWITCHYARD, MPIEXEC = (os.path.abspath(path) for path in sys.argv[1:3])
CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
MPI_FLAGS = ["--oversubscribe", "--mca", "mpi_yield_when_idle", "1"]
DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 75


def environment(**more):
    # ob1: Open MPI need not look for networks between the ranks of one machine, which takes a third
    # of the time in which a job starts.
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_pml": "ob1", **more}


def patience(seconds):
    """A limit of time, longer where sanitizers slow the program down (see CMakePresets.json)."""
    return seconds * float(os.environ.get("SWITCHYARD_TEST_PATIENCE", "1"))


def command(ranks, *arguments):
    program = [SWITCHYARD, *map(str, arguments)]
    return program if ranks == 0 else [MPIEXEC, *MPI_FLAGS, "-n", str(ranks), *program]


def start(job, folder, **options):
    """Starts a job in its own session, by which `kill` finds all processes of the job."""
    return subprocess.Popen(list(map(str, job)), cwd=folder, text=True, errors="replace",
                            start_new_session=True, **{"env": environment(), **options})


def processes_of(job):
    """The live processes of the job's session. Every rank has its own process group."""
    pids = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (path / "stat").read_text().rsplit(")", 1)[1].split()[:4]
        except (FileNotFoundError, ProcessLookupError):  # the process has just ended
            continue
        if int(session) == job.pid and state != "Z":
            pids.append(int(path.name))
    return pids


def ranks_of(job):
    """The processes of the job that run switchyard, in the order in which they were started."""
    found = []
    for pid in processes_of(job):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if pathlib.Path(f"/proc/{pid}/exe").resolve() == pathlib.Path(SWITCHYARD).resolve():
                found.append(pid)
    return sorted(found)


def kill(job):
    """Kills all processes of the job, ranks included, and returns when all have ended."""
    while pids := processes_of(job):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)
    job.wait()


def run(job, folder, timeout, **options):
    """Exit code and output of a job that must end by itself."""
    process = start(job, folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    try:
        output = process.communicate(timeout=patience(timeout))[0]
    finally:
        kill(process)
    return process.returncode, output


def write_text(folder):
    """Writes text of 60 words, so that a model has something to learn."""
    rng = random.Random(3)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 6))) for _ in range(60)]
    folder.mkdir()
    for i in range(24):
        text = " ".join(rng.choice(words) for _ in range(300))
        (folder / f"document_{i:02}.txt").write_text(text + "\n")


@functools.cache
def crc32c_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


def crc32c(data):
    """Of RFC 3720."""
    table = crc32c_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class Program(unittest.TestCase):
    """Gives every test its own copy of a folder with token files."""

    @classmethod
    def setUpClass(cls):
        cls.template = pathlib.Path(tempfile.mkdtemp())
        write_text(cls.template / "text")
        shutil.copytree(CONFIGS, cls.template / "configs")
        cls.prepare("tokenize", "configs/tiny_bigmac.yaml", 'data.text=["text"]')

    @classmethod
    def prepare(cls, *arguments):
        """Runs a command whose results every test finds in its copy."""
        code, output = run(command(0, *arguments), cls.template, timeout=120)
        if code != DONE:
            raise RuntimeError(output)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.template)

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        shutil.copytree(self.template, self.folder, symlinks=True, dirs_exist_ok=True)

    def tearDown(self):
        shutil.rmtree(self.folder)

    def run_program(self, ranks, *arguments, code=DONE):
        returned, output = run(command(ranks, *arguments), self.folder, timeout=120)
        self.assertEqual(returned, code, output)
        return output

    def start_program(self, ranks, *arguments, **options):
        job = start(command(ranks, *arguments), self.folder, **options)
        self.addCleanup(kill, job)
        return job

    def wait_for(self, job, condition, interval=0.002):
        """Waits until the condition holds; fails if the job ends first."""
        deadline = time.time() + patience(60)
        while not condition() and job.poll() is None and time.time() < deadline:
            time.sleep(interval)
        self.assertTrue(condition())

    def train(self, ranks, *overrides, config="tiny_bigmac", code=DONE):
        return self.run_program(ranks, "train", f"configs/{config}.yaml", *overrides, code=code)

    def metrics(self, run="tiny_bigmac"):
        lines = (self.folder / "runs" / run / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def checkpoint(self, step, run="tiny_bigmac"):
        return self.folder / "runs" / run / "checkpoints" / f"step_{step:08}"

    def methods(self, step, run="tiny_bigmac"):
        """The methods of ops that a checkpoint holds."""
        state = json.loads((self.checkpoint(step, run) / "manifest.json").read_text())["state"]
        ops = ("bf16_products", "expert_products", "attention")
        return {op: state[op] for op in ops if op in state}

    def change_methods(self, step, **methods):
        """Makes a checkpoint say that ops were computed by these methods."""
        path = self.checkpoint(step) / "manifest.json"
        text = path.read_text()
        for op, method in methods.items():
            text = text.replace(f'"{op}": "{self.methods(step)[op]}"', f'"{op}": "{method}"')
        text = text.replace(json.loads(text)["crc32c_of_this_file"], "00000000")
        own = f'"crc32c_of_this_file": "{crc32c(text.encode()):08x}"'
        path.write_text(text.replace('"crc32c_of_this_file": "00000000"', own))

    def shards(self, step, run="tiny_bigmac"):
        return {path.name: path.read_bytes() for path in sorted(self.checkpoint(step, run).iterdir())
                if path.name.startswith("shard")}
