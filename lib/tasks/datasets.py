"""Tasks whose problems are rows of a data set: in files, or on the Hugging Face Hub.

    <data_dir>/gsm8k/test.jsonl    one row a line: {"question": "…", "answer": "… #### 18"}

The folder is given by argument or by the environment variable GRPO_DATA_DIR; without either,
the rows are loaded from the Hub. `OwnRows` (task "file") takes a file of one's own in any
place, `HubRows` (task "hub") any data set on the Hub; their columns are named in the recipe.
"""

import csv
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.config import user_path
from lib.errors import BadInput, nearest
from lib.files import existing
from lib.tasks.problems import (
    KINDS,
    OPEN,
    PACKED,
    Problem,
    Task,
    check_split,
    gold_text,
    is_missing,
    only_split,
    split_rows,
    task,
    unpacked,
)
from lib.tasks.prompts import boxed_spans


class StoredTask(Task):
    """A task whose rows stand in `<data_dir>/<folder>/<split>.jsonl` or on the Hub.

    Attributes:
        splits: our split → the data set's, where its name differs, in files and on the Hub.
        hub_splits: the same for the Hub alone.
        columns: what every row must have.
        repeats: its train and test splits share questions; those are left out of train.
        held_out: the share of train's questions that is the test split instead, for a data set
            that has no test split of its own.
    """

    folder: str
    licence = "unknown"
    splits: dict[str, str] = {}  # noqa: RUF012
    hub_splits: dict[str, str] = {}  # noqa: RUF012
    columns: tuple[str, ...] = ("question", "answer")
    repeats: bool = False
    held_out: float = 0.0

    def problem(self, row: dict, id: str) -> Problem | None:
        """The problem in one row, or None where it has no gold answer."""
        raise NotImplementedError

    def load(self, split: str, data_dir: str | Path | None = None) -> list[Problem]:
        check_split(split)
        rows = self._rows(split, data_dir or os.environ.get("GRPO_DATA_DIR"))
        problems = [self.problem(row, f"{self.name}/{split}/{i}") for i, row in enumerate(rows)]
        problems = [problem for problem in problems if problem]
        if self.held_out:
            return only_split(problems, split, self.held_out)
        if split == "train" and self.repeats:
            tested = {problem.key for problem in self.load("test", data_dir)}
            problems = [problem for problem in problems if problem.key not in tested]
        return problems

    def _rows(self, split: str, data_dir: str | Path | None) -> list[dict]:
        stored = "train" if self.held_out else self.splits.get(split, split)
        file = Path(data_dir or "<folder>") / self.folder / f"{stored}.jsonl"
        put = f"put the rows into {file}"
        if not data_dir:
            way_out = f"{put} and give that folder as data_dir or in GRPO_DATA_DIR"
            return hub_rows(*self.hub, split=self.hub_splits.get(split, stored),
                            columns=self.columns, way_out=way_out)  # fmt: skip
        if not file.exists():
            folder = existing(file.absolute())
            there = ", ".join(sorted(f.name for f in folder.glob("*"))[:9]) or "nothing"
            hint = f"{put}, or leave out data_dir and GRPO_DATA_DIR to load them from the Hub"
            raise BadInput(f"There is no {file} ({folder} has {there}): {hint}.", "data-dir")
        return read_rows(file, self.columns)


@task("gsm8k")
class Gsm8k(StoredTask):
    """Grade-school word problems (Cobbe et al. 2021, arXiv 2110.14168)."""

    kind, folder, hub, licence = "number", "gsm8k", ("openai/gsm8k", "main"), "mit"

    def problem(self, row, id):
        solution, marker, gold = gold_text(row["answer"], id).rpartition("####")
        if not marker:
            raise BadInput(f'{id}: the answer has no "#### " before its number: fix that row.')
        # <<48/2=24>> marks what the data set's authors sent to a calculator.
        solution = re.sub(r"<<.*?>>", "", solution).strip()
        return Problem(id, row["question"], gold.strip(), {"solution": solution}, self.kind)


