# Everything a person runs. `make demo` and `make test` need only Python 3.11+ and pip.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
VLLM ?= .venv-vllm
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-kafka test-llms test-vllm bench-vllm image-test compose-test e2e faults bench-ingest bench-bank bench-query profile-question profile-window check format train train-gpu eval chart screenshot clean browser prometheus java

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.run  ## news in, answers out, on this machine (DEMO_ONCE=1 ends after the table)
	@$(BIN)/cmt demo

test: $(VENV)/.dev browser prometheus java check  ## all checks and tests
	@$(BIN)/python -m pytest

test-fast: $(VENV)/.dev  ## unit tests and layer contracts, on two cores: within two minutes where they are idle
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile tests/unit tests/contract

image-test: $(VENV)/.dev  ## builds the image and runs it as any user, read-only, without a network (needs a Docker engine)
	@$(BIN)/python -m pytest -s tests/container/test_image.py

compose-test: $(VENV)/.dev  ## deploy/compose.yaml for real: up, feed to answer, every service killed under load (needs docker compose)
	@COMPOSE_TEST=1 $(BIN)/python -m pytest -s tests/container/test_compose.py

e2e: $(VENV)/.dev  ## the chart on the cluster of KUBECONFIG: installed, asked, killed, upgraded, uninstalled (needs kubectl and helm)
	@E2E=1 $(BIN)/python -m pytest -s tests/e2e

test-kafka: $(VENV)/.dev  ## stream, ingest and faults on a real Apache Kafka, one broker and three (needs Java and Maven, or CMT_TEST_KAFKA=host:port)
	@FAULT_RECORDS=$${FAULT_RECORDS:-100000} $(BIN)/python -m pytest --durations=0 tests/kafka

test-llms: $(VENV)/.dev  ## real larger LLMs, fitted and asked (half an hour and 5 GB the first time; CMT_TEST_LLMS names others)
	@$(BIN)/python -m pytest -s tests/llms

test-vllm: $(VENV)/.vllm  ## vLLM as engine: token by token as ours, isolation, faults, API (its environment, 1.4 GB, the first time)
	@CMT_TEST_PYTHON=$(BIN)/python $(VLLM)/bin/python -m pytest --durations=0 tests/vllm

bench-vllm: $(VENV)/.vllm  ## vLLM with memories and with texts beside our own engine; wants an idle machine
	@$(VLLM)/bin/python -m benchmarks.vllm

faults: $(VENV)/.dev  ## the fault tests on 100,000 records
	@FAULT_RECORDS=100000 $(BIN)/python -m pytest --durations=0 tests/faults

bench-ingest: $(VENV)/.bench  ## ingest's speed, every figure beside its bar; wants an idle machine
	@$(BIN)/python -m benchmarks.ingest

bench-bank: $(VENV)/.dev  ## the bank's speed as it grows to a million rows, against its bars; wants an idle machine
	@$(BIN)/python -m benchmarks.bank

check: $(VENV)/.dev  ## ruff, mypy --strict, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/.dev  ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

train: $(VENV)/.run  ## train a checkpoint from the start (hours on 2 cores; goes on where it was stopped; the model card has the shipped one's commands)
	@$(BIN)/cmt train runs/checkpoint --run runs/kv_code

train-gpu: $(VENV)/.run  ## eight minutes of training on a GPU, from the shipped checkpoint; the same again goes on (docs/benchmarks.md)
	@$(BIN)/python -m benchmarks.gpu --only training

eval: $(VENV)/.run  ## score the shipped checkpoint on squad_dev in CMT_DATA_DIR
	@$(BIN)/cmt eval stream --documents 600 --questions 300

bench-query: $(VENV)/.dev  ## the query service under load, against its bars (16 minutes; squad_dev in CMT_DATA_DIR)
	@$(BIN)/python -m benchmarks.query

profile-question: $(VENV)/.run  ## where a question's time goes, in-process (wants an idle machine)
	@$(BIN)/python -m benchmarks.profile_question

profile-window: $(VENV)/.run  ## where the compressor's time goes (wants an idle machine)
	@$(BIN)/python -m benchmarks.profile_window

chart: $(VENV)/.dev  ## write what follows from the chart's values.yaml: its README table and values.schema.json
	@$(BIN)/python helm/generate.py

screenshot: $(VENV)/.dev browser  ## docs/page*.png (desktop, phone, dark, an article), from a real run
	@PAGE_SCREENSHOTS=docs $(BIN)/python -m pytest -q tests/integration/test_demo.py

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) $(VLLM) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build *.egg-info

# Chromium is only needed by the page's tests, which skip themselves where it is missing.
browser:
	@if ! command -v chromium >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing chromium for the page's tests"; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 \
	  || echo "chromium can't be installed; the page's tests will be skipped"; \
	fi

# promtool and Prometheus are only needed by the tests of the alert rules, which skip themselves where they are missing.
prometheus:
	@if ! command -v promtool >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing prometheus for the tests of the alert rules"; \
	  { apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus; } >/dev/null 2>&1 \
	  || echo "prometheus can't be installed; the tests of the alert rules will be skipped"; \
	fi

# Java and Maven are only needed by the tests on a real Apache Kafka, which skip themselves where they are missing.
java:
	@if ! { command -v java && command -v mvn; } >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing Java and Maven for the tests on a real Apache Kafka"; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends default-jre-headless maven; } >/dev/null 2>&1 \
	  || echo "Java or Maven can't be installed; the tests on a real Apache Kafka will be skipped"; \
	fi

$(VENV)/.run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || { echo "making the virtual environment $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing pinned dependencies (a few minutes the first time)"
	@$(INSTALL) $$($(BIN)/python deploy/torch_index.py) --editable '.[services,feeds]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "installing test dependencies"
	@$(INSTALL) --editable '.[dev]'
	@touch $@

$(VENV)/.vllm: $(VENV)/.dev deploy/vllm_environment.py deploy/vllm-constraints.txt
	@echo "installing vLLM into $(VLLM)"
	@$(BIN)/python deploy/vllm_environment.py $(VLLM)
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	@$(INSTALL) --editable '.[dev,bench]'
	@touch $@
