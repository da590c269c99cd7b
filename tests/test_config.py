"""A recipe becomes a configuration, or one sentence says why not."""

import re

import pytest

from lib.config import RECIPES, Config, notebook_config, resolve
from lib.errors import BadInput
from lib.hardware import PROFILES, Hardware, choose_profile, parse_gpu
from tests.conftest import CPU, L4, T4


def test_precedence_default_profile_recipe_by_profile_parameter(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("micro_batch: 16\nmax_steps: 7\nby_profile:\n  t4: {max_steps: 5}\n")
    on_l4 = resolve(recipe, {}, L4)
    assert (on_l4.name, on_l4.profile, on_l4.micro_batch, on_l4.max_steps) == ("mine", "l4", 16, 7)
    assert on_l4.origin("micro_batch") == "recipe mine"
    assert on_l4.origin("optim") == "profile l4"
    assert on_l4.origin("seed") == "default"
    on_t4 = resolve(recipe, {"micro_batch": 8}, T4)
    assert (on_t4.max_steps, on_t4.origin("max_steps")) == (5, "recipe on t4")
    assert (on_t4.micro_batch, on_t4.origin("micro_batch")) == (8, "parameter")


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"learning_rat": 1.0}, "no key 'learning_rat' (parameter): did you mean \"learning_rat"),
        ({"learning_rate": "5e-6"}, "learning_rate (parameter) is '5e-6'"),
        ({"load_in_4bit": "true"}, "load_in_4bit (parameter) is 'true'"),
        ({"max_steps": 0}, "max_steps (parameter) is 0: it should be greater than 0"),
        ({"max_steps": 2.5}, "max_steps (parameter) is 2.5"),
        ({"num_generations": 1}, "num_generations (parameter) is 1"),
        ({"loss_type": "gpro"}, "loss_type (parameter) is 'gpro': it should be 'grpo'"),
        ({"profile": "t5"}, "There is no profile 't5'"),
        ({"profile": "l4"}, "profile l4 needs a GPU and there is none"),
        ({"micro_batch": 5}, "do not divide into passes of micro_batch 5"),
        ({"precision": "fp16"}, "precision fp16 needs a GPU"),
        ({"max_completion_length": 4096}, "leaves no room for a prompt"),
        ({"load_in_4bit": True, "full_finetuning": True}, "exclude each other"),
        ({"eval_samples": 4}, "raise eval_samples to at least 10"),
    ],
)
def test_bad_values_get_one_sentence(parameters, sentence):
    with pytest.raises(BadInput) as error:
        resolve(None, parameters, CPU)
    text = str(error.value)
    assert sentence in text
    assert "\n" not in text and len(text) < 300


def test_bf16_on_a_t4_is_refused():
    with pytest.raises(BadInput, match="precision bf16 is not to be had on Tesla T4"):
        resolve(None, {"precision": "bf16"}, T4)


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(BadInput, match="no recipe 'demmo': did you mean \"demo\""):
        resolve("demmo", {}, CPU)


def test_broken_recipe_files(tmp_path):
    broken, empty = tmp_path / "broken.yaml", tmp_path / "empty.yaml"
    broken.write_text("max_steps: [1\n")
    empty.write_text("# nothing\n")
    with pytest.raises(BadInput, match=r"broken\.yaml is not valid YAML"):
        resolve(broken, {}, CPU)
    with pytest.raises(BadInput, match=r"empty\.yaml holds no keys"):
        resolve(empty, {}, CPU)


def test_notebook_parameters_set_nothing_when_none(monkeypatch):
    monkeypatch.delenv("GRPO_RECIPE", raising=False)
    names = {"recipe": "ci", "max_steps": None, "seed": 3, "_hidden": 1, "In": [], "path": object()}
    config = notebook_config(names)
    assert (config.name, config.seed, config.max_steps) == ("ci", 3, 2)


def test_notebook_without_recipe_is_the_demo_and_environment_stands_in(monkeypatch):
    monkeypatch.delenv("GRPO_RECIPE", raising=False)
    assert notebook_config({"recipe": None}).name == "demo"
    monkeypatch.setenv("GRPO_RECIPE", "ci")
    monkeypatch.setenv("GRPO_RUN", "elsewhere")
    config = notebook_config({"recipe": None, "run": None})
    assert (config.name, config.run_name) == ("ci", "elsewhere")