@task("numina")
class NuminaMath(StoredTask):
    """Competition mathematics, whose gold stands in the solution's last \\boxed{}. A twentieth of
    its questions is the test split; `math500` is the benchmark others report."""

    kind, folder, hub, licence = "math", "math", ("AI-MO/NuminaMath-TIR",), "apache-2.0"
    columns, held_out = ("problem", "solution"), 0.05

    def problem(self, row, id):
        gold = row.get("answer")
        if is_missing(gold):
            boxes = boxed_spans(row["solution"])
            gold = row["solution"][slice(*boxes[-1])] if boxes else None
        if is_missing(gold):
            return None
        level = re.search(r"\d+", str(row.get("level", "")))  # 5 or "Level 5"
        meta = {"solution": row["solution"], "subject": row.get("subject")}
        meta["level"] = int(level[0]) if level else None
        return Problem(row_id(row, id, "unique_id"), row["problem"], gold, meta, self.kind)


@task("math500")
class Math500(NuminaMath):
    """500 problems of MATH's test split (Hendrycks et al. 2021; Lightman et al. 2023)."""

    folder, hub, licence = "math500", ("HuggingFaceH4/MATH-500",), "mit"
    columns = ("problem", "solution", "answer", "subject", "level")
    held_out, examples_from = 0.0, "numina"

    def load(self, split, data_dir=None):
        if split == "train":
            raise BadInput('Task "math500" has no train split: train on "numina", test on this.')
        return super().load(split, data_dir)


@task("aqua")
class Aqua(StoredTask):
    """Algebra word problems with five options (Ling et al. 2017, arXiv 1705.04146). The small
    validation split serves as train."""

    kind, folder, hub = "choice", "aqua_rat", ("deepmind/aqua_rat", "raw")
    licence = "apache-2.0"
    splits = {"train": "validation"}  # noqa: RUF012
    columns = ("question", "options", "rationale", "correct")

    def problem(self, row, id):
        options = [re.sub(r"^([A-E])\)\s*", r"\1) ", option) for option in row["options"]]
        question = "\n".join([row["question"], "Options (answer with the letter):", *options])
        meta = {"solution": row["rationale"], "options": options}
        return Problem(id, question, row["correct"], meta, self.kind)


@task("smoltldr")
class SmolTldr(StoredTask):
    """Summaries of one sentence or two; the gold is a summary that a person wrote."""

    kind, folder, hub = OPEN, "scitldr", ("mlabonne/smoltldr",)
    columns, repeats = ("prompt", "completion"), True

    def problem(self, row, id):
        return Problem(id, row["prompt"], row["completion"], {}, self.kind)


@task("preference_pairs")
class PreferencePairs(StoredTask):
    """Prompts with a preferred and a rejected completion, to train a reward model on.

    Question, chosen and rejected are texts or chat messages (of the answers the last one counts).
    Pairs of one question are one cluster. `longest`, unless 0, leaves out longer questions (in
    characters, with the system message).
    """

    kind, folder, hub = OPEN, "preference_pairs", ("Intel/orca_dpo_pairs",)
    hub_splits = {"train": "train[:95%]", "test": "train[95%:]"}  # noqa: RUF012
    columns, repeats = ("chosen", "rejected"), True

    def __init__(self, longest: int = 0):
        self.longest = longest

    def problem(self, row, id):
        sides = {side: unpacked(row[side]) for side in ("chosen", "rejected")}
        content = unpacked(row.get("question") or row.get("prompt"))
        if not content and isinstance(sides["chosen"], list):  # it is in both dialogues
            content = sides["chosen"][:-1]
        question, meta = conversation(content, id)
        meta["system"] = row.get("system") or meta.get("system") or ""
        if self.longest and len(meta["system"]) + len(question) > self.longest:
            return None
        for side, said in sides.items():
            meta[side] = message_text(said[-1:] if isinstance(said, list) else said)
        meta["cluster"] = hashlib.sha256(question.encode()).hexdigest()[:12]
        return Problem(id, question, meta["chosen"], meta, self.kind)


