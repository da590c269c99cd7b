"""What a run shows of itself while it trains: the curves, how far it is, and what goes wrong."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from transformers import TrainerCallback

from lib.hardware import is_main_process
from lib.runs import Run, write_json
from lib.training.alarms import Alarm, alarms


class LivePlot(TrainerCallback):
    """The training curves with their alarms, drawn in place while the log grows.

    Left behind are one picture and one text in the notebook, `figures/training.png` and
    `alarms.json`. In a loop of one's own: `with LivePlot(…) as live`, and `live.update(log)`.

    Args:
        steps: how many optimizer steps the run takes, for the time left.
        weights: what each reward counts, by name.
        alert: called with the alarms at each drawing, to send them elsewhere.
    """

    pause = 10.0  # seconds between two drawings, at the least
    share = 0.02  # of the time may go into drawing

    def __init__(
        self,
        run: Run,
        steps: int,
        weights: Mapping[str, float] | None = None,
        alert: Callable[[Sequence[Alarm]], None] | None = None,
    ):
        self.run, self.steps, self.weights, self.alert = run, steps, weights, alert
        self.log: Sequence[dict] = []
        self.picture, self.words = None, None  # display handles
        self.next, self.drawn = 0.0, 0  # when to draw again, and how many rows were drawn

    def __enter__(self) -> "LivePlot":
        return self

    def __exit__(self, *_: Any) -> None:
        """The last state is drawn, also of a run that failed."""
        if len(self.log) > self.drawn:
            self._draw()

    def on_train_end(self, args, state, control, **kwargs):
        self.__exit__()

    def around(self, trainer: Any) -> "LivePlot":
        return self

    def update(self, log: Sequence[dict]) -> None:
        """Called with all rows after each step."""
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

        self.drawn = len(self.log)
        if not is_main_process():
            return
        path = self.run.figures / "training.png"
        save(training_curves(self.log, title=pace(self.log, self.steps)), path)
        raised = alarms(self.log, self.weights)
        write_json(self.run.folder / "alarms.json", [asdict(alarm) for alarm in raised])
        if self.alert:
            self.alert(raised)
        self.picture = _show(Image(path.read_bytes(), width=980), self.picture)
        self.words = _show(Markdown(in_words(raised)), self.words)


def _show(what: Any, handle: Any) -> Any:
    """Displays it, in the place of what the handle displayed; returns the handle."""
    from IPython.display import display

    if handle is None:
        return display(what, display_id=True)
    handle.update(what)
    return handle


def in_words(raised: Sequence[Alarm]) -> str:
    """The alarms as a list in Markdown."""
    if not raised:
        return "No alarms."
    return "\n".join(f"- **{a.name}** (step {a.step}): {a.sentence}" for a in raised)
