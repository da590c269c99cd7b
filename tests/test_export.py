"""Every form of the trained model is that model, and a form that is not is named."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from lib import export
from lib.adapters import make_portable
from lib.config import resolve
from lib.engines import chat_text
from lib.export import certificate as c
from lib.export import gguf as g
from lib.export.page import example_eval
from lib.export.serve import serve_gguf
from lib.files import cache_folder, read_json, write_json, write_jsonl
from lib.models import load_policy, load_tokenizer
from lib.runs import open_run
from tests.conftest import CPU, SMALL, move_adapter, python, refuses


@pytest.fixture(scope="module")
def config(tmp_path_factory, first_layers):
    """Two layers of the embedded model, which are exported as all thirty are."""
    given = {"output_dir": str(tmp_path_factory.mktemp("runs")), "model": str(first_layers)}
    return resolve("ci", given | SMALL | {"precision": "fp32", "max_completion_length": 32}, CPU)


@pytest.fixture(scope="module")
def run(config):
    return open_run(config)


def moved_adapter(config, folder, seed):
    policy = load_policy(config)
    move_adapter(policy.model, 0.1, seed)
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return folder


def merge(base, adapter, folder):
    import torch

    export.save_merged(export.load_merged(base, adapter, torch.float32), base, folder)
    return folder


@pytest.fixture(scope="module")
def adapter(config, run):
    return moved_adapter(config, run.adapter, seed=0)


@pytest.fixture(scope="module")
def merged(run, first_layers, adapter):
    return merge(first_layers, adapter, run.merged)


@pytest.fixture(scope="module")
def files(run, merged):
    return g.write_gguf(merged, run.folder / "gguf", ("f16", "q8_0", "q4_k_m"))


@pytest.fixture(scope="module")
def ask(config, first_layers, adapter):
    """`measure` with six problems, compared with the policy as trained."""
    reader = load_tokenizer(first_layers)
    six = config.model_copy(update={"certificate_problems": 6})
    task, problems, rows = c.questions(six, reader)
    given = dict(problems=problems, rows=rows, task=task, config=config, reader=reader)
    model = export.load_policy_as_trained(config, first_layers, adapter)
    policy = c.measure(c.transformers_form("policy", model, first_layers, config), **given)
    return partial(c.measure, **given, policy=policy)


@pytest.fixture(scope="module")
def base_row(ask, config, first_layers):
    model = export.load_policy_as_trained(config, first_layers, None)
    return ask(c.transformers_form("base", model, first_layers, config))


def changed(measured, **values):
    return c.Measured(**vars(measured) | values)


@pytest.fixture
def certified(ask, config, first_layers, adapter, base_row):
    """`certified(folder)`: the row of a merged folder that has been changed, and the verdict."""

    def certify(folder, **facts):
        facts = {"weights": export.weight_faults(first_layers, adapter, folder)} | facts
        model = export.load_policy_as_trained(config, folder, None)
        form = c.transformers_form("merged", model, folder, config, **facts)
        certificate = c.certify([ask.keywords["policy"], ask(form), base_row])
        with refuses("certificate"):
            c.need_same(certificate)
        return certificate["rows"][1], certificate["verdict"]

    return certify


def test_prompts_that_do_not_fit_are_left_out_with_a_note(config, first_layers, tmp_path, capsys):
    texts = [f"{'Once upon a time. ' * 99 * (i % 2)}{i} + 1?" for i in range(10)]
    rows = [{"question": text, "answer": i + 1} for i, text in enumerate(texts)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    given = {"task": "file", "task_config": {"path": str(tmp_path / "a.jsonl")}, "eval_problems": 9}
    config = config.model_copy(update=given | {"shots": 0, "certificate_problems": 9})
    _, problems, rows = c.questions(config, load_tokenizer(first_layers))
    assert 4 <= len(problems) == len(rows) <= 5
    assert f"{9 - len(rows)} of 9 prompts are longer" in capsys.readouterr().out


# --- the unchanged model ----------------------------------------------------------------------


def test_the_unchanged_model_passes_in_every_form(
    ask, config, run, first_layers, adapter, merged, files, base_row
):
    inline = read_json(merged / "tokenizer_config.json")["chat_template"]
    assert inline == (merged / "chat_template.jinja").read_text()
    faults = export.weight_faults(first_layers, adapter, merged)
    model = export.load_policy_as_trained(config, merged, None)
    form = c.transformers_form("merged", model, merged, config, weights=faults)
    measured = [ask.keywords["policy"], ask(form), base_row]
    for kind, file in files.items():
        with serve_gguf(file, run.folder / "serve.log", config.max_seq_length) as server:
            measured.append(ask(c.gguf_form(kind, file, merged, config, server)))
    certificate = c.write(run, measured)
    rows = {row["form"]: row for row in certificate["rows"]}
    assert certificate["failed"] == []
    assert rows["merged"]["verdict"] == rows["gguf f16"]["verdict"] == "same"
    assert rows["merged"]["logprob_gap"] < 0.01 < rows["base"]["logprob_gap"]
    assert rows["gguf f16"]["logprob_gap"] < rows["gguf q8_0"]["logprob_gap"]
    assert rows["gguf q8_0"]["logprob_gap"] < rows["gguf q4_k_m"]["logprob_gap"]
    assert rows["gguf q4_k_m"]["size_gib"] < rows["gguf q8_0"]["size_gib"]
    for row in certificate["rows"]:
        for column in ("template_equal", "tokens_equal", "stops_equal", "weights_equal"):
            assert row[column] is not False, (row["form"], column)
    c.need_same(certificate)
    assert c.certify(c.measured_before(run)) == certificate
    assert len(c.readable(read_json(run.evals / "certificate.json"))) == len(measured)


def test_ids_are_equal_before_after_and_in_llama_cpp(embedded, merged, files, data_dir):
    lines = (data_dir / "gsm8k" / "test.jsonl").read_text().splitlines()[:300]
    texts = [json.loads(line)["question"] for line in lines]
    texts += [json.loads(line)["answer"] for line in lines]
    texts += [*c.OTHER_TEXTS, "<|im_start|>user\nhi<|im_end|>\n", "'s 't I'll 2/5"]
    before, after = load_tokenizer(embedded), load_tokenizer(merged)
    llama = g.LlamaCpp(files["q8_0"], 64)
    for text in texts:
        ids = before(text)["input_ids"]
        assert ids == after(text)["input_ids"]
        assert ids == llama.tokens(text), text
        assert before.decode(ids) == text


def main(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lib.export", *arguments])
        runpy.run_module("lib.export", run_name="__main__")


def test_a_trained_folder_shows_samples_and_answers(config, merged, capsys):
    make_portable(merged, config.model_copy(update={"shots": 0}), [])
    rows = example_eval(merged, n=3)
    assert len(rows) == 3 and all({"question", "answer", "correctness"} <= set(r) for r in rows)
    assert {row["right"] for row in rows} <= {True, False}
    capsys.readouterr()
    main(str(merged), "What is 1 + 2?")
    said = capsys.readouterr()
    assert said.out.strip() and not said.err
    with pytest.raises(SystemExit, match="no folder"):
        main("nowhere", "What is 1 + 2?")


# --- mutations --------------------------------------------------------------------------------


@pytest.fixture
def copy(merged, tmp_path):
    shutil.copytree(merged, tmp_path / "copy", copy_function=os.link)
    return tmp_path / "copy"


GENERATION = "generation_config.json"
BYTES_ALONE = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}  # no digits
ONE, EMBEDDINGS = "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"


def rewrite(file, **changes):
    write_json(file, read_json(file) | changes)


def change_tensors(folder, change):
    from safetensors.torch import load_file, save_file

    [file] = folder.glob("*.safetensors")
    tensors = change(load_file(file))
    file.unlink()  # it may be a link
    save_file(tensors, file, metadata={"format": "pt"})


def times(factor):
    """One tensor times a number."""
    return lambda folder: change_tensors(folder, lambda t: t | {ONE: t[ONE] * factor})


def setting(file, **changes):
    return lambda folder: rewrite(folder / file, **changes)


def without(file):
    return lambda folder: (folder / file).unlink()


def drop_template(folder):
    (folder / "chat_template.jinja").unlink()
    rewrite(folder / "tokenizer_config.json", chat_template=None)


def drop_merge(folder):
    """Of a word that no problem holds."""
    model = read_json(folder / "tokenizer.json")["model"]
    model["merges"] = [m for m in model["merges"] if "".join(m) != "\u0120chemistry"]
    rewrite(folder / "tokenizer.json", model=model)


def strip_after_turns(folder):
    """The end of a turn takes the line's end with it, in every prompt."""
    added = read_json(folder / "tokenizer.json")["added_tokens"]
    added[2]["rstrip"] = True
    rewrite(folder / "tokenizer.json", added_tokens=added)


