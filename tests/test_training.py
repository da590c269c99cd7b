"""What is asked of TRL's trainer, for every recipe."""

import pytest

from lib.config import RECIPES, resolve
from lib.errors import BadInput
from lib.models import Policy
from lib.prompts import get_format
from lib.rewards import build_rewards
from lib.runs import Run
from lib.training import check_lengths, grpo_arguments
from tests.conftest import CPU, L4, T4


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("hardware", [T4, L4], ids=["t4", "l4"])
def test_every_recipe_makes_valid_arguments(path, hardware, tmp_path):
    from trl import GRPOConfig

    config = resolve(path, {}, hardware)
    arguments = grpo_arguments(config, Run(tmp_path))
    # Whether this machine has the GPU is no matter of the arguments.
    on_this_machine = {"bf16": False, "fp16": False, "use_cpu": True, "use_vllm": False}
    made = GRPOConfig(**(arguments | on_this_machine))
    assert made.generation_batch_size == config.completions_per_step
    assert made.num_generations == config.num_generations
    form = get_format(config.prompt_format)
    functions, weights = build_rewards(
        config.rewards, form.answer_tag, form.think_tag, config.max_completion_length
    )
    assert len(functions) == len(weights) == len(config.rewards)


@pytest.mark.parametrize("key", ["loss_type", "beta", "scale_rewards", "num_iterations"])
def test_what_unsloth_changes_silently_is_stated(key, ci_config, run):
    assert grpo_arguments(ci_config, run)[key] == getattr(ci_config, key)


def test_a_step_is_prompts_times_generations(run):
    config = resolve(None, {"prompts_per_step": 6, "num_generations": 4, "micro_batch": 8}, CPU)
    arguments = grpo_arguments(config, run)
    assert arguments["per_device_train_batch_size"] == 8
    assert arguments["gradient_accumulation_steps"] == 3
    assert arguments["steps_per_generation"] == 3


def test_prompts_that_do_not_fit_are_refused(embedded):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded)
    config = resolve(None, {"max_seq_length": 64, "max_completion_length": 32}, CPU)
    row = {"id": "long/1", "prompt": [{"role": "user", "content": "one two three " * 40}]}
    with pytest.raises(BadInput, match=r"The prompt of long/1 has \d+ tokens and max_seq_length"):
        check_lengths([row], tokenizer, config)


def test_too_few_problems_for_a_step(ci_config, run):
    from lib.training import make_trainer

    policy = Policy(model=None, tokenizer=None, folder=None, backend="transformers")
    with pytest.raises(BadInput, match="1 training problems do not fill one step"):
        make_trainer(policy, [{"id": "a"}], [], [], ci_config, run)
