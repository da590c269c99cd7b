"""Training: TRL's GRPOTrainer with what the suite adds to it, set up as a recipe describes it.

    args = GRPOConfig(**grpo_arguments(config, run))

Unsloth changes some of TRL's defaults without a word (the loss, beta, the importance sampling
correction, the batch), so that all fields are passed, and `in_force` shows what became of each.

Nothing here imports torch or TRL before it is needed: Unsloth, where it loads the policy, has to
be imported first, and the runner asks only whether a run may start.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from lib.config import Config
from lib.engines import chat_text
from lib.errors import BadInput
from lib.files import discard, read_json, read_jsonl, write_json, written_whole
from lib.hardware import cap_gpu_memory
from lib.keys import DEFAULTS, FOLLOWS, TRL, corrects, translate
from lib.memory import by_unsloth, read_shape, settled
from lib.models import Policy, lora_targets, widen_head, write_adapter
from lib.runs import Run, begin_training
from lib.tasks import Problem, fitting_rows, get_format, sample_problems

GRPOTrainer: type  # TRL's, or Unsloth's, with ours on top
# Whose other values a checkpoint does not fit. Those of an adapter matter where there is one.
OF_A_CHECKPOINT = ("model", "full_finetuning", "algorithm", "num_iterations", "optim")
OF_AN_ADAPTER = ("r", "lora_alpha", "target_modules")


def __getattr__(name: str) -> Any:
    if name == "GRPOTrainer":
        from lib.training.trainer import GRPOTrainer

        return GRPOTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def check_trainer(config: Config) -> None:
    """Raises BadInput where the algorithm is not that of 03's trainer, TRL's GRPOTrainer."""
    if config.algorithm != "grpo":
        raise BadInput(
            f"03_training trains grpo and the recipe says algorithm {config.algorithm!r}: train "
            f"with 07_grpo_from_scratch, or set it to grpo.",
            key="not-grpo",
        )


def set_aside(training: Sequence[Problem], config: Config) -> tuple[list[Problem], list[Problem]]:
    """Training problems to train on, and those for validation: at most a quarter; none where it is
    switched off. The test split stays unseen until 04_pass_at_k_eval."""
    if not config.validation_steps:
        return list(training), []
    count = max(1, min(config.validation_problems, len(training) // 4))
    chosen = sample_problems(training, count, seed=0)
    keys = {problem.key for problem in chosen}
    return [problem for problem in training if problem.key not in keys], chosen


def check_fills_a_step(rows: Sequence, config: Config, aside: Sequence = ()) -> None:
    """Raises BadInput where there are fewer training rows than one step takes."""
    if len(rows) < config.prompts_per_step:
        beside = f" (beside {len(aside)} for validation)" if aside else ""
        raise BadInput(
            f"{len(rows)} training problems{beside} do not fill one step of prompts_per_step "
            f"{config.prompts_per_step}: raise train_problems or lower prompts_per_step.",
            key="too-few-rows",
        )


def check_resumable(config: Config, run: Run) -> None:
    """Raises BadInput where `resume` is set and the run's checkpoints do not fit the recipe."""
    file, last = run.checkpoints / "settings.json", run.kept_step()
    if not (config.resume and last and file.is_file()):
        return
    before, now = translate(read_json(file)), _settings(config)
    # Where only one of them has an adapter, that says it all.
    differ = sorted(key for key in before.keys() & now.keys() if before[key] != now[key])
    if differ:
        changes = ", ".join(f"{key} {before[key]} (now {now[key]})" for key in differ)
        raise BadInput(
            f"The checkpoints in {run.shown(run.checkpoints)} were made with {changes}: give the "
            f"old value to go on from them, or another `run` to begin anew in a folder of that "
            f"name.",
            key="other-checkpoints",
        )
    if last > config.max_steps:
        raise BadInput(
            f"max_steps {config.max_steps} lies before the checkpoint of step {last} in "
            f"{run.shown(run.checkpoints)}: raise it to go on, or give another `run`.",
            key="max-steps-below-checkpoint",
        )


def _settings(config: Config) -> dict:
    keys = OF_A_CHECKPOINT if config.full_finetuning else OF_A_CHECKPOINT + OF_AN_ADAPTER
    every = config.model_dump() | {"target_modules": sorted(lora_targets(config))}
    return {key: every[key] for key in keys}


def grpo_arguments(config: Config, run: Run) -> dict[str, Any]:
    """The arguments of TRL's GRPOConfig for this configuration (`lib.memory.settled`). A step
    consumes prompts_per_step × num_generations completions, in passes of
    per_device_train_batch_size; TRL counts its batch in completions, too."""
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


