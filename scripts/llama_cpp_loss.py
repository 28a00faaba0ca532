#!/usr/bin/env python3
"""Prints the loss of a GGUF model in llama.cpp, in nats per target:

    scripts/llama_cpp_loss.py SOURCES MODEL.gguf HELD_OUT.npz

SOURCES: the unpacked sources of llama-cpp-python, with llama.cpp built in their folder build.
HELD_OUT.npz: tokens and targets, each [sequences, seq_len]; a target of -1 does not count.
"""

import os
import pathlib
import sys

import numpy as np


def main():
    sources, model, held_out = map(pathlib.Path, sys.argv[1:])
    os.environ["LLAMA_CPP_LIB_PATH"] = str(sources / "build/bin")
    sys.path.insert(0, str(sources))
    from llama_cpp import Llama

    data = np.load(held_out)
    length = data["tokens"].shape[1]
    llama = Llama(str(model), n_ctx=length, n_batch=length, logits_all=True, verbose=False)
    total = 0.0
    for tokens, targets in zip(data["tokens"], data["targets"]):
        llama.reset()
        llama.eval(tokens.tolist())
        logits = np.array(llama.scores[:length], dtype=float)
        logits -= logits.max(-1, keepdims=True)
        of_target = logits[np.arange(length), np.maximum(targets, 0)]
        total += (np.log(np.exp(logits).sum(-1)) - of_target)[targets >= 0].sum()
    print(total / (data["targets"] >= 0).sum())


if __name__ == "__main__":
    main()