def add_bos(folder):
    token = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    special = {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}
    post = dict(type="TemplateProcessing", single=[token, text], pair=[token, text])
    rewrite(folder / "tokenizer.json", post_processor=post | {"special_tokens": special})


def change_rope(folder):
    rope = read_json(folder / "config.json")["rope_parameters"]
    rewrite(folder / "config.json", rope_parameters=rope | {"rope_theta": 500.0})


def swap_tensors(folder):
    """Of two layers."""
    other = ONE.replace("1", "0")
    change_tensors(folder, lambda t: t | {ONE: t[other], other: t[ONE]})


def swap_special_tokens(folder):
    data = read_json(folder / "tokenizer.json")
    vocab, added = data["model"]["vocab"], data["added_tokens"]
    vocab |= {"<|im_start|>": 2, "<|im_end|>": 1}
    added[1]["content"], added[2]["content"] = added[2]["content"], added[1]["content"]
    rewrite(folder / "tokenizer.json", **data)


def untie_head(folder):
    rewrite(folder / "config.json", tie_word_embeddings=False)
    change_tensors(folder, lambda t: t | {"lm_head.weight": t[EMBEDDINGS].flip(0)})


@pytest.mark.parametrize(
    ("change", "column", "named", "moved"),
    [
        (setting(GENERATION, eos_token_id=1), "stops", "token 2 does not end", False),
        (without(GENERATION), "weights", "generation_config.json is missing", False),
        (setting(GENERATION, temperature=0.1), "weights", "has temperature 0.1, the base", False),
        (setting("config.json", eos_token_id=0), "weights", "config.json has eos_token_id", False),
        (swap_special_tokens, "tokens", "its tokenizer reads", False),
        (swap_tensors, "weights", "layers.0.mlp.up_proj.weight is off by", True),
        (drop_template, "template", "template is missing", False),
        (drop_merge, "tokens", "its tokenizer reads", False),
        (setting("tokenizer.json", pre_tokenizer=BYTES_ALONE), "tokens", "reads 216 where", False),
        (strip_after_turns, "tokens", "its tokenizer reads", False),
        (add_bos, "tokens", "its tokenizer reads 1 where", False),
        (change_rope, "weights", "config.json has rope_parameters", True),
        (untie_head, "weights", "config.json has tie_word_embeddings False, the base True", True),
        (times(0), "weights", f"{ONE} is off by", True),
        (times(float("inf")), "weights", f"{ONE} is not finite", True),
    ],
)
def test_a_change_of_the_merged_folder_fails_its_column(
    certified, copy, change, column, named, moved
):
    change(copy)
    row, verdict = certified(copy)
    equal = {key.removesuffix("_equal"): row[key] for key in row if key.endswith("_equal")}
    assert [name for name, same in equal.items() if not same] == [column], verdict
    assert named in verdict and ("nats a token" in verdict) == moved


