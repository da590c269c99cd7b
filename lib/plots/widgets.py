"""Things to play with in a notebook; each is a thin skin over a function that can be tested.

An executed page has no kernel to play with: it shows what the widget showed first.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import pandas as pd

from lib.engines import Completion
from lib.plots import advantages
from lib.rewards import paid_parts, score, totals
from lib.runs import Run, read_rollouts, rollout_steps

EXECUTED = "GRPO_WORKING_DIR"  # set where `lib.suite` executes a notebook, with nobody to play
STATIC_ROWS = 8  # that an executed page shows
SORTS = ("advantage", "total", "tokens")  # of the rollout browser; besides, any reward's name


@dataclass
class Playable:
    """An ipywidgets widget, and in an executed page (or where widgets do not work) what it shows
    first, a table as `lib.notebook.table` makes it."""

    box: Any
    static: Any

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        text = "Run this cell in a notebook to play."
        html = getattr(self.static, "_repr_html_", lambda: "")()
        page = {"text/html": f"{html}<p><em>{text}</em></p>", "text/plain": text}
        return page if EXECUTED in os.environ else self.box._repr_mimebundle_() | page


def playable(
    controls: Sequence[Any], choose: Callable[[], Any], show: Callable[[Any], Any], box: Any
) -> Playable:
    """Shows the rows chosen beneath `box`, and anew whenever one of its controls changes."""
    out, rows = widgets.Output(), choose()
    first = show(rows)
    out.append_display_data(first)

    def render(*_: Any) -> None:
        out.outputs = ()
        out.append_display_data(show(choose()))

    for control in controls:
        control.observe(render, "value")
    static = first if len(rows) <= STATIC_ROWS else show(rows[:STATIC_ROWS])
    return Playable(widgets.VBox([*box, out]), static)


# --- rewards of completions ---------------------------------------------------------------------


def component_rows(
    texts: Sequence[str],
    row: Mapping[str, Any],
    rewards: Sequence[Callable],
    weights: Sequence[float],
    scale: bool = True,
) -> list[dict[str, Any]]:
    """What each completion of one prompt's group earns: each reward times its weight, their total,
    and the advantage (`lib.plots.advantages`)."""
    answers = [Completion(text, tuple(text.encode()), "stop") for text in texts]
    scores = score(rewards, [row] * len(texts), answers)
    weight_of = dict(zip(scores, weights, strict=True))
    totals_G = totals(scores, weights)
    advantages_G, rows = advantages(totals_G, scale), []
    for i, text in enumerate(texts):
        parts = paid_parts({name: values[i] for name, values in scores.items()}, weight_of)
        sums = {"total": round(float(totals_G[i]), 4), "advantage": round(advantages_G[i], 3)}
        rows.append({"completion": text, **parts, **sums})
    return rows


def playground(
    texts: Sequence[str],
    row: Mapping[str, Any],
    rewards: Sequence[Callable],
    weights: Sequence[float],
    show: Callable[[list[dict]], Any],
) -> Playable:
    """Sliders for the weights and a box for a completion of one's own (at first `texts[0]`), over
    what `show` makes of the group's rows (a table)."""
    wide, full = widgets.Layout(width="95%"), {"description_width": "initial"}
    box = widgets.Textarea(value=texts[0], description="completion", layout=wide)
    pick = widgets.Dropdown(options=list(texts), description="or pick", layout=wide)
    sliders = []
    for reward, weight in zip(rewards, weights, strict=True):
        name, most = reward.__name__, max(2.0, 2 * weight)
        given = dict(max=most, step=0.05, description=name, style=full)
        sliders.append(widgets.FloatSlider(weight, **given))
    scale = widgets.Checkbox(value=True, description="divide by the group's std")
    pick.observe(lambda change: setattr(box, "value", change["new"]), "value")

    def choose() -> list[dict]:
        now = [slider.value for slider in sliders]
        return component_rows([box.value, *texts[1:]], row, rewards, now, scale.value)

    return playable([box, scale, *sliders], choose, show, [box, pick, *sliders, scale])


# --- answers before and after -------------------------------------------------------------------


