"""Models load, answer alike in every engine, and merge to what the adapter does."""

import gc
import re
import sys

import pytest
import torch

from lib.config import resolve
from lib.engines import Sampling, TransformersEngine, VllmEngine, draw, make_engine, shared_length
from lib.errors import BadInput
from lib.export import become_trained, merged_weights
from lib.files import read_jsonl
from lib.models import Policy, embedded_folder, embedded_gguf, load_policy, model_folder
from lib.runs import open_run
from tests.conftest import CPU, move_adapter

QUESTIONS = [
    [{"role": "user", "content": text}]
    for text in ("What is 2 + 2?", "Name a colour.", "What is the capital of France?", "Say hello.")
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    changes = {"output_dir": str(folder), "profile": "cpu", "backend": "transformers"}
    return resolve("ci", changes | {"max_seq_length": 1024}, CPU)


@pytest.fixture(scope="module")
def run(config):
    return open_run(config)


@pytest.fixture(scope="module")
def engine(config, run, embedded):
    """vLLM with the embedded model: give it back the weights it came with. Ending one takes from
    all others of the process what they share, so that earlier ones end now."""
    gc.collect()
    engine = VllmEngine.start(config, embedded)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def slower(config, embedded):
    """The engine where there is no vLLM."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "vllm", None)
        return make_engine(config, embedded)


@pytest.fixture(scope="module")
def adapter(config, run):
    from lib.training import save_trained

    policy = load_policy(config)
    move_adapter(policy.model, 0.02)
    save_trained(policy, config, run)
    return run.adapter


def test_the_embedded_tokenizer_is_the_files(embedded, data_dir):
    """Ids and texts are those that transformers reads from the GGUF file, except that digits stand
    alone also after two spaces, as in SmolLM2's own tokenizer."""
    from transformers import AutoTokenizer

    file = embedded_gguf()
    before = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    after = AutoTokenizer.from_pretrained(embedded)
    texts = [row["question"] for row in read_jsonl(data_dir / "gsm8k" / "test.jsonl")[:300]]
    texts = [re.sub(" +", " ", text) for text in texts]
    texts += ["", " ", "  a\n\n\tb ", "x=12345.678e-9", "ℝ 日本語 🙂 e\u0301", "<|im_start|>user"]
    texts += ["a\r\nb", "don't I'LL", "\x00\x7f", "٣٤٥ 1,234", "<|im_end|>\n<|endoftext|>"]
    for text in texts:
        assert after.encode(text) == before.encode(text), text
        assert after.decode(after.encode(text)) == text
    assert after.convert_ids_to_tokens(after.encode("so  25")) == ["so", "ĠĠ", "2", "5"]
    # As the file says: the end of a turn ends a completion, and pads.
    assert after.eos_token_id == after.pad_token_id == 2 and after.bos_token_id == 1


def test_of_two_processes_that_convert_at_once_the_first_counts(monkeypatch, tmp_path):
    def convert(file, beside):
        for folder in (beside, beside.with_suffix("")):  # the other process is there first
            folder.mkdir(exist_ok=True)
            (folder / "model.safetensors").write_text(folder.name)

    monkeypatch.setenv("GRPO_CACHE", str(tmp_path))
    monkeypatch.setattr("lib.models._convert_quietly", convert)
    folder = embedded_folder()
    assert (folder / "model.safetensors").read_text() == folder.name
    assert list(folder.parent.iterdir()) == [folder]
    monkeypatch.setenv("GRPO_CACHE", str(folder / "model.safetensors"))
    with pytest.raises(BadInput, match="set GRPO_CACHE"):
        embedded_folder()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("./nowhere", "is neither a folder nor a Hub name"),
        ("gpt2", "is neither a folder nor a Hub name"),
        ("nobody/nothing-at-all", "could not be fetched from the Hugging Face Hub"),
    ],
)
def test_a_model_that_is_not_there(name, sentence, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BadInput, match=sentence):
        model_folder(resolve(None, {"model": name}, CPU))


def test_a_folder_without_safetensors_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BadInput, match="only safetensors"):
        model_folder(resolve(None, {"model": str(tmp_path)}, CPU))


def test_policy_by_transformers_trains_the_adapter_alone(config):
    policy = load_policy(config)
    assert isinstance(policy, Policy) and policy.backend == "transformers"
    assert policy.trainable[0] == 4_884_480


def test_without_vllm_transformers_generates_and_says_so(slower):
    assert slower.name == "transformers"
    [note] = slower.notes
    assert note.startswith("vLLM could not start (") and note.endswith("generates, slower.")


def test_each_answer_comes_as_soon_as_it_is_there_and_all_in_order(slower, engine):
    for each in (engine, slower):
        sampling = Sampling(n=2, temperature=1.0, max_tokens=4)
        streamed = dict(each.stream(QUESTIONS, sampling))
        answers = each.generate(QUESTIONS, sampling)
        assert [streamed[index] for index in range(len(QUESTIONS))] == answers
        assert [len(completions) for completions in answers] == [2] * len(QUESTIONS)
        assert list(each.stream([], sampling)) == []


