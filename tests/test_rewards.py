"""Rewards: exact values, properties, hostile text, recipes, calls, and the golden table."""

import asyncio
import inspect
import itertools
import json
import math
import os
import pickle
import random
import sys
from dataclasses import dataclass, make_dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import rewards
from lib.config import ROOT, resolve
from lib.errors import BadInput
from lib.rewards import (
    REWARDS,
    Checked,
    build_rewards,
    completion_texts,
    recipe_rewards,
    reward,
    rules,
    with_name,
)
from tests.conftest import CPU

DATA = Path(__file__).parent / "data"
ADVERSARIAL = json.loads((DATA / "adversarial_rewards.json").read_text(encoding="utf-8"))
GOOD = "<think>\n16 - 3 - 4 = 9, and 9 * 2 = 18.\n</think>\n<answer>\n18\n</answer>"
REASONED = "<reasoning>\nline one\nline two\n</reasoning>\n<answer>\n18\n</answer>"


def built(name: str, **parameters):
    """One reward as a recipe would build it."""
    return build_rewards({name: parameters})[0][0]


def score(name: str, text, gold="18", kind="number", n_tokens=0, **parameters):
    """What one reward gives one completion."""
    columns = {"answer": [gold], "kind": [kind], "completion_ids": [list(range(n_tokens))]}
    [value] = built(name, **parameters)(prompts=["?"], completions=[text], **columns)
    return value


# --- exact values -------------------------------------------------------------------------------

VALUES = {}
for case in map(json.loads, (DATA / "reward_values.jsonl").open(encoding="utf-8")):
    VALUES.setdefault(case["reward"], []).append(case)


@pytest.mark.parametrize("name", VALUES)
def test_what_a_reward_pays(name):
    """For the gold answer 18 of kind number, where the case does not say otherwise."""
    for case in VALUES[name]:
        pays = case["pays"]
        value = score(name, case["completion"], **case["given"])
        assert value == (pays if pays is None else pytest.approx(pays)), case
        if name == "correctness":
            half = score("reward_accuracy", case["completion"], **case["given"])
            assert half == (pays if pays is None else pays / 2), case


def test_weights_parameters_tags_and_the_limit_reach_every_reward():
    spec = {"correctness": 2, "hard_format": {"weight": 0.5, "full": 3.0}, "mark": {}, "digit": 0}
    functions, weights = build_rewards(spec)
    assert weights == [2.0, 0.5, 1.0, 0.0]
    assert [function.__name__ for function in functions] == list(spec)
    assert functions[1](completions=[GOOD]) == [3.0]
    names = ("hard_format", "mark", "tag_count", "xmlcount", "soft_format", "strict_format")
    spec = dict.fromkeys((*names, "reward_format"), 1.0)
    functions, _ = build_rewards(spec, think_tag="scratch")
    renamed = REASONED.replace("reasoning", "scratch")
    assert [f(completions=[renamed])[0] for f in functions] == [0.5, 0.5, 1, 0.5, 0.5, 0.5, 1]
    [lenient], _ = build_rewards({"correctness": 1.0}, tags=None)
    assert lenient(completions=["#### 18"], answer=["18"], kind=["number"]) == [2.0]
    spec = {"soft_overlong": 1.0, "cosine_length": {"max_completion_length": 10}, "mark": 1.0}
    (overlong, cosine, _), _ = build_rewards(spec, max_completion_length=100)
    columns = columns_for([GOOD])
    assert overlong(completions=["x"], **columns | {"completion_ids": [[1] * 100]}) == [-1.0]
    assert cosine(completions=[GOOD], **columns | {"completion_ids": [[1] * 10]}) == [0.5]
    # A data set without kinds is graded as mathematics.
    columns = {"completions": ["<answer>$0.5$</answer>"], "answer": [r"\frac12"]}
    assert built("correctness")(**columns) == [2.0]


def test_what_trl_has_is_what_trl_says():
    from trl import rewards as trl

    texts = [GOOD, "no tags", "<think>a</think>b", r"\boxed{18}", r"\boxed{7}", "<think></think>"]
    texts += ["<think>"]
    ids = [[n % 3 for n in range(n)] for n in (0, 1, 30, 77, 100, 160, 2)]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    columns = {"completions": messages, "completion_ids": ids}
    length = {"max_completion_length": 100}
    for name, ours, theirs in (
        ("think_format", {}, trl.think_format_reward),
        ("repetition_penalty", {}, trl.get_repetition_penalty_reward(3, -1.0)),
        ("soft_overlong", length, trl.get_soft_overlong_punishment(100, 20)),
    ):
        assert built(name, **ours)(**columns) == pytest.approx(theirs(**columns)), name
    columns = {key: values[3:5] for key, values in columns.items()}
    theirs = trl.get_cosine_scaled_reward(100)(solution=["$18$"] * 2, **columns)
    golds = {"answer": ["18"] * 2, "kind": ["number"] * 2}
    ours = built("cosine_length", max_completion_length=100, tags=None)(**columns, **golds)
    assert ours == pytest.approx(theirs)
    assert built("repetition_penalty", ngram_size=2)(completion_ids=[[5] * 5]) == [-0.75]


# --- the registry and recipes ------------------------------------------------------------------


@pytest.fixture
def own_rewards():
    """Whatever a test registers is gone after it."""
    before = dict(REWARDS)
    yield
    REWARDS.clear()
    REWARDS.update(before)


FILE = """
from lib.rewards import reward

def short(prompts, completions, limit=5, **columns):
    return [float(len(c[0]["content"]) <= limit) for c in completions]

@reward("named")
def other(prompts, completions, **columns):
    return [3.0] * len(completions)

class Least:
    def __init__(self, limit=3):
        self.limit = limit
    def __call__(self, completions, **columns):
        return [float(self.limit)] * len(completions)

unnamed = lambda completions, **columns: [0.5] * len(completions)
NUMBER = 5
"""


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ({"corectness": 1.0}, 'did you mean "correctness"'),
        ({"hard_format": {"ful": 1}}, 'no parameter "ful": did you mean "full"'),
        ({"hard_format": {"full": "1.0"}}, "full of reward"),
        *(({"correctness": weight}, "weight of reward") for weight in ("2.0", True, math.nan)),
        ({"gated_format": {"gate": "corect"}}, "gate is"),
        ({"language_consistency": {"language": "klingon"}}, "no language"),
        ({"soft_overlong": {"soft_punish_cache": 9999}}, "soft_punish_cache is 9999"),
        ({"nowhere.at.all": 1.0}, "cannot be imported"),
        ({"lib.rewards.nothing": 1.0}, "has no reward"),
        ({"trl.rewards.think_format_rewards": 1.0}, 'mean "think_format_reward"'),
        ({"raises.py:Short": 1.0}, "ValueError: no"),
        ({"lib.rewards.LEARNED": 1.0}, "cannot be called"),
        ({"os.path.join": {"b": 1}}, "columns"),
        ({"mark": 1.0, "trl.rewards.think_format_reward": 1.0, "a": 1}, 'no reward "a"'),
        ({}, "write names"),
        (["correctness"], "write names"),
        ({"a.py:shrt": 1.0}, 'did you mean "short"'),
        ({"a.py": 1.0}, 'no reward "": choose one of'),
        ({"a.py:NUMBER": 1.0}, "cannot be called"),
        ({"a.py:short": {"limt": 1}}, 'did you mean "limit"'),
        ({"b.py:short": 1.0}, "there is no file"),
        ({"import.py:short": 1.0}, "ModuleNotFoundError.*line 1"),
        ({"syntax.py:short": 1.0}, "SyntaxError.*line 1"),
        ({"exit.py:short": 1.0}, "SystemExit: 3, line 1"),
        ({"no.py:one": 1.0}, "columns"),
    ],
)
def test_a_recipe_that_is_wrong_says_so(spec, word, tmp_path, monkeypatch, own_rewards):
    monkeypatch.chdir(tmp_path)
    files = {"a": FILE, "import": "import nowhere_at_all", "exit": "raise SystemExit(3)"}
    files |= {"syntax": "def short(:\n", "no": "def one(x): return x\n"}
    files["raises"] = FILE + "class Short(Least):\n    def __init__(self): raise ValueError('no')\n"
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    with pytest.raises(BadInput, match=word) as error:
        build_rewards(spec)
    assert len(str(error.value).splitlines()) == 1


