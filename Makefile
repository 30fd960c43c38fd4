# Lineshaft. `make` alone lists the targets. Nothing has to be there first but make and Python 3.11.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# A bare environment (a container, `env -i`) may have no HOME; pip and numba look for one.
ifeq ($(HOME),)
export HOME := $(CURDIR)/var/home
export PIP_CACHE_DIR ?= $(CURDIR)/var/home/.cache/pip
endif

KAFKA_PORT ?= 9092
KAFKA_DIR ?= .kafka
# Processes that share the files of tests out among them: much of what a test does is waiting.
WORKERS ?= 2
ROUNDS ?=
SEED ?=
IMAGE ?= lineshaft:latest
COMPOSE := $(shell if docker compose version >/dev/null 2>&1; then echo docker compose; else echo docker-compose; fi)
FAST := tests/unit $(wildcard tests/test_*.py)

.PHONY: help setup run demo test check lint types imports soak bench kafka migrate openapi docs image up down

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## Build .venv with everything in it (PYTHON=python3.12 picks another interpreter)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Lineshaft needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)." \
	       "Name another one: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "setup: installing into $(VENV) (some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 5 -e '.[dev]'
	@touch $@

run: setup ## Run everything on the embedded engines with the demo plant: HTTP 8080, MQTT 1883, data in var/
	@exec $(BIN)/lineshaft up --demo

demo: run ## The same as run

test: setup ## Every test that this machine can run
	@exec $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: lint types imports ## Lint, types, import rules and the fast tests
	@exec $(BIN)/pytest -q $(FAST)

lint: setup ## ruff: lint and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup ## mypy, strict
	@exec $(BIN)/mypy

imports: setup ## import-linter: who may import whom
	@exec $(BIN)/lint-imports

soak: setup ## Long runs of the tests that kill and replay (ROUNDS=20 SEED=1)
	@ROUNDS="$(or $(ROUNDS),20)" SEED="$(SEED)" exec $(BIN)/pytest -s \
	  $(wildcard tests/system tests/flow tests/contract tests/unit/domain)

bench: setup ## Measure this machine; numbers, never assertions
	@exec $(BIN)/python -m tests.bench

kafka: ## Apache Kafka without Docker, in the foreground, on 127.0.0.1 (KAFKA_PORT=9092 KAFKA_DIR=.kafka)
	@KAFKA_PORT="$(KAFKA_PORT)" KAFKA_DIR="$(KAFKA_DIR)" exec infra/kafka/run

migrate: setup ## Bring the store's tables up to date
	@exec $(BIN)/lineshaft migrate

openapi: setup ## Write schemas/openapi/ anew from the doors
	@exec $(BIN)/lineshaft openapi

docs: setup ## Write the generated pages of docs/ and infra/env.example anew
	@exec $(BIN)/python -m tests.support.docs

image: ## Build the container image (IMAGE=lineshaft:latest)
	@exec docker build -t "$(IMAGE)" -f infra/Dockerfile .

up: image infra/.env ## Kafka, ClickHouse, Lineshaft, Prometheus and Grafana with docker compose
	@exec $(COMPOSE) -f infra/compose.yaml --env-file infra/.env up -d

down: ## Stop what `make up` started; the data stays in its volumes
	@test ! -f infra/.env || exec $(COMPOSE) -f infra/compose.yaml --env-file infra/.env down

infra/.env: ## Fresh secrets for compose, made once and kept
	@infra/secrets $@
