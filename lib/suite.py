"""Run a recipe's notebooks in order, each in a kernel of its own.

    python -m lib.suite notebooks/recipes/demo.yaml
    python -m lib.suite demo -p seed 1                  # a run of its own: outputs/demo-seed1
    python -m lib.suite demo --only 04 05
    python -m lib.suite demo --resume
    python -m lib.suite doctor demo          # five minutes: what would stop it?
    python -m lib.suite regrade demo    # every number of its evaluation from the stored answers
    python -m lib.suite sweep lr.yaml   # recipes × parameters × seeds
    python -m lib.suite race lr.yaml    # the same, and what falls behind is not trained further

The first failure stops the run and is shown; `--resume` goes on there. Ctrl-C stops it, too:
training ends its step and keeps it; a second one stops at once. Exit code 0: all done; 1: a
notebook failed; 2: something given does not work; 130: Ctrl-C (143: terminated).
"""

import argparse
import json
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any

import psutil
import yaml
from tqdm import tqdm

from lib.config import RECIPES, ROOT, Config, PlainYaml, find_recipe, user_path
from lib.doctor import check_inputs, examine
from lib.errors import BadInput, nearest
from lib.export.gguf import need_llama_cpp
from lib.files import hold, read_json, read_jsonl, release
from lib.hardware import is_main_process
from lib.process import duration, on_interrupt, start_child
from lib.rewards import learned_rewards
from lib.runs import (
    Run,
    check_place,
    is_begun,
    named_config,
    open_run,
    output_folder,
    put_aside,
    run_folder,
)
from lib.stack import read_stack, which_way
from lib.tasks import problem_notes
from lib.training import check_resumable

NOTEBOOKS = ROOT / "notebooks"
CHAIN = ("01_setup", "02_reward_design", "03_training", "04_pass_at_k_eval", "05_merge_export")
REWARD_MODEL = "06_reward_model"  # in the chain where a recipe's reward is learned
# Not in the chain: run with --only.
FURTHER = (REWARD_MODEL, "07_grpo_from_scratch", "08_serving", "09_compare_runs")
COMMANDS = {  # what else there is, by its first word
    "doctor": "lib.suite:doctor",
    "regrade": "lib.evaluation:main",
    "sweep": "lib.sweep:sweep",
    "race": "lib.sweep:race",
    "notebook": "lib.suite:notebook",  # what `accelerate launch` starts
}
IN_WORDS = ("BadInput", "Stopped", "InputRejected")  # errors that are a sentence for the user
# How this Python is called from here, to be copied from the terminal.
PYTHON = "python" if shutil.which("python") == sys.executable else os.path.relpath(sys.executable)
SUITE = (PYTHON, "-m", "lib.suite")
FOLDERS = ("data_dir", "model", "reward_model_base", "candidate")  # keys that may name one
# Seconds of the demo on two CPU cores, for a machine where it has not run yet.
FIRST_TIME = dict(zip(CHAIN, (15, 25, 105, 60, 85), strict=True))


# --- the commands -----------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    command = COMMANDS.get(arguments[0]) if arguments else None
    try:
        if command:
            module, _, function = command.partition(":")
            return getattr(import_module(module), function)(arguments[1:])
        code = run_recipe(*read_arguments(arguments))
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:  # by the signal that it names
        code = 128 + next(iter(stopped.args), signal.SIGINT)
        if command:
            print("Interrupted: the same command goes on from there.", file=sys.stderr)
            return code
        print("Interrupted.", file=sys.stderr)
    if code:
        again = [word for word in arguments if word != "--resume"]
        print(f"Go on from there with: {shlex.join([*SUITE, *again, '--resume'])}")
    return code


