"""A notebook executed as the runner does: in a kernel of its own, with one line that tells how far
it is and how long all of them will take.

Where several processes train a run (`num_processes`), `accelerate launch` starts as many of
`python -m lib.execute NOTEBOOK FOLDER PARAMETERS`, each with a kernel: every cell runs in all of
them, and the first writes the run's files.
"""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from lib.config import ROOT, Config
from lib.hardware import is_main_process
from lib.process import child_environment, ends_with_us
from lib.progress import duration
from lib.runs import Run, read_json

NOTEBOOKS = ROOT / "notebooks"
IN_WORDS = ("BadInput", "Stopped", "InputRejected")  # errors that are a sentence for the user
# Seconds on two CPU cores, for a machine where the recipe has not run yet.
FIRST_TIME = {
    "01_setup": 30,
    "02_reward_design": 40,
    "03_training": 260,
    "04_pass_at_k_eval": 60,
    "05_merge_export": 110,
}


def time_of(name: str, config: Config | None, run: Run) -> float:
    """Seconds that a notebook of this recipe takes: those of its last run beside this one, the
    demo's as they were measured; 0 where it is not known."""
    if config is None:
        return 0
    records = [path for path in run.folder.parent.glob("*/run.json") if path.is_file()]
    for path in sorted(records, key=lambda path: path.stat().st_mtime, reverse=True):
        record = read_json(path)
        stage = record.get("finished", {}).get(name)
        if stage and record.get("name") == config.name:
            return stage["seconds"]
    return FIRST_TIME.get(name, 0) if config.name == "demo" and config.profile == "cpu" else 0


def run_notebook(
    name: str,
    run: Run,
    parameters: dict[str, Any],
    watch: "Watch | None" = None,
    config: Config | None = None,
) -> int:
    """Execute one notebook into the run folder; 0, or the exit code of its failure.

    Args:
        config: has it run in `num_processes` processes.
    """
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    run.notebooks.mkdir(exist_ok=True)
    watch, interrupt = watch or Watch(name, (1, 1), [name], None, run), Interrupt()
    try:
        with watch, interrupt:
            if config and config.num_processes > 1:
                code, why = in_processes(name, run, parameters, config, interrupt)
            else:
                code, why = 0, ""
                in_kernel(name, run, parameters)
        if code:
            print(f"{name} stopped: {why}", file=sys.stderr)
            return interrupt.code or code
    except PapermillExecutionError as error:
        print(f"{name} stopped: {_explain(error)}", file=sys.stderr)
        return interrupt.code or (2 if error.ename in IN_WORDS else 1)
    except RuntimeError as error:  # also of a kernel that was interrupted while it started
        if not (interrupt.code or isinstance(error, DeadKernelError)):
            raise
        why = "it was interrupted, or killed, as for want of memory"
        print(f"{name} stopped: its kernel ended ({why}).", file=sys.stderr)
        return interrupt.code or 1
    stage = {"seconds": round(watch.seconds, 1), "peak_gib": round(watch.peak / 2**30, 2)}
    run.note(finished=run.recorded().get("finished", {}) | {name: stage})
    return interrupt.code


def in_kernel(name: str, run: Run, parameters: dict[str, Any]) -> None:
    """With this Python, whatever kernels Jupyter knows."""
    import papermill
    from ipykernel.kernelspec import write_kernel_spec

    logging.getLogger("papermill").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="papermill")
    rank = "" if is_main_process() else f".rank{os.environ['RANK']}"
    before = os.environ.get("JUPYTER_PATH")
    try:
        with tempfile.TemporaryDirectory() as specs:
            write_kernel_spec(Path(specs) / "kernels" / "python3")
            os.environ["JUPYTER_PATH"] = f"{specs}{os.pathsep}{before or ''}"
            papermill.execute_notebook(
                NOTEBOOKS / f"{name}.ipynb",
                run.notebooks / f"{'.' if rank else ''}{name}{rank}.ipynb",
                parameters=parameters,
                cwd=str(NOTEBOOKS),
                kernel_name="python3",
                progress_bar=False,
                # A kernel that is shut down in a cell of its own logs the interrupt as an error.
                extra_arguments=["--log-level=CRITICAL"],
            )
    finally:
        os.environ.pop("JUPYTER_PATH")
        os.environ |= {"JUPYTER_PATH": before} if before else {}


def launch_words(config: Config) -> list[str]:
    """What `accelerate launch` is given."""
    words = ["--num_processes", str(config.num_processes)]
    if config.accelerate_config:
        return [*words, "--config_file", str(config.working_folder / config.accelerate_config)]
    # Processes of this machine, on a CPU, too (with --cpu there would be one).
    return [*words, "--multi_gpu", "--main_process_port", "0"]


