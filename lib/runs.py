"""The run folder: everything a run leaves, in one place, readable at any moment.

    outputs/demo/run.json             configuration, versions, hardware, commit, seed
                 notebooks/           as executed
                 train_log.jsonl      a line an optimizer step
                 rollouts/            every completion of training
                 checkpoints/         to resume from
                 best/                the adapter that validation liked best
                 adapter/  merged/    what was trained
                 evals/               every answer, and the summaries
                 figures/  report.html
                 previous/            what an earlier training of this run left

Lines are appended and files written beside and renamed, so that a kill at any
moment leaves a folder that can be read. One process at a time writes (`lib.files`).
"""

import filecmp
import hashlib
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from lib.config import ROOT, Config, resolve, user_path
from lib.errors import BadInput
from lib.files import (
    existing,
    hold,
    put_back,
    read_json,
    read_jsonl,
    shown,
    write_json,
    write_jsonl,
    written_whole,
)
from lib.hardware import GIB, detect_hardware, is_main_process
from lib.keys import translate
from lib.process import commit, installed_versions, quiet_process
from lib.stack import raise_if_memory

STAMP = "%Y%m%d-%H%M%S"
# What a training leaves, and what is made from its adapter; not the figures of 01, 02 and 06.
OF_TRAINING = ("train_log.jsonl", "rollouts", "checkpoints", "best", "alarms.json", "live.html")
OF_ADAPTER = (
    *("merged", "gguf", "evals/*", "figures/*.png", "report.html"),
    # 03 and 07 train: as they do, their notebook is being written (but by Jupyter elsewhere).
    *("notebooks/0[345789]*.html", "notebooks/0[4589]*.ipynb"),
)
BEFORE_TRAINING = ("memory", "preflight", "reward_model")
# Keys that do not make another training: where it lies, what it runs on, how it is measured.
UNNAMED = (
    *("name", "run", "output_dir", "data_dir", "profile", "resume", "report_to", "backend"),
    *("rollout_engine", "gpu_memory", "vllm_gpu_memory", "per_device_train_batch_size", "save_"),
    *("gradient_checkpointing", "preflight_prompts", "ignore_preflight", "eval_", "side_task"),
    *("candidate", "variants", "seeds", "push_to_hub", "certificate_", "logging_", "stop_at"),
    *("num_processes", "accelerate_config"),
)

# Keys that say nothing about how a run was made.
NOT_SETTINGS = (
    *("name", "run", "output_dir", "resume", "stop_at", "variants", "seeds", "runs", "by_profile"),
)


