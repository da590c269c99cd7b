"""Memory estimates: arithmetic by hand, and what fits where."""

import json

import pytest

from benchmarks.memory import BASE
from benchmarks.step import SHAPES as SHAPES_OF_STEPS
from benchmarks.step import configuration
from lib.config import ROOT, resolve
from lib.hardware import Hardware, _container_memory
from lib.memory import (
    SHAPES,
    check_fit,
    engine_share,
    estimate,
    on_other_hardware,
    read_shape,
    settled,
    shape_of,
)
from lib.models import lora_arguments
from tests.conftest import CPU, L4, T4, python, refuses

A100 = Hardware("NVIDIA A100", 79.0, 8.0, 8, 100.0)
TINY = Hardware(cores=2, memory=4.0)

# Published parameter counts, in millions.
PUBLISHED = {
    "LiquidAI/LFM2.5-1.2B-Instruct": 1170,
    "google/gemma-2-2b-it": 2614,
    "Qwen/Qwen2.5-0.5B-Instruct": 494,
    "Qwen/Qwen2.5-1.5B-Instruct": 1544,
    "Qwen/Qwen2.5-3B-Instruct": 3086,
    "Qwen/Qwen3-4B-Instruct-2507": 4022,
    "meta-llama/Llama-3.2-1B-Instruct": 1236,
    "mistralai/Mistral-7B-Instruct-v0.3": 7248,
    "embedded": 134.5,
}


@pytest.mark.parametrize("name", SHAPES)
def test_parameter_counts_are_the_published_ones(name):
    assert SHAPES[name].parameters / 1e6 == pytest.approx(PUBLISHED[name], rel=0.002)


def test_shape_of_the_embedded_model_is_read_from_its_folder(embedded):
    assert read_shape(embedded) == SHAPES["embedded"]


@pytest.mark.parametrize(
    "given",
    [
        {"target_modules": ["q_proj", "v_proj"], "r": 4},
        {"exclude_modules": ["mlp.up_proj", "k_proj"], "layers_to_transform": [0, 2]},
        {"exclude_modules": r".*\.1\..*_proj"},
        {"layers_to_transform": 1, "layers_pattern": "layers"},
        {"layers_to_transform": []},
    ],
)
def test_an_adapter_is_as_large_as_pefts(given):
    import peft
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, vocab_size=64)
    settings = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    config = resolve("ci", given, CPU)
    with torch.device("meta"):
        model = LlamaForCausalLM(settings)
        model = peft.get_peft_model(model, peft.LoraConfig(**lora_arguments(config)))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert shape_of(settings.to_dict()).lora_parameters(config) == trained


def test_vllm_takes_its_share_of_the_gpu():
    config = resolve("qwen2.5-3b_gsm8k", {}, L4)
    need = estimate(config, SHAPES[config.model], L4)
    assert need.parts["weights"] + need.parts["KV cache"] == pytest.approx(0.5 * 22.0)


def test_standby_replaces_the_share(monkeypatch):
    """And a 4B model on a T4 then takes about what Unsloth's CI reports: 13.6 GiB allocated by
    torch, the context apart (unslothai/unsloth, .github/scripts/kaggle_t4_ci/legs.py)."""
    config = resolve("qwen3-4b_gsm8k", {}, T4)
    assert engine_share(config, 14.6) == config.vllm_gpu_memory_utilization == 0.5
    monkeypatch.setenv("UNSLOTH_VLLM_STANDBY", "1")
    shares = [engine_share(config, card) for card in (14.6, 15.5, 22.0, 39.0, 79.0)]
    assert shares == pytest.approx([0.76, 0.76, 0.784, 0.855, 0.879], abs=1e-3)
    assert (config.max_seq_length, config.num_generations, config.r) == (1024, 2, 16)
    need = estimate(config, SHAPES[config.model], T4)
    assert need.total - need.parts["process"] == pytest.approx(13.6, rel=0.15)
    monkeypatch.setenv("UNSLOTH_VLLM_STANDBY_UTIL_OVERRIDE", "1")
    assert engine_share(config, 14.6) == 0.5


def test_a_step_on_a_gpu_takes_about_what_is_planned(tmp_path, monkeypatch):
    """As `benchmarks/step.py` measured it, CUDA's context apart, on a card held to 16 GiB."""
    monkeypatch.setattr("lib.hardware._query_gpu", lambda: ("NVIDIA H200", 139.8, 9.0))
    stored = json.loads((ROOT / "benchmarks/results/step_demo_nvidia_h200.json").read_text())
    for system in ("ours", "trl_vllm"):
        config = configuration(system, SHAPES_OF_STEPS["demo"], str(tmp_path), "embedded")
        assert config.profile == "rtx16"
        need = estimate(config, SHAPES["embedded"], Hardware("NVIDIA H200", 16.0, 9.0, 16, 128.0))
        planned = need.total - need.parts["process"]
        measured = stored["systems"][system]["peak memory GiB"]
        assert planned == pytest.approx(measured, rel=0.25), system


