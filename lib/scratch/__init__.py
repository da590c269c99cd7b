"""GRPO from scratch: sample groups, compare within each, push the policy. The whole of it.

    tokens_BT, mask_BT, _ = sample(model, prompts_NS, prompt_mask_NS, group=8, …)
    advantages_B = group_advantages(rewards_NG)
    logps_BT, _ = completion_logps(model, prompts_NS, prompt_mask_NS, tokens_BT, mask_BT)
    grpo_loss(logps_BT, batch, step, config).backward()

Read it downwards: advantages, ratio, clipping, KL, the weight of a token, the loss; sampling and
scoring with a model; and what else a reward can be compared with (RLOO, REINFORCE, PPO).
`lib.scratch.loop` does it step after step.

Shapes: N prompts in a step, G completions of each, B = N·G completions, S tokens of the
longest prompt (padded on the left), T of the longest completion (padded on the right), V
tokens in the vocabulary. Masks are 1 where a token counts.

Papers: DeepSeekMath (GRPO) arXiv:2402.03300, Dr. GRPO 2503.20783, DAPO 2503.14476, GSPO
2507.18071, MiniMax-M1 (CISPO) 2506.13585. TRL's GRPOTrainer computes the same numbers.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lib.config import Config
from lib.training.logps import read_on, read_prompts

STD_FLOOR = 1e-4  # added to the standard deviation, as TRL does


def group_advantages(rewards_NG: Tensor, scale: str = "group") -> Tensor:
    """advantages_B: how far each reward lies above its group's mean.

    "group" divides by the group's standard deviation (DeepSeekMath, sec. 4.1.2); "batch" by that of
    all rewards; "none" by nothing (Dr. GRPO, sec. 3: dividing gives most weight to the prompts that
    are nearly all right or all wrong).
    """
    # From each group's first reward, so that equal rewards differ by exactly zero.
    above_NG = rewards_NG - rewards_NG[:, :1]
    centred_NG = above_NG - above_NG.mean(1, keepdim=True)
    if scale == "none":
        return centred_NG.flatten()
    std = above_NG.std(1, keepdim=True) if scale == "group" else rewards_NG.std()
    return (centred_NG / (std + STD_FLOOR)).flatten()


def policy_ratio(
    logps_BT: Tensor, old_logps_BT: Tensor, mask_BT: Tensor, level: str = "token"
) -> Tensor:
    """ratio_BT: how much likelier the policy makes a token than the policy that sampled it.

    "token": each its own (DeepSeekMath, eq. 3); "sequence" gives all tokens of a completion their
    geometric mean (GSPO, sec. 4.1); "completion" their product, the ratio of the whole completion's
    probabilities (RLOO).
    """
    log_ratio_BT = torch.where(mask_BT.bool(), logps_BT - old_logps_BT, 0.0)
    if level == "token":
        return log_ratio_BT.exp()
    sum_B1 = log_ratio_BT.sum(1, keepdim=True)
    lengths_B1 = mask_BT.sum(1, keepdim=True).clamp(min=1)
    whole_B1 = sum_B1 / lengths_B1 if level == "sequence" else sum_B1
    return whole_B1.exp().expand_as(log_ratio_BT)


def surrogate(
    ratio_BT: Tensor,
    logps_BT: Tensor,
    advantages_BT: Tensor,
    loss_type: str,
    epsilon: float,
    epsilon_high: float,
) -> Tensor:
    """What each token adds to the objective, to be maximised.

    min(r·A, clip(r, 1 − ε, 1 + ε_high)·A): moving a token further than the clip earns
    nothing more (DeepSeekMath, eq. 3; a higher upper bound: DAPO, sec. 3.1). A clipped token
    has no gradient; "cispo" keeps it, and bounds only its weight: sg(min(r, ε_high))·A·log π
    (MiniMax-M1, the CISPO objective). There ε_high is the bound itself, as in TRL.
    """
    if loss_type == "cispo":
        return ratio_BT.detach().clamp(max=epsilon_high) * advantages_BT * logps_BT
    clipped_BT = ratio_BT.clamp(1 - epsilon, 1 + epsilon_high)
    return torch.minimum(ratio_BT * advantages_BT, clipped_BT * advantages_BT)


def k3(logps_BT: Tensor, ref_logps_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """KL(policy ‖ reference) estimated a token: q/p − log(q/p) − 1, unbiased and never negative.

    Schulman, "Approximating KL Divergence" (2020), the estimator k3; DeepSeekMath, eq. 4. The loss
    weighs it by the ratio, as TRL does, so that its gradient is unbiased (arXiv:2512.02556).
    """
    log_ratio_BT = torch.where(mask_BT.bool(), ref_logps_BT - logps_BT, 0.0)
    return log_ratio_BT.exp() - log_ratio_BT - 1


@dataclass
class Totals:
    """Of a whole step, which a pass over some of its completions cannot see."""

    completions: int
    tokens: int
    max_tokens: int  # that a completion may have


def token_weights(mask_BT: Tensor, loss_type: str, step: Totals) -> Tensor:
    """weights_BT: what each token counts in the step's loss.

    "grpo"     each completion the same, by its own length (DeepSeekMath, eq. 3)
    "dapo"     each token of the step the same (DAPO, sec. 3.3); "cispo" too (MiniMax-M1)
    "bnpo"     each token of this pass the same, and each pass
    "dr_grpo"  by a constant, so that length has no say (Dr. GRPO, sec. 3)
    """
    divisors = {
        "grpo": step.completions * mask_BT.sum(1, keepdim=True).clamp(min=1),
        "dapo": max(step.tokens, 1),
        "cispo": max(step.tokens, 1),
        "bnpo": mask_BT.sum().clamp(min=1) * step.completions / len(mask_BT),
        "dr_grpo": step.completions * step.max_tokens,
    }
    return mask_BT / divisors[loss_type]


@dataclass
class Batch:
    """Completions of some prompts of a step, and all that the loss needs of them."""

    prompts_NS: Tensor
    prompt_mask_NS: Tensor
    tokens_BT: Tensor
    mask_BT: Tensor
    advantages_BT: Tensor | None = None  # [B, 1] where all tokens of a completion share one
    sampled_logps_BT: Tensor | None = None  # as the sampler saw them, token by token
    old_logps_BT: Tensor | None = None  # as the loss computes them, before the first update
    ref_logps_BT: Tensor | None = None  # under the base model; None where beta is 0
    old_values_BT: Tensor | None = None  # PPO's
    returns_BT: Tensor | None = None  # PPO's

    def split(self, groups: int) -> "list[Batch]":
        """The batch in parts of that many prompts with their completions."""
        rows = groups * len(self.tokens_BT) // len(self.prompts_NS)
        parts = {}
        for name, value in vars(self).items():
            if value is not None:
                parts[name] = value.split(groups if name.endswith("_NS") else rows)
        columns = zip(*parts.values(), strict=True)
        return [Batch(**dict(zip(parts, values, strict=True))) for values in columns]


def grpo_loss(logps_BT: Tensor, batch: Batch, step: Totals, config: Config) -> Tensor:
    """This batch's part of the step's loss; the parts of a step add up to the whole. GSPO is
    loss_type "grpo" with importance_sampling_level "sequence"."""
    mask_BT = batch.mask_BT
    ratio_BT = policy_ratio(logps_BT, batch.old_logps_BT, mask_BT, config.importance_sampling_level)
    bounds = (config.epsilon, config.epsilon_high)
    loss_BT = -surrogate(ratio_BT, logps_BT, batch.advantages_BT, config.loss_type, *bounds)
    if config.beta:
        loss_BT = loss_BT + config.beta * ratio_BT * k3(logps_BT, batch.ref_logps_BT, mask_BT)
    return (loss_BT * token_weights(mask_BT, config.loss_type, step)).sum()


@torch.no_grad()
def sample(
    model: Any,
    prompts_NS: Tensor,
    prompt_mask_NS: Tensor,
    group: int,
    max_tokens: int,
    ends: Tensor,
    temperature: float = 1.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """A group of completions of each prompt, drawn token by token from the whole distribution,
    until each has come to one of the tokens `ends`.

    Returns: tokens_BT, mask_BT (1 up to and with the end), and logps_BT at the temperature.
    """
    generator = torch.Generator(prompts_NS.device).manual_seed(seed)
    out = read_prompts(model, prompts_NS, prompt_mask_NS, logits_to_keep=1)
    cache, logits_BV = out.past_key_values, out.logits[:, -1].repeat_interleave(group, 0)
    cache.batch_repeat_interleave(group)  # the prompt's keys and values, for each of its group
    prompt_mask_BS = prompt_mask_NS.repeat_interleave(group, 0)
    tokens_BT, logps_BT = prompt_mask_BS[:, :0], logits_BV[:, :0].float()
    mask_BT = prompt_mask_BS[:, :0]
    writing_B = torch.ones_like(prompt_mask_BS[:, 0])
    while tokens_BT.shape[1] < max_tokens and writing_B.any():
        if tokens_BT.shape[1]:
            out = read_on(model, cache, prompt_mask_BS, tokens_BT, mask_BT)
            logits_BV = out.logits[:, -1]
        logps_BV = (logits_BV.float() / temperature).log_softmax(-1)
        next_B1 = torch.multinomial(logps_BV.exp(), 1, generator=generator)
        tokens_BT = torch.cat([tokens_BT, next_B1], 1)
        logps_BT = torch.cat([logps_BT, logps_BV.gather(1, next_B1)], 1)
        mask_BT = torch.cat([mask_BT, writing_B[:, None]], 1)
        writing_B = writing_B * ~torch.isin(next_B1[:, 0], ends)
    return tokens_BT, mask_BT, logps_BT


def completion_logps(
    model: Any,
    prompts_NS: Tensor,
    prompt_mask_NS: Tensor,
    tokens_BT: Tensor,
    mask_BT: Tensor,
    temperature: float = 1.0,
    value_head: Any = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the model says to the completions' tokens: logps_BT; entropy_BT (nats, without gradient)
    where each was chosen; and values_BT, which a value head reads off the hidden state there."""
    group = len(tokens_BT) // len(prompts_NS)
    options = {"output_hidden_states": True} if value_head else {}
    first = read_prompts(model, prompts_NS, prompt_mask_NS, logits_to_keep=1, **options)
    first.past_key_values.batch_repeat_interleave(group)
    prompt_mask_BS = prompt_mask_NS.repeat_interleave(group, 0)
    later = read_on(model, first.past_key_values, prompt_mask_BS, tokens_BT, mask_BT, **options)

    def before_each_token(first_NSX: Tensor, later_BTX: Tensor) -> Tensor:
        first_B1X = first_NSX[:, -1:].repeat_interleave(group, 0)
        return torch.cat([first_B1X, later_BTX[:, :-1]], 1)

    logits_BTV = before_each_token(first.logits, later.logits)
    logps_BTV = (logits_BTV.float() / temperature).log_softmax(-1)
    with torch.no_grad():
        entropy_BT = -(logps_BTV.exp() * logps_BTV).sum(-1)
    logps_BT, values_BT = logps_BTV.gather(2, tokens_BT[:, :, None])[:, :, 0], None
    if value_head:
        states = before_each_token(first.hidden_states[-1], later.hidden_states[-1])
        values_BT = value_head(states)
    return logps_BT, entropy_BT, values_BT


