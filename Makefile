# ModelKMS. Needs only python3 (3.11 or newer, with venv) and make; everything else comes by
# `make setup`, at versions and hashes written in requirements/. `make help` lists the targets.

SHELL := /bin/sh
.DELETE_ON_ERROR:
.SUFFIXES:
.DEFAULT_GOAL := help

PYTHON ?= python3
JOBS ?= 2
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/modelkms

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.modelkms-setup
TORCH_VENV := $(CACHE)/torch-$(shell cat requirements/torch.txt requirements/development.txt | cksum | cut -d" " -f1)
FUZZ_VENV := $(CACHE)/fuzz-$(shell cat requirements/fuzz.txt requirements/development.txt | cksum | cut -d" " -f1)
MUTATION_VENV := $(CACHE)/mutation-$(shell cat requirements/mutation.txt requirements/development.txt | cksum | cut -d" " -f1)
TYPED := kms_service client/modelkms protos/modelkms_api tests
PUBLISHED_API := protos/published/modelkms_api.binpb

# uv of exactly the locked version: the one on PATH if it is that, else one of our own, by pip.
UV_VERSION := $(shell sed -n 's/^uv==\([0-9.]*\).*/\1/p' requirements/uv.txt)
UV_HOME := $(CACHE)/uv-$(UV_VERSION)
UV_ON_PATH := $(shell command -v uv >/dev/null 2>&1 && uv --version 2>/dev/null | grep -qF 'uv $(UV_VERSION) ' && command -v uv)
UV := $(or $(UV_ON_PATH),$(UV_HOME)/bin/uv)

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z][a-z-]*\):.* ## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
		while IFS='|' read -r target text; do printf '%-22s %s\n' "$$target" "$$text"; done

# --- setting up ------------------------------------------------------------------------------------

.PHONY: setup
setup: $(STAMP) ## virtual environment .venv with the locked dependencies and our three distributions

$(STAMP): requirements/uv.txt requirements/development.txt pyproject.toml client/pyproject.toml protos/pyproject.toml | $(UV)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11 (choose another: make PYTHON=python3.12 setup)" >&2; exit 1; }
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements/development.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e protos -e client -e .
	@touch $@

.PHONY: uv
uv: $(UV)

$(UV_HOME)/bin/uv: requirements/uv.txt
	$(PYTHON) -m venv $(UV_HOME)
	$(UV_HOME)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@

.PHONY: setup-go
setup-go: ## Go 1.26 or newer (the system's, else the locked wheel) and the S3 gateway of the tests
	@$(PYTHON) -m tests.support.tools go versitygw

.PHONY: setup-helm
setup-helm: setup-go ## Helm from its Go module, outside the tree (3 minutes, once)
	@$(PYTHON) -m tests.support.tools go helm

.PHONY: setup-vault
setup-vault: setup setup-go ## HashiCorp Vault from its Go module, outside the tree (5 minutes, once)
	@$(BIN)/python -m tests.support.hashicorp_vault build

# --- the product -----------------------------------------------------------------------------------

.PHONY: demo
demo: setup ## the whole story on real parts: OpenBao, the service, two models, five identities
	@$(BIN)/python -m kms_service.development.demo

.PHONY: dev
dev: setup ## the development stack, kept in .modelkms-dev (Ctrl-C stops it)
	@$(BIN)/modelkms-server dev

# Times in the archives are the commit's: the same commit gives the same bytes.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 1577836800)

.PHONY: dist
dist: setup ## wheels and source distributions of the three distributions, into dist/
	rm -rf dist
	for tree in protos client .; do \
		$(BIN)/python -m build --no-isolation --outdir dist $$tree || exit 1; \
	done

.PHONY: release
release: dist sbom ## dist and sbom, and their checksums, which are what is signed (docs/guides/releases.md)
	cd dist && sha256sum *.whl *.tar.gz *.cdx.json > SHA256SUMS

.PHONY: sbom
sbom: setup ## what the service's image holds besides ours, as CycloneDX, into dist/
	mkdir -p dist
	$(BIN)/cyclonedx-py requirements --output-reproducible --of JSON --sv 1.6 \
		--pyproject pyproject.toml -o dist/modelkms-server.cdx.json requirements/server.txt

# --- tests -----------------------------------------------------------------------------------------
# pytest exits 5 when it collected nothing: make takes that, like any other non-zero, as failure.

PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

.PHONY: test
test: setup setup-go ## every test but those of test-faults, test-vault and test-torch
	$(PYTEST) -m "not faults and not vault and not torch" $(PYTEST_ARGS)

.PHONY: test-faults
test-faults: setup setup-go setup-helm ## rows of docs/faults.md that need long or disruptive rigs
	$(PYTEST) -m "faults and not vault and not torch" $(PYTEST_ARGS)

.PHONY: test-vault
test-vault: setup-vault ## contract and end-to-end tests on HashiCorp Vault
	$(PYTEST) -m vault $(PYTEST_ARGS)

.PHONY: test-torch
test-torch: setup $(TORCH_VENV)/.stamp ## loaders of PyTorch tensors (its wheels bring 3 GB, once, outside the tree)
	PYTHONPATH=protos:client:. $(TORCH_VENV)/bin/python -m pytest -m torch $(PYTEST_ARGS)

