"""A training as a recipe describes it: 03's cells in one, for scripts, and what is saved."""

import math
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from lib.config import Config
from lib.errors import BadInput
from lib.models import Policy, save_adapter, widen_head
from lib.runs import Run, read_json, read_jsonl, written_whole
from lib.tasks.prompts import fitting_rows
from lib.training.arguments import grpo_arguments
from lib.training.callbacks import Completions, StepLog
from lib.training.checkpoints import check_fills_a_step, fresh_checkpoints
from lib.training.dynamic_sampling import DynamicSampling
from lib.training.rollouts import RolloutEngine, training_prompts
from lib.training.survival import Survival, resume_point
from lib.training.tracking import Tracking


def make_trainer(
    policy: Policy,
    rows: Sequence[dict],
    rewards: Sequence[Callable],
    weights: Sequence[float],
    config: Config,
    run: Run,
    watch: Callable[[list[dict]], None] | None = None,
) -> Any:
    """`lib.training.GRPOTrainer` on these rows, with the callbacks and the engine of 03_training.

    Args:
        rows: prompt, answer, id and further columns (`lib.tasks.make_rows`).
        rewards, weights: reward functions in TRL's signature and what each counts.
        watch: called after each step with the log so far.

    Raises:
        BadInput: fewer rows than one step takes, prompts too long for that, or a setting that
            Unsloth's trainer would pass over.
    """
    from trl import GRPOConfig

    from lib.training import GRPOTrainer

    config = config.model_copy(update={"backend": policy.backend})
    check_fills_a_step(rows, config)
    fitting, note = fitting_rows(rows, policy.tokenizer, config)
    policy.notes += [note] if note else []
    check_fills_a_step(fitting, config)
    log = StepLog(run, config, len(fitting), watch)
    completions = Completions(run, rewards, weights, log)
    resampling = DynamicSampling(completions, fitting, config.seed, config.resample)
    engine = RolloutEngine.start(config, policy)
    trainer = GRPOTrainer(
        model=policy.model,
        processing_class=policy.tokenizer,
        reward_funcs=completions.rewards,
        args=GRPOConfig(**grpo_arguments(config, run, policy), reward_weights=list(weights)),
        train_dataset=training_prompts(fitting, config),
        rollout_func=resampling if config.resample else None,
        callbacks=[log, completions, Survival(run, config), Tracking(config, run, completions)],
    )
    prepare(trainer, policy, config, run, engine)
    return trainer


def prepare(trainer: Any, policy: Policy, config: Config, run: Run, engine: Any = None) -> None:
    """What a recipe asks of our trainer and TRL's has no argument for.

    Raises:
        BadInput: Unsloth's trainer would pass over a setting.
    """
    if config.use_adaptive_entropy and trainer.is_unsloths:
        raise BadInput(
            "entropy_target adapts entropy_coef, which Unsloth's trainer does not do: set backend "
            "to transformers, or leave entropy_target out for a fixed entropy_coef.",
            key="unsloth-passes-over",
        )
    if engine is not None:
        trainer.generate_with(engine)
    run.note(rollouts_by="vllm" if trainer.use_vllm else "transformers")
    trainer.shares_prompts = trainer.shares_prompts and config.shared_prompts
    if config.shared_prompts and trainer.not_shared:
        policy.notes.append(f"Each completion computes its prompt again: {trainer.not_shared}.")
    if config.cast_lm_head_to_fp32 and trainer.ref_model is not None:
        widen_head(trainer.ref_model)  # a model of its own, where all weights are trained


def train(trainer: Any, config: Config, run: Run) -> None:
    """Train, from the run's last checkpoint where `resume` is set; from the start otherwise.

    Raises:
        Stopped: as `lib.training.survival.survived`; what was done is kept.
    """
    trainer.train(resume_from_checkpoint=begin_or_resume(config, run))


def begin_or_resume(config: Config, run: Run) -> str | None:
    """The run's last checkpoint, where `resume` is set and there is one. None: the training begins
    anew, and what an earlier one left is put aside.
    """
    last = resume_point(run) if config.resume else None
    if last is None:
        fresh_checkpoints(config, run)
        return None
    return str(last)


def save_trained(policy: Policy, config: Config, run: Run) -> str:
    """Write `adapter/`: the last one, or with `keep: best` the best in validation; says which."""
    if config.keep == "last":
        save_adapter(policy, run.adapter)
        run.mark_stale()
        return f"the adapter of step {config.max_steps}, the last"
    with written_whole(run.adapter) as beside:
        shutil.copytree(run.best, beside, dirs_exist_ok=True)
    run.mark_stale()
    best = read_json(run.best / "validation.json")
    return f"the adapter of step {best['step']}, the best in validation ({best['score']:.1%})"


def why_still(run: Run) -> str:
    """Why an adapter's B is still zero after training, as it may rightly be after a step or two.

    Raises:
        AssertionError: the log explains nothing of the kind.
    """
    log = read_jsonl(run.train_log)
    if not any(row.get("learning_rate") for row in log):
        return "The adapter did not move: its learning rate was still warming up (warmup_steps)."
    if not any(row.get("grad_norm") and math.isfinite(row["grad_norm"]) for row in log):
        return "The adapter did not move: no step had a group with signal (or fp16 overflowed)."
    raise AssertionError("The adapter did not move.")
