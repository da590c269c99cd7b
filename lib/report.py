"""One page of a run, as a paper has it: what can be claimed, the curve, answers, cost, and all that
is needed to repeat it; and a page of all answers side by side, to which its figures link."""

import base64
import html
import io
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from lib.adapters import data_name, public_name
from lib.config import Config
from lib.evaluation.comparison import HEADER, comparison_rows, greedy_records, side_by_side, verdict
from lib.evaluation.runs import accuracy_rows, cost_rows, sentences
from lib.files import read_json, read_jsonl
from lib.process import duration
from lib.runs import Run

SHOWN = 5  # answers of each kind
# nbconvert's page is for light screens alone, cuts wide tables, breaks printed lines within words,
# sets sources in body type, and takes formulas from the network.
PAGES = """
.jp-OutputArea-output { overflow-x: auto }
.jp-OutputArea-output pre { word-break: normal; overflow-wrap: anywhere }
.jp-RenderedMarkdown pre {
  font: var(--jp-code-font-size, 13px)/var(--jp-code-line-height, 1.3) var(--jp-code-font-family)
}
@media (prefers-color-scheme: dark) {
  html { filter: invert(0.92) hue-rotate(180deg); background: white }
}"""
FORMULA = re.compile(r"`[^`]*`|(?P<mark>\$\$?)(?P<tex>[^$`]+)(?P=mark)")  # or code
CHANGES = {
    "fixed": "For the better",
    "broken": "For the worse",
    "both": "Right before and after",
    "neither": "Wrong before and after",
}


def write_report(run: Run, config: Config) -> str:
    """Write `report.html` from what the notebooks left; what to print at the end of the run."""
    from lib.export.certificate import readable

    table, pairs = read_json(run.evals / "comparison.json"), _pairs(run)
    warned = [alarm["sentence"] for alarm in read_json(run.folder / "alarms.json", [])]
    certificate = read_json(run.evals / "certificate.json", None)
    record, log = run.recorded(), read_jsonl(run.train_log)
    rewards = [row["reward"] for row in log if "reward" in row]
    settings = Config.model_construct(**config.model_dump() | record.get("config", {}))
    page = _template().render(
        title=f"{run.folder.name}: {public_name(settings).split('/')[-1]} on {data_name(settings)}",
        config=settings,
        verdict=verdict(table),
        alarms=warned,
        figures={p.stem: _figure(p) for p in sorted(run.figures.glob("*.png"))},
        rewards=rewards,
        fifth=max(1, len(rewards) // 5),
        header=HEADER,
        rows=comparison_rows(table),
        certificate=certificate,
        forms=pd.DataFrame(readable(certificate)) if certificate else None,
        examples=random.Random(0).sample(pairs, min(2 * SHOWN, len(pairs))),
        changes=CHANGES,
        pairs_of=lambda kind: [pair for pair in pairs if pair["change"] == kind],
        shown=SHOWN,
        cost=_cost(run, record, log),
        stages=record.get("finished", {}),
        duration=duration,
        pages=sorted(path.name for path in run.notebooks.glob("*.html")),
        origins=record.get("origins", {}),
        record=record,
        evaluation=read_json(run.evals / "base.json", {}).get("protocol", {}),
    )
    run.report.write_text(page, encoding="utf-8")
    curve = run.figures / "training.png"
    said = [pd.DataFrame(comparison_rows(table), columns=HEADER).to_string(index=False), ""]
    said += [verdict(table), *(f"While it trained: {sentence}" for sentence in warned), ""]
    said += [f"Training curve: {run.shown(curve)}"] if curve.is_file() else []
    return "\n".join([*said, f"Report (open it in a browser): {run.shown(run.report)}"])


def write_page(notebook: Path) -> None:
    """The executed notebook as a page beside it, which needs no network."""
    import nbformat
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    written = nbformat.read(notebook, as_version=4)
    written.metadata.pop("widgets", None)  # a table stands in the place of each
    for cell in written.cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"!\[([^]]*)\]\(http[^)]*\)", r"\1", cell.source)  # the badge of Colab
            cell.source = FORMULA.sub(_drawn, text)
    # Else each piece of an answer that was streamed has a line of its own.
    exporter = HTMLExporter(preprocessors=[CoalesceStreamsPreprocessor])
    page, _ = exporter.from_notebook_node(written, {"metadata": {"name": notebook.stem}})
    page = re.sub(r'<script src="http[^>]*>\s*</script>', "", page)
    page = page.replace("</head>", f"<style>{PAGES}</style></head>", 1)
    notebook.with_suffix(".html").write_text(page, encoding="utf-8")


