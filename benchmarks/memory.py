"""What training takes of main memory: estimated beside measured, a process for each setting.

    python -m benchmarks.memory [--settings NAME ...] [--shape NAME] [--json FILE]

Each setting trains two optimizer steps of the embedded model with prompts and completions
as long as the plan allows, so that the plan's tokens are the run's. Measured is the most
memory that was resident in the process (VmHWM), code and mapped weights included. With
`--shape Qwen/Qwen2.5-0.5B-Instruct` the model has that shape and random weights, which take
as much memory as any.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.step import Shape, prompts
from lib.config import resolve
from lib.files import write_json
from lib.hardware import detect_hardware
from lib.memory import SHAPES, estimate, read_shape, settled
from lib.models import EMBEDDED, load_policy, model_folder
from lib.process import installed_versions, peak_memory
from lib.rewards import learned_rewards
from lib.runs import hushed, open_run

STEPS = 2
BASE = {
    "precision": "bf16",
    "profile": "cpu",
    "prompts_per_step": 1,
    "num_generations": 8,
    "micro_batch": 8,
    "max_seq_length": 144,
    "max_completion_length": 64,
    "max_steps": STEPS,
    "save_steps": 1000,
    "gradient_checkpointing": False,
}
WITHOUT_VLLM = {"rollout_engine": "transformers"}
ORDINARY = WITHOUT_VLLM | {"shared_prompts": False}
SETTINGS = {
    "as it comes": {},
    "rollouts by transformers": WITHOUT_VLLM,
    "four groups in a pass": {"prompts_per_step": 4, "micro_batch": 32},
    "half a group in a pass": {"micro_batch": 4},
    "longer": {"max_seq_length": 400, "max_completion_length": 200},
    "lora_r 128": {"lora_r": 128},
    "checkpointing": {"prompts_per_step": 4, "micro_batch": 32, "gradient_checkpointing": True},
    "prompts not shared": ORDINARY,
    "prompts not shared, checkpointing": ORDINARY | {"gradient_checkpointing": True},
    "logits in 32 bit": {"cast_lm_head_to_fp32": True, "backend": "transformers"},
    "fp32": {"precision": "fp32"},
    "full fine-tuning": {"full_finetuning": True},
    "full fine-tuning, fp32": WITHOUT_VLLM | {"full_finetuning": True, "precision": "fp32"},
    "two learned rewards": WITHOUT_VLLM | {"rewards": {"reward_model": 1.0, "gold_reward": 0.0}},
}

# In processes of their own, whose memory does not count.
REWARD_MODEL = """
import sys
from pathlib import Path
from lib.config import resolve
from lib.learned import Pair, RewardModel, save_reward_model, untrained

pair = Pair("1", "Hi?", [{"role": "user", "content": "Hi?"}], "Hello.", "No.", "made")
for folder in sys.argv[2:]:
    model = RewardModel(*untrained(resolve(None, {"profile": "cpu", "model": sys.argv[1]})))
    save_reward_model(model, [pair], Path(folder))
"""
RANDOM_MODEL = """
import sys
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from lib.memory import SHAPES
from lib.models import embedded_folder

s, tokenizer = SHAPES[sys.argv[1]], AutoTokenizer.from_pretrained(embedded_folder())
torch.set_default_dtype(torch.bfloat16)
config = Qwen2Config(
    vocab_size=s.vocab, hidden_size=s.hidden, intermediate_size=s.intermediate,
    num_hidden_layers=s.layers, num_attention_heads=s.heads, num_key_value_heads=s.kv_heads,
    tie_word_embeddings=s.tied, max_position_embeddings=4096,
    eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
)
Qwen2ForCausalLM(config).save_pretrained(sys.argv[2])
tokenizer.save_pretrained(sys.argv[2])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--shape", choices=SHAPES, default=EMBEDDED)
    parser.add_argument("--json", type=Path, help="results, added to those of other settings")
    parser.add_argument("--measure", help="train this setting in this process")
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked.measure, asked.shape)))
        return
    for name in asked.settings:
        command = [sys.executable, "-m", "benchmarks.memory", "--measure", name]
        done = subprocess.run([*command, "--shape", asked.shape], capture_output=True, text=True)
        if done.returncode:
            print(f"{name}: failed\n{done.stderr[-2000:]}", flush=True)
            continue
        row = json.loads(done.stdout.strip().split("\n")[-1])
        print(
            f"{name:34} estimated {row['estimated GiB']:6.2f} GiB, measured "
            f"{row['measured GiB']:6.2f} GiB, ratio {row['ratio']:.2f}",
            flush=True,
        )
        if asked.json:
            add(asked.json, f"{asked.shape}, {name}", row)


def measure(name: str, shape_name: str) -> dict:
    """Estimated and most resident memory of a training, in GiB, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        model = shape_name
        if model != EMBEDDED:
            model = f"{folder}/model"
            subprocess.run([sys.executable, "-c", RANDOM_MODEL, shape_name, model], check=True)
        given = BASE | SETTINGS[name] | {"model": model, "output_dir": folder}
        config = resolve(None, given)
        hardware, shape = detect_hardware(), read_shape(model_folder(config))
        need = estimate(config, shape, hardware)
        run = open_run(config)
        judges = learned_rewards(config)
        if judges:
            folders = [str(run.folder / reward.own) for reward in judges]
            subprocess.run([sys.executable, "-c", REWARD_MODEL, model, *folders], check=True)
        with hushed(run):
            train(config, run, judges)
    peak = peak_memory()
    return {
        "setting": SETTINGS[name],
        "checkpointing": settled(config, shape, hardware).gradient_checkpointing,
        "estimated GiB": round(need.total, 3),
        "measured GiB": round(peak, 3),
        "ratio": round(need.total / peak, 3),
        "parts": {part: round(size, 3) for part, size in need.parts.items()},
    }


def train(config, run, judges) -> None:
    """Two steps whose completions all have the planned length; reward models judge them, too."""
    policy = load_policy(config)
    from lib.training import make_trainer

    completion = config.max_completion_length
    shape = Shape(config.max_seq_length - completion, completion, config.prompts_per_step, STEPS)
    draw = random.Random(0)

    def reward(completions, **_):
        return [draw.random() for _ in completions]

    rows = prompts(policy.tokenizer, shape)
    rewards = [reward, *judges]
    trainer = make_trainer(policy, rows, rewards, [1.0] * len(rewards), config, run)
    if trainer.engine is None:
        trainer.generation_config.min_new_tokens = completion
    else:
        engine = trainer.engine.engine
        generate = engine.generate
        engine.generate = lambda asked, sampling: generate(
            asked, replace(sampling, min_tokens=sampling.max_tokens)
        )
    trainer.train()


def add(file: Path, name: str, row: dict) -> None:
    """Results of other settings stay."""
    found = json.loads(file.read_text()) if file.is_file() else {"settings": {}}
    found["settings"][name] = row
    found["versions"] = installed_versions()
    found["hardware"] = f"{detect_hardware()}; {platform.processor() or platform.machine()}"
    write_json(file, found)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
