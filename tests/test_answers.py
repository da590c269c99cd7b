"""Answers: found, read and compared. Each case of the corpus states its own reason."""

import json
import re
import sys
import unicodedata
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.answers import Grade, gold_parses, grade, normalize_number
from lib.answers.formulas import read_answer
from lib.answers.math import one_spelling, same_answer
from lib.errors import BadInput

ROOT = Path(__file__).resolve().parent.parent
CORPUS = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "answers_corpus.jsonl").read_text().splitlines()
]
KINDS = ("number", "math", "choice", "text")


def answers_match(predicted: str | None, gold: str | None, kind: str) -> bool:
    """Whether an answer and nothing else is the gold one."""
    return grade(f"<answer>{predicted}</answer>", gold, kind, "answer").correct


def test_corpus_has_no_repeats():
    assert {case["kind"] for case in CORPUS} == {*KINDS}
    inputs = [{key: case[key] for key in case if key != "reason"} for case in CORPUS]
    assert len(set(map(json.dumps, inputs))) == len(CORPUS) >= 2000


def graded(case: dict) -> Grade:
    if "predicted" in case:
        return grade(f"<answer>{case['predicted']}</answer>", case["gold"], case["kind"], "answer")
    return grade(case["text"], case["gold"], case["kind"], case.get("tags"))


@pytest.mark.parametrize("kind", KINDS)
def test_corpus(kind):
    found = [(case, graded(case)) for case in CORPUS if case["kind"] == kind]
    assert [each for each in found if each[1].correct is not each[0]["correct"]] == []
    assert all((g.why is None) is g.correct for _, g in found)


TABLE = re.findall(
    r"^\|[^|]*\| (\w+) \|(.*)\|",
    (ROOT / "docs/grading.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


def test_the_table_of_what_counts_as_equal_holds():
    """Of docs/grading.md, with or without the tags."""
    rows = [(kind, re.findall(r"`([^`]+)` ([=≠]) `([^`]+)`", cells)) for kind, cells in TABLE]
    cases = [(*pair, kind) for kind, pairs in rows if kind in KINDS for pair in pairs]
    assert {kind for *_, kind in cases} == {*KINDS} and len(cases) > 90
    for mine, sign, gold, kind in cases:
        for tags in ("answer", None):
            found = grade(f"<answer>{mine}</answer>", gold, kind, tags)
            assert found.correct is (sign == "="), (mine, gold, kind, found)


# --- the public functions -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("$1,234.50", "1234.5"), ("$108", "108"), ("108", "108"), ("3/4", "3/4"), ("6/8", "3/4"),
        ("-6/3", "-2"), ("18.00", "18"), ("18.", "18"), ("1 234", "1234"), ("1{,}234", "1234"),
        ("1.234,5", "1234.5"), ("−5", "-5"), ("- 5", "-5"), ("-$5", "-5"), ("$-5", "-5"),
        ("2 1/2", "5/2"), (r"2\frac{1}{2}", "5/2"), (r"\dfrac{3}{4}", "3/4"), ("½", "1/2"),
        ("1.5e3", "1500"), (r"1.5 \times 10^{-3}", "0.0015"), ("50%", "50"), ("**18**", "18"),
        ("１８", "18"), ("18 eggs a day", "18"), ("£5 million", "5000000"), (".5", "0.5"),
        ("0.1000", "0.1"), ("-0", "0"), ("1e400", "1" + "0" * 400), ("90°", "90"),
        ("", None), ("eggs", None), ("5 or 6", None), ("1, 2", None), ("1/0", None),
        ("1e401", None), ("3:30", None), ("x = 5", None), (None, None), ("9" * 500, None),
    ],
)  # fmt: skip
def test_normalize_number(text, canonical):
    assert normalize_number(text) == canonical


