"""Many runs from one file: checked first, resumed, and none takes another with it; and races, in
which the best arm stays, what is behind leaves, and no stop changes the ranking."""

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from lib.config import ROOT, find_recipe, read_recipe, resolve
from lib.errors import BadInput
from lib.evaluation.runs import find_arms
from lib.files import read_json, read_jsonl, write_json
from lib.runs import Run, open_run
from lib.suite import configure, main, read_arguments
from lib.sweep import (
    RACE_KEYS,
    arm_of,
    compare,
    contest,
    find_rungs,
    is_at,
    make_arms,
    plan,
    read_sweep,
    scores_at,
)
from tests.conftest import CPU, SMALL, refuses, start_suite


def sweep_file(folder: Path, **keys) -> Path:
    """One of the smallest trainings, whose run folders lie in `folder`."""
    folder.mkdir(exist_ok=True)
    parameters = {**SMALL, "output_dir": str(folder), "preflight_prompts": 0, "save_steps": 1}
    parameters |= keys.pop("parameters", {})
    keys = {"name": "small", "recipe": "ci", "only": ["03"], **keys, "parameters": parameters}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in keys.items() if v is not None}))
    return path


def arms_of(path: Path) -> dict[str, list[str]]:
    return make_arms(read_sweep(path))


def configs_of(path: Path) -> list:
    return [configure(*read_arguments(words)) for words in arms_of(path).values()]


def finished(path: Path) -> list[bool]:
    return [done for _, done in plan(arms_of(path)).values()]


def test_the_example_of_the_docs_is_a_sweep():
    example = (ROOT / "docs" / "sweep.yaml").read_text()
    assert f"```yaml\n{example}```" in (ROOT / "docs" / "sweeps.md").read_text()
    arms, configs = arms_of(ROOT / "docs" / "sweep.yaml"), configs_of(ROOT / "docs" / "sweep.yaml")
    assert len(arms) == 3 * 2 * 3 and next(iter(arms)).startswith("lr/demo-learning")
    assert {c.learning_rate for c in configs} == {3e-5, 6e-5, 1.2e-4}
    assert [c.seed for c in configs[:4]] == [0, 1, 2, 0] and {c.max_steps for c in configs} == {20}
    assert [c.run_name for c in configs] == list(arms)


def test_values_arrive_as_they_were_written(tmp_path):
    values = [1e-5, 3.0], {"correctness": 1.0}, "no", True, [], "a: b", "1e-5"
    path = sweep_file(tmp_path, parameters={"eval_k": [[1], [1, 2]]})
    assert [config.eval_k for config in configs_of(path)] == [[1], [1, 2]]
    path = sweep_file(tmp_path, parameters={"variants": [{"x": each} for each in values]})
    given = [read_arguments(words)[1]["variants"]["x"] for words in arms_of(path).values()]
    assert given == list(values)


@pytest.mark.parametrize(
    ("keys", "key", "word"),
    [
        ({"parameter": {"beta": [0.0]}}, "unknown-key", '"parameters"'),
        ({"seeds": 3}, "value", "seeds"),
        ({"recipe": None}, "no-recipe", "recipe"),
        ({"recipe": "cii"}, "", '"ci"'),
        ({"parameters": {"seed": [1, 2]}}, "value", "seed"),
        ({"parameters": {"beta": []}}, "value", "no values"),
        ({"parameters": {"bata": [0.0]}}, "unknown-key", '"beta"'),
        ({"parameters": {"beta": [0.0, "much"]}}, "value", "betamuch"),
        ({"parameters": {"beta": [0.1, 0.10]}}, "equal-names", "beta0.1"),
        ({"seeds": [-1]}, "value", "seed"),
        ({"only": ["33"]}, "only", "33"),
        ({"name": "../up"}, "", "run"),
        ({"parameters": {"task": ["gsm8", "aqua"]}}, "", "gsm8k"),
    ],
)
def test_all_is_checked_before_anything_starts(tmp_path, keys, key, word):
    with pytest.raises(BadInput, match=re.escape(word)) as error:
        plan(arms_of(sweep_file(tmp_path, **keys)))
    assert error.value.key == key or not key
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]


def test_a_sweep_is_not_put_into_a_run(tmp_path):
    write_json(tmp_path / "small" / "run.json", {})
    with pytest.raises(BadInput, match="another name"):
        plan(arms_of(sweep_file(tmp_path)))


