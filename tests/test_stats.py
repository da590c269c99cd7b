"""Statistics against enumeration, other packages and simulation."""

import math
from itertools import combinations

import numpy as np
import pytest

from lib.stats import (
    Estimate,
    crossed_difference,
    detectable_difference,
    holm,
    majority_at_k,
    mean_with_error,
    paired_difference,
    pass_at_k,
    power_sentence,
    problems_needed,
    rate,
    verdict_word,
    wilson_interval,
)
from tests.conftest import refuses


@pytest.mark.parametrize(
    ("function", "given"),
    [
        *((pass_at_k, (4, 2, 5)), (pass_at_k, (4, 5, 1)), (paired_difference, ([0], [0, 1]))),
        *((mean_with_error, ([],)), (mean_with_error, ([1.0, None],))),
    ],
)
def test_what_cannot_be_counted_is_refused(function, given):
    with refuses("stats"):
        function(*given)


# Several samples a problem: the mean over every choice of k


def test_pass_at_k_is_the_mean_over_all_subsets():
    for n in range(1, 9):
        for c in range(n + 1):
            samples = [1] * c + [0] * (n - c)
            for k in range(1, n + 1):
                expected = np.mean([max(chosen) for chosen in combinations(samples, k)])
                assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-15)
    assert pass_at_k(10_000, 1, 2_500) == 0.25


def majority_by_enumeration(answers, correct, k):
    both = list(zip(answers, correct, strict=True))
    share = {a: np.mean([c for b, c in both if b == a]) for a in answers}
    worth = []
    for chosen in combinations(answers, k):
        votes = [answer for answer in chosen if answer is not None]
        most = max((votes.count(answer) for answer in votes), default=0)
        winners = [answer for answer in set(votes) if votes.count(answer) == most]
        worth.append(np.mean([share[answer] for answer in winners]) if winners else 0.0)
    return np.mean(worth)


@pytest.mark.parametrize(("most", "error"), [(9, 1e-12), (12, 0.12)])  # all choices, or some drawn
def test_majority_at_k_is_the_mean_over_all_subsets(most, error):
    rng = np.random.default_rng(0)
    for n in np.arange(60) % 4 + most - 4:
        answers = [None if a == 0 else f"answer {a}" for a in rng.integers(0, 5, n)]
        correct = rng.integers(0, 2, n).tolist()  # an answer may be strictly right in some samples
        for k in range(1, n + 1):
            expected = majority_by_enumeration(answers, correct, k)
            assert majority_at_k(answers, correct, k) == pytest.approx(expected, abs=error)


# Means, rates and differences


