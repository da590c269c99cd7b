"""Figures of several runs: learning curves with bands over seeds, differences with intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from lib.evaluation.runs import batches_log
from lib.plots import BLUE, GREY, ORANGE, STYLE, bounds
from lib.plots.curves import smooth
from lib.runs import Run, read_jsonl


def seed_curves(runs: Sequence[Run], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Batches of rollouts, and the smoothed values of each run (a row a run), as far as all go."""
    logs = [batches_log(run) for run in runs]
    length = min(map(len, logs))
    return np.arange(1, length + 1), np.array(
        [smooth([row[key] for row in log[:length]]) for log in logs]
    )


def learning_curves(arms: Mapping[str, Sequence[Run]], key: str = "reward") -> Figure:
    """A panel an arm by share of its budget: mean over seeds, band from lowest to highest.

    The first trained arm is drawn in grey behind the others.
    """
    trained = {name: runs for name, runs in arms.items() if read_jsonl(runs[0].train_log)}
    curves = {name: seed_curves(runs, key) for name, runs in trained.items()}
    columns = min(4, len(curves))
    lines = -(-len(curves) // columns)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            *(lines, columns),
            figsize=(2.6 * columns, 2.1 * lines + 0.4),
            layout="constrained",
            sharey=True,
            squeeze=False,
        )
        first = next(iter(curves))
        for axis, name in zip(axes.flat, curves, strict=False):
            for shown, color in ((first, GREY), (name, BLUE))[name == first :]:
                steps, values_SU = curves[shown]
                done = steps / steps[-1]
                axis.plot(done, values_SU.mean(0), color=color, lw=2)
                axis.fill_between(
                    done, values_SU.min(0), values_SU.max(0), color=color, alpha=0.2, lw=0
                )
            axis.set_title(name, loc="left", fontsize=10)
        for axis in list(axes.flat)[len(curves) :]:
            axis.set_axis_off()
        figure.supxlabel("share of the completions drawn", fontsize=10)
        figure.supylabel(key, fontsize=10)
    return figure


def differences_figure(compared: Sequence[Mapping[str, Any]]) -> Figure:
    """Each arm's difference in accuracy to those compared with, with 95 % intervals."""
    others = dict.fromkeys(key for row in compared for key in row if key.startswith("to "))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            *(1, len(others)),
            figsize=(10, 1 + 0.32 * len(compared)),
            layout="constrained",
            sharey=True,
            squeeze=False,
        )
        for axis, other in zip(axes[0], others, strict=True):
            for y, row in enumerate(reversed(compared)):
                if other in row:
                    low, high = bounds(row[other]["interval"])
                    axis.plot([low, high], [y, y], color=ORANGE, lw=2)
                    axis.plot(row[other]["difference"], y, "o", color=BLUE)
            axis.axvline(0, color="black", lw=0.8)
            axis.set_title(f"difference {other}", loc="left", fontsize=10)
            axis.xaxis.set_major_formatter(plt.FuncFormatter(lambda x, _: f"{x:+.0%}"))
        axes[0, 0].set_yticks(range(len(compared)), [row["arm"] for row in reversed(compared)])
    return figure