@pytest.mark.parametrize(
    ("text", "tags", "expected"),
    [
        ("<answer>18</answer>", "answer", Grade(True, "18", "tags", None)),
        ("<answer>$17</answer>", "answer", Grade(False, "$17", "tags", "differs")),
        ("18", "answer", Grade(False, None, None, "no tags")),
        ("<answer> </answer>", "answer", Grade(False, None, None, "empty tags")),
        ("<answer>1 2 18</answer>", "answer", Grade(False, None, "tags", "no answer found")),
        ("<result>18</result>", "result", Grade(True, "18", "tags", None)),
        ("<answer>18</answer>", None, Grade(True, "18", "tags", None)),
        (r"so \boxed{18}", None, Grade(True, "18", "boxed", None)),
        ("#### 18", None, Grade(True, "18", "hashes", None)),
        ("The answer is 18.", None, Grade(True, "18", "phrase", None)),
        ("The answer is 18.", "answer", Grade(False, None, None, "no tags")),
        ("That makes 18.", None, Grade(True, "18", "last", None)),
        ("That makes eighteen.", None, Grade(False, None, None, "no answer found")),
        (None, None, Grade(False, None, None, "no answer found")),
        (None, "answer", Grade(False, None, None, "no tags")),
    ],
)
def test_grade_says_what_it_found_where_and_why_not(text, tags, expected):
    assert grade(text, "#### 18", "number", tags) == expected


@pytest.mark.parametrize(
    ("gold", "kind", "parses"),
    [
        ("forty two", "number", False), ("A and B", "choice", False), ("", "math", False),
        (None, "number", False), ("#### 1,234", "number", True), ("C)", "choice", True),
        (r"\text{Evelyn}", "math", True), ("nan", "math", False), ("None", "math", False),
        ("null", "text", True), (r"\text{None}", "math", True),
    ],
)  # fmt: skip
def test_a_gold_answer_that_cannot_be_read_grades_nothing(gold, kind, parses):
    assert gold_parses(gold, kind) is parses
    assert (grade(gold, gold, kind) == Grade(False, why="gold not parseable")) is not parses


def test_an_unknown_kind_is_a_users_mistake():
    with pytest.raises(BadInput) as error:
        grade("18", "18", "numbr")
    assert error.value.key == "kind"


# --- real gold answers --------------------------------------------------------------------------

FORMS = {
    "<answer>{}</answer>": "answer",
    r"\boxed{{{}}}": None,
    "The answer is {}.": None,
    "#### {}": None,
    "Answer: {}": None,
}
UNMARKED = {"{}": 1, "So it is {}.": 25, "It equals ${}$.": 2}  # how many of MATH's are not found


def _rows(data_dir, *files):
    return [json.loads(line) for file in files for line in (data_dir / file).open()]


@pytest.mark.parametrize(
    ("files", "kind", "column", "count"),
    [
        (("gsm8k/train", "gsm8k/test"), "number", "answer", 8792),
        (("math500/test", "math/train"), "math", "answer", 7434),  # two of MATH's have no answer
        (("aqua_rat/validation", "aqua_rat/test"), "choice", "correct", 508),
    ],
)
def test_every_gold_answer_grades_itself_right(data_dir, files, kind, column, count):
    rows = [r for r in _rows(data_dir, *(f"{file}.jsonl" for file in files)) if r[column]]
    worked = [row[column].rpartition("####")[::2] for row in rows]
    assert len(worked) == count
    golds = {gold.strip() for _, gold in worked}
    for form in (*FORMS, *(UNMARKED if kind == "math" else ())):
        if "####" in form and kind != "number":
            continue
        graded = {gold: grade(form.format(gold), gold, kind, FORMS.get(form)) for gold in golds}
        wrong = [gold for gold in golds if not graded[gold].correct]
        assert len(wrong) <= UNMARKED.get(form, 0), (form, wrong)
    if kind == "number":  # the last number of a solution is not always its result
        found = [grade(solution.strip(), gold, kind).correct for solution, gold in worked]
        assert sum(found) / count > 0.985
    if kind == "math":
        solved = [(row["solution"], row["answer"]) for row in rows]
        assert [gold for text, gold in solved if not grade(text, gold, kind).correct] == []


def test_no_gold_answer_of_math_is_taken_for_its_neighbour(data_dir):
    golds = [row["answer"] for row in _rows(data_dir, "math/train.jsonl") if row["answer"]]
    equal = {
        (mine, gold)
        for mine, gold in zip(golds[1:], golds, strict=False)
        if mine != gold and answers_match(mine, gold, "math")
    }
    assert equal == {
        ("K=8", "8"),
        ("120^\\circ", "120"),
        ("21", "21\\text{ dogs}"),
        ("18", "18 \\text{ degrees}"),
    }


