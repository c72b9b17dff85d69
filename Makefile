# Everything runs in .venv, which is made by the first target that needs it. Only `bench` installs torch.
#
#   make demo       picture -> orbit video and mesh, in outputs/demo
#   make test       the test suite to run before every commit
#   make quick      the quickest of them, for after every save
#   make test-more  the long tests: full parity, wheels, killed processes
#   make check      format, lint, types
#   make bench      speed compared with diffusers, in a separate environment

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test quick test-more check bench clean

# PYTHON=python3.12 make test   chooses the interpreter
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	"$$p" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
TWO := -n 2 --dist loadfile  # two test processes
PICTURE ?= examples/figure.png
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

help:
	@sed -n 's/^#   //p' Makefile

demo: .venv/.installed
	@mkdir -p outputs
	@echo "demo: $(PICTURE) -> outputs/demo; a second run finds the results and changes nothing"
	$(BIN)/sv3d generate "$(PICTURE)" -o outputs/demo
	@echo "demo: the orbit, a sheet of all its views, and the mesh:"
	@ls -1 "$(CURDIR)"/outputs/demo/orbit.* "$(CURDIR)/outputs/demo/contact.png" "$(CURDIR)/outputs/demo/mesh.glb"

# The tests make files with accents in their names, whatever the locale.
test quick test-more: export PYTHONUTF8 := 1
test: .venv/.test
	$(BIN)/python -m pytest $(TWO)

QUICK := tests/cameras tests/weights/test_key_map.py tests/test_config.py \
	$(addprefix tests/io/test_,orbits.py cameras_file.py images.py masks.py video.py)
quick: .venv/.test
	$(BIN)/python -m pytest $(TWO) -q $(QUICK)

test-more: .venv/.test
	$(BIN)/python -m pytest $(TWO) -m "slow and not gpu" --ignore=tests/parity --ignore=tests/recon/test_reference.py
	$(BIN)/python -m pytest -n 2 tests/parity tests/recon/test_reference.py --reference tests/reference

check: .venv/.check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: .venv-bench/.installed
	.venv-bench/bin/python benchmarks/unet.py --json

clean:
	rm -rf build dist outputs .venv .venv-bench *.egg-info

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "sv3d_jax needs Python 3.11 or newer with the venv module; none was found." \
		"Install one, or give its path: make PYTHON=/path/to/python $(MAKECMDGOALS)"; exit 1; }
	@echo "setup: making .venv with $(PYTHON)"
	@"$(PYTHON)" -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml setup.py
	@echo "setup: installing sv3d_jax and its dependencies into .venv (once, some minutes)"
	@$(PIP) -e .
	@touch $@

.venv/.test: .venv/.installed
	@echo "setup: installing the dependencies of the tests into .venv"
	@$(PIP) -e ".[test]"
	@touch $@

.venv/.check: .venv/.test
	@echo "setup: installing ruff and pyright into .venv"
	@$(PIP) -e ".[dev]"
	@touch $@

.venv-bench/.installed: pyproject.toml setup.py
	@test -n "$(PYTHON)" || { echo "sv3d_jax needs Python 3.11 or newer; none was found"; exit 1; }
	@echo "setup: making .venv-bench with torch and diffusers (once, some minutes)"
	@"$(PYTHON)" -m venv .venv-bench
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -e ".[bench]"
	@touch $@
