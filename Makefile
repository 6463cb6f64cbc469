# The two commands: `make demo` and `make test`. Both set everything up; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
# Tests start hundreds of processes: without byte code on the disk each compiles the package again.
test long slow unit: export PYTHONDONTWRITEBYTECODE :=
.PHONY: help demo demo-federation test long slow unit benchmark lint install clean

help:  ## Show this list.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 17

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (PYTHON=...)."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m compileall -q eucaim_fl
	@touch $(STAMP)

install: $(STAMP)  ## Make .venv and install into it what constraints.txt pins.

demo: $(STAMP)  ## Build four demo hospitals and train over them.
	@$(BIN)/eucaim-fl train experiment=demo

demo-federation: $(STAMP)  ## Start a coordinator and three hospitals on this machine, train, show what left each.
	@$(BIN)/python experiments/demo_federation.py

test: $(STAMP)  ## Run the test suite, but for what `make long` and `make slow` run.
	$(BIN)/python -m pytest -n 4 --dist loadfile -m 'not (long or slow)'

long: $(STAMP)  ## Run the longest tests: whole federations with faults, searches through all that one wrote.
	$(BIN)/python -m pytest -n 4 --dist loadfile -m 'long and not slow'

slow: $(STAMP)  ## Run the benchmarks and demonstrations from end to end, as tests: that they work, not how fast.
	$(BIN)/python -m pytest -m slow

unit: $(STAMP)  ## Run the tests of single parts (no whole cohort, run or repository, no real data), with fewer random examples.
	$(BIN)/python -m pytest -n 2 --dist loadfile --hypothesis-profile=quick -m 'not (long or slow or federated or integration or pacs or realdata)'

benchmark: $(STAMP)  ## Train and test the benchmark in small, and check that its models come in the right order.
	$(BIN)/eucaim-fl benchmark experiment=benchmark_reduced --check

lint: $(STAMP)  ## Run the linters and the type checker.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint --config docker/hadolint.yaml docker/*.Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml
	$(BIN)/compose-lint --config docker/compose-lint.yaml --strict-config --fail-on low docker/compose.yaml

clean:  ## Remove the environment and caches; data and runs stay.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
