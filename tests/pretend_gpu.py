"""A GPU that is not there: enough of torch.cuda and vLLM's platform that configuration code runs.

    python tests/pretend_gpu.py t4              # every recipe's configuration on a pretended T4
    python tests/pretend_gpu.py rtx5080 qwen3-4b_gsm8k
    python tests/pretend_gpu.py t4 notebooks    # 01 to 05, with Unsloth's GPU trainer
    python tests/pretend_gpu.py t4 notebooks --only 03_training -p backend transformers

Wants the GPU lock installed. For each recipe it prints, as a line of JSON, what Unsloth would start
vLLM with (`load_vllm(return_args=True)`), and the attention backend that vLLM chooses for that and
for the engine of evaluation, or why it refuses them. No weights are read, nothing is computed.

`notebooks` computes, on the CPU: torch's operations stand in for Unsloth's kernels, transformers
for vLLM's engine, and all else of Unsloth, TRL and the suite is what a card runs. It shows that the
parts fit, and nothing of speed.
"""

import contextlib
import ctypes
import importlib.abc
import importlib.machinery
import inspect
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import types
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lib.config import RECIPES, Config, resolve
from lib.doctor import evaluation_fits
from lib.engines import chat_text, engine_arguments
from lib.hardware import GIB, Hardware, gpu_environment
from lib.memory import SHAPES, check_fit, evaluation_gib
from lib.models import unsloth_arguments
from lib.process import STACK
from lib.stack import Stack, installation
from lib.tasks.prompts import end_ids


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
    from torch.utils import _device

    # What `torch.device("meta")` acts on: kept as it is, it does not look for what follows.
    _device._device_constructors()

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
    unscale = torch._amp_foreach_non_finite_check_and_unscale_

    def unscaled(grads: list, *given: Any) -> Any:
        if torch.bfloat16 in {grad.dtype for grad in grads}:
            raise NotImplementedError("fp16's scaler has no CUDA kernel for bf16")
        return unscale(grads, *given)

    torch._amp_foreach_non_finite_check_and_unscale_ = unscaled
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


# --- the notebooks on it -------------------------------------------------------------------------


