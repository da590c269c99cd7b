"""Out of the notebook: merge, GGUF, Ollama, the certificate, the Hub, a server."""

from lib.export.merge import (
    adapter_report,
    become_trained,
    find_candidate,
    load_policy_as_trained,
    merged_weights,
    save_merged,
    size_gib,
    weight_faults,
)

__all__ = [
    "adapter_report",
    "become_trained",
    "find_candidate",
    "load_policy_as_trained",
    "merged_weights",
    "save_merged",
    "size_gib",
    "weight_faults",
]
