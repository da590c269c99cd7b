"""What an evaluation's numbers are worth: intervals, paired comparisons, power.

    >>> scores = mean_with_error([1, 0, 1, 1])  # one score a problem
    >>> scores.mean, scores.stderr
    (0.75, 0.25)

The unit is the problem: with several samples a problem, give each problem's mean (or its
pass@k), never the single samples. Problems that come in families (variants of one template,
questions on one text) are not independent: give `clusters`, one label a problem.

Intervals of means use Student's t with (problems − 1) or (clusters − 1) degrees of freedom. In
simulation, 95 % intervals of means of samples, of pass@k, of differences and of clustered scores
then hold the truth 94 to 96 times in 100, from 64 problems and from 8 clusters on (the normal's
1.96: 91 times with 8 clusters). For a plain rate, right or wrong once a problem, use
`wilson_interval`: at 64 problems and more it holds a rate between 0.1 and 0.9 from 93 to 97 times
in 100, the t interval from 92, and it stays sound where all are right or none.

"Miller" is Miller 2024, "Adding error bars to evals", arXiv 2411.00640. Wrong input raises
`BadInput`, which is a ValueError.
"""

import math
from dataclasses import dataclass

import numpy as np

from lib.errors import BadInput
from lib.evaluation.at_k import (
    best_of_k,
    majority_at_k,
    mean_pass_at_k,
    numbers,
    pass_at_k,
    whole_numbers,
)

__all__ = [
    "Difference",
    "Estimate",
    "best_of_k",
    "detectable_difference",
    "majority_at_k",
    "mean_pass_at_k",
    "mean_with_error",
    "paired_bootstrap_pass_at_k",
    "paired_difference",
    "pass_at_k",
    "problems_needed",
    "wilson_interval",
]


@dataclass(frozen=True)
class Estimate:
    """A mean over problems, its standard error and its confidence interval (low, high).

    From one problem (or one cluster) no error can be told: both are then None.
    """

    mean: float
    stderr: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Difference:
    """How much better b is than a: mean of b − a over the same problems.

    Attributes:
        stderr, interval, p_value: None where one problem or one cluster is all there is.
        p_value: two-sided, of no difference.
        test: where p_value is from: "exact McNemar", "paired t" or "paired bootstrap".
        fixed, broken: how many problems a has wrong and b right, and the other way round;
            None where scores are not all 0 or 1.
    """

    difference: float
    stderr: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    test: str
    fixed: int | None = None
    broken: int | None = None


def mean_with_error(values, clusters=None, level: float = 0.95) -> Estimate:
    """The mean over problems with its standard error and interval.

    SE² = s²/n with n − 1 in s² (Miller eq. 1), or clustered
    SE² = C/(C−1) · Σ_c (Σ_{i in c} (x_i − x̄))² / n² (Miller eq. 4 with the finite-sample factor
    of inspect_ai and Stata; with one problem a cluster it is the first formula). Scores that are
    all equal give an error of 0, which says that they are equal and no more.

    Args:
        values: one a problem, any finite numbers.
        clusters: one label a problem, or None.

    Raises:
        BadInput: no problems, values that are no numbers, or not one label a problem.
    """
    from scipy.special import stdtrit

    values = numbers(values, "values")
    # Rounding must not give equal values a spread.
    mean = float(values.mean()) if np.ptp(values) else float(values[0])
    sums = _cluster_sums(values - mean, clusters)
    units = len(sums)
    if units < 2:
        return Estimate(mean, None, None)
    stderr = math.sqrt(units / (units - 1) * float(sums @ sums)) / len(values)
    half = float(stdtrit(units - 1, (1 + _share(level, "level")) / 2)) * stderr
    return Estimate(mean, stderr, (mean - half, mean + half))


def paired_difference(a, b, clusters=None, level: float = 0.95) -> Difference:
    """How much better model b is than model a on the same problems: mean(b − a).

    The error is that of the differences (Miller eq. 7), clustered as in `mean_with_error`.
    p_value: for scores of 0 and 1 without clusters McNemar's exact test, i.e. a sign test of
    fixed against broken (McNemar 1947); else Student's t.

    Args:
        a, b: one score a problem, in the same order: before and after.
    """
    a, b = _pair(a, b, "a", "b")
    estimate = mean_with_error(b - a, clusters, level)
    fixed = broken = None
    if np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all():
        fixed, broken = int(np.sum(b > a)), int(np.sum(b < a))
    if fixed is not None and clusters is None:
        test, p_value = "exact McNemar", _mcnemar(fixed, broken)
    else:
        units = len(a) if clusters is None else len(set(clusters))
        test, p_value = "paired t", _t_test(estimate.mean, estimate.stderr, units - 1)
    return Difference(
        estimate.mean, estimate.stderr, estimate.interval, p_value, test, fixed, broken
    )


