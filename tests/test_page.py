"""The Gradio page in a real headless browser, and the folder for a Space."""

import os
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import pytest

from lib.adapters import make_portable
from lib.export.page import build, paid_lines, write_space
from lib.export.serve import free_port
from lib.files import read_jsonl
from lib.tasks import Problem, make_rows


@pytest.fixture
def samples(ci_config):
    problem = Problem(id="a", question="What is 2 + 3?", answer="5", kind="number")
    return make_rows([problem], ci_config.prompt_format)


def ask(name, messages):
    yield "<answer>"
    yield "<answer>5</answer>" if name == "trained" else "It is 5 < 6"


def test_rewards_are_paid(ci_config, samples):
    lines = paid_lines(ci_config, samples[0], ["It is 6", "<answer>5</answer>"])
    assert lines and all(base < trained for _, base, trained in lines)


def see(browser, address, theme, to):
    """Ask the first sample on the page, and keep a picture of it."""
    page = browser.new_page(viewport={"width": 1100, "height": 900}, color_scheme=theme)
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(f"{address}?__theme={theme}")
    page.fill("#question textarea", "What is 2 + 3?")
    page.click("#ask")
    page.wait_for_function(
        "document.querySelector('#paid').innerText.includes('correctness')", timeout=60_000
    )
    said = [page.input_value(f"#{name} textarea") for name in ("base", "trained")]
    page.screenshot(path=to)
    page.close()
    assert not faults
    return said


def test_the_page_in_a_browser(ci_config, samples, tmp_path, browser):
    make_portable(tmp_path, ci_config.model_copy(update={"shots": 0}), [])
    page = build(ask, samples, ci_config, tmp_path)
    _, address, shared = page.launch(
        server_name="127.0.0.1", share=False, prevent_thread_lock=True, quiet=True
    )
    pictures = os.environ.get("GRPO_PICTURES") or tmp_path
    try:
        for theme in ("light", "dark"):
            said = see(browser, address, theme, f"{pictures}/page_{theme}.png")
            assert said == ["It is 5 < 6", "<answer>5</answer>"]
    finally:
        page.close(verbose=False)
    assert shared is None and address.startswith("http://127.0.0.1:")


def test_a_space_is_whole_and_starts(ci_config, run, first_layers, tmp_path):
    from lib.models import load_policy

    changes = {"backend": "transformers", "model": str(first_layers)}
    config = ci_config.model_copy(update=changes)
    load_policy(config).model.save_pretrained(run.adapter)
    make_portable(run.adapter, config.model_copy(update={"shots": 0}), [])
    space = write_space(run, config, tmp_path / "space")
    assert {"app.py", "README.md", "requirements.txt"} <= {p.name for p in space.iterdir()}
    assert "sdk: gradio" in (space / "README.md").read_text()
    assert len(read_jsonl(space / "sample_prompts.jsonl")) > 4

    port, log = free_port(), (tmp_path / "log").open("w")
    environment = {"BASE_MODEL": str(first_layers), "GRADIO_SERVER_PORT": str(port)}
    environment |= {"GRADIO_ANALYTICS_ENABLED": "False", "PYTHONPATH": ""}
    command, given = [sys.executable, "app.py"], dict(cwd=space, stdout=log, stderr=log)
    with subprocess.Popen(command, env=os.environ | environment, **given) as app:
        end = time.monotonic() + 120
        while time.monotonic() < end and app.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/") as reply:
                assert b"gradio" in reply.read()
                break
            time.sleep(0.5)
        else:
            pytest.fail((tmp_path / "log").read_text()[-2000:])
        app.kill()
