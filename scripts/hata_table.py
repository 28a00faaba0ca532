#!/usr/bin/python3
"""Writes the results of eval-hash as Markdown tables, beside the figures of the paper.

  scripts/hata_table.py recall runs/hata_study/recall/evaluation.json \\
                        text runs/hata_study/text/evaluation.json
"""

import argparse
import math
import pathlib
import statistics

import endings
from plot_hash import (METHODS, PAPER_BUDGETS, Evaluation, mean_answers, method_of,
                       nearest_budget, share_text)

# HATA (arXiv 2506.02572), table 2, averages over RULER's tasks; 3.13 % is Llama-2-7B at 32 K,
# 1.56 % Llama-3.1-8B at 128 K.
PAPER_AVERAGES = {
    0.03125: {"dense": 65.04, "loki": 7.16, "quest": 56.37, "streaming": 11.82, "hata": 63.91,
              "magicpig": 57.91, "h2o": 5.15, "snapkv": 9.25},
    0.015625: {"dense": 82.68, "loki": 77.80, "quest": 72.55, "streaming": 16.44, "hata": 80.57,
               "magicpig": 55.51, "h2o": 18.68, "snapkv": 51.18},
}


def row(cells):
    return "| " + " | ".join(cells) + " |"


def header(cells):
    return [row(cells), row(["---"] * len(cells))]


def methods_of(evaluation, bits):
    """(key, name) of the measured methods."""
    found = []
    for method, (name, _, _) in METHODS.items():
        results = evaluation.of(method, bits)
        if results:
            hashed = any("bits" in result for result in results)
            found.append((method, f"{name}, {bits} bits" if hashed else name))
    return found


def paper_cell(budget, method):
    value = PAPER_AVERAGES[budget].get(method)
    return f"{value:.2f}" if value is not None else "-"


def answers_table(evaluation, budget, bits):
    """The share of right answers per task, beside the paper's average over RULER."""
    tasks = list(evaluation.content["dense"]["tasks"])
    lines = header(["method", "keys", *tasks, "mean", "HATA paper, RULER"])
    dense = evaluation.content["dense"]

    def cells(scores):
        return [f"{100 * scores['tasks'][task]['answers']:.2f}" for task in tasks] + [
            f"{100 * mean_answers(scores):.2f}"]

    lines.append(row(["dense", str(evaluation.content["context"]), *cells(dense),
                      paper_cell(budget, "dense")]))
    for method, name in methods_of(evaluation, bits):
        result = nearest_budget(evaluation.of(method, bits), budget, evaluation)
        lines.append(row([name, f"{result['keys']:.1f}", *cells(result),
                          paper_cell(budget, method)]))
    return lines


def quality_table(evaluation, budget, bits):
    dense = evaluation.content["dense"]["perplexity"]
    lines = header(["method", "keys", "recall", "attention mass", "output error", "perplexity",
                    "change"])
    lines.append(row(["dense", str(evaluation.content["context"]), "1", "1", "0",
                      f"{dense:.4f}", "0"]))
    for method, name in methods_of(evaluation, bits):
        result = nearest_budget(evaluation.of(method, bits), budget, evaluation)
        lines.append(row([name, f"{result['keys']:.1f}", f"{result['recall']:.3f}",
                          f"{result['attention_mass']:.3f}", f"{result['output_error']:.3f}",
                          f"{result['perplexity']:.4f}",
                          f"{100 * (result['perplexity'] / dense - 1):+.2f} %"]))
    return lines


def layer_table(evaluation, budget, bits):
    """Compares learned with random projections in every layer."""
    learned = nearest_budget(evaluation.of("hata", bits), budget, evaluation)
    random = nearest_budget(evaluation.of("random_hash", bits), budget, evaluation)
    lines = header(["layer", "recall, learned", "recall, random", "mass, learned",
                    "mass, random"])
    for mine, other in zip(learned["layers"] + [dict(learned, layer="all")],
                           random["layers"] + [random]):
        lines.append(row([str(mine["layer"])] + [
            f"{of[key]:.3f}" for key in ("recall", "attention_mass") for of in (mine, other)]))
    return lines


# The projections that train-hash may measure, by their suffixes in its metrics: the first always,
# and at least one other.
FORMS = {"": "learned", "_itq": "itq", "_balanced": "balanced", "_centred": "centred",
         "_random": "random signs"}


def figures_of(held_out):
    """The figures of a head's measurement, each a value per budget; None if one is missing."""
    measured = held_out if isinstance(held_out, dict) else {}
    forms = [form for form in FORMS if form == "" or "recall" + form in measured]
    keys = [figure + form for form in forms for figure in ("recall", "attention_mass")]
    keys.append("attention_mass_best")
    rows = [endings.table([measured.get(key)]) for key in keys]
    return None if None in rows or len(forms) < 2 else {
        key: row for key, (row,) in zip(keys, rows)}


