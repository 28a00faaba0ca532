"""Quality over size: losses at equal tokens and at equal time, and L = E + A / N^a + B / D^b.

N is the number of parameters that a token uses, D the tokens seen (Hoffmann et al., arXiv
2203.15556, section 3.3). Every evaluation of a run is a sample, so one run gives several D.
Intervals come from fitting again to runs drawn with replacement within each size.
"""

import collections
import math
import pathlib
import re
import statistics

import endings

try:
    import matplotlib.pyplot as plt
    import numpy as np
    from scipy import optimize, stats
except ImportError as missing:
    endings.without(missing)

import plot
import study_runs
from study_file import short

DRAWS = 200
NAMES = ["E", "A", "a", "B", "b"]


def fit(samples, start=None):
    """log E, log A, a, log B, b by least squares of Huber's loss on log L, from several starts.
    `samples` is [count, 3]: N, D, L."""
    params, tokens, losses = np.log(np.asarray(samples, dtype=float)).T

    def log_terms(values):
        constant, a_scale, a, b_scale, b = values
        return np.stack(
            [np.full(len(losses), constant), a_scale - a * params, b_scale - b * tokens])

    def off(values):
        return np.logaddexp.reduce(log_terms(values)) - losses

    def slopes(values):
        terms = log_terms(values)
        constant, of_params, of_tokens = np.exp(terms - np.logaddexp.reduce(terms))
        return np.stack([constant, of_params, -params * of_params, of_tokens, -tokens * of_tokens],
                        axis=1)

    # The sizes are taken out of A and B, so that they are of the order of the loss in every start.
    starts = [start] if start is not None else [
        (math.log(e), a * params.mean(), a, b * tokens.mean(), b)
        for e in (0.3, 1.0) for a in (0.2, 0.5) for b in (0.2, 0.5)]
    # Exponents up to 2: where the sizes cannot tell a term from the constant, it stays bounded.
    bounds = ([-8, -20, 0.01, -20, 0.01], [3, 40, 2, 40, 2])
    best = min((optimize.least_squares(off,
                                       one,
                                       slopes,
                                       bounds,
                                       loss="huber",
                                       f_scale=1e-3,
                                       x_scale="jac",
                                       ftol=1e-7,
                                       max_nfev=100) for one in starts),
               key=lambda result: result.cost)
    return best.x


def readable(values):
    constant, a_scale, a, b_scale, b = values
    return [math.exp(constant), math.exp(a_scale), a, math.exp(b_scale), b]


def samples_of(runs):
    return [(run.active, tokens, loss) for run in runs for tokens, loss in run.losses]


def fit_with_intervals(runs):
    """The fit, and 2.5 and 97.5 % of its values over draws of the runs; None while there are fewer
    than three sizes, which say nothing of A and a."""
    by_size = collections.defaultdict(list)
    for run in runs:
        by_size[run.size].append(run)
    if len(by_size) < 3:
        return None
    best = fit(samples_of(runs))
    rng = np.random.default_rng(1234)
    drawn = []
    for _ in range(DRAWS):
        chosen = [own[i] for own in by_size.values() for i in rng.integers(len(own), size=len(own))]
        drawn.append(readable(fit(samples_of(chosen), best)))
    return best, np.percentile(drawn, [2.5, 97.5], axis=0)


class LadderRun:
    """One training: its size, N, and [tokens, held-out loss] of every evaluation."""

    def __init__(self, row, figure, active, losses):
        self.structure, self.size = row.labels[figure["axis"]], row.labels[figure["by"]]
        self.other = tuple(value for axis, value in row.labels.items()
                           if axis not in (figure["axis"], figure["by"]))  # its seed
        self.active, self.losses = active, losses


def active_parameters(runner, point):
    """How many parameters a token uses, as `plan` counts them."""
    said = study_runs.call([
        str(runner.program), "plan", *point.arguments(runner.run_folder(point, 1)), "--ranks",
        str(point.ranks)
    ])
    return int(re.search(r"active per token\s+(\d+)", said).group(1))


def runs_of(rows, figure, runner):
    active, runs = {}, []
    for row in rows:
        key = (row.labels[figure["axis"]], row.labels[figure["by"]])
        if key not in active:
            active[key] = active_parameters(runner, row.point)
        runs += [
            LadderRun(row, figure, active[key], figures["losses"])
            for figures in row.figures.values()
        ]
    return runs


def interval(values):
    """Half the width of the 95 % interval of the mean, by Student's t; NaN for one value."""
    if len(values) < 2:
        return math.nan
    return stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def mean_difference(ratios):
    """How far ratios are from 1 on average, with the interval of the mean."""
    off = [100 * (ratio - 1.0) for ratio in ratios]
    return f"{statistics.mean(off):+.2f} % ± {interval(off):.2f}" if off else ""


