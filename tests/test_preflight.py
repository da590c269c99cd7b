"""The preflight's arithmetic and words on known samples, and the playground's handler."""

import numpy as np
import pytest

from lib.answers import grade
from lib.config import resolve
from lib.engines import Completion
from lib.errors import BadInput
from lib.files import read_json
from lib.notebook import table
from lib.plots.widgets import playground
from lib.preflight import keep, preflight, require_signal
from lib.rewards import build_rewards, temptations
from lib.tasks import get_task, make_rows
from lib.tasks.prompts import PROMPT_FORMATS
from tests.conftest import CPU

TASK = get_task("small_sums", {"largest": 9})
PROBLEMS = TASK.load("train")[:3]
ROWS = make_rows(PROBLEMS, "answer")


class Scripted:
    """An engine whose completions are written down here; the model itself runs in notebook 02."""

    def __init__(self, *groups):
        self.groups = groups

    def stream(self, prompts, sampling):
        for index, group in enumerate(self.groups[: len(prompts)]):
            yield index, [Completion(text, tuple(text.encode()), "stop") for text in group]


def run_preflight(*groups, unreadable=False, **parameters):
    given = {"num_generations": 2, "rewards": {"correctness": 0.5, "hard_format": 1.0}}
    config = resolve(None, {**given, "prompt_format": "answer", **parameters}, CPU)
    rewards, weights = build_rewards(config.rewards)
    rows = [row | {"answer": "n/a"} for row in ROWS] if unreadable else ROWS
    return preflight(Scripted(*groups), rows, rewards, weights, config, TASK, PROBLEMS)


def tagged(answer) -> str:
    return f"<answer>{answer}</answer>"


def test_figures_by_hand():
    golds = [row["answer"] for row in ROWS]
    found, samples = run_preflight(
        [tagged(golds[0]), "no idea"],  # differs
        [tagged(golds[1]), tagged(golds[1])],  # always right
        ["?", "?"],  # always wrong
    )
    assert found.signal == pytest.approx(1 / 3)
    assert found.format_rate == pytest.approx(3 / 6)
    assert list(found.pass_rates.values()) == [0.5, 1.0, 0.0]
    assert found.drop == [ROWS[1]["id"], ROWS[2]["id"]]
    # A right answer in its tags earns 0.5 · 2.0 + 1.0 · 0.25.
    assert [sample["total"] for sample in samples] == [1.25, 0, 1.25, 1.25, 0, 0]
    assert found.rewards["correctness"]["mean"] == 1.0
    assert found.rewards["total"]["zero_std"] == pytest.approx(2 / 3)
    assert found.verdict.startswith("Go: 33% of 3 groups differ")


def test_all_training_prompts_can_be_measured():
    assert run_preflight(*[["?", "?"]] * 3, preflight_prompts=2)[0].prompts == 2
    assert run_preflight(*[["?", "?"]] * 3, preflight_prompts=0)[0].prompts == 3


def test_a_dead_reward_is_said_and_stops_a_long_run(run):
    found, _ = run_preflight(["?", "?"], ["?", "?"], ["?", "?"])
    assert found.dead
    assert found.verdict.startswith("Stop: 0% of 3 groups differ within, and GRPO cannot learn")
    assert "add a worked example" in found.verdict
    assert "No preflight was run" in require_signal(run, resolve(None, {}, CPU))
    keep(found, run)
    assert read_json(run.folder / "preflight.json")["signal"] == 0
    with pytest.raises(BadInput, match="set ignore_preflight to True"):
        require_signal(run, resolve(None, {"max_steps": 100}, CPU))
    require_signal(run, resolve(None, {"max_steps": 2}, CPU))
    require_signal(run, resolve(None, {"max_steps": 100, "ignore_preflight": True}, CPU))


def test_golds_that_cannot_be_read_are_blamed_and_not_the_tags():
    found, _ = run_preflight(*[["?", "?"]] * 3, rewards={"correctness": 1.0}, unreadable=True)
    assert found.judged == 0 and found.dead and found.rewards["correctness"]["mean"] == 0
    assert "gold answer" in found.verdict and "tags" not in found.verdict


def test_too_easy_is_told_apart_from_too_hard():
    golds = [row["answer"] for row in ROWS]
    easy, _ = run_preflight(*[[tagged(gold)] * 2 for gold in golds])
    hard, _ = run_preflight(*[[tagged(-1)] * 2 for _ in golds])
    assert "too easy" in easy.verdict and "too hard" in hard.verdict


def test_the_playground_shows_totals_and_advantages_as_they_are_weighed():
    rewards, weights = build_rewards({"correctness": 0.5, "hard_format": 1.0})
    texts, shown = [tagged(ROWS[0]["answer"]), "?"], []

    def show(rows):
        shown.append(rows)
        return table(rows)

    box, _, correctness, _, scale, _ = playground(
        texts, ROWS[0], rewards, weights, show
    ).box.children
    [right, wrong] = shown[-1]
    assert right["0.5 × correctness"] + right["hard_format"] == right["total"] == 1.25
    assert wrong["total"] == 0
    assert right["advantage"] == pytest.approx(0.625 / np.std([1.25, 0], ddof=1), abs=1e-3)
    scale.value = False
    assert [row["advantage"] for row in shown[-1]] == [0.625, -0.625]
    correctness.value = 1.0
    assert shown[-1][0]["total"] == 2.25
    box.value = "typed"
    assert shown[-1][0]["completion"] == "typed"


@pytest.mark.parametrize("name", ["answer", "reasoning", "think"])
def test_only_the_right_temptation_is_right(name):
    form = PROMPT_FORMATS[name]
    tries = temptations(ROWS[0], form)
    right = [w for w, t in tries.items() if grade(t, ROWS[0]["answer"], "number", "answer").correct]
    assert right == ["right", "two answers, the last one right"]  # the last pair of tags counts


def test_tables_show_tags_leave_gaps_empty_and_whole_numbers_whole_beside_fractions():
    page = table([{"text": "<answer>18</answer>", "x": 0.123456}, {"text": "?"}]).to_html()
    assert "&lt;answer&gt;18&lt;/answer&gt;" in page
    assert "0.123" in page and "0.1234" not in page and "nan" not in page
    page = table([("rank", 16), ("norm", 1.2434)], ("adapter", "")).to_html()
    assert ">16<" in page and ">1.243<" in page
