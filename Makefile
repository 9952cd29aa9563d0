# SPDX-License-Identifier: Apache-2.0
# A target is one line that calls the tool; logic lives in Python.
SHELL := /bin/bash
PYTHON ?= /usr/bin/python3
VENV := build/venv
BIN := $(VENV)/bin
NATIVE := $(shell find native -name '*.[chS]' -o -name '*.lds' -o -name '*.py' 2>/dev/null)
PROTOS := $(shell find engine plugin -name '*.proto' 2>/dev/null)

.PHONY: help
help:  ## this text
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: dev  ## move a pod between two nodes of a real cluster, with a proof at the end
	$(BIN)/python tests/e2e/demo.py

.PHONY: test
test: dev  ## every test that runs on one machine
	$(BIN)/python tools/run_tests.py all

.PHONY: lint
lint: dev  ## ruff, mypy, import-linter, freshness of generated files
	$(BIN)/python tools/lint.py

.PHONY: docs
docs: dev  ## bring the generated parts of docs/ up to date
	$(BIN)/python tools/docs.py
	$(BIN)/python -m torpor.engine.criu.usage > docs/criu-compat.md

.PHONY: unit functional faults compat states programs e2e
unit: dev  ## unit tests, no root needed
	$(BIN)/python tools/run_tests.py unit
functional: dev  ## live workloads of this machine: dump, kill, restore, check
	$(BIN)/python tools/run_tests.py functional
faults: dev  ## kill -9 of the engine, truncated images, full disks
	$(BIN)/python tools/run_tests.py faults
compat: dev  ## crosswise with Debian's criu
	$(BIN)/python tools/run_tests.py compat
states: dev  ## docs/states.md from the reports of `make functional compat`
	$(BIN)/python -m tests.functional.catalogue.table
programs: dev  ## real programs with clients, moved twice; writes docs/programs.md
	$(BIN)/python tools/run_tests.py programs; status=$$?; $(BIN)/python -m tests.programs.table && exit $$status
e2e: dev  ## the real two-node cluster
	$(BIN)/python tools/run_tests.py e2e

.PHONY: fuzz faults-all
fuzz: dev  ## a million mutated inputs for everything that reads; writes docs/fuzzing.md
	$(BIN)/python -m tests.fuzz.run
faults-all: dev  ## every operation of a restore, every call of a dump made to fail once
	TORPOR_FAULTS=all $(BIN)/python tools/run_tests.py faults tests/faults

.PHONY: bench
bench: dev engine  ## ratios against Debian's criu, measured in one run
	$(BIN)/python bench/run.py --json build/bench.json --markdown build/bench.md --plot docs/pauses.svg \
		small commands restores precopy memory plot

.PHONY: image
image: dev  ## build/torpor-image.tar, an OCI archive for `ctr images import`
	$(BIN)/python deploy/image

.PHONY: cluster-up cluster-down
cluster-up: dev  ## bring the two-node cluster up and say how to use it
	$(BIN)/python tests/e2e/cluster up
cluster-down:  ## take the cluster down
	$(PYTHON) tests/e2e/cluster down

.PHONY: engine
engine: build/bin/torpor  ## only build/bin/torpor and build/bin/criu
build/bin/torpor: $(NATIVE) $(PROTOS) $(shell find engine -name '*.py') requirements/engine.txt setup.py pyproject.toml tools/bundle.py tools/launchers.py
	@tools/system_packages.sh python3 python3-venv python3-dev gcc libc6-dev binutils
	@test -x build/engine/bin/pip || $(PYTHON) -m venv build/engine
	@build/engine/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements/build.txt
	@rm -rf build/lib* build/bdist*  # where setuptools keeps modules that are no more
	@build/engine/bin/pip install -q --disable-pip-version-check --no-build-isolation --no-deps --force-reinstall .
	@$(PYTHON) tools/launchers.py build/engine build/bin
	@build/engine/bin/python -I tools/completion.py build/completion
	@touch $@; echo "build/bin/torpor and build/bin/criu are ready"

.PHONY: install
PREFIX ?= /usr/local
install: engine  ## to PREFIX (and DESTDIR); CRIU=1 gives the name criu as well
	$(PYTHON) tools/install.py build/engine --completion build/completion --prefix $(PREFIX) --destdir "$(DESTDIR)" $(if $(CRIU),--criu)

.PHONY: dev
dev: $(VENV)/.ready build/typing/torpor/__init__.py  ## virtual environment with everything, editable
$(VENV)/.ready: requirements/dev.txt pyproject.toml setup.py $(NATIVE) $(PROTOS)
	@tools/system_packages.sh python3 python3-venv python3-dev gcc libc6-dev binutils
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@
build/typing/torpor/__init__.py:
	@mkdir -p build/typing/torpor && ln -sfn ../../../engine build/typing/torpor/engine && ln -sfn ../../../plugin build/typing/torpor/plugin && touch $@

.PHONY: lock
lock:  ## refresh requirements/*.txt with hashes
	for f in engine runtime build dev; do uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command "make lock" requirements/$$f.in -o requirements/$$f.txt; done

.PHONY: clean
clean:  ## remove what was built here (caches outside stay)
	rm -rf build engine/blobs/*.bin engine/_native*.so
