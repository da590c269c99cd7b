"""Rewards for the length of a completion, and against repeating itself.

Lengths in tokens come from the column `completion_ids`, which TRL passes by itself; whoever
calls these elsewhere passes `completion_ids=[tokenizer(text).input_ids for text in texts]`.
"""

from dataclasses import dataclass

from lib.errors import BadInput
from lib.rewards.answers import TOKENS
from lib.rewards.base import need_column, reward
from lib.rewards.format import TextReward


class TokenReward:
    """A reward that sees one completion's token ids at a time and nothing else."""

    def __call__(self, prompts=None, completions=(), **columns) -> list[float]:
        return [self.score(ids) for ids in need_column(columns, "completion_ids", self, TOKENS)]

    def score(self, ids: list[int]) -> float:
        raise NotImplementedError


@reward("reward_len")
@dataclass(frozen=True)
class RewardLen(TextReward):
    """−|ideal_length − length|, in characters: 0 at 50, −50 for nothing at all.

    (`reward_len` of the SmolTLDR experiments, which takes a conversational completion, a list
    of one message, to be one character long.)
    """

    ideal_length: int = 50

    def score(self, text: str) -> float:
        return -float(abs(self.ideal_length - len(text)))


@reward("reward_token_length")
@dataclass(frozen=True)
class RewardTokenLength(TokenReward):
    """Lopsided: −0.5 for each token below the ideal 50, −2 × (tokens above it)² beyond.

    Needs `completion_ids`. The square soon outweighs every other reward of a recipe (60 tokens
    give −200): a weight of 0.001 or so is in order beside them. (`reward_token_length` of the
    SmolTLDR experiments, which counts words and calls them tokens.)
    """

    ideal_token_length: int = 50
    short: float = 0.5
    long: float = 2.0

    def score(self, ids: list[int]) -> float:
        excess = len(ids) - self.ideal_token_length
        return -self.long * excess**2 if excess > 0 else self.short * excess


@reward("soft_overlong")
@dataclass(frozen=True)
class SoftOverlong(TokenReward):
    """0 up to a margin before the length limit, falling to −1 at the limit.

    TRL's `get_soft_overlong_punishment` (DAPO, arXiv 2503.14476, equation 13). Needs
    `completion_ids`. The margin is a fifth of `max_completion_length`, as in DAPO, unless
    `soft_punish_cache` gives it in tokens.
    """

    max_completion_length: int = 512
    soft_punish_cache: int | None = None

    def __post_init__(self):
        if not 0 <= self._margin <= self.max_completion_length:
            raise BadInput(
                f"soft_punish_cache is {self._margin}: it must lie between 0 and "
                f"max_completion_length ({self.max_completion_length})."
            )

    @property
    def _margin(self) -> int:
        margin = self.soft_punish_cache
        return self.max_completion_length // 5 if margin is None else margin

    def score(self, ids: list[int]) -> float:
        from trl.rewards import get_soft_overlong_punishment

        return get_soft_overlong_punishment(self.max_completion_length, self._margin)([ids])[0]


@reward("repetition_penalty")
@dataclass(frozen=True)
class RepetitionPenalty(TokenReward):
    """−1 × the share of token n-grams (n = 3) that have occurred before.

    TRL's `get_repetition_penalty_reward` (Yeo et al. 2025, arXiv 2502.03373, appendix C.2).
    Needs `completion_ids`; fewer than n tokens give 0.
    """

    ngram_size: int = 3
    max_penalty: float = -1.0

    def __post_init__(self):
        if self.ngram_size < 1 or self.max_penalty > 0:
            raise BadInput("repetition_penalty wants ngram_size ≥ 1 and max_penalty ≤ 0.")

    def score(self, ids: list[int]) -> float:
        from trl.rewards import get_repetition_penalty_reward

        return get_repetition_penalty_reward(self.ngram_size, self.max_penalty)([ids])[0]
