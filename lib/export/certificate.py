"""Is it still the model that was trained? One table over every form it takes on its way out.

    forms = [policy_form(...), merged_form(...), gguf_form(...), vllm_form(...), http_form(...)]
    measured = [measure(form, problems, rows, task, config, policy) for form in forms]
    certificate = certify(measured)        # rows and a verdict; `write` keeps it

The first form is the policy as it was trained, on its 4-bit base where training had one. Each
other form answers the same held-out problems greedily, says how probable it finds the policy's
answers, and shows what stands around them: the prompt's bytes, the ids of a few hundred texts,
the ids that end a turn, its weights. A difference names the tensor, the token or the template.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lib import stats
from lib.config import Config
from lib.engines import Messages, Sampling, chat_text
from lib.errors import BadInput
from lib.export.ollama import DIALOGUES
from lib.files import read_json, write_json
from lib.runs import Run
from lib.tasks import Problem, Task
from lib.tasks.judging import judge
from lib.tasks.prompts import get_format

# Nats a token that rounding may change: of weights to fp16, and of all that is computed in 16 bit.
ROUNDING, ROUNDING_16 = 0.03, 0.1
SHARE_OF_TRAINING = 0.1  # … or this share of what training has moved the policy by
OTHER_TEXTS = (
    "naïve café — 中文 12345 3.14",
    "a\n\n b\t  c  ",
    "😀 Привет, שלום",
    "x=12;y=345 2025年",
)


@dataclass
class Form:
    """One form of the model, and how to ask it.

    Attributes:
        name, engine: what it is and what computes it.
        generate: conversations → greedy completions, each (text, ids or None, cut off?).
        logprobs: (prompt ids, answer ids) → log p of the answer's tokens, in nats; None: no way.
        prompt: a conversation as this form puts it to the model, as text or as ids.
        tokens: text → ids; None where it cannot be asked.
        stops: ids that end a turn; None where it cannot be asked.
        weights: what is wrong with its weights, each a tensor and how far off it is.
        quantised: its answers may differ from the policy's.
        rounding: nats a token that its precision explains.
    """

    name: str
    engine: str
    generate: Callable[[Sequence[Messages]], list[tuple[str, Sequence[int] | None, bool]]]
    logprobs: Callable[[Sequence[int], Sequence[int]], list[float]] | None = None
    prompt: Callable[[Messages], str | list[int]] | None = None
    tokens: Callable[[str], list[int]] | None = None
    stops: set[int] | None = None
    weights: list[str] = field(default_factory=list)
    quantised: bool = False
    size_gib: float | None = None
    rounding: float = ROUNDING


@dataclass
class Measured:
    """What one form did. Lists are in the problems' order; `logprobs` are of the policy's
    answers, one list each; `prompts` of `DIALOGUES` (None: refused); `tokens` of the texts."""

    name: str
    engine: str
    quantised: bool
    rounding: float
    weights: list[str]
    size_gib: float | None
    texts: list[str]
    ids: list[list[int] | None]
    scores: list[float]
    tokens_per_s: float | None
    logprobs: list[list[float]] | None
    prompts: list[Any] | None
    tokens: list[list[int]] | None
    stops: list[int] | None
    problems: list[str] = field(default_factory=list)
    broken: str = ""


def measure(
    form: Form,
    problems: Sequence[Problem],
    rows: Sequence[dict],
    task: Task,
    config: Config,
    policy: Measured | None = None,
    reader: Any = None,
) -> Measured:
    """Ask one form everything that the table needs.

    Args:
        problems, rows: held-out problems and their prompts, in the same order.
        policy: the first form's measurements; None for that form itself.
        reader: the policy's tokenizer.
    """
    tag, started, broken = get_format(config.prompt_format).answer_tag, time.perf_counter(), ""
    try:
        answers = form.generate([row["prompt"] for row in rows])
    except Exception as error:  # a form that cannot answer is a row, not the end of the table
        answers, broken = [], " ".join(str(error).split())[:200] or type(error).__name__
    seconds = time.perf_counter() - started
    ids = [None if ids is None else list(ids) for _, ids, _ in answers]
    lengths = [
        len(reader(text)["input_ids"]) if i is None else len(i)
        for i, (text, _, _) in zip(ids, answers, strict=True)
    ]
    judged = [
        judge(task, problem, text, cut, tag)
        for problem, (text, _, cut) in zip(problems, answers, strict=bool(answers))
    ]
    said = policy.ids if policy else ids
    asked = [chat_text(reader, row["prompt"]) for row in rows]
    asked = reader(asked, add_special_tokens=False)["input_ids"]
    logprobs = form.logprobs and [
        form.logprobs(prompt, answer) for prompt, answer in zip(asked, said, strict=True)
    ]
    return Measured(
        name=form.name,
        engine=form.engine,
        quantised=form.quantised,
        rounding=form.rounding,
        weights=form.weights,
        size_gib=form.size_gib,
        texts=[text for text, _, _ in answers],
        ids=ids,
        scores=[float(j.get("strict", j.get("rougeL", 0.0))) for j in judged],
        tokens_per_s=sum(lengths) / seconds if answers else None,
        logprobs=logprobs,
        prompts=form.prompt and [_prompt(form, d, reader) for d in DIALOGUES.values()],
        tokens=form.tokens and [form.tokens(text) for text in probe_texts(problems)],
        stops=None if form.stops is None else sorted(form.stops),
        problems=[problem.id for problem in problems],
        broken=broken,
    )


def probe_texts(problems: Sequence[Problem]) -> list[str]:
    """Texts whose ids are compared: the problems', up to 300, and some that are unlike them."""
    return (
        [p.question for p in problems[:300]] + [p.answer for p in problems[:100]] + [*OTHER_TEXTS]
    )


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


