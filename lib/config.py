"""A recipe becomes the configuration of a run: defaults < profile < recipe < parameter.

    >>> config = resolve("demo", {"max_steps": 2})
    >>> config.max_steps, config.origin("max_steps")
    (2, 'parameter')

Everything a user can set is a key in a recipe, a papermill parameter, and an argument of the
runner, under the same name (`lib.keys`); docs/keys.md lists them all.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError, create_model

from lib.errors import BadInput, nearest
from lib.hardware import PROFILES, Hardware, choose_profile, detect_hardware
from lib.keys import ALIASES, MEANS, RULES, ZERO_IS_NONE, recipe_fields, translate

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "notebooks" / "recipes"
LITERALS = (str, int, float, bool, list, dict, tuple)


class Settings(BaseModel):
    """What a configuration can do; its keys are those of `lib.keys`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)
    _recipe: Path | None = PrivateAttr(None)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
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
    def run_name(self) -> str:
        return self.run or self.name

    @property
    def completions_per_step(self) -> int:
        return self.prompts_per_step * self.num_generations

    @property
    def completion_tokens(self) -> int:
        """The longest completion in evaluation, in tokens."""
        return self.eval_max_tokens or self.max_completion_length


Config = create_model("Config", __base__=Settings, **recipe_fields())


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
    for key, contradicts, sentence in RULES:
        if contradicts(config, hardware):
            raise BadInput(sentence.format(c=config, h=hardware), key)
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
    working = Path(os.environ.get("GRPO_WORKING_DIR") or ".").resolve()
    places = (folder / Path(path).expanduser() for folder in (working, *beside, ROOT))
    return next((place.resolve() for place in places if os.path.exists(place)), None)


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
        stored = yaml.load(path.read_bytes().decode("utf-8-sig"), _OneValueAKey)
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


class _OneValueAKey(yaml.SafeLoader):
    """YAML in which a repeated key is an error; PyYAML takes the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                where = f"line {key.start_mark.line + 1}"
                raise yaml.YAMLError(f"{key.value} stands there twice ({where})")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


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
    if isinstance(value, str) and kind in ("bool_type", "int_type", "float_type"):
        wanted += ", without quotes"
    shown = value if len(repr(value)) < 80 else f"{str(value)[:60]}…"
    return BadInput(f"{key} ({where}) is {shown!r}: it should be {wanted}.", "value")
