#!/usr/bin/python3
"""Draws the results of eval-hash.

The pictures are recall_by_budget.png, recall_by_bits.png, recall_by_head.png and, for recall tasks,
answers_by_budget.png.

  scripts/plot_hash.py runs/recall_bigmac
  scripts/plot_hash.py runs/recall_bigmac/hash/evaluation.json --out pictures
"""

import argparse
import math
import pathlib

import endings
from endings import Unusable, number
from plot import COLOURS, INK, np, plt, save  # plot ends with a sentence without these packages

from matplotlib.colors import TwoSlopeNorm
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

# (name, colour, mark) in the order of legends; the same in every picture.
METHODS = {
    "exact_topk": ("exact top-k", INK, "x"),
    "hata": ("HATA", COLOURS[0], "o"),
    "hata_norm": ("HATA, key norm", COLOURS[5], "s"),
    "random_hash": ("random hash", COLOURS[1], "^"),
    "quest": ("Quest", COLOURS[2], "D"),
    "loki": ("Loki", COLOURS[3], "v"),
    "streaming": ("StreamingLLM", COLOURS[4], "P"),
    "magicpig": ("MagicPIG", "#999999", "*"),
    "h2o": ("H2O", "#8c564b", "<"),
    "snapkv": ("SnapKV", "#f0e442", ">"),
}
PAPER_BUDGETS = [0.015625, 0.03125]
MAIN_BITS = 128


class Evaluation:
    """One evaluation.json. Figures that are not finite are NaN."""

    def __init__(self, path):
        path = pathlib.Path(path)
        file = path / "hash" / "evaluation.json" if path.is_dir() else path
        self.content = endings.read_json(file, "`switchyard eval-hash` makes it")
        if self.content.get("format") != "switchyard.hash_evaluation":
            raise Unusable(f"{file} is not an evaluation of hash projections; "
                           "`switchyard eval-hash` makes one")
        missing = first_missing(self.content)
        if missing:
            raise Unusable(f"{file} is incomplete: {missing}; `switchyard eval-hash` makes it again")
        self.folder = file.parent
        self.results = self.content["results"]
        if not any(math.isfinite(result["recall"]) for result in self.results):
            raise Unusable(f"{file} holds no finite recall: the model or its hash weights diverged")
        bits = sorted({r["bits"] for r in self.results if "bits" in r})
        # The paper's number of bits, or the nearest measured one.
        self.main_bits = min(bits, key=lambda b: abs(b - MAIN_BITS)) if bits else None

    def share(self, result):
        return result["budget_tokens"] / self.content["context"]

    def of(self, method, bits=None):
        """The results of one method (and number of bits), in ascending order of budget."""
        found = [r for r in self.results
                 if method_of(r) == method and (bits is None or r.get("bits", bits) == bits)]
        return sorted(found, key=lambda r: r["budget_tokens"])

    def has_tasks(self):
        return "tasks" in self.content["dense"]


FIGURES = ("recall", "attention_mass", "output_error", "loss", "perplexity")


def read_figures(entry, keys, name):
    """Replaces an object's figures by floats, NaN for null. Returns which is missing, or None."""
    if not isinstance(entry, dict):
        return f"{name} is no object"
    for key in keys:
        if key not in entry:
            return f"{name} has no {key}"
        entry[key] = number(entry[key])
    return None


def first_missing_of_layers(result, name):
    """The same for the layers and heads of a result; every layer must have as many heads."""
    layers = result.get("layers")
    if not isinstance(layers, list) or not layers:
        return f"{name} has no layers"
    heads = []
    for layer in layers:
        missing = read_figures(layer, FIGURES[:2], f"a layer of {name}")
        found = None if missing else layer.get("heads")
        if not missing and ("layer" not in layer or not isinstance(found, list) or not found):
            missing = f"a layer of {name} has no number or no heads"
        for head in found or []:
            missing = missing or read_figures(head, FIGURES[:1], f"a head of {name}")
        if missing:
            return missing
        heads.append(len(found))
    return None if len(set(heads)) == 1 else f"the layers of {name} differ in their heads"