@pytest.mark.parametrize("kind", ["f16", "q4_k_m"])
def test_a_zeroed_tensor_of_a_gguf_file_is_named(merged, files, tmp_path, kind):
    from gguf import GGUFReader

    file = shutil.copy(files[kind], tmp_path)
    [tensor] = [t for t in GGUFReader(file, "r+").tensors if t.name == "blk.1.ffn_up.weight"]
    tensor.data[:] = 0
    tensor.data.flush()
    assert [fault.split()[0] for fault in g.gguf_faults(Path(file), merged)] == [ONE]
    os.truncate(file, tensor.data_offset + 100)
    faults = g.gguf_faults(Path(file), merged)
    assert f"{ONE} is cut off where the file ends" in faults


def without_a_layer(tensors):
    return {name: w for name, w in tensors.items() if ".layers.1." not in name}


def shorter(tensors):
    return {name: (w[:8] if "lora_A" in name else w[:, :8]) for name, w in tensors.items()}


def doubled(tensors):
    return tensors  # with twice the alpha


CUTS = [(without_a_layer, 7), (shorter, 14), (doubled, 14)]


@pytest.mark.parametrize(("change", "number"), CUTS)
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_an_adapter_cut_short_or_scaled_is_named(first_layers, adapter, tmp_path, change, number):
    other = shutil.copytree(adapter, tmp_path / "adapter")
    change_tensors(other, lambda tensors: {k: v.contiguous() for k, v in change(tensors).items()})
    if change is shorter:
        rewrite(other / "adapter_config.json", r=8, lora_alpha=16)
    if change is doubled:
        alpha = read_json(other / "adapter_config.json")["lora_alpha"]
        rewrite(other / "adapter_config.json", lora_alpha=2 * alpha)
    folder = merge(first_layers, other, tmp_path / "merged")
    assert len(export.weight_faults(first_layers, adapter, folder)) == number


