"""A recipe becomes a configuration, or one sentence says why not."""

import pytest

from lib.config import RECIPES, Config, notebook_parameters, resolve, with_changes
from lib.errors import BadInput
from lib.hardware import PROFILES, Hardware, choose_profile, cpu_precision
from lib.keys import ALIASES, translate
from tests.conftest import CPU, L4, T4


def test_precedence_default_profile_recipe_by_profile_parameter(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("micro_batch: 16\nmax_steps: 7\nby_profile:\n  t4: {max_steps: 5}\n")
    passes = "per_device_train_batch_size"
    for parameters, machine, expected in (
        ({}, L4, {"name": ("mine", "recipe mine"), passes: (16, "recipe mine")}),
        ({}, L4, {"max_steps": (7, "recipe mine"), "optim": ("adamw_8bit", "profile l4")}),
        ({}, L4, {"seed": (0, "default"), "profile": ("l4", "default")}),
        ({"micro_batch": 8}, T4, {"max_steps": (5, "recipe on t4"), passes: (8, "parameter")}),
    ):
        config = resolve(recipe, parameters, machine)
        assert {key: (getattr(config, key), config.origin(key)) for key in expected} == expected


def refused(parameters, hardware=CPU, recipe=None) -> BadInput:
    with pytest.raises(BadInput) as error:
        resolve(recipe, parameters, hardware)
    text = str(error.value)
    assert "\n" not in text and len(text) < 320, text
    return error.value


VLLM = {"rollout_engine": "vllm", "profile": "cpu"}
VLLM |= {"vllm_importance_sampling_correction": True}
PAIRS = [  # of settings that exclude each other
    ({"loss_constants": {"k_pos": 1.0}}, "constants"),
    ({"vespo_k_pos": 1.0}, "constants"),
    ({"loss_type": "sapo", "loss_constants": {"temperature": 1.0}}, "unknown-key"),
    ({"loss_type": "sapo", "loss_constants": {"temperature_pos": 0.0}}, "value"),
    ({"loss_type": "luspo"}, "luspo"),
    ({"loss_type": "vespo", "importance_sampling_level": "sequence"}, "vespo"),
    ({"loss_type": "vespo", **VLLM}, "sampler"),
    ({"loss_type": "sapo", "delta": 2.0}, "delta"),
    ({"delta": 1.1}, "delta"),
    ({"loss_type": "cispo"}, "cispo"),
    ({"multi_objective_aggregation": "normalize_then_sum", "scale_rewards": "none"}, "gdpo"),
    ({"multi_objective_aggregation": "normalize_then_sum", "resample": 2}, "gdpo"),
    ({"ref_model_sync_steps": 8}, "reference"),
    ({"sync_ref_model": True, "beta": 0.1}, "reference"),
    ({"vllm_importance_sampling_clip_min": 4.0, **VLLM}, "sampler"),
    ({"vllm_importance_sampling_mode": "token_truncate",
      "vllm_importance_sampling_clip_max": 0.0, **VLLM}, "sampler"),
    ({"top_p": 0.9, **VLLM}, "truncated-sampling"),
    ({"top_k": 20, **VLLM}, "truncated-sampling"),
    ({"min_p": 0.1, **VLLM}, "truncated-sampling"),
    ({"generation_kwargs": {"stopp": ["x"]}, **VLLM}, "sampling"),
    ({"lr_scheduler": "linear", "min_lr_rate": 0.1}, "schedule"),
    ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "schedule"),
    ({"lr_scheduler_type": "warmup_stable_decay"}, "schedule"),
    ({"cast_lm_head_to_fp32": True}, "fp32-head"),
    ({"use_liger_kernel": True}, "liger"),
    ({"use_transformers_paged": True, "precision": "bf16",
      "rollout_engine": "transformers"}, "batching"),
    ({"adam_betas": [0.9]}, "value"),
    ({"adam_betas": [0.9, 1.0]}, "value"),
    ({"micro_batch": 4, "gradient_accumulation_steps": 3}, "group-does-not-divide"),
    ({"prompts_per_step": 4, "micro_batch": 4, "gradient_accumulation_steps": 4}, "decided"),
    ({"gradient_accumulation_steps": 4}, "decided"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("parameters", "key", "word"),
    [
        ({"learning_rat": 1.0}, "unknown-key", 'did you mean "learning_rate"'),
        ({"top_entropy_quantil": 0.5}, "unknown-key", '"top_entropy_quantile"'),
        ({"use_rslor": True}, "unknown-key", '"use_rslora"'),
        ({"learning_rate": "5e"}, "value", "without quotes"),
        ({"learning_rate": float("nan")}, "value", "finite"),
        ({"learning_rate": float("inf")}, "value", "finite"),
        ({"temperature": -1.0}, "value", "greater than 0"),
        ({"beta": -0.1}, "value", "greater than or equal to 0"),
        ({"beta": True}, "value", "beta"),
        ({"beta": [0.1]}, "value", "beta"),
        ({"load_in_4bit": "true"}, "value", "without quotes"),
        ({"torch_compile": "no"}, "value", "without quotes"),
        ({"max_steps": "12"}, "value", "without quotes"),
        ({"max_steps": 0}, "value", "greater than 0"),
        ({"max_steps": 2.5}, "value", "max_steps"),
        ({"max_steps": 10**12}, "value", "less than"),
        ({"dataloader_num_workers": -1}, "value", "greater than or equal to 0"),
        ({"seed": 4294967296}, "value", "less than 4294967296"),
        ({"seeds": [0, 4294967296]}, "value", "4294967296"),
        ({"eval_k": [0]}, "value", "greater than or equal to 1"),
        ({"num_generations": 1}, "value", "greater than or equal to 2"),
        ({"num_generations": None, "eval_k": 5}, "value", "eval_k"),
        ({"loss_type": "gpro"}, "value", 'did you mean "grpo"'),
        ({"optim": "adamW"}, "value", '"adamw_torch"'),
        ({"lr": 1e-5}, "unknown-key", '"learning_rate"'),
        ({"group_size": 8}, "unknown-key", '"num_generations"'),
        ({"loss_type": "GSPO"}, "value", "importance_sampling_level"),
        ({"precision": "float16"}, "value", '"fp16"'),
        ({"gguf": ["q4_k_n"]}, "value", '"q4_k_'),
        ({"rewards": {"correctness": "1"}}, "value", "correctness"),
        ({"profile": "gpu"}, "profile", '"auto"'),
        ({"optim": "lomo"}, "optimizer-package", "adamw_torch"),
        ({"optim": "apollo_adamw"}, "optimizer-package", "adamw_torch"),
        ({"lr_scheduler_type": "cosin"}, "value", 'did you mean "cosine"'),
        ({"scale_rewards": "groups"}, "value", '"group"'),
        ({"profile": "t5"}, "profile", "t5"),
        ({"profile": "l4"}, "no-gpu", "l4"),
        ({"precision": "fp16"}, "no-fp16", "GPU"),
        ({"fp16": True}, "no-fp16", "GPU"),
        ({"per_device_train_batch_size": 5}, "passes", "32"),
        ({"micro_batch": 5}, "passes", "32"),
        ({"micro_batch": 4, "per_device_train_batch_size": 4}, "twice", "micro_batch"),
        ({"max_completion_length": 4096}, "no-room", "1024"),
        ({"rewards": {"mark": 0, "digit": {"weight": 0}}}, "unpaid", "every weight"),
        ({"load_in_4bit": True, "full_finetuning": True}, "4bit-full", "one of them"),
        ({"rollout_engine": "vllm", "vllm_mode": "server"}, "server", "by NCCL, from a GPU"),
        ({"eval_samples": 4}, "eval-k", "eval_samples"),
        ({"num_train_epochs": 2}, "decided", "max_steps"),
        ({"reward_weights": [1.0]}, "decided", "rewards"),
        ({"eval_strategy": "steps"}, "decided", "validation_steps"),
        ({"use_dora": True}, "decided", "vLLM"),
        ({"target_modules": []}, "targets", "empty"),
        ({"lora_targets": ["q_proj", "embed_tokens"]}, "targets", "embed_tokens"),
        ({"target_modules": ["q_proj", "q_proj"]}, "targets", "twice"),
        ({"target_modules": "q_proj"}, "value", "target_modules"),
        ({"keep": "best"}, "keep-best", "validation_steps"),
        ({"by_profile": {"T4": {"max_steps": 1}}}, "profile", '"t4"'),
        ({"by_profile": {"l4": {"max_step": 1}}}, "unknown-key", "by_profile l4"),
        ({"by_profile": {"l4": {"max_steps": "1"}}}, "value", "by_profile l4"),
        ({"by_profile": {"t4": 5}}, "type", "t4"),
        ({"by_profile": {"t4": {"by_profile": {}}}}, "profile", "move it"),
        ({"by_profile": [1]}, "value", "by_profile"),
        ({"variants": {"a": {"loss_typ": "grpo"}}}, "unknown-key", "variant a"),
        ({"side_task": {"shot": 1}}, "unknown-key", '"shots"'),
        *((parameters, key, "") for parameters, key in PAIRS),
    ],
)
def test_bad_values_get_one_sentence(parameters, key, word):
    error = refused(parameters)
    assert error.key == key and word in str(error)


def test_what_excludes_each_other_on_a_gpu():
    for_all = {"full_finetuning": True}
    assert refused({"load_in_4bit": True, "backend": "transformers"}, L4).key == "4bit-rollouts"
    assert refused(for_all | {"backend": "unsloth"}, L4).key == "unsloth-full"
    assert refused({"precision": "bf16"}, T4).key == "no-bf16"
    assert resolve(None, for_all, L4).backend == "transformers"
    assert resolve(None, for_all | {"rollout_engine": "transformers"}, L4).backend == "auto"


@pytest.mark.parametrize(
    ("content", "key", "word"),
    [
        (b"max_steps: [1\n", "yaml", "not valid YAML"),
        (b"# nothing\n", "yaml", "holds no keys"),
        (b"- 1\n- 2\n", "yaml", "holds no keys"),
        (b"max_steps: 5\nseed: 1\nmax_steps: 7\n", "yaml", "max_steps stands there twice (line 3)"),
        (b"by_profile: {t4: {seed: 1, seed: 2}}\n", "yaml", "seed stands there twice"),
        (b"? [a]\n: 5\n", "yaml", "a key is a list"),
        (b"1: x\n", "yaml", "keys are words"),
        (b"on: x\n", "yaml", "keys are words"),
        ("max_steps: 5  # é\n".encode("latin-1"), "encoding", "UTF-8"),
        ("max_steps: 5\n".encode("utf-16"), "encoding", "UTF-8"),
        ("max_steps: 5\n".encode("utf-16-le"), "yaml", "not valid YAML"),
        (b"learning_rate: 5e\n", "value", "without quotes"),
        (b"beta: .nan\n", "value", "finite"),
        (b"load_in_4bit: 'yes'\n", "value", "without quotes"),
        *((b"max_steps: %b\n" % text, "value", text.decode()) for text in (b"010", b"12:30")),
        (b"max_steps: 2026-01-01\n", "value", "'2026-01-01'"),
        (b"run: 5\n", "value", "in quotes"),
    ],
)
def test_broken_recipe_files(tmp_path, content, key, word):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    error = refused({}, recipe=path)
    assert error.key == key and word in str(error)


def test_a_byte_order_mark_and_an_exponent_without_a_dot_are_read(tmp_path):
    (tmp_path / "rate.yaml").write_text("learning_rate: 5e-6\n", encoding="utf-8-sig")
    assert resolve(tmp_path / "rate.yaml", {}, CPU).learning_rate == 5e-6
    assert resolve(None, {"beta": "1E-3"}, CPU).beta == 1e-3
    assert resolve(None, {"run": "1e5"}, CPU).run == "1e5"


def test_any_field_of_the_libraries_is_a_key():
    given = {"neftune_noise_alpha": 5.0, "use_rslora": True, "optim_args": "foreach=True"}
    config = resolve(None, given, CPU)
    assert config.given() == given and config.use_rslora
    assert config.torch_empty_cache_steps is None and config.origin("use_rslora") == "parameter"
    assert (config.output_dir, config.push_to_hub) == ("outputs", "")  # the suite's go before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"micro_batch": 4, "lora_r": 8, "lr_scheduler": "linear"},
         {"per_device_train_batch_size": 4, "r": 8, "lr_scheduler_type": "linear"}),
        ({"lora_targets": ["q_proj"], "gpu_memory_utilization": 0.7},
         {"target_modules": ["q_proj"], "vllm_gpu_memory_utilization": 0.7}),
        ({"adam_betas": [0.8, 0.95]}, {"adam_beta1": 0.8, "adam_beta2": 0.95}),
        ({"min_lr_rate": 0.1}, {"lr_scheduler_type": "cosine_with_min_lr"}),
        ({"min_lr_rate": 0.0}, {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": None}),
        ({"loss_type": "sapo", "loss_constants": {"temperature_neg": 1.1}},
         {"sapo_temperature_neg": 1.1, "sapo_temperature_pos": 1.0}),
        ({"delta": 0.0, "off_policy_mask_threshold": 0.0, "vllm_importance_sampling_clip_max": 0},
         {"delta": None, "vllm_importance_sampling_clip_max": None}),
        ({"entropy_target": 0.5}, {"use_adaptive_entropy": True, "entropy_target": 0.5}),
        ({"entropy_target": 0.0}, {"use_adaptive_entropy": False}),
        ({"ref_model_sync_steps": 0}, {"sync_ref_model": False}),
        ({"epsilon": 0.3}, {"epsilon_high": 0.3}),
        # as scripts with TRL write it
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
         {"prompts_per_step": 2, "num_generations": 8}),
        ({"scale_rewards": False, "bf16": True}, {"scale_rewards": "none", "precision": "bf16"}),
        ({"use_vllm": False, "run_name": "x"}, {"rollout_engine": "transformers", "run": "x"}),
        # a first try is short
        ({"max_steps": 1, "warmup_steps": 2}, {"warmup_steps": 0}),
    ],
    ids=str,
)  # fmt: skip
def test_old_names_and_trls_words_mean_the_same(old, new):
    config = resolve(None, old, CPU)
    assert {key: getattr(config, key) for key in new} == new
    for name in old.keys() & ALIASES.keys():
        assert getattr(config, ALIASES[name]) == old[name]
    again = resolve(None, config.given(), CPU)
    assert again.model_dump() == config.model_dump()


