#!/usr/bin/env bash
# After `make all`: two rounds of pairs of the policy's own answers, ranked by the oracle, against one round of as many
# pairs. Is the true reward higher at equal KL? About ten minutes a seed on two cores.
set -eu
DEMO=${DEMO:-runs/demo} OUT=${OUT:-runs/on-policy}
REFERENCE=$DEMO/oracle/reference
mkdir -p $OUT
head -n 512 $DEMO/demo/train.jsonl > $OUT/first.jsonl
head -n 1024 $DEMO/demo/train.jsonl | tail -n 512 > $OUT/second.jsonl
cat $OUT/first.jsonl $OUT/second.jsonl > $OUT/all.jsonl
export OMP_NUM_THREADS=1

round() {  # the model $1 answers the prompts $2; answers, pairs, their scores and the next policy go into $3
    sepo generate --model policy=$1 --prompts $2 --samples 4 --temperature 1 --max-new-tokens 64 --seed $SEED --output-dir $3/answers
    sepo pair $3/answers --oracle $DEMO/oracle --output $3/pairs.jsonl
    sepo score --oracle $DEMO/oracle --dataset $3/pairs.jsonl --output-dir $3/scores
    sepo train-policy --model $1 --scores $3/scores --output-dir $3/policy --seed $SEED \
        --batch-size 32 --learning-rate 3e-4 --snapshot-steps 8
}

evaluate() {  # policies and snapshots, each named by its step, into the file $1.json
    sepo evaluate --demo $DEMO/demo --reference-model $REFERENCE --seed $SEED --samples 512 --max-new-tokens 64 \
        --output $1.json --model 8=$2 --model 16=$3 --model 24=$4 --model 32=$5
}

for SEED in 1 2 3; do
    at=$OUT/$SEED
    round $REFERENCE $OUT/all.jsonl $at/one
    round $REFERENCE $OUT/first.jsonl $at/two/1
    round $at/two/1/policy $OUT/second.jsonl $at/two/2
    snapshots=$at/one/policy/snapshots/step-000000
    evaluate $at/one ${snapshots}08 ${snapshots}16 ${snapshots}24 $at/one/policy
    evaluate $at/two $at/two/1/policy/snapshots/step-00000008 $at/two/1/policy $at/two/2/policy/snapshots/step-00000008 $at/two/2/policy
done
sepo compare --against one-round --output-dir $OUT/compare \
    --run one-round=$OUT/1/one.json --run one-round=$OUT/2/one.json --run one-round=$OUT/3/one.json \
    --run two-rounds=$OUT/1/two.json --run two-rounds=$OUT/2/two.json --run two-rounds=$OUT/3/two.json
