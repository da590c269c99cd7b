"""Which prompts a step asks, who answers them, and what is kept of an answer.

`training_prompts` are all prompts of a run in their order, so that TRL walks through them once,
unshuffled, and a resumed run finds its place. `RolloutEngine` generates by vLLM in this process,
through TRL's own two methods. `DynamicSampling` has groups without signal give way to groups of
further prompts: DAPO (Yu et al. 2025, arXiv 2503.14476, sec. 3.2) draws until a batch holds only
groups whose completions earned different rewards; here a step tries `resample` further prompts at
most, and what it cannot replace stays and costs no training.
"""

import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.config import Config
from lib.engines import START_ERRORS, Sampling, VllmEngine, no_vllm, training_sampling
from lib.errors import BadInput
from lib.memory import by_unsloth
from lib.models import Policy, live_weights
from lib.proof import TOKENS, Sampled, proof_of_policy
from lib.runs import Run, read_json, read_rollouts, rollout_steps

TURN = 1_000_003  # between the seeds of a step's turns: more than there are steps
ALIKE = 1e-6  # totals no further apart are the same


def choose_rows(rows: Sequence[dict], run: Run, config: Config) -> tuple[list[dict], str]:
    """The rows to train on, and a sentence on what was done to them, by the preflight's pass rates:
    `drop_dead` never leaves out so many that the rest does not fill a step, and to `easy_first`
    one that was not measured counts as one of mean difficulty.

    Raises:
        BadInput: either is set and there was no preflight, or it graded no answers.
    """
    if not config.drop_dead and config.curriculum == "none":
        return list(rows), "Every prompt may be drawn, in random order."
    path = run.folder / "preflight.json"
    measured = read_json(path) if path.is_file() else {}
    rates = measured.get("pass_rates", {})
    if not rates:
        raise BadInput(
            "drop_dead and curriculum need the pass rates of a preflight: run 02_reward_design "
            "for this run first, on a task whose answers are right or wrong, or switch both off.",
            key="no-pass-rates",
        )
    notes = [f"{sum(row['id'] in rates for row in rows)} of {len(rows)} prompts were measured"]
    if config.drop_dead:
        dead = [row["id"] for row in rows if row["id"] in measured["drop"]]
        missing = max(0, config.prompts_per_step - (len(rows) - len(dead)))
        dropped = set(dead[missing:])
        rows = [row for row in rows if row["id"] not in dropped]
        notes.append(f"{len(dropped)} always right or always wrong are dropped")
    if config.curriculum == "easy_first":
        middle = float(np.mean(list(rates.values())))
        rows = sorted(rows, key=lambda row: -rates.get(row["id"], middle))
        notes.append("those more often right come first")
    return list(rows), "; ".join(notes) + "."


