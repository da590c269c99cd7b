"""Install on Colab (or another machine with a stack of its own) what the suite lacks there.

    from tools.colab import prepare
    prepare()

Of the lock, only what is not there at all and what the suite pins exactly; the machine's other
packages stay as they are. The kernel starts anew only where a package was replaced that it had
imported already.
"""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lacking(lock: list[str], exact: set[str], installed: dict[str, str]) -> list[str]:
    """The lock's pins to install: of packages that are missing, or exact ones of other versions.

    >>> lacking(["trl==1.15.0", "numpy==2.3.5"], {"trl"}, {"trl": "0.9", "numpy": "1.0"})
    ['trl==1.15.0']
    """
    pins = dict(line.split("==") for line in lock)
    return [
        f"{name}=={version}"
        for name, version in pins.items()
        if normal(name) not in installed
        or (normal(name) in exact and installed[normal(name)].partition("+")[0] != version)
    ]


def lock_for(driver: str) -> str:
    """The lock that a driver of this version runs; the newer one where none is known."""
    old = driver and int(driver.split(".")[0]) < 580
    return "requirements-cu128.txt" if old else "requirements.txt"


def prepare() -> None:
    """Install what is lacking; says what, and restarts the kernel where it must."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        driver = ""
    name = lock_for(driver.splitlines()[0] if driver else "")
    lock = [line for line in (ROOT / name).read_text().splitlines() if "==" in line]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]["gpu" if name == "requirements.txt" else "cu128"]
    exact = {normal(x.split("==")[0]) for x in project["dependencies"] + extra if "==" in x}
    exact |= {"torch", "torchvision", "torchaudio", "triton"}  # built for one another
    installed = {normal(d.name): d.version for d in distributions() if d.name}
    wanted = lacking(lock, exact, installed)
    if not wanted:
        return
    print(f"Installing {len(wanted)} of the suite's {len(lock)} packages; some minutes.")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", *wanted]
    subprocess.run(pip, check=True)
    replaced = {pin.split("==")[0] for pin in wanted if normal(pin.split("==")[0]) in installed}
    stale = sorted(name for name in replaced if name.replace("-", "_") in sys.modules)
    if stale:
        print(f"{', '.join(stale)} had been imported: the kernel restarts, run this cell again.")
        from IPython import get_ipython

        get_ipython().kernel.do_shutdown(restart=True)


if __name__ == "__main__":
    prepare()
