"""Every request ends exactly once, whatever happens in whatever order; and nothing stays in any table.

Our promise, and the one property that a multiplexer must have.
"""

from __future__ import annotations

import collections
import re
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule
from script import TOOL, Message, Script, envelope

import mcpmux
from mcpmux import MuxOptions, SamplingLimits, SamplingOptions, ServerOptions, State

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
        if server not in self.s.core.out.clogged:
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
            is_open = [
                pending for pending in self.s.core.in_flight.owed_by(mcpmux.Peer.SAMPLER) if pending.server == server
            ]
            assert len(is_open) <= LIMITS.max_concurrency
        assert all("tools" in m["params"]["params"] for m in self.s.model_asked() if m["params"]["server"] == "a")

    @invariant()
    def no_bug_shows(self) -> None:
        assert not any("a bug in mcpmux" in line for line in self.s.logged)

    def teardown(self) -> None:
        s = self.s
        for _ in range(100):  # whatever can time out does, and what is stopped ends
            s.advance(10)
            for server in SERVERS:
                if s.core.servers[server].state is State.STOPPING:
                    self.server_dies(server)
        assert self.requests - set(self.s.answered) == self.cancelled
        assert [id for id, server in self.questions.items() if not self.has_answer(server, id)] == []
        assert len(s.core.in_flight) == len(s.core.host.held) == 0
        assert not s.core.host.open
        assert all(not server.run.readings for server in s.core.servers.values())
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


# ── the bridge ──

OWED = re.compile(rb"question-(\d+)\.")  # in a question, and in its answer
CALL = re.compile(rb"call-(\d+)\.")  # in a call, and in its result
ALL = {"elicitation": {"form": {}, "url": {}}, "sampling": {"tools": {}}, "roots": {}}
DECLARED: list[dict[str, Any]] = [ALL, ALL, ALL, ALL, {"elicitation": {}}, {"sampling": {}, "roots": {}}, {}]
KINDS = ("form", "url", "sampling", "roots")
INPUT_TIMEOUT = 30


def call_of(kind: str, server: str, number: int) -> tuple[str, dict[str, Any]]:
    mark = f"call-{number}."
    return {
        "tool": ("tools/call", {"name": f"{server}__log", "arguments": {"mark": mark}}),
        "prompt": ("prompts/get", {"name": f"{server}__p", "arguments": {"mark": mark}}),
        "resource": ("resources/read", {"uri": f"{server}://{mark}"}),
    }[kind]


def question_of(kind: str, number: int) -> dict[str, Any]:
    mark = f"question-{number}."
    said = {"role": "user", "content": {"type": "text", "text": mark}}
    return {
        "form": {"method": "elicitation/create", "params": {"message": mark, "requestedSchema": {}}},
        "url": {"method": "elicitation/create", "params": {"mode": "url", "message": "?", "url": f"https://x/{mark}"}},
        "sampling": {"method": "sampling/createMessage", "params": {"messages": [said], "maxTokens": 1}},
        "roots": {"method": "roots/list", "params": {"_meta": {"x/y": mark}}},
    }[kind]


def answer_to(question: Any, *, no: bool = False) -> dict[str, Any]:
    """What a host or a model says to a question, with the mark of that question."""
    mark = f"question-{OWED.findall(mcpmux.encode(question))[0].decode()}."
    text = {"type": "text", "text": mark}
    return {
        "elicitation/create": {"action": "decline" if no else "accept", "content": {"mark": mark}},
        "sampling/createMessage": {"role": "assistant", "content": text, "model": "m"},
        "roots/list": {"roots": [{"uri": f"file:///{mark}"}]},
    }[question["method"]]


def marks(pattern: re.Pattern[bytes], value: Any) -> set[int]:
    return {int(mark) for mark in pattern.findall(value if isinstance(value, bytes) else mcpmux.encode(value))}


# What is called, what the host declares in it, and whether it is of the modern era where both can be.
NewCall = tuple[str, dict[str, Any], bool]
NEW_CALL = st.tuples(st.sampled_from(["tool", "tool", "prompt", "resource"]), st.sampled_from(DECLARED), st.booleans())


class Request(NamedTuple):
    """One of the host's."""

    id: int
    number: int  # of the call that it makes, or goes on with
    server: str
    method: str
    params: dict[str, Any]
    declared: dict[str, Any] | None  # None: it is of the legacy era
    is_refused: bool | None = None  # whether its requestState must be; None where either may be


