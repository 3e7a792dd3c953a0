# `make` without a target explains itself. Needed on the machine: Python >= 3.11, git and make; all else is set up here.

PYTHON ?= python3
UV_VERSION := 0.13.9
UV := .uv/bin/uv
BIN := .venv/bin
SEEDS ?= 1000
MINUTES ?= 10
SEED ?=
AGAINST ?= $(shell git describe --tags --abbrev=0 2>/dev/null || echo HEAD~1)
STAMP := .venv/.set-up
MANIFESTS := pyproject.toml uv.lock $(wildcard libs/*/pyproject.toml services/*/pyproject.toml devstack/pyproject.toml devstack/*/pyproject.toml)
SOURCES := $(filter-out libs/contracts/src, $(wildcard libs/*/src services/*/src devstack/src devstack/*/src))
TESTS := $(wildcard conftest.py libs/*/tests services/*/tests devstack/tests devstack/*/tests)

# The interpreter that is there is the one that is used; nothing is downloaded in its place.
export UV_PYTHON := $(shell command -v $(PYTHON))
export UV_PYTHON_DOWNLOADS := never
export UV_PROJECT_ENVIRONMENT := .venv

.DEFAULT_GOAL := help
.PHONY: help setup up down test chaos-compose alerts-test nat-test check check-style check-types check-imports check-proto check-docs check-isolated demo bench bench-resilience simulate mutate cover soak audit docs fmt proto python

help: ## Show this list
	@echo "AuraLink: services that keep working while the things they depend on die."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Set up everything that the other targets need (into .uv/ and .venv/)

up: $(STAMP) ## Start the platform in the foreground; Ctrl-C stops it (ARGS="--port-base auto")
	@exec $(BIN)/auralink up $(ARGS)

down: $(STAMP) ## Stop a platform that runs in the background, or what a killed one left
	@exec $(BIN)/auralink down $(ARGS)

test: $(STAMP) ## Run the whole test suite, on real servers (ARGS="-k queue")
	$(BIN)/python tools/run_tests.py $(ARGS)

chaos-compose: $(STAMP) ## Run the platform in containers and break each of them (needs a Docker engine and compose 2)
	AURALINK_COMPOSE_TESTS=1 $(BIN)/pytest -m compose tests/compose $(ARGS)

alerts-test: $(STAMP) ## Rules and routes, and an alert through a real Prometheus and Alertmanager (their Debian packages)
	$(BIN)/pytest tests/deploy/test_rules.py tests/deploy/test_alerting.py $(ARGS)

nat-test: $(STAMP) ## Calls between every pair of NAT kinds, in network namespaces (needs root, Chromium, nftables)
	AURALINK_NAT_TESTS=1 $(BIN)/pytest -m nat tests/nat $(ARGS)

check: check-style check-types check-imports check-proto check-docs check-isolated ## Style, types, dependency rules, protocol (all: make -k check)

check-style: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

check-types: $(STAMP)
	$(BIN)/mypy $(SOURCES) tools benchmarks
	$(BIN)/mypy $(TESTS) tests

check-imports: $(STAMP)
	$(BIN)/lint-imports

check-proto: $(STAMP)
	$(BIN)/buf lint proto
	@if git cat-file -e $(AGAINST):proto 2>/dev/null; then \
	    echo "buf breaking proto --against $(AGAINST)"; \
	    $(BIN)/buf breaking proto --against '.git#ref=$(AGAINST),subdir=proto'; \
	else echo "buf breaking: skipped, there is no $(AGAINST) to compare with"; fi
	$(BIN)/python tools/gen_proto.py --check

check-isolated: $(STAMP)
	@for pair in resilience:resilience dashboard:dashboard.__main__ ai-core:ai_core.__main__ webrtc:webrtc.__main__ \
	    simulated-provider:simulated_provider; do \
	    echo "import $${pair#*:} with nothing but what auralink-$${pair%%:*} declares"; \
	    $(UV) run --quiet --isolated --no-dev --frozen --package auralink-$${pair%%:*} python -c "import $${pair#*:}" || exit 1; \
	done

check-docs: $(STAMP)
	$(BIN)/python tools/gen_docs.py --check
	$(BIN)/python -m tools.gen_alerts --check
	$(BIN)/python -m tools.gen_dashboards --check

demo: $(STAMP) ## Break each row of the matrix in turn, and show what callers saw
	@exec $(BIN)/auralink demo $(ARGS)

bench: $(STAMP) ## Measure against bare floors, side by side in one run
	$(BIN)/python -m benchmarks $(ARGS)

bench-resilience: $(STAMP) ## Measure the library against its Python peers, in one run (ARGS="--quick", "--probes")
	$(BIN)/python -m benchmarks.resilience $(ARGS)

simulate: $(STAMP) ## Run the write queue and its drain through SEEDS=1000 simulated disasters (ARGS="--seed 7 --trace")
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) $(ARGS)

mutate: $(STAMP) ## Change the library's rules one by one and see that a test notices (ARGS="breaker retry")
	$(BIN)/python tools/mutate.py $(ARGS)

cover: $(STAMP) ## Branch coverage of the library by its own tests (those of threads left out: tracing disturbs them)
	$(UV) run --quiet --frozen --with coverage coverage run --branch --source=libs/resilience/src \
	    -m pytest -q --noconftest -o asyncio_mode=auto -k "not threads and not case_60 and not loops" libs/resilience
	$(UV) run --quiet --frozen --with coverage coverage report --show-missing --skip-covered

soak: $(STAMP) ## Break the platform at random for MINUTES=10 and hold what callers saw against the matrix (SEED=7)
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

audit: $(STAMP) ## Look the locked dependencies up in the advisory database (needs the network)
	$(UV) audit --frozen $(ARGS)

docs: $(STAMP) ## Write the documents, alerts and dashboards that are made from code
	$(BIN)/python tools/gen_docs.py
	$(BIN)/python -m tools.gen_alerts
	$(BIN)/python -m tools.gen_dashboards

fmt: $(STAMP) ## Format the code and apply the safe fixes
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

proto: $(STAMP) ## Generate the gRPC code from proto/
	$(BIN)/python tools/gen_proto.py

python:
	@test -n "$(UV_PYTHON)" || { echo "error: no $(PYTHON) on the PATH; Python 3.11 or newer is needed" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: $$($(PYTHON) --version) is too old: 3.11 or newer is needed (PYTHON=... picks another)" >&2; exit 1; }

$(UV): Makefile | python
	@echo "==> setting up uv $(UV_VERSION) in .uv/"
	@$(PYTHON) -m venv .uv || { echo "error: python3 cannot make a virtual environment (on Debian: apt install python3-venv)" >&2; exit 1; }
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

$(STAMP): $(UV) $(MANIFESTS)
	@echo "==> installing the locked dependencies into .venv/ (the first time about 100 MB)"
	@$(UV) sync --frozen --all-packages --quiet --compile-bytecode
	@$(BIN)/python -m compileall -q libs services devstack
	@touch $@
	@echo "==> set up"
