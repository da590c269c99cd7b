"""The keys that are written down are those of the code and of the installed libraries."""

from importlib.util import find_spec

import pytest

from lib.config import Config
from lib.keys import ALIASES, DECIDED, DEFAULTS, LIMITS, LORA, PEFT, TRL, TYPES
from tools.keys_page import PAGE, page
from tools.library_keys import FILE, as_text, library_keys


def test_the_libraries_have_the_fields_that_are_written_down():
    """After an update: `python -m tools.library_keys`."""
    for package in ("trl", "peft", "vllm"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    assert FILE.read_text(encoding="utf-8") == as_text(library_keys())


def test_the_page_of_keys_is_the_codes():
    """After a change: `python -m tools.keys_page`."""
    text = page()
    assert PAGE.read_text(encoding="utf-8") == text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert {row[0].strip("| `") for row in rows} >= set(Config.model_fields)
    assert [row[0] for row in rows if not row[-1].strip(" |")] == []


def test_what_is_said_of_the_libraries_fields_is_of_fields_that_they_have():
    known = TRL.keys() | PEFT.keys()
    assert {*DEFAULTS, *DECIDED, *LIMITS, *TYPES, *LORA} <= known
    for name, (value, _) in DEFAULTS.items():
        assert value != (TRL | PEFT)[name][1], f"{name} is the library's own"
    for name, kind in TYPES.items():
        if kind.startswith("Literal") and name not in DEFAULTS:
            assert repr(TRL[name][1]) in kind
    assert not set(ALIASES) & set(Config.model_fields)
    assert set(ALIASES.values()) <= set(Config.model_fields)
