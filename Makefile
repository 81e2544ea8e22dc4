# `make demo` installs csstdask and runs it on a mock night; `make test` installs the test dependencies and runs the tests.

PYTHON ?= python3
VENV := .venv
# Folder of real images, for the benchmarks that use them.
IMAGES ?=
# Folder of spectral libraries, for the benchmark of SEDs.
SPECTRA ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Number of parallel test processes.
JOBS ?= $(shell $(PYTHON) -c "import os; print(min(4, os.cpu_count() or 1))")

# One thread per process: processes whose libraries use all cores slow each other down.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --durations 25

.PHONY: demo test test-all test-wheel test-newest bench docs lint typecheck check clean

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

# Also trainings, evaluations, long kill tests, and the code blocks of the documentation.
test-all: $(VENV)/installed-dev
	$(PYTEST) $(ARGS)
	$(MAKE) docs

# Installs the wheel in an empty environment: it must contain its data and declare its dependencies.
test-wheel:
	rm -rf build/wheel && mkdir -p build/wheel
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	build/wheel/venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt build/wheel/*.whl
	cd build/wheel && venv/bin/csstdask models && venv/bin/csstdask mock demo --scale 0.1 --to demo.zarr && \
	venv/bin/csstdask run demo.zarr --to run.zarr && venv/bin/csstdask status run.zarr --verify

# Tests without constraints, with another Python: make test-newest NEWEST=python3.13
NEWEST ?= python3
test-newest:
	rm -rf build/newest
	$(NEWEST) -m venv build/newest
	build/newest/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,peers]'
	OMP_NUM_THREADS=1 build/newest/bin/python -m pytest -n $(JOBS) --dist loadfile -m "not slow" $(ARGS)

bench: $(VENV)/installed-dev
	$(PIP) --editable '.[bench]'
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/projections.py $(IMAGES) --full
	test -z "$(IMAGES)" || $(BIN)/python benchmarks/repair_real.py $(IMAGES)
	test -z "$(IMAGES)" || $(BIN)/python benchmarks/clean.py $(IMAGES)
	$(BIN)/python benchmarks/resume.py
	$(BIN)/python benchmarks/lacosmic_settings.py
	$(BIN)/python benchmarks/cosmicray.py
	$(BIN)/python benchmarks/inpaint.py source-unet
	$(BIN)/python benchmarks/kept_memory.py
	$(BIN)/python benchmarks/psf.py
	$(BIN)/python benchmarks/mock.py
	test -z "$(SPECTRA)" || $(BIN)/python benchmarks/sed.py $(SPECTRA)
	$(BIN)/python benchmarks/tables

# The documentation site; warnings are errors. Notebooks are executed once and cached.
docs: $(VENV)/installed-dev
	$(PIP) --editable '.[docs]'
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH=$(BIN):$$PATH lint-imports

typecheck: $(VENV)/installed-dev
	$(BIN)/mypy

check: lint typecheck test

clean:
	rm -rf $(VENV) demo build dist *.egg-info
