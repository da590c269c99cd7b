"""Every recipe: its arguments on every profile, its fit, and its whole chain in small.

The embedded model's first layers stand in for the big ones; data, prompts, rewards, losses and
grading are each recipe's own.
"""

import pytest
import torch

from lib.adapters import is_adapter
from lib.config import RECIPES, ROOT, Config, resolve
from lib.doctor import find_shape
from lib.engines import TransformersEngine
from lib.evaluation import evaluate
from lib.files import read_json, read_jsonl
from lib.learned import (
    RewardModel,
    fit_output,
    fitting,
    load_pairs,
    save_reward_model,
    train_reward_model,
    untrained,
)
from lib.memory import check_fit
from lib.models import load_policy, lora_targets
from lib.rewards import learned_rewards, recipe_rewards
from lib.runs import Run, run_folder
from lib.suite import main
from lib.tasks import TASKS, StoredTask, load_problems
from lib.tasks.prompts import fitting_rows, make_rows
from lib.training import grpo_arguments, make_trainer, save_trained, train
from tests.conftest import CPU, L4, SMALL, T4, as_parameters

ALL = sorted(RECIPES.glob("*.yaml"))
HARDWARE = {"t4": T4, "l4": L4, "cpu": CPU}


def on(hardware, path) -> Config:
    config = resolve(path, {}, T4)
    if hardware is CPU and config.load_in_4bit:
        pytest.skip("4-bit training needs a GPU")
    return resolve(path, {}, hardware)


def trains_on_data(path) -> bool:
    """On a data set, with rewards that need nothing trained before."""
    config = resolve(path, {}, T4)
    return issubclass(TASKS[config.task], StoredTask) and "reward_model" not in config.rewards


ON_DATA = [path for path in ALL if trains_on_data(path)]


def name_of(path) -> str:
    return path.stem


@pytest.mark.parametrize("profile", HARDWARE)
@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_arguments_are_valid_and_it_fits(path, profile, tmp_path):
    from trl import GRPOConfig

    config = on(HARDWARE[profile], path)
    # Whether this machine has the GPU is no matter of the arguments.
    on_this_machine = {"bf16": False, "fp16": False, "use_cpu": True}
    made = GRPOConfig(**(grpo_arguments(config, Run(tmp_path)) | on_this_machine))
    assert made.generation_batch_size == config.completions_per_step
    assert made.num_generations == config.num_generations
    functions, weights = recipe_rewards(config)
    assert len(functions) == len(weights) == len(config.rewards)
    if profile != "cpu":
        shape = find_shape(config)
        assert check_fit(config, shape, HARDWARE[profile]).fits
        assert set(lora_targets(config)) <= set(shape.layer_sizes)


