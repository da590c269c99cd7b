"""Five minutes before a run: what would stop it or make it worthless, cheapest first.

    python -m lib.suite doctor demo

    for title, findings in examine(config, deep=False):
        print(title, *findings)

Each finding is one sentence that says what to do. What needs no model comes first (the stack, the
plan, the data, the rewards), then the tokenizer, then a few completions of the base model, the
proof that the engine samples from the policy that is trained, and two steps for the time.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from lib.config import ROOT, Config, resolve, side_config
from lib.errors import BadInput, Finding, first_line, nearest
from lib.hardware import GIB, Hardware, detect_hardware
from lib.memory import (
    EVALUATION_SHARE,
    SHAPES,
    ModelShape,
    check_fit,
    engine_share,
    evaluation_gib,
    read_shape,
)
from lib.models import EMBEDDED, is_hub_name, lora_targets, model_folder
from lib.process import quiet_process
from lib.proof import Sampled, proof_of_policy, sample_by_unsloth
from lib.rewards import learned_rewards, recipe_rewards
from lib.runs import Run, hushed, run_folder
from lib.stack import installation, read_stack, which_way
from lib.stats import detectable_difference, power_sentence
from lib.tasks import get_format, load_problems, make_rows

CUT = 0.5  # share of completions cut off at which nothing can be learned
PROBED = 16  # completions to see how long they are
SLOW_HOURS = 10


# --- the plan ---------------------------------------------------------------------------------


def check_inputs(config: Config, run: Run) -> None:
    """Rewards, data, model, memory and disk, the quickest first.

    Raises:
        BadInput: for the first that does not work.
    """
    recipe_rewards(config)
    get_format(config.prompt_format)
    load_problems(config)
    if config.side_task:
        load_problems(side_config(config))
    shape = find_shape(config)
    if shape:
        check_fit(config, shape, detect_hardware(config.gpu_memory_cap))
        run.need_disk(disk_needed(config, shape), f"A run of {config.model}")
    if not is_hub_name(config.model) or (ROOT / config.model).is_dir():
        check_files(config, model_folder(config))
    elif shape:
        _check_targets(config, set(shape.layer_sizes))


def find_shape(config: Config) -> ModelShape | None:
    """The model's size; None for one on the Hub that has not been fetched yet."""
    if config.model in SHAPES:
        return SHAPES[config.model]
    if is_hub_name(config.model) and not (ROOT / config.model).is_dir():
        return None
    return read_shape(model_folder(config))


def disk_needed(config: Config, shape: ModelShape) -> float:
    """GiB: checkpoints (two kept, a third while it is written) and the merged model."""
    trained = shape.parameters if config.full_finetuning else shape.lora_parameters(config.r)
    checkpoint = trained * (4 + 8)  # weights, and Adam's two moments
    converted = 2 * shape.parameters if config.model == EMBEDDED else 0
    return (3 * checkpoint + 2 * 2 * shape.parameters + converted) / GIB


def evaluation_fits(config: Config, hardware: Hardware) -> Iterator[Finding]:
    """Evaluation and merge hold the model in 16 bit, alone on the card."""
    shape = find_shape(config)
    gib = evaluation_gib(config, shape) if shape else 0
    if config.profile != "cpu" and gib > EVALUATION_SHARE * hardware.gpu_memory:
        yield Finding(
            "memory-evaluation",
            f"{config.model} in 16 bit needs about {gib:.1f} GiB to evaluate and merge and "
            f"{hardware.gpu} has {hardware.gpu_memory:.1f} GiB: run 04 and 05 on a larger card, or "
            f"choose a smaller model.",
            stops=False,
        )


def check_files(config: Config, folder: Path) -> None:
    """Raises BadInput where a shard is missing or target_modules names no layer of the model."""
    index = folder / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"] if index.is_file() else {}
    for file in dict.fromkeys(names.values()):
        if not (folder / file).is_file():
            raise BadInput(
                f"{config.model} lacks {file}, which its index names: fetch the model again.",
                key="missing-shard",
            )
    tensors = names or _tensors(folder)
    _check_targets(config, {name.split(".")[-2] for name in tensors if "layers." in name})


def _check_targets(config: Config, layers: set[str]) -> None:
    unknown = [] if config.full_finetuning else set(lora_targets(config)) - layers
    if layers and unknown:
        name = sorted(unknown)[0]
        raise BadInput(
            f"target_modules names {name!r}, which {config.model} has not: {nearest(name, layers)}",
            key="targets",
        )


