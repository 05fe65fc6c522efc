SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install serve test test-slow test-all lint bench-browser screenshots

MEDSA_CACHE ?= $(HOME)/.cache/medsa
PYTHON ?= python3.11
export MEDSA_CACHE PYTHON
# Server, training and tests share few cores: threads that wait must not spin.
export OMP_WAIT_POLICY ?= PASSIVE

# glibc keeps what is freed for the next click, in two arenas at the most: encoding a slice took 58 instead of 81 ms.
KEEP_FREED := MALLOC_ARENA_MAX=2 MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=1073741824

# A DICOMweb address or a folder of images; empty: Orthanc is started here, with made series
STUDIES ?=
# A folder of DICOM files for that Orthanc
DEMO ?=
TASK ?= demo
HOST ?= 127.0.0.1
PORT ?= 8000
# Processes for the quick tests: one a core, two at the most
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 1); [ "$$n" -lt 2 ] && echo $$n || echo 2)
# Further settings of the server, e.g. CONF="--conf base vit_b --conf train_minutes 10"
CONF ?=

help:  ## What can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install:  ## The environment, in the cache folder, linked as .venv
	@scripts/install.sh

serve: install  ## PACS, server and OHIF: STUDIES=ADDRESS|DIR DEMO=DIR TASK=NAME HOST=ADDRESS PORT=N CONF="--conf KEY VALUE ..."
	@PATH="$(CURDIR)/.venv/bin:$$PATH" $(KEEP_FREED) exec .venv/bin/python apps/medsa/cli.py serve --data "$(MEDSA_CACHE)" \
	    --studies "$(STUDIES)" $(if $(DEMO),--demo "$(DEMO)") --task "$(TASK)" --host "$(HOST)" --port "$(PORT)" $(CONF)

test: install  ## The tests that need neither a server nor real data
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(WORKERS) --dist worksteal -m "not server and not data and not large"

test-slow: install  ## The tests with the real server and with real data
	@.venv/bin/python -m pytest -n $(WORKERS) --dist loadfile -m "server or data or large"

test-all: test test-slow  ## Every test

lint: install  ## ruff and mypy
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

bench-browser: install  ## What annotating in OHIF costs, about 25 minutes; JSON=FILE
	@.venv/bin/python benchmarks/browser.py $(if $(JSON),--json "$(JSON)")

screenshots: install  ## The pictures of docs/ohif.md, taken by the test of the whole loop
	@.venv/bin/python -m pytest tests/browser/test_loop.py && .venv/bin/python scripts/screenshots.py
