"""A GPU that is not there: enough of torch.cuda and vLLM's platform that configuration code runs.

    python tests/pretend_gpu.py t4              # every recipe's configuration on a pretended T4
    python tests/pretend_gpu.py rtx5080 qwen3-4b_gsm8k
    python tests/pretend_gpu.py t4 train        # three GRPO steps by Unsloth's GPU trainer

Wants the GPU lock installed. For each recipe it prints, as a line of JSON, what Unsloth would start
vLLM with (`load_vllm(return_args=True)`), and the attention backend that vLLM chooses for that and
for the engine of evaluation, or why it refuses them. No weights are read, nothing is computed.

`train` computes, on the CPU: torch's operations stand in for Unsloth's kernels, and all else of
Unsloth, TRL and the suite is what a card runs. It shows that the parts fit, and nothing of speed.
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
from lib.doctor import evaluation_fits
from lib.engines import engine_arguments
from lib.hardware import GIB, Hardware, gpu_environment
from lib.memory import SHAPES, check_fit, evaluation_gib
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


# --- a card that computes -----------------------------------------------------------------------

MAKERS = "zeros ones empty full arange tensor as_tensor rand randn randint randperm linspace eye"
MAKERS += " empty_like zeros_like ones_like full_like rand_like randn_like empty_strided"


def on_cpu(place: Any) -> Any:
    """Where it is here, for a device or what else stands in its place."""
    is_gpu = type(place).__name__ in ("device", "str") and str(place).startswith("cuda")
    return "cpu" if is_gpu else place


class Idle:
    """A stream, an event, or a context of one: there is nothing to wait for."""

    cuda_stream = idx = 0

    def __init__(self, *_: Any, **__: Any):
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: True

    def __enter__(self):
        return self

    def __exit__(self, *_: Any) -> None:
        return None


def compute_on_cpu() -> None:
    """Have torch do on the CPU what it is told to do on the card, with tensors that say they are
    there."""
    import torch

    def moved(function: Any) -> Any:
        def call(*given: Any, **options: Any) -> Any:
            options.pop("pin_memory", None)
            if type(options.get("device")) is int:
                options["device"] = "cpu"
            options = {name: on_cpu(value) for name, value in options.items()}
            return function(*map(on_cpu, given), **options)

        return call

    def at(owner: Any, names: str) -> None:
        for name in names.split():
            setattr(owner, name, moved(getattr(owner, name)))

    at(torch, MAKERS + " is_autocast_enabled get_autocast_dtype")
    at(torch.Tensor, "to new_zeros new_ones new_empty new_full new_tensor")
    at(torch.amp, "custom_fwd custom_bwd")
    at(torch.amp.autocast_mode.autocast, "__init__")
    at(torch.amp.GradScaler, "__init__")
    same = lambda tensor, *_, **__: tensor  # noqa: E731
    torch.Tensor.cuda = torch.Tensor.pin_memory = torch.nn.Module.cuda = same
    real, card = torch.Tensor.device, torch.device("cuda", 0)
    is_there = lambda tensor: real.__get__(tensor).type != "meta"  # noqa: E731
    torch.Tensor.device = property(lambda t: card if is_there(t) else torch.device("meta"))
    torch.Tensor.is_cuda = property(is_there)
    for name in ("Stream", "Event", "stream", "current_stream", "default_stream", "device"):
        setattr(torch.cuda, name, Idle)
    torch.cuda.is_current_stream_capturing = lambda: False
    for module in (torch.cuda, torch.cuda.random):
        module.get_rng_state = lambda *_: torch.get_rng_state()
        module.set_rng_state = module.manual_seed = lambda *_, **__: None


def without_kernels() -> None:
    """Torch's operations in the place of Unsloth's kernels, after it was imported."""
    import bitsandbytes.functional as bnb
    import torch
    from torch.nn.functional import silu
    from unsloth.kernels import utils

    def fast_dequantize(W, state=None, out=None, use_global_buffer=False, dtype=None):
        if state is None:
            return W
        flat = W.shape[0] == 1
        full = bnb.dequantize_4bit(W.t() if flat else W, state).to(dtype or state.dtype)
        return full.t() if flat else full

    def fast_rms_layernorm(norm, X, *_, **__):
        size = X.float().pow(2).mean(-1, keepdim=True) + norm.variance_epsilon
        return (X.float() * torch.rsqrt(size)).to(X.dtype) * norm.weight

    def fast_rope_embedding(Q, K, cos, sin, places=None):
        places = torch.arange(Q.shape[2])[None] if places is None else places
        cos, sin = (wave.squeeze()[places.reshape(-1, Q.shape[2])][:, None] for wave in (cos, sin))
        halves = lambda x: torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), -1)  # noqa: E731
        return tuple((x * cos + halves(x) * sin).to(x.dtype) for x in (Q, K))

    def swiglu_fg_kernel(e, g):
        return silu(e.float()).to(e.dtype) * g

    def swiglu_DWf_DW_dfg_kernel(DW, e, g):
        sigmoid, f = torch.sigmoid(e.float()), silu(e.float()).to(DW.dtype)
        slope = sigmoid * (1 + e.float() * (1 - sigmoid))
        return f * g, DW * f, ((DW * g).float() * slope).to(DW.dtype)

    replaced = {f.__name__: f for f in locals().values() if isinstance(f, types.FunctionType)}
    replaced |= dict.fromkeys(
        ("decode_rope_inplace", "fast_add_rms_layernorm_inference_ok"), lambda *_: False
    )
    utils._USE_NF4_KERNELS = utils._BNB_GEMM_4BIT = False
    for module in [m for name, m in sys.modules.items() if name.startswith("unsloth")]:
        for name in replaced.keys() & vars(module).keys():
            setattr(module, name, replaced[name])


def train(card: Card) -> None:
    """A small model with random weights, in 4 bit: three steps of GRPO, and a fourth from the
    checkpoint."""
    from lib import hardware

    hardware._query_gpu = lambda: (card.name, card.memory, card.hardware.capability)
    compute_on_cpu()
    import unsloth  # noqa: F401

    without_kernels()
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from lib.models import embedded_folder, load_policy
    from lib.runs import open_run, read_jsonl
    from lib.training import make_trainer
    from lib.training import train as train_on

    def by_turns(completions, **_):
        return [float(i % 3) for i, _ in enumerate(completions)]

    asked = [{"role": "user", "content": "Say a number."}]
    rows = [{"prompt": asked, "id": str(i), "answer": ""} for i in range(4)]
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=3, vocab_size=49152)
    sizes |= dict(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)
    with tempfile.TemporaryDirectory() as folder:
        model = f"{folder}/model"
        LlamaForCausalLM(LlamaConfig(**sizes, eos_token_id=2)).half().save_pretrained(model)
        AutoTokenizer.from_pretrained(embedded_folder()).save_pretrained(model)
        given = dict(model=model, load_in_4bit=True, rollout_engine="transformers", save_steps=3)
        for changes in (dict(max_steps=3), dict(max_steps=4, resume=True)):
            changes |= dict(profile="auto", output_dir=folder)
            config = resolve("ci", given | changes, card.hardware)
            run, policy = open_run(config), load_policy(config)
            trainer = make_trainer(policy, rows, [by_turns], [1.0], config, run)
            train_on(trainer, config, run)
            slopes = [row["grad_norm"] for row in read_jsonl(run.train_log)]
            how = {"unsloths": trainer.is_unsloths, "fp16": trainer.args.fp16}
            print("PRETENDED", json.dumps(how | {"grad_norm": slopes}), flush=True)


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
        **dict.fromkeys(("block_dim", "conv_dim"), shape.hidden),  # LFM2's own words
    )
    place = folder / model.replace("/", "--")
    settings.save_pretrained(place)
    return place


def configured(arguments: dict[str, Any]) -> str:
    """The attention backend of the configuration that vLLM makes of them, or what it says."""
    import vllm.model_executor.models.registry as registry
    from vllm import EngineArgs
    from vllm.config import set_current_vllm_config
    from vllm.v1.attention.selector import get_attn_backend

    registry._run_in_subprocess = lambda inspect: inspect()  # the other process takes half a minute
    try:
        made = EngineArgs(**arguments).create_engine_config()
        model = made.model_config
        with set_current_vllm_config(made):
            return get_attn_backend(model.get_head_size(), model.dtype, None).get_name()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def look(config: Config, card: Card, folder: Path) -> dict[str, Any]:
    """One recipe on the pretended card, as a row: GiB planned and of them KV cache, the share of
    the card and the sequences that Unsloth starts vLLM with, and the attention of each engine."""
    plan = check_fit(config, SHAPES[config.model], card.hardware)
    base = write_config(config.model, folder)
    seen: dict[str, Any] = {"GiB": round(plan.total, 1), "KV": round(plan.parts["KV cache"], 1)}
    alone = evaluation_gib(config, SHAPES[config.model])
    seen |= {"4-bit": config.load_in_4bit, "16-bit GiB": round(alone, 1)}
    seen["evaluation fits"] = not list(evaluation_fits(config, card.hardware))
    for name, as_trained in (("evaluation", False), ("4-bit base", True)):
        if config.load_in_4bit or not as_trained:
            arguments = engine_arguments(config, base, config.r, as_trained=as_trained)
            arguments.pop("use_tqdm_on_load")
            seen[name] = configured(arguments)
    ours = unsloth_arguments(config, base)
    if ours.get("fast_inference"):
        seen |= by_unsloth(ours, base)
    return seen | {"flashinfer": os.environ.get("VLLM_USE_FLASHINFER_SAMPLER", "")}


def by_unsloth(ours: dict[str, Any], base: Path) -> dict[str, Any]:
    import unsloth_zoo.vllm_utils as zoo
    from transformers import AutoConfig

    zoo._can_link_libcuda = lambda: True
    names = ("gpu_memory_utilization", "max_seq_length", "dtype", "max_lora_rank", "max_num_seqs")
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = zoo.load_vllm(
            model_name=str(base),
            config=AutoConfig.from_pretrained(base),
            use_bitsandbytes=ours["load_in_4bit"],
            random_state=ours["random_state"],
            return_args=True,
            **{name: ours[name] for name in names},
        )
    seen = {"share": theirs["gpu_memory_utilization"], "sequences": theirs["max_num_seqs"]}
    theirs.pop("use_tqdm_on_load", None)
    return seen | {"training": configured(theirs)}


def main(name: str, *recipes: str) -> None:
    card = CARDS[name]
    os.environ |= gpu_environment(card.hardware.capability)
    os.environ |= {"UNSLOTH_COMPILE_DISABLE": "1", "TORCHDYNAMO_DISABLE": "1"}
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    pretend(card)
    if recipes == ("train",):
        return train(card)
    import unsloth  # noqa: F401

    stack = Stack(dict.fromkeys(STACK, "1"), "580.95.05", "13.0")
    with tempfile.TemporaryDirectory() as folder:
        for recipe in recipes or sorted(path.stem for path in RECIPES.glob("*.yaml")):
            seen: dict[str, Any] = {}
            try:
                config = resolve(recipe, {"profile": "auto"}, card.hardware)
                if config.model not in SHAPES or config.model == "embedded":
                    continue
                refused = [f for f in installation(config, card.hardware, stack) if f.stops]
                seen = {"refused": refused[0].key} if refused else look(config, card, Path(folder))
            except Exception as error:
                seen = {"error": f"{type(error).__name__}: {error}"[:400]}
            print("PRETENDED", json.dumps({"recipe": recipe, **seen}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
