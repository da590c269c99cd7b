"""A reward function called with care: a number for each completion, or a sentence."""

import math
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from lib.errors import BadInput


class Checked:
    """The same reward, by the same name, whose answers can be trusted.

    Raises, when called:
        BadInput: it raised, gave too few or too many values, or one that is no number (None,
            for a completion that it cannot judge, is right).
    """

    def __init__(self, reward: Callable):
        self.reward = reward
        self.__name__ = reward.__name__

    def __call__(self, completions: Sequence, **columns) -> list[float | None]:
        name, count = self.__name__, len(completions)
        try:
            values = list(self.reward(completions=completions, **columns))
        except BadInput:
            raise
        except Exception as error:  # whatever a user's function may raise
            raise BadInput(
                f'The reward "{name}" failed with {type(error).__name__} ({error}) in '
                f"{_place(error)}: mend it."
            ) from error
        if len(values) != count:
            raise BadInput(
                f'The reward "{name}" returned {len(values)} values for {count} completions: '
                f"let it return one for each, in their order."
            )
        return [self._number(value) for value in values]

    def _number(self, value) -> float | None:
        if value is None:
            return None
        try:
            number = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise BadInput(
                f'The reward "{self.__name__}" returned {value!r}, which is no number: let it '
                f"return a finite one, or None for a completion that it cannot judge."
            )
        return number


def _place(error: Exception) -> str:
    """The line of the reward that raised it, or called what did: "rewards.py, line 12"."""
    frame = traceback.extract_tb(error.__traceback__)[:2][-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}"
