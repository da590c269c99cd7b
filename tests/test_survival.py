"""A run that is not lost: trainings of the embedded model that were killed, failed, and went on."""

import os
from pathlib import Path

import pytest

from lib.files import read_json, read_jsonl
from lib.runs import Run, is_whole
from lib.training.survival import resume_point
from tests.conftest import python

TIMED = ("seconds", "time/rollouts", "time/hand_over", "step_time", "train_runtime")


@pytest.fixture(scope="module")
def lives(first_layers, tmp_path_factory) -> Path:
    """The run folders that tests/lives.py leaves, and what each training said."""
    folder = tmp_path_factory.mktemp("lives")
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    python("-m", "tests.lives", folder, first_layers, env=quiet)
    return folder


def said(lives: Path, name: str) -> str:
    """The sentence that a training ended with."""
    return (lives / f"{name}.txt").read_text().rstrip().rpartition("\n")[2]


def kept_steps(run: Run) -> list[str]:
    return sorted(path.name for path in run.checkpoints.glob("checkpoint-*") if is_whole(path))


def same_run(one: Run, other: Run, batches: tuple[int, ...] = (1, 2, 3, 4)) -> None:
    """The same log, completions, validation and adapters, bit for bit."""
    logs = [
        [{k: v for k, v in row.items() if k not in TIMED} for row in read_jsonl(run.train_log)]
        for run in (one, other)
    ]
    assert logs[0] == logs[1] and [row["step"] for row in logs[0]] == list(batches)
    rollouts = [f"rollouts/step_{i:05d}.jsonl" for i in batches]
    for name in [*rollouts, "evals/validation.jsonl"]:
        rows = [read_jsonl(run.folder / name) for run in (one, other)]
        assert rows[0] == rows[1] and rows[0], name
    assert read_json(one.best / "validation.json") == read_json(other.best / "validation.json")
    for place in ("adapter", "checkpoints/checkpoint-4"):
        files = [run.folder / place / "adapter_model.safetensors" for run in (one, other)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_killed_failed_and_interrupted_and_resumed_it_is_the_same_run(lives):
    killed, whole = Run(lives / "as_killed"), Run(lives / "whole")
    assert kept_steps(killed) == ["checkpoint-1"], "the one that was being written is not whole"
    assert killed.kept_step() == 1
    assert (killed.checkpoints / "checkpoint-2" / "optimizer.pt").is_file()
    assert len(read_jsonl(killed.train_log)) == 2
    assert "as stop_at says" in said(lives, "sliced")
    assert said(lives, "resumed").startswith("the adapter of step")
    same_run(whole, Run(lives / "stopped"))
    assert kept_steps(whole) == ["checkpoint-3", "checkpoint-4"]
    # The prompts of the second epoch are those of the first in another order.
    asked = [
        {row["id"] for row in read_jsonl(whole.rollouts / f"step_{step:05d}.jsonl")}
        for step in (1, 2, 3, 4)
    ]
    assert asked[0] | asked[1] == asked[2] | asked[3] and asked[2] not in asked[:2]


def test_with_vllms_rollouts_and_two_updates_a_batch_it_is_the_same_run(lives):
    whole, resumed = Run(lives / "vllm"), Run(lives / "vllm_stopped")
    assert "adapter" not in said(lives, "vllm_killed")
    same_run(whole, resumed, batches=(1, 3))
    assert kept_steps(whole) == ["checkpoint-2", "checkpoint-4"]
    assert read_jsonl(whole.train_log)[0]["time/hand_over"] > 0, "vLLM it was"


@pytest.mark.parametrize(
    ("name", "reason", "step"),
    [
        ("vanished", 'The reward "length" failed with FileNotFoundError', 2),
        ("nan", "The gradient of step 3 is not a number (nan)", 2),
        ("interrupted", "Training was interrupted.", 3),  # which lets the step finish
        ("full", "checkpoint-4 could not be written", 3),
    ],
)
def test_what_ends_a_run_is_said_and_costs_no_step(lives, name, reason, step):
    sentence = said(lives, name)
    assert sentence.startswith("Stopped: ") and reason in sentence
    assert sentence.endswith(f"Step {step} is kept: resume goes on from it.")


def test_a_full_disk_leaves_the_checkpoint_before(lives):
    run = Run(lives / "as_interrupted")
    assert kept_steps(run) == ["checkpoint-2", "checkpoint-3"]
    assert not (run.checkpoints / "checkpoint-4").exists(), "the room it took is given back"
    assert "is full" in said(lives, "full_log") and "No step was kept" in said(lives, "full_log")


def test_a_recipe_may_change_before_its_run_goes_on(lives):
    """max_steps, micro_batch, learning_rate: the same prompts at the rate that it now says."""
    log = read_jsonl(lives / "as_interrupted" / "train_log.jsonl")
    # Linear to zero in four steps, and after three of them in five.
    expected = [1e-3, 7.5e-4, 5e-4, 1e-4 * 2 / 5]
    assert [row["learning_rate"] for row in log] == pytest.approx(expected)
    changed, whole = (
        [row["id"] for row in read_jsonl(lives / name / "rollouts" / "step_00004.jsonl")]
        for name in ("as_interrupted", "whole")
    )
    assert changed == whole


def test_a_whole_run_does_no_further_step_and_keeps_no_pickle_that_nothing_reads(lives):
    assert said(lives, "done_before") == said(lives, "whole")
    assert len(read_jsonl(lives / "whole" / "train_log.jsonl")) == 4
    names = {path.name for path in (lives / "whole" / "checkpoints" / "checkpoint-4").iterdir()}
    assert {name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))} == {
        *("optimizer.pt", "scheduler.pt", "rng_state.pth")  # read with weights_only
    }


@pytest.mark.parametrize("rank", [0, 1])
def test_no_process_goes_on_from_half_a_checkpoint(run, monkeypatch, rank):
    """The first deletes it, and the others do not wait for that."""
    monkeypatch.setenv("RANK", str(rank))
    whole, half = (run.checkpoints / f"checkpoint-{step}" for step in (1, 2))
    for place in (whole, half):
        place.mkdir(parents=True)
        (place / "trainer_state.json").write_text("{}")
    (half / "training_args.bin").touch()
    assert resume_point(run) == whole
    assert half.exists() == (rank == 1)
