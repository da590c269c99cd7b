"""Problems become rows for a trainer or an engine: chat messages and what grades them; and a
tokenizer is made ready to write such messages as text.

make_rows(problems, "reasoning")[0]
{"prompt": [{"role": "system", "content": "Respond in the following format: …"},
            {"role": "user", "content": "Janet's ducks lay 16 eggs …"}],
 "answer": "18", "id": "gsm8k/test/0", "question": "Janet's …", "kind": "number", …}
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.answers import closing_brace
from lib.config import Config
from lib.errors import BadInput, nearest
from lib.files import read_settings
from lib.tasks.problems import Problem

ROW_COLUMNS = ("prompt", "answer", "id", "question", "kind")
# Meta entries that become no column: TRL's trainer gives these names a meaning of its own.
_NO_COLUMNS = {
    *("prompts", "completion", "completions", "completion_ids", "image", "images"),
    *("tools", "environments", "trainer_state", "log_extra", "log_metric"),
    *ROW_COLUMNS, "earlier_turns",
}  # fmt: skip


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
        solution = str(problem.meta.get("solution") or "")
        if "{solution}" in self.example and not solution:
            said = f"Problem {problem.id} has no worked solution to show in prompt format"
            raise BadInput(
                f'{said} "{self.name}": use the format "answer", or no shots.', "solution"
            )
        # Both at once, since a solution may itself contain "{answer}".
        filling = {"{solution}": unbox(solution), "{answer}": problem.answer}
        return re.sub(r"\{solution\}|\{answer\}", lambda m: filling[m[0]], self.example)


_TAGGED = "Respond in the following format: <{0}>...</{0}><answer>...</answer>"
_STEPS = "Reason step by step and {}"
_FORMATS = (
    PromptFormat("plain"),
    PromptFormat(
        "summary", template="{question}\n\nSummarise the text above in one or two sentences.",
    ),
    PromptFormat(
        "answer", "Give only the answer, in the following format: <answer>...</answer>",
        answer_tag="answer", example="<answer>{answer}</answer>",
    ),
    PromptFormat(
        "reasoning", _TAGGED.format("reasoning"), answer_tag="answer", think_tag="reasoning",
        example="<reasoning>\n{solution}\n</reasoning>\n<answer>\n{answer}\n</answer>",
    ),
    PromptFormat(
        "think", _TAGGED.format("think"), answer_tag="answer", think_tag="think",
        example="<think>\n{solution}\n</think>\n<answer>{answer}</answer>",
    ),
    PromptFormat(
        "boxed", _STEPS.format("put the final answer within \\boxed{}."),
        example="{solution}\n\nThe final answer is $\\boxed{{answer}}$.",
    ),
    PromptFormat(
        "hashes", _STEPS.format("write the final answer on the last line, after ####."),
        example="{solution}\n#### {answer}",
    ),
)  # fmt: skip
PROMPT_FORMATS: dict[str, PromptFormat] = {format.name: format for format in _FORMATS}


def get_format(prompt_format: str | PromptFormat) -> PromptFormat:
    """A prompt format by name; an unknown name raises BadInput with the nearest one."""
    if isinstance(prompt_format, PromptFormat):
        return prompt_format
    if prompt_format not in PROMPT_FORMATS:
        hint = nearest(prompt_format, PROMPT_FORMATS)
        raise BadInput(f"There is no prompt format {prompt_format!r}: {hint}")
    return PROMPT_FORMATS[prompt_format]


def asks_for_hashes(prompt_format: str) -> bool:
    """Whether the prompt asks for "#### 18": without it, strict_match can only be wrong."""
    form = get_format(prompt_format)
    return "####" in f"{form.system} {form.template} {form.example}"


def make_rows(
    problems: Sequence[Problem],
    prompt_format: str | PromptFormat,
    shots: int = 0,
    examples: Sequence[Problem] = (),
) -> list[dict]:
    """One row a problem, with the same columns of the same types in all.

    Columns: prompt (chat messages), answer, id, question, kind, and every meta entry, None where
    a problem lacks it; numbers of mixed types as floats, other mixed types as text, and lists or
    dicts that differ in what they hold as JSON.

    The first `shots` of `examples` stand before the question as earlier turns, and are not asked.
    BadInput where there are fewer, or one lacks the solution that the format shows.
    """
    form = get_format(prompt_format)
    if not 0 <= shots <= len(examples):
        said = f"shots is {shots} and {len(examples)} examples are given"
        raise BadInput(f"{said} (lib.tasks.few_shot_examples makes them): ask for fewer.", "shots")
    turns, shown = [], {example.key for example in examples[:shots]}
    for example in examples[:shots]:
        turns += [_says("user", form.ask(example.question)), _says("assistant", form.show(example))]
    problems = [problem for problem in problems if problem.key not in shown]
    rows = []
    for problem in problems:
        system = form.system or problem.meta.get("system")
        prompt = [_says("system", str(system))] if system else []
        prompt += [*turns, *problem.meta.get("earlier_turns", ())]
        prompt += [_says("user", form.ask(problem.question))]
        values = (prompt, problem.answer, problem.id, problem.question, problem.kind)
        rows.append(dict(zip(ROW_COLUMNS, values, strict=True)))
    given = [(k, v) for problem in problems for k, v in problem.meta.items() if v is not None]
    for name in dict.fromkeys(k for k, _ in given if k not in _NO_COLUMNS):
        for row, value in zip(rows, _meta_column(name, problems), strict=True):
            row[name] = value
    return rows


def _says(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _meta_column(name: str, problems: Sequence[Problem]) -> list:
    """A meta entry of one type that Arrow can store and gives back unchanged."""
    values = [problem.meta.get(name) for problem in problems]
    types = {type(value) for value in values if value is not None}
    if types == {int, float}:
        return [None if value is None else float(value) for value in values]
    small = all(abs(value) < 2**63 for value in values if isinstance(value, int))  # as Arrow's
    if types <= {str, int, float, bool} and small:
        return values if len(types) < 2 else [v if v is None else str(v) for v in values]
    from datasets import Dataset

    try:
        if Dataset.from_dict({"values": values})["values"][:] == values:
            return values
    except (ValueError, TypeError, NotImplementedError, OverflowError):  # Arrow's are among them
        pass
    return [v if v is None else json.dumps(v, default=str, ensure_ascii=False) for v in values]


def fitting_rows(
    rows: Sequence[dict], tokenizer: Any, config: Config, completion: int = 0
) -> tuple[list[dict], str]:
    """The rows whose prompt leaves room in max_seq_length for a completion (`completion` tokens, or
    max_completion_length), and a note of what is left out, "" where nothing is. BadInput where no
    row fits."""
    if not rows:
        return [], ""
    completion = completion or config.max_completion_length
    texts = [
        tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        for row in rows
    ]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    room = config.max_seq_length - completion
    fitting = [row for row, length in zip(rows, lengths, strict=True) if length <= room]
    if len(fitting) == len(rows):
        return fitting, ""
    longest = max(lengths)
    note = (
        f"{len(rows) - len(fitting)} of {len(rows)} prompts are longer than the {room} tokens "
        f"that max_seq_length {config.max_seq_length} leaves beside a completion of {completion}, "
        f"and are left out; the longest, {rows[lengths.index(longest)]['id']}, has {longest}: "
        f"with max_seq_length {longest + completion} all fit."
    )
    if not fitting:
        raise BadInput(note, "too-long")
    return fitting, note


def unbox(text: str) -> str:
    r"""The text with each \boxed{…} replaced by its content: an example holds its answer once.

    >>> unbox(r"so $x=\boxed{\frac{1}{2}}$.")
    'so $x=\\frac{1}{2}$.'
    """
    for start, end in reversed(boxed_spans(text)):
        text = text[:start].removesuffix("\\boxed{") + text[start:end] + text[end + 1 :]
    return text


def boxed_spans(text: str) -> list[tuple[int, int]]:
    r"""Where the contents of each complete outer \boxed{…} begin and end (braces matched)."""
    spans: list[tuple[int, int]] = []
    for match in re.finditer(r"\\boxed\{", text):
        end = closing_brace(text, match.end())
        if end >= 0 and (not spans or match.start() > spans[-1][1]):
            spans.append((match.end(), end))
    return spans


# --- a tokenizer made ready ---------------------------------------------------------------------
# Some templates refuse or drop a system message, or begin the model's turn with <think>, which no
# completion then holds, so that rewards for format would never see it.

# Put before a template: the system message becomes the beginning of the first turn.
_FOLD_SYSTEM = (
    "{%- if messages[0]['role'] == 'system' and messages|length > 1 -%}"
    "{%- set messages = [{'role': messages[1]['role'], 'content': messages[0]['content'] + '\n\n'"
    " + messages[1]['content']}] + messages[2:] -%}{%- endif -%}"
)
_SYSTEM = "Answer in one word."
_OPENED = re.compile(r"<(?:think|thought|reason|analysis|scratch)\w*>\s*$")  # and no <assistant>


def ready_tokenizer(tokenizer: Any, folder: Path) -> Any:
    """The tokenizer of the model in `folder`, changed in place, for training, evaluation and export
    alike. BadInput: no chat template, one that cannot be used, or tokens without an embedding."""
    tokenizer.padding_side = "left"  # completions start at the same place in a batch
    tokenizer.eos_token = tokenizer.eos_token or _end_of_turn(tokenizer, folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    _check_embeddings(tokenizer, folder)
    template, way_out = tokenizer.chat_template, f"write one to {folder / 'chat_template.jinja'}"
    if isinstance(template, dict):  # several by name
        template = template.get("default")
    if not template:
        said = f"The model in {folder} has no chat template, by which a prompt becomes text"
        hint = f"choose its instruct version, or {way_out}"
        raise BadInput(f"{said}: {hint}.", "no-chat-template")
    tokenizer.chat_template = template
    if _SYSTEM not in _probed(tokenizer):
        tokenizer.chat_template = _FOLD_SYSTEM + template
    if opened := _OPENED.search(_probed(tokenizer)):
        head, begins, tail = tokenizer.chat_template.rpartition("add_generation_prompt")
        tail = re.sub(rf"{opened[0].rstrip()}(\\n|\n)*", "", tail)
        tokenizer.chat_template = head + begins + tail
    prompt = _probed(tokenizer)
    if _SYSTEM not in prompt or _OPENED.search(prompt):
        said = f"The chat template of the model in {folder} cannot be used, leaves out the system"
        said += " message, or opens the reasoning's tag itself, and could not be changed"
        raise BadInput(f"{said}: {way_out}.", "chat-template")
    return tokenizer


def _probed(tokenizer: Any) -> str:
    """A prompt as the template writes it; "" where the template refuses it, or is none."""
    messages = [_says("system", _SYSTEM), _says("user", "Name a colour.")]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception:  # what a template may raise
        return ""


def end_ids(given: int | list[int] | None) -> list[int]:
    """The ids that end a turn, of which a model's `eos_token_id` names none, one or several."""
    return given if isinstance(given, list) else [given] if given is not None else []


def _end_of_turn(tokenizer: Any, folder: Path) -> str:
    """The token that ends generation, where the tokenizer itself names none."""
    for file in ("generation_config.json", "config.json"):
        for number in end_ids(read_settings(folder / file, {}).get("eos_token_id")):
            if isinstance(number, int) and number < len(tokenizer):
                return tokenizer.convert_ids_to_tokens(number)
    hint = "name one as eos_token in tokenizer_config.json"
    raise BadInput(f"The tokenizer in {folder} has no token that ends a turn: {hint}.", "no-eos")


def _check_embeddings(tokenizer: Any, folder: Path) -> None:
    file = folder / "config.json"
    shape = read_settings(file, {})
    rows = shape.get("text_config", shape).get("vocab_size")
    extra = [(i, token) for token, i in tokenizer.get_added_vocab().items() if rows and i >= rows]
    if extra:
        number, token = min(extra)
        said = f"The tokenizer in {folder} has the token {token!r} with id {number} and the model"
        hint = "resize the model's embeddings and save it, or remove the token"
        raise BadInput(f"{said} embeddings for {rows}: {hint}.", "tokens-without-embeddings")
