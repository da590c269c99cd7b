"""Out of the notebook: from an adapter to a model of its own (merge, save, check the weights).

GGUF and Ollama, the certificate, servers and what a person sees are modules beside this one.

state = merged_weights(folder, adapter)         # name → tensor, for `Engine.hand_over`
save_merged(model, folder, run.merged)          # 16-bit safetensors with tokenizer
weight_faults(folder, adapter, run.merged)      # tensors that are not W + s·B·A
"""

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lib.adapters import check_adapter, is_adapter
from lib.config import Config
from lib.engines import Engine
from lib.errors import BadInput
from lib.files import read_json, write_json, written_whole
from lib.models import in_4_bit, is_hub_name, load_tokenizer, model_folder, torch_dtype
from lib.runs import Run


def find_candidate(named: str, config: Config, run: Run) -> Path:
    """The model to measure against the base: "" is the run's adapter; "base", "merged" or a kind of
    GGUF ("q8_0") are the run's own; else the path of an adapter, of a folder with safetensors or of
    a .gguf file, or a Hub name. BadInput: there is none."""
    own = {"": run.adapter, "adapter": run.adapter, "merged": run.merged}
    own |= {kind: run.folder / "gguf" / f"model-{kind}.gguf" for kind in config.gguf}
    if named in own:
        made_by = "03_training" if own[named] == run.adapter else "05_merge_export"
        return run.need(own[named], made_by)
    if named == "base":
        return model_folder(config)
    if path := config.find(named):
        if path.is_file() and path.suffix == ".gguf":
            return path
        if is_adapter(path):
            check_adapter(path, model_folder(config))
            return path
    if path is None and (named.endswith(".gguf") or not is_hub_name(named)):
        hint = "give a path, a Hub name, base, merged, or a kind of gguf"
        raise BadInput(f"There is no candidate {named}: {hint}.", key="candidate")
    return model_folder(config.model_copy(update={"model": named}))


def hub_token() -> str:
    """What `push_to_hub` needs; BadInput: it is not in the environment."""
    if token := os.environ.get("HF_TOKEN"):
        return token
    hint = "set the environment variable HF_TOKEN"
    raise BadInput(f"push_to_hub needs a token: {hint}.", key="no-token")


# The trained model: `trained` is an adapter that belongs to 16-bit weights in `base`, or a whole
# model, in a folder or a GGUF file (which is dequantised).


def load_trained(base: Path, trained: Path, **settings: Any) -> Any:
    """Nothing merged; `settings` are those of `from_pretrained`."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if is_adapter(trained):
        model = AutoModelForCausalLM.from_pretrained(base, **settings)
        return PeftModel.from_pretrained(model, trained)
    if trained.suffix == ".gguf":
        trained, settings = trained.parent, settings | {"gguf_file": trained.name}
    return AutoModelForCausalLM.from_pretrained(trained, **settings)


def load_merged(base: Path, trained: Path, dtype: Any = None) -> Any:
    """As one: W + (alpha/r)·B·A in each adapted layer (Hu et al. 2021, eq. 3); bf16 by default."""
    model = load_trained(base, trained, dtype=dtype or "bfloat16")
    return model.merge_and_unload() if is_adapter(trained) else model


def load_policy_as_trained(config: Config, base: Path, trained: Path | None) -> Any:
    """As training saw it, nothing merged, on its 4-bit base where it had one; of None the base."""
    settings: dict[str, Any] = dict(dtype="float32")  # on a CPU, for a closer look
    if config.profile != "cpu":
        settings = dict(dtype=torch_dtype(config), device_map={"": 0})
    if config.load_in_4bit:
        settings["quantization_config"] = in_4_bit(config)
    return load_trained(base, trained or base, **settings).eval()


def merged_weights(base: Path, trained: Path, dtype: Any = None) -> dict[str, Any]:
    """The merged model's weights, as an engine takes them (tied ones once). BadInput: they do not
    fit into the base model's place."""
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
    if model.config.tie_word_embeddings:
        for tied in getattr(model, "_tied_weights_keys", None) or ():
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

    Merge in 32 bit: an adapter's product is small against the weights, and fp16, whose steps are an
    eighth of bf16's, keeps more of it. BadInput: a weight that fp16 cannot hold.
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