def _tensors(folder: Path) -> list[str]:
    """Names in the headers of its safetensors files."""
    names = []
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            names += json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return names


# --- prompts and rewards ----------------------------------------------------------------------


def dialogue(tokenizer: Any, folder: Path) -> Iterator[Finding]:
    """The chat template, and that training, evaluation and export stop at the same tokens."""
    if not tokenizer.chat_template:
        yield Finding(
            "no-template",
            "The tokenizer has no chat template, so that prompts cannot be written: choose the "
            "model's instruct version, or put a chat_template.jinja into its folder.",
        )
        return
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "ANSWER"}]
    render = partial(tokenizer.apply_chat_template, tokenize=False)
    if render(turns[:1], add_generation_prompt=True) == render(turns[:1]):
        yield Finding(
            "no-generation-prompt",
            "The chat template writes nothing for add_generation_prompt, so that the model would "
            "continue the user's turn: use a template that opens the assistant's turn.",
        )
    ids = tokenizer(render(turns).rpartition("ANSWER")[2], add_special_tokens=False)["input_ids"]
    ends = _ends(folder) | {tokenizer.eos_token_id}
    if ids and not ends & set(ids):
        last = tokenizer.convert_ids_to_tokens(ids[0])
        yield Finding(
            "eos",
            f"The chat template ends a turn with {last!r} (id {ids[0]}), which is none of the ids "
            f"that end generation ({', '.join(map(str, sorted(filter(None, ends))))}): add it to "
            f"eos_token_id in generation_config.json.",
        )
    vocabulary = read_shape(folder).vocab
    if len(tokenizer) > vocabulary:
        yield Finding(
            "vocabulary",
            f"The tokenizer has {len(tokenizer)} tokens and the model {vocabulary} embeddings: "
            f"tokens were added without resizing the model; use the tokenizer it came with.",
        )


def _ends(folder: Path) -> set[int]:
    """The ids that end generation, by the model's files; what vLLM and an export go by."""
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        given = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
        ids |= set(given if isinstance(given, list) else [given]) - {None}
    return ids


def rewards_hold(
    rewards: Sequence[Callable], weights: Sequence[float], rows: Sequence[dict], form: Any
) -> Iterator[Finding]:
    """Rewards on made-up completions: they run, pay something, and take each one by itself."""
    from lib.engines import Completion
    from lib.rewards import score, temptations

    tries = [(row, text) for row in rows[:4] for text in temptations(row, form).values()]
    batch = [row for row, _ in tries]
    answers = [Completion(text, tuple(range(len(text.split()))), "stop") for _, text in tries]
    try:
        there = score(rewards, batch, answers)
        back = score(rewards, batch[::-1], answers[::-1])
    except Exception as error:
        yield Finding(
            "reward-raises",
            f"A reward fails on {len(tries)} made-up completions ({type(error).__name__}: "
            f"{first_line(error)}): try it in 02_reward_design.",
        )
        return
    for name, values in there.items():
        if repr(values) != repr(back[name][::-1]):
            yield Finding(
                "reward-order",
                f"Reward {name} pays the same completions differently in another order: let it "
                f"judge each by itself, or GRPO learns from chance.",
            )
    paid = [value for values in there.values() for value in values if value == value]
    if len(set(paid)) <= 1:
        yield Finding(
            "reward-constant",
            f"Every made-up completion earns {paid[0] if paid else 'nothing'}, the right answer "
            f"and an empty one alike, so that no group would differ: look at the rewards in "
            f"02_reward_design.",
        )


def power(held_out: int, changed: float = 0.5) -> Iterator[Finding]:
    """How small a gain today's held-out problems can show."""
    least = detectable_difference(held_out)
    if least is None or least > 0.1:
        yield Finding("power", power_sentence(held_out) + " Raise eval_problems.", stops=False)


# --- a few completions of the base model ------------------------------------------------------


def length(lengths: Sequence[int], config: Config) -> Iterator[Finding]:
    """How many completions are cut off at L = max_completion_length, 1.5 L and 2 L.

    Args:
        lengths: tokens of completions that had 2 L to end in.
    """
    limit = config.max_completion_length
    shares = {k: sum(n >= k * limit for n in lengths) / len(lengths) for k in (1, 1.5, 2)}
    if shares[1] <= CUT:
        return
    enough = next((int(k * limit) for k in (1.5, 2) if shares[k] <= CUT), None)
    advice = f"set it to {enough}" if enough else "raise it, or ask for shorter answers"
    yield Finding(
        "truncation",
        f"{shares[1]:.0%} of the base model's completions are longer than max_completion_length "
        f"{limit} ({shares[1.5]:.0%} than {1.5 * limit:.0f}, {shares[2]:.0%} than {2 * limit}), so "
        f"that most earn nothing for being cut off: {advice}.",
    )


