"""Held-out accuracy during training: what is set aside, measured, logged and kept."""

import pytest

from lib.config import resolve
from lib.errors import BadInput
from lib.rewards import build_rewards
from lib.runs import open_run, read_json, read_jsonl
from lib.tasks import get_task, make_rows
from lib.tasks.prompts import get_format
from lib.training.callbacks import StepLog
from lib.training.validation import Validation, set_aside
from tests.conftest import CPU


def config_of(folder, **changes):
    given = {"output_dir": str(folder), "profile": "cpu", "backend": "transformers"}
    return resolve("ci", given | changes, CPU)


def test_nothing_is_set_aside_unless_asked_for(tmp_path):
    problems = get_task("small_sums", {"largest": 9}).load("train")
    assert set_aside(problems, config_of(tmp_path)) == (problems, [])


def test_no_problem_is_both_trained_on_and_validated_on(tmp_path):
    problems = get_task("small_sums", {"largest": 9}).load("train")
    config = config_of(tmp_path, validation_steps=1, validation_problems=5)
    training, held_out = set_aside(problems, config)
    assert len(held_out) == 5 and len(training) == len(problems) - 5
    assert not {p.question for p in training} & {p.question for p in held_out}
    greedy = config_of(tmp_path, validation_steps=1, validation_problems=1000)
    assert len(set_aside(problems, greedy)[1]) == len(problems) // 4


def test_keeping_the_best_needs_a_validation(tmp_path):
    with pytest.raises(BadInput, match="keep best needs a validation"):
        config_of(tmp_path, keep="best")


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_validation_is_logged_and_the_best_adapter_kept(tmp_path, embedded, engine):
    from safetensors.torch import load_file

    from lib.models import load_policy
    from lib.training.run import make_trainer, save_trained, train

    given = dict(validation_steps=1, validation_problems=3, keep="best", rollout_engine=engine)
    config = config_of(tmp_path, **given, shots=1)
    run = open_run(config)
    task = get_task(config.task, config.task_config)
    training, held_out = set_aside(task.load("train"), config)
    rows = make_rows(training, config.prompt_format, 0, [])
    form = get_format(config.prompt_format)
    rewards, weights = build_rewards(config.rewards, form.answer_tag, form.think_tag)
    policy = load_policy(config)
    trainer = make_trainer(policy, rows, rewards, weights, config, run)
    asked = make_rows(held_out, config.prompt_format, 0, [])
    log = next(c for c in trainer.callback_handler.callbacks if isinstance(c, StepLog))
    rollouts = trainer.engine.engine if engine == "vllm" else None
    validation = Validation(policy, held_out, asked, task, config, run, log, rollouts)
    trainer.add_callback(validation)
    train(trainer, config, run)

    log = read_jsonl(run.train_log)
    answers = read_jsonl(run.evals / "validation.jsonl")
    assert [row["step"] for row in answers] == [1, 1, 1, 2, 2, 2]
    for row in log:
        right = [a["strict"] for a in answers if a["step"] == row["step"]]
        assert row["heldout/strict"] == pytest.approx(sum(right) / 3)
        assert row["heldout/problems"] == 3
    best = read_json(run.best / "validation.json")
    assert best["score"] == max(row["heldout/strict"] for row in log)
    assert f"step {best['step']}, the best in validation" in save_trained(policy, config, run)
    name = "adapter_model.safetensors"
    kept, saved = load_file(run.best / name), load_file(run.adapter / name)
    assert kept.keys() == saved.keys() and all((kept[k] == saved[k]).all() for k in kept)
