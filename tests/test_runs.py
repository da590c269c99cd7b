"""The run folder survives a kill, and says what is missing."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lib.config import ROOT
from lib.errors import BadInput
from lib.progress import Progress, duration
from lib.runs import (
    Run,
    append_jsonl,
    discard,
    open_run,
    put_back,
    quiet_process,
    read_json,
    read_jsonl,
    write_json,
    written_whole,
)


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": "ü"})
    assert read_json(path) == {"a": "ü"}
    assert os.listdir(path.parent) == ["a.json"]


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


def test_a_writer_that_fails_leaves_the_old_folder(tmp_path):
    place = tmp_path / "best"
    with written_whole(place) as beside:
        (beside / "a").write_text("old")
    with (
        pytest.raises(BadInput, match=r"best could not be written \(full\): make room"),
        written_whole(place) as beside,
    ):
        (beside / "a").write_text("new")
        raise OSError("full")
    assert (place / "a").read_text() == "old" and os.listdir(tmp_path) == ["best"]
    discard(place)
    assert os.listdir(tmp_path) == []


def test_a_resumed_run_drops_what_it_does_again(run):
    for step in (1, 2, 3):
        append_jsonl(run.rollouts / f"step_{step:05d}.jsonl", [{"step": step}])
        run.log_step({"step": step})
    append_jsonl(run.evals / "validation.jsonl", [{"step": 2}, {"step": 3}])
    with run.train_log.open("a") as log:
        log.write('{"step": 4, "rew')  # a kill in the middle of a line
    assert run.rewind(2) == read_jsonl(run.train_log) == [{"step": 1}, {"step": 2}]
    assert read_jsonl(run.evals / "validation.jsonl") == [{"step": 2}]
    assert len(os.listdir(run.rollouts)) == 2
    run.log_step({"step": 3})
    assert len(read_jsonl(run.train_log)) == 3


def test_run_record(ci_config):
    run = open_run(ci_config)
    record = read_json(run.record)
    assert record["config"]["max_steps"] == 2
    assert record["origins"]["max_steps"] == "recipe ci"
    assert record["versions"]["trl"] == "1.15.0"
    assert record["hardware"]["cores"] >= 1


def test_what_an_earlier_notebook_left_is_asked_for(run):
    with pytest.raises(BadInput, match="adapter is not there: run 03_training for this run first"):
        run.need(run.adapter, made_by="03_training")


def test_full_disk_is_told(run):
    with pytest.raises(BadInput, match=r"The checkpoint needs 1000000\.0 GiB and .* GiB free"):
        run.need_disk(1e6, "The checkpoint")


def test_duration():
    assert [duration(s) for s in (8.3, 95, 3720)] == ["8 s", "1 min 35 s", "1 h 2 min"]


def test_progress_tells_the_time_left_and_leaves_no_file(tmp_path, monkeypatch):
    file, clock = tmp_path / "progress.json", iter(range(0, 1000, 10))
    monkeypatch.setattr("lib.progress.time.time", lambda: next(clock))
    progress = Progress(5, "training", file)
    progress.update(1)
    progress.update(2, "reward 0.50")
    line = json.loads(file.read_text())["line"]
    assert line.startswith("training: 2 of 5, ") and line.endswith("left (reward 0.50)")
    progress.close()
    assert not file.exists()


def test_importing_the_pure_half_is_quick_and_without_torch():
    pure = "answers, rewards, config, runs, tasks, hardware, memory, evaluation"
    code = f"from lib import {pure}; import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_a_second_run_of_a_process_keeps_to_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", {"WANDB_SILENT": "false"})
    monkeypatch.setattr("lib.runs._SET", {})
    for name in ("first", "second"):
        quiet_process(Run(tmp_path / name))
        assert os.environ["TRACKIO_DIR"] == str(tmp_path / name / "trackio")
    assert os.environ["WANDB_SILENT"] == "false", "what a user has set stays"
