"""A first start by npx and the like fetches what it runs: it is never ended in the middle of that. It is our choice."""

from __future__ import annotations

import asyncio
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import COMMAND, FAKE, PATIENCE, RawHost, is_running, server_table

import mcpmux
from mcpmux import Command, Minder

linux = pytest.mark.skipif(sys.platform != "linux", reason="npx's stand-in is a shell script with FIFOs")

# As npx does: who is ended while it fetches leaves a copy behind that is broken for good.
NPX = """#!/bin/sh
if [ -d {folder}/copy ] && [ ! -e {folder}/copy/whole ]; then
    echo "Error [ERR_MODULE_NOT_FOUND]: Cannot find package 'x' imported from {folder}/_npx/0123456789abcdef/x.js" >&2
    exit 1
fi
if [ ! -d {folder}/copy ]; then
    mkdir {folder}/copy
    echo "npm is fetching" >&2
    echo $$ > {folder}/notice
    read -r word < {folder}/gate
    echo "npm has fetched" >&2
    touch {folder}/copy/whole
fi
exec {server} "$@"
"""


class Registry:
    """A slow one: `begun()` waits until npx is fetching, `opens()` lets it finish."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.npx, self.copy, self._folder = folder / "npx", folder / "copy", folder
        for name in ("notice", "gate"):
            os.mkfifo(folder / name)
        self.npx.write_text(NPX.format(folder=folder, server=shlex.join([sys.executable, str(FAKE)])))
        self.npx.chmod(0o755)

    def begun(self) -> int:
        return int((self._folder / "notice").read_text())

    def opens(self) -> None:
        (self._folder / "gate").write_text("go\n")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def ended() -> Iterator[Callable[[int], bool]]:
    """Waits for a process's end; one that stays is ended with the test."""
    handles: list[int] = []

    def has_ended(pid: int) -> bool:
        try:
            handles.append(os.pidfd_open(pid))
        except ProcessLookupError:
            return True
        return bool(select.select(handles[-1:], [], [], PATIENCE)[0])

    yield has_ended
    for handle in handles:
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.close(handle)


@linux
@pytest.mark.parametrize("how", ["end of input", "SIGTERM"])
def test_what_npx_fetches_is_fetched_to_the_end_though_the_host_goes(
    how: str, start: Callable[..., RawHost], registry: Registry, ended: Callable[[int], bool]
):
    """Claude Desktop gives up on a first start; the next one has to work."""
    table = server_table("one", command=str(registry.npx))
    host = start(table)
    host.initialize()
    fetching = registry.begun()
    assert host.process.stdin
    if how == "SIGTERM":
        host.process.send_signal(signal.SIGTERM)
    else:
        host.process.stdin.close()
    assert host.process.wait(PATIENCE) == 0
    assert is_running(fetching)
    assert not (registry.copy / "whole").exists()

    second = start(table)
    second.initialize()
    number = second.ask("tools/list")  # it waits for its turn, or would find the copy broken
    registry.opens()
    assert len(second.answer(number)["result"]["tools"]) > 5
    assert ended(fetching), "its input has ended, and it does not live on"


