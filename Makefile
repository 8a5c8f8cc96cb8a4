# Everything a newcomer needs: `make demo`, `make test`. Both create .venv on the first run and are quick afterwards.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
# Trials run side by side, one thread each; OpenMP spins when processes outnumber cores.
export OMP_NUM_THREADS ?= 1

# The oldest run: what depends on torch most, and one study, where everything meets.
OLDEST_TESTS := tests/ops tests/blocks tests/test_every_block.py tests/test_goldens.py tests/insertion \
    tests/study/test_running.py::test_a_real_study
# worksteal: the slow tests lie side by side in a few files
PYTEST := -m pytest -q -n 2 --dist worksteal --durations=10

create = $(if $(UV),$(UV) venv -q --allow-existing --python $(PYTHON),$(PYTHON) -m venv) $1
install = $(if $(UV),$(UV) pip install -q --python $1/bin/python,$1/bin/python -m pip install -q --disable-pip-version-check)

# where an environment keeps its packages
site = $1/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

.PHONY: bench bench-gpu demo demo-cue demo-classify test test-oldest oracles test-oracles test-wheel mutations lint format \
    blocks-docs insertion-table api versions docs notebooks clean help

help: ## Show what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(VENV)/.created:
	@echo "Setting up $(VENV) with $(PYTHON) …"
	@$(call create,$(VENV))
	@touch $@

$(VENV)/.user: $(VENV)/.created pyproject.toml
	@echo "Installing lookfar and what it needs into $(VENV) (torch is the large part: several minutes, once) …"
	@$(call install,$(VENV)) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.user
	@echo "Installing what the tests need …"
	@$(call install,$(VENV)) -e '.[dev]'
	@touch $@

$(VENV)-oldest/.dev: pyproject.toml
	@echo "Installing the oldest torch into $(VENV)-oldest (several minutes, once) …"
	@$(call create,$(VENV)-oldest)
	@$(call install,$(VENV)-oldest) -e '.[dev]' 'torch==2.8.*' 'torchvision==0.23.*'
	@touch $@

# what .venv holds is found through a path file, not installed a second time
$(VENV)-oracles/.made: $(VENV)/.dev tests/oracles/requirements.txt
	@echo "Installing mmsegmentation into $(VENV)-oracles …"
	@rm -rf $(VENV)-oracles
	@$(BIN)/python -m venv $(if $(UV),--without-pip) $(VENV)-oracles
	@echo "import site; site.addsitedir('$$($(call site,$(VENV)))')" > "$$($(call site,$(VENV)-oracles))/beside.pth"
	@$(call install,$(VENV)-oracles) --no-deps -r tests/oracles/requirements.txt
	@touch $@

$(VENV)-docs/.made: $(VENV)/.user
	@echo "Installing mkdocs into $(VENV)-docs …"
	@rm -rf $(VENV)-docs
	@$(BIN)/python -m venv $(if $(UV),--without-pip) $(VENV)-docs
	@echo "import site; site.addsitedir('$$($(call site,$(VENV)))')" > "$$($(call site,$(VENV)-docs))/beside.pth"
	@$(BIN)/python -c "from importlib.metadata import requires; \
	    print(*[one.split(';')[0] for one in requires('lookfar') if 'docs' in one.partition(';')[2]], sep='\n')" \
	    > $(VENV)-docs/requirements.txt
	@$(call install,$(VENV)-docs) -r $(VENV)-docs/requirements.txt
	@touch $@

demo: $(VENV)/.user ## Compare blocks on scenes:lookup; about 6 minutes on two cores
	@$(BIN)/lookfar study --data scenes:lookup --blocks global_context,nonlocal --seeds 3 --out runs/lookup

# the class of the cued digit must pass the bottleneck of global_context: 64 / 16 channels are too few for ten classes
demo-cue: $(VENV)/.user ## The same on scenes:cue
	@$(BIN)/lookfar study --data scenes:cue --blocks 'global_context(reduction=4),nonlocal' --seeds 3 --out runs/cue

