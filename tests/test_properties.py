"""Every request ends exactly once, whatever happens in whatever order; and nothing stays in any table.

Our promise, and the one property that a multiplexer must have.
"""

from __future__ import annotations

import collections
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule
from script import TOOL, Script

import mcpmux
from mcpmux import MODEL, MuxOptions, SamplingLimits, SamplingOptions, ServerOptions, State

SERVERS = ("a", "b", "c")
SAMPLING = {"a": "auto", "b": "local", "c": "host"}  # the host samples without tools: of a's questions some are its
LIMITS = SamplingLimits(requests_per_minute=4, max_concurrency=2)
OFFERS = {
    "a": {"tools/list": [TOOL], "resources/list": [{"uri": "mem://a", "name": "a"}]},
    "b": {"tools/list": [TOOL], "prompts/list": [{"name": "p"}]},
    "c": {"tools/list": ..., "resources/list": ...},
}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("tools/call", {"name": "a__log"}),
    ("tools/call", {"name": "b__log", "_meta": {"progressToken": "t"}}),
    ("tools/call", {"name": "b__log", "task": {}, "_meta": {"progressToken": "u"}}),
    ("tools/call", {"name": "c__log"}),
    ("tools/call", {"name": "nobody"}),
    ("tools/call", {"name": 7}),
    ("prompts/get", {"name": "b__p"}),
    ("resources/read", {"uri": "mem://a"}),
    ("resources/read", {"uri": "mem://elsewhere"}),
    ("resources/subscribe", {"uri": "mem://a"}),
    ("completion/complete", {"ref": {"type": "ref/prompt", "name": "b__p"}, "argument": {}}),
    ("logging/setLevel", {"level": "info"}),
    ("tasks/list", {}),
    ("tasks/get", {"taskId": "t"}),
    ("tasks/result", {"taskId": "t"}),
    ("tools/list", {}),
    ("resources/templates/list", {}),
    ("ping", {}),
    ("vendor/x", {"name": "a__log"}),
]
QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    ("sampling/createMessage", {"messages": [], "maxTokens": 1}),
    ("sampling/createMessage", {"messages": [], "maxTokens": 1, "tools": []}),
    ("elicitation/create", {"message": "?", "requestedSchema": {}, "_meta": {"progressToken": 1}}),
    ("elicitation/create", {"mode": "url", "message": "?"}),
    ("roots/list", {}),
    ("ping", {}),
    ("tasks/list", {}),
    ("vendor/x", {}),
]
RESULTS: list[dict[str, Any]] = [
    {"result": {}},
    {"result": {"task": {"taskId": "t"}}},
    {"result": {"status": "completed"}},
    {"result": {"tasks": [{"taskId": "t"}], "nextCursor": "n"}},
    {"result": {"tools": [TOOL], "nextCursor": 1}},
    {"result": 7},
    {"error": {"code": -32002, "message": "no"}},
    {"error": "no"},
    {"result": {}, "error": {"code": 1, "message": "m"}},
]
SPELLINGS = st.sampled_from(["%d", '"%d"', "%d.0"])  # of an id of ours
GARBAGE = [b"nonsense", b"{}", b"[]", b'{"id":', b'{"method":[]}', b"\xff", b'{"id":null,"method":"ping"}']


