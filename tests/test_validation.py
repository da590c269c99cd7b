"""Held-out accuracy during training: what is set aside, measured, logged and kept."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import set_seed

from lib.config import resolve
from lib.engines import Sampling
from lib.files import read_json, read_jsonl, write_json
from lib.tasks import get_task, make_rows
from lib.training import save_trained, set_aside, train
from lib.training.callbacks import StepLog, Validation, answering
from tests.conftest import CPU


def config_of(folder, **changes):
    given = {"output_dir": str(folder), "profile": "cpu", "backend": "transformers"}
    return resolve("ci", given | changes, CPU)


def test_no_problem_is_both_trained_on_and_validated_on(tmp_path):
    problems = get_task("small_sums", {"largest": 9}).load("train")
    assert set_aside(problems, config_of(tmp_path)) == (problems, [])  # not asked for
    config = config_of(tmp_path, validation_steps=1, validation_problems=5)
    training, held_out = set_aside(problems, config)
    assert len(held_out) == 5 and len(training) == len(problems) - 5
    assert not {p.question for p in training} & {p.question for p in held_out}
    greedy = config_of(tmp_path, validation_steps=1, validation_problems=1000)
    assert len(set_aside(problems, greedy)[1]) == len(problems) // 4


@pytest.mark.parametrize(("engine", "updates"), [("vllm", 1), ("transformers", 2)])
def test_validation_is_logged_and_the_best_adapter_kept(small_training, engine, updates):
    """Also where a batch serves several updates, of which the last is measured."""
    given = dict(validation_steps=updates, validation_problems=3, keep="best")
    given |= dict(rollout_engine=engine, num_iterations=updates)
    config = resolve("ci", given, CPU)
    task = get_task(config.task, config.task_config)
    training, held_out = set_aside(task.load("train"), config)
    rows, asked = (make_rows(some, config.prompt_format, 0, []) for some in (training, held_out))
    trainer, config, run = small_training(rows=rows, **given, max_steps=2 * updates)
    policy = SimpleNamespace(
        model=trainer.model, tokenizer=trainer.processing_class, backend="transformers", notes=[]
    )
    log = next(c for c in trainer.callback_handler.callbacks if isinstance(c, StepLog))
    rollouts = trainer.engine.engine if engine == "vllm" else None
    validation = Validation(policy, held_out, asked, task, config, run, log, rollouts)
    trainer.add_callback(validation)
    set_seed(7)
    noise = random.random(), np.random.rand(), torch.rand(1)
    set_seed(7)
    with answering(policy, rollouts) as now:
        now.generate([row["prompt"] for row in asked[:2]], Sampling(temperature=1.0, max_tokens=1))
    again = random.random(), np.random.rand(), torch.rand(1)
    assert again == noise, "the training's noise goes on"
    write_json(run.best / "validation.json", {"score": 2.0})  # of a training before
    train(trainer, config, run)
    if rollouts:
        rollouts.close()

    log = read_jsonl(run.train_log)
    answers = read_jsonl(run.evals / "validation.jsonl")
    assert [row["step"] / updates for row in answers] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(log) == 2
    assert log[0]["heldout_before/strict"] == pytest.approx(
        sum(a["strict"] for a in answers[:3]) / 3
    )
    for row in log:
        right = [a["strict"] for a in answers if a["step"] == row["step"] - 1 + updates]
        assert row["heldout/strict"] == pytest.approx(sum(right) / 3)
        assert row["heldout/problems"] == 3
    best = read_json(run.best / "validation.json")
    scores = [(row["heldout/strict"], row["step"] - 1 + updates) for row in log]
    assert (best["score"], best["step"]) == max(scores)  # of equal ones the later
    assert f"step {best['step']}, the best in validation" in save_trained(policy, config, run)
    name = "adapter_model.safetensors"
    kept, saved = load_file(run.best / name), load_file(run.adapter / name)
    assert kept.keys() == saved.keys() and all((kept[k] == saved[k]).all() for k in kept)
    measured = []
    validation.measure = lambda step: measured.append(step) or {"heldout/strict": -1.0}
    for step in range(1, 6):
        validation.on_step_end(None, SimpleNamespace(global_step=step, max_steps=5), None)
    assert measured == ([2, 4, 5] if updates == 2 else [1, 2, 3, 4, 5])  # the last one always
