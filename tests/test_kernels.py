"""Kernels forked from a template: what they begin with, and that nothing is left of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import nbformat
import psutil
import pytest
from jupyter_client.provisioning import KernelProvisionerFactory

from lib.config import ROOT, resolve
from lib.kernels import PLAIN, UNSLOTH, Template, templates
from lib.suite import _children_memory, run_notebook
from tests.conftest import CPU, T4

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux alone")


@pytest.fixture
def run(run, monkeypatch):
    """With notebooks of the test's own in the folder above it."""
    monkeypatch.setattr("lib.suite.NOTEBOOKS", run.folder.parent)
    return run


@pytest.fixture
def others() -> list[psutil.Process]:
    """The children that tests in this process left before."""
    return psutil.Process().children()


def write(folder: Path, name: str, *cells: str) -> None:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(made, folder / f"{name}.ipynb")


def printed(run, name: str) -> str:
    cells = nbformat.read(run.notebooks / f"{name}.ipynb", 4).cells
    return "".join(out.get("text", "") for cell in cells for out in cell.get("outputs", []))


def test_a_kernel_begins_with_the_modules_and_nothing_of_the_one_before(tmp_path, run, others):
    first = "import os, sys, random, colorsys; made = 1; os.environ['MADE'] = sys.argv[0] = 'first'"
    second = "import os, sys, random"
    look = (
        "print('wave' in sys.modules, 'colorsys' in sys.modules, 'made' in globals(), "
        "os.environ.get('MADE'), os.getppid(), os.getsid(0) == os.getpid(), os.getcwd(), "
        f"sys.path.count({str(ROOT)!r}), random.random())"
    )
    write(tmp_path, "01", first, look)
    write(tmp_path, "02", second, look)
    template = Template({"01": ["wave"], "02": ["wave"]}, run)
    counted = _children_memory()
    Template.running.discard(template.process.pid)
    assert _children_memory() > counted + 2**20  # as a kernel's would be counted
    Template.running.add(template.process.pid)
    for name in ("01", "02"):
        assert run_notebook(name, run, {}, template) == 0
    one, other = (printed(run, name).split() for name in ("01", "02"))
    # As in any process of this Python: the set-up may have put the repository on its path.
    count = f"import sys; print(sys.path.count({str(ROOT)!r}))"
    plain = subprocess.run([sys.executable, "-c", count], cwd=tmp_path, capture_output=True)
    mine = [str(os.getpid()), "True", str(tmp_path), plain.stdout.decode().strip()]
    assert one[:-1] == ["True", "True", "True", "first", *mine]
    assert other[:-1] == ["True", "False", "False", "None", *mine]
    assert one[-1] != other[-1]
    assert KernelProvisionerFactory.instance().default_provisioner_name == "local-provisioner"
    assert template.process.poll() is not None and set(psutil.Process().children()) <= set(others)


def test_a_forked_kernel_that_is_killed_is_told(tmp_path, run, capsys):
    write(tmp_path, "01", "import os; os.kill(os.getpid(), 9)")
    assert run_notebook("01", run, {}, Template({"01": []}, run)) == 1
    assert "01 stopped: its kernel ended (it was interrupted, or k" in capsys.readouterr().err


def test_the_end_of_a_kernel_is_no_error(tmp_path, run, capfd):
    """Jupyter interrupts a kernel before it ends it; this one is still at its last answer then."""
    slowly = """
    import time
    handlers = get_ipython().kernel.shell_handlers
    answer = handlers["kernel_info_request"]
    async def slowly(*request):
        await answer(*request)
        time.sleep(0.05)
    handlers["kernel_info_request"] = slowly
    """
    write(tmp_path, "01", dedent(slowly))
    assert run_notebook("01", run, {}) == 0
    assert "KeyboardInterrupt" not in capfd.readouterr().err


def test_where_the_template_fails_the_kernel_starts_by_itself(tmp_path, run):
    write(tmp_path, "01", "import sys; print('wave' in sys.modules)")
    assert run_notebook("01", run, {}, Template({"01": ["wave", "not_there"]}, run)) == 0
    assert printed(run, "01") == "False\n"
    assert "No module named 'not_there'" in (run.folder / "libraries.log").read_text()


