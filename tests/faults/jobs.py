"""Starts jobs that can be disturbed, and waits for all of their processes, also those whose mpirun
has died."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "end_to_end"))
import program  # noqa: E402

# Promised to everyone who waits for a run that cannot go on.
SECONDS_TO_END = 60


class Job:
    """A run of the program in a folder. Its output goes to a file, because processes that outlive
    mpirun would keep a pipe open."""

    def __init__(self, ranks, arguments, folder, log, preload=None, disturbance=None):
        command = program.command(ranks, *arguments)
        environment = program.environment(**{k: str(v) for k, v in (disturbance or {}).items()})
        if preload and ranks > 0:
            command[1:1] = ["-x", f"LD_PRELOAD={preload}"]
        elif preload:
            environment["LD_PRELOAD"] = str(preload)
        self.log, self.begin, self.ranks = log, time.time(), ranks
        self.hung = False
        with open(log, "wb") as output:
            self.process = program.start(command, folder, env=environment, stdout=output,
                                         stderr=subprocess.STDOUT)

    def alive(self):
        return self.process.poll() is None or bool(program.processes_of(self.process))

    def rank_pids(self):
        """The processes of the ranks that exist now."""
        if self.ranks == 0:
            return [self.process.pid] if self.process.poll() is None else []
        pids = []
        for pid in program.processes_of(self.process):
            with contextlib.suppress(OSError):
                environment = pathlib.Path(f"/proc/{pid}/environ").read_bytes()
                if b"OMPI_COMM_WORLD_RANK=" in environment:
                    pids.append(pid)
        return pids

    def send(self, pids, number):
        """Whether one of them was there to get the signal."""
        sent = False
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                sent = True
        return sent

    def wait(self, seconds=SECONDS_TO_END):
        """Waits until all processes have ended. Those that have not are examined and killed."""
        deadline = time.time() + seconds
        while self.alive():
            if time.time() > deadline:
                self.hung = True
                self.dump_stacks()
                self.send(program.processes_of(self.process), signal.SIGCONT)
                program.kill(self.process)
                break
            time.sleep(0.02)
        self.process.wait()
        self.seconds = time.time() - self.begin
        return self

    def dump_stacks(self):
        with open(f"{self.log}.stacks", "w") as out:
            for pid in program.processes_of(self.process):
                name = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                out.write(f"== process {pid}: {name.decode(errors='replace')}\n")
                out.flush()
                with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                    subprocess.run(["gdb", "-p", str(pid), "-batch", "-ex", "thread apply all bt"],
                                   stdout=out, stderr=subprocess.DEVNULL, timeout=30, check=False)
                    continue
                for stack in pathlib.Path(f"/proc/{pid}/task").glob("*/stack"):
                    with contextlib.suppress(OSError):
                        out.write(f"{stack}\n{stack.read_text()}")

    @property
    def code(self):
        return self.process.returncode

    @property
    def output(self):
        return pathlib.Path(self.log).read_text(errors="replace")


def processor_seconds(pid):
    """The processor time that the process has used."""
    with contextlib.suppress(OSError):
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def handles(pid, number):
    """Whether the process has a handler for the signal."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False
