"""Held-out accuracy while it trains: a few problems set aside, asked every N steps.

The problems come from the training split, which they leave; the test split stays unseen
until 04_pass_at_k_eval. The adapter that did best on them is kept in `best/`.
"""

from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from lib.config import Config
from lib.engines import Engine, TransformersEngine
from lib.models import Policy, live_weights, write_adapter
from lib.runs import Run, append_jsonl, discard, read_json, write_json, written_whole
from lib.sampling import Sampling
from lib.tasks import Problem, Task, sample_problems
from lib.tasks.judging import judge
from lib.tasks.prompts import get_format


def set_aside(training: Sequence[Problem], config: Config) -> tuple[list[Problem], list[Problem]]:
    """Training problems to train on, and those for validation; none where it is switched off.

    At most a quarter is set aside.
    """
    if not config.validation_steps:
        return list(training), []
    count = max(1, min(config.validation_problems, len(training) // 4))
    chosen = sample_problems(training, count, seed=0)
    asked = {problem.question for problem in chosen}
    return [problem for problem in training if problem.question not in asked], chosen


@dataclass
class Validation:
    """
    Attributes:
        problems, rows: those set aside and their prompts, in the same order.
        engine: the rollouts' own; None lets the policy generate by itself.
    """

    policy: Policy
    problems: Sequence[Problem]
    rows: Sequence[dict]
    task: Task
    config: Config
    run: Run
    engine: Engine | None = None

    def measure(self, step: int) -> dict[str, float]:
        """Greedy accuracy of the policy as it is: "heldout/strict" and the like, for the log.

        The answers go to `evals/validation.jsonl`, the best adapter so far to `best/`.
        """
        sampling = Sampling(max_tokens=self.config.completion_tokens)
        with self._answering() as engine:
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
        found = {f"heldout/{n}": sum(r[n] for r in records) / len(records) for n in names}
        self._keep_best(step, found[f"heldout/{names[0]}"])
        return found | {"heldout/problems": len(records)}

    def _keep_best(self, step: int, score: float) -> None:
        """Ties go to the later adapter, which has learned more."""
        record = self.run.best / "validation.json"
        if record.is_file() and read_json(record)["score"] > score:
            return
        with written_whole(self.run.best) as beside:
            write_adapter(self.policy, beside)
            found = {"step": step, "score": score, "problems": len(self.problems)}
            write_json(beside / record.name, found)

    @contextmanager
    def _answering(self) -> Any:
        """An engine that answers as the policy does now."""
        if self.engine is not None:
            self.engine.hand_over(live_weights(self.policy.model))
            yield self.engine
            return
        model, training = self.policy.model, self.policy.model.training
        with _for_inference(self.policy):
            model.eval()
            yield TransformersEngine.around(model, self.policy.tokenizer)
        model.train(training)


def _for_inference(policy: Policy) -> Any:
    """Unsloth's models on a GPU want to be told."""
    if policy.backend != "unsloth":
        return nullcontext()
    from unsloth import FastLanguageModel

    @contextmanager
    def told() -> Any:
        FastLanguageModel.for_inference(policy.model)
        yield
        FastLanguageModel.for_training(policy.model)

    return told()


def validate_during(trainer: Any, validation: Validation) -> None:
    """Have the trainer measure every `validation_steps` and at its end, into the step's log."""
    from transformers import TrainerCallback

    run, every = validation.run, validation.config.validation_steps
    validation.engine = trainer.rollouts.engine if trainer.rollouts else None

    class Validate(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            if state.global_step == 0:
                (run.evals / "validation.jsonl").unlink(missing_ok=True)
                discard(run.best)

        def on_step_end(self, args, state, control, **kwargs):
            last = state.global_step == state.max_steps
            if last or state.global_step % every == 0:
                for name, value in validation.measure(state.global_step).items():
                    trainer.note(name, value)

    trainer.add_callback(Validate())
