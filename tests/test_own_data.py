"""Data as people have it: files of any kind, golds of any type, chat messages, what is broken."""

import gzip
import json
import os
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from lib.adapters import public_name
from lib.config import ROOT, find_recipe, resolve
from lib.doctor import examine
from lib.errors import BadInput
from lib.export.page import run_config
from lib.files import write_jsonl
from lib.learned import LearnedReward
from lib.models import model_folder
from lib.rewards import recipe_rewards
from lib.runs import run_folder
from lib.tasks import Problem, get_task, gold_text, load_problems, make_rows, problem_notes
from tests.conftest import CPU, SMALL, as_parameters, refuses, start_suite


def write(path: Path, *rows: dict) -> str:
    write_jsonl(path, rows)
    return str(path)


def sums(count: int, **more) -> list[dict]:
    return [{"question": f"{i} + 1?", "answer": i + 1, **more} for i in range(count)]


def configured(path, **given):
    task_config = {"path": str(path)} | given.pop("task_config", {})
    return resolve(None, {"task": "file", "task_config": task_config} | given, CPU)


def key_of(call, *arguments) -> str:
    with pytest.raises(BadInput) as caught:
        call(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value.key


# Gold answers


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("18", "18"), (18, "18"), (0, "0"), (18.0, "18"), (-2.5, "-2.5"), (1e-7, "0.0000001"),
        (np.float32(0.1), "0.1"),
        (["2"], "2"), ([["2"]], "2"), ((2,), "2"), ("['2']", "2"), ('["2"]', "2"), ("[2]", "[2]"),
        ({"ground_truth": "7", "style": "rule"}, "7"), ({"ground_truth": ["7"]}, "7"),
        ("2, 3", "2, 3"), (np.int64(5), "5"), (np.float64(5.0), "5"), (np.array([5]), "5"),
        (np.str_("5"), "5"), ('{"ground_truth": "7"}', "7"),
    ],
)  # fmt: skip
def test_a_gold_of_any_type_becomes_text(gold, text):
    assert gold_text(gold, "row 1") == Problem("1", "?", gold).answer == text


@pytest.mark.parametrize(
    "gold",
    [None, float("nan"), float("inf"), "", " \u200b", [], {}, ["2", "3"], {"a": 1}, [None], b"2"],
)
def test_what_is_no_gold_is_refused_with_its_row(gold, tmp_path):
    assert key_of(gold_text, gold, "row 1") == key_of(Problem, "1", "?", gold) == "gold"
    if isinstance(gold, bytes):
        return
    path = write(tmp_path / "mine.jsonl", *sums(2), {"question": "?", "answer": gold})
    with pytest.raises(BadInput, match=r"mine(\.jsonl, line 3|/2)"):
        get_task("file", {"path": path}).load("test")


def test_golds_of_math500_are_evaluated_as_they_are_rewarded(tmp_path):
    from lib.rewards import build_rewards

    row = {"problem": "?", "solution": "x", "subject": "a", "level": "Level 5", "unique_id": None}
    write(tmp_path / "math500" / "test.jsonl", row | {"answer": 5}, row | {"answer": ["2"]})
    math500 = get_task("math500")
    problems = math500.load("test", tmp_path)
    assert [problem.id for problem in problems] == ["math500/test/0", "math500/test/1"]
    [correctness], _ = build_rewards({"correctness": 1.0})
    for problem, answer in zip(problems, ("5", "2"), strict=True):
        text = f"<answer>{answer}</answer>"
        assert math500.grade(problem, text, "answer").correct
        [row] = make_rows([problem], "answer")
        columns = {key: [row[key]] for key in row if key != "prompt"}
        assert correctness(completions=[text], **columns) == [2.0]