def test_of_two_of_one_file_at_once_the_second_stops(tmp_path, capsys):
    path = sweep_file(tmp_path / "out")
    with (tmp_path / "out" / ".small.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["sweep", str(path)]) == 2
    assert "The run small is being written by another process" in capsys.readouterr().err
    assert not (tmp_path / "out" / "small").exists()


def test_what_is_finished_is_not_repeated(tmp_path, capsys):
    path = sweep_file(tmp_path, seeds=[0, 1])
    assert finished(path) == [False, False]
    for config in configs_of(path):
        open_run(config).note(finished={"03_training": {"seconds": 1}})
    assert finished(path) == [True, True]
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    assert main(["sweep", str(path)]) == 0
    assert [signal.getsignal(number) for number in numbers] == handlers
    assert "2 of them done before" in capsys.readouterr().out
    for change in ({"parameters": {"max_steps": 2}}, {"only": ["03", "04"]}):
        assert finished(sweep_file(tmp_path, seeds=[0, 1], **change)) == [False, False]


def test_runs_follow_each_other_and_none_stops_another(tmp_path, capsys):
    assert main(["sweep", str(sweep_file(tmp_path, seeds=[0, 1], only=["05"]))]) == 1
    out = capsys.readouterr().out
    assert "1 of 2: small/ci_0 failed; about" in out and "2 of 2: small/ci_1 failed" in out
    for seed in (0, 1):
        log = tmp_path / "small" / f"ci_{seed}" / "sweep.log"
        said = rf"small/ci_{seed} failed: 05_merge_export stopped: .*adapter is not there.*{log}"
        assert re.search(said, out)


def test_ctrl_c_ends_the_run_and_starts_no_other(tmp_path):
    sweep = start_suite("sweep", sweep_file(tmp_path, seeds=[0, 1], only=["01"]))
    while len(runs := psutil.Process(sweep.pid).children(recursive=True)) < 2:  # with its kernel
        assert sweep.poll() is None, sweep.communicate()
        time.sleep(0.1)
    sweep.send_signal(signal.SIGINT)
    out, errors = sweep.communicate()
    assert sweep.returncode == 130 and "Traceback" not in out + errors
    assert "Interrupted: the same command goes on from there." in errors
    assert psutil.wait_procs(runs, timeout=10)[1] == []
    assert [each.name for each in (tmp_path / "small").glob("ci_*")] == ["ci_0"]


def test_a_run_ends_with_its_sweep(tmp_path):
    [words] = arms_of(sweep_file(tmp_path, parameters={"max_steps": 500})).values()
    code = (
        "import sys, lib.sweep as s; print(s.start(sys.argv[1:], '7')[0].pid, flush=True); input()"
    )
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(command, cwd=ROOT, stdin=-1, stdout=-1, text=True) as sweep:
        run = psutil.Process(int(sweep.stdout.readline()))
        assert run.environ()["CUDA_VISIBLE_DEVICES"] == "7"
        sweep.kill()
    assert psutil.wait_procs([run], timeout=10)[1] == []


def test_a_sweep_is_compared_by_its_folder(tmp_path):
    for name in ("ci-beta0.0_0", "ci-beta0.0_1", "ci-beta0.1_0"):
        write_json(tmp_path / "small" / name / "run.json", {})
        write_json(tmp_path / "small" / name / "evals" / "trained.json", {})
    write_json(tmp_path / "small" / "compared" / "run.json", {})
    config = resolve("ci", {"output_dir": str(tmp_path), "runs": ["small"]}, CPU)
    arms = {arm: [run.folder.name for run in runs] for arm, runs in find_arms(config).items()}
    assert arms == {
        "ci-beta0.0": ["ci-beta0.0_0", "ci-beta0.0_1"],
        "ci-beta0.1": ["ci-beta0.1_0"],
    }


def test_a_run_is_cloned_with_a_change(tmp_path):
    origins = {"beta": "recipe ci", "epsilon": "default"}
    origins |= dict.fromkeys(("max_steps", "run", "seed"), "parameter")
    config = {"beta": 0.2, "max_steps": 3, "epsilon": 0.3, "run": "mine", "seed": 4}
    record = {"name": "ci", "origins": origins, "config": config}
    write_json(tmp_path / "small" / "mine" / "run.json", record)
    parameters = {"beta": [0.0, 0.1], "max_steps": 7}
    path = sweep_file(tmp_path, recipe=None, base="small/mine", parameters=parameters)
    assert list(arms_of(path)) == ["small/ci-beta0.0_4", "small/ci-beta0.1_4"]
    settings = [(c.beta, c.max_steps, c.epsilon, c.seed) for c in configs_of(path)]
    assert settings == [(0.0, 7, 0.2, 4), (0.1, 7, 0.2, 4)]


# --- a cluster --------------------------------------------------------------------------------


def test_without_ray_it_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["sweep", str(sweep_file(tmp_path)), "--ray", "auto"]) == 2
    assert "--ray needs Ray: pip install" in capsys.readouterr().err


