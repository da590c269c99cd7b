"""What mathematical answers are made of: values, and lists, intervals, relations of them.

A formula with variables is evaluated at four fixed points: each variable gets a number that
depends on its name alone, positive at the first two points and of either sign at the others (so
that √x² is |x| and not x). Two different formulas hardly ever agree at such points (Schwartz 1980,
Zippel 1979). Numbers stay exact until a root, an angle or a logarithm makes floats of them.
"""

from __future__ import annotations

import cmath
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from lib.answers.numerals import is_decimal

POINTS = 4
MAX_WHOLE_BITS = 50_000  # of an exact whole number: it takes no time to compare
MAX_FRACTION_BITS = 3_000  # of a fraction, whose every sum takes a greatest common divisor
MAX_FACTORIAL = 400

Number = int | Fraction | float | complex


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
    """(a, b], \\{a, b\\}, a bare list "a, b" (no brackets), or a ratio a:b:c (open is a colon)."""

    open: str
    items: tuple[Node, ...]
    close: str


@dataclass(frozen=True, slots=True)
class Union:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """sides[0] signs[0] sides[1] signs[1] …"""

    sides: tuple[Node, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True, slots=True)
class Based:
    """A numeral with its base, 101_2: a way to write a number, not its value."""

    digits: str
    base: str


Node = Value | Sequence | Union | Relation | Matrix | Based


# --- arithmetic ---------------------------------------------------------------------------------


def constant(number: Number, literal: str = "") -> Value:
    return Value((number,), literal)


def symbol(name: str) -> Value:
    """A variable."""
    seeds = [zlib.crc32(f"{name} at {i}".encode()) for i in range(POINTS)]
    sizes = [Fraction(101 + seed % 1009, 307) for seed in seeds]
    signs = (1, 1, -1, 1 if seeds[-1] & 4096 else -1)
    return Value(tuple(sign * size for sign, size in zip(signs, sizes, strict=True)), name)


def apply(operation: Callable[..., Number], *values: object) -> Value:
    """The operation at each point. Raises Unreadable where it has no finite, tame result."""
    if not all(isinstance(value, Value) for value in values):
        raise Unreadable("arithmetic on what is not a number")
    try:
        return Value(tuple(_tame(operation(*column), column) for column in _columns(*values)))
    except (ArithmeticError, ValueError, TypeError) as error:
        raise Unreadable(str(error)) from None


