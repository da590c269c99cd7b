"""Out of memory in a training pass: told with its numbers, and tried in smaller parts.

A pass cut into parts gives the same loss and gradient when each part's loss counts for
its share of what the whole pass's loss is a mean over, so the optimizer step stays the
one that was asked for.
"""

import gc
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lib.config import Config
from lib.errors import BadInput
from lib.hardware import GIB, detect_hardware, free_memory
from lib.memory import advice, estimate, settled, shape_of

# "you tried to allocate 8589934592 bytes" (processor), "Tried to allocate 2.00 GiB" (CUDA)
ASKED = re.compile(r"tried to allocate ([\d.]+) ?(bytes|KiB|MiB|GiB)", re.IGNORECASE)
UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": GIB}
# The last is all that oneDNN says where it finds no memory for its kernel.
ON_CPU = ("can't allocate memory", "not enough memory", "could not create a primitive")
# What a pass finds before the policy moves, for further updates from the same rollouts.
FIRST_PASS = ("old_per_token_logps", "apart_from_sampler", "importance_sampling_ratio")
PER_TOKEN_OF_THE_STEP = ("dapo", "cispo", "vespo")  # their parts add up as they are


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: on the GPU, in torch's processor allocator, in Python."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ON_CPU)


def asked_for(error: BaseException) -> str:
    """ "asked for 2.0 GiB", where the error tells how much."""
    found = ASKED.search(str(error))
    if not found:
        return "asked for more"
    return f"asked for {float(found[1]) * UNITS[found[2].lower()] / GIB:.2f} GiB"


def explained(error: BaseException, trainer: Any, config: Config) -> BadInput:
    """What was asked, planned and free when training ran out of memory, and what to change."""
    hardware = detect_hardware(config.gpu_memory_cap)
    shape = shape_of(trainer.model.config.to_dict())
    config = settled(config, shape, hardware)
    need = estimate(config, shape, hardware)
    parts = ", ".join(f"{name} {size:.1f}" for name, size in need.parts.items())
    return BadInput(
        f"Training ran out of memory: it {asked_for(error)} with {free_memory(hardware):.1f} GiB "
        f"free; planned were {need.total:.1f} of {need.available:.1f} GiB ({parts}): try "
        f"{', '.join(advice(config))}."
    )


class SmallerPasses:
    """For TRL's GRPOTrainer: a pass that does not fit is computed in parts, from then on.

    Attributes:
        rows_at_once: completions in one forward and backward; 0 is the whole pass.
        tell: shown the sentence when a pass was cut.
    """

    rows_at_once = 0
    tell: Callable[[str], None] = print

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of a pass whose gradient is computed already; the Trainer's backward adds 0."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        passes = [inputs]
        while True:
            try:
                for batch in passes:
                    loss = self._learn(model, batch)
                break
            except (RuntimeError, MemoryError) as error:
                smaller = self._smaller(len(inputs["completion_ids"]))
                if not (smaller and is_out_of_memory(error)):
                    raise
                reason = asked_for(error)
            # Past the except clause: the error held the failed pass's tensors.
            self.rows_at_once = smaller
            self.tell(
                f"A pass did not fit into memory (it {reason}): from here on {smaller} "
                f"completions at once, and the same optimizer steps."
            )
            # A backward that broke off has left part of its gradient.
            model.zero_grad()
            passes = [*self._earlier_passes(), inputs]
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if self.rows_at_once:
            self._metrics["train"]["memory/rows_at_once"].append(float(self.rows_at_once))
        return loss.requires_grad_()

    def _learn(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        """Forward and backward of a pass, part by part; the whole pass's loss."""
        parts = split_rows(batch, self.rows_at_once or len(batch["completion_ids"]))
        whole = 0.0
        for part in parts:
            loss = super().compute_loss(model, part) * share(part, batch, self.loss_type)
            self._backward(loss)
            whole += loss.detach()
        for name in FIRST_PASS:
            if name in parts[0]:
                batch[name] = torch.cat([part[name] for part in parts])
        return whole

    def _backward(self, loss: torch.Tensor) -> None:
        self.accelerator.backward(loss)

    def _smaller(self, rows: int) -> int:
        """The next smaller part: half the groups, and below one group half its completions.

        0 where there is none: a single completion, or an entropy bonus, whose mean has
        shares of its own.
        """
        if self._entropy_bonus_enabled:
            return 0
        now = min(self.rows_at_once or rows, rows)
        groups = now // self.num_generations
        return groups // 2 * self.num_generations if groups > 1 else now // 2

    def _earlier_passes(self) -> Sequence[dict[str, Any]]:
        """The passes since the last optimizer step."""
        at = self._step % self.args.steps_per_generation
        return self._buffered_inputs[
            at - self._step % self.current_gradient_accumulation_steps : at
        ]


def share(part: dict[str, Any], whole: dict[str, Any], loss_type: str) -> float:
    """What a part's loss counts for in its pass's: by tokens (bnpo), by rows (a mean over
    completions), or 1 where the loss divides by the tokens of the whole step."""
    if loss_type in PER_TOKEN_OF_THE_STEP:
        return 1.0
    if loss_type == "bnpo":
        tokens = whole["completion_mask"].sum().clamp(min=1)
        return (part["completion_mask"].sum() / tokens).item()
    return len(part["completion_ids"]) / len(whole["completion_ids"])


def split_rows(batch: dict[str, Any], size: int) -> list[dict[str, Any]]:
    """A batch cut every `size` rows; what has no rows (a count, None) goes to each part."""

    def cut(value: Any, start: int) -> Any:
        has_rows = isinstance(value, torch.Tensor) and value.dim() > 0
        return value[start : start + size] if has_rows else value

    starts = range(0, len(batch["completion_ids"]), size)
    return [{name: cut(value, start) for name, value in batch.items()} for start in starts]
