"""What a user is meant to see when something is wrong: exceptions, and hints in them."""

import difflib
from collections.abc import Iterable


class BadInput(ValueError):
    """Something the user gave does not work; one sentence says what and where, and what to do.
    Notebooks and the runner show that sentence and no traceback. The doctor notes it as a finding.

    Attributes:
        key: names the kind of error for programs and tests; it stays where the sentence changes.
        stops: whether a run would fail or be worthless; else it is noted and never raised.
    """

    def __init__(self, sentence: str, key: str = "", stops: bool = True):
        super().__init__(sentence)
        self.key, self.stops = key, stops

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it."""
        return [str(self)]


class Stopped(BadInput):
    """A training that cannot go on, or was asked not to; its text also says what is kept of it."""


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest known one (the first that begins with it, where one
    does), or all of them.

    >>> nearest("gsm8", ["gsm8k", "aqua"])
    'did you mean "gsm8k"?'
    """
    given, folded = str(name).casefold(), {each.casefold(): each for each in names}
    longer = [each for each in folded if len(given) > 3 and each.startswith(given)]
    close = longer or difflib.get_close_matches(given, folded, n=1)
    if close:
        return f'did you mean "{folded[close[0]]}"?'
    if len(folded) > 40:
        return "none is like it."
    return f"choose one of {', '.join(sorted(folded.values()))}." if folded else "it has none."
