"""What else a reward can be compared with: RLOO, REINFORCE, and PPO's value network.

GRPO compares a completion with its group's mean. Here the same sampler, loss and optimizer get
their advantages otherwise, so that a difference in learning is one of the baseline:

    rloo       the mean of the *other* completions of its group (arXiv:2402.14740)
    reinforce  the mean of all rewards of the step (Williams 1992)
    ppo        what a value head expects, token by token (arXiv:1707.06347)

In all three the KL to the reference is a part of the reward, as their authors have it; in GRPO
it is a part of the loss. Shapes are those of `lib.scratch`.
"""

import torch
from torch import Tensor, nn

from lib.config import Config
from lib.scratch import Batch, Totals, group_advantages

# The loss that each takes from `lib.scratch`. RLOO's and REINFORCE's action is the whole
# completion: its probabilities' ratio counts once, and every completion the same.
WHOLE = {"loss_type": "grpo", "importance_sampling_level": "completion", "beta": 0.0}
LOSS = {
    "grpo": {},
    "rloo": WHOLE,
    "reinforce": WHOLE,
    "ppo": {"loss_type": "dapo", "importance_sampling_level": "token", "beta": 0.0},
}


def loss_config(config: Config) -> Config:
    """The configuration with the loss settings of its algorithm, for `lib.scratch.grpo_loss`."""
    return config.model_copy(update=LOSS[config.algorithm])


def leave_one_out(rewards_NG: Tensor) -> Tensor:
    """advantages_B: each reward less the mean of its group's others (RLOO).

    r_i − mean of the others = G/(G−1) · (r_i − mean of all): GRPO's centred advantage but for
    a constant, which Adam does not see.
    """
    group = rewards_NG.shape[1]
    return group_advantages(rewards_NG, "none") * group / (group - 1)


def step_advantages(rewards_NG: Tensor) -> Tensor:
    """advantages_B: each reward less the mean of all, whatever its prompt."""
    return group_advantages(rewards_NG.reshape(1, -1), "none")


def kl_penalty(batch: Batch, beta: float) -> Tensor:
    """penalty_BT: β · log(policy/reference) at each token (k1; arXiv:1909.08593, eq. 2)."""
    if not beta:
        return torch.zeros_like(batch.mask_BT, dtype=torch.float32)
    return beta * (batch.old_logps_BT - batch.ref_logps_BT) * batch.mask_BT


class ValueHead(nn.Module):
    """The reward still to come, read off the policy's last hidden state by a linear layer.

    It sees the state without a gradient: what it learns does not move the policy. A state is
    scaled to length √D first, so that one learning rate fits all models.
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
    penalty_BT = kl_penalty(batch, config.beta)
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