def loss_table(runs, figure):
    """Last losses by size and structure, and how far `to` is from `from` with the same seed: for
    each size, and over the pairs of all of them."""
    last = {(run.structure, run.size, run.other): run.losses[-1] for run in runs}
    structures, sizes = (list(dict.fromkeys(getattr(run, key) for run in runs))
                         for key in ("structure", "size"))
    table, everywhere = [], []
    compared = f"{figure['to']} by {figure['from']}"
    for size in sizes:
        cells = {short(figure["by"]): size}
        for structure in structures:
            losses = [
                loss for (kind, of, _), (_, loss) in last.items() if (kind, of) == (structure, size)
            ]
            if losses:
                cells[structure] = f"{statistics.mean(losses):.4f} ± {interval(losses):.4f}"
        tokens = {tokens for (_, of, _), (tokens, _) in last.items() if of == size}
        cells["tokens"] = " or ".join(f"{count:,}" for count in sorted(tokens))
        ratios = [
            last[figure["to"], size, seed][1] / loss
            for (kind, of, seed), (_, loss) in last.items()
            if (kind, of) == (figure["from"], size) and (figure["to"], size, seed) in last
        ]
        cells[compared] = mean_difference(ratios)
        everywhere += ratios
        table.append(cells)
    if len(sizes) > 1:
        table.append({**dict.fromkeys(table[0], ""), short(figure["by"]): "all",
                      compared: mean_difference(everywhere)})
    return table


def speeds(figure):
    """(structure, size) -> median tokens per second, of the results in the folder `times`, whose
    study has the same two axes. Where that study has changed, those of its newest points."""
    points, rates = {}, collections.defaultdict(list)
    done, _ = study_runs.Results(pathlib.Path(figure.get("times", ""))).read()
    for result in sorted(done.values(), key=lambda result: result["began"]):
        key = tuple(result["labels"].get(figure[axis]) for axis in ("axis", "by"))
        if points.setdefault(key, result["point"]) != result["point"]:
            points[key] = result["point"]
            rates[key].clear()
        rates[key].append(result["figures"]["tokens_per_s"])
    return {key: statistics.median(values) for key, values in rates.items()}


def draw_curves(axes, runs, x_of, colours):
    """Mean over seeds of the held-out loss, a line for each size."""
    sizes = list(dict.fromkeys(run.size for run in runs))
    for structure, colour in colours.items():
        for rank, size in enumerate(sizes):
            own = [run for run in runs if (run.structure, run.size) == (structure, size)]
            x = x_of(structure, size)
            if not own or x is None:
                continue
            length = min(len(run.losses) for run in own)
            tokens = np.array([tokens for tokens, _ in own[0].losses[:length]])
            losses = np.array([[loss for _, loss in run.losses[:length]] for run in own])
            axes.plot(tokens * x,
                      losses.mean(axis=0),
                      color=colour,
                      linewidth=0.8 + 0.35 * rank,
                      marker="o",
                      markersize=2.5,
                      label=structure if rank == 0 else None)
            axes.fill_between(tokens * x,
                              losses.min(axis=0),
                              losses.max(axis=0),
                              color=colour,
                              alpha=0.12,
                              linewidth=0)
    axes.set_xscale("log")
    axes.set_ylabel("held-out loss, nats per token")
    axes.legend()


def fit_table(fits):
    table = []
    for structure, found in fits.items():
        if found:
            best, (low, high) = found
            table.append({
                "L = E + A / N^a + B / D^b": structure,
                **{
                    name: f"{value:.3g} ({least:.3g} to {most:.3g})"
                    for name, value, least, most in zip(NAMES, readable(best), low, high)
                }
            })
    return table


def ladder(rows, figure, runner, to_svg):
    runs = runs_of(rows, figure, runner)
    structures = list(dict.fromkeys(run.structure for run in runs))
    colours = dict(zip(structures, plot.COLOURS))
    fits = {structure: fit_with_intervals([run for run in runs if run.structure == structure])
            for structure in structures}
    rates = speeds(figure)
    columns = 2 if rates else 1
    picture, axes = plt.subplots(1, columns, figsize=(5.6 * columns, 4.6), squeeze=False,
                                 sharey=True)
    draw_curves(axes[0, 0], runs, lambda *_: 1.0, colours)
    axes[0, 0].set_xlabel("tokens")
    axes[0, 0].set_title("At equal tokens; thicker: larger")
    if rates:
        draw_curves(axes[0, 1], runs,
                    lambda *key: 1.0 / rates[key] if key in rates else None, colours)
        axes[0, 1].set_xlabel(f"seconds, by the speeds in {figure['times']}")
        axes[0, 1].set_title("At equal time")
    return [loss_table(runs, figure), fit_table(fits)], to_svg(picture)
