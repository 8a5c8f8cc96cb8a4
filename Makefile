# Everything a newcomer needs: `make demo`, `make test`. Both create .venv on the first run and are quick afterwards.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
# Trials run side by side, one thread each; OpenMP spins when processes outnumber cores.
export OMP_NUM_THREADS ?= 1

.PHONY: demo demo-cue test test-oldest lint format types blocks-docs clean help

help: ## Show what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(VENV)/.created:
	@echo "Setting up $(VENV) with $(PYTHON) …"
ifdef UV
	@$(UV) venv -q --allow-existing --python $(PYTHON) $(VENV)
else
	@$(PYTHON) -m venv $(VENV)
endif
	@touch $@

$(VENV)/.user: $(VENV)/.created pyproject.toml
	@echo "Installing lookfar and what it needs into $(VENV) (torch is the large part: several minutes, once) …"
ifdef UV
	@$(UV) pip install -q --python $(BIN)/python -e .
else
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e .
endif
	@touch $@

$(VENV)/.dev: $(VENV)/.user
	@echo "Installing what the tests need …"
ifdef UV
	@$(UV) pip install -q --python $(BIN)/python -e '.[dev]'
else
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
endif
	@touch $@

demo: $(VENV)/.user ## Compare blocks on scenes:lookup; about 6 minutes on two cores
	@$(BIN)/lookfar study --data scenes:lookup --blocks global_context,nonlocal --seeds 3 --out runs/lookup

# the class of the cued digit must pass the bottleneck of global_context: 64 / 16 channels are too few for ten classes
demo-cue: $(VENV)/.user ## The same on scenes:cue
	@$(BIN)/lookfar study --data scenes:cue --blocks 'global_context(reduction=4),nonlocal' --seeds 3 --out runs/cue

test: $(VENV)/.dev ## Run the whole test suite
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal

test-oldest: ## Run ops, blocks and insertion on the oldest supported torch, in an environment of its own
	@$(PYTHON) -m venv $(VENV)-oldest
	@$(VENV)-oldest/bin/python -m pip install -q --disable-pip-version-check -e '.[dev]' 'torch==2.8.*' 'torchvision==0.23.*'
	@$(VENV)-oldest/bin/python -m pytest -q tests/ops tests/blocks tests/test_every_block.py tests/test_goldens.py tests/test_insertion.py

lint: $(VENV)/.dev ## Style and types
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(VENV)/.dev ## Put the code into the house style
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

blocks-docs: $(VENV)/.user ## Write the README's table of blocks and docs/blocks from the code
	@$(BIN)/python -m lookfar.blocks._catalogue

clean: ## Remove environments and caches (never runs/)
	@rm -rf $(VENV) $(VENV)-oldest .pytest_cache .ruff_cache build dist
