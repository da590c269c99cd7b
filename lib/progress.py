"""Progress with time left, for anything that takes longer than a few seconds: tqdm, in one line."""

import io
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

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
    """One line that updates in place: in a terminal, in a notebook, and in its executed page.

    Args:
        total: how many steps there are.
        label: what is going on ("training").
        file: the line is written there too, for whoever runs the notebook from outside.
    """

    def __init__(self, total: int, label: str, file: Path | None = None):
        form = "{desc}: {n_fmt} of {total_fmt} [{elapsed}<{remaining}{postfix}]"
        self.bar: tqdm | None = None
        self.make = lambda done: _Line(
            file,
            total=total,
            initial=done,
            desc=label,
            bar_format=form,
            smoothing=0,
            mininterval=0.5,
        )

    def update(self, done: int, note: str = "") -> None:
        """
        Args:
            done: of all steps; a resumed job does not start at 0.
        """
        if self.bar is None:
            self.bar = self.make(done)
        self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class _Line(tqdm):
    """tqdm's line as text: its widget would leave nothing in an executed page."""

    monitor_interval = 0

    def __init__(self, to: Path | None, **options: Any):
        self.to, self.handle = to, None
        self.in_notebook = "ipykernel" in sys.modules
        in_terminal = sys.stderr.isatty() and not self.in_notebook
        super().__init__(file=sys.stderr if in_terminal else io.StringIO(), **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        line = str(self) if msg is None else msg
        if self.to:
            seen = self.format_dict
            pace = (self.n - self.initial) / seen["elapsed"] if seen["elapsed"] else 0
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
