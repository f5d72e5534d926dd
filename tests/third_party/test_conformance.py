"""The official conformance suite, against a server of both eras alone and with mcpmux before it, over a small bridge of
HTTP to stdio: nothing that passes alone fails through mcpmux. Our promise (README, "Any era to any era").

It starts some hundred processes, so it runs with `--all-pairings`, or by its name.
"""

from __future__ import annotations

import collections
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import COMMAND, empty_home

from .harness import NODE, npm_modules
from .http_bridge import Bridge

SUITE = {"@modelcontextprotocol/conformance": "0.2.0-alpha.12"}
SERVER = Path(__file__).parent / "conformance_server.py"
PATIENCE = 600.0


def is_on_the_diagonal(params: dict[str, Any]) -> bool:
    return False


def outcomes(command: list[str], env: dict[str, str], revision: str, folder: Path) -> dict[str, str]:
    """By scenario and check, how it went."""
    bridge = Bridge(command, env)
    program = npm_modules(SUITE) / "@modelcontextprotocol/conformance/dist/index.js"
    try:
        subprocess.run(
            [
                *(NODE, str(program), "server", "--url", bridge.url, "--suite", "all", "--spec-version", revision),
                *("--output-dir", str(folder), "--timeout", "60000"),
            ],
            env=env,
            capture_output=True,
            timeout=PATIENCE,
        )
    finally:
        bridge.close()
    found: dict[str, str] = {}
    for path in folder.rglob("checks.json"):
        scenario = path.parent.name.partition("-20")[0]  # then the time
        counts = collections.Counter[str]()
        for check in json.loads(path.read_text(encoding="utf-8")):
            counts[check["id"]] += 1
            found[f"{scenario}/{check['id']}/{counts[check['id']]}"] = check["status"]
    return found


@pytest.mark.parametrize(("revision", "least"), [("2025-11-25", 70), ("2026-07-28", 100)])
def test_what_passes_alone_passes_through_mcpmux(revision: str, least: int, tmp_path: Path):
    env, server = empty_home(tmp_path / "home"), [sys.executable, str(SERVER)]
    config = tmp_path / "mcpmux.toml"
    table = {"command": json.dumps(server[0]), "args": json.dumps(server[1:]), "prefix": '""'}
    config.write_text("[mcp_servers.c]\n" + "\n".join(f"{key} = {value}" for key, value in table.items()))
    alone = outcomes(server, env, revision, tmp_path / "alone")
    behind = outcomes([*COMMAND, "--config", str(config)], env, revision, tmp_path / "behind")
    passed = {check for check, status in alone.items() if status == "SUCCESS"}
    assert len(passed) >= least
    assert {check: behind.get(check) for check in passed if behind.get(check) != "SUCCESS"} == {}
