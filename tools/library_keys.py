"""Write down which fields the installed libraries have, so that a recipe is checked without them.

    python -m tools.library_keys          # writes lib/library_keys.json

A recipe's keys are the fields of TRL's GRPOConfig and peft's LoraConfig, and importing either
takes seconds: their sources are read instead. tests/test_keys.py holds the file against what is
installed.
"""

import ast
import json
import re
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent.parent / "lib" / "library_keys.json"
# Class → the file it is in; a class's fields are those of its bases in this table, and its own.
SOURCES = {
    "GRPOConfig": "trl/trainer/grpo_config.py",
    "_BaseConfig": "trl/trainer/base_config.py",
    "TrainingArguments": "transformers/training_args.py",
    "LoraConfig": "peft/tuners/lora/config.py",
    "SamplingParams": "vllm/sampling_params.py",
}
ENUMS = ("transformers/trainer_utils.py", "transformers/training_args.py")
# What a recipe can hold; fields of other types (configuration objects) are left out.
PLAIN = ("int", "float", "bool", "str", "list", "dict", "None")


def library_keys() -> dict[str, Any]:
    """Of each library its version and its fields: name → type, default, what it is for."""
    return {
        "trl": {"version": version("trl"), "fields": fields("GRPOConfig")},
        "peft": {"version": version("peft"), "fields": fields("LoraConfig")},
        "sampling": sorted(name for name, *_ in _declared("SamplingParams") if name[0] != "_"),
    }


def fields(name: str) -> dict[str, list]:
    """A dataclass's fields that a recipe can hold: type, default, and its first sentence."""
    enums, described = _enums(), {}
    for field, annotation, value, helps in _declared(name):
        kind = _type(annotation, enums)
        if kind:
            described[field] = [kind, _default(value, enums), helps]
    return described


def _tree(file: str) -> ast.Module:
    package, _, rest = file.partition("/")
    folder = Path(find_spec(package).submodule_search_locations[0])
    return ast.parse((folder / rest).read_text(encoding="utf-8"))


def _declared(name: str) -> Iterator[tuple[str, ast.expr, ast.expr | None, str]]:
    """Field, annotation, default and description, of the bases first."""
    tree = _tree(SOURCES[name])
    cls = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    for base in cls.bases:
        if isinstance(base, ast.Name) and base.id in SOURCES:
            yield from _declared(base.id)
    text = ast.get_docstring(cls) or ""
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
            field = node.target.id
            yield field, node.annotation, node.value, _description(field, node.value, text)


def _description(field: str, value: ast.expr | None, docstring: str) -> str:
    """The first sentence of its help, or of the class's docstring on it."""
    words = ""
    for part in ast.walk(value) if value else ():
        if isinstance(part, ast.Dict) and part.keys and ast.unparse(part.keys[0]) == "'help'":
            words = "".join(c.value for c in ast.walk(part.values[0]) if _is_text(c))
    if not words:
        found = re.search(rf"^ *{field} \(.*\):?\n((?: {{4,}}.*\n?)+)", docstring, re.M)
        words = found[1] if found else ""
    return re.split(r"(?<=[\w`)'\"])[.:;] ", " ".join(words.split()))[0].rstrip(".:")


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _enums() -> dict[str, dict[str, Any]]:
    """Enumeration → member → value."""
    return {
        cls.name: {
            node.targets[0].id: node.value.value
            for node in cls.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        }
        for file in ENUMS
        for cls in _tree(file).body
        if isinstance(cls, ast.ClassDef) and "Enum" in "".join(map(ast.unparse, cls.bases))
    }


def _type(hint: ast.expr, enums: dict[str, dict]) -> str:
    """The type as Python writes it; "" where a recipe cannot hold it."""
    if isinstance(hint, ast.Constant) and isinstance(hint.value, str):
        return _type(ast.parse(hint.value, mode="eval").body, enums)
    text = ast.unparse(hint)
    if isinstance(hint, ast.BinOp):
        return _union([hint.left, hint.right], enums)
    if isinstance(hint, ast.Subscript):
        outer, inner = ast.unparse(hint.value).split(".")[-1], hint.slice
        parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        if outer == "Optional":
            return _union([*parts, ast.Constant(None)], enums)
        if outer == "Union":
            return _union(parts, enums)
        if outer == "Literal":
            return text[text.index("Literal") :]
        each = [_type(part, enums) for part in parts]
        return f"{outer.lower()}[{', '.join(each)}]" if all(each) else outer.lower()
    if text in enums:
        return f"Literal{list(enums[text].values())!r}"
    return text if text in PLAIN else ""


def _union(parts: list[ast.expr], enums: dict[str, dict]) -> str:
    plain = [each for part in parts for each in _type(part, enums).split(" | ") if each]
    if any(each.startswith("Literal") for each in plain):
        plain = [each for each in plain if each != "str"]  # an enumeration, or its value
    return " | ".join(dict.fromkeys(plain)) if plain != ["None"] else ""


def _default(value: ast.expr | None, enums: dict[str, dict]) -> Any:
    """The default as JSON holds it; None where code makes it."""
    if isinstance(value, ast.Call):
        given = {word.arg: word.value for word in value.keywords}
        if "default_factory" in given:
            return {"list": [], "dict": {}}.get(ast.unparse(given["default_factory"]))
        value = given.get("default")
    if isinstance(value, ast.Attribute) and ast.unparse(value.value) in enums:
        return enums[ast.unparse(value.value)][value.attr]
    try:
        return ast.literal_eval(value) if value is not None else None
    except ValueError:
        return None


def as_text(keys: dict[str, Any]) -> str:
    """JSON with a line a field, so that a change of versions can be read as a diff."""
    lines = ["{"]
    for library in ("trl", "peft"):
        lines.append(f' "{library}": {{"version": "{keys[library]["version"]}", "fields": {{')
        rows = keys[library]["fields"].items()
        lines.append(",\n".join(f"  {_json(name)}: {_json(row)}" for name, row in rows))
        lines.append(" }},")
    return "\n".join([*lines, f' "sampling": {_json(keys["sampling"])}', "}"]) + "\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    FILE.write_text(as_text(library_keys()), encoding="utf-8")
