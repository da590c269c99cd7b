"""What running 03_training as a notebook costs, beside the same cells as a plain script.

    python benchmarks/notebook.py [--steps 2] [--repeat 2] [--json FILE]

Both begin with a new process, train the demo's recipe with the same seed for so many steps, and
take turns. The notebook runs as the runner runs it: by papermill in a kernel, its figures and
tables drawn and kept. The script is nbconvert's export of it, which draws nothing.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nbconvert import PythonExporter  # noqa: E402
from papermill.iorw import load_notebook_node  # noqa: E402
from papermill.parameterize import parameterize_notebook  # noqa: E402

from lib.config import resolve  # noqa: E402
from lib.execute import NOTEBOOKS, run_notebook  # noqa: E402
from lib.hardware import detect_hardware  # noqa: E402
from lib.runs import installed_versions, open_run, read_jsonl, write_json  # noqa: E402

NAME = "03_training"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    # What Unsloth compiles is there from an earlier run, or the first would do it for all.
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(ROOT / "outputs/.cache/unsloth"))
    seconds = {"script": [], "notebook": []}
    rewards = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(asked.repeat):
            for way, taken in seconds.items():
                given = {"max_steps": asked.steps, "run": f"{way}{turn}", "output_dir": folder}
                run = open_run(resolve("demo", given))
                started = time.perf_counter()
                (as_script if way == "script" else as_notebook)(run, {"recipe": "demo", **given})
                taken.append(time.perf_counter() - started)
                rewards.append([step["reward"] for step in read_jsonl(run.train_log)])
                print(f"{way}: {taken[-1]:.1f} s", flush=True)
    assert all(found == rewards[0] for found in rewards), "The runs did not do the same."
    script, notebook = (sum(taken) / len(taken) for taken in seconds.values())
    print(f"notebook over script: {notebook - script:+.1f} s, {notebook / script - 1:+.1%}")
    if asked.json:
        write_json(
            asked.json,
            {
                "steps": asked.steps,
                "seconds": seconds,
                "overhead seconds": notebook - script,
                "overhead": notebook / script - 1,
                "versions": installed_versions(),
                "hardware": str(detect_hardware()),
            },
        )


def as_notebook(run, parameters: dict) -> None:
    if run_notebook(NAME, run, parameters):
        sys.exit("the notebook failed")


def as_script(run, parameters: dict) -> None:
    notebook = load_notebook_node(str(NOTEBOOKS / f"{NAME}.ipynb"))
    code, _ = PythonExporter().from_notebook_node(parameterize_notebook(notebook, parameters))
    file = run.folder / f"{NAME}.py"
    file.write_text(f"from IPython.display import display\n{code}")
    done = subprocess.run([sys.executable, file], cwd=NOTEBOOKS, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the script failed:\n{done.stderr[-3000:]}")


if __name__ == "__main__":
    main()
