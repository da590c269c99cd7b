"""What `make gpu-check` rests on: a recipe trained and measured in one process."""

from benchmarks.accuracy import main
from lib.files import read_json, read_jsonl
from tests.conftest import as_parameters


def test_a_recipe_is_trained_measured_and_written_down(tmp_path, first_layers, capsys):
    file = tmp_path / "found.json"
    given = {"output_dir": str(tmp_path), "profile": "cpu", "backend": "transformers"}
    given |= {"eval_samples": 0, "model": str(first_layers)}
    assert main(["ci", *as_parameters(given), "--json", str(file)]) == 0
    assert "greedy strict" in capsys.readouterr().out
    found = read_json(file)["ci"]
    assert found["engines"] == {"base": "vllm", "trained": "vllm", "rollouts": "vllm"}
    log = read_jsonl(tmp_path / "ci" / "train_log.jsonl")
    assert found["steps"] == len(log) == 2 and found["tokens/s"] > 0
    assert found["comparison"]["greedy_strict"]["problems"] == 8
    assert not any(name.startswith("pass@") for name in found["comparison"])
