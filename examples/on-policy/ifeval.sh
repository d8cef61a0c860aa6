#!/usr/bin/env bash
# A model learns from its own answers which instructions it followed: IFEval's verifier ranks them, and no judge. It is
# trained on some of IFEval's prompts and tested on the others: never report such a policy's figure on all 541.
# A GPU's work; a few prompts, samples and tokens show on two cores that it runs (TRAIN=40 SAMPLES=4 TOKENS=128).
# PROMPTS is ifeval_input_data.jsonl of google/IFEval on the hub; pip install 'sepo[ifeval]'.
set -eu
MODEL=${MODEL:-HuggingFaceTB/SmolLM2-135M-Instruct} PROMPTS=${PROMPTS:-ifeval_input_data.jsonl} OUT=${OUT:-runs/ifeval}
TRAIN=${TRAIN:-400} SAMPLES=${SAMPLES:-8} TOKENS=${TOKENS:-1280}
mkdir -p $OUT
head -n $TRAIN $PROMPTS > $OUT/train.jsonl
tail -n 141 $PROMPTS > $OUT/test.jsonl

policy=$MODEL
for ROUND in 1 2; do
    at=$OUT/$ROUND
    sepo generate --model policy=$policy --benchmark ifeval --prompts $OUT/train.jsonl --samples $SAMPLES \
        --temperature 1 --max-new-tokens $TOKENS --seed $ROUND --output-dir $at/answers
    sepo pair $at/answers --verifier ifeval --output $at/pairs.jsonl
    # The oracle learns from these pairs which tokens told a good answer from a bad one.
    sepo train-oracle --model $policy --dataset $at/pairs.jsonl --output-dir $at/oracle --sft-epochs 0 \
        --batch-size 16 --learning-rate 5e-6 --eval-fraction 0
    sepo score --oracle $at/oracle --dataset $at/pairs.jsonl --output-dir $at/scores
    sepo train-policy --model $policy --scores $at/scores --output-dir $at/policy --batch-size 16 --learning-rate 2e-6
    policy=$at/policy
done
sepo generate --model start=$MODEL --model round-1=$OUT/1/policy --model round-2=$OUT/2/policy --benchmark ifeval \
    --prompts $OUT/test.jsonl --max-new-tokens $TOKENS --output-dir $OUT/test
sepo results $OUT/test
