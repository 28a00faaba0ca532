"""Tests the parts of smollm2_folder.py that need no GGUF file."""

import os
import sys
import unittest

import numpy as np

from script_test_case import SCRIPTS, ScriptTestCase

sys.path.insert(0, str(SCRIPTS))
import smollm2_folder  # noqa: E402


def by_pairs(weight, heads):
    """What llama.cpp's converter does to q and k: rows i of both halves of a head become
    neighbours."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


# The package's reader, as far as it comes with a file that is none.
GGUF = """class GGUFReader:
    def __init__(self, path):
        with open(path, "rb") as file:
            raise {"n": ValueError("GGUF magic invalid"), "t": IndexError("0 is out of bounds"),
                   "k": KeyError("general.x")}[file.read(1).decode()]
"""
SAFETENSORS = {"safetensors/__init__.py": "", "safetensors/numpy.py": "save_file = None"}


class Smollm2FolderTest(ScriptTestCase):
    def test_rows_of_q_and_k_return_to_their_places(self):
        weight = np.arange(3 * 8 * 5).reshape(3 * 8, 5)

        restored = smollm2_folder.by_halves(by_pairs(weight, heads=3), heads=3)

        np.testing.assert_array_equal(restored, weight)

    def test_names(self):
        self.assertEqual(
            [smollm2_folder.name_of(name) for name in (
                "token_embd.weight", "blk.12.attn_q.weight", "blk.0.ffn_down.weight",
                "blk.3.ffn_norm.weight", "output_norm.weight")],
            ["model.embed_tokens.weight", "model.layers.12.self_attn.q_proj.weight",
             "model.layers.0.mlp.down_proj.weight",
             "model.layers.3.post_attention_layernorm.weight", "model.norm.weight"])

    def test_files_that_are_no_such_model(self):
        for name, text in {"gguf/__init__.py": GGUF, **SAFETENSORS}.items():
            (self.root / name).parent.mkdir(exist_ok=True)
            (self.root / name).write_text(text)
        (self.root / "other.tmp").mkdir()

        def make(file, *arguments):
            return self.run_script("smollm2_folder.py", file, *arguments, self.root / "other",
                                   env=os.environ | {"PYTHONPATH": str(self.root)})

        for content in "ntk":
            (self.root / "file.gguf").write_text(content)
            self.expect_sentence(make(self.root / "file.gguf"),
                                 "file.gguf is torn or is no GGUF file", "fetch_smollm2.sh")
        self.expect_sentence(make(self.root / "none.gguf"), "none.gguf: No such file")
        self.expect_sentence(make("--ask"), "other holds no model", "fetch_smollm2.sh")
        self.assertTrue((self.root / "other.tmp").exists())  # it may be the user's
        for tensor in ("blk.0.attn_x.weight", "rope_freqs.weight", "a.b.c.d"):
            with self.assertRaisesRegex(smollm2_folder.Unusable, f"has a tensor {tensor}: it is"):
                smollm2_folder.name_of(tensor)

    def test_tokens_keep_their_numbers(self):
        made = smollm2_folder.tokenizer_json(["<|end|>", "a", "b", "ab"], [0], ["a b"])

        self.assertEqual(made["model"]["vocab"], {"<|end|>": 0, "a": 1, "b": 2, "ab": 3})
        self.assertEqual(made["model"]["merges"], [["a", "b"]])
        self.assertEqual([(token["id"], token["content"]) for token in made["added_tokens"]],
                         [(0, "<|end|>")])


if __name__ == "__main__":
    unittest.main()
