"""Statistics against enumeration, formulas worked by hand, other packages and simulation."""

import math
from itertools import combinations

import numpy as np
import pytest

from lib.errors import BadInput
from lib.stats import (
    Estimate,
    best_of_k,
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

# pass@k, best-of-k, majority@k: the mean over every choice of k samples


@pytest.mark.parametrize("n", range(1, 9))
def test_pass_at_k_is_the_mean_over_all_subsets(n):
    for c in range(n + 1):
        samples = [1] * c + [0] * (n - c)
        for k in range(1, n + 1):
            expected = np.mean([max(chosen) for chosen in combinations(samples, k)])
            assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-15)


def test_pass_at_k_by_hand():
    # 1 − C(7, 5)/C(10, 5) = 1 − 21/252 = 231/252
    assert pass_at_k(10, 3, 5) == 231 / 252
    # Chen et al.'s product for n = 5, c = 2, k = 2: 1 − (1 − 2/4)(1 − 2/5) = 1 − 0.3
    assert pass_at_k(5, 2, 2) == 0.7
    assert pass_at_k(10, 3, 1) == 0.3
    assert pass_at_k(4, 1, 4) == 1.0
    assert pass_at_k(4, 0, 4) == 0.0


def test_pass_at_k_of_large_n():
    # One right sample among 10,000: k of n choices hold it, so k/n.
    assert pass_at_k(10_000, 1, 2_500) == 0.25


@pytest.mark.parametrize(
    "call",
    [
        lambda: pass_at_k(4, 2, 5),
        lambda: pass_at_k(4, 2, 0),
        lambda: pass_at_k(4, 5, 1),
        lambda: pass_at_k(4, -1, 1),
        lambda: best_of_k([1, 2], [0, 1], 3),
        lambda: majority_at_k([1, 2], [0], 1),
        lambda: best_of_k([1.0, math.nan], [0, 1], 1),
        lambda: mean_with_error([]),
        lambda: mean_with_error([1.0, 0.0], ["a"]),
        lambda: mean_with_error([1.0, None]),
        lambda: mean_with_error(["right", "wrong"]),
        lambda: mean_with_error([[1, 0], [0, 1]]),
        lambda: paired_difference([0, 1], [0, 1, 1]),
        lambda: crossed_difference([[1]]),
        lambda: wilson_interval(3, 2),
        lambda: wilson_interval(0, 0),
        lambda: problems_needed(0),
        lambda: problems_needed(1.1),
    ],
)
def test_what_cannot_be_counted_is_refused(call):
    with pytest.raises(BadInput) as error:
        call()
    assert error.value.key == "stats"


def best_by_enumeration(scores, correct, k):
    worth = []
    for chosen in combinations(range(len(scores)), k):
        top = max(scores[i] for i in chosen)
        worth.append(np.mean([correct[i] for i in chosen if scores[i] == top]))
    return np.mean(worth)


def test_best_of_k_is_the_mean_over_all_subsets():
    rng = np.random.default_rng(0)
    for _ in range(60):
        n = int(rng.integers(1, 8))
        scores = rng.integers(0, 4, n).tolist()  # few values, so many ties
        correct = rng.integers(0, 2, n).tolist()
        for k in range(1, n + 1):
            expected = best_by_enumeration(scores, correct, k)
            assert best_of_k(scores, correct, k) == pytest.approx(expected, abs=1e-12)


def test_best_of_k_by_hand():
    # Pairs of 0.9 wrong, 0.5 right, 0.1 right: {.9,.5} 0, {.9,.1} 0, {.5,.1} 1
    assert best_of_k([0.5, 0.9, 0.1], [1, 0, 1], 2) == pytest.approx(1 / 3)
    assert best_of_k([0.5, 0.9, 0.1], [1, 0, 1], 3) == 0.0
    assert best_of_k([1, 1, 1], [1, 0, 0], 2) == pytest.approx(1 / 3)  # all tied: by lot
    correct = [1, 0, 0, 1, 0, 0]  # a perfect reward makes best-of-k pass@k
    assert best_of_k(correct, correct, 3) == pytest.approx(pass_at_k(6, 2, 3))


