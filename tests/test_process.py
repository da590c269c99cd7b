"""A process that trains: byte code kept where Python is told not to write it; its energy."""

import os
import subprocess
import sys

from lib.config import ROOT
from lib.runs import append_jsonl

PROGRAM = """
import importlib.util
import os
import sys
from pathlib import Path

from lib.process import keep_byte_code

keep_byte_code(Path(sys.argv[1]))
import lib.stack

cached = Path(importlib.util.cache_from_source(lib.stack.__file__))
print(cached.is_file() and cached.is_relative_to(sys.argv[1]))
print(os.environ.get("PYTHONPYCACHEPREFIX"))
"""


def kept(folder, **environment) -> list[str]:
    """What PROGRAM says of the module it imported and of what its children will do."""
    bare = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    asked = subprocess.run(
        command, cwd=ROOT, env=bare | environment, capture_output=True, text=True, check=True
    )
    return asked.stdout.split()


def test_byte_code_is_kept_apart_where_it_may_not_lie_beside_its_source(tmp_path):
    assert kept(tmp_path, PYTHONDONTWRITEBYTECODE="1") == ["True", str(tmp_path)]


def test_python_keeps_its_own_way_where_it_may_write(tmp_path):
    elsewhere = str(tmp_path / "elsewhere")
    assert kept(tmp_path / "ours", PYTHONPYCACHEPREFIX=elsewhere) == ["False", elsewhere]


def test_a_runs_energy_is_what_the_cards_took_in_it_also_after_a_resume(
    run, ci_config, monkeypatch
):
    from types import SimpleNamespace

    from lib.training import callbacks

    readings = iter([100.0, 103.5, 200.0, 201.0])  # of the counter, in Wh
    monkeypatch.setattr(callbacks, "gpu_energy", lambda: next(readings))
    for step, energy in ((0, 3.5), (1, 4.5)):
        log = callbacks.StepLog(run, ci_config, problems=8)
        log.on_train_begin(SimpleNamespace(max_steps=2), SimpleNamespace(global_step=step), None)
        append_jsonl(run.train_log, [{"step": step + 1, "seconds": 1.0}])
        log.on_train_end(None, None, None)
        assert run.recorded()["energy_wh"] == energy
