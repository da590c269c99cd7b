"""Things to play with in a notebook; each is a thin skin over a function that can be tested."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lib.rewards import score
from lib.sampling import Completion


def component_rows(
    texts: Sequence[str],
    row: Mapping[str, Any],
    rewards: Sequence[Callable],
    weights: Sequence[float],
    scale: bool = True,
) -> list[dict[str, Any]]:
    """What each completion of one group earns: each reward, the weighted total, the advantage.

    Args:
        texts: the completions of one prompt.
        row: the prompt's row (`lib.tasks.make_rows`).
        scale: divide by the group's standard deviation, as GRPO does (Shao et al. 2024, sec.
            4.1.2); Dr. GRPO does not.
    """
    answers = [Completion(text, tuple(text.encode()), "stop") for text in texts]
    scores = score(rewards, [row] * len(texts), answers)
    parts = np.array(list(scores.values()), dtype=float)
    totals = np.nansum(parts * np.asarray(weights, dtype=float)[:, None], axis=0)
    advantages = totals - totals.mean()
    if scale and len(texts) > 1:
        advantages = advantages / (totals.std(ddof=1) + 1e-4)
    return [
        {
            "completion": text,
            **{name: values[i] for name, values in scores.items()},
            "total": round(float(totals[i]), 4),
            "advantage": round(float(advantages[i]), 3),
        }
        for i, text in enumerate(texts)
    ]


def playground(
    texts: Sequence[str],
    row: Mapping[str, Any],
    rewards: Sequence[Callable],
    weights: Sequence[float],
    show: Callable[[list[dict]], Any],
) -> Any:
    """Sliders for the weights and a box for a completion of one's own, over a live table.

    Args:
        texts: completions that are always in the group.
        show: makes what is displayed of the rows (a table).
    """
    import ipywidgets as widgets

    wide, whole = widgets.Layout(width="95%"), {"description_width": "initial"}
    box = widgets.Textarea(value=texts[0], description="completion", layout=wide)
    pick = widgets.Dropdown(options=list(texts), description="or pick", layout=wide)
    sliders = [
        widgets.FloatSlider(
            value=weight,
            min=0,
            max=max(2.0, 2 * weight),
            step=0.05,
            description=f.__name__,
            style=whole,
        )
        for f, weight in zip(rewards, weights, strict=True)
    ]
    scale = widgets.Checkbox(value=True, description="divide by the group's std")
    out = widgets.Output()

    def render(*_: Any) -> None:
        chosen = [slider.value for slider in sliders]
        rows = component_rows([box.value, *texts], row, rewards, chosen, scale.value)
        out.outputs = ()
        out.append_display_data(show(rows))

    pick.observe(lambda change: setattr(box, "value", change["new"]), "value")
    for control in (box, scale, *sliders):
        control.observe(render, "value")
    render()
    return widgets.VBox([box, pick, *sliders, scale, out])


def pick_answer(rows: Sequence[dict], change: str, number: int) -> list[tuple[str, Any]]:
    """One problem of those that changed in this way ("all": of any), as (what, text) rows.

    Args:
        rows: of `lib.evaluation.breakdowns.side_by_side`.
        number: from 0; beyond the last it is the last. No rows where there is no such problem.
    """
    chosen = [row for row in rows if change in ("all", row["change"])]
    return list(chosen[min(number, len(chosen) - 1)].items()) if chosen else []


def answer_viewer(rows: Sequence[dict], show: Callable[[list[tuple[str, Any]]], Any]) -> Any:
    """Two models' answers to a problem, chosen by what changed and by a slider.

    Args:
        rows: of `lib.evaluation.breakdowns.side_by_side`.
        show: makes what is displayed of one problem's rows (a table).
    """
    import ipywidgets as widgets

    counts = Counter(row["change"] for row in rows)
    options = [(f"all ({len(rows)})", "all"), *((f"{k} ({n})", k) for k, n in counts.items())]
    change = widgets.Dropdown(options=options, description="changed")
    number = widgets.IntSlider(min=0, max=len(rows) - 1, description="problem")
    out = widgets.Output()

    def render(*_: Any) -> None:
        number.max = (counts[change.value] or len(rows)) - 1
        out.outputs = ()
        out.append_display_data(show(pick_answer(rows, change.value, number.value)))

    for control in (change, number):
        control.observe(render, "value")
    render()
    return widgets.VBox([widgets.HBox([change, number]), out])
