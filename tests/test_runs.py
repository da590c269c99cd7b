"""The run folder survives a kill, and says what is missing."""

import argparse
import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from lib import files, suite
from lib.config import ROOT, resolve
from lib.errors import BadInput
from lib.files import (
    append_jsonl,
    discard,
    put_back,
    read_json,
    read_jsonl,
    write_json,
    written_whole,
)
from lib.process import Progress, duration, quiet_process
from lib.runs import Run, begin_training, open_run
from tests.conftest import python, refuses


def test_log_with_a_line_cut_short_is_read_up_to_it(tmp_path):
    path = tmp_path / "log.jsonl"
    append_jsonl(path, [{"step": 1}, {"step": 2, "text": "a\nb \u2028 \ud800"}])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 3, "te')
    assert [row["step"] for row in read_jsonl(path)] == [1, 2]
    assert read_jsonl(tmp_path / "none.jsonl") == []


def write_both(place, text: str) -> None:
    with written_whole(place) as beside:
        for name in "ab":
            (beside / name).write_text(text)


def write_and_die(place, moment: int) -> bool:
    """Writes in a process that kills itself before so many changes to the disk; whether it was."""
    changes = iter(range(moment))

    def deadly(change):
        def changed(*args, **kwargs):
            if next(changes, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*args, **kwargs)

        return changed

    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    for owner, name in (
        *((Path, name) for name in ("rename", "mkdir", "write_text", "rmdir")),
        *((os, name) for name in ("fsync", "unlink", "rmdir")),
    ):
        setattr(owner, name, deadly(getattr(owner, name)))
    try:
        write_both(place, "new")
    finally:
        os._exit(0)


def test_a_folder_is_whole_wherever_its_writer_is_killed(tmp_path):
    place, moment, killed = tmp_path / "adapter", 0, True
    while killed:
        write_both(place, "old")
        killed = write_and_die(place, moment)
        put_back(place)
        found = {path.name: path.read_text() for path in place.iterdir()}
        assert found in ({"a": "old", "b": "old"}, {"a": "new", "b": "new"}), moment
        moment += 1
    assert moment > 10 and found["a"] == "new"
    assert os.listdir(tmp_path) == ["adapter"], "nothing is left of those who were killed"


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (OSError("full"), BadInput, r"best could not be written \(full\): make room"),
        (RuntimeError("[enforce fail at inline_container.cc:672]"), BadInput, "make room"),
        (RuntimeError("CUDA error"), RuntimeError, "^CUDA error$"),  # no fault of the disk
    ],
)
def test_a_writer_that_fails_leaves_the_old_folder(tmp_path, error, raised, said):
    place = tmp_path / "best"
    with written_whole(place) as beside:
        (beside / "a").write_text("old")
    with pytest.raises(raised, match=said), written_whole(place) as beside:
        (beside / "a").write_text("new")
        raise error
    assert (place / "a").read_text() == "old" and os.listdir(tmp_path) == ["best"]
    discard(place)
    assert os.listdir(tmp_path) == []


def test_a_resumed_run_drops_what_it_does_again(run):
    for step in (1, 2, 3):
        append_jsonl(run.rollouts / f"step_{step:05d}.jsonl", [{"step": step}])
        append_jsonl(run.train_log, [{"step": step}])
    append_jsonl(run.evals / "validation.jsonl", [{"step": 2}, {"step": 3}])
    with run.train_log.open("a") as log:
        log.write('{"step": 4, "rew')  # a kill in the middle of a line
    assert run.rewind(2) == read_jsonl(run.train_log) == [{"step": 1}, {"step": 2}]
    assert read_jsonl(run.evals / "validation.jsonl") == [{"step": 2}]
    assert len(os.listdir(run.rollouts)) == 2
    append_jsonl(run.train_log, [{"step": 3}])
    assert len(read_jsonl(run.train_log)) == 3


@pytest.mark.parametrize("settled, left", [(1, r"00:0\d"), (2, r"\?")])
def test_progress_tells_the_time_left_and_leaves_no_file(tmp_path, settled, left):
    file, began = tmp_path / "progress.json", time.time()
    progress = Progress(5, "training", file, settled)
    progress.update(1)
    assert json.loads(file.read_text())["line"].startswith("training: 1 of 5 [00:00<?")
    time.sleep(0.6)  # it writes no oftener than twice a second
    progress.update(2, "reward 0.50")
    shown = json.loads(file.read_text())
    assert re.fullmatch(rf"training: 2 of 5 \[00:0\d<{left}, reward 0.50\]", shown["line"])
    # Of 3 steps, of which one has taken 0.6 s.
    most = 3 * (time.time() - began)
    assert shown["seconds_left"] is None if settled > 1 else 1.7 < shown["seconds_left"] < most
    progress.close()
    assert not file.exists()
    times = {8.3: "8 s", 60: "1 min 0 s", 95: "1 min 35 s", 3600: "1 h 0 min", 3720: "1 h 2 min"}
    assert {seconds: duration(seconds) for seconds in times} == times


