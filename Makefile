# Every command of this project. Each installs what it needs, in virtual environments below this folder.
PYTHON ?= python3
VENV := .venv
SCRIPTS := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
BIN := $(VENV)/$(SCRIPTS)
DEMO := .venv-demo
export WORKERS ?= 2
FUZZ_SECONDS ?= 20
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec # a crash before a pipe is a failure
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Linux wheels of torch from the public index carry CUDA (gigabytes). TORCH_INDEX=URL names PyTorch's index
# of CPU wheels, whose version 2.13.0+cpu satisfies the pinned torch==2.13.0 and is preferred to it.
ifdef TORCH_INDEX
export PIP_EXTRA_INDEX_URL := $(TORCH_INDEX)
endif

# The areas that can be tested alone: `make test-format` ...
AREAS := format storage checkpoint editing derived numpy-torch conversion trust cli compat bench
TESTS_numpy-torch := tests/frameworks

.PHONY: help demo docs screenshots test lint fuzz test-pythons test-frameworks test-ranks test-clients test-remote test-batch test-view test-quantised \
	bench scanners conformance clean \
	$(AREAS:%=test-%)

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18
	@echo '$(AREAS:%=test-%)' | fold -s -w 78 | sed 's/^/  /'

$(VENV)/.installed: requirements/test.txt requirements/lint.txt requirements/trust.txt requirements/convert.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -U pip
	$(BIN)/python -m pip install -q -r requirements/test.txt
	$(BIN)/python -m pip install -q -r requirements/lint.txt -r requirements/trust.txt -r requirements/convert.txt -e .
	touch $@

$(DEMO)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/$(SCRIPTS)/python -m pip install -q -e '.[hdf5,trust,encryption,delta]'
	touch $@

demo: $(DEMO)/.installed ## Use every capability once, on a real model's weights
	$(DEMO)/$(SCRIPTS)/python scripts/demo.py

test: $(VENV)/.installed ## All tests of the core and of NumPy and PyTorch, with coverage
	sh scripts/system_packages.sh age ssh-keygen=openssh-client
	$(BIN)/python -m pytest -n $(WORKERS) --cov --cov-report= -m "not servers" tests --ignore=tests/clients --ignore=tests/next --ignore=tests/ranks --ignore=tests/batch \
		--ignore=tests/view --ignore=tests/quantised
	$(BIN)/python -m pytest -q -p no:cacheprovider --doctest-modules --doctest-glob=README.md src/safeweights README.md \
		--ignore-glob='*/frameworks/jax/*' --ignore-glob='*/frameworks/mlx.py' --ignore-glob='*/frameworks/paddle.py' --ignore-glob='*/frameworks/tensorflow.py' --ignore-glob='*/flax.py' --ignore-glob='*/safeweights/jax.py' --ignore-glob='*/tensorflow.py' --ignore-glob='*/mlx.py' --ignore-glob='*/paddle.py'
	$(BIN)/python scripts/check_coverage.py
	$(MAKE) --no-print-directory fuzz
	$(MAKE) --no-print-directory test-pythons

$(AREAS:%=test-%): test-%: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(WORKERS) $(or $(TESTS_$*),tests/$*)

lint: $(VENV)/.installed ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: $(VENV)/.installed ## Coverage-guided fuzzing of every reader, FUZZ_SECONDS each
	@printf '%s\n' tests/fuzz/fuzz_*.py | xargs -P $(WORKERS) -I {} bash -o pipefail -c \
		'printed=$$($(BIN)/python {} -max_total_time=$(FUZZ_SECONDS) -verbosity=0 -close_fd_mask=0 2>&1 | tail -n 3); \
		 code=$$?; printf "%s\n%s\n" {} "$$printed"; exit $$code'

test-pythons: ## The core's tests on every Python from 3.10 to 3.14 that is installed
	$(PYTHON) scripts/test_pythons.py

test-frameworks: ## jax, tensorflow, mlx and paddle, each in its own environment
	$(PYTHON) scripts/test_frameworks.py

test-remote: $(VENV)/.installed-remote ## Buckets, web servers, the Hub, registries: real servers on loopback (KILLS=100: more kills)
	sh scripts/system_packages.sh nginx=nginx-light docker-registry
	$(if $(KILLS),SAFEWEIGHTS_KILLS=$(KILLS)) $(BIN)/python -m pytest -n $(WORKERS) tests/remote

$(VENV)/.installed-remote: $(VENV)/.installed requirements/remote.txt
	$(BIN)/python -m pip install -q -r requirements/remote.txt
	-command -v npm >/dev/null && npm install --silent --no-audit --no-fund --prefix .cache/azurite azurite@3.37.0
	touch $@

test-batch: $(VENV)/.installed-batch ## Batches: kills (KILLS=100: more), and a Ray cluster of two nodes on this machine
	$(if $(KILLS),SAFEWEIGHTS_KILLS=$(KILLS)) $(BIN)/python -m pytest -n $(WORKERS) tests/batch

$(VENV)/.installed-batch: $(VENV)/.installed requirements/batch.txt
	$(BIN)/python -m pip install -q -r requirements/batch.txt
	touch $@

test-clients: ## transformers, diffusers, accelerate ... unmodified, on this package
	$(PYTHON) scripts/test_clients.py

test-view: $(VENV)/.installed ## The page of `safeweights view`, in Debian's chromium
	sh scripts/system_packages.sh chromium
	$(BIN)/python -m pip install -q -r requirements/view.txt
	$(BIN)/python -m pytest -n $(WORKERS) tests/view

test-quantised: ## Dequantised values beside bitsandbytes, compressed-tensors, torchao, AutoGPTQ ...
	$(PYTHON) scripts/test_quantised.py

screenshots: $(VENV)/.installed ## The pictures in docs/images, in Debian's chromium
	sh scripts/system_packages.sh chromium
	$(BIN)/python -m pip install -q -r requirements/view.txt
	$(BIN)/python scripts/screenshots.py

docs: $(VENV)/.installed ## The documentation site, into .site/; its search has to answer every question
	sh scripts/system_packages.sh chromium
	$(BIN)/python -m pip install -q -r requirements/docs.txt -r requirements/view.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build -q
	$(BIN)/python scripts/test_search.py

test-ranks: $(VENV)/.installed-ranks ## Distributed checkpoints that 2 and 4 real processes of PyTorch save and load
	$(BIN)/python -m pytest tests/ranks

$(VENV)/.installed-ranks: $(VENV)/.installed requirements/ranks.txt
	$(BIN)/python -m pip install -q -r requirements/ranks.txt
	touch $@

bench: $(VENV)/.installed ## Against the reference and others; ends with a verdict for each row (QUICK=1: smaller files)
	$(BIN)/python -m pip install -q -r requirements/bench.txt
	-sh scripts/system_packages.sh chromium nginx=nginx-light
	-$(BIN)/python -m pip install -q -r requirements/view.txt
	-$(BIN)/python -m pip install -q -r requirements/remote.txt
	-$(BIN)/python -m pip install -q -r requirements/batch.txt
	$(BIN)/python benchmarks/everything.py $(if $(QUICK),--quick)

scanners: $(VENV)/.installed ## docs/scanners.md: four other scanners on the same files (a quarter of an hour)
	$(BIN)/python benchmarks/scanners/run.py --write

conformance: $(VENV)/.installed ## The format's rules as vectors: this package and the reference
	$(BIN)/python -m safeweights.conformance --impl safeweights
	-$(BIN)/python -m safeweights.conformance --impl safetensors

clean: ## Remove what the targets made
	rm -rf .venv .venv-* .venvs .cache build dist .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis
