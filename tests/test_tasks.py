"""Tasks: from files, generators and one's own rows to problems, prompts and grades."""

import os
import re

import pytest

from lib.answers import Grade
from lib.errors import BadInput
from lib.files import append_jsonl
from lib.tasks import (
    PROMPT_FORMATS,
    Problem,
    PromptFormat,
    StoredTask,
    few_shot_examples,
    get_task,
    make_rows,
    sample_problems,
    summary_scores,
    task,
)
from lib.tasks.problems import TASKS, only_split
from lib.tasks.prompts import unbox
from tests.conftest import python


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("GRPO_DATA_DIR", raising=False)


# Real data sets


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("gsm8k", 7473, 1319),
        ("math500", 0, 500),
        ("numina", 6594, 340),  # of 6936: two have no gold
        ("aqua", 254, 254),
        ("smoltldr", 1990, 618),  # two abstracts of test stand in train too
        ("preference_pairs", 530, 100),  # the 278 others ask what test asks
    ],
)
def test_the_real_data_sets(name, train, test, data_dir):
    from datasets import Dataset

    chosen, keys = get_task(name), {}
    for split, count in {"train": train, "test": test}.items():
        problems = chosen.load(split, data_dir) if count else []
        assert len({problem.id for problem in problems}) == len(problems) == count
        assert all(p.question and (p.answer or p.kind == "open") for p in problems)
        assert {problem.kind for problem in problems} <= {chosen.kind}
        keys[split] = {problem.key for problem in problems}
    assert not keys["train"] & keys["test"]
    table = Dataset.from_list(make_rows(problems, "plain"))
    assert table["answer"][:] == [problem.answer for problem in problems]
    if chosen.kind != "open":
        for problem in sample_problems(problems, 50, seed=1):
            assert chosen.grade(problem, f"<answer>{problem.answer}</answer>", "answer").correct


def test_a_problem_of_each_data_set(data_dir):
    gsm8k = get_task("gsm8k").load("test", data_dir)[0]
    assert (gsm8k.id, gsm8k.answer) == ("gsm8k/test/0", "18")
    assert gsm8k.question.startswith("Janet’s ducks lay 16 eggs per day.")
    assert gsm8k.meta["solution"] == (
        "Janet sells 16 - 3 - 4 = 9 duck eggs a day.\n"
        "She makes 9 * 2 = $18 every day at the farmer’s market."
    )
    math = get_task("math500").load("test", data_dir)[0]
    assert math.id == "test/precalculus/807.json"
    assert math.answer == r"\left( 3, \frac{\pi}{2} \right)"
    assert (math.meta["level"], math.meta["subject"]) == (2, "Precalculus")
    numina = get_task("numina").load("train", data_dir)
    assert {problem.meta["level"] for problem in numina} == {2, 3, 4, 5, None}
    assert not {p.key for p in numina} & {p.key for p in get_task("math500").load("test", data_dir)}
    aqua = get_task("aqua").load("test", data_dir)[1]
    assert aqua.question.endswith(
        "what was the original price of the item?\nOptions (answer with the letter):\n"
        "A) $61\nB) $65\nC) $67.40\nD) $70\nE) $78.20"
    )
    assert (aqua.answer, aqua.meta["options"][4]) == ("E", "E) $78.20")
    pair = get_task("preference_pairs").load("train", data_dir)[0]
    assert (pair.meta["chosen"], pair.answer) == ("True", "True")  # a boolean in the file


def test_few_shot_examples_are_always_the_same_and_from_train(data_dir):
    gsm8k = get_task("gsm8k")
    examples = few_shot_examples(gsm8k, 5, data_dir)
    assert examples == few_shot_examples(gsm8k, 5, data_dir)
    assert all(example.id.startswith("gsm8k/train/") for example in examples)
    rows = make_rows(gsm8k.load("train", data_dir), "hashes", 5, examples)
    assert len(rows) == 7473 - 5
    assert "<<" not in "".join(message["content"] for message in rows[0]["prompt"])
    for example in few_shot_examples(get_task("math500"), 4, data_dir):
        assert example.id.startswith("numina/train/")
        assert PROMPT_FORMATS["boxed"].show(example).count("\\boxed") == 1