def test_a_changed_configuration_keeps_the_rest():
    config = resolve("ci", {"epsilon": 0.3}, CPU).model_copy(update={"micro_batch": 4, "seed": 5})
    assert (config.per_device_train_batch_size, config.seed) == (4, 5)
    other = with_changes(config, {"lr_scheduler": "linear"})
    assert (other.epsilon, other.per_device_train_batch_size, other.seed) == (0.3, 4, 5)
    assert (other.lr_scheduler_type, other.name) == ("linear", "ci")


def test_notebook_parameters_set_nothing_when_none(monkeypatch):
    monkeypatch.delenv("GRPO_RECIPE", raising=False)
    names = {"recipe": "ci", "max_steps": None, "seed": 3, "_hidden": 1, "In": [], "path": object()}
    config = resolve(*notebook_parameters(names))
    assert (config.name, config.seed, config.max_steps) == ("ci", 3, 2)


def test_notebook_without_recipe_is_the_demo_and_environment_stands_in(monkeypatch):
    monkeypatch.delenv("GRPO_RECIPE", raising=False)
    assert resolve(*notebook_parameters({"recipe": None})).name == "demo"
    monkeypatch.setenv("GRPO_RECIPE", "ci")
    monkeypatch.setenv("GRPO_RUN", "elsewhere")
    config = resolve(*notebook_parameters({"recipe": None, "run": None}))
    assert (config.name, config.run_name) == ("ci", "elsewhere")
    monkeypatch.setenv("GRPO_OUTPUT_DIR", "there")  # the runner's runs go there, too
    config = resolve("ci", {"run": "mine"}, CPU)
    assert (config.output_dir, config.run_name) == ("there", "mine")
    assert resolve("ci", {"output_dir": "here"}, CPU).output_dir == "here"


