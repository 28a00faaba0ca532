"""A study file and its points.

A point is what is run: settings of the program, a number of ranks, and perhaps links of a given
rate. The points of a part are all combinations of its axes' values; the last axis varies fastest,
so what is to be compared should stand there: its runs then follow each other closely.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import re

import yaml

from endings import Unusable

# What a study says of its runs, beside the settings of the program.
RUN_KEYS = {"ranks": int, "hosts": int, "ranks_per_host": int, "rate": str, "latency": str,
            "background": bool, "machine": str, "options": str, "warmup_steps": int}
COMMANDS = ("train", "bench inference")
# The figures that a part can show, and what each must say: `axis` and `by` name axes of the part,
# `from` and `to` values of `axis`.
SHOWN = {
    "efficiency": ("axis", "by"),
    "speedup": ("axis", "from", "to", "by"),
    "exchange_share": ("axis", "by"),
    "breakdown": ("axis", "by"),
    "hidden": ("axis", "from", "by"),
    "generation": ("axis", "from", "to", "by"),
    "ladder": ("axis", "from", "to", "by"),
}
OPTIONAL = {"caption", "times"}


class UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice, of which PyYAML would keep the last."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int, float)) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key} stands twice", key_node.start_mark)
            seen.add(key if isinstance(key, (str, int, float)) else None)
        return super().construct_mapping(node, deep)


@dataclasses.dataclass
class Base:
    """What all points of a study have in common, beside its settings."""
    command: str
    config: pathlib.Path
    measure: str
    threads: int


@dataclasses.dataclass
class Point:
    """One combination of the axes' values."""
    id: str  # of all that decides the result
    command: str
    config: pathlib.Path
    settings: dict  # of the program: key -> text
    run: dict  # RUN_KEYS
    labels: dict  # axis -> name of its value, in the first part that has the point

    @property
    def warmup_steps(self):
        """First steps of a run, which are left out of its medians."""
        return self.run.get("warmup_steps", 1)

    @property
    def ranks(self):
        return self.run.get("ranks", 1)

    @property
    def name(self):
        words = [str(value) for value in self.labels.values()] or ["point"]
        return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(words)) + "-" + self.id

    def arguments(self, run_folder):
        """The program's arguments that say what it computes."""
        overrides = [f"{key}={value}" for key, value in self.settings.items()]
        return [str(self.config), *overrides, f"run.dir={run_folder}"]

    def describe(self):
        return describe(self.labels)


@dataclasses.dataclass
class Part:
    """Points that are shown together."""
    name: str
    text: str
    axes: dict  # axis -> names of its values
    points: dict  # names of the axes' values, as a tuple -> Point
    shown: list  # what is drawn: {"figure": one of SHOWN, ...}

    def labelled(self):
        """(axis -> name of its value, point), in the order of the points."""
        for values, point in self.points.items():
            yield dict(zip(self.axes, values)), point


@dataclasses.dataclass
class Study:
    path: pathlib.Path
    title: str
    measure: str  # speed: a run that was interrupted starts again; loss: it goes on
    repetitions: int
    threads: int
    prepare: dict  # file -> commands that make it
    slurm: dict  # options of sbatch
    parts: list

    def points(self):
        """All points, each once."""
        points = {}
        for part in self.parts:
            for point in part.points.values():
                points.setdefault(point.id, point)
        return list(points.values())


def short(axis):
    """model.router.top_k -> top_k."""
    return axis.rsplit(".", 1)[-1]


def describe(labels):
    return ", ".join(named(axis, value) for axis, value in labels.items()) or "the point"


def named(axis, value):
    """A value as people read it: top_k 8, deduplicate false, but bigmac and 100mbit."""
    says_itself = re.search("[A-Za-z]", value) and value not in ("true", "false")
    return value if says_itself else f"{short(axis)} {value}"


