"""The first ten minutes: somebody with servers in some hosts runs `mcpmux setup`, and starts a host. Our choice."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import COMMAND, FAKE, PATIENCE, RawHost, Terminal, empty_home, server_table
from test_cli import FAKE_TOOLS, run, written

TOKEN = "ghp_0123456789abcdef"
FILES = {
    "claude-desktop": ".config/Claude/claude_desktop_config.json",
    "cursor": ".cursor/mcp.json",
    "claude-code": ".claude.json",
}
posix = pytest.mark.skipif(sys.platform != "linux", reason="the places are those of Linux, the stand-ins shell scripts")


class Newcomer:
    """A home in which three hosts have servers, and a stand-in for bunx, which fetches as npx does, where people have
    theirs."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.env = empty_home(self.home)
        played = shlex.join([sys.executable, str(FAKE), "--name"])
        broken = '[ "$2" = server-broken ] && echo "no such package" >&2 && exit 1'
        bunx = self.home / ".bun/bin/bunx"
        bunx.parent.mkdir(parents=True)
        bunx.write_text(f'#!/bin/sh\n{broken}\nexec {played} "$2"\n')
        bunx.chmod(0o755)
        self.env["PATH"] = "/usr/bin:/bin"
        self.config = self.home / ".config/mcpmux/mcpmux.toml"
        self.before: dict[str, bytes] = {}

    def has(self, host: str, **servers: dict[str, str]) -> None:
        """Servers with the variables of each."""
        tables = {
            name: {"command": "bunx", "args": ["-y", f"server-{name}"], **({"env": env} if env else {})}
            for name, env in servers.items()
        }
        file = self.home / FILES[host]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('{"theme":"dark",\n "mcpServers": ' + json.dumps(tables, indent=3) + "}\n")
        self.before[host] = file.read_bytes()

    def servers(self, host: str) -> dict[str, Any]:
        return json.loads((self.home / FILES[host]).read_text())["mcpServers"]

    def host_of(self, host: str) -> RawHost:
        """The entry started as a host with a window does: a bare PATH, and the root as its folder."""
        entry = self.servers(host)["mcpmux"]
        bare = {"HOME": str(self.home), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
        return RawHost([entry["command"], *entry["args"]], bare, cwd="/")


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    someone = Newcomer(tmp_path)
    someone.has("claude-desktop", files={}, memory={}, github={"GITHUB_TOKEN": TOKEN})
    someone.has("cursor", files={}, memory={})
    someone.has("claude-code", memory={}, github={"GITHUB_TOKEN": TOKEN})
    return someone


@posix
def test_a_newcomer_has_all_servers_once_and_the_token_works(newcomer: Newcomer):
    done = run(newcomer.env, "setup", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert "Restart Claude Desktop" in done.stdout
    assert done.stdout.count("files: ready") == 1
    for host in FILES:
        assert list(newcomer.servers(host)) == ["mcpmux"]
    tables = tomllib.loads(newcomer.config.read_text())["mcp_servers"]
    assert list(tables) == ["files", "memory", "github"], "the same in two hosts is one"
    secrets = newcomer.config.with_name("secrets.env")
    assert secrets.read_text() == f"GITHUB_TOKEN={TOKEN}\n"
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o600
    host = newcomer.host_of("claude-desktop")
    try:
        host.initialize()
        assert sorted(host.tools()) == sorted(f"{server}__{tool}" for server in tables for tool in FAKE_TOOLS)
        assert json.loads(host.text("github__env"))["GITHUB_TOKEN"] == TOKEN
        assert "GITHUB_TOKEN" not in json.loads(host.text("files__env"))
    finally:
        host.close()
    again = run(newcomer.env, "setup", "--yes")
    assert again.stdout.count("already set up") == 3
    assert run(newcomer.env, "uninstall", "all").returncode == 0
    for host_name, text in newcomer.before.items():
        assert (newcomer.home / FILES[host_name]).read_bytes() == text
    assert run(newcomer.env, "import", "--undo").returncode == 0
    assert list(newcomer.config.parent.iterdir()) == []


@posix
def test_a_dry_run_of_setup_writes_nothing_and_shows_no_secret(newcomer: Newcomer):
    done = run(newcomer.env, "setup", "--dry-run")
    assert done.returncode == 0
    assert TOKEN not in done.stdout
    assert done.stdout.count("  - memory") == 3
    assert "[mcp_servers.github]" in done.stdout
    assert not newcomer.config.exists()
    for host, text in newcomer.before.items():
        assert (newcomer.home / FILES[host]).read_bytes() == text


@posix
def test_what_does_not_start_stays_where_it_is(newcomer: Newcomer):
    """A server that worked there shall go on to; `enable` and `install --replace` take it over when it works."""
    newcomer.has("cursor", files={}, broken={})
    done = run(newcomer.env, "setup", "--yes")
    assert done.returncode == 1
    assert "broken: " in done.stdout
    assert "no such package" in done.stdout
    assert list(newcomer.servers("cursor")) == ["broken", "mcpmux"]
    tables = tomllib.loads(newcomer.config.read_text())["mcp_servers"]
    assert tables["broken"]["enabled"] is False
    assert "enabled" not in tables["files"]
    assert run(newcomer.env, "enable", "broken").returncode == 0
    assert run(newcomer.env, "install", "cursor", "--replace").returncode == 0
    assert list(newcomer.servers("cursor")) == ["mcpmux"]
    assert run(newcomer.env, "uninstall", "cursor").returncode == 0
    assert (newcomer.home / FILES["cursor"]).read_bytes() == newcomer.before["cursor"]


@posix
def test_what_takes_longer_than_its_time_is_waited_for(newcomer: Newcomer, tmp_path: Path):
    """A first start fetches, and a server that is late then is none that does not start."""
    gate, file = tmp_path / "gate", newcomer.home / ".codex/config.toml"
    os.mkfifo(gate)
    written(file, server_table("slow", "--gate", str(gate), startup_timeout_sec=2))
    pipe, words = subprocess.PIPE, [*COMMAND, "setup", "--yes"]
    keys: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe, "encoding": "utf-8"}
    with subprocess.Popen(words, env=newcomer.env, **keys) as setup:
        assert setup.stderr
        assert any(line == "slow: starting, over 2 s\n" for line in setup.stderr)
        gate.write_text("x")
        out, _ = setup.communicate(timeout=PATIENCE)
    assert setup.returncode == 0, out
    assert "  slow: ready, " in out
    assert list(tomllib.loads(file.read_text())["mcp_servers"]) == ["mcpmux"]


@posix
def test_a_person_picks_servers_and_hosts_and_is_asked_nothing_twice(newcomer: Newcomer):
    terminal = Terminal(newcomer.env, "setup")
    shown = terminal.until("Which of them shall mcpmux run?")
    assert "bunx -y server-github  (Claude Desktop, Claude Code)" in shown
    terminal.types("7")
    terminal.until("numbers from 1 to 3 are expected")
    terminal.until("Which of them shall mcpmux run?")
    terminal.types("2,3")
    terminal.until("Which of them shall start mcpmux?")
    terminal.types("1")
    terminal.until("Keep GITHUB_TOKEN in ")
    terminal.types("")
    assert terminal.close() == 0
    assert TOKEN not in terminal.shown
    assert list(newcomer.servers("claude-desktop")) == ["files", "mcpmux"]
    assert newcomer.servers("cursor").keys() == {"files", "memory"}
    assert list(tomllib.loads(newcomer.config.read_text())["mcp_servers"]) == ["memory", "github"]


@posix
def test_without_a_terminal_setup_asks_for_yes(newcomer: Newcomer):
    done = run(newcomer.env, "setup")
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert not newcomer.config.exists()


@posix
def test_install_says_which_servers_are_in_both_places(newcomer: Newcomer):
    assert run(newcomer.env, "import", "cursor").returncode == 0
    done = run(newcomer.env, "install", "cursor")
    assert "files, memory" in done.stdout
    assert "mcpmux install cursor --replace" in done.stdout
    assert list(newcomer.servers("cursor")) == ["files", "memory", "mcpmux"]
    assert run(newcomer.env, "install", "cursor", "--yes").returncode == 0
    assert list(newcomer.servers("cursor")) == ["mcpmux"]
    assert run(newcomer.env, "uninstall", "cursor").returncode == 0
    assert (newcomer.home / FILES["cursor"]).read_bytes() == newcomer.before["cursor"]


@posix
def test_import_tells_what_a_server_saw_and_will_no_longer_see(newcomer: Newcomer):
    env = newcomer.env | {"OPENAI_API_KEY": "x", "MEMORY_FILE": "y", "UNRELATED": "z"}
    done = subprocess.run(
        [*COMMAND, "import", "cursor"], env=env, input="", capture_output=True, text=True, timeout=PATIENCE
    )
    said = done.stdout
    assert "OPENAI_API_KEY" in said
    assert "MEMORY_FILE" in said
    assert "UNRELATED" not in said
