"""Tasks whose problems are generated: sums of small numbers, and any reasoning-gym data set.

A hash of a question's text says its split, so none is in both, whatever the pool's size and seed.
"""

import hashlib
import re
import warnings
from dataclasses import replace
from functools import cached_property

from lib.answers import normalize_number
from lib.errors import BadInput, nearest
from lib.tasks.problems import OPEN, Problem, Task, check_split, only_split, task

TEST_SHARE = 0.35


@task("small_sums")
class SmallSums(Task):
    """Every "What is a + b?" of numbers from 0 to `largest`: what a 135M model can learn.

    20 gives 441 questions an operator ("+", "-" or "+-"; differences may be negative), of which
    `test_share` are held out.
    """

    kind = "number"

    def __init__(self, largest: int = 20, operators: str = "+", test_share: float = TEST_SHARE):
        if largest < 1 or operators not in ("+", "-", "+-"):
            said = f"small_sums cannot be made with largest={largest!r}, operators={operators!r}"
            hint = 'give a whole number from 1, and "+", "-" or "+-"'
            raise BadInput(f"{said}: {hint}.", "parameter")
        self.largest, self.operators, self.test_share = largest, operators, test_share

    def load(self, split, data_dir=None):
        check_split(split)
        numbers = range(self.largest + 1)
        problems = [
            self._problem(a, op, b) for op in self.operators for a in numbers for b in numbers
        ]
        return only_split(problems, split, self.test_share)

    def _problem(self, a: int, operator: str, b: int) -> Problem:
        gold = a + b if operator == "+" else a - b
        meta = {"solution": f"{a} {operator} {b} = {gold}", "largest": max(a, b)}
        id, question = f"small_sums/{a}{operator}{b}", f"What is {a} {operator} {b}?"
        return Problem(id, question, str(gold), meta, self.kind)


# Their scorers hand the completion to Python's or sympy's evaluator, letters and all.
_EXECUTE_ANSWERS = {
    *("composite", "intermediate_integration"),
    *("polynomial_multiplication", "simple_integration"),
}
# These evaluate it too, but a right answer needs no more than these characters, with which
# nothing can be called and no power be taken.
_ARITHMETIC = re.compile(r"(?!.*\*\*)[\d\s+\-*/().]{1,200}", re.DOTALL)
_SAFE_ANSWERS = dict.fromkeys(("countdown", "puzzle24"), _ARITHMETIC) | dict.fromkeys(
    ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion"), re.compile(r"[\w\s-]*")
)
# "1e999999999" as an exact fraction would fill the memory (coin_flip's scorer makes one).
_HUGE_EXPONENT = re.compile(r"(?<![\w.,])[\d.,]+[eE][+-]?\d{3}")
_LONGEST_ANSWER = 10_000  # characters
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?")
_POOLS: dict[str, list[dict]] = {}  # a notebook asks for the same problems several times


@task("reasoning_gym")
class ReasoningGym(Task):
    """A data set of reasoning-gym (arXiv 2505.24760), graded by its own scorer.

    Args:
        dataset: its name there, such as "chain_sum".
        size: how many questions are drawn; repeated ones fall away.
        seed: of the draw.
        test_share: the share of questions held out as the test split.
        numbers_at_most: leaves out questions in which a larger number stands.
        parameters: the data set's own, such as min_terms=2.
    """

    def __init__(
        self,
        dataset: str = "chain_sum",
        size: int = 2000,
        seed: int = 0,
        test_share: float = TEST_SHARE,
        numbers_at_most: int | None = None,
        **parameters,
    ):
        self.dataset, self.test_share, self.numbers_at_most = dataset, test_share, numbers_at_most
        parameters |= {"size": size, "seed": seed}
        self.generator = _make_generator(dataset, parameters)
        self.asked = repr((dataset, numbers_at_most, sorted(parameters.items())))

    @property
    def pool(self) -> list[dict]:
        """reasoning-gym's entries (question, answer, metadata), each question once."""
        if self.asked not in _POOLS:
            _POOLS[self.asked] = self._draw()
        return _POOLS[self.asked]

    def _draw(self) -> list[dict]:
        most = float("inf") if self.numbers_at_most is None else self.numbers_at_most
        entries = {}
        for index in range(len(self.generator)):
            entry = self.generator[index]
            numbers = re.findall(r"\d+(?:\.\d+)?", entry["question"])
            if all(float(number) <= most for number in numbers):
                entries.setdefault(entry["question"], entry)
        if not entries:
            said = f"No question of reasoning_gym's {self.dataset!r} has all numbers at most {most}"
            raise BadInput(f"{said}: raise numbers_at_most or size.", "empty")
        return list(entries.values())

    @cached_property
    def kind(self) -> str:
        """ "number" where every answer of the pool is one, else "open"."""
        plain = all(_NUMBER.fullmatch(entry["answer"] or "") for entry in self.pool)
        return "number" if plain else OPEN

    def load(self, split, data_dir=None):
        check_split(split)
        return only_split([self._problem(e) for e in self.pool], split, self.test_share)

    def grade(self, problem, text, tags=None):
        """Finds the answer as every task does; right is what the data set's scorer gives 1.0."""
        grade = super().grade(problem, text, tags)
        answer = grade.extracted
        if answer is not None and self.kind == "number":
            answer = normalize_number(answer) or answer  # scorers know no "$18.00"
        correct = self.score(problem, answer) == 1.0
        wrong = grade.why if answer is None else "differs"
        return replace(grade, correct=correct, why=None if correct else wrong)

    def score(self, problem: Problem, answer: str | None) -> float:
        """reasoning-gym's own score, 0 to 1; 0 for what its scorer would have to execute."""
        if answer is None or len(answer) > _LONGEST_ANSWER or _HUGE_EXPONENT.search(answer):
            return 0.0
        safe = _SAFE_ANSWERS.get(self.dataset)
        if safe and not safe.fullmatch(answer):
            return 0.0
        try:
            return float(self.generator.score_answer(answer, problem.meta["entry"]))
        except Exception:  # a scorer that stumbles over an answer does not call it right
            return 0.0

    def _problem(self, entry: dict) -> Problem:
        # The id is the question's own, so that it stays when the pool's size or seed changes.
        digest = hashlib.sha256(entry["question"].encode()).hexdigest()[:12]
        gold = entry["answer"] or ""  # none where many answers are right, as in graph_color
        meta = {"entry": entry}
        return Problem(f"{self.dataset}/{digest}", entry["question"], gold, meta, self.kind)


def _make_generator(dataset: str, parameters: dict):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # a dependency's `is "…"`, each time
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    if dataset not in DATASETS:
        raise BadInput(f"reasoning_gym has no data set {dataset!r}: {nearest(dataset, DATASETS)}")
    if dataset in _EXECUTE_ANSWERS:
        said = f"reasoning_gym's {dataset!r} is not offered: its scorer runs the model's answer"
        raise BadInput(f"{said} as a program; choose another data set.", "unsafe")
    known = DATASETS[dataset][1].__dataclass_fields__
    for name in parameters:
        if name not in known:
            hint = nearest(name, known)
            raise BadInput(f"reasoning_gym's {dataset!r} has no parameter {name!r}: {hint}")
    try:
        return reasoning_gym.create_dataset(dataset, **parameters)
    except Exception as error:  # each data set checks its parameters in its own way
        said = f"{parameters}: {error or type(error).__name__}"
        raise BadInput(f"reasoning_gym's {dataset!r} refuses {said}.", "parameter") from error
