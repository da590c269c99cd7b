"""A judge as a reward, held to an endpoint of this machine that says what it is told to say."""

import json
import threading
from http.server import ThreadingHTTPServer

import pytest

from lib.judge import Judge
from lib.rewards import build_rewards
from tests.conftest import JsonHandler, refuses

PROMPTS = [[{"role": "user", "content": "Greet me."}]] * 3
TEXTS = ["good day", "bad", "silent"]


class Endpoint(JsonHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"]
        self.server.seen.append(text)
        said = "Fine. Mark: 3 at first.\nMark: 8" if "good day" in text else "Mark: 11, no mark"
        status = 500 if "silent" in text else 200
        message = {"role": "assistant", "content": said}
        reply = {
            **{"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]},
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
        self.reply(status, reply)


@pytest.fixture
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    server.seen, server.url = [], f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_marks_are_paid_and_a_failure_is_none(endpoint, tmp_path):
    given = dict(url=endpoint.url, model="m", rubric="Is it kind?", retries=1)
    judge = Judge(**given, run_folder=str(tmp_path))
    assert judge(PROMPTS, TEXTS) == [0.8, None, None]
    assert sum("silent" in text for text in endpoint.seen) == 2  # once more, then it gives up
    assert all("Is it kind?" in text and "Greet me." in text for text in endpoint.seen)

    asked = len(endpoint.seen)
    assert judge(PROMPTS[:2], TEXTS[:2]) == [0.8, None]
    again = Judge(**given, run_folder=str(tmp_path))
    assert again(PROMPTS[:1], TEXTS[:1]) == [0.8]
    assert len(endpoint.seen) == asked  # no answer is paid for twice


def test_a_recipe_names_it_by_its_path_and_equal_answers_are_asked_once(endpoint):
    spec = {"lib.judge.Judge": {"weight": 0.5, "url": endpoint.url, "model": "m"}}
    [judge], weights = build_rewards(spec)
    assert weights == [0.5] and judge(PROMPTS, ["good day"] * 3) == [0.8] * 3
    assert len(endpoint.seen) == 1


def test_the_cost_ends_at_its_limit(endpoint):
    judge = Judge(endpoint.url, price_in=10_000.0, max_cost=1.0)  # a mark costs 1.0
    assert judge(PROMPTS[:1], ["good day"]) == [0.8]
    with refuses("judge-cost"):
        judge(PROMPTS[:1], ["another"])
    assert len(endpoint.seen) == 1
