"""An evaluation's answers taken apart: by k, by difficulty, problem by problem.

All work on the records that `lib.evaluation` logs; `lib.plots` draws what they return.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lib import stats
from lib.answers import normalize_number
from lib.config import Config
from lib.engines import Completion
from lib.evaluation.compare import changes, clusters_of, greedy_records, samples_of
from lib.rewards import recipe_rewards, score
from lib.stats import rate

MAJORITY = 3  # samples a problem from which a vote says something


def vote(record: dict) -> str | None:
    """What an answer votes for: equal numbers are written the same; None where it has none."""
    answer = record["extracted"]
    return None if answer is None else normalize_number(answer) or answer.strip()


def add_rewards(records: Sequence[dict], rows: Sequence[dict], config: Config) -> list[dict]:
    """The records with "reward": what the recipe's weighted rewards pay for the answer.

    A reward of weight 0, which is only watched, comes by its own name, as "rewards/gold_reward".

    Args:
        rows: the prompts that were asked (`lib.tasks.make_rows`).
    """
    by_id = {row["id"]: row for row in rows}
    rewards, weights = recipe_rewards(config)
    # Rewards of length count tokens; which ones they were, the log does not keep.
    answers = [Completion(r["completion"], (0,) * r["tokens"], r["finish_reason"]) for r in records]
    scores = score(rewards, [by_id[record["id"]] for record in records], answers)
    weight_of = dict(zip(scores, weights, strict=True))
    paid = np.nansum([w * np.array(scores[name], float) for name, w in weight_of.items()], axis=0)
    watched = [name for name, weight in weight_of.items() if not weight]
    return [
        record | {"reward": float(paid[i])} | {f"rewards/{n}": float(scores[n][i]) for n in watched}
        for i, record in enumerate(records)
    ]


def curves_of_k(records: Sequence[dict]) -> dict[str, list[stats.Estimate]]:
    """For k = 1 … n samples: pass@k and majority@k.

    Of fewer than three samples none can be outvoted, and majority@k is left out. All strict: a
    sample that has the answer outside its tags votes for it, and counts as wrong.
    """
    problems, clusters = list(samples_of(records).values()), clusters_of(records)
    ks = range(1, len(problems[0]) + 1)
    rights = [[record["strict"] for record in samples] for samples in problems]
    by_k = {"pass@k": [[stats.pass_at_k(len(r), sum(r), k) for r in rights] for k in ks]}
    if len(ks) >= MAJORITY:
        votes = [[vote(record) for record in samples] for samples in problems]
        both = list(zip(votes, rights, strict=True))
        by_k["majority@k"] = [[stats.majority_at_k(v, r, k) for v, r in both] for k in ks]
    return {
        name: [stats.mean_with_error(values, clusters, (0, 1)) for values in rows]
        for name, rows in by_k.items()
    }


# How often the base model's samples are right, as a measure of difficulty.
PASS_RATES = ("never", "less than half", "half or more", "always")


def by_difficulty(before: Sequence[dict], after: Sequence[dict]) -> list[dict[str, Any]]:
    """Greedy strict accuracy by level, or by how often the base model's samples are right.

    The groups come from samples and the accuracy from the greedy answer, so that a problem does
    not come into its group by the very answer that is then counted.

    Returns: a row a group: group, before, after (each as `rate`); none without levels or samples.
    """
    a, b, group_of = greedy_records(before), greedy_records(after), {}
    if all(record["level"] is not None for record in a.values()):
        group_of = {id: f"level {record['level']}" for id, record in a.items()}
        names = sorted(set(group_of.values()))
    else:
        names = PASS_RATES
        for id, samples in samples_of(before).items():
            share = sum(record["lenient"] for record in samples) / len(samples)
            group_of[id] = PASS_RATES[(share > 0) + (share >= 0.5) + (share == 1)]
    rows = []
    for name in names:
        if ids := [id for id in a if group_of.get(id) == name]:
            sides = [rate([answers[id]["strict"] for id in ids]) for answers in (a, b)]
            rows.append({"group": name, "before": sides[0], "after": sides[1]})
    return rows


def side_by_side(before: Sequence[dict], after: Sequence[dict]) -> list[dict[str, Any]]:
    """Each problem's greedy answers of both models, and what changed: fixed, broken first."""
    a, b = greedy_records(before), greedy_records(after)

    def graded(record: dict) -> str:
        outcome, strict = record["outcome"], record.get("strict", True)
        return outcome if strict or outcome != "right" else "right, but not in the form asked for"

    pairs = [(change, id) for change, ids in changes(before, after).items() for id in ids]
    return [
        {
            "number": number,
            "change": change,
            "question": a[id]["question"],
            "gold": a[id]["expected"],
            "before": a[id]["completion"],
            "graded before": graded(a[id]),
            "after": b[id]["completion"],
            "graded after": graded(b[id]),
        }
        for number, (change, id) in enumerate(pairs, 1)
    ]


def outcomes(before: Sequence[dict], after: Sequence[dict]) -> list[tuple[str, int, int]]:
    """How many greedy answers ended in which way, before and after."""
    counts = [
        Counter(record["outcome"] for record in greedy_records(records).values())
        for records in (before, after)
    ]
    return [(name, counts[0][name], counts[1][name]) for name in sorted({*counts[0], *counts[1]})]
