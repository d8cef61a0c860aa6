#!/usr/bin/env bash
# Does an oracle hold out of distribution? After two_cores.sh, with its MODEL, OUT, REWARD (a planted one or none) and
# SEEDS: oracles learn of OTHER, a file of pairs by other writers, labelled by the same reward (none: their own labels), and
# score the pairs that two_cores.sh had its oracles score. A finished step is not redone.
set -eu
MODEL=${MODEL:-HuggingFaceTB/SmolLM2-135M-Instruct} OUT=${OUT:-runs/evidence} REWARD=${REWARD:-lexical} SEEDS=${SEEDS:-1 2 3}
export REWARD OMP_WAIT_POLICY=passive

two() { python -m benchmarks.evidence.two_cores "$@"; }
text() { python -m benchmarks.evidence.real_text "$@"; }
if [ "$(cut -d " " -f 1 "$OUT/of")" != "$MODEL" ]; then
    echo "$OUT is of $(cat "$OUT/of"), not of $MODEL" >&2
    exit 1
fi
mkdir -p "$OUT/other"
[ -e "$OUT/other/of" ] || echo "$OTHER" > "$OUT/other/of"
if [ "$(cat "$OUT/other/of")" != "$OTHER" ]; then
    echo "$OUT/other is of $(cat "$OUT/other/of"), not of $OTHER" >&2
    exit 1
fi
[ -s "$OUT/other/train.jsonl" ] || text pairs "$OTHER" --model "$MODEL" --train "${TRAIN:-400}" --test 0 --output-dir "$OUT/other"
for seed in $SEEDS; do
    near=$OUT/$REWARD-$seed far=$OUT/other-$REWARD-$seed pairs=$OUT/prompts/train.jsonl other=$OUT/other/train.jsonl
    mkdir -p "$far"
    if [ "$REWARD" != none ]; then
        pairs=$near/train.jsonl other=$far/train.jsonl
        LABELS=$seed text label "$OUT/other/train.jsonl" --output "$other"
    fi
    two oracles --model "$MODEL" --dataset "$other" --to-score "$pairs" --cache "$OUT/lower.pt" --seed "$seed" \
        --output-dir "$far/scores"
    # What unseen labels say of the scores, for the record; policies learn of what oracles say alone, without counts.
    sepo denoise --scores "$far/scores" --output-dir "$far/calibrated" --calibrate
    [ "$REWARD" != none ] || continue
    text truth --reward "$REWARD" --model "$MODEL" "$near/scores" "$far/scores"
    for scores in "$near" "$far"; do
        sepo denoise --scores "$scores/scores" --output-dir "$scores/pooled"
    done
    learn() { # from the scores in $1, named $2, by the recipes $3...
        local from=$1 name=$2
        shift 2
        two policies --model "$MODEL" --scores "$from/scores" --denoised "$from/pooled" --counted "$near/counted" \
            --samples "$OUT/answers-test" --reward "$REWARD" --cache "$OUT/lower.pt" --seed "$seed" --suffix "$name" "$@" \
            --output "$far/policies.jsonl"
    }
    learn "$near" ", pooled" --recipe "regression, denoised"
    learn "$far" ", pooled, by other pairs" --recipe "regression, denoised"
    learn "$far" ", by other pairs" --recipe "SePO, as published"
done
[ "$REWARD" != none ] || exit 0
files=()
for seed in $SEEDS; do files+=("$OUT/$REWARD-$seed/policies.jsonl" "$OUT/other-$REWARD-$seed/policies.jsonl"); done
for other in "DPO, beta 1, with KL" "SePO, as published" "regression, denoised, pooled"; do
    two table "${files[@]}" --less "$other"
done
