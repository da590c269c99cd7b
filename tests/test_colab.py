"""On a machine with a stack of its own, only what is lacking is installed."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from functools import cache

import pytest

from lib.config import ROOT
from tools.address import HOST, address, places, set_address
from tools.colab import lacking, lock_for, needs_of, normal, read_lock

LOCK = read_lock("requirements.txt")
needs = cache(lambda: list(needs_of(LOCK, "gpu")))


def lacks(**other: str) -> set[str]:
    """What is installed where all of the lock is there but for these versions ("": missing)."""
    there = {normal(pin.split("==")[0]): pin.split("==")[1] for pin in LOCK}
    there |= {name.replace("_", "-"): version for name, version in other.items()}
    here = {name: version for name, version in there.items() if version}
    return {pin.split("==")[0] for pin in lacking(LOCK, needs(), here)}


def test_only_what_is_missing_or_does_not_meet_a_need_is_installed():
    assert lacks() == set()
    torch = next(pin.split("==")[1] for pin in LOCK if pin.startswith("torch=="))
    assert lacks(torch=f"{torch}+cu130", wandb="0.99", math_verify="0.9.0") == set()
    assert lacks(math_verify="") == {"math-verify"}
    assert lacks(trl="1.14.0", torch="2.11.0+cu128", pandas="2.2.2") == {"trl", "torch", "pandas"}
    assert lacks(pyarrow="15.0.0") == {"pyarrow"}  # datasets needs it
    # The machine's own page keeps what it speaks by.
    assert lacks(ipykernel="6.17.1", ipython="7.34.0", tornado="6.3") == set()


def test_the_driver_decides_the_lock():
    assert lock_for("580.95.05") == lock_for("") == "requirements.txt"
    assert lock_for("550.54.15") == "requirements-cu128.txt"


def wrong_places(root) -> list[str]:
    """What fetches the suite from somewhere else than pyproject.toml says."""
    repository = address(root)
    wrong = []
    for file in sorted((root / "notebooks").glob("*.ipynb")):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        wrong += [file.name] if f" {repository} " not in code[0] else []
    main_path = [file for file in places(root)[2:] if file.name < "06"]
    for file in [root / "README.md", *main_path]:
        badge = f"github/{repository.removeprefix(HOST)}/blob/main/notebooks/"
        badge += "01_setup.ipynb" if file.name == "README.md" else file.name
        wrong += [file.name] if badge not in file.read_text(encoding="utf-8") else []
    return wrong


def test_badges_and_first_cells_have_the_projects_address(tmp_path):
    assert wrong_places(ROOT) == []
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    set_address("https://github.com/me/mine", tmp_path)
    assert address(tmp_path) == "https://github.com/me/mine" and wrong_places(tmp_path) == []
    with pytest.raises(SystemExit, match="github"):
        set_address("https://example.org/me/mine", tmp_path)


def test_the_first_cell_fetches_the_suite_once(tmp_path):
    """From a folder in the address's place, and has what lacks installed, here by no real uv."""
    cells = json.loads((ROOT / "notebooks/01_setup.ipynb").read_text(encoding="utf-8"))["cells"]
    first = next("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    folders = content, tools = tmp_path / "content", tmp_path / "tools"
    for folder in folders:
        folder.mkdir()
    (tools / "uv").write_text("#!/bin/sh\n")
    (tools / "uv").chmod(0o755)
    cell = (
        first.replace(address(ROOT), str(ROOT)) + "\nimport lib.errors; print(lib.errors.__file__)"
    )
    (content / "cell.ipy").write_text(cell)
    # The environment's packages without its path file, by which the suite would be installed.
    code = f"import sys; sys.path.append({sysconfig.get_path('purelib')!r}); import IPython; "
    code += "IPython.start_ipython(['--quick', '--no-banner', 'cell.ipy'])"
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "IPYTHONDIR": str(tools)}
    for _ in range(2):  # again after a restart of the kernel
        command = [sys.executable, "-S", "-P", "-c", code]
        done = subprocess.run(
            command, cwd=content, env=environment, capture_output=True, text=True, timeout=120
        )
        assert "of the suite's" in done.stdout, done.stderr
        assert done.stdout.split()[-1] == str(content / "suite/lib/errors.py"), done.stdout
