r"""What a task is: it turns a data set into problems, and grades their answers.

A task of your own is one small class (for a file of your own, or a data set on the Hub whose
columns only need naming, none is needed: see `lib.tasks.datasets.OwnRows`):

    @task("svamp")
    class Svamp(StoredTask):
        kind, folder, hub = "number", "svamp", ("ChilleD/SVAMP",)
        columns = ("question_concat", "Answer")

        def problem(self, row, id):
            return Problem(id, row["question_concat"], row["Answer"], {}, self.kind)

Beside the suite's own grades stand those of lm-evaluation-harness' task `gsm8k` (version 3), to
compare with published figures: the number after the first "####" (strict-match) or the last one
(flexible-extract), compared as strings. Its prompt is format "hashes" with 5 shots.
"""

import ast
import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, get_args

from lib import answers
from lib.answers import Grade, inside_tags
from lib.answers.numerals import plain_characters
from lib.errors import BadInput

OPEN = "open"  # the kind of answers of which none is right or wrong
KINDS = (*get_args(answers.Kind), OPEN)


@dataclass(frozen=True)
class Problem:
    """One question and its gold answer.

    Attributes:
        id: stable between runs, such as "gsm8k/test/17".
        answer: the gold as `lib.answers` reads it ("18", not the whole solution), of any type
            that `gold_text` takes.
        meta: what else the data set knows (solution, level, options …). "cluster" marks problems
            that belong together (`lib.stats` widens errors for them), "system" is a system
            message, and "earlier_turns" the chat messages before the question.
        kind: how answers are compared: "number", "math", "choice", "text" (words), or "open" (no
            answer is right or wrong: a summary).
    """

    id: str
    question: str
    answer: str
    meta: dict = field(default_factory=dict)
    kind: str = "number"

    def __post_init__(self):
        if not (isinstance(self.answer, str) and self.kind == OPEN):
            object.__setattr__(self, "answer", gold_text(self.answer, self.id))

    @property
    def key(self) -> str:
        """The question without case and spaces: equal where two problems ask the same."""
        turns = [turn["content"] for turn in self.meta.get("earlier_turns") or ()]
        text = unicodedata.normalize("NFKC", " ".join([*turns, self.question])).casefold()
        return "".join(text.replace("\u200b", "").split())

    @property
    def readable(self) -> bool:
        """Whether an answer can be graded against the gold at all."""
        return self.kind == OPEN or answers.gold_parses(self.answer, self.kind)


# Messages, verl's reward_model or a list of one answer as a table's cell: in JSON, as Python writes
# it, or as numpy does (array([{…}, {…}], dtype=object), [{…}\n {…}]).
PACKED = re.compile(
    r"""\s*(?:array\()?\[?\s*\{\s*(['"])"""
    r"""(?:role|from|content|ground_truth|style|messages|conversations)\1\s*:"""
    r"""|\s*(?:array\()?\[\s*\{[^{}]*['"](?:role|from)['"]\s*:"""
    r"""|\s*\[\s*(['"])[^'"]+\2\s*\]\s*$"""
)


def unpacked(content: Any) -> Any:
    """What a table keeps as text."""
    if not isinstance(content, str) or not PACKED.match(content):
        return content
    plain = re.sub(r"\}\s*\n\s*\{", "}, {", content)
    plain = re.sub(r"(?s)array\((.*?)(?:,\s*dtype=\w+)?\)", r"\1", plain)
    for read, text in ((json.loads, content), (ast.literal_eval, plain)):  # executes nothing
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return content


NARROW = ("float16", "float32")


