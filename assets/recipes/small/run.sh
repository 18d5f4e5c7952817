#!/bin/sh
# The small recipe: real pretrained parts from PyPI, both stages on the nano model's pictures, evaluation on an unseen
# style. Run it in the folder of the workspace; every step goes on where it stopped. Python is used before training only.
#   sh assets/recipes/small/run.sh [WHEELS]
set -eu
R=assets/recipes/small
TRAIN="cargo run --release --quiet -p blip2-train --"
FLUENT="assets/data/emoji/fluent-{train,held}.tar"

python $R/convert.py --wheels "${1:-runs/small/wheels}" --out runs/small/parts
$TRAIN train $R/stage1.toml --out runs/small/stage1
$TRAIN train $R/stage2.toml --out runs/small/stage2
$TRAIN eval retrieval "$FLUENT" --model runs/small/stage1/export --out runs/small/eval-retrieval
$TRAIN eval caption "$FLUENT" --prompt "" --model runs/small/stage2/export --out runs/small/eval-caption
