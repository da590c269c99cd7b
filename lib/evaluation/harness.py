r"""lm-evaluation-harness' two ways to grade GSM8K, so that numbers can be compared with others'.

    >>> harness_scores("That makes $18.\n#### 18.00", "18")
    {'strict_match': False, 'flexible_extract': False}

Its task `gsm8k` (version 3) takes the number after the first "####" (strict-match) or the last
number of the text (flexible-extract), and compares strings: 18.00 is not 18, and "18." is read as
18. They are here as they are there, for comparison; `lib.answers` is what this suite trusts.
Whoever compares with published figures mends the prompt, too: theirs has five examples whose
answers end in "#### 18" (prompt format "hashes", shots 5).
"""

import re

_AFTER_HASHES = re.compile(r"#### (-?[0-9.,]+)")
_ANY_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
# Taken out of answer and gold before they are compared, one after the other.
_IGNORED = (",", r"\$", r"(?s).*#### ", r"\.$")

HARNESS_SCORES = ("strict_match", "flexible_extract")


def harness_scores(text: str, gold: str) -> dict[str, bool]:
    """Whether each filter finds the gold answer in a completion, as the harness decides it."""
    found = (_AFTER_HASHES.findall(text)[:1], _ANY_NUMBER.findall(text)[-1:])
    return {
        name: bool(answers) and _bare(answers[0]) == _bare(gold)
        for name, answers in zip(HARNESS_SCORES, found, strict=True)
    }


def _bare(answer: str) -> str:
    answer = answer.strip()
    for pattern in _IGNORED:
        answer = re.sub(pattern, "", answer)
    return answer.lower()
