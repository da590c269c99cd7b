"""What a training step learns from: dynamic sampling, dropped prompts, and a warm-up.

    python benchmarks/dynamic_sampling.py [--task NAME ...] [--data-dir FOLDER] --json FILE

Each task is a recipe in small, trained in several ways (arms) with several seeds. A group is
useful where its completions earned different rewards. Counted are the groups and tokens that
a run generated, its preflight's included; the held-out reward is the mean that completions of
problems set aside earn (sampled as in training), before and after. Minutes are the process's
own on a processor: with one thread (OMP_NUM_THREADS=1) what a quiet core would take.

- plain: the recipe as it is.
- resample: groups without signal are replaced, by at most as many further prompts a step.
- drop: the preflight measures all prompts, and those always right or always wrong are left out.
- curriculum: the preflight measures all prompts, and those more often right come first.
- warm-up: supervised steps on right answers come first (no_examples: the demo, without the worked
  example that shows the form).
"""

import argparse
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lib.config import Config, resolve  # noqa: E402
from lib.engines import VllmEngine, training_sampling  # noqa: E402
from lib.files import read_json, write_json  # noqa: E402
from lib.hardware import detect_hardware  # noqa: E402
from lib.models import live_weights, load_policy  # noqa: E402
from lib.preflight import keep, preflight  # noqa: E402
from lib.process import installed_versions  # noqa: E402
from lib.rewards import recipe_rewards, score  # noqa: E402
from lib.runs import Run, hushed, open_run, read_rollouts, rollout_steps  # noqa: E402
from lib.stats import mean_with_error  # noqa: E402
from lib.tasks import load_problems  # noqa: E402
from lib.tasks.prompts import make_rows  # noqa: E402
from lib.training import make_trainer, set_aside, train, warm_up  # noqa: E402
from lib.training.rollouts import ALIKE, choose_rows  # noqa: E402

