"""Numbers as people and models write them, read exactly.

``read_number`` takes a text that *is* a number, with currency, unit, percent sign, LaTeX or bold
around it, and gives a Fraction; ``find_numbers`` finds those in running text. Every pattern's
repeats are bounded or possessive, so that the time is linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache

LONGEST_NUMBER = 400  # characters; a longer text is no number (Python refuses to read 4300 digits)
MAX_EXPONENT = 400  # 1e999999999 would fill the memory

_VULGAR = "↉½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻"
_PLAIN = str.maketrans(
    {
        # ٣ and ② are 3 and 2: str.isdigit accepts them, int and Fraction not all of them.
        **{c: str(unicodedata.digit(c)) for c in map(chr, range(128, 0x20000))
           if c.isdigit() and c not in _RAISED + "₀₁₂₃₄₅₆₇₈₉"},
        **{c: unicodedata.normalize("NFKC", c).replace("⁄", "/") for c in _VULGAR},
        **{chr(c): chr(c - 0xFEE0) for c in range(0xFF01, 0xFF5F)},  # full-width ASCII
        **{chr(c): " " for c in range(0x2000, 0x200B)},
        **dict.fromkeys("\u00a0\u202f\u205f\u3000", " "),
        **dict.fromkeys("\0\u200b\u200e\u200f\u2060\ufeff\ufe0f\u20e3", ""),
        **dict.fromkeys("−–‒﹣", "-"),
        **dict.fromkeys("⁄∕÷", "/"), **dict.fromkeys("×·⋅∙∗", "*"),
        **dict.fromkeys("‘’", "'"), **dict.fromkeys("“”„", '"'),
        "٫": ".", "٬": ",",
    }
)  # fmt: skip
_SUPERSCRIPT = re.compile(f"[{_RAISED}]+")
_BEFORE_VULGAR = re.compile(rf"(?<=\w)(?=[{_VULGAR}])")  # 2½ is 2 1/2
_TO_LINE = str.maketrans(_RAISED, "0123456789+-")


def plain_characters(text: str) -> str:
    """The text with full-width digits, typographic minus signs, spaces and ½ made plain ASCII."""
    if text.isascii():
        return text.replace("\0", "")
    text = _SUPERSCRIPT.sub(lambda m: f"^{{{m[0].translate(_TO_LINE)}}}", text)
    return _BEFORE_VULGAR.sub(" ", text).translate(_PLAIN)


BOLD = r"(?<![\w)])\*\*(?=\S)|(?<=\S)\*\*(?![\w(]|-\d)"  # and not the power in 9**9

# LaTeX and markdown around and inside a number.
_UNWRAP = [
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"(?<=\d)(?:\{,\}|,?\\[,!;: ]|\{,\\!\}|~) ?(?=\d{3}(?!\d))", ","),
        (r"\\(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])|\\[,!;:> ]|~", " "),
        (rf"\\[()\[\]]|{BOLD}|__|`", ""),
        (r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it)|mbox|f?box(?:ed)?) ?\{([^{}]*)\}",
         r" \1 "),
        (r"\^ ?\{? ?\\(?:circ|degree) ?\}?|\\degree(?![A-Za-z])|°", ""),
        (r"(?<=\d)(?=\\[dtc]?frac)", " "),  # 2\\frac12 is 2 1/2
        (r"\\[dtc]?frac ?\{ ?([\d.,]{1,40}) ?\} ?\{ ?([\d.,]{1,40}) ?\}", r"\1/\2"),
        (r"\\[dtc]?frac ?(\d) ?\{?(\d{1,40})\}?", r"\1/\2"),
        (r" ?(?:\\times|\\cdot|[*xX]) ?10 ?(?:\^|\*\*) ?(?:\{ ?([+-]?\d{1,5}) ?\}|([+-]?\d{1,5}))",
         r"e\1\2"),
        (r"\\(?:times|cdot)(?![A-Za-z])", "*"),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\\([%$#&])", r"\1"),
        (r" {2,}", " "),
    )
]  # fmt: skip
# A minus that stands apart ("is − ¾", "Total: - 5", not "Tom - 5"), and the word for it.
_MINUS = re.compile(
    r"(?:((?:\b(?:is|are|was|be|equals?|gets?|gives?|makes|becomes)|[=:])[ $(*]{1,4})- *"
    r"|(?<![\d)\]}%] )(?<!\s[A-Za-z] )(?<!^[A-Za-z] )\b(?i:negative|minus)) (?=\W?\d|\\[dt]?frac)"
)
_SHORT = re.compile(r"(?<=\d)([kK]|[bm]n)\b|(?<=[$€£])(\d[\d.,]*+) ?([MB])\b")  # 15k, $6M
_SHORTENED = {"k": " thousand", "m": " million", "b": " billion"}


def unwrap(text: str) -> str:
    """The text without the LaTeX and markdown around and inside its numbers, spaces made single."""
    text = " ".join(_MINUS.sub(lambda m: f"{m[1] or ''}-", plain_characters(text)).split())
    text = _SHORT.sub(lambda m: (m[2] or "") + _SHORTENED[(m[1] or m[3])[0].lower()], text)
    for pattern, plain in _UNWRAP if any(mark in text for mark in "\\*{~`°^") else ():
        text = pattern.sub(plain, text)
    return text


# --- quantities ---------------------------------------------------------------------------------

_CURRENCY = r"(?:(?:US|AU?|CA?|HK)?\$|[€£¥₹₽₩₪₫฿¢]|(?:USD|EUR|GBP|JPY|INR|CNY|Rs\.?)(?![A-Za-z]))"
_WHOLE = r"(?:\d{1,3}(?:,\d{3}){1,12}(?!\d)|\d{1,2}(?:,\d{2}){1,9},\d{3}(?!\d)|\d++)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.\d++)?|\.\d++)"
SCALES = {"hundred": 2, "thousand": 3, "lakh": 5, "million": 6, "crore": 7, "billion": 9}
SCALES["trillion"] = 12
_QUANTITY = rf"""
    (?P<sign>[-+]?)GAP(?:{_CURRENCY}{{1,2}}\ ?)?(?P<inner>[-+]?)GAP
    (?P<value>{_DECIMAL})
    (?:\ ?/\ ?(?P<below>{_DECIMAL})
      |\ (?:and\ )?(?P<top>\d{{1,9}})\ ?/\ ?(?P<bottom>\d{{1,9}})
      |[eE](?P<exponent>[+-]?\d{{1,5}}))?
    (?P<scale>(?:[\ -]?(?i:{"|".join(SCALES)})s?\b){{0,2}})"""
_NUMBER = re.compile(_QUANTITY.replace("GAP", r"\ ?"), re.VERBOSE)
# In running text a number stands free: not part of a word (H2O, x2), of a label (#12), a time
# (3:30) or a power, and its minus sign touches no number or bracket (5-3 is a 5 and a 3).
_FREE = re.compile(
    r"(?<![A-Za-z\d_^\\#])(?<!\*\*)(?<!\^\{)(?<!\d[.:])(?!(?<=[)\]}])-)"
    + _QUANTITY.replace("GAP", "")
    + r"(?![:h]\d|\ ?\^|\ ?\*\*)",
    re.VERBOSE,
)
# What may follow a number that is the whole answer: a unit or some words, no second quantity.
_UNIT = re.compile(
    rf"""(?!\ ?(?:and|or|to|plus|minus|times)\b)\ ?(?:{_CURRENCY}|%)?
    (?:\ ?[-,(/]?\ ?[^\W\d_][^\d=+*<>\\^]*+(?:\^\ ?\{{?[23]\}}?|(?<=[A-Za-z])[23])?|[²³])?
    [\ .,;:!?)\]}}'"$%*]*+""",
    re.VERBOSE,
)
_ADORNMENT = " *_`\"':;=≈("
_SPACED = re.compile(
    r"(?<![\d.,/#])(?<!\d )[1-9]\d{0,2}(?:( |')\d{3})(?:\1\d{3})*(?![\d/]|-[A-Za-z]| \d)"
)
_EUROPEAN = re.compile(
    r"(?<![\d.,])(?:\d{1,3}(?:\.\d{3})+,\d+|\d+,(?:\d\d?|\d{4,})|0,\d{3}|\d{1,3}(?:\.\d{3}){2,})"
    r"(?![\d,.]*\d)"
)
# In running text 12,75 is one number, unless it stands in a bracket or a list.
_EUROPEAN_IN_TEXT = re.compile(
    r"(?<![\d.,(\[{|;])(?<!, )(?<!\d-)"
    r"(?:\d{1,3}(?:\.\d{3})+,\d{1,2}|\d{1,7},\d{1,2}|\d{1,3}(?:\.\d{3}){2,})"
    r"(?![\d,.]*\d|\s?[,;)\]}|]|\s(?:and|or)\s\W?\d)"
)
_ON_THE_HOUR = re.compile(r"(?<![\d:])(\d{1,2}):00(?![\d:])")  # 2:00 pm answers "at what hour?"
_SIMPLE = re.compile(r"-?\d{1,40}(?:\.\d{1,40})?")


