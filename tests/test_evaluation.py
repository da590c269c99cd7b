"""Evaluation: every answer kept, gone on with after a kill, taken apart, and soberly judged."""

import multiprocessing
import random
import signal
import time
from pathlib import Path

import pytest

from lib import stats
from lib.config import resolve
from lib.engines import Completion, Engine
from lib.errors import BadInput
from lib.evaluation import (
    _fetched,
    _record,
    candidate_name,
    check,
    evaluate,
    main,
    regrade,
    tracked,
)
from lib.evaluation.comparison import (
    LENIENTLY,
    by_difficulty,
    compare,
    comparison_rows,
    curves_of_k,
    digest,
    outcomes,
    side_by_side,
    summarize,
    verdict,
)
from lib.export import find_candidate
from lib.files import append_jsonl, read_json, read_jsonl, write_json, write_jsonl
from lib.models import load_tokenizer
from lib.tasks import get_task, judge, make_rows
from lib.tasks.problems import Problem, harness_scores
from tests.conftest import CPU, python, refuses


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    given = {"output_dir": str(tmp_path_factory.mktemp("runs")), "profile": "cpu"}
    return resolve("ci", given | {"max_seq_length": 1024}, CPU)


# What is measured


def test_a_candidate_is_found_by_name_or_path(config, run, embedded, tmp_path):
    (run.folder / "gguf").mkdir()
    file = run.folder / "gguf" / "model-q4_k_m.gguf"
    file.touch()
    run.adapter.mkdir()
    assert find_candidate("", config, run) == run.adapter
    assert find_candidate("base", config, run) == find_candidate(str(embedded), config, run)
    assert find_candidate("q4_k_m", config, run) == find_candidate(str(file), config, run) == file
    (run.adapter / "adapter_config.json").write_text("{}")
    for named, sentence in (
        ("f16", "run 05_merge_export for this run first"),
        ("merged", "run 05_merge_export for this run first"),
        ("nowhere/model.gguf", "There is no candidate nowhere/model.gguf: give a path"),
        ("nowhere", "There is no candidate nowhere: give a path"),
        (str(run.adapter), "is no LoRA adapter"),
        (str(tmp_path), "only safetensors are loaded"),
    ):
        with pytest.raises(BadInput, match=sentence):
            find_candidate(named, config, run)


# The log; any answers will do


class Canned(Engine):
    """Says the same of everything, if asked to not before some seconds have passed."""

    name = "canned"

    def __init__(self, folder, seconds=0.0):
        self.tokenizer, self.notes, self.seconds = load_tokenizer(folder), [], seconds
        self.asked = 0

    def stream(self, prompts, sampling):
        self.asked += len(prompts)
        for index, _ in enumerate(prompts):
            time.sleep(self.seconds)
            yield index, [Completion("<answer>3</answer>", (1, 2, 3), "stop")] * sampling.n


@pytest.fixture(scope="module")
def canned(embedded):
    return Canned(embedded)


def small_evaluation(engine, config, run, model):
    """Eight small sums, greedily and sampled."""
    task = get_task("small_sums", {"largest": 9})
    problems = task.load("test")[:8]
    rows = make_rows(problems, "answer")
    return evaluate(engine, problems, rows, task, config, run, "base", model)


def test_a_killed_evaluation_goes_on_where_it_stopped(config, run, canned, embedded, monkeypatch):
    log = run.evals / "base.jsonl"
    monkeypatch.setattr(canned, "seconds", 0.3)
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=small_evaluation, args=(canned, config, run, embedded))
    child.start()
    while child.is_alive() and len(read_jsonl(log)) < 3:
        time.sleep(0.05)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    left = read_jsonl(log)
    assert 3 <= len(left) < 24
    assert not (run.evals / "base.json").exists()

    canned.asked = canned.seconds = 0
    records = small_evaluation(canned, config, run, embedded)
    assert len(records) == 8 * (1 + config.eval_samples)
    assert records[: len(left)] == left and canned.asked < 16
    assert read_jsonl(log) == records  # in order, whatever came first


