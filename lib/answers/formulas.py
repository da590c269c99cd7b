"""Mathematical answers, LaTeX or plain text, read to values, lists, intervals and relations.

``read_answer(r"x = \\frac12, y \\in [0, 2\\pi)")`` evaluates while it reads. A formula with
variables is evaluated at nine fixed points: each variable gets a number that depends on its name
alone, positive but at one point (so that √x² is |x| and not x, while √(m/k) is √(mk)/k). Two
different formulas hardly ever agree at such points (Schwartz 1980, Zippel 1979).
Numbers stay exact until a root, an angle or a logarithm makes floats of them. What is outside of
the grammar (sums, integrals, prose) gives None.
"""

from __future__ import annotations

import cmath
import math
import operator
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

Number = int | Fraction | float | complex

POINTS = 9
LONGEST_FORMULA = 1000  # characters of an answer
MAX_ITEMS = 100  # of a list
MAX_BITS = 10_000  # of an exact number: what is larger takes time
ROW = "\x01"  # what stands for the end of a row, which LaTeX writes as two backslashes


class Unreadable(Exception):
    """Outside of what is evaluated here; it may still be good mathematics."""


@dataclass(frozen=True, slots=True)
class Value:
    """A formula's value at each of the points; a constant has one point."""

    points: tuple[Number, ...]
    literal: str = ""  # as written, where the formula is one number or one name

    @property
    def is_constant(self) -> bool:
        return len(self.points) == 1


@dataclass(frozen=True, slots=True)
class Sequence:
    """(a, b], \\{a, b\\}, a bare list "a, b" (no brackets), a ratio a:b:c, a matrix of rows,
    a \\cup b, a \\setminus b."""

    open: str  # a bracket, "", ":", "matrix", "\\cup" or "\\setminus"
    items: tuple[Node, ...]
    close: str = ""


@dataclass(frozen=True, slots=True)
class Relation:
    """sides[0] signs[0] sides[1] signs[1] …; of "> 5" the first side is the variable ?."""

    sides: tuple[Node, ...]
    signs: tuple[str, ...]


Node = Value | Sequence | Relation


# --- arithmetic ---------------------------------------------------------------------------------


def constant(number: Number, literal: str = "") -> Value:
    return Value((number,), literal)


def symbol(name: str) -> Value:
    """A variable."""
    seeds = [zlib.crc32(f"{name} at {i}".encode()) for i in range(POINTS)]
    points = [Fraction(101 + seed % 1009, 307) for seed in seeds]
    points[2 + sum(map(ord, name)) % (POINTS - 2)] *= -1  # m and k not at the same point
    return Value(tuple(points), name)


def apply(operation: Callable[..., Number], *values: object) -> Value:
    """The operation at each point. Raises Unreadable where it has no finite, tame result."""
    if not all(isinstance(value, Value) for value in values):
        raise Unreadable
    try:
        return Value(tuple(_tame(operation(*column), column) for column in _columns(*values)))
    except (ArithmeticError, ValueError, TypeError):
        raise Unreadable from None


