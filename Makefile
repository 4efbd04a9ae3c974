# Every target works on a fresh clone: `.venv` is made from the locks on the way, once.

PYTHON ?=
ARGS ?=

# What to try, in this order, where the caller names none.
candidates = $(or $(PYTHON),python3 python3.13 python3.12 python3.11)

# Prints the first candidate that fits, or a sentence that says what was found instead.
define find_python
found=; for python in $(candidates); do \
	version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	case $$version in \
	3.11|3.12|3.13) \
		if $$python -c 'import ensurepip, venv' 2>/dev/null; then echo $$python; exit; fi; \
		found="$${found:+$$found, }$$python is $$version without venv";; \
	*) found="$${found:+$$found, }$$python is $$version";; \
	esac; \
done; \
echo "Python 3.11, 3.12 or 3.13 with its venv module is needed; found $${found:-no $(firstword $(candidates))}." \
	"Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"
endef
python = $(eval python := $$(shell $$(find_python)))$(python)
require_python = $(if $(word 2,$(python)),$(error $(python)))

bin = .venv/bin
pip_install = $(bin)/python -m pip --disable-pip-version-check --no-input -qq install --progress-bar off
from_lock = --no-compile --require-hashes --only-binary :all: --requirement
# pip compiles on one core, and an import only where PYTHONDONTWRITEBYTECODE is not set.
compile_modules = $(bin)/python -m compileall -qq -j 0 .venv/lib
# What is not marked as whole is made anew: an interrupted pip can leave packages that only look installed.
unmark = rm -f .venv/.locked .venv/.locked-dev .venv/.project
lock = uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-annotate --no-header \
	--python-version 3.11 $(ARGS) pyproject.toml --group build

# Each starts TensorFlow several times over: on a crowded machine that takes many minutes.
faults = -m faults --timeout 1800

audit = $(bin)/python -m pip_audit --strict --disable-pip --require-hashes --progress-spinner off --requirement

.PHONY: help audit study test test-slow test-faults test-faults-full bench bench-full check lock clean
.NOTPARALLEL:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' Makefile | while read -r target text; do printf 'make %-11s %s\n' "$$target" "$$text"; done

study: .venv/.project ## run the study; ARGS="--trials 5" passes options on
	@$(bin)/python -m experiments.run_study $(ARGS)

test: check ## make check, then the tests; ARGS="-k space" passes options on
	@$(bin)/python -m pytest -m "not faults and not slow" $(ARGS)

test-slow: .venv/.locked-dev .venv/.project ## the tests on a Ray cluster, on servers, and of other libraries' tuners
	@$(bin)/python -m pytest -m "slow and not faults" $(ARGS)

test-faults: .venv/.locked-dev .venv/.project ## the tests that kill and interrupt real processes
	@$(bin)/python -m pytest $(faults) $(ARGS)

test-faults-full: .venv/.locked-dev .venv/.project ## the same with hundreds of kills; writes the table of docs/reliability.md
	@$(bin)/python -m pytest $(faults) --faults-full $(ARGS)

bench: .venv/.locked-dev .venv/.project ## the benchmarks in a short form, in one table; ARGS="--only overhead" picks some
	@$(bin)/python -m benchmarks --short $(ARGS)

bench-full: .venv/.locked-dev .venv/.project ## every benchmark in full: hours
	@$(bin)/python -m benchmarks $(ARGS)

check: .venv/.locked-dev .venv/.project ## format, lint, types and the order of imports
	@$(bin)/python -m ruff format --check .
	@$(bin)/python -m ruff check --quiet .
	@$(bin)/python -m mypy --no-error-summary
	@$(bin)/lint-imports --no-logo

# What is found is shown; whatever else pip-audit stumbles over means that nothing was looked up.
audit: .venv/.locked-dev .venv/.project ## look both locks up among the published advisories; needs the network
	@status=0; for lock in requirements.lock requirements-dev.lock; do \
		if answer=$$($(audit) $$lock 2>&1); then echo "$$lock: no known vulnerabilities"; continue; fi; \
		case $$answer in \
		*"known vulnerabilit"*) echo "$$lock:"; echo "$$answer"; status=1;; \
		*) echo "$$lock was not audited: $$(echo "$$answer" | tail -n 1)" >&2; \
			echo "Expected advisories from the package index. Run make audit again where they can be reached." >&2; \
			exit 2;; \
		esac; \
	done; exit $$status

lock: ## bring both locks in line with pyproject.toml, with uv; ARGS=--upgrade takes newer versions
	@command -v uv >/dev/null || { echo "make lock needs uv, found none on the PATH: python3 -m pip install uv" >&2; exit 1; }
	@$(lock) --output-file requirements.lock
	@$(lock) --all-extras --group dev --group bench --constraint requirements.lock --output-file requirements-dev.lock

clean: ## remove .venv and every cache; mlruns/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.locked: requirements.lock
	@$(require_python)test -e $@ || { echo "Making .venv with $(python)" && $(python) -m venv --clear .venv; }
	@$(unmark)
	@echo "Installing $$(grep -c == $<) locked packages into .venv (some minutes)"
	@$(pip_install) $(from_lock) $<
	@$(compile_modules)
	@touch $@

.venv/.locked-dev: requirements-dev.lock .venv/.locked
	@$(unmark)
	@echo "Installing what the tests need"
	@$(pip_install) $(from_lock) $<
	@$(compile_modules)
	@touch .venv/.locked $@

.venv/.project: pyproject.toml .venv/.locked
	@$(pip_install) --no-deps --no-build-isolation --editable .
	@touch $@