def test_too_small_a_gpu_is_refused_with_advice():
    config = resolve("qwen3-4b_gsm8k", {"load_in_4bit": False, "full_finetuning": True}, T4)
    with refuses("memory", "full_finetuning: false"):
        check_fit(config, SHAPES[config.model], T4)


def test_other_hardware_is_a_row_a_profile():
    rows = on_other_hardware(resolve("demo", {}, CPU), SHAPES["embedded"])
    assert [row["fits"] for row in rows] == ["yes"] * 5
    assert [row["checkpointing"] for row in rows] == ["off"] * 5


def test_checkpointing_is_on_where_activations_do_not_fit_otherwise():
    large, small = resolve("qwen3-4b_gsm8k", {}, L4), resolve("demo", {}, CPU)
    assert settled(large, SHAPES[large.model], L4).gradient_checkpointing is True
    assert settled(large, SHAPES[large.model], A100).gradient_checkpointing is False
    kept = settled(small, SHAPES["embedded"], CPU)
    assert not kept.gradient_checkpointing and kept.origin("gradient_checkpointing") == "default"
    assert settled(small, SHAPES["embedded"], TINY).gradient_checkpointing is True
    for said in (True, False):
        asked = resolve("qwen3-4b_gsm8k", {"gradient_checkpointing": said}, L4)
        assert settled(asked, SHAPES[large.model], L4).gradient_checkpointing is said
    kept = estimate(asked, SHAPES[large.model], L4).parts["activations"]
    again = estimate(large, SHAPES[large.model], L4).parts["activations"]
    assert kept > 10 * again


MEASURED = json.loads((ROOT / "benchmarks/results/memory_cpu.json").read_text())["settings"]


@pytest.mark.parametrize("name", MEASURED)
def test_the_plan_is_near_what_was_measured(name):
    """Main memory of whole trainings, by `benchmarks/memory.py`."""
    row, model = MEASURED[name], name.split(",")[0]
    config = resolve(None, BASE | {"rollout_engine": "vllm"} | row["setting"], CPU)
    need = estimate(config, SHAPES[model], CPU)
    assert need.total == pytest.approx(row["measured GiB"], rel=0.25), need.rows()
    assert [row["part"] for row in need.rows() if not row["how"]] == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"text_config": {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
                             "vocab_size": 100, "intermediate_size": 128, "head_dim": 32,
                             "num_key_value_heads": 2}, "tie_word_embeddings": False},
            (2, 64, 128, 4, 2, 32, 100, False, 0, 0),
        ),
        (
            {"n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 100},
            (2, 64, 256, 4, 4, 16, 100, True, 0, 0),
        ),
        (
            {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "vocab_size": 100,
             "intermediate_size": 384, "block_auto_adjust_ff_dim": True,
             "layer_types": ["conv", "full_attention", "conv"], "num_key_value_heads": 2,
             "max_position_embeddings": 512},
            (3, 64, 256, 4, 2, 16, 100, True, 2, 512),
        ),
    ],
)  # fmt: skip
def test_shapes_under_other_names(settings, expected):
    shape = shape_of(settings)
    assert tuple(vars(shape).values()) == expected
    with refuses("no-shape"):
        shape_of({"vocab_size": 5})
    if shape.context:
        with refuses("context"):
            check_fit(resolve("ci", {"max_seq_length": 513}, CPU), shape, CPU)


def test_a_container_has_what_it_may_use(tmp_path):
    limit = tmp_path / "memory.max"
    limit.write_text("3221225472\n")
    assert _container_memory(limit) == 3.0
    limit.write_text("max\n")
    assert _container_memory(limit) == _container_memory(tmp_path / "none") == float("inf")


# A model of one narrow block with as many words as large models have.
MANY_WORDS = """
import sys
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from lib.config import resolve
from lib.engines import TransformersEngine
from lib.models import load_policy
from lib.process import peak_memory
from lib.engines import Sampling
from tests.conftest import SMALL

words, hidden, (tokenizer, folder) = 100_000, 256, sys.argv[1:]
torch.set_default_dtype(torch.bfloat16)
Qwen2ForCausalLM(Qwen2Config(
    vocab_size=words, hidden_size=hidden, intermediate_size=hidden, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True,
)).save_pretrained(folder)
AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
config = resolve(None, SMALL | {"model": folder})
policy = load_policy(config)
engine, before = TransformersEngine(policy.model.eval(), policy.tokenizer), peak_memory()
engine.generate([[{"role": "user", "content": "Hi"}]], Sampling(n=16, max_tokens=2))
print((peak_memory() - before) * 2**30 / (2 * words * hidden))
"""


def test_a_batch_is_generated_without_copies_of_the_output_layer(embedded, tmp_path):
    """torch would make one for each of the 16 sequences; the layer itself is mapped when read."""
    assert float(python("-c", MANY_WORDS, embedded, tmp_path)) < 4
