"""Ask a model the held-out problems, keep every answer, and count.

    records = evaluate(engine, problems, rows, task, config, run, "base")

An evaluation has a greedy pass and, where `eval_samples` asks for it, samples
for pass@k. Each answer is a line of `evals/<name>.jsonl`. How it is judged (and
judged again, without the model) stands in `lib.evaluation.judging`, what the answers of two
models add up to in `lib.evaluation.comparison`.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lib.config import Config
from lib.engines import Engine, ask
from lib.evaluation.breakdowns import add_rewards
from lib.evaluation.comparison import is_judged, summarize
from lib.evaluation.judging import judge
from lib.progress import Progress
from lib.runs import (
    Run,
    append_jsonl,
    installed_versions,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
)
from lib.sampling import Completion, Sampling, prompt_hash
from lib.tasks import Problem, Task
from lib.tasks.prompts import get_format


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
    tag, passes = get_format(config.prompt_format).answer_tag, samplings(config)
    total = sum(sampling.n for sampling in passes.values()) * len(rows)
    log = AnswerLog(run, name, records, task, tag, total)
    by_id = {problem.id: problem for problem in problems}
    started = time.perf_counter()
    for kind, sampling in passes.items():
        done = {record["id"] for record in records if record["pass"] == kind}
        left = [row for row in rows if row["id"] not in done]
        asked = [by_id[row["id"]] for row in left]
        ask(engine, [row["prompt"] for row in left], sampling, partial(log.keep, kind, asked))
    if not is_judged(log.records):  # what it earns is then all that can be told
        log.records = add_rewards(log.records, rows, config)
    log.close(order=[(kind, row["id"]) for kind in passes for row in rows])
    summary = summarize(log.records, config) | {
        "name": name,
        "model": run.shown(model) if model else None,
        "engine": engine.name,
        "seconds": round(time.perf_counter() - started, 1),
        "seconds_judging": round(log.seconds, 3),
        "protocol": protocol,
        "versions": installed_versions(),
    }
    write_json(run.evals / f"{name}.json", summary)
    return log.records


class AnswerLog:
    """`evals/<name>.jsonl` while it grows: each answer is graded and written as it comes.

    Attributes:
        records: its lines; those given at the beginning are there already.
        seconds: spent on grading and writing.
    """

    def __init__(
        self, run: Run, name: str, records: list[dict], task: Task, tag: str | None, total: int
    ):
        self.file, self.records, self.task, self.tag = (
            run.evals / f"{name}.jsonl",
            records,
            task,
            tag,
        )
        self.progress, self.seconds = Progress(total, f"evaluating {name}", run.progress), 0.0
        self.progress.update(len(records))

    def keep(
        self, kind: str, asked: Sequence[Problem], index: int, answers: Sequence[Completion]
    ) -> None:
        """The answers to one of the problems asked."""
        started = time.perf_counter()
        fresh = [
            _record(self.task, asked[index], kind, i, answer, self.tag)
            for i, answer in enumerate(answers)
        ]
        append_jsonl(self.file, fresh)
        self.records += fresh
        self.progress.update(len(self.records))
        self.seconds += time.perf_counter() - started

    def close(self, order: Sequence[tuple[str, str]]) -> None:
        """Bring the log into the order of (pass, problem's id), whatever came first."""
        place = {key: i for i, key in enumerate(order)}
        self.records.sort(key=lambda r: (place[r["pass"], r["id"]], r["sample"]))
        write_jsonl(self.file, self.records)
        self.progress.close()


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
    write_jsonl(log, records)
    (run.evals / f"{name}.json").unlink(missing_ok=True)
    write_json(beginning, begun)
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
        from lib.training.tracking import log_metrics

        log_metrics(run, config, tracked(read_json(run.evals / f"{name}.json")), step)