def majority_by_enumeration(answers, correct, k):
    share = {
        a: np.mean([c for b, c in zip(answers, correct, strict=True) if b == a]) for a in answers
    }
    worth = []
    for chosen in combinations(answers, k):
        votes = [answer for answer in chosen if answer is not None]
        most = max((votes.count(answer) for answer in votes), default=0)
        winners = [answer for answer in set(votes) if votes.count(answer) == most]
        worth.append(np.mean([share[answer] for answer in winners]) if winners else 0.0)
    return np.mean(worth)


def test_majority_at_k_is_the_mean_over_all_subsets():
    rng = np.random.default_rng(1)
    for _ in range(60):
        n = int(rng.integers(1, 9))
        answers = [None if a == 0 else f"answer {a}" for a in rng.integers(0, 5, n)]
        right = rng.choice(["answer 1", "answer 2"])
        correct = [int(answer == right) for answer in answers]
        for k in range(1, n + 1):
            expected = majority_by_enumeration(answers, correct, k)
            assert majority_at_k(answers, correct, k) == pytest.approx(expected, abs=1e-12)


def test_majority_at_k_by_hand():
    # Pairs of a a b −: {a,a} a; {a,b} twice a tie, 1/2 each; {a,−} twice a; {b,−} b
    assert majority_at_k(["a", "a", "b", None], [1, 1, 0, 0], 2) == pytest.approx(4 / 6)
    assert majority_at_k(["a", "a", "b", None], [0, 0, 1, 0], 2) == pytest.approx(2 / 6)
    assert majority_at_k([None, None], [0, 0], 2) == 0.0
    # The same answer, strictly right in one sample of two, is worth a half.
    assert majority_at_k(["a", "a"], [1, 0], 2) == 0.5
    assert majority_at_k(["a", "b", "a"], [1, 0, 1], 1) == pytest.approx(2 / 3)  # k = 1: the mean


def test_majority_at_k_of_many_samples():
    answers = ["right"] * 100 + [f"wrong {i % 50}" for i in range(100)]
    chance = majority_at_k(answers, [answer == "right" for answer in answers], 64)
    assert 1 - 1e-9 < chance <= 1 + 1e-9


# Means and their errors


def test_mean_with_error_by_hand():
    # 1, 0, 1, 1: mean 3/4, squared deviations 1/16·3 + 9/16 = 12/16, s² = (12/16)/3 = 1/4,
    # SE = √(1/4 / 4) = 1/4; t with 3 degrees of freedom at 0.975 is 3.182446.
    estimate = mean_with_error([1, 0, 1, 1])
    assert estimate.mean == 0.75
    assert estimate.stderr == pytest.approx(0.25, abs=1e-15)
    assert estimate.interval == pytest.approx((0.75 - 0.7956116, 0.75 + 0.7956116), abs=1e-6)


def test_clustered_error_by_hand():
    # Clusters {1, 1}, {0, 0}, {1, 0}: mean 1/2, sums of deviations 1, −1, 0;
    # SE² = 3/2 · (1 + 1 + 0) / 36 = 1/12. Unclustered: s² = 6·(1/4)/5 = 0.3, SE² = 0.3/6 = 1/20.
    values, clusters = [1, 1, 0, 0, 1, 0], ["x", "x", "y", "y", "z", "z"]
    assert mean_with_error(values, clusters).stderr == pytest.approx(math.sqrt(1 / 12))
    assert mean_with_error(values).stderr == pytest.approx(math.sqrt(1 / 20))
    # t with 2 degrees of freedom (three clusters) at 0.975 is 4.302653.
    low, high = mean_with_error(values, clusters).interval
    assert high - low == pytest.approx(2 * 4.302653 * math.sqrt(1 / 12), abs=1e-6)


def test_clusters_of_one_problem_change_nothing():
    values = np.random.default_rng(0).random(50)
    assert mean_with_error(values, range(50)).stderr == pytest.approx(
        mean_with_error(values).stderr
    )


