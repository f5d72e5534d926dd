"""Each `uvx … mcpmux …` of the README, run from a wheel by uvx itself, as a person's terminal and a host would."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FAKE, PATIENCE, ROOT, empty_home, server_table
from test_hosts import written

import mcpmux

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the places of hosts' files are those of Linux")
README = (ROOT / "README.md").read_text(encoding="utf-8")
UV = os.environ.get("UV") or shutil.which("uv") or "uv"
TYPED = r"uvx ((?:--(?:with|from) (?:'[^']*'|\S+) )*mcpmux[^\s`'\"]*(?: [a-z][a-z-]*)*(?: HOST)?(?: --replace)?)"
# What it prints; `mcpmux` alone serves, and ends with its input.
SHOWN = {
    "setup": "Restart Claude Desktop",
    "import": "To take servers over",
    "import goose": "imported",
    "check": "1 of 1 ready",
    "tools": "fake__echo",
    "install HOST": "Claude Desktop",
    "install claude-desktop --replace": "Claude Desktop",
    "": "",
}


def typed() -> list[str]:
    """What stands after `uvx`, in the text and in the entries of hosts."""
    words = re.findall(TYPED, re.sub(r"\s*\n", " ", README))
    entries = [json.loads(args) for args in re.findall(r'"command": "uvx", "args": (\[.*?"\])', README)]
    return list(dict.fromkeys([*words, *map(shlex.join, entries)]))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [UV, "build", "--quiet", "--wheel", "--out-dir", str(folder), str(ROOT)], check=True, timeout=PATIENCE
    )
    return next(folder.glob("*.whl"))


@pytest.mark.parametrize("command", typed())
def test_what_the_readme_starts_with_uvx_works_from_a_wheel(command: str, wheel: Path, tmp_path: Path):
    def ours(word: str) -> str:
        return re.sub(
            rf"^{mcpmux.DISTRIBUTION}(\[\w+\])?(?:==[\d.]+|@latest)?$",
            rf"{mcpmux.DISTRIBUTION}\1 @ {wheel.as_uri()}",
            word,
        )

    words = shlex.split(command)
    at = next(
        at for at, word in enumerate(words) if word.startswith("mcpmux") and words[at - 1] not in ("--from", "--with")
    )
    before, program, after = words[:at], words[at], words[at + 1 :]
    if "--from" in before:
        before = [*map(ours, before)]
    else:
        before += ["--from", ours(program)]
    home = empty_home(tmp_path / "home")
    written(Path(home["HOME"], ".config/mcpmux/mcpmux.toml"), server_table("fake"))
    other = {"command": sys.executable, "args": [str(FAKE)]}
    written(
        Path(home["HOME"], ".config/Claude/claude_desktop_config.json"), json.dumps({"mcpServers": {"other": other}})
    )
    goose = {"type": "stdio", "cmd": other["command"], "args": other["args"], "enabled": True}
    written(Path(home["HOME"], ".config/goose/config.yaml"), json.dumps({"extensions": {"other": goose}}))
    cache = subprocess.run([UV, "cache", "dir"], capture_output=True, encoding="utf-8", check=True).stdout.strip()
    # What a host starts with a bare environment, too, has the machine's certificates and need not download anew.
    written(Path(home["HOME"], ".config/uv/uv.toml"), f"native-tls = true\ncache-dir = {json.dumps(cache)}\n")
    asked = ["--yes"] if after == ["setup"] else []
    done = subprocess.run(
        [
            UV,
            "tool",
            "run",
            "--quiet",
            *before,
            "mcpmux",
            *(one.replace("HOST", "claude-desktop") for one in after),
            *asked,
        ],
        input="",
        capture_output=True,
        encoding="utf-8",
        env=home,
        timeout=PATIENCE,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    assert SHOWN[" ".join(after)] in done.stdout
