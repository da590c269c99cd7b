"""What `lib.scratch.loop` has sampled: by an engine, and as texts."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lib.config import Config
from lib.engines import VllmEngine
from lib.sampling import Completion, training_sampling
from lib.scratch.lora import live_weights


def engine_samples(
    engine: VllmEngine,
    model: Any,
    prompts_NS: Tensor,
    prompt_mask_NS: Tensor,
    config: Config,
    step: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `lib.scratch.sample`, by an engine, which is handed the policy's weights first."""
    engine.hand_over(live_weights(model))
    asked = replace(training_sampling(config, config.num_generations, step), logprobs=True)
    prompts = [
        ids[mask.bool()].tolist() for ids, mask in zip(prompts_NS, prompt_mask_NS, strict=True)
    ]
    answers = [answer for group in engine.complete(prompts, asked) for answer in group]

    def padded(rows: list) -> Tensor:
        parts = [torch.tensor(row, device=prompts_NS.device) for row in rows]
        return pad_sequence(parts, batch_first=True)  # with 0, which the mask leaves out

    return (
        padded([answer.token_ids for answer in answers]),
        padded([[1] * len(answer.token_ids) for answer in answers]),
        padded([answer.logprobs for answer in answers]),
    )


def read_completions(
    tokenizer: Any, tokens_BT: Tensor, mask_BT: Tensor, ended_B: Tensor
) -> list[Completion]:
    """The texts, and whether each came to its end."""
    lengths = mask_BT.sum(1).tolist()
    return [
        Completion(
            tokenizer.decode(ids[:n], skip_special_tokens=True),
            tuple(ids[:n]),
            "stop" if ended else "length",
        )
        for ids, n, ended in zip(tokens_BT.tolist(), lengths, ended_B.tolist(), strict=True)
    ]
