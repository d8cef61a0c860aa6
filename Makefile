# make all    install, then run the whole pipeline: on the built-in demo, or on MODEL and DATASET
# make test   install, then pass the tests
# make help   the other targets and the variables

SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
SEPO := $(VENV)/bin/sepo

ifneq ($(MODEL)$(DATASET),)
# --- your own run: make all MODEL=... DATASET=... [ORACLE_MODEL=...] [OUT=...] ---
ifeq ($(and $(MODEL),$(DATASET)),)
$(error MODEL and DATASET go together: make all MODEL=HuggingFaceTB/SmolLM2-135M-Instruct DATASET=pairs.jsonl)
endif
OUT ?= runs/$(notdir $(MODEL))
ORACLE_MODEL ?= $(MODEL)
LAST := $(OUT)/policy/manifest.json
else
# --- the demo: an untrained tiny model becomes the reference, which is also where every policy starts ---
OUT ?= runs/demo
DATASET := $(OUT)/demo/train.jsonl
ORACLE_MODEL := $(OUT)/demo/model
MODEL := $(OUT)/oracle/reference
DEMO := $(OUT)/demo/manifest.json
LAST := $(OUT)/report/manifest.json
# A model this small gains nothing from threads, and one thread gives the same numbers on every machine of a kind.
export OMP_NUM_THREADS ?= 1
ORACLE_ARGS ?= --sft-epochs 3 --sft-learning-rate 5e-3 --sft-batch-size 32 --num-train-epochs 2 --learning-rate 1e-4 --batch-size 32 --max-tokens-per-device 8192
SCORE_ARGS ?= --max-tokens-per-device 16384
POLICY_ARGS ?= --num-train-epochs 1 --learning-rate 1e-4 --batch-size 32 --max-tokens-per-device 8192
endif
DEMO_ARGS ?=
COMPARE_ARGS ?= --samples 512 --max-new-tokens 64
JOBS ?= $(shell nproc)
REPORT_ARGS ?=

# --- make compare: recipes of the paper's table and its controls on the demo, over several seeds ---
SEEDS ?= 1 2 3
RECIPES := dpo ipo rrhf simpo tdpo sepo sepo-rand symmetric symmetric-10
dpo_ARGS := --objective dpo
ipo_ARGS := --objective ipo
rrhf_ARGS := --objective rrhf
simpo_ARGS := --objective simpo
tdpo_ARGS := --objective tdpo
sepo_ARGS :=
sepo-rand_ARGS := --select random
symmetric_ARGS := --select symmetric --anchor-margin
symmetric-10_ARGS := --select symmetric --chosen-ratio 0.1 --rejected-ratio 0.1 --anchor-margin
# A run is named by its recipe and its seed, such as sepo-rand-2.
seed = $(lastword $(subst -, ,$(1)))
recipe = $(patsubst %-$(call seed,$(1)),%,$(1))
COMPARED := $(foreach s,$(SEEDS),$(foreach r,$(RECIPES),$(OUT)/compare/$(r)-$(s)))

.PHONY: all compare oracle scores policy install test check format help clean FORCE
# A manifest is written when its stage has finished: whatever ends make then, the stage stays finished.
.PRECIOUS: $(foreach s,demo oracle scores policy policy-simpo policy-random report compare/table,$(OUT)/$(s)/manifest.json) \
  $(COMPARED:=/manifest.json) $(COMPARED:=.json)

all: $(LAST)
	@echo 'finished: $(dir $(LAST))'
oracle: $(OUT)/oracle/manifest.json
scores: $(OUT)/scores/manifest.json
policy: $(OUT)/policy/manifest.json

