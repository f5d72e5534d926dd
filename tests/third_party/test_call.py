"""`mcpmux call` with every tool of the reference server: what a person reads, and the exit code."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import COMMAND, PATIENCE, Terminal

from .harness import ChatApi, Launcher, Party, Site

Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Case:
    """A call, and words of what it shows; `stderr` has words of what it says there."""

    tool: str
    arguments: dict[str, Any] = field(default_factory=dict)
    stdout: str = ""
    code: int = 0
    stderr: str = ""

    def __str__(self) -> str:
        return self.tool


CASES = [
    Case("echo", {"message": "héllo 😀"}, "Echo: héllo 😀\n"),
    Case("echo", {}, "", 2, "message is missing\n  everything__echo(message: string)"),
    Case(
        "get-annotated-message", {"messageType": "error", "includeImage": True}, "Error: Operation failed\n(image/png, "
    ),
    Case("get-env", {}, '"HOME": '),
    Case("get-resource-links", {"count": 2}, "demo://resource/dynamic/text/2 (Text Resource 2, text/plain"),
    Case(
        "get-resource-reference",
        {"resourceType": "Text", "resourceId": 1},
        "demo://resource/dynamic/text/1\nResource 1:",
    ),
    Case("get-resource-reference", {"resourceType": "Blob", "resourceId": 2}, "bytes; --output FILE keeps it)"),
    Case("get-structured-content", {"location": "Chicago"}, '"conditions":"Light rain / drizzle"'),
    Case("get-sum", {"a": 1.5, "b": 2}, "The sum of 1.5 and 2 is 3.5.\n"),
    Case("get-sum", {"a": "x"}, "", 2, "b is missing\n  everything__get-sum(a: number, b: number)"),
    Case("get-tiny-image", {}, "(image/png, "),
    Case(
        "gzip-file-as-resource",
        {"name": "a.gz", "data": "data:text/plain,squeeze", "outputType": "resource"},
        "demo://resource/session/a.gz\n(application/gzip, ",
    ),
    Case("toggle-simulated-logging", {}, "Started simulated, random-leveled logging"),
    Case("toggle-subscriber-updates", {}, "Started simulated resource updated notifications"),
    Case(
        "trigger-long-running-operation",
        {"duration": 0.04, "steps": 4},
        "Long running operation completed. Duration: 0.04 seconds, Steps: 4.\n",
        stderr="trigger-long-running-operation: [####################] 4/4\n",
    ),
    Case("get-roots-list", {}, "URI: file:///"),
    Case("trigger-sampling-request", {"prompt": "hello", "maxTokens": 5}, "from the model of the config"),
    Case("trigger-elicitation-request", {}, '"action": "decline"', stderr="declined, because stdin is no terminal"),
    Case(
        "trigger-url-elicitation",
        {"url": "https://example.org/1", "elicitationId": "e-1"},
        '"action": "decline"',
        stderr="declined, because stdin is no terminal",
    ),
    Case(
        "trigger-url-elicitation",
        {"url": "https://example.org/2", "elicitationId": "e-2", "errorPath": True},
        "",
        1,
        "(-32042)",
    ),
    Case("simulate-research-query", {"topic": "x"}, "# Research Report: x"),  # a task: it can be called in no other way
]


@pytest.fixture(scope="module")
def command(module_launcher: Launcher, parties: dict[str, Party], site: Site, provider: ChatApi) -> Iterator[list[str]]:
    """`mcpmux --config …` in front of the server, with a model and roots of its own: so it offers every tool it has."""
    everything = parties["everything"]
    rooted = Party(everything.name, everything.command, everything.args, keys={"roots": [str(site.path)]})
    yield module_launcher.command(rooted, sampling=provider.table)


@pytest.fixture(scope="module")
def run(module_launcher: Launcher, command: list[str]) -> Any:
    def runner(*words: str) -> Done:
        done = subprocess.run(
            [*command, *words],
            input="",
            capture_output=True,
            encoding="utf-8",
            env=module_launcher.env,
            timeout=PATIENCE,
        )
        assert "Traceback" not in done.stderr
        return done

    return runner


def test_every_tool_is_called_here(run: Any):
    offered = [tool["name"] for tool in json.loads(run("tools", "--json").stdout)["tools"]]
    assert {f"everything__{case.tool}" for case in CASES} == set(offered)


@pytest.fixture(scope="module")
def calls(run: Any, provider: ChatApi) -> list[Done]:
    """What each of the cases comes to, in their order; two run at once."""
    run("check")
    provider.says("from the model of the config")
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda case: run("call", f"everything__{case.tool}", json.dumps(case.arguments)), CASES))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_call_shows_what_the_tool_answers(case: Case, calls: list[Done]):
    done = calls[CASES.index(case)]
    assert done.returncode == case.code, done.stderr
    assert case.stdout in done.stdout
    assert bool(done.stdout) == (case.code == 0)
    assert case.stderr in done.stderr


def test_a_person_sees_which_model_is_asked_and_what_it_took(calls: list[Done]):
    [said] = [done.stderr for case, done in zip(CASES, calls, strict=True) if case.tool == "trigger-sampling-request"]
    [asked, took] = [line.partition(": ") for line in said.splitlines() if line.startswith("openai/")]
    assert asked[2] == "asked for everything" and asked[0].startswith(took[0])
    assert took[2] == "7 tokens in, 3 out, at a price that nobody knows"


def test_check_asks_a_model_for_a_token_when_it_is_told_to(run: Any, calls: list[Done], provider: ChatApi):
    provider.forget()
    assert run("check").returncode == 0
    assert provider.requests == []
    provider.replies.put(lambda _: {"content": ""})
    assert run("check", "--model").returncode == 0
    assert [one["max_tokens"] for one in provider.requests] == [1]
    provider.calls(a=("nobody-offered-it", {}))
    failed = run("check", "--model", "everything")
    assert failed.returncode == 1
    assert "sampling: does not work: openai/x called a tool that nobody offered; ask again" in failed.stdout


def test_the_raw_result_and_the_picture_in_a_file_are_the_same(run: Any, tmp_path: Path):
    raw = json.loads(run("call", "everything__get-tiny-image", "--json").stdout)
    [image] = [block for block in raw["content"] if block["type"] == "image"]
    file = tmp_path / "tiny.png"
    assert run("call", "everything__get-tiny-image", "-o", str(file)).returncode == 0
    assert file.read_bytes() == base64.b64decode(image["data"])


needs_pty = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals in Python's library")


@needs_pty
def test_a_person_sees_progress_in_place(module_launcher: Launcher, command: list[str]):
    arguments = json.dumps({"duration": 0.2, "steps": 2})
    tool = "everything__trigger-long-running-operation"
    terminal = Terminal(module_launcher.env, *command[len(COMMAND) :], "call", tool, arguments)
    terminal.until("[##########          ] 1/2")
    terminal.until("\x1b[2A\x1b[J")
    terminal.until("[####################] 2/2")
    terminal.until("Long running operation completed.")
    assert terminal.close() == 0


@needs_pty
def test_a_person_fills_in_the_servers_form(module_launcher: Launcher, command: list[str]):
    """Every kind of field that the protocol has, with the server's own defaults."""
    tool = "everything__trigger-elicitation-request"
    terminal = Terminal(module_launcher.env, *command[len(COMMAND) :], "call", tool)
    terminal.until("Please provide inputs")
    terminal.until("> ")
    terminal.types("Ada")
    fields = 1
    while terminal.until("> ", "send this?").endswith("> "):
        terminal.types("")
        fields += 1
    assert fields > 10
    terminal.types("y")
    terminal.until('"action": "accept"')
    assert terminal.close() == 0
    assert '"name": "Ada"' in terminal.shown


@needs_pty
def test_a_person_is_sent_to_an_address_and_the_call_is_made_again(
    module_launcher: Launcher, command: list[str], tmp_path: Path
):
    """-32042: the call is refused until a page has been visited."""
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > "{opened}"\n')
    browser.chmod(0o755)
    env = module_launcher.env | {"BROWSER": f"{browser} %s"}
    arguments = json.dumps({"url": "https://example.org/3", "elicitationId": "e-3", "errorPath": True})
    terminal = Terminal(env, *command[len(COMMAND) :], "call", "everything__trigger-url-elicitation", arguments)
    page = terminal.until("open it in the browser?").splitlines()[-2].strip()
    assert page.startswith("https://")
    terminal.types("y")
    terminal.until("Enter when you are done there: ")
    assert opened.read_text() == f"{page}\n"
    terminal.types("")
    terminal.until("  https://example.org/3\n")  # now the tool itself asks
    terminal.until("n: decline, c: cancel: ")
    terminal.types("n")
    terminal.until('"action": "decline"')
    assert terminal.close() == 0
