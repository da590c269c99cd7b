"""What is known of a GPU before one is touched: the way a run goes, and the faults that stop it."""

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import pytest

from lib import stack
from lib.adapters import block_layers, check_adapter
from lib.config import RECIPES, ROOT, resolve
from lib.engines import VllmEngine, engine_arguments, no_vllm
from lib.errors import BadInput
from lib.export.serve import as_options
from lib.files import read_json
from lib.hardware import detect_hardware, gpu_environment
from lib.memory import SHAPES, check_fit
from lib.models import (
    lora_arguments,
    model_folder,
    plain_arguments,
    unsloth_arguments,
)
from lib.stack import Stack, choose_backend, raise_if_memory
from tests.conftest import CPU, L4, SMALL, T4, refuses
from tests.pretend_gpu import CARDS, nvml_of

FOUR_BIT = dict(load_in_4bit=True, model="embedded")


def config_on(hardware, **changes):
    return resolve("ci", changes | {"profile": "auto"}, hardware)


@pytest.fixture
def installed(monkeypatch):
    """As if the GPU lock were installed, but for the packages that a test takes out."""
    versions = {"torch": "2.13.0", "vllm": "0.31.0", "vllm-bnb-plugin": "0.0.3"}
    versions |= {"bitsandbytes": "0.50.2", "unsloth": "2026.10.9"}
    complete = Stack(versions, "580.95.05", "13.0")
    monkeypatch.setattr(stack, "read_stack", lambda: complete)
    return versions


def test_one_reason_falls_back(installed):
    """An old card and an incomplete installation stop, whatever is asked for."""
    for card in (T4, L4):
        assert choose_backend(config_on(card, **FOUR_BIT), card) == ("unsloth", "")
    old = replace(T4, gpu="Tesla P100", capability=6.0)
    with refuses("old-card", "Tesla P100"):
        choose_backend(config_on(T4, backend="transformers"), old)
    del installed["unsloth"]
    assert "not installed" in choose_backend(config_on(T4), T4)[1]
    assert choose_backend(config_on(T4, backend="transformers"), T4) == ("transformers", "")
    for changes in ({"backend": "unsloth"}, FOUR_BIT):
        with refuses("no-unsloth"):
            choose_backend(config_on(T4, **changes), T4)
    del installed["vllm-bnb-plugin"]
    for way in ("auto", "unsloth", "transformers"):
        with refuses("no-plugin"):
            given = FOUR_BIT | {"backend": way, "rollout_engine": "transformers"}
            choose_backend(config_on(T4, **given), T4)


def test_without_unsloth_a_policy_is_loaded(first_layers, monkeypatch):
    from lib.models import load_policy

    monkeypatch.setattr(stack, "read_stack", Stack)
    changes = SMALL | {"backend": "auto", "model": str(first_layers)}
    policy = load_policy(resolve("ci", changes, CPU))
    assert policy.backend == "transformers" and "not installed" in policy.notes[0]


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
        "Free memory on device (3.2/14.6 GiB) on startup is less than desired",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
    ],
)
def test_lack_of_memory_stops(text, ci_config):
    with refuses("memory"):
        raise_if_memory(RuntimeError(text), "load the model")
    with refuses("memory"):
        no_vllm(RuntimeError(text), ci_config)
    raise_if_memory(RuntimeError("something else"), "load the model")


def test_on_a_gpu_a_broken_vllm_stops_and_an_unknown_model_does_not(installed):
    config = config_on(T4)
    with refuses("vllm"):
        no_vllm(ImportError("libcudart.so.13: cannot open shared object file"), config)
    assert "generates" in no_vllm(ValueError("Model architectures ['X'] are not known"), config)


# Arguments


def test_an_engine_for_evaluation_has_the_card_alone(embedded):
    for config in (config_on(T4), config_on(L4)):
        assert engine_arguments(config, embedded)["gpu_memory_utilization"] == 0.85
        beside = engine_arguments(config, embedded, share=config.vllm_gpu_memory_utilization)
        assert beside["gpu_memory_utilization"] == 0.5


