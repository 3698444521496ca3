# Each target does all of its own set-up: a virtual environment in .venv with the locked packages and this checkout.

PYTHON ?= $(shell for each in python3.11 python3.12 python3.13 python3 python; do \
	"$$each" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$each"; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# tests wait more than they work: twice the cores is quicker
JOBS ?= 4
TESTS ?= tests
# files that are synced all the time and thrown away: in memory where that has 6 GB to spare
SCRATCH ?= $(shell test "$$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1)" -gt 6000000 2>/dev/null && echo /dev/shm)

.PHONY: setup demo test lint bench lock clean

setup: $(READY)

$(READY): pyproject.toml ci.lock
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer with venv was found: apt-get install python3-venv," \
		"or say make PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --requirement ci.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: $(READY)
	$(BIN)/replicator demo

test: $(READY)
	$(if $(SCRATCH),TMPDIR=$(SCRATCH)) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations 15 $(TESTS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(READY)
	$(BIN)/python -m ops.bench

# Newer packages: resolve again, then run the tests.
lock:
	$(BIN)/python -m pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --upgrade --strip-extras --allow-unsafe --no-header --no-emit-options --no-emit-index-url \
		--no-emit-trusted-host --no-emit-find-links --extra embedded --extra otlp --extra dev --output-file ci.lock pyproject.toml

clean:
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis
