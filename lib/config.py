"""A recipe becomes the configuration of a run: defaults < profile < recipe < parameter.

    >>> config = resolve("demo", {"max_steps": 2})
    >>> config.max_steps, config.origin("max_steps")
    (2, 'parameter')

Everything a user can set is a field of `Config` below: a key in a recipe, a
papermill parameter, and an argument of the runner, under the same name.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from lib.errors import BadInput, nearest
from lib.hardware import PROFILES, Hardware, choose_profile, detect_hardware
from lib.training.loss_settings import check_loss

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "notebooks" / "recipes"
LITERALS = (str, int, float, bool, list, dict, tuple)


class Config(BaseModel):
    """The effective configuration of a run. Each field's comment is its documentation."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    # --- the run -----------------------------------------------------------
    name: str = "custom"  # the recipe's name
    run: str = ""  # folder under output_dir; "": the recipe's name
    output_dir: str = "outputs"  # relative to the repository
    profile: Literal["auto", "cpu", "t4", "rtx16", "l4", "a100", "h100"] = "auto"
    by_profile: dict[str, dict[str, Any]] = {}  # settings of this recipe on one profile
    seed: int = Field(0, ge=0)
    resume: bool = False  # training goes on from the run's last checkpoint
    report_to: list[Literal["wandb", "tensorboard", "trackio"]] = []

    # --- the policy --------------------------------------------------------
    model: str = "embedded"  # the embedded SmolLM2-135M, a Hub name, or a local folder
    backend: Literal["auto", "unsloth", "transformers"] = "auto"
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    load_in_4bit: bool = False
    # logits in 32 bit, in training and in vLLM, which then agree better on what is probable
    cast_lm_head_to_fp32: bool = False
    max_seq_length: int = Field(1024, gt=0)  # tokens of prompt and completion together
    full_finetuning: bool = False  # True: all weights, no adapter
    lora_r: int = Field(16, gt=0)
    lora_alpha: int = Field(32, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_targets: Literal["all-linear"] | list[str] = "all-linear"
    # compute activations again in backward; auto: where they do not fit otherwise
    gradient_checkpointing: bool | Literal["auto"] = "auto"

    # --- the task ----------------------------------------------------------
    task: str = "gsm8k"
    task_config: dict[str, Any] = {}
    data_dir: str = ""  # folder of JSON Lines; "": GRPO_DATA_DIR, else the Hub
    prompt_format: str = "reasoning"
    shots: int = Field(0, ge=0)  # worked examples in the prompt
    train_problems: int = Field(0, ge=0)  # 0: all
    rewards: dict[str, float | dict[str, Any]] = {"correctness": 1.0}
    preflight_prompts: int = Field(32, ge=0)  # sampled before training; 0: all
    ignore_preflight: bool = False  # True: train although it found no signal
    drop_dead: bool = False  # True: leave out what the preflight found always right, always wrong
    curriculum: Literal["none", "easy_first"] = "none"  # order by the preflight's pass rates

    # --- the warm-up -------------------------------------------------------
    sft_steps: int = Field(0, ge=0)  # supervised steps on right answers, before GRPO; 0: none
    sft_batch: int = Field(8, gt=0)  # right answers a step
    sft_learning_rate: float = Field(1e-4, gt=0)

    # --- GRPO --------------------------------------------------------------
    max_steps: int = Field(200, gt=0)  # optimizer steps
    # An optimizer step trains on prompts_per_step × G completions.
    prompts_per_step: int = Field(4, gt=0)
    num_generations: int = Field(8, ge=2)  # G, completions a prompt
    micro_batch: int = Field(8, gt=0)  # completions in one forward and backward pass
    max_completion_length: int = Field(256, gt=0)  # tokens
    resample: int = Field(0, ge=0)  # further prompts a step may try for groups without signal
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)  # 0: all
    min_p: float = Field(0.0, ge=0, lt=1)
    repetition_penalty: float = Field(1.0, gt=0)  # of the sampler alone; 1: none
    learning_rate: float = Field(1e-5, gt=0)
    lr_scheduler: Literal["constant", "linear", "cosine", "constant_with_warmup"] = "cosine"
    min_lr_rate: float = Field(0.0, ge=0, lt=1)  # cosine ends at this share of learning_rate
    warmup_steps: int = Field(0, ge=0)
    optim: str = "adamw_torch"
    adam_betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        [0.9, 0.999], min_length=2, max_length=2
    )
    adam_epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    # What a reward is compared with: its group (grpo), the group's others (rloo), the whole step
    # (reinforce), or a value head (ppo). 03 trains grpo, 07 all; the loss keys are grpo's.
    algorithm: Literal["grpo", "rloo", "reinforce", "ppo"] = "grpo"
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"] = (
        "dapo"
    )
    loss_constants: dict[str, float] = {}  # of sapo and vespo: see lib.training.loss_settings
    importance_sampling_level: Literal["token", "sequence"] = "token"  # sequence: GSPO
    scale_rewards: Literal["group", "batch", "none"] = "group"
    # normalize_then_sum: each reward within its group before they are added (GDPO)
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = (
        "sum_then_normalize"
    )
    beta: float = Field(0.0, ge=0)  # weight of the KL to the reference model
    use_bias_correction_kl: bool = True  # weigh the KL by the policies' ratio: unbiased gradient
    ref_model_sync_steps: int = Field(0, ge=0)  # the reference follows the policy; 0: never
    ref_model_mixup_alpha: float = Field(0.6, gt=0, le=1)  # by this share each time
    epsilon: float = Field(0.2, gt=0)
    epsilon_high: float = Field(0.2, gt=0)
    delta: float = Field(0.0, ge=0)  # bounds the ratio where the advantage is negative; 0: nothing
    # drops completions of negative advantage that the policy has left behind by more nats a token
    # than this (DeepSeek-V3.2); 0: none
    off_policy_mask_threshold: float = Field(0.0, ge=0)
    top_entropy_quantile: float = Field(1.0, gt=0, le=1)  # train on this share, the most uncertain
    entropy_coef: float = Field(0.0, ge=0)  # bonus for the policy's entropy, a nat a token
    entropy_target: float = Field(0.0, ge=0)  # entropy_coef adapts to keep this; 0: it stays
    gae_lambda: float = Field(0.95, ge=0, le=1)  # ppo: how far advantages look ahead
    value_learning_rate: float = Field(1e-3, gt=0)  # ppo: of the value head
    value_clip: float = Field(0.2, gt=0)  # ppo: how far a value moves in a step
    num_iterations: int = Field(1, gt=0)  # updates from one batch of rollouts
    mask_truncated_completions: bool = False
    shared_prompts: bool = True  # compute a prompt once for its group, where the model allows it
    rollout_engine: Literal["vllm", "transformers"] = "transformers"
    vllm_importance_sampling_correction: bool = True
    vllm_importance_sampling_mode: Literal[
        "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = "sequence_mask"
    vllm_importance_sampling_clip_max: float = Field(3.0, ge=0)  # 0: no bound
    vllm_importance_sampling_clip_min: float = Field(0.0, ge=0)
    gpu_memory_utilization: float = Field(0.5, gt=0, lt=1)  # vLLM's share of the GPU
    gpu_memory_cap: float = Field(0.0, ge=0)  # GiB to pretend the GPU has; 0: all it has
    save_steps: int = Field(50, gt=0)
    validation_steps: int = Field(0, ge=0)  # held-out accuracy every so many steps; 0: never
    validation_problems: int = Field(64, gt=0)  # set aside from the training problems for it
    keep: Literal["last", "best"] = "last"  # adapter: as training ends, or best in validation

    # --- the learned reward: 06_reward_model makes it, reward "reward_model" pays it ---
    preferences: str = ""  # the task of its pairs; "": the recipe's own, or pairs made from it
    reward_model_base: str = ""  # what it starts from; "": the policy's model
    reward_layers: int = Field(0, ge=0)  # the lower layers of it that are kept; 0: all
    reward_steps: int = Field(100, gt=0)  # optimizer steps
    reward_pairs: int = Field(8, gt=0)  # pairs a step
    reward_learning_rate: float = Field(1e-4, gt=0)
    reward_held_out: int = Field(200, gt=0)  # pairs to measure it on, at the most
    reward_max_length: int = Field(512, gt=0)  # tokens of prompt and answer; longer pairs stay out

    # --- evaluation --------------------------------------------------------
    eval_engine: Literal["vllm", "transformers"] = "vllm"
    eval_problems: int = Field(256, ge=0)  # held out; 0: all
    eval_samples: int = Field(10, ge=0)  # a problem, for pass@k; 0: greedy only
    eval_k: list[int] = [5, 10]
    eval_temperature: float = Field(0.5, gt=0)
    eval_top_p: float = Field(1.0, gt=0, le=1)
    eval_max_tokens: int = Field(0, ge=0)  # 0: as many as in training

    side_task: dict[str, Any] = {}  # keys of a second task asked before and after; {}: none
    candidate: str = ""  # what 04 measures; "": the adapter, or merged, gguf, a path

    # --- comparison of runs (09) -------------------------------------------
    variants: dict[str, dict[str, Any]] = {}  # name → the settings in which it differs
    seeds: list[int] = []  # each variant is trained with each of them
    runs: list[str] = []  # folders under output_dir to compare; []: those of the variants

    # --- export ------------------------------------------------------------
    gguf: list[str] = ["f16", "q8_0", "q4_k_m"]  # files for llama.cpp and Ollama; []: none
    certificate_problems: int = Field(64, gt=0)  # held out, that each exported form answers
    push_to_hub: str = ""  # repository to push to; needs HF_TOKEN
    push_form: Literal["adapter", "merged", "gguf"] = "merged"  # what is pushed

    def origin(self, key: str) -> str:
        """Where the key's value comes from: default, profile …, recipe …, or parameter."""
        return self._origins.get(key, "default")

    @property
    def run_name(self) -> str:
        return self.run or self.name

    @property
    def completions_per_step(self) -> int:
        return self.prompts_per_step * self.num_generations

    @property
    def completion_tokens(self) -> int:
        """The longest completion in evaluation, in tokens."""
        return self.eval_max_tokens or self.max_completion_length


def resolve(
    recipe: str | Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    hardware: Hardware | None = None,
) -> Config:
    """The effective configuration.

    Args:
        recipe: a name in notebooks/recipes, a path, or None for plain defaults.
        parameters: what was given explicitly; None values count as not given.
        hardware: looked at when None.

    Raises:
        BadInput: an unknown key, a wrong type or an impossible value or pair.
    """
    given = {key: value for key, value in (parameters or {}).items() if value is not None}
    path = find_recipe(recipe) if recipe else None
    stored = read_recipe(path) if path else {}
    cap = given.get("gpu_memory_cap", stored.get("gpu_memory_cap", 0))
    hardware = hardware or detect_hardware(cap if isinstance(cap, float | int) else 0.0)
    profile = given.get("profile", stored.get("profile", "auto"))
    if profile == "auto":
        profile = choose_profile(hardware)
    if profile not in PROFILES:
        raise BadInput(f"There is no profile {profile!r}: {nearest(profile, PROFILES)}")
    by_profile = given.get("by_profile", stored.get("by_profile", {}))
    special = by_profile.get(profile, {}) if isinstance(by_profile, dict) else {}
    layers = [
        (f"profile {profile}", PROFILES[profile]),
        (f"recipe {path.stem}" if path else "recipe", stored),
        (f"recipe on {profile}", special),
        ("parameter", given),
    ]
    values, origins = {}, {}
    for origin, layer in layers:
        values.update(layer)
        origins.update(dict.fromkeys(layer, origin))
    # Which profile is meant is settled now.
    config = _validate(values | {"profile": profile}, origins)
    check_pairs(config, hardware)
    return config


def notebook_config(namespace: Mapping[str, Any]) -> Config:
    """The configuration from a notebook's variables, right after its parameters cell.

    `recipe` names the recipe; a variable left at None is not set. GRPO_RECIPE,
    GRPO_RUN and GRPO_OUTPUT_DIR stand in for `recipe`, `run` and `output_dir`.

    Raises:
        BadInput: as `resolve`; an unknown parameter, too.
    """
    names = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and isinstance(value, LITERALS) and name not in ("In", "Out")
    }
    recipe = names.pop("recipe", None) or os.environ.get("GRPO_RECIPE")
    for key in ("run", "output_dir"):
        names[key] = names.get(key) or os.environ.get(f"GRPO_{key.upper()}")
    if not recipe and "name" not in names:  # papermill -f gives a recipe's own keys
        recipe = "demo"
    return resolve(recipe, names)