def test_another_runs_adapter_fails(certified, config, first_layers, adapter, tmp_path):
    other = moved_adapter(config, tmp_path / "adapter", seed=1)
    folder = merge(first_layers, other, tmp_path / "merged")
    row, verdict = certified(folder, weights=[])  # by what it says alone
    assert row["logprob_gap"] > c.ROUNDING and "nats a token" in verdict
    assert len(export.weight_faults(first_layers, adapter, folder)) == 14


def test_weights_too_large_for_fp16_are_not_written(first_layers, tmp_path):
    import torch

    model = export.load_merged(first_layers, first_layers, torch.float32)
    with torch.no_grad():
        model.get_parameter(ONE)[0, 0] = 1e5
    with refuses("fp16"):
        export.save_merged(model, first_layers, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def another_pre_tokenizer(file):
    data = file.read_bytes()
    at = data.index(b"smollm", data.index(b"tokenizer.ggml.pre"))
    file.write_bytes(data[:at] + b"falcon" + data[at + 6 :])


def field(key, value):
    def change(file):
        from gguf import GGUFReader

        reader = GGUFReader(file, "r+")
        there = reader.get_field(key)
        there.parts[there.data[0]][0] = value
        reader.data.flush()

    return change


@pytest.mark.parametrize(
    ("change", "column", "named"),
    [
        (another_pre_tokenizer, "tokens", "its tokenizer reads"),
        (field("tokenizer.ggml.add_bos_token", True), "tokens", "its tokenizer reads 1 where"),
        (field("llama.rope.freq_base", 500.0), "weights", "freq_base is 500 where rope_theta is"),
    ],
)
def test_a_change_of_a_gguf_file_fails_its_column(
    ask, merged, files, tmp_path, change, column, named
):
    file = Path(shutil.copy(files["q8_0"], tmp_path))
    change(file)
    llama, policy = g.LlamaCpp(file, 64), ask.keywords["policy"]
    fault = c.token_fault(
        lambda t: [*map(llama.tokens, t)], ask.keywords["reader"], ["1 + 2 <|im_end|>\n"]
    )
    facts = dict(token_fault=fault, stops=sorted(llama.stops), weights=g.gguf_faults(file, merged))
    certificate = c.certify([policy, changed(policy, name="gguf", **facts)])
    assert certificate["rows"][1][f"{column}_equal"] is False
    assert named in certificate["verdict"] and len(certificate["failed"]) == 1


# --- verdicts ---------------------------------------------------------------------------------


HALF = [1.0] * 20 + [0.0] * 20  # what the policy of these answers
SAID = ["a"] * len(g.DIALOGUES)


def measured(name="form", scores=HALF, gap=0.0, **facts):
    plain = dict(
        engine="x", quantised=False, rounding=0.03, stops=[2], weights=[], prompts=SAID,
        token_fault="", broken="", size_gib=1.0, tokens_per_s=None, texts=["a"] * len(scores),
        ids=[[score] for score in scores], logprobs=[[1.5 * gap], [-0.5 * gap]] * 20,
    )  # fmt: skip
    return c.Measured(name=name, scores=scores, **plain | facts)


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({"gap": -0.09, "stops": [1, 2]}, "same"),  # training has moved the policy by 1
        ({"gap": 0.11}, "not the same: log-probabilities of the policy's answers differ by 0.110"),
        ({"gap": float("nan")}, "not the same: log"),
        ({"gap": 0.2, "quantised": True}, "same answers"),
        ({"logprobs": None, "ids": [[]] * 40}, "same answers"),  # a server's
        ({"logprobs": None, "scores": [1.0] * 40}, "better by 50.0 points"),
        ({"quantised": True, "scores": [0.0] * 40}, "worse by 50.0 points"),
        ({"quantised": True, "scores": [0.0, *HALF[1:]]}, "cannot be told with 40 problems"),
        ({"stops": [1]}, "not the same: token 2 does not end its turn"),
        ({"weights": ["a is off", "b", "c"]}, "not the same: a is off and 2 more"),
        ({"prompts": [*SAID[:2], "b", "c", "a"]}, "not the same: the chat template differs (dialog"
         "ue of < and {{ in the text)"),
        ({"prompts": [None] * 5}, "not the same: the chat template is missing (dialogue of a sys"),
        ({"scores": [], "logprobs": None, "broken": "oh"}, "not the same: it gives no answer (oh)"),
    ],
)  # fmt: skip
def test_a_form_is_told_from_the_policy_by_what_it_does(facts, verdict):
    certificate = c.certify([measured("policy"), measured(**facts), measured("base", gap=1.0)])
    assert verdict in certificate["rows"][1]["verdict"]
    failed = verdict.startswith("not the same")
    assert certificate["verdict"].startswith("1 fault: form: ") == failed


