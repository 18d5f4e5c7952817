"""The paper's claims in small, as one table and one plot: does stage 1 help stage 2, does grounded generation help
retrieval, does a larger frozen language model help captions?

    python assets/recipes/nano/ablation.py RUNS OUT [--steps 600] [--trainer "cargo run --release -q -p blip2-train --"]

RUNS is what run.sh wrote: the encoder, its features, the contrast run and the language model are taken from it.
Every arm trains for the same number of steps and is evaluated on the Fluent style, which nobody trains on. OUT receives
the runs, `ablation.md`, `ablation.json` and `ablation.svg`. Arms that are there already are not run again.
"""

import argparse
import json
import os
import shlex
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
FLUENT = "assets/data/emoji/fluent-{train,held}.tar"
SMALL = {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 256, "num_hidden_layers": 2, "num_attention_heads": 2}


class Arms:
    def __init__(self, options):
        self.options = options
        self.trainer = shlex.split(options.trainer)
        os.makedirs(options.out, exist_ok=True)
        with open(os.path.join(HERE, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        config["text_config"] |= SMALL
        self.small = os.path.join(options.out, "small.json")
        with open(self.small, "w", encoding="utf-8") as file:
            json.dump(config, file, indent=2)

    def of(self, name):
        return os.path.join(self.options.runs, name)

    def train(self, name, recipe, *sets):
        """The run's folder, trained if it is not there."""
        folder = os.path.join(self.options.out, name)
        if not os.path.isdir(os.path.join(folder, "export")):
            settings = [part for item in sets for part in ("--set", item)]
            recipe = os.path.join(self.options.recipes, recipe + ".toml")
            subprocess.run([*self.trainer, "train", recipe, *settings, "--out", folder], check=True)
        return folder

    def bridge(self, name, recipe, *sets):
        """A run on the stored features."""
        vision = self.options.vision or self.of("vit")
        settings = [f"model.vision_from={vision}", f"train.features={self.of('features')}"]
        return self.train(name, recipe, *settings, f"schedule.max_iters={self.options.steps}", *sets)

    def scores(self, task, run, *more):
        folder = f"{run}-{task}"
        if not os.path.exists(os.path.join(folder, "scores.json")):
            model = os.path.join(run, "export")
            command = [*self.trainer, "eval", task, FLUENT, "--model", model, "--out", folder, *more]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with open(os.path.join(folder, "scores.json"), encoding="utf-8") as file:
            scores = {entry["metric"]: entry["value"] for entry in json.load(file)["scores"]}
        with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        held = [(row["step"], row["loss"]) for row in rows if row["kind"] == "validation"]
        return {"scores": scores, "validation": held}


def plot(path, arms):
    """Bars of the first figure of every arm; arms of one question have one colour."""
    width, height, left = 560, 26 * len(arms) + 20, 250
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">']
    parts.append('<rect width="100%" height="100%" fill="white"/>')
    colours = {"stage 1": "#0b62a4", "generation": "#3d9140", "language model": "#d3772c"}
    for row, (question, arm, metric, value, _) in enumerate(arms):
        top = 10 + 26 * row
        parts.append(f'<text x="{left - 8}" y="{top + 14}" text-anchor="end">{arm}</text>')
        bar = (width - left - 130) * value / 100
        parts.append(f'<rect x="{left}" y="{top}" width="{bar:.1f}" height="20" fill="{colours[question]}"/>')
        parts.append(f'<text x="{left + bar + 6:.1f}" y="{top + 14}">{value:.1f} {metric}</text>')
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join([*parts, "</svg>"]) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs")
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--trainer", default="cargo run --release --quiet -p blip2-train --")
    parser.add_argument("--recipes", default=HERE)
    parser.add_argument("--language", help="frozen language model [default: RUNS/lm_context]")
    parser.add_argument("--vision", help="frozen encoder [default: RUNS/vit]")
    options = parser.parse_args()
    arms = Arms(options)
    large = f"model.language_from={options.language or arms.of('lm_context')}"
    vision = options.vision or arms.of("vit")

    small = f"model.config={arms.small}"
    lm = arms.train("lm-small", "lm", small)
    context = arms.train("lm-small-context", "lm_context", small, f"model.language_from={lm}")

    start = f"model.bridge_from={arms.of('contrast')}"
    three = arms.bridge("stage1-three", "stage1", start)
    two = arms.bridge("stage1-two", "stage1", start, "stage1.itg_weight=0")
    bridge = f"model.bridge_from={three}"
    with_stage1 = arms.bridge("stage2-with", "stage2", large, bridge)
    without = arms.bridge("stage2-without", "stage2", large, f"model.bridge_from={vision}")
    smaller = arms.bridge("stage2-small", "stage2", small, f"model.language_from={context}", bridge)

    table = []
    for question, arm, run in (
        ("stage 1", "stage 2 after stage 1", with_stage1),
        ("stage 1", "stage 2 alone", without),
        ("language model", "frozen OPT, 4 layers of 128", with_stage1),
        ("language model", "frozen OPT, 2 layers of 64", smaller),
    ):
        found = arms.scores("caption", run, "--prompt", "", "--length-penalty", "0")
        table.append((question, arm, "% exact", found["scores"]["exact match"], found))
    for arm, run in (("ITC + ITM + ITG", three), ("ITC + ITM", two)):
        found = arms.scores("retrieval", run, "--k", "16")
        table.append(("generation", arm, "% R@1", found["scores"]["TR@1"], found))

    lines = [
        f"{options.steps} steps an arm, Fluent ({FLUENT}, 1,599 pictures), a style that nobody trains on.",
        "",
        "| Question | Arm | Exact captions, % | CIDEr x 100 | Picture to text R@1, contrast | after matching | Text to picture R@1, contrast | after matching | Validation loss |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for question, arm, _, _, found in table:
        scores, cells = found["scores"], []
        for metric, digits in (("exact match", 1), ("CIDEr", 2), ("ITC TR@1", 1), ("TR@1", 1), ("ITC IR@1", 1), ("IR@1", 1)):
            cells.append(f"{scores[metric]:.{digits}f}" if metric in scores else "")
        loss = f"{found['validation'][-1][1]:.3f}" if found["validation"] else ""
        lines.append(f"| {question} | {arm} | {' | '.join(cells)} | {loss} |")
    with open(os.path.join(options.out, "ablation.md"), "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    with open(os.path.join(options.out, "ablation.json"), "w", encoding="utf-8") as file:
        json.dump([dict(zip(("question", "arm", "metric", "value", "found"), row)) for row in table], file, indent=1)
    plot(os.path.join(options.out, "ablation.svg"), table)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
