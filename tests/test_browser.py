"""The rollout browser: which completions, in which order, and two steps beside each other."""

import pytest

from lib.files import append_jsonl
from lib.notebook import table
from lib.plots.widgets import browse, browser, two_steps
from lib.rewards import paid_parts
from lib.runs import read_rollouts, rollout_steps


def row(step, prompt, text, correctness, advantage, **others):
    return {
        "step": step,
        "id": prompt,
        "question": f"What is {prompt}?",
        "answer": "4",
        "completion": text,
        "rewards": {"correctness": correctness, "digit": 0.5},
        "total": (correctness or 0) + 0.5,
        "advantage": advantage,
        "tokens": len(text),
        "truncated": False,
        **others,
    }


FIRST = [
    row(1, "2+2", "a", 0.0, -0.5),
    row(1, "2+2", "bb", 1.0, 1.5),
    row(1, "1+3", "ccc", None, 0.0, truncated=True),
    row(1, "1+3", "dddd", 0.5, 0.3),
]
LATER = [row(7, "2+2", "ee", 1.0, 0.2), row(7, "2+2", "ff", 0.0, -0.2)]


@pytest.fixture
def kept(run):
    for rows in (LATER, FIRST):
        append_jsonl(run.rollouts / f"step_{rows[0]['step']:05d}.jsonl", rows)
    return run


def texts(rows) -> list[str]:
    return [row["completion"] for row in rows]


def test_steps_are_read_in_order(kept):
    assert rollout_steps(kept) == [1, 7]
    assert read_rollouts(kept, 7) == LATER
    assert read_rollouts(kept, 2) == []


def test_a_run_that_noted_no_totals_can_be_read(run):
    bare = {key: FIRST[2][key] for key in ("step", "id", "answer", "completion", "rewards")}
    append_jsonl(run.rollouts / "step_00001.jsonl", [bare | {"advantage": 1.0}])
    [found] = browse(read_rollouts(run, 1))
    assert found["total"] == 0.5 and found["question"] == "1+3"


def test_two_steps_two_steps():
    rows = two_steps(FIRST, LATER, prompt="2+2")
    assert [(r["completion, step 1"], r["completion, step 7"]) for r in rows] == [
        ("bb", "ee"),
        ("a", "ff"),
    ]
    assert browse([]) == []
    uneven = two_steps(FIRST, LATER)
    assert len(uneven) == 4 and "completion, step 7" not in uneven[3]
    assert texts_of(two_steps([], LATER), 7) == ["ee", "ff"]


def texts_of(rows, step) -> list[str]:
    return [row[f"completion, step {step}"] for row in rows]


def test_the_widgets_show_what_is_chosen(kept):
    shown = []
    box = browser(kept, show=lambda rows: shown.append(rows) or rows)
    step, other, prompt, sort, descending, _ = box.box.children
    assert texts(shown[-1]) == ["ee", "ff"]  # the last step
    descending.value = False
    assert texts(shown[-1]) == ["ff", "ee"]
    step.value, descending.value = 1, True
    assert texts(shown[-1]) == ["bb", "dddd", "ccc ✂", "a"]
    assert [label for label, _ in prompt.options] == ["all", "What is 2+2?", "What is 1+3?"]
    prompt.value = "1+3"
    assert texts(shown[-1]) == ["dddd", "ccc ✂"]
    prompt.value, sort.value = None, "correctness"
    assert texts(shown[-1]) == ["bb", "dddd", "a", "ccc ✂"]
    descending.value = False
    assert texts(shown[-1]) == ["a", "dddd", "bb", "ccc ✂"]  # a row without the reward comes last
    sort.value = "tokens"
    assert texts(shown[-1]) == ["a", "bb", "ccc ✂", "dddd"]
    sort.value, descending.value = "correctness", True
    other.value = 7
    assert texts_of(shown[-1][:1], 7) == ["ee"]


def test_an_executed_page_shows_the_first_state_and_a_live_one_the_widget(kept, monkeypatch):
    def mimes() -> dict:
        return browser(kept, show=table)._repr_mimebundle_()

    live = mimes()
    assert "application/vnd.jupyter.widget-view+json" in live and "VBox" not in live["text/plain"]
    monkeypatch.setenv("GRPO_WORKING_DIR", ".")
    page = mimes()
    assert page.keys() == {"text/html", "text/plain"}
    assert ">ee<" in page["text/html"] and "Run this cell" in page["text/html"]


def test_what_is_paid_adds_up_to_the_total():
    row = {"correctness": 2.0, "digit": 0.5, "length": 40.0, "judge": None}
    parts = paid_parts(row, {"correctness": 0.5, "length": 0})
    assert parts == {"0.5 × correctness": 1.0, "digit": 0.5, "length (not paid)": 40, "judge": None}