def first_missing_of_tasks(scores, tasks, name):
    """The same for the recall tasks of a result, which must be those of dense decoding."""
    found = scores.get("tasks", {})
    if not isinstance(found, dict) or found.keys() != tasks.keys():
        return f"{name} has other tasks than dense decoding"
    for task, of_task in found.items():
        missing = read_figures(of_task, ["answers"], f"task {task} of {name}")
        if missing:
            return missing
    return None


def first_missing(content):
    """What an evaluation lacks of the keys that pictures and tables read, or None."""
    for key in ("checkpoint", "sequences", "prefill", "dense_layers"):
        if key not in content:
            return f"there is no {key}"
    if not number(content.get("context")) > 0:
        return "there is no context"
    missing = read_figures(content.get("dense"), FIGURES[3:], "dense")
    tasks = {} if missing else content["dense"].get("tasks", {})
    if not missing and (not isinstance(tasks, dict) or ("tasks" in content["dense"] and not tasks)):
        missing = "dense has no tasks"
    missing = missing or first_missing_of_tasks(content["dense"], tasks, "dense")
    results = content.get("results")
    if not missing and (not isinstance(results, list) or not results):
        missing = "there are no results"
    for index, result in enumerate([] if missing else results):
        name = f"result {index + 1}"
        missing = read_figures(result, (*FIGURES, "keys", "budget", "budget_tokens"), name)
        if not missing and not isinstance(result.get("method"), str):
            missing = f"{name} has no method"
        if not missing and not math.isfinite(result["budget"] + result["budget_tokens"]):
            missing = f"{name} has no finite budget"
        if not missing and not math.isfinite(number(result.get("bits", 0))):
            missing = f"{name} has no number of bits"
        if not missing:
            result["budget_tokens"] = int(result["budget_tokens"])
        missing = missing or first_missing_of_tasks(result, tasks, name)
        missing = missing or first_missing_of_layers(result, name)
        if missing:
            return missing
    return missing


def share_text(share):
    """A share in the paper's form: 1.56 %, 3.13 %."""
    hundredths = int(10000 * share + 0.5)
    return f"{hundredths // 100}.{hundredths % 100:02} %"


def method_of(result):
    return result["method"] + ("_norm" if result.get("key_norm") else "")


def mean_answers(scores):
    """Mean over tasks of the share of right answers."""
    return float(np.mean([task["answers"] for task in scores["tasks"].values()]))


def label_of(evaluation, method):
    name = METHODS[method][0]
    hashed = any("bits" in r for r in evaluation.of(method))
    return f"{name}, {evaluation.main_bits} bits" if hashed else name


def budget_axis(axes, evaluation):
    shares = sorted({evaluation.share(r) for r in evaluation.results})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(shares))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.2g} %"))
    axes.set_xlabel(f"budget (share of {evaluation.content['context']} keys)")


def draw_by_budget(evaluation, panels, path, title):
    """One panel per (title, value of a result, value of dense decoding or None)."""
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4.6 * columns + 1.6, 4.2 * rows),
                                squeeze=False, layout="constrained")
    for axes, (name, value, dense) in zip(grid.flat, panels):
        for method, (_, colour, mark) in METHODS.items():
            results = evaluation.of(method, evaluation.main_bits)
            if not results:
                continue
            axes.plot([evaluation.share(r) for r in results], [value(r) for r in results],
                      color=colour, marker=mark, markersize=5, linewidth=1.4,
                      label=label_of(evaluation, method))
        if dense is not None:
            axes.axhline(dense, color=INK, linewidth=0.8, linestyle=":", label="dense")
        budget_axis(axes, evaluation)
        axes.set_ylim(-0.02, 1.03)
        axes.set_title(name)
    for axes in grid.flat[len(panels):]:
        axes.set_axis_off()
    grid[0, -1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    save(figure, path)


def nearest_budget(results, share, evaluation):
    return min(results, key=lambda r: abs(evaluation.share(r) - share))


def draw_by_bits(evaluation, path):
    bits = sorted({r["bits"] for r in evaluation.results if "bits" in r})
    figure, row = plt.subplots(1, len(PAPER_BUDGETS), figsize=(9.6, 4.0), squeeze=False,
                               sharey=True, layout="constrained")
    for axes, budget in zip(row[0], PAPER_BUDGETS):
        for method in ["hata", "hata_norm", "random_hash"]:
            name, colour, mark = METHODS[method]
            points = [(b, nearest_budget(evaluation.of(method, b), budget, evaluation)["recall"])
                      for b in bits if evaluation.of(method, b)]
            if points:
                axes.plot(*zip(*points), color=colour, marker=mark, markersize=5, linewidth=1.4,
                          label=name)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(bits))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
        axes.set_xlabel("bits of a code")
        axes.set_ylim(0.0, 1.02)
        axes.set_title(f"Budget {share_text(budget)}")
    row[0, 0].set_ylabel("recall of the true top N")
    row[0, -1].legend(loc="lower right")
    save(figure, path)


