"""What a stopped run goes on from: the adapter, the optimizer's state, and the step.

    checkpoints/lora_epoch{N}_step{S}/adapter_model.safetensors   as peft reads it
                                      optimizer.safetensors       Adam's two moments and count
                                      value_head.safetensors      PPO's
                                      state.json                  step and epoch

Nothing else is needed: what a step draws depends on the seed and the step alone.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file

from lib.runs import Run, discard, read_json, write_json, written_whole
from lib.scratch.lora import load_lora, save_lora
from lib.scratch.steps import step_rows

if TYPE_CHECKING:
    from lib.scratch.loop import Learner

KEPT = 2  # the latest so many


def keep_adapter(learner: "Learner", folder: Path) -> None:
    """The adapter and the tokenizer, in a folder that peft loads."""
    with written_whole(folder) as beside:
        _save_adapter(learner, beside)


def _save_adapter(learner: "Learner", folder: Path) -> None:
    save_lora(learner.model, folder, str(learner.base))
    learner.tokenizer.save_pretrained(folder)


def save_checkpoint(learner: "Learner") -> Path:
    """Write the learner's state; returns its folder. Older checkpoints but the latest go."""
    _, epoch = step_rows(learner.rows, learner.config, learner.step)
    folder = learner.run.checkpoints / f"lora_epoch{epoch}_step{learner.step}"
    state = {
        f"{i}.{key}": value
        for i, entry in learner.optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }
    with written_whole(folder) as beside:
        _save_adapter(learner, beside)
        save_file(state, beside / "optimizer.safetensors")
        if learner.value_head:
            save_file(learner.value_head.state_dict(), beside / "value_head.safetensors")
        write_json(beside / "state.json", {"step": learner.step, "epoch": epoch})
    for old in checkpoints(learner.run)[:-KEPT]:
        discard(old)
    return folder


def load_checkpoint(learner: "Learner", folder: Path) -> None:
    """Put adapter, optimizer and step back as they were."""
    load_lora(learner.model, folder)
    if learner.value_head:
        learner.value_head.load_state_dict(load_file(folder / "value_head.safetensors"))
    whole = learner.optimizer.state_dict()
    whole["state"] = {}
    for name, value in load_file(folder / "optimizer.safetensors").items():
        i, key = name.split(".")
        whole["state"].setdefault(int(i), {})[key] = value
    learner.optimizer.load_state_dict(whole)
    learner.step = read_json(folder / "state.json")["step"]


def checkpoints(run: Run) -> list[Path]:
    """The run's checkpoints, oldest first."""
    found = run.checkpoints.glob("lora_epoch*_step*")
    return sorted(found, key=step_of)


def last_checkpoint(run: Run) -> Path | None:
    return next(reversed(checkpoints(run)), None)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("step")[2])
