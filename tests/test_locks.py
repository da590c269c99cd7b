"""The locks are what pyproject.toml asks for, and name no address."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement

from lib.config import ROOT
from tools.lock import LOCKS, digest, header

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


@pytest.mark.parametrize(("name", "extra"), LOCKS.items())
def test_lock_meets_every_requirement(name, extra):
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"][extra]
    locked = pins(name)
    for requirement in map(Requirement, wanted):
        version = locked[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(version), f"{requirement} but {version} in {name}"


@pytest.mark.parametrize("name", [*LOCKS, "environment.yml"])
def test_no_addresses(name):
    assert not re.search(r"https?:|://|--find-links|--index", (ROOT / name).read_text())
