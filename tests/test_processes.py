"""One training in two processes (gloo, on the CPU): the same step, written once."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from lib.config import ROOT, resolve
from lib.doctor import check_inputs
from lib.errors import BadInput, Stopped
from lib.files import read_jsonl
from lib.models import load_policy
from lib.process import quiet_process
from lib.runs import Run, read_rollouts
from lib.suite import launch_words
from lib.training import grpo_arguments
from tests import lives
from tests.conftest import CPU, L4, SMALL, as_parameters, python, refuses, start_suite

CHANGES = dict(precision="fp32", num_generations=4, max_steps=2, keep="last")
CHANGES |= dict(validation_steps=1)
DOCS = (ROOT / "docs" / "training.md").read_text()
FSDP = re.search(r"```yaml\n(.*?)```", DOCS, re.DOTALL)[1]


class Fixed:
    """Completions that depend on the prompt and the place in its group alone."""

    hand_over_seconds = 0.0

    def sync_weights(self):
        pass

    def generate(self, prompts, images=None, num_generations=1, profiler=None):
        places = [prompts[:i].count(prompt) for i, prompt in enumerate(prompts)]
        ids = [
            [100 + (7 * sum(prompt) + 11 * place + i) % 900 for i in range(2 + place)]
            for prompt, place in zip(prompts, places, strict=True)
        ]
        return prompts, ids, [[[-1.0]] * len(each) for each in ids], None


def train_two_steps(folder: Path, model: Path, processes: int) -> None:
    """In one go; or, where there are two processes, with a stop between."""
    folder.mkdir(parents=True, exist_ok=True)
    lives.SETTINGS["model"] = str(model)
    changes = CHANGES | {"num_processes": processes}
    quiet_process(Run(folder))

    def fix(trainer):
        trainer.generate_with(Fixed())

    for more in ({"stop_at": 1}, {"resume": True}) if processes > 1 else ({},):
        lives.POLICY = load_policy(resolve("ci", lives.SETTINGS | changes, CPU))
        with suppress(Stopped):
            lives.life(folder, spoil=fix, **changes, **more)


def fsdp_on_a_cpu() -> None:
    """Which torch has, and accelerate on GPUs only."""
    begin = AcceleratorState.__init__

    def begun(self, *args, fsdp_plugin=None, **options):
        begin(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = begun


@pytest.fixture(scope="module")
def one(first_layers, tmp_path_factory) -> Run:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    train_two_steps(folder, first_layers, 1)
    return Run(folder)


@pytest.mark.parametrize("by", ["DDP", "FSDP"])
def test_two_processes_take_the_step_of_one(tmp_path, first_layers, one, by):
    """And resumed, the next."""
    (tmp_path / "fsdp.yaml").write_text(FSDP)
    file = str(tmp_path / "fsdp.yaml") if by == "FSDP" else ""
    config = resolve("ci", SMALL | {"num_processes": 2, "accelerate_config": file}, CPU)
    launch = ["-m", "accelerate.commands.launch", *launch_words(config), "--main_process_port", 0]
    python(*launch, "-m", "tests.test_processes", tmp_path / "two", first_layers)
    two = Run(tmp_path / "two")
    sharded = two.checkpoints / "checkpoint-2" / "pytorch_model_fsdp.bin"
    assert sharded.is_file() == (by == "FSDP")
    logs = [read_jsonl(run.train_log) for run in (one, two)]
    for a, b in zip(*logs, strict=True):
        assert a["grad_norm"] > 0
        for name in ("loss", "grad_norm", "reward", "reward_std", "heldout/problems"):
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-6), name
    for step in (1, 2):
        rows = [read_rollouts(run, step) for run in (one, two)]
        kept = [[(r["id"], r["completion"], r["total"], r["advantage"]) for r in s] for s in rows]
        assert len(kept[0]) == 8 and kept[0] == kept[1]
    assert len(read_jsonl(two.evals / "validation.jsonl")) == 3  # a problem, before and after each
    a, b = (load_file(run.adapter / "adapter_model.safetensors") for run in (one, two))
    assert a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=1e-5) for k in a)
    assert any(weight.any() for name, weight in a.items() if "lora_B" in name)


def test_a_recipe_in_two_processes_leaves_none(tmp_path, first_layers):
    """Killed as it starts; or by Ctrl-C, as a terminal sends it, which keeps the step."""
    given = SMALL | dict(max_steps=500, num_processes=2, model=str(first_layers))
    given |= dict(output_dir=str(tmp_path), run="two", ignore_preflight=True)
    words, run = ["ci", "--only", "03", *as_parameters(given)], Run(tmp_path / "two")

    def ended_by(number: int, steps: int) -> tuple[int, str]:
        """The runner's exit code, sent this signal after so many steps, and what it said."""
        runner = start_suite(*words, "--resume", stderr=subprocess.STDOUT, start_new_session=True)
        processes = []
        while len(processes) < 5 or len(read_jsonl(run.train_log)) < steps:
            assert runner.poll() is None, runner.communicate()
            time.sleep(0.2)
            processes = psutil.Process(runner.pid).children(recursive=True)
        os.killpg(runner.pid, number)
        said, _ = runner.communicate()
        assert psutil.wait_procs(processes, timeout=30)[1] == []
        return runner.returncode, said

    assert ended_by(signal.SIGKILL, 0)[0] == -signal.SIGKILL
    code, said = ended_by(signal.SIGINT, 1)
    rows = read_jsonl(run.train_log)
    assert code == 130 and "Traceback" not in said, said
    assert f"was interrupted. Step {rows[-1]['step']} is kept: resume goes on from it" in said
    assert f"python -m lib.suite {shlex.join(words)} --resume" in said
    assert (run.checkpoints / f"checkpoint-{rows[-1]['step']}" / "optimizer.pt").is_file()
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert [len(read_rollouts(run, row["step"])) for row in rows] == [8] * len(rows)


