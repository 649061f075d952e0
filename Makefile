# `make demo` and `make test` do all the set-up on a machine that has only Python 3.11 (or newer) and make.
#
#   PYTHON=...       the interpreter that .venv is made with
#   TORCH_INDEX=...  the package index torch is taken from (a CPU build, say); else the configured registry
#   RUN=...          the directory of the demo's run
#   TESTERS=...      how many processes share the tests
#   SECONDS_OF_FUZZ  how long `make fuzz` tries messages once all is compiled

PYTHON ?= $(shell command -v python3.11 || command -v python3)
RUN ?= runs/demo
TESTERS ?= 2
SECONDS_OF_FUZZ ?= 60
BIN := .venv/bin
TORCH = $(shell grep '^torch==' constraints.txt)

.PHONY: help setup demo test check-full fuzz lint bench clean

help:
	@echo "make demo        set up, compare the methods on real data, write $(RUN)/report.html"
	@echo "make test        set up, then linters, type checker and tests"
	@echo "make check-full  the same with the slow tests, more generated examples and the whole check of every entry"
	@echo "make fuzz        damaged messages for $(SECONDS_OF_FUZZ) s, for every decoder"
	@echo "make bench       the benchmarks"
	@echo "make setup       set up only"
	@echo "make clean       remove what these commands made"

setup: .venv/installed

# torch has a step of its own: asked for by another package, it would come in the newest build, gigabytes of it
.venv/torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("laconic needs Python 3.11 or newer: make PYTHON=python3.11") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@touch $@

.venv/installed: .venv/torch pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	rm -rf $(RUN)
	$(BIN)/laconic run examples/demo.toml --out $(RUN)
	$(BIN)/laconic report $(RUN)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

test: lint
	$(BIN)/python -m pytest -n $(TESTERS) --dist worksteal

check-full: lint
	OMP_NUM_THREADS=2 HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest -n $(TESTERS) --dist worksteal -m "slow or not slow"
	$(BIN)/laconic check --whole

# compiled code that checks bounds has a cache of its own, made anew: numba would not tell it from the other
fuzz: setup
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[fuzz]' || echo "atheris cannot be installed here"
	@rm -rf build/fuzz && mkdir -p build/fuzz/findings
	NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=build/fuzz/cache LACONIC_FUZZ_OUT=build/fuzz/findings \
		$(BIN)/python tests/fuzz_decoders.py $(SECONDS_OF_FUZZ)

bench: setup
	@for file in benchmarks/[a-z]*.py; do echo "$$file"; $(BIN)/python "$$file" || exit 1; done

clean:
	rm -rf .venv $(RUN) build dist .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
