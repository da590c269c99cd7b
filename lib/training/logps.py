"""Log-probs of a batch's completions, with each prompt computed once for its whole group.

The G completions of a group begin with the same prompt, which an ordinary batch computes G times,
forward and backward. Here the model reads each prompt once, and all its completions read on from
its keys and values (transformers' cache), with gradients through both: the same numbers from a
part of the tokens. `plain_logps` is the ordinary way, for models that keep no such cache.

Shapes: B completions, T tokens of prompt and completion, C of the longest completion, K of the B
rows are computed, M tokens are scored, D hidden size, V tokens in the vocabulary.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

ROWS = 512  # tokens whose logits [ROWS, V] exist at once
SAME = 0.1  # nats a token, between two ways to compute the same in 16 bit


def completion_scores(
    model: Any,
    ids_BT: Tensor,
    mask_BT: Tensor,
    completion: int,
    temperature: float = 1.0,
    entropy_gradient: bool = False,
    wanted_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What the model says to every completion token.

    Args:
        model: a causal language model of transformers, or peft around one.
        ids_BT, mask_BT: left-padded prompts, then right-padded completions (the last C columns).
        entropy_gradient: whether the entropies have a gradient, as a bonus for them needs.
        wanted_B: rows that are False are not computed and stay 0.

    Returns: logps_BC with their gradient, and entropies_BC where each token was chosen, in nats; 0
        where masked.
    """
    logps_BC = torch.zeros(len(ids_BT), completion, device=ids_BT.device)
    entropies_BC = torch.zeros_like(logps_BC)
    real_BC = mask_BT[:, -completion:].bool()
    if wanted_B is not None:
        real_BC = real_BC & wanted_B[:, None]
    rows_K = real_BC.any(1).nonzero()[:, 0]
    if not len(rows_K):
        return logps_BC.requires_grad_(), entropies_BC
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    real_KC, ids_KT = real_BC[rows_K], ids_BT[rows_K]
    hidden_MD = _hidden(causal.base_model, ids_KT, mask_BT[rows_K], completion, real_KC)
    targets_M = ids_KT[:, -completion:][real_KC]

    def part(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = causal.get_output_embeddings()(hidden)
        return logps_of(logits, targets, temperature, entropy_gradient)

    if torch.is_grad_enabled():  # the logits are not kept for the backward, which makes them anew
        part = partial(checkpoint, part, use_reentrant=False, preserve_rng_state=False)
    parts = zip(hidden_MD.split(ROWS), targets_M.split(ROWS), strict=True)
    logps_M, entropies_M = map(torch.cat, zip(*(part(*rows) for rows in parts), strict=True))
    places = real_BC.nonzero(as_tuple=True)
    return logps_BC.index_put(places, logps_M), entropies_BC.index_put(places, entropies_M)


def _hidden(base: Any, ids_KT: Tensor, mask_KT: Tensor, completion: int, real_KC: Tensor) -> Tensor:
    """hidden_MD: the last hidden state before each real completion token, prompts read once."""
    prompt_ids, prompt_mask = ids_KT[:, :-completion], mask_KT[:, :-completion]
    prompts_NS, group_K = torch.unique(
        prompt_ids.masked_fill(prompt_mask == 0, -1), dim=0, return_inverse=True
    )
    prompts_NS = prompts_NS[:, (prompts_NS >= 0).any(0)]
    prompt_mask_NS = (prompts_NS >= 0).long()
    prompt = read_prompts(base, prompts_NS.clamp(min=0), prompt_mask_NS)
    hidden_KCD = prompt.last_hidden_state[group_K, -1:]
    longest = int(real_KC.sum(1).max())
    if longest > 1:  # a completion's last token predicts nothing
        prompt.past_key_values.batch_select_indices(group_K)
        answers = ids_KT[:, -completion:][:, : longest - 1], real_KC[:, : longest - 1].long()
        later = read_on(base, prompt.past_key_values, prompt_mask_NS[group_K], *answers)
        hidden_KCD = torch.cat([hidden_KCD, later.last_hidden_state], 1)
    return hidden_KCD[real_KC[:, :longest]]


def read_prompts(model: Any, prompts_NS: Tensor, prompt_mask_NS: Tensor, **options: Any) -> Any:
    """The model's output on each prompt, with keys and values to read on from. Gradients pass
    through both."""
    return model(
        input_ids=prompts_NS,
        attention_mask=prompt_mask_NS,
        position_ids=(prompt_mask_NS.cumsum(1) - 1).clamp(min=0),
        use_cache=True,
        **options,
    )


def read_on(
    model: Any, cache: Any, mask_BS: Tensor, tokens_BT: Tensor, mask_BT: Tensor, **options: Any
) -> Any:
    """The model's output on those of the completions' tokens that the cache has not seen yet;
    mask_BS is the prompts'."""
    new = cache.get_seq_length() - mask_BS.shape[1]
    places_T = torch.arange(new, tokens_BT.shape[1], device=mask_BS.device)
    return model(
        input_ids=tokens_BT[:, new:],
        attention_mask=torch.cat([mask_BS, mask_BT], 1),
        position_ids=mask_BS.sum(1, keepdim=True) + places_T,
        past_key_values=cache,
        use_cache=True,
        **options,
    )


def logps_of(
    logits_V: Tensor, targets: Tensor, temperature: float, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """log p(target) with its gradient, and the entropy, each of the targets' shape."""
    scaled_V = logits_V if temperature == 1 else logits_V.float() / temperature
    logps_V = scaled_V.log_softmax(-1, dtype=torch.float32)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropies = -(logps_V.exp() * logps_V).sum(-1)
    return logps_V.gather(-1, targets[..., None])[..., 0], entropies


def plain_logps(
    model: Any,
    ids_BT: Tensor,
    mask_BT: Tensor,
    completion: int,
    temperature: float = 1.0,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """As `completion_scores`, by the model's own forward over the batch, without the columns that
    are padding in every row. The completions' logits exist all at once, [B, C, V], since a model
    may do to them what only its forward knows."""
    used_T = mask_BT.any(0)
    used_T[-completion] = True  # one column at least
    left_out = int((~used_T[-completion:]).sum())
    ids_BT, mask_BT, length = ids_BT[:, used_T], mask_BT[:, used_T], completion - left_out
    settings = dict(logits_to_keep=length + 1, use_cache=False)
    logits_BCV = model(input_ids=ids_BT, attention_mask=mask_BT, **settings).logits[:, :-1]
    scores = logps_of(logits_BCV, ids_BT[:, -length:], temperature, entropy_gradient)
    logps_BC, entropies_BC = (pad(x_BC * mask_BT[:, -length:], (0, left_out)) for x_BC in scores)
    return logps_BC, entropies_BC


def why_not_shared(model: Any) -> str:
    """ "" where `completion_scores` gives this model's own numbers and gradient, tried out on a few
    tokens; otherwise the reason."""
    ids_BT = torch.arange(100, 124).repeat(3, 1)  # 16 tokens of prompt, and 8
    ids_BT[1:, 16:] += torch.tensor([[50], [90]])
    ids_BT = ids_BT.to(next(model.parameters()).device)
    trained = [p for p in model.parameters() if p.requires_grad][:2]
    ways = []
    for way in (completion_scores, plain_logps):
        try:
            with torch.enable_grad():
                logps_BC, _ = way(model, ids_BT, torch.ones_like(ids_BT), 8)
                slopes = trained and torch.autograd.grad(
                    logps_BC.sum(), trained, allow_unused=True, materialize_grads=True
                )
        except Exception as error:  # a model of another make may fail anywhere
            return f"the model does not allow it ({type(error).__name__})"
        ways.append((logps_BC.detach(), [slope.flatten() for slope in slopes]))
    (shared_BC, slopes), (own_BC, own_slopes) = ways
    apart = (shared_BC - own_BC).abs().mean().item()
    if apart > SAME:
        return f"the model attends in its own way ({apart:.2f} nats apart)"
    if slopes:
        slope, own = torch.cat(slopes), torch.cat(own_slopes)
        if (slope - own).norm() > 3 * SAME * own.norm():
            return "the model passes no gradient to what it keeps of a prompt"
    return ""
