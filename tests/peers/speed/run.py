"""Speed and memory against transformers on torch: same random checkpoint, same inputs, alternating in one run.

    python run.py [--threads N] [--rounds 5] [--measure wall|cpu] [--keep FOLDER] [--only NAME] [--case NAME]

needs the packages of requirements.txt and our worker, `cargo build --release --example peer_speed`. `run.sh` does
all of it. Writes results/speed-KIND.md, .svg and .json, where KIND is that of the processor (amx, avx512, avx2, ...),
so that a run on another kind of machine adds to the results instead of replacing them.

The section of the README between its two `speed` comments is written from the same figures; `--report` does that
again from results/speed-*.json without measuring.

`--layers 0` takes the published model whole (OPT-2.7B in bf16: 7.5 GB on disk, 20 GB of memory) and writes
results/speed-KIND-full.* instead; with few layers the output head, which ours keeps in bf16, weighs more than it does there.

Both sides are given one task at a time, in turn, so that the load of the machine falls on both; a row shows the
medians. `--measure cpu` counts processor time instead, which other processes do not disturb; use it with
`--threads 1` (idle threads of a pool spin, on either side).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
GEN = ROOT / "tests/fixtures/gen"
PICTURES = ROOT / "tests/fixtures/processor/images"
# what the README names processors by, the first that /proc/cpuinfo has
KINDS = {"amx_tile": "amx", "avx512f": "avx512", "avx2": "avx2"}

GREEDY = {"task": "generate", "tokens": 17, "minus": {"task": "generate", "tokens": 1}, "per": 16}
BEAM = {"task": "generate", "tokens": 17, "beams": 5, "minus": {"task": "generate", "tokens": 1, "beams": 5}, "per": 16}

# name, task; `minus` is subtracted and `per` divides what is left
INFERENCE = [
    ("vision, batch 1", {"task": "vision", "batch": 1}),
    ("vision, batch 8", {"task": "vision", "batch": 8}),
    ("Q-Former, batch 1", {"task": "qformer", "batch": 1}),
    ("prefill and first token, 40 positions", {"task": "generate", "tokens": 1}),
    ("greedy, per token", GREEDY),
    ("beam 5, per token", BEAM),
    ("picture file to caption of 10 tokens", {"task": "caption", "tokens": 10}),
    ("checkpoint load", {"task": "load"}),
]
TRAINING = [
    ("training step, stage 1, stored features, batch 8", {"task": "stage1", "batch": 8}),
    ("training step, stage 2, batch 2", {"task": "train", "batch": 2}),
]
# so short that several are timed at once
SMALL = [
    ("training step, stage 1, stored features, batch 16", {"task": "stage1", "batch": 16, "repeat": 8, "per": 8}),
    ("training step, stage 2, batch 16", {"task": "train", "batch": 16, "repeat": 8, "per": 8}),
]
DECODING = [task for task in INFERENCE if "token" in task[0]]
VISION = [task for task in INFERENCE if "vision" in task[0]]

SMALL_TITLE = "the bundled model (9.8 M parameters, its own weights), f32 against f32"

# title, checkpoint, our dtype, our dtype of the language model, theirs, tasks
CASES = [
    ("ViT-g + OPT-2.7B, f32 against f32", "opt-2.7b", "f32", None, "f32", INFERENCE + TRAINING),
    ("ViT-g + OPT-2.7B, bf16 against bf16", "opt-2.7b", "bf16", None, "bf16", INFERENCE),
    ("ViT-g, bf16 against bf16 with torch.compile", "opt-2.7b", "bf16", None, "bf16-compile", VISION),
    ("OPT-2.7B, int8 against bf16", "opt-2.7b", "bf16", "int8", "bf16", DECODING),
    ("OPT-2.7B, int4 against bf16", "opt-2.7b", "bf16", "int4", "bf16", DECODING),
    ("ViT-L + Flan-T5-XL, f32 against f32", "flan-t5-xl", "f32", None, "f32", INFERENCE),
    ("ViT-L + Flan-T5-XL, bf16 against bf16", "flan-t5-xl", "bf16", None, "bf16", INFERENCE),
    (SMALL_TITLE, "nano", "f32", None, "f32", SMALL),
]


def environment(threads):
    """Equal threads on both sides; inputs of products with bf16 weights are rounded on ours too, on any processor."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    return dict(os.environ) | {"BLIP2_BF16": "fast"} | {name: str(threads) for name in names}


