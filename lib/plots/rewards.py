"""Figures of a learned reward: how it came about, what it is worth, and how it is gamed."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from lib.plots import BLUE, GREEN, GREY, ORANGE, STYLE
from lib.plots.curves import smooth, whole_steps


def training_figure(log: Sequence[dict]) -> Figure:
    """Loss and accuracy of each step's pairs, pale, and their running means."""
    steps = [row["step"] for row in log]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
        named = zip(axes, (("loss", np.log(2)), ("accuracy", 0.5)), strict=True)
        for axis, (name, chance) in named:
            values = [row[name] for row in log]
            axis.plot(steps, values, color=BLUE, alpha=0.3, lw=1)
            axis.plot(steps, smooth(values, 10), color=BLUE, lw=2)
            axis.axhline(chance, color="black", lw=1, ls=":", label="a coin")
            axis.set_title(f"{name} on training pairs", loc="left", fontsize=10)
            axis.set_xlabel("optimizer step")
            whole_steps(axis)
        axes[0].legend(fontsize=8)
    return figure


def scores_figure(chosen: Sequence[float], rejected: Sequence[float]) -> Figure:
    """How the scores of preferred and rejected answers spread, and their margins pair by pair."""
    margins = np.subtract(chosen, rejected)
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
        bins = np.histogram_bin_edges([*chosen, *rejected], bins=24)
        left.hist(rejected, bins=bins, color=ORANGE, alpha=0.6, label="rejected")
        left.hist(chosen, bins=bins, color=BLUE, alpha=0.6, label="preferred")
        left.set_xlabel("score")
        left.set_title("held-out answers", loc="left", fontsize=10)
        left.legend(fontsize=8)
        right.hist(margins, bins=24, color=GREEN)
        right.axvline(0, color="black", lw=0.8)
        right.set_xlabel("score of preferred − score of rejected")
        right.set_title(f"{np.mean(margins > 0):.0%} right of zero", loc="left", fontsize=10)
    return figure


def reliability_figure(rows: Sequence[dict]) -> Figure:
    """The model's probability against how often it is right (`preferences.reliability`)."""
    xs, rates = [row["share"] for row in rows], [row["rate"] for row in rows]
    ends = [[row["rate"] - row["low"] for row in rows], [row["high"] - row["rate"] for row in rows]]
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(4.4, 3.8), layout="constrained")
        axis.plot([0.5, 1], [0.5, 1], ":", color="black", lw=1, label="as sure as right")
        axis.errorbar(xs, rates, yerr=np.maximum(0, ends), fmt="o-", color=BLUE, lw=1, capsize=2)
        axis.set_xlabel("probability of the answer that scores higher")
        axis.set_ylabel("how often it is the preferred one")
        axis.set_ylim(0, 1.03)
        axis.legend(fontsize=8)
    return figure


def pays_figure(rollouts: Sequence[Sequence[dict]], paid: Sequence[str]) -> Figure:
    """Rewards of all completions by training step, in standard deviations from the first ones.

    What is paid should lift what is only watched (weight 0); where it rises alone, it is gamed.
    The cheapest ways of gaming stand beside: length, and saying the same again.

    Args:
        rollouts: each step's rows (`lib.runs.read_rollouts`).
        paid: the names of the rewards that the policy earns.
    """
    steps = [rows[0]["step"] for rows in rollouts]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
        colors = (BLUE, ORANGE, GREEN, *plt.cm.Dark2.colors)
        for name, color in zip(rollouts[0][0]["rewards"], colors, strict=False):
            label = f"{name}, {'paid' if name in paid else 'watched'}"
            _curve(axes[0], steps, from_start(rollouts, name), color, label)
        axes[0].legend(fontsize=8)
        tokens = [[row["tokens"] for row in rows] for rows in rollouts]
        repeats = [[repeated(row["completion"]) for row in rows] for rows in rollouts]
        _curve(axes[1], steps, tokens, GREY, "")
        _curve(axes[2], steps, repeats, GREY, "")
        for axis, title in zip(
            axes, ("rewards, in σ from the start", "tokens", "repeated word triples"), strict=True
        ):
            axis.set_title(title, loc="left", fontsize=10)
        figure.supxlabel("optimizer step", fontsize=10)
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


def _curve(axis, steps, values, color, label) -> None:
    """Each step's mean pale, the mean of the latest five in colour; rounding is no slope."""
    means = np.round([np.nanmean(part) for part in values], 6)
    axis.plot(steps, means, color=color, lw=1, alpha=0.3)
    axis.plot(steps, smooth(means), color=color, lw=2, label=label)
    whole_steps(axis)
