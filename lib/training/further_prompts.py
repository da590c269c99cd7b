"""Which prompts a step tries for those whose groups had no signal."""

import random
from collections.abc import Collection, Iterable, Sequence
from itertools import groupby

from lib.runs import Run, read_rollouts, rollout_steps

ALIKE = 1e-6  # totals no further apart are the same


class FurtherPrompts:
    """The training prompts in the order in which a step tries them.

    The order depends on the seed, the step and what the run has seen so far, which a resumed
    run reads back from its rollouts.

    Args:
        ids: the training rows' ids, in the data set's order.
        budget: how many a step may try.
    """

    def __init__(self, ids: Sequence[str], seed: int, budget: int):
        self.ids, self.seed, self.budget = list(ids), seed, budget
        self.dead: dict[str, int] = {}  # id -> how often in a row its group had no signal

    def order(self, step: int, drawn: Collection[str]) -> list[int]:
        """Places in the data set: at random, those last seen without signal behind all others.

        Args:
            drawn: ids that the step has drawn already.
        """
        left = [place for place, id in enumerate(self.ids) if id not in drawn]
        random.Random(f"{self.seed} {step}").shuffle(left)
        left.sort(key=lambda place: self.dead.get(self.ids[place], 0))
        return left[: self.budget]

    def saw(self, ids: Iterable[str], differ: Iterable[bool]) -> None:
        """Note for each prompt whether the completions of its group earned different rewards."""
        for id, differs in zip(ids, differ, strict=True):
            self.dead[id] = 0 if differs else self.dead.get(id, 0) + 1

    def recall(self, run: Run, last: int) -> None:
        """Take over what the run saw up to its step `last`."""
        self.dead.clear()
        for step in (step for step in rollout_steps(run) if step <= last):
            for id, group in groupby(read_rollouts(run, step), key=lambda row: row["id"]):
                totals = [row["total"] for row in group]
                self.saw([id], [max(totals) - min(totals) > ALIKE])
