"""TRL's GRPOTrainer with four changes: whose rollouts, which groups, which tokens, what is kept.

Rollouts come from an engine in this process where there is one, and what it samples otherwise than
the trainer would is corrected (`lib.training.sampler_correction`); groups without signal may be
replaced (`lib.training.dynamic_sampling`); log-probs are computed with each prompt once for its
group and not at all for groups without signal; and every completion goes to the run folder. The
algorithm (rewards, advantages, the losses) is TRL's, untouched.
"""

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from lib.output_layer import is_wide
from lib.runs import Run, append_jsonl
from lib.training.dynamic_sampling import DynamicSampling
from lib.training.oom import SmallerPasses, split_rows
from lib.training.rollouts import rollout_row
from lib.training.sampler_correction import sampling_ratio
from lib.training.shared_prompts import (
    completion_scores,
    shared_attention,
    trainer_is_unsloths,
)
from lib.training.survival import Surviving
from lib.training.token_logps import plain_logps

NO_SIGNAL = 1e-6  # |advantage| up to which a completion moves nothing


def trainer_class() -> type:
    """The class, made late: Unsloth patches TRL while it loads a policy."""
    from trl import GRPOTrainer

    class SuiteTrainer(Surviving, DynamicSampling, SmallerPasses, GRPOTrainer):
        """
        Attributes:
            run: where completions are kept.
            rollouts: the engine that generates; None leaves it to TRL.
            shares_prompts: whether a prompt is computed once for its group.
        """

        run: Run
        rollouts: Any = None
        shares_prompts = False
        _wanted_B = _logps_BC = None
        _old_comes_later = False
        _fresh: dict | None = None  # a batch that nothing was learned from yet

        def _generate_single_turn(self, prompt_ids, *others, **options):
            if self.rollouts is None:
                return super()._generate_single_turn(prompt_ids, *others, **options)
            step = self.state.global_step
            return self.rollouts.generate(self.model, prompt_ids, step, self.turn)

        def _generate_and_score_completions(self, inputs: list[dict]) -> dict:
            started = time.perf_counter()
            # The first pass over a batch finds what the policy thought before it moved.
            every = self.args.steps_per_generation * self.num_iterations
            moves_within = self.args.gradient_accumulation_steps % every != 0
            waits = self.shares_prompts and moves_within and not self.use_vllm
            self._old_comes_later = waits
            batch = super()._generate_and_score_completions(inputs)
            if waits:
                del batch["old_per_token_logps"]
            self.note("time/rollouts", time.perf_counter() - started)
            if self.rollouts is not None:
                self.note("time/hand_over", self.rollouts.hand_over_seconds)
            if trainer_is_unsloths():
                self._note_entropy()
            step = self.state.global_step + 1
            append_jsonl(self.run.rollouts / f"step_{step:05d}.jsonl", self._rows(batch, step))
            return batch

        def _prepare_inputs(self, inputs: Any) -> dict:
            """As TRL's, but unshuffled: a group stays in one pass, where it shares its prompt."""
            if not (self.shares_prompts and self.model.training):
                return super()._prepare_inputs(inputs)
            passes = self.args.steps_per_generation
            if self._step % (passes * self.num_iterations) == 0 or self._buffered_inputs is None:
                batch = self._generate_and_score_completions(inputs)
                rows = len(batch["completion_ids"]) // passes
                self._buffered_inputs = split_rows(batch, rows)
            return self._buffered_inputs[self._step % passes]

        def _compute_loss(self, model: Any, inputs: dict) -> torch.Tensor:
            # A KL term and an entropy bonus move the policy by every completion, and a quantile
            # of entropies is one of all tokens.
            alone = self.beta == 0 and not self._entropy_bonus_enabled
            skips = alone and self.top_entropy_quantile == 1 and self.shares_prompts
            self._wanted_B = inputs["advantages"].abs() > NO_SIGNAL if skips else None
            compares = self.rollouts is not None and not trainer_is_unsloths()
            self._fresh = inputs if compares and "apart_from_sampler" not in inputs else None
            if compares:  # TRL then multiplies its loss by the ratios of `_compare_with_sampler`
                self.use_vllm = self.vllm_importance_sampling_correction
            try:
                loss = super()._compute_loss(model, inputs)
            finally:
                self.use_vllm, self._wanted_B = self.args.use_vllm, None
            if self.shares_prompts and "old_per_token_logps" not in inputs:
                inputs["old_per_token_logps"] = self._logps_BC
            return loss

        def _backward(self, loss: torch.Tensor) -> None:
            """Checkpointing computes again here, and has to attend as forward did."""
            plain = self.accelerator.unwrap_model(self.model)
            with shared_attention(plain) if self.shares_prompts else nullcontext():
                super()._backward(loss)

        def _get_per_token_logps_and_entropies(self, *batch, **options):
            found = self._logps_and_entropies(*batch, **options)
            if self._fresh is not None:
                self._compare_with_sampler(self._fresh, found[0].detach())
                self._fresh = None
            return found

        def _logps_and_entropies(
            self, model, input_ids, attention_mask, logits_to_keep, *others, **options
        ):
            batch = (input_ids, attention_mask, logits_to_keep)
            plain, bonus = self.accelerator.unwrap_model(model), self._entropy_bonus_enabled
            if self._old_comes_later:
                self._old_comes_later = False
                return input_ids.new_zeros(1), None, None
            if not self.shares_prompts:
                # TRL's own way takes the output layer's weights for a Triton kernel: a CPU does not
                # run it, and it would pass over a wide layer.
                if input_ids.is_cuda and not is_wide(plain.get_output_embeddings()):
                    return super()._get_per_token_logps_and_entropies(
                        model, *batch, *others, **options
                    )
                return *plain_logps(plain, *batch, self.temperature, bonus), None
            with self._mixed_precision(plain):
                logps_BC, entropies_BC, _ = completion_scores(
                    plain, *batch, self.temperature, self._wanted_B, entropy_gradient=bonus
                )
            self._logps_BC = logps_BC.detach()
            if self._wanted_B is not None:  # left out of the mean that TRL logs
                mean = _mean(entropies_BC, attention_mask[:, -logits_to_keep:], self._wanted_B)
                entropies_BC[~self._wanted_B] = mean
            return logps_BC, entropies_BC, None

        def _mixed_precision(self, model: Any) -> AbstractContextManager:
            """Products in 16 bit where the weights are kept in 32, as full fine-tuning does."""
            return self.accelerator.autocast() if model.dtype == torch.float32 else nullcontext()

        def _note_entropy(self) -> None:
            """Unsloth's trainer logs none: the mean of -log p over the tokens that vLLM sampled,
            whose expectation it is."""
            _, _, _, _, logps, *_ = self.every.generated
            sampled = [x for some in logps or () for x in some if x is not None and x == x]
            if sampled:
                self.note("entropy", -sum(sampled) / len(sampled))

        def _compare_with_sampler(self, inputs: dict, logps_BC: torch.Tensor) -> None:
            """Log how far the sampler's log-probs lie from the trainer's, which is rounding if all
            is well, and keep what corrects for it. TRL computes a batch anew for that; here the
            first pass that learns from it tells, before the policy has moved."""
            real_BC = inputs["completion_mask"].bool()
            if self._wanted_B is not None:
                real_BC = real_BC & self._wanted_B[:, None]
            apart_BC = (
                inputs.get("old_per_token_logps", logps_BC) - inputs["sampling_per_token_logps"]
            )
            apart_BC = apart_BC.masked_fill(~real_BC, 0.0).nan_to_num(0.0)
            inputs["apart_from_sampler"] = apart_BC
            args, name = self.args, "sampling/sampling_logp_difference/mean"
            self.note(name, apart_BC[real_BC].abs().mean().item())
            if self.vllm_importance_sampling_correction:
                low = args.vllm_importance_sampling_clip_min
                high = args.vllm_importance_sampling_clip_max
                ratio = sampling_ratio(apart_BC, args.vllm_importance_sampling_mode, low, high)
                inputs["importance_sampling_ratio"] = ratio
                name = "sampling/importance_sampling_ratio/mean"
                self.note(name, ratio.expand_as(real_BC)[real_BC].mean().item())

        def note(self, name: str, value: float) -> None:
            """Add a number to the step's log."""
            self._metrics["train" if self.model.training else "eval"][name].append(value)

        def _rows(self, batch: dict, step: int) -> list[dict]:
            """A row a completion just generated; `trained` marks those in the step's batch."""
            every, advantages = self.every, [0.0] * len(self.every.rows)
            for place, group in enumerate(self.chosen):
                first, size = group * every.size, every.size
                own = batch["advantages"][place * size : (place + 1) * size]
                advantages[first : first + size] = own.tolist()
            _, ids, _, completions, *_ = every.generated
            weights, ends = self.reward_weights.tolist(), set(self.eos_token_ids)
            rewards = [
                dict(zip(self.reward_func_names, values, strict=True))
                for values in every.rewards_BR.tolist()
            ]
            return [
                rollout_row(
                    *(step, row, completions[i][-1]["content"], rewards[i], weights),
                    *(advantages[i], len(ids[i]), not ends & set(ids[i])),
                )
                | {"trained": i // every.size in self.chosen}
                for i, row in enumerate(every.rows)
            ]

    return SuiteTrainer


def _mean(values_BC: torch.Tensor, mask_BC: torch.Tensor, rows_B: torch.Tensor) -> torch.Tensor:
    """The mean over the real tokens of the chosen rows; NaN, which TRL leaves out, without any."""
    return values_BC[mask_BC.bool() & rows_B[:, None]].mean()
