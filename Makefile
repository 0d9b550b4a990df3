# The commands of the README. `make demo` and `make test` work from a fresh clone with
# Python >= 3.11 and make; everything they need is installed into .venv, pinned.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WORKDIR ?= runs/digits
SEED ?= 0
# One process per core; each keeps XLA to itself.
WORKERS ?= 2

.PHONY: demo test lint format bench clean

demo: $(VENV)/.installed
	$(BIN)/python main.py --mode demo --config configs/digits/default.py --workdir $(WORKDIR) --config.seed=$(SEED)

test: $(VENV)/.installed-test
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest tests -n $(WORKERS) --dist worksteal --durations=15

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/sampler_overhead.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/networks.py
	$(BIN)/python benchmarks/quality_per_minute.py
	$(BIN)/python benchmarks/solver_error.py --plot docs/solver_error.png
	$(BIN)/python benchmarks/learned_grid.py
	$(BIN)/python benchmarks/guidance.py
	$(BIN)/python benchmarks/dmcmc.py

clean:
	rm -rf $(VENV) build *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "diffjax needs Python >= 3.11; set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python setup.py constraints.txt
	$(INSTALL) --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) --editable '.[test]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --editable '.[dev]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(INSTALL) --editable . --requirement benchmarks/requirements.txt
	touch $@
