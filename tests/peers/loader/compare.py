"""`blip2-train data bench` against webdataset + Pillow on the same shards in one run, alternating; writes result.json.

Both do: tar shards -> shuffle buffer 1000 -> JPEG to RGB -> RandomResizedCrop 224 (scale 0.5-1, bicubic) -> flip -> 8 bit.
CPU seconds are those of the whole process for Rust, and without start-up and imports for Python, which favours Python.
Pinned: webdataset 1.0.2, Pillow 13.0.0. Usage, after `cargo build --release`:

    python tests/peers/loader/compare.py [RUNS] [SHARDS] [PICTURES_PER_SHARD]

BLIP2_TRAIN names another build of the command.
"""

import glob
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]


def measured(command):
    """Standard output, wall and CPU seconds of a command."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    out = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{command[0]} ended with status {status}")
    return json.loads(out), time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss // 1024


def cpu_name():
    for line in open("/proc/cpuinfo") if os.path.exists("/proc/cpuinfo") else []:
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def main():
    runs, shards, per_shard = (int(a) for a in sys.argv[1:] + ["3", "4", "250"][len(sys.argv) - 1 :])
    # one thread each: arrays and pools must not hide work on other cores
    os.environ |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run([sys.executable, HERE / "make_shards.py", folder, str(shards), str(per_shard)], check=True, capture_output=True, text=True)
        files = sorted(glob.glob(f"{folder}/*.tar"))
        rust = [os.environ.get("BLIP2_TRAIN", str(ROOT / "target/release/blip2-train")), "data", "bench", f"{folder}/*.tar", "--threads", "1", "--json"]
        python = [sys.executable, str(HERE / "webdataset_pillow.py"), *files]
        rows = []
        for _ in range(runs):
            ours, wall, cpu, peak = measured(rust)
            theirs, _, _, _ = measured(python)
            if ours["images"] != theirs["images"]:
                raise SystemExit(f"{ours['images']} pictures against {theirs['images']}")
            rows.append({
                "python_cpu_s": theirs["cpu_s"], "python_wall_s": theirs["wall_s"], "python_peak_mb": theirs["peak_mb"],
                "rust_cpu_s": round(cpu, 3), "rust_wall_s": round(wall, 3), "rust_peak_mb": peak,
                "ratio_cpu": round(theirs["cpu_s"] / cpu, 2), "ratio_wall": round(theirs["wall_s"] / wall, 2),
            })
            print(rows[-1], flush=True)
    ratios = sorted(row["ratio_cpu"] for row in rows)
    result = {
        "work": f"JPEG pictures of COCO's sizes ({made.stdout.strip()}), one decode thread each",
        "cpu": f"{cpu_name()}, {os.cpu_count()} processors",
        "python": f"webdataset {theirs['webdataset']}, Pillow {theirs['pillow']} (libjpeg-turbo {theirs['turbo']})",
        "runs": rows,
        "median_ratio_cpu": ratios[len(ratios) // 2],
        "aim": 3,
        "reading": "JPEG decoding takes two thirds of the time here and is as fast as libjpeg-turbo at best, so one core cannot "
        "reach the aim on pictures of this size without decoding less than all pixels, which would change them.",
    }
    (HERE / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
