"""Every number of a comparison, computed again from the stored answers: no model, no torch.

    python -m lib.suite regrade RUN     # a run's name, its folder, or a folder's http(s) address

Each stored answer is graded by today's rules, each score counted and compared with the one that is
written. A file of answers that has been changed since the comparison was made is named.
"""

import json
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lib.config import ROOT
from lib.errors import BadInput
from lib.evaluation.compare import compare_records, digest, summarize
from lib.runs import read_json, read_jsonl
from lib.tasks import Problem, ReasoningGym, Task, get_format, get_task, judge

COMPARISONS = ("comparison", "side_comparison")
NUMBERS = ("before", "after", "difference", "stderr", "interval_95", "p_value", "problems")
SUMMARIES = ("scores", "outcomes", "truncated", "tokens")  # of one evaluation


def main(arguments: Sequence[str]) -> int:
    """Prints what was recomputed, and each thing that differs; 1 where one does, else 0."""
    if len(arguments) != 1:
        print("Give one run: its name, its folder, or the http(s) address of its folder.")
        return 2
    complaints = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            evals = _evals_of(arguments[0], Path(folder))
            for name in COMPARISONS:
                if (evals / f"{name}.json").is_file():
                    differ, sentence = check(evals, name)
                    complaints += differ
                    print(sentence)
    except BadInput as error:
        print(error)
        return 2
    print(*complaints, sep="\n", end="\n" if complaints else "")
    return int(bool(complaints))


def check(evals: Path, name: str = "comparison") -> tuple[list[str], str]:
    """What of `<name>.json` is not what the stored answers give, and what was looked at.

    Args:
        evals: a run's folder of evaluations.

    Raises:
        BadInput: a file is missing, or its task cannot be made here.
    """
    stored = read_json(evals / f"{name}.json")
    complaints, logs, protocol, summed = [], [], {}, 0
    for file, written in next(iter(stored.values()))["answers"].items():
        log = evals / file
        if not log.is_file():
            raise BadInput(f"There is no {file} in {evals}: its answers are needed.", "no-answers")
        if digest(log) != written:
            complaints.append(
                f"{file} is not the file that {name}.json was made of (its SHA-256 differs): it "
                f"was changed or exchanged afterwards."
            )
        summary = read_json(log.with_suffix(".json"))
        protocol = summary["protocol"]
        records = read_jsonl(log)
        logs.append(_graded_again(records, protocol))
        complaints += _other_grades(file, records, logs[-1])
        written = {key: summary[key] for key in SUMMARIES if key in summary}
        rules = SimpleNamespace(**protocol, eval_k=_ks(written.get("scores", {})))
        again = {k: v for k, v in summarize(logs[-1], rules).items() if k in written}
        complaints += _other_numbers(log.with_suffix(".json").name, written, again)
        summed += len(dict(_numbers(again)))
    rows = compare_records(*logs, _ks(stored), protocol["prompt_format"])
    rows, written = (
        {row: {k: v for k, v in some[row].items() if k in NUMBERS} for row in some if row in stored}
        for some in (rows, stored)
    )
    complaints += _other_numbers(f"{name}.json", written, rows)
    return complaints, (
        f"{name}.json: {sum(map(len, rows.values()))} numbers in {len(rows)} scores computed from "
        f"{sum(map(len, logs)):,} stored answers, and {summed} of their summaries"
        f"{'' if complaints else ', each as it is written'}."
    )


def regrade(
    records: Sequence[dict], problems: Sequence[Problem], task: Task, tag: str | None
) -> list[dict]:
    """The same answers graded by other rules, or by those of today, without the model.

    Args:
        records: of an evaluation: `read_jsonl(run.evals / "base.jsonl")`.
        problems: those that were asked (and may be more), with the gold answers to grade by.
        task: whose `grade` decides; another task than the evaluation's brings other rules.
        tag: what strict looks into; None lets it search free text, as lenient does.
    """
    by_id = {problem.id: problem for problem in problems}
    return [
        r | judge(task, by_id[r["id"]], r["completion"], r["finish_reason"] == "length", tag)
        for r in records
    ]


def _graded_again(records: Sequence[dict], protocol: dict[str, Any]) -> list[dict]:
    """By the evaluation's own task; its problems are what the records hold of them."""
    task = get_task(protocol["task"], protocol["task_config"])
    if isinstance(task, ReasoningGym):  # its scorers look into the generated entry
        problems = task.load("test")
    else:
        problems = [
            Problem(r["id"], r["question"], r["expected"], {}, r.get("kind", task.kind))
            for r in records
        ]
    return regrade(records, problems, task, get_format(protocol["prompt_format"]).answer_tag)


def _other_grades(file: str, stored: Sequence[dict], again: Sequence[dict]) -> list[str]:
    for score in ("strict", "lenient", "format", "rouge1", "rougeL"):
        both = zip(stored, again, strict=True)
        if changed := [a for a, b in both if score in b and not _same(a.get(score), b[score])]:
            first = f"{changed[0]['id']}, sample {changed[0]['sample']}"
            return [
                f"{file}: {len(changed)} answers are graded differently now ({score}; the first "
                f"is {first})."
            ]
    return []


def _ks(rows: dict) -> list[int]:
    """The k of `pass@k_strict` and the like."""
    return [*dict.fromkeys(int(row[5:].split("_")[0]) for row in rows if row.startswith("pass@"))]


def _numbers(rows: Any, *place: str) -> Iterator[tuple[str, Any]]:
    """Where a number or an interval stands in nested rows ("format, mean"), and it."""
    if not isinstance(rows, dict):
        yield ", ".join(place), rows
        return
    for key, value in rows.items():
        yield from _numbers(value, *place, key)


def _other_numbers(file: str, stored: dict, again: dict) -> list[str]:
    written, computed = dict(_numbers(stored)), dict(_numbers(json.loads(json.dumps(again))))
    extra = [
        f"{file}: {place} does not come from the answers."
        for place in written
        if place not in computed
    ]
    return extra + [
        f"{file}: {place}: {written.get(place)} is written, the answers give {value}."
        for place, value in computed.items()
        if not _same(written.get(place), value)
    ]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b) <= 1e-9
    return a == b


def _evals_of(source: str, download: Path) -> Path:
    """The evaluations of a run by its name, folder or address (then fetched into `download`)."""
    if source.startswith(("http://", "https://")):
        return _fetched(source, download)
    for folder in (Path(source).expanduser(), ROOT / "outputs" / source, ROOT / source):
        for evals in (folder / "evals", folder):
            if (evals / "comparison.json").is_file():
                return evals
    raise BadInput(
        f"There is no evals/comparison.json in {source}: run 04_pass_at_k_eval for it first.",
        "no-comparison",
    )


def _fetched(address: str, folder: Path) -> Path:
    """comparison.json and the files it names, by their names under <address>/evals/."""

    def fetch(name: str) -> Path:
        if Path(name).name != name:
            raise BadInput(f"{address} names a file outside its folder: {name}.", "outside")
        try:
            with urllib.request.urlopen(f"{base}/{name}", timeout=30) as answer:
                (folder / name).write_bytes(answer.read())
        except (urllib.error.URLError, TimeoutError) as error:
            raise BadInput(f"{base}/{name} cannot be fetched: {error}.", "fetch") from error
        return folder / name

    base = f"{address.rstrip('/').removesuffix('/evals')}/evals"
    rows = read_json(fetch("comparison.json"))
    for name in next(iter(rows.values()))["answers"]:
        fetch(name)
        fetch(f"{name.removesuffix('.jsonl')}.json")
    return folder
