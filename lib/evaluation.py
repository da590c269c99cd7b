"""Ask a model the held-out problems, keep every answer, and count.

    records = evaluate(engine, problems, rows, task, config, run, "base")
    comparison = compare(run, config, "base", "trained")

An evaluation has a greedy pass and, where `eval_samples` asks for it, samples
for pass@k. Each answer is a line of `evals/<name>.jsonl`; `regrade` reads such
a log and judges it again, without the model. What the answers add up to stands
in `lib.comparison`, whose public names can be imported from here.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lib.comparison import (
    changes,
    clusters_of,
    compare,
    greedy_answers,
    is_judged,
    outcomes,
    score_names,
    scores_of,
    summarize,
    verdict,
)
from lib.config import Config
from lib.engines import Completion, Engine, Sampling, prompt_hash
from lib.harness import harness_scores
from lib.progress import Progress
from lib.prompts import get_format
from lib.runs import Run, append_jsonl, installed_versions, read_json, read_jsonl, write_json
from lib.tasks import Problem, Task, summary_scores

__all__ = [
    "changes",
    "clusters_of",
    "compare",
    "evaluate",
    "greedy_answers",
    "is_judged",
    "judge",
    "outcomes",
    "regrade",
    "samplings",
    "score_names",
    "scores_of",
    "summarize",
    "track",
    "tracked",
    "verdict",
]


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
    model: Path | None = None,
) -> list[dict[str, Any]]:
    """Every answer of the model in the engine, as records; writes the log and its summary.

    Args:
        problems, rows: the held-out problems and their prompts, in the same order.
        name: of the evaluation: `evals/<name>.jsonl` and `.json`.
        model: the files of the model measured.

    A log that an interrupted evaluation of the same prompts, protocol and files left is gone on
    with: what it lacks is asked, the samples then drawn anew.
    """
    protocol = _protocol(config, prompt_hash([row["prompt"] for row in rows]))
    records = _resume(run, name, {**protocol, "model": _fingerprint(model)})
    by_id = {problem.id: problem for problem in problems}
    passes, tag = samplings(config), get_format(config.prompt_format).answer_tag
    total = sum(sampling.n for sampling in passes.values()) * len(rows)
    progress = Progress(total, f"evaluating {name}", run.progress)
    progress.update(len(records))
    started, judging = time.perf_counter(), 0.0
    for kind, sampling in passes.items():
        done = {record["id"] for record in records if record["pass"] == kind}
        asked = [row for row in rows if row["id"] not in done]

        def keep(index: int, answers: list[Completion], kind=kind, asked=asked) -> None:
            nonlocal judging
            begun, problem = time.perf_counter(), by_id[asked[index]["id"]]
            fresh = [_record(task, problem, kind, i, a, tag) for i, a in enumerate(answers)]
            append_jsonl(run.evals / f"{name}.jsonl", fresh)
            records.extend(fresh)
            progress.update(len(records))
            judging += time.perf_counter() - begun

        _ask(engine, [row["prompt"] for row in asked], sampling, keep)
    progress.close()
    order = {row["id"]: place for place, row in enumerate(rows)}
    records.sort(key=lambda r: (list(passes).index(r["pass"]), order[r["id"]], r["sample"]))
    _rewrite(run.evals / f"{name}.jsonl", records)
    summary = summarize(records, config) | {
        "name": name,
        "model": run.shown(model) if model else None,
        "engine": engine.name,
        "seconds": round(time.perf_counter() - started, 1),
        "seconds_judging": round(judging, 3),
        "protocol": protocol,
        "versions": installed_versions(),
    }
    write_json(run.evals / f"{name}.json", summary)
    return records


def _ask(
    engine: Engine,
    prompts: Sequence[list],
    sampling: Sampling,
    keep: Callable[[int, list[Completion]], None],
) -> None:
    """All prompts at once, so that the engine stays full; each answer is kept as it comes."""
    if not prompts:
        return
    engine.finished = keep
    try:
        engine.generate(prompts, sampling)
    finally:
        engine.finished = None


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


def _fingerprint(model: Path | None) -> list:
    """Name, size and time of each weight file: whether a model is still the one begun with."""
    if model is None:
        return []
    files = [model] if model.is_file() else sorted(model.glob("*.safetensors"))
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _resume(run: Run, name: str, begun: dict) -> list[dict]:
    """Records that an interrupted evaluation, begun in the same way, left; else none."""
    log, beginning = run.evals / f"{name}.jsonl", run.evals / f".{name}.begun.json"
    finished = (run.evals / f"{name}.json").is_file()
    same = beginning.is_file() and read_json(beginning) == json.loads(json.dumps(begun))
    records = read_jsonl(log) if same and not finished else []
    # A kill may have cut the log within one problem's samples.
    samples = Counter((record["pass"], record["id"]) for record in records)
    wanted = {kind: sampling["n"] for kind, sampling in begun["passes"].items()}
    records = [r for r in records if samples[r["pass"], r["id"]] == wanted[r["pass"]]]
    _rewrite(log, records)
    (run.evals / f"{name}.json").unlink(missing_ok=True)
    write_json(beginning, begun)
    return records


def _rewrite(log: Path, records: Sequence[dict]) -> None:
    """The log with these records; beside and renamed."""
    beside = log.with_name(f".{log.name}")
    beside.unlink(missing_ok=True)
    append_jsonl(beside, records)
    beside.replace(log)


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
    cut off is not a wrong one. A summary has no verdict but its `summary_scores`; a number has
    also those of lm-evaluation-harness (`lib.harness`).
    """
    strict = task.grade(problem, text, tags=tag)
    if strict.correct is None:
        outcome = "truncated" if truncated else "finished"
        return summary_scores(text, problem.answer) | {"outcome": outcome}
    lenient = task.grade(problem, text) if tag else strict
    outcome = "wrong" if lenient.extracted is not None else "unparseable"
    if truncated:
        outcome = "truncated"
    found = {
        "extracted": lenient.extracted,
        "strict": strict.correct,
        "lenient": lenient.correct,
        "format": strict.extracted is not None,
        "outcome": "right" if lenient.correct else outcome,
        "why": strict.why,
    }
    return found | harness_scores(text, problem.answer) if problem.kind == "number" else found


