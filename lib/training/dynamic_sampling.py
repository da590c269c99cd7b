"""Dynamic sampling: groups without signal give way to groups of further prompts.

DAPO (Yu et al. 2025, arXiv 2503.14476, sec. 3.2) draws prompts until a batch holds only groups
whose completions earned different rewards. Here a step tries `resample` further prompts at most;
what it cannot replace stays, and costs no training.
"""

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from lib.runs import Run, read_rollouts, rollout_steps
from lib.training.rollouts import ALIKE, all_alike, totals


@dataclass(frozen=True)
class Groups:
    """Completions of some prompts and what they earned, G of each prompt one after the other.

    Attributes:
        rows: an entry a completion: the data set's columns, prompt_ids, completion_ids, logprobs,
            completions and scores (what each reward gave, by name).
        alike: for each group, whether all of it earned the same.
    """

    rows: list[dict]
    alike: list[bool]

    def __add__(self, other: "Groups") -> "Groups":
        return Groups(self.rows + other.rows, self.alike + other.alike)

    def take(self, groups: Sequence[int]) -> "Groups":
        """These groups, in this order."""
        size = len(self.rows) // len(self.alike)
        rows = [self.rows[group * size + i] for group in groups for i in range(size)]
        return Groups(rows, [self.alike[group] for group in groups])


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
    every, chosen = drawn, list(range(len(drawn.alike)))
    while further and any(every.alike[group] for group in chosen):
        places = [place for place, group in enumerate(chosen) if every.alike[group]]
        now, further = further[: len(places)], further[len(places) :]
        known = len(every.alike)
        every += sample(list(now))
        useful = [group for group in range(known, len(every.alike)) if not every.alike[group]]
        for place, group in zip(places, useful, strict=False):
            chosen[place] = group
    return every, chosen


class DynamicSampling:
    """TRL's `rollout_func`: generates and judges a step's groups, and hands on those to train on.

    TRL's log would be of the groups that were chosen for what they earned; `metrics` puts those of
    the prompts as drawn in their place.

    Args:
        completions: judges and keeps them (`lib.training.callbacks.Completions`).
        rows: the training rows, of which a step may try `budget` further ones. Their order depends
            on the seed, the step and what the run has seen so far, which a resumed run reads back
            from its rollouts.
    """

    def __init__(self, completions: Any, rows: Sequence[dict], seed: int, budget: int):
        self.completions, self.rows, self.seed, self.budget = completions, rows, seed, budget
        self.dead: dict[str, int] = {}  # id -> how often in a row its group had no signal
        self._recalled = False

    def __call__(self, prompts: list, trainer: Any) -> dict[str, list]:
        step, group = trainer.state.global_step, trainer.num_generations
        if not self._recalled:
            self.recall(self.completions.run, step)
        first = step // trainer.num_iterations * (len(prompts) // group)
        drawn_rows = [trainer.train_dataset[first + i] for i in range(len(prompts) // group)]
        drawn = self._sample(drawn_rows, trainer)
        places = self.order(step + 1, {row["id"] for row in drawn_rows})
        every, chosen = resample(
            drawn, [self.rows[i] for i in places], lambda rows: self._sample(rows, trainer)
        )
        self.saw([row["id"] for row in every.rows[::group]], every.alike)
        trained = [i // group in chosen for i in range(len(every.rows))]
        names = self.completions.judges
        values = {name: [row["scores"][name] for row in every.rows] for name in names}
        self.completions.keep(step + 1, every.rows, values, trained)
        batch = every.take(chosen)
        self.completions.log.extra |= self._as_drawn(drawn, every, batch, trainer)
        keys = batch.rows[0].keys() - {"prompt", "completions"}
        out = {key: [row[key] for row in batch.rows] for key in keys}
        return out if out["logprobs"][0] is not None else out | {"logprobs": None}

    def _sample(self, rows: Sequence[dict], trainer: Any) -> Groups:
        """A group for each of the rows, generated and decoded as TRL does, and judged."""
        rows = [dict(row) for row in rows for _ in range(trainer.num_generations)]
        ids, *_ = trainer._tokenize_prompts([row["prompt"] for row in rows])
        answers, logprobs = trainer._generate_single_turn(ids, None, {}, trainer.num_generations)
        texts = trainer.processing_class.batch_decode(answers, skip_special_tokens=True)
        for i, row in enumerate(rows):
            said = [{"role": "assistant", "content": texts[i]}]
            row |= dict(prompt_ids=ids[i], completion_ids=answers[i], completions=said)
            row |= dict(logprobs=logprobs and logprobs[i])
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        columns |= dict(prompts=columns.pop("prompt"), trainer_state=trainer.state)
        values = {name: judge(**columns) for name, judge in self.completions.judges.items()}
        for i, row in enumerate(rows):
            row["scores"] = {name: some[i] for name, some in values.items()}
        alike = all_alike(_rewards(rows), trainer.reward_weights.cpu(), trainer.num_generations)
        return Groups(rows, alike)

    def _as_drawn(self, drawn: Groups, every: Groups, batch: Groups, trainer: Any) -> dict:
        """What to log: shares of groups with signal, and TRL's numbers of the prompts as drawn."""
        rewards_BR, lengths = _rewards(drawn.rows), [len(r["completion_ids"]) for r in drawn.rows]
        totals_B = totals(rewards_BR, trainer.reward_weights.cpu())
        trainer.state.num_input_tokens_seen += _tokens(every.rows) - _tokens(batch.rows)
        logged = {
            "signal/drawn": 1 - sum(drawn.alike) / len(drawn.alike),
            "signal/trained": 1 - sum(batch.alike) / len(batch.alike),
            "signal/tried": len(every.alike) - len(drawn.alike),
            "reward": totals_B.nanmean().item(),
            "reward_std": _std(totals_B),
            "completions/mean_length": sum(lengths) / len(lengths),
        }
        for name, values_B in zip(self.completions.judges, rewards_BR.T, strict=True):
            logged[f"rewards/{name}/mean"] = values_B.nanmean().item()
            logged[f"rewards/{name}/std"] = _std(values_B)
        return logged

    def order(self, step: int, drawn: Collection[str]) -> list[int]:
        """Places in the rows: at random, those last seen without signal behind all others.

        Args:
            drawn: ids that the step has drawn already.
        """
        left = [place for place, row in enumerate(self.rows) if row["id"] not in drawn]
        random.Random(f"{self.seed} {step}").shuffle(left)
        left.sort(key=lambda place: self.dead.get(self.rows[place]["id"], 0))
        return left[: self.budget]

    def saw(self, ids: Iterable[str], alike: Iterable[bool]) -> None:
        """Note for each prompt whether the completions of its group earned the same."""
        for id, same in zip(ids, alike, strict=True):
            self.dead[id] = self.dead.get(id, 0) + 1 if same else 0

    def recall(self, run: Run, last: int) -> None:
        """Take over what the run saw up to its step `last`."""
        self._recalled = True
        self.dead.clear()
        for step in (step for step in rollout_steps(run) if step <= last):
            for id, group in groupby(read_rollouts(run, step), key=lambda row: row["id"]):
                earned = [row["total"] for row in group]
                self.saw([id], [max(earned) - min(earned) <= ALIKE])


def _rewards(rows: Sequence[dict]) -> torch.Tensor:
    values = [[torch.nan if v is None else v for v in row["scores"].values()] for row in rows]
    return torch.tensor(values, dtype=torch.float32)


def _tokens(rows: Sequence[dict]) -> int:
    return sum(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows)


def _std(values_B: torch.Tensor) -> float:
    return values_B[~values_B.isnan()].std().item()