def test_a_recipes_own_keys_as_parameters_need_no_recipe(monkeypatch):
    """What `papermill -f recipe.yaml` does."""
    import yaml

    monkeypatch.delenv("GRPO_RECIPE", raising=False)
    given = yaml.safe_load((RECIPES / "ci.yaml").read_text())
    assert resolve(*notebook_parameters({"recipe": None, **given})).max_steps == 2


@pytest.mark.parametrize(
    ("gpu", "memory", "capability", "profile"),
    [
        ("Tesla T4", 15.0, 7.5, "t4"),
        ("NVIDIA GeForce RTX 4080", 16.0, 8.9, "rtx16"),
        ("NVIDIA L4", 22.5, 8.9, "l4"),
        ("NVIDIA A100-SXM4-40GB", 40.0, 8.0, "a100"),
        ("NVIDIA H100 80GB HBM3", 79.6, 9.0, "h100"),
        ("", 0.0, 0.0, "cpu"),
    ],
)
def test_profile_is_chosen_by_the_gpu(gpu, memory, capability, profile):
    assert choose_profile(Hardware(gpu, memory, capability)) == profile


@pytest.mark.parametrize(("cap", "profile"), [(16.0, "rtx16"), (24, "l4"), (0.0, "h100")])
def test_a_capped_card_has_the_profile_of_one_that_size(monkeypatch, cap, profile):
    monkeypatch.setattr("lib.hardware._query_gpu", lambda: ("NVIDIA H200", 139.8, 9.0))
    assert resolve("ci", {"gpu_memory_cap": cap}).profile == profile


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("fma avx2 avx512f avx512_vnni", "fp32"), ("avx512_bf16 amx_bf16", "bf16"), (None, "fp32")],
)
def test_a_cpu_without_bf16_computes_in_32_bit(tmp_path, flags, precision):
    file = tmp_path / "cpuinfo"
    if flags:
        file.write_text(f"processor : 0\nflags : fpu {flags}\n")
    assert cpu_precision(file) == precision


def test_profiles_set_only_known_keys():
    for settings in PROFILES.values():
        assert set(translate(settings)) <= set(Config.model_fields)


def test_what_a_truncated_sampler_may_do():
    given = {"top_p": 0.9} | VLLM | {"vllm_importance_sampling_correction": False}
    assert resolve(None, given, CPU).top_p == 0.9
    assert resolve(None, {"loss_type": "cispo", "epsilon_high": 5.0}, CPU).epsilon_high == 5.0
