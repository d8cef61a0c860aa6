#!/usr/bin/env bash
# Does the recipe hold on real text? What two cores can say of it: a reward planted in a model's own answers, of which the
# last layers of SmolLM2-135M learn. SEEDS draw labels, oracles and the order of pairs anew, not prompts, answers and
# folds. A finished step is not redone. MODEL and PROMPTS are paths or hub names, a prompt a row (several files: with spaces between them); others
# need another OUT. JOBS seeds run at once.
set -eu
MODEL=${MODEL:-HuggingFaceTB/SmolLM2-135M-Instruct} PROMPTS=${PROMPTS:-google/IFEval} OUT=${OUT:-runs/evidence}
export MODEL OUT REWARD=${REWARD:-lexical} OMP_WAIT_POLICY=passive
SEEDS=${SEEDS:-1 2 3} JOBS=${JOBS:-1} TRAIN=${TRAIN:-512} TEST=${TEST:-96}

mkdir -p "$OUT"
touch "$OUT/of"
if [ -s "$OUT/of" ] && [ "$(cat "$OUT/of")" != "$MODEL $PROMPTS" ]; then
    echo "$OUT is of $(cat "$OUT/of"), not of $MODEL $PROMPTS: give another OUT" >&2
    exit 1
fi
echo "$MODEL $PROMPTS" > "$OUT/of"

python -m benchmarks.evidence.real_text prompts $PROMPTS --train "$TRAIN" --test "$TEST" --output-dir "$OUT/prompts"
answers() { # to the prompts $1, $2 each
    sepo generate --model reference="$MODEL" --prompts "$OUT/prompts/$1.jsonl" --samples "$2" --max-new-tokens 24 \
        --output-dir "$OUT/answers-$1"
}
answers train 2
answers test 4

seed() { # everything of seed $1
    set -eu
    export LABELS=$1
    local at=$OUT/$REWARD-$1
    two() { python -m benchmarks.evidence.two_cores "$@"; }
    mkdir -p "$at"
    sepo pair "$OUT/answers-train" --verifier benchmarks.evidence.real_text:bradley_terry --keep-cut --output "$at/train.jsonl"
    two oracles --model "$MODEL" --dataset "$at/train.jsonl" --cache "$OUT/lower.pt" --seed "$1" --output-dir "$at/scores"
    sepo denoise --scores "$at/scores" --output-dir "$at/denoised" --calibrate
    python -m benchmarks.evidence.real_text truth --reward "$REWARD" --model "$MODEL" "$at/scores" "$at/denoised"
    two policies --model "$MODEL" --scores "$at/scores" --denoised "$at/denoised" --samples "$OUT/answers-test" \
        --reward "$REWARD" --cache "$OUT/lower.pt" --seed "$1" --output "$at/policies.jsonl"
}
export -f seed
printf '%s\n' $SEEDS | xargs -P "$JOBS" -I{} bash -c 'seed {}'
python -m benchmarks.evidence.two_cores table "$OUT/$REWARD"-*/policies.jsonl
