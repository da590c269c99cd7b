"""Proof that the engine samples from the policy that is trained."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

from lib.errors import BadInput

# Nats a token by which the engine's log-probs may lie from the trainer's: rounding in 16 bit makes
# 0.03 to 0.05, and from 0.1 on an alarm rings (`lib.training.live`).
GAP = 0.2
MOVED = 0.5  # nats a token by which the policy is moved: an engine that stays behind shows as much
TOKENS = 16  # that the engine writes for each prompt
Sampled = list[tuple[list[int], list[int], list[float]]]  # prompt, completion, log-probs
# What it means that they lie further apart: of the policy as it was, moved, and moved again.
APART = {
    "engine-differs": ("At first", "it loaded other weights or another precision"),
    "serves-base": ("After the adapter was changed", "completions would come from the base model"),
    "stale-adapter": ("After it was changed again", "it still serves the first adapter"),
}


def proof_of_policy(model: Any, sample: Callable[[], Sampled]) -> list[BadInput]:
    """What speaks against the engine's sampling from the policy that is trained; at most one.
    `sample` hands the policy over to the engine and lets it write some completions."""
    gaps = measure_gaps(model, sample)
    if not math.isfinite(gaps[-1]):
        sentence = (
            f"The policy's log-probs are not finite in {model.dtype}: its activations leave that "
            f"precision's range; set precision to bf16 or fp32, or choose another model."
        )
        return [BadInput(sentence, "overflow")]
    if gaps[-1] <= GAP:
        return []
    key, (when, means) = list(APART.items())[len(gaps) - 1]
    sentence = (
        f"{when} the engine's log-probs are {gaps[-1]:.2f} nats a token away from the trainer's: "
        f"{means}; set backend and rollout_engine to transformers."
    )
    return [BadInput(sentence, key)]


def measure_gaps(model: Any, sample: Callable[[], Sampled]) -> list[float]:
    """Nats a token between engine and trainer: of the policy as it is, and of one whose adapter's B
    is set at random, twice; up to the first that is too large. B is then what it was."""
    import torch

    weights = [p for name, p in model.named_parameters() if "lora_B" in name]
    stored = [weight.detach().clone() for weight in weights]
    random = torch.Generator().manual_seed(0)
    sampled = sample()
    gaps = [_gap(model, sampled)]
    try:
        while weights and gaps[-1] <= GAP and len(gaps) < len(APART):
            _move(model, weights, sampled, random)
            sampled = sample()
            gaps.append(_gap(model, sampled))
    finally:
        for weight, before in zip(weights, stored, strict=True):
            weight.data.copy_(before)
    return gaps


def _move(model: Any, weights: Sequence[Any], sampled: Sampled, random: Any) -> None:
    """Set B at random, as large as it takes to be seen in the completions sampled before."""
    import torch

    std = 0.04
    noise = [torch.randn(weight.shape, generator=random) for weight in weights]
    while std < 1:
        for weight, each in zip(weights, noise, strict=True):
            weight.data.copy_(std * each)
        if _gap(model, sampled) > MOVED:
            return
        std *= 2


def sample_by_unsloth(model: Any, prompts: Sequence[list[int]]) -> Sampled:
    """Completions by Unsloth's engine with the adapter as it is, as its trainer asks for them (by
    Unsloth's source; not run on a card)."""
    from vllm import SamplingParams

    os.environ["UNSLOTH_RETURN_LOGITS"] = "1"  # or its forward returns none to compare with
    outputs = model.fast_generate(
        [{"prompt_token_ids": ids} for ids in prompts],
        sampling_params=SamplingParams(temperature=1.0, max_tokens=TOKENS, logprobs=0, seed=0),
        lora_request=model.load_lora("proof_of_policy", load_tensors=True),
        use_tqdm=False,
    )
    sampled = []
    for prompt, output in zip(prompts, outputs, strict=True):
        ids, logprobs = list(output.outputs[0].token_ids), output.outputs[0].logprobs
        sampled.append((prompt, ids, [at[i].logprob for i, at in zip(ids, logprobs, strict=True)]))
    return sampled


def policy_logps(model: Any, sampled: Sampled) -> list[list[float]]:
    """The trainer's log-probs of the sampled tokens, without dropout."""
    import torch

    training, logps = model.training, []
    model.eval()
    for prompt, completion, _ in sampled:
        ids_1T = torch.tensor([[*prompt, *completion]], device=model.device)
        with torch.no_grad():
            logits_TV = model(input_ids=ids_1T).logits[0, len(prompt) - 1 : -1]
        said_T1 = ids_1T[0, len(prompt) :, None]
        logps.append(logits_TV.float().log_softmax(-1).gather(-1, said_T1)[:, 0].tolist())
    model.train(training)
    return logps


def _gap(model: Any, sampled: Sampled) -> float:
    """Mean |Δ log p| a token between the engine and the trainer."""
    theirs = [logp for *_, logps in sampled for logp in logps]
    own = [logp for logps in policy_logps(model, sampled) for logp in logps]
    return sum(abs(a - b) for a, b in zip(theirs, own, strict=True)) / len(own)
