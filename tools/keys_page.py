"""Write docs/keys.md: every key of a recipe with its default and one line, from the code.

python -m tools.keys_page
"""

import re
from pathlib import Path

from lib.config import Config, Keys
from lib.keys import ALIASES, DECIDED, DEFAULTS, LIBRARY, LORA, PEFT, TRL

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "keys.md"
HEAD = """# Keys of a recipe

Made from the code by `python -m tools.keys_page`.

A recipe is a flat YAML file; each key is also a papermill parameter and an argument of the runner
(`-p KEY VALUE`). Default < hardware profile < recipe < `by_profile` < parameter. A key that does
not exist, a wrong type or an impossible pair stops at once, in one sentence.
"""
FIELD = re.compile(r"^    (\w+): .*?(?:  # (.*))?$")


def page() -> str:
    parts = [HEAD, *_own()]
    trl = [name for name in TRL if name in Config.model_fields and name not in Keys.model_fields]
    version = LIBRARY["trl"]["version"]
    parts += [
        f"\n## Of TRL's GRPOConfig ({version})\n\n"
        "Under its own name, as TRL describes it. Where the suite's default is not TRL's, the "
        "reason stands beside it.\n",
        _table([(name, _default(name), _described(name, TRL)) for name in trl]),
        f"\n## Of peft's LoraConfig ({LIBRARY['peft']['version']})\n",
        _table([(name, _default(name), _described(name, PEFT)) for name in LORA]),
        "\n## What the suite sets itself\n\nFields of these libraries that a recipe cannot hold, "
        "and what to set instead.\n",
        _table([(name, "", text) for name, text in DECIDED.items()]),
        "\n## Old names\n\nThey keep working.\n",
        _table([(old, "", f"`{new}`") for old, new in ALIASES.items()]),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _own() -> list[str]:
    """The suite's own keys by the sections of `lib.config.Keys`; their comments describe them."""
    source = (ROOT / "lib" / "config.py").read_text(encoding="utf-8")
    source = source[source.index("class Keys") : source.index("    def model_copy")]
    parts: list[str] = []
    rows: list[tuple[str, str, str]] = []
    above: list[str] = []
    for line in source.splitlines():
        if line.startswith("    # ---"):
            parts += [_table(rows)] if rows else []
            title = line.strip(" #-")
            parts.append(f"\n## {title[0].upper()}{title[1:]}\n")
            rows = []
        elif line.startswith("    # "):
            above.append(line.strip(" #"))
        elif (found := FIELD.match(line)) and found[1] in Keys.model_fields:
            rows.append((found[1], _default(found[1]), found[2] or " ".join(above)))
            above = []
    return [*parts, _table(rows)]


def _default(name: str) -> str:
    value = Config.model_fields[name].default
    if value is None:
        return ""
    return f"`{value}`" if value and isinstance(value, str) else f"`{value!r}`"


def _described(name: str, library: dict) -> str:
    text = library[name][2]
    if name in DEFAULTS:
        text += f" — {name} is {library[name][1]} there; here: {DEFAULTS[name][1]}"
    return text


def _table(rows: list[tuple[str, str, str]]) -> str:
    lines = []
    for name, default, text in rows:
        lines.append(f"| `{name}` | {default} | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(["| key | default | |", "|---|---|---|", *lines])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
