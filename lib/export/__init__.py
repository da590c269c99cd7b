"""Out of the notebook: from an adapter to a model of its own (merge, save, check the weights).

GGUF, Ollama, the certificate, the Hub, servers and a page are modules beside this one.

state = merged_weights(folder, adapter)         # name → tensor, for `Engine.hand_over`
save_merged(model, folder, run.merged)          # 16-bit safetensors with tokenizer
weight_faults(folder, adapter, run.merged)      # tensors that are not W + s·B·A
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lib.adapters import check_adapter, is_adapter
from lib.config import ROOT, Config
from lib.engines import Engine
from lib.errors import BadInput
from lib.export.ollama import write_templates
from lib.files import read_json, written_whole
from lib.models import in_4_bit, load_tokenizer, model_folder, torch_dtype
from lib.runs import Run

MADE_BY = "05_merge_export"
GENERATION = "generation_config.json"


def find_candidate(named: str, config: Config, run: Run) -> Path:
    """The model to measure against the base: an adapter, a whole model's folder, or a GGUF file.

    Args:
        named: "" for the run's adapter; "base", "merged" or a kind of GGUF ("q8_0") for the run's
            own; else the path of an adapter, a folder with safetensors or a .gguf file, or a Hub
            name.

    Raises:
        BadInput: there is none.
    """
    own = {"": run.adapter, "adapter": run.adapter, "merged": run.merged}
    own |= {kind: run.folder / "gguf" / f"model-{kind}.gguf" for kind in config.gguf}
    if named in own:
        return run.need(own[named], "03_training" if own[named] == run.adapter else MADE_BY)
    if named == "base":
        return model_folder(config)
    for path in (Path(named).expanduser(), ROOT / named):
        if path.is_file() and path.suffix == ".gguf":
            return path.resolve()
        if is_adapter(path):
            check_adapter(path, model_folder(config))
            return path.resolve()
    if named.endswith(".gguf"):
        raise BadInput(f"There is no file {named}: give the path of a .gguf file.")
    return model_folder(config.model_copy(update={"model": named}))


def load_trained(base: Path, trained: Path, **settings: Any) -> Any:
    """The trained model, nothing merged.

    Args:
        base: 16-bit weights that an adapter belongs to.
        trained: the adapter, or a whole model: a folder, or a GGUF file, which is dequantised.
        settings: of `from_pretrained`.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if trained.suffix == ".gguf":
        base, settings = trained.parent, settings | {"gguf_file": trained.name}
    elif not is_adapter(trained):
        base = trained
    model = AutoModelForCausalLM.from_pretrained(base, **settings)
    return PeftModel.from_pretrained(model, trained) if is_adapter(trained) else model


def load_merged(base: Path, trained: Path, dtype: Any = None) -> Any:
    """The trained model as one: W + (alpha/r)·B·A in each adapted layer (Hu et al. 2021, eq. 3).

    Args:
        base, trained: as of `load_trained`.
        dtype: of the weights; bf16 by default.
    """
    model = load_trained(base, trained, dtype=dtype or "bfloat16")
    return model.merge_and_unload() if is_adapter(trained) else model


def merged_weights(base: Path, trained: Path, dtype: Any = None) -> dict[str, Any]:
    """The merged model's weights, as an engine takes them (tied ones once).

    Raises:
        BadInput: they do not fit into the base model's place.
    """
    from transformers import AutoConfig

    model, shape = load_merged(base, trained, dtype), AutoConfig.from_pretrained(base)
    for size in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers"):
        theirs, ours = getattr(model.config, size), getattr(shape, size)
        if theirs != ours:
            raise BadInput(
                f"{trained.name} has {size} {theirs} and its base {ours}: evaluate it in a run of "
                f"its own, as `model`."
            )
    weights = dict(model.state_dict())
    for tied in getattr(model, "_tied_weights_keys", None) or ():
        if model.config.tie_word_embeddings:
            weights.pop(tied, None)
    return weights


def become_trained(engine: Engine, base: Path, trained: Path, dtype: Any = None) -> None:
    """From now on the engine answers as the trained model: by adapter, or by merged weights."""
    if engine.takes_adapters and is_adapter(trained):
        engine.adapter = trained
    else:
        engine.hand_over(merged_weights(base, trained, dtype).items())


def save_merged(model: Any, base: Path, folder: Path) -> None:
    """Write a merged model with its base's tokenizer as fp16 safetensors, all of it or nothing.

    Merge in 32 bit: an adapter's product is small against the weights, and fp16, whose steps are
    an eighth of bf16's, keeps more of it.

    Raises:
        BadInput: a weight that fp16 cannot hold.
    """
    import torch

    model = model.to(torch.float16)
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise BadInput(
            "A merged weight is too large for fp16: keep the adapter and its base.", key="fp16"
        )
    with written_whole(folder) as beside:
        model.save_pretrained(beside)
        load_tokenizer(base).save_pretrained(beside)  # with the template of training
        write_templates(beside)