@pytest.mark.parametrize("clusters", [None, np.arange(120) // 5])
def test_errors_and_intervals_equal_those_of_statsmodels(clusters):
    import statsmodels.api as sm

    values = np.random.default_rng(3).normal(size=120) + (np.arange(120) // 5) * 0.1
    kind = {} if clusters is None else {"cov_type": "cluster", "cov_kwds": {"groups": clusters}}
    fit = sm.OLS(values, np.ones(120)).fit(use_t=True, **kind)
    estimate = mean_with_error(values, clusters)
    assert estimate.mean == pytest.approx(fit.params[0])
    assert estimate.stderr == pytest.approx(fit.bse[0])
    assert estimate.interval == pytest.approx(tuple(fit.conf_int(alpha=0.05)[0]))


def test_rates_and_changes_equal_those_of_statsmodels():
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.proportion import proportion_confint

    rng = np.random.default_rng(5)
    for n in (1, 10, 200):
        for successes in {0, n // 3, n}:
            theirs = proportion_confint(successes, n, method="wilson")
            assert wilson_interval(successes, n) == pytest.approx(theirs, abs=1e-12)
    for _ in range(20):
        a, b = rng.integers(0, 2, 80), (rng.random(80) < 0.6).astype(int)
        table = [[np.sum((a == i) & (b == j)) for j in (0, 1)] for i in (0, 1)]
        paired = paired_difference(a, b)
        assert paired.p_value == pytest.approx(mcnemar(table, exact=True).pvalue)
        assert (paired.fixed, paired.broken) == (table[0][1], table[1][0])
    values = rng.random(20) ** 3
    assert holm(values) == pytest.approx(multipletests(values, method="holm")[1])
    assert rate([]) is None and rate([True, False])["rate"] == 0.5


def test_scores_that_are_not_0_or_1_get_the_paired_t_test():
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(6)
    a, b = rng.random(40), rng.random(40) + 0.1
    result, expected = paired_difference(a, b), ttest_rel(b, a)
    assert (result.test, result.fixed, result.broken) == ("paired t", None, None)
    assert result.p_value == pytest.approx(expected.pvalue)
    assert result.interval == pytest.approx(tuple(expected.confidence_interval()))


def test_clusters_widen_a_paired_difference():
    values, labels = [1, 0, 1, 0, 1], ["a", 1, "a", None, 1]  # of any kind
    assert mean_with_error(values, labels) == mean_with_error(values, [0, 1, 0, 2, 1])
    a, b = np.zeros(40), np.repeat([1, 0, 1, 1, 0, 1, 0, 1], 5)  # whole families are fixed
    alone, together = paired_difference(a, b), paired_difference(a, b, np.arange(40) // 5)
    assert together.difference == alone.difference == 0.625
    assert together.stderr > 2 * alone.stderr and together.p_value > alone.p_value
    assert (together.test, together.fixed, together.broken) == ("paired t", 25, 0)


def test_models_that_agree_or_differ_everywhere():
    same = paired_difference([1, 0] * 8, [1, 0] * 8)
    assert (same.difference, same.stderr, same.p_value) == (0.0, 0.0, 1.0)
    # Bonett & Price: one more of each among 18, so half = 1.959964 · √(2/18/18)
    half = 1.959964 * math.sqrt(2 / 18 / 18)
    assert same.interval == pytest.approx((-half, half), abs=1e-6)
    alike = paired_difference([0.2, 0.3], [0.2, 0.3])
    assert alike.p_value == 1.0 and alike.interval[0] < 0 < alike.interval[1]
    # All of 5 fixed: 2 · (1/2)^5
    assert paired_difference([0] * 5, [1] * 5).p_value == pytest.approx(2 / 32)
    assert paired_difference([0.0] * 5, [0.5] * 5).p_value == pytest.approx(2 / 32)


@pytest.mark.parametrize("clusters", [None, [0, 0, 1, 1, 2, 2]])
@pytest.mark.parametrize("after", [[1] * 6, [0] * 6, [0, 0, 1, 0, 1, 1], [0.5] * 6])
def test_no_interval_of_shares_has_a_width_of_zero(after, clusters):
    for low, high in (
        paired_difference([0] * 6, after, clusters).interval,
        mean_with_error(after, clusters, (0, 1)).interval,
        crossed_difference(np.array([after, after])).interval,
    ):
        assert -1 <= low < high <= 1
    # n problems miss a share `high` of others 1 time in 20
    low, high = mean_with_error([0] * 30, within=(0, 1)).interval
    assert low == 0 and (1 - high) ** 30 == pytest.approx(0.05)
    assert mean_with_error([0] * 30).interval is None  # how far others may lie, none knows


def test_one_problem_or_cluster_gives_no_error():
    assert mean_with_error([1.0]) == Estimate(1.0, None, None)
    assert mean_with_error([1.0, 0.0], ["a", "a"]) == Estimate(0.5, None, None)
    alone = paired_difference([0], [1])
    assert (alone.difference, alone.interval, alone.p_value, alone.fixed) == (1.0, None, 1.0, 1)
    family = paired_difference([0.0, 0.5], [1.0, 1.0], ["a", "a"])
    assert (family.difference, family.interval, family.p_value) == (0.75, None, None)


# The verdict's words, and power


@pytest.mark.parametrize(
    ("interval", "p_value", "word"),
    [
        ((0.01, 0.2), 0.02, "better"),
        ((-0.2, -0.01), 0.02, "worse"),
        ((0.01, 0.2), 0.06, "cannot be told"),  # the test does not agree
        ((-0.01, 0.2), 0.02, "cannot be told"),
        ((-0.031, 0.02), 0.5, "no difference larger than 3.1 points"),
        ((0.001, 0.04), 0.06, "no difference larger than 4.0 points"),
        ((0.01, 0.04), 0.01, "better"),  # small, and certain
        ((-0.06, 0.02), 0.5, "cannot be told"),
        (None, 1.0, "cannot be told"),
    ],
)
def test_the_rule_of_the_verdict(interval, p_value, word):
    assert verdict_word(interval, p_value) == word
    if word.startswith("no difference"):  # of scores that are no shares it is never said
        assert verdict_word(interval, p_value, margin=None) == "cannot be told"


def test_detectable_difference_turns_problems_needed_around():
    assert problems_needed(0.05) == problems_needed(-0.05) == 1413
    for n in (20, 64, 256, 1319):
        gain = detectable_difference(n, changed=0.3)
        assert problems_needed(gain + 1e-4, 0.3) <= n < problems_needed(gain - 1e-3, 0.3)
    assert detectable_difference(4) is None
    assert "With 4 held-out problems not even the largest gain" in power_sentence(4)
    assert "a gain of 5.0 points takes 1,413 problems" in power_sentence(256)


def pairs_of_answers(shares, n, draws, seed):
    """(a, b, how often) where in `n` problems given shares are fixed and broken."""
    counts = np.random.default_rng(seed).multinomial(n, [*shares, 1 - sum(shares)], draws)
    found = np.unique(counts[:, :2], axis=0, return_counts=True)
    for (fixed, broken), times in zip(*found, strict=True):
        sizes = [fixed, broken, n - fixed - broken]
        yield np.repeat([0, 1, 0], sizes), np.repeat([1, 0, 0], sizes), times


@pytest.mark.parametrize(("gain", "changed"), [(0.05, 0.15), (0.1, 0.3), (0.2, 4 / 9)])
def test_the_power_promised_is_the_power_of_the_verdict(gain, changed):
    """80 ± 3% of evaluations of that many problems end with the verdict "better"."""
    shares, better = ((changed + gain) / 2, (changed - gain) / 2), 0
    for a, b, times in pairs_of_answers(shares, problems_needed(gain, changed), 4000, 1):
        paired = paired_difference(a, b)
        better += times * (verdict_word(paired.interval, paired.p_value) == "better")
    assert better / 4000 == pytest.approx(0.8, abs=0.03)


# Simulation: 95% intervals hold the truth in 93 to 97% of evaluations


def coverage(truth: float, intervals) -> float:
    return float(np.mean([low <= truth <= high for low, high in intervals]))


@pytest.mark.parametrize("n", [64, 100, 128, 200, 256, 512])
def test_exact_coverage_of_a_rate_from_a_tenth_to_nine(n):
    """Summed over all outcomes: a rate moves in steps of 1/n, and coverage swings with them."""
    from scipy.stats import binom

    right = range(n + 1)
    student = [mean_with_error([1] * s + [0] * (n - s), within=(0, 1)).interval for s in right]
    wilson = [wilson_interval(s, n) for s in right]
    for share in np.arange(0.1, 0.905, 0.01):
        chances = binom.pmf(right, n, share)
        for intervals, lowest in ((student, 0.92), (wilson, 0.93)):
            held = [low - 1e-12 <= share <= high + 1e-12 for low, high in intervals]
            assert lowest < chances[held].sum() < 0.97


@pytest.mark.parametrize("families", [8, 16, 64])
def test_coverage_of_a_clustered_mean(families):
    rng = np.random.default_rng(families)
    chances = np.repeat(rng.beta(1, 1, (4000, families)), 4, axis=1)
    scores = rng.random(chances.shape) < chances
    clusters = np.repeat(range(families), 4)
    intervals = (mean_with_error(row, clusters).interval for row in scores)
    assert coverage(0.5, intervals) == pytest.approx(0.95, abs=0.015)
    ignoring = (mean_with_error(row).interval for row in scores)
    assert coverage(0.5, ignoring) < 0.90


@pytest.mark.parametrize("n", [64, 256, 1024])
@pytest.mark.parametrize("shares", [(0.3, 0.1), (0.2, 0.2), (0.1, 0.05), (0.4, 0.02)])
def test_coverage_of_fixed_and_broken(n, shares):
    """Right and wrong, greedily: problems fixed and broken in given shares."""
    held = 0
    for a, b, times in pairs_of_answers(shares, n, 4000, n):
        low, high = paired_difference(a, b).interval
        held += times * (low <= shares[0] - shares[1] <= high)
    assert 0.93 <= held / 4000 <= 0.975


@pytest.mark.parametrize("n", [64, 256])
def test_coverage_of_a_mean_and_a_difference_of_pass_at_k(n):
    # Chances from Beta(1, 1), 4 samples: pass@2's truth is E[1 − (1 − p)²] = 2E[p] − E[p²].
    rng = np.random.default_rng(n)
    chances = rng.beta(1, 1, (3000, n))
    table = np.array([pass_at_k(4, c, 2) for c in range(5)])
    a, b = table[rng.binomial(4, chances)], table[rng.binomial(4, chances**0.5)]
    for truth, intervals in (
        (1 - 1 / 3, (mean_with_error(row).interval for row in a)),
        (4 / 3 - 1 / 2 - 2 / 3, map(lambda *pair: paired_difference(*pair).interval, a, b)),
    ):
        assert coverage(truth, intervals) == pytest.approx(0.95, abs=0.015)
