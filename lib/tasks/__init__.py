"""The tasks one can name, and the problems drawn from them.

    >>> get_task("small_sums", {"largest": 20}).load("test")[0].question
    'What is 0 + 0?'

What a task is, how to add one, and how an answer is judged stands in `lib.tasks.problems`; tasks
of rows in `lib.tasks.datasets`, generated ones in `lib.tasks.generated`, prompts in
`lib.tasks.prompts`.
"""

import inspect
import random
import typing
from collections.abc import Sequence
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from lib.config import Config
from lib.errors import BadInput, nearest
from lib.tasks.datasets import OwnRows, StoredTask, message_text
from lib.tasks.generated import ReasoningGym, SmallSums
from lib.tasks.problems import (
    HARNESS_SCORES,
    KINDS,
    OPEN,
    TASKS,
    Problem,
    Task,
    check_ids,
    gold_text,
    judge,
    summary_scores,
    task,
)
from lib.tasks.prompts import PROMPT_FORMATS, PromptFormat, fitting_rows, get_format, make_rows

__all__ = [
    "HARNESS_SCORES", "KINDS", "OPEN", "PROMPT_FORMATS", "TASKS", "OwnRows", "Problem",
    "PromptFormat", "ReasoningGym", "SmallSums", "StoredTask", "Task", "few_shot_examples",
    "fitting_rows", "get_format", "get_task", "gold_text", "judge", "load_problems", "make_rows",
    "message_text", "problem_notes", "sample_problems", "summary_scores", "task",
]  # fmt: skip


def get_task(name: str, config: dict | None = None) -> Task:
    """The task `name`, made with `config`; of a wrong key BadInput names the nearest right one."""
    if name not in TASKS:
        raise BadInput(f"There is no task {name!r}: {nearest(name, TASKS)}")
    cls, config = TASKS[name], config or {}
    parameters = inspect.signature(cls).parameters.values()
    known = {p.name: p for p in parameters if p.kind is not p.VAR_KEYWORD}
    unknown = [key for key in config if key not in known]
    if unknown and len(known) == len(parameters):
        hint = nearest(unknown[0], known)
        raise BadInput(f"Task {name!r} has no parameter {unknown[0]!r}: {hint}", "parameter")
    types = typing.get_type_hints(cls.__init__)
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in config:
            raise BadInput(f"Task {name!r} needs the parameter {key!r}: add it to its config.")
        try:
            if key in config and key in types:
                TypeAdapter(types[key], config=_STRICT).validate_python(config[key])
        except ValidationError as error:
            wanted = error.errors()[0]["msg"].removeprefix("Input should be ")
            hint = ", without quotes" if isinstance(config[key], str) else ""
            said = f"{key} of task {name!r} is {config[key]!r}"
            raise BadInput(f"{said}: it should be {wanted}{hint}.", "type") from None
    return cls(**config)


_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)


def sample_problems(problems: Sequence[Problem], n: int | None, seed: int) -> list[Problem]:
    """`n` of the problems, drawn without replacement and kept in their order; all for None or 0."""
    if not n:
        return list(problems)
    if not 0 < n <= len(problems):
        raise BadInput(f"{n} problems are asked for and there are {len(problems)}: ask for fewer.")
    chosen = random.Random(seed).sample(range(len(problems)), n)
    return [problems[index] for index in sorted(chosen)]


def _train_rows(task: Task, data_dir: str | Path | None) -> list[Problem]:
    """The task's train split, or that of its `examples_from` where it has none of its own."""
    source = get_task(task.examples_from) if task.examples_from else task
    return source.load("train", data_dir)


def few_shot_examples(task: Task, n: int, data_dir: str | Path | None = None) -> list[Problem]:
    """`n` worked examples, always the same, from the train split (`make_rows` leaves them out)."""
    rows = _train_rows(task, data_dir) if n else []
    return sample_problems([problem for problem in rows if problem.readable], n, seed=0)