def has_minder(mcpmux: int) -> None:
    """Returns when the shell beside a start is there: npx may be quicker than that."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        children = Path(f"/proc/{mcpmux}/task/{mcpmux}/children").read_text().split()
        if any(b"mcpmux minder" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children):
            return
        os.sched_yield()
    raise AssertionError("no minder was started")


@linux
def test_an_npx_that_is_killed_with_mcpmux_would_have_left_a_broken_copy(
    start: Callable[..., RawHost], registry: Registry, ended: Callable[[int], bool]
):
    """Even then it is seen through: the shell beside it hears that mcpmux is gone."""
    host = start(server_table("one", command=str(registry.npx)))
    host.initialize()
    fetching = registry.begun()
    has_minder(host.process.pid)
    host.process.kill()
    host.process.wait(PATIENCE)
    assert is_running(fetching)
    registry.opens()
    assert ended(fetching)
    assert (registry.copy / "whole").exists()


@linux
def test_a_check_that_gives_up_leaves_npx_to_finish_and_says_so(
    home: dict[str, str], registry: Registry, ended: Callable[[int], bool], tmp_path: Path
):
    config = tmp_path / "mcpmux.toml"
    config.write_text(server_table("one", command=str(registry.npx), startup_timeout_sec=0.3))
    command = [*COMMAND, "check", "--config", str(config)]
    with subprocess.Popen(command, env=home, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        fetching = registry.begun()
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert '\none: one did not answer `initialize` within 1.2 s; its last words: "npm is fetching"\n' in said
    assert "\n  next: it may still be fetching, and goes on with that; try again in a while\n" in said
    assert is_running(fetching)
    registry.opens()
    assert ended(fetching)
    config.write_text(server_table("one", command=str(registry.npx)))
    assert subprocess.run(command, env=home, capture_output=True, check=False).returncode == 0


def holds(pid: int, pipe: str) -> bool:
    """Whether a process has this one open."""
    for one in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(one) == pipe:
                return True
        except FileNotFoundError:
            pass  # closed in the meantime
    return False


@linux
def test_what_has_closed_its_output_fetches_nothing_any_more(home: dict[str, str], registry: Registry, tmp_path: Path):
    """Its pipes may be seen to close before it is seen to end: why it ended is told all the same."""
    gate, notice, pipe = (registry.npx.parent / name for name in ("gate", "notice", "pipe"))
    words = "Cannot find package"
    lines = ["#!/bin/sh", f"echo '{words}' >&2", f"readlink /proc/$$/fd/1 > {pipe}", "exec >&-", f"echo $$ > {notice}"]
    registry.npx.write_text("\n".join([*lines, f"read -r word < {gate}", "exit 1", ""]))
    config = tmp_path / "mcpmux.toml"
    config.write_text(server_table("one", command=str(registry.npx)))
    command = [*COMMAND, "check", "--config", str(config)]
    with subprocess.Popen(command, env=home, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        registry.begun()
        inode, end = pipe.read_text().strip(), time.monotonic() + PATIENCE
        while holds(process.pid, inode):
            assert time.monotonic() < end, "mcpmux has not noticed it"
            os.sched_yield()
        registry.opens()
        said, _ = process.communicate(timeout=PATIENCE)
    assert f'\none: one exited with code 1; its last words: "{words}"\n' in said


@linux
def test_a_server_that_has_said_a_word_is_stopped_as_ever(
    start: Callable[..., RawHost], registry: Registry, tmp_path: Path
):
    registry.copy.mkdir()
    (registry.copy / "whole").touch()
    stubborn = ["--ignore-eof", "--ignore-term", "--pid-file", str(tmp_path / "pids")]
    host = start(server_table("one", *stubborn, command=str(registry.npx)))
    host.initialize()
    host.tools()
    [pid] = (tmp_path / "pids").read_text().split()
    assert is_running(int(pid))
    assert host.close() == 0
    assert not is_running(int(pid))


@linux
def test_what_is_left_to_fetch_has_an_end(monkeypatch: pytest.MonkeyPatch, ended: Callable[[int], bool]):
    """A server that heeds no end of its input is no download."""
    monkeypatch.setattr(mcpmux, "FETCH_MOST", 1.0)
    stubborn = [sys.executable, str(FAKE), "--silent", "--ignore-eof", "--ignore-term"]
    process = subprocess.Popen(
        stubborn, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    minder = Minder(None, process.pid, [process.stdout.fileno(), process.stderr.fileno()])
    pid = minder.take_over()
    assert pid
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()
    assert process.wait(PATIENCE) == -signal.SIGKILL
    os.waitpid(pid, 0)


@linux
def test_two_that_fetch_the_same_take_turns(home: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    """Also two mcpmux: Claude Desktop starts each server twice."""
    monkeypatch.setenv("HOME", home["HOME"])
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def command(program: str, *args: str) -> Command:
        return Command(program, list(args), {}, None, frozenset())

    async def run() -> None:
        async with asyncio.timeout(PATIENCE):
            first = await mcpmux.turn_to_fetch(command("/usr/bin/npx", "-y", "a", "/x"))
            other = await mcpmux.turn_to_fetch(command("npx", "-y", "b"))
            assert await mcpmux.turn_to_fetch(command("uvx", "a")) is None, "uv has locks of its own"
            second = asyncio.create_task(mcpmux.turn_to_fetch(command("npx", "-y", "a", "/y")))
            assert not (await asyncio.wait({second}, timeout=0.3))[0]
            assert first is not None
            os.close(first)
            for lock in (await second, other):
                assert lock is not None
                os.close(lock)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("line", "launcher"),
    [
        ("npx -y a", "npx"),
        ("/opt/node/bin/npx a", "npx"),
        ("npx.cmd a", "npx"),
        ("uvx a", "uvx"),
        ("uv tool run a", "uv"),
        ("uv --quiet run a", "uv"),
        ("uv sync", ""),
        ("pnpm dlx a", "pnpm"),
        ("pnpm start", ""),
        ("docker run -i a", "docker"),
        ("docker exec a", ""),
        ("python -m a", ""),
        ("a-npx", ""),
    ],
)
def test_who_may_have_to_fetch_is_known_by_its_words(line: str, launcher: str):
    program, *args = line.split()
    assert mcpmux.launcher_of(program, args) == launcher


# ── what is not known yet ──


@linux
def test_a_list_does_not_wait_for_one_slow_server_and_is_whole_later(start: Callable[..., RawHost], tmp_path: Path):
    """`first_list_sec`: what is known is told, the rest is announced, and the next start has it all from the cache."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    known, slow = server_table("known"), server_table("slow", "--gate", str(gate))
    host = start(known)
    host.initialize()
    assert {name.partition("__")[0] for name in host.tools()} == {"known"}
    host.close()

    host = start("[mux]\nfirst_list_sec = 0.2\n", known, slow)
    host.initialize()
    assert {name.partition("__")[0] for name in host.tools()} == {"known"}
    gate.write_text("x")
    host.until(lambda message: message.get("method") == "notifications/tools/list_changed")
    assert {name.partition("__")[0] for name in host.tools()} == {"known", "slow"}
    assert host.close() == 0

    host = start("[mux]\nfirst_list_sec = 0.2\n", known, slow)
    host.initialize()
    assert {name.partition("__")[0] for name in host.tools()} == {"known", "slow"}, "though its gate is closed"


@linux
def test_what_a_slow_server_offers_is_learnt_though_the_host_goes(
    start: Callable[..., RawHost], tmp_path: Path, home: dict[str, str]
):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    known, slow = server_table("known"), server_table("slow", "--gate", str(gate))
    host = start(known)
    host.initialize()
    host.tools()
    host.close()
    host = start("[mux]\nfirst_list_sec = 0.2\n", known, slow)
    host.initialize()
    assert {name.partition("__")[0] for name in host.tools()} == {"known"}
    assert host.close() == 0
    gate.write_text("x")  # somebody still reads it
    command = [*COMMAND, "list", "--json", "--config", str(tmp_path / "mcpmux.toml")]
    for _ in range(100):
        listed = json.loads(subprocess.run(command, env=home, capture_output=True, check=True).stdout)
        if all(row["tools"] for row in listed["servers"]):
            return
    pytest.fail("it is not learnt")
