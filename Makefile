# Every target sets up what it needs in .venv, once.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
RUNTIME ?= $(if $(shell command -v nvidia-smi),gpu,cpu)
MODEL ?= $$($(BIN)/vllm-nld nano path)
# For the shipped checkpoint on a CPU: one thread is enough, and steady if other things run on the machine.
ifeq ($(RUNTIME)$(origin MODEL),cpufile)
THREADS := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} VLLM_CPU_OMP_THREADS_BIND=$${VLLM_CPU_OMP_THREADS_BIND:-nobind}
EAGER := --flags=--enforce-eager
endif
PORT ?= 8000
TESTS ?= tests
# Test processes, of one computing thread each; one more than two cores, because some wait. The tests of a file share an
# engine, so they stay together.
WORKERS ?= 3
# A vLLM release without a CPU build, and the tests that run on its Python code.
NEXT ?= 0.33.0
NEXT_TESTS ?= tests/compat tests/serving/test_modes.py tests/serving/test_speculation.py tests/spec_worker tests/triton_cpu \
	tests/test_contract.py $(foreach file,$(NEXT_LEFT_OUT),--ignore=tests/$(dir $(file))test_$(notdir $(file)).py)
# These show least of NEXT's Python code for the time they take: algorithms and kernels of our own, engines in which vLLM
# does what it does for the others, kernels of vLLM that NEXT has not changed (one digest in vllm_nld/triton_cpu/registry.py),
# and patches for CPU builds, which NEXT has none of. `make test-next NEXT_LEFT_OUT= NEXT_SCALE=1` runs all.
NEXT_LEFT_OUT ?= $(addprefix spec_worker/,adapter bf16 blocks commit compiled controller fairness inputs kernels \
	machine mask_groups memory nano pairs quadratic sampling soak trees) \
	$(addprefix triton_cpu/,greatest interpreter logits self_drafting trees) $(addprefix compat/,cpu hook patcher)
NEXT_SCALE ?= 0.33

# Imports make many objects and hardly any garbage. With Python's thresholds a fifth of the time that a process takes to
# import vLLM goes into looking for some; this line in the environment makes tests, which start many, look less often.
FEW_COLLECTIONS := import gc, os; 'NLD_FEW_COLLECTIONS' in os.environ and gc.set_threshold(100_000, 20, 100)

# The many processes that tests start would otherwise compile the same modules, where this is set.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo report test suite next test-next serve lint types rules bench gpu-check clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1	/' | expand -t 16

$(VENV)/.ready: setup.py deploy/cpu/install.py deploy/cpu/excludes.txt deploy/cpu/vllm/setup.py deploy/prometheus/install.py
	@echo "Setting up $(VENV) for $(RUNTIME) (once, 2 to 3 minutes) ..."
	@$(PYTHON) -c 'import sys; sys.exit("vllm-nld needs Python 3.11 or newer: make PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV)
ifeq ($(RUNTIME),gpu)
	@$(BIN)/python -m pip install -q -e '.[gpu,dev]'
else
	@$(BIN)/python deploy/cpu/install.py --extras dev
endif
	@$(BIN)/python deploy/prometheus/install.py $(VENV) || true  # says so where it cannot; the tests then skip with that
	@echo "$(FEW_COLLECTIONS)" > $$(echo $(VENV)/lib/python*/site-packages)/few_collections.pth
	@touch $@

demo: $(VENV)/.ready ## Serve the shipped checkpoint and ask it a few held-out prompts
	@$(BIN)/vllm-nld demo --json demo.json

report: $(VENV)/.ready ## Compare its modes on all held-out prompts: runs/evaluate/report.html
	@$(THREADS) $(BIN)/vllm-nld evaluate "$(MODEL)" $(EAGER)

# Types take half a minute, so they are checked beside the first tests.
test: $(VENV)/.ready ## Run the checks and the tests
	@$(MAKE) --no-print-directory rules
	@$(MAKE) --no-print-directory -j2 types suite

suite: $(VENV)/.ready
	@NLD_FEW_COLLECTIONS=1 OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind \
		$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 30 $(TESTS)

$(VENV)-$(NEXT)/.ready: $(VENV)/.ready tests/overlay.py tests/wheels.py
	@$(BIN)/python -m tests.overlay $(NEXT) $(VENV)-$(NEXT)
	@echo "$(FEW_COLLECTIONS)" > $$(echo $(VENV)-$(NEXT)/lib/python*/site-packages)/few_collections.pth
	@touch $@

next: $(VENV)-$(NEXT)/.ready

test-next: next ## Run the tests that touch vLLM on the Python code of release NEXT (default: 0.33.0)
	@NLD_FEW_COLLECTIONS=1 NLD_TEST_SCALE=$(NEXT_SCALE) NLD_TEST_PART=0 OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind \
		$(VENV)-$(NEXT)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 30 $(NEXT_TESTS)

serve: $(VENV)/.ready ## Check and serve MODEL (default: the shipped checkpoint) on PORT (default: 8000)
	@model="$(MODEL)"; $(BIN)/vllm-nld doctor $$([ -d "$$model" ] && echo "$$model")
	@$(THREADS) $(BIN)/vllm serve "$(MODEL)" --port $(PORT)

lint: $(VENV)/.ready ## Format, lint, type, layering and generated-text checks
	@$(MAKE) --no-print-directory -j2 types rules

types: $(VENV)/.ready
	@$(BIN)/mypy

rules: $(VENV)/.ready
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports
	@$(BIN)/python -m bench.readme --check
	@$(BIN)/python deploy/grafana/dashboard.py --check

bench: $(VENV)/.ready ## Measure the modes (3 to 4 hours); writes bench/results/report.md and the README's figures
	@$(BIN)/python -m bench report

gpu-check: $(VENV)/.ready ## Check everything on this machine's GPU, and what it costs (10 minutes); writes runs/gpu-check/report.md
	@$(BIN)/python -m bench gpu_check

clean: ## Remove the environment and everything generated
	rm -rf $(VENV) $(VENV)-* build dist *.egg-info demo.json runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