def run_recipe(options: argparse.Namespace, given: dict[str, Any]) -> int:
    """The chain, or what is left or asked of it; 0, or the exit code of the first failure.
    BadInput: something given does not work; no folder has been touched."""
    os.environ["GRPO_WORKING_DIR"] = os.getcwd()
    config = configure(options, given)
    chain = choose_notebooks(config, options.only)
    run = Run(run_folder(config))
    check_place(config)
    hold(run.folder)  # before the checks, which may have the model to convert
    try:
        check_resumable(config, run)
        check_inputs(config, run)
        if "05_merge_export" in chain and config.gguf:
            need_llama_cpp()
    except BadInput:
        release()
        raise
    aside = None if options.resume or options.only else put_aside(run)
    goes_on = options.resume and is_begun(config)  # with other settings nothing is done yet
    finished = run.recorded().get("finished", {}) if goes_on else {}
    run = open_run(config)
    if options.resume:
        run.note(finished=finished)
    print(f"{config.run_name}: {config.model} on {config.task}, profile {config.profile}")
    if aside:
        print(f"The earlier run is kept in {run.shown(aside)}")
    left, times = [name for name in chain if name not in finished], usual_times(config, run)
    print(*header(run, chain, left, times), *problem_notes(config), sep="\n", flush=True)
    from lib.report import write_page  # with pandas, which takes a second: the header is out

    parameters = {"recipe": str(find_recipe(options.recipe).resolve()), **given}
    parameters |= {"run": config.run_name, "output_dir": str(output_folder(config))}
    for place, name in enumerate(left):
        training = name == "03_training"
        resumes = {"resume": True} if options.resume and training else {}
        label = f"notebook {chain.index(name) + 1} of {len(chain)}, {name}"
        usual = [times.get(each, 0) for each in left[place:]]
        watch = Watch(label if len(chain) > 1 else name, run, usual)
        code = run_notebook(name, run, parameters | resumes, watch, config if training else None)
        if (executed := run.notebooks / f"{name}.ipynb").is_file():
            write_page(executed)
        if code:
            return code
    print(*outcome(config, run, chain), *whats_next(options, config, run), sep="\n")
    return 0


def doctor(arguments: Sequence[str]) -> int:
    """Prints what `examine` finds, as it does; 2 where a run would fail or be worthless."""
    parser = argparse.ArgumentParser(prog="python -m lib.suite doctor")
    add_recipe(parser)
    options = parser.parse_args(arguments)
    config = configure(options, parameters_of(options))
    print(f"{config.name} on profile {config.profile}: {config.model} on {config.task}")
    print(which_way(config, read_stack()))
    started, code = time.monotonic(), 0
    for title, findings in examine(config):
        print(f"{title}: {'; '.join(map(str, findings)) or 'ok'}", flush=True)
        code = 2 if any(finding.stops for finding in findings) else code
    print(f"Examined in {time.monotonic() - started:.0f} s.")
    return code


# --- what is given ----------------------------------------------------------------------------


def read_arguments(
    arguments: Sequence[str] | None = None,
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The runner's options, and the keys of the recipe that they set."""
    recipes = (f"  {path.stem:24} {_about(path)}\n" for path in sorted(RECIPES.glob("*.yaml")))
    parser = argparse.ArgumentParser(
        prog="python -m lib.suite", description=__doc__, epilog=f"recipes:\n{''.join(recipes)}"
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_recipe(parser)
    parser.add_argument("--only", nargs="+", metavar="NN", help="these notebooks, such as 03 04")
    parser.add_argument("--resume", action="store_true", help="go on where the run stopped")
    options = parser.parse_args(arguments)
    return options, parameters_of(options)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a name in notebooks/recipes, or a file")
    what = "set a key of the recipe; the value is read as YAML"
    parser.add_argument(
        *("-p", "--parameter"), nargs=2, action="append", default=[], metavar=("KEY", "VALUE"),
        dest="parameters", help=what,
    )  # fmt: skip


def _about(recipe: Path) -> str:
    """The first sentence of its comment, or what of it says a line."""
    lines = recipe.read_text(encoding="utf-8", errors="replace").splitlines()
    words = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line[:1] == "#", lines))
    return textwrap.shorten(re.split(r"[.:;]( |$)", words)[0], 72, placeholder=" …")


