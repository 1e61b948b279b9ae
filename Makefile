# The front door. `make` alone lists the targets.
# The first of these that is CPython 3.11, 3.12 or 3.13; `make setup PYTHON=/path/to/python` names another one.
PYTHON ?= python3.11 python3.12 python3.13 python3 python
FITS := import sys, venv, ensurepip; sys.exit(sys.implementation.name != "cpython" or not (3, 11) <= sys.version_info < (3, 14))
BIN := .venv/bin
# A machine with an NVIDIA driver gets the CUDA libraries too (several GB); `make setup GPU=` leaves them out.
GPU ?= $(if $(shell command -v nvidia-smi 2>/dev/null),1)
LOCK := $(if $(GPU),requirements-gpu.lock,requirements.lock)
STAMP := .venv/installed-$(LOCK)
UV := VIRTUAL_ENV=$(CURDIR)/.venv UV_PROJECT_ENVIRONMENT= $(BIN)/uv
DATA ?= phantom
# The demo ends in the browser; `make demo SERVE=` ends before.
SERVE ?= 1
PROFILE ?= quick

define NO_PYTHON
None of these is CPython 3.11, 3.12 or 3.13 with its module venv: $(PYTHON). Install one:
  Debian, Ubuntu  apt install python3-venv (or python3.11-venv, where python3 is older or newer)
  macOS           brew install python@3.12
  conda           conda create -n py312 python=3.12, then conda activate py312
  anything        pyenv install 3.12, then make setup PYTHON="$$(pyenv prefix 3.12)/bin/python"
Without make, or on Windows: docs/installation.md.
endef
export NO_PYTHON

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-model demo-transfer serve test checks pytest nbval lab run lint lock notebooks bench docs screens

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv and install everything the lock file names; does nothing when nothing changed

$(STAMP): $(LOCK) pyproject.toml lungkit/__init__.py
	@test -x $(BIN)/python || for python in $(PYTHON) ""; do \
		if [ -z "$$python" ]; then echo "$$NO_PYTHON" >&2; exit 1; fi; \
		if $$python -c '$(FITS)' >/dev/null 2>&1; then exec $$python -m venv .venv; fi; \
	done
	@# uv, the installer, is in the lock file itself: pip takes it from there, hash and all.
	@awk '/^uv==/ { on = 1 } on { print } on && !/\\$$/ { exit }' $(LOCK) > .venv/uv.txt
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --require-hashes --no-deps -r .venv/uv.txt
	@# Compiled once here, not in each process of the clinic where the environment forbids to keep what was compiled.
	@$(UV) pip sync --quiet --require-hashes --compile-bytecode $(LOCK)
	@$(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q lungkit
	@rm -f .venv/installed-*
	@touch $@
	@echo "installed $$(grep -c '^[a-z].*==' $(LOCK)) locked packages into .venv"

demo: setup ## from nothing to a model trained on the synthetic phantom, and the clinic that uses it
	@TF_FORCE_GPU_ALLOW_GROWTH=true $(MAKE) --no-print-directory --jobs=2 demo-model demo-transfer
	$(if $(SERVE),$(BIN)/lungkit serve --demo)

# Notebook 06 needs nothing of the others and runs at the same time.
demo-model:
	$(BIN)/lungkit run 01 02 03 04 05 --data phantom --profile quick

demo-transfer:
	@mkdir -p build
	@$(BIN)/lungkit run 06 --data phantom --profile quick > build/demo.log 2>&1 || { cat build/demo.log; exit 1; }
	@tail -n 1 build/demo.log

serve: setup ## serve the clinic with the models that are active in artifacts/
	$(BIN)/lungkit serve

run: setup ## run the notebooks on your data: make run DATA=folder PROFILE=quick|full
	$(BIN)/lungkit run all --data $(DATA) --profile $(PROFILE)

lab: setup ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

lint: setup ## style, formatting, direction of imports, words, types, and the lines of each layer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python scripts/words.py
	$(BIN)/mypy
	$(BIN)/python scripts/lines.py

# The notebooks run in folders of their own, at the same time as the tests, one after the other as they need each other;
# those that train do it in copies with less to do (scripts/smoke.py).
NOTEBOOK_HOME := $(CURDIR)/build/notebooks
# LUNGKIT_* and KERASTUNER_* of the shell must not change a test.
UNSET := env $(patsubst %,-u %,$(filter LUNGKIT_% KERASTUNER_%,$(.VARIABLES)))
# Tests start some hundred processes: what one of them compiled is kept for the others.
KEEP := env -u PYTHONDONTWRITEBYTECODE
test: setup ## lint, the package's tests with coverage, and every notebook (nbval)
	@$(MAKE) --no-print-directory --jobs=2 pytest checks

# Next to the tests, one after the other.
checks:
	@$(MAKE) --no-print-directory --output-sync lint
	@$(MAKE) --no-print-directory nbval

# One more than processors, because some tests wait for servers; on large machines more than 4 only take memory.
WORKERS ?= $(shell $(BIN)/python -c "import os; print(min(4, (os.cpu_count() or 1) + 1))" 2>/dev/null || echo 3)
pytest:
	$(KEEP) $(BIN)/python -m pytest -p no:nbval --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder \
		--cov --cov-report=term-missing:skip-covered --cov-fail-under=90 --durations=8

nbval:
	@rm -rf $(NOTEBOOK_HOME)
	@$(BIN)/python scripts/smoke.py $(NOTEBOOK_HOME)/notebooks
	@$(KEEP) $(UNSET) LUNGKIT_DATA=$(NOTEBOOK_HOME)/data LUNGKIT_ARTIFACTS=$(NOTEBOOK_HOME)/artifacts \
		LUNGKIT_REPORTS=$(NOTEBOOK_HOME)/reports $(BIN)/python -m pytest -p lungkit.unneeded --nbval-lax -p no:cacheprovider \
		$(addprefix $(NOTEBOOK_HOME)/,$(sort $(wildcard notebooks/*.ipynb))) > $(NOTEBOOK_HOME)/log 2>&1 || { cat $(NOTEBOOK_HOME)/log; exit 1; }
	@echo "notebooks: $$(tail -n 1 $(NOTEBOOK_HOME)/log)"

notebooks: setup ## execute the committed notebooks in place, on the phantom
	$(BIN)/lungkit run all --in-place

bench: setup ## measure: lungkit beside what one would use instead
	$(BIN)/python -m bench.pipeline
	$(BIN)/python -m bench.decode
	$(BIN)/python -m bench.predict
	$(BIN)/python -m bench.clinic

docs: setup ## build the documentation into build/docs; a warning or a broken link is an error
	$(BIN)/python -m sphinx -W --keep-going --quiet docs build/docs
	@echo "open build/docs/index.html"

screens: setup ## take the pictures of the clinic again (needs Chromium)
	$(BIN)/python -m tests.e2e.screens

COMPILE := pip compile pyproject.toml --group dev --extra all --universal --generate-hashes --no-emit-index-url \
	--no-header --no-annotate --upgrade --quiet --output-file
lock: setup ## write the lock files again from pyproject.toml
	$(UV) $(COMPILE) requirements.lock
	$(UV) $(COMPILE) requirements-gpu.lock --extra gpu
