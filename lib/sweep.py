"""Recipes × parameters × seeds, each run a process and a folder of its own (docs/sweeps.md).

    python -m lib.suite sweep docs/sweep.yaml               # a run a GPU; on a CPU one at a time
    python -m lib.suite sweep docs/sweep.yaml --ray auto    # a Ray cluster that shares this disk
    python -m lib.suite race docs/race.yaml                 # what is behind is not trained further

All is checked before the first run starts. The same command again does what is missing: what is
finished with the same settings is left alone, and what was stopped goes on. Exit code 0: all done;
1: a run failed; 2: something given does not work; 130: Ctrl-C, after which runs end their step.

In a race, arms are trained in slices. At each rung they are compared by their answers to the same
held-out problems, and an arm leaves when the paired interval of its difference to the leader,
one-sided, lies below `margin`: the chance that the best arm at a rung leaves there is at most
`delta` in the whole race. What left comes back where the others fall below it. The ranking is
computed from the folders alone.
"""

import argparse
import json
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from lib.config import RECIPES, ROOT, Config, find_recipe, read_recipe, resolve
from lib.doctor import check_inputs
from lib.errors import BadInput, first_line, nearest
from lib.files import hold, read_json, read_jsonl, release, write_json
from lib.hardware import visible_gpus
from lib.process import duration, on_interrupt, start_child
from lib.runs import Run, check_place, is_begun, name_ending, put_aside, run_folder, run_places
from lib.stats import paired_difference, points
from lib.suite import choose_notebooks, configure, read_arguments

KEYS = dict(name=str, recipe=str, recipes=list, base=str, parameters=dict, seeds=list, only=list)
RACE_KEYS = KEYS | dict(rungs=list, delta=float | int, margin=float | int)
WORDS = {str: "a text", list: "a list", dict: "`key: values` pairs", float | int: "a number"}
OF_ONE_RUN = {"name", "run", "resume", "stop_at", "output_dir"}  # `base` leaves them
START = "--- "  # begins the log's line of each start
RETRIES = 3  # of a run whose worker was lost
PATIENCE = 600  # seconds in which what a lost worker left has ended
DELTA = 0.5

Arms = Mapping[str, list[str]]  # run name → the runner's arguments
Scores = Mapping[str, Mapping[str, float]]  # arm → problem → score


# --- the file ---------------------------------------------------------------------------------


def read_sweep(path: Path, keys: Mapping[str, Any] = KEYS) -> dict[str, Any]:
    """The file's keys: `recipes` as paths, `parameters` as `fixed` and `varied`. Raises BadInput
    for an unknown key, or a value of the wrong type."""
    if not path.is_file():
        raise BadInput(f"There is no file {path}: give the sweep's YAML file.", "no-sweep")
    given = read_recipe(path)
    for key, value in given.items():
        if key not in keys:
            hint = f"{nearest(key, keys)} What is varied stands under `parameters`."
            raise BadInput(f"There is no key {key!r} ({path.name}): {hint}", "unknown-key")
        if not isinstance(value, keys[key]):
            words = WORDS[keys[key]]
            raise BadInput(f"{key} ({path.name}) is {value!r}: it should be {words}.", "value")
    parameters = given.get("parameters", {})
    for key, value in parameters.items():
        if value == [] or key in ("run", "seed", "resume"):
            why = "has no values" if value == [] else "is set for each run, by `name` and `seeds`"
            raise BadInput(f"{key} ({path.name}) {why}: leave it out of `parameters`.", "value")
    varied = {key: value for key, value in parameters.items() if isinstance(value, list)}
    names = given.get("recipes", []) + ([given["recipe"]] if "recipe" in given else [])
    if "base" in given:
        name, settings = settings_of(given["base"], parameters)
        names, parameters = [*names, name], settings | parameters
    if not names:
        hint = "add `recipe: demo`, or `base: RUN`."
        raise BadInput(f"{path.name} names no recipe: {hint}", "no-recipe")
    beside = [path.parent / str(name) for name in names]
    paths = [b if b.is_file() else find_recipe(str(n)) for b, n in zip(beside, names, strict=True)]
    fixed = {key: value for key, value in parameters.items() if key not in varied}
    return given | {"recipes": [p.resolve() for p in paths], "fixed": fixed, "varied": varied}


