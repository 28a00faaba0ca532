#!/usr/bin/env python3
"""Compares the training step of configs/bench_fine_grained.yaml with the same step in PyTorch.

    scripts/transformers_environment.sh FOLDER
    FOLDER/bin/python scripts/compare_pytorch.py [--rounds 5] [--out FILE]

Both first train from the same weights on the same tokens, and their losses are compared, so that
both compute the same. Then rounds alternate between the programs, each on random tokens with one
thread; medians, shares of oneDNN's best square product and ratios are printed. PyTorch's model has
what makes it fast: fused q, k, v, F.scaled_dot_product_attention, sorted rows and F.grouped_mm for
the experts, torch.compile (of each block, head and loss), the fused AdamW; in bf16, autocast.
"""

import argparse
import json
import os
import pathlib
import random
import re
import statistics
import subprocess
import tempfile
import time

import endings
from endings import Unusable

try:
    import h5py
    import torch
    import torch.nn.functional as F
    import yaml
except ImportError as missing:
    endings.without(missing, endings.ENVIRONMENT)

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "bench_fine_grained.yaml"
DTYPES = {"f32": None, "bf16": torch.bfloat16}
STEPS = 3
# Of the loss, relative: sums in another order; bf16's 8 bits, where autocast rounds other places.
BOUNDS = {"f32": 2e-5, "bf16": 2e-3}
OURS = "switchyard"
PROGRAMS = [OURS, "PyTorch eager", "PyTorch compiled"]