def test_the_launcher_takes_what_it_is_given(tmp_path):
    """By accelerate's own parser, also with a file for FSDP; no process is started."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    (tmp_path / "fsdp.yaml").write_text(FSDP)
    for file, kind in (("", "multi_gpu"), (str(tmp_path / "fsdp.yaml"), "use_fsdp")):
        given = SMALL | {"num_processes": 2, "accelerate_config": file}
        words = [*launch_words(resolve("ci", given, CPU)), "-m", "lib.suite", "notebook"]
        args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
        assert getattr(args, kind) and args.num_processes == 2 and args.module
        assert (defaults is not None) == bool(file)
    assert args.fsdp_version == 2


def test_a_vllm_server_is_trls_to_ask(run):
    """Its keys arrive in GRPOConfig, and vLLM's parser takes the command that docs name."""
    from trl import GRPOConfig
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    given = {"backend": "transformers", "rollout_engine": "vllm", "vllm_mode": "server"}
    given |= {"vllm_server_host": "127.0.0.1", "num_processes": 2}
    config = resolve("qwen2.5-1.5b_math", given, L4)
    with pytest.raises(BadInput, match="No vLLM answers at http://127"):
        check_inputs(config, run)
    arguments = grpo_arguments(config, run) | {"bf16": False, "use_cpu": True}
    args = GRPOConfig(**arguments)
    assert args.use_vllm and (args.vllm_mode, args.vllm_server_host) == ("server", "127.0.0.1")
    [command] = re.findall(r"vllm serve (.*?)\nCUDA", DOCS, re.DOTALL)
    words = shlex.split(command.replace("\\\n", " "))
    served = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
    assert served.host == "127.0.0.1" and served.weight_transfer_config.backend == "nccl"


@pytest.mark.parametrize(
    "changes",
    [
        {"prompts_per_step": 1, "num_generations": 3},
        {"resample": 2},
        {"backend": "unsloth"},
        {"rollout_engine": "vllm"},
        {"accelerate_config": "nowhere.yaml"},
        {"accelerate_config": "Makefile"},
        {"accelerate_config": "notebooks/recipes/demo.yaml"},
    ],
)
def test_what_several_processes_cannot_do_is_refused(changes):
    with refuses("processes", "processes"):
        resolve("ci", SMALL | {"num_processes": 2} | changes, CPU)


if __name__ == "__main__":
    sys.modules["vllm"] = None  # TRL would import it, for nothing
    if "ACCELERATE_USE_FSDP" in os.environ:
        fsdp_on_a_cpu()
    train_two_steps(Path(sys.argv[1]), Path(sys.argv[2]), int(os.environ["WORLD_SIZE"]))
