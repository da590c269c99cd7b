"""Memory estimates: arithmetic by hand, and what fits where."""

import json
import subprocess
import sys

import pytest

from benchmarks.step import SHAPES as SHAPES_OF_STEPS
from benchmarks.step import configuration
from lib.activations import block_bytes, output_bytes, pass_tokens
from lib.config import ROOT, resolve
from lib.errors import BadInput
from lib.hardware import Hardware, _container_memory
from lib.memory import SHAPES, check_fit, estimate, on_other_hardware, read_shape, settled
from tests.conftest import CPU, L4, T4

A100 = Hardware("NVIDIA A100", 79.0, 8.0, 8, 100.0)
TINY = Hardware(cores=2, memory=4.0)

# Published parameter counts, in millions.
PUBLISHED = {
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


def test_lora_parameters_by_hand():
    # SmolLM2: 30 layers; q, o: 576→576; k, v: 576→192; gate, up, down: 576↔1536; r = 16.
    a_layer = 16 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
    assert SHAPES["embedded"].lora_parameters(16) == 30 * a_layer == 4_884_480


def test_an_adapter_on_some_layers_has_those_weights():
    # q: 576→576 and v: 576→192, r = 8.
    targets = ["q_proj", "v_proj"]
    assert SHAPES["embedded"].lora_parameters(8, targets) == 30 * 8 * (2 * 576 + 576 + 192)


def test_vllm_takes_its_share_of_the_gpu():
    config = resolve("qwen2.5-3b_gsm8k", {}, L4)
    need = estimate(config, SHAPES[config.model], L4)
    assert need.parts["weights"] + need.parts["KV cache"] == pytest.approx(0.5 * 22.0)


def test_a_4b_model_on_a_t4_takes_about_what_unsloths_ci_reports():
    """13.6 GiB allocated by torch, the context apart, at these settings (unslothai/unsloth,
    .github/scripts/kaggle_t4_ci/legs.py). It asks for utilisation 0.5, but its standby mode
    makes that 0.8 · 0.95 (unsloth_zoo's vllm_utils.load_vllm)."""
    config = resolve("qwen3-4b_gsm8k", {"gpu_memory_utilization": 0.8 * 0.95}, T4)
    assert (config.max_seq_length, config.num_generations, config.lora_r) == (1024, 2, 16)
    need = estimate(config, SHAPES[config.model], T4)
    assert need.total - need.parts["process"] == pytest.approx(13.6, rel=0.15)


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
        assert planned == pytest.approx(measured, rel=0.15), system


def test_too_small_a_gpu_is_refused_with_advice():
    config = resolve("qwen3-4b_gsm8k", {"load_in_4bit": False, "full_finetuning": True}, T4)
    with pytest.raises(BadInput, match=r"about .* GiB to train and Tesla T4 has 14.6 GiB: try "):
        check_fit(config, SHAPES[config.model], T4)


def test_other_hardware_is_a_row_a_profile():
    rows = on_other_hardware(resolve("demo", {}, CPU), SHAPES["embedded"])
    assert [row["fits"] for row in rows] == ["yes"] * 5
    assert [row["checkpointing"] for row in rows] == ["off"] * 5


def test_checkpointing_is_on_where_activations_do_not_fit_otherwise():
    large, small = resolve("qwen3-4b_gsm8k", {}, L4), resolve("demo", {}, CPU)
    assert settled(large, SHAPES[large.model], L4).gradient_checkpointing is True
    assert settled(large, SHAPES[large.model], A100).gradient_checkpointing is False
    assert settled(small, SHAPES["embedded"], CPU).gradient_checkpointing is False
    assert settled(small, SHAPES["embedded"], TINY).gradient_checkpointing is True
    for said in (True, False):
        asked = resolve("qwen3-4b_gsm8k", {"gradient_checkpointing": said}, L4)
        assert settled(asked, SHAPES[large.model], L4).gradient_checkpointing is said
    kept = estimate(asked, SHAPES[large.model], L4).parts["activations"]
    again = estimate(large, SHAPES[large.model], L4).parts["activations"]
    assert kept > 10 * again


def test_reward_models_are_counted():
    """Two of 16 layers in 32 bit; their passes are shorter than what backward keeps."""
    learned = resolve("smollm2-135m_preferences", {}, CPU)
    need = estimate(learned, SHAPES["embedded"], CPU)
    layers = 16 * SHAPES["embedded"].linear / 30
    assert need.parts["reward models"] * 2**30 == 2 * 4 * (layers + 49152 * 576)
    less = {"micro_batch": 1, "gradient_checkpointing": True}
    other = learned.model_copy(update={"rewards": {"reward_model": 1.0}, **less})
    one = estimate(other, SHAPES["embedded"], CPU).parts
    beside = one["reward models"] - need.parts["reward models"] / 2
    scoring = (2 * layers + 16 * 512 * (10 * 576 + 8 * 1536)) / 2**30
    assert beside == pytest.approx(scoring - one["activations"] - one["output layer"])
    assert beside > 0
    plain = resolve("demo", {}, CPU)
    assert "reward models" not in estimate(plain, SHAPES["embedded"], CPU).parts


def test_logits_on_a_gpu_are_as_many_as_unsloth_keeps_at_once():
    """At most 512 rows or an eighth of all, 8 bytes a logit; all of them with top_p."""
    given = {"micro_batch": 2, "num_generations": 2, "max_seq_length": 900}
    vocab = SHAPES["Qwen/Qwen3-4B-Instruct-2507"].vocab
    for more, rows in (
        ({"max_completion_length": 128}, 256),
        ({"max_completion_length": 512}, 512),
        ({"max_completion_length": 512, "micro_batch": 16, "prompts_per_step": 8}, 1024),
        ({"max_completion_length": 512, "top_p": 0.9}, 1024),
    ):
        config = resolve("qwen3-4b_gsm8k", given | more, L4)
        assert output_bytes(config, SHAPES[config.model]) == 8 * rows * vocab


def test_a_container_has_what_it_may_use(tmp_path):
    limit = tmp_path / "memory.max"
    limit.write_text("3221225472\n")
    assert _container_memory(limit) == 3.0
    limit.write_text("max\n")
    assert _container_memory(limit) == _container_memory(tmp_path / "none") == float("inf")


WAYS = {
    "shared": {},
    "shared, fused attention": {"max_completion_length": 160, "max_seq_length": 170},
    "checkpointing": {"gradient_checkpointing": True},
    "ordinary": {"shared_prompts": False},
    "full": {"full_finetuning": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_forward_keeps_what_the_plan_says(embedded, way):
    """Counted as autograd saves it, the output layer aside."""
    settings = {"num_generations": 6, "prompts_per_step": 1, "micro_batch": 6, "lora_r": 8}
    settings |= {"max_seq_length": 50, "max_completion_length": 20, "profile": "cpu"}
    settings |= {"gradient_checkpointing": False} | WAYS[way]
    config = resolve(None, settings, CPU)
    planned = SHAPES["embedded"].layers * block_bytes(config, SHAPES["embedded"])
    if config.gradient_checkpointing:
        planned = SHAPES["embedded"].layers * pass_tokens(config) * 576 * 2
    assert saved_by_forward(embedded, config) == pytest.approx(planned, rel=0.08)


def saved_by_forward(folder, config) -> int:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from lib.models import LINEAR_LAYERS, weights_dtype
    from lib.training.lean_layers import make_lean
    from lib.training.shared_prompts import completion_scores
    from lib.training.token_logps import plain_logps

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=weights_dtype(config))
    if not config.full_finetuning:
        adapter = peft.LoraConfig(r=config.lora_r, target_modules=LINEAR_LAYERS)
        model = peft.get_peft_model(model, adapter)
        if config.shared_prompts:
            make_lean(model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(dict(use_reentrant=False))
        model.enable_input_require_grads()
    completion, rows = config.max_completion_length, config.micro_batch
    ids = torch.randint(100, 40_000, (1, config.max_seq_length)).repeat(rows, 1)
    ids[:, -completion:] = torch.randint(100, 40_000, (rows, completion))
    held = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        # Neither weights and their copies nor logits.
        another = storage.data_ptr() not in held and tensor.shape[-1] not in (8, 49152)
        if another and not (tensor.dim() == 2 and tensor.shape[0] == 8):
            kept[storage.data_ptr()] = storage
        return tensor

    # As accelerate runs a model's own forward; the shared one goes past it.
    cast = torch.autocast("cpu", torch.bfloat16, enabled=not config.shared_prompts)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), cast:
        compute = completion_scores if config.shared_prompts else plain_logps
        compute(model.train(), ids, torch.ones_like(ids), completion)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("setting", ["as it comes", "rollouts by transformers"])
def test_a_whole_training_takes_what_was_estimated(embedded, setting):
    command = [sys.executable, "-m", "benchmarks.memory", "--measure", setting]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["ratio"] == pytest.approx(1, abs=0.15), found


# A model of one narrow block with as many words as large models have.
MANY_WORDS = """
import sys
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from lib.config import resolve
from lib.engines import TransformersEngine
from lib.models import load_policy
from lib.process import peak_memory
from lib.sampling import Sampling
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
engine, before = TransformersEngine.around(policy.model.eval(), policy.tokenizer), peak_memory()
engine.generate([[{"role": "user", "content": "Hi"}]], Sampling(n=16, max_tokens=2))
print((peak_memory() - before) * 2**30 / (2 * words * hidden))
"""


def test_a_batch_is_generated_without_copies_of_the_output_layer(embedded, tmp_path):
    """torch would make one for each of the 16 sequences; the layer itself is mapped when read."""
    command = [sys.executable, "-c", MANY_WORDS, str(embedded), str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert float(ran.stdout) < 4
