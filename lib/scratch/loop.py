"""The loop around `lib.scratch`: sample, reward, compare, update, keep; and go on after a kill.

    learner = Learner(config, rows, rewards, weights, run)
    learner.train()      # leaves run.adapter, train_log.jsonl, rollouts/ and checkpoints/

The policy is the base model with LoRA (`lib.scratch.lora`); the reference is the same model
without it.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lib.checks import check_fills_a_step, check_resumable, fresh_checkpoints
from lib.config import Config
from lib.engines import VllmEngine
from lib.errors import BadInput
from lib.models import load_tokenizer, lora_targets, model_folder
from lib.output_layer import without_head_copies
from lib.preflight import score
from lib.progress import Progress
from lib.runs import Run, append_jsonl
from lib.sampling import Completion, chat_text
from lib.scratch import Batch, Totals, completion_logps, grpo_loss, sample
from lib.scratch.baselines import ValueHead, loss_config, set_advantages, value_loss
from lib.scratch.checkpoints import (
    keep_adapter,
    last_checkpoint,
    load_checkpoint,
    save_checkpoint,
    step_of,
)
from lib.scratch.lora import add_lora, lora_parameters, without_lora
from lib.scratch.samples import engine_samples, read_completions
from lib.scratch.settings import check_settings
from lib.scratch.steps import describe, describe_rewards, learning_rate, step_rows
from lib.training.rollouts import rollout_row
from lib.training.shared_prompts import completion_scores, why_model_refuses
from lib.training.survival import need_number, survived


class Learner:
    """The policy, its optimizer, and how many optimizer steps it has done.

    Attributes:
        stop_asked: True has it stop when the present batch is done with, with a checkpoint.
        whole: whether no batch is begun and not finished: then a checkpoint can be gone on from.
    """

    stop_asked, whole = False, True

    def __init__(
        self,
        config: Config,
        rows: Sequence[dict],
        rewards: Sequence[Callable],
        weights: Sequence[float],
        run: Run,
        engine: VllmEngine | None = None,
    ):
        """
        Args:
            rows: prompt, answer, id and further columns (`lib.tasks.make_rows`).
            rewards, weights: reward functions in TRL's signature and what each counts.
            engine: samples, several times faster than the policy itself does on a CPU; it is
                handed the policy's weights before each step.

        Raises:
            BadInput: a setting that this loop does not have or that its checkpoints do not fit,
                or fewer rows than a step takes.
        """
        from transformers import AutoModelForCausalLM

        check_settings(config)
        check_fills_a_step(rows, config)
        check_resumable(config, run)
        self.config, self.rows, self.run, self.engine = config, rows, run, engine
        self.rewards, self.weights = rewards, np.array(weights)
        self.base, self.step, self.tokens = model_folder(config), 0, 0
        # fp16 would need its loss scaled: fp32 serves, where bf16 cannot be had.
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.tokenizer = load_tokenizer(self.base)
        self.model = AutoModelForCausalLM.from_pretrained(self.base, dtype=dtype)
        without_head_copies(self.model.to("cpu" if config.profile == "cpu" else "cuda"))
        torch.manual_seed(config.seed)  # LoRA's A is drawn at random
        layers = lora_targets(config)
        add_lora(self.model, config.lora_r, config.lora_alpha, layers, config.lora_dropout)
        self.shares = config.shared_prompts and self._can_share()
        self.value_head = None
        trained = [{"params": lora_parameters(self.model), "lr": config.learning_rate}]
        if config.algorithm == "ppo":
            self.value_head = ValueHead(self.model.config.hidden_size).to(self.model.device)
            head = list(self.value_head.parameters())
            trained.append({"params": head, "lr": config.value_learning_rate})
        self.optimizer = torch.optim.AdamW(trained, weight_decay=config.weight_decay)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]

    def _can_share(self) -> bool:
        """Whether a prompt can be computed once for its group, without any padding.

        Raises:
            BadInput: it cannot, and the algorithm needs it.
        """
        reason = why_model_refuses(self.model, self.config.max_seq_length)
        if reason and self.config.algorithm == "ppo":
            raise BadInput(f"The value head of ppo needs shared_prompts, but {reason}: use rloo.")
        return not reason

    def train(self, watch: Callable[[list[dict]], None] | None = None) -> None:
        """Train, from the run's last checkpoint where `resume` is set; afresh otherwise.

        Args:
            watch: called after each step with the log so far, for a live plot.

        Raises:
            Stopped: as `lib.training.survival.survived`; what was done is kept.
        """
        last = last_checkpoint(self.run) if self.config.resume else None
        if last:
            load_checkpoint(self, last)
            self.whole = True
        else:
            fresh_checkpoints(self.config, self.run)
        with survived(self, self.run):
            self._go_on(watch)
        keep_adapter(self, self.run.adapter)

    def _go_on(self, watch: Callable[[list[dict]], None] | None) -> None:
        config = self.config
        # A resumed run repeats the steps after its checkpoint.
        log = self.run.rewind(self.step)
        self.tokens = log[-1]["num_tokens"] if log else 0
        begun = time.time() - (log[-1]["seconds"] if log else 0)
        progress = Progress(config.max_steps, "training", self.run.progress)
        progress.update(self.step)
        while self.step < config.max_steps and not self.stop_asked:
            before, started = self.step, time.perf_counter()
            torch.manual_seed(config.seed + self.step)  # for dropout: as in a resumed run
            batches, found = self.rollouts()
            found["time/rollouts"] = time.perf_counter() - started
            for _ in range(min(config.num_iterations, config.max_steps - self.step)):
                row = found | self.update(batches)
                row = {"step": self.step, "seconds": time.time() - begun, **row}
                self.run.log_step(row)
                log.append(row)
                progress.update(self.step, f"reward {row['reward']:.2f}")
                if watch:
                    watch(log)
            # Where max_steps ends within a batch there is nothing to go on from.
            self.whole = self.step % config.num_iterations == 0
            due = self.step // config.save_steps > before // config.save_steps
            if due or self.stop_asked:
                self.keep_last_step()
        progress.close()

    @property
    def kept_step(self) -> int | None:
        last = last_checkpoint(self.run)
        return step_of(last) if last else None

    def keep_last_step(self) -> None:
        if self.whole and self.step != (self.kept_step or 0):
            save_checkpoint(self)

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
        if self.engine:
            drawn = engine_samples(
                self.engine, self.model, prompts_NS, prompt_mask_NS, config, self.step
            )
        else:
            drawn = sample(
                *(self.model, prompts_NS, prompt_mask_NS, config.num_generations),
                *(config.max_completion_length, ends, config.temperature, config.seed + self.step),
            )
        tokens_BT, mask_BT, sampled_BT = drawn
        ended_B = torch.isin(tokens_BT, ends).mul(mask_BT).any(1)
        answers = read_completions(self.tokenizer, tokens_BT, mask_BT, ended_B)
        if config.mask_truncated_completions:
            mask_BT = mask_BT * ended_B[:, None]
        batch = Batch(prompts_NS, prompt_mask_NS, tokens_BT, mask_BT, sampled_logps_BT=sampled_BT)
        groups = max(1, config.micro_batch // config.num_generations)  # in one pass
        self.look_back(batch, groups)
        found = self.judge(rows, answers, batch)
        return batch.split(groups), found

    @torch.no_grad()
    def look_back(self, batch: Batch, groups: int) -> None:
        """What the advantages or the loss need of the reference and of the policy so far."""
        parts = batch.split(groups)
        if self.config.beta:
            with without_lora(self.model):
                batch.ref_logps_BT = torch.cat([self.read(part)[0] for part in parts])
        if self.value_head or (self.config.beta and self.config.algorithm != "grpo"):
            read = [self.read(part) for part in parts]
            logps, _, values = zip(*read, strict=True)
            batch.old_logps_BT, batch.old_values_BT = torch.cat(logps), torch.cat(values)

    def judge(
        self, rows: Sequence[dict], answers: Sequence[Completion], batch: Batch
    ) -> dict[str, float]:
        """Reward the completions and set their advantages; writes the rollouts.

        Returns: what is to be logged.
        """
        config, group = self.config, self.config.num_generations
        rows = [row for row in rows for _ in range(group)]
        scores = score(self.rewards, rows, answers)
        totals_B = np.nansum(np.array(list(scores.values())) * self.weights[:, None], axis=0)
        rewards_B = torch.tensor(totals_B, dtype=torch.float32, device=self.model.device)
        set_advantages(batch, rewards_B, config)
        lengths_B = batch.mask_BT.sum(1).clamp(min=1)
        means_B = (batch.advantages_BT * batch.mask_BT).sum(1) / lengths_B
        append_jsonl(
            self.run.rollouts / f"step_{self.step + 1:05d}.jsonl",
            [
                rollout_row(
                    *(self.step + 1, row, answer.text),
                    *({name: values[i] for name, values in scores.items()}, self.weights),
                    *(means_B[i].item(), len(answer.token_ids), answer.finish_reason == "length"),
                )
                for i, (row, answer) in enumerate(zip(rows, answers, strict=True))
            ],
        )
        cut = [answer.finish_reason == "length" for answer in answers]
        return describe_rewards(rewards_B.view(-1, group), scores) | {
            "completions/mean_length": float(np.mean([len(a.token_ids) for a in answers])),
            "completions/clipped_ratio": float(np.mean(cut)),
            "num_tokens": self._count(batch),
        }

    def _count(self, batch: Batch) -> int:
        """Tokens of all prompts (one a completion) and completions so far, as TRL counts them."""
        prompts = int(batch.prompt_mask_NS.sum()) * self.config.num_generations
        self.tokens += prompts + int(batch.mask_BT.sum())
        return self.tokens

    def read(self, batch: Batch, wanted_B: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """logps_BT and entropy_BT of the completions, and values_BT; 0 without a value head.

        Args:
            wanted_B: completions that are False may be left out.
        """
        temperature = self.config.temperature
        texts = (batch.prompts_NS, batch.prompt_mask_NS, batch.tokens_BT, batch.mask_BT)
        if not self.shares:
            logps_BT, entropy_BT = completion_logps(self.model, *texts, temperature)
            return logps_BT, entropy_BT, torch.zeros_like(logps_BT)
        group = self.config.num_generations
        ids_BT, mask_BT = (
            torch.cat([prompts.repeat_interleave(group, 0), completions], 1)
            for prompts, completions in (texts[::2], texts[1::2])
        )
        length = batch.tokens_BT.shape[1]
        return completion_scores(
            *(self.model, ids_BT, mask_BT, length, temperature), wanted_B, self.value_head
        )

    def update(self, batches: Sequence[Batch]) -> dict[str, float]:
        """One optimizer step on the whole step's completions, pass by pass; what to log."""
        config, loss_settings = self.config, loss_config(self.config)
        step = Totals(
            completions=sum(len(batch.mask_BT) for batch in batches),
            tokens=sum(int(batch.mask_BT.sum()) for batch in batches),
            max_tokens=config.max_completion_length,
        )
        self.model.train()
        self.optimizer.zero_grad()
        sums: dict[str, float] = {}
        read = 0  # tokens
        for batch in batches:
            # Without a KL term a completion without advantage moves nothing.
            wanted_B = (batch.advantages_BT != 0).any(1) | bool(loss_settings.beta)
            logps_BT, entropy_BT, values_BT = self.read(batch, wanted_B)
            if batch.old_logps_BT is None:
                # The policy has not moved since it sampled: the ratio begins at exactly 1.
                batch.old_logps_BT = logps_BT.detach()
            seen = describe(logps_BT.detach(), entropy_BT, batch, loss_settings, wanted_B)
            read += int(batch.mask_BT[wanted_B].sum())
            loss = grpo_loss(logps_BT, batch, step, loss_settings)
            seen["loss"] = loss.item()
            if self.value_head:
                off = value_loss(values_BT, batch, step, config.value_clip)
                seen["value_loss"] = off.item()
                loss = loss + off
            need_number("loss", loss.item(), self.step + 1)
            loss.backward()
            for name, total in seen.items():
                sums[name] = sums.get(name, 0.0) + total
        whole = ("loss", "value_loss")
        found = {name: v if name in whole else v / max(read, 1) for name, v in sums.items()}
        return found | self._move()

    def _move(self) -> dict[str, float]:
        """The optimizer's step, and what to log of it."""
        rate, norms = learning_rate(self.config, self.step), []
        for group, initial in zip(self.optimizer.param_groups, self.rates, strict=True):
            clip = torch.nn.utils.clip_grad_norm_(group["params"], self.config.max_grad_norm)
            norms.append(clip.item())
            need_number("gradient", norms[-1], self.step + 1)
            group["lr"] = initial * rate / self.config.learning_rate
        self.whole = False
        self.optimizer.step()
        self.step += 1
        return {"grad_norm": norms[0], "learning_rate": rate}
