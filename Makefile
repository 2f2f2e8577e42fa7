# make demo     run the examples against a local server and show the account (no key, no network but for pip)
# make test     the test suite
# make lint     ruff and mypy
# make bench    the benchmarks (minutes)
# make soak     the long tests: what `make test` shows in short form, at full length
# make pictures  draw the pictures of docs/pictures that show a terminal
# make clean    remove what the others made
#
# Everything happens in .venv, made with $(PYTHON). The stamp files in it say what is installed, so that a second run
# installs nothing; a change of pyproject.toml does.

PYTHON ?= python3
VENV ?= .venv

# Compiling on import costs less than compiling everything at once: most of what is installed is never imported.
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet
DEMO := $(VENV)/.installed-demo
DEV := $(VENV)/.installed-dev
# The peers that the benchmarks measure are instrumentors too: in an environment of their own they record nothing here.
BENCH_VENV := $(VENV)-bench
BENCH := $(BENCH_VENV)/.installed

.PHONY: demo test lint bench soak pictures clean
.DELETE_ON_ERROR:

demo: $(DEMO)
	$(VENV)/bin/python examples/demo.py

test: $(DEV)
	$(VENV)/bin/pytest -n auto --maxprocesses 4 --dist loadgroup $(PYTEST_ARGS)

lint: $(DEV)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(BENCH)
	set -e; for file in $(filter-out %/soak.py,$(wildcard benchmarks/[a-z]*.py)); do $(BENCH_VENV)/bin/python $$file; done

soak: $(DEV)
	$(VENV)/bin/python benchmarks/soak.py

pictures: $(DEV)
	$(VENV)/bin/python docs/pictures/make.py

clean:
	rm -rf $(VENV) $(BENCH_VENV) .demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python $(BENCH_VENV)/bin/python:
	$(PYTHON) -m venv $(patsubst %/bin/python,%,$@)

# Editable: what is changed in otel_llm/ is there at once. uvicorn serves examples/local_openai.py.
$(DEMO): pyproject.toml | $(VENV)/bin/python
	$(PIP) install --no-compile --editable '.[openai,langchain]' uvicorn
	@touch $@

$(DEV): pyproject.toml | $(VENV)/bin/python
	$(PIP) install --no-compile --editable '.[dev]'
	@touch $(DEMO) $@

$(BENCH): pyproject.toml | $(BENCH_VENV)/bin/python
	$(BENCH_VENV)/bin/python -m pip --disable-pip-version-check --quiet install --editable '.[dev,bench]'
	@touch $@
