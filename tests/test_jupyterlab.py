"""The notebooks as a person uses them: JupyterLab in a real browser, cells run, widgets answered.

Pictures in both themes go to the folder that GRPO_PICTURES names.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from types import SimpleNamespace

import nbformat
import psutil
import pytest
import yaml

from lib.config import ROOT, find_recipe, read_recipe
from lib.export.serve import free_port

LIMIT = 600  # seconds: nothing here waits that long but on a machine that is very busy
NOTEBOOK = "window.jupyterapp.shell.currentWidget"
CELLS = f"""() => [...{NOTEBOOK}.content.model.cells].map(cell => cell.toJSON())"""
TAKE = f"""async id => {{
    const context = {NOTEBOOK}.sessionContext
    await context.changeKernel({{ id }})
    await context.session.kernel.requestExecute({{ code: '%reset -f' }}).done
}}"""
CHAT = """from pathlib import Path
from lib.export.page import chat_box
from lib.export.serve import serve_gguf
from lib.models import embedded_gguf
from lib.plots.widgets import Playable
server = serve_gguf(embedded_gguf(), Path("serve.log").absolute(), 512, 4)
Playable(chat_box(server, Path("."), 8), "")"""
SETTINGS = {
    # Else only the cells in sight are in the page, and a widget elsewhere is never drawn.
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def small(folder, first_layers):
    """The `ci` recipe with two layers of its model, which transformers computes in no time."""
    small = {"model": str(first_layers), "backend": "transformers", "profile": "cpu"}
    small |= {"rollout_engine": "transformers", "eval_engine": "transformers"}
    small |= {"preflight_prompts": 4}
    recipe = folder / "small.yaml"
    recipe.write_text(yaml.safe_dump(read_recipe(find_recipe("ci")) | small | {"name": "small"}))
    return recipe


@pytest.fixture(scope="module")
def lab(folder, small):
    """JupyterLab with copies of the notebooks and a small recipe: name → its address; and the
    kernel of all of them, so that the libraries are imported once."""
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy(notebook, folder)
    chat = nbformat.read(notebook, 4)  # which names its kernel
    chat.cells = [nbformat.v4.new_code_cell(CHAT), nbformat.v4.new_markdown_cell("## Next")]
    nbformat.write(chat, folder / "chat.ipynb")
    for name, values in SETTINGS.items():
        file = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    port, token = free_port(), secrets.token_hex(16)
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"),
        *("--ip=127.0.0.1", f"--ServerApp.root_dir={folder}", "--expose-app-in-browser"),
    ]
    environment = {
        "JUPYTER_TOKEN": token,
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "PYTHONPATH": str(ROOT),
        "GRPO_RECIPE": str(small),
        "GRPO_OUTPUT_DIR": str(folder / "outputs"),
    }
    log = folder / "lab.log"
    server = subprocess.Popen(
        command,
        env=os.environ | environment,
        cwd=folder,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=log.open("w"),
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(LIMIT):
            try:
                urllib.request.urlopen(f"{address}/api?token={token}", timeout=5)
                break
            except OSError:
                assert server.poll() is None, log.read_text()[-2000:]
                time.sleep(0.5)
        yield SimpleNamespace(
            address=lambda name: f"{address}/lab/workspaces/{name}/tree/{name}.ipynb?token={token}",
            kernel=None,
        )
    finally:
        os.killpg(server.pid, signal.SIGINT)
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def open_and_run(browser, lab, name):
    """The notebook's page, its cells run."""
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    page.set_default_timeout(1000 * LIMIT)
    page.goto(lab.address(name))
    page.wait_for_function(
        f"() => window.jupyterapp?.shell?.currentWidget?.content?.model?.cells?.length > 1"
        f" && {NOTEBOOK}.sessionContext?.session?.kernel?.status === 'idle'"
    )
    if lab.kernel:
        page.evaluate(TAKE, lab.kernel)
    lab.kernel = page.evaluate(f"() => {NOTEBOOK}.sessionContext.session.kernel.id")
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        cells = [cell for cell in page.evaluate(CELLS) if cell["cell_type"] == "code"]
        outputs = [output for cell in cells for output in cell["outputs"]]
        faults = [output for output in outputs if output["output_type"] == "error"]
        assert not faults, faults[0]["evalue"]
        if all(cell["execution_count"] for cell in cells):
            return page
        time.sleep(1)
    raise AssertionError(f"{name}: the cells did not finish")


def look(page, cell, name):
    """The cell in both themes; pictures of it where they are wanted."""
    for theme, light in (("JupyterLab Light", "true"), ("JupyterLab Dark", "false")):
        page.evaluate(
            "t => window.jupyterapp.commands.execute('apputils:change-theme', t)", {"theme": theme}
        )
        page.wait_for_function("l => document.body.dataset.jpThemeLight === l", arg=light)
        cell.scroll_into_view_if_needed()
        if folder := os.environ.get("GRPO_PICTURES"):
            page.screenshot(path=f"{folder}/{name}_{'light' if light == 'true' else 'dark'}.png")


def move_slider(page, key):
    """The last cell with a slider, whose table must answer to a key pressed on it."""
    cell = page.locator(".jp-CodeCell", has=page.locator(".widget-slider")).last
    table = cell.locator("table").last
    table.wait_for()
    before, label = table.inner_text(), cell.locator(".widget-readout").first.inner_text()
    cell.locator(".noUi-handle").first.focus()
    for _ in range(4):
        page.keyboard.press(key)
    page.wait_for_function(
        "([cell, text]) => [...cell.querySelectorAll('table')].at(-1)?.innerText !== text",
        arg=[cell.element_handle(), before],
    )
    assert cell.locator(".widget-readout").first.inner_text() != label
    return cell


def test_the_notebooks_in_jupyterlab(lab, browser):
    """02's playground, 03 with its rollout browser, 04's viewer of answers."""
    for name, key in (
        ("02_reward_design", "ArrowRight"),
        ("03_training", "ArrowLeft"),  # from the last step to the first
        ("04_pass_at_k_eval", "ArrowRight"),
    ):
        page = open_and_run(browser, lab, name)
        look(page, move_slider(page, key), name)
        page.close()


def test_the_chat_in_jupyterlab_and_its_server_ends_with_a_killed_kernel(lab, browser):
    page = open_and_run(browser, lab, "chat")
    cell = page.locator(".jp-CodeCell", has=page.get_by_placeholder("Ask", exact=True)).first
    cell.get_by_placeholder("Ask", exact=True).fill("What is 2 + 3?")
    cell.get_by_role("button", name="Ask", exact=True).click()
    said = cell.locator("p", has_text="What is 2 + 3?")
    said.wait_for()
    you, model = said.locator("b").all_inner_texts()
    assert you == "you" and said.inner_text().partition(f"{model}:")[2].strip()
    look(page, cell, "chat")

    ours = psutil.Process().children(recursive=True)
    ours = [p for p in ours if p.status() != psutil.STATUS_ZOMBIE]  # of the other tests
    [kernel] = [p for p in ours if "ipykernel_launcher" in p.cmdline()]
    servers = kernel.children(recursive=True)
    assert any("xllamacpp" in " ".join(p.cmdline()) for p in servers)
    kernel.kill()
    _, alive = psutil.wait_procs(servers, timeout=60)
    assert not alive
    page.close()
