"""Progress with time left, for anything that takes longer than a few seconds: tqdm, in one line."""

import io
import sys
from pathlib import Path

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


class Progress(tqdm):
    """One line of text that updates in place: in a terminal, in a notebook, and in its executed
    page, where tqdm's widget would leave nothing.

    Args:
        total: how many steps there are.
        label: what is going on ("training").
        file: the line is written there too, for whoever runs the notebook from outside.
    """

    monitor_interval = 0

    def __init__(self, total: int, label: str, file: Path | None = None):
        self.to, self.handle, self.begun = file, None, False
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
        """
        Args:
            done: of all steps; a resumed job does not start at 0.
        """
        self.set_postfix_str(note, refresh=False)
        if not self.begun:
            self.begun, self.initial, self.n = True, done, done
            self.refresh()
        super().update(done - self.n)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        line = str(self) if msg is None else msg
        if self.to:
            elapsed = self.format_dict["elapsed"]
            pace = (self.n - self.initial) / elapsed if elapsed else 0
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
