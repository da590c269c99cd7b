"""Figures of a learned reward: how it came about, what it is worth, and how it is gamed."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from lib.plots import BLUE, COLORS, GREEN, GREY, ORANGE, grid_of_axes, reliability, styled
from lib.plots.curves import smoothed, whole_steps


@styled
def training_figure(log: Sequence[dict]) -> Figure:
    """Loss and accuracy of each step's pairs, pale, and their running means."""
    names = {"loss": np.log(2), "accuracy": 0.5}
    figure, axes = grid_of_axes(*(f"{name} on training pairs" for name in names), height=3)
    for axis, (name, chance) in zip(axes, names.items(), strict=True):
        smoothed(axis, [row["step"] for row in log], [row[name] for row in log], BLUE, window=10)
        axis.axhline(chance, color="black", lw=1, ls=":", label="a coin")
        axis.set_xlabel("optimizer step")
        whole_steps(axis)
    axes[0].legend()
    return figure


@styled
def scores_figure(chosen: Sequence[float], rejected: Sequence[float]) -> Figure:
    """How the scores of preferred and rejected answers spread, and their margins pair by pair."""
    margins = np.subtract(chosen, rejected)
    titles = "held-out answers", f"{np.mean(margins > 0):.0%} right of zero"
    figure, (left, right) = grid_of_axes(*titles, height=3)
    bins = np.histogram_bin_edges([*chosen, *rejected], bins=24)
    left.hist(rejected, bins=bins, color=ORANGE, alpha=0.6, label="rejected")
    left.hist(chosen, bins=bins, color=BLUE, alpha=0.6, label="preferred")
    left.set_xlabel("score")
    left.legend()
    right.hist(margins, bins=24, color=GREEN)
    right.axvline(0, color="black", lw=0.8)
    right.set_xlabel("score of preferred − score of rejected")
    return figure


@styled
def reliability_figure(rows: Sequence[dict]) -> Figure:
    """The model's probability against how often it is right (`lib.learned.reliability`)."""
    figure, [axis] = grid_of_axes("", height=4.4, width=5)
    reliability(axis, {"reward model": rows}, low=0.5)
    axis.set_xlabel("probability of the answer that scores higher")
    axis.set_ylabel("how often it is the preferred one")
    return figure


@styled
def pays_figure(rollouts: Sequence[Sequence[dict]], paid: Sequence[str]) -> Figure:
    """Rewards of all completions by training step, in standard deviations from the first ones.

    What is paid should lift what is only watched (weight 0); where it rises alone, it is gamed.
    The cheapest ways of gaming stand beside: length, and saying the same again.

    Args:
        rollouts: each step's rows (`lib.runs.read_rollouts`).
        paid: the names of the rewards that the policy earns.
    """
    titles = "rewards, in σ from the start", "tokens", "repeated word triples"
    figure, axes = grid_of_axes(*titles, height=3.2)
    lines = [
        (axes[0], from_start(rollouts, name), f"{name}, {'paid' if name in paid else 'watched'}")
        for name in rollouts[0][0]["rewards"]
    ]
    colors = [*COLORS[: len(lines)], GREY, GREY]
    lines.append((axes[1], [[row["tokens"] for row in rows] for rows in rollouts], ""))
    repeats = [[repeated(row["completion"]) for row in rows] for rows in rollouts]
    lines.append((axes[2], repeats, ""))
    steps = [rows[0]["step"] for rows in rollouts]
    for (axis, values, label), color in zip(lines, colors, strict=True):
        # Rounded, since rounding is no slope.
        smoothed(axis, steps, np.round([np.nanmean(part) for part in values], 6), color, label)
        whole_steps(axis)
    axes[0].legend()
    figure.supxlabel("optimizer step", fontsize=11)
    return figure


def from_start(rollouts: Sequence[Sequence[dict]], name: str) -> list[np.ndarray]:
    """A reward's values step by step, in standard deviations from those of the first fifth."""
    values = [np.array([row["rewards"][name] for row in rows], dtype=float) for rows in rollouts]
    start = np.concatenate(values[: max(1, len(values) // 5)])
    spread = np.nanstd(start).round(9) or 1.0  # rounded, as equal rewards spread by rounding alone
    return [(v - np.nanmean(start)) / spread for v in values]


def repeated(text: str) -> float:
    """The share of a text's word triples that have occurred before in it."""
    words = text.split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0
