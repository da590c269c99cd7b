"""Training a reward model on preference pairs with TRL's RewardTrainer.

    train_reward_model(config, run, pairs, run.folder / "reward_model")
    scored = score_pairs(RewardModel.load(folder), held_out)

The loss is Bradley and Terry's: −log σ(r_chosen − r_rejected), the mean over the pairs
(Ouyang et al. 2022, arXiv 2203.02155, eq. 1).
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib.config import Config
from lib.errors import BadInput
from lib.models import lora_targets, model_folder
from lib.progress import Progress
from lib.rewards.model import RECORD, RewardModel, chat_ids
from lib.rewards.preferences import Pair, accuracy, attacks, length_correlation
from lib.runs import Run, write_json, written_whole
from lib.stats import rate

RIDGE = 1.0  # for hidden states of length 1; from 0.3 to 3 it made little difference


@dataclass(frozen=True)
class ScoredPairs:
    """Held-out pairs with a reward model's scores of both answers."""

    pairs: list[Pair]
    chosen: list[float]
    rejected: list[float]

    @property
    def margins(self) -> list[float]:
        return [a - b for a, b in zip(self.chosen, self.rejected, strict=True)]


def untrained(config: Config) -> tuple[Any, Any]:
    """The base model with one output in place of its vocabulary, drawn by the seed; tokenizer.

    With `reward_layers` only so many of its lower layers: the middle of a language model tells
    more about a text than its end, which is about the next token (Skean et al. 2025,
    arXiv 2502.02013).
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = config.reward_model_base or config.model
    folder = model_folder(config.model_copy(update={"model": base}))
    torch.manual_seed(config.seed)
    # 32 bit, computed with in 16: steps of this size would be lost in 16-bit weights.
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32, use_safetensors=True
    )
    if config.reward_layers:
        _keep_lower(model, config.reward_layers)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id  # the score is the last real token's
    return model.to("cpu" if config.profile == "cpu" else "cuda"), tokenizer


def _keep_lower(model: Any, layers: int) -> None:
    kept = model.base_model.layers[:layers]
    model.base_model.layers = kept
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:layers]


def fit_output(model: RewardModel, pairs: Sequence[Pair]) -> None:
    """Set the output layer to what best tells the pairs apart while the rest stays as it is.

    Logistic regression on the differences of the last hidden states, with a ridge. Started
    from a random output, training would first bend the model to that output (Kumar et al.
    2022, arXiv 2202.10054).
    """
    import torch
    from torch.nn.functional import softplus

    prompts = [pair.prompt for pair in pairs]
    chosen, rejected = (
        model.states(prompts, [getattr(pair, which) for pair in pairs])
        for which in ("chosen", "rejected")
    )
    spread = torch.cat([chosen, rejected]).std(0) * chosen.shape[1] ** 0.5
    differences = (chosen - rejected) / spread
    output = torch.zeros(chosen.shape[1], device=chosen.device, requires_grad=True)
    solver = torch.optim.LBFGS([output], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        solver.zero_grad()
        found = softplus(-differences @ output).sum() + RIDGE / 2 * output.square().sum()
        found.backward()
        return found

    solver.step(loss)
    with torch.no_grad():
        model.model.score.weight.copy_((output / spread)[None])


def fitting(pairs: Sequence[Pair], tokenizer: Any, config: Config) -> list[Pair]:
    """The pairs both of whose conversations have at most `reward_max_length` tokens.

    Raises:
        BadInput: they do not fill one step.
    """

    def fits(pair: Pair) -> bool:
        answers = (pair.chosen, pair.rejected)
        lengths = [len(chat_ids(tokenizer, pair.prompt, answer)) for answer in answers]
        return max(lengths) <= config.reward_max_length

    found = [pair for pair in pairs if fits(pair)]
    if len(found) < config.reward_pairs:
        raise BadInput(
            f"{len(found)} of {len(pairs)} pairs have at most reward_max_length "
            f"{config.reward_max_length} tokens and a step takes reward_pairs "
            f"{config.reward_pairs}: raise the one or lower the other."
        )
    return found


def reward_arguments(config: Config, run: Run) -> dict[str, Any]:
    """The arguments of TRL's RewardConfig."""
    on_gpu = config.profile != "cpu"
    return dict(
        output_dir=str(run.folder / ".reward_trainer"),
        seed=config.seed,
        data_seed=config.seed,
        max_steps=config.reward_steps,
        per_device_train_batch_size=config.reward_pairs,
        max_length=None,  # `fitting` has chosen
        learning_rate=config.reward_learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(10, config.reward_steps // 10),
        optim="adamw_torch",
        weight_decay=0.0,
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        gradient_checkpointing=on_gpu,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def train_reward_model(
    config: Config,
    run: Run,
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    watch: Callable[[list[dict]], None] | None = None,
) -> list[dict]:
    """Train the model in place: an adapter (merged at the end), or all weights with
    `full_finetuning`.

    Returns: TRL's log, a row a step: loss, accuracy, margin and others.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    progress = Progress(config.reward_steps, "training the reward model", run.progress)

    class Watch(TrainerCallback):
        def on_log(self, args, state, control, **kwargs):
            progress.update(state.global_step)
            if watch:
                watch(state.log_history)

    adapter = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        target_modules=lora_targets(config),
        task_type="SEQ_CLS",  # trains the output, too
    )
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**reward_arguments(config, run)),
        train_dataset=Dataset.from_list([_tokens(pair, tokenizer) for pair in pairs]),
        processing_class=tokenizer,
        peft_config=None if config.full_finetuning else adapter,
        callbacks=[Watch()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    progress.close()
    if not config.full_finetuning:
        trainer.model.merge_and_unload()
    shutil.rmtree(run.folder / ".reward_trainer", ignore_errors=True)
    return [row for row in trainer.state.log_history if "loss" in row]


def _tokens(pair: Pair, tokenizer: Any) -> dict[str, list[int]]:
    return {
        "chosen_ids": chat_ids(tokenizer, pair.prompt, pair.chosen),
        "rejected_ids": chat_ids(tokenizer, pair.prompt, pair.rejected),
    }


def score_pairs(model: RewardModel, pairs: Sequence[Pair]) -> ScoredPairs:
    """Both answers of each pair, scored as the reward does it but not yet normalised."""
    prompts = [pair.prompt for pair in pairs]
    chosen = model.scores(prompts, [pair.chosen for pair in pairs])
    return ScoredPairs(
        list(pairs), chosen, model.scores(prompts, [pair.rejected for pair in pairs])
    )


def attack_rows(model: RewardModel, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """How answers made to fool it fare (`lib.rewards.preferences.attacks`).

    Returns: a row an attack: answer, mean reward, and how often it beats the preferred answer
    (as `lib.stats.rate`).
    """
    others = [*pairs[1:], pairs[0]]
    tried = [attacks(pair, other) for pair, other in zip(pairs, others, strict=True)]
    prompts = [pair.prompt for pair in pairs]
    chosen = model.rewards(prompts, [pair.chosen for pair in pairs])
    rows = [{"answer": "preferred", "mean reward": float(np.mean(chosen))}]
    for name in tried[0]:
        found = model.rewards(prompts, [answers[name] for answers in tried])
        beats = [a > b for a, b in zip(found, chosen, strict=True)]
        rows.append({"answer": name, "mean reward": float(np.mean(found)), **rate(beats)})
    return rows


def save_reward_model(model: RewardModel, held_out: Sequence[Pair], folder: Path) -> ScoredPairs:
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
        scored = score_pairs(RewardModel.load(beside), held_out)
        every = np.array([*scored.chosen, *scored.rejected])
        record = {
            "mean": float(every.mean()),
            "std": float(every.std()) or 1.0,
            "accuracy": accuracy(scored.margins),
            "length_correlation": length_correlation(held_out, scored.margins),
        }
        write_json(beside / RECORD, record)
    return scored
