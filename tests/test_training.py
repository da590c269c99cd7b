"""What is asked of TRL's trainer, and what a step of it does."""

import inspect
import re
from types import SimpleNamespace

import pytest
import torch

from lib.config import resolve
from lib.files import read_jsonl
from lib.runs import read_rollouts
from lib.tasks import fitting_rows
from lib.training import (
    check_fills_a_step,
    generates_here,
    grpo_arguments,
    in_force,
    save_trained,
    train,
)
from tests.conftest import CPU, T4, by_turns, refuses


def second(completions, **_):
    return [float(i % 2) for i, _ in enumerate(completions)]


def weights_of(trainer) -> dict:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("wide", [False, True])
def test_full_fine_tuning_moves_all_weights_and_the_reference_follows(small_training, wide):
    given = dict(full_finetuning=True, learning_rate=1e-5, beta=0.1, cast_lm_head_to_fp32=wide)
    given |= dict(ref_model_sync_steps=1, ref_model_mixup_alpha=1.0)
    trainer, config, run = small_training([by_turns, second], **given)
    before = weights_of(trainer)
    train(trainer, config, run)
    now = dict(trainer.model.named_parameters())
    assert trainer.shares_prompts and all(p.requires_grad for p in now.values())
    # The tokens that never came up keep their rows of the embedding, and few others do.
    still = sum(int((now[n] == was).sum()) for n, was in before.items() if "embed" not in n)
    assert still < 0.05 * sum(p.numel() for n, p in before.items() if "embed" not in n)
    [row] = read_jsonl(run.train_log)
    assert row["kl"] == 0.0 and row["grad_norm"] > 0
    for name, weight in trainer.ref_model.named_parameters():
        assert torch.equal(weight, now[name]), name
    assert run.recorded()["rollouts_by"] == "transformers"
    tokenizer = trainer.processing_class
    save_trained(SimpleNamespace(model=trainer.model, tokenizer=tokenizer), config, run)
    assert {file.name for file in run.adapter.iterdir()} >= {"config.json", "model.safetensors"}


def test_turned_knobs_are_in_force_and_train(small_training):
    given = dict(
        loss_type="sapo",
        loss_constants={"temperature_neg": 1.2},
        multi_objective_aggregation="normalize_then_sum",
        off_policy_mask_threshold=0.5,
        top_entropy_quantile=0.5,
        entropy_coef=0.01,
        entropy_target=20.0,
        repetition_penalty=1.1,
        adam_betas=[0.8, 0.95],
        lr_scheduler="cosine",
        min_lr_rate=0.1,
    )
    trainer, config, run = small_training([by_turns, second], [1.0, 0.5], **given)
    before = weights_of(trainer)
    train(trainer, config, run)
    rows = {row["field"]: row for row in in_force(grpo_arguments(config, run), trainer, config)}
    turned = {"sapo_temperature_neg": 1.2, "use_adaptive_entropy": True, "adam_beta2": 0.95}
    turned |= {"lr_scheduler_kwargs": {"min_lr_rate": 0.1}}
    turned |= {key: given[key] for key in given if key in rows}
    for field, value in turned.items():
        assert (rows[field]["asked"], rows[field]["in force"]) == (value, value)
    assert rows["loss_type"]["why"] == "parameter" and "beta" not in rows
    assert rows["use_cpu"]["why"] == "follows: profile"
    assert len(turned) == 11
    [row] = read_jsonl(run.train_log)
    cut = [rollout["truncated"] for rollout in read_rollouts(run, 1)]
    assert row["completions/clipped_ratio"] == sum(cut) / len(cut) != 0.5
    assert {"rewards/by_turns/mean", "rewards/second/std"} <= row.keys()  # by their own names
    # Below its target, the coefficient has gone up by TRL's step.
    assert row["entropy_coef"] == pytest.approx(0.015) and row["grad_norm"] > 0
    moved = [n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])]
    assert moved and all("lora_" in name for name in moved)


