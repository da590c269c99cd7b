"""What training for one thing does to another: a second task, asked before and after.

    side_task: {task: small_sums, task_config: {largest: 9}, prompt_format: answer, shots: 1}

A policy that learns to please a reward may forget what it could do. The side task is never
trained on; it should have answers that are right or wrong.
"""

from pathlib import Path
from typing import Any

from lib.checks import load_problems, side_config
from lib.config import Config
from lib.engines import Engine
from lib.evaluation import evaluate
from lib.evaluation.comparison import compare
from lib.runs import Run
from lib.tasks.prompts import make_rows


def ask_side_task(engine: Engine, config: Config, run: Run, name: str, model: Path) -> None:
    """Evaluate the model in the engine on the side task: `evals/side_<name>.jsonl`."""
    side = side_config(config)
    task, _, problems, examples = load_problems(side)
    rows = make_rows(problems, side.prompt_format, side.shots, examples)
    evaluate(engine, problems, rows, task, side, run, f"side_{name}", model)


def compare_side_task(run: Run, config: Config, before: str, after: str) -> dict[str, Any]:
    """Paired differences on the side task; `evals/side_comparison.json`."""
    names = (f"side_{before}", f"side_{after}")
    return compare(run, side_config(config), *names, to="side_comparison")
