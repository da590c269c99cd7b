"""Memory estimates: arithmetic by hand, and what fits where."""

import pytest

from lib.config import RECIPES, resolve
from lib.errors import BadInput
from lib.memory import SHAPES, check_fit, estimate, on_other_hardware, read_shape
from tests.conftest import CPU, L4, T4

# Published parameter counts, in millions.
PUBLISHED = {
    "google/gemma-2-2b-it": 2614,
    "Qwen/Qwen2.5-0.5B-Instruct": 494,
    "Qwen/Qwen2.5-1.5B-Instruct": 1544,
    "Qwen/Qwen2.5-3B-Instruct": 3086,
    "Qwen/Qwen3-4B-Instruct-2507": 4022,
    "meta-llama/Llama-3.2-1B-Instruct": 1236,
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


def test_vllm_takes_its_share_of_the_gpu():
    config = resolve("qwen2.5-3b_gsm8k", {}, L4)
    need = estimate(config, SHAPES[config.model], L4)
    assert need.parts["weights"] + need.parts["KV cache"] == pytest.approx(0.5 * 22.0)


@pytest.mark.parametrize("hardware", [T4, L4], ids=["t4", "l4"])
@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_fits_the_gpu(path, hardware):
    config = resolve(path, {}, hardware)
    assert check_fit(config, SHAPES[config.model], hardware).fits


def test_too_small_a_gpu_is_refused_with_advice():
    config = resolve("qwen3-4b_gsm8k", {"load_in_4bit": False, "full_finetuning": True}, T4)
    with pytest.raises(BadInput, match=r"about .* GiB to train and Tesla T4 has 14.6 GiB: try "):
        check_fit(config, SHAPES[config.model], T4)


def test_other_hardware_is_a_row_a_profile():
    rows = on_other_hardware(resolve("demo", {}, CPU), SHAPES["embedded"])
    assert [row["fits"] for row in rows] == ["yes"] * 5