class Run:
    """The folder of one run; attributes are its paths."""

    def __init__(self, folder: Path):
        self.folder, self.record = folder, folder / "run.json"
        self.notebooks, self.figures = folder / "notebooks", folder / "figures"
        self.train_log, self.rollouts = folder / "train_log.jsonl", folder / "rollouts"
        self.checkpoints, self.best = folder / "checkpoints", folder / "best"
        self.adapter, self.merged = folder / "adapter", folder / "merged"
        self.evals, self.report = folder / "evals", folder / "report.html"
        self.progress, self._begun = folder / ".progress.json", folder / "previous" / ".begun"

    def __repr__(self) -> str:
        return self.shown(self.folder)

    shown = staticmethod(shown)

    def recorded(self) -> dict[str, Any]:
        """What the record holds; nothing before the run is opened."""
        return read_json(self.record, {})

    def note(self, **facts: Any) -> None:
        """Put facts into the record, in place of what it had under these names."""
        write_json(self.record, self.recorded() | facts)

    @contextmanager
    def new_adapter(self) -> Iterator[Path]:
        """A folder to write into, which becomes `adapter/`; what was made from another one, as
        before a training that has gone on, moves to `previous/<time>/`."""
        with written_whole(self.adapter) as beside:
            yield beside
            weights = [path.name for path in self.adapter.glob("*.safetensors")]
            _, *differ = filecmp.cmpfiles(self.adapter, beside, weights, shallow=False)
            if any(differ) and is_main_process():
                aside = self._move_to_previous(
                    *OF_ADAPTER,
                    but=(*BEFORE_TRAINING, "training", "validation", "base", "."),
                    still_good=("01", "02", "03", "06"),
                )
                if aside:
                    print(f"What was made from the adapter before is kept in {shown(aside)}")

    def put_aside_training(self) -> Path | None:
        """Move what a training left, and all that was made from it, to `previous/<time>/`: that
        folder, or None. A kill in the middle is made good by the next call."""
        trained = self._begun.is_dir() or self.train_log.exists() or self.adapter.exists()
        if not (trained and is_main_process()):
            return None
        begun, old = psutil.Process().create_time(), self.notebooks.glob("0[37]*.ipynb")
        old = (f"notebooks/{path.name}" for path in old if path.stat().st_mtime < begun)
        of_training = (*OF_TRAINING, "adapter", *OF_ADAPTER, *old)
        return self._move_to_previous(
            *of_training, but=BEFORE_TRAINING, still_good=("01", "02", "06")
        )

    def put_aside_evaluation(self, name: str) -> Path | None:
        """Move an evaluation that is about to be done in another way, and what was made from it,
        to `previous/<time>/`; with that of "base" go all."""
        names = ["comparison.json", "side_by_side.html", f"{name}.json", f"{name}.jsonl"]
        return self._move_to_previous(
            *(f"evals/{each}" for each in (["*"] if name == "base" else names)),
            "report.html",
            but=("validation", "certificate", "."),
            still_good=("01", "02", "03", "05", "06"),
        )

    def put_aside(self, path: Path) -> None:
        """Move a file or folder of this run that is about to be made anew to `previous/<time>/`."""
        self._move_to_previous(str(path.relative_to(self.folder)))

    def _move_to_previous(
        self, *patterns: str, but: tuple[str, ...] = (), still_good: tuple[str, ...] = ("0",)
    ) -> Path | None:
        """Where to what the patterns match has moved; None where that is nothing.

        Args:
            but: how the names begin of what stays.
            still_good: how the names of notebooks begin that remain finished.
        """
        matches = (path for pattern in patterns for path in self.folder.glob(pattern))
        paths = [path for path in matches if not path.name.startswith(but)]
        if not (paths or self._begun.is_dir()):
            return None
        self._begun.mkdir(parents=True, exist_ok=True)
        if self.record.is_file() and not (self._begun / "run.json").exists():
            shutil.copy2(self.record, self._begun)
        finished = self.recorded().get("finished", {})
        self.note(finished={k: v for k, v in finished.items() if k.startswith(still_good)})
        for path in paths:
            place = self._begun / path.relative_to(self.folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)
        return self._begun.rename(_unused(self._begun.with_name(time.strftime(STAMP))))

    def rewind(self, step: int) -> list[dict]:
        """The training log up to a step. What was written of later ones goes: a run that is
        resumed there does them again."""
        for later in rollout_steps(self):
            if later > step and is_main_process():
                _rollouts(self, later).unlink()
        for log in (self.train_log, self.evals / "validation.jsonl"):
            if log.is_file():
                write_jsonl(log, [row for row in read_jsonl(log) if row["step"] <= step])
        return read_jsonl(self.train_log)

    def kept(self, names: str = "[!.]*[0-9]") -> list[Path]:
        """The whole checkpoints of these names (03's and 07's differ), the latest last."""
        return sorted(filter(is_whole, self.checkpoints.glob(names)), key=_step)

    def kept_step(self) -> int:
        """Of the latest whole checkpoint; 0 without one."""
        return max(map(_step, self.kept()), default=0)

    def need(self, path: Path, made_by: str) -> Path:
        """The path, which an earlier notebook must have written; raises BadInput otherwise."""
        if not path.exists():
            raise BadInput(f"{self.shown(path)} is not there: run {made_by} for this run first.")
        return path

    def need_disk(self, gibibytes: float, what: str) -> None:
        """Raises BadInput where the disk has no room for what is about to be written."""
        free = shutil.disk_usage(existing(self.folder)).free / GIB
        if free < gibibytes:
            raise BadInput(
                f"{what} needs {gibibytes:.1f} GiB and {self.shown(self.folder)} has {free:.1f} "
                f"GiB free: make room, or set output_dir to another disk."
            )


