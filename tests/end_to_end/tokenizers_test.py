#!/usr/bin/env python3
"""Tests of tokenizer.json files: the ids are those of Hugging Face's library, and bad files are
errors.

usage: tokenizers_test.py PATH_TO_SWITCHYARD PATH_TO_MPIEXEC [--lines N] [unittest options]

--lines says how many lines of mixed text become tokens (400; the whole check is 100000).
"""

import json
import os
import pathlib
import random
import sys
import unittest

import h5py

LINES = 400
if "--lines" in sys.argv:
    place = sys.argv.index("--lines")
    LINES = int(sys.argv[place + 1])
    del sys.argv[place:place + 2]

from program import FAILED, Program, command, environment, run  # noqa: E402

DATA_HOME = os.environ.get("XDG_DATA_HOME") or pathlib.Path.home() / ".local" / "share"
sys.path.insert(0, str(pathlib.Path(DATA_HOME) / "switchyard" / "python"))
os.environ["TOKENIZERS_PARALLELISM"] = "false"
from tokenizers import (Regex, Tokenizer, decoders, models, normalizers,  # noqa: E402
                        pre_tokenizers, processors, trainers)

END = "<|endoftext|>"
TYPE = ["data.tokenizer.type=huggingface", "data.tokenizer.model=tokenizer.json"]
LITERALS = [END, "<|im_start|>", "</s>", "<unk>", "<0x0A>", "\u2581"]


def mixed_line(rng):
    """Code, CJK, emoji, control characters, very long words, and what looks like tokens."""
    kinds = [
        lambda: " ".join(rng.choices(["the", "expert", "routes", "Tokens", "it's", "we'll", "1st",
                                      "größer", "naïve", "Ελλάδα", "привет"], k=12)),
        lambda: "    " * rng.randint(0, 4) + f"for (int i_{rng.randint(0, 999)} = 0; i < n; ++i)"
                f" {{ x[i] += {rng.random():.6f}f * y->z; }}\t// {rng.getrandbits(40):#x}",
        lambda: "".join(chr(rng.randint(0x4E00, 0x9FFF)) for _ in range(rng.randint(1, 30)))
                + "。" + "".join(chr(rng.randint(0xAC00, 0xD7A3)) for _ in range(5)) + "カナ",
        lambda: "".join(rng.choices(["🙂", "👩‍👩‍👧", "🇩🇪", "👍🏽", "e\u0301", "ﬁ", "½", "Å"], k=8)),
        lambda: "".join(chr(rng.choice([*range(0, 32), 127, 0x85, 0xA0, 0x200B, 0x2028, 0xFEFF,
                                        0xFFFD, 0x10FFFF])) for _ in range(12)),
        lambda: "".join(rng.choices("abcdefgh0189_", k=rng.randint(200, 3000))),
        lambda: rng.choice("ab =-#.") * rng.randint(1, 300),
        lambda: " " * rng.randint(0, 9) + "\n\r\n  \t" + " " * rng.randint(0, 9),
        lambda: "".join(chr(rng.choice([rng.randint(1, 0xD7FF), rng.randint(0xE000, 0x10FFFF)]))
                        for _ in range(20)),
        lambda: "مرحبا بالعالم שלום עולם ไทยภาษา हिन्दी",
    ]
    parts = [rng.choice(kinds)() for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.05:
        parts.insert(rng.randint(0, len(parts)), rng.choice(LITERALS))
    return "".join(parts)


def train(tokenizer, trainer, lines=400):
    rng = random.Random(5)
    tokenizer.train_from_iterator([mixed_line(rng)[:500] for _ in range(lines)], trainer)
    return tokenizer


def byte_level(*before):
    """As of GPT-2; `before` are pre-tokenizers, as the Digits of SmolLM2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*before, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return train(tokenizer, trainers.BpeTrainer(
        vocab_size=1000, special_tokens=[END, "<|im_start|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))


def llama():
    """As of Llama 2: characters or bytes, spaces as U+2581, a space before the text."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    train(learned, trainers.BpeTrainer(vocab_size=800, limit_alphabet=200, show_progress=False))
    learned = json.loads(learned.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)),
             *sorted(learned["vocab"], key=learned["vocab"].get)]
    tokenizer = Tokenizer(models.BPE(
        {name: i for i, name in enumerate(names)}, [tuple(pair) for pair in learned["merges"]],
        unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)])
    # What is added around a text, and what is cut off: neither happens to documents.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=32)
    return tokenizer


