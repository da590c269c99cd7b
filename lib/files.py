"""Files that a kill leaves readable: lines are appended, files and folders written beside and
renamed. Of several processes that train one run, the first writes."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lib.config import ROOT
from lib.errors import BadInput, first_line
from lib.hardware import is_main_process


def shown(path: Path) -> str:
    """A path as a person reads it: relative to the repository where it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def cache_folder() -> Path:
    """Where what is made once for all runs is kept: GRPO_CACHE, or in the repository, or where
    that cannot be written to, in the user's own cache."""
    if given := os.environ.get("GRPO_CACHE"):
        return Path(given).expanduser()
    folder = ROOT / "outputs" / ".cache"
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if os.access(there, os.W_OK):
        return folder
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "grpo-notebooks"


def write_json(path: Path, value: Any) -> None:
    """Write beside and rename: readers see the old file or the new one, never half of one."""
    if not is_main_process():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
    beside.write_text(text, encoding="utf-8", errors="replace")
    beside.replace(path)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def append_jsonl(path: Path, rows: Iterable[dict]) -> None:
    if not is_main_process():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows]
    with path.open("a", encoding="utf-8", errors="replace") as file:
        file.write("".join(lines))


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """The log with these rows alone; beside and renamed."""
    if not is_main_process():
        return
    beside = path.with_name(f".{path.name}")
    beside.unlink(missing_ok=True)
    append_jsonl(beside, rows)
    beside.replace(path)


def read_jsonl(path: Path) -> list[dict]:
    """The rows of a log; a last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    rows = []
    # Not splitlines, which also splits where a completion holds a line separator.
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Yields a folder to write into, which takes its place when all of it is there, on disk.

    A kill at any moment leaves the old folder or the new one: by its name or, between two
    renames, in `.old/` beside it, from where `put_back` brings it.

    Raises:
        BadInput: it could not be written, as on a full disk; the old one stays.
    """
    if not is_main_process():
        with tempfile.TemporaryDirectory() as nowhere:
            yield Path(nowhere)
        return
    new, old = (folder.parent / place / folder.name for place in (".new", ".old"))
    put_back(folder)
    _clear(new, old)
    try:
        new.mkdir(parents=True)
        yield new
        on_disk(new)
        if folder.exists():
            old.parent.mkdir(exist_ok=True)
            folder.rename(old)
        new.rename(folder)
    except BadInput:
        raise
    except Exception as error:  # safetensors and torch have their own for a full disk
        raise BadInput(
            f"{shown(folder)} could not be written ({first_line(error)}): make room on the "
            f"disk, or set output_dir to another."
        ) from error
    finally:
        put_back(folder)
        _clear(new, old)


def put_back(folder: Path) -> None:
    """Give a folder its name again, where `written_whole` was killed between its two renames."""
    old = folder.parent / ".old" / folder.name
    if old.is_dir() and not folder.exists() and is_main_process():
        old.rename(folder)


def _clear(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # others are written in it
            folder.parent.rmdir()


def on_disk(folder: Path) -> None:
    """Have everything in it on the disk, which a machine that goes down may else never write."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def discard(folder: Path) -> None:
    """Delete a folder at once: a kill leaves no half of it under its name."""
    if not is_main_process():
        return
    gone = folder.parent / ".gone"
    shutil.rmtree(gone, ignore_errors=True)  # of one that was killed here
    with suppress(FileNotFoundError):
        shutil.rmtree(folder.rename(gone), ignore_errors=True)
