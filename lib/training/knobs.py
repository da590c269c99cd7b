"""Every knob of TRL's GRPOConfig that `lib.training.run.grpo_arguments` leaves alone, and why.

A knob is either set there, from the recipe, or stated here with the default it is left at.
`drift` compares both with what the installed library has: a new version that brings a knob
or changes a default is found by a test, and not by a run that behaves otherwise.
"""

from collections.abc import Collection, Mapping
from typing import Any

# reason -> knob -> TRL's default
LEFT: dict[str, dict[str, Any]] = {
    "max_steps decides how long the run is": dict(num_train_epochs=3.0),
    "the optimizer needs nothing further": dict(optim_args=None, optim_target_modules=None),
    "given to the trainer from the recipe's rewards": dict(reward_weights=None),
    "what entropy_target moves entropy_coef by, and between": dict(
        entropy_coef_min=0.0,
        entropy_coef_max=1.0,
        entropy_coef_delta=0.005,
    ),
    "an old name of vllm_importance_sampling_clip_max": dict(vllm_importance_sampling_cap=None),
    "lib.models loads the model, and lib.tasks.prompts makes its prompts": dict(
        model_init_kwargs=None,
        trust_remote_code=False,
        chat_template_kwargs=None,
        pad_to_multiple_of=None,
    ),
    "only for models of mixed experts": dict(router_aux_loss_coef=None),
    "dropout is the adapter's, lora_dropout": dict(disable_dropout=False),
    "lib.output_layer does it, and vLLM; no weight is cast for good": dict(
        cast_lm_head_to_fp32=False
    ),
    "follows from micro_batch and prompts_per_step": dict(generation_batch_size=None),
    "TRL's own sampler draws the prompts, by the seed": dict(
        train_sampling_strategy="random",
        length_column_name="length",
    ),
    "sampling has keys of its own": dict(generation_kwargs=None, cache_implementation=None),
    "transformers generates in plain batches": dict(
        use_transformers_continuous_batching=False,
        transformers_continuous_batching_config=None,
        use_transformers_paged=False,
    ),
    "vLLM runs in this process, with vLLM's own model code, on one GPU": dict(
        vllm_model_impl="vllm",
        vllm_enable_sleep_mode=False,
        vllm_structured_outputs_regex=None,
        vllm_server_base_url=None,
        vllm_server_host="0.0.0.0",
        vllm_server_port=8000,
        vllm_server_timeout=240.0,
        vllm_group_port=51216,
        vllm_max_model_length=None,
        vllm_tensor_parallel_size=1,
        ds3_gather_for_generation=True,
    ),
    "no tools are called": dict(max_tool_calling_iterations=None),
    "numerics stay those of the chosen precision": dict(
        tf32=None,
        bf16_full_eval=False,
        fp16_full_eval=False,
        average_tokens_across_devices=True,
        label_smoothing_factor=0.0,
        neftune_noise_alpha=None,
        full_determinism=False,
    ),
    "memory is planned for, not found by trying": dict(
        auto_find_batch_size=False,
        torch_empty_cache_steps=None,
        gradient_checkpointing_kwargs=None,
        use_cache=False,
    ),
    "plain kernels run on every profile, and start at once": dict(
        torch_compile=False,
        torch_compile_backend=None,
        torch_compile_mode=None,
        use_liger_kernel=False,
        liger_kernel_config=None,
    ),
    "lib.training.live and lib.training.tracking log each step": dict(
        logging_strategy="steps",
        logging_first_step=False,
        logging_nan_inf_filter=True,
        log_on_each_node=True,
        log_level="passive",
        log_level_replica="warning",
        include_num_input_tokens_seen="no",
        skip_memory_metrics=True,
        project="huggingface",
        trackio_space_id=None,
        trackio_bucket_id=None,
        trackio_static_space_id=None,
        debug="",
    ),
    "completions go to rollouts/ and nowhere else": dict(
        log_multimodal=True,
        num_completions_to_print=None,
        log_unique_prompts=False,
        log_completions_hub_repo=None,
    ),
    "the suite evaluates itself, with pass@k and intervals": dict(
        num_generations_eval=None,
        eval_strategy="no",
        eval_steps=None,
        eval_delay=0,
        eval_on_start=False,
        per_device_eval_batch_size=8,
        prediction_loss_only=False,
        eval_do_concat_batches=True,
        eval_use_gather_object=False,
        eval_accumulation_steps=None,
        include_for_metrics=[],
        batch_eval_metrics=False,
        load_best_model_at_end=False,
        metric_for_best_model=None,
        greater_is_better=None,
        label_names=None,
    ),
    "checkpoints are whole, so that a resumed run is the same run": dict(
        save_only_model=False,
        save_on_each_node=False,
        enable_jit_checkpoint=False,
        ignore_data_skip=False,
        restore_callback_states_from_checkpoint=False,
        resume_from_checkpoint=None,
    ),
    "05_merge_export pushes, when asked": dict(
        push_to_hub=False,
        hub_token=None,
        hub_private_repo=None,
        hub_model_id=None,
        hub_strategy="every_save",
        hub_always_push=False,
        hub_revision=None,
    ),
    "rows are short texts, read in this process": dict(
        dataloader_drop_last=False,
        dataloader_num_workers=0,
        dataloader_persistent_workers=False,
        dataloader_prefetch_factor=None,
        dataloader_multiprocessing_context=None,
        dataloader_in_order=True,
        remove_unused_columns=False,
    ),
    "one machine, one device": dict(
        local_rank=-1,
        accelerator_config=None,
        parallelism_config=None,
        ddp_find_unused_parameters=None,
        ddp_bucket_cap_mb=None,
        ddp_broadcast_buffers=None,
        ddp_static_graph=None,
        ddp_backend=None,
        ddp_timeout=1800,
        fsdp=None,
        fsdp_config=None,
        deepspeed=None,
    ),
    "only for transformers' own command line": dict(
        do_train=False, do_eval=False, do_predict=False
    ),
}

