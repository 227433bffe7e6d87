# make env    .venv with everything that tests and demo need
# make align  align the embedded text-to-image model by a reward (DiffusionNFT), and report before against after
# make table  train and measure every image recipe, resumably, and write the tables of README and docs
# make test   all quick tests, a process a core; make test-slow: heavy repeats of a quick proof, and trainings
# make bench  what things cost against their floors
# make docs   docs/ as a site, in build/docs
PYTHON ?= python3
BIN := .venv/bin

.PHONY: env align table test test-slow bench docs lint

env: .venv/.installed

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

align: env
	$(BIN)/genalign train pipelines/image-nft.yaml

table: env
	$(BIN)/python -m genalign.cli.table

test: env
	$(BIN)/python -m pytest -m 'not slow' -n auto --maxprocesses 8 --dist loadfile

test-slow: env
	$(BIN)/python -m pytest -m slow

bench: env
	$(BIN)/python -m tests.bench

docs: env
	$(BIN)/python -m mkdocs build --strict

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