def switchyard(*arguments):
    """The output of build/switchyard on one thread."""
    command = [str(ROOT / "build" / "switchyard"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1",
                   "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    try:
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
    except OSError as error:
        raise Unusable(f"{command[0]} cannot be started ({error}); build it first") from error
    if result.returncode != 0:
        raise Unusable(f"{' '.join(command)} failed: {result.stderr.strip()}")
    return result.stdout


class Block(torch.nn.Module):
    """A layer of the fine-grained structure; see scripts/reference_model.py for what it computes.
    Returns the layer's output and the balance loss of its router."""

    def __init__(self, model, weights, name):
        super().__init__()
        self.heads, self.top_k = model["num_heads"], model["router"]["top_k"]
        self.eps, self.experts = 1e-5, model["num_experts"]

        def parameter(*names):
            return torch.nn.Parameter(torch.cat([weights[f"{name}.{n}.weight"] for n in names]))

        self.norm1, self.norm2 = parameter("norm1"), parameter("norm2")
        self.qkv = parameter("attention.q", "attention.k", "attention.v")
        self.out = parameter("attention.out")
        self.router = parameter("moe.router")
        self.gate_up, self.down = parameter("moe.experts.gate_up"), parameter("moe.experts.down")

    def attention(self, x, cos, sin):
        batch, length, width = x.shape
        heads = F.linear(x, self.qkv).view(batch, length, 3, self.heads, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4)

        def rotate(t):
            first, second = t.float().chunk(2, dim=-1)
            turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
            return turned.to(v.dtype)

        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return F.linear(y.transpose(1, 2).reshape(batch, length, width), self.out)

    def moe(self, x, sequences):
        with torch.autocast("cpu", enabled=False):
            scores = F.linear(x.float(), self.router).softmax(-1)
            weights, chosen = scores.topk(self.top_k, dim=-1)
            weights = weights / weights.sum(-1, keepdim=True)
            shares, probabilities = (t.reshape(sequences, -1, self.experts).mean(1) for t in
                                     (F.one_hot(chosen, self.experts).float(), scores))
            balance = self.experts * (shares * probabilities).sum(-1).mean()
        order = chosen.flatten().argsort(stable=True)
        ends = torch.bincount(chosen.flatten(), minlength=self.experts).cumsum(0).to(torch.int32)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        rows = x.to(dtype)[order // self.top_k]
        both = F.grouped_mm(rows, self.gate_up.to(dtype).transpose(1, 2), offs=ends)
        gate, up = both.chunk(2, -1)
        act = F.silu(gate) * up * weights.flatten()[order].to(dtype)[:, None]
        y = F.grouped_mm(act, self.down.to(dtype).transpose(1, 2), offs=ends)
        of_token = torch.empty_like(order)
        of_token[order] = torch.arange(len(order))
        return y[of_token].view(len(x), self.top_k, -1).sum(1), balance

    def forward(self, x, cos, sin):
        width = x.shape[-1:]
        x = x + self.attention(F.rms_norm(x, width, self.norm1, self.eps), cos, sin)
        rows = F.rms_norm(x, width, self.norm2, self.eps).flatten(0, 1)
        y, balance = self.moe(rows, len(x))
        return x + y.view(x.shape), balance


class Model(torch.nn.Module):
    def __init__(self, model, weights, compiled):
        super().__init__()
        self.embedding = torch.nn.Parameter(weights["embedding.weight"].clone())
        self.blocks = torch.nn.ModuleList(
            Block(model, weights, f"layers.{i}") for i in range(model["num_layers"]))
        self.norm = torch.nn.Parameter(weights["norm.weight"].clone())
        self.head = torch.nn.Parameter(weights["head.weight"].clone())
        half = model["hidden"] // model["num_heads"] // 2
        angle = torch.outer(torch.arange(model["seq_len"], dtype=torch.float64),
                            1e4 ** (-torch.arange(half, dtype=torch.float64) / half))
        self.cos, self.sin = angle.cos().float(), angle.sin().float()
        self.loss_of = self.loss
        if compiled:
            self.loss_of = torch.compile(self.loss)
            for block in self.blocks:
                block.compile()

    def loss(self, x, targets):
        logits = F.linear(F.rms_norm(x, x.shape[-1:], self.norm, 1e-5), self.head)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    def forward(self, tokens, targets):
        """The cross-entropy and the sum of the layers' balance losses."""
        x, balance = F.embedding(tokens, self.embedding), 0.0
        for block in self.blocks:
            x, of_layer = block(x, self.cos, self.sin)
            balance = balance + of_layer
        return self.loss_of(x, targets), balance


class Trainer:
    """PyTorch's training step with the program's defaults."""

    def __init__(self, config, weights, dtype, compiled):
        self.dtype, self.coefficient = dtype, config["model"]["router"]["aux_loss_coef"]
        self.model = Model(config["model"], weights, compiled)
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim == 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=config["optimizer"]["lr"], betas=(0.9, 0.95), eps=1e-8, fused=True)

    def step(self, tokens, targets):
        with torch.autocast("cpu", self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            loss, balance = self.model(tokens, targets)
        (loss + self.coefficient * balance).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        return loss.item()


def our_losses(folder, config, dtype, text):
    """The losses of the program's first steps on the text's four sequences, and its first weights:
    a step with a learning rate of zero leaves them as they are."""
    settings = [CONFIG, f"run.compute_dtype={dtype}", f"data.text=[{text}]",
                "data.validation_share=0", f"data.train={folder}/train.h5",
                "optimizer.schedule.type=constant", "checkpoint.keep=1"]
    if not (folder / "train.h5").exists():
        switchyard("tokenize", *settings)
    first, run = folder / f"weights_{dtype}", folder / f"run_{dtype}"
    switchyard("train", *settings, f"run.dir={first}", "optimizer.lr=0", "train.max_steps=1")
    switchyard("train", *settings, f"run.dir={run}", f"train.max_steps={STEPS}")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    weights = {}
    with h5py.File(first / "checkpoints" / "latest" / "model.h5") as file:
        file["weights"].visititems(lambda name, item: weights.update(
            {name: torch.from_numpy(item[:])}) if isinstance(item, h5py.Dataset) else None)
    return [json.loads(line)["loss"] for line in lines], weights


def compare_losses(config, folder):
    """Raises Unusable unless both programs have the same losses. Returns the first weights."""
    count, length = config["train"]["global_batch_size"], config["model"]["seq_len"]
    text = folder / "text.txt"
    text.write_bytes(bytes(random.Random(1).choices(range(97, 123), k=count * length + 1)))
    tokens = torch.tensor(list(text.read_bytes()))
    batch = tokens[:-1].view(count, length), tokens[1:].view(count, length)
    for dtype, autocast in DTYPES.items():
        ours, weights = our_losses(folder, config, dtype, text)
        trainer = Trainer(config, weights, autocast, compiled=False)
        theirs = [trainer.step(*batch) for _ in range(STEPS)]
        print(f"losses of {STEPS} steps, {dtype}: {OURS} {ours}, PyTorch {theirs}", flush=True)
        for mine, other in zip(ours, theirs, strict=True):
            if not abs(mine - other) <= BOUNDS[dtype] * abs(mine):
                raise Unusable(f"the losses in {dtype} differ by more than {BOUNDS[dtype]} of "
                               "them: the programs do not compute the same")
    return weights


def our_step(dtype):
    """Tokens per second, and the ceilings in GFLOP/s by dtype, of one measured step."""
    report = switchyard("bench", CONFIG, f"run.compute_dtype={dtype}", "--steps", 1, "--warmup", 2)
    ceilings = {dtype: float(re.search(r"\nceiling +([\d.]+)", report)[1])}
    rate, flops = (float(re.search(p, report)[1])
                   for p in (r"([\d.]+) tokens/s", r"\nmodel +([\d.]+) GFLOP/s"))
    return rate, flops / rate, ceilings


def measure(config, weights, rounds, note):
    """Alternates the programs. `note` is told each result."""
    model = config["model"]
    shape = config["train"]["global_batch_size"], model["seq_len"] + 1
    trainers = {(name, dtype): Trainer(config, weights, autocast, name.endswith("compiled"))
                for dtype, autocast in DTYPES.items() for name in PROGRAMS[1:]}
    for i in range(-2, rounds):  # the first two warm up
        tokens = torch.randint(model["vocab_size"], shape)
        for name, trainer in trainers.items():
            begin = time.perf_counter()
            trainer.step(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
            rate = tokens[:, 1:].numel() / (time.perf_counter() - begin)
            if i >= 0:
                note({"program": name[0], "dtype": name[1], "rate": rate})
        for dtype in DTYPES if i >= 0 else ():
            rate, flops_per_token, ceilings = our_step(dtype)
            note({"program": OURS, "dtype": dtype, "rate": rate, "ceiling": ceilings[dtype],
                  "gflop": flops_per_token})


def report(results):
    """A table of the medians."""
    def of(program, dtype, key="rate"):
        return [r[key] for r in results if (r["program"], r["dtype"]) == (program, dtype)]

    lines = ["| program | dtype | tokens/s | GFLOP/s | ceiling | share | ours over it |",
             "|---|---|---|---|---|---|---|"]
    for dtype in DTYPES:
        ours, ceiling, flops = (statistics.median(of(OURS, dtype, key))
                                for key in ("rate", "ceiling", "gflop"))
        for program in dict.fromkeys(r["program"] for r in results):
            rate = statistics.median(of(program, dtype))
            lines.append(f"| {program} | {dtype} | {rate:.0f} | {rate * flops:.1f} | "
                         f"{ceiling:.1f} | {100 * rate * flops / ceiling:.1f} % | "
                         f"{ours / rate:.2f} |")
    return "\n".join([f"medians of {len(of(OURS, 'f32'))} alternated rounds, one thread", *lines])


def read_results(file):
    """Those of earlier calls."""
    remedy = "name another file with --out"
    results = endings.read_lines(file, remedy)
    for result in results:
        keys = ("rate", "ceiling", "gflop") if result.get("program") == OURS else ("rate",)
        if (result.get("program") not in PROGRAMS or result.get("dtype") not in DTYPES
                or not all(endings.number(result.get(key)) > 0 for key in keys)):
            raise Unusable(f"{file} holds something else than results of this script, so nothing "
                           f"is added to it; {remedy}")
    return results


def write_results(file, results):
    with endings.written_whole(file) as partial:
        partial.write_text("".join(json.dumps(result) + "\n" for result in results))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=endings.positive_integer, default=5)
    parser.add_argument("--out", type=pathlib.Path,
                        help="file of results, a JSON object per line: they are added to those "
                             "that are in it, and the medians are over all")
    arguments = parser.parse_args()
    results = []
    if arguments.out:
        endings.make_folder(arguments.out.parent)
        results = read_results(arguments.out) if arguments.out.exists() else []
        write_results(arguments.out, results)  # What cannot be written is found before the work.
    torch.set_num_threads(1)
    torch.manual_seed(1)
    config = yaml.safe_load(CONFIG.read_text())
    config["optimizer"]["lr"] = float(config["optimizer"]["lr"])

    def note(result):
        results.append(result)
        if arguments.out:
            write_results(arguments.out, results)

    with tempfile.TemporaryDirectory() as folder:
        weights = compare_losses(config, pathlib.Path(folder))
    measure(config, weights, arguments.rounds, note)
    print(report(results))


if __name__ == "__main__":
    endings.run(main)