def duration_of_run(seconds: float, config: Config) -> Iterator[Finding]:
    """What training takes at the speed of its first steps."""
    hours = seconds * config.max_steps / 3600
    if hours > SLOW_HOURS:
        yield Finding(
            "slow",
            f"At {seconds:.0f} s a step, {config.max_steps} steps take {hours:.0f} hours: lower "
            f"max_steps, max_completion_length or prompts_per_step for a first run.",
            stops=False,
        )


def cost(config: Config) -> str:
    """How much the policy writes in training and in evaluation."""
    written = config.max_steps * config.completions_per_step // config.num_iterations
    answers = config.eval_problems * (1 + config.eval_samples)
    evaluated = f"{2 * answers:,} answers" if answers else "each held-out problem"
    return (
        f"{config.max_steps:,} steps of {config.completions_per_step} completions: {written:,} "
        f"completions of at most {config.max_completion_length} tokens, "
        f"{written * config.max_completion_length / 1e6:.1f} M tokens; evaluation, before and "
        f"after: {evaluated} of at most {config.completion_tokens} tokens. "
        f"`python -m lib.suite doctor {config.name}` times two steps."
    )


# --- all of it --------------------------------------------------------------------------------

Stage = tuple[str, list[Finding]]


def examine(config: Config, deep: bool = True) -> Iterator[Stage]:
    """The stages in order, each with what it found; a stage that stops a run is the last.

    Args:
        deep: whether to load the model: prompts, a few completions, the proof, the time.
    """
    hardware = detect_hardware(config.gpu_memory_cap)
    stages = [
        ("stack", lambda: installation(config, hardware, read_stack())),
        ("rewards, data, model, memory, disk", lambda: _inputs(config)),
        ("what the rewards pay", lambda: _rewards(config)),
        ("power", lambda: power(len(load_problems(config)[2]))),
    ]
    with TemporaryDirectory() as folder:
        if deep:
            run = Run(Path(folder))
            quiet_process(run)  # before torch, Unsloth and vLLM are imported
            probe = Probe(config, run)
            stages += [
                ("template and ends", lambda: _dialogue(config)),
                ("signal and length", probe.completions),
                ("proof of the policy", probe.proof),
                ("time", probe.time),
            ]
        for title, stage in stages:
            with hushed(run) if deep else nullcontext():
                findings = _caught(stage)
            yield title, findings
            if any(finding.stops for finding in findings):
                return


def findings_table(stages: Sequence[Stage]) -> list[dict[str, str]]:
    """A row a stage: what was looked at, and what was found."""
    return [
        {"stage": title, "found": "\n".join(map(str, findings)) or "ok"}
        for title, findings in stages
    ]


def require_none(stages: Sequence[Stage]) -> None:
    """Raises BadInput for the first finding that would stop the run."""
    for _, findings in stages:
        for finding in findings:
            if finding.stops:
                raise BadInput(finding.sentence, finding.key)


