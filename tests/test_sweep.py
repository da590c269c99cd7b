"""Many runs from one file: checked first, resumed, and none takes another with it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from lib.config import ROOT, find_recipe, read_recipe, resolve
from lib.errors import BadInput
from lib.evaluation.runs import find_arms
from lib.runs import Run, open_run, read_json, read_jsonl, write_json
from lib.suite import configure, main, read_arguments
from lib.sweep import make_arms, plan, read_sweep
from tests.conftest import CPU, SMALL

RAISES = "def raises(completions, **columns):\n    raise ZeroDivisionError('no such luck')\n"


def sweep_file(folder: Path, **keys) -> Path:
    """One of the smallest trainings, whose run folders lie in `folder`."""
    parameters = {**SMALL, "output_dir": str(folder), "preflight_prompts": 0, "save_steps": 1}
    parameters |= keys.pop("parameters", {})
    keys = {"name": "small", "recipe": "ci", "only": ["03"], **keys, "parameters": parameters}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in keys.items() if v is not None}))
    return path


def arms_of(path: Path) -> dict[str, list[str]]:
    return make_arms(read_sweep(path))


def test_the_example_of_the_docs_is_a_sweep():
    example = (ROOT / "docs" / "sweep.yaml").read_text()
    assert f"```yaml\n{example}```" in (ROOT / "docs" / "sweeps.md").read_text()
    arms = arms_of(ROOT / "docs" / "sweep.yaml")
    assert len(arms) == 3 * 2 * 3 and next(iter(arms)).startswith("lr/demo-learning")
    configs = [configure(*read_arguments(words)) for words in arms.values()]
    assert {c.learning_rate for c in configs} == {3e-5, 6e-5, 1.2e-4}
    assert [c.seed for c in configs[:4]] == [0, 1, 2, 0] and {c.max_steps for c in configs} == {20}
    assert [c.run_name for c in configs] == list(arms)
    assert not any(finished for _, finished in plan(dict(list(arms.items())[:1])).values())


def test_values_arrive_as_they_were_written(tmp_path):
    values = [1e-5, 3.0], {"correctness": 1.0}, "no", True, [], "a: b", "1e-5"
    path = sweep_file(tmp_path, parameters={"eval_k": [list(each) for each in ([1], [1, 2])]})
    for words, expected in zip(arms_of(path).values(), ([1], [1, 2]), strict=True):
        assert configure(*read_arguments(words)).eval_k == expected
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
    (tmp_path / "small").mkdir()
    write_json(tmp_path / "small" / "run.json", {})
    with pytest.raises(BadInput, match="another name"):
        plan(arms_of(sweep_file(tmp_path)))


def test_what_is_finished_is_not_repeated(tmp_path, capsys):
    path = sweep_file(tmp_path, seeds=[0, 1])
    for words in arms_of(path).values():
        open_run(configure(*read_arguments(words))).note(finished={"03_training": {"seconds": 1}})
    assert [finished for _, finished in plan(arms_of(path)).values()] == [True, True]
    assert main(["sweep", str(path)]) == 0
    assert "2 of them done before" in capsys.readouterr().out
    changed = sweep_file(tmp_path, seeds=[0, 1], parameters={"max_steps": 2})
    assert [finished for _, finished in plan(arms_of(changed)).values()] == [False, False]
    more = sweep_file(tmp_path, seeds=[0, 1], only=["03", "04"])
    assert [finished for _, finished in plan(arms_of(more)).values()] == [False, False]


def test_runs_follow_each_other_and_none_stops_another(tmp_path, capsys):
    assert main(["sweep", str(sweep_file(tmp_path, seeds=[0, 1], only=["04"]))]) == 1
    out = capsys.readouterr().out
    assert "1 of 2: small/ci_0 failed; about" in out and "2 of 2: small/ci_1 failed" in out
    for seed in (0, 1):
        log = tmp_path / "small" / f"ci_{seed}" / "sweep.log"
        said = rf"small/ci_{seed} failed: 04_pass_at_k_eval stopped: .*adapter is not there.*{log}"
        assert re.search(said, out)


def test_ctrl_c_ends_the_run_and_starts_no_other(tmp_path):
    path = sweep_file(tmp_path, seeds=[0, 1], only=["01"])
    command = [sys.executable, "-m", "lib.suite", "sweep", str(path)]
    sweep = subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True)
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
    code = "import sys, lib.sweep; print(lib.sweep.start(sys.argv[1:])[0].pid, flush=True); input()"
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(command, cwd=ROOT, stdin=-1, stdout=-1, text=True) as sweep:
        run = psutil.Process(int(sweep.stdout.readline()))
        sweep.kill()
    assert psutil.wait_procs([run], timeout=10)[1] == []


def test_a_sweep_is_compared_by_its_folder(tmp_path):
    for name in ("ci-beta0.0_0", "ci-beta0.0_1", "ci-beta0.1_0", "compared"):
        folder = tmp_path / "small" / name
        write_json(folder / "run.json", {})
        if name != "compared":
            write_json(folder / "evals" / "trained.json", {})
    config = resolve("ci", {"output_dir": str(tmp_path), "runs": ["small"]}, CPU)
    arms = {arm: [run.folder.name for run in runs] for arm, runs in find_arms(config).items()}
    assert arms == {
        "ci-beta0.0": ["ci-beta0.0_0", "ci-beta0.0_1"],
        "ci-beta0.1": ["ci-beta0.1_0"],
    }


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
    (tmp_path / "raises.py").write_text(RAISES)
    recipes = ["one.yaml", "two.yaml", "broken.yaml"]
    small = {"model": str(first_layers)}
    path = sweep_file(tmp_path, recipe=None, recipes=recipes, seeds=[0], parameters=small)
    command = [sys.executable, "-m", "lib.suite", "sweep", str(path), "--ray", cluster.address]
    sweep = subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True)
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
    assert "small/broken_0 failed: 03_training stopped:" in said and "no such luck" in said
    for each in ("one_0", "two_0"):
        run = Run(tmp_path / "small" / each)
        assert read_json(run.record)["finished"].keys() == {"03_training"}
        assert [row["step"] for row in read_jsonl(run.train_log)] == [1]
        starts = (run.folder / "sweep.log").read_text().count("--- ")
        assert starts == (2 if each == name else 1)
