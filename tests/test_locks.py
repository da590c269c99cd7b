"""The locks are what pyproject.toml asks for, and name no address."""

import ast
import re
import sys
import tomllib
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lib.config import ROOT
from tools.lock import LOCKS, USER, digest, header

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    found = [re.match(r"([\w.-]+)==(\S+)", line) for line in lines]
    return {m[1].lower().replace("_", "-"): m[2] for m in found if m}


@pytest.mark.parametrize("name", [*LOCKS, "environment.yml"])
def test_lock_was_made_from_this_pyproject(name):
    assert (ROOT / name).read_text().startswith(header()), (
        f"pyproject.toml has moved on ({digest()}): run `make lock` and commit {name}"
    )


@pytest.mark.parametrize(("name", "extras"), LOCKS.items())
def test_lock_meets_every_requirement(name, extras):
    wanted = list(PROJECT["dependencies"])
    for extra in extras:
        wanted += PROJECT["optional-dependencies"][extra]
    locked = pins(name) if "dev" not in extras else pins("requirements-cpu.txt") | pins(name)
    for requirement in map(Requirement, wanted):
        version = locked[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(version), f"{requirement} but {version} in {name}"


def test_users_install_no_test_packages():
    dev = [Requirement(line).name for line in PROJECT["optional-dependencies"]["dev"]]
    for name in ("requirements.txt", "requirements-cpu.txt"):
        assert not set(dev) & set(pins(name)), name
    assert not set(pins("requirements-cpu.txt")) & set(pins("requirements-dev.txt"))


def test_the_gpu_lock_has_what_4_bit_needs_and_nothing_for_another_torch():
    locked = pins("requirements.txt")
    assert {"bitsandbytes", "vllm-bnb-plugin"} <= set(locked)
    assert "xformers" not in locked


def test_every_imported_package_is_declared():
    """What lib imports stands in `dependencies`, or in an extra that users install or ask for."""
    extras = PROJECT["optional-dependencies"]
    lines = PROJECT["dependencies"] + [
        line for extra in ("gpu", "cpu", *USER, "ray") for line in extras[extra]
    ]
    declared = {Requirement(line).name.lower().replace("_", "-") for line in lines}
    provided_by = packages_distributions()
    for file in (ROOT / "lib").rglob("*.py"):
        for module in imported(file):
            names = {n.lower().replace("_", "-") for n in provided_by.get(module, [module])}
            assert names & declared, f"{file.relative_to(ROOT)} imports {module}: declare it"


def imported(file: Path) -> set[str]:
    """Top-level names of what a file imports that is neither Python's nor the project's."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    tops = {name.partition(".")[0] for name in names}
    return tops - set(sys.stdlib_module_names) - {"lib", "__future__"}


@pytest.mark.parametrize("name", [*LOCKS, "environment.yml"])
def test_no_addresses(name):
    assert not re.search(r"https?:|://|--find-links|--index", (ROOT / name).read_text())


def test_the_lock_holds_what_its_packages_need():
    """On each Python, as far as packages are installed here; what [tool] leaves out on purpose."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    uv, locked = tool["uv"], pins("requirements-cpu.txt")
    left_out = {*uv["exclude-dependencies"], *tool["locks"]["cpu-excludes"]}
    left_out |= {Requirement(line).name for line in uv["override-dependencies"]}
    pythons = [
        {"extra": "", "python_version": python, "python_full_version": f"{python}.1"}
        for python in ("3.11", "3.12", "3.13")
    ]
    for package in distributions():
        if locked.get(canonicalize_name(package.name)) != package.version:
            continue
        for need in map(Requirement, package.requires or ()):
            name = canonicalize_name(need.name)
            wanted = not need.marker or any(map(need.marker.evaluate, pythons))
            if wanted and name not in left_out:
                assert need.specifier.contains(locked.get(name, "0"), True), (package.name, need)
