"""Draws check.svg and demo.svg, which the README shows: what `mcpmux check` prints at a terminal, with two real servers
and a third whose variable is not set, and what `mcpmux demo` prints.

    uv run python tests/make_picture.py
"""

from __future__ import annotations

import html
import json
import re
import sys
import tempfile
from pathlib import Path

from conftest import Terminal, empty_home

FOLDER = Path(__file__).parent
SERVERS = {"time": {"args": ["-m", "mcp_server_time"]}, "git": {"args": ["-m", "mcp_server_git"]}}
SHOWN_PATH = "/home/you/.config/mcpmux/mcpmux.toml"
COLUMNS = 104
WIDE, HIGH, EDGE = 8.4, 20, 16  # a character's width and height, and the margin, in pixels
COLOURS = {"31": "#ff7b72", "32": "#7ee787", "33": "#e3b341"}  # on the panel's own dark ground, wherever that stands
STYLE = {"1": 'font-weight="bold"', "2": 'opacity="0.6"'} | {key: f'fill="{one}"' for key, one in COLOURS.items()}


def printed() -> list[str]:
    """The lines, with their colours; a terminal is needed, so not on Windows."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder).resolve() / "mcpmux.toml"
        tables = [f"[mcp_servers.{name}]\ncommand = {json.dumps(sys.executable)}\nargs = {json.dumps(one['args'])}\n"
                  for name, one in SERVERS.items()]  # fmt: skip
        tables.append('[mcp_servers.github]\ncommand = "npx"\nenv = { GITHUB_TOKEN = "${GITHUB_TOKEN}" }\n')
        config.write_text("".join(tables))
        env = empty_home(Path(folder) / "home") | {"BROWSER": "firefox"}
        for name in ("NO_COLOR", "GITHUB_TOKEN"):
            env.pop(name, None)
        terminal = Terminal(env | {"MCPMUX_CONFIG": str(config)}, "check", columns=COLUMNS)
        assert terminal.close() == 1
    text = terminal.shown.rpartition("\x1b[J")[2].replace(str(config), SHOWN_PATH)
    return ["$ mcpmux check", *text.rstrip().splitlines()]


def demo_printed() -> list[str]:
    """The six parts. A bar is drawn over itself, and a process has another number each time."""
    with tempfile.TemporaryDirectory() as folder:
        env = empty_home(Path(folder) / "home")
        env.pop("NO_COLOR", None)
        terminal = Terminal(env, "demo", columns=COLUMNS)
        assert terminal.close() == 0
    lines = [line.rpartition("\r")[2] for line in terminal.shown.replace("\r\n", "\n").split("\n")]
    end = next(number for number, line in enumerate(lines) if line.startswith("Now with your own"))
    numbers: dict[str, str] = {}  # the first process is 4711, the next 4712
    text = re.sub(
        r"(?<=process )\d+",
        lambda found: numbers.setdefault(found[0], str(4711 + len(numbers))),
        "\n".join(lines[:end]),
    )
    return ["$ mcpmux demo", *text.rstrip().splitlines()]


def runs(line: str) -> list[tuple[int, str, str]]:
    """The words of a line that stand together: at which column, in which style, and what."""
    found: list[tuple[int, str, str]] = []
    column, style = 0, ""
    for part in re.split(r"(\x1b\[\d+m)", line):
        if part.startswith("\x1b"):
            style = part[2:-1].replace("0", "") if part == "\x1b[0m" else part[2:-1]
        else:
            found += [(column + one.start(), style, one[0]) for one in re.finditer(r"\S+(?: \S+)*", part)]
            column += len(part)
    return found


def drawn(lines: list[str], title: str) -> str:
    width = max(column + len(text) for line in lines for column, _, text in runs(line)) * WIDE + 2 * EDGE
    height = len(lines) * HIGH + 2 * EDGE
    rows = [
        f'<text x="{EDGE + column * WIDE:.1f}" y="{EDGE + number * HIGH + 15}" textLength="{len(text) * WIDE:.1f}"'
        f"{' ' + STYLE[style] if style else ''}>{html.escape(text)}</text>"
        for number, line in enumerate(lines)
        for column, style, text in runs(line)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}"',
            '     font-family="ui-monospace, Menlo, Consolas, monospace" font-size="14" fill="#e6edf3" role="img">',
            f"<title>{title}</title>",
            f'<rect width="{width:.0f}" height="{height}" rx="8" fill="#161b22" stroke="#30363d"/>',
            *rows,
            "</svg>\n",
        ]
    )


PICTURES = {"check": printed, "demo": demo_printed}


if __name__ == "__main__":
    for name, print_lines in PICTURES.items():
        picture = drawn(print_lines(), f"What mcpmux {name} prints")
        (FOLDER / f"{name}.svg").write_text(picture, encoding="utf-8", newline="\n")