def _caught(stage: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """The stage's findings; a BadInput on its way is one of them."""
    findings = []
    try:
        findings.extend(stage())
    except BadInput as error:
        findings.append(Finding(error.key or "input", str(error)))
    return findings


def _inputs(config: Config) -> Iterator[Finding]:
    folder = run_folder(config)
    # Nothing is made yet: the disk is asked where the folder will be.
    check_inputs(config, Run(next(p for p in (folder, *folder.parents) if p.is_dir())))
    yield from evaluation_fits(config, detect_hardware(config.gpu_memory_cap))


def _rewards(config: Config) -> Iterator[Finding]:
    if learned_rewards(config):
        return  # 06_reward_model trains it first
    rows, form = _rows(config), get_format(config.prompt_format)
    yield from rewards_hold(*recipe_rewards(config), rows, form)


def _rows(config: Config) -> list[dict]:
    _, training, _, examples = load_problems(config)
    return make_rows(training, config.prompt_format, config.shots, examples)


def _dialogue(config: Config) -> Iterator[Finding]:
    from lib.models import load_tokenizer

    folder = model_folder(config)
    yield from dialogue(load_tokenizer(folder), folder)


class Probe:
    """The policy and an engine beside it, for a few completions, the proof and two steps."""

    def __init__(self, config: Config, run: Run):
        """
        Args:
            run: a folder that is thrown away.
        """
        self.run = run
        longer = config.max_seq_length + config.max_completion_length
        self.config = config.model_copy(update={"max_seq_length": longer})
        self.policy = self.engine = None

    def completions(self) -> Iterator[Finding]:
        """Of the base model: are they cut off, and do the rewards tell them apart?"""
        from lib.engines import make_engine, training_sampling
        from lib.preflight import preflight

        task, training, _, examples = load_problems(self.config)
        rows = make_rows(training, self.config.prompt_format, self.config.shots, examples)
        asked = self.config.model_copy(update={"eval_engine": self.config.rollout_engine})
        self.engine = make_engine(asked, model_folder(self.config))
        sampling = training_sampling(self.config)
        limit = 2 * self.config.max_completion_length
        prompts = [row["prompt"] for row in rows[:PROBED]]
        answers = self.engine.generate(prompts, replace(sampling, max_tokens=limit))
        yield from length([len(answer.token_ids) for [answer] in answers], self.config)
        few = self.config.model_copy(update={"preflight_prompts": PROBED})
        rewards = [] if learned_rewards(few) else recipe_rewards(few)
        if rewards:
            found, _ = preflight(self.engine, rows, *rewards, few, task, training)
            if found.dead:
                yield Finding("signal", found.verdict)

    def proof(self) -> Iterator[Finding]:
        """That the engine samples from the policy that is trained."""
        from lib.engines import VllmEngine, chat_text, training_sampling
        from lib.models import live_weights, load_policy

        engine, on_gpu = self.engine, self.config.profile != "cpu"
        if on_gpu:  # which it had alone
            engine.close()
        self.policy = load_policy(self.config)
        tokenizer = self.policy.tokenizer
        texts = [chat_text(tokenizer, row["prompt"]) for row in _rows(self.config)[:4]]
        prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        if hasattr(self.policy.model, "vllm_engine"):
            yield from proof_of_policy(
                self.policy.model, partial(sample_by_unsloth, self.policy.model, prompts)
            )
            return
        if self.config.rollout_engine != "vllm" or not hasattr(engine, "complete"):
            return  # transformers generates with the very model that is trained
        if on_gpu:
            share = engine_share(self.config, detect_hardware().gpu_memory)
            engine = self.engine = VllmEngine(self.config, self.policy.folder, share=share)
        sampling = replace(
            training_sampling(self.config), temperature=1.0, max_tokens=16, logprobs=True
        )

        def sample() -> Sampled:
            engine.hand_over(live_weights(self.policy.model))
            answers = [answer for [answer] in engine.complete(prompts, sampling)]
            return [
                (prompt, list(answer.token_ids), list(answer.logprobs))
                for prompt, answer in zip(prompts, answers, strict=True)
            ]

        yield from proof_of_policy(self.policy.model, sample)

    def time(self) -> Iterator[Finding]:
        """By two steps of the training itself."""
        from lib.runs import read_jsonl
        from lib.training.run import make_trainer, train

        if self.engine is not None:
            self.engine.close()
        short = self.config.model_copy(
            update=dict(max_steps=2, warmup_steps=0, validation_steps=0, save_steps=100)
            | dict(resume=False, report_to=[], keep="last")
        )
        rewards, weights = recipe_rewards(short)
        train(
            make_trainer(self.policy, _rows(short), rewards, weights, short, self.run),
            short,
            self.run,
        )
        first, second = (row["seconds"] for row in read_jsonl(self.run.train_log))
        yield from duration_of_run(second - first, self.config)


def report(config: Config) -> int:
    """Print what `examine` finds, as it does; 0, or 2 where a run would fail or be worthless."""
    print(f"{config.name} on profile {config.profile}: {config.model} on {config.task}")
    print(which_way(config, read_stack()))
    code = 0
    for title, findings in examine(config):
        print(f"{title}: {'; '.join(map(str, findings)) or 'ok'}", flush=True)
        code = 2 if any(finding.stops for finding in findings) else code
    return code


def main(arguments: Sequence[str]) -> int:
    """`python -m lib.suite doctor RECIPE [-p KEY VALUE]…`"""
    parser = argparse.ArgumentParser(prog="python -m lib.suite doctor")
    parser.add_argument("recipe", help="a name in notebooks/recipes, or a file")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"))
    options = parser.parse_args(arguments)
    given = {key: yaml.safe_load(value) for key, value in options.p}
    try:
        return report(resolve(options.recipe, given))
    except BadInput as error:
        print(error)
        return 2
