"""A model's card with its evidence, and its place on the Hub.

write_card(run.merged, run, config)    # README.md with model-index results
push(run.merged, "owner/name")         # private; the token is HF_TOKEN's
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lib.adapters import conversation, is_adapter, public_name
from lib.config import Config
from lib.errors import BadInput
from lib.evaluation.compare import HEADER, comparison_rows
from lib.export.certificate import readable
from lib.files import read_json, read_jsonl
from lib.models import EMBEDDED
from lib.runs import Run

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


def write_card(folder: Path, run: Run, config: Config) -> Path:
    """`README.md` of an adapter, merged model or GGUF folder, made of what the run has recorded."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    base, data = public_name(config), DATA.get(config.task, ("", "generated"))[0]
    comparison = _json(run.evals / "comparison.json", {})
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
    text, file = _card_text(folder, run, config, comparison), folder / "README.md"
    ModelCard(f"---\n{card_data.to_yaml()}\n---\n\n{text}").save(file)
    return file


def _json(file: Path, default: Any) -> Any:
    return read_json(file) if file.is_file() else default


def _licence(base: str) -> str:
    fitting = [name for name in LICENCES if base.startswith(name)]
    return LICENCES[max(fitting, key=len)] if fitting else "other"


def _card_text(folder: Path, run: Run, config: Config, comparison: dict) -> str:
    base, record, steps = public_name(config), run.recorded(), read_jsonl(run.train_log)
    certificate = _json(run.evals / "certificate.json", {"rows": [], "verdict": "Not made."})
    hardware = record.get("hardware", {})
    where = hardware.get("gpu") or f"{hardware.get('cores')} CPU cores"
    versions = ", ".join(f"{k} {v}" for k, v in record.get("versions", {}).items())
    curve = [
        (str(row["step"]), f"{row['reward']:.3f}")
        for row in steps[:: max(1, len(steps) // 10)]
        if "reward" in row
    ]
    forms = readable(certificate)
    question = json.dumps(conversation(folder, "Calculate 9 + 8."), ensure_ascii=False, indent=2)
    parts = [
        f"# {base.split('/')[-1]}, trained with GRPO on {config.task}",
        f"Recipe `{config.name}`, seed {config.seed}, commit {record.get('commit') or 'n/a'}; "
        f"trained on {where} with {versions}.",
        f"- **Base**: {base} ({_licence(base)})"
        + ("; the weights were dequantised from a Q4_1 file" if config.model == EMBEDDED else ""),
        f"- **Data**: {config.task} ({DATA.get(config.task, ('', 'generated'))[1]})",
        "- **Rewards**: " + ", ".join(f"{k} ({v})" for k, v in config.rewards.items()),
        f"- **Settings**: {config.max_steps} steps, {config.prompts_per_step} × "
        f"{config.num_generations} completions a step, learning rate {config.learning_rate}, "
        f"LoRA rank {config.r}, loss {config.loss_type}, beta {config.beta}",
        "## Before and after, on the same held-out problems",
        _table(HEADER, comparison_rows(comparison)),
        "## Training",
        _table(["step", "mean reward"], curve),
        "## Does each form answer as the trained policy?",
        certificate["verdict"],
        _table(forms[0], [row.values() for row in forms]) if forms else "",
        "## How to ask it",
        "It was trained on conversations of this form (`prompt.json`):",
        f"```json\n{question}\n```",
        *_usage(folder, base),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [head, ["---"] * len(list(head)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
