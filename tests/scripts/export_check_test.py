"""Tests what export_check.py finds right and wrong, without transformers."""

import contextlib
import io
import json
import sys
import tempfile
import types
import unittest

import h5py
import numpy as np

from script_test_case import SCRIPTS, ScriptTestCase

sys.path.insert(0, str(SCRIPTS))
import export_check  # noqa: E402


class ExportCheckTest(ScriptTestCase):
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

    def write_run(self, metrics, manifest):
        (self.root / "checkpoints/latest").mkdir(parents=True, exist_ok=True)
        (self.root / "checkpoints/latest/manifest.json").write_text(json.dumps(manifest))
        (self.root / "metrics.jsonl").write_text(metrics)

    def test_the_held_out_loss_is_the_last_that_was_measured(self):
        self.write_run('{"step": 1, "val_loss": 3.5}\n{"step": 2, "val_loss": 3.25}\n{"step": 3}\n',
                       {})
        self.assertEqual(export_check.held_out_loss(self.root), 3.25)
        for metrics, said in [('{"step": 1}\n', "metrics.jsonl holds no held-out loss; let"),
                              ("", "metrics.jsonl holds no held-out loss"),
                              ('{"step": 1, "val_lo', "metrics.jsonl, line 1, is torn")]:
            self.write_run(metrics, {})
            with self.assertRaisesRegex(export_check.Unusable, said):
                export_check.held_out_loss(self.root)

    def test_runs_without_a_configuration_are_named(self):
        for state in ({}, {"state": {"config": "model: ["}}, {"state": {"config": "model"}},
                      {"state": {"config": "model: {}"}}, {"state": {"config": 3}}):
            self.write_run("", state)
            with self.subTest(state), self.assertRaisesRegex(
                    export_check.Unusable, "(?s)manifest.json holds no configuration .*trained"):
                export_check.config_of(self.root)

    def test_a_row_says_that_a_run_was_never_evaluated(self):
        check = object.__new__(export_check.Check)
        check.work, check.failed = self.root / "work", 0

        def never_evaluated(*_):
            self.write_run('{"step": 1}', {})
            export_check.held_out_loss(self.root)

        with contextlib.redirect_stdout(io.StringIO()) as said:
            check.table("Trained runs", ["form", "run"], [types.SimpleNamespace(
                form="llama", options="r")], never_evaluated)

        self.assertEqual(check.failed, 1)
        self.assertIn("holds no held-out loss", said.getvalue())

    def test_a_form_that_is_not_known_is_no_success(self):
        done = self.run_script("export_check.py", "--form", "lama")
        self.expect_refused_argument(done, "--form", "'lama'", "'llama'")

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
