"""What a person sees of a trained model: samples of its task, a chat, a page (Gradio 6), its card.

example_eval("outputs/demo/adapter", n=4)           # question, expected, answer, right, rewards
chat_box(server, run.merged, max_tokens=256)        # an ipywidgets box
build(ask, samples, config, run.merged).launch(server_name="127.0.0.1", share=False)
write_space(run, config, run.folder / "space")      # the same page, ready for a Space
write_card(run.merged, run, config)                 # README.md with model-index results
push(run.merged, "owner/name")                      # to the Hub, private; the token is HF_TOKEN's
"""

import html
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from lib.adapters import conversation, data_name, is_adapter, public_name
from lib.config import ROOT, Config, find_path
from lib.engines import Completion, Messages, Sampling, TransformersEngine, lora_rank
from lib.errors import BadInput
from lib.evaluation.comparison import HEADER, comparison_rows
from lib.export import hub_token, load_trained
from lib.export.certificate import questions, readable
from lib.files import read_json, read_jsonl, write_json, write_jsonl
from lib.hardware import Hardware
from lib.models import EMBEDDED, load_tokenizer, model_folder
from lib.rewards import recipe_rewards, score
from lib.runs import Run
from lib.tasks import TASKS, get_format, judge

Ask = Callable[..., Iterator[str]]  # (conversation, model=name) → the answer in pieces

# --- a folder by itself -------------------------------------------------------------------------


def run_config(path: str | Path) -> tuple[Path, Config]:
    """A trained folder (adapter, merged, checkpoint …) as a full path, and its run's configuration.
    BadInput: there is no such folder, or it lies in no run's."""
    folder = find_path(path)
    if folder is None or not folder.is_dir():
        raise BadInput(f"There is no folder {path}.", key="no-folder")
    for place in (folder, *folder.parents):
        if "config" in (record := read_json(place / "run.json", {})):
            known = {k: v for k, v in record["config"].items() if k in Config.model_fields}
            config = Config.model_construct(**known)  # it was checked when the run began
            if record.get("recipe"):  # its data and rewards may lie beside it
                config._recipe = Path(record["recipe"])
            return folder, config
    raise BadInput(f"{path} lies in no run's folder (its run.json has the settings).", key="no-run")


def load_engine(folder: Path, config: Config) -> TransformersEngine:
    """The trained model in a folder, by transformers in this process."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading weights
    logging.set_verbosity_error()
    base = model_folder(config)
    model = load_trained(base, folder, dtype="bfloat16").eval()
    return TransformersEngine(model, load_tokenizer(base if is_adapter(folder) else folder))


def answer(path: str | Path, questions: Sequence[str]) -> list[str]:
    """Greedy answers to questions that are asked as in training (`prompt.json`)."""
    folder, config = run_config(path)
    prompts = [conversation(folder, question) for question in questions]
    sampling = Sampling(max_tokens=config.completion_tokens)
    return [a.text for [a] in load_engine(folder, config).generate(prompts, sampling)]


def example_eval(path: str | Path, n: int = 8) -> list[dict[str, Any]]:
    """A trained folder on `n` held-out samples of its task: a row each with question, expected,
    answer, right (not of texts), and each reward before its weight."""
    folder, config = run_config(path)
    engine, tag = load_engine(folder, config), get_format(config.prompt_format).answer_tag
    task, problems, rows = questions(config, engine.tokenizer, n)
    sampling = Sampling(max_tokens=config.completion_tokens)
    answers = [a for [a] in engine.generate([row["prompt"] for row in rows], sampling)]
    table = []
    paid = rewards_of(config, rows, answers)
    for problem, a, rewards in zip(problems, answers, paid, strict=True):
        grades = judge(task, problem, a.text, a.finish_reason == "length", tag)
        shown = {"question": problem.question, "expected": problem.answer, "answer": a.text}
        right = {"right": grades["strict"]} if "strict" in grades else {}
        table.append(shown | right | rewards)
    return table


def rewards_of(config: Config, rows: Sequence[dict], answers: Sequence[Completion]) -> list[dict]:
    """What each of the recipe's rewards pays for each answer, before its weight."""
    paid = score(recipe_rewards(config)[0], rows, answers)
    return [dict(zip(paid, values, strict=True)) for values in zip(*paid.values(), strict=True)]


def write_samples(config: Config, file: Path) -> list[dict]:
    """`sample_prompts.jsonl`: twenty held-out questions that fit the context, with the conversation
    and the gold answer."""
    _, _, rows = questions(config, load_tokenizer(model_folder(config)), 20)
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
    """An ipywidgets box: which model, what is asked (as `folder`'s `prompt.json` says), and the
    exchange so far."""
    import ipywidgets

    model = ipywidgets.Dropdown(options=server.models[::-1], description="model")
    question = ipywidgets.Text(placeholder="Ask", description="you")
    button = ipywidgets.Button(description="Ask", button_style="primary")
    said = ipywidgets.HTML()

    def ask(_: Any) -> None:
        if asked := question.value.strip():
            question.value, button.disabled = "", True
            text = html.escape(reply(server, folder, asked, max_tokens, model.value))
            you = f"<b>you</b>: {html.escape(asked)}"
            said.value += f"<p>{you}<br><b>{model.value}</b>: {text}"
            button.disabled = False

    button.on_click(ask)
    return ipywidgets.VBox([ipywidgets.HBox([model, question, button]), said])


# --- a page -------------------------------------------------------------------------------------


def build(ask: Ask, samples: Sequence[dict], config: Config, folder: Path) -> Any:
    """A `gradio.Blocks`: one question, the answers of "base" and "trained", and their rewards. Only
    answers to `samples` can be paid, since a question of one's own has no gold answer."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    by_question = {row["question"]: row for row in samples}

    def compare(question: str) -> Iterator[tuple[str, str, list[list]]]:
        row = by_question.get(question)
        messages = row["prompt"] if row else conversation(folder, question)
        texts = {"base": "", "trained": ""}
        for name in texts:
            for piece in ask(messages, model=name):
                texts[name] += piece
                yield *texts.values(), []
        paid = paid_lines(config, row, [*texts.values()]) if row and config.rewards else []
        yield *texts.values(), paid

    with gr.Blocks(title="Before and after") as page:
        gr.Markdown(f"## Before and after\n{public_name(config)}, trained on {data_name(config)}")
        question = gr.Textbox(label="Question", lines=2, elem_id="question")
        button = gr.Button("Ask both", variant="primary", elem_id="ask")
        with gr.Row():
            base = gr.Textbox(label="Base", lines=8, elem_id="base")
            trained = gr.Textbox(label="Trained", lines=8, elem_id="trained")
        label, headers = "Rewards, for the examples below", ["reward", "base", "trained"]
        rewards = gr.Dataframe(headers=headers, label=label, elem_id="paid")
        gr.Examples([[row["question"]] for row in samples[:8]], question)
        gr.on([button.click, question.submit], compare, question, [base, trained, rewards])
    return page


def paid_lines(config: Config, row: dict, texts: Sequence[str]) -> list[list]:
    """A line a reward: its name, and what it pays each text."""
    answers = [Completion(text, tuple(text.encode()), "stop") for text in texts]
    base, trained = rewards_of(config, [row] * 2, answers)
    return [[name, base[name], trained[name]] for name in base]


def ask_transformers(folder: Path, config: Config) -> Ask:
    """Answers from transformers in this process: what a Space without a GPU can do."""
    engine = load_engine(folder, config)
    sampling = Sampling(max_tokens=config.completion_tokens)

    def ask(messages: Messages, model: str) -> Iterator[str]:
        with engine.model.disable_adapter() if model == "base" else nullcontext():
            [[completion]] = engine.generate([messages], sampling)
        yield completion.text

    return ask


_APP = """import os
from pathlib import Path

from lib.export.page import ask_transformers, build, run_config
from lib.files import read_jsonl

