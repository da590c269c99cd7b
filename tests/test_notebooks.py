"""The notebooks as files: readable cells, literal parameters, one way to begin."""

import ast
import json
from functools import cache

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from lib.config import ROOT, Config

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SCRIPTS = sorted(p for part in ("lib", "tests", "benchmarks") for p in (ROOT / part).rglob("*.py"))


def cells(path, kind=None):
    found = json.loads(path.read_text())["cells"]
    return [c for c in found if kind in (None, c["cell_type"])]


def source(cell) -> str:
    return "".join(cell["source"])


def imported_from_lib(text: str) -> set[tuple[str, str]]:
    """(module, name) of each `from lib.… import …`, wherever it stands."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    return {(n.module, a.name) for n in nodes if n.module.startswith("lib.") for a in n.names}


@cache
def known_to(module: str) -> set[str]:
    """The names at a module's top level."""
    place = ROOT / module.replace(".", "/")
    found = {path.stem for path in place.glob("*.py")}
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    for node in ast.parse(file.read_text()).body:
        found.update(alias.asname or alias.name for alias in getattr(node, "names", []))
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        else:
            found.update(n.id for n in ast.walk(node) if isinstance(n, ast.Name))
    return found


@pytest.mark.parametrize("path", [*NOTEBOOKS, *SCRIPTS], ids=lambda path: path.name)
def test_what_is_imported_from_lib_is_there(path):
    texts = [path.read_text()]
    if path in NOTEBOOKS:
        texts = [TransformerManager().transform_cell(source(c)) for c in cells(path, "code")]
    for module, name in set().union(*map(imported_from_lib, texts)):
        assert name in known_to(module), f"{module} has no {name}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_cells_are_short_and_narrow(self, path):
        for cell in cells(path, "code"):
            lines = source(cell).splitlines()
            assert len(lines) <= 30, source(cell)
            assert max(map(len, lines)) <= 79, max(lines, key=len)

    def test_text_leads_the_code(self, path):
        assert cells(path)[0]["cell_type"] == "markdown"
        assert len(cells(path, "markdown")) * 2 >= len(cells(path, "code"))
        assert source(cells(path)[-1]).startswith("## Next")
        assert len({cell["id"] for cell in cells(path)}) == len(cells(path))

    def test_begins_as_all_do(self, path):
        assert source(cells(path, "code")[0]) == source(cells(NOTEBOOKS[0], "code")[0])

    def test_one_parameters_cell_of_literals(self, path):
        tagged = [c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]
        assert len(tagged) == 1
        for node in ast.parse(source(tagged[0])).body:
            assert isinstance(node, ast.Assign)
            ast.literal_eval(node.value)
            name = node.targets[0].id
            assert name == "recipe" or name in Config.model_fields