# Text has no right answer


@pytest.mark.parametrize(
    ("text", "tags", "extracted", "where", "why"),
    [
        (" A summary. ", None, "A summary.", "text", "no right or wrong"),
        ("<think>long</think>\nA summary.", None, "A summary.", "text", "no right or wrong"),
        ("<answer>a</answer> <answer> b </answer> y", "answer", "b", "tags", "no right or wrong"),
        ("A summary.", "answer", None, None, "no tags"),
        ("<answer> </answer>", "answer", None, "tags", "empty tags"),
        ("", None, None, "text", "no answer found"),
    ],
)
def test_text_is_found_but_not_right_or_wrong(text, tags, extracted, where, why):
    problem = Problem("1", "…", "gold", {}, "open")
    assert get_task("smoltldr").grade(problem, text, tags) == Grade(None, extracted, where, why)


def test_summary_scores_by_hand():
    # Six words of seven shared: precision 6/6, recall 6/7, F1 = 2·(6/7)/(1 + 6/7) = 12/13.
    scores = summary_scores("a cat sat on the mat", "a cat sat on the mat quietly")
    assert scores["rouge1"] == scores["rougeL"] == pytest.approx(12 / 13)
    # Five pairs of six shared: precision 5/5, recall 5/6, F1 = 2·(5/6)/(1 + 5/6) = 10/11.
    assert scores["rouge2"] == pytest.approx(10 / 11)
    assert (scores["words"], scores["gold_words"]) == (6, 7)
    assert (scores["characters"], scores["gold_characters"]) == (20, 28)
    assert scores["length_ratio"] == pytest.approx(6 / 7)
    assert summary_scores("", "gold")["rougeL"] == summary_scores("a", "")["length_ratio"] == 0.0


# Generated problems


def test_small_sums_are_all_the_sums_and_right():
    sums = get_task("small_sums", {"largest": 20, "operators": "+-"})
    train, test = sums.load("train"), sums.load("test")
    gold = {problem.question: problem.answer for problem in train + test}
    assert len(gold) == len(train + test) == 2 * 21 * 21
    assert (gold["What is 7 + 12?"], gold["What is 7 - 12?"]) == ("19", "-5")
    assert 0.30 < len(test) / len(gold) < 0.40 and sums.load("test") == test


def test_splits_depend_on_the_question_alone_and_samples_on_the_seed():
    problems = [Problem(str(i), f"question {i}", "1") for i in range(1000)]
    test = only_split(problems, "test", 0.2)
    assert 160 < len(test) < 240
    assert only_split(problems[::-1], "test", 0.2) == test[::-1]
    assert [p for p in problems if p not in test] == only_split(problems, "train", 0.2)
    assert only_split(problems, "test", 0.0) == only_split(problems, "train", 1.0) == []
    chosen = sample_problems(problems, 10, seed=3)
    assert chosen == sample_problems(problems, 10, seed=3) != sample_problems(problems, 10, seed=4)
    assert chosen == sorted(chosen, key=problems.index) and len({p.id for p in chosen}) == 10
    assert sample_problems(problems, None, 0) == sample_problems(problems, 0, 0) == problems
    for n in (1001, -1):
        with pytest.raises(BadInput, match="there are 1000"):
            sample_problems(problems, n, 0)


CHAIN_SUM = {"min_terms": 2, "max_terms": 2, "max_digits": 2}


def gym(dataset="chain_sum", **parameters):
    config = CHAIN_SUM if dataset == "chain_sum" else {}
    return get_task("reasoning_gym", {"dataset": dataset, **config, **parameters})


def test_reasoning_gym_splits_are_disjoint_whatever_the_seeds():
    from datasets import Dataset

    pools = [gym(seed=seed, size=400) for seed in (0, 9999)]
    train, test = (
        {problem.question for pool in pools for problem in pool.load(split)}
        for split in ("train", "test")
    )
    assert len(train) > 300 and len(test) > 150 and not train & test
    assert pools[0].pool != pools[1].pool
    questions = [problem.question for problem in pools[0].load("train")]
    assert len(questions) == len(set(questions))
    # A problem keeps its id when the pool grows.
    small, large = (gym(size=n).load("test") for n in (50, 100))
    ids = {problem.id: problem for problem in large}
    assert all(ids[problem.id] == problem for problem in small)
    assert Dataset.from_list(make_rows(small, "answer")).num_rows == len(small)


