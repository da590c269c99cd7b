"""What others see of a model: the Gradio page in a real headless browser, the folder for a Space,
and what is sent to the Hub, held to a stand-in of its API (the real one has not been tried)."""

import base64
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from http.server import ThreadingHTTPServer

import pytest
from huggingface_hub import ModelCard

from lib.adapters import conversation, make_portable
from lib.export.page import (
    build,
    card_data,
    paid_lines,
    push,
    run_config,
    write_card,
    write_space,
)
from lib.export.serve import free_port
from lib.files import read_json, read_jsonl, write_json, write_jsonl
from lib.tasks import Problem, make_rows
from tests.conftest import JsonHandler, refuses


@pytest.fixture
def samples(ci_config):
    problem = Problem(id="a", question="What is 2 + 3?", answer="5", kind="number")
    return make_rows([problem], ci_config.prompt_format)


def ask(messages, model):
    yield from ("<answer>5", "</answer>") if model == "trained" else ("It is ", "5 < 6")


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


def test_a_space_is_whole_and_starts(ci_config, run, samples, first_layers, tmp_path, monkeypatch):
    from lib.models import load_policy

    own = tmp_path / "own.py"
    own.write_text("def short(completions, **columns): return [1.0 for _ in completions]\n")
    rewards = ci_config.rewards | {f"{own}:short": 0.1, "reward_model": 1.0}
    changes = {"backend": "transformers", "model": str(first_layers), "rewards": rewards}
    config = ci_config.model_copy(update=changes)
    load_policy(config).model.save_pretrained(run.adapter)
    make_portable(run.adapter, config.model_copy(update={"shots": 0}), [])
    space = write_space(run, config, tmp_path / "space")
    assert {"app.py", "README.md", "requirements.txt"} <= {p.name for p in space.iterdir()}
    assert "sdk: gradio" in (space / "README.md").read_text()
    assert len(read_jsonl(space / "sample_prompts.jsonl")) > 4
    own.unlink()
    monkeypatch.chdir(space)
    paid = paid_lines(run_config("adapter")[1], samples[0], ["5", "<answer>5</answer>"])
    assert [name for name, *_ in paid] == ["correctness", "hard_format", "short"]

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


# --- the card, and the Hub ----------------------------------------------------------------------


class Hub(JsonHandler):
    """As much of huggingface.co as `create_repo` and `upload_folder` ask for."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        server, path = self.server, self.path
        server.seen.append((path, self.headers.get("Authorization")))
        if server.refuse:
            return self.reply(403, {"error": "no write access"})
        if path == "/api/repos/create":
            server.repository = json.loads(body)
            return self.reply(200, {"url": f"{server.url}/owner/name", "id": "owner/name"})
        if path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if "/preupload/" in path:
            files = [f["path"] for f in json.loads(body)["files"]]
            modes = [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return self.reply(200, {"files": modes})
        if "/commit/" in path:
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    data = base64.b64decode(item["value"]["content"])
                    server.files[item["value"]["path"]] = data
            return self.reply(200, {"commitUrl": f"{server.url}/owner/name/commit/1",
                                    "commitOid": "1"})  # fmt: skip
        return self.reply(404, {"error": path})

    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        self.reply(404, {"error": self.path})


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.seen, server.files, server.repository, server.refuse = [], {}, None, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def adapter(ci_config, run):
    """An adapter's folder as 05 leaves it, without weights worth speaking of."""
    run.adapter.mkdir()
    write_json(run.adapter / "adapter_config.json", {"base_model_name_or_path": "/home/me/model"})
    (run.adapter / "adapter_model.safetensors").write_bytes(b"\0" * 64)
    (run.adapter / "README.md").write_text("base_model: /home/me/model")  # peft's
    make_portable(run.adapter, ci_config.model_copy(update={"shots": 0}), [])
    assert not (run.adapter / "README.md").exists()
    row = {"before": 0.25, "after": 0.75, "difference": 0.5, "interval_95": [0.1, 0.9]}
    row |= {"problems": 8, "p_value": 0.01, "stderr": 0.1}
    write_json(run.evals / "comparison.json", {"greedy_strict": row})
    write_jsonl(run.train_log, [{"step": 1, "reward": 0.5}])
    run.note(hardware={"cores": 1, "memory": 24.0})
    write_card(run.adapter, run, ci_config.model_copy(update={"r": 24}))
    return run.adapter


def test_an_adapter_is_portable_and_its_card_is_of_the_run(adapter, ci_config):
    system, asked = conversation(adapter, "Calculate 9 + 8.")
    assert (system["role"], asked) == ("system", {"role": "user", "content": "Calculate 9 + 8."})
    config = read_json(adapter / "adapter_config.json")
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    card = ModelCard.load(adapter / "README.md")
    assert card.data.base_model == config["base_model_name_or_path"]
    assert card.data.license == "apache-2.0" and card.data.library_name == "peft"
    [result] = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.75)
    assert "25.0% | 75.0% | +50.0 points | +10.0 to +90.0 points | 8" in card.text
    assert "trained on 1 CPU core, 24 GiB with" in card.text
    assert "--max-lora-rank 32 --lora-modules" in card.text
    assert "/home/me" not in (adapter / "README.md").read_text()
    for task, data in (("aqua", ["deepmind/aqua_rat"]), ("small_sums", None)):
        assert card_data(adapter, ci_config.model_copy(update={"task": task}), {}).datasets == data


def test_a_push_is_private_and_the_token_is_in_no_file(adapter, hub):
    assert push(adapter, "owner/name").endswith("/commit/1")
    assert hub.repository["visibility"] == "private"
    assert {token for _, token in hub.seen} == {"Bearer hf_secret"}
    assert set(hub.files) == {path.name for path in adapter.iterdir()}
    for name, data in hub.files.items():
        assert data == (adapter / name).read_bytes() and b"hf_secret" not in data


@pytest.mark.parametrize(("change", "key"), [("token", "no-token"), ("refuse", "hub")])
def test_a_push_that_cannot_be_says_why(adapter, hub, monkeypatch, change, key):
    if change == "token":
        monkeypatch.delenv("HF_TOKEN")
    hub.refuse = change == "refuse"
    with refuses(key) as error:
        push(adapter, "owner/name")
    assert "hf_secret" not in str(error.value) and not hub.files
