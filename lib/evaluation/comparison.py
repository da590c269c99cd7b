"""What the answers of two evaluations add up to: scores, paired differences, a verdict.

    comparison = compare(run, config, "base", "trained")
    verdict(comparison)     # "The trained model is better (greedy strict): …"

The records are those that `lib.evaluation` logs, a line an answer.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lib.config import Config
from lib.errors import BadInput
from lib.evaluation import stats
from lib.evaluation.harness import HARNESS_SCORES
from lib.runs import Run, read_json, read_jsonl, write_json

VERDICTS = ("strict", "lenient", "format")
TEXT_SCORES = ("rouge1", "rougeL", "words", "characters")
COUNTS = ("words", "characters")  # no shares of anything
ALPHA = 0.05
BETTER = ("is better", "is worse")


def is_judged(records: Sequence[dict]) -> bool:
    """Whether the answers are right or wrong; a summary is neither."""
    return "strict" in records[0]


def score_names(records: Sequence[dict]) -> tuple[str, ...]:
    """What is scored: verdicts (and, for numbers, the harness' two), or a text's measures.

    A text's are "reward", what it earns, "rewards/…" for each reward that is only watched, and
    its likeness to the gold.
    """
    if not is_judged(records):
        return tuple(name for name in records[0] if is_reward(name)) + TEXT_SCORES
    return VERDICTS + tuple(name for name in HARNESS_SCORES if name in records[0])


def is_reward(score: str) -> bool:
    return score == "reward" or score.startswith("rewards/")


def scores_of(records: Sequence[dict], kind: str, score: str) -> dict[str, list[float]]:
    """Per problem the given score of each of its samples, in one pass ("greedy", "sampled")."""
    found: dict[str, list[float]] = {}
    for record in records:
        if record["pass"] == kind:
            found.setdefault(record["id"], []).append(float(record[score]))
    return found


def greedy_answers(records: Sequence[dict]) -> dict[str, dict]:
    """The record of each problem's greedy answer, by the problem's id."""
    return {record["id"]: record for record in records if record["pass"] == "greedy"}


def clusters_of(records: Sequence[dict]) -> list[str] | None:
    """One label a problem, in the order of the greedy pass; None where there are no families."""
    labels = [record["cluster"] for record in greedy_answers(records).values()]
    return None if None in labels else labels


def summarize(records: Sequence[dict], config: Config) -> dict[str, Any]:
    """Mean, error and interval of each score, outcomes counted apart, and pass@k.

    A rate that stands alone (right or wrong, once a problem) has its Wilson interval; families
    of problems and other scores have Student's t.
    """
    clusters = clusters_of(records)
    summary: dict[str, Any] = {"scores": {}, "outcomes": {}, "truncated": {}}
    for score in score_names(records):
        greedy = [values[0] for values in scores_of(records, "greedy", score).values()]
        summary["scores"][f"greedy_{score}"] = _shown(greedy, clusters)
        sampled = scores_of(records, "sampled", score)
        if sampled and score in VERDICTS[:2]:
            for k in config.eval_k:
                rates = [stats.pass_at_k(len(v), int(sum(v)), k) for v in sampled.values()]
                summary["scores"][f"pass@{k}_{score}"] = _shown(rates, clusters, plain=False)
    for kind in dict.fromkeys(record["pass"] for record in records):
        answers = [record for record in records if record["pass"] == kind]
        summary["outcomes"][kind] = dict(Counter(record["outcome"] for record in answers))
        cut = sum(record["finish_reason"] == "length" for record in answers)
        summary["truncated"][kind] = {
            "mean": cut / len(answers),
            "interval_95": stats.wilson_interval(cut, len(answers)),
            "answers": len(answers),
        }
    summary["tokens"] = sum(record["tokens"] for record in records)
    return summary


def _shown(
    values: Sequence[float], clusters: list[str] | None, plain: bool = True
) -> dict[str, Any]:
    """One score of all problems; `plain` marks those that may be a rate of right and wrong."""
    estimate = stats.mean_with_error(values, clusters)
    interval = estimate.interval
    if plain and clusters is None and set(values) <= {0.0, 1.0}:
        interval = stats.wilson_interval(int(sum(values)), len(values))
    return {
        "mean": estimate.mean,
        "stderr": estimate.stderr,
        "interval_95": interval,
        "problems": len(values),
    }


def compare(
    run: Run, config: Config, before: str, after: str, to: str = "comparison"
) -> dict[str, dict[str, Any]]:
    """Paired differences between two evaluations of the same problems; `evals/<to>.json`.

    Raises:
        BadInput: the two were not asked the same prompts in the same way.
    """
    summaries = [read_json(run.evals / f"{name}.json") for name in (before, after)]
    if summaries[0]["protocol"] != summaries[1]["protocol"]:
        raise BadInput(
            f"{before} and {after} of {run.shown(run.evals)} were not evaluated alike (prompts, "
            f"sampling or seed differ): run 04_pass_at_k_eval again for both."
        )
    a, b = (read_jsonl(run.evals / f"{name}.jsonl") for name in (before, after))
    clusters, table = clusters_of(a), {}
    for score in score_names(a):
        greedy = [scores_of(records, "greedy", score) for records in (a, b)]
        firsts = [[scores[id][0] for id in greedy[0]] for scores in greedy]
        row = _row(*firsts, stats.paired_difference(*firsts, clusters))
        table[f"greedy_{score}"] = row | {"share": not is_reward(score) and score not in COUNTS}
        sampled = [scores_of(records, "sampled", score) for records in (a, b)]
        if sampled[0] and score in VERDICTS[:2]:
            n = config.eval_samples
            counts = [[int(sum(scores[id])) for id in sampled[0]] for scores in sampled]
            for k in config.eval_k:
                rates = [stats.pass_at_k(n, column, k) for column in counts]
                found = stats.paired_bootstrap_pass_at_k(
                    *counts, n, k, clusters=clusters, seed=config.seed
                )
                table[f"pass@{k}_{score}"] = _row(*rates, found)
    write_json(run.evals / f"{to}.json", table)
    return read_json(run.evals / f"{to}.json")


def _row(a: Sequence[float], b: Sequence[float], found: stats.Difference) -> dict[str, Any]:
    row = {
        "before": float(np.mean(a)),
        "after": float(np.mean(b)),
        "difference": found.difference,
        "stderr": found.stderr,
        "interval_95": found.interval,
        "problems": len(a),
        "p_value": found.p_value,
        "test": found.test,
    }
    return row if found.fixed is None else row | {"fixed": found.fixed, "broken": found.broken}


def changes(before: Sequence[dict], after: Sequence[dict]) -> dict[str, list[str]]:
    """Problems by what happened to their greedy strict answer: fixed, broken, both, neither.

    A text counts as right where it shares more than half of the gold's words (ROUGE-1).
    """
    score = "strict" if is_judged(before) else "rouge1"
    a, b = greedy_answers(before), greedy_answers(after)
    groups: dict[str, list[str]] = {"fixed": [], "broken": [], "both": [], "neither": []}
    for id in a:
        was, is_now = a[id][score] > 0.5, b[id][score] > 0.5
        name = ("both" if is_now else "broken") if was else ("fixed" if is_now else "neither")
        groups[name].append(id)
    return groups


def outcomes(before: Sequence[dict], after: Sequence[dict]) -> list[tuple[str, int, int]]:
    """How many greedy answers ended in which way, before and after."""
    counted = [
        Counter(record["outcome"] for record in greedy_answers(records).values())
        for records in (before, after)
    ]
    return [
        (name, counted[0][name], counted[1][name]) for name in sorted({*counted[0], *counted[1]})
    ]


def verdict(table: dict[str, dict[str, Any]], metric: str = "greedy_strict") -> str:
    """What the comparison allows one to claim, and what it does not, in a few sentences."""
    metric = metric if metric in table else next(iter(table))
    row, sign = table[metric], _direction(table[metric])
    better, worse = ("earns more", "earns less") if is_reward(metric[7:]) else BETTER
    claim = {
        1: f"The trained model {better}",
        0: "No difference can be claimed",
        -1: f"The trained model {worse}",
    }[sign]
    change = f"{_figure(row, 'before')} → {_figure(row, 'after')}"
    sentences = [
        f"{claim} ({metric.replace('_', ' ')}): {change} on {row['problems']} held-out problems; "
        f"difference {_figure(row, 'difference', '+')}, 95 % interval {interval_text(row)}.",
        *_about_format(table, metric, sign),
        *_about_watched(table, metric),
        *_about_size(row, sign),
        "It is one training run, one task and one prompt: of others this says nothing.",
    ]
    return " ".join(sentences)


def _direction(row: dict[str, Any]) -> int:
    """1: better, -1: worse, 0: neither can be claimed. Interval and test must agree."""
    if row["interval_95"] is None or row["p_value"] is None or row["p_value"] >= ALPHA:
        return 0
    low, high = row["interval_95"]
    return int(low > 0) - int(high < 0)


def _about_format(table: dict[str, dict[str, Any]], metric: str, sign: int) -> list[str]:
    """Whether a strict gain is more than learning where the answer is to stand."""
    row = table.get("greedy_lenient")
    if metric != "greedy_strict" or row is None or sign < 1:
        return []
    moved = (
        f"graded leniently {_figure(row, 'before')} → {_figure(row, 'after')} "
        f"({_figure(row, 'difference', '+')}, 95 % interval {interval_text(row)})"
    )
    if _direction(row) > 0:
        return [f"It is not the format alone: {moved}."]
    return [f"The gain may be of format only: {moved}, which allows no claim."]


def _about_watched(table: dict[str, dict[str, Any]], metric: str) -> list[str]:
    """What moved that was not trained on: a reward can rise while nothing gets better."""
    if metric != "greedy_reward":
        return []
    watched = [name for name in table if name.startswith("greedy_rewards/")]
    moved = [
        f"{name.removeprefix('greedy_')} {_figure(table[name], 'difference', '+')} "
        f"({interval_text(table[name])})"
        for name in [*watched, "greedy_rougeL", "greedy_words"]
    ]
    return [f"That is what it was trained on; what it was not: {', '.join(moved)}."]


def _about_size(row: dict[str, Any], sign: int) -> list[str]:
    """What a comparison of this size would have seen, where it claims nothing."""
    if sign:
        return []
    if row["interval_95"] is None:
        return ["One problem, or one family of them, tells no error: evaluate more."]
    if not row["stderr"]:
        return ["All problems changed alike, from which no error can be told: evaluate more."]
    seen = stats.detectable_difference(1, row["stderr"] ** 2, 0, 0)
    size = f"{seen:.1%}" if is_share(row) else f"{seen:.2f}"
    return [f"A true difference below about {size} would be missed by so many problems."]


def is_share(row: dict[str, Any]) -> bool:
    """Whether a row of the comparison is of shares, shown in per cent."""
    return row.get("share", True)


def _figure(row: dict[str, Any], key: str, sign: str = "") -> str:
    return f"{row[key]:{sign}.1%}" if is_share(row) else f"{row[key]:{sign}.2f}"


def interval_text(row: dict[str, Any]) -> str:
    """The difference's interval in words."""
    if row["interval_95"] is None:
        return "not to be had"
    form = "{:+.1%}" if is_share(row) else "{:+.2f}"
    return "{} to {}".format(*map(form.format, row["interval_95"]))
