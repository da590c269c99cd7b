"""A model's card with its evidence, and its place on the Hub.

write_card(run.merged, run, config)    # README.md with model-index results
push(run.merged, "owner/name")         # private; the token is HF_TOKEN's
"""

import json
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from lib.adapters import conversation, is_adapter, public_name
from lib.config import ROOT, Config
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
    gguf = max((file.name for file in folder.glob("*.gguf")), default="")
    record, hardware = run.recorded(), run.recorded().get("hardware", {})
    certificate = _json(run.evals / "certificate.json", {"rows": [], "verdict": "Not made."})
    forms = readable(certificate)
    log = [row for row in read_jsonl(run.train_log) if "reward" in row]
    template = Environment(trim_blocks=True, undefined=StrictUndefined).from_string(
        (ROOT / "lib" / "card.md.jinja").read_text("utf-8")
    )
    text = template.render(
        config=config,
        record=record,
        base=base,
        licence=card_data.license,
        embedded=config.model == EMBEDDED,
        data_licence=DATA.get(config.task, ("", "generated"))[1],
        hardware=hardware.get("gpu") or f"{hardware.get('cores')} CPU cores",
        header=HEADER,
        comparison=comparison_rows(comparison),
        curve=[(r["step"], f"{r['reward']:.3f}") for r in log[:: max(1, len(log) // 10)]],
        verdict=certificate["verdict"],
        forms=forms,
        rows=[row.values() for row in forms],
        question=json.dumps(conversation(folder, "Calculate 9 + 8."), ensure_ascii=False, indent=2),
        adapter=is_adapter(folder),
        gguf=gguf,
    )
    file = folder / "README.md"
    ModelCard(f"---\n{card_data.to_yaml()}\n---\n\n{text}").save(file)
    return file


def _json(file: Path, default: Any) -> Any:
    return read_json(file) if file.is_file() else default


def _licence(base: str) -> str:
    fitting = [name for name in LICENCES if base.startswith(name)]
    return LICENCES[max(fitting, key=len)] if fitting else "other"


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
