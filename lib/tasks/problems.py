"""What a task is: it turns a data set into problems, each a question with its gold answer.

A task of your own is one small class:

    @task("svamp")
    class Svamp(StoredTask):
        kind, folder, hub = "number", "svamp", ("ChilleD/SVAMP",)
        columns = ("question_concat", "Answer")

        def problem(self, row, id):
            return Problem(id, row["question_concat"], row["Answer"], {}, self.kind)
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lib import answers
from lib.answers import Grade
from lib.answers.extraction import inside_tags
from lib.errors import BadInput
from lib.tasks.sources import load_rows

SPLITS = ("train", "test")
KINDS = ("number", "math", "choice", "text")


@dataclass(frozen=True)
class Problem:
    """One question and its gold answer.

    Attributes:
        id: stable between runs, such as "gsm8k/test/17".
        answer: the gold as `lib.answers` reads it ("18", not the whole solution).
        meta: what else the data set knows (solution, level, subject, options …). An entry
            named "cluster" marks problems that belong together (`evaluation.stats` widens errors
            for them); "system" is a system message of the data set's own.
        kind: how answers are compared: "number", "math", "choice" or "text".
    """

    id: str
    question: str
    answer: str
    meta: dict = field(default_factory=dict)
    kind: str = "number"


class Task:
    """What every task can do; subclass it, or `StoredTask` for rows in files or on the Hub.

    The parameters of `__init__` are the task's configuration (`get_task(name, config)`).
    """

    name: str = ""
    kind: str = "number"
    examples_from: str | None = None  # the task whose train split lends the worked examples

    def load(self, split: str, data_dir: str | Path | None = None) -> list[Problem]:
        """All problems of the split "train" or "test", in a fixed order."""
        raise NotImplementedError

    def grade(self, problem: Problem, text: str, tags: str | None = None) -> Grade:
        """Whether the completion `text` answers the problem; strict where a tag is given.

        Problems of kind "text" have no right answer: `correct` is None, and `extracted` is what
        a reward or `summary_scores` would judge.
        """
        if self.kind == "text":
            return _grade_text(text, tags)
        return answers.grade(text, problem.answer, self.kind, tags)


def _grade_text(text: str, tags: str | None) -> Grade:
    """Finds the text of the answer: between the tags, or without tags all after the thinking."""
    inside = inside_tags(text, tags or "answer")
    if inside is None and tags:
        return Grade(None, why="no tags")
    where = "text" if inside is None else "tags"
    found = (text.rpartition("</think>")[2] if inside is None else inside).strip()
    if not found:
        return Grade(None, None, where, "empty tags" if where == "tags" else "no answer found")
    return Grade(None, found, where, "no right or wrong")


TASKS: dict[str, type[Task]] = {}


def task(name: str) -> Callable[[type[Task]], type[Task]]:
    """Class decorator: makes the task known to `get_task` and to recipes under `name`.

    Running a notebook cell again replaces what it registered before.

    Raises:
        BadInput: another module has taken the name.
    """

    def register(cls: type[Task]) -> type[Task]:
        owner = TASKS[name].__module__ if name in TASKS else cls.__module__
        if owner != cls.__module__:
            raise BadInput(f"The task name {name!r} is taken by {owner}: choose another name.")
        cls.name = name
        TASKS[name] = cls
        return cls

    return register


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise BadInput(f'There is no split {split!r}: choose "train" or "test".')


def only_split(problems: list[Problem], split: str, test_share: float) -> list[Problem]:
    """Those of the problems that belong to the split, by a hash of the question alone.

    So no question stands in both splits, however and with whatever seed the problems were made.
    """

    def is_test(question: str) -> bool:
        digest = hashlib.sha256(question.encode("utf-8", "replace")).digest()
        return int.from_bytes(digest[:8]) < test_share * 2**64

    return [problem for problem in problems if is_test(problem.question) is (split == "test")]


class StoredTask(Task):
    """A task whose rows stand in `<data_dir>/<folder>/<split>.jsonl` or on the Hub.

    Attributes:
        hub: repository, and configuration if it has several.
        splits: our split → the data set's, where its name differs, in files and on the Hub.
        hub_splits: the same for the Hub alone.
        columns: what every row must have.
        repeats: its train and test splits share questions; those are left out of train.
        held_out: the share of train's questions that is the test split instead, for a data set
            that has no test split of its own.
    """

    folder: str
    hub: tuple[str, ...]
    splits: dict[str, str] = {}  # noqa: RUF012
    hub_splits: dict[str, str] = {}  # noqa: RUF012
    columns: tuple[str, ...] = ("question", "answer")
    repeats: bool = False
    held_out: float = 0.0

    def problem(self, row: dict, id: str) -> Problem | None:
        """The problem in one row, or None where it has no gold answer."""
        raise NotImplementedError

    def load(self, split: str, data_dir: str | Path | None = None) -> list[Problem]:
        check_split(split)
        stored = "train" if self.held_out else self.splits.get(split, split)
        hub_split = self.hub_splits.get(split, stored)
        rows = load_rows(self.folder, stored, self.hub, hub_split, self.columns, data_dir)
        problems = [self.problem(row, f"{self.name}/{split}/{i}") for i, row in enumerate(rows)]
        problems = [problem for problem in problems if problem]
        if self.held_out:
            return only_split(problems, split, self.held_out)
        if split == "train" and self.repeats:
            tested = {problem.question for problem in self.load("test", data_dir)}
            problems = [problem for problem in problems if problem.question not in tested]
        return problems