def test_half_a_problems_samples_are_asked_again_and_other_weights_begin_anew(
    config, run, canned, embedded, tmp_path
):
    records = small_evaluation(canned, config, run, embedded)
    log, summary = run.evals / "base.jsonl", run.evals / "base.json"
    protocol = read_json(summary)["protocol"]
    assert protocol["seed"] == config.seed and len(protocol["prompt_hash"]) == 16
    assert protocol["passes"]["greedy"]["temperature"] == 0
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:9]))  # one sample of two of the first problem
    summary.unlink()
    again = small_evaluation(canned, config, run, embedded)
    assert [(r["id"], r["sample"]) for r in again] == [(r["id"], r["sample"]) for r in records]

    log.write_text("".join(lines[:8]).replace('"sample": 0', '"sample": 0, "mark": 1'))
    summary.unlink()
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"other weights")
    assert not any("mark" in r for r in small_evaluation(canned, config, run, other))


def test_regrading_takes_other_rules():
    task = get_task("small_sums", {"largest": 9})
    problem = task.load("test")[0]
    gold = int(problem.answer)
    texts = [f"<answer>{gold}</answer>", f"It is {gold}.", f"<result>{gold}</result>"]
    records = [
        {"id": problem.id, "completion": text, "finish_reason": "stop"}
        | judge(task, problem, text, False, "answer")
        for text in texts
    ]
    for tag, grades in (("answer", [1, 0, 0]), ("result", [0, 0, 1]), (None, [1, 1, 1])):
        assert [r["strict"] for r in regrade(records, [problem], task, tag)] == grades
    other = [Problem(problem.id, "", str(gold + 1))]
    assert not any(r["lenient"] for r in regrade(records, other, task, "answer"))


# Counting; answers made by hand

SUM = Problem("", "What is 1 + 2?", "3")


def answer(id, text, kind="greedy", sample=0, tokens=5, reason="stop", **more) -> dict:
    completion = Completion(text, (0,) * tokens, reason)
    record = _record(get_task("small_sums"), SUM, kind, sample, completion, "answer")
    return record | {"id": str(id), **more}


RIGHT, BARE, WRONG, SILENT = "<answer>3</answer>", "It is 3.", "<answer>4</answer>", "Hm."


def greedy(*texts: str, **more) -> list[dict]:
    return [answer(i, text, **more) for i, text in enumerate(texts)]


def compared(run, config, before, after) -> dict:
    for name, records in (("base", before), ("trained", after)):
        append_jsonl(run.evals / f"{name}.jsonl", records)
        write_json(run.evals / f"{name}.json", {"protocol": {}})
    return compare(run, config.model_copy(update={"eval_samples": 2, "eval_k": [2]}), *PAIR)


PAIR = ("base", "trained")


@pytest.mark.parametrize(
    ("before", "after", "sentences"),
    [
        ([WRONG] * 20, [WRONG] * 8 + [RIGHT] * 12, ["is better", "+60.0 points"]),
        ([BARE] * 20, [BARE] * 8 + [RIGHT] * 12, ["is better", "The gain is in the format only"]),
        ([RIGHT] * 12 + [WRONG] * 8, [WRONG] * 20, ["The trained model is worse"]),
        (
            [WRONG] * 20,
            [WRONG] * 18 + [RIGHT] * 2,
            ["cannot be told", "5.0 points takes"],
        ),
        (
            [WRONG] * 16,
            [WRONG] * 16,
            ["cannot be told", "(none changed: at most 15.4 points", "takes 1,413 problems"],
        ),
        # All of three fixed: an exact test of 3 against 0 says p = 0.25.
        ([WRONG] * 3, [RIGHT] * 3, ["cannot be told", "not even the largest gain"]),
        ([WRONG], [RIGHT], ["cannot be told", "95% interval n/a", "gives no interval"]),
        ([RIGHT], [RIGHT], ["cannot be told", "95% interval n/a"]),
    ],
)
def test_the_verdict_claims_what_can_be_claimed(before, after, sentences, run, ci_config):
    if before == [BARE] * 20:  # enough of them to say that leniently nothing changed
        before, after = before * 10, after * 10
    said = verdict(compared(run, ci_config, greedy(*before), greedy(*after)))
    assert all(sentence in said for sentence in sentences), said
    assert f"on {len(before)} held-out problem{'s' * (len(before) > 1)}," in said
    assert "one training run" in said and ("leniently" in said) == (BARE in before)


