"""Tests and notebooks in two processes (pytest-xdist), each on a core of its own."""

import os

import pytest

# Threads of two processes that share cores wait for each other: one core, one thread. Before
# torch is imported; the kernels and processes that a test starts inherit both.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
    os.environ["OMP_NUM_THREADS"] = "1"

CHAIN = ("01", "02", "03", "04", "05")  # each reads what the one before it wrote


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.suffix == ".ipynb":
            group = "chain" if item.name.startswith(CHAIN) else "beside"
            item.add_marker(pytest.mark.xdist_group(group))
