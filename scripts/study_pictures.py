"""The figures of a study's report. Each returns tables, as lists of rows, and a picture as SVG."""

import collections
import io
import math
import statistics

import endings

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
except ImportError as missing:
    endings.without(missing)

import ladder_fit
import plot
from endings import number
from study_file import describe, named, short

# BigMac (arXiv 2502.16927): All-to-All in ms and its share of the time, of training and of
# inference, by top_k of 64 experts (Table 1); share, speed-up end to end, and that of the
# All-to-All alone, by top_k, at (ep, tp) = (32, 1) (Figure 4); inference with prompts of 128, by
# top_k and generated tokens (Table 9).
PAPER_SHARES = {1: (336.9, 59.9, 94.9, 51.2), 2: (535.6, 71.3, 132.9, 65.2),
                4: (1089.5, 84.1, 268.7, 79.2), 6: (1692.8, 89.1, 457.0, 86.5),
                8: (2383.4, 91.8, 696.5, 90.6)}
PAPER_SPEEDUPS = {4: (0.841, 2.37, 3.48), 8: (0.918, 2.95, 3.72)}
PAPER_GENERATION = {8: {1: 3.11, 2: 2.89, 5: 2.41, 10: 1.99},
                    4: {1: 2.81, 2: 2.50, 5: 2.03, 10: 1.62}}


def to_svg(figure):
    """The picture as an element of a page: text stays text, and equal pictures get equal bytes."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "study"}):
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg"):]


def without_axes(labels, *axes):
    """The labels of all other axes, by which points belong together."""
    return tuple((axis, value) for axis, value in labels.items() if axis not in axes)


def pairs(rows, figure):
    """(label of `by`, other labels, row of `from`, row of `to`) where both have results."""
    axis, by = figure["axis"], figure["by"]
    first, second = ({(row.labels[by], without_axes(row.labels, axis, by)): row for row in rows
                      if row.labels[axis] == figure[side]} for side in ("from", "to"))
    for key in first:
        if key in second:
            yield (*key, first[key], second[key])


# ---- efficiency over ranks -----------------------------------------------------------------------

def efficiency(rows, figure):
    """Tokens per second and rank by those of the fewest ranks, the median of ratios within one
    repetition: measured, predicted, ideal."""
    axes_figure, axes = plt.subplots(figsize=(7, 4))
    table = []
    for colour, value in zip(plot.COLOURS, dict.fromkeys(row.labels[figure["by"]] for row in rows)):
        own = sorted((row for row in rows if row.labels[figure["by"]] == value),
                     key=lambda row: row.point.ranks)
        fewest = own[0]
        shares = [statistics.median(row.ratios("tokens_per_s", fewest) or [math.nan]) *
                  fewest.point.ranks / row.point.ranks for row in own]
        expected = [number(row.predicted.get("tokens_per_s")) / row.point.ranks for row in own]
        ranks = [row.point.ranks for row in own]
        name = named(figure["by"], value)
        axes.plot(ranks, shares, marker="o", color=colour, label=f"{name}, measured")
        if np.isfinite(expected).any():
            axes.plot(ranks, np.array(expected) / expected[0], linestyle="--", marker="o",
                      color=colour, markerfacecolor="white", label=f"{name}, predicted")
        for row, share, guess in zip(own, shares, expected):
            predicted = 100 * guess / expected[0]
            table.append({short(figure["by"]): value, "ranks": row.point.ranks,
                          "tokens/s": f"{row.median('tokens_per_s'):,.0f}",
                          "efficiency": f"{100 * share:.1f} %" if math.isfinite(share) else "",
                          "predicted": f"{predicted:.1f} %" if math.isfinite(predicted) else ""})
    axes.axhline(1.0, color=plot.INK, linestyle=":", linewidth=1, label="ideal")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
    axes.set_xticks(sorted({row.point.ranks for row in rows}))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("ranks")
    axes.set_ylabel("tokens/s per rank, by the fewest ranks")
    axes.set_title("Efficiency")
    axes.legend()
    return [table], to_svg(axes_figure)


# ---- what BigMac gains ---------------------------------------------------------------------------

def speedup(rows, figure):
    """Tokens per second of `to` by those of `from`, over the share of exchange in `from`'s step."""
    axes_figure, axes = plt.subplots(figsize=(7.5, 4.6))
    table, colours, curves = [], {}, collections.defaultdict(list)
    for value, others, slow, fast in pairs(rows, figure):
        ratios = fast.ratios("tokens_per_s", slow)
        if not ratios:
            continue
        colour = colours.setdefault(value, plot.COLOURS[len(colours) % len(plot.COLOURS)])
        share, ratio = slow.median("exchange_share"), statistics.median(ratios)
        axes.errorbar(100 * share, ratio, yerr=[[ratio - min(ratios)], [max(ratios) - ratio]],
                      color=colour, marker="o", capsize=2, linestyle="none")
        curves[colour].append((100 * share, ratio))
        if others:
            axes.annotate(describe(dict(others)), (100 * share, ratio), xytext=(6, -9), fontsize=7,
                          textcoords="offset points")
        exchange = (f"{statistics.median(slow.ratios('exchange_ms', fast)):.2f}"
                    if fast.median("exchange_ms") > 0.0 else "")
        row = {short(figure["by"]): value, **{short(axis): label for axis, label in others},
               f"exchange of {figure['from']}": f"{100 * share:.1f} %",
               "speed-up": f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
               "exchange alone": exchange, "predicted": ""}
        if slow.predicted and fast.predicted:
            guess = fast.predicted["tokens_per_s"] / slow.predicted["tokens_per_s"]
            axes.plot(100 * slow.predicted["exchange_share"], guess, color=colour, marker="o",
                      markerfacecolor="white", linestyle="none")
            row["predicted"] = f"{guess:.2f} at {100 * slow.predicted['exchange_share']:.1f} %"
        table.append(row)
    for colour, points in curves.items():
        axes.plot(*zip(*sorted(points)), color=colour, linewidth=1)
    for value, colour in colours.items():
        axes.plot([], [], color=colour, marker="o", linestyle="none",
                  label=named(figure["by"], value))
    if any(row["predicted"] for row in table):
        axes.plot([], [], color=plot.INK, marker="o", markerfacecolor="white", linestyle="none",
                  label="predicted")
    if of_twins(figure):
        draw_the_paper(axes, colours)
    axes.legend(loc="upper left")
    axes.axhline(1.0, color=plot.INK, linewidth=0.8)
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"share of exchange in the step of {figure['from']}, %")
    axes.set_ylabel(f"tokens/s of {figure['to']} by {figure['from']}")
    axes.set_title("Speed-up against the share of exchange")
    return [table], to_svg(axes_figure)


