"""For tests and notebooks alike: a core for each process, and nothing left in the system's /tmp."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Before torch is imported: threads that spin while they wait slow each other tenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# And threads of two processes (pytest-xdist) that share cores: each gets a core and one thread.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
    os.environ["OMP_NUM_THREADS"] = "1"
    if folder := os.environ.get("GRPO_OUTPUT_DIR"):  # notebooks: two processes cannot write a run
        os.environ["GRPO_OUTPUT_DIR"] = f"{folder}/{worker}"

# vLLM, wandb and Gradio leave sockets and files there; pytest's own stay for a look at a failure.
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="grpo-")
atexit.register(shutil.rmtree, tempfile.tempdir, ignore_errors=True)

CHAIN = ("01", "02", "03", "04", "05", "08")  # each needs what those before it left
# The files that take longest, which begin, so that no process is left with one at the end.
SLOW = ("survival", "suite", "export", "sweep", "evaluation", "doctor", "models", "recipes")
SLOW = tuple(f"test_{name}" for name in SLOW)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in SLOW)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay in one process, and so does the chain of notebooks.

    In place of `--dist loadgroup`, which xdist 3.8 loses with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.split("::")[0])
            chained = file.suffix == ".ipynb" and file.name.startswith(CHAIN)
            return "chain" if chained else str(file)

    return Files(config, log)
