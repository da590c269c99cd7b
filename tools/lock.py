"""Write the locks (requirements*.txt) and environment.yml from pyproject.toml.

Run through `make lock`; what is locked already stays where pyproject.toml
still allows it (`make lock LOCK_ARGS=--upgrade` moves on). The locks are
resolved for CPython 3.11 on x86-64 Linux and hold for 3.12 and 3.13 too: every
pin has a wheel or a pure source there, and [tool.locks] names what only they
need. They name no address; each starts with a digest of what it was made from,
by which `tests/test_locks.py` notices that pyproject.toml has moved on.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
USER = ("gguf", "serve")
LOCKS = {  # file: the extras in it
    "requirements.txt": ("gpu", *USER),
    "requirements-cu128.txt": ("cu128", *USER),
    "requirements-cpu.txt": ("cpu", *USER),
    # What `make test` adds to the CPU lock: nothing that is in there already.
    "requirements-dev.txt": ("cpu", *USER, "ray", "dev"),
}
ENVIRONMENT = """\
{header}
# The locks are complete: install them without resolving again.
#   PIP_NO_DEPS=1 conda env create -f environment.yml
name: grpo-notebooks
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python=3.11
  - pip
  - pip:
      - -r requirements.txt
"""


def digest(root: Path = ROOT) -> str:
    """Digest of every part of pyproject.toml that decides a version."""
    data = tomllib.loads((root / "pyproject.toml").read_text())
    project, tool = data["project"], data["tool"]
    chosen = [
        project["requires-python"],
        project["dependencies"],
        project["optional-dependencies"],
        tool["uv"],
        tool["locks"],
    ]
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


def header(root: Path = ROOT) -> str:
    return f"# Made by `make lock` from pyproject.toml ({digest(root)}); edit that file instead."


def resolve(extras: tuple[str, ...], pins: list[str]) -> list[str]:
    """Pinned requirements of some extras, as uv resolves them, near to `pins`."""
    locks = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["locks"]
    with tempfile.TemporaryDirectory() as folder:
        out, unwanted = Path(folder, "lock.txt"), Path(folder, "unwanted.txt")
        out.write_text("\n".join(pins))
        unwanted.write_text("\n".join(locks[f"{extras[0]}-excludes"]))
        command = [
            *("uv", "pip", "compile", "-q", "pyproject.toml", "-o", str(out)),
            *(f"--extra={extra}" for extra in extras),
            *("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"),
            *("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"),
            *("--excludes", str(unwanted)),
        ]
        if extras[0] == "cpu":
            command += sys.argv[1:]  # e.g. --torch-backend cpu, or --find-links
        elif "--upgrade" in sys.argv:
            command += ["--upgrade"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        pins = {*out.read_text().splitlines(), *locks["newer-pythons"]}
        return sorted(pins, key=lambda pin: pin.partition("==")[0].lower().replace("_", "-"))


def read(name: str) -> list[str]:
    """The pins of a lock."""
    file = ROOT / name
    lines = file.read_text().splitlines() if file.is_file() else []
    return [line for line in lines if line and not line.startswith("#")]


def main() -> None:
    old = read("requirements-cpu.txt") + read("requirements-dev.txt")
    everything = resolve(LOCKS["requirements-dev.txt"], old)
    for name, extras in LOCKS.items():
        near = {"gpu": read(name), "cu128": read(name) or read("requirements.txt")}
        pins = resolve(extras, near.get(extras[0], everything))
        if "dev" in extras:
            pins = [pin for pin in everything if pin not in read("requirements-cpu.txt")]
        (ROOT / name).write_text("\n".join([header(), *pins]) + "\n")
        print(f"{name}: {len(pins)} packages")
    (ROOT / "environment.yml").write_text(ENVIRONMENT.format(header=header()))


if __name__ == "__main__":
    main()
