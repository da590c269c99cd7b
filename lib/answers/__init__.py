"""Find the answer in a completion and say whether it is the right one.

    >>> grade("6 + 12 = 18, so she makes $18.00.", "#### 18", "number").correct
    True

Four kinds: ``number`` (GSM8K), ``math`` (MATH, NuminaMath), ``choice`` (AQuA), ``text`` (names and
short phrases). Strict grading looks only inside the last complete ``<answer>…</answer>``. Lenient
grading looks into such tags, the last \\boxed{…}, the last "#### …", what follows the last "the
answer is" (or "Answer:", "option", …), each place only where it holds something readable, and at
last for the last number, formula or letter. ``docs/grading.md`` has the table of what counts as
equal, and why.

An answer costs microseconds: every look is at a piece of bounded length or is one pass of C code
over the text, and numbers, formulas, intervals, lists, equations and matrices are compared exactly
or by value.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from lib.answers.math import is_list, same_math
from lib.answers.numerals import normalize_number, other_unit, read_number
from lib.answers.readers import (
    CJK,
    MAX_ANSWER,
    READERS,
    arithmetic,
    nothing_else,
    same_words,
    without_prose,
)
from lib.errors import BadInput

__all__ = [
    "Grade", "Kind", "closing_brace", "gold_parses", "grade", "inside_tags", "normalize_number",
]  # fmt: skip

Kind = Literal["number", "math", "choice", "text"]
Found = tuple[str, str] | tuple[None, None]  # the answer and where it was found

EMPTY_CELLS = ("nan", "NaN", "null", "NULL", "None", "N/A", "#N/A", "<NA>")  # as tables write them
MAX_TRIES = 50  # boxes or phrases that are looked at, from the last one back


@dataclass(frozen=True)
class Grade:
    """What grading found."""

    correct: bool
    extracted: str | None = None  # the answer as it was found
    where: str | None = None  # "tags", "boxed", "hashes", "phrase" or "last"
    why: str | None = None  # why it is not correct; None exactly where it is


def gold_parses(gold: str | None, kind: Kind) -> bool:
    """Whether a gold answer can be read; where it cannot, nothing can be graded against it."""
    return _gold_answer(gold, kind) is not None


def _gold_answer(gold: str | None, kind: Kind) -> str | None:
    """A gold answer without the text that it may still stand in ("… #### 18", a sentence)."""
    if kind not in get_args(Kind):
        hint = ", ".join(get_args(Kind))
        raise BadInput(f"{kind!r} is no kind of answer; use {hint}", key="kind")
    if not isinstance(gold, str) or not gold.strip():
        return None
    marked = _MARK.search(gold)
    answer = find_answer(gold, kind, lists=True)[0] if marked else _unmarked(gold.strip(), kind)
    if answer is None or (answer in EMPTY_CELLS and kind != "text"):
        return None
    return None if kind == "number" and read_number(answer) is None else answer


def grade(text: str | None, gold: str | None, kind: Kind, tags: str | None = None) -> Grade:
    """Grade a completion against a gold answer.

    ``tags="answer"`` is strict: only the last complete <answer>…</answer> counts. ``tags=None``
    is lenient. ``Grade.why`` is "no tags", "empty tags", "no answer found", "differs" or "gold not
    parseable". Raises BadInput for an unknown kind.
    """
    theirs = _gold_answer(gold, kind)
    if theirs is None:
        return Grade(False, why="gold not parseable")
    lists = kind == "math" and is_list(theirs)
    if kind != "text" and isinstance(text, str) and not text.isascii():
        text = _BESIDE_CJK.sub(" ", text).translate(_IN_ASCII)
    if tags is None:
        mine, where = find_answer(text, kind, lists)
    else:
        inside = inside_tags(text, tags)
        if inside is None or not inside.strip():
            return Grade(False, why="no tags" if inside is None else "empty tags")
        mine, where = tagged_answer(inside, kind, lists), "tags"
    if mine is None:
        return Grade(False, where=where, why="no answer found")
    same = mine == gold.strip() or (_same(mine, theirs, kind) and not other_unit(mine, theirs))
    return Grade(same, mine, where, None if same else "differs")


def _same(mine: str, gold: str, kind: Kind) -> bool:
    """Whether two bare answers are the same."""
    if kind == "number":
        return read_number(mine) == read_number(gold) or same_math(arithmetic(mine) or mine, gold)
    return same_math(mine, gold) if kind == "math" else same_words(mine, gold)


# --- the answer in a text -----------------------------------------------------------------------


def find_answer(text: str | None, kind: str, lists: bool = False) -> Found:
    """The answer in free text and where: "tags", "boxed", "hashes", "phrase" or "last".

    Nothing is read after an end-of-turn token, nor before </think> if anything comes after it.
    ``lists`` takes boxes that are joined by "and" or a comma as one answer, not the last alone.
    """
    if not isinstance(text, str):
        return None, None
    if turn_end := _TURN_END.search(text, 1):
        text = text[: turn_end.start()]
    thoughts, _, rest = text.rpartition("</think>")
    if kind == "text" and (("<think>" in rest) or (thoughts and not rest.strip())):
        return None, None  # any words of the thinking would do
    text = rest if rest.strip() else text
    if "\\begin" in text:
        text = _ENVIRONMENT.sub(lambda found: found[0].replace("\n", " "), text)
    inside = inside_tags(text, "answer")
    if inside is not None and inside.strip():
        answer = tagged_answer(inside, kind, lists)
        return (answer, "tags") if answer else (None, None)
    read, last = READERS[kind]
    for where, places in _marks(text, lists):
        for place in places:
            answer = read(place, where)
            if answer is not None:
                return (answer, where) if answer else (None, None)
    bare = nothing_else(text, kind)
    answer = last(text) if bare is None else bare
    return (answer, "last") if answer else (None, None)


def tagged_answer(inside: str, kind: str, lists: bool = False) -> str | None:
    """The one answer inside tags, with a sentence around it or not; None if there are two."""
    inside = inside.strip()
    if len(inside) > MAX_ANSWER:
        return None
    for _, places in _marks(inside, lists):
        answers = [a for a in (READERS[kind][0](p, "tags") for p in places) if a is not None]
        if answers:
            alike = {read_number(answer) if kind == "number" else answer for answer in answers}
            return answers[0] or None if len(alike) == 1 else None
    return _unmarked(inside, kind)


def _unmarked(answer: str, kind: str) -> str | None:
    answer = answer[-MAX_ANSWER:]
    return without_prose(answer) if kind == "math" else READERS[kind][0](answer, "tags") or None


# --- places -------------------------------------------------------------------------------------

# "Answer" in other languages, as "Réponse : 5" and "Die Antwort ist 5" have it.
_ANSWER = "r[eé]ponse|respuesta|risposta|resposta|antwort|ответ|答案|答え|정답"
_MARK = re.compile(
    rf"\\f?box|####|answer|ans\b|option|choice|{_ANSWER}|\bA:|</think>", re.IGNORECASE
)
# Chinese and Japanese put no space around the numbers and letters in a sentence.
_BESIDE_CJK = re.compile(f"(?<=[{CJK}])(?=[!-~])|(?<=[!-~])(?=[{CJK}])")
_IN_ASCII = str.maketrans({"。": ". ", "，": ", ", "、": ", ", "：": ": ", "或": "or", "和": "and"})
_ENVIRONMENT = re.compile(r"\\begin\{\w{1,10}\*?\}.{0,500}?\\end\{", re.DOTALL)  # over lines
_TURN_END = re.compile(r"<\|(?:im_end|im_start|endoftext|eot_id|end_of_text)\|>|</s>|<end_of_turn>")


def _marks(text: str, lists: bool) -> Iterator[tuple[str, Iterator[str]]]:
    """Each kind of mark, best first, with the places that such marks point at, last first."""
    if _MARK.search(text):
        yield "boxed", _boxed(text, lists)
        if "####" in text:
            after = text.rpartition("####")[2][:MAX_ANSWER]
            yield "hashes", iter([after.strip().partition("\n")[0]])
        yield "phrase", _after_phrases(text)


def inside_tags(text: str | None, tag: str) -> str | None:
    """What the last complete <tag>…</tag> after any thinking holds, None where there is none."""
    if not isinstance(text, str):
        return None
    text = text.rpartition("</think>")[2]
    start = text.rfind(f"<{tag}>", 0, max(text.rfind(f"</{tag}>"), 0))
    return None if start < 0 else text[start + len(tag) + 2 :].partition(f"</{tag}>")[0]


_BOX = re.compile(r"\\f?box(?:ed)?[ \n]?\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# What joins two boxes into one list: a comma, "and", "or" or nothing, with a few words and LaTeX.
_JOINT = re.compile(r"(?:[A-Za-z]{1,9} ){0,5}(?:,|,? ?(?:and|or)|)(?: [A-Za-z]_?\d? ?=)?")
_LATEX_NOISE = re.compile(r"(?:\\(?:text\w*|q?quad)|[\s$\\()\[\]{}])+")


def _boxed(text: str, lists: bool) -> Iterator[str]:
    """The contents of the boxes that close, from the last back; with ``lists``, joined ones."""
    group: list[str] = []
    next_start = len(text)
    for box in reversed(deque(_BOX.finditer(text), MAX_TRIES)):
        close = closing_brace(text, box.end())
        if close < 0 or (group and close >= next_start):
            continue  # never closes, or holds the box that was just read
        between = _LATEX_NOISE.sub(" ", text[close + 1 : next_start][:60]).strip()
        if group and not (lists and next_start - close <= 60 and _JOINT.fullmatch(between)):
            yield ", ".join(group)
            group = []
        content = text[box.end() : close].strip()
        if content and content not in group:
            group.insert(0, content)
        next_start = box.start()
    if group:
        yield ", ".join(group)


def closing_brace(text: str, start: int) -> int:
    """Where the group that is open at ``start`` closes; -1 if not within an answer's length."""
    depth = 1
    for brace in _BRACE.finditer(text, start, start + MAX_ANSWER):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return -1


