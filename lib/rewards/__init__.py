"""Rewards for GRPO by name, with weights and parameters, as a recipe writes them.

    functions, weights = build_rewards({"correctness": 1.0, "my_rewards.py:short": {"weight": 0.2}})
    functions[0](prompts=None, completions=["<answer>$18</answer>"], answer=["18"])
    [2.0]

Each function has TRL's signature, `f(prompts, completions, **columns)`, and returns one float a
completion, or None where it cannot judge. Each keeps the numbers of the project that it comes
from (`correctness` pays 2.0), and the recipe's weight multiplies them; weight 0 logs a reward
without paying it. A reward of one's own is a function in a file beside the recipe, or one that
`@reward("name")` registers. The rules themselves stand in `lib.rewards.rules`.
"""

import asyncio
import copy
import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lib.config import Config, user_path
from lib.errors import BadInput, first_line, nearest
from lib.rewards.rules import RULES, per_answer
from lib.runs import run_folder
from lib.tasks import PromptFormat, get_format, message_text

# Every value is ready to be called with TRL's signature, a class with its defaults.
REWARDS: dict[str, Callable] = {}
# Rewards that want torch, by where they are.
LEARNED = {
    "reward_model": "lib.learned.LearnedReward",
    "gold_reward": "lib.learned.GoldReward",
}
MOST = 1e15  # the trainer squares a reward in 32 bit
_BUILT: dict[str, tuple[list[Callable], list[float]]] = {}
_OF_A_FILE = "reward_file_"  # begins the name of a file's module


def recipe_rewards(config: Config) -> tuple[list[Callable], list[float]]:
    """The rewards of a recipe and their weights, with its prompt's tags and its run's folder; built
    once, however often a notebook wants them."""
    form = get_format(config.prompt_format)
    shared = dict(
        tags=form.answer_tag,
        think_tag=form.think_tag,
        max_completion_length=config.max_completion_length,
        run_folder=str(run_folder(config)),
    )
    files = {name: str(config.find(name.partition(":")[0]) or "") for name in config.rewards}
    stamps = [os.path.isfile(file) and os.stat(file).st_mtime_ns for file in files.values()]
    registered = [id(REWARDS.get(name)) for name in files]
    key = json.dumps([config.rewards, shared, files, stamps, registered])
    if key not in _BUILT:
        _BUILT[key] = build_rewards(config.rewards, **shared, files=files)
    functions, weights = _BUILT[key]
    return [*functions], [*weights]


def learned_rewards(config: Config) -> list[Callable]:
    """Those of a recipe's rewards that are reward models."""
    return [function for function in recipe_rewards(config)[0] if hasattr(function, "own")]


def build_rewards(
    spec: Mapping[str, float | Mapping],
    tags: str | None = "answer",
    think_tag: str | None = None,
    max_completion_length: int | None = None,
    run_folder: str | None = None,
    files: Mapping[str, str] | None = None,
) -> tuple[list[Callable], list[float]]:
    """The reward functions of a recipe and their weights, in the order of `spec`.

    Args:
        spec: name → weight, or name → {"weight": 1.0, and the reward's own parameters}. A name
            is one of `REWARDS`, a function of a file ("my_rewards.py:short"), or the import path
            of a function, class or object. BadInput says what is wrong with it.
        tags, think_tag, max_completion_length, run_folder: for every reward that has such a
            parameter and is not given it in spec. tags None searches free text for the answer;
            of the others, None leaves each reward its own default.
        files: where the file of a name is, if not in the working folder.
    """
    if not isinstance(spec, Mapping) or not spec:
        raise BadInput(f'rewards is {spec!r}: write names and weights, {{"correctness": 1.0}}.')
    shared = {"answer_tag": tags, "think_tag": think_tag, "run_folder": run_folder}
    shared |= {"max_completion_length": max_completion_length}
    shared = {"tags": tags} | {k: value for k, value in shared.items() if value is not None}
    functions, weights = [], []
    for name, entry in spec.items():
        parameters = dict(entry) if isinstance(entry, Mapping) else {"weight": entry}
        weight = parameters.pop("weight", 1.0)
        if not _is_number(weight):
            raise BadInput(f'The weight of reward "{name}" is {weight!r}: give a number.', "weight")
        weights.append(float(weight))
        functions.append(_build(name, parameters, shared, (files or {}).get(name)))
    names = [function.__name__ for function in functions]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f'Two rewards are called "{name}", and TRL would log them as one.')
    return functions, weights


