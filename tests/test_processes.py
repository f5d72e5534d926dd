"""Real processes: how servers are started, what they inherit, and that nothing of them is left when mcpmux ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import COMMAND, FAKE, PATIENCE, RawHost, is_running, server_table
from hypothesis import example, given
from hypothesis import strategies as st

import mcpmux

Serve = Callable[..., RawHost]
Watch = Callable[[int], int]

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals, groups, sessions and shells are POSIX's")
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and waits on pidfds: Linux only")

SHUTDOWN_GUARD = 15.0  # seconds; the ladder takes 1.5 at most: this only tells a slow machine from one that hangs


@pytest.fixture
def watch() -> Iterator[Watch]:
    """`watch(pid)` is a handle on a process that is none of ours, for `has_ended`; a survivor ends with the test."""
    handles: list[int] = []

    def watcher(pid: int) -> int:
        handles.append(os.pidfd_open(pid))
        return handles[-1]

    yield watcher
    for handle in handles:
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.close(handle)


def has_ended(handle: int) -> bool:
    """Waits for a process's end."""
    return bool(select.select([handle], [], [], SHUTDOWN_GUARD)[0])


class Notice:
    """A fifo that a server writes its pid to as soon as it runs: waiting for that needs no answer of it."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._end = os.open(path, os.O_RDWR)  # both ends, so that no writer's leaving is an end of file

    def read(self) -> int:
        assert select.select([self._end], [], [], PATIENCE)[0], "no server has started"
        return int(os.read(self._end, 100))

    def close(self) -> None:
        os.close(self._end)


@pytest.fixture
def notice(tmp_path: Path) -> Iterator[Notice]:
    notice = Notice(tmp_path / "notice")
    yield notice
    notice.close()


def tell_to_end(host: RawHost, how: str) -> None:
    assert host.process.stdin
    if how == "end of input":
        host.process.stdin.close()
    else:
        host.process.send_signal(getattr(signal, how))


def answers_to(host: RawHost, numbers: list[int]) -> list[str]:
    """The texts of failed tool calls, in this order."""
    texts: list[str] = []
    for number in numbers:
        result = host.answer(number)["result"]
        assert result["isError"] is True
        texts.append(result["content"][0]["text"])
    return texts


# ── the end ──


@linux
@pytest.mark.parametrize("how", ["end of input", "SIGTERM", "SIGINT", "SIGHUP"])
def test_nothing_is_left_running_whatever_the_servers_are_like(
    serve: Serve, watch: Watch, tmp_path: Path, how: str
) -> None:
    """Our choice, since 2025-11-25 basic/lifecycle asks it of clients: end of input, SIGTERM, SIGKILL."""
    kinds: dict[str, list[str]] = {
        "polite": [],
        "stays_at_eof": ["--ignore-eof"],
        "stubborn": ["--ignore-eof", "--ignore-term"],
        "parent": ["--grandchild", str(tmp_path / "parent.child")],
        "parent_of_a_session": ["--grandchild", str(tmp_path / "session.child"), "--grandchild-session"],
        "stubborn_parent": ["--grandchild", str(tmp_path / "stubborn.child"), "--grandchild-session"],
    }
    kinds["stubborn_parent"] += kinds["stubborn"]
    host = serve(*(server_table(name, *vices) for name, vices in kinds.items()))
    host.initialize()
    pids = {name: int(host.text(f"{name}__pid")) for name in kinds}
    children = {path.stem: int(path.read_text()) for path in tmp_path.glob("*.child")}
    handles = {name: watch(pid) for name, pid in children.items()}
    for pid in pids.values():
        watch(pid)
    assert all(is_running(pid) for pid in [*pids.values(), *children.values()])
    assert len(children) == 3

    tell_to_end(host, how)
    assert host.process.wait(SHUTDOWN_GUARD) == 0
    assert [name for name, pid in pids.items() if is_running(pid)] == []  # waited for, hence no later than mcpmux
    assert [name for name, handle in handles.items() if not has_ended(handle)] == []


@linux
@pytest.mark.parametrize("how", ["end of input", "SIGTERM"])
def test_a_server_that_has_not_answered_its_handshake_is_ended_too(
    serve: Serve, watch: Watch, notice: Notice, tmp_path: Path, how: str
) -> None:
    """Our choice: down the same ladder, and the list that waits for it is answered first."""
    table = server_table("silent", "--silent", "--ignore-eof", "--say-goodbye", "--pid-file", str(notice.path))
    host = serve(table, env={"XDG_STATE_HOME": str(tmp_path / "state")})
    host.initialize()
    listing = host.ask("tools/list")
    pid = notice.read()
    watch(pid)
    assert is_running(pid)
    tell_to_end(host, how)
    assert "mcpmux is stopping" in host.answer(listing)["error"]["message"]
    assert host.process.wait(SHUTDOWN_GUARD) == 0
    assert not is_running(pid)
    assert logs_of(host, tmp_path / "state", "silent") == "goodbye at end of input\ngoodbye at SIGTERM\n"


@linux
def test_a_detached_child_of_a_server_that_crashed_ends_with_mcpmux(serve: Serve, watch: Watch, tmp_path: Path) -> None:
    """Our choice: mcpmux is the reaper of whatever its servers leave behind."""
    file = tmp_path / "child"
    host = serve(server_table("one", "--grandchild", str(file), "--grandchild-session"))
    host.initialize()
    host.tools()
    child = watch(int(file.read_text()))
    assert "exited with code 3" in host.text("one__crash")
    assert host.close() == 0
    assert has_ended(child)


@linux
def test_servers_do_not_outlive_an_mcpmux_that_is_killed_outright(serve: Serve, watch: Watch, tmp_path: Path) -> None:
    """Our choice: those that do not heed the end of their input have a guardian, which ends with mcpmux too."""
    kinds = {"polite": [], "deaf": ["--ignore-eof"], "stubborn": ["--ignore-eof", "--ignore-term"]}
    kinds["parent"] = ["--ignore-eof", "--grandchild", str(tmp_path / "child")]
    host = serve(*(server_table(name, *vices) for name, vices in kinds.items()))
    host.initialize()
    watched = {name: watch(int(host.text(f"{name}__pid"))) for name in kinds}
    watched["grandchild"] = watch(int((tmp_path / "child").read_text()))
    [guardian] = [pid for pid in mcpmux.descendants(host.process.pid) if name_of(pid) == "mcpmux guardian"]
    files = open_files(guardian)
    assert files.pop("0").startswith("pipe:")
    assert set(files.values()) == {os.devnull}
    assert os.getsid(guardian) == guardian
    assert Path(f"/proc/{guardian}/environ").read_bytes().count(b"=") == 1  # a path, and no key
    watched["guardian"] = watch(guardian)
    host.process.kill()
    assert [name for name, handle in watched.items() if not has_ended(handle)] == []


@posix
def test_the_guardian_ends_the_groups_that_are_left() -> None:
    """Numbers are used again: one that was taken out is somebody else's."""
    sleepers = [subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in range(4)]
    guardian = mcpmux.Guardian()
    guardian.start()
    try:
        for sleeper in sleepers:
            guardian.add(sleeper.pid)
        for sleeper in sleepers[::2]:
            guardian.remove(sleeper.pid)
        guardian.close()
        assert guardian._shell
        assert guardian._shell.wait(PATIENCE) == 0
        assert [sleeper.wait(PATIENCE) for sleeper in sleepers[1::2]] == [-signal.SIGTERM] * 2
        assert [sleeper.poll() for sleeper in sleepers[::2]] == [None] * 2
        guardian.close()
        guardian.remove(1)  # once it has ended this is nothing
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()


