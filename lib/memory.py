"""How much memory a run will take, told before it starts.

    need = estimate(config, read_shape(folder), hardware)
    need.total, need.parts     # GiB, and where they go

On a GPU with vLLM the engine takes its share (gpu_memory_utilization) for
weights and KV cache, Unsloth trains on the same weights, and what is left must
hold adapter, optimizer and activations.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from lib.config import Config
from lib.errors import BadInput
from lib.hardware import GIB, PROFILE_MEMORY, PROFILES, Hardware

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
NF4 = 0.5625  # bytes a weight: 4 bits, and a scale for each block of 64
CUDA_CONTEXT = 0.6  # GiB, before anything is loaded
PROCESS = 1.6  # GiB of main memory for Python and its libraries


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
    def linear(self) -> int:
        """Weights in the linear layers of all blocks (what 4-bit loading shrinks)."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (2 * queries + 2 * keys)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def embeddings(self) -> int:
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        return self.linear + self.embeddings

    def lora_parameters(self, r: int) -> int:
        """Weights of an adapter of rank r on all linear layers: r·(in + out) each."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        h, m = self.hidden, self.intermediate
        return self.layers * r * (2 * (h + queries) + 2 * (h + keys) + 3 * (h + m))

    def kv_bytes(self, tokens: int) -> int:
        """Keys and values of so many tokens, in 16 bit."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim * tokens


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
    told = json.loads((folder / "config.json").read_text())
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
    on_gpu = bool(hardware.gpu)
    available = hardware.gpu_memory if on_gpu else hardware.memory
    weights = _weights(config, shape)
    parts = {"process": CUDA_CONTEXT if on_gpu else PROCESS, "weights": weights}
    if on_gpu and config.rollout_engine == "vllm":
        # Unsloth trains on the engine's own weights. A group has to fit beside them.
        share = config.gpu_memory_utilization * available - weights
        group = shape.kv_bytes(config.num_generations * config.max_seq_length) / GIB
        parts["KV cache"] = max(share, group)
    else:
        tokens = config.micro_batch * config.max_seq_length
        parts["KV cache"] = shape.kv_bytes(tokens) / GIB
    trained = shape.parameters if config.full_finetuning else shape.lora_parameters(config.lora_r)
    moments = 2 if "8bit" in config.optim else 8
    parts["trained weights"] = 0.0 if config.full_finetuning else 4 * trained / GIB
    parts["gradients"] = 4 * trained / GIB
    parts["optimizer"] = moments * trained / GIB
    parts["activations"] = _activations(config, shape)
    return Estimate(parts, available, hardware.gpu or "this machine's memory")


def _weights(config: Config, shape: ModelShape) -> float:
    per_weight = NF4 if config.load_in_4bit else BYTES[config.precision]
    return (shape.linear * per_weight + shape.embeddings * BYTES[config.precision]) / GIB


def _activations(config: Config, shape: ModelShape) -> float:
    """What the backward pass needs kept of one micro-batch.

    A block keeps about 16 hidden and 3 intermediate vectors a token (its inputs,
    norms, projections and the gated product); with checkpointing only its input is
    kept, and one block at a time is computed again. The output layer works on the
    completion's tokens, in 32 bit, forward and backward.
    """
    width = BYTES[config.precision]
    tokens = config.micro_batch * config.max_seq_length
    block = tokens * (16 * shape.hidden + 3 * shape.intermediate) * width
    kept = shape.layers * tokens * shape.hidden * width
    blocks = kept + block if config.gradient_checkpointing else shape.layers * block
    logits = 2 * 4 * config.max_completion_length * shape.vocab
    return (blocks + logits) / GIB


def check_fit(config: Config, shape: ModelShape, hardware: Hardware) -> Estimate:
    """The estimate.

    Raises:
        BadInput: it does not fit, with what to change.
    """
    need = estimate(config, shape, hardware)
    if need.fits:
        return need
    advice = [
        "load_in_4bit: true" if not config.load_in_4bit and hardware.gpu else "",
        f"micro_batch: {max(1, config.micro_batch // 2)}" if config.micro_batch > 1 else "",
        "gradient_checkpointing: true" if not config.gradient_checkpointing else "",
        f"max_seq_length below {config.max_seq_length}",
        "a smaller model",
    ]
    raise BadInput(
        f"{config.model} needs about {need.total:.1f} GiB to train and {need.where} has "
        f"{need.available:.1f} GiB: try {', '.join(a for a in advice if a)}."
    )


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
        values = config.model_dump() | PROFILES[profile] | chosen | special
        other = config.model_copy(update=values)
        hardware = Hardware(profile, memory, capability)
        need = estimate(other, shape, hardware)
        rows.append(
            {
                "profile": f"{profile} ({memory:.1f} GiB)",
                "needs": f"{need.total:.1f} GiB",
                "fits": "yes" if need.fits else "no",
                "with": ", ".join(f"{key} {value}" for key, value in special.items()),
            }
        )
    return rows
