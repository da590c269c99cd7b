"""What a run shows of itself while it trains: the curves, how far it is, and what goes wrong."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lib.runs import Run, write_json
from lib.training.alarms import Alarm, alarms


class LivePlot:
    """The training curves with their alarms, drawn in place while the log grows.

        with LivePlot(run, config.max_steps) as live:
            ...  # live.update(log) after each step

    Left behind are one picture and one text in the notebook, `figures/training.png` and
    `alarms.json`.

    Args:
        steps: how many optimizer steps the run takes, for the time left.
        weights: what each reward counts, by name.
    """

    pause = 10.0  # seconds between two drawings, at the least
    share = 0.02  # of the time may go into drawing

    def __init__(self, run: Run, steps: int, weights: Mapping[str, float] | None = None):
        self.run, self.steps, self.weights = run, steps, weights
        self.log: Sequence[dict] = []
        self.picture, self.words = None, None  # display handles
        self.next = 0.0

    def __enter__(self) -> "LivePlot":
        return self

    def __exit__(self, *_: Any) -> None:
        """Draw the last state, also of a run that failed."""
        if self.log:
            self._draw()

    def update(self, log: Sequence[dict]) -> None:
        self.log = log
        if time.monotonic() >= self.next:
            started = time.monotonic()
            self._draw()
            spent = time.monotonic() - started
            self.next = time.monotonic() + max(self.pause, spent / self.share)

    def _draw(self) -> None:
        from IPython.display import Image, Markdown

        from lib.plots import save
        from lib.plots.curves import pace, training_curves

        path = self.run.figures / "training.png"
        save(training_curves(self.log, title=pace(self.log, self.steps)), path)
        found = alarms(self.log, self.weights)
        keep_alarms(found, self.run)
        self.picture = _show(Image(path.read_bytes(), width=980), self.picture)
        self.words = _show(Markdown(in_words(found)), self.words)


def _show(what: Any, handle: Any) -> Any:
    """Displays it, in the place of what the handle displayed; returns the handle."""
    from IPython.display import display

    if handle is None:
        return display(what, display_id=True)
    handle.update(what)
    return handle


def keep_alarms(found: Sequence[Alarm], run: Run) -> None:
    write_json(run.folder / "alarms.json", [asdict(alarm) for alarm in found])


def in_words(found: Sequence[Alarm]) -> str:
    """The alarms as a list in Markdown."""
    if not found:
        return "No alarms."
    return "\n".join(f"- **{a.name}** (step {a.step}): {a.sentence}" for a in found)