def test_an_engine_takes_what_a_desktop_leaves(embedded, monkeypatch):
    """Of the memory that CUDA can use, which is less than the card has."""
    memory = SimpleNamespace(total=15360 << 20, reserved=444 << 20, free=12000 << 20)
    nvml = nvml_of(CARDS["t4"])
    nvml.nvmlDeviceGetMemoryInfo = lambda *_: memory
    monkeypatch.setattr("lib.hardware._nvml", lambda: nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert detect_hardware().gpu_memory == pytest.approx(14.6, abs=0.05)
    share = engine_arguments(config_on(T4), embedded)["gpu_memory_utilization"]
    assert share == pytest.approx((12000 - 0.6 * 1024) / (15360 - 444))


def test_a_t4_gets_no_flashinfer(embedded):
    assert gpu_environment(7.5) == {
        "UNSLOTH_VLLM_NO_FLASHINFER": "1",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
    }
    assert gpu_environment(8.9) == {} == gpu_environment(0.0)
    on_t4 = engine_arguments(config_on(T4), embedded)
    assert on_t4["attention_backend"] == "TRITON_ATTN" and on_t4["dtype"] == "float16"
    assert "attention_backend" not in engine_arguments(config_on(L4), embedded)


def test_the_arguments_are_those_that_the_installed_libraries_take(embedded):
    """By signature, since nothing of it runs here."""
    import ast
    import inspect

    from peft import LoraConfig
    from vllm import EngineArgs

    for card in (T4, L4):
        config = config_on(card, **FOUR_BIT, rollout_engine="vllm")
        arguments = engine_arguments(config, embedded, rank=16, as_trained=True)
        served = EngineArgs.add_cli_args(ArgumentParser()).parse_args([*as_options(arguments)])
        assert {name: getattr(served, name) for name in arguments} == arguments
        assert set(lora_arguments(config)) <= set(inspect.signature(LoraConfig).parameters)
        loader = importlib.util.find_spec("unsloth").submodule_search_locations[0]
        given = set(unsloth_arguments(config, embedded))
        for file, function in (("loader.py", "from_pretrained"), ("llama.py", "get_peft_model")):
            tree = ast.parse(Path(loader, "models", file).read_text())
            names = {
                argument.arg
                for node in ast.walk(tree)
                if isinstance(node, ast.FunctionDef) and node.name == function
                for argument in node.args.args
            }
            # `load_vllm` takes this one from the loader's **kwargs.
            given = given if function == "from_pretrained" else set(lora_arguments(config))
            assert given - {"max_num_seqs"} <= names, given - names
        assert "pretrained_model_name_or_path" in plain_arguments(config, embedded)


def on_pretended(card: str, *words: str) -> list[dict]:
    """What tests/pretend_gpu.py says of it."""
    try:
        version("vllm")
    except PackageNotFoundError:
        pytest.skip("the GPU lock (requirements.txt) is not installed")
    command = [sys.executable, "tests/pretend_gpu.py", card, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line.partition(" ") for line in done.stdout.splitlines()]
    seen = [json.loads(row) for mark, _, row in lines if mark == "PRETENDED"]
    assert seen, done.stderr[-2000:]
    return seen


NOTED = read_json(ROOT / "benchmarks/results/pretended_cards.json")


@pytest.mark.parametrize("card", NOTED)
def test_every_recipe_is_configured_on_a_pretended_card(card):
    """By Unsloth's and vLLM's own code; the two tests around it are what is left of it without the
    lock."""
    for seen in on_pretended(card):
        recipe = seen.pop("recipe")
        assert seen == NOTED[card][recipe], recipe
        if "refused" in seen:
            assert (seen["refused"], card) == ("gemma-fp16", "t4")
            continue
        assert "error" not in seen, seen
        attention = {seen[key] for key in ("training", "evaluation", "4-bit base") if key in seen}
        assert all(name.isidentifier() for name in attention), seen  # else what vLLM says
        if card == "t4":
            assert attention == {"TRITON_ATTN"} and seen["flashinfer"] == "0", seen


@pytest.mark.parametrize("card", NOTED)
def test_the_table_of_pretended_cards_is_todays_plan(card):
    """That of docs/gpu.md, which has a line for each recipe of a model on the Hub, and what it is
    made of."""
    place, lines = [*NOTED].index(card) + 3, (ROOT / "docs/gpu.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| `") and line.count("|") == 7]
    table = {line.split("`")[1]: line.split("|") for line in rows}
    for recipe in sorted(path.stem for path in RECIPES.glob("*.yaml")):
        config, noted = resolve(recipe, {}, CARDS[card].hardware), NOTED[card].get(recipe)
        if config.model in SHAPES and config.model != "embedded" and "refused" not in noted:
            plan = check_fit(config, SHAPES[config.model], CARDS[card].hardware)
            found = [round(plan.total, 1), round(plan.parts["KV cache"], 1)]
            assert found == [noted["GiB"], noted["KV"]], recipe
            assert "{} / {}".format(*found) in table[recipe][place], recipe
            assert ("4-bit" in table[recipe][place]) == noted["4-bit"], recipe


