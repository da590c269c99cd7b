"""The loop around `lib.grpo`: sample, reward, compare, update, keep; and go on after a kill.

    learner = Learner(config, rows, rewards, weights, run)
    learner.train()      # leaves run.adapter, train_log.jsonl, rollouts/ and checkpoints/

The policy is the base model with LoRA (`lib.lora`); the reference is the same model without.
"""

import math
import shutil
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lib.checks import check_fills_a_step
from lib.config import Config
from lib.errors import BadInput
from lib.grpo import (
    Batch,
    Totals,
    completion_logps,
    group_advantages,
    grpo_loss,
    k3,
    policy_ratio,
    sample,
)
from lib.grpo_checkpoints import (
    keep_adapter,
    last_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from lib.lora import add_lora, lora_parameters, without_lora
from lib.models import lora_targets, model_folder
from lib.preflight import score
from lib.progress import Progress
from lib.runs import Run, append_jsonl
from lib.sampling import Completion, chat_text

# What this loop does in one way only; the trainer of 03_training does more.
FIXED = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "optim": "adamw_torch",
    "load_in_4bit": False,
    "full_finetuning": False,
}


class Learner:
    """The policy, its optimizer, and how many optimizer steps it has done."""

    def __init__(
        self,
        config: Config,
        rows: Sequence[dict],
        rewards: Sequence[Callable],
        weights: Sequence[float],
        run: Run,
    ):
        """
        Args:
            rows: prompt, answer, id and further columns (`lib.tasks.make_rows`).
            rewards, weights: reward functions in TRL's signature and what each counts.

        Raises:
            BadInput: a setting that this loop does not have, or fewer rows than a step takes.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        check_settings(config, rows)
        self.config, self.rows, self.run = config, rows, run
        self.rewards, self.weights = rewards, np.array(weights)
        self.base, self.step = model_folder(config), 0
        # fp16 would need its loss scaled: fp32 serves, where bf16 cannot be had.
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.tokenizer = AutoTokenizer.from_pretrained(self.base, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(self.base, dtype=dtype)
        self.model.to("cpu" if config.profile == "cpu" else "cuda")
        torch.manual_seed(config.seed)  # LoRA's A is drawn at random
        layers = lora_targets(config)
        add_lora(self.model, config.lora_r, config.lora_alpha, layers, config.lora_dropout)
        self.optimizer = torch.optim.AdamW(
            lora_parameters(self.model),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )

    def train(self, watch: Callable[[list[dict]], None] | None = None) -> None:
        """Train, from the run's last checkpoint where `resume` is set; afresh otherwise.

        Args:
            watch: called after each step with the log so far, for a live plot.
        """
        config = self.config
        last = last_checkpoint(self.run) if config.resume else None
        if last:
            load_checkpoint(self, last)
        else:
            for kept in (self.run.rollouts, self.run.checkpoints):
                shutil.rmtree(kept, ignore_errors=True)
        # A resumed run repeats the steps after its checkpoint.
        log = self.run.rewind(self.step)
        begun = time.time() - (log[-1]["seconds"] if log else 0)
        progress = Progress(config.max_steps, "training", self.run.progress)
        progress.update(self.step)
        while self.step < config.max_steps:
            before = self.step
            batches, found = self.rollouts()
            for _ in range(min(config.num_iterations, config.max_steps - self.step)):
                row = found | self.update(batches)
                row = {"step": self.step, "seconds": time.time() - begun, **row}
                self.run.log_step(row)
                log.append(row)
                progress.update(self.step, f"reward {row['reward']:.2f}")
                if watch:
                    watch(log)
            if self.step // config.save_steps > before // config.save_steps:
                _, epoch = step_rows(self.rows, config, self.step)
                save_checkpoint(self, epoch)
        progress.close()
        keep_adapter(self, self.run.adapter)

    def rollouts(self) -> tuple[list[Batch], dict[str, float]]:
        """A group of completions for each of the step's prompts, rewarded and compared.

        Returns: the step in passes of whole groups, as near to micro_batch as they come, and
            what is to be logged.
        """
        config = self.config
        rows, _ = step_rows(self.rows, config, self.step)
        asked = self.tokenizer(
            [chat_text(self.tokenizer, row["prompt"]) for row in rows],
            return_tensors="pt",
            padding=True,
            add_special_tokens=False,
        ).to(self.model.device)
        prompts_NS, prompt_mask_NS = asked["input_ids"], asked["attention_mask"]
        ends = self.model.generation_config.eos_token_id
        ends = torch.tensor(ends, device=self.model.device)
        self.model.eval()
        tokens_BT, mask_BT, sampled_BT = sample(
            *(self.model, prompts_NS, prompt_mask_NS, config.num_generations),
            *(config.max_completion_length, ends, config.temperature, config.seed + self.step),
        )
        ended_B = torch.isin(tokens_BT, ends).mul(mask_BT).any(1)
        advantages_B, found = self.judge(rows, tokens_BT, mask_BT, ended_B)
        if config.mask_truncated_completions:
            mask_BT = mask_BT * ended_B[:, None]
        groups = max(1, config.micro_batch // config.num_generations)  # in one pass
        size = groups * config.num_generations
        batches = [
            Batch(*parts)
            for parts in zip(
                prompts_NS.split(groups),
                prompt_mask_NS.split(groups),
                tokens_BT.split(size),
                mask_BT.split(size),
                advantages_B.split(size),
                sampled_BT.split(size),
                strict=True,
            )
        ]
        if config.beta:
            with torch.no_grad(), without_lora(self.model):
                for batch in batches:
                    batch.ref_logps_BT, _ = self.logps(batch)
        return batches, found

    def judge(
        self, rows: Sequence[dict], tokens_BT: Tensor, mask_BT: Tensor, ended_B: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """advantages_B, and what is to be logged of the rewards; writes the rollouts."""
        config, group = self.config, self.config.num_generations
        lengths = mask_BT.sum(1).tolist()
        answers = [
            Completion(
                self.tokenizer.decode(ids[:n], skip_special_tokens=True),
                tuple(ids[:n]),
                "stop" if ended else "length",
            )
            for ids, n, ended in zip(tokens_BT.tolist(), lengths, ended_B.tolist(), strict=True)
        ]
        rows = [row for row in rows for _ in range(group)]
        scores = score(self.rewards, rows, answers)
        totals_B = np.nansum(np.array(list(scores.values())) * self.weights[:, None], axis=0)
        rewards_NG = torch.tensor(totals_B, dtype=torch.float32).view(-1, group)
        advantages_B = group_advantages(rewards_NG, config.scale_rewards)
        append_jsonl(
            self.run.rollouts / f"step_{self.step + 1:05d}.jsonl",
            [
                {
                    "step": self.step + 1,
                    "id": row["id"],
                    "answer": row["answer"],
                    "completion": answer.text,
                    "rewards": {name: values[i] for name, values in scores.items()},
                    "advantage": advantages_B[i].item(),
                }
                for i, (row, answer) in enumerate(zip(rows, answers, strict=True))
            ],
        )
        std_N = rewards_NG.std(1)
        found = {"reward": rewards_NG.mean().item(), "reward_std": std_N.mean().item()}
        found |= {f"rewards/{k}/mean": float(np.nanmean(v)) for k, v in scores.items()}
        found["frac_reward_zero_std"] = (std_N < 1e-6).float().mean().item()
        found["completions/mean_length"] = float(np.mean(lengths))
        found["completions/clipped_ratio"] = 1 - ended_B.float().mean().item()
        return advantages_B.to(self.model.device), found

    def logps(self, batch: Batch) -> tuple[Tensor, Tensor]:
        texts = (batch.prompts_NS, batch.prompt_mask_NS, batch.tokens_BT, batch.mask_BT)
        return completion_logps(self.model, *texts, self.config.temperature)

    def update(self, batches: Sequence[Batch]) -> dict[str, float]:
        """One optimizer step on the whole step's completions, pass by pass; what to log."""
        config = self.config
        step = Totals(
            completions=sum(len(batch.mask_BT) for batch in batches),
            tokens=sum(int(batch.mask_BT.sum()) for batch in batches),
            max_tokens=config.max_completion_length,
        )
        self.model.train()
        sums: dict[str, float] = {}
        for batch in batches:
            logps_BT, entropy_BT = self.logps(batch)
            if batch.old_logps_BT is None:
                # The policy has not moved since it sampled: the ratio begins at exactly 1.
                batch.old_logps_BT = logps_BT.detach()
            loss = grpo_loss(logps_BT, batch, step, config)
            loss.backward()
            seen = describe(logps_BT.detach(), entropy_BT, batch, config)
            for name, total in seen.items():
                sums[name] = sums.get(name, 0.0) + total / max(step.tokens, 1)
            sums["loss"] = sums.get("loss", 0.0) + loss.item()
        norm = torch.nn.utils.clip_grad_norm_(lora_parameters(self.model), config.max_grad_norm)
        rate = learning_rate(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return sums | {"grad_norm": norm.item(), "learning_rate": rate}


def check_settings(config: Config, rows: Sequence[dict]) -> None:
    for key, value in FIXED.items():
        if getattr(config, key) != value:
            raise BadInput(
                f"GRPO from scratch knows {key} {value!r} only and the recipe says "
                f"{getattr(config, key)!r}: change it, or train with 03_training."
            )
    check_fills_a_step(rows, config)


def step_rows(rows: Sequence[dict], config: Config, step: int) -> tuple[list[dict], int]:
    """The prompts of an optimizer step, and its epoch, which shuffles them anew."""
    per_epoch = len(rows) // config.prompts_per_step
    epoch, place = divmod(step // config.num_iterations, per_epoch)
    order = np.random.default_rng([config.seed, epoch]).permutation(len(rows))
    start = place * config.prompts_per_step
    return [rows[i] for i in order[start : start + config.prompts_per_step]], epoch


def learning_rate(config: Config, step: int) -> float:
    """The rate of the update after `step` updates, as transformers' schedules have it."""
    kind, warmup = config.lr_scheduler, config.warmup_steps
    if kind == "constant":
        return config.learning_rate
    if step < warmup:
        return config.learning_rate * step / warmup
    done = (step - warmup) / max(1, config.max_steps - warmup)
    shape = {
        "constant_with_warmup": 1.0,
        "linear": 1 - done,
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
    }
    return config.learning_rate * shape[kind]


@torch.no_grad()
def describe(
    logps_BT: Tensor, entropy_BT: Tensor, batch: Batch, config: Config
) -> dict[str, float]:
    """Sums over the tokens of a pass, under the names that TRL gives their means."""
    level = config.importance_sampling_level
    ratio_BT = policy_ratio(logps_BT, batch.old_logps_BT, batch.mask_BT, level)
    low, high = 1 - config.epsilon, 1 + config.epsilon_high
    if config.loss_type == "cispo":
        low, high = 0, config.epsilon_high
    good_B1 = batch.advantages_B[:, None] > 0
    outside_BT = torch.where(good_B1, ratio_BT > high, ratio_BT < low)
    values = {
        "entropy": entropy_BT,
        "clip_ratio/region_mean": outside_BT.float(),
        "sampling/logp_difference/mean": (logps_BT - batch.sampled_logps_BT).abs(),
    }
    if config.beta:
        values["kl"] = k3(logps_BT, batch.ref_logps_BT, batch.mask_BT)
    return {name: (value * batch.mask_BT).sum().item() for name, value in values.items()}