def is_whole(checkpoint: Path) -> bool:
    """Whether all of it was on the disk when the run went on: its state is written last, and after
    that TRL's `training_args.bin` goes."""
    has_state = any(checkpoint.glob("*state.json"))
    return has_state and not (checkpoint / "training_args.bin").exists()


def _step(checkpoint: Path) -> int:
    return int(re.search(r"\d+$", checkpoint.name)[0])


def output_folder(config: Config) -> Path:
    return (ROOT / user_path(config.output_dir)).resolve()


def run_folder(config: Config) -> Path:
    """Where the configuration's run lies, whether or not it is there yet."""
    return output_folder(config) / config.run_name


def run_places(name: str, config: Config) -> Iterator[Path]:
    """Where a run that a user names may lie: under output_dir, or by its path."""
    places = (output_folder(config) / name, config.find(name))
    return (place.resolve() for place in places if place and place.is_dir())


def named_config(recipe: str | Path | None, given: Mapping[str, Any]) -> Config:
    """The configuration, in a folder of its own where parameters make another training of a recipe:
    `demo -p seed 1` is the run `demo-seed1`, unless `resume` finds `demo` alone to go on in."""
    config, plain = resolve(recipe, given), None
    with suppress(BadInput):  # the recipe may work with these parameters alone
        plain = resolve(recipe, {k: v for k, v in given.items() if k.startswith(UNNAMED)})
    changes = {
        key: value
        for key, value in config.model_dump().items()
        if recipe and config.origin(key) == "parameter" and not key.startswith(UNNAMED)
        if plain is None or value != getattr(plain, key)
    }
    if config.run or not changes:
        return config
    own = config.model_copy(update={"run": f"{config.name}{name_ending(changes)}"})
    goes_on = config.resume and Run(run_folder(config)).record.is_file()
    return config if goes_on and not run_folder(own).exists() else own


def name_ending(changes: Mapping[str, Any]) -> str:
    """What a run's name says of its settings; of long or nested values, a short hash."""
    ending = "".join(f"-{key}{value}" for key, value in sorted(changes.items()))
    if len(ending) > 48 or re.search(r"[^\w.+-]", ending):
        ending = f"-{hashlib.sha256(ending.encode()).hexdigest()[:8]}"
    return ending


def check_place(config: Config) -> None:
    """Raises BadInput where no run can be written under that name, before anything is."""
    name = config.run_name
    parts = [part for part in name.split("/") if part.strip() and len(part.encode()) <= 200]
    odd = any(part.startswith((".", "~")) for part in parts)  # hidden, as what is the suite's own
    if odd or not parts or "/".join(parts) != name or not name.isprintable():
        raise BadInput(
            f"run is {name[:60]!r}: it names a folder under output_dir, so give it letters or "
            f"digits, up to 200.",
            key="run-name",
        )
    folder = run_folder(config)
    for there in (existing(folder.parent), existing(folder)):  # its lock lies beside it
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            raise BadInput(
                f"output_dir: {shown(there)} cannot be written to ({error.strerror}), so that no "
                f"run can lie in it: set output_dir to a folder of yours.",
                key="output-dir",
            ) from None


def put_aside(run: Run) -> Path | None:
    """Keep a run under the time it was last touched, and make its name free; its new folder.
    BadInput: another process writes into a run that lies in it, as a variant does."""
    if not run.record.is_file():
        return None
    for lock in run.folder.rglob(".*.lock"):
        hold(lock.with_name(lock.name[1:].removesuffix(".lock")))
    stamp = time.strftime(STAMP, time.localtime(run.folder.stat().st_mtime))
    return run.folder.rename(_unused(run.folder.with_name(f"{run.folder.name}.{stamp}")))


