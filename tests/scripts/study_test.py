"""Tests of what study.py computes: points, results, and the fit of losses over size."""

import json
import pathlib
import sys
import tempfile
import unittest
from unittest import mock

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import endings  # noqa: E402
import ladder_fit  # noqa: E402
import study_file  # noqa: E402
import study_pictures  # noqa: E402
import study_report  # noqa: E402
import study_runs  # noqa: E402


class PointsTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.root = pathlib.Path(self.folder.name)
        (self.root / "base.yaml").write_text("model: {hidden: 64}\n")
        (self.root / "run.yaml").write_text("base: base.yaml\n")

    def points(self, parts, **more):
        study = {"title": "t", "config": "run.yaml", "parts": parts, **more}
        (self.root / "study.yaml").write_text(json.dumps(study))
        return study_file.read_study(self.root / "study.yaml").points()

    def test_the_last_axis_varies_fastest_and_later_settings_win(self):
        points = self.points({"p": {"settings": {"model.hidden": 1},
                                    "axes": {"model.hidden": [2, 3], "run.seed": [4, 5]}}})

        self.assertEqual([(point.settings["model.hidden"], point.settings["run.seed"])
                          for point in points], [("2", "4"), ("2", "5"), ("3", "4"), ("3", "5")])

    def test_parts_share_a_point_that_is_the_same(self):
        points = self.points({"a": {"axes": {"model.hidden": [2, 3]}},
                              "b": {"axes": {"width": {"two": {"model": {"hidden": 2}}}}}})

        self.assertEqual(len(points), 2)

    def test_a_value_may_follow_another(self):
        (point,) = self.points({"p": {"axes": {"model.hidden": [64]},
                                      "settings": {"model.latent": "= model.hidden / 4",
                                                   "model.ffn_hidden": "= model.hidden * 3"}}})

        self.assertEqual((point.settings["model.latent"], point.settings["model.ffn_hidden"]),
                         ("16", "192"))

    def test_what_decides_a_result_decides_the_point(self):
        parts = {"p": {"axes": {"model.hidden": [2]}}}
        before = self.points(parts)[0].id

        self.assertEqual(self.points(parts, title="other", repetitions=7)[0].id, before)
        self.assertEqual(self.points(parts, settings={"machine": "m.yaml"})[0].id, before)
        for more in ({"settings": {"ranks": 2}}, {"settings": {"background": True}},
                     {"threads": 2}, {"measure": "loss"}, {"command": "bench inference"}):
            with self.subTest(more):
                self.assertNotEqual(self.points(parts, **more)[0].id, before)
        (self.root / "base.yaml").write_text("model: {hidden: 65}\n")
        self.assertNotEqual(self.points(parts)[0].id, before)

    def test_hosts_decide_the_ranks_and_links_the_machine(self):
        (point, ) = self.points({"p": {
            "axes": {
                "rate": ["100mbit"]
            }
        }},
                                settings={
                                    "hosts": 2,
                                    "ranks_per_host": 3,
                                    "machine": "lab_{rate}.yaml"
                                })

        self.assertEqual((point.ranks, point.run["machine"]), (6, "lab_100mbit.yaml"))

    def test_a_command_names_whether_transfers_pass_in_the_background(self):
        modes = self.points({"p": {"axes": {"background": [False, True]},
                                   "settings": {"hosts": 2, "rate": "10mbit",
                                                "machine": "measured"}}})
        runner = study_runs.Runner(study_file.read_study(self.root / "study.yaml"), self.root,
                                   pathlib.Path("bin/program"))

        for point, value in zip(modes, "01"):
            self.assertIn(f"SWITCHYARD_BACKGROUND={value} ", runner.shown_command(point, 1))
        self.assertNotEqual(*map(runner.machine_file, modes))

    def test_compute_is_measured_once_for_all_links(self):
        links = {"hosts": 2, "ranks_per_host": 2, "machine": "measured"}
        slow, fast = self.points({"p": {"settings": links,
                                        "axes": {"rate": ["10mbit", "1gbit"]}}})
        runner = study_runs.Runner(study_file.read_study(self.root / "study.yaml"), self.root,
                                   pathlib.Path("bin/program"))
        (compute, here), (first, there) = runner.calibrations(slow)
        self.assertIn("ranks_4.yaml", compute.name)
        self.assertIn("mpirun", here)
        self.assertIn("run", there)
        self.assertEqual(there[-2:], ["--compute", str(compute)])

        compute.parent.mkdir()
        compute.write_text("measured\n")

        ((second, command),) = runner.calibrations(fast)
        self.assertNotEqual(second, first)
        self.assertEqual(command[-2:], ["--compute", str(compute)])


