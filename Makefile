# Two commands from a fresh clone: `make demo` and `make test`. Both can be run again at any time.
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu   takes torch's CPU build (no CUDA download)
#   make demo PYTHON=python3.12                                   uses that interpreter

TORCH_INDEX ?=
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
# A change of what is to be installed, or of where torch comes from, runs the installation again.
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)-$(shell \
	printf %s '$(TORCH_INDEX)' | cksum | cut -d' ' -f1)
RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: setup demo test test-slow lint clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

$(STAMP):
	@test -n "$(PYTHON)" || { echo "error: metarl needs Python 3.11 or later, and none was found; install it, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: $(PYTHON) cannot make virtual environments; install its venv module (Debian and Ubuntu: apt-get install python3-venv) and run make again"; exit 2; }
	@echo "Setting up $(VENV) (once; torch is a large download) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if [ -n "$(TORCH_INDEX)" ]; then $(BIN)/pip install -q --disable-pip-version-check --force-reinstall --no-deps -c constraints.txt --index-url "$(TORCH_INDEX)" torch; fi
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: $(STAMP)
	@echo "Meta-training 2D navigation with MAML-TRPO (about two minutes on two cores); Ctrl-C stops cleanly."
	@$(BIN)/python scripts/train.py maml-trpo --family navigation-2d --run-dir $(RUN)
	@echo; $(BIN)/python scripts/evaluate.py $(RUN)
	@echo; $(BIN)/python scripts/visualize.py $(RUN)
	@echo; echo "Everything is in $(RUN): figures/ (paths before and after adaptation), evaluation_best.json, metrics.jsonl, TensorBoard events."

test: $(STAMP)
	$(BIN)/python -m pytest

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info
