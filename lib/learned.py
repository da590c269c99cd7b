"""A learned reward: a language model with one output, its score of an answer.

    rewards: {reward_model: 1.0, gold_reward: 0.0}

`reward_model` is what 06_reward_model trained for this run. `gold_reward` is a second model,
trained on other pairs: the policy never earns it (weight 0 only logs it), so where the first
rises and the second does not, the first is being gamed (Gao et al. 2022, arXiv 2210.10760).

Both learn from pairs of answers to one prompt, of which the first is preferred. The loss is
Bradley and Terry's: −log σ(r_chosen − r_rejected), the mean over the pairs (Ouyang et al. 2022,
arXiv 2203.02155, eq. 1).
"""

import hashlib
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lib.config import Config, find_path
from lib.errors import BadInput
from lib.files import read_json, write_json, written_whole
from lib.hardware import cpu_precision
from lib.models import load_tokenizer, lora_arguments, model_folder
from lib.process import Progress
from lib.rewards import completion_texts
from lib.runs import Run
from lib.stats import rate
from lib.tasks import Problem, get_format, load_problems, make_rows, message_text, sample_problems
from lib.tasks.problems import unpacked
from lib.training import side_arguments

RECORD = "reward.json"  # its scale, and how good it is
BATCH = 16  # answers in one forward pass
RIDGE = 1.0  # for hidden states of length 1; from 0.3 to 3 it made little difference


@dataclass(frozen=True)
class Pair:
    id: str
    question: str
    prompt: list[dict]  # chat messages, as the policy gets them
    chosen: str
    rejected: str
    fault: str  # of the rejected one: "people's choice", "wrong answer" or "no tags"


def load_pairs(config: Config) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train a reward model on, and held-out ones; no question stands in both.

    They come from a data set of people's choices (task "preference_pairs"), or are made from the
    right answers of the recipe's own task: preferred to a wrong answer, and to one without tags.
    Raises BadInput where the task has neither.
    """
    own = {"task": config.preferences, "task_config": {}} if config.preferences else {}
    config = config.model_copy(update=own | {"train_problems": 0, "eval_problems": 0})
    _, *parts, examples = load_problems(config)
    training, held_out = (list(_pairs(part, config, examples)) for part in parts)
    return training, sample_problems(held_out, min(config.reward_held_out, len(held_out)), seed=0)


def _pairs(
    problems: Sequence[Problem], config: Config, examples: Sequence[Problem]
) -> Iterator[Pair]:
    form, draw = get_format(config.prompt_format), random.Random(config.seed)
    prompts = {r["id"]: r["prompt"] for r in make_rows(problems, form, config.shots, examples)}
    for problem in (problem for problem in problems if problem.id in prompts):
        beginning = (problem.id, problem.question, prompts[problem.id])
        if "rejected" in problem.meta:
            rejected = message_text(unpacked(problem.meta["rejected"]))
            if rejected.strip() not in ("", problem.answer.strip()):  # or nothing is preferred
                yield Pair(*beginning, problem.answer, rejected, "people's choice")
            continue
        if problem.kind == "open":
            raise BadInput(
                f"{problem.id} has no rejected answer and no right one to make pairs from: set "
                f"preferences to a task that has pairs, as preference_pairs.",
                key="pairs",
            )
        right, other = form.show(problem), draw.choice(problems).answer
        if other != problem.answer:
            wrong = form.show(replace(problem, answer=other))
            yield Pair(*beginning, right, wrong, "wrong answer")
        if form.answer_tag:
            yield Pair(*beginning, right, problem.answer, "no tags")


def fitting(pairs: Sequence[Pair], tokenizer: Any, config: Config) -> list[Pair]:
    """The pairs both of whose conversations have at most `reward_max_length` tokens. Raises
    BadInput where they do not fill one step."""
    lengths = [max(map(len, _tokens(pair, tokenizer).values())) for pair in pairs]
    most = config.reward_max_length
    short = [pair for pair, length in zip(pairs, lengths, strict=True) if length <= most]
    if len(short) < config.reward_pairs:
        raise BadInput(
            f"{len(short)} of {len(pairs)} pairs that differ have at most reward_max_length {most} "
            f"tokens and a step takes reward_pairs {config.reward_pairs}: raise the one or "
            f"lower the other.",
            key="pairs",
        )
    return short


def halves(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Two parts of about the same size that share no question."""
    parts: tuple[list[Pair], list[Pair]] = [], []
    for pair in pairs:
        digest = hashlib.sha256(pair.question.encode("utf-8", "replace")).digest()
        parts[digest[0] >= 128].append(pair)
    return parts


