"""A notebook as a person uses it: JupyterLab in a real browser, all cells run, a slider moved."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from lib.config import ROOT

CELLS = """() => [...window.jupyterapp.shell.currentWidget.content.model.cells]
    .filter(cell => cell.type === "code")
    .map(cell => cell.toJSON())"""


@pytest.fixture
def lab(tmp_path, browser):
    """JupyterLab on a folder with a copy of 02, and the suite's `ci` recipe; its address."""
    shutil.copy(ROOT / "notebooks" / "02_reward_design.ipynb", tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"),
        *("--ip=127.0.0.1", f"--ServerApp.root_dir={tmp_path}", "--expose-app-in-browser"),
    ]
    environment = {
        **os.environ,
        "JUPYTER_TOKEN": token,
        "PYTHONPATH": str(ROOT),
        "GRPO_RECIPE": "ci",
        "GRPO_OUTPUT_DIR": str(tmp_path / "outputs"),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
    }
    # Every cell stays in the page, also one that is out of sight.
    settings = tmp_path / "config/lab/user-settings/@jupyterlab/notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    server = subprocess.Popen(
        command,
        env=environment,
        cwd=tmp_path,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=(tmp_path / "lab.log").open("w"),
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api?token={token}")
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "lab.log").read_text()[-2000:]
                time.sleep(0.5)
        yield f"{address}/lab/tree/02_reward_design.ipynb?token={token}"
    finally:
        os.killpg(server.pid, signal.SIGINT)
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def test_02_runs_in_jupyterlab_and_its_playground_answers_a_slider(lab, browser, tmp_path):
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    page.goto(lab)
    page.wait_for_function(
        "() => window.jupyterapp?.shell?.currentWidget?.content?.model?.cells?.length > 10"
        " && window.jupyterapp.shell.currentWidget.sessionContext?.session?.kernel",
        timeout=180_000,
    )
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    for _ in range(600):
        cells = page.evaluate(CELLS)
        outputs = [output for cell in cells for output in cell["outputs"]]
        faults = [o for o in outputs if o["output_type"] == "error"]
        assert not faults, faults[0]["evalue"]
        if all(cell["execution_count"] for cell in cells):
            break
        time.sleep(1)
    else:
        raise AssertionError("the cells did not finish in ten minutes")
    cell = page.locator(".jp-CodeCell", has=page.locator(".widget-slider")).first
    cell.wait_for(timeout=120_000)
    table = cell.locator("table").last
    before, label = table.inner_text(), cell.locator(".widget-readout").first.inner_text()
    cell.locator(".noUi-handle").first.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "([cell, text]) => [...cell.querySelectorAll('table')].at(-1).innerText !== text",
        arg=[cell.element_handle(), before],
        timeout=120_000,
    )
    assert cell.locator(".widget-readout").first.inner_text() != label
    pictures = os.environ.get("GRPO_PICTURES") or tmp_path
    page.screenshot(path=f"{pictures}/jupyterlab_02.png")
