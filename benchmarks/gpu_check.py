"""Run the suite in small on the GPU that is here, and write down what it measured.

    make gpu-check                        # or: python -m benchmarks.gpu_check [-p key value …]

Writes benchmarks/results/gpu_check_<gpu>.json: steps, tokens a second, peak GPU
memory of each notebook, versions, and accuracy before and after. Then times a step
beside TRL's, with and without vLLM, and Unsloth's (`benchmarks/step.py`), into
step_demo_<gpu>.json and step_gsm8k_<gpu>.json.
"""

import re
import subprocess
import sys
import threading
import time

from lib.config import ROOT, resolve
from lib.errors import BadInput
from lib.hardware import detect_hardware
from lib.runs import Run, read_json, read_jsonl, run_folder, write_json
from lib.suite import main as run_suite
from lib.suite import read_arguments

RESULTS = ROOT / "benchmarks" / "results"


class PeakMemory:
    """The most GPU memory in use while it watches, in MiB, as the driver counts it."""

    def __init__(self):
        self.peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join()

    def _loop(self):
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not self._stop.wait(0.5):
            asked = subprocess.run(command, capture_output=True, text=True)
            if asked.returncode == 0 and asked.stdout.strip():
                self.peak = max(self.peak, int(asked.stdout.split()[0]))


def main() -> int:
    hardware = detect_hardware()
    if not hardware.gpu:
        print("gpu-check needs a GPU and there is none: run `make demo` instead.", file=sys.stderr)
        return 2
    arguments = ["gpu_check", *sys.argv[1:]]
    try:
        config = resolve("gpu_check", read_arguments(arguments)[1])
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    started = time.time()
    with PeakMemory() as memory:
        code = run_suite(arguments)
    if code:
        return code
    run = Run(run_folder(config))
    result = measured(run) | {
        "gpu": hardware.gpu,
        "peak_gpu_mib": memory.peak,
        "seconds": round(time.time() - started),
    }
    name = re.sub(r"\W+", "_", hardware.gpu.lower()).strip("_")
    write_json(RESULTS / f"gpu_check_{name}.json", result)
    print(f"Written to {Run.shown(RESULTS / f'gpu_check_{name}.json')}")
    for shape in ("demo", "gsm8k"):
        file = RESULTS / f"step_{shape}_{name}.json"
        command = [sys.executable, "benchmarks/step.py", "--shape", shape, "--json", str(file)]
        code = code or subprocess.run(command, cwd=ROOT).returncode
    return code


def measured(run: Run) -> dict:
    """What a finished run has to say of its speed and its success."""
    record, log = read_json(run.record), read_jsonl(run.train_log)
    seconds = log[-1]["seconds"] - log[0]["seconds"]
    tokens = log[-1]["num_tokens"] - log[0]["num_tokens"]
    return {
        "steps": len(log),
        "seconds_a_step": round(seconds / max(1, len(log) - 1), 2),
        "tokens_a_second": round(tokens / seconds, 1) if seconds else None,
        "stages": record["finished"],
        "comparison": read_json(run.evals / "comparison.json"),
        "config": record["config"],
        "versions": record["versions"],
        "python": record["python"],
        "commit": record["commit"],
    }


if __name__ == "__main__":
    sys.exit(main())
