"""Problems become rows for a trainer or an engine: chat messages and what grades them.

make_rows(problems, PROMPT_FORMATS["reasoning"])[0]
{"prompt": [{"role": "system", "content": "Respond in the following format: …"},
            {"role": "user", "content": "Janet's ducks lay 16 eggs …"}],
 "answer": "18", "id": "gsm8k/test/0", "question": "Janet's …", "kind": "number", …}
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lib.errors import BadInput, nearest
from lib.tasks.problems import Problem

ROW_COLUMNS = ("prompt", "answer", "id", "question", "kind")
# Names that TRL's trainer gives a meaning of its own; meta entries so called stay out of the rows.
_TRAINER_COLUMNS = {
    *("prompts", "completion", "completions", "completion_ids", "image", "images"),
    *("tools", "environments", "trainer_state", "log_extra", "log_metric"),
}


@dataclass(frozen=True)
class PromptFormat:
    """How a question is put to the model and in what form its answer is wanted.

    Attributes:
        system: the system message, or None; a problem whose data set brings one of its own
            (meta["system"]) then uses that.
        template: the user's message; holds {question}.
        answer_tag, think_tag: the tags the answer and the reasoning must stand in, or None.
        example: a worked example's completion; may hold {solution} and {answer}.
    """

    name: str
    system: str | None = None
    template: str = "{question}"
    answer_tag: str | None = None
    think_tag: str | None = None
    example: str = "{answer}"

    def __post_init__(self):
        if "{question}" not in self.template:
            raise BadInput(f"The template of prompt format {self.name!r} must hold {{question}}.")

    def ask(self, question: str) -> str:
        """The user's message; braces in the question are left as they are."""
        return self.template.replace("{question}", question)

    def show(self, problem: Problem) -> str:
        """The problem's own solution as a completion in this format, for a worked example."""
        solution = problem.meta.get("solution") or ""
        if "{solution}" in self.example and not solution:
            raise BadInput(
                f"Problem {problem.id} has no worked solution to show as an example in prompt "
                f'format "{self.name}": use the format "answer", or no shots.'
            )
        # Both at once, since a solution may itself contain "{answer}".
        filling = {"{solution}": unbox(solution), "{answer}": problem.answer}
        return re.sub(r"\{solution\}|\{answer\}", lambda m: filling[m[0]], self.example)


_STEPS = "Reason step by step"
_FORMATS = (
    PromptFormat("plain"),
    PromptFormat(
        "summary",
        template="{question}\n\nSummarise the text above in one or two sentences.",
    ),
    PromptFormat(
        "answer",
        system="Give only the answer, in the following format: <answer>...</answer>",
        answer_tag="answer",
        example="<answer>{answer}</answer>",
    ),
    PromptFormat(
        "reasoning",
        system="Respond in the following format: <reasoning>...</reasoning><answer>...</answer>",
        answer_tag="answer",
        think_tag="reasoning",
        example="<reasoning>\n{solution}\n</reasoning>\n<answer>\n{answer}\n</answer>",
    ),
    PromptFormat(
        "think",
        system="Respond in the following format: <think>...</think><answer>...</answer>",
        answer_tag="answer",
        think_tag="think",
        example="<think>\n{solution}\n</think>\n<answer>{answer}</answer>",
    ),
    PromptFormat(
        "boxed",
        system=_STEPS + " and put the final answer within \\boxed{}.",
        example="{solution}\n\nThe final answer is $\\boxed{{answer}}$.",
    ),
    PromptFormat(
        "hashes",
        system=_STEPS + " and write the final answer on the last line, after ####.",
        example="{solution}\n#### {answer}",
    ),
)
PROMPT_FORMATS: dict[str, PromptFormat] = {format.name: format for format in _FORMATS}


def get_format(prompt_format: str | PromptFormat) -> PromptFormat:
    """A prompt format by name; an unknown name raises BadInput with the nearest one."""
    if isinstance(prompt_format, PromptFormat):
        return prompt_format
    if prompt_format not in PROMPT_FORMATS:
        hint = nearest(prompt_format, PROMPT_FORMATS)
        raise BadInput(f"There is no prompt format {prompt_format!r}: {hint}")
    return PROMPT_FORMATS[prompt_format]