# Holds nothing of this tree, as FUZZ_VENV below.
$(TORCH_VENV)/.stamp: | $(UV)
	$(UV) venv --quiet --clear --python $(PYTHON) $(TORCH_VENV)
	$(UV) pip sync --quiet --python $(TORCH_VENV)/bin/python --require-hashes requirements/development.txt requirements/torch.txt
	@touch $@

.PHONY: fuzz
fuzz: setup $(FUZZ_VENV)/.stamp ## fuzz every decoder of outside bytes (FUZZ_SECONDS=60 each)
	PYTHONPATH=protos:client:. $(FUZZ_VENV)/bin/python -m tests.fuzz --seconds $(or $(FUZZ_SECONDS),60)

# Holds nothing of this tree, so that several clones can share it: its name tells its locks. It does
# not depend on them besides, or a fresh clone would clear it while another one works in it.
$(FUZZ_VENV)/.stamp: | $(UV)
	$(UV) venv --quiet --clear --python $(PYTHON) $(FUZZ_VENV)
	$(UV) pip sync --quiet --python $(FUZZ_VENV)/bin/python --require-hashes requirements/development.txt requirements/fuzz.txt
	@touch $@

.PHONY: mutation
mutation: setup $(MUTATION_VENV)/.stamp ## mutants of what decides who gets a key (MUTATION_ARGS="lease policy")
	PYTHONPATH=protos:client:. $(MUTATION_VENV)/bin/python -m tests.mutation $(MUTATION_ARGS)

$(MUTATION_VENV)/.stamp: | $(UV)
	$(UV) venv --quiet --clear --python $(PYTHON) $(MUTATION_VENV)
	$(UV) pip sync --quiet --python $(MUTATION_VENV)/bin/python --require-hashes requirements/development.txt requirements/mutation.txt
	@touch $@

.PHONY: bench-torch
bench-torch: setup $(TORCH_VENV)/.stamp ## measure the loaders, PyTorch's too; only prints
	PYTHONPATH=protos:client:. $(TORCH_VENV)/bin/python -m tests.bench.loading

.PHONY: dashboard
dashboard: setup ## the dashboard on a running stack, as docs/guides/dashboard.md and .svg (3 minutes)
	$(BIN)/python -m tests.dashboard

.PHONY: bench
bench: setup ## measure; writes tests/bench/RESULTS.md (BENCH_ARGS="--only leases")
	$(BIN)/python -m tests.bench $(BENCH_ARGS)

# --- checks ----------------------------------------------------------------------------------------

.PHONY: check
check: setup ## ruff, mypy --strict, import-linter, buf lint and breaking, stubs up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict $(TYPED)
	PYTHONPATH=. $(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint
	cd protos && ../$(BIN)/buf breaking --against ../$(PUBLISHED_API)
	@$(MAKE) --no-print-directory check-stubs

.PHONY: check-stubs
check-stubs: setup
	@stubs=$$(mktemp -d) && trap 'rm -rf "$$stubs"' EXIT && \
		$(MAKE) --no-print-directory stubs STUBS="$$stubs" && \
		cd protos && for file in modelkms_api/v1/*_pb2*; do \
			test -e "$$stubs/$$file" || { echo "error: $$file has no .proto any more (make protos)" >&2; exit 1; }; \
		done && \
		for file in $$(cd "$$stubs" && echo modelkms_api/v1/*_pb2*); do \
			diff -u "$$file" "$$stubs/$$file" || { echo "error: protos/$$file is not what its .proto gives (make protos)" >&2; exit 1; }; \
		done && echo "stubs up to date"

.PHONY: fix
fix: setup ## what ruff can repair and format by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# --- the API ---------------------------------------------------------------------------------------

.PHONY: protos
protos: setup ## regenerate the committed stubs from the .proto files
	rm -f protos/modelkms_api/v1/*_pb2*
	$(MAKE) --no-print-directory stubs STUBS="$(CURDIR)/protos"

.PHONY: stubs
stubs:
	@cd protos && PATH="$(CURDIR)/$(BIN):$$PATH" ../$(BIN)/python -m grpc_tools.protoc -I . \
		--python_out="$(STUBS)" --grpc_python_out="$(STUBS)" \
		--mypy_out=quiet:"$(STUBS)" --mypy_grpc_out=quiet:"$(STUBS)" modelkms_api/v1/*.proto
	@cd protos && for proto in modelkms_api/v1/*.proto; do \
		grep -q '^service ' "$$proto" || rm -f "$(STUBS)/$${proto%.proto}_pb2_grpc.py" "$(STUBS)/$${proto%.proto}_pb2_grpc.pyi"; \
	done

.PHONY: publish-api
publish-api: setup ## record the API as published: later changes may not break it
	mkdir -p $(dir $(PUBLISHED_API))
	cd protos && ../$(BIN)/buf build -o ../$(PUBLISHED_API)

# --- dependencies ----------------------------------------------------------------------------------

LOCK := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

.PHONY: requirements
requirements: | $(UV) ## lock requirements/*.in into *.txt anew (REQUIREMENTS_ARGS=--upgrade moves versions)
	$(PYTHON) -m tests.support.server_requirements > requirements/server.in
	for name in uv go development fuzz mutation torch; do \
		$(LOCK) $(REQUIREMENTS_ARGS) requirements/$$name.in -o requirements/$$name.txt || exit 1; \
	done
	$(LOCK) -c requirements/development.txt requirements/server.in -o requirements/server.txt

.PHONY: clean
clean: ## remove what was built here (.venv, dist, caches); not .modelkms-dev
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