def test_servers_are_started_one_in_a_turn_of_the_loop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Our choice: seventy starts take seconds, and the host may go meanwhile."""
    at_once = most = spawned = 0

    async def spawn(*_: Any) -> None:
        nonlocal at_once, most, spawned
        at_once, most, spawned = at_once + 1, max(most, at_once + 1), spawned + 1
        await asyncio.sleep(0)
        at_once -= 1
        raise mcpmux.StartError("it is gone", "")

    monkeypatch.setattr(mcpmux, "spawn", spawn)

    async def start_all() -> None:
        names = [f"s{number}" for number in range(10)]
        servers = dict.fromkeys(names, mcpmux.ServerOptions(command=sys.executable))
        journal = mcpmux.Journal("error", None)
        mux = mcpmux.Mux(mcpmux.Config(tmp_path / "x", servers=servers), mcpmux.HostPipes(0, 1, 1000), journal)
        mux._loop = asyncio.get_running_loop()
        await asyncio.gather(*(mux._start(name, 1) for name in names))
        journal.close()
        mux._guardian.close()

    asyncio.run(start_all())
    assert (most, spawned) == (1, 10)


def test_what_lies_in_the_pipes_is_read_before_a_timer_that_comes_late(tmp_path: Path) -> None:
    """Our choice: after a SIGSTOP, or a night's sleep, an answer that has come is no late one."""

    async def oversleep() -> None:
        journal = mcpmux.Journal("error", None)
        loop = asyncio.get_running_loop()
        mux = mcpmux.Mux(mcpmux.Config(tmp_path / "x"), mcpmux.HostPipes(0, 1, 1000), journal)
        mux._loop, timer = loop, ("call", "x")
        mux._is_hearing = True  # what is posted stays where it is
        for late, posted in ((0.1, 1), (60.0, 0)):
            mux._inbox.clear()
            mux._set_timer(timer, loop.time() - late)
            mux._timer_due(timer)
            assert len(mux._inbox) == posted
            assert (timer in mux._timers) != posted
        assert loop.time() < mux._timers[timer].when() <= loop.time() + mcpmux.WOKEN
        mux._set_timer(timer, None)
        journal.close()

    asyncio.run(oversleep())