def test_numbers_at_most_bounds_the_numbers_in_the_question():
    questions = " ".join(problem.question for problem in gym(numbers_at_most=20).load("train"))
    numbers = {*map(int, re.findall(r"\d+", questions))}
    assert (min(numbers), max(numbers)) == (0, 20)
    with pytest.raises(BadInput, match="numbers at most 1"):
        gym(min_digits=2, numbers_at_most=1).load("test")


def test_reasoning_gym_grades_numbers_as_every_task_and_others_by_its_scorer():
    sums = gym(size=50)
    problem = sums.load("test")[0]
    assert sums.kind == problem.kind == "number"
    right = f"So it is ${problem.answer}.00."
    assert sums.grade(problem, right).correct
    assert sums.grade(problem, right, "answer") == Grade(False, None, None, "no tags")
    assert sums.grade(problem, f"99 <answer>{problem.answer}</answer>", "answer").correct
    wrong = sums.grade(problem, f"<answer>{problem.answer}1</answer>", "answer")
    assert (wrong.correct, wrong.why) == (False, "differs")
    countdown = gym("countdown", size=30)
    problem = countdown.load("test")[0]
    assert countdown.kind == "open"
    assert countdown.grade(problem, f"<answer>{problem.answer}</answer>", "answer").correct
    unknown_number = f"<answer>0 + ({problem.answer})</answer>"
    assert not countdown.grade(problem, unknown_number, "answer").correct
    assert countdown.grade(problem, f"(({problem.answer}))").correct  # not the gold's characters
    for dataset in ("spiral_matrix", "n_queens", "string_insertion", "count_bits"):
        chosen = gym(dataset, size=20)
        assert {chosen.score(p, p.answer) for p in chosen.load("train")} == {1.0}


ATTACKS = [
    "__import__('pathlib').Path('executed').touch()",
    "[*map(open, ['executed'])]",
    "open('executed', 'w')",
    *("9**9**9", "[0] * 10**10", "(" * 5000, "1e999999999", "\ud800\x00"),
]


@pytest.mark.parametrize(
    "dataset", ["countdown", "puzzle24", "spiral_matrix", "n_queens", "binary_matrix", "coin_flip"]
)
def test_nothing_in_an_answer_is_executed(dataset, tmp_path, monkeypatch):
    chosen = gym(dataset, size=5)
    problem = chosen.load("train")[0]
    monkeypatch.chdir(tmp_path)
    for attack in ATTACKS:
        assert not chosen.grade(problem, f"<answer>{attack}</answer>", "answer").correct
        assert chosen.score(problem, attack) < 1.0
        assert not list(tmp_path.iterdir()), attack


# Tasks of one's own


def test_a_task_of_ones_own_in_a_dozen_lines(tmp_path):
    @task("svamp")
    class Svamp(StoredTask):
        kind, folder, hub = "number", "svamp", ("ChilleD/SVAMP",)
        columns = ("Body", "Answer")

        def problem(self, row, id):
            return Problem(id, row["Body"], row["Answer"], {}, self.kind)

    try:
        append_jsonl(tmp_path / "svamp" / "test.jsonl", [{"Body": "2 and 2?", "Answer": "4"}])
        (problem,) = get_task("svamp").load("test", tmp_path)
        assert problem == Problem("svamp/test/0", "2 and 2?", "4", {}, "number")
        assert get_task("svamp").grade(problem, "#### 4").correct
        with pytest.raises(BadInput, match=r"'gsm8k' is taken by lib\.tasks"):
            task("gsm8k")(Svamp)
    finally:
        del TASKS["svamp"]


# Prompts

SUM = Problem("1", "What is 1 + 2?", "3", {"solution": "1 + 2 = 3"})
OTHER = Problem("2", "What is 2 + 2?", "4", {"solution": "2 + 2 = 4", "level": 1})


def contents(row: dict) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in row["prompt"]]


