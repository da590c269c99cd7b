"""The grammar of mathematical answers: LaTeX or plain text to values, lists, intervals, relations.

``read_answer(r"x = \\frac12, \\; y \\in [0, 2\\pi)")`` gives nested nodes whose leaves are values
(``lib.values``). What is outside of the grammar (sums, integrals, prose) gives None.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from lib.latex import ROW
from lib.values import (
    FUNCTIONS, INVERSES, Unreadable, Value, add, apply, binomial, constant, divide, factorial,
    multiply, negate, power, root, subtract, symbol,
)  # fmt: skip

MAX_LENGTH = 1000  # characters of an answer
MAX_DEPTH = 40  # brackets within brackets


@dataclass(frozen=True, slots=True)
class Sequence:
    """(a, b], \\{a, b\\}, a bare list "a, b" (no brackets), or a ratio a:b (open is a colon)."""

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

_TOKEN = re.compile(
    r"\\begin\s*\{[bpBvV]?matrix\}|\\begin\s*\{array\}(?:\s*\{[lcr| ]*\})?"
    r"|\\end\s*\{(?:[bpBvV]?matrix|array)\}"
    r"|\\[A-Za-z]+|\\.|\d+(?:\.\d+)?[eE][+-]?\d{1,3}(?![\d.])|\d+\.(?=\\overline)|\d+\.\d+|\.\d+|\d+|[A-Za-z]+'*|\S",
    re.DOTALL,
)
_RELATIONS = {"=", "<", ">", r"\le", r"\ge", r"\ne", r"\in", r"\approx"}
_SIGNS = {"+", "-", r"\pm", r"\mp"}
_BRACKETS = {"(": ")", "[": "]", r"\{": r"\}"}
_CLOSERS = {")", "]", r"\}", "}"}
_ENDS = {"", ",", ";", *_CLOSERS}
_NAMES = {
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "kappa", "lambda", "mu",
    "nu", "xi", "rho", "sigma", "tau", "phi", "chi", "psi", "omega", "Gamma", "Delta", "Theta",
    "Lambda", "Sigma", "Phi", "Psi", "Omega", "ell", "emptyset",
}  # fmt: skip
_CONSTANTS = {
    **{"pi": math.pi, "e": math.e, "i": 1j},
    **dict.fromkeys(("infty", "infinity", "inf", "oo"), math.inf),
}
_COMMANDS = {*FUNCTIONS, *_NAMES, *_CONSTANTS, "frac", "sqrt", "binom", "overline", "hat"}
_PLAIN_WORDS = {*FUNCTIONS, "sqrt", "pi", "infinity", "inf", "oo"}


class _Reader:
    """Recursive descent over the tokens of one answer."""

    def __init__(self, text: str):
        self.tokens = _TOKEN.findall(text)
        self.at = 0
        self.depth = 0
        self.upper = True  # what \pm means in this pass over an item: plus, or minus
        self.saw_pm = False
        self.in_angle = False
        self.in_bars = False

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def next(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def take(self, token: str) -> bool:
        found = self.peek() == token
        self.at += found
        return found

    def expect(self, token: str) -> None:
        if not self.take(token):
            raise Unreadable(f"{self.peek()!r} where {token!r} is due")

    # --- lists and relations

    def answer(self) -> Node:
        groups = [self.items()]
        while self.take(";"):
            groups.append(self.items())
        if self.peek():
            raise Unreadable(f"{self.peek()!r} left over")
        if len(groups) > 1 and any(len(group) > 1 for group in groups):  # x=1, y=2; x=3, y=4
            return Sequence("", tuple(Sequence("(", tuple(group), ")") for group in groups), "")
        return _listed([item for group in groups for item in group])

    def items(self, twofold: bool = True) -> list[Node]:
        """What commas separate. With ``twofold``, an item with \\pm in it gives two."""
        outer, found = self.saw_pm, []
        while self.peek() not in _ENDS - {","}:
            if self.take(","):
                continue
            start, self.saw_pm = self.at, False
            found.append(self.relation())
            if self.peek() not in _ENDS:
                raise Unreadable(f"{self.peek()!r} after an item")
            if twofold and self.saw_pm and self.upper:
                self.at, self.upper = start, False
                found.append(self.relation())
                self.upper = True
            outer |= self.saw_pm and not twofold
        self.saw_pm = outer
        return found

    def relation(self) -> Node:
        sides, signs = [self.union()], []
        while self.peek() in _RELATIONS:
            signs.append(self.next())
            sides.append(self.union())
        if r"\in" in signs:
            return sides[-1]
        if r"\approx" in signs:  # 1/3 ≈ 0.33 says 1/3, x ≈ 5 says x = 5
            cut = max(signs.index(r"\approx"), 1 if isinstance(sides[0], Value) and not sides[0].is_constant else 0)
            sides, signs = sides[: cut + 1], ["=" if s == r"\approx" else s for s in signs[:cut]]
        if signs:
            return Relation(tuple(sides), tuple(signs))
        while self.take(":"):
            sides.append(self.union())
        return Sequence(":", tuple(sides), "") if len(sides) > 1 else sides[0]

    def union(self) -> Node:
        parts = [self.sum()]
        while self.take(r"\cup"):
            parts.append(self.sum())
        return Union(tuple(parts)) if len(parts) > 1 else parts[0]

    # --- arithmetic

    def sum(self) -> Node:
        total = self.product()
        while self.peek() in _SIGNS:
            operation = subtract if self.minus() else add
            total = apply(operation, total, self.product())
        return total

    def minus(self) -> bool:
        """Takes the signs that come next; whether together they are a minus."""
        minus = False
        while self.peek() in _SIGNS:
            sign = self.next()
            self.saw_pm |= sign in (r"\pm", r"\mp")
            minus ^= sign == "-" or (sign == r"\pm" and not self.upper) or (sign == r"\mp" and self.upper)
        return minus

    def product(self) -> Node:
        result = self.factor()
        while True:
            if self.take("*"):
                operation = power if self.take("*") else multiply
                result = apply(operation, result, self.factor())
            elif self.take("/"):
                result = apply(divide, result, self.factor())
            elif self.starts_factor() and not self.peek()[0].isdigit():
                other = self.factor()
                name = result.literal + other.literal if _named(result, other) else ""
                result = replace(apply(multiply, result, other), literal=name)
            else:
                return result

    def starts_factor(self) -> bool:
        token = self.peek()
        if token[1:2].isalpha() and token[0] == "\\":
            return token[1:] in _COMMANDS
        return token in ("(", "[", "{") or token[:1].isalnum() or (token == "|" and not self.in_bars)

    def factor(self) -> Node:
        minus = self.peek() in _SIGNS and self.minus()
        result = self.primary()
        while self.peek() in ("!", "^"):
            if self.next() == "!":
                result = apply(factorial, result)
            elif self.take(r"\circ"):
                if self.in_angle:
                    result = apply(multiply, result, constant(math.pi / 180))
            else:
                result = apply(power, result, self.argument())
        return apply(negate, result) if minus else result

    def primary(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("brackets too deep")
        token = self.next()
        if token[:1].isdigit() or (token[:1] == "." and len(token) > 1):
            node = self.number(token)
        elif token == "{":
            node = _listed(self.items(twofold=False))
            self.expect("}")
        elif token in _BRACKETS:
            node = self.bracket(token)
        elif token == "|":
            node = self.bars()
        elif token[:1].isalpha():
            node = self.letters(token)
        elif token[:1] == "\\":
            node = self.command(token[1:])
        else:
            raise Unreadable(f"unknown {token!r}")
        self.depth -= 1
        return node

    def argument(self) -> Node:
        """What a command or a power applies to: a group or one character (\\frac12, x^2)."""
        token = self.peek()
        if token[:1].isdigit():
            self.cut(1)
            return constant(Fraction(token[0]), token[0])
        if token == "-":
            self.next()
            return apply(negate, self.argument())
        if token[:1].isalpha() and token not in _PLAIN_WORDS:
            self.cut(1)
            return self.name(token[0])
        return self.primary()

    def cut(self, length: int) -> str:
        """Takes the first characters of the next token, and leaves the others."""
        token = self.next()
        if len(token) > length:
            self.at -= 1
            self.tokens[self.at] = token[length:]
        return token[:length]

    # --- what stands alone

    def number(self, token: str) -> Node:
        if self.take("_"):
            return Based(token, self.subscript())
        if len(token) > 400:
            raise Unreadable("a number of hundreds of digits")
        value = Fraction(token.rstrip("."))
        if "." in token and self.take(r"\overline"):  # 0.1\overline{6}
            digits, places = self.subscript(), len(token.partition(".")[2])
            if not digits.isdigit() or len(digits) > 50:
                raise Unreadable("an overline over no digits")
            return constant(value + Fraction(int(digits), (10 ** len(digits) - 1) * 10**places))
        if self.peek() == r"\frac" and "." not in token:  # the mixed number 2\frac12
            part = self.primary()
            mixed = part.is_constant and isinstance(part.points[0], Fraction) and 0 < part.points[0] < 1
            return apply(add if mixed else multiply, constant(value), part)
        return constant(value, token)

    def subscript(self) -> str:
        """The characters of {…}, or the one character there is."""
        if not self.take("{"):
            return self.next() if self.peek()[:1] == "\\" else self.cut(1)
        start = self.at
        while self.peek() not in ("}", ""):
            self.next()
        self.expect("}")
        return "".join(self.tokens[start : self.at - 1])

    def letters(self, token: str) -> Node:
        """A run of letters: a name that is known, else the product of its letters."""
        if token in _PLAIN_WORDS:
            return self.command(token)
        if len(token.rstrip("'")) > 1:
            self.at -= 1
            self.tokens[self.at] = token[1:]
            token = token[0]
        return self.name(token)

    def name(self, token: str) -> Node:
        if self.take("_"):
            return symbol(f"{token}_{self.subscript()}")
        return constant(_CONSTANTS[token], token) if token in _CONSTANTS else symbol(token)

    def bracket(self, opener: str) -> Node:
        """(a) is a; (a, b], \\{a, b\\} are what they look like."""
        items = self.items(twofold=opener == r"\{")
        while self.take(";"):
            items += self.items(twofold=False)
        closer = self.next()
        if not items or closer not in _CLOSERS - {"}"}:
            raise Unreadable("brackets that are empty or stay open")
        if len(items) == 1 and closer == _BRACKETS[opener] and opener != r"\{":
            return items[0]
        return Sequence(opener[-1], tuple(items), closer[-1])

    def bars(self) -> Node:
        if self.in_bars:
            raise Unreadable("bars within bars")
        self.in_bars = True
        inner = self.sum()
        self.expect("|")
        self.in_bars = False
        name = f"abs {inner.literal}" if _named(inner) else ""
        return replace(apply(abs, inner), literal=name)

    def command(self, name: str) -> Node:
        if name.startswith("begin"):
            return self.matrix()
        if name == "frac":
            above, below = self.argument(), self.argument()
            name = f"{above.literal}/{below.literal}" if _named(above, below) else ""
            return replace(apply(divide, above, below), literal=name)
        if name == "binom":
            return apply(binomial, self.argument(), self.argument())
        if name == "sqrt":
            degree: Node = constant(2)
            if self.take("["):
                degree = self.sum()
                self.expect("]")
            return apply(root, self.argument(), degree)
        if name in FUNCTIONS:
            return self.function(name)
        if name in ("overline", "hat"):
            return symbol(f"{name} {self.subscript()}")
        if name in _CONSTANTS or name in _NAMES:
            return self.name(name)
        raise Unreadable(f"unknown \\{name}")

    def function(self, name: str) -> Node:
        base = self.argument() if name == "log" and self.take("_") else None
        exponent = self.argument() if self.take("^") else None
        if name in INVERSES and isinstance(exponent, Value) and exponent.points[0] == -1:
            name, exponent = INVERSES[name], None
        outer, self.in_angle = self.in_angle, True
        inner = self.function_argument()
        self.in_angle = outer
        result = apply(lambda x: FUNCTIONS[name](complex(x)), inner)
        if base is not None:
            result = apply(divide, apply(FUNCTIONS["ln"], inner), apply(FUNCTIONS["ln"], base))
        return result if exponent is None else apply(power, result, exponent)

    def function_argument(self) -> Node:
        """\\sin(2x) applies to the bracket, \\sin 2x to the product before the next function."""
        if self.peek() in ("(", "[", "{"):
            return self.factor()
        result = self.factor()
        while self.starts_factor() and self.peek() != "(" and self.peek().lstrip("\\") not in FUNCTIONS:
            result = apply(multiply, result, self.factor())
        return result

    def matrix(self) -> Node:
        rows: list[list[Node]] = [[]]
        while not self.peek().startswith(r"\end"):
            if self.take(ROW):
                rows.append([])
            elif not self.take("&"):
                rows[-1].append(self.sum())
        self.next()
        return Matrix(tuple(tuple(row) for row in rows if row))


def _named(*nodes: Node) -> bool:
    """Whether the parts of a product are such that it may be a name: f(x), AB, NO/BO."""
    return all(isinstance(node, Value) and node.literal[:1].isalpha() for node in nodes)


def _listed(items: list[Node]) -> Node:
    if not items:
        raise Unreadable("nothing there")
    return items[0] if len(items) == 1 else Sequence("", tuple(items), "")


@lru_cache(maxsize=16384)
def read_answer(answer: str) -> Node | None:
    """The meaning of an answer in one spelling (``lib.latex``), None if outside of this grammar."""
    if len(answer) > MAX_LENGTH:
        return None
    try:
        return _Reader(answer).answer()
    except (Unreadable, RecursionError):
        return None
