"""What a run shows of itself while it trains."""

import time

from lib.runs import Run


class LivePlot:
    """The training curves, drawn in place while the log grows; kept as `figures/training.png`."""

    pause = 10.0  # seconds between two drawings: each takes a part of one

    def __init__(self, run: Run):
        self.run, self.handle, self.drawn, self.log = run, None, 0.0, []

    def update(self, log: list[dict]) -> None:
        self.log = log
        if time.time() - self.drawn >= self.pause:
            self._draw()

    def close(self) -> None:
        """Draw the last state and keep it."""
        self._draw()

    def _draw(self) -> None:
        from IPython.display import display

        from lib.curves import training_curves
        from lib.plots import save

        if not self.log:
            return
        figure = training_curves(self.log)
        save(figure, self.run.figures / "training.png")
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)
        self.drawn = time.time()
