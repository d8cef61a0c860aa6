#!/usr/bin/env bash
# Does the recipe hold on real text? What two cores can say of it: of SmolLM2-135M the last layers learn, from
#   REWARD=lexical or contextual   a reward planted in the model's own answers to PROMPTS (several files: with spaces)
#   REWARD=ifeval                  IFEval's verifier of its own answers to PROMPTS, IFEval's file, whose last rows are held out
#   REWARD=none                    the labels of PROMPTS, a file of pairs, of which others are held out
# SEEDS draw planted labels, oracles and the order of pairs anew, not prompts, answers and folds. A finished step is not
# redone. MODEL and PROMPTS are paths or hub names; others need another OUT. JOBS seeds run at once.
set -eu
MODEL=${MODEL:-HuggingFaceTB/SmolLM2-135M-Instruct} PROMPTS=${PROMPTS:-google/IFEval} OUT=${OUT:-runs/evidence}
export MODEL OUT REWARD=${REWARD:-lexical} SETTINGS=${SETTINGS:-1} OMP_WAIT_POLICY=passive
SEEDS=${SEEDS:-1 2 3} JOBS=${JOBS:-1}

mkdir -p "$OUT"
touch "$OUT/of"
case $REWARD in lexical | contextual) kind=planted ;; *) kind=$REWARD ;; esac
if [ -s "$OUT/of" ] && [ "$(cat "$OUT/of")" != "$MODEL $PROMPTS $kind" ]; then
    echo "$OUT is of $(cat "$OUT/of"), not of $MODEL $PROMPTS $kind: give another OUT" >&2
    exit 1
fi
echo "$MODEL $PROMPTS $kind" > "$OUT/of"

answers() { # to the prompts $2 of the part $1, $3 each of at most $4 tokens
    sepo generate --model reference="$MODEL" --prompts "$2" --samples "$3" --max-new-tokens "$4" --output-dir "$OUT/answers-$1"
}
part() { python -m benchmarks.evidence.real_text "$@" --output-dir "$OUT/prompts"; }
case $kind in
    planted)
        part prompts $PROMPTS --train "${TRAIN:-512}" --test "${TEST:-96}"
        answers train "$OUT/prompts/train.jsonl" 2 24
        answers test "$OUT/prompts/test.jsonl" 4 24
        ;;
    ifeval)
        answers train "$PROMPTS[:${TRAIN:-405}]" 4 64
        answers test "$PROMPTS[${TRAIN:-405}:]" 4 64
        ;;
    none)
        part pairs "$PROMPTS" --model "$MODEL" --train "${TRAIN:-400}" --test "${TEST:-200}"
        answers test "$OUT/prompts/test.jsonl" 2 24
        ;;
esac

seed() { # everything of seed $1
    set -eu
    export LABELS=$1
    local at=$OUT/$REWARD-$1 pairs=$OUT/prompts/train.jsonl held_out=() verifier=benchmarks.evidence.real_text:bradley_terry
    two() { python -m benchmarks.evidence.two_cores "$@"; }
    mkdir -p "$at"
    if [ "$REWARD" = none ]; then
        held_out=(--held-out "$OUT/prompts/test.jsonl")
    else
        [ "$REWARD" != ifeval ] || verifier=ifeval
        pairs=$at/train.jsonl
        sepo pair "$OUT/answers-train" --verifier "$verifier" --keep-cut --output "$pairs"
    fi
    two oracles --model "$MODEL" --dataset "$pairs" --cache "$OUT/lower.pt" --seed "$1" --output-dir "$at/scores"
    sepo denoise --scores "$at/scores" --output-dir "$at/denoised" --calibrate
    sepo denoise --scores "$at/scores" --output-dir "$at/counted" --pool counts
    case $REWARD in
        lexical | contextual)
            python -m benchmarks.evidence.real_text truth --reward "$REWARD" --model "$MODEL" "$at/scores" "$at/denoised"
            ;;
    esac
    two policies --model "$MODEL" --scores "$at/scores" --denoised "$at/denoised" --counted "$at/counted" \
        --samples "$OUT/answers-test" --reward "$REWARD" "${held_out[@]}" --cache "$OUT/lower.pt" --seed "$1" \
        --settings "$SETTINGS" --output "$at/policies.jsonl"
}
export -f seed
printf '%s\n' $SEEDS | xargs -P "$JOBS" -I{} bash -c 'seed {}'
python -m benchmarks.evidence.two_cores table "$OUT/$REWARD"-*/policies.jsonl