def test_a_recipe_names_a_function_in_a_file_beside_it(tmp_path, monkeypatch, own_rewards):
    (tmp_path / "my_rewards.py").write_text(FILE)
    (tmp_path / "mine.yaml").write_text(
        "rewards:\n  my_rewards.py:short: {weight: 0.5, limit: 2}\n  my_rewards.py:named: 1.0\n"
        "  my_rewards.py:Least: {limit: 7}\n  my_rewards.py:unnamed: 0.0\n"
    )
    monkeypatch.chdir(ROOT / "notebooks")
    config = resolve(tmp_path / "mine.yaml", {}, CPU)
    functions, weights = recipe_rewards(config)
    assert recipe_rewards(config)[0][0] is functions[0]  # built once
    assert [f.__name__ for f in functions] == ["short", "named", "Least", "unnamed"]
    texts = [[{"role": "assistant", "content": text}] for text in ("ab", "abc")]
    paid = [Checked(f)(prompts=None, completions=texts, limit=[9, 9]) for f in functions]
    assert paid == [[1, 0], [3, 3], [7, 7], [0.5, 0.5]] and weights == [0.5, 1.0, 1.0, 0.0]
    (tmp_path / "my_rewards.py").write_text(FILE.replace("<=", ">"))
    os.utime(tmp_path / "my_rewards.py", (1, 1))
    again = recipe_rewards(config)[0][0]
    assert Checked(again)(prompts=None, completions=texts) == [0.0, 1.0]


@dataclass(frozen=True)
class Longest:
    limit: int = 5

    def __call__(self, completions, **columns):
        return [float(len(text) <= self.limit) for text in completion_texts(completions)]


def test_a_function_or_class_of_ones_own(own_rewards):
    for value in (1.0, 2.0):  # a cell that is run twice

        @reward("polite")
        def thanks(prompts, completions, value=value, **columns):
            return [value * ("thank" in text) for text in completion_texts(completions)]

    [polite], [weight] = build_rewards({"polite": 0.5})
    assert (polite.__name__, weight) == ("polite", 0.5) and thanks is polite
    assert polite(prompts=None, completions=["thank you", "no"]) == [2.0, 0.0]
    [polite], _ = build_rewards({"polite": {"value": 3.0}})
    assert polite.__name__ == "polite" and not isinstance(polite, partial)
    # A column of the data set never takes the place of a parameter that the recipe gave.
    assert polite(prompts=None, completions=["thank you"], value=["9"]) == [3.0]
    reward("brief")(Longest)
    assert built("brief", limit=2)(completions=["ab", "abc"]) == [1.0, 0.0]
    assert REWARDS["brief"](completions=["ab", "abc"]) == [1.0, 1.0]
    # So does an import path.
    spec = {"trl.rewards.think_format_reward": 1.0, f"{__name__}.Longest": {"limit": 2}}
    (theirs, ours), _ = build_rewards(spec)
    assert (theirs.__name__, ours.__name__) == ("think_format_reward", "Longest")
    assert theirs(completions=[[{"content": GOOD}]]) == ours(completions=["ab"]) == [1.0]
    with pytest.raises(BadInput, match='"limits": did you mean "limit"'):
        build_rewards({"brief": {"limits": 2}})
    reward("think_format_reward")(lambda prompts, completions, **columns: [0.0])
    with pytest.raises(BadInput, match="would log them as one"):
        build_rewards({"trl.rewards.think_format_reward": 1, "think_format_reward": 1})


@pytest.mark.parametrize(
    ("name", "what", "word"),
    [
        *((name, print, "needs a name") for name in ("", "a.b", "a:b", None, print)),
        ("correctness", lambda prompts, completions: [], "is taken by lib"),
        ("mine", REWARDS["mark"], "function or class"),
        ("mine", make_dataclass("NoDefault", ["limit"]), "give every parameter a default"),
        ("mine", type("Plain", (), {}), "no __call__"),
    ],
)
def test_what_cannot_be_registered(name, what, word, own_rewards):
    with pytest.raises(BadInput, match=word):
        reward(name)(what)


# --- calls --------------------------------------------------------------------------------------


def called(values):
    def mine(completions, **columns):
        return values() if callable(values) else values

    return Checked(mine)(completions=["a", "b"], prompts=["p", "p"])


async def waiting(completions, **columns):
    await asyncio.sleep(0)
    return [1.0 / len(completion) for completion in completions]


