"""Draws the learning curves of runs into one SVG and prints a line about each.

    python assets/recipes/nano/curves.py OUT.svg RUN...

Blue: loss of every logged step. Red: validation (Fluent, a style that is never trained on).
"""

import json
import os
import sys

WIDTH, HEIGHT, GAP = 260, 150, 40


def points(run, kind):
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [(row["step"], row["loss"]) for row in rows if row["kind"] == kind and "loss" in row]


def main():
    out, runs = sys.argv[1], sys.argv[2:]
    parts = []
    for place, run in enumerate(runs):
        train, held = points(run, "train"), points(run, "validation")
        losses = [loss for _, loss in train + held]
        low, high, last = min(losses), max(losses), train[-1][0]
        left, top = 10 + (place % 3) * (WIDTH + 20), 24 + (place // 3) * (HEIGHT + GAP)
        at = lambda step, loss: (left + WIDTH * step / last, top + HEIGHT * (high - loss) / ((high - low) or 1))
        name = os.path.basename(os.path.normpath(run))
        text = f"{name}: {train[0][1]:.2f} to {train[-1][1]:.2f} in {last} steps"
        parts.append(f'<text x="{left}" y="{top - 8}">{text}</text>')
        parts.append(f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#ccc"/>')
        line = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in train)
        parts.append(f'<polyline points="{line}" fill="none" stroke="#0b62a4"/>')
        parts += ['<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="#d33"/>'.format(*at(*point)) for point in held]
        print(text + "".join(f", validation {loss:.2f} at {step}" for step, loss in held[-1:]))
    size = f'width="{3 * (WIDTH + 20) + 10}" height="{(len(runs) + 2) // 3 * (HEIGHT + GAP) + 10}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    background = '<rect width="100%" height="100%" fill="white"/>'
    with open(out, "w", encoding="utf-8") as file:
        file.write("\n".join([head, background, *parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    main()
