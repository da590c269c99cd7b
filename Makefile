# make demo    train, measure and export the embedded model on this CPU
# make test    lint, unit tests, and every notebook with real weights
# make lock    write the locks and environment.yml from pyproject.toml
PYTHON ?= python3
VENV := .venv/bin

.venv/.ready: requirements-cpu.txt tools/setup.sh
	PYTHON=$(PYTHON) bash tools/setup.sh

.PHONY: setup demo test lint lock gpu-check clean
setup: .venv/.ready

lock:
	$(PYTHON) tools/lock.py $(LOCK_ARGS)
