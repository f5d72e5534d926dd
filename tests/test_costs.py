"""Nothing that a peer says may cost more than linear time: what so many of a kind cost the core, counted and not timed
(`counting.py` says what). `uv run pytest tests/test_costs.py --costs 10000 -s` shows the table. Our promise (README,
"Isolates failures")."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from counting import assert_linear
from script import TOOL, Script

import mcpmux
from mcpmux import ServerOptions

FORM = {"message": "?", "requestedSchema": {"type": "object", "properties": {}}}
ALL: dict[str, Any] = {"elicitation": {"form": {}, "url": {}}, "sampling": {}, "tasks": {"list": {}}}
Curve = Callable[[int], Callable[[], Any]]  # prepares that many, and gives what is to be counted
CURVES: dict[str, Curve] = {}


def curve(made: Curve) -> Curve:
    CURVES[made.__name__.replace("_", " ")] = made
    return made


# ── questions ──


@curve
def questions_of_one_call(number: int) -> Callable[[], Any]:
    s = Script(["a"], capabilities=ALL)
    s.host_asks(1, "tools/call", name="a__log")

    def work() -> None:
        for n in range(number):
            s.server_sends("a", id=f"q{n}", method="elicitation/create", params=FORM)
            s.host_sends(id=s.to_host[-1]["id"], result={"action": "decline"})

    return work


@curve
def questions_that_nobody_answers(number: int) -> Callable[[], Any]:
    s = Script(["a"], capabilities=ALL)
    s.host_asks(1, "tools/call", name="a__log")
    lines = [json.dumps({"id": n, "method": "elicitation/create", "params": FORM}).encode() for n in range(number)]
    return lambda: s.feed(mcpmux.ServerLines("a", s.runs["a"], list(lines)))


@curve
def questions_taken_back_before_the_host_is_ready(number: int) -> Callable[[], Any]:
    s = Script(["a"], begin=False)
    s.asks("init", "initialize", protocolVersion="2025-11-25", capabilities=ALL, clientInfo={})

    def work() -> None:
        for n in range(number):
            s.server_sends("a", id=n, method="elicitation/create", params=FORM)
            s.server_sends("a", method="notifications/cancelled", params={"requestId": n})

    return work


@curve
def rounds_of_a_modern_server(number: int) -> Callable[[], Any]:
    s = Script(["a"], modern=("a",), capabilities=ALL)

    def work() -> None:
        for n in range(number):
            s.host_asks(n, "tools/call", name="a__log")
            asked = {"k": {"method": "elicitation/create", "params": FORM}}
            s.server_answers("a", "tools/call", {"resultType": "input_required", "inputRequests": asked})
            s.host_sends(id=s.to_host[-1]["id"], result={"action": "decline"})
            s.server_answers("a", "tools/call", {"resultType": "complete", "content": []})

    return work


@curve
def calls_that_wait_for_approval(number: int) -> Callable[[], Any]:
    s = Script({"a": ServerOptions(command="a", approve=True)}, capabilities=ALL)

    def work() -> None:
        for n in range(number):
            s.host_asks(n, "tools/call", name="a__log", arguments={"n": n})
        for one in s.host_told("elicitation/create"):
            s.host_sends(id=one["id"], result={"action": "decline"})

    return work


# ── calls, tasks ──


@curve
def calls_answered_the_last_first(number: int) -> Callable[[], Any]:
    s = Script(["a"])

    def work() -> None:
        for n in range(number):
            s.host_asks(n, "tools/call", name="a__log")
        for one in reversed(s.server_heard("a", "tools/call")):
            s.server_sends("a", id=one["id"], result={"content": []})

    return work


@curve
def calls_that_time_out_one_by_one_within_a_second(number: int) -> Callable[[], Any]:
    s = Script(["a"])

    def work() -> None:
        for n in range(number):
            s.host_asks(n, "tools/call", name="a__log")
            s.advance(1 / number)
        s.advance(1000)

    return work


@curve
def calls_whose_server_dies(number: int) -> Callable[[], Any]:
    s = Script(["a"])
    for n in range(number):
        s.host_asks(n, "tools/call", name="a__log")
    return lambda: s.server_dies("a")


@curve
def progress_of_calls(number: int) -> Callable[[], Any]:
    s = Script(["a"])
    for n in range(number):
        s.host_asks(n, "tools/call", name="a__log", _meta={"progressToken": n})
    numbers = [one["id"] for one in s.server_heard("a", "tools/call")]

    def work() -> None:
        for n in numbers:
            s.server_sends("a", method="notifications/progress", params={"progressToken": n, "progress": 1})

    return work


@curve
def tasks(number: int) -> Callable[[], Any]:
    s = Script(["a"], capabilities=ALL)

    def work() -> None:
        for n in range(number):
            s.host_asks(n, "tools/call", name="a__log", task={}, _meta={"progressToken": n})
            s.server_answers("a", "tools/call", {"task": {"taskId": f"t{n}", "status": "working"}})
            s.server_sends("a", method="notifications/tasks/status", params={"taskId": f"t{n}", "status": "failed"})

    return work


@curve
def tasks_of_a_list(number: int) -> Callable[[], Any]:
    s = Script(["a", "b"], capabilities=ALL)
    s.host_asks(1, "tasks/list")
    listed = [{"taskId": f"t{n}"} for n in range(number)]

    def work() -> None:
        s.server_answers("a", "tasks/list", {"tasks": listed})
        s.server_answers("b", "tasks/list", {"tasks": listed})

    return work


# ── lists ──


def listing(method: str, entries: list[dict[str, Any]], **more: Any) -> Script:
    """A server that has been asked for this list and will answer with these entries."""
    s = Script(["a"], offers={"a": {method: ...}}, **more)
    s.advance(0.2)
    return s


def answers(s: Script, method: str, entries: list[Any]) -> Callable[[], Any]:
    def work() -> None:
        s.server_answers("a", method, {mcpmux.LISTS[method].key: entries})
        assert s.core.catalogue

    return work


@curve
def tools(number: int) -> Callable[[], Any]:
    entries = [TOOL | {"name": f"t{n}"} for n in range(number)]
    return answers(listing("tools/list", entries), "tools/list", entries)


@curve
def tools_whose_names_are_one_to_hosts(number: int) -> Callable[[], Any]:
    entries = [TOOL | {"name": chr(0x4E00 + n) * 60} for n in range(number)]
    return answers(listing("tools/list", entries), "tools/list", entries)


@curve
def tools_of_which_one_changes(number: int) -> Callable[[], Any]:
    s = Script(["a"], offers={"a": {"tools/list": [TOOL | {"name": f"t{n}"} for n in range(number)]}})
    s.tools()
    s.offers["a"]["tools/list"][0] = TOOL | {"name": "new"}

    def work() -> None:
        s.server_sends("a", method="notifications/tools/list_changed")
        s.advance(60)

    return work


@curve
def properties_of_one_schema(number: int) -> Callable[[], Any]:
    properties = {f"p{n}": {"type": "array", "items": {"$ref": "#/properties/p0"}} for n in range(number)}
    schema = {"type": "object", "properties": properties}
    entries = [TOOL | {"inputSchema": schema, "outputSchema": {"type": "array", "items": schema}}]
    return answers(listing("tools/list", entries), "tools/list", entries)


@curve
def templates_held_against_a_uri(number: int) -> Callable[[], Any]:
    entries = [{"name": "t", "uriTemplate": f"x{n}://{{a}}/{{+b}}"} for n in range(number)]
    s = Script(["a"], offers={"a": {"resources/templates/list": entries}})
    return lambda: s.host_asks(1, "resources/read", uri="x0://a/b")


@curve
def reads_of_what_a_template_matches(number: int) -> Callable[[], Any]:
    s = Script(["a"], offers={"a": {"resources/templates/list": [{"name": "t", "uriTemplate": "x://{a}/{+b}"}]}})

    def work() -> None:
        for n in range(number):
            s.host_asks(n, "resources/read", uri=f"x://a/{n}")
            s.server_answers("a", "resources/read", {"contents": []})

    return work


@curve
def an_unknown_name_beside_so_many(number: int) -> Callable[[], Any]:
    s = Script(["a"], offers={"a": {"tools/list": [TOOL | {"name": f"t{n}"} for n in range(number)]}})
    s.tools()
    return lambda: s.host_asks(1, "tools/call", name="a__tt7")


@curve
def unknown_names(number: int) -> Callable[[], Any]:
    s = Script(["a"])

    def work() -> None:
        for n in range(number):
            s.host_asks(n, "tools/call", name=f"a__l{n}")

    return work


@curve
def lines_of_instructions(number: int) -> Callable[[], Any]:
    servers = dict.fromkeys(("a", "b"), ("# a\n= =\n\n===\n " * number, 1))
    return lambda: mcpmux.merged_instructions(servers, "")


# ── subscriptions ──


def with_resources(number: int, modern: tuple[str, ...] = ()) -> Script:
    entries = [{"uri": f"mem://{n}", "name": "x"} for n in range(number)]
    return Script(["a"], offers={"a": {"resources/list": entries}}, modern=modern)


@curve
def subscriptions(number: int) -> Callable[[], Any]:
    s = with_resources(number)

    def work() -> None:
        for n in range(number):
            s.host_asks(n, "resources/subscribe", uri=f"mem://{n}")
        for n in range(number):
            s.server_sends("a", method="notifications/resources/updated", params={"uri": f"mem://{n}"})
        for n in range(number):
            s.host_asks(f"u{n}", "resources/unsubscribe", uri=f"mem://{n}")

    return work


def listens(number: int, modern: tuple[str, ...]) -> Callable[[], Any]:
    s = with_resources(number, modern)
    s.asks_modern("d", "server/discover")

    def work() -> None:
        for n in range(number):
            s.host_asks_modern(n, "subscriptions/listen", notifications={"resourceSubscriptions": [f"mem://{n}"]})
        for n in range(number):
            s.server_sends("a", method="notifications/resources/updated", params={"uri": f"mem://{n}"})
        for n in range(number):
            s.host_sends(method="notifications/cancelled", params={"requestId": n})

    return work


@curve
def listens_at_a_legacy_server(number: int) -> Callable[[], Any]:
    return listens(number, ())


@curve
def listens_at_a_modern_server(number: int) -> Callable[[], Any]:
    return listens(number, ("a",))


@curve
def listens_for_tasks(number: int) -> Callable[[], Any]:
    s = Script(["a"], modern=("a",))
    for n in range(number):
        wanted = {"taskIds": [f"t{n}"]}
        s.host_asks_modern(n, "subscriptions/listen", notifications=wanted)
    server = s.core.servers["a"]
    server.run.listen = server.run.former_listen = None
    return lambda: s.core.subscriptions.listen_at(server)


# ── lines ──


@curve
def lines_that_are_no_message(number: int) -> Callable[[], Any]:
    s = Script(["a"])
    return lambda: s.feed(mcpmux.ServerLines("a", s.runs["a"], [b'{"id":7,"x'] * number))


@curve
def lines_of_a_host_that_are_no_message(number: int) -> Callable[[], Any]:
    s = Script(["a"])
    return lambda: s.feed(mcpmux.HostLines([b"nonsense"] * number))


@curve
def notifications_before_the_host_is_ready(number: int) -> Callable[[], Any]:
    s = Script(["a"], begin=False)
    s.asks("init", "initialize", protocolVersion="2025-11-25", capabilities=ALL, clientInfo={})
    line = b'{"method":"notifications/message","params":{"level":"info","data":1}}'
    return lambda: s.feed(mcpmux.ServerLines("a", s.runs["a"], [line] * number))


@curve
def messages_of_a_batch(number: int) -> Callable[[], Any]:
    s = Script(["a"], revision="2025-03-26")
    batch = [{"jsonrpc": "2.0", "id": n, "method": "ping"} for n in range(number)]
    return lambda: s.feed(mcpmux.HostLines([json.dumps(batch).encode()]))


@curve
def links_of_results(number: int) -> Callable[[], Any]:
    s = Script(["a"])
    s.host_asks(1, "tools/call", name="a__log")
    links = [{"type": "resource_link", "name": "x", "uri": f"l://{n}"} for n in range(number)]
    return lambda: s.server_answers("a", "tools/call", {"content": links})


@curve
def chunks_of_one_line(number: int) -> Callable[[], Any]:
    splitter = mcpmux.LineSplitter(1 << 20)

    def work() -> None:
        for _ in range(number):
            splitter.feed(b"x")
        assert splitter.feed(b"\n")

    return work


# ── how it grows ──


@pytest.mark.requirement("linear")
@pytest.mark.parametrize("name", CURVES)
def test_so_many_more_cost_so_much_more(name: str, request: pytest.FixtureRequest):
    costs = assert_linear(CURVES[name], 10, 100, request.config.getoption("--costs"))
    print(f"\n| {name} |", " | ".join(f"{cost:,}" for cost in costs), "|", end="")


# ── what is looked at as a whole ──


def form(choices: int, properties: int, required: int) -> dict[str, Any]:
    items = {"enum": [f"v{n}" for n in range(choices)]}
    fields: dict[str, Any] = {"a": {"type": "array", "items": items, "default": [f"w{n}" for n in range(choices)]}}
    fields |= {f"p{n}": {"type": "string"} for n in range(properties)}
    return {"type": "object", "properties": fields, "required": [f"r{n}" for n in range(required)]}


@pytest.mark.requirement("linear")
@pytest.mark.parametrize(
    "work",
    [
        lambda: mcpmux.shown_of(1, {"mode": "form", "asker": "a", "requestedSchema": form(50_000, 9, 0)}, 0.0),
        lambda: mcpmux.fields_of_form(form(1, 50_000, 50_000)),
        lambda: mcpmux.redacted({"messages": [{"text": "sk-," * 100_000}]}),
        lambda: mcpmux.redacted({"messages": [{"key." * 100_000 + "type": "value"}]}),
        lambda: mcpmux.redacted({"messages": [{"text": "Bearer eyJa.eyJ,?a=://b:c" * 20_000}]}),
        lambda: mcpmux.line_without_secrets("a" * 200_000),
    ],
)
def test_no_form_and_no_text_costs_more_than_its_length(work: Callable[[], object]):
    """What the page and the sampler do with a server's words; each took a minute and more in squares."""
    began = time.process_time()
    work()
    assert time.process_time() - began < 5
