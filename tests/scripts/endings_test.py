"""Every script ends with a sentence where a run is missing, empty, torn or has diverged."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import unittest

from plot_hash_test import evaluation
from script_test_case import ROOT, SCRIPTS, ScriptTestCase
MODEL = "model: {vocab_size: 4, seq_len: 8, position: rope, num_layers: 0, norm: rms_norm, " \
        "norm_eps: 1e-5, tie_embeddings: true}"


# What brings scripts to a package that they import only where they need it.
TO_LATE_IMPORTS = {"smollm2_folder.py": ["model.gguf", "folder"],
                   "compare_llama_cpp.py": ["--measure-llama", "sources", "f.gguf", "f32", "8",
                                            "[1]", "1"]}
WITHOUT_PACKAGES = {"export_speed.py"}


class EndingsTest(ScriptTestCase):
    def write_metrics(self, *records):
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        (self.root / "metrics.jsonl").write_text("\n".join(lines))
        return self.root

    def write_evaluation(self, change):
        content = evaluation()
        change(content)
        file = self.root / "evaluation.json"
        file.write_text(json.dumps(content))
        return file

    def test_every_script_says_which_package_it_lacks(self):
        scripts = [path for path in SCRIPTS.glob("*.py")
                   if os.access(path, os.X_OK) and not path.name.startswith("check_")]
        self.assertGreater(len(scripts), 10)
        for script in scripts:
            if script.name in WITHOUT_PACKAGES:
                continue
            # With -S Python finds its own modules alone.
            done = subprocess.run(
                [sys.executable, "-S", script, *TO_LATE_IMPORTS.get(script.name, [])],
                cwd=self.root, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                check=False)
            with self.subTest(script=script.name):
                is_alone = script.name == "pytorch_reference.py"  # in a bundle
                lacks = "PyTorch is not installed" if is_alone else "Python lacks a package"
                self.expect_sentence(done, f"{script.stem}: {lacks}")

    def test_llama_cpp_that_is_not_built(self):
        for arguments in [("compare_llama_cpp.py", self.root, "c.yaml", "--text", __file__),
                          ("llama_cpp_loss.py", self.root, self.root, "held_out.npz")]:
            self.expect_sentence(self.run_script(*arguments), "build/bin holds no llama.cpp",
                                 "export_check.sh --llama-cpp")

    # plot.py

    def test_plot_of_a_run_that_is_missing_empty_or_torn(self):
        self.expect_sentence(self.run_script("plot.py", self.root / "none"), "none does not exist")
        self.expect_sentence(self.run_script("plot.py", self.root), "metrics.jsonl does not exist")
        self.write_metrics('{"step": 1, "tok')
        self.expect_sentence(self.run_script("plot.py", self.root), "no whole record")
        self.write_metrics('"text"', "[1]", '{"step": null, "tokens": 8}')
        self.expect_sentence(self.run_script("plot.py", self.root), "no whole record")

    def test_plot_of_a_run_that_diverged_at_once(self):
        self.write_metrics(*({"step": step, "tokens": 8 * step, "loss": None,
                              "max_load_ratio": None, "val_loss": None} for step in (1, 2)))

        done = self.run_script("plot.py", self.root)

        self.expect_sentence(done, "the run diverged", "from step 1 on")

    def test_plot_of_a_run_that_diverged_later_draws_its_beginning_and_says_so(self):
        self.write_metrics({"step": 1, "tokens": 8, "loss": 3.0, "max_load_ratio": 1.5,
                            "expert_load": [[0.5, 0.5]]},
                           {"step": 2, "tokens": 16, "loss": None, "max_load_ratio": None,
                            "expert_load": [[0.5], [0.25, None]], "val_loss": None})

        done = self.run_script("plot.py", self.root)

        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("not finite in 1 of 2 steps, first in step 2", done.stderr)
        self.assertNotIn("Warning", done.stderr)
        self.assertTrue((self.root / "loss.png").exists())
        self.assertTrue((self.root / "expert_load.png").exists())

    def test_results_go_to_new_folders(self):
        self.write_metrics({"step": 1, "tokens": 8, "loss": 3.0})
        self.write_evaluation(lambda content: None)
        out = self.root / "new" / "folder"

        for script, run in [("plot.py", self.root),
                            ("plot_hash.py", self.root / "evaluation.json")]:
            done = self.run_script(script, run, "--out", out / script)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertTrue(list((out / script).glob("*.png")))

    def test_a_picture_that_is_cut_short_does_not_take_the_place_of_the_last_one(self):
        self.write_metrics({"step": 1, "tokens": 8, "loss": 3.0, "max_load_ratio": 1.5,
                            "expert_load": [[0.5, 0.5]]})
        file = self.write_evaluation(lambda content: None)
        for script, run, first in [("plot.py", self.root, "loss.png"),
                                   ("plot_hash.py", file, "recall_by_budget.png")]:
            out = self.root / script
            self.assertEqual(self.run_script(script, run, "--out", out).returncode, 0)
            before = {path.name: path.read_bytes() for path in out.iterdir()}

            # No file may be longer than 1,000 bytes; Python ignores the signal.
            done = subprocess.run(["bash", "-c", 'ulimit -f 1; exec "$@"', "bash", sys.executable,
                                   SCRIPTS / script, run, "--out", out],
                                  capture_output=True, text=True, check=False)

            self.expect_sentence(done, "File too large")
            self.assertIn(first, before)
            self.assertEqual({path.name: path.read_bytes() for path in out.iterdir()}, before)

    def test_results_that_cannot_be_written(self):
        self.write_metrics({"step": 1, "tokens": 8, "loss": 3.0})
        file = self.write_evaluation(lambda content: None)

        for script, run in [("plot.py", self.root), ("plot_hash.py", file)]:
            done = self.run_script(script, run, "--out", file)
            self.expect_sentence(done, "evaluation.json is no folder")
            done = self.run_script(script, run, "--out", "/proc/none")
            self.expect_sentence(done, "/proc/none")

    def test_pictures_replace_only_pictures(self):
        self.write_metrics({"step": 1, "tokens": 8, "loss": 3.0, "max_load_ratio": 1.5,
                            "expert_load": [[0.5, 0.5]]})
        evaluation_file = self.write_evaluation(lambda content: None)
        for script, run, names in [
                ("plot.py", self.root, ("loss.png", "expert_load.png")),
                ("plot_hash.py", evaluation_file,
                 ("recall_by_budget.png", "recall_by_bits.png", "recall_by_head.png",
                  "answers_by_budget.png"))]:
            for name in names:
                with self.subTest(name):
                    out = self.root / "out" / name
                    out.mkdir(parents=True)
                    (out / name).write_text("my drawing, by hand")
                    done = self.run_script(script, run, "--out", out)
                    self.expect_sentence(done, name, "is no PNG picture", "--out")
                    self.assertEqual([path.name for path in out.iterdir()], [name])
                    self.assertEqual((out / name).read_text(), "my drawing, by hand")
            again = self.root / "again"
            for _ in range(2):
                done = self.run_script(script, run, "--out", again)
                self.assertEqual(done.returncode, 0, done.stderr)
        (again / "recall_by_bits.png").unlink()
        (again / "recall_by_bits.png").mkdir()
        self.expect_sentence(self.run_script("plot_hash.py", evaluation_file, "--out", again),
                             "recall_by_bits.png is no file")

    def test_a_report_of_the_gpu_replaces_only_a_report(self):
        bundle = self.root / "bundle"
        bundle.mkdir()
        (bundle / "env.sh").write_text("")
        shutil.copy(SCRIPTS / "gpu_check.sh", bundle)
        (self.root / "notes.md").write_text("# Notes")
        done = subprocess.run(["bash", bundle / "gpu_check.sh", self.root / "notes.md"],
                              capture_output=True, text=True, check=False)
        self.expect_sentence(done, "notes.md is no report of gpu_check")
        self.assertEqual((self.root / "notes.md").read_text(), "# Notes")

    # plot_hash.py and hata_table.py

    def expect_sentences(self, file, *words):
        self.expect_sentence(self.run_script("plot_hash.py", file), "plot_hash: ", *words)
        self.expect_sentence(self.run_script("hata_table.py", "x", file), "hata_table: ", *words)

    def test_evaluations_that_are_missing_or_torn(self):
        self.expect_sentences(self.root / "none.json", "none.json does not exist", "eval-hash")
        file = self.write_evaluation(lambda content: None)
        file.write_text(file.read_text()[:1000])
        self.expect_sentences(file, "torn")
        file.write_bytes(b'{"format": "\xff"}')
        self.expect_sentences(file, "torn")
        file.write_text("[1]")
        self.expect_sentences(file, "no JSON object")

    def test_evaluations_that_lack_something(self):
        def cut_heads(content):
            content["results"][0]["layers"][0]["heads"].pop()

        changes = {"no context": lambda content: content.pop("context"),
                   "no results": lambda content: content.update(results=[]),
                   "result 1 has no recall": lambda content: content["results"][0].pop("recall"),
                   "result 2 has no layers": lambda content: content["results"][1].pop("layers"),
                   "other tasks": lambda content: content["results"][0].pop("tasks"),
                   "dense has no loss": lambda content: content["dense"].pop("loss"),
                   "differ in their heads": cut_heads}
        for words, change in changes.items():
            with self.subTest(words):
                self.expect_sentences(self.write_evaluation(change), "incomplete", words)

    def test_an_evaluation_that_diverged(self):
        def diverge(content):
            for result in content["results"]:
                result.update(recall=None, perplexity=None)

        self.expect_sentences(self.write_evaluation(diverge), "no finite recall")

    def test_single_figures_that_are_not_finite_are_shown_as_such(self):
        def change(content):
            for result in content["results"]:
                result.update(perplexity=None)
                result["layers"][0]["heads"][0]["recall"] = None

        file = self.write_evaluation(change)

        done = self.run_script("plot_hash.py", file)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        done = self.run_script("hata_table.py", "x", file)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("nan", done.stdout)

    def test_a_table_of_bits_that_were_not_measured(self):
        file = self.write_evaluation(lambda content: None)

        done = self.run_script("hata_table.py", "x", file, "--bits", "99")

        self.expect_sentence(done, "no codes of 99 bits", "32, 128")

    def test_an_evaluation_whose_budgets_are_no_numbers(self):
        for key in ("budget", "budget_tokens"):
            file = self.write_evaluation(lambda content, key=key: content["results"][2].update({
                key: None}))
            self.expect_sentences(file, "incomplete: result 3 has no finite budget")

    # Files and counts that others read only after their work

    def test_rounds_that_measure_nothing(self):
        for count in ("0", "-1", "two"):
            done = self.run_script("export_speed.py", self.root, "--rounds", count)
            self.expect_refused_argument(done, "--rounds", f"'{count}' is no whole number")

    # reference_forward.py

    def write_checkpoint(self, values):
        import h5py

        with h5py.File(self.root / "model.h5", "w") as file:
            file["weights/embedding.weight"] = [[value] * 2 for value in values]
            file["weights/norm.weight"] = [1.0, 1.0]
        (self.root / "manifest.json").write_text(json.dumps({"state": {"config": MODEL}}))
        return self.root

    def test_the_reference_on_a_run_that_is_missing_or_torn(self):
        self.expect_sentence(self.run_script("reference_forward.py", self.root / "none", 1, 2),
                             "manifest.json does not exist")
        self.write_checkpoint([1.0, 2.0, 3.0, 4.0])
        manifest = (self.root / "manifest.json").read_text()
        (self.root / "manifest.json").write_text(manifest[:20])
        self.expect_sentence(self.run_script("reference_forward.py", self.root, 1, 2), "torn")
        (self.root / "manifest.json").write_text("{}")
        self.expect_sentence(self.run_script("reference_forward.py", self.root, 1, 2),
                             "no whole checkpoint")
        for config in ("model: {vocab_size: 4}", "model: 3", "[model]", "model: [", 3):
            (self.root / "manifest.json").write_text(json.dumps({"state": {"config": config}}))
            self.expect_sentence(self.run_script("reference_forward.py", self.root, 1, 2),
                                 "no whole checkpoint")
        (self.root / "manifest.json").write_text(manifest)
        (self.root / "model.h5").write_bytes(b"torn")
        self.expect_sentence(self.run_script("reference_forward.py", self.root, 1, 2),
                             "no whole checkpoint")

    def test_the_reference_on_tokens_that_the_model_cannot_read(self):
        self.write_checkpoint([1.0, 2.0, 3.0, 4.0])

        self.assertEqual(self.run_script("reference_forward.py", self.root, 1, 2).returncode, 0)
        for tokens, words in [((1,), "at least two"), ((1, 4), "token 4 is outside"),
                              ((1,) * 9, "9 tokens exceed the context of 8")]:
            self.expect_sentence(self.run_script("reference_forward.py", self.root, *tokens), words)

    def test_the_reference_on_a_run_that_diverged(self):
        self.write_checkpoint([float("nan")] * 4)

        done = self.run_script("reference_forward.py", self.root, 1, 2)

        self.expect_sentence(done, "the logits are not finite")

    # compare_pytorch.py

    def test_the_comparison_without_pytorch_names_its_environment(self):
        if importlib.util.find_spec("torch"):
            self.skipTest("this Python has PyTorch")
        self.expect_sentence(self.run_script("compare_pytorch.py"), "transformers_environment.sh")

    # Shell scripts

    def test_shell_scripts_name_a_file_that_is_missing(self):
        missing = self.root / "none.yaml"

        self.expect_sentence(self.run_script("quickstart.sh", "--text", missing), "none.yaml")
        for option in ("--recall", "--text"):
            self.expect_sentence(self.run_script("hata_study.sh", option, missing), "none.yaml")

    def test_shell_scripts_refuse_values_that_mean_nothing(self):
        for script, option, value in [("hata_study.sh", "--ranks", "0"),
                                      ("hata_study.sh", "--ranks", "two"),
                                      ("hata_study.sh", "--bits", "128,64"),
                                      ("hata_study.sh", "--bits", " ")]:
            self.expect_sentence(self.run_script(script, option, value), option)

    def test_the_check_on_a_gpu_says_where_it_runs(self):
        self.expect_sentence(self.run_script("gpu_check.sh", self.root / "report.md"), "bundle.sh")

    def test_a_step_that_fails_is_named(self):
        # A copy of the scripts whose first step fails.
        for script in ("quickstart.sh", "hata_study.sh"):
            scripts = self.root / script / "scripts"
            scripts.mkdir(parents=True)
            shutil.copy(SCRIPTS / script, scripts)
            (scripts / "setup.sh").write_text("#!/bin/sh\nexit 3\n")
            (scripts / "setup.sh").chmod(0o755)
            for name in ("recall_bigmac", "quickstart_bigmac"):
                (scripts.parent / "configs").mkdir(exist_ok=True)
                (scripts.parent / "configs" / f"{name}.yaml").write_text("")

            done = subprocess.run(["bash", scripts / script], capture_output=True, text=True,
                                  check=False)

            self.expect_sentence(done, f"{script[:-3]}: the step \"Packages\" failed")
            self.assertEqual(done.returncode, 3)


if __name__ == "__main__":
    unittest.main()