def in_processes(
    name: str, run: Run, parameters: dict[str, Any], config: Config, interrupt: "Interrupt"
) -> tuple[int, str]:
    """The launcher's exit code and the reason; what the processes print is in `processes.log`."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch_words(config)]
    command += ["-m", "lib.execute", name, str(run.folder)]
    log = run.folder / "processes.log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*command, json.dumps(parameters)],
            env=child_environment(),
            **dict(stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT),
            start_new_session=True,  # Ctrl-C reaches the kernels once, through us
            preexec_fn=ends_with_us(signal.SIGTERM),  # on which it ends its processes
        )
        interrupt.launcher = process.pid
        process.wait()
    text = log.read_text(encoding="utf-8", errors="replace")
    reasons = re.findall(rf"^{name} stopped: (.*)", text, re.MULTILINE)
    codes = [int(code) for code in re.findall(r"exitcode\s*: (\d+)", text)]
    why = reasons[0] if reasons else "a process ended"
    return process.returncode and max([1, *codes]), f"{why} ({run.shown(log)})"


class Interrupt:
    """Passes the first Ctrl-C (or a SIGTERM) on to the kernel, so that its notebook can shut down
    cleanly; the second one is Python's. A kernel is in a session of its own, where neither
    reaches it.

    Attributes:
        code: the exit code by the signal that came; 0 while none has.
        launcher: the process whose children they are, where there are several.
    """

    code, launcher = 0, 0

    def __enter__(self) -> "Interrupt":
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._pass_on) for number in numbers}
        return self

    def __exit__(self, kind, error, trace) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, frame: Any) -> None:
        signal.signal(number, self._before[number])
        self.code = 128 + number
        # Not print, which this may have cut into.
        os.write(2, b"\nInterrupted: training finishes its step and keeps it; again: at once.\n")
        parent = psutil.Process(self.launcher or None)
        for kernel in parent.children():
            with suppress(psutil.NoSuchProcess):
                kernel.send_signal(signal.SIGINT)


def _explain(error: Any) -> str:
    if error.ename in IN_WORDS:
        return error.evalue
    if error.ename == "KeyboardInterrupt":
        return "it was interrupted."
    last = "\n".join(error.traceback[-3:])
    return f"{error.ename}: {error.evalue}\nin its cell\n{error.source}\n{last}"


class Watch:
    """Shows one line while a notebook's kernel works; notes its time and memory.

    Args:
        place: which notebook of how many.
        left: this notebook and those after it.

    Attributes:
        seconds: that it took.
        peak: bytes, the most that its processes held together.
    """

    def __init__(
        self,
        name: str,
        place: tuple[int, int],
        left: Sequence[str],
        config: Config | None,
        run: Run,
    ):
        self.label = f"notebook {place[0]} of {place[1]}, {name}" if place[1] > 1 else name
        self.file, self.seconds, self.peak = run.progress, 0.0, 0
        after = left[left.index(name) + 1 :]
        self.usual = time_of(name, config, run)
        later = [time_of(other, config, run) for other in after]
        self.later = sum(later) if all(later) else None
        self.several = bool(after)
        self._stop = threading.Event()

    def __enter__(self) -> "Watch":
        self.file.unlink(missing_ok=True)  # of one that was killed
        self._started = self._printed = time.time()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._stop.set()
        self._thread.join()
        self.seconds = time.time() - self._started
        state = "stopped after" if kind else "done in"
        memory = f", at most {self.peak / 2**30:.1f} GiB"
        self._show(f"{self.label}: {state} {duration(self.seconds)}{memory}", last=True)

    def _loop(self) -> None:
        while not self._stop.wait(0.5):
            self.peak = max(self.peak, _children_memory())
            # A terminal updates in place; a log gets a line every 15 seconds.
            if sys.stdout.isatty() or time.time() - self._printed > 15:
                self._printed = time.time()
                self._show(self._line())

    def _line(self) -> str:
        spent = time.time() - self._started
        line, left = "working", self.usual - spent
        with suppress(OSError, ValueError):  # it may end in this moment
            shown = read_json(self.file)
            line, left = shown["line"], max(left, shown["seconds_left"] or 0)
        total = ""
        if self.several and self.later is not None and self.usual:
            total = f", {duration(max(left, 1) + self.later)} left for all"
        return f"{self.label} ({duration(spent)}{total}) {line}"

    @staticmethod
    def _show(line: str, last: bool = False) -> None:
        in_place = sys.stdout.isatty()
        if in_place:
            line = line[: shutil.get_terminal_size().columns - 1]
        print(
            f"\r\033[K{line}" if in_place else line,
            end="" if in_place and not last else "\n",
            flush=True,
        )


def _children_memory() -> int:
    total = 0
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total += child.memory_info().rss
    return total


if __name__ == "__main__":
    name, folder, parameters = sys.argv[1:]
    sys.exit(run_notebook(name, Run(Path(folder)), json.loads(parameters)))
