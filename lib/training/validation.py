"""Held-out accuracy while it trains: a few problems set aside, asked every N steps.

The problems come from the training split, which they leave; the test split stays unseen
until 04_pass_at_k_eval. The adapter that did best on them is kept in `best/`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from transformers import TrainerCallback

from lib.config import Config
from lib.engines import Engine, Sampling, TransformersEngine
from lib.models import Policy, live_weights, write_adapter
from lib.rewards import score
from lib.runs import (
    Run,
    append_jsonl,
    discard,
    read_json,
    read_rollouts,
    rollout_steps,
    write_json,
    written_whole,
)
from lib.tasks import Problem, Task, judge, sample_problems
from lib.tasks.prompts import fitting_rows, get_format
from lib.training.callbacks import StepLog


def set_aside(training: Sequence[Problem], config: Config) -> tuple[list[Problem], list[Problem]]:
    """Training problems to train on, and those for validation; none where it is switched off.

    At most a quarter is set aside.
    """
    if not config.validation_steps:
        return list(training), []
    count = max(1, min(config.validation_problems, len(training) // 4))
    chosen = sample_problems(training, count, seed=0)
    keys = {problem.key for problem in chosen}
    return [problem for problem in training if problem.key not in keys], chosen


class Validation(TrainerCallback):
    """Measures every `validation_steps` and at the end, into the step's log.

    Args:
        problems, rows: those set aside and their prompts.
        engine: the rollouts' own; None lets the policy generate by itself.
    """

    def __init__(
        self,
        policy: Policy,
        problems: Sequence[Problem],
        rows: Sequence[dict],
        task: Task,
        config: Config,
        run: Run,
        log: StepLog,
        engine: Engine | None = None,
    ):
        tokens = config.completion_tokens
        self.rows, note = fitting_rows(rows, policy.tokenizer, config, tokens)
        policy.notes += [note] if note else []
        by_id = {problem.id: problem for problem in problems}
        self.problems = [by_id[row["id"]] for row in self.rows]
        self.policy, self.task = policy, task
        self.config, self.run, self.log, self.engine = config, run, log, engine

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            (self.run.evals / "validation.jsonl").unlink(missing_ok=True)
            discard(self.run.best)

    def on_step_end(self, args, state, control, **kwargs):
        every = self.config.validation_steps
        due = state.global_step in (state.max_steps, self.config.stop_at)
        if (due or state.global_step % every == 0) and state.is_world_process_zero:
            self.log.extra |= self.measure(state.global_step)

    def measure(self, step: int) -> dict[str, float]:
        """Greedy accuracy of the policy as it is: "heldout/strict" and the like, for the log.

        The answers go to `evals/validation.jsonl`, the best adapter so far to `best/`.
        """
        sampling = Sampling(max_tokens=self.config.completion_tokens)
        with answering(self.policy, self.engine) as engine:
            answers = engine.generate([row["prompt"] for row in self.rows], sampling)
        tag = get_format(self.config.prompt_format).answer_tag
        records = []
        for problem, [answer] in zip(self.problems, answers, strict=True):
            truncated = answer.finish_reason == "length"
            verdict = judge(self.task, problem, answer.text, truncated, tag)
            said = {"step": step, "id": problem.id, "completion": answer.text}
            records.append(said | verdict)
        append_jsonl(self.run.evals / "validation.jsonl", records)
        names = [name for name in ("strict", "lenient", "rougeL") if name in records[0]]
        scores = {f"heldout/{n}": sum(r[n] for r in records) / len(records) for n in names}
        self._keep_best(step, scores[f"heldout/{names[0]}"])
        return scores | {"heldout/problems": len(records)}

    def _keep_best(self, step: int, score: float) -> None:
        """Ties go to the later adapter, which has learned more."""
        record = self.run.best / "validation.json"
        if record.is_file() and read_json(record)["score"] > score:
            return
        best = {"step": step, "score": score, "problems": len(self.problems)}
        with written_whole(self.run.best) as beside:
            write_adapter(self.policy, beside)
            write_json(beside / record.name, best)


@contextmanager
def answering(policy: Policy, engine: Engine | None = None) -> Iterator[Engine]:
    """An engine that answers as the policy does now.

    Args:
        engine: one that takes its weights; None lets the policy generate by itself.
    """
    if engine is not None:
        engine.hand_over(live_weights(policy.model))
        yield engine
        return
    model, training, modes = policy.model, policy.model.training, None
    if policy.backend == "unsloth":  # whose models on a GPU have a mode for each
        from unsloth import FastLanguageModel as modes

        modes.for_inference(model)
    yield TransformersEngine.around(model.eval(), policy.tokenizer)
    if modes:
        modes.for_training(model)
    model.train(training)


def first_step_again(
    policy: Policy, rows: Sequence[dict], completions: Any, config: Config, engine: Any = None
) -> list[dict[str, Any]]:
    """The prompts of the run's first step, asked again: a row a prompt with its gold answer, the
    first completion it had then and what that earned, and the trained policy's greedy answer.

    Args:
        rows: the training rows.
        completions: the run's `lib.training.callbacks.Completions`.
    """
    run, by_id = completions.run, {row["id"]: row for row in rows}
    first = read_rollouts(run, rollout_steps(run)[0])[:: config.num_generations]
    first = [row for row in first if row["id"] in by_id]
    rows = [by_id[row["id"]] for row in first]
    with answering(policy, engine) as now:
        sampling = Sampling(max_tokens=config.max_completion_length)
        answers = [answer for [answer] in now.generate([r["prompt"] for r in rows], sampling)]
    scores_RB = np.array(list(score(completions.judges.values(), rows, answers).values()))
    totals = np.nansum(scores_RB * completions.weights[:, None], axis=0).tolist()
    names = ("question", "gold", "first step", "earned", "now", "earns")
    stored = [[row[key] for key in ("question", "answer", "completion", "total")] for row in first]
    pairs = zip(stored, answers, totals, strict=True)
    return [dict(zip(names, (*old, now.text, total), strict=True)) for old, now, total in pairs]