demo-classify: $(VENV)/.user ## Compare blocks on scenes:match, where a scene has one label; about 4 minutes on two cores
	@$(BIN)/lookfar study --data scenes:match --blocks nonlocal,global_context,squeeze_excitation \
	    --seeds 3 --out runs/match

test: $(VENV)/.dev ## Run the whole test suite
	@$(BIN)/python $(PYTEST)
	@$(BIN)/python tests/versions.py > $(VENV)/.passed

test-oldest: $(VENV)-oldest/.dev ## Run ops, blocks, insertion, goldens and a study on the oldest torch, in an environment of its own
	@$(VENV)-oldest/bin/python $(PYTEST) $(OLDEST_TESTS)
	@$(VENV)-oldest/bin/python tests/versions.py > $(VENV)-oldest/.passed

test-wheel: ## Build the wheel, install it alone in a new environment, and run a study of three steps with it, away from the clone
	@rm -rf dist $(VENV)-wheel
	@$(PYTHON) -m pip wheel -q --disable-pip-version-check --no-deps -w dist .
	@$(call create,$(VENV)-wheel)
	@$(call install,$(VENV)-wheel) dist/*.whl
	@dir=$$(mktemp -d) && bin=$$PWD/$(VENV)-wheel/bin && cd $$dir && $$bin/lookfar --version && \
	    $$bin/lookfar study --data scenes:lookup --blocks squeeze_excitation --seeds 1 --steps 3 --out study && \
	    test -s study/report.html && rm -rf $$dir

oracles: $(VENV)-oracles/.made ## Set up .venv-oracles: .venv with mmsegmentation beside it, which needs neither a compiler nor 5 GB

test-oracles: $(VENV)-oracles/.made ## Compare networks with mmsegmentation's own
	@$(VENV)-oracles/bin/python $(PYTEST) -m oracle tests/oracles

bench: $(VENV)-oracles/.made ## Time our blocks beside mmcv's, mmsegmentation's, timm's and plain PyTorch; writes docs/performance.md; hours, a second run adds what is missing
	@$(VENV)-oracles/bin/python benchmarks/peers.py

bench-gpu: $(VENV)/.dev ## Every context block on a GPU against the CPU, attention beside the card's rate; at most eight minutes
	@$(BIN)/python benchmarks/gpu.py

mutations: $(VENV)/.dev ## Plant faults in a copy of the code, one at a time, and see that the tests notice
	@$(BIN)/python tests/mutations.py

lint: $(VENV)/.dev ## Style and types
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(VENV)/.dev ## Put the code into the house style
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

insertion-table: $(VENV)/.dev ## Ask every block what may be done to a network with it, and write the table of docs/insertion.md
	@$(BIN)/python tests/insertion/matrix.py --jobs 2 $(if $(QUESTIONS),--questions $(QUESTIONS))

blocks-docs: $(VENV)/.user ## Write the README's count of blocks, docs/blocks and the list of `lookfar blocks` from the code
	@$(BIN)/python -m lookfar.blocks._catalogue

api: $(VENV)/.dev ## Write tests/api.txt, the list of public names and signatures
	@$(BIN)/python tests/api.py

notebooks: $(VENV)/.dev ## Run the notebooks of examples/ in full, some ten minutes, and keep what they print and draw
	@$(BIN)/python tests/notebooks.py

docs: $(VENV)-docs/.made ## Write the documents as a site into site/; a broken link or an unknown name is an error
	@NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build -q --strict

versions: ## Write into the README which versions the two test commands last passed on
	@$(BIN)/python tests/versions.py $(VENV)-oldest/.passed $(VENV)/.passed

clean: ## Remove environments and caches (never runs/)
	@rm -rf $(VENV) $(VENV)-oldest $(VENV)-oracles $(VENV)-docs $(VENV)-wheel .pytest_cache .ruff_cache build dist site
