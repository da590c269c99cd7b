"""What is sent to the Hub, held to a stand-in of its API on this machine (the real one has not
been tried), and what goes with a model's files."""

import base64
import json
import threading
from http.server import ThreadingHTTPServer

import pytest
from huggingface_hub import ModelCard

from lib.adapters import conversation, make_portable
from lib.export.page import push, write_card
from lib.files import read_json, write_json, write_jsonl
from tests.conftest import JsonHandler


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
    write_card(run.adapter, run, ci_config)
    return run.adapter


def test_an_adapter_is_portable_and_its_card_is_of_the_run(adapter):
    config = read_json(adapter / "adapter_config.json")
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    card = ModelCard.load(adapter / "README.md")
    assert card.data.base_model == config["base_model_name_or_path"]
    assert card.data.license == "apache-2.0" and card.data.library_name == "peft"
    [result] = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.75)
    assert "25.0% | 75.0% | +50.0 points | +10.0 to +90.0 points | 8" in card.text
    assert "/home/me" not in (adapter / "README.md").read_text()


def test_the_prompt_goes_with_the_model(adapter):
    messages = conversation(adapter, "Calculate 9 + 8.")
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[-1]["content"] == "Calculate 9 + 8."


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
    with pytest.raises(ValueError) as error:
        push(adapter, "owner/name")
    assert error.value.key == key and "hf_secret" not in str(error.value)
    assert not hub.files