def of_twins(figure):
    """Whether the paper's speed-ups are of the same two structures."""
    return (figure["from"], figure["to"]) == ("fine_grained", "bigmac")


def draw_the_paper(axes, colours):
    """Its points, and the speed-up of a model that exchanges a quarter of its twin's rows."""
    for value, (share, ratio, _) in PAPER_SPEEDUPS.items():
        axes.plot(100 * share, ratio, marker="*", markersize=12, linestyle="none",
                  color=colours.get(str(value), plot.INK))
    axes.plot([], [], color=plot.INK, marker="*", markersize=12, linestyle="none",
              label="the paper")
    shares = np.linspace(0.0, 0.97, 200)
    axes.plot(100 * shares, 1 / (1 - 0.75 * shares), color=plot.INK, linewidth=0.8, linestyle=":",
              label="a quarter of the exchange, all else equal")


def exchange_share(rows, figure):
    """The form of the paper's Table 1: time of the exchange and its share; `axis` is top_k."""
    table = []
    axes_figure, axes = plt.subplots(figsize=(7, 4))
    top_ks = sorted({row.labels[figure["axis"]] for row in rows}, key=int)
    for top_k in top_ks:
        cells = {"top_k": top_k}
        for row in rows:
            if row.labels[figure["axis"]] == top_k:
                cells[row.labels[figure["by"]] + ", ms (share)"] = exchange_of(row)[2]
        training, share, inference, inference_share = PAPER_SHARES.get(int(top_k), (None,) * 4)
        cells["paper, training"] = f"{training:,.1f} ({share} %)" if training else ""
        cells["paper, inference"] = f"{inference:,.1f} ({inference_share} %)" if training else ""
        table.append(cells)
    for colour, value in zip(plot.COLOURS, dict.fromkeys(row.labels[figure["by"]] for row in rows)):
        own = sorted((int(row.labels[figure["axis"]]), 100 * exchange_of(row)[1]) for row in rows
                     if row.labels[figure["by"]] == value)
        axes.plot(*zip(*own), marker="o", color=colour, label=named(figure["by"], value))
    for column, name in [(1, "training"), (3, "inference")]:
        axes.plot(list(PAPER_SHARES), [shares[column] for shares in PAPER_SHARES.values()],
                  marker="*", color=plot.INK, linewidth=0.8,
                  linestyle=":" if column == 1 else "--",
                  label=f"the paper's small experts, {name}")
    axes.set_ylim(0, 100)
    axes.set_xlabel("top_k")
    axes.set_ylabel("share of exchange, %")
    axes.set_title("What the exchange takes")
    axes.legend()
    return [table], to_svg(axes_figure)


def exchange_of(row):
    """Milliseconds, share, and both as text: of a training step, or of reading prompts."""
    prefix = "" if row.point.command == "train" else "prefill_"
    exchange = row.median(prefix + "exchange_ms")
    share = row.median("exchange_share") if not prefix else exchange / row.median("prefill_ms")
    return exchange, share, f"{exchange:,.1f} ({100 * share:.1f} %)"


