"""What the suite hangs on a training, as callbacks of transformers' Trainer.

    log = StepLog(run, config, len(problems))
    completions = Completions(run, rewards, weights, log)
    GRPOTrainer(…, reward_funcs=completions.rewards, callbacks=[log, completions])

`StepLog` writes `train_log.jsonl`, `Completions` every completion to `rollouts/`, `Validation`
held-out accuracy into the log. They work on TRL's own trainer, too; on ours, what they count
reaches the trackers as well.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from transformers import TrainerCallback

from lib.config import Config
from lib.engines import Engine, Sampling, TransformersEngine
from lib.files import append_jsonl, discard, read_json, write_json, written_whole
from lib.hardware import gpu_energy, gpu_memory_taken
from lib.models import Policy, live_weights, write_adapter
from lib.process import Progress
from lib.rewards import Bound, Checked, total
from lib.runs import Run
from lib.tasks import Problem, Task, fitting_rows, get_format, judge
from lib.tasks.prompts import end_ids
from lib.training.rollouts import SCORES, is_alike, rollout_row


class StepLog(TrainerCallback):
    """A row of `train_log.jsonl` each step, and progress. An epoch is one pass over the problems;
    `watch` is called with the rows so far after each step."""

    def __init__(
        self, run: Run, config: Config, problems: int, watch: Callable[[list], None] | None = None
    ):
        self.run, self.config, self.watch = run, config, watch
        self.steps_an_epoch = problems // config.prompts_per_step * config.num_iterations
        self.rows: list[dict] = []
        self.row: dict[str, Any] = {}  # of the present batch
        self.extra: dict[str, float] = {}  # numbers that others put into the step's row

    def metrics(self) -> dict[str, float]:
        extra, self.extra = self.extra, {}
        return extra

    def on_train_begin(self, args, state, control, **kwargs):
        # A resumed run repeats the steps after its checkpoint.
        self.rows, self.row = self.run.rewind(state.global_step), {}
        self.started = time.time() - (self.rows[-1]["seconds"] if self.rows else 0)
        self.spent = self.run.recorded().get("energy_wh", 0.0) if self.rows else 0.0
        self.energy = gpu_energy()
        self.progress = Progress(args.max_steps, "training", self.run.progress)
        self.progress.update(state.global_step)
        if self.watch and self.rows:
            self.watch(self.rows)

    def on_step_end(self, args, state, control, **kwargs):
        # The trainer's one epoch is all steps in their order; a reader means passes over the data.
        state.epoch = state.global_step / self.steps_an_epoch

    def on_log(self, args, state, control, logs=None, **kwargs):
        step, logs = state.global_step, {**(logs or {}), **self.metrics()}
        if "reward" in logs:
            self.row = {"step": step, "seconds": time.time() - self.started, **logs}
        elif self.row:  # a further update from the same batch: its validation, and the like
            self.row = logs | self.row
        if not self.row or (step % args.num_iterations and step < state.max_steps):
            self.progress.update(step)
            return
        append_jsonl(self.run.train_log, [self.row])
        self.rows.append(self.row)
        reward = self.row["reward"]  # None: no reward could judge any completion of this step
        note = "no reward" if reward is None else f"reward {reward:.2f}"
        self.progress.update(step, note)
        self.row = {}
        if self.watch:
            self.watch(self.rows)

    def on_train_end(self, args, state, control, **kwargs):
        self.progress.close()
        if self.config.profile != "cpu":
            self.run.note(training_gpu_gib=gpu_memory_taken())
        if self.energy is not None:
            self.run.note(energy_wh=self.spent + gpu_energy() - self.energy)


class Completions(TrainerCallback):
    """Has the rewards judge, and keeps each completion with what it earned. `rewards` are the
    functions to give the trainer, `rows` those of the latest step, as they lie in `rollouts/`."""

    def __init__(
        self, run: Run, rewards: Sequence[Callable], weights: Sequence[float], log: StepLog
    ):
        self.run, self.log, self.weights = run, log, list(weights)
        self.judges = {reward.__name__: Checked(reward) for reward in rewards}
        self.rewards = [Bound(name, self._judge, name) for name in self.judges]
        self.rows: list[dict] = []
        self._batch: tuple | None = None
        self._values: dict[str, list] = {}

    def _judge(self, name: str, /, **columns: Any) -> list:
        """A reward as TRL calls it; the last one ends the batch."""
        self._table = columns["log_metric"].__self__._logs  # TRL's, of the step
        if SCORES in columns:  # dynamic sampling has had them judged
            return [row[name] for row in columns[SCORES]]
        values = self._values[name] = self.judges[name](**columns)
        if self._values.keys() == self.judges.keys():
            count, judged, self._values = len(values), self._values, {}
            lists = {k: v for k, v in columns.items() if isinstance(v, list) and len(v) == count}
            rows = [{k: v[i] for k, v in lists.items()} for i in range(count)]
            for i, row in enumerate(rows):
                row[SCORES] = {name: some[i] for name, some in judged.items()}
            rows = gather_object(rows)
            self.keep(columns["trainer_state"].global_step + 1, rows, [True] * len(rows))
        return values

    def keep(self, step: int, rows: Sequence[dict], trained: Sequence[bool]) -> None:
        """Remember a batch until its step is made: rows with the data set's columns, completions,
        completion_ids and scores, and for each whether it is in the step's batch."""
        self._batch = (step, rows, trained)
        self.log.extra["time/rollouts"] = time.perf_counter() - self.began

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()

    def on_pre_optimizer_step(
        self, args, state, control, model=None, processing_class=None, **kwargs
    ):
        if self._batch is None:
            return
        (step, rows, trained), self._batch = self._batch, None
        advantage = iter(self._table["advantages"])
        ends = {processing_class.eos_token_id, processing_class.pad_token_id}
        ends |= {*end_ids(model.generation_config.eos_token_id)}
        self.rows = []
        for row, used in zip(rows, trained, strict=True):
            ids, text = row["completion_ids"], row["completions"][-1]["content"]
            said = dict(advantage=next(advantage) if used else 0.0, tokens=len(ids))
            said |= dict(truncated=ids[-1] not in ends, trained=used)
            self.rows.append(rollout_row(step, row, text, row[SCORES], self.weights, **said))
        append_jsonl(self.run.rollouts / f"step_{step:05d}.jsonl", self.rows)
        earned = [row[SCORES].values() for row, used in zip(rows, trained, strict=True) if used]
        totals = [total(scores, self.weights) for scores in earned]
        if None in totals:  # TRL counts a group that none could judge as one with signal
            groups = np.reshape(np.array(totals, dtype=object), (-1, args.num_generations))
            self.log.extra["frac_reward_zero_std"] = float(np.mean([is_alike(g) for g in groups]))


