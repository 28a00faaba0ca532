#!/usr/bin/env python3
"""Disturbs runs at random until their end, and compares them with undisturbed ones.

usage: campaign.py PATH_TO_SWITCHYARD PATH_TO_MPIEXEC [options]

Every story is one run: a fault, a start on the same or another layout, the next fault, until an
undisturbed start brings it to its end. A story whose run is not that of the undisturbed one is kept
with the output of every start. `--seed S --only I` tells story I again.
"""

import argparse
import itertools
import json
import pathlib
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import endings  # noqa: E402

parser = argparse.ArgumentParser(description="Disturbs runs and compares them with undisturbed ones.")
parser.add_argument("switchyard")
parser.add_argument("mpiexec")
parser.add_argument("--faults", type=endings.positive_integer, default=100,
                    help="end after this many")
parser.add_argument("--minutes", type=endings.positive_number, default=1e9,
                    help="or after this time")
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--only", type=int, help="tell this story only")
parser.add_argument("--jobs", type=endings.positive_integer, default=1,
                    help="tell this many stories at a time")
parser.add_argument("--mode", choices=["all", "training", "hash", "nan", "disk"], default="all")
parser.add_argument("--layouts", type=endings.positive_integer, default=4,
                    help="use this many of the layouts")
parser.add_argument("--stop", action="store_true", help="end after the first run that failed")
parser.add_argument("--report", type=pathlib.Path, help="file for the figures, as JSON")
parser.add_argument("--keep", type=pathlib.Path, help="folder for the runs that failed")
parser.add_argument("--interpose", type=pathlib.Path,
                    help="the library (default: switchyard_interpose.so beside switchyard)")
options = parser.parse_args()
# A campaign in the background of a shell inherits signals as ignored, and runs would inherit them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

from stories import HashStory, NanStory, SmallDiskStory, Story, Tally  # noqa: E402
from workplace import LAYOUTS, Workplace  # noqa: E402

FORMAT = "switchyard.fault_campaign"


def story_class(index):
    """One disk per campaign, a NaN in every sixteenth story, hash codes in every eighth."""
    if options.mode != "all":
        return {"training": Story, "hash": HashStory, "nan": NanStory,
                "disk": SmallDiskStory}[options.mode]
    if index == 3:
        return SmallDiskStory
    return NanStory if index % 16 == 5 else HashStory if index % 8 == 1 else Story


def tell(workplace, tally, index, keep):
    cls = story_class(index)
    story = cls(workplace, tally, options.seed, index)
    try:
        problems = story.tell()
    except Exception:  # A mistake of the campaign must not end the other stories.
        problems = story.problems
        problems.append({"category": "campaign", "kind": "none", "text": traceback.format_exc(),
                         "start": len(story.starts)})
    if not problems:
        story.remove()
        return
    command = (f"{sys.argv[0]} {options.switchyard} {options.mpiexec} --seed {options.seed} "
               f"--mode {options.mode} --layouts {options.layouts} --only {index}")
    tally.problems.append({"story": index, "command": command, "starts": story.starts,
                           "problems": problems})
    (story.folder / "story.txt").write_text("\n".join(story.starts) + "\n")
    keep.mkdir(parents=True, exist_ok=True)
    kept = keep / story.folder.name
    shutil.move(story.folder, kept)
    lines = [f"story {index} ({cls.__name__}) has failed and is kept in {kept}; again: {command}"]
    lines += [f"    {line}" for line in story.starts]
    lines += [f"  {p['category']} after {p['kind']}: {p['text']}" for p in problems]
    print("\n".join(lines), flush=True)


def tell_all(workplace, tally, keep, end):
    """Tells stories, some at a time, until there were enough faults or the time is over."""
    indices = iter([options.only] if options.only is not None else itertools.count())

    def work():
        for index in iter(lambda: next(indices, None), None):
            if tally.total("injected") >= options.faults or time.time() > end:
                return
            if tally.problems and options.stop:
                return
            try:
                tell(workplace, tally, index, keep)
            except Exception:  # A story that cannot begin is a failure, too.
                traceback.print_exc()
                tally.problems.append({"story": index, "command": "", "starts": [], "problems": [
                    {"category": "campaign", "kind": "none", "text": traceback.format_exc()}]})
            if index % 20 == 19:
                print(f"{tally.total('injected')} faults, {len(tally.problems)} failed runs",
                      flush=True)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(options.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def table(tally):
    lines = ["| fault | " + " | ".join(Tally.COLUMNS) + " |", "|---" * 9 + "|"]
    for kind in sorted(tally.kinds):
        counts = tally.kinds[kind]
        lines.append(f"| {kind} | " + " | ".join(str(counts[c]) for c in Tally.COLUMNS) + " |")
    lines.append("| all | " + " | ".join(str(tally.total(c)) for c in Tally.COLUMNS) + " |")
    return "\n".join(lines)


def report(tally, seconds):
    categories = {}
    for story in tally.problems:
        for p in story["problems"]:
            categories[p["category"]] = categories.get(p["category"], 0) + 1
    figures = {"format": FORMAT, "seed": options.seed, "seconds": round(seconds),
               "stories": tally.stories, "starts": tally.starts, "faults": tally.total("injected"),
               "not struck": tally.not_struck, "problems": categories,
               "kinds": {k: dict(v) for k, v in sorted(tally.kinds.items())},
               "failed stories": tally.problems}
    print(table(tally))
    print(f"{figures['faults']} faults in {tally.stories} runs, {tally.starts} starts, "
          f"{seconds / 60:.0f} minutes, seed {options.seed}; {tally.not_struck} faults came too "
          f"late to strike; problems: {categories or 'none'}")
    if options.report:
        with endings.written_whole(options.report) as partial:
            partial.write_text(json.dumps(figures, indent=1) + "\n")


def main():
    begin = time.time()
    if options.report:
        endings.require_report(options.report, FORMAT, "name another file with --report")
    interpose = options.interpose or pathlib.Path(options.switchyard).with_name(
        "switchyard_interpose.so")
    if not interpose.exists():
        raise endings.Unusable(f"{interpose} does not exist; build the target switchyard_interpose")
    root = pathlib.Path(tempfile.mkdtemp(prefix="switchyard_faults_"))
    workplace = Workplace(root, interpose.resolve(strict=True), LAYOUTS[: options.layouts])
    print(f"undisturbed runs of {len(workplace.layouts)} layouts in {root}", flush=True)
    workplace.prepare()
    print("an undisturbed start takes " + ", ".join(
        f"{seconds:.1f} s on {layout}" for layout, seconds in workplace.seconds.items()), flush=True)
    tally = Tally()
    keep = options.keep or root / "failed"
    tell_all(workplace, tally, keep, begin + 60 * options.minutes)
    report(tally, time.time() - begin)
    if tally.problems:
        sys.exit(1)
    shutil.rmtree(root)
    if not tally.stories:
        raise endings.Unusable("the time was over before a run was disturbed; give more --minutes")


if __name__ == "__main__":
    endings.run(main)
