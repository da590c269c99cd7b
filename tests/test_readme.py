"""What README and docs say can be done: links, recipes, keys and commands are there."""

import re
import shlex
import subprocess
from functools import cache
from importlib import import_module

import pytest

from lib.config import ROOT, Config, find_recipe, read_recipe
from lib.keys import ALIASES, DECIDED
from lib.suite import COMMANDS, choose_notebooks, configure, main, read_arguments
from tests.conftest import python

README = ROOT / "README.md"
PAGES = [README, ROOT / "AGENTS.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = ROOT / "docs" / "keys.md"  # tests/test_keys.py
STANDS_FOR = {"RECIPE": "demo", "RUN": "outputs/demo", "key": "seed", "value": "1"}


def commands(page) -> list[list[str]]:
    """The words of each command in a page's code blocks, and of each `python -m` in its text."""
    text = page.read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.S | re.M)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    lines += re.findall(r"`((?:\.venv/bin/)?python -m lib\.[^`]+)`", text)
    words = [shlex.split(line, comments=True) for line in lines]
    return [[STANDS_FOR.get(w, w) for w in each if w != "…"] for each in words if each]


def python_module(module: str, *arguments: str) -> None:
    """By the module's own parser. The chain: tests/test_suite.py and nbmake run it with `ci`;
    doctor, regrade and sweep: tests/test_doctor.py, test_evaluation.py, test_sweep.py."""
    if module != "lib.suite":
        import_module(module)
    elif arguments and arguments[0] == "regrade":
        assert len(arguments) == 2
    elif arguments and arguments[0] in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([arguments[0], "--help"])
        assert ended.value.code == 0
        if arguments[0] == "doctor":
            find_recipe(arguments[1])
    else:
        options, given = read_arguments(list(arguments))
        choose_notebooks(configure(options, given), options.only)


def make(target: str) -> None:
    """What it would run, without running it; CI runs `make test`."""
    dry = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert dry.returncode == 0 and dry.stdout, dry.stderr


PARSE = """
import sys
from pip._internal.commands import create_command
print(*create_command(sys.argv[1]).parse_args(sys.argv[2:])[0].requirements)
"""


def pip(command: str, *arguments: str) -> None:
    """By pip's own parser; tests/test_locks.py reads what stands in the lock. In a process of its
    own: setuptools takes an imported pip for pip at work, and vLLM cannot be imported after it."""
    files = python("-c", PARSE, command, *arguments).split()
    assert all((ROOT / file).is_file() for file in files)


def papermill(*arguments: str) -> None:
    """By papermill's own parser; tests/test_suite.py runs notebooks by it."""
    from papermill.__main__ import papermill as command

    given = command.make_context("papermill", list(arguments)).params
    assert (ROOT / given["notebook_path"]).is_file()
    for file in given["parameters_file"]:
        read_recipe(ROOT / file)


def jupyter(application: str) -> None:
    """tests/test_jupyterlab.py starts it and runs notebooks in it."""
    import_module(f"jupyter{application}")


CHECKS = {"make": make, "pip": pip, "papermill": papermill, "jupyter": jupyter}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_one_that_its_program_takes(page, capsys):
    for first, *arguments in commands(page):
        program = first.removeprefix(".venv/bin/")
        if program.startswith("python") and arguments[0] == "-m":
            python_module(*arguments[1:])
        else:
            CHECKS.get(program, unknown)(*arguments)


def unknown(*arguments: str) -> None:
    raise AssertionError(f"no test knows how to check this command: … {arguments}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", [p for p in PAGES if p != GENERATED], ids=lambda page: page.name)
def test_every_key_named_is_one_of_today(page):
    """And any other such name is one of the code's, or of the libraries'."""
    named = set(re.findall(r"`((?!sm_)[a-z][a-z0-9]*(?:_[a-z0-9]+)+)[`: =]", page.read_text()))
    assert named & {*ALIASES} == set()
    assert named <= words_of_code() | {*DECIDED, *Config.model_fields}


@cache
def words_of_code() -> set[str]:
    folders = ("lib", "notebooks", "tools", "benchmarks", "tests")
    files = [f for folder in folders for f in (ROOT / folder).rglob("*.*")]
    code = [f.read_text() for f in files if f.suffix in (".py", ".ipynb", ".yaml", ".jsonl")]
    return set(re.findall(r"\w+", "\n".join(code)))


def test_help_lists_the_recipes(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0 and "lfm2.5-1.2b_gsm8k" in capsys.readouterr().out


def test_readme_is_short():
    """About 900 words: what a person reads before the first command."""
    text = re.sub(r"```.*?```|^\|.*$", "", README.read_text(), flags=re.S | re.M)
    assert len(text.split()) < 900
