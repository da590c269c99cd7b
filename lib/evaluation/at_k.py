"""How k samples of a problem would do together: pass@k, majority@k and best-of-k.

    >>> pass_at_k(n=10, c=3, k=5)  # 10 samples, 3 of them right, 5 tries
    0.9166666666666666

All are exact means over every choice of k of the n samples that were taken, so a larger n
only makes them less noisy. Import them from `lib.evaluation.stats`, where their error bars are.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from lib.errors import BadInput


def pass_at_k(n, c, k):
    """The chance that at least one of k samples is right, from c right ones among n.

    1 − C(n−c, k) / C(n, k), unbiased (Chen et al. 2021, arXiv 2107.03374, eq. 1). Computed with
    whole numbers, so exact to the last digit. Arrays are broadcast; numbers give a float.

    Raises:
        BadInput: k < 1, n < k, c < 0 or c > n, or one of them is no whole number.
    """
    n, c, k = (whole_numbers(value, name) for value, name in ((n, "n"), (c, "c"), (k, "k")))
    if np.any(k < 1) or np.any(n < k):
        raise BadInput(f"pass@k needs n ≥ k ≥ 1 samples a problem: n is {n}, k is {k}.")
    if np.any(c < 0) or np.any(c > n):
        raise BadInput(f"Of n = {n} samples c = {c} cannot be right: c must lie in 0 … n.")
    values = np.vectorize(_pass_at_k, otypes=[float])(n, c, k)
    return values if values.ndim else float(values)


def _pass_at_k(n: int, c: int, k: int) -> float:
    n, c, k = int(n), int(c), int(k)  # Python's, which do not overflow
    tries = math.comb(n, k)
    return (tries - math.comb(n - c, k)) / tries


def mean_pass_at_k(counts, n, k: int) -> float:
    """pass@k of each problem (`counts` right ones of its n samples), then the mean.

    Its error bar is `mean_with_error(pass_at_k(n, counts, k))`.
    """
    counts = whole_numbers(counts, "counts")
    if counts.size == 0:
        raise BadInput("There are no problems to take the mean of: counts is empty.")
    return float(np.mean(pass_at_k(n, counts, k)))


def majority_at_k(answers: Sequence[Hashable], correct: Sequence, k: int) -> float:
    """The chance that the majority vote among k of one problem's n samples is right.

    Exact: the mean over all C(n, k) choices of k samples without replacement ("self-consistency",
    Wang et al. 2022, arXiv 2203.11171, with pass@k's way of averaging). A tie is settled by lot.

    Args:
        answers: each sample's extracted answer, equal ones written the same; None gives no vote.
        correct: whether each is right (0/1). An answer counted right in some samples only
            (strictly graded, say) is worth its share.
    """
    groups: dict[Hashable, list[float]] = defaultdict(list)
    n = _samples(answers, correct, k)
    for answer, right in zip(answers, correct, strict=True):
        groups[answer].append(float(right))
    silent = len(groups.pop(None, []))
    sizes = [len(rights) for rights in groups.values()]
    chance = 0.0
    for index, rights in enumerate(groups.values()):
        if any(rights):
            others = sizes[:index] + sizes[index + 1 :]
            ways = _ways_to_win(len(rights), others, silent, k)
            chance += ways * sum(rights) / len(rights)
    return chance / math.comb(n, k)


def _ways_to_win(size: int, others: list[int], silent: int, k: int) -> float:
    """How many choices of k samples a group of `size` equal answers wins; a tie of t counts 1/t.

    For each number of its votes, `ways[used, ties]` counts the choices of `used` samples from
    the others in which none has more votes and `ties` have as many.
    """
    won = 0.0
    for votes in range(1, min(size, k) + 1):
        left = k - votes
        ways = np.zeros((left + 1, left // votes + 2))
        for used in range(min(silent, left) + 1):
            ways[used, 0] = math.comb(silent, used)
        for other in others:
            after = ways.copy()  # no vote from this group
            for taken in range(1, min(other, votes, left) + 1):
                more = math.comb(other, taken) * ways[: left + 1 - taken]
                if taken < votes:
                    after[taken:] += more
                else:
                    after[taken:, 1:] += more[:, :-1]
            ways = after
        won += math.comb(size, votes) * float(ways[left] @ (1 / np.arange(1, ways.shape[1] + 1)))
    return won


def best_of_k(scores: Sequence[float], correct: Sequence, k: int) -> float:
    """How good the sample with the highest score is, among k of one problem's n samples.

    Exact: the mean over all C(n, k) choices without replacement. A group of T samples with equal
    scores, L samples below it, holds the highest of C(L+T, k) − C(L, k) choices, and is then
    worth its mean. (With `correct` as the score this is pass@k.)

    Args:
        scores: each sample's reward; no NaN.
        correct: whether each is right (0/1), or any other measure of it.
    """
    n = _samples(scores, correct, k)
    scores, correct = numbers(scores, "scores"), numbers(correct, "correct")
    total, below = 0.0, 0
    for score in np.unique(scores):
        group = correct[scores == score]
        wins = math.comb(below + len(group), k) - math.comb(below, k)
        total += wins / math.comb(n, k) * float(group.mean())
        below += len(group)
    return total


def _samples(first: Sequence, second: Sequence, k: int) -> int:
    if len(first) != len(second):
        raise BadInput(f"{len(first)} samples and {len(second)} verdicts: give one a sample.")
    if not 1 <= k <= len(first):
        raise BadInput(f"k is {k} and there are {len(first)} samples: choose k from 1 to n.")
    return len(first)


def numbers(values, name: str) -> np.ndarray:
    """A non-empty row of finite numbers."""
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise BadInput(f"{name} must be numbers, one each: some are not.") from None
    if array.ndim != 1 or array.size == 0:
        raise BadInput(f"{name} must be a list of numbers with at least one in it.")
    if not np.isfinite(array).all():
        raise BadInput(f"{name} holds {np.sum(~np.isfinite(array))} values that are no numbers.")
    return array


def whole_numbers(value, name: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype == bool or (array.dtype.kind == "f" and np.all(array == np.floor(array))):
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise BadInput(f"{name} must be whole numbers, not {value!r}.")
    return array
