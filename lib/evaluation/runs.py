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
import pandas as pd

from lib.config import ROOT, Config, with_changes
from lib.errors import BadInput
from lib.evaluation.compare import (
    difference_text,
    figure,
    greedy_records,
    interval_text,
    is_reward,
    score_names,
)
from lib.keys import translate
from lib.runs import Run, output_folder, read_json, read_jsonl, run_folder
from lib.stats import MARGIN, Difference, crossed_difference, holm, verdict_word

Arms = Mapping[str, Sequence[Run]]
BASE = "base"
NOT_SETTINGS = (
    *("name", "run", "output_dir", "resume", "stop_at", "variants", "seeds", "runs", "by_profile"),
)


def variant_configs(config: Config) -> dict[str, Config]:
    """Run name → configuration: in the recipe's order, each variant with all seeds.

    Raises:
        BadInput: no variants or seeds, or settings that do not work.
    """
    if not (config.variants and config.seeds):
        raise BadInput(
            "There is nothing to compare: give the recipe `variants` and `seeds`.",
            "nothing-to-compare",
        )
    common = {"variants": {}, "seeds": []}
    return {
        f"{name}_{seed}": with_changes(
            config,
            {**common, **changes, "seed": seed, "run": f"{config.run_name}/{name}_{seed}"},
        )
        for name, changes in config.variants.items()
        for seed in config.seeds
    }


def base_config(config: Config) -> Config:
    """Of the untrained model's folder."""
    changes = {"variants": {}, "seeds": [], "run": f"{config.run_name}/{BASE}"}
    return config.model_copy(update=changes)


def evaluation_name(run: Run) -> str:
    """What its model's answers are called in `evals/`."""
    return BASE if run.folder.name == BASE else "trained"


def is_finished(config: Config) -> bool:
    """Whether the run was trained with these settings and measured."""
    run = Run(run_folder(config))
    return (run.evals / f"{evaluation_name(run)}.json").is_file() and is_begun(config)


def is_begun(config: Config) -> bool:
    """Whether the run's folder is there, made with these settings."""
    run = Run(run_folder(config))
    if not run.record.is_file():
        return False
    record = read_json(run.record)
    stored = translate(record["config"])
    wanted = config.model_dump(mode="json")
    keys = (stored.keys() & wanted.keys()) - set(NOT_SETTINGS)  # newer keys are at their defaults
    if stored["profile"] != config.profile and config.origin("profile") == "default":
        # On other hardware, which nobody asked for: what that alone decides may differ.
        made, decides = record.get("origins", {}), ("profile", "recipe on")
        origins = {key: (config.origin(key), made.get(key, "")) for key in keys - {"profile"}}
        keys = {key for key, of in origins.items() if not any(o.startswith(decides) for o in of)}
    return all(wanted[key] in ("auto", stored[key]) for key in keys)  # which the run decided


def missing_runs(config: Config) -> dict[str, Config]:
    """Run name → configuration of those variants, and the base, that are not finished yet."""
    if config.runs:
        return {}
    wanted = {BASE: base_config(config), **variant_configs(config)}
    return {name: each for name, each in wanted.items() if not is_finished(each)}


def planned_seconds(config: Config, missing: Mapping[str, Config]) -> float:
    """About how long the missing runs take: each as long as the finished ones, if there are some.

    Otherwise 15 seconds each to load and measure and 0.2 a completion, as the embedded model on
    one core.
    """
    if not missing:
        return 0.0
    every = variant_configs(config).items()
    done = [read_json(Run(run_folder(each)).record) for n, each in every if n not in missing]
    if spent := [s for record in done if (s := record.get("learning", {}).get("seconds"))]:
        return float(np.mean(spent)) * len(missing)
    return sum(15 + 0.2 * each.completions_per_step * each.max_steps for each in missing.values())


def find_arms(config: Config) -> dict[str, list[Run]]:
    """The runs to compare, base first where there is one: those of `runs` (a sweep's folder stands
    for its runs, those that differ by the seed as one arm), or of the variants.

    Raises:
        BadInput: a folder of `runs` is no run.
    """
    if config.runs:
        return {arm: runs for name in config.runs for arm, runs in _arms(name, config).items()}
    arms = {BASE: [Run(run_folder(base_config(config)))]}
    for name, each in variant_configs(config).items():
        run = Run(run_folder(each))
        if is_finished(each):
            arms.setdefault(name.rpartition("_")[0], []).append(run)
    return arms


def _arms(name: str, config: Config) -> dict[str, list[Run]]:
    """A run by its name under output_dir or by its path; of a sweep's folder, what is measured."""
    for folder in (Path(name).expanduser(), output_folder(config) / name, ROOT / name):
        if (folder / "run.json").is_file():
            return {Path(name).name: [Run(folder.resolve())]}
        arms: dict[str, list[Run]] = {}
        for each in sorted(folder.glob("*_*/evals/trained.json")):
            run = Run(each.resolve().parents[1])
            arms.setdefault(run.folder.name.rpartition("_")[0], []).append(run)
        if arms:
            return arms
    raise BadInput(
        f"There is no run {name}: name folders that hold a run.json in `runs`.", "no-run"
    )


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


def evaluated(run: Run) -> list[dict]:
    """The greedy answers of the run's model.

    Raises:
        BadInput: the run was not evaluated.
    """
    log = run.need(run.evals / f"{evaluation_name(run)}.jsonl", made_by="04_pass_at_k_eval")
    return list(greedy_records(read_jsonl(log)).values())


def scores_by_problem(run: Run, score: str | None = None) -> dict[tuple[str, str], float]:
    """Problem (id and question) → the score of the greedy answer of the run's model."""
    records = evaluated(run)
    score = score or score_names(records)[0]
    return {(record["id"], record["question"]): float(record[score]) for record in records}