@torch.no_grad()
def describe(
    logps_BT: Tensor, entropy_BT: Tensor, batch: Batch, config: Config
) -> dict[str, float]:
    """Sums over the tokens of a pass, under the names that TRL gives their means."""
    mask_BT, level = batch.mask_BT, config.importance_sampling_level
    ratio_BT = policy_ratio(logps_BT, batch.old_logps_BT, mask_BT, level)
    low, high = 1 - config.epsilon, 1 + config.epsilon_high
    if config.loss_type == "cispo":
        low, high = 0, config.epsilon_high
    outside_BT = torch.where(batch.advantages_BT > 0, ratio_BT > high, ratio_BT < low)
    gap_BT = (batch.old_logps_BT - batch.sampled_logps_BT).abs()
    values = {
        "entropy": entropy_BT,
        "clip_ratio/region_mean": outside_BT.float(),
        "sampling/sampling_logp_difference/mean": gap_BT,
    }
    if batch.ref_logps_BT is not None:
        values["kl"] = k3(logps_BT, batch.ref_logps_BT, mask_BT)
    return {name: (value * mask_BT).sum().item() for name, value in values.items()}


# --- other baselines --------------------------------------------------------------------------
# GRPO compares a completion with its group's mean. By the same sampler, loss and optimizer:
#   rloo       with the mean of the *other* completions of its group (arXiv:2402.14740)
#   reinforce  with the mean of all rewards of the step (Williams 1992)
#   ppo        with what a value head expects, token by token (arXiv:1707.06347)
# In all three the KL to the reference is a part of the reward, as their authors have it, and not of
# the loss. RLOO's and REINFORCE's action is the whole completion: its ratio counts once.
WHOLE = {"loss_type": "grpo", "importance_sampling_level": "completion", "beta": 0.0}
LOSS = {
    "grpo": {},
    "rloo": WHOLE,
    "reinforce": WHOLE,
    "ppo": {"loss_type": "dapo", "importance_sampling_level": "token", "beta": 0.0},
}


