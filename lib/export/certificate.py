"""Is it still the model that was trained? One table over every form it takes on its way out.

    forms = [transformers_form(...), gguf_form(...), vllm_form(...), http_form(...)]
    measured = [measure(form, problems, rows, task, config, policy) for form in forms]
    certificate = certify(measured)        # rows and a verdict; `write` keeps it

The first form is the policy as it was trained, on its 4-bit base where training had one. Each
other form answers the same held-out problems greedily, says how probable it finds the policy's
answers, and shows what stands around them: the prompt's bytes, the ids of texts and of the
vocabulary's words, the ids that end a turn, its weights and settings. A difference names the
tensor, the setting, the token or the template.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lib import stats
from lib.config import Config
from lib.engines import (
    Completion,
    Engine,
    Messages,
    Sampling,
    TransformersEngine,
    chat_text,
    shared_prefix,
)
from lib.errors import BadInput, first_line
from lib.export import size_gib
from lib.export.gguf import DIALOGUES, SIXTEEN_BIT, LlamaCpp, gguf_faults
from lib.files import read_json, write_json
from lib.models import load_tokenizer
from lib.runs import Run
from lib.tasks import Problem, Task, fitting_rows, judge, load_problems, make_rows
from lib.tasks.prompts import end_ids, get_format

# Nats a token that rounding may change: of weights to fp16, and of all that is computed in 16 bit.
ROUNDING, ROUNDING_16 = 0.03, 0.1
SHARE_OF_TRAINING = 0.1  # … or this share of what training has moved the policy by
SCORED = 2048  # tokens in one pass
ASKED = 8  # problems that each form answers itself, whatever it says of the policy's answers
BASE = "base"  # the untrained model's row, a measure of what a real difference looks like
OTHER_TEXTS = (
    "naïve café — 中文 12345 3.14",
    "a\n\n b\t  c  ",
    "😀 Привет, שלום",
    "x=12;y=345 2025年",
    "  7  77 12345\n\n 7up",  # merges differently where digits are not split off
)
Ids, Scores = Sequence[int], list[tuple[float, bool]]
Measured = SimpleNamespace  # what one form did, as `measure` returns it


@dataclass(kw_only=True)
class Form:
    """One form of the model, and how to ask it; None where it cannot be asked."""

    name: str
    engine: str  # what computes it
    # conversations → greedy completions (without token ids from a server)
    generate: Callable[[Sequence[Messages]], list[Completion]]
    # prompts, answers → for each of an answer's tokens log p, in nats, and whether it is likeliest
    score: Callable[[list[Ids], list[Ids]], list[Scores]] | None = None
    # a conversation as this form puts it to the model, as text or as ids
    prompt: Callable[[Messages], str | list[int]] | None = None
    # texts → ids, with what its tokenizer adds by itself
    tokens: Callable[[list[str]], list[list[int]]] | None = None
    stops: set[int] | None = None  # ids that end a turn
    weights: list[str] = field(default_factory=list)  # what is wrong with weights and settings
    quantised: bool = False  # its answers may differ from the policy's
    size_gib: float | None = None
    rounding: float = ROUNDING_16  # nats a token that its precision explains


def questions(config: Config, reader: Any, count: int | None = None) -> tuple:
    """The task, the held-out problems that each form answers, and their prompts; those too long
    for the context, as `reader` (the policy's tokenizer) counts, are left out, which is said."""
    task, _, held_out, examples = load_problems(config)
    problems = held_out[: count or config.certificate_problems]
    rows = make_rows(problems, config.prompt_format, config.shots, examples)
    rows, note = fitting_rows(rows, reader, config, config.completion_tokens)
    if note:
        print(note)
    fitting = {row["id"] for row in rows}
    return task, [problem for problem in problems if problem.id in fitting], rows


def measure(
    form: Form,
    problems: Sequence[Problem],
    rows: Sequence[dict],
    task: Task,
    config: Config,
    policy: Measured | None = None,
    reader: Any = None,
) -> Measured:
    """Ask one form everything that the table needs; None for what it cannot be asked.

    Args:
        problems, rows, task, reader: as of `questions`.
        policy: the first form's measurements; None for that form itself.
    """
    texts = [chat_text(reader, row["prompt"]) for row in rows]
    prompts = reader(texts, add_special_tokens=False)["input_ids"]
    scored = form.score(prompts, policy.ids) if form.score and policy else []
    # Where each token of the policy's answer is the likeliest here, too, so is the answer.
    known = {i for i, row in enumerate(scored) if i >= ASKED and all(top for _, top in row)}
    asked = [row["prompt"] for i, row in enumerate(rows) if i not in known]
    started, answers, broken = time.perf_counter(), [], ""
    try:
        answers = form.generate(asked)
    except Exception as error:  # a form that cannot answer is a row, not the end of the table
        broken = first_line(error)[:200]
    seconds, left = time.perf_counter() - started, iter(answers)
    tokens = sum(len(a.token_ids) or len(reader(a.text)["input_ids"]) for a in answers)
    said = [
        Completion(policy.texts[i], policy.ids[i], "stop") if i in known else next(left)
        for i in range(0 if broken else len(problems))
    ]
    ids = [list(answer.token_ids) for answer in said]
    if form.score and not policy:
        scored = form.score(prompts, ids)
    facts = ("name", "engine", "weights", "quantised", "size_gib", "rounding")
    return Measured(
        **{name: getattr(form, name) for name in facts},
        problems=[problem.id for problem in problems],
        texts=[answer.text for answer in said],
        ids=ids,
        scores=[_right(task, p, a.text, config) for p, a in zip(problems, said, strict=False)],
        tokens_per_s=tokens / seconds if answers else None,
        logprobs=[[logprob for logprob, _ in row] for row in scored] if form.score else None,
        prompts=form.prompt and [_prompt(form, d, reader) for d in DIALOGUES.values()],
        token_fault=form.tokens
        and token_fault(form.tokens, reader, [*texts, *(problem.answer for problem in problems)]),
        stops=None if form.stops is None else sorted(form.stops),
        broken=broken,
    )


def _right(task: Task, problem: Problem, text: str, config: Config) -> float:
    tag = get_format(config.prompt_format).answer_tag
    grades = judge(task, problem, text, truncated=False, tag=tag)
    return float(grades.get("strict", grades.get("rougeL", 0.0)))


def _prompt(form: Form, messages: Messages, reader: Any) -> str | None:
    """A conversation as the form puts it; None where its template refuses it, or is missing."""
    try:
        prompt = form.prompt(messages)
    except Exception:
        return None
    if isinstance(prompt, str):
        return prompt
    text = chat_text(reader, messages)
    return text if prompt == reader(text, add_special_tokens=False)["input_ids"] else str(prompt)


def token_fault(
    tokens: Callable[[list[str]], list[list[int]]], reader: Any, asked: Sequence[str]
) -> str:
    """Where a form reads other ids than the policy's tokenizer; "" where it reads the same.

    Compared are the texts asked, some that are unlike them, and each word of the vocabulary, since
    a merge that is missing shows in the words that it makes.
    """
    words, ids = _vocabulary(reader)
    texts = [*asked, *OTHER_TEXTS, *reader.all_special_tokens]
    for theirs, ours in zip(tokens(texts + words), reader(texts)["input_ids"] + ids, strict=True):
        for x, y in zip_longest(theirs, ours, fillvalue="nothing"):
            if x != y:
                return f"its tokenizer reads {x} where the policy's reads token {y}"
    return ""


@lru_cache(maxsize=1)
def _vocabulary(reader: Any) -> tuple[list[str], list[list[int]]]:
    """A tokenizer's words, 500 in a text, and how it reads them."""
    words = reader.batch_decode([[token] for token in range(len(reader))])
    words = [word for word in words if word.strip().isalpha()]
    texts = ["\n".join(words[at : at + 500]) for at in range(0, len(words), 500)]
    return texts, reader(texts)["input_ids"]


# --- the table ----------------------------------------------------------------------------------


def certify(measured: Sequence[Measured]) -> dict[str, Any]:
    """The table's rows, the policy first, and one verdict over them.

    Returns: {"rows": [...], "verdict": str, "failed": [what is off, a sentence each]}
    """
    policy, by_name = measured[0], {form.name: form for form in measured}
    # What was trained on a 4-bit base is exported with the 16-bit one.
    exported = by_name.get("adapter", policy)
    moved = (_gap(by_name[BASE], exported) if BASE in by_name else None) or 0.0
    rows, failed, verdicts = [], [], {}
    for form in measured:
        row = _row(form, policy)
        rows.append(row)
        if form is policy:
            row["verdict"] = "the policy as trained"
        elif form.name == BASE:
            row["verdict"] = "before training, for comparison"
        else:
            limit = max(form.rounding, SHARE_OF_TRAINING * moved)
            faults = _faults(form, policy, row, limit, _gap(form, exported))
            failed += [f"{form.name}: {fault}" for fault in faults]
            off = f"not the same: {'; '.join(faults)}"
            row["verdict"] = off if faults else _verdict(form, row, limit)
            verdicts.setdefault(row["verdict"], []).append(form.name)
    verdict = "; ".join(f"{', '.join(names)}: {text}" for text, names in verdicts.items()) + "."
    if failed:
        count = f"{len(failed)} fault{'s' if len(failed) > 1 else ''}"
        verdict = f"{count}: " + " ".join(f"{fault}." for fault in failed)
    return {"rows": rows, "verdict": verdict, "failed": failed}


def _row(form: Measured, policy: Measured) -> dict[str, Any]:
    count, compared = len(form.scores), form is not policy
    row: dict[str, Any] = {"form": form.name, "engine": form.engine, "problems": count}
    row["accuracy"] = sum(form.scores) / count if count else None
    row |= dict.fromkeys(("difference", "interval_95", "p_value", "equal_answers"))
    if compared and count:
        paired = stats.paired_difference(policy.scores, form.scores)
        row |= {"difference": paired.difference, "interval_95": paired.interval}
        row["p_value"] = paired.p_value
        said = "ids" if all(form.ids) else "texts"  # a server gives no ids
        pairs = zip(getattr(form, said), getattr(policy, said), strict=True)
        row["equal_answers"] = sum(a == b for a, b in pairs) / count
    row["logprob_gap"] = _gap(form, policy) if compared else None
    row["template_equal"] = None if form.prompts is None else form.prompts == policy.prompts
    row["tokens_equal"] = None if form.token_fault is None else not form.token_fault
    row["stops_equal"] = None if form.stops is None else set(form.stops) >= set(policy.stops)
    row["weights_equal"] = not form.weights
    return row | {"size_gib": form.size_gib, "tokens_per_s": form.tokens_per_s}


def _gap(form: Measured, policy: Measured) -> float | None:
    """Mean |Δ log p| of the policy's answers, in nats a token."""
    if form.logprobs is None or policy.logprobs is None:
        return None
    pairs = zip(chain(*form.logprobs), chain(*policy.logprobs), strict=True)
    gaps = [abs(a - b) for a, b in pairs]
    return sum(gaps) / len(gaps) if gaps else None


def _faults(
    form: Measured, policy: Measured, row: dict, limit: float, gap: float | None
) -> list[str]:
    """What is off, in words that name it."""
    faults = [f"it gives no answer ({form.broken})"] if form.broken else []
    if row["template_equal"] is False:
        both = zip(DIALOGUES, form.prompts, policy.prompts, strict=True)
        name = next(name for name, theirs, ours in both if theirs != ours)
        what = "differs" if any(form.prompts) else "is missing"
        faults.append(f"the chat template {what} (dialogue of {name})")
    if row["stops_equal"] is False:
        missing = sorted(set(policy.stops) - set(form.stops))
        faults.append(f"token {', '.join(map(str, missing))} does not end its turn")
    if form.token_fault:
        faults.append(form.token_fault)
    if form.weights:
        more = f" and {len(form.weights) - 1} more" if len(form.weights) > 1 else ""
        faults.append(form.weights[0] + more)
    if gap is not None and not form.quantised and not gap <= limit:  # NaN, too
        faults.append(
            f"log-probabilities of the policy's answers differ by {gap:.3f} nats a token "
            f"(at most {limit:.3f} is rounding)"
        )
    return faults


def _verdict(form: Measured, row: dict, limit: float) -> str:
    """Same, worse by …, or what this many problems cannot tell."""
    word, gap = stats.verdict_word(row["interval_95"], row["p_value"]), row["logprob_gap"]
    if word in ("better", "worse"):
        return f"{word} by {stats.points(abs(row['difference']), '')}"
    if gap is not None and gap <= limit and not form.quantised:
        return "same"
    if row["equal_answers"] == 1:
        return "same answers"
    return word + f" with {row['problems']} problems" * (word == "cannot be told")


def write(run: Run, measured: Sequence[Measured]) -> dict[str, Any]:
    """Keep the measurements and the table: `evals/certificate.json`, `certificate_answers.json`."""
    certificate = certify(measured)
    write_json(run.evals / "certificate_answers.json", [vars(form) for form in measured])
    write_json(run.evals / "certificate.json", certificate)
    return certificate


def measured_before(run: Run) -> list[Measured]:
    """The measurements that 05 has kept, to add further forms to."""
    file = run.need(run.evals / "certificate_answers.json", made_by="05_merge_export")
    # Earlier runs kept the ids of texts in place of a fault.
    return [Measured(**{"token_fault": None} | values) for values in read_json(file)]


COLUMNS = (  # of the table as a person reads it: title, key of a row, how its value is written
    ("form", "form", ""),
    ("verdict", "verdict", ""),
    ("accuracy", "accuracy", ".1%"),
    ("points from the policy", "difference", "points"),
    ("nats a token", "logprob_gap", ".4f"),
    ("equal answers", "equal_answers", ".0%"),
    ("GiB", "size_gib", ".2f"),
    ("tokens/s", "tokens_per_s", ".0f"),
)
CHECKS = ("template", "tokens", "stops", "weights")  # one column of the table together


def readable(certificate: dict[str, Any]) -> list[dict[str, str]]:
    """The rows as a person reads them: points, and "n/a" where a form cannot be asked."""
    rows = []
    for row in certificate["rows"]:
        checks = []
        for word, value in (("DIFFER", False), ("n/a", None)):
            if names := [name for name in CHECKS if row[f"{name}_equal"] is value]:
                checks.append(f"{word}: {', '.join(names)}")
        cells = {title: _cell(row, key, form) for title, key, form in COLUMNS}
        rows.append(cells | {", ".join(CHECKS): "; ".join(checks) or "equal"})
    return rows


def _cell(row: dict[str, Any], key: str, form: str) -> str:
    value = row[key]
    if form == "points":
        text = "" if value is None else f"{100 * value:+.1f}"
        if row["interval_95"]:
            low, high = (f"{100 * end:+.1f}" for end in row["interval_95"])
            text += f" ({low} to {high})".replace(" to ", "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}")
        return text
    return "n/a" if value is None else format(value, form)


def need_same(certificate: dict[str, Any]) -> None:
    """Raises BadInput where a form is not the model that was trained, and says what is off."""
    if certificate["failed"]:
        raise BadInput(
            "The exported model is not the one that was trained. " + certificate["verdict"],
            key="certificate",
        )


# --- the forms ----------------------------------------------------------------------------------


def transformers_form(name: str, model: Any, folder: Path, config: Config, **facts: Any) -> Form:
    """A model loaded in transformers (or peft), with the tokenizer of its folder."""
    from transformers import AutoTokenizer

    try:
        tokenizer = load_tokenizer(folder)
    except BadInput:  # no template, say: its row shows it
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    return Form(
        name=name,
        engine="transformers",
        score=lambda prompts, answers: _score(model, prompts, answers),
        **_of_engine(TransformersEngine(model, tokenizer), config),
        stops={*end_ids(model.generation_config.eos_token_id)},
        rounding=ROUNDING if model.dtype.itemsize == 4 else ROUNDING_16,
        **facts,
    )


def _of_engine(engine: Engine, config: Config) -> dict[str, Callable]:
    greedy = Sampling(max_tokens=config.completion_tokens, seed=config.seed)
    return dict(
        generate=lambda prompts: [c for [c] in engine.generate(list(prompts), greedy)],
        prompt=lambda messages: chat_text(engine.tokenizer, messages),
        tokens=lambda texts: engine.tokenizer(texts)["input_ids"],
    )


def _score(model: Any, prompts: list[Ids], answers: list[Ids]) -> list[Scores]:
    import torch

    scores: list[Scores] = []
    pairs = zip(prompts, answers, strict=True)
    size = max(1, SCORED // max(len(p) + len(a) for p, a in pairs))
    for start in range(0, len(prompts), size):
        asked, said = prompts[start : start + size], answers[start : start + size]
        with torch.inference_mode():
            length, cache = shared_prefix(model, asked)
            rests = [torch.tensor([*p, *a][length:]) for p, a in zip(asked, said, strict=True)]
            # Padded behind, where no token of the row sees it.
            ids = torch.nn.utils.rnn.pad_sequence(rests, batch_first=True).to(model.device)
            logits = model(input_ids=ids, past_key_values=cache).logits[:, :-1].float()
            logprobs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0].tolist()
            likeliest = (logits.argmax(-1) == ids[:, 1:]).tolist()
        for prompt, answer, *row in zip(asked, said, logprobs, likeliest, strict=True):
            first = len(prompt) - length - 1
            scores.append(list(zip(*row, strict=True))[first : first + len(answer)])
    return scores


def vllm_form(name: str, engine: Any, config: Config, **facts: Any) -> Form:
    """vLLM in this process; its adapter, where it takes one, is set on the engine before."""
    from vllm import SamplingParams

    def score(prompts: list[Ids], answers: list[Ids]) -> list[Scores]:
        outputs = engine.llm.generate(
            [{"prompt_token_ids": [*p, *a]} for p, a in zip(prompts, answers, strict=True)],
            SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0),
            use_tqdm=False,
            lora_request=engine._lora_request(),
        )
        return [
            [(at[i].logprob, at[i].rank == 1) for at, i in zip(scored, ids, strict=True)]
            for output, ids in zip(outputs, answers, strict=True)
            for scored in [output.prompt_logprobs[-len(ids) :]]
        ]

    settings = engine.llm.llm_engine.model_config.try_get_generation_config()
    return Form(
        name=name,
        engine="vllm",
        score=score,
        **_of_engine(engine, config),
        stops={*end_ids(settings.get("eos_token_id")), engine.tokenizer.eos_token_id},
        **facts,
    )