def parameters_of(options: argparse.Namespace) -> dict[str, Any]:
    return {key: _value(key, text) for key, text in options.parameters}


def _value(key: str, text: str) -> Any:
    """What a parameter is set to; a folder relative to here as the path that it is."""
    if key == "run" and not text.strip():
        raise BadInput('-p run "" names no folder: give a name, or leave it out.', key="run-name")
    try:
        value = yaml.load(text, PlainYaml) if text.strip() else ""
        if value is None and text.strip().casefold() not in ("null", "~"):
            raise yaml.YAMLError("nothing is left of it")  # as of "#1", a comment
    except yaml.YAMLError as error:
        said = " ".join(str(getattr(error, "problem", None) or error).split())
        raise BadInput(
            f"-p {key} {text!r} is no YAML ({said}): put the value in quotes, as -p {key} \"'…'\".",
            key="parameter-yaml",
        ) from None
    if key in FOLDERS and isinstance(value, str):
        place = user_path(value).resolve()
        return str(place) if place.is_dir() and not place.is_relative_to(ROOT) else value
    return value


def configure(options: argparse.Namespace, given: dict[str, Any]) -> Config:
    """The configuration, in a folder of its own where parameters make another training."""
    resumes = {"resume": True} if getattr(options, "resume", False) else {}
    return named_config(options.recipe, given | resumes)


def choose_notebooks(config: Config, only: list[str] | None = None) -> list[str]:
    """The notebooks of a recipe in order, or `only` these (numbers or names); a learned reward is
    trained before it is looked at."""
    learns = any(not reward.path for reward in learned_rewards(config))
    chain = [CHAIN[0], REWARD_MODEL, *CHAIN[1:]] if learns else list(CHAIN)
    if only is None:
        return chain
    every = [n for n in dict.fromkeys((*chain, *FURTHER)) if (NOTEBOOKS / f"{n}.ipynb").is_file()]
    for word in only:
        if not any(word in (name, name[:2], f"{name}.ipynb") for name in every):
            raise BadInput(f"--only {word} names no notebook: {nearest(word, every)}", key="only")
    return [name for name in every if {name, name[:2], f"{name}.ipynb"} & set(only)]


# --- what is said -----------------------------------------------------------------------------


def usual_times(config: Config, run: Run) -> dict[str, float]:
    """Notebook → seconds that it took when this recipe ran last, beside this run."""
    times = dict(FIRST_TIME) if config.name == "demo" and config.profile == "cpu" else {}
    records = run.folder.parent.glob("*/run.json")
    for path in sorted(records, key=lambda path: path.stat().st_mtime):
        record = read_json(path)
        if record.get("name") == config.name:
            stages = record.get("finished", {}).items()
            times |= {name: stage["seconds"] for name, stage in stages if stage}
    return times


def header(
    run: Run, chain: Sequence[str], left: Sequence[str], times: Mapping[str, float]
) -> Iterator[str]:
    """What will happen, where, and for how long."""
    yield from (f"{name}: done before" for name in chain if name not in left)
    about = "not timed here before"
    if times.keys() >= {*left}:
        about = f"about {duration(sum(times[name] for name in left))}"
    count = f"{len(left)} notebook{'s' if len(left) != 1 else ''}"
    yield f"{count} ({', '.join(left)}), {about}; results in {run.shown(run.folder)}"


def outcome(config: Config, run: Run, chain: Sequence[str]) -> Iterator[str]:
    if (run.evals / "comparison.json").is_file():
        from lib.report import write_report

        yield write_report(run, config)
    certificate = run.evals / "certificate.json"
    if "05_merge_export" in chain and certificate.is_file():  # else it may be of another adapter
        import pandas as pd

        from lib.export.certificate import readable

        proof = read_json(certificate)
        forms = pd.DataFrame(readable(proof))
        yield f"Exported: {proof['verdict']}"
        yield forms[["form", "nats a token", "equal answers", "verdict"]].to_string(index=False)


