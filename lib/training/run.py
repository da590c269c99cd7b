"""GRPO with TRL's trainer: every argument passed, every completion kept."""

import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

from lib.config import Config
from lib.errors import BadInput
from lib.hardware import gpu_memory_taken
from lib.models import Policy, save_adapter
from lib.output_layer import widen_head
from lib.progress import Progress
from lib.rewards.calls import Checked
from lib.runs import Run, read_json, written_whole
from lib.training.arguments import grpo_arguments
from lib.training.checkpoints import check_fills_a_step, fresh_checkpoints
from lib.training.further_prompts import FurtherPrompts
from lib.training.lean_layers import make_lean
from lib.training.oom import explained, is_out_of_memory
from lib.training.rollouts import RolloutEngine
from lib.training.shared_prompts import trainer_is_unsloths, why_not_shared
from lib.training.survival import resume_point, survived
from lib.training.tracking import tracking_callback
from lib.training.trainer import trainer_class


def make_trainer(
    policy: Policy,
    rows: Sequence[dict],
    rewards: Sequence[Callable],
    weights: Sequence[float],
    config: Config,
    run: Run,
    watch: Callable[[list[dict]], None] | None = None,
) -> Any:
    """TRL's GRPOTrainer (Unsloth's where that loaded the policy) on these rows.

    Args:
        rows: prompt, answer, id and further columns (`lib.tasks.make_rows`).
        rewards, weights: reward functions in TRL's signature and what each counts.
        watch: called after each step with the log so far, for a live plot.

    Raises:
        BadInput: fewer rows than one step takes, prompts too long for that, or a setting that
            Unsloth's trainer would pass over.
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig

    if config.use_adaptive_entropy and trainer_is_unsloths():
        raise BadInput(
            "entropy_target adapts entropy_coef, which Unsloth's trainer does not do: set backend "
            "to transformers, or leave entropy_target out for a fixed entropy_coef."
        )
    config = config.model_copy(update={"backend": policy.backend})  # Unsloth may have failed
    check_fills_a_step(rows, config)
    fitting = fitting_rows(rows, policy.tokenizer, config)
    if len(fitting) < len(rows):
        policy.notes.append(
            f"{len(rows) - len(fitting)} of {len(rows)} training problems are left out: their "
            f"prompts and max_completion_length exceed max_seq_length {config.max_seq_length}."
        )
    sharing = start_sharing(policy, config)
    rollouts = RolloutEngine.start(config, policy)
    asked = grpo_arguments(config, run, policy)
    arguments = GRPOConfig(**asked, reward_weights=list(weights))
    trainer = trainer_class()(
        model=policy.model,
        processing_class=policy.tokenizer,
        reward_funcs=[Checked(reward) for reward in rewards],
        args=arguments,
        train_dataset=Dataset.from_list(fitting),
    )
    if config.cast_lm_head_to_fp32 and trainer.ref_model is not None:
        widen_head(trainer.ref_model)  # a model of its own, where all weights are trained
    trainer.run, trainer.rollouts, trainer.shares_prompts = run, rollouts, sharing
    if config.resample:
        trainer.further = FurtherPrompts(
            [row["id"] for row in fitting], config.seed, config.resample
        )
    trainer.remove_callback(PrinterCallback)  # `_step_log` shows what it would print
    trainer.add_callback(_step_log(config, run, watch))
    trainer.add_callback(tracking_callback(config, run))
    return trainer


def start_sharing(policy: Policy, config: Config) -> bool:
    """Whether each prompt is computed once for its group; a note says why where it is not."""
    if not config.shared_prompts:
        return False
    make_lean(policy.model)
    reason = why_not_shared(policy.model, config.max_seq_length)
    if reason:
        policy.notes.append(f"Prompts are computed for each completion anew: {reason}.")
    return not reason


def train(trainer: Any, config: Config, run: Run) -> None:
    """Train, from the run's last checkpoint where `resume` is set; afresh otherwise.

    Raises:
        Stopped: as `lib.training.survival.survived`, and where memory ran out and no smaller pass
            helps; what was done is kept.
    """
    last = resume_point(run) if config.resume else None
    if last is None:
        fresh_checkpoints(config, run)
    elif trainer.further:
        trainer.further.recall(run, trainer.kept_step)
    with survived(trainer, run):
        try:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise explained(error, trainer, config) from error
    by_vllm = trainer.rollouts is not None or trainer.args.use_vllm
    run.note(rollouts_by="vllm" if by_vllm else "transformers")
    if config.profile != "cpu":
        run.note(training_gpu_gib=gpu_memory_taken())


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


def _step_log(config: Config, run: Run, watch: Callable[[list[dict]], None] | None) -> Any:
    """A callback that writes `train_log.jsonl`, shows progress, and feeds the live plot."""
    from transformers import TrainerCallback

    class StepLog(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            # A resumed run repeats the steps after its checkpoint.
            self.rows = run.rewind(state.global_step)
            self.started = time.time() - (self.rows[-1]["seconds"] if self.rows else 0)
            self.progress = Progress(config.max_steps, "training", run.progress)
            self.progress.update(state.global_step)
            if watch and self.rows:
                watch(self.rows)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if not logs or "reward" not in logs:  # a further update from the same batch
                self.progress.update(state.global_step)
                return
            row = {"step": state.global_step, "seconds": time.time() - self.started, **logs}
            run.log_step(row)
            self.rows.append(row)
            reward = logs["reward"]  # None: no reward could judge any completion of this step
            self.progress.update(
                state.global_step, "no reward" if reward is None else f"reward {reward:.2f}"
            )
            if watch:
                watch(self.rows)

        def on_train_end(self, args, state, control, **kwargs):
            self.progress.close()

    return StepLog()


def fitting_rows(rows: Sequence[dict], tokenizer: Any, config: Config) -> list[dict]:
    """The rows whose prompt leaves room for a whole completion in max_seq_length.

    Raises:
        BadInput: fewer are left than one step takes.
    """
    texts = [
        tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        for row in rows
    ]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    room = config.max_seq_length - config.max_completion_length
    fitting = [row for row, length in zip(rows, lengths, strict=True) if length <= room]
    if len(fitting) < config.prompts_per_step:
        longest = max(lengths)
        where = rows[lengths.index(longest)]["id"]
        raise BadInput(
            f"The prompt of {where} has {longest} tokens and max_seq_length "
            f"{config.max_seq_length} less max_completion_length {config.max_completion_length} "
            f"leaves {room}: raise max_seq_length to {longest + config.max_completion_length}."
        )
    return fitting
