"""The tasks one can name, and the problems drawn from them.

    >>> from lib.tasks import get_task
    >>> get_task("small_sums", {"largest": 20}).load("test")[0].question
    'What is 0 + 0?'

What a task is, and how to add one, stands in `lib.tasks.problems`; tasks whose problems are
rows of a data set in `lib.tasks.datasets`, or are generated in `lib.tasks.generated`; how a
problem becomes a prompt in `lib.tasks.prompts`. Their public names can be imported from here.
"""

import inspect
import random
import typing
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lib.config import ROOT, Config
from lib.errors import BadInput, nearest
from lib.tasks.datasets import OwnRows, StoredTask, message_text
from lib.tasks.generated import ReasoningGym, SmallSums
from lib.tasks.problems import (
    KINDS,
    OPEN,
    TASKS,
    Problem,
    Task,
    check_ids,
    gold_text,
    task,
)
from lib.tasks.prompts import PROMPT_FORMATS, PromptFormat, fitting_rows, get_format, make_rows

__all__ = [
    "KINDS", "OPEN", "PROMPT_FORMATS", "TASKS", "OwnRows", "Problem", "PromptFormat",
    "ReasoningGym", "SmallSums", "StoredTask", "Task", "few_shot_examples", "fitting_rows",
    "get_format", "get_task", "gold_text", "load_problems", "make_rows", "message_text",
    "problem_notes", "sample_problems", "summary_scores", "task",
]  # fmt: skip


def get_task(name: str, config: dict | None = None) -> Task:
    """The task `name`, made with the parameters in `config`.

    Raises:
        BadInput: unknown task or parameter (the nearest right one is named), one missing, or one
            of a wrong type.
    """
    if name not in TASKS:
        raise BadInput(f"There is no task {name!r}: {nearest(name, TASKS)}")
    cls, config = TASKS[name], config or {}
    parameters = inspect.signature(cls).parameters.values()
    known = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
    unknown = [key for key in config if key not in known]
    if unknown and len(known) == len(parameters):
        hint = nearest(unknown[0], known)
        raise BadInput(f"Task {name!r} has no parameter {unknown[0]!r}: {hint}", "parameter")
    types = typing.get_type_hints(cls.__init__)
    for p in parameters:
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD and p.name not in config:
            raise BadInput(f"Task {name!r} needs the parameter {p.name!r}: add it to its config.")
        if p.name in config and not _is_a(config[p.name], types.get(p.name, Any)):
            value, wanted = config[p.name], getattr(p.annotation, "__name__", p.annotation)
            hint = ", without quotes" if wanted in ("int", "float", "bool") else ""
            said = f"{p.name} of task {name!r} is {value!r}, a {type(value).__name__}"
            raise BadInput(f"{said}: give a {wanted}{hint}.", "type")
    return cls(**config)


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type, as far as that is simple; a bool is no number."""
    kinds = typing.get_args(kind) or (kind,)
    if not all(isinstance(one, type) and not typing.get_args(one) for one in kinds):
        return True
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (float in kinds and isinstance(value, int))


def sample_problems(problems: Sequence[Problem], n: int | None, seed: int) -> list[Problem]:
    """`n` of the problems, drawn without replacement and kept in their order; all for None or 0.

    Raises:
        BadInput: more are asked for than there are, or n is negative.
    """
    if not n:
        return list(problems)
    if not 0 < n <= len(problems):
        raise BadInput(f"{n} problems are asked for and there are {len(problems)}: ask for fewer.")
    chosen = random.Random(seed).sample(range(len(problems)), n)
    return [problems[index] for index in sorted(chosen)]


def few_shot_examples(task: Task, n: int, data_dir: str | Path | None = None) -> list[Problem]:
    """`n` worked examples, always the same, from the train split.

    They come from the task itself, or from the task named in its `examples_from` where it has
    no train split of its own. `make_rows` keeps the ones it shows out of its rows.
    """
    if n == 0:
        return []
    source = get_task(task.examples_from) if task.examples_from else task
    return sample_problems(source.load("train", data_dir), n, seed=0)


def load_problems(config: Config) -> tuple[Task, list[Problem], list[Problem], list[Problem]]:
    """The task, its training problems, its held-out problems, and the worked examples.

    No held-out question is a training question or an example, in whatever spelling, and none is
    held out twice.

    Raises:
        BadInput: the data are not there, too few, none can be graded, or two have one id.
    """
    return _load(config)[0]


def problem_notes(config: Config) -> list[str]:
    """What is wrong with a recipe's problems and does not stop it, a sentence each."""
    return _load(config)[1]


