"""Which way a run goes on this machine, and what would stop it there, before anything is imported.

    >>> backend, note = choose_backend(config)

Card, driver and installed packages decide. Once Unsloth is imported, TRL's trainer is Unsloth's, so
that "try it and go on without" cannot work within one process.
"""

import importlib.util

from lib.config import Config
from lib.errors import BadInput
from lib.hardware import Hardware, detect_hardware
from lib.stack import installation, read_stack


def choose_backend(config: Config, hardware: Hardware | None = None) -> tuple[str, str]:
    """How the policy is to be loaded, and the sentence to show where that is not Unsloth's way.

    Decided without importing anything: once imported, Unsloth has made TRL's trainer its own, which
    no other model passes through. There are two reasons to fall back, a package that is not
    there and a card that Unsloth's kernels do not run on, and `backend: auto` allows them.

    Raises:
        BadInput: what is asked for cannot run in this installation or on this card.
    """
    hardware = hardware or detect_hardware()
    for finding in installation(config, hardware, read_stack()):
        if finding.stops and (finding.key != "old-card" or config.backend == "unsloth"):
            raise BadInput(finding.sentence, key=finding.key)
    if config.backend == "transformers":
        return "transformers", ""
    reason = ""
    if importlib.util.find_spec("unsloth") is None:
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
