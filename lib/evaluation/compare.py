"""What the answers of two evaluations add up to: scores, paired differences, a verdict.

    comparison = compare(run, config, "base", "trained")
    verdict(comparison)     # "The trained model is better (greedy strict): …"

The records are those that `lib.evaluation` logs, a line an answer. How a difference is put into
words stands in one place, `lib.stats.verdict_word`.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib import stats
from lib.config import Config
from lib.errors import BadInput
from lib.runs import Run, read_json, read_jsonl, write_json
from lib.stats import MARGIN, points
from lib.tasks import HARNESS_SCORES
from lib.tasks.prompts import asks_for_hashes

Rows = dict[str, dict[str, Any]]  # score → before, after, difference, interval_95, …

GRADES = ("strict", "lenient", "format")
TEXT_SCORES = ("rouge1", "rougeL", "words", "characters")
COUNTS = ("words", "characters")  # no shares of anything


def is_judged(records: Sequence[dict]) -> bool:
    """Whether the answers are right or wrong; a summary is neither."""
    return "strict" in records[0]


def score_names(records: Sequence[dict], prompt_format: str = "plain") -> tuple[str, ...]:
    """What is scored: grades (and, for numbers, the harness' two), or a text's measures.

    A text's are "reward", what it earns, "rewards/…" for each reward that is only watched, and
    its likeness to the gold. What can only be zero is left out: strict_match where the prompt
    does not ask for "####".
    """
    if not is_judged(records):
        return tuple(name for name in records[0] if is_reward(name)) + TEXT_SCORES
    harness = HARNESS_SCORES if asks_for_hashes(prompt_format) else HARNESS_SCORES[1:]
    return GRADES + tuple(name for name in harness if name in records[0])


def is_reward(score: str) -> bool:
    return score == "reward" or score.startswith("rewards/")


def greedy_records(records: Sequence[dict]) -> dict[str, dict]:
    """The record of each problem's greedy answer, by the problem's id."""
    return {record["id"]: record for record in records if record["pass"] == "greedy"}


def clusters_of(records: Sequence[dict]) -> list[str] | None:
    """One label a problem, in the order of the greedy pass; None where there are no families."""
    labels = [record["cluster"] for record in greedy_records(records).values()]
    return None if None in labels else labels


def columns(
    records: Sequence[dict], eval_k: Sequence[int], prompt_format: str
) -> Iterator[tuple[str, str, list[float]]]:
    """Each column of an evaluation's table: its name, what is scored, and a value a problem.

    "greedy_strict" is the greedy answer's score, "pass@5_strict" comes from the samples.
    """
    ids, samples = greedy_records(records), samples_of(records)
    for score in score_names(records, prompt_format):
        yield f"greedy_{score}", score, [float(record[score]) for record in ids.values()]
        if samples and score in GRADES[:2]:
            rights = [[record[score] for record in answers] for answers in samples.values()]
            for k in eval_k:
                values = [stats.pass_at_k(len(each), sum(each), k) for each in rights]
                yield f"pass@{k}_{score}", score, values


def samples_of(records: Sequence[dict]) -> dict[str, list[dict]]:
    """The sampled answers of each problem, by its id, in the problems' order."""
    samples: dict[str, list[dict]] = {}
    for record in records:
        if record["pass"] == "sampled":
            samples.setdefault(record["id"], []).append(record)
    return samples


def summarize(records: Sequence[dict], config: Config) -> dict[str, Any]:
    """Mean, error and interval of each score, outcomes counted apart, and pass@k.

    A rate that stands alone (right or wrong, once a problem) has its Wilson interval; families
    of problems and other scores have Student's t.
    """
    clusters = clusters_of(records)
    summary: dict[str, Any] = {"scores": {}, "outcomes": {}, "truncated": {}}
    for name, score, values in columns(records, config.eval_k, config.prompt_format):
        within = (0.0, 1.0) if _is_share(score) else None
        estimate, interval = stats.mean_with_error(values, clusters, within), None
        if clusters is None and name.startswith("greedy_") and set(values) <= {0.0, 1.0}:
            interval = stats.wilson_interval(int(sum(values)), len(values))
        summary["scores"][name] = {
            "mean": estimate.mean,
            "stderr": estimate.stderr,
            "interval_95": interval or estimate.interval,
            "problems": len(values),
        }
    for kind in dict.fromkeys(record["pass"] for record in records):
        answers = [record for record in records if record["pass"] == kind]
        summary["outcomes"][kind] = dict(Counter(record["outcome"] for record in answers))
        cut = [record["finish_reason"] == "length" for record in answers]
        summary["truncated"][kind] = {
            "mean": float(np.mean(cut)),
            "interval_95": stats.wilson_interval(sum(cut), len(cut)),
            "answers": len(cut),
        }
    summary["tokens"] = sum(record["tokens"] for record in records)
    return summary


def compare(run: Run, config: Config, before: str, after: str, to: str = "comparison") -> Rows:
    """Paired differences between two evaluations of the same problems; `evals/<to>.json`.

    Each row names the files of answers that it is made of, with their digests (SHA-256), by which
    `lib.evaluation.regrade` tells files that have been changed since.

    Raises:
        BadInput: the two were not asked the same prompts in the same way.
    """
    summaries = [read_json(run.evals / f"{name}.json") for name in (before, after)]
    if summaries[0]["protocol"] != summaries[1]["protocol"]:
        raise BadInput(
            f"{before} and {after} of {run.shown(run.evals)} were not evaluated in the same way "
            f"(prompts, sampling or seed differ): run 04_pass_at_k_eval again for both.",
            key="protocol",
        )
    logs = [run.evals / f"{name}.jsonl" for name in (before, after)]
    a, b = (read_jsonl(log) for log in logs)
    rows = compare_records(a, b, config.eval_k, config.prompt_format)
    files = {log.name: digest(log) for log in logs}
    write_json(run.evals / f"{to}.json", {k: row | {"answers": files} for k, row in rows.items()})
    run.made("evals")
    return read_json(run.evals / f"{to}.json")


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def compare_records(
    before: Sequence[dict], after: Sequence[dict], eval_k: Sequence[int], prompt_format: str
) -> Rows:
    """The rows of a comparison, from the answers alone."""
    place = {id: i for i, id in enumerate(greedy_records(before))}
    after = sorted(after, key=lambda record: place[record["id"]])
    clusters, rows = clusters_of(before), {}
    both = (columns(records, eval_k, prompt_format) for records in (before, after))
    for (name, score, a), (_, _, b) in zip(*both, strict=True):
        paired, share = stats.paired_difference(a, b, clusters), _is_share(score)
        word = stats.verdict_word(paired.interval, paired.p_value, MARGIN if share else None)
        rows[name] = {
            "before": float(np.mean(a)),
            "after": float(np.mean(b)),
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


def _is_share(score: str) -> bool:
    return not is_reward(score) and score not in COUNTS


def changes(before: Sequence[dict], after: Sequence[dict]) -> dict[str, list[str]]:
    """Problems by what happened to their greedy strict answer: fixed, broken, both, neither.

    A text counts as right where it shares more than half of the gold's words (ROUGE-1).
    """
    score = "strict" if is_judged(before) else "rouge1"
    a, b = greedy_records(before), greedy_records(after)
    groups: dict[str, list[str]] = {"fixed": [], "broken": [], "both": [], "neither": []}
    for id in a:
        was, is_now = a[id][score] > 0.5, b[id][score] > 0.5
        name = ("both" if is_now else "broken") if was else ("fixed" if is_now else "neither")
        groups[name].append(id)
    return groups


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
    count = f"{row['problems']:,} held-out problem{'s' if row['problems'] > 1 else ''}"
    sentences = [
        f"{claim}: {_change(row)} on {count}, {_difference(row)}.",
        *_about_format(rows, metric, word),
        *_about_watched(rows, metric),
        *_about_size(row, word),
        "This is one training run on one task with one prompt; it says nothing about others.",
    ]
    return " ".join(sentences)


def _word(row: dict[str, Any]) -> str:
    """The row's verdict; the bound that "no difference larger than …" names is left out."""
    margin = MARGIN if row.get("share", True) else None
    word = stats.verdict_word(row["interval_95"], row["p_value"], margin)
    return NONE if word.startswith(NONE) else word


def _about_format(rows: Rows, metric: str, word: str) -> list[str]:
    """Whether what is said strictly holds for the answers, wherever they stand."""
    strict, lenient = rows[metric], rows.get("greedy_lenient")
    keys = ("before", "after", "stderr")
    if metric != "greedy_strict" or lenient is None or all(strict[k] == lenient[k] for k in keys):
        return []
    leniently = _word(lenient)
    sentences = [f"{LENIENTLY[leniently]}: {_change(lenient)}, {_difference(lenient)}."]
    if word in (BETTER, WORSE) and leniently != word:
        may = "may be" if leniently == CANNOT else "is"
        sentences.append(f"The {'gain' if word == BETTER else 'loss'} {may} in the format only.")
    elif leniently == BETTER != word:
        sentences.append("The answers gained are not in the form that the prompt asks for.")
    return sentences


def _about_watched(rows: Rows, metric: str) -> list[str]:
    """What moved that was not trained on: a reward can rise while nothing gets better."""
    if metric != "greedy_reward":
        return []
    watched = [name for name in rows if name.startswith("greedy_rewards/")]
    moved = [
        f"{name.removeprefix('greedy_')} {difference_text(rows[name])} "
        f"({interval_text(rows[name])})"
        for name in [*watched, "greedy_rougeL", "greedy_words"]
    ]
    return [f"That is what it was trained on; what it was not: {', '.join(moved)}."]


def _about_size(row: dict[str, Any], word: str) -> list[str]:
    """What a comparison of this size would have shown, where it cannot tell."""
    if word != CANNOT:
        return []
    if row["stderr"] is None:
        return ["A single problem, or a single family of problems, gives no interval: ask more."]
    if not row.get("share", True):
        seen = 2.8 * row["stderr"]  # Miller eq. 10 at 95 % and a power of 80 %
        return [f"A true difference below about {seen:.2f} would often be missed."]
    if not row["stderr"]:
        return [stats.power_sentence(row["problems"])]
    # ψ − δ² is the variance of a problem's difference; families of problems widen it.
    changed = row["problems"] * row["stderr"] ** 2 + row["difference"] ** 2
    return [stats.power_sentence(row["problems"], changed)]


def figure(value: float, row: dict[str, Any]) -> str:
    """A value of a row: "33.2%" where it is of shares, else a number."""
    return f"{value:.1%}" if row.get("share", True) else f"{value:.2f}"


def _change(row: dict[str, Any]) -> str:
    return f"{figure(row['before'], row)} → {figure(row['after'], row)}"


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


def _difference(row: dict[str, Any]) -> str:
    """The difference with its interval, for a sentence."""
    interval = interval_text(row)
    name = "" if interval.startswith("none") else "95 % interval "
    return f"difference {difference_text(row)} ({name}{interval})"


HEADER = ["metric", "before", "after", "difference", "95 % interval", "problems"]


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
    return [
        [*texts, row["verdict"]]
        for texts, row in zip(comparison_rows(rows), rows.values(), strict=True)
    ]
