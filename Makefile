# Every target sets up what it needs; `make` alone lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
PACKAGES := fleet clients server simulations

.DEFAULT_GOAL := help
.PHONY: help install run test test-faults test-parity check format bench clean

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(STAMP) ## Create the virtual environment and install everything into it.

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11, which Flower needs: make install PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -e '.[sim,server,dev]'
	@touch $@

$(BENCH_STAMP): $(STAMP)
	@echo "installing what is compared with (HF PEFT, ONNX)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -e '.[bench]'
	@touch $@

run: $(STAMP) ## The main job: a fleet adapts a base model; HAPT where it is found, else synthetic.
	@$(BIN)/fleet simulate

test: $(STAMP) ## The whole default test suite.
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-faults: $(STAMP) ## The slow tests that inject many failures.
	@$(BIN)/python -m pytest -q -m faults

test-parity: $(BENCH_STAMP) ## Hold our rivals to HF PEFT, and the merged graph to ONNX.
	@$(BIN)/python -m pytest -q tests/fleet/peft/test_hf_parity.py tests/fleet/adapt/test_onnx_export.py

check: $(STAMP) ## Format, lint, types and the fast tests.
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile -m 'not e2e and not bench and not faults'

format: $(STAMP) ## Rewrite the code in the project's format.
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(STAMP) ## The benchmarks: both sides in one run, medians and spread.
	@$(BIN)/fleet bench aggregate
	@$(BIN)/fleet bench wire
	@$(BIN)/fleet bench protocol
	@$(BIN)/fleet bench memory
	@$(BIN)/fleet bench memory --micro-batch 8

clean: ## Remove the virtual environment and caches; runs/ stays.
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