here = Path(__file__).parent
adapter, config = run_config(here / "adapter")
config = config.model_copy(update={"model": os.environ.get("BASE_MODEL", config.model)})
samples = read_jsonl(here / "sample_prompts.jsonl")
build(ask_transformers(adapter, config), samples, config, adapter).launch(share=False)
"""
_NEEDS = (
    *("torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "scipy", "pandas"),
    *("pydantic", "pyyaml", "psutil", "tqdm", "rouge-score", "reasoning-gym"),
)


def write_space(run: Run, config: Config, folder: Path) -> Path:
    """A Space's folder: the page, the adapter, samples, the suite's code and the recipe's own
    rewards, of which reward models are left out; nothing is sent.

    A Space reads the base model from the Hub (or from BASE_MODEL).
    """
    ignore = shutil.ignore_patterns("__pycache__")
    for name, source in (("adapter", run.adapter), ("lib", ROOT / "lib")):
        shutil.copytree(source, folder / name, dirs_exist_ok=True, ignore=ignore)
    rewards = {}
    for name, function in zip(config.rewards, recipe_rewards(config)[0], strict=True):
        path, colon, attribute = name.partition(":")
        if colon:
            shutil.copy(config.find(path), folder)
        if not hasattr(function, "own"):
            rewards[f"{Path(path).name}{colon}{attribute}"] = config.rewards[name]
    there = {"model": public_name(config), "output_dir": "outputs", "rewards": rewards}
    write_json(folder / "run.json", {"config": config.model_dump() | there})
    write_samples(config, folder / "sample_prompts.jsonl")
    (folder / "app.py").write_text(_APP)
    needs = [f"{name}=={version(name).split('+')[0]}" for name in _NEEDS]
    (folder / "requirements.txt").write_text("\n".join(needs) + "\n")
    head = f"title: {config.name}\nsdk: gradio\nsdk_version: {version('gradio')}\napp_file: app.py"
    text = "Base and trained answers side by side, with their rewards."
    (folder / "README.md").write_text(f"---\n{head}\n---\n\n{text}\n")
    return folder


# --- its card, and the Hub ----------------------------------------------------------------------

# Licences of the bases in the recipes, by the longest beginning of the name that fits.
LICENCES = {
    "HuggingFaceTB/": "apache-2.0",
    "Qwen/": "apache-2.0",
    "Qwen/Qwen2.5-3B": "other",
    "meta-llama/Llama-3.2": "llama3.2",
    "google/gemma": "gemma",
    "mistralai/": "apache-2.0",
    "LiquidAI/": "other",
}


def write_card(folder: Path, run: Run, config: Config) -> Path:
    """`README.md` of an adapter, merged model or GGUF folder, made of what the run has recorded."""
    from huggingface_hub import ModelCard

    comparison = read_json(run.evals / "comparison.json", {})
    head = card_data(folder, config, comparison)
    record, log = run.recorded(), [row for row in read_jsonl(run.train_log) if "reward" in row]
    certificate = read_json(run.evals / "certificate.json", {"rows": [], "verdict": "Not made."})
    forms, asked = readable(certificate), conversation(folder, "Calculate 9 + 8.")
    source = (ROOT / "lib" / "card.md.jinja").read_text("utf-8")
    text = Environment(trim_blocks=True, undefined=StrictUndefined).from_string(source)
    text = text.render(
        config=config,
        data=data_name(config),
        record=record,
        base=head.base_model,
        licence=head.license,
        embedded=config.model == EMBEDDED,
        data_licence=TASKS[config.task].licence,
        hardware=str(Hardware(**record["hardware"])).removeprefix("no GPU; "),
        header=HEADER,
        comparison=comparison_rows(comparison),
        curve=[(r["step"], f"{r['reward']:.3f}") for r in log[:: max(1, len(log) // 10)]],
        verdict=certificate["verdict"],
        forms=forms,
        rows=[row.values() for row in forms],
        question=json.dumps(asked, ensure_ascii=False, indent=2),
        adapter=is_adapter(folder),
        rank=lora_rank(config.r),
        gguf=max((path.name for path in folder.glob("*.gguf")), default=""),
    )
    file = folder / "README.md"
    ModelCard(f"---\n{head.to_yaml()}\n---\n\n{text}").save(file)
    return file


def card_data(folder: Path, config: Config, comparison: dict[str, Any]) -> Any:
    """The card's metadata, by which the Hub finds and shows the model."""
    from huggingface_hub import EvalResult, ModelCardData

    base, (data, *_) = public_name(config), (*TASKS[config.task].hub, "")
    licences = [name for name in LICENCES if base.startswith(name)]
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=data or config.task,
            dataset_name=config.task,
            dataset_split="test",
            metric_type="accuracy",
            metric_name=name.replace("_", " "),
            metric_value=round(comparison[name]["after"], 4),
        )
        for name in ("greedy_strict", "greedy_lenient")
        if name in comparison
    ]
    return ModelCardData(
        base_model=base,
        datasets=[data] if data else None,
        library_name="peft" if is_adapter(folder) else "transformers",
        license=LICENCES[max(licences, key=len)] if licences else "other",
        model_name=f"{base.split('/')[-1]}-{config.name}",
        pipeline_tag="text-generation",
        tags=["grpo", "trl", "unsloth", *(["gguf"] if any(folder.glob("*.gguf")) else [])],
        eval_results=results or None,
    )


def push(folder: Path, repository: str) -> str:
    """Upload a folder (adapter, merged model or GGUF files) to the Hub, private; the commit's
    address. BadInput: no HF_TOKEN in the environment, or the Hub refuses."""
    from huggingface_hub import HfApi

    token = hub_token()
    try:
        hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
        hub.create_repo(repository, private=True, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=folder))
    except Exception as error:  # refused, no connection, no such owner: one way out
        raise BadInput(
            f"{repository} could not be pushed to the Hub ({type(error).__name__}): check the "
            f"name, the token's rights and the connection; the model is kept in {folder.name}.",
            key="hub",
        ) from error