def test_golds_that_cannot_be_read_are_counted_and_the_first_is_named(tmp_path):
    rows = sums(20)
    rows[3]["answer"] = rows[17]["answer"] = "n/a"
    path = write(tmp_path / "mine.jsonl", *rows)
    config = configured(path, eval_problems=5, task_config={"test_share": 0.4})
    _, training, held_out, _ = load_problems(config)
    first = next(p.question for p in (*training, *held_out) if p.answer == "n/a")
    assert f"the first is 'n/a', to {first!r}" in " ".join(problem_notes(config))
    few = write(tmp_path / "few.jsonl", *sums(20, answer="n/a"), *sums(40)[20:])
    examples = load_problems(configured(few, shots=9, task_config={"test_path": path}))[3]
    assert all(problem.readable for problem in examples), "an example shows an answer"
    # What the rewards pay is tried on problems that they can judge, be those few.
    few = write(tmp_path / "few.jsonl", *sums(40, answer="n/a"), {"question": "1?", "answer": 1})
    paid = {"task_config": {"test_path": path}, "rewards": {"correctness": 1.0}}
    judged = configured(few, **paid)
    assert not dict(examine(judged, deep=False))["what the rewards pay"]
    write(tmp_path / "mine.jsonl", *({**row, "answer": "n/a"} for row in rows))
    assert key_of(load_problems, config) == "unreadable"


# Ids


