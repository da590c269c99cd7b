"""What a reward function returns is checked, and what is wrong is told in a sentence."""

import pytest

from lib.errors import BadInput
from lib.rewards.calls import Checked


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
        (
            lambda: 1 / 0,
            r"failed with ZeroDivisionError \(division by zero\) in test_reward_calls.py",
        ),
    ],
)
def test_a_wrong_reward_is_told_in_a_sentence(values, sentence):
    with pytest.raises(BadInput, match=sentence):
        called(values)
