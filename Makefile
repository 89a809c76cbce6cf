PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
SOURCES := $(shell find pnf kernels csrc cmake -type f -not -name '*.pyc') CMakeLists.txt pyproject.toml constraints.txt
CXX_SOURCES := $(shell find csrc -type f)

# Clang reads the CPU kernels at one level and the bindings as one source; any warning is an error.
CXX_LINTED := build/lint/bindings.cpp $(wildcard csrc/cpu/*.cpp)
CXX_FLAGS = -x c++ -std=c++20 -Wall -Wextra -Wshadow -Wpedantic -Wno-psabi -Icsrc -DPNF_VERSION='""' -DPNF_COMPILER='""' \
	$(shell $(BIN)/python -c "import pybind11, sysconfig; print('-isystem', pybind11.get_include(), '-isystem', \
		sysconfig.get_path('include'))")
ifeq ($(shell uname -m),x86_64)
CXX_FLAGS += -march=x86-64-v4 -DPNF_X86_64 -DPNF_ISA=x86_64_v4
else
CXX_FLAGS += -DPNF_ISA=generic
endif

# Processes of one thread, as many as cores within reason. What the tests of a file share is made once.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --maxprocesses 4 --dist loadfile --benchmark-disable

# The most telling tests of every family: mathematics, ops in float32, flows, readers, runs and commands.
QUICK := tests/reference tests/ops tests/flows tests/data tests/test_files.py tests/test_layout.py tests/test_docs.py \
	tests/training/test_train.py tests/evaluation tests/cli/test_commands.py

.PHONY: test test-all quick lint lint-python docs tutorials demo benchmark sanitize clean

test: lint
	$(PYTEST) tests benchmarks

# With the tests that are marked slow, and every case of the benchmarks.
test-all: lint
	$(PYTEST) tests benchmarks --every-case -m ""

quick: lint-python
	$(PYTEST) $(QUICK) -k "not float16 and not float64 and not compile and not graph and not transforms and not distributed \
		and not every_op and not integrates and not invertible"

lint-python: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

lint: lint-python
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)
	@mkdir -p build/lint && printf '#include "%s"\n' $(abspath $(wildcard csrc/*.cpp csrc/bindings/*.cpp)) >build/lint/bindings.cpp
	printf '%s\n' $(CXX_LINTED) | xargs -P "$$(nproc)" -I{} $(BIN)/clang-tidy --quiet {} -- $(CXX_FLAGS)

# All pages anew, so that no warning of an earlier build is forgotten.
docs: $(STAMP)
	$(BIN)/sphinx-build -E -W --keep-going -q -d build/doctrees docs build/docs
	@echo "The site is build/docs/index.html"

# Their outputs anew, after a change of their cells or of what they call.
tutorials: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tools/run_tutorials.py

# A second call goes on where the first one was stopped.
define TRAIN_DEMO
	if test -e runs/demo/$(1)/run.json; then $(BIN)/pnf train --resume runs/demo/$(1); \
	else $(BIN)/pnf train demo $(2) --out runs/demo/$(1); fi
endef

demo: $(STAMP)
	@$(call TRAIN_DEMO,realnvp,--model realnvp)
	@$(call TRAIN_DEMO,pnf)
	@$(BIN)/pnf evaluate runs/demo
	@$(BIN)/pnf curves runs/demo
	@$(BIN)/pnf sample runs/demo/realnvp --out runs/demo/samples-realnvp.png
	@$(BIN)/pnf sample runs/demo/pnf --out runs/demo/samples.png
	@$(BIN)/pnf upscale runs/demo/pnf --sampled --out runs/demo
	@$(BIN)/pnf upscale runs/demo/pnf --out runs/demo
	@$(BIN)/pnf project runs/demo/pnf --out runs/demo/projection.png
	@echo "The pictures and metrics.json are in runs/demo; look at runs/demo/upscaled-real.png first"

benchmark: $(STAMP)
	$(BIN)/pytest benchmarks --benchmark-only

# The sanitizers' runtime has to be there before Python's; it wants the C++ library at once, which Python does not load.
# What Python itself leaks is not our concern.
sanitize: export PYTHONPATH := build/sanitized
sanitize: export ASAN_OPTIONS := detect_leaks=0
sanitize: export UBSAN_OPTIONS := print_stacktrace=1
sanitize: PRELOAD = LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)"
sanitize: $(STAMP)
	$(BIN)/python -m pip install -q --no-deps --target build/sanitized --upgrade -c constraints.txt \
		-C build-dir=build/sanitized-objects -C cmake.define.PNF_SANITIZE=ON -C cmake.define.PNF_CUDA=OFF .
	$(PRELOAD) $(BIN)/pytest tests/ops -k "cpp or repeats"
	$(PRELOAD) $(BIN)/python tests/fuzz_ops.py --cases 2000

# Not an editable install: the tests run against what a user gets. What is compiled stays in build/release.
$(STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -C build-dir=build/release -C cmake.define.PNF_WERROR=ON \
		'.[train,test,docs]'
	touch $@

clean:
	rm -rf $(VENV) build dist
