"""Log-probs and entropies of chosen tokens, from hidden states or by the plain forward."""

from typing import Any

import torch
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

# Tokens whose logits exist at once, and never [B, T, V]: in the model's precision, where few would
# mean reading the output layer often; in 32 bit; and there on a CPU, as many as its cache holds.
HEAD_ROWS, FLOAT_ROWS, CACHED_ROWS = 512, 128, 4


def logps_of(
    logits_V: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    entropy_gradient: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log p(target) with its gradient, the entropy, and the distribution itself, shares_V.

    Args:
        logits_V, targets: of one shape, but for the vocabulary.
    """
    scaled_V = logits_V if temperature == 1 else logits_V.float() / temperature
    logps_V = scaled_V.log_softmax(-1, dtype=torch.float32)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        shares_V = logps_V.exp()
        entropies = -(shares_V * logps_V).sum(-1)  # vecdot would round under autocast
    return logps_V.gather(-1, targets[..., None])[..., 0], entropies, shares_V


class TokenLogps(torch.autograd.Function):
    """log p(target) and the entropy at M places, from hidden states, a few rows at a time.

    The rows are independent, so d log p / d hidden is computed on the way forward and the
    logits are never kept. The output layer itself gets no gradient.
    """

    @staticmethod
    def forward(ctx, hidden_MD, weight_VD, targets_M, temperature):
        logps_M = hidden_MD.new_empty(len(hidden_MD), dtype=torch.float32)
        entropies_M = torch.empty_like(logps_M)
        learns = ctx.needs_input_grad[0]
        slopes_MD = torch.empty_like(hidden_MD) if learns else None
        for start in range(0, len(hidden_MD), HEAD_ROWS):
            part = slice(start, start + HEAD_ROWS)
            scores = hidden_MD[part] @ weight_VD.T
            found = _score(scores, targets_M[part], temperature, to_slopes=learns)
            logps_M[part], entropies_M[part] = found
            if learns:
                slopes_MD[part] = scores @ weight_VD / -temperature
        ctx.save_for_backward(slopes_MD)
        ctx.mark_non_differentiable(entropies_M)
        return logps_M, entropies_M

    @staticmethod
    def backward(ctx, grad_M, _):
        (slopes_MD,) = ctx.saved_tensors
        return (grad_M[:, None] * slopes_MD).to(slopes_MD.dtype), None, None, None


def _score(
    logits: torch.Tensor, targets: torch.Tensor, temperature: float, to_slopes: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(target) and the entropy of each row. With `to_slopes` the logits [M, V] turn, in their
    place, into -temperature · d log p / d logits: each token's share, less one at the target."""
    rows = FLOAT_ROWS if logits.is_cuda else CACHED_ROWS
    found = []
    for some, wanted in zip(logits.split(rows), targets.split(rows), strict=True):
        logps, entropies, shares = logps_of(some, wanted, temperature)
        if to_slopes:
            # In 32 bit: near certainty little is left of the target's.
            shares[range(len(wanted)), wanted] -= 1
            some.copy_(shares)
        found.append((logps, entropies))
    logps, entropies = zip(*found, strict=True)
    return torch.cat(logps), torch.cat(entropies)


def trained_head(hidden_MD: Any, weight_VD: Any, targets_M: Any, temperature: float) -> tuple:
    """As TokenLogps, with a gradient for the output layer and of the entropies, too."""

    def part(hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return logps_of(hidden @ weight_VD.T, targets, temperature, entropy_gradient=True)[:2]

    pairs = zip(hidden_MD.split(FLOAT_ROWS), targets_M.split(FLOAT_ROWS), strict=True)
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
    """Log-probs and entropies as of `completion_scores`, by the model's own forward over the batch.

    Columns that are padding in every row are left out. The logits of the completions' tokens
    exist all at once, [B, C, V], since a model may do to them what only its forward knows.
    """
    used_T = mask_BT.any(0)
    used_T[-completion] = True  # one column at least
    ids_BT, mask_BT = ids_BT[:, used_T], mask_BT[:, used_T]
    left_out = int((~used_T[-completion:]).sum())
    kept = completion - left_out
    settings = dict(logits_to_keep=kept + 1, use_cache=False)
    logits_BCV = model(input_ids=ids_BT, attention_mask=mask_BT, **settings).logits[:, :-1]
    found = logps_of(logits_BCV, ids_BT[:, -kept:], temperature, entropy_gradient)[:2]
    logps_BC, entropies_BC = (pad(x_BC * mask_BT[:, -kept:], (0, left_out)) for x_BC in found)
    return logps_BC, entropies_BC
