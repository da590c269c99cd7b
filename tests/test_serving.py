"""Servers of ours: what is refused, what is cut off, what is left when they end."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import psutil
import pytest

from lib.config import ROOT, resolve
from lib.export.page import chat_box
from lib.export.serve import free_port, serve_gguf, serve_vllm
from lib.files import read_jsonl
from lib.judge import Judge
from lib.models import embedded_gguf
from lib.runs import open_run
from tests.conftest import CPU, refuses

HELLO = [{"role": "user", "content": "Count from one upwards."}]


@pytest.fixture(scope="module")
def start_llama(tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "serve.log"
    return partial(serve_gguf, embedded_gguf(), log, 512, 4)


@pytest.fixture(scope="module")
def llama(start_llama):
    with start_llama() as server:
        yield server


def raw(server, body, key=None):
    """The status and the text of the reply to a body sent as it is."""
    headers = {"Authorization": f"Bearer {key or server.key}", "Content-Type": "application/json"}
    address = f"{server.url}/v1/chat/completions"
    try:
        request = urllib.request.Request(address, body, headers)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def holds(server):
    """What every server of ours must bear, whatever computes in it."""
    whole = server.chat(HELLO, 8).choices[0]
    assert whole.finish_reason == "length"
    assert "".join(server.stream(HELLO, 8)) == whole.message.content

    # Malformed, without a body that is JSON, and with messages that are none.
    assert raw(server, b"{")[0] in (400, 422, 500)
    status, text = raw(server, json.dumps({"model": "x", "messages": 3}).encode())
    assert 400 <= status < 500 and "error" in text
    # A wrong key.
    assert raw(server, b"{}", key="wrong")[0] == 401
    with refuses("server-key"):
        replace(server, key="wrong").chat(HELLO, 4)
    # A prompt over the context is refused, not cut.
    with refuses("server-refuses"):
        server.chat([{"role": "user", "content": "one two " * 400}], 4)
    # A client that goes away in mid-stream leaves room for the next.
    for _ in range(6):
        next(server.stream(HELLO, 64))
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: server.chat(HELLO, 8), range(6)))
    assert {a.choices[0].message.content for a in answers} == {whole.message.content}


def test_llama_cpp_holds(llama):
    holds(llama)
    [server] = psutil.Process(llama.process.pid).children()
    assert llama.key not in " ".join(server.cmdline())
    assert llama.key not in repr(llama)
    listening = server.net_connections("tcp")
    assert {c.laddr.ip for c in listening if c.status == "LISTEN"} == {"127.0.0.1"}


def test_a_chat_in_a_notebook(llama, tmp_path):
    box = chat_box(llama, tmp_path, 8)
    (model, question, button), said = box.children[0].children, box.children[1]
    question.value = "Is 1 < 2?"
    button.click()
    assert "Is 1 &lt; 2?" in said.value and model.value in said.value
    assert not question.value and not button.disabled
    button.click()  # nothing asked
    assert said.value.count("<p>") == 1


def judges(server, tmp_path, monkeypatch):
    """A model this small gives a mark at best by chance: a number, or None."""
    monkeypatch.setenv("JUDGE_API_KEY", server.key)
    prompts, texts = [[{"role": "user", "content": "What is 1 + 2?"}]] * 3, ["3", "Three.", "3"]
    given = dict(url=f"{server.url}/v1", model=server.models[0], run_folder=str(tmp_path))
    given |= dict(retries=1, price_in=1.0, price_out=1.0)
    judge = Judge(**given)
    marks = judge(prompts, texts)
    assert marks[0] == marks[2] and all(mark is None or 0 <= mark <= 1 for mark in marks)
    rows = read_jsonl(tmp_path / "judge.jsonl")
    assert len(rows) == 2 and judge.spent == sum(row["cost"] for row in rows) > 0
    again = Judge(**given, max_cost=judge.spent)
    assert again(prompts, texts) == marks and again.spent == judge.spent  # paid for once
    with refuses("judge-cost"):
        again(prompts[:1], ["Four."])
    monkeypatch.setenv("JUDGE_API_KEY", "wrong")
    with refuses("judge-key"):
        Judge(**given)(prompts[:1], ["Five."])
    gone = Judge(**given | {"url": f"http://127.0.0.1:{free_port()}/v1"})
    assert gone(prompts[:1], ["Six."]) == [None]


def test_a_judge_on_a_server_of_ours(llama, tmp_path, monkeypatch):
    judges(llama, tmp_path, monkeypatch)


def test_half_an_answer_is_not_passed_off_as_whole(start_llama):
    server = start_llama()
    pieces = server.stream(HELLO, 200)
    next(pieces)
    psutil.Process(server.process.pid).children()[0].kill()
    with refuses("server-gone"):
        list(pieces)
    with refuses("server-gone"):
        server.chat(HELLO, 4)
    server.close()


def test_a_server_that_does_not_start_says_why(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"nothing")
    with refuses("server-start"):
        serve_gguf(tmp_path / "bad.gguf", tmp_path / "log")


_KERNEL = """
import sys, time
from pathlib import Path
from lib.export.serve import serve_gguf
server = serve_gguf(Path(sys.argv[1]), Path(sys.argv[2]), 64, 1)
print(server.process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [True, False])
def test_no_server_is_left_where_the_kernel_ends(tmp_path, killed):
    """As a notebook's kernel ends, or is killed."""
    kernel = subprocess.Popen(
        [sys.executable, "-c", _KERNEL, str(embedded_gguf()), str(tmp_path / "log")],
        **dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    keeper = psutil.Process(int(kernel.stdout.readline()))
    processes = [keeper, *keeper.children()]
    if killed:
        kernel.kill()
    kernel.communicate()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive


_STARTING = """
import sys
from pathlib import Path
from lib.export.serve import launch
try:
    launch("it", [sys.executable, "-c", "import time; time.sleep(99)"], 1, [], Path(sys.argv[1]))
except KeyboardInterrupt:
    sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_server_is_left_where_its_start_is_cut_short(tmp_path, number):
    """With its kernel, or by a notebook's stop button, after which the kernel goes on."""
    kernel = subprocess.Popen(
        [sys.executable, "-c", _STARTING, str(tmp_path / "log")],
        **dict(stdin=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}),
    )
    processes = []
    while len(processes) < 2:
        processes = psutil.Process(kernel.pid).children(recursive=True)
    kernel.send_signal(number)
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive
    kernel.communicate()


def test_vllm_holds_and_leaves_nothing_behind(embedded, tmp_path, monkeypatch):
    given = {"output_dir": str(tmp_path), "profile": "cpu", "max_seq_length": 512}
    config = resolve("ci", given, CPU)
    open_run(config)  # sets up the process for vLLM
    with serve_vllm(embedded, config, tmp_path / "serve.log") as server:
        holds(server)
        judges(server, tmp_path, monkeypatch)
        keeper = psutil.Process(server.process.pid)
        processes = [keeper, *keeper.children(recursive=True)]
        # The engine killed in mid-stream.
        engines = [p for p in processes[2:] if p.memory_info().rss > 300 * 2**20]
        assert engines, [(p.pid, p.name()) for p in processes]
        pieces = server.stream(HELLO, 200)
        next(pieces)
        for engine in engines:
            engine.kill()
        with refuses("server-gone"):
            list(pieces)
        with refuses("server-gone"):
            server.chat(HELLO, 4)
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive
