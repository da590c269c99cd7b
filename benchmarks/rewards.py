"""How fast the rewards are, beside TRL's accuracy reward and math_verify in the same run.

    python benchmarks/rewards.py [--rows 300] [--json FILE]

Completions are the solutions that come with MATH and GSM8K, as they are for grading in free
text, and in tags for a recipe. Each is graded once against its own gold answer and once against
another row's. All on one core; a ratio above 1 means that ours is faster.
"""

import argparse
import json
import logging
import math
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lib.rewards import (  # noqa: E402
    REWARDS,
    build_rewards,
    rules,
)

DATA = Path(os.environ.get("GRPO_DATA_DIR") or ROOT / ".." / "shared" / "data")
FILES = {"MATH": ("math/train.jsonl", "math500/test.jsonl"), "GSM8K": ("gsm8k/test.jsonl",)}
RECIPE = ("correctness", "partial_credit", "gated_format", "hard_format", "mark", "xmlcount")
RECIPE += ("digit", "repetition_penalty", "soft_overlong")
STATED = tuple(REWARDS)
LONG = 100_000
HOSTILE = ["7", "a", " ", "\n", "\0", "$", "\\boxed{", "\\boxed{18} ", "{}{{}}", "\\frac{1}{"]
HOSTILE += ["1 2 3 18 ", "1 + 1 + ", "1+1=2 ", "<answer>", "<answer>18</answer>", "#### ", "18x ^2"]
HOSTILE += ["the answer is ", "9**9**9 ", "100000! ", "__import__('os') ", "Step 1: do. ", "\n- "]


