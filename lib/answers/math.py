r"""Whether two mathematical answers mean the same: True, False, or None where it cannot tell.

First the notation is brought to one spelling (``\dfrac12``, ``½`` and ``\frac{1}{2}`` read
alike), then the meaning is compared (`lib.answers.formulas` reads it), and what is outside of that
grammar goes to math_verify (`lib.answers.symbolic`). Order matters in tuples, points, intervals and
matrices, and not in sets and plain lists. The gold answer sets the form: for the gold "5" the
answer "x = 5" is right, for the gold "x + y = 5" the answer "5" is not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from lib.answers.formulas import (
    ROW,
    Node,
    Number,
    Relation,
    Sequence,
    Union,
    Value,
    Without,
    apply,
    constant,
    divide,
    read_answer,
    same_value,
)
from lib.answers.numerals import BOLD, SCALES, has_percent, plain_characters, read_number
from lib.answers.readers import ALL_REALS
from lib.answers.symbolic import symbolically_equal

# --- one spelling: only notation that carries no value goes -------------------------------------

_UNICODE = str.maketrans(
    {
        "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ",
        "∓": r"\mp ", "∪": r"\cup ", "∩": r"\cap ",
        "∈": r"\in ", "√": r"\sqrt ", "≈": r"\approx ", "°": r"^\circ ", "∅": r"\emptyset ",
        "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "ω": r"\omega ", "φ": r"\phi ",
        "λ": r"\lambda ", "…": r"\ldots ", "∖": r"\setminus ", "∨": ",", "∧": ",",
        **{chr(0x2080 + n): f"_{n}" for n in range(10)},
        "∠": " ", "€": " ", "£": " ", "¥": " ", "%": " ",
    }
)  # fmt: skip

# What a command is written as here; one of looks alone is left out.
_LOOKS = re.compile(
    r"left|right|middle|[bB]igg?[lrm]?|(?:display|text)style|limits|rm|bf|it|bm|bold(?:symbol)?"
    r"|math(?:bf|it|sf|tt|bb|cal|frak)|vec|overrightarrow|f?box|boxed|angle|triangle"
)
_COMMANDS = {
    "dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac", "dbinom": r"\binom",
    "tbinom": r"\binom", "leq": r"\le ", "leqq": r"\le ", "leqslant": r"\le ", "geq": r"\ge ",
    "geqq": r"\ge ", "geqslant": r"\ge ", "neq": r"\ne ", "lt": "<", "gt": ">", "times": "*",
    "cdot": "*", "ast": "*", "div": "/", "vert": "|", "lvert": "|", "rvert": "|",
    "lbrace": r"\{", "rbrace": r"\}", "langle": "(", "rangle": ")", "lbrack": "[", "rbrack": "]",
    "vartheta": r"\theta", "varphi": r"\phi", "varepsilon": r"\epsilon", "degree": r"^\circ ",
    "varnothing": r"\emptyset ", "backslash": r"\setminus ", "smallsetminus": r"\setminus ",
    **dict.fromkeys(("lor", "land", "vee", "wedge"), ","),
}  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_SPELLINGS = [
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"(?<=\d)(?:'|\{,\}|,?\\[,!;: ]{1,4}|\{,\\!\}|,~)\ ?(?=\d{3}(?!\d))", ""),  # 12{,}345
        (
            r"\\q?quad|\\(?:begin|end)\{(?:align|equation|gather)(?:ed)?\*?\}|\\(?:left|right)\.",
            " ",
        ),
        (r"^\s?\\approx(?![A-Za-z])|\\[,!;:> ]|~|\\[()\[\]]|\\?\$|\\%|`|" + BOLD, " "),
        (r"\\operatorname\*?\ ?\{([a-zA-Z]+)\}", r"\\\1 "),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"!=|\\not\ ?=", r"\\ne "),
        (r"\\\{\s?\\\}", r"\\emptyset "),
        (r"\^\s?\{\s?\\circ\s?\}", r"^\\circ "),
    )
]

_REALS = re.compile(
    r"(?:ℝ|\\math(?:bb|bf|rm)\s?\{?\s?R\s?\}?+|\\(?:R|reals)(?![A-Za-z]))"
    r"((?:\s?[\^_]\s?(?:\{[^{}]*\}|[-+*0])){0,2}+)(?!\s?[\^_])"
)
_PART_OF_REALS = {
    key: part
    for keys, part in {
        " all any": r"(-\infty ,\infty )",
        "^+ _>0 ^>0 positive": r"(0,\infty )",
        "^- _<0 ^<0 negative": r"(-\infty ,0)",
        "_ge0 ^ge0 ^+_0 _0^+ nonnegative": r"[0,\infty )",
        "_le0 ^le0 ^-_0 _0^- nonpositive": r"(-\infty ,0]",
        "^* _ne0 nonzero": r"((-\infty ,0)\cup (0,\infty ))",
    }.items()
    for key in keys.split(" ")
}
_ROOT_OF_NUMBER = re.compile(r"√ ?(\d+(?:\.\d+)?)")
# ℝ - \{0\}, and ℝ\{0}, in which the backslash is the difference
_LESS_A_SET = re.compile(r"(?<=\\infty \)) ?(?:(?:-|\\) ?(?=\\?\{)|\\(?=\{[^{}\\]*\}))")
# What names the integer of a family of solutions: ", n \\in \\mathbb{Z}", "for integer n".
_INTEGERS = re.compile(
    r"[\s,;.(]{0,9}(?:\\(?:quad|text\w*\s?\{\s?(?:where|for|with|and)?\s?\}|[,;! ])\s?)*"
    r"(?:\b(?:where|for|with)\s)?\$?\\?\(?(?<![A-Za-z\\])[a-s]\s?\$?"
    r"(?:(?:\\in|∈)\s?(?:\\mathbb\s?\{?\s?[ZN]\s?\}?|ℤ|ℕ|\\?Z|\\text\w*\{\s?integers?\s?\})"
    r"|\s?(?:\\text\w*\{\s?)?(?:is|are)\s(?:an(?:y)?\s)?integers?)[})\s.$]*$"
    r"|[\s,;.(]{0,9}(?:\\text\w*\s?\{\s*)?\b(?:for|where|with)\s(?:all|any|some|every|an|each)?"
    r"\s?integers?\s?\}?\s?[\\($]{0,2}\s?[a-z]\s?[\\)$.}]*$"
)
_SCALE = re.compile(
    r"(?<=[\d}.)])[\s~]*(?:\\[,;: ]\s*)*(?:\\(?:text\w*|mathrm|mbox)\s?\{[\s~]*)?"
    rf"({'|'.join(SCALES)})s?(?![A-Za-z])\s*(?:[A-Za-z ]*\}})?",
    re.IGNORECASE,
)
_DEGREES = re.compile(r"(?<=[\d}])\s?(?:\\text\w*\s?\{\s?)?degrees?(?![A-Za-z])\s?\}?")
_QUOTED = re.compile(r"""(['"`]{1,3})(?!['"`])(.*)\1""", re.DOTALL)
_WITHIN = re.compile(r"^\| ?([a-z]) ?\| ?(<|\\le) ?([^|,]+)$")  # |x| < 3
_BEYOND = re.compile(r"^\| ?([a-z]) ?\| ?(>|\\ge) ?([^|,]+)$")
_FRENCH = re.compile(r"([\[\]])([^\[\]()]*[,;][^\[\]()]*)([\[\]])")  # ]2, 5[
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf|up)?|mbox|hbox|mathrm) ?\{([^{}]*)\}( ?\^ ?\{?[23]\}?)?"
)
_JOINER = re.compile(r"(?<![A-Za-z\\])(?:and/or|and|or)(?![A-Za-z])")
_ENDS_JOINING = re.compile(r"^[A-Za-z ]{0,40}(?:\b(?:and|or)|,)$")
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
    if match.string[match.end() :].lstrip()[:1].isdigit() and _ENDS_JOINING.search(words):
        return " , "  # 6 \\text{ cats and } 2
    after_value = before[-1:].isdigit() or before[-1:] in (")", "}", "]", ".", "!")
    if after_value and words not in ("e", "i"):
        return f" {words} " if _NOT_A_UNIT.search(words) else " "
    return f" {words}{power} "


