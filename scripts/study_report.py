"""The report of a study: one HTML file that needs no other, and no network."""

import contextlib
import html
import json
import shlex
import statistics
import sys

import study_file
import study_pictures
import study_runs
from endings import Unusable, number

STYLE = """
body { font: 15px/1.5 sans-serif; color: #222; max-width: 62em; margin: 2em auto; padding: 0 1em; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 2.5em; border-top: 1px solid #ddd; padding-top: 1em; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid #e4e4e4; }
th { border-bottom: 1px solid #888; } td:first-child, th:first-child { text-align: left; }
code, pre { font: 12px/1.4 monospace; background: #f5f5f5; }
pre { padding: .6em; overflow-x: auto; }
figure { margin: 1.5em 0; } figure svg { max-width: 100%; height: auto; }
figcaption { color: #555; }
.failed { color: #b00020; }
"""


class Measured:
    """A point of a part, with the figures of its repetitions."""

    def __init__(self, labels, point, figures, predicted):
        self.labels, self.point = labels, point
        self.figures = figures  # repetition -> figures of the run
        self.predicted = predicted  # of `plan --json`; empty without a machine file

    def values(self, key):
        return [number(figures.get(key)) for figures in self.figures.values()]

    def median(self, key):
        return statistics.median(self.values(key)) if self.figures else float("nan")

    def ratios(self, key, other):
        """self / other in each repetition that both have."""
        return [self.figures[run][key] / other.figures[run][key]
                for run in sorted(self.figures.keys() & other.figures.keys())]


def measured_load(folder):
    """The option that gives `plan` the routing of a run that has ended, if it had experts: how
    unequally a router deals tokens out is no property of a machine or layout."""
    metrics = folder / "metrics.jsonl"
    with contextlib.suppress(OSError, ValueError, IndexError):  # no file, no line, a torn one
        last = json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1])
        if last.get("expert_load"):
            return ["--expert-load", str(metrics)]
    return []


def predict(runner, study):
    """point id -> the prediction of `plan`, for points that name a machine file. Says once which
    files are missing."""
    predictions, missing = {}, set()
    for point in study.points():
        machine = runner.machine_file(point)
        if not machine or point.command != "train":
            continue
        if not machine.exists():
            missing.add(str(machine))
            continue
        folder = runner.run_folder(point, 1)
        command = [
            str(runner.program), "plan", *point.arguments(folder), "--machine",
            str(machine), "--ranks",
            str(point.ranks), "--json", *measured_load(folder)
        ]
        try:
            predictions[point.id] = json.loads(study_runs.call(command))
        except ValueError as error:
            raise Unusable(f"{shlex.join(command)} printed no JSON: {error}") from error
    if missing:
        print(f"study: points have no prediction, because no machine is described in "
              f"{', '.join(sorted(missing))}; `switchyard calibrate --out FILE` does that, started "
              "as the points are", file=sys.stderr)
    return predictions


def measured_parts(study, runner):
    """(part, its points that have results)."""
    done, _ = runner.results.read()
    predictions = predict(runner, study)
    for part in study.parts:
        rows = []
        for labels, point in part.labelled():
            figures = {
                repetition: done[point.id, repetition]["figures"]
                for repetition in range(1, study.repetitions + 1) if (point.id, repetition) in done
            }
            if figures:
                rows.append(Measured(labels, point, figures, predictions.get(point.id, {})))
        yield part, rows


def with_spread(values, form="{:,.1f}"):
    """The median, and the least and the greatest value where there are several."""
    middle = form.format(statistics.median(values))
    if len(values) < 2:
        return middle
    return f"{middle} ({form.format(min(values))} to {form.format(max(values))})"


def error_of(row):
    """Of the predicted step time, as a share of the measured one."""
    return number(row.predicted.get("step_ms")) / row.median("step_ms") - 1.0


def predictions_html(parts):
    """How far predictions are off, over all points that have one."""
    errors = {row.point.id: (abs(error_of(row)), row) for _, rows in parts for row in rows
              if row.predicted}
    if not errors:
        return ""
    worst, row = max(errors.values(), key=lambda error: error[0])
    median = statistics.median(error for error, _ in errors.values())
    return (f"<p>Predicted step times of {len(errors)} points: median error {100 * median:.1f} %, "
            f"greatest {100 * worst:.1f} % ({html.escape(row.point.describe())}).</p>\n")


