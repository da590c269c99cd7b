"""Training: TRL's GRPOTrainer with what the suite adds to it.

`GRPOTrainer` is imported when it is first asked for: Unsloth, where it loads the policy, has to be
imported before TRL.
"""

from typing import Any

__all__ = ["GRPOTrainer"]

GRPOTrainer: type  # TRL's, or Unsloth's, with ours on top


def __getattr__(name: str) -> Any:
    if name == "GRPOTrainer":
        from lib.training.trainer import GRPOTrainer

        return GRPOTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