def _part_of_reals(match: re.Match[str]) -> str:
    """ℝ with what stands above and below it as an interval; ℝ² stays."""
    deco = match[1].translate(_UNICODE).replace(">=", r"\ge").replace("<=", r"\le")
    key = re.sub(r"[{}\\\s]", "", _COMMAND.sub(_as_written_here, deco))
    return _PART_OF_REALS.get(key, match[0])


def _reals_in_words(match: re.Match[str]) -> str:
    """All positive real numbers, all real numbers except 1 and 2."""
    part = _PART_OF_REALS[(match[1] or "all").lower().replace("-", "")]
    if match[2] is None:
        return part
    points = re.sub(r"\b[a-z]\s?(?:=|\\neq?|≠)|\$", "", match[2]).strip(" .")
    if points.count("}") > points.count("{"):  # the end of \\text{all real numbers except }
        points = points.replace("}", "", 1)
    return rf"{part} \setminus \{{{points}\}}"


def _half_open(match: re.Match[str]) -> str:
    """]2, 5[ as (2, 5)."""
    return f"{'[' if match[1] == '[' else '('}{match[2]}{']' if match[3] == ']' else ')'}"


def _as_written_here(command: re.Match[str]) -> str:
    return " " if _LOOKS.fullmatch(command[1]) else _COMMANDS.get(command[1], command[0])


