"""Run a recipe's notebooks in order, each in a kernel of its own.

    python -m lib.suite notebooks/recipes/demo.yaml
    python -m lib.suite demo -p max_steps 2 -p eval_problems 16
    python -m lib.suite demo --only 04 05
    python -m lib.suite demo --resume
    python -m lib.suite regrade demo    # every number of its evaluation from the stored answers

The first failure stops the run and is shown; `--resume` goes on there. Ctrl-C stops it, too:
training ends its step and keeps it; a second one stops at once. Exit code 0: all done; 1: a
notebook failed; 2: something given does not work; 130: Ctrl-C (143: terminated).
"""

import argparse
import logging
import os
import shlex
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import yaml

from lib.checks import check_inputs, check_resumable
from lib.config import ROOT, Config, find_recipe, resolve
from lib.errors import BadInput
from lib.evaluation import regrade
from lib.kernels import Provisioner, Template, templates
from lib.progress import duration
from lib.report import write_report
from lib.rewards import learned_rewards
from lib.runs import Run, open_run, read_json, run_folder

NOTEBOOKS = ROOT / "notebooks"
CHAIN = (
    "01_setup",
    "02_reward_design",
    "03_training",
    "04_pass_at_k_eval",
    "05_merge_export",
)
REWARD_MODEL = "06_reward_model"  # in the chain where a recipe's reward is learned
# Not in the chain: run with --only.
FURTHER = (REWARD_MODEL, "07_grpo_from_scratch", "09_compare_runs")
IN_WORDS = ("BadInput", "Stopped")  # errors that are a sentence for the user


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["regrade"]:
        return regrade.main(arguments[1:])
    try:
        code = run_recipe(*read_arguments(arguments))
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        code = 128 + signal.SIGINT
    if code:
        again = shlex.join([word for word in arguments if word != "--resume"])
        print(f"Go on from there with: python -m lib.suite {again} --resume")
    return code


def run_recipe(options: argparse.Namespace, given: dict[str, Any]) -> int:
    """The chain, or what is left or asked of it; 0, or the exit code of the first failure.

    Raises:
        BadInput: something given does not work.
    """
    config = resolve(options.recipe, given | ({"resume": True} if options.resume else {}))
    chain = chain_of(config)
    every = dict.fromkeys((*chain, *FURTHER))
    if options.only:
        chain = [name for name in every if name[:2] in options.only]
    if not chain:
        known = ", ".join(name[:2] for name in every)
        raise BadInput(f"--only {' '.join(options.only)} names no notebook: there are {known}.")
    if not (options.resume or options.only):
        _put_aside(config)
    check_resumable(config, Run(run_folder(config)))
    run = open_run(config)
    recipe = str(find_recipe(options.recipe).resolve())
    finished = run.recorded().get("finished", {}) if options.resume else {}
    left = [name for name in chain if name not in finished]
    with templates(left, config, run) as ready:
        check_inputs(config, run)
        print(f"{config.name} on profile {config.profile}, into {run.shown(run.folder)}")
        for name in chain:
            if name in finished:
                print(f"{name}: done before")
                continue
            parameters = {"recipe": recipe, **given}
            if options.resume and name == "03_training":
                parameters["resume"] = True
            code = run_notebook(name, run, parameters, ready.get(name))
            if code:
                return code
    if (run.evals / "comparison.json").is_file():
        print(write_report(run, config))
    return 0


def chain_of(config: Config) -> tuple[str, ...]:
    """The notebooks of a recipe in order; a learned reward is trained before it is looked at."""
    learns = any(not reward.path for reward in learned_rewards(config))
    return (CHAIN[0], REWARD_MODEL, *CHAIN[1:]) if learns else CHAIN