@pytest.mark.parametrize("path", ON_DATA, ids=name_of)
def test_prompts_fit(path, data_dir, embedded):
    """In training all but a few, of which 03 tells; in evaluation all, cut short by nothing."""
    from transformers import AutoTokenizer

    config = resolve(path, {"data_dir": str(data_dir)}, T4)
    tokenizer = AutoTokenizer.from_pretrained(embedded)
    _, training, held_out, examples = load_problems(config)
    for problems, share in ((training, 0.99), (held_out, 1.0)):
        rows = make_rows(problems, config.prompt_format, config.shots, examples)
        count = max(config.prompts_per_step, len(rows) // 50)
        longest = sorted(rows, key=lambda row: -len(row["question"]))[:count]
        left_out = len(longest) - len(fitting_rows(longest, tokenizer, config)[0])
        assert left_out <= (1 - share) * len(rows)


def test_gemma_is_asked_without_a_system_message(data_dir):
    """Its chat template refuses one."""
    config = resolve("gemma-2-2b_gsm8k", {"data_dir": str(data_dir)}, T4)
    _, training, _, examples = load_problems(config)
    [row] = make_rows(training[:1], config.prompt_format, config.shots, examples)
    assert [turn["role"] for turn in row["prompt"]] == ["user"]


STEP = SMALL | dict(
    model="embedded",
    load_in_4bit=False,
    prompts_per_step=1,
    num_generations=2,
    micro_batch=2,
    num_iterations=1,
    train_problems=16,
    validation_steps=0,
    eval_problems=16,
    eval_samples=0,
    eval_max_tokens=6,
    reward_steps=1,
)


def apart_in_small(paths) -> list:
    """Recipes that still differ where the same model stands in for theirs."""
    found = {}
    for path in paths:
        config = resolve(path, STEP, CPU)
        found.setdefault(config.model_dump_json(exclude={"name", "by_profile", "eval_k"}), path)
    return list(found.values())


def learn_rewards(config: Config, run: Run) -> None:
    """The reward models of a recipe, of two layers and from a few pairs."""
    small = config.model_copy(update={"reward_layers": 2})
    for reward in learned_rewards(config):
        model, tokenizer = untrained(small)
        pairs, held_out = (
            fitting(some, tokenizer, small)[: small.reward_pairs] for some in load_pairs(small)
        )
        judge = RewardModel(model, tokenizer)
        fit_output(judge, pairs)
        train_reward_model(small, run, model, tokenizer, pairs)
        save_reward_model(judge, held_out, run.folder / reward.own)


@pytest.mark.parametrize(
    "path", [*apart_in_small(ON_DATA), RECIPES / "smollm2-135m_preferences.yaml"], ids=name_of
)
def test_chain_in_small(path, data_dir, first_layers, tmp_path):
    """Problems → rewards → a step → an adapter → two graded answers."""
    here = {"data_dir": str(data_dir), "output_dir": str(tmp_path), "run": "run"}
    here |= {"model": str(first_layers)}
    config = resolve(path, STEP | here, CPU)
    run = Run(run_folder(config))
    run.folder.mkdir()
    learn_rewards(config, run)
    task, *splits, examples = load_problems(config)
    training, held_out = (sorted(split, key=lambda p: len(p.question))[:2] for split in splits)
    rows, asked = (
        make_rows(problems, config.prompt_format, config.shots, examples)
        for problems in (training, held_out)
    )
    policy = load_policy(config)
    trainer = make_trainer(policy, rows, *recipe_rewards(config), config, run)
    train(trainer, config, run)
    [log] = read_jsonl(run.train_log)
    [rollouts] = run.rollouts.iterdir()
    for row in read_jsonl(rollouts):
        assert set(row["rewards"]) == set(config.rewards)
        assert all(value is not None for value in row["rewards"].values())
    assert log["step"] == 1 and log["reward"] is not None
    save_trained(policy, config, run)
    assert is_adapter(run.adapter) is not config.full_finetuning
    engine = TransformersEngine(policy.model.eval(), policy.tokenizer)
    records = evaluate(engine, held_out, asked, task, config, run, "trained")
    assert [record["id"] for record in records] == [problem.id for problem in held_out]
    summary = read_json(run.evals / "trained.json")
    assert {score["problems"] for score in summary["scores"].values()} == {2}
    assert sum(summary["outcomes"]["greedy"].values()) == 2
    assert torch.isfinite(torch.tensor(log["loss"]))


def test_a_learned_reward_in_one_chain(first_layers, tmp_path, monkeypatch, capfd):
    """Pairs in a file → reward models → GRPO with the first → what it brought, and what it cost;
    stopped for want of an adapter, and resumed. From wherever it is asked to, without a network."""
    for key, value in {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    engines = dict.fromkeys(("backend", "rollout_engine", "eval_engine"), "transformers")
    given = engines | {"model": str(first_layers), "reward_layers": 2, "run": "run"}
    given |= {"output_dir": str(tmp_path)}
    words = ["ci_preferences", *as_parameters(given), "--only", "06"]
    run = Run(tmp_path / "run")
    assert main([*words, "04"]) == 2
    said = capfd.readouterr()
    assert "--resume" in said.out and "04_pass_at_k_eval stopped:" in said.err
    assert "adapter is not there: run 03_training for this run first." in said.err
    assert "adapter is not there" in (run.notebooks / "04_pass_at_k_eval.html").read_text()
    assert (run.folder / "reward_model" / "model.safetensors").is_file()
    (run.notebooks / "06_reward_model.ipynb").unlink()

    assert main([*words, "03", "04", "--resume"]) == 0
    said = capfd.readouterr()
    assert "06_reward_model: done before" in said.out
    assert not (run.notebooks / "06_reward_model.ipynb").exists()
    assert "greedy reward" in said.out and "report.html" in said.out
    chain = ["06_reward_model", "03_training", "04_pass_at_k_eval"]
    assert list(read_json(run.record)["finished"]) == chain
    assert len(read_jsonl(run.train_log)) == 4
    page = (run.notebooks / "04_pass_at_k_eval.ipynb").read_text()
    for score in ("greedy reward", "greedy rewards/gold reward"):
        assert f"adherence: {score}" in page
    assert "capability: greedy strict" in page and "capability: greedy lenient" in page
    capability = read_json(run.evals / "side_comparison.json")["greedy_strict"]
    assert capability["problems"] == 16 and capability["verdict"]
    assert read_json(run.evals / "comparison.json")["greedy_reward"]["problems"] == 12