def _load(config: Config) -> tuple[tuple, list[str]]:
    task = get_task(config.task, _with_paths(config))
    data_dir = find_data_dir(config)
    examples = few_shot_examples(task, config.shots, data_dir)
    shown = {example.key for example in examples}
    test = [p for p in task.load("test", data_dir) if p.key not in shown]
    unique = _once(test)
    notes: list[str] = []
    held_out = _at_most("eval_problems", unique, config.eval_problems, 0, notes)
    held_keys = shown | {problem.key for problem in held_out}
    source = get_task(task.examples_from) if task.examples_from else task
    rows = source.load("train", data_dir)
    unseen = [p for p in rows if p.key not in held_keys]
    if rows and not unseen:
        said = f"All {len(held_out)} problems of task {config.task!r} are held out, none is left"
        hint = "give task_config a test_share (0.2 holds out a fifth) or a test_path"
        below = f"or eval_problems below {len(held_out)}"
        raise BadInput(f"{said} to train on: {hint}, {below}.", "all-held-out")
    training = _at_most("train_problems", unseen, config.train_problems, config.seed, notes)
    check_ids(training)
    check_ids(held_out)
    if len(unique) < len(test):
        first_ones = set(map(id, unique))
        again = next(p for p in test if id(p) not in first_ones)
        notes.append(
            f"{len(test) - len(unique)} held-out problems repeat a question (the first is "
            f"{again.id}): each is asked once."
        )
    if len(unseen) < len(rows) - len(examples):
        notes.append(
            f"{len(rows) - len(examples) - len(unseen)} training problems ask what a held-out one "
            f"asks, and are left out."
        )
    return (task, training, held_out, examples), notes + _gold_notes(training, held_out)


def _at_most(
    key: str, problems: Sequence[Problem], n: int, seed: int, notes: list[str]
) -> list[Problem]:
    """As many as the key asks for, or all there are, with a note."""
    if n > len(problems) > 0:
        notes.append(f"{key} is {n}, and there are {len(problems)}: all of them are taken.")
    return sample_problems(problems, min(n, len(problems)), seed)


def _once(problems: Sequence[Problem]) -> list[Problem]:
    """Each question once, its first problem; those of a cluster may repeat it."""
    firsts: dict[str, Problem] = {}
    return [p for p in problems if p.meta.get("cluster") or firsts.setdefault(p.key, p) is p]


def _gold_notes(training: Sequence[Problem], held_out: Sequence[Problem]) -> list[str]:
    """Whose gold answers cannot be read.

    Raises:
        BadInput: nobody's can.
    """
    notes = []
    for name, problems in (("training", training), ("held-out", held_out)):
        unreadable = [problem for problem in problems if not problem.readable]
        if not unreadable:
            continue
        first = unreadable[0]
        problem = (
            f"{len(unreadable)} of {len(problems)} {name} problems have a gold answer that "
            f"cannot be read as kind {first.kind!r}; the first is {first.id}: "
            f"{first.answer[:60]!r}"
        )
        if len(unreadable) == len(problems):
            raise BadInput(f"{problem}. Fix the answers, or choose another kind.", "unreadable")
        notes.append(f"{problem}. No answer to them can be right, and no reward judges them.")
    return notes


def _with_paths(config: Config) -> dict[str, Any]:
    """task_config with its files found where the recipe means them."""
    paths = {
        key: find_file(value, config)
        for key, value in config.task_config.items()
        if key in ("path", "test_path") and isinstance(value, str)
    }
    return config.task_config | paths


def find_file(path: str, config: Config) -> str:
    """The path of a file or folder that a recipe names: from the working folder, beside the
    recipe, or in the repository. As it is where there is none (it may be a name on the Hub)."""
    for folder in (config.working_folder, config.recipe_folder, ROOT):
        place = folder / Path(path).expanduser()
        if place.exists():
            return str(place.resolve())
    return str(Path(path).expanduser())


def find_data_dir(config: Config) -> Path | None:
    """data_dir, from the working folder or the repository; None where it is not set."""
    if not config.data_dir:
        return None
    folder = Path(find_file(config.data_dir, config))
    if folder.is_dir():
        return folder
    hint = "fix data_dir, or leave it empty to load the data from the Hub"
    raise BadInput(f"There is no data folder {config.data_dir}: {hint}.", "data-dir")


def summary_scores(text: str, gold: str) -> dict[str, float]:
    """How long a summary is, and how much of a written one it shares.

    Returns: characters and words of the text and of the gold, their length ratio (in words),
    and the F1 of rouge1, rouge2 and rougeL (Lin 2004, with stemming, by rouge_score), 0 to 1.
    """
    words, gold_words = len(text.split()), len(gold.split())
    lengths = {
        "characters": len(text),
        "words": words,
        "gold_characters": len(gold),
        "gold_words": gold_words,
        "length_ratio": words / gold_words if gold_words else 0.0,
    }
    rouge = _rouge_scorer().score(target=gold, prediction=text)
    return lengths | {name: score.fmeasure for name, score in rouge.items()}


@cache
def _rouge_scorer():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
