"""The registry of rewards, and what all of them share.

    @reward("ends_politely")
    def ends_politely(prompts, completions, **columns):
        return [float("thank" in text[-80:]) for text in completion_texts(completions)]

A recipe then asks for "ends_politely"; and REWARDS["ends_politely"] is the function.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence

from lib.errors import BadInput

# Every value is ready to be called with TRL's signature,
# f(prompts, completions, **columns) -> list[float | None]; a class is here with its defaults.
REWARDS: dict[str, Callable] = {}


def reward(name: str) -> Callable:
    """Registers the function or class below it, so that a recipe can ask for it by `name`.

    A function takes `prompts, completions, **columns` (the data set's columns, and TRL's
    `completion_ids`, `trainer_state`, …) and returns one float a completion, or None where the
    completion cannot be judged. A class has such a `__call__`; the arguments of its constructor
    are the reward's parameters, and each needs a default. What is decorated comes back
    unchanged, but for a function's `__name__`, under which TRL logs it.

    Running a notebook cell again replaces what it registered before. A name that another
    module has taken stays with it.

    Raises:
        BadInput: a name that is none, is taken, or a class that its defaults cannot build.
    """
    if not isinstance(name, str) or not name or "." in name:
        raise BadInput(f'@reward needs a name without dots, @reward("my_reward"), not {name!r}.')

    def register(what):
        if not inspect.isfunction(what) and not inspect.isclass(what):
            raise BadInput(f'@reward("{name}") stands above a function or class, not {what!r}.')
        owner = REWARDS[name].__module__ if name in REWARDS else what.__module__
        if owner != what.__module__:
            raise BadInput(f'The reward name "{name}" is taken by {owner}: choose another name.')
        REWARDS[name] = with_name(what if inspect.isfunction(what) else build(what, name), name)
        return what

    return register


def build(reward_class: type, name: str, **parameters) -> Callable:
    """An instance of a reward class, called `name` in messages.

    Raises:
        BadInput: the class asks for parameters that are not given.
    """
    try:
        return reward_class(**parameters)
    except TypeError as error:
        raise BadInput(
            f'The reward class "{name}" cannot be built ({error}): give every parameter a default.'
        ) from error


def with_name(reward: Callable, name: str) -> Callable:
    """The same reward with `__name__` set (also on a frozen dataclass): TRL logs under it."""
    object.__setattr__(reward, "__name__", name)
    return reward


def completion_texts(completions: Sequence) -> list[str]:
    """The text of each completion, plain (a string) or conversational (a list of messages).

    Of several messages (a dialogue with tools) the last one counts, since it holds the answer.
    None is an empty text.
    """
    return [_text(completion) for completion in completions]


def _text(completion) -> str:
    if isinstance(completion, str):
        return completion
    if completion is None:
        return ""
    if isinstance(completion, Mapping):  # a message, or one typed part of a message
        return _text(completion.get("content", completion.get("text")))
    messages = list(completion)
    if all(isinstance(message, Mapping) and "content" in message for message in messages):
        return _text(messages[-1]) if messages else ""
    return "".join(map(_text, messages))  # a message's content in typed parts


def need_column(columns: Mapping, name: str, reward: Callable, where: str) -> Sequence:
    """A column that a reward cannot do without.

    Raises:
        BadInput: it is missing; `where` says where it comes from.
    """
    if columns.get(name) is None:
        title = getattr(reward, "__name__", type(reward).__name__)
        raise BadInput(f'The reward "{title}" needs the column "{name}": {where}.')
    return columns[name]
