"""Tests what smollm2_check.py counts, without transformers."""

import pathlib
import sys
import unittest

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import smollm2_check  # noqa: E402
from reference_model import cross_entropy  # noqa: E402


class Smollm2CheckTest(unittest.TestCase):
    def test_the_greatest_difference_of_all_sequences_counts(self):
        logits = np.random.default_rng(1).normal(size=(3, 7, 5))
        other = logits.copy()
        other[1, 2] = -logits[1, 2]
        difference = smollm2_check.Difference()

        for one, two in zip(logits, other):
            difference.add(one, two)

        greatest = 2 * np.abs(logits[1, 2]).max()
        self.assertEqual(str(difference), f"{greatest:.1e} | 20 of 21")

    def test_a_loss_is_that_of_the_tokens_behind_the_first(self):
        random = np.random.default_rng(1)
        logits, tokens = random.normal(size=(9, 6)).astype(np.float32), random.integers(6, size=9)

        loss = smollm2_check.next_token_loss(logits, tokens)

        self.assertAlmostEqual(loss, 8 * cross_entropy(logits[:-1].astype(float), tokens[1:]), 12)

    def test_a_text_is_cut_into_sequences_that_it_holds(self):
        self.assertEqual(smollm2_check.sequences_of(list(range(9)), 4).tolist(),
                         [[0, 1, 2, 3], [4, 5, 6, 7]])
        with self.assertRaisesRegex(smollm2_check.Unusable, "has 9 tokens, fewer than 2 times 5; "
                                    "give at most 4"):
            smollm2_check.sequences_of(list(range(9)), 5)
        with self.assertRaisesRegex(smollm2_check.Unusable, "--length: .* give at least 2"):
            smollm2_check.sequences_of(list(range(9)), 1)


if __name__ == "__main__":
    unittest.main()