def write_templates(folder: Path) -> None:
    """The chat template in both places where tools look, without `{% generation %}`."""
    file, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    values = read_json(settings)
    template = plain_jinja(file.read_text("utf-8") if file.is_file() else values["chat_template"])
    file.write_text(template, encoding="utf-8")
    write_json(settings, values | {"chat_template": template})


def plain_jinja(template: str) -> str:
    """The chat template without `{% generation %}`, which only transformers knows and llama.cpp
    fails on (llama-cpp-python#2225). An `if true` keeps what its dashes do to white space."""
    for tag, plain in (("generation", "if true"), ("endgeneration", "endif")):
        template = re.sub(rf"(\{{%[-+]?\s*){tag}(\s*[-+]?%\}})", rf"\1{plain}\2", template)
    return template


# Is what was written what merging gives?

# of a generation_config.json, what vLLM's server takes for its defaults; and of a config.json, what
# says nothing of the model's answers
SERVED_BY = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens")
NO_SETTINGS = ("_name_or_path", "transformers_version", "dtype", "architectures", "use_cache")


def weight_faults(base: Path, trained: Path, merged: Path) -> list[str]:
    """What of `merged/` is not as merging leaves it: settings that differ from the base's, tensors
    that are not W + s·B·A, each with how far off it is.

    Rounding to the file's precision is allowed for, and a tenth of what the adapter adds.
    """
    import torch
    from transformers import AutoConfig

    source, generation = base if is_adapter(trained) else trained, "generation_config.json"
    ours, theirs = (read_json(folder / generation, {}) for folder in (source, merged))
    faults = [f"{generation} is missing"] if ours and not theirs else []
    for key in SERVED_BY if theirs else ():
        if theirs.get(key) != ours.get(key):
            faults.append(f"{generation} has {key} {theirs.get(key)}, the base {ours.get(key)}")
    ours, theirs = (AutoConfig.from_pretrained(folder).to_dict() for folder in (source, merged))
    for key in sorted((ours.keys() | theirs.keys()) - set(NO_SETTINGS)):
        if theirs.get(key) != ours.get(key):
            faults.append(f"config.json has {key} {theirs.get(key)}, the base {ours.get(key)}")
    deltas = _deltas(trained) if is_adapter(trained) else {}
    tensors, written = read_tensors(source), read_tensors(merged)
    if theirs.get("tie_word_embeddings"):  # a head that stands there is read by nobody
        for each in (tensors, written):
            each.pop("lm_head.weight", None)
    for name, read in tensors.items():
        if name not in written:
            faults.append(f"{name} is missing")
            continue
        weight, there = read().float(), written.pop(name)()
        delta = deltas.pop(name)() if name in deltas else torch.zeros(())
        error = (there.float() - (weight + delta).to(there.dtype).float()).norm()
        if not there.isfinite().all():
            faults.append(f"{name} is not finite")
        elif error > 0.1 * delta.norm() + 1e-4 * weight.norm():
            size, of = delta.norm(), "what the adapter adds"
            if not size:
                size, of = weight.norm(), "its size"
            faults.append(f"{name} is off by {error / size:.0%} of {of}")
    faults += [f"{name} is not in the base model" for name in written]
    return faults + [f"{name} of the adapter has no place in the model" for name in deltas]


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


def size_gib(path: Path) -> float:
    """What a folder's files, or a file, take on the disk."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file()) / 2**30


def adapter_report(adapter: Path) -> dict[str, Any]:
    """How far an adapter has moved: rank, and the norm of B, which begins at zero and stays there
    where nothing was learned (on a T4, fp16's loss scaling can skip steps)."""
    config = read_json(adapter / "adapter_config.json")
    norms = [
        read().float().norm() for name, read in read_tensors(adapter).items() if "lora_B" in name
    ]
    return {
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "linear layers": len(norms),
        "norm of B": sum(float(norm) ** 2 for norm in norms) ** 0.5,
    }
