"""compare_llama_cpp.py and llama_cpp_loss.py without llama.cpp: small programs stand in for the
exporter, for the converter, which copies, and for llama.cpp, which says what it reads and ends."""

import os
import unittest

import numpy as np

from script_test_case import ScriptTestCase

EXPORT = """#!/bin/sh
[ "$1" = export ] || { echo "prefill, hata" >&2; exec sleep 60; }
for last; do :; done
mkdir "$last" && echo "weights of $*" | sed "s, --to.*,," >"$last/weights"
"""
CONVERTER = """
import os, pathlib, sys

def main():
    out = pathlib.Path(sys.argv[sys.argv.index("--outfile") + 1])
    out.write_text("half")
    if os.environ.get("TORN"):
        sys.exit("the converter was ended")
    out.write_text((pathlib.Path(sys.argv[1]) / "weights").read_text())

if __name__ == "__main__":
    main()
"""
LLAMA = """
import sys

class Llama:
    def __init__(self, file, **options):
        sys.exit("llama.cpp has read " + open(file).read())

if "--measure-llama" in sys.argv:
    Llama(sys.argv[3])
"""


class LlamaCppTest(ScriptTestCase):
    def setUp(self):
        super().setUp()
        self.sources = self.root / "sources"
        for name, text in [("build/bin/llama", ""), ("llama_cpp/__init__.py", LLAMA),
                           ("vendor/llama.cpp/convert_hf_to_gguf.py", CONVERTER),
                           ("vendor/llama.cpp/conversion/base.py", "class TextModel: pass")]:
            file = self.sources / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        self.program = self.root / "switchyard"
        self.program.write_text(EXPORT)
        self.program.chmod(0o755)
        self.work = self.root / "work"

    # compare_llama_cpp.py

    def compare(self, *arguments, **environment):
        return self.run_script("compare_llama_cpp.py", self.sources, *arguments, "--text", __file__,
                               "--program", self.program, "--work", self.work, "--dtype", "f32",
                               env=os.environ | environment)

    def test_llama_cpp_has_the_weights_that_are_asked_for_now(self):
        for arguments in (["a.yaml"], ["b.yaml", "run.dir=runs/b"], ["b.yaml", "run.dir=runs/c"]):
            done = self.compare(*arguments)

            self.expect_sentence(done, "llama.cpp, f32, f32 cache ended early",
                                 f"has read weights of export {' '.join(arguments)}\n")
        self.assertEqual(list(self.work.iterdir()), [])

    def test_a_conversion_that_was_ended_is_not_taken_for_whole(self):
        self.expect_sentence(self.compare("a.yaml", TORN="1"), "the converter was ended")
        self.expect_sentence(self.compare("a.yaml"), "has read weights of export a.yaml")

    def test_the_users_files_in_the_folder_stay(self):
        (self.work / "model").mkdir(parents=True)
        for name in ("model/weights", "f32.gguf", "f32.json"):
            (self.work / name).write_text("the user's")

        self.expect_sentence(self.compare("a.yaml"), "has read weights of export a.yaml")

        for name in ("model/weights", "f32.gguf", "f32.json"):
            self.assertEqual((self.work / name).read_text(), "the user's")

    def test_counts_that_measure_nothing(self):
        for option, value in [("--samples", "1,0"), ("--samples", "1,"), ("--threads", "0"),
                              ("--prompt-tokens", "-1")]:
            self.expect_refused_argument(self.compare("a.yaml", f"{option}={value}"), option)

    # llama_cpp_loss.py

    def loss(self, held_out):
        return self.run_script("llama_cpp_loss.py", self.sources, self.root / "run/exported",
                               self.root / held_out)

    def write_exported(self):
        (self.root / "run/exported").mkdir(parents=True)
        (self.root / "run/exported/weights").write_text("exported weights")

    def test_a_loss_replaces_no_file(self):
        self.write_exported()
        np.savez(self.root / "held_out.npz", tokens=[[1, 2]], targets=[[2, -1]])
        (self.root / "run/model.gguf").write_text("the user's")

        done = self.loss("held_out.npz")

        self.expect_sentence(done, "llama.cpp has read exported weights")
        self.assertEqual((self.root / "run/model.gguf").read_text(), "the user's")
        self.assertEqual(sorted(path.name for path in (self.root / "run").iterdir()),
                         ["exported", "model.gguf"])

    def test_held_out_files_that_are_torn_or_foreign(self):
        self.write_exported()
        np.savez(self.root / "whole.npz", tokens=[[1, 2]], targets=[[2, -1]])
        whole = (self.root / "whole.npz").read_bytes()
        for name, content in [("torn.npz", whole[:-30]), ("empty.npz", b""), ("text.npz", b"text")]:
            (self.root / name).write_bytes(content)
        np.savez(self.root / "no_targets.npz", tokens=[[1, 2]])
        np.savez(self.root / "objects.npz", tokens=np.array([None]), targets=[[1]])
        with open(self.root / "array.npz", "wb") as file:
            np.save(file, np.zeros((1, 2)))
        for name in ("torn", "empty", "text", "no_targets", "objects", "array"):
            with self.subTest(name):
                self.expect_sentence(self.loss(f"{name}.npz"),
                                     f"{name}.npz is no file of tokens and targets", "export_check")
        for name, tokens, targets in [("flat", [1, 2], [2, 3]), ("shapes", [[1, 2]], [[1]]),
                                      ("floats", [[1.5, 2]], [[1, 2]]), ("none", [[]], [[]])]:
            np.savez(self.root / f"{name}.npz", tokens=tokens, targets=targets)
            with self.subTest(name):
                self.expect_sentence(self.loss(f"{name}.npz"), f"{name}.npz: tokens and targets "
                                     "are not whole numbers, [sequences, seq_len] each")
        self.expect_sentence(self.loss("missing.npz"), "missing.npz: No such file")

    def test_a_folder_that_was_not_exported(self):
        self.expect_sentence(self.loss("held_out.npz"), "run/exported is no folder",
                             "switchyard export")


if __name__ == "__main__":
    unittest.main()
