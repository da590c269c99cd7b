"""Rewards: exact values, properties, hostile text, real gold answers, and the golden table."""

import json
import math
import os
import pickle
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.errors import BadInput
from lib.rewards import REWARDS, build_rewards, completion_texts, reward, rules
from lib.rewards.reasoning import equations, holds

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("GRPO_DATA_DIR") or ROOT.parent / "shared" / "data")
GOLDEN = Path(__file__).parent / "data" / "adversarial_rewards.json"

GOOD = "<think>\n16 - 3 - 4 = 9, and 9 * 2 = 18.\n</think>\n<answer>\n18\n</answer>"
WRONG = GOOD.replace("\n18\n", "\n20\n")


def built(name: str, **parameters):
    """One reward as a recipe would build it."""
    return build_rewards({name: parameters})[0][0]


def score(name: str, text, gold="18", kind="number", n_tokens=0, **parameters):
    """What one reward gives one completion."""
    columns = {"answer": [gold], "kind": [kind], "completion_ids": [list(range(n_tokens))]}
    [value] = built(name, **parameters)(prompts=["?"], completions=[text], **columns)
    return value


def answer(text) -> str:
    return f"<answer>{text}</answer>"


# --- exact values ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        (GOOD, "18", 2.0),
        (WRONG, "18", 0.0),
        (answer("$108"), "108", 2.0),
        (answer("108"), "$108", 2.0),
        (answer("18.00 dollars"), "18", 2.0),
        (answer("1,234"), "1234", 2.0),
        (answer("18"), "#### 18", 2.0),
        ("The answer is 18.", "18", 0.0),  # outside the tags
        (answer("not 18"), "18", 0.0),
        (answer("18 or 20"), "18", 0.0),
        (answer(""), "18", 0.0),
        ("", "18", 0.0),
        (None, "18", 0.0),
        (answer("18"), "no number", None),
        (answer("18"), "", None),
        (answer("18"), None, None),
        (answer("18"), 18, 2.0),
    ],
)
def test_correctness(text, gold, expected):
    assert score("correctness", text, gold) == expected
    half = None if expected is None else expected / 2
    assert score("reward_accuracy", text, gold) == half


def test_correctness_reads_free_text_when_told_to():
    assert score("correctness", "So the answer is 18.", tags=None) == 2.0
    [lenient], _ = build_rewards({"correctness": 1.0}, tags=None)
    assert lenient(completions=["#### 18"], answer=["18"], kind=["number"]) == [2.0]


def test_correctness_of_math_and_of_choices():
    assert score("correctness", answer(r"\frac{1}{2}"), r"\frac12", "math") == 2.0
    assert score("correctness", answer(r"x^2 + 2x + 1"), "(x+1)^2", "math") == 2.0
    assert score("correctness", answer("(B)"), "B", "choice") == 2.0
    assert score("correctness", answer("C"), "B", "choice") == 0.0


def test_a_data_set_without_kinds_is_graded_as_math():
    assert built("correctness")(completions=[answer("$0.5$")], answer=[r"\frac12"]) == [2.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (answer("18"), 1.0),
        (answer("19.8"), 0.5),  # 10 % off, the boundary included
        (answer("19.9"), 0.25),
        (answer("14.4"), 0.25),  # 20 % off
        (answer("14.3"), 0.1),
        (answer("-18"), 0.1),
        (answer("1e300"), 0.1),
        (answer("many"), 0.0),
        (answer("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18"), 0.0),
        ("18", 0.0),
    ],
)
def test_partial_credit(text, expected):
    assert score("partial_credit", text) == expected


