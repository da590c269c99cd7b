"""Where the answer stands in a completion.

Looked for in this order, each place only where it holds something readable: <answer> tags, the
last \\boxed{…}, the last "#### …", what follows the last "the answer is" (or "Answer:", "option",
…), and at last the last number, formula or letter. What comes after an end-of-turn token is not
read, nor what comes before </think> if anything comes after it.

Every look is at a piece of bounded length or is one pass of C code over the text, so the time is
linear in the length for any input, thousands of open braces included.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator

from lib.answers.numerals import read_number
from lib.answers.readers import (
    MAX_ANSWER,
    formula_in,
    last_formula,
    last_letter,
    last_number,
    last_words,
    letter_in,
    nothing_else,
    number_in,
    without_prose,
    words_in,
)

MAX_TRIES = 50  # boxes or phrases that are looked at, from the last one back

Found = tuple[str, str] | tuple[None, None]  # the answer and where it was found

_READERS = {
    "number": (number_in, last_number),
    "math": (formula_in, last_formula),
    "choice": (letter_in, last_letter),
    "text": (words_in, last_words),
}


def find_answer(text: str | None, kind: str, lists: bool = False) -> Found:
    """The answer in free text and where: "tags", "boxed", "hashes", "phrase" or "last".

    ``lists`` takes boxes that are joined by "and" or a comma as one answer, not the last alone.
    """
    if not isinstance(text, str):
        return None, None
    text = _final_part(text)
    if kind == "text" and (text.rstrip().endswith("</think>") or "<think>" in text):
        return None, None  # any words of the thinking would do
    inside = inside_tags(text, "answer")
    if inside is not None and inside.strip():
        answer = tagged_answer(inside, kind, lists)
        return (answer, "tags") if answer else (None, None)
    read, last = _READERS[kind]
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
    if kind == "number" and read_number(inside) is not None:
        return inside
    if len(inside) > MAX_ANSWER:
        return None
    for _, places in _marks(inside, lists):
        answers = [a for a in (_READERS[kind][0](p, "tags") for p in places) if a is not None]
        if answers:
            alike = {read_number(answer) if kind == "number" else answer for answer in answers}
            return answers[0] or None if len(alike) == 1 else None
    return _unmarked(inside, kind)


def bare_answer(answer: str | None, kind: str, lists: bool = False) -> str | None:
    """An answer that may still stand in its text ("… #### 18", a sentence), without that text."""
    if not isinstance(answer, str) or not answer.strip():
        return None
    answer = answer.strip()
    if kind == "number" and read_number(answer) is not None:
        return answer
    if _MARK.search(answer):
        return find_answer(answer, kind, lists)[0]
    return _unmarked(answer, kind)


def _unmarked(answer: str, kind: str) -> str | None:
    answer = answer[-MAX_ANSWER:]
    return without_prose(answer) if kind == "math" else _READERS[kind][0](answer, "tags") or None


def _marks(text: str, lists: bool) -> Iterator[tuple[str, Iterator[str]]]:
    """Each kind of mark, best first, with the places that such marks point at, last first."""
    if _MARK.search(text):
        yield "boxed", _boxed(text, lists)
        yield "hashes", _after_hashes(text)
        yield "phrase", _after_phrases(text)


_MARK = re.compile(r"\\f?box|####|answer|ans\b|option|choice|\bA:|</think>", re.IGNORECASE)
_TURN_END = re.compile(r"<\|(?:im_end|im_start|endoftext|eot_id|end_of_text)\|>|</s>|<end_of_turn>")


def _final_part(text: str) -> str:
    turn_end = _TURN_END.search(text, 1)
    if turn_end:
        text = text[: turn_end.start()]
    answer = text.rpartition("</think>")[2]
    return answer if answer.strip() else text


# --- places -------------------------------------------------------------------------------------


def inside_tags(text: str | None, tag: str) -> str | None:
    """What the last complete <tag>…</tag> after any thinking holds, None where there is none."""
    if not isinstance(text, str):
        return None
    text = text.rpartition("</think>")[2]
    start = text.rfind(f"<{tag}>", 0, max(text.rfind(f"</{tag}>"), 0))
    if start < 0:
        return None
    start += len(tag) + 2
    return text[start : text.index(f"</{tag}>", start)]


_BOX = re.compile(r"\\f?box(?:ed)?[ \n]?\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# What joins two boxes into one list: a comma, "and", "or" or nothing, with a few words and LaTeX.
_JOINT = re.compile(r"(?:[A-Za-z]{1,9} ){0,5}(?:,|,? ?(?:and|or)|)(?: [A-Za-z]_?\d? ?=)?")
_LATEX_NOISE = re.compile(r"[\s$\\()\[\]{}]+")


def _boxed(text: str, lists: bool) -> Iterator[str]:
    """The contents of the boxes that close, from the last back; with ``lists``, joined ones."""
    group: list[str] = []
    next_start = len(text)
    for box in reversed(deque(_BOX.finditer(text), MAX_TRIES)):
        close = closing_brace(text, box.end())
        if close < 0 or (group and close >= next_start):
            continue  # never closes, or holds the box that was just read
        if group and not (lists and _is_joint(text[close + 1 : next_start])):
            yield ", ".join(group)
            group = []
        content = text[box.end() : close].strip()
        if content and content not in group:
            group.insert(0, content)
        next_start = box.start()
    if group:
        yield ", ".join(group)


def _is_joint(between: str) -> bool:
    between = between.replace("\\text", " ").replace("\\quad", " ")
    return len(between) < 60 and bool(_JOINT.fullmatch(_LATEX_NOISE.sub(" ", between).strip()))


def closing_brace(text: str, start: int) -> int:
    """Where the group that is open at ``start`` closes; -1 if not within an answer's length."""
    depth = 1
    for brace in _BRACE.finditer(text, start, start + MAX_ANSWER):
        if brace[0] in "{}":
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                return brace.start()
    return -1


def _after_hashes(text: str) -> Iterator[str]:
    if "####" in text:
        yield text.rpartition("####")[2][:MAX_ANSWER].strip().partition("\n")[0]


_PHRASE_WORD = re.compile(r"(?<![a-z])(?:answers?|ans|option|choice)(?![a-z])", re.IGNORECASE)
_PHRASE = re.compile(
    r"""[*_)"]{0,4}
    (?:\s(?:to|of|for|in|we|I|here|which|therefore|then|thus|must|rounded|,)\b[^.\n:=]{0,80}?)?
    (?:\s{0,3}[*_]{0,3}
        (?:(?:is|was|are|equals|becomes|(?:will|would|should|must|has\ to)\ be)(?![A-Za-z])
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
