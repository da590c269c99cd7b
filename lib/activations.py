"""What the backward pass needs kept of one forward, in bytes.

Counted from what autograd saves in a Llama block of transformers (norm, attention, norm,
gated MLP) under each of the ways to compute it; tests/test_memory.py counts it again.
Unsloth's GPU kernels keep less: that part follows their source and was not measured.
"""

from typing import TYPE_CHECKING

from lib.config import Config

if TYPE_CHECKING:
    from lib.memory import ModelShape

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
# As in lib.training.token_logps and lib.training.shared_prompts, which would import torch here.
HEAD_ROWS, FLOAT_ROWS, CACHED_ROWS = 512, 128, 4
FEW_SCORES = 2**23
# As unsloth_zoo's fused_losses.chunked_logprob splits the rows of logits.
UNSLOTH_CHUNK = 2**31  # bytes at the most, at 8 a logit: in 32 bit, and the gradient in 16
UNSLOTH_ROWS = 512  # or an eighth of all, if that is more
# Layers that read the same vector.
READS = {"q_proj": "x", "k_proj": "x", "v_proj": "x", "gate_proj": "y", "up_proj": "y"}


def by_unsloth(config: Config) -> bool:
    """Whether Unsloth's GPU kernels and trainer compute the pass."""
    return config.profile != "cpu" and config.backend != "transformers"


def shares_prompts(config: Config) -> bool:
    """Whether training computes a prompt once for its group; Unsloth's GPU trainer does not."""
    return config.shared_prompts and not by_unsloth(config)


def width_of(config: Config) -> int:
    """Bytes of a number in the pass: without autocast, that of the weights."""
    if config.full_finetuning and shares_prompts(config):
        return 4
    return BYTES[config.precision]


def pass_rows(config: Config) -> int:
    """Completions in one forward and backward."""
    return min(config.micro_batch, config.completions_per_step)


def pass_groups(config: Config) -> int:
    return -(-pass_rows(config) // config.num_generations)


def pass_tokens(config: Config) -> int:
    """Tokens of one pass: padded to the longest, or each prompt once for its group."""
    rows = pass_rows(config)
    if not shares_prompts(config):
        return rows * config.max_seq_length
    prompt = config.max_seq_length - config.max_completion_length
    return pass_groups(config) * prompt + rows * config.max_completion_length


def block_bytes(config: Config, shape: "ModelShape") -> int:
    """What one block keeps of a pass."""
    return pass_tokens(config) * _per_token(config, shape) + _attention(config, shape)


def _per_token(config: Config, shape: "ModelShape") -> int:
    """What a block keeps of a token, but for attention."""
    width, h, m = width_of(config), shape.hidden, shape.intermediate
    full, shares = config.full_finetuning, shares_prompts(config)
    chosen = shape.targeted("all-linear" if full else config.lora_targets)
    inner = 0 if full else len(chosen) * config.lora_r
    if by_unsloth(config):
        # The norms' inputs and outputs, attention's output, gate and up.
        return width * (4 * h + shape.heads * shape.head_dim + 2 * m + inner)
    lean = shares and not (config.load_in_4bit or config.lora_dropout)
    inputs = {name: size for name, (size, _) in chosen.items()}
    if lean or full or width == 4:
        inputs = {READS.get(name, name): size for name, size in inputs.items()}
        if not shares:
            inputs.pop("o_proj", None)  # attention keeps it
    # Else peft casts every layer's input, and autocast, where it is on, casts it back.
    cast = width if lean or full or not shares else 4
    norms = 2 * h * (4 + (width if full else 0))  # their inputs in 32 bit
    if shares and config.profile == "cpu" and not full:
        norms = 2 * h * width  # lean ones
    gated = 3 * m * width  # gate, its activation, up
    return norms + gated + cast * (sum(inputs.values()) + inner)


def _attention(config: Config, shape: "ModelShape") -> int:
    """What attention keeps in one block: queries, keys, values and outputs."""
    rows, length = pass_rows(config), config.max_seq_length
    if not shares_prompts(config):
        return _attended(config, shape, rows, length, length)
    # The prompt's keys and values are laid before each completion's own.
    completion, group = config.max_completion_length, min(rows, config.num_generations)
    prompt = length - completion
    return pass_groups(config) * (
        _attended(config, shape, 1, prompt, prompt)
        + _attended(config, shape, group, completion, length)
    )


def _attended(config: Config, shape: "ModelShape", rows: int, length: int, seen: int) -> int:
    queries, keys = rows * shape.heads * length, rows * shape.kv_heads * seen
    kept = 2 * shape.head_dim * (queries + keys)
    if shares_prompts(config) and config.profile == "cpu" and queries * seen <= FEW_SCORES:
        kept += queries * (seen - shape.head_dim)  # scores in place of outputs
    return width_of(config) * kept


def output_bytes(config: Config, shape: "ModelShape") -> int:
    """Logits of a pass, and what is computed from them.

    On a CPU the product first reorders the output layer into a copy, and anywhere it may have to
    be cast before.
    """
    layer, width = shape.vocab * shape.hidden, _head_width(config)
    copied = layer * width if config.profile == "cpu" else 0
    cast = layer * width if width > width_of(config) else 0
    return copied + cast + _logits_bytes(config, shape)


def _head_width(config: Config) -> int:
    """Bytes of a number in the output layer's product."""
    return 4 if config.cast_lm_head_to_fp32 else width_of(config)


def _logits_bytes(config: Config, shape: "ModelShape") -> int:
    width, tokens = _head_width(config), pass_rows(config) * config.max_completion_length
    if shares_prompts(config):
        # Some rows at a time, and fewer in 32 bit: log-probs, shares, and their product.
        full, on_cpu = config.full_finetuning, config.profile == "cpu"
        ends = 2 * tokens * shape.hidden * width
        gradient = shape.vocab * shape.hidden * width_of(config) if full else 0
        rows = min(tokens, FLOAT_ROWS if full else HEAD_ROWS)
        floats = min(tokens, CACHED_ROWS if on_cpu and not full else FLOAT_ROWS)
        logits = rows * width + 12 * floats
        return logits * shape.vocab + ends + gradient
    if by_unsloth(config):
        truncated = config.top_p < 1 or config.top_k or config.min_p
        if truncated and config.rollout_engine == "vllm":
            # Scored over the kept tokens only, logits and masked logits in 32 bit for backward.
            return 2 * 4 * tokens * shape.vocab
        rows = min(tokens, max(UNSLOTH_ROWS, -(-tokens // 8)), UNSLOTH_CHUNK // (8 * shape.vocab))
        return 8 * rows * shape.vocab
    # In 32 bit logits, log-probs and their exponentials; two in the model's precision. On a CPU
    # the second step's find no room in what the first's left, which stays with the process.
    kept = 2 if config.profile == "cpu" else 1
    return kept * tokens * shape.vocab * (12 + (2 * width if width < 4 else 0))
