"""A trained folder on samples of its task, and in conversation.

>>> example_eval("outputs/demo/adapter", n=4)   # question, expected, answer, right, reward
$ python -m lib.export outputs/demo/merged "Calculate 9 + 8."
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.config import ROOT, Config
from lib.engines import Sampling, TransformersEngine
from lib.errors import BadInput
from lib.export.hub import conversation
from lib.export.merge import is_adapter, load_merged
from lib.files import read_json, write_jsonl
from lib.models import load_tokenizer, model_folder
from lib.rewards import recipe_rewards
from lib.tasks import fitting_rows, get_format, load_problems, make_rows
from lib.tasks.judging import judge


def run_config(path: Path) -> Config:
    """The configuration of the run that a folder (adapter, merged, checkpoint …) lies in.

    Raises:
        BadInput: it lies in no run's folder.
    """
    for folder in (path, *path.parents):
        if (folder / "run.json").is_file():
            recorded = read_json(folder / "run.json")["config"]
            known = {k: v for k, v in recorded.items() if k in Config.model_fields}
            return Config.model_construct(**known)  # it was checked when the run began
    raise BadInput(f"{path} lies in no run's folder (one with run.json).", key="no-run")


def load_trained(path: Path, config: Config) -> tuple[Any, Any]:
    """The model and its tokenizer, an adapter merged into its base."""
    base = model_folder(config)
    model = load_merged(base, path).eval()
    return model, load_tokenizer(base if is_adapter(path) else path)


def answer(path: Path, questions: Sequence[str]) -> list[str]:
    """Greedy answers to questions that are asked as in training (`prompt.json`)."""
    config = run_config(path)
    model, tokenizer = load_trained(path, config)
    engine = TransformersEngine.around(model, tokenizer)
    sampling = Sampling(max_tokens=config.completion_tokens, seed=config.seed)
    found = engine.generate([conversation(path, question) for question in questions], sampling)
    return [completion.text for [completion] in found]


def example_eval(path: str | Path, n: int = 8) -> list[dict[str, Any]]:
    """A trained folder on `n` held-out samples of its task.

    Returns: a row a sample: question, expected, answer, right (None for texts), and each reward.
    """
    path = _folder(path)
    config = run_config(path)
    task, _, problems, examples = load_problems(config)
    problems = problems[:n]
    rows = make_rows(problems, config.prompt_format, config.shots, examples)
    model, tokenizer = load_trained(path, config)
    rows, _ = fitting_rows(rows, tokenizer, config, config.completion_tokens)
    by_id = {problem.id: problem for problem in problems}
    problems = [by_id[row["id"]] for row in rows]
    engine = TransformersEngine.around(model, tokenizer)
    sampling = Sampling(max_tokens=config.completion_tokens, seed=config.seed)
    answers = [c for [c] in engine.generate([row["prompt"] for row in rows], sampling)]
    tag = get_format(config.prompt_format).answer_tag
    rewards = reward_table(config, rows, [a.text for a in answers])
    return [
        {
            "question": problem.question,
            "expected": problem.answer,
            "answer": a.text,
            "right": judge(task, problem, a.text, a.finish_reason == "length", tag).get("strict"),
            **paid,
        }
        for problem, a, paid in zip(problems, answers, rewards, strict=True)
    ]


def reward_table(config: Config, rows: Sequence[dict], answers: Sequence[str]) -> list[dict]:
    """What each of the recipe's rewards pays for each answer, before its weight."""
    functions, _ = recipe_rewards(config)
    columns = {key: [row[key] for row in rows] for key in rows[0] if key != "prompt"}
    completions = [[{"role": "assistant", "content": text}] for text in answers]
    prompts = [row["prompt"] for row in rows]
    paid = {
        function.__name__: function(prompts=prompts, completions=completions, **columns)
        for function in functions
    }
    return [dict(zip(paid, values, strict=True)) for values in zip(*paid.values(), strict=True)]


def write_samples(config: Config, file: Path, n: int = 20) -> list[dict]:
    """`sample_prompts.jsonl`: held-out questions with the conversation and the gold answer."""
    _, _, problems, examples = load_problems(config)
    rows = make_rows(problems[:n], config.prompt_format, config.shots, examples)
    write_jsonl(file, rows)
    return rows


def _folder(path: str | Path) -> Path:
    for folder in (Path(path).expanduser(), ROOT / path):
        if folder.is_dir():
            return folder.resolve()
    raise BadInput(f"There is no folder {path}.", key="no-folder")


def main(arguments: Sequence[str]) -> None:
    if len(arguments) < 2:
        raise SystemExit('usage: python -m lib.export FOLDER "QUESTION" …')
    try:
        for text in answer(_folder(arguments[0]), arguments[1:]):
            print(text)
    except BadInput as error:
        raise SystemExit(str(error)) from error
