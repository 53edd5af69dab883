# `make demo` and `make test` do all the set-up they need; nothing but Python 3.11+ and make is assumed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt

.PHONY: install demo test lint bench bench-alarms bench-faults bench-planted bench-study bench-bugs bench-convergence bench-canonical bench-large bench-giveback picture clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "onnxfix needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing onnxfix with PyTorch, TensorFlow and LiteRT into $(VENV), about 3 GB: a few minutes, once."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first: constraints.txt names the version whose wheel is for the CPU.
	@$(PIP) torch
	@$(PIP) -e '.[dev]'
	@touch $(STAMP)

demo: install
	@$(BIN)/python examples/demo.py

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check src tests examples benchmarks docs
	$(BIN)/mypy

# The benchmarks need the models and photos that ONNXFIX_DATA points to (by default ../shared/data).
bench: install
	$(BIN)/python benchmarks/cost.py

bench-alarms: install
	$(BIN)/python benchmarks/false_alarms.py

bench-study: install
	$(BIN)/python benchmarks/study.py

bench-planted: install
	$(BIN)/python benchmarks/planted_faults.py

bench-faults: install
	$(BIN)/python benchmarks/faults.py

bench-bugs: install
	$(BIN)/python benchmarks/converter_bugs.py

bench-convergence: install
	$(BIN)/python benchmarks/convergence.py

bench-canonical: install
	$(BIN)/python benchmarks/canonical.py

bench-large: install
	$(BIN)/python benchmarks/large_model.py

bench-giveback: install
	$(BIN)/python benchmarks/giveback.py

picture: install
	$(BIN)/python docs/make_terminal_picture.py

clean:
	rm -rf $(VENV) build dist
