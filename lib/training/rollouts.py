"""Which prompts a step asks, who answers them, and what is kept of an answer.

`training_prompts` are all prompts of a run in their order, so that TRL walks through them once,
unshuffled, and a resumed run finds its place. `RolloutEngine` generates by vLLM in this process,
through TRL's own two methods, and `proof_of_policy` shows that it samples from the policy that is
trained. `DynamicSampling` has groups without signal give way to groups of further prompts: DAPO (Yu
et al. 2025, arXiv 2503.14476, sec. 3.2) draws until a batch holds only groups whose completions
earned different rewards; here a step tries `resample` further prompts at most, and what it cannot
replace stays and costs no training.
"""

import math
import os
import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch

from lib.config import Config
from lib.engines import Sampling, VllmEngine, start_vllm, training_sampling
from lib.errors import BadInput
from lib.files import read_json
from lib.models import Policy, live_weights
from lib.rewards import total
from lib.runs import Run, read_rollouts, rollout_steps
from lib.training import generates_here
from lib.training.logps import plain_logps

TURN = 1_000_003  # between the seeds of a step's turns: more than there are steps
ALIKE = 1e-6  # totals no further apart are the same
# Nats a token by which the engine's log-probs may lie from the trainer's: rounding in 16 bit makes
# 0.03 to 0.05, and from 0.1 on an alarm rings (`lib.training.live`).
GAP = 0.2
MOVED = 0.5  # nats a token by which the policy is moved: an engine that stays behind shows as much
TOKENS = 16  # that the engine writes for each prompt
Sampled = list[tuple[list[int], list[int], list[float]]]  # prompt, completion, log-probs
# What it means that they lie further apart: of the policy as it was, moved, and moved again.
APART = {
    "engine-differs": ("At first", "it loaded other weights or another precision"),
    "serves-base": ("After the adapter was changed", "completions would come from the base model"),
    "stale-adapter": ("After it was changed again", "it still serves the first adapter"),
}


def choose_rows(rows: Sequence[dict], run: Run, config: Config) -> tuple[list[dict], str]:
    """The rows to train on, and a sentence on what was done to them, by the preflight's pass rates:
    `drop_dead` never leaves out so many that the rest does not fill a step, and to `easy_first`
    one that was not measured counts as one of mean difficulty. Raises BadInput where either is set
    and there was no preflight, or it graded no answers."""
    if not config.drop_dead and config.curriculum == "none":
        return list(rows), "Every prompt may be drawn, in random order."
    path = run.folder / "preflight.json"
    measured = read_json(path, {})
    rates = measured.get("pass_rates", {})
    if not rates:
        raise BadInput(
            "drop_dead and curriculum need the pass rates of a preflight: run 02_reward_design "
            "for this run first, on a task whose answers are right or wrong, or switch both off.",
            key="no-pass-rates",
        )
    notes = [f"{sum(row['id'] in rates for row in rows)} of {len(rows)} prompts were measured"]
    if config.drop_dead:
        dead = [row["id"] for row in rows if row["id"] in measured["drop"]]
        missing = max(0, config.prompts_per_step - (len(rows) - len(dead)))
        rows = [row for row in rows if row["id"] not in dead[missing:]]
        notes.append(f"{len(dead[missing:])} always right or always wrong are dropped")
    if config.curriculum == "easy_first":
        middle = float(np.mean(list(rates.values())))
        rows = sorted(rows, key=lambda row: -rates.get(row["id"], middle))
        notes.append("those more often right come first")
    return list(rows), "; ".join(notes) + "."


