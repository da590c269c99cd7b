"""A GPU that is not there: enough of torch.cuda and vLLM's platform that configuration code runs.

    python tests/pretend_gpu.py t4              # every recipe's configuration on a pretended T4
    python tests/pretend_gpu.py rtx5080 qwen3-4b_gsm8k

Wants the GPU lock installed. For each recipe it prints, as a line of JSON, what Unsloth would start
vLLM with (`load_vllm(return_args=True)`), and whether vLLM makes a configuration of that and of the
arguments of the engine for evaluation. No weights are read and nothing is computed.
"""

import contextlib
import ctypes
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lib.config import RECIPES, Config, resolve
from lib.engines import engine_arguments
from lib.hardware import GIB, Hardware, gpu_environment
from lib.memory import SHAPES, check_fit
from lib.models import unsloth_arguments
from lib.process import STACK
from lib.stack import Stack, installation


@dataclass(frozen=True)
class Card:
    """
    Attributes:
        memory: GiB that torch would report.
        processors: streaming multiprocessors.
    """

    name: str
    capability: tuple[int, int]
    memory: float
    processors: int

    @property
    def hardware(self) -> Hardware:
        major, minor = self.capability
        return Hardware(self.name, self.memory, major + minor / 10, 8, 32.0)


CARDS = {
    "t4": Card("Tesla T4", (7, 5), 14.6, 40),
    "l4": Card("NVIDIA L4", (8, 9), 22.2, 58),
    "rtx4060ti": Card("NVIDIA GeForce RTX 4060 Ti", (8, 9), 15.6, 34),
    "rtx5080": Card("NVIDIA GeForce RTX 5080", (12, 0), 15.5, 84),
}
FAMILIES = {  # of the models that recipes name: transformers' configuration, and vLLM's model
    "google/gemma-2": ("Gemma2Config", "Gemma2ForCausalLM"),
    "Qwen/Qwen2.5": ("Qwen2Config", "Qwen2ForCausalLM"),
    "Qwen/Qwen3-": ("Qwen3Config", "Qwen3ForCausalLM"),
    "meta-llama/": ("LlamaConfig", "LlamaForCausalLM"),
    "LiquidAI/LFM2": ("Lfm2Config", "Lfm2ForCausalLM"),
    "mistralai/": ("MistralConfig", "MistralForCausalLM"),
}


DRIVER = (  # what vLLM's libraries want of libcuda to be loaded
    *("CtxGetCurrent", "CtxSetCurrent", "DeviceGetAttribute", "DevicePrimaryCtxRetain"),
    *("GetErrorString", "GetProcAddress_v2", "MemAddressFree", "MemAddressReserve", "MemCreate"),
    *("MemGetAllocationGranularity", "MemMap", "MemRelease", "MemSetAccess", "MemUnmap"),
    *("PointerGetAttribute", "TensorMapEncodeTiled"),
)


def pretend_driver() -> None:
    """A libcuda in this process each of whose functions says that there is no device (100)."""
    with contextlib.suppress(OSError):
        ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL)
        return
    source = "".join(f"int cu{name}(){{return 100;}}" for name in DRIVER)
    library = Path(tempfile.mkdtemp(), "libcuda.so.1")
    command = ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-xc", "-", "-o", library]
    subprocess.run(command, input=source, text=True, check=True)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def pretend(card: Card) -> None:
    """Make torch and vLLM of this process take `card` for the machine's, with Colab's compilers."""
    pretend_driver()
    import torch

    total = int(card.memory * GIB)
    optin = 65536 if card.capability < (8, 0) else 101376
    properties = types.SimpleNamespace(
        name=card.name,
        major=card.capability[0],
        minor=card.capability[1],
        total_memory=total,
        multi_processor_count=card.processors,
        is_integrated=False,
        is_multi_gpu_board=False,
        uuid="GPU-0",
        L2_cache_size=4 << 20,
        warp_size=32,
        regs_per_multiprocessor=65536,
        shared_memory_per_block=49152,
        shared_memory_per_block_optin=optin,
        shared_memory_per_multiprocessor=optin,
        gcnArchName="",
    )
    answers = dict(
        is_available=True,
        device_count=1,
        is_initialized=False,
        current_device=0,
        get_device_capability=card.capability,
        get_device_properties=properties,
        get_device_name=card.name,
        mem_get_info=(int(total * 0.985), total),
        is_bf16_supported=card.capability >= (8, 0),
        memory_reserved=0,
        memory_allocated=0,
        max_memory_reserved=0,
        max_memory_allocated=0,
    )
    does_nothing = ["_lazy_init", "empty_cache", "synchronize", "set_device", "manual_seed_all"]
    does_nothing += ["reset_peak_memory_stats", "set_per_process_memory_fraction", "ipc_collect"]
    for name, answer in (answers | dict.fromkeys(does_nothing)).items():
        setattr(torch.cuda, name, lambda *args, answer=answer, **options: answer)
    torch._C._cuda_getCurrentRawStream = lambda device: 0
    import vllm.platforms
    from vllm.platforms.cuda import NonNvmlCudaPlatform

    vllm.platforms._current_platform = NonNvmlCudaPlatform()
    which = shutil.which
    tools = {"nvcc": "/usr/bin/nvcc", "ninja": "/usr/bin/ninja"}
    shutil.which = lambda name, *rest, **options: tools.get(name) or which(name, *rest, **options)