def generates_here(config: Config) -> bool:
    """Whether rollouts are to come from a `RolloutEngine`. On a GPU Unsloth's trainer generates by
    the engine whose weights it trains; what a vLLM server or several processes need is TRL's."""
    alone = config.num_processes == 1 and config.vllm_mode == "colocate"
    return config.rollout_engine == "vllm" and not by_unsloth(config) and alone


def in_force(arguments: dict[str, Any], trainer: Any, config: Config) -> list[dict[str, Any]]:
    """What differs from TRL's own defaults, or from what was asked: a row a field, and why."""
    rows = []
    for name, asked in arguments.items():
        default = TRL.get(name, (None, None))[1]
        actual = getattr(trainer.args, name, "—")
        actual = getattr(actual, "value", actual)
        same = actual == asked or not (actual or asked)  # a library may write [] for ""
        if name == "output_dir" or (asked == default and same):
            continue
        why = config.origin(name)
        if why == "default":
            why = (
                f"follows: {FOLLOWS[name]}" if name in FOLLOWS else DEFAULTS.get(name, ("", ""))[1]
            )
        row = {"field": name, "TRL's default": default, "asked": asked, "in force": actual}
        rows.append(row | {"why": why})
    return rows


def make_trainer(
    policy: Policy,
    rows: Sequence[dict],
    rewards: Sequence[Callable],
    weights: Sequence[float],
    config: Config,
    run: Run,
) -> Any:
    """`GRPOTrainer` on these rows (`lib.tasks.make_rows`), with the callbacks and the engine of
    03_training. Raises BadInput where fewer rows fit than one step takes."""
    from trl import GRPOConfig

    from lib.training.callbacks import Completions, StepLog
    from lib.training.rollouts import DynamicSampling, RolloutEngine, training_prompts
    from lib.training.survival import Survival
    from lib.training.tracking import Tracking
    from lib.training.trainer import GRPOTrainer

    config = config.model_copy(update={"backend": policy.backend})
    config = settled(config, read_shape(policy.folder))  # gradient checkpointing
    fitting, note = fitting_rows(rows, policy.tokenizer, config)
    policy.notes += [note] if note else []
    check_fills_a_step(fitting, config)
    log = StepLog(run, config, len(fitting))
    completions = Completions(run, rewards, weights, log)
    resampling = DynamicSampling(completions, fitting, config.seed, config.resample)
    engine = RolloutEngine.start(config, policy)
    trainer = GRPOTrainer(
        model=policy.model,
        processing_class=policy.tokenizer,
        reward_funcs=completions.rewards,
        args=GRPOConfig(**grpo_arguments(config, run), reward_weights=list(weights)),
        train_dataset=training_prompts(fitting, config),
        rollout_func=resampling if config.resample else None,
        callbacks=[log, completions, Survival(run, config), Tracking(config, run, completions)],
    )
    prepare(trainer, policy, config, run, engine)
    return trainer


def prepare(trainer: Any, policy: Policy, config: Config, run: Run, engine: Any = None) -> None:
    """What a recipe asks of our trainer and TRL's has no argument for."""
    if engine is not None:
        trainer.generate_with(engine)
    run.note(rollouts_by="vllm" if trainer.use_vllm else "transformers")
    trainer.shares_prompts = trainer.shares_prompts and config.shared_prompts
    if config.shared_prompts and trainer.not_shared:
        policy.notes.append(f"Each completion computes its prompt again: {trainer.not_shared}.")
    if trainer.is_unsloths and not trainer.use_vllm:
        policy.notes.append("Unsloth's trainer logs no entropy where transformers generates.")
    if config.cast_lm_head_to_fp32 and trainer.ref_model is not None:
        widen_head(trainer.ref_model)  # a model of its own, where all weights are trained


def train(trainer: Any, config: Config, run: Run) -> None:
    trainer.train(resume_from_checkpoint=begin_or_resume(config, run))


def begin_or_resume(config: Config, run: Run) -> str | None:
    """The run's last checkpoint, where `resume` is set and there is one. None: the training begins
    anew, and what an earlier one left is put aside."""
    from lib.training.survival import resume_point

    if config.resume and (last := resume_point(run)):
        return str(last)
    fresh_checkpoints(config, run)
    return None


def fresh_checkpoints(config: Config, run: Run) -> None:
    """An empty `checkpoints/` but for `settings.json`: what those to come are made with. What an
    earlier training left is put aside."""
    begin_training(config, run)
    discard(run.checkpoints)
    write_json(run.checkpoints / "settings.json", _settings(config))


