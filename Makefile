# make demo   the main job on synthetic video, from a bare machine with Python 3.10 or later
# make test   all tests, likewise

PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test install

demo: install
	$(VENV)/bin/taf-fast demo

test: install
	$(VENV)/bin/python -m pytest

install: $(INSTALLED)

$(INSTALLED): setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dali,dev]'
	# A peer for the tests; its dependency torchvision would bring another build of torch.
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --no-deps torchattacks
	# Not every system that torch runs on has a build of it; the tests of the report's page do without.
	-$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]'
	touch $@