def text_of(value):
    """A setting's value as the command line takes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, (list, dict)) or value == "" else str(value)


def flatten(settings, where, prefix=""):
    """{model: {hidden: 8}} and {model.hidden: 8} -> {"model.hidden": "8"}; run keys keep their
    type."""
    if not isinstance(settings, dict):
        raise Unusable(f"{where}: settings are keys with values, such as model.hidden: 512")
    flat = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat.update(flatten(value, where, f"{name}."))
        elif name in RUN_KEYS:
            flat[name] = run_key(name, value, where)
        elif name == "run.dir":
            raise Unusable(
                f"{where}: run.dir is chosen by the study, one for each run; take it out")
        elif name == "base" or "." not in name:
            raise Unusable(
                f"{where}: {name} is neither a key of the program, such as model.hidden, nor "
                f"one of {', '.join(RUN_KEYS)}")
        else:
            flat[name] = text_of(value)
    return flat


def run_key(name, value, where):
    kind = RUN_KEYS[name]
    least = 0 if name == "warmup_steps" else 1
    if kind is bool and not isinstance(value, bool):
        raise Unusable(f"{where}: {name} is {value}; it is true or false")
    if kind is int and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise Unusable(f"{where}: {name} is {value}; it is a whole number, at least {least}")
    if name == "rate" and not re.fullmatch(r"[1-9]\d*[kmg]bit", str(value)):
        raise Unusable(f"{where}: rate is {value}; it is a whole number and kbit, mbit or gbit, as "
                       "100mbit")
    return kind(value)


def get(content, key, kind, where, default=None):
    """A value of the study file; without a default it must be there."""
    if key not in content:
        if default is None:
            raise Unusable(f"{where}: {key} is missing")
        return default
    value = content[key]
    names = {str: "text", int: "a whole number", dict: "keys with values", list: "a list"}
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Unusable(f"{where}: {key} must be {names[kind]}")
    return value


def only_known(content, known, where):
    unknown = [str(key) for key in content if key not in known]
    if unknown:
        raise Unusable(
            f"{where}: {unknown[0]} is not known here; it may be {', '.join(sorted(known))}")


def axis_values(name, values, where):
    """Name of each value -> its settings."""
    where = f"{where}: axis {name}"
    if isinstance(values, list):
        named = {text_of(value): flatten({name: value}, where) for value in values}
        if len(named) < len(values):
            raise Unusable(f"{where}: a value stands twice")
    elif isinstance(values, dict):
        named = {text_of(value): flatten(settings or {}, f"{where}, {value}")
                 for value, settings in values.items()}
    else:
        raise Unusable(f"{where}: give a list of the key's values, or names with settings each")
    if not named:
        raise Unusable(f"{where} has no values")
    return named


def config_text(path, seen=()):
    """The text of an experiment file with those that it inherits: what decides a point, beside its
    settings."""
    if path in seen:
        raise Unusable(f"{path} inherits itself")
    if not path.is_file():
        raise Unusable(
            f"{path} does not exist; config: names an experiment file, relative to the study")
    text = path.read_text(encoding="utf-8")
    base = re.search(r"^base:\s*(\S+)", text, re.M)
    if base:
        text += config_text(path.parent / base.group(1).strip("\"'"), (*seen, path))
    return text


def check_links(run, where):
    """Completes and checks what is said of hosts and links."""
    if "rate" not in run and {"hosts", "ranks_per_host", "latency"} & run.keys():
        raise Unusable(
            f"{where}: hosts, ranks_per_host and latency are those of links; give their rate, "
            "too")
    if "rate" not in run:
        return
    if "hosts" not in run:
        raise Unusable(f"{where}: rate is that of links between hosts; give hosts, too")
    ranks = run["hosts"] * run.setdefault("ranks_per_host", 1)
    if run.setdefault("ranks", ranks) != ranks:
        raise Unusable(
            f"{where}: {run['hosts']} hosts of {run['ranks_per_host']} ranks each are {ranks} "
            f"ranks, not {run['ranks']}")


def derive(value, settings, where):
    """"= model.hidden / 4" -> "128" where model.hidden is 512; other values as they are."""
    if not value.startswith("="):
        return value
    match = re.fullmatch(r"=\s*(\S+)(?:\s*([*/])\s*(\d+))?", value)
    of = settings.get(match.group(1), "") if match else ""
    if not of.isdigit() or (match.group(2) == "/" and int(of) % int(match.group(3)) != 0):
        raise Unusable(
            f"{where}: '{value}' must be '= KEY', '= KEY * NUMBER' or '= KEY / NUMBER', of a key "
            "that "
            "the study sets to a whole number, which the divisor divides")
    factor = int(match.group(3) or 1)
    return str(int(of) // factor if match.group(2) == "/" else int(of) * factor)


def make_point(base, content, labels, where):
    run = {key: content[key] for key in content if key in RUN_KEYS}
    settings = {key: content[key] for key in content if key not in RUN_KEYS}
    settings = {key: derive(value, settings, where) for key, value in settings.items()}
    check_links(run, where)
    if "machine" in run:
        try:
            run["machine"] = run["machine"].format(**run)
        except (KeyError, IndexError, ValueError) as error:
            raise Unusable(
                f"{where}: machine may hold the names {', '.join(RUN_KEYS)} in braces, not "
                f"{error}") from error
    # The prediction is no part of the result, so another machine file leaves the point the same.
    measured = {key: value for key, value in run.items() if key != "machine"}
    identity = json.dumps([base.command, base.measure, base.threads, config_text(base.config),
                           settings, measured], sort_keys=True)
    return Point(hashlib.sha256(identity.encode()).hexdigest()[:8], base.command, base.config,
                 settings, run, labels)


def check_shown(shown, axes, where):
    for number, figure in enumerate(shown, 1):
        place = f"{where}: show, {number}"
        if not isinstance(figure, dict) or figure.get("figure") not in SHOWN:
            raise Unusable(f"{place}: figure must be one of {', '.join(SHOWN)}")
        needed = SHOWN[figure["figure"]]
        only_known(figure, {"figure", *needed, *OPTIONAL}, place)
        if figure["figure"] == "exchange_share" and not all(
                value.isdigit() for value in axes.get(figure.get("axis"), {})):
            raise Unusable(f"{place}: axis must be that of top_k, whose values are whole numbers")
        for key in needed:
            choices = axes.get(figure.get("axis"), {}) if key in ("from", "to") else axes
            if text_of(figure.get(key, "")) not in map(str, choices):
                what = "a value of its axis" if key in ("from", "to") else "an axis of the part"
                raise Unusable(f"{place}: {key} must be {what}: {', '.join(map(str, choices))}")
            figure[key] = text_of(figure[key])


def read_part(name, content, shared, base, where):
    where = f"{where}: part {name}"
    if not isinstance(content, dict):
        raise Unusable(f"{where} must have axes")
    only_known(content, {"text", "axes", "settings", "show"}, where)
    axes = {axis: axis_values(str(axis), values, where)
            for axis, values in get(content, "axes", dict, where).items()}
    settings = {**shared, **flatten(get(content, "settings", dict, where, {}), where)}
    points = {}
    for chosen in itertools.product(*(axis.items() for axis in axes.values())):
        labels = {axis: value for axis, (value, _) in zip(axes, chosen)}
        merged = dict(settings)
        for _, more in chosen:
            merged.update(more)
        points[tuple(labels.values())] = make_point(base, merged, labels, where)
    shown = get(content, "show", list, where, [])
    check_shown(shown, axes, where)
    return Part(name, get(content, "text", str, where, " ").strip(),
                {axis: list(values) for axis, values in axes.items()}, points, shown)


def load_yaml(path):
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueKeys)
    except FileNotFoundError as error:
        raise Unusable(f"{path} does not exist; ready studies are in configs/studies") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = f", line {error.problem_mark.line + 1}" if getattr(error, "problem_mark",
                                                                   None) else ""
        reason = getattr(error, "problem", None) or error
        raise Unusable(f"{path}{where} is no YAML: {reason}") from error
    if not isinstance(content, dict):
        raise Unusable(f"{path} is no study: it has no keys")
    return content


def read_study(path):
    """Throws Unusable with the place of the first mistake."""
    path = pathlib.Path(path)
    content = load_yaml(path)
    where = str(path)
    only_known(
        content, {
            "title", "config", "command", "measure", "repetitions", "threads",
            "settings", "prepare", "slurm", "parts"
        }, where)
    command = get(content, "command", str, where, "train")
    measure = get(content, "measure", str, where, "speed")
    for key, value, known in [("command", command, COMMANDS),
                              ("measure", measure, ("speed", "loss"))]:
        if value not in known:
            raise Unusable(f"{where}: {key} is {value}; it may be {' or '.join(known)}")
    counts = {}
    for key, default, least in [("repetitions", 1, 1), ("threads", 1, 1)]:
        counts[key] = get(content, key, int, where, default)
        if counts[key] < least:
            raise Unusable(f"{where}: {key} is {counts[key]}; it must be at least {least}")
    prepare = get(content, "prepare", dict, where, {})
    for file, commands in prepare.items():
        if not isinstance(commands, list) or not all(isinstance(line, str) for line in commands):
            raise Unusable(f"{where}: prepare: {file} needs a list of the commands that make it")
    config = pathlib.Path(os.path.normpath(path.parent / get(content, "config", str, where)))
    base = Base(command, config, measure, counts["threads"])
    shared = flatten(get(content, "settings", dict, where, {}), where)
    parts = [read_part(str(name), part, shared, base, where)
             for name, part in get(content, "parts", dict, where).items()]
    if not parts:
        raise Unusable(f"{where}: parts is empty")
    return Study(path, get(content, "title", str, where), measure, prepare=prepare, parts=parts,
                 slurm=get(content, "slurm", dict, where, {}), **counts)