def certify(measured: Sequence[Measured], base: str = "base") -> dict[str, Any]:
    """The table's rows, the policy first, and one verdict over them.

    Args:
        base: the name of the untrained model's row, if it is there: a measure of what a real
            difference looks like, with no verdict of its own.

    Returns: {"rows": [...], "verdict": str, "failed": [what is off, a sentence each]}
    """
    policy = measured[0]
    gaps = {m.name: _gap(m, policy) for m in measured}
    training = SHARE_OF_TRAINING * (gaps.get(base) or 0.0)
    rows, failed = [], []
    for form in measured:
        row = _row(form, policy, gaps[form.name])
        if form is policy:
            row["verdict"] = "the policy as trained"
        elif form.name == base:
            row["verdict"] = "before training, for comparison"
        else:
            faults = _faults(form, policy, row, max(form.rounding, training))
            failed += [f"{form.name}: {fault}" for fault in faults]
            row["verdict"] = "not the same: " + "; ".join(faults) if faults else _verdict(form, row)
        rows.append(row)
    verdict = (
        f"{len(failed)} faults: " + " ".join(f"{fault}." for fault in failed)
        if failed
        else _summary(rows[1:], base)
    )
    return {"rows": rows, "verdict": verdict, "failed": failed}


def _row(form: Measured, policy: Measured, gap: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {"form": form.name, "engine": form.engine, "problems": len(form.scores)}
    row["accuracy"] = sum(form.scores) / len(form.scores) if form.scores else None
    row |= {"difference": None, "interval_95": None, "equal_answers": None}
    if form is not policy and form.scores:
        difference = stats.paired_difference(policy.scores, form.scores)
        row["difference"], row["interval_95"] = difference.difference, difference.interval
        row["p_value"] = difference.p_value
        theirs, ours = (zip(m.ids, m.texts, strict=True) for m in (form, policy))
        equal = [  # by text, where a server gives no ids
            text == our_text if ids is None else ids == our_ids
            for (ids, text), (our_ids, our_text) in zip(theirs, ours, strict=True)
        ]
        row["equal_answers"] = sum(equal) / len(equal)
    row["logprob_gap"] = None if form is policy else gap
    row["template_equal"] = _equal(form.prompts, policy.prompts)
    row["tokens_equal"] = _equal(form.tokens, policy.tokens)
    row["stops_equal"] = None if form.stops is None else set(form.stops) >= set(policy.stops)
    row["weights_equal"] = not form.weights
    return row | {"size_gib": form.size_gib, "tokens_per_s": form.tokens_per_s}


def _equal(theirs: list | None, ours: list | None) -> bool | None:
    return None if theirs is None else theirs == ours


def _gap(form: Measured, policy: Measured) -> float | None:
    """Mean |Δ log p| of the policy's answers, in nats a token."""
    if form.logprobs is None or policy.logprobs is None:
        return None
    pairs = zip(itertools.chain(*form.logprobs), itertools.chain(*policy.logprobs), strict=True)
    gaps = [abs(a - b) for a, b in pairs]
    return sum(gaps) / len(gaps) if gaps else None


def _faults(form: Measured, policy: Measured, row: dict, limit: float) -> list[str]:
    """What is off, in words that name it."""
    faults = [f"it gives no answer ({form.broken})"] if form.broken else []
    if row["template_equal"] is False:
        differ = [a != b for a, b in zip(form.prompts, policy.prompts, strict=True)]
        name = list(DIALOGUES)[differ.index(True)]
        what = "is missing" if not any(form.prompts) else "differs"
        faults.append(f"the chat template {what} (dialogue of {name})")
    if row["stops_equal"] is False:
        missing = sorted(set(policy.stops) - set(form.stops))
        faults.append(f"token {', '.join(map(str, missing))} does not end its turn")
    if row["tokens_equal"] is False:
        pairs = zip(form.tokens, policy.tokens, strict=True)
        a, b = next((a, b) for a, b in pairs if a != b)
        pairs = enumerate(zip(a, b, strict=False))
        place = next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
        theirs, ours = (ids[place] if place < len(ids) else "nothing" for ids in (a, b))
        faults.append(f"its tokenizer reads {theirs} where the policy's reads token {ours}")
    if form.weights:
        more = f" and {len(form.weights) - 1} more" if len(form.weights) > 1 else ""
        faults.append(f"tensor {form.weights[0]}{more}")
    gap = row["logprob_gap"]
    if gap is not None and not form.quantised and gap > limit:
        faults.append(
            f"log-probabilities of the policy's answers differ by {gap:.3f} nats a token "
            f"(at most {limit:.3f} is rounding)"
        )
    return faults


def _verdict(form: Measured, row: dict) -> str:
    """Same, worse by …, or what this many problems cannot tell."""
    word = stats.verdict_word(row["interval_95"], row.get("p_value"))
    if word in ("better", "worse"):
        return f"{word} by {stats.points(abs(row['difference']), '')}"
    if row["logprob_gap"] is not None and not form.quantised:
        return "same"
    if row["equal_answers"] == 1:
        return "same answers"
    return word + f" with {row['problems']} problems" * (word == "cannot be told")


def _summary(rows: Sequence[dict], base: str) -> str:
    rows = [row for row in rows if row["form"] != base]
    by_verdict = itertools.groupby(sorted(rows, key=lambda r: r["verdict"]), lambda r: r["verdict"])
    return "; ".join(f"{', '.join(r['form'] for r in group)}: {v}" for v, group in by_verdict) + "."


def write(run: Run, measured: Sequence[Measured]) -> dict[str, Any]:
    """Keep the measurements and the table: `evals/certificate.json`, `certificate_answers.json`."""
    certificate = certify(measured)
    write_json(run.evals / "certificate_answers.json", [asdict(m) for m in measured])
    write_json(run.evals / "certificate.json", certificate)
    return certificate


def readable(certificate: dict[str, Any]) -> list[dict[str, str]]:
    """The rows as a person reads them: points, and "n/a" where a form cannot be asked."""

    def shown(row: dict[str, Any]) -> dict[str, str]:
        interval = row["interval_95"]
        points = "" if row["difference"] is None else f"{row['difference'] * 100:+.1f}"
        if interval:
            points += f" ({interval[0] * 100:+.1f} to {interval[1] * 100:+.1f})"
        return {
            "form": row["form"],
            "computed by": row["engine"],
            "accuracy": _form(row["accuracy"], "{:.1%}"),
            "points from the policy": points,
            "nats a token": _form(row["logprob_gap"], "{:.4f}"),
            "equal answers": _form(row["equal_answers"], "{:.0%}"),
            **{
                name: {True: "equal", False: "DIFFERS", None: "n/a"}[row[f"{name}_equal"]]
                for name in ("template", "tokens", "stops", "weights")
            },
            "GiB": _form(row["size_gib"], "{:.2f}"),
            "tokens/s": _form(row["tokens_per_s"], "{:.0f}"),
            "verdict": row["verdict"],
        }

    return [shown(row) for row in certificate["rows"]]


def _form(value: float | None, form: str) -> str:
    return "n/a" if value is None else form.format(value)


def measured_before(run: Run) -> list[Measured]:
    """The measurements that 05 has kept, to add further forms to."""
    file = run.need(run.evals / "certificate_answers.json", made_by="05_merge_export")
    return [Measured(**values) for values in read_json(file)]


def need_same(certificate: dict[str, Any]) -> None:
    """Raises BadInput where a form is not the model that was trained, and says what is off."""
    if certificate["failed"]:
        raise BadInput(
            "The exported model is not the one that was trained. " + certificate["verdict"],
            key="certificate",
        )


# --- the forms --------------------------------------------------------------------------------


def transformers_form(name: str, model: Any, folder: Path, config: Config, **facts: Any) -> Form:
    """A model loaded in transformers (or peft), with the tokenizer of its folder."""
    from transformers import AutoTokenizer

    from lib.engines import TransformersEngine
    from lib.models import load_tokenizer

    try:
        tokenizer = load_tokenizer(folder)
    except BadInput:  # no template, say: its row shows it
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    engine = TransformersEngine.around(model, tokenizer)
    ends = model.generation_config.eos_token_id
    return Form(
        name,
        "transformers",
        lambda prompts: _completions(engine.generate(list(prompts), greedy(config))),
        lambda prompt, answer: _logprobs(model, prompt, answer),
        lambda messages: chat_text(tokenizer, messages),
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        set(ends if isinstance(ends, list) else [ends]),
        rounding=ROUNDING if model.dtype.itemsize == 4 else ROUNDING_16,
        **facts,
    )


def _logprobs(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    import torch

    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    said = ids[0, len(prompt) :, None]
    return torch.log_softmax(logits, -1).gather(-1, said)[:, 0].tolist()


def greedy(config: Config) -> Sampling:
    return Sampling(max_tokens=config.completion_tokens, seed=config.seed)


def _completions(found: Sequence[Sequence[Any]]) -> list[tuple]:
    return [(c.text, list(c.token_ids), c.finish_reason == "length") for [c] in found]


def vllm_form(name: str, engine: Any, config: Config, **facts: Any) -> Form:
    """vLLM in this process; its adapter, where it takes one, is set on the engine before."""
    from vllm import SamplingParams

    def logprobs(prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        [output] = engine.llm.generate(
            [{"prompt_token_ids": [*prompt, *answer]}],
            SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0),
            use_tqdm=False,
            lora_request=engine._lora_request(),
        )
        scored = output.prompt_logprobs[len(prompt) :]
        return [at[token].logprob for at, token in zip(scored, answer, strict=True)]

    ends = engine.llm.llm_engine.model_config.try_get_generation_config().get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    return Form(
        name,
        "vllm",
        lambda prompts: _completions(engine.generate(list(prompts), greedy(config))),
        logprobs,
        lambda messages: chat_text(engine.tokenizer, messages),
        lambda text: engine.tokenizer(text, add_special_tokens=False)["input_ids"],
        {*ends, engine.tokenizer.eos_token_id},
        rounding=ROUNDING_16,
        **facts,
    )


def gguf_form(kind: str, file: Path, merged: Path, config: Config, served: Any) -> Form:
    """A GGUF file in llama.cpp: asked through its own template by `served`, scored in-process."""
    from lib.export.gguf import LlamaCpp, weight_faults

    llama, asked = LlamaCpp(file, config.max_seq_length), http_form(kind, served, config)
    return Form(
        f"gguf {kind}",
        "llama.cpp",
        asked.generate,
        llama.logprobs,
        asked.prompt,
        llama.tokens,
        llama.stops,
        weight_faults(file, merged),
        quantised=kind not in ("f16", "bf16"),
        size_gib=file.stat().st_size / 2**30,
    )


def http_form(name: str, served: Any, config: Config, **facts: Any) -> Form:
    """A server with an OpenAI-compatible address, asked as anyone would ask it."""
    from concurrent.futures import ThreadPoolExecutor

    def one(messages: Messages) -> tuple:
        choice = served.chat(messages, config.completion_tokens).choices[0]
        return choice.message.content or "", None, choice.finish_reason == "length"

    def generate(prompts: Sequence[Messages]) -> list[tuple]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(one, prompts))

    logprobs = served.logprobs if served.engine == "vLLM" else None
    return Form(
        name,
        f"{served.engine} over HTTP",
        generate,
        logprobs,
        served.prompt,
        rounding=ROUNDING_16,
        **facts,
    )
