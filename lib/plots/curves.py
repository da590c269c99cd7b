"""The curves of a training run, from its log."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lib.plots import BLUE, GREEN, GREY, ORANGE, STYLE
from lib.progress import duration

COLORS = (BLUE, ORANGE, GREEN, GREY, *plt.cm.Dark2.colors)


@dataclass(frozen=True)
class Panel:
    """One set of axes: the log's keys that are drawn on it, and what each is called there."""

    title: str
    unit: str
    lines: dict[str, str]  # key of the log -> label; one line alone needs none


def panels(log: Sequence[dict]) -> list[Panel]:
    """What there is to draw: a panel whose keys the log does not hold falls away."""
    rewards = [key for key in log[-1] if key.startswith("rewards/") and key.endswith("/mean")]
    each = {key: key.split("/")[1] for key in rewards} if len(rewards) > 1 else {}
    signal = {"frac_reward_zero_std": "groups without signal"}
    if "signal/drawn" in log[-1]:  # some were replaced
        signal = {
            "signal/trained": "groups with signal, trained on",
            "signal/drawn": "groups with signal, as drawn",
        }
    cut = {"completions/clipped_ratio": "completions cut off"}
    wanted = [
        Panel("reward", "reward", {"reward": "total", **each}),
        Panel(
            "held-out accuracy",
            "share",
            {"heldout/strict": "strict", "heldout/lenient": "lenient"},
        ),
        Panel("signal and limits", "share", {**signal, **cut}),
        Panel("completion length", "tokens", {"completions/mean_length": ""}),
        Panel("entropy", "nats a token", {"entropy": ""}),
        Panel("KL to the reference", "nats a token", {"kl": ""}),
    ]
    held = {key for row in log for key, value in row.items() if value is not None}
    return [panel for panel in wanted if held & panel.lines.keys()]


def training_curves(log: Sequence[dict], title: str = "") -> Figure:
    """Every panel by optimizer step: each value pale, its mean over the latest steps in colour.

    Large enough to be read where it is shown 980 pixels wide.
    """
    shown = panels(log)
    rows = -(-len(shown) // 2)
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(10, 2.9 * rows + 0.4), layout="constrained")
        axes = list(figure.subplots(rows, 2, sharex=True, squeeze=False).flat)
        for axis, panel in zip(axes, shown, strict=False):
            _draw(axis, panel, log)
        for axis in axes[len(shown) :]:
            axis.set_axis_off()
        axes[max(0, len(shown) - 2)].tick_params(labelbottom=True)  # none beneath it, where odd
        whole_steps(axes[0])  # and those that share its steps
        figure.supxlabel("optimizer step", fontsize=12)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    return figure


def _draw(axis: Any, panel: Panel, log: Sequence[dict]) -> None:
    for i, (key, label) in enumerate(panel.lines.items()):
        points = [(row["step"], row[key]) for row in log if row.get(key) is not None]
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        color = COLORS[i % len(COLORS)]
        every_step = len(points) > len(log) / 2
        axis.plot(steps, values, color=color, lw=1, alpha=0.3 if every_step else 1, marker="")
        if every_step:
            axis.plot(steps, smooth(values), color=color, lw=2, label=label)
        else:  # measured now and then: each point counts, also beneath another
            axis.plot(steps, values, "o", ms=4 + 2 * i, zorder=3 - i, color=color, label=label)
    axis.set_title(panel.title, loc="left", fontsize=12)
    axis.set_ylabel(panel.unit, fontsize=11)
    axis.tick_params(labelsize=10)
    if panel.unit == "share":
        axis.set_ylim(-0.02, 1.02)
    if len(panel.lines) > 1:
        axis.legend(fontsize=10)


def whole_steps(axis: Any) -> None:
    """No tick between two steps, as a run of few would have."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def smooth(values: Sequence[float], window: int = 5) -> np.ndarray:
    """The mean of each value with those up to `window` − 1 before it."""
    values = np.asarray(values, dtype=float)
    return np.array([values[max(0, i - window + 1) : i + 1].mean() for i in range(len(values))])


def pace(log: Sequence[dict], steps: int) -> str:
    """How far a run of so many steps is: "step 20 of 36, 2 min 20 s left, 281 tokens/s".

    Time and tokens (of prompts and completions) are those of the latest ten steps.
    """
    last, first = log[-1], log[-min(len(log), 11)]
    done, spent = last["step"] - first["step"], last["seconds"] - first["seconds"]
    told = [f"step {last['step']} of {steps}"]
    if last["step"] >= steps:
        told.append(f"{duration(last['seconds'])} in all")
    elif done:
        told.append(f"{duration(spent / done * (steps - last['step']))} left")
    if done and spent > 0 and "num_tokens" in last and "num_tokens" in first:
        told.append(f"{(last['num_tokens'] - first['num_tokens']) / spent:,.0f} tokens/s")
    return ", ".join(told)