@linux
@pytest.mark.parametrize("how", ["at once", "later"])
def test_a_launcher_that_exits_while_its_child_serves_the_pipes_is_no_dead_server(
    serve: Serve, watch: Watch, notice: Notice, tmp_path: Path, how: str
) -> None:
    """Our choice: an exit without a fault says nothing of who has the pipes."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    wait = f"read line < {shlex.quote(str(gate))}; " if how == "later" else ""
    line = (
        f"exec 3<&0; {shlex.quote(sys.executable)} {shlex.quote(str(FAKE))} --name x <&3 3<&- & exec 3<&-; {wait}exit 0"
    )
    host = serve(server_table("x", "-c", line, command="/bin/sh"))
    host.initialize()
    pid = int(host.text("x__pid"))
    behind = watch(pid)
    if how == "later":
        launcher = watch(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]))
        gate.write_text("go\n")
        assert has_ended(launcher)
    for _ in range(3):
        assert int(host.text("x__pid")) == pid
    assert host.close() == 0
    assert has_ended(behind)


@posix
def test_more_signals_do_not_disturb_the_end(serve: Serve) -> None:
    """Our choice: the ladder is gone down once."""
    host = serve(server_table("stubborn", "--ignore-eof", "--ignore-term"))
    host.initialize()
    pid = int(host.text("stubborn__pid"))
    held = host.hold("stubborn")
    host.process.send_signal(signal.SIGTERM)
    host.answer(held)  # so it is on its way down, and this server takes it to the last step
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        host.process.send_signal(number)
    assert host.process.wait(SHUTDOWN_GUARD) == 0
    assert not is_running(pid)
    assert "Traceback" not in host.log()


@pytest.mark.requirement("stopped-gently")
@posix
@pytest.mark.parametrize(
    ("vices", "words"),
    [
        (["--say-goodbye"], ["goodbye at end of input"]),
        (["--say-goodbye", "--ignore-eof"], ["goodbye at end of input", "goodbye at SIGTERM"]),
    ],
)
def test_a_server_may_end_by_itself_before_it_is_told_and_told_before_it_is_killed(
    serve: Serve, tmp_path: Path, vices: list[str], words: list[str]
) -> None:
    """2025-11-25 basic/lifecycle: close its input, then SIGTERM, then SIGKILL, with time after each."""
    host = serve(server_table("one", *vices), env={"XDG_STATE_HOME": str(tmp_path / "state")})
    host.initialize()
    host.tools()
    assert host.close() == 0
    assert logs_of(host, tmp_path / "state", "one").splitlines() == words


@pytest.mark.parametrize("how", ["end of input", pytest.param("SIGTERM", marks=posix)])
def test_whoever_waits_when_mcpmux_ends_is_answered_before_its_output_closes(serve: Serve, how: str) -> None:
    """Our choice: a host that has closed its end may still read."""
    host = serve(server_table("one"), server_table("two"))
    host.initialize()
    held = [host.hold(name) for name in ("one", "two", "one")]
    tell_to_end(host, how)
    reason = "the host closed its end" if how == "end of input" else how
    assert answers_to(host, held) == [f"mcpmux is stopping: {reason}"] * 3
    with pytest.raises(EOFError):
        host.until(lambda message: False)
    assert host.process.wait(SHUTDOWN_GUARD) == 0


@linux
def test_a_host_that_no_longer_reads_is_a_host_that_is_gone(home: dict[str, str], tmp_path: Path) -> None:
    """Our choice: what is written to nobody ends mcpmux as the end of input does."""
    config = tmp_path / "mcpmux.toml"
    config.write_text(server_table("stubborn", "--ignore-eof", "--pid-file", str(tmp_path / "pid")))
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [*COMMAND, "--config", str(config)],
        stdin=subprocess.PIPE,
        stdout=writing,
        stderr=subprocess.DEVNULL,
        env=home,
    )
    os.close(writing)
    assert process.stdin
    try:
        with open(reading, "rb") as answers:
            hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
            process.stdin.write(request(1, "initialize", hello) + request(2, "tools/list"))
            process.stdin.flush()
            assert [json.loads(answers.readline())["id"] for _ in range(2)] == [1, 2]
        process.stdin.write(request(3, "ping"))
        process.stdin.flush()
        assert process.wait(SHUTDOWN_GUARD) == 0
        assert not is_running(int((tmp_path / "pid").read_text()))
    finally:
        process.kill()
        process.wait()
        process.stdin.close()


# ── the host's pipes ──


def request(number: int, method: str, params: Any = None) -> bytes:
    message = {"jsonrpc": "2.0", "id": number, "method": method} | ({} if params is None else {"params": params})
    return json.dumps(message).encode() + b"\n"


def test_a_last_line_without_its_newline_is_served(serve: Serve) -> None:
    """Our choice: the end of input ends a line too."""
    host = serve()
    host.initialize()
    assert host.process.stdin
    host.process.stdin.write(request(7, "ping").rstrip())
    host.process.stdin.close()
    assert host.answer(7)["result"] == {}
    assert host.close() == 0


@posix
def test_a_loop_that_is_busy_is_woken_once_for_all_that_comes() -> None:
    """Our choice: each waking is a byte in the socket that signals come through, which takes a few hundred. A console:
    pipes are read in the loop."""
    import tty

    host, reading = os.openpty()
    tty.setraw(reading)
    sent = [b'{"id":%d}' % n for n in range(1000)]
    heard: list[mcpmux.Event] = []

    async def while_nothing_runs() -> None:
        gone = asyncio.Event()

        def hear(event: mcpmux.Event) -> None:
            heard.append(event)
            if isinstance(event, mcpmux.HostGone):
                gone.set()

        pipes = mcpmux.HostPipes(reading, os.open(os.devnull, os.O_WRONLY), 1000)
        pipes.start(hear, lambda source, room: None)
        for line in sent:
            os.write(host, line + b"\n")
            while select.select([reading], [], [], 0)[0]:
                pass  # the reader has not read it yet
        os.close(host)
        await gone.wait()
        await pipes.close()

    asyncio.run(while_nothing_runs())
    lines = [event.lines for event in heard if isinstance(event, mcpmux.HostLines)]
    assert [line for chunk in lines for line in chunk] == sent
    assert len(lines) <= 2  # the last line may come after the loop has looked


@posix
@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_the_hosts_pipes_are_in_the_loop_and_as_they_were_afterwards(kind: str) -> None:
    """Our choice: a waking of a thread costs more than all else of a call. A launcher may share the description."""
    pairs = [socket.socketpair() for _ in range(2)]
    (reading, host_writes), (host_reads, writing) = os.pipe(), os.pipe()
    if kind == "socket":
        for fd, end in zip((reading, host_writes, host_reads, writing), (*pairs[0], *pairs[1]), strict=True):
            os.dup2(end.fileno(), fd)
    ends, rooms, heard = (reading, writing), list[tuple[str, bool]](), list[mcpmux.Event]()
    size = 100_000

    async def serve_for_a_while() -> None:
        threads, gone = threading.active_count(), asyncio.Event()

        def hear(event: mcpmux.Event) -> None:
            heard.append(event)
            if isinstance(event, mcpmux.HostGone):
                gone.set()

        pipes = mcpmux.HostPipes(*ends, 1000)
        pipes.start(hear, lambda source, room: rooms.append((str(source), room)))
        assert threading.active_count() == threads
        assert [os.get_blocking(end) for end in ends] == [False] * 2
        for source, count in (("flood", 20), ("small", 1)):
            for _ in range(count):
                pipes.put(source, source.encode() * (size if source == "flood" else 1) + b"\n")
        pipes.flush()
        assert rooms == [("flood", False)]
        assert pipes.is_full("flood") and not pipes.is_full("small")
        begin = os.read(host_reads, 10)
        os.write(host_writes, b"one\ntwo")
        rest = asyncio.create_task(asyncio.to_thread(read_all, host_reads, 20 * (5 * size + 1) + 6 - len(begin)))
        came = begin + await rest
        assert came.index(b"small\n") < 3 * 5 * size  # at its turn
        assert came.count(b"flood") == 20 * size
        assert rooms == [("flood", False), ("flood", True)]
        os.close(host_writes)
        pairs[0][1].close()
        await gone.wait()
        await pipes.close()

    asyncio.run(serve_for_a_while())
    lines = [line for event in heard if isinstance(event, mcpmux.HostLines) for line in event.lines]
    assert lines == [b"one", b"two"]
    assert [os.get_blocking(end) for end in ends] == [True] * 2
    for end in (*ends, host_reads):
        os.close(end)
    for end in (end for pair in pairs for end in pair):
        end.close()


def read_all(end: int, size: int) -> bytes:
    """A thread's."""
    pieces: list[bytes] = []
    while size:
        pieces.append(os.read(end, min(size, 65536)))
        size -= len(pieces[-1])
    return b"".join(pieces)


