"""Progress with time left, for anything that takes longer than a few seconds."""

import sys
import time
from pathlib import Path

from lib.runs import write_json


def duration(seconds: float) -> str:
    """
    >>> duration(8.3), duration(95), duration(3720)
    ('8 s', '1 min 35 s', '1 h 2 min')
    """
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


class Progress:
    """One line that updates in place, in a notebook as in a terminal.

    Args:
        total: how many steps there are.
        label: what is going on ("training").
        file: the line is written there too, for whoever runs the notebook from outside.
    """

    def __init__(self, total: int, label: str, file: Path | None = None):
        self.total, self.label, self.file = total, label, file
        self.started = self.shown = time.time()
        self.first: int | None = None  # a resumed job does not start at 0
        self.done = 0
        self._handle = None
        self._last = ""

    def update(self, done: int, note: str = "") -> None:
        self.first = done if self.first is None else self.first
        self.done = done
        self._show(self._line(note))

    def close(self) -> None:
        spent = duration(time.time() - self.started)
        self._show(f"{self.label}: {self.done} of {self.total} in {spent}", last=True)
        if self.file:
            self.file.unlink(missing_ok=True)

    def _line(self, note: str) -> str:
        spent = time.time() - self.started
        made = self.done - (self.first or 0)
        left = ""
        # The first of many that are under way at once tells nothing of the rest.
        if made > self.total / 50 and self.done < self.total:
            left = f", {duration(spent / made * (self.total - self.done))} left"
        note = f" ({note})" if note else ""
        return f"{self.label}: {self.done} of {self.total}{left}{note}"

    def _show(self, line: str, last: bool = False) -> None:
        now = time.time()
        if not last and self._last and now - self.shown < 0.5:
            return
        self.shown, self._last = now, line
        if self.file:
            write_json(self.file, {"line": line, "time": now})
        if "ipykernel" in sys.modules:
            self._show_in_notebook(line)
        elif sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K{line}" + ("\n" if last else ""))

    def _show_in_notebook(self, line: str) -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display(_Line(line), display_id=True)
        else:
            self._handle.update(_Line(line))


class _Line:
    """Shows as plain text, without quotes."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text
