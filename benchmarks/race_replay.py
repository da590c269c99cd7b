"""Does a race keep the best arm? Played again and again on runs that were trained to their end.

    python -m benchmarks.race_replay train      # the next of 8 learning rates × 3 seeds, if any
    python -m benchmarks.race_replay replay     # races on what is stored; needs no model
    python -m benchmarks.race_replay simulate   # races of arms that were drawn, not trained

`train` keeps of each run which held-out problems it answered after each rung, and which of other,
later problems (the truth) after its last step. A replay draws one of the seeds for each arm and the
held-out problems with replacement, and has `lib.sweep.contest` decide as in a race. Kept counts the
replays whose winner is the best arm on the later problems, or within its paired 95 % interval.
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from scipy.special import ndtri

from lib.config import ROOT, resolve
from lib.files import read_json, write_json
from lib.process import commit
from lib.stats import paired_difference
from lib.sweep import contest

FILE = ROOT / "benchmarks" / "results" / "race_replay_cpu.json"
RATES, SEEDS = (3e-6, 1e-5, 3e-5, 6e-5, 1e-4, 2.4e-4, 5e-4, 1e-3), (0, 1, 2)
RUNGS = (1, 2, 4, 8)  # lib.sweep's own for 8 arms and 8 steps
HELD_OUT, LATER = 96, 150  # problems
RULES = {
    "delta 0.1": (0.1, 0.0),
    "delta 0.2": (0.2, 0.0),
    "delta 0.5": (0.5, 0.0),
    "delta 0.2, margin 0.02": (0.2, 0.02),
    "delta 1": (1.0, 0.0),
}


def train(file: Path) -> None:
    """The first run that the file does not have; vLLM outlives no training in its process."""
    from lib.models import load_policy
    from lib.rewards import recipe_rewards
    from lib.runs import Run, hushed, open_run
    from lib.tasks import load_problems, make_rows, sample_problems
    from lib.training import make_trainer
    from lib.training import train as train_run
    from lib.training.callbacks import StepLog, Validation
    from lib.training.rollouts import RolloutEngine

    class AtRungs(Validation):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step in RUNGS:
                self.log.extra |= self.measure(state.global_step)

    stored = read_json(file) if file.is_file() else {"runs": {}}
    stored |= {"rungs": RUNGS, "held_out": HELD_OUT, "later": LATER}
    names = {f"{rate:g}_{seed}": (rate, seed) for seed in SEEDS for rate in RATES}
    name = next((name for name in names if name not in stored["runs"]), None)
    if name is None:
        return print("Every run is there.")
    rate, seed = names[name]
    given = {"learning_rate": rate, "seed": seed, "max_steps": RUNGS[-1], "warmup_steps": 0}
    given |= {"run": f"race_replay/{name}", "eval_problems": LATER, "save_steps": 10**6}
    config = resolve("demo", given | {"profile": "cpu"})
    changed = {"task_config": {**config.task_config, "test_share": 0.4}}
    config = config.model_copy(update=changed)
    run = open_run(config)
    later = Run(run.folder / "later")
    with hushed(run):
        policy = load_policy(config)
        task, training, tests, examples = load_problems(config)
        aside = sample_problems(training, HELD_OUT, seed=0)
        ids = {problem.id for problem in aside}
        training = [problem for problem in training if problem.id not in ids]
        rows, held_out, last = (
            make_rows(some, config.prompt_format, config.shots, examples)
            for some in (training, aside, tests)
        )
        rewards, weights = recipe_rewards(config)
        trainer = make_trainer(policy, rows, rewards, weights, config, run)
        engine = RolloutEngine.start(config, policy)
        trainer.generate_with(engine)
        log = next(c for c in trainer.callback_handler.callbacks if isinstance(c, StepLog))
        given = (task, config, run, log, engine.engine)
        trainer.add_callback(AtRungs(policy, aside, held_out, *given))
        train_run(trainer, config, run)
        (later.evals / "validation.jsonl").unlink(missing_ok=True)
        given = (task, config, later, log, engine.engine)
        Validation(policy, tests, last, *given).measure(RUNGS[-1])
    answered = {"held_out": _answers(run), "later": _answers(later)[str(RUNGS[-1])]}
    answered["commit"] = commit()
    stored["runs"][name] = answered
    write_json(file, stored)
    right = [round(text.count("1") / len(text), 3) for text in answered["held_out"].values()]
    print(name, *right, "later", round(answered["later"].count("1") / LATER, 3), flush=True)


def _answers(run: "object") -> dict[str, str]:
    """Step → a digit a problem, 1 where the greedy answer was right."""
    from lib.files import read_jsonl

    steps: dict[str, str] = {}
    for row in read_jsonl(run.evals / "validation.jsonl"):
        step = str(row["step"])
        steps[step] = steps.get(step, "") + str(int(row["strict"]))
    return steps


def race(held_out: Mapping[str, Mapping], delta: float, margin: float) -> tuple[str, float]:
    """The winner, and the share of all steps.

    Args:
        held_out: arm → rung → scores.
    """
    rungs = list(next(iter(held_out.values())))
    alpha = delta / (len(held_out) * (len(rungs) - 1)) if delta < 1 else 0.0

    def train(standing: Sequence[str], rung: int) -> dict[str, dict[int, float]]:
        return {arm: dict(enumerate(held_out[arm][rung])) for arm in standing}

    [*_, (_, rows, steps)] = contest(held_out, rungs, alpha, margin, train)
    return rows[0]["arm"], sum(steps.values()) / (rungs[-1] * len(held_out))


def judged(races: Iterable[tuple[Mapping, Mapping]]) -> dict[str, dict[str, float]]:
    """Rule → in how many races the best arm or one within its interval won, and the compute.

    Args:
        races: of each, arm → rung → scores, and arm → scores on later problems, the truth.
    """
    results: dict[str, list[tuple[float, ...]]] = {rule: [] for rule in RULES}
    for held_out, later in races:
        best = max(later, key=lambda arm: later[arm].mean())
        for rule, given in RULES.items():
            winner, share = race(held_out, *given)
            behind = paired_difference(later[best], later[winner])
            kept = winner == best or behind.interval[1] >= 0
            results[rule].append((winner == best, kept, behind.difference, share))
    return {rule: _summary(rows) for rule, rows in results.items()}


def _digits(text: str) -> np.ndarray:
    return np.array([float(digit) for digit in text])


def replays(runs: Mapping[str, Mapping], count: int = 500) -> Iterator[tuple[dict, dict]]:
    """Races on stored runs."""
    random, seeds = np.random.default_rng(0), {}
    for name in runs:
        seeds.setdefault(name.rpartition("_")[0], []).append(name)
    for _ in range(count):
        chosen = {arm: runs[random.choice(names)] for arm, names in seeds.items()}
        drawn = random.integers(HELD_OUT, size=HELD_OUT)
        held_out = {
            arm: {rung: _digits(run["held_out"][str(rung)])[drawn] for rung in RUNGS}
            for arm, run in chosen.items()
        }
        yield held_out, {arm: _digits(run["later"]) for arm, run in chosen.items()}


def simulated(problems: int, count: int = 300) -> Iterator[tuple[dict, dict]]:
    """Races of 8 arms that come from 10 % to an end between 10 and 60 %, some early and some late;
    their answers share half of what makes a problem hard."""
    random, rungs = np.random.default_rng(0), (1, 2, 4, 8)

    def answers(chances: np.ndarray, count: int) -> Iterator[dict[int, np.ndarray]]:
        hard = random.normal(size=count)
        for arm in chances:
            skill = np.sqrt(0.5) * (hard + random.normal(size=count))
            yield {r: (skill < ndtri(p)) * 1.0 for r, p in zip(rungs, arm, strict=True)}

    for _ in range(count):
        ends, pace = random.uniform(0.1, 0.6, (8, 1)), random.uniform(0.15, 0.5, (8, 1))
        shape = (1 - np.exp(-np.array(rungs) / 8 / pace)) / (1 - np.exp(-1 / pace))
        chances = 0.1 + (ends - 0.1) * shape
        arms = [str(arm) for arm in range(8)]
        later = [each[rungs[-1]] for each in answers(chances, 400)]
        yield (
            dict(zip(arms, answers(chances, problems), strict=True)),
            dict(zip(arms, later, strict=True)),
        )


def _summary(rows: Sequence[tuple[float, ...]]) -> dict[str, float]:
    best, kept, behind, share = (fmean(map(float, column)) for column in zip(*rows, strict=True))
    return {
        "races": len(rows),
        "best_won": round(best, 3),
        "best_or_within_its_interval_won": round(kept, 3),
        "points_behind_the_best": round(-100 * behind, 2),
        "share_of_the_steps": round(share, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=("train", "replay", "simulate"))
    parser.add_argument("--file", type=Path, default=FILE)
    options = parser.parse_args()
    if options.what == "train":
        return train(options.file)
    stored = read_json(options.file) if options.file.is_file() else {}
    if options.what == "replay":
        results = {"replays": judged(replays(stored["runs"]))}
    else:
        results = {f"simulated, {n} problems": judged(simulated(n)) for n in (64, 128, 256)}
    write_json(options.file, stored | results)
    for what, rules in results.items():
        for rule, row in rules.items():
            print(f"{what}, {rule}: {row}")


if __name__ == "__main__":
    main()