# A row's verdict: (interval, p_value). The last two say nothing, each for a reason of its own.
ROWS = {
    "better": ((0.02, 0.13), 0.01),
    "worse": ((-0.119, -0.011), 0.03),
    "no difference": ((-0.02, 0.03), 0.6),
    "cannot be told": ((-0.2, 0.1), 0.4),
}


@pytest.mark.parametrize("lenient", ROWS)
@pytest.mark.parametrize("strict", ROWS)
def test_the_verdict_says_what_holds_strictly_and_what_leniently(strict, lenient):
    rows = {
        f"greedy_{name}": {
            **{"before": 0.34, "after": 0.34 + sum(ROWS[word][0]) / 2, "problems": 200},
            **{"difference": sum(ROWS[word][0]) / 2, "stderr": 0.03 if name == "strict" else 0.028},
            **{"interval_95": ROWS[word][0], "p_value": ROWS[word][1]},
        }
        for name, word in (("strict", strict), ("lenient", lenient))
    }
    said = verdict(rows)
    assert f"{LENIENTLY[lenient]}: 34.0% → {rows['greedy_lenient']['after']:.1%}" in said
    # A change of the strict grades that the answers do not share is one of the format.
    assert ("the format" in said) == (strict in ("better", "worse") and strict != lenient)
    assert ("not in the form" in said) == (
        lenient == "better" and strict in ("no difference", "cannot be told")
    )


def test_the_verdict_on_a_reward_says_what_else_moved():
    row = {"before": 1.0, "after": 1.5, "difference": 0.5, "problems": 9, "share": False}
    row |= {"stderr": 0.35, "interval_95": (-0.2, 1.2), "p_value": 0.2}
    said = verdict(
        {f"greedy_{name}": row for name in ("reward", "rewards/gold", "rougeL", "words")}
    )
    assert said.startswith("It cannot be told whether the trained model is better (greedy reward)")
    assert "1.00 → 1.50" in said and "not trained on: rewards/gold +0.50 (-0.20 to +1.20), " in said
    assert "A true difference below about 0.98 would often be missed." in said


def test_evaluations_of_other_prompts_are_not_compared(run, ci_config):
    for name in ("base", "trained"):
        write_json(run.evals / f"{name}.json", {"protocol": {"prompt_hash": name}})
    with refuses("protocol"):
        compare(run, ci_config, *PAIR)


def test_what_can_only_be_zero_is_no_row(run, ci_config):
    records = greedy(WRONG, RIGHT)
    assert "greedy_strict_match" not in compared(run, ci_config, records, records)
    hashes = ci_config.model_copy(update={"prompt_format": "hashes"})
    assert "greedy_strict_match" in summarize(records, hashes)["scores"]


def test_one_sampled_problem_is_compared_drawn_and_reported(run, ci_config):
    from lib.plots import comparison_bars, groups_figure, several_answers_figure

    one = [answer(0, WRONG), *(answer(0, t, "sampled", i) for i, t in enumerate((RIGHT, WRONG)))]
    table = compared(run, ci_config, one, one)
    assert table["pass@2_strict"]["interval_95"] is None
    assert {row[4] for row in comparison_rows(table)} == {"n/a"}
    summary = summarize(one, ci_config.model_copy(update={"eval_k": [2]}))
    assert summary["scores"]["pass@2_strict"]["interval_95"] is None
    assert summary["scores"]["greedy_strict"]["interval_95"] == stats.wilson_interval(0, 1)
    curves = {"base": curves_of_k(one)}
    several = several_answers_figure(curves)
    assert [axis.get_title(loc="left") for axis in several.axes] == ["pass@k"]
    for figure in (comparison_bars(table), several, groups_figure(by_difficulty(one, one))):
        figure.canvas.draw()


