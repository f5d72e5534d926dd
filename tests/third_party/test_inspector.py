"""The MCP Inspector's command line, whose client is the TypeScript SDK's, as the host."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from .harness import NODE, Launcher, Party

RUN_PATIENCE = 60.0  # seconds; an Inspector that waits for something would wait for ever


class Inspector:
    """Each run starts a server of its own: one of the parties alone, or mcpmux before them."""

    def __init__(self, launcher: Launcher, modules: Path, *parties: Party) -> None:
        # Its launcher, as `inspector` in `.bin` is, and run by Node itself: it needs no install script and no shell.
        self._program = str(modules / "@modelcontextprotocol/inspector/clients/launcher/build/index.js")
        self._launcher = launcher
        self._commands = {party.name: [party.command, *party.args] for party in parties}
        self._commands["mcpmux"] = launcher.command(*parties)

    def run(self, server: str, method: str, *options: str) -> dict[str, Any]:
        env = self._launcher.env
        home = [word for name in ("HOME", "USERPROFILE", "APPDATA") for word in ("-e", f"{name}={env[name]}")]
        done = subprocess.run(
            [
                *(NODE, self._program, "--cli", "--format", "json", "--method", method),
                *(*options, *home, "--", *self._commands[server]),
            ],
            env=env,
            cwd=env["HOME"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=RUN_PATIENCE,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return json.loads(done.stdout)["result"]

    def lists(self, method: str, key: str, *servers: str) -> list[list[dict[str, Any]]]:
        """The same list of several servers, asked for at once."""
        with ThreadPoolExecutor() as pool:
            return [result[key] for result in pool.map(lambda server: self.run(server, method), servers)]


@pytest.fixture(scope="module")
def inspector(module_launcher: Launcher, modules: Path, parties: dict[str, Party]) -> Inspector:
    return Inspector(module_launcher, modules, parties["everything"], parties["time"])


def test_the_inspector_lists_the_tools_of_all_servers_as_it_does_alone(inspector: Inspector):
    """Spec: 2025-11-25, server/tools#listing-tools; the prefix is our choice."""
    servers = ("everything", "time")
    tools, *alone = inspector.lists("tools/list", "tools", "mcpmux", *servers)
    assert tools == [
        tool | {"name": f"{server}__{tool['name']}"} for server, own in zip(servers, alone, strict=True) for tool in own
    ]
    assert len(tools) >= 12 + 2


@pytest.mark.parametrize("era", ["legacy", "auto"])
def test_the_inspector_calls_tools(inspector: Inspector, era: str):
    """Spec: 2025-11-25, server/tools#calling-tools. In era auto it asks for the newer one first, and takes what it is
    given."""
    call = ("--protocol-era", era, "--tool-name", "everything__get-sum", "--tool-args-json", '{"a": 1, "b": 2}')
    result = inspector.run("mcpmux", "tools/call", *call)
    assert [block["text"] for block in result["content"]] == ["The sum of 1 and 2 is 3."]


def test_the_inspector_lists_resources_as_it_does_alone(inspector: Inspector):
    """Spec: 2025-11-25, server/resources#listing-resources."""
    resources, alone = inspector.lists("resources/list", "resources", "mcpmux", "everything")
    assert resources == alone
    assert len(resources) == 7


def test_the_inspector_lists_prompts_as_it_does_alone(inspector: Inspector):
    """Spec: 2025-11-25, server/prompts#listing-prompts; the prefix is our choice."""
    prompts, alone = inspector.lists("prompts/list", "prompts", "mcpmux", "everything")
    assert prompts == [prompt | {"name": f"everything__{prompt['name']}"} for prompt in alone]
    assert len(prompts) == 4