def test_the_table_reads_as_a_person_wants_it():
    scores = [1.0] * 4 + [0.0] * 36
    form = measured(scores=scores, gap=0.02, weights=["a"], token_fault="b", prompts=None)
    certificate = c.certify([measured("policy"), form])
    assert certificate["verdict"].startswith("2 faults: form: b. form: a.")
    policy, row = c.readable(certificate)
    assert (policy["accuracy"], policy["nats a token"]) == ("50.0%", "n/a")
    assert policy["template, tokens, stops, weights"] == "equal"
    assert row | {"verdict": ""} == {
        "form": "form", "verdict": "", "accuracy": "10.0%", "nats a token": "0.0200",
        "points from the policy": "-40.0 (-54.2\xa0to\xa0-22.0)", "equal answers": "60%",
        "GiB": "1.00", "tokens/s": "n/a",
        "template, tokens, stops, weights": "DIFFER: tokens, weights; n/a: template",
    }  # fmt: skip


def test_what_a_form_is_not_asked_it_is_known_to_answer(ask, monkeypatch):
    """Where it finds each token of the policy's answer likeliest: but for the first, whatever it
    says of them. A right answer counts, a prompt of other ids is another prompt."""
    monkeypatch.setattr(c, "ASKED", 2)
    policy, reader, asked = ask.keywords["policy"], ask.keywords["reader"], []

    def generate(prompts):
        asked.extend(prompts)
        golds = [ask.keywords["problems"][i].answer for i in (0, 1, 4)]
        texts = [*(f"<answer>{gold}</answer>" for gold in golds[:2]), f"It is {golds[2]}"]
        return [c.Completion(text, (7,), "stop") for text in texts]

    def score(prompts, answers):
        rows = [[(0.0, True)] * len(answer) for answer in answers]
        rows[4][-1] = (-1.0, False)
        return rows

    def prompt(messages):
        ids = reader(chat_text(reader, messages), add_special_tokens=False)["input_ids"]
        return ids + [1] * (messages[-1]["content"] == "Thank you.")

    row = ask(c.Form(name="form", engine="x", generate=generate, score=score, prompt=prompt))
    assert asked == [ask.keywords["rows"][i]["prompt"] for i in (0, 1, 4)]
    assert row.ids == [[7], [7], *policy.ids[2:4], [7], policy.ids[5]]
    assert [row.scores[i] for i in (0, 1, 4)] == [1.0, 1.0, 0.0], "strictly"
    assert [a == b for a, b in zip(row.prompts, policy.prompts, strict=True)].count(False) == 1

    def fails(prompts):
        raise RuntimeError("gone\nfor ever")

    def ended(texts):
        return [[*ids, 2] for ids in reader(texts)["input_ids"]]

    row = ask(c.Form(name="form", engine="x", generate=fails, tokens=ended))
    assert ("gone" in row.broken, row.texts, row.logprobs) == (True, [], None)
    assert row.token_fault == "its tokenizer reads 2 where the policy's reads token nothing"


# --- Ollama -----------------------------------------------------------------------------------


class Jinja:
    """As much of a tokenizer as a chat template needs."""

    bos_token = "<s>"

    def __init__(self, template):
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self.template = _compile_jinja_template(template)

    def apply_chat_template(self, messages, **_):
        return self.template.render(
            messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
        )


