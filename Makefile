# Every target sets up its own .venv from nothing but make and Python 3.10 or newer.
#   make demo            the demo, on a server that stays until Ctrl-C; ARGS=--exit stops it at once
#   make test            the whole suite; ARGS='-k refresh -x' goes to pytest
#   make matrix          its quick part for every Python found, with two Djangos; ARGS too
#   make lint types docs what the names say (Python 3.11 or newer)
#   make schema          writes docs/reference/openapi.yaml
#   make messages        the translations: extracted, merged, compiled (no gettext needed)
#   make mutants         breaks the code on purpose, to see tests fail; ARGS=NAME for one
#   make bench           the benchmarks, some eight minutes; ARGS=--quick, ARGS=--docs
#   make profile         where an authorised request's time goes, by py-spy; ARGS=--docs
#   make bench-cache     those of the cache, some ten minutes; ARGS=--quick
#   make bench-scale     a simulation of many processes, checked by real ones; ARGS=--quick
#   make bench-sessions  those of sessions, beside the peers; ARGS=--quick
#   make bench-enumeration  whether time tells which accounts exist; ARGS=--quick
#   make screenshots     the pictures of the page and the admin in the docs (needs a Chromium)
#   make demo-cluster    two nodes, a page and a key that cuts one off; ARGS='--exit --engine valkey'
#   make demo-hosts      two hosts, one of them cut off; ARGS=--valkey
#   make release         sdist, wheel, SBOM and checksums of what is committed, in dist/
#   make clean           removes .venv and everything that was built
# PYTHON=python3.12 chooses the Python of a new .venv, VENV=/other/folder its place.

VENV ?= .venv
PYTHON ?=
ARGS ?=
BIN := $(VENV)/bin
PY := $(BIN)/python

# The suite runs under accesspass.User too, and in the pipeline under one with UUIDs. What no user
# model can change runs under the last one alone, whose closing line is the last line of the output.
APART_FROM_USERS := --ignore=tests/cache $(addprefix --ignore=,$(wildcard \
    tests/abuse tests/faults tests/races tests/test_audit.py tests/test_axes.py \
    tests/test_background.py tests/test_bench_enumeration.py tests/test_bench_load.py \
    tests/test_bench_scale.py tests/test_canary.py \
    tests/test_channels.py tests/test_cluster.py tests/test_conf.py tests/test_cookies.py \
    tests/test_demo.py tests/test_demo_cluster.py tests/test_deployments.py \
    tests/test_doctor.py tests/test_documents.py tests/test_examples.py \
    tests/test_existing_project_guide.py tests/test_hashing.py tests/test_health.py \
    tests/test_identifiers.py tests/test_introspection.py tests/test_kills.py \
    tests/test_locale.py tests/test_log_events.py tests/test_mail_servers.py \
    tests/test_metrics.py tests/test_middleware.py tests/test_migrate_guide.py \
    tests/test_mutants.py tests/test_nodes.py tests/test_odd_users.py \
    tests/test_on_postgresql.py tests/test_openapi_client.py tests/test_page.py \
    tests/test_promise.py tests/test_readme.py tests/test_release.py tests/test_repository.py \
    tests/test_resource.py tests/test_schema.py tests/test_services.py \
    tests/test_social_login.py tests/test_testing_guide.py tests/test_throttling.py \
    tests/test_tokens.py tests/test_triggers.py tests/test_two_hosts.py))

# Two for each core: half of what runs under one user model alone is waiting, for processes that start
# and for what must become stale. The long tests measure, and have the cores to themselves.
WORKERS ?= $(shell expr 2 '*' "$$(getconf _NPROCESSORS_ONLN)")

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
# Where it is set, each of the suite's hundreds of processes compiles the project anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-long matrix messages schema mutants lint types docs bench bench-cache \
    bench-enumeration bench-scale bench-sessions demo-cluster demo-hosts profile screenshots \
    release clean modern
