"""The tasks one can name, and the problems drawn from them.

    >>> from lib.tasks import get_task
    >>> get_task("small_sums", {"largest": 20}).load("test")[0].question
    'What is 0 + 0?'

What a task is, and how to add one, stands in `lib.tasks.problems`; tasks whose
problems are generated in `lib.tasks.generated`; how a problem becomes a prompt in
`lib.tasks.prompts`. Their public names can be imported from here.
"""

import hashlib
import inspect
import random
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from lib.errors import BadInput, nearest
from lib.tasks.generated import ReasoningGym, SmallSums
from lib.tasks.problems import (
    KINDS,
    TASKS,
    Problem,
    StoredTask,
    Task,
    check_split,
    only_split,
    task,
)
from lib.tasks.prompts import PROMPT_FORMATS, PromptFormat, boxed_spans, get_format, make_rows
from lib.tasks.sources import read_rows

__all__ = [
    "PROMPT_FORMATS",
    "TASKS",
    "Problem",
    "PromptFormat",
    "ReasoningGym",
    "SmallSums",
    "StoredTask",
    "Task",
    "few_shot_examples",
    "get_format",
    "get_task",
    "make_rows",
    "sample_problems",
    "summary_scores",
    "task",
]


def get_task(name: str, config: dict | None = None) -> Task:
    """The task `name`, made with the parameters in `config`.

    Raises:
        BadInput: unknown task or parameter (the nearest right one is named), or one missing.
    """
    if name not in TASKS:
        raise BadInput(f"There is no task {name!r}: {nearest(name, TASKS)}")
    cls, config = TASKS[name], config or {}
    parameters = inspect.signature(cls).parameters.values()
    known = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
    unknown = [key for key in config if key not in known]
    if unknown and len(known) == len(parameters):
        raise BadInput(
            f"Task {name!r} has no parameter {unknown[0]!r}: {nearest(unknown[0], known)}"
        )
    for p in parameters:
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD and p.name not in config:
            raise BadInput(f"Task {name!r} needs the parameter {p.name!r}: add it to its config.")
    return cls(**config)


def sample_problems(problems: Sequence[Problem], n: int | None, seed: int) -> list[Problem]:
    """`n` of the problems, drawn without replacement and kept in their order; all for None or 0.

    Raises:
        BadInput: more are asked for than there are, or n is negative.
    """
    if not n:
        return list(problems)
    if not 0 < n <= len(problems):
        raise BadInput(f"{n} problems are asked for and there are {len(problems)}: ask for fewer.")
    chosen = random.Random(seed).sample(range(len(problems)), n)
    return [problems[index] for index in sorted(chosen)]


def few_shot_examples(task: Task, n: int, data_dir: str | Path | None = None) -> list[Problem]:
    """`n` worked examples, always the same, from the train split.

    They come from the task itself, or from the task named in its `examples_from` where it has
    no train split of its own. `make_rows` keeps the ones it shows out of its rows.
    """
    if n == 0:
        return []
    source = get_task(task.examples_from) if task.examples_from else task
    return sample_problems(source.load("train", data_dir), n, seed=0)


@task("gsm8k")
class Gsm8k(StoredTask):
    """Grade-school word problems (Cobbe et al. 2021, arXiv 2110.14168)."""

    kind, folder, hub = "number", "gsm8k", ("openai/gsm8k", "main")

    def problem(self, row, id):
        solution, marker, gold = row["answer"].rpartition("####")
        if not marker:
            raise BadInput(f'{id}: the answer has no "#### " before its number: mend that row.')
        # <<48/2=24>> marks what the data set's authors sent to a calculator.
        solution = re.sub(r"<<.*?>>", "", solution).strip()
        return Problem(id, row["question"], gold.strip(), {"solution": solution}, self.kind)


@task("numina")
class NuminaMath(StoredTask):
    """Competition mathematics, whose gold stands in the solution's last \\boxed{}.

    A twentieth of its questions is the test split; `math500` is the benchmark others report.
    """

    kind, folder, hub = "math", "math", ("AI-MO/NuminaMath-TIR",)
    columns, held_out = ("problem", "solution"), 0.05

    def problem(self, row, id):
        gold = row.get("answer")
        if not gold:
            boxes = boxed_spans(row["solution"])
            gold = row["solution"][slice(*boxes[-1])] if boxes else None
        if not gold:
            return None
        meta = {"solution": row["solution"], "subject": row.get("subject"), "level": _level(row)}
        return Problem(row.get("unique_id", id), row["problem"], gold, meta, self.kind)


@task("math500")
class Math500(NuminaMath):
    """500 problems of MATH's test split (Hendrycks et al. 2021; Lightman et al. 2023)."""

    folder, hub = "math500", ("HuggingFaceH4/MATH-500",)
    columns = ("problem", "solution", "answer", "subject", "level", "unique_id")
    held_out, examples_from = 0.0, "numina"

    def load(self, split, data_dir=None):
        if split == "train":
            raise BadInput('Task "math500" has no train split: train on "numina", test on this.')
        return super().load(split, data_dir)


