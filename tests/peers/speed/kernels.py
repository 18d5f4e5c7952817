"""The CPU kernels against torch, operation by operation: one thread, processor time, alternating, medians.

    cargo build --release --workspace --example kernels
    python kernels.py [--rounds 5] [--binary target/release/examples/kernels]

needs torch (requirements.txt). Processor time does not count other processes, but they still share caches and
memory; read ratios, not milliseconds. Writes ../results/kernels-KIND.md and .svg, where KIND is
that of the processor, as run.py does.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import run  # noqa: E402


def timed(f, seconds=0.2):
    f()
    start, calls = time.process_time(), 0
    while time.process_time() - start < seconds:
        f()
        calls += 1
    return (time.process_time() - start) / calls * 1e3


def tasks():
    """Name as the example prints it -> the same work in torch."""
    f32, half = torch.float32, torch.bfloat16
    x, h = torch.randn(257, 1024), torch.randn(257, 4096)
    w, b = torch.randn(1024), torch.randn(1024)
    all_ = {
        "layer norm 257 x 1024": lambda: F.layer_norm(x, (1024,), w, b),
        "Gelu 257 x 4096": lambda: F.gelu(h),
        "GeluTanh 257 x 4096": lambda: F.gelu(h, approximate="tanh"),
        "Silu 257 x 4096": lambda: F.silu(h),
        "Gelu backward": lambda: torch.ops.aten.gelu_backward(h, h),
    }

    def linear(m, k, n, dtype, name, act):
        a, weight, bias = (torch.randn(*s).to(dtype) for s in ((m, k), (n, k), (n,)))
        if act:
            all_[name] = lambda: F.gelu(F.linear(a, weight, bias))
        else:
            all_[name] = lambda: F.linear(a, weight)
        return weight

    for m, k, n in [(257, 1024, 4096), (257, 4096, 1024), (257, 1024, 1024), (32, 768, 768), (64, 1024, 4096)]:
        linear(m, k, n, f32, f"f32 {m} x {k} x {n}, W^T, bias, gelu", True)
        linear(m, k, n, half, f"bf16 {m} x {k} x {n}, W^T, bias, gelu", True)
    for m in (1, 2, 5, 8, 16, 32, 40):
        linear(m, 2560, 10240, f32, f"f32 {m} x 2560 x 10240", False)
        linear(m, 2560, 10240, half, f"bf16 {m} x 2560 x 10240", False)
        if m in (1, 5, 16, 40):  # torch has no weight-only kernels on the CPU: against bf16
            for bits in ("Eight", "Four"):
                all_[f"{bits} bits {m} x 2560 x 10240"] = all_[f"bf16 {m} x 2560 x 10240"]
    for heads, t, s, d in [(16, 257, 257, 64), (16, 257, 257, 88), (12, 32, 257, 64), (32, 1, 64, 80)]:
        q, k = torch.randn(1, heads, t, d), torch.randn(1, heads, s, d)
        all_[f"attention {heads} x {t} x {s} x {d}"] = lambda q=q, k=k: F.scaled_dot_product_attention(q, k, k)
    return all_


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--binary", type=Path, default=run.ROOT / "target/release/examples/kernels")
    parser.add_argument("--results", type=Path, default=HERE.parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    peers = tasks()
    env = dict(os.environ) | {"RAYON_NUM_THREADS": "1"}
    ours, theirs = {}, {}
    with torch.inference_mode():
        for _ in range(args.rounds):
            out = subprocess.run([args.binary], env=env, check=True, capture_output=True, text=True).stdout
            for line in out.splitlines():
                name, ms = re.match(r"(.*?)\s+([\d.]+) ms", line).groups()
                ours.setdefault(name, []).append(float(ms))
            for name, f in peers.items():
                theirs.setdefault(name, []).append(timed(f))
    rows = [
        {"task": n, "ours_ms": statistics.median(ours[n]), "theirs_ms": statistics.median(theirs[n])}
        for n in ours
        if n in theirs
    ]
    lines = [
        "# CPU kernels against torch, operation by operation",
        "",
        f"{run.machine()}. One thread, processor time, medians of {args.rounds} alternating rounds, torch "
        f"{run.version('torch')}. Packed weights (8 and 4 bits) stand against torch's bf16, which is the narrowest "
        "that it multiplies as is. Regenerate with `tests/peers/speed/kernels.py`.",
        "",
        "| Operation | ours, ms | torch, ms | ratio |",
        "|---|--:|--:|--:|",
    ]
    lines += [
        f"| {r['task']} | {r['ours_ms']:.3f} | {r['theirs_ms']:.3f} | {r['theirs_ms'] / r['ours_ms']:.2f} |" for r in rows
    ]
    args.results.mkdir(parents=True, exist_ok=True)
    stem = f"kernels-{run.kind()}"
    (args.results / f"{stem}.md").write_text("\n".join(lines) + "\n")
    (args.results / f"{stem}.svg").write_text(run.svg([{"title": "one thread", "rows": rows}]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
