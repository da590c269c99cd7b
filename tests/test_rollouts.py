"""Sampler and trainer hold a token equally likely, but for rounding, or the training stops."""

from types import SimpleNamespace

import pytest
import torch

from lib.config import resolve
from lib.process import trim_memory
from lib.runs import open_run
from tests.conftest import CPU, SMALL, refuses


@pytest.fixture
def engine_of(first_layers, tmp_path):
    """`engine_of(wide)`: a policy's engine as in training, the policy, and a prompt in tokens."""

    def make(wide: bool):
        given = {"rollout_engine": "vllm", "max_completion_length": 64, "precision": "bf16"}
        given |= {"output_dir": str(tmp_path), "model": str(first_layers)}
        config = resolve("ci", SMALL | given | {"cast_lm_head_to_fp32": wide}, CPU)
        open_run(config)  # sets up the process for vLLM
        from lib.models import load_policy
        from lib.training.rollouts import RolloutEngine

        policy = load_policy(config)
        rollouts = RolloutEngine.start(config, policy)
        rollouts.trainer = SimpleNamespace(model=policy.model, state=SimpleNamespace(global_step=0))
        prompt = policy.tokenizer("Tell me a story of a fox and a hen.")["input_ids"]
        return rollouts, policy, prompt

    return make


def apart(rollouts, policy, prompt) -> float:
    """How far vLLM's log-probs of 16 completions lie from the trainer's, in nats a token."""
    from lib.training.rollouts import gap

    found = gap(policy.model, rollouts.sample([prompt] * 16))
    rollouts.engine.close()
    trim_memory()
    return found


def serves_base(rollouts, policy, prompt) -> None:
    """At its first hand-over; what was moved for the proof is put back. With the policy it goes on,
    and what it then draws does not depend on the proof."""
    before = {name: p.clone() for name, p in policy.model.named_parameters() if "lora" in name}
    hand_over, rollouts.engine.hand_over = rollouts.engine.hand_over, lambda weights: None
    with refuses("serves-base"):
        rollouts.generate([prompt] * 4)
    rollouts.engine.hand_over, rollouts.proved = hand_over, False
    drawn = rollouts.generate([prompt] * 4)
    assert rollouts.proved
    after = dict(policy.model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    rollouts.turn = 0
    assert rollouts.generate([prompt] * 4)[1] == drawn[1]


def test_the_base_is_noticed_and_logits_in_32_bit_bring_sampler_and_trainer_nearer(engine_of):
    started = engine_of(wide=False)
    serves_base(*started)
    narrow, wide = apart(*started), apart(*engine_of(wide=True))
    assert 0.001 < wide < 0.95 * narrow < 0.1
