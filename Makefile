# Everything that one does with this repository. It needs python3 (3.11 to 3.13, with pip and venv) and make.
#
# A target installs what it needs into .venv, once: a stamp there depends on pyproject.toml and constraints.txt.
# Targets with different extras share the one .venv; every version comes from constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# more arguments for pytest, such as: make test PYTEST_ARGS="-k filters -x"
PYTEST_ARGS ?=
# and for the benchmarks, such as: make bench BENCH_ARGS="--size small --only reads"
BENCH_ARGS ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help demo test smoke lint format docs check wheel bench soak mutations
.NOTPARALLEL:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z_-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.stamp-demo ## an agent's memory, killed, corrected, erased; then Python's documentation, searched (data in .demo/)
	@$(BIN)/python examples/demo.py

# each process has a Pixeltable, a database and a model of its own, about 1 GB; 0: all in one, with the fault battery's report
TEST_PROCESSES ?= 4

test: $(VENV)/.stamp-dev ## run the test suite, in four processes (TEST_PROCESSES=4)
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal $(PYTEST_ARGS)

smoke: $(VENV)/.stamp-dev ## run a thousand tests of what matters first, in about a minute
	$(BIN)/python -m pytest -n 2 --dist worksteal --smoke $(PYTEST_ARGS)

lint: $(VENV)/.stamp-dev ## ruff (rules and format) and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.stamp-dev ## let ruff format the code and fix what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.stamp-dev ## build the documentation into docs/_build/html; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

bench: $(VENV)/.stamp-bench ## measure everything beside its baseline, 20 minutes (BENCH_ARGS="--size small": 4; docs/performance.md)
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

# the fault battery's long form: its random rows go on for three quarters of this, its exhaustive rows take ten minutes
SOAK_SECONDS ?= 600

soak: $(VENV)/.stamp-dev ## the fault battery's long form, with its figures at the end (SOAK_SECONDS=600)
	PIXELMEMORY_SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python -m pytest tests/faults -o timeout=0 -o faulthandler_timeout=0 $(PYTEST_ARGS)

mutations: $(VENV)/.stamp-dev ## plant each bug of the mutation gate in a copy; writes what catches it into docs/generated/
	PIXELMEMORY_MUTATIONS=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests/faults/test_*_mutations.py \
		-o timeout=0 -o faulthandler_timeout=0 $(PYTEST_ARGS)

# without the dependencies: their versions are chosen where it is installed
wheel: $(VENV)/.stamp-venv ## build the wheel pixelmemory_engine-*.whl into dist/
	@rm -f dist/pixelmemory*.whl
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

check: lint docs test ## lint, docs and test: what a change has to pass

# -- the environment

STAMP_INPUTS := pyproject.toml constraints.txt
INSTALL_LOG := $(VENV)/install.log
INSTALL = $(BIN)/python -c "$$INSTALLER" $(INSTALL_LOG)

# pip's words go to a file, and one line says how far it is; where it fails, the end of the file is shown
define INSTALLER
import subprocess, sys, time
log, what = sys.argv[1:]
command = [sys.executable, "-m", "pip", "install", "-c", "constraints.txt", "-e", what]
on_terminal, started, next_line = sys.stdout.isatty(), time.monotonic(), 30
with open(log, "w") as words, subprocess.Popen(command, stdout=words, stderr=subprocess.STDOUT) as pip:
    while pip.poll() is None:
        time.sleep(0.2)
        seconds = time.monotonic() - started
        if on_terminal or seconds > next_line:
            next_line += 30
            with open(log, errors="replace") as said:
                lines = said.readlines()
            found = sum(line.startswith(("Collecting", "Processing", "Obtaining")) for line in lines)
            doing = "writing them" if any(line.startswith("Installing collected") for line in lines) else "found"
            print(f"    {found:3} packages {doing}, {seconds:3.0f} s", end="\r" if on_terminal else "\n", flush=True)
if pip.returncode:
    with open(log, errors="replace") as said:
        print("".join(said.readlines()[-30:]), end="")
    sys.exit(f"pip failed; all that it said is in {log}")
print(f"    installed in {time.monotonic() - started:.0f} s; what pip said is in {log}")
endef
export INSTALLER

$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; v = sys.version_info; ok = (3, 11) <= v < (3, 14); sys.exit(0 if ok else f"Python 3.11 to 3.13 is needed, and $(PYTHON) is {v.major}.{v.minor}: try make PYTHON=python3.12")'
	@echo "==> making $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.stamp-demo: $(STAMP_INPUTS) | $(VENV)/.stamp-venv
	@echo "==> installing pixelmemory with what the demo needs into $(VENV) (once; torch makes it minutes, not seconds)"
	@$(INSTALL) '.[demo]'
	@touch $@

$(VENV)/.stamp-dev: $(STAMP_INPUTS) | $(VENV)/.stamp-venv
	@echo "==> installing pixelmemory with what development needs into $(VENV) (once; torch makes it minutes, not seconds)"
	@$(INSTALL) '.[demo,test,lint,docs]'
	@touch $@ $(VENV)/.stamp-demo

$(VENV)/.stamp-bench: $(STAMP_INPUTS) | $(VENV)/.stamp-venv
	@echo "==> installing pixelmemory and the stores that it is measured beside into $(VENV) (once; torch makes it minutes, not seconds)"
	@$(INSTALL) '.[bench]'
	@touch $@
