"""A run that is not lost: whole checkpoints, a resume that is the same run, a stop in words.

transformers writes a checkpoint file by file under its final name, and a resume takes the
latest name it finds. Here the name appears when all files are on the disk. It holds the
adapter (safetensors), the optimizer's, scheduler's and random generators' state (read back
with torch's weights_only), the step, and what callbacks export (`ExportableState`).

On a CPU the resumed run's rewards and adapter are those of a run that was not stopped.

`survived` and `need_number` serve the loop of `lib.scratch.loop`, too.
"""

import errno
import math
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from lib.errors import BadInput, Stopped
from lib.runs import Run, written_whole

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # a disk, a quota, a limit on a file's size


class Lasting(Protocol):
    """A training that `survived` keeps.

    Attributes:
        stop_asked: True has it stop when the present batch is done with, with a checkpoint.
    """

    stop_asked: bool

    @property
    def kept_step(self) -> int | None:
        """Of the latest checkpoint; None without one."""

    def keep_last_step(self) -> None:
        """Write a checkpoint of the last step that was done, where one can be gone on from."""


class Surviving:
    """What a trainer of transformers needs to be `Lasting`; a mix-in, named before it.

    Attributes:
        run: where its checkpoints lie.
    """

    run: Run
    stop_asked = False
    _beside: Path | None = None  # where a checkpoint is being written
    _step_end: tuple | None = None  # random state and token count; None while weights move

    def _save_checkpoint(self, model, trial):
        from transformers.trainer_utils import rotate_checkpoints

        place = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            with written_whole(place) as self._beside:
                super()._save_checkpoint(model, trial)
                (self._beside / "training_args.bin").unlink()  # a pickle that nothing reads
        finally:
            self._beside = None
        rotate_checkpoints(self.args.output_dir, self.args.save_total_limit)

    def _get_output_dir(self, trial):
        return str(self._beside.parent) if self._beside else super()._get_output_dir(trial)

    def _load_optimizer_and_scheduler(self, checkpoint):
        """As they were, but for the learning rate, which is the recipe's."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        rate, schedule = self.args.learning_rate, self.lr_scheduler
        schedule.base_lrs = [rate] * len(schedule.base_lrs)
        for group, shape in zip(self.optimizer.param_groups, schedule.lr_lambdas, strict=True):
            group["lr"] = rate * shape(schedule.last_epoch)
        schedule._last_lr = [group["lr"] for group in self.optimizer.param_groups]  # for the log

    def _get_train_sampler(self, dataset=None):
        sampler = super()._get_train_sampler(dataset)

        def set_epoch(epoch: int) -> None:
            """TRL's order of this epoch, also where the ones before were not walked through."""
            sampler.generator.manual_seed(sampler.seed)
            for _ in range(epoch):
                torch.randperm(sampler.num_samples, generator=sampler.generator)

        if sampler.shuffle:
            sampler.set_epoch = set_epoch
        return sampler

    def _run_epoch(self, **options):
        """Nothing, where a resumed run has all its steps: transformers would do one more."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**options)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        need_number("loss", loss, self.state.global_step + 1)
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        if not self.args.fp16:  # whose scaler leaves out a step that overflows
            need_number("gradient", norm, self.state.global_step + 1)
        self._step_end = None
        return norm

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        step_end = random_state(), self.state.num_input_tokens_seen
        batch_done = self.state.global_step % self.num_iterations == 0
        if self.stop_asked and batch_done:
            self.control.should_save = self.control.should_training_stop = True
        if not batch_done:  # as where max_steps ends within a batch
            self.control.should_save = False
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._step_end = step_end if batch_done else None

    @property
    def kept_step(self) -> int | None:
        last = resume_point(self.run)
        return int(last.name.rpartition("-")[2]) if last else None

    def keep_last_step(self) -> None:
        place = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self._step_end is None or place.exists():
            return
        state, self.state.num_input_tokens_seen = self._step_end
        set_random_state(state)
        self._save_checkpoint(self.model, None)


def need_number(what: str, value: Any, step: int) -> None:
    """Raises BadInput where a step's loss or gradient is NaN or infinite."""
    if not math.isfinite(value):
        raise BadInput(
            f"The {what} of step {step} is no number ({float(value)}), so the weights were left "
            f"as they are: lower learning_rate, or set precision to fp32."
        )


@contextmanager
def survived(training: Lasting, run: Run) -> Iterator[None]:
    """Inside it trains; whatever ends that, the last step that was done is kept.

    An interrupt (Ctrl-C, a notebook's stop button, SIGTERM) lets the present step finish;
    a second one does not.

    Raises:
        Stopped: interrupted, the disk is full, or a BadInput; it says from which step to go on.
    """
    try:
        with _stop_when_asked(training):
            yield
    except Exception as error:
        with suppress(BadInput):  # where it cannot be written, what is kept already must do
            training.keep_last_step()
        if isinstance(error, OSError) and error.errno in FULL:
            reason = f"The disk with {run.shown(run.folder)} is full: make room on it."
        elif isinstance(error, BadInput):
            reason = str(error)
        else:
            error.add_note(_way_on(training))
            raise
        raise Stopped(f"{reason} {_way_on(training)}") from error
    if training.stop_asked:
        raise Stopped(f"Training was interrupted. {_way_on(training)}")


def resume_point(run: Run) -> Path | None:
    """The latest checkpoint of transformers' trainer."""
    from transformers.trainer_utils import get_last_checkpoint

    found = get_last_checkpoint(str(run.checkpoints)) if run.checkpoints.is_dir() else None
    return Path(found) if found else None


def _way_on(training: Lasting) -> str:
    if training.kept_step is None:
        return "No step was kept."
    return f"Step {training.kept_step} is kept: resume goes on from it."


@contextmanager
def _stop_when_asked(training: Lasting) -> Iterator[None]:
    training.stop_asked = False
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return

    def ask(number: int, frame: Any) -> None:
        signal.signal(number, before[number])
        training.stop_asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def random_state() -> tuple:
    """Of Python's, numpy's and torch's generators, those on GPUs as well."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def set_random_state(state: tuple) -> None:
    python, numpy, cpu, cuda = state
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