SMALL = {
    "profile": "cpu",
    "rollout_engine": "vllm",
    "prompts_per_step": 2,
    "num_generations": 8,
    "micro_batch": 16,
    "gradient_checkpointing": False,
    "warmup_steps": 0,
    "lr_scheduler": "constant",
    "save_steps": 1000,
    "validation_steps": 1000,
    "validation_problems": 32,
    "eval_problems": 64,
    "preflight_prompts": 0,
}
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "demo": ("demo", {"max_steps": 10, "rewards": {"correctness": 0.5}}),
    "no_examples": ("demo", {"max_steps": 10, "shots": 0}),
    "gsm8k": (
        "smollm2-135m_gsm8k",
        {"max_completion_length": 80, "train_problems": 48, "max_steps": 6},
    ),
}
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "resample": {"resample": 4},
    "resample and drop": {"resample": 4, "drop_dead": True},
    "curriculum": {"curriculum": "easy_first"},
    "warm-up": {"sft_steps": 16},
}
ASKED = {
    "demo": ("plain", "resample", "resample and drop", "curriculum"),
    "no_examples": ("plain", "warm-up"),
    "gsm8k": ("plain", "resample"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--arm", nargs="+", choices=ARMS, help="some of the task's arms")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data-dir", default="", help="as a recipe's data_dir")
    parser.add_argument("--json", type=Path, required=True, help="runs that it holds are kept")
    asked = parser.parse_args()
    runs = read_json(asked.json)["runs"] if asked.json.is_file() else []
    wanted = [
        {"task": task, "seed": seed, "arm": arm}
        for task in asked.task
        for seed in asked.seeds
        for arm in asked.arm or ASKED[task]
    ]
    for one in wanted:
        if any(one.items() <= run.items() for run in runs):
            continue
        # A process for each run: vLLM keeps what it took.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            figures = process.submit(measure, **one, data_dir=asked.data_dir).result()
        runs.append(one | figures)
        print(runs[-1], flush=True)
        write_json(asked.json, report(runs))


def measure(task: str, arm: str, seed: int, data_dir: str) -> dict[str, float]:
    """One training run, in figures."""
    recipe, changes = TASKS[task]
    with tempfile.TemporaryDirectory() as folder:
        given = SMALL | changes | ARMS[arm]
        config = resolve(recipe, given | {"seed": seed, "output_dir": folder, "data_dir": data_dir})
        run = open_run(config)
        with hushed(run):
            return figures(config, run)


def figures(config: Config, run: Run) -> dict[str, float]:
    """Trains, and counts what that took and brought."""
    task, training, _, examples = load_problems(config)
    training, aside = set_aside(training, config)
    rows, asked = (
        make_rows(some, config.prompt_format, config.shots, examples) for some in (training, aside)
    )
    rewards, weights = recipe_rewards(config)
    policy = load_policy(config)
    import trl  # noqa: F401  the time of imports and loading is not of interest

    tokens_before, started = 0, time.process_time()
    if config.drop_dead or config.curriculum != "none":
        engine = VllmEngine.start(config, policy.folder, share=config.vllm_gpu_memory_utilization)
        found, samples = preflight(engine, rows, rewards, weights, config, task, training)
        engine.close()
        keep(found, run)
        texts = [sample["completion"] for sample in samples]
        tokens_before = sum(len(ids) + 1 for ids in policy.tokenizer(texts)["input_ids"])
    chosen, _ = choose_rows(rows, run, config)
    if config.sft_steps:
        warm_up(policy, training, rows, config, run)
    preparing = time.process_time() - started
    trainer = make_trainer(policy, chosen, rewards, weights, config, run)
    engine = trainer.engine.engine
    earned = [held_out(engine, asked, rewards, weights, config)]
    started = time.process_time()
    train(trainer, config, run)
    seconds = preparing + time.process_time() - started
    engine.hand_over(live_weights(policy.model))
    earned.append(held_out(engine, asked, rewards, weights, config))
    engine.close()
    steps = [step_figures(read_rollouts(run, step)) for step in rollout_steps(run)]
    return summary(steps, earned, tokens_before, seconds, len(rows) - len(chosen))


def held_out(engine: Any, rows: list, rewards: list, weights: list, config: Config) -> float:
    """The mean total reward of one sampled completion a problem."""
    answers = engine.generate([row["prompt"] for row in rows], training_sampling(config))
    scores = score(rewards, rows, [answer for [answer] in answers])
    return float(sum(np.nanmean(v) * w for v, w in zip(scores.values(), weights, strict=True)))


def step_figures(rollouts: list[dict]) -> dict[str, Any]:
    """One step's groups: how many were trained on, how many tried in vain, how many differ."""
    groups = [list(group) for _, group in groupby(rollouts, key=lambda row: row["id"])]
    totals = [[row["total"] for row in group] for group in groups]
    differ = [max(values) - min(values) > ALIKE for values in totals]
    trained = [group[0]["trained"] for group in groups]
    return {
        "generated": len(groups),
        "trained": sum(trained),
        "useful": sum(d and t for d, t in zip(differ, trained, strict=True)),
        "tokens": sum(row["tokens"] for row in rollouts),
    }


def summary(
    steps: list[dict], earned: list[float], tokens_before: int, seconds: float, dropped: int
) -> dict[str, Any]:
    total = {name: sum(step[name] for step in steps) for name in steps[0]}
    tokens = total["tokens"] + tokens_before
    gain = earned[1] - earned[0]
    return {
        "useful share of a step": total["useful"] / total["trained"],
        "useful share of what was generated": total["useful"] / total["generated"],
        "useful groups per 1000 tokens in training": 1000 * total["useful"] / total["tokens"],
        "useful groups per 1000 tokens in all": 1000 * total["useful"] / tokens,
        "held-out reward before": earned[0],
        "held-out reward after": earned[1],
        "gain per 1000 tokens in all": 1000 * gain / tokens,
        "gain per minute": 60 * gain / seconds,
        "prompts dropped": dropped,
        "tokens in training": total["tokens"],
        "tokens in the preflight": tokens_before,
        "seconds": seconds,
        "useful groups by step": [step["useful"] for step in steps],
        "groups generated by step": [step["generated"] for step in steps],
    }


def report(runs: list[dict]) -> dict[str, Any]:
    """All runs, and for each task and arm the mean of every figure with its interval over seeds."""
    arms: dict[str, dict[str, Any]] = {}
    for task, arm in dict.fromkeys((run["task"], run["arm"]) for run in runs):
        own = [run for run in runs if (run["task"], run["arm"]) == (task, arm)]
        numbers = [name for name, value in own[0].items() if isinstance(value, int | float)]
        arms[f"{task}, {arm}"] = {
            name: interval([run[name] for run in own]) for name in numbers if name != "seed"
        }
    return {
        "what": "mean and 95 % interval over seeds (Student's t); tasks and arms as below",
        "tasks": TASKS,
        "arms": ARMS,
        "common": SMALL,
        "summary": arms,
        "runs": runs,
        "versions": installed_versions(),
        "hardware": str(detect_hardware()),
    }


def interval(values: list[float]) -> list[float]:
    """Mean, lower and upper end."""
    found = mean_with_error(values)
    return [round(x, 4) for x in (found.mean, *(found.interval or ()))]


if __name__ == "__main__":
    main()