# What Unsloth's GRPOConfig makes of it: knobs of its own, and other defaults for those above.
UNSLOTH: dict[str, dict[str, Any]] = {
    "Unsloth's own, for its fused loss; it measures the memory and chooses": dict(
        unsloth_num_chunks=-1,
        unsloth_logit_chunk_multiplier=None,
        unsloth_grpo_mini_batch=None,
    ),
    "Unsloth's own; sampling has keys of its own": dict(
        vllm_sampling_params=None, generation_kwargs={}
    ),
    "Unsloth's own, for several GPUs": dict(
        context_parallel_size=1, context_parallel_backend="ulysses"
    ),
    "Unsloth frees memory now and then": dict(torch_empty_cache_steps=250),
    "Unsloth lets a NaN loss be seen": dict(logging_nan_inf_filter=False),
    "the same as TRL's, written otherwise": dict(include_num_input_tokens_seen=False),
    "only for models of mixed experts": dict(router_aux_loss_coef=0.0),
    "the suite evaluates itself, with pass@k and intervals": dict(
        per_device_eval_batch_size=4, eval_accumulation_steps=2
    ),
}


def stated(*tables: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[Any, str]]:
    """knob -> (its default, why it is left there); a later table speaks before an earlier one."""
    return {
        knob: (default, reason)
        for table in tables
        for reason, knobs in table.items()
        for knob, default in knobs.items()
    }


def drift(
    installed: Mapping[str, Any], asked: Collection[str], left: Mapping[str, tuple[Any, str]]
) -> list[str]:
    """Where the installed library and what is said of it part, a sentence each.

    Args:
        installed: the library's knobs and their defaults.
        asked: knobs that are set explicitly.
        left: knobs that are not, from `stated`.
    """
    told = []
    for knob, default in installed.items():
        if knob in asked and knob in left:
            told.append(f"{knob} is set, and stated as left at {left[knob][0]!r}.")
        elif knob not in asked and knob not in left:
            told.append(f"{knob} is new, with the default {default!r}: set it or state it.")
        elif knob in left and left[knob][0] != default:
            told.append(f"{knob} has the default {default!r}, and {left[knob][0]!r} is stated.")
    return told + [f"{knob} is no knob." for knob in (*asked, *left) if knob not in installed]