@lru_cache(maxsize=16384)
def one_spelling(latex: str) -> str:
    """The answer in the one spelling that `read_answer` reads."""
    text = plain_characters(latex.strip())
    if "\\in" in text or "∈" in text or "nteger" in text:
        text = _INTEGERS.sub("", text)
    text = _ROOT_OF_NUMBER.sub(r"\\sqrt{\1}", text)
    if (words := ALL_REALS.search(text)) and not re.search(
        r"\w", text[: words.start()].replace("\\text", "")
    ):
        text = _reals_in_words(words)
    text = _LESS_A_SET.sub(r" \\setminus ", _REALS.sub(_part_of_reals, text)).translate(_UNICODE)
    text = _SCALE.sub(lambda m: f" * 10^{{{SCALES[m[1].lower()]}}}", text)
    text = _DEGREES.sub(r"^\\circ ", text)
    if quoted := _QUOTED.fullmatch(text.strip(" .")):
        text = quoted[2]
    if "\\begin" not in text:
        text = _ESCAPED_TWICE.sub(r"\\", text).replace("\\&", ",").replace("&", ",")
    text = " ".join(text.replace("\\\\", ROW).split())
    for pattern, plain in _SPELLINGS:
        text = pattern.sub(plain, text)
    text = _COMMAND.sub(_as_written_here, text)
    text = " ".join(_JOINER.sub(",", _TEXT.sub(_words, text)).split())
    if not any(bracket in text for bracket in "([{"):
        text = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    text = _UNIT.sub(" ", text).strip(_OUTER).rstrip(".\\").strip(_OUTER)
    text = _FRENCH.sub(_half_open, text)
    return _WITHIN.sub(r"-(\3) \2 \1 \2 \3", _BEYOND.sub(r"\1 \2 \3 , -(\3) \2 \1", text))


# --- comparing ----------------------------------------------------------------------------------

_LETTERS = re.compile(r"[A-Za-z]{2}[A-Za-z\s.'-]*")
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")
_PROSE = re.compile(r"[A-Za-z][A-Za-z\s.,;:!?'-]*")
_INTEGER_NAME = re.compile(r"(?<![A-Za-z\\])[k-n](?![A-Za-z])|(?<=\\pi)\s?[k-n]\b")
_COMES_TO = re.compile(r"=|\\(?:approx|(?:Long)?[Rr]ightarrow|implies|to)(?![a-z])")
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
_BRACKETS = {"<": "()", r"\le": "[]"}


def same_math(mine: str, gold: str) -> bool | None:
    """Whether two answers as written mean the same; None where math_verify ran out of time."""
    a, b = one_spelling(mine), one_spelling(gold)
    if mine == gold or "".join(a.split()) == "".join(b.split()):
        return True
    if _LETTERS.fullmatch(a) and _LETTERS.fullmatch(b) and _bare_letters(a) == _bare_letters(b):
        return True
    numbers = [read_number(answer, units=False) for answer in (a, b)]
    if numbers[0] is not None and numbers[0] == numbers[1]:
        return True
    for answer, other in ((a, numbers[1]), (b, numbers[0])):
        if other is not None and _DECIMAL_COMMA.fullmatch(answer):  # 1,5 beside 1.5 is no list
            return read_number(answer) == other
    x, y = read_answer(a), read_answer(b)
    if x is not None and y is not None:
        verdict = _same_reading(a, b, x, y, has_percent(mine) - has_percent(gold))
        if verdict is not None:
            return verdict
    if x is None and "=" not in b and (end := _COMES_TO.split(a)[-1]) != a:
        return same_math(end, gold)  # 4 \\star 6 = 10^2 = 100
    if any(node is None and _PROSE.fullmatch(text) for node, text in ((x, a), (y, b))):
        return False
    return symbolically_equal(a.replace(ROW, r"\\"), b.replace(ROW, r"\\"))