@pytest.mark.parametrize(
    ("name", "completion"),
    [
        ("plain", "3"),
        ("answer", "<answer>3</answer>"),
        ("reasoning", "<reasoning>\n1 + 2 = 3\n</reasoning>\n<answer>\n3\n</answer>"),
        ("think", "<think>\n1 + 2 = 3\n</think>\n<answer>3</answer>"),
        ("boxed", "1 + 2 = 3\n\nThe final answer is $\\boxed{3}$."),
        ("hashes", "1 + 2 = 3\n#### 3"),
    ],
)
def test_a_row_has_worked_examples_messages_gold_and_meta(name, completion):
    # What was shown with its answer is not asked.
    (row,) = make_rows([SUM, OTHER], name, shots=1, examples=[SUM, OTHER])
    prompt_format = PROMPT_FORMATS[name]
    expected = [("system", prompt_format.system)] if prompt_format.system else []
    expected += [("user", SUM.question), ("assistant", completion), ("user", OTHER.question)]
    assert contents(row) == expected
    meta = {"id": "2", "kind": "number", "solution": "2 + 2 = 4", "level": 1}
    assert {**row, "prompt": 0} == {"prompt": 0, "answer": "4", "question": OTHER.question} | meta
    # A worked example is right in its own format.
    assert get_task("gsm8k").grade(SUM, completion, prompt_format.answer_tag).correct


def test_braces_in_questions_and_solutions_survive():
    odd = Problem("1", "{question} {answer} \\{x\\}?", "{solution}", {"solution": "{answer} \\1"})
    (row,) = make_rows([SUM], "reasoning", shots=1, examples=[odd])
    assert row["prompt"][1]["content"] == "{question} {answer} \\{x\\}?"
    assert row["prompt"][2]["content"] == (
        "<reasoning>\n{answer} \\1\n</reasoning>\n<answer>\n{solution}\n</answer>"
    )
    assert unbox(r"\boxed{\frac{1}{2}} and \boxed{3}, \boxed{op") == r"\frac{1}{2} and 3, \boxed{op"
    assert unbox(r"$\boxed{a \boxed{b}}$") == r"$a \boxed{b}$"


def test_a_format_of_ones_own_and_a_data_sets_own_system_message():
    shout = PromptFormat("shout", template="ANSWER THIS: {question}!")
    assert contents(make_rows([SUM], shout)[0]) == [("user", "ANSWER THIS: What is 1 + 2?!")]
    asked = Problem("1", "Hello?", "", {"system": "Be kind."}, "open")
    assert contents(make_rows([asked], "plain")[0]) == [("system", "Be kind."), ("user", "Hello?")]
    assert contents(make_rows([asked], "answer")[0])[0][1] == PROMPT_FORMATS["answer"].system
    without = Problem("7", "What is 1 + 1?", "2")
    for call, word in (
        (lambda: PromptFormat("bad", template="Answer!"), r"must hold \{question\}"),
        (lambda: make_rows([OTHER], "answer", shots=2, examples=[SUM]), "shots is 2 and 1 exam"),
        (lambda: make_rows([OTHER], "reasoning", 1, [without]), "Problem 7 has no worked solution"),
    ):
        with pytest.raises(BadInput, match=word):
            call()


def test_rows_of_mixed_meta_become_one_table():
    from datasets import Dataset

    problems = [
        Problem("1", "?", "1", {"level": 1, "score": 1, "tag": "a", "list": [1], "prompt": "no"}),
        Problem("2", "?", "1", {"level": None, "score": 0.5, "tag": 2, "images": "no"}),
        Problem("3", "?", "1", {"tag": True, "test": {"in": [1]}}),
        Problem("4", "?", "1", {"mixed": {"a": 1}, "turns": 3, "self": "x"}),
        Problem("5", "?", "1", {"mixed": {"b": 2}}),
    ]
    table = Dataset.from_list(make_rows(problems, "think"))
    columns = ["prompt", "answer", "id", "question", "kind", "level", "score", "tag", "list"]
    assert table.column_names == [*columns, "test", "mixed", "turns", "self"]
    assert table["level"][:3] == [1, None, None]
    assert table["score"][:3] == [1.0, 0.5, None]
    assert table["tag"][:3] == ["a", "2", "True"]
    assert table["list"][:2] == [[1], None]
    assert table["test"][2] == {"in": [1]}
    assert table["mixed"][3:] == ['{"a": 1}', '{"b": 2}']  # a shared type would add what lacks
    assert [message["role"] for message in table["prompt"][0]] == ["system", "user"]


