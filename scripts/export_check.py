#!/usr/bin/env python3
"""Compares this program's models with those that transformers opens; scripts/export_check.sh starts
it. Ours are the logits of scripts/reference_model.py, which the test suite holds equal to the
program's, the held-out loss that training measures, and the continuation of `switchyard generate`.
"""

import argparse
import functools
import os
import pathlib
import shutil
import subprocess
import sys
import types

import endings
from endings import Unusable

try:
    import h5py
    import numpy as np
    import yaml
    from reference_forward import load_checkpoint
    from reference_model import ReferenceModel, cross_entropy
except ImportError as missing:
    endings.without(missing, endings.ENVIRONMENT)

from export_cases import EXPORTS, IMPORTS, SIZES

ROOT = pathlib.Path(__file__).resolve().parents[1]
LOGITS_LIMIT, LOSS_LIMIT, KL_LIMIT, PERPLEXITY_LIMIT = 1e-4, 1e-5, 1e-3, 5e-3
SEQUENCES, PROMPT, CONTINUATION = 32, 24, 128
END = 256  # the end-of-document token of byte tokens


@functools.cache
def libraries():
    """(torch, transformers), which take seconds to load."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return torch, transformers


class Program:
    """The built program."""

    def __init__(self, path):
        self.path = path
        # Open MPI starts as root only if both variables are set.
        self.environment = os.environ | {
            "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

    def __call__(self, *arguments):
        """The standard output, as bytes."""
        done = subprocess.run([self.path, *map(str, arguments)], cwd=ROOT, env=self.environment,
                              capture_output=True, check=False)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise Unusable(f"switchyard {arguments[0]}: {' '.join(said) or done.returncode}")
        return done.stdout


def config_of(run):
    """The resolved configuration of a run."""
    file = run / "checkpoints/latest/manifest.json"
    manifest = endings.read_json(file, "give a trained run")
    try:
        config = yaml.safe_load(str(manifest["state"]["config"]))
        return {section: config[section] for section in ("data", "model", "train")}
    except (KeyError, TypeError, yaml.YAMLError) as error:
        raise Unusable(f"{file} holds no configuration ({error}); give a trained run") from error


def held_out_loss(run):
    """As the last evaluation of the training measured it."""
    file, remedy = run / "metrics.jsonl", "let the run train to its end, with data.validation"
    losses = [line["val_loss"] for line in endings.read_lines(file, remedy) if "val_loss" in line]
    if not losses:
        raise Unusable(f"{file} holds no held-out loss; {remedy}")
    return endings.number(losses[-1])


def held_out_windows(config):
    """(tokens, targets), each [sequences, seq_len], of an evaluation: the first train.eval_batches
    batches of the held-out file. Whole sequences only."""
    with h5py.File(ROOT / config["data"]["validation"]) as file:
        tokens, end = file["tokens"][:].astype(np.int64), int(file.attrs["end_of_document"])
    length = config["model"]["seq_len"]
    count = min(config["train"]["eval_batches"] * config["train"]["global_batch_size"],
                (len(tokens) - 1) // length)
    windows = tokens[: count * length].reshape(count, length)
    targets = tokens[1 : count * length + 1].reshape(count, length)
    if config["data"]["mask"] == "document":
        targets = np.where(windows == end, -1, targets)
    return windows, targets


class Ours:
    """A run of this program."""

    def __init__(self, program, run):
        self.program, self.run = program, run
        self.model = ReferenceModel(*load_checkpoint(run))
        self.separates_documents = config_of(run)["data"]["mask"] == "document"

    def starts(self, tokens):
        """[B, S]: the first token of each token's document; None if all see all."""
        if not self.separates_documents:
            return None
        starts = np.zeros_like(tokens)
        for t in range(1, tokens.shape[1]):
            starts[:, t] = np.where(tokens[:, t - 1] == END, t, starts[:, t - 1])
        return starts

    def logits(self, tokens):
        return self.model.forward(tokens, self.starts(tokens))

    def continuation(self, prompt):
        """The likeliest tokens behind those of prompt, without one that ends the document."""
        text = bytes(prompt).decode()
        said = self.program("generate", self.run, "--prompt", text, "--max-tokens", CONTINUATION,
                            "--temperature", 0)
        return list(said[len(prompt):-1])


