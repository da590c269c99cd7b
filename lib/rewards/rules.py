"""The rewards that a recipe can name: functions of one completion, and what applies them to many.

    from functools import partial
    from lib.rewards.rules import mark, per_text

    reward = partial(per_text, mark, {"step": 0.25})
    reward(completions=["<answer>18</answer>"])      # TRL's signature, a float a completion
    [0.5]

**Answers** (`per_answer`) are compared with the gold one by `lib.answers`. `tags` decides what
counts as the answer. A tag's name ("answer") is strict: only what stands between <answer> and
</answer>, and of several such sections the last, so that repeating them earns nothing more. None
is lenient: the best guess in free text. Units are not compared: "18 eggs" is 18.

**Form** (`per_text`) never looks at the gold answer: a group that solves nothing then learns the
form alone. Keep such weights well below the answer's, or use `gated_format`. Fixed against the
projects that these come from: reasoning may run over many lines, a tag that stands twice does not
count, and a section without a letter or digit in it is no section.

**Length** (`per_tokens`) is counted in the tokens of `completion_ids`, which TRL passes by itself.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lib import answers
from lib.answers.extraction import inside_tags
from lib.answers.numerals import find_numbers, read_number, same_number
from lib.errors import BadInput
from lib.tasks import OPEN, gold_text, message_text

# The rewards of a recipe are called one after the other on the same batch, and each completion
# is graded once for all of them. A batch larger than this only costs the time again.
_grade = lru_cache(maxsize=1024)(answers.grade)
_gold_parses = lru_cache(maxsize=1024)(answers.gold_parses)


# --- from one completion to many ---------------------------------------------------------------
# `/` keeps what is ours apart from the data set's columns, which may have any name.


def per_text(score, parameters, /, prompts=None, completions=(), **columns) -> list[float]:
    """`score(text, **parameters)` for each completion."""
    return [score(message_text(completion), **parameters) for completion in completions]


def per_tokens(score, parameters, /, prompts=None, completions=(), **columns) -> list[float]:
    """`score(token ids, **parameters)` for each completion."""
    return [score(ids, **parameters) for ids in need_column(columns, "completion_ids", score)]


def per_answer(score, parameters, /, prompts=None, completions=(), **columns) -> list[float | None]:
    """`score(attempt, **parameters)` for each; None where the gold answer cannot be read."""
    given = dict(parameters)
    tags, texts = given.pop("tags", "answer"), list(map(message_text, completions))
    golds = [_readable(gold) for gold in need_column(columns, "answer", score)]
    kinds = columns.get("kind") or ["math"] * len(texts)
    ids = columns.get("completion_ids") or [None] * len(texts)
    if OPEN in kinds:
        raise BadInput(
            'No answer of kind "open" is right: choose rewards that need no gold.', "open"
        )
    attempts = map(Attempt, texts, golds, kinds, [tags] * len(texts), ids)
    return [
        score(attempt, **given) if _gold_parses(attempt.gold, attempt.kind) else None
        for attempt in attempts
    ]


def need_column(columns: Mapping, name: str, score: Callable) -> Sequence:
    """A column that a reward cannot do without; raises BadInput where it is missing."""
    if columns.get(name) is None:
        hint = "answer is the gold answer, completion_ids are tokens, which TRL passes by itself"
        raise BadInput(
            f'The reward "{score.__name__}" needs the column "{name}": {hint}.', "column"
        )
    return columns[name]


def _readable(gold: Any) -> str | None:
    try:
        return gold_text(gold, "a row")
    except BadInput:
        return None


@dataclass(frozen=True)
class Attempt:
    """A completion beside the gold answer that it is graded against."""

    text: str
    gold: str
    kind: str
    tags: str | None
    ids: Sequence[int] | None = None

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


# --- answers -----------------------------------------------------------------------------------


def correctness(attempt: Attempt, *, right: float = 2.0, wrong: float = 0.0) -> float:
    """2.0 for the right answer, else 0.

    (`correctness_reward` of learning_llm and of the GSM8K demo, which compare strings; here
    "$108" is 108, and \\frac12 is 0.5.)
    """
    return right if attempt.grade.correct else wrong


def reward_accuracy(attempt: Attempt, *, right: float = 1.0, wrong: float = 0.0) -> float:
    """1.0 for the right answer, else 0.

    (`reward_accuracy` of the NuminaMath experiments, which pays 1.0 where the gold cannot be
    parsed; here that is None.)
    """
    return right if attempt.grade.correct else wrong


def last_number(attempt: Attempt, *, right: float = 1.0) -> float | None:
    """1.0 if the last number of the completion, wherever it stands, is the gold number, else 0.

    None for golds that are no numbers. It asks for no format, so it gives a signal before the
    format is learnt; but it pays a completion that counts up to the right number, or says "not
    18", as much as one that solves the problem. (PostTraining-LLM-Small's reward.)
    """
    if read_number(attempt.gold) is None:
        return None
    numbers = find_numbers(attempt.text)
    return right if numbers and same_number(numbers[-1], attempt.gold) else 0.0


def partial_credit(
    attempt: Attempt, *, right=1.0, near=0.5, far=0.25, wrong=0.1, near_error=0.1, far_error=0.2
) -> float:
    """1.0 for the right answer, 0.5 within 10 % of it, 0.25 within 20 %, 0.1 if it parses, else 0.

    Nearness, |answer − gold| / |gold|, is for numbers only; other answers are right or wrong.
    What is no single answer ("1 2 3 4 …") does not parse. Rewarding nearness helps where a
    group would otherwise never be right; drop it once it is, since near is still wrong.
    """
    if attempt.grade.correct:
        return right
    if not attempt.parses:
        return 0.0
    value, target = read_number(attempt.grade.extracted), read_number(attempt.gold)
    if value is None or not target:
        return wrong
    error = abs(value - target) / abs(target)
    return near if error <= near_error else far if error <= far_error else wrong


def gated_format(
    attempt: Attempt, *, value: float = 0.5, gate: str = "parses", think_tag: str = "think"
) -> float:
    """0.5 for reasoning and answer sections and nothing else, if the answer there also parses.

    A format reward that is simply added makes groups differ that solve nothing, and GRPO then
    trains form against substance. Behind the gate, tags around nothing, around guesses or around
    prose earn nothing (but a list with commas is an answer where `kind` is "math"). `gate`
    "correct" pays the form to right answers only.
    """
    if gate not in ("parses", "correct"):
        raise BadInput(f'gate is "parses" or "correct", not {gate!r}.')
    is_open = attempt.grade.correct if gate == "correct" else attempt.parses
    formed = is_open and sections(attempt.text, think_tag, attempt.tags or "answer", alone=True)
    return value if formed else 0.0


def cosine_length(
    attempt: Attempt, *, max_completion_length=512, right_short=1.0, right_long=0.5,
    wrong_short=-1.0, wrong_long=-0.5
) -> float:  # fmt: skip
    """The answer's reward scaled by length: right pays most when short, wrong least when short.

    With n tokens of at most L the reward moves from its short to its long end as
    long + (short − long) (1 + cos(π min(n/L, 1))) / 2: from 1.0 to 0.5 where the answer is
    right, from -1.0 to -0.5 where it is wrong. (Yeo et al. 2025, arXiv 2502.03373, appendix C.1;
    TRL's `get_cosine_scaled_reward` with its defaults, but with the answer graded as
    `correctness` grades it.) Among wrong completions the endless one loses least, so put
    `soft_overlong` beside it.
    """
    ids = need_column({"completion_ids": attempt.ids}, "completion_ids", cosine_length)
    short, long = (right_short, right_long) if attempt.grade.correct else (wrong_short, wrong_long)
    progress = min(len(ids) / max_completion_length, 1.0)
    return long + 0.5 * (short - long) * (1.0 + math.cos(math.pi * progress))


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


# --- form --------------------------------------------------------------------------------------


def sections(text: str, think: str, answer: str, alone: bool = False) -> list[str] | None:
    """The five pieces around the four tags, or None unless all is there once and in order.

    >>> sections("<think>2+2</think> <answer>4</answer>.", "think", "answer")
    ['', '2+2', ' ', '4', '.']

    A section without a letter or digit in it counts as missing ("<answer>...</answer>" is what
    a model writes that copies its instructions). With `alone` nothing else may stand there.
    """
    pieces = []
    for mark in (f"<{think}>", f"</{think}>", f"<{answer}>", f"</{answer}>"):
        piece, tag, rest = text.partition(mark)
        if not tag or mark in piece + rest:
            return None
        pieces.append(piece)
        text = rest
    pieces.append(text)
    if not (has_content(pieces[1]) and has_content(pieces[3])):
        return None
    return None if alone and "".join(pieces[::2]).strip() else pieces


def has_content(text: str) -> bool:
    """Whether there is a letter or digit in the text."""
    return re.search(r"[^\W_]", text) is not None


def section(text: str, tag: str) -> str | None:
    """What stands between the one <tag> and the one </tag>; None if missing or without content."""
    if text.count(f"<{tag}>") != 1 or text.count(f"</{tag}>") != 1:
        return None
    inside = text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return inside if has_content(inside) else None


def tags_found(text: str, think_tag: str, answer_tag: str, own_lines: bool) -> list[bool]:
    """For each of the four tags in turn, whether it stands there exactly once.

    A closing tag needs content before it, back to its opening tag. With `own_lines` each tag
    must be set off by line breaks, as in "<think>\\n", "\\n</think>\\n", "\\n<answer>\\n" and
    "\\n</answer>" (the first tag begins the completion and the last one may end it).
    """
    right = []
    for tag, before, after in ((think_tag, "", "\n"), (answer_tag, "\n", "")):
        opening, closing = f"<{tag}>", f"</{tag}>"
        inside = text.partition(closing)[0].rpartition(opening)[2]
        if own_lines:
            opening, closing = f"{before}{opening}\n", f"\n{closing}{after}"
        right += [text.count(opening) == 1, text.count(closing) == 1 and has_content(inside)]
    return right


def hard_format(
    text: str, *, full=0.5, partial=0.25, think_tag="think", answer_tag="answer"
) -> float:
    """0.5 for a reasoning and an answer section, 0.25 for the answer section alone, else 0.

    Text around the sections does no harm. (learning_llm's `hard_format_reward`.)
    """
    if sections(text, think_tag, answer_tag):
        return full
    return partial if section(text.rpartition(f"</{think_tag}>")[2], answer_tag) else 0.0


def mark(text: str, *, step=0.125, think_tag="think", answer_tag="answer") -> float:
    """0.125 for each of the four tags that stands exactly once: 0.5 in all.

    The order of the sections is free. (learning_llm's `mark_reward`.)
    """
    return step * sum(tags_found(text, think_tag, answer_tag, own_lines=False))


def tag_count(text: str, *, step=0.25, think_tag="think", answer_tag="answer") -> float:
    """0.25 for each of the four tags that stands exactly once and on its own line: 1.0 in all.

    (open-r1's `tag_count_reward`.)
    """
    return step * sum(tags_found(text, think_tag, answer_tag, own_lines=True))


def xmlcount(
    text: str, *, step=0.125, penalty=0.001, floor=-0.5, think_tag="reasoning", answer_tag="answer"
) -> float:
    """0.125 for each of the four tags on its own line, less a little for text after the answer.

    Each character after the closing answer tag (but for one line break) costs 0.001, and that
    once for each of the two answer tags that was paid. Two changes against the original
    (`xmlcount_reward_func` of the widely copied GSM8K demo): a completion that ends right at
    "</answer>" is not charged its whole length, and no completion gets less than `floor`, so
    that one endless completion does not drown its group.
    """
    right = tags_found(text, think_tag, answer_tag, own_lines=True)
    _, closed, trailing = text.rpartition(f"</{answer_tag}>")
    length = len(trailing.removeprefix("\n")) if closed else 0
    return max(floor, step * sum(right) - penalty * length * sum(right[2:]))


def soft_format(text: str, *, value=0.5, think_tag="reasoning", answer_tag="answer") -> float:
    """0.5 for a completion that begins with its reasoning section, followed by its answer section.

    White space is free, and so is whatever comes after. (`soft_format_reward_func` of the GSM8K
    demo.)
    """
    pieces = sections(text, think_tag, answer_tag)
    return value if pieces and not (pieces[0] + pieces[2]).strip() else 0.0


def strict_format(text: str, *, value=0.5, think_tag="reasoning", answer_tag="answer") -> float:
    """0.5 for reasoning and answer with every tag on a line of its own, and nothing else.

    The line break after the last tag may be missing, since generation stops there.
    (`strict_format_reward_func` of the GSM8K demo.)
    """
    before, reasoning, between, answer, after = sections(text, think_tag, answer_tag) or ["x"] * 5
    around = before == "" and between == "\n" and after in ("", "\n")
    return value if around and all(p[0] == p[-1] == "\n" for p in (reasoning, answer)) else 0.0


def reward_format(text: str, *, value=1.0, think_tag="think", answer_tag="answer") -> float:
    """1.0 for a completion that is reasoning and answer sections and nothing else.

    White space is free. (`reward_format` of the NuminaMath experiments; DeepSeek-R1's format
    reward, arXiv 2501.12948, section 2.2.2.)
    """
    return value if sections(text, think_tag, answer_tag, alone=True) else 0.0


def think_format(text: str, *, think_tag="think") -> float:
    """1.0 for "<think>…</think>…", where <think> stands once, first; any end will do.

    (TRL's `think_format_reward`; an empty reasoning is paid as well.)
    """
    opened, closed, _ = text.partition(f"</{think_tag}>")
    first = opened.startswith(f"<{think_tag}>") and text.count(f"<{think_tag}>") == 1
    return float(first and bool(closed))


def digit(text: str, *, value=0.5, answer_tag="answer") -> float:
    """0.5 if nothing but digits (and a minus sign) stands in the answer's tags, right or wrong.

    (learning_llm's `digit_reward`, which refuses negative numbers.)
    """
    answer = inside_tags(text, answer_tag) or ""
    return value if re.fullmatch(r"[-−]?[0-9]+", answer.strip()) else 0.0


def whole_number(text: str, *, value=0.5, answer_tag="answer") -> float:
    """0.5 if the answer's tags hold one whole number, right or wrong, however it is written.

    "$1,234", "18.00" and "18 apples" are whole numbers. (`int_reward_func` of the GSM8K demo,
    which takes bare digits only: that is `digit` here.)
    """
    number = answers.normalize_number(inside_tags(text, answer_tag))
    return value if number and re.fullmatch(r"-?[0-9]+", number) else 0.0


# --- length ------------------------------------------------------------------------------------


def reward_len(text: str, *, ideal_length: int = 50) -> float:
    """−|ideal_length − length|, in characters: 0 at 50, −50 for nothing at all.

    (`reward_len` of the SmolTLDR experiments, which takes a conversational completion, a list
    of one message, to be one character long.)
    """
    return -float(abs(ideal_length - len(text)))


def reward_token_length(ids: Sequence[int], *, ideal_token_length=50, short=0.5, long=2.0) -> float:
    """Lopsided: −0.5 for each token below the ideal 50, −2 × (tokens above it)² beyond.

    The square soon outweighs every other reward of a recipe (60 tokens give −200): a weight of
    0.001 or so is in order beside them. (`reward_token_length` of the SmolTLDR experiments, which
    counts words and calls them tokens.)
    """
    excess = len(ids) - ideal_token_length
    return -long * excess**2 if excess > 0 else short * excess


def soft_overlong(
    ids: Sequence[int], *, max_completion_length: int = 512, soft_punish_cache: int | None = None
) -> float:
    """0 up to a margin before the length limit, falling to −1 at the limit.

    TRL's `get_soft_overlong_punishment` (DAPO, arXiv 2503.14476, equation 13). The margin is a
    fifth of `max_completion_length`, as in DAPO, unless `soft_punish_cache` gives it in tokens.
    """
    margin = max_completion_length // 5 if soft_punish_cache is None else soft_punish_cache
    if not 0 <= margin <= max_completion_length:
        raise BadInput(
            f"soft_punish_cache is {margin}: give 0 to {max_completion_length}.", "margin"
        )
    excess = len(ids) - (max_completion_length - margin)
    return -min(excess / margin if margin else 1.0, 1.0) if excess > 0 else 0.0


def repetition_penalty(
    ids: Sequence[int], *, ngram_size: int = 3, max_penalty: float = -1.0
) -> float:
    """−1 × the share of token n-grams (n = 3) that have occurred before.

    TRL's `get_repetition_penalty_reward` (Yeo et al. 2025, arXiv 2502.03373, appendix C.2);
    fewer than n tokens give 0.
    """
    if ngram_size < 1 or max_penalty > 0:
        raise BadInput("repetition_penalty wants ngram_size ≥ 1 and max_penalty ≤ 0.")
    ngrams = list(zip(*(ids[i:] for i in range(ngram_size)), strict=False))
    return max_penalty * (1 - len(set(ngrams)) / len(ngrams)) if ngrams else 0.0


_ANSWERS = (correctness, reward_accuracy, last_number, partial_credit, gated_format, cosine_length)
_TEXTS = (hard_format, mark, tag_count, xmlcount, soft_format, strict_format, reward_format)
_TEXTS += (think_format, digit, reward_len)
_TOKENS = (reward_token_length, soft_overlong, repetition_penalty)

# What a recipe calls it → what applies it, and the function of one completion.
RULES: dict[str, tuple[Callable, Callable]] = {
    **{score.__name__: (per_answer, score) for score in _ANSWERS},
    **{score.__name__: (per_text, score) for score in _TEXTS},
    **{score.__name__: (per_tokens, score) for score in _TOKENS},
    "int": (per_text, whole_number),
}
