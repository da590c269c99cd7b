"""What several tests share: the real data, a run folder of their own, the embedded model."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from lib.config import ROOT, resolve
from lib.errors import BadInput
from lib.files import release
from lib.hardware import Hardware
from lib.process import keep_byte_code, trim_memory
from lib.runs import Run, open_run

keep_byte_code()

CPU = Hardware(cores=2, memory=16.0)
T4 = Hardware("Tesla T4", 14.6, 7.5, 4, 30.0)
L4 = Hardware("NVIDIA L4", 22.0, 8.9, 8, 50.0)
# A training that this machine does in seconds, with nothing but transformers.
SMALL = dict(
    profile="cpu",
    backend="transformers",
    rollout_engine="transformers",
    eval_engine="transformers",
    max_steps=1,
    max_completion_length=6,
)


def start_suite(*words, **options) -> subprocess.Popen:
    """`python -m lib.suite` these words, from the repository unless it says otherwise."""
    options = {"cwd": ROOT, "stdout": -1, "stderr": -1, "text": True} | options
    return subprocess.Popen([sys.executable, "-m", "lib.suite", *map(str, words)], **options)


def python(*words, cwd=ROOT, env=None) -> str:
    """What Python prints with these words, `-c` or `-m` among them; it must end well."""
    given = dict(cwd=cwd, env=env, capture_output=True, text=True)
    done = subprocess.run([sys.executable, *map(str, words)], **given)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def as_parameters(given: dict) -> list[str]:
    """As the runner's arguments."""
    return [word for key, value in given.items() for word in ("-p", key, json.dumps(value))]


@pytest.fixture(autouse=True)
def nothing_is_left_of_a_run():
    """What a run leaves in its process until that ends: its lock, and that nobody is there to play
    with widgets (`lib.plots.widgets.EXECUTED`)."""
    yield
    release()
    os.environ.pop("GRPO_WORKING_DIR", None)


@pytest.fixture(scope="module", autouse=True)
def memory_is_given_back():
    """Models and engines of a module's fixtures end with it."""
    yield
    trim_memory()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real data sets beside the repository, where they are."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the data sets (../shared/data) are not on this machine")
    return folder


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The folder of the embedded model's safetensors."""
    from lib.models import embedded_folder

    return embedded_folder()


@pytest.fixture(scope="session")
def first_layers(embedded, tmp_path_factory) -> Path:
    """The embedded model's first two layers, for what does not depend on what a model says."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("first_layers")
    model = AutoModelForCausalLM.from_pretrained(embedded, num_hidden_layers=2, dtype="bfloat16")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(embedded).save_pretrained(folder)
    return folder


@pytest.fixture
def small_training(first_layers, tmp_path):
    """`small_training([reward], max_steps=2)`: the trainer of 03_training on two prompts, and its
    configuration and run. Further arguments are a recipe's keys."""

    def make(rewards=(by_turns,), weights=None, policy=None, rows=SAY_A_NUMBER, **changes):
        from lib.models import load_policy
        from lib.training import make_trainer

        given = SMALL | {"model": str(first_layers), "output_dir": str(tmp_path)} | changes
        config = resolve("ci", given, CPU)
        run, policy = open_run(config), policy or load_policy(config)
        weights = weights or [1.0] * len(rewards)
        trainer = make_trainer(policy, rows, rewards, weights, config, run)
        return trainer, config, run

    return make


def move_adapter(model, std: float, seed: int = 0):
    """So that the adapter changes what the model says, without training."""
    import torch

    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=std)


@contextmanager
def refuses(key: str, *words: str):
    """What is done within raises a BadInput of that key: a sentence with these words."""
    with pytest.raises(BadInput) as error:
        yield error
    sentence = str(error.value)
    assert error.value.key == key and all(word in sentence for word in words), sentence


def by_turns(completions, **_) -> list[float]:
    """A reward that differs within each group."""
    return [float(i % 3) for i, _ in enumerate(completions)]


SAY_A_NUMBER = [
    {"prompt": [{"role": "user", "content": "Say a number."}], "id": str(i), "answer": ""}
    for i in range(2)
]


@pytest.fixture
def ci_config(tmp_path):
    """The ci recipe with its run folder under the test's own."""
    return resolve("ci", {"output_dir": str(tmp_path), "profile": "cpu"}, CPU)


@pytest.fixture
def run(tmp_path) -> Run:
    (tmp_path / "run").mkdir()
    return Run(tmp_path / "run")


@pytest.fixture(scope="module")
def browser():
    """A real headless browser, where chromium is on this machine."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not chromium:
        pytest.skip("no chromium on this machine")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


class JsonHandler(BaseHTTPRequestHandler):
    """What the local stand-ins of web services share: they answer in JSON, and log nothing."""

    def reply(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass
