"""Our loss and gradient beside TRL's, on the same batch of the embedded model in float32.

    TRITON_INTERPRET=1 python -m tests.against_trl FOLDER

Prints JSON, per case: ours and theirs (the loss), and gradient (the relative difference), all
from the same log-probabilities, TRL's of the embedded model; and for some cases weights: the
relative difference of the gradients over all weights, each side with a forward pass of its own.
In a process of its own: TRL computes log-probabilities with a Triton kernel, which
without a GPU runs in Triton's interpreter, and that must be chosen before Triton is imported.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from lib.config import Config, resolve
from lib.scratch import Batch, Totals, completion_logps, grpo_loss, loss_config
from tests.conftest import CPU

LOSSES = {
    "grpo": {},
    "dr_grpo": {},
    "dapo": {"epsilon_high": 0.28},
    "bnpo": {},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_high": 0.25},
    "cispo": {"epsilon_high": 1.3},
}
BETAS = (0.0, 0.1)
WHOLE = (("grpo", 0.1), ("cispo", 0.0))  # compared through the model, too: it takes seconds
CONVERSATIONS = {
    "What is 2 + 2?": ["2 + 2 is 4.", "4", "It is four."],
    "Name a colour of the sky in the evening.": ["Red", "Orange, as the sun sets.", "Blue."],
}
GROUP, MAX_TOKENS = 3, 8


def make_batches(model, tokenizer) -> tuple[list[Batch], Totals]:
    """A step of two passes, a prompt each: mixed lengths, old log-probabilities that lie apart."""
    draw = torch.Generator().manual_seed(0)
    batches = []
    for prompt, answers in CONVERSATIONS.items():
        asked = tokenizer(prompt, return_tensors="pt")
        answers = [answer + tokenizer.eos_token for answer in answers]
        said = tokenizer(answers, return_tensors="pt", padding=True, padding_side="right")
        texts = (asked["input_ids"], asked["attention_mask"])
        texts += (said["input_ids"], said["attention_mask"])
        with torch.no_grad():
            logps_BT, *_ = completion_logps(model, *texts, temperature=0.9)
        noise = 0.3 * torch.randn(2, *logps_BT.shape, generator=draw)
        advantages_B1 = torch.tensor([[1.2], [-0.4], [-0.3]])
        old, ref = logps_BT + noise[0], logps_BT + noise[1]
        batches.append(Batch(*texts, advantages_B1, old_logps_BT=old, ref_logps_BT=ref))
    tokens = sum(int(batch.mask_BT.sum()) for batch in batches)
    return batches, Totals(GROUP * len(batches), tokens, MAX_TOKENS)


def our_logps(model, batch: Batch, config: Config) -> torch.Tensor:
    texts = (batch.prompts_NS, batch.prompt_mask_NS, batch.tokens_BT, batch.mask_BT)
    return completion_logps(model, *texts, config.temperature)[0]


def trl_trainer(model, tokenizer, config: Config, folder: Path) -> GRPOTrainer:
    """TRL's own trainer, brought to the middle of a step of two passes."""
    common = dict(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        per_device_train_batch_size=GROUP,
        gradient_accumulation_steps=len(CONVERSATIONS),
        num_generations=GROUP,
        max_completion_length=MAX_TOKENS,
        temperature=config.temperature,
        epsilon=config.epsilon,
        epsilon_high=config.epsilon_high,
        beta=config.beta,
    )
    if config.algorithm == "rloo":
        kind, arguments = RLOOTrainer, RLOOConfig(**common)
    else:
        level = config.importance_sampling_level
        settings = dict(loss_type=config.loss_type, importance_sampling_level=level)
        kind, arguments = GRPOTrainer, GRPOConfig(**common, **settings)
    rows = Dataset.from_list([{"prompt": "Hello"}] * 2)
    trainer = kind(model, lambda **_: [0.0], arguments, rows, processing_class=tokenizer)
    trainer.current_gradient_accumulation_steps = len(CONVERSATIONS)
    trainer.model.train()
    return trainer


