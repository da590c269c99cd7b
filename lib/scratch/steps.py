"""What a step of `lib.scratch.loop` takes (its prompts, its learning rate) and what it logs."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lib.config import Config
from lib.scratch import Batch, k3, policy_ratio


def step_rows(rows: Sequence[dict], config: Config, step: int) -> tuple[list[dict], int]:
    """The prompts of an optimizer step, and its epoch, which shuffles them anew."""
    per_epoch = len(rows) // config.prompts_per_step
    epoch, place = divmod(step // config.num_iterations, per_epoch)
    order = np.random.default_rng([config.seed, epoch]).permutation(len(rows))
    start = place * config.prompts_per_step
    return [rows[i] for i in order[start : start + config.prompts_per_step]], epoch


def learning_rate(config: Config, step: int) -> float:
    """The rate of the update after `step` updates, as transformers' schedules have it."""
    kind, warmup = config.lr_scheduler, config.warmup_steps
    if kind == "constant":
        return config.learning_rate
    if step < warmup:
        return config.learning_rate * step / warmup
    done = (step - warmup) / max(1, config.max_steps - warmup)
    shape = {
        "constant_with_warmup": 1.0,
        "linear": 1 - done,
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
    }
    return config.learning_rate * shape[kind]


def describe_rewards(rewards_NG: Tensor, scores: dict[str, Sequence[float]]) -> dict[str, float]:
    """What is to be logged of a step's rewards, under TRL's names."""
    std_N = rewards_NG.std(1)
    found = {"reward": rewards_NG.mean().item(), "reward_std": std_N.mean().item()}
    found |= {f"rewards/{k}/mean": float(np.nanmean(v)) for k, v in scores.items()}
    return found | {"frac_reward_zero_std": (std_N < 1e-6).float().mean().item()}


@torch.no_grad()
def describe(
    logps_BT: Tensor, entropy_BT: Tensor, batch: Batch, config: Config, wanted_B: Tensor
) -> dict[str, float]:
    """Sums over the tokens of a pass, under the names that TRL gives their means.

    Args:
        wanted_B: completions that were left out are False.
    """
    mask_BT = batch.mask_BT * wanted_B[:, None]
    level = config.importance_sampling_level
    ratio_BT = policy_ratio(logps_BT, batch.old_logps_BT, mask_BT, level)
    low, high = 1 - config.epsilon, 1 + config.epsilon_high
    if config.loss_type == "cispo":
        low, high = 0, config.epsilon_high
    outside_BT = torch.where(batch.advantages_BT > 0, ratio_BT > high, ratio_BT < low)
    apart_BT = (batch.old_logps_BT - batch.sampled_logps_BT).abs()
    values = {
        "entropy": entropy_BT,
        "clip_ratio/region_mean": outside_BT.float(),
        "sampling/sampling_logp_difference/mean": apart_BT,
    }
    if batch.ref_logps_BT is not None:
        values["kl"] = k3(logps_BT, batch.ref_logps_BT, mask_BT)
    return {name: (value * mask_BT).sum().item() for name, value in values.items()}
