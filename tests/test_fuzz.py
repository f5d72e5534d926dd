"""A fuzzer over the core, and a short one over a real process's two wires.

Hosts of either era, or of both in one process; three servers, a model and a page; values that nobody expects; configs
that change, processes that die. Whatever comes in whatever order: mcpmux shows no bug, each request of the host's ends
once, each line is valid JSON, and when all is over nothing is left in any table. A seed is a story, and a failure names
it: `uv run pytest tests/test_fuzz.py --fuzz-from SEED --fuzz-stories 1` tells it again. Our choice.
"""

from __future__ import annotations

import collections
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import FUZZ_PARTS, PATIENCE, RawHost, server_table
from hostile import (
    ALL,
    DECLARED,
    LEVELS,
    NAMES,
    OFFERED,
    OFFERS,
    REVISIONS,
    answer_to,
    bent,
    metas,
    question,
    reply_to,
    request_of_host,
    spelt,
    told_by_host,
    told_by_server,
    torn,
)
from script import PAGE, SAMPLER, Message, Script, envelope

import mcpmux
from mcpmux import MuxOptions, SamplingLimits, SamplingOptions, ServerOptions, State

# ── the story ──


class Story(Script):
    """One seed's."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = random.Random(seed)
        self.open: dict[str, list[Message]] = {name: [] for name in NAMES}  # what a server owes
        self.sent: dict[str, tuple[str, dict[str, Any]]] = {}  # the host's requests, by id as it is spelt
        self.expected: collections.Counter[str] = collections.Counter()  # endings, by that
        self.heard: collections.Counter[str] = collections.Counter()
        self.puts: list[tuple[str, dict[str, Any]]] = []  # requests with what they take to be made again
        self.next = 0
        self.sampling = rng.choice(SAMPLINGS)
        self.is_good = rng.random() < 0.4  # whether greetings and lists go well
        tables = {name: self.table() for name in NAMES if rng.random() < 0.95}
        super().__init__(
            tables,
            options=self.options(),
            sampling=self.sampling,
            capabilities=rng.choice(DECLARED),
            revision=rng.choice(REVISIONS),
            offers={name: {kind: OFFERS[kind] for kind in OFFERS if rng.random() < 0.8} for name in NAMES},
            server_capabilities=OFFERED,
            silent=tuple(name for name in NAMES if rng.random() < 0.1),
            modern=tuple(name for name in NAMES if rng.random() < 0.4),
            page=rng.random() < 0.5,
            begin=False,
        )
        self.to_server = {name: [] for name in NAMES}
        self.eras = rng.choice(["legacy", "modern", "both"])
        if self.eras != "modern":
            info = {"name": rng.choice(["script", "claude-ai"]), "version": "1"}
            asked = {"protocolVersion": self.revision, "capabilities": self.capabilities, "clientInfo": info}
            self.request(self.fresh(), "initialize", asked)
            if rng.random() < 0.9:
                self.host_sends(method="notifications/initialized")

    def table(self) -> ServerOptions:
        rng = self.rng
        return ServerOptions(
            command=rng.choice("xy"),
            tool_timeout_sec=rng.choice([5.0, 300.0]),
            startup_timeout_sec=rng.choice([2.0, 30.0]),
            prefix=rng.choice([None, None, None, "", "a"]),
            start=rng.choice(["lazy", "eager"]),
            idle_timeout_sec=rng.choice([0.0, 0.0, 3.0]),
            protocol=rng.choice([None, None, None, "legacy", "modern"]),
            sampling=rng.choice(["auto", "auto", "host", "local", "off"]),
            elicitation=rng.choice(["auto", "auto", "host", "local", "off"]),
            approve=rng.choice([False, False, "destructive", True, ["log"]]),
            pin=rng.random() < 0.2,
            roots=rng.choice([[], ["file:///r"]]),
            disabled_tools=rng.choice([[], ["log"]]),
        )

    def options(self) -> MuxOptions:
        rng = self.rng
        return MuxOptions(
            input_timeout_sec=rng.choice([3.0, 600.0]),
            first_list_sec=rng.choice([0.0, 3.0]),
            page=rng.choice(["auto", "always", "off"]),
            host_message_mb=rng.choice([10.0, 10.0, 0.002]),
            log_level=rng.choice(["info", "info", "trace"]),
        )

    # ── what it keeps of what is said ──

    def comes_up(self, server: mcpmux.Name, run: int) -> None:
        if self.rng.random() < 0.95:
            super().comes_up(server, run)
        else:
            self.feed(mcpmux.ServerGone(server, run, f"{server} cannot be started", "look", []))

    def _server_gets(self, server: str, message: Message) -> None:
        if "method" in message and "id" in message:
            self.open[server].append(message)
        if self.is_good or self.rng.random() < 0.9:
            super()._server_gets(server, message)
        else:
            self.to_server[server].append(message)

    def _parse(self, line: bytes) -> Message:
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(limit * 3)  # it may stand deeper here than in a peer
        try:
            message = super()._parse(line)
        finally:
            sys.setrecursionlimit(limit)
        if "method" not in message and "id" in message and not isinstance(message["id"], int | str | float):
            raise AssertionError(message)
        return message

    def note_answers(self) -> None:
        """What came to the host since the last look."""
        for message in self.to_host[self.looked :]:
            if "method" in message or "id" not in message:
                continue
            key = json.dumps(message["id"])
            if key not in self.sent:  # a torn one's
                continue
            self.heard[key] += 1
            assert self.heard[key] <= self.expected[key], f"an ending too many: {message}"
            method, params = self.sent.get(key, ("", {}))
            result = message.get("result", {})
            if isinstance(result, dict) and result.get("resultType") == "input_required":
                asked = asked if isinstance(asked := result.get("inputRequests"), dict) else {}
                methods = {name: one.get("method") for name, one in asked.items() if isinstance(one, dict)}
                answers = {name: answer_to(self.rng, str(method)) for name, method in methods.items()}
                more = {"inputResponses": answers, "requestState": result.get("requestState")}
                self.puts.append((method, params | {k: v for k, v in more.items() if v is not None}))
        self.looked = len(self.to_host)

    looked = 0

    def fresh(self) -> Any:
        self.next += 1
        return self.rng.choice([self.next, self.next, self.next, f"s{self.next}", self.next + 0.5])

    # ── what happens ──

    def request(self, id: Any, method: str, params: Any) -> None:
        id = f"torn{id}" if "@deep" in str(params) else id
        key = json.dumps(id)
        line = spelt({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
        self.expected[key] += not key.startswith('"torn')
        if key.startswith('"torn'):
            self.feed(mcpmux.HostLines([line]))
            return
        self.sent[key] = method, params if isinstance(params, dict) else {}
        self.feed(mcpmux.HostLines([line]))

    def host_asks_something(self) -> None:
        rng = self.rng
        if self.puts and rng.random() < 0.35:
            method, params = rng.choice(self.puts[-5:])
        else:
            method, params = request_of_host(rng)
        meta = metas(rng)
        is_modern = self.eras == "modern" or (self.eras == "both" and rng.random() < 0.5)
        if is_modern and method != "initialize":
            meta = {**meta, **envelope(rng.choice(DECLARED))}
            meta |= {mcpmux.LEVEL_KEY: rng.choice(LEVELS)} if rng.random() < 0.2 else {}
        params = {key: value for key, value in params.items() if key != "_meta"} | ({"_meta": meta} if meta else {})
        if rng.random() < 0.2:
            params = bent(rng, params)
        id = self.fresh()
        if rng.random() < 0.03 and self.sent:
            id = json.loads(rng.choice(list(self.sent)))  # open, or ended
        self.request(id, method, params)

    def host_cancels(self) -> None:
        self.note_answers()
        waiting = [key for key, number in self.expected.items() if self.heard[key] < number]
        if waiting:
            key = self.rng.choice(waiting[-8:])
            self.expected[key] -= 1
            self.feed(
                mcpmux.HostLines(
                    [b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%b}}' % key.encode()]
                )
            )

    def host_tells(self) -> None:
        method, params = told_by_host(self.rng)
        self.host_sends(
            spelt({"method": method, "params": bent(self.rng, params) if self.rng.random() < 0.3 else params})
        )

    def host_answers(self) -> None:
        asked = [one for one in self.to_host[-60:] if "method" in one and "id" in one]
        if asked:
            one = self.rng.choice(asked[-4:])
            self.host_sends(spelt(reply_to(self.rng, one["id"], one["method"])))

    def a_line_is_torn(self) -> None:
        """Nobody can say what it is: an answer is not expected, and one is no harm."""
        rng = self.rng
        method, params = request_of_host(rng)
        id = f"torn{self.fresh()}"
        line = torn(rng, spelt({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
        self.feed(
            mcpmux.HostLines([rng.choice([line, b"[%b]" % line, b"{}", b"[]", b"", mcpmux.TooLong(9, line, line)])])
        )

    def some_server(self) -> str | None:
        alive = [name for name in NAMES if (one := self.core.servers.get(name)) and one.state in ALIVE]
        return self.rng.choice(alive) if alive else None

    def says(self, server: str, *messages: dict[str, Any] | bytes) -> None:
        lines = [one if isinstance(one, bytes) else spelt(one) for one in messages]
        run = self.runs[server] - (self.rng.random() < 0.02)
        self.feed(mcpmux.ServerLines(server, run, list(lines)))

    def server_answers(self) -> None:
        server = self.some_server()
        if server and self.open[server]:
            owed = self.open[server]
            at = self.rng.randrange(max(0, len(owed) - 6), len(owed))
            one = owed[at] if self.rng.random() < 0.1 else owed.pop(at)
            self.says(server, reply_to(self.rng, one["id"], one["method"]))

    def server_asks(self) -> None:
        rng = self.rng
        if server := self.some_server():
            asked: list[dict[str, Any] | bytes] = []
            for _ in range(rng.randrange(1, 4)):
                method, params = question(rng)
                id = rng.choice([f"q{self.fresh()}", self.next, "q1"])
                asked.append(
                    {"id": id, "method": method, "params": bent(rng, params) if rng.random() < 0.15 else params}
                )
            self.says(server, *asked)

    def server_tells(self) -> None:
        rng = self.rng
        if server := self.some_server():
            numbers = [one["id"] for one in self.open[server][-4:]]
            method, params = told_by_server(rng, numbers)
            params = bent(rng, params) if rng.random() < 0.2 else params
            self.says(server, {"method": method, "params": params})

    def server_babbles(self) -> None:
        rng = self.rng
        if server := self.some_server():
            line = torn(rng, spelt(reply_to(rng, rng.randrange(50), "tools/call")))
            self.says(server, rng.choice([line, b"{}", b"[]", b"\xff", b'{"result":{}}', b'{"id":null,"error":{}}']))

    def server_offers_something_else(self) -> None:
        rng, name = self.rng, self.rng.choice(NAMES)
        kind = rng.choice(list(OFFERS))
        self.offers[name][kind] = rng.choice([[], OFFERS[kind], bent(rng, OFFERS[kind]), {"code": -1, "message": "x"}])
        (self.silent.add if rng.random() < 0.2 else self.silent.discard)(name)
        self.modern ^= {name} if rng.random() < 0.2 else set()

    def server_dies(self, server: str = "", **more: Any) -> None:
        if name := server or self.some_server():
            unread = [one for one in self.open[name][-2:] if self.rng.random() < 0.3]
            self.open[name].clear()
            super().server_dies(name, unread=unread)

    def what_is_stopped_ends(self, chance: float = 1.0) -> None:
        for name, server in list(self.core.servers.items()):
            if server.state is State.STOPPING and self.rng.random() < chance:
                self.server_dies(name)
        for peer, server in self.core.life.own.items():
            if server.state is State.STOPPING and self.rng.random() < chance:
                self.child_dies(peer)

    def server_clogs(self) -> None:
        if server := self.some_server():
            self.feed(mcpmux.ServerClogged(server, self.runs[server], self.rng.random() < 0.4))

    def child_answers(self) -> None:
        rng = self.rng
        peer, heard = rng.choice([(SAMPLER, self.to_model), (PAGE, self.to_page)])
        asked = [one for one in heard[-12:] if "id" in one]
        if asked and peer in self.runs:
            one = rng.choice(asked)
            self.feed(mcpmux.ServerLines(peer, self.runs[peer], [spelt(reply_to(self.rng, one["id"], one["method"]))]))

    def child_dies(self, peer: mcpmux.Peer | None = None) -> None:
        peer = peer or self.rng.choice([SAMPLER, PAGE])
        if peer in self.runs and self.core.life.own[peer].state in (*ALIVE, State.STOPPING):
            self.feed(mcpmux.ServerGone(peer, self.runs[peer], "it died", "look", []))

    def time_passes(self) -> None:
        self.advance(self.rng.choice([0.001, 0.02, 0.15, 1.0, 4.0, 31.0, 70.0, 400.0]))

    def config_changes(self) -> None:
        rng, servers = self.rng, {name: one.options for name, one in self.core.servers.items()}
        for name in NAMES:
            if rng.random() < 0.4:
                servers.pop(name, None)
            if rng.random() < 0.4:
                servers[name] = self.table()
        broken = {name: "its table is wrong" for name in NAMES if rng.random() < 0.1}
        servers = {name: table for name, table in servers.items() if name not in broken}
        self.sampling = rng.choice([self.sampling, *SAMPLINGS])
        self.feed(mcpmux.ConfigChanged(self.options(), servers, broken, self.sampling))

    def something_is_accepted(self) -> None:
        self.feed(mcpmux.PinsRead({} if self.rng.random() < 0.5 else self.pins))
        self.feed(mcpmux.TryAgain(self.rng.choice(NAMES)))

    def tell(self, steps: int) -> None:
        table = {
            self.host_asks_something: 30,
            self.server_answers: 30,
            self.server_asks: 12,
            self.host_answers: 10,
            self.child_answers: 8,
            self.time_passes: 10,
            self.server_tells: 8,
            self.host_cancels: 5,
            self.host_tells: 3,
            self.a_line_is_torn: 2,
            self.server_babbles: 2,
            self.server_offers_something_else: 2,
            self.server_dies: 2,
            self.server_clogs: 2,
            self.child_dies: 1,
            self.config_changes: 1,
            self.something_is_accepted: 1,
        }
        for step in self.rng.choices(list(table), list(table.values()), k=steps):
            step()
            self.note_answers()
            self.what_is_stopped_ends(0.3)

    # ── how it ends ──

    def ends(self) -> None:
        """All that can time out has, all that can be cancelled is, and every server has left the config."""
        if self.rng.random() < 0.3:
            self.feed(mcpmux.HostGone("the end"))
            self.note_answers()
            assert +self.expected == self.heard
            assert not self.core.host.open
            return
        if self.core.host.revision:
            self.host_sends(method="notifications/initialized")  # what waited for that is told
        for _ in range(6):
            self.advance(700)
            self.what_is_stopped_ends()
        for key in list(self.core.host.open):  # listens, and results of tasks, end when the host wishes
            assert self.core.host.open[key].method in ("subscriptions/listen", "tasks/result"), self.core.host.open[key]
            self.expected[json.dumps(json.loads(key))] -= 1
            self.host_sends(b'{"method":"notifications/cancelled","params":{"requestId":%b}}' % key)
        self.feed(mcpmux.ConfigChanged(MuxOptions(), {}, {}, None))
        for _ in range(3):
            self.advance(700)
            self.what_is_stopped_ends()
        self.note_answers()
        assert self.core.catalogue  # it is made when it is looked at
        assert not (no := self.expected - self.heard), f"no ending: {[(key, self.sent[key]) for key in no]}"
        assert not (left := dict(left_over(self.core))), f"left over: {left}"


ALIVE = (State.STARTING, State.READY)
SAMPLINGS = [None, SamplingOptions(timeout_sec=10, limits=SamplingLimits(max_concurrency=2))]
SAMPLINGS += [SamplingOptions(timeout_sec=20)]

# What stays when nothing is open and no server is left: what was given to the core, tables of functions, and what the
# host has seen.
STAYS = {
    "HostEnd.seen",
    "Merged._names",
    "Merged.pins",
    "Life.own",
    "Questions.own",
    "Router.of_host",
    "Router.told_by_host",
    "Router.told_by_server",
    "Core._timers",
    "Core._timers_of_servers",
    "Out.effects",
}


def left_over(core: mcpmux.Core) -> Iterator[tuple[str, Any]]:
    """Every table of every part that is not empty."""
    parts: list[Any] = [core]
    seen = set[int]()
    while parts:
        part = parts.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        for key, value in vars(part).items():
            name = f"{type(part).__name__}.{key}"
            if isinstance(value, dict | list | set | collections.deque):
                left: list[Any] = [one for one in value if not isinstance(one, mcpmux.Peer)]  # of these there are few
                if isinstance(value, dict):
                    left = [one for one in left if value[one] not in ({}, [], set())]
                if left and name not in STAYS:
                    yield name, value
            elif type(value).__module__ == mcpmux.__name__ and hasattr(value, "__dict__"):
                parts.append(value)


# ── over the core ──


@pytest.mark.requirement("one-ending", "request-id")
@pytest.mark.parametrize("part", range(FUZZ_PARTS))
def test_whatever_comes_each_request_ends_once_and_nothing_is_left(part: int, request: pytest.FixtureRequest):
    first, number = request.config.getoption("--fuzz-from"), request.config.getoption("--fuzz-stories")
    for seed in range(first + part, first + number, FUZZ_PARTS):
        try:
            story = Story(seed)
            story.tell(150)
            story.ends()
        except Exception as wrong:
            raise AssertionError(f"seed {seed}: {wrong}") from wrong


# ── over the wires ──

SERVER = Path(__file__).parent / "peers" / "babbler.py"


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_comes_over_the_pipes_each_request_ends_once(seed: int, start: Callable[..., RawHost]):
    rng = random.Random(seed)
    tables = [
        server_table(name, str(seed * 10 + at), script=SERVER, startup_timeout_sec=5) for at, name in enumerate("abc")
    ]
    host = start(*tables)
    host.initialize(ALL)
    asked: set[Any] = set()
    for number in range(1000, 1400):
        method, params = request_of_host(rng)
        if method in ("initialize", "subscriptions/listen"):
            continue
        if rng.random() < 0.4:
            params["_meta"] = envelope(rng.choice(DECLARED))
        line = spelt({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        asked.add(number)
        host.send(line)
        tells, told = told_by_host(rng)
        host.send(torn(rng, line.replace(b'"id": %d' % number, b'"id": "torn"')))
        host.send(spelt({"method": tells, "params": bent(rng, told)}))
        for one in [one for one in host.seen[-20:] if "method" in one and "id" in one]:
            host.send(spelt({"id": one["id"], "result": answer_to(rng, one["method"])}))
        if number % 20 == 0:
            host.request("ping")
    assert host.close() == 0
    heard = [*(json.loads(one["raw"]) for one in host.seen), *(json.loads(line) for line in rest_of(host))]
    answered = collections.Counter(one.get("id") for one in heard if "method" not in one)
    assert [number for number in asked if answered[number] != 1] == []
    assert "a bug in mcpmux" not in host.log() and "Traceback" not in host.log()


def rest_of(host: RawHost) -> Iterator[bytes]:
    while line := host.lines.get(timeout=PATIENCE):
        yield line