class Theirs:
    """A folder that transformers opens."""

    def __init__(self, folder, dtype="float32"):
        self.torch, transformers = libraries()
        self.model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=True, output_loading_info=True)
        self.wrong_keys = [*info["missing_keys"], *info["unexpected_keys"]]

    def logits(self, tokens):
        with self.torch.no_grad():
            parts = [self.model(self.torch.tensor(part)).logits.double()
                     for part in np.array_split(tokens, -(-len(tokens) // 16))]
        return self.torch.cat(parts).numpy()

    def held_out_loss(self, tokens, targets):
        """In parts, because all logits of a real vocabulary are too many."""
        total = sum(cross_entropy(self.logits(t[None]), target[None]) * (target >= 0).sum()
                    for t, target in zip(tokens, targets) if (target >= 0).any())
        return total / (targets >= 0).sum()

    def continuation(self, prompt):
        ids = self.torch.tensor([prompt])
        tokens = self.model.generate(
            ids, attention_mask=self.torch.ones_like(ids), max_new_tokens=CONTINUATION,
            do_sample=False, eos_token_id=END, pad_token_id=END)[0, len(prompt):].tolist()
        return tokens[: tokens.index(END)] if END in tokens else tokens


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


class Row:
    """A line of a table; a figure over its limit is bold."""

    def __init__(self, form, options):
        self.cells, self.failed = [form, options], False

    def add(self, text, is_right):
        self.cells.append(text if is_right else f"**{text}**")
        self.failed |= not is_right

    def compare(self, ours, theirs, tokens):
        """Logits and the names of tensors."""
        difference = np.abs(ours - theirs.seen).max()
        self.add(f"{tokens.size:,}", tokens.size >= 4096)
        self.add(f"{difference:.1e}", difference <= LOGITS_LIMIT)
        equal = (ours.argmax(-1) == theirs.seen.argmax(-1)).mean()
        self.add("all" if equal == 1 else f"{equal:.4%}", equal == 1)
        self.add("all" if not theirs.wrong_keys else " ".join(theirs.wrong_keys),
                 not theirs.wrong_keys)

    def line(self, columns):
        cells = self.cells + [""] * (columns - len(self.cells))
        return "| " + " | ".join(cell.replace("\n", " ") for cell in cells) + " |"


EXPORT_COLUMNS = ["form", "options", "positions", "greatest \\|dlogit\\|", "equal argmax",
                  "keys found", "greedy tokens equal", "held-out loss differs by", "KL of bf16",
                  "export, import, export"]
RUN_COLUMNS = ["form", "run", "architecture", "held-out tokens", "held-out loss",
               "in transformers it differs by", "perplexity", "in llama.cpp it differs by"]
IMPORT_COLUMNS = EXPORT_COLUMNS[:7] + ["tensors after import, export"]


class Check:
    def __init__(self, program, work, llama_cpp):
        self.program, self.work, self.llama_cpp, self.failed = program, work, llama_cpp, 0
        self.data = [f"data.train={work}/data/train.h5",
                     f"data.validation={work}/data/validation.h5"]
        if not (work / "data/validation.h5").exists():
            program("tokenize", ROOT / "configs/tiny_base.yaml", "data.text=[docs]", *self.data)
        with h5py.File(work / "data/validation.h5") as file:
            self.held_out = file["tokens"][:].astype(np.int64)

    def greedy(self, row, ours, theirs):
        """Starts where there is ASCII, which every command line can carry."""
        prompt = next(self.held_out[i : i + PROMPT] for i in range(1000, len(self.held_out))
                      if (np.abs(self.held_out[i : i + PROMPT] - 79) < 47).all()).tolist()
        mine, other = ours.continuation(prompt), theirs.continuation(prompt)
        same = sum(a == b for a, b in zip(mine, other))
        row.add(f"{same}", same == max(len(mine), len(other)) > 0)

    def fresh(self, name):
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def export(self, row, case, folder):
        run = folder / "run"
        self.program("train", f"configs/tiny_{case.config}.yaml", f"run.dir={run}", *SIZES,
                     *self.data, *case.overrides.split())
        self.program("export", run, "--to", folder / "f32", "--form", case.form)
        self.program("export", run, "--to", folder / "bf16", "--form", case.form, "--dtype", "bf16")
        ours, theirs = Ours(self.program, run), Theirs(folder / "f32")
        tokens, targets = held_out_windows(config_of(run))
        logits, theirs.seen = ours.logits(tokens), theirs.logits(tokens)
        row.compare(logits, theirs, tokens)
        self.greedy(row, ours, theirs)
        difference = abs(cross_entropy(theirs.seen, targets) - held_out_loss(run))
        row.add(f"{difference:.1e}", difference <= LOSS_LIMIT)
        rounded = Theirs(folder / "bf16", "auto").logits(tokens)
        divergence = (np.exp(log_softmax(logits)) * (log_softmax(logits) - log_softmax(rounded))
                      ).sum(-1).mean()
        row.add(f"{divergence:.1e}", divergence <= KL_LIMIT)
        self.round_trip(row, case.form, folder)

    def round_trip(self, row, form, folder):
        self.program("import", folder / "f32", "--config", folder / "imported.yaml",
                     f"run.dir={folder}/imported")
        self.program("export", folder / "imported", "--to", folder / "again", "--form", form)
        files = sorted(file.name for file in (folder / "f32").iterdir()
                       if file.name == "config.json" or ".safetensors" in file.name)
        other = [name for name in files
                 if (folder / "f32" / name).read_bytes() != (folder / "again" / name).read_bytes()]
        row.add("same bytes" if not other else " ".join(other), not other)

    def make_model(self, case, folder):
        """A random model of transformers: nothing is 0 or 1 that need not be."""
        torch, transformers = libraries()
        torch.manual_seed(case.seed)
        config = getattr(transformers, case.config_class)(**case.values)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, value in model.state_dict().items():
                is_norm = value.ndim == 1 and name.endswith("weight")
                value.normal_(mean=1.0 if is_norm else 0.0, std=0.2)
                if value.shape[0] == config.vocab_size:
                    value[END] = 0  # a logit of 0 is never the greatest, so no continuation ends
        model.save_pretrained(folder)

    def bring_in(self, row, case, folder):
        self.make_model(case, folder / "theirs")
        self.program("import", folder / "theirs", "--config", folder / "imported.yaml",
                     f"run.dir={folder}/run")
        ours, theirs = Ours(self.program, folder / "run"), Theirs(folder / "theirs")
        length = ours.model.config["seq_len"]
        tokens = self.held_out[: SEQUENCES * length].reshape(SEQUENCES, length)
        theirs.seen = theirs.logits(tokens)
        row.compare(ours.logits(tokens), theirs, tokens)
        self.greedy(row, ours, theirs)
        self.program("export", folder / "run", "--to", folder / "again", "--form", case.form)
        before, after = theirs.model.state_dict(), Theirs(folder / "again").model.state_dict()
        other = [name for name in before.keys() | after.keys()
                 if name not in before or name not in after
                 or not theirs.torch.equal(before[name], after[name])]
        row.add("same values" if not other else " ".join(sorted(other)), not other)

    def sentencepiece_run(self):
        """A small model whose tokens llama.cpp's converter knows."""
        folder = self.fresh("sentencepiece")
        settings = [f"data.train={folder}/train.h5", f"data.validation={folder}/validation.h5",
                    "data.tokenizer.type=sentencepiece", "data.tokenizer.vocab_size=512",
                    f"data.tokenizer.model={folder}/tokenizer.model", f"run.dir={folder}/run",
                    "model.router.normalize_topk=true"]
        config = ROOT / "configs/tiny_vanilla.yaml"
        self.program("tokenize", config, "data.text=[docs]", *settings)
        self.program("train", config, *SIZES, *settings, "train.max_steps=60")
        return folder / "run"

    def trained(self, row, case, folder):
        """The held-out loss of a run that was trained elsewhere."""
        self.program("export", case.run, "--to", folder / "f32", "--form", case.form)
        theirs, config = Theirs(folder / "f32"), config_of(case.run)
        tokens, targets = held_out_windows(config)
        mine, other = held_out_loss(case.run), theirs.held_out_loss(tokens, targets)
        row.add(theirs.model.config.model_type, not theirs.wrong_keys)
        row.add(f"{(targets >= 0).sum():,}", True)
        row.add(f"{mine:.6f}", True)
        row.add(f"{abs(other - mine):.1e}", abs(other - mine) <= LOSS_LIMIT)
        if self.llama_cpp is None or case.form == "compact":
            return
        model = config["model"]
        if theirs.model.config.model_type == "qwen2_moe" and (
                model["router"]["normalize_topk"]
                or model["num_shared_experts"] > 0 and not model.get("shared_expert_gate")):
            row.add("llama.cpp computes this qwen2_moe model otherwise", True)
        else:
            self.perplexity(row, folder, tokens, targets, mine)

    def perplexity(self, row, folder, tokens, targets, mine):
        """In llama.cpp, of an f32 GGUF file that its own converter makes of an exported folder."""
        np.savez(folder / "held_out.npz", tokens=tokens, targets=targets)
        done = subprocess.run(
            [sys.executable, ROOT / "scripts/llama_cpp_loss.py", self.llama_cpp, folder / "f32",
             folder / "held_out.npz"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Unusable(f"llama.cpp: {' '.join(done.stderr.strip().splitlines()[-1:])}")
        mine, other = np.exp(mine), np.exp(float(done.stdout.split()[-1]))
        row.add(f"{mine:.4f}", True)
        row.add(f"{other / mine - 1:+.4%}", abs(other / mine - 1) <= PERPLEXITY_LIMIT)

    def table(self, title, columns, cases, check):
        print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
        for number, case in enumerate(cases):
            row = Row(case.form, case.options)
            try:
                check(row, case, self.fresh(f"{title.split()[0].lower()}_{number:02}_{case.form}"))
            except Unusable as error:
                row.add(str(error), False)
            except (ValueError, RuntimeError, KeyError, OSError) as error:
                row.add(f"{type(error).__name__}: {error}", False)
            self.failed += row.failed
            print(row.line(len(columns)), flush=True)


def forms_of(run):
    """The stock form that is nearest, and the program's own."""
    is_bigmac = config_of(run)["model"]["structure"] == "bigmac"
    return ["folded" if is_bigmac else "auto", "compact"]


def run_case(run, form):
    return types.SimpleNamespace(run=run, form=form, options=run.name)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "build/switchyard")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build/export_check")
    parser.add_argument("--run", action="append", type=pathlib.Path, default=[],
                        help="a trained run to compare, too")
    parser.add_argument("--llama-cpp", type=pathlib.Path, help="sources of llama-cpp-python, built")
    parser.add_argument("--form", action="append", help="only this form; may be repeated",
                        choices=sorted({case.form for case in [*EXPORTS, *IMPORTS]}))
    arguments = parser.parse_args()
    if not arguments.program.exists():
        raise Unusable(f"{arguments.program} does not exist; build it, or name it with --program")
    check = Check(Program(arguments.program.resolve()), arguments.work.resolve(),
                  arguments.llama_cpp and arguments.llama_cpp.resolve())

    def wanted(cases):
        return [case for case in cases if not arguments.form or case.form in arguments.form]

    check.table("Exported models", EXPORT_COLUMNS, wanted(EXPORTS), check.export)
    check.table("Imported models", IMPORT_COLUMNS, wanted(IMPORTS), check.bring_in)
    runs = [run_case(run, form) for run in arguments.run for form in forms_of(run)]
    if arguments.llama_cpp:
        runs.append(run_case(check.sentencepiece_run(), "mixtral"))
    check.table("Trained runs", RUN_COLUMNS, runs, check.trained)
    if check.failed:
        sys.exit(f"export_check: {check.failed} models differ; their rows show it in bold")


if __name__ == "__main__":
    endings.run(main)