def paired_bootstrap_pass_at_k(
    counts_a,
    counts_b,
    n,
    k: int,
    clusters=None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """How much better b's pass@k is than a's on the same problems, by the paired bootstrap.

    Problems (or clusters of them) are drawn with replacement, both models' counts together
    (Efron & Tibshirani 1993, ch. 13: percentile interval). p_value is twice the smaller share
    of resamples on either side of 0, each side counting one more so that it is never 0.

    Args:
        counts_a, counts_b: right samples a problem of before and after, of n each.
        seed: of the resampling; the same gives the same interval.
    """
    from scipy.stats import bootstrap

    counts_a, counts_b = _pair(counts_a, counts_b, "counts_a", "counts_b")
    values = pass_at_k(n, counts_b, k) - pass_at_k(n, counts_a, k)
    sums, sizes = _cluster_sums(values, clusters), _cluster_sums(np.ones(len(values)), clusters)
    if len(sums) < 2:
        return Difference(float(values.mean()), None, None, None, "paired bootstrap")
    drawn = bootstrap(
        (sums, sizes),
        lambda s, m, axis=-1: s.sum(axis=axis) / m.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=1000,  # keeps 1,000 × problems indices in memory, not all
        confidence_level=_share(level, "level"),
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = drawn.confidence_interval
    sides = [np.sum(drawn.bootstrap_distribution <= 0), np.sum(drawn.bootstrap_distribution >= 0)]
    p_value = min(1.0, 2 * (float(min(sides)) + 1) / (resamples + 1))
    return Difference(
        float(values.mean()),
        float(drawn.standard_error),
        (float(low), float(high)),
        p_value,
        "paired bootstrap",
    )


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of a plain rate, such as format or truncation; sound near 0 and 1 too.

    Wilson 1927; Brown, Cai & DasGupta 2001, eq. 4.
    """
    from scipy.stats import binomtest

    successes, n = whole_numbers(successes, "successes"), whole_numbers(n, "n")
    if not 0 <= successes <= n or n < 1:
        raise BadInput(f"{successes} of {n} is no rate: give 0 ≤ successes ≤ n and n ≥ 1.")
    interval = binomtest(int(successes), int(n)).proportion_ci(
        _share(level, "level"), method="wilson"
    )
    return float(interval.low), float(interval.high)


def problems_needed(
    difference: float,
    omega_squared: float = 1 / 9,
    sigma_squared_a: float = 1 / 6,
    sigma_squared_b: float = 1 / 6,
    samples_a: int = 1,
    samples_b: int = 1,
    level: float = 0.95,
    power: float = 0.8,
) -> int:
    """How many problems let a paired comparison see a true difference.

    n = (z_{α/2} + z_β)² (ω² + σ²_A/K_A + σ²_B/K_B) / δ² (Miller eq. 9).

    Args:
        difference: δ, the true difference in mean score, such as 0.05.
        omega_squared: ω², the variance over problems of the difference between the two models'
            chances to be right. The default, with σ² = 1/6, belongs to chances spread evenly over
            0 … 1 in both models and correlated by 1/3.
        sigma_squared_a, sigma_squared_b: σ², the mean over problems of the variance among one
            problem's samples (p(1 − p) for right or wrong).
        samples_a, samples_b: K, samples a problem.
        power: the chance to find the difference significant at 1 − level.

    From data: n · stderr² of `paired_difference` estimates the whole bracket; give it as
    omega_squared, with both sigma_squared 0.
    """
    if not difference:
        raise BadInput("No number of problems shows a difference of 0: give another one.")
    variance = _variance(omega_squared, sigma_squared_a, sigma_squared_b, samples_a, samples_b)
    # The tolerance keeps 100.00000000000001 from becoming 101.
    return max(2, math.ceil(_z_sum(level, power) ** 2 * variance / difference**2 - 1e-9))


def detectable_difference(
    n_problems: int,
    omega_squared: float = 1 / 9,
    sigma_squared_a: float = 1 / 6,
    sigma_squared_b: float = 1 / 6,
    samples_a: int = 1,
    samples_b: int = 1,
    level: float = 0.95,
    power: float = 0.8,
) -> float:
    """The smallest true difference that a paired comparison on so many problems can see.

    δ = (z_{α/2} + z_β) √((ω² + σ²_A/K_A + σ²_B/K_B) / n) (Miller eq. 10); the arguments are those
    of `problems_needed`.
    """
    if n_problems < 1:
        raise BadInput(f"With {n_problems} problems nothing can be seen: give at least one.")
    variance = _variance(omega_squared, sigma_squared_a, sigma_squared_b, samples_a, samples_b)
    return _z_sum(level, power) * math.sqrt(variance / n_problems)


def _variance(omega: float, sigma_a: float, sigma_b: float, k_a: int, k_b: int) -> float:
    if min(omega, sigma_a, sigma_b) < 0 or min(k_a, k_b) < 1:
        raise BadInput("Variances must not be negative, and each model needs a sample a problem.")
    return omega + sigma_a / k_a + sigma_b / k_b


def _z_sum(level: float, power: float) -> float:
    from scipy.special import ndtri

    return float(ndtri((1 + _share(level, "level")) / 2) + ndtri(_share(power, "power")))


def _pair(a, b, name_a: str, name_b: str) -> tuple[np.ndarray, np.ndarray]:
    a, b = numbers(a, name_a), numbers(b, name_b)
    if len(a) != len(b):
        raise BadInput(
            f"{name_a} has {len(a)} problems and {name_b} has {len(b)}: a paired comparison needs "
            f"the same problems in the same order."
        )
    return a, b


def _cluster_sums(values: np.ndarray, clusters) -> np.ndarray:
    """The sum of the values in each cluster; without clusters the values themselves."""
    if clusters is None:
        return values
    clusters = list(clusters)
    if len(clusters) != len(values):
        raise BadInput(f"{len(clusters)} cluster labels for {len(values)} problems: give one each.")
    # A dictionary and not numpy's unique, so that labels may be of mixed types.
    index = {label: i for i, label in enumerate(dict.fromkeys(clusters))}
    return np.bincount([index[label] for label in clusters], weights=values)


def _share(value: float, name: str) -> float:
    if not 0 < value < 1:
        raise BadInput(f"{name} must lie between 0 and 1 (0.95, say), not {value!r}.")
    return value


def _t_test(mean: float, stderr: float | None, degrees: int) -> float | None:
    from scipy.special import stdtr

    if stderr is None:
        return None
    if stderr == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stdtr(degrees, -abs(mean) / stderr))


def _mcnemar(fixed: int, broken: int) -> float:
    from scipy.stats import binomtest

    return float(binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0
