"""How a process that trains is set up: byte code kept where Python is told not to write it."""

import os
import subprocess
import sys

from lib.config import ROOT

PROGRAM = """
import importlib.util
import os
import sys
from pathlib import Path

from lib.process import keep_byte_code

keep_byte_code(Path(sys.argv[1]))
import lib.progress

cached = Path(importlib.util.cache_from_source(lib.progress.__file__))
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
