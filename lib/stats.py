"""What an evaluation's numbers are worth: pass@k, intervals, paired tests, the verdict, power.

    >>> scores = mean_with_error([1, 0, 1, 1])  # one score a problem
    >>> scores.mean, scores.stderr
    (0.75, 0.25)

The unit is the problem: with several samples a problem, give each problem's mean or pass@k. For
problems that come in families (variants of one template) give `clusters`, one label a problem.
Formulas, sources and what simulation says of them stand in docs/statistics.md; "Miller" is Miller
2024, arXiv 2411.00640.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random

import numpy as np
from scipy.optimize import bisect
from scipy.special import bdtr, ndtri, stdtr, stdtrit

from lib.errors import BadInput

LEVEL, ALPHA, POWER = 0.95, 0.05, 0.8
Z = float(ndtri((1 + LEVEL) / 2))
MARGIN = 0.05  # a smaller difference between shares counts as none
CHOICES = 200  # of samples for a vote, at most
CHANGED = 4 / 9  # of the problems; Miller's example: chances spread evenly, correlated by 1/3
Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Estimate:
    """A mean over problems; one problem (or cluster) gives no error and no interval: None."""

    mean: float
    stderr: float | None
    interval: Interval


@dataclass(frozen=True)
class Difference:
    """How much better b is than a: mean of b − a over the same problems."""

    difference: float
    stderr: float | None
    interval: Interval
    p_value: float | None  # two-sided
    test: str  # "exact McNemar", "paired t" or "two-way t"
    fixed: int | None = None  # problems that a has wrong and b right; None of other scores
    broken: int | None = None


# Several samples a problem


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of k samples is right, from c right ones among n:
    1 − C(n−c, k) / C(n, k), unbiased (Chen et al. 2021, arXiv 2107.03374, eq. 1).

    >>> pass_at_k(n=10, c=3, k=5)
    0.9166666666666666
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise BadInput(f"pass@k needs 0 ≤ c ≤ n and 1 ≤ k ≤ n: n {n}, c {c}, k {k}.", "stats")
    tries = math.comb(n, k)
    return (tries - math.comb(n - c, k)) / tries


def majority_at_k(answers: Sequence[Hashable], correct: Sequence, k: int) -> float:
    """The chance that the majority vote among k of one problem's n samples is right
    ("self-consistency", Wang et al. 2022, arXiv 2203.11171), ties broken at random: the mean over
    all C(n, k) choices, or over 200 drawn ones where there are more.

    Args:
        answers: each sample's extracted answer, equal ones written the same; None gives no vote.
        correct: whether each is right (0/1). An answer counted right in some samples only
            (strictly graded, say) is worth its share.
    """
    graded = defaultdict(list)
    for answer, right in zip(answers, correct, strict=True):
        graded[answer].append(float(right))
    worth = {answer: sum(rights) / len(rights) for answer, rights in graded.items()}
    choices, draw = combinations(answers, k), Random(0)
    if math.comb(len(answers), k) > CHOICES:
        choices = (draw.sample(answers, k) for _ in range(CHOICES))
    chances = []
    for chosen in choices:
        votes = Counter(answer for answer in chosen if answer is not None)
        most = max(votes.values(), default=0)
        winners = [worth[answer] for answer, count in votes.items() if count == most]
        chances.append(sum(winners) / len(winners) if winners else 0.0)
    return sum(chances) / len(chances)


# Means and differences


def mean_with_error(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    within: tuple[float, float] | None = None,
    level: float = LEVEL,
) -> Estimate:
    """The mean over problems with its standard error and Student's interval, of 95% by default.

    SE² = s²/n (Miller eq. 1), or clustered C/(C−1) · Σ_c (Σ_{i in c} (x_i − x̄))² / n² (eq. 4 with
    the finite-sample factor of inspect_ai and Stata).

    Args:
        values: one a problem, any finite numbers.
        within: the lowest and the highest value there can be. Values that are all equal then
            have the interval that this many problems can exclude: at most a share
            1 − 0.05^(1/n), about 3/n, of all problems has others. Without it they have none.
    """
    values = _numbers(values, "values")
    equal = not np.ptp(values)  # rounding must not give equal values a spread
    mean = float(values[0] if equal else values.mean())
    sums = _cluster_sums(values - mean, clusters)
    units = len(sums)
    if units < 2:
        return Estimate(mean, None, None)
    if equal:
        rest = 1 - (1 - level) ** (1 / units)
        bounds = within and tuple((1 - rest) * mean + rest * bound for bound in within)
        return Estimate(mean, 0.0, bounds)
    stderr = math.sqrt(units / (units - 1) * float(sums @ sums)) / len(values)
    half = float(stdtrit(units - 1, (1 + level) / 2)) * stderr
    return Estimate(mean, stderr, _bounded(mean, half, within))


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    level: float = LEVEL,
) -> Difference:
    """How much better model b is than model a, scored on the same problems in the same order.

    Scores of 0 and 1 without clusters: p_value of McNemar's exact test (1947), and the interval of
    Bonett & Price 2012 (10.3102/1076998611411915): Wald's, with one problem more fixed and one
    more broken. All else: Student's t on the differences (Miller eq. 7).
    """
    a, b = _numbers(a, "a"), _numbers(b, "b")
    if len(a) != len(b):
        raise BadInput(f"{len(a)} problems and {len(b)}: a pair has the same problems.", "stats")
    shares = min(a.min(), b.min()) >= 0 and max(a.max(), b.max()) <= 1
    estimate = mean_with_error(b - a, clusters, (-1, 1) if shares else None, level)
    mean, stderr, interval = estimate.mean, estimate.stderr, estimate.interval
    fixed = broken = None
    if np.isin([a, b], (0, 1)).all():
        fixed, broken = int(np.sum(b > a)), int(np.sum(b < a))
    if fixed is None or clusters is not None:
        units = len(a if clusters is None else set(clusters))
        p_value = _t_test(mean, stderr, units - 1)
        return Difference(mean, stderr, interval, p_value, "paired t", fixed, broken)
    n = len(a) + 2
    p, q = (fixed + 1) / n, (broken + 1) / n
    half = float(ndtri((1 + level) / 2)) * math.sqrt((p + q - (p - q) ** 2) / n)
    interval = interval and _bounded(p - q, half, (-1.0, 1.0))
    p_value = min(1.0, 2 * float(bdtr(min(fixed, broken), fixed + broken, 0.5)))
    return Difference(mean, stderr, interval, p_value, "exact McNemar", fixed, broken)


def _t_test(mean: float, stderr: float | None, degrees: float) -> float | None:
    if not stderr:  # without any, a sign test's
        return None if stderr is None else 0.5**degrees if mean else 1.0
    return float(2 * stdtr(degrees, -abs(mean) / stderr))


def _bounded(middle: float, half: float, within: tuple[float, float] | None) -> tuple[float, float]:
    lowest, highest = within or (-math.inf, math.inf)
    return max(lowest, middle - half), min(highest, middle + half)


def crossed_difference(differences_SP: np.ndarray) -> Difference:
    """The mean of b − a over S seeds (rows) and P problems (columns), both drawn from many.

    In the two-way random model Var(mean) = ((MS_seeds − MS_rest) + MS_problems) / (S·P), the mean
    squares of an analysis of variance, the first part never below zero. Each part has the t of its
    own degrees of freedom, and the squares of their half intervals add up (Zou & Donner 2008): few
    seeds that differ make a wide interval, seeds that agree do not. With one seed it is the paired
    difference over problems, which says nothing of other seeds.
    """
    values = np.asarray(differences_SP, dtype=float)
    seeds, problems = values.shape
    if seeds == 1:
        return paired_difference(np.maximum(-values[0], 0), np.maximum(values[0], 0))
    mean, by_seed, by_problem = float(values.mean()), values.mean(1), values.mean(0)
    within = (-1.0, 1.0) if np.abs(values).max() <= 1 else None
    if not np.ptp(values):
        alike = mean_with_error(by_problem, within=within).interval
        return Difference(mean, 0.0, alike, _t_test(mean, 0.0, problems - 1), "two-way t")
    rest = values - by_seed[:, None] - by_problem + mean
    free = np.array([seeds - 1, problems - 1])
    of_seeds, of_problems = problems * by_seed.var(ddof=1), seeds * by_problem.var(ddof=1)
    of_rest = (rest**2).sum() / free.prod()
    parts = np.array([max(0.0, of_seeds - of_rest), of_problems]) / values.size

    def half(alpha: float) -> float:
        return math.sqrt(float(stdtrit(free, 1 - alpha / 2) ** 2 @ parts))

    p_value, least = 1.0, 1e-9
    if mean:  # the level at which the interval ends at zero
        beyond = half(least) <= abs(mean)
        p_value = least if beyond else bisect(lambda p: half(p) - abs(mean), least, 1.0)
    interval = _bounded(mean, half(ALPHA), within)
    return Difference(mean, math.sqrt(parts.sum()), interval, p_value, "two-way t")


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95% interval of a plain rate, sound near 0 and 1 too (Wilson 1927)."""
    middle = (successes + Z**2 / 2) / (n + Z**2)
    half = Z / (n + Z**2) * math.sqrt(successes * (n - successes) / n + Z**2 / 4)
    return _bounded(middle, half, (0.0, 1.0))


