"""Ours on the trainer that Unsloth puts in the place of TRL's on a GPU. It writes that trainer here
as well, once its GPU code is imported, so that all but its kernels and its vLLM is tried."""

import json
import os

import pytest

from lib.config import ROOT
from tests.conftest import python

# On a CPU as most laptops have it, for which vLLM has another build of its kernels.
SCRIPT = """
import json, re, shutil, sys, torch
torch.cpu._is_avx512_bf16_supported = torch.cpu._is_avx512_supported = lambda: False
from lib.config import resolve
from lib.files import read_jsonl
from lib.runs import hushed, open_run
given = dict(output_dir=sys.argv[1], model=sys.argv[2], profile="cpu", backend="unsloth")
given |= dict(max_steps=2, micro_batch=2, num_generations=2, shots=0, max_completion_length=6)
config = resolve("ci", given)
run = open_run(config)
with hushed(run):
    from lib.stack import choose_backend
    choose_backend(config)
    import unsloth, unsloth.models.rl
    from lib.models import load_policy
    from lib.tasks import load_problems, make_rows
    from lib.training import make_trainer, save_trained, train
    from lib.training.rollouts import RolloutEngine
    from tests.conftest import by_turns
    _, training, _, examples = load_problems(config)
    rows = make_rows(training, config.prompt_format, config.shots, examples)

    def learn(config):
        policy = load_policy(config)
        trainer = make_trainer(policy, rows, [by_turns], [1.0], config, run)
        train(trainer, config, run)
        save_trained(policy, config, run)
        RolloutEngine.start = lambda *_: trainer.engine  # in the next training, too
        return trainer.is_unsloths, policy.notes, read_jsonl(run.train_log)

    unsloths, notes, log = learn(config)
    rollouts = [read_jsonl(path) for path in sorted(run.rollouts.iterdir())]
    shutil.rmtree(run.checkpoints / "checkpoint-2")
    *_, again = learn(resolve("ci", given | {"resume": True}))
kernels = sorted(set(re.findall(r"vllm/(_C\\w*)", open("/proc/self/maps").read())))
print(json.dumps(dict(unsloths=unsloths, notes=notes, log=log, again=again, kernels=kernels,
                      rollouts=rollouts, kept=[p.name for p in run.checkpoints.iterdir()])))
"""


def test_one_build_of_vllms_kernels_is_loaded(seen):
    """Two of them end the process, and Unsloth itself would load another one than vLLM."""
    assert seen["kernels"] == ["_C_AVX2"]


@pytest.fixture(scope="module")
def seen(first_layers, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("unsloth")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "UNSLOTH_COMPILE_DISABLE": "1"}
    said = python("-c", SCRIPT, folder, first_layers, cwd=folder, env=environment)
    return json.loads(said.splitlines()[-1])


def test_it_trains_by_unsloths_trainer_and_says_what_that_does_not_do(seen):
    """Every completion is kept, and the entropy logged."""
    assert seen["unsloths"]
    assert any("Unsloth's trainer has a loss of its own" in note for note in seen["notes"])
    assert [len(rows) for rows in seen["rollouts"]] == [4, 4]
    for row, rows in zip(seen["log"], seen["rollouts"], strict=True):
        assert row["grad_norm"] > 0 and 0 < row["entropy"] < 12
        assert sum(r["total"] for r in rows) / 4 == pytest.approx(row["reward"], abs=1e-5)
        assert any(r["advantage"] for r in rows) == (row["frac_reward_zero_std"] < 1)


def test_a_resumed_run_goes_on_as_it_would_have(seen):
    assert [row["step"] for row in seen["again"]] == [1, 2]
    assert seen["again"][0] == seen["log"][0]
    for key in ("reward", "entropy", "grad_norm", "learning_rate"):
        assert seen["again"][1][key] == pytest.approx(seen["log"][1][key], rel=1e-3), key
    assert "checkpoint-2" in seen["kept"]
