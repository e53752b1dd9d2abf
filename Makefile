# make quickstart   install, then make the small CLIP robust and show it
# make test         install, then run every check: ruff, the type checker, the tests
# make help         the other targets
#
# Each target sets itself up: .venv is created and filled when it is missing, and again after a change
# of pyproject.toml or constraints.txt. Otherwise nothing is installed and nothing needs the network.
#
# PYTHON=python3.12    the interpreter that creates .venv (3.11 or newer)
# ARGS="--out DIR"     passed on to the command that runs

PYTHON ?= python3
ARGS ?=
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Containers often set this; every process would then compile torch anew, for six seconds.
export PYTHONDONTWRITEBYTECODE :=

# Relative paths only: the checkout's path may contain spaces.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install quickstart test test-long test-lowest test-processors test-slow lint format types docs docs-figures build constraints clean distclean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

# The stamp is written last, so that an interrupted install is done again.
$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "There is no '$(PYTHON)'. Install Python 3.11 or newer, or name one: make $(or $(MAKECMDGOALS),install) PYTHON=python3.12" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$$("$(PYTHON)" --version) is too old: advflyp needs Python 3.11 or newer. Name one: make $(or $(MAKECMDGOALS),install) PYTHON=python3.12" >&2; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "This Python has no venv module (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 2; }
	"$(PYTHON)" -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --build-constraint constraints.txt --editable '.[dev]'
	@touch $@
	@echo "advflyp is installed in $(VENV); to have it on the path: source $(BIN)/activate"

install: $(STAMP)  ## create .venv and install advflyp and its tools into it

quickstart: $(STAMP)  ## evaluate, finetune, evaluate again, write report/index.html
	$(BIN)/advflyp quickstart $(ARGS)

test: lint types  ## every check but the long and the slow tests
	$(BIN)/python -m pytest -n auto --maxprocesses 8 $(ARGS)

# The libraries' own switches narrow this processor to others: equality of results must hold on all of them.
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
SSE4 := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2
NUMERICAL := tests/attack tests/method tests/model tests/training tests/evaluation

test-processors: $(STAMP)  ## the numerical tests as on a processor with AVX2, and on one with SSE4
	$(AVX2) $(BIN)/python -m pytest -n auto --maxprocesses 8 $(NUMERICAL) $(ARGS)
	$(SSE4) $(BIN)/python -m pytest -n auto --maxprocesses 8 $(NUMERICAL) $(ARGS)

test-lowest: $(STAMP)  ## the tests with the oldest versions that pyproject.toml allows, in an environment of their own
	"$(PYTHON)" -m venv --clear $(VENV)-lowest
	$(BIN)/uv pip install --python $(VENV)-lowest/bin/python --resolution lowest-direct --editable '.[dev]'
	$(VENV)-lowest/bin/python -m pytest -n auto --maxprocesses 8 $(ARGS)

test-long: $(STAMP)  ## the long tests only
	$(BIN)/python -m pytest -n auto --maxprocesses 8 -m 'long and not slow and not network' $(ARGS)

test-slow: $(STAMP)  ## the slow tests only
	$(BIN)/python -m pytest -m 'slow and not network' $(ARGS)

lint: $(STAMP)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## pyright
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(STAMP)  ## the site in build/site
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open build/site/index.html"

# Some five minutes on two cores, most of it the quickstart; the images need Chromium. ARGS="docs/compare.md" is one page.
docs-figures: $(STAMP)  ## what docs/ and the README show of advflyp's output, made anew
	$(BIN)/python docs/tools/outputs.py $(ARGS)

build: $(STAMP)  ## wheel and source archive in dist/
	$(BIN)/uv build --out-dir dist .

# For Python 3.11 and every platform, with all extras; only names, versions and markers are kept. Versions
# already pinned stay unless ARGS=--upgrade. Run `make test test-long test-slow` before you commit the result.
constraints: $(STAMP)  ## bring constraints.txt in line with pyproject.toml (ARGS=--upgrade: newest versions)
	grep -v '^#' constraints.txt > $(VENV)/resolved.txt
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --fork-strategy fewest --all-extras \
	  --no-header --no-annotate --no-emit-index-url --quiet --output-file $(VENV)/resolved.txt $(ARGS)
	! grep -E '://|@|^-|[+]' $(VENV)/resolved.txt
	{ sed -n '/^#/p' constraints.txt; cat $(VENV)/resolved.txt; } > $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt

clean:  ## remove caches and build results, keep .venv
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks tools docs/tools -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean  ## remove .venv too
	rm -rf $(VENV)