def test_partial_credit_near_zero_is_wrong():
    assert score("partial_credit", answer("0.01"), "0") == 0.1


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("He has 3 apples and buys 15, so 18.", "18", 1.0),
        ("It costs $1,234.50 in total", "1234.5", 1.0),
        ("18 is right, not 20", "18", 0.0),
        ("from 20 down to -18", "-18", 1.0),
        ("20-18", "18", 1.0),  # a difference, not a negative number
        ("three quarters are 3/4", "0.75", 1.0),
        ("18" + " and so on" * 1000, "18", 1.0),
        ("none", "18", 0.0),
        ("", "18", 0.0),
        ("18", "pi", None),
    ],
)
def test_last_number(text, gold, expected):
    assert score("last_number", text, gold) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("hard_format", GOOD, 0.5),
        ("hard_format", "Well: " + GOOD + " Done.", 0.5),
        ("hard_format", answer("18"), 0.25),
        ("hard_format", "<think>x</think>" + answer("18") * 2, 0.0),
        ("hard_format", "<think></think><answer></answer>", 0.0),
        ("mark", GOOD, 0.5),
        ("mark", "<answer>18", 0.125),
        ("mark", answer("18"), 0.25),
        ("mark", "<think>x</think>", 0.25),
        ("mark", "<think></think><answer></answer>", 0.25),
        ("hard_format", "<think>...</think><answer>...</answer>", 0.0),
        ("hard_format", "<think>so <answer>18</answer></think>", 0.0),
        ("mark", GOOD * 2, 0.0),
        ("tag_count", GOOD, 1.0),
        ("tag_count", "<think>x</think><answer>18</answer>", 0.0),
        ("tag_count", "<think>\nx\n</think>\n<answer>18</answer>", 0.5),
        ("tag_count", "<think>\n</think>\n<answer>\n</answer>", 0.5),
        ("reward_format", GOOD, 1.0),
        ("reward_format", "\n" + GOOD + "\n", 1.0),
        ("reward_format", "<think>a\nb\n\nc</think><answer>18</answer>", 1.0),
        ("reward_format", GOOD + " Done.", 0.0),
        ("reward_format", "<answer>18</answer><think>x</think>", 0.0),
        ("reward_format", GOOD + GOOD, 0.0),
        ("reward_format", "<think> </think><answer>18</answer>", 0.0),
        ("think_format", GOOD, 1.0),
        ("think_format", "<think>\na\n</think>", 1.0),
        ("think_format", "Well: " + GOOD, 0.0),
        ("think_format", "<think><think></think>", 0.0),
        ("digit", answer(" 18 "), 0.5),
        ("digit", answer("-18"), 0.5),
        ("digit", answer("$18"), 0.0),
        ("digit", answer("18.0"), 0.0),
        ("digit", answer("²"), 0.0),
        ("digit", answer("20") + answer("18"), 0.5),
        ("digit", "<think>so <answer>18</answer></think>", 0.0),
        ("digit", "18", 0.0),
        ("int", answer("$1,234"), 0.5),
        ("int", answer("18.00"), 0.5),
        ("int", answer("18.5"), 0.0),
        ("int", answer("1 2 3 4"), 0.0),
        ("int", answer("many"), 0.0),
        ("int", "18", 0.0),
    ],
)
def test_format_rewards(name, text, expected):
    assert score(name, text) == expected


REASONED = "<reasoning>\nline one\nline two\n</reasoning>\n<answer>\n18\n</answer>"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("strict_format", REASONED, 0.5),
        ("strict_format", REASONED + "\n", 0.5),
        ("strict_format", " " + REASONED, 0.0),
        ("strict_format", REASONED + "\n\n", 0.0),
        ("strict_format", REASONED.replace("\n18\n", "18"), 0.0),
        ("soft_format", REASONED, 0.5),
        ("soft_format", "<reasoning>a\nb</reasoning> <answer>18</answer> so there", 0.5),
        ("soft_format", "Well: " + REASONED, 0.0),
        ("soft_format", REASONED.replace("18", ""), 0.0),
        ("xmlcount", REASONED, 0.5),
        ("xmlcount", REASONED + "\n", 0.5),
        ("xmlcount", REASONED + "\n" + "x" * 100, 0.5 - 2 * 0.1),
        ("xmlcount", REASONED + "\n" + "x" * 10_000, -0.5),
        ("xmlcount", REASONED.removesuffix("\n</answer>"), 0.375),
        ("xmlcount", "", 0.0),
    ],
)
def test_rewards_of_the_gsm8k_demo(name, text, expected):
    assert score(name, text) == pytest.approx(expected, abs=1e-12)


def test_the_think_tag_is_a_parameter_of_every_format():
    renamed = REASONED.replace("reasoning", "scratch")
    names = ("hard_format", "mark", "tag_count", "xmlcount", "soft_format", "strict_format")
    functions, _ = build_rewards(dict.fromkeys((*names, "reward_format"), 1.0), think_tag="scratch")
    values = [function(completions=[renamed])[0] for function in functions]
    assert values == [0.5, 0.5, 1.0, 0.5, 0.5, 0.5, 1.0]


