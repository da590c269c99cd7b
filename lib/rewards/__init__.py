"""Rewards for GRPO by name, with weights and parameters, as a recipe writes them.

    functions, weights = build_rewards(
        {
            "correctness": 1.0,
            "gated_format": {"weight": 0.5, "gate": "correct"},
            "my_package.my_module.my_reward": 0.0,
        }
    )
    functions[0](prompts=None, completions=["<answer>$18</answer>"], answer=["18"])
    [2.0]

Each function has TRL's signature, `f(prompts, completions, **columns)`, and returns one float a
completion, or None where the gold answer cannot be parsed. Each keeps the numbers of the project
that it comes from (`correctness` pays 2.0), and the recipe's weight multiplies them; weight 0
logs a reward without paying it. A reward of one's own is registered with `@reward("name")`.

The rooms: `answers` (is it right), `format` (tags), `reasoning` (steps, arithmetic, language),
`length` (length, repetition), `model` (learned).
"""

import importlib
import inspect
import math
from collections.abc import Callable, Mapping

from lib.config import Config
from lib.errors import BadInput, nearest
from lib.rewards import answers, format, length, model, reasoning  # noqa: F401
from lib.rewards.base import REWARDS, build, completion_texts, reward, with_name
from lib.rewards.model import LearnedReward
from lib.runs import run_folder
from lib.tasks.prompts import get_format

__all__ = [
    "REWARDS",
    "build_rewards",
    "completion_texts",
    "learned_rewards",
    "recipe_rewards",
    "reward",
]


def recipe_rewards(config: Config) -> tuple[list[Callable], list[float]]:
    """The rewards of a recipe and their weights, told its prompt's tags and its run's folder."""
    form = get_format(config.prompt_format)
    return build_rewards(
        config.rewards,
        tags=form.answer_tag,
        think_tag=form.think_tag,
        max_completion_length=config.max_completion_length,
        run_folder=str(run_folder(config)),
    )


def learned_rewards(config: Config) -> list[LearnedReward]:
    """Those of a recipe's rewards that are reward models."""
    return [reward for reward in recipe_rewards(config)[0] if isinstance(reward, LearnedReward)]


def build_rewards(
    spec: Mapping[str, float | Mapping],
    tags: str | None = "answer",
    think_tag: str | None = None,
    max_completion_length: int | None = None,
    run_folder: str | None = None,
) -> tuple[list[Callable], list[float]]:
    """The reward functions of a recipe and their weights, for `GRPOTrainer` and `GRPOConfig`.

    Args:
        spec: name → weight, or name → {"weight": 1.0, and the reward's own parameters}. A name
            is one of `REWARDS`, or the import path of a function, class or object.
        tags: the tag that the answer must stand in, or None to search free text for it.
        think_tag: the tag of the reasoning; None leaves each reward the one of its project.
        max_completion_length: in tokens, for the rewards that measure against the limit.
        run_folder: where a learned reward finds the model that this run trained.
            These four reach every reward that has such a parameter and is not given it in spec.

    Returns:
        (functions, weights), as long as `spec` and in its order.

    Raises:
        BadInput: an unknown name or parameter (the nearest one is named), a weight that is no
            number, or two rewards that would be logged under one name.
    """
    if not isinstance(spec, Mapping) or not spec:
        raise BadInput(f'rewards is {spec!r}: write names and weights, {{"correctness": 1.0}}.')
    shared = {"tags": tags, "answer_tag": tags, "think_tag": think_tag}
    shared |= {"max_completion_length": max_completion_length, "run_folder": run_folder}
    # tags=None says something (search free text); the others then keep their defaults.
    shared = {key: value for key, value in shared.items() if key == "tags" or value is not None}
    functions, weights = [], []
    for name, entry in spec.items():
        parameters = dict(entry) if isinstance(entry, Mapping) else {"weight": entry}
        weights.append(_weight(name, parameters.pop("weight", 1.0)))
        functions.append(_build(name, parameters, shared))
    names = [function.__name__ for function in functions]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f'Two rewards are called "{name}", and TRL would log them as one.')
    return functions, weights


def _weight(name: str, weight) -> float:
    if not _is_number(weight):
        raise BadInput(
            f'The weight of reward "{name}" is {weight!r}: give a number (0 to log it only).'
        )
    return float(weight)


def _build(name: str, parameters: dict, shared: dict) -> Callable:
    found = _find(name)
    if not isinstance(found, type):
        _check_parameters(name, parameters, {})
        return found if hasattr(found, "__name__") else with_name(found, name.split(".")[-1])
    known = dict(inspect.signature(found).parameters)
    _check_parameters(name, parameters, known)
    parameters = {key: value for key, value in shared.items() if key in known} | parameters
    return with_name(build(found, name, **parameters), name.split(".")[-1])


def _check_parameters(name: str, parameters: dict, known: dict[str, inspect.Parameter]) -> None:
    for key, value in parameters.items():
        if key not in known:
            raise BadInput(f'Reward "{name}" has no parameter "{key}": {nearest(key, known)}')
        if _is_number(known[key].default) and not _is_number(value):
            raise BadInput(f'{key} of reward "{name}" is {value!r}: give a number.')


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _find(name: str):
    """The class or function that a recipe's name means: registered, or at an import path."""
    if name in REWARDS:
        found = REWARDS[name]
        return found if inspect.isfunction(found) else type(found)
    module, _, attribute = str(name).rpartition(".")
    if not module:
        raise BadInput(f'There is no reward "{name}": {nearest(name, REWARDS)}')
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise BadInput(f'Reward "{name}" cannot be imported: {error}.') from error
    if not callable(found):
        raise BadInput(f'Reward "{name}" is a {type(found).__name__}, which cannot be called.')
    return found