@dataclass(eq=False)
class OwnColumns(Task):
    """Rows whose columns are named; the columns that are neither become meta.

    Attributes:
        path: a file from the working folder, beside the recipe, or in the repository; or a
            repository on the Hub, or a folder that `datasets` loads.
        question: the column of the question: text, or chat messages that end with the user's; or
            several columns of texts that make it together ([instruction, input]).
        answer: the column of the gold answer; a dot leads into a column that holds a table
            ("reward_model.ground_truth"). Of chat messages it is the last one; the question's own
            column means the last message of the same dialogue.
        kind: how answers are compared: "number", "math", "choice", "text" (words), or "open" (no
            gold is right).
        test_share: the share of questions held out as the test split, chosen by their text.
    """

    licence = "unknown"
    path: str | Path
    question: str | list[str] = "question"
    answer: str = "answer"
    kind: str = "number"
    test_share: float = 0.0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise BadInput(f"There is no kind of answer {self.kind!r}: {nearest(self.kind, KINDS)}")
        self.names = [self.question] if isinstance(self.question, str) else self.question
        if not self.names:
            raise BadInput("question is []: name the column, or columns, of the question.")
        if not 0 <= self.test_share < 1:
            raise BadInput(f"test_share is {self.test_share}: give a share from 0 to below 1.")

    def problems(self, rows: list[dict], source: str) -> list[Problem]:
        used, problems = {*self.names, self.answer, "id", "earlier_turns"}, []
        used |= {column.partition(".")[0] for column in used}
        for i, row in enumerate(rows):
            id = f"{source}/{i}"
            parts = [cell(row, name) for name in self.names]
            asked, gold = parts[0], cell(row, self.answer)
            if parts[1:]:  # of several some may be empty
                asked = "\n\n".join(str(part) for part in parts if not is_missing(part))
            if self.question == self.answer and isinstance(asked, list):  # a whole dialogue
                asked, gold = asked[:-1], asked[-1:]
            question, meta = conversation(asked, id)
            meta |= {key: row[key] for key in row if key not in used}
            if self.kind == OPEN or is_chat(gold):  # of chat messages the last one's
                gold = "" if is_missing(gold) else message_text(gold)
            problems.append(Problem(row_id(row, id), question, gold, meta, self.kind))
        return problems

    @property
    def columns(self) -> tuple[str | list[str], ...]:
        """What each row must have: an answer of which none is right only where it is named."""
        unasked = self.kind == OPEN and self.answer == OwnColumns.answer
        return (self.question,) if unasked else (self.question, self.answer)


@task("file", "jsonl", "csv", "parquet")
@dataclass(eq=False)
class OwnRows(OwnColumns):
    """Problems in a file of one's own: JSON Lines, JSON, CSV, TSV or Parquet, by its ending.

    `test_path` is a second file, the test split. Without it or test_share, both are the whole one.
    """

    test_path: str | Path | None = None

    def load(self, split, data_dir=None):
        check_split(split)
        path = self.test_path if split == "test" and self.test_path else self.path
        source = Path(path).stem + (f"/{split}" if self.test_path else "")
        rows = read_rows(path, self.columns, filled=True)
        problems = self.problems(rows, source)
        if not self.test_share or self.test_path:
            return problems
        return split_rows(problems, split, self.test_share)


