"""Out of memory: recognised, said with its numbers, and tried again in smaller passes."""

import pytest
import torch

from lib.files import read_jsonl
from lib.memory import ran_out, shape_of
from lib.stack import is_out_of_memory
from lib.training import train
from tests.conftest import refuses

CPU_ERROR = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes. Error code 12"  # noqa: E501
GPU_ERROR = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 14.56"


def test_what_counts_as_out_of_memory():
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**50)
    for error in (real.value, MemoryError(), torch.OutOfMemoryError(GPU_ERROR)):
        assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def fails_at(trainer, fails: dict[int, int]) -> None:
    """The backward passes at these steps fail that many times."""
    backward, left = trainer.accelerator.backward, dict(fails)

    def fails_first(loss, **options):
        backward(loss, **options)
        step = trainer.state.global_step + 1
        if left.get(step, 0):
            left[step] -= 1
            raise RuntimeError(CPU_ERROR)

    trainer.accelerator.backward = fails_first


def test_a_pass_that_does_not_fit_is_halved_and_the_run_goes_on(small_training, capsys):
    """Failing in the first step and in the third, where nothing was saved since the first."""
    given = dict(max_steps=3, micro_batch=8, save_steps=50, lr_scheduler="linear")
    trainer, config, run = small_training(**given)
    fails_at(trainer, {1: 1, 3: 1})
    train(trainer, config, run)
    assert capsys.readouterr().out.count("A pass did not fit into memory") == 2
    assert trainer.args.per_device_train_batch_size == 2
    assert trainer.args.gradient_accumulation_steps == 4
    log = read_jsonl(run.train_log)
    assert [row["step"] for row in log] == [1, 2, 3] and all(row["grad_norm"] > 0 for row in log)
    rates = [row["learning_rate"] / config.learning_rate for row in log]
    assert rates == pytest.approx([1, 2 / 3, 1 / 3])


@pytest.mark.parametrize("given", [{"micro_batch": 1}, {"micro_batch": 8, "loss_type": "bnpo"}])
def test_what_cannot_be_smaller_is_explained(small_training, given):
    """Or may not: bnpo is a mean over the tokens of a pass."""
    trainer, config, run = small_training(**given)
    fails_at(trainer, {1: 1})
    with refuses("out-of-memory"):
        train(trainer, config, run)
    sentence = str(ran_out(shape_of(trainer.model.config.to_dict()), config))
    for words in ("GiB free", "planned were", "activations", "try"):
        assert words in sentence
