"""What goes to Weights & Biases, TensorBoard or Trackio, as the recipe's `report_to` says.

    report_to: [tensorboard, wandb]

transformers' own callbacks log every metric of TRL's under `train/` (for Trackio `Tracking` does,
since transformers' would start a server in a notebook). `Tracking` adds names of the
suite's own (docs/training.md), the alarms as alerts, and in Trackio each step's completions as
traces. All of it lies in
the run folder (`tensorboard/`, `wandb/`, `trackio/`) and stays on this machine, unless Weights &
Biases has a key (WANDB_API_KEY, or `wandb login`). Runs that it logged offline go up later with
`wandb sync outputs/<run>/wandb/offline-run-*`. To look: `tensorboard --logdir outputs`, or
`TRACKIO_DIR=outputs/<run>/trackio trackio show`.
"""

import hashlib
import math
import netrc
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from lib.config import Config
from lib.errors import first_line
from lib.hardware import is_main_process
from lib.runs import Run, hushed
from lib.training.live import Alarm

PROJECT = "grpo"  # WANDB_PROJECT names another
PATIENCE = 30  # seconds for the server of Weights & Biases


def set_up(config: Config, run: Run) -> None:
    """Environment for the trackers, before they are imported: where they write, and which run."""
    created = run.recorded().get("created", "")
    settings = {
        "TENSORBOARD_LOGGING_DIR": str(run.folder / "tensorboard"),
        "TRACKIO_DIR": str(run.folder / "trackio"),
        "WANDB_DIR": str(run.folder),
        "WANDB_NAME": config.run_name,
        # The same for every notebook of a run, and not for another run of its name.
        "WANDB_RUN_ID": hashlib.sha256(f"{run.folder}{created}".encode()).hexdigest()[:16],
        "WANDB_RESUME": "allow",
        "WANDB_CONSOLE": "off",
        "WANDB_DISABLE_GIT": "true",
        "WANDB_DISABLE_CODE": "true",
    }
    os.environ |= settings
    os.environ.setdefault("WANDB_PROJECT", PROJECT)
    for place in ("CACHE", "CONFIG", "DATA"):  # otherwise in the home folder
        os.environ.setdefault(f"WANDB_{place}_DIR", str(run.folder / "wandb" / place.lower()))
    if not has_wandb_key():
        os.environ.setdefault("WANDB_MODE", "offline")
    if "wandb" in config.report_to:
        (run.folder / "wandb").mkdir(exist_ok=True)


class Tracking(TrainerCallback):
    """Adds to what transformers' callbacks log.

    Args:
        completions: keeps the step's rows (`lib.training.callbacks.Completions`).
    """

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
        count = self.config.completions_per_step
        values = seed_values(state.log_history, rows, count)
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
            if "wandb" in self.names:
                import wandb

                if wandb.run is not None:
                    wandb.run.alert(alarm.name[:63], alarm.sentence, level="WARN")
            if "trackio" in self.names:
                import trackio

                with hushed(self.run):  # it prints, too
                    trackio.alert(alarm.name, alarm.sentence)


def start(config: Config, run: Run) -> None:
    """Begin to log, or go on in the same tracker's run, before transformers does."""
    set_up(config, run)
    project, settings = os.environ["WANDB_PROJECT"], config.model_dump()
    if "wandb" in config.report_to:
        import wandb

        quick = wandb.Settings(init_timeout=PATIENCE, silent=True)
        try:
            wandb.init(project=project, config=settings, settings=quick)
        except wandb.Error as error:
            print(f"wandb logs offline, since {first_line(error)}")
            wandb.teardown()  # the failed start still holds the run's id
            wandb.init(project=project, config=settings, settings=quick, mode="offline")
    if "trackio" in config.report_to:
        import trackio

        with hushed(run):
            trackio.init(
                project=project,
                name=config.run_name,
                resume="allow",
                config=settings,
                embed=False,  # or it starts a server in the notebook
                auto_log_cpu=False,
                auto_log_gpu=False,
            )


def finish(names: Sequence[str], run: Run) -> None:
    for name in set(names) & {"wandb", "trackio"}:
        with hushed(run):
            import_module(name).finish()


def _trace(row: Mapping[str, Any]) -> Any:
    from trackio import Trace

    messages = [
        {"role": "user", "content": row["question"]},
        {"role": "assistant", "content": row["completion"]},
    ]
    shown = ("id", "answer", "rewards", "total", "advantage", "tokens", "truncated")
    return Trace(messages, {key: row[key] for key in shown})


def seed_values(
    history: Sequence[Mapping], rollouts: Sequence[Mapping], completions: int
) -> dict[str, Any]:
    """What the suite logs besides (docs/training.md), at the history's last step.

    Args:
        history: what TRL logged, a row a step, with `reward`, `loss` and `epoch`.
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
    if rollouts:
        best = max(rollouts, key=lambda row: row["advantage"])
        values |= {
            "rewards/max": max(row["total"] for row in rollouts),
            "rewards/min": min(row["total"] for row in rollouts),
            "sample/prompt": best["question"],
            "sample/response": best["completion"],
            "sample/answer": str(best["answer"]),
        }
    return values


def log_values(names: Sequence[str], values: Mapping[str, Any], step: int, run: Run) -> None:
    """Log under these very names, where transformers' callbacks would put `train/` before them."""
    values = {k: v for k, v in values.items() if isinstance(v, (int, float, str)) and v == v}
    if "wandb" in names:
        import wandb

        wandb.log({**values, "train/global_step": step})
    if "trackio" in names:
        import trackio

        trackio.log(dict(values), step=step)
    if "tensorboard" in names:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(log_dir=str(run.folder / "tensorboard")) as writer:
            for name, value in values.items():
                add = writer.add_text if isinstance(value, str) else writer.add_scalar
                add(name, value, step)


def log_metrics(
    run: Run, config: Config, values: Mapping[str, Any], step: int | None = None
) -> None:
    """Log to where the training logged, after it: `{"eval/pass@1": 0.62}`.

    Args:
        step: the optimizer step that was measured; None: the last one.
    """
    names = config.report_to
    if not names:
        return
    start(config, run)
    log_values(names, values, config.max_steps if step is None else step, run)
    finish(names, run)


def has_wandb_key() -> bool:
    """Whether Weights & Biases could log in without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
