"""Which prompts a step asks, who answers them, and what is kept of an answer.

`training_prompts` are all prompts of a run in their order, so that TRL walks through them once,
unshuffled, and a resumed run finds its place. `RolloutEngine` generates by vLLM in this process,
through TRL's own two methods.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
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
from lib.runs import Run, read_json

TURN = 1_000_003  # between the seeds of a step's turns: more than there are steps
ALIKE = 1e-6  # totals no further apart are the same


def choose_rows(rows: Sequence[dict], run: Run, config: Config) -> tuple[list[dict], str]:
    """The rows to train on, and a sentence on what was done to them, by the preflight's pass rates.

    With `drop_dead`, prompts that were always right or always wrong are left out, but never so
    many that the rest does not fill a step; with `curriculum: easy_first`, those more often
    right come first, and one that was not measured counts as one of mean difficulty.

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
    places: list[int] = []
    needed = -(-config.max_steps // config.num_iterations) * config.prompts_per_step
    epoch, steps = 0, count // config.prompts_per_step
    while len(places) < needed:
        order = np.arange(count)
        if config.curriculum == "none":
            order = np.random.default_rng([config.seed, epoch]).permutation(count)
        places += order[: steps * config.prompts_per_step].tolist()
        epoch += 1
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

    Attributes:
        hand_over_seconds: that the latest hand-over of weights took.
    """

    trainer: Any = None  # set by `generate_with`
    proved = False  # whether it was shown to have the policy
    turn = 0  # 0 where a step first asks, then 1, 2 … as dynamic sampling does

    def __init__(self, config: Config, policy: Policy):
        self.config, self.hand_over_seconds = config, 0.0
        self.engine = training_engine(config, policy.folder)

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
        it: the prompts, the completions' tokens, and a list with the log-prob of each token."""
        if not self.proved:
            self._prove(list({tuple(prompt): prompt for prompt in prompts}.values())[:4])
        sampling = training_sampling(self.config, step=self.trainer.state.global_step)
        seed = sampling.seed + TURN * self.turn
        self.turn += 1
        answers = self.engine.complete(prompts, replace(sampling, seed=seed, logprobs=True))
        ids = [list(answer.token_ids) for [answer] in answers]
        return prompts, ids, [[[x] for x in answer.logprobs] for [answer] in answers], None

    def _prove(self, prompts: list[list[int]]) -> None:
        """Raises BadInput where vLLM does not sample from the policy; once in a run, after its
        first hand-over."""
        self.proved = True
        for finding in proof_of_policy(self.trainer.model, partial(self.sample, prompts)):
            raise BadInput(finding.sentence, finding.key)
        self.sync_weights()

    def sample(self, prompts: list[list[int]]) -> Sampled:
        """Hand the policy over, and write a few tokens for each prompt."""
        self.sync_weights()
        sampling = Sampling(temperature=1.0, max_tokens=TOKENS, logprobs=True)
        answers = self.engine.complete(prompts, sampling)
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
    missing_NG = totals_NG.isnan()
    lowest_N = totals_NG.masked_fill(missing_NG, torch.inf).amin(1)
    highest_N = totals_NG.masked_fill(missing_NG, -torch.inf).amax(1)
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
        rewards, weights: what each reward paid (None or NaN: nothing to say), and what it counts.
        more: advantage, tokens (the completion's length), truncated.
    """
    known = zip(rewards.values(), weights, strict=True)
    total = sum(float(v * w) for v, w in known if v is not None and v == v)
    problem = {"id": row["id"], "question": row.get("question", ""), "answer": row["answer"]}
    earned = {"rewards": dict(rewards), "total": total}
    return {"step": step, **problem, "completion": text, **earned, **more}
