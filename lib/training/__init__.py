"""Training: TRL's GRPOTrainer with what the suite adds to it, and what is checked before it starts.

`GRPOTrainer` is imported when it is first asked for: Unsloth, where it loads the policy, has to be
imported before TRL.
"""

from collections.abc import Sequence
from typing import Any

from lib.config import Config
from lib.errors import BadInput
from lib.keys import translate
from lib.models import lora_targets
from lib.runs import Run, begin_training, discard, read_json, write_json

GRPOTrainer: type  # TRL's, or Unsloth's, with ours on top
# Whose other values a checkpoint does not fit. Those of an adapter matter where there is one.
OF_A_CHECKPOINT = ("model", "full_finetuning", "algorithm", "num_iterations", "optim")
OF_AN_ADAPTER = ("r", "lora_alpha", "target_modules")


def fresh_checkpoints(config: Config, run: Run) -> None:
    """An empty `checkpoints/` but for `settings.json`: what those to come are made with. What an
    earlier training left is put aside."""
    begin_training(config, run)
    discard(run.checkpoints)
    write_json(run.checkpoints / "settings.json", _settings(config))


def check_resumable(config: Config, run: Run) -> None:
    """Raises BadInput where `resume` is set and the run's checkpoints do not fit the recipe."""
    file, last = run.checkpoints / "settings.json", run.kept_step()
    if not (config.resume and last and file.is_file()):
        return
    before, now = translate(read_json(file)), _settings(config)
    # Where only one of them has an adapter, that says it all.
    differ = [key for key in before.keys() & now.keys() if before[key] != now[key]]
    if differ:
        changes = ", ".join(f"{key} {before[key]} (now {now[key]})" for key in sorted(differ))
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


def check_fills_a_step(rows: Sequence[dict], config: Config) -> None:
    """Raises BadInput where there are fewer training rows than one step takes."""
    if len(rows) < config.prompts_per_step:
        raise BadInput(
            f"{len(rows)} training problems do not fill one step of prompts_per_step "
            f"{config.prompts_per_step}: raise train_problems or lower prompts_per_step.",
            key="too-few-rows",
        )


def check_trainer(config: Config) -> None:
    """Raises BadInput where the algorithm is not that of 03's trainer, TRL's GRPOTrainer."""
    if config.algorithm != "grpo":
        raise BadInput(
            f"03_training trains grpo and the recipe says algorithm {config.algorithm!r}: train "
            f"with 07_grpo_from_scratch, or set it to grpo.",
            key="not-grpo",
        )


def _settings(config: Config) -> dict:
    keys = OF_A_CHECKPOINT if config.full_finetuning else OF_A_CHECKPOINT + OF_AN_ADAPTER
    every = config.model_dump() | {"target_modules": sorted(lora_targets(config))}
    return {key: every[key] for key in keys}


def __getattr__(name: str) -> Any:
    if name == "GRPOTrainer":
        from lib.training.trainer import GRPOTrainer

        return GRPOTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
