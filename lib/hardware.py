"""What this machine is, and the profile of settings that suits it.

A profile holds only what hardware decides (precision, which engine, how much
memory it may take); what is learned and how stands in the recipe.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

GIB = 2**30
CUDA_CONTEXT = 0.6  # GiB that a process takes of a GPU before a model is loaded; not measured here


def cpu_precision(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """bf16 where the processor multiplies in it (AMX, AVX512-BF16). Others emulate it, five times
    slower than fp32."""
    words = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    return "bf16" if words & {"amx_bf16", "avx512_bf16"} else "fp32"


_GPU = dict(precision="bf16", rollout_engine="vllm", vllm_gpu_memory_utilization=0.5,
            optim="adamw_8bit")  # fmt: skip
PROFILES = {
    # No GPU: Unsloth trains, vLLM for the CPU generates and evaluates.
    "cpu": dict(precision=cpu_precision(), load_in_4bit=False, rollout_engine="vllm")
    | dict(optim="adamw_torch", per_device_train_batch_size=16),
    # 14.6 GiB usable and no bf16. vLLM's attention runs by Triton there, without FlashInfer.
    "t4": _GPU | dict(precision="fp16", per_device_train_batch_size=4),
    # 16 GB with bf16: RTX 4060 Ti, 4080, 5070 Ti, A4000 and the like.
    "rtx16": _GPU | dict(per_device_train_batch_size=4),
    "l4": _GPU | dict(per_device_train_batch_size=8),
    "a100": _GPU | dict(vllm_gpu_memory_utilization=0.6, per_device_train_batch_size=16),
    "h100": _GPU
    | dict(vllm_gpu_memory_utilization=0.6, optim="adamw_torch", per_device_train_batch_size=32),
}
# A profile is chosen from this many GiB on; what its GPU has to give: a T4 shows 14.6 of its 16 GB.
PROFILE_FROM = {"h100": 70, "a100": 36, "l4": 21, "rtx16": 0}
PROFILE_MEMORY = {"t4": 14.6, "rtx16": 15.5, "l4": 22.0, "a100": 39.0, "h100": 79.0}


@dataclass(frozen=True)
class Hardware:
    """A machine: its GPU, where there is one, and its processor's share.

    Attributes:
        gpu: the GPU's name, or "" without one.
        gpu_memory: GiB of GPU memory.
        capability: CUDA compute capability, such as 7.5 for a T4.
        cores, memory: processor cores, and GiB of main memory, this process may use.
    """

    gpu: str = ""
    gpu_memory: float = 0.0
    capability: float = 0.0
    cores: int = 1
    memory: float = 0.0

    def __str__(self) -> str:
        cpu = f"{self.cores} CPU core{'s' * (self.cores > 1)}, {self.memory:.0f} GiB"
        if not self.gpu:
            return f"no GPU; {cpu}"
        return f"{self.gpu}, {self.gpu_memory:.1f} GiB (compute {self.capability}); {cpu}"


def detect_hardware(cap: float = 0.0) -> Hardware:
    """This machine, by asking the driver and the operating system, not torch; of its GPU's memory
    `cap` GiB at the most (0: all)."""
    gpu, gpu_memory, capability = _query_gpu()
    gpu_memory = min(gpu_memory, cap or gpu_memory)
    memory = min(psutil.virtual_memory().total / GIB, _container_memory())
    return Hardware(gpu, gpu_memory, capability, cpu_cores(), memory)


def cpu_cores() -> int:
    """How many of the machine's this process may use."""
    return len(os.sched_getaffinity(0))


def _container_memory(file: Path = Path("/sys/fs/cgroup/memory.max")) -> float:
    """GiB that a container may use; infinite outside one."""
    limit = file.read_text().strip() if file.is_file() else "max"
    return float("inf") if limit == "max" else int(limit) / GIB


def choose_profile(hardware: Hardware) -> str:
    """The profile for this machine: the largest whose GPU is not larger than what is here."""
    if not hardware.gpu:
        return "cpu"
    if hardware.capability < 8.0:
        return "t4"
    return next(name for name, least in PROFILE_FROM.items() if hardware.gpu_memory >= least)


