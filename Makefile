# Two commands do all the set-up: `make demo` installs and runs the main job, `make test` installs and passes the tests.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# The tests are many short processes: a few workers, never more than there are cores.
JOBS ?= $(shell $(PYTHON) -c "import os; print(min(4, os.cpu_count() or 1))")

# One thread a worker: workers whose libraries share the cores wait for each other.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --durations 25

.PHONY: demo test test-all bench lint typecheck check clean

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --editable '.[test,lint,peers]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/csstdask demo

test: $(VENV)/installed-dev
	$(PYTEST) -m "not slow" $(ARGS)

# The tests above, and trainings, evaluations and long kill tests: half an hour.
test-all: $(VENV)/installed-dev
	$(PYTEST) $(ARGS)

bench: $(VENV)/installed-dev
	$(PIP) --editable '.[bench]'
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/resume.py
	$(BIN)/python benchmarks/lacosmic_settings.py
	$(BIN)/python benchmarks/cosmicray.py
	$(BIN)/python benchmarks/inpaint.py source-unet
	$(BIN)/python benchmarks/kept_memory.py
	$(BIN)/python benchmarks/psf.py
	$(BIN)/python benchmarks/mock.py
	$(BIN)/python benchmarks/readme_tables.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH=$(BIN):$$PATH lint-imports

typecheck: $(VENV)/installed-dev
	$(BIN)/mypy

check: lint typecheck test

clean:
	rm -rf $(VENV) demo build dist *.egg-info
