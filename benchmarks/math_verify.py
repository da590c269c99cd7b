"""What the suite's own comparison of mathematics brings beside math_verify alone.

    python benchmarks/math_verify.py [--completions FILE] [--json FILE]

The graders share the extraction of `lib.answers`. "ours" compares as `lib.answers.math` does;
"math_verify" compares by the same number, else the same normalised string, else math_verify;
"ours, then math_verify" asks it about what ours calls different. Counted are the verdicts of each
that are wrong: on the hand-made corpus, on MATH's golds (each against its own solution, and against
the next gold, which differs), and, with ``--completions``, the verdicts in which the first two
differ on real completions: JSON Lines of {"text", "gold"}. ``--write-completions FILE`` makes such
a file from the evaluation example of Qwen2.5-Math (``--qwen FILE``: its
data/eval_rm_maj_example/math_cot_100.jsonl).
"""

import argparse
import json
import os
import platform
import re
import sys
import time
import warnings
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # where math_verify is no benchmark

from math_verify import LatexExtractionConfig, parse, verify  # noqa: E402

from lib import answers  # noqa: E402
from lib.answers import formulas, math, numerals  # noqa: E402

DATA = Path(os.environ.get("GRPO_DATA_DIR") or ROOT / ".." / "shared" / "data")
CORPUS = ROOT / "tests" / "data" / "answers_corpus.jsonl"
NOISE = re.compile(
    r"\\(?:left|right|displaystyle|[,!;: ]|[bB]igg?[lr]?(?![a-z]))|\\?\$|\\%|%|\\text\s*\{[^{}]*\}$"
    r"|\^\{?\\circ\}?|[\s.]+$"
)
# What no alarm interrupts: towers of powers, huge exponents, factorials and numbers.
HUGE = re.compile(r"(?:\^|\*\*)[({ ]*(?:\d+\s?(?:\^|\*\*)|\d{4})|\d{4}\)?\s?!|!\s?!|\d{200}")


@cache
def says_math_verify(mine: str, gold: str) -> bool:
    if HUGE.search(mine + gold) or len(mine + gold) > 600:
        return False
    sides = [parse(f"${answer}$", [LatexExtractionConfig()]) for answer in (gold, mine)]
    return all(sides) and verify(*sides)


def same_by_math_verify(mine: str, gold: str) -> bool:
    """The same number, else the same normalised string, else math_verify's verdict."""
    texts = [numerals.unwrap(answer).rstrip(" .%") for answer in (mine, gold)]
    numbers = [match and numerals._value(match) for match in map(numerals._NUMBER.fullmatch, texts)]
    if None not in numbers:
        return numbers[0] == numbers[1]
    if normalised(mine) == normalised(gold):
        return True
    return says_math_verify(mine, gold)


def same_by_both(mine: str, gold: str) -> bool:
    return math.same_math(mine, gold) or says_math_verify(*map(math.one_spelling, (mine, gold)))


def normalised(answer: str) -> str:
    answer = re.sub(r"\\[dt]frac", r"\\frac", NOISE.sub("", answer.strip()))
    answer = re.sub(r"\\(?:text|mathrm)\s*\{([^{}]*)\}", r"\1", answer)
    return "".join(re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", answer).split())


def unreadable(*arguments, **options):
    raise formulas.Unreadable


# What is left out, where it stands, and what takes its place.
PARTS = {
    "values": (math, "same_value", lambda a, b: False),
    "functions": (formulas._Reader, "function", unreadable),
    "matrices": (formulas._Reader, "matrix", unreadable),
    "lists and brackets": (math, "_same_sequence", lambda a, b: False),
    "order of sets": (math, "_unordered", lambda a, b: False),
    "equations": (math, "_same_relation", lambda a, b: False),
    "parts of the real line": (math, "_same_region", lambda mine, gold: None),
    "percent": (math, "has_percent", lambda text: False),
    "degrees and radians": (math, "_is_angle", lambda a, b: False),
    "families of solutions": (math, "_renamed", lambda mine, gold: mine),
    "golds of few digits": (formulas, "_rounds_to", lambda a, b: False),
}


@contextmanager
def replaced(owner, name, function):
    before = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, before)


