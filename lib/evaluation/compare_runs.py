"""Any run folders side by side: settings that differ, held-out accuracy, what it cost.

    arms = find_arms(config)             # {"grpo": [Run, Run, Run], "rloo": …}, a run a seed
    differing_settings(arms)             # what sets them apart
    compare_arms(arms)                   # accuracy, and differences to the first with intervals

An arm is a way of training, seen with one seed or several. The problems compared are those that
both arms of a pair were asked.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib.config import ROOT, Config
from lib.errors import BadInput
from lib.evaluation.comparison import greedy_answers, score_names
from lib.evaluation.crossed import crossed_difference
from lib.evaluation.stats import Difference
from lib.runs import Run, read_json, read_jsonl, run_folder
from lib.scratch.variants import (
    BASE,
    NOT_SETTINGS,
    base_config,
    evaluation_name,
    is_finished,
    variant_configs,
)

Arms = Mapping[str, Sequence[Run]]


def find_arms(config: Config) -> dict[str, list[Run]]:
    """The runs to compare, base first where there is one: those of `runs`, or of the variants.

    Raises:
        BadInput: a folder of `runs` is no run.
    """
    if config.runs:
        return {Path(name).name: [_run(name, config)] for name in config.runs}
    arms = {BASE: [Run(run_folder(base_config(config)))]}
    for name, each in variant_configs(config).items():
        run = Run(run_folder(each))
        if is_finished(each):
            arms.setdefault(name.rpartition("_")[0], []).append(run)
    return arms


def _run(name: str, config: Config) -> Run:
    """A run by its name under output_dir, or by its path."""
    for folder in (Path(name).expanduser(), ROOT / config.output_dir / name, ROOT / name):
        if (folder / "run.json").is_file():
            return Run(folder.resolve())
    raise BadInput(f"There is no run {name}: name folders that hold a run.json in `runs`.")


def differing_settings(arms: Arms) -> list[dict[str, Any]]:
    """A row for each setting in which the arms differ: its name, and each arm's value."""
    settings = {name: read_json(runs[0].record)["config"] for name, runs in arms.items()}
    keys = dict.fromkeys(key for each in settings.values() for key in each)
    rows = []
    for key in keys:
        values = {name: str(each.get(key, "")) for name, each in settings.items()}
        if key not in (*NOT_SETTINGS, "seed") and len(set(values.values())) > 1:
            rows.append({"setting": key, **values})
    return rows


def answers(run: Run, score: str | None = None) -> dict[tuple[str, str], float]:
    """Problem (id and question) → the score of the greedy answer of the run's model.

    Raises:
        BadInput: the run was not evaluated.
    """
    log = run.need(run.evals / f"{evaluation_name(run)}.jsonl", made_by="04_pass_at_k_eval")
    records = read_jsonl(log)
    score = score or score_names(records)[0]
    found = greedy_answers(records).values()
    return {(record["id"], record["question"]): float(record[score]) for record in found}


def pairs_of(before: Sequence[Run], after: Sequence[Run]) -> list[tuple[Run, Run]]:
    """The runs of two arms, seed by seed; an arm of one run stands against each of the other."""
    if len(before) == 1 or len(after) == 1:
        return [(a, b) for a in before for b in after]
    seeds = [
        {read_json(run.record)["config"]["seed"]: run for run in arm} for arm in (before, after)
    ]
    return [(run, seeds[1][seed]) for seed, run in seeds[0].items() if seed in seeds[1]]


def difference(before: Sequence[Run], after: Sequence[Run], score: str | None = None) -> Difference:
    """How much better the second arm is, over the seeds it was run with and shared problems."""
    pairs = [(answers(a, score), answers(b, score)) for a, b in pairs_of(before, after)]
    shared = [key for key in pairs[0][0] if all(key in a and key in b for a, b in pairs)]
    if len(shared) < 2:
        raise BadInput("The runs share no held-out problems: evaluate them on the same task.")
    return crossed_difference(np.array([[b[key] - a[key] for key in shared] for a, b in pairs]))