def test_the_pure_half_is_without_torch():
    pure = "answers, rewards, config, runs, tasks, hardware, memory, evaluation, training"
    code = f"from lib import {pure}; import sys; config.resolve('ci'); print(*sys.modules)"
    assert "torch" not in python("-c", code).split()


def test_a_second_run_of_a_process_keeps_to_its_own_folder(tmp_path, monkeypatch):
    given = {"WANDB_SILENT": "false", "CUDA_VISIBLE_DEVICES": "2,3,4"}
    monkeypatch.setattr(os, "environ", given)
    monkeypatch.setattr("lib.process._SET", {})
    for name, processes, cards in (("first", 2, "2,3"), ("second", 1, "2")):
        quiet_process(Run(tmp_path / name), processes)
        assert os.environ["TRACKIO_DIR"] == str(tmp_path / name / "trackio")
        assert os.environ["CUDA_VISIBLE_DEVICES"] == cards, "TRL refuses a process that sees more"
    assert os.environ["WANDB_SILENT"] == "false", "what a user has set stays"


def configure(tmp_path, resume: bool = False, **given):
    """The configuration as the runner makes it."""
    options = argparse.Namespace(recipe="ci", resume=resume)
    return suite.configure(options, {"output_dir": str(tmp_path), "profile": "cpu"} | given)


def trained(config, weight: float = 1.0) -> Run:
    """A run folder as 03 and 04 leave it."""
    run = open_run(config)
    write_json(run.evals / "base.json", {})  # may be measured before it is trained
    begin_training(config, run)
    write_adapter(run, weight)
    append_jsonl(run.train_log, [{"step": 1}])
    write_json(run.evals / "comparison.json", {})
    run.report.write_text("<html><body>better</body></html>")
    run.notebooks.mkdir(exist_ok=True)
    for name in (f"{n}.{end}" for n in ("01", "03", "04") for end in ("html", "ipynb")):
        (run.notebooks / name).touch()
    run.note(finished={name: {} for name in ("01_setup", "03_training", "06_reward_model")})
    return run


def write_adapter(run: Run, weight: float) -> None:
    from safetensors.numpy import save_file

    with run.new_adapter() as beside:
        save_file({"a": np.full(4, weight)}, beside / "adapter_model.safetensors")


def test_parameters_that_make_another_training_give_a_name_of_their_own(tmp_path):
    def name(**given):
        return configure(tmp_path, **given).run_name

    assert name() == name(seed=0) == name(eval_problems=4, micro_batch=4) == "ci"
    assert name(per_device_train_batch_size=4, vllm_gpu_memory_utilization=0.4) == "ci"
    assert name(seed=1) == "ci-seed1" and name(seed=2, max_steps=3) == "ci-max_steps3-seed2"
    assert name(seed=1, run="mine") == "mine"
    rewards = [name(rewards={"correctness": weight}) for weight in (1.0, 2.0)]
    assert len(set(rewards)) == 2 and all(re.fullmatch(r"ci-[0-9a-f]{8}", n) for n in rewards)
    # A run goes on in the folder that it has.
    open_run(configure(tmp_path))
    assert name(resume=True, max_steps=9) == "ci" and name(max_steps=9) == "ci-max_steps9"
    open_run(configure(tmp_path, max_steps=9))
    assert name(resume=True, max_steps=9) == "ci-max_steps9"


def test_a_training_begun_anew_puts_aside_all_that_was_made_of_the_last(tmp_path):
    config = configure(tmp_path)
    run = trained(config)
    again = configure(tmp_path, run="ci", max_steps=1)
    open_run(again)
    assert run.recorded()["config"]["max_steps"] == 2, "the record is of what was trained"
    begin_training(again, run)
    [aside] = (run.folder / "previous").iterdir()
    old = Run(aside)
    assert old.adapter.is_dir() and old.report.is_file() and old.evals.is_dir()
    assert old.recorded()["config"]["max_steps"] == 2
    assert not (run.adapter.exists() or run.report.exists() or any(run.evals.iterdir()))
    assert run.recorded()["config"]["max_steps"] == 1
    assert list(run.recorded()["finished"]) == ["01_setup", "06_reward_model"]
    assert sorted(os.listdir(run.notebooks)) == ["01.html", "01.ipynb", "03.ipynb"]
    assert sorted(os.listdir(old.notebooks)) == ["03.html", "04.html", "04.ipynb"]
    begin_training(again, run)  # nothing to put aside
    assert len(list((run.folder / "previous").iterdir())) == 1
    run.train_log.touch()
    os.utime(run.notebooks / "03.ipynb", (1, 1))  # of another kernel, as where Jupyter trains
    begin_training(again, run)
    assert sorted(os.listdir(run.notebooks)) == ["01.html", "01.ipynb"]


