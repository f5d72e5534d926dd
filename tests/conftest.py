"""Fixtures for tests with real processes: a client that speaks raw lines to a real mcpmux, and configs for it."""

from __future__ import annotations

import gc
import json
import os
import queue
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import mcpmux  # noqa: F401 - it hides from the collector all that is there at its end

gc.unfreeze()  # hypothesis asks the collector who holds its random numbers

# The same examples in every run, and no deadline: a busy machine must not decide what passes. To explore:
# `uv run pytest --hypothesis-profile=explore`.
settings.register_profile("fixed", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=2000)
settings.load_profile("fixed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-pairings", action="store_true", help="every host before every server; without it a diagonal"
    )
    parser.addoption("--real-model", action="store_true", help="asks a real small model too; downloads 400 MB once")
    parser.addoption("--real-hosts", action="store_true", help="plays in real hosts too; downloads 400 MB once")
    parser.addoption("--new-pictures", action="store_true", help="draws the picture of the page anew")
    parser.addoption("--fuzz-stories", type=int, default=1200, help="how many the fuzzer tells; each is a seed")
    parser.addoption("--fuzz-from", type=int, default=0, help="the first of them")
    parser.addoption("--costs", type=int, default=1000, help="of how many the costs are counted")


FUZZ_PARTS = 4  # so that two cores share them
ROOT = Path(__file__).parent.parent
MCPMUX = ROOT / "mcpmux.py"
COMMAND = [sys.executable, "-m", "mcpmux"]  # a module's bytecode is kept, a script's is not: a tenth of a second each
FAKE = Path(__file__).parent / "fake_server.py"
PATIENCE = 60.0  # seconds; a test that waits this long has failed (litellm needs five of a core of its own to load)


def server_table(
    name: str, *arguments: str, command: str = sys.executable, script: str | Path = FAKE, **keys: Any
) -> str:
    """A `[mcp_servers.NAME]` table that runs the fake server; `keys` are further TOML values as Python ones."""
    args = [str(script), "--name", name, *arguments] if command == sys.executable else list(arguments)
    lines = [f"[mcp_servers.{name}]", f"command = {json.dumps(command)}", f"args = {json.dumps(args)}"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items() if not isinstance(value, dict)]
    lines += [
        f"{key} = {{ " + ", ".join(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in value.items()) + " }"
        for key, value in keys.items()
        if isinstance(value, dict)
    ]
    return "\n".join(lines) + "\n"