def verdict(case: dict) -> bool:
    if "text" in case:
        return answers.grade(case["text"], case["gold"], "math", case.get("tags")).correct
    text = f"<answer>{case['predicted']}</answer>"
    return answers.grade(text, case["gold"], "math", "answer").correct


def verdicts(cases: list[dict], function=None) -> tuple[list[bool], float]:
    """The verdicts, and the seconds that 1,000 of them take."""
    says_math_verify("x + y", "y")  # no import is counted
    says_math_verify.cache_clear()
    start = time.perf_counter()
    with replaced(answers, "same_math", function or answers.same_math):
        result = [verdict(case) for case in cases]
    return result, 1000 * (time.perf_counter() - start) / len(cases)


def compared(cases: list[dict]) -> dict:
    """Both graders on labelled cases, or their differences where the cases have no label."""
    (ours, our_time), (theirs, their_time) = verdicts(cases), verdicts(cases, same_by_math_verify)
    both, both_time = verdicts(cases, same_by_both)
    labels = [case.get("correct") for case in cases]
    row = {"cases": len(cases), "differ": sum(a != b for a, b in zip(ours, theirs, strict=True))}
    for name, seen, seconds in (
        ("ours", ours, our_time),
        ("math_verify", theirs, their_time),
        ("ours, then math_verify", both, both_time),
    ):
        pairs = list(zip(seen, labels, strict=True))
        row[name] = {
            "right_called_wrong": sum(label is True and not said for said, label in pairs),
            "wrong_called_right": sum(label is False and said for said, label in pairs),
            "called_right": sum(seen),
            "seconds_per_1000": round(seconds, 3),
        }
    flips = [case for case, a, b in zip(cases, ours, theirs, strict=True) if a != b]
    keys = ("text", "predicted", "gold", "reason") if None not in labels else ("gold",)
    row["flips"] = [
        {key: str(case[key])[-120:] for key in keys if key in case} for case in flips[:20]
    ]
    return row


def without_each_part(cases: list[dict]) -> dict[str, int]:
    """How many verdicts of the corpus turn wrong where one part of the suite's own is left out."""
    wrong = {}
    for part, patch in PARTS.items():
        formulas.read_answer.cache_clear()
        with replaced(*patch):
            wrong[part] = sum(verdict(case) is not case["correct"] for case in cases)
    formulas.read_answer.cache_clear()
    return wrong


def golds() -> tuple[list[dict], list[dict]]:
    rows = [json.loads(line) for f in ("math500/test.jsonl", "math/train.jsonl")
            for line in (DATA / f).open(encoding="utf-8")]  # fmt: skip
    rows = [row for row in rows if row["answer"]]
    own = [{"text": r["solution"], "gold": r["answer"], "correct": True} for r in rows]
    others = [
        {"predicted": a["answer"], "gold": b["answer"], "correct": False}
        for a, b in pairwise(rows)
        if normalised(a["answer"]) != normalised(b["answer"])
    ]
    return own, others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--completions", type=Path)
    parser.add_argument("--qwen", type=Path)
    parser.add_argument("--write-completions", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.qwen:
        rows = [json.loads(line) for line in options.qwen.open(encoding="utf-8")]
        lines = [{"text": t, "gold": row["answer"]} for row in rows for t in row["code"]]
        options.write_completions.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return
    corpus = [json.loads(line) for line in CORPUS.open(encoding="utf-8")]
    own, others = golds()
    sets = {
        "corpus": [case for case in corpus if case["kind"] == "math"],
        "golds_in_their_solutions": own,
        "golds_beside_the_next": others,
    }
    if options.completions:
        sets["completions"] = [json.loads(x) for x in options.completions.open(encoding="utf-8")]
    report = {
        "versions": {"python": platform.python_version(), "math-verify": version("math-verify")},
        "processor": platform.processor() or platform.machine(),
    }
    for name, cases in sets.items():
        report[name] = compared(cases)
        print(name, json.dumps({k: v for k, v in report[name].items() if k != "flips"}))
    report["wrong_without"] = without_each_part(sets["corpus"])
    print("wrong without", json.dumps(report["wrong_without"]))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
