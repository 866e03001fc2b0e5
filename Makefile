# Everything starts here: `make test`, `make demo`. A virtual environment is made in .venv; nothing outside the
# repository is touched.
#
#   PYTHON=python3.12       the interpreter to build and test with
#   TORCH=torch==2.13.0     what pip installs as torch; name a CPU build here to spare the download
#   OUTPUT=build/cuda       where cuda, bench-cuda and sanitize-cuda leave logs and figures
#   PARTS="build check"     what cuda runs of tests/cuda.sh, which needs no make and no network

PYTHON ?= python3
TORCH ?= torch==2.13.0
OUTPUT ?= build/cuda
PARTS ?=

BIN := .venv/bin
CUDA = PYTHON=$(BIN)/python OUTPUT=$(OUTPUT) tests/cuda.sh
SOURCES := $(shell find cpp cuda bindings cmake python -type f -not -name '*.pyc') CMakeLists.txt pyproject.toml LICENSE README.md
CXX_FILES := $(shell find cpp cuda bindings tests -name '*.h' -o -name '*.cpp' -o -name '*.inl' -o -name '*.cuh' -o -name '*.cu')

.DEFAULT_GOAL := help
.PHONY: help test check unit simt cuda bench-cuda sanitize-cuda demo bench precision sanitize sdist format clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# torch first, in a step of its own, so that no other requirement chooses a build of it.
.venv/torch.stamp:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$(TORCH)"
	touch $@

dist/wheel.stamp: $(SOURCES) .venv/torch.stamp
	rm -rf dist/*.whl
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	touch $@

.venv/installed.stamp: dist/wheel.stamp
	$(BIN)/pip install --quiet --force-reinstall --no-deps dist/*.whl
	wheel=$$(ls dist/*.whl) && $(BIN)/pip install --quiet "$$wheel[test]"
	touch $@

test: check unit simt ## Build the wheel, check the style, run the suite on it and the CUDA kernels' over the interpreter

check: .venv/installed.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo clang-format
	@$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy

unit: .venv/installed.stamp
	$(BIN)/python -m pytest --ignore=tests/benchmarks

simt: .venv/installed.stamp ## The operator tests over the CUDA kernels, in the interpreter of tests/simt
	$(BIN)/pip install --quiet --no-deps --upgrade --target build/simt-site -C build-dir=build/simt \
	  -C cmake.define.MEGALODON_CORE_SIMT=ON -C cmake.define.MEGALODON_CORE_CUDA=OFF .
	PYTHONPATH=$(CURDIR)/build/simt-site $(BIN)/python -m pytest tests/ops tests/simt

cuda: .venv/gpu.stamp ## Compile the CUDA kernels with nvcc; where there is a GPU, check, time and test them on it
	$(BIN)/python tests/cuda_resources.py
	if nvidia-smi > /dev/null 2>&1; then $(CUDA) $(PARTS); fi

bench-cuda: .venv/gpu.stamp ## On a GPU: operators and the 7B model's layer beside floors and peers, and which bars hold
	$(CUDA) build check table layer

sanitize-cuda: .venv/gpu.stamp ## On a GPU: operator tests under compute-sanitizer's memcheck and racecheck
	$(CUDA) build memcheck racecheck

# What tests/cuda.sh builds with, from the environment instead of the network.
.venv/gpu.stamp: .venv/installed.stamp
	$(BIN)/pip install --quiet "cmake>=3.25" ninja "pybind11>=3.0" "scikit-build-core>=0.11"
	touch $@

demo: .venv/installed.stamp ## Train on real text, read 1,000,000 bytes, complete a prompt, time the operators
	$(BIN)/megalodon-core demo --output demo

bench: .venv/installed.stamp ## Operators, model, memory and scaling beside floors and peers: tables, JSON, plots
	$(BIN)/python tests/benchmarks/run.py --output build/bench

precision: .venv/installed.stamp ## Measure the error of every operator and gradient; rewrites docs/precision.md
	$(BIN)/python tests/precision.py --output docs/precision.md

sanitize: .venv/installed.stamp ## The operator tests under AddressSanitizer and UndefinedBehaviorSanitizer
	tests/sanitize.sh $(BIN)

sdist: .venv/torch.stamp ## The source distribution
	$(BIN)/pip install --quiet build
	$(BIN)/python -m build --sdist --outdir dist .

format: .venv/installed.stamp ## Format Python and C++
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CXX_FILES)

clean: ## Remove everything that was built
	rm -rf .venv build dist demo