def read_held_out(path):
    """layer -> the held-out figures of its heads, of metrics of train-hash."""
    layers, remedy = {}, "give the metrics.jsonl of a `switchyard train-hash` that has ended"
    for record in endings.read_lines(path, remedy):
        if "held_out" in record:
            figures, layer = figures_of(record["held_out"]), record.get("layer")
            if figures is None or not isinstance(layer, int):
                raise endings.Unusable(f"{path} has an incomplete measurement of a head; {remedy}")
            layers.setdefault(layer, []).append(figures)
    if not layers:
        raise endings.Unusable(f"{path} has no measurements: run train-hash with data.validation")
    if len({tuple(head) for heads in layers.values() for head in heads}) > 1:
        raise endings.Unusable(f"{path} has heads that differ in what was measured; {remedy}")
    return layers


def learning_table(trainings):
    """Learned projections beside those that are not learned, from metrics of train-hash.

    Recall and mass at the smallest budget, means over layers and heads, and in how many layers the
    learned ones are ahead of all others.
    trainings  name -> read_held_out"""
    lines = header(["training", *[f"{name}: recall, mass" for name in FORMS.values()], "best mass",
                    "ahead in layers: recall, mass"])
    for name, layers in trainings.items():
        def of_layer(heads, key):
            return statistics.mean(head[key][0] for head in heads)

        def mean(key):
            return statistics.mean(of_layer(heads, key) for heads in layers.values())

        present = [form for form in FORMS if "recall" + form in next(iter(layers.values()))[0]]
        cells = [f"{mean('recall' + form):.3f}, {mean('attention_mass' + form):.3f}"
                 if form in present else "-" for form in FORMS]
        ahead = [sum(of_layer(heads, figure) > max(of_layer(heads, figure + form)
                                                   for form in present[1:])
                     for heads in layers.values()) for figure in ("recall", "attention_mass")]
        lines.append(row([name, *cells, f"{mean('attention_mass_best'):.3f}",
                          f"{ahead[0]}, {ahead[1]} of {len(layers)}"]))
    return lines


def heads_table(trainings):
    """Recall and mass of every head at the smallest budget, one layer per line, and of random signs
    if the first training measured them."""
    columns = [(name, layers, "") for name, layers in trainings.items()]
    first = next(iter(trainings.values()))
    if "recall_random" in next(iter(first.values()))[0]:
        columns.append(("random signs", first, "_random"))
    lines = header(["layer, heads", *[f"{name}: {figure}" for name, _, _ in columns
                                      for figure in ("recall", "mass")]])
    for layer in first:
        lines.append(row([str(layer), *[
            " ".join(f"{head[figure + form][0]:.3f}" for head in layers.get(layer, []))
            for _, layers, form in columns for figure in ("recall", "attention_mass")]]))
    return lines


def budget_text(budget):
    """A budget of the configuration: from 1 on a number of keys."""
    return f"{budget:g} keys" if budget >= 1 else share_text(budget)


def budgets_table(evaluation, bits):
    """Perplexity of every method at every budget."""
    methods = methods_of(evaluation, bits)
    budgets = sorted({result["budget"] for result in evaluation.results})
    lines = header(["perplexity", *map(budget_text, budgets)])
    for method, name in methods:
        at = {result["budget"]: result["perplexity"] for result in evaluation.of(method, bits)}
        lines.append(row([name, *[f"{at[b]:.3f}" if b in at else "-" for b in budgets]]))
    return lines


def bits_table(evaluation, budget):
    """Learned and random codes of every length; a dash where one kind was not measured."""
    lines = header(["bits", *[f"{figure}, {codes}" for figure in ("recall", "mass", "perplexity")
                              for codes in ("learned", "random")]])
    for bits in sorted({result["bits"] for result in evaluation.results if "bits" in result}):
        found = [evaluation.of(method, bits) for method in ("hata", "random_hash")]
        both = [nearest_budget(of, budget, evaluation) if of else None for of in found]
        lines.append(row([str(bits)] + [
            f"{of[key]:.3f}" if of else "-"
            for key in ("recall", "attention_mass", "perplexity") for of in both]))
    return lines


