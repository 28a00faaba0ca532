#!/usr/bin/env python3
"""How fast a model leaves and enters, beside the rate at which the disk takes the same bytes:

    scripts/export_speed.py RUN

exports the newest checkpoint of RUN, imports the folder again, and lets dd write as many zeros to
the same disk (conv=fsync), in turns. Everything that is read is in memory already (the page cache).
It prints the medians, and the most memory that the program had. A command takes the same time to
start and end MPI, however large the model is; the last column is without it.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time

import endings
from endings import Unusable

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(*command):
    """(seconds, most memory in bytes) of a command."""
    # Open MPI starts as root only if both variables are set.
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1",
                                "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    os.sync()  # what others wrote must not be written now
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen([str(word) for word in command], env=environment, cwd=ROOT,
                                 stdout=said, stderr=said)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            said.seek(0)
            text = " ".join(said.read().decode(errors="replace").split())
            raise Unusable(f"{command[0]} {command[1]}: {text or child.returncode}")
    return seconds, usage.ru_maxrss * 1024


def measure(program, checkpoint_run, scratch):
    """One round: {name: (seconds, bytes written, most memory)}."""
    for old in scratch.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    folder = scratch / "exported"
    figures = {"export": run(program, "export", checkpoint_run, "--to", folder)}
    size = sum(file.stat().st_size for file in folder.iterdir())
    zeros = ["if=/dev/zero", f"of={scratch}/zeros", "bs=1M", "iflag=fullblock,count_bytes",
             "conv=fsync"]
    figures["dd"] = run("dd", *zeros, f"count={size}")
    figures["start"] = run(program, "config-reference")
    figures["import"] = run(program, "import", folder, "--config", scratch / "imported.yaml",
                            f"run.dir={scratch}/imported")
    return {name: (seconds, size, memory) for name, (seconds, memory) in figures.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path, help="a run, or a checkpoint of one")
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "build/switchyard")
    parser.add_argument("--rounds", type=endings.positive_integer, default=5)
    arguments = parser.parse_args()
    if not arguments.program.exists():
        raise Unusable(f"{arguments.program} does not exist; build it, or name it with --program")
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as scratch:
        rounds = [measure(arguments.program.resolve(), arguments.run.resolve(),
                          pathlib.Path(scratch)) for _ in range(arguments.rounds + 1)]
    rounds = rounds[1:]  # the first one brings files into memory
    start = statistics.median(figures["start"][0] for figures in rounds)
    disk = statistics.median(figures["dd"][1] / figures["dd"][0] for figures in rounds)
    print(f"{rounds[0]['dd'][1] / 1e6:.0f} MB; start and end of the program {start:.2f} s\n\n"
          "| | seconds, median (least to most) | MB/s | share of dd | most memory, MiB | "
          "share of dd without the start |\n|---|---|---|---|---|---|")
    for name in ("dd", "export", "import"):
        seconds = [figures[name][0] for figures in rounds]
        size, middle = rounds[0][name][1], statistics.median(seconds)
        memory = max(figures[name][2] for figures in rounds) / 2**20
        behind_start = middle - (start if name != "dd" else 0)
        print(f"| {name} | {middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f}) "
              f"| {size / middle / 1e6:.0f} | {size / middle / disk:.0%} | {memory:.0f} "
              f"| {size / behind_start / disk:.0%} |")


if __name__ == "__main__":
    endings.run(main)
