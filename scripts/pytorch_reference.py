#!/usr/bin/env python3
"""Times PyTorch's FlashAttention (scaled_dot_product_attention) and grouped products
(torch._grouped_mm) on the shapes of device_bench.

Prints Markdown tables in the format of device_bench. Without PyTorch or a GPU it fails.
"""

import statistics
import sys

try:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError as error:
    sys.exit(f"pytorch_reference: PyTorch is not installed ({error})")
if not torch.cuda.is_available():
    sys.exit("pytorch_reference: PyTorch sees no GPU")

TOKENS, HEADS = 16384, 16
SHAPES = [(seq_len, head_dim, HEADS) for head_dim in (64, 128) for seq_len in (2048, 4096, 8192)]
SHAPES.append((4096, 128, 4))
EXPERTS, ROWS = 64, 131072
# Those of device_bench, then those of GPT3-Medium: fine-grained, and BigMac.
EXPERT_WIDTHS = [(2048, 512), (512, 2048), (1024, 256), (256, 1024)]


def seconds(run):
    """Seconds per run: the median of five stretches of ten runs, timed by events of the device."""
    run()
    times = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(10):
            run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 10 * 1e-3)
    return statistics.median(times)


def print_row(name, shape, time, flops):
    print(f"| {name} | {shape} | {1e6 * time:.1f} | {flops / time * 1e-12:.1f} TFLOP/s |",
          flush=True)


def attention(seq_len, head_dim, kv_heads):
    batch = TOKENS // seq_len
    q, k, v = (torch.randn(batch, heads, seq_len, head_dim, device="cuda", dtype=torch.bfloat16,
                           requires_grad=True) for heads in (HEADS, kv_heads, kv_heads))
    dout = torch.randn_like(q)

    def attend():
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=kv_heads != HEADS)

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = attend()
        forward = seconds(attend)
        backward = seconds(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))
    product = batch * HEADS * seq_len * (seq_len + 1) / 2 * head_dim * 2
    shape = f"{batch} x {HEADS}/{kv_heads} heads x {seq_len} x {head_dim} bf16"
    print_row("attention forward", shape, forward, 2 * product)
    print_row("attention backward", shape, backward, 5 * product)


def experts(in_width, out_width):
    """The three products of experts with the same number of rows each."""
    x, dy = (torch.randn(ROWS, width, device="cuda", dtype=torch.bfloat16)
             for width in (in_width, out_width))
    weight = torch.randn(EXPERTS, out_width, in_width, device="cuda", dtype=torch.bfloat16)
    ends = torch.arange(1, EXPERTS + 1, device="cuda", dtype=torch.int32) * (ROWS // EXPERTS)
    runs = {"forward": lambda: torch._grouped_mm(x, weight.transpose(-2, -1), offs=ends),
            "backward, input": lambda: torch._grouped_mm(dy, weight, offs=ends),
            "backward, weight": lambda: torch._grouped_mm(dy.t(), x, offs=ends)}
    shape = f"{EXPERTS} x ({in_width} -> {out_width}), {ROWS} rows bf16"
    for name, run in runs.items():
        print_row(f"experts {name}", shape, seconds(run), 2 * ROWS * in_width * out_width)


def main():
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}\n")
    print("| op | shape | us | rate |\n|---|---|---|---|")
    for shape in SHAPES:
        attention(*shape)
    if not hasattr(torch, "_grouped_mm"):
        print("\nThis PyTorch has no grouped products.")
        return
    for widths in EXPERT_WIDTHS:
        experts(*widths)


if __name__ == "__main__":
    main()