def compare_arms(arms: Arms, against: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A row an arm: accuracy, its range over seeds, differences, and what training cost.

    Args:
        against: arms to compare with; the first two by default (the base and the first variant).

    Raises:
        BadInput: fewer than two arms, or arms that share no problems.
    """
    if len(arms) < 2:
        raise BadInput("There is nothing to compare: give two runs at least.")
    against = list(against or list(arms)[:2])
    rows = []
    for name, runs in arms.items():
        means = [float(np.mean(list(answers(run).values()))) for run in runs]
        row = {"arm": name, "seeds": len(runs), "accuracy": float(np.mean(means))}
        row["lowest"], row["highest"] = min(means), max(means)
        for other in against:
            if other != name:
                row[f"to {other}"] = vars(difference(arms[other], runs))
        rows.append(row | costs(runs))
    return rows


def costs(runs: Sequence[Run]) -> dict[str, float]:
    """Means over an arm's runs: completion tokens, seconds, peak memory, where they are known."""
    found: dict[str, list[float]] = {}
    for run in runs:
        log = read_jsonl(run.train_log)
        if not log:
            continue
        learning = read_json(run.record).get("learning", {})
        seen = {"steps": log[-1]["step"], "seconds": log[-1]["seconds"]}
        seen["tokens"] = log[-1].get("num_tokens")
        seen |= {key: learning.get(key) for key in ("cpu_seconds", "peak_gib")}
        for key, value in seen.items():
            if value is not None:
                found.setdefault(key, []).append(value)
    return {key: float(np.mean(values)) for key, values in found.items()}


def batches_log(run: Run) -> list[dict]:
    """The log with one row a batch of rollouts, which several updates may repeat."""
    updates = read_json(run.record)["config"]["num_iterations"]
    return [row for row in read_jsonl(run.train_log) if (row["step"] - 1) % updates == 0]


def summary(arms: Arms, compared: Sequence[dict]) -> dict[str, Any]:
    """All that the comparison found, to keep: rows, claims, rewards by step, and on what."""
    record = read_json(list(arms.values())[-1][0].record)
    rewards = {
        name: [[round(row["reward"], 4) for row in batches_log(run)] for run in runs]
        for name, runs in arms.items()
    }
    return {
        "settings": differing_settings(arms),
        "arms": list(compared),
        "sentences": sentences(compared),
        "rewards": {name: values for name, values in rewards.items() if values[0]},
        **{key: record[key] for key in ("versions", "hardware", "commit")},
    }


def accuracy_rows(compared: Sequence[dict]) -> list[dict[str, str]]:
    """The comparison as a table to show: accuracy, and each difference with its interval."""
    others = [key for row in compared for key in row if key.startswith("to ")]
    rows = []
    for row in compared:
        shown = {"arm": row["arm"], "seeds": row["seeds"], "accuracy": f"{row['accuracy']:.1%}"}
        shown["over seeds"] = f"{row['lowest']:.1%} to {row['highest']:.1%}"
        for other in dict.fromkeys(others):
            shown[other] = _difference_text(row[other]) if other in row else ""
        rows.append(shown)
    return rows


def _difference_text(found: Mapping[str, Any]) -> str:
    low, high = found["interval"] or (float("nan"), float("nan"))
    return f"{found['difference']:+.1%} ({low:+.1%} to {high:+.1%})"


def cost_rows(compared: Sequence[dict]) -> list[dict[str, Any]]:
    keys = ("arm", "steps", "tokens", "seconds", "cpu_seconds", "peak_gib")
    costs = [{key: row.get(key) for key in keys} for row in compared if "steps" in row]
    return [row | {key: round(row[key]) for key in ("steps", "tokens")} for row in costs]


def sentences(compared: Sequence[dict], alpha: float = 0.05) -> list[str]:
    """What may be claimed of each arm against the last one compared with, and what not.

    Of many comparisons some look significant by chance: p-values are Holm's (1979).
    """
    other = next(key for key in reversed(compared[-1]) if key.startswith("to "))
    rows = [row for row in compared if other in row and row["arm"] != BASE]
    adjusted = holm(
        [1.0 if row[other]["p_value"] is None else row[other]["p_value"] for row in rows]
    )
    found = []
    for row, p in zip(rows, adjusted, strict=True):
        claim = "cannot be told apart from"
        if p < alpha:
            claim = "is better than" if row[other]["difference"] > 0 else "is worse than"
        text = _difference_text(row[other])
        found.append(f"{row['arm']} {claim} {other.removeprefix('to ')}: {text}, p = {p:.2f}.")
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down p-values: the i-th smallest of m counts (m − i + 1) times (i from 1)."""
    order, highest = np.argsort(p_values), 0.0
    found = [0.0] * len(p_values)
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        found[i] = highest
    return found
