"""One page of a run, as a paper has it: what can be claimed, the curve, answers, cost, and all that
is needed to repeat it; and a page of all answers side by side, to which its figures link."""

import base64
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from lib.adapters import public_name
from lib.config import Config
from lib.evaluation.breakdowns import side_by_side
from lib.evaluation.compare import HEADER, comparison_rows, greedy_records, verdict
from lib.evaluation.runs import accuracy_rows, cost_rows, sentences
from lib.process import duration
from lib.runs import Run, read_json, read_jsonl

SHOWN = 5  # answers of each kind
# nbconvert's page is for light screens alone, cuts wide tables, and sets sources in body type.
PAGES = """
.jp-OutputArea-output { overflow-x: auto }
.jp-RenderedMarkdown pre {
  font: var(--jp-code-font-size, 13px)/var(--jp-code-line-height, 1.3) var(--jp-code-font-family)
}
@media (prefers-color-scheme: dark) {
  html { filter: invert(0.92) hue-rotate(180deg); background: white }
  img { filter: invert(1) hue-rotate(180deg) }
}"""
CHANGES = {
    "fixed": "For the better",
    "broken": "For the worse",
    "both": "Right before and after",
    "neither": "Wrong before and after",
}


def write_report(run: Run, config: Config) -> str:
    """Write `report.html` from what the notebooks left; what to print at the end of the run."""
    table = read_json(run.evals / "comparison.json")
    pairs = _pairs(run)
    pages = [_export(path) for path in sorted(run.notebooks.glob("*.ipynb"))]
    warned = _json(run.folder / "alarms.json", [])
    certificate = _json(run.evals / "certificate.json", None)
    record, log = run.recorded(), read_jsonl(run.train_log)
    settings = Config.model_construct(**config.model_dump() | record.get("config", {}))
    page = _template().render(
        title=f"{run.folder.name}: {public_name(settings).split('/')[-1]} on {settings.task}",
        config=settings,
        stale=[what for what in run.stale() if what != "report"],
        verdict=verdict(table),
        alarms=[alarm["sentence"] for alarm in warned],
        figures={p.stem: _figure(p) for p in sorted(run.figures.glob("*.png"))},
        curve_sentence=_about_curve(log),
        header=HEADER,
        rows=comparison_rows(table),
        certificate=certificate,
        forms=_certificate_table(certificate) if certificate else None,
        examples=random.Random(0).sample(pairs, min(2 * SHOWN, len(pairs))),
        changes=CHANGES,
        pairs_of=lambda kind: [pair for pair in pairs if pair["change"] == kind],
        shown=SHOWN,
        cost=_cost(run, record, log),
        stages=record.get("finished", {}),
        duration=duration,
        pages=[page.name for page in pages],
        origins=record.get("origins", {}),
        record=record,
        evaluation=_json(run.evals / "base.json", {}).get("protocol", {}),
    )
    run.report.write_text(page, encoding="utf-8")
    run.made("report")
    curve = run.figures / "training.png"
    said = [pd.DataFrame(comparison_rows(table), columns=HEADER).to_string(index=False), ""]
    said += [verdict(table), *(f"While it trained: {alarm['sentence']}" for alarm in warned), ""]
    if curve.is_file():
        said.append(f"Training curve: {run.shown(curve)}")
    return "\n".join([*said, f"Report (open it in a browser): {run.shown(run.report)}"])


def write_answers(run: Run, rows: Sequence[dict[str, Any]]) -> Path:
    """Every problem with both models' greedy answers beside each other: `side_by_side.html`.

    Args:
        rows: of `lib.evaluation.breakdowns.side_by_side`.
    """
    page = run.evals / "side_by_side.html"
    page.parent.mkdir(exist_ok=True)
    counts = Counter(row["change"] for row in rows)
    kinds = {kind: (label, counts[kind]) for kind, label in CHANGES.items() if counts[kind]}
    title = f"{run.folder.name}: answers side by side"
    page.write_text(_template().render(title=title, pairs=rows, kinds=kinds), encoding="utf-8")
    return page