def _drawn(found: re.Match) -> str:
    """A formula in TeX as a picture; code, and what Matplotlib cannot draw, as it stands."""
    from matplotlib import mathtext
    from matplotlib.font_manager import FontProperties

    tex, own_line = " ".join((found["tex"] or "").split()), found["mark"] == "$$"
    if not tex:
        return found[0]
    big, picture = tex.replace(r"\frac", r"\dfrac") if own_line else tex, io.BytesIO()
    size = FontProperties(size=11)
    try:
        depth = mathtext.math_to_image(f"${big}$", picture, prop=size, format="svg")
    except ValueError:
        return found[0]
    data = base64.b64encode(picture.getvalue()).decode()
    place = "display: block; margin: 1em" if own_line else f"vertical-align: -{depth}pt"
    source = f"data:image/svg+xml;base64,{data}"
    return f'<img alt="{html.escape(tex)}" style="{place}" src="{source}">'


def write_answers(run: Run, rows: Sequence[dict[str, Any]]) -> Path:
    """Every problem with both models' greedy answers (`lib.evaluation.comparison.side_by_side`)
    beside each other: `side_by_side.html`."""
    page = run.evals / "side_by_side.html"
    page.parent.mkdir(exist_ok=True)
    counts = Counter(row["change"] for row in rows)
    kinds = {kind: (label, counts[kind]) for kind, label in CHANGES.items() if counts[kind]}
    title = f"{run.folder.name}: answers side by side"
    page.write_text(_template().render(title=title, pairs=rows, kinds=kinds), encoding="utf-8")
    return page


def write_comparison(run: Run, compared: Sequence[dict[str, Any]]) -> Path:
    """`comparison.html` of `lib.evaluation.runs.compare_arms`: claims, figures, and tables that a
    click on a column sorts; no network."""

    def table(rows: Sequence[dict[str, Any]]) -> str:
        frame, form = pd.DataFrame(rows, dtype=object), "{:.2f}".format
        return frame.to_html(index=False, border=0, na_rep="", float_format=form)

    figures = {
        "learning_curves": "Reward while each arm trains: mean and range over seeds.",
        "differences": "Differences with 95% intervals: what crosses zero may be chance.",
    }
    files = {run.figures / f"{name}.png": sentence for name, sentence in figures.items()}
    page = run.folder / "comparison.html"
    text = _template("comparison").render(
        title=f"{run.folder.name}: runs side by side",
        claims=sentences(compared),
        accuracy=table(accuracy_rows(compared)),
        figures=[(_figure(file), files[file]) for file in files if file.is_file()],
        cost=table(cost_rows(compared)),
    )
    page.write_text(text, encoding="utf-8")
    return page


def _template(name: str = "report") -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    given = dict(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return jinja2.Environment(loader=loader, **given).get_template(f"{name}.html.jinja")


def _pairs(run: Run) -> list[dict[str, Any]]:
    """The answers side by side; none where the answers compared are not the two of 04."""
    before, after = (read_jsonl(run.evals / f"{name}.jsonl") for name in ("base", "trained"))
    same = greedy_records(before).keys() == greedy_records(after).keys()
    return side_by_side(before, after) if before and same else []


def _figure(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _cost(run: Run, record: dict[str, Any], log: Sequence[dict]) -> list[tuple[str, str]]:
    """What the run took, as far as it is known."""
    stages, last = record.get("finished", {}).values(), log[-1] if log else {}
    asked = [read_json(run.evals / f"{name}.json", {}) for name in ("base", "trained")]
    gigabytes, whole = "{:.1f} GiB".format, "{:,.0f}".format
    rows = (
        ("time", sum(stage["seconds"] for stage in stages), duration),
        ("training steps", last.get("step"), str),
        ("time of training", last.get("seconds"), duration),
        ("tokens trained on", last.get("num_tokens"), whole),
        ("tokens generated in evaluation", sum(each.get("tokens", 0) for each in asked), whole),
        ("main memory", max((stage["peak_gib"] for stage in stages), default=None), gigabytes),
        ("GPU memory in training", record.get("training_gpu_gib"), gigabytes),
        ("energy of the GPU", record.get("energy_wh"), "{:.0f} Wh".format),
    )
    return [(what, form(value)) for what, value, form in rows if value]
