"""Log-probs and entropies of chosen tokens, from hidden states or by the plain forward."""

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

HEAD_ROWS = 128  # tokens whose logits exist at once: [128, V], and never [B, T, V]


class TokenLogps(torch.autograd.Function):
    """log p(target) and the entropy at M places, from hidden states, a few rows at a time.

    The rows are independent, so d log p / d hidden is computed on the way forward and the
    logits are never kept. The output layer itself gets no gradient.
    """

    @staticmethod
    def forward(ctx, hidden_MD, weight_VD, targets_M, temperature):
        logps_M = hidden_MD.new_empty(len(hidden_MD), dtype=torch.float32)
        entropies_M = torch.empty_like(logps_M)
        slopes_MD = torch.empty_like(hidden_MD) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden_MD), HEAD_ROWS):
            part = slice(start, start + HEAD_ROWS)
            targets = targets_M[part, None]
            logits = (hidden_MD[part] @ weight_VD.T).float().div_(temperature)
            normaliser = logits.logsumexp(-1, keepdim=True)
            logps_M[part] = (logits.gather(-1, targets) - normaliser)[:, 0]
            chosen = torch.ones_like(targets, dtype=torch.float32)
            shares = (logits - normaliser).exp_()
            entropies_M[part] = normaliser[:, 0] - torch.linalg.vecdot(shares, logits)
            if slopes_MD is not None:
                toward = shares.neg_().scatter_add_(-1, targets, chosen)
                slopes_MD[part] = toward.to(weight_VD.dtype) @ weight_VD / temperature
        ctx.save_for_backward(slopes_MD)
        ctx.mark_non_differentiable(entropies_M)
        return logps_M, entropies_M

    @staticmethod
    def backward(ctx, grad_M, _):
        (slopes_MD,) = ctx.saved_tensors
        return (grad_M[:, None] * slopes_MD).to(slopes_MD.dtype), None, None, None


def trained_head(hidden_MD: Any, weight_VD: Any, targets_M: Any, temperature: float) -> tuple:
    """As TokenLogps, with a gradient for the output layer and of the entropies, too."""

    def part(hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logps = ((hidden @ weight_VD.T).float() / temperature).log_softmax(-1)
        entropies = -(logps.exp() * logps).sum(-1)  # vecdot would round under autocast
        return logps.gather(-1, targets[:, None])[:, 0], entropies

    pairs = zip(hidden_MD.split(HEAD_ROWS), targets_M.split(HEAD_ROWS), strict=True)
    found = [checkpoint(part, *pair, use_reentrant=False) for pair in pairs]
    logps, entropies = zip(*found, strict=True)
    return torch.cat(logps), torch.cat(entropies)


def plain_logps(
    model: Any,
    ids_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    completion: int,
    temperature: float = 1.0,
    entropy_gradient: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `completion_logps`, by the model's own forward over the batch as it is."""
    kept = dict(logits_to_keep=completion + 1, use_cache=False)
    logits_BCV = model(input_ids=ids_BT, attention_mask=mask_BT, **kept).logits[:, :-1].float()
    all_BCV = (logits_BCV / temperature).log_softmax(-1)
    logps_BC = all_BCV.gather(-1, ids_BT[:, -completion:, None])[..., 0]
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropies_BC = -torch.linalg.vecdot(all_BCV.exp(), all_BCV)
    mask_BC = mask_BT[:, -completion:]
    return logps_BC * mask_BC, entropies_BC * mask_BC