@pytest.mark.parametrize("clusters", [None, np.arange(120) // 5])
def test_errors_and_intervals_equal_those_of_statsmodels(clusters):
    import statsmodels.api as sm

    values = np.random.default_rng(3).normal(size=120) + (np.arange(120) // 5) * 0.1
    model = sm.OLS(values, np.ones(120))
    fit = (
        model.fit(use_t=True)
        if clusters is None
        else model.fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
    )
    estimate = mean_with_error(values, clusters)
    assert estimate.mean == pytest.approx(fit.params[0])
    assert estimate.stderr == pytest.approx(fit.bse[0])
    assert estimate.interval == pytest.approx(tuple(fit.conf_int(alpha=0.05)[0]))


def test_cluster_labels_of_any_kind():
    values = [1, 0, 1, 0, 1]
    labels = mean_with_error(values, ["a", 1, "a", None, 1])
    assert labels == mean_with_error(values, [0, 1, 0, 2, 1])


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
def test_equal_values_have_the_interval_that_so_many_problems_can_exclude(value):
    for n in range(2, 40):
        estimate = mean_with_error([value] * n, within=(0, 1))
        low, high = estimate.interval
        assert (estimate.mean, estimate.stderr) == (value, 0.0)
        rest = 1 - 0.05 ** (1 / n)  # a share of others that n problems miss 1 time in 20
        assert (1 - rest) ** n == pytest.approx(0.05)
        assert low == pytest.approx(value * (1 - rest))
        assert high == pytest.approx(value * (1 - rest) + rest)
        assert mean_with_error([value] * n).interval is None  # how far others may lie, none knows


# Two models on the same problems


def test_paired_difference_by_hand():
    # Fixed 3, broken 1, unchanged 1: b − a = 1, 1, 0, −1, 1; mean 2/5;
    # squared deviations 3·0.36 + 0.16 + 1.96 = 3.2, s² = 0.8, SE = √(0.8/5) = 0.4.
    # McNemar: of 4 that changed at most 1 or at least 3 broken: 2·(1 + 4)/16 = 0.625.
    result = paired_difference(a=[0, 0, 1, 1, 0], b=[1, 1, 1, 0, 1])
    assert result.difference == pytest.approx(0.4)
    assert result.stderr == pytest.approx(0.4)
    assert (result.fixed, result.broken) == (3, 1)
    assert (result.test, result.p_value) == ("exact McNemar", pytest.approx(0.625))
    turned = paired_difference(a=[1, 1, 1, 0, 1], b=[0, 0, 1, 1, 0])
    assert (turned.fixed, turned.broken) == (1, 3)
    assert turned.difference == pytest.approx(-0.4) and turned.p_value == result.p_value


def test_mcnemar_equals_statsmodels():
    from statsmodels.stats.contingency_tables import mcnemar

    rng = np.random.default_rng(5)
    for _ in range(20):
        a, b = rng.integers(0, 2, 80), (rng.random(80) < 0.6).astype(int)
        table = [[np.sum((a == i) & (b == j)) for j in (0, 1)] for i in (0, 1)]
        expected = mcnemar(table, exact=True).pvalue
        assert paired_difference(a, b).p_value == pytest.approx(expected)


def test_scores_that_are_not_0_or_1_get_the_paired_t_test():
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(6)
    a, b = rng.random(40), rng.random(40) + 0.1
    result, expected = paired_difference(a, b), ttest_rel(b, a)
    assert (result.test, result.fixed, result.broken) == ("paired t", None, None)
    assert result.p_value == pytest.approx(expected.pvalue)
    assert result.interval == pytest.approx(tuple(expected.confidence_interval()))


def test_clusters_widen_a_paired_difference():
    a, b = np.zeros(40), np.repeat([1, 0, 1, 1, 0, 1, 0, 1], 5)  # whole families are fixed
    clusters = np.arange(40) // 5
    alone, together = paired_difference(a, b), paired_difference(a, b, clusters)
    assert together.difference == alone.difference == 0.625
    assert together.stderr > 2 * alone.stderr
    assert together.test == "paired t" and together.p_value > alone.p_value
    assert (together.fixed, together.broken) == (25, 0)


def test_models_that_agree_or_differ_everywhere():
    same = paired_difference([1, 0] * 8, [1, 0] * 8)
    assert (same.difference, same.stderr, same.p_value) == (0.0, 0.0, 1.0)
    assert (same.fixed, same.broken) == (0, 0)
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


def test_one_problem_or_cluster_gives_no_error():
    assert mean_with_error([1.0]) == Estimate(1.0, None, None)
    assert mean_with_error([1.0, 0.0], ["a", "a"]) == Estimate(0.5, None, None)
    alone = paired_difference([0], [1])
    assert (alone.difference, alone.interval, alone.p_value, alone.fixed) == (1.0, None, 1.0, 1)
    family = paired_difference([0.0, 0.5], [1.0, 1.0], ["a", "a"])
    assert (family.difference, family.interval, family.p_value) == (0.75, None, None)


# A plain rate


def test_wilson_interval_by_hand():
    # 8 of 10 with z = 1.959964, z² = 3.841459: centre (8 + 1.920729)/13.841459 = 0.716740,
    # half 1.959964/13.841459 · √(8·2/10 + 3.841459/4) = 0.141601 · √2.560365 = 0.226577
    low, high = wilson_interval(8, 10)
    assert (low + high) / 2 == pytest.approx(0.716740, abs=1e-6)
    assert (high - low) / 2 == pytest.approx(0.226577, abs=2e-6)
    # None of n: from 0 to z²/(n + z²)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 3.841459 / 13.841459), abs=1e-6)
    assert wilson_interval(10, 10) == pytest.approx((1 - 3.841459 / 13.841459, 1.0), abs=1e-6)


def test_a_rate_of_none_is_none():
    assert rate([]) is None
    assert rate([True, False])["rate"] == 0.5 and rate([True, False])["answers"] == 2


def test_holms_p_values():
    from statsmodels.stats.multitest import multipletests

    values = np.random.default_rng(0).random(20) ** 3
    assert holm(values) == pytest.approx(multipletests(values, method="holm")[1])
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


# The verdict's words


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
        (None, None, "cannot be told"),
        (None, 1.0, "cannot be told"),
    ],
)
def test_the_rule_of_the_verdict(interval, p_value, word):
    assert verdict_word(interval, p_value) == word


def test_scores_that_are_no_shares_are_never_no_different():
    assert verdict_word((-0.01, 0.01), 0.9, margin=None) == "cannot be told"


# Power


def test_problems_needed_by_hand():
    # (1.959964 √(4/9) + 0.841621 √(4/9 − 0.0025))² = 3.482613 over 0.0025, and 1/0.05 = 20 more
    root = 1.959964 * math.sqrt(4 / 9) + 0.841621 * math.sqrt(4 / 9 - 0.0025)
    assert problems_needed(0.05) == math.ceil(root**2 / 0.0025 + 20) == 1413
    assert problems_needed(-0.05) == 1413
    assert problems_needed(0.05, changed=0.15) < 500


def test_detectable_difference_turns_problems_needed_around():
    for n in (20, 64, 256, 1319):
        gain = detectable_difference(n, changed=0.3)
        assert problems_needed(gain + 1e-4, 0.3) <= n < problems_needed(gain - 1e-3, 0.3)
    assert detectable_difference(4) is None
    assert "4 held-out problems show no gain" in power_sentence(4)
    assert "a gain of 5.0 points takes 1,413 problems" in power_sentence(256)


@pytest.mark.parametrize(
    ("gain", "changed"),
    [(0.05, 0.15), (0.05, 4 / 9), (0.1, 0.3), (0.2, 4 / 9), (0.3, 0.6)],
)
def test_the_power_promised_is_the_power_of_the_verdict(gain, changed):
    """80 ± 3 % of evaluations of that many problems end with the verdict "better"."""
    n, draws = problems_needed(gain, changed), 4000
    shares = [(changed + gain) / 2, (changed - gain) / 2, 1 - changed]
    counts = np.random.default_rng(int(1000 * gain)).multinomial(n, shares, draws)
    pairs, times = np.unique(counts[:, :2], axis=0, return_counts=True)
    better = 0
    for (fixed, broken), count in zip(pairs, times, strict=True):
        a = np.repeat([0, 1, 0], [fixed, broken, n - fixed - broken])
        b = np.repeat([1, 0, 0], [fixed, broken, n - fixed - broken])
        paired = paired_difference(a, b)
        better += count * (verdict_word(paired.interval, paired.p_value) == "better")
    assert better / draws == pytest.approx(0.8, abs=0.03)


# Simulation: 95 % intervals hold the truth in 93 to 97 % of evaluations


def coverage(truth: float, intervals) -> float:
    return float(np.mean([low <= truth <= high for low, high in intervals]))


@pytest.mark.parametrize("n", [64, 128, 256, 512])
@pytest.mark.parametrize("rate", [0.3, 0.5])
def test_coverage_of_a_mean_of_right_and_wrong(n, rate):
    scores = np.random.default_rng(n).random((4000, n)) < rate
    intervals = (mean_with_error(row).interval for row in scores)
    assert coverage(rate, intervals) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("n", [64, 100, 128, 200, 256, 512])
def test_exact_coverage_of_a_rate_from_a_tenth_to_nine(n):
    """Summed over all outcomes: a rate moves in steps of 1/n, and coverage swings with them."""
    from scipy.stats import binom

    successes = np.arange(n + 1)
    student = [
        mean_with_error([1] * s + [0] * (n - s), within=(0, 1)).interval for s in range(n + 1)
    ]
    wilson = [wilson_interval(s, n) for s in range(n + 1)]
    for share in np.arange(0.1, 0.905, 0.01):
        chances = binom.pmf(successes, n, share)
        for intervals, lowest in ((student, 0.92), (wilson, 0.93)):
            held = [low - 1e-12 <= share <= high + 1e-12 for low, high in intervals]
            assert lowest < chances[held].sum() < 0.97


@pytest.mark.parametrize("n", [64, 256])
def test_coverage_of_a_mean_of_pass_at_k(n):
    # Chances from Beta(1/2, 1/2), 8 samples: pass@4's truth is the mean of 1 − (1 − p)^4.
    rng = np.random.default_rng(n)
    chances = rng.beta(0.5, 0.5, (4000, n))
    scores = np.array([pass_at_k(8, c, 4) for c in range(9)])[rng.binomial(8, chances)]
    truth = 1 - math.prod((0.5 + i) / (1 + i) for i in range(4))  # 1 − E[(1 − p)^4] of a Beta
    intervals = (mean_with_error(row).interval for row in scores)
    assert coverage(truth, intervals) == pytest.approx(0.95, abs=0.015)


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


@pytest.mark.parametrize("n", [64, 256])
def test_coverage_of_a_paired_difference(n):
    rng = np.random.default_rng(n)
    chances = rng.beta(1, 1, (4000, n))
    a, b = rng.random(chances.shape) < chances, rng.random(chances.shape) < chances**0.5
    intervals = (paired_difference(*pair).interval for pair in zip(a, b, strict=True))
    # E[√p] − E[p] = 2/3 − 1/2 for p uniform
    assert coverage(2 / 3 - 1 / 2, intervals) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("n", [64, 256, 1024])
@pytest.mark.parametrize("shares", [(0.3, 0.1), (0.2, 0.2), (0.1, 0.05), (0.4, 0.02)])
def test_coverage_of_fixed_and_broken(n, shares):
    """Right and wrong, greedily: problems fixed and broken in given shares."""
    fixed, broken = shares
    counts = np.random.default_rng(n).multinomial(n, [fixed, broken, 1 - fixed - broken], 4000)
    pairs, times = np.unique(counts[:, :2], axis=0, return_counts=True)
    held = 0
    for (f, b), count in zip(pairs, times, strict=True):
        before = np.repeat([0, 1, 0], [f, b, n - f - b])
        after = np.repeat([1, 0, 0], [f, b, n - f - b])
        low, high = paired_difference(before, after).interval
        held += count * (low <= fixed - broken <= high)
    assert 0.93 <= held / 4000 <= 0.975


def test_coverage_of_a_difference_of_pass_at_k():
    rng = np.random.default_rng(11)
    chances = rng.beta(1, 1, (2000, 128))
    table = np.array([pass_at_k(4, c, 2) for c in range(5)])
    a, b = table[rng.binomial(4, chances)], table[rng.binomial(4, chances**0.5)]
    intervals = (paired_difference(*pair).interval for pair in zip(a, b, strict=True))
    # pass@2 = E[1 − (1 − p)²] = 2E[p] − E[p²]: (4/3 − 1/2) − (1 − 1/3)
    assert coverage(4 / 3 - 1 / 2 - 2 / 3, intervals) == pytest.approx(0.95, abs=0.015)


def test_false_alarms_of_mcnemar_stay_below_five_in_a_hundred():
    rng = np.random.default_rng(13)
    chances = rng.beta(1, 1, (2000, 128))
    a, b = rng.random(chances.shape) < chances, rng.random(chances.shape) < chances
    alarms = [paired_difference(*pair).p_value < 0.05 for pair in zip(a, b, strict=True)]
    assert 0.02 < np.mean(alarms) <= 0.05
