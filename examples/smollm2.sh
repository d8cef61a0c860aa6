#!/usr/bin/env bash
# SmolLM2-135M end to end on a laptop: 512 HH-RLHF pairs, half of its layers as the oracle. About an hour on two cores.
set -eu
MODEL=HuggingFaceTB/SmolLM2-135M-Instruct PAIRS=Anthropic/hh-rlhf

sepo cut-model --model $MODEL --layers 15 --output-dir runs/half
sepo train-oracle --model runs/half --dataset "$PAIRS:train[:512]" --output-dir runs/oracle \
    --sft-epochs 1 --sft-batch-size 32 --batch-size 32 --learning-rate 2e-5 --num-train-epochs 2
sepo score --oracle runs/oracle --dataset "$PAIRS:train[:512]" --output-dir runs/scores
sepo train-policy --model $MODEL --scores runs/scores --output-dir runs/policy --batch-size 32 --learning-rate 1e-5
sepo evaluate --model sepo=runs/policy --reference-model $MODEL --dataset "$PAIRS:test[:256]" --samples 0 --output runs/evaluation.json
