"""TRL's GRPOTrainer, used like TRL's: it also trains on a CPU, and computes a prompt once a group.

    trainer = GRPOTrainer(
        model=model, processing_class=tokenizer, reward_funcs=rewards, args=GRPOConfig(…),
        train_dataset=prompts, callbacks=[…],
    )
    trainer.generate_with(engine)  # optional: an object with TRL's `sync_weights` and `generate`
    trainer.train()

Rewards, advantages, the losses, the importance correction and their logs are TRL's. What the suite
adds comes in by public seams: callbacks (`lib.training.callbacks`), `rollout_func` (dynamic
sampling), `vllm_generation` (rollouts by an engine in this process), and the public methods
`train`, `compute_loss` and `log`, each of which calls TRL's.

Private methods overridden, all there are in `lib`:

| method | why | fails when the library changes it |
|---|---|---|
| `_get_per_token_logps_and_entropies` | TRL scores by a Triton kernel, which no CPU runs; and \
here a prompt is computed once for its group | tests/test_logps.py |
| `_prepare_inputs` | TRL shuffles a step's completions over its passes; a group that stays in one \
pass shares its prompt there. Only where prompts are shared | tests/test_logps.py |

Called, not overridden: `_save_checkpoint` (`keep_last_step`), `_generate_single_turn` and
`_tokenize_prompts` (dynamic sampling). Read or set: `_metrics` (`note`), `_logs` (the advantages
that `rollouts/` keeps), `_last_loaded_step`, `_buffered_inputs`, `_step`, `_entropy_bonus_enabled`.
`_ForwardRedirection` has the pass of several processes go through DDP's forward
(tests/test_processes.py).

Unsloth puts a trainer of its own in the place of TRL's when it is imported; import this module
after it, and the class stands on Unsloth's.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import trl
from peft.helpers import disable_input_dtype_casting
from transformers import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint
from trl.models.utils import _ForwardRedirection
from trl.trainer.utils import split_tensor_dict

from lib.files import discard
from lib.stack import is_out_of_memory
from lib.training.logps import completion_scores, plain_logps, why_not_shared

NO_SIGNAL = 1e-6  # |advantage| up to which a completion moves nothing


def clear_left() -> None:
    """Unsloth's rollouts leave the adapter's settings in the working folder."""
    for left in Path().glob("vllm_gen_lora*"):
        discard(left)


class GRPOTrainer(trl.GRPOTrainer):
    shares_prompts: bool  # whether a prompt is computed once for its group; may be set to False
    not_shared: str  # why it cannot be; "" where it can
    is_unsloths: bool  # whether the class stands on Unsloth's trainer
    engine: Any = None  # of `generate_with`; None: the trainer generates by TRL's own ways
    _wanted_B: torch.Tensor | None = None  # rows whose log-probs the loss needs; None: all
    _logps_BC: torch.Tensor | None = None  # of the latest pass

    def __init__(self, *args: Any, **kwargs: Any):
        if trl.GRPOTrainer not in type(self).__mro__:
            raise RuntimeError("Import unsloth before lib.training.GRPOTrainer: it patches TRL.")
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)  # the log callback shows what it would print
        if self.args.use_cpu:  # of several processes: "cpu:0", which torch.load does not know
            vars(self.args)["_setup_devices"] = torch.device("cpu")
        self.is_unsloths = not trl.GRPOTrainer.__module__.startswith("trl.")
        if getattr(self.model, "is_loaded_in_4bit", False) and not self.is_unsloths:
            # TRL takes its adapter to bf16, in which small steps round away, and for whose slopes
            # fp16's scaler has no CUDA kernel: a T4 would fail at the first step.
            for weight in self.model.parameters():
                weight.data = weight.data.float() if weight.requires_grad else weight.data
        if self.is_unsloths:
            self.not_shared = "Unsloth's trainer has a loss of its own"
        elif self.is_fsdp_enabled:
            self.not_shared = "FSDP gathers weights in the model's own forward only"
        elif self.args.gradient_checkpointing:
            self.not_shared = "gradient checkpointing keeps no keys and values of a prompt"
        else:
            self.not_shared = why_not_shared(self.accelerator.unwrap_model(self.model))
        self.shares_prompts = not self.not_shared

    def generate_with(self, engine: Any) -> None:
        """Have this object generate: TRL's `VLLMGeneration` in two methods, `sync_weights()`, for
        when the policy has moved, and `generate(prompts, images, num_generations, profiler)`."""
        self.engine = self.vllm_generation = engine
        self.use_vllm, self._last_loaded_step = True, -1
        engine.trainer = self

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """As TRL's. Callbacks with a context manager `around(trainer)` see a failure; a pass that
        does not fit into memory is tried again at half the micro-batch."""
        with ExitStack() as callbacks:
            if self.is_unsloths:
                callbacks.callback(clear_left)
            for callback in self.callback_handler.callbacks:
                if hasattr(callback, "around"):
                    callbacks.enter_context(callback.around(self))
            while True:
                try:
                    return super().train(resume_from_checkpoint, **kwargs)
                except (RuntimeError, MemoryError) as error:
                    if not (is_out_of_memory(error) and self._halves_micro_batch()):
                        raise
                resume_from_checkpoint = get_last_checkpoint(self.args.output_dir)

    def compute_loss(self, model: Any, inputs: dict, *args: Any, **kwargs: Any) -> torch.Tensor:
        """TRL's. Completions without advantage, which move nothing, are not computed where the
        loss has no other term."""
        # A KL term and an entropy bonus move the policy by every completion, a quantile of
        # entropies is one of all tokens, and of several processes none may be left without a
        # gradient for the others to wait for.
        others = self.beta != 0 or self._entropy_bonus_enabled or self.top_entropy_quantile < 1
        alone = self.accelerator.num_processes == 1
        if self.shares_prompts and model.training and alone and not others:
            self._wanted_B = inputs["advantages"].abs() > NO_SIGNAL
        try:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            wanted_B, self._wanted_B = self._wanted_B, None
        self._note_sampler(inputs, wanted_B)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's, with what callbacks add (`metrics()`), so that it reaches every tracker."""
        if self.model.training:
            for callback in self.callback_handler.callbacks:
                for name, value in getattr(callback, "metrics", dict)().items():
                    self.note(name, value)
            if self.engine is not None:
                self.note("time/hand_over", self.engine.hand_over_seconds)
        super().log(logs, start_time)

    def note(self, name: str, value: float) -> None:
        """Put a number into the step's log, in place of what it has under this name."""
        self._metrics["train"][name] = [value]

    def keep_last_step(self) -> None:
        """Write a checkpoint of the last step that was done; `on_save` follows, as in training."""
        self._save_checkpoint(self.model, None)
        self.callback_handler.on_save(self.args, self.state, self.control)

    def _prepare_inputs(self, generation_batch: Any) -> dict:
        """As TRL's, but unshuffled: a group stays in one pass, where it shares its prompt."""
        if not (self.shares_prompts and self.model.training):
            return super()._prepare_inputs(generation_batch)
        passes = self.args.steps_per_generation
        if self._step % (passes * self.num_iterations) == 0 or self._buffered_inputs is None:
            batch = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = split_tensor_dict(batch, passes)
        return self._buffered_inputs[self._step % passes]

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, *others, **options
    ):
        plain = self.accelerator.unwrap_model(model)
        widened = hasattr(plain.get_output_embeddings(), "wide")
        if input_ids.is_cuda and not (self.shares_prompts or widened):
            kernels = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, *others, **options
            )
            if kernels[0] is not None:  # Unsloth's trainer makes its own in the loss
                self._logps_BC = kernels[0].detach()
            return kernels
        size, bonus = batch_size or len(input_ids), self._entropy_bonus_enabled
        settings = (logits_to_keep, self.temperature, bonus)

        def scores(plain: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
            pairs = zip(input_ids.split(size), attention_mask.split(size), strict=True)
            if self.shares_prompts:
                return [completion_scores(plain, *p, *settings, self._wanted_B) for p in pairs]
            return [plain_logps(plain, *pair, *settings) for pair in pairs]

        # peft would take the input of every adapter to 32 bit and back; autocast does it better.
        mixed = self.shares_prompts and (self.args.bf16 or self.args.fp16)
        with self.accelerator.autocast(), disable_input_dtype_casting(plain, mixed):
            if model is plain or not torch.is_grad_enabled():
                parts = scores(plain)
            else:  # by the wrapper's forward, or DDP would not average the gradients
                parts = _ForwardRedirection()(model, plain, scores, plain)
        logps_BC, entropies_BC = (torch.cat(some) for some in zip(*parts, strict=True))
        self._logps_BC = logps_BC.detach()
        if self._wanted_B is not None:  # left out of the mean that TRL logs
            real_BC = attention_mask[:, -logits_to_keep:].bool() & self._wanted_B[:, None]
            entropies_BC[~self._wanted_B] = entropies_BC[real_BC].mean()  # NaN without any
        return logps_BC, entropies_BC, None

    def _note_sampler(self, inputs: dict, wanted_B: torch.Tensor | None) -> None:
        """Where TRL does not: how far the sampler's log-probs lie from the trainer's, on the first
        update from a batch; and on Unsloth's trainer the entropy, -log p of the sampled tokens."""
        sampled_BC = inputs.get("sampling_per_token_logps")
        if sampled_BC is None or not self.model.training:
            return
        real_BC = inputs["completion_mask"].bool() & sampled_BC.isfinite()
        if self.is_unsloths:
            self.note("entropy", -sampled_BC[real_BC].mean().item())
        elif self._logps_BC is not None and not (
            self.vllm_importance_sampling_correction or "compared" in inputs
        ):
            if wanted_B is not None:
                real_BC &= wanted_B[:, None]
            apart = (self._logps_BC - sampled_BC)[real_BC].abs().mean().item()
            self._metrics["train"]["sampling/sampling_logp_difference/mean"].append(apart)
            inputs["compared"] = torch.tensor(1.0)

    def _halves_micro_batch(self) -> bool:
        """From here on the same optimizer steps in twice the passes; False where that is not
        possible. An entropy bonus and bnpo are means over a pass, which another pass changes."""
        args, step = self.args, self.state.global_step
        alone = self.accelerator.num_processes == 1
        if args.per_device_train_batch_size % 2 or self.loss_type == "bnpo" or not alone:
            return False
        keepers = [c for c in self.callback_handler.callbacks if hasattr(c, "keep_last_step")]
        if step:
            (keepers or [self])[0].keep_last_step()
        if self._entropy_bonus_enabled or (step and not get_last_checkpoint(args.output_dir)):
            return False
        args.per_device_train_batch_size //= 2
        args.gradient_accumulation_steps *= 2
        args.steps_per_generation *= 2
        self._train_batch_size = args.train_batch_size
        print(
            f"A pass did not fit into memory: from here on micro_batch is "
            f"{args.per_device_train_batch_size}, and the optimizer steps are the same."
        )
        self.accelerator.free_memory()
        self.model_wrapped = self.model
        self.optimizer = self.lr_scheduler = self._buffered_inputs = None
        self._step, self._last_loaded_step = 0, -1
        self.model.zero_grad()
        return True
