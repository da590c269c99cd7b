"""Our loss and gradient beside TRL's, on the same batch of a model in float32.

    TRITON_INTERPRET=1 python -m tests.against_trl FOLDER MODEL

Prints JSON, per case: ours and theirs (the loss), and gradient (the relative difference), all
from the same log-probabilities, TRL's; and for some cases weights: the relative difference of the
gradients over all weights, each side with a forward pass of its own. In a process of its own: TRL
computes log-probabilities with a Triton kernel, which without a GPU runs in Triton's interpreter,
and that must be chosen before Triton is imported.
"""

import json
import sys

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from lib.config import resolve
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
CASES = [(loss, beta) for loss in LOSSES for beta in (0.0, 0.1)] + [("rloo", 0.0)]
WHOLE = (("grpo", 0.1), ("cispo", 0.0))  # compared through the model, too: it takes seconds
CONVERSATIONS = {
    "What is 2 + 2?": ["2 + 2 is 4.", "4", "It is four."],
    "Name a colour of the sky in the evening.": ["Red", "Orange, as the sun sets.", "Blue."],
}
GROUP, MAX_TOKENS, TEMPERATURE = 3, 8, 0.9
REPEATED = ("prompts_NS", "prompt_mask_NS")


def make_batches(model, tokenizer) -> tuple[list[Batch], Totals]:
    """A step of two passes, a prompt each: mixed lengths, old log-probabilities that lie apart."""
    draw = torch.Generator().manual_seed(0)
    batches = []
    for prompt, answers in CONVERSATIONS.items():
        asked = tokenizer(prompt, return_tensors="pt")
        answers = [answer + tokenizer.eos_token for answer in answers]
        said = tokenizer(answers, return_tensors="pt", padding=True, padding_side="right")
        texts = [part[name] for part in (asked, said) for name in ("input_ids", "attention_mask")]
        with torch.no_grad():
            logps_BT, *_ = completion_logps(model, *texts, TEMPERATURE)
        old, ref = logps_BT + 0.3 * torch.randn(2, *logps_BT.shape, generator=draw)
        advantages_B1 = torch.tensor([[1.2], [-0.4], [-0.3]])
        batches.append(Batch(*texts, advantages_B1, old_logps_BT=old, ref_logps_BT=ref))
    tokens = sum(int(batch.mask_BT.sum()) for batch in batches)
    return batches, Totals(GROUP * len(batches), tokens, MAX_TOKENS)


def trl_trainer(model, tokenizer, config, folder: str) -> GRPOTrainer:
    """TRL's own trainer, brought to the middle of a step of two passes."""
    names = ["temperature", "epsilon", "epsilon_high", "beta"]
    kind, arguments = RLOOTrainer, RLOOConfig
    if config.algorithm == "grpo":
        kind, arguments = GRPOTrainer, GRPOConfig
        names += ["loss_type", "importance_sampling_level"]
    args = arguments(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        per_device_train_batch_size=GROUP,
        gradient_accumulation_steps=len(CONVERSATIONS),
        num_generations=GROUP,
        max_completion_length=MAX_TOKENS,
        **{name: getattr(config, name) for name in names},
    )
    rows = Dataset.from_list([{"prompt": "Hello"}] * 2)
    trainer = kind(model, lambda **_: [0.0], args, rows, processing_class=tokenizer)
    trainer.current_gradient_accumulation_steps = len(CONVERSATIONS)
    trainer.model.train()
    return trainer


def trl_inputs(batch: Batch, step: Totals) -> dict:
    prompts, mask = (getattr(batch, name).repeat_interleave(GROUP, 0) for name in REPEATED)
    return {
        "prompt_ids": prompts,
        "prompt_mask": mask,
        "completion_ids": batch.tokens_BT,
        "completion_mask": batch.mask_BT,
        "advantages": batch.advantages_BT[:, 0],
        "old_per_token_logps": batch.old_logps_BT,
        "old_logps": (batch.old_logps_BT * batch.mask_BT).sum(1),
        "ref_per_token_logps": batch.ref_logps_BT,
        "num_items_in_batch": torch.tensor(step.tokens),
    }


def trl_logps(trainer: GRPOTrainer, batch: Batch, step: Totals) -> torch.Tensor:
    given = trl_inputs(batch, step)
    ids, mask = (
        torch.cat([given[f"prompt_{what}"], given[f"completion_{what}"]], 1)
        for what in ("ids", "mask")
    )
    length = batch.tokens_BT.shape[1]
    return trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, length)[0]


def compare_losses(trainer, batches, step, config, logps) -> dict[str, float]:
    """Both losses, and the gradients by the log-probabilities, from the same ones."""
    losses, slopes = [], []
    for ours in (True, False):
        leaves, loss = [logps_BT.clone().requires_grad_() for logps_BT in logps], 0.0
        for leaf, batch in zip(leaves, batches, strict=True):
            given = (leaf, torch.zeros_like(leaf), None)
            trainer._get_per_token_logps_and_entropies = lambda *_, given=given, **__: given
            if ours:
                loss = loss + grpo_loss(leaf, batch, step, config)
            else:
                part = trainer._compute_loss(trainer.model, trl_inputs(batch, step))
                # RLOO's trainer leaves the mean over passes to the loop around it.
                loss = loss + part / (len(batches) if isinstance(trainer, RLOOTrainer) else 1)
        loss.backward()
        losses.append(loss.item())
        slopes.append(torch.cat([leaf.grad.flatten() for leaf in leaves]))
    del trainer._get_per_token_logps_and_entropies
    return dict(ours=losses[0], theirs=losses[1], gradient=apart(*slopes))


def compare_weights(model, trainer, batches, step, config) -> float:
    """How far the gradients by all weights lie apart, each from its own forward pass."""
    slopes = []
    for ours in (True, False):
        model.zero_grad()
        for batch in batches:
            texts = [getattr(batch, name) for name in (*REPEATED, "tokens_BT", "mask_BT")]
            if ours:
                logps_BT = completion_logps(model, *texts, TEMPERATURE)[0]
                loss = grpo_loss(logps_BT, batch, step, config)
            else:
                loss = trainer._compute_loss(trainer.model, trl_inputs(batch, step))
            loss.backward()
        slopes.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    return apart(*slopes)


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def main(folder: str, base: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()
    forward = model.forward  # each of TRL's trainers puts its own around the one before
    batches, step = make_batches(model, tokenizer)
    cases, logps = {}, None
    for loss, beta in CASES:  # RLOO's KL is in the reward
        given = {"loss_type": loss, "beta": beta, "temperature": TEMPERATURE}
        given |= LOSSES.get(loss, {"loss_type": "grpo", "algorithm": "rloo"})
        config = loss_config(resolve(None, given, CPU))
        model.forward = forward
        trainer = trl_trainer(model, tokenizer, config, folder)
        with torch.no_grad():
            logps = logps or [trl_logps(trainer, batch, step) for batch in batches]
        case = compare_losses(trainer, batches, step, config, logps)
        if (loss, beta) in WHOLE:
            case["weights"] = compare_weights(model, trainer, batches, step, config)
        cases[f"{loss}-{beta}"] = case
    print(json.dumps(cases))


if __name__ == "__main__":
    main(*sys.argv[1:])
