"""LaTeX answers brought to one spelling: ``\\dfrac12``, ``½`` and ``\\frac{1}{2}`` read alike.

Only notation that carries no value goes: delimiters, spacing, sizes, fonts, units, currency and
percent signs. What the answer means is the business of ``lib.expressions``.
"""

from __future__ import annotations

import re
from functools import lru_cache

from lib.numerals import plain_characters

ROW = "\x01"  # what stands for the end of a row, which LaTeX writes as two backslashes

_UNICODE = str.maketrans(
    {
        "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ",
        "∓": r"\mp ", "×": "*", "·": "*", "⋅": "*", "÷": "/", "∪": r"\cup ", "∩": r"\cap ",
        "∈": r"\in ", "√": r"\sqrt ", "≈": r"\approx ", "°": r"^\circ ", "∅": r"\emptyset ",
        "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "ω": r"\omega ", "φ": r"\phi ",
        "λ": r"\lambda ", "…": r"\ldots ", "ℝ": "R", "∖": r"\setminus ", "²": "^2", "³": "^3",
        "⁴": "^4", "⁵": "^5", "⁻": "^-", "€": " ", "£": " ", "¥": " ", "%": " ",
    }
)  # fmt: skip

_UNITS = (
    r"(?:(?:sq(?:uare|\.)?|cubic|cu\.?)\s*)?(?:degrees?|radians?|rad|dollars?|cents?|pounds?|lbs?|"
    r"ounces?|oz|percent(?:age)?|pct|(?:[ckm]|centi|milli|kilo)?(?:met(?:er|re)s?|m|g|l)|grams?|"
    r"mi(?:les?)?|mph|feet|foot|ft|in(?:ch(?:es)?)?|yards?|yd|tons?|kilograms?|lit(?:er|re)s?|"
    r"gallons?|s(?:ec(?:onds?)?)?|min(?:utes?)?|h(?:(?:ou)?rs?)?|days?|weeks?|months?|years?|"
    r"units?|euros?|people|ways?|points?|times|square|[ap]\.?m\.?|[A-Za-z]{4,})"
)
_UNIT_POWER = r"(?:\s*(?:\^\s*\{?\s*[23]\s*\}?|squared|cubed|(?:per|/)\s*[A-Za-z]+))*"
_COMMAND = r"(?![A-Za-z])"  # where the name of a command ends

_SPELLINGS = [
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"(?<=\d)(?:\{,\}|,?\\[,!;: ]+|\{,\\!\}|,~)\s*(?=\d{3}(?!\d))", ""),
        (rf"\\[dtc]frac{_COMMAND}", r"\\frac"),
        (rf"\\[dt]binom{_COMMAND}", r"\\binom"),
        (rf"\\left\.|\\right\.|\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|q?quad|rm|bf|it){_COMMAND}", " "),
        (r"\\[,!;:> ]|~|\\[()\[\]]|\\?\$|\\%|\*\*(?=[^*]*\*\*)|`|\\(?:begin|end)\{(?:align|equation|gather)(?:ed)?\*?\}", " "),
        (rf"\\(?:boldsymbol|math(?:bf|it|sf|tt|bb|cal|frak)|vec|overrightarrow|bold|bm|f?box|boxed){_COMMAND}", " "),
        (r"\\operatorname\*?\s*\{([a-zA-Z]+)\}", r"\\\1 "),
        (rf"\\leq(?:q|slant)?{_COMMAND}|<=", r"\\le "),
        (rf"\\geq(?:q|slant)?{_COMMAND}|>=", r"\\ge "),
        (rf"\\neq{_COMMAND}|!=|\\not\s*=", r"\\ne "),
        (rf"\\lt{_COMMAND}", "<"),
        (rf"\\gt{_COMMAND}", ">"),
        (rf"\\(?:times|cdot|ast){_COMMAND}", "*"),
        (rf"\\div{_COMMAND}", "/"),
        (rf"\\(?:angle|triangle|measuredangle){_COMMAND}|∠", " "),
        (rf"\\lbrace{_COMMAND}", r"\\{"),
        (rf"\\rbrace{_COMMAND}", r"\\}"),
        (rf"\\[lr]?vert{_COMMAND}", "|"),
        (rf"\\[lr]brack{_COMMAND}", lambda m: "[" if m[0][1] == "l" else "]"),
        (r"\\var(?=theta|phi|epsilon)", r"\\"),
        (rf"\\varnothing{_COMMAND}|\\\{{\s*\\\}}", r"\\emptyset "),
        (rf"\\(?:backslash|smallsetminus){_COMMAND}", r"\\setminus "),
        (rf"\^\s*\{{\s*\\circ\s*\}}|\\degree{_COMMAND}", r"^\\circ "),
    )
]  # fmt: skip
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf|up)?|mbox|hbox|mathrm|mathop)\s*\{([^{}]*)\}(\s*\^\s*\{?[23]\}?)?"
)
_JOINER = re.compile(r"(?<![A-Za-z\\])(?:and/or|and|or)(?![A-Za-z])")
_UNIT = re.compile(rf"(?<=[\d)}}\].])\s*(?:{_UNITS}){_UNIT_POWER}(?=\s*(?:,|$))")
_ESCAPED_TWICE = re.compile(r"\\\\(?=[A-Za-z]{2}|[(){}\[\]])")
_OUTER = " \t\r\n,;:=_"
# A comma before three digits is a thousands separator, but in brackets it may be a list's.
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")


def _words(match: re.Match[str]) -> str:
    """What \\text{…} says: a joiner is kept, letters right after a value are its unit and go."""
    words, power = match[1].strip(), match[2] or ""
    before = match.string[: match.start()].rstrip()
    if _JOINER.fullmatch(words.strip(" ,")):
        return " , "
    if before and (before[-1].isdigit() or before[-1] in ")}].!") and not re.search(r"\d|\b(?:or|and|if|when)\b", words):
        return " "
    return f" {words}{power} "


@lru_cache(maxsize=16384)
def one_spelling(latex: str) -> str:
    """The answer in the one spelling that ``lib.expressions`` reads."""
    text = plain_characters(latex).translate(_UNICODE)
    if "\\begin" not in text:
        text = _ESCAPED_TWICE.sub(r"\\", text)
    text = text.replace("\\\\", ROW)
    for pattern, plain in _SPELLINGS:
        text = pattern.sub(plain, text)
    text = _TEXT.sub(_words, text)
    text = _JOINER.sub(",", text)
    if not any(bracket in text for bracket in "([{"):
        text = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    text = _UNIT.sub(" ", text.strip())
    return text.strip(_OUTER + ROW).rstrip(".\\").strip(_OUTER)
