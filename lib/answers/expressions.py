"""The grammar of mathematical answers: LaTeX or plain text to values, lists, intervals, relations.

``read_answer(r"x = \\frac12, y \\in [0, 2\\pi)")`` gives the nodes of ``lib.answers.values``,
evaluated while they are read. What is outside of the grammar (sums, integrals, prose) gives None.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

from lib.answers.latex import ROW
from lib.answers.tokens import Tokens
from lib.answers.values import (
    FUNCTIONS,
    INVERSES,
    Based,
    Matrix,
    Node,
    Relation,
    Sequence,
    Union,
    Unreadable,
    Value,
    add,
    apply,
    binomial,
    constant,
    divide,
    factorial,
    multiply,
    negate,
    power,
    root,
    subtract,
    symbol,
)

MAX_LENGTH = 1000  # characters of an answer
MAX_DEPTH = 40  # brackets within brackets
MAX_ITEMS = 100  # of a list

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
    "pi": math.pi, "e": math.e, "i": 1j,
    "infty": math.inf, "infinity": math.inf, "inf": math.inf, "oo": math.inf,
}  # fmt: skip
_COMMANDS = {*FUNCTIONS, *_NAMES, *_CONSTANTS, "frac", "sqrt", "binom", "overline", "hat"}
_PLAIN_WORDS = {*FUNCTIONS, "sqrt", "pi", "infinity", "inf", "oo"}


@lru_cache(maxsize=16384)
def read_answer(answer: str, radians: bool = False) -> Node | None:
    """The meaning of an answer in one spelling (`lib.answers.latex`); None outside the grammar.

    A degree sign is only read under a sine or its kin, or where ``radians`` asks for it.
    """
    if len(answer) > MAX_LENGTH:
        return None
    try:
        return _Reader(answer, radians).answer()
    except (Unreadable, ValueError, ArithmeticError):
        return None


class _Reader(Tokens):
    """Recursive descent over the tokens of one answer."""

    def __init__(self, text: str, radians: bool):
        super().__init__(text)
        self.depth = 0
        self.upper = True  # what \pm means in this pass over an item: plus, or minus
        self.saw_pm = False
        self.in_angle = radians
        self.in_bars = False

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
            if self.peek() not in _ENDS or len(found) > MAX_ITEMS:
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
        if r"\approx" in signs:  # x ≈ 5 is x = 5, but what has an exact value (1/3 ≈ 0.33) is that
            first = 0 if isinstance(sides[0], Value) and sides[0].is_constant else 1
            kept = max(signs.index(r"\approx"), first)
            sides, signs = sides[: kept + 1], ["="] * kept
        if signs:
            return Relation(tuple(sides), tuple(signs))
        while self.take(":"):
            sides.append(self.union())
        if len(sides) == 2 and isinstance(sides[1], Value) and sides[1].points[0]:
            return apply(divide, *sides)  # the ratio 2:3
        return sides[0] if len(sides) == 1 else Sequence(":", tuple(sides), "")

    def union(self) -> Node:
        parts = [self.sum()]
        while self.take(r"\cup"):
            parts.append(self.sum())
        return parts[0] if len(parts) == 1 else Union(tuple(parts))

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
            minus ^= sign == "-" or sign == (r"\mp" if self.upper else r"\pm")
        return minus

    def product(self) -> Node:
        result = self.factor()
        while True:
            if self.take("*"):
                if self.take("*"):
                    result = self.raised(result, self.factor())
                else:
                    result = apply(multiply, result, self.factor())
            elif self.take("/"):
                result = apply(divide, result, self.factor())
            elif self.starts_factor() and not self.peek()[0].isdecimal():
                other = self.factor()
                name = result.literal + other.literal if _may_be_name(result, other) else ""
                result = replace(apply(multiply, result, other), literal=name)
            else:
                return result

    def starts_factor(self) -> bool:
        token = self.peek()
        if token[:1] == "\\" and token[1:2].isalpha():
            return token[1:] in _COMMANDS
        if token == "|":
            return not self.in_bars
        return token in ("(", "[", "{") or token[:1].isalnum()

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
                result = self.raised(result, self.exponent())
        return _negated(result) if minus else result

    def primary(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("brackets too deep")
        token = self.next()
        if token[:1].isdecimal() or (token[:1] == "." and len(token) > 1):
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

    def raised(self, base: Node, exponent: Node) -> Node:
        if self.peek() == "^" or self.tokens[self.at : self.at + 2] == ["*", "*"]:
            raise Unreadable("a tower of powers without braces")
        return apply(power, base, exponent)

    def exponent(self) -> Node:
        """As people mean it: x^10 is x to the tenth, although LaTeX sets it otherwise."""
        if self.peek().isdecimal():
            return constant(int(self.next()))
        return self.argument()

    def argument(self) -> Node:
        """What a command applies to: a group or one character (\\frac12)."""
        token = self.peek()
        if token[:1].isdecimal():
            return constant(Fraction(self.cut()), token[0])
        if token == "-":
            self.next()
            return apply(negate, self.argument())
        if token[:1].isalpha() and token not in _PLAIN_WORDS:
            return self.name(self.cut())
        return self.primary()

    # --- what stands alone

    def number(self, token: str) -> Node:
        if self.take("_"):
            return Based(token, self.subscript())
        if len(token) > 400:
            raise Unreadable("a number of hundreds of digits")
        value = Fraction(token.rstrip("."))
        if "." in token and self.take(r"\overline"):  # 0.1\overline{6}
            digits, places = self.subscript(), len(token.partition(".")[2])
            if not digits.isdecimal() or len(digits) > 50:
                raise Unreadable("an overline over no digits")
            return constant(value + Fraction(int(digits), (10 ** len(digits) - 1) * 10**places))
        if self.peek() == r"\frac" and "." not in token:  # the mixed number 2\frac12
            part = self.primary()
            first = part.points[0]
            mixed = part.is_constant and isinstance(first, Fraction) and 0 < first < 1
            return apply(add if mixed else multiply, constant(value), part)
        return constant(value, token)

    def subscript(self) -> str:
        """The characters of {…}, or the one character there is."""
        if not self.take("{"):
            return self.next() if self.peek()[:1] == "\\" else self.cut()
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
        return replace(apply(abs, inner), literal=f"abs {inner.literal}" * _may_be_name(inner))

    def command(self, name: str) -> Node:
        if name.startswith("begin"):
            return self.matrix()
        if name == "frac":
            above, below = self.argument(), self.argument()
            ratio = f"{above.literal}/{below.literal}" if _may_be_name(above, below) else ""
            return replace(apply(divide, above, below), literal=ratio)
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
        if name in INVERSES and isinstance(exponent, Value) and exponent.points == (-1,):
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
        while self.starts_factor() and self.peek().lstrip("\\") not in {*FUNCTIONS, "("}:
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


def _listed(items: list[Node]) -> Node:
    if not items:
        raise Unreadable("nothing there")
    return items[0] if len(items) == 1 else Sequence("", tuple(items), "")


def _negated(node: Node) -> Node:
    if isinstance(node, Based):
        return replace(node, digits=f"-{node.digits}")
    negative = apply(negate, node)
    return replace(negative, literal=node.literal) if node.literal[:1].isdecimal() else negative


def _may_be_name(*nodes: Node) -> bool:
    """Whether all are named, so that their product or ratio may be a name too: f(x), NO/BO."""
    return all(isinstance(node, Value) and node.literal[:1].isalpha() for node in nodes)