# What a user can get wrong: one sentence says what and where


@pytest.mark.parametrize(
    ("name", "config", "sentence"),
    [
        ("gsm8", {}, "There is no task 'gsm8': did you mean \"gsm8k\"?"),
        ("zzz", {}, "There is no task 'zzz': choose one of aqua, csv"),
        *(("small_sums", config, "small_sums")
          for config in ({"largest": 0}, {"largest": "20"}, {"operators": "*"})),
        ("small_sums", {"larges": 9}, "no parameter 'larges': did you mean \"largest\"?"),
        ("gsm8k", {"largest": 9}, "Task 'gsm8k' has no parameter 'largest': it has none."),
        ("jsonl", {}, "Task 'jsonl' needs the parameter 'path'"),
        ("jsonl", {"path": "x", "kind": "numbr"}, 'did you mean "number"?'),
        ("reasoning_gym", {"dataset": "chainsum"}, 'did you mean "chain_sum"?'),
        ("reasoning_gym", {"dataset": "simple_integration"}, "runs the model's answer"),
        ("reasoning_gym", {"min_term": 2}, "no parameter 'min_term': did you mean \"min_terms\"?"),
        ("reasoning_gym", {"min_terms": 0}, "min_terms must be positive"),
        ("reasoning_gym", {"min_terms": "2"}, "refuses {'min_terms': '2'"),
    ],
)  # fmt: skip
def test_a_wrong_name_or_parameter(name, config, sentence):
    with pytest.raises(BadInput) as caught:
        get_task(name, config)
    assert sentence in str(caught.value)


def test_a_missing_folder_file_or_split(tmp_path, monkeypatch):
    there = tmp_path / "there"
    append_jsonl(there / "gsm8k" / "train.jsonl", [{"question": "1?", "answer": 1}])
    for name, split, folder, word in (
        (
            "gsm8k",
            "test",
            tmp_path / "nowhere",
            rf"There is no .*nowhere.* \({tmp_path} has there\)",
        ),
        ("gsm8k", "test", there, r"gsm8k/test.jsonl \(.*/gsm8k has train.jsonl\)"),
        ("gsm8k", "train", there, 'no "#### " before its number'),
        ("gsm8k", "validation", there, "no split 'validation'"),
        ("math500", "train", there, "has no train split"),
    ):
        with pytest.raises(BadInput, match=word):
            get_task(name).load(split, folder)
    monkeypatch.setenv("GRPO_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match=r"There is no .*nowhere"):
        get_task("gsm8k").load("test")
    with pytest.raises(BadInput, match="There is no file"):
        get_task("jsonl", {"path": tmp_path / "none.jsonl"}).load("test")


def test_an_unreachable_hub_says_how_to_go_on_without_it(tmp_path):
    code = "from lib.errors import BadInput; from lib.tasks import get_task\n"
    code += "try: get_task('gsm8k').load('test')\nexcept BadInput as error: print(error)"
    said = python("-c", code, env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)})
    assert said.startswith("openai/gsm8k could not be loaded from the Hugging Face Hub")
    assert "put the rows into <folder>/gsm8k/test.jsonl and give that folder" in said


def test_importing_loads_nothing_heavy_and_says_nothing(tmp_path):
    code = (
        "import sys, lib.rewards; heavy = {'torch', 'datasets', 'reasoning_gym', 'sympy', 'numpy', "
        "'rouge_score', 'transformers', 'trl'} & set(sys.modules); assert not heavy, heavy; "
        "import matplotlib.pyplot, sympy; "  # what is compiled from here on is reasoning_gym
        f"sys.pycache_prefix = {str(tmp_path)!r}; lib.tasks.get_task('reasoning_gym')"
    )
    python("-W", "error::SyntaxWarning", "-c", code)
