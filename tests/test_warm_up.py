"""Supervised steps on right answers: what is shown, what they change, what is kept."""

import pytest
import torch

from lib.config import resolve
from lib.engines import Sampling, TransformersEngine
from lib.errors import BadInput
from lib.runs import Run
from lib.tasks import Problem, get_task
from lib.tasks.prompts import make_rows
from lib.training import IGNORED, warm_up, worked_rows
from tests.conftest import CPU

PROBLEMS = get_task("small_sums", {"largest": 9}).load("train")


def settings(folder, **changes):
    given = dict(output_dir=str(folder), profile="cpu", backend="transformers", shots=0)
    given |= dict(sft_steps=8, sft_batch=4, sft_learning_rate=5e-4, gradient_checkpointing=False)
    return resolve("ci", given | changes, CPU)


@pytest.fixture(scope="module")
def tokenizer(embedded):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded)


def test_the_answer_alone_is_learned_up_to_the_end_of_the_turn(tokenizer, tmp_path):
    rows = make_rows(PROBLEMS, "answer")
    worked = worked_rows(tokenizer, PROBLEMS, rows, settings(tmp_path, sft_steps=2))
    assert len(worked) == 2 * 4
    for row in worked:
        learned = [token for token in row["labels"] if token != IGNORED]
        assert row["input_ids"][-len(learned) :] == learned
        text = tokenizer.decode(row["input_ids"])
        [a, _, b] = text.rpartition("What is ")[2].partition("?")[0].split()
        assert tokenizer.decode(learned) == f"<answer>{int(a) + int(b)}</answer><|im_end|>"


def test_a_form_that_shows_solutions_needs_them(tokenizer, tmp_path):
    problem = Problem("one", "What is 1 + 1?", "2")
    rows = make_rows([problem], "reasoning")
    with pytest.raises(BadInput, match="has no worked solution"):
        worked_rows(tokenizer, [problem], rows, settings(tmp_path, prompt_format="reasoning"))


def test_it_teaches_the_form_and_a_resumed_run_takes_it_over(first_layers, tmp_path):
    from lib.models import load_policy

    given = dict(model=str(first_layers), sft_learning_rate=1e-2)
    config, run = settings(tmp_path, **given), Run(tmp_path)
    rows = make_rows(PROBLEMS, "answer")
    policy = load_policy(config)
    engine = TransformersEngine(policy.model, policy.tokenizer)
    asked = [row["prompt"] for row in rows[:8]]

    def in_form() -> int:
        policy.model.eval()
        found = engine.generate(asked, Sampling(max_tokens=12))
        return sum("<answer>" in answer.text for [answer] in found)

    assert in_form() == 0
    losses = warm_up(policy, PROBLEMS, rows, config, run)
    assert len(losses) == 8 and losses[-1] < losses[0] / 2
    assert in_form() >= 6
    trained = {n: p.detach().clone() for n, p in policy.model.named_parameters() if p.requires_grad}
    for name in trained:
        policy.model.get_parameter(name).data.zero_()
    assert warm_up(policy, PROBLEMS, rows, settings(tmp_path, **given, resume=True), run) == []
    now = dict(policy.model.named_parameters())
    assert all(torch.equal(now[name], trained[name]) for name in trained)
