# Needs python 3.11 or newer, make and a package index; everything else goes into .venv.

PYTHON ?= python3
SEED ?= 0
ARGS ?=
BIN := .venv/bin

# Nothing here may depend on a model hub.
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help demo world test check bench

help:  ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):[^#]*## */\1\t/' | expand -t 10

demo: .venv/.installed  ## the whole study on the persona world: report in runs/persona_world/report.html
	$(BIN)/sae-persona run experiments/persona_world.yaml --out runs/persona_world $(ARGS)

world: .venv/.installed  ## build a persona world (SEED=0): runs/world-SEED
	$(BIN)/sae-persona world build --seed $(SEED) --out runs/world-$(SEED) $(ARGS)

test: .venv/.installed  ## all tests (ARGS='-m "not slow"' leaves out the slow ones)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile $(ARGS)

check: .venv/.installed  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: .venv/.installed  ## benchmarks (ARGS='cache train' runs those sections only)
	$(BIN)/python -m benchmarks $(ARGS)

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	@touch $@
