"""Before GPU time is spent: do the rewards tell the base model's completions apart?

    result, samples = preflight(engine, rows, rewards, weights, config, task, problems)
    result.verdict      # "Go: 62% of the groups carry signal …"

GRPO learns from differences within a group. Where all G completions of a
prompt earn the same, their advantages are zero and the step is lost.

    python -m lib.preflight mine      # looks at a recipe's data and rewards, without its model
"""

import io
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.config import Config, resolve
from lib.engines import Completion, Engine, chat_text, in_order, training_sampling
from lib.errors import BadInput
from lib.files import read_json, write_json
from lib.models import load_tokenizer, model_folder
from lib.process import Progress, keep_byte_code
from lib.rewards import recipe_rewards, score, temptations, totals
from lib.runs import Run
from lib.tasks import Problem, Task, load_problems, sample_problems
from lib.tasks.prompts import fitting_rows, get_format, make_rows

DEAD, THIN = 0.05, 0.25  # shares of groups with signal below which a run is hopeless, or slow
EQUAL = 1e-9  # rewards of a group that differ by less than this are the same


@dataclass(frozen=True)
class Preflight:
    """What sampling the base model showed."""

    prompts: int
    completions: int
    # By name, the weighted total last: mean, std (over all completions) and zero_std (the share of
    # groups in which all are equal).
    rewards: dict[str, dict[str, float]]
    signal: float  # share of groups whose weighted total differs
    format_rate: float | None  # share of completions in the form; None without tags
    truncated: float  # share of completions
    pass_rates: dict[str, float]  # by prompt id, of right completions; empty for open answers
    drop: list[str]  # ids of prompts that were always right or always wrong: no signal
    judged: float = 1.0  # share of completions that a reward could judge

    @property
    def dead(self) -> bool:
        return self.signal < DEAD

    @property
    def verdict(self) -> str:
        """What to do, in words."""
        share = f"{self.signal:.0%} of {self.prompts} groups differ within"
        if self.signal >= THIN:
            return f"Go: {share}; the rewards give GRPO something to learn from."
        if self.dead:
            return f"Stop: {share}, and GRPO cannot learn from this: {self._advice()}."
        return f"Slow: {share}, so most of each step is wasted: {self._advice()}."

    def _advice(self) -> str:
        right = np.mean(list(self.pass_rates.values())) if self.pass_rates else 0.5
        if self.judged < 0.5:
            return (
                f"no reward can judge {1 - self.judged:.0%} of the completions, as where the gold "
                f"answer cannot be read (01_setup names the first); fix the data or its kind"
            )
        if self.truncated > 0.5:
            return "most completions are cut off; raise max_completion_length"
        if self.format_rate is not None and self.format_rate < 0.1:
            return (
                "the model hardly ever uses the tags; add a worked example (shots), reward "
                "parts of the format, or choose a looser prompt_format"
            )
        if right > 0.9:
            return "the task is too easy; take harder problems"
        if right < 0.1:
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

    Returns: the figures, and a row a completion (id, completion, rewards, total, correct).
    """
    rows = sample_problems(rows, min(config.preflight_prompts or len(rows), len(rows)), config.seed)
    by_id, group = {problem.id: problem for problem in problems}, config.num_generations
    count = len(rows)
    progress = Progress(count, "sampling the base model", progress_file, settled=count // 10)
    answers, prompts = [], [row["prompt"] for row in rows]
    progress.update(0)
    for answer in engine.stream(prompts, training_sampling(config, group)):
        answers.append(answer)
        progress.update(len(answers))
    progress.close()
    flat = [answer for completions in in_order(answers) for answer in completions]
    rows = [row for row in rows for _ in range(group)]
    scores = score(rewards, rows, flat)
    earned = totals(scores, weights)
    tag, samples = get_format(config.prompt_format).answer_tag, []
    for i, (row, answer) in enumerate(zip(rows, flat, strict=True)):
        grade = task.grade(by_id[row["id"]], answer.text, tags=tag)
        samples.append(
            {
                "id": row["id"],
                "answer": row["answer"],
                "completion": answer.text,
                "rewards": {name: values[i] for name, values in scores.items()},
                "total": float(earned[i]),
                "correct": grade.correct,
                "format": grade.extracted is not None,
                "truncated": answer.finish_reason == "length",
            }
        )
    return _summary(samples, group, tag), samples


def _summary(samples: list[dict], group: int, tag: str | None) -> Preflight:
    """What a reward did not judge counts as 0, as it does in the total."""
    frame = pd.DataFrame(samples)
    earned = pd.DataFrame(frame["rewards"].tolist())
    judged, earned = earned.notna().any(axis=1).mean(), earned.fillna(0.0)
    earned["total"] = frame["total"]
    ids, place = frame["id"][::group].tolist(), frame.index // group
    equal = earned.groupby(place).std(ddof=0) < EQUAL
    figures = {"mean": earned.mean(), "std": earned.std(ddof=0), "zero_std": equal.mean()}
    rates = {}
    if samples[0]["correct"] is not None:
        right = frame["correct"].astype(float).groupby(place).mean()
        rates = dict(zip(ids, right.tolist(), strict=True))
    alike = zip(ids, equal["total"], strict=True)
    return Preflight(
        prompts=len(ids),
        completions=len(samples),
        rewards=pd.DataFrame(figures).T.to_dict(),
        signal=1 - float(equal["total"].mean()),
        format_rate=float(frame["format"].mean()) if tag else None,
        truncated=float(frame["truncated"].mean()),
        pass_rates=rates,
        drop=[id for id, same in alike if same and rates.get(id) in (0, 1)],
        judged=float(judged),
    )


def keep(result: Preflight, run: Run) -> None:
    """Write `preflight.json`, which 03_training looks at."""
    write_json(run.folder / "preflight.json", asdict(result) | {"verdict": result.verdict})


def require_signal(run: Run, config: Config) -> str:
    """The preflight's verdict, or a note that there was none. BadInput: a long run on rewards that
    the preflight found dead."""
    path = run.folder / "preflight.json"
    if not path.is_file():
        return "No preflight was run: 02_reward_design tells whether the rewards give a signal."
    result = read_json(path)
    if result["signal"] < DEAD and config.max_steps > 10 and not config.ignore_preflight:
        raise BadInput(
            f"{result['verdict']} To train all the same, set ignore_preflight to True.",
            key="no-signal",
        )
    return result["verdict"]


def data_notes(config: Config, tokenizer: Any) -> list[str]:
    """What is wrong with a recipe's problems and does not stop it, too long prompts included.
    BadInput: something stops it."""
    notes: list[str] = []
    _, training, held_out, examples = load_problems(config, notes)
    for problems, tokens in ((training, 0), (held_out, config.completion_tokens)):
        rows = make_rows(problems, config.prompt_format, config.shots, examples)
        _, note = fitting_rows(rows, tokenizer, config, tokens)
        notes += [note] if note else []
    return notes


def look(recipe: str) -> str:
    """A recipe's data, its first prompt, and what its rewards pay for, as a page of text."""
    config = resolve(recipe)
    rewards, weights = recipe_rewards(config)
    _, training, held_out, examples = load_problems(config)
    tokenizer = load_tokenizer(model_folder(config))  # last: it takes longest
    [row] = make_rows(training[:1], config.prompt_format, config.shots, examples)
    lines = [f"{len(training)} problems to train on, {len(held_out)} held out."]
    lines += data_notes(config, tokenizer) or ["Every problem can be read, and fits."]
    lines += ["", chat_text(tokenizer, row["prompt"]), f"gold answer: {row['answer']}", ""]
    for what, text in temptations(row, get_format(config.prompt_format)).items():
        answer = Completion(text, tuple(tokenizer(text)["input_ids"]), "stop")
        paid = np.nan_to_num([values[0] for values in score(rewards, [row], [answer]).values()])
        lines.append(f"{np.dot(paid, weights):8.3f}  {what}: {text[:60]!r}")
    return "\n".join(lines)


if __name__ == "__main__":
    keep_byte_code()
    try:
        with redirect_stderr(io.StringIO()):  # what libraries say while they are imported
            page = look(*sys.argv[1:2] or ["mine"])
        print(page)
    except BadInput as error:
        sys.exit(str(error))
