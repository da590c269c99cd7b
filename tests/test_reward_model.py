"""A learned reward: its pairs, its training with real weights, and what it pays."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from lib.config import resolve, side_config
from lib.errors import BadInput
from lib.files import read_json
from lib.learned import (
    GoldReward,
    LearnedReward,
    Pair,
    RewardModel,
    _chat_ids,
    _pairs,
    _tokens,
    fit_output,
    fitting,
    halves,
    load_pairs,
    quality,
    save_reward_model,
    score_pairs,
    train_reward_model,
    untrained,
)
from lib.plots import from_start
from lib.rewards import build_rewards, recipe_rewards
from lib.suite import CHAIN, REWARD_MODEL, choose_notebooks
from lib.tasks import get_task, load_problems
from tests.conftest import CPU, refuses

# --- pairs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(first_layers, tmp_path_factory):
    """The ci recipe's sums, with a learned reward, in a run folder of its own."""
    given = {"output_dir": str(tmp_path_factory.mktemp("out")), "profile": "cpu"}
    given |= {"reward_model_base": str(first_layers)}
    given |= {"rewards": {"reward_model": 1.0, "gold_reward": 0.0}, "reward_steps": 12}
    return resolve("ci", given, CPU)


def pair(question: str, chosen: str, rejected: str, fault: str = "people's choice") -> Pair:
    prompt = [{"role": "user", "content": question}]
    return Pair(question, question, prompt, chosen, rejected, fault)


PAIRS = [
    pair("1?", "long one", "no", "a"),
    pair("2?", "b", "ccc", "b"),
    pair("3?", "dd", "ee", "b"),
]


def test_pairs_are_made_from_right_answers(config):
    training, held_out = load_pairs(config)
    assert not {p.question for p in training} & {p.question for p in held_out}
    assert len(held_out) == 12
    for p in training:
        a, b = (int(word.strip("?")) for word in p.question.split()[2::2])
        assert p.chosen == f"<answer>{a + b}</answer>" and p.rejected != p.chosen
        assert p.prompt[-1]["content"] == p.question
        assert p.rejected == str(a + b) if p.fault == "no tags" else "<answer>" in p.rejected
    assert {p.fault for p in training} == {"wrong answer", "no tags"}


def test_pairs_of_a_data_set(data_dir):
    config = resolve("smollm2-135m_preferences", {"data_dir": str(data_dir)}, CPU)
    training, held_out = load_pairs(config)
    assert not {p.question for p in training} & {p.question for p in held_out}
    assert {p.fault for p in training} == {"people's choice"}
    assert max(len(p.question) for p in training) <= 600
    first, second = halves(training)
    assert len(first) + len(second) == len(training)
    assert min(len(first), len(second)) > len(training) / 3
    assert not {p.question for p in first} & {p.question for p in second}


def test_pairs_of_a_file_are_texts_or_messages_and_neither_equal_nor_half(tmp_path):
    def row(i, chosen="Yes.", rejected="No."):
        return {"question": f"Is it {i}?", "chosen": chosen, "rejected": rejected}

    said = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "No."}]
    odd = [row(i, rejected=text) for i, text in enumerate(("Yes.", " Yes. ", "", None))]
    whole = [row(4), row(5, rejected=said), row(6, [{"role": "assistant", "content": "Yes."}])]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, odd + whole)))
    about = {"path": str(file), "answer": "chosen", "kind": "open", "test_share": 0.0}
    config = resolve("ci_preferences", {"task_config": about, "profile": "cpu"}, CPU)
    problems = get_task("file", about).load("train")
    pairs = list(_pairs(problems, config, ()))
    assert [(p.chosen, p.rejected) for p in pairs] == [("Yes.", "No.")] * 3


def test_a_text_without_a_rejected_answer_makes_no_pairs(data_dir):
    given = {"task": "smoltldr", "data_dir": str(data_dir), "preferences": ""}
    with pytest.raises(BadInput, match=r"no rejected answer and no right one .* set preferences"):
        load_pairs(resolve("llama-3.2-1b_tldr", {**given, "profile": "cpu"}, CPU))


def scored(*margins: float) -> np.ndarray:
    return np.array([(margin + 7, 7) for margin in margins])


