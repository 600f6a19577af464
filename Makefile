# Every target sets up what it needs; `make` alone lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
PACKAGES := fleet clients server simulations

.DEFAULT_GOAL := help
.PHONY: help install run test test-deployment test-faults test-parity test-services test-install test-py310 check format bench proto clean

help: ## List the targets.
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

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

# Whatever the shell says of bytecode: to rewrite each test's assertions takes as long as all imports.
test: $(STAMP) ## The whole default test suite.
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n 2 --dist loadfile

test-deployment: $(STAMP) ## Runs of a whole Flower deployment with TLS and node keys.
	@$(BIN)/python -m pytest -q -m deployment

test-faults: $(STAMP) ## The slow tests that inject many failures.
	@$(BIN)/python -m pytest -q -m faults

test-services: $(STAMP) ## The tests against real services (an MQTT broker, PostgreSQL), fetched without root.
	@sh tests/services/fetch.sh mosquitto mosquitto
	@PATH="$$PATH:$$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -n 1)" \
	  sh tests/services/fetch.sh postgresql postgres
	@$(BIN)/python -m pytest -q -m services tests/services tests/server/registry tests/server/metrics

test-install: $(STAMP) ## Bundle the real wheels and install both halves of a device from them.
	@$(BIN)/python -m pytest -q -m install tests/docker

# pyenv runs python3.10 for whoever asks by this variable; others ignore it.
PY310 ?= env PYENV_VERSION=3.10 python3.10
VENV310 := .venv310
STAMP310 := $(VENV310)/.installed
# What an agent has without a torch; with PY310_TORCH, all of the agent and the method.
TORCH_FREE := $(wildcard $(addprefix tests/clients/,$(addprefix agent/,cli doctor intake power store \
  supervise test_config.py test_extras.py test_policy.py) link) $(addprefix tests/fleet/,federate supervise \
  test_commands.py test_errors.py test_files.py test_seeds.py))

$(STAMP310): pyproject.toml constraints.txt
	@$(or $(PY310_TORCH),$(PY310)) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))' || \
	  { echo "that is no Python 3.10: make test-py310 PY310=/path/to/python3.10"; exit 1; }
	@rm -rf $(VENV310)
	@$(or $(PY310_TORCH),$(PY310)) -m venv $(if $(PY310_TORCH),--system-site-packages) $(VENV310)
	@echo "installing the agent without torch into $(VENV310)"
	@grep -Ev '^torch==' constraints.txt > $(VENV310)/constraints.txt
	@$(VENV310)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c $(VENV310)/constraints.txt -e '.[device-agent,device-mqtt]' pytest pytest-timeout \
	  pytest-xdist hypothesis threadpoolctl packaging
	@touch $@

test-py310: $(STAMP) $(STAMP310) ## The agent on Python 3.10; all that needs no torch, or PY310_TORCH=python3.10 that has one.
	@$(BIN)/ruff check --target-version py310 fleet clients
	@$(BIN)/mypy --python-version 3.10 -p fleet -p clients.agent -p clients.link
	@$(VENV310)/bin/python -m pytest -q -n 2 --dist loadfile $(if $(PY310_TORCH),tests/clients/agent \
	  tests/clients/link tests/fleet --ignore tests/fleet/peft,$(TORCH_FREE) \
	  --ignore tests/fleet/federate/test_served.py)

test-parity: $(BENCH_STAMP) ## Hold our rivals to HF PEFT, and the merged graph to ONNX.
	@$(BIN)/python -m pytest -q tests/fleet/peft/test_hf_parity.py tests/fleet/adapt/test_onnx_export.py

check: $(STAMP) ## Format, lint, types and the fast tests.
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile -m 'not e2e and not bench and not faults and not services and not install'

format: $(STAMP) ## Rewrite the code in the project's format.
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(STAMP) ## The benchmarks: both sides in one run, medians and spread.
	@$(BIN)/fleet bench aggregate
	@$(BIN)/fleet bench wire
	@$(BIN)/fleet bench protocol
	@$(BIN)/fleet bench bridge
	@$(BIN)/fleet bench memory
	@$(BIN)/fleet bench memory --micro-batch 8

# The oldest compiler whose output runs with every protobuf that pyproject.toml allows; it wants an
# older protobuf than Flower does, so it has an environment of its own.
PROTOC := $(VENV)/protoc
proto: $(STAMP) ## Write the generated modules of the link and of the control API from their .proto files.
	@test -x $(PROTOC)/bin/python || $(BIN)/python -m venv $(PROTOC)
	@$(PROTOC)/bin/python -m pip install --quiet --disable-pip-version-check \
	  'grpcio-tools==1.62.3' 'setuptools<80'
	@$(PROTOC)/bin/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. \
	  clients/link/agent.proto server/control/control.proto

clean: ## Remove the virtual environment and caches; runs/ stays.
	@rm -rf $(VENV) .venv310 .mypy_cache .ruff_cache .pytest_cache .hypothesis