def _level(row: dict) -> int | None:
    """MATH's difficulty 1 to 5, written 5 or "Level 5"; None where it is unknown."""
    digits = re.search(r"\d+", str(row.get("level", "")))
    return int(digits[0]) if digits else None


@task("aqua")
class Aqua(StoredTask):
    """Algebra word problems with five options (Ling et al. 2017, arXiv 1705.04146).

    The small validation split serves as train.
    """

    kind, folder, hub = "choice", "aqua_rat", ("deepmind/aqua_rat", "raw")
    splits = {"train": "validation"}  # noqa: RUF012
    columns = ("question", "options", "rationale", "correct")

    def problem(self, row, id):
        options = [re.sub(r"^([A-E])\)\s*", r"\1) ", option) for option in row["options"]]
        question = "\n".join([row["question"], "Options (answer with the letter):", *options])
        meta = {"solution": row["rationale"], "options": options}
        return Problem(id, question, row["correct"], meta, self.kind)


@task("smoltldr")
class SmolTldr(StoredTask):
    """Summaries of one sentence or two; the gold is a summary that a person wrote."""

    kind, folder, hub = "text", "scitldr", ("mlabonne/smoltldr",)
    columns, repeats = ("prompt", "completion"), True

    def problem(self, row, id):
        return Problem(id, row["prompt"], row["completion"], {}, self.kind)


@task("preference_pairs")
class PreferencePairs(StoredTask):
    """Prompts with a preferred and a rejected completion, to train a reward model on.

    Several pairs may have one question: they are one cluster.

    Args:
        longest: characters of a question with its system message; longer ones are left out.
            0: none are.
    """

    kind, folder, hub = "text", "preference_pairs", ("Intel/orca_dpo_pairs",)
    hub_splits = {"train": "train[:95%]", "test": "train[95%:]"}  # noqa: RUF012
    columns, repeats = ("question", "chosen", "rejected"), True

    def __init__(self, longest: int = 0):
        self.longest = longest

    def problem(self, row, id):
        system = row.get("system") or ""
        if self.longest and len(system) + len(row["question"]) > self.longest:
            return None
        chosen, rejected = str(row["chosen"]), str(row["rejected"])
        meta = {"chosen": chosen, "rejected": rejected, "system": system}
        meta["cluster"] = hashlib.sha256(row["question"].encode()).hexdigest()[:12]
        return Problem(id, row["question"], chosen, meta, self.kind)


@task("jsonl")
class JsonLines(Task):
    """Problems in a JSON Lines file of one's own; its other columns become meta.

    Args:
        path: the file (relative to the working folder).
        question, answer: the names of its columns.
        kind: how answers are compared: "number", "math", "choice" or "text".
        test_path: a second file, which is then the test split.
        test_share: the share of questions held out as the test split, chosen by their text.
            With neither, both splits are the whole file: then do not train and test on it.
    """

    def __init__(
        self,
        path: str,
        question: str = "question",
        answer: str = "answer",
        kind: str = "number",
        test_path: str | None = None,
        test_share: float = 0.0,
    ):
        if kind not in KINDS:
            raise BadInput(f"There is no kind of answer {kind!r}: {nearest(kind, KINDS)}")
        self.path, self.question, self.answer = path, question, answer
        self.kind, self.test_path, self.test_share = kind, test_path, test_share

    def load(self, split, data_dir=None):
        check_split(split)
        path = self.test_path if split == "test" and self.test_path else self.path
        rows = read_rows(path, (self.question, self.answer))
        problems = [self._problem(row, f"{Path(path).stem}/{i}") for i, row in enumerate(rows)]
        if not self.test_share or self.test_path:
            return problems
        return only_split(problems, split, self.test_share)

    def _problem(self, row: dict, id: str) -> Problem:
        meta = {key: row[key] for key in row if key not in (self.question, self.answer, "id")}
        id, question, gold = str(row.get("id", id)), row[self.question], str(row[self.answer])
        return Problem(id, str(question), gold, meta, self.kind)


def summary_scores(text: str, gold: str) -> dict[str, float]:
    """How long a summary is, and how much of a written one it shares.

    Returns: characters and words of the text and of the gold, their length ratio (in words),
    and the F1 of rouge1, rouge2 and rougeL (Lin 2004, with stemming, by rouge_score), 0 to 1.
    """
    words, gold_words = len(text.split()), len(gold.split())
    lengths = {
        "characters": len(text),
        "words": words,
        "gold_characters": len(gold),
        "gold_words": gold_words,
        "length_ratio": words / gold_words if gold_words else 0.0,
    }
    rouge = _rouge_scorer().score(target=gold, prediction=text)
    return lengths | {name: score.fmeasure for name, score in rouge.items()}


@cache
def _rouge_scorer():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
