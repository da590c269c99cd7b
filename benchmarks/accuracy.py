"""Train a recipe and measure it before and after, all in one process.

    python -m benchmarks.accuracy RECIPE [-p key value …]

What the notebooks 03 and 04 do, with one start of the libraries and one of vLLM: its engine answers
the held-out problems, generates the rollouts, and answers them again with the trained weights,
merged in the model's precision. So `backend` is transformers on a GPU, where Unsloth has the engine
for itself. Leaves a run folder, and prints the paired differences with their 95 % intervals.
"""

import sys

from lib.checks import check_inputs, load_problems
from lib.config import Config, resolve
from lib.errors import BadInput
from lib.evaluation import evaluate
from lib.evaluation.comparison import compare
from lib.models import live_weights, load_policy
from lib.report import HEADER, comparison_rows
from lib.rewards import recipe_rewards
from lib.runs import Run, hushed, open_run
from lib.suite import read_arguments
from lib.tasks import make_rows
from lib.training.run import make_trainer, save_trained, train


def main(arguments: list[str]) -> int:
    options, given = read_arguments(arguments)
    try:
        config = resolve(options.recipe, {"rollout_engine": "vllm"} | given)
        run = open_run(config)
        check_inputs(config, run)
        with hushed(run):
            comparison = improve(config, run)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    for row in [HEADER, *comparison_rows(comparison)]:
        print(*row, sep="  ")
    return 0


def improve(config: Config, run: Run) -> dict:
    """Base against trained, as `lib.evaluation.comparison.compare`."""
    task, training, problems, examples = load_problems(config)
    rows, tests = (
        make_rows(some, config.prompt_format, config.shots, examples)
        for some in (training, problems)
    )
    rewards, weights = recipe_rewards(config)
    policy = load_policy(config)
    trainer = make_trainer(policy, rows, rewards, weights, config, run)
    if trainer.rollouts is None:
        raise BadInput(f"vLLM does not generate in this process: {' '.join(policy.notes)}")
    engine = trainer.rollouts.engine
    evaluate(engine, problems, tests, task, config, run, "base")
    train(trainer, config, run)
    save_trained(policy, config, run)
    engine.hand_over(live_weights(policy.model))
    evaluate(engine, problems, tests, task, config, run, "trained")
    return compare(run, config, "base", "trained")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
