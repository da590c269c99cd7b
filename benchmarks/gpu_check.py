"""What a GPU alone can show, in stages of under two minutes, the most telling first.

    make gpu-check                                  # all stages
    python -m benchmarks.gpu_check --stage load policy        # these
    python -m benchmarks.gpu_check --rehearse       # on the CPU, all but what needs a card

Each stage is a process of its own and writes what it measures to
benchmarks/results/gpu_stages_<gpu>.json as it does, so that a card that is lent for ten minutes
leaves what was done. All of them hold the card to 16 GiB and need no network: the model is the
embedded one, but for `accuracy`, which takes longer than the others and is run by name.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lib.config import ROOT, Config, resolve
from lib.files import read_json, read_jsonl, write_json
from lib.hardware import GIB, detect_hardware, gpu_memory_taken
from lib.runs import hushed, open_run

RESULTS = ROOT / "benchmarks" / "results"
LIMIT = 115  # seconds, where --limit does not say more: a T4 takes minutes to start vLLM
BENCHMARKS = {  # system: the switches of Unsloth's trainer, beside which ours is timed
    "ours": {},
    "trl": {},
    "unsloth": {},
    "unsloth-prefix-grouper": {"UNSLOTH_GRPO_PREFIX_GROUPER": "1"},
    "unsloth-packing": {"UNSLOTH_GRPO_SEQ_PACKING": "1"},
    "unsloth-merged-rollouts": {"UNSLOTH_VLLM_MERGED_ROLLOUT": "1"},
    "unsloth-standby": {"UNSLOTH_VLLM_STANDBY": "1"},
}
RESULT = os.environ.get("GPU_CHECK_RESULT", "")  # a stage's own file


def note(**measured: Any) -> None:
    """Add to the stage's result, on the disk at once."""
    file = Path(RESULT)
    if detect_hardware().gpu:
        measured |= {"gpu_gib": round(gpu_memory_taken(), 2)}
    write_json(file, (read_json(file) if file.is_file() else {}) | measured)


def config_of(stage: str, **changes: Any) -> Config:
    given = {"run": f"gpu_check_{stage}", "preflight_prompts": 0, **changes}
    if not detect_hardware().gpu:
        given |= dict(prompts_per_step=2, per_device_train_batch_size=16)
    return resolve("gpu_check", given)


def load() -> None:
    """Import, plug-ins, and the model in 4 bit by Unsloth and vLLM."""
    from lib.models import load_policy

    on_gpu = bool(detect_hardware().gpu)
    config = config_of("load", load_in_4bit=on_gpu)
    with hushed(open_run(config)):
        policy = load_policy(config)
    shares = hasattr(policy.model, "vllm_engine")
    note(backend=policy.backend, in_4_bit=config.load_in_4bit, shares_weights_with_vllm=shares)
    assert not on_gpu or policy.backend == "unsloth", policy.notes


def policy() -> None:
    """vLLM's log-probs are the trainer's, of the fresh adapter and of one that has moved, twice."""
    from lib.models import load_policy
    from lib.training.rollouts import APART, GAP, RolloutEngine, measure_gaps, sample_by_unsloth

    config = config_of("policy")
    with hushed(open_run(config)):
        policy = load_policy(config)
        prompts = [
            policy.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
            for text in ("What is 2 + 3?", "Name a colour.", "Say hello.", "What is 12 + 9?")
        ]
        sample = partial(sample_by_unsloth, policy.model, prompts)
        if not hasattr(policy.model, "vllm_engine"):
            engine = RolloutEngine.start(config, policy)
            engine.trainer = SimpleNamespace(model=policy.model)
            sample = partial(engine.sample, prompts)
        gaps = measure_gaps(policy.model, sample)
    note(nats_a_token=gaps)
    assert len(gaps) == len(APART) and gaps[-1] <= GAP, f"vLLM samples from another: {gaps}"


def steps() -> None:
    """Three steps of GRPO as 03 takes them."""
    train(config_of("steps", max_steps=3, save_steps=3))


def resume() -> None:
    """A fourth step, from the checkpoint of `steps`."""
    log = train(config_of("steps", max_steps=4, save_steps=3, resume=True))
    assert [row["step"] for row in log] == [1, 2, 3, 4], log


def plain() -> None:
    """Three steps by transformers, peft and TRL alone, where Unsloth and vLLM are not installed."""
    plain = dict(backend="transformers", rollout_engine="transformers", optim="adamw_torch")
    train(config_of("plain", max_steps=3, **plain))


def train(config: Config) -> list[dict]:
    from lib.models import load_policy
    from lib.rewards import recipe_rewards
    from lib.tasks import load_problems, make_rows
    from lib.training import make_trainer, save_trained
    from lib.training import train as train_on
    from lib.training.callbacks import StepLog

    run = open_run(config)
    with hushed(run):
        policy = load_policy(config)
        _, training, _, examples = load_problems(config)
        rows = make_rows(training, config.prompt_format, config.shots, examples)
        trainer = make_trainer(policy, rows, *recipe_rewards(config), config, run)
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, StepLog):
                callback.watch = note_log
        note(notes=policy.notes)
        train_on(trainer, config, run)
        save_trained(policy, config, run)
    moved = max(
        p.detach().abs().max().item() for n, p in policy.model.named_parameters() if "lora_B" in n
    )
    note(largest_b=moved)
    assert moved > 0, "the adapter did not move"
    return read_jsonl(run.train_log)