@task("hub")
@dataclass(eq=False)
class HubRows(OwnColumns):
    """Any data set on the Hugging Face Hub, or saved in a folder as `datasets` loads it.

    `subset` is its configuration; `train` and `test` name its splits (with test_share, `train`).
    """

    subset: str = ""
    train: str = "train"
    test: str = "test"

    def load(self, split, data_dir=None):
        check_split(split)
        name = self.test if split == "test" and not self.test_share else self.train
        where = [str(self.path), *([self.subset] if self.subset else [])]
        way_out = "download it to a file and use the task file"
        rows = hub_rows(*where, split=name, columns=self.columns, way_out=way_out)
        problems = self.problems(rows, f"{self.path}/{name}")
        return split_rows(problems, split, self.test_share) if self.test_share else problems


# --- rows ---------------------------------------------------------------------------------------


def read_rows(path: str | Path, columns: Iterable[str] = (), filled: bool = False) -> list[dict]:
    """The rows of a JSON Lines, JSON, CSV, TSV or Parquet file, which may be compressed (.gz); each
    must have `columns`.

    BadInput names the file, and the line or row that cannot be read or lacks a column.
    """
    path = user_path(path)
    if not path.is_file():
        hint = "give the path of a JSONL, CSV or Parquet file (the task hub loads a folder)"
        raise BadInput(f"There is no file {path}: {hint}.")
    data = path.read_bytes()
    try:
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path} cannot be unpacked ({error}): copy it again.") from None
    rows = _parsed(path, data)
    if not rows:
        raise BadInput(f"{path} has no rows: give a file with at least one.")
    empty = []
    for where, row in rows:
        try:
            check_columns(row, columns, where, filled)
        except BadInput as error:
            if error.key != "empty":
                raise
            empty.append((where.removeprefix(f"{path}, "), error))
    if empty:
        more = ", ".join(where for where, _ in empty[1:11]) + ", …" * (len(empty) > 11)
        raise BadInput(f"{empty[0][1]}" + f" Likewise {more}." * bool(more), "empty")
    return [row for _, row in rows]


def _parsed(path: Path, data: bytes) -> list[tuple[str, dict]]:
    """Rows by where they stand: read by the file's ending, or where that says nothing, by how it
    begins."""
    ending = Path(path.name.lower().removesuffix(".gz")).suffix
    if data.startswith(b"version https://git-lfs"):
        said = f"{path} is a pointer of Git LFS, not the rows"
        raise BadInput(f"{said}: fetch them with `git lfs pull`.", "encoding")
    if ending == ".parquet" or data[:4] == b"PAR1":
        return _read_parquet(path, data)
    text = data.decode("utf-8-sig", "surrogateescape")
    if odd := re.search("[\0\udc80-\udcff]", text):  # a workbook, an archive, another encoding
        line = text.count("\n", 0, odd.start()) + 1
        hint = "save the rows as CSV or JSON Lines in UTF-8, or as Parquet"
        raise BadInput(f"{path}, line {line} is not UTF-8 text: {hint}.", "encoding")
    as_json = ending in (".json", ".jsonl", ".ndjson") or text.lstrip()[:1] in ("{", "[")
    read = _read_json if as_json and ending not in (".csv", ".tsv") else _read_csv
    return read(path, text)


def _read_json(path: Path, text: str) -> list[tuple[str, dict]]:
    """JSON Lines (blank lines are skipped), or one JSON list."""
    if text.lstrip().partition("\n")[0].strip() == "{":  # indented, as by a program
        said = f"{path} is one object, or several over more lines than one each"
        raise BadInput(f"{said}: write a list of rows, [{{…}}, {{…}}], or a row a line.", "json")
    if text.lstrip()[:1] == "[":
        rows = [(f"{path}, row {i}", row) for i, row in enumerate(_json(text, str(path)), 1)]
    else:
        lines = [(f"{path}, line {i}", line) for i, line in enumerate(text.split("\n"), 1)]
        rows = [(where, _json(line, where)) for where, line in lines if line.strip()]
    for where, row in rows:
        if not isinstance(row, dict):
            raise BadInput(f'{where} is not a JSON object: write {{"column": value, …}}.')
    return rows


def _json(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        said = "holds half a character (a lone surrogate), which no tokenizer reads"
        raise BadInput(f"{where} {said}: fix that line.", "surrogate") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where} is not valid JSON ({error}): fix that line.") from None