def read_tasks(path):
    """(task, length) -> the case of dense decoding; and (method, budget) -> (task, length) -> the
    share of answers, of a tasks.json."""
    content = endings.read_json(pathlib.Path(path), "`switchyard eval-tasks` makes it")
    if content.get("format") != "switchyard.task_evaluation":
        raise endings.Unusable(f"{path} is not an evaluation of English tasks; "
                               "`switchyard eval-tasks` makes one")

    def cases(of):
        return {(str(case["task"]), int(case["length"])):
                (endings.number(case["answers"]), int(case["samples"])) for case in of}

    try:
        return cases(content["dense"]), {(method_of(result), float(result["budget"])): cases(
            result["cases"]) for result in content["results"]}
    except (KeyError, TypeError, ValueError) as error:
        raise endings.Unusable(f"{path} is incomplete ({error}); `switchyard eval-tasks` makes it "
                               "again") from error


def tasks_tables(paths):
    """Answers found, in per cent: by dense decoding everywhere, by the methods where it finds
    enough, and the mean over those."""
    dense, found = {}, {}
    for path in paths:
        of_dense, of_methods = read_tasks(path)
        dense.update(of_dense)
        for method, cases in of_methods.items():
            found.setdefault(method, {}).update(cases)
    lengths = sorted({length for _, length in dense})
    lines = header(["dense, answers found (samples)", *map(str, lengths)])
    for task in dict.fromkeys(task for task, _ in dense):
        cases = [dense.get((task, length)) for length in lengths]
        lines.append(row([task, *[f"{100 * case[0]:.1f} ({case[1]})" if case else ""
                                  for case in cases]]))
    compared = sorted({case for of in found.values() for case in of}, key=lambda case: case[::-1])
    if not compared:
        return lines
    lines += ["", *header(["answers found, %", *[f"{task}, {length}" for task, length in compared],
                           "mean"])]

    def cells(of):
        shares = [of[case][0] if case in of else math.nan for case in compared]
        return [f"{100 * share:.1f}" for share in [*shares, statistics.mean(shares)]]

    lines.append(row(["dense", *cells(dense)]))
    for method, (name, _, _) in METHODS.items():
        for budget in sorted(budget for of, budget in found if of == method):
            lines.append(row([f"{name}, {budget_text(budget)}", *cells(found[method, budget])]))
    return lines


def describe(name, evaluation, bits):
    content = evaluation.content
    lines = [f"## {name}", "",
             f"{content['checkpoint']}; {content['sequences']} held-out sequences of "
             f"{content['context']} tokens. All tokens after the first {content['prefill']} "
             f"are decoded one by one. The first {content['dense_layers']} layers are dense.", ""]
    for budget in PAPER_BUDGETS:
        lines += [f"### Budget {share_text(budget)}", ""]
        if evaluation.has_tasks():
            lines += [*answers_table(evaluation, budget, bits), ""]
        lines += [*quality_table(evaluation, budget, bits), ""]
        if evaluation.of("hata", bits) and evaluation.of("random_hash", bits):
            lines += [*layer_table(evaluation, budget, bits), ""]
    lines += ["### All budgets", "", *budgets_table(evaluation, bits), ""]
    if len({result["bits"] for result in evaluation.results if "bits" in result}) > 1:
        lines += [f"### Bits, {share_text(PAPER_BUDGETS[0])}", "",
                  *bits_table(evaluation, PAPER_BUDGETS[0]), ""]
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("evaluations", nargs="*", metavar="NAME FILE",
                        help="pairs of a name and an evaluation.json")
    parser.add_argument("--learning", nargs="+", metavar="FILE", default=[],
                        help="metrics.jsonl of train-hash, for a table of what learning gains")
    parser.add_argument("--tasks", nargs="+", metavar="FILE", default=[],
                        help="tasks.json of eval-tasks, for tables of the answers found")
    parser.add_argument("--bits", type=endings.positive_integer,
                        help="bits of the codes; default: 128 or the nearest")
    arguments = parser.parse_args()
    if len(arguments.evaluations) % 2:
        parser.error("every name needs a file")
    if arguments.learning:
        trainings = {pathlib.Path(path).stem: read_held_out(path) for path in arguments.learning}
        print("\n".join([*learning_table(trainings), "", *heads_table(trainings), ""]))
    if arguments.tasks:
        print("\n".join([*tasks_tables(arguments.tasks), ""]))
    pairs = zip(arguments.evaluations[::2], arguments.evaluations[1::2])
    for name, path in pairs:
        evaluation = Evaluation(path)
        measured = sorted({r["bits"] for r in evaluation.results if "bits" in r})
        if arguments.bits and arguments.bits not in measured:
            raise endings.Unusable(f"{path} has no codes of {arguments.bits} bits; measured are: "
                                   f"{', '.join(map(str, measured)) or 'none'}")
        print("\n".join(describe(name, evaluation, arguments.bits or evaluation.main_bits)))


if __name__ == "__main__":
    endings.run(main)
