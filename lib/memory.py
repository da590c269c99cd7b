"""How much memory a run will take, told before it starts.

    need = estimate(config, read_shape(folder), hardware)
    need.total, need.parts     # GiB, and where they go

A training run holds the most at the end of a pass's forward: everything that stays for
the whole run, and what backward needs of the pass. The constants were measured; how
near the sum comes is in benchmarks/results/memory_cpu.json (`benchmarks/memory.py`).
On a GPU one small model was measured (step_demo_nvidia_h200.json there).
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lib.activations import (
    BYTES,
    block_bytes,
    by_unsloth,
    output_bytes,
    pass_rows,
    pass_tokens,
    width_of,
)
from lib.config import Config
from lib.errors import BadInput
from lib.hardware import GIB, PROFILE_MEMORY, PROFILES, Hardware, detect_hardware
from lib.rewards import learned_rewards
from lib.rewards.model import BATCH, LearnedReward

NF4 = 0.5625  # bytes a weight: 4 bits, and a scale in 32 bit for each block of 64
# As unsloth_zoo's vllm_utils.approximate_vllm_memory_usage counts (a factor of 16/5): some layers
# of its own 4-bit models stay in 16 bit.
UNSLOTH_NF4 = 0.625
MARGIN = 0.85  # of what there is: the estimate may be 15 % low
# GiB before a model is loaded.
CUDA_CONTEXT = 0.6  # not measured here
PROCESS = 0.9  # Python, torch, transformers, Unsloth and TRL, ready to train
VLLM = 0.3  # further for vLLM's libraries and engine


@dataclass(frozen=True)
class ModelShape:
    """What a model's config.json says of its size."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool

    @property
    def layer_sizes(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a block's linear layers."""
        h, m = self.hidden, self.intermediate
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = {"q_proj": (h, queries), "k_proj": (h, keys), "v_proj": (h, keys)}
        gated = {"gate_proj": (h, m), "up_proj": (h, m), "down_proj": (m, h)}
        return attention | {"o_proj": (queries, h)} | gated

    @property
    def linear(self) -> int:
        """Weights in the linear layers of all blocks (what 4-bit loading shrinks)."""
        return self.layers * sum(i * o for i, o in self.layer_sizes.values())

    @property
    def embeddings(self) -> int:
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        return self.linear + self.embeddings

    def lora_parameters(self, r: int, targets: str | list[str] = "all-linear") -> int:
        """Weights of an adapter of rank r on these linear layers: r·(in + out) each."""
        chosen = self.targeted(targets).values()
        return self.layers * r * sum(i + o for i, o in chosen)

    def targeted(self, targets: str | list[str]) -> dict[str, tuple[int, int]]:
        """The sizes of the layers that `lora_targets` names."""
        sizes = self.layer_sizes
        return sizes if targets == "all-linear" else {n: sizes[n] for n in targets if n in sizes}

    def kv_bytes(self, tokens: int, width: int = 2) -> int:
        """Keys and values of so many tokens, each number in `width` bytes."""
        return 2 * width * self.layers * self.kv_heads * self.head_dim * tokens


# Models that recipes name, so that a plan needs no connection.
# fmt: off
SHAPES = {
    "google/gemma-2-2b-it":             ModelShape(26, 2304, 9216, 8, 4, 256, 256000, True),
    "Qwen/Qwen2.5-0.5B-Instruct":       ModelShape(24, 896, 4864, 14, 2, 64, 151936, True),
    "Qwen/Qwen2.5-1.5B-Instruct":       ModelShape(28, 1536, 8960, 12, 2, 128, 151936, True),
    "Qwen/Qwen2.5-3B-Instruct":         ModelShape(36, 2048, 11008, 16, 2, 128, 151936, True),
    "Qwen/Qwen3-4B-Instruct-2507":      ModelShape(36, 2560, 9728, 32, 8, 128, 151936, True),
    "meta-llama/Llama-3.2-1B-Instruct": ModelShape(16, 2048, 8192, 32, 8, 64, 128256, True),
    "mistralai/Mistral-7B-Instruct-v0.3": ModelShape(32, 4096, 14336, 32, 8, 128, 32768, False),
    "embedded":                         ModelShape(30, 576, 1536, 9, 3, 64, 49152, True),
}
# fmt: on


def read_shape(folder: Path) -> ModelShape:
    """The shape in a model folder's config.json."""
    return shape_of(json.loads((folder / "config.json").read_text()))


def shape_of(told: dict[str, Any]) -> ModelShape:
    """The shape that a model's configuration tells."""
    heads = told["num_attention_heads"]
    return ModelShape(
        layers=told["num_hidden_layers"],
        hidden=told["hidden_size"],
        intermediate=told["intermediate_size"],
        heads=heads,
        kv_heads=told.get("num_key_value_heads") or heads,
        head_dim=told.get("head_dim") or told["hidden_size"] // heads,
        vocab=told["vocab_size"],
        tied=told.get("tie_word_embeddings", True),
    )


@dataclass(frozen=True)
class Estimate:
    """GiB by what takes them, and what there is."""

    parts: dict[str, float]
    available: float
    where: str

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.total <= self.available


def estimate(config: Config, shape: ModelShape, hardware: Hardware) -> Estimate:
    """What training takes on this hardware, in GiB: of the GPU, or of main memory."""
    config = settled(config, shape, hardware)
    on_gpu = config.profile != "cpu"
    available = hardware.gpu_memory if on_gpu else hardware.memory
    learning = _learning(config, shape)
    parts = {
        "process": CUDA_CONTEXT if on_gpu else PROCESS,
        "weights": _weights(config, shape, _policy_width(config)) / GIB,
        **_rollouts(config, shape, available),
        **_reward_models(config, shape, sum(learning.values())),
        **_trained(config, shape),
        **learning,
    }
    return Estimate(parts, available, hardware.gpu if on_gpu else "this machine's memory")


def settled(config: Config, shape: ModelShape, hardware: Hardware | None = None) -> Config:
    """The configuration with `gradient_checkpointing: auto` decided.

    It is on where the activations would not fit otherwise, with a margin for the
    estimate's own error, since it costs a second forward.
    """
    if config.gradient_checkpointing != "auto":
        return config
    hardware = hardware or detect_hardware(config.gpu_memory_cap)
    without = config.model_copy(update={"gradient_checkpointing": False})
    need = estimate(without, shape, hardware)
    if need.total <= MARGIN * need.available:
        return without
    return config.model_copy(update={"gradient_checkpointing": True})


def _policy_width(config: Config) -> int:
    """Bytes of a weight that is not in 4 bit: 32 bit where all of them are trained."""
    return 4 if config.full_finetuning else BYTES[config.precision]


def _weights(config: Config, shape: ModelShape, width: int) -> float:
    """Bytes of the policy. In 4 bit the embeddings and the output layer stay in 16."""
    linear = width
    if config.load_in_4bit:
        linear = UNSLOTH_NF4 if by_unsloth(config) else NF4
    return shape.linear * linear + shape.embeddings * width


def _rollouts(config: Config, shape: ModelShape, available: float) -> dict[str, float]:
    """GiB that generating holds beside the policy, on top of what a pass leaves unreturned."""
    weights = _weights(config, shape, BYTES[config.precision]) / GIB
    if config.rollout_engine != "vllm":
        tokens = config.completions_per_step * config.max_seq_length
        cache = shape.kv_bytes(tokens, BYTES[config.precision]) / GIB
        return {"KV cache": cache}
    if config.profile != "cpu":
        # Unsloth trains on the engine's own weights. A group has to fit beside them.
        share = config.gpu_memory_utilization * available - weights
        group = shape.kv_bytes(config.num_generations * config.max_seq_length) / GIB
        second = {} if by_unsloth(config) else {"rollout engine": weights}
        return second | {"KV cache": max(share, group)}
    # It keeps embeddings and output layer a second time, packed for its products, and a hand-over
    # makes both anew; what that took is not given back.
    packed = 3 * shape.embeddings * BYTES[config.precision] / GIB
    cache = float(os.environ.get("VLLM_CPU_KVCACHE_SPACE", 1))
    return {"rollout engine": VLLM + weights + packed, "KV cache": cache}


def _reward_models(config: Config, shape: ModelShape, learning: float) -> dict[str, float]:
    """GiB of learned rewards: their weights in 32 bit, and what a pass of theirs takes beyond
    the `learning` of the policy, which is at another time."""
    models = [_reward_shape(reward, config, shape) for reward in learned_rewards(config)]
    if not models:
        return {}
    weights = sum(4 * model.parameters for model in models) / GIB
    scoring = max(_scoring(config, model) for model in models) / GIB
    return {"reward models": weights + max(0, scoring - learning)}


def _reward_shape(reward: LearnedReward, config: Config, shape: ModelShape) -> ModelShape:
    if reward.path:
        base = read_shape(reward.folder())
    else:
        base = SHAPES.get(config.reward_model_base, shape)
        base = replace(base, layers=min(config.reward_layers or base.layers, base.layers))
    return replace(base, tied=True)  # no output layer of that size


def _scoring(config: Config, model: ModelShape) -> float:
    """Bytes: autocast's 16-bit copies of the linear layers, which it keeps for a pass, and
    one block's hidden states (in 32 bit, normed, in 16) and the gated MLP's four."""
    tokens = BATCH * config.max_seq_length
    return 2 * model.linear + tokens * (10 * model.hidden + 8 * model.intermediate)


def _trained(config: Config, shape: ModelShape) -> dict[str, float]:
    """GiB of what is trained and its Adam state.

    What is trained is in 32 bit; an adapter is computed with in the model's precision.
    """
    trained, adapter = shape.parameters, 0
    if not config.full_finetuning:
        trained = shape.lora_parameters(config.lora_r, config.lora_targets)
        adapter = (4 + BYTES[config.precision] % 4) * trained
    moments = 2 if "8bit" in config.optim else 8
    sizes = {"adapter": adapter, "gradients": 4 * trained, "optimizer": moments * trained}
    return {name: size / GIB for name, size in sizes.items() if size}


def _learning(config: Config, shape: ModelShape) -> dict[str, float]:
    """GiB that the backward of one pass needs kept, and the output layer beside it.

    With checkpointing a block keeps its input only, and one block at a time is computed
    again; Unsloth moves the inputs to main memory, but for two.
    """
    block, head = block_bytes(config, shape), output_bytes(config, shape)
    kept = shape.layers * block
    if config.gradient_checkpointing:
        layers = 2 if by_unsloth(config) else shape.layers
        kept = layers * pass_tokens(config) * shape.hidden * width_of(config) + block
        head = max(0, head - block)  # not at the same time
    if config.load_in_4bit:  # one layer at a time in 16 bit, in a buffer that stays
        kept += max(i * o for i, o in shape.layer_sizes.values()) * BYTES[config.precision]
    return {"activations": kept / GIB, "output layer": head / GIB}


def check_fit(config: Config, shape: ModelShape, hardware: Hardware) -> Estimate:
    """The estimate.

    Raises:
        BadInput: it does not fit, with what to change.
    """
    config = settled(config, shape, hardware)
    need = estimate(config, shape, hardware)
    if need.fits:
        return need
    raise BadInput(
        f"{config.model} needs about {need.total:.1f} GiB to train and {need.where} has "
        f"{need.available:.1f} GiB: try {', '.join(advice(config))}."
    )


def advice(config: Config) -> list[str]:
    """Settings that would take less."""
    smaller = pass_rows(config) // 2
    choices = {
        "full_finetuning: false": config.full_finetuning,
        "load_in_4bit: true": not config.load_in_4bit and config.profile != "cpu",
        f"micro_batch: {smaller}": smaller,
        "gradient_checkpointing: true": not config.gradient_checkpointing,
        "rollout_engine: transformers": config.rollout_engine == "vllm" and config.profile == "cpu",
        f"max_seq_length below {config.max_seq_length}": True,
        "a smaller model": True,
    }
    return [change for change, helps in choices.items() if helps]


def on_other_hardware(config: Config, shape: ModelShape) -> list[dict[str, str]]:
    """What the same recipe would take on each GPU profile: a row a profile."""
    rows = []
    for profile, memory in PROFILE_MEMORY.items():
        capability = 7.5 if profile == "t4" else 8.0
        special = config.by_profile.get(profile, {})
        kept = {key: config.origin(key) for key in Config.model_fields}
        chosen = {
            key: value
            for key, value in config.model_dump().items()
            if kept[key] in ("parameter", f"recipe {config.name}")
        }
        values = config.model_dump() | PROFILES[profile] | chosen | special | {"profile": profile}
        other = config.model_copy(update=values)
        hardware = Hardware(profile, memory, capability)
        other = settled(other, shape, hardware)
        need = estimate(other, shape, hardware)
        rows.append(
            {
                "profile": f"{profile} ({memory:.1f} GiB)",
                "needs": f"{need.total:.1f} GiB",
                "fits": "yes" if need.fits else "no",
                "checkpointing": "on" if other.gradient_checkpointing else "off",
                "with": ", ".join(f"{key} {value}" for key, value in special.items()),
            }
        )
    return rows
