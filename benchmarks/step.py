"""How long a GRPO step takes: ours beside TRL's and Unsloth's, on the same work.

    python benchmarks/step.py --shape demo|gsm8k|long [--dead 0.5] [--model M] [--json FILE]

Each system runs in a process of its own: one model, LoRA r 16 on every linear layer,
AdamW, prompts and completions of one length, and rewards that differ within all groups but a
share `--dead`. G is 8; `long` is in small, with G = 4 and no step to warm up, since a step of the
slowest takes minutes.

- trl: GRPOTrainer as it comes (a group a pass, gradient checkpointing), transformers' generate.
  Its log-probs come from a Triton kernel that no CPU runs; plain torch takes its place.
- trl_best: the same at its best settings here: no checkpointing, all groups in one pass, vLLM in
  its process where there is a GPU (on a CPU its hand-over of weights fails).
- trl_vllm: trl with vLLM in its process; on a GPU only.
- unsloth: the same trainer on Unsloth's model, as Unsloth's notebooks set it; on a GPU with vLLM.
- unsloth_best: without checkpointing, and all groups in one pass.
- ours: lib.training.make_trainer, as a recipe makes it; on a GPU with `backend: transformers`,
  since Unsloth's trainer is the system before.

On a GPU every process is held to 16 GiB of its memory, as `gpu_memory_cap` does.

`useful tokens/s` counts completion tokens of groups whose rewards differ. `share of peak` is what
the training pass cannot do without (each prompt once, completions, nothing of a dead group; two
multiplications of the frozen weights) over what it took, as a share of the matrix product
measured in the same process; `products alone` is the same of the pass's matrix products without
all else, as torch's profiler counts them in one further pass: what no leaner pass could exceed.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lib.config import resolve  # noqa: E402
from lib.files import write_json  # noqa: E402
from lib.hardware import cap_gpu_memory, detect_hardware, gpu_memory_taken  # noqa: E402
from lib.models import load_policy  # noqa: E402
from lib.process import installed_versions, peak_memory  # noqa: E402
from lib.runs import Run, hushed, open_run  # noqa: E402

SYSTEMS = ("trl", "trl_best", "trl_vllm", "unsloth", "unsloth_best", "ours")
IN_ONE_PASS = ("trl_best", "unsloth_best", "ours")
CAP = 16.0  # GiB of a GPU
PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm_", "aten::addmm")
PHASES = ("generation", "hand-over", "reward", "old log-probs", "forward", "backward", "optimizer")


@dataclass(frozen=True)
class Shape:
    """Lengths in tokens; groups a step and completions a group; steps, measured and before."""

    prompt: int
    completion: int
    groups: int
    steps: int
    group: int = 8
    warmup: int = 1


SHAPES = {
    "demo": Shape(68, 16, 4, 4),
    "gsm8k": Shape(120, 200, 1, 2),
    "long": Shape(120, 1024, 1, 1, group=4, warmup=0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="demo")
    parser.add_argument("--dead", type=float, default=0.0, help="share of groups without signal")
    parser.add_argument("--model", default="embedded", help="as a recipe names it")
    parser.add_argument("--json", type=Path, help="with --system: each step, as it is done")
    parser.add_argument("--system", choices=SYSTEMS, help="measure this one, in this process")
    asked = parser.parse_args()
    if asked.system:
        shape = SHAPES[asked.shape]
        print(json.dumps(measure(asked.system, shape, asked.dead, asked.model, asked.json)))
        return
    found = {}
    for system in [name for name in SYSTEMS if on_gpu() or name != "trl_vllm"]:
        command = [sys.executable, __file__, "--system", system]
        command += ["--shape", asked.shape, "--dead", str(asked.dead), "--model", asked.model]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{system} failed:\n{done.stderr[-3000:]}")
        found[system] = json.loads(done.stdout.strip().split("\n")[-1])
        print(f"{system}: {found[system]['seconds']:.2f} s a step", flush=True)
    ours = found["ours"]["useful tokens/s"]
    others = {name: values for name, values in found.items() if name != "ours"}
    ratios = {name: ours / values["useful tokens/s"] for name, values in others.items()}
    print(table(found))
    print(*(f"ours over {name}: {ratio:.2f}" for name, ratio in ratios.items()), sep="\n")
    if asked.json:
        write_json(
            asked.json,
            {
                "model": asked.model,
                "shape": asked.shape,
                **asdict(SHAPES[asked.shape]),
                "dead": asked.dead,
                "systems": found,
                "ratios": ratios,
                "versions": installed_versions(),
                "hardware": f"{detect_hardware()}; {platform.processor() or platform.machine()}",
            },
        )


def measure(
    system: str, shape: Shape, dead: float, model: str, file: Path | None = None
) -> dict[str, float]:
    """Seconds a step and of each phase, tokens a second, peak memory, share of the peak."""
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(system, shape, folder, model)
        run = open_run(config)
        with hushed(run):
            import torch

            clock = Clock(file)
            trainer = make(system, config, run, shape, dead, clock)
            clock.watch(trainer, shape)
            trainer.train()
            peak = matmul_peak(torch, config.precision)
            found = summary(clock, trainer.model, shape, dead, peak)
            training = found["forward"] + found["backward"]
            alone = found["share of peak"] * training / products(trainer, torch)
    return found | {"products alone": alone}


def on_gpu() -> bool:
    return bool(detect_hardware().gpu)


def by_vllm(system: str) -> bool:
    return system == "ours" or system == "trl_vllm" or (on_gpu() and system != "trl")


def configuration(system: str, shape: Shape, folder: str, model: str):
    by_unsloth = system.startswith("unsloth") or (system == "ours" and not on_gpu())
    return resolve(
        None,
        ({"gpu_memory_cap": CAP} if on_gpu() else {"profile": "cpu"})
        | {
            "output_dir": folder,
            "model": model,
            "backend": "unsloth" if by_unsloth else "transformers",
            "prompts_per_step": shape.groups,
            "num_generations": shape.group,
            "micro_batch": shape.group * (shape.groups if system in IN_ONE_PASS else 1),
            "gradient_checkpointing": system not in IN_ONE_PASS,
            "rollout_engine": "vllm" if by_vllm(system) else "transformers",
            "shared_prompts": system == "ours",
            "max_seq_length": shape.prompt + shape.completion + 8,
            "max_completion_length": shape.completion,
            "max_steps": shape.steps + shape.warmup,
            "save_steps": 1000,
            "lr_scheduler": "constant",
        },
    )


def make(system: str, config, run: Run, shape: Shape, dead: float, clock: "Clock"):
    """The system's trainer, made to write completions of the shape's length."""
    from lib import training

    policy = load_policy(config)
    rows = prompts(policy.tokenizer, shape)
    length = {"min_new_tokens": shape.completion, "max_new_tokens": shape.completion}
    if by_vllm(system):
        length = {"min_tokens": shape.completion}
    stated = training.grpo_arguments

    def arguments(*asked):
        told = stated(*asked) | {"generation_kwargs": length}
        if system.startswith("trl") and by_vllm(system):
            share = cap_gpu_memory(CAP, config.vllm_gpu_memory_utilization)
            told |= {"use_vllm": True, "vllm_gpu_memory_utilization": share}
        return told

    def reward(completions, **_):
        return rewards(shape, dead)

    if system == "ours":
        trainer = training.make_trainer(policy, rows, [reward], [1.0], config, run)
        if trainer.engine is None:
            sys.exit("\n".join(policy.notes))
        engine, rollouts = trainer.engine.engine, trainer.engine
        generate = engine.generate
        engine.generate = lambda prompts, sampling: generate(
            prompts, replace(sampling, min_tokens=sampling.max_tokens)
        )
        clock.time(engine, "hand_over", "hand-over")
        clock.time(rollouts, "generate", "generation")
        return trainer
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from lib.training.logps import plain_logps

    # Theirs multiply by a copy of the output layer for each sequence (without_head_copies).
    policy.model.get_output_embeddings()._forward_pre_hooks.clear()

    class Plain(GRPOTrainer):
        def _get_per_token_logps_and_entropies(self, model, ids, mask, kept, *_, **__):
            return *plain_logps(model, ids, mask, kept, self.temperature), None

    trainer = (Plain if system.startswith("trl") and not on_gpu() else GRPOTrainer)(
        model=policy.model,
        processing_class=policy.tokenizer,
        reward_funcs=[reward],
        args=GRPOConfig(**arguments(config, run)),
        train_dataset=Dataset.from_list(rows),
    )
    if system.startswith("trl") and by_vllm(system):
        clock.time(trainer.vllm_generation, "sync_weights", "hand-over")
    clock.time(trainer, "_generate_single_turn", "generation")
    return trainer


def prompts(tokenizer, shape: Shape) -> list[dict]:
    """Different prompts of one length in tokens, a few more than all steps need."""
    words = random.Random(0)
    rows = []
    for i in range(shape.groups * (shape.steps + 2)):
        text = f"{i}"
        while True:
            prompt = [{"role": "user", "content": text}]
            ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)
            if len(ids["input_ids"] if hasattr(ids, "keys") else ids) >= shape.prompt:
                break
            text += " " + words.choice(["one", "two", "red", "day", "sun"])
        rows.append({"prompt": prompt, "id": str(i), "answer": ""})
    return rows


def rewards(shape: Shape, dead: float) -> list[float]:
    """The last groups of the step, as many as the share says, are all alike."""
    count = shape.groups * shape.group
    draw, alive = random.Random(count), live_groups(shape.groups, dead)
    return [draw.random() if i // shape.group < alive else 1.0 for i in range(count)]


def live_groups(groups: int, dead: float) -> int:
    return groups - round(groups * dead)


def now() -> float:
    """Seconds, once a GPU has done all it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock:
    """Seconds of each phase of each step, written to `file` at once; a phase within another counts
    for the inner one."""

    def __init__(self, file: Path | None):
        self.file = file
        self.steps: list[dict[str, float]] = []
        self.phases: dict[str, float] = defaultdict(float)
        self.open: list[float] = []

    def time(self, thing, method: str, phase) -> None:
        inner = getattr(thing, method, None)
        if inner is None:  # Unsloth's GPU trainer has no such phase
            return

        def timed(*args, **kwargs):
            self.open.append(0.0)
            started = now()
            result = inner(*args, **kwargs)
            took = now() - started
            within = self.open.pop()
            if self.open:
                self.open[-1] += took
            self.phases[phase() if callable(phase) else phase] += took - within
            return result

        setattr(thing, method, timed)

    def watch(self, trainer, shape: Shape) -> None:
        import torch
        from transformers import TrainerCallback

        def logps() -> str:
            return "forward" if torch.is_grad_enabled() else "old log-probs"

        self.time(trainer, "_calculate_rewards", "reward")
        self.time(trainer, "_get_per_token_logps_and_entropies", logps)
        self.time(trainer, "compute_loss", "forward")
        self.time(trainer.accelerator, "backward", "backward")
        clock = self

        class Steps(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == 0:
                    clock.time(kwargs["optimizer"], "step", "optimizer")

            def on_step_end(self, args, state, control, **kwargs):
                ended = now()
                clock.steps.append({**clock.phases, "seconds": ended - clock.started})
                if clock.file:
                    write_json(clock.file, {"steps": clock.steps})
                clock.phases.clear()
                clock.started = ended

            def on_train_begin(self, args, state, control, **kwargs):
                clock.started = now()

        trainer.add_callback(Steps())


def matmul_peak(torch, precision: str) -> float:
    """FLOP/s of a matrix product in this precision, the best of ten."""
    size, device = (8192, "cuda") if on_gpu() else (2048, "cpu")
    a = torch.randn(size, size, device=device)
    a = a if precision == "fp32" else a.bfloat16()
    times = []
    for _ in range(10):
        started = now()
        a @ a
        times.append(now() - started)
    return 2 * size**3 / min(times)


def products(trainer, torch) -> float:
    """Seconds of the matrix products in one more pass over the last step's batch."""
    with torch.profiler.profile() as seen:
        for inputs in trainer._buffered_inputs:
            trainer.accelerator.backward(trainer.compute_loss(trainer.model, inputs))
    of_gpu = "self_device_time_total" if on_gpu() else "self_cpu_time_total"
    taken = [e for e in seen.key_averages() if e.key in PRODUCTS]
    return sum(getattr(event, of_gpu) for event in taken) / 1e6


def memory_taken() -> float:
    """The most that was in use, in GiB: of the GPU, as torch counts it, or of main memory."""
    return gpu_memory_taken() if on_gpu() else peak_memory()


def summary(clock: Clock, model, shape: Shape, dead: float, peak: float) -> dict[str, float]:
    steps = clock.steps[shape.warmup :]
    means = {name: sum(step.get(name, 0.0) for step in steps) / len(steps) for name in PHASES}
    seconds = sum(step["seconds"] for step in steps) / len(steps)
    groups = live_groups(shape.groups, dead)
    scored = groups * shape.group * shape.completion
    computed = groups * (shape.prompt + shape.group * (shape.completion - 1))
    head = model.get_output_embeddings().weight.numel()
    frozen = [p for n, p in model.named_parameters() if "lora_" not in n and p.dim() == 2]
    linear = sum(p.numel() for p in frozen) - head  # the head is the tied embedding
    needed = 2 * 2 * (computed * linear + scored * head)
    training = means["forward"] + means["backward"]
    return {
        "seconds": seconds,
        **means,
        "rest": seconds - sum(means.values()),
        "tokens/s": shape.groups * shape.group * shape.completion / seconds,
        "useful tokens/s": scored / seconds,
        "share of peak": needed / training / peak,
        "matmul GFLOP/s": peak / 1e9,
        "peak memory GiB": memory_taken(),
    }


def table(found: dict[str, dict[str, float]]) -> str:
    lines = [f"{'':18}" + "".join(f"{name:>10}" for name in found)]
    for row in next(iter(found.values())):
        cells = "".join(f"{values[row]:10.2f}" for values in found.values())
        lines.append(f"{row:18}{cells}")
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
