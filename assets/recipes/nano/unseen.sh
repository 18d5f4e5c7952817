#!/bin/sh
# The unseen-concept split: a shorter version of run.sh in which no part has seen a picture of a held-out concept, in no
# style. The two text models are as in run.sh: they have read the names, as BERT and OPT have read the words of a picture
# that BLIP-2 is shown for the first time. Run it in the folder of the workspace; every step goes on where it stopped.
#   sh assets/recipes/nano/unseen.sh [RUNS] [WHEELS]
# About an hour and a half on two cores without AVX-512, most of it for the encoder.
set -eu
RUNS="${1:-runs/unseen}"
WHEELS="${2:-$RUNS/wheels}"
R=assets/recipes/nano
TRAIN="cargo run --release --quiet -p blip2-train --"
HELD="assets/data/emoji/fluent-held.tar"

python assets/recipes/small/convert.py --wheels "$WHEELS" --parts vision qformer --out "$RUNS/parts"
python $R/encoder.py --vision "$RUNS/parts/vision" --out "$RUNS/cut"
python $R/align.py --concepts train --vit "$RUNS/cut" --steps 120 --out "$RUNS/vit1"
python $R/align.py --concepts train --vit "$RUNS/vit1" --prototypes --steps 160 --out "$RUNS/vit"
python $R/bert.py --teacher "$RUNS/parts/qformer" --steps 300 --out "$RUNS/bert"
python $R/vary.py --concepts train --copies 2 --distort 0.2 --out "$RUNS/distorted"
python $R/vary.py --concepts train --out "$RUNS/varied"

STYLES="{noto,twemoji,blob,emojione,mono,openmoji,fxemoji}"
MIXED="[{path='assets/data/emoji/$STYLES-train.tar',samples=8495,ratio=0.4},\
{path='$RUNS/{varied,distorted}/$STYLES.tar',samples=33980,ratio=0.6}]"
# stage 1 and stage 2 with the settings of run.sh, fewer steps and these pictures
train() {
  RECIPE=$1 OUT=$2 STEPS=$3
  shift 3
  $TRAIN train "$R/$RECIPE.toml" --set schedule.max_iters="$STEPS" --set model.vision_from="$RUNS/vit" \
    --set data.train="$MIXED" --set data.buffer=30000 --set validation.data="[{path='$HELD'}]" \
    --set validation.batches=1 --set train.features="$RUNS/features" --out "$RUNS/$OUT" "$@"
}
train contrast contrast 400 --set model.bridge_from="$RUNS/vit" --set model.qformer_from="$RUNS/bert" \
  --set model.qformer_dropout=0.1
train stage1 stage1 250 --set model.bridge_from="$RUNS/contrast" --set model.qformer_dropout=0.1
train stage2 stage2 1000 --set model.bridge_from="$RUNS/stage1" --set model.language_from=assets/models/nano

# a known style and the unseen one, and beside them the bundled models, which have seen these concepts
for STYLE in noto fluent; do
  DATA="assets/data/emoji/$STYLE-held.tar"
  $TRAIN eval retrieval "$DATA" --k 0 --model "$RUNS/stage1/export" --out "$RUNS/eval/retrieval-$STYLE"
  $TRAIN eval caption "$DATA" --prompt "" --length-penalty 0 --model "$RUNS/stage2/export" --out "$RUNS/eval/caption-$STYLE"
done
$TRAIN eval retrieval "$HELD" --k 0 --model assets/models/nano-itm --out "$RUNS/eval/retrieval-seen"
$TRAIN eval caption "$HELD" --prompt "" --length-penalty 0 --model assets/models/nano --out "$RUNS/eval/caption-seen"
