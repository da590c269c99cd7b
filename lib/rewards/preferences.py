"""Preference pairs: two answers to one prompt, of which the first is preferred.

    training, held_out = load_pairs(config)
    training[0].chosen, training[0].rejected

Pairs come from a data set of people's choices (task "preference_pairs"), or are made from the
right answers of the recipe's own task: preferred to a wrong answer, and to one without its tags.
What a reward model makes of held-out pairs is measured here, too, from its scores alone.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lib.config import Config
from lib.errors import BadInput
from lib.stats import rate
from lib.tasks import Problem, load_problems, sample_problems
from lib.tasks.prompts import PromptFormat, get_format, make_rows


@dataclass(frozen=True)
class Pair:
    """
    Attributes:
        prompt: chat messages, as the policy gets them.
        fault: why `rejected` is rejected: "people's choice", "wrong answer" or "no tags".
    """

    id: str
    question: str
    prompt: list[dict]
    chosen: str
    rejected: str
    fault: str

    @property
    def longer_wins(self) -> bool:
        """Whether the preferred answer is the longer one, in characters."""
        return len(self.chosen) > len(self.rejected)


def load_pairs(config: Config) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train a reward model on, and held-out ones; no question stands in both.

    Raises:
        BadInput: the task has neither rejected answers nor right ones to make pairs from.
    """
    own = {"task": config.preferences, "task_config": {}} if config.preferences else {}
    all_of = {"train_problems": 0, "eval_problems": 0}
    pairs_config = config.model_copy(update=own | all_of)
    _, training, held_out, examples = load_problems(pairs_config)
    training, held_out = (_pairs(some, pairs_config, examples) for some in (training, held_out))
    return training, sample_problems(held_out, min(config.reward_held_out, len(held_out)), seed=0)


def _pairs(problems: Sequence[Problem], config: Config, examples: Sequence[Problem]) -> list[Pair]:
    form, draw = get_format(config.prompt_format), random.Random(config.seed)
    rows = {r["id"]: r for r in make_rows(problems, form, config.shots, examples)}
    return [
        Pair(problem.id, problem.question, rows[problem.id]["prompt"], *answers)
        for problem in problems
        if problem.id in rows
        for answers in _answers(problem, form, problems, draw)
    ]


def _answers(
    problem: Problem, form: PromptFormat, problems: Sequence[Problem], draw: random.Random
) -> list[tuple[str, str, str]]:
    """(chosen, rejected, fault) for each pair that the problem gives."""
    if "rejected" in problem.meta:
        return [(problem.meta["chosen"], problem.meta["rejected"], "people's choice")]
    if problem.kind == "open":
        raise BadInput(
            f"{problem.id} has no rejected answer and no right one to make pairs from: set "
            f"preferences to a task that has pairs, as preference_pairs."
        )
    right, other = form.show(problem), draw.choice(problems).answer
    found = []
    if other != problem.answer:
        found.append((right, form.show(replace(problem, answer=other)), "wrong answer"))
    if form.answer_tag:
        found.append((right, problem.answer, "no tags"))
    return found


def halves(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Two parts of about the same size that share no question."""

    def is_first(pair: Pair) -> bool:
        return hashlib.sha256(pair.question.encode("utf-8", "replace")).digest()[0] < 128

    return [p for p in pairs if is_first(p)], [p for p in pairs if not is_first(p)]


def attacks(pair: Pair, other: Pair) -> dict[str, str]:
    """Answers that are worse than the preferred one, and might look better to a reward model.

    Args:
        other: a pair with another question.
    """
    words = pair.chosen.split()
    return {
        "rejected": pair.rejected,
        "rejected, praised": f"Great question! Here is a perfect answer.\n\n{pair.rejected}",
        "rejected, three times": "\n\n".join([pair.rejected] * 3),
        "chosen, three times": "\n\n".join([pair.chosen] * 3),
        "chosen, first half": " ".join(words[: len(words) // 2]),
        "answer to another question": other.chosen,
        "the question again": pair.question,
        "nothing": "",
    }


def accuracy(margins: Sequence[float]) -> dict:
    """How often the preferred answer scores higher, with its Wilson interval (`rate`)."""
    return rate([margin > 0 for margin in margins])


def quality(pairs: Sequence[Pair], margins: Sequence[float]) -> list[dict]:
    """Pairwise accuracy on held-out pairs: in all, beside "the longer wins", and in parts.

    Args:
        margins: score of chosen minus score of rejected, one a pair.

    Returns: a row a measure: what, rate, low, high, answers (the number of pairs).
    """
    longer = [pair.longer_wins for pair in pairs]
    parts = {f"pairs: {fault}": [p.fault == fault for p in pairs] for fault in _faults(pairs)}
    parts |= {
        "pairs whose longer answer is preferred": longer,
        "pairs whose shorter answer is preferred": [
            len(pair.chosen) < len(pair.rejected) for pair in pairs
        ],
    }
    rows = [
        {"what": "reward model", **accuracy(margins)},
        {"what": "rule: the longer wins", **rate(longer)},
    ]
    for what, chosen in parts.items():
        found = [margin for margin, is_in in zip(margins, chosen, strict=True) if is_in]
        if found and len(found) < len(pairs):
            rows.append({"what": what, **accuracy(found)})
    return rows


def _faults(pairs: Sequence[Pair]) -> list[str]:
    return list(dict.fromkeys(pair.fault for pair in pairs))


def reliability(margins: Sequence[float], groups: int = 5) -> list[dict]:
    """The Bradley-Terry probability of the answer that scores higher, against how often it wins.

    P(a before b) = 1/(1 + exp(−(r_a − r_b))) (Bradley & Terry 1952).

    Returns: a row a group of about equally many pairs: share (mean probability), and as `rate`.
    """
    margins = np.asarray(margins, dtype=float)
    sure = 1 / (1 + np.exp(-np.abs(margins)))
    order = np.argsort(sure, kind="stable")
    return [
        {"share": float(sure[part].mean())} | rate((margins[part] > 0).tolist())
        for part in np.array_split(order, min(groups, len(order)))
    ]


def length_correlation(pairs: Sequence[Pair], margins: Sequence[float]) -> float:
    """Spearman's rank correlation of the score's margin and the margin in length."""
    from scipy.stats import spearmanr

    lengths = [len(pair.chosen) - len(pair.rejected) for pair in pairs]
    return float(spearmanr(margins, lengths).statistic)
