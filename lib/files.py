"""Files that a kill leaves readable, and folders into which one process at a time writes.

Lines are appended, files and folders written beside and renamed. Of several processes that train
one run, the first writes.

The lock of a folder is the system's own (flock), on `.<name>.lock` beside it: it ends with its
process, however that ends, and neither a reboot nor a copy of the folder leaves a stale one. The
file says who has it. Kernels may write where the runner that started them has the lock. A
notebook's kernel has it while its cells run: one that is merely open is in nobody's way.
"""

import ast
import fcntl
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import psutil

from lib.config import ROOT, user_path
from lib.errors import BadInput, first_line
from lib.hardware import is_main_process


def shown(path: Path) -> str:
    """A path as a person reads it: relative to the repository where it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(each for each in (path, *path.parents) if each.exists())


def cache_folder() -> Path:
    """Where what is made once for all runs is kept: GRPO_CACHE, or in the repository, or where
    that cannot be written to, in the user's own cache."""
    if given := os.environ.get("GRPO_CACHE"):
        return user_path(given)
    folder = ROOT / "outputs" / ".cache"
    if os.access(existing(folder), os.W_OK):
        return folder
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "grpo-notebooks"


def write_json(path: Path, value: Any) -> None:
    """Beside and renamed: readers see the old file or the new one, never half of one."""
    _replace(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path, *missing: Any) -> Any:
    """What the file holds; where there is none, `missing`, if it is given."""
    if missing and not path.is_file():
        return missing[0]
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        said = f"{path} is no JSON that can be read ({error})"
        raise BadInput(f"{said}: it was cut short or edited; copy it again.", "json") from None


def read_settings(path: Path, *missing: Any) -> dict[str, Any]:
    """As `read_json`, of a file that holds names and values."""
    settings = read_json(path, *missing)
    if not isinstance(settings, dict):
        raise BadInput(f"{path} holds no names and values: copy it again.", "json")
    return settings


def append_jsonl(path: Path, rows: Iterable[dict]) -> None:
    if is_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(_lines(rows))


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """The log with these rows alone; beside and renamed."""
    _replace(path, _lines(rows))


def _lines(rows: Iterable[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def _replace(path: Path, text: str) -> None:
    if is_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.{os.getpid()}")
        new.write_text(text, encoding="utf-8", errors="replace")
        new.replace(path)


def read_jsonl(path: Path) -> list[dict]:
    """The rows of a log; a last line that a kill cut short is left out."""
    rows = []
    # Not splitlines, which also splits where a completion holds a line separator.
    for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Yields a folder to write into, which takes its place when all of it is there, on disk.

    A kill at any moment leaves the old folder or the new one: by its name or, between two renames,
    as `.<name>.old`, from where `put_back` brings it. BadInput: the disk did not take it; the old
    one stays.
    """
    if not is_main_process():
        with tempfile.TemporaryDirectory() as nowhere:
            yield Path(nowhere)
        return
    new, old = folder.with_name(f".{folder.name}.new"), _old(folder)
    put_back(folder)
    for left in (new, old):  # of one that was killed
        shutil.rmtree(left, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        yield new
        on_disk(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except Exception as error:
        raise_if_disk(error, folder)
        raise
    finally:
        put_back(folder)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def raise_if_disk(error: Exception, folder: Path) -> None:
    """Raises BadInput where the disk did not take the folder, for which safetensors and torch have
    words of their own."""
    if isinstance(error, OSError) or re.search("os error|inline_container", str(error)):
        raise BadInput(
            f"{shown(folder)} could not be written ({first_line(error)}): make room on the disk, "
            f"or set output_dir to another.",
            key="disk-full",
        ) from error


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def put_back(folder: Path) -> None:
    """Give a folder its name again, where `written_whole` was killed between its two renames."""
    if _old(folder).is_dir() and not folder.exists() and is_main_process():
        _old(folder).rename(folder)


def on_disk(folder: Path) -> None:
    """Have everything in it on the disk, which a machine that goes down may else never write."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def discard(folder: Path) -> None:
    """Delete a folder at once: a kill leaves no half of it under its name."""
    if is_main_process():
        gone = folder.with_name(".gone")
        shutil.rmtree(gone, ignore_errors=True)  # of one that was killed here
        with suppress(FileNotFoundError):
            shutil.rmtree(folder.rename(gone), ignore_errors=True)


# --- one process at a time --------------------------------------------------------------------

_runs: dict[Path, int] = {}  # folder → its inode, or 0: what this process may write to
_files: dict[Path, IO[str]] = {}  # folder → its lock's file, while this process has the lock


def hold(folder: Path) -> None:
    """Take the folder's lock, until this process or the notebook's cell ends; again where the
    process has made the folder anew. BadInput: another process has it ("run-in-use")."""
    if not is_main_process():
        return
    folder = folder.resolve()
    _take(folder)
    _runs[folder] = _inode(folder)
    if "ipykernel" in sys.modules:
        _follow_cells()


def release(*folders: Path) -> None:
    """Let others have these locks, or every one of this process; where no run came of one, its file
    goes, too."""
    for folder in folders or [*_files]:
        if not folder.exists():
            _lock_file(folder).unlink(missing_ok=True)
        if file := _files.pop(folder.resolve(), None):
            file.close()


def _close() -> None:
    for file in _files.values():
        file.close()
    _files.clear()


os.register_at_fork(after_in_child=_close)  # or a child would go on holding them


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _inode(folder: Path) -> int:
    return folder.stat().st_ino if folder.exists() else 0


def _take(folder: Path) -> None:
    if folder in _files:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = _lock_file(folder).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            return _check_owner(folder, file)
    except OSError:  # a file system without locks
        return file.close()
    if not os.fstat(file.fileno()).st_nlink:  # its last owner took it away in this moment
        file.close()
        return _take(folder)
    me = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%H:%M:%S")}
    file.truncate(0)
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


class _CellGuard(ast.NodeTransformer):
    """Sees each cell before it runs, and refuses it where another process has the run by now."""

    def visit(self, node: ast.AST) -> ast.AST:
        from IPython.core.error import InputRejected  # the one error that IPython passes on

        try:
            for folder, inode in _runs.items():
                _take(folder)
                if inode and _inode(folder) != inode:
                    raise BadInput(
                        f"The run {folder.name} was put aside or begun anew by another process: "
                        f"restart this notebook.",
                        key="run-replaced",
                    )
        except BadInput as error:
            rejected = InputRejected(str(error))
            rejected._render_traceback_ = error._render_traceback_
            raise rejected from None
        return node


def _follow_cells() -> None:
    from IPython import get_ipython

    shell = get_ipython()
    if shell and not any(isinstance(each, _CellGuard) for each in shell.ast_transformers):
        shell.ast_transformers.append(_CellGuard())
        shell.events.register("post_execute", release)  # of a cell that runs silently, too
