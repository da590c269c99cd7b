"""A chat with a served model, in a notebook.

display(chat_box(server, run.merged, max_tokens=256))
"""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.errors import BadInput
from lib.export.hub import conversation


def reply(server: Any, folder: Path, question: str, max_tokens: int, model: str = "") -> str:
    """The whole answer, or the sentence that says why there is none."""
    try:
        answer = server.chat(conversation(folder, question), max_tokens, model)
        return answer.choices[0].message.content or ""
    except BadInput as error:
        return str(error)


def transcript(
    server: Any, folder: Path, questions: Sequence[str], max_tokens: int
) -> list[dict[str, str]]:
    """Each question and what each served model says to it: the chat without its widget."""
    return [
        {"question": question}
        | {name: reply(server, folder, question, max_tokens, name) for name in server.models}
        for question in questions
    ]


def chat_box(server: Any, folder: Path, max_tokens: int) -> Any:
    """An ipywidgets box: which model, what is asked, and the exchange so far."""
    import ipywidgets

    model = ipywidgets.Dropdown(options=server.models[::-1], description="model")
    question = ipywidgets.Text(placeholder="Ask, and press Enter", description="you")
    button = ipywidgets.Button(description="Ask", button_style="primary")
    said = ipywidgets.HTML()

    def ask(_: Any) -> None:
        if not question.value.strip():
            return
        answer = reply(server, folder, question.value, max_tokens, model.value)
        said.value += (
            f"<p><b>you</b>: {html.escape(question.value)}<br>"
            f"<b>{model.value}</b>: {html.escape(answer)}</p>"
        )
        question.value = ""

    button.on_click(ask)
    return ipywidgets.VBox([ipywidgets.HBox([model, question, button]), said])
