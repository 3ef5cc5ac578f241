# Each target sets up what it needs (.venv, once) and is one or two lines.
SHELL := /bin/bash
PYTHON ?= python3
ENV := .venv/.ready
RUN := .venv/bin/

# A copied checkout brings the environment of the original along, which runs the original's code: make another.
ifneq ($(filter-out $(CURDIR),$(shell cat .venv/.ready 2>/dev/null)),)
$(shell rm -rf .venv)
endif

.PHONY: demo help install test test-all lint docs bench ui clean

demo: $(ENV)  ## generated data, 16 short trainings, verdicts, report.html (6 to 11 minutes on two CPU cores)
	$(RUN)biaswise demo

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*  ## (.*)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

install: $(ENV)  ## .venv with everything, and nothing else; every other target does it, too

test: $(ENV)  ## the fast tests
	$(RUN)pytest -n 2 --dist worksteal -q -m "not slow" tests

# Everything: what `make test` runs, then what it leaves out; the longest first, handed out one by one.
test-all: test  ## all tests: clusters, faults, browsers, database servers too
	$(RUN)pytest -n 2 --maxschedchunk 1 -q -m slow tests

lint: $(ENV) docs  ## ruff, mypy, import-linter, the pages
	$(RUN)ruff check . && $(RUN)ruff format --check . && $(RUN)mypy && $(RUN)lint-imports

# The pages, in site/; a dead link or a name that does not exist fails. `.venv/bin/mkdocs serve` shows them with a search.
docs: $(ENV)  ## the pages as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(RUN)mkdocs build --strict

bench: $(ENV)  ## times the attention implementations
	$(RUN)biaswise operators bench

ui: $(ENV)  ## MLflow on http://127.0.0.1:5000
	$(RUN)biaswise ui

clean:  ## removes .venv and site
	rm -rf .venv site

# pip fetches torch, because it may find a CPU build on this machine; uv installs it with the rest in a fifth of pip's time, and
# compiles all: a study starts many Python processes, and each would do it anew where PYTHONDONTWRITEBYTECODE is set.
WHEELS := .venv/wheels
UV := VIRTUAL_ENV=$(CURDIR)/.venv .venv/bin/uv pip install -q --compile-bytecode
$(ENV): pyproject.toml constraints.txt requirements-nodeps.txt
	$(PYTHON) -m venv .venv
	$(RUN)pip install -q -c constraints.txt uv
	$(RUN)pip download -q --no-deps -c constraints.txt -d $(WHEELS) torch
	$(UV) -c constraints.txt $(WHEELS)/*.whl -e '.[dev]'
	$(UV) --no-deps -r requirements-nodeps.txt
	rm -r $(WHEELS)
	echo $(CURDIR) > $@
