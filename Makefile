# Muster: everything that people and CI run. `make` alone says what there is.
#
#   make demo DEVICES=200 SEED=1     provision a fleet, start to end
#   make test                        the whole test suite
#   make check                       lint, types, import rules, tests: what CI runs
#   make simulate SEEDS=100000       the engine under simulated accidents, for a night

PYTHON ?= python3
VENV := .venv
MUSTER := $(VENV)/bin/muster

# The demo's variables; an empty one leaves the command's own default.
DEVICES ?= 200
SEED ?=
STATE ?= .muster
BEHAVIOURS ?=
# FRESH=1 throws an earlier unfinished run in STATE away, RESUME=1 goes on with it.
FRESH ?=
RESUME ?=

# How many seeds the simulation runs, and the first of them.
SEEDS ?= 10000
FIRST ?= 0

# One more than CI has cores: half of what the tests do is waiting.
TEST_WORKERS ?= 3
PYTEST_ARGS ?=
# Tests start some hundred Python processes, each of which would compile all that it imports.
RUN_TESTS = env -u PYTHONDONTWRITEBYTECODE $(VENV)/bin/python -m pytest -n $(TEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

.DEFAULT_GOAL := help
.PHONY: help setup demo test check simulate pictures format clean

help:
	@echo "make demo      provision a fleet of DEVICES=$(DEVICES) simulated devices, start to end"
	@echo "               (also: SEED=…, STATE=$(STATE), BEHAVIOURS=healthy=0.9,slow=0.1, FRESH=1, RESUME=1)"
	@echo "make test      run all tests"
	@echo "make check     run ruff, mypy, lint-imports and all tests"
	@echo "make simulate  run SEEDS=$(SEEDS) seeds of the engine's simulation, from FIRST=$(FIRST) on, on all cores"
	@echo "make pictures  take the README's pictures of the page, from a real fleet (needs Chromium)"
	@echo "make format    let ruff format the code and fix what it can"
	@echo "make setup     make the virtual environment $(VENV) from requirements.lock (the others do it too)"
	@echo "make clean     remove $(VENV), caches and the state directory $(STATE)"

# What defines the environment is hashed; where the stamp has that hash there is nothing to do and no network.
# The environment is made without pip, and pip works on it from outside: so neither Debian's missing ensurepip
# nor its externally-managed marker (PEP 668) is in the way. What pip says is shown where it fails by itself: its
# traceback of a Ctrl-C helps nobody.
setup:
	@set -eu; \
	key="$$(cat requirements.lock pyproject.toml | cksum)"; \
	if [ "$$(cat $(VENV)/muster-setup 2>/dev/null)" = "$$key" ] && $(VENV)/bin/python -c '' 2>/dev/null; then exit 0; fi; \
	command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) is not on PATH: install Python 3.11 or newer (Debian: apt-get install python3 python3-pip)" >&2; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Muster needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V): name another one, as in 'make PYTHON=python3.12 $(or $(MAKECMDGOALS),setup)'" >&2; exit 1; }; \
	$(PYTHON) -m pip --version >/dev/null 2>&1 || { \
	  echo "$(PYTHON) has no pip: install it (Debian: apt-get install python3-pip)" >&2; exit 1; }; \
	$(VENV)/bin/python -c '' 2>/dev/null || $(PYTHON) -m venv --without-pip --clear $(VENV); \
	rm -f $(VENV)/muster-setup; \
	echo "Installing $$(grep -c '==' requirements.lock) pinned packages into $(VENV) (once; a minute or so)"; \
	pip="$(PYTHON) -m pip --python $(VENV)/bin/python --disable-pip-version-check install --quiet --no-input"; \
	log="$(VENV)/muster-setup.log"; \
	trap 'echo "interrupted: nothing runs any more; \"make $(or $(MAKECMDGOALS),setup)\" begins again" >&2; exit 130' INT TERM HUP; \
	$$pip --require-hashes --only-binary=:all: -r requirements.lock 2>"$$log" || { cat "$$log" >&2; exit 1; }; \
	$$pip --no-build-isolation --no-deps -e . 2>"$$log" || { cat "$$log" >&2; exit 1; }; \
	trap - INT TERM HUP; \
	echo "$$key" > $(VENV)/muster-setup

demo: setup
	@$(MUSTER) demo --devices "$(DEVICES)" --state-dir "$(STATE)" \
	  $(if $(SEED),--seed "$(SEED)") $(if $(BEHAVIOURS),--behaviours "$(BEHAVIOURS)") \
	  $(if $(FRESH),--fresh) $(if $(RESUME),--resume)

test: setup
	@$(RUN_TESTS)

# Types and imports are checked while the tests run, which wait a lot. What is wrong with them is shown at once, and
# again in the end.
check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	@set -u; log="$$(mktemp)"; \
	{ { $(VENV)/bin/mypy && $(VENV)/bin/lint-imports; } >"$$log" 2>&1 || { echo; cat "$$log"; exit 1; } >&2; } & \
	types=$$!; trap 'kill $$types 2>/dev/null; rm -f "$$log"' EXIT; trap 'exit 130' INT TERM HUP; \
	tests=0; $(RUN_TESTS) || tests=$$?; \
	wait $$types || tests=1; cat "$$log"; exit $$tests

simulate: setup
	@$(VENV)/bin/python -m tests.simulation --seeds "$(SEEDS)" --first "$(FIRST)"

pictures: setup
	@$(VENV)/bin/python docs/pictures/take.py

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) $(STATE) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
