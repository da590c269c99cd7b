"""One process at a time writes into a run's folder.

    hold(folder)        # BadInput where another process has it

The lock is the system's own (flock), on `.<name>.lock` beside the folder: it ends with its process,
however that ends, and neither a reboot nor a copy of the folder leaves a stale one. The file says
who has it. Kernels may write where the runner that started them has the lock. A notebook's kernel
has it while its cells run and a moment longer: one that is merely open is in nobody's way.
"""

import ast
import fcntl
import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

from lib.errors import BadInput
from lib.hardware import is_main_process

IDLE = 3.0  # seconds after its last cell for which a notebook's kernel keeps the lock
_runs: dict[Path, int] = {}  # folder → its inode: what this process may write to
_files: dict[Path, IO[str]] = {}  # folder → its lock's file, while this process has the lock
_mutex = threading.RLock()
_timer: threading.Timer | None = None  # since this kernel's last cell ended; None while one runs


def hold(folder: Path) -> None:
    """Take the run's lock, until this process ends or a notebook's cells have run.

    Raises:
        BadInput: another process has it ("run-in-use").
    """
    if not is_main_process():
        return
    folder = folder.resolve()
    _take(folder)
    _runs[folder] = _inode(folder)
    if "ipykernel" in sys.modules:
        _follow_cells()


def made_anew(folder: Path) -> None:
    """The folder was moved or made by the process that holds its lock."""
    _runs[folder.resolve()] = _inode(folder)


def release() -> None:
    """Let others have every lock of this process; where no run came of one, its file goes, too."""
    for folder in _files:
        if not folder.exists():
            _path(folder).unlink(missing_ok=True)
    _close()


def _close() -> None:
    for file in _files.values():
        file.close()
    _files.clear()


os.register_at_fork(after_in_child=_close)  # or a child would go on holding them


def _path(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _take(folder: Path) -> None:
    if folder in _files:
        return
    path = _path(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise BadInput(
            f"{path.parent} cannot be written to ({error.strerror}): set output_dir to a folder "
            f"of yours.",
            key="output-dir",
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            _check_owner(folder, file)
        return
    except OSError:  # a file system without locks
        file.close()
        return
    if not os.fstat(file.fileno()).st_nlink:  # its last owner took it away in this moment
        file.close()
        return _take(folder)
    file.truncate(0)
    me = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%H:%M:%S")}
    file.write(json.dumps(me | {"command": " ".join(sys.orig_argv[1:])[:200]}))
    file.flush()
    _files[folder] = file


def _check_owner(folder: Path, file: IO[str]) -> None:
    """Raises BadInput where the lock's owner is not a process that started this one."""
    owner, here = {}, socket.gethostname()
    file.seek(0)
    with suppress(ValueError):  # between its lock and its line
        owner = json.load(file)
    if owner.get("pid") in {process.pid for process in psutil.Process().parents()}:
        return
    who = f"process {owner.get('pid', 'unknown')}"
    who += f" on {owner['host']}" if owner.get("host", here) != here else ""
    who += f" since {owner['since']}" if "since" in owner else ""
    raise BadInput(
        f"The run {folder.name} is being written by another process ({who}): wait for it or end "
        f"it, or give this one a name of its own with `run`.",
        key="run-in-use",
    )


def _inode(folder: Path) -> int:
    return folder.stat().st_ino if folder.exists() else 0


class _CellGuard(ast.NodeTransformer):
    """Sees each cell before it runs, and refuses it where another process has the run by now."""

    def visit(self, node: ast.AST) -> ast.AST:
        global _timer
        with _mutex:
            _timer = None
            try:
                for folder, inode in _runs.items():
                    _take(folder)
                    if inode and _inode(folder) != inode:
                        raise BadInput(
                            f"The run {folder.name} was put aside or begun anew by another "
                            f"process: restart this notebook.",
                            key="run-replaced",
                        )
            except BadInput as error:
                raise _rejected(error) from None
        return node


def _rejected(error: BadInput) -> Exception:
    from IPython.core.error import InputRejected  # the one error that IPython passes on

    rejected = InputRejected(str(error))
    rejected._render_traceback_ = error._render_traceback_
    return rejected


def _release_soon(*_: object) -> None:
    global _timer
    _timer = threading.Timer(IDLE, _release_if_idle)
    _timer.daemon = True
    _timer.start()


def _release_if_idle() -> None:
    with _mutex:
        if threading.current_thread() is _timer:
            release()


def _follow_cells() -> None:
    from IPython import get_ipython

    shell = get_ipython()
    if shell and not any(isinstance(each, _CellGuard) for each in shell.ast_transformers):
        shell.ast_transformers.append(_CellGuard())
        shell.events.register("post_run_cell", _release_soon)
