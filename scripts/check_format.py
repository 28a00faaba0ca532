#!/usr/bin/python3
"""Checks the layout of all C++ files.

clang-format 14 must change nothing, and no line may be longer than 100 columns (the formatter does
not break all comments and strings)."""

import argparse
import pathlib
import shutil
import subprocess
import sys

# Other versions lay out some lines differently.
FORMATTER = "clang-format-14"
FOLDERS = ["kernels", "parallel", "layers", "optim", "trainer", "tests"]
SUFFIXES = {".h", ".cuh", ".cpp", ".cu"}
COLUMNS = 100


def cpp_files(root):
    return sorted(file for folder in FOLDERS for file in (root / folder).rglob("*")
                  if file.suffix in SUFFIXES)


def long_lines(root, files):
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
            if len(line) > COLUMNS:
                yield (f"{file.relative_to(root)}:{number}: {len(line)} columns, "
                       f"more than {COLUMNS}: break the line")


def layout_errors(root, files):
    """The formatter's messages about the places that it would change, and the remedy."""
    if shutil.which(FORMATTER) is None:
        return [f"{FORMATTER} is not installed: run scripts/setup.sh"]
    result = subprocess.run([FORMATTER, "--dry-run", "-Werror", *files], cwd=root,
                            capture_output=True, text=True, check=False)
    return [] if result.returncode == 0 else [
        result.stderr.replace(f"{root}/", ""), f"run: {FORMATTER} -i on these files"]


def check_tree(root):
    files = cpp_files(root)
    if not files:
        return [f"{root}: no C++ files"]
    return [*long_lines(root, files), *layout_errors(root, files)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("root", type=pathlib.Path, nargs="?",
                        default=pathlib.Path(__file__).resolve().parent.parent)
    errors = check_tree(parser.parse_args().root)
    for error in errors:
        print(error, file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
