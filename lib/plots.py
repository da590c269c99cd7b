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