def prompt_order(count: int, config: Config) -> list[int]:
    """Places of the prompts of all steps, one after the other: each epoch in an order of its own,
    by the seed; with a curriculum in that of the rows."""
    needed = -(-config.max_steps // config.num_iterations) * config.prompts_per_step
    an_epoch = count // config.prompts_per_step * config.prompts_per_step
    places: list[int] = []
    for epoch in range(-(-needed // an_epoch)):
        order = np.arange(count)
        if config.curriculum == "none":
            order = np.random.default_rng([config.seed, epoch]).permutation(count)
        places += order[:an_epoch].tolist()
    return places[:needed]


def training_prompts(rows: Sequence[dict], config: Config) -> Any:
    """A `datasets.Dataset` of the prompts of all steps in their order, for one epoch unshuffled."""
    from datasets import Dataset

    return Dataset.from_list(list(rows)).select(prompt_order(len(rows), config))


class RolloutEngine:
    """vLLM in this process, which gets the policy's weights whenever the policy has moved.

    It is to TRL what its own `VLLMGeneration` is (`GRPOTrainer.generate_with`), whose hand-over
    fails on a CPU; transformers generates several times slower. A step's samples depend on the
    seed and the step alone, also after a resume.
    """

    trainer: Any = None  # set by `generate_with`
    hand_over_seconds = 0.0  # that the latest hand-over of weights took
    proved = False  # whether it was shown to have the policy
    turn = 0  # 0 where a step first asks, then 1, 2 … as dynamic sampling does

    def __init__(self, config: Config, policy: Policy):
        self.config, self.engine = config, training_engine(config, policy.folder)

    @classmethod
    def start(cls, config: Config, policy: Policy) -> "RolloutEngine | None":
        """None where the trainer is to generate, as it does where vLLM cannot start."""
        if not generates_here(config):
            return None
        try:
            return cls(config, policy)
        except START_ERRORS as error:
            policy.notes.append(no_vllm(error, config))
            return None

    def sync_weights(self) -> None:
        started = time.perf_counter()
        self.engine.hand_over(live_weights(self.trainer.model))
        self.hand_over_seconds, self.turn = time.perf_counter() - started, 0

    def generate(
        self, prompts: list[list[int]], images: Any = None, num_generations: int = 1, profiler=None
    ) -> tuple[list, list, list, None]:
        """One completion for each prompt in tokens, as `VLLMGeneration.generate` of TRL returns
        it: the prompts, the completions' tokens, and a list with the log-prob of each token.

        Raises:
            BadInput: vLLM does not sample from the policy; looked at after the first hand-over.
        """
        if not self.proved:
            self.proved, some = True, list({tuple(prompt): prompt for prompt in prompts}.values())
            for finding in proof_of_policy(self.trainer.model, partial(self.sample, some[:4])):
                raise BadInput(finding.sentence, finding.key)
            self.sync_weights()
        sampling = training_sampling(self.config, step=self.trainer.state.global_step)
        seed = sampling.seed + TURN * self.turn
        self.turn += 1
        answers = self.engine.generate(prompts, replace(sampling, seed=seed, logprobs=True))
        ids = [list(answer.token_ids) for [answer] in answers]
        return prompts, ids, [[[x] for x in answer.logprobs] for [answer] in answers], None

    def sample(self, prompts: list[list[int]]) -> Sampled:
        """Hand the policy over, and write a few tokens for each prompt."""
        self.sync_weights()
        sampling = Sampling(temperature=1.0, max_tokens=TOKENS, logprobs=True)
        answers = self.engine.generate(prompts, sampling)
        return [
            (prompt, list(answer.token_ids), list(answer.logprobs))
            for prompt, [answer] in zip(prompts, answers, strict=True)
        ]


def training_engine(config: Config, folder: Path) -> VllmEngine:
    """vLLM beside a trainer, with its share of the card; like the trainer it divides by the
    temperature before it reports a log-prob."""
    share = config.vllm_gpu_memory_utilization
    return VllmEngine(config, folder, share=share, logprobs_mode="processed_logprobs")


def generates_here(config: Config) -> bool:
    """Whether rollouts are to come from a `RolloutEngine`, and not from the trainer.

    On a GPU Unsloth's trainer generates by the engine whose weights it trains; weights in 4 bit
    are TRL's to hand over, and so is all that a vLLM server or several processes need.
    """
    ours = config.profile == "cpu" or not (by_unsloth(config) or config.load_in_4bit)
    alone = config.num_processes == 1 and config.vllm_mode == "colocate"
    return config.rollout_engine == "vllm" and ours and alone


def totals(rewards_BR: torch.Tensor, weights_R: torch.Tensor) -> torch.Tensor:
    """The weighted reward of each completion; NaN where no reward could judge it."""
    totals_B = (rewards_BR * weights_R.to(rewards_BR)).nansum(1)
    return totals_B.masked_fill(rewards_BR.isnan().all(1), torch.nan)


def all_alike(rewards_BR: torch.Tensor, weights_R: torch.Tensor, group: int) -> list[bool]:
    """For each group whether its completions earned the same (a group without signal)."""
    totals_NG = totals(rewards_BR, weights_R).view(-1, group)
    lowest_N = totals_NG.nan_to_num(torch.inf).amin(1)
    highest_N = totals_NG.nan_to_num(-torch.inf).amax(1)
    return (~(highest_N - lowest_N > ALIKE)).tolist()


def advantages(rewards_BR: torch.Tensor, weights_R: torch.Tensor, args: Any) -> torch.Tensor:
    """advantages_B as TRL computes them, which it does not hand to callbacks.

    Args:
        args: num_generations, scale_rewards and multi_objective_aggregation of GRPOConfig.
    """
    from trl.trainer.utils import nanstd

    rewards_BR, group = rewards_BR.float(), args.num_generations
    if args.multi_objective_aggregation == "normalize_then_sum":
        each_NGR = rewards_BR.view(-1, group, rewards_BR.shape[1])
        each_NGR = each_NGR - each_NGR.nanmean(1, keepdim=True)
        rewards_BR = (each_NGR / (nanstd(each_NGR, dim=1, keepdim=True) + 1e-4)).flatten(0, 1)
        totals_B = totals(rewards_BR, weights_R)
        return ((totals_B - totals_B.nanmean()) / (nanstd(totals_B) + 1e-4)).nan_to_num(0.0)
    totals_NG = totals(rewards_BR, weights_R).view(-1, group)
    above_NG = totals_NG - totals_NG.nanmean(1, keepdim=True)
    if args.scale_rewards != "none":
        by_group = args.scale_rewards == "group"
        std = nanstd(totals_NG, dim=1, keepdim=True) if by_group else nanstd(totals_NG)
        above_NG = above_NG / (std + 1e-4)
    return above_NG.flatten().nan_to_num(0.0)


def rollout_row(
    step: int,
    row: Mapping[str, Any],
    text: str,
    rewards: Mapping[str, float | None],
    weights: Sequence[float],
    **more: Any,
) -> dict[str, Any]:
    """A completion of training as a line of `rollouts/`.

    Args:
        row: the problem, as `lib.tasks.make_rows` made it.
        rewards: what each paid; None or NaN: nothing to say.
        more: advantage, tokens (the completion's length), truncated.
    """
    known = zip(rewards.values(), weights, strict=True)
    total = sum(float(v * w) for v, w in known if v is not None and v == v)
    problem = {"id": row["id"], "question": row.get("question", ""), "answer": row["answer"]}
    earned = {"rewards": dict(rewards), "total": total}
    return {"step": step, **problem, "completion": text, **earned, **more}


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