def _same_reading(a: str, b: str, x: Node, y: Node, percent: int) -> bool | None:
    """The verdict on what was read; ``percent``: 1 where mine alone has the sign, -1 the gold."""
    if _is_angle(a, b) or _is_angle(b, a):
        return same_answer(read_answer(a, radians=True), read_answer(b, radians=True))
    if percent and isinstance(x, Value) and isinstance(y, Value):
        pair = (_hundredth(x), y) if percent > 0 else (x, _hundredth(y))
        if same_value(*pair):
            return True
    renamed = _renamed(a, b)
    if renamed != a and (other := read_answer(renamed)) and same_answer(other, y):
        return True
    return same_answer(x, y)


def is_list(answer: str) -> bool:
    """Whether an answer as written is a plain list or a set."""
    node = read_answer(one_spelling(answer))
    return isinstance(node, Sequence) and node.open in ("", "{")


def _bare_letters(text: str) -> str:
    return re.sub(r"[\W_]", "", text).lower()


def _is_angle(one: str, other: str) -> bool:
    """Whether one is in degrees and the other in radians, a multiple of π."""
    return r"\circ" in one and r"\pi" in other and r"\circ" not in other


def _renamed(mine: str, gold: str) -> str:
    """nπ with the gold's k, where either counts a family of solutions by one letter."""
    ours, theirs = (set(map(str.strip, _INTEGER_NAME.findall(text))) for text in (mine, gold))
    if len(ours) == len(theirs) == 1 and re.search(r"\\pi|\\circ", gold):
        return _INTEGER_NAME.sub(f" {theirs.pop()} ", mine)
    return mine


def _hundredth(percent: Value) -> Value:
    """33.3 as 0.333, with as many digits in its literal."""
    digits, _, decimals = percent.literal.partition(".")
    literal = f"0.{digits.zfill(2)}{decimals}" if digits.isdecimal() else ""
    return replace(apply(divide, percent, constant(100)), literal=literal)


def same_answer(mine: Node, gold: Node) -> bool | None:
    """Whether ``mine`` is the answer ``gold``."""
    if (same := _same_region(mine, gold)) is not None:
        return same
    if isinstance(mine, Relation) or isinstance(gold, Relation):
        return _same_relation(mine, gold)
    if isinstance(mine, Value) and isinstance(gold, Value):
        return _same_but_for_base(mine, gold) or same_value(mine, gold)
    for one, other in ((mine, gold), (gold, mine)):
        is_single = isinstance(other, Sequence) and len(other.items) == 1
        if is_single and (
            isinstance(one, Value) or (other.open == "{" != getattr(one, "open", ""))
        ):
            return same_answer(one, other.items[0])
        if isinstance(one, Value) and isinstance(other, Sequence | Union | Without):
            return False
    if isinstance(mine, Sequence) and isinstance(gold, Sequence):
        return _same_sequence(mine, gold)
    if isinstance(mine, Union) and isinstance(gold, Union):
        return _unordered(mine.parts, gold.parts) or None
    return None


def _same_but_for_base(a: Value, b: Value) -> bool:
    """Whether one is 12_5 and the other 12, in a question that names the base."""
    (one, _, base), (other, _, base_too) = (value.literal.partition("_") for value in (a, b))
    return one == other and one[:1].isdecimal() and bool(base) != bool(base_too)


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    verdicts = list(verdicts)
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _ordered(mine: tuple[Node, ...], gold: tuple[Node, ...]) -> bool | None:
    return len(mine) == len(gold) and _all(map(same_answer, mine, gold))


def _unordered(mine: Iterable[Node], gold: Iterable[Node]) -> bool | None:
    """Whether two sets are the same: each item of either is an item of the other."""
    table = [[same_answer(item, other) for other in gold] for item in mine]
    return _all(
        True if True in verdicts else None if None in verdicts else False
        for verdicts in (*table, *zip(*table, strict=True))
    )


