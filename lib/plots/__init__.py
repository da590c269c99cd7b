"""Figures of a run; each function draws on axes of its own and returns the figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from lib import stats
from lib.evaluation.compare import is_share
from lib.memory import MemoryPlan
from lib.preflight import Preflight

BLUE, ORANGE, GREEN, GREY = "#3b6fb6", "#d9772b", "#4b9b5d", "#8a8a8a"
MODELS = (GREY, BLUE, ORANGE)  # base, trained, another
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "font.size": 10,
    "figure.dpi": 110,
    "legend.frameon": False,
}


POINTS = plt.FuncFormatter(lambda x, _: f"{100 * x:+.0f}" if round(100 * x) else "0")


def comparison_bars(table: dict[str, dict[str, Any]]) -> Figure:
    """Before and after per metric, and beside it the paired difference with its interval."""
    shares = {name: row for name, row in table.items() if is_share(row)}
    names, rows = [n.replace("_", " ") for n in shares], list(shares.values())
    y = np.arange(len(rows))[::-1]
    with plt.rc_context(STYLE):
        height = 1.2 + 0.42 * len(rows)
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(10, height), layout="constrained", sharey=True
        )
        left.barh(y + 0.18, [r["before"] for r in rows], 0.34, color=GREY, label="before")
        left.barh(y - 0.18, [r["after"] for r in rows], 0.34, color=BLUE, label="after")
        left.set_yticks(y, names)
        left.set_xlim(0, 1)
        left.legend(fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
        left.set_title("share of held-out problems", loc="left", fontsize=10)
        middle = np.array([row["difference"] for row in rows])
        low, high = np.array([bounds(row["interval_95"]) for row in rows]).T
        right.errorbar(
            middle, y, xerr=[middle - low, high - middle], fmt="o", color=BLUE, capsize=3
        )
        right.axvline(0, color="black", lw=0.8)
        right.xaxis.set_major_formatter(POINTS)
        right.set_title("paired difference in points, 95 % interval", loc="left", fontsize=10)
    return figure


def curves_of_k_figure(curves: dict[str, dict[str, Sequence[stats.Estimate]]]) -> Figure:
    """pass@k, majority@k and best-of-k side by side, each model a line with its 95 % band.

    Args:
        curves: model → what `lib.evaluation.breakdowns.curves_of_k` found.
    """
    names = list(next(iter(curves.values())))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(names), figsize=(10, 3.2), layout="constrained", sharey=True, squeeze=False
        )
        for name, axis in zip(names, axes[0], strict=True):
            for (model, found), color in zip(curves.items(), MODELS, strict=False):
                ks = np.arange(1, len(found[name]) + 1)
                low, high = np.array([bounds(point.interval) for point in found[name]]).T
                means = [point.mean for point in found[name]]
                axis.plot(ks, means, "o-", ms=4, color=color, label=model)
                axis.fill_between(ks, low, high, color=color, alpha=0.2, lw=0)
            axis.set_title(name, loc="left", fontsize=10)
            axis.set_xlabel("k")
            axis.set_ylim(0, 1.02)
            axis.xaxis.get_major_locator().set_params(integer=True)
        axes[0, 0].set_ylabel("strictly right")
        axes[0, 0].legend()
    return figure


def bounds(interval: Sequence[float] | None) -> tuple[float, float]:
    """An interval to draw; NaN, which draws nothing, where there is none."""
    return tuple(interval) if interval else (np.nan, np.nan)


def groups_figure(panels: dict[str, Sequence[dict]]) -> Figure:
    """Accuracy before and after in groups of problems, with Wilson intervals and their sizes.

    Args:
        panels: title → rows of `lib.evaluation.breakdowns.by_difficulty` or `by_length`.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(10, 3.2), layout="constrained", sharey=True, squeeze=False
        )
        for (title, rows), axis in zip(panels.items(), axes[0], strict=True):
            for side, color, shift in (("before", GREY, -0.19), ("after", BLUE, 0.19)):
                found = [(i + shift, row[side]) for i, row in enumerate(rows) if row[side]]
                for x, share in found:
                    axis.annotate(share["answers"], (x, 1.01), ha="center", fontsize=7, color=color)
                xs, rates = [x for x, _ in found], [share for _, share in found]
                axis.bar(xs, [r["rate"] for r in rates], 0.36, color=color, label=side)
                axis.errorbar(**_whiskers(xs, rates), color="black", lw=1, capsize=2)
            axis.set_xticks(range(len(rows)), [row["group"] for row in rows], fontsize=8)
            axis.set_title(title, loc="left", fontsize=10)
            axis.set_ylim(0, 1.08)
        axes[0, 0].set_ylabel("greedy answers strictly right")
        axes[0, -1].legend(fontsize=8)
    return figure