def pairs_of(before: Sequence[Run], after: Sequence[Run]) -> list[tuple[Run, Run]]:
    """The runs of two arms, seed by seed; an arm of one run stands against each of the other."""
    if len(before) == 1 or len(after) == 1:
        return [(a, b) for a in before for b in after]
    seeds = [
        {read_json(run.record)["config"]["seed"]: run for run in arm} for arm in (before, after)
    ]
    pairs = [(run, seeds[1][seed]) for seed, run in seeds[0].items() if seed in seeds[1]]
    if not pairs:
        raise BadInput("Two arms have no seed in common: train both with the same.", "no-shared")
    return pairs


def difference(before: Sequence[Run], after: Sequence[Run], score: str | None = None) -> Difference:
    """How much better the second arm is, over the seeds it was run with and shared problems."""
    pairs = [[scores_by_problem(run, score) for run in pair] for pair in pairs_of(before, after)]
    shared = [key for key in pairs[0][0] if all(key in a and key in b for a, b in pairs)]
    if len(shared) < 2:
        raise BadInput(
            "The runs share no held-out problems: evaluate them on the same task.", "no-shared"
        )
    return crossed_difference(np.array([[b[key] - a[key] for key in shared] for a, b in pairs]))


def compare_arms(arms: Arms, against: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A row an arm: accuracy, its range over seeds, differences, and what training cost.

    Args:
        against: arms to compare with; the first two by default (the base and the first variant).

    Raises:
        BadInput: fewer than two arms, or arms that share no problems.
    """
    if len(arms) < 2:
        raise BadInput("There is nothing to compare: give two runs at least.", "nothing-to-compare")
    against = list(against or list(arms)[:2])
    rows = []
    for name, runs in arms.items():
        share = not is_reward(score_names(evaluated(runs[0]))[0])
        means = [float(np.mean(list(scores_by_problem(run).values()))) for run in runs]
        row = {"arm": name, "seeds": len(runs), "accuracy": float(np.mean(means))}
        row["lowest"], row["highest"], row["share"] = min(means), max(means), share
        for other in against:
            if other != name:
                row[f"to {other}"] = vars(difference(arms[other], runs))
        rows.append(row | costs(runs))
    return rows


def costs(runs: Sequence[Run]) -> dict[str, float]:
    """Means over an arm's runs: completion tokens, seconds, peak memory, where they are known."""
    rows = []
    for run in runs:
        if log := read_jsonl(run.train_log):
            learning, last = read_json(run.record).get("learning", {}), log[-1]
            row = {key: learning.get(key) for key in ("cpu_seconds", "peak_gib")}
            row |= {"steps": last["step"], "seconds": last["seconds"]}
            rows.append(row | {"tokens": last.get("num_tokens")})
    means = pd.DataFrame(rows, dtype=float).mean().dropna().to_dict()
    return means | {key: round(means[key]) for key in ("steps", "tokens") if key in means}


def batches_log(run: Run) -> list[dict]:
    """The log with one row a batch of rollouts, which several updates may repeat."""
    updates = read_json(run.record)["config"]["num_iterations"]
    return [row for row in read_jsonl(run.train_log) if (row["step"] - 1) % updates == 0]


def logs_of(arms: Arms) -> dict[str, list[list[dict]]]:
    """Each run's log by arm, a row a batch (`batches_log`); empty logs of a base."""
    return {name: [batches_log(run) for run in runs] for name, runs in arms.items()}


def accuracy_rows(compared: Sequence[dict]) -> list[dict[str, str]]:
    """The comparison as a table to show: accuracy, and each difference with its interval."""
    others = [f"to {row['arm']}" for row in compared]
    others = [other for other in others if any(other in row for row in compared)]
    return [
        {
            "arm": row["arm"],
            "seeds": row["seeds"],
            "accuracy": figure(row["accuracy"], row),
            "over seeds": f"{figure(row['lowest'], row)} to {figure(row['highest'], row)}"
            if row["seeds"] > 1
            else "",
        }
        | {other: _difference_text(row, other) if other in row else "" for other in others}
        for row in compared
    ]


def _difference_text(row: Mapping[str, Any], other: str) -> str:
    paired = row[other] | {"share": row["share"], "interval_95": row[other]["interval"]}
    return f"{difference_text(paired)} ({interval_text(paired)})"


def cost_rows(compared: Sequence[dict]) -> list[dict[str, Any]]:
    keys = ("arm", "steps", "tokens", "seconds", "cpu_seconds", "peak_gib")
    return [{key: row.get(key) for key in keys} for row in compared if "steps" in row]


CLAIMS = {"better": "is better than", "worse": "is worse than"}


def sentences(compared: Sequence[dict]) -> list[str]:
    """What may be claimed of each arm against the last one compared with, and what not.

    The rule is `lib.stats.verdict_word`'s. Of many comparisons some look significant by chance:
    p-values are Holm's (1979).
    """
    other = next(key for key in reversed(compared[-1]) if key.startswith("to "))
    rows = [row for row in compared if other in row and row["arm"] != BASE]
    p_values = holm(
        [1.0 if row[other]["p_value"] is None else row[other]["p_value"] for row in rows]
    )
    claims = []
    for row, p in zip(rows, p_values, strict=True):
        margin = MARGIN if row["share"] else None
        word = verdict_word(row[other]["interval"], p, margin)
        claim = CLAIMS.get(word, "cannot be told apart from")
        if word.startswith("no difference"):
            claim = f"makes {word} to"
        name = other.removeprefix("to ")
        claims.append(f"{row['arm']} {claim} {name}: {_difference_text(row, other)}, p = {p:.2f}.")
    return claims