WAYS = {  # by which a policy is trained on a GPU, beside the usual one
    "Unsloth, rollouts by transformers": ["-p", "rollout_engine", "transformers"],
    "4 bit": ["-p", "backend", "transformers", "-p", "rollout_engine", "transformers"],
    "16 bit": ["-p", "backend", "transformers", "-p", "load_in_4bit", "false"],
    "all weights": ["-p", "full_finetuning", "true", "-p", "load_in_4bit", "false"],
}


@pytest.mark.parametrize("way", ["Unsloth and vLLM", *WAYS])
def test_the_notebooks_train_and_resume_on_a_pretended_t4(way):
    words = ["--only", "03", *WAYS[way]] if way in WAYS else []
    whole, resumed = on_pretended("t4", "notebooks", *words)
    assert whole["rc"] == resumed["rc"] == 0
    assert resumed["grad_norm"][:3] == whole["grad_norm"] and len(resumed["grad_norm"]) == 4
    slopes = [slope for slope in resumed["grad_norm"] if slope < math.inf]  # else a step left out
    assert slopes and all(0 < slope < 100 for slope in slopes)
    apart = resumed["sampling/sampling_logp_difference/mean"]  # of the policy as it is
    assert max(gap or 0 for gap in apart) < 0.05 and None not in apart[: 4 * (way not in WAYS)]


def test_the_check_of_a_card_trains_and_notes_its_steps(first_layers, tmp_path, monkeypatch):
    from benchmarks import gpu_check

    monkeypatch.setattr(gpu_check, "RESULT", str(tmp_path / "result.json"))
    given = SMALL | {"model": str(first_layers), "output_dir": str(tmp_path), "max_steps": 2}
    log = gpu_check.train(resolve("mine", given, CPU))  # whose rewards differ by length
    noted = json.loads((tmp_path / "result.json").read_text())
    assert [row["step"] for row in noted["log"]] == [1, 2] == [row["step"] for row in log]
    assert noted["largest_b"] > 0


def test_two_adapters_in_one_engine_are_two(tmp_path):
    """vLLM loads an adapter only where its id is new."""
    engine = VllmEngine.__new__(VllmEngine)
    engine._adapters = {}
    requests = []
    for name in ("first", "second", "first"):
        engine.adapter = tmp_path / name
        engine.adapter.mkdir(exist_ok=True)
        weights = engine.adapter / "adapter_model.safetensors"
        weights.touch() if not weights.exists() else None
        requests.append(engine._lora_request())
    os.utime(tmp_path / "first" / "adapter_model.safetensors", ns=(1, 1))  # trained on
    engine.adapter = tmp_path / "first"
    requests.append(engine._lora_request())
    assert [request.lora_int_id for request in requests] == [1, 2, 1, 3]
    assert [request.lora_name for request in requests] == [
        *("adapter-1", "adapter-2", "adapter-1", "adapter-3"),
    ]


# Adapters that do not fit


@pytest.fixture(scope="module")
def adapter(embedded, tmp_path_factory):
    from lib.models import load_policy, write_adapter

    folder = tmp_path_factory.mktemp("adapters") / "good"
    write_adapter(load_policy(resolve("ci", SMALL, CPU)), folder)
    return folder


def with_zeros(*tensors):
    """A change that adds tensors: (name, sizes)."""
    import torch

    return lambda weights, _: weights | {f"{BASE}{name}": torch.zeros(*s) for name, s in tensors}


BASE = "base_model.model."
EMBEDS = "model.embed_tokens.lora_embedding_"
MISFITS = {  # what is changed in an adapter's tensors and settings: the fault
    "layers": lambda ws, _: {n.replace("self_attn", "attention"): w for n, w in ws.items()},
    "sizes": lambda ws, _: {n: w[:4] if "lora_A" in n else w for n, w in ws.items()},
    "sizes of another base": lambda ws, _: {
        n: w.repeat(1, 2) if "lora_A" in n else w.repeat(2, 1) for n, w in ws.items()
    },
    "rank": lambda ws, settings: settings.update(r=64) or ws,
    "patterns": lambda ws, settings: settings.update(alpha_pattern={"q_proj": 64}) or ws,
    "tied": lambda ws, settings: with_zeros(("lm_head.weight", (49152, 576)))(
        ws, settings.update(modules_to_save=["lm_head"])
    ),
    "tied embeddings": lambda ws, _: with_zeros(
        (f"{EMBEDS}A", (16, 49152)), (f"{EMBEDS}B", (576, 16))
    )(ws, _),
    "whole-modules": lambda ws, _: with_zeros(("model.norm.weight", (576,)))(ws, _),
    "whole-modules for a bias": lambda ws, _: with_zeros(
        ("model.layers.0.mlp.up_proj.lora_B.bias", (1536,))
    )(ws, _),
    "whole-modules by other names": lambda ws, _: {n.removeprefix(BASE): w for n, w in ws.items()},
    "patterns of tokens": lambda ws, settings: settings.update(alora_invocation_tokens=[1]) or ws,
    "patterns of a base that is changed": lambda ws, settings: (
        settings.update(init_lora_weights="pissa") or ws
    ),
    "whole-modules without the weight's name": lambda ws, _: {
        n.removesuffix(".weight"): w for n, w in ws.items()
    },
    "rank with alpha zero": lambda ws, settings: settings.update(lora_alpha=0) or ws,
    "rank without alpha": lambda ws, settings: settings.update(lora_alpha=None) or ws,
    "empty": lambda ws, _: {},
    "type": lambda ws, settings: settings.update(peft_type="PROMPT_TUNING") or ws,
    "patterns of DoRA": lambda ws, settings: settings.update(use_dora=True) or ws,
}


