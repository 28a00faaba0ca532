"""How the scripts read a run's files, and how they end where they cannot: with one sentence on
stderr, which names the file and the remedy, and exit code 1."""

import argparse
import contextlib
import json
import math
import pathlib
import re
import sys
import tempfile


class Unusable(Exception):
    """A file or an argument that a script cannot work with; its text is the sentence."""


def number(value):
    """A JSON value as float; NaN for null and for everything that is not a number."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else math.nan


def table(value):
    """A list of equally long, not empty lists of numbers as such a list of floats; None for every
    other value."""
    if not isinstance(value, list) or not value or not all(isinstance(row, list) for row in value):
        return None
    if not value[0] or any(len(row) != len(value[0]) for row in value):
        return None
    return [[number(cell) for cell in row] for row in value]


def read_json(file, remedy):
    """The object that a JSON file holds. The remedy says how such a file is made."""
    file = pathlib.Path(file)
    if not file.exists():
        raise Unusable(f"{file} does not exist; {remedy}")
    return parse_object(file.read_bytes(), file, remedy)


def read_lines(file, remedy):
    """The objects of a file that holds one JSON object per line."""
    file = pathlib.Path(file)
    if not file.exists():
        raise Unusable(f"{file} does not exist; {remedy}")
    return [parse_object(line, f"{file}, line {count},", remedy)
            for count, line in enumerate(file.read_bytes().split(b"\n"), 1) if line.strip()]


def parse_object(text, place, remedy):
    """The object that some bytes of JSON are. The place is the sentence's subject."""
    try:
        content = json.loads(str(text, "utf-8"))
    except (ValueError, RecursionError) as error:
        raise Unusable(f"{place} is torn or is no JSON ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise Unusable(f"{place} holds no JSON object; {remedy}")
    return content


def positive_integer(text):
    """An argument of a command line: a count of something that cannot be left out."""
    if not re.fullmatch("[1-9][0-9]{0,17}", text):
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number from 1 on")
    return int(text)


def positive_number(text):
    """An argument of a command line: a time, for example, which is neither zero nor endless."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is no finite number greater than 0")
    return value


def make_folder(folder):
    """Makes the folder of a script's results, with the folders above it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise Unusable(f"{folder} is no folder, so nothing can be written to it") from error


@contextlib.contextmanager
def written_whole(file):
    """Yields where to write what replaces a file: FILE.tmp, which gets the name when it is whole.
    So nobody finds a part of it under its name, and a script that fails leaves the file of before.
    A link stays; the file that it leads to is replaced."""
    file = file.resolve()
    partial = file.with_name(file.name + ".tmp")
    partial.unlink(missing_ok=True)  # It might be a link, through which nothing is to be written.
    try:
        yield partial
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def picture(folder, name):
    """The path of a picture to write. Pictures replace only pictures."""
    file = folder / name
    if not file.exists():
        return file
    if not file.is_file():
        raise Unusable(f"{file} is no file, so no picture replaces it; name another folder with --out")
    with open(file, "rb") as content:
        if content.read(8) not in (b"", b"\x89PNG\r\n\x1a\n"):
            raise Unusable(f"{file} is no PNG picture, so none replaces it; name another folder with "
                           "--out, or move the file away")
    return file


def require_report(file, content_format, remedy):
    """That a file of JSON can be written there, and replaces only one of the same format."""
    folder = file.resolve().parent
    make_folder(folder)
    with tempfile.TemporaryFile(dir=folder):
        pass  # A folder that takes no files is found before the work.
    if file.exists() and (not file.is_file() or file.stat().st_size > 0):
        if read_json(file, remedy).get("format") != content_format:
            raise Unusable(f"{file} is no {content_format}, so it is not replaced; {remedy}")


def require_llama_cpp(sources):
    """That llama.cpp is built in the sources of llama-cpp-python."""
    if not (sources / "build/bin").is_dir():
        raise Unusable(f"{sources / 'build/bin'} holds no llama.cpp; scripts/export_check.sh "
                       "--llama-cpp builds it in build/llama_cpp")


ENVIRONMENT = ("run scripts/transformers_environment.sh FOLDER, and start the script with "
               "FOLDER/bin/python")


def name():
    """Of the script that runs, as it begins its sentences."""
    return pathlib.Path(sys.argv[0]).stem


def without(error, remedy="run scripts/setup.sh, and start the script with /usr/bin/python3"):
    """Ends a script that lacks one of its packages."""
    sys.exit(f"{name()}: Python lacks a package ({error}); {remedy}")


def run(main):
    """Calls main(). What the script cannot work with ends it with a sentence."""
    try:
        main()
        sys.stdout.flush()
    except Unusable as error:
        # What others said, YAML's reader or a program, may have several lines.
        sys.exit(f"{name()}: {' '.join(line.strip() for line in str(error).strip().splitlines())}")
    except ModuleNotFoundError as error:
        without(error, ENVIRONMENT)  # What main() imports by itself are the large packages.
    except BrokenPipeError:
        sys.stderr.close()  # the reader of the output has ended, which is no mistake of this script
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"{name()}: {where}{error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(f"{name()}: interrupted")