_PHRASE_WORD = re.compile(
    rf"(?<![a-z])(?:answers?|ans\.?|option|choice|{_ANSWER})(?![a-z])", re.IGNORECASE
)
_PHRASE = re.compile(
    r"""[*_)"]{0,4}
    (?:\s(?:to|of|for|in|we|I|here|which|therefore|then|thus|must|rounded|,)\b[^.\n:=]{0,80}?)?
    (?:\s{0,3}[*_]{0,3}
        (?:(?:is|was|are|equals|becomes|(?:will|would|should|must|has\ to)\ be|[是为は은]
            |est?|[éè]|ist|lautet)(?![A-Za-z])
           \s{0,3}[*_]{0,3}[:=]?
          |[:=]|\s-\s)
      |[*_#\ ]{0,5}\n
      |(?=\s\(?[A-J]\b)|(?=\s?\\boxed))
    [*_]{0,3}""",
    re.VERBOSE | re.IGNORECASE,
)


def _after_phrases(text: str) -> Iterator[str]:
    """What follows "the answer is", "Answer:", "option", and a line's "A:", from the last back."""
    for word in reversed(deque(_PHRASE_WORD.finditer(text), MAX_TRIES)):
        phrase = _PHRASE.match(text, word.end())
        if phrase:
            yield text[phrase.end() : phrase.end() + MAX_ANSWER].lstrip(" \t\r\n*_:")
    line = text.rfind("\nA:") + 1
    if text.startswith("A:", line):
        yield text[line + 2 : line + MAX_ANSWER].lstrip()
