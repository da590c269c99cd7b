"""The runner and the notebooks' ways in: sentences for bad input, stop and resume."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import nbformat
import psutil
import pytest

from lib.config import ROOT, resolve
from lib.doctor import check_inputs
from lib.errors import BadInput
from lib.hardware import Hardware
from lib.models import LINEAR_LAYERS
from lib.runs import Run, read_json, read_jsonl, run_folder
from lib.suite import CHAIN, main, run_notebook
from lib.training import check_resumable, fresh_checkpoints
from tests.conftest import CPU, SMALL
from tests.test_lock import holder

ONE_STEP = [
    *("-p", "run", "ci", "-p", "max_steps", "1"),
    *("-p", "eval_problems", "4", "-p", "eval_samples", "0", "-p", "eval_engine", "transformers"),
]


def suite(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lib.suite", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["demmo"], "There is no recipe 'demmo': did you mean \"demo\"?"),
        (["ci", "-p", "max_step", "2"], 'did you mean "max_steps"?'),
        (["ci", "-p", "load_in_4bit", "'true'"], "load_in_4bit (parameter) is 'true'"),
        (["ci", "-p", "model", "./nowhere"], "is neither a folder nor a Hub name"),
        (["ci", "-p", "task", "gsm9k"], "There is no task 'gsm9k': did you mean \"gsm8k\"?"),
        (["ci", "-p", "rewards", "{corectness: 1.0}"], "correctness"),
        (["ci", "-p", "prompt_format", "thinks"], "There is no prompt format 'thinks'"),
        (["ci", "-p", "eval_problems", "-1"], "eval_problems"),
        (["ci", "--only", "9"], "names no notebook"),
        (["ci", "-p", "run", ""], "names no folder"),
        (["ci", "-p", "run", "@home"], "is no YAML"),
        (["ci", "-p", "rewards", "{a: "], "is no YAML"),
        (["ci", "-p", "run", "../elsewhere"], "names a folder under output_dir"),
        (["smollm2-135m_gsm8k", "-p", "data_dir", "nowhere"], "There is no data folder nowhere"),
    ],
)
def test_bad_input_ends_with_its_sentence_before_anything_starts(
    arguments, sentence, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("GRPO_OUTPUT_DIR", str(tmp_path))
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert sentence in said.err and said.err.count("\n") == 1 and not said.out
    assert not list(tmp_path.iterdir())


def test_a_run_in_use_is_refused_before_anything_else_is_checked(tmp_path, capsys):
    """Some of it is slow, as the embedded model's conversion."""
    first = holder(tmp_path / "ci")
    assert first.stdout.readline() == "has it\n"
    given = {"run": "ci", "task": "gms8k", "output_dir": str(tmp_path)}
    assert main(["ci", *(word for pair in given.items() for word in ("-p", *pair))]) == 2
    assert f"process {first.pid} since" in capsys.readouterr().err
    first.kill()


