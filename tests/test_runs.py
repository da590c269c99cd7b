"""The run folder survives a kill, and says what is missing."""

import json
import os
import subprocess
import sys

import pytest

from lib.config import ROOT
from lib.errors import BadInput
from lib.progress import Progress, duration
from lib.runs import Run, append_jsonl, open_run, quiet_process, read_json, read_jsonl, write_json


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
    pure = "answers, rewards, stats, config, runs, tasks, hardware, memory, evaluation"
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