def test_half_a_last_line_is_refused_like_any_bad_line(serve: Serve) -> None:
    """JSON-RPC 2.0, 5.1: -32700. The id is not known then: 2025-11-25 has that member absent, not null."""
    host = serve()
    host.initialize()
    assert host.process.stdin
    host.process.stdin.write(request(7, "ping")[:-9])
    host.process.stdin.close()
    refusal = host.until(lambda message: "error" in message)
    assert refusal["error"]["code"] == -32700
    assert "id" not in refusal
    assert host.close() == 0


def test_files_serve_as_well_as_pipes(home: dict[str, str], tmp_path: Path) -> None:
    """Our choice: `mcpmux <requests >answers` is how one tries a server by hand."""
    config = tmp_path / "mcpmux.toml"
    config.write_text(server_table("one"))
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    script = request(1, "initialize", hello) + b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n'
    script += request(2, "ping") + request(3, "tools/call", {"name": "one__echo"})
    (tmp_path / "requests").write_bytes(script)
    with (tmp_path / "requests").open("rb") as requests, (tmp_path / "answers").open("wb") as answers:
        command = [*COMMAND, "--config", str(config)]
        done = subprocess.run(
            command, stdin=requests, stdout=answers, stderr=subprocess.PIPE, env=home, timeout=PATIENCE
        )
    assert done.returncode == 0, done.stderr.decode()
    found = [json.loads(line) for line in (tmp_path / "answers").read_bytes().splitlines()]
    assert [one["id"] for one in found] == [1, 2, 3]
    assert found[0]["result"]["serverInfo"]["name"] == "mcpmux"
    assert found[1]["result"] == {}
    assert found[2]["result"]["isError"] is True  # the file has ended, and with it mcpmux
    assert "mcpmux is stopping" in found[2]["result"]["content"][0]["text"]


@linux
def test_no_server_inherits_a_pipe_of_the_host(serve: Serve, tmp_path: Path) -> None:
    """Our choice: whoever held one could write to the host, read its requests, or keep it from seeing our end."""
    file = tmp_path / "fds of a helper"
    helper = f"sh -c {shlex.quote(f'ls -l /proc/$$/fd > {shlex.quote(str(file))}; echo value')}"
    host = serve(server_table("one", env={"GIVEN": f"${{cmd:{helper}}}"}))
    pipes = {f"pipe:[{os.fstat(end.fileno()).st_ino}]" for end in pipes_of(host)}
    assert len(pipes) == 3
    host.initialize()
    assert json.loads(host.text("one__env"))["GIVEN"] == "value"
    pid = int(host.text("one__pid"))
    assert pipes <= set(open_files(host.process.pid).values())  # these are the names to look for
    assert not pipes & set(open_files(pid).values())
    assert not [pipe for pipe in pipes if pipe in file.read_text()]


@pytest.mark.requirement("stdout-is-ours")
@linux
def test_the_standard_descriptors_of_mcpmux_itself_lead_away_from_the_protocol(serve: Serve) -> None:
    """Our choice: then no library's stray print can break a line, and no helper can eat one."""
    host = serve()
    host.initialize()
    stdin, stdout, stderr = (f"pipe:[{os.fstat(end.fileno()).st_ino}]" for end in pipes_of(host))
    found = open_files(host.process.pid)
    assert (found["0"], found["1"], found["2"]) == ("/dev/null", stderr, stderr)
    assert {stdin, stdout} <= set(found.values())


