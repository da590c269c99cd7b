"""vLLM on the processor, with fewer and larger operations a token.

Decoding with a small model is hundreds of operations of microseconds each. vLLM's CPU backend
computes norms and gates by several of torch's, though it has a kernel for each, and draws tokens
with a random number for every word of the vocabulary, in functions that torch compiles at first
use: that takes a C++ compiler and some seconds in every process.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def lean_settings() -> dict[str, Any]:
    """Tell vLLM of the leaner operations, for this process; the arguments of LLM that choose them.

    Call it before an LLM is made.
    """
    from vllm import ir
    from vllm.model_executor.layers.activation import SiluAndMul
    from vllm.v1.sample import sampler
    from vllm.v1.sample.ops import topk_topp_sampler

    kernels = torch.ops._C

    def plain(x, weight, epsilon, variance_size=None):
        known = variance_size is None and (weight is None or weight.dtype == x.dtype)
        return known and x.is_contiguous()

    def plain_sum(x, x_residual, weight, epsilon, variance_size=None):
        return plain(x, weight, epsilon, variance_size) and x_residual.is_contiguous()

    @ir.ops.rms_norm.register_impl("one_kernel", supports_args=plain)
    def norm(
        x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
    ) -> Tensor:
        out = torch.empty_like(x)
        kernels.rms_norm(out, x, weight, epsilon)
        return out

    @ir.ops.fused_add_rms_norm.register_impl("one_kernel", supports_args=plain_sum, inplace=True)
    def add_and_norm(
        x: Tensor,
        x_residual: Tensor,
        weight: Tensor | None,
        epsilon: float,
        variance_size: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        kernels.fused_add_rms_norm(x, x_residual, weight, epsilon)
        return x, x_residual

    @SiluAndMul.register_oot(name="SiluAndMul")
    class OneKernel(SiluAndMul):
        @staticmethod
        def forward_native(x: Tensor) -> Tensor:
            out = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
            kernels.silu_and_mul(out, x.contiguous())
            return out

    # vLLM compiles both, also where `enforce_eager` is set.
    topk_topp_sampler.compiled_random_sample, sampler.batched_count_greater_than = draw, ranks
    return {"ir_op_priority": {"rms_norm": ["one_kernel"], "fused_add_rms_norm": ["one_kernel"]}}


def draw(logits_BV: Tensor) -> Tensor:
    """A token for each row, [B], from softmax(logits): one uniform number, by the distribution
    function's inverse. It is summed in 64 bit, or its tail would be rounded away."""
    upto_BV = logits_BV.softmax(-1).cumsum(-1, dtype=torch.float64)
    at_B1 = torch.rand(len(upto_BV), 1, dtype=torch.float64) * upto_BV[:, -1:]
    drawn_B1 = torch.searchsorted(upto_BV, at_B1, right=True)
    return drawn_B1[:, 0].clamp(max=upto_BV.shape[1] - 1)  # past the end where nothing is a number


def ranks(logprobs_BV: Tensor, chosen_B1: Tensor) -> Tensor:
    """How many words of the vocabulary are at least as probable as the chosen one, [B]."""
    return (logprobs_BV >= chosen_B1).sum(-1)
