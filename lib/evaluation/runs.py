"""Any run folders side by side: settings that differ, held-out accuracy, what it cost.

    arms = find_arms(config)             # {"grpo": [Run, Run, Run], "rloo": …}, a run a seed
    compare_arms(arms)                   # accuracy, and differences to the first with intervals

An arm is a way of training, seen with one seed or several. The problems compared are those that
both arms of a pair were asked.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.config import Config, with_changes
from lib.errors import BadInput
from lib.evaluation.comparison import (
    difference_text,
    figure,
    greedy_records,
    interval_text,
    is_reward,
    score_names,
)
from lib.files import read_jsonl
from lib.runs import NOT_SETTINGS, Run, is_begun, run_folder, run_places
from lib.stats import MARGIN, Difference, crossed_difference, holm, verdict_word

Arms = Mapping[str, Sequence[Run]]
BASE = "base"

# Which runs there are


def variant_configs(config: Config) -> dict[str, Config]:
    """Run name → configuration: in the recipe's order, each variant with all seeds. BadInput: no
    variants or seeds, or settings that do not work."""
    if not (config.variants and config.seeds):
        raise BadInput(
            "There is nothing to compare: give the recipe `variants` and `seeds`.",
            "nothing-to-compare",
        )
    configs, single = {}, {"variants": {}, "seeds": []}
    for variant, changes in config.variants.items():
        for seed in config.seeds:
            name = f"{variant}_{seed}"
            place = {"seed": seed, "run": f"{config.run_name}/{name}"}
            configs[name] = with_changes(config, {**single, **changes, **place})
    return configs


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


def missing_runs(config: Config) -> dict[str, Config]:
    """Run name → configuration of those variants, and the base, that are not finished yet."""
    if config.runs:
        return {}
    wanted = {BASE: base_config(config), **variant_configs(config)}
    return {name: each for name, each in wanted.items() if not is_finished(each)}


def planned_seconds(config: Config, missing: Mapping[str, Config]) -> float:
    """About how long the missing runs take: each as long as the finished ones, if there are some,
    else 15 s to load and measure and 0.2 s a completion, as the embedded model on one core."""
    if not missing:
        return 0.0
    done = [each for name, each in variant_configs(config).items() if name not in missing]
    records = [Run(run_folder(each)).recorded().get("learning", {}) for each in done]
    if spent := [record["seconds"] for record in records if record.get("seconds")]:
        return float(np.mean(spent)) * len(missing)
    return sum(15 + 0.2 * each.completions_per_step * each.max_steps for each in missing.values())


def find_arms(config: Config) -> dict[str, list[Run]]:
    """The runs to compare, base first where there is one: those of `runs` (a sweep's folder stands
    for its runs, those that differ by the seed as one arm), or of the variants. BadInput: a folder
    of `runs` is no run."""
    if config.runs:
        return {arm: runs for name in config.runs for arm, runs in _arms(name, config).items()}
    arms = {BASE: [Run(run_folder(base_config(config)))]}
    for name, each in variant_configs(config).items():
        if is_finished(each):
            arms.setdefault(name.rpartition("_")[0], []).append(Run(run_folder(each)))
    return arms


def _arms(name: str, config: Config) -> dict[str, list[Run]]:
    """A run by its name under output_dir or by its path; of a sweep's folder, what is measured."""
    for folder in run_places(name, config):
        if (folder / "run.json").is_file():
            return {Path(name).name: [Run(folder)]}
        arms: dict[str, list[Run]] = {}
        for each in sorted(folder.glob("*_*/evals/trained.json")):
            run = Run(each.parents[1])
            arms.setdefault(run.folder.name.rpartition("_")[0], []).append(run)
        if arms:
            return arms
    raise BadInput(
        f"There is no run {name}: name folders that hold a run.json in `runs`.", "no-run"
    )


# What sets them apart


def differing_settings(arms: Arms) -> list[dict[str, Any]]:
    """A row for each setting in which the arms differ: its name, and each arm's value."""
    settings = {name: runs[0].recorded()["config"] for name, runs in arms.items()}
    frame = pd.DataFrame(settings, dtype=object).drop([*NOT_SETTINGS, "seed"], errors="ignore")
    frame = frame.fillna("").astype(str)
    frame = frame[frame.nunique(axis=1) > 1]
    return frame.rename_axis("setting").reset_index().to_dict("records")


def scores_by_problem(run: Run) -> pd.Series:
    """The score of each greedy answer of the run's model, by the problem's id and question; the
    series is named by what is scored. BadInput: the run was not evaluated."""
    log = run.need(run.evals / f"{evaluation_name(run)}.jsonl", made_by="04_pass_at_k_eval")
    records = list(greedy_records(read_jsonl(log)).values())
    score = score_names(records)[0]
    values = {(r["id"], r["question"]): float(r[score]) for r in records}
    return pd.Series(values, name=score)


def pairs_of(before: Sequence[Run], after: Sequence[Run]) -> list[tuple[Run, Run]]:
    """The runs of two arms, seed by seed; an arm of one run stands against each of the other."""
    if len(before) == 1 or len(after) == 1:
        return [(a, b) for a in before for b in after]
    firsts, seconds = (
        {run.recorded()["config"]["seed"]: run for run in arm} for arm in (before, after)
    )
    pairs = [(run, seconds[seed]) for seed, run in firsts.items() if seed in seconds]
    if not pairs:
        raise BadInput("Two arms have no seed in common: train both with the same.", "no-shared")
    return pairs


