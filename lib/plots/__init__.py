"""Figures of a run, each returned whole, and `widgets` to play with.

Text is no smaller than 10 points on a figure 10 inches wide, which pages show about 950 pixels
wide. Data come in as the notebooks have them; nothing is read from disk here.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.memory import MemoryPlan
from lib.preflight import Preflight
from lib.stats import Estimate

BLUE, ORANGE, GREEN, GREY = "#3b6fb6", "#d9772b", "#4b9b5d", "#8a8a8a"
COLORS = (BLUE, ORANGE, GREEN, GREY, *plt.cm.Dark2.colors)
MODELS = (GREY, BLUE, ORANGE)  # base, trained, another
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "font.size": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
}
POINTS = plt.FuncFormatter(lambda x, _: f"{100 * x:+.0f}" if round(100 * x) else "0")
styled = plt.rc_context(STYLE)  # a decorator: what a function draws, it draws in this style


def grid_of_axes(
    *titles: str, height: float, width: float = 10, columns: int = 0, **options: Any
) -> tuple[Figure, list[Axes]]:
    """Axes beside each other (or `columns` in a row), a title over each.

    Args:
        height, width: of a row, in inches.
        options: of `plt.subplots`.
    """
    columns = columns or len(titles)
    rows = math.ceil(len(titles) / columns)
    options |= dict(figsize=(width, height * rows), squeeze=False)
    figure, axes = plt.subplots(rows, columns, **options)
    for axis, title in zip_longest(axes.flat, titles):
        axis.set_axis_off() if title is None else axis.set_title(title)
    return figure, list(axes.flat)[: len(titles)]


def save(figure: Figure, path: Path) -> Path:
    """Write the figure, and close it: a cell shows it by naming it, not by leaving it open."""
    plt.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def bounds(interval: Sequence[float] | None) -> tuple[float, float]:
    """An interval to draw; NaN, which draws nothing, where there is none."""
    return tuple(interval) if interval else (np.nan, np.nan)


# --- before training ----------------------------------------------------------------------------


@styled
def memory_bars(need: MemoryPlan) -> Figure:
    """Where a run's memory goes, against what there is."""
    figure, [axis] = grid_of_axes("", height=2.2)
    parts = {f"{part} {size:.2f}": size for part, size in need.parts.items()}
    pd.DataFrame([parts]).plot.barh(stacked=True, ax=axis, color=plt.cm.tab10.colors)
    axis.axvline(need.available, color="black", lw=1.2)
    axis.set_xlim(0, 1.05 * max(need.available, sum(parts.values())))
    axis.set_yticks([])
    axis.set_xlabel(f"GiB; the line is {need.where}, {need.available:.1f} GiB")
    axis.legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


@styled
def preflight_figure(found: Preflight, samples: Sequence[dict]) -> Figure:
    """How the completions' totals spread, and how often each prompt is answered rightly."""
    titles = f"{found.completions} completions", f"{found.prompts} prompts"
    figure, (left, right) = grid_of_axes(*titles, height=3)
    left.hist([sample["total"] for sample in samples], bins=20, color=BLUE)
    left.set_xlabel("weighted reward of a completion")
    right.hist(list(found.pass_rates.values()), bins=np.linspace(0, 1, 11), color=GREEN)
    right.set_xlabel("share of a prompt's completions that are right")
    return figure


def advantages(rewards_G: np.ndarray, scale: bool = True) -> np.ndarray:
    """How far each reward lies above its group's mean; `scale` divides by the group's standard
    deviation, as GRPO does (Shao et al. 2024, sec. 4.1.2) and Dr. GRPO does not."""
    centred_G = rewards_G - rewards_G.mean()
    return centred_G / (rewards_G.std(ddof=1) + 1e-4) if scale and len(rewards_G) > 1 else centred_G