def test_missing_data_file_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "data" / "gsm8k").mkdir(parents=True)
    monkeypatch.setenv("GRPO_DATA_DIR", str(tmp_path / "data"))
    assert main(["smollm2-135m_gsm8k", "-p", "output_dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "gsm8k" in said and ".jsonl" in said and "GRPO_DATA_DIR" in said


def test_no_disk_space_is_told_before_training(ci_config, run, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("lib.runs.shutil.disk_usage", lambda path: usage(1, 1, 2**20))
    with pytest.raises(BadInput, match=r"A run of embedded needs .* GiB .* make room"):
        check_inputs(ci_config, run)


def test_a_gpu_too_small_is_told(tmp_path, run, monkeypatch):
    tiny = Hardware("GeForce GTX 1650", 4.0, 7.5, 4, 16.0)
    monkeypatch.setattr("lib.doctor.detect_hardware", lambda cap: tiny)
    path = tmp_path / "one.jsonl"
    rows = [json.dumps({"question": f"{i} + 1?", "answer": str(i + 1)}) for i in range(40)]
    path.write_text("\n".join(rows))
    given = {"task": "jsonl", "task_config": {"path": str(path), "test_share": 0.5}}
    given |= {"train_problems": 0, "eval_problems": 0}
    config = resolve("qwen3-4b_gsm8k", given, tiny)
    with pytest.raises(BadInput, match=r"Qwen3-4B.* needs about .* GTX 1650 has 4.0 GiB: try"):
        check_inputs(config, run)


def test_a_failure_stops_the_run_and_resume_goes_on_there(tmp_path, first_layers):
    from lib.models import load_policy, save_adapter

    given = ["ci", *ONE_STEP, "-p", "output_dir", str(tmp_path), "-p", "model", str(first_layers)]
    first = suite(*given, "--only", "01", "04")
    assert first.returncode == 2
    assert "04_pass_at_k_eval stopped:" in first.stderr
    assert "adapter is not there: run 03_training for this run first." in first.stderr
    assert "--resume" in first.stdout
    (tmp_path / "ci" / "notebooks" / "01_setup.ipynb").unlink()

    # What 03_training would leave.
    policy = load_policy(resolve("ci", SMALL | {"model": str(first_layers)}, CPU))
    save_adapter(policy, tmp_path / "ci" / "adapter")
    chain = ("01", "04")
    second = suite(*given, "--resume", "--only", *chain, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert second.returncode == 0, second.stderr
    assert "01_setup: done before" in second.stdout
    assert "greedy strict" in second.stdout and "report.html" in second.stdout
    record = read_json(tmp_path / "ci" / "run.json")
    assert list(record["finished"]) == [name for name in CHAIN if name[:2] in chain]
    comparison = read_json(tmp_path / "ci" / "evals" / "comparison.json")
    assert comparison["greedy_strict"]["problems"] == 4


def test_resume_is_told_to_the_training_alone(tmp_path, monkeypatch):
    asked = {}

    def told(name, run, parameters, watch, config):
        asked[name] = parameters.get("resume")
        return 0

    monkeypatch.setattr("lib.suite.run_notebook", told)
    given = ["ci", "--only", "01", "03", "-p", "output_dir", str(tmp_path)]
    assert main([*given, "--resume"]) == 0
    assert asked == {"01_setup": None, "03_training": True}


def test_a_recipe_that_the_checkpoints_do_not_fit_is_told_at_once(tmp_path, capsys):
    given = {"output_dir": str(tmp_path), "profile": "cpu"}
    made = resolve("ci", given, CPU)
    run = Run(run_folder(made))
    fresh_checkpoints(made, run)

    def resumed(**changes):
        check_resumable(resolve("ci", given | {"resume": True} | changes, CPU), run)

    resumed(lora_r=8)  # no checkpoint came of it
    (run.checkpoints / "checkpoint-1").mkdir()
    resumed(max_steps=9, save_steps=7, report_to=["tensorboard"], micro_batch=4, seed=3)
    resumed(lora_targets=LINEAR_LAYERS)  # all-linear, in other words
    (run.checkpoints / "checkpoint-7").mkdir()
    resumed(max_steps=7)
    with pytest.raises(BadInput, match="checkpoint of step 7") as error:
        resumed(max_steps=5)
    assert error.value.key == "max-steps-below-checkpoint"
    check_resumable(resolve("ci", given | {"lora_r": 8}, CPU), run)  # begins anew
    with pytest.raises(BadInput, match=r"were made with full_finetuning False \(now True\): give"):
        resumed(full_finetuning=True)
    with pytest.raises(BadInput, match=r"model embedded .*target_modules .* \(now \['q_proj'\]\)"):
        resumed(lora_targets=["q_proj"], model="./another")
    assert main(["ci", "--resume", "-p", "lora_r", "8", "-p", "output_dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "ci/checkpoints were made with r 16 (now 8): give the old value" in said
    assert "or another `run`" in said and not list(tmp_path.rglob("*.ipynb"))


def test_ctrl_c_ends_the_step_and_leaves_no_kernel(tmp_path, first_layers):
    given = SMALL | {"output_dir": str(tmp_path), "ignore_preflight": True, "max_steps": 500}
    given["model"] = str(first_layers)
    asked = [word for key, value in given.items() for word in ("-p", key, json.dumps(value))]
    command = [sys.executable, "-m", "lib.suite", "ci", "--only", "03", "-p", "run", "ci", *asked]
    command += ["--resume"]
    runner = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = tmp_path / "ci" / "train_log.jsonl"
    while runner.poll() is None and not read_jsonl(log):
        time.sleep(0.2)
    kernels = psutil.Process(runner.pid).children(recursive=True)
    os.killpg(runner.pid, signal.SIGINT)  # as a terminal does
    out, errors = runner.communicate()
    assert runner.returncode == 130, errors
    step = read_jsonl(log)[-1]["step"]
    assert f"was interrupted. Step {step} is kept: resume goes on from it." in errors
    assert (tmp_path / "ci" / "checkpoints" / f"checkpoint-{step}" / "optimizer.pt").is_file()
    assert f"python -m lib.suite {shlex.join(command[3:])}" in out
    assert "Traceback" not in out + errors
    assert kernels and not any(kernel.is_running() for kernel in kernels)


def write_notebook(path: Path, code: str) -> None:
    cells = [nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def test_a_kernel_that_is_killed_is_told(tmp_path, run, monkeypatch, capsys):
    write_notebook(tmp_path / "03_training.ipynb", "import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr("lib.suite.NOTEBOOKS", tmp_path)
    assert run_notebook("03_training", run, {}) == 1
    assert "03_training stopped: its kernel ended (it was interr" in capsys.readouterr().err


def test_notebooks_run_with_this_python_whatever_kernels_there_are(tmp_path, run, monkeypatch):
    spec = tmp_path / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text('{"argv": ["/bin/false"], "display_name": "another", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    write_notebook(tmp_path / "01_setup.ipynb", "import sys; print(sys.executable)")
    monkeypatch.setattr("lib.suite.NOTEBOOKS", tmp_path)
    assert run_notebook("01_setup", run, {}) == 0
    assert sys.executable in (run.notebooks / "01_setup.ipynb").read_text()
    assert os.environ["JUPYTER_PATH"] == str(tmp_path)


RUNNER = """
import sys
from pathlib import Path
import lib.suite
from lib.runs import Run
lib.suite.NOTEBOOKS = Path(sys.argv[1])
sys.exit(lib.suite.run_notebook("01_setup", Run(Path(sys.argv[2])), {}))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_kernel_is_left_when_the_runner_ends(tmp_path, run, number):
    code = f"import time; open({str(tmp_path / 'busy')!r}, 'w'); time.sleep(300)"
    write_notebook(tmp_path / "01_setup.ipynb", code)
    command = [sys.executable, "-c", RUNNER, str(tmp_path), str(run.folder)]
    runner = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)
    while not (tmp_path / "busy").exists():
        assert runner.poll() is None
        time.sleep(0.1)
    kernels = psutil.Process(runner.pid).children(recursive=True)
    runner.send_signal(number)
    assert runner.wait(20) == (-number if number == signal.SIGKILL else 128 + number)
    assert kernels and psutil.wait_procs(kernels, timeout=10)[1] == []


def test_papermill_with_a_recipe_file_from_any_folder(tmp_path):
    """`papermill notebook out -f recipe.yaml`, and an error that is one sentence."""
    command = [
        *(sys.executable, "-m", "papermill", str(ROOT / "notebooks" / "01_setup.ipynb")),
        *("out.ipynb", "-f", str(ROOT / "notebooks" / "recipes" / "ci.yaml")),
        *("-p", "output_dir", str(tmp_path), "-k", "python3"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "ci" / "run.json").is_file()
    command += ["-p", "seedd", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    notebook = json.loads((tmp_path / "out.ipynb").read_text())
    [error] = [
        output
        for cell in notebook["cells"]
        for output in cell.get("outputs", [])
        if output["output_type"] == "error"
    ]
    assert error["traceback"] == ["There is no key 'seedd' (parameter): did you mean \"seed\"?"]


def test_jupyter_execute_from_any_folder(tmp_path):
    environment = {**os.environ, "GRPO_RECIPE": "ci", "GRPO_OUTPUT_DIR": str(tmp_path)}
    notebook = ROOT / "notebooks" / "01_setup.ipynb"
    command = [sys.executable, "-m", "jupyter", "execute", str(notebook)]
    command += ["--output", str(tmp_path / "out.ipynb")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "ci" / "run.json").is_file()
