"""Ask a model the held-out problems, keep every answer, count; and grade again without the model.

    records = evaluate(engine, problems, rows, task, config, run, "base")
    python -m lib.suite regrade RUN     # a run's name, its folder, or a folder's http(s) address

An evaluation has a greedy pass and, where `eval_samples` asks for it, samples for pass@k. Each
answer is graded as it comes and is a line of `evals/<name>.jsonl`. What the answers of two models
add up to stands in `lib.evaluation.comparison`.
"""

import json
import re
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from lib.config import Config, resolve, side_config
from lib.engines import Completion, Engine, Sampling, prompt_hash
from lib.errors import BadInput
from lib.evaluation.comparison import (
    compare,
    compare_records,
    comparison_rows,
    digest,
    is_judged,
    summarize,
    verdict,
)
from lib.files import append_jsonl, read_json, read_jsonl, write_json, write_jsonl
from lib.process import Progress, installed_versions
from lib.rewards import recipe_rewards, score, totals
from lib.runs import Run, run_places
from lib.tasks import (
    Problem,
    ReasoningGym,
    Task,
    fitting_rows,
    get_format,
    get_task,
    judge,
    load_problems,
    make_rows,
)

# Names in `evals/`.
TAKEN = re.compile("base|trained|validation|comparison|(?:side_|certificate).*", re.IGNORECASE)


def samplings(config: Config) -> dict[str, Sampling]:
    """The passes of an evaluation: "greedy", and "sampled" where pass@k is asked for."""
    greedy = Sampling(max_tokens=config.completion_tokens, seed=config.seed)
    warm = dict(temperature=config.eval_temperature, top_p=config.eval_top_p)
    sampled = replace(greedy, n=config.eval_samples, **warm)
    return {"greedy": greedy} | ({"sampled": sampled} if config.eval_samples else {})


def candidate_name(candidate: Path, run: Run) -> str:
    """What the answers of a model other than the base are called in `evals/`: "trained" is the
    run's own adapter. A folder named as another file there, as "base", is "candidate_base"."""
    if candidate == run.adapter:
        return "trained"
    name = candidate.stem if candidate.is_file() else candidate.name
    safe = re.sub(r"[^\w.-]", "_", name).lstrip(".")
    return f"candidate_{safe}" if TAKEN.fullmatch(safe) or not safe else safe


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
    """Every answer of the model in the engine, as records; writes `evals/<name>.jsonl` and `.json`.
    An interrupted evaluation with the same prompts, protocol and weights goes on.

    Args:
        problems, rows: the held-out problems and their prompts; what the context cannot hold is
            left out, and the engine's notes say so.
        model: the files of the model measured.
    """
    rows, note = fitting_rows(rows, engine.tokenizer, config, config.completion_tokens)
    engine.notes += [note] if note and note not in engine.notes else []
    protocol = _protocol(config, rows)
    records = _resume(run, name, {**protocol, "model": _weight_files(model)})
    log, started = run.evals / f"{name}.jsonl", time.perf_counter()
    total = sum(sampling.n for sampling in samplings(config).values()) * len(rows)
    progress = Progress(total, f"evaluating {name}", run.progress, settled=total // 10)
    progress.update(len(records))
    for graded in _ask(engine, problems, rows, task, config, [*records]):
        append_jsonl(log, graded)
        records += graded
        progress.update(len(records))
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
        "protocol": protocol,
        "versions": installed_versions(),
    }
    write_json(run.evals / f"{name}.json", summary)
    return records


def _weight_files(model: Path | None) -> list[list]:
    """Name, size and time of each: whether a model is still the one begun with."""
    files = sorted(model.glob("*.safetensors")) or [model] if model else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _ask(
    engine: Engine,
    problems: Sequence[Problem],
    rows: Sequence[dict],
    task: Task,
    config: Config,
    known: Sequence[dict],
) -> Iterator[list[dict]]:
    """The graded answers to each problem, as they come, but for those that are known."""
    by_id = {problem.id: problem for problem in problems}
    tag = get_format(config.prompt_format).answer_tag
    for kind, sampling in samplings(config).items():
        done = {record["id"] for record in known if record["pass"] == kind}
        left = [row for row in rows if row["id"] not in done]
        for index, answers in engine.stream([row["prompt"] for row in left], sampling):
            problem = by_id[left[index]["id"]]
            yield [_record(task, problem, kind, i, a, tag) for i, a in enumerate(answers)]


def _protocol(config: Config, rows: Sequence[dict]) -> dict[str, Any]:
    """All that decides an answer besides the weights."""
    keys = ("task", "task_config", "prompt_format", "shots", "seed")
    return {key: getattr(config, key) for key in keys} | {
        "prompt_hash": prompt_hash([row["prompt"] for row in rows]),
        "passes": {kind: vars(sampling) for kind, sampling in samplings(config).items()},
    }


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


