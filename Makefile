# `make help` lists the targets. PYTHON chooses the interpreter that .venv is made with.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install reproduce-mini reproduce-flickr reproduce-flickr8k sweep-mini lint format type test test-slow docs check-results clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-20s %s\n", $$1, $$2}'

install: $(READY) ## make .venv with the pinned versions

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "sdr_lightning needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

reproduce-mini: $(READY) ## the whole study on generated scenes, 9.5 minutes on two cores
	$(BIN)/sdr reproduce experiments/scenes/study.yaml

reproduce-flickr: $(READY) ## the study on Flickr30K: FLICKR30K_ROOT=/folder, or from the hub; wants a GPU
	$(BIN)/sdr reproduce experiments/flickr30k/$(if $(FLICKR30K_ROOT),study.yaml,study_hub.yaml)

reproduce-flickr8k: $(READY) ## the study on Flickr8k, for a CPU: FLICKR8K_ROOT=/folder IMAGE_WEIGHTS=/file
	@test -n "$(FLICKR8K_ROOT)" || { echo "which folder? make reproduce-flickr8k FLICKR8K_ROOT=/folder IMAGE_WEIGHTS=/file"; exit 2; }
	FLICKR8K_ROOT="$(FLICKR8K_ROOT)" $(BIN)/sdr reproduce experiments/flickr8k/study.yaml

sweep-mini: $(READY) ## a sweep over imbalance ratios on generated scenes, with its teachers
	for modality in image text; do run=runs/$${modality}_teacher; \
	  $(BIN)/sdr fit --config experiments/scenes/$${modality}_teacher.yaml --run_dir $$run \
	  $$(test -f $$run/checkpoints/last.ckpt && echo --ckpt_path last) || exit 1; done
	$(BIN)/sdr sweep experiments/sweeps/mini.yaml --jobs 2 --resume

lint: $(READY) ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(READY) ## types, strictly
	$(BIN)/mypy

test: $(READY) ## the fast tests, offline
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(READY) ## the slow tests
	$(BIN)/pytest -m slow

docs: $(READY) ## write what is generated in README.md, docs/ and experiments/; STUDIES="runs/scenes ..." publishes these first
	$(BIN)/python docs/make_imbalance.py
	$(BIN)/python docs/make_results.py $(STUDIES)

check-results: $(READY) ## say which published results are out of date, and run two cells of each study again; NAMES="scenes ..."
	$(BIN)/python docs/check_results.py $(NAMES)

clean: ## remove .venv and everything that tools left
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
