"""Before GPU time is spent: do the rewards tell the base model's completions apart?

    found = preflight(engine, rows, rewards, weights, config, task, problems)
    found.verdict      # "Go: 62 % of the groups carry signal …"

GRPO learns from differences within a group. Where all G completions of a
prompt earn the same, their advantages are zero and the step is lost.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib.config import Config
from lib.engines import Engine, in_order
from lib.errors import BadInput
from lib.progress import Progress
from lib.rewards.calls import Checked
from lib.runs import Run, read_json, write_json
from lib.sampling import Completion, training_sampling
from lib.tasks import Problem, Task, sample_problems
from lib.tasks.prompts import PromptFormat, get_format

DEAD, THIN = 0.05, 0.25  # shares of groups with signal below which a run is hopeless, or slow


@dataclass(frozen=True)
class Preflight:
    """What sampling the base model showed.

    Attributes:
        rewards: per reward name, weighted total last: mean, std (over all completions) and
            zero_std (the share of groups in which all are equal).
        signal: the share of groups whose weighted total differs.
        format_rate, truncated: shares of completions; format_rate is None without tags.
        pass_rates: per prompt id the share of right completions (empty for text tasks).
        drop: ids of prompts that were always right or always wrong and carry no signal.
    """

    prompts: int
    completions: int
    rewards: dict[str, dict[str, float]]
    signal: float
    format_rate: float | None
    truncated: float
    pass_rates: dict[str, float]
    drop: list[str]

    @property
    def dead(self) -> bool:
        return self.signal < DEAD

    @property
    def verdict(self) -> str:
        """What to do, in words."""
        share = f"{self.signal:.0%} of {self.prompts} groups differ within"
        if self.signal >= THIN:
            return f"Go: {share}; the rewards give GRPO something to learn from."
        advice = self._advice()
        if self.dead:
            return f"Stop: {share}, and GRPO cannot learn from this: {advice}."
        return f"Slow: {share}, so most of each step is wasted: {advice}."

    def _advice(self) -> str:
        if self.truncated > 0.5:
            return "most completions are cut off; raise max_completion_length"
        if self.format_rate is not None and self.format_rate < 0.1:
            return (
                "the model hardly ever uses the tags; add a worked example (shots), reward "
                "parts of the format, or choose a looser prompt_format"
            )
        rates = list(self.pass_rates.values())
        if rates and np.mean(rates) > 0.9:
            return "the task is too easy; take harder problems"
        if rates and np.mean(rates) < 0.1:
            return "the task is too hard; take easier problems, add shots or partial credit"
        return "raise num_generations or temperature, or add a graded reward"


def preflight(
    engine: Engine,
    rows: Sequence[dict],
    rewards: Sequence[Callable],
    weights: Sequence[float],
    config: Config,
    task: Task,
    problems: Sequence[Problem],
    progress_file: Path | None = None,
) -> tuple[Preflight, list[dict[str, Any]]]:
    """Sample G completions for some training prompts and score them.

    Returns: what was found, and a row a completion (id, completion, rewards, total, correct).
    """
    size = min(config.preflight_prompts or len(rows), len(rows))
    chosen = {problem.id for problem in sample_problems(problems, size, config.seed)}
    rows = [row for row in rows if row["id"] in chosen]
    by_id = {problem.id: problem for problem in problems}
    group = config.num_generations
    answers = _sample(engine, rows, config, progress_file)
    flat = [answer for found in answers for answer in found]
    scores = score(rewards, [row for row in rows for _ in range(group)], flat)
    totals = np.nansum([np.array(v) * w for v, w in zip(scores.values(), weights, strict=True)], 0)
    tag = get_format(config.prompt_format).answer_tag
    samples = []
    for i, answer in enumerate(flat):
        row = rows[i // group]
        grade = task.grade(by_id[row["id"]], answer.text, tags=tag)
        samples.append(
            {
                "id": row["id"],
                "answer": row["answer"],
                "completion": answer.text,
                "rewards": {name: values[i] for name, values in scores.items()},
                "total": float(totals[i]),
                "correct": grade.correct,
                "format": grade.extracted is not None,
                "truncated": answer.finish_reason == "length",
            }
        )
    return _summary(samples, {**scores, "total": totals}, group, tag), samples


def _sample(
    engine: Engine, rows: Sequence[dict], config: Config, progress_file: Path | None
) -> list[list[Completion]]:
    """A group for each row, and progress while they come."""
    progress = Progress(len(rows), "sampling the base model", progress_file)
    sampling = training_sampling(config, config.num_generations)
    answers = []
    for answer in engine.stream([row["prompt"] for row in rows], sampling):
        progress.update(len(answers))
        answers.append(answer)
    progress.close()
    return in_order(answers)


def score(
    rewards: Sequence[Callable], rows: Sequence[dict], answers: Sequence[Any]
) -> dict[str, list[float]]:
    """Each reward's value for each completion, called as TRL calls it; None becomes NaN."""
    columns = {key: [row[key] for row in rows] for key in rows[0] if key != "prompt"}
    found = {}
    for reward in map(Checked, rewards):
        values = reward(
            prompts=[row["prompt"] for row in rows],
            completions=[[{"role": "assistant", "content": a.text}] for a in answers],
            completion_ids=[list(a.token_ids) for a in answers],
            **columns,
        )
        found[reward.__name__] = [np.nan if value is None else float(value) for value in values]
    return found