def _separators(text: str, european: re.Pattern[str]) -> str:
    """1 234, 1'234 and the European 1.234,5 in the form 1,234.5."""
    text = european.sub(lambda m: m[0].replace(".", "").replace(",", "."), text)
    return _SPACED.sub(lambda m: m[0].replace(m[1], ","), text)


def _value(match: re.Match[str]) -> Fraction | None:
    """The exact value of a match of a quantity; None for a zero divisor or a huge power."""
    value = Fraction(match["value"].replace(",", ""))
    below = Fraction((match["below"] or match["bottom"] or "1").replace(",", ""))
    exponent = int(match["exponent"] or 0)
    if not below or abs(exponent) > MAX_EXPONENT:
        return None
    value = value / below if match["below"] else value + int(match["top"] or 0) / below
    words = re.findall("|".join(SCALES), match["scale"].lower())
    value *= Fraction(10) ** (exponent + sum(map(SCALES.get, words)))
    return -value if (match["sign"] == "-") != (match["inner"] == "-") else value


@lru_cache(maxsize=16384)
def _read(text: str) -> tuple[Fraction | None, bool]:
    """The value of a text that is one number, and whether it is written as a fraction."""
    if _SIMPLE.fullmatch(text):
        return Fraction(text), False
    if len(text) > LONGEST_NUMBER:
        return None, False
    text = _separators(unwrap(text).strip(_ADORNMENT), _EUROPEAN)
    match = _NUMBER.match(text)
    if match is None or not _UNIT.fullmatch(text, match.end()):
        return None, False
    return _value(match), bool(match["below"] or match["top"])


