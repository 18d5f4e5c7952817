#!/bin/sh
# The whole recipe of the nano model, from the folder of the workspace; every step goes on where it stopped.
#   sh assets/recipes/nano/run.sh [RUNS]
set -eu
RUNS="${1:-runs/nano}"
TRAIN="cargo run --release --quiet -p blip2-train --"
R=assets/recipes/nano

$TRAIN train $R/lm.toml --out "$RUNS/lm"

$TRAIN train $R/stage1.toml --out "$RUNS/stage1" --set model.bridge_from="$RUNS/encoder" --set model.vision_from="$RUNS/encoder"
$TRAIN train $R/stage2.toml --out "$RUNS/stage2" --set model.bridge_from="$RUNS/stage1" --set model.vision_from="$RUNS/encoder" --set model.language_from="$RUNS/lm"
