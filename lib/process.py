"""How a process that trains handles its memory, and how much it has taken."""

import gc
import os
import sys
from pathlib import Path

from lib.hardware import GIB

BYTE_CODE = Path(__file__).parent.parent / "outputs" / ".cache" / "bytecode"


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