class ReadyStudiesTest(unittest.TestCase):
    def test_every_ready_study_can_be_read(self):
        files = sorted((SCRIPTS.parent / "configs" / "studies").glob("*.yaml"))
        self.assertGreaterEqual(len(files), 5)
        for file in files:
            with self.subTest(file.name):
                study = study_file.read_study(file)

                self.assertTrue(study.points())
                self.assertIn(" on two cores", file.read_text())  # how long it takes, in its head


class ResultsTest(unittest.TestCase):
    def test_a_result_replaces_a_failure_and_not_the_other_way_round(self):
        with tempfile.TemporaryDirectory() as folder:
            results = study_runs.Results(pathlib.Path(folder))
            results.append({"point": "a", "repetition": 1, "error": "x"})
            results.append({"point": "a", "repetition": 1, "figures": {"step_ms": 1}})
            results.append({"point": "a", "repetition": 1, "error": "y"})
            results.append({"point": "b", "repetition": 1, "error": "z"})

            done, failed = results.read()

            self.assertEqual(done["a", 1]["figures"], {"step_ms": 1})
            self.assertEqual(list(failed), [("b", 1)])


def measured(labels, ranks, figures):
    """A row of a report, whose runs have these figures."""
    point = study_file.Point("id", "train", pathlib.Path("run.yaml"), {}, {"ranks": ranks}, labels)
    return study_report.Measured(labels, point, dict(enumerate(figures, 1)), {})


class PicturesTest(unittest.TestCase):
    def test_efficiency_compares_within_a_repetition(self):
        # The machine was twice as fast in the second repetition and three times in the third.
        rows = [measured({"ranks": "1", "structure": "x"}, 1,
                         [{"tokens_per_s": speed} for speed in (10.0, 20.0, 30.0)]),
                measured({"ranks": "2", "structure": "x"}, 2,
                         [{"tokens_per_s": speed} for speed in (18.0, 36.0, 12.0)])]

        (table,), _ = study_pictures.efficiency(rows, {"axis": "ranks", "by": "structure"})

        self.assertEqual([row["efficiency"] for row in table], ["100.0 %", "90.0 %"])

    def test_what_is_hidden_is_what_nobody_waits_for_beside_the_same_repetition(self):
        rows = [measured({"transfers": how, "structure": "x"}, 2,
                         [{"exchange_ms": waited, "step_ms": 1000.0 + 0.5 * waited}
                          for waited in times])
                for how, times in (("in turn", (100.0, 200.0, 50.0)), ("behind", (25.0, 50.0, 50.0)))]

        (table,), _ = study_pictures.hidden(rows, {"axis": "transfers", "from": "in turn",
                                                   "by": "structure"})

        self.assertEqual([row["hidden"] for row in table], ["75.0 % (0.0 to 75.0)"])
        self.assertEqual([row["step shorter by"] for row in table], ["37.5 % of it"])

    def test_the_exchange_alone_is_compared_within_a_repetition(self):
        rows = [measured({"structure": structure, "top_k": "8"}, 2,
                         [{"tokens_per_s": 1.0, "exchange_ms": time, "exchange_share": 0.5}
                          for time in times])
                for structure, times in (("fine_grained", (4.0, 8.0)), ("bigmac", (1.0, 4.0)))]

        (table,), _ = study_pictures.speedup(rows, {"axis": "structure", "from": "fine_grained",
                                                    "to": "bigmac", "by": "top_k"})

        # The ratio of the medians would be 2.4.
        self.assertEqual([row["exchange alone"] for row in table], ["3.00"])

    def test_the_papers_points_stand_beside_its_twins_alone(self):
        figures = [{"tokens_per_s": 1.0, "exchange_ms": 1.0, "exchange_share": 0.5}]

        def picture(slow, fast):
            rows = [measured({"which": which, "top_k": "8"}, 2, figures) for which in (slow, fast)]
            figure = {"axis": "which", "from": slow, "to": fast, "by": "top_k"}
            return study_pictures.speedup(rows, figure)[1]

        self.assertIn("the paper", picture("fine_grained", "bigmac"))
        self.assertNotIn("the paper", picture("rank", "host"))


class LossTest(unittest.TestCase):
    def test_a_held_out_loss_that_is_not_finite_is_no_result(self):
        with tempfile.TemporaryDirectory() as folder:
            steps = [{"step": step, "tokens": 10 * step, "step_ms": 2.0, "exchange_ms": 1.0,
                      "val_loss": loss} for step, loss in ((1, 2.0), (2, 1.0), (3, None))]
            (pathlib.Path(folder) / "metrics.jsonl").write_text(
                "".join(json.dumps(step) + "\n" for step in steps))
            study = mock.Mock(measure="loss")
            point = mock.Mock(command="train", warmup_steps=1)

            with self.assertRaisesRegex(endings.Unusable, "after step 3 is not finite"):
                study_runs.figures_of(study, point, pathlib.Path(folder))


