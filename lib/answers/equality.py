"""Whether two mathematical answers mean the same: True, False, or None where it cannot tell.

Order matters in tuples, points, intervals and matrices, and not in sets and plain lists. The gold
answer sets the form: for the gold "5" the answer "x = 5" is right, for the gold "x + y = 5" the
answer "5" is not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import replace

from lib.answers.expressions import read_answer
from lib.answers.latex import ROW, one_spelling
from lib.answers.numerals import has_percent, read_number
from lib.answers.symbolic import symbolically_equal
from lib.answers.values import (
    Based,
    Matrix,
    Node,
    Relation,
    Sequence,
    Union,
    Unreadable,
    Value,
    apply,
    constant,
    constant_ratio,
    divide,
    same_value,
    subtract,
)

_INTEGER_NAME = re.compile(r"(?<![A-Za-z\\])[kmn](?![A-Za-z])|(?<=\\pi)\s?[kmn]\b")
_LETTERS = re.compile(r"[A-Za-z][A-Za-z\s.'-]*")
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")
_WORDS = re.compile(r"[A-Za-z][A-Za-z\s.,;:!?'-]*")


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
        if _is_angle(a, b) or _is_angle(b, a):
            return same_answer(read_answer(a, radians=True), read_answer(b, radians=True))
        if _renamed(a, b) != a and same_answer(read_answer(_renamed(a, b)), y):
            return True
        if has_percent(mine) != has_percent(gold) and _same_per_cent(x, y, has_percent(mine)):
            return True
        verdict = same_answer(x, y)
        if verdict is not None:
            return verdict
    if any(node is None and _WORDS.fullmatch(text) for node, text in ((x, a), (y, b))):
        return False
    return symbolically_equal(a.replace(ROW, r"\\"), b.replace(ROW, r"\\"))


def _is_angle(one: str, other: str) -> bool:
    """Whether one is in degrees and the other in radians, a multiple of π."""
    return r"\circ" in one and r"\pi" in other and r"\circ" not in other


def _renamed(mine: str, gold: str) -> str:
    """nπ with the gold's k, where either counts a family of solutions by one letter."""
    names = [set(map(str.strip, _INTEGER_NAME.findall(text))) for text in (mine, gold)]
    if r"\pi" not in gold or len(names[0]) != 1 or len(names[1]) != 1 or names[0] == names[1]:
        return mine
    return _INTEGER_NAME.sub(f" {names[1].pop()} ", mine)


def is_list(answer: str) -> bool:
    """Whether an answer as written is a plain list or a set."""
    node = read_answer(one_spelling(answer))
    return isinstance(node, Sequence) and node.open in ("", "{")


def _bare_letters(text: str) -> str:
    return re.sub(r"[\W_]", "", text).lower()


def _same_per_cent(mine: Node, gold: Node, mine_is_percent: bool) -> bool:
    """Whether the one that carries a percent sign is the other, taken as so many hundredths."""
    if not isinstance(mine, Value) or not isinstance(gold, Value):
        return False
    percent, other = (mine, gold) if mine_is_percent else (gold, mine)
    try:
        hundredth = apply(divide, percent, constant(100))
        hundredth = replace(hundredth, literal=_hundredth(percent.literal))
        pair = (hundredth, other) if mine_is_percent else (other, hundredth)
        return same_value(*pair) is True
    except Unreadable:
        return False


def _hundredth(literal: str) -> str:
    """33.3 as 0.333: how many digits the percentage gives."""
    digits, _, decimals = literal.partition(".")
    return f"0.{digits.zfill(2)}{decimals}" if digits.isdecimal() else ""


_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}


def same_answer(mine: Node, gold: Node) -> bool | None:
    """Whether ``mine`` is the answer ``gold``."""
    if isinstance(gold, Union) or (isinstance(gold, Sequence) and gold.open in ("(", "[")):
        mine = _as_region(mine)
    elif isinstance(mine, Union) or (isinstance(mine, Sequence) and mine.open in ("(", "[")):
        gold = _as_region(gold)
    if isinstance(mine, Relation) or isinstance(gold, Relation):
        return _same_relation(mine, gold)
    if isinstance(mine, Value) and isinstance(gold, Value):
        return same_value(mine, gold)
    if isinstance(mine, Sequence) and isinstance(gold, Sequence):
        return _same_sequence(mine, gold)
    if isinstance(mine, Union) and isinstance(gold, Union):
        return _unordered(mine.parts, gold.parts) or None  # [0, 2] is also [0, 1] ∪ [1, 2]
    if isinstance(mine, Matrix) and isinstance(gold, Matrix):
        if [len(row) for row in mine.rows] != [len(row) for row in gold.rows]:
            return False
        return _ordered(
            [cell for row in mine.rows for cell in row], [cell for row in gold.rows for cell in row]
        )
    if isinstance(mine, Based) and isinstance(gold, Based):
        return mine == gold
    if isinstance(mine, Based | Value) and isinstance(gold, Based | Value):
        return _digits(mine) == _digits(gold)  # 12 for 12_5, in a question that names the base
    for one, other in ((mine, gold), (gold, mine)):
        if isinstance(one, Value) and isinstance(other, Sequence) and len(other.items) == 1:
            return same_answer(one, other.items[0])
        if isinstance(one, Value) and isinstance(other, Sequence | Union | Matrix):
            return False
        if isinstance(one, Matrix) and isinstance(other, Sequence):
            cells = [cell for row in one.rows for cell in row]
            is_vector = len(one.rows) == 1 or len(cells) == len(one.rows)
            return is_vector and _ordered(cells, other.items)
    return None


