#!/usr/bin/env bash
# Does the recipe hold on real text? What two cores can say of it: a planted reward in real answers, of which the last
# layers of SmolLM2-135M learn. A finished step is not redone. MODEL and PAIRS are paths or hub names; others need another OUT.
set -eu
MODEL=${MODEL:-HuggingFaceTB/SmolLM2-135M-Instruct} PAIRS=${PAIRS:-Anthropic/hh-rlhf} OUT=${OUT:-runs/evidence}
export OMP_WAIT_POLICY=passive
real() { python -m benchmarks.evidence.real_text "$@"; }
two() { python -m benchmarks.evidence.two_cores "$@"; }

mkdir -p "$OUT"
touch "$OUT/of"
if [ -s "$OUT/of" ] && [ "$(cat "$OUT/of")" != "$MODEL $PAIRS" ]; then
    echo "$OUT is of $(cat "$OUT/of"), not of $MODEL $PAIRS: give another OUT" >&2
    exit 1
fi
echo "$MODEL $PAIRS" > "$OUT/of"

at=$OUT/lexical
real pairs "$PAIRS" --reward lexical --train 240 --test 64 --output-dir $at
python -m benchmarks.evidence.counts --model "$MODEL" $at/train.jsonl
two oracles --model "$MODEL" --dataset $at/train.jsonl --cache $OUT/lower.pt --output-dir $at/scores
sepo denoise --scores $at/scores --output-dir $at/denoised --calibrate
real truth --reward lexical --model "$MODEL" $at/scores $at/denoised
python -m benchmarks.evidence.contexts --model "$MODEL" --cache $OUT/lower.pt --reward lexical $at/scores

head -n 48 $at/test.jsonl > $at/prompts.jsonl
sepo generate --model reference="$MODEL" --prompts $at/prompts.jsonl --samples 4 --max-new-tokens 24 --output-dir $at/samples
two policies --model "$MODEL" --scores $at/scores --denoised $at/denoised --samples $at/samples --reward lexical \
    --cache $OUT/lower.pt --output $at/policies.jsonl
two table $at/policies.jsonl
