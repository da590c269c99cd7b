"""Ask a model the held-out problems, keep every answer, and count.

    records = evaluate(engine, problems, rows, task, config, run, "base")

An evaluation has a greedy pass and, where `eval_samples` asks for it, samples for pass@k. Each
answer is graded as it comes and is a line of `evals/<name>.jsonl`. What the answers of two models
add up to stands in `lib.evaluation.compare`; how a log is graded again without the model in
`lib.evaluation.regrade`.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.config import Config, side_config
from lib.engines import Completion, Engine, Sampling, prompt_hash
from lib.errors import BadInput
from lib.evaluation.breakdowns import add_rewards
from lib.evaluation.compare import compare, is_judged, summarize
from lib.files import read_json, read_jsonl, write_json, write_jsonl
from lib.process import Progress
from lib.runs import Run, append_jsonl, installed_versions
from lib.tasks import Problem, Task, fitting_rows, get_format, judge, load_problems, make_rows

TAKEN = ("base", "validation", "comparison", "side_comparison", "side_by_side")  # in `evals/`


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


def candidate_name(candidate: Path, run: Run) -> str:
    """What the answers of a model other than the base are called in `evals/`.

    "trained" is the run's own adapter. A folder that has the name of another file there, as
    "base" or "comparison", becomes "candidate_base".
    """
    if candidate == run.adapter:
        return "trained"
    name = candidate.stem if candidate.is_file() else candidate.name
    taken = {*TAKEN, "trained"}
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in name).lstrip(".")
    free = safe and safe.casefold() not in taken and not safe.casefold().startswith("side_")
    return safe if free else f"candidate_{safe}"


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

    An interrupted evaluation with the same prompts, protocol and weights is resumed: missing
    answers are generated.

    Args:
        problems, rows: the held-out problems and their prompts; what the context cannot hold is
            left out, and the engine's notes say so.
        name: of the evaluation: `evals/<name>.jsonl` and `.json`.
        model: the files of the model measured.
    """
    if not rows:
        raise BadInput("No problem is held out: give task_config a test_share.", "no-problems")
    rows, note = fitting_rows(rows, engine.tokenizer, config, config.completion_tokens)
    engine.notes += [note] if note and note not in engine.notes else []
    protocol = _protocol(config, prompt_hash([row["prompt"] for row in rows]))
    records = _resume(run, name, {**protocol, "model": _fingerprint(model)})
    log, tag = run.evals / f"{name}.jsonl", get_format(config.prompt_format).answer_tag
    by_id, passes = {problem.id: problem for problem in problems}, samplings(config)
    total = sum(sampling.n for sampling in passes.values()) * len(rows)
    progress = Progress(total, f"evaluating {name}", run.progress)
    progress.update(len(records))
    started, judging = time.perf_counter(), 0.0
    for kind, sampling in passes.items():
        done = {record["id"] for record in records if record["pass"] == kind}
        left = [row for row in rows if row["id"] not in done]
        for index, answers in engine.stream([row["prompt"] for row in left], sampling):
            began = time.perf_counter()
            problem = by_id[left[index]["id"]]
            graded = [_record(task, problem, kind, i, a, tag) for i, a in enumerate(answers)]
            append_jsonl(log, graded)
            records += graded
            progress.update(len(records))
            judging += time.perf_counter() - began
    if not is_judged(records):  # what it earns is then all that can be said
        records = add_rewards(records, rows, config)
    place = {row["id"]: i for i, row in enumerate(rows)}
    records.sort(key=lambda r: (r["pass"] != "greedy", place[r["id"]], r["sample"]))
    write_jsonl(log, records)
    progress.close()
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
        "kind": problem.kind,
        "tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "cluster": problem.meta.get("cluster"),
        "level": problem.meta.get("level"),
        **judge(task, problem, completion.text, truncated, tag),
    }


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
    files = sorted(model.glob("*.safetensors")) or [model] if model else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _resume(run: Run, name: str, begun: dict) -> list[dict]:
    """Records that an interrupted evaluation, begun in the same way, left; else none."""
    log, beginning = run.evals / f"{name}.jsonl", run.evals / f".{name}.begun.json"
    finished = (run.evals / f"{name}.json").is_file()
    same = beginning.is_file() and read_json(beginning) == json.loads(json.dumps(begun))
    if finished and not same and (aside := run.put_aside_evaluation(name)):
        print(f"An evaluation made in another way is kept in {run.shown(aside)}")
    records = read_jsonl(log) if same and not finished else []
    # A kill may have cut the log within one problem's samples.
    samples = Counter((record["pass"], record["id"]) for record in records)
    wanted = {kind: sampling["n"] for kind, sampling in begun["passes"].items()}
    records = [r for r in records if samples[r["pass"], r["id"]] == wanted[r["pass"]]]
    write_jsonl(log, records)
    (run.evals / f"{name}.json").unlink(missing_ok=True)
    write_json(beginning, begun)
    return records


# What training for one thing does to another: `side_task` is never trained on, and asked before and
# after. A policy that learns to please a reward may forget what it could do.


def ask_side_task(engine: Engine, config: Config, run: Run, name: str, model: Path) -> None:
    """Evaluate the model in the engine on the side task: `evals/side_<name>.jsonl`."""
    side = side_config(config)
    task, _, problems, examples = load_problems(side)
    rows = make_rows(problems, side.prompt_format, side.shots, examples)
    evaluate(engine, problems, rows, task, side, run, f"side_{name}", model)


def compare_side_task(run: Run, config: Config, before: str, after: str) -> dict[str, Any]:
    """Paired differences on the side task; `evals/side_comparison.json`."""
    names = (f"side_{before}", f"side_{after}")
    return compare(run, side_config(config), *names, to="side_comparison")


def tracked(summary: dict[str, Any]) -> dict[str, float]:
    """An evaluation's figures under the names that dashboards show.

    "eval/pass@1" is the greedy answer's, "eval/pass@5" … the samples', both graded strictly;
    "eval/pass@1_lenient" leniently. All else goes by its own name, as "eval/format".
    """
    values = {"eval/truncated": summary["truncated"]["greedy"]["mean"]}
    for name, score in summary["scores"].items():
        name = re.sub("^greedy_(?=strict$|lenient$)", "pass@1_", name).removesuffix("_strict")
        values[f"eval/{name.removeprefix('greedy_')}"] = score["mean"]
    return values
