"""What `make gpu-check` rests on: a recipe trained and measured in one process."""

import subprocess
import sys

from lib.config import ROOT
from lib.files import read_json, read_jsonl


def test_a_recipe_is_trained_measured_and_written_down(tmp_path, first_layers):
    file = tmp_path / "found.json"
    given = ["-p", "output_dir", str(tmp_path), "-p", "profile", "cpu", "-p", "eval_samples", "0"]
    given += ["-p", "model", str(first_layers)]
    command = [sys.executable, "-m", "benchmarks.accuracy", "ci", *given, "--json", str(file)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "greedy strict" in ran.stdout
    found = read_json(file)["ci"]
    assert found["engines"] == {"base": "vllm", "trained": "vllm", "rollouts": "vllm"}
    log = read_jsonl(tmp_path / "ci" / "train_log.jsonl")
    assert found["steps"] == len(log) == 2 and found["tokens/s"] > 0
    assert found["comparison"]["greedy_strict"]["problems"] == 8
    assert not any(name.startswith("pass@") for name in found["comparison"])