def test_a_cluster_that_is_not_there_is_one_sentence(tmp_path, capsys):
    pytest.importorskip("ray", reason="Ray, an extra, is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert main(["sweep", str(sweep_file(tmp_path)), "--ray", address]) == 2
    assert f"No Ray cluster at {address}: " in capsys.readouterr().err


@pytest.fixture
def cluster(monkeypatch):
    """Ray on this machine: two nodes with a core each; none of its processes is left."""
    pytest.importorskip("ray", reason="Ray, an extra, is not installed")
    # Else Ray takes 127.0.0.1 for the address by which others reach this machine.
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    one = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20}
    one |= {"node_ip_address": "127.0.0.1", "include_dashboard": False}
    one |= {"include_log_monitor": False, "no_monitor": True}  # five seconds of processor
    before = set(psutil.Process().children(recursive=True))
    cluster = Cluster(initialize_head=True, head_node_args=one)
    try:
        cluster.lost = cluster.add_node(**one)
        yield cluster
    finally:
        cluster.shutdown()
        left = set(psutil.Process().children(recursive=True)) - before
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        assert psutil.wait_procs(left, timeout=20)[1] == []


def test_a_lost_worker_and_a_failing_run_take_no_other_with_them(tmp_path, cluster, first_layers):
    recipe = read_recipe(find_recipe("ci"))
    for name in ("one", "two", "broken"):
        rewards = {"rewards": {"raises.py:raises": 1.0}} if name == "broken" else {}
        text = yaml.safe_dump(recipe | rewards | {"name": name})
        (tmp_path / f"{name}.yaml").write_text(text)
    raises = "def raises(completions, **columns):\n    raise ZeroDivisionError('no such luck')\n"
    (tmp_path / "raises.py").write_text(raises)
    recipes = ["one.yaml", "two.yaml", "broken.yaml"]
    given = dict(recipe=None, recipes=recipes, seeds=[0], parameters={"model": str(first_layers)})
    path = sweep_file(tmp_path, **given, only=["01"])
    sweep = start_suite("sweep", path, "--ray", cluster.address)
    raylet = cluster.lost.all_processes["raylet"][0].process.pid

    def run_of_lost_worker() -> str:
        """The run folder's name, once its notebook is being executed."""
        for process in psutil.Process(raylet).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                named = re.search(r"small/(one_0|two_0)", " ".join(process.cmdline()))
                if named and process.children():
                    return named[1]
        return ""

    until = time.time() + 240
    while not (name := run_of_lost_worker()):
        assert sweep.poll() is None and time.time() < until, (sweep.kill(), sweep.communicate())
        time.sleep(0.2)
    lost = psutil.Process(raylet).children(recursive=True)
    for process in lost:
        if process.name().startswith("ray::"):  # not the run itself, which is to end with them
            process.kill()
    os.kill(raylet, signal.SIGKILL)
    assert psutil.wait_procs(lost, timeout=30)[1] == []
    out, errors = sweep.communicate(timeout=400)
    assert sweep.returncode == 1, out + errors
    assert "Traceback" not in out + errors
    [said] = [line for line in out.splitlines() if " failed: " in line]
    assert "small/broken_0 failed: 01_setup stopped:" in said and "no such luck" in said
    for each in ("one_0", "two_0"):
        run = Run(tmp_path / "small" / each)
        assert read_json(run.record)["finished"].keys() == {"01_setup"}
        starts = (run.folder / "sweep.log").read_text().count("--- ")
        assert starts == (2 if each == name else 1)


# --- races ------------------------------------------------------------------------------------


def scores_of(**right: int) -> dict[str, dict[str, float]]:
    """Arm → how many of 48 problems it answers, the first ones."""
    return {arm: {str(i): float(i < n) for i in range(48)} for arm, n in right.items()}


def test_what_is_surely_behind_leaves_and_what_may_be_best_stays():
    scores = scores_of(best=40, near=38, far=9)
    rows = compare(scores, alpha=0.01)
    assert [(r["arm"], r["stays"]) for r in rows] == [
        ("best", True),
        ("near", True),
        ("far", False),
    ]
    assert rows[2]["difference"] == pytest.approx(-31 / 48) and rows[2]["at_most"] < -0.4
    # With a margin goes what cannot be much better; without a bound the worse half.
    assert [row["stays"] for row in compare(scores, 0.01, margin=0.1)] == [True, False, False]
    assert [row["stays"] for row in compare(scores, 0.0)] == [True, True, False]
    with refuses("no-shared"):
        compare(scores | {"other": {"0": 1.0}}, alpha=0.01)


