"""A tokenizer made ready: it pads, has an embedding for each token, and a template that fits.

Some templates refuse or drop a system message, or begin the model's turn with <think>, which no
completion then holds, so that rewards for format would never see it. Such a template is changed
here, for training, evaluation and export alike.
"""

import re
from pathlib import Path
from typing import Any

from lib.errors import BadInput
from lib.files import read_json

# Put before a template: the system message becomes the beginning of the first turn.
FOLD_SYSTEM = (
    "{%- if messages[0]['role'] == 'system' and messages|length > 1 -%}"
    "{%- set messages = [{'role': messages[1]['role'], 'content': messages[0]['content'] + '\n\n'"
    " + messages[1]['content']}] + messages[2:] -%}{%- endif -%}"
)
SYSTEM = "Answer in one word."
OPENED = re.compile(r"<(?:think|thought|reason|analysis|scratch)\w*>\s*$")  # and no <assistant>
PROBE = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Name a colour."}]


def ready_tokenizer(tokenizer: Any, folder: Path) -> Any:
    """The tokenizer of the model in `folder`, changed in place. BadInput: no chat template, one
    that cannot be used, or tokens without an embedding."""
    tokenizer.padding_side = "left"  # completions start at the same place in a batch
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    _check_embeddings(tokenizer, folder)
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several by name
        template = template.get("default")
    if not template:
        raise BadInput(
            f"The model in {folder} has no chat template, by which a prompt becomes text: choose "
            f"its instruct version, or write one to {folder / 'chat_template.jinja'}.",
            key="no-chat-template",
        )
    tokenizer.chat_template = template
    if SYSTEM not in _prompt(tokenizer, PROBE):
        tokenizer.chat_template = FOLD_SYSTEM + template
    if opened := OPENED.search(_prompt(tokenizer, PROBE)):
        head, begins, tail = tokenizer.chat_template.rpartition("add_generation_prompt")
        tail = re.sub(rf"{opened[0].rstrip()}(\\n|\n)*", "", tail)
        tokenizer.chat_template = head + begins + tail
    prompt = _prompt(tokenizer, PROBE)
    if SYSTEM not in prompt or OPENED.search(prompt):
        raise BadInput(
            f"The chat template of the model in {folder} leaves out the system message or opens "
            f"the reasoning's tag itself, and could not be changed: write one to "
            f"{folder / 'chat_template.jinja'}.",
            key="chat-template",
        )
    return tokenizer


def _prompt(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """The prompt's text; "" where the template refuses it."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError:
        return ""


def _check_embeddings(tokenizer: Any, folder: Path) -> None:
    file = folder / "config.json"
    shape = read_json(file) if file.is_file() else {}
    rows = shape.get("text_config", shape).get("vocab_size")
    extra = {token: i for token, i in tokenizer.get_added_vocab().items() if rows and i >= rows}
    if extra:
        token, number = min(extra.items(), key=lambda item: item[1])
        raise BadInput(
            f"The tokenizer in {folder} has the token {token!r} with id {number} and the model "
            f"embeddings for {rows}: resize the model's embeddings and save it, or remove the "
            f"token.",
            key="tokens-without-embeddings",
        )