def _build(name: str, parameters: dict, shared: dict, file: str | None = None) -> Callable:
    if name in RULES:
        return _rule(name, parameters, shared)
    target, title = _find(name, file), str(name).rpartition(":" if ":" in str(name) else ".")[2]
    known = dict(inspect.signature(target).parameters)
    is_class = inspect.isclass(target)
    call = inspect.signature(target.__call__).parameters if is_class else known
    if not any(p.kind is p.VAR_KEYWORD for p in call.values()):
        signature = f"def {title}(prompts, completions, **columns)"
        raise BadInput(f'Reward "{name}" takes no columns: write it as {signature}.', "signature")
    for column in () if is_class else ("prompts", "completions", "completion_ids"):
        known.pop(column, None)
    given = _parameters(name, parameters, known, shared if is_class else {})
    if is_class:
        target = _instance(target, name, **given)
    elif given:
        target = Bound(title, _with_parameters, target, given)
    named = getattr(target, "__name__", "<lambda>") != "<lambda>"
    return target if named else with_name(target, title)


class Bound:
    """A function with its first arguments given, and a name: TRL logs a `functools.partial` by the
    name of what it wraps."""

    def __init__(self, name: str, function: Callable, *given: Any):
        self.__name__, self.function, self.given = name, function, given

    def __call__(self, /, *arguments, **columns):
        return self.function(*self.given, *arguments, **columns)


def _with_parameters(function: Callable, parameters: Mapping, /, **columns):
    """A function's own parameters, which no column of the data set takes the place of."""
    return function(**columns | parameters)


def _rule(name: str, parameters: dict, shared: dict) -> Callable:
    """A rule with its parameters, called once so that wrong values are refused at once."""
    apply, score = RULES[name]
    known = dict(inspect.signature(score).parameters)
    known.pop(next(iter(known)))
    if apply is per_answer:
        known["tags"] = inspect.Parameter("tags", inspect.Parameter.KEYWORD_ONLY, default="answer")
    function = Bound(name, apply, score, _parameters(name, parameters, known, shared))
    function([], [""], answer=["1"], kind=["number"], completion_ids=[[]])
    return with_name(functools.update_wrapper(function, score), name)


