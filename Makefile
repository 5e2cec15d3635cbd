# Two commands do all the set-up: `make train` and `make test`. They need Python 3.11+ and nothing else.
# The lock is chosen by the machine: LOCK=cpu or LOCK=cuda says otherwise.
PYTHON ?= python3
LOCK ?= $(if $(shell command -v nvidia-smi 2>/dev/null),cuda,cpu)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(LOCK)
BENCH_VENV := .venv-bench
BENCH_STAMP := $(BENCH_VENV)/.installed-$(LOCK)
RUNS ?= runs
# Not abspath, which takes a folder with a blank in its name for two.
RUNS_PATH = $(if $(filter /%,$(RUNS)),$(RUNS),$(CURDIR)/$(RUNS))
CITYSCAPES ?=
RECIPE ?=
WORKERS ?=
ARGS ?=
BENCH ?= loader
UI_PORT ?= 5000

.DEFAULT_GOAL := help
.PHONY: help train test check chaos ui bench clean

help: ## Show the targets.
	@echo 'make train   [CITYSCAPES=/path/to/tree] [RECIPE=camvid] [WORKERS=n] [ARGS="--section.field value"]'
	@echo 'make ui      browse runs, curves, pictures and models'
	@echo 'make test    the whole test suite'
	@echo 'make check   format, lint, types, import contracts'
	@echo 'make chaos   [ARGS="--points 160 --ray-points 40 --remote-points 12 --seed 0"]: kill runs anywhere, compare every bit'
	@echo 'make bench   BENCH=loader [ARGS="--json FILE"]'
	@echo 'make clean   remove what can be made again: caches, $(VENV), $(BENCH_VENV); never $(RUNS)/'

PYTHON_IS_NEW = @$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ...")'

# The stamp is newer than the lock exactly when .venv holds what the lock says.
$(STAMP): locks/$(LOCK).txt
	$(PYTHON_IS_NEW)
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r locks/$(LOCK).txt
	@touch $@

# Benchmarks have an environment of their own, as the loader's peers are nothing that the pipeline needs.
# --no-deps: the locks are whole, and a peer refuses a NumPy that it works with.
$(BENCH_STAMP): locks/$(LOCK).txt locks/bench.txt
	$(PYTHON_IS_NEW)
	$(PYTHON) -m venv --clear $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r locks/$(LOCK).txt -r locks/bench.txt
	@touch $@

# exec: the signal that ends make must reach the program, not a shell around it.
train: $(STAMP) ## Train through a local Ray head, from the data set to a registered model.
	@exec $(BIN)/python -m pipeline.launch.make_train --runs "$(RUNS)" --cityscapes "$(CITYSCAPES)" \
		--recipe "$(RECIPE)" --workers "$(WORKERS)" -- $(ARGS)

# Two processes, a file of tests to each in turn: those of tests/dist, which mostly wait, come first.
test: $(STAMP) ## Run the whole test suite.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(STAMP) ## Format, lint, types and import contracts.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

chaos: $(STAMP) ## Kill runs anywhere and compare what is left with the undisturbed run, bit for bit.
	@exec $(BIN)/python -m tests.chaos.campaign $(ARGS)

ui: $(STAMP) ## Browse the runs; only this machine can.
	@exec $(BIN)/mlflow ui --host 127.0.0.1 --port $(UI_PORT) \
		--backend-store-uri "sqlite:///$(RUNS_PATH)/mlflow.db" \
		--default-artifact-root "$(RUNS_PATH)/mlartifacts"

bench: $(if $(wildcard benchmarks/$(BENCH).py),$(BENCH_STAMP)) ## Run one benchmark.
	@test -f benchmarks/$(BENCH).py || { echo 'no benchmarks/$(BENCH).py; there are: $(basename $(notdir $(wildcard benchmarks/*.py)))'; exit 2; }
	@exec $(BENCH_VENV)/bin/python benchmarks/$(BENCH).py $(ARGS)

clean: ## Remove caches and the environment, never the runs.
	rm -rf $(VENV) $(BENCH_VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	find pipeline jobs tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
