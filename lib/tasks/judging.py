r"""The grades of one answer: strict and lenient, and what lm-evaluation-harness would say.

    >>> problem = Problem("1", "What is 1 + 2?", "3")
    >>> judge(Task(), problem, "<answer>3</answer>", truncated=False, tag="answer")["strict"]
    True

The harness' task `gsm8k` (version 3) takes the number after the first "####" (strict-match) or
the last number of the text (flexible-extract), and compares strings: 18.00 is not 18, and "18."
is read as 18. Its two scores are here as they are there, to compare with published figures;
`lib.answers` is what this suite trusts. Their prompt has five examples whose answers end in
"#### 18" (prompt format "hashes", shots 5).
"""

import re
from typing import Any

from lib.tasks import Problem, Task, get_format, summary_scores

_AFTER_HASHES = re.compile(r"#### (-?[0-9.,]+)")
_ANY_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
# Taken out of answer and gold before they are compared, one after the other.
_IGNORED = (",", r"\$", r"(?s).*#### ", r"\.$")

HARNESS_SCORES = ("strict_match", "flexible_extract")


def judge(
    task: Task, problem: Problem, text: str, truncated: bool, tag: str | None
) -> dict[str, Any]:
    """How one completion is graded: strict (only inside the tag) and lenient, and why.

    outcome is right, truncated, unparseable or wrong, by the lenient rule: an answer that was
    cut off is not a wrong one. A summary has `summary_scores` instead of right or wrong; a number
    has the harness' two scores as well.
    """
    strict = task.grade(problem, text, tags=tag)
    if strict.correct is None:
        outcome = "truncated" if truncated else "finished"
        return summary_scores(text, problem.answer) | {"outcome": outcome}
    lenient = task.grade(problem, text) if tag else strict
    outcome = "wrong" if lenient.extracted is not None else "unparseable"
    if truncated:
        outcome = "truncated"
    grades = {
        "extracted": lenient.extracted,
        "strict": strict.correct,
        "lenient": lenient.correct,
        "format": strict.extracted is not None,
        "outcome": "right" if lenient.correct else outcome,
        "why": strict.why,
    }
    return grades | harness_scores(text, problem.answer) if problem.kind == "number" else grades


def harness_scores(text: str, gold: str) -> dict[str, bool]:
    """Whether each filter finds the gold answer in a completion, as the harness decides it.

    >>> harness_scores("That makes $18.\\n#### 18.00", "18")
    {'strict_match': False, 'flexible_extract': False}
    """
    numbers = (_AFTER_HASHES.findall(text)[:1], _ANY_NUMBER.findall(text)[-1:])
    return {
        name: bool(answers) and _bare(answers[0]) == _bare(gold)
        for name, answers in zip(HARNESS_SCORES, numbers, strict=True)
    }


def asks_for_hashes(prompt_format: str) -> bool:
    """Whether the prompt asks for "#### 18": without it, strict_match can only be wrong."""
    form = get_format(prompt_format)
    return "####" in f"{form.system} {form.template} {form.example}"


def _bare(answer: str) -> str:
    answer = answer.strip()
    for pattern in _IGNORED:
        answer = re.sub(pattern, "", answer)
    return answer.lower()