def _parameters(name: str, parameters: dict, known: Mapping, shared: dict) -> dict:
    """Those of the recipe, checked, and of the shared ones those that the reward knows."""
    known = {key: p for key, p in known.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    for key, value in parameters.items():
        if key not in known:
            hint = nearest(key, ["weight", *known])
            raise BadInput(f'Reward "{name}" has no parameter "{key}": {hint}')
        default, wanted = known[key].default, ""
        if _is_number(default) and not _is_number(value):
            wanted = "number"
        if isinstance(default, str) and not isinstance(value, str | None):
            wanted = "text"
        if wanted:
            raise BadInput(f'{key} of reward "{name}" is {value!r}: give a {wanted}.')
    return {key: value for key, value in shared.items() if key in known} | parameters


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _find(name: str, file: str | None) -> Callable:
    """The class or function that a recipe's name means: registered, in a file, or imported."""
    if name in REWARDS:
        registered = REWARDS[name]
        return registered if inspect.isfunction(registered) else type(registered)
    path, colon, attribute = str(name).partition(":")
    if colon or path.endswith(".py"):
        place = user_path(file or path)
        if not place.is_file():
            said = f'Reward "{name}": there is no file {place}'
            raise BadInput(f"{said}: put it beside the recipe.", "reward")
        module = _run(place.resolve(), place.stat().st_mtime_ns)
    else:
        path, _, attribute = LEARNED.get(name, str(name)).rpartition(".")
        if not path:
            hint = f'{nearest(name, [*REWARDS, *LEARNED])} One of your own: "my_rewards.py:{name}".'
            raise BadInput(f'There is no reward "{name}": {hint}', "reward")
        try:
            module = importlib.import_module(path)
        except (ImportError, TypeError, ValueError) as error:
            raise BadInput(f'Reward "{name}" cannot be imported: {error}.') from error
    if not hasattr(module, attribute):
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", 0) == module.__name__]
        hint = nearest(attribute, own or [n for n in dir(module) if n[:1] != "_"])
        raise BadInput(f'{path} has no reward "{attribute}": {hint}')
    target = getattr(module, attribute)
    if not callable(target):
        raise BadInput(f'Reward "{name}" is a {type(target).__name__}, which cannot be called.')
    return target


@functools.lru_cache
def _run(file: Path, stamp: int) -> Any:
    """A Python file as a module, run once as long as it does not change."""
    title = f"{_OF_A_FILE}{file.stem}_{hashlib.sha256(bytes(file)).hexdigest()[:8]}"
    # As for a script, what lies beside it can be imported, here with a dot before it, too.
    beside = [str(file.parent)]
    sys.path += [folder for folder in beside if folder not in sys.path]
    spec = importlib.util.spec_from_file_location(title, file, submodule_search_locations=beside)
    module = sys.modules[title] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (BadInput, KeyboardInterrupt):
        del sys.modules[title]
        raise
    except BaseException as error:  # whatever a user's file may raise, sys.exit() included
        del sys.modules[title]
        line = getattr(error, "lineno", 0) or traceback.extract_tb(error.__traceback__)[-1].lineno
        said = f"{type(error).__name__}: {first_line(error)}, line {line}"
        raise BadInput(f"{file.name} cannot be run ({said}): fix it.", "reward") from error
    for name, function in REWARDS.items():  # @reward("short") makes "my_rewards.py:short" a name
        if function.__module__ == title:
            rule = function if inspect.isfunction(function) else type(function)
            vars(module).setdefault(name, rule)
    return module


# --- the registry ------------------------------------------------------------------------------


def reward(name: str) -> Callable:
    """Registers the function or class below it by `name`, in this process.

        @reward("ends_politely")
        def ends_politely(prompts, completions, **columns):
            return [float("thank" in text[-80:]) for text in completion_texts(completions)]

    `columns` are the data set's, and TRL's `completion_ids`, `trainer_state`, …; other parameters
    may be set in a recipe. A class has such a `__call__`, and a constructor whose arguments are the
    reward's parameters, each with a default. What is decorated comes back unchanged, but for a
    function's `__name__`, under which TRL logs it. Running a notebook cell again replaces what it
    registered; another module's name is refused (BadInput). A recipe names a function by its file:
    "my_rewards.py:ends_politely".
    """
    if not isinstance(name, str) or not name or "." in name or ":" in name:
        raise BadInput(f'@reward needs a name without dots, @reward("my_reward"), not {name!r}.')

    def register(what):
        if not inspect.isfunction(what) and not inspect.isclass(what):
            raise BadInput(f'@reward("{name}") stands above a function or class, not {what!r}.')
        owner = LEARNED.get(name) or getattr(REWARDS.get(name, what), "__module__", "")
        if owner != what.__module__ and not owner.startswith(_OF_A_FILE):
            raise BadInput(f'The reward name "{name}" is taken by {owner}: choose another name.')
        REWARDS[name] = with_name(what if inspect.isfunction(what) else _instance(what, name), name)
        return what

    return register


def _instance(reward_class: type, name: str, **parameters: Any) -> Callable:
    try:
        reward = reward_class(**parameters)
        if not callable(reward):
            raise TypeError("it has no __call__")
        return reward
    except BadInput:
        raise
    except Exception as error:  # what a user's class may raise
        hint = "give every parameter a default, and it a __call__(prompts, completions, **columns)"
        said = f'Reward "{name}" cannot be built ({type(error).__name__}: {first_line(error)})'
        raise BadInput(f"{said}: {hint}.", "reward") from error


def with_name(function: Callable, name: str) -> Callable:
    """The same reward with `__name__` set (also on a frozen dataclass): TRL logs under it."""
    try:
        object.__setattr__(function, "__name__", name)
    except AttributeError:  # it has __slots__
        return Bound(name, function)
    return function


def completion_texts(completions: Sequence) -> list[str]:
    """The text of each completion, plain (a string) or conversational (a list of messages)."""
    return [message_text(completion) for completion in completions]


REWARDS.update({name: _rule(name, {}, {}) for name in RULES})


# --- calling them ------------------------------------------------------------------------------


class Checked:
    """The same reward, by the same name, whose answers can be trusted; async ones are awaited.

    Each call gets copies, so that a reward that edits what it is given changes nothing. BadInput
    where it raised, gave too few or too many values, or one that is neither a number nor None.
    """

    def __init__(self, function: Callable):
        self.reward = function
        self.__name__ = function.__name__

    def __call__(self, /, completions: Sequence, **columns) -> list[float | None]:
        name, count = self.__name__, len(completions)
        if not inspect.isfunction(self.reward):
            columns.pop("self", None)  # a column of this name would take an object's own place
        given = {"completions": completions} | columns
        try:
            values = self.reward(**{key: _copied(key, value) for key, value in given.items()})
            if inspect.iscoroutine(values):
                with ThreadPoolExecutor(1) as pool:  # a notebook's own thread has a loop already
                    values = pool.submit(asyncio.run, values).result()
            if isinstance(values, str | bytes | Mapping | set) or not hasattr(values, "__iter__"):
                raise TypeError(f"it returned a {type(values).__name__}, not a list of numbers")
            values = list(islice(values, count + 1))
        except (BadInput, KeyboardInterrupt):
            raise
        except BaseException as error:  # whatever a user's function may raise, sys.exit() included
            said = f"{type(error).__name__} ({first_line(error)}) in {_place(error, self.reward)}"
            said = f'The reward "{name}" failed with {said}'
            raise BadInput(f"{said}: fix it.", "reward-failed") from error
        if len(values) != count:
            few = str(len(values)) if len(values) < count else "more"
            said = f'The reward "{name}" returned {few} values for {count} completions'
            raise BadInput(f"{said}: let it return one for each, in their order.", "reward-count")
        return [value if value is None else self._number(value) for value in values]

    def _number(self, value: Any) -> float:
        try:
            number = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if abs(number) <= MOST:
            return number
        said = f'The reward "{self.__name__}" returned {repr(value)[:60]}'
        hint = "let it return a finite number (to 1e15), or None for what it cannot judge"
        raise BadInput(f"{said}: {hint}.", "reward-value")


def _copied(name: str, value: Any) -> Any:
    if name == "completion_ids":  # many, and numbers: no need to go deep
        return [list(ids) for ids in value]
    return copy.deepcopy(value) if isinstance(value, list) else value


def _place(error: BaseException, reward: Callable) -> str:
    """The line of the reward that raised it, or called what did: "rewards.py, line 12"."""
    frames = traceback.extract_tb(error.__traceback__)
    passing = ("/asyncio/", "/concurrent/", Path(__file__).as_posix())
    own = [f for f in frames if not any(part in Path(f.filename).as_posix() for part in passing)]
    if not own and (code := getattr(inspect.unwrap(reward), "__code__", None)):
        return f"{Path(code.co_filename).name}, line {code.co_firstlineno}"
    frame = (own or frames)[0]
    return f"{Path(frame.filename).name}, line {frame.lineno}"


def score(
    rewards: Sequence[Callable], rows: Sequence[dict], answers: Sequence[Any]
) -> dict[str, list[float]]:
    """Each reward's value for each completion, called as TRL calls it; None becomes NaN."""
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    columns["prompts"] = columns.pop("prompt")
    columns["completions"] = [[{"role": "assistant", "content": a.text}] for a in answers]
    columns["completion_ids"] = [list(a.token_ids) for a in answers]
    # What TRL gives beside the columns, as before the first step.
    columns["trainer_state"] = SimpleNamespace(global_step=0, epoch=0.0, log_history=[])
    columns |= dict.fromkeys(("log_extra", "log_metric"), lambda *values: None)
    paid = {function.__name__: Checked(function)(**columns) for function in rewards}
    return {k: [math.nan if v is None else v for v in values] for k, values in paid.items()}


def total(scores: Iterable[float | None], weights: Sequence[float]) -> float | None:
    """What a completion earns: its rewards by their weights, without those that could not judge
    (None or NaN); None where none could."""
    pairs = zip(scores, weights, strict=True)
    known = [value * weight for value, weight in pairs if value is not None and value == value]
    return float(sum(known)) if known else None


def totals(scores: Mapping[str, Sequence[float]], weights: Sequence[float]) -> Any:
    """What each completion earns, as an array; 0 where no reward could judge it."""
    import numpy as np

    return np.array([total(each, weights) or 0.0 for each in zip(*scores.values(), strict=True)])


def paid_parts(
    rewards: Mapping[str, float | None], weights: Mapping[str, float]
) -> dict[str, float | None]:
    """The parts that add up to a completion's total: each reward times its weight. One without a
    weight counts once; one of weight 0 is only shown, as "name (not paid)"."""
    parts = {}
    for name, value in rewards.items():
        weight = weights.get(name, 1.0)
        title = f"{weight:g} × {name}" if weight not in (0, 1) else name
        paid = None if value is None else round((weight or 1.0) * value, 4)
        parts[title if weight else f"{name} (not paid)"] = paid
    return parts


def temptations(row: Mapping[str, Any], form: PromptFormat) -> dict[str, str]:
    """Completions of one prompt by what they are: the right one, and ways to look like it."""
    tag, gold = form.answer_tag or "answer", row["answer"]
    think = f"<{form.think_tag}>It is easy.</{form.think_tag}>\n" if form.think_tag else ""

    def tagged(answer: str) -> str:
        return f"{think}<{tag}>{answer}</{tag}>"

    return {
        "right": tagged(gold),
        "right, without tags": gold,
        "wrong": tagged("7919"),
        "tags without content": tagged(""),
        "right, only in the reasoning": f"It is {gold}. {tagged('')}",
        "many answers": tagged(f"1 2 3 4 5 {gold}"),
        "two answers, the last one right": f"{tagged('7919')} {tagged(gold)}",
        "two answers, the first one right": f"{tagged(gold)} {tagged('7919')}",
        "denied": tagged(f"not {gold}"),
        "the question again": row["question"],
        "nothing": "",
    }
