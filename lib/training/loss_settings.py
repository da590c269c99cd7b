"""The loss as a recipe writes it: which constants each has, what excludes what, TRL's arguments.

loss_type: sapo
loss_constants: {temperature_neg: 1.1}     # the others keep the values of `CONSTANTS`
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lib.errors import BadInput, nearest

if TYPE_CHECKING:
    from lib.config import Config

# The losses that take constants of their own, and their papers' values.
CONSTANTS = {
    # arXiv 2511.20347: how steeply the soft gate closes, by the advantage's sign
    "sapo": {"temperature_pos": 1.0, "temperature_neg": 1.05},
    # arXiv 2602.10693: φ(w) = e^λ · w^k · e^(−λw) of a completion's ratio w, by the sign
    "vespo": {"k_pos": 2.0, "lambda_pos": 3.0, "k_neg": 3.0, "lambda_neg": 2.0},
}
CLIPPED = ("grpo", "dr_grpo", "dapo", "bnpo", "luspo")  # they take epsilon, and delta


def loss_arguments(config: "Config") -> dict[str, Any]:
    """The arguments of TRL's GRPOConfig that make the loss, each said explicitly."""
    constants = {
        f"{loss}_{name}": config.loss_constants.get(name, value)
        for loss, known in CONSTANTS.items()
        for name, value in known.items()
    }
    return constants | dict(
        loss_type=config.loss_type,
        importance_sampling_level=config.importance_sampling_level,
        scale_rewards=config.scale_rewards,
        multi_objective_aggregation=config.multi_objective_aggregation,
        epsilon=config.epsilon,
        epsilon_high=config.epsilon_high,
        delta=config.delta or None,
        off_policy_mask_threshold=config.off_policy_mask_threshold or None,
        mask_truncated_completions=config.mask_truncated_completions,
        # exploration
        top_entropy_quantile=config.top_entropy_quantile,
        entropy_coef=config.entropy_coef,
        use_adaptive_entropy=config.entropy_target > 0,
        entropy_target=config.entropy_target,
        # the reference model
        beta=config.beta,
        use_bias_correction_kl=config.use_bias_correction_kl,
        sync_ref_model=config.ref_model_sync_steps > 0,
        ref_model_sync_steps=config.ref_model_sync_steps or 1,
        ref_model_mixup_alpha=config.ref_model_mixup_alpha,
    )


def check_loss(config: "Config") -> None:
    """Raises BadInput for loss settings that contradict each other, or that have no effect."""
    for sentence in _contradictions(config):
        raise BadInput(sentence)


def _contradictions(config: "Config") -> Iterator[str]:
    loss, known = config.loss_type, CONSTANTS.get(config.loss_type, {})
    for name, value in config.loss_constants.items():
        if not known:
            yield (
                f"loss_constants has {name!r}, and loss_type {loss} takes no constants: leave it "
                f"out, or set loss_type to {' or '.join(CONSTANTS)}."
            )
        if name not in known:
            yield f"loss_constants of {loss} has no {name!r}: {nearest(name, known)}"
        if value <= 0:
            yield f"{name} in loss_constants is {value}: it should be greater than 0."
    if loss == "cispo" and config.epsilon_high <= 1:
        yield (
            f"epsilon_high {config.epsilon_high} would hold every token's weight below that, since "
            f"cispo takes it as the bound of the ratio itself: set it above 1, as to 5.0."
        )
    if loss == "luspo" and config.importance_sampling_level == "token":
        yield (
            "loss_type luspo weighs whole completions: set importance_sampling_level to sequence."
        )
    if loss == "vespo" and config.importance_sampling_level == "sequence":
        yield (
            "loss_type vespo makes a completion's ratio from its tokens' itself: set "
            "importance_sampling_level to token."
        )
    if config.delta and loss not in CLIPPED:
        yield f"delta bounds a clipped ratio, which loss_type {loss} has not: leave delta at 0."
    if config.delta and config.delta <= 1 + config.epsilon_high:
        yield (
            f"delta {config.delta} lies within the clip range of epsilon_high "
            f"{config.epsilon_high}: set it above {1 + config.epsilon_high:g}."
        )
    normalized = config.multi_objective_aggregation == "normalize_then_sum"
    if normalized and config.scale_rewards != "group":
        yield (
            "multi_objective_aggregation normalize_then_sum scales each reward within its group: "
            "leave scale_rewards at group."
        )
    if normalized and config.resample:
        yield (
            "multi_objective_aggregation normalize_then_sum learns from groups whose totals are "
            "alike, which resample replaces: leave resample at 0."
        )
    yield from _reference_contradictions(config)
    yield from _sampler_contradictions(config)


def _reference_contradictions(config: "Config") -> Iterator[str]:
    if not config.ref_model_sync_steps:
        return
    if not config.beta:
        yield (
            "ref_model_sync_steps moves the reference model, and with beta 0 there is none: set "
            "beta, or leave ref_model_sync_steps at 0."
        )
    if not config.full_finetuning:
        yield (
            "ref_model_sync_steps needs a reference model of its own, and with an adapter it is "
            "the base model, shared: set full_finetuning, or leave ref_model_sync_steps at 0."
        )


def _sampler_contradictions(config: "Config") -> Iterator[str]:
    """Of the correction for what vLLM sampled with slightly other probabilities."""
    if config.rollout_engine != "vllm" or not config.vllm_importance_sampling_correction:
        return
    mode = config.vllm_importance_sampling_mode
    low = config.vllm_importance_sampling_clip_min
    high = config.vllm_importance_sampling_clip_max
    if config.loss_type == "vespo" and mode.startswith("sequence"):
        yield (
            f"loss_type vespo corrects token by token and vllm_importance_sampling_mode is {mode}: "
            f"set it to token_truncate or token_mask."
        )
    if high and low >= high:
        yield (
            f"vllm_importance_sampling_clip_min {low} is not below "
            f"vllm_importance_sampling_clip_max {high}: lower the one or raise the other."
        )
    if mode.endswith("truncate") and not low and not high:
        yield (
            f"vllm_importance_sampling_mode {mode} has no bound to truncate at: set "
            f"vllm_importance_sampling_clip_max."
        )
