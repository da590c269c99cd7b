"""Train a recipe and measure it before and after, all in one process.

    python -m benchmarks.accuracy RECIPE [-p key value …] [--json FILE]

What the notebooks 03 and 04 do, with one start of the libraries and one of vLLM: its engine answers
the held-out problems, generates the rollouts, and answers them again with the trained weights,
merged in the model's precision. So `backend` is transformers on a GPU, where Unsloth has the engine
for itself. Leaves a run folder, and prints the paired differences with their 95 % intervals; FILE
gets them with speed, memory and versions, under the recipe's name.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median

from lib.config import Config, resolve
from lib.doctor import check_inputs
from lib.errors import BadInput
from lib.evaluation import evaluate
from lib.evaluation.comparison import HEADER, compare, comparison_rows
from lib.files import read_json, read_jsonl, write_json
from lib.hardware import detect_hardware
from lib.memory import estimate, read_shape
from lib.models import live_weights, load_policy, model_folder
from lib.rewards import recipe_rewards
from lib.runs import Run, hushed, open_run, run_folder
from lib.suite import read_arguments
from lib.tasks import load_problems, make_rows

EVALUATIONS = ("base", "trained")
PATHS = ("output_dir", "data_dir")  # of the machine, and nothing to anyone else


def main(arguments: list[str]) -> int:
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--json", type=Path)
    asked, others = own.parse_known_args(arguments)
    options, given = read_arguments(others)
    try:
        config = resolve(options.recipe, {"rollout_engine": "vllm"} | given)
        run = open_run(config)
        with hushed(run):
            check_inputs(config, run)
        comparison = improve(config, run)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    for row in [HEADER, *comparison_rows(comparison)]:
        print(*row, sep="  ")
    if asked.json:
        record_run(config, asked.json)
    return 0


def improve(config: Config, run: Run) -> dict:
    """Base against trained, as `lib.evaluation.comparison.compare`."""
    # It imports torch, whose libraries `open_run` has asked for silence.
    from lib.training import make_trainer, save_trained, train

    task, training, problems, examples = load_problems(config)
    rows, tests = (
        make_rows(some, config.prompt_format, config.shots, examples)
        for some in (training, problems)
    )
    rewards, weights = recipe_rewards(config)
    with hushed(run):
        policy = load_policy(config)
        trainer = make_trainer(policy, rows, rewards, weights, config, run)
    if trainer.engine is None:
        raise BadInput(f"vLLM does not generate in this process: {' '.join(policy.notes)}")
    engine = trainer.engine.engine
    before, after = EVALUATIONS
    evaluate(engine, problems, tests, task, config, run, before)
    train(trainer, config, run)
    save_trained(policy, config, run)
    engine.hand_over(live_weights(policy.model))
    evaluate(engine, problems, tests, task, config, run, after)
    engine.close()
    return compare(run, config, before, after)


def record_run(config: Config, file: Path) -> dict:
    """Add what a finished run measured to a file of results, and return it."""
    known = read_json(file) if file.is_file() else {"hardware": asdict(detect_hardware())}
    found = measured(config)
    write_json(file, known | {config.name: found})
    print(f"Written to {Run.shown(file)}")
    return found


def measured(config: Config) -> dict:
    """What a finished run has to say of its speed, its memory and its success.

    Seconds and tokens a second are the median step's; tokens are those of completions.
    """
    run = Run(run_folder(config))
    record, log = read_json(run.record), read_jsonl(run.train_log)
    need = estimate(
        config, read_shape(model_folder(config)), detect_hardware(config.gpu_memory_cap)
    )
    tokens = [config.completions_per_step * row["completions/mean_length"] for row in log]
    engines = {name: read_json(run.evals / f"{name}.json")["engine"] for name in EVALUATIONS}
    engines["rollouts"] = record["rollouts_by"]
    speeds = [count / row["step_time"] for count, row in zip(tokens, log, strict=True)]
    return {
        "steps": len(log),
        "seconds a step": median(row["step_time"] for row in log),
        "tokens/s": median(speeds),
        "GPU memory GiB": record.get("training_gpu_gib"),
        "planned GiB": need.parts,
        "engines": engines,
        "stages": record.get("finished", {}),
        "comparison": read_json(run.evals / "comparison.json"),
        "config": {key: value for key, value in record["config"].items() if key not in PATHS},
        "versions": record["versions"],
        "python": record["python"],
        "commit": record["commit"],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