class Side:
    def __init__(self, command, threads):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=environment(threads), cwd=HERE
        )
        self.load_ms = self.read()["load_ms"]

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"a worker ended early: {self.process.args}")
        return json.loads(line)

    def ask(self, job):
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def measure(side, job, key):
    job = dict(job)
    minus, per = job.pop("minus", None), job.pop("per", 1)
    job.setdefault("image", str(sorted(PICTURES.glob("*.jpg"))[0]))
    value = side.ask(job)
    peak = value["peak_mb"]
    time = value[key]
    if minus:
        time -= side.ask(minus)[key]
    return time / per, peak


def first_caption(command, threads):
    env = environment(threads)
    before = os.times()
    import time

    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall_ms": (time.perf_counter() - start) * 1e3, "cpu_ms": cpu * 1e3}


def compare(folder, case, args):
    """Rows of one case: ours and theirs in alternation."""
    _, _, ours_dtype, llm, theirs_dtype, tasks = case
    tasks = [task for task in tasks if not args.only or args.only in task[0]]
    if not tasks:
        return []
    ours = Side([str(args.worker), args.backend, str(folder), ours_dtype, *([llm] if llm else [])], args.threads)
    theirs = Side([sys.executable, str(HERE / "torch_worker.py"), str(folder), theirs_dtype, args.device], args.threads)
    rows = []
    key = f"{args.measure}_ms"
    for name, job in tasks:
        times, peaks = ([], []), [0, 0]
        # two whole models of the peer do not fit
        once = job["task"] == "load" and not args.layers
        if once:
            times = ([ours.load_ms], [theirs.load_ms])
        for round_ in range(0 if once else args.rounds + 1):
            for i, side in enumerate((ours, theirs)):
                time, peak = measure(side, job, key)
                peaks[i] = peak
                if round_:  # the first round warms up
                    times[i].append(time)
        a, b = (statistics.median(t) for t in times)
        rows.append({"task": name, "ours_ms": a, "theirs_ms": b, "ours_mb": peaks[0], "theirs_mb": peaks[1]})
        print(f"  {name:50} {a:10.1f} {b:10.1f} ms   x{ratio(rows[-1]):.2f}", file=sys.stderr, flush=True)
    ours.close()
    theirs.close()
    return rows


def cases(args):
    """Those asked for that fit: two models of the whole size do so in bf16 only."""
    fitting = CASES if args.layers else [case for case in CASES if case[1] == "opt-2.7b" and case[4] == "bf16"]
    return [case for case in fitting if not args.case or args.case in case[0]]


def checkpoint(base, kind, layers):
    """A random checkpoint, made once per folder, or the bundled one."""
    if kind == "nano":
        return ROOT / "assets/models/nano"
    folder = base / f"{kind}-{layers or 'whole'}"
    if not (folder / "config.json").exists():
        options = ["--model", kind, "--vision", {"opt-2.7b": "g", "flan-t5-xl": "l"}[kind]]
        options += ["--float32", "--layers", str(layers)] if layers else []
        script = [sys.executable, "random_published.py", str(folder), *options]
        subprocess.run(script, cwd=GEN, check=True, stdout=subprocess.DEVNULL)
    return folder


START = "command line"
ORDER = [case[0] for case in CASES] + [START]


def machine():
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "?")
    return f"{cpu}, {os.cpu_count()} logical cores, {platform.system()} {platform.machine()}"


def kept(args):
    """Results of an earlier run under the same conditions that this one, of some cases only, leaves as they are."""
    path = args.results / f"{stem(args)}.json"
    if not args.case or args.only or not path.exists():
        return []
    record = json.loads(path.read_text())
    same = record["conditions"] == conditions(args)
    return [result for result in record["results"] if same and args.case not in result["title"]]


