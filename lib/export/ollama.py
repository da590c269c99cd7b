"""A Modelfile for any model: its chat template in Go's form, its stops, its system text.

Ollama reads no Jinja and guesses a template where none is given (ollama#10222), after which the
model rambles. A chat template is, for nearly all models, fixed text around what is said. That text
is found here by rendering dialogues of markers, put between Go's `range` over the messages, and
held byte for byte to what `apply_chat_template` makes of five dialogues.
"""

import re
from pathlib import Path
from typing import Any

from lib.engines import Messages
from lib.errors import BadInput, first_line
from lib.files import read_json, write_json
from lib.models import load_tokenizer

_TURNS = {
    "a system text": ("system", "Answer in one word.", "user", "Is 7 prime?"),
    "two turns": (
        *("user", "What is 3 + 4?", "assistant", "It is 7.\n\n<answer>7</answer>"),
        *("user", "And doubled?"),
    ),
    "< and {{ in the text": ("user", 'if a < b && {{ .Content }} == "x" \\n {% raw %}'),
    "an empty answer": (
        *("system", "Be brief.", "user", "Say nothing.", "assistant", "", "user", "Thank you."),
    ),
    "text that is not Latin": ("user", "สวัสดี — 三加四等于几？ שלום 🙂"),
}
DIALOGUES: dict[str, Messages] = {
    name: [{"role": r, "content": t} for r, t in zip(turns[::2], turns[1::2], strict=True)]
    for name, turns in _TURNS.items()
}
_MARKS = {"system": "\x02S\x03", "user": "\x02U\x03", "assistant": "\x02A\x03"}


def plain_jinja(template: str) -> str:
    """The chat template without `{% generation %}`, which only transformers knows; same text.

    llama.cpp and others fail on the tag (llama-cpp-python#2225). An `if true` keeps what its
    dashes do to the white space around it.
    """
    template = re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", template)
    return re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", template)


def write_templates(folder: Path) -> None:
    """The chat template in both places where tools look, without `{% generation %}`."""
    file, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    values = read_json(settings)
    template = plain_jinja(file.read_text("utf-8") if file.is_file() else values["chat_template"])
    file.write_text(template, encoding="utf-8")
    write_json(settings, values | {"chat_template": template})


GO = """\
{{ range $i, $_ := .Messages }}{{ if eq .Role "system" }}%(system)s{{ .Content }}\
{{ else if eq .Role "user" }}{{ if eq $i 0 }}%(first)s\
{{ else if and $.System (eq $i 1) }}%(second)s{{ else }}%(next)s{{ end }}{{ .Content }}\
{{ else }}%(answered)s{{ .Content }}{{ end }}{{ end }}%(answer)s"""


def go_template(tokenizer: Any, without_bos: bool = False) -> str:
    """The tokenizer's chat template for Ollama.

    Args:
        without_bos: the file's tokenizer adds the first token by itself (`add_bos_token`).

    Raises:
        BadInput: this template cannot be put in Go's form, and why.
    """
    parts, bos = _parts(tokenizer), tokenizer.bos_token or ""
    for name, messages in DIALOGUES.items():
        if messages[0]["role"] == "system" and not knows_system(tokenizer):
            messages = messages[1:]
        if _as_go_does(parts, messages) != _rendered(tokenizer, messages):
            raise BadInput(
                f"This chat template cannot be put in Go's form: for {name} its text depends on "
                f"more than who speaks and what came before; Ollama needs a template of yours.",
                key="go-template",
            )
    if without_bos:
        parts |= {name: parts[name].removeprefix(bos) for name in ("first", "system")}
    texts = {name: f"{{{{ {_go_string(part)} }}}}" if part else "" for name, part in parts.items()}
    return GO % texts


def _as_go_does(parts: dict[str, str], messages: Messages) -> str:
    """What Go makes of `GO` with these parts in it."""
    text = ""
    for place, message in enumerate(messages):
        part = {"system": "system", "assistant": "answered"}.get(message["role"], "next")
        if part == "next" and place == 0:
            part = "first"
        elif part == "next" and place == 1 and messages[0]["role"] == "system":
            part = "second"
        text += parts[part] + message["content"]
    return text + parts["answer"]


def _parts(tokenizer: Any) -> dict[str, str]:
    """The fixed text between what is said, found with markers in the messages' place."""

    def between(*roles: str) -> list[str]:
        messages = [{"role": role, "content": _MARKS[role]} for role in roles]
        text, parts = _rendered(tokenizer, messages), []
        for mark in (_MARKS[role] for role in roles):
            before, there, text = text.partition(mark)
            if not there:
                raise BadInput(
                    f"This chat template cannot be put in Go's form: it leaves out or moves what "
                    f"is said in a dialogue of {', '.join(roles)}.",
                    key="go-template",
                )
            parts.append(before)
        return [*parts, text]

    first, answered, following, answer = between("user", "assistant", "user")
    system, second, _ = between("system", "user") if knows_system(tokenizer) else ("", "", "")
    return dict(
        system=system, first=first, second=second, next=following, answered=answered, answer=answer
    )


def knows_system(tokenizer: Any) -> bool:
    """Whether the chat template takes a system text (Gemma 2's does not)."""
    try:
        text = _rendered(tokenizer, [{"role": r, "content": _MARKS[r]} for r in ("system", "user")])
    except BadInput:
        return False
    return _MARKS["system"] in text


def _rendered(tokenizer: Any, messages: Messages) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template raises what it likes, "System role not supported" say
        raise BadInput(
            f"This chat template refuses a dialogue ({first_line(error)}).", key="go-template"
        ) from error


def _go_string(text: str) -> str:
    """The text as a string of Go's; Ollama drops characters of a Modelfile that do not print."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    parts = [escapes.get(c) or (c if c.isprintable() else f"\\U{ord(c):08x}") for c in text]
    return '"' + "".join(parts) + '"'


def write_modelfile(
    merged: Path, file: Path, parameters: dict[str, Any], messages: Messages
) -> Path:
    """A Modelfile beside a GGUF file made of `merged`; `ollama create NAME -f Modelfile` reads it.

    Args:
        parameters: such as temperature and num_ctx.
        messages: what stands before each conversation: a system text, worked examples.
    """
    tokenizer = load_tokenizer(merged)
    if any(message["role"] == "system" for message in messages) and not knows_system(tokenizer):
        raise BadInput("This chat template takes no system text.", key="go-template")
    template = go_template(tokenizer, without_bos=_adds_bos(file))
    lines = [f"FROM ./{file.name}", f'TEMPLATE """{template}"""']
    for message in messages:
        role = "SYSTEM" if message["role"] == "system" else f"MESSAGE {message['role']}"
        lines.append(f'{role} """{message["content"]}"""')
    ends = read_json(merged / "generation_config.json")["eos_token_id"]
    for token in ends if isinstance(ends, list) else [ends]:  # read as it stands, no escapes
        lines.append(f'PARAMETER stop "{tokenizer.convert_ids_to_tokens(token)}"')
    lines += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    to = file.with_name("Modelfile")
    to.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return to


def _adds_bos(file: Path) -> bool:
    from gguf import GGUFReader

    added = GGUFReader(file).get_field("tokenizer.ggml.add_bos_token")
    return bool(added and added.contents())
