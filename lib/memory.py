"""How much memory a run will take, estimated before it starts.

    plan = estimate(config, read_shape(folder), hardware)
    plan.total, plan.rows()     # GiB, and where they go, each with its formula

Training holds the most at the end of a pass's forward: what stays for the whole run, and what
backward needs of the pass. The formulas are ones that a reader can check, within 25% of what was
measured (benchmarks/results/memory_cpu.json; one model on a GPU, step_demo_nvidia_h200.json).
"""

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lib.config import Config
from lib.errors import BadInput
from lib.files import read_settings
from lib.hardware import (
    CUDA_CONTEXT,
    GIB,
    PROFILE_MEMORY,
    PROFILES,
    Hardware,
    detect_hardware,
    free_memory,
)
from lib.keys import translate

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
NF4 = 0.625  # bytes a weight: 4 bits, scales, and the layers that stay in 16 bit
MARGIN = 0.85  # of what there is: the estimate may be 15% low
EVALUATION_SHARE = 0.85  # of the card, which evaluation has alone; prompts' log-probs need more
PROCESS = 0.9  # GiB: Python, torch, transformers, Unsloth and TRL, ready to train
VLLM = 0.3  # GiB more for vLLM's libraries and engine on a CPU
PART = dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp")  # of a block; else: attention
PART |= dict.fromkeys(("w1", "w2", "w3"), "feed_forward") | {"in_proj": "conv"}
LOGIT_ROWS = 512  # rows of logits at a time, in the passes that compute them in parts
# Unsloth's standby replaces the share that was asked: the card's GiB, and the share it makes of it
# (unsloth_zoo's vllm_utils.load_vllm: tiers of the card's size, times 0.95).
STANDBY = ((40, 0.925), (25, 0.9), (20, 0.825), (14, 0.8), (10, 0.775), (0, 0.75))


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
    convolutions: int = 0  # the blocks of LFM2 that have one in place of attention
    context: int = field(default=0, compare=False)  # tokens that it reads at the most; 0: not known

    @property
    def layer_sizes(self) -> dict[str, tuple[int, int, int]]:
        """Inputs and outputs of a block's linear layers, and how many blocks have them."""
        h, m, n, without = self.hidden, self.intermediate, self.layers, self.convolutions
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        names = ("o_proj", "gate_proj", "up_proj", "down_proj")
        sizes = {"q_proj": (h, queries), "k_proj": (h, keys), "v_proj": (h, keys)}
        sizes = {name: (*size, n - without) for name, size in sizes.items()}
        if without:  # a convolution's own output layer has attention's name and size
            names, sizes["in_proj"] = ("out_proj", "w1", "w3", "w2"), (h, 3 * h, without)
        rest = (queries, h, n), (h, m, n), (h, m, n), (m, h, n)
        return sizes | dict(zip(names, rest, strict=True))

    @property
    def linear(self) -> int:
        """Weights in the linear layers of all blocks (what 4-bit loading shrinks)."""
        return sum(i * o * blocks for i, o, blocks in self.layer_sizes.values())

    @property
    def embeddings(self) -> int:
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        return self.linear + self.embeddings

    def lora_parameters(self, config: Config) -> int:
        """Weights of the recipe's adapter: r·(in + out) of each layer that peft adapts."""
        total, sizes, targets = 0, self.layer_sizes, config.target_modules
        for name in sizes if targets == "all-linear" else [n for n in targets if n in sizes]:
            inputs, outputs, blocks = sizes[name]
            total += sum(is_adapted(i, name, config) for i in range(blocks)) * (inputs + outputs)
        return config.r * total

    def kv_bytes(self, tokens: int, width: int = 2) -> int:
        """Keys and values of that many tokens, each number in `width` bytes."""
        layers = self.layers - self.convolutions
        return 2 * width * layers * self.kv_heads * self.head_dim * tokens


def named_blocks(config: Config) -> list[int]:
    """The blocks that the recipe names; none means all."""
    blocks = config.layers_to_transform
    return [blocks] if isinstance(blocks, int) else blocks or []


def is_adapted(block: int, layer: str, config: Config) -> bool:
    """Whether peft, by its rules, puts an adapter on a layer of this block."""
    place = f"model.layers.{block}.{PART.get(layer, 'self_attn')}.{layer}"
    blocks, left_out = named_blocks(config), config.exclude_modules or "(?!)"
    named = "layers" in (config.layers_pattern or "layers")
    if isinstance(left_out, list):
        left_out = rf"(.*\.)?({'|'.join(map(re.escape, left_out))})"
    return (not blocks or (named and block in blocks)) and not re.fullmatch(left_out, place)


