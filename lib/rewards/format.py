"""Rewards for the form of a completion: its tags, and a bare number between them.

They never look at the gold answer, so each pays a wrong answer in the right form as much as a
right one; a group that solves nothing then learns the form alone. Keep their weights well below
the answer's, or use `gated_format`, which pays the form only where an answer stands in it.

Fixed against the projects that these come from: reasoning may run over many lines, a tag that
stands twice does not count, and a section without a letter or digit in it is no section.
"""

import re
from dataclasses import dataclass

from lib.answers.extraction import inside_tags
from lib.answers.numerals import normalize_number
from lib.rewards.base import completion_texts, reward


class TextReward:
    """A reward that sees one completion's text at a time and nothing else."""

    def __call__(self, prompts=None, completions=(), **columns) -> list[float]:
        return [self.score(text) for text in completion_texts(completions)]

    def score(self, text: str) -> float:
        raise NotImplementedError


def sections(text: str, think_tag: str, answer_tag: str) -> list[str] | None:
    """The five pieces around the four tags, or None unless all is there once and in order.

    >>> sections("<think>2+2</think> <answer>4</answer>.", "think", "answer")
    ['', '2+2', ' ', '4', '.']

    A section without a letter or digit in it counts as missing ("<answer>...</answer>" is what
    a model writes that copies its instructions).
    """
    marks = (f"<{think_tag}>", f"</{think_tag}>", f"<{answer_tag}>", f"</{answer_tag}>")
    if any(text.count(mark) != 1 for mark in marks):
        return None
    pieces = []
    for mark in marks:
        piece, found, text = text.partition(mark)
        if not found:
            return None
        pieces.append(piece)
    pieces.append(text)
    return pieces if has_content(pieces[1]) and has_content(pieces[3]) else None


def has_content(text: str) -> bool:
    """Whether there is a letter or digit in the text."""
    return re.search(r"[^\W_]", text) is not None


def section(text: str, tag: str) -> str | None:
    """What stands between the one <tag> and the one </tag>; None if missing or without content."""
    if text.count(f"<{tag}>") != 1 or text.count(f"</{tag}>") != 1:
        return None
    inside = text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return inside if has_content(inside) else None


def whole_format(text: str, think_tag: str, answer_tag: str) -> bool:
    """Whether the completion is reasoning and answer, each in its tags, and nothing else."""
    pieces = sections(text, think_tag, answer_tag)
    return pieces is not None and not (pieces[0] + pieces[2] + pieces[4]).strip()


def tags_found(text: str, think_tag: str, answer_tag: str, own_lines: bool) -> list[bool]:
    """For each of the four tags in turn, whether it stands there exactly once.

    A closing tag needs content before it, back to its opening tag. With `own_lines` each tag
    must be set off by line breaks, as in "<think>\\n", "\\n</think>\\n", "\\n<answer>\\n" and
    "\\n</answer>" (the first tag begins the completion and the last one may end it).
    """
    found = []
    for tag, before, after in ((think_tag, "", "\n"), (answer_tag, "\n", "")):
        opening, closing = f"<{tag}>", f"</{tag}>"
        inside = text.partition(closing)[0].rpartition(opening)[2]
        if own_lines:
            opening, closing = f"{before}{opening}\n", f"\n{closing}{after}"
        found += [text.count(opening) == 1, text.count(closing) == 1 and has_content(inside)]
    return found


@reward("hard_format")
@dataclass(frozen=True)
class HardFormat(TextReward):
    """0.5 for a reasoning and an answer section, 0.25 for the answer section alone, else 0.

    Text around the sections does no harm. (learning_llm's `hard_format_reward`.)
    """

    full: float = 0.5
    partial: float = 0.25
    think_tag: str = "think"
    answer_tag: str = "answer"

    def score(self, text: str) -> float:
        if sections(text, self.think_tag, self.answer_tag):
            return self.full
        after_thinking = text.rpartition(f"</{self.think_tag}>")[2]
        return self.partial if section(after_thinking, self.answer_tag) else 0.0


@reward("mark")
@dataclass(frozen=True)
class Mark(TextReward):
    """0.125 for each of the four tags that stands exactly once: 0.5 in all.

    The order of the sections is free. (learning_llm's `mark_reward`.)
    """

    step: float = 0.125
    think_tag: str = "think"
    answer_tag: str = "answer"

    def score(self, text: str) -> float:
        return self.step * sum(tags_found(text, self.think_tag, self.answer_tag, own_lines=False))


