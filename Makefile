PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
SOURCES := $(shell find pnf kernels csrc -type f -not -name '*.pyc') CMakeLists.txt pyproject.toml constraints.txt

.PHONY: test lint demo benchmark clean

# pytest by its own name: `python -m pytest` would put the sources before the installed package.
test: lint
	$(BIN)/pytest
	$(BIN)/pytest benchmarks --benchmark-disable

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

demo: $(STAMP)
	$(BIN)/pnf --help

benchmark: $(STAMP)
	$(BIN)/pytest benchmarks --benchmark-only

# Not an editable install: the tests run against what a user gets.
$(STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt '.[train,test]'
	touch $@

clean:
	rm -rf $(VENV) build dist
