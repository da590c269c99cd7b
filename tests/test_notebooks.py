"""The notebooks as files: readable cells, literal parameters, one way to begin."""

import ast
import json

import pytest

from lib.config import ROOT, Config

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path, kind=None):
    found = json.loads(path.read_text())["cells"]
    return [c for c in found if kind in (None, c["cell_type"])]


def source(cell) -> str:
    return "".join(cell["source"])


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

    def test_is_stripped(self, path):
        notebook = json.loads(path.read_text())
        assert "papermill" not in notebook["metadata"]
        for cell in cells(path, "code"):
            assert not cell["outputs"] and cell["execution_count"] is None
