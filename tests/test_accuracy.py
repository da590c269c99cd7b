"""What `make gpu-check` rests on: a recipe trained and measured in one process."""

from lib.files import read_json, read_jsonl
from tests.conftest import python


def test_a_recipe_is_trained_measured_and_written_down(tmp_path, first_layers):
    file = tmp_path / "found.json"
    given = ["-p", "output_dir", str(tmp_path), "-p", "profile", "cpu", "-p", "eval_samples", "0"]
    given += ["-p", "model", str(first_layers)]
    assert "greedy strict" in python("-m", "benchmarks.accuracy", "ci", *given, "--json", file)
    found = read_json(file)["ci"]
    assert found["engines"] == {"base": "vllm", "trained": "vllm", "rollouts": "vllm"}
    log = read_jsonl(tmp_path / "ci" / "train_log.jsonl")
    assert found["steps"] == len(log) == 2 and found["tokens/s"] > 0
    assert found["comparison"]["greedy_strict"]["problems"] == 8
    assert not any(name.startswith("pass@") for name in found["comparison"])
