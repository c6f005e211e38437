# Function Quest: every command of the project. No environment needs to be activated; `make` lists what there is.
PYTHON ?= python3
LEVEL ?= 11
ARGS ?=
WORKERS ?= 2

VENV := .venv
STAMP := $(VENV)/.installed
PY := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup train sweep watch play bench test test-all lint clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "  options: LEVEL=1..20 or a file, ARGS='more options', WORKERS=processes of the tests, PYTHON=python3.11 or later"

setup: $(STAMP) ## create .venv and install the project and its tools, once

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "setup: Python 3.11 or later is needed, %s is %s; set PYTHON=" % (sys.executable, sys.version.split()[0]))'
	@echo "setup: installs the project and its tools into $(VENV), once; torch is large, so this takes minutes"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@echo "setup: done"
	@touch $@

train: setup ## train a conductor: make train LEVEL=11 ARGS="seed=1"
	$(PY) -m experiments.train level=$(LEVEL) $(ARGS)

sweep: setup ## search hyper-parameters: make sweep LEVEL=11 ARGS="trials=50 jobs=2"
	$(PY) -m experiments.sweep level=$(LEVEL) $(ARGS)

watch: setup ## watch the kept policy of a level: make watch LEVEL=11
	$(PY) -m experiments.watch level=$(LEVEL) $(ARGS)

play: setup ## play a level in the terminal: make play LEVEL=1
	$(PY) -m fq_env.play level=$(LEVEL) $(ARGS)

bench: setup ## measure speed on this machine
	$(PY) -m experiments.benchmark $(ARGS)

test: setup ## the tests, without the slow ones
	$(PY) -m pytest -q -m "not slow" -n $(WORKERS) --dist loadfile --max-worker-restart=0 $(ARGS)

test-all: setup ## all tests
	$(PY) -m pytest -q -n $(WORKERS) --dist loadfile --max-worker-restart=0 $(ARGS)

lint: setup ## style, types and the floors of the house
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

clean: ## remove .venv, caches and builds; runs/ stays
	rm -rf $(VENV) build dist .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