def free_memory(hardware: Hardware) -> float:
    """GiB that can be had now: of the GPU where there is one, else of main memory."""
    if not hardware.gpu:
        return psutil.virtual_memory().available / GIB
    import torch

    return torch.cuda.mem_get_info()[0] / GIB


def gpu_memory_taken() -> float:
    """The most GiB of the GPU that torch, with vLLM in this process, has held; CUDA's own context
    comes on top."""
    import torch

    return torch.cuda.max_memory_reserved() / GIB


def cap_gpu_memory(cap: float, utilization: float) -> float:
    """Hold this process's torch to `cap` GiB of the GPU (0: all), so that a large card shows what a
    16 GB one would do; vLLM's share of the whole card for it."""
    whole = detect_hardware().gpu_memory
    if not cap or cap >= whole:
        return utilization
    import torch

    torch.cuda.set_per_process_memory_fraction(cap / whole)
    return utilization * cap / whole


def free_share() -> float:
    """The share of the GPU's memory that an engine of its own could take now: a desktop, another
    kernel or this one's policy may hold the rest."""

    def question(nvml: Any, cards: list[Any]) -> float:
        memory = nvml.nvmlDeviceGetMemoryInfo(cards[0], nvml.nvmlMemory_v2)
        return (memory.free - CUDA_CONTEXT * GIB) / (memory.total - memory.reserved)

    free = _ask(question)
    return 1.0 if free is None else max(free, 0.01)


def gpu_environment(capability: float) -> dict[str, str]:
    """What a card wants set before Unsloth loads a model: below 8.0 FlashInfer has no kernels, and
    Unsloth asks for its sampler where it can be compiled."""
    if not 0 < capability < 8.0:
        return {}
    return {"UNSLOTH_VLLM_NO_FLASHINFER": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}


def is_main_process() -> bool:
    """Whether this is the only or the first of the processes that train a run together."""
    return os.environ.get("RANK", "0") == "0"


# --- the driver -------------------------------------------------------------------------------


def _nvml() -> Any:
    """NVIDIA's management library, ready to be asked; None without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def driver_version() -> str:
    """Of the NVIDIA driver, such as "580.95.05"; "" without one."""
    nvml = _nvml()
    return nvml.nvmlSystemGetDriverVersion() if nvml else ""


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may be set to, for each GPU that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [each.strip() for each in visible.split(",") if each.strip() not in ("", "-1")]
    nvml = _nvml()
    return [str(index) for index in range(nvml.nvmlDeviceGetCount())] if nvml else []


def _ask(question: Callable[[Any, list[Any]], Any]) -> Any:
    """What it makes of NVML and the visible cards; None without any, or where one does not tell."""
    nvml, visible = _nvml(), visible_gpus()
    if not (nvml and visible):
        return None
    by_index, by_uuid = nvml.nvmlDeviceGetHandleByIndex, nvml.nvmlDeviceGetHandleByUUID
    try:
        cards = [by_index(int(name)) if name.isdecimal() else by_uuid(name) for name in visible]
        return question(nvml, cards)
    except nvml.NVMLError:
        return None


def gpu_energy() -> float | None:
    """Watt-hours that the visible GPUs have taken since the driver was loaded; None where one does
    not tell, as those before Volta."""
    taken = _ask(lambda nvml, cards: sum(map(nvml.nvmlDeviceGetTotalEnergyConsumption, cards)))
    return taken and taken / 3.6e6  # millijoules


def _query_gpu() -> tuple[str, float, float]:
    """Name, GiB and compute capability of the first GPU that is visible."""

    def question(nvml: Any, cards: list[Any]) -> tuple[str, float, float]:
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(cards[0])
        memory = nvml.nvmlDeviceGetMemoryInfo(cards[0], nvml.nvmlMemory_v2)
        gib = (memory.total - memory.reserved) / GIB  # as CUDA counts: a T4 has 14.6 of its 16 GB
        return nvml.nvmlDeviceGetName(cards[0]), gib, major + minor / 10

    return _ask(question) or ("", 0.0, 0.0)
