"""What a stopped run goes on from: the adapter, the optimizer's state, and the step.

    checkpoints/lora_epoch{N}_step{S}/adapter_model.safetensors   as peft reads it
                                      optimizer.safetensors       Adam's two moments and count
                                      state.json                  step and epoch

Nothing else is needed: what a step draws depends on the seed and the step alone.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file

from lib.lora import load_lora, save_lora
from lib.runs import Run, read_json, write_json

if TYPE_CHECKING:
    from lib.grpo_loop import Learner

KEPT = 2  # the latest so many


def keep_adapter(learner: "Learner", folder: Path) -> Path:
    """The adapter and the tokenizer, in a folder that peft loads; written beside and renamed."""
    beside = folder.with_name(f".{folder.name}")
    shutil.rmtree(beside, ignore_errors=True)
    save_lora(learner.model, beside, str(learner.base))
    learner.tokenizer.save_pretrained(beside)
    shutil.rmtree(folder, ignore_errors=True)
    return beside.rename(folder)


def save_checkpoint(learner: "Learner", epoch: int) -> Path:
    """Write the learner's state; returns its folder. Older checkpoints but the latest go."""
    name = f"lora_epoch{epoch}_step{learner.step}"
    beside = keep_adapter(learner, learner.run.checkpoints / f".{name}")
    state = {
        f"{i}.{key}": value
        for i, entry in learner.optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }
    save_file(state, beside / "optimizer.safetensors")
    write_json(beside / "state.json", {"step": learner.step, "epoch": epoch})
    folder = beside.with_name(name)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    for old in checkpoints(learner.run)[:-KEPT]:
        shutil.rmtree(old)
    return folder


def load_checkpoint(learner: "Learner", folder: Path) -> None:
    """Put adapter, optimizer and step back as they were."""
    load_lora(learner.model, folder)
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
    return sorted(found, key=lambda path: int(path.name.rpartition("step")[2]))


def last_checkpoint(run: Run) -> Path | None:
    return next(reversed(checkpoints(run)), None)
