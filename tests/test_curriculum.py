"""What the preflight measured decides what is trained on, and in what order."""

import pytest

from lib.config import resolve
from lib.errors import BadInput
from lib.runs import write_json
from lib.training.rollouts import choose_rows, prompt_order
from tests.conftest import CPU

ROWS = [{"id": name} for name in "abcdef"]
RATES = {"a": 0.25, "b": 1.0, "c": 0.0, "d": 0.75, "e": 0.0}  # f was not measured


def chosen(run, **given):
    config = resolve(None, {"prompts_per_step": 2} | given, CPU)
    write_json(run.folder / "preflight.json", {"pass_rates": RATES, "drop": ["b", "c", "e"]})
    rows, told = choose_rows(ROWS, run, config)
    return "".join(row["id"] for row in rows), told


def test_by_default_the_preflight_changes_nothing(run):
    assert chosen(run)[0] == "abcdef"


def test_prompts_without_signal_are_dropped(run):
    names, told = chosen(run, drop_dead=True)
    assert names == "adf"
    assert told.startswith("5 of 6 prompts were measured; 3 always right or always wrong")


def test_never_below_what_a_step_takes(run):
    assert chosen(run, drop_dead=True, prompts_per_step=4)[0] == "abdf"


def test_easy_ones_come_first_and_the_unmeasured_in_the_middle(run):
    assert chosen(run, curriculum="easy_first")[0] == "bdface"
    assert chosen(run, curriculum="easy_first", drop_dead=True)[0] == "dfa"


def order(**given) -> list[int]:
    return prompt_order(5, resolve(None, {"prompts_per_step": 2, "max_steps": 4} | given, CPU))


def test_each_epoch_has_an_order_of_its_own_and_a_curriculum_the_rows():
    places = order()
    assert len(places) == 4 * 2 and len(set(places[:4])) == len(set(places[4:])) == 4
    assert places[:4] != places[4:] and places == order() != order(seed=1)
    assert order(max_steps=9)[:8] == places, "a run may become longer and goes on in its order"
    assert order(num_iterations=2) == places[:4], "each batch serves two steps"
    assert order(curriculum="easy_first") == [0, 1, 2, 3] * 2


@pytest.mark.parametrize("given", [{"drop_dead": True}, {"curriculum": "easy_first"}], ids=str)
def test_without_pass_rates_neither_is_possible(run, given):
    config = resolve(None, given, CPU)
    with pytest.raises(BadInput, match="run 02_reward_design for this run first"):
        choose_rows(ROWS, run, config)
    write_json(run.folder / "preflight.json", {"pass_rates": {}, "drop": []})
    with pytest.raises(BadInput, match="need the pass rates"):
        choose_rows(ROWS, run, config)
