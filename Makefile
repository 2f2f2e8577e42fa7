# make demo     run the examples against a local server and show the account (no key, no network but for pip)
# make test     the test suite
# make test-newest  the test suite on the newest of everything, with what is newer than what was tested
# make outdated  only say what is newer
# make constraints  have the newest of everything be what is tested: writes constraints.txt
# make lint     ruff and mypy
# make bench    what recording costs, beside its peers, and what the command line does (a quarter of an hour)
# make matrix   which ways to call a model are recorded right, here and by peers (minutes)
# make soak     the long tests: what `make test` shows in short form, at full length
# make release  build what is released, twice, with its bill of materials; publishes nothing (docs/releasing.md)
# make pictures  draw the pictures of docs/pictures that show a terminal or the browser page
# make clean    remove what the others made
#
# Everything happens in .venv, made with $(PYTHON). The stamp files in it say what is installed, so that a second run
# installs nothing; a change of pyproject.toml or constraints.txt does.
#
# What is installed is what was tested: constraints.txt names one version of everything, for every Python and platform.
# Libraries that we stand on are released weekly. `make test-newest` goes without it, in an environment of its own.

PYTHON ?= python3
VENV ?= .venv

# Compiling on import costs less than compiling everything at once: most of what is installed is never imported.
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet
CONSTRAINTS := constraints.txt
# The environments in which wheels are built obey these; old versions of pip know the first alone.
export PIP_CONSTRAINT := $(CONSTRAINTS)
export PIP_BUILD_CONSTRAINT := $(CONSTRAINTS)

DEMO := $(VENV)/.installed-demo
DEV := $(VENV)/.installed-dev
# Peers are instrumentors too: in environments of their own they record nothing here.
BENCH_VENV := $(VENV)-bench
MATRIX_VENV := $(BENCH_VENV)/matrix
MATRIX := $(MATRIX_VENV)/.installed

RELEASE_VENV := $(VENV)-release
RELEASE := $(RELEASE_VENV)/.installed

NEWEST_VENV := $(VENV)-newest
NEWEST := $(NEWEST_VENV)/constraints.txt
NEWEST_PIP := $(NEWEST_VENV)/bin/python -m pip --disable-pip-version-check --quiet
# It finds one version of everything that goes with every Python from the oldest on; pip knows the running one alone.
UV := $(VENV)-uv/bin/uv
# Of what wheels are built with (the second for editable installs) one version too. `--upgrade`: not what the file has already.
RESOLVE = printf 'hatchling\neditables\n' | $(UV) --quiet pip compile pyproject.toml - --extra dev \
	--universal --python-version 3.11 --upgrade --strip-extras --no-annotate --custom-compile-command 'make constraints'

.PHONY: demo test test-newest outdated constraints lint bench matrix soak release pictures clean
.DELETE_ON_ERROR:

demo: $(DEMO)
	rm -rf .demo && $(VENV)/bin/otel-llm demo .demo

test: $(DEV)
	$(VENV)/bin/pytest -n auto --maxprocesses 4 --dist loadgroup $(PYTEST_ARGS)

# pytest ends with its own summary; what changed is the first thing to look at, so it comes last, where the tests failed or not.
test-newest: outdated
	$(NEWEST_PIP) install --no-compile --upgrade --constraint $(NEWEST) --editable '.[dev]'
	@code=0; $(NEWEST_VENV)/bin/pytest -n auto --maxprocesses 4 --dist loadgroup $(PYTEST_ARGS) || code=$$?; \
	$(NEWEST_VENV)/bin/python .ci/newer $(CONSTRAINTS) $(NEWEST); exit $$code

test-newest outdated: export PIP_CONSTRAINT :=
test-newest outdated: export PIP_BUILD_CONSTRAINT :=
outdated: $(UV) | $(NEWEST_VENV)/bin/python
	@$(RESOLVE) --output-file $(NEWEST) >/dev/null
	@$(NEWEST_VENV)/bin/python .ci/newer $(CONSTRAINTS) $(NEWEST)

constraints: $(UV)
	@$(RESOLVE) --output-file $(CONSTRAINTS) >/dev/null

lint: $(DEV)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# It makes an environment for each of those whom it compares, in $(BENCH_VENV).
bench: $(DEV)
	@$(VENV)/bin/python benchmarks/cost/table.py $(BENCH_ARGS)
	@$(VENV)/bin/python benchmarks/cli_start.py

matrix: $(MATRIX)
	set -e; for name in matrix estimates; do $(MATRIX_VENV)/bin/python benchmarks/$$name.py; done

soak: $(DEV)
	$(VENV)/bin/python benchmarks/soak.py

release: $(RELEASE)
	@$(RELEASE_VENV)/bin/python .ci/release $(RELEASE_ARGS)

pictures: $(DEV)
	$(VENV)/bin/python docs/pictures/make.py
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/python docs/pictures/pages.py

clean:
	rm -rf $(VENV) $(VENV)-uv $(BENCH_VENV) $(NEWEST_VENV) $(RELEASE_VENV) .demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python $(MATRIX_VENV)/bin/python $(NEWEST_VENV)/bin/python $(RELEASE_VENV)/bin/python:
	$(PYTHON) -m venv $(patsubst %/bin/python,%,$@)

# They look at what was made, and are no part of it.
$(RELEASE): | $(RELEASE_VENV)/bin/python
	PIP_CONSTRAINT= $(RELEASE_VENV)/bin/python -m pip --disable-pip-version-check --quiet install build twine cyclonedx-bom
	@touch $@

# The newest uv itself: an old one may not read what a registry says a year from now.
$(UV):
	$(PYTHON) -m venv $(VENV)-uv
	PIP_CONSTRAINT= $(VENV)-uv/bin/python -m pip --disable-pip-version-check --quiet install uv

# Editable: what is changed in otel_llm/ is there at once.
$(DEMO): pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP) install --no-compile --editable '.[demo]'
	@touch $@

$(DEV): pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP) install --no-compile --editable '.[dev]'
	@touch $(DEMO) $@

$(MATRIX): pyproject.toml $(CONSTRAINTS) | $(MATRIX_VENV)/bin/python
	$(MATRIX_VENV)/bin/python -m pip --disable-pip-version-check --quiet install --editable '.[dev,bench]'
	@touch $@
