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

from lib.numerals import find_numbers, read_number, starts_with_number, unwrap

MAX_ANSWER = 1000  # characters: what is longer is no answer
MAX_TRIES = 50  # boxes or phrases that are looked at, from the last one back

Found = tuple[str, str] | tuple[None, None]  # the answer and where it was found


def find_answer(text: str | None, kind: str) -> Found:
    """The answer in free text and where: "tags", "boxed", "hashes", "phrase" or "last"."""
    if not isinstance(text, str):
        return None, None
    text = _final_part(text)
    read, last = {
        "number": (_number_in, _last_number),
        "math": (_formula_in, _last_formula),
        "choice": (_letter_in, _last_letter),
    }[kind]
    for where, places in (
        ("tags", _tagged(text)),
        ("boxed", _boxed(text, joined=kind == "math")),
        ("hashes", _after_hashes(text)),
        ("phrase", _after_phrases(text)),
    ):
        for place in places:
            answer = read(place, where)
            if answer:
                return answer, where
    answer = last(text)
    return (answer, "last") if answer else (None, None)


_MARKER = re.compile(r"\\f?boxed|####|answer|</think>", re.IGNORECASE)


def bare_answer(answer: str | None, kind: str) -> str | None:
    """An answer that may still stand in its text ("… #### 18", a sentence), without that text."""
    if not isinstance(answer, str) or not answer.strip():
        return None
    answer = answer.strip()
    if kind == "number" and read_number(answer) is not None:
        return answer
    if _MARKER.search(answer):
        return find_answer(answer, kind)[0]
    answer = answer[-MAX_ANSWER:]
    if kind == "math":
        return _without_prose(answer)
    return _number_in(answer, "tags") if kind == "number" else _letter_in(answer, "tags")


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


def _tagged(text: str) -> Iterator[str]:
    inside = inside_tags(text, "answer")
    if inside is not None:
        yield inside[:MAX_ANSWER]


