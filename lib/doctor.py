"""Five minutes before a run: what would stop it or make it worthless, cheapest first.

    python -m lib.suite doctor demo

    for title, findings in examine(config, deep=False):
        print(title, *findings)

Each finding is one sentence that says what to do. What needs no model comes first (the stack, the
plan, the data, the rewards), then the tokenizer, then a few completions of the base model, and two
steps of training: the proof that the engine samples from the policy that is trained, and the time.
"""

import os
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lib.adapters import block_layers
from lib.config import Config, side_config
from lib.engines import Completion, chat_text, make_engine, training_sampling
from lib.errors import BadInput, first_line, nearest
from lib.export import find_candidate, hub_token
from lib.export.gguf import need_llama_cpp
from lib.files import existing, read_jsonl, read_settings
from lib.hardware import GIB, Hardware, detect_hardware, free_share
from lib.memory import (
    EVALUATION_SHARE,
    SHAPES,
    ModelShape,
    check_fit,
    evaluation_gib,
    named_blocks,
    read_shape,
)
from lib.models import (
    EMBEDDED,
    is_hub_name,
    load_policy,
    load_tokenizer,
    lora_targets,
    model_folder,
)
from lib.process import duration, quiet_process
from lib.rewards import learned_rewards, recipe_rewards, score, temptations, totals
from lib.runs import Run, check_place, hushed, run_folder
from lib.stack import installation, read_stack
from lib.stats import detectable_difference, power_sentence
from lib.tasks import fitting_rows, get_format, load_problems, make_rows
from lib.tasks.prompts import end_ids
from lib.training import check_fills_a_step, set_aside

CUT = 0.5  # share of completions cut off at which nothing can be learned
PROBED = 16  # completions to see how long they are
SLOW_HOURS = 10
SLOW_REWARD = 0.5  # seconds a completion
USUAL = {"learning_rate": 1e-3, "beta": 0.5, "temperature": 1.5}  # at most, of adapters
WEAK = 0.1  # a gain that can be expected of a run; fewer problems than show it are too few
note = partial(BadInput, stops=False)  # of what a run can live with


# --- the plan ---------------------------------------------------------------------------------


def check_inputs(config: Config, run: Run) -> None:
    """Rewards, data, model, memory and disk, the quickest first; raises BadInput for the first that
    does not work."""
    recipe_rewards(config)
    get_format(config.prompt_format)
    if config.rollout_engine == "vllm" and config.vllm_mode == "server":
        _need_server(config)
    training, aside = set_aside(load_problems(config)[1], config)
    check_fills_a_step(training, config, aside)
    if config.push_to_hub:
        hub_token()
    if config.side_task:
        load_problems(side_config(config))
    shape = find_shape(config)
    if shape:
        check_fit(config, shape, detect_hardware(config.gpu_memory_cap))
        run.need_disk(disk_needed(config, shape), f"A run of {config.model}")
    layers = set(shape.layer_sizes) if shape else set()
    if _is_here(config):
        layers = block_layers(model_folder(config), shape.layers, shape.hidden)
    if not config.full_finetuning:
        _need_layers(config, shape, layers)
    if config.model == EMBEDDED:
        model_folder(config)  # unpacked here, where what it says is seen
    own = ("", "base", "adapter", "merged", *config.gguf)
    if config.candidate not in own and _is_here(config, config.candidate):
        find_candidate(config.candidate, config, run)


def _need_layers(config: Config, shape: ModelShape | None, layers: set[str]) -> None:
    """Raises BadInput where the adapter would be on layers that the model does not have (`layers`,
    where they are known), of which peft leaves out some without a word, or on none."""
    excluded = config.exclude_modules if isinstance(config.exclude_modules, list) else []
    for key, names in (("target_modules", lora_targets(config)), ("exclude_modules", excluded)):
        if layers and (unknown := sorted({*names} - layers)):
            said = f"{key} names {unknown[0]!r}, which {config.model} has not"
            raise BadInput(f"{said}: {nearest(unknown[0], layers)}", "targets")
    beyond = [number for number in named_blocks(config) if shape and number >= shape.layers]
    known = shape and set(lora_targets(config)) <= set(shape.layer_sizes)
    if beyond or (known and not shape.lora_parameters(config)):
        raise BadInput(
            f"layers_to_transform, layers_pattern and exclude_modules leave no layer to train, or "
            f"name one that is not there: {config.model} has blocks 0 to {shape.layers - 1}, named "
            f"layers.",
            key="targets",
        )


