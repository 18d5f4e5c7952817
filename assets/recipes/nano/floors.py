"""What retrieval gives without a Q-Former: raw pixels and the frozen encoder's own features, on the unseen style.

    pip install torch numpy pillow safetensors
    python assets/recipes/nano/floors.py --vit runs/nano/vit --teacher runs/nano/parts/qformer

Picture -> caption over the 1,599 names of Fluent. `pixels` and `features` give a name the score of its most similar
training picture (standardised, cosine); `ridge` is a linear map from features to names, and `sentence` one to MiniLM's
embedding of the name, in four regularisations each. The best is chosen *on the test pictures*, which favours the floor.
"""

import argparse
import json
import os

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import align
import bert
from fit import SPLITS, members


def concept(member):
    """The drawn thing, whatever the style: `fluent-NAME.json` -> `NAME`."""
    return os.path.basename(member).partition("-")[2].rpartition(".")[0]


def recall(scores, own):
    """R@1, 5, 10 in percent of `[queries, names]` scores; `own` is the right column of each row."""
    rank = (scores > scores.gather(1, own[:, None])).sum(1)
    return " / ".join(f"{100 * (rank < k).float().mean():.1f}" for k in (1, 5, 10))


def nearest(train, labels, test, names):
    """Per name the cosine of its most similar training picture, `[queries, names]`."""
    mean, scale = train.mean(0), 1 / (train.std(0) + 1e-6)
    unit = lambda x: F.normalize((x - mean) * scale, dim=1)
    similar = unit(test) @ unit(train).T
    out = torch.full((len(test), names), -2.0)
    return out.scatter_reduce(1, labels.expand(len(test), -1), similar, "amax")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vit", required=True, help="folder of the frozen encoder, from align.py or encoder.py")
    parser.add_argument("--teacher", required=True, help="folder with MiniLM as BERT")
    parser.add_argument("--concepts", choices=SPLITS, default="all")
    options = parser.parse_args()
    splits = SPLITS[options.concepts]
    weights = {name: t.float() for name, t in load_file(os.path.join(options.vit, "model.safetensors")).items()}
    table = align.drawings(splits)
    align.STYLES = ("fluent",)
    fluent = {name: styles["fluent"] for name, styles in align.drawings(splits).items()}
    names = {name: i for i, name in enumerate(fluent)}
    pairs = [(picture, names[name]) for name, styles in table.items() if name in names for picture in styles.values()]
    labels, own = torch.tensor([label for _, label in pairs]), torch.arange(len(names))
    pictures = [torch.stack([p for p, _ in pairs]), torch.stack(list(fluent.values()))]

    def features(images):
        with torch.no_grad():
            parts = [align.pooled(align.encode(weights, part / 255)) for part in images.split(100)]
        return torch.cat(parts)

    small = [F.interpolate(images / 255, size=16, mode="area").flatten(1) for images in pictures]
    print("pixels  ", recall(nearest(small[0], labels, small[1], len(names)), own), flush=True)
    train, test = (features(images) for images in pictures)
    print("features", recall(nearest(train, labels, test, len(names)), own), flush=True)
    mean, scale = train.mean(0), 1 / (train.std(0) + 1e-6)
    train, test = (train - mean) * scale, (test - mean) * scale
    captions = {concept(name): json.loads(content)["caption"] for name, content in members("fluent", splits) if name.endswith(".json")}
    meanings = bert.sentences(options.teacher, [captions[name] for name in names])
    meanings = F.normalize(meanings - meanings.mean(0), dim=1)
    product, target = train.T @ train, train.T @ F.one_hot(labels, len(names)).float()
    for weight in (1, 10, 100, 1000):
        logits = test @ torch.linalg.solve(product + weight * torch.eye(len(product)), target)
        print(f"ridge    {weight:5}", recall(logits, own), flush=True)
        print(f"sentence {weight:5}", recall(F.normalize(logits @ meanings, dim=1) @ meanings.T, own), flush=True)


if __name__ == "__main__":
    main()
