"""An adapter's folder: what stands in it beside its weights, and whether it fits its base model.

    >>> make_portable(run.adapter, config, examples)    # its base's name, and prompt.json
    >>> conversation(run.adapter, "Calculate 9 + 8.")   # the messages it was trained to answer
    >>> check_adapter(run.adapter, model_folder(config))

peft loads an adapter whose keys match nothing with a warning and answers as the base; what is
measured then is not what was asked for.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lib.config import Config
from lib.errors import BadInput
from lib.files import read_json, read_settings, write_json
from lib.keys import LORA, PEFT
from lib.tasks import Problem, make_rows

EMBEDDED_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
SHARED = ("lm_head", "embed_tokens", "wte")  # what tied embeddings are called
# With these inits B·A is what is added to the base's own weights; others change those, too.
PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica")
# With these settings, whatever they are, peft computes W + s·B·A in each layer.
PLAIN = {*LORA, "fan_in_fan_out"} - {"init_lora_weights"}
_LORA = re.compile(
    r"base_model\.model\.(?P<layer>.+)\.lora_(?:embedding_)?(?P<part>[AB])"
    r"(?:\.weight|(?<=embedding_[AB]))"
)


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter, and not a whole model (as after full fine-tuning)."""
    return (folder / "adapter_config.json").is_file()


def adapter_rank(folder: Path) -> int:
    """Of an adapter; 0 of a whole model."""
    return read_settings(folder / "adapter_config.json", {}).get("r", 0)


def public_name(config: Config) -> str:
    """The base model's name as others know it, never a path of this machine."""
    if config.model == "embedded":
        return EMBEDDED_NAME
    local = config.find(config.model)
    return local.name if local else config.model


def data_name(config: Config) -> str:
    """What the model was trained on: a file's or a data set's name, else the task's."""
    about = config.task_config
    return Path(about.get("path") or about.get("dataset") or config.task).name


def make_portable(folder: Path, config: Config, examples: Sequence[Problem]) -> None:
    """What another machine needs to ask the model in a folder as it was trained to be asked.

    `prompt.json`: the conversation that training put around a question, "{question}" in it. An
    adapter names its base as others know it, and loses peft's empty card, which has a path in it.
    """
    blank = Problem(id="prompt", question="{question}", answer="any", kind="text")
    [row] = make_rows([blank], config.prompt_format, config.shots, examples)
    write_json(folder / "prompt.json", {"messages": row["prompt"]})
    if is_adapter(folder):
        file = folder / "adapter_config.json"
        write_json(file, read_json(file) | {"base_model_name_or_path": public_name(config)})
        (folder / "README.md").unlink(missing_ok=True)


def conversation(folder: Path, question: str) -> list[dict[str, str]]:
    """The question as the model in the folder was trained to be asked."""
    file = folder / "prompt.json"
    messages = read_settings(file, {}).get("messages", [])
    blank = messages[-1]["content"] if messages else "{question}"
    last = {"role": "user", "content": blank.replace("{question}", question)}
    return [*messages[:-1], last]


def check_adapter(folder: Path, base: Path) -> None:
    """Raises BadInput where the adapter in `folder` is not a LoRA adapter of the model in `base`,
    or holds what this suite would measure wrongly. Of the base only headers are read."""
    for key, sentence in _faults(folder, base):
        raise BadInput(f"The adapter in {folder} {sentence}.", key=f"adapter-{key}")