@dataclass
class RewardModel:
    model: Any
    tokenizer: Any
    mean: float = 0.0  # of the scores of held-out answers
    std: float = 1.0
    run: Run | None = None  # where progress is shown; None shows none, as within a training step

    @classmethod
    def load(cls, folder: Path, run: Run | None = None) -> "RewardModel":
        """From a folder of `save_reward_model`, on the GPU where there is one."""
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        record = read_json(folder / RECORD)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True
        )
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return cls(model, tokenizer, record["mean"], record["std"], run)

    def scores(self, prompts: Sequence[list[dict]], answers: Sequence[str]) -> list[float]:
        """The model's own score of each answer to its prompt (chat messages)."""
        import torch

        with torch.inference_mode():
            # In 32 bit: 16 would round scores that differ by less than 1%.
            return self.model.score(self.states(prompts, answers))[:, 0].tolist()

    def rewards(self, prompts: Sequence[list[dict]], answers: Sequence[str]) -> list[float]:
        """Scores in standard deviations from the mean held-out answer."""
        return [(score - self.mean) / self.std for score in self.scores(prompts, answers)]

    def states(self, prompts: Sequence[list[dict]], answers: Sequence[str]) -> Any:
        """The last token's hidden state, which the output layer scores; (answers, hidden)."""
        import torch

        pairs = zip(prompts, answers, strict=True)
        ids = [_chat_ids(self.tokenizer, prompt, answer) for prompt, answer in pairs]
        # Answers of like length share a pass, so that little is padding.
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        device = self.model.eval().device
        half = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
        in_16_bit = torch.autocast(
            device.type,
            torch.bfloat16 if half else torch.float16,
            enabled=device.type != "cpu" or cpu_precision() == "bf16",
        )
        states = torch.empty(len(ids), self.model.config.hidden_size, device=device)
        line = Progress(len(ids), "answers read", self.run.progress) if self.run else None
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            inputs = {"input_ids": [ids[i] for i in part]}
            batch = self.tokenizer.pad(inputs, return_tensors="pt", padding_side="right").to(device)
            with torch.inference_mode(), in_16_bit:
                hidden = self.model.base_model(**batch, use_cache=False).last_hidden_state
            states[part] = hidden[range(len(part)), batch["attention_mask"].sum(1) - 1].float()
            if line:
                line.update(start + len(part))
        if line:
            line.close()
        return states