def write_comparison(run: Run, compared: Sequence[dict[str, Any]]) -> Path:
    """`comparison.html`: claims, figures, and tables that a click on a column sorts; no network.

    Args:
        compared: of `lib.evaluation.runs.compare_arms`.
    """

    def table(rows: Sequence[dict[str, Any]]) -> str:
        frame = pd.DataFrame(rows, dtype=object)
        form = "{:.1f}".format
        return frame.to_html(index=False, border=0, na_rep="", float_format=form)

    figures = {
        "learning_curves": "Reward while each arm trains: mean and range over seeds.",
        "differences": "Differences with 95 % intervals: what crosses zero may be chance.",
    }
    page = run.folder / "comparison.html"
    text = _template("comparison").render(
        title=f"{run.folder.name}: runs side by side",
        claims=sentences(compared),
        accuracy=table(accuracy_rows(compared)),
        figures=[
            (_figure(path), sentence)
            for name, sentence in figures.items()
            if (path := run.figures / f"{name}.png").is_file()
        ],
        cost=table(cost_rows(compared)),
    )
    page.write_text(text, encoding="utf-8")
    return page


def _template(name: str = "report") -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    environment.undefined = jinja2.StrictUndefined
    return environment.get_template(f"{name}.html.jinja")


def _json(path: Path, missing: Any) -> Any:
    return read_json(path) if path.is_file() else missing


def _pairs(run: Run) -> list[dict[str, Any]]:
    """The answers side by side; none where the answers compared are not the two of 04."""
    logs = [run.evals / f"{name}.jsonl" for name in ("base", "trained")]
    if not all(log.is_file() for log in logs):
        return []
    before, after = map(read_jsonl, logs)
    if greedy_records(before).keys() != greedy_records(after).keys():
        return []
    return side_by_side(before, after)


def _about_curve(log: Sequence[dict]) -> str:
    """What the curve says, from its first and last fifth."""
    rewards = [row["reward"] for row in log if "reward" in row]
    if not rewards:
        return ""
    part = max(1, len(rewards) // 5)
    first, last = (sum(some) / part for some in (rewards[:part], rewards[-part:]))
    steps = f"{part} steps" if part > 1 else "step"
    return (
        f"The mean reward of a step's completions went from {first:.2f} (the first {steps}) to "
        f"{last:.2f} (the last {steps}). These are sampled answers to training prompts; what it is "
        f"worth on held-out problems stands below."
    )


def _figure(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _cost(run: Run, record: dict[str, Any], log: Sequence[dict]) -> list[tuple[str, str]]:
    """What the run took, as far as it is known."""
    stages = record.get("finished", {}).values()
    rows = [("time", duration(sum(stage["seconds"] for stage in stages)))] if stages else []
    if log:
        rows.append(("training steps", f"{log[-1]['step']}"))
        rows.append(("time of training", duration(log[-1]["seconds"])))
        if "num_tokens" in log[-1]:
            rows.append(("tokens trained on", f"{log[-1]['num_tokens']:,.0f}"))
    asked = [_json(run.evals / f"{name}.json", {}) for name in ("base", "trained")]
    if tokens := sum(summary.get("tokens", 0) for summary in asked):
        rows.append(("tokens generated in evaluation", f"{tokens:,}"))
    if stages:
        rows.append(("main memory", f"{max(stage['peak_gib'] for stage in stages):.1f} GiB"))
    if "training_gpu_gib" in record:
        rows.append(("GPU memory in training", f"{record['training_gpu_gib']:.1f} GiB"))
    if "energy_wh" in record:
        rows.append(("energy of the GPU", f"{record['energy_wh']:.0f} Wh"))
    return rows


def _certificate_table(certificate: dict[str, Any]) -> pd.DataFrame:
    """As 05 shows it, with all that is equal or differs in one column."""
    from lib.export.certificate import readable

    frame = pd.DataFrame(readable(certificate))
    checks = ["template", "tokens", "stops", "weights"]
    differ = [[name for name in checks if row[name] == "DIFFERS"] for _, row in frame.iterrows()]
    frame.insert(
        6, ", ".join(checks), [f"DIFFER: {', '.join(d)}" if d else "equal" for d in differ]
    )
    frame.insert(1, "verdict", frame.pop("verdict"))
    return frame.drop(columns=[*checks, "computed by"])


def _export(notebook: Path) -> Path:
    """The executed notebook as a page beside it."""
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    # Else each piece of an answer that was streamed has a line of its own.
    exporter = HTMLExporter(preprocessors=[CoalesceStreamsPreprocessor])
    page, _ = exporter.from_filename(str(notebook))
    target = notebook.with_suffix(".html")
    target.write_text(
        page.replace("</head>", f"<style>{PAGES}</style></head>", 1), encoding="utf-8"
    )
    return target
