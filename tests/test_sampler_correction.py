"""A sampler whose probabilities are not quite the trainer's: made up for, and brought nearer."""

import gc
from math import exp, inf

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from lib.config import resolve
from lib.runs import open_run
from lib.training.sampler_correction import sampling_ratio
from tests.conftest import CPU, SMALL

APART = torch.tensor([[0.0, 0.1, -0.2], [1.0, 0.5, 0.0], [-2.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("mode", "low", "high", "wanted"),
    [
        ("token_truncate", None, 1.2, [[1, exp(0.1), exp(-0.2)], [1.2, 1.2, 1], [exp(-2), 1, 1]]),
        ("token_mask", 0.5, 1.2, [[1, exp(0.1), exp(-0.2)], [0, 0, 1], [0, 1, 1]]),
        ("sequence_truncate", 0.5, 3.0, [[exp(-0.1)], [3.0], [0.5]]),
        ("sequence_mask", None, 3.0, [[exp(-0.1)], [0.0], [exp(-2)]]),
        ("sequence_mask", 0.5, None, [[exp(-0.1)], [exp(1.5)], [0.0]]),
        ("token_truncate", 0.0, inf, APART.exp().tolist()),
    ],
)
def test_ratios_within_bounds(mode, low, high, wanted):
    assert torch.allclose(sampling_ratio(APART, mode, low, high), torch.tensor(wanted))


def apart(given: dict) -> float:
    """How far vLLM's log-probs of 64 completions lie from the trainer's, in nats a token."""
    longer = {"rollout_engine": "vllm", "max_completion_length": 64}
    config = resolve("ci", SMALL | longer | given, CPU)
    open_run(config)  # sets up the process for vLLM
    from lib.models import load_policy
    from lib.training.rollouts import RolloutEngine
    from lib.training.shared_prompts import completion_scores

    policy = load_policy(config)
    rollouts = RolloutEngine(config, policy)
    prompt = policy.tokenizer("Tell me a story of a fox and a hen.")["input_ids"]
    ids, logps = rollouts.generate(policy.model, [prompt] * 64, step=0)
    rollouts.engine.close()
    real = [[1] * len(some) for some in ids]
    said_BC, sampled_BC, real_BC = (
        pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        for rows in (ids, logps, real)
    )
    prompt_BS = torch.tensor([prompt] * 64)
    ids_BT = torch.cat([prompt_BS, said_BC], 1)
    mask_BT = torch.cat([torch.ones_like(prompt_BS), real_BC], 1)
    with torch.no_grad():
        found_BC, *_ = completion_scores(policy.model, ids_BT, mask_BT, said_BC.shape[1])
    return (found_BC - sampled_BC)[real_BC.bool()].abs().mean().item()


def test_logits_in_32_bit_bring_sampler_and_trainer_nearer(embedded, tmp_path):
    gc.collect()  # an engine of another test, which would take with it what all share
    given = {"output_dir": str(tmp_path)}
    narrow, wide = (apart(given | {"cast_lm_head_to_fp32": wide}) for wide in (False, True))
    assert 0.001 < wide < 0.95 * narrow < 0.1
