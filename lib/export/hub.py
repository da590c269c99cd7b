"""What goes with a model: how it is to be asked, a card with its evidence, its place on the Hub.

save_prompt(run.adapter, config, examples)      # prompt.json: system text, examples, question
conversation(run.merged, "Calculate 9 + 8.")    # the messages it was trained to answer
write_card(run.merged, run, config)             # README.md with model-index results
push(run.merged, "owner/name")                  # private; the token is HF_TOKEN's
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.config import Config
from lib.engines import Messages
from lib.errors import BadInput
from lib.export.merge import is_adapter
from lib.files import read_json, read_jsonl, write_json
from lib.models import EMBEDDED
from lib.runs import Run
from lib.tasks import Problem, make_rows

EMBEDDED_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
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
DATA = {  # task → the Hub's data set, and its licence
    "gsm8k": ("openai/gsm8k", "mit"),
    "math": ("AI-MO/NuminaMath-TIR", "apache-2.0"),
    "numina": ("AI-MO/NuminaMath-TIR", "apache-2.0"),
    "math500": ("HuggingFaceH4/MATH-500", "mit"),
    "aqua_rat": ("deepmind/aqua_rat", "apache-2.0"),
    "tldr": ("mlabonne/smoltldr", "unknown"),
}


def public_name(config: Config) -> str:
    """The base model's name as others know it, never a path of this machine."""
    if config.model == EMBEDDED:
        return EMBEDDED_NAME
    return Path(config.model).name if Path(config.model).expanduser().exists() else config.model


def save_prompt(folder: Path, config: Config, examples: Sequence[Problem]) -> None:
    """`prompt.json`: the conversation that training put around a question, "{question}" in it."""
    blank = Problem(id="prompt", question="{question}", answer="any", kind="text")
    [row] = make_rows([blank], config.prompt_format, config.shots, examples)
    write_json(folder / "prompt.json", {"messages": row["prompt"]})


def conversation(folder: Path, question: str) -> Messages:
    """The question as the model in the folder was trained to be asked."""
    file = folder / "prompt.json"
    messages = read_json(file)["messages"] if file.is_file() else []
    if not messages:
        return [{"role": "user", "content": question}]
    last = messages[-1]["content"].replace("{question}", question)
    return [*messages[:-1], {"role": "user", "content": last}]


def make_portable(adapter: Path, config: Config) -> None:
    """Name the adapter's base as others know it, in place of the folder it was loaded from."""
    file = adapter / "adapter_config.json"
    if file.is_file():
        write_json(file, read_json(file) | {"base_model_name_or_path": public_name(config)})


