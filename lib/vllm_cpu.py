"""vLLM's sampler on the processor, drawing tokens without a compiler.

vLLM draws with a random number for every word of the vocabulary, in functions that torch compiles
at first use, also where `enforce_eager` is set: that takes a C++ compiler and some seconds in every
process, and uncompiled they make a decoding step half as long again.
"""

import torch
from torch import Tensor


def draw_without_compiler() -> None:
    """Replace the two compiled functions, for this process. Call it before an LLM is made."""
    from vllm.v1.sample import sampler
    from vllm.v1.sample.ops import topk_topp_sampler

    topk_topp_sampler.compiled_random_sample, sampler.batched_count_greater_than = draw, ranks


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