def test_a_step_that_no_reward_can_judge_is_one_without_signal(small_training, caplog):
    """As where every gold of its prompts is unreadable; a resumed run gets past it, too."""

    def unsure(completions, trainer_state, **_):
        judged = trainer_state.global_step > 0
        return [float(i % 2) if judged else None for i, _ in enumerate(completions)]

    trainer, config, run = small_training([unsure])
    before = weights_of(trainer)
    train(trainer, config, run)
    [row] = read_jsonl(run.train_log)
    assert row["reward"] is None and row["frac_reward_zero_std"] == 1.0 and row["grad_norm"] == 0
    assert "returned None" not in caplog.text
    assert all(torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())
    trainer, config, run = small_training([unsure], max_steps=2, resume=True)
    train(trainer, config, run)
    log = read_jsonl(run.train_log)
    assert [(r["frac_reward_zero_std"], r["epoch"]) for r in log] == [(1.0, 1.0), (0.0, 2.0)]


def names(method, count: int) -> list[str]:
    return list(inspect.signature(method).parameters)[:count]


def test_trls_seams_are_as_the_trainer_takes_them():
    """Two private methods overridden, with TRL's own arguments; the engine in TRL's words."""
    import trl
    from trl.generation.vllm_generation import VLLMGeneration

    from lib.training import GRPOTrainer
    from lib.training.rollouts import RolloutEngine

    private = {name for name, value in vars(GRPOTrainer).items() if inspect.isfunction(value)}
    private = {name for name in private if re.match("_[a-z]", name)}
    overridden = {name for name in private if hasattr(trl.GRPOTrainer, name)}
    assert overridden == {"_get_per_token_logps_and_entropies", "_prepare_inputs"}
    for name, count in (("_get_per_token_logps_and_entropies", 6), ("_prepare_inputs", 2)):
        ours, theirs = (names(getattr(c, name), count) for c in (GRPOTrainer, trl.GRPOTrainer))
        assert ours == theirs
    assert names(RolloutEngine.generate, 9) == names(VLLMGeneration.generate, 9)
    assert names(RolloutEngine.sync_weights, 9) == names(VLLMGeneration.sync_weights, 9)


@pytest.mark.parametrize(
    ("settings", "hardware", "here", "trls"),
    [
        ({}, CPU, True, False),
        ({"rollout_engine": "transformers"}, CPU, False, False),
        ({}, T4, False, True),  # Unsloth's trainer generates by the engine whose weights it trains
        ({"backend": "transformers"}, T4, True, False),
        ({"backend": "transformers", "rollout_engine": "transformers"}, T4, False, False),
    ],
)
def test_who_generates(run, settings, hardware, here, trls):
    config = resolve("ci", settings, hardware)
    asked = grpo_arguments(config, run)
    assert (generates_here(config), asked["use_vllm"]) == (here, trls)
    corrects = config.rollout_engine == "vllm" and config.profile != "cpu"
    assert asked["vllm_importance_sampling_correction"] == corrects


def test_prompts_that_do_not_fit_are_left_out(embedded):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded)
    given = {"max_seq_length": 96, "max_completion_length": 32, "prompts_per_step": 1}
    config = resolve(None, given, CPU)
    short, long = (
        {"id": name, "prompt": [{"role": "user", "content": "one two three " * times}]}
        for name, times in (("short/1", 1), ("long/1", 40))
    )
    assert fitting_rows([short], tokenizer, config) == ([short], "")
    rows, note = fitting_rows([short, long], tokenizer, config)
    assert rows == [short] and "1 of 2 prompts" in note and "long/1" in note
    raised = int(re.search(r"with max_seq_length (\d+) all fit", note)[1])
    config = config.model_copy(update={"max_seq_length": raised})
    assert fitting_rows([short, long], tokenizer, config) == ([short, long], "")
    config = config.model_copy(update={"max_seq_length": raised - 1})
    assert fitting_rows([short, long], tokenizer, config)[0] == [short]
    with refuses("too-long"):
        fitting_rows([long], tokenizer, config)


def test_too_few_rows_are_refused(ci_config):
    with refuses("too-few-rows"):
        check_fills_a_step([{"id": "a"}], ci_config)