def _same_sequence(mine: Sequence, gold: Sequence) -> bool | None:
    if (mine.open == "matrix") != (gold.open == "matrix"):
        mine, gold = _as_tuple(mine, gold), _as_tuple(gold, mine)
    kinds = {mine.open, gold.open}
    if kinds <= {"", "{"}:
        return _unordered(mine.items, gold.items)
    if not mine.open and gold.open == "[" and len(gold.items) == 2:
        return False  # 2, 7 is no interval
    solved = [_is_equation(item) and _solved(item) for item in mine.items]
    names = [getattr(pair and pair[0], "literal", "") for pair in solved]
    if not mine.open and all(names):  # y = 2, x = 1
        order = sorted(range(len(names)), key=names.__getitem__)
        mine = replace(mine, items=tuple(mine.items[i] for i in order))
    same_brackets = (mine.open, mine.close) == (gold.open, gold.close)
    if same_brackets or "" in kinds or (len(gold.items) > 2 and kinds == {"(", "["}):
        return _ordered(mine.items, gold.items)
    return None if "{" in kinds or ":" in kinds else False


def _as_tuple(node: Sequence, other: Sequence) -> Sequence:
    """A vector without its direction, in the brackets of the other one."""
    rows = node.items if node.open == "matrix" else ()
    if len(rows) == 1 or (rows and all(len(row.items) == 1 for row in rows)):
        return replace(other, items=tuple(cell for row in rows for cell in row.items))
    return node


# --- equations, inequalities, intervals ---------------------------------------------------------


def _is_name(node: Node) -> bool:
    """Whether a side only names what the other side gives: x, f(x), (x, y)."""
    if isinstance(node, Sequence):
        return all(_is_name(item) for item in node.items)
    return isinstance(node, Value) and not node.is_constant and bool(node.literal)


def _is_equation(node: Node) -> bool:
    return isinstance(node, Relation) and set(node.signs) == {"="}


def _solved(relation: Relation) -> tuple[Node, Node] | None:
    """The name and the value of x = 5, 5 = x or x = 2 + 3 = 5; None for another equation."""
    first, last = relation.sides[0], relation.sides[-1]
    if _is_name(first):
        return first, last
    return (last, first) if _is_name(last) else None


def _same_relation(mine: Node, gold: Node) -> bool | None:
    if not isinstance(gold, Relation):
        if not _is_equation(mine):
            return False if isinstance(gold, Value) else None
        return same_answer((_solved(mine) or mine.sides)[-1], gold)
    if not isinstance(mine, Relation):
        solved = _is_equation(gold) and _solved(gold)
        if solved:
            return same_answer(mine, solved[1])
        return False if _is_equation(gold) or isinstance(mine, Value) else None
    a, b = _ascending(mine), _ascending(gold)
    if a.signs == b.signs and _ordered(a.sides, b.sides):
        return True
    if _is_equation(mine) and _is_equation(gold):
        a, b = _solved(mine), _solved(gold)
        if a and b and (same_answer(a[0], b[0]) or _is_formula(a[1], b[1])):
            return same_answer(a[1], b[1])
    return None


def _is_formula(*nodes: Node) -> bool:
    """Whether a right side is a formula with variables, so that y = 2x may be f(x) = 2x."""
    return all(
        isinstance(node, Value) and not node.is_constant and not node.literal for node in nodes
    )


def _ascending(relation: Relation) -> Relation:
    """The same chain written with < and ≤."""
    if relation.signs[0] in (">", r"\ge"):
        signs = tuple(_FLIPPED.get(sign, sign) for sign in reversed(relation.signs))
        return Relation(tuple(reversed(relation.sides)), signs)
    return relation


# --- parts of the real line ---------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Cut:
    """An end of an interval: a number, and whether just before it (-1) or just behind it (1)."""

    number: Number
    side: int
    value: Value = field(compare=False)


Region = frozenset[Cut]  # in their order, they lead into the region and out of it by turns


def _interval(low: Node, high: Node, brackets: str = "[]") -> Region | None:
    """None where an end is no real number, or the low one is not below the high one."""
    if not all(isinstance(end, Value) and end.is_constant for end in (low, high)):
        return None
    ends = low.points[0], high.points[0]
    if complex in map(type, ends):
        return None
    start = Cut(ends[0], -1 if brackets[0] == "[" else 1, low)
    end = Cut(ends[1], 1 if brackets[1] == "]" else -1, high)
    return frozenset((start, end)) if start < end else None


