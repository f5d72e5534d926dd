"""mcpmux beside its peers, measured side by side in one run.

    uv run --group bench tests/bench.py [--quick] [--only NAME,…] [--json] [--svg FILE] [--compare FILE]

All stand before the same server, `peers/echo.py`: nothing (`direct`), mcpmux, FastMCP's proxy in its two ways (with
connected clients; from a config, which starts the server again for each operation) and the plainest proxy that the
official SDK makes. Repetitions are interleaved, so that a busy minute of the machine meets all of them, and the first
one is thrown away. A cell is the median of the repetitions and half their interquartile range; a ratio is the median of
the ratios within each repetition, and is withheld where these scatter too much to mean anything. A peer's cell is empty
where it cannot do a thing, loses some of it (progress), or would only repeat the one beside it. A result of some size
has come when the host has decoded it (`json.loads`), as every host does; what its bytes alone take is told apart.

`--only core` measures the core without its pipes, in processor time: a call out and back, beside what it was at a
former commit (`--core-before COMMIT`), and what each of 1, 10, 100 and 1,000 of a kind costs (as in test_costs.py).

The bars at the end are what mcpmux promises; the exit code is 1 if one is missed. Processor time and memory are read
from Linux's own counters and left out elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import http.server
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parent / "peers"
ECHO = [sys.executable, str(PEERS / "echo.py")]
PATIENCE = 120.0  # seconds for one answer; a peer that takes longer has failed
WIDTH = 32  # calls in flight where they are pipelined
CROWD = 8  # calls open at once, as of so many clients
STEADY = 0.25  # half the interquartile range of a ratio, by its median, above which it is not told
MB = 1_000_000

MUX, CONNECTED, CONFIG, SDK, DIRECT = "mcpmux", "FastMCP, connected", "FastMCP, config", "SDK, glued", "direct"
WAYS = [DIRECT, MUX, CONNECTED, CONFIG, SDK]


# ── what is measured ──


@dataclass
class Figure:
    """One row: its unit, and each way's samples by repetition."""

    label: str
    unit: str  # "ms", "µs", "s": from seconds; "/s": a rate; "MB": from bytes
    samples: dict[str, dict[int, float]] = field(default_factory=dict)

    def text(self, way: str) -> str:
        values = list(self.samples.get(way, {}).values())
        if not values:
            return ""
        scale, digits = {"s": (1, 2), "ms": (1e3, 1), "µs": (1e6, 0), "/s": (1, 0), "MB": (1 / MB, 1)}[self.unit]
        middle = statistics.median(values)
        digits += self.unit == "µs" and middle * scale < 20
        return f"{middle * scale:,.{digits}f} ±{100 * half_range(values) / middle if middle else 0:.0f}%"


