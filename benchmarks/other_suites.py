"""How often the suite's grading agrees with labels that other projects gave.

    python benchmarks/other_suites.py CLONE … >benchmarks/results/other_suites.json

Each CLONE is a git clone of a repository below (a bare one will do). Their test files, which are
parsed and not run, hold answers beside golds that they equal or not; grade-school-math and Qwen's
hold graded completions. math_verify is given both texts, formulas between dollar signs.
"""

import ast
import json
import re
import subprocess
import sys
from fnmatch import filter
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # where math_verify is no benchmark

from math_verify import parse, verify  # noqa: E402

from lib.answers import grade  # noqa: E402

SUITES = {
    "hendrycks/math": "modeling/math_equivalence_test.py",
    "MARIO-Math-Reasoning/MARIO_EVAL": "math_evaluation/tests/test_is_equiv.py",
    "NVIDIA/NeMo-Skills": "tests/test_math_equal.py",
    "UKGovernmentBEIS/inspect_ai": "tests/scorer/*math*",
    "rasbt/reasoning-from-scratch": "tests/test_ch03.py",
    "OpenBMB/OlympiadBench": "eval/scoring_examples.json",
    "scitix/sieval": "tests/unit/community/test_*math*.py",
    "openai/grade-school-math": "grade_school_math/data/example_model_solutions.jsonl",
    "QwenLM/Qwen2.5-Math": "evaluation/data/eval_rm_maj_example/math_cot_100.jsonl",
    "huggingface/Math-Verify": "tests/test_*.py",
    "hkust-nlp/RL-Verifier-Pitfalls": "examples/simplelr_math_eval/data/college_math/test.jsonl",
}
PARAMETERS = [("pred", "gold"), ("answer", "target"), ("prediction", "reference")]
GRADERS = re.compile(r"_?(?:test_)?is(?:_not)?_equiv|are_equal_\w+|math_equal")
EXERCISE = re.compile(  # whose one formula is the answer, written otherwise
    r"(?:Add|Calculate|Compute|Divide|Evaluate|Expand|Factor|Find the (?:exact )?value of|Multiply"
    r"|Perform|Rationalize|Simplify|Subtract)\b[^$]*\$([^$=]+)\$[^$]*"
)
DIFFERS = re.compile(r"^assert not |== 'incorrect'|test_incorrect|assertFalse", re.MULTILINE)


def literal(node: ast.AST, names: dict) -> object:
    try:
        return names.get(node.id) if isinstance(node, ast.Name) else ast.literal_eval(node)
    except (ValueError, TypeError):
        return None


def of_tests(source: str):
    """Answers, golds and labels: parametrised cases, lists of triples, and asserts of graders."""
    tests = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    for test in tests:
        same, names = not DIFFERS.search(re.sub("\n +", "\n", ast.unparse(test))), {}
        for node in sorted(ast.walk(test), key=lambda node: getattr(node, "lineno", 0)):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                names[node.targets[0].id] = value = literal(node.value, names)
                if node.targets[0].id == "cases":
                    yield from (case for case in value or () if len(case) == 3)
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "parametrize":
                arguments = re.findall(r"\w+", ast.unparse(node.args[0]))
                for row in (literal(row, {}) for row in getattr(node.args[1], "elts", ())):
                    case = dict(zip(arguments, row if isinstance(row, tuple) else (), strict=False))
                    label = case.get("expected", case.get("result", same))
                    pairs = [(case[a], case[b]) for a, b in PARAMETERS if {a, b} <= {*case}]
                    pairs += [row or ()] if arguments == ["output_pair"] else []
                    yield from ((*pair, label) for pair in pairs)
            elif isinstance(node, ast.Assert | ast.Expr):
                for call in ast.walk(node):
                    if GRADERS.fullmatch(getattr(getattr(call, "func", None), "id", "")):
                        pair = [literal(argument, names) for argument in call.args[:2]]
                        yield *pair, not DIFFERS.search(ast.unparse(node))


def of_json(text: str):
    """The same of inspect_ai, OlympiadBench, grade-school-math, Qwen2.5-Math and college_math."""
    for row in json.loads(text) if text[0] == "[" else map(json.loads, text.splitlines()):
        if "GT" in row:
            yield from ((each["answer"], row["GT"], each["equal"]) for each in row["Ans"])
        elif gold := row.get("ground_truth", "").rpartition("\nA: ")[2]:
            models = [model for model in row.values() if isinstance(model, dict)]
            yield from ((model["solution"], gold, model["is_correct"]) for model in models)
        elif "data_topic" in row:
            if task := EXERCISE.fullmatch(row["question"]):
                yield rf"\boxed{{{task[1].strip(' .')}}}", row["answer"], True
        elif "code" in row:
            yield from zip(row["code"], [row["answer"]] * 8, row["score"], strict=True)
        else:
            yield row["output"], row["target"], row["expected"] == "C"


def by_math_verify(mine: str, gold: str) -> bool:
    bare = re.compile(r"(?!.*(?:\$|\\boxed|\\[(\[])).*[\\^{]", re.DOTALL)
    return verify(*(parse(f"${text}$" if bare.match(text) else text) for text in (gold, mine)))


def git(*command: str) -> str:
    return subprocess.check_output(["git", "-C", *command], text=True)


def measured(clone: str) -> dict:
    files, cases = git(clone, "ls-tree", "-r", "--name-only", "HEAD").split("\n"), {}
    suite = next(suite for suite, paths in SUITES.items() if filter(files, paths))
    for path in filter(files, SUITES[suite]):
        source = git(clone, "show", f"HEAD:{path}")
        for *pair, label in (of_tests if path.endswith(".py") else of_json)(source):
            if len(pair) == 2 and all(isinstance(side, str | int | float) for side in pair):
                cases.setdefault(tuple(map(str, pair)), bool(label))
    row = {"suite": suite, "commit": git(clone, "log", "-1", "--format=%h of %cs")[:-1]}
    row["n"] = len(cases)

    def ours(mine: str, gold: str) -> bool:
        return grade(mine, gold, "number" if "grade-school" in suite else "math").correct

    for name, same in (("ours", ours), ("math_verify", by_math_verify)):
        wrong = [(pair, label) for pair, label in cases.items() if same(*pair) != label]
        row[f"{name}: agrees"] = len(cases) - len(wrong)
        row[f"{name}: false positives"] = sum(not label for _, label in wrong)
        print(*wrong if name == "ours" else (), sep="\n", file=sys.stderr)
    return row


if __name__ == "__main__":
    print(json.dumps([measured(clone) for clone in sys.argv[1:]], indent=1))
