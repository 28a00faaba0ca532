"""Writes and submits a study's runs as Slurm jobs, each run one job with the ranks of its point."""

import json
import pathlib
import re
import shlex
import subprocess
import sys

import endings
from endings import Unusable

# SIGUSR1 goes to this script alone (B:), which passes it to the study, which lets the run save and
# stop. The job is then queued again, and the study goes on with the same run.
SCRIPT = """#!/usr/bin/env bash
{options}
cd {folder}
{command} &
study=$!
trap 'kill -USR1 "$study"' USR1
wait "$study"; code=$?
# A signal ends `wait` before the study ends.
while kill -0 "$study" 2>/dev/null; do wait "$study"; code=$?; done
if ((code == 75)); then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""
DEFAULTS = {"signal": "B:USR1@120", "requeue": "", "open-mode": "append"}


def directive(key, value):
    """A line for sbatch, which cuts it at spaces and quotes and begins a comment at #, unless a
    backslash stands before them."""
    word = re.sub(r"[^\w./:@%+=,-]", r"\\\g<0>", str(value))
    return f"#SBATCH --{key}" + (f"={word}" if word else "")


def script_of(study, folder, program, point, repetition):
    log = folder / "slurm" / f"{point.name}.{repetition}.log"
    options = {
        "job-name": f"{study.path.stem}-{point.name}.{repetition}",
        "ntasks": point.ranks,
        "cpus-per-task": study.threads,
        "output": str(log).replace("%", "%%"),  # %j, for example, would be the job's number
        **DEFAULTS,
        **study.slurm
    }
    lines = [directive(key, value) for key, value in options.items()]
    command = [
        sys.executable,
        str(pathlib.Path(__file__).with_name("study.py")),
        str(study.path), "--out",
        str(folder), "--program",
        str(program), "--run", f"{point.id}:{repetition}"
    ]
    return SCRIPT.format(options="\n".join(lines), folder=shlex.quote(str(pathlib.Path.cwd())),
                         command=shlex.join(command))


def waiting_jobs(jobs):
    """Those of the jobs that Slurm still has; it forgets jobs that have ended."""
    if not jobs:
        return set()
    done = subprocess.run(["squeue", "--noheader", "--format=%A"], capture_output=True, text=True,
                          check=False)
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"it ended with exit code {done.returncode}"
        raise Unusable(f"squeue does not say which jobs wait ({said}), so nothing is submitted, "
                       "which might then run twice; try again when Slurm answers")
    return set(done.stdout.split()) & set(jobs)


def read_jobs(file):
    """run -> job, of earlier calls."""
    if not file.exists():
        return {}
    remedy = "it says which jobs wait: when squeue shows none of this study, remove the file"
    jobs = endings.read_json(file, remedy)
    if not all(isinstance(job, str) for job in jobs.values()):
        raise Unusable(f"{file} has a job that is no text; {remedy}")
    return jobs


def submit(study, folder, program, runs):
    """Submits the runs that no job of an earlier call still waits for."""
    linked = [point.describe() for point, _ in runs if "rate" in point.run]
    if linked:
        raise Unusable(
            f"{study.path}: {linked[0]} has links of a given rate, which exist only on one "
            "machine; "
            "run the study without --slurm, or take rate out")
    (folder / "slurm").mkdir(parents=True, exist_ok=True)
    file = folder / "slurm" / "jobs.json"
    jobs = read_jobs(file)
    try:
        waiting = waiting_jobs(jobs.values())
        for point, repetition in runs:
            run = f"{point.id}:{repetition}"
            if jobs.get(run) in waiting:
                continue
            script = folder / "slurm" / f"{point.name}.{repetition}.sh"
            script.write_text(script_of(study, folder, program, point, repetition),
                              encoding="utf-8")
            done = subprocess.run(["sbatch", "--parsable", str(script)],
                                  capture_output=True,
                                  text=True,
                                  check=False)
            number = re.match(r"\d+", done.stdout)
            if done.returncode != 0 or not number:
                raise Unusable(
                    f"sbatch did not take {script}: {done.stderr.strip() or 'it gave no number'}")
            jobs[run] = number.group()
            # Written after each job, so that a script that is killed has none run twice.
            with endings.written_whole(file) as partial:
                partial.write_text(json.dumps(jobs, indent=1) + "\n", encoding="utf-8")
            print(f"job {jobs[run]}: {point.describe()}, repetition {repetition}", flush=True)
    except FileNotFoundError as error:
        raise Unusable(
            f"{error.filename} is not installed here; run this where Slurm is, or leave --slurm "
            "away") from error
    print(
        f"when jobs have ended: {sys.argv[0]} {study.path} --out {folder} --report"
    )
