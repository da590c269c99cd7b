"""The factors that make up for a sampler's other probabilities, by hand."""

from math import exp, inf

import pytest
import torch

from lib.training.sampler_correction import sampling_ratio

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
