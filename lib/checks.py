"""What can be known to be wrong before anything slow starts."""

from collections.abc import Sequence
from pathlib import Path

from lib.config import ROOT, Config, resolve
from lib.errors import BadInput
from lib.hardware import GIB, detect_hardware
from lib.memory import SHAPES, ModelShape, check_fit, read_shape
from lib.models import EMBEDDED, is_hub_name, lora_targets, model_folder
from lib.rewards import recipe_rewards
from lib.runs import Run, begin_training, discard, read_json, write_json
from lib.tasks import Problem, Task, few_shot_examples, get_format, get_task, sample_problems

# Whose other values a checkpoint does not fit. Those of an adapter matter where there is one.
OF_A_CHECKPOINT = ("model", "full_finetuning", "algorithm", "num_iterations", "optim")
OF_AN_ADAPTER = ("lora_r", "lora_alpha", "lora_targets")


def check_inputs(config: Config, run: Run) -> None:
    """Rewards, data, model, memory and disk, in the order of how soon they can be told.

    Raises:
        BadInput: for the first that does not work.
    """
    recipe_rewards(config)
    get_format(config.prompt_format)
    load_problems(config)
    if config.side_task:
        load_problems(side_config(config))
    shape = find_shape(config)
    if shape:
        check_fit(config, shape, detect_hardware(config.gpu_memory_cap))
        run.need_disk(disk_needed(config, shape), f"A run of {config.model}")


def side_config(config: Config) -> Config:
    """The recipe with the side task's keys in place of its own; greedy answers only.

    Raises:
        BadInput: an unknown key, or a value that does not work.
    """
    keys = {"eval_samples": 0, "task_config": {}} | config.side_task | {"side_task": {}}
    return resolve(None, config.model_dump() | keys)


def check_fills_a_step(rows: Sequence[dict], config: Config) -> None:
    """Raises BadInput where there are fewer training rows than one step takes."""
    if len(rows) < config.prompts_per_step:
        raise BadInput(
            f"{len(rows)} training problems do not fill one step of prompts_per_step "
            f"{config.prompts_per_step}: raise train_problems or lower prompts_per_step."
        )


def check_trainer(config: Config) -> None:
    """Raises BadInput where the algorithm is not that of 03's trainer, TRL's GRPOTrainer."""
    if config.algorithm != "grpo":
        raise BadInput(
            f"03_training trains grpo and the recipe says algorithm {config.algorithm!r}: train "
            f"with 07_grpo_from_scratch, or set it to grpo."
        )


def fresh_checkpoints(config: Config, run: Run) -> None:
    """An empty `checkpoints/` but for `settings.json`: what those to come are made with. What an
    earlier training left is put aside."""
    begin_training(config, run)
    discard(run.checkpoints)
    write_json(run.checkpoints / "settings.json", _settings(config))


def check_resumable(config: Config, run: Run) -> None:
    """Raises BadInput where `resume` is set and the run's checkpoints do not fit the recipe."""
    file = run.checkpoints / "settings.json"
    kept = any(path.is_dir() for path in run.checkpoints.glob("[!.]*"))
    if not (config.resume and kept and file.is_file()):
        return
    before, now = read_json(file), _settings(config)
    # Where only one of them has an adapter, that says it all.
    differ = [key for key in before.keys() & now.keys() if before[key] != now[key]]
    if differ:
        told = ", ".join(f"{key} {before[key]} (now {now[key]})" for key in sorted(differ))
        raise BadInput(
            f"The checkpoints in {run.shown(run.checkpoints)} were made with {told}: give the old "
            f"value to go on from them, or another `run` to begin anew in a folder of that name."
        )


def _settings(config: Config) -> dict:
    keys = OF_A_CHECKPOINT if config.full_finetuning else OF_A_CHECKPOINT + OF_AN_ADAPTER
    every = config.model_dump() | {"lora_targets": sorted(lora_targets(config))}
    return {key: every[key] for key in keys}


def find_shape(config: Config) -> ModelShape | None:
    """The model's size; None for one on the Hub that has not been fetched yet."""
    if config.model in SHAPES:
        return SHAPES[config.model]
    if is_hub_name(config.model) and not (ROOT / config.model).is_dir():
        return None
    return read_shape(model_folder(config))


def disk_needed(config: Config, shape: ModelShape) -> float:
    """GiB: checkpoints (two kept, a third while it is written) and the merged model."""
    trained = shape.parameters if config.full_finetuning else shape.lora_parameters(config.lora_r)
    checkpoint = trained * (4 + 8)  # weights, and Adam's two moments
    converted = 2 * shape.parameters if config.model == EMBEDDED else 0
    return (3 * checkpoint + 2 * 2 * shape.parameters + converted) / GIB


def load_problems(config: Config) -> tuple[Task, list[Problem], list[Problem], list[Problem]]:
    """The task, its training problems, its held-out problems, and the worked examples.

    No held-out question is a training question or an example.

    Raises:
        BadInput: the data are not there, or too few.
    """
    task = get_task(config.task, config.task_config)
    data_dir = find_data_dir(config)
    examples = few_shot_examples(task, config.shots, data_dir)
    shown = {example.question for example in examples}
    held_out = [p for p in task.load("test", data_dir) if p.question not in shown]
    held_out = sample_problems(held_out, config.eval_problems, seed=0)
    asked = shown | {problem.question for problem in held_out}
    source = get_task(task.examples_from) if task.examples_from else task
    training = [p for p in source.load("train", data_dir) if p.question not in asked]
    return task, sample_problems(training, config.train_problems, config.seed), held_out, examples


def find_data_dir(config: Config) -> Path | None:
    """data_dir, from the working folder or the repository; None where it is not set."""
    if not config.data_dir:
        return None
    for folder in (Path(config.data_dir).expanduser(), ROOT / config.data_dir):
        if folder.is_dir():
            return folder.resolve()
    raise BadInput(
        f"There is no data folder {config.data_dir}: mend data_dir, or leave it empty to load "
        f"the data from the Hub."
    )