def half_range(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2


FIGURES = {
    "bare": Figure("python -c 'import asyncio'", "ms"),
    "initialize": Figure("start to the answer to initialize", "ms"),
    "list_cold": Figure("start to a complete tools/list, 1 server, cold", "ms"),
    "list_warm": Figure("the same, warm", "ms"),
    "initialize_10": Figure("start to initialize, 10 servers", "ms"),
    "list_cold_10": Figure("start to tools/list, 10 servers, cold", "ms"),
    "list_warm_10": Figure("the same, warm", "ms"),
    "initialize_50": Figure("start to initialize, 50 servers", "ms"),
    "list_cold_50": Figure("start to tools/list, 50 servers, cold", "ms"),
    "list_warm_50": Figure("the same, warm", "ms"),
    "stop": Figure("end of input to the process's end", "ms"),
    "p50": Figure("tools/call, one at a time, p50", "µs"),
    "p99": Figure("the same, p99", "µs"),
    "p50_8": Figure(f"tools/call, {CROWD} at once, p50", "µs"),
    "p99_8": Figure("the same, p99", "µs"),
    "rate": Figure(f"calls a second, {WIDTH} in flight", "/s"),
    "rate_8": Figure("the same, over 8 servers", "/s"),
    "cpu": Figure(f"processor time a call, {WIDTH} in flight", "µs"),
    "cpu_1": Figure("processor time a call, one at a time, 1 server", "µs"),
    "cpu_50": Figure("the same, over 50 servers", "µs"),
    "text_1k": Figure("a result of 1 KB of text", "µs"),
    "text_100k": Figure("of 100 KB of text", "ms"),
    "text_1m": Figure("of 1 MB of text", "ms"),
    "text_1m_bytes": Figure("of 1 MB of text, its bytes alone", "ms"),
    "text_10m": Figure("of 10 MB of text", "ms"),
    "deep_1k": Figure("of 1 KB, deeply structured", "µs"),
    "deep_100k": Figure("of 100 KB, deeply structured", "ms"),
    "deep_1m": Figure("of 1 MB, deeply structured", "ms"),
    "deep_1m_bytes": Figure("of 1 MB, deeply structured, its bytes alone", "ms"),
    "deep_10m": Figure("of 10 MB, deeply structured", "ms"),
    "deep_cpu": Figure("processor time of that", "ms"),
    "json": Figure("json.loads and json.dumps of that", "ms"),
    "progress": Figure("progress notifications a second", "/s"),
    "tools_1000": Figure("tools/list of 1,000 tools", "ms"),
    "memory": Figure("memory after start", "MB"),
    "memory_1k": Figure("after 1,000 calls", "MB"),
    "memory_100k": Figure("after 100,000 calls", "MB"),
    "core": Figure("processor time of the core, a call", "µs"),
    "core_before": Figure("the same, before", "µs"),
    "sampling_load": Figure("slowest call while litellm loads", "ms"),
    "sampling_wait": Figure("slowest call while a model takes its time for ten others", "ms"),
}


class Run:
    """What one run has found so far."""

    def __init__(self, folder: Path, quick: bool, before: Path | None = None) -> None:
        self.folder, self.quick, self.before = folder, quick, before
        self.repetition = 0

    def take(self, figure: str, way: str, value: float) -> None:
        if self.repetition:  # the first one only warms the machine and the compiled modules
            FIGURES[figure].samples.setdefault(way, {})[self.repetition] = value


# ── a host ──


class Peer:
    """A process and the raw host before it. `servers` are behind it, named s0, s1, …"""

    def __init__(self, way: str, folder: Path, servers: int = 1, tools: int = 1, config: str = "") -> None:
        self.way, self.servers = way, servers
        folder.mkdir(parents=True, exist_ok=True)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "MCPMUX_", "PYTHON"))}
        env |= dict.fromkeys(("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA"), str(folder))
        command = self._command(folder, [*ECHO, "--tools", str(tools)], config)
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env, bufsize=0
        )
        assert self.process.stdin
        assert self.process.stdout
        self._in, self._out = self.process.stdin.fileno(), self.process.stdout.fileno()
        self._ids = itertools.count(1)
        self._waiting = b""

    def _command(self, folder: Path, server: list[str], config: str) -> list[str]:
        names = [f"s{n}" for n in range(self.servers)]
        if self.way == DIRECT:
            return server
        if self.way == SDK:
            return [sys.executable, str(PEERS / "sdk_proxy.py"), *server]
        if self.way == MUX:
            tables = [
                f"[mcp_servers.{n}]\ncommand = {json.dumps(server[0])}\nargs = {json.dumps(server[1:])}\n"
                for n in names
            ]
            (folder / "mcpmux.toml").write_text("[mux]\nhost_message_mb = 64\n" + "".join(tables) + config)
            return [str(Path(sys.executable).with_name("mcpmux")), "--config", str(folder / "mcpmux.toml")]
        file = folder / "servers.json"
        file.write_text(json.dumps({"mcpServers": {n: {"command": server[0], "args": server[1:]} for n in names}}))
        return [sys.executable, str(PEERS / "fastmcp_proxy.py"), self.way.partition(", ")[2], str(file)]

    def tool(self, server: int = 0) -> str:
        return {DIRECT: "echo", SDK: "echo", MUX: f"s{server}__echo"}.get(
            self.way, f"s{server}_echo" if self.servers > 1 else "echo"
        )

    def send(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._in, data) :]

    def lines(self) -> list[bytes]:
        """What has come, as whole lines; waits for at least one."""
        parts = [self._waiting]
        while b"\n" not in parts[-1]:
            data = os.read(self._out, 1 << 20)
            if not data:
                raise EOFError(f"{self.way} has ended")
            parts.append(data)
        first, *rest = parts.pop().split(b"\n")  # a split of the whole would cost more than all else here
        *lines, self._waiting = b"".join([*parts, first]), *rest
        return lines

    def call(self, server: int = 0, **arguments: Any) -> tuple[int, bytes]:
        id = next(self._ids)
        meta = {"_meta": {"progressToken": id}} if "progress" in arguments else {}
        params = {"name": self.tool(server), "arguments": arguments, **meta}
        return id, json.dumps({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}).encode() + b"\n"

    def answer(self, id: int) -> tuple[bytes, int]:
        """The answer, and how many other lines came before it."""
        mark, others = b'"id":%d' % id, 0
        while True:
            for line in self.lines():
                if mark in line[:200].replace(b" ", b"") or mark in line[-200:].replace(b" ", b""):
                    assert b'"result"' in line[:300] or b'"result"' in line[-300:], line[:1000]
                    assert b'"isError":true' not in line[:300], line[:1000]
                    return line, others
                others += 1

    def ask(self, method: str, **params: Any) -> bytes:
        id = next(self._ids)
        self.send(json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).encode() + b"\n")
        return self.answer(id)[0]

    def initialize(self) -> float:
        """Seconds from the process's start to the answer."""
        info = {"name": "bench", "version": "1"}
        self.ask("initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo=info)
        taken = time.perf_counter() - self.started
        self.send(b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n')
        return taken

    def tools(self, most: int) -> float:
        """Seconds from the process's start until all tools are listed."""
        while self.ask("tools/list").count(b'"inputSchema"') < most:
            pass
        return time.perf_counter() - self.started

    def timed(self, decode: bool = False, **arguments: Any) -> float:
        """Seconds that a call takes, and perhaps until the host has decoded its answer."""
        id, line = self.call(**arguments)
        begun = time.perf_counter()
        self.send(line)
        answer, _ = self.answer(id)
        if decode:
            json.loads(answer)
        return time.perf_counter() - begun

    def crowded(self, seconds: float) -> list[float]:
        """Seconds that each call takes, as many open all the time as `CROWD` clients would have."""
        begun, taken, end = dict[int, float](), list[float](), time.perf_counter() + seconds
        while True:
            while len(begun) < CROWD and time.perf_counter() < end:
                id, line = self.call()
                begun[id] = time.perf_counter()
                self.send(line)
            if not begun:
                return taken
            for line in self.lines():
                if b'"result"' in line:
                    taken.append(time.perf_counter() - begun.pop(json.loads(line)["id"]))

    def pipelined(self, seconds: float, most: int = 10**9) -> float:
        """Calls a second, so many in flight all the time and the servers by turns."""
        lines = itertools.cycle([self.call(n)[1].partition(b'"id": ') for n in range(self.servers)])

        def more(count: int) -> bytes:
            calls: list[bytes] = []
            for head, key, tail in itertools.islice(lines, count):
                calls.append(head + key + b"%d" % next(self._ids) + tail[tail.index(b",") :])
            return b"".join(calls)

        begun = time.perf_counter()
        end = begun + seconds
        self.send(more(WIDTH))
        sent, answered = WIDTH, 0
        while answered < sent:
            count = sum(b'"result"' in line for line in self.lines())
            answered += count
            if sent < most and time.perf_counter() < end:
                self.send(more(count))
                sent += count
        return answered / (time.perf_counter() - begun)

    def processor_time(self) -> float | None:
        """Seconds, of this one process."""
        if sys.platform != "linux":
            return None
        return time.clock_gettime((~self.process.pid << 3) | 2)  # CPUCLOCK_SCHED of a process, posix-timers_types.h

    def memory(self) -> float | None:
        """Bytes resident."""
        if sys.platform != "linux":
            return None
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> float:
        """Seconds to the process's end."""
        assert self.process.stdin
        begun = time.perf_counter()
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        taken = time.perf_counter() - begun
        assert self.process.stdout
        self.process.stdout.close()
        return taken


@contextlib.contextmanager
def peer(
    run: Run, way: str, servers: int = 1, tools: int = 1, config: str = "", home: Path | None = None
) -> Iterator[Peer]:
    """A peer that has been initialized and has listed its tools; one that hangs is killed."""
    one = Peer(way, home or Path(tempfile.mkdtemp(dir=run.folder)), servers, tools, config)
    guard = threading.Timer(PATIENCE, one.process.kill)
    guard.start()
    try:
        one.initialize()
        one.tools(servers * tools)
        yield one
    finally:
        guard.cancel()
        one.close()


# ── the measurements: each takes one way's figures of one repetition ──


def measure_bare(run: Run, way: str) -> None:
    if way == DIRECT:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import asyncio"], check=True)
        run.take("bare", way, time.perf_counter() - begun)


def measure_start(run: Run, way: str) -> None:
    for servers in (1, 10, 50):
        if (servers > 1 and way in (DIRECT, SDK)) or (servers > 10 and run.quick):
            continue
        suffix = "" if servers == 1 else f"_{servers}"
        home = Path(tempfile.mkdtemp(dir=run.folder))
        for kind in ("cold", "warm"):
            if kind == "warm" and way != MUX:
                continue  # nobody else keeps anything from one start to the next
            one = Peer(way, home, servers)
            guard = threading.Timer(PATIENCE, one.process.kill)
            guard.start()
            initialized, listed = one.initialize(), one.tools(servers)
            stopped = one.close()
            guard.cancel()
            run.take(f"list_{kind}{suffix}", way, listed)
            if kind == "warm" or way != MUX:
                run.take(f"initialize{suffix}", way, initialized)
        if servers == 1:
            run.take("stop", way, stopped)


def measure_latency(run: Run, way: str) -> None:
    with peer(run, way) as one:
        for _ in range(10 if way == CONFIG else 200):
            one.timed()
        seconds = 0.5 if run.quick else 2
        calls, end = list[float](), time.perf_counter() + seconds
        while not calls or (len(calls) < 3000 and time.perf_counter() < end):
            calls.append(one.timed())
        together = one.crowded(seconds)
    for suffix, times in (("", calls), ("_8", together)):
        run.take(f"p50{suffix}", way, statistics.median(times))
        if len(times) >= 200:
            run.take(f"p99{suffix}", way, statistics.quantiles(times, n=100)[98])


def measure_rate(run: Run, way: str) -> None:
    seconds = 0.5 if run.quick else 1.5
    for servers, suffix in ((1, ""), (8, "_8")):
        if servers > 1 and way in (DIRECT, SDK):
            continue
        with peer(run, way, servers) as one:
            one.pipelined(0.2)
            before, begun = one.processor_time(), time.perf_counter()
            rate = one.pipelined(seconds)
            took = time.perf_counter() - begun
            run.take(f"rate{suffix}", way, rate)
            if before is not None and servers == 1 and way != DIRECT:
                run.take("cpu", way, ((one.processor_time() or 0) - before) / (rate * took))


def measure_many(run: Run, way: str) -> None:
    """What a call costs when there are more servers, one call at a time: nothing can be done for two at once."""
    for servers, count in ((1, 2000), (50, 2000)) if way == MUX and not run.quick else ():
        with peer(run, way, servers) as one:
            for n in range(servers):
                one.timed(server=n)
            before = one.processor_time()
            for n in range(count):
                one.timed(server=n % servers)
            if before is not None:
                run.take(f"cpu_{servers}", way, ((one.processor_time() or 0) - before) / count)


def measure_sizes(run: Run, way: str) -> None:
    each = {"1k": 1000, "100k": 100_000, "1m": MB, "10m": 10 * MB}
    # By size: a process whose C library has once handed out 10 MB is quicker with every 1 MB after it.
    sizes = [(f"{shape}_{name}", size) for name, size in each.items() for shape in ("text", "deep")]
    if way == CONFIG:
        return  # as the connected one, and its server's start on top
    with peer(run, way) as one:
        for figure, size in sizes:
            arguments = {"size": size, "shape": figure.partition("_")[0]}
            one.timed(**arguments)
            times = 3 if size > MB else 10
            before = one.processor_time()
            run.take(figure, way, statistics.median(one.timed(decode=True, **arguments) for _ in range(times)))
            if f"{figure}_bytes" in FIGURES:
                run.take(f"{figure}_bytes", way, statistics.median(one.timed(**arguments) for _ in range(times)))
            if figure == "deep_10m" and before is not None and way != DIRECT:
                run.take("deep_cpu", way, ((one.processor_time() or 0) - before) / times)
        if way == DIRECT:
            id, line = one.call(size=10 * MB, shape="deep")
            one.send(line)
            text = one.answer(id)[0]
            begun = time.process_time()
            json.dumps(json.loads(text), separators=(",", ":")).encode()
            run.take("json", way, time.process_time() - begun)


def measure_progress(run: Run, way: str) -> None:
    count = 500 if way in (CONNECTED, CONFIG, SDK) else 20_000
    with peer(run, way) as one:
        one.timed()
        id, line = one.call(progress=count)
        begun = time.perf_counter()
        one.send(line)
        came = one.answer(id)[1]
        if came == count:  # a rate of what is lost is none
            run.take("progress", way, count / (time.perf_counter() - begun))


def measure_lists(run: Run, way: str) -> None:
    if way == CONFIG:
        return
    home = Path(tempfile.mkdtemp(dir=run.folder))
    with peer(run, way, tools=1000, home=home) as one:
        taken: list[float] = []
        for _ in range(5):
            begun = time.perf_counter()
            one.ask("tools/list")
            taken.append(time.perf_counter() - begun)
        run.take("tools_1000", way, statistics.median(taken))


def measure_memory(run: Run, way: str) -> None:
    if sys.platform != "linux" or way == CONFIG:
        return
    with peer(run, way) as one:
        run.take("memory", way, one.memory() or 0)
        one.pipelined(60, 1000)
        run.take("memory_1k", way, one.memory() or 0)
        if way in (DIRECT, MUX) and not run.quick:
            one.pipelined(60, 99_000)
            run.take("memory_100k", way, one.memory() or 0)


class Model(http.server.BaseHTTPRequestHandler):
    """A loopback provider of the OpenAI chat API, which answers when it may."""

    protocol_version = "HTTP/1.1"
    may = threading.Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.may.wait(PATIENCE)
        message = {"role": "assistant", "content": "yes"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        body = json.dumps({"id": "1", "object": "chat.completion", "model": "m", "choices": choices, "usage": usage})
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


def measure_sampling(run: Run, way: str) -> None:
    """One call of the echo server after another, while another server's requests go to a model through litellm."""
    if way != MUX or run.quick:
        return
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Model)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fake = json.dumps([str(Path(__file__).with_name("fake_server.py"))])
    config = f"""[mcp_servers.asker]\ncommand = {json.dumps(sys.executable)}\nargs = {fake}
[sampling]\napprove = "never"\n[[sampling.models]]\nmodel = "openai/m"\napi_key = "none"
api_base = "http://127.0.0.1:{server.server_port}/v1"\n"""
    message = {"role": "user", "content": {"type": "text", "text": "yes?"}}
    params = {"messages": [message], "maxTokens": 10}
    arguments = {"method": "sampling/createMessage", "params": params}

    with peer(run, way, config=config) as one:
        one.timed()

        def ask(count: int) -> set[bytes]:
            ids = [next(one._ids) for _ in range(count)]
            for id in ids:
                call = {"name": "asker__ask", "arguments": arguments}
                one.send(
                    json.dumps({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": call}).encode() + b"\n"
                )
            return {b'"id":%d,' % id for id in ids}

        def slowest(asked: set[bytes], seconds: float) -> float:
            end, most = time.perf_counter() + seconds, 0.0
            while asked and time.perf_counter() < end:
                id, line = one.call()
                begun, found = time.perf_counter(), False
                one.send(line)
                while not found:
                    for one_line in one.lines():
                        found = found or b'"id":%d,' % id in one_line
                        asked -= {mark for mark in asked if mark in one_line}
                most = max(most, time.perf_counter() - begun)
            return most

        Model.may.set()
        run.take("sampling_load", way, slowest(ask(1), 60))
        Model.may.clear()
        waiting = ask(10)
        run.take("sampling_wait", way, slowest(waiting, 2))
        Model.may.set()
        slowest(waiting, 60)
        assert not waiting, "the model's answers did not come"
    server.shutdown()
    server.server_close()


CALLS = """
import json, sys, time
sys.path[:0] = sys.argv[1:]
from script import Script
import mcpmux
s = Script(["a"])
s.tools()
line = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"a__log","arguments":{"n":%d}}}'
answer = b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"%d"}]}}'
handle, now, run = s.core.handle, s.now, s.runs["a"]
out = [mcpmux.HostLines([line % (n, n)]) for n in range(1, 20001)]
sent = [one.line for one in handle(out[0], now) if hasattr(one, "line")]
number = json.loads(sent[-1])["id"]  # and those after it follow
back = [mcpmux.ServerLines("a", run, [answer % (number + n, n)]) for n in range(20000)]
handle(back[0], now)
for at in range(1, 20000):
    if at == 2000:
        begun = time.process_time()
    handle(out[at], now)
    ended = handle(back[at], now)
took = time.process_time() - begun
assert json.loads(ended[-1].line)["id"] == 20000
print(took / 18000)
"""


def core_time(folder: Path) -> float:
    """Seconds of the processor that a call, out and back, costs the core of this checkout."""
    command = [sys.executable, "-c", CALLS, str(folder), str(folder / "tests")]
    return float(subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout)


def measure_core(run: Run, way: str) -> None:
    if way == MUX:
        run.take("core", way, core_time(PEERS.parent.parent))
        if run.before:
            run.take("core_before", way, core_time(run.before))


def curves() -> None:
    """Prints what each of so many costs the core."""
    from test_costs import CURVES

    numbers = (1, 10, 100, 1000)
    wide = max(map(len, CURVES))
    print(f"{'µs of the processor each, of so many':{wide}}" + "".join(f"{number:>10,}" for number in numbers))
    for name, made in CURVES.items():
        each: list[float] = []
        for number in numbers:
            taken: list[float] = []
            for _ in range(3):
                work = made(number)
                begun = time.process_time()
                work()
                taken.append(time.process_time() - begun)
            each.append(1e6 * min(taken) / number)
        print(f"{name:{wide}}" + "".join(f"{one:>10,.1f}" for one in each))
    print()


def compare(file: Path) -> None:
    """Prints the medians of a former run (--json) beside those of this one."""
    former = json.loads(file.read_text(encoding="utf-8"))
    print(f"beside {former['command']}, {former['machine']}:")
    for name, figure in FIGURES.items():
        for way, samples in figure.samples.items():
            if before := former["figures"].get(name, {}).get("samples", {}).get(way):
                was, now = statistics.median(before), statistics.median(samples.values())
                print(f"{figure.label}, {way}: {now / was:.3g} of what it was")


MEASUREMENTS: dict[str, tuple[Callable[[Run, str], None], int]] = {  # and how many times, besides the one for warmth
    "bare": (measure_bare, 9),
    "start": (measure_start, 5),
    "latency": (measure_latency, 7),
    "rate": (measure_rate, 7),
    "many": (measure_many, 5),
    "sizes": (measure_sizes, 5),
    "progress": (measure_progress, 5),
    "lists": (measure_lists, 5),
    "memory": (measure_memory, 3),
    "core": (measure_core, 5),
    "sampling": (measure_sampling, 2),
}


# ── ratios and bars ──


def paired(value: Callable[[int], float]) -> list[float]:
    """Of all repetitions for which it can be worked out."""
    values: list[float] = []
    for repetition in range(1, 100):
        with contextlib.suppress(KeyError):
            values.append(value(repetition))
    return values


def sample(figure: str, way: str) -> Callable[[int], float]:
    return lambda repetition: FIGURES[figure].samples[way][repetition]


@dataclass(frozen=True)
class Bar:
    """What is promised: a value of each repetition, whose median is to be at most (or at least) `limit`."""

    label: str
    limit: float
    value: Callable[[int], float]
    at_least: bool = False
    void: Callable[[int], bool] = lambda _: (
        False
    )  # in a repetition that says nothing, since the machine itself was slow
    unit: str = ""

    def limit_text(self) -> str:
        limit = f"{self.limit:,.3g}" if self.limit < 100 else f"{self.limit:,}"
        return f"{'≥' if self.at_least else '≤'} {limit}{self.unit}"

    def verdict(self) -> tuple[str, str]:
        """The value as text and "met", "MISSED", "void" or "not measured"."""
        values = [v for v in paired(lambda n: self.value(n) if not self.void(n) else float("nan")) if v == v]
        if not values:
            return "", "void" if paired(self.value) else "not measured"
        middle = statistics.median(values)
        good = [(value >= self.limit) if self.at_least else (value <= self.limit) for value in values]
        if not self.unit and half_range(values) > STEADY * middle:
            return "scattered", "met" if all(good) else "MISSED" if not any(good) else "void"
        met = middle >= self.limit if self.at_least else middle <= self.limit
        return f"{middle:,.3g}{self.unit}" if middle < 1000 else f"{middle:,.0f}{self.unit}", "met" if met else "MISSED"


def added(figure: str, way: str) -> Callable[[int], float]:
    return lambda n: sample(figure, way)(n) - sample(figure, DIRECT)(n)


def ratio(over: Callable[[int], float], under: Callable[[int], float]) -> Callable[[int], float]:
    return lambda n: over(n) / under(n)


def median_of(figure: str, way: str) -> Callable[[int], float]:
    """For figures that are measured apart, with repetitions of their own."""

    def value(_: int) -> float:
        samples = FIGURES[figure].samples[way]
        return statistics.median(samples.values())

    return value


def direct_is_uneven(n: int) -> bool:
    return sample("p99", DIRECT)(n) > 4 * sample("p50", DIRECT)(n)


BARS = [
    Bar("latency added to a call, by FastMCP's (connected)", 0.08, ratio(added("p50", MUX), added("p50", CONNECTED))),
    Bar("latency added to a call", 110, lambda n: 1e6 * added("p50", MUX)(n), unit=" µs"),
    Bar("p99 of a call, by its p50", 4, ratio(sample("p99", MUX), sample("p50", MUX)), void=direct_is_uneven),
    Bar(
        f"p99 of a call, {CROWD} at once, by FastMCP's (connected)",
        0.2,
        ratio(sample("p99_8", MUX), sample("p99_8", CONNECTED)),
    ),
    Bar("calls a second, by FastMCP's (connected)", 30, ratio(sample("rate", MUX), sample("rate", CONNECTED)), True),
    Bar("calls a second", 45_000, sample("rate", MUX), True, lambda n: sample("rate", DIRECT)(n) < 150_000, "/s"),
    Bar(
        "start to initialize, by FastMCP's (config)",
        1 / 6,
        ratio(sample("initialize", MUX), sample("initialize", CONFIG)),
    ),
    Bar(
        "start to initialize, by python -c 'import asyncio'",
        1.7,
        ratio(sample("initialize", MUX), median_of("bare", DIRECT)),
    ),
    Bar(
        "memory after 1,000 calls, by FastMCP's (connected)",
        1 / 3,
        ratio(sample("memory_1k", MUX), sample("memory_1k", CONNECTED)),
    ),
    Bar(
        "memory after 100,000 calls, by that after 1,000",
        1.05,
        ratio(sample("memory_100k", MUX), sample("memory_1k", MUX)),
    ),
    Bar("a result of 1 MB of text, by direct", 1.3, ratio(sample("text_1m", MUX), sample("text_1m", DIRECT))),
    Bar("one of 1 MB, deeply structured, by direct", 1.5, ratio(sample("deep_1m", MUX), sample("deep_1m", DIRECT))),
    Bar(
        "processor time of 10 MB, by json.loads and dumps", 0.04, ratio(sample("deep_cpu", MUX), sample("json", DIRECT))
    ),
    Bar("processor time a call, 50 servers by 1", 1.3, ratio(sample("cpu_50", MUX), sample("cpu_1", MUX))),
    Bar("1,000 tools listed, warm", 5, lambda n: 1e3 * sample("tools_1000", MUX)(n), unit=" ms"),
    Bar("slowest call while litellm loads", 50, lambda n: 1e3 * sample("sampling_load", MUX)(n), unit=" ms"),
    Bar("slowest call while ten wait for a model", 50, lambda n: 1e3 * sample("sampling_wait", MUX)(n), unit=" ms"),
]


# ── telling ──


def machine() -> str:
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("mcpmux", "fastmcp", "mcp"))
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return (
        f"{datetime.date.today()}, {platform.system()}, {cores} cores, Python {platform.python_version()}, {packages}"
    )


def tell(command: str) -> bool:
    """Prints all that was found. Whether no bar is missed."""
    rows = [figure for figure in FIGURES.values() if figure.samples]
    wide = max((len(figure.label) for figure in rows), default=0)
    print(f"{command}\n{machine()}\n")
    print(f"{'':{wide}} {'':4}" + "".join(f"{way:>20}" for way in WAYS))
    for figure in rows:
        print(f"{figure.label:{wide}} {figure.unit:>4}" + "".join(f"{figure.text(way):>20}" for way in WAYS))
    print()
    wide = max(len(bar.label) for bar in BARS)
    verdicts: set[str] = set()
    for bar in BARS:
        text, verdict = bar.verdict()
        if verdict != "not measured":
            print(f"{bar.label:{wide}} {text:>12}  {bar.limit_text():<11} {verdict}")
            verdicts.add(verdict)
    return "MISSED" not in verdicts


def as_json(command: str) -> str:
    figures = {
        name: {
            "label": figure.label,
            "unit": {"/s": "1/s", "MB": "bytes"}.get(figure.unit, "s"),
            "samples": {way: list(samples.values()) for way, samples in figure.samples.items()},
        }
        for name, figure in FIGURES.items()
        if figure.samples
    }
    bars = [
        {"label": bar.label, "limit": bar.limit, "value": bar.verdict()[0], "verdict": bar.verdict()[1]} for bar in BARS
    ]
    return json.dumps({"command": command, "machine": machine(), "figures": figures, "bars": bars}, indent=2)


PICTURE = {
    "initialize": "start to the answer to initialize",
    "p50": "a call, one at a time, p50",
    "rate": f"calls a second, {WIDTH} in flight",
    "text_1m": "a result of 1 MB",
    "progress": "progress notifications a second",
    "memory_1k": "memory after 1,000 calls",
}


def draw(file: Path, command: str) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "mcpmux", "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif"}
    from matplotlib import pyplot

    shown, axes = pyplot.subplots(2, 3, figsize=(11, 4.6), layout="constrained")
    for axis, (name, title) in zip(axes.flat, PICTURE.items(), strict=True):
        figure = FIGURES[name]
        ways = [way for way in reversed(WAYS) if way in figure.samples]
        scale = {"s": 1, "ms": 1e3, "µs": 1e6, "/s": 1, "MB": 1 / MB}[figure.unit]
        values = [scale * statistics.median(figure.samples[way].values()) for way in ways]
        colours = ["#d9480f" if way == MUX else "#868e96" if way == DIRECT else "#4c6ef5" for way in ways]
        axis.barh(ways, values, color=colours)
        axis.set_xscale("log")
        axis.set_xlim(min(values) / 3, max(values) * 8)
        axis.set_title(title if figure.unit == "/s" else f"{title} ({figure.unit})", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_visible(False)
        for at, value in enumerate(values):
            axis.text(value * 1.1, at, f"{value:,.0f}" if value >= 10 else f"{value:.1f}", va="center")
    shown.supxlabel(f"{command}\n{machine()}", fontsize=7)
    shown.savefig(file, metadata={"Date": None})
    pyplot.close(shown)


def checkout(commit: str, folder: Path) -> Path:
    """The files of a commit."""
    place = folder / "before"
    place.mkdir()
    archive = subprocess.run(
        ["git", "-C", str(PEERS.parent.parent), "archive", commit], check=True, capture_output=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", str(place)], input=archive, check=True)
    return place


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter repetitions; some figures are left out")
    parser.add_argument("--only", metavar="NAME,…", default=",".join(MEASUREMENTS), help=", ".join(MEASUREMENTS))
    parser.add_argument("--json", action="store_true", help="all samples, for scripts")
    parser.add_argument(
        "--compare", metavar="FILE", type=Path, help="a former run's --json, to be held against this one"
    )
    parser.add_argument("--core-before", metavar="COMMIT", help="the core of this commit is measured beside ours")
    parser.add_argument("--svg", metavar="FILE", type=Path, help="draws a picture of the main figures too")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := [name for name in chosen if name not in MEASUREMENTS]:
        parser.error(f"there is no measurement {unknown[0]!r}; there are {', '.join(MEASUREMENTS)}")
    command = " ".join(["uv run --group bench tests/bench.py", *sys.argv[1:]])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        run = Run(
            Path(folder), options.quick, checkout(options.core_before, Path(folder)) if options.core_before else None
        )
        for name in chosen:
            measure, times = MEASUREMENTS[name]
            for repetition in range((2 if run.quick else times) + 1):
                run.repetition = repetition
                for way in WAYS:
                    if sys.stderr.isatty():
                        print(f"\r{name} {repetition}: {way:24}", end="", file=sys.stderr, flush=True)
                    measure(run, way)
    if sys.stderr.isatty():
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
    if options.svg:
        draw(options.svg, command)
    if options.json:
        print(as_json(command))
        return 0
    if "core" in chosen and not options.quick:
        curves()
    if options.compare:
        compare(options.compare)
    return 0 if tell(command) else 1


if __name__ == "__main__":
    sys.exit(main())