def make_rows(
    problems: Sequence[Problem],
    prompt_format: str | PromptFormat,
    shots: int = 0,
    examples: Sequence[Problem] = (),
) -> list[dict]:
    """One row a problem, with the same columns of the same types in all.

    Columns: prompt (chat messages), answer, id, question, kind, and every meta entry that is a
    scalar in all problems that have it (None where a problem lacks it; mixed types as text).

    Args:
        shots: how many of `examples` stand before the question, as earlier turns.
        examples: worked examples (`lib.tasks.few_shot_examples`). A problem that asks the same
            as one of the examples shown is left out, so that no answer stands in its own prompt.

    Raises:
        BadInput: fewer examples than shots, or an example without a solution in a format
            that shows one.
    """
    prompt_format = get_format(prompt_format)
    if not 0 <= shots <= len(examples):
        raise BadInput(
            f"shots is {shots} and {len(examples)} examples are given: shots must lie between 0 "
            f"and the number of examples (lib.tasks.few_shot_examples makes them)."
        )
    shown = examples[:shots]
    turns = [turn for example in shown for turn in _turns(prompt_format, example)]
    shown_questions = {example.question for example in shown}
    problems = [problem for problem in problems if problem.question not in shown_questions]
    rows = [_row(problem, prompt_format, turns) for problem in problems]
    for row, extra in zip(rows, _meta_columns(problems), strict=True):
        row.update(extra)
    return rows


def _row(problem: Problem, prompt_format: PromptFormat, turns: list[dict]) -> dict:
    system = prompt_format.system or problem.meta.get("system")
    prompt = [{"role": "system", "content": system}] if system else []
    prompt += [*turns, {"role": "user", "content": prompt_format.ask(problem.question)}]
    values = (prompt, problem.answer, problem.id, problem.question, problem.kind)
    return dict(zip(ROW_COLUMNS, values, strict=True))


def _turns(prompt_format: PromptFormat, example: Problem) -> list[dict]:
    return [
        {"role": "user", "content": prompt_format.ask(example.question)},
        {"role": "assistant", "content": prompt_format.show(example)},
    ]


def _meta_columns(problems: Sequence[Problem]) -> list[dict]:
    """Per problem its scalar meta entries, each column of one type that Arrow can store."""
    types: dict[str, set[type]] = {}
    reserved = _TRAINER_COLUMNS | set(ROW_COLUMNS)
    for problem in problems:
        for name, value in problem.meta.items():
            if value is not None and name not in reserved:
                types.setdefault(name, set()).add(type(value))
    scalars = {name: found for name, found in types.items() if found <= {str, int, float, bool}}

    def column(value, found: set[type]):
        if value is None or len(found) == 1:
            return value
        return float(value) if found == {int, float} else str(value)

    return [
        {name: column(problem.meta.get(name), found) for name, found in scalars.items()}
        for problem in problems
    ]


def unbox(text: str) -> str:
    r"""The text with each \boxed{…} replaced by its content.

    A solution of MATH ends in a box; an example must hold its answer once, where the format
    wants it.

    >>> unbox(r"so $x=\boxed{\frac{1}{2}}$.")
    'so $x=\\frac{1}{2}$.'
    """
    parts, position = [], 0
    for start, end in boxed_spans(text):
        parts += [text[position:start].removesuffix("\\boxed{"), text[start:end]]
        position = end + 1
    return "".join([*parts, text[position:]])


def boxed_spans(text: str) -> list[tuple[int, int]]:
    r"""Where the contents of each complete outer \boxed{…} begin and end (braces matched)."""
    spans, position = [], 0
    for match in re.finditer(r"\\boxed\{", text):
        if match.start() < position:
            continue
        depth = 1
        for position in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                spans.append((match.end(), position))
                break
    return spans
