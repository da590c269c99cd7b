"""The runner and the notebooks' ways in: sentences for bad input, stop and resume."""

import json
import signal
import subprocess
import sys
import time
from collections import namedtuple

import nbformat
import psutil
import pytest

from lib.config import ROOT, resolve
from lib.doctor import check_inputs, examine
from lib.errors import BadInput
from lib.files import read_json, write_json
from lib.hardware import Hardware
from lib.models import LINEAR_LAYERS
from lib.runs import Run, run_folder
from lib.suite import main, run_notebook
from lib.training import check_resumable, fresh_checkpoints
from tests.conftest import CPU, as_parameters, refuses
from tests.test_lock import held


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
        (["ci", "-p", "run", "#5"], "nothing is left of it"),
        (["ci", "-p", "rewards", "{mark: 1, mark: 2}"], "mark stands there twice"),
        *((["ci", "-p", key, "~no-one/x"], "be a path") for key in ("output_dir", "model")),
        (["ci", "-p", "layers_to_transform", "[0, 99]"], "blocks 0 to 29"),
        (["ci", "-p", "exclude_modules", "[q_porj]"], 'did you mean "q_proj"?'),
        (["ci", "-p", "rewards", "{a: "], "is no YAML"),
        (["ci", "-p", "candidate", "./nowhere"], "There is no candidate ./nowhere"),
        (["ci", "-p", "push_to_hub", "me/mine"], "set the environment variable HF_TOKEN"),
        (
            ["ci", *as_parameters({"validation_steps": 1, "train_problems": 2})],
            "1 training problems (beside 1 for validation) do not fill",
        ),
        (["~/nowhere.yaml"], "There is no recipe '~/nowhere.yaml'"),
        (["ci", "-p", "run", "../elsewhere"], "names a folder under output_dir"),
        (["smollm2-135m_gsm8k", "-p", "data_dir", "nowhere"], "There is no nowhere/gsm8k/"),
    ],
)
def test_bad_input_ends_with_its_sentence_before_anything_starts(
    arguments, sentence, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("GRPO_OUTPUT_DIR", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert sentence in said.err and said.err.count("\n") == 1 and not said.out
    assert not list(tmp_path.iterdir())


def test_a_run_in_use_is_refused_before_anything_else_is_checked(tmp_path, capsys):
    """Some of it is slow, as the embedded model's conversion."""
    given = {"run": "ci", "task": "gms8k", "output_dir": str(tmp_path)}
    with held(tmp_path / "ci") as first:
        assert main(["ci", *as_parameters(given)]) == 2
    assert f"process {first.pid} since" in capsys.readouterr().err


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


def test_no_llama_cpp_stops_a_chain_with_05_before_it_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cyllama", None)
    given = ["ci", "-p", "output_dir", str(tmp_path / "new")]
    assert main(given) == 2 and "set gguf to []" in capsys.readouterr().err
    assert not (tmp_path / "new" / "ci").exists()
    found = dict(examine(resolve("ci", {}, CPU), deep=False))
    [missing] = found["rewards, data, model, memory, disk"]
    assert missing.key == "no-llama-cpp" and not missing.stops  # 03 trains without it


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


def test_resume_is_told_to_the_training_alone(tmp_path, monkeypatch, capsys):
    asked = {}

    def told(name, run, parameters, watch, config):
        asked[name] = parameters.get("resume")
        return 0

    monkeypatch.setattr("lib.suite.run_notebook", told)
    given = ["ci", "--only", "01", "03", "-p", "output_dir", str(tmp_path)]
    assert main([*given, "--resume"]) == 0
    assert asked == {"01_setup": None, "03_training": True}
    # Done is what was done with these settings.
    asked.clear()
    Run(tmp_path / "ci").note(finished={"01_setup": {"seconds": 1}, "03_training": {"seconds": 1}})
    assert main([*given, "--resume"]) == 0 and not asked
    assert main([*given, "--resume", "-p", "max_steps", "3"]) == 0 and len(asked) == 2
    # What comes next is named, as far as there is something to do it with.
    assert "--only 04 05" not in capsys.readouterr().out
    (tmp_path / "ci" / "adapter").mkdir()
    assert main(given) == 0 and "--only 04 05" in capsys.readouterr().out


def test_a_recipe_that_the_checkpoints_do_not_fit_is_told_at_once(tmp_path, capsys):
    given = {"output_dir": str(tmp_path), "profile": "cpu"}
    made = resolve("ci", given, CPU)
    run = Run(run_folder(made))
    fresh_checkpoints(made, run)

    def resumed(**changes):
        check_resumable(resolve("ci", given | {"resume": True} | changes, CPU), run)

    resumed(lora_r=8)  # no checkpoint came of it
    write_json(run.checkpoints / "checkpoint-1" / "trainer_state.json", {})
    resumed(max_steps=9, save_steps=7, report_to=["tensorboard"], micro_batch=4, seed=3)
    resumed(lora_targets=LINEAR_LAYERS)  # all-linear, in other words
    write_json(run.checkpoints / "checkpoint-7" / "trainer_state.json", {})
    (run.checkpoints / "checkpoint-9").mkdir()  # half-written
    resumed(max_steps=7)
    with refuses("max-steps-below-checkpoint", "checkpoint of step 7"):
        resumed(max_steps=5)
    check_resumable(resolve("ci", given | {"lora_r": 8}, CPU), run)  # begins anew
    with pytest.raises(BadInput, match=r"were made with full_finetuning False \(now True\): give"):
        resumed(full_finetuning=True)
    with pytest.raises(BadInput, match=r"model embedded .*target_modules .* \(now \['q_proj'\]\)"):
        resumed(lora_targets=["q_proj"], model="./another")
    assert main(["ci", "--resume", "-p", "lora_r", "8", "-p", "output_dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "ci/checkpoints were made with r 16 (now 8): give the old value" in said
    assert "or another `run`" in said and not list(tmp_path.rglob("*.ipynb"))


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """`notebook(code)`: 01_setup, of this one cell, as the runner finds it."""
    monkeypatch.setattr("lib.suite.NOTEBOOKS", tmp_path)

    def write(code: str) -> None:
        given = {"cells": [nbformat.v4.new_code_cell(code)]}
        given |= {"metadata": {"language_info": {"name": "python"}}}  # which papermill asks for
        nbformat.write(nbformat.v4.new_notebook(**given), tmp_path / "01_setup.ipynb")

    return write


def test_a_kernel_that_is_killed_is_told(run, notebook, capsys):
    notebook("import os; os.kill(os.getpid(), 9)")
    assert run_notebook("01_setup", run, {}) == 1
    assert "01_setup stopped: its kernel ended (it was interr" in capsys.readouterr().err


def test_notebooks_run_with_this_python_whatever_kernels_there_are(
    tmp_path, run, notebook, monkeypatch
):
    spec = tmp_path / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text('{"argv": ["/bin/false"], "display_name": "another", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    notebook("import sys; print(sys.executable)")
    assert run_notebook("01_setup", run, {}) == 0
    assert sys.executable in (run.notebooks / "01_setup.ipynb").read_text()


RUNNER = """
import sys
from pathlib import Path
import lib.suite
lib.suite.NOTEBOOKS = Path(sys.argv[1])
sys.exit(lib.suite.notebook(["01_setup", sys.argv[2], "{}"]))
"""


DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "


@pytest.mark.parametrize(
    ("code", "numbers", "ends"),
    [
        ("", [signal.SIGKILL], -signal.SIGKILL),
        ("", [signal.SIGTERM], 128 + signal.SIGTERM),
        (DEAF, [signal.SIGINT] * 2, -signal.SIGINT),  # again: at once
    ],
)
def test_no_kernel_is_left_when_the_runner_ends(tmp_path, run, notebook, code, numbers, ends):
    notebook(f"{code}import time; open({str(tmp_path / 'busy')!r}, 'w'); time.sleep(300)")
    command = [sys.executable, "-c", RUNNER, str(tmp_path), str(run.folder)]
    runner = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)
    while not (tmp_path / "busy").exists():
        assert runner.poll() is None
        time.sleep(0.1)
    kernels = psutil.Process(runner.pid).children(recursive=True)
    for number in numbers:
        runner.send_signal(number)
        time.sleep(1)
    assert runner.wait(20) == ends
    assert kernels and psutil.wait_procs(kernels, timeout=10)[1] == []


def test_papermill_with_a_recipe_file_from_any_folder(tmp_path):
    """`papermill notebook out -f recipe.yaml`, and an error that is one sentence."""
    command = [
        *(sys.executable, "-m", "papermill", str(ROOT / "notebooks" / "05_merge_export.ipynb")),
        *("out.ipynb", "-f", str(ROOT / "notebooks" / "recipes" / "ci.yaml")),
        *("-p", "output_dir", str(tmp_path), "-k", "python3"),
    ]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode != 0
    assert read_json(tmp_path / "ci" / "run.json")["config"]["max_steps"] == 2
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    [error] = [output for output in outputs if output["output_type"] == "error"]
    [sentence] = error["traceback"]
    assert sentence.endswith("adapter is not there: run 03_training for this run first.")
