"""Races: the best arm stays, what is behind leaves, and no stop changes the ranking."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from lib.config import ROOT
from lib.errors import BadInput
from lib.runs import Run, read_json, write_json
from lib.suite import configure, main, read_arguments
from lib.sweep import (
    DELTA,
    compare,
    contest,
    find_rungs,
    is_at,
    make_arms,
    read_sweep,
    scores_at,
)
from tests.test_sweep import sweep_file

RUNGS = [2, 3, 6, 12]


def scores_of(**rights: str) -> dict[str, dict[str, float]]:
    return {arm: {str(i): float(x) for i, x in enumerate(text)} for arm, text in rights.items()}


def test_what_is_surely_behind_leaves_and_what_may_be_best_stays():
    scores = scores_of(best="1" * 40 + "0" * 8, near="1" * 38 + "0" * 10, far="1" * 9 + "0" * 39)
    rows = compare(scores, alpha=0.01)
    assert [(row["arm"], row["stays"]) for row in rows] == [
        *(("best", True), ("near", True), ("far", False)),
    ]
    assert rows[2]["difference"] == pytest.approx(-31 / 48) and rows[2]["at_most"] < -0.4
    # With a margin goes what cannot be much better; without a bound the worse half.
    assert [row["stays"] for row in compare(scores, 0.01, margin=0.1)] == [True, False, False]
    assert [row["stays"] for row in compare(scores, 0.0)] == [True, True, False]
    with pytest.raises(BadInput) as error:
        compare(scores | scores_of(other="1" * 47), alpha=0.01)
    assert error.value.key == "no-shared"


@pytest.mark.parametrize(("rate", "apart"), [(0.5, 0.0), (0.2, 0.0), (0.5, 0.1)])
def test_the_best_leaves_no_more_often_than_the_bound_allows(rate, apart):
    """Eight arms, of which one is as good as the others, or a little better; four times."""
    random, delta, races, lost = np.random.default_rng(0), DELTA, 150, 0
    alpha = delta / (8 * 3)
    for _ in range(races):
        hard, lost_now = random.random(64), False
        for _ in range(3):
            draws = (0.5 * random.random((8, 64)) + 0.5 * hard) < rate
            draws[0] |= random.random(64) < apart
            scores = {str(arm): dict(enumerate(map(float, row))) for arm, row in enumerate(draws)}
            lost_now |= not next(r for r in compare(scores, alpha) if r["arm"] == "0")["stays"]
        lost += lost_now
    assert lost / races <= delta


def test_what_left_comes_back_where_the_leader_falls():
    right = {"steady": (20, 25, 30), "slow": (9, 10, 12), "fast": (40, 44, 5)}
    trained = []

    def train(standing, rung):
        trained.append((rung, *standing))
        place = {1: 0, 2: 1, 4: 2}[rung]
        text = {arm: "1" * right[arm][place] + "0" * (48 - right[arm][place]) for arm in standing}
        return scores_of(**text)

    *_, (_, rows, steps) = contest(right, [1, 2, 4], 0.02, 0.0, train)
    assert trained == [(1, *right), (2, "fast"), (4, "fast"), (4, "steady")]
    assert [row["arm"] for row in rows] == ["steady", "slow", "fast"]
    assert steps == {"steady": 4, "slow": 1, "fast": 4}
    # Without a bound what left stays away, and an arm that fails is out.
    *_, (_, rows, _) = contest(right, [1, 4], 0.0, 0.0, train)
    assert [row["arm"] for row in rows] == ["steady", "fast"]
    *_, (_, rows, steps) = contest(right, [1], 0.1, 0.0, lambda arms, _: train(arms[1:], 1))
    assert len(rows) == 2 and steps["steady"] == 0
    assert [*contest(right, [1], 0.1, 0.0, lambda *_: {})] == []


def test_rungs(tmp_path):
    def rungs(arms: int, **keys):
        parameters = {"max_steps": 12, "validation_steps": 12} | keys.pop("parameters", {})
        race = {"rungs": keys.pop("rungs")} if "rungs" in keys else {}
        words = make_arms(read_sweep(sweep_file(tmp_path, parameters=parameters)))
        return find_rungs(race, [configure(*read_arguments(w)) for w in words.values()], arms)

    assert rungs(8) == RUNGS and rungs(2) == [6, 12] and rungs(1) == [6, 12]
    assert rungs(8, rungs=[4]) == [4, 12]
    assert rungs(8, parameters={"num_iterations": 2}) == [2, 4, 6, 12]
    for wrong in ({"rungs": [13]}, {"rungs": ["a"]}, {"parameters": {"validation_steps": 0}}):
        with pytest.raises(BadInput) as error:
            rungs(8, **wrong)
        assert error.value.key == "race"
    with pytest.raises(BadInput):
        rungs(8, parameters={"max_steps": [12, 13]})


def test_a_run_is_cloned_with_a_change(tmp_path):
    run = tmp_path / "small" / "mine"
    origins = {
        "beta": "recipe ci",
        "max_steps": "parameter",
        "epsilon": "default",
        "run": "parameter",
    }
    config = {"beta": 0.2, "max_steps": 3, "epsilon": 0.3, "run": "mine", "seed": 4}
    write_json(
        run / "run.json",
        {"name": "ci", "origins": origins | {"seed": "parameter"}, "config": config},
    )
    parameters = {"beta": [0.0, 0.1], "max_steps": 7}
    path = sweep_file(tmp_path, recipe=None, base="small/mine", parameters=parameters)
    arms = make_arms(read_sweep(path))
    assert list(arms) == ["small/ci-beta0.0_4", "small/ci-beta0.1_4"]
    configs = [configure(*read_arguments(words)) for words in arms.values()]
    assert [(c.beta, c.max_steps, c.epsilon, c.seed) for c in configs] == [
        *((0.0, 7, 0.2, 4), (0.1, 7, 0.2, 4)),
    ]


def race_file(folder: Path, model: Path) -> Path:
    folder.mkdir()
    parameters = dict(max_steps=2, validation_steps=1, validation_problems=4, model=str(model))
    parameters |= dict(learning_rate=[1e-5, 1e-3])
    return sweep_file(folder, parameters=parameters)


def test_a_kill_leads_to_the_same_ranking(tmp_path, first_layers, capsys):
    path = race_file(tmp_path / "raced", first_layers)
    command = [sys.executable, "-m", "lib.suite", "race", str(path)]
    race = subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True)
    first, _ = make_arms(read_sweep(path)).values()
    second_log = tmp_path / "raced" / "small" / "ci-learning_rate0.001_0" / "train_log.jsonl"
    while not second_log.is_file():
        assert race.poll() is None, race.communicate()
        time.sleep(0.1)
    runs = psutil.Process(race.pid).children(recursive=True)
    race.send_signal(signal.SIGKILL)
    psutil.wait_procs(runs, timeout=20)
    assert is_at(first, 1) and not is_at(first, 2)
    assert main(["race", str(path)]) == 0
    out = capsys.readouterr().out
    assert "Step 1 of 2:" in out and "Step 2 of 2:" in out and "is first" in out
    raced = read_json(tmp_path / "raced" / "small" / "race.json")
    assert [each["step"] for each in raced["rounds"]] == [1, 2]
    assert main(["race", str(path)]) == 0  # nothing is trained again
    assert "about" not in capsys.readouterr().out
    assert read_json(tmp_path / "raced" / "small" / "race.json") == raced
    # The slices are the run that was not stopped.
    whole = race_file(tmp_path / "whole", first_layers)
    assert main(["sweep", str(whole)]) == 0
    for name in ("ci-learning_rate1e-05_0", "ci-learning_rate0.001_0"):
        pair = [Run(tmp_path / where / "small" / name) for where in ("raced", "whole")]
        for step in (1, 2):
            assert scores_at(pair[0], step) == scores_at(pair[1], step) != {}
        one, other = ((run.evals / "validation.jsonl").read_text() for run in pair)
        assert one == other
