"""The loop around `lib.scratch`: sample, reward, compare, update, save; and resume after a kill.

    learner = Learner(config, rows, rewards, weights, run)
    learner.train()      # leaves run.adapter, train_log.jsonl, rollouts/ and checkpoints/

The policy is the base model with LoRA (`lib.scratch.lora`); the reference is the same model
without it. What a step draws depends on the seed and the step alone, so a checkpoint is little:

    checkpoints/lora_epoch{N}_step{S}/adapter_model.safetensors   as peft reads it
                                      optimizer.safetensors       Adam's two moments and count
                                      value_head.safetensors      PPO's
                                      state.json                  step and epoch
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import lib.scratch as grpo
from lib.config import Config, Keys
from lib.engines import Completion, VllmEngine, chat_text, training_sampling
from lib.errors import BadInput
from lib.files import append_jsonl, discard, read_json, write_json, written_whole
from lib.keys import PEFT, TRL
from lib.models import load_tokenizer, lora_targets, model_folder, without_head_copies
from lib.process import Progress
from lib.rewards import score, totals
from lib.runs import Run
from lib.scratch import Batch, lora
from lib.tasks import fitting_rows
from lib.training import check_fills_a_step, check_resumable, fresh_checkpoints
from lib.training.rollouts import prompt_order, reward_log, rollout_row
from lib.training.survival import need_number, survived

CHECKPOINTS, KEPT = "lora_epoch*_step*", 2  # their names, and how many stay
LOSSES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo")
# What this loop does in one way only; the trainer of 03_training does more.
READ = {
    *("beta", "epsilon", "epsilon_high", "importance_sampling_level", "learning_rate", "loss_type"),
    *("lora_alpha", "lora_dropout", "lr_scheduler_type", "mask_truncated_completions", "max_steps"),
    *("max_completion_length", "max_grad_norm", "num_generations", "num_iterations", "r", "seed"),
    *("per_device_train_batch_size", "save_steps", "scale_rewards", "target_modules"),
    *("temperature", "warmup_steps", "weight_decay"),
}
# What changes nothing of what is learned.
HARMLESS = ("gradient_checkpointing", "vllm_", "save_", "log", "dataloader_", "disable_tqdm")
NOT_DONE = ("load_in_4bit", "full_finetuning", "resample", "drop_dead", "curriculum", "sft_steps")


class Learner:
    """The policy, its optimizer, and how many optimizer steps it has done.

    Args:
        rows: as of `lib.tasks.make_rows`.
        rewards, weights: reward functions in TRL's signature and the weight of each.
        engine: samples, several times faster on a CPU than the policy itself, by its weights.

    BadInput: a setting that this loop does not have or that its checkpoints do not fit, or fewer
    rows than a step takes.
    """

    stop_asked = ""  # why it is to stop, with a checkpoint, once the present batch is done
    between_batches = True  # no batch is half used: a checkpoint can be resumed from

    def __init__(
        self,
        config: Config,
        rows: Sequence[dict],
        rewards: Sequence[Callable],
        weights: Sequence[float],
        run: Run,
        engine: VllmEngine | None = None,
    ):
        from transformers import AutoModelForCausalLM, get_scheduler

        check_settings(config)
        check_resumable(config, run)
        self.config, self.run, self.engine = config, run, engine
        self.rewards, self.weights = rewards, list(weights)
        self.base, self.step, self.tokens = model_folder(config), 0, 0
        # fp16 would need its loss scaled; where there is no bf16, fp32 serves.
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.tokenizer = load_tokenizer(self.base)
        self.rows, note = fitting_rows(rows, self.tokenizer, config)
        check_fills_a_step(self.rows, config)
        print(note, end="\n" * bool(note))
        self.model = AutoModelForCausalLM.from_pretrained(self.base, dtype=dtype)
        without_head_copies(self.model.to("cpu" if config.profile == "cpu" else "cuda"))
        torch.manual_seed(config.seed)  # LoRA's A is drawn at random
        settings = (config.r, config.lora_alpha, lora_targets(config), config.lora_dropout)
        lora.add_lora(self.model, *settings)
        groups = [{"params": lora.lora_parameters(self.model), "lr": config.learning_rate}]
        self.value_head = None
        if config.algorithm == "ppo":
            self.value_head = grpo.ValueHead(self.model.config.hidden_size).to(self.model.device)
            head = list(self.value_head.parameters())
            groups.append({"params": head, "lr": config.value_learning_rate})
        self.optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        limits = (config.warmup_steps, config.max_steps)
        schedule = get_scheduler(config.lr_scheduler_type, self.optimizer, *limits)
        self.share_of_rate = schedule.lr_lambdas[0]  # of the update after that many

    def train(self, watch: Callable[[list[dict]], None] | None = None) -> None:
        """Train, from the run's last checkpoint where `resume` is set; afresh otherwise. `watch` is
        called after each step with the log so far. Raises Stopped as `survived`."""
        if self.config.resume and (kept := self.run.kept(CHECKPOINTS)):
            self.load_checkpoint(kept[-1])
        else:
            fresh_checkpoints(self.config, self.run)
        with survived(self, self.run):
            progress = Progress(self.config.max_steps, "training", self.run.progress)
            progress.update(self.step)
            for log in self.steps():
                progress.update(self.step, f"reward {log[-1]['reward']:.2f}")
                if watch:
                    watch(log)
            progress.close()
        with self.run.new_adapter() as folder:
            self.save_adapter(folder)

    def steps(self) -> Iterator[list[dict]]:
        """Do the steps that are left; yields the log after each."""
        config = self.config
        log = self.run.rewind(self.step)  # a resumed run repeats the steps after its checkpoint
        self.tokens = log[-1]["num_tokens"] if log else 0
        begun = time.time() - (log[-1]["seconds"] if log else 0)
        while self.step < config.max_steps and not self.stop_asked:
            before, started = self.step, time.perf_counter()
            torch.manual_seed(config.seed + self.step)  # for dropout: as in a resumed run
            batches, metrics = self.rollouts()
            metrics["time/rollouts"] = time.perf_counter() - started
            for _ in range(min(config.num_iterations, config.max_steps - self.step)):
                row = metrics | self.update(batches)
                row = {"step": self.step, "seconds": time.time() - begun, **row}
                append_jsonl(self.run.train_log, [row])
                log.append(row)
                yield log
            # Where max_steps ends within a batch there is nothing to resume from.
            self.between_batches = self.step % config.num_iterations == 0
            due = self.step // config.save_steps > before // config.save_steps
            if due or self.stop_asked:
                self.keep_last_step()

    # --- rollouts ---------------------------------------------------------------------------

    def rollouts(self) -> tuple[list[Batch], dict[str, float]]:
        """The step's completions with rewards and advantages, in passes of whole groups, as near to
        per_device_train_batch_size as they come; and what is to be logged."""
        config = self.config
        rows, _ = step_rows(self.rows, config, self.step)
        batch, completions = self.sample(rows)
        groups = max(1, config.per_device_train_batch_size // config.num_generations)  # in one pass
        self.score_old_policies(batch, groups)
        metrics = self.reward(rows, completions, batch)  # sets advantages: before the split
        return batch.split(groups), metrics

    def sample(self, rows: Sequence[dict]) -> tuple[Batch, list[Completion]]:
        """A group of completions of each row's prompt."""
        config, device = self.config, self.model.eval().device
        texts = [chat_text(self.tokenizer, row["prompt"]) for row in rows]
        padded = dict(return_tensors="pt", padding=True, add_special_tokens=False)
        inputs = self.tokenizer(texts, **padded).to(device)
        prompts = (inputs["input_ids"], inputs["attention_mask"])
        ends = torch.tensor(self.model.generation_config.eos_token_id, device=device)
        if self.engine:
            self.engine.hand_over(lora.live_weights(self.model))
            drawn = engine_samples(self.engine, *prompts, config, self.step)
        else:
            limits = (config.num_generations, config.max_completion_length)
            seed = config.seed + self.step
            drawn = grpo.sample(self.model, *prompts, *limits, ends, config.temperature, seed)
        tokens_BT, mask_BT, logps_BT = drawn
        ended_B = torch.isin(tokens_BT, ends).mul(mask_BT).any(1)
        written = zip(tokens_BT.tolist(), mask_BT.sum(1).tolist(), ended_B.tolist(), strict=True)
        completions = []
        for ids, length, ended in written:
            text = self.tokenizer.decode(ids[:length], skip_special_tokens=True)
            reason = "stop" if ended else "length"
            completions.append(Completion(text, tuple(ids[:length]), reason))
        if config.mask_truncated_completions:
            mask_BT = mask_BT * ended_B[:, None]
        return Batch(*prompts, tokens_BT, mask_BT, sampled_logps_BT=logps_BT), completions

    @torch.no_grad()
    def score_old_policies(self, batch: Batch, groups: int) -> None:
        """What advantages or loss need of the reference, and of the policy before its update."""
        parts = batch.split(groups)
        if self.config.beta:
            with lora.without_lora(self.model):
                batch.ref_logps_BT = torch.cat([self.logps(part)[0] for part in parts])
        if self.value_head or (self.config.beta and self.config.algorithm != "grpo"):
            logps, _, values = zip(*(self.logps(part) for part in parts), strict=True)
            batch.old_logps_BT = torch.cat(logps)
            batch.old_values_BT = torch.cat(values) if self.value_head else None

    def reward(
        self, rows: Sequence[dict], completions: Sequence[Completion], batch: Batch
    ) -> dict[str, float]:
        """Reward the completions and set their advantages; writes `rollouts/`. What to log."""
        group, step = self.config.num_generations, self.step + 1
        rows = [row for row in rows for _ in range(group)]
        scores = score(self.rewards, rows, completions)
        totals_B = totals(scores, self.weights)
        rewards_B = torch.tensor(totals_B, dtype=torch.float32, device=self.model.device)
        grpo.set_advantages(batch, rewards_B, self.config)
        lengths_B = batch.mask_BT.sum(1).clamp(min=1)
        means_B = ((batch.advantages_BT * batch.mask_BT).sum(1) / lengths_B).tolist()
        records = []
        for i, (row, completion) in enumerate(zip(rows, completions, strict=True)):
            paid = {name: None if np.isnan(v[i]) else v[i] for name, v in scores.items()}
            said = dict(advantage=means_B[i], tokens=len(completion.token_ids))
            said |= dict(truncated=completion.finish_reason == "length")
            records.append(rollout_row(step, row, completion.text, paid, self.weights, **said))
        append_jsonl(self.run.rollouts / f"step_{step:05d}.jsonl", records)
        # As TRL counts: each completion with its prompt.
        self.tokens += int(batch.prompt_mask_NS.sum()) * group + int(batch.mask_BT.sum())
        std_N = rewards_B.view(-1, group).std(1)
        return {  # under TRL's names
            **reward_log(totals_B, [row["rewards"] for row in records]),
            "frac_reward_zero_std": (std_N < 1e-6).float().mean().item(),
            "completions/mean_length": float(np.mean([row["tokens"] for row in records])),
            "completions/clipped_ratio": float(np.mean([row["truncated"] for row in records])),
            "num_tokens": self.tokens,
        }

    # --- updates ----------------------------------------------------------------------------

    def logps(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """logps_BT and entropy_BT of the completions, and values_BT with a value head."""
        texts = (batch.prompts_NS, batch.prompt_mask_NS, batch.tokens_BT, batch.mask_BT)
        return grpo.completion_logps(self.model, *texts, self.config.temperature, self.value_head)

    def update(self, batches: Sequence[Batch]) -> dict[str, float]:
        """One optimizer step on the whole step's completions, pass by pass; what to log."""
        config, tokens = grpo.loss_config(self.config), 0
        step = grpo.Totals(
            completions=sum(len(batch.mask_BT) for batch in batches),
            tokens=sum(int(batch.mask_BT.sum()) for batch in batches),
            max_tokens=config.max_completion_length,
        )
        self.model.train()
        self.optimizer.zero_grad()
        losses, sums = {"loss": 0.0}, {}
        for batch in batches:
            # Without a KL term a completion without advantage moves nothing.
            if not (config.beta or batch.advantages_BT.any()):
                continue
            logps_BT, entropy_BT, values_BT = self.logps(batch)
            if batch.old_logps_BT is None:  # not moved since it sampled: the ratio begins at 1
                batch.old_logps_BT = logps_BT.detach()
            loss = grpo.grpo_loss(logps_BT, batch, step, config)
            losses["loss"] += loss.item()
            if self.value_head:
                off = grpo.value_loss(values_BT, batch, step, config.value_clip)
                losses["value_loss"] = losses.get("value_loss", 0.0) + off.item()
                loss = loss + off
            need_number("loss", loss.item(), self.step + 1)
            loss.backward()
            tokens += int(batch.mask_BT.sum())
            for name, value in grpo.describe(logps_BT.detach(), entropy_BT, batch, config).items():
                sums[name] = sums.get(name, 0.0) + value
        means = {name: value / max(tokens, 1) for name, value in sums.items()}
        return losses | means | self.move()

    def move(self) -> dict[str, float]:
        """The optimizer's step, and what to log of it."""
        share, norms = self.share_of_rate(self.step), []
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            norm = torch.nn.utils.clip_grad_norm_(group["params"], self.config.max_grad_norm)
            norms.append(float(norm))
            need_number("gradient", norms[-1], self.step + 1)
            group["lr"] = rate * share
        self.between_batches = False
        self.optimizer.step()
        self.step += 1
        return {"grad_norm": norms[0], "learning_rate": self.rates[0] * share}

    # --- checkpoints ------------------------------------------------------------------------

    def keep_last_step(self) -> None:
        """Write a checkpoint, where one can be resumed from; those but the latest two go."""
        if not self.between_batches or self.step == self.run.kept_step():
            return
        _, epoch = step_rows(self.rows, self.config, self.step)
        state = {
            f"{i}.{key}": value
            for i, entry in self.optimizer.state_dict()["state"].items()
            for key, value in entry.items()
        }
        with written_whole(self.run.checkpoints / f"lora_epoch{epoch}_step{self.step}") as folder:
            self.save_adapter(folder)
            save_file(state, folder / "optimizer.safetensors")
            if self.value_head:
                save_file(self.value_head.state_dict(), folder / "value_head.safetensors")
            write_json(folder / "state.json", {"step": self.step, "epoch": epoch})
        for old in self.run.kept(CHECKPOINTS)[:-KEPT]:
            discard(old)

    def save_adapter(self, folder: Path) -> None:
        lora.save_lora(self.model, folder, str(self.base))
        self.tokenizer.save_pretrained(folder)

    def load_checkpoint(self, folder: Path) -> None:
        """Restore adapter, optimizer and step."""
        lora.load_lora(self.model, folder)
        if self.value_head:
            self.value_head.load_state_dict(load_file(folder / "value_head.safetensors"))
        state: dict[int, dict] = {}
        for name, value in load_file(folder / "optimizer.safetensors").items():
            i, key = name.split(".")
            state.setdefault(int(i), {})[key] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        self.step, self.between_batches = read_json(folder / "state.json")["step"], True


def check_settings(config: Config) -> None:
    """Raises BadInput where the recipe asks for what this loop does not do."""
    libraries = (TRL.keys() | PEFT.keys()) - Keys.model_fields.keys() - READ
    for key, value in config.given().items():
        default = Config.model_fields[key].default
        known = repr(default)
        if key == "loss_type":
            known, unknown = f"of {', '.join(LOSSES)}", value not in LOSSES
        else:
            library = key in libraries and not key.startswith(HARMLESS)
            unknown = (key in NOT_DONE or library) and value != default
        if unknown:
            raise BadInput(
                f"GRPO from scratch knows {key} {known} only and the recipe says {value!r}: set "
                f"it to that, or train with 03_training.",
                key="not-from-scratch",
            )


def step_rows(rows: Sequence[dict], config: Config, step: int) -> tuple[list[dict], int]:
    """The prompts of an optimizer step, as 03 asks them, and its epoch."""
    batch, count = step // config.num_iterations, config.prompts_per_step
    places = prompt_order(len(rows), config)[batch * count : (batch + 1) * count]
    return [rows[i] for i in places], batch // (len(rows) // count)


def engine_samples(
    engine: VllmEngine, prompts_NS: Tensor, prompt_mask_NS: Tensor, config: Config, step: int
) -> list[Tensor]:
    """As `lib.scratch.sample`, by an engine that has the policy's weights."""
    sampling = replace(training_sampling(config, config.num_generations, step), logprobs=True)
    pairs = zip(prompts_NS, prompt_mask_NS, strict=True)
    groups = engine.generate([ids[mask.bool()].tolist() for ids, mask in pairs], sampling)
    rows = [(c.token_ids, [1] * len(c.token_ids), c.logprobs) for group in groups for c in group]
    return [  # padded with 0, which the mask leaves out
        pad_sequence([torch.tensor(row, device=prompts_NS.device) for row in part], True)
        for part in zip(*rows, strict=True)
    ]
