"""Figures of a run, each returned whole, and `widgets` to play with.

Text is no smaller than 10 points on a figure 10 inches wide, which pages show about 950 pixels
wide. Data come in as the notebooks have them; nothing is read from disk here.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lib.memory import MemoryPlan
from lib.preflight import Preflight
from lib.process import duration
from lib.rewards import paid_parts
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
POINTS = plt.FuncFormatter(lambda x, _: f"{100 * x:+.3g}" if round(100 * x, 6) else "0")
styled = plt.rc_context(STYLE)  # a decorator: what a function draws, it draws in this style


def grid_of_axes(
    *titles: str, height: float, columns: int = 0, **options: Any
) -> tuple[Figure, list[Axes]]:
    """Axes beside each other (or `columns` in a row), a title over each.

    Args:
        height: of a row, in inches.
        options: of `plt.subplots`.
    """
    columns = columns or len(titles)
    rows = math.ceil(len(titles) / columns)
    options |= dict(figsize=(10, height * rows), squeeze=False)
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
    """How the completions' totals spread, and how often each prompt is answered rightly (where an
    answer can be right)."""
    titles = [f"{found.completions} completions"]
    titles += [f"{found.prompts} prompts"] if found.pass_rates else []
    figure, axes = grid_of_axes(*titles, height=3)
    axes[0].hist([sample["total"] for sample in samples], bins=20, color=BLUE)
    axes[0].set_xlabel("weighted reward of a completion")
    for axis in axes[1:]:
        axis.hist(list(found.pass_rates.values()), bins=np.linspace(0, 1, 11), color=GREEN)
        axis.set_xlabel("share of a prompt's completions that are right")
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
    texts = [" ".join(sample["completion"].split()) or "(empty)" for sample in group]
    texts = [text if len(text) <= 36 else f"{text[:35]}…" for text in texts]
    figure, (left, right) = grid_of_axes(
        *(f"gold answer: {group[0]['answer'][:40]}", ""), height=1 + 0.3 * len(group), sharey=True
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


# --- training ------------------------------------------------------------------------------------


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
    held_out = {"heldout/strict": "strict", "heldout/lenient": "lenient"}
    wanted = [
        Panel("reward", "reward", {"reward": "total", **each}),
        Panel("held-out accuracy", "share", held_out),
        Panel("signal and limits", "share", {**signal, **cut}),
        Panel("completion length", "tokens", {"completions/mean_length": ""}),
        Panel("entropy", "nats a token", {"entropy": ""}),
        Panel("KL to the reference", "nats a token", {"kl": ""}),
    ]
    held = {key for row in log for key, value in row.items() if value is not None}
    return [panel for panel in wanted if held & panel.lines.keys()]


def as_drawn(log: Sequence[dict], weights: Mapping[str, float]) -> list[dict]:
    """The log with each reward as it counts in the total, under that name; and with a row for step
    0, of what was measured before it."""
    first = {key: value for key, value in log[0].items() if "_before/" in key}
    before = {key.replace("_before", ""): value for key, value in first.items()}
    rows = [{"step": 0, **before}] if before else []
    for row in log:
        means = {key: key.split("/")[1] for key in row if re.match("rewards/.*/mean$", key)}
        parts = paid_parts({name: row[key] for key, name in means.items()}, weights)
        others = {key: value for key, value in row.items() if key not in means}
        rows.append(others | {f"rewards/{name}/mean": value for name, value in parts.items()})
    return rows


@styled
def training_curves(
    log: Sequence[dict], title: str = "", weights: Mapping[str, float] | None = None
) -> Figure:
    """Every panel by optimizer step: each value pale, its mean over the latest steps in colour."""
    log = as_drawn(log, weights or {})
    shown = panels(log)
    titles = [panel.title for panel in shown]
    figure, axes = grid_of_axes(*titles, height=3, columns=2, sharex=True)
    for axis, panel in zip(axes, shown, strict=True):
        _draw(axis, panel, log)
    axes[max(0, len(shown) - 2)].tick_params(labelbottom=True)  # none beneath it, where odd
    _whole_numbers(axes[0].xaxis)  # and those that share its steps
    figure.supxlabel("optimizer step", fontsize=12)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    return figure


def _draw(axis: Axes, panel: Panel, log: Sequence[dict]) -> None:
    for i, (key, label) in enumerate(panel.lines.items()):
        points = [(row["step"], row[key]) for row in log if row.get(key) is not None]
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        color = COLORS[i % len(COLORS)]
        if len(points) > len(log) / 2 and not key.startswith("heldout/"):
            _smoothed(axis, steps, values, color, label)
        else:  # measured now and then: each point counts, also beneath another
            axis.plot(steps, values, color=color, lw=1)
            axis.plot(steps, values, "o", ms=4 + 2 * i, zorder=3 - i, color=color, label=label)
    axis.set_ylabel(panel.unit)
    if panel.unit == "share":
        axis.set_ylim(-0.02, 1.02)
    if len(panel.lines) > 1:
        axis.legend()


def _smoothed(axis: Axes, steps, values, color, label: str = "", window: int = 5) -> None:
    """Each step's value pale, and the mean of the latest ones in colour."""
    axis.plot(steps, values, color=color, lw=1, alpha=0.3)
    axis.plot(steps, smooth(values, window), color=color, lw=2, label=label)