@pytest.mark.parametrize(
    ("text", "gate", "expected"),
    [
        (GOOD, "parses", 0.5),
        (WRONG, "parses", 0.5),
        (GOOD, "correct", 0.5),
        (WRONG, "correct", 0.0),
        (answer("18"), "parses", 0.0),
        (GOOD.replace("\n18\n", "\nno idea\n"), "parses", 0.0),
        (GOOD.replace("\n18\n", "\n18 or 20\n"), "parses", 0.0),
        (GOOD.replace("\n18\n", "\n1 2 3 4 5 6\n"), "parses", 0.0),
        ("<think>\n...\n</think>\n<answer>\n...\n</answer>", "parses", 0.0),
    ],
)
def test_gated_format(text, gate, expected):
    assert score("gated_format", text, gate=gate) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\frac{1}{3}", 0.5),
        (r"x \in [-2, 7]", 0.5),
        (r"\text{no real roots}", 0.5),
        ("1, 2, 3", 0.5),
        ("no idea", 0.0),
        ("1 2 3 4 5 6", 0.0),
        ("...", 0.0),
    ],
)
def test_the_gate_of_math(text, expected):
    assert score("gated_format", GOOD.replace("\n18\n", text), r"\sqrt{2}", "math") == expected


@pytest.mark.parametrize(
    ("name", "n_tokens", "parameters", "expected"),
    [
        ("reward_token_length", 50, {}, 0.0),
        ("reward_token_length", 40, {}, -5.0),
        ("reward_token_length", 60, {}, -200.0),
        ("soft_overlong", 80, {"max_completion_length": 100}, 0.0),
        ("soft_overlong", 90, {"max_completion_length": 100}, -0.5),
        ("soft_overlong", 100, {"max_completion_length": 100}, -1.0),
        ("soft_overlong", 101, {"max_completion_length": 100}, -1.0),
        ("soft_overlong", 100, {"max_completion_length": 100, "soft_punish_cache": 0}, 0.0),
        ("repetition_penalty", 100, {}, 0.0),
        ("cosine_length", 0, {}, 1.0),
        ("cosine_length", 256, {}, 0.75),
        ("cosine_length", 512, {}, 0.5),
        ("cosine_length", 9999, {}, 0.5),
    ],
)
def test_length_rewards(name, n_tokens, parameters, expected):
    assert score(name, GOOD, n_tokens=n_tokens, **parameters) == pytest.approx(expected)


def test_reward_len_counts_characters_of_either_kind_of_completion():
    assert score("reward_len", "x" * 50) == 0.0
    assert score("reward_len", "x" * 60) == -10.0
    assert score("reward_len", [{"role": "assistant", "content": "x" * 40}]) == -10.0
    assert score("reward_len", "") == -50.0


def test_repetition_is_counted_in_token_ngrams():
    penalty = built("repetition_penalty", ngram_size=2)
    assert penalty(completion_ids=[[5, 5, 5, 5, 5], [1, 2, 3]]) == [-0.75, 0.0]


def test_max_completion_length_reaches_the_rewards_that_measure_against_it():
    spec = {"soft_overlong": 1.0, "cosine_length": {"max_completion_length": 10}, "mark": 1.0}
    (overlong, cosine, _), _ = build_rewards(spec, max_completion_length=100)
    columns = columns_for(["x"]) | {"completion_ids": [[1] * 100]}
    assert overlong(completions=["x"], **columns) == [-1.0]
    columns |= {"completion_ids": [[1] * 10]}
    assert cosine(completions=[GOOD], **columns) == [0.5]


