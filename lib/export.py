"""From an adapter to a model of its own: merge, save, and check that it is the same.

state = merged_weights(folder, adapter)     # name → tensor, for `Engine.hand_over`
save_merged(folder, adapter, run.merged)    # 16-bit safetensors with tokenizer
logprob_gaps(models, rows, folder)          # how far models lie apart
"""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.config import ROOT, Config
from lib.engines import Engine, TransformersEngine
from lib.errors import BadInput
from lib.models import load_tokenizer, model_folder
from lib.runs import Run, read_json, written_whole
from lib.sampling import Sampling, chat_text


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter, and not a whole model (as after full fine-tuning)."""
    return (folder / "adapter_config.json").is_file()


def find_candidate(named: str, config: Config, run: Run) -> Path:
    """The model to measure against the base: an adapter, a whole model's folder, or a GGUF file.

    Args:
        named: "" for the run's adapter; "base", "merged" or "gguf" for the run's own; else the
            path of an adapter, a folder with safetensors or a .gguf file, or a Hub name.

    Raises:
        BadInput: there is none.
    """
    folder = Path(named).expanduser()
    if named in ("", "adapter"):
        return run.need(run.adapter, made_by="03_training")
    if named == "merged":
        return run.need(run.merged, made_by="05_merge_export")
    if named == "gguf":
        return _only_gguf(run)
    if named == "base":
        return model_folder(config)
    for path in (folder, ROOT / named):
        if path.is_file() and path.suffix == ".gguf":
            return path.resolve()
        if is_adapter(path):
            if (path / "adapter_model.safetensors").is_file():
                return path.resolve()
            raise BadInput(
                f"The adapter {named} has no adapter_model.safetensors: export it again."
            )
    if folder.suffix == ".gguf":
        raise BadInput(f"There is no file {named}: give the path of a .gguf file.")
    return model_folder(config.model_copy(update={"model": named}))


def _only_gguf(run: Run) -> Path:
    files = sorted((run.folder / "gguf").glob("*.gguf"))
    if len(files) != 1:
        there = ", ".join(file.name for file in files) or "none"
        raise BadInput(
            f"{run.shown(run.folder / 'gguf')} must hold one .gguf file to be measured and has "
            f"{there}: give the path of the one that is meant."
        )
    return files[0]


def load_merged(base: Path, trained: Path, dtype: Any = None) -> Any:
    """The trained model as one: W + (alpha/r)·B·A in each adapted layer (Hu et al. 2021, eq. 3).

    Args:
        base: 16-bit weights that the adapter belongs to.
        trained: the adapter, or a whole model: a folder, or a GGUF file, which is dequantised.
        dtype: of the weights; bf16 by default.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    dtype = dtype or torch.bfloat16
    if trained.suffix == ".gguf":
        return AutoModelForCausalLM.from_pretrained(
            trained.parent, gguf_file=trained.name, dtype=dtype
        )
    if not is_adapter(trained):
        return AutoModelForCausalLM.from_pretrained(trained, dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return PeftModel.from_pretrained(model, trained).merge_and_unload()


def merged_weights(base: Path, trained: Path, dtype: Any = None) -> dict[str, Any]:
    """The merged model's weights, as an engine takes them (tied ones once).

    Raises:
        BadInput: they do not fit into the base model's place.
    """
    from transformers import AutoConfig

    model, shape = load_merged(base, trained, dtype), AutoConfig.from_pretrained(base)
    for size in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers"):
        theirs, ours = getattr(model.config, size), getattr(shape, size)
        if theirs != ours:
            raise BadInput(
                f"{trained.name} has {size} {theirs} and its base {ours}: evaluate it in a run of "
                f"its own, as `model`."
            )
    weights = dict(model.state_dict())
    for tied in getattr(model, "_tied_weights_keys", None) or ():
        if model.config.tie_word_embeddings:
            weights.pop(tied, None)
    return weights


def become_trained(engine: Engine, base: Path, trained: Path, dtype: Any = None) -> None:
    """From now on the engine answers as the trained model: by adapter, or by merged weights."""
    if engine.takes_adapters and is_adapter(trained):
        engine.adapter = trained
    else:
        engine.hand_over(merged_weights(base, trained, dtype).items())


def save_merged(base: Path, trained: Path, folder: Path) -> Path:
    """Write the merged model with its tokenizer as safetensors.

    Merged in 32 bit and kept in fp16, whose steps are an eighth of bf16's: an adapter's
    product is small against the weights, and rounding to bf16 loses part of it.

    Raises:
        BadInput: a weight that fp16 cannot hold.
    """
    import torch
    from transformers import AutoTokenizer

    model = load_merged(base, trained, torch.float32).to(torch.float16)
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise BadInput("A merged weight is too large for fp16: keep the adapter and its base.")
    with written_whole(folder) as beside:
        model.save_pretrained(beside)
        AutoTokenizer.from_pretrained(base).save_pretrained(beside)
    return folder


def load_rounded(base: Path, trained: Path) -> Any:
    """The merged model as bf16 would keep it, in 32 bit like `load_adapted`."""
    import torch

    return load_merged(base, trained, torch.float32).to(torch.bfloat16).float().eval()


def load_adapted(base: Path, trained: Path | None = None) -> Any:
    """A model in 32 bit as transformers (and, with an adapter, peft) runs it: nothing merged."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    dtype = torch.float32
    if trained and not is_adapter(trained):
        base, trained = trained, None
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return PeftModel.from_pretrained(model, trained).eval() if trained else model.eval()


def greedy_answers(model: Any, folder: Path, rows: Sequence[dict], config: Config) -> list[str]:
    """What a loaded model says to each row's prompt; the tokenizer is the folder's."""
    sampling = Sampling(max_tokens=config.completion_tokens, seed=config.seed)
    prompts = [row["prompt"] for row in rows]
    engine = TransformersEngine.around(model, load_tokenizer(folder))
    found = engine.generate(prompts, sampling)
    return [answer.text for [answer] in found]


def logprob_gaps(
    models: dict[str, Any], rows: Sequence[dict], answers: Sequence[str], folder: Path
) -> list[dict]:
    """How far the models' log-probabilities of the same answers lie apart, pair by pair.

    Args:
        rows, answers: prompts, and what to score after each, token by token.
        folder: of the tokenizer.

    Returns: per pair the mean and the largest absolute difference, in nats a token.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [chat_text(tokenizer, row["prompt"]) for row in rows]
    scored = {
        name: _answer_logprobs(model, tokenizer, prompts, answers) for name, model in models.items()
    }
    gaps = []
    for a, b in itertools.combinations(scored, 2):
        gap = (scored[a] - scored[b]).abs()
        gaps.append({"pair": f"{a} – {b}", "mean": gap.mean().item(), "largest": gap.max().item()})
    return gaps


def _answer_logprobs(
    model: Any, tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]
) -> Any:
    """The log-probability of each answer's tokens and its end, all answers in one row."""
    import torch

    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        said = tokenizer(answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([asked + said], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, len(asked) - 1 : -1].float()
        found.append(torch.log_softmax(logits, -1).gather(-1, ids[0, len(asked) :, None])[:, 0])
    return torch.cat(found).cpu()


def push_merged(folder: Path, repository: str) -> str:
    """Upload the merged model to the Hub (private); the token comes from HF_TOKEN.

    Raises:
        BadInput: no token, or the Hub refuses.
    """
    from huggingface_hub import HfApi

    if not os.environ.get("HF_TOKEN"):
        raise BadInput("push_to_hub needs a token: set the environment variable HF_TOKEN.")
    try:
        hub = HfApi()
        hub.create_repo(repository, private=True, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=folder))
    except Exception as error:  # refused, no connection, no such owner: one way out
        raise BadInput(
            f"{repository} could not be pushed to the Hub ({type(error).__name__}): check the "
            f"name, the token's rights and the connection; the model is kept in {folder.name}."
        ) from error


def size_gib(folder: Path) -> float:
    """What the files of a folder take on the disk."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**30


def adapter_report(adapter: Path) -> dict[str, Any]:
    """How far an adapter has moved: rank, and the norm of B, which begins at zero.

    A norm of 0 means that nothing was learned (on a T4, fp16's loss scaling can skip steps).
    """
    from safetensors.torch import load_file

    config = read_json(adapter / "adapter_config.json")
    weights = load_file(adapter / "adapter_model.safetensors")
    moved = sum(w.float().square().sum().item() for k, w in weights.items() if "lora_B" in k)
    return {
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "layers": sum("lora_B" in name for name in weights),
        "norm of B": moved**0.5,
        "size_gib": size_gib(adapter),
    }
