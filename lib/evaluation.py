"""Ask a model the held-out problems, keep every answer, and count.

    records = evaluate(engine, problems, rows, task, config, run, "base")
    comparison = compare(run, "base", "trained")

An evaluation has a greedy pass and, where `eval_samples` asks for it, samples
for pass@k. Each answer is a line of `evals/<name>.jsonl`; `regrade` reads such
a log and judges it again, without the model.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lib import stats
from lib.config import Config
from lib.engines import Completion, Engine, Sampling, prompt_hash
from lib.errors import BadInput
from lib.progress import Progress
from lib.prompts import get_format
from lib.runs import Run, append_jsonl, installed_versions, read_json, read_jsonl, write_json
from lib.tasks import Problem, Task, summary_scores

CHUNK = 256  # sequences between two lines of progress, and at most lost by a kill
VERDICTS = ("strict", "lenient", "format")
TEXT_SCORES = ("rouge1", "rougeL", "words", "characters")


def samplings(config: Config) -> dict[str, Sampling]:
    """The passes of an evaluation: "greedy", and "sampled" where pass@k is asked for."""
    tokens = config.completion_tokens
    passes = {"greedy": Sampling(max_tokens=tokens, seed=config.seed)}
    if config.eval_samples:
        passes["sampled"] = Sampling(
            n=config.eval_samples,
            temperature=config.eval_temperature,
            top_p=config.eval_top_p,
            max_tokens=tokens,
            seed=config.seed,
        )
    return passes


def evaluate(
    engine: Engine,
    problems: Sequence[Problem],
    rows: Sequence[dict],
    task: Task,
    config: Config,
    run: Run,
    name: str,
) -> list[dict[str, Any]]:
    """Every answer of the model in the engine, as records; writes the log and its summary.

    Args:
        problems, rows: the held-out problems and their prompts, in the same order.
        name: of the evaluation: `evals/<name>.jsonl` and `.json`.

    A log that an earlier, interrupted evaluation of the same prompts and protocol
    left is gone on with.
    """
    log, digest = run.evals / f"{name}.jsonl", prompt_hash([row["prompt"] for row in rows])
    protocol = _protocol(config, digest)
    records = _resume(run, name, protocol)
    done = {(record["pass"], record["id"]) for record in records}
    by_id = {problem.id: problem for problem in problems}
    passes, tag = samplings(config), get_format(config.prompt_format).answer_tag
    total = sum(sampling.n for sampling in passes.values()) * len(rows)
    progress = Progress(total, f"evaluating {name}", run.progress)
    progress.update(len(records))
    started = time.perf_counter()
    for kind, sampling in passes.items():
        per_chunk = max(1, CHUNK // sampling.n)
        for start in range(0, len(rows), per_chunk):
            asked = rows[start : start + per_chunk]
            chunk = [row for row in asked if (kind, row["id"]) not in done]
            if not chunk:
                continue
            # Each chunk draws from a stream of its own.
            drawn = replace(sampling, seed=sampling.seed + start)
            answers = engine.generate([row["prompt"] for row in chunk], drawn)
            fresh = [
                _record(task, by_id[row["id"]], kind, i, completion, tag)
                for row, completions in zip(chunk, answers, strict=True)
                for i, completion in enumerate(completions)
            ]
            append_jsonl(log, fresh)
            records += fresh
            progress.update(len(records))
    progress.close()
    summary = summarize(records, config) | {
        "name": name,
        "engine": engine.name,
        "seconds": round(time.perf_counter() - started, 1),
        "protocol": protocol,
        "versions": installed_versions(),
    }
    write_json(run.evals / f"{name}.json", summary)
    return records


def _protocol(config: Config, digest: str) -> dict[str, Any]:
    """All that decides an answer besides the weights."""
    return {
        "task": config.task,
        "task_config": config.task_config,
        "prompt_format": config.prompt_format,
        "shots": config.shots,
        "prompt_hash": digest,
        "seed": config.seed,
        "passes": {kind: vars(sampling) for kind, sampling in samplings(config).items()},
    }


def _resume(run: Run, name: str, protocol: dict) -> list[dict]:
    """Records of an interrupted evaluation with this protocol; another one's are put aside."""
    log, begun = run.evals / f"{name}.jsonl", run.evals / f".{name}.protocol.json"
    finished = (run.evals / f"{name}.json").is_file()
    same = begun.is_file() and read_json(begun) == json.loads(json.dumps(protocol))
    if finished or not same:
        log.unlink(missing_ok=True)
    (run.evals / f"{name}.json").unlink(missing_ok=True)
    write_json(begun, protocol)
    records = read_jsonl(log)
    log.unlink(missing_ok=True)  # its last line may be cut short
    append_jsonl(log, records)
    return records


def _record(
    task: Task, problem: Problem, kind: str, sample: int, completion: Completion, tag: str | None
) -> dict[str, Any]:
    truncated = completion.finish_reason == "length"
    return {
        "pass": kind,
        "id": problem.id,
        "sample": sample,
        "question": problem.question,
        "completion": completion.text,
        "expected": problem.answer,
        "tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "cluster": problem.meta.get("cluster"),
        "level": problem.meta.get("level"),
        **judge(task, problem, completion.text, truncated, tag),
    }