class Bridge(RuleBasedStateMachine):
    """A host of either era or of both, a server of each, and a model; questions in calls and outside them, and every
    way in which they end. Each call and each question has a mark, which shows in all that is said of it."""

    def __init__(self) -> None:
        super().__init__()
        table = ServerOptions(command="x", tool_timeout_sec=20, startup_timeout_sec=5)
        lists = {"tools/list": [TOOL], "prompts/list": [{"name": "p"}]}
        self.s = Script(
            {"old": table, "new": msgspec.structs.replace(table, roots=("file:///table",))},
            sampling=SamplingOptions(timeout_sec=10, limits=SamplingLimits(requests_per_minute=8, max_concurrency=3)),
            offers={
                of: {**lists, "resources/templates/list": [{"name": "t", "uriTemplate": of + "://{x}"}]}
                for of in ("old", "new")
            },
            modern=("new",),
            options=MuxOptions(input_timeout_sec=INPUT_TIMEOUT),
            begin=False,
        )
        self.initialized = False
        self.next = 0
        self.then = self.s.now  # before the present step
        self.read = {"host": 0, "old": 0, "new": 0}  # of each one's messages, how many have been looked at
        self.open: dict[int, Request] = {}  # the host's, that must end
        self.put: list[tuple[Request, dict[str, Any], float]] = []  # what it was asked in answers, and when
        self.used: set[str] = set()  # states of mcpmux's that it has come back with
        self.own_ways: set[int] = set()  # calls that the host goes on with by itself, so that it may mix up rounds
        self.asked_of_host: dict[int, Message] = {}  # open requests to it
        self.calls: dict[str, dict[int, Message]] = {"old": {}, "new": {}}  # open at a server, by mcpmux's id
        self.questions: list[str] = []  # the legacy server's that must have an answer
        self.methods: dict[int, str] = {}  # of each question, by its mark
        self.lost: set[int | str] = (
            set()
        )  # requests of which nobody need hear any more: their server is gone, or clogged
        self.rounds: dict[tuple[int, str | None], dict[str, int]] = {}  # what the modern one asked: by call and state
        self.progress: dict[str, float] = {}  # the last of each token

    @initialize(declared=st.sampled_from([None, None, *DECLARED]))
    def begins(self, declared: dict[str, Any] | None) -> None:
        self.initialized = declared is not None
        if declared is not None:
            self.s.capabilities = declared
            self.s.initialize()
        else:
            self.s.asks_modern("list", "server/discover")

    def fresh(self) -> int:
        self.next += 1
        return self.next

    def alive(self, server: str) -> bool:
        return self.s.core.servers[server].state in (State.STARTING, State.READY)

    def sends(self, request: Request) -> None:
        meta: dict[str, Any] = {"progressToken": f"token-{request.id}"}
        meta |= {} if request.declared is None else envelope(request.declared)
        self.open[request.id] = request
        self.s.host_asks(request.id, request.method, **request.params, _meta=meta)

    # ── the host ──

    @rule(server=st.sampled_from(["old", "new"]), call=NEW_CALL)
    def host_calls(self, server: str, call: NewCall) -> None:
        kind, declared, modern = call
        number = self.fresh()
        method, params = call_of(kind, server, number)
        caps = declared if modern or not self.initialized else None
        self.sends(Request(self.fresh(), number, server, method, params, caps))

    @rule(
        nth=st.sampled_from([0, 0, 0, 1, 2]),
        part=st.sampled_from(["all", "all", "all", "some", "none", "more"]),
        no=st.sampled_from([False, False, True]),
        wrong=st.sampled_from(["", "", "", "", "", "arguments", "method", "state"]),
        declared=st.sampled_from([None, None, None, *DECLARED]),
        new=NEW_CALL,
    )
    def host_comes_back(
        self, nth: int, part: str, no: bool, wrong: str, declared: dict[str, Any] | None, new: NewCall
    ) -> None:
        for server_asks in (self.old_server_asks, self.new_server_asks):
            if not self.put:
                server_asks(["form", "sampling", "roots"], new=new)
                self.the_host_hears_what_is_its_own()
        if not self.put:
            return  # it declares nothing, or is of the legacy era
        before, result, at = self.put[-1 - nth % len(self.put)]
        state, number = result.get("requestState"), before.number
        answers = {key: answer_to(one, no=no) for key, one in result.get("inputRequests", {}).items()}
        if part == "some" and answers:
            answers.pop(min(answers))
        elif part == "more":
            answers |= {"old-1": {"action": "accept"}, "nobody": {}}
        elif part == "none":
            answers = {}
        method = before.method
        params = {key: before.params[key] for key in ("name", "arguments", "uri") if key in before.params}
        if wrong in ("arguments", "method"):
            number = self.fresh()
            kind = "tool" if (method == "tools/call") == (wrong == "arguments") else "prompt"
            method, params = call_of(kind, before.server, number)
        if wrong == "state":
            state = "mcpmux:77.77." if state and state.startswith("mcpmux:") else "nobody's"
        is_ours = state is not None and state.startswith("mcpmux:")
        refused = None
        if is_ours:
            in_time = self.s.now < at + INPUT_TIMEOUT
            refused = True if wrong or state in self.used else False if in_time else None
            if not wrong:
                self.used.add(state)
        elif before.server == "old" and method != "resources/read":
            refused = True
        if not is_ours:
            self.own_ways.add(number)
        params |= {"requestState": state} if state is not None else {}
        params |= {"inputResponses": answers} if answers or part == "none" else {}
        caps = before.declared if declared is None else declared
        self.sends(Request(self.fresh(), number, before.server, method, params, caps, refused))

    @precondition(lambda self: self.open)
    @rule(nth=st.integers(0, 3))
    def host_cancels(self, nth: int) -> None:
        id = list(self.open)[-1 - nth % len(self.open)]
        del self.open[id]
        self.s.host_sends(method="notifications/cancelled", params={"requestId": id})

    @precondition(lambda self: self.asked_of_host)
    @rule(nth=st.integers(0, 3), way=st.sampled_from(["yes", "yes", "no", "error", "wrong"]), twice=st.booleans())
    def host_answers(self, nth: int, way: str, twice: bool) -> None:
        id = list(self.asked_of_host)[-1 - nth % len(self.asked_of_host)]
        result = answer_to(self.asked_of_host.pop(id), no=way == "no")
        ways: dict[str, Any] = {"error": {"error": {"code": -1, "message": "no"}}, "wrong": {"result": 7}}
        for _ in range(1 + twice):
            self.s.host_sends(id=id, **ways.get(way, {"result": result}))

    # ── the servers ──

    def some_call(self, server: str, nth: int, call: NewCall) -> Message | None:
        """One that is open there, if need be a new one, and now has an answer; None where there can be none."""
        calls = self.calls[server]
        if not calls:
            self.host_calls(server, call)
            self.s.advance(0.2)
            self.servers_hear_answers_to_their_own_questions()
        return calls.pop(list(calls)[-1 - nth % len(calls)]) if calls and self.alive(server) else None

    @rule(
        server=st.sampled_from(["old", "new"]),
        nth=st.integers(0, 3),
        way=st.sampled_from(["result", "typed", "error", "wrong"]),
        new=NEW_CALL,
    )
    def server_answers(self, server: str, nth: int, way: str, new: NewCall) -> None:
        call = self.some_call(server, nth, new)
        if call:
            text = f"call-{min(marks(CALL, call['params']))}."
            result = {"content": [{"type": "text", "text": text}], "messages": [], "contents": []}
            typed = {"result": {**result, "resultType": "complete"}}
            ways: dict[str, Any] = {
                "typed": typed,
                "error": {"error": {"code": -32050, "message": text}},
                "wrong": {"result": 7},
            }
            self.s.server_sends(server, id=call["id"], **ways.get(way, {"result": result}))

    @rule(
        kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
        outside=st.sampled_from([False, False, True]),
        wait=st.sampled_from([0.02, 0.02, 0]),
        new=NEW_CALL,
    )
    def old_server_asks(self, kinds: list[str], *, new: NewCall, outside: bool = False, wait: float = 0.02) -> None:
        if not self.calls["old"] and not outside:
            self.host_calls("old", new)
            self.s.advance(0.2)
        for kind in kinds if self.alive("old") else ():
            id = f"q{self.fresh()}"
            question = question_of(kind, self.next)
            self.methods[self.next] = question["method"]
            if "old" in self.s.core.out.clogged:
                self.lost.add(id)
            else:
                self.questions.append(id)
            self.s.server_sends("old", id=id, **question)
        self.s.advance(wait)

    @precondition(lambda self: self.questions)
    @rule(nth=st.integers(0, 3))
    def old_server_withdraws(self, nth: int) -> None:
        id = self.questions.pop(-1 - nth % len(self.questions))
        self.s.server_sends("old", method="notifications/cancelled", params={"requestId": id})

    @rule(nth=st.integers(0, 3), known=st.booleans(), number=st.integers(1, 2), new=NEW_CALL)
    def old_server_needs_pages(self, nth: int, known: bool, number: int, new: NewCall) -> None:
        call = self.some_call("old", nth, new)
        if call:
            pages: list[dict[str, Any]] = []
            for _ in range(number):
                page = question_of("url", self.fresh())["params"]
                self.methods[self.next] = "elicitation/create"
                pages.append(page | ({"elicitationId": f"e{self.next}"} if known else {}))
            error = {"code": -32042, "message": "pages", "data": {"elicitations": pages}}
            self.s.server_sends("old", id=call["id"], error=error)

    @rule(back=st.integers(0, 5))
    def old_server_says_that_a_page_is_done(self, back: int) -> None:
        if self.alive("old"):
            said = {"elicitationId": f"e{self.next - back}"}
            self.s.server_sends("old", method="notifications/elicitation/complete", params=said)

    @rule(
        nth=st.integers(0, 3),
        kinds=st.lists(st.sampled_from(KINDS), max_size=3),
        state=st.sampled_from(["", "s", "s", "mcpmux:1.2."]),
        new=NEW_CALL,
    )
    def new_server_asks(self, kinds: list[str], *, new: NewCall, nth: int = 0, state: str = "s") -> None:
        call = self.some_call("new", nth, new)
        if call:
            asked: dict[str, Any] = {}
            for key, kind in zip("xyz", kinds, strict=False):
                asked[key] = question_of(kind, self.fresh())
                self.methods[self.next] = asked[key]["method"]
            result: dict[str, Any] = {"resultType": "input_required"} | ({"inputRequests": asked} if asked else {})
            if state:
                result["requestState"] = f"{state}{self.fresh()}"
            number = min(marks(CALL, call["params"]))
            keys = {key: min(marks(OWED, one)) for key, one in asked.items()}
            self.rounds[number, result.get("requestState")] = keys
            self.s.server_sends("new", id=call["id"], result=result)

    @rule(server=st.sampled_from(["old", "new"]), nth=st.integers(0, 3), value=st.integers(0, 9))
    def server_tells_progress(self, server: str, nth: int, value: int) -> None:
        heard = self.s.server_heard(server, "tools/call")
        if heard and self.alive(server):
            params = {"progressToken": heard[-1 - nth % len(heard)]["id"], "progress": value}
            self.s.server_sends(server, method="notifications/progress", params=params)

    def forgets(self, server: str) -> None:
        """It is gone or does not read: it is owed nothing any more, and will not be told of what it owes."""
        self.lost |= {*self.calls[server], *(self.questions if server == "old" else ())}
        self.calls[server].clear()
        if server == "old":
            self.questions.clear()

    @rule(server=st.sampled_from(["old", "new"]))
    def server_dies(self, server: str) -> None:
        if self.s.core.servers[server].state in (State.STARTING, State.READY, State.STOPPING):
            self.forgets(server)
            self.s.server_dies(server)

    @rule(server=st.sampled_from(["old", "new"]), clogged=st.sampled_from([True, False, False]))
    def server_clogs(self, server: str, clogged: bool) -> None:
        if self.alive(server):
            self.forgets(server)
            self.s.feed(mcpmux.ServerClogged(server, self.s.runs[server], clogged))

    # ── the model, and time ──

    @rule(nth=st.integers(0, 3), fails=st.sampled_from([False, False, True]))
    def model_answers(self, nth: int, fails: bool) -> None:
        asked = self.s.model_asked()
        if asked:
            one = asked[-1 - nth % len(asked)]
            error: dict[str, Any] = {"error": {"code": 1, "message": "no"}}
            self.s.model_sends(id=one["id"], **(error if fails else {"result": answer_to(one)}))

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.02, 0.3, 0.3, 6.0, 6.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.s.advance(seconds)

    # ── what must hold ──

    def news(self, who: str, messages: list[Message]) -> list[Message]:
        new = messages[self.read[who] :]
        self.read[who] = len(messages)
        return new

    @invariant()
    def the_host_hears_what_is_its_own(self) -> None:
        for message in self.news("host", self.s.to_host):
            if "method" not in message:
                self.answered(message)
            elif "id" in message:
                assert self.initialized
                self.asked_of_host[message["id"]] = message
            elif message["method"] == "notifications/cancelled":
                assert self.asked_of_host.pop(message["params"]["requestId"])
            elif message["method"] == "notifications/progress":
                token, value = (message["params"][key] for key in ("progressToken", "progress"))
                assert int(token.removeprefix("token-")) in self.open
                assert value > self.progress.get(token, -1)
                self.progress[token] = value
        self.then = self.s.now

    def answered(self, message: Message) -> None:
        if isinstance(message.get("id"), str):
            return  # of the beginning
        request = self.open.pop(message["id"])
        result = message.get("result", {})
        assert marks(CALL, message.raw) <= {request.number}
        if request.is_refused is not None:
            assert (message.get("error", {}).get("code") == -32602) is request.is_refused
        if result.get("resultType") != "input_required":
            assert request.declared is None or "error" in message or result["resultType"] == "complete"
            return
        assert request.declared is not None
        for one in result.get("inputRequests", {}).values():
            assert one["method"].partition("/")[0] in request.declared
            if one["method"] == "elicitation/create":
                mode = one["params"].get("mode", "form")
                assert mode in (request.declared["elicitation"] or {"form": {}})
                asks = one["params"]["message"].partition("] ")[0][1:]  # any, where it is not known whose the URI is
                assert asks == request.server or (request.method == "resources/read" and asks in ("old", "new"))
        self.put.append((request, result, self.then))

    @invariant()
    def servers_hear_answers_to_their_own_questions(self) -> None:
        for message in self.news("old", self.s.to_server["old"]):
            if message.get("method") in mcpmux.CARRIERS:
                assert not {"requestState", "inputResponses"} & message["params"].keys()
                self.calls["old"][message["id"]] = message
            elif message.get("method") == "notifications/cancelled":
                id = message["params"]["requestId"]
                assert id in self.lost or self.calls["old"].pop(id)
            elif "method" not in message and message["id"][0] == "q":
                if message["id"] not in self.lost:
                    self.questions.remove(message["id"])
                number = int(message["id"][1:])
                assert all(self.is_for(number, mark) for mark in marks(OWED, message.raw))
        for message in self.news("new", self.s.to_server["new"]):
            assert "method" in message  # a modern server is sent no answers
            if message["method"] in mcpmux.CARRIERS:
                self.calls["new"][message["id"]] = message
                self.tried_again(message["params"])
            elif message["method"] == "notifications/cancelled":
                id = message["params"]["requestId"]
                listens = {one["id"] for one in self.s.server_heard("new", "subscriptions/listen")}
                assert id in listens or id in self.lost or self.calls["new"].pop(id)

    def is_for(self, question: int, mark: int) -> bool:
        """The roots are the host's: those that it gave for one question are good for another."""
        return mark == question or self.methods[mark] == self.methods[question] == "roots/list"

    def tried_again(self, params: dict[str, Any]) -> None:
        number, state = min(marks(CALL, params)), params.get("requestState")
        answers = params.get("inputResponses", {})
        if number in self.own_ways:
            return
        asked = self.rounds.get((number, state), {})
        assert answers.keys() == asked.keys()
        for key, answer in answers.items():
            assert all(self.is_for(asked[key], mark) for mark in marks(OWED, answer))

    @invariant()
    def no_bug_shows(self) -> None:
        assert not any("a bug in mcpmux" in line for line in self.s.logged)

    def teardown(self) -> None:
        s = self.s
        if self.next % 3 == 0:
            s.feed(mcpmux.HostGone("end"))
            self.the_host_hears_what_is_its_own()
            assert not self.open
            return
        s.advance(1000)  # whatever can time out has
        self.the_host_hears_what_is_its_own()
        self.servers_hear_answers_to_their_own_questions()
        assert not self.open
        assert not self.questions
        assert not self.asked_of_host
        assert not any(self.calls.values())
        assert all(one.method == "subscriptions/listen" for one in s.core.in_flight)
        assert len(s.core.rounds) == 0 and not s.core.host.held
        assert all(not one.run.readings for one in s.core.servers.values())
        assert not [key for key in s.due if key[0] not in ("rested", "calls")]


TestQuestions = pytest.mark.requirement("one-ending", "cancelling-what-is-open")(Questions.TestCase)
TestTraffic = pytest.mark.requirement("one-ending", "request-id")(Traffic.TestCase)
TestBridge = pytest.mark.requirement(
    "question-needs-capability",
    "dead-state",
    "methods-with-rounds",
    "modern-host-hears",
    "cancelling-what-is-open",
    "progress-token",
    "retry-shape",
    "retry-of-its-own",
    "decline-arrives",
)(Bridge.TestCase)
TestQuestions.settings = TestTraffic.settings = settings(stateful_step_count=60)
TestBridge.settings = settings(TestTraffic.settings, max_examples=3 * settings.default.max_examples)
