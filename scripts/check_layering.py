#!/usr/bin/python3
"""Checks the rules of the source tree that a compiler does not check.

Errors (exit code 1):
  - a file of kernels/ parallel/ layers/ optim/ trainer/ includes a folder to its right
  - a file above parallel/ includes a CUDA, NCCL or MPI header
  - a file outside kernels/ includes one of its private rooms, cpu/, cuda/ or inline/
  - a header without #pragma once, or with a `using namespace`
  - a .cpp or .cu file whose own header is not its first include
  - a room of trainer/ includes one that does not stand before it
  - a file longer than 500 lines, or a function longer than a screen (70)
"""

import argparse
import pathlib
import re
import sys

LAYERS = ["kernels", "parallel", "layers", "optim", "trainer"]
MAY_USE_DEVICE_LIBRARIES = {"kernels", "parallel"}
# These folders hold parts of the bodies of ops. Only kernels/ may use them; others call the ops.
PRIVATE_ROOM = re.compile(r"^kernels/(cpu|cuda|inline)/")
# NCCL works on the streams and events of CUDA.
MAY_INCLUDE_PRIVATELY = {("parallel/nccl_communicator.cpp", "kernels/cuda/support.h")}
DEVICE_HEADER = re.compile(r"^(cuda|cublas|cooperative_groups|nccl|nvml|mpi\b|mpi\.h|mpi-ext)")
INCLUDE = re.compile(r'^\s*#\s*include\s+(?:"([^"]+)"|<([^>]+)>)')
SUFFIXES = {".h", ".cuh", ".cpp", ".cu"}
# The rooms of trainer/ from the bottom. Each may include itself and the rooms of earlier rungs;
# main.cpp may include all.
ROOMS = [["files"], ["config"], ["data", "checkpoint", "planning"], ["interop"], ["training"],
         ["inference"], ["recall", "hashing"], ["bench"], ["commands"]]
RUNG = {room: rung for rung, rooms in enumerate(ROOMS) for room in rooms}
ROOM_ORDER = " <- ".join(", ".join(rooms) for rooms in ROOMS)
SCREEN = 70
LONGEST_FILE = 500
# These files are too long. Remove a file from this list when it is split.
STILL_TOO_LONG = {
    "kernels/attention/attention.cpp",
    "kernels/attention/attention_tensor_core.cu",
    "trainer/config/schema.cpp",
}
# Matches a line that opens a top-level block other than a function.
NOT_A_FUNCTION = re.compile(
    r"^(namespace|class|struct|enum|union|extern|constexpr|const|static_assert|#)")


def strip_comments(text):
    """Blanks comments out, keeping line numbers."""
    text = re.sub(r"/\*.*?\*/", lambda match: "\n" * match.group().count("\n"), text, flags=re.S)
    return re.sub(r"//[^\n]*", "", text)


def includes_of(lines):
    for number, line in enumerate(lines, 1):
        match = INCLUDE.match(line)
        if match:
            yield number, match.group(1) or match.group(2)


def check_includes(path, lines):
    layer = path.parts[0]
    for number, included in includes_of(lines):
        target = included.split("/")[0]
        if target in LAYERS and "/" in included and LAYERS.index(target) > LAYERS.index(layer):
            yield number, f"{layer}/ may not include {included}: {' <- '.join(LAYERS)}"
        if (layer != "kernels" and PRIVATE_ROOM.match(included)
                and (path.as_posix(), included) not in MAY_INCLUDE_PRIVATELY):
            yield number, f"{included} is private to kernels/: call an op, or add one to kernels/"
        if layer not in MAY_USE_DEVICE_LIBRARIES and DEVICE_HEADER.match(included):
            yield number, f"{included}: only kernels/ and parallel/ may include device headers"


def room_of(path):
    """The room of a file of trainer/ ("trainer/data/corpus.h" -> "data"); None for other files."""
    parts = path.split("/")
    return parts[1] if len(parts) > 2 and parts[0] == "trainer" else None


def check_rooms(path, lines):
    room = room_of(path.as_posix())
    if room is not None and room not in RUNG:
        yield 1, f"trainer/{room}/ has no place in the order of rooms: {ROOM_ORDER}"
        return
    for number, included in includes_of(lines):
        target = room_of(included)
        if room is None or target in (None, room):
            continue
        if target not in RUNG or RUNG[target] >= RUNG[room]:
            yield number, f"trainer/{room}/ may not include {included}: {ROOM_ORDER}"


def check_header(lines):
    if not any(line.strip() == "#pragma once" for line in lines):
        yield 1, "a header must begin with #pragma once"
    for number, line in enumerate(lines, 1):
        if re.match(r"\s*using\s+namespace\b", line):
            yield number, "no `using namespace` in headers"


def check_own_header_first(root, path, lines):
    own = path.with_suffix(".h")
    if not (root / own).exists():
        return
    first = next(includes_of(lines), None)
    if first is None or first[1] != own.as_posix():
        yield (first[0] if first else 1), f"the first include must be {own}"


def long_functions(lines):
    """(first line, length) of functions at namespace level that are longer than a screen;
    clang-format ends a function with `}` in column 0."""
    begin = None
    for number, line in enumerate(lines, 1):
        if line and not line[0].isspace() and line[0] not in "{}":
            begin = None if NOT_A_FUNCTION.match(line) else begin or number
            if line.rstrip().endswith(";"):
                begin = None
        elif line.startswith("}") and begin is not None:
            if number - begin + 1 > SCREEN:
                yield begin, number - begin + 1
            begin = None


def check_length(path, lines):
    if path.as_posix() in STILL_TOO_LONG:
        return
    length = len(lines) - 1  # the last element follows the last line break
    if length > LONGEST_FILE:
        yield LONGEST_FILE + 1, f"{length} lines, more than {LONGEST_FILE}: split the file"
    for number, length in long_functions(lines):
        yield number, f"{length} lines, more than a screen ({SCREEN}): split the function"


def check_tree(root):
    """Returns errors, a list of `file:line: message`."""
    errors = []
    for layer in LAYERS:
        for file in sorted((root / layer).rglob("*")):
            if file.suffix not in SUFFIXES:
                continue
            path = file.relative_to(root)
            lines = strip_comments(file.read_text(encoding="utf-8")).split("\n")
            found = list(check_includes(path, lines))
            found += check_rooms(path, lines)
            found += check_length(path, lines)
            if file.suffix in (".h", ".cuh"):
                found += check_header(lines)
            else:
                found += check_own_header_first(root, path, lines)
            errors += [f"{path}:{number}: {message}" for number, message in found]
    return errors


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("root", type=pathlib.Path, nargs="?",
                        default=pathlib.Path(__file__).resolve().parent.parent)
    errors = check_tree(parser.parse_args().root)
    for error in errors:
        print("error:", error, file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