_LOW, _HIGH = constant(-math.inf), constant(math.inf)
_LINE = _interval(_LOW, _HIGH, "()")


def _joined(regions: Iterable[Region]) -> Region:
    """A walk along the line: where it enters a first region or leaves the last one, a cut stays."""
    steps = [(cut, i % 2) for region in regions for i, cut in enumerate(sorted(region))]
    inside, cuts = 0, set()
    for cut, leaves in sorted(steps):
        before, inside = inside, inside - 1 if leaves else inside + 1
        if not before or not inside:
            cuts ^= {cut}
    return frozenset(cuts)


def _common(regions: Iterable[Region]) -> Region:
    return _LINE ^ _joined(_LINE ^ region for region in regions)


def _region(node: Node) -> tuple[Region, str] | None:
    """The part of the line that a node means, and the name by which inequalities say so, or ""."""
    if isinstance(node, Relation):
        return _where_it_holds(_ascending(node))
    if isinstance(node, Value):
        region = _interval(node, node)
    elif isinstance(node, Without):
        base, removed = _region(node.base), _region(node.removed)
        region = _common([base[0], _LINE ^ removed[0]]) if base and removed else None
    elif isinstance(node, Union):
        return _of_parts(node.parts)
    elif node.open == "{" and all(isinstance(item, Value) for item in node.items):
        return _of_parts(node.items)
    elif node.open in ("(", "[") and len(node.items) == 2:
        region = _interval(*node.items, node.open + node.close)
    else:
        return _of_list(node) if not node.open else None
    return region and (region, "")


def _of_list(node: Sequence) -> tuple[Region, str] | None:
    """Of x > 2, x < 5, of x ≠ 1, 2 and of (-∞, 1), (2, ∞); 2, 7 and (1, 2), (3, 4) are none."""
    items, first = node.items, node.items[0]
    if isinstance(first, Relation) and first.signs == (r"\ne",):
        items = [
            replace(first, sides=(first.sides[0], i)) if isinstance(i, Value) else i for i in items
        ]
    if any(isinstance(item, Value) for item in items):
        return None
    result = _of_parts(items)
    infinite = result and any(math.isinf(cut.number) for cut in result[0])
    return result if result and (result[1] or infinite) else None


def _of_parts(nodes: Iterable[Node]) -> tuple[Region, str] | None:
    """x > 2, x < 5 have a part in common, which is meant; x < 2, x > 5 and intervals are joined."""
    results = [_region(node) for node in nodes]
    if not all(results) or len(names := {name for _, name in results} - {""}) > 1:
        return None
    regions, name = [region for region, _ in results], "".join(names)
    return (name and _common(regions)) or _joined(regions), name


def _where_it_holds(chain: Relation) -> tuple[Region, str] | None:
    """a < x ≤ b is (a, b], x < b is (-∞, b), x ≠ b is all but b."""
    sides, signs = chain.sides, chain.signs
    if len(signs) == 1 and signs[0] in ("=", r"\ne"):
        name, point = sides[0], _interval(sides[1], sides[1])
        region = point and (point if signs[0] == "=" else _LINE ^ point)
    else:
        if len(signs) == 1:
            below = _is_name(sides[0])
            sides = (_LOW, *sides) if below else (*sides, _HIGH)
            signs = ("<", *signs) if below else (*signs, "<")
        if len(signs) != 2 or not _BRACKETS.keys() >= set(signs):
            return None
        name, brackets = sides[1], _BRACKETS[signs[0]][0] + _BRACKETS[signs[1]][1]
        region = _interval(sides[0], sides[2], brackets)
    if not region or not isinstance(name, Value) or not _is_name(name):
        return None
    return region, name.literal.replace("?", "")


def _same_region(mine: Node, gold: Node) -> bool | None:
    """Whether both mean the same part of the line; None where one means none, or only points."""
    results = _region(mine), _region(gold)
    if not all(results):
        return None
    (a, name), (b, other) = results
    if name and other and name != other:
        return None
    are_points = all(2 * len({cut.number for cut in region}) == len(region) for region in (a, b))
    if (
        are_points
        and not isinstance(mine, Union | Without)
        and not isinstance(gold, Union | Without)
    ):
        return None
    if [cut.side for cut in sorted(a)] != [cut.side for cut in sorted(b)]:
        return False
    return _all(same_value(p.value, q.value) for p, q in zip(sorted(a), sorted(b), strict=True))