class RawHost:
    """A host that sends and receives raw lines. A thread reads, so that every wait has an end."""

    def __init__(self, command: list[str], env: dict[str, str], cwd: str | None = None) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=cwd
        )
        self.lines: queue.Queue[bytes] = queue.Queue()
        self.errors: list[bytes] = []
        self.seen: list[dict[str, Any]] = []  # all that came, in order
        self.questions: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}
        self.cancelled: set[int] = set()
        self.routine: dict[str, Callable[[dict[str, Any]], None]] = {}  # by id: who takes an answer out of the way
        self._next = 100
        self._threads = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(b"")

    def _read_errors(self) -> None:
        assert self.process.stderr
        self.errors.extend(self.process.stderr)

    def send(self, raw: bytes | None = None, **message: Any) -> None:
        assert self.process.stdin
        line = raw if raw is not None else json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """The next message; a question with an answer in `questions` is answered on the way."""
        while True:
            line = self.lines.get(timeout=PATIENCE)
            if not line:
                self.lines.put(b"")  # it stays at its end
                raise EOFError(b"".join(self.errors).decode(errors="replace"))
            message = json.loads(line)
            if "method" in message or message.get("id") not in self.routine:
                break
            self.routine.pop(message["id"])(message)
        message["raw"] = line
        self.seen.append(message)
        if "method" in message and "id" in message and message["method"] in self.questions:
            self.send(id=message["id"], **self.questions[message["method"]](message.get("params", {})))
        return message

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first message, already received or still to come, that is `wanted`."""
        for message in self.seen:
            if wanted(message):
                return message
        while True:
            message = self.receive()
            if wanted(message):
                return message

    def ask(self, method: str, params: Any = None) -> int:
        """Sends a request and does not wait for its answer."""
        self._next += 1
        self.send(id=self._next, method=method, **({} if params is None else {"params": params}))
        return self._next

    def answer(self, number: Any) -> dict[str, Any]:
        return self.until(lambda message: message.get("id") == number and "method" not in message)

    def cancel(self, number: int) -> None:
        self.cancelled.add(number)
        self.send(method="notifications/cancelled", params={"requestId": number})

    def hold(self, server: str) -> int:
        """A call that this server holds open, for certain."""
        said = {"level": "info", "data": "held", "logger": server}
        before = sum(message.get("params") == said for message in self.seen)
        number = self.ask("tools/call", {"name": f"{server}__hold"})
        while sum(message.get("params") == said for message in self.seen) == before:
            self.receive()
        return number

    def request(self, method: str, params: Any = None) -> dict[str, Any]:
        return self.answer(self.ask(method, params))

    def call(self, tool: str, meta: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
        params = {"name": tool, "arguments": arguments, **({"_meta": meta} if meta else {})}
        answer = self.request("tools/call", params)
        return answer.get("result", answer)

    def text(self, tool: str, **arguments: Any) -> str:
        return self.call(tool, **arguments)["content"][0]["text"]

    def initialize(self, capabilities: dict[str, Any] | None = None, revision: str = "2025-11-25") -> dict[str, Any]:
        info = {"name": "raw", "version": "1"}
        answer = self.request(
            "initialize", {"protocolVersion": revision, "capabilities": capabilities or {}, "clientInfo": info}
        )
        self.send(method="notifications/initialized")
        return answer["result"]

    def tools(self) -> list[str]:
        return [tool["name"] for tool in self.request("tools/list")["result"]["tools"]]

    def close(self) -> int:
        """Closes its stdin and waits for its end."""
        if self.process.stdin and not self.process.stdin.closed:
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                pass
        code = self.process.wait(PATIENCE)
        for thread in self._threads:
            thread.join(PATIENCE)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()
        return code

    def log(self) -> str:
        return b"".join(self.errors).decode(errors="replace")


def empty_home(folder: Path) -> dict[str, str]:
    """An environment with this folder as its home, so that no test reads or writes the person's own files; and as over
    SSH, so that none opens a browser unless it names one."""
    dropped = (
        "XDG_",
        "MCPMUX_",
        "BROWSER",
        "UV_RUN_",
        "PYTHONDONTWRITEBYTECODE",
    )  # without bytecode litellm takes twice as long to load
    kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    folder.mkdir(exist_ok=True)
    kept["SSH_CONNECTION"] = "127.0.0.1 1 127.0.0.1 22"
    places = ("APPDATA", "LOCAL_APPDATA")  # Windows itself says where they are; platformdirs can be told otherwise
    homes = ("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA", *(f"WIN_PD_OVERRIDE_{one}" for one in places))
    return kept | dict.fromkeys(homes, str(folder))


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return empty_home(tmp_path / "home")


@pytest.fixture
def start(tmp_path: Path, home: dict[str, str]) -> Iterator[Callable[..., RawHost]]:
    """`start(table, …)` writes a config of these tables and starts mcpmux on it."""
    hosts: list[RawHost] = []

    def starter(*tables: str, env: dict[str, str] | None = None) -> RawHost:
        config = tmp_path / "mcpmux.toml"
        config.write_text("\n".join(tables))
        hosts.append(RawHost([*COMMAND, "--config", str(config)], home | (env or {})))
        return hosts[-1]

    yield starter
    for host in hosts:
        host.close()


@pytest.fixture
def serve(start: Callable[..., RawHost]) -> Iterator[Callable[..., RawHost]]:
    """As `start`; at the end of the test all that each host has received is judged by `assert_lines_are_clean`."""
    hosts: list[RawHost] = []

    def starter(*tables: str, env: dict[str, str] | None = None) -> RawHost:
        hosts.append(start(*tables, env=env))
        return hosts[-1]

    yield starter
    for host in hosts:
        host.close()
        assert_lines_are_clean(host)


def assert_lines_are_clean(host: RawHost) -> None:
    """Every line is one valid message with no member that strict hosts refuse, and every request has one answer, or,
    cancelled, none."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert "a bug in mcpmux" not in host.log()
    while line := host.lines.get(timeout=PATIENCE):
        host.seen.append({"raw": line})
    host.lines.put(b"")
    answered: list[Any] = []
    for line in (message["raw"] for message in host.seen):
        assert line.endswith(b"\n")
        message = json.loads(line.decode(), parse_constant=refuse)
        json.dumps(message, ensure_ascii=False).encode()  # no half of a surrogate pair
        assert isinstance(message, dict)
        assert message["jsonrpc"] == "2.0"
        kind = message.keys() - {"jsonrpc"}
        assert kind in (
            {"method"},
            {"method", "params"},
            {"id", "method"},
            {"id", "method", "params"},
            {"id", "result"},
        ) or ("error" in kind and kind <= {"id", "error"})
        if "method" not in message and "id" in message:
            answered.append(message["id"])
    assert len(answered) == len(set(answered)), "a request was answered twice"
    asked = set(range(101, host._next + 1))
    assert asked - set(answered) == host.cancelled