def _faults(folder: Path, base: Path) -> Iterator[tuple[str, str]]:
    settings = read_settings(folder / "adapter_config.json") if is_adapter(folder) else {}
    if (kind := settings.get("peft_type", "of no kind")) != "LORA":
        yield "type", f"is no LoRA adapter ({kind}): give one"
    layers: dict[str, dict[str, tuple]] = {}  # by name, the shapes of A and B
    replaced = []
    file = folder / "adapter_model.safetensors"
    for name, shape in _shapes(file).items():
        layer = name.removeprefix("base_model.model.")
        if match := _LORA.fullmatch(name):
            layers.setdefault(match["layer"], {})[match["part"]] = shape
        else:
            replaced.append(layer)
    touched = [*layers, *replaced, *(settings.get("modules_to_save") or [])]
    shared = [name for name in touched if any(part in name for part in SHARED)]
    if shared and read_settings(base / "config.json").get("tie_word_embeddings", True):
        both = "which the base model uses both as its embeddings and as its output layer"
        yield "tied", f"changes {shared[0]}, {both}: train without it"
    how = "merge it with peft and measure the merged folder"
    if replaced:
        said = f"holds {replaced[0]}, which is no LoRA weight by peft's names (a bias, or a layer"
        yield "whole-modules", f"{said} whole), and vLLM does not load it: {how}"
    if not layers:
        yield "empty", "holds no LoRA weights: train one"
    yield from _misfits(layers, base)
    if odd := _not_finite(file):
        said = f"holds values in {odd} that are no finite numbers of 16 or 32 bit"
        yield "values", f"{said}: train it again"
    for name, (_, default, _) in PEFT.items():
        plain = (default, None, False, {}, [], *PLAIN_INITS)
        if name not in PLAIN and settings.get(name) not in plain:
            yield "patterns", f"is set to {name} {settings[name]}, which vLLM does not know: {how}"
    ranks = {pair["A"][0] for pair in layers.values()}
    alpha = settings.get("lora_alpha")
    if ranks != {settings.get("r")} or not (alpha and isinstance(alpha, int | float)):
        says = f"says rank {settings.get('r')!r}, lora_alpha {alpha!r}"
        yield "rank", f"{says} and has weights of rank {sorted(ranks)}: copy its files again"


def _misfits(layers: dict[str, dict[str, tuple]], base: Path) -> Iterator[tuple[str, str]]:
    """Layers that the base model has not, or in another size; peft passes over the former."""
    own_base = "give the adapter's own base as `model`"
    names = _weights(base)
    weights = {_place(name): shape for name, shape in names.items()}
    # Of a model that reads pictures, too, the files have other names than the layers loaded; and
    # some have "transformer." or the like before the name.
    renamed = "text_config" in read_settings(base / "config.json")
    for layer, pair in layers.items():
        weight, a, b = weights.get(_place(layer)), pair.get("A", ()), pair.get("B", ())
        named = renamed or {layer, layer.partition(".")[2]} & names.keys()
        if weight is None or not named:
            said = f"is for a layer {layer} that the base model does not have by that name"
            yield "layers", f"{said}: {own_base}"
        whole = len(a) == len(b) == 2 and b[1] == a[0]
        if not whole or sorted((b[0], a[1])) != sorted(weight):
            said = f"has A {list(a)} and B {list(b)} at {layer}, where the base model's weight is"
            yield "sizes", f"{said} {list(weight)}: {own_base}, or an adapter that is whole"


def block_layers(base: Path, blocks: int, hidden: int) -> set[str]:
    """Names of the linear layers that the model's blocks are made of, such as q_proj. Raises
    BadInput where its files hold fewer blocks than its config.json says, or of another width:
    transformers draws at random what is missing."""
    places = {_place(name): shape for name, shape in _weights(base).items()}
    inside = {tuple(place.split(".")): shape for place, shape in places.items() if "." in place}
    there = {block for _, block, *_ in inside}
    widths = {places[name][-1] for name in SHARED if name in places}
    if (there and len(there) < blocks) or widths - {hidden}:
        said = f"its weights have {len(there)} blocks of width {', '.join(map(str, widths))}"
        raise BadInput(
            f"The model in {base} is not whole: {said}, and its config.json says {blocks} of "
            f"{hidden}: fetch it again.",
            key="missing-shard",
        )
    return {name for (*_, name), shape in inside.items() if len(shape) == 2}


def _weights(base: Path) -> dict[str, tuple[int, ...]]:
    """The weights' shapes by the layers' names in the model's files."""
    files = map(_shapes, base.glob("*.safetensors"))
    return {name.removesuffix(".weight"): s for shapes in files for name, s in shapes.items()}


def _not_finite(file: Path) -> str:
    """The first tensor with a value that is no finite number of 16 or 32 bit; "" if none."""
    import torch
    from safetensors.torch import load_file

    kinds = (torch.float32, torch.bfloat16, torch.float16)
    weights = load_file(file).items()
    return next((n for n, w in weights if w.dtype not in kinds or not w.isfinite().all()), "")


def _place(name: str) -> str:
    """A layer's name from its block's number on: what stands before differs between releases."""
    block = re.search(r"(?:^|\.)(?:layers|h)\.\d+\..*", name)
    return block[0].lstrip(".") if block else name.rpartition(".")[2]


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as opened:
            return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"{file} cannot be read ({error}): it is missing or cut short; copy it again.",
            key="adapter-cut",
        ) from error