def speed_row(row):
    predicted = number(row.predicted.get("step_ms"))
    off = error_of(row)
    share = f"{100 * row.median('exchange_share'):.1f} %"
    return {
        "step, ms": with_spread(row.values("step_ms")),
        "tokens/s": f"{row.median('tokens_per_s'):,.0f}",
        "exchange": share,
        "forward": f"{row.median('forward_ms'):,.1f}",
        "backward": f"{row.median('backward_ms'):,.1f}",
        "optimizer": f"{row.median('optimizer_ms'):,.1f}",
        "predicted, ms": f"{predicted:,.1f} ({100 * off:+.1f} %)" if row.predicted else "",
        "runs": len(row.figures)
    }


def inference_row(row):
    return {
        "prefill, ms": with_spread(row.values("prefill_ms")),
        "exchange": f"{100 * row.median('prefill_exchange_ms') / row.median('prefill_ms'):.1f} %",
        "prompt tokens/s": f"{row.median('prefill_tokens_per_s'):,.0f}",
        "later token, ms": with_spread(row.values("token_ms"), "{:,.2f}"),
        "generated tokens/s": f"{row.median('decode_tokens_per_s'):,.1f}",
        "runs": len(row.figures)
    }


def loss_row(row):
    last = [figures["losses"][-1] for figures in row.figures.values()]
    return {
        "tokens": f"{last[0][0]:,}",
        "held-out loss": with_spread([loss for _, loss in last], "{:.4f}"),
        "step, ms": f"{row.median('step_ms'):,.1f}",
        "runs": len(row.figures)
    }


def table(rows):
    """Rows are dictionaries with the same keys."""
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(str(key))}</th>" for key in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>"
                                    for cell in row.values()) + "</tr>\n" for row in rows)
    return f"<table><tr>{head}</tr>\n{body}</table>\n"


def label_cells(labels):
    return {study_file.short(axis): value for axis, value in labels.items()}


def part_table(study, rows):
    row_of = speed_row
    if rows[0].point.command != "train":
        row_of = inference_row
    elif study.measure == "loss":
        row_of = loss_row
    cells = [{**label_cells(row.labels), **row_of(row)} for row in rows]
    return table([{key: value for key, value in row.items()
                   if any(other[key] != "" for other in cells)} for row in cells])


def figure_html(figure, rows, runner, command):
    tables, drawing = study_pictures.draw(figure, rows, runner)
    parts = [table(one) for one in tables]
    if drawing:
        parts.append(drawing)
    caption = html.escape(figure.get("caption", ""))
    return (
        f"<figure>{''.join(parts)}<figcaption>{caption}<br>"
        f"Command: <code>{html.escape(command)}</code></figcaption></figure>\n")


def part_html(study, part, rows, runner, command):
    text = f"<h2>{html.escape(part.name)}</h2>\n<p>{html.escape(part.text)}</p>\n"
    if not rows:
        return text + "<p>No run of this part has ended yet.</p>\n"
    if len(rows) < len(part.points):
        text += f"<p>{len(rows)} of {len(part.points)} points have results.</p>\n"
    for figure in part.shown:
        text += figure_html(figure, rows, runner, command)
    text += f"<h3>All points</h3>\n{part_table(study, rows)}"
    commands = "\n".join(runner.shown_command(row.point, 1) for row in rows)
    return text + ("<details><summary>Commands of the points</summary>"
                   f"<pre>{html.escape(commands)}</pre></details>\n")


def failures_html(study, runner):
    _, failed = runner.results.read()
    points = {point.id: point for point in study.points()}
    lines = [
        f"<li>{html.escape(points[point].describe())}, repetition {repetition}: "
        f"{html.escape(result['error'])}</li>" for (point, repetition), result in failed.items()
        if point in points
    ]
    return f"<h2 class=failed>Runs that failed</h2><ul>{''.join(lines)}</ul>" if lines else ""


def write(study, runner, folder):
    """Writes report.html; returns its path."""
    command = shlex.join(["scripts/study.py", str(study.path), "--out", str(folder), "--report"])
    measured = list(measured_parts(study, runner))
    parts = [part_html(study, part, rows, runner, command) for part, rows in measured]
    text = (
        "<!doctype html>\n<html lang=en><meta charset=utf-8>"
        f"<title>{html.escape(study.title)}</title>"
        f"<style>{STYLE}</style>\n<h1>{html.escape(study.title)}</h1>\n"
        f"<p>Made by <code>{html.escape(command)}</code>. Figures are medians over the "
        "repetitions, in brackets the least and the greatest.</p>\n" + predictions_html(measured) +
        "".join(parts) +
        failures_html(study, runner) + "</html>\n")
    report = folder / "report.html"
    partial = folder / "report.html.tmp"
    partial.write_text(text, encoding="utf-8")
    partial.replace(report)
    return report