def held_port() -> socket.socket:
    """A port with nobody behind it: bound and not listening, so that who connects is refused and nobody else gets it.
    A server that reuses ports may still listen there, and when it has ended, the port is dead again."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_REUSEPORT", socket.SO_REUSEADDR), 1)
    held.bind(("127.0.0.1", 0))
    return held


def port_to_keep() -> int:
    """A port for a process that is still to start, and may be started again: none of those that systems hand out."""
    while True:
        port = random.randrange(20_000, 30_000)
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:  # somebody listens there
            continue


def is_running(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


class Terminal:
    """mcpmux as a person at a terminal has it. POSIX: Windows has no pseudo-terminals in Python's library."""

    def __init__(self, env: dict[str, str], *arguments: str, columns: int = 100) -> None:
        import fcntl
        import pty
        import struct
        import termios

        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        env = {"TERM": "xterm"} | {key: value for key, value in env.items() if key not in ("COLUMNS", "LINES")}
        command = [*COMMAND, *arguments]
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
        os.close(theirs)
        self.shown = ""  # all of it, control sequences too
        self._seen = 0  # of that, what `until` has passed

    def _read(self) -> bool:
        import select

        assert select.select([self._ours], [], [], PATIENCE)[0], f"nothing more after {self.shown!r}"
        try:
            chunk = os.read(self._ours, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            chunk = b""
        self.shown += chunk.decode(errors="replace").replace("\r\n", "\n")
        return chunk != b""

    def until(self, *texts: str) -> str:
        """Waits for one of these texts; gives what was shown since the last one."""
        while not any(text in self.shown[self._seen :] for text in texts):
            assert self._read(), f"{texts} was not shown: {self.shown!r}"
        found = {self.shown.find(text, self._seen): text for text in texts}
        before, at = self._seen, min(at for at in found if at >= 0)
        self._seen = at + len(found[at])
        return self.shown[before : self._seen]

    def types(self, line: str) -> None:
        os.write(self._ours, line.encode() + b"\n")

    def presses(self, key: bytes) -> None:
        os.write(self._ours, key)

    def hang_up(self) -> int:
        """The window is closed; the process has to end by itself."""
        os.close(self._ours)
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()

    def close(self) -> int:
        """Reads on until it ends by itself."""
        try:
            while self._read():
                pass
            return self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self._ours)
