"""The live figure: what it draws, what it says beside it, and what it leaves."""

import numpy as np
import pytest

from lib.config import ROOT
from lib.files import read_json, read_jsonl
from lib.plots import pace, panels, training_curves
from lib.training.live import LivePlot

DEMO = ROOT / "tests" / "data" / "demo_train_log.jsonl"  # a real run's
ALWAYS = ["reward", "signal and limits", "completion length", "entropy"]


@pytest.fixture
def log():
    return read_jsonl(DEMO)


def titles(log) -> list[str]:
    return [panel.title for panel in panels(log)]


def test_what_the_log_holds_is_drawn_and_nothing_else(log):
    assert titles(log) == ALWAYS
    assert list(panels(log)[0].lines.values()) == ["total", "correctness", "partial_credit"]
    alone = [{"step": 1, "reward": 0.5, "rewards/correctness/mean": 0.5}]
    assert list(panels(alone)[0].lines.values()) == ["total"]
    log[11] |= {"heldout/strict": 0.4, "heldout/lenient": 0.5}
    log[0] |= {"kl": 0.1}
    assert titles(log) == [
        *(ALWAYS[0], "held-out accuracy", *ALWAYS[1:], "KL to the reference"),
    ]


def test_with_dynamic_sampling_signal_is_drawn_before_and_after(log):
    for row in log:
        row |= {"signal/drawn": 0.5, "signal/trained": 1.0}
    lines = list(panels(log)[1].lines.values())
    assert lines[:2] == ["groups with signal, trained on", "groups with signal, as drawn"]


def test_each_step_is_drawn_and_its_smoothing(log):
    [axis, *_] = training_curves(log, "as it stands").axes
    raw, smoothed = (line.get_ydata() for line in axis.lines[:2])
    assert list(raw) == [row["reward"] for row in log]
    assert smoothed[9] == pytest.approx(np.mean(raw[5:10]))
    [axis, *_] = training_curves(log, weights={"correctness": 0.5}).axes
    total, half, whole = (line.get_ydata() for line in axis.lines[::2])
    assert np.allclose(half + whole, total, atol=1e-3)  # the parts add up
    assert axis.get_legend().texts[1].get_text() == "0.5 × correctness"


def test_held_out_points_stand_at_their_steps(log):
    log[0]["heldout_before/strict"] = 0.1
    for i in (5, 11):
        log[i]["heldout/strict"] = i / 20
    axes = training_curves(log).axes
    assert [axis.axison for axis in axes] == [True] * 5 + [False]
    held_out = axes[1]
    assert held_out.get_title(loc="left") == "held-out accuracy"
    assert held_out.lines[1].get_xydata().tolist() == [[0, 0.1], [6, 0.25], [12, 0.55]]


def test_pace_is_that_of_the_latest_steps():
    slow = [{"step": i, "seconds": 100.0 * i, "num_tokens": 10 * i} for i in range(1, 6)]
    log = slow + [
        {"step": 5 + i, "seconds": 500 + 2.0 * i, "num_tokens": 50 + 1000 * i} for i in range(1, 12)
    ]
    assert pace(log, 100) == "step 16 of 100, 2 min 48 s left, 500 tokens/s"
    assert pace(log, 16) == "step 16 of 16, 8 min 42 s in all, 500 tokens/s"
    assert pace(log[:1], 100) == "step 1 of 100"


def test_the_run_keeps_the_figure_and_the_alarms(log, run):
    with LivePlot(run, 36) as live:
        live.update(log[:5])
        live.update(log[:6])  # within the pause: not drawn
        drawn = (run.figures / "training.png").stat().st_mtime_ns
        truncated = [row | {"completions/clipped_ratio": 0.9} for row in log]
        live.update(truncated)
        assert (run.figures / "training.png").stat().st_mtime_ns == drawn
    [alarm] = read_json(run.folder / "alarms.json")
    assert alarm["name"] == "mostly truncated" and alarm["step"] == 36


def test_a_run_that_never_stepped_leaves_no_figure(run):
    with pytest.raises(ZeroDivisionError), LivePlot(run, 36):
        raise ZeroDivisionError
    assert not run.figures.exists()