def test_an_evaluation_made_in_another_way_is_kept(tmp_path):
    run = trained(configure(tmp_path))
    for name in ("trained.jsonl", "validation.jsonl", "certificate.json"):
        (run.evals / name).touch()
    aside = Run(run.put_aside_evaluation("trained"))
    assert sorted(os.listdir(aside.evals)) == ["comparison.json", "trained.jsonl"]
    assert aside.report.is_file() and run.adapter.is_dir()
    (run.evals / "trained.json").touch()
    aside = Run(run.put_aside_evaluation("base"))  # with which go all
    assert sorted(os.listdir(aside.evals)) == ["base.json", "trained.json"]
    assert sorted(os.listdir(run.evals)) == ["certificate.json", "validation.jsonl"]
    assert run.put_aside_evaluation("base") is None
    run.put_aside(run.adapter)
    assert not run.adapter.exists() and len(list((run.folder / "previous").glob("*/adapter"))) == 1


def test_putting_aside_can_be_killed(tmp_path, monkeypatch):
    run, renamed = trained(configure(tmp_path)), []

    class Killed(BaseException):
        pass

    def dies_at_the_third(path, target, rename=Path.rename):
        renamed.append(path)
        if len(renamed) == 3:
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "rename", dies_at_the_third)
        run.put_aside_training()
    aside = Run(run.put_aside_training())
    assert aside.adapter.is_dir() and aside.evals.is_dir() and aside.train_log.is_file()
    assert not (run.folder / "previous" / ".begun").exists()


def test_what_was_made_from_another_adapter_makes_way(tmp_path):
    run = trained(configure(tmp_path))
    write_adapter(run, 1.0)  # as a training that was resumed at its end
    assert run.report.is_file() and not (run.folder / "previous").exists()
    write_adapter(run, 2.0)
    [aside] = (run.folder / "previous").iterdir()
    assert (aside / "report.html").is_file() and (aside / "evals" / "comparison.json").is_file()
    assert os.listdir(run.evals) == ["base.json"] and run.train_log.is_file()
    assert list(run.recorded()["finished"]) == ["01_setup", "03_training", "06_reward_model"]


def test_where_no_run_can_be_written_is_told_before_anything_is(tmp_path):
    (tmp_path / "file").touch()
    for output_dir, run, key in (
        (tmp_path / "file", "", "output-dir"),
        (tmp_path / "file" / "deeper", "", "output-dir"),
        ("/proc", "x", "output-dir"),
        (tmp_path, "../x", "run-name"),
        (tmp_path, "/x", "run-name"),
        (tmp_path, "~", "run-name"),
        (tmp_path, ".cache", "run-name"),
        (tmp_path, "x" * 300, "run-name"),
        ("x" * 300, "r", "path"),
    ):
        with refuses(key):
            open_run(resolve("ci", {"output_dir": str(output_dir), "run": run}))
    assert os.listdir(tmp_path) == ["file"]


def test_json_is_replaced_whole_and_utf8_in_every_locale(tmp_path):
    code = "import sys; from pathlib import Path; from lib.files import write_json;"
    code += "write_json(Path(sys.argv[1]), {'a': '\\u00fc \\u2192'})"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"a": 1})
    python("-c", code, path, env=environment)
    assert read_json(path) == {"a": "ü →"} and os.listdir(path.parent) == ["a.json"]


def test_a_checkout_that_cannot_be_written_to_has_its_cache_elsewhere(monkeypatch, tmp_path):
    assert files.cache_folder() == ROOT / "outputs" / ".cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("lib.files.os.access", lambda path, mode: False)
    assert files.cache_folder() == tmp_path / "grpo-notebooks"


PROGRAM = """
import importlib.util, os
from pathlib import Path
from lib.process import keep_byte_code
keep_byte_code()
import lib.stack
cached = Path(importlib.util.cache_from_source(lib.stack.__file__))
print(cached.is_file() and cached.is_relative_to(os.environ["GRPO_CACHE"]))
print(*map(os.environ.get, ("PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE")))
"""


def test_byte_code_is_kept_apart_where_it_may_not_lie_beside_its_source(tmp_path):
    """And elsewhere Python keeps its own way."""
    bare = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    bare["GRPO_CACHE"] = str(tmp_path / "cache")
    ours, elsewhere = str(tmp_path / "cache" / "bytecode"), str(tmp_path / "elsewhere")
    forbidden = {"PYTHONDONTWRITEBYTECODE": "1"}
    for given, says in (
        (forbidden, ["True", ours, "None"]),
        (forbidden | {"PYTHONPYCACHEPREFIX": elsewhere}, ["False", elsewhere, "1"]),
        ({"PYTHONPYCACHEPREFIX": elsewhere}, ["False", elsewhere, "None"]),
    ):
        assert python("-c", PROGRAM, env=bare | given).split() == says
