# make reproduce   environment, install, embedded model and text, the notebook series, figures/
# make test        lint, types, the test suite, and the notebooks under nbval

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: reproduce test install lint unit notebooks clean

reproduce: $(INSTALLED)
	$(BIN)/saekit reproduce

test: lint unit notebooks

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(INSTALLED)
	$(BIN)/python -m pytest --durations=10

# A family trained in minutes, on the same held-out tokens as the committed outputs.
notebooks: export SAEKIT_PROFILE = test
notebooks: export SAEKIT_STRICT = 1
notebooks: $(INSTALLED)
	$(BIN)/saekit prepare
	$(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=300 --durations=10 notebooks

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt requirements/embedded.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,notebooks,test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/embedded.txt
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