def smooth(values: Sequence[float], window: int = 5) -> np.ndarray:
    """The mean of each value with those up to `window` − 1 before it."""
    return pd.Series(values, dtype=float).rolling(window, min_periods=1).mean().to_numpy()


def _whole_numbers(axis: Any) -> None:
    axis.set_major_locator(MaxNLocator(integer=True))


def pace(log: Sequence[dict], steps: int) -> str:
    """How far a run of that many steps is: "step 20 of 36, 2 min 20 s left, 281 tokens/s".

    Time and tokens (of prompts and completions) are those of the latest ten steps.
    """
    last, first = log[-1], log[-min(len(log), 11)]
    done, spent = last["step"] - first["step"], last["seconds"] - first["seconds"]
    parts = [f"step {last['step']} of {steps}"]
    if last["step"] >= steps:
        parts.append(f"{duration(last['seconds'])} in all")
    elif done:
        parts.append(f"{duration(spent / done * (steps - last['step']))} left")
    if done and spent > 0 and "num_tokens" in last and "num_tokens" in first:
        parts.append(f"{(last['num_tokens'] - first['num_tokens']) / spent:,.0f} tokens/s")
    return ", ".join(parts)


# --- evaluation ---------------------------------------------------------------------------------


@styled
def comparison_bars(table: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Before and after per metric, and beside it the paired difference with its interval."""
    shares = {name: row for name, row in table.items() if row.get("share", True)}
    rows, y = list(shares.values()), np.arange(len(shares))[::-1]
    figure, (left, right) = grid_of_axes(
        "before and after, on held-out problems",
        "paired difference in points, 95% interval",
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
    """pass@k and majority@k (`lib.evaluation.comparison.curves_of_k` of each model), a line with
    its 95% band each model."""
    figure, axes = grid_of_axes(*next(iter(curves.values())), height=3.3, sharey=True)
    for axis in axes:
        for (model, lines), color in zip(curves.items(), MODELS, strict=False):
            line = lines[axis.get_title(loc="left")]
            ks = np.arange(1, len(line) + 1)
            low, high = np.array([bounds(point.interval) for point in line]).T
            axis.plot(ks, [point.mean for point in line], "o-", ms=4, color=color, label=model)
            axis.fill_between(ks, low, high, color=color, alpha=0.2, lw=0)
        axis.set(xlabel="k", ylim=(0, 1.02), ylabel="strictly right")
        _whole_numbers(axis.xaxis)
    axes[0].legend()
    return figure


@styled
def groups_figure(rows: Sequence[dict]) -> Figure:
    """Accuracy before and after in groups of problems (`lib.evaluation.comparison.by_difficulty`),
    with Wilson intervals and their sizes."""
    figure, [axis] = grid_of_axes("", height=3.4)
    for side, color, shift in (("before", GREY, -0.19), ("after", BLUE, 0.19)):
        xs, rates = np.arange(len(rows)) + shift, pd.DataFrame([row[side] for row in rows])
        axis.bar(xs, rates["rate"], 0.36, color=color, label=side)
        axis.vlines(xs, rates["low"], rates["high"], color="black", lw=1)
    names = [f"{row['group']}\nproblems: {row['before']['answers']}" for row in rows]
    axis.set_xticks(range(len(rows)), names)
    if not rows[0]["group"].startswith("level"):
        axis.set_xlabel("how often the base model's samples are right, in any form")
    axis.set(ylim=(0, 1.02), ylabel="greedy answers strictly right")
    axis.legend()
    return figure


# --- several runs -------------------------------------------------------------------------------


@styled
def learning_curves(arms: Mapping[str, Sequence[Sequence[dict]]]) -> Figure:
    """The reward by share of the budget, a panel an arm: mean over seeds, band from lowest to
    highest. The first trained arm is drawn in grey behind the others.

    Args:
        arms: of `lib.evaluation.runs.logs_of`; an arm whose logs are empty is left out.
    """
    curves = {}
    for name, logs in arms.items():
        if length := min(map(len, logs)):
            rewards = [[row["reward"] for row in log[:length]] for log in logs]
            curves[name] = np.array([smooth(values) for values in rewards])
    figure, axes = grid_of_axes(*curves, height=2.5, columns=min(3, len(curves)), sharey=True)
    first = next(iter(curves))
    for axis, name in zip(axes, curves, strict=True):
        for shown, color in ((first, GREY), (name, BLUE))[name == first :]:
            values_SU = curves[shown]
            done = np.arange(1, values_SU.shape[1] + 1) / values_SU.shape[1]
            axis.plot(done, values_SU.mean(0), color=color, lw=2)
            axis.fill_between(done, values_SU.min(0), values_SU.max(0), color=color, alpha=0.2)
    figure.supxlabel("share of the completions drawn", fontsize=11)
    figure.supylabel("reward", fontsize=11)
    return figure


@styled
def differences_figure(compared: Sequence[Mapping[str, Any]]) -> Figure:
    """Each arm's difference in accuracy to those compared with, with 95% intervals."""
    others = [key for row in compared if (key := f"to {row['arm']}") in compared[-1]]
    titles = [f"difference {other}, in points" for other in others]
    figure, axes = grid_of_axes(*titles, height=1 + 0.35 * len(compared), sharey=True)
    for axis, other in zip(axes, others, strict=True):
        for y, row in enumerate(reversed(compared)):
            if other in row:
                axis.plot(bounds(row[other]["interval"]), [y, y], color=ORANGE, lw=2)
                axis.plot(row[other]["difference"], y, "o", color=BLUE)
        axis.axvline(0, color="black", lw=0.8)
        axis.xaxis.set_major_formatter(POINTS)
    axes[0].set_yticks(range(len(compared)), [row["arm"] for row in reversed(compared)])
    axes[0].set_ylim(-0.5, len(compared) - 0.5)
    return figure


# --- a learned reward ---------------------------------------------------------------------------


@styled
def training_figure(log: Sequence[dict]) -> Figure:
    """Loss and accuracy of each step's pairs, pale, and their running means."""
    names = {"loss": np.log(2), "accuracy": 0.5}
    figure, axes = grid_of_axes(*(f"{name} on training pairs" for name in names), height=3)
    for axis, (name, chance) in zip(axes, names.items(), strict=True):
        _smoothed(axis, [row["step"] for row in log], [row[name] for row in log], BLUE, window=10)
        axis.axhline(chance, color="black", lw=1, ls=":", label="a coin")
        axis.set_xlabel("optimizer step")
        _whole_numbers(axis.xaxis)
    axes[0].legend()
    return figure


@styled
def scores_figure(chosen: Sequence[float], rejected: Sequence[float]) -> Figure:
    """How the scores of preferred and rejected answers spread, and their margins pair by pair."""
    margins = np.subtract(chosen, rejected)
    titles = "held-out answers", f"pairs, {np.mean(margins > 0):.0%} of them above zero"
    figure, (left, right) = grid_of_axes(*titles, height=3)
    bins = np.histogram_bin_edges([*chosen, *rejected], bins=24)
    left.hist(rejected, bins=bins, color=ORANGE, alpha=0.6, label="rejected")
    left.hist(chosen, bins=bins, color=BLUE, alpha=0.6, label="preferred")
    left.set_xlabel("score")
    left.legend()
    right.hist(margins, bins=24, color=GREEN)
    right.axvline(0, color="black", lw=0.8)
    right.set_xlabel("score of preferred − score of rejected")
    for axis in (left, right):
        _whole_numbers(axis.yaxis)
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
    table = from_start(rollouts)
    titles = "rewards, in σ from the start", "tokens", "repeated word triples"
    figure, axes = grid_of_axes(*titles, height=3.2)
    for name, color in zip(table.drop(columns=[*titles[1:]]), COLORS, strict=False):
        label = f"{name}, {'paid' if name in paid else 'watched'}"
        _smoothed(axes[0], table.index, table[name], color, label)
    for axis, name in zip(axes[1:], titles[1:], strict=True):
        _smoothed(axis, table.index, table[name], GREY)
    for axis in axes:
        _whole_numbers(axis.xaxis)
    axes[0].legend()
    figure.supxlabel("optimizer step", fontsize=11)
    return figure


def from_start(rollouts: Sequence[Sequence[dict]]) -> pd.DataFrame:
    """By step: each reward's mean, in standard deviations from those of the first fifth, and the
    completions' "tokens" and "repeated word triples"."""
    rows = [row for step in rollouts for row in step]
    values = pd.DataFrame([row["rewards"] for row in rows], dtype=float)
    start = values[: sum(map(len, rollouts[: max(1, len(rollouts) // 5)]))]
    # Rounded, as equal rewards spread by rounding alone, and rounding is no slope.
    spread = start.std(ddof=0).round(9).replace(0, 1)
    table = (values - start.mean()) / spread
    table["tokens"] = [row["tokens"] for row in rows]
    table["repeated word triples"] = [repeated(row["completion"]) for row in rows]
    return table.astype(float).groupby([row["step"] for row in rows]).mean().round(6)


def repeated(text: str) -> float:
    """The share of a text's word triples that have occurred before in it."""
    words = text.split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0
