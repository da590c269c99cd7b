"""The page of a run: what a reader finds in it, without a network."""

import re
from html.parser import HTMLParser

import nbformat
import pytest

from lib.config import resolve
from lib.evaluation.comparison import compare_records, side_by_side
from lib.files import append_jsonl, write_json
from lib.report import write_answers, write_page, write_report
from lib.runs import open_run
from tests.conftest import CPU
from tests.test_evaluation import BARE, RIGHT, WRONG, answer


def answers(rights) -> list[dict]:
    return [answer(f"{i:032x}", RIGHT if i in rights else WRONG) for i in range(30)]


@pytest.fixture
def finished(tmp_path):
    """A run that fixed twelve of its thirty problems and broke one."""
    config = resolve("ci", {"output_dir": str(tmp_path), "profile": "cpu"}, CPU)
    run = open_run(config)
    before, after = answers(range(6)), answers(range(1, 18))
    before[7] = answer(before[7]["id"], BARE)
    for name, records in (("base", before), ("trained", after)):
        append_jsonl(run.evals / f"{name}.jsonl", records)
        write_json(run.evals / f"{name}.json", {"tokens": 150, "protocol": {"task": "small_sums"}})
    write_json(run.evals / "comparison.json", compare_records(before, after, [], "answer"))
    for step in (1, 2):
        append_jsonl(
            run.train_log,
            [{"step": step, "seconds": 2.0 * step, "reward": step / 4, "num_tokens": 900}],
        )
    for folder in (run.figures, run.rollouts):
        folder.mkdir()
    (run.figures / "training.png").write_bytes(b"a curve")
    write_answers(run, side_by_side(before, after))
    run.note(energy_wh=12.4)
    return run, config


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.links, self.ids, self.headings, self._in = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.links += [given[key] for key in ("href", "src") if key in given]
        self.ids.append(given.get("id"))
        self._in = tag

    def handle_data(self, data):
        if self._in == "h2" and data.strip():
            self.headings.append(data.strip())


def test_the_page_begins_with_the_verdict_and_links_to_the_answers(finished):
    run, config = finished
    said = write_report(run, config)
    assert "greedy strict" in said and "The trained model is better" in said
    text = run.report.read_text()
    page = Page(text)
    assert text.index("The trained model is better") < text.index("<h2>")
    assert page.headings == [
        "Training",
        "Before and after",
        "For the better: 12 answers",
        "For the worse: 1 answer",
        "10 answers at random",
        "Cost",
        "What was run",
    ]
    assert "0.25\n(the first step) to 0.50 (the last step)" in text
    assert "+36.7 points" in text and "150 tokens" not in text and ">300<" in text
    assert ">12 Wh<" in text
    assert all(f"<td>{cell}</td>" in text for cell in ("recipe ci", "trl", "1.15.0", "cores"))
    answers = Page((run.evals / "side_by_side.html").read_text())
    to_answers = [link for link in page.links if link.startswith("evals/side_by_side.html#")]
    assert len(to_answers) == 5 + 1 + 10
    assert {link.partition("#")[2] for link in to_answers} <= set(answers.ids)
    for link in page.links:
        inside = link.startswith("data:image/png;base64,")
        assert inside or (run.folder / link.partition("#")[0]).exists(), link
    assert "http" not in text + (run.evals / "side_by_side.html").read_text()
    assert "prefers-color-scheme: dark" in text


def test_answers_are_numbered_and_can_be_chosen_by_what_changed(finished):
    run, _ = finished
    text = (run.evals / "side_by_side.html").read_text()
    assert f"{7:032x}" not in text
    assert "&lt;answer&gt;3&lt;/answer&gt;" in text
    assert len(re.findall(r'class="pair fixed"', text)) == 12
    assert text.count("right, but not in the form asked for") == 1
    assert '<option value="broken">For the worse (1)</option>' in text


def test_a_notebooks_page_needs_no_network(tmp_path):
    text = "![badge](https://x/y.svg) $\\frac{r}{2}$, `$18.00`:\n$$\\nosuch{r}$$"
    cells = [nbformat.v4.new_markdown_cell(text)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    write_page(tmp_path / "a.ipynb")
    text = (tmp_path / "a.html").read_text()
    assert "<title>a</title>" in text and not re.search(r'(src|href)="http', text)
    assert "$18.00" in text and r"\nosuch{r}" in text  # code, and what cannot be drawn
    assert r'<img alt="\frac{r}{2}" src="data:' in text and "vertical-align: -" in text


def test_what_is_off_is_in_the_page(finished):
    run, config = finished
    numbers = ("logprob_gap", "equal_answers", "size_gib", "tokens_per_s", "interval_95")
    equal = ("template_equal", "tokens_equal", "stops_equal", "weights_equal")
    policy = dict.fromkeys(numbers) | dict.fromkeys(equal, True)
    policy |= {
        "form": "policy",
        "engine": "vllm",
        "accuracy": 0.5,
        "difference": None,
        "verdict": "",
    }
    rows = [policy, policy | {"form": "q4_k_m", "difference": -0.1, "stops_equal": False}]
    write_json(run.evals / "certificate.json", {"rows": rows, "verdict": "1 faults: <eos>."})
    write_json(run.folder / "alarms.json", [{"sentence": "The reward was flat."}])
    write_report(run, config)
    text = run.report.read_text()
    assert "1 faults: &lt;eos&gt;." in text and "DIFFER: stops" in text and ">-10.0<" in text
    assert "While it trained: The reward was flat." in text