def problem_notes(config: Config) -> list[str]:
    """What is wrong with a recipe's problems and does not stop it, a sentence each."""
    notes: list[str] = []
    load_problems(config, notes)
    return notes


def load_problems(
    config: Config, notes: list[str] | None = None
) -> tuple[Task, list[Problem], list[Problem], list[Problem]]:
    """The task, its training problems, its held-out problems, and the worked examples.

    No held-out question is a training question or an example, in whatever spelling, and none is
    held out twice; what is wrong and does not stop it is added to `notes`. BadInput: no data or
    too few, none can be graded, or two have one id.
    """
    notes = [] if notes is None else notes
    files = ("path", "test_path")
    given = {
        key: str(config.find(value) or value) if key in files and isinstance(value, str) else value
        for key, value in config.task_config.items()
    }
    task = get_task(config.task, given)
    data_dir = config.data_dir and (config.find(config.data_dir) or config.data_dir)
    examples = few_shot_examples(task, config.shots, data_dir)
    shown = {example.key for example in examples}
    test = [problem for problem in task.load("test", data_dir) if problem.key not in shown]
    unique, repeated, firsts = [], [], {}
    for p in test:  # of those that ask the same the first, but for a cluster's
        is_first = p.meta.get("cluster") or firsts.setdefault(p.key, p) is p
        (unique if is_first else repeated).append(p)
    held_out = _at_most("eval_problems", unique, config.eval_problems, 0, notes)
    held_keys = shown | {problem.key for problem in held_out}
    rows = _train_rows(task, data_dir)
    unseen = [problem for problem in rows if problem.key not in held_keys]
    if not held_out:
        said = f"No problem of task {config.task!r} is held out, so that nothing can be measured"
        raise BadInput(
            f"{said}: give it rows with other questions, or a test_path.", "none-held-out"
        )
    if rows and not unseen:
        shots = f" ({len(examples)} are worked examples)" if examples else ""
        said = f"All {len(held_out)} problems of task {config.task!r} are held out, none is left"
        hint = "give task_config a test_share (0.2 holds out a fifth) or a test_path"
        below = f"or eval_problems below {len(held_out)}"
        raise BadInput(f"{said} to train on{shots}: {hint}, {below}.", "all-held-out")
    training = _at_most("train_problems", unseen, config.train_problems, config.seed, notes)
    if repeated:
        said = f"Held-out problems that repeat a question: {len(repeated)}"
        notes.append(f"{said} (the first is {repeated[0].id}); each question is asked once.")
    if (left_out := len(rows) - len(examples) - len(unseen)) > 0:
        said = f"Training problems that ask what a held-out one asks: {left_out}"
        notes.append(f"{said}; they are left out.")
    for name, problems in (("training", training), ("held-out", held_out)):
        check_ids(problems)
        notes += _gold_notes(name, problems)
    return task, training, held_out, examples


def _at_most(
    key: str, problems: Sequence[Problem], n: int, seed: int, notes: list[str]
) -> list[Problem]:
    """As many as the key asks for, or all there are, with a note."""
    if n > len(problems) > 0:
        notes.append(f"{key} is {n}, and there are {len(problems)}: all of them are taken.")
    return sample_problems(problems, min(n, len(problems)), seed)


def _gold_notes(name: str, problems: Sequence[Problem]) -> list[str]:
    """Whose gold answers cannot be read. Raises BadInput where nobody's can."""
    unreadable = [problem for problem in problems if not problem.readable]
    if not unreadable:
        return []
    first = unreadable[0]
    said = (
        f"The gold answers of {len(unreadable)} of {len(problems)} {name} problems cannot be read "
        f"as kind {first.kind!r}; the first is {first.answer[:60]!r}, to {first.question[:80]!r}."
    )
    if len(unreadable) == len(problems):
        raise BadInput(f"{said} Fix the answers, or choose another kind.", "unreadable")
    return [f"{said} No answer to them can be right, and no reward judges them."]