.DELETE_ON_ERROR:

demo: $(VENV)/.has-demo
	@$(PY) example_project/demo.py $(ARGS)

# Nothing to run, as under an -k of one's own, is no failure.
define run_under
	@echo "== with tests.settings.$(1)"
	@$(PY) -m pytest --ds=tests.settings.$(1) $(2) $(ARGS) || { \
	    status=$$?; [ $$status -eq 5 ] && [ -n '$(subst ','\'',$(ARGS))' ] || exit $$status; }
endef

test: $(VENV)/.has-dev
	$(call run_under,default_user,$(APART_FROM_USERS))
	@echo "== with tests.settings.own_user"
	@PYTEST_XDIST_AUTO_NUM_WORKERS=$(WORKERS) $(PY) -m pytest --ds=tests.settings.own_user $(ARGS)

test-long: $(VENV)/.has-dev $(VENV)/.has-browser
	$(call run_under,uuid_user,$(APART_FROM_USERS))
	@$(PY) -m pytest -m 'scale or browser or pipeline' $(ARGS) || [ $$? -eq 5 ]

matrix:
	@ARGS="$(ARGS)" .ci/matrix

messages: $(VENV)/.has-dev
	@$(PY) -m tests.messages

schema: $(VENV)/.has-dev
	@$(PY) manage.py spectacular --settings=tests.settings.own_user --urlconf=accesspass.urls \
	    --fail-on-warn --validate --file docs/reference/openapi.yaml

mutants: $(VENV)/.has-dev
	@$(PY) -m tests.mutants $(ARGS)

lint: modern
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@for users in default_user uuid_user own_user; do \
	    $(PY) manage.py makemigrations accesspass --check --dry-run \
	        --settings=tests.settings.$$users || exit 1; \
	done
	@$(PY) manage.py makemigrations accesspass_audit --check --dry-run \
	    --settings=tests.settings.audited

types: modern
	$(PY) -m mypy

docs: modern
	$(PY) -m sphinx --fail-on-warning --nitpicky --fresh-env --quiet -b html docs docs/_build/html
	@echo "Built docs/_build/html/index.html"

bench: $(VENV)/.has-bench
	@$(PY) -m benchmarks $(ARGS)

profile: $(VENV)/.has-bench
	@$(PY) -m benchmarks.profile $(ARGS)

bench-cache: $(VENV)/.has-bench
	@$(PY) -m benchmarks.cache $(ARGS)

bench-scale: $(VENV)/.has-bench
	@$(PY) -m benchmarks.scale $(ARGS)

bench-sessions: $(VENV)/.has-bench
	@$(PY) -m benchmarks.sessions $(ARGS)

bench-enumeration: $(VENV)/.has-dev
	@$(PY) -m benchmarks.enumeration $(ARGS)

demo-cluster: $(VENV)/.has-dev
	@$(PY) -m benchmarks.demo_cluster $(ARGS)

demo-hosts: $(VENV)/.has-dev
	@$(PY) -m benchmarks.two_hosts $(ARGS)

screenshots: $(VENV)/.has-browser
	@$(PY) -m tests.screenshots

release: $(VENV)/.has-release
	@.ci/release $(PY)

clean:
	rm -rf $(VENV) .matrix build dist *.egg-info docs/_build .mypy_cache .pytest_cache .ruff_cache \
	    .import_linter_cache .hypothesis .coverage .coverage.* htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

modern: $(VENV)/.has-dev
	@$(PY) -c 'import sys; sys.exit("lint, types and docs need Python 3.11 or newer; \
	this .venv has " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'

$(PY):
	@sh .ci/venv '$(VENV)' $(PYTHON)

$(VENV)/.has-%: pyproject.toml | $(PY)
	@echo "Installing accesspass[$*]"
	@$(PY) -m pip install -qq --editable '.[$*]'
	@touch $@
