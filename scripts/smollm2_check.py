#!/usr/bin/env python3
"""Compares the imported SmolLM2 with transformers, on two times 2,048 tokens of this project's documents:

    build/export_check_venv/bin/python scripts/smollm2_check.py [--upcycled RUN]...

It needs what scripts/fetch_smollm2.sh makes, and the target write_logits. Two programs that compute
in f32 differ by the rounding of both, so both are held against the same model in f64: the reference
model (scripts/reference_model.py). Then come greedy continuations of ten prompts. A run that was
upcycled from the same folder is held against the dense one.
"""

import argparse
import os
import pathlib
import subprocess
import tempfile

import endings
from endings import Unusable

try:
    import h5py
    import numpy as np
    from reference_forward import load_checkpoint
    from reference_model import ReferenceModel
except ImportError as missing:
    endings.without(missing, endings.ENVIRONMENT)

ROOT = pathlib.Path(__file__).resolve().parents[1]
SEQUENCES = 2
PROMPTS, PROMPT, CONTINUATION = 10, 24, 48


def run(*command):
    # Open MPI starts as root only if both variables are set.
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1",
                                "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run([str(word) for word in command], cwd=ROOT, env=environment,
                          capture_output=True, check=False)
    if done.returncode != 0:
        said = " ".join(done.stderr.decode(errors="replace").split())
        raise Unusable(f"{pathlib.Path(command[0]).name}: {said or done.returncode}")
    return done.stdout.decode()


def sequences_of(ids, length):
    """The first tokens of the text, [sequences, length]."""
    if length < 2:
        raise Unusable("--length: a token without a next one has no loss; give at least 2")
    if len(ids) < SEQUENCES * length:
        raise Unusable(f"--length: the text has {len(ids):,} tokens, fewer than {SEQUENCES} times "
                       f"{length:,}; give at most {len(ids) // SEQUENCES}")
    return np.array(ids[: SEQUENCES * length]).reshape(SEQUENCES, length)


def own_logits(write_logits, model_run, tokens, scratch):
    """The program's, f32, on the disk: [sequences, tokens, vocabulary]."""
    with h5py.File(scratch / "tokens.h5", "w") as file:
        file["tokens"] = tokens.astype(np.int32)
    out = scratch / f"{model_run.name}.h5"
    run(write_logits, model_run, scratch / "tokens.h5", out)
    return h5py.File(out)["logits"]


class Difference:
    """Of two models' logits, sequence after sequence."""

    def __init__(self):
        self.greatest, self.equal, self.count = 0.0, 0, 0

    def add(self, one, other):
        self.greatest = max(self.greatest, float(np.abs(one - other).max()))
        self.equal += int((one.argmax(-1) == other.argmax(-1)).sum())
        self.count += len(one)

    def __str__(self):
        return f"{self.greatest:.1e} | {self.equal:,} of {self.count:,}"


def next_token_loss(logits, tokens):
    """Summed over the tokens behind the first, in f64."""
    logits = logits[:-1].astype(float)
    top = logits.max(-1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(-1))
    return float((log_sum - logits[np.arange(len(logits)), tokens[1:]]).sum())


def transformers_logits(folder, tokens, dtype, scratch):
    """As own_logits; in f64 the norms and the angles stay f32, as transformers has them."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    out = np.lib.format.open_memmap(scratch / f"{dtype}.npy", mode="w+", dtype=dtype,
                                    shape=(*tokens.shape, model.config.vocab_size))
    with torch.no_grad():
        for logits, sequence in zip(out, tokens):
            logits[:] = model(torch.tensor(sequence[None])).logits[0].numpy()
    return out


def compare(arguments, tokens, scratch):
    ours = own_logits(arguments.write_logits, arguments.run, tokens, scratch)
    theirs = {dtype: transformers_logits(arguments.folder, tokens, dtype, scratch)
              for dtype in ("float32", "float64")}
    exact_model = ReferenceModel(*load_checkpoint(arguments.run))
    pairs = {name: Difference() for name in (
        "this program, f32, from the reference in f64", "transformers, f32, from the same",
        "transformers, f64, from the same", "this program, f32, from transformers, f32",
        "this program, f32, from transformers, f64")}
    losses, greatest = dict.fromkeys(("reference", "ours", *theirs), 0.0), 0.0
    for i, sequence in enumerate(tokens):
        exact, own = exact_model.forward(sequence[None])[0], ours[i]
        f32, f64 = theirs["float32"][i], theirs["float64"][i]
        greatest = max(greatest, float(np.abs(exact).max()))
        for difference, pair in zip(pairs.values(), ((own, exact), (f32, exact), (f64, exact),
                                                     (own, f32), (own, f64))):
            difference.add(*pair)
        for name, logits in zip(losses, (exact, own, f32, f64)):
            losses[name] += next_token_loss(logits, sequence) / (len(tokens) * (len(sequence) - 1))
    print(f"{tokens.size:,} tokens; the greatest logit is {greatest:.1f}\n\n"
          "| Logits of | greatest \\|dlogit\\| | same argmax |\n|---|---|---|")
    for name, difference in pairs.items():
        print(f"| {name} | {difference} |")
    print("\nLoss: " + ", ".join(f"{name} {loss:.7f}" for name, loss in losses.items()))
    return ours


def compare_upcycled(arguments, tokens, dense, scratch):
    for upcycled in arguments.upcycled:
        logits = own_logits(arguments.write_logits, upcycled, tokens, scratch)
        difference = Difference()
        for one, other in zip(logits, dense):
            difference.add(one, other)
        print(f"\n{upcycled}, from the dense model: {difference}")


def compare_continuations(arguments, text, tokenizer):
    """Of ten places in the text, each where a line begins."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=torch.float32)
    lines = [line for line in text.splitlines() if len(line) > 100][:PROMPTS]
    equal = 0
    for line in lines:
        ids = torch.tensor([tokenizer(line).input_ids[:PROMPT]])
        prompt = tokenizer.decode(ids[0])
        theirs = tokenizer.decode(model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False,
            max_new_tokens=CONTINUATION)[0]).removesuffix(tokenizer.eos_token)
        ours = run(arguments.program, "generate", arguments.run, "--prompt", prompt,
                   "--max-tokens", CONTINUATION, "--temperature", 0)
        equal += ours == theirs + "\n"
    print(f"\nGreedy continuations of {CONTINUATION} tokens that are the same: "
          f"{equal} of {len(lines)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "runs/smollm2_hf")
    parser.add_argument("--run", type=pathlib.Path, default=ROOT / "runs/smollm2_135m")
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "build/switchyard")
    parser.add_argument("--write-logits", type=pathlib.Path, default=ROOT / "build/write_logits")
    parser.add_argument("--length", type=endings.positive_integer, default=2048,
                        help="tokens of a sequence")
    parser.add_argument("--upcycled", action="append", type=pathlib.Path, default=[])
    arguments = parser.parse_args()
    for path in (arguments.folder, arguments.run, arguments.program, arguments.write_logits):
        if not path.exists():
            raise Unusable(f"{path} does not exist; scripts/fetch_smollm2.sh makes the model, and "
                           "cmake --build --preset release --target switchyard write_logits the rest")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.folder)
    text = "".join((ROOT / "docs" / name).read_text() for name in ("architecture.md", "formats.md"))
    tokens = sequences_of(tokenizer(text).input_ids, arguments.length)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as scratch:
        dense = compare(arguments, tokens, pathlib.Path(scratch))
        compare_upcycled(arguments, tokens, dense, pathlib.Path(scratch))
    compare_continuations(arguments, text, tokenizer)


if __name__ == "__main__":
    endings.run(main)