def head_map(result):
    """Recall [layers, heads], and the numbers of the layers."""
    layers = result["layers"]
    return (np.array([[head["recall"] for head in layer["heads"]] for layer in layers]),
            [layer["layer"] for layer in layers])


def draw_map(figure, axes, values, layers, title, label, **style):
    image = axes.imshow(values, aspect="auto", interpolation="nearest", **style)
    axes.grid(False)
    axes.set_xticks(range(values.shape[1]))
    axes.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_xlabel("key/value head")
    axes.set_ylabel("layer")
    axes.set_title(title)
    if values.size <= 64:
        for (y, x), value in np.ndenumerate(values):
            if not np.isfinite(value):
                continue
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8,
                      color=ink_on(image, value))
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)


def ink_on(image, value):
    red, green, blue, _ = image.cmap(image.norm(value))
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else INK


def draw_by_head(evaluation, path):
    """Recall of HATA per layer and head, and what learning added to a random projection."""
    learned = evaluation.of("hata", evaluation.main_bits)
    random = evaluation.of("random_hash", evaluation.main_bits)
    learned = nearest_budget(learned, PAPER_BUDGETS[0], evaluation)
    values, layers = head_map(learned)
    panels = 2 if random else 1
    figure, row = plt.subplots(1, panels, squeeze=False, layout="constrained",
                               figsize=(5.2 * panels, 1.6 + 0.55 * len(layers)))
    at = f"{evaluation.main_bits} bits, {learned['budget_tokens']} keys"
    draw_map(figure, row[0, 0], values, layers, f"HATA, {at}", "recall of the true top N",
             cmap="viridis", vmin=0.0, vmax=1.0)
    if random:
        gain = values - head_map(nearest_budget(random, PAPER_BUDGETS[0], evaluation))[0]
        reach = max(float(np.nanmax(np.abs(gain), initial=0.0)), 0.05)
        draw_map(figure, row[0, 1], gain, layers, "HATA - random projection",
                 "difference of recall", cmap="RdBu", norm=TwoSlopeNorm(0.0, -reach, reach))
    save(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("evaluation", help="run folder, or an evaluation.json")
    parser.add_argument("--out", type=pathlib.Path, help="output folder; default: the evaluation's")
    arguments = parser.parse_args()

    evaluation = Evaluation(arguments.evaluation)
    out = arguments.out or evaluation.folder
    endings.make_folder(out)
    by_budget, by_bits, by_head, answers = (
        endings.picture(out, name) for name in
        ("recall_by_budget.png", "recall_by_bits.png", "recall_by_head.png",
         "answers_by_budget.png"))
    draw_by_budget(evaluation, [("Recall of the true top N", lambda r: r["recall"], None),
                                ("Attention mass", lambda r: r["attention_mass"], None)],
                   by_budget, "Recall and attention mass of the chosen keys, "
                   "mean over layers and heads")
    print(by_budget)
    if evaluation.main_bits is not None:
        draw_by_bits(evaluation, by_bits)
        print(by_bits)
    if evaluation.of("hata", evaluation.main_bits):
        draw_by_head(evaluation, by_head)
        print(by_head)
    if evaluation.has_tasks():
        tasks = list(evaluation.content["dense"]["tasks"])
        panels = [("All tasks", mean_answers, mean_answers(evaluation.content["dense"]))]
        for task in tasks:
            panels.append((task, lambda r, task=task: r["tasks"][task]["answers"],
                           evaluation.content["dense"]["tasks"][task]["answers"]))
        draw_by_budget(evaluation, panels[:1] + panels[1:], answers, "Share of right answers")
        print(answers)


if __name__ == "__main__":
    endings.run(main)