# Files of tests are shared out over a few cores.
PYTEST = $(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# A stage is redone when its variables change: they are kept in a file that is rewritten only when they differ.
$(OUT)/.%.args: FORCE
	@mkdir -p $(OUT); printf '%s\n' "$$ARGS" | cmp -s - $@ || printf '%s\n' "$$ARGS" > $@

$(OUT)/.demo.args: export ARGS = $(DEMO_ARGS)
$(OUT)/.oracle.args: export ARGS = $(ORACLE_MODEL) $(DATASET) $(ORACLE_ARGS)
$(OUT)/.scores.args: export ARGS = $(DATASET) $(SCORE_ARGS)
$(OUT)/.policy.args: export ARGS = $(MODEL) $(POLICY_ARGS)
$(OUT)/.compare.args: export ARGS = $(COMPARE_ARGS)
$(OUT)/.table.args: export ARGS = $(RECIPES) over $(SEEDS)
$(foreach r,$(RECIPES),$(eval $(OUT)/.recipe-$(r).args: export ARGS = $$($(r)_ARGS)))
$(OUT)/.report.args: export ARGS = $(REPORT_ARGS)

# --overwrite replaces what another setting made; the same settings are never redone, and an interrupted stage goes on.
# The manifest is touched because a stage with nothing to do leaves it as old as it was.
$(OUT)/demo/manifest.json: $(OUT)/.demo.args | install
	$(SEPO) make-demo --output-dir $(@D) --overwrite $(DEMO_ARGS)
	@touch $@

$(OUT)/oracle/manifest.json: $(OUT)/.oracle.args $(DEMO) $(wildcard $(ORACLE_MODEL)/config.json) | install
	$(SEPO) train-oracle --model $(ORACLE_MODEL) --dataset $(DATASET) --output-dir $(@D) --overwrite $(ORACLE_ARGS)
	@touch $@

$(OUT)/scores/manifest.json: $(OUT)/.scores.args $(OUT)/oracle/manifest.json | install
	$(SEPO) score --oracle $(OUT)/oracle --dataset $(DATASET) --output-dir $(@D) --overwrite $(SCORE_ARGS)
	@touch $@

TRAIN_POLICY = $(SEPO) train-policy --model $(MODEL) --scores $(OUT)/scores --output-dir $(@D) --overwrite $(POLICY_ARGS)

$(OUT)/policy/manifest.json: $(OUT)/.policy.args $(OUT)/scores/manifest.json | install
	$(TRAIN_POLICY)
	@touch $@

$(OUT)/policy-simpo/manifest.json: $(OUT)/.policy.args $(OUT)/scores/manifest.json | install
	$(TRAIN_POLICY) --objective simpo
	@touch $@

$(OUT)/policy-random/manifest.json: $(OUT)/.policy.args $(OUT)/scores/manifest.json | install
	$(TRAIN_POLICY) --select random
	@touch $@

$(OUT)/report/manifest.json: $(OUT)/.report.args $(foreach p,policy policy-simpo policy-random,$(OUT)/$(p)/manifest.json) | install
	$(SEPO) demo-report --demo $(OUT)/demo --scores $(OUT)/scores --reference $(OUT)/oracle/reference \
	  --model oracle=$(OUT)/oracle/oracle --model sepo=$(OUT)/policy --model simpo=$(OUT)/policy-simpo \
	  --model random=$(OUT)/policy-random --output-dir $(@D) --overwrite $(REPORT_ARGS)
	@touch $@

# Recipes do not depend on each other: as many are made at once as there are cores.
compare: | install
	@$(MAKE) --no-print-directory $(OUT)/scores/manifest.json
	@$(MAKE) --no-print-directory --jobs $(JOBS) $(addsuffix .json,$(COMPARED))
	@$(MAKE) --no-print-directory $(OUT)/compare/table/manifest.json
	@echo 'finished: $(OUT)/compare/table'

$(addsuffix /manifest.json,$(COMPARED)): $(OUT)/compare/%/manifest.json: $(OUT)/.policy.args $(OUT)/scores/manifest.json
	$(TRAIN_POLICY) $($(call recipe,$*)_ARGS) --seed $(call seed,$*) --snapshot-steps 8 --save-steps 0
	@touch $@

$(foreach run,$(COMPARED),$(eval $(run)/manifest.json: $(OUT)/.recipe-$(call recipe,$(notdir $(run))).args))

# Some snapshots, each after twice the steps of the one before, for divergence grows fast at first; and the end.
$(addsuffix .json,$(COMPARED)): $(OUT)/compare/%.json: $(OUT)/compare/%/manifest.json $(OUT)/.compare.args
	last=$$(tail -n 1 $(<D)/metrics.jsonl | sed 's/.*"step": \([0-9]*\).*/\1/') && models= && \
	for ((step = 8; step < last; step *= 2)); do \
	  models+=" --model $$step=$(<D)/snapshots/step-$$(printf %08d $$step)"; \
	done && \
	$(SEPO) evaluate --demo $(OUT)/demo --reference-model $(MODEL) $$models --model $$last=$(<D) \
	  --seed $(call seed,$*) --output $@ --overwrite $(COMPARE_ARGS)
	@touch $@

$(OUT)/compare/table/manifest.json: $(OUT)/.table.args $(addsuffix .json,$(COMPARED))
	$(SEPO) compare $(foreach r,$(RECIPES),$(foreach s,$(SEEDS),--run $(r)=$(OUT)/compare/$(r)-$(s).json)) \
	  --output-dir $(@D) --overwrite
	@touch $@

# A data set that is a local file is a dependency too; a hub name is not.
ifeq ($(DEMO),)
$(OUT)/oracle/manifest.json $(OUT)/scores/manifest.json: $(wildcard $(DATASET))
endif

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

test: $(VENV)/.installed-dev
	$(PYTEST)

check: $(VENV)/.installed-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(PYTEST)

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean:
	rm -rf $(addprefix $(OUT)/,demo oracle scores policy policy-simpo policy-random report compare) $(wildcard $(OUT)/.*.args $(OUT)/.*.manifest.json)
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis

help:
	@echo 'make all      the pipeline on the built-in demo, into runs/demo'
	@echo 'make all MODEL=M DATASET=D [ORACLE_MODEL=O] [OUT=folder]'
	@echo '              the pipeline on a model and a preference data set (folders, files or hub names)'
	@echo 'make compare  recipes side by side on the demo, over SEEDS, into runs/demo/compare'
	@echo 'make oracle, make scores, make policy'
	@echo '              the same, up to that stage'
	@echo 'make test     the tests'
	@echo 'make check    format, lint, types and tests'
	@echo 'make format   repair format and lint where a tool can'
	@echo 'make clean    remove the stages of OUT and the caches'
	@echo
	@echo 'Further options of a stage go into ORACLE_ARGS, SCORE_ARGS, POLICY_ARGS, DEMO_ARGS, REPORT_ARGS, such as'
	@echo "  make all MODEL=M DATASET=D ORACLE_ARGS='--learning-rate 1e-6' POLICY_ARGS='--chosen-ratio 0.1'"
	@echo 'A second `make all` does nothing; a changed variable redoes its stage and what depends on it.'
