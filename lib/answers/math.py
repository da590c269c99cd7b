r"""Whether two mathematical answers mean the same.

First the notation is brought to one spelling (``\dfrac12``, ``½`` and ``\frac{1}{2}`` read
alike), then the meaning is compared (`lib.answers.formulas` reads it); what is outside of that
grammar is right only as it is spelled. Order matters in tuples, points, intervals and matrices, and
not in sets and plain lists. The gold answer sets the form: for the gold "5" the answer "x = 5" is
right, for the gold "x + y = 5" the answer "5" is not.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from lib.answers.formulas import (
    ROW,
    Node,
    Relation,
    Sequence,
    Unreadable,
    Value,
    apply,
    constant,
    divide,
    read_answer,
    same_value,
)
from lib.answers.numerals import BOLD, SCALES, has_percent, plain_characters, read_number
from lib.answers.readers import ALL_REALS, CJK, NONE

# --- one spelling: only notation that carries no value goes -------------------------------------

_UNICODE = str.maketrans(
    {
        "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ",
        "∓": r"\mp ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "√": r"\sqrt ",
        "∅": r"\emptyset ", "≈": r"\approx ", "°": r"^\circ ", "θ": r"\theta ",
        "α": r"\alpha ", "β": r"\beta ", "ω": r"\omega ", "φ": r"\phi ", "λ": r"\lambda ",
        "…": r"\ldots ", "∖": r"\setminus ", "℃": r"^\circ ", "℉": r"^\circ ", "∛": r"\sqrt[3]",
        "∨": ",", "∧": ",", **dict.fromkeys("∠€£¥%", " "),
        **{chr(0x2080 + n): f"_{n}" for n in range(10)},
    }
)  # fmt: skip

# What a command is written as here; one of looks alone is left out.
_LOOKS = re.compile(
    r"left|right|middle|[bB]igg?[lrm]?|(?:display|text)style|limits|rm|bf|it|bm|bold(?:symbol)?"
    r"|math(?:bf|it|sf|tt|bb|cal|frak)|vec|overrightarrow|f?box|boxed|angle|triangle|underline"
    r"|checkmark|blacksquare"
)
_COMMANDS = {
    "dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac", "dbinom": r"\binom",
    "tbinom": r"\binom", "leq": r"\le ", "leqq": r"\le ", "leqslant": r"\le ", "geq": r"\ge ",
    "geqq": r"\ge ", "geqslant": r"\ge ", "neq": r"\ne ", "lt": "<", "gt": ">", "times": "*",
    "cdot": "*", "ast": "*", "div": "/", "vert": "|", "lvert": "|", "rvert": "|",
    "lbrace": r"\{", "rbrace": r"\}", "langle": "(", "rangle": ")", "lbrack": "[", "rbrack": "]",
    "vartheta": r"\theta", "varphi": r"\phi", "varepsilon": r"\epsilon", "degree": r"^\circ ",
    "bar": r"\overline", "dot": r"\overline", "varnothing": r"\emptyset ",
    "backslash": r"\setminus ", "smallsetminus": r"\setminus ",
    **dict.fromkeys(("lor", "land", "vee", "wedge"), ","),
}  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_PART_OF_REALS = {
    key: part
    for keys, part in {
        " all any": r"(-\infty ,\infty )",
        "^+ _>0 ^>0 positive": r"(0,\infty )",
        "^- _<0 ^<0 negative": r"(-\infty ,0)",
        "_+ _ge0 ^ge0 ^+_0 _0^+ nonnegative": r"[0,\infty )",
        "_- _le0 ^le0 ^-_0 _0^- nonpositive": r"(-\infty ,0]",
        "^* _ne0 nonzero": r"((-\infty ,0)\cup (0,\infty ))",
    }.items()
    for key in keys.split(" ")
}
_ENDS_JOINING = re.compile(r"^[A-Za-z ]{0,40}(?:\b(?:and|or)|,)$")
_NOT_A_UNIT = re.compile(r"\d|\b(?:or|and|if|when)\b")
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}


def _as_written_here(command: re.Match[str]) -> str:
    return " " if _LOOKS.fullmatch(command[1]) else _COMMANDS.get(command[1], command[0])


def _words(match: re.Match[str]) -> str:
    """What \\text{…} says: a joiner is a comma, letters right after a value are its unit and go."""
    words, power = match[1].strip(), match[2] or ""
    before = match.string[: match.start()].rstrip()
    if match.string[match.end() :].lstrip()[:1].isdigit() and _ENDS_JOINING.search(words):
        return " , "  # 6 \\text{ cats and } 2
    after_value = before[-1:].isdigit() or before.endswith((")", "}", "]", ".", "!", r"\pi"))
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


def _absolute(match: re.Match[str]) -> str:
    """|x - 1| < 3 as x < (3) + (1), x > -(3) + (1); |x| > 3 as x > 3, x < -3."""
    name, sign, by, relation, limit = match.groups()
    shift = f"{'-' if sign == '+' else '+'}({by})" if sign else ""
    return f"{name} {relation} ({limit}){shift} , {name} {_FLIPPED[relation]} -({limit}){shift}"


def _rules(*rules: tuple) -> list[tuple]:
    return [(re.compile(pattern, *flags), plain) for pattern, plain, *flags in rules]


_TEXT_OPENS = r"\\(?:text\w*|mathrm|mbox)\s?\{"
_AS_WRITTEN = _rules(
    # What names the integer of a family of solutions: ", n \\in \\mathbb{Z}", "for integer n".
    (
        r"[\s,;.(]{0,9}(?:\\(?:quad|text\w*\s?\{\s?(?:where|for|with|and)?\s?\}|[,;! ])\s?)*"
        r"(?:\b(?:where|for|with)\s)?\$?\\?\(?(?<![A-Za-z\\])[a-s]\s?\$?"
        r"(?:(?:\\in|∈)\s?(?:\\mathbb\s?\{?\s?[ZN]\s?\}?|ℤ|ℕ|\\?Z|\\text\w*\{\s?integers?\s?\})"
        r"|\s?(?:\\text\w*\{\s?)?(?:is|are)\s(?:an(?:y)?\s)?integers?)[})\s.$]*$"
        r"|[\s,;.(]{0,9}(?:\\text\w*\s?\{\s*)?\b(?:for|where|with)\s(?:all|any|some|every|an|each)?"
        r"\s?integers?\s?\}?\s?[\\($]{0,2}\s?[a-z]\s?[\\)$.}]*$",
        "",
    ),
    (r"([√∛]) ?(\d+(?:\.\d+)?)", r"\1{\2}"),
    (r"\\Bbb(?![A-Za-z])", r"\\mathbb"),
    (r"\\(?:text)?color\s?\{\w+\}|(?<=\d)\{\}", " "),
    (r"(\d{0,12}\.\d{0,12}?)(\d{1,6}?)\2+\s?(?:\.{3}|…|\\[lc]?dots)", r"\1\\overline{\2}"),
    (r"(\d\.\d{0,12})\((\d{1,6})\)(?![\w^*/(])", r"\1\\overline{\2}"),  # 0.1(6)
    (r"(?:\d\u0305)+", lambda match: rf"\overline{{{match[0][::2]}}}"),
    (rf"^{_TEXT_OPENS}\(?[A-E][).]\s?\}}(?:\\?[\s,;:~])*(?=[^\s\\]|\\[a-z])", ""),  # (B) 7
    (rf"^{_TEXT_OPENS}[A-Za-z ,']*\b(?:is|are|equals)[:\s]*\}}", ""),
    (rf"[\s,]*{_TEXT_OPENS}[\s,]*for (?:all|any|every)[A-Za-z ]*\}}\s?[a-z]?\s*$", ""),
    (rf"^(?:{_TEXT_OPENS})?(?:there (?:is|are) )?{NONE}\W*$", r"\\emptyset", re.I),
    (rf"(?<=\d)\s?{_TEXT_OPENS}\s?to\s?\}}\s?(?=\d)", ":"),
    (rf"(?<=\d)[\s\\,]*?\\[dt]?frac(?:\{{{_TEXT_OPENS}[^{{}}]*\}}\}}){{2}}$", ""),  # m/s
    (rf"^(?:\\text|\W)*+{ALL_REALS.pattern}\W*$", _reals_in_words, re.IGNORECASE),
    (
        r"(?:ℝ|\\math(?:bb|bf|rm)\s?\{?\s?R\s?\}?+|\\(?:R|reals)(?![A-Za-z]))"
        r"((?:\s?[\^_]\s?(?:\{[^{}]*\}|[-+*0])){0,2}+)(?!\s?[\^_])",
        _part_of_reals,
    ),
    # ℝ - \{0\}, and ℝ\{0}, in which the backslash is the difference
    (r"(?<=\\infty \)) ?(?:(?:-|\\) ?(?=\\?\{)|\\(?=\{[^{}\\]*\}))", r" \\setminus "),
)
_QUANTITIES = _rules(
    (
        rf"(?<=[\d}}.)])[\s~]*(?:\\[,;: ]\s*)*(?:{_TEXT_OPENS}[\s~]*)?"
        rf"({'|'.join(SCALES)})s?(?![A-Za-z])\s*(?:[A-Za-z ]*\}})?",
        lambda match: f" * 10^{{{SCALES[match[1].lower()]}}}",
        re.IGNORECASE,
    ),
    (rf"(?<=[\d}}])\s?(?:{_TEXT_OPENS}\s?)?degrees?(?![A-Za-z])\s?\}}?", r"^\\circ "),
    (r"""(?s)^[ .]*(['"`]{1,3})(?!['"`])(.*)\1[ .]*$""", r"\2"),
)
_ESCAPED_TWICE = re.compile(r"\\\\(?=[A-Za-z]{2}|[(){}\[\]])")
_ALL_TWICE = re.compile(r"(?<!\\)\\\\begin")
_SPELLINGS = _rules(
    (r"(?<=\d)(?:'|\ ?\{,\ ?\}|,?\\[,!;: ]{1,4}|\{,\\!\}|,~)\ ?(?=\d{3}(?!\d))", ""),  # 12{,}345
    (r"(?<=\d)\{,\}(?=\d)", ","),
    (r"(?<![\w.,^/] )(?<![\w.,^/])(\d+) (\d+/\d+)(?![\w.^])", r"(\1+\2)"),  # 2 1/2
    (r"\\q?quad|\\(?:begin|end)\{(?:align|equation|gather)(?:ed)?\*?\}|\\(?:left|right)\.", " "),
    (r"^[\s$]*\\approx(?![A-Za-z])|\\[,!;:> ]|~|\\[()\[\]]|\\?\$|\\%|`|" + BOLD, " "),
    (r"(?<=[\w)}\]])\s?\.\s*$", ""),  # the end of a sentence
    (r"\\operatorname\*?\ ?\{([a-zA-Z]+)\}", r"\\\1 "),
    (r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
    (r"(?<=[)\]])\s?U\s?(?=[(\[])", r"\\cup "),
    (r"(?<=[)\]])\s?\^\s?\{?\s?(?:T|\\top)\s?\}?$", ""),  # a column
    (r"<=", r"\\le "),
    (r">=", r"\\ge "),
    (r"!=|\\not\ ?=", r"\\ne "),
    (r"\\\{\s?\\\}", r"\\emptyset "),
    (r"\^\s?(\w)\s?_\s?(\w)", r"_\2^\1"),  # v^2_0
    (r"\^\s?(?:\{\s?\\circ\s?\}|\{o\}|o(?!\w)|\{?\\(?:text|mathrm)\s?\{o\}\s?\}?)", r"^\\circ "),
    (rf"\^\\circ\s*(?:{_TEXT_OPENS})?\s?[CF]\s?\}}?\s*$", ""),  # 20°C
    (_COMMAND.pattern, _as_written_here),
    (r"(?<![/^\d.])(\d+\.\d+) ?\* ?10 ?\^ ?(?:\{ ?([+-]?\d{1,3}) ?\}|([+-]?\d{1,3}))", r"\1e\2\3"),
    (
        r"(?:\\\{ ?)?\\begin ?\{(?:cases|array)\}(?: ?\{[lcr]\})?([^&]*=[^&]*)\\end ?\{\w+\}",
        lambda match: match[1].replace(ROW, ","),
    ),
    (
        r"\\(?:text(?:bf|it|rm|normal|sf|up)?|mbox|hbox|mathrm) ?\{([^{}]*)\}( ?\^ ?\{?[23]\}?)?",
        _words,
    ),
    (r"(?<![A-Za-z\\])(?:and/or|and|or)(?![A-Za-z])", ","),
    (r"\s+", " "),
)
# A comma before three digits is a thousands separator, but in brackets it may be a list's.
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_UNIT = re.compile(
    r"""(?:(?<=[\d)}\].])\ [mglshLV]      # 5 m, but 5m has a variable
      |(?:(?<=[\d)}\].])|(?<=pi))\ ?(?:(?:sq(?:uare|\.)?|cubic|cu\.?)\ ?)?
       (?:rad|lbs?|oz|pct|[ckm]m|[km]g|ml|mi|mph|ft|in|yd|ton|sec|min|hrs?|day|way
         |[apAP]\.?[mM]\.?|[A-Za-z]{4,30}|CJK{1,6}))
    (?:\ ?(?:\^\ ?\{?\ ?[23]\ ?\}?|squared|cubed|(?:per|/)\ ?[A-Za-z]{1,30})){0,3}
    (?=\ ?(?:,|$))""".replace("CJK", f"[{CJK}]"),
    re.VERBOSE,
)
_OUTER = " ,;:=_" + ROW
_AT_LAST = _rules(
    # ]2, 5[ is (2, 5)
    (
        r"((?<!sqrt)(?<!sqrt )\[|(?<![\d}\])])\])([^\[\]()]*[,;][^\[\]()]*)([\[\]])",
        lambda m: f"{'[' if m[1] == '[' else '('}{m[2]}{']' if m[3] == ']' else ')'}",
    ),
    (
        r"^\| ?([a-z]) ?(?:([-+]) ?((?:\\[a-z]+|[^|A-Za-z])+?))? ?\|"
        r" ?([<>]|\\[lg]e(?![a-z])) ?([^|,]+)$",
        _absolute,
    ),
)


@lru_cache(maxsize=16384)
def one_spelling(latex: str) -> str:
    """The answer in the one spelling that `read_answer` reads."""
    text = _spelled(_AS_WRITTEN, plain_characters(latex.strip())).translate(_UNICODE)
    text = _spelled(_QUANTITIES, text)
    if _ALL_TWICE.search(text):
        text = text.replace("\\\\", "\\")
    if "\\begin" not in text:
        text = _ESCAPED_TWICE.sub(r"\\", text).replace("\\&", ",").replace("&", ",")
    text = _spelled(_SPELLINGS, " ".join(text.replace("\\\\", ROW).split())).strip()
    if not any(bracket in text for bracket in "([{"):
        text = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    text = _UNIT.sub(" ", text).strip(_OUTER).rstrip(".\\").strip(_OUTER)
    return _spelled(_AT_LAST, text)


def _spelled(rules: list[tuple], text: str) -> str:
    for pattern, plain in rules:
        text = pattern.sub(plain, text)
    return text


# --- comparing ----------------------------------------------------------------------------------

_LETTERS = re.compile(r"[A-Za-z]{2}[A-Za-z\s.'-]*")
# 1,5 and 1.234,5 and 1.234.567
_DECIMAL_COMMA = re.compile(r"-?(?:\d+|\d{1,3}(?:\.\d{3})+),\d+|-?\d{1,3}(?:\.\d{3}){2,}")
_CLOCK = re.compile(r"[012]?\d:[0-5]\d")
_SPACE_AND_BRACES = re.compile(r"\s|[{](?=\w})|(?<=[{]\w)}")
_NAMED = re.compile(r"[^=+*/^-]*=")  # |AB| =, S_1:S_2 =
_INTEGER_NAME = re.compile(r"(?<![A-Za-z\\])[k-n](?![A-Za-z])|(?<=\\pi)\s?[k-n]\b")
_COMES_TO = re.compile(r"=|\\(?:approx|(?:Long)?[Rr]ightarrow|implies|to)(?![a-z])")


def same_math(mine: str, gold: str) -> bool:
    """Whether two answers as written mean the same."""
    a, b = one_spelling(mine), one_spelling(gold)
    if mine == gold or _SPACE_AND_BRACES.sub("", a) == _SPACE_AND_BRACES.sub("", b):
        return True
    if all(map(_CLOCK.fullmatch, (a, b))):
        return False  # 1:20 and 2:40, which as ratios would be one
    letters = {re.sub(r"[\W_]", "", text).lower() for text in (a, b)}
    if len(letters) == 1 and all(map(_LETTERS.fullmatch, (a, b))):
        return True
    x, y = read_answer(a), read_answer(b)
    for answer, other in ((a, y), (b, x)):
        if isinstance(other, Value) and _DECIMAL_COMMA.fullmatch(answer):
            return same_value(constant(read_number(answer)), other)  # 1,5 beside 1.5 is no list
    if x is not None and y is not None:
        return _same_reading(a, b, x, y, has_percent(mine) - has_percent(gold))
    if x is None and "=" not in b and (end := _COMES_TO.split(a)[-1]) != a:
        return same_math(end, gold)  # 4 \\star 6 = 10^2 = 100
    name = _NAMED.match(b) if y is None and "=" not in a else None
    return bool(name) and same_math(mine, b[name.end() :])


def _same_reading(a: str, b: str, x: Node, y: Node, percent: int) -> bool:
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


def same_answer(mine: Node, gold: Node) -> bool:
    """Whether ``mine`` is the answer ``gold``."""
    if (same := _same_region(mine, gold)) is not None:
        return same
    if isinstance(mine, Relation) or isinstance(gold, Relation):
        return _same_relation(mine, gold)
    if isinstance(mine, Value) and isinstance(gold, Value):
        return _same_but_for_base(mine, gold) or same_value(mine, gold)
    for one, other in ((mine, gold), (gold, mine)):
        if isinstance(other, Sequence) and len(other.items) == 1:
            if isinstance(one, Value) or (other.open == "{" != one.open):
                return same_answer(one, other.items[0])
        elif isinstance(one, Value):
            return False
    return _same_sequence(mine, gold)


def _same_but_for_base(a: Value, b: Value) -> bool:
    """Whether one is 12_5 and the other 12, in a question that names the base."""
    (one, _, base), (other, _, base_too) = (value.literal.partition("_") for value in (a, b))
    return one == other and one[:1].isdecimal() and bool(base) != bool(base_too)


def _ordered(mine: tuple[Node, ...], gold: tuple[Node, ...]) -> bool:
    return len(mine) == len(gold) and all(map(same_answer, mine, gold))


def _unordered(mine: Iterable[Node], gold: Iterable[Node]) -> bool:
    """Whether two sets are the same: each item of either is an item of the other."""
    table = [[same_answer(item, other) for other in gold] for item in mine]
    return all(map(any, (*table, *zip(*table, strict=True))))


def _same_sequence(mine: Sequence, gold: Sequence) -> bool:
    if (mine.open == "matrix") != (gold.open == "matrix"):
        mine, gold = _as_tuple(mine, gold), _as_tuple(gold, mine)
    kinds = {mine.open, gold.open}
    if kinds <= {"", "{"}:
        return _unordered(mine.items, gold.items)
    if not mine.open and gold.open == "[" and len(gold.items) == 2:
        return False  # 2, 7 is no interval
    solved = [_solved(item) if _is_equation(item) else None for item in mine.items]
    if not mine.open and all(pair and isinstance(pair[0], Value) for pair in solved):
        order = sorted(zip(solved, mine.items, strict=True), key=lambda pair: pair[0][0].literal)
        mine = replace(mine, items=tuple(item for _, item in order))  # y = 2, x = 1
    same_brackets = (mine.open, mine.close) == (gold.open, gold.close)
    alike = same_brackets or "" in kinds or (len(gold.items) > 2 and kinds == {"(", "["})
    return alike and _ordered(mine.items, gold.items)


def _as_tuple(node: Sequence, other: Sequence) -> Sequence:
    """A vector without its direction, in the brackets of the other one."""
    rows = [row for row in node.items if isinstance(row, Sequence)] if node.open == "matrix" else []
    if len(rows) == 1 or (rows and all(len(row.items) == 1 for row in rows)):
        return replace(other, items=tuple(cell for row in rows for cell in row.items))
    return node


# --- equations and inequalities -----------------------------------------------------------------


def _is_name(node: Node) -> bool:
    """Whether a side only names what the other side gives: x, f(x), (x, y)."""
    if isinstance(node, Sequence):
        return all(_is_name(item) for item in node.items)
    return isinstance(node, Value) and not node.is_constant and bool(node.literal)


def _is_equation(node: Node) -> bool:
    return isinstance(node, Relation) and set(node.signs) == {"="}


def _solved(relation: Relation) -> tuple[Node, Node] | None:
    """What is sought and its value in x = 5, 5 = x, x = 2 + 3 = 5 or 2 + 3 = 5; None for another
    equation."""
    first, last = relation.sides[0], relation.sides[-1]
    if _is_name(first) or all(same_answer(first, side) for side in relation.sides[1:]):
        return first, last
    return (last, first) if _is_name(last) else None


def _same_relation(mine: Node, gold: Node) -> bool:
    if not isinstance(gold, Relation):
        return _is_equation(mine) and same_answer((_solved(mine) or mine.sides)[-1], gold)
    if not isinstance(mine, Relation):
        solved = _is_equation(gold) and _solved(gold)
        return bool(solved) and same_answer(mine, solved[1])
    flipped = tuple(_FLIPPED.get(sign, sign) for sign in reversed(mine.signs))
    for sides, signs in ((mine.sides, mine.signs), (mine.sides[::-1], flipped)):
        if signs == gold.signs and _ordered(sides, gold.sides):
            return True
    if _is_multiple(mine, gold):
        return True
    if _is_equation(mine) and _is_equation(gold):
        a, b = _solved(mine), _solved(gold)
        if a and b and (same_answer(a[0], b[0]) or all(map(_is_formula, (a[1], b[1])))):
            return same_answer(a[1], b[1])
    return False


def _is_multiple(mine: Relation, gold: Relation) -> bool:
    """Whether 10 > 2x + 2y is a multiple of x + y < 5."""
    try:
        a, b = (apply(operator.sub, *relation.sides) for relation in (mine, gold))
        ratio = apply(divide, a, b)
    except (Unreadable, TypeError):
        return False
    factor = ratio.points[0]
    if a.is_constant or b.is_constant or not factor or not same_value(ratio, constant(factor)):
        return False
    turned = mine.signs[0] in _FLIPPED and (isinstance(factor, complex) or factor < 0)
    return gold.signs[0] == (_FLIPPED[mine.signs[0]] if turned else mine.signs[0])


def _is_formula(node: Node) -> bool:
    """Whether a right side is a formula with variables, so that y = 2x may be f(x) = 2x."""
    return isinstance(node, Value) and not node.is_constant and not node.literal


# --- parts of the real line ---------------------------------------------------------------------


_LOW, _HIGH = constant(-math.inf), constant(math.inf)
_HOLDS = {
    "<": operator.lt, r"\le": operator.le, "=": operator.eq, r"\ne": operator.ne,
    ">": operator.gt, r"\ge": operator.ge,
}  # fmt: skip


class _Line:
    """The real line as far as two answers tell it apart: 1, 3, 5, … are their ends, and 0, 2, 4, …
    the gaps between. A part of the line is a set of these."""

    def __init__(self, mine: Node, gold: Node):
        numbers = {end: end.points[0] for end in (*_ends(gold), _LOW, _HIGH)}
        theirs = {number: end for end, number in numbers.items()}
        for end in _ends(mine):
            number = end.points[0]
            alike = (n for n, other in theirs.items() if same_value(end, other))
            numbers[end] = number if number in theirs else next(alike, number)
        order = sorted(set(numbers.values()))
        self.places = {end: 2 * order.index(number) + 1 for end, number in numbers.items()}
        self.whole = set(range(2, 2 * len(order) - 1))

    def interval(self, low: Node, high: Node, brackets: str = "[]") -> set[int]:
        """Empty where an end is no real number, or the low one is not below the high one."""
        if low not in self.places or high not in self.places:
            return set()
        start = self.places[low] + (brackets[0] != "[")
        return set(range(start, self.places[high] + (brackets[1] == "]")))

    def part(self, node: Node) -> tuple[set[int], str] | None:
        """The part that a node means, and the name by which inequalities say so, or ""."""
        part = None
        if isinstance(node, Relation):
            return self.where_it_holds(node)
        if isinstance(node, Value):
            part = self.interval(node, node)
        elif node.open == "\\setminus":
            base, removed = map(self.part, node.items)
            part = base and removed and base[0] - removed[0]
        elif node.open == "\\cup" or (
            node.open == "{" and all(isinstance(item, Value) for item in node.items)
        ):
            return self.of_parts(node.items)
        elif node.open in ("(", "[") and len(node.items) == 2:
            part = self.interval(*node.items, node.open + node.close)
        elif not node.open:
            return self.of_list(node)
        return (part, "") if part else None

    def of_list(self, node: Sequence) -> tuple[set[int], str] | None:
        """Of x > 2, x < 5, of x ≠ 1, 2 and of (-∞, 1), (2, ∞); 2, 7 and (1, 2), (3, 4) are none."""
        items, first = node.items, node.items[0]
        if isinstance(first, Relation) and first.signs == (r"\ne",):
            name = first.sides[0]
            items = [Relation((name, i), first.signs) if isinstance(i, Value) else i for i in items]
        result = self.of_parts(items)
        infinite = result and (2 in result[0] or max(self.whole) in result[0])
        return result if result and (result[1] or infinite) else None

    def of_parts(self, nodes: Iterable[Node]) -> tuple[set[int], str] | None:
        """x > 2, x < 5 have a part in common, which is meant; x < 2, x > 5 and intervals join."""
        results = [self.part(node) for node in nodes]
        if not all(results) or len(names := {name for _, name in results} - {""}) > 1:
            return None
        parts, name = [part for part, _ in results], "".join(names)
        return (name and set.intersection(*parts)) or set.union(*parts), name

    def where_it_holds(self, chain: Relation) -> tuple[set[int], str] | None:
        """a < x ≤ b is (a, b], x < b is (-∞, b), x ≠ b is all but b."""
        names = {side for side in chain.sides if side not in self.places}
        name = names.pop() if len(names) == 1 else None
        if not isinstance(name, Value) or not _is_name(name):
            return None
        place, part = self.places.get, self.whole
        for left, sign, right in zip(chain.sides, chain.signs, chain.sides[1:], strict=False):
            part = {x for x in part if _HOLDS[sign](place(left, x), place(right, x))}
        return (part, name.literal.replace("?", "")) if part else None


def _ends(node: Node) -> list[Value]:
    """The real constants within a node."""
    if isinstance(node, Value):
        return [node] if node.is_constant and not isinstance(node.points[0], complex) else []
    nodes = node.sides if isinstance(node, Relation) else node.items
    return [end for each in nodes for end in _ends(each)]


def _same_region(mine: Node, gold: Node) -> bool | None:
    """Whether both mean the same part of the line; None where one means none, or only points."""
    if isinstance(mine, Value) and isinstance(gold, Value):
        return None
    line = _Line(mine, gold)
    results = line.part(mine), line.part(gold)
    if not all(results):
        return None
    (a, name), (b, other) = results
    sets = any(getattr(node, "open", "") in ("\\cup", "\\setminus") for node in (mine, gold))
    only_points = all(place % 2 for place in a | b) and not sets
    return None if (name and other and name != other) or only_points else a == b
