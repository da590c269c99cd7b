"""The keys that recipes take from TRL and peft: what the suite changes about them, and why.

A recipe holds any field of `GRPOConfig` and `LoraConfig` under its own name. Which there are, with
types and defaults, stands in library_keys.json (`python -m tools.library_keys`); only what the
suite does differently is written down, in library_changes.yaml. Here are what old recipes write,
and which keys contradict each other.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from lib.errors import BadInput

_HERE = Path(__file__).parent
LIBRARY = json.loads(_HERE.joinpath("library_keys.json").read_text(encoding="utf-8"))
TRL: dict[str, list] = LIBRARY["trl"]["fields"]  # name → type, default, what it is for
PEFT: dict[str, list] = LIBRARY["peft"]["fields"]
# Of LoraConfig what a policy can be trained, merged and served with.
LORA = (
    *("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "init_lora_weights"),
    *("exclude_modules", "layers_to_transform", "layers_pattern"),
)


def _table(name: str) -> dict[str, Any]:
    """A table of library_changes.yaml, with a key for each word of its keys."""
    rows = CHANGES[name].items()
    return {key: value for keys, value in rows for key in keys.split()}


CHANGES = yaml.safe_load(_HERE.joinpath("library_changes.yaml").read_text(encoding="utf-8"))
DEFAULTS, DECIDED, FOLLOWS = map(_table, ("defaults", "decided", "follows"))
LIMITS, TYPES, ALIASES, MEANS = map(_table, ("limits", "types", "aliases", "means"))
BECOME, OPTIMIZER_PACKAGES = map(_table, ("become", "optimizer_packages"))


def library_fields() -> dict[str, tuple[Any, Any]]:
    """name → (type, default) of each field that a recipe may hold, as pydantic wants them."""
    names = {n: f for n, f in TRL.items() if n not in {*DECIDED, *ALIASES, *BECOME}}
    fields = {}
    for name, (kind, default, _) in (names | {n: PEFT[n] for n in LORA}).items():
        kind = kind.replace("dict | str", "dict").replace("dict[str, Any] | str", "dict")
        limits = LIMITS.get(name, {"ge": 0})
        words = {
            "Literal": Literal,
            "float": Annotated[float, Field(**limits)],
            "int": Annotated[int, Field(**{"lt": 2**31} | limits)],
        }
        hint = eval(TYPES.get(name, kind), words)  # the text of our two files
        fields[name] = (hint, DEFAULTS.get(name, (default,))[0])
    return fields


# Where old recipes write 0 for none.
ZERO_IS_NONE = (
    *("delta", "off_policy_mask_threshold"),
    *("vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min"),
)


def translate(layer: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings under today's names: what old recipes and TRL's scripts write."""
    new: dict[str, Any] = {}
    for key, value in layer.items():
        if not isinstance(key, str):
            raise BadInput(f"There is a key {key!r}: keys are words.", key="unknown-key")
        name = ALIASES.get(key, key)
        if name != key and name in layer:
            raise BadInput(f"{key} and {name} are the same key: leave one out.", key="twice")
        if name in DECIDED and value != {}:
            raise BadInput(f"{key} cannot be set: {DECIDED[name]}.", key="decided")
        if name not in DECIDED:  # nothing, as an earlier run's record has it
            new |= _today(name, value, layer)
    return new


def _today(name: str, value: Any, layer: Mapping[str, Any]) -> dict[str, Any]:
    """A key of a recipe as the keys that stand for it now."""
    if name in ZERO_IS_NONE and value == 0 and value is not False:
        return {name: None}
    if name == "adam_betas":
        if not isinstance(value, list) or len(value) != 2:
            raise BadInput(f"adam_betas is {value!r}: it should be two numbers.", key="value")
        return {"adam_beta1": value[0], "adam_beta2": value[1]}
    if name == "min_lr_rate":
        return {"lr_scheduler_kwargs": {name: value} if value else None}
    if name == "loss_constants" and isinstance(value, dict):
        of = {each: "sapo" if each.startswith("temperature") else "vespo" for each in value}
        return {f"{of[each]}_{each}": number for each, number in value.items()}
    switches = {"ref_model_sync_steps": "sync_ref_model", "entropy_target": "use_adaptive_entropy"}
    if name in switches and switches[name] not in layer:
        return {switches[name]: bool(value)} | ({name: value} if value else {})
    if isinstance(value, bool):
        if name == "scale_rewards":
            return {name: "group" if value else "none"}
        if name in ("bf16", "fp16"):
            return {"precision": name} if value else {}
        if name == "use_vllm":
            return {"rollout_engine": "vllm" if value else "transformers"}
    if name == "gradient_accumulation_steps" and isinstance(value, int):
        return _prompts_per_step(value, layer)
    if name in BECOME:
        raise BadInput(f"{name} is {value!r}: it should be {BECOME[name]}.", key="value")
    return {name: value}


