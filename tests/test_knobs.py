"""No knob of the installed trainer is without a value that we know of."""

import ast
import dataclasses
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from lib.config import ROOT
from lib.training.knobs import LEFT, UNSLOTH, drift, stated
from lib.training.run import grpo_arguments

# In a process of its own, since it rewrites TRL; on a CPU it must be asked to. It prints, so the
# answer goes to a file.
ASK_UNSLOTH = """
import inspect, sys
from unsloth.models.rl import PatchFastRL
PatchFastRL()
from trl import GRPOConfig
asked = inspect.signature(GRPOConfig.__init__).parameters.values()
known = {p.name: p.default for p in asked if p.kind == p.POSITIONAL_OR_KEYWORD}
del known["self"]
plain = {name: getattr(default, "value", default) for name, default in known.items()}
open(sys.argv[1], "w").write(repr(plain))
"""


@pytest.fixture
def asked(ci_config, run) -> set[str]:
    return set(grpo_arguments(ci_config, run))


def test_every_knob_of_trl_is_set_or_stated(asked):
    from trl import GRPOConfig

    installed = {}
    for field in dataclasses.fields(GRPOConfig):
        made = field.default_factory
        installed[field.name] = field.default if made is dataclasses.MISSING else made()
    assert len(installed) > 150
    assert drift(installed, asked, stated(LEFT)) == []


def test_every_knob_of_unsloth_is_set_or_stated(asked, tmp_path):
    if find_spec("unsloth") is None:
        pytest.skip("unsloth is not installed")
    answer = tmp_path / "knobs"
    settings = {"UNSLOTH_COMPILE_LOCATION": str(tmp_path / "compiled")}
    subprocess.run(
        [sys.executable, "-c", ASK_UNSLOTH, str(answer)],
        cwd=tmp_path,
        env=os.environ | settings | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    )
    installed = ast.literal_eval(answer.read_text())
    assert "unsloth_num_chunks" in installed
    # It takes the base class's further knobs without naming them.
    left = {knob: said for knob, said in stated(LEFT, UNSLOTH).items() if knob in installed}
    assert drift(installed, asked, left) == []


def test_each_knob_is_stated_once():
    for table in (LEFT, UNSLOTH):
        assert len(stated(table)) == sum(map(len, table.values()))


def test_a_change_is_told():
    left = {"old": (1, "reason"), "gone": (0, "reason")}
    installed = {"set": 5, "old": 2, "new": 3}
    assert drift(installed, {"set"}, left) == [
        "old has the default 2, and 1 is stated.",
        "new is new, with the default 3: set it or state it.",
        "gone is no knob.",
    ]
    [told] = drift({"old": 1}, {"old"}, {"old": (1, "reason")})
    assert told == "old is set, and stated as left at 1."
