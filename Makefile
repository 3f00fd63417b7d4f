# Two commands from a fresh clone: `make demo` and `make test`. Both can be run again at any time.
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu   takes torch's CPU build (no CUDA download)
#   make demo PYTHON=python3.12                                   makes .venv with that interpreter

VENV := .venv
BIN := $(VENV)/bin
# Where torch came from is remembered in .venv: naming it once is enough, and naming another reinstalls torch.
CHOSEN := $(VENV)/.torch-index
ifeq ($(origin TORCH_INDEX),undefined)
TORCH_INDEX := $(shell cat $(CHOSEN) 2>/dev/null)
endif
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p $(NEW_ENOUGH) && echo $$p && break; done)
# A change of what is to be installed, or of where torch comes from, runs the installation again.
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)-$(shell \
	printf %s '$(TORCH_INDEX)' | cksum | cut -d' ' -f1)
GPU_STAMP := $(STAMP)-gpu
PIP := $(BIN)/python -m pip
INSTALL := $(PIP) install -q --disable-pip-version-check -c constraints.txt
RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: setup demo test test-slow lint clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

# What an interruption leaves behind is finished or replaced by the next call: an environment without pip is made anew,
# and no stamp is left while packages change.
$(STAMP):
	@test -n "$(PYTHON)" || { echo "error: metarl needs Python 3.11 or later, and none was found; install it, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) $(NEW_ENOUGH) || { echo "error: PYTHON=$(PYTHON) does not run Python 3.11 or later, which metarl needs; name another: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' >/dev/null 2>&1 || { echo "error: $(PYTHON) cannot make virtual environments; install its venv module (Debian and Ubuntu: apt-get install python3-venv) and run make again"; exit 2; }
	@echo "Setting up $(VENV) (once; torch is a large download) ..."
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $(VENV)/.installed-*
	@if [ "$(TORCH_INDEX)" != "$$(cat $(CHOSEN) 2>/dev/null)" ]; then again=--force-reinstall; else again=; fi; \
	if [ -n "$(TORCH_INDEX)" ]; then $(INSTALL) $$again --no-deps --index-url "$(TORCH_INDEX)" torch; \
	elif [ -n "$$again" ]; then $(INSTALL) $$again --no-deps torch; fi
	@printf %s '$(TORCH_INDEX)' >$(CHOSEN)
	@$(INSTALL) --config-settings editable_mode=compat -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@echo "Meta-training 2D navigation with MAML-TRPO (three to six minutes on two cores); Ctrl-C stops cleanly."
	@$(BIN)/python scripts/train.py maml-trpo --family navigation-2d --run-dir $(RUN)
	@echo; $(BIN)/python scripts/evaluate.py $(RUN)
	@echo; $(BIN)/python scripts/visualize.py $(RUN)
	@echo; echo "Everything is in $(RUN): figures/ (paths before and after adaptation), evaluation_best.json, metrics.jsonl, TensorBoard events."

# GPU physics is tested on its CPU device, which takes one more download (150 MB).
$(GPU_STAMP): $(STAMP)
	@echo "Adding MuJoCo Warp for the tests (once) ..."
	@$(INSTALL) --config-settings editable_mode=compat -e '.[dev,gpu]'
	@touch $@

# Two processes: most tests keep one core busy, and more would fight over the threads of those that keep two.
test: $(GPU_STAMP)
	$(BIN)/python -m pytest -n 2

test-slow: $(GPU_STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(GPU_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info