def settings_of(base: str, parameters: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A run's recipe, and what was set for it: what another run of its kind begins with."""
    given = resolve(None, {"output_dir": parameters.get("output_dir")})
    for folder in run_places(base, given):
        if (folder / "run.json").is_file():
            record = read_json(folder / "run.json")
            chosen = ("recipe", "parameter")
            names = {key for key, origin in record["origins"].items() if origin.startswith(chosen)}
            config = {k: v for k, v in record["config"].items() if k in names - OF_ONE_RUN}
            moved = not Path(record.get("recipe", "")).is_file()
            return record["name" if moved else "recipe"], config
    raise BadInput(f"base: there is no run {base}: name a folder with a run.json.", "no-run")


def make_arms(sweep: Mapping[str, Any]) -> Arms:
    """Run name → what the runner is given, in the order in which they start."""
    # YAML reads an unquoted 03 as 3.
    only = [f"{each:02}" if isinstance(each, int) else str(each) for each in sweep.get("only", [])]
    arms: dict[str, list[str]] = {}
    for path in sweep["recipes"]:
        own = {"seed": Config.model_fields["seed"].default} | read_recipe(path) | sweep["fixed"]
        seeds = sweep.get("seeds") or [own["seed"]]
        for *values, seed in product(*sweep["varied"].values(), seeds):
            changes = dict(zip(sweep["varied"], values, strict=True))
            name = f"{sweep['name']}/{path.stem}{name_ending(changes)}_{seed}"
            if name in arms:
                raise BadInput(f"Two runs would be called {name}: leave one out.", "equal-names")
            given = {**sweep["fixed"], **changes, "seed": seed, "run": name}
            arms[name] = [*as_words(path, given), *(["--only", *only] if only else [])]
    return arms


def as_words(recipe: Path, parameters: Mapping[str, Any]) -> Iterator[str]:
    """As a user would type it."""
    yield recipe.stem if recipe.parent == RECIPES else str(recipe)
    for key, value in parameters.items():
        # Not JSON, whose 1e-05 YAML reads as text.
        text = yaml.safe_dump([value], default_flow_style=True, width=2**31, allow_unicode=True)
        yield from ("-p", key, text.strip()[1:-1])


# --- one run ----------------------------------------------------------------------------------


def arm_of(words: list[str]) -> tuple[Config, list[str], Run]:
    """A run's configuration, its notebooks and its folder."""
    options, given = read_arguments(words)
    config = configure(options, given)
    return config, choose_notebooks(config, options.only), Run(run_folder(config))


def plan(arms: Arms) -> dict[str, tuple[Path, bool]]:
    """Run name → its folder, and whether it is finished; raises BadInput for the first run that
    could not start."""
    planned, checked = {}, set()
    for name, words in arms.items():
        try:
            config, _, run = arm_of(words)
            check_place(config)
            seedless = config.model_dump(exclude={"seed", "run"})
            if (settings := json.dumps(seedless, default=str)) not in checked:
                check_inputs(config, run)
                checked.add(settings)
            if (run.folder.parent / "run.json").is_file():
                above = run.shown(run.folder.parent)
                raise BadInput(f"{above} is a run: give the sweep another name.", "run-name")
        except BadInput as error:
            raise BadInput(f"{name}: {error}", error.key) from None
        planned[name] = run.folder, is_done(words)
    return planned


def is_done(words: list[str]) -> bool:
    """Whether the run has all of its notebooks, made with these settings."""
    config, notebooks, run = arm_of(words)
    return is_begun(config) and {*notebooks} <= {*run.recorded().get("finished", {})}


def start(words: list[str], gpu: str = "") -> tuple[subprocess.Popen, Path]:
    """A run's process, which ends with this one however this one ends, and its log. Raises BadInput
    ("run-in-use") where another process has the run."""
    config, _, run = arm_of(words)
    begun = is_begun(config)
    hold(run.folder)
    if not (begun or "--only" in words):
        put_aside(run)  # here, as the log is in the new folder
    release(run.folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    words = ["lib.suite", *words, *(["--resume"] if begun else [])]
    with (log := run.folder / "sweep.log").open("a", encoding="utf-8") as file:
        file.write(f"{START}{time.strftime('%F %T')} python -m {shlex.join(words)}\n")
        file.flush()
        return start_child(words, file, {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}), log


def trouble(code: int, log: Path) -> str:
    """What a run that failed said last; "" of one that did not."""
    if not code:
        return ""
    last = log.read_text(encoding="utf-8", errors="replace").rpartition(START)[2].splitlines()[1:]
    lines = [line for line in last if line.strip() and not line.startswith("Go on from there")]
    lines = [line for line in lines if " stopped: " in line] or lines
    if code < 0 or not lines:
        return f"its process ended with {code}, as when memory runs out."
    return lines[-1]


# --- all of them, here or on a cluster --------------------------------------------------------


def run_here(arms: Arms) -> Iterator[tuple[str, str]]:
    """Run name and its trouble, as runs end; one at a time on each GPU."""
    free, waiting, running = visible_gpus() or [""], dict(arms), {}
    try:
        while waiting or running:
            while waiting and free:
                name = next(iter(waiting))
                try:
                    running[name] = *start(waiting.pop(name), free[-1]), free.pop()
                except BadInput as error:
                    yield name, str(error)
            for name, (process, log, gpu) in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    free.append(gpu)
                    yield name, trouble(process.returncode, log)
            time.sleep(0.3)
    finally:  # Ctrl-C: each ends its step and keeps it
        for process, _, _ in running.values():
            process.send_signal(signal.SIGINT)
        for process, _, _ in running.values():
            process.wait()


def run_arm(words: list[str]) -> str:
    """A run from its start to its end, on a worker of a cluster; its trouble."""
    until = time.time() + PATIENCE
    while True:
        try:
            process, log = start(words)
            return trouble(process.wait(), log)
        except BadInput as error:
            if error.key != "run-in-use" or time.time() > until:
                return str(error)
            time.sleep(1)


def connect(address: str) -> tuple[Any, Callable]:
    """Ray, and what has a function of this module called on the cluster. Raises BadInput where Ray
    is not installed, or there is no cluster."""
    try:
        import ray
    except ImportError:
        raise BadInput('--ray needs Ray: pip install "ray>=2.50".', "no-ray") from None
    try:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if port.isdecimal():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"No Ray cluster at {address}: {first_line(error)}", "no-ray") from None
    on = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
    root, folder = str(ROOT), os.getcwd()

    @ray.remote(max_retries=RETRIES, **on)
    def call(function: str, *arguments: Any) -> Any:
        sys.path.insert(0, root)
        os.chdir(folder)
        import lib.sweep

        try:
            return getattr(lib.sweep, function)(*arguments)
        except ValueError as error:  # BadInput, which Ray would wrap
            return error

    return ray, call


def run_on_ray(arms: Arms, ray: Any, call: Any) -> Iterator[tuple[str, str]]:
    """As `run_here`; Ray places the runs, and starts those of a lost worker on another."""
    waiting = {call.remote("run_arm", words): name for name, words in arms.items()}
    while waiting:
        [ended], _ = ray.wait(list(waiting))
        try:
            why = str(ray.get(ended))
        except ray.exceptions.RayError as error:
            why = f"Ray gave it up: {first_line(error)}"
        yield waiting.pop(ended), why


class Runner:
    """Arms that were checked, where they lie, and how they are run: here, or on a cluster."""

    def __init__(self, arms: Arms, address: str | None):
        if address:
            ray, call = connect(address)
            self._way, planned = partial(run_on_ray, ray=ray, call=call), call.remote("plan", arms)
            planned = ray.get(planned)
            if isinstance(planned, Exception):
                raise planned
        else:
            self._way, planned = run_here, plan(arms)
        self.folders = {name: folder for name, (folder, _) in planned.items()}
        self.finished = {name for name, (_, finished) in planned.items() if finished}
        self.folder = next(iter(self.folders.values())).parent
        hold(self.folder)  # or two of one file would take each other's runs

    def run(
        self, arms: Arms, is_done: Callable[[str], bool] = lambda name: False
    ) -> dict[str, str]:
        """Run these, and say how far they are; those that failed, with their trouble. `is_done`
        tells by a run's name of one that stopped with a sentence, but where it should."""
        failed, started = {}, time.time()
        with closing(self._way(arms)) as ends:
            for count, (name, why) in enumerate(ends, 1):
                failed |= {name: why} if why and not is_done(name) else {}
                rest = duration((time.time() - started) / count * (len(arms) - count))
                word = "failed" if name in failed else "done"
                print(
                    f"{count} of {len(arms)}: {name} {word}; about {rest} left for all", flush=True
                )
        for name, why in failed.items():
            print(f"{name} failed: {why} ({Run.shown(self.folders[name] / 'sweep.log')})")
        if failed:
            print("The same command tries these again, and leaves the others as they are.")
        return failed


def run_sweep(path: Path, address: str | None) -> int:
    given = read_sweep(path)
    arms = make_arms(given)
    runner = Runner(arms, address)
    left = {name: words for name, words in arms.items() if name not in runner.finished}
    runs, before = f"{len(arms)} run{'s' * (len(arms) > 1)}", len(arms) - len(left)
    logs = Run.shown(runner.folder / "*" / "sweep.log")
    print(f"{runs}, {before} of them done before; logs: {logs}", flush=True)
    failed = runner.run(left)
    measured = [file.parents[1].name for file in runner.folder.glob("*_*/evals/trained.json")]
    if len({name.rpartition("_")[0] for name in measured}) > 1:
        compared = {"run": f"{given['name']}/compared", "runs": [given["name"]]}
        words = as_words(given["recipes"][0], given["fixed"] | compared)
        print("Compare them:", shlex.join(["python", "-m", "lib.suite", *words, "--only", "09"]))
    return 1 if failed else 0


# --- a race -----------------------------------------------------------------------------------


def compare(scores: Scores, alpha: float, margin: float = 0.0) -> list[dict[str, Any]]:
    """A row an arm, the leader first: its mean, how far it is behind, and whether it stays. Raises
    BadInput where arms were not asked the same problems.

    Args:
        alpha: the chance that one arm leaves though it is better than the leader by `margin` or
            more; 0: the better half stays.
    """
    order = sorted(scores, key=lambda arm: -fmean(scores[arm].values()))
    leader, half = scores[order[0]], math.ceil(len(order) / 2)
    rows = []
    for place, arm in enumerate(order):
        row = {"arm": arm, "score": fmean(scores[arm].values()), "stays": True}
        if place:
            if scores[arm].keys() != leader.keys() or len(leader) < 2:
                raise BadInput(
                    f"{arm} and {order[0]} were asked other held-out problems: give both the same "
                    f"task and train_problems, and two validation_problems at least.",
                    "no-shared",
                )
            pairs = [(leader[problem], scores[arm][problem]) for problem in leader]
            level = 1 - 2 * alpha if alpha else 0.95
            paired = paired_difference(*zip(*pairs, strict=True), level=level)
            row |= {"difference": paired.difference, "at_most": paired.interval[1]}
            row["stays"] = row["at_most"] >= margin if alpha else place < half
        rows.append(row)
    return rows


def contest(
    arms: Iterable[str],
    rungs: Sequence[int],
    alpha: float,
    margin: float,
    train: Callable[[Sequence[str], int], Scores],
) -> Iterator[tuple[int, list[dict[str, Any]], dict[str, int]]]:
    """The race itself: at each rung its step, the rows of `compare` of the arms there, and how far
    each arm has come.

    An arm that left comes back, trained up to the rung, where the others have fallen below its last
    score: a high learning rate leads until it collapses.

    Args:
        train: takes these arms to a rung; returns the scores of those that did not fail.
    """
    steps, latest = dict.fromkeys(arms, 0), {}
    standing = list(steps)
    for rung in rungs:
        while standing:
            scores = train(standing, rung)
            steps |= dict.fromkeys(scores, rung)
            for arm in standing:
                latest.pop(arm, None)
            latest |= scores
            first = sorted(latest, key=lambda arm: (-fmean(latest[arm].values()), -steps[arm]))
            standing = [arm for arm in first[:1] if steps[arm] < rung]
        if not latest:
            return
        here = {arm: latest[arm] for arm in latest if steps[arm] == rung}
        rows = compare(here, alpha, margin)
        yield rung, rows, steps
        standing = [row["arm"] for row in rows if row["stays"]]


def find_rungs(race: Mapping[str, Any], configs: Sequence[Config], arms: int) -> list[int]:
    """Steps after which arms are compared; the last is max_steps. Raises BadInput where arms differ
    in it, have no validation, or a rung is no step of theirs."""
    [*steps] = {config.max_steps for config in configs}
    if len(steps) > 1 or not all(config.validation_steps for config in configs):
        raise BadInput(
            "The arms of a race have one max_steps, and validation_steps (max_steps will do): set "
            "both under `parameters`.",
            "race",
        )
    [last], batch = steps, max(config.num_iterations for config in configs)
    cuts = range(math.ceil(math.log2(max(arms, 2))), 0, -1)
    rungs = race.get("rungs") or [math.ceil(last / 2**cut / batch) * batch for cut in cuts]
    for rung in rungs:
        if not isinstance(rung, int) or rung % batch or not 0 < rung <= last:
            raise BadInput(
                f"rungs {rungs}: each is a step up to max_steps {last}, a multiple of "
                f"num_iterations {batch}.",
                "race",
            )
    return sorted({*rungs, last})


def scores_at(run: Run, step: int) -> dict[str, float]:
    """Held-out problem → score after this step."""
    rows = [r for r in read_jsonl(run.evals / "validation.jsonl") if r["step"] == step]
    name = next((n for n in ("strict", "lenient", "rougeL") if rows and n in rows[0]), "")
    return {row["id"]: float(row[name]) for row in rows}


def is_at(words: list[str], rung: int) -> bool:
    """Whether the run was trained to this step, kept, and measured there."""
    config, _, run = arm_of(words)
    return run.kept_step() >= rung and is_begun(config) and bool(scores_at(run, rung))


def run_race(path: Path, address: str | None) -> int:
    given = read_sweep(path, RACE_KEYS)
    arms = make_arms(given)
    delta, margin = given.get("delta", DELTA), given.get("margin", 0.0)
    entrants: dict[str, list[str]] = {}
    for name in arms:
        entrants.setdefault(name.rpartition("_")[0], []).append(name)
    rungs = find_rungs(given, [arm_of(words)[0] for words in arms.values()], len(entrants))
    runner = Runner(arms, address)
    alpha = delta / (len(entrants) * max(1, len(rungs) - 1)) if delta < 1 else 0.0
    failures: dict[int, dict[str, str]] = {}

    def train(standing: Sequence[str], rung: int) -> dict[str, dict[str, float]]:
        last = rung == rungs[-1]
        reached = is_done if last else partial(is_at, rung=rung)
        names = [name for arm in standing for name in entrants[arm]]
        end = [] if last else ["-p", "stop_at", str(rung)]
        left = {name: [*arms[name], *end] for name in names if not reached(arms[name])}
        failed = runner.run(left, lambda name: reached(arms[name]))
        failures[rung] = failures.get(rung, {}) | failed
        return {
            arm: _mean([scores_at(Run(runner.folders[n]), rung) for n in entrants[arm]])
            for arm in standing
            if not failed.keys() & {*entrants[arm]}
        }

    rounds, share = [], 0.0
    for rung, rows, steps in contest(entrants, rungs, alpha, margin, train):
        rounds.append({"step": rung, "failed": failures[rung], "arms": rows})
        share = sum(steps.values()) / (rungs[-1] * len(entrants))
        print(f"Step {rung} of {rungs[-1]}:", *map(_line, rows), sep="\n", flush=True)
    if not rounds or rounds[-1]["step"] < rungs[-1]:
        return 1
    first, file = rounds[-1]["arms"][0]["arm"], runner.folder / "race.json"
    bound = f"the best at a rung left with a chance of {delta:.0%} at most" if alpha else "no bound"
    write_json(file, {"delta": delta, "margin": margin, "share": share, "rounds": rounds})
    print(
        f"{first} is first. {share:.0%} of all steps were trained; {bound}.",
        Run.shown(file),
        sep="\n",
    )
    return 1 if any(each["failed"] for each in rounds) else 0


def _mean(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Over an arm's seeds, problem by problem."""
    return {problem: fmean(run[problem] for run in runs) for problem in runs[0]}


def _line(row: Mapping[str, Any]) -> str:
    line = f"  {row['arm']}: {row['score']:.1%}"
    if "difference" not in row:
        return line
    behind = f"{points(row['difference'])}, at most {points(row['at_most'])}"
    return f"{line} ({behind}){'' if row['stays'] else ', leaves'}"


# --- the commands -----------------------------------------------------------------------------


def _command(name: str, run: Callable[[Path, str | None], int], arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m lib.suite {name}", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", type=Path, help="a YAML file (docs/sweeps.md)")
    parser.add_argument("--ray", metavar="ADDRESS", help='a cluster: host:port, or "auto"')
    options = parser.parse_args(arguments)

    def stop(number: int) -> None:
        raise KeyboardInterrupt(number)

    with on_interrupt(stop):
        return run(options.file, options.ray)


sweep, race = partial(_command, "sweep", run_sweep), partial(_command, "race", run_race)
