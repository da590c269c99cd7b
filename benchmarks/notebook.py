"""What a notebook costs over its own code as a script.

    python benchmarks/notebook.py [--notebook 03_training] [--recipe demo] [--json FILE]

Runs the notebook by the suite's runner and the cells of the same notebook, one after the other,
as a plain Python script, each in a process of its own, and prints the ratio of their wall times.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lib.hardware import detect_hardware  # noqa: E402
from lib.runs import installed_versions, write_json  # noqa: E402


def script_of(notebook: Path) -> str:
    """The code cells in order."""
    cells = json.loads(notebook.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n\n".join(["from IPython.display import display", *code]) + "\n"


def seconds(command: list[str], **environment: str) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--notebook", default="03_training")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        script.write_text(script_of(ROOT / "notebooks" / f"{asked.notebook}.ipynb"))
        places = {"GRPO_RECIPE": asked.recipe, "GRPO_OUTPUT_DIR": folder}
        as_script = seconds([sys.executable, str(script)], GRPO_RUN="script", **places)
        number = asked.notebook.split("_")[0]
        runner = [sys.executable, "-m", "lib.suite", asked.recipe, "--only", number]
        runner += ["-p", "output_dir", folder, "-p", "run", "notebook"]
        as_notebook = seconds(runner)
    found = {
        "notebook": asked.notebook,
        "recipe": asked.recipe,
        "script_seconds": as_script,
        "notebook_seconds": as_notebook,
        "ratios": {"script": as_notebook / as_script},
        "versions": installed_versions(),
        "hardware": f"{detect_hardware()}; {platform.processor() or platform.machine()}",
    }
    print(f"as a script {as_script:.1f} s, as a notebook {as_notebook:.1f} s")
    print(f"notebook over script: {as_notebook / as_script:.3f}")
    if asked.json:
        write_json(asked.json, found)


if __name__ == "__main__":
    main()