def read_number(text: str) -> Fraction | None:
    """The exact value of a text that is one number, or None. Words may follow it ("18 eggs a day"),
    and a percent sign does not change it."""
    return _read(text)[0]


def normalize_number(text: str | None) -> str | None:
    """One canonical, exact string for a number: "$1,234.50" → "1234.5", "6/8" → "3/4".

    A fraction stays one, reduced; anything else is a decimal. None for what is not one number.
    """
    value, is_fraction = _read(text) if isinstance(text, str) else (None, False)
    if value is None or is_fraction:
        return None if value is None else str(value)
    with localcontext(prec=2 * (LONGEST_NUMBER + MAX_EXPONENT)):
        return f"{Decimal(value.numerator) / value.denominator:f}"


def has_percent(text: str) -> bool:
    return "%" in text or "percent" in text or "pct" in text


def after_number(text: str) -> str | None:
    """What follows the number that comes first in a text; None where a word comes first."""
    text = text.lstrip(_ADORNMENT)
    number = _FREE.match(text)
    return text[number.end() :] if number else None


def find_numbers(text: str) -> list[str]:
    """The numbers that stand free in running text, in order, with separators as in 1,234.5."""
    text = _separators(_ON_THE_HOUR.sub(r"\1", unwrap(text)), _EUROPEAN_IN_TEXT)
    return [match[0].strip() for match in _FREE.finditer(text)]


# --- units ----------------------------------------------------------------------------------------

# A measure a line, and in it the names of each unit: an answer in metres is none in centimetres.
_UNITS = {
    name: (measure, unit)
    for measure, units in enumerate((
        "mm|cm centimeter centimetre|m meter metre|km kilometer kilometre|inch inche|ft foot feet"
        "|yard|mi mile", "g gram|kg kilogram|oz ounce|lb pound|ton", "am|pm", "cent|dollar|euro",
        "ml|l liter litre|gallon|quart|pint|cup", "s sec second|min minute|h hr hour|day|week|month"
        "|year", "degree|radian",
    ))
    for unit, names in enumerate(units.split("|")) for name in names.split()
}  # fmt: skip


def other_unit(mine: str, gold: str) -> bool:
    """Whether both name a unit, of one measure and not the same: 5 m and 5 cm, 3 am and 3 pm."""
    theirs = _unit(gold)
    ours = theirs and _unit(mine)
    return bool(ours) and ours[0] == theirs[0] and ours != theirs


@lru_cache(maxsize=16384)
def _unit(answer: str) -> tuple[int, int] | None:
    """The measure and unit that the first known word behind the last digit names."""
    tail = re.split(r"\d", re.sub(r"\^ ?\{?[23]|\\[A-Za-z]+", " ", answer.replace(".", "")))[-1]
    words = re.findall("[a-z]+", tail.lower())
    units = (_UNITS.get(word) or _UNITS.get(word.removesuffix("s")) for word in words)
    return next(filter(None, units), None)
