"""Whether an adapter fits the base model it is to be measured on.

    >>> check_adapter(run.adapter, model_folder(config))

peft loads an adapter whose keys match nothing with a warning and answers as the base; what is
measured then is not what was asked for.
"""

import re
from pathlib import Path

from lib.errors import BadInput
from lib.files import read_json

SHARED = ("lm_head", "embed_tokens", "wte")  # what tied embeddings are called


def check_adapter(folder: Path, base: Path) -> None:
    """Raises BadInput where the adapter in `folder` is not a LoRA adapter of the model in `base`,
    or holds what this suite would measure wrongly. Only headers are read, no weights."""
    file = folder / "adapter_config.json"
    settings = read_json(file) if file.is_file() else {}
    if settings.get("peft_type") != "LORA":
        kind = settings.get("peft_type") or "its adapter_config.json names no kind"
        raise BadInput(f"{folder} is no LoRA adapter ({kind}): give one.", key="adapter-type")
    shapes = _shapes(folder, "adapter_model.safetensors")
    pairs = _pairs(shapes)
    whole = sorted(set(shapes) - {name for pair in pairs.values() for name in pair})
    touched = [*pairs, *whole, *(settings.get("modules_to_save") or [])]
    if read_json(base / "config.json").get("tie_word_embeddings", True):
        shared = [name for name in touched if any(part in name for part in SHARED)]
        if shared:
            raise BadInput(
                f"The adapter in {folder} changes {shared[0]}, which the base model uses as its "
                f"embeddings and as its output layer both: train without it.",
                key="adapter-tied",
            )
    if whole:
        raise BadInput(
            f"The adapter in {folder} replaces {whole[0]} whole, which vLLM does not load: merge "
            f"it with peft and measure the merged folder.",
            key="adapter-whole-modules",
        )
    if not pairs:
        raise BadInput(f"The adapter in {folder} holds no LoRA weights.", key="adapter-empty")
    _check_sizes(folder, pairs, shapes, _base_shapes(base))


def _pairs(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[str, str]]:
    """Layer: the names of its A and B."""
    suffix = re.compile(r"\.lora_(?:A|embedding_A)(?:\.weight)?$")
    pairs = {}
    for name in shapes:
        if suffix.search(name):
            other = re.sub(r"lora_(embedding_)?A", r"lora_\1B", name)
            pairs[suffix.sub("", name).removeprefix("base_model.model.")] = (name, other)
    return pairs


def _check_sizes(
    folder: Path,
    pairs: dict[str, tuple[str, str]],
    shapes: dict[str, tuple[int, ...]],
    base: dict[str, tuple[int, ...]],
) -> None:
    for layer, (a, b) in pairs.items():
        weight = base.get(_place(layer))
        if weight is None:
            raise BadInput(
                f"The adapter in {folder} is for a layer {layer} that the base model does not "
                f"have: give the adapter's own base as `model`.",
                key="adapter-layers",
            )
        down, up = shapes[a], shapes.get(b, ())
        fits = len(up) == 2 and up[1] == down[0] and sorted((up[0], down[1])) == sorted(weight)
        if not fits:
            raise BadInput(
                f"The adapter in {folder} has A {list(down)} and B {list(up)} at {layer}, where "
                f"the base model's weight is {list(weight)}: give the adapter's own base as "
                f"`model`, or an adapter that is whole.",
                key="adapter-sizes",
            )
    r = read_json(folder / "adapter_config.json").get("r")
    ranks = {shapes[a][0] for a, _ in pairs.values()}
    patterns = read_json(folder / "adapter_config.json").get("rank_pattern")
    if not patterns and ranks != {r}:
        raise BadInput(
            f"The adapter in {folder} says rank {r} and has weights of rank {sorted(ranks)}: its "
            f"files are not of one adapter.",
            key="adapter-rank",
        )


def _base_shapes(base: Path) -> dict[str, tuple[int, ...]]:
    """Place in the model: its weight's shape, of every matrix in the base model's files."""
    shapes = {}
    for file in sorted(base.glob("*.safetensors")):
        shapes |= _shapes(base, file.name)
    return {_place(name.removesuffix(".weight")): shape for name, shape in shapes.items()}


def _place(name: str) -> str:
    """A layer's name from its block's number on: what stands before differs between releases."""
    block = re.search(r"(?:^|\.)(?:layers|h)\.\d+\..*", name)
    return block[0].lstrip(".") if block else name.rpartition(".")[2]


def _shapes(folder: Path, name: str) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / name, "numpy") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"{folder / name} cannot be read ({error}): it is missing or cut short; copy it again.",
            key="adapter-cut",
        ) from error
