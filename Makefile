# SPDX-License-Identifier: Apache-2.0
# Needs Python 3.11 or newer, make and a package index. Everything lands in $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# for `make train`
DATA ?=
RECIPE ?= recipes/baseline.toml
RUN ?= runs/baseline
MINUTES ?=

.DEFAULT_GOAL := help
.PHONY: help install run test lint format types bench train need-data wheel-smoke clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1#\2/p' $(MAKEFILE_LIST) | \
		while IFS='#' read -r target what; do printf '  make %-12s %s\n' "$$target" "$$what"; done

install: $(INSTALLED) ## create .venv and install lvqcodec with its development tools into it

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"Python 3.11 or newer is needed, this is " + sys.version.split()[0] + \
		": say make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

run: $(INSTALLED) ## code a photograph and compare with JPEG, WebP and AVIF (files in runs/demo)
	$(BIN)/python bench/demo.py

test: $(INSTALLED) ## run the whole test suite
	$(BIN)/python -m pytest

lint: $(INSTALLED) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED) ## repair what lint can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED) ## check types (mypy, strict)
	$(BIN)/mypy

bench: $(INSTALLED) ## time encoding and decoding against the yardstick
	$(BIN)/python bench/speed.py

train: $(if $(DATA),,need-data) $(INSTALLED) ## train DATA=FOLDER [RECIPE=] [RUN=] [MINUTES=], or go on
	$(BIN)/lvq train --config $(RECIPE) --data $(DATA) --out $(RUN) --resume \
		$(if $(MINUTES),--minutes $(MINUTES))

need-data:
	@echo 'say which pictures to train on: make train DATA=FOLDER' >&2; exit 2

wheel-smoke: ## build the wheel, install it alone in a fresh environment, code a picture with it
	PYTHON='$(PYTHON)' .ci/wheel-smoke

clean: ## remove caches, builds and the demo's files, but neither .venv nor training runs
	rm -rf dist build runs/demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests bench -type d -name __pycache__ -prune -exec rm -rf {} +
