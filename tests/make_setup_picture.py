"""Draws setup.svg, which the README shows: what a person with two hosts sees of `mcpmux setup`.

uv run python tests/make_setup_picture.py
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import tempfile
from pathlib import Path

from conftest import Terminal, empty_home
from make_picture import COLUMNS, drawn

PICTURE = Path(__file__).parent / "setup.svg"
SERVERS = {
    ".config/Claude/claude_desktop_config.json": {"time": "mcp-server-time", "git": "mcp-server-git"},
    ".cursor/mcp.json": {"git": "mcp-server-git", "notes": "mcp-server-time"},
}


def screen(text: str) -> list[str]:
    """What stands on a terminal after all that was sent to it: mcpmux moves its cursor up, and clears from there on."""
    lines, row = [""], 0
    for part in re.split(r"(\x1b\[\d+A|\x1b\[J|\r?\n)", text):
        if part.endswith("A") and part.startswith("\x1b["):
            row -= int(part[2:-1])
        elif part == "\x1b[J":
            del lines[row:]
            lines.append("")
        elif part.endswith("\n"):
            row += 1
            lines += [""] * (row - len(lines) + 1)
        else:
            lines[row] += part
    return lines


def printed() -> list[str]:
    """The lines, with their colours; a terminal is needed, so not on Windows."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder).resolve() / "home"
        env = empty_home(home)
        env.pop("NO_COLOR", None)
        uvx = home / ".bun/bin/uvx"  # plays uvx with the servers of the development environment
        uvx.parent.mkdir(parents=True)
        uvx.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m "$(echo "$1" | tr - _)"\n')
        uvx.chmod(0o755)
        env["PATH"] = f"{uvx.parent}:/usr/bin:/bin"
        for name, servers in SERVERS.items():
            file = home / name
            file.parent.mkdir(parents=True)
            tables = {one: {"command": "uvx", "args": [package]} for one, package in servers.items()}
            tables["notes" if "notes" in servers else "time"]["env"] = (
                {"API_KEY": "0123456789"} if "notes" in servers else {}
            )
            file.write_text(json.dumps({"mcpServers": tables}))
        terminal = Terminal(env, "setup", columns=COLUMNS)
        for question in ("mcpmux run? (", "start mcpmux? (", "[Y/n] "):
            terminal.until(question)
            terminal.types("")
        assert terminal.close() == 0, terminal.shown
        shown = terminal.shown.replace(str(home), "/home/you")
    return ["$ mcpmux setup", *"\n".join(screen(shown)).rstrip().splitlines()]


if __name__ == "__main__":
    svg = drawn(printed()).replace("What mcpmux check prints", "What mcpmux setup asks and does")
    PICTURE.write_text(svg, encoding="utf-8", newline="\n")
