"""For tests and notebooks alike: a core for each process, and nothing left in the system's /tmp."""

import atexit
import gc
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

# As in a notebook (`lib.process.quiet_process`): a million objects of the libraries stay.
gc.set_threshold(20_000, 20, 20)

# vLLM, wandb and Gradio leave sockets and files there; pytest's own stay for a look at a failure.
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="grpo-")
atexit.register(shutil.rmtree, tempfile.tempdir, ignore_errors=True)

CHAIN = ("01", "02", "03", "04", "05", "08")  # each needs what those before it left
# tests/test_recipes.py runs it, and behind it 03 and 04 with the reward that it has learned.
collect_ignore = ["notebooks/06_reward_model.ipynb"]
# What takes longest begins, so that no process is left with it at the end.
FIRST = (*CHAIN, "09", "07", "sweep", "recipes", "unsloth_trainer", "jupyterlab", "export")
FIRST += ("processes", "models", "survival", "suite", "doctor", "serving", "scratch", "own_data")
FIRST += ("gpu", "rollouts", "logps", "evaluation", "reward_model", "dynamic_sampling", "variants")
FIRST += ("accuracy", "page", "training", "validation", "tracking", "memory", "lock", "warm_up")


def pytest_collection_modifyitems(items):
    def place(item) -> int:
        name = item.path.stem.removeprefix("test_")
        names = (FIRST.index(each) for each in FIRST if each in (name, name[:2]))
        return next(names, len(FIRST))

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """A notebook runs the smallest recipe, into a folder of its process."""
    with pytest.MonkeyPatch.context() as patch:
        if item.path.suffix == ".ipynb":
            patch.setenv("GRPO_RECIPE", os.environ.get("GRPO_RECIPE", "ci"))
            folder = os.environ.get("GRPO_OUTPUT_DIR", "outputs/.test")
            patch.setenv("GRPO_OUTPUT_DIR", f"{folder}/{worker or ''}")
        return (yield)


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
