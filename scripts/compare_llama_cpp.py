#!/usr/bin/env python3
"""Compares the speed of decoding with llama.cpp's, on the CPU, with the same weights and threads:

    scripts/compare_llama_cpp.py SOURCES CONFIG --text FILE [options] [key.sub=value ...]

SOURCES: the unpacked sources of llama-cpp-python, with llama.cpp built in their folder build, as
`scripts/export_check.sh --llama-cpp` leaves them in build/llama_cpp.

Every program first reads a prompt in one sequence, alone. Then they take turns: one decodes
TURN_TOKENS tokens behind the prompt while the others are stopped (SIGSTOP), five times with one
sequence and five times with each further number of --samples. The first step of a turn does not
count, because it finds the processor's caches filled by another program; of the others of all turns
the median is printed. llama.cpp has flash attention where it likes, and its default f16 cache
beside one in f32. The model is exported and converted anew each time, so that all programs have the
weights that CONFIG and the overrides name now.
"""

import argparse
import ctypes
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import endings
from endings import Unusable

ROOT = pathlib.Path(__file__).resolve().parent.parent
GGML_TYPES = {"f32": 0, "f16": 1}  # of ggml.h
TURNS, TURN_TOKENS = 5, 4  # the latter as in `switchyard bench generate`


def load_llama(sources):
    os.environ["LLAMA_CPP_LIB_PATH"] = str(sources / "build/bin")
    sys.path.insert(0, str(sources))
    from llama_cpp import llama_cpp
    return llama_cpp


def fill(batch, tokens):
    """tokens: (token, position, sequence, whether its logits are wanted)"""
    batch.n_tokens = len(tokens)
    for i, (token, position, sequence, wanted) in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence


def measure_llama(sources, gguf, cache, prompt, samples, threads):
    """Prints a line after the prefill and every turn, then the figures. The values of tokens do not
    matter for the speed."""
    llama = load_llama(sources)
    quiet = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(quiet, ctypes.c_void_p(0))
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(str(gguf).encode(),
                                             llama.llama_model_default_params())
    most, new = max(samples), TURNS * TURN_TOKENS
    p = llama.llama_context_default_params()
    p.n_ctx = (prompt + new + 255) // 256 * 256 * most  # of all sequences
    p.n_batch, p.n_ubatch, p.n_seq_max = 2048, 512, most
    p.n_threads = p.n_threads_batch = threads
    p.type_k = p.type_v = GGML_TYPES[cache]
    p.kv_unified = False
    context = llama.llama_init_from_model(model, p)
    if not context:
        raise Unusable(f"llama.cpp cannot decode {gguf} with a cache in {cache}")
    memory, batch = llama.llama_get_memory(context), llama.llama_batch_init(2048, 0, most)

    def decode(*tokens):
        fill(batch, tokens)
        begin = time.perf_counter()
        code = llama.llama_decode(context, batch)
        if code != 0:
            raise Unusable(f"llama.cpp: llama_decode failed with code {code}")
        llama.llama_get_logits_ith(context, batch.n_tokens - 1)  # waits for it
        return time.perf_counter() - begin

    prefill = 0.0
    for at in range(0, prompt, 2048):
        positions = range(at, min(at + 2048, prompt))
        prefill += decode(*[(997 * i % 40000, i, 0, i == positions[-1]) for i in positions])
    print(f"prefill: {prefill:.2f} s", file=sys.stderr, flush=True)
    for sequence in range(1, most):
        llama.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
    cases = []
    for count in samples:
        for sequence in range(most):
            llama.llama_memory_seq_rm(memory, sequence, prompt, -1)
        steps = []
        for turn in range(TURNS):
            at = prompt + turn * TURN_TOKENS
            turn_steps = [decode(*[(991 * (i + 1) % 40000, i, s, 1) for s in range(count)])
                          for i in range(at, at + TURN_TOKENS)]
            steps += turn_steps[1:]
            print(f"turn {turn + 1}", file=sys.stderr, flush=True)
        step = statistics.median(steps)
        cases.append({"way": "", "batch": count, "prefill_seconds": prefill, "step_seconds": step,
                      "tokens_per_second": count / step})
    print(json.dumps({"generate": cases}))


