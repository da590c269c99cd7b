"""Set the repository's address, in pyproject.toml and where the suite is fetched from it.

    python -m tools.address https://github.com/me/grpo-notebooks

pyproject.toml's [project.urls] is the one place that counts; badges and first cells follow it, and
`tests/test_colab.py` holds them equal.
"""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOST = "https://github.com/"


def places(root: Path) -> list[Path]:
    return [root / "pyproject.toml", root / "README.md", *sorted(root.glob("notebooks/*.ipynb"))]


def address(root: Path = ROOT) -> str:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"]


def set_address(new: str, root: Path = ROOT) -> None:
    if not new.startswith(HOST) or new.count("/") != 4:
        sys.exit(f"Colab opens notebooks from {HOST}OWNER/NAME: give an address like that.")
    old, new = (each.removeprefix(HOST) for each in (address(root), new))
    for file in places(root):
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace(old, new), encoding="utf-8")


if __name__ == "__main__":
    set_address(sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "")