def _need_server(config: Config) -> None:
    """Raises BadInput where no vLLM answers: TRL waits four minutes, with the model loaded."""
    there = f"http://{config.vllm_server_host}:{config.vllm_server_port}"
    there = config.vllm_server_base_url or there
    try:
        urllib.request.urlopen(f"{there}/health", timeout=5).close()
    except (OSError, ValueError) as error:
        raise BadInput(
            f"No vLLM answers at {there} ({first_line(error)}): start it first, as "
            f"docs/training.md shows, or set vllm_mode to colocate.",
            key="no-server",
        ) from error


def _is_here(config: Config, model: str = "") -> bool:
    """Whether a model, the recipe's unless one is named, is a folder of this machine (the embedded
    one need not be unpacked to know its layers)."""
    model = model or config.model
    if model == EMBEDDED:
        return False
    return not is_hub_name(model) or config.find(model) is not None


def find_shape(config: Config) -> ModelShape | None:
    """The model's size; None for one on the Hub that has not been fetched yet."""
    if config.model in SHAPES:
        return SHAPES[config.model]
    return read_shape(model_folder(config)) if _is_here(config) else None


def disk_needed(config: Config, shape: ModelShape) -> float:
    """GiB: checkpoints (two kept, a third while it is written) and the merged model."""
    trained = shape.parameters if config.full_finetuning else shape.lora_parameters(config)
    checkpoint = trained * (4 + 8)  # weights, and Adam's two moments
    converted = 2 * shape.parameters if config.model == EMBEDDED else 0
    return (3 * checkpoint + 2 * 2 * shape.parameters + converted) / GIB


def evaluation_fits(config: Config, hardware: Hardware) -> Iterator[BadInput]:
    """Evaluation and merge hold the model in 16 bit, alone on the card."""
    shape = find_shape(config)
    gib = evaluation_gib(config, shape) if shape else 0
    if config.profile != "cpu" and gib > EVALUATION_SHARE * hardware.gpu_memory:
        yield note(
            f"{config.model} in 16 bit needs about {gib:.1f} GiB to evaluate and merge and "
            f"{hardware.gpu} has {hardware.gpu_memory:.1f} GiB: run 04 and 05 on a larger card, or "
            f"choose a smaller model.",
            "memory-evaluation",
        )
    if config.profile != "cpu" and (free := free_share()) < 0.9:
        yield note(
            f"Only {free:.0%} of the GPU's memory is free: end what holds the rest, such "
            f"as another notebook's kernel.",
            "busy-gpu",
        )


def unusual(config: Config) -> Iterator[BadInput]:
    """Settings that no run that learned has had."""
    for key, most in USUAL.items():
        if getattr(config, key) > most:
            yield note(f"{key} is {getattr(config, key)}: {most} is a lot.", "unusual")
    rise = config.warmup_steps * (config.max_steps if config.warmup_steps < 1 else 1)
    if rise > config.max_steps / 2:
        yield note(
            f"The learning rate rises for {rise:.0f} of {config.max_steps} steps, so that most of "
            f"the run learns little: lower warmup_steps, or raise max_steps.",
            "warm-up",
        )


def power(held_out: int) -> Iterator[BadInput]:
    """How small a gain today's held-out problems can show."""
    least = detectable_difference(held_out)
    if least is None or least > WEAK:
        yield note(power_sentence(held_out) + " For that, raise eval_problems.", "power")


# --- prompts, rewards, completions ------------------------------------------------------------


def dialogue(tokenizer: Any, folder: Path) -> Iterator[BadInput]:
    """That the chat template opens the model's turn, and that training, evaluation and export stop
    at the token that ends it."""
    words = {"user": "Name a Colour.", "assistant": "Blue, I think."}
    turns = [{"role": role, "content": text} for role, text in words.items()]
    render = partial(tokenizer.apply_chat_template, tokenize=False)
    opened = render(turns[:1], add_generation_prompt=True)
    try:
        head, _, tail = render(turns).rpartition(words["assistant"])
    except Exception as error:  # what a template raises
        sentence = f"The chat template refuses an answer ({first_line(error)}): use another."
        yield BadInput(sentence, "turn")
        return
    if opened == render(turns[:1]):
        yield BadInput(
            "The chat template writes nothing for add_generation_prompt, so that the model would "
            "continue the user's turn: use a template that opens the assistant's turn.",
            "no-generation-prompt",
        )
    elif words["user"] not in opened or not head.startswith(opened):
        yield BadInput(
            f"The chat template asks by {opened[-60:]!r}, which is not how it writes the question "
            f"and the beginning of an answer ({head[-60:]!r}): use a template that does.",
            "turn",
        )
    if "strftime_now" in str(tokenizer.chat_template):
        yield note(
            "The chat template writes today's date into every prompt, so that a model that is "
            "asked another day is asked something else.",
            "date",
        )
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    ends = {tokenizer.eos_token_id}
    for file in (folder / "generation_config.json", folder / "config.json"):  # as vLLM and exports
        ends |= {*end_ids(read_settings(file, {}).get("eos_token_id"))}
    if not ends & set(ids):
        last = f"{tokenizer.convert_ids_to_tokens(ids[0])!r} (id {ids[0]})" if ids else "nothing"
        yield BadInput(
            f"The chat template ends a turn with {last}, which is none of the ids that end "
            f"generation ({', '.join(map(str, sorted(ends - {None})))}): add it to eos_token_id "
            f"in generation_config.json.",
            "eos",
        )


