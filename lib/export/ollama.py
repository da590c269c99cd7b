r"""A Modelfile for any model: its chat template in Go's form, its stops, its system text.

    >>> template = go_template(tokenizer)     # or BadInput: this one cannot be put in Go's form
    >>> render(template, messages) == chat_text(tokenizer, messages)
    True

Ollama reads no Jinja and guesses a template where none is given (ollama#10222), after which the
model rambles. A chat template is, for nearly all models, fixed text around what is said. That text
is found here by rendering dialogues of markers, put between Go's `range` over the messages, and
held byte for byte to what `apply_chat_template` makes of five dialogues.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lib.engines import Messages
from lib.errors import BadInput, first_line
from lib.files import read_json, write_json
from lib.models import load_tokenizer

DIALOGUES: dict[str, Messages] = {
    "a system text": [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Is 7 prime?"},
    ],
    "two turns": [
        {"role": "user", "content": "What is 3 + 4?"},
        {"role": "assistant", "content": "It is 7.\n\n<answer>7</answer>"},
        {"role": "user", "content": "And doubled?"},
    ],
    "< and {{ in the text": [
        {"role": "user", "content": 'if a < b && {{ .Content }} == "x" \\n {% raw %}'},
    ],
    "an empty answer": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Say nothing."},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "Thank you."},
    ],
    "text that is not Latin": [
        {"role": "user", "content": "สวัสดี — 三加四等于几？ שלום 🙂"},
    ],
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


def go_template(tokenizer: Any, without_bos: bool = False) -> str:
    """The tokenizer's chat template for Ollama.

    Args:
        without_bos: the file's tokenizer adds the first token by itself (`add_bos_token`).

    Raises:
        BadInput: this template cannot be put in Go's form, and why.
    """
    parts = _parts(tokenizer)
    bos = tokenizer.bos_token or ""
    if without_bos:
        parts = {k: v.removeprefix(bos) if k.startswith("first") else v for k, v in parts.items()}
    text = {name: f"{{{{ {_go_string(part)} }}}}" if part else "" for name, part in parts.items()}
    template = (
        '{{ range $i, $_ := .Messages }}{{ if eq .Role "system" }}'
        f"{text['first system']}{{{{ .Content }}}}"
        '{{ else if eq .Role "user" }}{{ if eq $i 0 }}'
        f"{text['first user']}{{{{ else if and $.System (eq $i 1) }}}}{text['system to user']}"
        f"{{{{ else }}}}{text['assistant to user']}{{{{ end }}}}{{{{ .Content }}}}"
        f"{{{{ else }}}}{text['user to assistant']}{{{{ .Content }}}}{{{{ end }}}}{{{{ end }}}}"
        f"{text['answer']}"
    )
    for name, messages in DIALOGUES.items():
        if messages[0]["role"] == "system" and not knows_system(tokenizer):
            messages = messages[1:]
        wanted = _rendered(tokenizer, messages)
        if without_bos:
            wanted = wanted.removeprefix(bos)
        if render(template, messages) != wanted:
            raise BadInput(
                f"This chat template cannot be put in Go's form: for {name} its text depends on "
                f"more than who speaks and what came before; Ollama needs a template of yours.",
                key="go-template",
            )
    return template


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

    first, user_assistant, assistant_user, answer = between("user", "assistant", "user")
    first_system = system_user = ""
    if knows_system(tokenizer):
        first_system, system_user, _ = between("system", "user")
    return {
        "first user": first,
        "first system": first_system,
        "system to user": system_user,
        "user to assistant": user_assistant,
        "assistant to user": assistant_user,
        "answer": answer,
    }


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


def modelfile(
    weights: str,
    template: str,
    stops: Sequence[str],
    parameters: dict[str, Any] | None = None,
    messages: Messages = (),
) -> str:
    """The text of a Modelfile; `ollama create NAME -f Modelfile` reads it.

    Args:
        weights: the GGUF file, relative to the Modelfile.
        stops: each text that ends a turn.
        parameters: such as temperature and num_ctx.
        messages: what stands before each conversation: a system text, worked examples.
    """
    lines = [f"FROM ./{weights}", f'TEMPLATE """{template}"""']
    for message in messages:
        role = "SYSTEM" if message["role"] == "system" else f"MESSAGE {message['role']}"
        lines.append(f'{role} """{message["content"]}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]  # read as it stands, no escapes
    lines += [f"PARAMETER {name} {value}" for name, value in (parameters or {}).items()]
    return "\n".join(lines) + "\n"