# --- validation -------------------------------------------------------------------------------


class Validation(TrainerCallback):
    """Measures greedy accuracy on the problems set aside before the first step, every
    `validation_steps` and at the end, into the step's log; the adapter that did best is kept in
    `best/`. `engine` as of `answering`.
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
            for key, score in self.measure(0).items():
                self.log.extra[key.replace("heldout/", "heldout_before/")] = score

    def on_step_end(self, args, state, control, **kwargs):
        every = self.config.validation_steps
        due = state.global_step in (state.max_steps, self.config.stop_at)
        if due or state.global_step % every == 0:
            self.log.extra |= (scores := self.measure(state.global_step))
            self._keep_best(state.global_step, next(iter(scores.values())))

    def measure(self, step: int) -> dict[str, float]:
        """ "heldout/strict" and the like of the policy as it is, whose answers are kept. Each of
        several processes asks for all: under FSDP none has the whole policy."""
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
    """An engine that answers as the policy does now: this one, which takes its weights; None lets
    the policy generate by itself."""
    if engine is not None:
        engine.hand_over(live_weights(policy.model))
        yield engine
        return
    model, training, modes = policy.model, policy.model.training, None
    if policy.backend == "unsloth":  # whose models on a GPU have a mode for each
        from unsloth import FastLanguageModel as modes

        modes.for_inference(model)
    try:
        yield TransformersEngine(model.eval(), policy.tokenizer)
    finally:
        if modes:
            modes.for_training(model)
        model.train(training)