def test_a_summary_counts_outcomes_apart_with_wilson_intervals(ci_config):
    records = greedy(RIGHT, BARE, WRONG, SILENT, SILENT, BARE)
    records[4] = answer(4, SILENT, reason="length")
    records[5] = answer(5, BARE, reason="length")
    summary = summarize(records, ci_config)
    counts = {"right": 3, "wrong": 1, "unparseable": 1, "truncated": 1}
    assert summary["outcomes"]["greedy"] == counts
    assert summary["scores"]["greedy_strict"]["mean"] == pytest.approx(1 / 6)
    assert summary["scores"]["greedy_lenient"]["interval_95"] == stats.wilson_interval(3, 6)
    assert summary["truncated"]["greedy"]["interval_95"] == stats.wilson_interval(2, 6)
    assert outcomes(records, records)[0] == ("right", 3, 3)
    families = [record | {"cluster": f"{i // 2}"} for i, record in enumerate(records)]
    assert summarize(families, ci_config)["scores"]["greedy_lenient"]["interval_95"] == (
        stats.mean_with_error([1, 1, 0, 0, 0, 1], [0, 0, 1, 1, 2, 2], (0, 1)).interval
    )


def test_figures_have_the_names_that_dashboards_show(ci_config):
    records = [answer(i, RIGHT) for i in (0, 1)]
    records += [answer(i, t, "sampled", n) for i in (0, 1) for n, t in enumerate((WRONG, RIGHT))]
    names = ["pass@1", "pass@1_lenient", "format", "pass@2", "pass@2_lenient", "flexible_extract"]
    values = {f"eval/{name}": 1.0 for name in names} | {"eval/truncated": 0.0}
    assert tracked(summarize(records, ci_config)) == values


def test_curves_are_the_means_of_what_stats_says_of_each_problem():
    texts = [["<answer>3.0</answer>", BARE, WRONG], [WRONG, RIGHT, RIGHT], [SILENT, WRONG, WRONG]]
    records = greedy(RIGHT, RIGHT, RIGHT)
    for i, said in enumerate(texts):
        for n, text in enumerate(said):
            records.append(answer(i, text, "sampled", n))
    found = {name: [e.mean for e in es] for name, es in curves_of_k(records).items()}
    assert found["pass@k"] == pytest.approx([1 / 3, (2 / 3 + 1 + 0) / 3, 2 / 3])
    # The first problem: 3.0 and 3 are one answer, strictly right in one of its two samples.
    assert found["majority@k"][0] == pytest.approx(1 / 3)
    assert found["majority@k"][2] == pytest.approx((1 / 2 + 1 + 0) / 3)


