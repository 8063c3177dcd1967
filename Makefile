# make reproduce   environment, install, embedded model and text, the notebook series, figures/
# make test        lint, types, the test suite, and the notebooks under nbval
# make quick       lint, types, and the tests that are not slow: under two minutes on two cores
# make lab         open the series in JupyterLab
# make docs        the documentation site, in build/site
# make lowest      the tests that are not slow, on the lowest versions that pyproject.toml allows
# make families    train what the package lacks of its families, and wider members (hours; resumes)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LOWEST := build/lowest
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
# As many processes as there are cores, up to four: each holds torch and a model.
PYTEST := -m pytest --quiet --numprocesses auto --maxprocesses 4 --dist worksteal
PYTEST_QUICK := $(PYTEST) -m "not slow and not browser"

.PHONY: reproduce test quick lab docs lowest families install lint unit unit-quick notebooks clean

reproduce: $(INSTALLED)
	$(BIN)/saekit reproduce

test: lint unit notebooks

quick: lint unit-quick

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(INSTALLED)
	$(BIN)/python $(PYTEST) --durations=10

unit-quick: $(INSTALLED)
	$(BIN)/python $(PYTEST_QUICK)

# The committed notebooks on the bundled families, a notebook per core; their figures go elsewhere.
notebooks: export SAEKIT_FIGURES = $(CURDIR)/build/figures
notebooks: export SAEKIT_STRICT = 1
notebooks: export SAEKIT_CACHE = 1
notebooks: export OMP_NUM_THREADS = 1
notebooks: $(INSTALLED)
	$(BIN)/python $(PYTEST) --maxprocesses 2 --dist loadfile --durations=10 \
	  --nbval-lax --nbval-current-env --nbval-cell-timeout=900 notebooks

lab: $(INSTALLED)
	$(BIN)/jupyter lab notebooks

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict --quiet --clean

# uv finds the lowest versions, pip installs them: so both obey the same settings for torch's build.
lowest:
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python $(PIP_INSTALL) -c constraints.txt uv
	$(LOWEST)/bin/uv pip compile --quiet --resolution lowest-direct --no-annotate --no-header \
	  --python $(LOWEST)/bin/python --extra embedded --extra notebooks --extra serve --extra test pyproject.toml -o $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python $(PIP_INSTALL) -c $(LOWEST)/lowest.txt -e '.[embedded,notebooks,serve,test]'
	$(LOWEST)/bin/python $(PIP_INSTALL) --no-deps --require-hashes -r requirements/embedded.txt
	$(LOWEST)/bin/python $(PYTEST_QUICK)

families: $(INSTALLED)
	$(BIN)/saekit families

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt requirements/embedded.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[embedded,notebooks,serve,test]'
	$(BIN)/python $(PIP_INSTALL) --no-deps --require-hashes -r requirements/embedded.txt
	touch $@

$(VENV)/.docs: $(INSTALLED)
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache
