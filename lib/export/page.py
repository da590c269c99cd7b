"""A page that shows base and trained answers side by side, with their rewards (Gradio 6).

build(ask, samples, config).launch(server_name="127.0.0.1", share=False)
write_space(run, config, run.folder / "space")      # the same page, ready for a Space
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lib.config import ROOT, Config
from lib.engines import Messages
from lib.export.examples import reward_table, write_samples
from lib.export.hub import conversation, public_name
from lib.files import write_json
from lib.runs import Run

# (model's name, conversation) → the answer so far, again and again
Ask = Callable[[str, Messages], Iterator[str]]


def build(ask: Ask, samples: Sequence[dict], config: Config, folder: Path) -> Any:
    """A `gradio.Blocks`.

    Args:
        ask: "base" and "trained" are the models' names.
        samples: rows of `sample_prompts.jsonl`; only their answers can be paid, since a question
            of one's own has no gold answer.
        folder: with `prompt.json`, how a question is put.
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
                yield texts["base"], texts["trained"], []
        yield *texts.values(), rewards_of(config, row, texts)

    with gr.Blocks(title="Before and after") as page:
        gr.Markdown(f"## Before and after\n{public_name(config)}, trained on {config.task}")
        question = gr.Textbox(label="Question", lines=2, elem_id="question")
        button = gr.Button("Ask both", variant="primary", elem_id="ask")
        with gr.Row():
            base = gr.Textbox(label="Base", lines=8, elem_id="base")
            trained = gr.Textbox(label="Trained", lines=8, elem_id="trained")
        rewards = gr.Dataframe(
            headers=["reward", "base", "trained"], label="Rewards (of the samples)", elem_id="paid"
        )
        gr.Examples([[row["question"]] for row in samples[:8]], question)
        button.click(compare, question, [base, trained, rewards])
        question.submit(compare, question, [base, trained, rewards])
    return page


def rewards_of(config: Config, row: dict | None, texts: dict[str, str]) -> list[list]:
    """What each reward pays, a line each: name, base, trained; none without a gold answer."""
    if row is None:
        return []
    paid = [reward_table(config, [row], [text])[0] for text in texts.values()]
    return [[name, *(p[name] for p in paid)] for name in paid[0]]


def ask_server(server: Any, max_tokens: int) -> Ask:
    """Answers from a `lib.export.serve.Server` that serves "base" and "trained"."""

    def ask(name: str, messages: Messages) -> Iterator[str]:
        text = ""
        for piece in server.stream(messages, max_tokens, name):
            text += piece
            yield text

    return ask


def ask_transformers(folder: Path, config: Config) -> Ask:
    """Answers from transformers in this process: what a Space without a GPU can do."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from lib.models import load_tokenizer

    base = os.environ.get("BASE_MODEL") or public_name(config)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folder)
    tokenizer = load_tokenizer(folder)

    def ask(name: str, messages: Messages) -> Iterator[str]:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            settings = dict(max_new_tokens=config.completion_tokens, do_sample=False)
            if name == "base":
                with model.disable_adapter():
                    out = model.generate(**inputs, **settings)
            else:
                out = model.generate(**inputs, **settings)
        yield tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return ask


_APP = """from pathlib import Path

from lib.export.examples import run_config
from lib.export.page import ask_transformers, build
from lib.files import read_jsonl

here = Path(__file__).parent
config = run_config(here / "adapter")
page = build(
    ask_transformers(here / "adapter", config),
    read_jsonl(here / "sample_prompts.jsonl"),
    config,
    here / "adapter",
)
page.launch(share=False)
"""
_NEEDS = (
    *("torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "scipy", "pandas"),
    *("pydantic", "pyyaml", "psutil", "tqdm", "math-verify", "rouge-score", "reasoning-gym"),
)


def write_space(run: Run, config: Config, folder: Path) -> Path:
    """A Space's folder: the page, the adapter, samples and the suite's own code; nothing is sent.

    A Space reads the base model from the Hub (or from BASE_MODEL).
    """
    from importlib.metadata import version

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
