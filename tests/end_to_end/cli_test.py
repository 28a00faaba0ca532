#!/usr/bin/env python3
"""Tests the program from the command line: commands, exit codes, messages, resume, mpiexec.

usage: cli_test.py PATH_TO_SWITCHYARD PATH_TO_MPIEXEC [unittest options]
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import unittest
import unittest.mock

from program import (BAD_INPUT, DONE, FAILED, MPIEXEC, MPI_FLAGS, STOPPED, SWITCHYARD, Program, kill,
                     patience, run)


class Training(Program):
    def test_every_structure_learns_on_every_layout_that_is_tried(self):
        for structure, ranks, layout in [("dense", 2, ["parallel.tp=2"]),
                                         ("vanilla", 4, ["parallel.ep=4"]),
                                         ("fine_grained", 4, ["parallel.tp=2", "parallel.ep=4"]),
                                         ("bigmac", 4, ["parallel.ep=2"])]:
            with self.subTest(structure):
                self.train(ranks, *layout, config=f"tiny_{structure}")
                losses = [m["loss"] for m in self.metrics(f"tiny_{structure}")]
                self.assertEqual(len(losses), 20)
                self.assertLess(losses[-1], losses[0] - 1.0)

    def test_commands_work_on_what_was_trained_elsewhere(self):
        self.train(4, "parallel.ep=4", "train.eval_batches=100")  # all batches, as in eval
        # Three ranks, which the batch of 8 sequences is not divisible by.
        for ranks, layout in [(2, ["parallel.tp=2"]), (3, [])]:
            output = self.run_program(ranks, "eval", "configs/tiny_bigmac.yaml", *layout)
            self.assertAlmostEqual(float(output.split("held-out loss ")[1].split(",")[0]),
                                   self.metrics()[-1]["val_loss"], delta=1e-4)  # it has 4 digits
        text = self.run_program(0, "generate", "configs/tiny_bigmac.yaml", "--prompt", "ab",
                                "--max-tokens", "20")
        self.assertTrue(text.startswith("ab"))
        for ranks, layout in [(2, ["parallel.ep=2"]), (3, [])]:
            again = self.run_program(ranks, "generate", "configs/tiny_bigmac.yaml", *layout,
                                     "--prompt", "ab", "--max-tokens", "20")
            self.assertEqual(text, again)
        output = self.run_program(0, "inspect", self.checkpoint(20), "--verify")
        self.assertIn("layers.0.moe.descend.weight", output)
        self.run_program(0, "inspect", "runs/tiny_data/train.h5", "--verify")

    def test_recall_tasks_are_made_learned_and_scored(self):
        config = ["configs/tiny_bigmac.yaml", "data.tokenizer.type=recall", "data.mask=document",
                  "data.train=runs/recall/train.h5", "data.validation=runs/recall/validation.h5",
                  "data.recall.train_sequences=800", "data.recall.validation_sequences=10",
                  "data.recall.shortest=32", "data.recall.practice_share=0.9",
                  "run.dir=runs/recall", "train.max_steps=60"]
        self.run_program(0, "tokenize", *config)
        self.run_program(0, "train", *config)
        losses = [m["loss"] for m in self.metrics("recall")]
        # The loss falls from ln 160 (the vocabulary) towards ln 128 (its keys and values).
        self.assertGreater(sum(losses[:5]) / 5, sum(losses[-20:]) / 20 + 0.08)
        output = self.run_program(2, "eval", *config, "parallel.tp=2")
        for task in ["single", "multi_key", "multi_value", "multi_query", "variable_tracking"]:
            self.assertRegex(output, rf"{task} +2 +[0-9.]+% +[0-9.]+%")
        self.assertEqual(self.run_program(0, "eval", *config), output)
        told = self.run_program(0, "generate", *config, "--prompt", "single set k3 v5 ask k3",
                                "--max-tokens", "2")
        self.assertTrue(told.startswith("single set k3 v5 ask k3 "))
        told = self.run_program(0, "generate", *config, "--prompt", "hello", code=FAILED)
        self.assertIn("'hello' is no word of the recall tasks", told)

    def test_bf16_learns_too(self):
        self.train(2, "run.compute_dtype=bf16", "parallel.ep=2", "parallel.recompute=true")
        losses = [m["loss"] for m in self.metrics()]
        self.assertLess(losses[-1], losses[0] - 1.0)

    def test_bf16_learns_where_the_processor_cannot_multiply_it(self):
        bf16 = ["configs/tiny_bigmac.yaml", "run.compute_dtype=bf16", "train.max_steps=2"]
        with unittest.mock.patch.dict(os.environ, ONEDNN_MAX_CPU_ISA="AVX2"):
            self.run_program(2, "train", *bf16)
            self.assertEqual(self.methods(2)["bf16_products"], "widened")
            told = self.run_program(0, "bench", *bf16, "model.vocab_size=257", "--steps=1")
        self.assertRegex(told, r"ceiling +[1-9]")

    def test_dry_run_and_print_config_train_nothing(self):
        plan = self.run_program(0, "train", "configs/tiny_bigmac.yaml", "--dry-run")
        self.assertIn("parameters", plan)
        shown = self.run_program(0, "train", "configs/tiny_bigmac.yaml", "--print-config",
                                 "train.max_steps=7")
        self.assertRegex(shown, r"max_steps: 7 +# command line")
        self.assertRegex(shown, r"latent: 8 +# configs/tiny_bigmac.yaml:6")
        self.assertFalse((self.folder / "runs" / "tiny_bigmac").exists())


class Resume(Program):
    def test_bf16_products_stay_what_they_were(self):
        settings = ["run.compute_dtype=bf16", "parallel.ep=2", "checkpoint.interval=3"]
        told = self.train(2, *settings, "train.max_steps=3")
        if "not every rank has native" in told:
            self.skipTest("this processor has no products of bf16")
        measured = self.methods(3)["bf16_products"]
        kept = {"native": "widened", "widened": "native"}[measured]
        self.change_methods(3, bf16_products=kept)
        told = self.train(2, *settings, "train.max_steps=4")
        self.assertIn(f"the method of bf16 products is {kept}; ", told)
        told = self.run_program(0, "inspect", self.checkpoint(4))
        self.assertRegex(told, rf"bf16 products +{kept}")

    # An epoch has about 46 sequences, so 20 steps of 8 sequences cross the end of three epochs.
    def test_a_killed_run_goes_on_bit_for_bit(self):
        self.train(4, "parallel.ep=4")
        straight, straight_shards = self.metrics(), self.shards(20)
        shutil.rmtree(self.folder / "runs" / "tiny_bigmac")

        # The run is killed between the checkpoints of steps 10 and 20.
        job = self.start_program(4, "train", "configs/tiny_bigmac.yaml", "parallel.ep=4",
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.wait_for(job, self.checkpoint(10).exists)
        kill(job)
        if self.checkpoint(20).exists():  # the run was faster than the signal
            shutil.rmtree(self.checkpoint(20))
        output = self.train(4, "parallel.ep=4")

        self.assertIn("resumed from step_00000010", output)
        self.assertEqual([(m["step"], m["loss"], m["grad_norm"]) for m in self.metrics()],
                         [(m["step"], m["loss"], m["grad_norm"]) for m in straight])
        self.assertEqual(self.shards(20), straight_shards)

    def test_a_signal_saves_and_stops_with_its_own_code(self):
        job = self.start_program(2, "train", "configs/tiny_bigmac.yaml", "parallel.ep=2",
                                 "train.max_steps=100000", stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT)
        self.wait_for(job, self.checkpoint(10).exists)
        job.send_signal(signal.SIGUSR1)
        output = job.communicate(timeout=patience(60))[0]

        self.assertEqual(job.returncode, STOPPED, output)
        self.assertIn("stopped by a signal after step", output)
        last = self.metrics()[-1]["step"]
        self.assertTrue(self.checkpoint(last).exists())

    def test_another_layout_goes_on_from_the_checkpoint(self):
        self.train(4, "parallel.ep=4", "train.max_steps=10")
        output = self.train(2, "parallel.tp=2", "train.max_steps=12")
        self.assertIn("resumed from step_00000010", output)
        self.assertEqual([m["step"] for m in self.metrics()], list(range(1, 13)))

    def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(self):
        self.train(2, "parallel.ep=2")
        shard = next(self.checkpoint(20).glob("shard*"))
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 4
        shard.write_bytes(content)

        output = self.train(2, "parallel.ep=2", "train.max_steps=12")

        self.assertIn("passed over step_00000020", output)
        self.assertIn(shard.name, output)
        self.assertIn("resumed from step_00000010", output)


class BadInput(Program):
    def expect_error(self, output, *texts):
        for text in texts:
            self.assertIn(text, output)
        # Only rank 0 prints it.
        self.assertEqual(output.count(f"switchyard: {texts[0]}"), 1, output)

    def test_all_mistakes_of_a_configuration_are_named_at_once(self):
        (self.folder / "bad.yaml").write_text(
            "base: configs/tiny_bigmac.yaml\n"
            "model:\n"
            "  hiden: 64\n"
            "  num_layers: two\n"
            "train: {max_steps: 5, max_steps: 6}\n")
        output = self.run_program(2, "train", "bad.yaml", "optimizer.lr=fast", code=BAD_INPUT)
        self.expect_error(output,
                          "bad.yaml:3:3: unknown key model.hiden; did you mean model.hidden?",
                          "bad.yaml:4:15: model.num_layers: expected an integer, not 'two'",
                          "bad.yaml:5:23: train.max_steps is given twice in this file",
                          "command line: optimizer.lr: expected a number, not 'fast'")

    def test_impossible_combinations(self):
        for overrides, message in [
                (["parallel.ep=3"], "parallel.ep: 3 does not divide the 4 ranks"),
                (["parallel.ep=4", "model.num_experts=6"],
                 "parallel.ep: 4 does not divide model.num_experts = 6"),
                (["model.head_dim=7"], "rope rotates halves of a head: 7 must be even"),
                (["train.global_batch_size=6"], "6 is not divisible by micro_batch_size * dp"),
                (["model.router.top_k=17"], "17 is more than model.num_experts = 16")]:
            with self.subTest(message):
                output = self.train(4, *overrides, code=BAD_INPUT)
                self.assertIn(message, output)
                self.assertEqual(output.count(message), 1, output)

    def test_damaged_token_files(self):
        path = self.folder / "runs" / "tiny_data" / "train.h5"
        intact = path.read_bytes()
        flipped = bytearray(intact)
        flipped[len(intact) // 2] ^= 1
        for name, content in [("truncated", intact[: len(intact) // 2]), ("flipped", flipped),
                              ("empty", b"")]:
            with self.subTest(name):
                path.write_bytes(content)
                output = self.train(2, "parallel.ep=2", code=FAILED)
                self.expect_error(output, "rank", "train.h5")

    def test_a_file_that_is_missing_on_one_rank_only(self):
        # Rank 1 works in a folder without token files, as on a machine without them.
        elsewhere = self.folder / "elsewhere"
        elsewhere.mkdir()
        arguments = [SWITCHYARD, "train", "configs/tiny_bigmac.yaml", "parallel.ep=2"]
        code, output = run([MPIEXEC, *MPI_FLAGS, "-n", 1, "--wdir", self.folder, *arguments, ":",
                            "-n", 1, "--wdir", elsewhere, *arguments], self.folder, timeout=60)
        self.assertEqual(code, FAILED, output)
        self.assertIn("switchyard: rank 1: ", output)
        self.assertIn("runs/tiny_data/train.h5", output)

    def test_commands_without_their_files(self):
        self.assertIn("no checkpoint", self.run_program(
            2, "eval", "configs/tiny_bigmac.yaml", "parallel.ep=2", code=FAILED))
        self.assertIn("does not exist", self.run_program(0, "inspect", "nowhere", code=FAILED))
        self.assertIn("cannot be read", self.run_program(0, "train", "no.yaml", code=BAD_INPUT))

    def test_version(self):
        self.assertRegex(self.run_program(2, "--version"), r"^switchyard \d+\.\d+\.\d+\n$")

    def test_a_command_that_is_not_there(self):
        for command, message in [("trian", "there is no command trian; did you mean train?"),
                                 ("hash", "there is no command hash; the commands are tokenize, ")]:
            self.assertIn(message, self.run_program(0, command, "configs/tiny_bigmac.yaml",
                                                    code=BAD_INPUT))

    def test_numbers_on_the_command_line_have_a_range(self):
        for option, value in [("--max-tokens", "0"), ("--temperature", "-1")]:
            output = self.run_program(0, "generate", "configs/tiny_bigmac.yaml", option, value,
                                      code=BAD_INPUT)
            self.assertRegex(output, rf"{option}: must be (at least 1|from 0 to \S+), not {value}")
            self.assertNotIn("0000000000", output)

    def test_a_run_folder_is_its_newest_checkpoint(self):
        self.train(0, "parallel.ep=1")
        run_folder = self.folder / "runs" / "tiny_bigmac"
        text = self.run_program(0, "generate", "configs/tiny_bigmac.yaml", "--prompt", "ab",
                                f"checkpoint.resume={run_folder}", "run.dir=runs/other",
                                "--max-tokens", "1000")
        self.assertIn("note: --max-tokens 1000 exceeds the context", text)
        self.assertIn("of the prompt at most ", text)
        self.assertIn("step_00000020", self.run_program(0, "inspect", run_folder))
        shown = self.run_program(0, "inspect", self.checkpoint(20) / "model.h5")
        self.assertIn("is a part of this checkpoint", shown)
        self.assertIn("step                 20 ", shown)
        output = self.run_program(0, "inspect", "configs/tiny_bigmac.yaml", code=FAILED)
        self.assertNotIn("make it again", output)

    def test_metrics_replace_only_metrics(self):
        run_folder = self.folder / "runs" / "tiny_bigmac"
        run_folder.mkdir()
        (run_folder / "metrics.jsonl").write_text('{"epoch": 1, "of": "another program"}\n')
        output = self.train(2, "parallel.ep=2", code=FAILED)
        self.expect_error(output, "rank 0: ",
                          "is not the metrics of a run, so run.dir does not replace")
        self.assertIn("another program", (run_folder / "metrics.jsonl").read_text())

    def test_tokenize_replaces_only_token_files_and_says_what_it_leaves_out(self):
        (self.folder / "thesis.tex").write_text("years of work")
        arguments = ["tokenize", "configs/tiny_bigmac.yaml", "data.text=[text]"]
        output = self.run_program(0, *arguments, "data.train=thesis.tex", code=FAILED)
        self.expect_error(output,
                          "thesis.tex is not a token file, so data.train does not replace it")
        self.assertEqual((self.folder / "thesis.tex").read_text(), "years of work")
        (self.folder / "linked").mkdir()
        (self.folder / "linked" / "more.txt").write_bytes(b"caf\xe9\n")
        (self.folder / "linked" / "picture.png").write_text("x")
        (self.folder / "text" / "link").symlink_to("../linked")
        output = self.run_program(0, *arguments)
        self.assertIn("25 documents in 25 files", output)
        self.assertIn("or one of them and .gz or .zst: text/link/picture.png\n", output)
        self.assertIn("as they are: bytes that are not UTF-8, in 1 document: text/link/more.txt\n",
                      output)
        output = self.run_program(0, *arguments, "data.encoding_errors=replace")
        self.assertIn(
            "changed: U+FFFD replaces 1 sequence of bytes that are not UTF-8, in 1 document: "
            "text/link/more.txt\n", output)
        output = self.run_program(0, *arguments, "data.encoding_errors=ignore", code=BAD_INPUT)
        self.assertIn("data.encoding_errors", output)

    def test_a_padded_vocabulary_is_never_sampled(self):
        self.train(0, "parallel.ep=1", "model.vocab_size=4096", "train.max_steps=2")
        self.run_program(0, "generate", "configs/tiny_bigmac.yaml", "parallel.ep=1",
                         "model.vocab_size=4096", "--prompt", "ab", "--max-tokens", "40",
                         "--temperature", "5")

    def test_a_run_that_diverges_ends_with_an_error(self):
        output = self.train(2, "parallel.ep=2", "optimizer.lr=1e3", "optimizer.clip=0",
                            "train.max_steps=200", "checkpoint.interval=0", "optimizer.type=sgd",
                            "model.init_std=10", code=FAILED)
        self.assertIn("steps in a row had no finite gradient", output)

    def test_a_full_disk_does_not_end_the_training_but_fails_it_if_nothing_is_saved(self):
        folder = self.checkpoint(20).parent
        folder.mkdir(parents=True)
        self.train(2, "parallel.ep=2", "train.max_steps=2", "run.dir=runs/size")
        bytes_of_one = sum(path.stat().st_size for path in self.checkpoint(2, "size").iterdir())
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={bytes_of_one * 3 // 2}",
                                  "tmpfs", folder], capture_output=True, check=False)
        if mounted.returncode != 0:
            self.skipTest("a file system can only be mounted as root")
        try:
            output = self.train(2, "parallel.ep=2", "checkpoint.interval=5", code=FAILED)
            steps = sorted(path.name for path in folder.iterdir())
        finally:
            subprocess.run(["umount", folder], check=True)
        self.assertIn("is free for 3 more checkpoints", output)
        for step in (10, 15, 20):
            self.assertIn(f"no checkpoint at step {step}: ", output)
        self.assertIn("No space left on device", output)
        self.assertIn("switchyard: the state after step 20 is not saved: ", output)
        self.assertIn("the last good checkpoint is runs/tiny_bigmac/checkpoints/step_00000005",
                      output)
        self.assertEqual(steps, ["latest", "step_00000005"])
        self.assertEqual(len(self.metrics()), 20)


class InferenceBench(Program):
    def bench(self, ranks, *arguments, code=DONE, prompt=8, sequences=4):
        return self.run_program(ranks, "bench", "inference", "configs/tiny_bigmac.yaml",
                                "model.vocab_size=257", *arguments, "--prompt", prompt,
                                "--sequences", sequences, "--generate", "1,3,5", "--repetitions", 3,
                                code=code)

    def test_its_figures_belong_together(self):
        for ranks, layout, sequences in [(0, [], 4), (2, ["parallel.ep=2"], 8),
                                         (2, ["parallel.tp=2"], 4)]:
            with self.subTest(layout):
                output = self.bench(ranks, *layout, "--json", "report.json")
                report = json.loads((self.folder / "report.json").read_text())

                self.assertEqual((report["sequences"], report["prompt_tokens"]), (sequences, 8))
                times = [case["ms"] for case in report["generation"]]
                self.assertEqual([case["tokens"] for case in report["generation"]], [1, 3, 5])
                self.assertEqual(times, sorted(times))
                self.assertEqual(times[0], report["prefill_ms"])
                self.assertAlmostEqual(report["prefill_tokens_per_s"] * times[0],
                                       1e3 * 8 * sequences, 3)
                self.assertAlmostEqual(report["decode_tokens_per_s"] * report["token_ms"],
                                       1e3 * sequences, 3)
                for part in ("prefill", "token"):
                    self.assertEqual(report[f"{part}_exchange_ms"] > 0, "parallel.ep=2" in layout)
                self.assertLess(report["prefill_exchange_ms"], report["prefill_ms"])
                self.assertIn(f"{sequences} sequences, prompts of 8 tokens", output)

    def test_what_it_cannot_measure(self):
        (self.folder / "notes.json").write_text("mine")
        for arguments, options, message in [
                ([], {"prompt": 60},
                 "a prompt of 60 tokens and 5 generated ones are longer than model.seq_len, 64"),
                (["parallel.tp=2"], {"sequences": 3},
                 "3 sequences cannot be split over parallel.tp = 2"),
                (["--json", "notes.json"], {}, "notes.json is not a report of bench inference"),
                (["model.vocab_size=0"], {}, "model.vocab_size is missing")]:
            with self.subTest(message):
                output = self.bench(2, *arguments, **options, code=FAILED)
                self.assertEqual(output.count(message), 1, output)
        self.assertEqual((self.folder / "notes.json").read_text(), "mine")


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