def test_quality_stands_beside_the_rule_that_the_longer_wins():
    found = {row["what"]: row["rate"] for row in quality(PAIRS, scored(1.0, 2.0, -0.5))}
    assert found == {
        "reward model": pytest.approx(2 / 3),
        "rule: the longer wins": pytest.approx(1 / 3),
        "pairs: a": 1.0,
        "pairs: b": 0.5,
        "pairs whose longer answer is preferred": 1.0,
        "pairs whose shorter answer is preferred": 1.0,
    }


# --- training -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(config):
    """(the run's folder, held-out pairs, scores before, the log, scores after)"""
    from lib.runs import open_run

    run = open_run(config)
    training, held_out = load_pairs(config)
    model, tokenizer = untrained(config)
    longest = max(len(ids) for p in training for ids in _tokens(p, tokenizer).values())
    edge = config.model_copy(update={"reward_max_length": longest})
    assert fitting(training, tokenizer, edge) == training
    with refuses("pairs", "reward_pairs"):
        fitting(training, tokenizer, edge.model_copy(update={"reward_pairs": len(training) + 1}))
    before = score_pairs(RewardModel(model, tokenizer), held_out)
    log = train_reward_model(config, run, model, tokenizer, training)
    folder = run.folder / LearnedReward.own
    after = save_reward_model(RewardModel(model, tokenizer), held_out, folder)
    return run, held_out, before, log, after


def test_training_lowers_the_loss_of_bradley_and_terry(trained, config):
    run, _, before, log, after = trained
    assert len(log) == config.reward_steps
    first, last = (sum(row["loss"] for row in part) / 4 for part in (log[:4], log[-4:]))
    assert last < first - 0.02, (first, last)
    loss = [np.log1p(np.exp(s[:, 1] - s[:, 0])).mean() for s in (before, after)]
    assert loss[1] < loss[0]
    left = {path.name for path in run.folder.iterdir()}
    assert "reward_model" in left and not [n for n in left if n.startswith(".reward")]


