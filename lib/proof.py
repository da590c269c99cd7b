"""Proof that the engine samples from the policy that is trained."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lib.errors import Finding

GAP = 0.1  # nats a token by which the engine's log-probs may lie from the trainer's
Sampled = list[tuple[list[int], list[int], list[float]]]  # prompt, completion, log-probs


def proof_of_policy(model: Any, sample: Callable[[], Sampled]) -> Iterator[Finding]:
    """That the engine samples from the policy that is trained, shown by moving the policy.

    The adapter's B matrices are zero at the start. They are set at random, twice: each time the
    policy must have moved, and the engine's log-probs of what it samples be the trainer's.

    Args:
        sample: hands the policy over to the engine and lets it write some completions.
    """
    import torch

    weights = [p for name, p in model.named_parameters() if "lora_B" in name]
    stored = [weight.detach().clone() for weight in weights]
    random = torch.Generator().manual_seed(0)
    gaps: list[float] = []
    sampled: Sampled = []
    try:
        for number in range(3 if weights else 1):
            if number:
                _move(model, weights, sampled, random)
            sampled = sample()
            own = policy_logps(model, sampled)
            if not all(x == x and abs(x) != float("inf") for each in own for x in each):
                yield Finding(
                    "overflow",
                    f"The policy's log-probs are not finite in {model.dtype}: its activations "
                    f"leave that precision's range; set precision to bf16 or fp32, or choose "
                    f"another model.",
                )
                return
            gaps.append(_gap(sampled, own))
            if gaps[-1] > GAP:
                yield Finding(*_apart(number, gaps[-1]))
                return
    finally:
        for weight, before in zip(weights, stored, strict=True):
            weight.data.copy_(before)


def _move(model: Any, weights: Sequence[Any], sampled: Sampled, random: Any) -> None:
    """Set B at random, as large as it takes to be seen in the completions sampled before."""
    import torch

    std = 0.01
    noise = [torch.randn(weight.shape, generator=random) for weight in weights]
    while std < 1:
        for weight, each in zip(weights, noise, strict=True):
            weight.data.copy_(std * each)
        if _gap(sampled, policy_logps(model, sampled)) > 5 * GAP:
            return
        std *= 2


def sample_by_unsloth(model: Any, prompts: Sequence[list[int]]) -> Sampled:
    """Completions by Unsloth's engine with the adapter as it is, as its trainer asks for them.

    By Unsloth's source; not run on a card.
    """
    from vllm import SamplingParams

    os.environ["UNSLOTH_RETURN_LOGITS"] = "1"  # or its forward returns none to compare with
    outputs = model.fast_generate(
        [{"prompt_token_ids": ids} for ids in prompts],
        sampling_params=SamplingParams(temperature=1.0, max_tokens=16, logprobs=0, seed=0),
        lora_request=model.load_lora("proof_of_policy", load_tensors=True),
        use_tqdm=False,
    )
    sampled = []
    for prompt, output in zip(prompts, outputs, strict=True):
        ids, logprobs = list(output.outputs[0].token_ids), output.outputs[0].logprobs
        sampled.append((prompt, ids, [at[i].logprob for i, at in zip(ids, logprobs, strict=True)]))
    return sampled


def policy_logps(model: Any, sampled: Sampled) -> list[list[float]]:
    """The trainer's log-probs of the sampled tokens."""
    import torch

    found = []
    with torch.no_grad():
        for prompt, completion, _ in sampled:
            ids = torch.tensor([prompt + completion], device=model.device)
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
            picked = ids[0, len(prompt) :, None]
            found.append(logits.log_softmax(-1).gather(-1, picked)[:, 0].tolist())
    return found


def _gap(sampled: Sampled, own: list[list[float]]) -> float:
    """Mean |Δ log p| a token."""
    pairs = [
        abs(mine - theirs)
        for (_, _, logps), each in zip(sampled, own, strict=True)
        for theirs, mine in zip(logps, each, strict=True)
    ]
    return sum(pairs) / len(pairs)


def _apart(number: int, nats: float) -> tuple[str, str]:
    """What it means that the engine's log-probs are not the trainer's, the time it shows."""
    gap = f"{nats:.2f} nats a token away"
    if number == 0:
        return (
            "engine-differs",
            f"The engine's log-probs of the untrained policy are {gap} from the trainer's: it "
            f"loaded other weights or another precision; set backend to transformers, or "
            f"rollout_engine to transformers.",
        )
    if number == 1:
        return (
            "serves-base",
            f"After the adapter was changed the engine's log-probs are {gap} from the trainer's: "
            f"completions would come from the base model; set rollout_engine to transformers.",
        )
    return (
        "stale-adapter",
        f"After the adapter was changed again the engine's log-probs are {gap} from the trainer's: "
        f"it still serves the first adapter; set rollout_engine to transformers.",
    )
