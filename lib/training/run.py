"""A training as a recipe describes it: TRL's arguments, 03's cells in one, and what is saved.

    GRPOConfig(**grpo_arguments(config, run))

Unsloth changes some of TRL's defaults without a word (the loss, beta, the importance sampling
correction, the batch), so that all fields are passed, and `in_force` shows what became of each.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from accelerate import PartialState

from lib.config import Config
from lib.errors import BadInput
from lib.hardware import cap_gpu_memory
from lib.keys import DEFAULTS, TRL, corrects
from lib.memory import read_shape, settled
from lib.models import Policy, save_adapter, widen_head
from lib.runs import Run, read_json, read_jsonl, written_whole
from lib.tasks.prompts import fitting_rows
from lib.training import check_fills_a_step, fresh_checkpoints
from lib.training.callbacks import Completions, StepLog
from lib.training.rollouts import DynamicSampling, RolloutEngine, generates_here, training_prompts
from lib.training.survival import Survival, resume_point
from lib.training.tracking import Tracking

# What follows from other keys, and from which.
FOLLOWS = {
    "per_device_train_batch_size": "at most prompts_per_step × num_generations",
    "gradient_accumulation_steps": "prompts_per_step × num_generations in passes of that size",
    "steps_per_generation": "one batch of completions for one optimizer step",
    "use_vllm": "rollout_engine vllm, where TRL is to run it",
    "vllm_importance_sampling_correction": "rollout_engine vllm, and on a CPU if asked for: TRL "
    "scores each batch a second time for it, a fifth of a step there",
    "vllm_gpu_memory_utilization": "gpu_memory_cap's share of the card",
    "cast_lm_head_to_fp32": "lib.models does it for the trainer and vLLM alike",
    "shuffle_dataset": "training_prompts has the prompts of all steps in their order",
    "bf16": "precision",
    "fp16": "precision",
    "use_cpu": "profile",
    "dataloader_pin_memory": "profile",
    "save_steps": "whole batches of completions",
    "log_completions": "rollouts/ keeps them all",
    "report_to": "report_to; lib.training.tracking logs to Trackio",
    "push_to_hub": "05_merge_export pushes",
    "output_dir": "the run's checkpoints/",
    "run_name": "run",
}


def grpo_arguments(config: Config, run: Run, policy: Policy | None = None) -> dict[str, Any]:
    """The arguments of TRL's GRPOConfig for this configuration.

    One optimizer step consumes prompts_per_step × num_generations completions, in passes of
    per_device_train_batch_size; TRL counts its batch in completions, too.
    """
    if policy is not None:  # whose size decides on gradient checkpointing
        config = settled(config, read_shape(policy.folder))
    own = config.completions_per_step // config.num_processes  # of each process
    rows = min(config.per_device_train_batch_size, own)
    with_vllm = config.rollout_engine == "vllm" and not generates_here(config)
    share = config.vllm_gpu_memory_utilization
    if with_vllm:  # TRL's engine takes its share of the whole card
        share = cap_gpu_memory(config.gpu_memory_cap, share)
    values = {name: value for name, value in config.model_dump().items() if name in TRL}
    values = {n: v for n, v in values.items() if v is not None or TRL[n][1] is not None}
    return values | dict(
        output_dir=str(run.checkpoints),
        run_name=config.run_name,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=own // rows,
        steps_per_generation=own // rows,
        shuffle_dataset=False,
        use_vllm=with_vllm,
        vllm_gpu_memory_utilization=share,
        vllm_importance_sampling_correction=corrects(config),
        cast_lm_head_to_fp32=False,
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        use_cpu=config.profile == "cpu",
        dataloader_pin_memory=config.profile != "cpu" and config.dataloader_pin_memory,
        log_completions=False,
        report_to=[name for name in config.report_to if name != "trackio"] or "none",
        push_to_hub=False,
        save_strategy="steps",
        # Within the updates from one batch of rollouts there is nothing to go on from.
        save_steps=-(-config.save_steps // config.num_iterations) * config.num_iterations,
    )


def in_force(
    arguments: dict[str, Any], trainer: Any, config: Config | None = None
) -> list[dict[str, Any]]:
    """What differs from TRL's own defaults, or from what was asked: a row a field.

    Args:
        arguments: as passed to GRPOConfig, from `grpo_arguments`.
        config: tells where each value comes from.
    """
    rows = []
    for name, asked in arguments.items():
        default = TRL.get(name, (None, None))[1]
        actual = getattr(trainer.args, name, "—")
        actual = getattr(actual, "value", actual)
        if asked != default or actual != asked:
            row = {"field": name, "TRL's default": default, "asked": asked, "in force": actual}
            rows.append(row | {"why": _why(name, config)})
    return rows


def _why(name: str, config: Config | None) -> str:
    if config and config.origin(name) != "default":
        return config.origin(name)
    return f"follows: {FOLLOWS[name]}" if name in FOLLOWS else DEFAULTS.get(name, ("", ""))[1]


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
        watch: called after each step with the log so far.

    Raises:
        BadInput: fewer rows than one step takes, prompts too long for that, or a setting that
            Unsloth's trainer would pass over.
    """
    from trl import GRPOConfig

    from lib.training import GRPOTrainer

    config = config.model_copy(update={"backend": policy.backend})
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
    """Train, from the run's last checkpoint where `resume` is set; from the start otherwise."""
    trainer.train(resume_from_checkpoint=begin_or_resume(config, run))


def begin_or_resume(config: Config, run: Run) -> str | None:
    """The run's last checkpoint, where `resume` is set and there is one. None: the training begins
    anew, and what an earlier one left is put aside.
    """
    if config.resume and (last := resume_point(run)):
        return str(last)
    fresh_checkpoints(config, run)
    return None


def save_trained(policy: Policy, config: Config, run: Run) -> str:
    """Write `adapter/`: the last one, or with `keep: best` the best in validation; says which."""
    said = f"the adapter of step {config.max_steps}, the last"
    if config.keep == "last":
        save_adapter(policy, run.adapter)
    else:
        with written_whole(run.adapter) as beside:
            shutil.copytree(run.best, beside, dirs_exist_ok=True)
        best = read_json(run.best / "validation.json")
        said = f"the adapter of step {best['step']}, the best in validation ({best['score']:.1%})"
    run.mark_stale()
    PartialState().wait_for_everyone()
    return said


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
