#!/usr/bin/python3
"""Draws loss.png and expert_load.png from the metrics.jsonl of one or several runs.

  scripts/plot.py runs/quickstart_bigmac
  scripts/plot.py runs/quickstart_{vanilla,fine_grained,bigmac} --out runs
"""

import argparse
import json
import pathlib
import sys

import endings
from endings import Unusable, number, table

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.ticker import MaxNLocator
except ImportError as missing:
    endings.without(missing)

# The colours of Okabe and Ito, which colour-blind readers can distinguish, too.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]
INK, FAINT = "#222222", "#d9d9d9"
SMOOTHED_POINTS = 50  # each point of the smoothed curve is the mean of 1 / 50 of the run

plt.rcParams.update({
    "figure.dpi": 150, "savefig.bbox": "tight", "font.size": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK,
    "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.grid": True, "axes.axisbelow": True, "grid.color": FAINT, "grid.linewidth": 0.6,
    "legend.frameon": False,
})


class Run:
    """The records of one metrics.jsonl, in the order of their steps."""

    def __init__(self, path):
        path = pathlib.Path(path)
        file = path / "metrics.jsonl" if path.is_dir() else path
        if not file.exists():
            raise Unusable(f"{file} does not exist; give the folder of a run that `switchyard train` "
                           "has begun")
        self.folder = file.parent
        self.name = file.resolve().parent.name
        self.records = list(read_records(file))
        if not self.records:
            raise Unusable(f"{file} holds no whole record of a step; the run has not finished one")
        finite = np.isfinite(self.column("loss"))
        first = self.records[int(np.argmin(finite))]["step"]
        if not finite.any():
            raise Unusable(f"the run diverged: {file} has no finite loss, from step {first} on; "
                           "there is nothing to draw")
        if not finite.all():
            print(f"plot: {file}: the loss is not finite in {np.count_nonzero(~finite)} of "
                  f"{finite.size} steps, first in step {first}", file=sys.stderr)

    def column(self, key, where=lambda record: True):
        """Values of a key as floats; NaN where it is null, missing or no finite number."""
        values = np.array([number(record.get(key)) for record in self.records if where(record)])
        return np.where(np.isfinite(values), values, np.nan)

    def last_expert_load(self):
        """Load over mean load [MoE layers, experts] and its step; None without experts."""
        for record in reversed(self.records):
            load = table(record.get("expert_load"))
            if load is not None:
                shares = np.array(load)
                return shares * shares.shape[1], record["step"]
        return None


def read_records(file):
    """Yields the records; skips other lines, because an active run may end in half a line."""
    with open(file, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and np.isfinite(
                    [number(record.get("step")), number(record.get("tokens"))]).all():
                yield record


def smooth(values):
    """Centred running mean over the finite values; shorter windows at the ends."""
    half = len(values) // SMOOTHED_POINTS // 2
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(values))
    # The window is symmetric; otherwise the steep beginning of the curve would be too low.
    reach = np.minimum(half, np.minimum(index, len(values) - 1 - index))
    begin, end = index - reach, index + reach + 1
    with np.errstate(invalid="ignore"):
        return (sums[end] - sums[begin]) / (counts[end] - counts[begin])


def token_unit(runs):
    most = max(run.column("tokens").max() for run in runs)
    for scale, name in [(1e9, "billion"), (1e6, "million"), (1e3, "thousand")]:
        if most >= scale:
            return scale, f"tokens ({name})"
    return 1.0, "tokens"


def save(figure, path):
    with endings.written_whole(path) as partial:
        figure.savefig(partial, format="png")
    plt.close(figure)


def draw_loss(runs, path):
    scale, unit = token_unit(runs)
    figure, axes = plt.subplots(figsize=(8, 4.6))
    lows, starts = [], []
    for run, colour in zip(runs, COLOURS):
        tokens, loss = run.column("tokens") / scale, run.column("loss")
        smoothed = smooth(loss)
        axes.plot(tokens, loss, color=colour, alpha=0.2, linewidth=0.7)
        axes.plot(tokens, smoothed, color=colour, linewidth=1.6, label=f"{run.name}, training")
        lows.append(np.nanmin(loss))
        starts.append(np.nanmax(loss))

        evaluated = lambda record: np.isfinite(number(record.get("val_loss")))  # noqa: E731
        held_out = run.column("val_loss", evaluated)
        if held_out.size:
            axes.plot(run.column("tokens", evaluated) / scale, held_out, color=colour,
                      linestyle="none", marker="o", markersize=4.5, markerfacecolor="white",
                      label=f"{run.name}, held out (last {held_out[-1]:.3f})")
            lows.append(held_out.min())
    low, high = min(lows), max(starts)
    margin = 0.05 * (high - low) or 0.5  # a single step has no range
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlim(left=0)
    axes.set_xlabel(unit)
    axes.set_ylabel("cross-entropy (nats per token)")
    axes.set_title("Loss")
    axes.legend()
    save(figure, path)


def draw_load_map(figure, axes, run):
    load, step = run.last_expert_load()
    # All pictures have one scale, so that they can be compared; larger values are drawn as its end.
    norm = TwoSlopeNorm(vmin=0.0, vcenter=1.0, vmax=3.0)
    image = axes.imshow(load, aspect="auto", cmap="RdBu_r", norm=norm, interpolation="nearest")
    axes.grid(False)
    axes.set_xlabel("expert")
    axes.set_ylabel("MoE layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(f"{run.name}: load of each expert at step {step}")
    bar = figure.colorbar(image, ax=axes, extend="max", ticks=[0, 0.5, 1, 2, 3], pad=0.02)
    bar.set_label("load / mean load")
    bar.outline.set_visible(False)


def draw_expert_load(runs, path):
    """A map per run, and below them the load of the busiest expert over the mean in every step."""
    mapped = [run for run in runs if run.last_expert_load() is not None]
    heights = [0.9 + 0.22 * len(run.last_expert_load()[0]) for run in mapped] + [2.4]
    figure, rows = plt.subplots(len(heights), 1, figsize=(8, sum(heights) + 0.9 * len(mapped)),
                                height_ratios=heights, squeeze=False, layout="constrained")
    for run, axes in zip(mapped, rows[:, 0]):
        draw_load_map(figure, axes, run)
    axes = rows[-1, 0]
    for run, colour in zip(runs, COLOURS):
        steps, ratio = run.column("step"), run.column("max_load_ratio")
        axes.plot(steps, ratio, color=colour, alpha=0.2, linewidth=0.7)
        axes.plot(steps, smooth(ratio), color=colour, linewidth=1.6, label=run.name)
    axes.axhline(1.0, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("greatest / mean load")
    axes.set_title("Busiest expert of all layers (1.0 is balanced)")
    if len(runs) > 1:
        axes.legend()
    save(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", help="run folders or metrics.jsonl files")
    parser.add_argument("--out", type=pathlib.Path, help="output folder; default: the first run's")
    arguments = parser.parse_args()
    if len(arguments.runs) > len(COLOURS):
        parser.error(f"at most {len(COLOURS)} runs can be told apart in one picture")

    runs = [Run(path) for path in arguments.runs]
    out = arguments.out or runs[0].folder
    endings.make_folder(out)
    loss, expert_load = (endings.picture(out, name) for name in ("loss.png", "expert_load.png"))
    draw_loss(runs, loss)
    print(loss)
    routed = [run for run in runs if np.any(run.column("max_load_ratio") > 0.0)]
    if routed:
        draw_expert_load(routed, expert_load)
        print(expert_load)


if __name__ == "__main__":
    endings.run(main)
