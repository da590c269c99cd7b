"""The error of a difference measured on the same problems with several seeds.

Seeds and problems are both drawn from many: a difference that one seed shows on all problems, or
one problem with all seeds, counts once and not as often as it was seen.
"""

import math

import numpy as np

from lib.errors import BadInput
from lib.evaluation.stats import Difference, paired_difference


def crossed_difference(differences_SP: np.ndarray, level: float = 0.95) -> Difference:
    """The mean of b − a over S seeds (rows) and P problems (columns), with its interval.

    The two-way random model: Var(mean) = (MS_seeds + MS_problems − MS_rest) / (S·P), the mean
    squares of an analysis of variance, never below the larger of the first two; degrees of
    freedom by Satterthwaite 1946, at least those of the seeds. With one seed it is the paired
    difference over problems, which says nothing of other seeds.

    Raises:
        BadInput: fewer than two problems.
    """
    from scipy.stats import t as student

    values = np.asarray(differences_SP, dtype=float)
    seeds, problems = values.shape
    if problems < 2:
        raise BadInput("A difference needs two problems at least: evaluate more.")
    if seeds == 1:
        return paired_difference(np.zeros(problems), values[0], level=level)
    mean = float(values.mean())
    by_seed, by_problem = values.mean(1), values.mean(0)
    rest = values - by_seed[:, None] - by_problem[None] + mean
    squares = np.array(
        [
            problems * np.var(by_seed, ddof=1),
            seeds * np.var(by_problem, ddof=1),
            (rest**2).sum() / ((seeds - 1) * (problems - 1)),
        ]
    )
    free = np.array([seeds - 1, problems - 1, (seeds - 1) * (problems - 1)])
    whole = max(squares[0] + squares[1] - squares[2], squares[0], squares[1])
    if whole == 0:
        return Difference(mean, 0.0, (mean, mean), None, "two-way t")
    degrees = max(seeds - 1, whole**2 / (squares**2 / free).sum())
    stderr = math.sqrt(whole / values.size)
    half = student.ppf((1 + level) / 2, degrees) * stderr
    p_value = 2 * student.sf(abs(mean) / stderr, degrees)
    return Difference(mean, stderr, (mean - half, mean + half), float(p_value), "two-way t")
