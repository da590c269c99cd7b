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
from lib.engines import chat_text
from lib.models import Policy
from lib.runs import Run, written_whole
from lib.tasks import Problem, get_format, sample_problems

IGNORED = -100  # the label of tokens that the loss leaves out


def warm_up(
    policy: Policy, problems: Sequence[Problem], rows: Sequence[dict], config: Config, run: Run
) -> list[float]:
    """Train the policy on `sft_steps` batches of right answers to the rows' prompts; the loss of
    each. The trained weights are kept in `warm_up/`, from which a resumed run takes them. Raises
    BadInput where the format shows a solution and a problem has none."""
    from safetensors.torch import load_file, save_file
    from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainingArguments

    file = run.folder / "warm_up" / "trained.safetensors"
    trained = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
    if config.resume and file.is_file():
        for name, weight in load_file(file).items():
            trained[name].data.copy_(weight)
        return []
    # TRL's SFTTrainer needs a Triton kernel, which no CPU runs.
    trainer = Trainer(
        model=policy.model,
        args=TrainingArguments(
            output_dir=str(file.parent),
            max_steps=config.sft_steps,
            per_device_train_batch_size=config.sft_batch,
            learning_rate=config.sft_learning_rate,
            lr_scheduler_type="constant",
            max_grad_norm=config.max_grad_norm,
            optim=config.optim,
            gradient_checkpointing=config.gradient_checkpointing,
            **side_arguments(config),
        ),
        train_dataset=worked_rows(policy.tokenizer, problems, rows, config),
        data_collator=DataCollatorForSeq2Seq(policy.tokenizer, label_pad_token_id=IGNORED),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    # GRPO's trainer wraps the forward pass itself.
    trainer.accelerator.unwrap_model(policy.model, keep_fp32_wrapper=False)
    with written_whole(file.parent) as beside:
        weights = {name: weight.detach().contiguous().cpu() for name, weight in trained.items()}
        save_file(weights, beside / file.name)
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def worked_rows(
    tokenizer: Any, problems: Sequence[Problem], rows: Sequence[dict], config: Config
) -> list[dict]:
    """For as many problems as the warm-up takes: tokens, and labels on those of the answer."""
    form, prompts = get_format(config.prompt_format), {row["id"]: row["prompt"] for row in rows}
    problems = [problem for problem in problems if problem.id in prompts]
    count = min(len(problems), config.sft_steps * config.sft_batch)
    worked = []
    for problem in sample_problems(problems, count, config.seed):
        prompt = prompts[problem.id]
        asked, answer = chat_text(tokenizer, prompt), form.show(problem)
        turns = [*prompt, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n")
        if not text.startswith(asked):  # a template that writes earlier turns differently
            text = asked + answer + tokenizer.eos_token
        first, ids = tokenizer([asked, text], add_special_tokens=False)["input_ids"]
        labels = [IGNORED] * len(first) + ids[len(first) :]
        longest = config.max_seq_length
        worked.append({"input_ids": ids[:longest], "labels": labels[:longest]})
    return worked


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