# Models that recipes name, so that a plan needs no connection.
# fmt: off
SHAPES = {
    "LiquidAI/LFM2.5-1.2B-Instruct":    ModelShape(16, 2048, 8192, 32, 8, 64, 65536, True, 10),
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
    return shape_of(read_settings(folder / "config.json"))


def shape_of(settings: dict[str, Any]) -> ModelShape:
    """The shape in a model's configuration; sizes may stand under text_config, or in GPT-2's names.
    Raises BadInput where it does not say how large the model is."""
    inner = settings.get("text_config")
    text = settings | (inner if isinstance(inner, dict) else {})

    def size(*names: str) -> int:
        given = [text[name] for name in names if text.get(name)]
        if not given or type(given[0]) is not int or given[0] < 0:
            raise BadInput(
                f"The model's config.json has no {names[0]} (a whole number), so that its size is "
                f"not known: choose another model.",
                key="no-shape",
            )
        return given[0]

    hidden, heads = size("hidden_size", "n_embd"), size("num_attention_heads", "n_head")
    inner = text.get("intermediate_size") or text.get("n_inner") or 4 * hidden
    if text.get("block_auto_adjust_ff_dim"):  # LFM2
        inner = 2 * inner // 3
    return ModelShape(
        layers=size("num_hidden_layers", "n_layer"),
        hidden=hidden,
        intermediate=inner,
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or hidden // heads,
        vocab=size("vocab_size"),
        tied=text.get("tie_word_embeddings", True),
        convolutions=(text.get("layer_types") or []).count("conv"),
        context=0 if text.get("rope_scaling") else text.get("max_position_embeddings") or 0,
    )


Parts = dict[str, tuple[float, str]]  # what takes memory: bytes, and how they are computed


@dataclass(frozen=True)
class MemoryPlan:
    needs: Parts
    available: float  # GiB
    where: str

    @property
    def parts(self) -> dict[str, float]:
        """GiB by what takes them."""
        return {part: size / GIB for part, (size, _) in self.needs.items() if size}

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.total <= self.available

    def rows(self) -> list[dict[str, Any]]:
        """A row a part, for a table."""
        parts = self.parts.items()
        return [{"part": p, "GiB": round(gib, 2), "how": self.needs[p][1]} for p, gib in parts]


def estimate(config: Config, shape: ModelShape, hardware: Hardware) -> MemoryPlan:
    """What training takes on this hardware: of the GPU, or of main memory."""
    config = settled(config, shape, hardware)
    process, available = (PROCESS * GIB, "Python and its libraries"), hardware.memory
    if config.profile != "cpu":
        process, available = (CUDA_CONTEXT * GIB, "CUDA's context"), hardware.gpu_memory
    needs: Parts = {
        "process": process,
        "weights": _weights(config, shape, 4 if config.full_finetuning else None),
        **_generating(config, shape, available),
        **_reward_models(config, shape),
        **_trained(config, shape),
        **_learning(config, shape),
    }
    return MemoryPlan(needs, available, "this machine" if config.profile == "cpu" else hardware.gpu)


def settled(config: Config, shape: ModelShape, hardware: Hardware | None = None) -> Config:
    """The configuration with `gradient_checkpointing: auto` decided: on where it does not fit
    otherwise, with a margin for the estimate's own error, since it costs a second forward."""
    if config.gradient_checkpointing != "auto":
        return config
    hardware = hardware or detect_hardware(config.gpu_memory_cap)
    decided = config.model_copy(update={"gradient_checkpointing": False})
    need = estimate(decided, shape, hardware)
    if need.total > MARGIN * need.available:
        decided = config.model_copy(update={"gradient_checkpointing": True})
    decided._origins = config._origins  # nobody set it
    return decided


def by_unsloth(config: Config) -> bool:
    """Whether Unsloth's GPU kernels and trainer compute the pass."""
    return config.profile != "cpu" and config.backend != "transformers"


def engine_share(config: Config, card: float) -> float:
    """vLLM's share of a card of that many GiB in training: the recipe's, or what standby makes."""
    on = os.environ.get("UNSLOTH_VLLM_STANDBY", "0") != "0" and by_unsloth(config)
    if not on or os.environ.get("UNSLOTH_VLLM_STANDBY_UTIL_OVERRIDE", "0") != "0":
        return config.vllm_gpu_memory_utilization
    return 0.95 * next(share for least, share in STANDBY if card >= least)


def _weights(config: Config, shape: ModelShape, width: int | None = None) -> tuple[float, str]:
    """Of the policy. In 4 bit the embeddings and the output layer stay in 16."""
    width = width or BYTES[config.precision]
    if config.load_in_4bit:
        linear, rest = f"{shape.linear / 1e6:.0f} M × {NF4} bytes", f"{shape.embeddings / 1e6:.0f}"
        return shape.linear * NF4 + shape.embeddings * width, f"{linear} + {rest} M × {width}"
    return shape.parameters * width, f"{shape.parameters / 1e6:.0f} M weights × {width} bytes"


def _generating(config: Config, shape: ModelShape, available: float) -> Parts:
    """What writing completions holds beside the policy."""
    width, length = BYTES[config.precision], config.max_seq_length
    weights, formula = _weights(config, shape)
    if config.rollout_engine != "vllm":
        rows = config.completions_per_step
        cache = shape.kv_bytes(rows * length, width)
        return {"KV cache": (cache, f"{rows} completions of {length} tokens")}
    if config.profile == "cpu":
        # It keeps embeddings and output layer a second time, packed for its products, and a
        # hand-over makes both anew; what that took is not given back.
        packed = 3 * shape.embeddings * width
        cache = float(os.environ.get("VLLM_CPU_KVCACHE_SPACE", 1)) * GIB
        engine = (VLLM * GIB + weights + packed, "a second copy, its embeddings packed")
        return {"rollout engine": engine, "KV cache": (cache, "VLLM_CPU_KVCACHE_SPACE")}
    share = engine_share(config, available)
    group = shape.kv_bytes(config.num_generations * length)
    cache = max(share * available * GIB - weights, group)
    said = {"KV cache": (cache, f"{share:.2f} of the card less the weights, or one group")}
    # Unsloth trains on the engine's own weights.
    return said if by_unsloth(config) else {"rollout engine": (weights, formula)} | said


def _reward_models(config: Config, shape: ModelShape) -> Parts:
    """Learned rewards, in 32 bit."""
    from lib.rewards import learned_rewards

    weights = 0
    for reward in learned_rewards(config):
        base = SHAPES.get(config.reward_model_base, shape)
        layers = min(config.reward_layers or base.layers, base.layers)
        base = read_shape(reward.folder()) if reward.path else replace(base, layers=layers)
        weights += 4 * replace(base, tied=True).parameters  # no output layer of that size
    return {"reward models": (weights, f"{weights / 4e6:.0f} M weights × 4 bytes")}


def _trained(config: Config, shape: ModelShape) -> Parts:
    """What is trained, in 32 bit, and its optimizer's state."""
    count, adapter = shape.parameters, 0
    if not config.full_finetuning:
        count = shape.lora_parameters(config)
        adapter = 6 if config.precision != "fp32" else 4  # computed with in 16 bit
    widths = {"adapter": adapter, "gradients": 4, "optimizer": 2 if "8bit" in config.optim else 8}
    trained = f"{count / 1e6:.1f} M trained weights"
    return {n: (width * count, f"{trained} × {width} bytes") for n, width in widths.items()}


def pass_tokens(config: Config) -> tuple[int, int]:
    """Rows of one forward and backward, and its tokens: each prompt once for its group where
    prompts are shared (not by Unsloth's GPU trainer), else all rows as long as can be."""
    rows = min(config.per_device_train_batch_size, config.completions_per_step)
    if by_unsloth(config) or not config.shared_prompts:
        return rows, rows * config.max_seq_length
    groups = -(-rows // config.num_generations)
    prompt = config.max_seq_length - config.max_completion_length
    return rows, groups * prompt + rows * config.max_completion_length


def _learning(config: Config, shape: ModelShape) -> Parts:
    """What the backward of one pass keeps, and the output layer beside it."""
    rows, tokens = pass_tokens(config)
    h, m, fast = shape.hidden, shape.intermediate, by_unsloth(config)
    shared = config.shared_prompts and not fast
    width = 4 if config.full_finetuning and shared else BYTES[config.precision]
    # What a token leaves in a block: the norms, queries, keys, values, attention's output and the
    # gated MLP; Unsloth's kernels compute half of it again.
    numbers, formula = (5 * h + 2 * m, "5h + 2m") if fast else (9 * h + 5 * m, "9h + 5m")
    block = tokens * numbers * width
    size, how = shape.layers * block, f"{shape.layers} blocks × {tokens} tokens × ({formula})"
    if config.gradient_checkpointing:  # a block's input, and one block at a time
        layers = 2 if fast else shape.layers  # Unsloth moves the others to main memory
        size = layers * tokens * h * width + block
        how = f"{layers} blocks' inputs of {tokens} tokens, and one block ({formula})"
    if config.load_in_4bit:  # one layer at a time in 16 bit
        size += h * m * 2
    logits = rows * config.max_completion_length
    if fast:  # as unsloth_zoo's fused losses split them
        logits = min(logits, max(LOGIT_ROWS, -(-logits // 8)))
        head = 8 * logits * shape.vocab
    elif shared:
        head = min(logits, LOGIT_ROWS) * width * shape.vocab
    else:  # logits, log-probs and exponentials in 32 bit; on a CPU two steps' worth
        head = 16 * logits * shape.vocab * (2 if config.profile == "cpu" else 1)
    copies = config.profile == "cpu", config.full_finetuning, 2 * config.cast_lm_head_to_fp32
    head += sum(copies) * width * shape.vocab * h
    return {
        "activations": (size, f"{how} × {width} bytes"),
        "output layer": (head, f"{logits} rows of {shape.vocab} logits, or some at a time"),
    }


def check_fit(config: Config, shape: ModelShape, hardware: Hardware) -> MemoryPlan:
    """The plan; raises BadInput where training does not fit, with what to change."""
    if 0 < shape.context < config.max_seq_length:
        said = f"max_seq_length is {config.max_seq_length} and {config.model} reads {shape.context}"
        raise BadInput(f"{said} tokens at the most: lower it to that.", key="context")
    config = settled(config, shape, hardware)
    need = estimate(config, shape, hardware)
    if not need.fits:
        raise BadInput(
            f"{config.model} needs about {need.total:.1f} GiB to train and {need.where} has "
            f"{need.available:.1f} GiB: try {', '.join(advice(config))}.",
            key="memory",
        )
    return need


def ran_out(shape: ModelShape, config: Config) -> BadInput:
    """What was planned and is free when training ran out of memory, and what to change."""
    hardware = detect_hardware(config.gpu_memory_cap)
    config = settled(config, shape, hardware)
    need = estimate(config, shape, hardware)
    parts = ", ".join(f"{name} {size:.1f}" for name, size in need.parts.items())
    return BadInput(
        f"Training ran out of memory with {free_memory(hardware):.1f} GiB free; planned were "
        f"{need.total:.1f} of {need.available:.1f} GiB ({parts}): try {', '.join(advice(config))}.",
        key="out-of-memory",
    )


def evaluation_gib(config: Config, shape: ModelShape) -> float:
    """GiB that evaluation takes at least, alone on the card: 16-bit weights, one sequence."""
    return (2 * shape.parameters + shape.kv_bytes(config.max_seq_length)) / GIB + CUDA_CONTEXT


def advice(config: Config) -> list[str]:
    """Settings that would take less."""
    smaller, on_cpu = pass_tokens(config)[0] // 2, config.profile == "cpu"
    choices = {
        "full_finetuning: false": config.full_finetuning,
        "load_in_4bit: true": not config.load_in_4bit and not on_cpu,
        f"per_device_train_batch_size: {smaller}": smaller,
        "gradient_checkpointing: true": not config.gradient_checkpointing,
        "rollout_engine: transformers": config.rollout_engine == "vllm" and on_cpu,
    }
    always = [f"max_seq_length below {config.max_seq_length}", "a smaller model"]
    return [change for change, helps in choices.items() if helps] + always


def on_other_hardware(config: Config, shape: ModelShape) -> list[dict[str, str]]:
    """What the same recipe would take on each GPU profile: a row a profile."""
    rows = []
    given = {k: v for k, v in config.given().items() if "recipe on" not in config.origin(k)}
    for profile, memory in PROFILE_MEMORY.items():
        special = config.by_profile.get(profile, {})
        settings = PROFILES[profile] | given | translate(special)
        other = config.model_copy(update=settings | {"profile": profile})
        hardware = Hardware(profile, memory, 7.5 if profile == "t4" else 8.0)
        other = settled(other, shape, hardware)
        need = estimate(other, shape, hardware)
        row = {
            "profile": f"{profile} ({memory:.1f} GiB)",
            "needs": f"{need.total:.1f} GiB",
            "fits": "yes" if need.fits else "no",
            "checkpointing": "on" if other.gradient_checkpointing else "off",
        }
        settings = ", ".join(f"{key} {value}" for key, value in special.items())
        rows.append(row | ({"the recipe's settings for it": settings} if settings else {}))
    return rows
