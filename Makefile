# modicum from a fresh clone:  make demo, then make test.  Every target sets up .venv by itself.
PYTHON ?= python3
OUT ?= modicum-demo
# more flags for pip; for example those that PyTorch's site gives for the small CPU build
PIP_FLAGS ?=
TEST_FLAGS ?=

BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check install -q -c constraints.txt $(PIP_FLAGS)
READY := .venv/.ready
READY_DOCS := .venv/.ready-docs

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format docs readme bench clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## */\1\t/' | awk -F'\t' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(READY)  ## create .venv with everything that demo, test and lint need

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "modicum needs Python 3.11 or newer; this is $$($(PYTHON) --version 2>&1). Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up .venv (once; mostly the download of PyTorch) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) -e '.[dev]'
	@touch $@

$(READY_DOCS): $(READY)
	@echo "Adding what builds the documentation ..."
	@$(PIP) -e '.[docs]'
	@touch $@

demo: $(READY)  ## compress a real language model and write a report, in about a minute
	@echo "modicum demo --out $(OUT)"
	@$(BIN)/modicum demo --out $(OUT)

# One thread each, because the models are tiny; side by side, because there are many.
test: $(READY)  ## run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --maxprocesses 4 $(TEST_FLAGS)

lint: $(READY)  ## check style, types, and which floor imports which
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check -q .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(READY)  ## let ruff rewrite what it can
	@$(BIN)/ruff check -q --fix .
	@$(BIN)/ruff format -q .

docs: $(READY_DOCS)  ## build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

readme: $(READY)  ## run what README and docs show, and put the results in
	@$(BIN)/python docs/generate.py

bench: $(READY)  ## measure time and memory of three methods; see benchmarks/README.md
	@$(BIN)/python benchmarks/against_llmcompressor.py src/modicum/zoo/weights/nano-lm --tools modicum --methods wanda sparsegpt gptq --repeats 1 --tries 1

clean:  ## remove what make made
	@rm -rf .venv site build $(OUT)