def _read_csv(path: Path, text: str) -> list[tuple[str, dict]]:
    """Every cell as the text it is, separated by what the header has most of: , ; or a tab. Excel
    may write "sep=;" before it."""
    try:
        text = re.sub(r"^\s*sep=.\r?\n", "", text).lstrip("\r\n")
        separator, line = max(",;\t|", key=text.partition("\n")[0].count), 1
        csv.field_size_limit(1 << 30)
        lines = io.StringIO(text, newline="")
        reader = csv.DictReader(lines, delimiter=separator, skipinitialspace=True, strict=True)
        names = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        rows = []
        for row in reader:
            line = reader.line_num
            rows.append((f"{path}, line {line}", row))
    except csv.Error as error:
        said = f"{path} is no CSV that can be read after line {line} ({error})"
        raise BadInput(f"{said}: look for a quotation mark too many.", "csv") from None
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise BadInput(f"{path} has two columns {twice[0]!r}: rename one of them.", "csv")
    for where, row in rows:
        row.pop("", None)  # a column without a name, as of a program's index
        if any(row.pop(None, ())):
            hint = f"put quotation marks around a text that holds {separator!r}"
            raise BadInput(f"{where} has more cells than the header: {hint}.", "csv")
    return rows


def _read_parquet(path: Path, data: bytes) -> list[tuple[str, dict]]:
    from pyarrow import BufferReader, parquet

    try:
        rows = _table_rows(parquet.read_table(BufferReader(data)))
    except (OSError, ValueError) as error:  # pyarrow's own are ValueErrors
        raise BadInput(f"{path} is no Parquet file that can be read ({error}): fix it.") from None
    return [(f"{path}, row {i}", row) for i, row in enumerate(rows, 1)]


def _table_rows(table: Any) -> list[dict[str, Any]]:
    """The rows of an Arrow table as JSON has them: dates and Decimals as text, bytes as the text
    they hold, and a 32-bit 0.1 as 0.1, not as 0.10000000149."""
    for i, (name, kind) in enumerate(zip(table.column_names, table.schema.types, strict=True)):
        if kind in ("halffloat", "float"):
            column = table.column(i).cast("float").cast("string").cast("double")
            table = table.set_column(i, name, column)

    def text(value: Any) -> str:
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    return json.loads(json.dumps(table.to_pylist(), default=text))


def hub_rows(
    *hub: str, split: str, columns: Iterable[str] = (), way_out: str = ""
) -> list[dict[str, Any]]:
    """The rows of a data set on the Hub: repository, configuration, and a split of it.

    BadInput where it cannot be loaded (`way_out` says what to do instead) or lacks a column.
    """
    try:
        import datasets

        if any(Path(hub[0], file).exists() for file in ("dataset_dict.json", "state.json")):
            data = datasets.load_from_disk(hub[0])  # what `save_to_disk` wrote
            data = data[split] if isinstance(data, dict) else data
        else:
            data = datasets.load_dataset(*hub, split=split)
        rows = _table_rows(data.with_format("arrow")[:])
    # Whatever goes wrong (name service, log-in, rate limit, another name) has the same way out.
    except Exception as error:
        known = isinstance(error, ValueError | KeyError) and f"{type(error).__name__}: {error}"
        said = " ".join((known or type(error).__name__).split())[:200]
        said = f"{hub[0]} could not be loaded from the Hugging Face Hub ({said})"
        raise BadInput(f"{said}: check the connection, or {way_out}.", "hub") from error
    for number, row in enumerate(rows):
        check_columns(row, columns, f"{hub[0]}, split {split}, row {number}")
    return rows


def cell(row: dict, column: str) -> Any:
    """What a row has in a column; "a.b" is the entry b of the column a. None where it is not."""
    if column in row:
        return unpacked(row[column])
    first, dot, rest = column.partition(".")
    table = unpacked(row.get(first))
    return cell(table, rest) if dot and isinstance(table, dict) else None


