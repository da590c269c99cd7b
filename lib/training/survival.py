"""A run that is not lost: whole checkpoints, a resume that is the same run, a stop in words.

`Survival` keeps a training of TRL's; `survived` and `need_number` serve the loop of
`lib.scratch.loop`, too.
"""

import errno
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import TrainerCallback

from lib.config import Config
from lib.errors import BadInput, Stopped
from lib.files import discard, on_disk, raise_if_disk
from lib.memory import ran_out, shape_of
from lib.process import on_interrupt, random_state, set_random_state
from lib.runs import Run, is_whole
from lib.stack import is_out_of_memory

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # a disk, a quota, a limit on a file's size


class Survival(TrainerCallback):
    """Whole checkpoints, no step by a gradient that is no number, a stop in words.

    On a CPU, the resumed run's rewards and adapter are those of a run that was not stopped.

    transformers writes a checkpoint file by file under its final name; `on_save` makes it whole by
    removing `training_args.bin`, a pickle that nothing reads. One interrupt (Ctrl-C, a notebook's
    stop button, SIGTERM) lets the present step finish; a second one does not.
    """

    trainer: Any = None

    def __init__(self, run: Run, config: Config):
        self.run, self.config = run, config
        self.stop_asked = ""
        self._step_end: tuple | None = None  # random state and token count; None: weights move

    def on_train_begin(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
        if state.global_step and hasattr(lr_scheduler, "lr_lambdas"):
            # As they were, but for the recipe's rate.
            lr_scheduler.base_lrs = [args.learning_rate] * len(lr_scheduler.base_lrs)
            for group, shape in zip(optimizer.param_groups, lr_scheduler.lr_lambdas, strict=True):
                group["lr"] = args.learning_rate * shape(lr_scheduler.last_epoch)
            lr_scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]  # for the log

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not args.fp16:  # whose scaler leaves out a step that overflows
            slopes = [p.grad for p in model.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(slopes)
            need_number("gradient", norm, state.global_step + 1)
        self._step_end = None

    def on_step_end(self, args, state, control, **kwargs):
        batch_done = state.global_step % args.num_iterations == 0
        if 0 < self.config.stop_at <= state.global_step < state.max_steps:
            self.stop_asked = f"Training stopped at step {state.global_step}, as stop_at says."
        if args.world_size > 1:  # a signal reaches the processes in different steps
            self.stop_asked = max(gather_object([self.stop_asked]))
        if self.stop_asked and batch_done:
            control.should_save = control.should_training_stop = True
        if not batch_done:  # as where max_steps ends within a batch
            control.should_save = False

    def on_log(self, args, state, control, **kwargs):
        # All that a step does is done, but for its checkpoint.
        if state.global_step % args.num_iterations == 0:
            self._step_end = random_state(), state.num_input_tokens_seen

    def on_save(self, args, state, control, **kwargs):
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            place = self._checkpoint(state)
            on_disk(place)
            (place / "training_args.bin").unlink(missing_ok=True)

    def _checkpoint(self, state: Any) -> Path:
        return self.run.checkpoints / f"checkpoint-{state.global_step}"

    @contextmanager
    def around(self, trainer: Any) -> Iterator[None]:
        """What `GRPOTrainer.train` trains within."""
        self.trainer = trainer
        with survived(self, self.run):
            try:
                yield
            except Exception as error:
                if is_out_of_memory(error):
                    raise ran_out(shape_of(trainer.model.config.to_dict()), self.config) from error
                place = self._checkpoint(trainer.state)
                if place.is_dir() and not is_whole(place):
                    discard(place)  # the room it took is given back
                    raise_if_disk(error, place)
                raise

    def keep_last_step(self) -> None:
        place = self._checkpoint(self.trainer.state)
        alone = self.trainer.args.world_size == 1  # of several processes the others may not come
        if self._step_end is None or place.exists() or not alone:
            return
        state, self.trainer.state.num_input_tokens_seen = self._step_end
        set_random_state(state)
        try:
            self.trainer.keep_last_step()
        except Exception:  # a full disk: what is kept already must do
            discard(place)


@contextmanager
def survived(training: Any, run: Run) -> Iterator[None]:
    """Train within it: what was done is kept, and `Stopped` says why it ended (an interrupt, a full
    disk, a BadInput) and from which step to go on.

    The training has `stop_asked`, why it is to stop, with a checkpoint, once the present batch is
    done; and `keep_last_step()`, which writes one of the last step, where a run can go on from it.
    """

    def way_on() -> str:
        step = run.kept_step()
        return f"Step {step} is kept: resume goes on from it." if step else "No step was kept."

    def stop(number: int) -> None:
        training.stop_asked = "Training was interrupted."

    training.stop_asked = ""
    try:
        with on_interrupt(stop):
            yield
    except Exception as error:
        with suppress(BadInput):
            training.keep_last_step()
        if isinstance(error, OSError) and error.errno in FULL:
            reason = f"The disk with {run.shown(run.folder)} is full: make room on it."
        elif isinstance(error, BadInput):
            reason = str(error)
        else:
            error.add_note(way_on())
            raise
        raise Stopped(f"{reason} {way_on()}", getattr(error, "key", "")) from error
    if training.stop_asked:
        raise Stopped(f"{training.stop_asked} {way_on()}", key="interrupted")


def need_number(what: str, value: Any, step: int) -> None:
    """Raises BadInput where a step's loss or gradient is NaN or infinite."""
    if not math.isfinite(value):
        raise BadInput(
            f"The {what} of step {step} is not a number ({float(value)}), so the weights were "
            f"left as they are: lower learning_rate, or set precision to fp32.",
            key="not-a-number",
        )


def resume_point(run: Run) -> Path | None:
    """The latest whole checkpoint; those that a kill or a full disk left in part are deleted, by
    the first process, and no process takes one for whole."""
    whole = run.kept("checkpoint-*")
    for left in {*run.checkpoints.glob("checkpoint-*")} - {*whole}:
        discard(left)
    return whole[-1] if whole else None
