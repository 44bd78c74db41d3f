# Every target sets up its environment by itself. To use an environment you already have, name it:
#     make test VENV=/path/to/environment
# It is used as it is; only one that has no pytest yet is made and filled. PYTHON=... chooses the interpreter.

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin

ifeq ($(VENV),.venv)
READY := .venv/.installed
$(READY): pyproject.toml
else
READY := $(BIN)/pytest
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all check docs format bench clean

help:
	@echo "make demo      search a small network on data that comes with scikit-learn"
	@echo "make test      the fast tests"
	@echo "make test-all  all tests, the slow ones too; real data from \$$AUTOPRUNE_DATA"
	@echo "make check     format, lint, types, import floors, and the documentation builds without a warning"
	@echo "make docs      build the documentation into site/"
	@echo "make format    write the format and the fixes that are safe"
	@echo "make bench     run every script in benchmarks/"
	@echo "make clean     remove what builds and checks left; .venv and runs/ stay"

$(READY):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/autoprune search

test: $(READY)
	$(BIN)/pytest

test-all: $(READY)
	$(BIN)/pytest -m ''

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) docs

# The variable silences a note about the next major version of the builder.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	@for script in $(wildcard benchmarks/*.py); do echo "$$script"; $(BIN)/python "$$script" || exit 1; done

clean:
	rm -rf build dist site *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find autoprune benchmarks envs examples search_spaces tests -name __pycache__ -type d -prune -exec rm -rf {} +