def test_null_ids_count_as_missing_and_equal_ones_are_refused(tmp_path):
    path = write(tmp_path / "mine.jsonl", *sums(8, id=None))
    config = configured(path, eval_problems=3)
    _, training, held_out, _ = load_problems(config)
    assert len({problem.id for problem in (*training, *held_out)}) == 8
    write(tmp_path / "mine.jsonl", *sums(4, id=7), *sums(8, id="7")[4:])
    with refuses("equal-ids", '"7"'):
        load_problems(config)
    rows = [row | {"id": row["answer"] // 4} for row in sums(8)]
    write(tmp_path / "mine.jsonl", *rows)
    assert key_of(load_problems, config) == "equal-ids"
    # A second file may count from the same number.
    rows = [row | {"id": row["answer"]} for row in sums(8)]
    write(tmp_path / "mine.jsonl", *rows[:5])
    test = {
        "test_path": write(tmp_path / "test.jsonl", *(r | {"id": i} for i, r in enumerate(rows)))
    }
    assert len(load_problems(configured(path, eval_problems=3, task_config=test))[2]) == 3


# Files


def test_csv_tsv_json_and_parquet_are_read_as_jsonl_is(tmp_path):
    import pandas as pd

    rows = [
        {"question": 'Say "a, b";\nthen 1 + 1?', "answer": 2, "level": 1},
        {"question": "2 + 2?", "answer": 4, "level": 2},
    ]
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "mine.csv", index=False, encoding="utf-8-sig")
    frame.to_csv(tmp_path / "excel.csv", index=False, sep=";")
    frame.to_csv(tmp_path / "mine.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "mine.parquet")
    frame.to_csv(tmp_path / "mine.csv.gz", index=False)
    frame.to_csv(tmp_path / "mine.txt", index=False, sep="\t")
    marked = b"sep=;\r\n" + (tmp_path / "excel.csv").read_bytes()
    (tmp_path / "marked.csv").write_bytes(marked)
    frame.rename(columns="{} ".format).to_csv(tmp_path / "spaces.csv", index=False)
    for name in ("mine.json", "list.jsonl"):
        (tmp_path / name).write_text(json.dumps(rows))
    write(tmp_path / "mine.jsonl", *rows)
    (tmp_path / "mine.jsonl.gz").write_bytes(gzip.compress((tmp_path / "mine.jsonl").read_bytes()))
    (tmp_path / "smile.jsonl").write_bytes(b'{"question": "\\ud83d\\ude00?", "answer": 1}')
    smile = get_task("file", {"path": str(tmp_path / "smile.jsonl")}).load("test")
    assert smile[0].question == "😀?"
    names = {path.name for path in tmp_path.iterdir()} - {"smile.jsonl"}
    for name in names:
        first, second = get_task("file", {"path": str(tmp_path / name)}).load("test")
        assert (first.question, first.answer) == (rows[0]["question"], "2"), name
        assert (second.answer, str(second.meta["level"])) == ("4", "2"), name
    assert get_task("csv", {"path": str(tmp_path / "mine.csv")}).load("train")[1].answer == "4"


@pytest.mark.parametrize(
    ("name", "content", "key"),
    [
        ("a.csv", b"question,answer\nTom has 3, Ann 2. All?,5\n", "csv"),
        ("a.csv", b"question,answer\n1 + 1?\n", "empty"),
        ("a.csv", b"question,answer\n1 + 1?,\n2?,4\n ,3\n", "fill it in. Likewise line 4."),
        ("a.csv", b"q,a\n1 + 1?,2\n", "column"),
        ("a.csv", "question,answer\n1 + 1?,2\n".encode("utf-16"), "encoding"),
        ("a.csv", b"question,answer\n", "has no rows"), ("a.csv", b"", "has no rows"),
        ("a.parquet", b"no parquet", "no Parquet"),
        ("a.jsonl", b'{"question": "half \\ud83d a smile", "answer": 1}', "surrogate"),
        ("a.jsonl", b'{"question": {"text": "?"}, "answer": 1}', "question"),
        ("a.jsonl", b'{"question": [{"role": "assistant", "content": "x"}], "answer": 1}',
         "question"),
        ("a.jsonl", b'{"question": [{"role": "user", "content": null}], "answer": 1}', "question"),
        ("a.jsonl", b'{"question": [{"role": null, "content": "?"}], "answer": 1}', "question"),
        ("a.jsonl", b'{"question": "[{\'role\': broken", "answer": 1}', "question"),
        ("a.jsonl", b'{"question": "1?", "answer": "1"}\n{"question": ', "line 2 is not valid"),
        ("a.jsonl", b'{"question": "1?", "answer": "1"}\n\n{"question": "2?"}', "column"),
        ("a.jsonl", b'{"question": "1?", "answer": null}', "empty"),
        ("a.jsonl", b'{"question": "1?", "answer": ' + b"[" * 5000 + b"]" * 5000 + b"}", "line 1"),
        ("a.jsonl", b'{"question": "\xff", "answer": "1"}', "encoding"),
        ("a.xlsx", b"PK\x03\x04\xff", "encoding"), ("a.zip", b"PK\x03\x04\0", "encoding"),
        ("a.jsonl.gz", gzip.compress(b"[]" * 99, mtime=0)[:20], "cannot be unpacked"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.jsonl", b"\n", "has no rows"), ("a.jsonl", b"[1, 2]", "row 1 is not a JSON object"),
        ("a.csv", b"question,answer,answer \n1 + 1?,2,3\n", "csv"),
        ("a.csv", b'question,answer\n1 + 1?,2\n2 + 1?,"3\n3 + 1?,4\n', "after line 2"),
        ("a.json", b'{\n "question": "1?",\n "answer": 1\n}', "is one object"),
        ("a.jsonl", b'{"question": [{"role": "user", "content": "?"}, {"role": "assistant", '
         b'"tool_calls": [1]}, {"role": "user", "content": "?"}], "answer": 1}', "question"),
        ("a.jsonl", b'{"question": {"role": "user", "content": [{"type": "image"}]}, "answer": 1}',
         "question"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named(tmp_path, name, content, key):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput) as caught:
        get_task("file", {"path": str(tmp_path / name)}).load("test")
    assert caught.value.key == key or key in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_columns_of_a_data_set_of_the_hub_are_named_in_the_recipe(
    tmp_path, tmp_path_factory, monkeypatch
):
    import pandas as pd
    from datasets import Dataset, DatasetDict

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    frame = pd.DataFrame({"Body": [f"{i} + 1?" for i in range(40)], "Answer": range(1, 41)})
    for split, rows in (("train", frame[:30]), ("validation", frame[30:])):
        rows.to_csv(tmp_path / f"{split}.csv", index=False)
    given = {"path": str(tmp_path), "question": "Body", "answer": "Answer", "test": "validation"}
    config = resolve(None, {"task": "hub", "task_config": given, "eval_problems": 0}, CPU)
    _, training, held_out, _ = load_problems(config)
    assert (len(training), len(held_out), held_out[0].answer) == (30, 10, "31")
    hub = get_task("hub", given | {"test_share": 0.4})
    assert len(hub.load("train")) + len(hub.load("test")) == 30 and hub.load("test")
    assert key_of(get_task("hub", given | {"question": "body"}).load, "train") == "column"
    assert key_of(get_task("hub", given | {"test": "nowhere"}).load, "test") == "hub"
    DatasetDict({"train": Dataset.from_pandas(frame)}).save_to_disk(tmp_path / "saved")
    Dataset.from_pandas(frame).save_to_disk(tmp_path / "alone")
    for name in ("saved", "alone"):
        hub = get_task("hub", given | {"path": str(tmp_path / name), "test_share": 0.25})
        assert (len(hub.load("train")), len(hub.load("test"))) == (30, 10)


# Questions


def test_chat_messages_are_a_question(tmp_path):
    parts = [{"type": "text", "text": "And "}, {"type": "text", "text": "2 + 2?"}]
    dialogue = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": parts},
    ]
    verl = {"prompt": dialogue, "reward_model": {"style": "rule", "ground_truth": "4"}}
    path = write(tmp_path / "verl.jsonl", verl, {**verl, "prompt": dialogue[1:2]})
    for answer in ("reward_model", "reward_model.ground_truth"):
        task = get_task("file", {"path": path, "question": "prompt", "answer": answer})
        first, second = task.load("test")
        assert (first.question, first.answer) == ("And 2 + 2?", "4")
        assert second.question == "1 + 1?"
    plain, tagged = (make_rows([first], name)[0]["prompt"] for name in ("plain", "answer"))
    said = [("system", "Be brief."), ("user", "1 + 1?"), ("assistant", "2"), ("user", "And 2 + 2?")]
    assert [(turn["role"], turn["content"]) for turn in plain] == said
    assert [turn["content"] for turn in tagged[1:]] == [text for _, text in said[1:]]


@pytest.mark.parametrize(
    "question",
    [
        [{"from": "human", "value": "1 + 1?"}],
        {"role": "User", "content": "1 + 1?"},
        {"messages": [{"role": "user", "content": "1 + 1?"}]},
        "[{'role': 'system', 'content': '?'}\n {'role': 'user', 'content': '1 + 1?'}]",  # numpy's
        json.dumps([{"role": "user", "content": "1 + 1?"}]),
        {"conversations": [{"from": "human", "value": "1 + 1?"}]},
        json.dumps({"messages": [{"role": "user", "content": "1 + 1?"}]}),
        json.dumps([{"name": "Ann", "role": "user", "content": "1 + 1?"}]),
        ["1 + 1?"],
        '["1 + 1?"]',
        str([{"role": "user", "content": "1 + 1?"}]),  # as Python writes it into a CSV
    ],
)
def test_messages_in_other_shapes(tmp_path, question):
    path = write(tmp_path / "mine.jsonl", {"question": question, "answer": 2})
    assert get_task("file", {"path": path}).load("test")[0].question == "1 + 1?"


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ("messages", {"messages": [{"role": "user", "content": "1 + 1?"},
                                   {"role": "assistant", "content": "It is 2."}]}),
        ("conversations", {"conversations": [{"from": "human", "value": "1 + 1?"},
                                             {"from": "gpt", "value": "2"}]}),
        ("prompt completion", {"prompt": [{"role": "user", "content": "1 + 1?"}],
                               "completion": [{"role": "assistant", "content": "2"}]}),
        ("c+a+b output", {"a": "1 +", "b": "1?", "c": "", "output": "2"}),
    ],
)  # fmt: skip
def test_dialogues_and_several_columns_are_question_and_answer(tmp_path, columns, row):
    question, answer = (columns.split() * 2)[:2]
    question = question.split("+") if "+" in question else question
    given = {"path": write(tmp_path / "a.jsonl", row), "question": question, "answer": answer}
    [problem] = get_task("file", given).load("test")
    assert problem.question.split() == ["1", "+", "1?"] and not problem.meta
    assert problem.readable and get_task("file", given).grade(problem, "2").correct
    for columns, key in ((["d"], "column"), (["e", "d"], "column"), (["e", "e"], "empty")):
        path = write(tmp_path / "a.jsonl", row | {"e": ""})
        task = get_task("file", given | {"path": path, "question": columns})
        assert key_of(task.load, "test") == key


def test_preference_pairs_as_messages(tmp_path):
    asked, good, bad = (
        {"role": role, "content": text}
        for role, text in (("user", "Hi?"), ("assistant", "Hello."), ("assistant", "Go away."))
    )
    rows = [
        {"question": "Hi?", "chosen": "Hello.", "rejected": "Go away."},
        {"prompt": [asked], "chosen": [good], "rejected": json.dumps([bad])},
        {"chosen": [asked, good], "rejected": [asked, bad]},
    ]
    write(tmp_path / "preference_pairs" / "test.jsonl", *rows)
    for pair in get_task("preference_pairs").load("test", tmp_path):
        sides = (pair.question, pair.meta["chosen"], pair.meta["rejected"])
        assert sides == ("Hi?", "Hello.", "Go away.")


def test_lists_and_dicts_reach_the_rewards(tmp_path):
    more = {"tests": ["f(1) == 2", "f(2) == 3"], "extra": {"unit": "eggs"}}
    path = write(tmp_path / "mine.jsonl", *sums(3, **more, earlier_turns="4"))
    rows = make_rows(get_task("file", {"path": path}).load("test"), "answer")
    assert {key: rows[0][key] for key in more} == more

    from datasets import Dataset

    assert Dataset.from_list(rows)[2]["tests"] == more["tests"]


def test_the_same_question_in_other_spelling_is_not_trained_and_asked(tmp_path):
    rows = sums(60)
    rows += [{"question": f"  {row['question'].replace(' ', '  ')}\n", "answer": 0} for row in rows]
    path = write(tmp_path / "mine.jsonl", *rows)
    for given in ({"test_share": 0.3}, {}):
        config = configured(path, eval_problems=12, task_config=given)
        _, training, held_out, _ = load_problems(config)
        assert not {p.key for p in training} & {p.key for p in held_out}
        assert len({p.key for p in held_out}) == len(held_out) == 12
        assert any("repeat a question" in note for note in problem_notes(config))
    upper = [{**row, "question": row["question"].replace(" + 1?", "＋1 IS?")} for row in sums(5)]
    lower = [{**row, "question": row["question"].replace("?", " is\u200b?")} for row in sums(8)]
    write(tmp_path / "mine.jsonl", *lower)
    test = {"test_path": write(tmp_path / "test.jsonl", *upper)}
    config = configured(path, eval_problems=0, task_config=test)
    assert len(load_problems(config)[1]) == 3
    assert any("left out" in note for note in problem_notes(config))


# Settings


def test_one_file_without_a_split(tmp_path):
    path = write(tmp_path / "mine.jsonl", *sums(20))
    assert key_of(load_problems, configured(path, eval_problems=0)) == "all-held-out"
    _, training, held_out, _ = load_problems(configured(path, eval_problems=5))
    assert (len(training), len(held_out)) == (15, 5)
    single = write(tmp_path / "single.jsonl", *sums(1))
    single = configured(single, task_config={"test_share": 0.5})
    assert key_of(load_problems, single) == "none-held-out"


def test_open_questions_need_no_answer_and_tables_keep_their_values(tmp_path):
    import pandas as pd

    path = write(tmp_path / "open.jsonl", {"question": "Say hi."}, {"question": "Go on."})
    assert [p.answer for p in get_task("file", {"path": path, "kind": "open"}).load("test")] == [
        ""
    ] * 2
    named = get_task("file", {"path": path, "kind": "open", "answer": "reply"})
    assert key_of(named.load, "test") == "column"
    frame = pd.DataFrame({"question": [b"1 + 1?"], "answer": np.float32([0.1])})
    frame.to_parquet(tmp_path / "a.parquet")
    [problem] = get_task("file", {"path": str(tmp_path / "a.parquet")}).load("test")
    assert (problem.question, problem.answer) == ("1 + 1?", "0.1")
    (tmp_path / "a.csv").write_text("\nquestion,answer,,\n1 + 1?,2,,\n")
    assert not get_task("file", {"path": str(tmp_path / "a.csv")}).load("test")[0].meta


@pytest.mark.parametrize(
    "given",
    [
        *({"test_share": value} for value in ("0.5", True, None, 1.5, -0.1, float("nan"))),
        *({"path": value} for value in (5, None, ["a"])),
        *({"question": value} for value in (5, [], [5])),
        {"kind": "nummer"},
    ],
)
def test_a_parameter_of_a_wrong_type_is_refused(given):
    key_of(get_task, "file", {"path": "mine.jsonl"} | given)


def test_files_are_found_from_where_the_user_is_and_beside_the_recipe(tmp_path, monkeypatch):
    write(tmp_path / "mine.jsonl", *sums(9))
    (tmp_path / "mine.yaml").write_text("task: file\ntask_config: {path: mine.jsonl}\n")
    monkeypatch.chdir(ROOT / "notebooks")  # where a notebook's kernel is
    recipe = resolve(tmp_path / "mine.yaml", {"eval_problems": 3}, CPU)
    assert len(load_problems(recipe)[1]) == 6
    monkeypatch.setenv("GRPO_WORKING_DIR", str(tmp_path.parent))
    beside = configured(f"{tmp_path.name}/mine.jsonl", eval_problems=3)
    assert len(load_problems(beside)[1]) == 6
    own = resolve(None, {"model": f"./{tmp_path.name}"}, CPU)  # a folder, if not with a model
    assert key_of(model_folder, own) == "no-safetensors" and public_name(own) == tmp_path.name
    for name in ("reward.json", "model.safetensors"):
        (tmp_path / name).touch()
    assert LearnedReward(f"./{tmp_path.name}").folder() == tmp_path.resolve()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_problems(configured("~/mine.jsonl", eval_problems=3))[1]) == 6
    assert find_recipe("~/mine.yaml") == tmp_path / "mine.yaml"
    assert run_folder(resolve("ci", {"output_dir": "~/runs"})) == tmp_path / "runs" / "ci"
    monkeypatch.delenv("GRPO_WORKING_DIR")
    missing = configured("mine.jsonl")
    with pytest.raises(BadInput, match="There is no file"):
        load_problems(missing)
    assert os.getcwd() == str(ROOT / "notebooks")


# All of it in one place


@pytest.mark.filterwarnings("ignore:'lib.preflight' found in sys.modules")
def test_mine_is_looked_at_before_it_is_trained(tmp_path, monkeypatch, capsys):
    """docs/your_own.md: the three files, copied elsewhere and changed."""

    def look() -> str:
        runpy.run_module("lib.preflight", run_name="__main__")
        return capsys.readouterr().out

    monkeypatch.setattr(sys, "argv", ["lib.preflight", "./mine.yaml"])
    for name in ("mine.csv", "mine.yaml", "my_rewards.py"):
        shutil.copy(ROOT / "notebooks" / "recipes" / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    rows = (tmp_path / "mine.csv").read_text()
    (tmp_path / "mine.csv").write_text(rows + "Calculate  2 + 12.,14\nHow many?,a few\n")
    page = look()
    assert "problems to train on, 16 held out" in page and "'a few'" in page
    assert "<|im_start|>user\nCalculate" in page
    paid = {what: float(value) for value, what in re.findall(r"(\d\.\d+)  (right|wrong):", page)}
    assert paid["right"] > 2 > paid["wrong"]
    (tmp_path / "my_rewards.py").write_text("def shrt(completions, **columns): return [0.0]\n")
    with pytest.raises(SystemExit, match='did you mean "shrt"'):
        look()


def test_mine_trains_two_steps(tmp_path, first_layers):
    """As a user does it, from the command line, with two layers of the model."""
    for name in ("mine.csv", "mine.yaml", "my_rewards.py"):
        shutil.copy(ROOT / "notebooks" / "recipes" / name, tmp_path)
    given = SMALL | {"model": str(first_layers), "max_steps": 2, "ignore_preflight": True}
    words = as_parameters(given | {"output_dir": str(tmp_path), "run": "mine"})
    mine = start_suite(tmp_path / "mine.yaml", "--only", "03", *words)
    out, errors = mine.communicate()
    assert mine.returncode == 0, out + errors
    steps = [json.loads(line) for line in (tmp_path / "mine/train_log.jsonl").open()]
    assert len(steps) == 2 and all("rewards/short/mean" in step for step in steps)
    # From elsewhere, its data and rewards are found beside its recipe.
    _, config = run_config(tmp_path / "mine" / "adapter")
    assert load_problems(config)[1] and len(recipe_rewards(config)[0]) == 3


@pytest.mark.parametrize(("rows", "held_out"), [(2, 1), (10, 2), (40, 8)])
def test_few_rows_are_split_as_the_share_says_and_more_than_there_are_is_all(
    tmp_path, rows, held_out
):
    path = tmp_path / "mine.csv"
    lines = [f"What is {i} + {i}?,{2 * i}" for i in range(rows)]
    path.write_text("\n".join(["question,answer", *lines]))
    config = configured(path, eval_problems=16, shots=0, task_config={"test_share": 0.2})
    _, training, tested, _ = load_problems(config)
    assert (len(training), len(tested)) == (rows - held_out, held_out)
    note = f"eval_problems is 16, and there are {held_out}: all of them are taken."
    assert note in problem_notes(config)