def difference(before: Sequence[Run], after: Sequence[Run]) -> Difference:
    """How much better the second arm is, over the seeds it was run with and shared problems."""
    pairs = [(scores_by_problem(a), scores_by_problem(b)) for a, b in pairs_of(before, after)]
    shared = pd.concat([b - a for a, b in pairs], axis=1).dropna()
    if len(shared) < 2:
        raise BadInput(
            "The runs share no held-out problems: evaluate them on the same task.", "no-shared"
        )
    return crossed_difference(shared.to_numpy().T)


def compare_arms(arms: Arms) -> list[dict[str, Any]]:
    """A row an arm: accuracy, its range over seeds, what training cost, and the differences to the
    base, where there is one, and to the first other arm. BadInput: fewer than two arms, or arms
    that share no problems."""
    if len(arms) < 2:
        raise BadInput("There is nothing to compare: give two runs at least.", "nothing-to-compare")
    rows = []
    for name, runs in arms.items():
        scores = [scores_by_problem(run) for run in runs]
        means = [float(each.mean()) for each in scores]
        row = {"arm": name, "seeds": len(runs), "accuracy": float(np.mean(means))}
        row |= {"lowest": min(means), "highest": max(means)}
        row["share"] = not is_reward(scores[0].name)
        for other in list(arms)[: 2 if BASE in arms else 1]:
            if other != name:
                row[f"to {other}"] = vars(difference(arms[other], runs))
        rows.append(row | costs(runs))
    return rows


def costs(runs: Sequence[Run]) -> dict[str, float]:
    """Means over an arm's runs: completion tokens, seconds, peak memory, where they are known."""
    rows = []
    for run in runs:
        if log := read_jsonl(run.train_log):
            learning, last = run.recorded().get("learning", {}), log[-1]
            row = {key: learning.get(key) for key in ("cpu_seconds", "peak_gib")}
            row |= {"steps": last["step"], "seconds": last["seconds"]}
            rows.append(row | {"tokens": last.get("num_tokens")})
    means = pd.DataFrame(rows, dtype=float).mean().dropna().to_dict()
    return means | {key: round(means[key]) for key in ("steps", "tokens") if key in means}


def logs_of(arms: Arms) -> dict[str, list[list[dict]]]:
    """Each run's log by arm, one row a batch of rollouts, which several updates may repeat; empty
    logs of a base."""

    def batches(run: Run) -> list[dict]:
        updates = run.recorded()["config"]["num_iterations"]
        return [row for row in read_jsonl(run.train_log) if (row["step"] - 1) % updates == 0]

    return {name: [batches(run) for run in runs] for name, runs in arms.items()}


# In words


def accuracy_rows(compared: Sequence[dict]) -> list[dict[str, str]]:
    """The comparison as a table to show: accuracy, and each difference with its interval."""
    others = [name for row in compared if (name := f"to {row['arm']}") in compared[-1]]
    rows, several = [], any(row["seeds"] > 1 for row in compared)
    for row in compared:
        seeds = f"{figure(row['lowest'], row)} to {figure(row['highest'], row)}"
        shown = {"arm": row["arm"], "seeds": row["seeds"], "accuracy": figure(row["accuracy"], row)}
        shown |= {"over seeds": seeds if row["seeds"] > 1 else ""} if several else {}
        texts = {other: _difference_text(row, other) if other in row else "" for other in others}
        rows.append(shown | texts)
    return rows


def _difference_text(row: Mapping[str, Any], other: str) -> str:
    paired = row[other] | {"share": row["share"], "interval_95": row[other]["interval"]}
    return f"{difference_text(paired)} ({interval_text(paired).removesuffix(' points')})"


def cost_rows(compared: Sequence[dict]) -> list[dict[str, Any]]:
    titles = {"cpu_seconds": "CPU seconds", "peak_gib": "peak GiB"}
    keys = ("steps", "tokens", "seconds", "cpu_seconds", "peak_gib")
    keys = [key for key in keys if any(row.get(key) is not None for row in compared)]
    rows = []
    for row in (row for row in compared if "steps" in row):
        shown = {"arm": row["arm"]}
        for key in keys:
            value, digits = row.get(key), 2 if key == "peak_gib" else None
            shown[titles.get(key, key)] = value if value is None else round(value, digits)
        rows.append(shown)
    return rows


def sentences(compared: Sequence[dict]) -> list[str]:
    """What may be claimed of each arm against the last one compared with, and what not.

    The rule is `lib.stats.verdict_word`'s. Of many comparisons some look significant by chance:
    p-values are Holm's (1979).
    """
    other = next(key for key in reversed(compared[-1]) if key.startswith("to "))
    rows = [row for row in compared if other in row and row["arm"] != BASE]
    values = (row[other]["p_value"] for row in rows)
    p_values, claims = holm([1.0 if value is None else value for value in values]), []
    for row, p in zip(rows, p_values, strict=True):
        word = verdict_word(row[other]["interval"], p, MARGIN if row["share"] else None)
        claim = "cannot be told apart from"
        if word in ("better", "worse"):
            claim = f"is {word} than"
        elif word.startswith("no difference"):
            claim = f"makes {word} to"
        name = other.removeprefix("to ")
        claims.append(f"{row['arm']} {claim} {name}: {_difference_text(row, other)}, p = {p:.2f}.")
    return claims
