"""Variants of a recipe are trained once each, and compared with an error that is honest."""

import numpy as np
import pytest

from lib.config import resolve
from lib.errors import BadInput
from lib.evaluation.runs import (
    accuracy_rows,
    base_config,
    compare_arms,
    cost_rows,
    differing_settings,
    evaluation_name,
    find_arms,
    is_finished,
    logs_of,
    missing_runs,
    pairs_of,
    planned_seconds,
    sentences,
    variant_configs,
)
from lib.files import append_jsonl, discard, read_json, read_jsonl, write_json
from lib.plots import differences_figure, learning_curves
from lib.report import write_comparison
from lib.runs import Run, open_run
from lib.scratch.variants import run_variants
from lib.stats import crossed_difference, paired_difference
from tests.conftest import CPU, SMALL, refuses

TWO = {"variants": {"grpo": {}, "rloo": {"algorithm": "rloo"}}, "seeds": [0, 1]}


def config_of(folder, **changes):
    return resolve("ci", {"output_dir": str(folder), "profile": "cpu", **TWO, **changes}, CPU)


# --- which runs ----------------------------------------------------------------


def test_each_variant_has_each_seed_and_a_folder_of_its_own(tmp_path):
    found = variant_configs(config_of(tmp_path))
    assert list(found) == ["grpo_0", "grpo_1", "rloo_0", "rloo_1"]
    assert found["rloo_1"].run_name == "ci/rloo_1" and found["rloo_1"].seed == 1
    assert [each.algorithm for each in found.values()] == ["grpo"] * 2 + ["rloo"] * 2
    assert found["grpo_0"].task_config == config_of(tmp_path).task_config


def test_the_recipe_of_the_comparison_can_be_run():
    found = variant_configs(resolve("variants", {}, CPU))
    assert len(found) == 36
    drawn = {each.max_steps / each.num_iterations for each in found.values()}
    assert len(drawn) == 1  # the same completions for all


@pytest.mark.parametrize(
    ("variants", "sentence"),
    [
        ({}, "nothing to compare"),
        ({"cispo": {"loss_type": "cispo"}}, "epsilon_high"),
        ({"rloo": {"algoritm": "rloo"}}, "no key 'algoritm'"),
    ],
)
def test_nothing_to_compare_and_a_variant_that_cannot_be(variants, sentence):
    with pytest.raises(BadInput, match=sentence):
        variant_configs(resolve("ci", {"variants": variants}, CPU))


def test_a_finished_run_is_not_repeated_until_its_settings_change(tmp_path, first_layers):
    """The whole way: the base and one variant, two updates."""
    given = SMALL | dict(model=str(first_layers), variants={"grpo": {}}, seeds=[0], max_steps=2)
    given |= dict(eval_problems=2, eval_samples=0)
    config = config_of(tmp_path, **given)
    assert list(run_variants(config)) == ["base", "grpo_0"]
    assert list(run_variants(config)) == []
    run = Run(tmp_path / "ci" / "grpo_0")
    assert len(read_jsonl(run.train_log)) == 2 and (run.adapter / "adapter_config.json").is_file()
    learning = read_json(run.record)["learning"]
    assert learning["cpu_seconds"] > 0 and learning["peak_gib"] > 0.05  # the model alone is 0.07
    [base, trained] = compare_arms(find_arms(config))
    assert base["arm"] == "base" and trained["to base"]["test"] and trained["steps"] == 2
    # One that was stopped goes on from its checkpoint, and is not timed anew.
    first, _ = read_jsonl(run.train_log)
    discard(run.checkpoints / "lora_epoch0_step2")
    (run.evals / "trained.json").unlink()
    assert list(run_variants(config)) == ["grpo_0"]
    assert read_jsonl(run.train_log)[0] == first and read_json(run.record)["learning"] == learning
    changed = config_of(tmp_path, **{**given, "max_steps": 3})
    assert not is_finished(variant_configs(changed)["grpo_0"])


# --- their error ---------------------------------------------------------------


def test_more_seeds_of_the_same_answers_make_nothing_surer():
    """Copies of one run are no evidence beyond it: the problems' error stays."""
    a, b = np.random.default_rng(0).integers(0, 2, (2, 60))
    once, thrice = crossed_difference([b - a]), crossed_difference([b - a] * 3)
    assert once.interval == paired_difference(a, b).interval
    assert thrice.stderr == pytest.approx(once.stderr)
    assert thrice.difference == once.difference


@pytest.mark.parametrize(("seeds", "between_seeds"), [(3, 0.0), (3, 0.2), (5, 0.0), (5, 0.1)])
def test_intervals_hold_the_truth_in_93_to_97_of_100(seeds, between_seeds):
    """Right and wrong answers to 100 problems, where seeds differ little or much in how well they
    answer all of them; p-values agree with the intervals."""
    draw, held, certain = np.random.default_rng(seeds), [], []
    for _ in range(1000):
        chances = draw.random(100)
        before = draw.random(100) < chances
        shifted = np.clip(chances + draw.normal(0, between_seeds, (seeds, 1)), 0, 1)
        after = draw.random((seeds, 100)) < shifted
        found = crossed_difference(after.astype(float) - before)
        held.append(found.interval[0] <= 0 <= found.interval[1])
        certain.append(found.p_value < 0.05)
    assert np.mean(held) == pytest.approx(0.95, abs=0.025)  # 0.02, and chance
    assert sum(certain) == held.count(False)


# --- side by side --------------------------------------------------------------