RUNNER = """
import sys
from pathlib import Path
from textwrap import dedent
import lib.suite
from lib.kernels import Template
from lib.runs import Run
lib.suite.NOTEBOOKS, run = Path(sys.argv[1]), Run(Path(sys.argv[2]))
template = Template({"01": sys.argv[3:], "02": []}, run)
sys.exit(lib.suite.run_notebook("01", run, {}, template))
"""


@pytest.fixture
def runner(tmp_path, run):
    """Starts a process with a template whose kernel sleeps; gives it with all of its children."""
    started = []

    def start(*modules: str, until: Path) -> tuple[subprocess.Popen, list[psutil.Process]]:
        sleep = f"import time; open({str(tmp_path / 'busy')!r}, 'w'); time.sleep(300)"
        write(tmp_path, "01", sleep)
        command = [sys.executable, "-c", RUNNER, str(tmp_path), str(run.folder), *modules]
        path = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
        runner = subprocess.Popen(
            command, env=os.environ | path, stderr=subprocess.PIPE, start_new_session=True
        )
        started.append(runner)
        while not until.exists():
            assert runner.poll() is None
            time.sleep(0.05)
        return runner, psutil.Process(runner.pid).children(recursive=True)

    yield start
    for each in started:
        each.kill()
        each.communicate()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_the_runner_ends(tmp_path, runner, number):
    process, children = runner(until=tmp_path / "busy")
    assert len(children) == 2  # template and kernel
    process.send_signal(number)
    code = -number if number == signal.SIGKILL else 128 + number
    assert process.wait(20) == code
    assert psutil.wait_procs(children, timeout=10)[1] == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_nothing_is_left_when_the_runner_ends_before_the_kernel_is_there(
    tmp_path, runner, number, code
):
    begun = tmp_path / "begun"
    slow = f"import time; open({str(begun)!r}, 'w'); time.sleep(300)"
    (tmp_path / "slow_to_import.py").write_text(slow)
    process, children = runner("slow_to_import", until=begun)
    time.sleep(3)  # now it waits for the kernel
    process.send_signal(number)
    assert process.wait(20) == code
    assert children and psutil.wait_procs(children, timeout=10)[1] == []
    assert not (tmp_path / "busy").exists()


def test_nothing_is_forked_with_a_gpu_or_for_a_single_notebook(tmp_path, run, others):
    def planned(names, hardware=CPU, **given):
        config = resolve("ci", given | {"output_dir": str(tmp_path)}, hardware)
        with templates(names, config, run) as ready:
            return {name: list(template.needed) for name, template in ready.items()}

    chain = ["01_setup", "03_training", "04_pass_at_k_eval", "06_reward_model"]
    plain = {name: ["01_setup", "04_pass_at_k_eval"] for name in ("01_setup", "04_pass_at_k_eval")}
    assert planned(chain, profile="cpu") == plain | {"03_training": ["03_training"]}
    assert planned(chain, profile="cpu", backend="transformers") == plain
    assert planned(["01_setup"], profile="cpu") == planned(chain, T4, profile="t4") == {}
    assert set(psutil.Process().children()) <= set(others)


@pytest.mark.parametrize("of", [PLAIN, UNSLOTH], ids=["plain", "unsloth"])
def test_a_template_has_one_thread(tmp_path, run, monkeypatch, of):
    """A fork copies no other, and what it had locked stays locked. Two that know of forks are not
    started here: those of numpy's BLAS and of Arrow's allocator."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setenv("JE_ARROW_MALLOC_CONF", "background_thread:false")
    every = list(dict.fromkeys(module for modules in of.values() for module in modules))
    template = Template({"01": every, "02": []}, run)
    threads = f"len(os.listdir('/proc/{template.process.pid}/task'))"
    missing = f"[m for m in {every} if m not in sys.modules]"
    write(tmp_path, "01", f"import os, sys; print({threads}, {missing})")
    assert run_notebook("01", run, {}, template) == 0
    template.close()
    assert printed(run, "01") == "1 []\n"