def _summary(
    samples: list[dict], scores: dict[str, Sequence[float]], group: int, tag: str | None
) -> Preflight:
    stats = {}
    for name, values in scores.items():
        groups = np.asarray(values, dtype=float).reshape(-1, group)
        stats[name] = {
            "mean": float(np.nanmean(groups)),
            "std": float(np.nanstd(groups)),
            "zero_std": float(np.mean(np.nanstd(groups, axis=1) < 1e-9)),
        }
    ids = [sample["id"] for sample in samples[::group]]
    total = np.asarray(scores["total"]).reshape(-1, group)
    rates = {}
    if samples[0]["correct"] is not None:
        right = np.array([sample["correct"] for sample in samples]).reshape(-1, group)
        rates = {id: float(rate) for id, rate in zip(ids, right.mean(1), strict=True)}
    equal = np.std(total, axis=1) < 1e-9
    return Preflight(
        prompts=len(ids),
        completions=len(samples),
        rewards=stats,
        signal=1 - stats["total"]["zero_std"],
        format_rate=float(np.mean([s["format"] for s in samples])) if tag else None,
        truncated=float(np.mean([s["truncated"] for s in samples])),
        pass_rates=rates,
        drop=[id for id, same in zip(ids, equal, strict=True) if same and rates.get(id) in (0, 1)],
    )


def temptations(row: Mapping[str, Any], form: PromptFormat) -> dict[str, str]:
    """Completions of one prompt by what they are: the right one, and ways to look like it."""
    tag, gold = form.answer_tag or "answer", row["answer"]
    think = f"<{form.think_tag}>It is easy.</{form.think_tag}>\n" if form.think_tag else ""

    def tagged(answer: str) -> str:
        return f"{think}<{tag}>{answer}</{tag}>"

    return {
        "right": tagged(gold),
        "right, without tags": gold,
        "wrong": tagged("7919"),
        "tags without content": tagged(""),
        "right, only in the reasoning": f"It is {gold}. {tagged('')}",
        "many answers": tagged(f"1 2 3 4 5 {gold}"),
        "two answers": f"{tagged('7919')} {tagged(gold)}",
        "denied": tagged(f"not {gold}"),
        "the question again": row["question"],
        "nothing": "",
    }


def keep(found: Preflight, run: Run) -> None:
    """Write `preflight.json`, which 03_training looks at."""
    write_json(run.folder / "preflight.json", asdict(found) | {"verdict": found.verdict})


def require_signal(run: Run, config: Config) -> str:
    """The preflight's verdict, or a note that there was none.

    Raises:
        BadInput: a long run on rewards that the preflight found dead.
    """
    path = run.folder / "preflight.json"
    if not path.is_file():
        return "No preflight was run: 02_reward_design tells whether the rewards give a signal."
    found = read_json(path)
    if found["signal"] < DEAD and config.max_steps > 10 and not config.ignore_preflight:
        raise BadInput(f"{found['verdict']} To train all the same, set ignore_preflight to True.")
    return found["verdict"]
