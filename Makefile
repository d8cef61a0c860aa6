# make all      install, then the whole pipeline on the built-in demo, into runs/demo; a finished stage is not redone
# make all MODEL=M DATASET=D [ORACLE_MODEL=O] [OUT=folder]   on a model and preference data (folders, files, hub names)
# make compare  RECIPES side by side on the demo, over SEEDS, into runs/demo/compare
# make test     lint, types and tests; make check: without the tests; make docs: the pages as a site, into site/
# make clean    remove the stages of OUT and the caches; a changed variable redoes its stage and what depends on it
# Further options of a stage go into ORACLE_ARGS, SCORE_ARGS, POLICY_ARGS, DEMO_ARGS, REPORT_ARGS, such as
#   make all MODEL=M DATASET=D ORACLE_ARGS='--learning-rate 1e-6' POLICY_ARGS='--chosen-ratio 0.1'

SHELL := /bin/bash
VENV ?= .venv
SEPO := $(VENV)/bin/sepo
# Modules are compiled once, not by each of the processes that the tests start, wherever this is set.
export PYTHONDONTWRITEBYTECODE :=
# An interrupted stage goes on; --overwrite replaces what other settings made.
TRAIN_POLICY = $(SEPO) train-policy --overwrite --model $(MODEL) --scores $(OUT)/scores $(POLICY_ARGS)

ifneq ($(MODEL)$(DATASET),)
ifeq ($(and $(MODEL),$(DATASET)),)
$(error MODEL and DATASET go together: make all MODEL=HuggingFaceTB/SmolLM2-135M-Instruct DATASET=pairs.jsonl)
endif
OUT ?= runs/$(notdir $(MODEL))
ORACLE_MODEL ?= $(MODEL)
else
# The demo: an untrained tiny model becomes the reference, where every policy starts. One thread: so small a model gains
# nothing from more, and one gives the same numbers on every machine of a kind.
export OMP_NUM_THREADS ?= 1
OUT ?= runs/demo
DEMO := $(OUT)/demo
ORACLE_MODEL := $(DEMO)/model
MODEL := $(OUT)/oracle/reference
DATASET := $(DEMO)/train.jsonl
ORACLE_ARGS ?= --sft-epochs 3 --sft-learning-rate 5e-3 --sft-batch-size 32 --num-train-epochs 2 --learning-rate 1e-4 --batch-size 32 --max-tokens-per-device 8192
SCORE_ARGS ?= --max-tokens-per-device 16384
POLICY_ARGS ?= --num-train-epochs 1 --learning-rate 1e-4 --batch-size 32 --max-tokens-per-device 8192
endif

# --- make compare: recipes of the paper's table and its controls on the demo, over several seeds ---
RECIPES ?= dpo ipo rrhf simpo tdpo sepo sepo-rand symmetric symmetric-10
SEEDS ?= 1 2 3
JOBS ?= $(shell nproc)
COMPARE_ARGS ?= --samples 512 --max-new-tokens 64
$(foreach objective,dpo ipo rrhf simpo tdpo,$(eval $(objective)_ARGS := --objective $(objective)))
sepo-rand_ARGS := --select random
symmetric_ARGS := --select symmetric --anchor-margin
symmetric-10_ARGS := --select symmetric --chosen-ratio 0.1 --rejected-ratio 0.1 --anchor-margin
RUNS := $(foreach seed,$(SEEDS),$(foreach recipe,$(RECIPES),$(recipe)/$(seed)))

.PHONY: all compare install check test docs clean help $(RUNS)

all: install
ifdef DEMO
	@# Pairs whose tokens have a known true reward, and an untrained model: seconds. (Times: 2 cores without a GPU.)
	$(SEPO) make-demo --overwrite --output-dir $(DEMO) $(DEMO_ARGS)
endif
	@# SFT makes the reference, DPO from there the oracle: about a minute on the demo.
	$(SEPO) train-oracle --overwrite --model $(ORACLE_MODEL) --dataset $(DATASET) --output-dir $(OUT)/oracle $(ORACLE_ARGS)
	@# Every response token's score, oracle minus reference log-prob: seconds on the demo.
	$(SEPO) score --overwrite --oracle $(OUT)/oracle --dataset $(DATASET) --output-dir $(OUT)/scores $(SCORE_ARGS)
	@# The policy, on the key tokens alone: seconds on the demo.
	$(TRAIN_POLICY) --output-dir $(OUT)/policy
ifdef DEMO
	@# What it is measured by, all tokens and random ones, as long each; and true rewards of samples against KL: seconds.
	$(TRAIN_POLICY) --output-dir $(OUT)/policy-simpo --objective simpo
	$(TRAIN_POLICY) --output-dir $(OUT)/policy-random --select random
	$(SEPO) demo-report --overwrite --demo $(DEMO) --scores $(OUT)/scores --reference $(MODEL) --model oracle=$(OUT)/oracle/oracle --model sepo=$(OUT)/policy --model simpo=$(OUT)/policy-simpo --model random=$(OUT)/policy-random --output-dir $(OUT)/report $(REPORT_ARGS)
endif
	@echo 'finished: $(OUT)'

# Each recipe by each seed, as many at once as there are cores, a minute or two each; then their table.
compare: all
	@$(MAKE) --no-print-directory --jobs $(JOBS) $(RUNS)
	$(SEPO) compare --overwrite $(foreach recipe,$(RECIPES),$(foreach seed,$(SEEDS),--run $(recipe)=$(OUT)/compare/$(recipe)-$(seed).json)) --output-dir $(OUT)/compare/table

# Evaluated with some snapshots, each after twice the steps of the one before, for divergence grows fast at first.
$(RUNS): run = $(OUT)/compare/$(@D)-$(@F)
$(RUNS):
	$(TRAIN_POLICY) $($(@D)_ARGS) --seed $(@F) --snapshot-steps 8 --save-steps 0 --output-dir $(run)
	last=$$(tail -n 1 $(run)/metrics.jsonl | sed 's/.*"step": \([0-9]*\).*/\1/') && models= && \
	for ((step = 8; step < last; step *= 2)); do models+=" --model $$step=$(run)/snapshots/step-$$(printf %08d $$step)"; done && \
	$(SEPO) evaluate --overwrite --demo $(DEMO) --reference-model $(MODEL) $$models --model $$last=$(run) --seed $(@F) --output $(run).json $(COMPARE_ARGS)

install: $(VENV)/.installed
$(VENV)/.installed $(VENV)/.installed-dev $(VENV)/.installed-docs: pyproject.toml constraints.txt tests/official-tools.txt
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.$(patsubst %,[%],$(word 2,$(subst -, ,$(@F))))'
	$(if $(findstring dev,$(@F)),$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement tests/official-tools.txt)
	@touch $@

check: $(VENV)/.installed-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

test: check
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

docs: $(VENV)/.installed-docs
	$(VENV)/bin/mkdocs build --strict

clean:
	rm -rf $(addprefix $(OUT)/,demo oracle scores policy policy-simpo policy-random report compare) $(wildcard $(OUT)/.*.manifest.json)
	rm -rf build site .mypy_cache .ruff_cache .pytest_cache .hypothesis

help:
	@sed '/^#/!Q; s/^# //' Makefile