def kind():
    """What results are named after: the kind of this processor."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return next((kind for flag, kind in KINDS.items() if flag in flags), platform.machine())


def stem(args):
    """Name of the files of results."""
    return "-".join(["speed", args.device if args.device != "cpu" else kind()] + ["full"] * (args.layers == 0))


def ratio(row):
    """Time of torch / our time."""
    return row["theirs_ms"] / max(row["ours_ms"], 1e-9)


def conditions(args):
    layers = f"{args.layers} layers in the image encoder and in the language model (12 in the Q-Former)"
    return (
        f"{machine()}. {args.threads} thread(s), medians of {args.rounds}, "
        f"{'processor' if args.measure == 'cpu' else 'wall'} time. torch {version('torch')}, transformers "
        f"{version('transformers')} (eager where nothing else is said). Random weights at full width and full vocabulary "
        f"with {layers if args.layers else 'all layers'}. Against bf16 ours "
        "runs with `BLIP2_BF16=fast`, which rounds the inputs of products as torch does."
    )


def markdown(results, args):
    lines = [
        "# Speed and memory against transformers on torch",
        "",
        conditions(args),
        "",
        "Ratios above 1 are in our favour. Peak memory is that of the process up to the end of the task, in the "
        "order of the table. Regenerate with `tests/peers/speed/run.sh`.",
    ]
    for result in results:
        lines += ["", f"## {result['title']}", "", "| Task | ours, ms | torch, ms | ratio | ours, MB | torch, MB |"]
        lines += ["|---|--:|--:|--:|--:|--:|"]
        for r in result["rows"]:
            memory = [f"{r[k]:.0f}" if r.get(k) else "" for k in ("ours_mb", "theirs_mb")]
            lines.append(
                f"| {r['task']} | {r['ours_ms']:.1f} | {r['theirs_ms']:.1f} | {ratio(r):.2f} | {memory[0]} | {memory[1]} |"
            )
    return "\n".join(lines) + "\n"


def readme(folder):
    """Writes the ratios in short into the README, from what was measured so far."""
    records = [(path.stem, json.loads(path.read_text())) for path in sorted(folder.glob("speed-*.json"))]
    path = ROOT / "README.md"
    begin, end = "<!-- speed: written by tests/peers/speed/run.py -->", "<!-- /speed -->"
    before, rest = path.read_text().split(begin)
    lines = "\n\n".join("\n".join(summary(name, record)) for name, record in records)
    path.write_text("\n".join([before + begin, "", lines, "", end + rest.split(end)[1]]))


def summary(name, record):
    """The ratios of one record, as lines of Markdown; `name` is that of its files."""
    results = [result for result in record["results"] if "compile" not in result["title"]]
    # what stands for itself is told below the table
    alone = (SMALL_TITLE, START)
    cases = [result for result in results if result["title"] not in alone]
    tasks = list(dict.fromkeys(row["task"] for result in cases for row in result["rows"]))
    lines = [
        f"{record['conditions']} Time of torch / our time; above 1 is in our favour "
        f"([every figure](tests/peers/results/{name}.md), [plot](tests/peers/results/{name}.svg)).",
        "",
        "| | " + " | ".join(result["title"].replace(" against ", " / ") for result in cases) + " |",
        "|---|" + "--:|" * len(cases),
    ]

    def line(name, cell):
        cells = []
        for result in cases:
            row = next((row for row in result["rows"] if row["task"] == name), None)
            cells.append(cell(row) if row else "")
        return " | ".join(cells)

    for task in tasks:
        lines.append(f"| {task} | {line(task, lambda row: format(ratio(row), '.2f'))} |")
    caption = next((task for task in tasks if "caption" in task), tasks[-1])
    memory = line(caption, lambda row: format(row["theirs_mb"] / row["ours_mb"], ".2f"))
    lines.append(f"| peak memory up to the caption, torch / ours | {memory} |")
    for result in results:
        for row in result["rows"] if result not in cases else []:
            seconds = f"{row['ours_ms'] / 1e3:.3g} s against {row['theirs_ms'] / 1e3:.3g} s"
            of = f"; {SMALL_TITLE}" if result["title"] == SMALL_TITLE else ""
            lines += ["", f"{row['task'].capitalize()}{of}: {seconds}, {ratio(row):.1f} times."]
    return lines


def svg(results):
    """Bars of the ratios, one group per result; plain SVG so that nothing need be installed to see or make it."""
    bars = [(res["title"], r["task"], ratio(r)) for res in results for r in res["rows"]]
    row, left, width = 18, 430, 900
    top = max(2.0, *(min(b[2], 12) for b in bars)) if bars else 2.0
    scale = (width - left - 60) / top
    out, y, title = [], 20, None
    for name, task, value in bars:
        if name != title:
            y += 14
            out.append(f'<text x="8" y="{y}" font-weight="bold">{name}</text>')
            y += row
            title = name
        length = min(value, 12) * scale
        colour = "#2a7" if value >= 1 else "#c63"
        out.append(f'<text x="{left - 8}" y="{y}" text-anchor="end">{task}</text>')
        out.append(f'<rect x="{left}" y="{y - 11}" width="{length:.1f}" height="13" fill="{colour}"/>')
        out.append(f'<text x="{left + length + 4:.1f}" y="{y}">{value:.2f}</text>')
        y += row
    one = left + scale
    frame = f'<line x1="{one:.1f}" y1="20" x2="{one:.1f}" y2="{y}" stroke="#888" stroke-dasharray="4 3"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y + 30}" font-family="sans-serif" font-size="12">'
    note = f'<text x="{left}" y="{y + 16}">time of torch / our time (dashed: equal)</text>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *out, frame, note, "</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--layers", type=int, default=2, help="of encoder and language model; 0: all, OPT in bf16 only")
    parser.add_argument("--backend", default="flex", help="ours; the worker must be built with that feature")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="theirs")
    parser.add_argument("--only", help="tasks whose name contains this")
    parser.add_argument("--case", help="tables whose title contains this; others keep what was measured before")
    parser.add_argument("--keep", type=Path, help="folder for the random checkpoints, kept for the next run")
    parser.add_argument("--worker", type=Path, default=ROOT / "target/release/examples/peer_speed")
    parser.add_argument("--blip2", type=Path, default=ROOT / "target/release/blip2")
    parser.add_argument("--results", type=Path, default=HERE.parent / "results")
    parser.add_argument("--report", action="store_true", help="only write the README's section again")
    args = parser.parse_args()
    if args.report:
        return readme(args.results)
    if not args.worker.exists():
        sys.exit(f"{args.worker} is missing; run: cargo build --release --example peer_speed")
    base = args.keep or Path(tempfile.mkdtemp(prefix="peer-speed-"))
    base.mkdir(parents=True, exist_ok=True)
    results = []
    for case in cases(args):
        print(case[0], file=sys.stderr, flush=True)
        rows = compare(checkpoint(base, case[1], args.layers), case, args)
        results += [{"title": case[0], "rows": rows}] if rows else []
    folder = checkpoint(base, "opt-2.7b", args.layers)
    picture = str(sorted(PICTURES.glob("*.jpg"))[0])
    if args.blip2.exists() and not args.only and (not args.case or args.case in START):
        ours = [str(args.blip2), "caption", "--model", str(folder), "--dtype", "bf16", "--prompt", "a photo of", picture]
        theirs = [sys.executable, str(HERE / "torch_caption.py"), str(folder), picture]
        pairs = [(first_caption(ours, args.threads), first_caption(theirs, args.threads)) for _ in range(args.rounds)]
        row = {"task": "process start to first caption, bf16"}
        for i, name in enumerate(("ours_ms", "theirs_ms")):
            row[name] = statistics.median(pair[i][f"{args.measure}_ms"] for pair in pairs)
        results.append({"title": START, "rows": [row]})
    args.results.mkdir(parents=True, exist_ok=True)
    record = {"conditions": conditions(args), "results": kept(args) + results}
    record["results"].sort(key=lambda result: ORDER.index(result["title"]))
    results = record["results"]
    contents = {"md": markdown(results, args), "svg": svg(results), "json": json.dumps(record, indent=2) + "\n"}
    for kind, content in contents.items():
        (args.results / f"{stem(args)}.{kind}").write_text(content)
    if not args.only:
        readme(args.results)
    print(markdown(results, args))


if __name__ == "__main__":
    main()