def save_trained(policy: Policy, config: Config, run: Run) -> str:
    """Write `adapter/`: the last one, or with `keep: best` the best in validation; says which."""
    from accelerate import PartialState

    said = f"the adapter of step {config.max_steps}, the last"
    with run.new_adapter() as folder:
        if config.keep == "last":
            write_adapter(policy, folder)
        else:
            shutil.copytree(run.best, folder, dirs_exist_ok=True)
            best = read_json(folder / "validation.json")
            score = f"the best in validation ({best['score']:.1%})"
            said = f"the adapter of step {best['step']}, {score}"
    PartialState().wait_for_everyone()
    return said


def why_still(run: Run) -> str:
    """Why an adapter's B is still zero after training, as it may rightly be after a step or two;
    AssertionError where the log explains nothing of the kind."""
    log = read_jsonl(run.train_log)
    if not any(row.get("learning_rate") for row in log):
        return "The adapter did not move: its learning rate was still warming up (warmup_steps)."
    if not any(row.get("grad_norm") and math.isfinite(row["grad_norm"]) for row in log):
        return "The adapter did not move: no step had a group with signal (or fp16 overflowed)."
    raise AssertionError("The adapter did not move.")


# --- the warm-up --------------------------------------------------------------------------------
# A form that the policy never produces earns nothing in any completion, so that no group differs
# and GRPO stands still (DeepSeek-R1, arXiv 2501.12948, sec. 2.3.1: a cold start).
# A few supervised steps, cross-entropy on the answer's tokens alone, make it possible. The base
# model of an evaluation stays the base model; the reference of a KL term (beta > 0) is the policy
# as GRPO finds it, the warmed-up one, and after full fine-tuning the base model.

IGNORED = -100  # the label of tokens that the loss leaves out


def warm_up(
    policy: Policy, problems: Sequence[Problem], rows: Sequence[dict], config: Config, run: Run
) -> list[float]:
    """Train the policy on `sft_steps` batches of right answers to the rows' prompts; the loss of
    each. The trained weights are kept in `warm_up/`, from which a resumed run takes them. Raises
    BadInput where the format shows a solution and a problem has none."""
    from safetensors.torch import load_file, save_file
    from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainingArguments

    file = run.folder / "warm_up" / "trained.safetensors"
    trained = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
    if config.resume and file.is_file():
        for name, weight in load_file(file).items():
            trained[name].data.copy_(weight)
        return []
    # TRL's SFTTrainer needs a Triton kernel, which no CPU runs.
    trainer = Trainer(
        model=policy.model,
        args=TrainingArguments(
            output_dir=str(file.parent),
            max_steps=config.sft_steps,
            per_device_train_batch_size=config.sft_batch,
            learning_rate=config.sft_learning_rate,
            lr_scheduler_type="constant",
            max_grad_norm=config.max_grad_norm,
            optim=config.optim,
            gradient_checkpointing=config.gradient_checkpointing,
            **side_arguments(config),
        ),
        train_dataset=worked_rows(policy.tokenizer, problems, rows, config),
        data_collator=DataCollatorForSeq2Seq(policy.tokenizer, label_pad_token_id=IGNORED),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    # GRPO's trainer wraps the forward pass itself.
    trainer.accelerator.unwrap_model(policy.model, keep_fp32_wrapper=False)
    with written_whole(file.parent) as beside:
        weights = {name: weight.detach().contiguous().cpu() for name, weight in trained.items()}
        save_file(weights, beside / file.name)
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def worked_rows(
    tokenizer: Any, problems: Sequence[Problem], rows: Sequence[dict], config: Config
) -> list[dict]:
    """For as many problems as the warm-up takes: tokens, and labels on those of the answer."""
    form, prompts = get_format(config.prompt_format), {row["id"]: row["prompt"] for row in rows}
    problems = [problem for problem in problems if problem.id in prompts]
    count = min(len(problems), config.sft_steps * config.sft_batch)
    worked = []
    for problem in sample_problems(problems, count, config.seed):
        prompt = prompts[problem.id]
        asked, answer = chat_text(tokenizer, prompt), form.show(problem)
        turns = [*prompt, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n")
        if not text.startswith(asked):  # a template that writes earlier turns differently
            text = asked + answer + tokenizer.eos_token
        first, ids = tokenizer([asked, text], add_special_tokens=False)["input_ids"]
        labels = [IGNORED] * len(first) + ids[len(first) :]
        longest = config.max_seq_length
        worked.append({"input_ids": ids[:longest], "labels": labels[:longest]})
    return worked


def side_arguments(config: Config) -> dict[str, Any]:
    """Of transformers' TrainingArguments, for a training beside GRPO's: its log alone is kept."""
    return dict(
        seed=config.seed,
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        use_cpu=config.profile == "cpu",
        dataloader_pin_memory=config.profile != "cpu",
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
