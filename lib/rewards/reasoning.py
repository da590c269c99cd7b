"""Rewards for the reasoning: its steps, its arithmetic, its language.

The reasoning is what stands in the think tags; without them, what comes before the answer tag.
None of these knows the gold answer, so steps and sums that lead nowhere are paid as well:
keep their weights well below the answer's.
"""

import re
from fractions import Fraction
from itertools import islice

from lib.answers.formulas import read_answer
from lib.errors import BadInput, nearest
from lib.rewards.rules import per_text, section


def reasoning_of(text: str, think_tag: str, answer_tag: str) -> str:
    """The reasoning section, or without one all that comes before the answer's tag."""
    return section(text, think_tag) or text.partition(f"<{answer_tag}>")[0]


# A step begins a line or a sentence ("Step 2:", "3.", "-", "Next, …") and runs to its end.
# Possessive repeats (*+) never give back, which keeps the search linear on any text.
_STEP = re.compile(
    r"(?:^|(?<=[.!?] ))[ \t]*+(?:\*\*)?"
    r"(?:step \d++|\d++[.)](?=\s)|[-*•](?=\s)|(?:first|second|third|next|then|finally)\b)"
    r"[ \t:,.)*]*+([^\n.!?]*+)",
    re.IGNORECASE | re.MULTILINE,
)


def reasoning_steps(
    text: str, *, value=1.0, enough=3, think_tag="think", answer_tag="answer"
) -> float:
    """1.0 for three steps or more that are marked as such, a third for each below that.

    Marks are "Step 1", "1.", "-", and First, Second, Third, Next, Then, Finally at the start of
    a line or sentence. (open-r1's `reasoning_steps_reward`; here the same step twice, or a mark
    with nothing after it, does not count.)
    """
    steps = set()
    for match in _STEP.finditer(reasoning_of(text, think_tag, answer_tag)):
        if any(map(str.isalnum, match[1])):
            steps.add(match[1].strip().lower())
        if len(steps) >= enough:
            break
    return value * len(steps) / enough


_NUMBER = r"\d{1,15}+(?:,\d{3})*+(?:\.\d{1,10}+)?+"
_EQUATION = re.compile(
    rf"(?<![\w.,)])(-?{_NUMBER}(?: ?[-+*/] ?{_NUMBER}){{1,8}}+) ?= ?(-?{_NUMBER})(?!\w)"
)
_SIGNS = str.maketrans({"×": "*", "·": "*", "∗": "*", "÷": "/", "−": "-", "–": "-", "$": None})
_MOST_EQUATIONS = 100


def arithmetic(text: str, *, value=1.0, think_tag="think", answer_tag="answer") -> float:
    """1.0 × the share of the equations in the reasoning that hold; 0 where there are none.

    Equations are numbers with + − × ÷ between them, an equals sign and a number, such as
    "16 - 3 - 4 = 9"; a result with decimals may be rounded. Each different one counts once, and
    at most 100 are looked at. It pays true equations that have nothing to do with the problem.
    """
    pairs = set(equations(reasoning_of(text, think_tag, answer_tag)))
    return value * sum(holds(*pair) for pair in pairs) / len(pairs) if pairs else 0.0


def equations(text: str) -> list[tuple[str, str]]:
    """The equations between numbers, as pairs of left and right side.

    >>> equations("She sells 16 - 3 - 4 = 9 eggs for 9 × $2 = $18.")
    [('16 - 3 - 4', '9'), ('9 * 2', '18')]
    """
    text = text.replace("\\times", "*").replace("\\cdot", "*").replace("\\div", "/")
    text = re.sub(r"(?<=\d) ?x ?(?=\d)", "*", text.translate(_SIGNS))
    text = text.replace("  ", " ")
    complete = (match for match in _EQUATION.finditer(text) if not _is_part(text, match))
    return [match.groups() for match in islice(complete, _MOST_EQUATIONS)]


def _is_part(text: str, match: re.Match) -> bool:
    """Whether an operator just outside shows that this is a piece of a longer expression."""
    before = text[max(0, match.start() - 2) : match.start()].rstrip()
    after = text[match.end() : match.end() + 2].lstrip()
    return before[-1:] in tuple("+-*/^%") or after[:1] in tuple("+-*/^%(")


def holds(left: str, right: str) -> bool:
    """Whether left equals right, exactly or rounded to the decimals that right is written with.

    >>> holds("10/3", "3.33"), holds("10/3", "3")
    (True, False)
    """
    value = read_answer(left.replace(",", ""))
    if value is None:  # a division by zero
        return False
    difference = abs(value.points[0] - Fraction(right.replace(",", "")))
    decimals = len(right.partition(".")[2])
    return difference <= (Fraction(1, 2 * 10**decimals) if decimals else 0)


_LATIN = "A-Za-zªºÀ-ÖØ-öø-ɏḀ-ỿ"
_SCRIPTS = {
    **dict.fromkeys(("en", "de", "es", "fr", "it", "nl", "pl", "pt", "tr", "vi"), _LATIN),
    **dict.fromkeys(("bg", "ru", "uk"), "Ѐ-ӿ"),
    "ar": "ؠ-ي٠-ۿ",
    "el": "Ͱ-Ͽἀ-῿",
    "he": "א-ת",
    "hi": "ऄ-ॿ",
    "ja": "ぁ-ヿ㐀-鿿",
    "ko": "ᄀ-ᇿ가-힣",
    "th": "ก-๛",
    "zh": "㐀-鿿𠀀-𲎯",
}
_LETTERS = re.compile(r"[^\W\d_]++")
# Names of tags and of LaTeX commands, and Greek letters, belong to mathematics.
_NOTATION = re.compile(r"\\[A-Za-z]++|</?[A-Za-z]++>")
_GREEK = re.compile(r"[Ͱ-Ͽ]++")


def language_consistency(text: str, *, value=1.0, language="en") -> float:
    """1.0 × the share of letters that are of the target language's script; 0 without letters.

    DeepSeek-R1's remedy for reasoning that mixes languages (arXiv 2501.12948, section 2.3.2),
    which counts words. A script tells Chinese from English, but not French from English; and
    nearly every English completion gets the full score, so this only brakes.
    `language` is a two-letter code; names of tags, LaTeX commands and (but in Greek) Greek
    letters are not counted.
    """
    if language not in _SCRIPTS:
        hint = nearest(language, _SCRIPTS)
        raise BadInput(f"language_consistency has no language {language!r}: {hint}")
    text = _NOTATION.sub(" ", text)
    if language != "el":
        text = _GREEK.sub(" ", text)
    letters = "".join(_LETTERS.findall(text))
    if letters.isascii():  # the usual case, and no need to look at each letter
        return value if letters and _SCRIPTS[language] == _LATIN else 0.0
    of_script = re.findall(f"[{_SCRIPTS[language]}]++", letters)
    return value * sum(map(len, of_script)) / len(letters)


REASONING = {
    score.__name__: (per_text, score)
    for score in (reasoning_steps, arithmetic, language_consistency)
}
