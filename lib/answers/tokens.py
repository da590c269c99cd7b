"""An answer as a row of tokens, and a finger on the next one."""

from __future__ import annotations

import re

from lib.answers.values import Unreadable

_TOKEN = re.compile(
    r"""\\begin\s?\{[bpBvV]?matrix\} | \\begin\s?\{array\}(?:\s?\{[lcr|\ ]*\})?
    | \\end\s?\{(?:[bpBvV]?matrix|array)\}
    | \\[A-Za-z]+ | \\.
    | \d+(?:\.\d+)?[eE][+-]?\d{1,3}(?![\d.]) | \d+\.(?=\\overline) | \d+\.\d+ | \.\d+ | \d+
    | [A-Za-z]+'* | \S""",
    re.VERBOSE | re.DOTALL,
)


class Tokens:
    """The tokens of an answer, read from the left. Past the end the next token is ""."""

    def __init__(self, text: str):
        self.tokens = _TOKEN.findall(text)
        self.at = 0

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

    def cut(self) -> str:
        """Takes the first character of the next token, and leaves the others."""
        token = self.next()
        if len(token) > 1:
            self.at -= 1
            self.tokens[self.at] = token[1:]
        return token[:1]
