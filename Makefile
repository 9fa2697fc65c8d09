# make demo    the main job on synthetic video, from a bare machine with Python 3.10 or later
# make test    all tests, from a bare machine too
# make quick   the tests that take less than a second each, to run while working
# make faults  the whole campaign of tests/faults: kills, full disks, damage, drawn contents,
#              names and surroundings
# make lint    style, types and layers
# make docs    the pages of docs/ and an API reference as a site, in site/

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
INSTALLED := $(VENV)/.installed
PYTEST := $(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --dist worksteal

.PHONY: demo test quick faults lint docs install

demo: install
	$(VENV)/bin/taf-fast demo

test: install
	$(PYTEST)

quick: install
	$(PYTEST) -m "not slow and not gpu"

faults: install
	TAF_FAST_FAULTS=1 $(PYTEST) tests/faults

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python tools/check_types.py

docs: install
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

install: $(INSTALLED)

$(INSTALLED): setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dali,dev]'
	# For the tests. Both ask for torchvision, which would bring another build of torch, or would be one for
	# another build: then whatever looks for it (lightning, transformers) fails.
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --no-deps timm torchattacks
	# Not every system that torch runs on has a build of it; the tests of the report's page do without.
	-$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]'
	touch $@