def loss_config(config: Config) -> Config:
    """The configuration with the loss settings of its algorithm."""
    return config.model_copy(update=LOSS[config.algorithm])


def leave_one_out(rewards_NG: Tensor) -> Tensor:
    """advantages_B: each reward less the mean of its group's others (RLOO), which is G/(G−1) times
    that of all: GRPO's centred advantage but for a constant, which Adam does not see."""
    group = rewards_NG.shape[1]
    return group_advantages(rewards_NG, "none") * group / (group - 1)


def step_advantages(rewards_NG: Tensor) -> Tensor:
    """advantages_B: each reward less the mean of all, whatever its prompt."""
    return group_advantages(rewards_NG.reshape(1, -1), "none")


class ValueHead(nn.Module):
    """The reward still to come, read off the policy's last hidden state by a linear layer, without
    a gradient for it. It is scaled to length √D first, so that one learning rate fits all models.
    """

    def __init__(self, size: int):
        super().__init__()
        self.linear = nn.Linear(size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        states = states.detach().float()
        return self.linear(nn.functional.rms_norm(states, states.shape[-1:]))[..., 0]


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, lam: float) -> Tensor:
    """advantages_BT by generalised advantage estimation (arXiv:1506.02438, eq. 16) at γ = 1.

    A_t = Σ_l λ^l δ_{t+l} with δ_t = r_t + V_{t+1} − V_t; behind the last token V is 0.
    """
    values_BT = values_BT * mask_BT
    advantage_B = torch.zeros_like(values_BT[:, 0])
    next_B, advantages = advantage_B, []
    for t in reversed(range(values_BT.shape[1])):
        delta_B = rewards_BT[:, t] + next_B - values_BT[:, t]
        advantage_B = (delta_B + lam * advantage_B) * mask_BT[:, t]
        next_B = values_BT[:, t]
        advantages.append(advantage_B)
    return torch.stack(advantages[::-1], 1)


