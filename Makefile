# `make help` lists the targets. PYTHON is the interpreter that creates .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install reproduce-mini reproduce-scenes reproduce-flickr reproduce-flickr8k benchmark-mini sweep-mini lint format type test test-slow docs docs-links results check-results clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-20s %s\n", $$1, $$2}'

install: $(READY) ## create .venv with the pinned versions

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "sdr_lightning needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 2; }
	@echo "installing into $(VENV): 6.5 GB, most of it torch with CUDA; 2 to 4 minutes where packages download fast"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@started=$$(date +%s); $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' && \
	  echo "installed in $$(( $$(date +%s) - started )) s: source $(BIN)/activate, then sdr --help"
	@touch $@

reproduce-mini: $(READY) ## run a small study on generated scenes, 5 to 13 minutes on two cores
	$(BIN)/sdr reproduce experiments/scenes/study_mini.yaml

reproduce-scenes: $(READY) ## run the whole study on generated scenes, about 10 minutes on two quiet cores
	$(BIN)/sdr reproduce experiments/scenes/study.yaml

# TOWERS=pip: frozen towers that pip installs, for a CPU. Otherwise the towers of the paper, which need a GPU.
FLICKR30K_STUDY = $(if $(filter-out pip,$(TOWERS)),$(error TOWERS is $(TOWERS), expected pip or nothing))$(if $(TOWERS),study_frozen,$(if $(FLICKR30K_ROOT),study,study_hub))

reproduce-flickr: $(READY) ## run the study on Flickr30K: FLICKR30K_ROOT=/folder, or from the hub, on a GPU; TOWERS=pip for a CPU
	@test -n "$(FLICKR30K_ROOT)" -o -z "$(TOWERS)" || { echo "FLICKR30K_ROOT is not set: make reproduce-flickr FLICKR30K_ROOT=/folder TOWERS=pip"; exit 2; }
	$(BIN)/sdr reproduce experiments/flickr30k/$(FLICKR30K_STUDY).yaml

reproduce-flickr8k: $(READY) ## run the study on Flickr8k, for a CPU: FLICKR8K_ROOT=/folder
	@test -n "$(FLICKR8K_ROOT)" || { echo "FLICKR8K_ROOT is not set: make reproduce-flickr8k FLICKR8K_ROOT=/folder"; exit 2; }
	$(BIN)/sdr reproduce experiments/flickr8k/study.yaml

benchmark-mini: $(READY) ## run all methods on generated scenes and write their leaderboard, about 20 minutes on two cores
	$(BIN)/sdr reproduce experiments/benchmark/mini.yaml
	$(BIN)/sdr report runs/benchmark-mini --output runs/benchmark-mini/leaderboard --quoted docs/published_numbers.yaml

sweep-mini: $(READY) ## train the teachers of the scenes and sweep over imbalance ratios
	for modality in image text; do run=runs/$${modality}_teacher; \
	  $(BIN)/sdr fit --config experiments/scenes/$${modality}_teacher.yaml --run_dir $$run \
	  $$(test -f $$run/checkpoints/last.ckpt && echo --ckpt_path last) || exit 1; done
	$(BIN)/sdr sweep experiments/sweeps/mini.yaml --jobs 2 --resume

lint: $(READY) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## fix style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(READY) ## check types
	$(BIN)/mypy

test: $(READY) ## run the fast tests, offline
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(READY) ## run the slow tests
	$(BIN)/pytest -m slow -n 2 --dist loadfile

docs: $(READY) ## build the documentation site, docs/_build/html; warnings are errors; about a minute of CPU
	HF_HUB_OFFLINE=1 $(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "site in docs/_build/html/index.html"

docs-links: $(READY) ## check the site's links to other sites; needs a network
	$(BIN)/python -m sphinx --builder linkcheck --quiet docs docs/_build/links

results: $(READY) ## regenerate results in README.md, docs/ and experiments/; STUDIES="runs/scenes ..." publishes studies first
	$(BIN)/python docs/make_imbalance.py
	$(BIN)/python docs/make_results.py $(STUDIES)

check-results: $(READY) ## list outdated published results, and run two cells of each study again; NAMES="scenes ..."
	$(BIN)/python docs/check_results.py $(NAMES)

clean: ## remove .venv, build files and tool caches
	rm -rf $(VENV) build dist docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
