"""One process at a time writes into a run's folder, wherever it was started."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from lib.config import ROOT
from lib.files import hold, release
from lib.runs import Run, put_aside
from tests.conftest import refuses

HOLDER = """
import sys, time
from pathlib import Path
from lib.errors import BadInput
from lib.files import hold
try:
    hold(Path(sys.argv[1]))
except BadInput as error:
    print(error.key, error, flush=True)
    sys.exit(2)
print("has it", flush=True)
time.sleep(float(sys.argv[2]))
"""


def holder(folder, seconds=60) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLDER, str(folder), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@contextmanager
def held(folder):
    """The process that has it."""
    with holder(folder) as process:
        try:
            assert process.stdout.readline() == "has it\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def place(tmp_path):
    return tmp_path / "demo"


def test_a_second_process_is_refused_by_the_firsts_number(place):
    with held(place) as first:
        with refuses("run-in-use", f"process {first.pid} since"):
            hold(place)
        shutil.copy(place.with_name(".demo.lock"), place.with_name(".copy.lock"))
        hold(place.with_name("copy"))  # a lock is no file that can be copied
    hold(place)  # and ends with its process
    release()
    assert not list(place.parent.iterdir()), "no run came of it"


def test_a_run_is_not_put_aside_under_one_inside_it(place):
    (place / "variant").mkdir(parents=True)
    (place / "run.json").write_text("{}")
    with held(place / "variant") as first, refuses("run-in-use", f"process {first.pid} since"):
        put_aside(Run(place))
    assert (put_aside(Run(place)) / "variant").is_dir() and not place.exists()


def test_of_many_that_start_at_once_one_has_it(place):
    started = [holder(place, 3) for _ in range(4)]
    said = [each.communicate()[0] for each in started]
    assert [text.startswith("has it") for text in said].count(True) == 1
    assert sum("run-in-use" in text for text in said) == 3


def test_children_may_write_where_their_runner_does(place):
    hold(place)
    assert holder(place, 0).communicate()[0] == "has it\n"
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    release()
    assert holder(place, 0).communicate()[0] == "has it\n"


def test_a_notebooks_cells_have_it_while_they_run(place):
    place.mkdir()
    opened = f"from pathlib import Path; from lib.files import hold; hold(Path({str(place)!r}))"
    sources = (opened, "import time; Path('busy').touch(); time.sleep(3)")
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook, busy = nbformat.v4.new_notebook(cells=cells), place.parent / "busy"
    client = NotebookClient(notebook, resources={"metadata": {"path": str(place.parent)}})
    with client.setup_kernel(env={**os.environ, "PYTHONPATH": str(ROOT)}):
        client.execute_cell(cells[0], 0)
        refused = pytest.raises(CellExecutionError, match="is being written by another process")
        with held(place), refused:  # the notebook is open, and idle
            client.execute_cell(cells[1], 1)
        assert not busy.exists()
        client.kc.execute(cells[1].source)
        while not busy.exists():
            time.sleep(0.05)
        with refuses("run-in-use"):
            hold(place)
        place.rename(place.with_name("demo.aside"))
        with pytest.raises(CellExecutionError, match="restart this notebook"):
            client.execute_cell(cells[1], 1)
