"""What README and docs say can be done: links, recipes, options and commands are there."""

import re
import shlex
import subprocess
import sys

import pytest

from lib.config import ROOT, find_recipe, resolve
from lib.suite import COMMANDS, main

PAGES = [ROOT / "README.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RECIPES = {"RECIPE", "RUN", "FILE.yaml"}


def commands() -> list[tuple[str, str]]:
    """(page, arguments) of each `python -m lib.…` in a page's code."""
    pattern = r"python -m (lib\.[a-z_.]+ ?[^`\n#|]*)"
    return [
        (page.name, found.strip())
        for page in PAGES
        for found in re.findall(pattern, page.read_text())
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize(("page", "command"), commands(), ids=lambda text: text[:40])
def test_commands_name_what_is_there(page, command):
    module, *arguments = shlex.split(command)
    assert (ROOT / f"{module.replace('.', '/')}.py").is_file() or (
        ROOT / module.replace(".", "/") / "__main__.py"
    ).is_file()
    if module != "lib.suite" or not arguments or arguments[0].startswith("-"):
        return
    recipe = arguments[1] if arguments[0] in COMMANDS else arguments[0]
    if recipe not in NOT_RECIPES and not recipe.startswith("outputs/") and recipe.isprintable():
        if arguments[0] in ("regrade", "sweep"):
            return
        find_recipe(recipe)
        if "-p" in arguments:
            key = arguments[arguments.index("-p") + 1]
            assert key == "key" or hasattr(resolve("demo", {"profile": "cpu"}), key)


def test_help_lists_the_recipes(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0 and "lfm2.5-1.2b_gsm8k" in capsys.readouterr().out


def test_the_check_of_ones_own_data_says_what_it_saw():
    done = subprocess.run(
        [sys.executable, "-m", "lib.preflight", "mine"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "mine.csv" in done.stdout or "problems" in done.stdout


def test_readme_is_short():
    """About 900 words: what a person reads before the first command."""
    text = re.sub(r"```.*?```|^\|.*$", "", README, flags=re.S | re.M)
    assert len(text.split()) < 900


README = PAGES[0].read_text()
