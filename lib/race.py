"""The arms of a sweep's file, trained in slices: what is behind is not trained further.

    python -m lib.suite race docs/race.yaml

At each rung (by default max_steps halved again and again) the arms in the race are compared by
their answers to the same held-out problems. An arm leaves when it is behind the leader: the paired
interval of the difference, one-sided, lies below `margin` (0 by default). Its level is
1 − delta / (arms × cuts): the chance that the best arm at a rung leaves there (or, with a margin,
one that is better than the leader by more than that) is at most `delta` in the whole race, by
Bonferroni over all leaders there can be. That is of these runs, and problems like these; an arm
that would have overtaken the others later is not spoken of. What left comes back where the leader
falls to within its reach. `delta: 1` is successive halving without a bound: the better half goes
on.

A slice is a process, so that memory is one run's; the same command again goes on after any stop,
to the same ranking, which is computed from the folders alone. Exit codes are those of a sweep.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from lib.config import Config
from lib.errors import BadInput
from lib.evaluation.runs import is_begun
from lib.runs import Run, read_jsonl, write_json
from lib.stats import paired_difference, points
from lib.sweep import KEYS, arm_of, begin, is_done, make_arms, read_sweep, run_all
from lib.sweep import main as sweep_main

RACE_KEYS = KEYS | dict(rungs=list, delta=float | int, margin=float | int)
DELTA = 0.2
Scores = Mapping[str, Mapping[str, float]]  # arm → problem → score


def compare(scores: Scores, alpha: float, margin: float = 0.0) -> list[dict[str, Any]]:
    """A row an arm, the leader first: its mean, how far it is behind, and whether it stays.

    Args:
        alpha: the chance that one arm leaves though it is better than the leader by `margin` or
            more; None: the better half stays.

    Raises:
        BadInput: the arms were not asked the same problems.
    """
    order = sorted(scores, key=lambda arm: -fmean(scores[arm].values()))
    leader, half = scores[order[0]], math.ceil(len(order) / 2)
    rows = []
    for place, arm in enumerate(order):
        row = {"arm": arm, "score": fmean(scores[arm].values()), "stays": True}
        if place:
            if scores[arm].keys() != leader.keys() or len(leader) < 2:
                raise BadInput(
                    f"{arm} and {order[0]} were asked other held-out problems: give both the same "
                    f"task and train_problems, and two validation_problems at least.",
                    "no-shared",
                )
            pairs = [(leader[problem], scores[arm][problem]) for problem in leader]
            level = 1 - 2 * alpha if alpha else 0.95
            paired = paired_difference(*zip(*pairs, strict=True), level=level)
            row |= {"difference": paired.difference, "at_most": paired.interval[1]}
            row["stays"] = row["at_most"] >= margin if alpha else place < half
        rows.append(row)
    return rows


def contest(
    arms: Iterable[str],
    rungs: Sequence[int],
    alpha: float,
    margin: float,
    train: Callable[[Sequence[str], int], Scores],
) -> Iterator[tuple[int, list[dict[str, Any]], dict[str, int]]]:
    """The race itself: at each rung its step, the rows of `compare`, and how far each arm has come.

    An arm that left is compared by its last answers, and comes back, trained up to the rung, where
    the leader has fallen to within its reach: a high learning rate leads until it collapses.

    Args:
        train: takes these arms to a rung; returns the scores of those that did not fail.
    """
    steps, latest = dict.fromkeys(arms, 0), {}
    standing = list(steps)
    for rung in rungs:
        rows = []
        while standing:
            scores = train(standing, rung)
            steps |= dict.fromkeys(scores, rung)
            for arm in standing:
                latest.pop(arm, None)
            latest |= scores
            compared = {arm: latest[arm] for arm in latest if alpha or steps[arm] == rung}
            rows = compare(compared, alpha, margin) if compared else []
            back = [row["arm"] for row in rows if row["stays"] and steps[row["arm"]] < rung]
            standing = back[:1]  # the best first: once it is there, others may stay behind
        if not rows:
            return
        yield rung, rows, steps
        standing = [row["arm"] for row in rows if row["stays"]]


def find_rungs(race: Mapping[str, Any], configs: Sequence[Config], arms: int) -> list[int]:
    """Steps after which arms are compared; the last is max_steps.

    Raises:
        BadInput: the arms differ in max_steps, have no validation, or a rung is no step of theirs.
    """
    [*steps] = {config.max_steps for config in configs}
    if len(steps) > 1 or not all(config.validation_steps for config in configs):
        raise BadInput(
            "The arms of a race have one max_steps, and validation_steps (max_steps will do): set "
            "both under `parameters`.",
            "race",
        )
    [last], batch = steps, max(config.num_iterations for config in configs)
    cuts = math.ceil(math.log2(max(arms, 2)))
    rungs = race.get("rungs") or [
        math.ceil(last / 2**cut / batch) * batch for cut in range(cuts, 0, -1)
    ]
    for rung in rungs:
        if not isinstance(rung, int) or rung % batch or not 0 < rung <= last:
            raise BadInput(
                f"rungs {rungs}: each is a step up to max_steps {last}, a multiple of "
                f"num_iterations {batch}.",
                "race",
            )
    return sorted({*rungs, last})


def scores_at(run: Run, step: int) -> dict[str, float]:
    """Held-out problem → score after this step."""
    rows = [r for r in read_jsonl(run.evals / "validation.jsonl") if r["step"] == step]
    name = next((n for n in ("strict", "lenient", "rougeL") if rows and n in rows[0]), "")
    return {row["id"]: float(row[name]) for row in rows}


def is_at(words: list[str], rung: int) -> bool:
    """Whether the run was trained to this step, kept, and measured there."""
    config, _, run = arm_of(words)
    return run.kept_step() >= rung and is_begun(config) and bool(scores_at(run, rung))


def run_race(path: Path, address: str | None) -> int:
    race = read_sweep(path, RACE_KEYS)
    arms = make_arms(race)
    delta, margin = race.get("delta", DELTA), race.get("margin", 0.0)
    entrants: dict[str, list[str]] = {}
    for name in arms:
        entrants.setdefault(name.rpartition("_")[0], []).append(name)
    configs = [arm_of(words)[0] for words in arms.values()]
    rungs = find_rungs(race, configs, len(entrants))
    planned, way = begin(arms, address)
    folders = {name: folder for name, (folder, _) in planned.items()}
    alpha = delta / (len(entrants) * max(1, len(rungs) - 1)) if delta < 1 else 0.0
    failures: dict[int, dict[str, str]] = {}

    def train(standing: Sequence[str], rung: int) -> dict[str, dict[str, float]]:
        last = rung == rungs[-1]
        reached = is_done if last else partial(is_at, rung=rung)
        names = [name for arm in standing for name in entrants[arm]]
        end = [] if last else ["-p", "stop_at", str(rung)]
        left = {name: [*arms[name], *end] for name in names if not reached(arms[name])}
        failed = run_all(left, way, folders, lambda name: reached(arms[name]))
        failures[rung] = failures.get(rung, {}) | failed
        return {
            arm: _mean([scores_at(Run(folders[n]), rung) for n in entrants[arm]])
            for arm in standing
            if not failed.keys() & {*entrants[arm]}
        }

    rounds, share = [], 0.0
    for rung, rows, steps in contest(entrants, rungs, alpha, margin, train):
        rounds.append({"step": rung, "failed": failures[rung], "arms": rows})
        share = sum(steps.values()) / (rungs[-1] * len(entrants))
        print(f"Step {rung} of {rungs[-1]}:", *map(_line, rows), sep="\n", flush=True)
    if not rounds or rounds[-1]["step"] < rungs[-1]:
        return 1
    bound = f"the best at a rung left with a chance of {delta:.0%} at most" if alpha else "no bound"
    print(
        f"{rounds[-1]['arms'][0]['arm']} is first. {share:.0%} of all steps were trained; {bound}."
    )
    file = next(iter(folders.values())).parent / "race.json"
    write_json(file, {"delta": delta, "margin": margin, "share": share, "rounds": rounds})
    print(Run.shown(file))
    return 1 if any(each["failed"] for each in rounds) else 0


def _mean(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Over an arm's seeds, problem by problem."""
    return {problem: fmean(run[problem] for run in runs) for problem in runs[0]}


def _line(row: Mapping[str, Any]) -> str:
    line = f"  {row['arm']}: {row['score']:.1%}"
    if "difference" not in row:
        return line
    behind = f"{points(row['difference'])}, at most {points(row['at_most'])}"
    return f"{line} ({behind}){'' if row['stays'] else ', leaves'}"


main = partial(sweep_main, run=run_race)
