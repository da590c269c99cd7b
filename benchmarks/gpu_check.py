"""Run the suite in small on the GPU that is here, and write down what it measured.

    make gpu-check                        # or: python -m benchmarks.gpu_check [-p key value …]

Two recipes, each with the memory of a 16 GB card: `gpu_check` (SmolLM2-135M, small sums) and
`qwen2.5-0.5b_gsm8k` (Qwen2.5-0.5B-Instruct, real word problems). benchmarks/results/gpu_<gpu>.json
then holds for each: accuracy before and after with its interval, steps, tokens a second, GPU memory
taken and planned, versions. Then the steps of both models are timed beside TRL's, with and without
vLLM, and Unsloth's (`benchmarks/step.py`): step_demo_<gpu>.json and step_gsm8k_<gpu>.json.
"""

import re
import subprocess
import sys
from dataclasses import asdict
from statistics import median

from lib.config import ROOT, Config, resolve
from lib.errors import BadInput
from lib.hardware import Hardware, detect_hardware
from lib.memory import estimate, read_shape
from lib.models import model_folder
from lib.runs import Run, read_json, read_jsonl, run_folder, write_json
from lib.suite import main as run_suite
from lib.suite import read_arguments

RESULTS = ROOT / "benchmarks" / "results"
RECIPES = ("gpu_check", "qwen2.5-0.5b_gsm8k")
CAP = ["-p", "gpu_memory_cap", "16.0"]
SHAPES = {"demo": "gpu_check", "gsm8k": "qwen2.5-0.5b_gsm8k"}  # a step of whose model


def main() -> int:
    hardware = detect_hardware()
    if not hardware.gpu:
        print("gpu-check needs a GPU and there is none: run `make demo` instead.", file=sys.stderr)
        return 2
    asked = {recipe: [recipe, *CAP, *sys.argv[1:]] for recipe in RECIPES}
    try:
        configs = {name: resolve(name, read_arguments(asked[name])[1]) for name in RECIPES}
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    gpu = re.sub(r"\W+", "_", hardware.gpu.lower()).strip("_")
    for recipe, config in configs.items():
        if code := run_suite(asked[recipe]):
            return code
        record_run(config, hardware, gpu)
    for shape, recipe in SHAPES.items():
        file = RESULTS / f"step_{shape}_{gpu}.json"
        command = [sys.executable, "benchmarks/step.py", "--shape", shape, "--json", str(file)]
        command += ["--model", configs[recipe].model]
        if code := subprocess.run(command, cwd=ROOT).returncode:
            return code
    return 0


def record_run(config: Config, hardware: Hardware, gpu: str) -> None:
    """Add what a finished run measured to benchmarks/results/gpu_<gpu>.json."""
    file = RESULTS / f"gpu_{gpu}.json"
    known = read_json(file) if file.is_file() else {"hardware": asdict(hardware)}
    write_json(file, known | {config.name: measured(config)})
    print(f"Written to {Run.shown(file)}")


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
        "GPU memory GiB": record["training_gpu_gib"],
        "planned GiB": need.parts,
        "stages": record["finished"],
        "comparison": read_json(run.evals / "comparison.json"),
        "config": record["config"],
        "versions": record["versions"],
        "python": record["python"],
        "commit": record["commit"],
    }


if __name__ == "__main__":
    sys.exit(main())
