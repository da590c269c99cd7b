"""Log-probs of a batch's completions, with each prompt computed once for its whole group.

The G completions of a group begin with the same prompt, which an ordinary batch
computes G times, forward and backward, and pads. Here all tokens lie in one row,

    [prompt, completion 1, …, completion G, next prompt, …]

with positions that restart after the prompt, and a completion attends to its prompt
and to itself: the same numbers, from a part of the tokens. Attention is computed per
completion against its prompt's keys, so it costs what it costs in an ordinary batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.amp import custom_bwd, custom_fwd
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from lib.output_layer import operands
from lib.training.token_logps import TokenLogps, plain_logps, trained_head

ATTENTION = "shared_prompt"
FEW_SCORES = 2**23  # attention scores of a group, up to which the CPU multiplies them out and
# keeps them for the backward pass: 16 MiB a layer in 16 bit


@dataclass(frozen=True)
class Group:
    """Where a prompt and its completions lie in the packed row.

    Attributes:
        start, prompt: the first position, and the prompt's tokens.
        end: the position behind the last completion.
        pad_GL: for each completion its positions counted from the prompt's end, the
            shorter ones filled up with 0 (what is computed there is dropped).
        kept: the places of the real tokens in the flattened [G, L].
        mask: [L, prompt + L], what a completion's token may see.
        causal: [prompt, prompt], the same within the prompt.
    """

    start: int
    prompt: int
    end: int
    pad_GL: torch.Tensor
    kept: torch.Tensor
    mask: torch.Tensor
    causal: torch.Tensor


@dataclass(frozen=True)
class Packed:
    """A batch in one row: N tokens to compute, M completion tokens to score.

    Attributes:
        ids_1N, positions_1N: what the model reads.
        before_M: where in the row the token before each completion token lies.
        targets_M: the completion tokens.
        rows_M, columns_M: where their log-probs belong in [B, C].
    """

    groups: list[Group]
    ids_1N: torch.Tensor
    positions_1N: torch.Tensor
    before_M: torch.Tensor
    targets_M: torch.Tensor
    rows_M: torch.Tensor
    columns_M: torch.Tensor


def pack(
    ids_BT: torch.Tensor, mask_BT: torch.Tensor, completion: int, wanted_B: torch.Tensor
) -> Packed | None:
    """The wanted rows of a batch, left-padded prompts and right-padded completions, in one row.

    Args:
        completion: the last so many columns are completions.
        wanted_B: rows to leave out are False.

    Returns: None where there is nothing to compute.
    """
    by_prompt: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    for row in wanted_B.nonzero().flatten().tolist():
        ids, real = ids_BT[row], mask_BT[row].bool()
        prompt = tuple(ids[:-completion][real[:-completion]].tolist())
        answer = ids[-completion:][real[-completion:]].tolist()
        if answer:
            by_prompt.setdefault(prompt, []).append((row, answer))
    ids, positions, before, targets, rows, columns, groups = [], [], [], [], [], [], []
    for prompt, answers in by_prompt.items():
        start, at = len(ids), len(ids) + len(prompt)
        ids += prompt
        positions += range(len(prompt))
        for row, answer in answers:
            inputs = len(answer) - 1  # the last token predicts nothing
            before += [start + len(prompt) - 1, *range(at, at + inputs)]
            targets += answer
            rows += [row] * len(answer)
            columns += range(len(answer))
            ids += answer[:-1]
            positions += range(len(prompt), len(prompt) + inputs)
            at += inputs
        lengths = [len(answer) - 1 for _, answer in answers]
        groups.append(_group(start, len(prompt), lengths, ids_BT.device))
    if not groups:
        return None

    def tensor(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, device=ids_BT.device)

    return Packed(
        groups,
        tensor(ids)[None],
        tensor(positions)[None],
        *map(tensor, (before, targets, rows, columns)),
    )


def _group(start: int, prompt: int, lengths: list[int], device: Any) -> Group:
    longest, first = max(lengths), 0
    pad_GL = torch.zeros(len(lengths), longest, dtype=torch.long, device=device)
    for row, length in enumerate(lengths):
        pad_GL[row, :length] = torch.arange(first, first + length, device=device)
        first += length
    columns = torch.arange(longest, device=device)
    kept = (columns < torch.tensor(lengths, device=device)[:, None]).flatten().nonzero().flatten()
    mask = torch.ones(longest, prompt + longest, dtype=torch.bool, device=device).tril(prompt)
    causal = torch.ones(prompt, prompt, dtype=torch.bool, device=device).tril()
    return Group(start, prompt, start + prompt + first, pad_GL, kept, mask, causal)


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    groups: list[Group] = (),
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over a packed row, in transformers' interface: [1, H, N, D] → [1, N, H, D]."""
    sizes = [size for g in groups for size in (g.prompt, g.end - g.start - g.prompt)]
    q_parts, k_parts, v_parts = (x[0].split(sizes, 1) for x in (query, key, value))
    parts = []
    for i, group in enumerate(groups):
        # [H, tokens, D] each: the prompt's, and its completions' one after the other
        q, k, v = q_parts[2 * i], k_parts[2 * i], v_parts[2 * i]
        parts.append(_attend(q[None], k[None], v[None], scaling, group.causal)[0].transpose(0, 1))
        if not group.kept.numel():
            continue
        # [H, tokens, D] → [G, H, L, D], and the prompt's keys before each completion's own
        q_GHLD, k_GHLD, v_GHLD = (
            Pad.apply(x[2 * i + 1].transpose(0, 1), group.pad_GL, group.kept).transpose(1, 2)
            for x in (q_parts, k_parts, v_parts)
        )
        many = len(group.pad_GL)
        k_GHSD = torch.cat([k.expand(many, -1, -1, -1), k_GHLD], 2)
        v_GHSD = torch.cat([v.expand(many, -1, -1, -1), v_GHLD], 2)
        out_GHLD = _attend(q_GHLD, k_GHSD, v_GHSD, scaling, group.mask)
        parts.append(Unpad.apply(out_GHLD.transpose(1, 2), group.kept))
    return torch.cat(parts)[None], None


