# make all      install, then the whole pipeline on the built-in demo, into runs/demo; a finished stage is not redone
# make all MODEL=M DATASET=D [ORACLE_MODEL=O] [OUT=folder]   on a model and preference data (folders, files, hub names)
# make all RECIPE=denoised [...]   either of them by another recipe than the paper's: the options in examples/denoised
# make compare  recipes at equal KL on fresh worlds of the demo, a world for each of SEEDS, into runs/compare
# make evidence `make compare`, and a planted reward in real text; hours; PROMPTS="files" LM=model
# make test     lint, types and tests; make check: without the tests; make docs: the pages as a site, into site/
# make clean    remove the stages of OUT and the caches; a changed variable redoes its stage and what depends on it
# Further options of a stage go into ORACLE_ARGS, SCORE_ARGS, POLICY_ARGS, DEMO_ARGS, REPORT_ARGS, such as
#   make all MODEL=M DATASET=D ORACLE_ARGS='--learning-rate 1e-6' POLICY_ARGS='--chosen-ratio 0.1'

SHELL := /bin/bash
VENV ?= .venv
SEPO := $(VENV)/bin/sepo
# Modules are compiled once, not by each of the processes that the tests start, wherever this is set.
export PYTHONDONTWRITEBYTECODE :=
SEEDS ?= 1 2 3 4
JOBS ?= $(shell nproc)
# The options of a stage in the recipe asked for; what stands behind them on the command line beats them.
recipe = $(if $(RECIPE),--config examples/$(RECIPE)/$(1).yaml)
# An interrupted stage goes on; --overwrite replaces what other settings made.
TRAIN_POLICY = $(SEPO) train-policy --overwrite --model $(MODEL) $(POLICY_ARGS)

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
ORACLE_ARGS ?= --sft-epochs 3 --sft-learning-rate 5e-3 --sft-batch-size 32 --num-train-epochs 2 --learning-rate $(if $(RECIPE),2e-4,1e-4) --batch-size 32 --max-tokens-per-device 8192
SCORE_ARGS ?= --max-tokens-per-device 16384
REPORTED := $(if $(RECIPE),oracle=$(OUT)/oracle/oracle-1 $(RECIPE)=$(OUT)/policy,oracle=$(OUT)/oracle/oracle sepo=$(OUT)/policy simpo=$(OUT)/policy-simpo random=$(OUT)/policy-random)
POLICY_ARGS ?= --num-train-epochs 1 --learning-rate $(if $(RECIPE),4e-4,1e-4) --batch-size 32 --max-tokens-per-device 8192
endif

.PHONY: all compare evidence install check test docs clean help

all: install
ifdef DEMO
	@# Pairs whose tokens have a known true reward, and an untrained model: seconds. (Times: 2 cores without a GPU.)
	$(SEPO) make-demo --overwrite --output-dir $(DEMO) $(DEMO_ARGS)
endif
	@# SFT makes the reference, DPO from there the oracle: about a minute on the demo.
	$(SEPO) train-oracle --overwrite --model $(ORACLE_MODEL) --dataset $(DATASET) --output-dir $(OUT)/oracle $(call recipe,train-oracle) $(ORACLE_ARGS)
	@# Every response token's score, oracle minus reference log-prob: seconds on the demo.
	$(SEPO) score --overwrite --oracle $(OUT)/oracle --dataset $(DATASET) --output-dir $(OUT)/scores $(call recipe,score) $(SCORE_ARGS)
ifdef RECIPE
	@# What the labels of unseen pairs bear out of the scores.
	$(SEPO) denoise --overwrite --scores $(OUT)/scores --output-dir $(OUT)/denoised $(call recipe,denoise)
endif
	@# The policy: by the paper's method on the key tokens alone. Seconds on the demo.
	$(TRAIN_POLICY) --scores $(OUT)/$(if $(RECIPE),denoised,scores) --output-dir $(OUT)/policy $(call recipe,train-policy)
ifdef DEMO
ifndef RECIPE
	@# What it is measured by: all tokens and random ones, as long each.
	$(TRAIN_POLICY) --scores $(OUT)/scores --output-dir $(OUT)/policy-simpo --objective simpo
	$(TRAIN_POLICY) --scores $(OUT)/scores --output-dir $(OUT)/policy-random --select random
endif
	@# Key tokens found, and true rewards of samples against KL: seconds.
	$(SEPO) demo-report --overwrite --demo $(DEMO) --scores $(OUT)/scores --reference $(MODEL) $(REPORTED:%=--model %) --output-dir $(OUT)/report $(REPORT_ARGS)
endif
	@echo 'finished: $(OUT)'

# What is run in each world stands in examples/compare.yaml.
compare: install
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks.compare --seeds $(SEEDS) --jobs $(JOBS) --output-dir runs/compare $(COMPARE_ARGS)

# What is finished is not redone.
evidence: compare
	PATH="$(abspath $(VENV))/bin:$$PATH" $(if $(LM),MODEL=$(LM)) $(if $(PROMPTS),PROMPTS="$(PROMPTS)") OUT=runs/evidence bash benchmarks/evidence/two_cores.sh

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
	rm -rf $(addprefix $(OUT)/,demo oracle scores denoised policy policy-simpo policy-random report) runs/compare $(wildcard $(OUT)/.*.manifest.json)
	rm -rf build site .mypy_cache .ruff_cache .pytest_cache .hypothesis

help:
	@sed '/^#/!Q; s/^# //' Makefile
