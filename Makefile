# Everything happens in .venv; `make demo` and `make test` set it up if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two thread pools on two cores are far slower than one.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo test test-slow lint audit bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.ready  ## make .venv with everything in it

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stlab needs Python 3.11 or newer, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

demo: setup  ## the ablation study on a small generated city, local Ray, MLflow on sqlite
	$(BIN)/stlab run demo --storage demo

test: setup lint  ## linters and tests, within 6 minutes on 2 cores
	$(BIN)/python -m pytest -m 'not slow' -n auto --dist loadfile --durations 10

test-slow: setup  ## tests that take long, start a Ray cluster, or need a server: within 35 minutes on 2 cores
	$(BIN)/python -m pytest -m slow -n auto --dist loadfile --durations 10 tests/engine tests/models
	$(BIN)/python -m pytest -m slow --durations 10 tests/cluster

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy platform/stlab
	$(BIN)/lint-imports

audit: setup  ## known vulnerabilities of what constraints.txt pins (asks PyPI; --strict: what could not be asked about is an error)
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

bench: setup  ## speed, as ratios in one run
	$(BIN)/python -m pytest tests/benchmarks -s -o python_files='bench_*.py'

clean:  ## remove .venv and caches; results stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
