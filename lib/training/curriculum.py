"""Which training prompts are asked, and in what order, by what the preflight measured of them."""

from collections.abc import Mapping, Sequence

import numpy as np

from lib.config import Config
from lib.errors import BadInput
from lib.runs import Run, read_json


def choose_rows(rows: Sequence[dict], run: Run, config: Config) -> tuple[list[dict], str]:
    """The rows to train on, and a sentence on what was done to them.

    With `drop_dead`, prompts that were always right or always wrong are left out, but never so
    many that the rest does not fill a step; with `curriculum: easy_first`, those more often
    right come first.

    Raises:
        BadInput: either is asked for and there was no preflight, or it graded no answers.
    """
    if not config.drop_dead and config.curriculum == "none":
        return list(rows), "Every prompt may be drawn, in random order."
    path = run.folder / "preflight.json"
    found = read_json(path) if path.is_file() else {}
    rates = found.get("pass_rates", {})
    if not rates:
        raise BadInput(
            "drop_dead and curriculum need the pass rates of a preflight: run 02_reward_design "
            "for this run first, on a task whose answers are right or wrong, or switch both off."
        )
    told = [f"{sum(row['id'] in rates for row in rows)} of {len(rows)} prompts were measured"]
    if config.drop_dead:
        kept = _without(rows, set(found["drop"]), config.prompts_per_step)
        told.append(f"{len(rows) - len(kept)} always right or always wrong are dropped")
        rows = kept
    if config.curriculum == "easy_first":
        rows = _easy_first(rows, rates)
        told.append("those more often right come first")
    return list(rows), "; ".join(told) + "."


def _without(rows: Sequence[dict], drop: set[str], least: int) -> list[dict]:
    """The rows not to be dropped, filled up with dropped ones where they are fewer than `least`."""
    kept = {row["id"] for row in rows} - drop
    spare = [row["id"] for row in rows if row["id"] in drop]
    kept |= set(spare[: max(0, least - len(kept))])
    return [row for row in rows if row["id"] in kept]


def _easy_first(rows: Sequence[dict], rates: Mapping[str, float]) -> list[dict]:
    """A prompt that was not measured counts as one of mean difficulty."""
    middle = float(np.mean(list(rates.values())))
    return sorted(rows, key=lambda row: -rates.get(row["id"], middle))
