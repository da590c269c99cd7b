"""Out of memory: recognised, said with its numbers, and tried again in smaller passes."""

import pytest
import torch

from lib.config import resolve
from lib.models import load_policy
from lib.runs import Run, read_jsonl
from lib.training.run import make_trainer, train
from lib.training.survival import explained, is_out_of_memory, request
from tests.conftest import CPU, SMALL

CPU_ERROR = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes. Error code 12"  # noqa: E501
GPU_ERROR = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 14.56"


def test_what_counts_as_out_of_memory():
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**50)
    assert is_out_of_memory(real.value) and request(real.value) == f"asked for {2**22:.2f} GiB"
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError(GPU_ERROR))
    assert is_out_of_memory(RuntimeError(CPU_ERROR))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert request(RuntimeError(CPU_ERROR)) == "asked for 4.00 GiB"
    assert request(torch.OutOfMemoryError(GPU_ERROR)) == "asked for 2.50 GiB"
    assert request(MemoryError()) == "asked for more"


def trained(config, run, fails: dict[int, int]):
    """Three steps of eight completions; the backward passes at these steps fail so many times."""
    run.folder.mkdir()
    asked = [{"role": "user", "content": "Say a number."}]
    rows = [{"prompt": asked, "id": str(i), "answer": ""} for i in range(2)]

    def by_turns(completions, **_):
        return [float(i % 3) for i, _ in enumerate(completions)]

    policy = load_policy(config)
    trainer = make_trainer(policy, rows, [by_turns], [1.0], config, run)
    backward, left = trainer.accelerator.backward, dict(fails)

    def fails_first(loss, **options):
        backward(loss, **options)
        step = trainer.state.global_step + 1
        if left.get(step, 0):
            left[step] -= 1
            raise RuntimeError(CPU_ERROR)

    trainer.accelerator.backward = fails_first
    train(trainer, config, run)
    return trainer, read_jsonl(run.train_log)


def test_a_pass_that_does_not_fit_is_halved_and_the_run_goes_on(embedded, tmp_path, capsys):
    """Failing in the first step and in the third, where nothing was saved since the first."""
    config = resolve("ci", SMALL | dict(max_steps=3, micro_batch=8, save_steps=50), CPU)
    _, expected = trained(config, Run(tmp_path / "whole"), {})
    capsys.readouterr()
    trainer, log = trained(config, Run(tmp_path / "halved"), {1: 1, 3: 1})
    assert capsys.readouterr().out.count("A pass did not fit into memory") == 2
    assert trainer.args.per_device_train_batch_size == 2
    assert trainer.args.gradient_accumulation_steps == 4
    assert [row["step"] for row in log] == [1, 2, 3]
    for row, other in zip(log, expected, strict=True):
        assert row["grad_norm"] > 0 and row["learning_rate"] == other["learning_rate"]


def test_what_cannot_be_smaller_is_explained(embedded, tmp_path):
    config = resolve("ci", SMALL | dict(micro_batch=1), CPU)
    with pytest.raises(ValueError, match="ran out of memory") as error:
        trained(config, Run(tmp_path / "run"), {1: 1})
    assert error.value.key == "out-of-memory"
    model = load_policy(config).model
    sentence = str(explained(RuntimeError(CPU_ERROR), model, config))
    for words in ("asked for 4.00 GiB", "GiB free", "planned were", "activations"):
        assert words in sentence