def _prompts_per_step(accumulation: int, layer: Mapping[str, Any]) -> dict[str, Any]:
    """TRL's way to say how many completions a step takes, where all of it is said."""
    rows = layer.get("per_device_train_batch_size", layer.get("micro_batch"))
    group = layer.get("num_generations", TRL["num_generations"][1])
    if "prompts_per_step" in layer or not isinstance(rows, int) or not isinstance(group, int):
        raise BadInput(
            "gradient_accumulation_steps follows from prompts_per_step × num_generations / "
            "per_device_train_batch_size: leave it out.",
            key="decided",
        )
    if group < 1 or rows * accumulation % group:
        raise BadInput(
            f"per_device_train_batch_size {rows} × gradient_accumulation_steps {accumulation} "
            f"completions do not divide into groups of num_generations {group}: change one.",
            key="group-does-not-divide",
        )
    return {"prompts_per_step": rows * accumulation // group}


NO_ADAPTER = {"lm_head", "embed_tokens", "embed_in", "wte", "embeddings"}


def lacks_package(optim: str) -> bool:
    package = next((name for word, name in OPTIMIZER_PACKAGES.items() if word in optim), "")
    return bool(package) and find_spec(package) is None


def idle_constants(c: Any) -> bool:
    """Whether a constant was given for another loss than the recipe's."""
    given = [key for key in c.given() if key.startswith(("sapo_", "vespo_"))]
    return not all(key.startswith(c.loss_type) for key in given)


def is_launchable(c: Any) -> bool:
    """Whether the recipe's file for accelerate asks for a way to train that works here."""
    try:
        given = yaml.safe_load(c.find(c.accelerate_config).read_text())
        kind, how = given.get("distributed_type"), given.get("fsdp_config") or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError):
        return False
    return kind == "MULTI_GPU" or (kind == "FSDP" and how.get("fsdp_version") == 2)


def corrects(c: Any) -> bool:
    """Whether the loss is corrected for vLLM's slightly different probabilities: on a CPU, where
    both compute nearly the same, only where it was asked for."""
    key = "vllm_importance_sampling_correction"
    wanted = c.profile != "cpu" or c.origin(key) != "default"
    return c.rollout_engine == "vllm" and wanted and getattr(c, key)


Rule = tuple[str, Callable[..., Any], str]  # what the error is called, when it holds, the sentence


def broken(rules: Iterable[Rule], **of: Any) -> Iterator[BadInput]:
    """What these facts break, in the rules' order."""
    for key, holds, sentence in rules:
        if holds(**of):
            yield BadInput(sentence.format(**of), key)


