# PocketVLM. `make help` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN ?= jobs/digits.yaml

.DEFAULT_GOAL := help
.PHONY: help setup llama-cpp demo test check test-fast bench lock docs snapshots clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

setup: $(READY) ## virtual environment with the locked dependencies

# pip is the installer of last resort: uv takes a fifth of the time and shares files between clones, and is locked too.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python {v[0]}.{v[1]}: PocketVLM needs 3.11 to 3.13; set PYTHON=")'
	@echo "setting up $(VENV) (about 5 GB, most of it torch)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@grep -A 40 '^uv==' requirements.lock | awk 'NR > 1 && /^[a-z]/ {exit} {print}' > $(VENV)/uv.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $(VENV)/uv.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

llama-cpp: $(READY) ## build the pinned llama.cpp into the user cache folder, once for all clones
	@$(BIN)/python -m pocketvlm.llamacpp.build > /dev/null

demo: llama-cpp ## images to a measured, released GGUF pair on this machine
	@$(BIN)/pocketvlm run $(RUN)

check: $(READY) ## style and types
	@$(BIN)/ruff check src tests bench docs
	@$(BIN)/mypy

test: check llama-cpp ## all tests
	@$(BIN)/pytest

test-fast: check ## the tests that need no llama.cpp
	@$(BIN)/pytest -m "not llamacpp and not chain and not real_size"

bench: llama-cpp ## benchmarks: ratios, both sides in one run; result in bench/results
	@$(BIN)/python -m bench

lock: $(READY) ## renew requirements.lock from pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --no-header --all-extras pyproject.toml -o requirements.lock

docs: $(READY) ## regenerate what is generated in docs and in the chart
	@$(BIN)/python docs/generate.py

snapshots: $(READY) ## write the chart's default renders anew; look at the difference before the commit
	@RENEW_SNAPSHOTS=1 $(BIN)/pytest -q tests/chart/test_snapshots.py

clean: ## delete the environment and local runs; the llama.cpp build stays
	rm -rf $(VENV) .pocketvlm build
