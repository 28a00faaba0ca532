"""Tests plot.py on metrics as a run writes them."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import plot  # noqa: E402

PNG = b"\x89PNG\r\n\x1a\n"


class PlotTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.root = pathlib.Path(self.folder.name)

    def tearDown(self):
        self.folder.cleanup()

    def make_run(self, name, steps, **more):
        (self.root / name).mkdir()
        lines = [json.dumps({"step": step, "tokens": 4096 * step, "loss": 8.0 / step,
                             "max_load_ratio": 1.5, **more}) for step in range(1, steps + 1)]
        (self.root / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        return self.root / name

    def plot(self, *arguments):
        return subprocess.run([sys.executable, SCRIPTS / "plot.py", *arguments],
                              capture_output=True, text=True, check=False)

    def test_skips_half_a_line(self):
        run = self.make_run("a", 3)
        with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write('{"step":4,"tok')

        self.assertEqual(len(plot.Run(run).records), 3)

    def test_null_is_not_a_number(self):
        run = self.make_run("a", 2, grad_norm=None)

        self.assertTrue(plot.np.isnan(plot.Run(run).column("grad_norm")).all())

    def test_expert_load_is_relative_to_the_mean(self):
        run = self.make_run("a", 2, expert_load=[[0.75, 0.25]])

        load, step = plot.Run(run).last_expert_load()

        self.assertEqual(load.tolist(), [[1.5, 0.5]])
        self.assertEqual(step, 2)

    def test_smoothing_keeps_a_line_straight(self):
        line = plot.np.linspace(4.0, 2.0, 501)

        self.assertTrue(plot.np.allclose(plot.smooth(line), line))

    def test_draws_both_pictures_of_several_runs(self):
        runs = [self.make_run("a", 3, val_loss=3.0, expert_load=[[0.5, 0.5]]),
                self.make_run("b", 5)]

        result = self.plot(*runs, "--out", self.root)

        self.assertEqual(result.returncode, 0, result.stderr)
        for picture in ["loss.png", "expert_load.png"]:
            self.assertEqual((self.root / picture).read_bytes()[:8], PNG)

    def test_a_dense_run_has_no_expert_load(self):
        run = self.make_run("a", 3)
        text = (run / "metrics.jsonl").read_text().replace("1.5", "0.0")
        (run / "metrics.jsonl").write_text(text)

        result = self.plot(run)

        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertFalse((run / "expert_load.png").exists())

    def test_names_an_empty_file(self):
        (self.root / "metrics.jsonl").write_text("")

        result = self.plot(self.root / "metrics.jsonl")

        self.assertNotEqual(result.returncode, 0)
        self.assertIn("metrics.jsonl", result.stderr)


if __name__ == "__main__":
    unittest.main()
