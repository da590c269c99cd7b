"""What an engine is asked, and what comes back: chat messages, how to draw, completions."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lib.config import Config

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn; temperature 0 is greedy.

    Attributes:
        n: completions a prompt.
        max_tokens, min_tokens: at most and at least that many tokens each.
        seed: of the whole call; the same call on the same engine repeats itself.
    """

    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 256
    min_tokens: int = 0
    seed: int = 0
    logprobs: bool = False


@dataclass(frozen=True)
class Completion:
    """What came back: finish_reason is "stop" where the model ended its turn, else "length".

    Attributes:
        logprobs: one a token, under the sampled model at temperature 1; None if not asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[float, ...] | None = None


def training_sampling(config: Config, n: int = 1, step: int = 0) -> Sampling:
    """How completions are drawn in training; what a step draws depends on seed and step alone."""
    return Sampling(
        n=n,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
        max_tokens=config.max_completion_length,
        seed=config.seed + step,
    )


def chat_text(tokenizer: Any, messages: Messages) -> str:
    """The prompt as the model reads it, up to where its own turn begins."""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def prompt_hash(prompts: Sequence[Messages]) -> str:
    """A digest of all prompts: two evaluations compare only where it is the same."""
    text = json.dumps(list(prompts), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
