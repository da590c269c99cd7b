"""How a server bears many clients: latency and tokens/s at 1, 8 and 32 of them at once.

    python -m benchmarks.serving [FOLDER] [--requests 32] [--tokens 32] [--gguf FILE] [--json FILE]

The same requests three times, each server in a process of its own: `lib.export.serve.serve_vllm`,
plain `vllm serve` with the same settings, and llama.cpp's server where a GGUF file is given.
Each client sends its next request when its last is answered; the first round of each is not
counted. Latency is of a whole answer, in seconds.
"""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lib.config import resolve
from lib.export.serve import Server, free_port, launch, serve_gguf, serve_vllm, vllm_command
from lib.files import write_json
from lib.hardware import detect_hardware
from lib.models import embedded_folder
from lib.process import installed_versions
from lib.runs import open_run

CLIENTS = (1, 8, 32)


def main() -> int:
    options = _parser().parse_args()
    with TemporaryDirectory() as scratch:
        config = resolve("ci", {"output_dir": scratch, "max_seq_length": 1024})
        run = open_run(config)
        folder = Path(options.folder) if options.folder else embedded_folder()
        log = run.folder / "serve.log"
        starts = {
            "ours": lambda: serve_vllm(folder, config, log),
            "vllm serve": lambda: plain_vllm(folder, config, log),
        }
        if options.gguf:
            starts["llama.cpp"] = lambda: serve_gguf(Path(options.gguf), log, 1024, slots=32)
        result: dict[str, Any] = {"requests": options.requests, "tokens": options.tokens}
        for name, start in starts.items():
            with start() as server:
                load(server, 4, 4, options.tokens)
                result[name] = {
                    n: load(server, n, options.requests, options.tokens) for n in CLIENTS
                }
                for clients, row in result[name].items():
                    shown = ", ".join(f"{key} {value:.2f}" for key, value in row.items())
                    print(f"{name}, {clients} clients: {shown}", flush=True)
    result |= {"hardware": str(detect_hardware()), "versions": installed_versions()}
    if options.json:
        write_json(Path(options.json), result)
    return 0


def load(server: Server, clients: int, requests: int, tokens: int) -> dict[str, float]:
    """That many clients at once, until all requests are answered."""

    def one(number: int) -> tuple[float, int]:
        started = time.perf_counter()
        question = f"Count from {number} upwards, number by number."
        answer = server.chat([{"role": "user", "content": question}], tokens)
        return time.perf_counter() - started, answer.usage.completion_tokens

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(one, range(requests)))
    seconds = time.perf_counter() - started
    latencies = sorted(latency for latency, _ in answers)
    return {
        "p50": latencies[len(latencies) // 2],
        "p95": latencies[min(len(latencies) - 1, int(0.95 * len(latencies)))],
        "tokens_per_s": sum(count for _, count in answers) / seconds,
    }


def plain_vllm(folder: Path, config: Any, log: Path) -> Server:
    """`vllm serve` as its documentation has it, with the same limits."""
    port = free_port()
    command = [*vllm_command(folder), "--served-model-name", "base", "--port", str(port)]
    command += ["--host", "127.0.0.1"]
    command += ["--dtype", config.dtype, "--max-model-len", str(config.max_seq_length)]
    command += ["--enforce-eager", "--max-num-seqs", "256"] if config.profile == "cpu" else []
    return launch("vLLM", command, port, ["base"], log)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="safetensors; the embedded model if left out")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--gguf")
    parser.add_argument("--json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
