#!/usr/bin/env python3
"""Converts an exported folder to an f32 GGUF file with llama.cpp's converter, and prints the loss
of that file in llama.cpp, in nats per target:

    scripts/llama_cpp_loss.py SOURCES FOLDER HELD_OUT.npz

SOURCES: the unpacked sources of llama-cpp-python, with llama.cpp built in their folder build.
HELD_OUT.npz: tokens and targets, each [sequences, seq_len]; a target of -1 does not count.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import zipfile

import endings
from endings import Unusable

try:
    import numpy as np
except ImportError as missing:
    endings.without(missing, endings.ENVIRONMENT)


def read_held_out(file):
    """(tokens, targets), whole numbers of the same shape [sequences, seq_len]."""
    remedy = "scripts/export_check.py makes such files, held_out.npz"
    try:
        with np.load(file) as data:
            tokens, targets = data["tokens"], data["targets"]
    # NumPy takes what is no archive of arrays for a pickle or for an array, which is no context.
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise Unusable(f"{file} is no file of tokens and targets ({error}); {remedy}") from error
    is_whole = all(np.issubdtype(array.dtype, np.integer) for array in (tokens, targets))
    if not is_whole or tokens.ndim != 2 or tokens.shape != targets.shape or not tokens.size:
        raise Unusable(f"{file}: tokens and targets are not whole numbers, [sequences, seq_len] "
                       f"each; {remedy}")
    return tokens, targets


def convert(sources, folder, gguf_file):
    sys.path.insert(0, str(sources / "vendor/llama.cpp"))
    import convert_hf_to_gguf
    from conversion.base import TextModel

    if (folder / "tokenizer.model").exists():
        # Most architectures accept only tokenizers of published models, which they tell by a hash.
        TextModel.set_vocab = TextModel._set_vocab_sentencepiece
    sys.argv = ["convert", str(folder), "--outfile", str(gguf_file), "--outtype", "f32"]
    convert_hf_to_gguf.main()


def loss(sources, gguf_file, tokens, targets):
    os.environ["LLAMA_CPP_LIB_PATH"] = str(sources / "build/bin")
    sys.path.insert(0, str(sources))
    from llama_cpp import Llama

    length, total = tokens.shape[1], 0.0
    llama = Llama(str(gguf_file), n_ctx=length, n_batch=length, logits_all=True, verbose=False)
    for row, target in zip(tokens, targets):
        llama.reset()
        llama.eval(row.tolist())
        logits = np.array(llama.scores[:length], dtype=float)
        logits -= logits.max(-1, keepdims=True)
        of_target = logits[np.arange(length), np.maximum(target, 0)]
        total += (np.log(np.exp(logits).sum(-1)) - of_target)[target >= 0].sum()
    return total / (targets >= 0).sum()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("sources", "folder", "held_out"):
        parser.add_argument(name, type=pathlib.Path)
    arguments = parser.parse_args()
    endings.require_llama_cpp(arguments.sources)
    if not arguments.folder.is_dir():
        raise Unusable(f"{arguments.folder} is no folder; `switchyard export` makes one")
    tokens, targets = read_held_out(arguments.held_out)
    # Beside the folder, on a disk that has taken as many bytes.
    with tempfile.TemporaryDirectory(dir=arguments.folder.resolve().parent) as scratch:
        gguf_file = pathlib.Path(scratch) / "model.gguf"
        convert(arguments.sources, arguments.folder, gguf_file)
        print(loss(arguments.sources, gguf_file, tokens, targets))


if __name__ == "__main__":
    endings.run(main)