def add_rewards(records: Sequence[dict], rows: Sequence[dict], config: Config) -> list[dict]:
    """The records with "reward", what the recipe's weighted rewards pay for the answer, and by its
    own name ("rewards/gold_reward") each reward of weight 0, which is only watched."""
    by_id = {row["id"]: row for row in rows}
    rewards, weights = recipe_rewards(config)
    # Rewards of length count tokens; which ones they were, the log does not keep.
    answers = [Completion(r["completion"], (0,) * r["tokens"], r["finish_reason"]) for r in records]
    scores = score(rewards, [by_id[record["id"]] for record in records], answers)
    paid = totals(scores, weights)
    watched = [name for name, weight in zip(scores, weights, strict=True) if not weight]
    return [
        record | {"reward": float(paid[i])} | {f"rewards/{n}": float(scores[n][i]) for n in watched}
        for i, record in enumerate(records)
    ]


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
    for name, each in summary["scores"].items():
        name = re.sub("^greedy_(?=strict$|lenient$)", "pass@1_", name).removesuffix("_strict")
        values[f"eval/{name.removeprefix('greedy_')}"] = each["mean"]
    return values


# Graded again, by today's rules: no model, no torch


def regrade(
    records: Sequence[dict], problems: Sequence[Problem], task: Task, tag: str | None
) -> list[dict]:
    """The same answers graded by today's rules, or by those of another task, without the model.

    Args:
        problems: those that were asked (and may be more), with the gold answers to grade by.
        tag: what strict looks into; None lets it search free text, as lenient does.
    """
    by_id = {problem.id: problem for problem in problems}
    return [
        r | judge(task, by_id[r["id"]], r["completion"], r["finish_reason"] == "length", tag)
        for r in records
    ]


def main(arguments: Sequence[str]) -> int:
    """Prints what was recomputed, and all that differs; 1 where something does, else 0."""
    if len(arguments) != 1:
        raise BadInput("Give one run: its name, its folder, or the http(s) address of its folder.")
    complaints = []
    with tempfile.TemporaryDirectory() as folder:
        evals = _evals_of(arguments[0], Path(folder))
        for name in ("comparison", "side_comparison"):
            if (evals / f"{name}.json").is_file():
                differ, sentence = check(evals, name)
                complaints += differ
                print(sentence)
    print(*complaints, sep="\n", end="\n" if complaints else "")
    return int(bool(complaints))


def check(evals: Path, name: str = "comparison") -> tuple[list[str], str]:
    """What of `<name>.json`, and of the page, is not what the stored answers give, and what was
    looked at. BadInput: a file is missing, or its task cannot be made here."""
    stored = read_json(evals / f"{name}.json")
    complaints, logs, protocol, summed = [], {}, {}, 0
    for file, written in next(iter(stored.values()))["answers"].items():
        if not (evals / file).is_file():
            raise BadInput(f"There is no {file} in {evals}: its answers are needed.", "no-answers")
        if digest(evals / file) != written:
            complaints.append(
                f"{file} is not the file that {name}.json was made of (its SHA-256 differs): it "
                f"was changed or exchanged afterwards."
            )
        if file.endswith(".jsonl"):
            logs[file] = read_jsonl(evals / file)
    summaries = {file: read_json((evals / file).with_suffix(".json")) for file in logs}
    answers = f"{sum(map(len, logs.values())):,} stored answers"
    if gaps := _gaps(logs, summaries):
        return complaints + gaps, f"{name}.json: its {answers} do not make pairs."
    for file, summary in summaries.items():
        protocol, records = summary["protocol"], logs[file]
        logs[file] = _graded_again(records, protocol)
        complaints += _other_grades(file, records, logs[file])
        rules = SimpleNamespace(**protocol, eval_k=_ks(summary.get("scores", {})))
        again = {k: v for k, v in summarize(logs[file], rules).items() if k in summary}
        written = {key: summary[key] for key in again}
        complaints += _other_numbers(file.removesuffix("l"), written, again)
        summed += len(_numbers(again))
    rows = compare_records(*logs.values(), _ks(stored), protocol["prompt_format"])
    rows = {row: values for row, values in rows.items() if row in stored}
    written = {row: {k: r[k] for k in r if k != "answers"} for row, r in stored.items()}
    complaints += _other_numbers(f"{name}.json", written, rows)
    page = evals.parent / "report.html"
    if name == "comparison" and page.is_file():
        there = unescape(page.read_text("utf-8"))
        for text in (verdict(rows), *(cell for row in comparison_rows(rows) for cell in row)):
            if text not in there:
                complaints.append(f"report.html does not say what the answers give: {text}")
    return complaints, (
        f"{name}.json: {len(_numbers(rows))} figures in {len(rows)} scores computed from "
        f"{answers}, and {summed} of their summaries"
        f"{'' if complaints else ', each as it is written'}."
    )