def whats_next(options: argparse.Namespace, config: Config, run: Run) -> Iterator[str]:
    """What to open, and what to try."""

    def command(*without: str) -> str:
        pairs = [each for each in options.parameters if each[0] not in without]
        words = [word for pair in pairs for word in ("-p", *pair)]
        return shlex.join([*SUITE, options.recipe, *words])

    yield f"As executed: {run.shown(run.notebooks)}"
    further = {"The same algorithm, written out": "07", "Runs side by side": "09"}
    if run.merged.is_dir():
        asked = (row["question"] for row in read_jsonl(run.evals / "trained.jsonl"))
        short = next((text for text in asked if len(text) < 60 and "\n" not in text), "…")
        words = [*SUITE[:2], "lib.export", run.shown(run.merged), short]
        yield f"Ask the model: {shlex.join(words)}"
        further = {"Serve it, and talk to it in a page": "08"} | further
    elif run.adapter.is_dir():
        measured = (run.evals / "comparison.json").is_file()
        then = {"Export it": "05"} if measured else {"Measure it, and export it": "04 05"}
        further = then | further
    ran = {word[:2] for word in options.only or ()}
    yield from (f"{what}: {command()} --only {n}" for what, n in further.items() if n not in ran)
    yield f"Another seed, as a run of its own: {command('seed', 'run')} -p seed {config.seed + 1}"


# --- one notebook in a kernel of its own ------------------------------------------------------


def run_notebook(
    name: str,
    run: Run,
    parameters: dict[str, Any],
    watch: "Watch | None" = None,
    config: Config | None = None,
) -> int:
    """Execute one notebook into the run folder; 0, or the exit code of its failure. With a
    configuration, in its `num_processes` processes."""
    run.notebooks.mkdir(exist_ok=True)
    watch, kernels = watch or Watch(name, run), Kernels()
    with watch, on_interrupt(kernels.interrupt):
        if config and config.num_processes > 1:
            code, why = in_processes(name, run, parameters, config, kernels)
        else:
            code, why = in_kernel(name, run, parameters, kernels)
        watch.state = "stopped after" if code else "done in"
    if code:
        print(f"{name} stopped: {why}", file=sys.stderr)
        return kernels.code or code
    stage = {"seconds": round(watch.seconds, 1), "peak_gib": round(watch.peak / 2**30, 2)}
    run.note(finished=run.recorded().get("finished", {}) | {name: stage})
    return kernels.code


class Kernels:
    """To those at work the first Ctrl-C (or a SIGTERM) is passed on, which does not reach their
    sessions, so that the notebook can shut down cleanly."""

    code = 0  # the exit code by the signal that came
    parent: int | None = None  # the process whose children they are; None: this one

    def interrupt(self, number: int) -> None:
        self.code = 128 + number
        # Not print, which this may have cut into.
        os.write(2, b"\nInterrupted: training finishes its step and keeps it; again: at once.\n")
        for kernel in psutil.Process(self.parent).children():
            with suppress(psutil.NoSuchProcess):
                kernel.send_signal(signal.SIGINT)


def in_kernel(name: str, run: Run, parameters: dict[str, Any], kernels: Kernels) -> tuple[int, str]:
    """Exit code and reason. The kernel is this Python, whatever kernels Jupyter knows."""
    import papermill
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec
    from nbclient.exceptions import DeadKernelError

    class ThisPython(AsyncKernelManager):
        kernel_spec = KernelSpec(**get_kernel_dict())

    logging.getLogger("papermill").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="papermill")
    to = name if is_main_process() else f".{name}.rank{os.environ['RANK']}"
    try:
        papermill.execute_notebook(
            NOTEBOOKS / f"{name}.ipynb",
            run.notebooks / f"{to}.ipynb",
            parameters=parameters,
            cwd=str(NOTEBOOKS),
            kernel_name="python3",
            kernel_manager_class=ThisPython,
            progress_bar=False,
            # A kernel that is shut down in a cell of its own logs the interrupt as an error.
            extra_arguments=["--log-level=CRITICAL"],
        )
    except papermill.PapermillExecutionError as error:
        return (2 if error.ename in IN_WORDS else 1), _explain(error)
    except RuntimeError as error:  # also of a kernel that was interrupted while it started
        if not (kernels.code or isinstance(error, DeadKernelError)):
            raise
        return 1, "its kernel ended (it was interrupted, or killed, as for want of memory)."
    return 0, ""


