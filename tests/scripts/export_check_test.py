"""Tests what export_check.py finds right and wrong, without transformers."""

import pathlib
import sys
import tempfile
import types
import unittest

import h5py
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import export_check  # noqa: E402


class ExportCheckTest(unittest.TestCase):
    def compare(self, ours, theirs, wrong_keys=()):
        row = export_check.Row("llama", "tied")
        row.compare(ours, types.SimpleNamespace(seen=theirs, wrong_keys=list(wrong_keys)),
                    np.zeros(ours.shape[:2]))
        return row

    def test_equal_logits_pass(self):
        logits = np.random.default_rng(1).normal(size=(2, 2048, 5))

        row = self.compare(logits, logits + 9e-5)

        self.assertEqual(row.line(6), "| llama | tied | 4,096 | 9.0e-05 | all | all |")
        self.assertFalse(row.failed)

    def test_what_is_wrong_is_bold(self):
        logits = np.random.default_rng(1).normal(size=(2, 2000, 5))
        other = logits.copy()
        other[1, 7] = -logits[1, 7]

        row = self.compare(logits, other, ["model.norm.weight"])

        self.assertTrue(row.failed)
        self.assertEqual(row.line(6).count("**"), 8)
        self.assertIn("**4,000**", row.line(6))
        self.assertIn("**99.9750%**", row.line(6))

    def test_documents_begin_behind_their_end_tokens(self):
        ours = object.__new__(export_check.Ours)
        ours.separates_documents = True

        starts = ours.starts(np.array([[1, 256, 2, 3, 256, 256, 4]]))

        self.assertEqual(starts.tolist(), [[0, 0, 2, 2, 2, 5, 6]])

    def test_windows_are_those_of_an_evaluation(self):
        with tempfile.TemporaryDirectory() as folder:
            with h5py.File(f"{folder}/validation.h5", "w") as file:
                file["tokens"] = np.arange(100, 116, dtype=np.uint16)
                file.attrs["end_of_document"] = 102
            config = {"data": {"validation": f"{folder}/validation.h5", "mask": "document"},
                      "model": {"seq_len": 5}, "train": {"eval_batches": 9, "global_batch_size": 1}}

            tokens, targets = export_check.held_out_windows(config)

        self.assertEqual(tokens.tolist()[0], [100, 101, 102, 103, 104])
        self.assertEqual(targets.tolist()[0], [101, 102, -1, 104, 105])
        self.assertEqual(tokens.shape, (3, 5))


if __name__ == "__main__":
    unittest.main()