def rate(rights: Sequence[bool]) -> dict[str, float] | None:
    """A share of right answers with its Wilson interval: rate, low, high, answers; None of none."""
    if not len(rights):
        return None
    low, high = wilson_interval(int(sum(rights)), len(rights))
    return {"rate": sum(rights) / len(rights), "low": low, "high": high, "answers": len(rights)}


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down p-values (1979): the i-th smallest of m counts (m − i + 1) times."""
    order = np.argsort(p_values)
    scaled = np.sort(p_values) * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(scaled).clip(max=1)
    return adjusted


# What may be said


def verdict_word(
    interval: Sequence[float] | None, p_value: float | None, margin: float | None = MARGIN
) -> str:
    """The rule by which a paired difference is put into words; all verdicts follow it.

    "better", "worse": the interval excludes zero and the test agrees (p < 0.05).
    "no difference larger than 3.1 points": neither, and the interval lies within ± `margin` (None
    for scores that are no shares).
    "cannot be told": neither of these, with this many problems.
    """
    low, high = interval or (-math.inf, math.inf)
    if p_value is not None and p_value < ALPHA and (low > 0 or high < 0):
        return "better" if low > 0 else "worse"
    bound = max(-low, high)
    if margin is not None and bound <= margin:
        return f"no difference larger than {points(bound, '')}"
    return "cannot be told"


def points(share: float, sign: str = "+") -> str:
    """A difference of shares: 0.336 is "+33.6 points"."""
    return f"{100 * share:{sign}.1f} points"


def problems_needed(gain: float = MARGIN, changed: float = CHANGED) -> int:
    """How many held-out problems show a true gain in accuracy in 80 of 100 evaluations.

    n = (z_{α/2} √ψ + z_β √(ψ − δ²))² / δ² + 1/δ for gain δ and share ψ of problems that change,
    fixed or broken (Connor 1987, 10.2307/2531961, with a correction for McNemar's exact test).
    """
    gain, changed = abs(gain), max(changed, abs(gain))
    spread = Z * math.sqrt(changed) + float(ndtri(POWER)) * math.sqrt(changed - gain**2)
    return math.ceil(spread**2 / gain**2 + 1 / gain)


def detectable_difference(problems: int, changed: float = CHANGED) -> float | None:
    """The smallest true gain that this many problems show in 80 of 100 evaluations; None where
    not even a gain on every problem would show."""
    if problems_needed(1.0) > problems:
        return None
    return bisect(lambda gain: problems_needed(gain, changed) - problems - 0.5, 1e-3, 1, xtol=1e-5)


def power_sentence(problems: int, changed: float = CHANGED) -> str:
    """What this many held-out problems can show, and how many a gain of 5 points takes."""
    least, needed = detectable_difference(problems, changed), problems_needed(MARGIN, changed)
    shown = "not even the largest gain would show reliably"
    if least is not None:
        shown = f"a true gain of {points(least, '')} or more would show in 4 of 5 evaluations"
    return (
        f"With {problems:,} held-out problem{'s' if problems != 1 else ''} {shown}; a gain of "
        f"{points(MARGIN, '')} takes {needed:,} problems."
    )


def _numbers(values: Sequence[float], name: str) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise BadInput(f"{name} must be a list of finite numbers, not empty.", "stats")
    return array


def _cluster_sums(values: np.ndarray, clusters: Sequence[Hashable] | None) -> np.ndarray:
    """The sum of the values in each cluster; without clusters the values themselves."""
    if clusters is None:
        return values
    sums: dict[Hashable, float] = defaultdict(float)
    for label, value in zip(clusters, values, strict=True):
        sums[label] += value
    return np.array(list(sums.values()))
