"""What a person sees of a trained model: samples of its task, a chat, a page (Gradio 6).

example_eval("outputs/demo/adapter", n=4)           # question, expected, answer, right, rewards
chat_box(server, run.merged, max_tokens=256)        # an ipywidgets box
build(ask, samples, config, run.merged).launch(server_name="127.0.0.1", share=False)
write_space(run, config, run.folder / "space")      # the same page, ready for a Space
"""

import html
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lib.adapters import conversation, is_adapter, public_name
from lib.config import ROOT, Config
from lib.engines import Completion, Messages, Sampling, TransformersEngine
from lib.errors import BadInput
from lib.export import load_merged
from lib.files import read_json, write_json, write_jsonl
from lib.models import load_tokenizer, model_folder
from lib.rewards import recipe_rewards, score
from lib.runs import Run
from lib.tasks import fitting_rows, get_format, judge, load_problems, make_rows

# (model's name, conversation) → the answer so far, again and again
Ask = Callable[[str, Messages], Iterator[str]]

# --- a folder by itself -------------------------------------------------------------------------


def run_config(path: str | Path) -> tuple[Path, Config]:
    """A trained folder (adapter, merged, checkpoint …) as a full path, and its run's configuration.

    Raises:
        BadInput: there is no such folder, or it lies in no run's.
    """
    folder = next((p for p in (Path(path).expanduser(), ROOT / path) if p.is_dir()), None)
    if folder is None:
        raise BadInput(f"There is no folder {path}.", key="no-folder")
    folder = folder.resolve()
    for place in (folder, *folder.parents):
        if (place / "run.json").is_file():
            recorded = read_json(place / "run.json")["config"]
            known = {k: v for k, v in recorded.items() if k in Config.model_fields}
            return folder, Config.model_construct(**known)  # it was checked when the run began
    raise BadInput(f"{path} lies in no run's folder (one with run.json).", key="no-run")


def _engine(folder: Path, config: Config) -> TransformersEngine:
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading weights
    logging.set_verbosity_error()
    base = model_folder(config)
    tokenizer = load_tokenizer(base if is_adapter(folder) else folder)
    return TransformersEngine.around(load_merged(base, folder).eval(), tokenizer)


def answer(path: str | Path, questions: Sequence[str]) -> list[str]:
    """Greedy answers to questions that are asked as in training (`prompt.json`)."""
    folder, config = run_config(path)
    prompts = [conversation(folder, question) for question in questions]
    sampling = Sampling(max_tokens=config.completion_tokens)
    return [a.text for [a] in _engine(folder, config).generate(prompts, sampling)]


def example_eval(path: str | Path, n: int = 8) -> list[dict[str, Any]]:
    """A trained folder on `n` held-out samples of its task.

    Returns: a row a sample: question, expected, answer, right (None for texts), and each reward
        before its weight.
    """
    folder, config = run_config(path)
    task, _, problems, examples = load_problems(config)
    rows = make_rows(problems[:n], config.prompt_format, config.shots, examples)
    engine, tokens = _engine(folder, config), config.completion_tokens
    rows, _ = fitting_rows(rows, engine.tokenizer, config, tokens)
    prompts = [row["prompt"] for row in rows]
    answers = [a for [a] in engine.generate(prompts, Sampling(max_tokens=tokens))]
    rewards, tag = rewards_of(config, rows, answers), get_format(config.prompt_format).answer_tag
    by_id = {problem.id: problem for problem in problems}
    table = []
    for row, a, paid in zip(rows, answers, rewards, strict=True):
        grades = judge(task, by_id[row["id"]], a.text, a.finish_reason == "length", tag)
        shown = {"question": row["question"], "expected": row["answer"], "answer": a.text}
        table.append(shown | {"right": grades.get("strict")} | paid)
    return table


def rewards_of(config: Config, rows: Sequence[dict], answers: Sequence[Completion]) -> list[dict]:
    """What each of the recipe's rewards pays for each answer, before its weight."""
    paid = score(recipe_rewards(config)[0], rows, answers)
    return [dict(zip(paid, values, strict=True)) for values in zip(*paid.values(), strict=True)]


def write_samples(config: Config, file: Path, n: int = 20) -> list[dict]:
    """`sample_prompts.jsonl`: held-out questions with the conversation and the gold answer."""
    _, _, problems, examples = load_problems(config)
    rows = make_rows(problems[:n], config.prompt_format, config.shots, examples)
    write_jsonl(file, rows)
    return rows


# --- a chat in a notebook -----------------------------------------------------------------------


def reply(server: Any, folder: Path, question: str, max_tokens: int, model: str = "") -> str:
    """The answer of a served model, or the sentence that says why there is none."""
    try:
        answer = server.chat(conversation(folder, question), max_tokens, model)
        return answer.choices[0].message.content or ""
    except BadInput as error:
        return str(error)


