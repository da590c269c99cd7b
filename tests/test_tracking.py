"""Logging: the real writers, and what they wrote, read back."""

import json
import os
import struct
from types import SimpleNamespace

import pytest

from lib.config import ROOT
from lib.files import append_jsonl
from lib.training import callbacks
from lib.training.tracking import seed_values
from tests.conftest import python

# Two steps as the trainer reports them, and an evaluation after it, as another notebook logs it;
# what Trackio then has; and another evaluation, with a key for a server that is not there.
RUN = """
import json, os, sys
from pathlib import Path
from lib.config import resolve
from lib.hardware import Hardware
from lib.files import append_jsonl
from lib.runs import Run, open_run

given = {"output_dir": sys.argv[1], "profile": "cpu"}
given |= {"report_to": ["tensorboard", "wandb", "trackio"]}
config = resolve("ci", given, Hardware(cores=2, memory=16.0))
run = open_run(config)

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, WandbCallback
from lib.training import tracking
from lib.training.live import Alarm
from lib.training.tracking import log_metrics

class Completions:
    rows = []

tracking.PATIENCE, state = 1, TrainerState()
ours = tracking.Tracking(config, run, Completions)
theirs = dict(tensorboard=TensorBoardCallback, wandb=WandbCallback)
callbacks = [*(kind() for kind in theirs.values()), ours]
args = TrainingArguments(output_dir=str(run.checkpoints), use_cpu=True, report_to="none")
told = args, state, TrainerControl()

def fire(event, **given):
    for callback in callbacks:
        getattr(callback, event)(*told, **given)

fire("on_train_begin")
for step in (1, 2):
    Completions.rows = [
        dict(step=step, id="a", question="2+2?", answer="4", completion=text, rewards={},
             total=total, advantage=total - 1, tokens=3, truncated=False)
        for text, total in (("four", 0.5), ("<answer>4</answer>", 1.5))
    ]
    logs = dict(loss=0.25 * step, reward=1.0, reward_std=0.5, frac_reward_zero_std=0.0,
                learning_rate=1e-5, epoch=0.1 * step) | {"clip_ratio/region_mean": 0.125}
    state.global_step = step
    state.log_history.append({**logs, "step": step})
    fire("on_log", logs=logs)
    ours.alert([Alarm("mostly truncated", step, "90% of the completions were cut off.")])
fire("on_train_end")
log_metrics(run, config, {"eval/pass@1": 0.5, "eval/pass@5": 0.75, "eval/pass@10": 1.0}, 2)
from trackio.sqlite_storage import SQLiteStorage as stored
[name] = stored.get_runs("grpo")
print(json.dumps([stored.get_logs("grpo", name), stored.get_alerts("grpo"),
                  stored.get_traces("grpo", name)]))
import wandb
wandb.teardown()
os.environ |= dict(WANDB_API_KEY="0" * 40, WANDB_BASE_URL="http://127.0.0.1:9")
config = config.model_copy(update={"run": "keyed", "report_to": ["wandb"]})
log_metrics(open_run(config), config, {"eval/pass@1": 0.5}, 2)
print("the run goes on")
"""
LAST = {
    "grpo_loss": 0.5,
    "rewards/mean": 1.0,
    "rewards/std": 0.5,
    "rewards/max": 1.5,
    "rewards/min": 0.5,
    "epoch/accumulated_reward": 16.0,  # 2 steps of 8 completions
    "train/loss": 0.5,
    "train/clip_ratio/region_mean": 0.125,
    "eval/pass@1": 0.5,
    "eval/pass@5": 0.75,
    "eval/pass@10": 1.0,
}
OURS = ("WANDB_", "TRACKIO_")  # of this process's own environment, not of the child's
SAMPLE = {
    "sample/prompt": "2+2?",
    "sample/response": "<answer>4</answer>",
    "sample/answer": "4",
}


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """The output folder of RUN, in a process with a home folder of its own, and its lines."""
    folder = tmp_path_factory.mktemp("logged")
    home, work = folder / "home", folder / "work"
    home.mkdir()
    work.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(OURS)}
    environment = kept | {"PYTHONPATH": str(ROOT), "HOME": str(home)}
    said = python("-c", RUN, folder / "outputs", cwd=work, env=environment)
    assert not any(home.rglob("*")) and not any(work.iterdir())
    return folder / "outputs", said.splitlines()


def in_tensorboard(run, _) -> dict:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert events.Scalars("grpo_loss")[0].step == 1
    last = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
    texts = {tag.removesuffix("/text_summary") for tag in events.Tags()["tensors"]}
    return last | {name: SAMPLE[name] for name in texts & SAMPLE.keys()}


def in_wandb(run, _) -> dict:
    """Of its records, which are protobufs in LevelDB's log format behind 7 bytes of header."""
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    assert len({file.name for file in files}) == 1  # the training's and the evaluation's
    last = {}
    for file in files:
        data, at, part = file.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:  # the rest of a block that no header fits in
                at += 32768 - at % 32768
                continue
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            part += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last part
                for item in Record.FromString(part).history.item:
                    last[item.key or item.nested_key[-1]] = json.loads(item.value_json)
                part = b""
    return last


def in_trackio(_, lines) -> dict:
    logs, alerts, traces = json.loads(lines[0])
    assert [alert["title"] for alert in alerts] == ["mostly truncated"], "each alarm once"
    said = [trace["messages"][-1]["content"] for trace in traces]
    assert sorted(said) == ["<answer>4</answer>"] * 2 + ["four"] * 2
    return {name: value for row in logs for name, value in row.items()}


@pytest.mark.parametrize("last_values", [in_tensorboard, in_wandb, in_trackio])
def test_every_name_is_in_one_run_of_the_tracker(logged, last_values):
    last = last_values(logged[0] / "ci", logged[1])
    assert {name: last[name] for name in SAMPLE} == SAMPLE
    assert {name: last[name] for name in LAST} == pytest.approx(LAST)


def test_without_its_server_wandb_logs_offline(logged):
    """And says so, as all else that is printed; without a key nothing is said."""
    folder, (_, sentence, end) = logged
    assert sentence.startswith("wandb logs offline, since") and end == "the run goes on"
    assert list(folder.glob("keyed/wandb/offline-run-*/*.wandb"))


def test_a_step_without_completions_of_its_own_has_no_sample():
    history = [
        {"reward": 2.0, "epoch": 0.5},
        {"reward": 0.5, "epoch": 1.5},
        {"eval_loss": 1.0, "epoch": 1.6},
        {"reward": 1.0, "epoch": 2.0},
    ]
    values = seed_values(history, [], completions=4)
    assert values["epoch/accumulated_reward"] == 6.0  # of the second epoch alone
    assert not any(name.startswith("sample/") for name in values)


def test_a_runs_energy_is_what_the_cards_took_in_it_also_after_a_resume(
    run, ci_config, monkeypatch
):
    readings = iter([100.0, 103.5, 200.0, 201.0])  # of the counter, in Wh
    monkeypatch.setattr(callbacks, "gpu_energy", lambda: next(readings))
    for step, energy in ((0, 3.5), (1, 4.5)):
        log = callbacks.StepLog(run, ci_config, problems=8)
        log.on_train_begin(SimpleNamespace(max_steps=2), SimpleNamespace(global_step=step), None)
        append_jsonl(run.train_log, [{"step": step + 1, "seconds": 1.0}])
        log.on_train_end(None, None, None)
        assert run.recorded()["energy_wh"] == energy
