"""LaTeX answers brought to one spelling: ``\\dfrac12``, ``½`` and ``\\frac{1}{2}`` read alike.

Only notation that carries no value goes: delimiters, spacing, sizes, fonts, units, currency and
percent signs. What the answer means is the business of ``lib.answers.expressions``.
"""

from __future__ import annotations

import re
from functools import lru_cache

from lib.answers.numerals import BOLD, plain_characters

ROW = "\x01"  # what stands for the end of a row, which LaTeX writes as two backslashes

_UNICODE = str.maketrans(
    {
        "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ",
        "∓": r"\mp ", "×": "*", "·": "*", "⋅": "*", "÷": "/", "∪": r"\cup ", "∩": r"\cap ",
        "∈": r"\in ", "√": r"\sqrt ", "≈": r"\approx ", "°": r"^\circ ", "∅": r"\emptyset ",
        "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "ω": r"\omega ", "φ": r"\phi ",
        "λ": r"\lambda ", "…": r"\ldots ", "ℝ": "R", "∖": r"\setminus ",
        **{chr(0x2080 + n): f"_{n}" for n in range(10)},
        "∠": " ", "€": " ", "£": " ", "¥": " ", "%": " ",
    }
)  # fmt: skip

# Each line: what is written, and how it is written here. No name is the start of another (\left
# and \leftarrow), since a name ends where its letters end.
_SPELLINGS = [
    (re.compile(pattern.replace("END", r"(?![A-Za-z])")), plain)
    for pattern, plain in (
        (r"(?<=\d)(?:\{,\}|,?\\[,!;: ]{1,4}|\{,\\!\}|,~)\ ?(?=\d{3}(?!\d))", ""),  # 12{,}345
        (r"\\(?:begin|end)\{(?:align|equation|gather)(?:ed)?\*?\}", " "),
        (r"\\(?:left|right)\.", " "),
        (r"\\(?:left|right|[bB]igg?[lrm]?)END", " "),
        (r"\\(?:displaystyle|textstyle|limits|q?quad|rm|bf|it)END", " "),
        (r"\\[,!;:> ]|~|\\[()\[\]]|\\?\$|\\%|`", " "),
        (BOLD, " "),
        (r"\\(?:boldsymbol|math(?:bf|it|sf|tt|bb|cal|frak)|bold|bm|vec|overrightarrow)END", " "),
        (r"\\(?:f?box|boxed|angle|triangle)END|^\s?\\approxEND", " "),
        (r"\\operatorname\*?\ ?\{([a-zA-Z]+)\}", r"\\\1 "),
        (r"\\[dtc]fracEND", r"\\frac"),
        (r"\\[dt]binomEND", r"\\binom"),
        (r"\\leq(?:q|slant)?END|<=", r"\\le "),
        (r"\\geq(?:q|slant)?END|>=", r"\\ge "),
        (r"\\neqEND|!=|\\not\ ?=", r"\\ne "),
        (r"\\ltEND", "<"),
        (r"\\gtEND", ">"),
        (r"\\(?:times|cdot|ast)END", "*"),
        (r"\\divEND", "/"),
        (r"\\lbraceEND", r"\\{"),
        (r"\\rbraceEND", r"\\}"),
        (r"\\[lr]?vertEND", "|"),
        (r"\\lbrackEND", "["),
        (r"\\rbrackEND", "]"),
        (r"\\var(?=theta|phi|epsilon)", r"\\"),
        (r"\\varnothingEND|\\\{\s?\\\}", r"\\emptyset "),
        (r"\\(?:backslash|smallsetminus)END", r"\\setminus "),
        (r"\^\s?\{\s?\\circ\s?\}|\\degreeEND", r"^\\circ "),
    )
]

_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf|up)?|mbox|hbox|mathrm) ?\{([^{}]*)\}( ?\^ ?\{?[23]\}?)?"
)
_JOINER = re.compile(r"(?<![A-Za-z\\])(?:and/or|and|or)(?![A-Za-z])")
_NOT_A_UNIT = re.compile(r"\d|\b(?:or|and|if|when)\b")
_UNIT = re.compile(
    r"""(?<=[\d)}\].])
    (?:\ [mglshLV]                     # 5 m, but 5m has a variable
      |\ ?(?:(?:sq(?:uare|\.)?|cubic|cu\.?)\ ?)?
       (?:degrees?|rad(?:ians?)?|dollars?|cents?|euros?|pounds?|lbs?|ounces?|oz|pct
         |(?:centi|milli|kilo)?(?:met(?:er|re)s?|lit(?:er|re)s?|grams?)|[ckm]m|[km]g|ml
         |mi(?:les?)?|mph|feet|foot|ft|in(?:ch(?:es)?)?|yards?|yd|tons?|gallons?
         |sec(?:onds?)?|min(?:utes?)?|(?:hou|h)rs?|days?|weeks?|months?|years?
         |units?|ways?|square|[ap]\.?m\.?|[A-Za-z]{4,30}))
    (?:\ ?(?:\^\ ?\{?\ ?[23]\ ?\}?|squared|cubed|(?:per|/)\ ?[A-Za-z]{1,30})){0,3}
    (?=\ ?(?:,|$))""",
    re.VERBOSE,
)
# A comma before three digits is a thousands separator, but in brackets it may be a list's.
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_ESCAPED_TWICE = re.compile(r"\\\\(?=[A-Za-z]{2}|[(){}\[\]])")
_OUTER = " ,;:=_" + ROW


def _words(match: re.Match[str]) -> str:
    """What \\text{…} says: a joiner is a comma, letters right after a value are its unit and go."""
    words, power = match[1].strip(), match[2] or ""
    before = match.string[: match.start()].rstrip()
    if _JOINER.fullmatch(words.strip(" ,")):
        return " , "
    after_value = before[-1:].isdigit() or before[-1:] in (")", "}", "]", ".", "!")
    if after_value and words not in ("e", "i"):
        return f" {words} " if _NOT_A_UNIT.search(words) else " "
    return f" {words}{power} "


@lru_cache(maxsize=16384)
def one_spelling(latex: str) -> str:
    """The answer in the one spelling that ``lib.answers.expressions`` reads."""
    text = plain_characters(latex).translate(_UNICODE)
    if "\\begin" not in text:
        text = _ESCAPED_TWICE.sub(r"\\", text)
    text = " ".join(text.replace("\\\\", ROW).split())
    for pattern, plain in _SPELLINGS:
        text = pattern.sub(plain, text)
    text = " ".join(_JOINER.sub(",", _TEXT.sub(_words, text)).split())
    if not any(bracket in text for bracket in "([{"):
        text = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    return _UNIT.sub(" ", text).strip(_OUTER).rstrip(".\\").strip(_OUTER)
