"""What the answers of two evaluations add up to: scores, paired differences, a verdict, and the
same taken apart by k, by difficulty, problem by problem.

    comparison = compare(run, config, "base", "trained")
    verdict(comparison)     # "The trained model is better (greedy strict): …"

The records are those that `lib.evaluation` logs, a line an answer. How a difference is put into
words stands in one place, `lib.stats.verdict_word`.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib import stats
from lib.answers import normalize_number
from lib.config import Config
from lib.errors import BadInput
from lib.files import read_json, read_jsonl, write_json
from lib.runs import Run
from lib.stats import MARGIN, points, rate
from lib.tasks import HARNESS_SCORES
from lib.tasks.prompts import asks_for_hashes

Records = Sequence[dict[str, Any]]
Rows = dict[str, dict[str, Any]]  # score → before, after, difference, interval_95, …

GRADES = ("strict", "lenient", "format")
TEXT_SCORES = ("rouge1", "rougeL", "words", "characters")
COUNTS = ("words", "characters")  # no shares of anything
MAJORITY = 3  # samples a problem from which a vote says something


def is_judged(records: Records) -> bool:
    """Whether the answers are right or wrong; a summary is neither."""
    return "strict" in records[0]


def is_reward(score: str) -> bool:
    return score == "reward" or score.startswith("rewards/")


def score_names(records: Records, prompt_format: str = "plain") -> tuple[str, ...]:
    """What is scored: grades (and, for numbers, the harness' two), or a text's measures.

    A text's are "reward", what it earns, "rewards/…" for each reward that is only watched, and
    its likeness to the gold. What can only be zero is left out: strict_match where the prompt
    does not ask for "####".
    """
    if not is_judged(records):
        return tuple(name for name in records[0] if is_reward(name)) + TEXT_SCORES
    harness = HARNESS_SCORES if asks_for_hashes(prompt_format) else HARNESS_SCORES[1:]
    return GRADES + tuple(name for name in harness if name in records[0])


def greedy_records(records: Records) -> dict[str, dict]:
    """The record of each problem's greedy answer, by the problem's id."""
    return {record["id"]: record for record in records if record["pass"] == "greedy"}


def samples_of(records: Records) -> dict[str, list[dict]]:
    """The sampled answers of each problem, by its id, in the problems' order."""
    samples: dict[str, list[dict]] = {}
    for record in records:
        if record["pass"] == "sampled":
            samples.setdefault(record["id"], []).append(record)
    return samples


def clusters_of(records: Records) -> list[str] | None:
    """One label a problem, in the order of the greedy pass; None where there are no families."""
    labels = [record["cluster"] for record in greedy_records(records).values()]
    return None if None in labels else labels


def score_table(records: Records, eval_k: Sequence[int], prompt_format: str) -> pd.DataFrame:
    """A row a problem, by its id, and a column a score: "greedy_strict" is the greedy answer's,
    "pass@5_strict" comes from the samples."""
    greedy, samples = greedy_records(records), samples_of(records)
    columns: dict[str, list[float]] = {}
    for score in score_names(records, prompt_format):
        columns[f"greedy_{score}"] = [float(record[score]) for record in greedy.values()]
        if samples and score in GRADES[:2]:
            rights = [[record[score] for record in samples[id]] for id in greedy]
            for k in eval_k:
                values = [stats.pass_at_k(len(each), sum(each), k) for each in rights]
                columns[f"pass@{k}_{score}"] = values
    return pd.DataFrame(columns, index=list(greedy))


def _is_share(column: str) -> bool:
    score = column.removeprefix("greedy_")
    return not is_reward(score) and score not in COUNTS


def summarize(records: Records, config: Config) -> dict[str, Any]:
    """Mean, error and interval of each score, outcomes counted apart, and pass@k.

    A rate that stands alone (right or wrong, once a problem) has its Wilson interval; families
    of problems and other scores have Student's t.
    """
    clusters, scores = clusters_of(records), {}
    table = score_table(records, config.eval_k, config.prompt_format)
    for name, values in table.items():
        estimate = stats.mean_with_error(values, clusters, (0, 1) if _is_share(name) else None)
        interval = estimate.interval
        if clusters is None and name.startswith("greedy_") and values.isin((0, 1)).all():
            interval = stats.wilson_interval(int(values.sum()), len(values))
        scores[name] = {
            "mean": estimate.mean,
            "stderr": estimate.stderr,
            "interval_95": interval,
            "problems": len(values),
        }
    summary = {"scores": scores, "outcomes": {}, "truncated": {}}
    for kind in dict.fromkeys(record["pass"] for record in records):
        answers = [record for record in records if record["pass"] == kind]
        summary["outcomes"][kind] = dict(Counter(record["outcome"] for record in answers))
        cut = [record["finish_reason"] == "length" for record in answers]
        summary["truncated"][kind] = {
            "mean": float(np.mean(cut)),
            "interval_95": stats.wilson_interval(sum(cut), len(cut)),
            "answers": len(cut),
        }
    return summary | {"tokens": sum(record["tokens"] for record in records)}


def compare(run: Run, config: Config, before: str, after: str, to: str = "comparison") -> Rows:
    """Paired differences between two evaluations of the same problems; `evals/<to>.json`.

    Each row names the files that it is made of, answers and their protocol, with their digests
    (SHA-256), by which `lib.evaluation.check` tells files that have been changed since. BadInput:
    the two were not asked the same prompts in the same way.
    """
    summaries = [read_json(run.evals / f"{name}.json") for name in (before, after)]
    if summaries[0]["protocol"] != summaries[1]["protocol"]:
        raise BadInput(
            f"{before} and {after} of {run.shown(run.evals)} were not evaluated in the same way "
            f"(prompts, sampling or seed differ): run 04_pass_at_k_eval again for both.",
            key="protocol",
        )
    logs = [run.evals / f"{name}.jsonl" for name in (before, after)]
    rows = compare_records(*map(read_jsonl, logs), config.eval_k, config.prompt_format)
    files = {file.name: digest(file) for log in logs for file in (log, log.with_suffix(".json"))}
    write_json(run.evals / f"{to}.json", {k: row | {"answers": files} for k, row in rows.items()})
    return read_json(run.evals / f"{to}.json")


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def compare_records(
    before: Records, after: Records, eval_k: Sequence[int], prompt_format: str
) -> Rows:
    """The rows of a comparison, from the answers alone."""
    a, b = (score_table(records, eval_k, prompt_format) for records in (before, after))
    b, clusters, rows = b.loc[a.index], clusters_of(before), {}
    for name in a:
        paired, share = stats.paired_difference(a[name], b[name], clusters), _is_share(name)
        word = stats.verdict_word(paired.interval, paired.p_value, MARGIN if share else None)
        rows[name] = {
            "before": float(a[name].mean()),
            "after": float(b[name].mean()),
            "difference": paired.difference,
            "stderr": paired.stderr,
            "interval_95": paired.interval,
            "problems": len(a),
            "p_value": paired.p_value,
            "test": paired.test,
            "verdict": word,
            "share": share,
        }
        if paired.fixed is not None:
            rows[name] |= {"fixed": paired.fixed, "broken": paired.broken}
    return rows


# In words

BETTER, WORSE, NONE, CANNOT = "better", "worse", "no difference", "cannot be told"
LENIENTLY = {
    BETTER: "Graded leniently, the answers themselves got better",
    WORSE: "Graded leniently, the answers themselves got worse",
    NONE: "Graded leniently, about as many answers are right as before",
    CANNOT: "It cannot be told whether the answers themselves, graded leniently, got better",
}


def verdict(rows: Rows, metric: str = "greedy_strict") -> str:
    """What the comparison allows one to claim, and what it does not, in a few sentences."""
    metric = metric if metric in rows else next(iter(rows))
    row, name = rows[metric], metric.replace("_", " ")
    word, reward = _word(row), is_reward(metric.removeprefix("greedy_"))
    claim = {
        BETTER: f"The trained model {'earns more' if reward else 'is better'} ({name})",
        WORSE: f"The trained model {'earns less' if reward else 'is worse'} ({name})",
        NONE: f"There is {row.get('verdict', word)} ({name})",
        CANNOT: f"It cannot be told whether the trained model is better ({name})",
    }[word]
    change, difference = _change(row).split(", ", 1)
    problems = f"{row['problems']:,} held-out problem{'s' if row['problems'] > 1 else ''}"
    sentences = [f"{claim}: {change} on {problems}, {difference}."]
    if metric == "greedy_strict" and "greedy_lenient" in rows:
        sentences += _about_format(row, rows["greedy_lenient"])
    if metric == "greedy_reward":  # a reward can rise while nothing gets better
        watched = [name for name in rows if name.startswith("greedy_rewards/")]
        moved = ", ".join(
            f"{name.removeprefix('greedy_')} {difference_text(rows[name])} "
            f"({interval_text(rows[name])})"
            for name in [*watched, "greedy_rougeL", "greedy_words"]
        )
        sentences.append(f"That is what it was trained on. What it was not trained on: {moved}.")
    if word == CANNOT:
        sentences.append(_what_would_show(row))
    sentences.append(
        "This is one training run on one task with one prompt; it says nothing about others."
    )
    return " ".join(sentences)


def _word(row: dict[str, Any]) -> str:
    """The row's verdict; the bound that "no difference larger than …" names is left out."""
    margin = MARGIN if row.get("share", True) else None
    word = stats.verdict_word(row["interval_95"], row["p_value"], margin)
    return NONE if word.startswith(NONE) else word


def _about_format(strict: dict[str, Any], lenient: dict[str, Any]) -> list[str]:
    """Whether what is said strictly holds for the answers, wherever they stand."""
    if all(strict[key] == lenient[key] for key in ("before", "after", "stderr")):
        return []
    word, leniently = _word(strict), _word(lenient)
    sentences = [f"{LENIENTLY[leniently]}: {_change(lenient)}."]
    if word in (BETTER, WORSE) and leniently != word:
        may = "may be" if leniently == CANNOT else "is"
        sentences.append(f"The {'gain' if word == BETTER else 'loss'} {may} in the format only.")
    elif leniently == BETTER != word:
        sentences.append("The answers gained are not in the form that the prompt asks for.")
    return sentences


def _what_would_show(row: dict[str, Any]) -> str:
    if row["stderr"] is None:
        return "A single problem, or a single family of problems, gives no interval: ask more."
    if not row.get("share", True):
        seen = 2.8 * row["stderr"]  # Miller eq. 10 at 95% and a power of 80%
        return f"A true difference below about {seen:.2f} would often be missed."
    if not row["stderr"]:
        return stats.power_sentence(row["problems"])
    # ψ − δ² is the variance of a problem's difference; families of problems widen it.
    changed = row["problems"] * row["stderr"] ** 2 + row["difference"] ** 2
    return stats.power_sentence(row["problems"], changed)


def figure(value: float, row: dict[str, Any]) -> str:
    """A value of a row: "33.2%" where it is of shares, else a number."""
    return f"{value:.1%}" if row.get("share", True) else f"{value:.2f}"


def difference_text(row: dict[str, Any]) -> str:
    """A row's difference: of shares in points."""
    return points(row["difference"]) if row.get("share", True) else f"{row['difference']:+.2f}"


def interval_text(row: dict[str, Any]) -> str:
    """The difference's interval in words."""
    if row["interval_95"] is None:
        return "n/a"
    (low, high), share = row["interval_95"], row.get("share", True)
    if share and row["stderr"] == 0 == row["difference"]:
        return f"none changed: at most {points(high, '')} either way"
    return f"{100 * low:+.1f} to {points(high)}" if share else f"{low:+.2f} to {high:+.2f}"


def _change(row: dict[str, Any]) -> str:
    """ "15.0% → 22.5%, difference +7.5 points (95% interval +1.2 to +13.8 points)"."""
    interval = interval_text(row)
    name = "" if interval.startswith("none") else "95% interval "
    values = f"{figure(row['before'], row)} → {figure(row['after'], row)}"
    return f"{values}, difference {difference_text(row)} ({name}{interval})"


HEADER = ["metric", "before", "after", "difference", "95% interval", "problems"]


def comparison_rows(rows: Rows) -> list[list[str]]:
    """The comparison as a table of text, under `HEADER`."""
    return [
        [
            name.replace("_", " "),
            *(figure(row["before"], row), figure(row["after"], row)),
            *(difference_text(row), interval_text(row)),
            str(row["problems"]),
        ]
        for name, row in rows.items()
    ]


def trade_off_rows(comparison: Rows, side: Rows) -> list[list[str]]:
    """What training was for against what it was not for, under `HEADER` and "verdict".

    Adherence is what the rewards make of the answers to held-out prompts (where answers are right
    or wrong: how many are right), capability how many answers to the side task are right. Where the
    first rises and the second falls, the reward was over-optimised.
    """
    paid = [name for name in comparison if is_reward(name.removeprefix("greedy_"))]
    rows = {f"adherence: {name}": comparison[name] for name in paid or ["greedy_strict"]}
    rows |= {f"capability: {name}": row for name, row in side.items() if name.endswith(GRADES[:2])}
    texts = zip(comparison_rows(rows), rows.values(), strict=True)
    return [[*text, row["verdict"]] for text, row in texts]


# Taken apart

# How often the base model's samples are right, as a measure of difficulty.
PASS_RATES = ("never", "less than half", "half or more", "always")


def curves_of_k(records: Records) -> dict[str, list[stats.Estimate]]:
    """For k = 1 … n samples: pass@k and (of three samples or more) majority@k, all strict: a
    sample that has the answer outside its tags votes for it, and counts as wrong."""
    problems, clusters = list(samples_of(records).values()), clusters_of(records)
    ks = range(1, len(problems[0]) + 1)
    rights = [[record["strict"] for record in samples] for samples in problems]
    by_k = {"pass@k": [[stats.pass_at_k(len(r), sum(r), k) for r in rights] for k in ks]}
    if len(ks) >= MAJORITY:
        votes = [[_vote(record["extracted"]) for record in samples] for samples in problems]
        both = list(zip(votes, rights, strict=True))
        by_k["majority@k"] = [[stats.majority_at_k(v, r, k) for v, r in both] for k in ks]
    return {
        name: [stats.mean_with_error(values, clusters, (0, 1)) for values in rows]
        for name, rows in by_k.items()
    }


def _vote(answer: str | None) -> str | None:
    """Equal numbers are written the same."""
    return None if answer is None else normalize_number(answer) or answer.strip()


def by_difficulty(before: Records, after: Records) -> list[dict[str, Any]]:
    """Greedy strict accuracy by level, or by how often the base model's *samples* are right, so
    that a problem does not come into its group by the very answer that is then counted.

    Returns: a row a group: group, before, after (each as `rate`); none without levels or samples.
    """
    a, b, names = greedy_records(before), greedy_records(after), PASS_RATES
    if all(record["level"] is not None for record in a.values()):
        group_of = {id: f"level {record['level']}" for id, record in a.items()}
        names = sorted(set(group_of.values()))
    else:
        samples = samples_of(before).items()
        shares = {id: sum(r["lenient"] for r in each) / len(each) for id, each in samples}
        group_of = {id: PASS_RATES[(s > 0) + (s >= 0.5) + (s == 1)] for id, s in shares.items()}
    rows = []
    for name in names:
        if ids := [id for id in a if group_of.get(id) == name]:
            sides = [rate([answers[id]["strict"] for id in ids]) for answers in (a, b)]
            rows.append({"group": name, "before": sides[0], "after": sides[1]})
    return rows


CHANGES = {(0, 1): "fixed", (1, 0): "broken", (1, 1): "both", (0, 0): "neither"}


def side_by_side(before: Records, after: Records) -> list[dict[str, Any]]:
    """Each problem's greedy answers of both models, and what changed: fixed, broken first. A text
    counts as right where it shares more than half of the gold's words (ROUGE-1)."""
    a, b = greedy_records(before), greedy_records(after)
    score, kinds = "strict" if is_judged(before) else "rouge1", list(CHANGES.values())
    change = {id: CHANGES[a[id][score] > 0.5, b[id][score] > 0.5] for id in a}

    def graded(record: dict) -> str:
        outcome, strict = record["outcome"], record.get("strict", True)
        return outcome if strict or outcome != "right" else "right, but not in the form asked for"

    return [
        {
            "number": number,
            "change": change[id],
            "question": a[id]["question"],
            "gold": a[id]["expected"],
            "before": a[id]["completion"],
            "graded before": graded(a[id]),
            "after": b[id]["completion"],
            "graded after": graded(b[id]),
        }
        for number, id in enumerate(sorted(a, key=lambda id: kinds.index(change[id])), 1)
    ]


def outcomes(before: Records, after: Records) -> list[tuple[str, int, int]]:
    """How many greedy answers ended in which way, before and after."""
    was, is_now = (
        Counter(record["outcome"] for record in greedy_records(records).values())
        for records in (before, after)
    )
    return [(name, was[name], is_now[name]) for name in sorted({*was, *is_now})]
