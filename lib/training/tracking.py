"""Logging to Weights & Biases, TensorBoard or Trackio, as the recipe's `report_to` says.

    report_to: [tensorboard, wandb]

Everything lies in the run folder (`tensorboard/`, `wandb/`, `trackio/`) and stays on this
machine, unless Weights & Biases has a key (WANDB_API_KEY, or `wandb login`). Runs that it
logged offline go up later with `wandb sync outputs/<run>/wandb/offline-run-*`. To look:
`tensorboard --logdir outputs`, or `TRACKIO_DIR=outputs/<run>/trackio trackio show`.

A tracker that fails is told once and left out from then on: no run ends for it.
"""

import hashlib
import math
import netrc
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lib.config import Config
from lib.errors import first_line
from lib.runs import Run, hushed, read_rollouts

PROJECT = "grpo"  # WANDB_PROJECT names another

# What is logged, beside every further metric of TRL's under `train/`.
NAMES = {
    "grpo_loss": "the optimizer step's loss; the same as train/loss",
    "rewards/mean": "weighted reward of the step's completions: mean",
    "rewards/std": "… their standard deviation",
    "rewards/max": "… the highest",
    "rewards/min": "… the lowest",
    "epoch/accumulated_reward": "sum of all completions' weighted rewards since the epoch began",
    "sample/prompt": "the problem of one completion of the step, the one of highest advantage",
    "sample/response": "that completion",
    "sample/answer": "its gold answer",
    "train/loss": "TRL's loss",
    "train/reward": "TRL's mean of the weighted rewards",
    "train/reward_std": "TRL's standard deviation of them",
    "train/frac_reward_zero_std": "share of groups without signal",
    "train/clip_ratio/region_mean": "share of tokens whose ratio is clipped",
    "train/learning_rate": "the schedule's present value",
    "train/epoch": "passes over the training problems",
    "train/global_step": "optimizer step; the x-axis",
    "eval/pass@1": "held-out problems answered by the greedy completion, strict; after training",
    "eval/pass@5": "… by at least one of 5 samples, unbiased estimate (Chen et al. 2021)",
    "eval/pass@10": "… of 10",
}


class Tracker(Protocol):
    """Where numbers and texts go."""

    def log(self, values: Mapping[str, Any], step: int | None) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    def __init__(self, config: Config, run: Run):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(log_dir=str(run.folder / "tensorboard"))

    def log(self, values: Mapping[str, Any], step: int | None) -> None:
        for name, value in values.items():
            add = self.writer.add_text if isinstance(value, str) else self.writer.add_scalar
            add(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """Offline where there is no key or the server does not answer."""

    patience = 30  # seconds for the server

    def __init__(self, config: Config, run: Run):
        for place in ("CACHE", "CONFIG", "DATA"):  # else in the home folder
            os.environ.setdefault(f"WANDB_{place}_DIR", str(run.folder / "wandb" / place.lower()))
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if has_wandb_key() else "offline")
        try:
            self.run = self._init(wandb, mode, config, run)
        except wandb.Error as error:
            print(f"wandb is logged offline, since {first_line(error)}")
            wandb.teardown()  # the failed start still holds the run's id
            self.run = self._init(wandb, "offline", config, run)
        self.run.define_metric("*", step_metric="train/global_step")

    def _init(self, wandb: Any, mode: str, config: Config, run: Run) -> Any:
        (run.folder / "wandb").mkdir(exist_ok=True)
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=config.run_name,
            id=_run_id(run),
            resume="allow",  # the evaluation goes to where the training went
            dir=str(run.folder),
            mode=mode,
            config=config.model_dump(),
            settings=wandb.Settings(
                init_timeout=self.patience,
                console="off",
                disable_git=True,
                save_code=False,
                silent=True,
            ),
        )

    def log(self, values: Mapping[str, Any], step: int | None) -> None:
        at = {} if step is None else {"train/global_step": step}
        self.run.log({**values, **at})

    def close(self) -> None:
        self.run.finish()