class Pad(torch.autograd.Function):
    """Completions one after the other, [tokens, H, D], as rows of one length, [G, L, H, D].

    What fills a row up is read by none of its tokens, so the backward pass only has to take the
    real ones, where autograd would add up all of them.
    """

    @staticmethod
    def forward(ctx, x_THD, pad_GL, kept_T):
        ctx.save_for_backward(kept_T)
        return x_THD[pad_GL]

    @staticmethod
    def backward(ctx, grad_GLHD):
        (kept_T,) = ctx.saved_tensors
        return grad_GLHD.flatten(0, 1)[kept_T], None, None


class Unpad(torch.autograd.Function):
    """The real tokens of rows of one length: [G, L, H, D] → [tokens, H, D]."""

    @staticmethod
    def forward(ctx, x_GLHD, kept_T):
        ctx.save_for_backward(kept_T)
        ctx.shape = x_GLHD.shape
        return x_GLHD.flatten(0, 1)[kept_T]

    @staticmethod
    def backward(ctx, grad_THD):
        (kept_T,) = ctx.saved_tensors
        grad = grad_THD.new_zeros(ctx.shape)
        grad.view(-1, *ctx.shape[2:])[kept_T] = grad_THD
        return grad, None


def _attend(q: Any, k: Any, v: Any, scaling: float | None, mask: torch.Tensor) -> torch.Tensor:
    """Attention of [G, H, L, D] to [G, K, S, D], K ≤ H, under the mask [L, S]."""
    (many, heads, length, size), shared = q.shape, k.shape[1]
    if q.is_cuda:  # whose fused kernel knows a mask, but no shared keys
        k, v = (x.repeat_interleave(heads // shared, 1) for x in (k, v))
        return scaled_dot_product_attention(q, k, v, mask, scale=scaling)
    if many * heads * length * k.shape[2] > FEW_SCORES:
        return scaled_dot_product_attention(
            q, k, v, mask, scale=scaling, enable_gqa=heads != shared
        )
    # The heads that share a key are more rows of one product.
    q = (q * (scaling or size**-0.5)).reshape(many * shared, -1, size)
    out = PlainAttention.apply(q, k.flatten(0, 1), v.flatten(0, 1), mask)
    return out.view(many, heads, length, size)


class PlainAttention(torch.autograd.Function):
    """softmax(q_BND k_BSDᵀ, masked) v_BSD by plain products, for rows [N] that are repeats of
    the mask's [L, S]. The CPU's fused kernel takes half as long again, most of it backward."""

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx, q_BND, k_BSD, v_BSD, mask_LS):
        scores_BNS = torch.bmm(q_BND, k_BSD.transpose(1, 2))
        scores_BNS.view(-1, *mask_LS.shape).masked_fill_(~mask_LS, -torch.inf)
        shares_BNS = scores_BNS.softmax(-1)
        ctx.save_for_backward(q_BND, k_BSD, v_BSD, shares_BNS)
        return torch.bmm(shares_BNS, v_BSD)

    @staticmethod
    @custom_bwd(device_type="cpu")  # under autocast, as forward was
    def backward(ctx, grad_BND):
        q_BND, k_BSD, v_BSD, shares_BNS = ctx.saved_tensors
        slope_BNS = torch._softmax_backward_data(
            torch.bmm(grad_BND, v_BSD.transpose(1, 2)), shares_BNS, -1, shares_BNS.dtype
        )
        grad_v = torch.bmm(shares_BNS.transpose(1, 2), grad_BND)
        return slope_BNS @ k_BSD, slope_BNS.transpose(1, 2) @ q_BND, grad_v, None


AttentionInterface.register(ATTENTION, attention)


def completion_scores(
    model: Any,
    ids_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    completion: int,
    temperature: float = 1.0,
    wanted_B: torch.Tensor | None = None,
    value_head: Any = None,
    entropy_gradient: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the model says to every completion token.

    Args:
        model: a causal language model of transformers, or peft around one.
        ids_BT, mask_BT: left-padded prompts, then right-padded completions.
        completion: the last so many columns (C) are completions.
        temperature: the logits are divided by it.
        wanted_B: rows that are False are not computed and stay 0.
        value_head: reads a value off the last hidden state that each token was chosen from.
        entropy_gradient: whether the entropies have one, as a bonus for them needs.

    Returns: logps_BC with their gradient; entropies_BC where each token was chosen, in nats; and
        values_BC. 0 where masked, the values without a value head, too.
    """
    if wanted_B is None:
        wanted_B = torch.ones(len(ids_BT), dtype=torch.bool)
    logps_BC = torch.zeros(len(ids_BT), completion, device=ids_BT.device)
    entropies_BC, values_BC = torch.zeros_like(logps_BC), torch.zeros_like(logps_BC)
    packed = pack(ids_BT, mask_BT, completion, wanted_B)
    if packed is None:
        return logps_BC.requires_grad_(), entropies_BC, values_BC
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    with shared_attention(causal):
        hidden_ND = causal.base_model(
            input_ids=packed.ids_1N,
            position_ids=packed.positions_1N,
            use_cache=False,
            groups=packed.groups,
        ).last_hidden_state[0]
    hidden_MD = hidden_ND[packed.before_M]
    head = causal.get_output_embeddings()
    score = trained_head if head.weight.requires_grad or entropy_gradient else TokenLogps.apply
    with operands(head, hidden_MD) as both:
        logps_M, entropies_M = score(*both, packed.targets_M, temperature)
    places = (packed.rows_M, packed.columns_M)
    if value_head is not None:
        values_BC = values_BC.index_put(places, value_head(hidden_MD))
    return (
        logps_BC.index_put(places, logps_M),
        entropies_BC.index_put(places, entropies_M),
        values_BC,
    )


@contextmanager
def shared_attention(model: Any) -> Iterator[None]:
    """While it lasts, the model attends as `attention` does."""
    before = model.config._attn_implementation
    model.config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        model.config._attn_implementation = before


def trainer_is_unsloths() -> bool:
    """Whether Unsloth has put a trainer of its own in the place of TRL's, as it does on a GPU."""
    from trl import GRPOTrainer

    return not GRPOTrainer.__module__.startswith("trl.")


def why_not_shared(model: Any, tokens: int) -> str:
    """ "" where `completion_scores` gives this model's own numbers, tried out; else the reason.

    Args:
        tokens: the longest prompt and completion together.
    """
    if trainer_is_unsloths():
        return "Unsloth's trainer has a loss of its own"
    return why_model_refuses(model, tokens)


def why_model_refuses(model: Any, tokens: int) -> str:
    """As `why_not_shared`, of the model alone."""
    settings = model.config
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(settings, cap, None):
            return f"{settings.model_type} caps its scores ({cap})"
    window = getattr(settings, "sliding_window", None)
    if window and window < tokens and getattr(settings, "use_sliding_window", True):
        return f"{settings.model_type} sees {window} tokens at a time (sliding_window)"
    device = next(model.parameters()).device
    ids_BT = torch.arange(100, 124, device=device).repeat(3, 1)  # 16 tokens of prompt, and 8
    ids_BT[1:, 16:] += torch.tensor([[50], [90]], device=device)
    with torch.no_grad():
        try:
            shared_BC, *_ = completion_scores(model, ids_BT, torch.ones_like(ids_BT), 8)
        except Exception as error:  # a model of another make may fail anywhere
            return f"the model does not allow it ({type(error).__name__})"
        own_BC, _ = plain_logps(model, ids_BT, torch.ones_like(ids_BT), 8)
    apart = (shared_BC - own_BC).abs().mean().item()
    return "" if apart < 0.1 else f"the model attends in its own way ({apart:.2f} nats apart)"