@styled
def group_figure(group: Sequence[dict], scale: bool = True) -> Figure:
    """What the completions of one prompt (`lib.preflight`) earned, and their advantages."""
    rewards_G = np.array([sample["total"] for sample in group])
    advantages_G = advantages(rewards_G, scale)
    texts = [" ".join(sample["completion"].split())[:36] or "(empty)" for sample in group]
    figure, (left, right) = grid_of_axes(
        *(f"gold answer {group[0]['answer'][:40]}", ""), height=1 + 0.3 * len(group), sharey=True
    )
    left.barh(range(len(group)), rewards_G, color=BLUE)
    left.axvline(rewards_G.mean(), color="black", lw=1, ls="--")
    left.set_yticks(range(len(group)), [text.replace("$", r"\$") for text in texts])
    left.set_xlabel("weighted reward (dashed: the group's mean)")
    left.invert_yaxis()
    right.barh(range(len(group)), advantages_G, color=GREEN)
    right.axvline(0, color="black", lw=1)
    right.set_xlabel("advantage")
    return figure


# --- evaluation ---------------------------------------------------------------------------------


@styled
def comparison_bars(table: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Before and after per metric, and beside it the paired difference with its interval."""
    shares = {name: row for name, row in table.items() if row.get("share", True)}
    rows, y = list(shares.values()), np.arange(len(shares))[::-1]
    figure, (left, right) = grid_of_axes(
        "share of held-out problems",
        "paired difference in points, 95 % interval",
        height=1.6 + 0.45 * len(rows),
        sharey=True,
    )
    left.barh(y + 0.18, [r["before"] for r in rows], 0.34, color=GREY, label="before")
    left.barh(y - 0.18, [r["after"] for r in rows], 0.34, color=BLUE, label="after")
    left.set_yticks(y, [name.replace("_", " ") for name in shares])
    left.set_xlim(0, 1)
    figure.legend(ncols=2, loc="outside lower left")
    middle = np.array([row["difference"] for row in rows])
    low, high = np.array([bounds(row["interval_95"]) for row in rows]).T
    right.errorbar(middle, y, xerr=[middle - low, high - middle], fmt="o", color=BLUE, capsize=3)
    right.axvline(0, color="black", lw=0.8)
    right.xaxis.set_major_formatter(POINTS)
    return figure


@styled
def several_answers_figure(curves: Mapping[str, Mapping[str, Sequence[Estimate]]]) -> Figure:
    """pass@k and majority@k (`lib.evaluation.compare.curves_of_k` of each model), a line with its
    95 % band each model."""
    figure, axes = grid_of_axes(*next(iter(curves.values())), height=3.3, sharey=True)
    for axis in axes:
        for (model, lines), color in zip(curves.items(), MODELS, strict=False):
            line = lines[axis.get_title(loc="left")]
            ks = np.arange(1, len(line) + 1)
            low, high = np.array([bounds(point.interval) for point in line]).T
            axis.plot(ks, [point.mean for point in line], "o-", ms=4, color=color, label=model)
            axis.fill_between(ks, low, high, color=color, alpha=0.2, lw=0)
        axis.set(xlabel="k", ylim=(0, 1.02), ylabel="strictly right")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend()
    return figure


@styled
def groups_figure(rows: Sequence[dict]) -> Figure:
    """Accuracy before and after in groups of problems (`lib.evaluation.compare.by_difficulty`),
    with Wilson intervals and their sizes."""
    figure, [axis] = grid_of_axes("", height=3.4, width=8)
    for side, color, shift in (("before", GREY, -0.19), ("after", BLUE, 0.19)):
        xs, rates = np.arange(len(rows)) + shift, [row[side] for row in rows]
        for x, share in zip(xs, rates, strict=True):
            axis.annotate(share["answers"], (x, 1.01), ha="center", fontsize=9, color=color)
        middle = np.array([share["rate"] for share in rates])
        axis.bar(xs, middle, 0.36, color=color, label=side)
        # A rate of 0 or 1 lies on its interval's bound, but for rounding.
        below = np.maximum(0, middle - [share["low"] for share in rates])
        above = np.maximum(0, [share["high"] for share in rates] - middle)
        axis.errorbar(xs, middle, yerr=[below, above], fmt="none", color="black", lw=1, capsize=2)
    axis.set_xticks(range(len(rows)), [row["group"] for row in rows])
    axis.set(ylim=(0, 1.1), ylabel="greedy answers strictly right")
    axis.legend(ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    return figure