def test_answers_are_found_in_aquas_own_rationales(data_dir):
    """Written by people in every form; some end without a letter."""
    rows = _rows(data_dir, "aqua_rat/validation.jsonl", "aqua_rat/test.jsonl")
    grades = [grade(row["rationale"], row["correct"], "choice") for row in rows]
    found = [found for found in grades if found.extracted]
    assert len(found) / len(rows) > 0.9
    assert sum(found.correct for found in found) / len(found) > 0.99


# --- properties ---------------------------------------------------------------------------------

NUMBERS = st.fractions(min_value=-(10**9), max_value=10**9, max_denominator=1) | st.decimals(
    -(10**7), 10**7, places=2
).map(Fraction)
NASTY = st.lists(
    st.sampled_from([
        *"0123456789.,-+*/=^!$%(){}[]\\<> \n\0xA½−１", "\ud800", "\\boxed{", "\\frac", "\\sqrt",
        "\\pm ", "<answer>", "</answer>", "answer is ", "#### ", "not ", "\\cup ",
        "\\begin{pmatrix}", "&", "<<", "1 (", "2 eggs x $3", "5k",
        "neither A nor B", "because ", " is known as ", "\\text{", "...", "²", "Ⅷ",
    ]),
    max_size=40,
).map("".join)  # fmt: skip


@given(NUMBERS)
@settings(deadline=None)
def test_a_number_survives_every_way_to_write_it(value):
    plain = f"{float(value):.2f}" if value.denominator > 1 else str(value)
    grouped = f"{value.numerator:,}" if value.denominator == 1 else f"{float(value):,.2f}"
    sign = "-" if value < 0 else ""
    for written in (
        plain, grouped, f"{sign}${grouped.lstrip('-')}", grouped.replace(",", "{,}"),
        grouped.replace(",", " "), f"**{plain}**", f"{plain} dollars", f"${plain}$.",
        plain.replace("-", "−"), f"{value.numerator}/{value.denominator}",
    ):  # fmt: skip
        assert answers_match(written, plain, "number"), written
        assert answers_match(written, f"work\n#### {plain}", "number"), written
        assert grade(f"The answer is {plain}.", written, "number").correct
    assert not answers_match(plain, str(value + 1), "number")


@given(NASTY | st.text(max_size=200), NASTY | st.text(max_size=50))
@settings(max_examples=300, deadline=None)
def test_any_text_is_survived_and_equals_itself(text, gold):
    for kind in KINDS:
        for tags in (None, "answer"):
            first = grade(text, gold, kind, tags)
            assert not (first.correct and first.extracted is None)
        answers_match(text, gold, kind)
    node = read_answer(one_spelling(text))
    assert node is None or same_answer(node, node) is not False


def test_no_unicode_number_or_symbol_raises():
    """str.isdigit accepts ② and ⁷, which int and Fraction refuse."""
    characters = [
        character
        for character in map(chr, range(sys.maxunicode + 1))
        if character.isnumeric() or unicodedata.category(character) in ("Sm", "Sc", "Sk", "No")
    ]
    for character in characters:
        for form in (r"\boxed{\frac@2, x^@ = 1@}", "<answer>1.@/@,@</answer>"):
            text = form.replace("@", character)
            for kind in KINDS:
                grade(text, text, kind)


@pytest.mark.parametrize(
    "unit",
    [
        "\\boxed{", "{", "}", "$", "1", "1,", "1,111,", "1 ", "1/2 ", "½", "answer is ", "#### ",
        "(", "\\(", "-", "<answer>", "</answer>", "\\text{", "^", "9**", "!", "\0", "\ud800", "a",
        "A and ", "option ", "\\boxed{5} and ", "$5$, ", "**5** ", " ", "\n", "x=", "5e", "not ",
    ],
)  # fmt: skip
def test_a_long_text_takes_no_time_worth_measuring(unit):
    """Whatever were quadratic in the length would take many minutes."""
    filling = unit * (250_000 // len(unit))
    for text in (filling, f"The answer is {filling} 5."):
        for kind in KINDS:
            assert not grade(text, "C" if kind == "choice" else "57", kind).correct


def test_nothing_in_an_answer_is_executed(tmp_path):
    marker = tmp_path / "marker"
    call = f"open({str(marker)!r}, 'w').write('x')"
    for payload in (call, f"(lambda: {call})() or 5", f'eval("{call}")'):
        for kind in KINDS:
            grade(f"<answer>{payload}</answer>", "5", kind, "answer")
            answers_match(payload, payload, kind)
    assert not marker.exists()