@linux
def test_a_long_result_widens_the_pipes_that_it_comes_through(serve: Serve) -> None:
    """Our choice: through 64 KB at a time both ends would be woken sixteen times a megabyte."""
    host = serve(server_table("one"))
    host.initialize()
    server = os.open(f"/proc/{int(host.text('one__pid'))}/fd/1", os.O_RDONLY | os.O_NONBLOCK)
    ends = [server, pipes_of(host)[1].fileno()]
    assert host.text("one__big", bytes=1000) == "x" * 1000
    assert all(room_in(end) < mcpmux.PIPE_ROOM for end in ends)
    assert host.text("one__big", bytes=500_000) == "x" * 500_000
    assert [room_in(end) for end in ends] == [mcpmux.PIPE_ROOM] * 2
    os.close(server)


@linux
def test_a_pipe_is_widened_where_it_can_be_and_never_narrowed(tmp_path: Path) -> None:
    """Our choice: the host may have made it wider still, or have given a file."""
    import fcntl

    reading, writing = os.pipe()
    mcpmux.widen(writing)
    assert room_in(reading) == mcpmux.PIPE_ROOM
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 2 * mcpmux.PIPE_ROOM)
    mcpmux.widen(writing)
    assert room_in(reading) == 2 * mcpmux.PIPE_ROOM
    os.close(reading)
    os.close(writing)
    with (tmp_path / "file").open("wb") as file:
        mcpmux.widen(file)
    mcpmux.widen(file)  # of a server that has died meanwhile


def room_in(pipe: int) -> int:
    import fcntl

    return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)


@pytest.mark.requirement("stdout-is-ours")
@posix
def test_a_helper_command_can_neither_read_from_the_host_nor_write_to_it(serve: Serve) -> None:
    """Our choice: `cat` would wait for the host for ever, and an echo would be a bad line."""
    host = serve(server_table("one", env={"GIVEN": "${cmd:sh -c 'cat; echo noise >&2; echo value'}"}))
    host.initialize()
    assert json.loads(host.text("one__env"))["GIVEN"] == "value"


def pipes_of(host: RawHost) -> list[Any]:
    return [host.process.stdin, host.process.stdout, host.process.stderr]


def open_files(pid: int) -> dict[str, str]:
    folder = f"/proc/{pid}/fd"
    found: dict[str, str] = {}
    for number in os.listdir(folder):
        try:
            found[number] = os.readlink(f"{folder}/{number}")
        except FileNotFoundError:
            pass  # closed meanwhile
    return found


# ── what a server is given ──


@posix
def test_each_server_leads_a_session_and_group_of_its_own(serve: Serve) -> None:
    """Our choice: a terminal's Ctrl-C is for mcpmux to hand on, and a group can be killed as one."""
    host = serve(server_table("one"), server_table("two"))
    host.initialize()
    for pid in (int(host.text("one__pid")), int(host.text("two__pid"))):
        assert (os.getpgid(pid), os.getsid(pid)) == (pid, pid)


PASSED = {
    "LANG": "de_DE.UTF-8",
    "LC_TIME": "C",
    "TZ": "Europe/Berlin",
    "TMPDIR": "/tmp",
    "XDG_CACHE_HOME": "/tmp/cache",
    "HTTPS_PROXY": "http://proxy:1",
    "no_proxy": "localhost",
    "SSL_CERT_FILE": "/tmp/ca.pem",
    "NODE_EXTRA_CA_CERTS": "/tmp/ca.pem",
}
KEPT_BACK = {
    "AWS_SECRET_ACCESS_KEY": "s3cret-value",
    "PYTHONSTARTUP": "/tmp/x.py",
    "LD_AUDIT_OFF": "1",
    "NAMED": "by env_vars",
}
OURS = {"MCPMUX_KEY": "ours", "MCPMUX_XDG": "ours"}
USUAL = {"HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "TMPDIR", "LANG", "LANGUAGE", "TZ"}
USUAL |= {f"{name}_proxy" for name in ("http", "https", "no", "all")} | {
    f"{name}_PROXY" for name in ("HTTP", "HTTPS", "NO", "ALL")
}
USUAL |= {"USERPROFILE", "APPDATA", "LOCALAPPDATA"}  # Windows' folders; the fixture sets them everywhere
USUAL |= {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"}


@posix
def test_a_server_gets_the_safe_environment_and_what_its_table_names(serve: Serve) -> None:
    """Our choice: the official SDK's list, and what language, time, folders and a company's proxy need."""
    tables = [
        server_table("plain"),
        server_table("given", env={"GIVEN": "a ${NAMED} b", "LANG": "C"}, env_vars=["NAMED", "MCPMUX_KEY"]),
        server_table("trusted", env_vars=["*"]),
    ]
    host = serve(*tables, env=PASSED | KEPT_BACK | OURS)
    host.initialize()
    plain, given, trusted = (json.loads(host.text(f"{name}__env")) for name in ("plain", "given", "trusted"))
    assert {key: plain.get(key) for key in PASSED} == PASSED
    assert [key for key in plain if key not in USUAL and not mcpmux.is_safe(key, plain[key])] == []
    assert given.keys() - plain.keys() == {"GIVEN", "NAMED"}
    assert (given["GIVEN"], given["NAMED"], given["LANG"]) == ("a by env_vars b", "by env_vars", "C")
    assert {key: trusted.get(key) for key in KEPT_BACK} == KEPT_BACK
    assert not [key for key in trusted if key.startswith("MCPMUX_")]


def test_cwd_and_command_are_relative_to_the_config_file(serve: Serve, tmp_path: Path) -> None:
    """Our choice: a host may start mcpmux in any folder."""
    (tmp_path / "work").mkdir()
    (tmp_path / "bin").mkdir()
    if sys.platform == "win32":
        program = tmp_path / "bin" / "server.cmd"
        program.write_text(f'@"{sys.executable}" "{FAKE}" %*\n')
    else:
        program = tmp_path / "bin" / "server"
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(FAKE))} "$@"\n')
        program.chmod(0o755)
    by_path = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}${{PATH}}"}
    strange = ("--also", "where", "--name", FOR_CMD)
    host = serve(
        server_table("one", "--also", "where", cwd="work"),
        server_table("two", *strange, command=f"bin/{program.name}"),
        server_table("three", *strange, command=program.name, env=by_path),
    )
    host.initialize()
    told = {name: json.loads(host.text(f"{name}__where")) for name in ("one", "two", "three")}
    here = str(Path.cwd())
    assert [one["cwd"] for one in told.values()] == [str((tmp_path / "work").resolve()), here, here]
    assert [told[name]["argv"][-1] for name in ("two", "three")] == [FOR_CMD, FOR_CMD]


