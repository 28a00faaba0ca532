"""Tests the parts of smollm2_folder.py that need no GGUF file."""

import pathlib
import sys
import unittest

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import smollm2_folder  # noqa: E402


def by_pairs(weight, heads):
    """What llama.cpp's converter does to q and k: rows i of both halves of a head become
    neighbours."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


class Smollm2FolderTest(unittest.TestCase):
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

    def test_tokens_keep_their_numbers(self):
        made = smollm2_folder.tokenizer_json(["<|end|>", "a", "b", "ab"], [0], ["a b"])

        self.assertEqual(made["model"]["vocab"], {"<|end|>": 0, "a": 1, "b": 2, "ab": 3})
        self.assertEqual(made["model"]["merges"], [["a", "b"]])
        self.assertEqual([(token["id"], token["content"]) for token in made["added_tokens"]],
                         [(0, "<|end|>")])


if __name__ == "__main__":
    unittest.main()