def _whiskers(xs: Sequence[float], rates: Sequence[dict]) -> dict[str, Any]:
    """Where to draw the intervals of rates (`lib.stats.rate`), for `errorbar`."""
    middle = np.array([rate["rate"] for rate in rates])
    # A rate of 0 or 1 lies on its interval's bound, but for rounding.
    below = np.maximum(0, middle - [rate["low"] for rate in rates])
    above = np.maximum(0, [rate["high"] for rate in rates] - middle)
    return dict(x=xs, y=middle, yerr=[below, above], fmt="none")


def calibration_figure(found: dict[str, Sequence[dict]]) -> Figure:
    """Reliability of the majority vote: share of agreeing samples against how often it is right.

    Args:
        found: model → rows of `lib.evaluation.breakdowns.calibration`; the size of a point is
            the number of its problems.
    """
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
        axis.plot([0, 1], [0, 1], ":", color="black", lw=1, label="as sure as right")
        for (model, rows), color in zip(found.items(), MODELS, strict=False):
            xs = [row["share"] for row in rows]
            sizes = [12 + 120 * row["answers"] / sum(r["answers"] for r in rows) for row in rows]
            axis.errorbar(**_whiskers(xs, rows), color=color, lw=1, capsize=2)
            axis.plot(xs, [row["rate"] for row in rows], color=color, lw=1, label=model)
            axis.scatter(xs, [row["rate"] for row in rows], s=sizes, color=color)
        axis.set_xlim(0, 1.03)
        axis.set_ylim(0, 1.03)
        axis.set_xlabel("share of samples that agree with the majority")
        axis.set_ylabel("majority's answer is right (lenient)")
        axis.legend(fontsize=8)
    return figure


def preflight_figure(found: Preflight, samples: Sequence[dict]) -> Figure:
    """How the completions' totals spread, and how often each prompt is answered rightly."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
        left.hist([sample["total"] for sample in samples], bins=20, color=BLUE)
        left.set_xlabel("weighted reward of a completion")
        left.set_title(f"{found.completions} completions", loc="left", fontsize=10)
        right.hist(list(found.pass_rates.values()), bins=np.linspace(0, 1, 11), color=GREEN)
        right.set_xlabel("share of a prompt's completions that are right")
        right.set_title(f"{found.prompts} prompts", loc="left", fontsize=10)
    return figure


def group_figure(group: Sequence[dict], scale: bool = True) -> Figure:
    """What the completions of one prompt earned, and the advantages GRPO makes of it.

    Args:
        group: samples of `lib.preflight`, of one prompt.
        scale: divide by the group's standard deviation, as GRPO does and Dr. GRPO does not.
    """
    rewards_G = np.array([sample["total"] for sample in group])
    advantages_G = rewards_G - rewards_G.mean()
    if scale and len(group) > 1:
        advantages_G = advantages_G / (rewards_G.std(ddof=1) + 1e-4)
    texts = [" ".join(sample["completion"].split())[:36] or "(empty)" for sample in group]
    with plt.rc_context(STYLE):
        size = (10, 1 + 0.3 * len(group))
        figure, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
        left.barh(range(len(group)), rewards_G, color=BLUE)
        left.axvline(rewards_G.mean(), color="black", linewidth=1, linestyle="--")
        left.set_yticks(range(len(group)), [text.replace("$", r"\$") for text in texts])
        left.set_xlabel("weighted reward (dashed: the group's mean)")
        left.invert_yaxis()
        right.barh(range(len(group)), advantages_G, color=GREEN)
        right.axvline(0, color="black", linewidth=1)
        right.set_xlabel("advantage")
        left.set_title(f"gold answer {group[0]['answer'][:40]}", loc="left", fontsize=10)
    return figure


def memory_bars(need: MemoryPlan) -> Figure:
    """Where a run's memory goes, against what there is."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(9, 1.9), layout="constrained")
        left = 0.0
        for i, (part, size) in enumerate(need.parts.items()):
            axis.barh(0, size, left=left, color=plt.cm.tab10(i), label=f"{part} {size:.2f}")
            left += size
        axis.axvline(need.available, color="black", lw=1.2)
        axis.set_xlim(0, 1.05 * max(need.available, left))
        axis.set_yticks([])
        axis.set_xlabel(f"GiB; the line is {need.where}, {need.available:.1f} GiB")
        axis.legend(ncols=4, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write the figure, and close it: a cell shows it by naming it, not by leaving it open."""
    plt.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path