def _explain(error: Any) -> str:
    if error.ename in IN_WORDS:
        return error.evalue
    if error.ename == "KeyboardInterrupt":
        return "it was interrupted."
    last = "\n".join(error.traceback[-3:])
    return f"{error.ename}: {error.evalue}\nin its cell\n{error.source}\n{last}"


def in_processes(
    name: str, run: Run, parameters: dict[str, Any], config: Config, kernels: Kernels
) -> tuple[int, str]:
    """As `in_kernel`, but `accelerate launch` starts `num_processes` of `lib.suite notebook`, each
    with a kernel: every cell runs in all of them, and the first writes the run's files. What they
    print is in `processes.log`."""
    words = ["accelerate.commands.launch", *launch_words(config), "-m", "lib.suite", "notebook"]
    log = run.folder / "processes.log"
    with log.open("w", encoding="utf-8") as output:
        words += [name, str(run.folder), json.dumps(parameters)]
        process = start_child(words, output, {}, signal.SIGTERM)  # on which it ends its processes
        kernels.parent = process.pid
        process.wait()
    text = log.read_text(encoding="utf-8", errors="replace")
    reasons = re.findall(rf"^{name} stopped: (.*)", text, re.MULTILINE)
    codes = [int(code) for code in re.findall(r"exitcode\s*: (\d+)", text)]
    why = reasons[0] if reasons else "a process ended"
    return process.returncode and max([1, *codes]), f"{why} ({run.shown(log)})"


def launch_words(config: Config) -> list[str]:
    """What `accelerate launch` is given."""
    words = ["--num_processes", str(config.num_processes)]
    if config.accelerate_config:
        return [*words, "--config_file", str(config.find(config.accelerate_config))]
    # Processes of this machine, on a CPU, too (with --cpu there would be one).
    return [*words, "--multi_gpu", "--main_process_port", "0"]


def notebook(arguments: Sequence[str]) -> int:
    name, folder, parameters = arguments
    return run_notebook(name, Run(Path(folder)), json.loads(parameters))


class Watch:
    """Shows one line while a notebook's kernel works; notes its `seconds`, and its `peak`, the most
    bytes that its processes held together.

    Args:
        usual: seconds that this notebook usually takes, and each of those after it; 0: unknown.
    """

    def __init__(self, label: str, run: Run, usual: Sequence[float] = (0,)):
        self.label, self.file, self.usual = label, run.progress, usual[0]
        self.later = sum(usual[1:]) if all(usual) else 0
        self.seconds, self.peak, self.state = 0.0, 0, "stopped after"
        self._stop = threading.Event()

    def __enter__(self) -> "Watch":
        self.file.unlink(missing_ok=True)  # of one that was killed
        self._started = self._printed = time.time()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.seconds = time.time() - self._started
        memory = f", at most {self.peak / 2**30:.1f} GiB"
        self._show(f"{self.label}: {self.state} {duration(self.seconds)}{memory}", last=True)

    def _loop(self) -> None:
        while not self._stop.wait(0.5):
            total = 0
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    total += child.memory_info().rss
            self.peak = max(self.peak, total)
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
        clock = tqdm.format_interval  # short: a terminal of 80 columns shows the steps, too
        total = f", {clock(max(left, 1) + self.later)} left for all" if self.later else ""
        return f"{self.label} ({clock(spent)}{total}) {line}"

    @staticmethod
    def _show(line: str, last: bool = False) -> None:
        if not sys.stdout.isatty():
            print(line, flush=True)
            return
        line = line[: shutil.get_terminal_size().columns - 1]
        print(f"\r\033[K{line}", end="\n" if last else "", flush=True)


if __name__ == "__main__":
    sys.exit(main())