def gold_text(value: Any, where: str) -> str:
    """A gold answer as text, from whatever type a data set has it in; BadInput for none or several.

    >>> [gold_text(gold, "row 1") for gold in ("18", 18, 18.0, ["18"], {"ground_truth": "18"})]
    ['18', '18', '18', '18', '18']
    """
    if hasattr(value, "tolist"):  # numpy's; a 32-bit 0.1 is 0.10000000149 in 64
        value = float(str(value)) if type(value).__name__ in NARROW else value.tolist()
    value = unpacked(value)
    if isinstance(value, Mapping) and "ground_truth" in value:  # verl's `reward_model` column
        return gold_text(value["ground_truth"], where)
    if isinstance(value, list | tuple) and len(value) == 1:
        return gold_text(value[0], where)
    if is_missing(value):
        said = f"{where} has no gold answer ({value!r})"
        raise BadInput(f"{said}: fill it in, or leave the row out.", "gold")
    if isinstance(value, float | Decimal):
        # 18.0 is how a table that has gaps stores 18, and 1e-07 how Python writes 0.0000001.
        return f"{Decimal(str(value)):f}".removesuffix(".0")
    if isinstance(value, str | int):
        return str(value)
    count = f" of {len(value)}" if isinstance(value, list | tuple) else ""
    shape = f"a {type(value).__name__}{count}"
    said = f"{where} has {shape} as its gold answer ({str(value)[:60]})"
    hint = 'give one text or number ("2, 3" for several that all belong in the answer), or name the'
    raise BadInput(f'{said}: {hint} column inside it with a dot ("answer.value").', "gold")


def is_missing(value: Any) -> bool:
    """Whether a cell of a table is empty: None, NaN, an infinite number, "" or []."""
    if isinstance(value, Decimal):
        return not value.is_finite()
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, str):
        return not plain_characters(value).strip()
    return value is None or value in ([], {}, ())


class Task:
    """What every task can do. The parameters of its `__init__` are its keys in a recipe."""

    name: str = ""
    kind: str = "number"
    hub: tuple[str, ...] = ()  # the data set's repository on the Hub, and its configuration
    licence: str = "generated"  # of its problems
    examples_from: str | None = None  # the task whose train split lends the worked examples

    def load(self, split: str, data_dir: str | Path | None = None) -> list[Problem]:
        """All problems of the split "train" or "test", in a fixed order."""
        raise NotImplementedError

    def grade(self, problem: Problem, text: str, tags: str | None = None) -> Grade:
        """Whether the completion `text` answers the problem; strict where a tag is given.

        Of kind "open", `correct` is None, and `extracted` is what stands in the tags, or without
        tags all after the thinking.
        """
        if self.kind != OPEN:
            return answers.grade(text, problem.answer, self.kind, tags)
        inside = inside_tags(text, tags or "answer")
        if inside is None and tags:
            return Grade(None, why="no tags")
        where = "text" if inside is None else "tags"
        answer = (text.rpartition("</think>")[2] if inside is None else inside).strip()
        if not answer:
            return Grade(None, None, where, "empty tags" if where == "tags" else "no answer found")
        return Grade(None, answer, where, "no right or wrong")


TASKS: dict[str, type[Task]] = {}


def task(*names: str) -> Callable[[type[Task]], type[Task]]:
    """Class decorator: makes the task known to `get_task` and to recipes under these names.

    Running a notebook cell again replaces what it registered; another module's name is refused.
    """

    def register(cls: type[Task]) -> type[Task]:
        for name in names:
            owner = TASKS[name].__module__ if name in TASKS else cls.__module__
            if owner != cls.__module__:
                raise BadInput(f"The task name {name!r} is taken by {owner}: choose another name.")
            TASKS[name] = cls
        cls.name = names[0]
        return cls

    return register


def check_split(split: str) -> None:
    if split not in ("train", "test"):
        raise BadInput(f'There is no split {split!r}: choose "train" or "test".')


def only_split(problems: list[Problem], split: str, test_share: float) -> list[Problem]:
    """Those of the problems that belong to the split, by a hash of the question alone.

    So no question stands in both splits, with whatever seed the problems were made; of one that
    occurs in several spellings, all go to test where one does.
    """
    tested = {p.key for p in problems if _hash(p.question) < test_share * 2**64}
    return [problem for problem in problems if (problem.key in tested) is (split == "test")]


