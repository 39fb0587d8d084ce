# SPDX-License-Identifier: Apache-2.0
# Needs Python 3.11 or newer, make and a package index. Everything lands in $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# for `make train` and `make bench`
DATA ?=
# for `make train`
RECIPE ?= recipes/normal.toml
RUN ?= runs/normal
MINUTES ?=
# for `make bench`
MODELS ?= $(sort $(basename $(notdir $(wildcard models/*.toml))))
CODECS ?= jpeg,webp,avif,heic,jxl
QUALITIES ?= 0,10,20,32,44,56,70,85
ANCHORS ?=
RESULTS := runs/bench
# for `make fuzz`
MUTATIONS ?= 20000
comma := ,
space := $(subst ,, )

# with a process for each core, more threads would only spin against each other
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.DEFAULT_GOAL := help
.PHONY: help install run test lint format types bench train need-data wheel-smoke lowest golden \
	fuzz clean

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

test: $(INSTALLED) ## run the whole test suite, a process for each core
	$(ONE_THREAD) $(BIN)/python -m pytest -n auto

lint: $(INSTALLED) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED) ## repair what lint can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED) ## check types (mypy, strict)
	$(BIN)/mypy

bench: $(INSTALLED) ## every number of README and cards: bench [DATA=FOLDER [ANCHORS=]] [MODELS=]
	for model in $(MODELS); do $(BIN)/python bench/speed.py --model $$model && \
		$(BIN)/python bench/complexity.py --model $$model || exit; done
	$(if $(DATA),mkdir -p $(RESULTS))
	$(if $(DATA),$(BIN)/lvq eval $(DATA) --model $(subst $(space),$(comma),$(strip $(MODELS))) \
		--qualities $(QUALITIES) --codecs $(CODECS) --memory \
		$(if $(ANCHORS),--anchors $(ANCHORS)) --json $(RESULTS)/report.json \
		--csv $(RESULTS)/report.csv --plot $(RESULTS)/rd.png)

train: $(if $(DATA),,need-data) $(INSTALLED) ## train DATA=FOLDER [RECIPE=] [RUN=] [MINUTES=], or go on
	$(BIN)/lvq train --config $(RECIPE) --data $(DATA) --out $(RUN) --resume \
		$(if $(MINUTES),--minutes $(MINUTES))

need-data:
	@echo 'say which pictures to train on: make train DATA=FOLDER' >&2; exit 2

wheel-smoke: ## build the wheel, install it alone in a fresh environment, code a picture with it
	PYTHON='$(PYTHON)' .ci/wheel-smoke

lowest: ## test what touches other packages with the lowest versions that pyproject.toml allows
	PYTHON='$(PYTHON)' .ci/lowest

golden: $(INSTALLED) ## add golden files for what is new, changing none
	$(BIN)/python tests/golden.py

fuzz: $(INSTALLED) ## send MUTATIONS=20000 damaged files through the decoder
	$(BIN)/python bench/fuzz.py --mutations $(MUTATIONS)
	$(BIN)/python bench/fuzz.py --mutations $(MUTATIONS) --repair
	$(BIN)/python bench/fuzz.py --mutations $(MUTATIONS) --partial

clean: ## remove caches, builds and the demo's files, but neither .venv nor training runs
	rm -rf dist build runs/demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests bench -type d -name __pycache__ -prune -exec rm -rf {} +
