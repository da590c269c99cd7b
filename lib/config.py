"""A recipe becomes the configuration of a run: defaults < profile < recipe < parameter.

    >>> config = resolve("demo", {"max_steps": 2})
    >>> config.max_steps, config.origin("max_steps")
    (2, 'parameter')

Everything a user can set is a key in a recipe, a papermill parameter, and an argument of the
runner, under the same name: the suite's own keys are below, and any field of TRL's GRPOConfig
and peft's LoraConfig has its own (`lib.keys`). docs/keys.md lists them all.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, create_model

from lib.errors import BadInput, nearest
from lib.hardware import PROFILES, Hardware, choose_profile, detect_hardware
from lib.keys import ALIASES, MEANS, RULES, ZERO_IS_NONE, broken, library_fields, translate

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "notebooks" / "recipes"
LITERALS = (str, int, float, bool, list, dict, tuple)
MANY = 2**31  # what no count reaches
GGUF = (  # what llama.cpp makes without a calibration set
    *("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s"),
    *("q4_1", "q4_0", "iq4_nl", "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k"),
)


class Keys(BaseModel):
    """The suite's own keys. Each field's comment is its documentation."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)
    _recipe: Path | None = PrivateAttr(None)

    # --- the run -----------------------------------------------------------
    name: str = "custom"  # the recipe's name
    run: str = ""  # folder under output_dir; "": the recipe's name
    output_dir: str = Field("outputs", min_length=1)  # relative to the repository
    profile: Literal["auto", "cpu", "t4", "rtx16", "l4", "a100", "h100"] = "auto"  # "auto": detect
    by_profile: dict[str, dict[str, Any]] = {}  # settings of this recipe on one profile
    resume: bool = False  # training goes on from the run's last checkpoint
    stop_at: int = Field(0, ge=0, lt=MANY)  # step to stop at with a checkpoint; 0: max_steps
    num_processes: int = Field(1, gt=0, lt=MANY)  # that train together, a GPU each
    accelerate_config: str = ""  # file of `accelerate config`, as for FSDP; "": none
    report_to: list[Literal["wandb", "tensorboard", "trackio"]] = []  # where the log goes, too

    # --- the policy --------------------------------------------------------
    model: str = "embedded"  # the embedded SmolLM2-135M, a Hub name, or a local folder
    backend: Literal["auto", "unsloth", "transformers"] = "auto"  # what loads and trains it
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"  # of weights and products
    load_in_4bit: bool = False  # the base model's linear layers in 4 bit
    max_seq_length: int = Field(1024, gt=0, lt=MANY)  # tokens of prompt and completion together
    full_finetuning: bool = False  # True: all weights, no adapter

    # --- the task ----------------------------------------------------------
    task: str = "gsm8k"  # by name: 02 and docs list them
    task_config: dict[str, Any] = {}  # what the task is made with
    data_dir: str = ""  # folder of JSON Lines; "": GRPO_DATA_DIR, else the Hub
    prompt_format: str = "reasoning"  # instruction and tags
    shots: int = Field(0, ge=0)  # worked examples in the prompt
    train_problems: int = Field(0, ge=0)  # 0: all
    # name: weight, or name: {weight: …, and its arguments}
    rewards: dict[str, float | dict[str, Any]] = {"correctness": 1.0}
    preflight_prompts: int = Field(32, ge=0)  # sampled before training; 0: all
    ignore_preflight: bool = False  # True: train although it found no signal
    drop_dead: bool = False  # True: leave out what the preflight found always right, always wrong
    curriculum: Literal["none", "easy_first"] = "none"  # order by the preflight's pass rates

    # --- the warm-up -------------------------------------------------------
    sft_steps: int = Field(0, ge=0)  # supervised steps on right answers, before GRPO; 0: none
    sft_batch: int = Field(8, gt=0)  # right answers a step
    sft_learning_rate: float = Field(1e-4, gt=0)  # of the warm-up

    # --- GRPO --------------------------------------------------------------
    prompts_per_step: int = Field(4, gt=0, lt=MANY)  # an optimizer step: × num_generations
    resample: int = Field(0, ge=0, lt=MANY)  # more prompts a step may try, for groups with signal
    # What a reward is compared with: its group (grpo), the group's others (rloo), the whole step
    # (reinforce), or a value head (ppo). 03 trains grpo, 07 all; the loss keys are grpo's.
    algorithm: Literal["grpo", "rloo", "reinforce", "ppo"] = "grpo"
    gae_lambda: float = Field(0.95, ge=0, le=1)  # ppo: how far advantages look ahead
    value_learning_rate: float = Field(1e-3, gt=0)  # ppo: of the value head
    value_clip: float = Field(0.2, gt=0)  # ppo: how far a value moves in a step
    shared_prompts: bool = True  # compute a prompt once for its group, where the model allows it
    rollout_engine: Literal["vllm", "transformers"] = "transformers"  # what writes completions
    gpu_memory_cap: float = Field(0.0, ge=0)  # GiB to pretend the GPU has; 0: all it has
    validation_steps: int = Field(0, ge=0, lt=MANY)  # held-out accuracy every N steps; 0: never
    validation_problems: int = Field(64, gt=0, lt=MANY)  # set aside from training for it
    keep: Literal["last", "best"] = "last"  # adapter: as training ends, or best in validation

    # --- the learned reward: 06_reward_model makes it, reward "reward_model" pays it ---
    preferences: str = ""  # the task of its pairs; "": the recipe's own, or pairs made from it
    reward_model_base: str = ""  # what it starts from; "": the policy's model
    reward_layers: int = Field(0, ge=0)  # the lower layers of it that are kept; 0: all
    reward_steps: int = Field(100, gt=0)  # optimizer steps
    reward_pairs: int = Field(8, gt=0)  # pairs a step
    reward_learning_rate: float = Field(1e-4, gt=0)  # of the reward model
    reward_held_out: int = Field(200, gt=0)  # pairs to measure it on, at the most
    reward_max_length: int = Field(512, gt=0)  # tokens of prompt and answer; longer pairs stay out

    # --- evaluation --------------------------------------------------------
    eval_engine: Literal["vllm", "transformers"] = "vllm"  # what writes 04's answers
    eval_problems: int = Field(256, ge=0)  # held out; 0: all
    eval_samples: int = Field(10, ge=0)  # a problem, for pass@k; 0: greedy only
    eval_k: list[Annotated[int, Field(ge=1)]] = [5, 10]  # pass@k for these k
    eval_temperature: float = Field(0.5, gt=0)  # of the samples for pass@k
    eval_top_p: float = Field(1.0, gt=0, le=1)  # of the samples for pass@k
    eval_max_tokens: int = Field(0, ge=0)  # 0: as many as in training

    side_task: dict[str, Any] = {}  # keys of a second task asked before and after; {}: none
    candidate: str = ""  # what 04 measures; "": the adapter, or merged, gguf, a path

    # --- comparison of runs (09) -------------------------------------------
    variants: dict[str, dict[str, Any]] = {}  # name → the settings in which it differs
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = []  # each variant is trained with each
    runs: list[str] = []  # folders under output_dir to compare, of runs or sweeps; []: the variants

    # --- export ------------------------------------------------------------
    gguf: list[Literal[GGUF]] = ["f16", "q8_0", "q4_k_m"]  # for llama.cpp, Ollama; []: none
    certificate_problems: int = Field(64, gt=0)  # held out, that each exported form answers
    push_to_hub: str = ""  # repository to push to; needs HF_TOKEN
    push_form: Literal["adapter", "merged", "gguf"] = "merged"  # what is pushed

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> "Keys":
        """A copy with these keys changed, unchecked; old names will do."""
        changes = translate(update or {})
        copy = super().model_copy(update=changes, deep=deep)
        copy._origins = self._origins | dict.fromkeys(changes, "parameter")
        return copy

    def origin(self, key: str) -> str:
        """Where the key's value comes from: default, profile …, recipe …, or parameter."""
        return self._origins.get(key, "default")

    def given(self) -> dict[str, Any]:
        """The keys that somebody set: what another configuration takes over from this one."""
        values = self.model_dump()
        given = {k: values[k] for k, origin in self._origins.items() if "profile" not in origin}
        return {k: 0 if v is None and k in ZERO_IS_NONE else v for k, v in given.items()}

    def find(self, path: str) -> Path | None:
        """As `find_path`, beside the recipe, too."""
        return find_path(path, *([self._recipe.parent] if self._recipe else []))

    @property
    def recipe_file(self) -> str:
        return str(self._recipe or "")

    @property
    def run_name(self) -> str:
        return self.run or self.name

    @property
    def dtype(self) -> str:
        """The precision in torch's words, which are vLLM's, too."""
        return {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[self.precision]

    @property
    def completions_per_step(self) -> int:
        return self.prompts_per_step * self.num_generations

    @property
    def completion_tokens(self) -> int:
        """The longest completion in evaluation, in tokens."""
        return self.eval_max_tokens or self.max_completion_length


fields = {name: each for name, each in library_fields().items() if name not in Keys.model_fields}
Config = create_model("Config", __base__=Keys, **fields)


def resolve(
    recipe: str | Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    hardware: Hardware | None = None,
) -> Config:
    """The effective configuration of a recipe (a name in notebooks/recipes, a path, or None for
    plain defaults) with parameters, where None counts as not given. GRPO_RUN and GRPO_OUTPUT_DIR
    stand in for `run` and `output_dir` where no parameter sets them. BadInput: an unknown key, a
    wrong type or an impossible value or pair."""
    given = translate({k: value for k, value in (parameters or {}).items() if value is not None})
    path = find_recipe(recipe) if recipe else None
    stored = translate(read_recipe(path)) if path else {}
    environment = {key: os.environ.get(f"GRPO_{key.upper()}") for key in ("run", "output_dir")}
    environment = {key: value for key, value in environment.items() if value}
    settings = stored | environment | given
    cap = settings.get("gpu_memory_cap", 0)
    hardware = hardware or detect_hardware(cap if isinstance(cap, float | int) else 0.0)
    profile = settings.get("profile", "auto")
    if profile == "auto":
        profile = choose_profile(hardware)
    if profile not in [*PROFILES]:
        hint = nearest(MEANS.get(str(profile), profile), ["auto", *PROFILES])
        raise BadInput(f"There is no profile {profile!r}: {hint}", "profile")
    parts = dict(_parts(settings))
    layers = {
        f"profile {profile}": PROFILES[profile],
        f"recipe {path.stem}" if path else "recipe": stored,
        f"recipe on {profile}": parts.get(f"by_profile {profile}", {}),
        "environment": environment,
        "parameter": given,
    }
    values, origins = {}, {}
    for origin, layer in layers.items():
        values |= layer
        origins |= dict.fromkeys(layer, origin)
    # What is wrong for another profile, or later, is wrong now.
    for place, changes in parts.items():
        _validate(values | changes, origins | dict.fromkeys(changes, place))
    # Which profile is meant is settled now.
    config = _validate(_completed(values | {"profile": profile}), origins)
    config._recipe = path.resolve() if path else None
    for fault in broken(RULES, c=config, h=hardware):
        raise fault
    return config


def with_changes(config: Config, changes: Mapping[str, Any]) -> Config:
    """The configuration resolved anew with these keys changed."""
    changed = resolve(None, config.given() | {"profile": config.profile} | translate(changes))
    changed._recipe = config._recipe
    return changed


def side_config(config: Config) -> Config:
    """The recipe with the side task's keys in place of its own; greedy answers only."""
    keys = {"eval_samples": 0, "task_config": {}} | config.side_task | {"side_task": {}}
    return with_changes(config, keys)


def _parts(recipe: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Settings for one profile, for 09 and for the side task: where they stand, and they. What is
    of another type is refused with all other keys."""
    nested = {key: recipe.get(key) for key in ("by_profile", "variants", "side_task")}
    by_profile, variants, side = (v if isinstance(v, dict) else {} for v in nested.values())
    for name, settings in by_profile.items():
        if name not in PROFILES:
            hint = nearest(name, PROFILES)
            raise BadInput(f"by_profile has no profile {name!r}: {hint}", "profile")
        if not isinstance(settings, dict):
            raise BadInput(f"by_profile {name} should be `key: value` pairs.", "type")
        for key in settings.keys() & {"profile", "by_profile"}:
            sentence = f"by_profile {name} holds {key}, which belongs beside by_profile: move it."
            raise BadInput(sentence, "profile")
        yield f"by_profile {name}", translate(settings)
    for name, settings in variants.items():
        if isinstance(settings, dict):
            yield f"variant {name}", translate(settings)
    if side:
        yield "side_task", translate(side)


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """With what one key says of another that was left out."""
    more = {}
    if values.get("epsilon_high") is None:  # TRL: the clip range is symmetric
        more["epsilon_high"] = values.get("epsilon", 0.2)
    ends = values.get("lr_scheduler_kwargs")
    cosine = values.get("lr_scheduler_type", "cosine") == "cosine"
    if cosine and isinstance(ends, dict) and "min_lr_rate" in ends:
        more["lr_scheduler_type"] = "cosine_with_min_lr"
    steps, warmup = values.get("max_steps"), values.get("warmup_steps")
    if isinstance(steps, int) and isinstance(warmup, int) and 0 < steps <= warmup:
        more["warmup_steps"] = steps - 1  # or a short try would end before it has begun
    by_vllm = values["profile"] != "cpu" and values.get("rollout_engine") == "vllm"
    if by_vllm and values.get("full_finetuning") and values.get("backend", "auto") == "auto":
        more["backend"] = "transformers"  # Unsloth shares no weights with vLLM that it trains
    return values | more


def notebook_parameters(namespace: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """What `resolve` takes, from a notebook's variables after its parameters cell: `recipe` (or
    GRPO_RECIPE) names the recipe; a variable left at None is not set."""
    names = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and isinstance(value, LITERALS) and name not in ("In", "Out")
    }
    recipe = names.pop("recipe", None) or os.environ.get("GRPO_RECIPE")
    if not recipe and "name" not in names:  # papermill -f gives a recipe's own keys
        recipe = "demo"
    return recipe, names


def find_path(path: str | Path, *beside: Path) -> Path | None:
    """The file or folder that a user names: from where they are (the kernels that the runner starts
    are elsewhere), in these folders, or in the repository; None where there is none."""
    working, path = Path(os.environ.get("GRPO_WORKING_DIR") or ".").resolve(), user_path(path)
    places = (folder / path for folder in (working, *beside, ROOT))
    return next((place.resolve() for place in places if os.path.exists(place)), None)


def user_path(path: str | Path) -> Path:
    """The path, "~" being the user's home. BadInput where nothing could have it: no such user, a
    name that is too long, a folder that may not be looked into."""
    try:
        place = Path(path).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            os.stat(place)
    except (OSError, RuntimeError, ValueError) as error:
        said = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise BadInput(f"{str(path)[:60]!r} cannot be a path ({said}): fix it.", "path") from None
    return place


def find_recipe(recipe: str | Path) -> Path:
    """The file of a recipe given by name or by path."""
    given = user_path(recipe)
    for path in (given, ROOT / given, RECIPES / f"{recipe}.yaml"):
        if path.is_file():
            return path
    names = [path.stem for path in RECIPES.glob("*.yaml")]
    raise BadInput(f"There is no recipe {str(recipe)!r}: {nearest(Path(recipe).stem, names)}")


def read_recipe(path: Path) -> dict[str, Any]:
    """A recipe's keys and values, not yet checked."""
    try:
        stored = yaml.load(path.read_bytes().decode("utf-8-sig"), PlainYaml)
    except UnicodeDecodeError:
        raise BadInput(f"{path.name} is not UTF-8 text: save it as UTF-8.", "encoding") from None
    except yaml.YAMLError as error:
        text = " ".join(str(error).split())
        raise BadInput(f"{path.name} is not valid YAML: {text}.", "yaml") from None
    if not isinstance(stored, dict):
        raise BadInput(f"{path.name} holds no keys: write `key: value` lines.", "yaml")
    strange = [key for key in stored if not isinstance(key, str)]
    if strange:
        raise BadInput(f"{path.name} has the key {strange[0]!r}: keys are words.", "yaml")
    return {"name": path.stem, **stored}


class PlainYaml(yaml.SafeLoader):
    """YAML that means what it looks like: a repeated key is an error, of which PyYAML takes the
    last, and 010, 12:30 and 2026-01-01 are texts, which it takes for 8, 750 and a date."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, form) for tag, form in forms if not tag.endswith((":int", ":timestamp"))]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            where = f"(line {key.start_mark.line + 1})"
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"a key is a list or a table, not a word {where}")
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.YAMLError(f"{key.value} stands there twice {where}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_WHOLE = re.compile(r"[+-]?(0|[1-9][\d_]*|0x[\da-fA-F]+)$")
PlainYaml.add_implicit_resolver("tag:yaml.org,2002:int", _WHOLE, [*"+-0123456789"])
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def _validate(values: dict[str, Any], origins: dict[str, str]) -> Config:
    for key, value in values.items():  # YAML reads 5e-6, without a dot, as text
        if isinstance(value, str) and _EXPONENT.fullmatch(value) and key in Config.model_fields:
            kind = Config.model_fields[key].annotation
            values[key] = float(value) if float in (kind, *get_args(kind)) else value
    try:
        config = Config(**values)
    except ValidationError as error:
        raise _refusal(error.errors(), origins) from None
    config._origins.update(origins)
    return config


def _refusal(errors: list[dict[str, Any]], origins: dict[str, str]) -> BadInput:
    """One sentence for pydantic's first complaint: what, where, what to do."""
    error = errors[0]
    key, value = str(error["loc"][0]), error["input"]
    where, kind = origins.get(key, "default"), error["type"]
    if kind == "extra_forbidden":
        hint = nearest(MEANS.get(key.casefold(), key), [*Config.model_fields, *ALIASES])
        return BadInput(f"There is no key {key!r} ({where}): {hint}", "unknown-key")
    if get_origin(Config.model_fields[key].annotation) is dict and len(error["loc"]) > 1:
        where = f"{error['loc'][1]}, {where}"
    if kind == "literal_error" and isinstance(value, str):
        choices = [c.strip("' ") for c in error["ctx"]["expected"].replace(" or ", ", ").split(",")]
        hint = nearest(MEANS.get(value.casefold(), value), choices)
        if value.casefold() == "gspo":
            hint = "GSPO is grpo with importance_sampling_level sequence: set both."
        return BadInput(f"{key} ({where}) is {value!r}: {hint}", "value")
    same = [e["msg"] for e in errors if e["loc"][0] == key and repr(e["input"]) == repr(value)]
    wanted = " or ".join(text.removeprefix("Input should be ") for text in dict.fromkeys(same))
    wanted = wanted.replace("a valid integer", "a whole number").replace("a valid ", "a ")
    wanted = wanted.replace("String should have", "a string with")
    if isinstance(value, str) and kind in ("bool_type", "int_type", "float_type"):
        wanted += ", without quotes"
    if kind == "string_type" and isinstance(value, int | float):
        wanted += ", in quotes"
    shown = value if len(repr(value)) < 80 else f"{str(value)[:60]}…"
    return BadInput(f"{key} ({where}) is {shown!r}: it should be {wanted}.", "value")
