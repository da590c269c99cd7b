"""Find the answer in a completion and say whether it is the right one.

    >>> grade("6 + 12 = 18, so she makes $18.00.", "#### 18", "number").correct
    True

Four kinds: ``number`` (GSM8K), ``math`` (MATH, NuminaMath), ``choice`` (AQuA), ``text`` (names and
short phrases). Strict grading looks only inside the last complete ``<answer>…</answer>``; lenient
grading does its best on free text (``lib.answers.extraction`` says where it looks).
``docs/grading.md`` has the table of what counts as equal, and why.

An answer costs microseconds: numbers, fractions, roots, intervals, lists, equations and matrices
are compared here, exactly or by value. What is left goes to math_verify (``lib.answers.symbolic``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lib.answers import numerals
from lib.answers.extraction import bare_answer, find_answer, inside_tags, tagged_answer
from lib.answers.math import is_list, same_math
from lib.answers.readers import arithmetic, same_words
from lib.errors import BadInput

Kind = Literal["number", "math", "choice", "text"]

normalize_number = numerals.normalize_number


@dataclass(frozen=True)
class Grade:
    """What grading found."""

    correct: bool
    extracted: str | None = None  # the answer as it was found
    where: str | None = None  # "tags", "boxed", "hashes", "phrase" or "last"
    why: str | None = None  # why it is not correct; None exactly where it is


def gold_parses(gold: str | None, kind: Kind) -> bool:
    """Whether a gold answer can be read; where it cannot, nothing can be graded against it."""
    answer = bare_answer(gold, _known(kind))
    return answer is not None and (kind != "number" or numerals.read_number(answer) is not None)


def grade(text: str | None, gold: str | None, kind: Kind, tags: str | None = None) -> Grade:
    """Grade a completion against a gold answer.

    ``tags="answer"`` is strict: only the last complete <answer>…</answer> counts. ``tags=None``
    is lenient. ``Grade.why`` is "no tags", "empty tags", "no answer found", "differs", "timed
    out" (math_verify's limit) or "gold not parseable". Raises BadInput for an unknown kind.
    """
    theirs = bare_answer(gold, _known(kind), lists=True)
    if theirs is None or not gold_parses(gold, kind):
        return Grade(False, why="gold not parseable")
    if tags is None:
        mine, where = find_answer(text, kind, lists=_is_list(theirs, kind))
    else:
        inside = inside_tags(text, tags)
        if inside is None or not inside.strip():
            return Grade(False, why="no tags" if inside is None else "empty tags")
        mine, where = tagged_answer(inside, kind, lists=_is_list(theirs, kind)), "tags"
    if mine is None:
        return Grade(False, where=where, why="no answer found")
    same = _same(mine, theirs, kind)
    return Grade(bool(same), mine, where, {True: None, False: "differs", None: "timed out"}[same])


def _known(kind: Kind) -> Kind:
    if kind not in get_args(Kind):
        raise BadInput(
            f"{kind!r} is no kind of answer; use {', '.join(get_args(Kind))}", key="kind"
        )
    return kind


def _is_list(gold: str | None, kind: Kind) -> bool:
    return kind == "math" and gold is not None and is_list(gold)


def _same(mine: str, gold: str, kind: Kind) -> bool | None:
    """Whether two bare answers are the same; None where that could not be decided in time."""
    if kind == "choice":
        return mine == gold
    if kind == "text":
        return same_words(mine, gold)
    if kind == "math":
        return same_math(mine, gold)
    total = arithmetic(mine)
    return numerals.same_number(mine, gold) or (bool(total) and same_math(total, gold))