def _gaps(logs: dict[str, list[dict]], summaries: dict[str, dict]) -> list[str]:
    """Files that do not have each problem's answers, or not once."""

    def problem(record: dict) -> tuple[str, ...]:
        return record["id"], record["question"], str(record["expected"])

    problems, complaints = {problem(r) for records in logs.values() for r in records}, []
    for file, records in logs.items():
        passes = summaries[file]["protocol"]["passes"]
        answers = [(kind, i) for kind, sampling in passes.items() for i in range(sampling["n"])]
        once = Counter((asked, *answer) for asked in problems for answer in answers)
        there = Counter((problem(r), r["pass"], r["sample"]) for r in records)
        if wrong := sorted({asked[0] for asked, *_ in (once - there) | (there - once)}):
            complaints.append(
                f"{file}: {len(wrong)} problems lack an answer, have one too many, or are not the "
                f"other file's (the first is {wrong[0]})."
            )
    return complaints


def _graded_again(records: Sequence[dict], protocol: dict[str, Any]) -> list[dict]:
    """By the evaluation's own task; its problems are what the records hold of them."""
    task = get_task(protocol["task"], protocol["task_config"])
    if isinstance(task, ReasoningGym):  # its scorers look into the generated entry
        problems = task.load("test")
    else:
        problems = [
            Problem(r["id"], r["question"], r["expected"], {}, r.get("kind", task.kind))
            for r in records
        ]
    return regrade(records, problems, task, get_format(protocol["prompt_format"]).answer_tag)


def _other_grades(file: str, stored: Sequence[dict], again: Sequence[dict]) -> list[str]:
    for name in ("strict", "lenient", "format", "rouge1", "rougeL"):
        both = zip(stored, again, strict=True)
        if changed := [a for a, b in both if name in b and not _same(a.get(name), b[name])]:
            first = f"{changed[0]['id']}, sample {changed[0]['sample']}"
            return [
                f"{file}: {len(changed)} answers are graded differently now ({name}; the first "
                f"is {first})."
            ]
    return []


def _ks(rows: dict) -> list[int]:
    """The k of `pass@k_strict` and the like."""
    return [*dict.fromkeys(int(row[5:].split("_")[0]) for row in rows if row.startswith("pass@"))]


def _numbers(rows: dict) -> dict[str, Any]:
    """Each number or interval of nested rows, by where it stands ("format, mean")."""
    return pd.json_normalize(rows, sep=", ").to_dict("records")[0]


def _other_numbers(file: str, stored: dict, again: dict) -> list[str]:
    written, computed = _numbers(stored), _numbers(again)
    extra = sorted(written.keys() - computed)
    return [f"{file}: {place} does not come from the answers." for place in extra] + [
        f"{file}: {place}: {written.get(place)} is written, the answers give {value}."
        for place, value in computed.items()
        if not _same(written.get(place), value)
    ]


def _same(a: Any, b: Any) -> bool:
    """Of numbers, intervals, words, or None."""
    if any(value is None or isinstance(value, str) for value in (a, b)):
        return a == b
    return np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=0, atol=1e-9)


def _evals_of(source: str, download: Path) -> Path:
    """The evaluations of a run by its name, folder or address (then fetched into `download`)."""
    if source.startswith(("http://", "https://")):
        return _fetched(source, download)
    for folder in run_places(source, resolve()):
        for evals in (folder / "evals", folder):
            if (evals / "comparison.json").is_file():
                return evals
    raise BadInput(
        f"There is no evals/comparison.json in {source}: run 04_pass_at_k_eval for it first.",
        "no-comparison",
    )


def _fetched(address: str, folder: Path) -> Path:
    """comparison.json and the files it names, by their names under <address>/evals/."""

    def fetch(name: str) -> Path:
        if Path(name).name != name:
            raise BadInput(f"{address} names a file outside its folder: {name}.", "outside")
        try:
            with urllib.request.urlopen(f"{base}/{name}", timeout=30) as answer:
                (folder / name).write_bytes(answer.read())
        except (urllib.error.URLError, TimeoutError) as error:
            raise BadInput(f"{base}/{name} cannot be fetched: {error}.", "fetch") from error
        return folder / name

    base = f"{address.rstrip('/').removesuffix('/evals')}/evals"
    rows = read_json(fetch("comparison.json"))
    for name in next(iter(rows.values()))["answers"]:
        fetch(name)
        fetch(Path(name).with_suffix(".json").name)
    return folder