def judge(
    task: Task, problem: Problem, text: str, truncated: bool, tag: str | None
) -> dict[str, Any]:
    """The verdict on one completion: strict (only inside the tag) and lenient, and why.

    outcome is right, truncated, unparseable or wrong, by the lenient rule: an answer that was
    cut off is not a wrong one. A summary has no verdict but its `summary_scores`.
    """
    strict = task.grade(problem, text, tags=tag)
    if strict.correct is None:
        outcome = "truncated" if truncated else "finished"
        return summary_scores(text, problem.answer) | {"outcome": outcome}
    lenient = task.grade(problem, text) if tag else strict
    outcome = "wrong" if lenient.extracted is not None else "unparseable"
    if truncated:
        outcome = "truncated"
    return {
        "extracted": lenient.extracted,
        "strict": strict.correct,
        "lenient": lenient.correct,
        "format": strict.extracted is not None,
        "outcome": "right" if lenient.correct else outcome,
        "why": strict.why,
    }


def regrade(
    records: Sequence[dict], problems: Sequence[Problem], task: Task, tag: str | None
) -> list[dict]:
    """The same answers judged by the rules of today, without the model."""
    by_id = {problem.id: problem for problem in problems}
    return [
        record
        | judge(
            task,
            by_id[record["id"]],
            record["completion"],
            record["finish_reason"] == "length",
            tag,
        )
        for record in records
    ]


def scores_of(records: Sequence[dict], kind: str, score: str) -> dict[str, list[float]]:
    """Per problem the given score of each of its samples, in one pass ("greedy", "sampled")."""
    found: dict[str, list[float]] = {}
    for record in records:
        if record["pass"] == kind:
            found.setdefault(record["id"], []).append(float(record[score]))
    return found


def clusters_of(records: Sequence[dict]) -> list[str] | None:
    """One label a problem, in the order of the greedy pass; None where there are no families."""
    labels = {r["id"]: r["cluster"] for r in records if r["pass"] == "greedy"}
    return None if None in labels.values() else list(labels.values())


def score_names(records: Sequence[dict]) -> tuple[str, ...]:
    return VERDICTS if "strict" in records[0] else TEXT_SCORES


def summarize(records: Sequence[dict], config: Config) -> dict[str, Any]:
    """Mean, error and interval of each score, outcomes counted apart, and pass@k."""
    clusters = clusters_of(records)
    summary: dict[str, Any] = {"scores": {}, "outcomes": {}}
    for score in score_names(records):
        greedy = scores_of(records, "greedy", score)
        estimate = stats.mean_with_error([values[0] for values in greedy.values()], clusters)
        summary["scores"][f"greedy_{score}"] = _shown(estimate, len(greedy))
        sampled = scores_of(records, "sampled", score)
        if sampled and score in VERDICTS[:2]:
            for k in config.eval_k:
                rates = [stats.pass_at_k(len(v), int(sum(v)), k) for v in sampled.values()]
                estimate = stats.mean_with_error(rates, clusters)
                summary["scores"][f"pass@{k}_{score}"] = _shown(estimate, len(rates))
    for kind in samplings(config):
        counted = Counter(record["outcome"] for record in records if record["pass"] == kind)
        summary["outcomes"][kind] = dict(counted)
    summary["tokens"] = sum(record["tokens"] for record in records)
    return summary


def _shown(estimate: stats.Estimate, problems: int) -> dict[str, Any]:
    return {
        "mean": estimate.mean,
        "stderr": estimate.stderr,
        "interval_95": list(estimate.interval),
        "problems": problems,
    }


def compare(run: Run, config: Config, before: str, after: str) -> dict[str, dict[str, Any]]:
    """Paired differences between two evaluations of the same problems; `comparison.json`.

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
        table[f"greedy_{score}"] = _row(*firsts, stats.paired_difference(*firsts, clusters))
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
    write_json(run.evals / "comparison.json", table)
    return table


def _row(a: Sequence[float], b: Sequence[float], found: stats.Difference) -> dict[str, Any]:
    row = {
        "before": float(np.mean(a)),
        "after": float(np.mean(b)),
        "difference": found.difference,
        "interval_95": list(found.interval),
        "problems": len(a),
        "p_value": found.p_value,
        "test": found.test,
    }
    return row if found.fixed is None else row | {"fixed": found.fixed, "broken": found.broken}


def changes(before: Sequence[dict], after: Sequence[dict]) -> dict[str, list[str]]:
    """Problems by what happened to their greedy strict answer: fixed, broken, both, neither."""
    score = score_names(before)[0]
    a, b = (scores_of(records, "greedy", score) for records in (before, after))
    groups: dict[str, list[str]] = {"fixed": [], "broken": [], "both": [], "neither": []}
    for id in a:
        was, is_now = a[id][0] > 0.5, b[id][0] > 0.5
        name = ("both" if is_now else "broken") if was else ("fixed" if is_now else "neither")
        groups[name].append(id)
    return groups


def outcomes(before: Sequence[dict], after: Sequence[dict]) -> list[tuple[str, int, int]]:
    """How many greedy answers ended in which way, before and after."""
    counted = [
        Counter(record["outcome"] for record in records if record["pass"] == "greedy")
        for records in (before, after)
    ]
    return [
        (name, counted[0][name], counted[1][name]) for name in sorted({*counted[0], *counted[1]})
    ]


def verdict(table: dict[str, dict[str, Any]], metric: str = "greedy_strict") -> str:
    """One sentence: what the comparison allows one to claim."""
    metric = metric if metric in table else next(iter(table))
    row = table[metric]
    low, high = row["interval_95"]
    change = f"{row['before']:.1%} → {row['after']:.1%} on {row['problems']} held-out problems"
    bounds = f"difference {row['difference']:+.1%}, 95 % interval {low:+.1%} to {high:+.1%}"
    if low > 0:
        claim = "The trained model is better"
    elif high < 0:
        claim = "The trained model is worse"
    else:
        claim = "No difference can be claimed"
    return f"{claim} ({metric.replace('_', ' ')}): {change}; {bounds}."