def trl_templates():
    from importlib.util import find_spec

    return sorted((Path(find_spec("trl").origin).parent / "chat_templates").glob("*.jinja"))


_RENDER = """package main
import ("encoding/json"; "os"; "strings"; "text/template")
type message struct { Role, Content string }
func main() {
  var cases []struct { Template, System string; Messages []message }
  if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil { panic(err) }
  var texts []string
  for _, one := range cases {
    var out strings.Builder
    t := template.Must(template.New("").Parse(one.Template))
    if err := t.Execute(&out, one); err != nil { panic(err) }
    texts = append(texts, out.String())
  }
  json.NewEncoder(os.Stdout).Encode(texts)
}"""


def test_go_renders_the_dialogues_byte_for_byte(tmp_path):
    """In Go itself, of every template that TRL has; what cannot be put in its form is refused."""
    cases, wanted, refused = [], [], set()
    for file in trl_templates():
        tokenizer = Jinja(file.read_text())
        try:
            templates = [g.go_template(tokenizer, without_bos) for without_bos in (False, True)]
            takes_system = "system" in g._parts(tokenizer)
        except ValueError as error:
            assert error.key == "go-template"
            refused.add(file.stem.removesuffix("_training"))
            continue
        for messages in g.DIALOGUES.values():
            system = messages[0]["content"] if messages[0]["role"] == "system" else ""
            if system and not takes_system:
                messages, system = messages[1:], ""
            text = chat_text(tokenizer, messages)
            wanted += [text, text.removeprefix("<s>")]
            given = {"Messages": messages, "System": system}
            cases += [{"Template": template} | given for template in templates]
    assert refused == {"glm4moe", "idefics3", "llava_next", "smolvlm"}
    (tmp_path / "main.go").write_text(_RENDER)
    done = subprocess.run(
        [Path(sys.executable).with_name("go"), "run", "main.go"],
        **{"cwd": tmp_path, "input": json.dumps(cases), "capture_output": True, "text": True},
        env=os.environ | {"GOCACHE": str(cache_folder() / "go"), "GO111MODULE": "off"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == wanted


def test_a_template_that_go_cannot_have_is_refused():
    picky = "{% for m in messages %}{{ loop.length }}{{ m.content }}{% endfor %}"
    with refuses("go-template"):
        g.go_template(Jinja(picky))


def test_generation_tags_go_and_the_text_stays():
    [file] = [file for file in trl_templates() if file.stem == "qwen3_training"]
    template = file.read_text()
    assert "generation %}" in template and "generation %}" not in export.plain_jinja(template)
    for messages in g.DIALOGUES.values():
        plain = chat_text(Jinja(export.plain_jinja(template)), messages)
        assert plain == chat_text(Jinja(template), messages)


def test_a_modelfile_has_every_stop(merged, files):
    before = [{"role": "system", "content": 'Say "hi"'}, {"role": "user", "content": "a\nb"}]
    text = g.write_modelfile(merged, files["q8_0"], {"num_ctx": 8}, before).read_text()
    template = g.go_template(load_tokenizer(merged))
    assert text == (
        f'FROM ./model-q8_0.gguf\nTEMPLATE """{template}"""\nSYSTEM """Say "hi""""\n'
        'MESSAGE user """a\nb"""\nPARAMETER stop "<|im_end|>"\nPARAMETER num_ctx 8\n'
    )
    for lost in ("a\u200db", 'say """\nhi'):  # which Ollama's parser drops, or ends the text at
        with refuses("modelfile"):
            g.write_modelfile(merged, files["q8_0"], {}, [{"role": "user", "content": lost}])


@pytest.mark.parametrize("way", ["pip", "uv"])
def test_after_fetching_the_converter_setuptools_can_be_imported(tmp_path, way):
    # As vLLM does: with the standard library's distutils in place of its own, it fails.
    code = "from lib.export.gguf import converter; converter(); import setuptools"
    environment = os.environ | {"GRPO_CACHE": str(tmp_path)}
    if way == "uv":  # which fetches where an environment has no pip
        if not shutil.which("uv"):
            pytest.skip("uv is not on this machine")
        (tmp_path / "pip.py").write_text("raise SystemExit(1)")
        environment["PYTHONPATH"] = str(tmp_path)
    python("-c", code, env=environment)
