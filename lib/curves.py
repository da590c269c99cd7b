"""The curves of a training run, from its log."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from lib.plots import BLUE, GREEN, GREY, ORANGE, STYLE


def smooth(values: Sequence[float], window: int = 5) -> np.ndarray:
    """The mean of each value with those up to `window` − 1 before it."""
    values = np.asarray(values, dtype=float)
    return np.array([values[max(0, i - window + 1) : i + 1].mean() for i in range(len(values))])


def training_curves(log: Sequence[dict], figure: Figure | None = None) -> Figure:
    """Reward, signal, length and entropy by optimizer step, from `train_log.jsonl`."""
    with plt.rc_context(STYLE):
        figure = figure or plt.figure(figsize=(10, 5.6), layout="constrained")
        figure.clear()
        axes = figure.subplots(2, 2, sharex=True).flat
        steps = [row["step"] for row in log]
        _line(axes[0], steps, [row["reward"] for row in log], "mean reward", BLUE)
        for i, name in enumerate(_rewards(log)):
            values = smooth([row[f"rewards/{name}/mean"] for row in log])
            axes[0].plot(steps, values, "--", lw=1, color=plt.cm.tab10(i + 1), label=name)
        axes[0].legend(fontsize=8)
        zero = [row["frac_reward_zero_std"] for row in log]
        _line(axes[1], steps, zero, "groups without signal", ORANGE)
        axes[1].set_ylim(-0.02, 1.02)
        _line(axes[2], steps, [r["completions/mean_length"] for r in log], "mean length", GREEN)
        axes[2].set_xlabel("optimizer step")
        _line(axes[3], steps, [row.get("entropy", np.nan) for row in log], "entropy", GREY)
        axes[3].set_xlabel("optimizer step")
        for axis, unit in zip(axes, ("reward", "share", "tokens", "nats"), strict=True):
            axis.set_ylabel(unit)
    return figure


def _rewards(log: Sequence[dict]) -> list[str]:
    """The rewards' names where there are several: one alone is the total."""
    keys = [key for key in log[0] if key.startswith("rewards/") and key.endswith("/mean")]
    return [key.split("/")[1] for key in keys] if len(keys) > 1 else []


def _line(axis: Any, steps: Sequence[int], values: Sequence[float], title: str, color: str) -> None:
    axis.plot(steps, values, color=color, alpha=0.3, lw=1)
    axis.plot(steps, smooth(values), color=color, lw=2, label=title)
    axis.set_title(title, loc="left", fontsize=10)
