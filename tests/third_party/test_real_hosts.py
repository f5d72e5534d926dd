"""Hosts that nobody here wrote: Claude Code, Codex and Gemini CLI of npm's. They get mcpmux by `mcpmux install` and use
it as they do, with a model that calls the tools that it is told to. The first run downloads 400 MB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, empty_home
from test_cli import run

from .harness import NODE, ChatApi, npm_modules

FLAG = "--real-hosts"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the places of hosts' files are those of Linux")

PACKAGES = {"@anthropic-ai/claude-code": "2.1.332", "@openai/codex": "0.171.0", "@google/gemini-cli": "0.61.0"}
PROGRAMS = {
    "claude": "@anthropic-ai/claude-code/cli-wrapper.cjs",
    "codex": "@openai/codex/bin/codex.js",
    "gemini": "@google/gemini-cli/bundle/gemini.js",
}
SAMPLED = "As the model of mcpmux.toml says."
ALL = ("claude", "codex", "gemini")
# What the model wants done, and what of it comes back to it; by host where they differ.
PLAN: tuple[tuple[str, dict[str, Any], dict[str, str]], ...] = (
    ("echo", {"message": "hi"}, dict.fromkeys(ALL, "Echo: hi")),
    ("get-structured-content", {"location": "Chicago"}, dict.fromkeys(ALL, "temperature")),
    ("trigger-long-running-operation", {"duration": 0.4, "steps": 2}, dict.fromkeys(ALL, "Steps: 2")),
    ("get-tiny-image", {}, dict.fromkeys(ALL, "iVBORw0KGgo")),
    ("get-resource-links", {"count": 2}, dict.fromkeys(ALL, "demo://resource/dynamic/text/2")),
    ("get-roots-list", {}, {"claude": "file://{folder}", "gemini": "file://{folder}"}),
    ("trigger-elicitation-request", {}, {"claude": '"cancel', "codex": '"decline'}),  # nobody is there to be asked
    ("trigger-sampling-request", {"prompt": "say", "maxTokens": 20}, dict.fromkeys(ALL, SAMPLED)),
    ("get-sum", {"a": "x", "b": 1}, {"claude": "expected number", "codex": "expected number", "gemini": "number"}),
)
WAIT: tuple[str, dict[str, Any]] = ("trigger-long-running-operation", {"duration": 0.2, "steps": 1})
NAMES = {"claude": "claude-code", "codex": "codex", "gemini": "gemini"}
OF_CODEX = ["exec", "--skip-git-repo-check", "go"]
COMMANDS = {
    "claude": ["claude", "-p", "go", "--allowedTools", "mcp__mcpmux__*"],
    "codex": ["codex", *OF_CODEX],
    "codex of 2026-07-28": ["codex", "--enable", "mcp_2026_07_28", *OF_CODEX],
    "gemini": ["gemini", "-m", "gemini-2.5-pro", "--approval-mode", "yolo", "-p", "go"],
}
MODERN = ("claude", "codex of 2026-07-28")


class Vendors:
    """The APIs of three vendors on loopback, with one model behind them: each turn it calls the next of `calls`, by the
    end of the tool's name, and keeps what came of the one before."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.results: list[str] = []
        self._made: list[bool] = []  # calls, in their order: whether each was one of these
        vendors = self

        class Handler(BaseHTTPRequestHandler):
            timeout = PATIENCE

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                path = self.path.partition("?")[0]
                vendor = next((one for end, one in APIS.items() if path.endswith(end)), None)
                self.send_response(200 if vendor else 404)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                for event in vendor(vendors, body) if vendor else ():
                    kind = f"event: {event['type']}\n" if "type" in event else ""
                    self.wfile.write(f"{kind}data: {json.dumps(event)}\n\n".encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def next_call(self, offered: Iterable[Any], said: list[Any]) -> tuple[Any, dict[str, Any]] | None:
        """Which of the tools it calls now, and how; `said` is all that has come back so far. What is not offered yet
        it waits for by another call: what a server offers can depend on what it hears of the host."""
        tools = {str(one).rpartition("__")[2].rstrip("')").replace("_", "-"): one for one in offered}
        if "echo" not in tools:
            return None  # something else is asked than what to do
        made = self._made[: len(said)]  # a host may ask twice
        results = [json.dumps(one, ensure_ascii=False) for one, is_wanted in zip(said, made, strict=True) if is_wanted]
        self.results = results
        if len(results) == len(self.calls):
            return None
        tool, arguments = self.calls[len(results)]
        self._made = [*made, tool in tools]
        assert len(self._made) < 100, f"{tool} is never offered"
        return (tools[tool], arguments) if tool in tools else (tools[WAIT[0]], WAIT[1])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def anthropic(vendors: Vendors, body: dict[str, Any]) -> list[dict[str, Any]]:
    """https://platform.claude.com/docs/en/build-with-claude/streaming"""
    blocks = [block for one in body["messages"] if isinstance(one["content"], list) for block in one["content"]]
    said = [block for block in blocks if block["type"] == "tool_result"]
    call = vendors.next_call([tool["name"] for tool in body.get("tools", [])], said)
    block, delta, reason = {"type": "text", "text": ""}, {"type": "text_delta", "text": "Done."}, "end_turn"
    if call:
        block = {"type": "tool_use", "id": f"toolu_{len(said)}", "name": call[0], "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(call[1])}
        reason = "tool_use"
    usage = {"input_tokens": 1, "output_tokens": 1}
    start = {"id": "m", "type": "message", "role": "assistant", "model": body["model"], "content": [], "usage": usage}
    return [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage},
        {"type": "message_stop"},
    ]


def openai(vendors: Vendors, body: dict[str, Any]) -> list[dict[str, Any]]:
    """https://platform.openai.com/docs/api-reference/responses-streaming"""
    spaces = [(tool["name"], tool["tools"]) for tool in body.get("tools", []) if tool["type"] == "namespace"]
    names = [(space, tool["name"]) for space, tools in spaces for tool in tools]
    said = [one for one in body["input"] if one.get("type") == "function_call_output"]
    call = vendors.next_call(names, said)
    item: dict[str, Any] = {"id": "i", "type": "message", "role": "assistant", "status": "completed"}
    item["content"] = [{"type": "output_text", "text": "Done.", "annotations": []}]
    if call:
        (space, name), arguments = call
        item = {"id": "i", "type": "function_call", "call_id": f"call_{len(said)}", "namespace": space, "name": name}
        item |= {"arguments": json.dumps(arguments), "status": "completed"}
    response = {"id": "r", "object": "response", "status": "completed", "output": [item]}
    return [
        {"type": "response.created", "response": response | {"output": []}},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": response},
    ]


def google(vendors: Vendors, body: dict[str, Any]) -> list[dict[str, Any]]:
    """https://ai.google.dev/api/generate-content"""
    declared = [one for tool in body.get("tools", []) for one in tool.get("functionDeclarations", [])]
    said = [one for one in body["contents"] if any("functionResponse" in part for part in one["parts"])]
    call = vendors.next_call([one["name"] for one in declared], said)
    part = {"functionCall": {"id": f"c{len(said)}", "name": call[0], "args": call[1]}} if call else {"text": "Done."}
    return [{"candidates": [{"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}]}]


APIS: dict[str, Callable[[Vendors, dict[str, Any]], list[dict[str, Any]]]] = {
    "/v1/messages": anthropic,
    "/responses": openai,
    ":streamGenerateContent": google,
}


@pytest.fixture
def vendors() -> Iterator[Vendors]:
    vendors = Vendors()
    yield vendors
    vendors.close()


@pytest.fixture
def env(tmp_path: Path, vendors: Vendors) -> dict[str, str]:
    """A home of its own, where the hosts have nobody else to ask than `vendors`, and are told to keep to themselves."""
    programs = tmp_path / "bin"
    programs.mkdir()
    modules = npm_modules(PACKAGES)
    for name, script in PROGRAMS.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{NODE}" "{modules / script}" "$@"\n')
        (programs / name).chmod(0o755)
    env = empty_home(tmp_path / "home")
    home = Path(env["HOME"])
    (home / ".codex").mkdir()
    provider = f'name = "x"\nbase_url = "{vendors.address}/v1"\nwire_api = "responses"\nenv_key = "A_KEY"\n'
    options = 'model = "x"\nmodel_provider = "x"\napproval_policy = "never"\nsandbox_mode = "danger-full-access"\n'
    (home / ".codex/config.toml").write_text(f"{options}\n[model_providers.x]\n{provider}")
    (home / ".gemini").mkdir()
    security = {"auth": {"selectedType": "gemini-api-key"}, "folderTrust": {"enabled": False}}
    (home / ".gemini/settings.json").write_text(
        json.dumps({"security": security, "privacy": {"usageStatisticsEnabled": False}})
    )
    return env | {
        "PATH": f"{programs}{os.pathsep}{env['PATH']}",
        "A_KEY": "x",
        "ANTHROPIC_API_KEY": "x",
        "ANTHROPIC_BASE_URL": vendors.address,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "ENABLE_TOOL_SEARCH": "false",
        "IS_SANDBOX": "1",
        "GEMINI_API_KEY": "x",
        "GOOGLE_GEMINI_BASE_URL": vendors.address,
        "GEMINI_CLI_TRUST_WORKSPACE": "true",
    }


@pytest.mark.parametrize("host", COMMANDS)
def test_a_host_has_all_that_a_server_offers_through_mcpmux(
    host: str, env: dict[str, str], vendors: Vendors, api: ChatApi, modules: Path, tmp_path: Path
):
    program, home = COMMANDS[host][0], Path(env["HOME"])
    config = home / ".config/mcpmux/mcpmux.toml"
    config.parent.mkdir(parents=True)
    server = [NODE, str(modules / "@modelcontextprotocol/server-everything/dist/index.js")]
    table = f"[mcp_servers.everything]\ncommand = {json.dumps(server[0])}\nargs = {json.dumps(server[1:])}\n"
    config.write_text(table + api.table)
    assert run(env, "tools").returncode == 0  # as one who can be asked, like most hosts
    done = run(env, "install", NAMES[program])
    assert done.returncode == 0, done.stdout + done.stderr
    if host != program:
        with (home / ".codex/config.toml").open("a") as file:
            file.write('\n[mcp_servers.mcpmux.env]\nCODEX_MCP_PROTOCOL_VERSION = "2026-07-28"\n')
    folder = tmp_path / "folder"
    folder.mkdir()
    plan = [(tool, arguments, results[program]) for tool, arguments, results in PLAN if program in results]
    vendors.calls = [(tool, arguments) for tool, arguments, _ in plan]
    api.says(SAMPLED)
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "encoding": "utf-8"}
    played = subprocess.run(COMMANDS[host], cwd=folder, env=env, timeout=2 * PATIENCE, **pipes)
    assert played.returncode == 0, played.stdout + played.stderr
    wanted = [(tool, part.format(folder=folder.resolve())) for tool, _, part in plan]
    found = [(tool, part if part in said else said) for (tool, part), said in zip(wanted, vendors.results, strict=True)]
    assert found == wanted
    known = [file.name for file in (home / ".cache/mcpmux/servers").iterdir()]
    assert any(name.startswith("everything.modern") for name in known) is (host in MODERN)
    assert api.requests[0]["messages"][-1]["content"].endswith("say")
    done = run(env, "uninstall", NAMES[program])
    assert done.returncode == 0, done.stdout + done.stderr
    listed = subprocess.run([program, "mcp", "list"], cwd=folder, env=env, timeout=PATIENCE, **pipes)
    assert "mcpmux" not in listed.stdout + listed.stderr


A_TOKEN = "A_TOKEN=ghp_0123456789abcdefghijABCDEFGHIJ012345"
ADDS = {
    "claude": ["mcp", "add", "files", "--scope", "user", "-e", A_TOKEN, "--"],
    "codex": ["mcp", "add", "everything", "--"],
    "gemini": ["mcp", "add", "--scope", "user", "everything"],
}


def test_setup_moves_hosts_in_and_uninstall_takes_it_back(env: dict[str, str], modules: Path):
    def told(*words: str) -> str:
        done = subprocess.run(words, env=env, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    server = modules / "@modelcontextprotocol"
    commands = {"everything": [NODE, str(server / "server-everything/dist/index.js")]}
    commands["files"] = [NODE, str(server / "server-filesystem/dist/index.js"), env["HOME"]]
    for program, words in ADDS.items():
        told(program, *words, *commands["files" if "files" in words else "everything"])
    files = [Path(env["HOME"]) / name for name in (".claude.json", ".codex/config.toml", ".gemini/settings.json")]

    def texts() -> list[Any]:
        """Claude Code writes down more than its servers, at each start."""
        own, *others = [file.read_text() for file in files]
        return [list(json.loads(own)["mcpServers"].items()), *others]

    before = texts()
    done = run(env, "setup", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ghp_" not in done.stdout + done.stderr
    for program in ALL:
        listed = told(program, "mcp", "list")
        assert "mcpmux" in listed and "index.js" not in listed
    assert run(env, "uninstall", "all").returncode == 0
    assert texts() == before
