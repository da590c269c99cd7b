"""The completions of a training run, to look through: by step, prompt and reward.

Every completion is a row of `rollouts/step_NNNNN.jsonl`. The functions above the line choose
and arrange rows; the widgets below it only call them.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from lib.runs import Run, read_rollouts, rollout_steps

SORTS = ("advantage", "total", "tokens")  # besides these, any reward's name


def browse(
    rollouts: Sequence[Mapping],
    prompt: str | None = None,
    sort: str = "advantage",
    descending: bool = True,
    positive: bool | None = None,
) -> list[dict[str, Any]]:
    """One step's completions as rows of a table.

    Args:
        prompt: the id of one prompt; None: all.
        sort: advantage, total, tokens, or a reward's name; rows without it come last.
        positive: True keeps rows whose value sorted by is above zero, False those at or below.
    """

    def order(row: Mapping) -> tuple[bool, float]:
        value = _value(row, sort)
        return np.isnan(value), -value if descending else value

    kept = {True: lambda v: v > 0, False: lambda v: v <= 0, None: lambda v: True}[positive]
    chosen = [row for row in rollouts if prompt in (None, row["id"]) and kept(_value(row, sort))]
    return [_shown(row) for row in sorted(chosen, key=order)]


def _value(row: Mapping, name: str) -> float:
    value = row[name] if name in SORTS else row["rewards"].get(name)
    return np.nan if value is None else value


def _shown(row: Mapping) -> dict[str, Any]:
    return {
        "question": row["question"],
        "gold": row["answer"],
        "completion": row["completion"] + (" ✂" if row["truncated"] else ""),
        **row["rewards"],
        "total": row["total"],
        "advantage": row["advantage"],
        "tokens": row["tokens"],
    }


def side_by_side(
    left: Sequence[Mapping], right: Sequence[Mapping], sort: str = "advantage", **choice: Any
) -> list[dict[str, Any]]:
    """Two steps' completions, each in the order of `browse`, the first beside the first.

    Where both steps drew the same prompt, `prompt=` sets like beside like; else the rows have
    in common their rank alone.
    """
    ranked = [
        [_column(row, side[0]["step"], sort) for row in browse(side, sort=sort, **choice)]
        for side in (left, right)
        if side
    ]
    return [
        {"rank": rank} | {name: value for row in rows for name, value in (row or {}).items()}
        for rank, rows in enumerate(zip_longest(*ranked), 1)
    ]


def _column(row: Mapping, step: int, sort: str) -> dict[str, Any]:
    return {f"{name}, step {step}": row.get(name) for name in ("question", "completion", sort)}


# ---------------------------------------------------------------------------------------------


def browser(run: Run, show: Callable[[list[dict]], Any]) -> Any:
    """Menus for step, prompt and order over a table; a second step stands beside the first.

    Args:
        show: makes what is displayed of the rows (a table).
    """
    import ipywidgets as widgets

    steps = rollout_steps(run)
    step = widgets.SelectionSlider(options=steps, value=steps[-1], description="step")
    beside = [("—", None), *((str(number), number) for number in steps)]
    other = widgets.Dropdown(options=beside, description="beside step")
    prompt = widgets.Dropdown(options=[("all", None)], description="prompt")
    names = list(read_rollouts(run, steps[0])[0]["rewards"])
    sort = widgets.Dropdown(options=[*SORTS, *names], description="sort by")
    descending = widgets.Checkbox(value=True, description="highest first")
    positive = widgets.Dropdown(
        options=[("all", None), ("above 0", True), ("0 and below", False)], description="only"
    )
    controls = (step, other, prompt, sort, descending, positive)
    out = widgets.Output()

    def offer_prompts(*_: Any) -> None:
        seen = {row["id"]: row["question"] for row in read_rollouts(run, step.value)}
        prompt.options = [("all", None), *((text, key) for key, text in seen.items())]

    def render(*_: Any) -> None:
        choice = dict(
            prompt=prompt.value,
            sort=sort.value,
            descending=descending.value,
            positive=positive.value,
        )
        rows = read_rollouts(run, step.value)
        if other.value is None:
            found = browse(rows, **choice)
        else:
            found = side_by_side(rows, read_rollouts(run, other.value), **choice)
        out.outputs = ()
        out.append_display_data(show(found))

    step.observe(offer_prompts, "value")
    offer_prompts()
    for control in controls:
        control.observe(render, "value")
    render()
    return widgets.VBox([*controls, out])
