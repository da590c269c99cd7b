"""A supervised warm-up: the policy is shown right answers in the wanted form, then GRPO begins.

A form that the policy never produces earns nothing in any completion, so that no group differs
and GRPO stands still (DeepSeek-R1, arXiv 2501.12948, sec. 2.3.1, calls this stage a cold start). A
few supervised steps, cross-entropy on the answer's tokens alone, make it possible.

The base model of an evaluation stays the base model. The reference of a KL term (beta > 0) is the
policy as GRPO finds it, the warmed-up one; after full fine-tuning, the base model.
"""

from collections.abc import Sequence
from typing import Any

from lib.config import Config
from lib.engines import Messages, chat_text
from lib.models import Policy
from lib.runs import Run, written_whole
from lib.tasks import sample_problems
from lib.tasks.problems import Problem
from lib.tasks.prompts import PromptFormat, get_format

IGNORED = -100  # the label of tokens that the loss leaves out


def warm_up(
    policy: Policy, problems: Sequence[Problem], rows: Sequence[dict], config: Config, run: Run
) -> list[float]:
    """Train the policy on `sft_steps` batches of right answers; the loss of each.

    The trained weights are kept in `warm_up/`, from which a resumed run takes them.

    Args:
        rows: the problems' prompts, as GRPO will ask them.

    Raises:
        BadInput: the format shows a solution and a problem has none.
    """
    from safetensors.torch import load_file, save_file

    file = run.folder / "warm_up" / "trained.safetensors"
    trained = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
    if config.resume and file.is_file():
        for name, weight in load_file(file).items():
            trained[name].data.copy_(weight)
        return []
    losses = _train(policy, worked_rows(policy.tokenizer, problems, rows, config), config, run)
    with written_whole(file.parent) as beside:
        weights = {name: weight.detach().contiguous().cpu() for name, weight in trained.items()}
        save_file(weights, beside / file.name)
    return losses


def worked_rows(
    tokenizer: Any, problems: Sequence[Problem], rows: Sequence[dict], config: Config
) -> list[dict]:
    """For as many problems as the warm-up takes: tokens, and labels on those of the answer."""
    form, prompts = get_format(config.prompt_format), {row["id"]: row["prompt"] for row in rows}
    problems = [problem for problem in problems if problem.id in prompts]
    count = min(len(problems), config.sft_steps * config.sft_batch)
    return [
        _worked_row(tokenizer, prompts[problem.id], form, problem, config.max_seq_length)
        for problem in sample_problems(problems, count, config.seed)
    ]


def _worked_row(
    tokenizer: Any, prompt: Messages, form: PromptFormat, problem: Problem, longest: int
) -> dict[str, list[int]]:
    prompt_text = chat_text(tokenizer, prompt)
    answer = {"role": "assistant", "content": form.show(problem)}
    text = tokenizer.apply_chat_template([*prompt, answer], tokenize=False).rstrip("\n")
    if not text.startswith(prompt_text):  # a template that writes earlier turns differently
        text = prompt_text + answer["content"] + tokenizer.eos_token
    first, all_ids = (
        tokenizer(t, add_special_tokens=False)["input_ids"] for t in (prompt_text, text)
    )
    labels = [IGNORED] * len(first) + all_ids[len(first) :]
    return {"input_ids": all_ids[:longest], "labels": labels[:longest]}


def side_arguments(config: Config) -> dict[str, Any]:
    """Of transformers' TrainingArguments, for a training beside GRPO's: its log alone is kept."""
    return dict(
        seed=config.seed,
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        use_cpu=config.profile == "cpu",
        dataloader_pin_memory=config.profile != "cpu",
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def _train(policy: Policy, rows: Sequence[dict], config: Config, run: Run) -> list[float]:
    """By transformers' Trainer: TRL's SFTTrainer needs a Triton kernel, which no CPU runs."""
    from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainingArguments

    trainer = Trainer(
        model=policy.model,
        args=TrainingArguments(
            output_dir=str(run.folder / "warm_up"),
            max_steps=config.sft_steps,
            per_device_train_batch_size=config.sft_batch,
            learning_rate=config.sft_learning_rate,
            lr_scheduler_type="constant",
            max_grad_norm=config.max_grad_norm,
            optim=config.optim,
            gradient_checkpointing=config.gradient_checkpointing,
            **side_arguments(config),
        ),
        train_dataset=list(rows),
        data_collator=DataCollatorForSeq2Seq(policy.tokenizer, label_pad_token_id=IGNORED),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    # GRPO's trainer wraps the forward pass itself.
    trainer.accelerator.unwrap_model(policy.model, keep_fp32_wrapper=False)
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]
