#!/usr/bin/env python3
"""Times PyTorch's scaled_dot_product_attention (FlashAttention) on the shapes of device_bench.

Prints a Markdown table in the format of device_bench. Without PyTorch or a GPU it fails.
"""

import statistics
import sys

try:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError as error:
    sys.exit(f"attention_reference: PyTorch is not installed ({error})")
if not torch.cuda.is_available():
    sys.exit("attention_reference: PyTorch sees no GPU")

TOKENS, HEADS = 16384, 16
SHAPES = [(seq_len, head_dim, HEADS) for head_dim in (64, 128) for seq_len in (2048, 4096, 8192)]
SHAPES.append((4096, 128, 4))


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


def measure(seq_len, head_dim, kv_heads):
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
    return batch, forward, backward


def main():
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}\n")
    print("| op | shape | us | rate |\n|---|---|---|---|")
    for seq_len, head_dim, kv_heads in SHAPES:
        batch, forward, backward = measure(seq_len, head_dim, kv_heads)
        product = batch * HEADS * seq_len * (seq_len + 1) / 2 * head_dim * 2
        shape = f"{batch} x {HEADS}/{kv_heads} heads x {seq_len} x {head_dim} bf16"
        for name, time, products in (("forward", forward, 2), ("backward", backward, 5)):
            print(f"| attention {name} | {shape} | {1e6 * time:.1f} | "
                  f"{products * product / time * 1e-12:.1f} TFLOP/s |")


if __name__ == "__main__":
    main()