def test_difficulty_is_the_level_or_the_base_models_samples():
    before, after = greedy(WRONG, RIGHT, BARE), greedy(RIGHT, RIGHT, WRONG)
    for i, texts in enumerate(((WRONG, WRONG), (RIGHT, WRONG), (RIGHT, BARE))):
        before += [answer(i, text, "sampled", n) for n, text in enumerate(texts)]
    rows = by_difficulty(before, after)
    assert [row["group"] for row in rows] == ["never", "half or more", "always"]
    assert [(row["before"]["rate"], row["after"]["rate"]) for row in rows] == [
        *((0.0, 1.0), (1.0, 1.0), (0.0, 0.0))
    ]
    levels = [record | {"level": 1 + int(record["id"]) // 2} for record in before]
    rows = by_difficulty(levels, after)
    assert [(row["group"], row["after"]["answers"]) for row in rows] == [
        *(("level 1", 2), ("level 2", 1))
    ]
    assert by_difficulty(greedy(RIGHT), greedy(RIGHT)) == []


def test_answers_side_by_side_and_what_the_viewer_picks():
    from lib.plots.widgets import answer_viewer

    rows = side_by_side(greedy(RIGHT, RIGHT, WRONG, WRONG), greedy(RIGHT, WRONG, WRONG, RIGHT))
    assert [row["change"] for row in rows] == ["fixed", "broken", "both", "neither"]
    shown = []
    viewer = answer_viewer(rows, lambda found: shown.append(dict(found)) or "shown")
    change, number = viewer.box.children[0].children
    change.value = "broken"
    assert shown[-1]["number"] == 2
    change.value, number.value = None, 3
    assert shown[-1]["number"] == 3


# What others would say


def said_of_numbers(count: int) -> list[tuple[str, str]]:
    """Completions and golds that lie near the edges of the harness' two patterns."""
    rng = random.Random(0)
    numbers, marks = ["18", "-18", "$18", "1,234", "18."], [".", ",", "$", " ", "\n", "= ", "- "]
    parts, golds = ["#### ", "#", *numbers, *marks], ["18", "-18", "1,234", "18.00", "1234", "$18"]
    return [
        ("".join(rng.choices(parts, k=rng.randint(1, 6))), rng.choice(golds)) for _ in range(count)
    ]


def test_the_harness_filters_say_what_the_harness_says():
    """The real package's task, with its own filters, comparison and loop, on given completions."""
    lm_eval = pytest.importorskip("lm_eval")
    import datasets
    import yaml
    from lm_eval.api.model import LM

    pairs = said_of_numbers(300)

    class Said(LM):
        def generate_until(self, requests, disable_tqdm=False):
            return [
                pairs[int(r.args[0].rpartition("Question: ")[2].split()[0])][0] for r in requests
            ]

        loglikelihood = loglikelihood_rolling = None

    rows = [
        {"question": str(i), "answer": f"So.\n#### {gold}"} for i, (_, gold) in enumerate(pairs)
    ]
    file = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    theirs = yaml.safe_load(file.read_text()) | {
        **{"dataset_name": None, "training_split": None, "fewshot_split": None, "num_fewshot": 0},
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
    }
    found = lm_eval.simple_evaluate(Said(), tasks=[theirs], bootstrap_iters=0, log_samples=True)
    samples = found["samples"]["gsm8k"]
    assert len(samples) == 2 * len(pairs)
    for sample in samples:
        text, gold = pairs[sample["doc_id"]]
        ours = harness_scores(text, gold)[sample["filter"].replace("-", "_")]
        assert ours == bool(sample["exact_match"]), (text, gold, sample["filter"])
    assert 20 < sum(bool(s["exact_match"]) for s in samples) < 2 * len(pairs) - 20


# Names, and proof


def test_a_candidates_answers_overwrite_no_other_file(run, tmp_path):
    assert candidate_name(run.adapter, run) == "trained"
    names = ("base", "trained", "Comparison", "validation", "side_base", "certificate")
    names += ("v1.5", ".hidden", "a b")
    assert [candidate_name(tmp_path / name, run) for name in names] == [
        *("candidate_base", "candidate_trained", "candidate_Comparison", "candidate_validation"),
        *("candidate_side_base", "candidate_certificate", "v1.5", "hidden", "a_b"),
    ]
    (tmp_path / "base.gguf").touch()
    assert candidate_name(tmp_path / "base.gguf", run) == "candidate_base"


@pytest.fixture
def proved(run, ci_config) -> Path:
    """The evaluations of a run, as they are written."""
    protocol = {"task": "small_sums", "task_config": {"largest": 9}, "prompt_format": "answer"}
    protocol["passes"] = {"greedy": {"n": 1}, "sampled": {"n": 2}}
    sides = {"base": [WRONG, RIGHT, BARE, SILENT] * 5, "trained": [RIGHT, RIGHT, BARE, WRONG] * 5}
    for name, texts in sides.items():
        records = greedy(*texts)
        records += [answer(i, text, "sampled", n) for i, text in enumerate(texts) for n in (0, 1)]
        append_jsonl(run.evals / f"{name}.jsonl", records)
        config = ci_config.model_copy(update={"eval_k": [1, 2]})
        write_json(run.evals / f"{name}.json", {"protocol": protocol} | summarize(records, config))
    compare(run, config, *PAIR)
    return run.evals


def test_every_number_comes_from_the_stored_answers(proved, capsys):
    assert check(proved)[0] == []
    assert main([str(proved.parent)]) == 0
    # strict, lenient, pass@1 and pass@2 of both, format, flexible extract
    assert "figures in 8 scores computed from 120 stored answers" in capsys.readouterr().out


def test_what_is_forged_is_named(proved, capsys):
    files = {name: read_json(proved / f"{name}.json") for name in ("comparison", *PAIR)}
    rows, base, trained = files.values()
    page = proved.parent / "report.html"
    page.write_text(f"{verdict(rows)} {comparison_rows(rows)}")
    assert check(proved)[0] == []
    page.write_text(page.read_text().replace("+", "-"))
    base["scores"]["greedy_strict"]["interval_95"][0] += 0.01
    base["truncated"]["greedy"]["answers"] += 1
    rows["pass@2_lenient"]["after"] = 0.99
    rows["greedy_strict"]["verdict"] = "better!"
    trained["protocol"]["seed"] = 9
    for name, value in files.items():
        write_json(proved / f"{name}.json", value)
    assert main([str(proved)]) == 1
    said = capsys.readouterr().out
    for sentence in (
        "base.json: scores, greedy_strict, interval_95: [0.12",
        "base.json: truncated, greedy, answers: 21 is written, the answers give 20.",
        "pass@2_lenient, after: 0.99 is written, the answers give 0.75",
        "greedy_strict, verdict: better! is written",
        "base.json is not the file that",
        "trained.json is not the file that",
        "report.html does not say what the answers give: +",
    ):
        assert sentence in said
    assert "trained.json: " not in said and "greedy_strict, after" not in said
    assert said.count("SHA-256") == 2
    records = read_jsonl(proved / "trained.jsonl")
    records[3] |= {"completion": RIGHT}
    write_jsonl(proved / "trained.jsonl", records)
    said = " ".join(check(proved)[0])
    assert "trained.jsonl is not the file that comparison.json was made of" in said
    assert "trained.jsonl: 1 answers are graded differently now (strict; the first is 3" in said
    assert "greedy_strict, after: 0.5 is written, the answers give 0.55" in said
    assert "base.jsonl" not in said


@pytest.mark.parametrize(
    ("forge", "named"),
    [
        (lambda a, b: b.pop(3), "lack an answer, have one too many"),
        (lambda a, b: b.append(b[0]), "(the first is 0)"),
        (lambda a, b: b.append(b[-1] | {"sample": 2}), "have one too many"),
        (lambda a, b: b.__setitem__(3, b[0]), "2 problems lack an answer"),
        (lambda a, b: b[3].update(expected="7"), "are not the other file's"),
        (lambda a, b: b[3].update(question="1 + 1?"), "are not the other file's"),
        (lambda a, b: [r.update(id=f"other/{r['id']}") for r in b], "base.jsonl: 2"),
        (
            lambda a, b: (a.insert(3, b[3]), b.insert(3, a.pop(4)), b.pop(4)),
            "greedy_format, broken: 0 is written",
        ),
        (lambda a, b: b[0].update(tokens=99), "trained.json: tokens: "),
    ],
)
def test_forged_rows_are_named_even_where_the_digests_were_made_anew(proved, forge, named):
    logs = [read_jsonl(proved / f"{name}.jsonl") for name in PAIR]
    forge(*logs)
    for name, records in zip(PAIR, logs, strict=True):
        write_jsonl(proved / f"{name}.jsonl", records)
    rows = read_json(proved / "comparison.json")
    for row in rows.values():
        row["answers"] = {file: digest(proved / file) for file in row["answers"]}
    write_json(proved / "comparison.json", rows)
    assert named in " ".join(check(proved)[0])


def test_regrading_a_run_needs_no_torch_and_takes_an_address(proved):
    """In a process in which torch cannot be imported; the second time through a web server."""
    import threading
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    program = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'vllm')))\n"
        "from lib.suite import main; sys.exit(main(['regrade', sys.argv[1]]))"
    )
    handler = partial(SimpleHTTPRequestHandler, directory=str(proved.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for source in (proved.parent, f"http://127.0.0.1:{server.server_port}/"):
            assert "each as it is written" in python("-c", program, source)
        server.shutdown()


def test_an_address_names_no_file_outside_its_folder(proved):
    rows = read_json(proved / "comparison.json")
    for row in rows.values():
        row["answers"] = {"../../secret.jsonl": ""}
    write_json(proved / "comparison.json", rows)
    with refuses("outside"):
        _fetched(proved.parent.as_uri(), proved)
    with refuses("no-comparison"):
        main(["nowhere"])
