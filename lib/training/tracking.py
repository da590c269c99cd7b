"""What goes to Weights & Biases, TensorBoard or Trackio, as the recipe's `report_to` says.

    report_to: [tensorboard, wandb]

transformers' own callbacks log every metric of TRL's under `train/` (for Trackio `Tracking` does,
since transformers' would start a server in a notebook). `Tracking` adds names of the suite's own
(docs/training.md), the alarms as alerts, and in Trackio each step's completions as traces. All of
it lies in the run folder (`tensorboard/`, `wandb/`, `trackio/`) and stays on this machine, unless
Weights & Biases has a key (WANDB_API_KEY, or `wandb login`). Runs that it logged offline go up
later with `wandb sync outputs/<run>/wandb/offline-run-*`. To look: `tensorboard --logdir outputs`,
or `TRACKIO_DIR=outputs/<run>/trackio trackio show`.
"""

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

from transformers import TrainerCallback

from lib.config import Config
from lib.errors import first_line
from lib.hardware import is_main_process
from lib.runs import Run, hushed
from lib.training.live import Alarm

PATIENCE = 30  # seconds for the server of Weights & Biases


class Tracking(TrainerCallback):
    """Adds to what transformers' callbacks log; `completions` keeps the step's rows
    (`lib.training.callbacks.Completions`)."""

    def __init__(self, config: Config, run: Run, completions: Any):
        self.config, self.run, self.completions = config, run, completions
        self.names = config.report_to if is_main_process() else []
        self.raised: set[str] = set()
        if self.names:
            start(config, run)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not (self.names and logs and "reward" in logs):
            return
        rows, step = self.completions.rows, state.global_step
        values = seed_values(state.log_history, rows, self.config.completions_per_step)
        log_values(self.names, values, step, self.run)
        if "trackio" in self.names:
            import trackio

            values = {f"train/{name}": value for name, value in logs.items()}
            trackio.log(values | {"completions": [_trace(row) for row in rows]}, step=step)

    def on_train_end(self, args, state, control, **kwargs):
        finish(self.names, self.run)
        self.names = []

    def alert(self, alarms: Iterable[Alarm]) -> None:
        """Send each alarm once, as the tracker's own alert."""
        for alarm in alarms:
            if alarm.name in self.raised:
                continue
            self.raised.add(alarm.name)
            if "wandb" in self.names and (run := import_module("wandb").run) is not None:
                run.alert(alarm.name[:63], alarm.sentence, level="WARN")
            if "trackio" in self.names:
                with hushed(self.run):  # it prints, too
                    import_module("trackio").alert(alarm.name, alarm.sentence)


def start(config: Config, run: Run) -> None:
    """Begin to log, or go on in the same tracker's run, before transformers does."""
    created = run.recorded().get("created", "")
    os.environ |= {
        "TENSORBOARD_LOGGING_DIR": str(run.folder / "tensorboard"),
        "WANDB_NAME": config.run_name,
        # The same for every notebook of a run, and not for another run of its name.
        "WANDB_RUN_ID": hashlib.sha256(f"{run.folder}{created}".encode()).hexdigest()[:16],
        "WANDB_RESUME": "allow",
        "WANDB_CONSOLE": "off",
        "WANDB_DISABLE_GIT": "true",
        "WANDB_DISABLE_CODE": "true",
    }
    project = os.environ.setdefault("WANDB_PROJECT", "grpo")
    settings, names = config.model_dump(), config.report_to
    if "wandb" in names:
        _start_wandb(run, project, settings)
    if "trackio" in names:
        import trackio

        quiet = dict(embed=False, auto_log_cpu=False, auto_log_gpu=False)  # no server
        with hushed(run):
            trackio.init(project, config.run_name, resume="allow", config=settings, **quiet)


def _start_wandb(run: Run, project: str, settings: dict) -> None:
    for place in ("cache", "config", "data"):  # otherwise in the home folder
        os.environ.setdefault(f"WANDB_{place.upper()}_DIR", str(run.folder / "wandb" / place))
    (run.folder / "wandb").mkdir(exist_ok=True)
    import wandb

    quick = wandb.Settings(init_timeout=PATIENCE, silent=True)
    given = dict(project=project, config=settings, settings=quick)
    try:
        mode = os.environ.get("WANDB_MODE")
        if not (mode or wandb.login(prompt=False, verify=False)):
            mode = "offline"
        wandb.init(**given, mode=mode)
    except wandb.Error as error:
        print(f"wandb logs offline, since {first_line(error)}")
        wandb.teardown()  # the failed start still holds the run's id
        wandb.init(**given, mode="offline")


def finish(names: Sequence[str], run: Run) -> None:
    for name in set(names) & {"wandb", "trackio"}:
        with hushed(run):
            import_module(name).finish()


def _trace(row: Mapping[str, Any]) -> Any:
    from trackio import Trace

    turns = {"user": row["question"], "assistant": row["completion"]}
    messages = [{"role": role, "content": text} for role, text in turns.items()]
    shown = ("id", "answer", "rewards", "total", "advantage", "tokens", "truncated")
    return Trace(messages, {key: row[key] for key in shown})


def seed_values(
    history: Sequence[Mapping], rollouts: Sequence[Mapping], completions: int
) -> dict[str, Any]:
    """What the suite logs besides (docs/training.md), at the last step of TRL's log.

    Args:
        rollouts: the completions of that step; none where it used those of a step before.
        completions: how many a step scores.
    """
    now = history[-1]
    epoch = math.ceil(now.get("epoch", 0.0))
    this_epoch = [r for r in history if "reward" in r and math.ceil(r.get("epoch", 0.0)) == epoch]
    values = {
        "grpo_loss": now.get("loss"),
        "rewards/mean": now["reward"],
        "rewards/std": now.get("reward_std"),
        "epoch/accumulated_reward": completions * sum(row["reward"] or 0.0 for row in this_epoch),
    }
    if not rollouts:
        return values
    best, totals = max(rollouts, key=lambda row: row["advantage"]), [r["total"] for r in rollouts]
    return values | {
        "rewards/max": max(totals),
        "rewards/min": min(totals),
        "sample/prompt": best["question"],
        "sample/response": best["completion"],
        "sample/answer": str(best["answer"]),
    }


def log_values(names: Sequence[str], values: Mapping[str, Any], step: int, run: Run) -> None:
    """Log under these very names, where transformers' callbacks would put `train/` before them."""
    values = {k: v for k, v in values.items() if isinstance(v, (int, float, str)) and v == v}
    if "wandb" in names:
        import_module("wandb").log({**values, "train/global_step": step})
    if "trackio" in names:
        import_module("trackio").log(dict(values), step=step)
    if "tensorboard" in names:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(log_dir=str(run.folder / "tensorboard")) as writer:
            for name, value in values.items():
                add = writer.add_text if isinstance(value, str) else writer.add_scalar
                add(name, value, step)


def log_metrics(run: Run, config: Config, values: Mapping[str, Any], step: int) -> None:
    """Log to where the training logged, after it: `{"eval/pass@1": 0.62}`; `step`: the optimizer
    step that was measured."""
    if config.report_to:
        start(config, run)
        log_values(config.report_to, values, step, run)
        finish(config.report_to, run)
