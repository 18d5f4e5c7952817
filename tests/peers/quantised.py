"""What packing the language model's matrices costs in accuracy, measured on a checkpoint with a real language model.

    pip install numpy safetensors torch
    python tests/peers/quantised.py --model DIR --picture PNG --blip2 target/release/blip2 [--out tests/peers/results/quantised.md]

For every prompt below and every dtype: the distribution of the next token against the one in f32 (Kullback-Leibler
divergence in nats, whether the best token is the same), and 20 greedy tokens against those in f32 (share of equal tokens
before and after the first difference, texts that are equal as a whole).
"""

import argparse
import os

import numpy as np

from commands import greedy, report, tensors

DTYPES = ("bf16", "int8", "int4")
TOKENS = 20
PROMPTS = (
    "The capital of France is", "Water boils at a temperature of", "Once upon a time there was a", "The cat sat on the",
    "In the morning she drinks a cup of", "The largest planet in the solar system is", "Two plus two equals",
    "He opened the door and saw", "The best way to learn a language is", "A dog is an animal that",
    "The sky is blue because", "To make bread you need flour, water and", "The opposite of hot is",
    "My favourite season is winter because", "The train leaves the station at", "Photosynthesis is the process by which",
    "The president of the company said that", "On Saturday we went to the", "The book is on the", "Please close the",
    "The human heart has four", "A triangle has three", "She plays the piano and he plays the", "The river flows into the",
    "Bees make", "The first man on the moon was", "An apple a day keeps the", "It was raining, so he took his",
    "The sun rises in the", "Computers store information as", "The children are playing in the", "Gold is a precious",
)  # fmt: skip


def log_softmax(logits):
    logits = logits.astype(np.float64).reshape(-1)
    top = logits.max()
    return logits - top - np.log(np.exp(logits - top).sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--picture", default="tests/fixtures/parity/images/boat.png")
    parser.add_argument("--blip2", default="target/release/blip2")
    parser.add_argument("--out")
    options = parser.parse_args()

    def logits(prompt, dtype):
        command = ("trace", options.picture, "--prompt", prompt, "--model", options.model, "--dtype-llm", dtype)
        return log_softmax(tensors(options.blip2, *command)["logits"][0].numpy())

    def tokens(prompt, dtype):
        return greedy(options.blip2, options.picture, prompt, TOKENS, "--model", options.model, "--dtype-llm", dtype)

    reference = {prompt: (logits(prompt, "f32"), tokens(prompt, "f32")) for prompt in PROMPTS}
    lines = [
        f"{len(PROMPTS)} prompts, {TOKENS} greedy tokens each, against f32; `{os.path.basename(os.path.normpath(options.model))}`.",
        "",
        "| Language model in | KL, mean | KL, worst | same best token | equal tokens | equal up to the first difference | equal texts |",
        "|---|---|---|---|---|---|---|",
    ]
    for dtype in DTYPES:
        divergence, best, equal, prefix, whole = [], [], [], [], []
        for prompt, (expected, sequence) in reference.items():
            found, other = logits(prompt, dtype), tokens(prompt, dtype)
            divergence.append(float((np.exp(expected) * (expected - found)).sum()))
            best.append(expected.argmax() == found.argmax())
            same = [a == b for a, b in zip(sequence, other)]
            equal.append(np.mean(same))
            prefix.append((same + [False]).index(False) / len(sequence))
            whole.append(sequence == other)
        share = lambda values: f"{100 * np.mean(values):.0f} %"
        cells = [f"{np.mean(divergence):.2g}", f"{max(divergence):.2g}", *map(share, (best, equal, prefix, whole))]
        lines.append(f"| {dtype} | {' | '.join(cells)} |")
    report(lines, options.out)


if __name__ == "__main__":
    main()