def _chat_ids(tokenizer: Any, prompt: list[dict], answer: str) -> list[int]:
    """The tokens of a conversation that ends with the answer, in the model's own chat template."""
    turn = {"role": "assistant", "content": answer}
    text = tokenizer.apply_chat_template([*prompt, turn], tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _tokens(pair: Pair, tokenizer: Any) -> dict[str, list[int]]:
    """A pair as TRL's `RewardTrainer` takes it."""
    return {
        "chosen_ids": _chat_ids(tokenizer, pair.prompt, pair.chosen),
        "rejected_ids": _chat_ids(tokenizer, pair.prompt, pair.rejected),
    }


@lru_cache(maxsize=2)
def _loaded(folder: str, stamp: int) -> RewardModel:
    """One copy in memory of each model in use; `stamp` tells a newly trained one from an old."""
    return RewardModel.load(Path(folder))


@dataclass(frozen=True)
class LearnedReward:
    """The score of the run's reward model, in standard deviations of held-out answers' scores.
    Raises BadInput where there is none, or it has vanished since the run began."""

    path: str = ""  # a folder that 06_reward_model made, in whichever run; "": this run's own
    run_folder: str = ""  # where "this run's own" is looked for; given by `recipe_rewards`
    own: ClassVar[str] = "reward_model"  # the folder's name within a run

    def __post_init__(self):
        if self.path:
            self.folder()

    def __call__(self, prompts, completions, **columns) -> list[float]:
        folder = self.folder()
        model = _loaded(str(folder), (folder / RECORD).stat().st_mtime_ns)
        chats = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
        return model.rewards(chats, completion_texts(completions))

    def folder(self) -> Path:
        """Where the model is, looked at anew each time: a run must not outlive its reward."""
        named = self.path or f"{self.run_folder}/{self.own}"
        folder = find_path(named)
        if folder and (folder / RECORD).is_file() and any(folder.glob("*.safetensors")):
            return folder
        raise BadInput(
            f"There is no reward model in {Run.shown(Path(named))}: run 06_reward_model for this "
            f"run (and go on with --resume), or give the reward the path of another one.",
            key="reward-model",
        )


class GoldReward(LearnedReward):
    """The same by the run's second reward model: give it weight 0, and it judges the first."""

    own: ClassVar[str] = "reward_model_gold"


def untrained(config: Config) -> tuple[Any, Any]:
    """The base model with one output in place of its vocabulary, drawn by the seed; tokenizer.

    With `reward_layers` only that many of its lower layers: the middle of a language model tells
    more about a text than its end, which is about the next token (Skean et al. 2025,
    arXiv 2502.02013).
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    base = config.reward_model_base or config.model
    folder = model_folder(config.model_copy(update={"model": base}))
    settings, tokenizer = AutoConfig.from_pretrained(folder), load_tokenizer(folder)
    if config.reward_layers:
        settings.num_hidden_layers = min(config.reward_layers, settings.num_hidden_layers)
        if getattr(settings, "layer_types", None):
            settings.layer_types = settings.layer_types[: settings.num_hidden_layers]
    # The score is the last real token's.
    settings.num_labels, settings.pad_token_id = 1, tokenizer.pad_token_id
    torch.manual_seed(config.seed)
    # 32 bit, computed with in 16: steps of this size would be lost in 16-bit weights.
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, config=settings, dtype=torch.float32, use_safetensors=True
    )
    return model.to("cpu" if config.profile == "cpu" else "cuda"), tokenizer


def fit_output(model: RewardModel, pairs: Sequence[Pair]) -> None:
    """Set the output layer to what best tells the pairs apart while the rest stays as it is.

    Logistic regression on the differences of the last hidden states, with a ridge. Started
    from a random output, training would first bend the model to that output (Kumar et al.
    2022, arXiv 2202.10054).
    """
    import torch
    from torch.nn.functional import softplus

    states = model.states(*_asked(pairs))
    spread = states.std(0) * states.shape[1] ** 0.5
    differences = (states[: len(pairs)] - states[len(pairs) :]) / spread
    output = torch.zeros(states.shape[1], device=states.device, requires_grad=True)
    solver = torch.optim.LBFGS([output], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        solver.zero_grad()
        total = softplus(-differences @ output).sum() + RIDGE / 2 * output.square().sum()
        total.backward()
        return total

    solver.step(loss)
    with torch.no_grad():
        model.model.score.weight.copy_((output / spread)[None])


def train_reward_model(
    config: Config, run: Run, model: Any, tokenizer: Any, pairs: Sequence[Pair]
) -> list[dict]:
    """Train the model in place: an adapter (merged at the end), or all weights with
    `full_finetuning`. Returns TRL's log, a row a step: loss, accuracy, margin and others."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    progress = Progress(config.reward_steps, "training the reward model", run.progress)

    class ShowProgress(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            progress.update(state.global_step)

    arguments = RewardConfig(
        output_dir=str(run.folder / ".reward_trainer"),
        max_steps=config.reward_steps,
        per_device_train_batch_size=config.reward_pairs,
        max_length=None,  # `fitting` has chosen
        learning_rate=config.reward_learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(10, config.reward_steps // 10),
        optim="adamw_torch",
        gradient_checkpointing=config.profile != "cpu",
        **side_arguments(config),
    )
    adapter = LoraConfig(**lora_arguments(config), task_type="SEQ_CLS")  # trains the output, too
    trainer = RewardTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([_tokens(pair, tokenizer) for pair in pairs]),
        processing_class=tokenizer,
        peft_config=None if config.full_finetuning else adapter,
        callbacks=[ShowProgress()],
    )
    trainer.remove_callback(PrinterCallback)
    progress.update(0)
    trainer.train()
    progress.close()
    if not config.full_finetuning:
        trainer.model.merge_and_unload()
    shutil.rmtree(run.folder / ".reward_trainer", ignore_errors=True)
    return [row for row in trainer.state.log_history if "loss" in row]


def save_reward_model(model: RewardModel, held_out: Sequence[Pair], folder: Path) -> np.ndarray:
    """Write the model (fp16 safetensors), its scale and how good it is.

    What is written is read again and measured: the scores of held-out answers by the model
    that the reward will use. Their mean and standard deviation are the reward's zero and unit.
    An earlier model, with which a policy may have been trained, is kept in the run's `previous/`.
    """
    if (folder / RECORD).is_file():
        Run(folder.parent).put_aside(folder)
    with written_whole(folder) as beside:
        model.model.half().save_pretrained(beside)
        model.tokenizer.save_pretrained(beside)
        write_json(beside / RECORD, {"mean": 0.0, "std": 1.0})
        scores_P2 = score_pairs(RewardModel.load(beside, model.run), held_out)
        scale = {"mean": float(scores_P2.mean()), "std": float(scores_P2.std()) or 1.0}
        write_json(beside / RECORD, scale | {"accuracy": rate(is_right(scores_P2))})
    return scores_P2


def score_pairs(model: RewardModel, pairs: Sequence[Pair]) -> np.ndarray:
    """The scores of each pair's preferred and rejected answer, not yet normalised; (pairs, 2)."""
    return np.array(model.scores(*_asked(pairs))).reshape(2, -1).T


def _asked(pairs: Sequence[Pair]) -> tuple[list[list[dict]], list[str]]:
    """The prompts of all pairs twice, and their preferred answers before their rejected ones."""
    answers = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    return [pair.prompt for pair in pairs] * 2, answers


def is_right(scores_P2: np.ndarray) -> list[bool]:
    """Of each pair, whether the preferred answer scores higher."""
    return (scores_P2[:, 0] > scores_P2[:, 1]).tolist()


def quality(pairs: Sequence[Pair], scores_P2: np.ndarray) -> list[dict]:
    """Pairwise accuracy on held-out pairs: in all, beside "the longer wins", and in parts; a row a
    measure, what and as `lib.stats.rate`."""
    right = np.array(is_right(scores_P2))
    longer = np.array([len(pair.chosen) - len(pair.rejected) for pair in pairs])
    faults = np.array([pair.fault for pair in pairs])
    parts = {f"pairs: {fault}": faults == fault for fault in dict.fromkeys(faults.tolist())}
    parts["pairs whose longer answer is preferred"] = longer > 0
    parts["pairs whose shorter answer is preferred"] = longer < 0
    parts = {what: part for what, part in parts.items() if part.any() and not part.all()}
    rows = {"reward model": right, "rule: the longer wins": longer > 0}
    rows |= {what: right[part] for what, part in parts.items()}
    return [{"what": what, **rate(some.tolist())} for what, some in rows.items()]