def split_rows(problems: list[Problem], split: str, test_share: float) -> list[Problem]:
    """As `only_split`, of rows that are all there: as many questions are held out as the share
    says, and one at least, where few rows by their hashes alone might give none."""
    keys = sorted({problem.key for problem in problems}, key=_hash)
    tested = {*keys[: min(max(1, round(test_share * len(keys))), len(keys) - 1)]}
    return [problem for problem in problems if (problem.key in tested) is (split == "test")]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8])


def check_ids(problems: Iterable[Problem]) -> None:
    """Raises BadInput where two problems have one id, by which answers are graded."""
    first: dict[str, Problem] = {}
    for problem in problems:
        other = first.setdefault(problem.id, problem)
        if other is not problem:
            said = f"({other.question[:40]!r} and {problem.question[:40]!r})"
            hint = "give each row an id of its own, or leave the column out"
            raise BadInput(f'Two problems have the id "{problem.id}" {said}: {hint}.', "equal-ids")


# --- grades -------------------------------------------------------------------------------------


def judge(
    task: Task, problem: Problem, text: str, truncated: bool, tag: str | None
) -> dict[str, Any]:
    """How one completion is graded: strict (only inside the tag) and lenient, and why.

    outcome is right, truncated, unparseable or wrong, by the lenient rule. A summary has
    `summary_scores` instead; a number has the harness' two scores as well.
    """
    strict = task.grade(problem, text, tags=tag)
    if strict.correct is None:
        outcome = "truncated" if truncated else "finished"
        return summary_scores(text, problem.answer) | {"outcome": outcome}
    lenient = task.grade(problem, text) if tag else strict
    wrong = "wrong" if lenient.extracted is not None else "unparseable"
    grades = {
        "extracted": lenient.extracted,
        "strict": strict.correct,
        "lenient": lenient.correct,
        "format": strict.extracted is not None,
        "outcome": "right" if lenient.correct else "truncated" if truncated else wrong,
        "why": strict.why,
    }
    return grades | harness_scores(text, problem.answer) if problem.kind == "number" else grades


HARNESS_SCORES = ("strict_match", "flexible_extract")


def harness_scores(text: str, gold: str) -> dict[str, bool]:
    """Whether each filter finds the gold answer in a completion, as the harness decides it.

    >>> harness_scores("That makes $18.\\n#### 18.00", "18")
    {'strict_match': False, 'flexible_extract': False}
    """
    strict = re.findall(r"#### (-?[0-9.,]+)", text)[:1]
    flexible = re.findall(r"-?[$0-9.,]{2,}|-?[0-9]+", text)[-1:]
    golds = [_bare(gold)]
    scores = ([*map(_bare, numbers)] == golds for numbers in (strict, flexible))
    return dict(zip(HARNESS_SCORES, scores, strict=True))


def _bare(answer: str) -> str:
    """What the harness compares of an answer."""
    answer = answer.strip()
    for ignored in (",", r"\$", r"(?s).*#### ", r"\.$"):
        answer = re.sub(ignored, "", answer)
    return answer.lower()


def summary_scores(text: str, gold: str) -> dict[str, float]:
    """Lengths of a summary and of a written one, their ratio (in words), and the F1 of rouge1,
    rouge2 and rougeL (Lin 2004, with stemming, by rouge_score), 0 to 1."""
    words, gold_words = len(text.split()), len(gold.split())
    lengths = {"characters": len(text), "words": words}
    lengths |= {"gold_characters": len(gold), "gold_words": gold_words}
    rouge = _rouge_scorer().score(target=gold, prediction=text)
    return (
        lengths
        | {"length_ratio": words / gold_words if gold_words else 0.0}
        | {name: score.fmeasure for name, score in rouge.items()}
    )


@cache
def _rouge_scorer():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
