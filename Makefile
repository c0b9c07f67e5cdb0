# Every target works on a fresh clone and does no more than is needed: .venv is made and filled by tools/install.sh, which returns
# at once when nothing changed. Options: PYTHON=/path/to/python3.12 (for a new .venv), ARGS="..." (passed to the program that runs).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

ARGS ?=
PY := .venv/bin/python
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n > 4 ? 4 : n)))
REPORTS := out/check
SPHINX := $(PY) -m sphinx -W --keep-going -q -d docs/_build/doctrees

.PHONY: help demo test test-ci check bench gpu docs api mutants clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

demo: ## adapt a pretrained transformer on real text (ARGS="--steps 50 --methods hra")
	@start=$$SECONDS; tools/install.sh demo demo; echo "install: $$((SECONDS - start)) s"
	@start=$$SECONDS; $(PY) docs/examples/adapt_text_classifier.py $(ARGS); echo "run: $$((SECONDS - start)) s"

test: ## the tests, one thread a worker (ARGS="-k toeplitz")
	@tools/install.sh test testing,demo,peft pytest-xdist
	@mkdir -p $(REPORTS)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY) -m pytest -q -n $(WORKERS) --dist worksteal --junitxml=$(REPORTS)/tests.xml $(ARGS)

test-ci: ## the tests under the thorough hypothesis profile
	@HYPOTHESIS_PROFILE=ci $(MAKE) test

bench: ## the benchmarks against the peers (ARGS="--quick")
	@tools/install.sh bench bench
	$(PY) -m benchmarks $(ARGS)

gpu: ## on a machine with a GPU: the kernels' correctness, then their timings (PYTHON's packages, nothing is installed; ARGS="--dry-run")
	$(or $(PYTHON),$(shell command -v python3 || command -v python)) -m benchmarks.gpu $(ARGS)

docs: ## the documentation, warnings are errors, into docs/_build/html
	@tools/install.sh docs docs
	$(SPHINX) -b html docs docs/_build/html

mutants: ## break the library in 200 places, one at a time, and count what the tests notice (ARGS="--seed 5 --count 40")
	@tools/install.sh test testing,demo,peft pytest-xdist
	$(PY) tests/mutants.py --jobs $(WORKERS) $(ARGS)

api: ## write tests/public_api.txt anew, after an intended change of the public API
	@tools/install.sh test testing,demo,peft pytest-xdist
	PYTHONPATH=. $(PY) tests/test_public_api.py

check: ## everything the build server runs
	@tools/install.sh dev dev
	@PY=$(PY) tools/check.sh

clean: ## remove what the targets wrote, .venv included
	rm -rf .venv out build dist docs/_build structmat.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
