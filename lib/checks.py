"""The problems of a recipe."""

from pathlib import Path

from lib.config import ROOT, Config
from lib.errors import BadInput
from lib.tasks import Problem, Task, few_shot_examples, get_task, sample_problems


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