def write_config(model: str, folder: Path) -> Path:
    """A config.json with the sizes of a model that recipes name."""
    import transformers

    shape = SHAPES[model]
    family, architecture = next(v for start, v in FAMILIES.items() if model.startswith(start))
    settings = getattr(transformers, family)(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=8192,
        architectures=[architecture],
    )
    place = folder / model.replace("/", "--")
    settings.save_pretrained(place)
    return place


def configured(arguments: dict[str, Any]) -> str:
    """ "" where vLLM makes a configuration of them, else what it says."""
    from vllm import EngineArgs

    arguments = {k: v for k, v in arguments.items() if k != "use_tqdm_on_load"}
    try:
        EngineArgs(**arguments).create_engine_config()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""


def look(config: Config, card: Card, folder: Path) -> dict[str, Any]:
    """One recipe on the pretended card, as the line to print."""
    import unsloth_zoo.vllm_utils as zoo
    from transformers import AutoConfig

    zoo._can_link_libcuda = lambda: True
    base = write_config(config.model, folder)
    ours = unsloth_arguments(config, base)
    seen: dict[str, Any] = {"recipe": config.name, "profile": config.profile}
    seen["planned"] = round(check_fit(config, SHAPES[config.model], card.hardware).total, 1)
    alone = engine_arguments(config, base, adapters=True)
    seen["evaluation"] = configured(alone)
    four_bit = dict(quantization="bitsandbytes", load_format="bitsandbytes")
    seen["4-bit base"] = configured(alone | four_bit) if config.load_in_4bit else ""
    seen["flashinfer_sampler"] = os.environ.get("VLLM_USE_FLASHINFER_SAMPLER", "")
    if not ours.get("fast_inference"):
        return seen | {"training": ""}
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = zoo.load_vllm(
            model_name=str(base),
            config=AutoConfig.from_pretrained(base),
            gpu_memory_utilization=ours["gpu_memory_utilization"],
            max_seq_length=ours["max_seq_length"],
            dtype=ours["dtype"],
            max_lora_rank=ours["max_lora_rank"],
            max_num_seqs=ours["max_num_seqs"],
            use_bitsandbytes=ours["load_in_4bit"],
            random_state=config.seed,
            return_args=True,
        )
    for key in ("gpu_memory_utilization", "max_num_seqs", "quantization", "dtype"):
        seen[key] = str(theirs.get(key, ""))
    seen["training"] = configured(theirs)
    seen["flashinfer_sampler"] = os.environ.get("VLLM_USE_FLASHINFER_SAMPLER", "")
    return seen


def main(name: str, *recipes: str) -> None:
    card = CARDS[name]
    os.environ |= gpu_environment(card.hardware.capability)
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    pretend(card)
    import unsloth  # noqa: F401

    names = recipes or sorted(path.stem for path in RECIPES.glob("*.yaml"))
    with tempfile.TemporaryDirectory() as folder:
        for recipe in names:
            try:
                config = resolve(recipe, {"profile": "auto"}, card.hardware)
                if config.model not in SHAPES or config.model == "embedded":
                    continue
                stack = Stack(dict.fromkeys(STACK, "1"), "580.95.05", "13.0")
                refused = [str(f) for f in installation(config, card.hardware, stack) if f.stops]
                seen = {"recipe": recipe, "refused": refused}
                if not refused:
                    seen = look(config, card, Path(folder))
            except Exception as error:
                seen = {"recipe": recipe, "error": f"{type(error).__name__}: {error}"[:400]}
            print("PRETENDED", json.dumps(seen), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
