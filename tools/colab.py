"""Install on Colab (or another machine with a stack of its own) what the suite lacks there.

    %run suite/tools/colab.py

Of the lock, only what is not there, or there in a version that the suite or another package of the
lock does not take; the machine's other packages stay as they are. The kernel starts anew only where
a package was replaced that it had imported already.
"""

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as normal

ROOT = Path(__file__).resolve().parent.parent
TOGETHER = {"torch", "torchvision", "torchaudio", "triton"}  # built for one another: as locked
# What the machine's own page speaks to its kernel by.
PAGE = {"ipykernel", "ipython", "ipywidgets", "jupyter-client", "pyzmq", "tornado", "traitlets"}


def lacking(
    lock: Iterable[str], needs: Iterable[Requirement], installed: dict[str, str]
) -> list[str]:
    """The lock's pins to install: of packages that are missing, or do not meet a need.

    >>> lacking(["trl==1.15", "numpy==2.3"], [Requirement("trl>=1")], {"trl": "0.9", "numpy": "1"})
    ['trl==1.15']
    """
    wanted, needs = [], list(needs)
    for pin in lock:
        name, version = pin.split("==")
        here = installed.get(normal(name))
        unmet = here and any(
            need.specifier.contains(version, True) and not need.specifier.contains(here, True)
            for need in needs
            if normal(need.name) == normal(name)
        )
        if not here or (unmet and normal(name) not in PAGE):
            wanted.append(pin)
    return wanted


def lock_for(driver: str) -> str:
    """The lock that a driver of this version runs; the newer one where none is known."""
    old = driver and int(driver.split(".")[0]) < 580
    return "requirements-cu128.txt" if old else "requirements.txt"


def read_lock(name: str) -> list[str]:
    """The pins of a lock for this Python."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if "==" in line]
    return [line.partition(" ;")[0] for line in lines if _applies(Requirement(line))]


def _applies(need: Requirement) -> bool:
    return need.marker is None or need.marker.evaluate({"extra": ""})


def needs_of(lock: list[str], extra: str) -> Iterator[Requirement]:
    """What the suite needs, and what those of the lock's packages need that are installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"][extra]
    yield from map(Requirement, lines + [pin for pin in lock if pin.split("==")[0] in TOGETHER])
    names = {normal(pin.split("==")[0]) for pin in lock}
    for package in distributions():
        if normal(package.name or "") in names:
            for need in map(Requirement, package.requires or ()):
                if _applies(need):
                    yield need


def versions() -> dict[str, str]:
    return {normal(package.name): package.version for package in distributions() if package.name}


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    except FileNotFoundError:
        lines = []
    return lines[0] if lines else ""


def prepare() -> None:
    """Install what is lacking; says what, and restarts the kernel where it must."""
    name = lock_for(driver())
    lock = read_lock(name)
    extra = "gpu" if name == "requirements.txt" else "cu128"
    before, done = versions(), set()
    while wanted := set(lacking(lock, needs_of(lock, extra), versions())) - done:
        print(f"Installing {len(wanted)} of the suite's {len(lock)} packages; some minutes.")
        pip = [sys.executable, "-m", "pip", "install"]
        if uv := shutil.which("uv"):
            pip = [uv, "pip", "install", "--python", sys.executable]
        subprocess.run([*pip, "-q", "--no-deps", *sorted(wanted)], check=True)
        done |= wanted
    replaced = {normal(pin.split("==")[0]) for pin in done} & set(before)
    modules = packages_distributions().items() if replaced else ()
    loaded = [(m, of) for m, of in modules if m in sys.modules and m[0] != "_"]
    stale = [m for m, of in loaded if replaced & set(map(normal, of))]
    if stale:
        print(f"{', '.join(stale)} had been imported: the kernel restarts, run this cell again.")
        from IPython import get_ipython

        get_ipython().kernel.do_shutdown(restart=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    prepare()
