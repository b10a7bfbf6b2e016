# make demo   a photograph to a .hpcm file and back
# make test   the whole test suite, in two processes that take a file each
# make lint   what CI checks besides
# All in an environment of their own, made by the first of them: VENV=.venv PYTHON=python3

PYTHON ?= python3
VENV ?= .venv
READY := $(VENV)/.installed
RUN := $(VENV)/bin/python -m

.PHONY: demo test lint install clean

demo: $(READY)
	@$(VENV)/bin/python tools/demo.py

test: $(READY)
	$(RUN) pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(READY)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
