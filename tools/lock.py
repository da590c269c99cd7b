"""Write requirements.txt, requirements-cpu.txt and environment.yml from pyproject.toml.

Run through `make lock`. The locks are resolved for CPython 3.11 on x86-64
Linux and hold for 3.12 and 3.13 too: every pin has a wheel or a pure source
there. They name no address; each starts with a digest of what it was made
from, by which `tests/test_locks.py` notices that pyproject.toml has moved on.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = {"requirements.txt": "gpu", "requirements-cpu.txt": "cpu"}
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


def compile_lock(extra: str, excludes: list[str]) -> str:
    """Pinned requirements of one extra, as uv resolves them."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as unwanted:
        unwanted.write("\n".join(excludes))
        unwanted.flush()
        command = [
            *("uv", "pip", "compile", "-q", "pyproject.toml", "--extra", extra),
            *("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"),
            *("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"),
            *("--excludes", unwanted.name),
        ]
        if extra == "cpu":
            command += sys.argv[1:]  # e.g. --torch-backend cpu, or --find-links
        return subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=-1).stdout


def main() -> None:
    locks = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["locks"]
    for name, extra in LOCKS.items():
        pins = compile_lock(extra, locks["cpu-excludes"] if extra == "cpu" else [])
        (ROOT / name).write_text(f"{header()}\n{pins}")
        print(f"{name}: {len(pins.splitlines())} packages")
    (ROOT / "environment.yml").write_text(ENVIRONMENT.format(header=header()))


if __name__ == "__main__":
    main()