def find_recipe(recipe: str | Path) -> Path:
    """The file of a recipe given by name or by path."""
    for path in (Path(recipe), ROOT / recipe, RECIPES / f"{recipe}.yaml"):
        if path.is_file():
            return path
    names = [path.stem for path in RECIPES.glob("*.yaml")]
    raise BadInput(f"There is no recipe {str(recipe)!r}: {nearest(Path(recipe).stem, names)}")


def read_recipe(path: Path) -> dict[str, Any]:
    """A recipe's keys and values, not yet checked."""
    try:
        stored = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise BadInput(f"{path.name} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(stored, dict):
        raise BadInput(f"{path.name} holds no keys: write `key: value` lines.")
    return {"name": path.stem, **stored}


def check_pairs(config: Config, hardware: Hardware) -> None:
    """What no single value tells: combinations that cannot work."""
    completions = config.completions_per_step
    if config.micro_batch < completions and completions % config.micro_batch:
        raise BadInput(
            f"prompts_per_step {config.prompts_per_step} × num_generations "
            f"{config.num_generations} = {completions} completions do not divide into passes of "
            f"micro_batch {config.micro_batch}: choose a micro_batch that divides {completions}."
        )
    if config.max_completion_length >= config.max_seq_length:
        raise BadInput(
            f"max_completion_length {config.max_completion_length} leaves no room for a prompt in "
            f"max_seq_length {config.max_seq_length}: lower the one or raise the other."
        )
    if config.precision == "bf16" and hardware.gpu and hardware.capability < 8.0:
        raise BadInput(
            f"precision bf16 is not to be had on {hardware.gpu} (compute capability "
            f"{hardware.capability}, bf16 needs 8.0): set precision to fp16."
        )
    if config.precision == "fp16" and not hardware.gpu:
        raise BadInput("precision fp16 needs a GPU: set precision to bf16 or fp32 on the CPU.")
    if config.cast_lm_head_to_fp32 and (config.load_in_4bit or config.backend != "transformers"):
        raise BadInput(
            "cast_lm_head_to_fp32 is for weights in 16 bit, trained and sampled by this suite: set "
            "backend to transformers and load_in_4bit to False, or leave it at False."
        )
    check_loss(config)
    if config.min_lr_rate and config.lr_scheduler != "cosine":
        raise BadInput(
            f"min_lr_rate is where a cosine ends, and lr_scheduler is {config.lr_scheduler}: set "
            f"lr_scheduler to cosine, or leave min_lr_rate at 0."
        )
    if config.algorithm == "ppo" and not config.shared_prompts:
        raise BadInput("ppo reads its values where shared_prompts computes: set it to True.")
    if config.keep == "best" and not config.validation_steps:
        raise BadInput(
            "keep best needs a validation to tell which adapter is best: set validation_steps, "
            "or keep to last."
        )
    if config.load_in_4bit and config.full_finetuning:
        raise BadInput(
            "full_finetuning and load_in_4bit exclude each other, since 4-bit weights cannot be "
            "trained: set one of them to False."
        )
    if config.profile != "cpu" and not hardware.gpu:
        raise BadInput(
            f'profile {config.profile} needs a GPU and there is none: set profile to "cpu" or auto.'
        )
    if config.eval_samples and max(config.eval_k, default=1) > config.eval_samples:
        raise BadInput(
            f"eval_k asks for pass@{max(config.eval_k)} from {config.eval_samples} samples a "
            f"problem: raise eval_samples to at least {max(config.eval_k)}."
        )


def _validate(values: dict[str, Any], origins: dict[str, str]) -> Config:
    try:
        config = Config(**values)
    except ValidationError as error:
        raise BadInput(_sentence(error.errors()[0], origins)) from None
    config._origins.update(origins)
    return config


def _sentence(error: dict[str, Any], origins: dict[str, str]) -> str:
    """One sentence for pydantic's first complaint: what, where, what to do."""
    key, given = str(error["loc"][0]), error["input"]
    where = origins.get(key, "default")
    if error["type"] == "extra_forbidden":
        return f"There is no key {key!r} ({where}): {nearest(key, Config.model_fields)}"
    wanted = error["msg"].removeprefix("Input should be ").replace("a valid ", "a ")
    hint = ""
    if isinstance(given, str) and error["type"] in ("bool_type", "int_type", "float_type"):
        hint = ", without quotes"
        if error["type"] == "float_type" and "e" in given:
            hint = ', with a dot ("5.0e-6", since YAML reads "5e-6" as text)'
    return f"{key} ({where}) is {given!r}: it should be {wanted}{hint}."
