"""What each part of the step brings: cumulative rows, from TRL as it comes to the suite's own.

    python benchmarks/ablation.py --shape demo|gsm8k [--rounds 2] [--json FILE] [--rows NAME ...]

Each row is measured in processes of its own, round by round in turn; a row's figure is its fastest
round. The work is that of `benchmarks/step.py`: fixed lengths, rewards that differ in each group.

- trl: TRL as it comes: transformers' generate, gradient checkpointing, one group a pass.
- trl_best: without checkpointing, and all groups in one pass.
- unsloth, unsloth_best: the same two on Unsloth's model.
- vllm: trl_best with vLLM's rollouts in the process, and the output layer's product uncopied.
- cache: + a prompt is computed once for its group, by transformers' key-value cache.
- cache_head, cache_peft: + log-probs a few rows at a time, + peft's input casts off.
- packed: instead, one packed row with an attention of its own.
- lean_lora, lean_norms: + LoRA layers, then norms, as one autograd function each.
- vllm_kernels: + vLLM's own CPU kernels for norm, gate and drawing in place of torch's.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import step  # noqa: E402
from lib.hardware import detect_hardware  # noqa: E402
from lib.runs import hushed, installed_versions, open_run, write_json  # noqa: E402

THEIRS = ("trl", "trl_best", "unsloth", "unsloth_best")
OURS = (
    "vllm",
    "cache",
    "cache_head",
    "cache_peft",
    "packed",
    "lean_lora",
    "lean_norms",
    "vllm_kernels",
)
SHAPES = {
    "demo": replace(step.SHAPES["demo"], steps=2),
    "gsm8k": replace(step.SHAPES["gsm8k"], steps=1),
}
FIGURES = ("seconds", "generation", "hand-over", "forward", "backward", "old log-probs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="demo")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rows", nargs="+", default=THEIRS + OURS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--row", help="measure this one, in this process")
    parser.add_argument("--passes", type=int, default=0, help="only the training pass, so often")
    given = parser.parse_args()
    if given.row:
        print(json.dumps(measure(given.row, SHAPES[given.shape])))
        return
    if given.passes:
        for row, seconds in training_passes(SHAPES[given.shape], given.passes).items():
            print(f"{row:24}{seconds:7.2f} s")
        return
    rounds: dict[str, list] = {row: [] for row in given.rows}
    for _ in range(given.rounds):
        for row in given.rows:
            command = [sys.executable, __file__, "--row", row, "--shape", given.shape]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{row} failed:\n{done.stderr[-2000:]}", flush=True)
                continue
            rounds[row].append(json.loads(done.stdout.strip().split("\n")[-1]))
            print(f"{row}: {rounds[row][-1]['seconds']:.2f} s a step", flush=True)
            if given.json:
                write_json(given.json, report(given.shape, rounds))


def report(shape: str, rounds: dict[str, list]) -> dict:
    best = {row: min(all_, key=lambda r: r["seconds"]) for row, all_ in rounds.items() if all_}
    return {
        "shape": shape,
        **asdict(SHAPES[shape]),
        "rows": best,
        "rounds": {row: [r["seconds"] for r in all_] for row, all_ in rounds.items()},
        "versions": installed_versions(),
        "hardware": str(detect_hardware()),
    }


def measure(row: str, shape: step.Shape) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        system = row.split("_")[0] if row in THEIRS else "ours"
        config = step.configuration(system, shape, folder, "embedded")
        if row.endswith("_best"):
            config = config.model_copy(
                update={
                    "micro_batch": shape.group * shape.groups,
                    "gradient_checkpointing": False,
                }
            )
        if row in OURS:
            config = config.model_copy(update={"backend": "transformers"})
            switch(row)
        if row == "vllm":
            config = config.model_copy(update={"shared_prompts": False})
        run = open_run(config)
        with hushed(run):
            import torch

            clock = step.Clock()
            trainer = step.make(system, config, run, shape, 0.0, clock)
            clock.watch(trainer, shape)
            trainer.train()
            peak = step.matmul_peak(torch)
            return step.summary(clock, trainer.model, shape, 0.0, peak)


def switch(row: str) -> None:
    """Turn off what the row does not have yet."""
    from lib import vllm_cpu
    from lib.training import lean_layers, run, trainer

    level = OURS.index(row)
    if level < OURS.index("vllm_kernels"):
        vllm_cpu.lean_settings = dict
    if level < OURS.index("lean_norms"):
        lean_layers._is_plain_norm = lambda module: False
    if level < OURS.index("lean_lora"):
        run.make_lean = lambda model: 0
    if row == "cache":
        trainer.completion_scores = cached_scores
    if row in ("cache_head", "cache_peft"):
        trainer.completion_scores = partial(cached_hidden, row == "cache_peft")


PASSES = {  # name: how completions are scored, and how many layers are lean
    "plain": ("plain", 0),
    "cache": ("cache", 0),
    "cache, head by rows": ("cache_head", 0),
    "cache, peft uncast": ("cache_peft", 0),
    "packed": ("packed", 0),
    "packed, lean LoRA": ("packed", 1),
    "packed, lean norms": ("packed", 2),
    "cache, lean LoRA": ("cache_head", 1),
    "cache, lean norms": ("cache_head", 2),
}


def training_passes(shape: step.Shape, rounds: int) -> dict[str, float]:
    """CPU seconds of one forward and backward of each way, in turn; the fastest of the rounds."""
    with tempfile.TemporaryDirectory() as folder:
        config = step.configuration("ours", shape, folder, "embedded")
        config = config.model_copy(update={"backend": "transformers"})
        run = open_run(config)
        with hushed(run):
            import torch

            from lib.models import load_policy
            from lib.training.shared_prompts import completion_scores
            from lib.training.token_logps import plain_logps

            model = load_policy(config).model.train()
            draw = torch.Generator().manual_seed(0)
            prompts = torch.randint(100, 40000, (shape.groups, shape.prompt), generator=draw)
            size = (shape.groups * shape.group, shape.completion)
            answers = torch.randint(100, 40000, size, generator=draw)
            ids = torch.cat([prompts.repeat_interleave(shape.group, 0), answers], 1)
            ways = {
                "plain": plain_logps,
                "cache": cached_scores,
                "cache_head": partial(cached_hidden, False),
                "cache_peft": partial(cached_hidden, True),
                "packed": completion_scores,
            }
            best = dict.fromkeys(PASSES, float("inf"))
            for _ in range(rounds):
                for name, (way, lean) in PASSES.items():
                    make_lean(model, lean)
                    started = time.process_time()
                    ways[way](model, ids, torch.ones_like(ids), shape.completion)[
                        0
                    ].sum().backward()
                    best[name] = min(best[name], time.process_time() - started)
                    model.zero_grad()
            return best


def make_lean(model, level: int) -> None:
    from lib.training import lean_layers

    for module in model.modules():
        module.__dict__.pop("forward", None)
    if level:
        norms = lean_layers._is_plain_norm
        lean_layers._is_plain_norm = norms if level == 2 else lambda module: False
        lean_layers.make_lean(model)
        lean_layers._is_plain_norm = norms


def cached_scores(model, ids_BT, mask_BT, completion, temperature=1.0, wanted_B=None, **_):
    """As `completion_scores`, by `lib.scratch.completion_logps`: rows in groups of one prompt."""
    from lib.scratch import completion_logps

    prompts_BS, prompt_mask_BS = ids_BT[:, :-completion], mask_BT[:, :-completion]
    first = [i for i in range(len(ids_BT)) if i == 0 or not prompts_BS[i].equal(prompts_BS[i - 1])]
    logps, entropies = completion_logps(
        model,
        prompts_BS[first],
        prompt_mask_BS[first],
        ids_BT[:, -completion:],
        mask_BT[:, -completion:],
        temperature,
    )
    return logps * mask_BT[:, -completion:], entropies, None


def cached_hidden(lean, model, ids_BT, mask_BT, completion, temperature=1.0, wanted_B=None, **_):
    """The cache, and log-probs from hidden states a few rows at a time."""
    from contextlib import nullcontext

    import torch
    from peft.helpers import disable_input_dtype_casting

    from lib.training.token_logps import TokenLogps

    prompts_BS, prompt_mask_BS = ids_BT[:, :-completion], mask_BT[:, :-completion]
    first = [i for i in range(len(ids_BT)) if i == 0 or not prompts_BS[i].equal(prompts_BS[i - 1])]
    group = len(ids_BT) // len(first)
    tokens_BT, real_BT = ids_BT[:, -completion:], mask_BT[:, -completion:]
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    base = causal.base_model
    context = disable_input_dtype_casting(model) if lean else nullcontext()
    auto = torch.autocast("cpu", torch.bfloat16) if lean else nullcontext()
    with context, auto:
        p_NS, m_NS = prompts_BS[first], prompt_mask_BS[first]
        out = base(
            input_ids=p_NS,
            attention_mask=m_NS,
            position_ids=(m_NS.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
        )
        cache = out.past_key_values
        cache.batch_repeat_interleave(group)
        places = m_NS.sum(1, keepdim=True).repeat_interleave(group, 0) + torch.arange(
            completion - 1
        )
        later = base(
            input_ids=tokens_BT[:, :-1],
            attention_mask=mask_BT[:, :-1],
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
    hidden = torch.cat([out.last_hidden_state[:, -1:].repeat_interleave(group, 0), later], 1).to(
        torch.bfloat16
    )
    real = real_BT.bool()
    head = causal.get_output_embeddings().weight
    with torch.autocast("cpu", enabled=False):
        found = TokenLogps.apply(hidden[real], head, tokens_BT[real], temperature)
    places = real.nonzero(as_tuple=True)
    logps = torch.zeros(real.shape).index_put(places, found[0])
    return logps, torch.zeros(real.shape).index_put(places, found[1].float()), None


if __name__ == "__main__":
    main()
