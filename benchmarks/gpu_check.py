"""Run the suite in small on the GPU that is here, and write down what it measured.

    make gpu-check                        # or: python -m benchmarks.gpu_check [-p key value …]

Two recipes, each with the memory of a 16 GB card: `gpu_check` (SmolLM2-135M, small sums), all its
notebooks, and `qwen2.5-0.5b_gsm8k` (Qwen2.5-0.5B-Instruct, real word problems) by
`benchmarks.accuracy`. benchmarks/results/gpu_<gpu>.json then holds for each: accuracy before and
after with its interval, steps, tokens a second, GPU memory taken and planned, versions. Then the
steps of both models are timed beside TRL's, with and without vLLM, and Unsloth's
(`benchmarks/step.py`): step_demo_<gpu>.json and step_gsm8k_<gpu>.json.
"""

import re
import subprocess
import sys

from benchmarks.accuracy import record_run
from lib.config import ROOT, resolve
from lib.errors import BadInput
from lib.hardware import detect_hardware
from lib.suite import read_arguments

RESULTS = ROOT / "benchmarks" / "results"
CAP = ["-p", "gpu_memory_cap", "16.0"]
RUNS = {  # recipe → what runs it, and with which settings
    "gpu_check": ("lib.suite", []),
    "qwen2.5-0.5b_gsm8k": ("benchmarks.accuracy", ["-p", "backend", "transformers"]),
}
SHAPES = {"demo": "gpu_check", "gsm8k": "qwen2.5-0.5b_gsm8k"}  # a step of whose model


def main(given: list[str]) -> int:
    hardware = detect_hardware()
    if not hardware.gpu:
        print("gpu-check needs a GPU and there is none: run `make demo` instead.", file=sys.stderr)
        return 2
    asked = {recipe: [recipe, *CAP, *own, *given] for recipe, (_, own) in RUNS.items()}
    try:
        configs = {name: resolve(name, read_arguments(asked[name])[1]) for name in asked}
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    gpu = re.sub(r"\W+", "_", hardware.gpu.lower()).strip("_")
    for recipe, (module, _) in RUNS.items():
        if code := run("-m", module, *asked[recipe]):
            return code
        found = record_run(configs[recipe], RESULTS / f"gpu_{gpu}.json")
        if set(found["engines"].values()) != {"vllm"}:
            told = f"vLLM did not generate everywhere ({found['engines']}): 03 or 04 says why."
            print(told, file=sys.stderr)
            return 1
    for shape, recipe in SHAPES.items():
        file = str(RESULTS / f"step_{shape}_{gpu}.json")
        model = configs[recipe].model
        command = ["benchmarks/step.py", "--shape", shape, "--model", model, "--json", file]
        if code := run(*command):
            return code
    return 0


def run(*command: str) -> int:
    """Exit code of a Python program in a process of its own, which gives the GPU's memory back."""
    return subprocess.run([sys.executable, *command], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