def answer_viewer(rows: Sequence[dict], show: Callable[[list[tuple[str, Any]]], Any]) -> Playable:
    """Two models' answers to a problem (`lib.evaluation.comparison.side_by_side`), chosen by what
    changed and by a slider; `show` displays its (what, text) rows (as a table)."""
    counts = Counter(row["change"] for row in rows)
    options = [(f"all ({len(rows)})", None), *((f"{k} ({n})", k) for k, n in counts.items())]
    change = widgets.Dropdown(options=options, description="changed")
    number = widgets.IntSlider(min=1, max=max(1, len(rows)), description="problem")

    def choose() -> list[tuple[str, Any]]:
        chosen = [row for row in rows if change.value in (None, row["change"])]
        number.max = max(1, len(chosen))
        return list(chosen[number.value - 1].items()) if chosen else []

    return playable([change, number], choose, show, [widgets.HBox([change, number])])


# --- a training run's completions ---------------------------------------------------------------


def browse(
    rollouts: Sequence[Mapping],
    prompt: str | None = None,
    sort: str = "advantage",
    descending: bool = True,
    weights: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """One step's completions (`lib.runs.read_rollouts`) as rows of a table.

    Args:
        prompt: the id of one prompt; None: all.
        sort: advantage, total, tokens, or a reward's name; rows without it come last.
        weights: of the rewards by name, so that the parts shown add up to the total.
    """
    chosen = [row for row in rollouts if prompt in (None, row["id"])]
    keys = [row[sort] if sort in SORTS else row["rewards"].get(sort) for row in chosen]
    order = pd.Series(keys, dtype=float).sort_values(ascending=not descending, kind="stable")
    return [
        {
            "question": row["question"],
            "gold": row["answer"],
            "completion": row["completion"] + (" ✂" if row["truncated"] else ""),
            **paid_parts(row["rewards"], weights or {}),
            **{name: row[name] for name in ("total", "advantage", "tokens")},
        }
        for row in [chosen[place] for place in order.index]
    ]


def two_steps(
    left: Sequence[Mapping], right: Sequence[Mapping], **choice: Any
) -> list[dict[str, Any]]:
    """Two steps' completions, each in the order of `browse`, the first beside the first.

    Where both steps drew the same prompt, `prompt=` sets like beside like; else the rows have
    in common their rank alone.
    """
    columns = []
    for side in filter(None, (left, right)):
        rows = pd.DataFrame(browse(side, **choice), columns=["question", "completion", "total"])
        columns.append(rows.add_suffix(f", step {side[0]['step']}"))
    table = pd.concat(columns, axis=1).astype(object)
    table.insert(0, "rank", range(1, len(table) + 1))
    return [row.dropna().to_dict() for _, row in table.iterrows()]


def browser(run: Run, show: Callable[[list[dict]], Any]) -> Playable:
    """Menus for step, prompt and order over what `show` makes of the rows (a table); a second step
    stands beside the first."""
    steps = rollout_steps(run)
    entries = run.recorded().get("config", {}).get("rewards", {})
    weights = {
        re.split("[:.]", name)[-1]: entry.get("weight", 1.0) if isinstance(entry, dict) else entry
        for name, entry in entries.items()
    }
    step = widgets.SelectionSlider(options=steps, value=steps[-1], description="step")
    second = [("—", None), *((str(number), number) for number in steps)]
    other = widgets.Dropdown(options=second, description="beside step")
    prompt = widgets.Dropdown(options=[("all", None)], description="prompt")
    names = list(read_rollouts(run, steps[0])[0]["rewards"])
    sort = widgets.Dropdown(options=[*SORTS, *names], description="sort by")
    descending = widgets.Checkbox(value=True, description="highest first")
    controls = dict(prompt=prompt, sort=sort, descending=descending)

    def offer_prompts(*_: Any) -> None:
        seen = {row["id"]: row["question"] for row in read_rollouts(run, step.value)}
        prompt.options = [("all", None), *((text, key) for key, text in seen.items())]

    def choose() -> list[dict]:
        choice = {name: control.value for name, control in controls.items()}
        rows = read_rollouts(run, step.value)
        if other.value is None:
            return browse(rows, **choice, weights=weights)
        return two_steps(rows, read_rollouts(run, other.value), **choice)

    step.observe(offer_prompts, "value")
    offer_prompts()
    everything = [step, other, *controls.values()]
    return playable(everything, choose, show, everything)
