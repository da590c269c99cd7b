"""Where a task's rows come from: a folder of JSON Lines files, or the Hugging Face Hub.

    <data_dir>/gsm8k/test.jsonl    one row a line: {"question": "…", "answer": "… #### 18"}

A folder is given by argument or by the environment variable GRPO_DATA_DIR;
without either, the rows are loaded from the Hub.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from lib.errors import BadInput


def read_rows(path: str | Path, columns: Iterable[str] = ()) -> list[dict]:
    """The rows of a JSON Lines file, each of which must have `columns`; blank lines are skipped.

    Raises:
        BadInput: no such file, not UTF-8, a line that is no JSON object, or a missing column
            (the file and the line are named).
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"There is no file {path}: give the path of a JSON Lines file.")
    rows = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:  # broken JSON or broken UTF-8
                raise BadInput(f"{where} is not valid JSON ({error}): mend that line.") from None
            if not isinstance(row, dict):
                raise BadInput(f'{where} is not a JSON object: write {{"column": value, …}}.')
            check_columns(row, columns, where)
            rows.append(row)
    if not rows:
        raise BadInput(f"{path} has no rows: give a file with one JSON object a line.")
    return rows


def check_columns(row: dict, columns: Iterable[str], where: str) -> None:
    """Raises BadInput unless the row has every one of `columns`, with a value in it."""
    for column in columns:
        if column not in row:
            raise BadInput(f'{where} has no column "{column}": it has {", ".join(row) or "none"}.')
        if row[column] is None:
            raise BadInput(f'{where} has nothing in its column "{column}": fill it in.')


def load_rows(
    folder: str,
    split: str,
    hub: tuple[str, ...],
    hub_split: str,
    columns: Iterable[str] = (),
    data_dir: str | Path | None = None,
) -> list[dict]:
    """The rows of `<data_dir>/<folder>/<split>.jsonl`, or of the Hub's data set `hub`.

    Args:
        folder, split: name the file under `data_dir` (else under $GRPO_DATA_DIR).
        hub, hub_split: (repository, configuration if it has several) and the split there,
            used when there is neither argument nor environment variable.
        columns: what every row must have.
    """
    data_dir = data_dir or os.environ.get("GRPO_DATA_DIR")
    if data_dir:
        return read_rows(_file(Path(data_dir), folder, split), columns)
    try:
        import datasets

        rows = datasets.load_dataset(*hub, split=hub_split).to_list()
    # Whatever goes wrong on the way to the Hub (name service, proxy, log-in, rate limit,
    # a renamed data set) has the same way out.
    except Exception as error:
        raise BadInput(
            f"{hub[0]} could not be loaded from the Hugging Face Hub ({type(error).__name__}): "
            f"check the connection, or put the rows into <folder>/{folder}/{split}.jsonl and "
            f"give that folder as data_dir or in the environment variable GRPO_DATA_DIR."
        ) from error
    for number, row in enumerate(rows):
        check_columns(row, columns, f"{hub[0]}, split {hub_split}, row {number}")
    return rows


def _file(data_dir: Path, folder: str, split: str) -> Path:
    path = data_dir / folder / f"{split}.jsonl"
    if not data_dir.is_dir():
        raise BadInput(f"There is no data folder {data_dir}: mend data_dir or GRPO_DATA_DIR.")
    if not path.parent.is_dir():
        raise BadInput(
            f"{data_dir} has no folder {folder}: put the rows into {path}, or give neither "
            f"data_dir nor GRPO_DATA_DIR to load them from the Hub."
        )
    if not path.is_file():
        there = ", ".join(sorted(file.name for file in path.parent.glob("*.jsonl"))) or "no .jsonl"
        raise BadInput(f"{path.parent} has no {path.name} (it has {there}): choose another split.")
    return path