def regrade(
    records: Sequence[dict], problems: Sequence[Problem], task: Task, tag: str | None
) -> list[dict]:
    """The same answers judged by other rules, or by those of today, without the model.

    Args:
        records: of an evaluation: `read_jsonl(run.evals / "base.jsonl")`.
        problems: those that were asked (and may be more), with the gold answers to grade by.
        task: whose `grade` decides; another task than the evaluation's brings other rules.
        tag: what strict looks into; None lets it search free text, as lenient does.
    """
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


def tracked(summary: dict[str, Any]) -> dict[str, float]:
    """An evaluation's figures under the names that dashboards show: `eval/pass@1` …

    pass@1 is the greedy answer's and pass@5 … the samples', both graded strictly; "pass@1_lenient"
    leniently. What else is scored in the greedy answer goes by its own name, as "eval/format".
    """
    right = ("greedy_strict", "greedy_lenient")
    values = {"eval/truncated": summary["truncated"]["greedy"]["mean"]}
    for name, score in summary["scores"].items():
        name = name.replace("greedy_", "pass@1_" if name in right else "").removesuffix("_strict")
        values[f"eval/{name}"] = score["mean"]
    return values


def track(run: Run, config: Config, name: str, step: int) -> None:
    """Send a finished evaluation's figures to what `report_to` names, at a step of training."""
    if config.report_to:
        from lib.tracking import log_metrics

        log_metrics(run, config, tracked(read_json(run.evals / f"{name}.json")), step)