def write_run(config, right: list[int]) -> None:
    """A run folder as training and evaluation leave it."""
    run = open_run(config)
    steps = [{"step": i + 1, "seconds": 2.0 * i, "reward": 0.1 * i} for i in range(4)]
    append_jsonl(run.train_log, [{**row, "num_tokens": 100} for row in steps])
    answers = [
        {"pass": "greedy", "id": f"p{i}", "question": f"{i}?", "strict": bool(value)}
        for i, value in enumerate(right)
    ]
    append_jsonl(run.evals / f"{evaluation_name(run)}.jsonl", answers)
    write_json(run.evals / f"{evaluation_name(run)}.json", {})


@pytest.fixture
def arms(tmp_path):
    config = config_of(tmp_path)
    rng = np.random.default_rng(0)
    write_run(base_config(config), [0] * 80)
    (tmp_path / "ci" / "base" / "train_log.jsonl").unlink()
    for name, each in variant_configs(config).items():
        share = 0.2 if name.startswith("grpo") else 0.9
        write_run(each, (rng.random(80) < share).astype(int).tolist())
    return find_arms(config)


def test_arms_are_told_apart_where_they_are_apart(arms):
    assert {name: len(runs) for name, runs in arms.items()} == {"base": 1, "grpo": 2, "rloo": 2}
    assert differing_settings(arms) == [
        {"setting": "algorithm", "base": "grpo", "grpo": "grpo", "rloo": "rloo"}
    ]
    compared = compare_arms(arms)
    assert compared[0]["accuracy"] == 0 and compared[2]["accuracy"] > 0.8
    [told] = sentences(compared)
    assert told.startswith("rloo is better than grpo: +")
    assert accuracy_rows(compared)[2]["to base"].startswith("+")
    told = {"arm": "grpo", "steps": 4, "tokens": 100, "seconds": 6}  # neither processor nor memory
    assert cost_rows(compared)[0] == told
    log = arms["grpo"][0].train_log
    log.write_text(log.read_text().replace("num_tokens", "others"))
    assert cost_rows(compare_arms(arms))[0]["tokens"] == 100  # of the other seed
    for run in arms["grpo"]:
        run.train_log.write_text(log.read_text())
    assert cost_rows(compare_arms(arms))[0]["tokens"] is None
    assert len(learning_curves(logs_of(arms)).axes) == 2
    assert len(differences_figure(compared).axes) == 2


def test_seeds_are_paired_whatever_their_order(arms):
    pairs = pairs_of(arms["grpo"], arms["rloo"][::-1])
    names = [(a.folder.name, b.folder.name) for a, b in pairs]
    assert names == [("grpo_0", "rloo_0"), ("grpo_1", "rloo_1")]
    assert len(pairs_of(arms["base"], arms["rloo"])) == 2


def test_any_runs_by_their_names(arms, tmp_path):
    config = config_of(tmp_path, runs=["ci/grpo_0", str(tmp_path / "ci" / "rloo_1")])
    found = find_arms(config)
    assert list(found) == ["grpo_0", "rloo_1"]
    [told] = sentences(compare_arms(found))
    assert told.startswith("rloo_1 is better than grpo_0: +")
    three = compare_arms(found | {"another": found["rloo_1"]})
    assert all("than grpo_0: +" in told for told in sentences(three)) and len(three) == 3
    assert list(accuracy_rows(three)[1]) == ["arm", "seeds", "accuracy", "to grpo_0"]
    with pytest.raises(BadInput, match="There is no run nowhere"):
        find_arms(config_of(tmp_path, runs=["nowhere"]))
    with pytest.raises(BadInput, match="two runs at least"):
        compare_arms({"grpo_0": found["grpo_0"]})


def test_runs_that_share_no_problems(arms, tmp_path):
    log = tmp_path / "ci" / "rloo_0" / "evals" / "trained.jsonl"
    log.write_text(log.read_text().replace('"id": "p', '"id": "q'))
    with pytest.raises(BadInput, match="share no held-out problems"):
        compare_arms(arms)


def test_what_is_missing_is_timed_before_it_is_trained(arms, tmp_path):
    config, runs = config_of(tmp_path), config_of(tmp_path, runs=["ci/grpo_0"], variants={})
    assert missing_runs(config) == missing_runs(runs) == {} and planned_seconds(runs, {}) == 0
    (tmp_path / "ci" / "rloo_1" / "evals" / "trained.json").unlink()
    missing = missing_runs(config)
    assert list(missing) == ["rloo_1"]
    completions = config.completions_per_step * config.max_steps
    assert planned_seconds(config, missing) == pytest.approx(15 + 0.2 * completions)
    Run(tmp_path / "ci" / "grpo_0").note(learning={"seconds": 50.0})
    assert planned_seconds(config, missing) == 50
    assert len(missing_runs(resolve("variants", {"output_dir": str(tmp_path)}, CPU))) == 37


def test_the_page_of_all_runs_stands_alone(arms, run):
    compared = compare_arms(arms)
    page = write_comparison(run, compared).read_text()
    assert all(sentence in page for sentence in sentences(compared))
    assert page.count("<th>") == len(accuracy_rows(compared)[0]) + len(cost_rows(compared)[0])
    assert "src=" not in page.replace('src="data:', "") and "http" not in page


def test_arms_without_a_common_seed_are_refused(arms):
    for run in arms["rloo"]:
        record = read_json(run.record)
        record["config"]["seed"] += 10
        write_json(run.record, record)
    with refuses("no-shared"):
        pairs_of(arms["grpo"], arms["rloo"])
