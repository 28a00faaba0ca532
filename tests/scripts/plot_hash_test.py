"""Tests plot_hash.py and hata_table.py on results in the format of eval-hash."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import hata_table  # noqa: E402
import plot_hash  # noqa: E402

PNG = b"\x89PNG\r\n\x1a\n"
CONTEXT = 2048


def scores(answers):
    return {"loss": 1.0 - 0.1 * answers, "perplexity": 3.0 - answers,
            "tasks": {"single": {"samples": 4, "exact": answers, "answers": answers},
                      "multi_key": {"samples": 4, "exact": 0.5, "answers": 0.5}}}


def result(method, share, recall, **more):
    layers = [{"layer": layer, "recall": recall, "attention_mass": 0.9,
               "heads": [{"recall": recall}, {"recall": recall / 2}]} for layer in (1, 2)]
    return {"method": method, "budget": share, "budget_tokens": int(share * CONTEXT),
            "keys": share * CONTEXT - 0.5, "recall": recall, "attention_mass": 0.9,
            "output_error": 0.1, "layers": layers, **scores(recall), **more}


def evaluation(tasks=True):
    results = []
    for share in (0.0039, 0.015625, 0.03125, 0.25):
        results += [result("exact_topk", share, 1.0), result("quest", share, 0.25),
                    result("streaming", share, 0.0), result("magicpig", share, 0.5, keys=97.0)]
        for bits in (32, 128):
            results += [result("hata", share, 0.75, bits=bits, key_norm=False),
                        result("hata", share, 0.5, bits=bits, key_norm=True),
                        result("random_hash", share, 0.625, bits=bits, key_norm=False)]
    content = {"format": "switchyard.hash_evaluation", "version": 1, "checkpoint": "step_1",
               "dense_layers": 1, "context": CONTEXT, "prefill": 2040, "sequences": 8,
               "dense": scores(1.0), "results": results}
    if not tasks:
        for one in [content["dense"], *results]:
            del one["tasks"]
    return content


class PlotHashTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.root = pathlib.Path(self.folder.name)

    def tearDown(self):
        self.folder.cleanup()

    def write(self, content):
        (self.root / "hash").mkdir(exist_ok=True)
        file = self.root / "hash" / "evaluation.json"
        file.write_text(json.dumps(content))
        return file

    def run_script(self, script, *arguments):
        return subprocess.run([sys.executable, SCRIPTS / script, *map(str, arguments)],
                              capture_output=True, text=True, check=False)

    def test_draws_every_picture(self):
        self.write(evaluation())

        done = self.run_script("plot_hash.py", self.root)

        self.assertEqual(done.returncode, 0, done.stderr)
        for name in ["recall_by_budget", "recall_by_bits", "recall_by_head", "answers_by_budget"]:
            self.assertEqual((self.root / "hash" / f"{name}.png").read_bytes()[:8], PNG)

    def test_text_has_no_answers(self):
        self.write(evaluation(tasks=False))

        done = self.run_script("plot_hash.py", self.root)

        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertFalse((self.root / "hash" / "answers_by_budget.png").exists())

    def test_key_norm_is_a_method_of_its_own(self):
        found = plot_hash.Evaluation(self.write(evaluation()))

        self.assertEqual({r["recall"] for r in found.of("hata", 128)}, {0.75})
        self.assertEqual({r["recall"] for r in found.of("hata_norm", 128)}, {0.5})
        self.assertEqual(found.main_bits, 128)

    def test_tables_hold_tasks_layers_and_the_papers_figures(self):
        file = self.write(evaluation())

        done = self.run_script("hata_table.py", "recall", file)

        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("### Budget 1.56 %", done.stdout)
        self.assertIn("| HATA, 128 bits | 31.5 | 75.00 | 50.00 | 62.50 | 80.57 |", done.stdout)
        self.assertIn("| HATA, 128 bits | 63.5 | 75.00 | 50.00 | 62.50 | 63.91 |", done.stdout)
        self.assertIn("| MagicPIG | 97.0 | 50.00 | 50.00 | 50.00 | 57.91 |", done.stdout)
        self.assertIn("| 2 | 0.750 | 0.625 | 0.900 | 0.900 |", done.stdout)

    def test_tables_hold_all_budgets_and_bits(self):
        found = plot_hash.Evaluation(self.write(evaluation()))

        self.assertEqual(hata_table.budgets_table(found, 32)[0],
                         "| perplexity | 0.39 % | 1.56 % | 3.13 % | 25.00 % |")
        self.assertIn("| Quest | 2.750 | 2.750 | 2.750 | 2.750 |",
                      hata_table.budgets_table(found, 32))
        found.results[-1]["perplexity"] = 7.0
        found.results[-1]["recall"] = 0.5
        self.assertEqual(hata_table.bits_table(found, 0.25)[2:],
                         ["| 32 | 0.750 | 0.625 | 0.900 | 0.900 | 2.250 | 2.375 |",
                          "| 128 | 0.750 | 0.500 | 0.900 | 0.900 | 2.250 | 7.000 |"])

    def test_a_table_of_english_tasks_holds_what_dense_decoding_solves(self):
        def case(task, length, answers):
            return {"task": task, "length": length, "samples": 4, "answers": answers}

        files = []
        for length, dense, quest in [(1024, 1.0, 0.5), (2048, 0.75, None)]:
            cases = [case("vt", length, 0.25), case("single", length, dense)]
            found = [] if quest is None else [case("single", length, quest)]
            files.append(self.root / f"{length}.json")
            files[-1].write_text(json.dumps({
                "format": "switchyard.task_evaluation", "dense": cases,
                "results": [{"method": "quest", "budget": 0.015625, "cases": found},
                            {"method": "exact_topk", "budget": 16, "cases": found}]}))

        done = self.run_script("hata_table.py", "--tasks", *files)

        self.assertEqual(done.stdout.splitlines()[2:4] + done.stdout.splitlines()[5:],
                         ["| vt | 25.0 (4) | 25.0 (4) |", "| single | 100.0 (4) | 75.0 (4) |",
                          "| answers found, % | single, 1024 | mean |", "| --- | --- | --- |",
                          "| dense | 100.0 | 100.0 |", "| exact top-k, 16 keys | 50.0 | 50.0 |",
                          "| Quest, 1.56 % | 50.0 | 50.0 |", ""])
        files[0].write_text(json.dumps({"format": "switchyard.task_evaluation", "dense": [{}]}))
        done = self.run_script("hata_table.py", "--tasks", files[0])
        self.assertIn("1024.json is incomplete ('task')", done.stderr)
        files[0].write_text("{}")
        done = self.run_script("hata_table.py", "--tasks", files[0])
        self.assertIn("is not an evaluation of English tasks", done.stderr)

    def test_a_table_says_what_learning_gains(self):
        def held_out(layer, recall, itq, mass, itq_mass):
            return json.dumps({"layer": layer, "kv_head": 0, "held_out": {
                "recall": [recall, 0.9], "recall_itq": [itq, 0.9], "recall_random": [0.25, 0.5],
                "attention_mass": [mass, 1], "attention_mass_itq": [itq_mass, 1],
                "attention_mass_random": [0.125, 1], "attention_mass_best": [0.9, 1]}})

        path = self.root / "some_bits.jsonl"
        path.write_text("\n".join([json.dumps({"layer": 2, "kv_head": 0, "step": 0, "loss": 3}),
                                   held_out(2, 0.5, 0.75, 0.8, 0.7),
                                   held_out(3, 0.75, 0.5, 0.8, 0.6)]))
        trainings = {"some_bits": hata_table.read_held_out(path)}
        table = hata_table.learning_table(trainings)
        self.assertEqual(table[-1], "| some_bits | 0.625, 0.800 | 0.625, 0.650 | - | - | "
                                    "0.250, 0.125 | 0.900 | 1, 2 of 2 |")
        trainings["some_bits"][3].append(trainings["some_bits"][2][0])
        self.assertEqual(hata_table.heads_table(trainings)[2:], [
            "| 2 | 0.500 | 0.800 | 0.250 | 0.125 |",
            "| 3 | 0.750 0.500 | 0.800 0.800 | 0.250 0.250 | 0.125 0.125 |"])

        path.write_text(json.dumps({"layer": 2, "kv_head": 0, "step": 0, "loss": 3}))
        with self.assertRaises(hata_table.endings.Unusable):
            hata_table.read_held_out(path)

    def test_a_table_of_learning_where_random_signs_were_not_measured(self):
        figures = {"recall": [0.5], "attention_mass": [0.75], "recall_itq": [0.25],
                   "attention_mass_itq": [0.8], "attention_mass_best": [0.9]}
        path = self.root / "256.jsonl"
        path.write_text(json.dumps({"layer": 1, "held_out": figures}))

        done = self.run_script("hata_table.py", "--learning", path)

        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("| 256 | 0.500, 0.750 | 0.250, 0.800 | - | - | - | 0.900 | 1, 0 of 1 |\n",
                      done.stdout)
        self.assertIn("| layer, heads | 256: recall | 256: mass |\n| --- | --- | --- |\n"
                      "| 1 | 0.500 | 0.750 |\n", done.stdout)

    def test_files_of_learning_that_are_torn_or_foreign(self):
        whole = {"recall": [0.5], "attention_mass": [0.75], "recall_random": [0.25],
                 "attention_mass_random": [0.8], "attention_mass_best": [0.9]}
        other = {**whole, "recall_itq": [0.5], "attention_mass_itq": [0.5]}
        path = self.root / "some.jsonl"

        def line(figures, **more):
            return json.dumps({"layer": 1, "held_out": figures, **more})

        def without(key):
            return {k: value for k, value in whole.items() if k != key}

        for content, said in [
                (line(whole) + '\n{"layer": 1, "held', "some.jsonl, line 2, is torn"),
                ("step,loss\n1,3.5\n", "some.jsonl, line 1, is torn or is no JSON"),
                ("[1]", "some.jsonl, line 1, holds no JSON object"),
                *((line(figures), "some.jsonl has an incomplete measurement of a head")
                  for figures in (without("recall"), without("attention_mass_random"),
                                  without("attention_mass_best"), without("recall_random"),
                                  {**whole, "recall": 0.5}, {**whole, "recall": []}, [0.5], None)),
                (line(whole, layer=None), "some.jsonl has an incomplete measurement of a head"),
                (line(whole) + "\n" + line(other), "has heads that differ in what was measured")]:
            with self.subTest(content):
                path.write_text(content)
                done = self.run_script("hata_table.py", "--learning", path)
                self.assertEqual(done.returncode, 1, done.stdout)
                self.assertRegex(done.stderr, rf"^hata_table: .*{said}.*train-hash.*\n$")
        done = self.run_script("hata_table.py", "--learning", self.root / "none.jsonl")
        self.assertIn("none.jsonl does not exist", done.stderr)

    def test_codes_of_which_one_kind_was_measured_have_a_table(self):
        content = evaluation()
        content["results"] = [r for r in content["results"] if r["method"] == "hata"
                              or r["method"] == "random_hash" and r["bits"] == 32]

        done = self.run_script("hata_table.py", "x", self.write(content))

        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("| 32 | 0.750 | 0.625 | 0.900 | 0.900 | 2.250 | 2.375 |\n"
                      "| 128 | 0.750 | - | 0.900 | - | 2.250 | - |\n", done.stdout)

    def test_english_tasks_whose_figures_are_no_numbers(self):
        case = {"task": "vt", "length": 1024, "samples": 4, "answers": 0.5}
        file = self.root / "tasks.json"
        for dense, result in [({**case, "length": None}, {}), ({**case, "length": "long"}, {}),
                              ({**case, "samples": None}, {}), (case, {"budget": None}),
                              (case, {"budget": "small"}), (case, {"cases": [3]})]:
            with self.subTest(dense=dense, result=result):
                file.write_text(json.dumps({
                    "format": "switchyard.task_evaluation", "dense": [dense],
                    "results": [{"method": "quest", "budget": 0.5, "cases": [case], **result}]}))
                done = self.run_script("hata_table.py", "--tasks", file)
                self.assertRegex(done.stderr, r"^hata_table: .*tasks.json is incomplete .*\n$")
        file.write_text(json.dumps({"format": "switchyard.task_evaluation", "results": [],
                                    "dense": [{**case, "answers": None}]}))
        done = self.run_script("hata_table.py", "--tasks", file)
        self.assertIn("| vt | nan (4) |", done.stdout)

    def test_names_a_file_that_is_none(self):
        self.write({"format": "other"})

        for script, arguments in [("plot_hash.py", [self.root]),
                                  ("hata_table.py", ["x", self.root / "hash/evaluation.json"])]:
            done = self.run_script(script, *arguments)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn("evaluation.json is not an evaluation", done.stderr)

    def test_a_table_of_the_paper_for_each_of_its_budgets(self):
        self.assertEqual(set(hata_table.PAPER_AVERAGES), set(plot_hash.PAPER_BUDGETS))


if __name__ == "__main__":
    unittest.main()