def run(command, **environment):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True,
                          env=os.environ | environment)
    if done.returncode != 0:
        raise Unusable(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return done.stdout


def convert(arguments, scratch):
    """Writes the model to DTYPE.gguf in the scratch folder."""
    model = scratch / "model"
    run([arguments.program, "export", arguments.config, *arguments.overrides, "--to", model])
    for dtype in arguments.dtype.split(","):
        run([sys.executable, arguments.sources / "vendor/llama.cpp/convert_hf_to_gguf.py", model,
             "--outfile", scratch / f"{dtype}.gguf", "--outtype", dtype])


class Contender:
    """A program that measures itself and runs only during its turns."""

    def __init__(self, name, command, report=None, **environment):
        self.name, self.report = name, report
        self.process = subprocess.Popen([str(c) for c in command], text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        env=os.environ | environment)

    def run_until(self, beginning):
        """Goes on until it has printed such a line."""
        self.process.send_signal(signal.SIGCONT)
        lines = []
        for line in self.process.stderr:
            lines.append(line)
            if line.startswith(beginning):
                self.process.send_signal(signal.SIGSTOP)
                return
        raise Unusable(f"{self.name} ended early:\n{''.join(lines)}")

    def finish(self):
        self.process.send_signal(signal.SIGCONT)
        output, errors = self.process.communicate()
        if self.process.returncode != 0:
            raise Unusable(f"{self.name} failed:\n{errors}")
        return output


def contenders(arguments, scratch):
    """The programs, and the line that each prints when it has read the prompt."""
    for dtype in arguments.dtype.split(","):
        report = scratch / f"{dtype}.json"
        yield Contender(f"switchyard, {dtype}", [
            arguments.program, "bench", "generate", arguments.config, "decode.attention=hata",
            f"run.compute_dtype={dtype}", *arguments.overrides, "--text", arguments.text,
            "--prompt-tokens", arguments.prompt_tokens, "--new-tokens", TURNS * TURN_TOKENS,
            "--samples", arguments.samples, "--json", report],
            report=report, OMP_NUM_THREADS=str(arguments.threads)), "prefill, hata"
        for cache in ("f32", "f16") if dtype == "f32" else ("f16",):
            yield Contender(f"llama.cpp, {dtype}, {cache} cache", [
                sys.executable, pathlib.Path(__file__).resolve(), "--measure-llama",
                arguments.sources, scratch / f"{dtype}.gguf", cache,
                arguments.prompt_tokens, f"[{arguments.samples}]", arguments.threads]), "prefill"


def table(programs):
    """The figures of all programs as a table in Markdown."""
    rows = []
    for program in programs:
        output = program.finish()
        report = json.loads(program.report.read_text() if program.report else output)
        for case in report["generate"]:
            way = f", {case['way']}" if case["way"] else ""
            rows.append((case["batch"], program.name + way, case))
    lines = ["| sequences | program | prefill of one, s | ms a step | tokens/s |",
             "|---|---|---|---|---|"]
    for batch, way, case in sorted(rows, key=lambda row: row[:2]):
        lines.append(f"| {batch} | {way} | {case['prefill_seconds']:.1f} | "
                     f"{1e3 * case['step_seconds']:.1f} | {case['tokens_per_second']:.1f} |")
    return "\n".join(lines)


def compare(arguments, scratch):
    """Prints the table."""
    convert(arguments, scratch)
    programs = []
    try:
        for program, ready in contenders(arguments, scratch):
            programs.append(program)
            program.run_until(ready)
        for _ in range(TURNS * len(arguments.samples.split(","))):
            for program in programs:
                program.run_until("turn")
        print(table(programs))
    finally:
        for program in programs:
            program.process.kill()
            program.process.wait()


def positive_integers(text):
    for part in text.split(","):
        endings.positive_integer(part)
    return text


def main():
    if sys.argv[1:2] == ["--measure-llama"]:
        sources, gguf = map(pathlib.Path, sys.argv[2:4])
        prompt, samples, threads = map(json.loads, sys.argv[5:8])
        measure_llama(sources, gguf, sys.argv[4], prompt, samples, threads)
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", type=pathlib.Path)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", help="key.sub=value ...")
    parser.add_argument("--text", type=pathlib.Path, required=True, help="file of running text")
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "build/switchyard")
    parser.add_argument("--prompt-tokens", type=endings.positive_integer, default=8172,
                        help="with the new tokens no more than the model's context")
    parser.add_argument("--samples", type=positive_integers, default="1,8",
                        help="numbers of sequences")
    parser.add_argument("--dtype", default="f32,bf16",
                        help="of weights; all programs have their caches in memory at the same time")
    parser.add_argument("--threads", type=endings.positive_integer,
                        default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "runs/compare_llama_cpp",
                        help="folder on a disk with room for the converted model")
    arguments = parser.parse_intermixed_args()
    for name in ("sources", "text", "work", "program"):
        setattr(arguments, name, getattr(arguments, name).resolve())
    endings.require_llama_cpp(arguments.sources)
    if not arguments.text.is_file():
        raise Unusable(f"{arguments.text} is no file of text")
    endings.make_folder(arguments.work)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"{endings.name()}: stopped"))
    with tempfile.TemporaryDirectory(dir=arguments.work) as scratch:
        compare(arguments, pathlib.Path(scratch))


if __name__ == "__main__":
    endings.run(main)