def test_on_windows_a_batch_file_is_started_by_a_line_for_cmd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also a browser's, whose address a server has chosen."""
    monkeypatch.setattr(sys, "platform", "win32")
    program, address = tmp_path / "browser.CMD", "https://x.example/?a=1&calc"
    for text, readings in (("@browser.exe %*", 2), ("@browser.exe %1", 1)):
        program.write_text(text)
        line = mcpmux.line_for_cmd(str(program), [address], readings)
        assert mcpmux.as_started(str(program), [address]) == {"args": line, "shell": True}
    assert mcpmux.as_started("browser.exe", [address]) == {"args": ["browser.exe", address], "shell": False}


@pytest.mark.skipif(
    sys.platform != "win32" and sys.version_info >= (3, 12), reason="Windows itself says there where to look"
)
def test_windows_does_not_run_a_program_of_the_folder_that_the_host_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hosts start mcpmux in the project that is open, and a project may bring its own npx.cmd."""
    places = tmp_path / "project", tmp_path / "bin"
    for place in places:
        place.mkdir()
        (place / "npx.CMD").touch(0o755)
    (places[0] / "uvx.CMD").touch(0o755)
    monkeypatch.chdir(places[0])
    monkeypatch.setenv("PATHEXT", ".CMD")
    monkeypatch.delenv("NODEFAULTCURRENTDIRECTORYINEXEPATH", raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    assert mcpmux.find_program("npx", str(places[1])) == str(places[1] / "npx.CMD")
    assert mcpmux.find_program("uvx", str(places[1])) is None


FOR_CMD = 'https://x.example/?a=1&b=%PATH%!PATH! ^"c" | (d) > \\'


def read_by_cmd(line: str) -> str:
    """What Windows' cmd makes of a line (https://ss64.com/nt/syntax-esc.html): a caret outside quotation marks takes
    the next character's meaning; what is left of that must not be a command of its own."""
    assert not re.search("%[^%^]+%", line), "a variable"
    read, quoted, rest = "", False, iter(line)
    for one in rest:
        if one == "^" and not quoted:
            one = next(rest)  # noqa: PLW2901
        elif one == '"':
            quoted = not quoted
        else:
            assert quoted or one not in "&|<>", "the end of the command"
        read += one
    return read


