# Every target sets up its own environment on first use and brings it up to date later: `make demo` is all one has to type.
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n 2 --dist worksteal

BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)

.DEFAULT_GOAL := help
.PHONY: help demo test bench lint format gpu clean

help:  ## say what there is to make
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1|/' | column -t -s '|'
	@echo
	@echo "  PYTHON=$(PYTHON) (3.11 or newer) makes the environment VENV=$(VENV), from requirements.txt"

demo: $(VENV)/.built  ## train SimCLR on real images, in under two minutes, and see what it learned
	$(BIN)/python -m methods demo

test: $(VENV)/.built  ## run the tests; those for a GPU run where there is one
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(VENV)/.built  ## time and weigh every loss against its alternatives on this machine
	$(BIN)/python -m benchmarks

lint: $(VENV)/.installed  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed  ## put the style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

gpu:  ## test and time everything on an NVIDIA GPU, with the Python at hand: installs nothing, needs no network
	bash benchmarks/gpu.sh

clean:  ## remove what was built; the environment's packages stay
	rm -rf build dist *.egg-info ssl_kernels/_C.*.so ssl_kernels/_cuda.*.so ssl_kernels/_build.json $(VENV)/.built
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "PYTHON=$(PYTHON) is Python " + sys.version.split()[0] + "; 3.11 or newer is needed: make ... PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --requirement requirements.txt
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m ssl_kernels
	@touch $@