def test_a_recipes_own_keys_as_parameters_need_no_recipe(monkeypatch):
    """What `papermill -f recipe.yaml` does."""
    import yaml

    monkeypatch.delenv("GRPO_RECIPE", raising=False)
    given = yaml.safe_load((RECIPES / "ci.yaml").read_text())
    assert notebook_config({"recipe": None, **given}).max_steps == 2


def test_notebook_with_a_misspelt_parameter_is_refused():
    with pytest.raises(BadInput, match='"max_steps"'):
        notebook_config({"recipe": "ci", "max_step": 2})


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("hardware", [CPU, T4, L4], ids=["cpu", "t4", "l4"])
def test_every_recipe_resolves_on_every_hardware(path, hardware):
    if hardware is CPU and "load_in_4bit: true\ntask" in path.read_text():
        pytest.skip("4-bit training needs a GPU")
    config = resolve(path, {}, hardware)
    assert config.name == path.stem


@pytest.mark.parametrize(
    ("listing", "profile"),
    [
        ("Tesla T4, 15360, 7.5", "t4"),
        ("NVIDIA GeForce RTX 4080, 16376, 8.9", "rtx16"),
        ("NVIDIA L4, 23034, 8.9", "l4"),
        ("NVIDIA A100-SXM4-40GB, 40960, 8.0", "a100"),
        ("NVIDIA H100 80GB HBM3, 81559, 9.0", "h100"),
        ("", "cpu"),
    ],
)
def test_profile_is_chosen_by_the_gpu(listing, profile):
    assert choose_profile(Hardware(*parse_gpu(listing))) == profile


@pytest.mark.parametrize(("cap", "profile"), [(16.0, "rtx16"), (24, "l4"), (0.0, "h100")])
def test_a_capped_card_has_the_profile_of_one_that_size(monkeypatch, cap, profile):
    monkeypatch.setattr("lib.hardware._query_gpu", lambda: ("NVIDIA H200", 139.8, 9.0))
    assert resolve("ci", {"gpu_memory_cap": cap}).profile == profile


def test_profiles_set_only_known_keys():
    for settings in PROFILES.values():
        assert set(settings) <= set(Config.model_fields)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"loss_constants": {"k_pos": 1.0}}, "and loss_type dapo takes no constants"),
        ({"loss_type": "sapo", "loss_constants": {"temperature": 1.0}}, "of sapo has no"),
        ({"loss_type": "sapo", "loss_constants": {"temperature_pos": 0.0}}, "greater than 0"),
        ({"loss_type": "luspo"}, "set importance_sampling_level to sequence"),
        ({"loss_type": "vespo", "importance_sampling_level": "sequence"}, "level to token"),
        ({"loss_type": "vespo"}, "set it to token_truncate or token_mask"),
        ({"loss_type": "sapo", "delta": 2.0}, "which loss_type sapo has not"),
        ({"delta": 1.1}, "within the clip range of epsilon_high 0.2: set it above 1.2"),
        (
            {"multi_objective_aggregation": "normalize_then_sum", "scale_rewards": "none"},
            "leave scale_rewards at group",
        ),
        (
            {"multi_objective_aggregation": "normalize_then_sum", "resample": 2},
            "leave resample at 0",
        ),
        ({"ref_model_sync_steps": 8}, "with beta 0 there is none"),
        ({"ref_model_sync_steps": 8, "beta": 0.1}, "set full_finetuning"),
        ({"vllm_importance_sampling_clip_min": 4.0}, "is not below"),
        (
            {
                "vllm_importance_sampling_mode": "token_truncate",
                "vllm_importance_sampling_clip_max": 0.0,
            },
            "has no bound to truncate at",
        ),
        ({"lr_scheduler": "linear", "min_lr_rate": 0.1}, "set lr_scheduler to cosine"),
        ({"cast_lm_head_to_fp32": True}, "set backend to transformers"),
        ({"adam_betas": [0.9]}, "adam_betas (parameter) is [0.9]"),
        ({"adam_betas": [0.9, 1.0]}, "adam_betas (parameter) is 1.0"),
    ],
)
def test_loss_settings_that_exclude_each_other(parameters, sentence):
    with pytest.raises(BadInput, match=re.escape(sentence)):
        resolve(None, parameters, CPU)


def test_cispos_bound_is_that_of_the_ratio():
    with pytest.raises(BadInput, match=r"epsilon_high 0\.2 would hold every token's weight below"):
        resolve(None, {"loss_type": "cispo"}, CPU)
    assert resolve(None, {"loss_type": "cispo", "epsilon_high": 5.0}, CPU).epsilon_high == 5.0