def chat_box(server: Any, folder: Path, max_tokens: int) -> Any:
    """An ipywidgets box: which model, what is asked, and the exchange so far.

    Args:
        folder: with `prompt.json`, how a question is put.
    """
    import ipywidgets

    model = ipywidgets.Dropdown(options=server.models[::-1], description="model")
    question = ipywidgets.Text(placeholder="Ask", description="you")
    button = ipywidgets.Button(description="Ask", button_style="primary")
    said = ipywidgets.HTML()

    def ask(_: Any) -> None:
        asked = question.value.strip()
        if not asked:
            return
        question.value, button.disabled = "", True
        answer = reply(server, folder, asked, max_tokens, model.value)
        said.value += (
            f"<p><b>you</b>: {html.escape(asked)}<br><b>{model.value}</b>: {html.escape(answer)}"
        )
        button.disabled = False

    button.on_click(ask)
    return ipywidgets.VBox([ipywidgets.HBox([model, question, button]), said])


# --- a page -------------------------------------------------------------------------------------


def build(ask: Ask, samples: Sequence[dict], config: Config, folder: Path) -> Any:
    """A `gradio.Blocks`: one question, the answers of "base" and "trained", and their rewards.

    Args:
        samples: rows of `write_samples`; only their answers can be paid, since a question of one's
            own has no gold answer.
        folder: as of `chat_box`.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    by_question = {row["question"]: row for row in samples}

    def compare(question: str) -> Iterator[tuple[str, str, list[list]]]:
        row = by_question.get(question)
        messages = row["prompt"] if row else conversation(folder, question)
        texts = {"base": "", "trained": ""}
        for name in texts:
            for text in ask(name, messages):
                texts[name] = text
                yield *texts.values(), []
        yield *texts.values(), paid_lines(config, row, [*texts.values()]) if row else []

    with gr.Blocks(title="Before and after") as page:
        gr.Markdown(f"## Before and after\n{public_name(config)}, trained on {config.task}")
        question = gr.Textbox(label="Question", lines=2, elem_id="question")
        button = gr.Button("Ask both", variant="primary", elem_id="ask")
        with gr.Row():
            base = gr.Textbox(label="Base", lines=8, elem_id="base")
            trained = gr.Textbox(label="Trained", lines=8, elem_id="trained")
        rewards = gr.Dataframe(
            headers=["reward", "base", "trained"],
            label="Rewards, for the examples below",
            elem_id="paid",
        )
        gr.Examples([[row["question"]] for row in samples[:8]], question)
        gr.on([button.click, question.submit], compare, question, [base, trained, rewards])
    return page


def paid_lines(config: Config, row: dict, texts: Sequence[str]) -> list[list]:
    """A line a reward: its name, and what it pays each text."""
    answers = [Completion(text, tuple(text.encode()), "stop") for text in texts]
    base, trained = rewards_of(config, [row] * 2, answers)
    return [[name, base[name], trained[name]] for name in base]


def ask_server(server: Any, max_tokens: int) -> Ask:
    """Answers from a `lib.export.serve.Server` that serves "base" and "trained"."""

    def ask(name: str, messages: Messages) -> Iterator[str]:
        text = ""
        for piece in server.stream(messages, max_tokens, name):
            text += piece
            yield text

    return ask


def ask_transformers(adapter: Path, config: Config) -> Ask:
    """Answers from transformers in this process: what a Space without a GPU can do."""
    import contextlib

    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = os.environ.get("BASE_MODEL") or public_name(config)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter)
    engine = TransformersEngine.around(model, load_tokenizer(adapter))
    sampling = Sampling(max_tokens=config.completion_tokens)

    def ask(name: str, messages: Messages) -> Iterator[str]:
        with model.disable_adapter() if name == "base" else contextlib.nullcontext():
            [[completion]] = engine.generate([messages], sampling)
        yield completion.text

    return ask


_APP = """from pathlib import Path

from lib.export.page import ask_transformers, build, run_config
from lib.files import read_jsonl

here = Path(__file__).parent
adapter, config = run_config(here / "adapter")
samples = read_jsonl(here / "sample_prompts.jsonl")
build(ask_transformers(adapter, config), samples, config, adapter).launch(share=False)
"""
_NEEDS = (
    *("torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "scipy", "pandas"),
    *("pydantic", "pyyaml", "psutil", "tqdm", "math-verify", "rouge-score", "reasoning-gym"),
)


def write_space(run: Run, config: Config, folder: Path) -> Path:
    """A Space's folder: the page, the adapter, samples and the suite's own code; nothing is sent.

    A Space reads the base model from the Hub (or from BASE_MODEL).
    """
    for name, source in (("adapter", run.adapter), ("lib", ROOT / "lib")):
        shutil.copytree(
            source, folder / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    write_json(folder / "run.json", {"config": config.model_dump()})
    write_samples(config, folder / "sample_prompts.jsonl")
    (folder / "app.py").write_text(_APP)
    needs = [f"{name}=={version(name).split('+')[0]}" for name in _NEEDS]
    (folder / "requirements.txt").write_text("\n".join(needs) + "\n")
    head = f"title: {config.name}\nsdk: gradio\nsdk_version: {version('gradio')}\napp_file: app.py"
    (folder / "README.md").write_text(
        f"---\n{head}\n---\n\nBase and trained answers side by side, with their rewards.\n"
    )
    return folder