def write_modelfile(merged: Path, file: Path, **text: Any) -> Path:
    """A Modelfile beside a GGUF file made of `merged`; `text` as of `modelfile`."""
    tokenizer = load_tokenizer(merged)
    system = any(message["role"] == "system" for message in text.get("messages", ()))
    if system and not knows_system(tokenizer):
        raise BadInput("This chat template takes no system text.", key="go-template")
    template = go_template(tokenizer, without_bos=_adds_bos(file))
    ends = read_json(merged / "generation_config.json")["eos_token_id"]
    ends = ends if isinstance(ends, list) else [ends]
    stops = [tokenizer.convert_ids_to_tokens(token) for token in ends]
    to = file.with_name("Modelfile")
    to.write_text(modelfile(file.name, template, stops, **text), encoding="utf-8")
    return to


def _adds_bos(file: Path) -> bool:
    from gguf import GGUFReader

    added = GGUFReader(file).get_field("tokenizer.ggml.add_bos_token")
    return bool(added and added.contents())


def render(template: str, messages: Messages) -> str:
    """What Go makes of a template that `go_template` wrote (the part of Go that it uses)."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    scope = {"Messages": messages, "System": system}
    pieces = re.split(r'(\{\{(?:"(?:\\.|[^"\\])*"|[^"}])*\}\})', template)
    return "".join(_run(iter(pieces), scope, {})[0])


def _run(pieces: Iterator[str], scope: dict, names: dict) -> tuple[list[str], str]:
    """Render up to the `end` or `else` that closes this block; both the text and the closer."""
    out: list[str] = []
    for piece in pieces:
        action = piece[2:-2].strip() if piece.startswith("{{") else None
        if action is None:
            out.append(piece)
        elif action == "end" or action.startswith("else"):
            return out, action
        elif action.startswith("range"):
            body = list(pieces)
            for place, message in enumerate(scope["Messages"]):
                rest = iter(body)
                out += _run(rest, scope, {"$i": place, "": message})[0]
            tail, closer = _run(rest, scope, names)
            return out + tail, closer
        elif action.startswith("if"):
            text, closer, taken = [], action, False
            while closer != "end":
                holds = closer == "else" or _value(closer.split("if ", 1)[1], scope, names)
                text, closer = _run(pieces, scope, names)
                if holds and not taken:
                    out, taken = out + text, True
        else:
            out.append(str(_value(action, scope, names)))
    return out, ""


def _value(expression: str, scope: dict, names: dict) -> Any:
    """A string, a field, a variable, or `eq`/`and` of two of them."""
    words = re.findall(r'"(?:\\.|[^"\\])*"|[()]|[^\s()]+', expression)

    def read() -> Any:
        word = words.pop(0)
        if word == "(":
            value = read()
            words.pop(0)
            return value
        if word in ("eq", "and"):
            a, b = read(), read()
            return a == b if word == "eq" else a and b
        if word.startswith('"'):
            plain = {"n": "\n", "t": "\t", "r": "\r"}
            text = re.sub(r"\\U([0-9a-f]{8})", lambda m: chr(int(m[1], 16)), word[1:-1])
            return re.sub(r"\\(.)", lambda m: plain.get(m[1], m[1]), text)
        if word.startswith("$."):
            return scope[word[2:]]
        if word.startswith("."):
            return names[""][word[1:].lower()]
        return names[word] if word.startswith("$") else int(word)

    return read()