def http_form(name: str, served: Any, config: Config, **facts: Any) -> Form:
    """A server with an OpenAI-compatible address, asked as anyone would ask it."""
    from concurrent.futures import ThreadPoolExecutor

    def one(messages: Messages) -> Completion:
        choice = served.chat(messages, config.completion_tokens).choices[0]
        return Completion(choice.message.content or "", (), choice.finish_reason)

    def at_once(prompts: Sequence[Messages]) -> list[Completion]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(one, prompts))

    facts = dict(engine=f"{served.engine} over HTTP", prompt=served.prompt) | facts
    if served.engine == "vLLM":
        # One after the other: with an adapter, vLLM 0.31 mixes up requests for prompt log-probs.
        facts["score"] = lambda prompts, answers: [*map(served.score, prompts, answers)]
    return Form(name=name, generate=at_once, **facts)


def gguf_form(kind: str, file: Path, merged: Path, config: Config, served: Any) -> Form:
    """A GGUF file in llama.cpp: asked through its own template by `served`, scored in-process."""
    llama = LlamaCpp(file, config.max_seq_length)
    return http_form(
        f"gguf {kind}",
        served,
        config,
        engine="llama.cpp",
        score=lambda prompts, answers: [*map(llama.score, prompts, answers)],
        tokens=lambda texts: [*map(llama.tokens, texts)],
        stops=llama.stops,
        weights=gguf_faults(file, merged),
        quantised=kind not in SIXTEEN_BIT,
        size_gib=size_gib(file),
        rounding=ROUNDING,
    )