def test_what_trl_has_is_what_trl_says():
    from trl import rewards as trl

    texts = [GOOD, "no tags", "<think>a</think>b", r"\boxed{18}", r"\boxed{7}"]
    ids = [list(range(n)) for n in (0, 30, 77, 100, 160)]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    columns = {"completions": messages, "completion_ids": ids}
    golds = {"answer": ["18"] * 5, "kind": ["number"] * 5}

    assert built("think_format")(**columns) == trl.think_format_reward(**columns)
    theirs = trl.get_repetition_penalty_reward(3, -1.0)(**columns)
    assert built("repetition_penalty")(**columns) == theirs
    theirs = trl.get_soft_overlong_punishment(100, 20)(**columns)
    assert built("soft_overlong", max_completion_length=100)(**columns) == theirs
    theirs = trl.get_cosine_scaled_reward(100)(solution=["$18$"] * 5, **columns)[3:]
    ours = built("cosine_length", max_completion_length=100, tags=None)(**columns, **golds)[3:]
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("reasoning", "expected"),
    [
        ("Step 1: add them. Step 2 is here.\nStep 2: halve it.\nStep 3: done.", 1.0),
        ("First, we add 3.5 and 4. Then we halve. Finally we round.", 1.0),
        ("1. add\n2. halve\n", 2 / 3),
        ("- add\n- add\n- add\n", 1 / 3),  # the same step is one step
        ("Step 1:\nStep 2:\nStep 3:\n", 0.0),
        ("I add the 3 to the 4 and then halve it.", 0.0),
        ("", 0.0),
    ],
)
def test_reasoning_steps(reasoning, expected):
    assert score("reasoning_steps", reasoning) == pytest.approx(expected)
    tagged = f"First, hello. Next, hi.\n<think>{reasoning}</think>{answer('- 1')}"
    if reasoning:
        assert score("reasoning_steps", tagged) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reasoning", "expected"),
    [
        ("16 - 3 - 4 = 9. 9 × $2 = $18", 1.0),
        ("2 + 3 * 4 = 14 and 2 + 3 * 4 = 20", 0.5),
        ("10/3 = 3.33", 1.0),
        ("10/3 = 3.34 or 10/3 = 3", 0.0),
        ("1,200 / 4 = 300", 1.0),
        ("-3 + 5 = 2", 1.0),
        ("3 x 4 = 12", 1.0),
        (r"3 \times 4 = 12", 1.0),
        ("1 / 0 = 0", 0.0),
        ("1 + 1 = 2 " * 50 + "1 + 1 = 3", 0.5),  # each equation counts once
        ("20% * 3 + 1 = 4", 0.0),  # a piece of something else is no equation
        ("3 + 4 = 14 / 2", 0.0),
        ("x = 5 and 18 = 18", 0.0),
        ("9**9**9 = 1", 0.0),
        ("", 0.0),
    ],
)
def test_arithmetic(reasoning, expected):
    assert score("arithmetic", reasoning) == expected


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("We add three.", "en", 1.0),
        (r"Then $\theta = 3$, so π/2. <think>", "en", 1.0),
        ("我们 add", "zh", 0.4),
        ("我们 add", "en", 0.6),
        ("Тогда x", "ru", 5 / 6),
        ("ひらがな漢字", "ja", 1.0),
        ("αβγ", "el", 1.0),
        ("42", "en", 0.0),
        ("", "en", 0.0),
    ],
)
def test_language_consistency(text, language, expected):
    assert score("language_consistency", text, language=language) == pytest.approx(expected)


# --- the registry and recipes ------------------------------------------------------------------


@pytest.fixture
def own_rewards():
    """Whatever a test registers is gone after it."""
    before = dict(REWARDS)
    yield
    REWARDS.clear()
    REWARDS.update(before)


def test_weights_and_parameters_of_a_recipe():
    spec = {"correctness": 2, "hard_format": {"weight": 0.5, "full": 3.0}, "mark": {}, "digit": 0}
    functions, weights = build_rewards(spec)
    assert weights == [2.0, 0.5, 1.0, 0.0]
    assert [function.__name__ for function in functions] == list(spec)
    assert functions[1](completions=[GOOD]) == [3.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"corectness": 1.0}, 'no reward "corectness": did you mean "correctness"'),
        ({"hard_format": {"ful": 1}}, 'no parameter "ful": did you mean "full"'),
        ({"hard_format": {"full": "1.0"}}, "full of reward"),
        ({"correctness": "2.0"}, "weight of reward"),
        ({"correctness": True}, "weight of reward"),
        ({"correctness": {"weight": math.nan}}, "weight of reward"),
        ({"gated_format": {"gate": "corect"}}, "gate is"),
        ({"language_consistency": {"language": "klingon"}}, "no language"),
        ({"soft_overlong": {"soft_punish_cache": 9999}}, "soft_punish_cache is 9999"),
        ({"nowhere.at.all": 1.0}, 'Reward "nowhere.at.all" cannot be imported'),
        ({"lib.rewards.nothing": 1.0}, "cannot be imported"),
        ({"lib.rewards.LEARNED": 1.0}, "cannot be called"),
        ({"os.path.join": {"b": 1}}, 'no parameter "b"'),
        ({"mark": 1.0, "trl.rewards.think_format_reward": 1.0, "a": 1}, 'no reward "a"'),
        ({}, "write names and weights"),
        (["correctness"], "write names and weights"),
    ],
)
def test_a_recipe_that_is_wrong_says_so(spec, message):
    with pytest.raises(BadInput, match=message):
        build_rewards(spec)


