"""Arithmetic for comparing formulas by their values.

A formula is evaluated at four fixed points: each variable gets a number that depends on its name
alone, positive at the first two points, of either sign at the others (so that √x² is |x| and not
x). Two different formulas hardly ever agree at such points (Schwartz 1980, Zippel 1979). Numbers
stay exact Fractions until a root, an angle or a logarithm makes floats of them.
"""

from __future__ import annotations

import cmath
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

POINTS = 4
MAX_BITS = 8000  # of an exact number: a few thousand digits, which takes no time
MAX_FACTORIAL = 400

Number = int | Fraction | float | complex


class Unreadable(Exception):
    """Outside of what is evaluated here; it may still be good mathematics."""


@dataclass(frozen=True, slots=True)
class Value:
    """A formula's value at each of the points."""

    points: tuple[Number, ...]
    literal: str = ""  # as written, where the formula is one number or one symbol

    @property
    def is_constant(self) -> bool:
        return self.points.count(self.points[0]) == POINTS


def constant(number: Number, literal: str = "") -> Value:
    return Value((number,) * POINTS, literal)


def symbol(name: str) -> Value:
    seeds = [zlib.crc32(f"{name} at {i}".encode()) for i in range(POINTS)]
    sizes = [Fraction(101 + seed % 1009, 307) for seed in seeds]
    signs = [1, 1, -1, 1 if seeds[-1] & 4096 else -1]
    return Value(tuple(s * size for s, size in zip(signs, sizes, strict=True)), name)


def apply(operation: Callable[..., Number], *values: object) -> Value:
    """The operation at each point. Raises Unreadable where it has no finite, tame result."""
    if not all(isinstance(value, Value) for value in values):
        raise Unreadable("arithmetic on what is not a number")
    try:
        columns = zip(*(value.points for value in values), strict=True)
        return Value(tuple(_tame(operation(*column)) for column in columns))
    except (ArithmeticError, ValueError, TypeError) as error:
        raise Unreadable(str(error)) from None


def _exact(*numbers: Number) -> bool:
    return all(isinstance(number, (int, Fraction)) for number in numbers)


def _whole(*numbers: Number) -> bool:
    return _exact(*numbers) and all(number.denominator == 1 for number in numbers)


def _bits(number: int | Fraction) -> int:
    return max(number.numerator.bit_length(), number.denominator.bit_length())


def _tame(number: Number) -> Number:
    if _exact(number):
        if _bits(number) > MAX_BITS:
            raise Unreadable("a number of thousands of digits")
    elif cmath.isnan(number):
        raise Unreadable("not a number")
    elif isinstance(number, complex) and number.imag == 0:
        return number.real
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
            if _bits(base) * abs(exponent) > MAX_BITS:
                raise Unreadable("a huge power")
            return Fraction(base) ** int(exponent)
        if abs(exponent) < 100:
            return base ** int(exponent)
    if exponent == Fraction(1, 2):
        return root(base, 2)
    return complex(base) ** complex(exponent)


def root(radicand: Number, degree: Number) -> Number:
    """The real root of a real number where there is one, exact where it comes out even."""
    if not _whole(degree) or not 1 < degree < 64 or isinstance(radicand, complex):
        return complex(radicand) ** (1 / complex(degree))
    n = int(degree)
    if radicand < 0:
        return -root(-radicand, n) if n % 2 else 1j * root(-radicand, n) if n == 2 else (
            complex(radicand) ** (1 / n)
        )  # fmt: skip
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
    if not _whole(n, k) or not 0 <= k or not 0 <= n <= MAX_FACTORIAL:
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


def same_value(a: Value, b: Value) -> bool | None:
    """Whether two formulas are equal; None where rounding or a branch of a root blurs it."""
    verdicts = [_same_number(p, q) for p, q in zip(a.points, b.points, strict=True)]
    if all(verdicts):
        return True
    rounded = {_decimals(a), _decimals(b)}
    if len(rounded) == 2 and max(rounded) >= 6 and a.is_constant and b.is_constant:
        # a decimal with six places or more stands for what it is the rounding of: 0.333333
        return abs(a.points[0] - b.points[0]) <= Fraction(1, 2 * 10 ** max(rounded))
    return False if False in verdicts[:2] else None


def _decimals(value: Value) -> int:
    return len(value.literal.partition(".")[2])


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
    """The number that a is times b at every point; None where there is none."""
    try:
        ratio = apply(divide, a, b)
    except Unreadable:
        return None
    first = ratio.points[0]
    same = all(_same_number(first, other) for other in ratio.points[1:])
    return first if same and first != 0 else None