class Served:
    """In the place of `vllm.LLM`: its configuration and its answers are vLLM's own, its model is
    transformers', in 32 bit, with the adapter of a request added to the weights."""

    shared_weights = False

    def __init__(self, use_tqdm_on_load: bool = False, **arguments: Any):
        import torch
        import transformers
        from vllm import EngineArgs

        print("Served:", arguments, flush=True)
        self.vllm_config = EngineArgs(**arguments).create_engine_config()
        self.model_config = self.vllm_config.model_config
        self.llm_engine = self.engine_core = self
        self.request_counter = types.SimpleNamespace(counter=0)
        self.waiting: list[tuple] = []
        self.adapters: dict[int, tuple] = {}
        self.tempered = arguments.get("logprobs_mode") == "processed_logprobs"
        self.approx_max_num_seqs, self.folder = arguments["max_num_seqs"], arguments["model"]
        load = partial(transformers.AutoModelForCausalLM.from_pretrained, self.folder)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        self.model = load(dtype=torch.float32).eval()
        self.weights = {name: w.detach().clone() for name, w in self.model.named_parameters()}
        if arguments.get("quantization"):
            from bitsandbytes.functional import dequantize_4bit

            how = dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
            how = transformers.BitsAndBytesConfig(load_in_4bit=True, **how)
            for name, layer in load(dtype=torch.float16, quantization_config=how).named_modules():
                if state := getattr(getattr(layer, "weight", None), "quant_state", None):
                    whole = dequantize_4bit(layer.weight, state)
                    self.weights[f"{name}.weight"] = whole.float()

    def get_tokenizer(self) -> Any:
        return self.tokenizer

    def shutdown(self, *_: Any, **__: Any) -> None:
        """And what else there is nothing to do for."""

    reset_prefix_cache = sleep = wake_up = shutdown

    def abort_request(self, ids: list[str]) -> None:
        self.waiting = [each for each in self.waiting if each[0] not in ids]

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        """Take the weights that are handed over, under the names of the base model's files."""
        assert method == "reload_weights", method
        for name, weight in kwargs["weights_iterator"]:
            self.weights[name].copy_(weight)

    def adapt(self, request: Any) -> None:
        """Add the request's adapter to the weights; as vLLM, by its id where that was seen."""
        from safetensors.torch import load_file

        state = self.model.state_dict()
        for name, weight in self.weights.items():
            state[name].copy_(weight)
        if request is None:
            return
        if request.lora_int_id not in self.adapters:
            folder = request.lora_path and Path(request.lora_path)
            if getattr(request, "lora_tensors", None) is not None:  # Unsloth's request
                tensors, settings = request.lora_tensors, request.lora_config
            else:
                tensors = load_file(folder / "adapter_model.safetensors")
                settings = json.loads((folder / "adapter_config.json").read_text())
            tensors = {name: tensor.detach().float().clone() for name, tensor in tensors.items()}
            self.adapters[request.lora_int_id] = tensors, settings["lora_alpha"] / settings["r"]
        tensors, scale = self.adapters[request.lora_int_id]
        for name in (name for name in tensors if ".lora_A." in name):
            layer = name.removeprefix("base_model.model.").replace(".lora_A", "")
            product = tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
            state[layer].add_(scale * product)

    def enqueue(self, prompts: Any, params: Any, use_tqdm: bool, lora_request: Any = None) -> None:
        for prompt in prompts:
            name = str(self.request_counter.counter)
            self.waiting.append((name, prompt, params, lora_request))
            self.request_counter.counter += 1

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting)

    def step(self) -> list:
        from vllm.outputs import RequestOutput

        name, prompt, params, request = self.waiting.pop(0)
        self.adapt(request)
        ids = (
            prompt.get("prompt_token_ids")
            or self.tokenizer(prompt["prompt"], add_special_tokens=False).input_ids
        )
        scored = self.scores(ids) if params.prompt_logprobs is not None else None
        return [RequestOutput(name, None, ids, scored, self.answer(ids, params), True)]

    def scores(self, ids: list[int]) -> list:
        """What the model says to each token of a prompt but the first."""
        import torch
        from vllm.logprobs import Logprob

        with torch.no_grad():
            said_TV = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        pairs = list(zip(said_TV, ids[1:], strict=False))
        ranks = [1 + int((said_V > said_V[token]).sum()) for said_V, token in pairs]
        rows = [
            {token: Logprob(float(said_V[token]), rank)}
            for (said_V, token), rank in zip(pairs, ranks, strict=True)
        ]
        return [None, *rows]

    def generate(
        self, prompts: Any, sampling_params: Any, use_tqdm: bool = True, lora_request: Any = None
    ) -> list:
        self.enqueue(prompts, sampling_params, use_tqdm, lora_request)
        return [output for _ in prompts for output in self.step()]

    def chat(self, messages: list[dict], *given: Any, **named: Any) -> list:
        text = chat_text(self.tokenizer, messages)
        return self.generate([{"prompt": text}], *given, **named)

    def answer(self, ids: list[int], params: Any) -> list:
        import torch
        from vllm.logprobs import Logprob
        from vllm.outputs import CompletionOutput

        ends, answers = {*end_ids(self.model.generation_config.eos_token_id)}, []
        for index in range(params.n):
            tokens, logps = [], []
            while len(tokens) < params.max_tokens and not ends & {*tokens[-1:]}:
                with torch.no_grad():
                    logits_V = self.model(torch.tensor([[*ids, *tokens]])).logits[0, -1].float()
                drawn_V = (logits_V / (params.temperature or 1)).log_softmax(-1)
                greedy = int(drawn_V.argmax())
                tokens.append(int(drawn_V.exp().multinomial(1)) if params.temperature else greedy)
                said_V = drawn_V if self.tempered else logits_V.log_softmax(-1)
                logps.append({tokens[-1]: Logprob(float(said_V[tokens[-1]]))})
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            reason = "stop" if ends & {*tokens[-1:]} else "length"
            answers.append(CompletionOutput(index, text, tokens, 0.0, logps, finish_reason=reason))
        return answers


def serve_at_unsloths_door() -> None:
    """Unsloth's engine: its own arguments for vLLM, and a policy of the same weights."""
    import unsloth_zoo.vllm_utils as zoo
    from transformers import AutoModelForCausalLM

    arguments_of = zoo.load_vllm
    zoo._can_link_libcuda = lambda: True

    def load_vllm(**given: Any) -> Served:
        return Served(**arguments_of(**given, return_args=True))

    def policy_of(folder: str, config: Any, dtype: Any, in_4_bit: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, quantization_config=in_4_bit
        )

    load_vllm.__signature__ = inspect.signature(arguments_of)
    zoo.load_vllm, zoo.convert_vllm_to_huggingface = load_vllm, policy_of
    zoo.get_vllm_state_dict = lambda engine, **_: ({}, engine.folder)


