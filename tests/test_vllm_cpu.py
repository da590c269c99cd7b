"""How vLLM draws on a CPU: as often as is probable, and without a compiler."""

import torch

from lib.engines import Sampling, draw

QUESTION = [{"role": "user", "content": "What is 2 + 3?"}]


def test_tokens_are_drawn_as_often_as_they_are_probable():
    torch.manual_seed(0)
    probable = torch.tensor([0.0, 0.5, 0.3, 0.0, 0.15, 0.05, 0.0])
    drawn = draw(probable.log().expand(40_000, -1))
    shares = drawn.bincount(minlength=len(probable)) / len(drawn)
    assert torch.equal(shares == 0, probable == 0)
    assert torch.allclose(shares, probable, atol=0.01)  # four standard errors


def test_a_long_tail_is_drawn_too():
    torch.manual_seed(0)
    tail = 50_000  # words too improbable to change a sum of 32 bit that is near 1
    logits = torch.full((1, 1 + tail), 5e-8).log()
    logits[:, 0] = 0.0
    drawn = sum((draw(logits.expand(400, -1)) > 0).sum() for _ in range(10))
    assert 0 < drawn < 3 * 4000 * tail * 5e-8


def test_vllm_draws_with_them_and_compiles_nothing(engine):
    from torch._dynamo.utils import counters
    from vllm.v1.sample.ops import topk_topp_sampler

    assert topk_topp_sampler.compiled_random_sample is draw
    before = counters["stats"]["unique_graphs"]
    [[answer]] = engine.generate([QUESTION], Sampling(temperature=1.0, max_tokens=4, logprobs=True))
    assert len(answer.logprobs) == len(answer.token_ids)
    assert counters["stats"]["unique_graphs"] == before