@dataclass(frozen=True)
class Longest:
    limit: int = 5

    def __call__(self, completions, **columns):
        return [float(len(text) <= self.limit) for text in completion_texts(completions)]


def test_an_import_path_names_a_function_or_a_class():
    spec = {"trl.rewards.think_format_reward": 1.0, f"{__name__}.Longest": {"limit": 2}}
    (theirs, ours), _ = build_rewards(spec)
    assert theirs.__name__ == "think_format_reward" and ours.__name__ == "Longest"
    assert theirs(completions=[[{"content": GOOD}]]) == [1.0]
    assert ours(completions=["ab", "abc"]) == [1.0, 0.0]


def test_one_name_cannot_stand_for_two_rewards(own_rewards):
    reward("think_format_reward")(lambda prompts, completions, **columns: [0.0])
    with pytest.raises(BadInput, match="would log them as one"):
        build_rewards({"trl.rewards.think_format_reward": 1, "think_format_reward": 1})


def test_a_function_of_ones_own(own_rewards):
    for value in (1.0, 2.0):  # a cell that is run twice

        @reward("polite")
        def thanks(prompts, completions, value=value, **columns):
            return [value * ("thank" in text) for text in completion_texts(completions)]

    [polite], [weight] = build_rewards({"polite": 0.5})
    assert (polite.__name__, weight) == ("polite", 0.5)
    assert polite(prompts=None, completions=["thank you", "no"]) == [2.0, 0.0]
    assert thanks is polite
    [polite], _ = build_rewards({"polite": {"value": 3.0}})
    # A column of the data set never takes the place of a parameter that the recipe gave.
    assert polite(prompts=None, completions=["thank you"], value=["9"]) == [3.0]
    with pytest.raises(BadInput, match='no parameter "valu"'):
        build_rewards({"polite": {"valu": 3.0}})


def test_a_class_of_ones_own(own_rewards):
    @reward("short")
    @dataclass(frozen=True)
    class Short:
        limit: int = 5

        def __call__(self, prompts, completions, **columns):
            return [float(len(text) <= self.limit) for text in completion_texts(completions)]

    [short], _ = build_rewards({"short": {"limit": 2}})
    assert short.__name__ == "short"
    assert short(prompts=None, completions=["ab", "abc"]) == [1.0, 0.0]
    assert REWARDS["short"](prompts=None, completions=["ab", "abc"]) == [1.0, 1.0]
    with pytest.raises(BadInput, match='"limits": did you mean "limit"'):
        build_rewards({"short": {"limits": 2}})


@pytest.mark.parametrize("name", ["", "a.b", None, print])
def test_a_name_must_be_one(name):
    with pytest.raises(BadInput, match="needs a name"):
        reward(name)


def test_what_cannot_be_registered(own_rewards):
    with pytest.raises(BadInput, match="is taken by lib"):
        reward("correctness")(lambda prompts, completions: [])
    with pytest.raises(BadInput, match="function or class"):
        reward("mine")(REWARDS["mark"])

    class NoDefault:
        def __init__(self, limit):
            self.limit = limit

    with pytest.raises(BadInput, match="give every parameter a default"):
        reward("mine")(NoDefault)


def test_a_missing_column_is_named():
    with pytest.raises(BadInput, match='"correctness" needs the column "answer"'):
        REWARDS["correctness"](completions=[GOOD])
    with pytest.raises(BadInput, match='"soft_overlong" needs the column "completion_ids"'):
        REWARDS["soft_overlong"](completions=[GOOD])


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
NAMES = [function.__name__ for function in ALL]


def columns_for(texts, gold="18", kind="number") -> dict:
    """The columns TRL would pass; words stand for tokens."""
    words: dict[str, int] = {}
    ids = [[words.setdefault(w, len(words)) for w in str(text)[:5000].split()] for text in texts]
    n = len(texts)
    return {
        "prompts": ["How many?"] * n,
        "answer": [gold] * n,
        "kind": [kind] * n,
        "id": [str(i) for i in range(n)],
        "question": ["How many?"] * n,
        "completion_ids": ids,
        "trainer_state": None,
        "log_extra": print,
        "log_metric": print,
    }