# Of a recipe (c: the configuration, h: the hardware). TRL refuses several itself, late.
# fmt: off
RULES: tuple[Rule, ...] = (
    ("no-gpu", lambda c, h: c.profile != "cpu" and not h.gpu,
     'profile {c.profile} needs a GPU and there is none: set profile to "cpu" or auto.'),
    ("no-bf16", lambda c, h: c.precision == "bf16" and h.gpu and h.capability < 8.0,
     "{h.gpu} has no bf16 (compute capability {h.capability}, bf16 needs 8.0): set precision to "
     "fp16."),
    ("no-fp16", lambda c, h: c.precision == "fp16" and not h.gpu,
     "precision fp16 needs a GPU: set precision to bf16 or fp32 on the CPU."),
    ("passes", lambda c, h: c.per_device_train_batch_size < c.completions_per_step
     and c.completions_per_step % c.per_device_train_batch_size,
     "prompts_per_step {c.prompts_per_step} × num_generations {c.num_generations} = "
     "{c.completions_per_step} completions do not divide into passes of "
     "per_device_train_batch_size {c.per_device_train_batch_size}: choose one that does."),
    ("processes", lambda c, h: c.completions_per_step % (c.num_processes * max(1, min(
        c.per_device_train_batch_size, c.completions_per_step // c.num_processes))),
     "prompts_per_step × num_generations = {c.completions_per_step} completions do not divide into "
     "passes of per_device_train_batch_size {c.per_device_train_batch_size} in {c.num_processes} "
     "processes: change one of them."),
    ("processes", lambda c, h: c.num_processes > 1 and (c.resample or c.backend == "unsloth"
     or (c.profile == "cpu" and c.rollout_engine == "vllm")),
     "resample, backend unsloth and, on a CPU, rollout_engine vllm work in one process, and "
     "num_processes is {c.num_processes}: set resample to 0 and the others to transformers."),
    ("processes", lambda c, h: not c.find(c.accelerate_config),
     "accelerate_config {c.accelerate_config}: there is no such file; without one, num_processes "
     "processes train by DDP."),
    ("processes", lambda c, h: c.accelerate_config and not is_launchable(c),
     "accelerate_config {c.accelerate_config}: processes train by DDP (distributed_type MULTI_GPU) "
     "or, where the policy is larger than a GPU, by FSDP with fsdp_version 2, whose weights keep "
     "their names: choose one, as docs/training.md shows."),
    ("server", lambda c, h: c.rollout_engine == "vllm" and c.vllm_mode == "server"
     and (c.profile == "cpu" or (c.backend != "transformers" and c.num_processes == 1)),
     "vllm_mode server takes weights by NCCL, from a GPU on which transformers trains: set backend "
     "to transformers there, or vllm_mode to colocate."),
    ("no-room", lambda c, h: c.max_completion_length >= c.max_seq_length,
     "max_completion_length {c.max_completion_length} leaves no room for a prompt in "
     "max_seq_length {c.max_seq_length}: lower the one or raise the other."),
    ("4bit-full", lambda c, h: c.load_in_4bit and c.full_finetuning,
     "full_finetuning and load_in_4bit exclude each other, since 4-bit weights cannot be trained: "
     "set one of them to False."),
    ("4bit-rollouts", lambda c, h: c.load_in_4bit and c.rollout_engine == "vllm"
     and c.profile != "cpu" and (c.backend == "transformers" or c.num_processes > 1),
     "Unsloth alone gives vLLM the adapter of a 4-bit policy (TRL merges it into 4 bits, which "
     "rounds it away): leave backend at auto and num_processes at 1, or set rollout_engine to "
     "transformers."),
    ("unsloth-full", lambda c, h: c.full_finetuning and c.backend == "unsloth"
     and c.rollout_engine == "vllm" and c.profile != "cpu",
     "Unsloth trains no weights that it shares with vLLM: set full_finetuning to False, or backend "
     "or rollout_engine to transformers."),
    ("fp32-head", lambda c, h: c.cast_lm_head_to_fp32
     and (c.load_in_4bit or c.backend != "transformers"),
     "cast_lm_head_to_fp32 is for weights in 16 bit, trained and sampled by this suite: set "
     "backend to transformers and load_in_4bit to False, or leave it at False."),
    ("unpaid", lambda c, h: c.rewards and not any(
        each.get("weight", 1) if isinstance(each, dict) else each for each in c.rewards.values()),
     "rewards pays nothing, since every weight in it is 0: give one of them a weight."),
    ("targets", lambda c, h: not c.target_modules,
     'target_modules is empty, so that nothing would be trained: name layers, or "all-linear".'),
    ("targets", lambda c, h: {*c.target_modules} & NO_ADAPTER,
     "target_modules {c.target_modules} names embeddings or the output layer, which vLLM does not "
     "take from an adapter and which many models share: name layers of the blocks only."),
    ("targets", lambda c, h: isinstance(c.target_modules, list)
     and len({*c.target_modules}) < len(c.target_modules),
     "target_modules {c.target_modules} names a layer twice: leave one out."),
    ("optimizer-package", lambda c, h: lacks_package(c.optim),
     "optim {c.optim} needs a package that is not installed: install it, or set optim to "
     "adamw_torch."),
    ("schedule", lambda c, h: c.lr_scheduler_type == "reduce_lr_on_plateau",
     "lr_scheduler_type reduce_lr_on_plateau waits for an evaluation that the suite does not run: "
     "set it to constant, linear or cosine."),
    ("schedule", lambda c, h: c.lr_scheduler_type == "warmup_stable_decay"
     and "num_decay_steps" not in (c.lr_scheduler_kwargs or {}),
     "lr_scheduler_type warmup_stable_decay wants the length of its end: set lr_scheduler_kwargs "
     "to {{num_decay_steps: …}}."),
    ("schedule", lambda c, h: c.lr_scheduler_type.startswith("cosine_with_min_lr")
     and not {"min_lr", "min_lr_rate"} & {*(c.lr_scheduler_kwargs or ())},
     "lr_scheduler_type {c.lr_scheduler_type} wants where it ends: set lr_scheduler_kwargs to "
     "{{min_lr_rate: 0.1}}."),
    ("schedule", lambda c, h: "min_lr_rate" in (c.lr_scheduler_kwargs or {})
     and not c.lr_scheduler_type.startswith("cosine"),
     "min_lr_rate is where a cosine ends, and lr_scheduler_type is {c.lr_scheduler_type}: set it "
     "to cosine, or leave min_lr_rate out."),
    ("ppo", lambda c, h: c.algorithm == "ppo" and not c.shared_prompts,
     "ppo reads its values where shared_prompts computes: set it to True."),
    ("keep-best", lambda c, h: c.keep == "best" and not c.validation_steps,
     "keep best needs a validation to tell which adapter is best: set validation_steps, or keep "
     "to last."),
    ("eval-k", lambda c, h: c.eval_samples and max(c.eval_k, default=1) > c.eval_samples,
     "eval_k {c.eval_k} asks for more than the {c.eval_samples} samples a problem: raise "
     "eval_samples to the largest of them."),
    # the loss
    ("constants", lambda c, h: idle_constants(c),
     "The recipe sets constants of sapo or vespo, and loss_type {c.loss_type} takes none of them: "
     "leave them out, or set loss_type to theirs."),
    ("cispo", lambda c, h: c.loss_type == "cispo" and c.epsilon_high <= 1,
     "epsilon_high {c.epsilon_high} would hold every token's weight below that, since cispo takes "
     "it as the bound of the ratio itself: set it above 1, as to 5.0."),
    ("luspo", lambda c, h: c.loss_type == "luspo" and c.importance_sampling_level == "token",
     "loss_type luspo weighs whole completions: set importance_sampling_level to sequence."),
    ("vespo", lambda c, h: c.loss_type == "vespo" and c.importance_sampling_level == "sequence",
     "loss_type vespo makes a completion's ratio from its tokens' itself: set "
     "importance_sampling_level to token."),
    ("delta", lambda c, h: c.delta and c.loss_type in ("cispo", "sapo", "vespo"),
     "delta bounds a clipped ratio, and loss_type {c.loss_type} does not clip: leave delta out."),
    ("delta", lambda c, h: c.delta and c.delta <= 1 + c.epsilon_high,
     "delta {c.delta} is within the clip range: set it above 1 + epsilon_high {c.epsilon_high}."),
    ("gdpo", lambda c, h: c.multi_objective_aggregation == "normalize_then_sum"
     and (c.scale_rewards != "group" or c.resample),
     "multi_objective_aggregation normalize_then_sum scales each reward within its group, and "
     "learns from groups whose totals are alike: leave scale_rewards at group and resample at 0."),
    ("reference", lambda c, h: c.sync_ref_model and not (c.beta and c.full_finetuning),
     "sync_ref_model moves a reference model of its own, which there is with full_finetuning and a "
     "beta above 0: set both, or leave sync_ref_model and ref_model_sync_steps out."),
    ("batching", lambda c, h: c.use_transformers_continuous_batching
     and c.rollout_engine == "transformers" and c.precision != "fp32",
     "use_transformers_continuous_batching has TRL round the trained weights to {c.precision}, in "
     "which a step's changes are lost: set rollout_engine to vllm, precision to fp32, or it to "
     "False."),
    ("liger", lambda c, h: c.use_liger_kernel and c.profile == "cpu",
     "use_liger_kernel replaces layers by kernels that only run on a GPU: leave it out."),
    # the sampler
    ("truncated-sampling", lambda c, h: corrects(c) and (c.top_p < 1 or c.top_k or c.min_p),
     "top_p {c.top_p}, top_k {c.top_k} and min_p {c.min_p} cut the sampler's distribution, which "
     "biases its importance correction (trl#6789): leave them at 1.0, 0 and 0.0, or set "
     "vllm_importance_sampling_correction to False."),
    ("sampler", lambda c, h: corrects(c) and c.loss_type == "vespo"
     and c.vllm_importance_sampling_mode.startswith("sequence"),
     "loss_type vespo corrects token by token and vllm_importance_sampling_mode is "
     "{c.vllm_importance_sampling_mode}: set it to token_truncate or token_mask."),
    ("sampler", lambda c, h: corrects(c) and c.vllm_importance_sampling_clip_max
     and (c.vllm_importance_sampling_clip_min or 0) >= c.vllm_importance_sampling_clip_max,
     "vllm_importance_sampling_clip_min {c.vllm_importance_sampling_clip_min} is not below "
     "vllm_importance_sampling_clip_max {c.vllm_importance_sampling_clip_max}: change one."),
    ("sampler", lambda c, h: corrects(c) and c.vllm_importance_sampling_mode.endswith("truncate")
     and not (c.vllm_importance_sampling_clip_min or c.vllm_importance_sampling_clip_max),
     "vllm_importance_sampling_mode {c.vllm_importance_sampling_mode} has no bound to truncate "
     "at: set vllm_importance_sampling_clip_max."),
    ("sampling", lambda c, h: c.rollout_engine == "vllm"
     and not {*(c.generation_kwargs or ())} <= {*LIBRARY["sampling"]},
     "generation_kwargs {c.generation_kwargs} holds what vLLM's SamplingParams do not have: see "
     "their names in vLLM's documentation."),
)
# fmt: on