def _unused(path: Path) -> Path:
    return _unused(path.with_name(f"{path.name}+")) if path.exists() else path


def is_begun(config: Config) -> bool:
    """Whether the run's folder is there, made with these settings."""
    record = Run(run_folder(config)).recorded()
    if not record:
        return False
    stored, wanted = translate(record["config"]), config.model_dump(mode="json")
    keys = (stored.keys() & wanted.keys()) - set(NOT_SETTINGS)  # newer keys are at their defaults
    if stored["profile"] != config.profile and config.origin("profile") == "default":
        # On other hardware, which nobody asked for: what that alone decides may differ.
        made, decides = record.get("origins", {}), ("profile", "recipe on")
        origins = {key: (config.origin(key), made.get(key, "")) for key in keys - {"profile"}}
        keys = {key for key, of in origins.items() if not any(o.startswith(decides) for o in of)}
    return all(wanted[key] in ("auto", stored[key]) for key in keys)  # which the run decided


def open_run(config: Config) -> Run:
    """The configuration's run folder, made where it is missing, with its record brought up.

    The record of a run that was trained keeps its settings until `begin_training`. Libraries write
    here and not into the working folder: call it before torch, Unsloth or vLLM are imported.
    BadInput: the run is written by another process, or its place cannot be written to.
    """
    check_place(config)
    run = Run(run_folder(config))
    run.folder.mkdir(parents=True, exist_ok=True)
    hold(run.folder)
    for place in (run.best, run.adapter, run.merged):
        put_back(place)
    quiet_process(run, config.num_processes)
    if config.resume or not (run.adapter.exists() or run.train_log.exists()):
        record_settings(config, run)
    run.note(
        versions=installed_versions(),
        python=sys.version.split()[0],
        hardware=asdict(detect_hardware()),
        commit=commit(),
    )
    return run


def record_settings(config: Config, run: Run) -> None:
    run.note(
        name=config.name,
        recipe=config.recipe_file,
        run=config.run_name,
        created=run.recorded().get("created", time.strftime("%Y-%m-%d %H:%M:%S")),
        config=config.model_dump(),
        origins={key: config.origin(key) for key in Config.model_fields},
    )


def begin_training(config: Config, run: Run) -> None:
    """The run's settings are these from now on; what an earlier training left is put aside."""
    if aside := run.put_aside_training():
        print(f"What an earlier training of this run left is kept in {run.shown(aside)}")
    record_settings(config, run)


@contextmanager
def hushed(run: Run) -> Iterator[None]:
    """What libraries print inside goes to the run's `libraries.log`, not over the page; that there
    is too little memory is said in a sentence."""
    file = run.folder / "libraries.log"
    with file.open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            yield
        except Exception as error:
            raise_if_memory(error, "go on")
            raise


def _rollouts(run: Run, step: int) -> Path:
    return run.rollouts / f"step_{step:05d}.jsonl"


def rollout_steps(run: Run) -> list[int]:
    """The steps whose completions are kept, in order."""
    return sorted(int(path.stem.removeprefix("step_")) for path in run.rollouts.glob("step_*"))


def read_rollouts(run: Run, step: int) -> list[dict]:
    """The completions of one optimizer step; none where it used those of a step before.

    Each has id, question, answer, completion, rewards (by name, unweighted), total (weighted),
    advantage, tokens and truncated; in a run that did not note the total, the plain sum.
    """
    rows = read_jsonl(_rollouts(run, step))
    for row in rows:
        total = sum(value or 0.0 for value in row["rewards"].values())
        old = {"question": row["id"], "total": total, "tokens": None, "truncated": None}
        row |= old | row
    return rows