def check_columns(row: dict, columns: Iterable, where: str, filled: bool = False) -> None:
    """Raises BadInput unless the row has each of `columns`, with a value, which is not empty if
    `filled`; a list of columns, of which one alone may have it, is one of them."""
    for names in columns:
        names = [names] if isinstance(names, str) else names
        for name in names:
            if not {name, name.partition(".")[0]} & row.keys():
                there = ", ".join(map(str, row)) or "none"
                hint = "name the one you mean in task_config (question: …, answer: …)"
                raise BadInput(f'{where} has no column "{name}": it has {there}; {hint}.', "column")
        values = [cell(row, name) for name in names]
        if all(value is None or (filled and is_missing(value)) for value in values):
            said = f"{where} has nothing in its column {' or '.join(map(repr, names))}"
            raise BadInput(f"{said}: fill it in.", "empty")


def row_id(row: dict, id: str, column: str = "id") -> str:
    """The row's own id where it has one, else `id`."""
    own = row.get(column)
    return id if is_missing(own) else str(own)


# --- chat messages ------------------------------------------------------------------------------


ROLES = {  # as data sets call them, and as chat templates do
    **{role: role for role in ("system", "user", "assistant", "tool")},
    **dict.fromkeys(("human", "prompter"), "user"), "developer": "system", "function": "tool",
    **dict.fromkeys(("gpt", "chatgpt", "ai", "bot", "chatbot", "model"), "assistant"),
}  # fmt: skip


def conversation(content: Any, id: str) -> tuple[str, dict[str, Any]]:
    """The question that a text or chat messages end with; and as meta what comes before it."""
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], str):
        content = content[0]
    if isinstance(content, str | int | float) and not PACKED.match(str(content)):
        return str(content), {}
    if isinstance(content, dict):  # or one message
        content = content.get("messages") or content.get("conversations") or content
    turns = [_turn(message) for message in (content if isinstance(content, list) else [content])]
    system = turns.pop(0)["content"] if turns and turns[0].get("role") == "system" else ""
    last = turns[-1] if turns and all(turns) else {}
    if last.get("role") != "user" or not last["content"].strip():
        hint = "a text, or chat messages {role, content}, of text alone, that end with the user's"
        raise BadInput(f"{id}: the question must be {hint}: fix that row.", "question")
    meta = {"system": system} if system else {}
    return last["content"], meta | ({"earlier_turns": turns[:-1]} if turns[1:] else {})


def is_chat(content: Any) -> bool:
    """Whether it is a chat message, or several."""
    turns = content if isinstance(content, list) else [content]
    return bool(turns) and all(map(_turn, turns))


def _turn(message: Any) -> dict[str, str]:
    """A chat message, also as {from, value}; {} for what is none, or holds more than text."""
    if not isinstance(message, dict) or message.get("tool_calls") or message.get("function_call"):
        return {}
    role = ROLES.get(str(message.get("role") or message.get("from")).lower())
    if role is None:
        return {}
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    if any(
        isinstance(p, dict) and p.get("type", "text") not in ("text", "input_text") for p in parts
    ):
        return {}  # a picture, of which nothing would be asked
    return {"role": role, "content": message_text(message)}


def message_text(message: Any) -> str:
    """The text of a completion: a string, a chat message (also in typed parts), or several, of
    which (in a dialogue with tools) the last one counts. None is an empty text."""
    if isinstance(message, dict):  # a message, or one typed part of a message
        keys = (key for key in ("content", "text", "value") if key in message)
        return message_text(message.get(next(keys, "")))
    if not isinstance(message, list | tuple):
        return "" if message is None else str(message)
    if message and all(isinstance(turn, dict) and "content" in turn for turn in message):
        return message_text(message[-1])
    return "".join(map(message_text, message))  # a message's content in typed parts