def whiten(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The values with mean 0 and standard deviation 1 over the tokens that count."""
    real = values_BT[mask_BT.bool()]
    return (values_BT - real.mean()) / (real.std() + 1e-8) * mask_BT


def value_loss(values_BT: Tensor, batch: Batch, step: Totals, clip: float) -> Tensor:
    """½ · max((V − R)², (clip(V, V_old ± clip) − R)²), the mean over the step's tokens.

    The clipped form is that of PPO's own code (arXiv:2005.12729, sec. 3).
    """
    old_BT, aim_BT = batch.old_values_BT, batch.returns_BT
    near_BT = old_BT + (values_BT - old_BT).clamp(-clip, clip)
    error_BT = torch.maximum((values_BT - aim_BT) ** 2, (near_BT - aim_BT) ** 2)
    return 0.5 * (error_BT * batch.mask_BT).sum() / max(step.tokens, 1)


def set_advantages(batch: Batch, rewards_B: Tensor, config: Config) -> None:
    """The advantages of a whole step; for PPO also the returns that its values are to learn."""
    if config.algorithm == "grpo":
        rewards_NG = rewards_B.view(-1, config.num_generations)
        batch.advantages_BT = group_advantages(rewards_NG, config.scale_rewards)[:, None]
        return
    penalty_BT = torch.zeros_like(batch.mask_BT, dtype=torch.float32)
    if config.beta:  # β · log(policy/reference) at each token (k1; arXiv:1909.08593, eq. 2)
        penalty_BT = config.beta * (batch.old_logps_BT - batch.ref_logps_BT) * batch.mask_BT
    if config.algorithm == "ppo":
        last_B1 = (batch.mask_BT.sum(1, keepdim=True) - 1).clamp(min=0)
        rewards_BT = (-penalty_BT).scatter_add(1, last_B1, rewards_B[:, None])
        advantages_BT = gae(rewards_BT, batch.old_values_BT, batch.mask_BT, config.gae_lambda)
        batch.returns_BT = advantages_BT + batch.old_values_BT
        batch.advantages_BT = whiten(advantages_BT, batch.mask_BT)
        return
    compare = leave_one_out if config.algorithm == "rloo" else step_advantages
    rewards_NG = (rewards_B - penalty_BT.sum(1)).view(-1, config.num_generations)
    batch.advantages_BT = compare(rewards_NG)[:, None]