def all_scores(texts, **gold) -> dict[str, list]:
    columns = columns_for(texts, **gold)
    return {f.__name__: f(completions=texts, **columns) for f in ALL}


def test_every_reward_pickles_by_name_and_value():
    for function in [*ALL, *REWARDS.values()]:
        copy = pickle.loads(pickle.dumps(function))
        assert copy.__name__ == function.__name__
        columns = columns_for([GOOD])
        assert copy(completions=[GOOD], **columns) == function(completions=[GOOD], **columns)


def test_conversational_completions_score_as_plain_ones():
    texts = [GOOD, WRONG, "18", ""]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    columns = columns_for(texts)
    for function in ALL:
        plain, chat = (function(completions=c, **columns) for c in (texts, messages))
        assert plain == chat, function.__name__


def test_an_unparseable_gold_leaves_the_row_out_wherever_gold_matters():
    values = all_scores([GOOD], gold="no number")
    skipped = {name for name, [value] in values.items() if value is None}
    assert skipped == {
        name for name, function in zip(NAMES, ALL, strict=True) if function.func is rules.per_answer
    }
    assert len(skipped) == 6


def test_threads_agree_with_the_main_one():
    texts = [GOOD, WRONG, answer(r"\frac{36}{2}"), answer("x + 1"), answer("1 2 3"), "18", ""]
    expected = all_scores(texts, kind="math")
    rules._grade.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: all_scores(texts, kind="math"), range(8)))
    assert results == [expected] * 8


# --- properties --------------------------------------------------------------------------------

TOKENS = ["<think>", "</think>", "<answer>", "</answer>", "\n", " ", "18", "-", "$", "=", "not"]
TOKENS += ["1.5e3", "\\boxed{", "}", "{", "Step 1:", "\0", "\ud800", "é", "漢", "<", ">", "/", "18"]
HOSTILE = st.lists(st.sampled_from(TOKENS), max_size=40).map("".join)
TEXT = HOSTILE | st.text(st.characters(codec=None), max_size=200)


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXT | st.none(), min_size=1, max_size=6))
def test_every_text_gets_a_finite_score(texts):
    for name, values in all_scores(texts).items():
        assert len(values) == len(texts), name
        assert all(type(value) is float and math.isfinite(value) for value in values), name


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, min_size=2, max_size=6), st.randoms())
def test_the_order_of_the_batch_does_not_matter(texts, rng: random.Random):
    columns = columns_for(texts)
    order = list(range(len(texts)))
    rng.shuffle(order)
    shuffled = {
        key: [value[i] for i in order] if isinstance(value, list) else value
        for key, value in columns.items()
    }
    for function in ALL:
        values = function(completions=texts, **columns)
        again = function(completions=[texts[i] for i in order], **shuffled)
        assert again == [values[i] for i in order], function.__name__


@settings(max_examples=200, deadline=None)
@given(
    gold=st.integers(-(10**9), 10**9).filter(bool),
    near=st.floats(0.001, 0.099),
    wrong=st.floats(0.21, 1e6),
    sign=st.sampled_from((-1, 1)),
)
def test_right_beats_near_beats_wrong_beats_unparseable(gold, near, wrong, sign):
    answers = [gold, gold * (1 + sign * near), gold * (1 + sign * wrong)]
    texts = [answer(f"{value:.6f}") for value in answers] + [answer("no idea")]
    columns = columns_for(texts, gold=str(gold))
    right, close, off, none = built("partial_credit")(completions=texts, **columns)
    assert right > close > off > none
    for name in ("correctness", "reward_accuracy"):
        right, close, off, none = built(name)(completions=texts, **columns)
        assert right > close == off == none
    columns["completion_ids"] = [[1] * 100] * 4
    right, close, off, none = built("cosine_length")(completions=texts, **columns)
    assert right > close == off == none


# --- hostile text ------------------------------------------------------------------------------

