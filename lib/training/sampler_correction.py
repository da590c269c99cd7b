"""What is done about a sampler whose probabilities are not quite the trainer's.

vLLM and the trainer round differently, so that completions come from a policy slightly other than
the one that learns from them. Each token's or completion's share of the loss is multiplied by how
much likelier the trainer holds it, within bounds: truncated or masked importance sampling (Yao et
al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"; TRL's
`vllm_importance_sampling_*`).
"""

import torch


def sampling_ratio(
    apart_BC: torch.Tensor, mode: str, low: float | None, high: float | None
) -> torch.Tensor:
    """The factors of the loss: [B, C] by token, [B, 1] by sequence.

    Args:
        apart_BC: log-probs of the trainer less those of the sampler, 0 where there is no token.
        mode: token or sequence, and what becomes of a ratio out of bounds: truncate sets it to the
            bound, mask to 0.
        low, high: the bounds; None for none.
    """
    whole, how = mode.split("_")
    ratio = (apart_BC.sum(-1, keepdim=True) if whole == "sequence" else apart_BC).exp()
    if how == "truncate":
        return ratio.clamp(low, high)
    beyond = torch.zeros_like(ratio, dtype=torch.bool)
    if low is not None:
        beyond |= ratio < low
    if high is not None:
        beyond |= ratio > high
    return ratio.masked_fill(beyond, 0.0)
