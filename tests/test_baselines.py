"""RLOO, REINFORCE and PPO compute what their papers say; RLOO's loss is held to TRL's, too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.config import resolve
from lib.errors import BadInput
from lib.scratch import Batch, Totals, group_advantages, grpo_loss
from lib.scratch.baselines import (
    ValueHead,
    gae,
    leave_one_out,
    loss_config,
    set_advantages,
    step_advantages,
    value_loss,
)
from tests.conftest import CPU

LAW = settings(max_examples=25, deadline=None)
MASK_BT = torch.tensor([[1, 1, 1], [1, 1, 0]])
VALUES_BT = torch.tensor([[0.5, 1.0, 0.0], [0.2, 0.4, 9.0]])
REWARDS_BT = torch.tensor([[0.0, 0.0, 2.0], [0.0, 1.0, 0.0]])


@st.composite
def reward_groups(draw) -> torch.Tensor:
    n, g = draw(st.integers(1, 3)), draw(st.integers(2, 6))
    values = st.lists(st.floats(-4, 4, width=32), min_size=n * g, max_size=n * g)
    return torch.tensor(draw(values)).view(n, g)


@given(reward_groups())
@LAW
def test_leave_one_out_is_the_mean_of_the_others_and_grpos_but_for_a_constant(rewards_NG):
    group = rewards_NG.shape[1]
    others = [torch.cat([rewards_NG[:, :i], rewards_NG[:, i + 1 :]], 1) for i in range(group)]
    expected = rewards_NG - torch.stack([part.mean(1) for part in others], 1)
    ours = leave_one_out(rewards_NG)
    torch.testing.assert_close(ours, expected.flatten(), rtol=1e-4, atol=1e-5)
    centred = group_advantages(rewards_NG, "none")
    torch.testing.assert_close(ours, centred * group / (group - 1))


def test_reinforce_compares_across_prompts():
    rewards_NG = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert step_advantages(rewards_NG).tolist() == [0.5, 0.5, -0.5, -0.5]
    assert not leave_one_out(rewards_NG).any()  # an easy prompt earns nothing by being easy


def test_gae_by_hand():
    """λ = 0.5, γ = 1: δ = r + V' − V, and A = δ + A'/2, from the end."""
    found = gae(REWARDS_BT, VALUES_BT, MASK_BT, 0.5)
    first = [0.5 + (-1.0 + 2.0 / 2) / 2, -1.0 + 2.0 / 2, 2.0]  # δ: 0.5, −1, 2
    second = [0.2 + 0.6 / 2, 0.6, 0.0]  # δ: 0.2, 0.6
    torch.testing.assert_close(found, torch.tensor([first, second]))


def test_the_value_loss_by_hand():
    """V moved by 0.5 with a clip of 0.2: the larger of the two errors, halved."""
    mask_BT = torch.ones(1, 2)
    batch = Batch(None, None, None, mask_BT)
    batch.old_values_BT, batch.returns_BT = torch.zeros(1, 2), torch.ones(1, 2)
    values_BT = torch.tensor([[0.5, 0.1]], requires_grad=True)
    loss = value_loss(values_BT, batch, Totals(1, 2, 2), 0.2)
    assert loss.item() == pytest.approx(0.5 * (0.8**2 + 0.9**2) / 2)
    loss.backward()
    # Beyond the clip it stands still; within, it goes towards the return.
    torch.testing.assert_close(values_BT.grad, torch.tensor([[0.0, -0.45]]))


def test_the_value_head_learns_and_leaves_the_policy_alone():
    torch.manual_seed(0)
    states = torch.randn(2, 3, 8, requires_grad=True)
    head = ValueHead(8)
    assert not head(states).any()  # expects nothing yet
    batch = Batch(None, None, None, MASK_BT, old_values_BT=torch.zeros(2, 3))
    batch.returns_BT = torch.ones(2, 3)
    value_loss(head(states), batch, Totals(2, 5, 3), 0.2).backward()
    assert states.grad is None
    assert all(weight.grad.abs().sum() > 0 for weight in head.parameters())


def settings_of(algorithm: str, beta: float = 0.0, **more):
    given = {"algorithm": algorithm, "beta": beta, "num_generations": 2, "prompts_per_step": 1}
    return resolve(None, {**given, "micro_batch": 2, **more}, CPU)


def a_batch() -> Batch:
    torch.manual_seed(0)
    old_BT, ref_BT = -torch.rand(2, 2, 3)
    return Batch(
        *(None, None, torch.zeros(2, 3).long(), MASK_BT),
        old_logps_BT=old_BT,
        ref_logps_BT=ref_BT,
        old_values_BT=VALUES_BT * MASK_BT,
    )


@pytest.mark.parametrize("algorithm", ["rloo", "reinforce"])
def test_the_kl_is_a_part_of_the_reward(algorithm):
    rewards_B, batch = torch.tensor([1.0, 0.0]), a_batch()
    apart_B = ((batch.old_logps_BT - batch.ref_logps_BT) * MASK_BT).sum(1)
    set_advantages(batch, rewards_B, settings_of(algorithm, 0.5))
    compare = leave_one_out if algorithm == "rloo" else step_advantages
    expected = compare((rewards_B - 0.5 * apart_B)[None])
    torch.testing.assert_close(batch.advantages_BT[:, 0], expected)
    assert loss_config(settings_of(algorithm, 0.5)).beta == 0  # and not of the loss again


def test_ppos_loss_is_the_clipped_mean_over_tokens():
    """arXiv:1707.06347, eq. 7, token by token."""
    batch, config = a_batch(), settings_of("ppo")
    set_advantages(batch, torch.tensor([1.0, 0.0]), config)
    logps_BT = batch.old_logps_BT + torch.tensor([[0.5, -0.5, 0.0], [0.5, -0.5, 0.0]])
    total = 0.0
    for b, t in MASK_BT.nonzero().tolist():
        ratio = (logps_BT - batch.old_logps_BT)[b, t].exp().item()
        advantage = batch.advantages_BT[b, t].item()
        total -= min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
    loss = grpo_loss(logps_BT, batch, Totals(2, 5, 3), loss_config(config))
    assert loss.item() == pytest.approx(total / 5, rel=1e-5)


def test_reinforces_gradient_is_that_of_the_whole_completions_log_probability():
    """− A ∇ Σ log π, the mean over completions, however long they are (Williams 1992)."""
    batch, config = a_batch(), settings_of("reinforce")
    set_advantages(batch, torch.tensor([1.0, 0.0]), config)
    leaf = batch.old_logps_BT.clone().requires_grad_()
    grpo_loss(leaf, batch, Totals(2, 5, 3), loss_config(config)).backward()
    torch.testing.assert_close(leaf.grad, -batch.advantages_BT / 2 * MASK_BT)


def test_ppo_without_a_place_for_its_values():
    with pytest.raises(BadInput, match="set it to True"):
        settings_of("ppo", shared_prompts=False)
