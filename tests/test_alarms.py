"""Alarms: silent on a healthy run, and each rings on what it is for and on nothing else."""

import numpy as np
import pytest

from lib.config import ROOT
from lib.files import read_jsonl
from lib.training.live import WINDOW, alarms

DATA = ROOT / "tests" / "data"
DEMO = DATA / "demo_train_log.jsonl"  # of a real run
TOO_FAST = DATA / "demo_too_fast_train_log.jsonl"  # of one at 8 times its learning rate
STEPS = 40


def ramp(start: float, end: float, noise: float = 0.0) -> np.ndarray:
    scatter = np.random.default_rng(0).normal(0, noise, STEPS)
    return np.linspace(start, end, STEPS) + scatter


HEALTHY = {
    "reward": ramp(0.2, 0.9, 0.05),
    "rewards/correctness/mean": ramp(0.1, 0.5, 0.03),
    "rewards/correctness/std": ramp(0.3, 0.4),
    "rewards/hard_format/mean": ramp(0.1, 0.4, 0.03),
    "rewards/hard_format/std": ramp(0.4, 0.3),
    "rewards/soft_overlong/mean": ramp(0, 0),
    "rewards/soft_overlong/std": ramp(0, 0),
    "frac_reward_zero_std": ramp(0.1, 0.4),
    "completions/mean_length": ramp(120, 180, 5),
    "completions/clipped_ratio": ramp(0.2, 0.05),
    "entropy": ramp(1.2, 0.2, 0.01),
    "kl": ramp(0, 0.08),
    "heldout/strict": ramp(0.3, 0.5, 0.02),
    "sampling/sampling_logp_difference/mean": ramp(0.01, 0.02),
}
FLAT = {"reward": ramp(0.3, 0.3, 0.05)}
WRONG = {
    "reward flat": FLAT,
    "reward fell": {"reward": np.concatenate([ramp(0.2, 0.8)[:25], ramp(0.2, 0.2)[:15]])},
    "groups without signal": {"frac_reward_zero_std": ramp(0.2, 0.95)},
    "mostly truncated": {"completions/clipped_ratio": ramp(0.2, 0.8)},
    "length explosion": FLAT | {"completions/mean_length": ramp(100, 400)},
    "length collapse": FLAT | {"completions/mean_length": ramp(100, 5)},
    "entropy collapse": {"entropy": np.maximum(ramp(1.0, -0.5), 0.004)},
    "KL blow-up": {"kl": ramp(0, 4)},
    "one reward drives all": {"rewards/correctness/mean": ramp(0.05, 0.05, 0.03)},
    "train up, held-out down": {"heldout/strict": ramp(0.7, 0.3)},
    "sampler and trainer apart": {"sampling/sampling_logp_difference/mean": ramp(0.01, 0.4)},
}


def log_of(columns: dict) -> list[dict]:
    rows = zip(*columns.values(), strict=True)
    return [{"step": i} | dict(zip(columns, row, strict=True)) for i, row in enumerate(rows, 1)]


def names(log, weights=None) -> list[str]:
    return [alarm.name for alarm in alarms(log, weights)]


def test_a_real_run_that_learned_rings_nothing_at_any_step():
    log = read_jsonl(DEMO)
    assert len(log) == 36
    for steps in range(len(log) + 1):
        assert names(log[:steps], {"correctness": 0.5, "partial_credit": 1.0}) == []


def test_a_real_run_that_broke_rings_once_it_broke():
    log = read_jsonl(TOO_FAST)
    assert all(names(log[:steps]) == [] for steps in range(21))  # it learned until then
    [alarm] = alarms(log)
    assert alarm.name == "reward fell" and "1.06 at best and 0.463 now" in alarm.sentence


@pytest.mark.parametrize("name", WRONG)
def test_what_goes_wrong_is_named(name):
    """And nothing else: a healthy log rings nothing."""
    rung = names(log_of(HEALTHY | WRONG[name]))
    expected = {name} | ({"reward flat"} if "reward" in WRONG[name] else set())
    assert name in rung and set(rung) <= expected


def test_length_may_change_while_the_reward_rises():
    for end in (400, 5):
        assert names(log_of(HEALTHY | {"completions/mean_length": ramp(100, end)})) == []


def test_a_reward_that_was_never_earned_stands_still_but_a_penalty_does_not():
    nothing = {
        "rewards/correctness/mean": ramp(0, 0),
        "rewards/correctness/std": ramp(0, 0),
    }
    [alarm] = alarms(log_of(HEALTHY | nothing))
    assert alarm.name == "one reward drives all"
    assert "correctness (0)" in alarm.sentence and "soft_overlong" not in alarm.sentence


def test_a_format_learned_to_the_full_is_no_reward_standing_still():
    full = {"rewards/hard_format/mean": ramp(1, 1), "rewards/hard_format/std": ramp(0, 0)}
    assert names(log_of(HEALTHY | full)) == []


def test_noise_alone_seldom_rings():
    """400 runs of pure noise, 20 steps: no alarm may ring in more than one of a hundred."""
    rng = np.random.default_rng(1)
    rung = []
    for _ in range(400):
        rewards = rng.normal(0.4, 0.1, 20)
        heldout = rng.binomial(64, 0.5, 20) / 64
        log = log_of(
            {
                "reward": rewards,
                "rewards/a/mean": rewards / 2 + rng.normal(0, 0.02, 20),
                "rewards/a/std": rewards,
                "rewards/b/mean": rewards / 2 + rng.normal(0, 0.02, 20),
                "rewards/b/std": rewards,
                "completions/mean_length": rng.normal(100, 10, 20),
            }
        )
        for i in range(4, 20, 5):
            log[i]["heldout/strict"] = heldout[i]
        rung += names(log)
    counts = {name: rung.count(name) for name in set(rung)}
    assert all(count <= 4 for count in counts.values()), counts


def test_short_logs_and_missing_keys_ring_nothing():
    assert names([]) == []
    assert names(log_of(HEALTHY | WRONG["KL blow-up"])[: 2 * WINDOW - 1]) == []
    assert names([{"step": i, "reward": None, "entropy": float("nan")} for i in range(40)]) == []


def test_a_sampler_that_is_off_rings_at_the_first_step():
    apart = "sampling/sampling_logp_difference/mean"
    [alarm] = alarms([{"step": 1, "reward": 0.1, apart: 0.3}])
    assert alarm.name == "sampler and trainer apart" and alarm.step == 1
    assert not alarms([{"step": 1, "reward": 0.1, apart: 0.04}])