def read_samples(name: str, n: int, skip: int = 0) -> list[tuple[str, str, str]]:
    """n (solution, gold, kind) spread evenly over a data set; another `skip` gives other rows."""
    rows = []
    for path in (DATA / file for file in FILES[name]):
        if not path.is_file():
            sys.exit(f"There is no {path}: set GRPO_DATA_DIR to a folder that has it.")
        rows += [json.loads(line) for line in path.open(encoding="utf-8")]
    if name == "MATH":
        samples = [(row["solution"], row["answer"], "math") for row in rows if row["answer"]]
    else:
        golds = [row["answer"].rpartition("####")[2].strip() for row in rows]
        samples = [(row["answer"], g, "number") for row, g in zip(rows, golds, strict=True)]
    return samples[skip :: max(1, len(samples) // n)][:n]


def right_and_wrong(samples: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Each completion with its own gold answer, then each with the next one that differs."""
    golds = [gold for _, gold, _ in samples]
    others = [
        next(other for other in golds[i + 1 :] + golds if other != gold)
        for i, gold in enumerate(golds)
    ]
    return samples + [
        (text, other, kind) for (text, _, kind), other in zip(samples, others, strict=True)
    ]


def ours(cases) -> list[bool]:
    [correctness], _ = build_rewards({"correctness": 1.0}, tags=None)
    texts, golds, kinds = map(list, zip(*cases, strict=True))
    return [bool(value) for value in correctness(completions=texts, answer=golds, kind=kinds)]


def trl(cases) -> list[bool]:
    from trl.rewards import accuracy_reward

    messages = [[{"role": "assistant", "content": text}] for text, _, _ in cases]
    # Its gold is LaTeX, so a bare one goes into dollars.
    return [
        bool(value) for value in accuracy_reward(messages, [f"${gold}$" for _, gold, _ in cases])
    ]


def math_verify(cases) -> list[bool]:
    from math_verify import parse, verify

    return [verify(parse(f"${gold}$"), parse(text)) for text, gold, _ in cases]


def timed(function, cases) -> tuple[float, list[bool]]:
    """Seconds of one run over all cases (nothing is cached from before), and the verdicts."""
    rules._grade.cache_clear()
    start = time.perf_counter()
    verdicts = function(cases)
    return time.perf_counter() - start, verdicts


def compare_correctness(n: int) -> dict:
    """Ours, TRL's and math_verify's verdicts on the same completions: speed and agreement.

    The first case of each, on which math_verify is imported (by ours in its own process), is
    not counted.
    """
    for function in (ours, trl, math_verify):
        function([("So it is $\\boxed{(-\\infty, 8] \\cup [9, \\infty)}$.", "(0, 9)", "math")])
    report = {}
    for name in FILES:
        cases = right_and_wrong(read_samples(name, n))
        half = len(cases) // 2
        report[name] = {"completions": len(cases)}
        for function in (ours, trl, math_verify):
            seconds, verdicts = timed(function, cases)
            report[name][function.__name__] = {
                "per_second": len(cases) / seconds,
                "right_called_right": sum(verdicts[:half]) / half,
                "wrong_called_right": sum(verdicts[half:]) / half,
            }
    for peer in ("trl", "math_verify"):
        seconds = {
            who: sum(
                report[name]["completions"] / report[name][who]["per_second"] for name in FILES
            )
            for who in (peer, "ours")
        }
        report[f"times_faster_than_{peer}"] = seconds[peer] / seconds["ours"]
    return report


def measure_recipe(names, n: int, skip: int) -> float:
    """Completions a second through all of these rewards, in batches of 64 as a trainer sends."""
    functions, _ = build_rewards(dict.fromkeys(names, 1.0), think_tag="think")
    cases = []
    for name in FILES:
        samples = read_samples(name, n, skip)
        tagged = [f"<think>\n{t}\n</think>\n<answer>\n{g}\n</answer>" for t, g, _ in samples] * 2
        cases += zip(tagged, right_and_wrong(samples), strict=True)
    seconds = 0.0
    for start in range(0, len(cases), 64):
        texts, rows = zip(*cases[start : start + 64], strict=True)
        columns = {
            "prompts": [""] * len(rows),
            "answer": [gold for _, gold, _ in rows],
            "kind": [kind for _, _, kind in rows],
            "completion_ids": [list(map(hash, text.split())) for text in texts],
        }
        began = time.perf_counter()
        for function in functions:
            function(completions=texts, **columns)
        seconds += time.perf_counter() - began
    return len(cases) / seconds


def worst_long_completion() -> dict:
    """The slowest single reward on one completion of 100 kB, over all rewards and hostile texts."""
    functions, _ = build_rewards(dict.fromkeys(STATED, 1.0), think_tag="think")
    functions += build_rewards({"correctness": 1.0}, tags=None)[0]
    worst = {"ms": -math.inf}
    for kind, gold in {
        "number": "18",
        "math": "\\frac{1}{2}",
        "choice": "B",
        "text": "Paris",
    }.items():
        columns = {"answer": [gold], "kind": [kind], "completion_ids": [[1] * 5000]}
        for piece in HOSTILE:
            filling = piece * (LONG // len(piece))
            for text in (filling, f"<think>x</think><answer>{filling}</answer>"):
                for function in functions:
                    ms = milliseconds(function, text, columns)
                    if ms > worst["ms"]:  # measured again, were it only the machine
                        ms = min(milliseconds(function, text, columns) for _ in range(5))
                    if ms > worst["ms"]:
                        worst = {"ms": ms, "reward": function.__name__, "of": piece, "kind": kind}
    return worst


def milliseconds(function, text: str, columns: dict) -> float:
    return 1000 * timed(lambda texts: function(completions=texts, **columns), [text])[0]


def show(report: dict) -> None:
    print(f"{'':8}{'':14}{'completions/s':>14}{'right as right':>16}{'wrong as right':>16}")
    for name in FILES:
        for who in ("ours", "trl", "math_verify"):
            row = report["correctness"][name][who]
            print(
                f"{name:8}{who:14}{row['per_second']:14,.0f}"
                f"{row['right_called_right']:16.1%}{row['wrong_called_right']:16.1%}"
            )
    for peer in ("trl", "math_verify"):
        ratio = report["correctness"][f"times_faster_than_{peer}"]
        print(f"ours is {ratio:.0f} times as fast as {peer}")
    for key, names in (("recipe", len(RECIPE)), ("every_reward", len(STATED))):
        print(f"{names} rewards together: {report[key]['per_second']:,.0f} completions/s")
    worst = report["worst_100_kB"]
    print(
        f"slowest on 100 kB: {worst['reward']} with {worst['ms']:.1f} ms "
        f"on {worst['of']!r} (kind {worst['kind']})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=300, help="completions of each data set")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # math_verify reports each parse that fails
    report = {
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("trl", "math-verify", "latex2sympy2_extended")},
        },
        "processor": platform.processor() or platform.machine(),
        "correctness": compare_correctness(options.rows),
        "recipe": {"rewards": list(RECIPE), "per_second": measure_recipe(RECIPE, options.rows, 1)},
        "every_reward": {"per_second": measure_recipe(STATED, options.rows, 2)},
        "worst_100_kB": worst_long_completion(),
    }
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
