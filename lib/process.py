"""How a process that trains handles its memory; both are set before anything is imported."""

import ctypes
import gc
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next tensor of that size.

    By default it hands every large block back to the system, and each pass pays anew for its
    pages: 8 % of a step's processor time on the demo's shape.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(M_MMAP_THRESHOLD, 2**30)
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def collect_less() -> None:
    """Look for cycles among Python's objects less often: importing torch, transformers, Unsloth
    and vLLM makes a million that stay, and by default they are gone through fifteen times."""
    gc.set_threshold(20_000, 20, 20)
