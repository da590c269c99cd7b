"""Figures of several runs: learning curves with bands over seeds, differences with intervals."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from lib.evaluation.runs import accuracy_rows, batches_log, cost_rows, sentences
from lib.plots import BLUE, GREY, ORANGE, POINTS, STYLE, bounds
from lib.plots.curves import smooth
from lib.runs import Run, read_jsonl


def seed_curves(runs: Sequence[Run], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Batches of rollouts, and the smoothed values of each run (a row a run), as far as all go."""
    logs = [batches_log(run) for run in runs]
    length = min(map(len, logs))
    return np.arange(1, length + 1), np.array(
        [smooth([row[key] for row in log[:length]]) for log in logs]
    )


def learning_curves(arms: Mapping[str, Sequence[Run]], key: str = "reward") -> Figure:
    """A panel an arm by share of its budget: mean over seeds, band from lowest to highest.

    The first trained arm is drawn in grey behind the others.
    """
    trained = {name: runs for name, runs in arms.items() if read_jsonl(runs[0].train_log)}
    curves = {name: seed_curves(runs, key) for name, runs in trained.items()}
    columns = min(4, len(curves))
    lines = -(-len(curves) // columns)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            *(lines, columns),
            figsize=(2.6 * columns, 2.1 * lines + 0.4),
            layout="constrained",
            sharey=True,
            squeeze=False,
        )
        first = next(iter(curves))
        for axis, name in zip(axes.flat, curves, strict=False):
            for shown, color in ((first, GREY), (name, BLUE))[name == first :]:
                steps, values_SU = curves[shown]
                done = steps / steps[-1]
                axis.plot(done, values_SU.mean(0), color=color, lw=2)
                axis.fill_between(
                    done, values_SU.min(0), values_SU.max(0), color=color, alpha=0.2, lw=0
                )
            axis.set_title(name, loc="left", fontsize=10)
        for axis in list(axes.flat)[len(curves) :]:
            axis.set_axis_off()
        figure.supxlabel("share of the completions drawn", fontsize=10)
        figure.supylabel(key, fontsize=10)
    return figure


def differences_figure(compared: Sequence[Mapping[str, Any]]) -> Figure:
    """Each arm's difference in accuracy to those compared with, with 95 % intervals."""
    others = dict.fromkeys(key for row in compared for key in row if key.startswith("to "))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            *(1, len(others)),
            figsize=(10, 1 + 0.32 * len(compared)),
            layout="constrained",
            sharey=True,
            squeeze=False,
        )
        for axis, other in zip(axes[0], others, strict=True):
            for y, row in enumerate(reversed(compared)):
                if other in row:
                    low, high = bounds(row[other]["interval"])
                    axis.plot([low, high], [y, y], color=ORANGE, lw=2)
                    axis.plot(row[other]["difference"], y, "o", color=BLUE)
            axis.axvline(0, color="black", lw=0.8)
            axis.set_title(f"difference {other}, in points", loc="left", fontsize=10)
            axis.xaxis.set_major_formatter(POINTS)
        axes[0, 0].set_yticks(range(len(compared)), [row["arm"] for row in reversed(compared)])
    return figure


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto;
  padding: 0 1rem }}
table {{ border-collapse: collapse }} div {{ overflow-x: auto }}
th, td {{ padding: .25rem .8rem; border-bottom: 1px solid #8886; text-align: right }}
th {{ cursor: pointer }} th:first-child, td:first-child {{ text-align: left }}
th[aria-sort=ascending]::after {{ content: " ▲" }}
th[aria-sort=descending]::after {{ content: " ▼" }}
img {{ max-width: 100%; background: white; border-radius: 4px }}
</style></head><body><h1>{title}</h1>
{claims}
<h2>Held-out accuracy</h2><p>Click on a column to sort by it.</p>{accuracy}
{figures}<h2>Cost</h2>{cost}
<script>
document.querySelectorAll("th").forEach(th => th.onclick = () => {{
  const column = th.cellIndex, up = th.ariaSort != "descending" ? -1 : 1
  th.parentNode.querySelectorAll("th").forEach(other => other.ariaSort = null)
  th.ariaSort = up < 0 ? "descending" : "ascending"
  const key = row => row.cells[column].textContent, body = th.closest("table").tBodies[0]
  const by = (a, b) => {{
    const [x, y] = [parseFloat(key(a)), parseFloat(key(b))]
    return isNaN(x) || isNaN(y) ? key(a).localeCompare(key(b)) : x - y
  }}
  body.append(...[...body.rows].sort((a, b) => up * by(a, b)))
}})
</script></body></html>
"""


def write_comparison(run: Run, compared: Sequence[Mapping[str, Any]]) -> Path:
    """`comparison.html`: claims, figures, and tables that a click on a column sorts; no network."""
    import pandas as pd

    def table(rows: Sequence[Mapping[str, Any]]) -> str:
        frame = pd.DataFrame(list(rows), dtype=object)
        text = frame.to_html(index=False, border=0, na_rep="", float_format="{:.1f}".format)
        return f"<div>{text}</div>"

    figures = ""
    for name, says in (
        ("learning_curves", "Reward while each arm trains: mean and range over seeds."),
        ("differences", "Differences with 95 % intervals: what crosses zero may be chance."),
    ):
        file = run.figures / f"{name}.png"
        if file.is_file():
            data = base64.b64encode(file.read_bytes()).decode()
            figures += f'<h2>{says}</h2><img alt="{says}" src="data:image/png;base64,{data}">'
    page = run.folder / "comparison.html"
    claims = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences(compared))
    page.write_text(
        PAGE.format(
            title=html.escape(f"{run.folder.name}: runs side by side"),
            claims=claims,
            accuracy=table(accuracy_rows(compared)),
            figures=figures,
            cost=table(cost_rows(compared)),
        ),
        encoding="utf-8",
    )
    return page