def nvml_of(card: Card) -> types.ModuleType:
    """NVIDIA's management library on a machine with this card."""
    nvml, total = types.ModuleType("pynvml"), int(card.memory * GIB)
    memory = types.SimpleNamespace(total=total, reserved=0, free=int(total * 0.985))
    nvml.NVMLError, nvml.nvmlMemory_v2 = RuntimeError, 2
    answers = dict(
        nvmlInit=None,
        nvmlDeviceGetCount=1,
        nvmlDeviceGetHandleByIndex=0,
        nvmlDeviceGetName=card.name,
        nvmlDeviceGetCudaComputeCapability=card.capability,
        nvmlDeviceGetMemoryInfo=memory,
        nvmlDeviceGetTotalEnergyConsumption=1000,
        nvmlSystemGetDriverVersion="580.95.05",
    )
    for name, answer in answers.items():
        setattr(nvml, name, lambda *_, answer=answer: answer)
    nvml.nvmlDeviceGetHandleByUUID = nvml.nvmlDeviceGetHandleByIndex
    return nvml


def emulate(card: Card) -> None:
    """Have this process take the card for its machine's, once it imports torch and Unsloth."""

    def after_torch() -> None:
        pretend(card)
        compute_on_cpu()
        import vllm

        vllm.LLM = Served

    def after_unsloth() -> None:
        without_kernels()
        serve_at_unsloths_door()

    waiting = {"torch": after_torch, "unsloth": after_unsloth}

    class After(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
            if name not in waiting:
                return None
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            run = spec.loader.exec_module

            def load(module: types.ModuleType) -> None:
                run(module)
                waiting.pop(name, lambda: None)()

            spec.loader.exec_module = load
            return spec

    sys.modules["pynvml"] = nvml_of(card)
    sys.meta_path.insert(0, After())


def notebooks(name: str, *given: str) -> None:
    """01 to 05 of a small model with random weights, in 4 bit, and a step more from its
    checkpoint; `given` to the runner as well. A process of Python loads the card as it starts."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from lib.models import embedded_folder
    from lib.runs import read_jsonl

    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=3, vocab_size=49152)
    sizes |= dict(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)
    with tempfile.TemporaryDirectory() as folder:
        model = f"{folder}/model"
        LlamaForCausalLM(LlamaConfig(**sizes, eos_token_id=2)).half().save_pretrained(model)
        AutoTokenizer.from_pretrained(embedded_folder()).save_pretrained(model)
        Path(folder, "sitecustomize.py").write_text(
            f"from tests.pretend_gpu import CARDS, emulate\nemulate(CARDS[{name!r}])\n"
        )
        Path(folder, "own.py").write_text(
            "def vowels(completions, **_):\n    texts = [c[0]['content'] for c in completions]\n"
            "    return [sum(map(t.count, 'aeiou')) / (1 + len(t)) for t in texts]\n"
        )
        words = dict(model=model, output_dir=folder, run="run", load_in_4bit="true", save_steps=3)
        words |= dict(preflight_prompts=4)
        words |= {"max_steps": 3, "rewards": json.dumps({f"{folder}/own.py:vowels": 1})}
        environment = os.environ | {"PYTHONPATH": f"{folder}:{Path(__file__).parent.parent}"}
        for changes in (
            {"--only": "01 02 03 04 05"},
            {"--only": "03 --resume", "max_steps": 4},
        ):
            only = changes.pop("--only").split()
            command = [sys.executable, "-m", "lib.suite", "ci", "--only", *only]
            for key, value in (words | changes).items():
                command += ["-p", key, str(value)]
            command += given
            done = subprocess.run(command, env=environment, stdout=sys.stderr)
            log = read_jsonl(Path(folder, "run", "train_log.jsonl"))
            columns = ("grad_norm", "entropy", "sampling/sampling_logp_difference/mean")
            seen = {column: [row.get(column) for row in log] for column in columns}
            print("PRETENDED", json.dumps({"rc": done.returncode} | seen), flush=True)


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
    seen = {"share": round(theirs["gpu_memory_utilization"], 3)}
    seen["sequences"] = theirs["max_num_seqs"]
    theirs.pop("use_tqdm_on_load", None)
    return seen | {"training": configured(theirs)}


def main(name: str, *recipes: str) -> None:
    card = CARDS[name]
    os.environ |= gpu_environment(card.hardware.capability)
    os.environ |= {"UNSLOTH_COMPILE_DISABLE": "1", "TORCHDYNAMO_DISABLE": "1"}
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    if recipes[:1] == ("notebooks",):
        return notebooks(name, *recipes[1:])
    pretend(card)
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
