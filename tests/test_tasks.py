"""Tasks: from files, generators and one's own rows to problems, prompts and grades."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib.answers import Grade
from lib.errors import BadInput
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
from lib.tasks.prompts import boxed_spans, unbox

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("GRPO_DATA_DIR") or REPOSITORY / "../shared/data")
real_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="needs the real data sets (GRPO_DATA_DIR or ../shared/data)"
)


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("GRPO_DATA_DIR", raising=False)


def write_rows(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# Real data sets


@real_data
@pytest.mark.parametrize(
    ("name", "split", "count"),
    [
        ("gsm8k", "train", 7473),
        ("gsm8k", "test", 1319),
        ("math500", "test", 500),
        ("numina", "train", 6594),  # of 6936: two have no gold, the others are the test split
        ("numina", "test", 340),
        ("aqua", "train", 254),
        ("aqua", "test", 254),
        ("smoltldr", "train", 1990),  # two abstracts of test stand in train too
        ("smoltldr", "test", 618),
        ("preference_pairs", "train", 530),  # the 278 others ask what test asks
        ("preference_pairs", "test", 100),
    ],
)
def test_problems_of_the_real_data_sets(name, split, count):
    problems = get_task(name).load(split, DATA)
    assert len(problems) == count
    assert len({problem.id for problem in problems}) == count
    assert all(problem.question for problem in problems)
    assert all(problem.answer or problem.kind == "open" for problem in problems)
    assert {problem.kind for problem in problems} == {get_task(name).kind}


@real_data
@pytest.mark.parametrize("name", ["gsm8k", "numina", "aqua", "smoltldr", "preference_pairs"])
def test_train_and_test_share_no_question(name):
    train, test = (get_task(name).load(split, DATA) for split in ("train", "test"))
    assert not {p.question for p in train} & {p.question for p in test}


@real_data
def test_math500_is_not_in_the_rows_that_lend_it_examples():
    train, test = get_task("numina").load("train", DATA), get_task("math500").load("test", DATA)
    assert not {p.question for p in train} & {p.question for p in test}


@real_data
def test_a_gsm8k_problem():
    problem = get_task("gsm8k").load("test", DATA)[0]
    assert problem.id == "gsm8k/test/0"
    assert problem.question.startswith("Janet’s ducks lay 16 eggs per day.")
    assert problem.answer == "18"
    assert problem.meta["solution"] == (
        "Janet sells 16 - 3 - 4 = 9 duck eggs a day.\n"
        "She makes 9 * 2 = $18 every day at the farmer’s market."
    )


@real_data
def test_a_math500_problem():
    problem = get_task("math500").load("test", DATA)[0]
    assert problem.id == "test/precalculus/807.json"
    assert problem.answer == r"\left( 3, \frac{\pi}{2} \right)"
    assert (problem.meta["level"], problem.meta["subject"]) == (2, "Precalculus")


@real_data
def test_levels_of_math_are_numbers_or_unknown():
    levels = {problem.meta["level"] for problem in get_task("numina").load("train", DATA)}
    assert levels == {2, 3, 4, 5, None}


@real_data
def test_an_aqua_problem_shows_its_options():
    problem = get_task("aqua").load("test", DATA)[1]
    assert problem.question.endswith(
        "what was the original price of the item?\nOptions (answer with the letter):\n"
        "A) $61\nB) $65\nC) $67.40\nD) $70\nE) $78.20"
    )
    assert problem.answer == "E"
    assert problem.meta["options"][4] == "E) $78.20"


@real_data
def test_a_preference_pair_is_text_even_where_the_file_has_a_boolean():
    problem = get_task("preference_pairs").load("train", DATA)[0]
    assert (problem.meta["chosen"], problem.answer) == ("True", "True")


@real_data
@pytest.mark.parametrize("name", ["gsm8k", "math500", "aqua"])
def test_a_gold_answer_in_tags_is_graded_correct(name):
    chosen = get_task(name)
    for problem in sample_problems(chosen.load("test", DATA), 50, seed=1):
        completion = f"<answer>{problem.answer}</answer>"
        assert chosen.grade(problem, completion, "answer").correct, problem


# Text has no right answer


def test_text_is_found_but_not_right_or_wrong():
    problem, summaries = Problem("1", "…", "gold", {}, "open"), get_task("smoltldr")
    assert summaries.grade(problem, " A summary. ") == Grade(
        None, "A summary.", "text", "no right or wrong"
    )
    assert summaries.grade(problem, "<think>long</think>\nA summary.").extracted == "A summary."
    tagged = summaries.grade(problem, "x <answer>a</answer> <answer> b </answer> y", "answer")
    assert tagged == Grade(None, "b", "tags", "no right or wrong")
    assert summaries.grade(problem, "A summary.", "answer").why == "no tags"
    assert summaries.grade(problem, "<answer> </answer>", "answer").why == "empty tags"
    assert summaries.grade(problem, "").why == "no answer found"


def test_summary_scores_by_hand():
    # Six words of seven shared: precision 6/6, recall 6/7, F1 = 2·(6/7)/(1 + 6/7) = 12/13.
    scores = summary_scores("a cat sat on the mat", "a cat sat on the mat quietly")
    assert scores["rouge1"] == pytest.approx(12 / 13)
    assert scores["rougeL"] == pytest.approx(12 / 13)
    # Five pairs of six shared: precision 5/5, recall 5/6, F1 = 2·(5/6)/(1 + 5/6) = 10/11.
    assert scores["rouge2"] == pytest.approx(10 / 11)
    assert (scores["words"], scores["gold_words"]) == (6, 7)
    assert (scores["characters"], scores["gold_characters"]) == (20, 28)
    assert scores["length_ratio"] == pytest.approx(6 / 7)
    assert summary_scores("", "gold")["rougeL"] == 0.0
    assert summary_scores("text", "")["length_ratio"] == 0.0


# Generated problems


def test_small_sums_are_all_the_sums_and_right():
    sums = get_task("small_sums", {"largest": 20, "operators": "+-"})
    train, test = sums.load("train"), sums.load("test")
    assert len(train) + len(test) == 2 * 21 * 21
    assert len({problem.question for problem in train + test}) == 2 * 21 * 21
    gold = {problem.question: problem.answer for problem in train + test}
    assert gold["What is 7 + 12?"] == "19"
    assert gold["What is 7 - 12?"] == "-5"
    assert 0.30 < len(test) / (len(train) + len(test)) < 0.40
    assert sums.load("test") == test


@pytest.mark.parametrize("config", [{"largest": 0}, {"largest": "20"}, {"operators": "*"}])
def test_small_sums_refuses(config):
    with pytest.raises(BadInput, match="small_sums"):
        get_task("small_sums", config)


def test_splits_depend_on_the_question_alone():
    problems = [Problem(str(i), f"question {i}", "1") for i in range(1000)]
    test = only_split(problems, "test", 0.2)
    assert 160 < len(test) < 240
    assert only_split(problems[::-1], "test", 0.2) == test[::-1]
    assert [p for p in problems if p not in test] == only_split(problems, "train", 0.2)
    assert only_split(problems, "test", 0.0) == only_split(problems, "train", 1.0) == []


CHAIN_SUM = {"dataset": "chain_sum", "min_terms": 2, "max_terms": 2, "max_digits": 2}


def test_reasoning_gym_splits_are_disjoint_whatever_the_seeds():
    pools = [get_task("reasoning_gym", {**CHAIN_SUM, "seed": s, "size": 400}) for s in (0, 9999)]
    train = {problem.question for pool in pools for problem in pool.load("train")}
    test = {problem.question for pool in pools for problem in pool.load("test")}
    assert len(train) > 300 and len(test) > 150
    assert pools[0].pool != pools[1].pool
    assert not train & test
    questions = [p.question for p in pools[0].load("train")]
    assert len(questions) == len(set(questions))


def test_a_reasoning_gym_problem_keeps_its_id_when_the_pool_grows():
    small, large = (get_task("reasoning_gym", {**CHAIN_SUM, "size": n}) for n in (50, 100))
    ids = {problem.id: problem for problem in large.load("test")}
    assert all(ids[problem.id] == problem for problem in small.load("test"))


def test_numbers_at_most_bounds_the_numbers_in_the_question():
    bounded = get_task("reasoning_gym", {**CHAIN_SUM, "numbers_at_most": 20})
    expressions = {p.meta["entry"]["metadata"]["expression"] for p in bounded.load("train")}
    numbers = {int(n) for e in expressions for n in e.split() if n.isdigit()}
    assert numbers <= set(range(21)) and min(numbers) == 0 and max(numbers) == 20
    with pytest.raises(BadInput, match="numbers at most 1"):
        get_task("reasoning_gym", {**CHAIN_SUM, "min_digits": 2, "numbers_at_most": 1}).load("test")


def test_reasoning_gym_grades_numbers_strictly_and_leniently():
    sums = get_task("reasoning_gym", {**CHAIN_SUM, "size": 50})
    problem = sums.load("test")[0]
    assert sums.kind == problem.kind == "number"
    right = f"So it is ${problem.answer}.00."
    assert sums.grade(problem, right).correct
    assert sums.grade(problem, right, "answer") == Grade(False, None, None, "no tags")
    assert sums.grade(problem, f"99 <answer>{problem.answer}</answer>", "answer").correct
    wrong = sums.grade(problem, f"<answer>{problem.answer}1</answer>", "answer")
    assert (wrong.correct, wrong.why) == (False, "differs")


def test_reasoning_gym_grades_by_its_own_scorer_where_many_answers_are_right():
    countdown = get_task("reasoning_gym", {"dataset": "countdown", "size": 30})
    problem = countdown.load("test")[0]
    assert countdown.kind == "open"
    assert countdown.grade(problem, f"<answer>{problem.answer}</answer>", "answer").correct
    turned = f"0 + ({problem.answer})"  # uses a number that is not there
    assert not countdown.grade(problem, f"<answer>{turned}</answer>", "answer").correct
    doubled_brackets = f"(({problem.answer}))"  # not the gold's characters, and right
    assert countdown.grade(problem, doubled_brackets).correct


@pytest.mark.parametrize("dataset", ["spiral_matrix", "n_queens", "string_insertion", "count_bits"])
def test_reasoning_gym_golds_score_full_marks(dataset):
    chosen = get_task("reasoning_gym", {"dataset": dataset, "size": 20})
    for problem in chosen.load("train"):
        assert chosen.score(problem, problem.answer) == 1.0


ATTACKS = [
    "__import__('pathlib').Path('executed').touch()",
    "[*map(open, ['executed'])]",
    "open('executed', 'w')",
    "9**9**9",
    "[0] * 10**10",
    "(" * 5000,
    "1e999999999",
    "\ud800\x00",
]


@pytest.mark.parametrize(
    "dataset", ["countdown", "puzzle24", "spiral_matrix", "n_queens", "binary_matrix", "coin_flip"]
)
def test_nothing_in_an_answer_is_executed(dataset, tmp_path, monkeypatch):
    chosen = get_task("reasoning_gym", {"dataset": dataset, "size": 5})
    problem = chosen.load("train")[0]
    monkeypatch.chdir(tmp_path)
    for attack in ATTACKS:
        assert not chosen.grade(problem, f"<answer>{attack}</answer>", "answer").correct
        assert chosen.score(problem, attack) < 1.0
        assert not list(tmp_path.iterdir()), attack


def test_data_sets_whose_scorer_executes_the_answer_are_not_offered():
    with pytest.raises(BadInput, match="runs the model's answer"):
        get_task("reasoning_gym", {"dataset": "simple_integration"})


def test_importing_reasoning_gym_says_nothing(tmp_path):
    code = "from lib.tasks import get_task; get_task('reasoning_gym')"
    done = subprocess.run(
        [sys.executable, "-X", f"pycache_prefix={tmp_path}", "-W", "always", "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "SyntaxWarning" not in done.stderr


# One's own rows


def test_jsonl_with_columns_of_ones_own(tmp_path):
    path = write_rows(
        tmp_path / "mine.jsonl",
        {"q": "1 + 1?", "a": 2, "level": 1},
        {"q": "{x} + 1?", "a": "3", "id": "second"},
    )
    mine = get_task("jsonl", {"path": str(path), "question": "q", "answer": "a"})
    first, second = mine.load("test")
    assert first == Problem("mine/0", "1 + 1?", "2", {"level": 1}, "number")
    assert second == Problem("second", "{x} + 1?", "3", {}, "number")
    assert mine.load("train") == [first, second]
    assert mine.grade(first, "It is 2.0").correct


def test_jsonl_can_hold_questions_out(tmp_path):
    rows = [{"question": f"{i} + 1?", "answer": i + 1} for i in range(100)]
    path = write_rows(tmp_path / "mine.jsonl", *rows)
    mine = get_task("jsonl", {"path": path, "test_share": 0.3})
    train, test = mine.load("train"), mine.load("test")
    assert 15 < len(test) < 45 and len(train) == 100 - len(test)
    other = write_rows(tmp_path / "other.jsonl", {"question": "?", "answer": "!"})
    mine = get_task("jsonl", {"path": path, "test_path": other})
    assert (len(mine.load("train")), len(mine.load("test"))) == (100, 1)


def test_a_task_of_ones_own_in_a_dozen_lines(tmp_path):
    @task("svamp")
    class Svamp(StoredTask):
        kind, folder, hub = "number", "svamp", ("ChilleD/SVAMP",)
        columns = ("Body", "Answer")

        def problem(self, row, id):
            return Problem(id, row["Body"], row["Answer"], {}, self.kind)

    try:
        write_rows(tmp_path / "svamp" / "test.jsonl", {"Body": "2 and 2?", "Answer": "4"})
        (problem,) = get_task("svamp").load("test", tmp_path)
        assert problem == Problem("svamp/test/0", "2 and 2?", "4", {}, "number")
        assert get_task("svamp").grade(problem, "#### 4").correct
        with pytest.raises(BadInput, match=r"'gsm8k' is taken by lib\.tasks"):
            task("gsm8k")(Svamp)
    finally:
        del TASKS["svamp"]


# Sampling


def test_sampling_is_deterministic_and_keeps_the_order():
    problems = [Problem(str(i), f"{i}", "1") for i in range(100)]
    chosen = sample_problems(problems, 10, seed=3)
    assert chosen == sample_problems(problems, 10, seed=3)
    assert chosen != sample_problems(problems, 10, seed=4)
    assert chosen == sorted(chosen, key=problems.index) and len({p.id for p in chosen}) == 10
    assert sample_problems(problems, None, 0) == sample_problems(problems, 0, 0) == problems
    for n in (101, -1):
        with pytest.raises(BadInput, match="there are 100"):
            sample_problems(problems, n, 0)


# Prompts

SUM = Problem("1", "What is 1 + 2?", "3", {"solution": "1 + 2 = 3"})
OTHER = Problem("2", "What is 2 + 2?", "4", {"solution": "2 + 2 = 4", "level": 1})


def contents(row: dict) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in row["prompt"]]


def test_a_row_has_messages_gold_and_meta():
    (row,) = make_rows([OTHER], "reasoning")
    assert row == {
        "prompt": [
            {
                "role": "system",
                "content": "Respond in the following format: "
                "<reasoning>...</reasoning><answer>...</answer>",
            },
            {"role": "user", "content": "What is 2 + 2?"},
        ],
        "answer": "4",
        "id": "2",
        "question": "What is 2 + 2?",
        "kind": "number",
        "solution": "2 + 2 = 4",
        "level": 1,
    }


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
def test_worked_examples_are_turns_in_the_same_format(name, completion):
    (row,) = make_rows([OTHER], name, shots=1, examples=[SUM])
    system = PROMPT_FORMATS[name].system
    expected = [("system", system)] if system else []
    expected += [("user", SUM.question), ("assistant", completion), ("user", OTHER.question)]
    assert contents(row) == expected


@pytest.mark.parametrize("name", PROMPT_FORMATS)
def test_a_worked_example_is_graded_correct_in_its_own_format(name):
    prompt_format = PROMPT_FORMATS[name]
    grade = get_task("gsm8k").grade(SUM, prompt_format.show(SUM), prompt_format.answer_tag)
    assert grade.correct


def test_braces_in_questions_and_solutions_survive():
    odd = Problem("1", "{question} {answer} \\{x\\}?", "{solution}", {"solution": "{answer} \\1"})
    (row,) = make_rows([SUM], "reasoning", shots=1, examples=[odd])
    assert row["prompt"][1]["content"] == "{question} {answer} \\{x\\}?"
    assert row["prompt"][2]["content"] == (
        "<reasoning>\n{answer} \\1\n</reasoning>\n<answer>\n{solution}\n</answer>"
    )


def test_an_example_is_not_asked_again_after_its_answer_was_shown():
    rows = make_rows([SUM, OTHER], "answer", shots=1, examples=[SUM, OTHER])
    assert [row["id"] for row in rows] == ["2"]


def test_shots_need_examples_and_solutions():
    with pytest.raises(BadInput, match="shots is 2 and 1 examples"):
        make_rows([OTHER], "answer", shots=2, examples=[SUM])
    without = Problem("7", "What is 1 + 1?", "2")
    with pytest.raises(BadInput, match=r'Problem 7 has no worked solution .* "reasoning"'):
        make_rows([OTHER], "reasoning", shots=1, examples=[without])


def test_a_data_sets_own_system_message_is_used_where_the_format_has_none():
    asked = Problem("1", "Hello?", "", {"system": "Be kind."}, "open")
    assert contents(make_rows([asked], "plain")[0]) == [("system", "Be kind."), ("user", "Hello?")]
    assert contents(make_rows([asked], "answer")[0])[0][1] == PROMPT_FORMATS["answer"].system


def test_a_format_of_ones_own():
    shout = PromptFormat("shout", template="ANSWER THIS: {question}!")
    assert contents(make_rows([SUM], shout)[0]) == [("user", "ANSWER THIS: What is 1 + 2?!")]
    with pytest.raises(BadInput, match=r"must hold \{question\}"):
        PromptFormat("bad", template="Answer!")
    with pytest.raises(BadInput, match='did you mean "reasoning"'):
        make_rows([SUM], "reasonin")


def test_rows_of_mixed_meta_become_one_table():
    from datasets import Dataset

    problems = [
        Problem("1", "?", "1", {"level": 1, "score": 1, "tag": "a", "list": [1], "prompt": "no"}),
        Problem("2", "?", "1", {"level": None, "score": 0.5, "tag": 2, "images": "no"}),
        Problem("3", "?", "1", {"tag": True, "test": {"in": [1]}}),
        Problem("4", "?", "1", {"mixed": {"a": 1}}),
        Problem("5", "?", "1", {"mixed": {"b": 2}}),
    ]
    table = Dataset.from_list(make_rows(problems, "think"))
    columns = ["prompt", "answer", "id", "question", "kind", "level", "score", "tag", "list"]
    columns += ["test", "mixed"]
    assert table.column_names == columns
    assert table["level"][:3] == [1, None, None]
    assert table["score"][:3] == [1.0, 0.5, None]
    assert table["tag"][:3] == ["a", "2", "True"]
    assert table["list"][:2] == [[1], None]
    assert table["test"][2] == {"in": [1]}
    assert table["mixed"][3:] == ['{"a": 1}', '{"b": 2}']  # a shared type would add what lacks
    assert [message["role"] for message in table["prompt"][0]] == ["system", "user"]


@real_data
@pytest.mark.parametrize("name", ["gsm8k", "math500", "numina", "aqua", "smoltldr"])
def test_every_tasks_rows_become_a_table(name):
    from datasets import Dataset

    problems = get_task(name).load("test", DATA)
    table = Dataset.from_list(make_rows(problems, "plain"))
    assert table["answer"][:] == [problem.answer for problem in problems]


def test_generated_rows_become_a_table():
    from datasets import Dataset

    problems = get_task("reasoning_gym", {**CHAIN_SUM, "size": 20}).load("train")
    assert Dataset.from_list(make_rows(problems, "answer")).num_rows == len(problems)


@real_data
def test_few_shot_examples_are_always_the_same_and_from_train():
    gsm8k = get_task("gsm8k")
    examples = few_shot_examples(gsm8k, 5, DATA)
    assert examples == few_shot_examples(gsm8k, 5, DATA)
    assert all(example.id.startswith("gsm8k/train/") for example in examples)
    rows = make_rows(gsm8k.load("train", DATA), "hashes", 5, examples)
    assert len(rows) == 7473 - 5
    assert "<<" not in "".join(message["content"] for message in rows[0]["prompt"])


@real_data
def test_examples_for_math500_come_from_numina_with_one_answer_each():
    examples = few_shot_examples(get_task("math500"), 4, DATA)
    assert all(example.id.startswith("numina/train/") for example in examples)
    for example in examples:
        assert PROMPT_FORMATS["boxed"].show(example).count("\\boxed") == 1


def test_boxes_are_found_by_matching_braces():
    text = r"\boxed{\frac{1}{2}} and \boxed{3}, \boxed{open"
    assert [text[a:b] for a, b in boxed_spans(text)] == [r"\frac{1}{2}", "3"]
    assert unbox(text) == r"\frac{1}{2} and 3, \boxed{open"
    assert unbox(r"$\boxed{a \boxed{b}}$") == r"$a \boxed{b}$"


# What a user can get wrong: one sentence says what and where


@pytest.mark.parametrize(
    ("name", "config", "sentence"),
    [
        ("gsm8", {}, "There is no task 'gsm8': did you mean \"gsm8k\"?"),
        ("zzz", {}, "There is no task 'zzz': choose one of aqua, csv"),
        ("small_sums", {"larges": 9}, "no parameter 'larges': did you mean \"largest\"?"),
        ("gsm8k", {"largest": 9}, "Task 'gsm8k' has no parameter 'largest': it has none."),
        ("jsonl", {}, "Task 'jsonl' needs the parameter 'path'"),
        ("jsonl", {"path": "x", "kind": "numbr"}, 'did you mean "number"?'),
        ("reasoning_gym", {"dataset": "chainsum"}, 'did you mean "chain_sum"?'),
        ("reasoning_gym", {"min_term": 2}, "no parameter 'min_term': did you mean \"min_terms\"?"),
        ("reasoning_gym", {"min_terms": 0}, "min_terms must be positive"),
        ("reasoning_gym", {"min_terms": "2"}, "refuses {'min_terms': '2'"),
    ],
)
def test_a_wrong_name_or_parameter(name, config, sentence):
    with pytest.raises(BadInput) as caught:
        get_task(name, config)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (b'{"question": "1?", "answer": "1"}\n{"question": ', "mine.jsonl, line 2 is not valid"),
        (b'{"question": "1?", "answer": "1"}\n\n{"question": "2?"}', 'line 3 has no column "answ'),
        (b'{"question": "1?", "answer": null}', 'line 1 has nothing in its column "answer"'),
        (b'{"question": "\xff", "answer": "1"}', "line 1 is not valid JSON"),
        (b"[1, 2]", "line 1 is not a JSON object"),
        (b"\n", "mine.jsonl has no rows"),
    ],
)
def test_a_broken_file(tmp_path, lines, sentence):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(lines)
    with pytest.raises(BadInput) as caught:
        get_task("jsonl", {"path": path}).load("test")
    assert sentence in str(caught.value)


def test_a_missing_folder_file_or_split(tmp_path, monkeypatch):
    gsm8k = get_task("gsm8k")
    with pytest.raises(BadInput, match="There is no data folder"):
        gsm8k.load("test", tmp_path / "nowhere")
    with pytest.raises(BadInput, match="has no folder gsm8k"):
        gsm8k.load("test", tmp_path)
    write_rows(tmp_path / "gsm8k" / "train.jsonl", {"question": "1?", "answer": "1"})
    with pytest.raises(BadInput, match=r"no test.jsonl \(it has train.jsonl\)"):
        gsm8k.load("test", tmp_path)
    with pytest.raises(BadInput, match='no "#### " before its number'):
        gsm8k.load("train", tmp_path)
    with pytest.raises(BadInput, match="no split 'validation'"):
        gsm8k.load("validation", tmp_path)
    with pytest.raises(BadInput, match="has no train split"):
        get_task("math500").load("train", tmp_path)
    monkeypatch.setenv("GRPO_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match="There is no data folder"):
        gsm8k.load("test")
    with pytest.raises(BadInput, match="There is no file"):
        get_task("jsonl", {"path": tmp_path / "none.jsonl"}).load("test")


def test_an_unreachable_hub_says_how_to_go_on_without_it(tmp_path):
    code = "from lib.tasks import get_task; get_task('gsm8k').load('test')"
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=offline, capture_output=True, text=True
    )
    last_line = done.stderr.strip().splitlines()[-1]
    assert "BadInput: openai/gsm8k could not be loaded from the Hugging Face Hub" in last_line
    assert "put the rows into <folder>/gsm8k/test.jsonl and give that folder" in last_line


def test_importing_the_module_is_fast_and_loads_nothing_heavy():
    code = (
        "import sys, lib.tasks; heavy = {'torch', 'datasets', 'reasoning_gym', 'sympy', 'numpy', "
        "'rouge_score', 'transformers'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True)
    assert done.returncode == 0, done.stderr