@pytest.mark.parametrize("fault", MISFITS)
def test_an_adapter_that_does_not_fit_is_refused(adapter, embedded, tmp_path, fault):
    from safetensors.torch import load_file, save_file

    bad = shutil.copytree(adapter, tmp_path / "bad")
    settings = json.loads((bad / "adapter_config.json").read_text())
    weights = MISFITS[fault](load_file(bad / "adapter_model.safetensors"), settings)
    weights = {name: weight.contiguous() for name, weight in weights.items()}
    save_file(weights, bad / "adapter_model.safetensors")
    (bad / "adapter_config.json").write_text(json.dumps(settings))
    with refuses(f"adapter-{fault.split()[0]}"):
        check_adapter(bad, embedded)


def test_a_cut_file_is_refused_and_a_good_adapter_is_not(adapter, embedded, tmp_path):
    check_adapter(adapter, embedded)
    bad = shutil.copytree(adapter, tmp_path / "bad")
    weights = bad / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with refuses("adapter-cut"):
        check_adapter(bad, embedded)
    with refuses("adapter-type"):
        check_adapter(tmp_path, embedded)


# Models and tokenizers as people have them


@pytest.fixture
def copy(embedded, tmp_path):
    """The embedded model's small files, to be changed; its weights by a link."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in embedded.iterdir():
        if file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file)
        else:
            shutil.copy(file, folder)
    return folder


def refused(folder) -> str:
    from lib.models import load_tokenizer

    with pytest.raises(BadInput) as error:
        load_tokenizer(model_folder(resolve("ci", {"model": str(folder)}, CPU)))
    return error.value.key


def with_template(folder, template):
    (folder / "chat_template.jinja").write_text(template)


def test_a_model_without_a_chat_template(copy):
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    assert refused(copy) == "no-chat-template"


GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{{ '<turn>' + message['role'] + '\n' + message['content'] + '</turn>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
SILENT = GEMMA.replace("raise_exception('System role not supported')", "''").replace(
    "in messages %}", "in messages if message['role'] != 'system' %}"
)
THINKS = GEMMA.replace("raise_exception('System role not supported')", "''").replace(
    "<turn>model\n", "<turn>model\\n<think>\\n"
)


REASONS = THINKS.replace("<think>", "<reasoning>")


@pytest.mark.parametrize("template", [GEMMA, SILENT, THINKS, REASONS])
def test_a_template_that_refuses_system_or_opens_think(copy, template):
    from lib.engines import chat_text
    from lib.models import load_tokenizer

    with_template(copy, template)
    tokenizer = load_tokenizer(copy)
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}
    prompt = chat_text(tokenizer, [system, user])
    assert prompt.count("Be brief.") == prompt.count("2+2?") == 1
    assert prompt.index("Be brief.") < prompt.index("2+2?")
    assert prompt.rstrip().endswith("<turn>model")
    assert chat_text(tokenizer, [user]).count("2+2?") == 1
    # What is saved says the same, wherever it is loaded.
    tokenizer.save_pretrained(copy / "saved")
    again = load_tokenizer(copy / "saved")
    assert chat_text(again, [system, user]) == prompt


def test_tokens_without_embeddings_are_refused(copy):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens(["<answer>"])
    tokenizer.save_pretrained(copy)
    assert refused(copy) == "tokens-without-embeddings"


def test_a_tokenizer_without_an_end_takes_the_models(copy):
    from lib.models import load_tokenizer

    def write(name, **changes):
        (copy / name).write_text(json.dumps(json.loads((copy / name).read_text()) | changes))

    write("tokenizer_config.json", eos_token=None)
    assert load_tokenizer(copy).eos_token == "<|im_end|>"
    for end in (None, 10**6):  # which no token has
        for name in ("generation_config.json", "config.json"):
            write(name, eos_token_id=end)
        assert refused(copy) == "no-eos"


def test_a_quantised_base_is_refused(copy):
    settings = json.loads((copy / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (copy / "config.json").write_text(json.dumps(settings))
    assert refused(copy) == "quantised"
    for wrong, key in (
        ([1], "json"),
        (settings | {"model_type": "frobnicate"}, "model-type"),
        (settings | {"architectures": ["LlamaForSequenceClassification"]}, "model-type"),
    ):
        (copy / "config.json").write_text(json.dumps(wrong))
        assert refused(copy) == key


def test_a_missing_shard_is_named(copy):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refused(copy) == "missing-shard"
    (copy / "model.safetensors.index.json").write_text('{"weight_map": {"a')
    assert refused(copy) == "json"
    (copy / "model.safetensors.index.json").unlink()
    with refuses("missing-shard"):
        block_layers(copy, 40, 576)
    with refuses("missing-shard"):
        block_layers(copy, 30, 512)
    (copy / "tokenizer.json").unlink()
    assert refused(copy) == "no-tokenizer"


def test_from_the_hub_come_the_files_that_the_index_names(monkeypatch, copy):
    import huggingface_hub

    patterns = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, allow_patterns: patterns.append(allow_patterns) or str(copy),
    )
    config = resolve("ci", {"model": "mistralai/Mistral"}, CPU)
    model_folder(config)
    assert "*.safetensors" not in patterns[1] and "model*.safetensors" in patterns[1]
    index = {"weight_map": {"a": "model.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    model_folder(config)
    assert patterns[3][-1] == "model.safetensors"


# A 4-bit base, by bitsandbytes' kernels for the CPU


def test_a_policy_on_a_4_bit_base_is_trained_and_is_the_certificates_first_row(
    first_layers, tmp_path, small_training
):
    """The adapter on the 16-bit base, and what is merged, are another model by what 4 bits cost,
    and pass; merged without its adapter it does not."""
    import torch

    from lib.export import certificate as c
    from lib.export import load_merged, load_policy_as_trained, save_merged, weight_faults
    from lib.models import load_policy, load_tokenizer
    from lib.tasks import load_problems, make_rows
    from lib.training import save_trained, train

    given = SMALL | {"model": str(first_layers), "output_dir": str(tmp_path)}
    given |= {"load_in_4bit": True, "precision": "fp32"}
    policy = load_policy(resolve("ci", given, CPU))
    assert "Linear4bit" in {type(module).__name__ for module in policy.model.modules()}
    trainer, config, run = small_training(policy=policy, **given)
    train(trainer, config, run)
    moved = [p for name, p in policy.model.named_parameters() if "lora_B" in name]
    assert all(p.abs().max() > 0 for p in moved)
    assert {p.dtype for p in moved} == {torch.float32}  # TRL's would be bf16
    for p in moved:
        p.data.normal_(std=0.05, generator=torch.Generator().manual_seed(p.numel()))
    save_trained(policy, config, run)

    save_merged(load_merged(first_layers, run.adapter, torch.float32), first_layers, run.merged)
    task, _, held_out, examples = load_problems(config)
    problems, measured = held_out[:4], []
    rows = make_rows(problems, config.prompt_format, config.shots, examples)
    plain = config.model_copy(update={"load_in_4bit": False})
    for name, which, folder, adapter, quantised in (
        ("policy", config, first_layers, run.adapter, False),
        ("adapter", plain, first_layers, run.adapter, True),
        ("merged", plain, run.merged, None, False),
        ("base", plain, first_layers, None, False),
    ):
        model = load_policy_as_trained(which, folder, adapter)
        wrong = weight_faults(first_layers, run.adapter, folder) if name == "merged" else []
        form = c.transformers_form(name, model, folder, config, weights=wrong, quantised=quantised)
        first, reader = measured[0] if measured else None, load_tokenizer(first_layers)
        measured.append(c.measure(form, problems, rows, task, config, first, reader))
    certificate = c.certify(measured)
    assert certificate["failed"] == []
    gaps = {row["form"]: row["logprob_gap"] for row in certificate["rows"]}
    assert gaps["adapter"] == pytest.approx(gaps["merged"], rel=0.05)
    assert gaps["adapter"] > 0.1, "more than rounding"
    forgotten = c.Measured(**vars(measured[3]) | {"name": "merged"})
    assert c.certify([*measured[:2], forgotten, measured[3]])["failed"]