def _digits(node: Based | Value) -> str:
    return node.digits if isinstance(node, Based) else node.literal


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    verdicts = list(verdicts)
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _ordered(mine: Iterable[Node], gold: Iterable[Node]) -> bool | None:
    mine, gold = list(mine), list(gold)
    return len(mine) == len(gold) and _all(map(same_answer, mine, gold))


def _unordered(mine: Iterable[Node], gold: Iterable[Node]) -> bool | None:
    """Whether two sets are the same: each item of either is an item of the other."""
    table = [[same_answer(item, other) for other in gold] for item in mine]
    return _all(
        True if True in verdicts else None if None in verdicts else False
        for verdicts in (*table, *zip(*table, strict=True))
    )


def _same_sequence(mine: Sequence, gold: Sequence) -> bool | None:
    kinds = {mine.open, gold.open}
    if kinds <= {"", "{"}:
        return _unordered(mine.items, gold.items)
    same_brackets = (mine.open, mine.close) == (gold.open, gold.close)
    if same_brackets or "" in kinds or (len(gold.items) > 2 and kinds == {"(", "["}):
        return _ordered(mine.items, gold.items)
    return None if "{" in kinds or ":" in kinds else False


# --- equations and inequalities ---------------------------------------------------------------


def _is_name(node: Node) -> bool:
    """Whether a side only names what the other side gives: x, f(x), (x, y)."""
    if isinstance(node, Sequence):
        return all(_is_name(item) for item in node.items)
    return isinstance(node, Value) and node.literal[:1].isalpha()


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
            return same_answer(interval, gold) if (interval := _as_interval(mine)) else None
        return same_answer((_solved(mine) or mine.sides)[-1], gold)
    if not isinstance(mine, Relation):
        if not _is_equation(gold):
            return same_answer(mine, interval) if (interval := _as_interval(gold)) else None
        solved = _solved(gold)
        return same_answer(mine, solved[1]) if solved else False
    if _is_equation(mine) and _is_equation(gold):
        return _same_equation(mine, gold)
    return _same_inequality(mine, gold)


def _same_equation(mine: Relation, gold: Relation) -> bool | None:
    a, b = _solved(mine), _solved(gold)
    if a and b and (same_answer(a[0], b[0]) or _is_formula(a[1], b[1])):
        return same_answer(a[1], b[1])
    try:
        left, right = (apply(subtract, side.sides[0], side.sides[-1]) for side in (mine, gold))
    except Unreadable:
        return None
    return True if constant_ratio(left, right) is not None else None


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


def _same_inequality(mine: Relation, gold: Relation) -> bool | None:
    mine, gold = _ascending(mine), _ascending(gold)
    if mine.signs != gold.signs:
        return None
    if _ordered(mine.sides, gold.sides):
        return True
    if len(mine.signs) > 1:
        return None
    try:
        ratio = constant_ratio(*(apply(subtract, *side.sides) for side in (mine, gold)))
    except Unreadable:
        return None
    if ratio is None or isinstance(ratio, complex):
        return None
    return ratio > 0 or mine.signs == (r"\ne",)


def _as_interval(relation: Relation) -> Node | None:
    """a < x ≤ b as (a, b], and x < b as (-∞, b)."""
    if relation.signs == (r"\ne",) and _is_name(relation.sides[0]):
        low, high, value = constant(-math.inf), constant(math.inf), relation.sides[1]
        return Union((Sequence("(", (low, value), ")"), Sequence("(", (value, high), ")")))
    chain = _ascending(relation)
    brackets = {"<": "()", r"\le": "[]"}
    if not brackets.keys() >= set(chain.signs):
        return None
    sides, signs = chain.sides, chain.signs
    if len(signs) == 1 and _is_name(sides[0]):
        sides, signs = (constant(-math.inf), *sides), ("<", *signs)
    elif len(signs) == 1 and _is_name(sides[1]):
        sides, signs = (*sides, constant(math.inf)), (*signs, "<")
    if len(signs) != 2 or not _is_name(sides[1]):
        return None
    return Sequence(brackets[signs[0]][0], (sides[0], sides[2]), brackets[signs[1]][1])


def _as_region(node: Node) -> Node:
    """x < -1 or x > 2 as a union, x > 2 and x < 5 as (2, 5): which is meant, the bounds say."""
    if not isinstance(node, Sequence) or node.open or len(node.items) != 2:
        return node
    parts = [_as_interval(item) if isinstance(item, Relation) else None for item in node.items]
    if not all(isinstance(part, Sequence) for part in parts):
        return node
    parts.sort(key=lambda part: part.items[0].points != (-math.inf,))
    (below, upper), (lower, above) = (part.items for part in parts)
    if below.points == (-math.inf,) and above.points == (math.inf,):
        gap = apply(subtract, upper, lower).points[0]
        if upper.is_constant and lower.is_constant and not isinstance(gap, complex) and gap > 0:
            return Sequence(parts[1].open, (lower, upper), parts[0].close)
    return Union(tuple(parts))
