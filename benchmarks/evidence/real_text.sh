#!/usr/bin/env bash
# Does the recipe hold on real text? A reward planted in a model's own answers, and recipes at two rates and three seeds, by
# their own samples on held-out prompts, with sepo's own commands. A GPU's work. MODEL and PROMPTS are paths or hub names,
# a prompt a row, such as AlpacaEval's. A finished command does nothing when it is run again.
set -eu
MODEL=${MODEL:-HuggingFaceTB/SmolLM2-135M-Instruct} PROMPTS=${PROMPTS:?a file of prompts} OUT=${OUT:-runs/real-text}
export REWARD=${REWARD:-lexical}
TRAIN=${TRAIN:-500} ALL=${ALL:-700} TOKENS=${TOKENS:-64} RATES=${RATES:-1e-5 3e-5} SEEDS=${SEEDS:-1 2 3} ARGS=${ARGS:---batch-size 16}
reward() { python -m benchmarks.evidence.real_text "$@"; }

pairs() { # the reference answers the prompts $1 twice, labelled by Bradley-Terry: $2.jsonl
    sepo generate --model reference="$MODEL" --prompts "$PROMPTS[$1]" --samples 2 --max-new-tokens $TOKENS --output-dir $OUT/answers-$2
    sepo pair $OUT/answers-$2 --verifier benchmarks.evidence.real_text:bradley_terry --keep-cut --output $OUT/$2.jsonl
}

pairs :$TRAIN train
pairs $TRAIN:$ALL test
sepo train-oracle --model "$MODEL" --dataset $OUT/train.jsonl --output-dir $OUT/oracle --sft-epochs 0 --eval-fraction 0 \
    --beta 1 --kl-weight 0.3 --folds 2 --learning-rate 3e-5 $ARGS
sepo score --oracle $OUT/oracle --dataset $OUT/train.jsonl --output-dir $OUT/scores --center
sepo denoise --scores $OUT/scores --output-dir $OUT/denoised --calibrate
reward truth --reward $REWARD --model "$MODEL" $OUT/scores $OUT/denoised

declare -A RECIPES=(
    [sepo]="--scores $OUT/scores" [sepo-rand]="--scores $OUT/scores --select random"
    [simpo]="--scores $OUT/scores --objective simpo" [dpo]="--scores $OUT/scores --objective dpo"
    [tdpo]="--scores $OUT/scores --objective tdpo"
    [dpo-1]="--scores $OUT/scores --objective dpo --beta 1 --select all --kl-selected 0.3"
    [regress]="--scores $OUT/denoised --objective regress --scale 0.4"
)
evaluations=()
for seed in $SEEDS; do
    models=()
    for recipe in "${!RECIPES[@]}"; do
        for rate in $RATES; do
            sepo train-policy --model "$MODEL" ${RECIPES[$recipe]} --learning-rate $rate --seed $seed $ARGS \
                --output-dir $OUT/$recipe-$rate-$seed
            models+=(--model $recipe-$rate=$OUT/$recipe-$rate-$seed)
        done
    done
    sepo evaluate "${models[@]}" --reference-model "$MODEL" --dataset $OUT/test.jsonl --seed $seed --samples $((ALL - TRAIN)) \
        --max-new-tokens $TOKENS --output $OUT/evaluation-$seed.json
    evaluations+=($OUT/evaluation-$seed.json)
done
reward samples --reward $REWARD "${evaluations[@]}"
