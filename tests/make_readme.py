"""Writes the tables of the configuration's keys into README.md: keys and defaults are those of the structs of
mcpmux.py, the words the comments beside them, so that each is said once; and what `bench.py` promises.

    uv run python tests/make_readme.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
from bench import BARS

import mcpmux

README = Path(__file__).parent.parent / "README.md"
TABLES_OF_THEIR_OWN = ("tools", "models", "limits")
_PLACE = re.compile(r"(<!-- (\w+Options|ToolOverride|SamplingLimits|Bars): .* -->\n)(?:\|.*\n)*")


def defaults(kind: type[msgspec.Struct]) -> dict[str, str]:
    """A struct's keys and defaults, as TOML; empty where there is none, or where it has a table of its own."""
    found: dict[str, str] = {}
    for field in msgspec.structs.fields(kind):
        value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
        none = value is None or value == "" or isinstance(value, msgspec.Struct)
        found[field.name] = "" if none else json.dumps(value, default=msgspec.to_builtins)
    return found


def table(kind: type[msgspec.Struct]) -> str:
    words = mcpmux.words_of(kind)
    rows = [
        f"| `{key}` | {f'`{default}`' if default else ''} | {words[key]} |"
        for key, default in defaults(kind).items()
        if key not in TABLES_OF_THEIR_OWN
    ]
    return "\n".join(["| key | default | |", "|---|---|---|", *rows]).replace("|  |", "| |") + "\n"


def bars() -> str:
    rows = [f"| {bar.label[0].upper()}{bar.label[1:]} | {bar.limit_text()} |" for bar in BARS]
    return "\n".join(["| | |", "|---|---|", *rows]) + "\n"


def rewritten(text: str) -> str:
    """The README with each table that a mark announces written anew."""
    return _PLACE.sub(
        lambda place: place[1] + (bars() if place[2] == "Bars" else table(getattr(mcpmux, place[2]))), text
    )


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
