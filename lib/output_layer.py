"""How a model multiplies its hidden states by its output layer: without copies, and in what width.

The weights stay as they are; what is changed here is the product alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch


def without_head_copies(model: Any) -> None:
    """Keep torch on a CPU from copying the output layer for each sequence of a batch.

    transformers cuts the positions to score out of [B, T, D]. torch takes the product of such a cut
    and a frozen layer for a batch of products, and in 16 bit copies the layer B times for it: 2 GiB
    at Qwen2.5-0.5B's size and B = 8, and 18 s on one core where 0.06 s serve.
    """
    if model.device.type == "cpu":
        model.get_output_embeddings().register_forward_pre_hook(_contiguous)


def _contiguous(_: Any, inputs: tuple) -> tuple:
    return tuple(x.contiguous() for x in inputs)


def widen_head(model: Any) -> None:
    """Have the model compute its logits in 32 bit.

    In bf16 a logit of 20 is rounded to eighths, by the trainer otherwise than by the sampler:
    MiniMax-M1 (arXiv:2506.13585) found training to need this.
    """
    head = model.get_output_embeddings()
    head.wide, head.forward = True, partial(_product, head)


def is_wide(head: Any) -> bool:
    """Whether `widen_head` was asked for the model with this output layer."""
    return getattr(head, "wide", False)


def _product(head: Any, hidden: torch.Tensor) -> torch.Tensor:
    with operands(head, hidden) as both:
        return torch.nn.functional.linear(*both, head.bias)


@contextmanager
def operands(head: Any, hidden: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Hidden states and weights as they are multiplied: of a wide layer in 32 bit, and without
    autocast while it lasts."""
    if is_wide(head):
        with torch.autocast(hidden.device.type, enabled=False):
            yield hidden.float(), head.weight.float()
    else:
        yield hidden, head.weight