@reward("tag_count")
@dataclass(frozen=True)
class TagCount(TextReward):
    """0.25 for each of the four tags that stands exactly once and on its own line: 1.0 in all.

    (open-r1's `tag_count_reward`.)
    """

    step: float = 0.25
    think_tag: str = "think"
    answer_tag: str = "answer"

    def score(self, text: str) -> float:
        return self.step * sum(tags_found(text, self.think_tag, self.answer_tag, own_lines=True))


@reward("xmlcount")
@dataclass(frozen=True)
class XmlCount(TextReward):
    """0.125 for each of the four tags on its own line, less a little for text after the answer.

    Each character after the closing answer tag (but for one line break) costs 0.001, and that
    once for each of the two answer tags that was paid. Two changes against the original
    (`xmlcount_reward_func` of the widely copied GSM8K demo): a completion that ends right at
    "</answer>" is not charged its whole length, and no completion gets less than `floor`, so
    that one endless completion does not drown its group.
    """

    step: float = 0.125
    penalty: float = 0.001
    floor: float = -0.5
    think_tag: str = "reasoning"
    answer_tag: str = "answer"

    def score(self, text: str) -> float:
        found = tags_found(text, self.think_tag, self.answer_tag, own_lines=True)
        _, closed, trailing = text.rpartition(f"</{self.answer_tag}>")
        length = len(trailing.removeprefix("\n")) if closed else 0
        return max(self.floor, self.step * sum(found) - self.penalty * length * sum(found[2:]))


@reward("soft_format")
@dataclass(frozen=True)
class SoftFormat(TextReward):
    """0.5 for a completion that begins with its reasoning section, followed by its answer section.

    White space is free, and so is whatever comes after. (`soft_format_reward_func` of the GSM8K
    demo.)
    """

    value: float = 0.5
    think_tag: str = "reasoning"
    answer_tag: str = "answer"

    def score(self, text: str) -> float:
        pieces = sections(text, self.think_tag, self.answer_tag)
        return self.value if pieces and not (pieces[0] + pieces[2]).strip() else 0.0


@reward("strict_format")
@dataclass(frozen=True)
class StrictFormat(TextReward):
    """0.5 for reasoning and answer with every tag on a line of its own, and nothing else.

    The line break after the last tag may be missing, since generation stops there.
    (`strict_format_reward_func` of the GSM8K demo.)
    """

    value: float = 0.5
    think_tag: str = "reasoning"
    answer_tag: str = "answer"

    def score(self, text: str) -> float:
        pieces = sections(text, self.think_tag, self.answer_tag)
        if pieces is None:
            return 0.0
        before, reasoning, between, answer, after = pieces
        around = before == "" and between == "\n" and after in ("", "\n")
        lines = all(part[0] == part[-1] == "\n" for part in (reasoning, answer))
        return self.value if around and lines else 0.0


@reward("reward_format")
@dataclass(frozen=True)
class RewardFormat(TextReward):
    """1.0 for a completion that is reasoning and answer sections and nothing else.

    White space is free. (`reward_format` of the NuminaMath experiments; DeepSeek-R1's format
    reward, arXiv 2501.12948, section 2.2.2.)
    """

    value: float = 1.0
    think_tag: str = "think"
    answer_tag: str = "answer"

    def score(self, text: str) -> float:
        return self.value if whole_format(text, self.think_tag, self.answer_tag) else 0.0


@reward("think_format")
@dataclass(frozen=True)
class ThinkFormat(TextReward):
    """TRL's `think_format_reward`: 1.0 for "<think>…</think>…", where <think> stands once, first.

    Any end will do, none and an empty reasoning included.
    """

    def score(self, text: str) -> float:
        from trl.rewards import think_format_reward

        return think_format_reward([[{"content": text}]])[0]


@reward("digit")
@dataclass(frozen=True)
class Digit(TextReward):
    """0.5 if nothing but digits (and a minus sign) stands in the answer's tags, right or wrong.

    (learning_llm's `digit_reward`, which refuses negative numbers.)
    """

    value: float = 0.5
    answer_tag: str = "answer"

    def score(self, text: str) -> float:
        answer = inside_tags(text, self.answer_tag) or ""
        return self.value if re.fullmatch(r"[-−]?[0-9]+", answer.strip()) else 0.0


@reward("int")
@dataclass(frozen=True)
class Int(TextReward):
    """0.5 if the answer's tags hold one whole number, right or wrong, however it is written.

    "$1,234", "18.00" and "18 apples" are whole numbers. (`int_reward_func` of the GSM8K demo,
    which takes bare digits only: that is `digit` here.)
    """

    value: float = 0.5
    answer_tag: str = "answer"

    def score(self, text: str) -> float:
        number = normalize_number(inside_tags(text, self.answer_tag))
        return self.value if number and re.fullmatch(r"-?[0-9]+", number) else 0.0