def _columns(*values: Value) -> zip[tuple[Number, ...]]:
    width = max(len(value.points) for value in values)
    return zip(*(value.points * (width // len(value.points)) for value in values), strict=True)


def _exact(*numbers: Number) -> bool:
    return all(isinstance(number, int | Fraction) for number in numbers)


def _bits(number: int | Fraction) -> int:
    return max(number.numerator.bit_length(), number.denominator.bit_length())


def _tame(number: Number, arguments: tuple[Number, ...]) -> Number:
    if _bits(number) > MAX_BITS if _exact(number) else cmath.isnan(number):
        raise Unreadable
    if complex not in map(type, arguments) and isinstance(number, complex) and not number.imag:
        return number.real  # after a root without a real value it stays complex, which tells
    return number


def divide(a: Number, b: Number) -> Number:
    return Fraction(a) / Fraction(b) if _exact(a, b) else a / b


def power(base: Number, exponent: Number) -> Number:
    if not _exact(exponent) or exponent.denominator != 1:
        return complex(base) ** complex(exponent)
    if _exact(base) and _bits(base) * abs(exponent) > MAX_BITS:
        raise Unreadable
    return base ** int(exponent)


def root(radicand: Number, degree: Number) -> Number:
    """The real root of a real number where there is one."""
    if isinstance(radicand, complex) or (radicand < 0 and degree % 2 != 1):
        return complex(radicand) ** (1 / degree)
    return -root(-radicand, degree) if radicand < 0 else float(radicand) ** (1 / degree)


def factorial(n: Number) -> Number:
    if _exact(n) and n.denominator == 1:
        if not 0 <= n < 1000:
            raise Unreadable
        return math.factorial(int(n))
    return math.gamma(n + 1)


def choose(n: Number, k: Number) -> Number:
    return divide(factorial(n), factorial(k) * factorial(n - k))


FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "arcsin": cmath.asin,
    "arccos": cmath.acos, "arctan": cmath.atan, "exp": cmath.exp, "ln": cmath.log,
    "log": cmath.log10, "lg": cmath.log10, "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x), "cot": lambda x: 1 / cmath.tan(x), "abs": abs,
    "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh,
}  # fmt: skip

FUNCTIONS |= {name[:1] + name[3:]: FUNCTIONS[name] for name in FUNCTIONS if name[:3] == "arc"}


# --- comparing values ---------------------------------------------------------------------------


def same_value(mine: Value, gold: Value) -> bool:
    """Whether two formulas are equal."""
    verdicts = [_same_number(p, q) for p, q in _columns(mine, gold)]
    if all(verdicts):
        return True
    if mine.is_constant and gold.is_constant:
        try:
            return _rounds_to(mine, gold) or _is_rounding(mine, gold)
        except OverflowError:  # a float beside a number beyond its range
            return False
    # √(1/m) and 1/√m are i/√|m| and -i/√|m| where m is negative: they agree wherever both are real
    unreal = [isinstance(p, complex) or isinstance(q, complex) for p, q in _columns(mine, gold)]
    agree = all(same or blurred for same, blurred in zip(verdicts, unreal, strict=True))
    return agree and not any(unreal[:2])


_DECIMAL = re.compile(r"(\d*)\.(\d+)(?:[eE](.+))?")


def _half_place(decimal: re.Match[str]) -> Fraction:
    return Fraction(10) ** (int(decimal[3] or 0) - len(decimal[2])) / 2


def _rounds_to(mine: Value, gold: Value) -> bool:
    """Whether a value that no decimal can write rounds to a gold of two digits or more: 3/7 to
    0.429 and √2 to 1.41, but not 37/2 to 18.5 or 2/3 to 0.7."""
    exact, decimal = mine.points[0], _DECIMAL.fullmatch(gold.literal)
    if isinstance(exact, complex) or not decimal:
        return False
    below = 0 if isinstance(exact, float) else exact.denominator
    if below and pow(10, below.bit_length(), below) == 0:
        return False  # it has no prime but 2 and 5: a decimal can write the value
    several = len((decimal[1] + decimal[2]).lstrip("0")) > 1
    return several and abs(exact - gold.points[0]) <= _half_place(decimal)


def _is_rounding(a: Value, b: Value) -> bool:
    """Whether one is a decimal of six places or more, and the other's rounding: 0.333333."""
    decimals = [_DECIMAL.fullmatch(value.literal) for value in (a, b)]
    if None not in decimals or not (decimal := decimals[0] or decimals[1]) or len(decimal[2]) < 6:
        return False
    return abs(a.points[0] - b.points[0]) <= _half_place(decimal)


def _same_number(p: Number, q: Number) -> bool:
    if p == q or _exact(p, q):
        return p == q
    try:
        size, gap = max(abs(p), abs(q)), abs(p - q)
    except OverflowError:
        return False
    return not math.isinf(size) and (gap <= 1e-10 * size or size < 1e-13)


# --- the grammar --------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""\\begin\s?\{[bpBvV]?matrix\} | \\begin\s?\{array\}(?:\s?\{[lcr|\ ]*\})?
    | \\end\s?\{(?:[bpBvV]?matrix|array)\}
    | \\[A-Za-z]+ | \\.
    | \d+(?:\.\d+)?[eE][+-]?\d{1,3}(?![\d.]) | \d+\.(?=\\overline) | \d+\.\d+ | \.\d+ | \d+
    | [A-Za-z]+'* | \S""",
    re.VERBOSE | re.DOTALL,
)
_INEQUALITIES = {"<", ">", r"\le", r"\ge", r"\ne"}
_RELATIONS = _INEQUALITIES | {"=", r"\in", r"\approx"}
_EVERYTHING = [r"\in", "(", "-", r"\infty", ",", r"\infty", ")"]  # \\mathbb{R} in one spelling
_BRACKETS = {"(": ")", "[": "]", r"\{": r"\}"}
_CLOSERS = set(_BRACKETS.values())
_ENDS = {"", ",", ";", "}", *_CLOSERS}
_NAMES = set(re.findall(
    r"\w+",
    "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi chi psi "
    "omega Gamma Delta Theta Lambda Sigma Phi Psi Omega ell hbar prime emptyset",
))  # fmt: skip
_CONSTANTS = {"pi": math.pi, "e": math.e, "i": 1j}
_CONSTANTS |= dict.fromkeys(("infty", "infinity", "inf", "oo"), math.inf)
_COMMANDS = {*FUNCTIONS, *_NAMES, *_CONSTANTS, "frac", "binom", "sqrt"}
_PLAIN_WORDS = {*FUNCTIONS, "sqrt", "pi", "infinity", "inf", "oo"}


@lru_cache(maxsize=16384)
def read_answer(answer: str, radians: bool = False) -> Node | None:
    """The meaning of an answer in one spelling (`lib.answers.math`); None outside the grammar.

    A degree sign is only read under a sine or its kin, or where ``radians`` asks for it.
    """
    if len(answer) > LONGEST_FORMULA:
        return None
    try:
        if not re.search(r"\\[pm]{2}(?![A-Za-z])", answer):
            return _Reader(answer, radians).answer()
        plus, minus = (
            _Reader(answer.replace(r"\pm", upper).replace(r"\mp", lower), radians).answer()
            for upper, lower in ("+-", "-+")
        )
    except (Unreadable, ValueError, ArithmeticError, RecursionError):
        return None
    if isinstance(plus, Sequence) and plus.open in ("", "{"):
        return replace(plus, items=plus.items + minus.items)
    return Sequence("", (plus, minus))


class _Reader:
    """Recursive descent over the tokens of one answer. Past the end the next token is ""."""

    def __init__(self, text: str, radians: bool):
        self.tokens = _TOKEN.findall(text)
        self.at = 0
        self.in_angle, self.in_bars = radians, False

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def next(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def take(self, *tokens: str) -> bool:
        is_next = self.tokens[self.at : self.at + len(tokens)] == [*tokens]
        self.at += len(tokens) * is_next
        return is_next

    def expect(self, token: str) -> None:
        if not self.take(token):
            raise Unreadable

    def cut(self) -> str:
        """Takes the first character of the next token, and leaves the others."""
        token = self.next()
        if len(token) > 1:
            self.at -= 1
            self.tokens[self.at] = token[1:]
        return token[:1]

    # --- lists and relations

    def answer(self) -> Node:
        groups = self.groups()
        if self.peek():
            raise Unreadable
        groups = _by_name(groups[0]) if len(groups) == 1 else groups
        if len(groups) > 1 and any(len(group) > 1 for group in groups):  # x=1, y=2; x=3, y=4
            return Sequence("", tuple(Sequence("(", tuple(group), ")") for group in groups))
        return _listed([item for group in groups for item in group])

    def groups(self) -> list[list[Node]]:
        """What semicolons separate: lists of what commas separate."""
        groups = [self.items()]
        while self.take(";"):
            groups.append(self.items())
        return groups

    def items(self) -> list[Node]:
        items = []
        while self.peek() not in _ENDS - {","}:
            if self.take(","):
                continue
            items.append(self.relation())
            if self.peek() not in _ENDS or len(items) > MAX_ITEMS:
                raise Unreadable
        return items

    def relation(self) -> Node:
        sides, signs = [symbol("?") if self.peek() in _INEQUALITIES else self.union()], []
        while self.peek() in _RELATIONS:
            signs.append(self.next())
            sides.append(self.union())
        if r"\in" in signs:
            return sides[-1]
        if r"\approx" in signs:  # x ≈ 5 is x = 5, but what has an exact value (1/3 ≈ 0.33) is that
            first = 0 if isinstance(sides[0], Value) and sides[0].is_constant else 1
            last = max(signs.index(r"\approx"), first)
            sides, signs = sides[: last + 1], ["="] * last
        if signs:
            return Relation(tuple(sides), tuple(signs))
        while self.take(":"):
            sides.append(self.union())
        if len(sides) == 2 and isinstance(sides[1], Value) and sides[1].points[0]:
            return apply(divide, *sides)  # the ratio 2:3
        return sides[0] if len(sides) == 1 else Sequence(":", tuple(sides))

    def union(self) -> Node:
        result = self.sum()
        while (sign := self.peek()) in (r"\cup", r"\setminus"):
            self.next()
            is_union = getattr(result, "open", "") == sign == r"\cup"
            other = self.sum()
            if sign == r"\setminus" and isinstance(other, Sequence) and not other.open:
                other = replace(other, open="{")
            result = Sequence(sign, (*(result.items if is_union else (result,)), other))
        return result

    # --- arithmetic

    def sum(self) -> Node:
        total = self.product()
        while self.peek() in ("+", "-"):
            operation = operator.sub if self.minus() else operator.add
            total = apply(operation, total, self.product())
        return total

    def minus(self) -> bool:
        """Takes the signs that come next; whether together they are a minus."""
        minus = False
        while self.peek() in ("+", "-"):
            minus ^= self.next() == "-"
        return minus

    def product(self) -> Node:
        result = self.factor()
        while True:
            if self.take("*"):
                result = apply(operator.mul, result, self.factor())
            elif self.take("/"):
                result = apply(divide, result, self.factor())
            elif self.starts_factor() and (not self.peek()[0].isdecimal() or self.after_power()):
                other = self.factor()
                if isinstance(other, Sequence) and _may_be_name(result, *other.items):  # f(x, y)
                    result = symbol(result.literal + ",".join(item.literal for item in other.items))
                    continue
                number = (
                    self.tokens[self.at - 1] == ")" and getattr(other, "literal", "").isdecimal()
                )
                named = _may_be_name(result) and (number or _may_be_name(other))  # f(2), f(x)
                name = result.literal + other.literal if named else ""
                result = replace(apply(operator.mul, result, other), literal=name)
            else:
                return result

    def after_power(self) -> bool:
        """Whether an exponent of one token or a "!" came just before: 2^6 3^5 is a product."""
        return self.tokens[self.at - 2] == "^" or self.tokens[self.at - 1] == "!"

    def starts_factor(self) -> bool:
        token = self.peek()
        if token == "|":
            return not self.in_bars
        if token[:1] == "\\" and token[1:2].isalpha():
            return token[1:] in _COMMANDS
        return token in ("(", "[", "{") or token[:1].isalnum()

    def factor(self) -> Node:
        minus = self.minus()
        result = self.primary()
        if self.take("!"):
            result = apply(factorial, result)
        if self.take("^") or self.take("*", "*"):  # a tower of powers without braces is not read
            if not self.take(r"\circ"):
                # As people mean it: x^10 is x to the tenth, although LaTeX sets it otherwise.
                token = self.peek()
                exponent = constant(int(self.next())) if token.isdecimal() else self.argument()
                result = apply(power, result, exponent)
            elif self.in_angle:
                result = apply(operator.mul, result, constant(math.pi / 180))
        if not minus:
            return result
        negative = apply(operator.neg, result)
        return replace(negative, literal=result.literal * result.literal[:1].isdecimal())

    def primary(self) -> Node:
        token = self.next()
        if token[:1].isdecimal() or (token[:1] == "." and len(token) > 1):
            node = self.number(token)
        elif token == "{":
            node = self.condition("}") or _listed(self.items())
            self.expect("}")
        elif token in _BRACKETS:
            node = self.bracket(token)
        elif token == "|":
            node = self.absolute()
        elif token[:1].isalpha():
            node = self.letters(token)
        elif token[:1] == "\\":
            node = self.command(token[1:])
        else:
            raise Unreadable
        return node

    def argument(self) -> Node:
        """What a command applies to: a group or one character (\\frac12)."""
        token = self.peek()
        if token[:1].isdecimal():
            return constant(Fraction(self.cut()), token[0])
        if self.take("-"):
            return apply(operator.neg, self.argument())
        return self.primary()

    # --- what stands alone

    def number(self, token: str) -> Node:
        if self.take("_"):  # 101_2 is a way to write a number, not its value
            return symbol(f"{token}_{self.subscript()}")
        value = Fraction(token.rstrip("."))
        if "." in token and self.take(r"\overline"):  # 0.1\overline{6}
            digits, places = self.subscript(), len(token.partition(".")[2])
            if not digits.isdecimal() or len(digits) > 50:
                raise Unreadable
            return constant(value + Fraction(int(digits), (10 ** len(digits) - 1) * 10**places))
        if self.peek() == r"\frac" and "." not in token:  # the mixed number 2\frac12
            part = self.primary()
            first = part.points[0]
            if part.is_constant and isinstance(first, Fraction) and 0 < first < 1:
                return constant(value + first)
            return apply(operator.mul, constant(value), part)
        return constant(value, token)

    def absolute(self) -> Node:
        outer, self.in_bars = self.in_bars, True
        inner = self.sum()
        self.expect("|")
        self.in_bars = outer
        name = f"|{inner.literal}|" if _may_be_name(inner) else ""  # the length |AB|
        return replace(apply(abs, inner), literal=name)

    def subscript(self) -> str:
        """The characters of {…}, or the one character there is."""
        if not self.take("{"):
            return self.next() if self.peek()[:1] == "\\" else self.cut()
        start = self.at
        while self.peek() not in ("}", ""):
            self.next()
        self.expect("}")
        return "".join(self.tokens[start : self.at - 1]).strip("()")

    def letters(self, token: str) -> Node:
        """A run of letters: a name that is known, else the product of its letters."""
        if token in _PLAIN_WORDS:
            return self.command(token)
        if len(token.rstrip("'")) > 1:
            self.at -= 1
            token = self.cut()
        return self.name(token)

    def name(self, token: str) -> Node:
        if self.take("_"):
            return symbol(f"{token}_{self.subscript()}")
        return constant(_CONSTANTS[token], token) if token in _CONSTANTS else symbol(token)

    def bracket(self, opener: str) -> Node:
        """(a) is a; (a, b], \\{a, b\\} are what they look like, \\{x | x > 2\\} is x > 2."""
        if opener == r"\{" and (condition := self.condition(r"\}")):
            self.next()
            return condition
        items = [item for group in self.groups() for item in group]
        closer = self.next()
        if not items or closer not in _CLOSERS:
            raise Unreadable
        if len(items) == 1 and closer == _BRACKETS[opener] and opener != r"\{":
            return items[0]
        if opener == "[" and all(getattr(item, "open", "") == "[" for item in items):
            return Sequence("matrix", tuple(replace(row, open="matrix", close="") for row in items))
        return Sequence(opener[-1], tuple(items), closer[-1])

    def condition(self, closer: str) -> Node | None:
        """What a set \\{x \\in \\mathbb{R} \\mid …\\} asks of its members; None for another set."""
        start, tokens = self.at, [*self.tokens]
        if self.next()[:1].isalpha():
            self.take(*_EVERYTHING)
            if self.next() in (":", "|", r"\mid"):
                condition = self.items()
                if self.peek() == closer and not any(isinstance(c, Value) for c in condition):
                    return _listed(condition)
        self.at, self.tokens = start, tokens
        return None

    def command(self, name: str) -> Node:
        if name.startswith("begin"):
            return self.matrix()
        if name == "frac":
            above, below = self.argument(), self.argument()
            ratio = f"{above.literal}/{below.literal}" if _may_be_name(above, below) else ""
            return replace(apply(divide, above, below), literal=ratio)
        if name == "binom":
            return apply(choose, self.argument(), self.argument())
        if name == "sqrt":
            degree: Node = constant(2)
            if self.take("["):
                degree = self.sum()
                self.expect("]")
            return apply(root, self.argument(), degree)
        if name in FUNCTIONS:
            return self.function(name)
        if name in _CONSTANTS or name in _NAMES:
            return self.name(name)
        raise Unreadable

    def function(self, name: str) -> Node:
        """\\sin(2x) applies to the bracket, \\sin 2x to the product before the next function."""
        base = self.argument() if name == "log" and self.take("_") else None
        exponent = self.argument() if self.take("^") else None
        if f"arc{name}" in FUNCTIONS and getattr(exponent, "points", 0) == (-1,):
            name, exponent = f"arc{name}", None
        outer, self.in_angle = self.in_angle, True
        in_brackets = self.peek() in ("(", "[", "{")
        inner = self.primary() if in_brackets else self.factor()  # cos(x)^2 is (cos x)^2
        if in_brackets and self.take("^", r"\circ"):
            inner = apply(operator.mul, inner, constant(math.pi / 180))
        while not in_brackets and self.starts_factor():
            if self.peek().lstrip("\\") in {*FUNCTIONS, "("}:
                break
            inner = apply(operator.mul, inner, self.factor())
        self.in_angle = outer
        result = apply(lambda x: FUNCTIONS[name](complex(x)), inner)
        if base is not None:
            result = apply(divide, apply(FUNCTIONS["ln"], inner), apply(FUNCTIONS["ln"], base))
        return result if exponent is None else apply(power, result, exponent)

    def matrix(self) -> Node:
        """A matrix is a sequence of its rows, which are sequences."""
        rows: list[list[Node]] = [[]]
        while not self.peek().startswith(r"\end"):
            if self.take(ROW):
                rows.append([])
            elif not self.take("&"):
                rows[-1].append(self.sum())
        self.next()
        return Sequence("matrix", tuple(Sequence("matrix", tuple(row)) for row in rows if row))


def _listed(items: list[Node]) -> Node:
    if not items:
        raise Unreadable
    return items[0] if len(items) == 1 else Sequence("", tuple(items))


def _by_name(items: list[Node]) -> list[list[Node]]:
    """x=1, y=2, x=3, y=4 in groups: the first name begins the next one."""
    names = [item.sides[0] if isinstance(item, Relation) else None for item in items]
    size = next((at for at in range(1, len(items)) if names[at] == names[0] is not None), 1)
    if len(items) % size or names != names[:size] * (len(items) // size):
        return [items]
    return [items[at : at + size] for at in range(0, len(items), size)]


def _may_be_name(*nodes: Node) -> bool:
    """Whether all are named, so that their product or ratio may be a name too: f(x), NO/BO."""
    return all(isinstance(node, Value) and node.literal[:1].isalpha() for node in nodes)
