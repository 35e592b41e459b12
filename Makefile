# Set-up is part of every target: a machine with Python ≥ 3.11 and make needs nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup train report docs test test-all test-faults lint bench lock clean

help:
	@echo "make train     set up, then train PERLA on a foraging map: table, curve and replay"
	@echo "make report    set up, then compare two methods in two minutes: a page with curves and replays"
	@echo "make docs      set up, then build the documentation as a site: site/index.html"
	@echo "make test      set up, then lint, types and tests"
	@echo "make test-all  the same with the long learning tests"
	@echo "make test-faults  set up, then 200 kills, full disks, read-only folders"
	@echo "make bench     set up, then measure speed"
	@echo "make setup     a virtual environment with pinned, hashed dependencies"

setup: $(VENV)/.run

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "perla needs Python >= 3.11; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements/run.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements/run.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.run
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements/dev.txt
	@touch $@

train: $(VENV)/.run
	$(BIN)/perla train

# Each call continues or reuses the runs of the last one.
report: $(VENV)/.run
	$(BIN)/perla compare ippo perla-ippo --env lbf:Foraging-5x5-2p-1f-v2 --steps 100_000 --seeds 3 \
	  --num-evaluations 10 --out runs/report --quiet
	$(BIN)/perla report runs/report --out runs/report/report.html

# Strict: a broken link and a public name without its docstring are errors.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "the site is site/index.html; it needs no network"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-all: lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m ""

# Not part of the tests above: these files are named here, and nowhere else.
test-faults: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 tests/faults/disks.py tests/faults/kills.py

bench: $(VENV)/.dev
	$(BIN)/perla bench env
	$(BIN)/perla bench train

# The pins: hashes, and no index addresses. Needs uv.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --custom-compile-command "make lock" \
	  pyproject.toml requirements/build.in --output-file requirements/run.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --custom-compile-command "make lock" --group dev --extra bench \
	  pyproject.toml requirements/build.in --output-file requirements/dev.txt --constraint requirements/run.txt

clean:
	rm -rf $(VENV) .cache build dist site .pytest_cache .ruff_cache .mypy_cache