EVIL = {
    "letters": "a" * 10,
    "digits": "7" * 10,
    "spaces": " " * 10,
    "newlines": "\n" * 10,
    "NULs": "\0" * 10,
    "surrogates": "\ud800" * 10,
    "counting": "1 2 3 18 ",
    "sum without end": "1 + 1 + ",
    "sums": "1+1=2 3-1=2 ",
    "boxes": "\\boxed{",
    "closed boxes": "\\boxed{18} ",
    "braces": "{}{{}}",
    "fractions": "\\frac{1}{",
    "opening tags": "<answer>",
    "nested tags": "<think><answer></answer></think>",
    "tag pairs": "<answer>18</answer>",
    "steps": "Step 1: do. Then do. ",
    "bullets": "\n- ",
    "brackets": "<" * 10,
    "dollars": "$",
    "powers": "9**9**9 ",
    "factorials": "(100000!)! ",
    "code": "__import__('os').system('x') ",
    "the answer is": "the answer is ",
    "hashes": "#### ",
}
SHAPES = {
    "bare": "{}",
    "answered": "<think>x</think><answer>{}</answer>",
    "reasoned": "<think>{}</think><answer>18</answer>",
}


@pytest.mark.parametrize("kind", ["number", "math", "choice"])
def test_a_megabyte_of_anything_is_survived(kind):
    gold = {"number": "18", "math": r"\frac{1}{2}", "choice": "B"}[kind]
    for piece in ("9", "9**9**9 ", "\\boxed{", "<answer>", "\0", "\ud800", "100000! "):
        text = piece * (1_000_000 // len(piece))
        values = all_scores([text, answer(text)], gold=gold, kind=kind)
        assert values["correctness"] == [0.0, 0.0], piece


def test_nothing_in_a_completion_is_executed(tmp_path):
    trap = tmp_path / "trap"
    code = f"__import__('pathlib').Path({str(trap)!r}).touch()"
    for text in (code, answer(code), answer(f"\\boxed{{{code}}}"), GOOD.replace("18", code)):
        for kind in ("number", "math"):
            all_scores([text], kind=kind)
    assert not trap.exists()


@pytest.mark.parametrize("power", ["9**9**9", "9^{9^{9^9}}", "10^{10^{10}}", "100000!", "((9!)!)!"])
def test_numbers_too_large_to_compute_are_wrong_and_quick(power):
    start = time.perf_counter()
    assert score("correctness", answer(power), r"\sqrt{2}", "math") == 0.0
    assert time.perf_counter() - start < 60


def seconds(function, text: str) -> float:
    """This thread's own computing time, which a busy machine does not change much."""
    columns = columns_for([text])
    rules._grade.cache_clear()
    start = time.thread_time()
    function(completions=[text], **columns)
    return time.thread_time() - start


@pytest.mark.parametrize("name", NAMES)
def test_time_is_linear_in_length(name):
    """Eight times the text may take 24 times as long; what is quadratic takes 64 times."""
    function = ALL[NAMES.index(name)]
    for shape in SHAPES.values():
        for label, piece in EVIL.items():
            small, large = (shape.replace("{}", piece * (n // len(piece))) for n in (2_000, 16_000))
            slowest = 24 * max(seconds(function, small), 0.001)
            assert any(seconds(function, large) <= slowest for _ in range(3)), label


# --- real gold answers -------------------------------------------------------------------------


def rows(path: str) -> list[dict]:
    file = DATA / path
    if not file.is_file():
        pytest.skip(f"{file} is not there (real data, for tests alone)")
    return [json.loads(line) for line in file.open(encoding="utf-8")]


def gsm8k(row: dict) -> str:
    return row["answer"].rpartition("####")[2].strip()


@pytest.mark.parametrize(
    ("path", "kind", "gold_of"),
    [
        ("gsm8k/train.jsonl", "number", gsm8k),
        ("gsm8k/test.jsonl", "number", gsm8k),
        ("math500/test.jsonl", "math", lambda row: row["answer"]),
        ("math/train.jsonl", "math", lambda row: row["answer"]),
        ("aqua_rat/test.jsonl", "choice", lambda row: row["correct"]),
        ("aqua_rat/validation.jsonl", "choice", lambda row: row["correct"]),
    ],
)
def test_every_gold_answer_scores_full_marks(path, kind, gold_of):
    golds = [gold_of(row) for row in rows(path)]
    texts = [f"<think>\nSo it is.\n</think>\n<answer>\n{gold}\n</answer>" for gold in golds]
    for name, marks in {"correctness": 2.0, "gated_format": 0.5, "partial_credit": 1.0}.items():
        values = built(name)(completions=texts, answer=golds, kind=[kind] * len(golds))
        due = [marks if gold.strip() else None for gold in golds]  # MATH has two rows without gold
        missed = [g for g, value, full in zip(golds, values, due, strict=True) if value != full]
        assert missed == [], name


@pytest.mark.parametrize("path", ["math/train.jsonl", "math500/test.jsonl"])
def test_every_gold_answer_of_math_would_pass_the_gate_as_a_wrong_one(path):
    golds = [row["answer"] for row in rows(path) if row["answer"].strip()]
    assert [gold for gold in golds if not rules.reads_as_math(gold)] == []


def test_the_arithmetic_of_gsm8k_holds():
    """Its solutions mark their sums, <<16-3-4=9>>: an independent list of true equations."""
    found = [pair for row in rows("gsm8k/test.jsonl") for pair in equations(row["answer"])]
    true = sum(holds(left, right) for left, right in found)
    assert len(found) > 4000 and true / len(found) > 0.995


# --- the golden table --------------------------------------------------------------------------

THINK = "<think>\nShe sells 16 - 3 - 4 = 9 eggs. Then she makes 9 * 2 = 18 dollars.\n</think>\n"
QUESTION = "Janet's ducks lay 16 eggs. She eats 3, bakes 4, sells the rest at $2. How much is it?"
FORMAT = "Respond in the following format:\n<think>\n...\n</think>\n<answer>\n...\n</answer>\n"
ADVERSARIAL = {
    "perfect": THINK + "<answer>\n18\n</answer>",
    "right without tags": "She sells 16 - 3 - 4 = 9 eggs, and 9 * 2 = 18.",
    "wrong": THINK + "<answer>\n20\n</answer>",
    "empty": "",
    "answer spam": " ".join(map(str, range(1, 31))),
    "answer spam up to the right one": " ".join(map(str, range(1, 19))),
    "answer spam in tags": THINK + f"<answer>\n{' '.join(map(str, range(1, 31)))}\n</answer>",
    "two answers": THINK + "<answer>\n18 or 20\n</answer>",
    "two answer sections": THINK + "<answer>\n20\n</answer>\n<answer>\n18\n</answer>",
    "answer only inside the reasoning": THINK,
    "answer section inside the reasoning": THINK.replace("18 dollars", answer("18") + " dollars"),
    "prompt copied back": FORMAT + QUESTION,
    "tags without content": "<think>\n</think>\n<answer>\n</answer>",
    "tags around dots": "<think>\n...\n</think>\n<answer>\n...\n</answer>",
    "tags repeated": (THINK + "<answer>\n18\n</answer>\n") * 4,
    "right number with wrong unit": THINK + "<answer>\n18 eggs\n</answer>",
    "right answer after not": THINK + "<answer>\nnot 18\n</answer>",
    "steps and sums of nothing": (
        "<think>\n1. Let us see.\n2. 1 + 1 = 2.\n3. Done.\n</think>\n<answer>\n7\n</answer>"
    ),
    "the same words again and again": THINK + "so it is " * 40 + "<answer>\n18\n</answer>",
}


def test_adversarial_completions_score_what_was_agreed():
    """UPDATE_GOLDEN=1 writes the table anew; look at what changed before committing it."""
    values = all_scores(list(ADVERSARIAL.values()), gold="18")
    table = {
        case: {name: round(values[name][i], 6) for name in NAMES}
        for i, case in enumerate(ADVERSARIAL)
    }
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert table == golden, "rewards changed: see what UPDATE_GOLDEN=1 changes in " + GOLDEN.name


@pytest.mark.parametrize("case", [case for case in ADVERSARIAL if "spam" in case])
def test_counting_up_never_pays_like_solving(case):
    """But for `last_number`, as it says of itself, and what only looks at form or length."""
    for name in ("correctness", "reward_accuracy", "partial_credit", "gated_format", "int"):
        assert score(name, ADVERSARIAL[case]) < score(name, ADVERSARIAL["perfect"])


def test_the_import_is_light():
    """No framework comes with the rewards; TRL's and math_verify's are fetched when called."""
    heavy = "{'torch', 'transformers', 'trl', 'datasets', 'sympy', 'math_verify'}"
    program = f"import sys, lib.rewards; print({heavy} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "set()\n", run.stderr


def test_each_reward_shows_what_it_is_by_its_name():
    import inspect

    for name, function in REWARDS.items():
        assert function.__name__ == name and len(function.__doc__) > 40
        assert "return" in inspect.getsource(function)
        assert "(prompts" not in inspect.getsource(function)  # the rule, not what applies it
