"""Rewards that compare the answer with the gold one, through `lib.answers`.

All need the column `answer` (the gold) and read the column `kind` ("number", "math" or
"choice"; "math" where a data set has none). Where the gold itself cannot be parsed they give
None, which TRL leaves out: nobody can be right or wrong there.

`tags` decides what counts as the answer. A tag's name ("answer") is strict: only what stands
between <answer> and </answer>, and of several such sections the last, so that repeating them
earns nothing more. None is lenient: the best guess in free text, which an answer inside the
reasoning, or the last of many guesses, can satisfy. Units are not compared: "18 eggs" is 18.
"""

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from lib import answers
from lib.answers.numerals import find_numbers, read_number
from lib.errors import BadInput
from lib.rewards.base import completion_texts, need_column, reward
from lib.rewards.format import whole_format

GOLD = "it is the gold answer, a column of the data set"
TOKENS = "it holds each completion's token ids, which TRL passes by itself"

# The rewards of a recipe are called one after the other on the same batch, and each completion
# is graded once for all of them. A batch larger than this only costs the time again.
_grade = lru_cache(maxsize=1024)(answers.grade)
_gold_parses = lru_cache(maxsize=1024)(answers.gold_parses)


@dataclass(frozen=True)
class Attempt:
    """A completion beside the gold answer that it is graded against."""

    text: str
    gold: str
    kind: str
    tags: str | None

    @property
    def grade(self) -> answers.Grade:
        return _grade(self.text, self.gold, self.kind, self.tags)

    @property
    def parses(self) -> bool:
        """Whether the answer found, right or wrong, can be read as one answer of its kind."""
        grade = self.grade
        if grade.correct or grade.extracted is None:
            return grade.correct
        return self.kind != "math" or reads_as_math(grade.extracted)


_TEXT = re.compile(r"\\(?:text\w*|mbox|mathrm)\s*\{[^{}]*\}")
_PROSE_OR_GUESSES = re.compile(r"(?<![^\W\d_])[^\W\d_]{2,}+\s+[^\W\d_]{2}|\d\s+\d")


def reads_as_math(answer: str) -> bool:
    r"""Whether an answer is a formula or a word, not prose and not a row of numbers.

    >>> [reads_as_math(a) for a in (r"\sqrt{2}", r"2\text{ or so}", "no idea", "1 2 3", "...")]
    [True, True, False, False, False]
    """
    if read_number(answer) is not None:
        return True
    answer = re.sub(r"\\[A-Za-z]+", "x", _TEXT.sub("x", answer))
    return bool(re.search(r"[^\W_]", answer)) and not _PROSE_OR_GUESSES.search(answer)


@dataclass(frozen=True)
class AnswerReward:
    """Scores each attempt by itself; None where the gold answer cannot be parsed."""

    tags: str | None = "answer"

    def __call__(self, prompts=None, completions=(), **columns) -> list[float | None]:
        texts = completion_texts(completions)
        golds = need_column(columns, "answer", self, GOLD)
        kinds = columns.get("kind") or ["math"] * len(texts)
        return [
            self.score(Attempt(text, str(gold), kind, self.tags))
            if gold is not None and _gold_parses(str(gold), kind)
            else None
            for text, gold, kind in zip(texts, golds, kinds, strict=True)
        ]

    def score(self, attempt: Attempt) -> float | None:
        raise NotImplementedError


@reward("correctness")
@dataclass(frozen=True)
class Correctness(AnswerReward):
    """2.0 for the right answer, else 0.

    (`correctness_reward` of learning_llm and of the GSM8K demo, which compare strings; here
    "$108" is 108, and \\frac12 is 0.5.)
    """

    right: float = 2.0
    wrong: float = 0.0

    def score(self, attempt: Attempt) -> float:
        return self.right if attempt.grade.correct else self.wrong


@reward("reward_accuracy")
@dataclass(frozen=True)
class RewardAccuracy(Correctness):
    """1.0 for the right answer, else 0: math_verify's verdict where plain comparison is not enough.

    (`reward_accuracy` of the NuminaMath experiments, which pays 1.0 where the gold cannot be
    parsed; here that is None.)
    """

    right: float = 1.0


@reward("last_number")
@dataclass(frozen=True)
class LastNumber(AnswerReward):
    """1.0 if the last number of the completion, wherever it stands, is the gold number, else 0.

    None for golds that are no numbers. It asks for no format, so it gives a signal before the
    format is learnt; but it pays a completion that counts up to the right number, or says "not
    18", as much as one that solves the problem. (PostTraining-LLM-Small's reward.)
    """

    right: float = 1.0

    def score(self, attempt: Attempt) -> float | None:
        if read_number(attempt.gold) is None:
            return None
        number = last_number(attempt.text)
        right = number is not None and answers.answers_match(number, attempt.gold, "number")
        return self.right if right else 0.0


