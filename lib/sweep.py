"""Recipes × parameters × seeds, each run a process and a folder of its own (docs/sweeps.md).

    python -m lib.suite sweep docs/sweep.yaml               # a run a GPU; on a CPU one at a time
    python -m lib.suite sweep docs/sweep.yaml --ray auto    # a Ray cluster that shares this disk

All is checked before the first run starts. The same command again does what is missing: what is
finished with the same settings is left alone, and what was stopped goes on. Exit code 0: all done;
1: a run failed; 2: something given does not work; 130: Ctrl-C, after which runs end their step.
"""

import argparse
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from lib.config import RECIPES, ROOT, Config, find_recipe, read_recipe, resolve
from lib.doctor import check_inputs
from lib.errors import BadInput, first_line, nearest
from lib.evaluation.runs import is_begun
from lib.hardware import visible_gpus
from lib.lock import hold, release
from lib.process import child_environment, ends_with_us
from lib.progress import duration
from lib.runs import Run, check_place, name_ending, put_aside, read_json, run_folder
from lib.suite import choose_notebooks, configure, read_arguments

KEYS = dict(name=str, recipe=str, recipes=list, base=str, parameters=dict, seeds=list, only=list)
WORDS = {str: "a text", list: "a list", dict: "`key: values` pairs", float | int: "a number"}
OF_ONE_RUN = ("name", "run", "resume", "stop_at", "output_dir")  # `base` leaves them
START = "--- "  # begins the log's line of each start
RETRIES = 3  # of a run whose worker was lost
PATIENCE = 600  # seconds in which what a lost worker left has ended

Arms = Mapping[str, list[str]]  # run name → the runner's arguments


def read_sweep(path: Path, keys: Mapping[str, Any] = KEYS) -> dict[str, Any]:
    """The file's keys: `recipes` as paths, `parameters` as `fixed` and `varied`.

    Raises:
        BadInput: an unknown key, or a value of the wrong type.
    """
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
    names = given.get("recipes", []) + ([given["recipe"]] if "recipe" in given else [])
    if "base" in given:
        name, settings = settings_of(given["base"], parameters)
        names, parameters = [*names, name], settings | parameters
    if not names:
        raise BadInput(
            f"{path.name} names no recipe: add `recipe: demo`, or `base: RUN`.", "no-recipe"
        )
    beside = [path.parent / str(name) for name in names]
    paths = [b if b.is_file() else find_recipe(str(n)) for b, n in zip(beside, names, strict=True)]
    varied = {k: v for k, v in given.get("parameters", {}).items() if isinstance(v, list)}
    fixed = {key: value for key, value in parameters.items() if key not in varied}
    return given | {"recipes": [p.resolve() for p in paths], "fixed": fixed, "varied": varied}


def settings_of(base: str, parameters: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A run's recipe, and what was set for it: what another run of its kind begins with."""
    named = resolve(None, {"output_dir": parameters.get("output_dir"), "run": base})
    for folder in (Path(base).expanduser(), run_folder(named), ROOT / base):
        if (folder / "run.json").is_file():
            record = read_json(folder / "run.json")
            origins = {key: of.split()[0] for key, of in record["origins"].items()}
            names = {k for k, of in origins.items() if of in ("recipe", "parameter")}
            config = {k: v for k, v in record["config"].items() if k in names - {*OF_ONE_RUN}}
            return record["name"], config
    raise BadInput(f"base: there is no run {base}: name a folder with a run.json.", "no-run")


def make_arms(sweep: Mapping[str, Any]) -> Arms:
    """Run name → what the runner is given, in the order in which they start."""
    # YAML reads an unquoted 03 as 3.
    only = [f"{each:02}" if isinstance(each, int) else str(each) for each in sweep.get("only", [])]
    arms: dict[str, list[str]] = {}
    for path in sweep["recipes"]:
        own = {"seed": Config.model_fields["seed"].default} | read_recipe(path) | sweep["fixed"]
        for *values, seed in product(
            *sweep["varied"].values(), sweep.get("seeds") or [own["seed"]]
        ):
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


def arm_of(words: list[str]) -> tuple[Config, list[str], Run]:
    """A run's configuration, its notebooks and its folder."""
    options, given = read_arguments(words)
    config = configure(options, given)
    return config, choose_notebooks(config, options.only), Run(run_folder(config))


def plan(arms: Arms) -> dict[str, tuple[Path, bool]]:
    """Run name → its folder, and whether it is finished.

    Raises:
        BadInput: for the first run that could not start.
    """
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
    """A run's process, which ends with this one however this one ends, and its log.

    Raises:
        BadInput: another process has the run ("run-in-use").
    """
    config, _, run = arm_of(words)
    begun = is_begun(config)
    hold(run.folder)
    if not (begun or "--only" in words):
        put_aside(run)  # here, as the log is in the new folder
    release()
    run.folder.mkdir(parents=True, exist_ok=True)
    words = [*words, "--resume"] if begun else words
    with (log := run.folder / "sweep.log").open("a", encoding="utf-8") as file:
        file.write(f"{START}{time.strftime('%F %T')} python -m lib.suite {shlex.join(words)}\n")
        file.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "lib.suite", *words],
            env=child_environment() | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}),
            **dict(stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT),
            start_new_session=True,  # Ctrl-C reaches it once, through us
            preexec_fn=ends_with_us(),
        )
    return process, log


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
    """Ray, and what has a function of this module called on the cluster.

    Raises:
        BadInput: Ray is not installed, or there is no cluster.
    """
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


