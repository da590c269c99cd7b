"""How a process that trains handles its memory, and how much it has taken."""

import ctypes
import gc
import os
import signal
import sys
from pathlib import Path

from lib.hardware import GIB

BYTE_CODE = Path(__file__).parent.parent / "outputs" / ".cache" / "bytecode"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of Linux' prctl.h
_GLIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
if not hasattr(_GLIBC, "mallopt"):  # another C library
    _GLIBC = None


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next tensor of that size.

    By default it hands every large block back to the system, and each pass pays anew for its
    pages: 8 % of a step's processor time on the demo's shape. Call it before anything is imported.
    """
    if _GLIBC:
        _GLIBC.mallopt(M_MMAP_THRESHOLD, 2**30)
        _GLIBC.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed_memory() -> None:
    """What was freed and kept goes back to the system, where something else has need of it."""
    gc.collect()
    if _GLIBC:
        _GLIBC.malloc_trim(0)


def peak_memory() -> float:
    """The most memory that was resident in this process, in GiB.

    Not `getrusage`'s, which a new process takes over from the one that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    highest = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(highest) * 1024 / GIB


def keep_byte_code(folder: Path = BYTE_CODE) -> None:
    """Let this process and its children keep what Python compiles, in `folder`, where they are told
    not to write it beside the sources (PYTHONDONTWRITEBYTECODE, as in many containers): else each
    notebook compiles thousands of modules anew."""
    if sys.dont_write_bytecode and not sys.pycache_prefix:
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(folder)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder)


def collect_less() -> None:
    """Look for cycles among Python's objects less often: importing torch, transformers, Unsloth
    and vLLM makes a million that stay, and by default they are gone through fifteen times."""
    gc.set_threshold(20_000, 20, 20)


def adopt_orphans(wanted: bool) -> bool:
    """Whether a descendant whose own parent ends becomes this process's child; False where that
    cannot be had."""
    return bool(_GLIBC) and not _GLIBC.prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def end_with_parent() -> None:
    """This process is killed when the one that started it ends, however that came."""
    if _GLIBC:
        _GLIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
