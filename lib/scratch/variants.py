"""Train every variant of a recipe with every seed, and measure each on held-out problems.

    python -m lib.scratch.variants variants

A recipe's `variants` names settings that differ, `seeds` the seeds. All of them have the same
model, problems, prompts, sampling and number of completions, the loop of `lib.scratch.loop`, and a
run folder of their own, `<run>/<variant>_<seed>/`; `<run>/base/` is the untrained model. A run
that is finished is not repeated, unless its settings have changed; one that was stopped goes on.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lib.config import Config, resolve
from lib.engines import make_engine
from lib.errors import BadInput, Stopped
from lib.evaluation import evaluate
from lib.evaluation import runs as arms
from lib.hardware import GIB
from lib.models import model_folder
from lib.process import peak_memory, trim_memory
from lib.rewards import recipe_rewards
from lib.runs import Run, hushed, is_begun, open_run
from lib.scratch.lora import live_weights
from lib.tasks import load_problems
from lib.tasks.prompts import make_rows
from lib.training.rollouts import beside_trainer


def run_variants(config: Config) -> Iterator[str]:
    """Train and measure what is not there yet; yields each run's name when it is done."""
    base, missing = arms.base_config(config), arms.missing_runs(config)
    if not missing:
        return
    task, training, problems, examples = load_problems(base)
    rows = make_rows(training, base.prompt_format, base.shots, examples)
    tests = make_rows(problems, base.prompt_format, base.shots, examples)
    folder = model_folder(base)
    engine = None
    for name, each in missing.items():
        each = each.model_copy(update={"resume": is_begun(each)})
        run = open_run(each)
        # What another configuration left there is not this one's.
        (run.evals / f"{arms.evaluation_name(run)}.json").unlink(missing_ok=True)
        with hushed(run):
            engine = engine or make_engine(base, folder, **beside_trainer(base))
            if name != arms.BASE:
                engine.hand_over(live_weights(learn(each, rows, run, engine)))
            evaluate(engine, problems, tests, task, each, run, arms.evaluation_name(run))
        yield name
    engine.close()


def learn(config: Config, rows: list[dict], run: Run, engine: Any) -> Any:
    """One run of the loop; returns the model. Its time and memory go to the run's record, where it
    was not stopped in between."""
    from lib.scratch.loop import Learner

    rewards, weights = recipe_rewards(config)
    samples = engine if engine.name == "vllm" and config.rollout_engine == "vllm" else None
    trim_memory()  # what is kept of freed memory would be missing in the peak
    before = peak_so_far(config, anew=True)
    learner = Learner(config, rows, rewards, weights, run, samples)
    started, worked = time.perf_counter(), time.process_time()
    in_one_go = not (config.resume and run.kept_step())
    learner.train()
    if in_one_go:
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
        learning = {"seconds": seconds, "cpu_seconds": cpu_seconds}
        learning["peak_gib"] = peak_so_far(config) - before
        run.note(learning={name: round(value, 2) for name, value in learning.items()})
    return learner.model


def peak_so_far(config: Config, anew: bool = False) -> float:
    """The most GiB that the process has held, of the GPU where it trains there; `anew`: it counts
    from what is held now."""
    if config.profile != "cpu":
        import torch

        if anew:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / GIB
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


if __name__ == "__main__":
    try:
        for done in run_variants(resolve(*sys.argv[1:2])):
            print(f"{time.strftime('%H:%M:%S')} {done} done", flush=True)
    except BadInput as error:
        sys.exit(f"{error} The same command resumes it." if isinstance(error, Stopped) else error)
