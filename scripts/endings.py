"""How the scripts read a run's files, and how they end where they cannot: with one sentence on
stderr, which names the file and the remedy, and exit code 1."""

import json
import math
import pathlib
import sys


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
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Unusable(f"{file} is torn or is no JSON ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise Unusable(f"{file} holds no JSON object; {remedy}")
    return content


def make_folder(folder):
    """Makes the folder of a script's results, with the folders above it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise Unusable(f"{folder} is no folder, so nothing can be written to it") from error


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
        sys.exit(f"{name()}: {error}")
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
