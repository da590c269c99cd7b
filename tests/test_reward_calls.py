"""What a reward function returns is checked, and what is wrong is told in a sentence."""

import os

import pytest

from lib.config import ROOT, resolve
from lib.errors import BadInput
from lib.rewards import REWARDS, Checked, build_rewards, recipe_rewards
from tests.conftest import CPU


def called(values):
    def mine(completions, **columns):
        return values() if callable(values) else values

    return Checked(mine)(completions=["a", "b"], prompts=["p", "p"])


def test_a_right_reward_is_left_as_it_is():
    import numpy as np

    assert called([1, None]) == [1.0, None]
    assert called(np.array([0.5, 1.0])) == [0.5, 1.0]
    assert called(iter([True, False])) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([1.0], 'The reward "mine" returned 1 values for 2 completions'),
        ([1.0, "good"], "The reward \"mine\" returned 'good', which is no number"),
        ([1.0, "2"], "returned '2', which is no number"),
        ([float("inf"), 1.0], "returned inf, which is no number"),
        ([float("nan"), 1.0], "returned nan, which is no number"),
        ([[1.0], 1.0], "which is no number"),
        (None, 'The reward "mine" failed with TypeError'),
        ({"a": 1.0, "b": 2.0}, "it returned a dict"),
        ({1.0, 2.0}, "it returned a set"),
        ("12", "it returned a str"),
        (
            lambda: 1 / 0,
            r"failed with ZeroDivisionError \(division by zero\) in test_reward_calls.py",
        ),
    ],
)
def test_a_wrong_reward_is_told_in_a_sentence(values, sentence):
    with pytest.raises(BadInput, match=sentence):
        called(values)


def test_an_async_reward_is_awaited_also_where_a_loop_runs():
    import asyncio

    async def mine(completions, **columns):
        await asyncio.sleep(0)
        return [float(len(completions))] * len(completions)

    async def notebook():
        return Checked(mine)(completions=["a", "b"])

    assert Checked(mine)(completions=["a", "b"]) == asyncio.run(notebook()) == [2.0, 2.0]

    async def broken(completions, **columns):
        return [1 / 0]

    with pytest.raises(BadInput, match=r"ZeroDivisionError .* in test_reward_calls.py"):
        Checked(broken)(completions=["a"])


def test_a_reward_that_edits_what_it_is_given_changes_nothing():
    def mine(completions, answer, **columns):
        completions[0][0]["content"] = "edited"
        answer.clear()
        return [completions.pop() and 1.0 for _ in range(2)]

    completions = [[{"role": "assistant", "content": text}] for text in "ab"]
    answers = ["1", "2"]
    assert Checked(mine)(completions=completions, answer=answers) == [1.0, 1.0]
    assert [c[0]["content"] for c in completions] == ["a", "b"] and answers == ["1", "2"]


def test_columns_may_have_any_name():
    names = ("self", "score", "parameters", "function", "right", "value", "tags", "name", "given")
    columns = {name: ["x", "x"] for name in names}
    for name in REWARDS:
        [function], _ = build_rewards({name: {}})
        given = dict(completions=["a", "b"], answer=["1", "2"], completion_ids=[[1], [2]])
        given["kind"] = ["number", "number"]
        assert Checked(function)(**given, **columns) == Checked(function)(**given), name


# --- a file of one's own -------------------------------------------------------------------------

FILE = """
from lib.rewards import reward

def short(prompts, completions, limit=5, **columns):
    return [float(len(c[0]["content"]) <= limit) for c in completions]

NUMBER = 5
"""


def test_a_recipe_names_a_function_in_a_file_beside_it(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(FILE)
    (tmp_path / "mine.yaml").write_text(
        "rewards:\n  my_rewards.py:short: {weight: 0.5, limit: 2}\n  correctness: 1.0\n"
    )
    monkeypatch.chdir(ROOT / "notebooks")
    config = resolve(tmp_path / "mine.yaml", {}, CPU)
    (short, _), weights = recipe_rewards(config)
    assert recipe_rewards(config)[0][0] is short  # built once
    texts = [[{"role": "assistant", "content": text}] for text in ("ab", "abc")]
    assert (short.__name__, weights) == ("short", [0.5, 1.0])
    assert Checked(short)(prompts=None, completions=texts) == [1.0, 0.0]
    (tmp_path / "my_rewards.py").write_text(FILE.replace("<=", ">"))
    os.utime(tmp_path / "my_rewards.py", (1, 1))
    [again, _], _ = recipe_rewards(config)
    assert Checked(again)(prompts=None, completions=texts) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.py:shrt", FILE, 'did you mean "short"'),
        ("a.py:NUMBER", FILE, "cannot be called"),
        ("a.py:short", "import nowhere_at_all", r"ModuleNotFoundError.*line 1"),
        ("a.py:short", "def short(:\n", r"SyntaxError.*line 1"),
        ("b.py:short", FILE, "there is no file"),
    ],
)
def test_a_file_that_does_not_work_is_named(tmp_path, name, text, sentence):
    (tmp_path / "a.py").write_text(text)
    with pytest.raises(BadInput, match=sentence):
        build_rewards({f"{tmp_path}/{name}": 1.0})