def arguments_of(line: str) -> list[str]:
    """As programs take them from their command line (Microsoft's C runtime)."""
    found, quoted = [""], False
    for slashes, one in re.findall(r'(\\*)("|[^\\"]|$)', line):
        found[-1] += slashes if one != '"' else slashes[: len(slashes) // 2]
        if one == '"' and len(slashes) % 2:
            found[-1] += one
        elif one == '"':
            quoted = not quoted
        elif one == " " and not quoted:
            found.append("")
        else:
            found[-1] += one
    return found


@pytest.mark.parametrize("readings", [1, 2])
@given(args=st.lists(st.text(r"ab\" &%^!|<>()[];,*?=:/-.é"), min_size=1, max_size=4))
@example(args=[FOR_CMD, "", "-y", "@scope/package@1.2"])
def test_cmd_hands_a_batch_file_its_arguments_as_they_are(readings: int, args: list[str]):
    """Python's own quoting lets cmd read `&` as the end of a command: CVE-2025-64340 of FastMCP's was that. What is
    plain is not quoted: a batch file may compare it."""
    line = mcpmux.line_for_cmd(r"C:\Program Files\nodejs\npx.CMD", args, readings)
    read = read_by_cmd(line).removeprefix(r"C:\Program Files\nodejs\npx.CMD ")
    if readings == 2:
        read = read_by_cmd(read)
    assert arguments_of(read) == args
    assert [one for one in args if one.isalpha() and one not in line.split(" ")] == []


# ── stderr ──


def logs_of(host: RawHost, state: Path, name: str) -> str:
    """A server's log, once mcpmux has ended and so written all of it."""
    host.close()
    return (state / "mcpmux" / "logs" / f"{name}.log").read_text()


@linux  # other platforms have other folders
@pytest.mark.parametrize("named", [True, False], ids=["XDG_STATE_HOME", "HOME"])
def test_stderr_goes_to_a_file_that_only_its_person_can_read(
    serve: Serve, home: dict[str, str], tmp_path: Path, named: bool
) -> None:
    """Our choice of place: the user state folder. 2025-11-25 basic/transports: stderr is a log, not an error."""
    state = tmp_path / "state" if named else Path(home["HOME"]) / ".local" / "state"
    host = serve(
        server_table("one", "--stderr", "listening on nothing"),
        server_table("two", "--stderr", "zwei: grün"),
        env={"XDG_STATE_HOME": str(state)} if named else {},
    )
    host.initialize()
    assert host.text("one__echo", x=1) == '{"x": 1}'
    host.text("two__echo")
    assert logs_of(host, state, "one") == "listening on nothing\n"
    assert logs_of(host, state, "two") == "zwei: grün\n"
    assert stat.S_IMODE((state / "mcpmux" / "logs" / "one.log").stat().st_mode) == 0o600
    assert "listening" not in host.log()


@linux
def test_a_log_goes_on_where_the_last_run_ended(serve: Serve, tmp_path: Path) -> None:
    """Our choice: what led to yesterday's crash is still there."""
    state = tmp_path / "state"
    for words in ("first", "second"):
        host = serve(server_table("one", "--stderr", words), env={"XDG_STATE_HOME": str(state)})
        host.initialize()
        host.tools()
        host.close()
    assert logs_of(host, state, "one") == "first\nsecond\n"


# ── crash and restart ──


def test_a_crash_is_told_with_its_code_last_words_and_log(serve: Serve) -> None:
    """Our choice: the error names server, exit code, last words of stderr and what to do."""
    host = serve(server_table("one", "--stderr", "opening the database"))
    host.initialize()
    result = host.call("one__crash", code=7)
    assert result["isError"] is True
    text = result["content"][0]["text"]
    assert 'one exited with code 7; its last words: "opening the database | about to crash"' in text
    assert "one.log" in text
    assert "the next call starts it again" in text


def test_a_server_that_crashed_stays_listed_and_is_started_by_the_next_call(serve: Serve) -> None:
    """Our choice: many hosts never list again, so the tools of a server that rests stay."""
    host = serve(server_table("one"), server_table("two"))
    host.initialize()
    listed = host.tools()
    first = host.text("one__pid")
    assert "exited with code 3" in host.text("one__crash")
    assert host.tools() == listed
    waiting = [host.ask("tools/call", {"name": "one__pid"}) for _ in range(5)]  # it rests, is started, answers
    assert host.text("two__echo", x=1) == '{"x": 1}'
    assert not any(message.get("id") in waiting for message in host.seen)
    texts = {host.answer(number)["result"]["content"][0]["text"] for number in waiting}
    assert len(texts) == 1
    assert texts != {first}
    assert host.tools() == listed
    assert not [message for message in host.seen if "list_changed" in message.get("method", "")]


def test_calls_that_wait_for_a_restart_are_answered_when_it_fails(serve: Serve, tmp_path: Path) -> None:
    """Our choice: with why it does not start."""
    script = tmp_path / "server.py"
    script.write_text(FAKE.read_text())
    host = serve(server_table("one", script=script), server_table("two"))
    host.initialize()
    host.tools()
    script.write_text("import sys; sys.exit('its module is gone')")
    host.text("one__crash")
    waiting = [host.ask("tools/call", {"name": "one__echo"}) for _ in range(3)]
    for text in answers_to(host, waiting):
        assert 'one exited with code 1; its last words: "its module is gone"' in text
    assert host.text("two__echo") == "{}"


@linux
def test_a_server_behind_a_shell_that_is_killed_goes_with_it_and_comes_back(serve: Serve, watch: Watch) -> None:
    """Our choice: a process's end is its end, even while a child of it holds the pipes open."""
    line = f"{shlex.quote(sys.executable)} {shlex.quote(str(FAKE))} --name shell --ignore-eof; true"
    host = serve(server_table("shell", "-c", line, command="/bin/sh"), server_table("two"))
    host.initialize()
    pid = int(host.text("shell__pid"))
    behind = watch(pid)
    shell = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert shell != host.process.pid
    held = host.hold("shell")
    os.kill(shell, signal.SIGKILL)
    [text] = answers_to(host, [held])
    assert "shell was killed by SIGKILL" in text
    assert has_ended(behind)
    assert int(host.text("shell__pid")) != pid
    assert host.text("two__echo") == "{}"


@linux
def test_a_server_that_closes_its_output_is_ended_and_started_anew(serve: Serve, watch: Watch) -> None:
    """Our choice: it can answer nothing any more, so nobody waits for its timeout."""
    host = serve(server_table("mute", "--also", "write"))
    host.initialize()
    pid = int(host.text("mute__pid"))
    behind = watch(pid)
    held = host.hold("mute")
    closing = host.ask("tools/call", {"name": "mute__write", "arguments": {"text": "", "close": [1]}})
    assert all("mute " in text for text in answers_to(host, [held, closing]))
    assert has_ended(behind)
    assert int(host.text("mute__pid")) != pid


@linux
def test_a_server_that_closes_its_input_is_ended_and_started_anew(serve: Serve, watch: Watch) -> None:
    """Our choice: it can be asked nothing any more, so nobody waits for its timeout."""
    host = serve(server_table("deaf", "--also", "write"))
    host.initialize()
    pid = int(host.text("deaf__pid"))
    behind = watch(pid)
    held = host.hold("deaf")
    closing = host.ask("tools/call", {"name": "deaf__write", "arguments": {"text": "", "close": [0]}})
    assert all("deaf " in text for text in answers_to(host, [held, closing]))
    assert has_ended(behind)
    assert int(host.text("deaf__pid")) != pid


@linux
def test_orphans_that_end_do_not_stay_in_the_process_table(serve: Serve, watch: Watch, tmp_path: Path) -> None:
    """Our choice: who adopts orphans buries them, or the table fills up while a host runs for weeks."""
    file = tmp_path / "child"
    host = serve(server_table("one", "--grandchild", str(file), "--grandchild-session"), server_table("two"))
    host.initialize()
    host.tools()
    pid = int(file.read_text())
    child = watch(pid)
    assert "exited with code 3" in host.text("one__crash")
    signal.pidfd_send_signal(child, signal.SIGKILL)
    assert has_ended(child)
    until = time.monotonic() + PATIENCE
    while Path(f"/proc/{pid}").exists():  # each round trip lets mcpmux's loop turn
        assert time.monotonic() < until
        host.request("ping")


# ── what is started, and when ──


@linux
def test_with_a_warm_cache_no_server_runs_until_it_is_called(serve: Serve, tmp_path: Path) -> None:
    """Our choice: ten servers must cost nothing while nobody uses them. The list is complete even so, and does not wait
    for one that hung the last time."""
    names = [f"s{number}" for number in range(10)]
    tables = [server_table(name) for name in names]
    tables.append(server_table("hung", "--silent", startup_timeout_sec=0.5))
    first = serve(*tables)
    first.initialize()
    listed = first.tools()
    first.close()
    host = serve(*tables)
    host.initialize()
    assert host.tools() == listed
    unborn = {"", str(tmp_path / "mcpmux.toml")}  # what a process is called before it is one of the others
    others = {"hung", "mcpmux guardian", *unborn}
    assert {name_of(pid) for pid in mcpmux.descendants(host.process.pid)} <= others
    host.text("s3__pid")
    assert {name_of(pid) for pid in mcpmux.descendants(host.process.pid)} - others == {"s3"}


def name_of(pid: int) -> str:
    """That of the fake server which runs there, or else the last word of its command."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().removesuffix(b"\0").split(b"\0")
    return words[words.index(b"--name") + 1 if b"--name" in words else -1].decode()


@linux  # others have other folders
def test_two_that_run_together_share_a_cache_and_neither_spoils_it(serve: Serve, tmp_path: Path) -> None:
    """Our choice: Claude Desktop starts each server twice. Both are warm, and both learn new lists all the time."""
    names = [f"s{number}" for number in range(4)]
    tables = [server_table(name) for name in names]
    first = serve(*tables)
    first.initialize()
    first.tools()
    assert first.close() == 0
    pair = [serve(*tables) for _ in range(2)]
    for host, capabilities in zip(pair, ({}, {"roots": {}}), strict=True):  # each has a file of its own, then
        host.initialize(capabilities)
    for _ in range(5):
        asked = [
            (host, host.ask("tools/call", {"name": f"{n}__burst", "arguments": {}})) for n in names for host in pair
        ]
        for host, number in asked:
            assert "result" in host.answer(number)
    extra = {f"{name}__extra{number}" for name in names for number in range(5)}
    end = time.monotonic() + PATIENCE
    for host in pair:
        while not extra <= set(host.tools()):
            assert time.monotonic() < end
        assert host.close() == 0
        assert "cache" not in host.log()
    folder = tmp_path / "home" / ".cache" / "mcpmux" / "servers"
    config = mcpmux.load_config(tmp_path / "mcpmux.toml")
    known, notes = mcpmux.read_known(folder, config)
    assert notes == []
    assert {name: len(found) for name, found in known.items()} == dict.fromkeys(names, 2)
    assert [file.name for file in folder.iterdir() if file.name.startswith(".")] == []  # half-written
    last = serve(*tables)
    last.initialize()
    assert extra <= set(last.tools())


@linux
def test_mcpmux_ends_when_only_its_launcher_is_killed(home: dict[str, str], tmp_path: Path) -> None:
    """Some hosts kill `uvx` alone; the pipes that mcpmux has from them stay open."""
    config = tmp_path / "mcpmux.toml"
    config.write_text(server_table("one"))
    launcher = "import subprocess, sys; subprocess.Popen(sys.argv[1:]).wait()"
    command = [sys.executable, "-c", launcher, *COMMAND, "--config", str(config)]
    host = RawHost(command, home)
    try:
        host.initialize()
        host.text("one__pid")
        host.process.kill()
        with pytest.raises(EOFError):
            host.until(lambda message: False)
        assert "the process that started mcpmux is gone" in host.log()
    finally:
        host.close()


# ── the config file changes ──


def test_a_changed_file_is_taken_up_and_what_is_unchanged_goes_on(serve: Serve, tmp_path: Path) -> None:
    host = serve(server_table("one"), server_table("two"))
    host.initialize()
    host.tools()
    one = host.text("one__pid")
    held = host.hold("one")
    (tmp_path / "mcpmux.toml").write_text(server_table("one") + server_table("three"))
    host.until(lambda message: message.get("method") == "notifications/tools/list_changed")
    tools = host.tools()
    assert {name.partition("__")[0] for name in tools} == {"one", "three"}
    assert host.text("one__pid") == one
    host.call("one__release")
    assert host.answer(held)["result"]["content"][0]["text"] == "released"


def test_a_file_that_breaks_is_told_in_the_log_and_the_former_one_stands(serve: Serve, tmp_path: Path) -> None:
    host = serve(server_table("one"))
    host.initialize()
    host.tools()
    one = host.text("one__pid")
    (tmp_path / "mcpmux.toml").write_text("[mcp_servers.one\n")
    (tmp_path / "later").write_text(server_table("one") + server_table("two"))
    end = time.monotonic() + PATIENCE
    while "the previous configuration stays in effect" not in host.log():
        assert host.text("one__pid") == one
        assert time.monotonic() < end
    (tmp_path / "later").replace(tmp_path / "mcpmux.toml")
    host.until(lambda message: message.get("method") == "notifications/tools/list_changed")
    assert "two__pid" in host.tools()
    assert host.text("one__pid") == one
