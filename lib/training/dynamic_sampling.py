"""Dynamic sampling: groups without signal give way to groups of further prompts.

DAPO (Yu et al. 2025, arXiv 2503.14476, sec. 3.2) draws prompts until a batch holds only groups
whose completions earned different rewards. Here a step tries `resample` further prompts at most;
what it cannot replace stays, and costs no training.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lib.training.further_prompts import ALIKE, FurtherPrompts


@dataclass(frozen=True)
class Groups:
    """Completions of some prompts and what they earned, G of each prompt in a row.

    Attributes:
        rows: the prompts' rows of the data set, each G times.
        generated: what TRL's `_generate` returns; its lists hold an entry a completion, or none.
        rewards_BR: what each reward gave each completion, NaN where it gave none.
        differ: for each group, whether its weighted totals do.
    """

    rows: list[dict]
    generated: tuple
    rewards_BR: torch.Tensor
    differ: list[bool]

    @property
    def ids(self) -> list[str]:
        """One a group."""
        return [row["id"] for row in self.rows[:: self.size]]

    @property
    def size(self) -> int:
        return len(self.rows) // len(self.differ)

    def __add__(self, other: "Groups") -> "Groups":
        pairs = zip(self.generated, other.generated, strict=True)
        return Groups(
            self.rows + other.rows,
            tuple(a + b if isinstance(a, list) else a for a, b in pairs),
            torch.cat([self.rewards_BR, other.rewards_BR]),
            self.differ + other.differ,
        )

    def take(self, groups: Sequence[int]) -> "Groups":
        """These groups, in this order."""
        rows = [group * self.size + i for group in groups for i in range(self.size)]

        def part(value: Any) -> Any:
            return [value[row] for row in rows] if isinstance(value, list) and value else value

        return Groups(
            part(self.rows),
            tuple(part(value) for value in self.generated),
            self.rewards_BR[rows],
            [self.differ[group] for group in groups],
        )


def groups_differ(totals_B: torch.Tensor, group: int) -> list[bool]:
    """For each group of so many totals whether they differ; NaN, not scored, counts for nothing."""
    totals_PG = totals_B.view(-1, group)
    missing_PG = totals_PG.isnan()
    lowest_P = totals_PG.masked_fill(missing_PG, torch.inf).amin(1)
    highest_P = totals_PG.masked_fill(missing_PG, -torch.inf).amax(1)
    return (highest_P - lowest_P > ALIKE).tolist()


def resample(
    drawn: Groups, further: Sequence[dict], sample: Callable[[list[dict]], Groups]
) -> tuple[Groups, list[int]]:
    """Try further prompts, at each turn as many as there are groups left without signal.

    So no group with signal is generated in vain.

    Args:
        further: rows of the prompts to try, in order; each at most once.
        sample: generates and scores a group for each of some rows.

    Returns: every group generated, those drawn first; and for each place of the step the
    group to train on.
    """
    every, chosen = drawn, list(range(len(drawn.differ)))
    while further and not all(every.differ[group] for group in chosen):
        places = [place for place, group in enumerate(chosen) if not every.differ[group]]
        now, further = further[: len(places)], further[len(places) :]
        known = len(every.differ)
        every += sample(list(now))
        found = [group for group in range(known, len(every.differ)) if every.differ[group]]
        for place, group in zip(places, found, strict=False):
            chosen[place] = group
    return every, chosen


class DynamicSampling:
    """What GRPOTrainer does at the beginning of a step, with groups replaced before TRL sees them.

    A step's completions are generated and scored first, by TRL's methods; then TRL is handed the
    groups to train on and goes its way. The log's rewards and lengths are those of the prompts as
    drawn, since those that replaced others were chosen for what they earned.

    Attributes:
        further: the prompts that a step tries; None: no group is replaced.
        every, chosen: all groups of the latest batch, and those of them that are trained on.
        turn: 0 while the prompts drawn are asked, then 1, 2 … for further ones.
    """

    further: FurtherPrompts | None = None
    every: Groups
    chosen: list[int]
    turn = 0
    _handed: Groups | None = None

    def _generate(self, prompts: list) -> tuple:
        return self._handed.generated if self._handed else super()._generate(prompts)

    def _calculate_rewards(self, *batch: list) -> torch.Tensor:
        return self._handed.rewards_BR if self._handed else super()._calculate_rewards(*batch)

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict:
        self.turn = 0
        drawn = self._sample(inputs)
        self.every, self.chosen = resample(drawn, self._further_rows(drawn), self._sample_further)
        self._handed = self.every.take(self.chosen)
        try:
            batch = super()._generate_and_score_completions(self._handed.rows)
        finally:
            self._handed = None
        # TRL counts a group that no reward could judge as one with signal.
        unjudged_B = self._handed_rewards().isnan().all(1)
        share = unjudged_B.view(-1, self._group).all(1).float().mean().item()
        if self.model.training:
            self._metrics["train"]["frac_reward_zero_std"][-1] += share
        if self.further:
            self._note_signal(drawn)
        return batch

    def _handed_rewards(self) -> torch.Tensor:
        return self.every.take(self.chosen).rewards_BR

    def _sample(self, rows: list[dict]) -> Groups:
        """Generated and scored as TRL does it."""
        prompts = [row["prompt"] for row in rows]
        generated = self._generate(prompts)
        _, ids, _, completions, *_ = generated
        rewards_BR = self._calculate_rewards(rows, prompts, completions, ids)
        return Groups(
            rows, generated, rewards_BR, groups_differ(self._totals(rewards_BR), self._group)
        )

    @property
    def _group(self) -> int:
        return self.num_generations if self.model.training else self.num_generations_eval

    def _totals(self, rewards_BR: torch.Tensor) -> torch.Tensor:
        totals_B = (rewards_BR * self.reward_weights.to(rewards_BR)).nansum(1)
        return totals_B.masked_fill(rewards_BR.isnan().all(1), torch.nan)

    def _further_rows(self, drawn: Groups) -> list[dict]:
        if not (self.further and self.model.training):
            return []
        places = self.further.order(self.state.global_step + 1, set(drawn.ids))
        return [self.train_dataset[place] for place in places]

    def _sample_further(self, rows: list[dict]) -> Groups:
        """A group for each of the rows; of TRL's log only the count of tokens goes on."""
        self.turn += 1
        log, self._metrics["train"] = self._metrics["train"], defaultdict(list)
        try:
            return self._sample([row for row in rows for _ in range(self._group)])
        finally:
            log["num_tokens"] = self._metrics["train"]["num_tokens"]
            self._metrics["train"] = log

    def _note_signal(self, drawn: Groups) -> None:
        """The step's shares of groups with signal, and its rewards as the prompts were drawn."""
        log, handed = self._metrics["train"], self.every.take(self.chosen)
        self.further.saw(self.every.ids, self.every.differ)
        log["signal/drawn"].append(sum(drawn.differ) / len(drawn.differ))
        log["signal/trained"].append(sum(handed.differ) / len(handed.differ))
        log["signal/tried"].append(len(self.every.differ) - len(drawn.differ))
        totals_B = self._totals(drawn.rewards_BR)
        log["reward"][-1] = totals_B.nanmean().item()
        log["reward_std"][-1] = _std(totals_B)
        for name, values_B in zip(self.reward_func_names, drawn.rewards_BR.T, strict=True):
            log[f"rewards/{name}/mean"][-1] = values_B.nanmean().item()
            log[f"rewards/{name}/std"][-1] = _std(values_B)


def _std(values_B: torch.Tensor) -> float:
    return values_B[~values_B.isnan()].std().item()