def unigram():
    """As of T5: it changes text, and has no bytes to fall back on."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return train(tokenizer, trainers.UnigramTrainer(
        vocab_size=3000, special_tokens=["</s>", "<unk>"], unk_token="<unk>", show_progress=False),
                 lines=60)


def path_without_python(folder):
    """A folder for PATH. Open MPI wants a remote shell there, even if it starts nothing."""
    folder.mkdir()
    (folder / "ssh").symlink_to("/bin/true")
    return folder


class TokenizersTest(Program):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        rng = random.Random(7)
        cls.lines = [line for line in (mixed_line(rng) for _ in range(LINES)) if line]
        (cls.template / "lines.jsonl").write_text(
            "".join(json.dumps({"text": line}) + "\n" for line in cls.lines))
        cls.byte_level = byte_level()

    def tokenize(self, tokenizer, *overrides, code=0, threads=2):
        if isinstance(tokenizer, Tokenizer):
            tokenizer.save(str(self.folder / "tokenizer.json"))
        else:
            (self.folder / "tokenizer.json").write_text(tokenizer)
        job = command(0, "tokenize", "configs/tiny_bigmac.yaml", *TYPE,
                      "data.text=[lines.jsonl]", "data.train=all.h5", 'data.validation=""',
                      *overrides)
        returned, output = run(job, self.folder, timeout=7200,
                               env=environment(OMP_NUM_THREADS=str(threads)))
        self.assertEqual(returned, code, output)
        return output

    def documents(self):
        with h5py.File(self.folder / "all.h5") as file:
            tokens, offsets = file["tokens"][:], file["document_offsets"][:]
        return [tokens[a:b].tolist() for a, b in zip(offsets, offsets[1:])]

    def assert_same_ids(self, tokenizer, end):
        output = self.tokenize(tokenizer, f"data.tokenizer.end_of_document={end}")
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        changed, end = 0, tokenizer.token_to_id(end)
        documents = self.documents()
        self.assertEqual(len(documents), len(self.lines))
        for line, document in zip(self.lines, documents):
            ids = tokenizer.encode(line, add_special_tokens=False).ids
            self.assertEqual(document, [*ids, end], repr(line))
            text = tokenizer.decode([i for i in ids if i != end], skip_special_tokens=False)
            changed += text != line
        told = f"the tokens do not restore every byte of {changed} document"
        self.assertEqual(told in output, changed > 0, output)
        return changed

    def test_byte_level_ids_are_the_librarys_and_restore_the_text(self):
        for tokenizer in (self.byte_level, byte_level(pre_tokenizers.Digits(True))):
            changed = self.assert_same_ids(tokenizer, END)
            # The end-of-document token is no text, wherever it stands.
            self.assertEqual(changed, sum(END in line for line in self.lines))

    def test_llama_ids_are_the_librarys_and_restore_the_text(self):
        changed = self.assert_same_ids(llama(), "</s>")
        # Text after a special token gets a space of its own, as the library has it.
        marks = ["<unk>", "<s>", "</s>", "\u2581"]
        self.assertLessEqual(changed, sum(any(mark in line for mark in marks)
                                          for line in self.lines))

    def test_unigram_ids_are_the_librarys(self):
        self.assert_same_ids(unigram(), "</s>")

    def test_the_number_of_processes_does_not_change_the_file(self):
        files = []
        for threads in (1, 3):
            self.tokenize(self.byte_level, f"data.tokenizer.end_of_document={END}",
                          threads=threads)
            files.append((self.folder / "all.h5").read_bytes())
            (self.folder / "all.h5").unlink()
        self.assertEqual(*files)

    def test_files_beside_it_say_what_ends_a_document(self):
        end = self.byte_level.token_to_id(END)
        for name, contents in [
                ("generation_config.json", {"eos_token_id": [end, 1]}),
                ("tokenizer_config.json", {"eos_token": {"content": "<|im_start|>"}}),
                ("tokenizer_config.json", {"eos_token": "<|im_start|>"})]:
            (self.folder / name).write_text(json.dumps(contents))
            self.tokenize(self.byte_level)
            expected = end if name == "generation_config.json" else end + 1
            self.assertEqual({document[-1] for document in self.documents()}, {expected})

    def test_bad_files_are_one_error_each(self):
        whole = json.loads(self.byte_level.to_str())
        end = f"data.tokenizer.end_of_document={END}"
        gap = {**whole, "added_tokens": [{**whole["added_tokens"][0], "content": "<new>",
                                          "id": 2000}, *whole["added_tokens"]]}
        for contents, overrides, message in [
                ("{\"model\": ", [end], "tokenizer.json is not JSON: byte 11"),
                ("", [end], "tokenizer.json is not JSON: byte 1"),
                ("[1]", [end], "tokenizer.json is no JSON object"),
                ("{}", [end], "is not a tokenizer of the library tokenizers: it has no vocabulary"),
                (json.dumps({**whole, "pre_tokenizer": {"type": "Other"}}), [end],
                 "tokenizer.json: Python's package tokenizers reports: "),
                (json.dumps({**whole, "model": {"vocab": {"a": -1}}}), [end],
                 "-1 is no id of a token"),
                (json.dumps(gap), [end], "takes ids below 1001"),
                (json.dumps(whole), [], "set data.tokenizer.end_of_document to the text of one; "
                                        "its special tokens are: <|endoftext|> <|im_start|>"),
                (json.dumps(whole), ["data.tokenizer.end_of_document=</s>"],
                 "has no token </s> to end documents with"),
                (json.dumps(whole), [end, "data.tokenizer.vocab_size=7"], "vocab_size is 7"),
                (json.dumps(whole), [end, "data.tokenizer.model=other.json"], "other.json")]:
            with self.subTest(message):
                output = self.tokenize(contents, *overrides, code=FAILED)
                self.assertIn(message, output)
                self.assertEqual(output.count("switchyard: "), 1, output)
                self.assertNotIn("Traceback", output)
                self.assertEqual(list(self.folder.glob("all.h5*")), [])

    def test_without_python_or_its_package_the_remedy_is_told(self):
        self.byte_level.save(str(self.folder / "tokenizer.json"))
        bare = path_without_python(self.folder / "bare")
        (bare / "python3").write_text('#!/bin/sh\nexec /usr/bin/python3 -I -S "$@"\n')
        (bare / "python3").chmod(0o755)
        job = command(0, "tokenize", "configs/tiny_bigmac.yaml", *TYPE,
                      f"data.tokenizer.end_of_document={END}", "data.text=[lines.jsonl]")
        for path, message in [(path_without_python(self.folder / "none"),
                               "python3 cannot be started: No such file"),
                              (bare, "No module named 'tokenizers'")]:
            returned, output = run(job, self.folder, timeout=60, env=environment(
                PATH=str(path), XDG_DATA_HOME=str(self.folder)))
            self.assertEqual(returned, FAILED)
            self.assertIn(message, output)
            self.assertIn("run scripts/setup.sh", output)
            self.assertEqual(output.count("switchyard: "), 1, output)


class RunTest(Program):
    """A run whose tokenizer is a tokenizer.json."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.tokenizer = byte_level()
        cls.tokenizer.save(str(cls.template / "tokenizer.json"))
        cls.settings = ["configs/tiny_bigmac.yaml", *TYPE, "data.train=train.h5",
                        "data.validation=validation.h5", f"data.tokenizer.end_of_document={END}"]
        cls.prepare("tokenize", *cls.settings, 'data.text=["text"]')

    def test_training_and_eval_need_no_python_and_generate_takes_and_gives_text(self):
        path = path_without_python(self.folder / "none")
        for name, ranks in (("train", 2), ("eval", 0)):
            ep = f"parallel.ep={max(ranks, 1)}"
            returned, output = run(command(ranks, name, *self.settings, ep), self.folder,
                                   timeout=120, env=environment(PATH=str(path)))
            self.assertEqual(returned, 0, output)
        prompt = "abc 漢字 🙂"
        options = [*self.settings, "--temperature", "0", "--max-tokens", "20"]
        texts = {self.run_program(ranks, "generate", *options, "--prompt", prompt)
                 for ranks in (0, 2)}
        self.assertEqual(len(texts), 1)
        self.assertTrue(texts.pop().startswith(prompt))
        # Every sample is text, though bytes of characters are drawn one by one.
        output = self.run_program(0, "generate", *self.settings, "--temperature", "100",
                                  "--samples", "20")
        self.assertIn("---", output)
        # Another tokenizer is not the model's, and neither is another end of documents.
        for overrides in (["data.tokenizer.end_of_document=<|im_start|>"],
                          ["data.tokenizer.model=other.json"]):
            byte_level(pre_tokenizers.Digits(True)).save(str(self.folder / "other.json"))
            for name in ("eval", "generate", "train"):
                output = self.run_program(0, name, *self.settings, *overrides, code=FAILED)
                self.assertIn("tokenizer", output)
                self.assertEqual(output.count("switchyard: "), 1, output)

    def test_a_prompt_that_is_not_utf8_is_an_error_on_all_ranks(self):
        self.run_program(0, "train", *self.settings, "train.max_steps=2")
        output = self.run_program(2, "generate", *self.settings, "--prompt", b"caf\xe9".decode(
            errors="surrogateescape"), code=FAILED)
        self.assertEqual(output.count("the text is not UTF-8 at byte 3"), 1, output)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