def breakdown(rows, figure):
    """What a step consists of, as bars: one for each value of `axis` and `by`."""
    def passes(row):
        both = row.median("forward_ms") + row.median("backward_ms")
        return max(0.0, both - row.median("exchange_ms"))

    parts = [("exchange", lambda row: row.median("exchange_ms")),
             ("other work of the passes", passes),
             ("reduction, update, gathering", lambda row: row.median("optimizer_ms"))]
    axes_figure, axes = plt.subplots(figsize=(7.5, 0.9 + 0.34 * len(rows)))
    names = [describe(row.labels) for row in rows]
    left = np.zeros(len(rows))
    for (name, of_row), colour in zip(parts, [plot.COLOURS[1], plot.COLOURS[0], plot.COLOURS[2]]):
        widths = np.array([of_row(row) for row in rows])
        axes.barh(names, widths, left=left, color=colour, label=name, height=0.7)
        left += widths
    axes.invert_yaxis()
    axes.set_xlabel("ms per step")
    axes.set_title("Parts of a step")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.22 - 0.6 / len(rows)), ncols=3)
    return [[{"of the step": name, **{part: f"{of_row(row):,.1f}" for part, of_row in parts}}
             for name, row in zip(names, rows)]], to_svg(axes_figure)


def hidden(rows, figure):
    """The share of the exchange that is no longer waited for, beside the runs of `from`; and by how
    much of it the step is shorter, which is less where transfers disturb the other work."""
    axes_figure, axes = plt.subplots(figsize=(7.5, 0.9 + 0.34 * len(rows)))
    table = []
    whole = {row.labels[figure["by"]]: row for row in rows
             if row.labels[figure["axis"]] == figure["from"]}
    for row in rows:
        base = whole.get(row.labels[figure["by"]])
        shares = [100 * (1 - ratio) for ratio in row.ratios("exchange_ms", base)] if base else []
        # On other links the exchange is another, and not hidden.
        if row is base or not shares or row.point.run.get("rate") != base.point.run.get("rate"):
            continue
        share, name = statistics.median(shares), describe(row.labels)
        saved = statistics.median(
            100 * (base.figures[run]["step_ms"] - row.figures[run]["step_ms"]) /
            base.figures[run]["exchange_ms"] for run in row.figures.keys() & base.figures.keys())
        axes.barh(name, share, color=plot.COLOURS[0], height=0.7,
                  xerr=[[share - min(shares)], [max(shares) - share]])
        table.append({"beside " + figure["from"]: name,
                      "exchange, waited for": f"{row.median('exchange_ms'):,.1f}",
                      "of": f"{base.median('exchange_ms'):,.1f}",
                      "hidden": f"{share:.1f} % ({min(shares):.1f} to {max(shares):.1f})",
                      "step shorter by": f"{saved:.1f} % of it"})
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"hidden, % of the exchange with transfers {figure['from']}")
    axes.set_title("Exchange that nobody waits for")
    axes.grid(axis="y", visible=False)
    return [table], to_svg(axes_figure)


def generation(rows, figure):
    """The form of the paper's Table 9: how much sooner `to` has generated so many tokens."""
    table = []
    axes_figure, axes = plt.subplots(figsize=(7, 4))
    # A colour for each value of `by`, a marker for each of the other axes'.
    styles, markers, prompt_share = {}, {}, f"exchange of {figure['from']}, prompt"
    for value, others, slow, fast in pairs(rows, figure):
        runs = slow.figures.keys() & fast.figures.keys()
        if not runs:
            continue
        lengths = [case["tokens"] for case in next(iter(slow.figures.values()))["generation"]]
        ratios = [statistics.median(time_of(slow, run, i) / time_of(fast, run, i) for run in runs)
                  for i in range(len(lengths))]
        name = describe({figure["by"]: value, **dict(others)})
        table.append({"generated tokens": name,
                      **{str(length): f"{ratio:.2f}" for length, ratio in zip(lengths, ratios)},
                      prompt_share: f"{100 * exchange_of(slow)[1]:.1f} %"})
        colour = styles.setdefault(value, plot.COLOURS[len(styles) % len(plot.COLOURS)])
        marker = markers.setdefault(others, "osD^vPX"[len(markers) % 7])
        axes.plot(lengths, ratios, marker=marker, color=colour, label=name)
    for top_k, ratios in PAPER_GENERATION.items() if of_twins(figure) else ():
        table.append({"generated tokens": f"the paper, top_k {top_k}, ep 16",
                      **{str(length): f"{ratio:.2f}" for length, ratio in ratios.items()},
                      prompt_share: ""})
        axes.plot(list(ratios), list(ratios.values()), marker="*", linestyle=":",
                  color=styles.get(str(top_k), plot.INK), label=f"the paper, top_k {top_k}")
    axes.axhline(1.0, color=plot.INK, linewidth=0.8)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("generated tokens")
    axes.set_ylabel(f"time of {figure['from']} by {figure['to']}")
    axes.set_title("From the prompt to the last token")
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), fontsize=8)
    return [table], to_svg(axes_figure)


def time_of(row, run, index):
    return row.figures[run]["generation"][index]["ms"]


def draw(figure, rows, runner):
    """Tables and the picture of one figure of a part."""
    if figure["figure"] == "ladder":
        return ladder_fit.ladder(rows, figure, runner, to_svg)
    kinds = {"efficiency": efficiency, "speedup": speedup, "exchange_share": exchange_share,
             "breakdown": breakdown, "hidden": hidden, "generation": generation}
    return kinds[figure["figure"]](rows, figure)