@pytest.mark.parametrize(
    ("values", "key", "word"),
    [
        ([1.0], "reward-count", "1 values for 2"),
        (itertools.repeat(1.0), "reward-count", "more values for 2"),
        *(([1.0, bad], "reward-value", '"mine" returned')
          for bad in ("good", "2", [1.0], 1j, 10**400)),
        *(([float(bad), 1.0], "reward-value", bad) for bad in ("inf", "nan")),
        ([1e300, 1.0], "reward-value", r"returned 1e\+300"),
        *((bad, "reward-failed", f"returned a {type(bad).__name__}")
          for bad in (None, 1.0, {"a": 1.0, "b": 2.0}, {1.0, 2.0}, "12")),
        (lambda: 1 / 0, "reward-failed", r"ZeroDivisionError .* in test_rewards.py"),
        (lambda: sys.exit(3), "reward-failed", r"SystemExit \(3\) in test_rewards.py"),
    ],
)  # fmt: skip
def test_a_wrong_reward_is_told_in_a_sentence_and_a_right_one_left_as_it_is(values, key, word):
    assert called([1, None]) == [1.0, None]
    assert called(np.array([0.5, 1.0])) == called(iter([0.5, True])) == [0.5, 1.0]
    with pytest.raises(BadInput, match=word) as error:
        called(values)
    assert error.value.key == key
    assert key != "reward-failed" or "in test_rewards.py" in str(error.value)


def test_an_async_reward_is_awaited_also_where_a_loop_runs():
    async def notebook():
        return Checked(waiting)(completions=["a", "bb"])

    assert Checked(waiting)(completions=["a", "bb"]) == asyncio.run(notebook()) == [1.0, 0.5]
    with pytest.raises(BadInput, match=r"ZeroDivisionError .* in test_rewards.py"):
        Checked(waiting)(completions=[""])


def test_a_reward_that_edits_what_it_is_given_changes_nothing():
    def mine(completions, answer, **columns):
        completions[0][0]["content"] = "edited"
        answer.clear()
        return [completions.pop() and 1.0 for _ in range(2)]

    completions = [[{"role": "assistant", "content": text}] for text in "ab"]
    answers = ["1", "2"]
    assert Checked(mine)(completions=completions, answer=answers) == [1.0, 1.0]
    assert [c[0]["content"] for c in completions] == ["a", "b"] and answers == ["1", "2"]


def test_columns_may_have_any_name_and_a_missing_one_is_named():
    names = ("self", "score", "parameters", "function", "right", "value", "tags", "name", "given")
    columns = {name: ["x", "x"] for name in names}
    given = dict(answer=["1", "2"], completion_ids=[[1], [2]], kind=["number"] * 2)
    for name, function in REWARDS.items():
        call = Checked(function)
        plain = call(completions=["a", "b"], **given)
        assert call(completions=["a", "b"], **given, **columns) == plain, name
    assert Checked(with_name(Longest(), "longest"))(completions=["a"], self=["x"]) == [1.0]
    for name, column in (("correctness", "answer"), ("soft_overlong", "completion_ids")):
        with pytest.raises(BadInput, match=f'"{name}" needs the column "{column}"'):
            REWARDS[name](completions=[GOOD])


def test_rewards_get_what_trl_gives_beside_the_columns():
    def mine(completions, trainer_state, log_extra, log_metric, **columns):
        log_extra("seen", completions)
        log_metric("one", 1.0)
        return [float(trainer_state.global_step)]

    answer = SimpleNamespace(text="1", token_ids=(1,))
    assert rewards.score([mine], [{"prompt": "?", "answer": "1"}], [answer]) == {"mine": [0.0]}


def test_completions_plain_and_conversational():
    message = {"role": "assistant", "content": "hello"}
    parts = {"role": "assistant", "content": [{"type": "text", "text": "hel"}, {"text": "lo"}]}
    tool = [{"role": "assistant", "content": None}, {"role": "tool", "content": "7"}, message]
    texts = completion_texts(["hello", [message], [parts], tool, message])
    assert texts == ["hello"] * 5
    assert completion_texts([None, [], "", [{"role": "assistant", "content": None}]]) == [""] * 4


# --- all of them -------------------------------------------------------------------------------

# Learned rewards need a model that was trained first: tests/test_reward_model.py.
ALL, _ = build_rewards(dict.fromkeys(REWARDS, 1.0), think_tag="think", max_completion_length=64)


def columns_for(texts, gold="18", kind="number") -> dict:
    """The columns TRL would pass; words stand for tokens."""
    words: dict[str, int] = {}
    ids = [[words.setdefault(w, len(words)) for w in str(text)[:5000].split()] for text in texts]
    n = len(texts)
    columns = {"prompts": "?", "answer": gold, "kind": kind, "id": "7", "question": "How many?"}
    columns = {name: [value] * n for name, value in columns.items()} | {"completion_ids": ids}
    return columns | {"trainer_state": None, "log_extra": print, "log_metric": print}