_BOX = re.compile(r"\\f?box(?:ed)?[ \n]?\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# What joins two boxes into one list: a comma, "and", "or" or nothing, with a few words and LaTeX.
_JOINT = re.compile(r"(?:[A-Za-z]{1,9} ){0,5}(?:,|,? ?(?:and|or)|)(?: [A-Za-z]_?\d? ?=)?")
_LATEX_NOISE = re.compile(r"[\s$\\()\[\]{}]+|\\(?:quad|text)")


def _boxed(text: str, joined: bool) -> Iterator[str]:
    """The contents of the boxes that close, from the last back; ``joined`` ones as one list."""
    group: list[str] = []
    next_start = len(text)
    for box in reversed(deque(_BOX.finditer(text), MAX_TRIES)):
        close = _closing_brace(text, box.end())
        if close < 0 or (group and close >= next_start):
            continue  # never closes, or holds the box that was just read
        if group and not (joined and _is_joint(text[close + 1 : next_start])):
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


def _closing_brace(text: str, start: int) -> int:
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
    line = 0 if text.startswith("A:") else text.rfind("\nA:") + 1
    if text.startswith("A:", line):
        yield text[line + 2 : line + MAX_ANSWER].lstrip()


_SENTENCE_END = re.compile(r"\n|(?<!\\)[.!?](?=\s|$|\*|<)|</")
_FORMULA_END = re.compile(r"\n|(?<!\\)[.!?](?=\s{1,3}[A-Z*\\<]|\s{0,9}$|\*|<)|</")


def _clause(text: str, end: re.Pattern[str] = _SENTENCE_END) -> str:
    found = end.search(text)
    return text[: found.start()] if found else text


# --- numbers ------------------------------------------------------------------------------------

_NUMBERED = re.compile(r"\d+[.):] \S")
_BRACKETED = re.compile(r"\([^()]*+\)")
_NOT = re.compile(r"\W{0,9}not\b")


def _number_in(place: str, where: str) -> str | None:
    """The number that a marked place gives: alone, after "=", at its start, else its last."""
    clause = place.strip() if where != "phrase" else _clause(place)
    if read_number(clause) is not None:
        return clause
    clause = unwrap(clause)
    numbers = find_numbers(clause)
    if not numbers:
        return None
    leads = starts_with_number(clause)
    if where == "hashes":  # "#### 18 eggs for 2 days", but not the headings "#### 2. Then add"
        return numbers[0] if leads and not _NUMBERED.match(clause) else None
    if "=" in clause:
        return (find_numbers(clause.rpartition("=")[2]) or numbers)[0]
    if where in ("tags", "boxed"):
        outside = find_numbers(_BRACKETED.sub(" ", clause)) or numbers
        return outside[0] if len({read_number(number) for number in outside}) == 1 else None
    if _NOT.match(clause) and len(numbers) == 1:
        return None
    return numbers[0] if leads else numbers[-1]


_BOLD = re.compile(r"\*\*([^*\n]{1,60})\*\*")


def _last_number(text: str) -> str | None:
    """The last number; in the last paragraph, one that is all there is in bold."""
    tail = text[-MAX_ANSWER:]
    for part in reversed(_BOLD.findall(tail.rstrip().rpartition("\n\n")[2])):
        if read_number(part) is not None:
            return find_numbers(part)[0]
    whole_words = tail.partition(" ")[2] if len(text) > MAX_ANSWER else tail
    numbers = find_numbers(whole_words) or find_numbers(text)
    return numbers[-1] if numbers else None


# --- letters ------------------------------------------------------------------------------------

_FIRST_LETTER = re.compile(
    r"(?:(?:option|choice|letter)\s)?(?:\\(?:text\w{0,6}|math\w{2}|boxed)|[\s*_`$({\[\\]){0,9}"
    r"([A-Ja-j])(?:(?P<closed>[)\]}.:,]|\s?$|[*_]{2})|(?![\w'’]))"
)
_FREE_LETTER = re.compile(
    r"(?<![\w'’\\-])(?P<open>[(\[{] ?)?([A-J])(?:(?P<closed>[)\]}])|(?![\w'’]))"
)
_ARTICLE = re.compile(r"\s(?!because|since|as\b|is\b|and\b|or\b|for\b|with\b|by\b|which\b)[a-z]")
_AND_ANOTHER = re.compile(r"[\s)*_}\]]{0,4}(?:,|and|or|&|/)[\s*_]{0,3}\(?[A-J](?![\w'’])")
_NEGATED = re.compile(r"\bnot\s(?:option\s|choice\s)?\(?[A-J]\)?(?!\w)")
_PRAISED = re.compile(
    r"(?<![\w'’])\(?([A-J])\)?[*_]{0,2}\s(?:is|must be)\s(?:the\s)?(?:correct|right|best|answer)"
)


def _letter_in(place: str, where: str) -> str | None:
    """The option letter that a marked place gives; None where it gives none or two."""
    clause = _NEGATED.sub("", place.strip() if where in ("tags", "boxed") else _clause(place))
    first = _FIRST_LETTER.match(clause)
    if first:
        if _AND_ANOTHER.match(clause, first.end(1)):
            return None
        free = not first["closed"]
        article = free and first[1] == "A" and _ARTICLE.match(clause, first.end())
        if not article and not (free and first[1].islower()):
            return first[1].upper()
    letters = {m[2] for m in _FREE_LETTER.finditer(clause) if m["open"] or m[2] not in "AI"}
    return letters.pop() if len(letters) == 1 else None


def _last_letter(text: str) -> str | None:
    """The letter that is called correct, stands alone on the last line, or comes last."""
    tail = text[-MAX_ANSWER:]
    praised = _PRAISED.findall(tail)
    if praised:
        return praised[-1]
    alone = _FIRST_LETTER.fullmatch(tail.strip().rpartition("\n")[2].rstrip("*_)]}.$ "))
    if alone:
        return alone[1].upper()
    found = [m[2] for m in _FREE_LETTER.finditer(tail) if m["closed"] or m[2] not in "AI"]
    return found[-1] if found else None


# --- formulas -----------------------------------------------------------------------------------

_MATH = re.compile(
    r"\$\$(?P<display>[^$]++)\$\$"
    r"|(?<!\\)\$(?P<inline>(?:\\\$|[^$\n])++)\$"
    r"|\\\((?P<round>(?:[^\\]|\\(?![()]))++)\\\)"
    r"|\\\[(?P<square>(?:[^\\]|\\(?![\[\]]))++)\\\]"
)
_MONEY = re.compile(r"\d[\d,.]*+(?:\s.*[A-Za-z]{2}|.*[-+*/=]\s?$)", re.DOTALL)
_LAST_VERB = re.compile(r".*\b(?:is|are|be|equals)\b:?\s?", re.DOTALL)
_WORDS_IN_LATEX = re.compile(r"\\(?:text\w{0,6}|mbox|mathrm)\s?\{[^{}]*+\}")
_PROSE = re.compile(r"(?:\b[A-Za-z]{2,}+[,.:]?\s){2}[A-Za-z]{2}|[^\W\d_a-zA-Zα-ω]{3}")


def _formulas(text: str) -> list[tuple[int, str]]:
    """The stretches of LaTeX in a text, each with where it ends; joined ones are one list."""
    found: list[tuple[int, str]] = []
    for match in _MATH.finditer(text):
        inner = match[match.lastgroup].strip()
        if match.lastgroup == "inline" and _MONEY.match(inner):
            continue  # "$5 and $6"
        between = text[found[-1][0] : match.start()].strip(" \t\n,;") if found else "."
        if between in ("", "and", "or"):
            found[-1] = (match.end(), f"{found[-1][1]}, {inner}")
        else:
            found.append((match.end(), inner))
    return found


def _formula_in(place: str, where: str) -> str | None:
    """The formula that a marked place gives."""
    if where in ("tags", "boxed"):
        return bare_answer(place, "math") if where == "tags" else place.strip()
    if where == "hashes" and _PROSE.search(place):
        return None
    if not place.startswith(("$", "\\(", "\\[")):
        place = _clause(place, _FORMULA_END)
        verb = _LAST_VERB.match(place)
        if verb and not _WORDS_IN_LATEX.search(place):
            place = place[verb.end() :] or place
    formulas = _formulas(place)
    if formulas:
        return formulas[0][1]
    if "\\" not in place and _PROSE.search(place):
        return next(iter(find_numbers(place)), place)
    return place.strip(" *_")


def _without_prose(answer: str) -> str:
    """The formula in a sentence or between dollar signs; a bare formula stays as it is."""
    outside = _MATH.sub("", _WORDS_IN_LATEX.sub("", answer))
    worded = re.search(r"[A-Za-z]", outside) and _MATH.search(answer)
    if worded or ("\\" not in outside and _PROSE.search(outside)):
        return _last_formula(answer) or answer
    return answer


def _last_formula(text: str) -> str | None:
    """The last formula or the last number, whichever comes later."""
    tail = text[-MAX_ANSWER:]
    formulas = _formulas(tail)
    if not formulas:
        return _last_number(text)
    later = find_numbers(tail[formulas[-1][0] :])
    return later[-1] if later else formulas[-1][1]
