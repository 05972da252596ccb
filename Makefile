# Everything runs in .venv. requirements.lock has the packages to run, DEV_LOCK those to develop.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
DEV_LOCK := scripts/requirements-dev.lock
CLIENTS := scripts/clients
N ?= 1000
# One more than the cores, as some tests wait.
WORKERS ?= $(shell $(PYTHON) -c "import os; print(1 + (os.cpu_count() or 1))")

.PHONY: run test test-slow test-openapi test-citus mutants check check-clients bench seed lock clean

run: .venv/run.stamp
	@exec $(BIN)/officerpc serve

CITUS_TESTS = tests/test_citus.py tests/test_distribution.py
# With DATABASE=citus: what depends on where rows are.
ON_CITUS = $(wildcard tests/test_client_*.py) $(patsubst %,tests/test_%.py,bulk events feed idempotency isolation jobs \
	limits search webhooks)
PYTEST = OFFICERPC_TEST_DATABASE=$(or $(DATABASE),embedded) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# DATABASE=system runs the suite on Debian's Postgres instead of the embedded one, DATABASE=citus a part of it on Citus
# clusters, one for each pytest worker.
test: .venv/dev.stamp
	$(PYTEST) \
		$(if $(filter citus,$(DATABASE)),$(if $(findstring tests/,$(ARGS)),,$(ON_CITUS)),$(CITUS_TESTS:%=--ignore=%)) \
		$(ARGS)

# Tests that start processes, proxies, poolers and standbys. Takes minutes.
test-slow: .venv/dev.stamp
	$(PYTEST) -m slow $(ARGS)

# schemathesis on the REST wires. Takes minutes.
test-openapi: .venv/dev.stamp
	$(PYTEST) -m schemathesis tests/test_openapi.py $(ARGS)

# On a new Citus cluster. Needs Debian's Postgres 15 with the extension citus.
test-citus: .venv/dev.stamp
	$(BIN)/python -m pytest $(CITUS_TESTS) $(ARGS)

check: .venv/dev.stamp
	$(BIN)/ruff check server tests scripts
	$(BIN)/ruff format --check server tests scripts
	$(BIN)/mypy
	$(BIN)/lint-imports

# Public generators, linters and test tools on the OpenRPC and OpenAPI documents. Needs node.
check-clients: .venv/clients/stamp
	$(BIN)/python -m pytest tests/check_clients.py $(ARGS)

# Mutation tests: puts the faults of tests/mutants.toml into the source and runs the tests. ARGS='-k TEXT' selects some.
mutants: .venv/dev.stamp
	$(BIN)/python scripts/mutants.py $(ARGS)

# Needs wrk (apt-get install wrk). psql and pgbench are part of the embedded Postgres.
bench: .venv/dev.stamp
	$(BIN)/python scripts/bench.py $(ARGS)

# Creates N users over the public RPC at OFFICERPC_URL with OFFICERPC_API_KEY.
seed: .venv/run.stamp
	@$(BIN)/python scripts/seed.py $(N) $(ARGS)

lock: .venv/dev.stamp
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--custom-compile-command "make lock" pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--custom-compile-command "make lock" --extra dev -c requirements.lock pyproject.toml -o $(DEV_LOCK)
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--custom-compile-command "make lock" $(CLIENTS)/requirements.in -o $(CLIENTS)/requirements.lock

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# --no-deps: the locks are complete, and with hashes pip refuses the extra that scim2-models asks for (pydantic[email]).
.venv/run.stamp: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --no-deps --require-hashes -r requirements.lock
	$(PIP) install --no-deps -e .
	@touch $@

.venv/dev.stamp: .venv/run.stamp $(DEV_LOCK)
	$(PIP) install --no-deps --require-hashes -r $(DEV_LOCK)
	@touch $@

# npm install --package-lock-only --omit-lockfile-registry-resolved makes the lock file, without addresses.
.venv/clients/stamp: .venv/dev.stamp $(CLIENTS)/package.json $(CLIENTS)/package-lock.json $(CLIENTS)/requirements.lock
	mkdir -p .venv/clients
	cp $(CLIENTS)/package.json $(CLIENTS)/package-lock.json .venv/clients/
	npm ci --prefix .venv/clients --ignore-scripts --no-audit --no-fund --loglevel=error
	$(PYTHON) -m venv .venv/clients/python
	.venv/clients/python/bin/python -m pip --disable-pip-version-check -q install --require-hashes \
		-r $(CLIENTS)/requirements.lock
	@touch $@