def write_card(folder: Path, run: Run, config: Config) -> Path:
    """`README.md` of an adapter, merged model or GGUF folder, made of what the run has recorded."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    base, (data, data_licence) = public_name(config), DATA.get(config.task, (None, "generated"))
    comparison = _json(run.evals / "comparison.json") or {}
    certificate = _json(run.evals / "certificate.json") or {"rows": [], "verdict": "not made"}
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=data or config.task,
            dataset_name=config.task,
            dataset_split="test",
            metric_type="accuracy",
            metric_name=name.replace("_", " "),
            metric_value=round(row["after"], 4),
        )
        for name, row in comparison.items()
        if name in ("greedy_strict", "greedy_lenient")
    ]
    card_data = ModelCardData(
        base_model=base,
        datasets=[data] if data else None,
        library_name="peft" if is_adapter(folder) else "transformers",
        license=_licence(base),
        model_name=f"{base.split('/')[-1]}-{config.name}",
        pipeline_tag="text-generation",
        tags=["grpo", "trl", "unsloth"] + (["gguf"] if any(folder.glob("*.gguf")) else []),
        eval_results=results or None,
    )
    text = _card_text(folder, run, config, base, data_licence, comparison, certificate)
    file = folder / "README.md"
    ModelCard(f"---\n{card_data.to_yaml()}\n---\n\n{text}").save(file)
    return file


def _json(file: Path) -> Any:
    return read_json(file) if file.is_file() else None


def _licence(base: str) -> str:
    fitting = [name for name in LICENCES if base.startswith(name)]
    return LICENCES[max(fitting, key=len)] if fitting else "other"


def _card_text(
    folder: Path,
    run: Run,
    config: Config,
    base: str,
    data_licence: str,
    comparison: dict,
    certificate: dict,
) -> str:
    record, steps = run.recorded(), read_jsonl(run.train_log)
    hardware = record.get("hardware", {})
    where = hardware.get("gpu") or f"{hardware.get('cores')} CPU cores"
    changes = [
        f"| {name.replace('_', ' ')} | {row['before']:.1%} | {row['after']:.1%} | "
        f"{_points(row['difference'])} | {_interval(row['interval_95'])} | {row['problems']} |"
        for name, row in comparison.items()
        if row.get("share", True)
    ]
    forms = [
        f"| {row['form']} | {_percent(row['accuracy'])} | {_number(row['logprob_gap'])} | "
        f"{_percent(row['equal_answers'])} | {row['verdict']} |"
        for row in certificate["rows"]
    ]
    curve = [
        f"| {row['step']} | {row['reward']:.3f} |"
        for row in steps[:: max(1, len(steps) // 10)]
        if "reward" in row
    ]
    question = json.dumps(conversation(folder, "Calculate 9 + 8."), ensure_ascii=False, indent=2)
    parts = [
        f"# {base.split('/')[-1]}, trained with GRPO on {config.task}",
        f"Recipe `{config.name}`, seed {config.seed}, commit {record.get('commit') or 'n/a'}; "
        f"trained on {where} with "
        + ", ".join(f"{k} {v}" for k, v in record.get("versions", {}).items())
        + ".",
        f"- **Base**: {base} ({_licence(base)})"
        + ("; the weights were dequantised from a Q4_1 file" if config.model == EMBEDDED else ""),
        f"- **Data**: {config.task} ({data_licence})",
        "- **Rewards**: " + ", ".join(f"{k} ({v})" for k, v in config.rewards.items()),
        f"- **Settings**: {config.max_steps} steps, {config.prompts_per_step} × "
        f"{config.num_generations} completions a step, learning rate {config.learning_rate}, "
        f"LoRA rank {config.lora_r}, loss {config.loss_type}, beta {config.beta}",
        "## Before and after, on the same held-out problems",
        _table("score | before | after | difference | 95 % interval | problems", changes),
        "## Training",
        _table("step | mean reward", curve),
        "## Does each form answer as the trained policy?",
        certificate["verdict"],
        _table("form | accuracy | nats a token from the policy | equal answers | verdict", forms),
        "## How to ask it",
        "It was trained on conversations of this form (`prompt.json`):",
        f"```json\n{question}\n```",
        *_usage(folder, base),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _usage(folder: Path, base: str) -> list[str]:
    if is_adapter(folder):
        load = (
            f'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
            'model = PeftModel.from_pretrained(base, "REPOSITORY")'
        )
        serve = f"vllm serve {base} --enable-lora --lora-modules trained=REPOSITORY"
        return [f"transformers and peft:\n\n```python\n{load}\n```", f"vLLM: `{serve}`"]
    if files := sorted(folder.glob("*.gguf")):
        return [
            f"llama.cpp: `llama-server -m {files[-1].name} --jinja`",
            "Ollama: `ollama create NAME -f Modelfile`, then `ollama run NAME`",
        ]
    load = 'model = AutoModelForCausalLM.from_pretrained("REPOSITORY")'
    return [f"transformers:\n\n```python\n{load}\n```", "vLLM: `vllm serve REPOSITORY`"]


def _table(head: str, lines: Sequence[str]) -> str:
    if not lines:
        return "Not measured."
    return "\n".join([f"| {head} |", "|" + "---|" * (head.count("|") + 1), *lines])


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{share:.1%}"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"


def _points(share: float | None) -> str:
    return "n/a" if share is None else f"{share * 100:+.1f} points"


def _interval(interval: Sequence[float] | None) -> str:
    return "n/a" if interval is None else f"{interval[0] * 100:+.1f} to {interval[1] * 100:+.1f}"


def push(folder: Path, repository: str) -> str:
    """Upload a folder (adapter, merged model or GGUF files) to the Hub, private.

    Returns: the commit's address.

    Raises:
        BadInput: no HF_TOKEN in the environment, or the Hub refuses.
    """
    from huggingface_hub import HfApi

    token = os.environ.get("HF_TOKEN")
    if not token:
        raise BadInput(
            "push_to_hub needs a token: set the environment variable HF_TOKEN.", key="no-token"
        )
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
