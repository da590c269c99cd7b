"""Rollouts of the policy as it is now, by vLLM in the training process."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lib.config import Config
from lib.engines import START_ERRORS, VllmEngine, no_vllm
from lib.memory import by_unsloth
from lib.models import Policy, live_weights
from lib.sampling import training_sampling

TURN = 1_000_003  # between the seeds of a step's turns: more than there are steps


class RolloutEngine:
    """vLLM in this process, which gets the policy's weights before each batch.

    TRL's own hand-over to vLLM fails on a CPU, and transformers generates several times
    slower. A step's samples depend on the seed and the step alone, also after a resume.
    """

    def __init__(self, config: Config, policy: Policy):
        self.config, self.hand_over_seconds = config, 0.0
        # The trainer divides by the temperature, too.
        self.engine = VllmEngine(
            config,
            policy.folder,
            share=config.gpu_memory_utilization,
            logprobs_mode="processed_logprobs",
        )

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

    def generate(
        self, model: Any, prompts: list[list[int]], step: int, turn: int = 0
    ) -> tuple[list[list[int]], list[list[float]]]:
        """One completion for each prompt: its token ids and their log-probs.

        Args:
            turn: 0 when a step first asks; again within the step the weights are there already.
        """
        if turn == 0:
            started = time.perf_counter()
            self.engine.hand_over(live_weights(model))
            self.hand_over_seconds = time.perf_counter() - started
        sampling = training_sampling(self.config, step=step)
        sampling = replace(sampling, seed=sampling.seed + TURN * turn, logprobs=True)
        answers = [answer for [answer] in self.engine.complete(prompts, sampling)]
        return [list(a.token_ids) for a in answers], [list(a.logprobs) for a in answers]


def generates_here(config: Config) -> bool:
    """Whether rollouts are to come from a `RolloutEngine`, and not from the trainer.

    On a GPU Unsloth's trainer generates by the engine whose weights it trains; and weights in 4 bit
    are TRL's to hand over.
    """
    ours = config.profile == "cpu" or not (by_unsloth(config) or config.load_in_4bit)
    return config.rollout_engine == "vllm" and ours


def rollout_row(
    step: int,
    row: Mapping[str, Any],
    text: str,
    rewards: Mapping[str, float | None],
    weights: Sequence[float],
    advantage: float,
    tokens: int,
    truncated: bool,
) -> dict[str, Any]:
    """A completion of training as a line of `rollouts/`.

    Args:
        row: the problem, as `lib.tasks.make_rows` made it.
        rewards, weights: what each reward paid (None or NaN: nothing to say), and what it counts.
        tokens: the completion's length.
    """
    known = zip(rewards.values(), weights, strict=True)
    return {
        "step": step,
        "id": row["id"],
        "question": row.get("question", ""),
        "answer": row["answer"],
        "completion": text,
        "rewards": dict(rewards),
        "total": sum(float(v * w) for v, w in known if v is not None and v == v),
        "advantage": advantage,
        "tokens": tokens,
        "truncated": truncated,
    }
