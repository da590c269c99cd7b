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
from dataclasses import asdict
from pathlib import Path
from statistics import median

from lib.config import ROOT, Config, resolve
from lib.errors import BadInput
from lib.hardware import Hardware, detect_hardware
from lib.memory import estimate, read_shape
from lib.models import model_folder
from lib.runs import Run, read_json, read_jsonl, run_folder, write_json
from lib.suite import read_arguments

RESULTS = ROOT / "benchmarks" / "results"
CAP = ["-p", "gpu_memory_cap", "16.0"]
RUNS = {  # recipe → what runs it, and with which settings
    "gpu_check": ("lib.suite", []),
    "qwen2.5-0.5b_gsm8k": ("benchmarks.accuracy", ["-p", "backend", "transformers"]),
}
EVALUATIONS = ("base", "trained")
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
        found = record_run(configs[recipe], hardware, RESULTS / f"gpu_{gpu}.json")
        if set(found["engines"]) != {"vllm"}:
            print("vLLM did not start for the evaluation: 04's page says why.", file=sys.stderr)
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


def record_run(config: Config, hardware: Hardware, file: Path) -> dict:
    """Add what a finished run measured to a file of results, and return it."""
    known = read_json(file) if file.is_file() else {"hardware": asdict(hardware)}
    found = measured(config)
    write_json(file, known | {config.name: found})
    print(f"Written to {Run.shown(file)}")
    return found


def measured(config: Config) -> dict:
    """What a finished run has to say of its speed, its memory and its success.

    Seconds and tokens a second are the median step's; tokens are those of completions.
    """
    run = Run(run_folder(config))
    record, log = read_json(run.record), read_jsonl(run.train_log)
    need = estimate(
        config, read_shape(model_folder(config)), detect_hardware(config.gpu_memory_cap)
    )
    tokens = [config.completions_per_step * row["completions/mean_length"] for row in log]
    speeds = [count / row["step_time"] for count, row in zip(tokens, log, strict=True)]
    return {
        "steps": len(log),
        "seconds a step": median(row["step_time"] for row in log),
        "tokens/s": median(speeds),
        "GPU memory GiB": record.get("training_gpu_gib"),
        "planned GiB": need.parts,
        "engines": [read_json(run.evals / f"{name}.json")["engine"] for name in EVALUATIONS],
        "stages": record.get("finished", {}),
        "comparison": read_json(run.evals / "comparison.json"),
        "config": record["config"],
        "versions": record["versions"],
        "python": record["python"],
        "commit": record["commit"],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
