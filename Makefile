# These commands do everything on a fresh machine:
#   make demo     sets up .venv and segments the bundled sample patient from two of its four sequences
#   make review   sets up .venv with the browser application and starts it on the sample patient
#   make test     sets up .venv with the test tools and runs the tests
.DEFAULT_GOAL := help
SHELL := /bin/sh

# The first Python from 3.10 to 3.13 that really starts (a pyenv shim may exist and not run).
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13 python3.10 python; do \
	if $$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
	then echo $$p; break; fi; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
SAMPLE := Resources/sample
DEMO := out/demo
REVIEW := out/review

.PHONY: help setup demo review test lint format benchmark sample clean

help:
	@echo "make demo       set up, then segment the bundled sample patient from T1Gd and FLAIR"
	@echo "make review     set up, then look at the sample patient in a browser (Ctrl-C ends it)"
	@echo "make test       set up, then run the tests"
	@echo "make lint       ruff and mypy"
	@echo "make benchmark  time and memory of the network and of a whole case"
	@echo "make sample     build the synthetic sample patient again"

.venv/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo "No Python 3.10 to 3.13 with venv was found; install one or run: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# What a user needs.
.venv/.user: .venv/pyvenv.cfg pyproject.toml constraints.txt
	@echo "Installing MSTKDSegment and its packages into .venv (torch is large; this takes a few minutes) ..."
	$(PIP) --editable .
	@touch $@

# What the browser application needs besides.
.venv/.review: .venv/.user
	@echo "Installing Slicer's views for the browser into .venv ..."
	$(PIP) --editable ".[review]"
	@touch $@

# What a developer needs besides: training, the sample generator, tests, linters, Slicer's own MRML code, the browser
# application. All at once, so that they agree on one version of Slicer's.
.venv/.developer: .venv/.user
	@echo "Installing the test and training packages into .venv ..."
	$(PIP) --editable ".[train,sample,test,review]"
	@touch $@

setup: .venv/.user

demo: setup
	$(BIN)/mstkd segment \
		--t1gd $(SAMPLE)/sample_t1gd.nii.gz --flair $(SAMPLE)/sample_flair.nii.gz \
		--ground-truth $(SAMPLE)/sample_seg.nii.gz \
		--output $(DEMO)/sample.seg.nrrd --report $(DEMO)/sample.png --report $(DEMO)/sample.html --overwrite

review: .venv/.review
	$(BIN)/mstkd review $(SAMPLE) --verdicts $(REVIEW)/verdicts.csv

test: .venv/.developer
	$(BIN)/python -m pytest

lint: .venv/.developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.developer
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: setup
	$(BIN)/mstkd bench

sample: .venv/.developer
	$(BIN)/python -m training.sample_patient --out $(SAMPLE)

clean:
	rm -rf .venv out build
