# Every command works on a fresh clone: what .venv lacks is installed first, and only once.
# pip's own settings hold (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL), for instance to
# take torch's CPU-only build on a machine whose index offers the CUDA one.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Twice quiet: errors are shown, a mirror that lacks a package is not.
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)
SCRIPTS = $(filter-out %_rank.py,$(shell grep -l __main__ benchmarks/*.py 2>/dev/null))
CACHES := .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info

.DEFAULT_GOAL := help
.PHONY: help train test test-gpu lint check format bench clean
.DELETE_ON_ERROR:

help:  ## list the commands
	@echo "make COMMAND [ARGS='…'] [PYTHON=python3.12]"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' Makefile | \
		awk -F'|' '{ printf "%-11s %s\n", $$1, $$2 }'

train: $(VENV)/.ready  ## train the quickstart recipe; ARGS='train.steps=50' overrides keys
	$(BIN)/braid run recipes/quickstart.yaml $(ARGS)

test: $(VENV)/.ready-dev  ## run the tests; ARGS='tests/comms -x' goes to pytest
	$(BIN)/python -m pytest $(ARGS)

test-gpu: $(VENV)/.ready-dev  ## run the tests that need a GPU
	$(BIN)/python -m pytest -m gpu $(ARGS)

lint: $(VENV)/.ready-dev  ## formatting, lint and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

check: lint  ## the same, and the tests of the architecture
	$(BIN)/python -m pytest tests/architecture

format: $(VENV)/.ready-dev  ## format the code and fix what the linter can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.ready-dev  ## run the benchmarks; ARGS='--json' prints JSON
	@test -n "$(SCRIPTS)" || echo "benchmarks/ holds no script"
	@for script in $(SCRIPTS); do \
		echo "$$script" >&2; $(BIN)/python $$script $(ARGS) || exit $$?; done

clean:  ## remove .venv and caches; runs are kept
	rm -rf $(VENV) $(CACHES)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.ready: pyproject.toml constraints.txt | $(BIN)/python
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@echo "Installing $(TORCH), the largest download (GPU builds: some GB) …"
	@$(PIP) $(TORCH)
	@echo "Installing Braid and what it runs on …"
	@$(PIP) -c constraints.txt -e .
	@touch $@

$(VENV)/.ready-dev: pyproject.toml constraints.txt | $(VENV)/.ready
	@echo "Installing the test tools …"
	@$(PIP) -c constraints.txt -e '.[dev]'
	@touch $(VENV)/.ready $@

# A half-made environment would look finished to the next call, so it is removed.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Braid needs Python 3.11 or newer, but '$(PYTHON)' is" \
			"$$($(PYTHON) --version 2>&1 | tail -n 1). Name one that fits, for example:" \
			"make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 3; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version) …"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; \
		exit 3; }
