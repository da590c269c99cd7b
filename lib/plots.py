"""Figures of a run; each function draws on axes of its own and returns the figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from lib.evaluation import scores_of
from lib.memory import Estimate
from lib.preflight import Preflight
from lib.stats import mean_with_error, pass_at_k

BLUE, ORANGE, GREEN, GREY = "#3b6fb6", "#d9772b", "#4b9b5d", "#8a8a8a"
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


def comparison_bars(table: dict[str, dict[str, Any]]) -> Figure:
    """Before and after per metric, and beside it the paired difference with its interval."""
    shares = {name: row for name, row in table.items() if max(row["before"], row["after"]) <= 1}
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
        low, high = np.array([row["interval_95"] for row in rows]).T
        right.errorbar(
            middle, y, xerr=[middle - low, high - middle], fmt="o", color=BLUE, capsize=3
        )
        right.axvline(0, color="black", lw=0.8)
        right.set_title("paired difference, 95 % interval", loc="left", fontsize=10)
    return figure


def pass_at_k_curves(evaluations: dict[str, Sequence[dict]]) -> Figure:
    """Strict pass@k for every k up to the samples drawn, with its 95 % interval over problems."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
        for (name, records), color in zip(evaluations.items(), (GREY, BLUE, ORANGE), strict=False):
            samples = list(scores_of(records, "sampled", "strict").values())
            n = len(samples[0])
            counts = [int(sum(values)) for values in samples]
            ks = list(range(1, n + 1))
            bands = [mean_with_error(pass_at_k(n, counts, k)) for k in ks]
            low, high = np.array([band.interval for band in bands]).T
            axis.plot(ks, [band.mean for band in bands], "o-", ms=4, color=color, label=name)
            axis.fill_between(ks, low, high, color=color, alpha=0.2, lw=0)
        axis.set_xlabel("k")
        axis.set_ylabel("pass@k, strict")
        axis.set_ylim(0, 1.02)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend()
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


def memory_bars(need: Estimate) -> Figure:
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
