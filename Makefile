# `make lab` is the whole set-up. Every target installs what it needs, once.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# In a container one often is root, and JupyterLab wants to be told that this is meant.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
# Two at a time; a file's tests stay together, as they share a JupyterLab or a cluster. In their own
# order, as the long ones are among the first.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder
# Two processes that each take every core wait for one another most of the time.
test: export OMP_NUM_THREADS ?= 1
# Both processes, and all that they start, would compile every module again.
test: export PYTHONDONTWRITEBYTECODE :=
INPUTS := pyproject.toml constraints.txt embedded-models.txt

.PHONY: help lab demo test check check-js format bench screenshot colab-check oldest-check binder-check clean

help:            ## list the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'

lab: $(VENV)/.lab            ## set up, then open JupyterLab on the workbench
	$(BIN)/jupyter lab $(AS_ROOT) --notebook-dir=notebooks --LabApp.default_url=/lab/tree/00_workbench.ipynb

demo: $(VENV)/.lab           ## train on the embedded model without a browser; writes report.html
	$(BIN)/lora-lab demo

test: $(VENV)/.test          ## set up, then run every test
	@$(BIN)/python -m tests.browser.chromium
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/.test         ## lint, format, types and sizes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.house
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory check-js; \
	else echo "JavaScript is unchecked: there is no npm here. Install Node.js 18 or later."; fi

check-js: node_modules/.installed
	npm run --silent check

format: $(VENV)/.test        ## rewrite the code as ruff would have it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.test         ## ratios against peers, measured in one run; QUICK=1: in fewer rounds
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

screenshot: $(VENV)/.test    ## the README's picture, from the real workbench in JupyterLab
	$(BIN)/python -m tests.browser.screenshots docs

colab-check: $(VENV)/.test   ## the workbench with Colab's versions, in an environment of their own; CUDA=1: if torch's GPU build must do
	$(BIN)/python -m hosts.check colab $(if $(CUDA),--cuda)

oldest-check: $(VENV)/.test  ## likewise with the oldest versions that pyproject.toml names
	$(BIN)/python -m hosts.check oldest $(if $(CUDA),--cuda)

binder-check: $(VENV)/.test  ## binder/ built by hand, and its default notebook run in a browser
	$(BIN)/python -m hosts.binder

clean:           ## remove the environment and what tools left behind
	rm -rf $(VENV) .hosts node_modules build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.lab: $(INPUTS)
	$(call install,lab)

$(VENV)/.test: $(INPUTS)
	$(call install,lab test)

node_modules/.installed: package.json package-lock.json
	npm ci --silent --no-audit --no-fund
	touch $@

define install
	@$(PYTHON) -m hosts.set_up $(VENV) $(1)
	@touch $@
endef
