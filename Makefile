# One environment, .venv, for everything; it is built again when what it holds changes.
#   make demo   the main job on the bundled images: a table and a picture        make test   the whole suite
#   make docs   the manual, in docs/_build/html                                  make lint   ruff, codespell and mypy
#   make bench  the comparisons with other packages                              make clean  remove what is generated
#   make build  the sdist and the wheel in dist/, both tried out in an empty environment
#   make oldest the suite with the lowest versions that pyproject.toml admits (downloads gigabytes: torch with CUDA)
#   make newest the suite with the newest versions that there are (likewise)

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check install --constraint constraints.txt

.PHONY: demo test oldest newest docs lint build bench clean
.DELETE_ON_ERROR:

demo: .venv/installed
	MPLBACKEND=Agg $(BIN)/python examples/plot_kanji_retrieval.py --picture kanji_retrieval.png

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Old packages warn of newer ones.
oldest: .venv-oldest/installed
	PYTHONWARNINGS=default .venv-oldest/bin/python -m pytest -n 2 --dist worksteal -o filterwarnings=default

# Without constraints, and from nothing each time. What a dependency deprecates is an error here too: it is to be known early.
newest:
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip -q install --editable '.[test]'
	.venv-newest/bin/python -m pytest -n 2 --dist worksteal

docs: .venv/installed-dev
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

build: .venv/installed-dev
	PYTHON=$(BIN)/python .ci/check_build

bench: .venv/installed-bench
	for name in losses all_losses metrics training saving images; do $(BIN)/python benchmarks/$$name.py || exit 1; done

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("skdml needs Python >= 3.11 and this is %d.%d; try: make PYTHON=python3.11" % sys.version_info[:2])'
	@echo "Creating .venv (some minutes the first time)"
	@$(PYTHON) -m venv --clear .venv
	@$(PIP) --editable '.[test]'
	@touch $@

.venv/installed-dev .venv/installed-bench: .venv/installed-%: .venv/installed
	@$(PIP) --editable '.[$*]'
	@touch $@

.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv --clear .venv-oldest
	grep -oE '"[^"]+>=[^"]+"' pyproject.toml | tr -d '"' | sed 's/>=/==/' | sort -u >.venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip -q install --constraint .venv-oldest/constraints.txt --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv .venv-oldest .venv-newest build dist *.egg-info docs/_build docs/api docs/auto_examples docs/sg_execution_times.rst kanji_retrieval.png
	rm -rf .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -r {} +