def load_policy_as_trained(config: Config, base: Path, trained: Path | None) -> Any:
    """The policy as training saw it, nothing merged: on its 4-bit base where it had one.

    Args:
        trained: the adapter or, after full fine-tuning, the model; None for the base alone.
    """
    settings: dict[str, Any] = dict(dtype="float32")  # on a CPU, for a closer look
    if config.profile != "cpu":
        settings = dict(dtype=torch_dtype(config), device_map={"": 0})
    if config.load_in_4bit:
        settings["quantization_config"] = in_4_bit(config)
    return load_trained(base, trained or base, **settings).eval()


# of a config.json, what says nothing of the model's answers
NO_SETTINGS = ("_name_or_path", "transformers_version", "dtype", "architectures", "use_cache")


def weight_faults(base: Path, trained: Path, merged: Path) -> list[str]:
    """What of `merged/` is not as merging leaves it: settings that differ from the base's, tensors
    that are not W + s·B·A, each with how far off it is.

    Rounding to the file's precision is allowed for, and a tenth of what the adapter adds.
    """
    import torch

    deltas, faults = _deltas(trained) if is_adapter(trained) else {}, []
    source = base if is_adapter(trained) else trained
    if (source / GENERATION).is_file() and not (merged / GENERATION).is_file():
        faults.append(f"{GENERATION} is missing")
    theirs, ours = _settings(merged), _settings(source)
    for key in sorted(ours.keys() | theirs.keys()):
        if theirs.get(key) != ours.get(key):
            faults.append(f"config.json has {key} {theirs.get(key)}, the base {ours.get(key)}")
    written, tensors = read_tensors(merged), read_tensors(source)
    if theirs.get("tie_word_embeddings"):  # a head that stands there is read by nobody
        for each in (written, tensors):
            each.pop("lm_head.weight", None)
    for name, read in tensors.items():
        if name not in written:
            faults.append(f"{name} is missing")
            continue
        weight, there = read().float(), written.pop(name)()
        delta = deltas.pop(name)() if name in deltas else torch.zeros(())
        if not there.isfinite().all():
            faults.append(f"{name} is not finite")
            continue
        error = (there.float() - (weight + delta).to(there.dtype).float()).norm()
        if error > 0.1 * delta.norm() + 1e-4 * weight.norm():
            size, of = delta.norm(), "what the adapter adds"
            if not size:
                size, of = weight.norm(), "its size"
            faults.append(f"{name} is off by {error / size:.0%} of {of}")
    faults += [f"{name} is not in the base model" for name in written]
    return faults + [f"{name} of the adapter has no place in the model" for name in deltas]


def _settings(folder: Path) -> dict[str, Any]:
    from transformers import AutoConfig

    values = AutoConfig.from_pretrained(folder).to_dict().items()
    return {key: value for key, value in values if key not in NO_SETTINGS}


def _deltas(folder: Path) -> dict[str, Callable[[], Any]]:
    """By a weight's name in the base model: what computes s·B·A."""
    config, tensors = read_json(folder / "adapter_config.json"), read_tensors(folder)
    scale = config["lora_alpha"] / config["r"] ** (0.5 if config.get("use_rslora") else 1)

    def delta(name: str) -> Any:
        return scale * (tensors[name.replace("lora_A", "lora_B")]() @ tensors[name]())

    return {
        name.removeprefix("base_model.model.").replace(".lora_A", ""): partial(delta, name)
        for name in tensors
        if name.endswith("lora_A.weight")
    }


def read_tensors(folder: Path) -> dict[str, Callable[[], Any]]:
    """By the name of each tensor in a folder's safetensors: what reads it."""
    from safetensors import safe_open

    files = [safe_open(file, "pt") for file in sorted(folder.glob("*.safetensors"))]
    return {name: partial(file.get_tensor, name) for file in files for name in file.keys()}  # noqa: SIM118


def size_gib(folder: Path) -> float:
    """What the files of a folder take on the disk."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**30


def adapter_report(adapter: Path) -> dict[str, Any]:
    """How far an adapter has moved: rank, and the norm of B, which begins at zero.

    A norm of 0 means that nothing was learned (on a T4, fp16's loss scaling can skip steps).
    """
    from safetensors.torch import load_file

    config = read_json(adapter / "adapter_config.json")
    weights = load_file(adapter / "adapter_model.safetensors")
    moved = sum(w.float().square().sum().item() for k, w in weights.items() if "lora_B" in k)
    return {
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "layers": sum("lora_B" in name for name in weights),
        "norm of B": moved**0.5,
        "size_gib": size_gib(adapter),
    }
