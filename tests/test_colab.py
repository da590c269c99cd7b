"""On a machine with a stack of its own, only what is lacking is installed."""

import json
import tomllib

from lib.config import ROOT
from tools.colab import lacking, lock_for, normal

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXACT = {"trl", "torch", "vllm"}


def pins(name):
    return [line for line in (ROOT / name).read_text().splitlines() if "==" in line]


def test_where_all_is_there_nothing_is_installed():
    lock = pins("requirements.txt")
    installed = {normal(p.split("==")[0]): p.split("==")[1] for p in lock}
    assert lacking(lock, EXACT, installed) == []
    installed["torch"] += "+cu130"
    assert lacking(lock, EXACT, installed) == []


def test_other_versions_stay_but_for_those_pinned_exactly():
    lock = pins("requirements.txt")
    installed = {normal(p.split("==")[0]): "0.1" for p in lock}
    assert {p.split("==")[0] for p in lacking(lock, EXACT, installed)} == EXACT
    del installed["vllm"], installed["math-verify"]
    wanted = {p.split("==")[0] for p in lacking(lock, EXACT, installed)}
    assert wanted == EXACT | {"math-verify"}


def test_the_driver_decides_the_lock():
    assert lock_for("580.95.05") == lock_for("") == "requirements.txt"
    assert lock_for("550.54.15") == "requirements-cu128.txt"


def test_the_notebooks_fetch_the_suite_from_the_projects_address():
    address = PROJECT["urls"]["Repository"]
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        assert f'"{address}"' in code[0], file.name
        badge = "".join(cells[0]["source"])
        if file.name < "06":
            place = address.removeprefix("https://github.com/")
            assert f"github/{place}/blob/main/notebooks/{file.name})" in badge
