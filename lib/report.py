"""One page of a run: what was claimed, the figures, and all that is needed to repeat it."""

import base64
import html
from pathlib import Path
from typing import Any

from lib.config import Config
from lib.evaluation.compare import HEADER, comparison_rows, verdict
from lib.runs import Run, read_json

HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222 }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right }}
th:first-child, td:first-child {{ text-align: left }}
.text td {{ text-align: left; vertical-align: top; white-space: pre-wrap; max-width: 24rem }}
img {{ max-width: 100% }} .verdict {{ font-size: 1.15rem; font-weight: 600 }}
details {{ margin: 1rem 0 }}
</style></head><body>
<h1>{title}</h1>
"""
PAGE = (
    HEAD
    + """<p class="verdict">{verdict}</p>
{alarms}<h2>Before and after</h2>{table}{figures}
<h2>The run</h2>{stages}{links}
<details><summary>Configuration</summary>{config}</details>
<details><summary>Versions and hardware</summary>{versions}</details>
</body></html>
"""
)


def text_table(header: list[str], rows: list[list[str]]) -> str:
    """A table for a terminal: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: list[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells)

    return "\n".join([line(header), "  ".join("─" * w for w in widths), *map(line, rows)])


def html_table(header: list[str], rows: list[list[Any]]) -> str:
    def cells(row: list[Any], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in row)

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><tr>{cells(header, 'th')}</tr>{body}</table>"


def write_report(run: Run, config: Config) -> str:
    """Write `report.html` from what the notebooks left; what to print at the end of the run."""
    record = read_json(run.record)
    table = read_json(run.evals / "comparison.json")
    rows, sentence = comparison_rows(table), verdict(table)
    stages = record.get("finished", {})
    pages = [_export(path) for path in sorted(run.notebooks.glob("*.ipynb"))]
    links = " · ".join(f'<a href="notebooks/{p.name}">{p.stem}</a>' for p in pages)
    answers = [f'<a href="evals/{p.name}">{p.stem}</a>' for p in run.evals.glob("*.html")]
    alarms = run.folder / "alarms.json"
    warned = [alarm["sentence"] for alarm in read_json(alarms)] if alarms.is_file() else []
    page = PAGE.format(
        alarms="".join(f"<p>While it trained: {html.escape(text)}</p>" for text in warned),
        title=html.escape(f"{config.run_name}: {config.model} on {config.task}"),
        verdict=html.escape(sentence),
        table=html_table(HEADER, rows),
        figures="".join(_figure(path) for path in sorted(run.figures.glob("*.png"))),
        stages=html_table(
            ["notebook", "seconds", "peak GiB"],
            [[name, stage["seconds"], stage["peak_gib"]] for name, stage in stages.items()],
        ),
        links=f"<p>As executed: {links}</p><p>Answers: {' · '.join(answers)}</p>",
        config=html_table(
            ["key", "value", "from"],
            [[key, value, config.origin(key)] for key, value in config.model_dump().items()],
        ),
        versions=html_table(
            ["what", "which"],
            [
                *record["versions"].items(),
                *record["hardware"].items(),
                ("commit", record["commit"]),
            ],
        ),
    )
    run.report.write_text(page, encoding="utf-8")
    curve = run.figures / "training.png"
    shown = [text_table(HEADER, rows), "", sentence]
    shown += [f"While it trained: {text}" for text in warned]
    if curve.is_file():
        shown.append(f"Reward curve: {run.shown(curve)}")
    return "\n".join([*shown, f"Report: {run.shown(run.report)}"])


def write_answers(run: Run, rows: list[dict[str, Any]]) -> Path:
    """Every problem with both models' greedy answers beside each other: `side_by_side.html`.

    Args:
        rows: of `lib.evaluation.breakdowns.side_by_side`.
    """
    page = run.evals / "side_by_side.html"
    page.parent.mkdir(exist_ok=True)
    table = html_table(list(rows[0]), [list(row.values()) for row in rows])
    head = HEAD.format(title="Answers side by side")
    page.write_text(f'{head}<div class="text">{table}</div></body></html>', encoding="utf-8")
    return page


def _figure(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    title = path.stem.replace("_", " ")
    return f'<h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{data}">'


def _export(notebook: Path) -> Path:
    """The executed notebook as a page beside it."""
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter().from_filename(str(notebook))
    target = notebook.with_suffix(".html")
    target.write_text(page, encoding="utf-8")
    return target
