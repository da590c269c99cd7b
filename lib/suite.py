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
import os
import shlex
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from lib.config import RECIPES, Config, find_recipe
from lib.doctor import check_inputs
from lib.errors import BadInput, nearest
from lib.execute import NOTEBOOKS, Watch, run_notebook, time_of
from lib.lock import hold, release
from lib.progress import duration
from lib.report import write_report
from lib.rewards import learned_rewards
from lib.runs import (
    Run,
    check_place,
    named_config,
    open_run,
    output_folder,
    put_aside,
    read_json,
    read_jsonl,
    run_folder,
)
from lib.tasks import problem_notes
from lib.training import check_resumable

CHAIN = (
    "01_setup",
    "02_reward_design",
    "03_training",
    "04_pass_at_k_eval",
    "05_merge_export",
)
# what else there is, by its first word
COMMANDS = {
    "regrade": "lib.evaluation.regrade",
    "doctor": "lib.doctor",
    "sweep": "lib.sweep",
    "race": "lib.race",
}
REWARD_MODEL = "06_reward_model"  # in the chain where a recipe's reward is learned
# Not in the chain: run with --only.
FURTHER = (REWARD_MODEL, "07_grpo_from_scratch", "08_serving", "09_compare_runs")


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        return import_module(COMMANDS[arguments[0]]).main(arguments[1:])
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
        BadInput: something given does not work; no folder has been touched.
    """
    os.environ["GRPO_WORKING_DIR"] = os.getcwd()
    config = configure(options, given)
    chain = choose_notebooks(config, options.only)
    run = Run(run_folder(config))
    check_place(config)
    hold(run.folder)  # before the checks, which may have the model to convert
    try:
        check_resumable(config, run)
        check_inputs(config, run)
    except BadInput:
        release()
        raise
    aside = None if options.resume or options.only else put_aside(run)
    run = open_run(config)
    finished = run.recorded().get("finished", {}) if options.resume else {}
    left = [name for name in chain if name not in finished]
    print(header(config, run, chain, left, aside), *problem_notes(config), sep="\n", flush=True)
    parameters = {"recipe": str(find_recipe(options.recipe).resolve()), **given}
    parameters |= {"run": config.run_name, "output_dir": str(output_folder(config))}
    for name in left:
        resumes = {"resume": True} if options.resume and name == "03_training" else {}
        watch = Watch(name, (chain.index(name) + 1, len(chain)), left, config, run)
        several = config if name == "03_training" else None
        code = run_notebook(name, run, parameters | resumes, watch, several)
        run.mark_stale()
        if code:
            return code
    if (run.evals / "comparison.json").is_file():
        print(write_report(run, config))
    certificate = run.evals / "certificate.json"
    if "05_merge_export" in chain and certificate.is_file():  # else it may be of another adapter
        print("Exported:", read_json(certificate)["verdict"])
    print(whats_next(options, config, run))
    return 0


def configure(options: argparse.Namespace, given: dict[str, Any]) -> Config:
    """The configuration, in a folder of its own where parameters make another training."""
    return named_config(options.recipe, given | ({"resume": True} if options.resume else {}))


def choose_notebooks(config: Config, only: list[str] | None = None) -> list[str]:
    """The notebooks of a recipe in order; a learned reward is trained before it is looked at.

    Args:
        only: numbers or names of those that are asked for.
    """
    learns = any(not reward.path for reward in learned_rewards(config))
    chain = [CHAIN[0], REWARD_MODEL, *CHAIN[1:]] if learns else list(CHAIN)
    if only is None:
        return chain
    every = [n for n in dict.fromkeys((*chain, *FURTHER)) if (NOTEBOOKS / f"{n}.ipynb").is_file()]
    for word in only:
        if not any(word in (name, name[:2], f"{name}.ipynb") for name in every):
            raise BadInput(f"--only {word} names no notebook: {nearest(word, every)}", key="only")
    return [name for name in every if {name, name[:2], f"{name}.ipynb"} & set(only)]


def read_arguments(
    arguments: list[str] | None = None,
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The runner's options, and the keys of the recipe that they set."""
    recipes = "\n".join(
        f"  {path.stem:24} {_about(path)}" for path in sorted(RECIPES.glob("*.yaml"))
    )
    parser = argparse.ArgumentParser(
        prog="python -m lib.suite", description=__doc__, epilog=f"recipes:\n{recipes}"
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("recipe", help="a name from the list below, or a file")
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
    return options, {key: _value(key, text) for key, text in options.parameters}


def _about(recipe: Path) -> str:
    """The first line of its comment."""
    with recipe.open(encoding="utf-8", errors="replace") as lines:
        first = next(lines, "")
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def _value(key: str, text: str) -> Any:
    """What a parameter is set to; a folder relative to here as the path that it is."""
    if key == "run" and not text.strip():
        raise BadInput('-p run "" names no folder: give a name, or leave it out.', key="run-name")
    try:
        value = yaml.safe_load(text) if text.strip() else ""
    except yaml.YAMLError as error:
        said = " ".join(str(getattr(error, "problem", None) or error).split())
        raise BadInput(
            f"-p {key} {text!r} is no YAML ({said}): put the value in quotes, as -p {key} \"'…'\".",
            key="parameter-yaml",
        ) from None
    if key == "data_dir" and isinstance(value, str) and Path(value).expanduser().is_dir():
        return str(Path(value).expanduser().resolve())
    return value


def header(config: Config, run: Run, chain: list[str], left: list[str], aside: Path | None) -> str:
    """What will happen, where, and for how long."""
    seconds = [time_of(name, config, run) for name in left]
    about = f"about {duration(sum(seconds))}" if all(seconds) else "not timed here before"
    lines = [f"{config.run_name}: {config.model} on {config.task}, profile {config.profile}"]
    if aside:
        lines.append(f"The earlier run is kept in {Run.shown(aside)}")
    lines += [f"{name}: done before" for name in chain if name not in left]
    count = f"{len(left)} notebook{'s' if len(left) != 1 else ''}"
    lines.append(f"{count} ({', '.join(left)}), {about}; results in {run.shown(run.folder)}")
    return "\n".join(lines)


def whats_next(options: argparse.Namespace, config: Config, run: Run) -> str:
    """What to open, and what to try."""

    def command(*without: str) -> str:
        pairs = [each for each in options.parameters if each[0] not in without]
        words = [word for pair in pairs for word in ("-p", *pair)]
        return shlex.join(["python", "-m", "lib.suite", options.recipe, *words])

    again = command()
    lines = [f"As executed: {run.shown(run.notebooks)}"]
    further = {"The same algorithm, written out": "07", "Runs side by side": "09"}
    if run.merged.is_dir():
        lines.append(
            f"Ask the model: python -m lib.export {shlex.quote(run.shown(run.merged))} "
            f"{shlex.quote(_question(run))}"
        )
        further = {"Serve it, and talk to it in a page": "08"} | further
    ran = {word[:2] for word in options.only or ()}
    hints = [f"{what}: {again} --only {n}" for what, n in further.items() if n not in ran]
    seed = f"{command('seed', 'run')} -p seed {config.seed + 1}"
    return "\n".join([*lines, *hints, f"Another seed, as a run of its own: {seed}"])


def _question(run: Run) -> str:
    """One that was asked, where it is short."""
    asked = (row["question"] for row in read_jsonl(run.evals / "trained.jsonl"))
    return next((text for text in asked if len(text) < 60 and "\n" not in text), "…")


if __name__ == "__main__":
    sys.exit(main())
