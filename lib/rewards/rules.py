"""The rewards that a recipe can name: functions of one completion, and what applies them to many.

    >>> functools.partial(per_text, mark, {"step": 0.25})(completions=["<answer>18</answer>"])
    [0.5]

**Answers** (`per_answer`) are compared with the gold one by `lib.answers`: with `tags` "answer"
only what the last <answer> section holds, with None the best guess in free text.

**Form** and **reasoning** (`per_text`) never look at the gold answer: a group that solves nothing
then learns the form alone. Keep such weights well below the answer's, or use `gated_format`. Fixed
against the projects that these come from: reasoning may run over many lines, a tag that stands
twice does not count, and a section without a letter or digit in it is no section.

**Length** (`per_tokens`) is counted in the tokens of `completion_ids`, which TRL passes by itself.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from typing import Any

from lib import answers
from lib.answers import inside_tags
from lib.answers.formulas import read_answer
from lib.answers.math import same_math
from lib.answers.numerals import find_numbers, plain_characters, read_number
from lib.answers.readers import LATEX_TEXT
from lib.errors import BadInput, nearest
from lib.tasks import OPEN, gold_text, message_text

# A recipe's rewards look at the same batch one after the other: each answer is graded once.
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
    return [score(a, **given) if _gold_parses(a.gold, a.kind) else None for a in attempts]


def need_column(columns: Mapping, name: str, score: Callable) -> Sequence:
    if columns.get(name) is None:
        hint = "answer is the gold answer, completion_ids are tokens, which TRL passes by itself"
        said = f'The reward "{score.__name__}" needs the column "{name}"'
        raise BadInput(f"{said}: {hint}.", "column")
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
        found = self.grade.extracted
        if self.grade.correct or found is None:
            return self.grade.correct
        return self.kind != "math" or reads_as_math(found)


# --- answers -----------------------------------------------------------------------------------


def correctness(attempt: Attempt, *, right: float = 2.0, wrong: float = 0.0) -> float:
    """2.0 for the right answer, else 0. Answers are compared by value: "$108" is 108."""
    return right if attempt.grade.correct else wrong


def reward_accuracy(attempt: Attempt, *, right: float = 1.0, wrong: float = 0.0) -> float:
    """1.0 for the right answer, else 0. (The NuminaMath experiments; a gold that cannot be parsed
    pays 1.0 there, and is None here.)"""
    return right if attempt.grade.correct else wrong


def last_number(attempt: Attempt, *, right: float = 1.0) -> float | None:
    """1.0 if the last number of the completion is the gold number; None if the gold is no number.

    It gives a signal before the format is learnt, but pays whoever counts up to the right number,
    or says "not 18". (PostTraining-LLM-Small.)
    """
    if read_number(attempt.gold) is None:
        return None
    numbers = find_numbers(attempt.text)
    return right if numbers and same_math(numbers[-1], attempt.gold) else 0.0


def partial_credit(
    attempt: Attempt, *, right=1.0, near=0.5, far=0.25, wrong=0.1, near_error=0.1, far_error=0.2
) -> float:
    """1.0 for the right answer, 0.5 within 10% of it, 0.25 within 20%, 0.1 if it parses, else 0.

    Nearness, |answer − gold| / |gold|, is for numbers only. It helps where a group would otherwise
    never be right; drop it once it is, since near is still wrong.
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