def rewards_hold(
    rewards: Sequence[Callable], weights: Sequence[float], rows: Sequence[dict], form: Any
) -> Iterator[BadInput]:
    """Rewards on made-up completions: they run, pay a group the same in any order and company, and
    pay the right answer best."""
    tries = [(row, name, text) for row in rows[:4] for name, text in temptations(row, form).items()]
    started = time.monotonic()
    try:
        there, restless = _scored_twice(rewards, tries, len(tries) // len(rows[:4]))
        seconds = (time.monotonic() - started) / len(tries) / 2
    except (Exception, SystemExit) as error:
        yield BadInput(
            f"A reward fails on {len(tries)} made-up completions ({type(error).__name__}: "
            f"{first_line(error)}): try it in 02_reward_design.",
            "reward-raises",
        )
        return
    if seconds > SLOW_REWARD:
        yield note(
            f"The rewards take {seconds:.1f} s a completion, while training waits: make them "
            f"faster, or num_generations smaller.",
            "reward-slow",
        )
    if restless:
        yield BadInput(
            f"Reward {restless[0]} pays the same completions differently in another order or "
            f"beside other groups: let it judge each by itself, or GRPO learns from chance.",
            "reward-order",
        )
        return
    earned = totals(there, weights)
    if len(set(earned)) <= 1:
        yield BadInput(
            f"Every made-up completion earns {earned[0]}, the right "
            f"answer and an empty one alike, so that no group would differ: look at the rewards in "
            f"02_reward_design.",
            "reward-constant",
        )
        return
    paid = Counter()
    for (_, name, _), reward in zip(tries, earned, strict=True):
        paid[name] += reward
    better = max(("wrong", "nothing"), key=paid.get)
    if paid["right"] < paid[better]:
        yield note(
            f"A completion that is {better} earns more than the right answer, so that a run would "
            f"learn to write that: look at the rewards in 02_reward_design.",
            "reward-upside-down",
        )


def _scored_twice(
    rewards: Sequence[Callable], tries: Sequence[tuple], size: int
) -> tuple[dict[str, list], list[str]]:
    """What each reward pays, and those that pay the same differently where the order is turned and
    the first group has given way to one that writes no end."""
    batch = [row for row, *_ in tries]
    answers = [Completion(text, tuple(range(len(text.split()))), "stop") for *_, text in tries]
    first = size if len(tries) > size else 0
    others = [Completion("0 " * 500, tuple(range(1000)), "length")] * first
    there = score(rewards, batch, answers)
    beside = score(rewards, batch[::-1], answers[first:][::-1] + others)
    restless = [n for n, v in there.items() if repr(v[first:]) != repr(beside[n][::-1][first:])]
    return there, restless


def length(lengths: Sequence[int], config: Config) -> Iterator[BadInput]:
    """How many completions, which had 2 L tokens to end in, are longer than L =
    max_completion_length, 1.5 L and 2 L."""
    limit = config.max_completion_length
    shares = {k: sum(n >= k * limit for n in lengths) / len(lengths) for k in (1, 1.5, 2)}
    if shares[1] <= CUT:
        return
    enough = next((int(k * limit) for k in (1.5, 2) if shares[k] <= CUT), None)
    advice = f"set it to {enough}" if enough else "raise it, or ask for shorter answers"
    yield BadInput(
        f"{shares[1]:.0%} of the base model's completions are longer than max_completion_length "
        f"{limit} ({shares[1.5]:.0%} than {1.5 * limit:.0f}, {shares[2]:.0%} than {2 * limit}), so "
        f"that most earn nothing for being cut off: {advice}.",
        "truncation",
    )


def duration_of_run(seconds: float, config: Config) -> Iterator[BadInput]:
    """What training takes at the speed of its first steps."""
    whole = seconds * config.max_steps
    slow = whole / 3600 > SLOW_HOURS
    less = ": lower max_steps, max_completion_length or prompts_per_step for a first run."
    takes = f"At {seconds:.1f} s a step, {config.max_steps} steps take {duration(whole)}"
    yield note(takes + (less if slow else "."), "slow" if slow else "time")


def cost(config: Config) -> str:
    """How much the policy writes in training and in evaluation."""
    written = config.max_steps * config.completions_per_step // config.num_iterations
    answers = config.eval_problems * (1 + config.eval_samples)
    evaluated = f"{2 * answers:,} answers" if answers else "each held-out problem"
    return (
        f"{config.max_steps:,} steps of {config.completions_per_step} completions: {written:,} "
        f"completions of at most {config.max_completion_length} tokens, "
        f"{written * config.max_completion_length:,} tokens; evaluation, before and "
        f"after: {evaluated} of at most {config.completion_tokens} tokens. "
        f"`python -m lib.suite doctor {config.name}` times two steps."
    )


# --- all of it --------------------------------------------------------------------------------

Stage = tuple[str, list[BadInput]]


def examine(config: Config, deep: bool = True) -> Iterator[Stage]:
    """The stages in order, each with what it found; a stage that stops a run is the last. `deep`
    loads the model: prompts, a few completions, two steps with the proof."""
    hardware = detect_hardware(config.gpu_memory_cap)
    stages: dict[str, Callable[[Config], Iterator[BadInput]]] = {
        "stack": lambda config: installation(config, hardware, read_stack()),
        "rewards, data, model, memory, disk": _inputs,
        "what the rewards pay": _rewards,
        "power": lambda config: power(len(load_problems(config)[2])),
    }
    with TemporaryDirectory() as folder:
        run = Run(Path(folder))
        if deep:
            quiet_process(run, config.num_processes)  # before torch, Unsloth and vLLM are imported
            stages |= {"template and ends": _dialogue}
            stages |= {"signal and length": partial(alone, _completions, run)}
            stages |= {"proof of the policy, time": partial(alone, _two_steps, run)}
        for title, stage in stages.items():
            findings = []
            try:
                with hushed(run) if deep else nullcontext():
                    findings.extend(stage(config))
            except BadInput as error:
                findings.append(error)
            yield title, findings
            if any(finding.stops for finding in findings):
                return


def alone(stage: Callable[..., Iterator[BadInput]], run: Run, config: Config) -> list[BadInput]:
    """What a stage finds in a process of its own, which gives the GPU back to the next one, and
    where Unsloth is imported before what it patches."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_findings, stage, run, config).result()


def _findings(stage: Callable[..., Iterator[BadInput]], run: Run, config: Config) -> list[BadInput]:
    with hushed(run):
        return list(stage(run, config))


def findings_table(stages: Sequence[Stage]) -> list[dict[str, str]]:
    """A row a stage: what was looked at, and what was found."""
    return [{"stage": name, "found": "\n".join(map(str, of)) or "ok"} for name, of in stages]


def require_none(stages: Sequence[Stage]) -> None:
    """Raises BadInput for the first finding that would stop the run."""
    for finding in (finding for _, findings in stages for finding in findings):
        if finding.stops:
            raise finding


def _inputs(config: Config) -> Iterator[BadInput]:
    check_place(config)
    # Nothing is made yet: the disk is asked where the folder will be.
    check_inputs(config, Run(existing(run_folder(config))))
    if config.gguf:
        try:
            need_llama_cpp()
        except BadInput as missing:
            yield note(str(missing), missing.key)
    yield from evaluation_fits(config, detect_hardware(config.gpu_memory_cap))
    yield from unusual(config)


def _rewards(config: Config) -> Iterator[BadInput]:
    if not learned_rewards(config):  # which 06_reward_model trains first
        form = get_format(config.prompt_format)
        yield from rewards_hold(*recipe_rewards(config), _rows(config, judged=True), form)


def _rows(config: Config, judged: bool = False) -> list[dict]:
    """Of the training problems; with `judged` of those alone whose gold answer can be read."""
    _, training, _, examples = load_problems(config)
    training = [problem for problem in training if problem.readable or not judged]
    return make_rows(training, config.prompt_format, config.shots, examples)


def _dialogue(config: Config) -> Iterator[BadInput]:
    folder = model_folder(config)
    tokenizer = load_tokenizer(folder)
    yield from dialogue(tokenizer, folder)
    check_fills_a_step(fitting_rows(_rows(config), tokenizer, config)[0], config)


def _completions(run: Run, config: Config) -> Iterator[BadInput]:
    """A few of the base model: are they cut off, and do the rewards tell them apart?"""
    from lib.preflight import preflight

    probed = dict(
        max_seq_length=config.max_seq_length + config.max_completion_length,
        preflight_prompts=PROBED,
        eval_engine=config.rollout_engine,
    )
    probe = config.model_copy(update=probed)
    task, training, _, _ = load_problems(probe)
    rows = _rows(probe)
    engine = make_engine(probe, model_folder(probe), as_trained=True)
    longer = replace(training_sampling(probe), max_tokens=2 * config.max_completion_length)
    answers = engine.generate([row["prompt"] for row in rows[:PROBED]], longer)
    yield from length([len(answer.token_ids) for [answer] in answers], probe)
    if not learned_rewards(probe):
        result, _ = preflight(engine, rows, *recipe_rewards(probe), probe, task, training)
        if result.dead:
            yield BadInput(result.verdict, "signal")


def _two_steps(run: Run, config: Config) -> Iterator[BadInput]:
    """Of the training itself, with a batch for each. Its engine proves at the first hand-over that
    it has the policy; Unsloth's, whose weights are the policy's, is asked here."""
    from lib.training import make_trainer, train
    from lib.training.rollouts import proof_of_policy, sample_by_unsloth

    updates = config.num_iterations
    few = dict(max_steps=2 * updates, warmup_steps=0, validation_steps=0, save_steps=100)
    few |= dict(resume=False, report_to=[], keep="last")
    short = config.model_copy(update=few)
    policy, rows = load_policy(short), _rows(short)
    if hasattr(policy.model, "vllm_engine"):
        texts = [chat_text(policy.tokenizer, row["prompt"]) for row in rows[:4]]
        prompts = policy.tokenizer(texts, add_special_tokens=False)["input_ids"]
        yield from proof_of_policy(policy.model, partial(sample_by_unsloth, policy.model, prompts))
        del os.environ["UNSLOTH_RETURN_LOGITS"]  # the steps are timed as training takes them
    train(make_trainer(policy, rows, *recipe_rewards(short), short, run), short, run)
    first, second = (row["seconds"] for row in read_jsonl(run.train_log))
    yield from duration_of_run((second - first) / updates, config)
