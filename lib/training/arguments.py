"""The arguments of TRL's GRPOConfig for a recipe: every field said, none left to a patched default.

    GRPOConfig(**grpo_arguments(config, run))

Unsloth changes some of TRL's defaults without a word (the loss, beta, the importance sampling
correction, the batch), so that all of them are passed, and `in_force` shows what became of each.
"""

from typing import Any

from lib.config import Config
from lib.hardware import cap_gpu_memory
from lib.keys import DEFAULTS, TRL, corrects
from lib.memory import read_shape, settled
from lib.models import Policy
from lib.runs import Run
from lib.training.rollouts import generates_here

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
    rows = min(config.per_device_train_batch_size, config.completions_per_step)
    accumulation = config.completions_per_step // rows
    with_vllm = config.rollout_engine == "vllm" and not generates_here(config)
    share = config.vllm_gpu_memory_utilization
    if with_vllm:  # TRL's engine takes its share of the whole card
        share = cap_gpu_memory(config.gpu_memory_cap, share)
    values = config.model_dump()
    said = {
        name: values[name]
        for name, (_, default, _) in TRL.items()
        if name in values and not (values[name] is None and default is None)
    }
    return said | dict(
        output_dir=str(run.checkpoints),
        run_name=config.run_name,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=accumulation,
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
        trainer: whose `args` are in force.
        config: tells where each value comes from.

    Returns: rows of field, TRL's default, asked, in force, and why it was asked.
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
    origin = config.origin(name) if config else "default"
    if origin != "default":
        return origin
    if name in FOLLOWS:
        return f"follows: {FOLLOWS[name]}"
    return DEFAULTS.get(name, ("", ""))[1]
