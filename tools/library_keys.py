"""Write down which fields the installed libraries have, so that a recipe is checked without them.

    python -m tools.library_keys          # writes lib/library_keys.json

A recipe's keys are the fields of TRL's GRPOConfig and peft's LoraConfig, and importing either takes
seconds. tests/test_keys.py holds the file against what is installed.
"""

import ast
import json
import re
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from enum import Enum
from importlib.metadata import version
from importlib.util import find_spec
from inspect import get_annotations
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

FILE = Path(__file__).resolve().parent.parent / "lib" / "library_keys.json"
# What a recipe can hold; fields of other types (configuration objects) are left out.
PLAIN = {int: "int", float: "float", bool: "bool", str: "str", list: "list", dict: "dict"}
PLAIN |= {tuple: "tuple", NoneType: "None"}


def library_keys() -> dict[str, Any]:
    """Of each library its version and its fields: name → type, default, what it is for; and the
    types of models that transformers loads as causal language models."""
    from peft import LoraConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from trl import GRPOConfig

    return {
        "trl": {"version": version("trl"), "fields": described(GRPOConfig)},
        "peft": {"version": version("peft"), "fields": described(LoraConfig, own=True)},
        "sampling": sorted(_sampling()),
        "causal": sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    }


def described(cls: type, own: bool = False) -> dict[str, list]:
    """A dataclass's fields (its own or all) that a recipe can hold: type, default, and its first
    sentence."""
    hints = get_type_hints(cls)
    rows = {f.name: [_type(hints[f.name]), _default(f), _description(cls, f)] for f in fields(cls)}
    known = get_annotations(cls) if own else rows
    return {name: row for name, row in rows.items() if row[0] and name in known}


def _sampling() -> Iterable[str]:
    """The fields of vLLM's SamplingParams, from its source: importing vLLM takes half a minute."""
    source = Path(find_spec("vllm").origin).with_name("sampling_params.py").read_text()
    [cls] = [n for n in ast.parse(source).body if getattr(n, "name", "") == "SamplingParams"]
    names = (node.target.id for node in cls.body if isinstance(node, ast.AnnAssign))
    return (name for name in names if name[0] != "_")


def _type(hint: Any) -> str:
    """The type as Python writes it; "" where a recipe cannot hold it."""
    outer, inner = get_origin(hint), get_args(hint)
    if outer in (Union, UnionType):
        parts = [each for part in inner for each in _type(part).split(" | ") if each]
        if any(each.startswith("Literal") for each in parts):
            parts = [each for each in parts if each != "str"]  # an enumeration, or its value
        # typing takes a union for another that names the same in another order.
        parts = sorted(set(parts), key=lambda part: (part == "None", part))
        return " | ".join(parts) if parts != ["None"] else ""
    if outer is Literal:
        return f"Literal{list(inner)!r}"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"Literal{[member.value for member in hint]!r}"
    name = PLAIN.get(outer or hint, "")
    each = [_type(part) for part in inner]
    return f"{name}[{', '.join(each)}]" if name and each and all(each) else name


def _default(each: Field) -> Any:
    """The default as JSON holds it; None where code makes it."""
    if each.default_factory in (list, dict):
        return each.default_factory()
    if isinstance(each.default, Enum):
        return each.default.value
    return None if each.default is MISSING or each.name == "optim" else each.default


def _description(cls: type, each: Field) -> str:
    """The first sentence of its help, or of its class's docstring on it."""
    words = each.metadata.get("help", "")
    if not words:
        own = next(c for c in cls.__mro__ if each.name in get_annotations(c))
        pattern = rf"^ *{each.name} \(.*\):?\n((?: {{4,}}.*\n?)+)"
        found = re.search(pattern, own.__doc__ or "", re.MULTILINE)
        words = found[1] if found else ""
    return re.split(r"(?<=[\w`)'\"])[.:;] ", " ".join(words.split()))[0].rstrip(".:")


def as_text(keys: dict[str, Any]) -> str:
    """JSON with a line a field, so that a change of versions can be read as a diff."""
    lines = ["{"]
    for library in ("trl", "peft"):
        lines.append(f' "{library}": {{"version": "{keys[library]["version"]}", "fields": {{')
        rows = keys[library]["fields"].items()
        lines.append(",\n".join(f"  {_json(name)}: {_json(row)}" for name, row in rows))
        lines.append(" }},")
    lines.append(",\n".join(f' "{name}": {_json(keys[name])}' for name in ("sampling", "causal")))
    return "\n".join([*lines, "}"]) + "\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    FILE.write_text(as_text(library_keys()), encoding="utf-8")