class Questions(RuleBasedStateMachine):
    """Calls, what servers ask in them and outside them, and every way in which that ends."""

    asked = Bundle("asked")  # ids of the host's requests
    questioned = Bundle("questioned")  # (server, run, id) of servers' questions

    def __init__(self) -> None:
        super().__init__()
        table = ServerOptions(command="x", tool_timeout_sec=20, startup_timeout_sec=5)
        self.s = Script(
            {name: msgspec.structs.replace(table, sampling=SAMPLING[name]) for name in SERVERS},
            sampling=SamplingOptions(timeout_sec=10, limits=LIMITS),
            capabilities={"roots": {}, "sampling": {}, "elicitation": {}, "tasks": {"list": {}}},
            offers=OFFERS,
            options=MuxOptions(input_timeout_sec=30),
        )
        self.next = 0
        self.requests: set[int] = set()
        self.cancelled: set[int] = set()  # while they were open
        self.questions: dict[str, str] = {}  # servers' questions that must have an answer, and whose they are
        self.sampled: dict[int, tuple[str, float]] = {}  # requests to the model: for which server, and when

    def fresh(self) -> int:
        self.next += 1
        return self.next

    def alive(self, server: str) -> bool:
        return self.s.core.servers[server].state in (State.STARTING, State.READY)

    def asks(self, request: tuple[str, dict[str, Any]]) -> int:
        id = self.fresh()
        self.requests.add(id)
        self.s.host_asks(id, request[0], **request[1])
        return id

    def forgets_questions(self, server: str) -> None:
        """It is gone or does not read: what it has asked need not be answered any more."""
        self.questions = {id: of for id, of in self.questions.items() if of != server or self.has_answer(of, id)}

    def has_answer(self, server: str, id: str) -> bool:
        return any(m.get("id") == id and "method" not in m for m in self.s.to_server[server])

    # ── the host ──

    @rule(target=asked, server=st.sampled_from(SERVERS), number=st.integers(1, 3), with_tools=st.booleans())
    def a_call_samples(self, server: str, number: int, with_tools: bool) -> int:
        call = self.asks(("tools/call", {"name": f"{server}__log"}))
        for _ in range(number):
            self.server_asks(server, QUESTIONS[with_tools])
        return call

    @rule(id=asked)
    def host_cancels(self, id: int) -> None:
        if id not in self.s.answered:
            self.cancelled.add(id)
        self.s.host_sends(method="notifications/cancelled", params={"requestId": id})

    @rule(method=st.sampled_from([q[0] for q in QUESTIONS]), answer=st.sampled_from(RESULTS), nth=st.integers(0, 3))
    def host_answers(self, method: str, answer: dict[str, Any], nth: int) -> None:
        asked = self.s.host_told(method)
        if asked:
            self.s.host_sends(id=asked[-1 - nth % len(asked)]["id"], **answer)

    # ── the servers ──

    @rule(target=questioned, server=st.sampled_from(SERVERS), question=st.sampled_from(QUESTIONS))
    def server_asks(self, server: str, question: tuple[str, dict[str, Any]]) -> Any:
        if not self.alive(server):
            return multiple()
        id = f"q{self.fresh()}"
        if not self.s.core.servers[server].clogged:
            self.questions[id] = server
        self.s.server_sends(server, id=id, method=question[0], params=question[1])
        return server, self.s.runs[server], id

    @rule(server=st.sampled_from(SERVERS), answer=st.sampled_from(RESULTS), nth=st.integers(0, 5), spelling=SPELLINGS)
    def server_answers(self, server: str, answer: dict[str, Any], nth: int, spelling: str) -> None:
        heard = [message for message in self.s.to_server[server] if "method" in message and "id" in message]
        if heard and self.alive(server):
            number = heard[-1 - nth % len(heard)]["id"]  # also one that is answered already, or another run's
            body = mcpmux.encode(answer)[1:]
            self.s.server_sends(server, b'{"jsonrpc":"2.0","id":%b,%b' % ((spelling % number).encode(), body))

    @rule(question=questioned)
    def server_cancels(self, question: tuple[str, int, str]) -> None:
        server, run, id = question
        if self.alive(server) and self.s.runs[server] == run:
            if not self.has_answer(server, id):
                self.questions.pop(id, None)
            self.s.server_sends(server, method="notifications/cancelled", params={"requestId": id})

    @rule(server=st.sampled_from(SERVERS))
    def server_dies(self, server: str) -> None:
        if self.s.core.servers[server].state in (State.STARTING, State.READY, State.STOPPING):
            self.forgets_questions(server)
            self.s.server_dies(server)

    # ── the model ──

    @rule(answer=st.sampled_from(RESULTS), nth=st.integers(0, 3), spelling=SPELLINGS)
    def model_answers(self, answer: dict[str, Any], nth: int, spelling: str) -> None:
        asked = self.s.model_asked()
        if asked:
            number = asked[-1 - nth % len(asked)]["id"]  # also one that is answered already, or was withdrawn
            self.s.model_sends(
                b'{"jsonrpc":"2.0","id":%b,%b' % ((spelling % number).encode(), mcpmux.encode(answer)[1:])
            )

    @rule(nth=st.integers(0, 3))
    def model_answers_what_others_were_asked(self, nth: int) -> None:
        heard = [message for heard in (self.s.to_host, *self.s.to_server.values()) for message in heard]
        asked = [message["id"] for message in heard if "method" in message and "id" in message]
        self.s.model_sends(id=asked[-1 - nth % len(asked)] if asked else 0, result={})

    @rule()
    def sampler_dies(self) -> None:
        self.s.sampler_dies()

    # ── time ──

    @rule(seconds=st.sampled_from([0.02, 0.2, 1.0, 6.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.s.advance(seconds)

    # ── what must hold ──

    @invariant()
    def nothing_is_answered_twice(self) -> None:
        counts = collections.Counter(self.s.answered)
        assert all(count == 1 for id, count in counts.items() if isinstance(id, int)), counts
        for server in SERVERS:
            ids = [m["id"] for m in self.s.to_server[server] if "method" not in m]
            assert len(ids) == len(set(ids))

    @invariant()
    def nobody_hears_of_the_cancellation_of_what_he_was_never_asked(self) -> None:
        for heard in (self.s.to_host, self.s.to_model, *self.s.to_server.values()):
            asked = {message["id"] for message in heard if "method" in message and "id" in message}
            ended = {m["params"]["requestId"] for m in heard if m.get("method") == "notifications/cancelled"}
            assert ended <= asked

    @invariant()
    def progress_is_for_open_requests_only(self) -> None:
        told = self.s.host_told("notifications/progress")
        assert all(message["params"]["progressToken"] in ("t", "u") for message in told)

    @invariant()
    def the_model_is_asked_only_by_servers_that_may_and_within_their_limits(self) -> None:
        for message in self.s.model_asked():
            self.sampled.setdefault(message["id"], (message["params"]["server"], self.s.now))
        for server in SERVERS:
            lately = [at for of, at in self.sampled.values() if of == server and at > self.s.now - 60]
            assert len(lately) <= (0 if SAMPLING[server] == "host" else LIMITS.requests_per_minute)
            is_open = [pending for pending in self.s.core.in_flight.owed_by(MODEL) if pending.asker == server]
            assert len(is_open) <= LIMITS.max_concurrency
        assert all("tools" in m["params"]["params"] for m in self.s.model_asked() if m["params"]["server"] == "a")

    @invariant()
    def no_bug_shows(self) -> None:
        assert not any("a bug in mcpmux" in line for line in self.s.logged)

    def teardown(self) -> None:
        s = self.s
        s.advance(1000)  # whatever can time out has
        assert self.requests - set(self.s.answered) == self.cancelled
        assert [id for id, server in self.questions.items() if not self.has_answer(server, id)] == []
        assert len(s.core.in_flight) == len(s.core._held) == 0
        assert len(s.core.in_flight._by_asker) == 0
        assert all(not server.waiting and not server.listing for server in s.core.servers.values())
        s.feed(mcpmux.HostGone("end"))
        assert all(s.core.servers[name].state not in (State.STARTING, State.READY) for name in SERVERS)


class Traffic(Questions):
    """All that besides: every method, garbage, progress, changes, servers that do not read or never greet."""

    @rule(target=Questions.asked, request=st.sampled_from(REQUESTS))
    def host_asks(self, request: tuple[str, dict[str, Any]]) -> int:
        return self.asks(request)

    @rule(line=st.sampled_from(GARBAGE))
    def host_babbles(self, line: bytes) -> None:
        self.s.host_sends(line)

    @rule(changed=st.sampled_from(["notifications/roots/list_changed", "notifications/unknown"]))
    def host_tells(self, changed: str) -> None:
        self.s.host_sends(method=changed)

    @rule(server=st.sampled_from(SERVERS), value=st.integers(0, 3), nth=st.integers(0, 3))
    def server_tells_progress(self, server: str, value: int, nth: int) -> None:
        calls = self.s.server_heard(server, "tools/call")
        if calls and self.alive(server):
            params = {"progressToken": calls[-1 - nth % len(calls)]["id"], "progress": value}
            self.s.server_sends(server, method="notifications/progress", params=params)

    @rule(server=st.sampled_from(SERVERS), method=st.sampled_from(["tools", "resources"]))
    def server_changes(self, server: str, method: str) -> None:
        if self.alive(server):
            self.s.server_sends(server, method=f"notifications/{method}/list_changed")

    @rule(server=st.sampled_from(SERVERS), line=st.sampled_from(GARBAGE))
    def server_babbles(self, server: str, line: bytes) -> None:
        if self.alive(server):
            self.s.server_sends(server, line)

    @rule(server=st.sampled_from(SERVERS), clogged=st.booleans())
    def server_clogs(self, server: str, clogged: bool) -> None:
        if self.alive(server):
            self.forgets_questions(server)
            self.s.feed(mcpmux.ServerClogged(server, self.s.runs[server], clogged))

    @rule(server=st.sampled_from(SERVERS), mute=st.booleans())
    def server_will_be_mute(self, server: str, mute: bool) -> None:
        (self.s.silent.add if mute else self.s.silent.discard)(server)

    @rule()
    def model_logs(self) -> None:
        self.s.model_sends(method="log", params={"level": "debug", "text": "sampled"})


TestQuestions = Questions.TestCase
TestTraffic = Traffic.TestCase
TestQuestions.settings = TestTraffic.settings = settings(stateful_step_count=60)
