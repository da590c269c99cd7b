"""Evaluation: every answer kept, gone on with after a kill, taken apart, and soberly judged."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib.config import ROOT, resolve
from lib.engines import TransformersEngine, make_engine
from lib.errors import BadInput
from lib.evaluation import evaluate, stats, tracked
from lib.evaluation.breakdowns import (
    add_rewards,
    by_difficulty,
    by_length,
    calibration,
    calibration_error,
    curves_of_k,
    side_by_side,
)
from lib.evaluation.comparison import changes, compare, outcomes, summarize, verdict
from lib.evaluation.harness import harness_scores
from lib.evaluation.judging import judge, regrade
from lib.export import become_trained, find_candidate, merged_weights
from lib.runs import (
    Run,
    append_jsonl,
    quiet_process,
    read_json,
    read_jsonl,
    write_json,
)
from lib.sampling import Sampling
from lib.tasks import get_task, make_rows
from lib.tasks.problems import Problem
from tests.conftest import CPU

QUESTIONS = [
    [{"role": "user", "content": text}]
    for text in ("What is 2 + 2?", "Name a colour.", "What is the capital of France?", "Say hello.")
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    given = {"output_dir": str(tmp_path_factory.mktemp("runs")), "profile": "cpu"}
    return resolve("ci", given | {"max_seq_length": 1024}, CPU)


# Engines


def test_each_answer_is_told_as_it_comes_and_all_are_returned_in_order(config, embedded, engine):
    for asked in (engine, TransformersEngine(config, embedded)):
        told = {}
        asked.finished = told.__setitem__
        found = asked.generate(QUESTIONS, Sampling(n=2, temperature=1.0, max_tokens=4))
        asked.finished = None
        assert [told[index] for index in range(len(QUESTIONS))] == found
        assert [len(answers) for answers in found] == [2] * len(QUESTIONS)


def test_log_probabilities_of_both_engines_agree(config, embedded, engine):
    """bf16 sums in another order; as long as both say the same, so do their log-probabilities."""
    sampling = Sampling(max_tokens=6, logprobs=True)
    theirs = TransformersEngine(config, embedded).generate(QUESTIONS, sampling)
    compared = 0
    for [a], [b] in zip(engine.generate(QUESTIONS, sampling), theirs, strict=True):
        assert len(a.logprobs) == len(a.token_ids) and len(b.logprobs) == len(b.token_ids)
        for i, token in enumerate(a.token_ids):
            if b.token_ids[: i + 1] != a.token_ids[: i + 1]:
                break
            assert a.logprobs[i] == pytest.approx(b.logprobs[i], abs=0.25), (a.text, token)
            compared += 1
    assert compared >= 12


def test_an_interrupted_generation_leaves_nothing_to_the_next(engine):
    def interrupt(index, answers):
        raise KeyboardInterrupt

    before = engine.generate(QUESTIONS, Sampling(max_tokens=4))
    engine.finished = interrupt
    with pytest.raises(KeyboardInterrupt):
        engine.generate(QUESTIONS, Sampling(n=2, temperature=1.0, max_tokens=4))
    engine.finished = None
    assert not engine.llm.llm_engine.has_unfinished_requests()
    assert engine.generate(QUESTIONS, Sampling(max_tokens=4)) == before


def test_without_vllm_transformers_generates_and_says_so(config, embedded, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    found = make_engine(config, embedded)
    assert found.name == "transformers"
    [note] = found.notes
    assert note.startswith("vLLM could not start (") and note.endswith("generates, slower.")


# What is measured


def test_a_gguf_file_answers_as_the_model_it_was_converted_to(config, embedded, engine):
    from lib.models import _embedded_gguf

    sampling = Sampling(max_tokens=6)
    base = engine.generate(QUESTIONS, sampling)
    weights = merged_weights(embedded, embedded)
    engine.hand_over((name, weight.neg()) for name, weight in weights.items())
    assert engine.generate(QUESTIONS, sampling) != base
    become_trained(engine, embedded, _embedded_gguf())
    assert engine.generate(QUESTIONS, sampling) == base


def test_a_model_of_another_shape_is_refused(embedded, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    small = AutoConfig.from_pretrained(embedded)
    small.hidden_size, small.num_hidden_layers, small.intermediate_size = 18, 2, 32
    AutoModelForCausalLM.from_config(small).save_pretrained(tmp_path / "small")
    with pytest.raises(BadInput, match="small has hidden_size 18 and its base 576"):
        merged_weights(embedded, tmp_path / "small")


def test_a_candidate_is_found_by_name_or_path(config, run, embedded, tmp_path):
    (run.folder / "gguf").mkdir()
    file = run.folder / "gguf" / "model.Q8_0.gguf"
    file.touch()
    run.adapter.mkdir()
    assert find_candidate("", config, run) == run.adapter
    assert find_candidate("base", config, run) == find_candidate(str(embedded), config, run)
    assert find_candidate("gguf", config, run) == find_candidate(str(file), config, run) == file
    (run.adapter / "adapter_config.json").write_text("{}")
    (run.folder / "gguf" / "model.Q4_0.gguf").touch()
    for named, sentence in (
        ("gguf", "must hold one .gguf file .* has model.Q4_0.gguf, model.Q8_0.gguf"),
        ("merged", "run 05_merge_export for this run first"),
        ("nowhere/model.gguf", "There is no file nowhere/model.gguf"),
        ("nowhere", "is neither a folder nor a Hub name"),
        (str(run.adapter), "has no adapter_model.safetensors"),
        (str(tmp_path), "only safetensors are loaded"),
    ):
        with pytest.raises(BadInput, match=sentence):
            find_candidate(named, config, run)


# Every task


@pytest.mark.parametrize(
    ("name", "prompt_format", "scores"),
    [
        ("gsm8k", "reasoning", {"strict", "strict_match", "flexible_extract"}),
        ("math500", "boxed", {"strict", "lenient"}),
        ("numina", "boxed", {"strict", "lenient"}),
        ("aqua", "answer", {"strict", "lenient"}),
        ("smoltldr", "summary", {"rouge1", "rouge2", "rougeL", "words", "length_ratio"}),
        ("reasoning_gym", "answer", {"strict", "lenient"}),
        ("jsonl", "answer", {"strict", "lenient"}),
    ],
)
def test_every_task_is_evaluated(name, prompt_format, scores, config, run, engine, request):
    config = config.model_copy(update={"eval_samples": 0, "eval_max_tokens": 4, "task": name})
    if name == "smoltldr":  # has no right answers that a correctness reward could know
        config = config.model_copy(update={"rewards": {"reward_len": 1.0}})
    given, data_dir = {}, None
    if name == "jsonl":
        given = {"path": str(run.folder / "mine.jsonl")}
        append_jsonl(Path(given["path"]), [{"question": f"{i} + 1?", "answer": i} for i in (1, 2)])
    elif name != "reasoning_gym":
        data_dir = request.getfixturevalue("data_dir")
    task = get_task(name, given)
    problems = task.load("test", data_dir)[:2]
    rows = make_rows(problems, prompt_format)
    records = evaluate(engine, problems, rows, task, config, run, name)
    assert [record["id"] for record in records] == [problem.id for problem in problems]
    assert all(scores <= set(record) for record in records)
    assert all(0 < record["tokens"] <= 4 for record in records)
    summary = read_json(run.evals / f"{name}.json")
    assert sum(summary["outcomes"]["greedy"].values()) == 2
    assert all(row["problems"] == 2 for row in summary["scores"].values())


# The log


def small_evaluation(engine, config, run, name="base", model=None):
    """Eight small sums, greedily and sampled."""
    task = get_task("small_sums", {"largest": 9})
    problems = task.load("test")[:8]
    return evaluate(engine, problems, make_rows(problems, "answer"), task, config, run, name, model)


def slow_child(folder: str, model: str) -> None:
    """An evaluation that keeps an answer at a time (run as a process of its own)."""
    config = resolve("ci", {"profile": "cpu", "max_seq_length": 1024}, CPU)
    run = Run(Path(folder))
    quiet_process(run)
    engine = TransformersEngine(config, Path(model))
    engine.batch = 2
    small_evaluation(engine, config, run, model=Path(model))


def test_a_killed_evaluation_goes_on_where_it_stopped(config, run, engine, embedded):
    log = run.evals / "base.jsonl"
    command = "import sys; from tests.test_evaluation import slow_child; slow_child(*sys.argv[1:])"
    arguments = [sys.executable, "-c", command, str(run.folder), str(embedded)]
    with (run.folder / "child.log").open("w") as said:
        child = subprocess.Popen(arguments, cwd=ROOT, stdout=said, stderr=said)
    until = time.time() + 600
    while child.poll() is None and len(read_jsonl(log)) < 3 and time.time() < until:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, (run.folder / "child.log").read_text()
    left = read_jsonl(log)
    assert 3 <= len(left) < 24
    assert not (run.evals / "base.json").exists()

    asked, generate = [], engine.generate
    engine.generate = lambda prompts, sampling: (
        asked.append(len(prompts)) or generate(prompts, sampling)
    )
    records = small_evaluation(engine, config, run, model=embedded)
    del engine.generate
    assert len(records) == 8 * (1 + config.eval_samples)
    assert records[: len(left)] == left and sum(asked) < 16
    assert read_jsonl(log) == records  # in order, whatever came first
    assert read_json(run.evals / "base.json")["seconds_judging"] > 0


def test_half_a_problems_samples_are_asked_again_and_other_weights_begin_anew(
    config, run, engine, embedded, tmp_path
):
    records = small_evaluation(engine, config, run, model=embedded)
    log, summary = run.evals / "base.jsonl", run.evals / "base.json"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:9]))  # one sample of two of the first problem
    summary.unlink()
    again = small_evaluation(engine, config, run, model=embedded)
    assert [(r["id"], r["sample"]) for r in again] == [(r["id"], r["sample"]) for r in records]

    log.write_text("".join(lines[:8]).replace('"sample": 0', '"sample": 0, "mark": 1'))
    summary.unlink()
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"other weights")
    assert not any("mark" in r for r in small_evaluation(engine, config, run, model=other))


def test_the_protocol_is_written_with_versions_seed_and_prompt_hash(config, run, engine):
    small_evaluation(engine, config, run)
    summary = read_json(run.evals / "base.json")
    assert {"torch", "transformers"} <= set(summary["versions"])
    assert summary["protocol"]["seed"] == config.seed
    assert len(summary["protocol"]["prompt_hash"]) == 16
    assert summary["protocol"]["passes"]["greedy"]["temperature"] == 0
    assert summary["engine"] == "vllm"


def test_regrading_needs_no_model_and_takes_other_rules(tmp_path):
    task = get_task("small_sums", {"largest": 9})
    problems = task.load("test")[:1]
    gold = int(problems[0].answer)
    texts = [f"<answer>{gold}</answer>", f"It is {gold}.", f"<result>{gold}</result>"]
    log = tmp_path / "base.jsonl"
    append_jsonl(
        log,
        [
            {"pass": "sampled", "id": problems[0].id, "completion": text, "finish_reason": "stop"}
            | judge(task, problems[0], text, False, "answer")
            for text in texts
        ],
    )
    records = read_jsonl(log)
    assert [r["strict"] for r in records] == [True, False, False]
    assert regrade(records, problems, task, "answer") == records
    assert [r["strict"] for r in regrade(records, problems, task, "result")] == [False, False, True]
    assert [r["strict"] for r in regrade(records, problems, task, None)] == [True] * 3
    other = [Problem(problems[0].id, "", str(gold + 1))]
    assert not any(r["lenient"] for r in regrade(records, other, task, "answer"))
    program = (
        "import sys; from lib.evaluation.judging import regrade; from lib.tasks import get_task; "
        "from lib.runs import read_jsonl; from pathlib import Path; "
        "t = get_task('small_sums', {'largest': 9}); "
        "print(len(regrade(read_jsonl(Path(sys.argv[1])), t.load('test'), t, None))); "
        "sys.exit('torch' in sys.modules or 'vllm' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(log)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, "3"), done.stderr


# Counting; answers made by hand

SUM = Problem("", "What is 1 + 2?", "3")


def answer(id, text, kind="greedy", sample=0, tokens=5, reason="stop", **more) -> dict:
    verdicts = judge(get_task("small_sums"), SUM, text, reason == "length", "answer")
    return {
        **{"pass": kind, "id": str(id), "sample": sample, "question": SUM.question},
        **{"completion": text, "expected": "3", "tokens": tokens, "finish_reason": reason},
        **{"cluster": None, "level": None, **verdicts, **more},
    }


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
        ([WRONG] * 20, [WRONG] * 8 + [RIGHT] * 12, ["is better", "not the format alone"]),
        ([BARE] * 20, [BARE] * 8 + [RIGHT] * 12, ["is better", "may be of format only"]),
        ([RIGHT] * 12 + [WRONG] * 8, [WRONG] * 20, ["The trained model is worse"]),
        ([WRONG] * 20, [WRONG] * 18 + [RIGHT] * 2, ["No difference", "would be missed"]),
        # All of three fixed: no spread, but an exact test of 3 against 0 says p = 0.25.
        ([WRONG] * 3, [RIGHT] * 3, ["No difference", "no error can be told"]),
        ([WRONG], [RIGHT], ["No difference", "interval not to be had", "tells no error"]),
        ([RIGHT], [RIGHT], ["No difference", "interval not to be had"]),
    ],
)
def test_the_verdict_claims_what_can_be_claimed(before, after, sentences, run, ci_config):
    table = compared(run, ci_config, greedy(*before), greedy(*after))
    said = verdict(table)
    assert all(sentence in said for sentence in sentences), said
    assert f"on {len(before)} held-out problems" in said and "one training run" in said


def test_one_sampled_problem_is_compared_drawn_and_reported(run, ci_config):
    from lib.plots import comparison_bars, curves_of_k_figure, groups_figure
    from lib.report import comparison_rows

    one = [answer(0, WRONG), *(answer(0, t, "sampled", i) for i, t in enumerate((RIGHT, WRONG)))]
    table = compared(run, ci_config, one, one)
    assert table["pass@2_strict"]["interval_95"] is None
    assert {row[4] for row in comparison_rows(table)} == {"not to be had"}
    summary = summarize(one, ci_config.model_copy(update={"eval_k": [2]}))
    assert summary["scores"]["pass@2_strict"]["interval_95"] is None
    assert summary["scores"]["greedy_strict"]["interval_95"] == stats.wilson_interval(0, 1)
    curves = {"base": curves_of_k(one)}
    panels = {"by length": by_length(one, one), "by difficulty": by_difficulty(one, one)}
    for figure in (comparison_bars(table), curves_of_k_figure(curves), groups_figure(panels)):
        figure.canvas.draw()


def test_a_summary_counts_outcomes_apart_with_wilson_intervals(ci_config):
    records = greedy(RIGHT, BARE, WRONG, SILENT, SILENT, BARE)
    records[4] = answer(4, SILENT, reason="length")
    records[5] = answer(5, BARE, reason="length")
    summary = summarize(records, ci_config)
    assert summary["outcomes"]["greedy"] == {
        **{"right": 3, "wrong": 1, "unparseable": 1, "truncated": 1}
    }
    assert summary["scores"]["greedy_strict"]["mean"] == pytest.approx(1 / 6)
    assert summary["scores"]["greedy_lenient"]["interval_95"] == stats.wilson_interval(3, 6)
    assert summary["truncated"]["greedy"]["interval_95"] == stats.wilson_interval(2, 6)
    assert outcomes(records, records)[0] == ("right", 3, 3)
    families = [record | {"cluster": f"{i // 2}"} for i, record in enumerate(records)]
    assert summarize(families, ci_config)["scores"]["greedy_lenient"]["interval_95"] == (
        stats.mean_with_error([1, 1, 0, 0, 0, 1], [0, 0, 1, 1, 2, 2]).interval
    )


def test_figures_have_the_names_that_dashboards_show(ci_config):
    records = [answer(i, RIGHT) for i in (0, 1)]
    records += [answer(i, t, "sampled", n) for i in (0, 1) for n, t in enumerate((WRONG, RIGHT))]
    values = tracked(summarize(records, ci_config))
    assert values == {
        **{"eval/pass@1": 1.0, "eval/pass@1_lenient": 1.0, "eval/format": 1.0},
        **{"eval/pass@2": 1.0, "eval/pass@2_lenient": 1.0, "eval/truncated": 0.0},
        **{"eval/strict_match": 0.0, "eval/flexible_extract": 1.0},
    }


def test_curves_are_the_means_of_what_stats_says_of_each_problem():
    texts = [["<answer>3.0</answer>", BARE, WRONG], [WRONG, RIGHT, RIGHT], [SILENT, WRONG, WRONG]]
    paid = [[1, 0, 2], [0, 1, 1], [0, 0, 0]]
    records = greedy(RIGHT, RIGHT, RIGHT)
    for i, said in enumerate(texts):
        for n, text in enumerate(said):
            records.append(answer(i, text, "sampled", n, reward=paid[i][n]))
    for record in records[:3]:
        record["reward"] = 0
    found = {name: [e.mean for e in es] for name, es in curves_of_k(records).items()}
    assert found["pass@k"] == pytest.approx([1 / 3, (2 / 3 + 1 + 0) / 3, 2 / 3])
    # The first problem: 3.0 and 3 are one answer, strictly right in one of its two samples.
    assert found["majority@k"][0] == pytest.approx(1 / 3)
    assert found["majority@k"][2] == pytest.approx((1 / 2 + 1 + 0) / 3)
    # … and its best-paid sample is the wrong one.
    assert found["best-of-k"][2] == pytest.approx((0 + 1 + 0) / 3)


def test_rewards_are_those_of_the_recipe(ci_config):
    records = greedy(RIGHT, WRONG, SILENT)
    rows = [row | {"id": str(i)} for i in range(3) for row in make_rows([SUM], "answer")]
    config = ci_config.model_copy(update={"rewards": {"correctness": 0.5, "hard_format": 1.0}})
    right, wrong, silent = (record["reward"] for record in add_rewards(records, rows, config))
    assert right == wrong + 0.5 * 2.0 and wrong > silent == 0


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


def test_lengths_fall_into_groups_that_hold_every_answer_once():
    rng = random.Random(0)
    sides = [[answer(i, RIGHT, tokens=rng.randint(3, 40)) for i in range(50)] for _ in range(2)]
    rows = by_length(*sides)
    assert len(rows) == 4
    for side in ("before", "after"):
        assert sum(row[side]["answers"] for row in rows if row[side]) == 50
    assert [row["group"] for row in by_length(greedy(RIGHT), greedy(WRONG))] == ["5 tokens"]


def test_calibration_by_hand():
    said = [(RIGHT, BARE, WRONG, SILENT), (WRONG, WRONG, WRONG, WRONG), (SILENT,) * 4]
    records = [
        answer(i, text, "sampled", n)
        for i, texts in enumerate(said)
        for n, text in enumerate(texts)
    ]
    half, sure = calibration(records)  # the silent one votes for nothing
    assert (half["share"], half["rate"], half["answers"]) == (0.5, 1.0, 1)
    assert (sure["share"], sure["rate"], sure["answers"]) == (1.0, 0.0, 1)
    assert calibration_error([half, sure]) == pytest.approx((0.5 + 1.0) / 2)


def test_answers_side_by_side_and_what_the_viewer_picks(run):
    from lib.plots.widgets import answer_viewer, pick_answer
    from lib.report import write_answers

    before, after = greedy(WRONG, RIGHT, RIGHT), greedy(RIGHT, WRONG, RIGHT)
    assert changes(before, after) == {"fixed": ["0"], "broken": ["1"], "both": ["2"], "neither": []}
    rows = side_by_side(before, after)
    assert [row["change"] for row in rows] == ["fixed", "broken", "both"]
    assert dict(pick_answer(rows, "broken", 7))["before"] == RIGHT
    assert dict(pick_answer(rows, "all", 2))["id"] == "2"
    assert pick_answer(rows, "neither", 0) == []
    shown = []
    viewer = answer_viewer(rows, lambda found: shown.append(dict(found)) or "shown")
    change, number = viewer.children[0].children
    change.value = "broken"
    assert shown[-1]["id"] == "1"
    change.value, number.value = "all", 2
    assert shown[-1]["id"] == "2"
    page = write_answers(run, rows).read_text()
    assert "&lt;answer&gt;4&lt;/answer&gt;" in page and page.count("<tr>") == 4


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


def test_the_harness_scores_by_hand():
    assert harness_scores("So\n#### 1,234.", "1234") == {
        **{"strict_match": True, "flexible_extract": True}
    }
    assert harness_scores("#### 18.00", "18") == {"strict_match": False, "flexible_extract": False}
    assert harness_scores("<answer>18</answer>", "18") == {
        **{"strict_match": False, "flexible_extract": True}
    }
    assert harness_scores("no number", "18") == {"strict_match": False, "flexible_extract": False}


def test_figures_reach_the_tracker(run, ci_config):
    pytest.importorskip("lib.training.tracking")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from lib.evaluation import track

    config = ci_config.model_copy(update={"report_to": ["tensorboard"], "eval_samples": 0})
    write_json(run.evals / "base.json", summarize(greedy(RIGHT, WRONG), config))
    track(run, config, "base", step=3)
    [events] = {path.parent for path in run.folder.rglob("*tfevents*")}
    read = EventAccumulator(str(events)).Reload()
    [event] = read.Scalars("eval/pass@1")
    assert (event.step, event.value) == (3, 0.5)
