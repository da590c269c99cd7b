"""What the suite hangs on a training, as callbacks of transformers' Trainer.

    log = StepLog(run, config, len(problems))
    completions = Completions(run, rewards, weights, log)
    GRPOTrainer(…, reward_funcs=completions.rewards, callbacks=[log, completions])

`StepLog` writes `train_log.jsonl`, `Completions` every completion to `rollouts/`. They work on
TRL's own trainer, too; on ours, what they count reaches the trackers as well.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback

from lib.config import Config
from lib.hardware import gpu_energy, gpu_memory_taken
from lib.process import Progress
from lib.rewards import Checked
from lib.runs import Run, append_jsonl
from lib.training.rollouts import advantages, all_alike, rollout_row


class StepLog(TrainerCallback):
    """A row of `train_log.jsonl` each step, and progress.

    Args:
        problems: how many there are to train on, of which an epoch is one pass.
        watch: called with the rows so far after each step.
    """

    def __init__(
        self, run: Run, config: Config, problems: int, watch: Callable[[list], None] | None = None
    ):
        self.run, self.config, self.watch = run, config, watch
        self.steps_an_epoch = problems // config.prompts_per_step * config.num_iterations
        self.rows: list[dict] = []
        self.extra: dict[str, float] = {}  # numbers that others put into the step's row

    def metrics(self) -> dict[str, float]:
        extra, self.extra = self.extra, {}
        return extra

    def on_train_begin(self, args, state, control, **kwargs):
        # A resumed run repeats the steps after its checkpoint.
        self.rows = self.run.rewind(state.global_step)
        self.started = time.time() - (self.rows[-1]["seconds"] if self.rows else 0)
        self.spent = self.run.recorded().get("energy_wh", 0.0) if self.rows else 0.0
        self.energy = gpu_energy()
        self.progress = Progress(args.max_steps, "training", self.run.progress)
        self.progress.update(state.global_step)
        if self.watch and self.rows:
            self.watch(self.rows)

    def on_step_end(self, args, state, control, **kwargs):
        # The trainer's one epoch is all steps in their order; a reader means passes over the data.
        state.epoch = state.global_step / self.steps_an_epoch

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "reward" not in logs:  # a further update from the same batch
            self.progress.update(state.global_step)
            return
        seconds = time.time() - self.started
        row = {"step": state.global_step, "seconds": seconds, **logs, **self.metrics()}
        append_jsonl(self.run.train_log, [row])
        self.rows.append(row)
        reward = logs["reward"]  # None: no reward could judge any completion of this step
        note = "no reward" if reward is None else f"reward {reward:.2f}"
        self.progress.update(state.global_step, note)
        if self.watch:
            self.watch(self.rows)

    def on_train_end(self, args, state, control, **kwargs):
        self.progress.close()
        if self.config.profile != "cpu":
            self.run.note(training_gpu_gib=gpu_memory_taken())
        if self.energy is not None:
            self.run.note(energy_wh=self.spent + gpu_energy() - self.energy)


class Completions(TrainerCallback):
    """Has the rewards judge, and keeps each completion with what it earned.

    Attributes:
        rewards: the functions to give the trainer, which call those that were given.
        rows: of the latest step, as they lie in `rollouts/`.
    """

    def __init__(self, run: Run, rewards: Sequence[Callable], weights: Sequence[float], log: Any):
        self.run, self.log = run, log
        self.weights = np.array(weights, dtype=float)
        self.judges = {reward.__name__: Checked(reward) for reward in rewards}
        self.rewards = [_Judge(name, self) for name in self.judges]
        self.rows: list[dict] = []
        self._batch: tuple | None = None
        self._values: dict[str, list] = {}

    def judge(self, name: str, **columns: Any) -> list[float | None]:
        """What one reward says; the last one ends the batch."""
        values = self._values[name] = self.judges[name](**columns)
        if self._values.keys() == self.judges.keys():
            count, judged, self._values = len(values), self._values, {}
            lists = {k: v for k, v in columns.items() if isinstance(v, list) and len(v) == count}
            self.keep(
                columns["trainer_state"].global_step + 1,
                gather_object([{k: v[i] for k, v in lists.items()} for i in range(count)]),
                {name: gather_object(list(some)) for name, some in judged.items()},
            )
        return values

    def keep(
        self, step: int, rows: Sequence[dict], values: Mapping[str, list], trained: Any = None
    ) -> None:
        """Remember a batch until its step is made.

        Args:
            rows: columns of the data set, completions and completion_ids.
            trained: for each whether it is in the step's batch; None: all.
        """
        rewards_BR = torch.tensor(
            [[np.nan if v is None else v for v in values[name]] for name in self.judges]
        ).T
        trained_B = torch.tensor(trained or [True] * len(rows))
        self._batch = (step, rows, rewards_BR, trained_B)
        self.log.extra["time/rollouts"] = time.perf_counter() - self.began

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()

    def on_pre_optimizer_step(
        self, args, state, control, model=None, processing_class=None, **kwargs
    ):
        if self._batch is None:
            return
        (step, rows, rewards_BR, trained_B), self._batch = self._batch, None
        weights_R = torch.tensor(self.weights)
        advantage_B = torch.zeros(len(rows))
        advantage_B[trained_B] = advantages(rewards_BR[trained_B], weights_R, args)
        ends = model.generation_config.eos_token_id
        ends = {*(ends if isinstance(ends, list) else [ends])}
        ends |= {processing_class.eos_token_id, processing_class.pad_token_id}
        names = list(self.judges)
        self.rows = []
        for i, (row, values) in enumerate(zip(rows, rewards_BR.tolist(), strict=True)):
            ids, paid = row["completion_ids"], dict(zip(names, values, strict=True))
            said = dict(advantage=advantage_B[i].item(), tokens=len(ids))
            said |= dict(truncated=ids[-1] not in ends, trained=bool(trained_B[i]))
            text = row["completions"][-1]["content"]
            self.rows.append(rollout_row(step, row, text, paid, self.weights, **said))
        append_jsonl(self.run.rollouts / f"step_{step:05d}.jsonl", self.rows)
        if rewards_BR.isnan().all(1).any():  # TRL counts a group that none could judge as one
            alike = all_alike(rewards_BR[trained_B], weights_R, args.num_generations)  # with signal
            self.log.extra["frac_reward_zero_std"] = sum(alike) / len(alike)


class _Judge:
    """A reward as TRL calls it."""

    def __init__(self, name: str, completions: Completions):
        self.__name__, self.completions = name, completions

    def __call__(self, scores: Sequence[Mapping] | None = None, **columns: Any) -> list:
        if scores is not None:  # dynamic sampling has had them judged
            return [row[self.__name__] for row in scores]
        return self.completions.judge(self.__name__, **columns)