def test_both_engines_say_the_same(slower, engine):
    """bf16 sums in another order, which may turn one of two tokens that are nearly as likely."""
    answers = (each.generate(QUESTIONS, Sampling(max_tokens=6)) for each in (engine, slower))
    pairs = [(a.token_ids, b.token_ids) for [a], [b] in zip(*answers, strict=True)]
    assert sum(map(shared_length, pairs)) >= 12


def test_an_interrupted_generation_leaves_nothing_to_the_next(engine, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    before = engine.generate(QUESTIONS, Sampling(max_tokens=4))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine.llm.llm_engine, "step", interrupted)
        engine.generate(QUESTIONS, Sampling(n=2, temperature=1.0, max_tokens=4))
    assert engine.llm.llm_engine.has_unfinished_requests()
    assert engine.generate(QUESTIONS, Sampling(max_tokens=4)) == before
    assert not engine.llm.llm_engine.has_unfinished_requests()


def test_samples_repeat_with_the_seed_and_differ_without(engine):
    def drawn(seed: int) -> list[str]:
        answers = engine.generate(QUESTIONS, Sampling(2, 1.0, max_tokens=2, seed=seed))
        assert {c.finish_reason for group in answers for c in group} <= {"length", "stop"}
        return [c.text for group in answers for c in group]

    assert drawn(1) == drawn(1) != drawn(2)
    assert len(drawn(1)) == 2 * len(QUESTIONS)


def test_merged_weights_in_the_engine_answer_as_the_adapter(embedded, adapter, engine, slower):
    """Handed over in place, vLLM says what peft's adapter says; and the base again after."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    sampling = Sampling(max_tokens=6)
    base = [c[0].text for c in engine.generate(QUESTIONS, sampling)]
    become_trained(engine, embedded, adapter)
    trained = [c[0].text for c in engine.generate(QUESTIONS, sampling)]
    engine.hand_over(merged_weights(embedded, embedded).items())
    assert [c[0].text for c in engine.generate(QUESTIONS, sampling)] == base != trained

    model = AutoModelForCausalLM.from_pretrained(embedded, dtype=torch.bfloat16)
    PeftModel.from_pretrained(model, adapter)
    pefts = TransformersEngine(model.eval(), slower.tokenizer)
    said = [c[0].text for c in pefts.generate(QUESTIONS, sampling)]
    assert sum(a == b for a, b in zip(trained, said, strict=True)) >= len(said) - 1


def test_a_gguf_file_answers_as_the_model_it_was_converted_to(embedded, engine):
    sampling = Sampling(max_tokens=6)
    base = engine.generate(QUESTIONS, sampling)
    weights = merged_weights(embedded, embedded)
    engine.hand_over((name, weight.neg()) for name, weight in weights.items())
    assert engine.generate(QUESTIONS, sampling) != base
    become_trained(engine, embedded, embedded_gguf())
    assert engine.generate(QUESTIONS, sampling) == base


def test_a_model_of_another_shape_is_refused(embedded, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    small = AutoConfig.from_pretrained(embedded)
    small.hidden_size, small.num_hidden_layers, small.intermediate_size = 18, 2, 32
    AutoModelForCausalLM.from_config(small).save_pretrained(tmp_path / "small")
    with pytest.raises(BadInput, match="small has hidden_size 18 and its base 576"):
        merged_weights(embedded, tmp_path / "small")


# How vLLM draws on a CPU: as often as is probable, and without a compiler.


def test_tokens_are_drawn_as_often_as_they_are_probable():
    torch.manual_seed(0)
    probable = torch.tensor([0.0, 0.5, 0.3, 0.0, 0.15, 0.05, 0.0])
    drawn = draw(probable.log().expand(40_000, -1))
    shares = drawn.bincount(minlength=len(probable)) / len(drawn)
    assert torch.equal(shares == 0, probable == 0)
    assert torch.allclose(shares, probable, atol=0.01)  # four standard errors
    tail = 50_000  # words too improbable to change a sum of 32 bit that is near 1
    logits = torch.full((1, 1 + tail), 5e-8).log()
    logits[:, 0] = 0.0
    drawn = sum((draw(logits.expand(400, -1)) > 0).sum() for _ in range(10))
    assert 0 < drawn < 3 * 4000 * tail * 5e-8


def test_vllm_draws_with_them_and_compiles_nothing(engine):
    from torch._dynamo.utils import counters
    from vllm.v1.sample.ops import topk_topp_sampler

    assert topk_topp_sampler.compiled_random_sample is draw
    before = counters["stats"]["unique_graphs"]
    engine.generate(QUESTIONS[:1], Sampling(temperature=1.0, max_tokens=4, logprobs=True))
    assert counters["stats"]["unique_graphs"] == before