def all_scores(texts, **gold) -> dict[str, list]:
    return {f.__name__: f(completions=texts, **columns_for(texts, **gold)) for f in ALL}


def test_every_reward_pickles_and_takes_messages_and_shows_its_rule():
    texts = [GOOD, GOOD.replace("18", "20"), "18", ""]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    columns = columns_for(texts)
    for function in [*ALL, *REWARDS.values()]:
        assert not isinstance(function, partial)  # TRL logs it by the name of what it wraps
        copy = pickle.loads(pickle.dumps(function))
        values = function(completions=texts, **columns)
        assert copy.__name__ == function.__name__
        assert copy(completions=messages, **columns) == values
    for name, function in REWARDS.items():
        assert function.__name__ == name and len(function.__doc__) > 40
        source = inspect.getsource(function)  # the rule, not what applies it
        assert "return" in source and "(prompts" not in source


def test_an_unparseable_gold_leaves_the_row_out_wherever_gold_matters():
    skipped = {name for name, [value] in all_scores([GOOD], gold="none").items() if value is None}
    gold = {"correctness", "reward_accuracy", "last_number", "partial_credit", "gated_format"}
    assert skipped == gold | {"cosine_length"}


TOKENS = ["<think>", "</think>", "<answer>", "</answer>", "\n", " ", "18", "-", "$", "=", "not"]
TOKENS += ["1.5e3", "\\boxed{", "}", "{", "Step 1:", "\0", "\ud800", "é", "漢", "<", ">", "/", "18"]
HOSTILE = st.lists(st.sampled_from(TOKENS), max_size=40).map("".join)
TEXT = HOSTILE | st.text(st.characters(codec=None), max_size=200)


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXT | st.none(), min_size=1, max_size=6), st.randoms())
def test_every_text_gets_a_finite_score_whatever_stands_beside_it(texts, rng: random.Random):
    order = list(range(len(texts)))
    rng.shuffle(order)
    columns = columns_for(texts)
    ids = [columns["completion_ids"][i] for i in order]
    for function in ALL:
        values = function(completions=texts, **columns)
        assert all(type(value) is float and math.isfinite(value) for value in values)
        again = function(completions=[texts[i] for i in order], **columns | {"completion_ids": ids})
        assert again == [values[i] for i in order], function.__name__


# --- hostile text ------------------------------------------------------------------------------

EVIL = ("7" * 10, "<" * 10, "\ud800" * 10, "1 2 3 18 ", "1+1=2 3-1=2 ", "{}{{}}", "\\frac{1}{")
EVIL += ("<think><answer></answer></think>", "<answer>18</answer>", "\n- ", "Step 1: do. Then do. ")
SHAPES = ("{}", "<think>x</think><answer>{}</answer>", "<think>{}</think><answer>18</answer>")


@pytest.mark.parametrize("piece", EVIL)
def test_a_long_text_of_anything_is_survived(piece):
    """In seconds: whatever is quadratic in the length takes hours."""
    text = piece * (50_000 // len(piece))
    for kind, gold in {"number": "18.5", "math": r"\frac{1}{2}", "choice": "B"}.items():
        values = all_scores([shape.replace("{}", text) for shape in SHAPES], gold=gold, kind=kind)
        assert values["correctness"] == [0.0, 0.0, 0.0]


def test_gold_answers_read_as_math_and_gsm8ks_sums_hold(data_dir):
    lines = {
        name: (data_dir / name / "test.jsonl").read_text(encoding="utf-8").splitlines()
        for name in ("gsm8k", "math500")
    }
    assert all(rules.reads_as_math(json.loads(line)["answer"]) for line in lines["math500"])
    # GSM8K marks its sums, <<16-3-4=9>>: a list of true equations.
    pairs = [p for line in lines["gsm8k"] for p in rules.equations(json.loads(line)["answer"])]
    assert len(pairs) > 4000 and sum(rules.holds(*p) for p in pairs) / len(pairs) > 0.995


def test_adversarial_completions_score_what_was_agreed():
    values = all_scores([case["completion"] for case in ADVERSARIAL])
    for i, case in enumerate(ADVERSARIAL):
        assert {name: round(paid[i], 6) for name, paid in values.items()} == case["pays"], case
    # Counting up never pays like solving, but for `last_number`, as it says of itself.
    for name in ("correctness", "reward_accuracy", "partial_credit", "gated_format", "int"):
        spam = [case["pays"][name] for case in ADVERSARIAL if "spam" in case["case"]]
        assert max(spam) < ADVERSARIAL[0]["pays"][name]
