"""Which prompts a step asks: by the preflight's pass rates, and where groups have no signal."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from lib.config import resolve
from lib.engines import chat_text
from lib.files import append_jsonl, read_jsonl, write_json
from lib.tasks import get_task
from lib.tasks.prompts import make_rows
from lib.training import train
from lib.training.rollouts import (
    DynamicSampling,
    choose_rows,
    is_alike,
    prompt_order,
    resample,
)
from tests.conftest import CPU, refuses

ROWS = make_rows(get_task("small_sums", {"largest": 9}).load("train"), "answer")
ROWS = [row | {"scores": "mine"} for row in ROWS]
PROMPTS = {row["id"]: row["prompt"] for row in ROWS}


@pytest.mark.parametrize(
    ("totals", "alike"),
    [
        ((1, 1), True),
        ((0, 0.5), False),
        ((None, None), True),
        ((None, 2), True),
        ((1, 1 + 1e-9), True),
    ],
)
def test_which_groups_differ(totals, alike):
    assert is_alike(totals) is alike


def groups(*names: str) -> list:
    """Two completions a prompt; those of prompts written in capitals differ."""
    return [[{"id": name, "total": float(i * name.isupper())} for i in (0, 1)] for name in names]


def test_only_groups_without_signal_are_replaced_and_none_in_vain():
    asked = []

    def sample(rows):
        asked.append([row["id"] for row in rows])
        return groups(*asked[-1])

    further = [{"id": name} for name in ("d", "E", "F", "G")]
    every, chosen = resample(groups("a", "B", "c"), further, sample)
    assert asked == [["d", "E"], ["F"]]  # as many as are missing, at each turn
    assert [every[group][0]["id"] for group in chosen] == ["E", "B", "F"]
    # What cannot be replaced stays.
    every, chosen = resample(groups("a", "b"), further[:2], lambda rows: groups("c", "D"))
    assert [every[group][0]["id"] for group in chosen] == ["D", "b"]
    assert resample(groups("a"), [], None)[1] == [0]


def test_further_prompts_follow_from_seed_step_and_what_was_seen(run):
    rows = [{"id": id} for id in "abcdefgh"]

    def order(sampling, step=3):
        return "".join(row["id"] for row in sampling.order(step, "ab"))

    further = DynamicSampling(None, rows, seed=1, budget=5)
    first = order(further)
    assert len(first) == 5 and not {"a", "b"} & set(first)
    assert first == order(DynamicSampling(None, rows, 1, 5))
    assert first != order(further, 4) and first != order(DynamicSampling(None, rows, 2, 5))
    further.saw(groups("c", "d", "e"))
    further.saw([[{"id": "d", "total": 0.0}, {"id": "d", "total": 1.0}]])
    assert further.dead == {"c": 1, "d": 0, "e": 1}
    assert set(order(further)[:4]) == set("dfgh")  # c and e were last without signal
    for step, differs in ((1, 1.0), (2, 0.0), (3, 0.0)):
        rows = [{"id": "h", "rewards": {"r": r}, "total": r} for r in (0.0, differs)]
        append_jsonl(run.rollouts / f"step_{step:05d}.jsonl", rows)
    further.recall(run, 2)
    assert further.dead == {"h": 1}


def pays(prompts, completions, id, scores, **_):
    """Differs within the group for every third prompt only; a column may be called as it likes."""
    assert {*scores} == {"mine"}
    return [float(i % 2) if hash_of(name) % 3 == 0 else 1.0 for i, name in enumerate(id)]


def hash_of(id: str) -> int:
    return sum(map(ord, id))


SETTINGS = dict(resample=3, shots=0, num_generations=2, micro_batch=2, max_completion_length=4)
SETTINGS |= dict(max_steps=4, save_steps=2)


@pytest.fixture
def trained(small_training):
    """`trained(max_steps=2)`: the trainer, and the run that it trained."""

    def make(reward=pays, rows=ROWS, **changes):
        trainer, config, run = small_training([reward], [0.5], rows=rows, **SETTINGS | changes)
        train(trainer, config, run)
        if trainer.engine:
            trainer.engine.engine.close()
        return trainer, run

    return make


def rollouts(run, step):
    return read_jsonl(run.rollouts / f"step_{step:05d}.jsonl")


@pytest.mark.parametrize(
    "changes",
    [
        {"rollout_engine": "vllm"},
        {"num_iterations": 2, "max_steps": 4, "shared_prompts": False},
    ],
    ids=str,
)
def test_a_run_trains_on_useful_groups_and_its_books_are_right(trained, changes):
    trainer, run = trained(**{"max_steps": 2} | changes)
    tokenizer = trainer.processing_class
    log, tokens = read_jsonl(run.train_log), 0
    assert [row["step"] for row in log] == ([1, 3] if "num_iterations" in changes else [1, 2])
    replaced = 0
    for entry in log:
        rows = rollouts(run, entry["step"])
        pairs = list(zip(rows[::2], rows[1::2], strict=True))
        useful = [hash_of(a["id"]) % 3 == 0 for a, _ in pairs]
        kept = [a["trained"] for a, _ in pairs]
        assert sum(kept) == 2 and all(a["id"] == b["id"] for a, b in pairs)
        assert entry["signal/tried"] == len(pairs) - 2 <= 3
        assert entry["signal/drawn"] == sum(useful[:2]) / 2
        both = [u and k for u, k in zip(useful, kept, strict=True)]
        assert entry["signal/trained"] == sum(both) / 2 == 1 - entry["frac_reward_zero_std"]
        assert sum(both) == min(2, sum(useful))
        replaced += entry["signal/tried"]
        # The log tells of the prompts as drawn.
        totals = [row["total"] for row in rows[:4]]
        assert entry["reward"] == pytest.approx(sum(totals) / 4)
        assert entry["rewards/pays/mean"] == pytest.approx(sum(totals) / 2)
        lengths = [row["tokens"] for row in rows[:4]]
        assert entry["completions/mean_length"] == pytest.approx(sum(lengths) / 4)
        for row in rows:
            assert (abs(row["advantage"]) > 0.1) is (row["trained"] and hash_of(row["id"]) % 3 == 0)
        asked = [chat_text(tokenizer, PROMPTS[row["id"]]) for row in rows]
        tokens += sum(len(ids) for ids in tokenizer(asked)["input_ids"])
        tokens += sum(row["tokens"] for row in rows)
        assert entry["num_tokens"] == tokens
    assert replaced > 0


def test_a_resumed_run_is_the_same_run(trained):
    _, run = trained()
    name = "checkpoint-4/adapter_model.safetensors"
    before, adapter = {s: rollouts(run, s) for s in (3, 4)}, load_file(run.checkpoints / name)
    shutil.rmtree(run.checkpoints / "checkpoint-4")
    for step in before:
        (run.rollouts / f"step_{step:05d}.jsonl").unlink()
    trained(resume=True)
    assert {s: rollouts(run, s) for s in (3, 4)} == before
    again = load_file(run.checkpoints / name)
    assert all(torch.equal(adapter[key], again[key]) for key in adapter)


def test_what_is_tried_are_the_prompts_meant_also_where_long_ones_are_left_out(trained):
    long = [{"role": "user", "content": "What is " + "1 + " * 400 + "1?"}]
    rows = [dict(ROWS[0], id=f"long/{i}", prompt=long) for i in range(3)] + ROWS

    def alike(completions, **_):
        return [1.0] * len(completions)

    _, run = trained(alike, rows, max_steps=1)
    asked = [row["id"] for row in rollouts(run, 1)[::2]]
    drawn, tried = asked[:2], asked[2:]
    order = DynamicSampling(None, ROWS, seed=0, budget=3).order(1, drawn)
    assert tried == [row["id"] for row in order] and len(tried) == 3


# --- by the preflight ----------------------------------------------------------

ASKED = [{"id": name} for name in "abcdef"]
RATES = {"a": 0.25, "b": 1.0, "c": 0.0, "d": 0.75, "e": 0.0}  # f was not measured


def chosen(run, **given):
    config = resolve(None, {"prompts_per_step": 2} | given, CPU)
    write_json(run.folder / "preflight.json", {"pass_rates": RATES, "drop": ["b", "c", "e"]})
    rows, told = choose_rows(ASKED, run, config)
    return "".join(row["id"] for row in rows), told


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, "abcdef"),
        ({"drop_dead": True}, "adf"),
        ({"drop_dead": True, "prompts_per_step": 4}, "abdf"),  # never below what a step takes
        ({"curriculum": "easy_first"}, "bdface"),  # the unmeasured in the middle
        ({"curriculum": "easy_first", "drop_dead": True}, "dfa"),
    ],
    ids=str,
)
def test_the_preflight_chooses_and_orders_the_prompts(run, given, names):
    chosen_names, told = chosen(run, **given)
    assert chosen_names == names
    if names == "adf":
        assert told.startswith("5 of 6 prompts were measured; 3 always right or always wrong")


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
    for _ in range(2):
        with refuses("no-pass-rates"):
            choose_rows(ASKED, run, resolve(None, given, CPU))
        write_json(run.folder / "preflight.json", {"pass_rates": {}, "drop": []})