def begin(arms: Arms, address: str | None) -> tuple[dict[str, tuple[Path, bool]], Any]:
    """What `plan` says, and how runs are started: `run_here`, or on the cluster at the address."""
    if not address:
        return plan(arms), run_here
    ray, call = connect(address)
    planned = ray.get(call.remote("plan", arms))
    if isinstance(planned, Exception):
        raise planned
    return planned, partial(run_on_ray, ray=ray, call=call)


def run_all(
    arms: Arms, way: Callable, folders: Mapping[str, Path], is_done: Callable[[str], bool]
) -> dict[str, str]:
    """Run them, and say how far they are; those that failed, with their trouble.

    Args:
        way: from `begin`.
        is_done: tells by a run's name of one that stopped with a sentence, but where it should.
    """
    failed, started = {}, time.time()
    with closing(way(arms)) as ends:
        for count, (name, why) in enumerate(ends, 1):
            failed |= {name: why} if why and not is_done(name) else {}
            rest = duration((time.time() - started) / count * (len(arms) - count))
            word = "failed" if name in failed else "done"
            print(f"{count} of {len(arms)}: {name} {word}; about {rest} left for all", flush=True)
    for name, why in failed.items():
        print(f"{name} failed: {why} ({Run.shown(folders[name] / 'sweep.log')})")
    if failed:
        print("The same command tries these again, and leaves the others as they are.")
    return failed


def run_sweep(path: Path, address: str | None) -> int:
    sweep = read_sweep(path)
    arms = make_arms(sweep)
    planned, way = begin(arms, address)
    folders = {name: folder for name, (folder, _) in planned.items()}
    left = {name: words for name, words in arms.items() if not planned[name][1]}
    folder = next(iter(folders.values())).parent
    runs, before = f"{len(arms)} run{'s' * (len(arms) > 1)}", len(arms) - len(left)
    logs = Run.shown(folder / "*" / "sweep.log")
    print(f"{runs}, {before} of them done before; logs: {logs}", flush=True)
    failed = run_all(left, way, folders, lambda name: False)
    measured = [file.parents[1].name for file in folder.glob("*_*/evals/trained.json")]
    if len({name.rpartition("_")[0] for name in measured}) > 1:
        runs = {"run": f"{sweep['name']}/compared", "runs": [sweep["name"]]}
        words = as_words(sweep["recipes"][0], sweep["fixed"] | runs)
        print("Compare them:", shlex.join(["python", "-m", "lib.suite", *words, "--only", "09"]))
    return 1 if failed else 0


def main(arguments: list[str] | None = None, run: Callable = run_sweep) -> int:
    about = sys.modules[run.__module__].__doc__
    name = run.__name__.removeprefix("run_")
    parser = argparse.ArgumentParser(prog=f"python -m lib.suite {name}", description=about)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", type=Path, help="a YAML file (docs/sweeps.md)")
    parser.add_argument("--ray", metavar="ADDRESS", help='a cluster: host:port, or "auto"')
    options = parser.parse_args(arguments)
    # Also where it was started in the background, which ignores Ctrl-C by default.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return run(options.file, options.ray)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on from there.", file=sys.stderr)
        return 128 + signal.SIGINT
