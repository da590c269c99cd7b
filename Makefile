# make demo    train, measure and export the embedded model on this CPU
# make test    lint, unit tests, and every notebook with real weights
# make lock    write the locks and environment.yml from pyproject.toml
PYTHON ?= python3
VENV := .venv/bin

.venv/.ready: requirements-cpu.txt tools/setup.sh tools/ready.py
	PYTHON=$(PYTHON) bash tools/setup.sh

.venv/.dev: .venv/.ready requirements-dev.txt
	PYTHON=$(PYTHON) bash tools/setup.sh dev

.PHONY: setup demo test lint lock gpu-check clean
setup: .venv/.ready

lock:
	$(PYTHON) tools/lock.py $(LOCK_ARGS)

demo: setup
	$(VENV)/python -m lib.suite demo

test: lint
	rm -rf outputs/.test
	$(VENV)/python -m pytest -n 2 --no-loadscope-reorder --nbmake --nbmake-timeout=900 \
		--durations=20 tests notebooks
	rm -rf outputs/.test

lint: .venv/.dev
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/nbstripout --verify --keep-id --extra-keys metadata.papermill notebooks/*.ipynb
	$(VENV)/lint-imports --no-cache

# Runs the suite in small on the GPU that is here; writes benchmarks/results/.
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check $(GPU_CHECK_ARGS)

clean:
	rm -rf .venv outputs .pytest_cache .ruff_cache .hypothesis
