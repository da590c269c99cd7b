"""LaTeX answers brought to one spelling: ``\\dfrac12``, ``½`` and ``\\frac{1}{2}`` read alike.

Only notation that carries no value goes: delimiters, spacing, sizes, fonts, units, currency and
percent signs. What the answer means is the business of ``lib.answers.expressions``.
"""

from __future__ import annotations

import re
from functools import lru_cache

from lib.answers.numerals import BOLD, SCALES, plain_characters

ROW = "\x01"  # what stands for the end of a row, which LaTeX writes as two backslashes

_UNICODE = str.maketrans(
    {
        "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ",
        "∓": r"\mp ", "×": "*", "·": "*", "⋅": "*", "÷": "/", "∪": r"\cup ", "∩": r"\cap ",
        "∈": r"\in ", "√": r"\sqrt ", "≈": r"\approx ", "°": r"^\circ ", "∅": r"\emptyset ",
        "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "ω": r"\omega ", "φ": r"\phi ",
        "λ": r"\lambda ", "…": r"\ldots ", "∖": r"\setminus ",
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
        (r"\\(?:left|right)\.|\\middle(?![A-Za-z])", " "),
        (r"\\(?:left|right|[bB]igg?[lrm]?)END", " "),
        (r"\\(?:displaystyle|textstyle|limits|rm|bf|it)END|\\q?quad", " "),
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

# Before anything else: the real line, the integer that a family of solutions counts by, quotes.
_REALS = re.compile(
    r"(?:ℝ|\\mathbb\s?\{?\s?R\s?\}?+|\\(?:R|reals)(?![A-Za-z]))(?!\s?(?:[\^_]|\\(?:setminus|backslash)))"
    r"|^\W{0,3}(?:\\text\w*\{)?(?:all|any)\ (?:the\ )?real(?:s|\ numbers?)(?:\ [a-z])?\W*$",
    re.I,
)
_INTEGERS = re.compile(
    r"[\s,;.(]{0,9}(?:\\(?:quad|text\w*\s?\{\s?(?:where|for|with|and)?\s?\}|[,;! ])\s?)*"
    r"(?:\b(?:where|for|with)\s)?\$?\\?\(?(?<![A-Za-z\\])[a-z]\s?\$?"
    r"(?:(?:\\in|∈)\s?(?:\\mathbb\s?\{?\s?[ZN]\s?\}?|ℤ|ℕ|\\Z|Z|\\text\w*\{\s?integers?\s?\})"
    r"|\s?(?:\\text\w*\{\s?)?(?:is|are)\s(?:an(?:y)?\s)?integers?)[})\s.$]*$"
)
_FOR_INTEGER = re.compile(
    r"[\s,;.(]{0,9}(?:\\text\w*\s?\{\s*)?\b(?:for|where|with)\s(?:all|any|some|every|an|each)?\s?integers?"
    r"\s?\}?\s?[\\($]{0,2}\s?[a-z]\s?[\\)$.}]*$"
)
_QUOTED = re.compile(r"""(['"`])(?!\1)(.*)\1""", re.DOTALL)
_SCALE = re.compile(
    r"(?<=[\d}.)])[\s~]*(?:\\[,;: ]\s*)*(?:\\(?:text\w*|mathrm|mbox)\s?\{[\s~]*)?"
    r"(hundred|thousand|million|billion|trillion)s?(?![A-Za-z])\s*(?:[A-Za-z ]*\})?",
    re.I,
)
_DEGREES = re.compile(r"(?<=[\d}])\s?(?:\\text\w*\s?\{\s?)?degrees?(?![A-Za-z])\s?\}?")
_BUILDER = re.compile(r"\\\{\s?[a-zA-Z]\s?(?:\\in\s?[^|:]*)?(?:\\mid|:|\|)(.*)\\\}")
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf|up)?|mbox|hbox|mathrm) ?\{([^{}]*)\}( ?\^ ?\{?[23]\}?)?"
)
_JOINER = re.compile(r"(?<![A-Za-z\\])(?:and/or|and|or)(?![A-Za-z])")
_ENDS_JOINING = re.compile(r"^[A-Za-z ]{0,40}\b(?:and|or)$")
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
_COMPARES = re.compile(r"[<>]|\\(?:[lgn]e|in)(?![a-z])")
_OUTER = " ,;:=_" + ROW


def _words(match: re.Match[str]) -> str:
    """What \\text{…} says: a joiner is a comma, letters right after a value are its unit and go."""
    words, power = match[1].strip(), match[2] or ""
    before = match.string[: match.start()].rstrip()
    if _JOINER.fullmatch(words.strip(" ,")):
        return " , "
    if match.string[match.end() :].lstrip()[:1].isdigit() and _ENDS_JOINING.search(words):
        return " , "  # 6 \\text{ cats and } 2
    after_value = before[-1:].isdigit() or before[-1:] in (")", "}", "]", ".", "!")
    if after_value and words not in ("e", "i"):
        return f" {words} " if _NOT_A_UNIT.search(words) else " "
    return f" {words}{power} "


@lru_cache(maxsize=16384)
def one_spelling(latex: str) -> str:
    """The answer in the one spelling that ``lib.answers.expressions`` reads."""
    text = _REALS.sub(r"(-\\infty ,\\infty )", _FOR_INTEGER.sub("", _INTEGERS.sub("", plain_characters(latex.strip()))))
    text = _SCALE.sub(lambda m: f" * 10^{{{SCALES[m[1].lower()]}}}", text.translate(_UNICODE))
    text = _DEGREES.sub(r"^\\circ ", text)
    if quoted := _QUOTED.fullmatch(text.strip(" .")):
        text = quoted[2]
    if "\\begin" not in text:
        text = _ESCAPED_TWICE.sub(r"\\", text)
    text = " ".join(text.replace("\\\\", ROW).split())
    for pattern, plain in _SPELLINGS:
        text = pattern.sub(plain, text)
    text = " ".join(_JOINER.sub(",", _TEXT.sub(_words, text)).split())
    if not any(bracket in text for bracket in "([{"):
        text = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    text = _UNIT.sub(" ", text).strip(_OUTER).rstrip(".\\").strip(_OUTER)
    builder = _BUILDER.fullmatch(text)
    return builder[1].strip(_OUTER) if builder and _COMPARES.search(builder[1]) else text