def gated_format(attempt: Attempt, *, value=0.5, gate="parses", think_tag="think") -> float:
    """0.5 for reasoning and answer sections and nothing else, if the answer there also parses.

    Behind the gate, tags around nothing, guesses or prose earn nothing, so that groups that solve
    nothing do not learn the form alone. `gate` "correct" pays the form to right answers only.
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
    """long + (short − long) (1 + cos(π min(n/L, 1))) / 2 for n of at most L tokens.

    From 1.0 to 0.5 where the answer is right, from -1.0 to -0.5 where it is wrong. (Yeo et al.
    2025, arXiv 2502.03373, appendix C.1; TRL's `get_cosine_scaled_reward`.) The endless wrong
    completion loses least, so put `soft_overlong` beside it.
    """
    ids = need_column({"completion_ids": attempt.ids}, "completion_ids", cosine_length)
    short, long = (right_short, right_long) if attempt.grade.correct else (wrong_short, wrong_long)
    progress = min(len(ids) / max_completion_length, 1.0)
    return long + 0.5 * (short - long) * (1.0 + math.cos(math.pi * progress))


_PROSE_OR_GUESSES = re.compile(r"(?<![^\W\d_])[^\W\d_]{2,}+\s+[^\W\d_]{2}|\d\s+\d")


def reads_as_math(answer: str) -> bool:
    r"""Whether an answer is a formula or a word, not prose and not a row of numbers.

    >>> [reads_as_math(a) for a in (r"\sqrt{2}", r"2\text{ or so}", "no idea", "1 2 3", "...")]
    [True, True, False, False, False]
    """
    if read_number(answer) is not None:
        return True
    answer = re.sub(r"\\[A-Za-z]+", "x", LATEX_TEXT.sub("x", answer))
    return has_content(answer) and not _PROSE_OR_GUESSES.search(answer)


# --- form --------------------------------------------------------------------------------------


def sections(text: str, think: str, answer: str, alone: bool = False) -> list[str] | None:
    """The five pieces around the four tags; None unless each stands there once and in order, with
    content between them, and with `alone` nothing around them.

    >>> sections("<think>2+2</think> <answer>4</answer>.", "think", "answer")
    ['', '2+2', ' ', '4', '.']
    """
    pieces = []
    for tag in (f"<{think}>", f"</{think}>", f"<{answer}>", f"</{answer}>"):
        piece, found, rest = text.partition(tag)
        if not found or tag in piece + rest:
            return None
        pieces.append(piece)
        text = rest
    pieces.append(text)
    has_both = has_content(pieces[1]) and has_content(pieces[3])
    return pieces if has_both and not (alone and "".join(pieces[::2]).strip()) else None


def has_content(text: str) -> bool:
    return re.search(r"[^\W_]", text) is not None


def section(text: str, tag: str) -> str | None:
    """What stands between the one <tag> and the one </tag>; None if missing or without content."""
    if text.count(f"<{tag}>") != 1 or text.count(f"</{tag}>") != 1:
        return None
    inside = text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return inside if has_content(inside) else None


def tags_found(text: str, think_tag: str, answer_tag: str, own_lines: bool) -> list[bool]:
    """Whether each of the four tags stands there exactly once, a closing one with content before.

    With `own_lines` each is set off by line breaks; the first begins the completion, and the last
    may end it.
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
    (learning_llm's `hard_format_reward`.)"""
    if sections(text, think_tag, answer_tag):
        return full
    return partial if section(text.rpartition(f"</{think_tag}>")[2], answer_tag) else 0.0


def mark(text: str, *, step=0.125, think_tag="think", answer_tag="answer") -> float:
    """0.125 for each of the four tags that stands exactly once. (learning_llm's `mark_reward`.)"""
    return step * sum(tags_found(text, think_tag, answer_tag, own_lines=False))


def tag_count(text: str, *, step=0.25, think_tag="think", answer_tag="answer") -> float:
    """0.25 for each of the four tags that stands exactly once and on its own line. (open-r1.)"""
    return step * sum(tags_found(text, think_tag, answer_tag, own_lines=True))


def xmlcount(
    text: str, *, step=0.125, penalty=0.001, floor=-0.5, think_tag="reasoning", answer_tag="answer"
) -> float:
    """0.125 for each of the four tags on its own line, less 0.001 a character after the answer.

    That is charged once for each of the two answer tags that was paid. (The GSM8K demo's
    `xmlcount_reward_func`, which charges a completion that ends at "</answer>" its whole length,
    and has no `floor`, so that one endless completion drowns its group.)
    """
    right = tags_found(text, think_tag, answer_tag, own_lines=True)
    _, closed, trailing = text.rpartition(f"</{answer_tag}>")
    length = len(trailing.removeprefix("\n")) if closed else 0
    return max(floor, step * sum(right) - penalty * length * sum(right[2:]))


def soft_format(text: str, *, value=0.5, think_tag="reasoning", answer_tag="answer") -> float:
    """0.5 for a completion that begins with its reasoning section, followed by its answer section,
    and whatever comes after. (The GSM8K demo's `soft_format_reward_func`.)"""
    pieces = sections(text, think_tag, answer_tag)
    return value if pieces and not (pieces[0] + pieces[2]).strip() else 0.0


def strict_format(text: str, *, value=0.5, think_tag="reasoning", answer_tag="answer") -> float:
    """0.5 for reasoning and answer with every tag on a line of its own, and nothing else; the last
    line break may be missing. (The GSM8K demo's `strict_format_reward_func`.)"""
    before, reasoning, between, answer, after = sections(text, think_tag, answer_tag) or ["x"] * 5
    around = before == "" and between == "\n" and after in ("", "\n")
    return value if around and all(p[0] == p[-1] == "\n" for p in (reasoning, answer)) else 0.0


def reward_format(text: str, *, value=1.0, think_tag="think", answer_tag="answer") -> float:
    """1.0 for a completion that is reasoning and answer sections and nothing else. (The NuminaMath
    experiments; DeepSeek-R1, arXiv 2501.12948, section 2.2.2.)"""
    return value if sections(text, think_tag, answer_tag, alone=True) else 0.0


def think_format(text: str, *, think_tag="think") -> float:
    """1.0 for "<think>…</think>…", where <think> stands once, first. (TRL's `think_format_reward`;
    an empty reasoning is paid as well.)"""
    opened, closed, _ = text.partition(f"</{think_tag}>")
    first = opened.startswith(f"<{think_tag}>") and text.count(f"<{think_tag}>") == 1
    return float(first and bool(closed))


def digit(text: str, *, value=0.5, answer_tag="answer") -> float:
    """0.5 if only digits (and a minus sign) stand in the answer's tags. (learning_llm.)"""
    answer = inside_tags(text, answer_tag) or ""
    return value if re.fullmatch(r"[-−]?[0-9]+", answer.strip()) else 0.0


def whole_number(text: str, *, value=0.5, answer_tag="answer") -> float:
    """0.5 if the answer's tags hold one whole number, also as "$1,234", "18.00" or "18 apples".
    (`int_reward_func` of the GSM8K demo, which takes bare digits only, as `digit` does.)"""
    number = answers.normalize_number(inside_tags(text, answer_tag))
    return value if number and re.fullmatch(r"-?[0-9]+", number) else 0.0


# --- length ------------------------------------------------------------------------------------


def reward_len(text: str, *, ideal_length: int = 50) -> float:
    """−|ideal_length − length|, in characters. (The SmolTLDR experiments.)"""
    return -float(abs(ideal_length - len(text)))


def reward_token_length(ids: Sequence[int], *, ideal_token_length=50, short=0.5, long=2.0) -> float:
    """−0.5 for each token below the ideal 50, −2 × (tokens above it)² beyond.

    The square soon outweighs every other reward: give it a weight of 0.001 or so. (The SmolTLDR
    experiments, which count words and call them tokens.)
    """
    excess = len(ids) - ideal_token_length
    return -long * excess**2 if excess > 0 else short * excess


def soft_overlong(
    ids: Sequence[int], *, max_completion_length: int = 512, soft_punish_cache: int | None = None
) -> float:
    """0 up to a margin before the length limit, falling to −1 at the limit.

    The margin is `soft_punish_cache` tokens, or a fifth of the limit. (DAPO, arXiv 2503.14476,
    equation 13; TRL's `get_soft_overlong_punishment`.)
    """
    margin = max_completion_length // 5 if soft_punish_cache is None else soft_punish_cache
    if not 0 <= margin <= max_completion_length:
        said = f"soft_punish_cache is {margin}"
        raise BadInput(f"{said}: give 0 to {max_completion_length}.", "margin")
    excess = len(ids) - (max_completion_length - margin)
    return -min(excess / margin if margin else 1.0, 1.0) if excess > 0 else 0.0


def repetition_penalty(
    ids: Sequence[int], *, ngram_size: int = 3, max_penalty: float = -1.0
) -> float:
    """−1 × the share of token n-grams (n = 3) that have occurred before. (Yeo et al. 2025, arXiv
    2502.03373, appendix C.2; TRL's `get_repetition_penalty_reward`.)"""
    if ngram_size < 1 or max_penalty > 0:
        raise BadInput("repetition_penalty wants ngram_size ≥ 1 and max_penalty ≤ 0.")
    ngrams = list(zip(*(ids[i:] for i in range(ngram_size)), strict=False))
    return max_penalty * (1 - len(set(ngrams)) / len(ngrams)) if ngrams else 0.0


# --- reasoning: what stands in the think tags, or without them before the answer's tag -----------


def reasoning_of(text: str, think_tag: str, answer_tag: str) -> str:
    return section(text, think_tag) or text.partition(f"<{answer_tag}>")[0]


# A step begins a line or a sentence ("Step 2:", "3.", "-", "Next, …") and runs to its end.
# Possessive repeats (*+) never give back, which keeps the search linear on any text.
_STEP = re.compile(
    r"(?:^|(?<=[.!?] ))[ \t]*+(?:\*\*)?"
    r"(?:step \d++|\d++[.)](?=\s)|[-*•](?=\s)|(?:first|second|third|next|then|finally)\b)"
    r"[ \t:,.)*]*+([^\n.!?]*+)",
    re.IGNORECASE | re.MULTILINE,
)


def reasoning_steps(
    text: str, *, value=1.0, enough=3, think_tag="think", answer_tag="answer"
) -> float:
    """1.0 for three marked steps or more, a third for each below that.

    Marks are "Step 1", "1.", "-", and First, Second, Third, Next, Then, Finally at the start of
    a line or sentence. (open-r1's `reasoning_steps_reward`; here the same step twice, or a mark
    with nothing after it, does not count.)
    """
    steps = set()
    for match in _STEP.finditer(reasoning_of(text, think_tag, answer_tag)):
        if any(map(str.isalnum, match[1])):
            steps.add(match[1].strip().lower())
        if len(steps) >= enough:
            break
    return value * len(steps) / enough


_NUMBER = r"\d{1,15}+(?:,\d{3})*+(?:\.\d{1,10}+)?+"
_EQUATION = re.compile(  # whole: an operator just outside would make it a piece of a longer one
    rf"(?<![\w.,)+*/^%-])(?<![+*/^%-]\s)(-?{_NUMBER}(?: ?[-+*/] ?{_NUMBER}){{1,8}}+)"
    rf" ?= ?(-?{_NUMBER})(?!\w|\s?[-+*/^%(])"
)
_MOST_EQUATIONS = 100


def arithmetic(text: str, *, value=1.0, think_tag="think", answer_tag="answer") -> float:
    """1.0 × the share of the equations in the reasoning that hold; 0 where there are none.

    Equations are numbers with + − × ÷ between them, "=" and a number ("16 - 3 - 4 = 9"). Each
    different one counts once, the first 100 are looked at, and true equations that have nothing to
    do with the problem are paid, too.
    """
    pairs = set(equations(reasoning_of(text, think_tag, answer_tag)))
    return value * sum(holds(*pair) for pair in pairs) / len(pairs) if pairs else 0.0


def equations(text: str) -> list[tuple[str, str]]:
    """The equations between numbers, as pairs of left and right side.

    >>> equations("She sells 16 - 3 - 4 = 9 eggs for 9 × $2 = $18.")
    [('16 - 3 - 4', '9'), ('9 * 2', '18')]
    """
    text = plain_characters(text).replace("$", "")
    text = text.replace("\\times", "*").replace("\\cdot", "*").replace("\\div", "/")
    text = re.sub(r"(?<=\d) ?x ?(?=\d)", "*", text).replace("  ", " ")
    return [match.groups() for match in islice(_EQUATION.finditer(text), _MOST_EQUATIONS)]


def holds(left: str, right: str) -> bool:
    """Whether left equals right, exactly or rounded to the decimals that right is written with.

    >>> holds("10/3", "3.33"), holds("10/3", "3")
    (True, False)
    """
    value = read_answer(left.replace(",", ""))
    if value is None:  # a division by zero
        return False
    difference = abs(value.points[0] - Fraction(right.replace(",", "")))
    decimals = len(right.partition(".")[2])
    return difference <= (Fraction(1, 2 * 10**decimals) if decimals else 0)


_LATIN = "A-Za-zªºÀ-ÖØ-öø-ɏḀ-ỿ"
_SCRIPTS = {
    **dict.fromkeys(("en", "de", "es", "fr", "it", "nl", "pl", "pt", "tr", "vi"), _LATIN),
    **dict.fromkeys(("bg", "ru", "uk"), "Ѐ-ӿ"),
    "ar": "ؠ-ي٠-ۿ", "el": "Ͱ-Ͽἀ-῿", "he": "א-ת", "hi": "ऄ-ॿ", "ja": "ぁ-ヿ㐀-鿿",
    "ko": "ᄀ-ᇿ가-힣", "th": "ก-๛", "zh": "㐀-鿿𠀀-𲎯",
}  # fmt: skip
# Names of tags and of LaTeX commands, and Greek letters, belong to mathematics.
_NOTATION = re.compile(r"\\[A-Za-z]++|</?[A-Za-z]++>")
_GREEK = re.compile(r"[Ͱ-Ͽ]++")


def language_consistency(text: str, *, value=1.0, language="en") -> float:
    """1.0 × the share of letters that are of the target language's script; 0 without letters.

    DeepSeek-R1's remedy for reasoning that mixes languages (arXiv 2501.12948, section 2.3.2),
    which counts words: a script tells Chinese from English, but not French from English.
    """
    if language not in _SCRIPTS:
        hint = nearest(language, _SCRIPTS)
        raise BadInput(f"language_consistency has no language {language!r}: {hint}")
    text = _NOTATION.sub(" ", text)
    letters = "".join(re.findall(r"[^\W\d_]++", text if language == "el" else _GREEK.sub("", text)))
    of_script = re.findall(f"[{_SCRIPTS[language]}]++", letters)
    return value * sum(map(len, of_script)) / len(letters) if letters else 0.0


_ANSWERS = (correctness, reward_accuracy, last_number, partial_credit, gated_format, cosine_length)
_TEXTS = (hard_format, mark, tag_count, xmlcount, soft_format, strict_format, reward_format)
_TEXTS += (think_format, digit, reward_len, reasoning_steps, arithmetic, language_consistency)
_TOKENS = (reward_token_length, soft_overlong, repetition_penalty)

# What a recipe calls it → what applies it, and the function of one completion.
RULES: dict[str, tuple[Callable, Callable]] = {
    **{score.__name__: (per_answer, score) for score in _ANSWERS},
    **{score.__name__: (per_text, score) for score in _TEXTS},
    **{score.__name__: (per_tokens, score) for score in _TOKENS},
    "int": (per_text, whole_number),
}