def read_arguments(
    arguments: list[str] | None = None,
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The runner's options, and the keys of the recipe that they set."""
    parser = argparse.ArgumentParser(prog="python -m lib.suite", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("recipe", help="a name in notebooks/recipes, or a file")
    parser.add_argument(
        *("-p", "--parameter"),
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        dest="parameters",
        help="set a key of the recipe; the value is read as YAML",
    )
    parser.add_argument("--only", nargs="+", metavar="NN", help="these notebooks, such as 03 04")
    parser.add_argument("--resume", action="store_true", help="go on where the run stopped")
    options = parser.parse_args(arguments)
    return options, {key: yaml.safe_load(value) for key, value in options.parameters}


def _put_aside(config: Config) -> None:
    """A finished or broken run of the same name is kept under the time it was last touched."""
    folder = run_folder(config)
    if (folder / "run.json").is_file():
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(folder.stat().st_mtime))
        kept = folder.with_name(f"{folder.name}.{stamp}")
        shutil.move(folder, kept)
        print(f"The earlier run is kept in {Run.shown(kept)}")


def run_notebook(
    name: str, run: Run, parameters: dict[str, Any], template: Template | None = None
) -> int:
    """Execute one notebook into the run folder; 0, or the exit code of its failure.

    Args:
        template: what its kernel is forked from; None starts one by itself.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="papermill")
    run.notebooks.mkdir(exist_ok=True)
    fork = partial(template.fork, name) if template else None
    watch, interrupt = Watch(name, run.progress), Interrupt()
    try:
        with Provisioner.used(fork), watch, interrupt:
            papermill.execute_notebook(
                NOTEBOOKS / f"{name}.ipynb",
                run.notebooks / f"{name}.ipynb",
                parameters=parameters,
                cwd=str(NOTEBOOKS),
                kernel_name="python3",
                progress_bar=False,
                extra_arguments=["--log-level=ERROR"],
            )
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


class Interrupt:
    """Passes the first Ctrl-C (or a SIGTERM) on to the kernel, whose notebook ends as it likes to;
    the second one is Python's. A kernel lies in a session of its own, where neither reaches it.

    Attributes:
        code: the exit code by the signal that came; 0 while none has.
    """

    code = 0

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
        for kernel in psutil.Process().children():
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
    """Shows a notebook's progress line while its kernel works, and notes time and memory."""

    def __init__(self, name: str, file: Path, echo: Callable[[str], None] | None = None):
        self.name, self.file = name, file
        self.echo = echo or self._print
        self.seconds = 0.0
        self.peak = 0  # bytes: the most this process's children held together
        self._stop = threading.Event()

    def __enter__(self) -> "Watch":
        self._started = self._printed = time.time()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._stop.set()
        self._thread.join()
        self.seconds = time.time() - self._started
        memory = f", at most {self.peak / 2**30:.1f} GiB"
        state = "stopped after" if kind else "done in"
        self.echo(f"{self.name}: {state} {duration(self.seconds)}{memory}\n")

    def _loop(self) -> None:
        while not self._stop.wait(0.5):
            self.peak = max(self.peak, _children_memory())
            line = "working"
            if self.file.is_file():
                line = read_json(self.file)["line"]
            spent = duration(time.time() - self._started)
            # A terminal updates in place; a log gets a line every 15 seconds.
            if sys.stdout.isatty():
                self.echo(f"\r\033[K{self.name} ({spent}) {line}")
            elif time.time() - self._printed > 15:
                self._printed = time.time()
                self.echo(f"{self.name} ({spent}) {line}\n")

    @staticmethod
    def _print(text: str) -> None:
        if sys.stdout.isatty() and text.endswith("\n"):
            text = f"\r\033[K{text}"
        print(text, end="", flush=True)


def _children_memory() -> int:
    total = 0
    for child in psutil.Process().children(recursive=True):
        # A kernel counts as its own what it shares with its template.
        with suppress(psutil.NoSuchProcess):
            total += child.memory_info().rss if child.pid not in Template.running else 0
    return total


if __name__ == "__main__":
    sys.exit(main())