class Trackio:
    def __init__(self, config: Config, run: Run):
        os.environ.setdefault("TRACKIO_DIR", str(run.folder / "trackio"))
        import trackio

        self.trackio = trackio
        self.run = run
        with hushed(run):
            trackio.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=config.run_name,
                resume="allow",
                config=config.model_dump(),
                embed=False,  # else it starts a server in the notebook
                auto_log_cpu=False,
                auto_log_gpu=False,
            )

    def log(self, values: Mapping[str, Any], step: int | None) -> None:
        self.trackio.log(dict(values), step=step)

    def close(self) -> None:
        with hushed(self.run):
            self.trackio.finish()


TRACKERS: dict[str, Callable[[Config, Run], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
}


class Trackers:
    """All that `report_to` names; one that fails is told and left out."""

    def __init__(self, config: Config, run: Run):
        self.open: dict[str, Tracker] = {}
        for name in config.report_to:
            self._try(name, lambda name=name: self.open.update({name: TRACKERS[name](config, run)}))

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        values = {name: value for name, value in values.items() if _loggable(value)}
        for name, tracker in list(self.open.items()):
            self._try(name, lambda tracker=tracker: tracker.log(values, step))

    def close(self) -> None:
        for name, tracker in list(self.open.items()):
            self._try(name, tracker.close)
        self.open = {}

    def _try(self, name: str, what: Callable[[], Any]) -> None:
        try:
            what()
        except Exception as error:  # whatever it is, the run is worth more
            self.open.pop(name, None)
            print(f"{name} logs no more, and the run goes on: {first_line(error)}")


def tracking_callback(config: Config, run: Run) -> Any:
    """A TrainerCallback that logs each step under the names above; add it after the others."""
    from transformers import TrainerCallback
    from transformers.integrations.integration_utils import rewrite_logs

    class Tracking(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.trackers = Trackers(config, run)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if not self.trackers.open:
                return
            step = state.global_step
            values = rewrite_logs(logs or {}) | {"train/global_step": step}
            if logs and "reward" in logs:
                rollouts = read_rollouts(run, step)
                values |= seed_values(state.log_history, rollouts, config.completions_per_step)
            self.trackers.log(values, step)

        def on_train_end(self, args, state, control, **kwargs):
            self.trackers.close()

    return Tracking()


def seed_values(
    history: Sequence[Mapping], rollouts: Sequence[Mapping], completions: int
) -> dict[str, Any]:
    """The values of NAMES that TRL does not log itself, at the history's last step.

    Args:
        history: what TRL logged, a row a step, with `reward`, `loss` and `epoch`.
        rollouts: the completions of that step; none where it used those of a step before.
        completions: how many a step scores.
    """
    now = history[-1]
    this_epoch = [row for row in history if "reward" in row and _epoch(row) == _epoch(now)]
    values = {
        "grpo_loss": now.get("loss"),
        "rewards/mean": now["reward"],
        "rewards/std": now.get("reward_std"),
        "epoch/accumulated_reward": completions * sum(row["reward"] or 0.0 for row in this_epoch),
    }
    if rollouts:
        totals = np.array([row["total"] for row in rollouts], dtype=float)
        best = max(rollouts, key=lambda row: row["advantage"])
        values |= {
            "rewards/max": float(np.nanmax(totals)),
            "rewards/min": float(np.nanmin(totals)),
            "sample/prompt": best["question"],
            "sample/response": best["completion"],
            "sample/answer": str(best["answer"]),
        }
    return values


def log_metrics(
    run: Run, config: Config, values: Mapping[str, Any], step: int | None = None
) -> None:
    """Log to where the training logged, after it: `{"eval/pass@1": 0.62}`.

    Args:
        step: the optimizer step that was measured; None: the last one.
    """
    trackers = Trackers(config, run)
    trackers.log(values, config.max_steps if step is None else step)
    trackers.close()


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


def _run_id(run: Run) -> str:
    """The same for every notebook of a run, and not for another run of its name."""
    created = run.recorded().get("created", "")
    return hashlib.sha256(f"{run.folder}{created}".encode()).hexdigest()[:16]


def _epoch(row: Mapping) -> int:
    return math.ceil(row.get("epoch", 0.0))


def _loggable(value: Any) -> bool:
    return isinstance(value, (int, float, str)) and value == value