def last_number(text: str) -> str | None:
    """The last number that stands free in the text, as it is written there, or None.

    >>> last_number("He pays $1,234.50 in all, not less.")
    '$1,234.50'
    """
    from_the_end = re.search(r"\d", text[::-1])
    if from_the_end is None:
        return None
    end = len(text) - from_the_end.start()
    # Nearly always it ends at the last digit, which spares reading a long text to its end.
    numbers = find_numbers(text[max(0, end - 60) : end + 20]) or find_numbers(text)
    return numbers[-1] if numbers else None


@reward("partial_credit")
@dataclass(frozen=True)
class PartialCredit(AnswerReward):
    """1.0 for the right answer, 0.5 within 10 % of it, 0.25 within 20 %, 0.1 if it parses, else 0.

    Nearness, |answer − gold| / |gold|, is for numbers only; other answers are right or wrong.
    What is no single answer ("1 2 3 4 …") does not parse. Rewarding nearness helps where a
    group would otherwise never be right; drop it once it is, since near is still wrong.
    """

    right: float = 1.0
    near: float = 0.5
    far: float = 0.25
    wrong: float = 0.1
    near_error: float = 0.1
    far_error: float = 0.2

    def score(self, attempt: Attempt) -> float:
        if attempt.grade.correct:
            return self.right
        if not attempt.parses:
            return 0.0
        error = relative_error(attempt.grade.extracted, attempt.gold)
        if error <= self.near_error:
            return self.near
        return self.far if error <= self.far_error else self.wrong


def relative_error(number: str, gold: str) -> float:
    """|number − gold| / |gold|; infinite where one is no number, or where gold is 0."""
    value, target = read_number(number), read_number(gold)
    if value is None or not target:
        return math.inf
    return float(min(abs(value - target) / abs(target), 1e9))  # a float holds no more than 1e308


@reward("gated_format")
@dataclass(frozen=True)
class GatedFormat(AnswerReward):
    """0.5 for reasoning and answer sections and nothing else, if the answer there also parses.

    A format reward that is simply added makes groups differ that solve nothing, and GRPO then
    trains form against substance. Behind the gate, tags around nothing, around guesses or around
    prose earn nothing (but a list with commas is an answer where `kind` is "math"). `gate`
    "correct" pays the form to right answers only.
    """

    value: float = 0.5
    gate: str = "parses"
    think_tag: str = "think"

    def __post_init__(self):
        if self.gate not in ("parses", "correct"):
            raise BadInput(f'gate is "parses" or "correct", not {self.gate!r}.')

    def score(self, attempt: Attempt) -> float:
        open_gate = attempt.grade.correct if self.gate == "correct" else attempt.parses
        formed = open_gate and whole_format(attempt.text, self.think_tag, self.tags or "answer")
        return self.value if formed else 0.0


@reward("cosine_length")
@dataclass(frozen=True)
class CosineLength(AnswerReward):
    """The answer's reward scaled by length: right pays most when short, wrong least when short.

    With n tokens of at most L the reward moves from its short to its long end as
    long + (short − long) (1 + cos(π min(n/L, 1))) / 2: from 1.0 to 0.5 where the answer is
    right, from -1.0 to -0.5 where it is wrong. (Yeo et al. 2025, arXiv 2502.03373, appendix C.1;
    TRL's `get_cosine_scaled_reward` with its defaults, but with the answer graded as
    `correctness` grades it.) Needs `completion_ids`. Among wrong completions the endless one
    loses least, so put `soft_overlong` beside it.
    """

    max_completion_length: int = 512
    right_short: float = 1.0
    right_long: float = 0.5
    wrong_short: float = -1.0
    wrong_long: float = -0.5

    def __call__(self, prompts=None, completions=(), **columns) -> list[float | None]:
        ids = need_column(columns, "completion_ids", self, TOKENS)
        verdicts = super().__call__(prompts, completions, **columns)
        return [
            None if right is None else self._scaled(bool(right), len(tokens))
            for right, tokens in zip(verdicts, ids, strict=True)
        ]

    def score(self, attempt: Attempt) -> float:
        return float(attempt.grade.correct)

    def _scaled(self, right: bool, n_tokens: int) -> float:
        short, long = self.wrong_short, self.wrong_long
        if right:
            short, long = self.right_short, self.right_long
        progress = min(n_tokens / self.max_completion_length, 1.0)
        return long + 0.5 * (short - long) * (1.0 + math.cos(math.pi * progress))
