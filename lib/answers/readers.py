"""Reading the answer at a place in a completion: the number, letter, formula or words there.

``where`` says what the place is ("tags", "boxed", "hashes", "phrase"). A reader gives None for a
place that holds nothing it can read, and NO_ANSWER for one that settles the matter without an
answer: two numbers, or one that is only denied. The ``last_…`` functions have no place to go by.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from lib.answers.numerals import after_number, find_numbers, plain_characters, read_number, unwrap

MAX_ANSWER = 1000  # characters: what is longer is no answer
NO_ANSWER = ""
CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # Chinese, Japanese, Korean

_SENTENCE_END = re.compile(r"\n|(?<!\\)[.!?](?=\s|$|\*|<)|</")
LATEX_TEXT = re.compile(r"\\(?:text\w{0,6}|mbox|mathrm|f?box(?:ed)?)\s?\{([^{}]*+)\}")
_TEXT_END = re.compile(
    r"(?<!\b[A-Z])(?<!\bMr)(?<!\bDr)(?<!\bSt)(?<!\bMs)(?<!\bMrs)[.!?](?=\s|$|\*|<)|</|\n"
)
_FORMULA_END = re.compile(r"\n|(?<!\\)[.!?](?=\s{1,3}[A-Z*\\<]|\s{0,9}$|\*|<)|</")


def _clause(text: str, end: re.Pattern[str] = _SENTENCE_END) -> str:
    return end.split(text, 1)[0]


# --- numbers ------------------------------------------------------------------------------------

_NUMBERED = re.compile(r"\d+[.):] \S")
_NAME = r"(?:[A-Za-z]\w?\s?=\s?)"
_A_NUMBER = r"[$€£'\"(*]{0,3}-?\d++(?:[.,/]\d++)*+%?['\")*]{0,3}"
_UNITS = r"(?:\s(?!(?:and|or|to|in|all|total|altogether)\b)[^\W\d_]{1,20})"
_TO_THE_END = rf"{_UNITS}{{0,3}}\W*$"
# What follows the first of two numbers.
_SECOND = rf"""
    (?: {_UNITS}{{0,3}},?['\")*]{{0,3}}\s(?:(?:and|or|plus|minus|times)\b|&)  # 3 cats and 5 dogs
      | {_UNITS}?\s(?:to|through)\b | \s?(?:~|\.\.+|…|—) )                # 5 to 6
    \s?(?: (?:about\s|around\s|almost\s|nearly\s|roughly\s|perhaps\s)?{_NAME}?{_A_NUMBER}
        | (?:a\s)?(?:half|quarter|third)                                     # 5 and a half
        | (?:more|less|fewer|above|below|up|over|under)\b )                  # 5 or more
  | {_UNITS}{{1,2}},\s{_A_NUMBER}{_UNITS}{{0,2}}(?=\W*$)                      # 3 cats, 5 dogs
  | {_UNITS}\s\d[\d.,]*+{_UNITS}{{1,2}}(?=\W*$)                              # 5 feet 10 inches
"""
_TWO = re.compile(
    rf"(?:{_SECOND}|\s?[,;]\s?{_A_NUMBER}(?=\W*$|\s?(?:[,;]|and\b|or\b)))", re.VERBOSE
)
_TWO_AT_THE_END = re.compile(
    rf"""(?<![\w.]){_A_NUMBER}
    (?:{_SECOND} | \s?(?:;|,\s?(?={_NAME}))\s?{_NAME}?{_A_NUMBER}){_TO_THE_END}  # x = 1, y = 2
  | (?:^|\b(?:is|are):?\s)\W*{_A_NUMBER}(?:,\s{_A_NUMBER})+\W*$             # it is 1, 2, 3
    """,
    re.VERBOSE,
)
_LIST_AT_THE_END = re.compile(
    rf"(?<![\w.]){_NAME}?{_A_NUMBER}(?:(?:,|,?\s(?:and|or))\s{_NAME}?{_A_NUMBER})+(?=\W*$)"
)
_COMPARED = re.compile(
    r"(?:(?<![-=<>\d/])(?<!\d )[<>]=?|[≤≥±]|\\(?:pm|[lg](?:eq?(?:slant)?|t))(?![a-z])|&[lg]t;"
    r"|\b(?:more|greater|less|fewer|larger|smaller|higher|lower)\sthan|(?:\bnot|n['’]t)\b)"
    rf"\s?{_A_NUMBER}{_TO_THE_END}"
)
# Arithmetic and nothing else: 18-20, (5)/(8), \\frac13+\\frac14. What it comes to is compared.
_SUM = re.compile(
    r"(?=.*(?:\d[)}\s]*[-+*/^]|\\frac|\\sqrt|√|[\d)]\())"
    r"(?:[\d.,+*/^(){}\s√-]|\\[dt]?frac|\\sqrt)++"
)
_SUM_AT_THE_END = re.compile(rf"(?<![^\s$:])([(\d][\d.,+*/^()\s-]*[\d)]){_TO_THE_END}")
_SPAN = re.compile(r"(\d[\d.,]*+)\s?-\s?(\d[\d.,]*+)")
_JOINED = re.compile(r"\W{0,9}\b(?:or|and|to|plus|minus|times)\b")
_BRACKETED = re.compile(r"(?<=\w\s)\([^()]*+\)")  # a remark
_TERM_WITH_UNIT = r"\W{0,3}\d[\d.,]*+(?:\s?/?[A-Za-z]{1,20}){0,2}"
_ARITHMETIC = re.compile(  # 9 * 2 =, 9 eggs x $2/egg =
    rf"(?:[^A-WYZa-wyz=]|\bof\b)*=|{_TERM_WITH_UNIT}(?:\s[-+*/x]\s{_TERM_WITH_UNIT}){{1,9}}\s?="
)
_NOT = re.compile(r"\W{0,9}not\b")
_AND_NOT = re.compile(r"(?:,|\sand|\sbut)\snot\s\W?\d[\d.,]*+\W*$")
_ASIDE = re.compile(r"(\d(?:\s[A-Za-z]{1,20}){0,3})\s\([^()\n]{0,60}\)\W*$")  # 36 (2 x 18)


def arithmetic(text: str) -> str | None:
    """A text that is arithmetic and nothing else, with * for ×."""
    text = re.sub(r"(?<=\d)\s?x\s?(?=\d)", "*", unwrap(text[:MAX_ANSWER]).strip(" $.*"))
    text = re.sub(r"(?<![\\\w])sqrt(?=\s?\()", "√", text)
    return text if _SUM.fullmatch(text) else None


def _sum_at_the_end(text: str) -> str | None:
    """The arithmetic that a text ends with, NO_ANSWER for a range (18-20)."""
    match = _SUM_AT_THE_END.search(text)
    if not match or read_number(match[1]) is not None or not arithmetic(match[1]):
        return None
    low, high = map(read_number, span.groups()) if (span := _SPAN.fullmatch(match[1])) else (0, 0)
    return NO_ANSWER if (low or 0) < (high or 0) else match[1]


def number_in(place: str, where: str) -> str | None:
    """The number that a place gives: alone, after "=", at its start, else its last.

    Inside tags or a box it must be the only one, but for what stands in brackets.
    """
    clause = place.strip() if where != "phrase" else _clause(place)
    if read_number(clause) is not None:
        return clause
    if arithmetic(clause):
        return clause.rstrip(".")
    clause = unwrap(clause)
    rest = after_number(clause)
    leads = rest is not None
    if not leads and _COMPARED.search(_TAG.sub(" ", clause)):
        return NO_ANSWER
    if where == "hashes" and (not leads or _NUMBERED.match(clause)):
        return None  # a heading of markdown: "#### 2. Subtract"
    outside = _BRACKETED.sub(" ", clause)
    numbers = find_numbers(outside) or find_numbers(clause)
    if "=" in outside and (not leads or _ARITHMETIC.match(outside)):
        sides = outside.split("=")
        stated = [side for side in sides if read_number(side) is not None]
        if len(set(map(read_number, stated))) < 2:  # 16 = 17 = 18 are guesses
            one = stated[0] if stated and sides[-1] not in stated else sides[-1]
            numbers, rest = find_numbers(one) or numbers, after_number(one)
        leads = True
    if not numbers:
        return None
    two = len({read_number(number) for number in numbers}) > 1
    again = len(numbers) > 1 and not two  # 1/2 or 0.5
    if where in ("tags", "boxed") and (two or (not again and _JOINED.match(rest or ""))):
        return NO_ANSWER
    if "=" not in outside:
        if (total := _sum_at_the_end(outside.strip())) is not None:
            return total  # 18-20 eggs
        if not leads and _SPAN.search(outside):
            return NO_ANSWER
    more = _TWO.match(rest or "") if leads else _TWO_AT_THE_END.search(clause)
    if (more and not again) or (not two and _NOT.match(clause)):
        return NO_ANSWER
    return numbers[0] if leads else numbers[-1]


_COUNTED = re.compile(r"(?:(?<=[\d}π])|(?<=\dpi)|(?<=\d pi))(?:\ssquare|\scubic)?\s[A-Za-z]{2,20}")
_WORD = re.compile(
    rf"[{CJK}]|(?<![A-Za-z\\])"
    r"(?!(?:and|or|pi|sqrt|abs|a?(?:rc)?(?:sin|cos|tan)h?|sec|csc|cot|log|ln|exp"
    r"|inf|infinity|oo)(?![A-Za-z]))"
    r"(?:[A-Za-z]{3,}|(?:am|an|as|at|be|by|he|if|in|is|it|me|my|no|of|on|so|to|up|us|we)(?![A-Za-z]))"
)
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s?\{[a-z]+\*?\}")


def _is_bare(text: str) -> bool:
    """Whether a text is a formula and has no words but those of its LaTeX and its units."""
    bare = LATEX_TEXT.sub("", _ENVIRONMENT.sub("", text))
    return not _WORD.search(_COUNTED.sub("", bare))


def nothing_else(text: str, kind: str) -> str | None:
    """A text that is an answer from its first character to its last, as a whole; else None."""
    text = text.strip()
    if kind in ("choice", "text") or len(text) > 200 or "\n" in text:
        return None
    if kind == "number":
        plain = _BRACKETED.sub("", text)
        return plain if arithmetic(text) or read_number(plain) is not None else None
    if re.fullmatch(r"\W{0,3}[A-Za-z]{2,}\W{0,3}", text):
        return text
    if not _is_bare(text) or not re.search(r"[\w\\ℝ∞∅]", text):
        return None
    return re.sub(r"^[ *_]+|(?<![\^ *_])[ *_]+$", "", text)


_RESULT = re.compile(r"=(?:\s?\$?<<[^<>\n]*>>)?((?:[^=<>,;:(*+.!?-]|-(?! )|[.](?! \w))*)$")
_BOLD = re.compile(r"(?<![\w)])\*\*([^*\n]{1,60})\*\*(?![\w(])")


def last_number(text: str) -> str | None:
    """The last number; in the last paragraph, one that is all there is in bold."""
    tail = text[-MAX_ANSWER:]
    for part in reversed(_BOLD.findall(tail.rstrip().rpartition("\n\n")[2])):
        if read_number(part) is not None:
            return part
    text, tail = (_ASIDE.sub(r"\1", _AND_NOT.sub("", part)) for part in (text, tail))
    last_line = tail.rstrip().rpartition("\n")[2]
    last_line = plain_characters(_TAG.sub(" ", last_line[-200:]))
    two = _TWO_AT_THE_END.search(last_line)
    values = [read_number(number) for number in find_numbers(two[0])] if two else []
    again = len(values) > 1 and len(set(values)) == 1  # Y = 6/3 or Y = 2 is one number
    if (two and not again) or _COMPARED.search(last_line):
        return NO_ANSWER
    total = _sum_at_the_end(last_line)
    if total is not None and (not total or "(" in total):  # while "leaves 12-5" ends in a 5
        return total
    stated = _RESULT.search(last_line)
    if stated and (numbers := find_numbers(f"={stated[1]}")):
        return numbers[0]  # 9 + 5 = 14 eggs for 7 people
    for size in (MAX_ANSWER, 16 * MAX_ANSWER):  # further back there is no answer
        part = text if len(text) <= size else text[-size:].partition(" ")[2]
        if numbers := find_numbers(part):
            return numbers[-1]
    return None


# --- letters ------------------------------------------------------------------------------------

_FIRST_LETTER = re.compile(
    r"(?:(?:option|choice|letter)\s)?(?:\\(?:text\w{0,6}|math\w{2}|boxed)|[\s*_`$({\[\\'\"“‘]){0,9}"
    r"([A-Ja-j])(?:(?P<closed>[)\]}.:,]|\s?$|[*_]{2}|['\"”’](?!\w))|(?![\w'’]))"
)
_FREE_LETTER = re.compile(
    r"(?<![\w'’\\-])(?<![=+*/^] )(?P<open>[(\[{] ?)?([A-J])(?:(?P<closed>[)\]}])|(?![\w'’]))"
)
# What makes a letter a variable: C = 2\\pi r, A + B, G(x). An option may equal its number: C = 15.
_FORMULA = re.compile(
    r"\([a-z0-9]\)|(?:\*\*|[\s)}\]]){0,4}+"
    r"(?:[<>+/^≤≥≠≈]|\*(?=\s?\w)|_(?=[\w{])|\\[a-z]|=(?!\s?\$?\d[\d.,]*+\s?[a-z%$]{0,9}\W{0,3}$))"
)
_CHOSEN = re.compile(
    r"\b(?:is|be|it['’]s|choose|chose|pick|select|say|with|that|think|believe|option|choice|letter"
    r"|guess|vote\sfor)"
    r"\s[\s*_:(\[]{0,4}([A-J])(?![\w'’])(?!\s(?!because|since|as\b|is\b)[a-z])"
)
_ARTICLE = re.compile(r"\s(?!because|since|as\b|is\b|and\b|or\b|for\b|with\b|by\b|which\b)[a-z]")
# An option with what it says: b 4, (c) 12 m. An article has words behind its number: a 7 m wall.
_WITH_VALUE = re.compile(
    r"(?!\W{0,4}[AaI]\s\W?\d[\d.,/]*+\s?[A-Za-z])"
    r"\W{0,4}([A-Ja-j])[)\]}.:*]{0,3}\s\W?\d[\d.,/]*+(?:\s?[A-Za-z°%/]{1,12}){0,2}\W*$"
)
# What follows the first of two options: "B or C", "B. 4 or C. 5", "(A) 3, (B) 4".
_AND_ANOTHER = re.compile(
    r"""[).:*_}\]]{0,4}
    (?:[^A-Za-z,;/&\n]{0,20}(?:[,;/&]|\\text\{)
      |\s(?!because|since|as\b)[^,;\nA-J]{0,25}?(?<![A-Za-z])(?:and|or)\b)
    [\s*_(}]{0,3}(?:(?:and|or|maybe|perhaps|even|possibly)\s\(?){0,2}
    ([A-J](?![\w'’])(?!(?<=[AI])\s[a-z])|[a-j](?=[).]))""",
    re.VERBOSE,
)
_ENDS = re.compile(r"(?<=A)[\W_]*$").match  # an article has a word behind it
_NEGATED = re.compile(
    r"(?:\b(?:[Nn](?:ot|either|on|icht)|except|all but|[Ee]liminate|rule out)|n['’]t|不是)\s+"
    r"(?:be\s)?(?:option\s|choice\s)?\(?[A-J]\)?(?!\w)(?:\s(?:or|and|nor)\s\(?[A-J]\)?(?!\w)){0,5}"
    r"|\(?(?<!\w)[A-J]\)?\s(?:(?:is|are)\s(?:wrong|incorrect|false|not\s(?:right|correct))\b"
    r"|(?:is|does)n['’]t\b)"
)
_PRAISED = re.compile(
    r"(?<![\w'’])\(?([A-J])\)?[*_]{0,2}\s(?:is|must be)\s(?:the\s)?(?:correct|right|best|answer)"
)


# The options once more, which is no answer.
_ALL_OPTIONS = re.compile(r"(?:^\W{0,4}[A-J][).:][^\n]*(?:\n|\Z)){3,}", re.MULTILINE)


def letter_in(place: str, where: str) -> str | None:
    place = _NEGATED.sub("", unicodedata.normalize("NFKC", place.strip()))
    clause = _clause(place)
    if first := _FIRST_LETTER.match(clause):
        if _AND_ANOTHER.match(place, first.end(1)):
            return NO_ANSWER
        free = first["closed"] is None
        article = free and first[1] in "AI" and _ARTICLE.match(clause, first.end())
        equals = clause[first.end(1) :].lstrip(" *_)}").startswith("=")
        if _FORMULA.match(clause, first.end(1)) or (equals and where == "boxed"):
            return None
        if _WITH_VALUE.match(clause) or not (article or (free and first[1].islower())):
            return first[1].upper()
    letters = {
        m[2]
        for m in _FREE_LETTER.finditer(clause)
        if m["open"] or m[2] not in "AI" or _AND_ANOTHER.match(clause, m.end(2))
    }
    letters = letters or set(_CHOSEN.findall(clause))
    return letters.pop() if len(letters) == 1 else None


def last_letter(text: str) -> str | None:
    """The letter called correct, alone on the last line, or last."""
    tail = _NEGATED.sub("", unicodedata.normalize("NFKC", text[-MAX_ANSWER:]))
    if praised := _PRAISED.findall(tail):
        return praised[-1]
    tail = _ALL_OPTIONS.sub("", tail)
    if alone := _FIRST_LETTER.fullmatch(tail.strip().rpartition("\n")[2].rstrip("*_)]}.$ ")):
        return alone[1].upper()
    is_line = "\n" not in text.strip() and len(text) <= MAX_ANSWER
    if is_line and (first := _FIRST_LETTER.match(tail)):
        two = _AND_ANOTHER.match(tail, first.end(1))
        if two and not _FREE_LETTER.search(tail, two.end(1)):
            return NO_ANSWER
        marked = first["closed"] or _WITH_VALUE.match(tail)  # b. 4
        marked = marked or re.match(r"\s(?:because|since|as)\b", tail[first.end() :])
        if marked and not re.search(r"\b[A-J][).:\]]", tail[first.end() :]):
            return first[1].upper()
    letters = [m for m in _FREE_LETTER.finditer(tail) if not _FORMULA.match(tail, m.end(2))]
    if len(letters) > 1:
        two = _AND_ANOTHER.match(tail, letters[-2].end(2))
        if two and two[1] == letters[-1][2] != letters[-2][2]:
            return NO_ANSWER
    letters = [m for m in letters if m["closed"] or m[2] not in "AI" or _ENDS(tail, m.end())]
    chosen = [m[2] for m in letters] or _CHOSEN.findall(tail)
    return chosen[-1] if chosen else None


# --- words: names, places, short phrases --------------------------------------------------------

_TAG = re.compile(r"</?[A-Za-z][^<>\n]{0,40}>")
_REASON = re.compile(
    r"(?:,?\s(?:because|since|as it|due to)|,\s(?:who|which|where|of course|I\s\w+$))\b.*",
    re.DOTALL | re.IGNORECASE,
)
_OPINION = r"(?:I\s(?:would\s|am\s)?(?:think|believe|guess|say|suppose|sure)\s(?:that\s)?)?"
_CALLED = r"(?:\w+\sby\s|called\s|named\s|known\sas\s|in\s|at\s|on\s)?"
_LEADING = re.compile(
    rf"(?:so |thus |hence )?{_OPINION}(?:(?:it|this|that|he|she|they)"
    rf"\s(?:is|was|are|were|would\sbe)|it's)\s{_CALLED}",
    re.IGNORECASE,
)
_STATES = re.compile(
    rf".*\b(?:is|are|was|were|it['’]s|say|think|believe|guess)\b:?\s{_CALLED}",
    re.DOTALL,
)
# A sentence that answers "who?" as well as "what?": Paris is the capital of France.
_SENTENCE = re.compile(
    rf"{_OPINION}(?!(?:The|This|That|It|He|She|They|We|You|I|My|Its|Who|What|Which)\b)"
    r"(?P<who>[A-Z0-9]\S*(?:\s\S+){0,5}?)\s(?:(?:is|was)\s(?P<what>the\s[a-z].*)|did"
    r"|(?:[a-z]+ed|wrote|won|made|built|led|did|said|sang|drew|found|began|gave|took)"
    r"\s(?:it|this|that|them|him|her)(?:\s\w+){0,3})\W*"
)
_DENIED = re.compile(
    r"\b(?:not|never|no|nobody|neither|nor|wrong|incorrect|false|but|while|whereas|although|than|if"
    r"|unless|second|third|next|other|opposite)\b|n['’]t\b",
    re.IGNORECASE,
)
_NOT_COUNTED = re.compile(r"\b(?:a|an|the)\s+(?=\w)|^in (?:the )?(?=\d{3,4}$)")
_SIGNS = re.compile(
    r"(?<![^\W_])-(?=\d)|(?<=\d)[.:/](?=\d)|(?<=\d)%|\^|(?<=[^\W\d_])[+#♭♯]+|(?<=\b[a-z])-$"
)


def words_in(place: str, where: str) -> str | None:
    text = LATEX_TEXT.sub(r" \1 ", _TAG.sub(" ", place)).strip()
    if where not in ("tags", "boxed"):
        text = _REASON.sub("", _TEXT_END.split(text)[0])
    text = _LEADING.sub("", text.strip(" \t*_:$"), count=1).strip(" \t\n*_:$")
    return text if plain_words(text) else None


_QUOTES = str.maketrans("", "", '*"“”')
_REMARK = re.compile(r"(?<=\w)\s\([^()]*\)\W*$")


def last_words(text: str) -> str | None:
    """The last line, or what its last sentence says that something is."""
    line = _TAG.sub(" ", text[-MAX_ANSWER:]).strip().rpartition("\n")[2]
    sentence = next((part for part in reversed(_TEXT_END.split(line)) if plain_words(part)), "")
    sentence = _REASON.sub("", sentence.translate(_QUOTES)).strip()
    stated = None if _SENTENCE.fullmatch(sentence) else _STATES.match(sentence)
    if stated and len(sentence.split()) > 3:
        sentence = sentence[stated.end() :] or sentence
    return words_in(sentence, "last")


def same_words(mine: str, gold: str) -> bool:
    """Whether a phrase is the gold one, or a sentence says it: "Jane Austen wrote it"."""
    sentence = None if _DENIED.search(mine) else _SENTENCE.fullmatch(mine)
    said = [mine, _REMARK.sub("", mine), *(filter(None, sentence.groups()) if sentence else ())]
    return plain_words(gold) in map(plain_words, said)


@lru_cache(maxsize=16384)
def plain_words(text: str) -> str:
    """A phrase without what does not count: case, articles, punctuation, spaces."""
    text = unicodedata.normalize("NFKC", plain_characters(text)).casefold().replace("&", " and ")
    text = _NOT_COUNTED.sub("", text.strip(" .,;:!?")).strip()
    signs = {i for match in _SIGNS.finditer(text) for i in range(*match.span())}
    # Letters with their marks (the vowels of Hindi), digits, and the signs of -5, 3.14, C++ and A-.
    counts = {c for c in text if unicodedata.category(c)[0] in "LNM"} - {"\ufe0f"}
    return "".join(c for i, c in enumerate(text) if c in counts or i in signs)


# --- formulas -----------------------------------------------------------------------------------

_MATH = re.compile(
    r"\$\$(?P<display>[^$]++)\$\$"
    r"|(?<!\\)\$(?P<inline>(?:\\\$|[^$\n])++)\$"
    r"|\\\((?P<round>(?:[^\\]|\\(?![()]))++)\\\)"
    r"|\\\[(?P<square>(?:[^\\]|\\(?![\[\]]))++)\\\]"
)
# A formula without dollar signs: "so we obtain \\sqrt{2}."
_STATED = re.compile(
    r".*(?:\b(?:is|are|equals|obtain|get|gives?|need|have|when|if)\b|[是为得]到?|等于):?\s(.+?)\.?$"
)
_LAST_VERB = re.compile(r".*(?:\b(?:is|are|be|equals)\b|[是为得]到?|等于):?\s?", re.DOTALL)
ALL_REALS = re.compile(
    r"\b(?:all|any)\s(?:the\s)?(?:(positive|negative|non-?negative|non-?positive|non-?zero)\s)?"
    r"real(?:s|\snumbers?)(?:\s[a-z])?"
    r"(?:,?\s(?:except(?:\sfor)?|other\sthan|excluding|but|besides)\b\s?([^\n]{1,40}))?(?=\W*$)",
    re.IGNORECASE,
)
NONE = r"(?:no (?:real )?solutions?(?: exists?)?|(?:the )?empty set)"
_NO_SOLUTION = re.compile(  # a sentence, but for one that x = 1 is no solution
    rf"(?:^|[.!?:\n]\s)[A-Za-z ,']*?(?<!(?<!here) is )(?<![A-Za-z])({NONE})(?=\W*$)", re.IGNORECASE
)
_PROSE = re.compile(r"(?:\b[A-Za-z]{2,}+(?:'[a-z])?[,.:]?\s){2}[A-Za-z]{2}|[^\W\d_a-zA-Zα-ω]{3}")


def _formulas(text: str) -> list[tuple[int, str]]:
    """The stretches of LaTeX in a text, each with where it ends; joined ones are one list."""
    formulas: list[tuple[int, str]] = []
    for match in _MATH.finditer(text):
        inner = match[match.lastgroup].strip()
        between = text[formulas[-1][0] : match.start()].strip(" \t\n,;") if formulas else "."
        if between in ("", "and", "or"):
            formulas[-1] = (match.end(), f"{formulas[-1][1]}, {inner}")
        else:
            formulas.append((match.end(), inner))
    return formulas


def formula_in(place: str, where: str) -> str | None:
    if where == "boxed":
        return place.strip()
    if where == "hashes" and _PROSE.search(place):
        return None
    if (reals := ALL_REALS.search(_clause(place, _FORMULA_END))) and "\\text" not in place:
        return reals[0]
    if not place.startswith(("$", "\\(", "\\[")):
        place = _AND_NOT.sub("", _clause(place, _FORMULA_END))
        verb = _LAST_VERB.match(place)
        if verb and not LATEX_TEXT.search(place):
            place = place[verb.end() :] or place
    if formulas := _formulas(place):
        return formulas[0][1]
    if "\\" not in place and _PROSE.search(place):
        return next(iter(find_numbers(place)), place)
    return place.strip(" *_")


def without_prose(answer: str) -> str:
    """The formula in a sentence or between dollar signs; a bare formula stays as it is."""
    outside = _MATH.sub("", LATEX_TEXT.sub("", answer))
    worded = re.search(r"[A-Za-z]", outside)
    prose = _PROSE.search(outside) or ("\n" in outside and worded)
    if (worded and _MATH.search(answer)) or (prose and "\\" not in outside):
        return last_formula(answer) or answer
    return answer


def last_formula(text: str) -> str | None:
    """The last formula or the last number, whichever comes later."""
    tail = text[-MAX_ANSWER:]
    if reals := ALL_REALS.search(tail):
        return reals[0]
    if none := _NO_SOLUTION.search(tail):
        return none[1]
    if formulas := _formulas(tail):
        later = find_numbers(tail[formulas[-1][0] :])
        return later[-1] if later else formulas[-1][1]
    last_line = plain_characters(tail.rstrip().rpartition("\n")[2])
    stated = _STATED.match(last_line)
    if stated and re.search(r"[A-Za-z\\(\[{]", stated[1]) and _is_bare(stated[1]):
        return stated[1]
    several = _LIST_AT_THE_END.search(last_line)
    return several[0] if several else last_number(text)


# For each kind, what reads a place, and what reads a text without one.
READERS = {
    "number": (number_in, last_number),
    "math": (formula_in, last_formula),
    "choice": (letter_in, last_letter),
    "text": (words_in, last_words),
}
