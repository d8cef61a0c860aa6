#!/usr/bin/env bash
# The paper's setting (arXiv 2408.13518 section 4.1, Table 5): a TinyLlama oracle for a LLaMA2-7B policy, one tokenizer.
# Weeks on a CPU: on GPUs put `accelerate launch -m sepo_cli` in the place of `sepo` (see the accelerate_*.yaml beside this file).
set -eu
SMALL=TinyLlama/TinyLlama-1.1B-Chat-v1.0 LARGE=meta-llama/Llama-2-7b-chat-hf
PAIRS=HuggingFaceH4/ultrafeedback_binarized:train_prefs CHATS=HuggingFaceH4/ultrachat_200k:train_sft

sepo validate --model $SMALL --dataset $PAIRS --max-length 2048
sepo train-oracle --model $SMALL --dataset $PAIRS --output-dir runs/oracle \
    --sft-dataset $CHATS --sft-epochs 2 --sft-learning-rate 1e-5 --sft-batch-size 512 \
    --learning-rate 5e-7 --batch-size 128 --mixed-precision bf16
sepo score --oracle runs/oracle --dataset $PAIRS --output-dir runs/scores
sepo train-policy --model $LARGE --scores runs/scores --output-dir runs/policy \
    --chosen-ratio 0.3 --rejected-ratio 0.3 --gamma 2.1 --margin 0.9 \
    --learning-rate 5e-7 --batch-size 128 --mixed-precision bf16
# The controls without which its figures say little: all tokens, and as many by chance.
sepo train-policy --model $LARGE --scores runs/scores --output-dir runs/simpo --objective simpo --gamma 2.1 --margin 0.9 --bf16
sepo train-policy --model $LARGE --scores runs/scores --output-dir runs/random --select random --gamma 2.1 --margin 0.9 --bf16