def _columns(*values: Value) -> zip[tuple[Number, ...]]:
    width = max(len(value.points) for value in values)
    return zip(*(value.points * (width // len(value.points)) for value in values), strict=True)


def _exact(*numbers: Number) -> bool:
    return all(isinstance(number, int | Fraction) for number in numbers)


def _whole(*numbers: Number) -> bool:
    return _exact(*numbers) and all(number.denominator == 1 for number in numbers)


def _too_large(number: int | Fraction, times: int = 1) -> bool:
    bits = max(number.numerator.bit_length(), number.denominator.bit_length())
    return bits * times > (MAX_WHOLE_BITS if number.denominator == 1 else MAX_FRACTION_BITS)


def _tame(number: Number, arguments: tuple[Number, ...]) -> Number:
    if _exact(number):
        if _too_large(number):
            raise Unreadable("a number of thousands of digits")
    elif cmath.isnan(number):
        raise Unreadable("not a number")
    elif isinstance(number, complex) and number.imag == 0:
        if not any(isinstance(argument, complex) for argument in arguments):
            return number.real  # else it stays known that a root had no real value
    return number


def add(a: Number, b: Number) -> Number:
    return a + b


def subtract(a: Number, b: Number) -> Number:
    return a - b


def multiply(a: Number, b: Number) -> Number:
    return a * b


def negate(a: Number) -> Number:
    return -a


def divide(a: Number, b: Number) -> Number:
    return Fraction(a) / Fraction(b) if _exact(a, b) else a / b


def power(base: Number, exponent: Number) -> Number:
    if _whole(exponent):
        if _exact(base):
            if _too_large(base, abs(int(exponent))):
                raise Unreadable("a huge power")
            return Fraction(base) ** int(exponent)
        if abs(exponent) < 100:
            return base ** int(exponent)
    if exponent == Fraction(1, 2):
        return root(base, 2)
    return complex(base) ** complex(exponent)


def root(radicand: Number, degree: Number) -> Number:
    """The real root of a real number where there is one, exact where it comes out even."""
    if isinstance(radicand, complex) or not _whole(degree) or not 1 < degree < 64:
        return complex(radicand) ** (1 / complex(degree))
    n = int(degree)
    if radicand < 0 and n % 2:
        return -root(-radicand, n)
    if radicand < 0:
        return 1j * root(-radicand, n) if n == 2 else complex(radicand) ** (1 / n)
    if _exact(radicand):
        parts = [_whole_root(part, n) for part in (radicand.numerator, radicand.denominator)]
        if None not in parts:
            return Fraction(*parts)
    return math.sqrt(radicand) if n == 2 else float(radicand) ** (1 / n)


def _whole_root(number: int, degree: int) -> int | None:
    guess = math.isqrt(number) if degree == 2 else round(number ** (1 / degree))
    return guess if guess**degree == number else None


def factorial(n: Number) -> int:
    if not _whole(n) or not 0 <= n <= MAX_FACTORIAL:
        raise Unreadable("a factorial of this")
    return math.factorial(int(n))


def binomial(n: Number, k: Number) -> int:
    if not _whole(n, k) or k < 0 or not 0 <= n <= MAX_FACTORIAL:
        raise Unreadable("a binomial of this")
    return math.comb(int(n), int(k))


FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "sinh": cmath.sinh,
    "cosh": cmath.cosh, "tanh": cmath.tanh, "arcsin": cmath.asin, "arccos": cmath.acos,
    "arctan": cmath.atan, "exp": cmath.exp, "ln": cmath.log, "log": cmath.log10,
    "sec": lambda x: 1 / cmath.cos(x), "csc": lambda x: 1 / cmath.sin(x),
    "cot": lambda x: 1 / cmath.tan(x),
}  # fmt: skip
INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}


# --- comparing ----------------------------------------------------------------------------------


def same_value(a: Value, b: Value) -> bool | None:
    """Whether two formulas are equal; None where rounding or the branch of a root blurs it."""
    verdicts = [_same_number(p, q) for p, q in _columns(a, b)]
    if all(verdicts):
        return True
    if a.is_constant and b.is_constant and (_rounds_to(a, b) or _is_rounding(a, b)):
        return True
    if not b.is_constant and all(verdicts[:2]) and _leaves_the_reals(a, b, verdicts):
        return True
    return False if False in verdicts[:2] else None


def _leaves_the_reals(a: Value, b: Value, verdicts: list[bool | None]) -> bool:
    """Whether formulas that agree for positive variables differ only where one has no real value.

    √(1/m) and 1/√m are i/√|m| and -i/√|m| where m is negative.
    """
    return all(
        verdict or (i > 1 and (isinstance(p, complex) or isinstance(q, complex)))
        for i, (verdict, (p, q)) in enumerate(zip(verdicts, _columns(a, b), strict=True))
    ) and not any(isinstance(p, complex) for p in a.points[:2])


def _rounds_to(mine: Value, gold: Value) -> bool:
    """Whether a value that no decimal can write rounds to the gold: 3/7 to 0.429, √2 to 1.41."""
    literal, exact = gold.literal.lstrip("-"), mine.points[0]
    places = len(literal.partition(".")[2])
    if not places or len(literal.replace(".", "").lstrip("0")) < 2 or mine.literal[:1].isdigit():
        return False
    if isinstance(exact, complex) or (_exact(exact) and is_decimal(exact)):
        return False
    return abs(exact - gold.points[0]) <= Fraction(1, 2 * 10**places)


def _is_rounding(a: Value, b: Value) -> bool:
    """Whether one is a decimal of six places or more, and the other's rounding: 0.333333."""
    places = [len(value.literal.partition(".")[2]) for value in (a, b)]
    gap = abs(a.points[0] - b.points[0])
    return max(places) >= 6 and min(places) == 0 and gap <= Fraction(1, 2 * 10 ** max(places))


def _same_number(p: Number, q: Number) -> bool | None:
    if p == q:
        return True
    if _exact(p, q):
        return False
    try:
        size, gap = max(abs(p), abs(q)), abs(p - q)
    except OverflowError:
        return None
    if math.isinf(size):
        return False
    if gap <= 1e-10 * size or size < 1e-13:
        return True
    return False if gap > 1e-7 * size and size > 1e-9 else None


def constant_ratio(a: Value, b: Value) -> Number | None:
    """The number that a is times b at every point; None where there is none, or it is zero."""
    try:
        ratio = apply(divide, a, b)
    except Unreadable:
        return None
    first = ratio.points[0]
    return first if first and all(_same_number(first, p) for p in ratio.points[1:]) else None
