"""What the loop of `lib.scratch.loop` does in one way only, though a recipe may ask for others."""

from lib.config import Config
from lib.errors import BadInput

# The trainer of 03_training does more.
FIXED = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "min_lr_rate": 0.0,
    "optim": "adamw_torch",
    "adam_betas": [0.9, 0.999],
    "adam_epsilon": 1e-8,
    "multi_objective_aggregation": "sum_then_normalize",
    "use_bias_correction_kl": True,
    "delta": 0.0,
    "off_policy_mask_threshold": 0.0,
    "top_entropy_quantile": 1.0,
    "entropy_coef": 0.0,
    "entropy_target": 0.0,
    "load_in_4bit": False,
    "cast_lm_head_to_fp32": False,
    "full_finetuning": False,
    "resample": 0,
    "drop_dead": False,
    "curriculum": "none",
    "sft_steps": 0,
}
LOSSES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo")


def check_settings(config: Config) -> None:
    """Raises BadInput where the recipe asks for what the loop does not do."""
    for key, value in FIXED.items():
        if getattr(config, key) != value:
            raise BadInput(
                f"GRPO from scratch knows {key} {value!r} only and the recipe says "
                f"{getattr(config, key)!r}: change it, or train with 03_training."
            )
    if config.loss_type not in LOSSES:
        raise BadInput(
            f"GRPO from scratch has no loss_type {config.loss_type!r}: choose one of "
            f"{', '.join(LOSSES)}, or train with 03_training."
        )