def test_the_saved_model_is_safetensors_and_scores_as_measured(trained):
    run, held_out, _, _, after = trained
    folder = run.folder / "reward_model"
    assert (folder / "model.safetensors").is_file()
    assert not [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
    record = read_json(folder / "reward.json")
    [function], _ = build_rewards({"reward_model": 1.0}, run_folder=str(run.folder))
    prompts = [p.prompt for p in held_out]
    values = function(prompts=prompts, completions=[p.chosen for p in held_out])
    expected = [(score - record["mean"]) / record["std"] for score in after[:, 0]]
    assert values == pytest.approx(expected, abs=1e-6)
    every = values + function(prompts=prompts, completions=[p.rejected for p in held_out])
    assert sum(every) == pytest.approx(0, abs=1e-3)
    assert sum(v**2 for v in every) / len(every) == pytest.approx(1, abs=1e-3)


def test_a_score_depends_on_its_own_answer_alone_however_it_is_given(trained):
    run, held_out, *_ = trained
    model = RewardModel.load(run.folder / "reward_model")
    prompts, answers = [p.prompt for p in held_out], [p.chosen for p in held_out]
    together = model.rewards(prompts, answers)
    ids = [_chat_ids(model.tokenizer, *asked) for asked in zip(prompts[:3], answers, strict=False)]
    by_itself = [model.model(torch.tensor([each])).logits.item() for each in ids]  # as in training
    assert model.scores(prompts[:3], answers[:3]) == pytest.approx(by_itself, abs=0.1 * model.std)
    # In 16 bit, another padding rounds otherwise; answers lie about 1 apart.
    assert model.rewards(prompts[::-1], answers[::-1]) == pytest.approx(together[::-1], abs=0.3)
    function = pickle.loads(pickle.dumps(LearnedReward(path=str(run.folder / "reward_model"))))
    message = [[{"role": "assistant", "content": answers[0]}]]
    for completions in (answers[:1], message):  # as TRL gives them
        paid = function(prompts=prompts[:1], completions=completions, id=["x"])
        assert paid == pytest.approx(together[:1], abs=0.3)
    assert function(prompts=["Hi?"], completions=[""])[0] == pytest.approx(0, abs=20)


def test_a_reward_model_that_vanishes_stops_the_run_with_its_sentence(trained, tmp_path):
    run, held_out, *_ = trained
    folder = tmp_path / "reward_model"
    shutil.copytree(run.folder / "reward_model", folder)
    [function], _ = build_rewards({"reward_model": 1.0}, run_folder=str(tmp_path))
    asked = {"prompts": [held_out[0].prompt], "completions": ["7"]}
    assert len(function(**asked)) == 1
    shutil.rmtree(folder)
    with pytest.raises(BadInput, match=r"no reward model in .*: run 06_reward_model"):
        function(**asked)


def test_the_output_layer_is_fitted_to_what_the_lower_layers_tell(config, embedded):
    lower = config.model_copy(update={"reward_layers": 12, "reward_model_base": ""})
    model, tokenizer = untrained(lower)
    assert len(model.model.layers) == model.config.num_hidden_layers == 12
    judge, (training, held_out) = RewardModel(model, tokenizer), load_pairs(lower)
    below = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    before = score_pairs(judge, held_out)
    fit_output(judge, training[:48])
    after = score_pairs(judge, held_out)
    assert (model.model.layers[0].mlp.up_proj.weight == below).all()
    was, now = (np.log1p(np.exp(s[:, 1] - s[:, 0])).mean() for s in (before, after))
    assert now < 0.9 * was, (was, now)


# --- recipes ------------------------------------------------------------------------------------


def test_a_recipe_with_a_learned_reward_trains_it_first(config, tmp_path):
    assert choose_notebooks(config) == [CHAIN[0], REWARD_MODEL, *CHAIN[1:]]
    functions, weights = recipe_rewards(config)
    assert [type(f) for f in functions] == [LearnedReward, GoldReward] and weights == [1.0, 0.0]
    assert choose_notebooks(resolve("ci", {}, CPU)) == list(CHAIN)
    with pytest.raises(BadInput, match="no reward model in nowhere"):
        build_rewards({"reward_model": {"path": "nowhere"}})


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_the_switch_decides_what_is_trained(full, config, run):
    one = config.model_copy(update={"full_finetuning": full, "reward_steps": 1})
    model, tokenizer = untrained(one)
    layer = model.model.layers[0]
    weights = layer.mlp.up_proj.weight, layer.input_layernorm.weight
    was = [weight.detach().clone() for weight in weights]
    train_reward_model(one, run, model, tokenizer, load_pairs(one)[0][:4])
    moved = [not (old == now).all() for old, now in zip(was, weights, strict=True)]
    assert moved == [True, full]


def test_watched_rewards_are_told_apart_from_paid_ones(trained, config):
    from lib.evaluation import add_rewards
    from lib.evaluation.comparison import score_names

    run, held_out, *_ = trained
    shutil.copytree(run.folder / "reward_model", run.folder / "reward_model_gold")
    rows = [{"id": p.id, "prompt": p.prompt, "question": p.question} for p in held_out[:2]]
    records = [
        {"id": row["id"], "completion": "7", "tokens": 2, "finish_reason": "stop"} for row in rows
    ]
    for record in add_rewards(records, rows, config):
        assert record["reward"] == pytest.approx(record["rewards/gold_reward"])
        assert score_names([record])[:2] == ("reward", "rewards/gold_reward")


def test_the_figure_counts_from_where_each_reward_began():
    given = {"tokens": 5, "completion": "a b c a b c"}
    rollouts = [
        [
            given | {"step": n, "rewards": {"model": n + i, "gold": None if i else 0.5}}
            for i in (0, 1)
        ]
        for n in (1, 2, 3)
    ]
    table = from_start(rollouts)
    assert table["model"].tolist() == [0, 2, 4] and table["gold"].tolist() == [0, 0, 0]
    assert table["repeated word triples"].tolist() == [0.25] * 3
    # Equal rewards have no spread, though their mean is rounded.
    equal = [[given | {"step": n, "rewards": {"format": 0.1}}] * 3 for n in (1, 2)]
    assert from_start(equal)["format"].tolist() == [0, 0]


def test_a_side_task_has_its_own_settings_and_the_same_run():
    config = resolve("smollm2-135m_preferences", {}, CPU)
    side = side_config(config)
    assert (side.task, side.shots, side.prompt_format) == ("small_sums", 1, "answer")
    assert side.run_name == config.run_name and side.side_task == {} and side.eval_samples == 0
    _, training, problems, _ = load_problems(side)
    assert training and len(problems) == 32
