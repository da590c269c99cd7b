"""The verdict on one answer, and on all answers of a log anew.

records = read_jsonl(run.evals / "base.jsonl")
regrade(records, problems, task, tag=None)     # leniently, say; no model is needed
"""

from collections.abc import Sequence
from typing import Any

from lib.evaluation.harness import harness_scores
from lib.tasks import Problem, Task, summary_scores


def judge(
    task: Task, problem: Problem, text: str, truncated: bool, tag: str | None
) -> dict[str, Any]:
    """The verdict on one completion: strict (only inside the tag) and lenient, and why.

    outcome is right, truncated, unparseable or wrong, by the lenient rule: an answer that was
    cut off is not a wrong one. A summary has no verdict but its `summary_scores`; a number has
    also those of lm-evaluation-harness (`lib.evaluation.harness`).
    """
    strict = task.grade(problem, text, tags=tag)
    if strict.correct is None:
        outcome = "truncated" if truncated else "finished"
        return summary_scores(text, problem.answer) | {"outcome": outcome}
    lenient = task.grade(problem, text) if tag else strict
    outcome = "wrong" if lenient.extracted is not None else "unparseable"
    if truncated:
        outcome = "truncated"
    found = {
        "extracted": lenient.extracted,
        "strict": strict.correct,
        "lenient": lenient.correct,
        "format": strict.extracted is not None,
        "outcome": "right" if lenient.correct else outcome,
        "why": strict.why,
    }
    return found | harness_scores(text, problem.answer) if problem.kind == "number" else found


def regrade(
    records: Sequence[dict], problems: Sequence[Problem], task: Task, tag: str | None
) -> list[dict]:
    """The same answers judged by other rules, or by those of today, without the model.

    Args:
        records: of an evaluation: `read_jsonl(run.evals / "base.jsonl")`.
        problems: those that were asked (and may be more), with the gold answers to grade by.
        task: whose `grade` decides; another task than the evaluation's brings other rules.
        tag: what strict looks into; None lets it search free text, as lenient does.
    """
    by_id = {problem.id: problem for problem in problems}
    return [
        record
        | judge(
            task,
            by_id[record["id"]],
            record["completion"],
            record["finish_reason"] == "length",
            tag,
        )
        for record in records
    ]