@pytest.mark.parametrize(("rate", "apart"), [(0.5, 0.0), (0.2, 0.0), (0.5, 0.1)])
def test_the_best_leaves_no_more_often_than_the_bound_allows(rate, apart):
    """Eight arms, of which one is as good as the others, or a little better; four times."""
    random, delta, races, lost = np.random.default_rng(0), 0.2, 150, 0
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


def test_what_left_comes_back_where_the_others_fall_below_it():
    right = {"steady": (20, 25, 30), "slow": (9, 10, 12), "fast": (40, 44, 15)}
    trained = []

    def train(standing, rung):
        trained.append((rung, *standing))
        return scores_of(**{arm: right[arm][{1: 0, 2: 1, 4: 2}[rung]] for arm in standing})

    *_, (_, rows, steps) = contest(right, [1, 2, 4], 0.02, 0.0, train)
    assert trained == [(1, *right), (2, "fast"), (4, "fast"), (4, "steady")]
    assert [row["arm"] for row in rows] == ["steady", "fast"]
    assert steps == {"steady": 4, "slow": 1, "fast": 4}
    # So it does in plain halving; an arm that fails is out.
    *_, (_, rows, _) = contest(right, [1, 2, 4], 0.0, 0.0, train)
    assert [row["arm"] for row in rows] == ["steady", "fast"] and trained[-1] == (4, "steady")
    *_, (_, rows, steps) = contest(right, [1], 0.1, 0.0, lambda arms, _: train(arms[1:], 1))
    assert len(rows) == 2 and steps["steady"] == 0
    assert [*contest(right, [1], 0.1, 0.0, lambda *_: {})] == []
    right["fast"] = (40, 44, 20)  # as many as "steady" had
    *_, (_, rows, steps) = contest(right, [1, 2, 4], 0.02, 0.0, train)
    assert [row["arm"] for row in rows] == ["fast"] and steps["steady"] == 1


def test_rungs(tmp_path):
    def rungs(arms: int, given: list | None = None, **changes):
        parameters = {"max_steps": 12, "validation_steps": 12} | changes
        configs = configs_of(sweep_file(tmp_path, parameters=parameters))
        return find_rungs({"rungs": given} if given else {}, configs, arms)

    assert rungs(8) == [2, 3, 6, 12] and rungs(2) == [6, 12] and rungs(1) == [6, 12]
    assert rungs(8, [4]) == [4, 12]
    assert rungs(8, num_iterations=2) == [2, 4, 6, 12]
    for wrong in (
        ([13], {}),
        (["a"], {}),
        ([], {"validation_steps": 0}),
        ([], {"max_steps": [1, 2]}),
    ):
        with refuses("race"):
            rungs(8, wrong[0], **wrong[1])


def test_a_killed_race_goes_on_to_its_ranking(tmp_path, first_layers, capsys):
    """That its slices make the run that was not stopped: tests/test_survival.py ("sliced")."""
    small = dict(max_steps=2, validation_steps=1, validation_problems=4, model=str(first_layers))
    path = sweep_file(tmp_path, parameters=small | {"learning_rate": [1e-5, 1e-3]}, delta=1)
    race = start_suite("race", path)
    first, _ = make_arms(read_sweep(path, RACE_KEYS)).values()
    folder, second = tmp_path / "small", "ci-learning_rate0.001_0"
    while not (folder / second / "run.json").is_file():
        assert race.poll() is None, race.communicate()
        time.sleep(0.1)
    runs = psutil.Process(race.pid).children(recursive=True)
    race.send_signal(signal.SIGKILL)
    psutil.wait_procs(runs, timeout=20)
    assert is_at(first, 1) and not is_at(first, 2)
    assert main(["race", str(path)]) == 0
    out = capsys.readouterr().out
    assert "Step 1 of 2:" in out and "Step 2 of 2:" in out and "is first. 75% of all" in out
    raced = read_json(folder / "race.json")
    assert [each["step"] for each in raced["rounds"]] == [1, 2]
    assert main(["race", str(path)]) == 0  # nothing is trained again
    assert "about" not in capsys.readouterr().out
    assert read_json(folder / "race.json") == raced
    cells = read_json(arm_of(first)[2].notebooks / "03_training.ipynb")["cells"]
    [trains] = [cell for cell in cells if "trainer.train(" in "".join(cell["source"])]
    shown = [output["data"] for output in trains["outputs"] if "data" in output]
    assert sum("image/png" in data for data in shown) == 1, "the live figure is drawn in place"
    [trained] = {row["arm"] for row in raced["rounds"][1]["arms"]}
    for arm in folder.glob("ci-*"):
        steps = [1, 2] if arm.name.startswith(trained.rpartition("/")[2]) else [1]
        assert [row["step"] for row in read_jsonl(arm / "train_log.jsonl")] == steps
        assert len({tuple(scores_at(Run(arm), step)) for step in steps}) == 1