def prompt_order(count: int, config: Config) -> list[int]:
    """Places of the prompts of all steps, one after the other: each epoch in an order of its own,
    by the seed; with a curriculum in that of the rows."""
    needed = -(-config.max_steps // config.num_iterations) * config.prompts_per_step
    an_epoch = count // config.prompts_per_step * config.prompts_per_step
    places: list[int] = []
    while len(places) < needed:
        order = np.arange(count)
        if config.curriculum == "none":
            order = np.random.default_rng([config.seed, len(places) // an_epoch]).permutation(count)
        places += order[:an_epoch].tolist()
    return places[:needed]


def training_prompts(rows: Sequence[dict], config: Config) -> Any:
    """A `datasets.Dataset` of the prompts of all steps in their order, for one epoch unshuffled."""
    from datasets import Dataset

    return Dataset.from_list(list(rows)).select(prompt_order(len(rows), config))


class RolloutEngine:
    """vLLM in this process, which gets the policy's weights whenever the policy has moved.

    It is to TRL what its own `VLLMGeneration` is (`GRPOTrainer.generate_with`), whose hand-over
    fails on a CPU; transformers generates several times slower. A step's samples depend on the
    seed and the step alone, also after a resume.
    """

    trainer: Any = None  # set by `generate_with`
    hand_over_seconds = 0.0  # that the latest hand-over of weights took
    proved = False  # whether it was shown to have the policy
    turn = 0  # 0 where a step first asks, then 1, 2 … as dynamic sampling does

    def __init__(self, config: Config, engine: VllmEngine):
        self.config, self.engine = config, engine

    @classmethod
    def start(cls, config: Config, policy: Policy) -> "RolloutEngine | None":
        """None where the trainer is to generate, as it does where vLLM cannot start."""
        if not generates_here(config):
            return None
        engine = start_vllm(config, policy.folder, policy.notes, **beside_trainer(config))
        return cls(config, engine) if engine else None

    def sync_weights(self) -> None:
        started = time.perf_counter()
        self.engine.hand_over(live_weights(self.trainer.model))
        self.hand_over_seconds, self.turn = time.perf_counter() - started, 0

    def generate(
        self, prompts: list[list[int]], images: Any = None, num_generations: int = 1, profiler=None
    ) -> tuple[list, list, list, None]:
        """One completion for each prompt in tokens, as `VLLMGeneration.generate` of TRL returns
        it: the prompts, the completions' tokens, and a list with the log-prob of each token.
        Raises BadInput where, after the first hand-over, vLLM does not sample from the policy."""
        if not self.proved:
            self.proved, some = True, list({tuple(prompt): prompt for prompt in prompts}.values())
            for finding in proof_of_policy(self.trainer.model, partial(self.sample, some[:4])):
                raise finding
            self.sync_weights()
        sampling = training_sampling(self.config, step=self.trainer.state.global_step)
        seed = sampling.seed + TURN * self.turn
        self.turn += 1
        answers = self.engine.generate(prompts, replace(sampling, seed=seed, logprobs=True))
        ids = [list(answer.token_ids) for [answer] in answers]
        return prompts, ids, [[[x] for x in answer.logprobs] for [answer] in answers], None

    def sample(self, prompts: list[list[int]]) -> Sampled:
        """Hand the policy over, and write a few tokens for each prompt."""
        self.sync_weights()
        sampling = Sampling(temperature=1.0, max_tokens=TOKENS, logprobs=True)
        answers = [answer for [answer] in self.engine.generate(prompts, sampling)]
        pairs = zip(prompts, answers, strict=True)
        return [(prompt, list(a.token_ids), list(a.logprobs)) for prompt, a in pairs]


def beside_trainer(config: Config) -> dict[str, Any]:
    """How vLLM starts beside a trainer: with its share of the card; and like the trainer it divides
    by the temperature before it reports a log-prob."""
    return dict(share=config.vllm_gpu_memory_utilization, logprobs_mode="processed_logprobs")


# --- does the engine sample from the policy? ----------------------------------------------------


def proof_of_policy(model: Any, sample: Callable[[], Sampled]) -> list[BadInput]:
    """What speaks against the engine's sampling from the policy that is trained; at most one.
    `sample` hands the policy over to the engine and lets it write some completions."""
    gaps = measure_gaps(model, sample)
    if not math.isfinite(gaps[-1]):
        sentence = (
            f"The policy's log-probs are not finite in {model.dtype}: its activations leave that "
            f"precision's range; set precision to bf16 or fp32, or choose another model."
        )
        return [BadInput(sentence, "overflow")]
    if gaps[-1] <= GAP:
        return []
    key, (when, means) = list(APART.items())[len(gaps) - 1]
    sentence = (
        f"{when} the engine's log-probs are {gaps[-1]:.2f} nats a token away from the trainer's: "
        f"{means}; set backend and rollout_engine to transformers."
    )
    return [BadInput(sentence, key)]


def measure_gaps(model: Any, sample: Callable[[], Sampled]) -> list[float]:
    """Nats a token between engine and trainer: of the policy as it is, and of one whose adapter's B
    is set at random, twice; up to the first that is too large. B is then what it was."""
    weights = [p for name, p in model.named_parameters() if "lora_B" in name]
    stored = [weight.detach().clone() for weight in weights]
    random = torch.Generator().manual_seed(0)
    sampled = sample()
    gaps = [gap(model, sampled)]
    try:
        while weights and gaps[-1] <= GAP and len(gaps) < len(APART):
            _move(model, weights, sampled, random)
            sampled = sample()
            gaps.append(gap(model, sampled))
    finally:
        for weight, before in zip(weights, stored, strict=True):
            weight.data.copy_(before)
    return gaps


def _move(model: Any, weights: Sequence[Any], sampled: Sampled, random: Any) -> None:
    """Set B at random, as large as it takes to be seen in a completion sampled before."""
    std = 0.04
    noise = [torch.randn(weight.shape, generator=random) for weight in weights]
    while std < 1:
        for weight, each in zip(weights, noise, strict=True):
            weight.data.copy_(std * each)
        if gap(model, sampled[:1]) > MOVED:
            return
        std *= 2


def sample_by_unsloth(model: Any, prompts: Sequence[list[int]]) -> Sampled:
    """Completions by Unsloth's engine with the adapter as it is, as its trainer asks for them."""
    from vllm import SamplingParams

    os.environ["UNSLOTH_RETURN_LOGITS"] = "1"  # or its forward returns none to compare with
    with TemporaryDirectory() as folder:  # for the adapter's settings
        outputs = model.fast_generate(
            [{"prompt_token_ids": ids} for ids in prompts],
            sampling_params=SamplingParams(temperature=1.0, max_tokens=TOKENS, logprobs=0, seed=0),
            lora_request=model.load_lora(folder, load_tensors=True),
            use_tqdm=False,
        )
    sampled = []
    for prompt, output in zip(prompts, outputs, strict=True):
        ids, logprobs = list(output.outputs[0].token_ids), output.outputs[0].logprobs
        sampled.append((prompt, ids, [at[i].logprob for i, at in zip(ids, logprobs, strict=True)]))
    return sampled


def policy_logps(model: Any, sampled: Sampled) -> list[list[float]]:
    """The trainer's log-probs of the sampled tokens, without dropout."""
    training, logps = model.training, []
    model.eval()
    for prompt, completion, _ in sampled:
        ids_1T = torch.tensor([[*prompt, *completion]], device=model.device)
        with torch.no_grad():
            logps_1C, _ = plain_logps(model, ids_1T, torch.ones_like(ids_1T), len(completion))
        logps.append(logps_1C[0].tolist())
    model.train(training)
    return logps


def gap(model: Any, sampled: Sampled) -> float:
    """Mean |Δ log p| a token between the engine and the trainer."""
    theirs = [logp for *_, logps in sampled for logp in logps]
    own = [logp for logps in policy_logps(model, sampled) for logp in logps]
    return sum(abs(a - b) for a, b in zip(theirs, own, strict=True)) / len(own)


# --- what was earned, and dynamic sampling ------------------------------------------------------

Scores = Mapping[str, float | None]  # what each reward gave; None: it could not judge


def is_alike(totals: Iterable[float | None]) -> bool:
    """Whether a group's completions earned the same, so that it has no signal."""
    known = [value for value in totals if value is not None]
    return not known or max(known) - min(known) <= ALIKE


def rollout_row(
    step: int, row: Mapping, text: str, scores: Scores, weights: Sequence[float], **more: Any
) -> dict[str, Any]:
    """A completion of training as a line of `rollouts/`; row: as of `lib.tasks.make_rows`,
    more: advantage, tokens (the completion's length), truncated."""
    problem = {"id": row["id"], "question": row.get("question", ""), "answer": row["answer"]}
    earned = {"rewards": dict(scores), "total": total(scores.values(), weights) or 0.0}
    return {"step": step, **problem, "completion": text, **earned, **more}


def reward_log(totals: Sequence[float | None], scores: Sequence[Scores]) -> dict[str, float]:
    """What a step's completions earned, in all and by each reward, under TRL's names."""
    total, by_name = pd.Series(totals, dtype=float), pd.DataFrame(scores, dtype=float)
    logged = {"reward": total.mean(), "reward_std": total.std()}
    for name, values in by_name.items():
        logged |= {f"rewards/{name}/mean": values.mean(), f"rewards/{name}/std": values.std()}
    return logged


# G completions of a prompt: the data set's columns, prompt_ids, completion_ids, logprobs,
# completions, scores and total.
Group = list[dict]
SCORES = "the rewards' scores"  # a key that no column of a data set has


def has_signal(group: Group) -> bool:
    return not is_alike(row["total"] for row in group)


def resample(
    drawn: Sequence[Group], further: Sequence[dict], sample: Callable[[list[dict]], list[Group]]
) -> tuple[list[Group], list[int]]:
    """Try further prompts (rows, in their order), at each turn as many as there are groups left
    without signal, so that no group with signal is generated in vain.

    Returns: every group generated, those drawn first; and for each place of the step the
        group to train on.
    """
    every, chosen = list(drawn), list(range(len(drawn)))
    while further and (places := [i for i, g in enumerate(chosen) if not has_signal(every[g])]):
        known, now = len(every), list(further[: len(places)])
        every += sample(now)
        further = further[len(now) :]
        useful = [group for group in range(known, len(every)) if has_signal(every[group])]
        for place, group in zip(places, useful, strict=False):
            chosen[place] = group
    return every, chosen


class DynamicSampling:
    """TRL's `rollout_func`: generates and judges a step's groups, and hands on those to train on.

    TRL's log would be of the groups that were chosen for what they earned; the numbers of the
    prompts as drawn take its place. A step may try `budget` further rows. Their order depends on
    the seed, the step and what the run has seen so far, which a resumed run reads back from its
    rollouts. Judged and kept they are by `lib.training.callbacks.Completions`.
    """

    def __init__(self, completions: Any, rows: Sequence[dict], seed: int, budget: int):
        self.completions, self.rows, self.seed, self.budget = completions, rows, seed, budget
        self.dead: dict[str, int] = {}  # id -> how often in a row its group had no signal
        self.recalled = False

    def __call__(self, prompts: list, trainer: Any) -> dict[str, list]:
        step, count = trainer.state.global_step, len(prompts) // trainer.num_generations
        if not self.recalled:
            self.recall(self.completions.run, step)
        first = step // trainer.num_iterations * count
        asked = [trainer.train_dataset[first + i] for i in range(count)]
        drawn = self._sample(asked, trainer)
        further = self.order(step + 1, {row["id"] for row in asked})
        every, chosen = resample(drawn, further, partial(self._sample, trainer=trainer))
        self.saw(every)
        rows, trained = [], []
        for i, group in enumerate(every):
            rows += group
            trained += [i in chosen] * len(group)
        self.completions.keep(step + 1, rows, trained)
        batch = [row for group in chosen for row in every[group]]
        trainer.state.num_input_tokens_seen += _tokens(rows) - _tokens(batch)
        self.completions.log.extra |= _as_drawn(drawn) | {
            "signal/drawn": sum(map(has_signal, drawn)) / count,
            "signal/trained": sum(has_signal(every[group]) for group in chosen) / count,
            "signal/tried": len(every) - count,
        }
        keys = batch[0].keys() - {"prompt", "completions", "total"}
        out = {key: [row[key] for row in batch] for key in keys}
        return out if out["logprobs"][0] is not None else out | {"logprobs": None}

    def _sample(self, rows: Sequence[dict], trainer: Any) -> list[Group]:
        """A group for each of the rows, generated and decoded as TRL does, and judged."""
        size = trainer.num_generations
        rows = [dict(row) for row in rows for _ in range(size)]
        ids, *_ = trainer._tokenize_prompts([row["prompt"] for row in rows])
        answers, logprobs = trainer._generate_single_turn(ids, None, {}, size)
        texts = trainer.processing_class.batch_decode(answers, skip_special_tokens=True)
        for i, row in enumerate(rows):
            said = [{"role": "assistant", "content": texts[i]}]
            row |= dict(prompt_ids=ids[i], completion_ids=answers[i], completions=said)
            row |= dict(logprobs=logprobs and logprobs[i])
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        columns |= dict(prompts=columns.pop("prompt"), trainer_state=trainer.state)
        # Further columns of TRL's table would be of rows that it does not get.
        columns |= dict(log_metric=trainer._log_metric, log_extra=lambda *values: None)
        values = {name: judge(**columns) for name, judge in self.completions.judges.items()}
        for i, row in enumerate(rows):
            row[SCORES] = {name: some[i] for name, some in values.items()}
            row["total"] = total(row[SCORES].values(), self.completions.weights)
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def order(self, step: int, drawn: Collection[str]) -> list[dict]:
        """The rows to try: at random, those last seen without signal behind all others; without
        those (ids) that the step has drawn already."""
        left = [row for row in self.rows if row["id"] not in drawn]
        random.Random(f"{self.seed} {step}").shuffle(left)
        left.sort(key=lambda row: self.dead.get(row["id"], 0))
        return left[: self.budget]

    def saw(self, groups: Iterable[Group]) -> None:
        """Note for each prompt whether its group had signal."""
        for group in groups:
            id = group[0]["id"]
            self.dead[id] = 0 if has_signal(group) else self.dead.get(id, 0) + 1

    def recall(self, run: Run, last: int) -> None:
        """Take over what the run saw up to its step `last`."""
        self.dead, self.recalled = {}, True
        for step in (step for step in rollout_steps(run) if step <= last):
            by_prompt = groupby(read_rollouts(run, step), key=lambda row: row["id"])
            self.saw(list(group) for _, group in by_prompt)


def _as_drawn(groups: Sequence[Group]) -> dict[str, float]:
    """What TRL would log of these."""
    rows = [row for group in groups for row in group]
    lengths = [len(row["completion_ids"]) for row in rows]
    logged = reward_log([row["total"] for row in rows], [row[SCORES] for row in rows])
    return logged | {"completions/mean_length": float(np.mean(lengths))}


def _tokens(rows: Sequence[dict]) -> int:
    return sum(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows)