def trl_logps(trainer: GRPOTrainer, batch: Batch) -> torch.Tensor:
    prompts = (batch.prompts_NS, batch.prompt_mask_NS)
    prompts_BS, mask_BS = (part.repeat_interleave(GROUP, 0) for part in prompts)
    tokens = torch.cat([prompts_BS, batch.tokens_BT], 1)
    mask = torch.cat([mask_BS, batch.mask_BT], 1)
    length = batch.tokens_BT.shape[1]
    return trainer._get_per_token_logps_and_entropies(trainer.model, tokens, mask, length)[0]


def trl_inputs(batch: Batch, step: Totals) -> dict:
    return {
        "prompt_ids": batch.prompts_NS.repeat_interleave(GROUP, 0),
        "prompt_mask": batch.prompt_mask_NS.repeat_interleave(GROUP, 0),
        "completion_ids": batch.tokens_BT,
        "completion_mask": batch.mask_BT,
        "advantages": batch.advantages_BT[:, 0],
        "old_per_token_logps": batch.old_logps_BT,
        "old_logps": (batch.old_logps_BT * batch.mask_BT).sum(1),
        "ref_per_token_logps": batch.ref_logps_BT,
        "num_items_in_batch": torch.tensor(step.tokens),
    }


def compare_losses(trainer, batches, step, config, logps) -> dict[str, float]:
    """Both losses, and the gradients by the log-probabilities, from the same ones."""
    sides = []
    for side in ("ours", "theirs"):
        leaves = [logps_BT.clone().requires_grad_() for logps_BT in logps]
        loss = 0.0
        for leaf, batch in zip(leaves, batches, strict=True):
            given = (leaf, torch.zeros_like(leaf), None)
            trainer._get_per_token_logps_and_entropies = lambda *_, given=given, **__: given
            if side == "ours":
                loss = loss + grpo_loss(leaf, batch, step, config)
            else:
                part = trainer._compute_loss(trainer.model, trl_inputs(batch, step))
                # RLOO's trainer leaves the mean over passes to the loop around it.
                passes = len(batches) if isinstance(trainer, RLOOTrainer) else 1
                loss = loss + part / passes
        loss.backward()
        sides.append((loss.item(), torch.cat([leaf.grad.flatten() for leaf in leaves])))
    del trainer._get_per_token_logps_and_entropies
    (ours, our_gradient), (theirs, their_gradient) = sides
    return {"ours": ours, "theirs": theirs, "gradient": apart(our_gradient, their_gradient)}


def compare_weights(model, trainer, batches, step, config) -> float:
    """How far the gradients by all weights lie apart, each from its own forward pass."""
    found = []
    for side in ("ours", "theirs"):
        model.zero_grad()
        for batch in batches:
            if side == "ours":
                loss = grpo_loss(our_logps(model, batch, config), batch, step, config)
            else:
                loss = trainer._compute_loss(trainer.model, trl_inputs(batch, step))
            loss.backward()
        found.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    return apart(*found)


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def main(folder: Path, base: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()
    forward = model.forward  # each of TRL's trainers puts its own around the one before
    batches, step = make_batches(model, tokenizer)
    cases, logps = {}, None
    for loss, settings in {**LOSSES, "rloo": {"loss_type": "grpo", "algorithm": "rloo"}}.items():
        for beta in BETAS[: 1 if loss == "rloo" else None]:  # RLOO's KL is in the reward
            given = {"loss_type": loss, "beta": beta, "temperature": 0.9, **settings}
            config = loss_config(resolve(None, given, CPU))
            model.forward = forward
            trainer = trl_trainer(model, tokenizer, config, folder)
            with torch.no_grad():
                logps = logps or [trl_logps(trainer, batch) for batch in batches]
            case = compare_losses(trainer, batches, step, config, logps)
            if (loss, beta) in WHOLE:
                case["weights"] = compare_weights(model, trainer, batches, step, config)
            cases[f"{loss}-{beta}"] = case
    print(json.dumps(cases))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