def note_log(log: list[dict]) -> None:
    keys = ("step", "reward", "reward_std", "grad_norm", "completions/mean_length", "step_time")
    note(log=[{key: row[key] for key in keys if key in row} for row in log])


def adapters() -> None:
    """Two adapters in one engine are two, and the first is itself again afterwards; closed, the
    engine gives the card back."""
    import torch

    from lib.engines import Sampling, VllmEngine
    from lib.export import become_trained
    from lib.models import load_with_transformers, model_folder

    config = config_of("adapters")
    folder = model_folder(config)
    on_cpu = config.model_copy(update={"profile": "cpu", "precision": "bf16"})
    question = [[{"role": "user", "content": "Write a sentence about the sea."}]]
    said = {}
    with hushed(open_run(config)), tempfile.TemporaryDirectory() as place:
        for seed in (1, 2):
            model, _ = load_with_transformers(on_cpu, folder)
            torch.manual_seed(seed)
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if "lora_B" in name:
                        weight.normal_(std=0.02)
            model.save_pretrained(f"{place}/{seed}")
        engine = VllmEngine.start(config, folder, rank=config.r)
        for which in ("1", "2", "1 again"):
            become_trained(engine, folder, Path(place, which[0]))
            said[which] = engine.generate(question, Sampling(max_tokens=24))[0][0].text
            note(takes_adapters=engine.takes_adapters, said=said)
        engine.close()
        if config.profile != "cpu":
            note(gib_after_close=round(torch.cuda.memory_reserved() / GIB, 2))
    assert said["1"] == said["1 again"] != said["2"], said


def benchmark(system: str, switches: dict[str, str]) -> None:
    """Seconds a step: ours, TRL's, or Unsloth's with one of its switches."""
    command = [sys.executable, "benchmarks/step.py", "--shape", "demo", "--system", system]
    command += ["--json", RESULT]
    environment = os.environ | switches
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-600:]
    note(**json.loads(done.stdout.strip().splitlines()[-1]))


def accuracy() -> None:
    """The notebooks of `gpu_check`, and Qwen2.5-0.5B on GSM8K; about an hour, and the Hub."""
    from benchmarks.accuracy import record_run

    file = RESULTS / f"gpu_{gpu_name()}.json"
    cap, plain = {"gpu_memory_cap": 16.0}, {"backend": "transformers"}
    runs = {
        "gpu_check": ("lib.suite", cap),
        "qwen2.5-0.5b_gsm8k": ("benchmarks.accuracy", cap | plain),
    }
    for recipe, (module, changes) in runs.items():
        given = [word for key, value in changes.items() for word in ("-p", key, str(value))]
        subprocess.run([sys.executable, "-m", module, recipe, *given], cwd=ROOT, check=True)
        note(**{recipe: record_run(resolve(recipe, changes), file)["engines"]})


STAGES = {stage.__name__: stage for stage in (load, policy, steps, adapters, resume, plain)}
STAGES |= {
    f"benchmark-{name}": partial(benchmark, name.partition("-")[0], switches)
    for name, switches in BENCHMARKS.items()
}
ORDER = list(STAGES)
STAGES["accuracy"] = accuracy


def gpu_name() -> str:
    return re.sub(r"\W+", "_", (detect_hardware().gpu or "rehearsal").lower()).strip("_")


def run_stage(name: str, file: Path, limit: float) -> bool:
    """Run a stage in a process of its own and write what came of it; whether it passed."""
    started = time.perf_counter()
    out = file.with_name(f"{file.stem}.{name}.json")  # stays there where all of this is killed
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--inside", name]
    environment = os.environ | {"GPU_CHECK_RESULT": str(out)}
    given = dict(cwd=ROOT, env=environment, capture_output=True, text=True)
    if name != "accuracy" and detect_hardware().gpu:
        given["timeout"] = limit
    try:
        done = subprocess.run(command, **given)
        words = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        failed = words[0][:600] if done.returncode else ""
    except subprocess.TimeoutExpired:
        failed = f"not done after {limit} s"
    result = read_json(out) if out.is_file() else {}
    result |= {"failed": failed} if failed else {}
    result["seconds"] = round(time.perf_counter() - started, 1)
    results = read_json(file) if file.is_file() else {}
    write_json(file, results | {name: result})
    out.unlink(missing_ok=True)
    print(f"{name}: {failed or 'passed'} ({result['seconds']} s)", flush=True)
    return not failed


def main(given: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=ORDER)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds a stage")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.inside:
        STAGES[options.inside]()
        return 0
    if not (detect_hardware().gpu or options.rehearse):
        print("gpu-check needs a GPU and there is none: --rehearse runs what it can on the CPU.")
        return 2
    file = RESULTS / f"gpu_stages_{gpu_name()}.json"
    if options.rehearse:
        file = ROOT / "outputs" / file.name
        options.stage = ORDER[:7] if options.stage is ORDER else options.stage
    passed = [
        run_stage(name, file, options.limit) for name in options.stage
    ]  # each, whatever came before
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