class LadderTest(unittest.TestCase):
    def test_the_fit_finds_the_constants_that_made_the_losses(self):
        made = [1.2, 90.0, 0.4, 300.0, 0.5]
        samples = [(n, d, made[0] + made[1] / n**made[2] + made[3] / d**made[4])
                   for n in (5e5, 1e6, 2e6, 4e6, 8e6) for d in (1e5, 3e5, 1e6, 3e6)]

        found = ladder_fit.readable(ladder_fit.fit(samples))

        for value, expected in zip(found, made):
            self.assertAlmostEqual(value / expected, 1.0, delta=0.05)

    @mock.patch.object(ladder_fit, "DRAWS", 40)
    def test_intervals_contain_the_fit_and_grow_with_the_seeds_differences(self):
        def runs(noise):
            made = []
            for n, size in ((5e5, "s"), (1e6, "m"), (2e6, "l")):
                for seed in range(3):
                    losses = [[d, (1.2 + 90 / n**0.4 + 300 / d**0.5) * (1 + noise * (seed - 1))]
                              for d in (5e4, 1e5, 3e5, 1e6)]
                    row = type("Row", (),
                               {"labels": {
                                   "structure": "x",
                                   "size": size,
                                   "seed": seed
                               }})
                    made.append(
                        ladder_fit.LadderRun(row, {
                            "axis": "structure",
                            "by": "size"
                        }, n, losses))
            return made

        narrow, wide = (ladder_fit.fit_with_intervals(runs(noise)) for noise in (1e-4, 1e-2))

        for best, (low, high) in (narrow, wide):
            self.assertTrue(low[0] <= ladder_fit.readable(best)[0] <= high[0])
        self.assertGreater((wide[1][1] - wide[1][0])[4], (narrow[1][1] - narrow[1][0])[4])

    def test_two_sizes_are_not_fitted(self):
        def run(size, n):
            row = type("Row", (), {"labels": {"structure": "x", "size": size}})
            return ladder_fit.LadderRun(row, {"axis": "structure", "by": "size"}, n,
                                        [[d, 2 + 9 / d] for d in (10, 20, 40, 80)])

        self.assertIsNone(ladder_fit.fit_with_intervals([run("s", 1e6), run("l", 2e6)]))

    def test_speeds_are_found_by_structure_and_size(self):
        with tempfile.TemporaryDirectory() as folder:
            results = study_runs.Results(pathlib.Path(folder))
            # The study has changed since the first result, and its point with it.
            for repetition, (point, speed) in enumerate(zip("oaaa", (100.0, 1.0, 5.0, 3.0))):
                results.append({"point": point, "repetition": repetition,
                                "began": f"2026-01-01T00:0{repetition}:00+00:00",
                                "labels": {"size": "s", "structure": "x"},
                                "figures": {"tokens_per_s": speed}})

            found = ladder_fit.speeds({"axis": "structure", "by": "size", "times": folder})

            self.assertEqual(found, {("x", "s"): 3.0})

    def test_losses_are_compared_seed_by_seed(self):
        def run(structure, seed, loss):
            row = type("Row", (), {"labels": {"structure": structure, "size": "s", "seed": seed}})
            return ladder_fit.LadderRun(row, {"axis": "structure", "by": "size"}, 1, [[10, loss]])

        (row, ) = ladder_fit.loss_table([
            run("twin", 1, 2.0),
            run("twin", 2, 4.0),
            run("bigmac", 1, 2.02),
            run("bigmac", 2, 4.04)
        ], {
            "by": "size",
            "from": "twin",
            "to": "bigmac"
        })

        self.assertEqual(row["bigmac by twin"], "+1.00 % ± 0.00")

    def test_the_pairs_of_all_sizes_are_compared_together(self):
        def run(structure, size, loss):
            row = type("Row", (), {"labels": {"structure": structure, "size": size, "seed": 1}})
            return ladder_fit.LadderRun(row, {"axis": "structure", "by": "size"}, 1, [[10, loss]])

        *_, everywhere = ladder_fit.loss_table(
            [run("twin", "s", 4.0), run("twin", "l", 2.0), run("bigmac", "s", 4.04),
             run("bigmac", "l", 1.94)], {"by": "size", "from": "twin", "to": "bigmac"})

        # +1 and -3 %; Student's t of one degree of freedom is 12.7, and their mean's error 2.
        self.assertEqual(everywhere["size"], "all")
        self.assertEqual(everywhere["bigmac by twin"], "-1.00 % ± 25.41")


if __name__ == "__main__":
    unittest.main()
