"""Trainings that are killed, fail and go on, each in a process of its own; a script for a test.

    python -m tests.lives FOLDER MODEL

Library and model are loaded once; each training is a fork that finds them as they were. What
a fork says lies in FOLDER/<name>.txt, beside the run folders.
"""

import gc
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from lib.config import resolve
from lib.errors import Stopped
from lib.models import load_policy
from lib.process import quiet_process
from lib.runs import Run
from lib.tasks import load_problems, make_rows
from lib.training import make_trainer, save_trained, set_aside, train
from lib.training.callbacks import StepLog, Validation
from lib.training.rollouts import RolloutEngine
from tests.conftest import CPU, SMALL

# Two batches an epoch, so that a resume finds its place in a later one, too.
SETTINGS = SMALL | dict(
    max_steps=4,
    train_problems=5,
    validation_steps=2,
    validation_problems=1,
    num_generations=2,
    lora_r=4,
    lora_targets=["q_proj", "v_proj"],
    learning_rate=1e-3,
    lr_scheduler="linear",
    save_steps=1,
    keep="best",
)
POLICY = None  # loaded in main


def length(completions, **_) -> list[float]:
    """A reward that tells completions apart at once."""
    return [float(len(completion[0]["content"])) for completion in completions]


class At:
    """The same reward, which does something else when its `step`-th batch comes."""

    __name__ = "length"

    def __init__(self, step: int, act: Callable[[], None]):
        self.step, self.act = step, act

    def __call__(self, completions, trainer_state, **columns):
        if trainer_state.global_step + 1 == self.step:
            self.act()
        return length(completions)


def life(folder: Path, reward: Callable = length, spoil: Callable | None = None, **changes) -> None:
    """What 03_training does; `spoil` may do harm to the trainer before it starts."""
    config = resolve("ci", {"output_dir": str(folder.parent), **SETTINGS, **changes}, CPU)
    run = Run(folder)
    task, training, _, examples = load_problems(config)
    training, aside = set_aside(training, config)
    rows, asked = (make_rows(some, config.prompt_format, 0, examples) for some in (training, aside))
    trainer = make_trainer(POLICY, rows, [reward], [1.0], config, run)
    if config.validation_steps:
        log = next(c for c in trainer.callback_handler.callbacks if isinstance(c, StepLog))
        engine = trainer.engine.engine if trainer.engine else None
        trainer.add_callback(Validation(POLICY, aside, asked, task, config, run, log, engine))
    if spoil:
        spoil(trainer)
    train(trainer, config, run)
    print(save_trained(POLICY, config, run))


def start(folder: Path, name: str, do: Callable[[], None]) -> int:
    """Does it in a fork, whose process id is returned."""
    child = os.fork()
    if child:
        return child
    log = os.open(folder / f"{name}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        do()
    except Stopped as error:
        print("Stopped:", error)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(0)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_save(step: int) -> Callable:
    """Kills it when a checkpoint has its weights and not yet its random state."""

    def spoil(trainer):
        save = trainer._save_rng_state

        def saved(output_dir):
            if trainer.state.global_step == step:
                die()
            save(output_dir)

        trainer._save_rng_state = saved

    return spoil


def vanish() -> None:
    Path("/nowhere/reward_model.safetensors").read_bytes()


def fill_log(log: Path) -> None:
    log.unlink(missing_ok=True)
    log.symlink_to("/dev/full")


def fill_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))


def no_number_at(step: int) -> Callable:
    def spoil(trainer):
        compute = trainer.compute_loss

        def computed(*args, **options):
            loss = compute(*args, **options)
            return loss * float("nan") if trainer.state.global_step + 1 == step else loss

        trainer.compute_loss = computed

    return spoil


def main(folder: Path, model: str) -> None:
    global POLICY
    quiet_process(Run(folder))
    SETTINGS["model"] = model
    import lib.training.trainer  # noqa: F401 (here, and not anew in each fork)

    POLICY = load_policy(resolve("ci", SETTINGS, CPU))
    gc.collect()
    gc.freeze()  # so that no fork looks through all of it

    def live(run: str, name: str = "", **options) -> None:
        os.waitpid(start(folder, name or run, lambda: life(folder / run, **options)), 0)

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def by_transformers() -> None:
        live("whole")
        live("whole", "done_before", resume=True)
        # One run, which whatever can happens to, and which goes on each time.
        live("stopped", "killed", spoil=die_in_save(2))
        shutil.copytree(folder / "stopped", folder / "as_killed")
        live("stopped", "sliced", stop_at=2, resume=True, save_steps=50)  # as a race does
        live("stopped", "vanished", reward=At(3, vanish), resume=True, save_steps=50)
        live("stopped", "nan", spoil=no_number_at(3), resume=True)
        live("stopped", "interrupted", reward=At(3, interrupt), resume=True, save_steps=50)
        shutil.copytree(folder / "stopped", folder / "as_interrupted")
        live("stopped", "killed_again", reward=At(4, die), resume=True)
        live("stopped", "resumed", resume=True)
        changed = dict(max_steps=5, micro_batch=2, learning_rate=1e-4)
        changed |= dict(validation_steps=3, keep="last")
        live("as_interrupted", "full", reward=At(4, fill_disk), resume=True, **changed)

    def by_vllm() -> None:
        updates = dict(rollout_engine="vllm", num_iterations=2)
        engine = RolloutEngine.start(resolve("ci", SETTINGS | updates, CPU), POLICY)
        RolloutEngine.start = lambda *_: engine  # in each fork as it started
        live("vllm", **updates)
        live("vllm_stopped", "vllm_killed", reward=At(3, die), **updates)
        live("vllm_stopped", "vllm_resumed", resume=True, **updates)
        live("full_log", reward=At(1, lambda: fill_log(folder / "full_log" / "train_log.jsonl")))

    chains = [start(folder, chain.__name__, chain) for chain in (by_transformers, by_vllm)]
    for chain in chains:
        os.waitpid(chain, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
