# Every target sets itself up: the virtual environment and its packages come on the first call.
#   make demo    train an example subject on the embedded base, draw a grid, say where everything is
#   make test    every test
#   make style   mend the formatting and what ruff can mend
#   make check   formatting, lint and types, changing nothing
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test style check clean
.DEFAULT_GOAL := test

# A stamp is older than pyproject.toml or constraints.txt when the packages have to be installed again.
# The stamp of development holds for the demo too, so `make test && make demo` installs once.
$(VENV)/.ready-demo $(VENV)/.ready-dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[$(EXTRAS)]"
	touch $(VENV)/.ready-demo $@

$(VENV)/.ready-demo: EXTRAS := ui,qr
$(VENV)/.ready-dev: EXTRAS := ui,peft,eval,tracking,qr,heif,dev

demo: $(VENV)/.ready-demo
	TRANSFORMERS_VERBOSITY=error $(BIN)/python examples/demo.py

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

style: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
