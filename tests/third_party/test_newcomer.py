"""The first ten minutes with the real thing: three hosts, three servers of npm's, and nothing in any cache."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import RawHost, empty_home
from test_cli import run
from test_setup import FILES, TOKEN

from .harness import NODE, NPM_PACKAGES

FLAG = "--all-pairings"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the places of hosts' files are those of Linux")


def npx(package: str, *arguments: str, **more: Any) -> dict[str, Any]:
    name = f"@modelcontextprotocol/{package}"
    return {"command": "npx", "args": ["-y", f"{name}@{NPM_PACKAGES.get(name, 'latest')}", *arguments], **more}


def test_setup_moves_in_with_cold_caches_and_the_hosts_own_entry_serves_all(tmp_path: Path):
    env = empty_home(tmp_path / "home") | {"PATH": "/usr/bin:/bin"}
    home = Path(env["HOME"])
    tools = home / ".volta/bin"  # where people have them, and hosts do not look
    tools.mkdir(parents=True)
    (tools / "node").symlink_to(NODE)
    (tools / "npx").write_text(f'#!/bin/sh\nexec "{Path(sys.executable).with_name("npx")}" "$@"\n')
    (tools / "npx").chmod(0o755)
    authorities = os.environ.get("NODE_EXTRA_CA_CERTS")
    (home / ".npmrc").write_text(f"cafile={authorities}\n" if authorities else "")
    everything = npx("server-everything", env={"GITHUB_TOKEN": TOKEN})
    files, memory = npx("server-filesystem", str(tmp_path)), npx("server-memory")
    before: dict[str, bytes] = {}
    for host, servers in {
        "claude-desktop": {"everything": everything, "files": files, "memory": memory},
        "cursor": {"everything": everything, "files": files},
        "claude-code": {"everything": everything, "memory": memory},
    }.items():
        file = home / FILES[host]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('{"theme":"dark",\n "mcpServers": ' + json.dumps(servers, indent=3) + "}\n")
        before[host] = file.read_bytes()

    done = run(env, "setup", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert TOKEN not in done.stdout + done.stderr
    entries = [json.loads((home / FILES[host]).read_text())["mcpServers"] for host in FILES]
    assert [list(entry) for entry in entries] == [["mcpmux"]] * 3

    entry = entries[0]["mcpmux"]
    bare = {"HOME": str(home), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    host = RawHost([entry["command"], *entry["args"]], bare, cwd="/")
    try:
        host.initialize()
        listed = host.tools()
        assert len(listed) == len(set(listed))
        assert {name.partition("__")[0] for name in listed} == {"everything", "files", "memory"}
        assert TOKEN in host.text("everything__get-env")
        assert host.text("memory__read_graph") and host.text("files__list_allowed_directories")
    finally:
        host.close()

    assert run(env, "uninstall", "all").returncode == 0
    for name, text in before.items():
        assert (home / FILES[name]).read_bytes() == text
