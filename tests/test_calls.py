"""A host's request on its way to its server and back, and every other way in which it ends.

https://modelcontextprotocol.io/specification/2025-11-25/basic
"""

from __future__ import annotations

from typing import Any

import pytest
from script import LEGACY, PAYLOAD, RESOURCES, TOOL, Script, server, tools

import mcpmux
from mcpmux import MuxOptions, ServerOptions, ToolOverride

# ── out and back ──


def test_a_call_goes_to_the_tools_owner_under_the_name_it_knows_and_its_answer_comes_back():
    s = Script(["git", "hub"])
    s.host_asks(7, "tools/call", name="hub__log", arguments={"n": 1})
    assert s.server_hears("hub", "tools/call")["params"] == {"name": "log", "arguments": {"n": 1}}
    assert s.server_heard("git", "tools/call") == []
    s.server_answers("hub", "tools/call", {"content": []})
    assert s.host_hears(7)["result"] == {"content": []}
    assert len(s.core.in_flight) == 0


@pytest.mark.requirement("byte-for-byte", "same-era-bytes")
def test_params_and_results_pass_byte_for_byte():
    """Our promise: unknown fields, _meta, key order and number spelling."""
    s = Script(["git"])
    meta = b'{"vendor/x":1.0,"progressToken":"p","y":{ "z":1e2}}'
    s.host_sends(
        b'{"id":1,"jsonrpc":"2.0","method":"tools/call","params":{"x":%b,"name":"git__log","_meta":%b,"arguments":%b}}'
        % (PAYLOAD, meta, PAYLOAD)
    )
    heard = s.server_hears("git", "tools/call")
    number = b"%d" % heard["id"]
    assert heard.raw == (
        b'{"jsonrpc":"2.0","id":%b,"method":"tools/call","params":{"x":%b,"name":"log","_meta":%b,"arguments":%b}}'
        % (number, PAYLOAD, meta.replace(b'"p"', number), PAYLOAD)
    )
    s.server_sends("git", b'{"result":%b,"jsonrpc":"2.0","id":%b}' % (PAYLOAD, number))
    assert s.host_hears(1).raw == b'{"jsonrpc":"2.0","id":1,"result":%b}' % PAYLOAD
    s.host_asks(2, "tools/call", name="git__log")
    error = b'{"message":"m","code":-32099,"data":%b}' % PAYLOAD
    s.server_sends("git", b'{"error":%b,"id":%d}' % (error, s.server_hears("git", "tools/call")["id"]))
    assert s.host_hears(2).raw == b'{"jsonrpc":"2.0","id":2,"error":%b}' % error


@pytest.mark.requirement("host-ids")
@pytest.mark.parametrize("id", [0, 1, -1, "", "x", "7", 'a"b', 2**60, 1.5])
def test_the_hosts_id_comes_back_as_it_was(id: Any):
    """2025-11-25, basic/index#requests: 0 and strings are ids like any other."""
    s = Script(["git"])
    s.host_asks(id, "tools/call", name="git__log")
    s.server_answers("git", "tools/call")
    assert s.host_hears(id)["result"] == {}


@pytest.mark.requirement("our-ids")
@pytest.mark.parametrize("spelling", ["%d", '"%d"', "%d.0"])
def test_a_servers_spelling_of_our_id_does_not_matter(spelling: str):
    s = Script(["git"])
    s.host_asks(1, "tools/call", name="git__log")
    number = s.server_hears("git", "tools/call")["id"]
    s.server_sends("git", b'{"jsonrpc":"2.0","id":%b,"result":{}}' % (spelling % number).encode())
    assert s.host_hears(1)["result"] == {}


@pytest.mark.requirement("unknown-members")
def test_unknown_top_level_fields_are_not_passed_on():
    """TypeScript 1.x refuses a message that has any."""
    s = Script(["git"])
    s.host_asks(1, "tools/call", name="git__log")
    s.server_sends("git", id=s.server_hears("git", "tools/call")["id"], result={}, extra=1)
    assert s.host_hears(1).raw == b'{"jsonrpc":"2.0","id":1,"result":{}}'


def test_a_call_made_before_the_lists_are_known_waits_for_them():
    s = Script(["git"], silent=("git",))
    s.host_asks(1, "tools/call", name="git__log")
    assert 1 not in s.answered
    number = s.server_hears("git", "initialize")["id"]
    s.server_sends("git", id=number, result={"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}})
    s.advance(0.2)
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(1)["result"] == {"content": []}


def test_an_overridden_tool_is_called_by_its_own_name():
    s = Script({"git": server(tools={"log": ToolOverride(name="history")})})
    assert s.tools() == ["git__history"]
    s.host_asks(1, "tools/call", name="git__history")
    assert s.server_hears("git", "tools/call")["params"]["name"] == "log"


@pytest.mark.requirement("wrapped-schemas")
def test_structured_results_of_a_wrapped_tool_are_wrapped():
    """Our choice: strict legacy hosts take objects only, as the TypeScript SDK does it."""
    s = Script(["git"], offers={"git": {"tools/list": [{**TOOL, "outputSchema": {"type": "array"}}]}})
    s.host_asks(1, "tools/call", name="git__log")
    s.server_answers("git", "tools/call", {"content": [], "structuredContent": [1]})
    assert s.host_hears(1)["result"] == {"content": [], "structuredContent": {"result": [1]}}


# ── progress and cancellation ──


def test_progress_comes_back_under_the_hosts_token():
    """2025-11-25, basic/utilities/progress."""
    s = Script(["git"])
    for id, token in ((1, "t"), (2, 0)):
        s.host_asks(id, "tools/call", name="git__log", _meta={"progressToken": token})
        call = s.server_hears("git", "tools/call")
        assert call["params"]["_meta"] == {"progressToken": call["id"]}
        params = {"progress": 1, "total": 2, "message": "m", "progressToken": call["id"]}
        s.server_sends("git", method="notifications/progress", params=params)
        assert s.host_told("notifications/progress")[-1]["params"] == params | {"progressToken": token}


@pytest.mark.requirement("progress-of-nothing")
@pytest.mark.parametrize("token", [999, "x", None, 1.5, [], {}])
def test_progress_for_nothing_that_is_open_is_dropped(token: Any):
    """It tears down Claude Code's transport."""
    s = Script(["git"])
    s.host_asks(1, "tools/call", name="git__log", _meta={"progressToken": "t"})
    s.server_sends("git", method="notifications/progress", params={"progressToken": token, "progress": 1})
    s.server_sends("git", method="notifications/progress", params={"progress": 1})
    s.server_sends("git", method="notifications/progress")
    assert s.host_told("notifications/progress") == []


@pytest.mark.requirement("progress-of-nothing", "progress-token")
def test_progress_after_the_answer_or_without_a_token_or_for_another_server_is_dropped():
    s = Script(["git", "hub"])
    s.host_asks(1, "tools/call", name="git__log", _meta={"progressToken": "t"})
    s.host_asks(2, "tools/call", name="hub__log")
    first, second = s.server_hears("git", "tools/call")["id"], s.server_hears("hub", "tools/call")["id"]
    s.server_sends("hub", method="notifications/progress", params={"progressToken": first, "progress": 1})
    s.server_sends("hub", method="notifications/progress", params={"progressToken": second, "progress": 1})
    s.server_answers("git", "tools/call")
    s.server_sends("git", method="notifications/progress", params={"progressToken": first, "progress": 1})
    assert s.host_told("notifications/progress") == []


@pytest.mark.requirement("progress-rises", "progress-token")
def test_progress_that_does_not_rise_is_dropped():
    """2025-11-25, basic/utilities/progress: the value MUST increase."""
    s = Script(["git"])
    s.host_asks(1, "tools/call", name="git__log", _meta={"progressToken": "t"})
    number = s.server_hears("git", "tools/call")["id"]
    for value in (1, 1, 0.5, 2, "3", None, True, 2.5):
        s.server_sends("git", method="notifications/progress", params={"progressToken": number, "progress": value})
    assert [m["params"]["progress"] for m in s.host_told("notifications/progress")] == [1, 2, 2.5]


@pytest.mark.requirement("cancelled-notification")
def test_a_cancelled_call_is_cancelled_at_its_server_and_never_answered():
    """2025-11-25, basic/utilities/cancellation."""
    s = Script(["git"])
    s.host_asks(1, "tools/call", name="git__log")
    number = s.server_hears("git", "tools/call")["id"]
    s.host_sends(method="notifications/cancelled", params={"requestId": 1, "reason": "no more", "x": 1})
    assert s.server_hears("git", "notifications/cancelled")["params"] == {
        "requestId": number,
        "reason": "no more",
        "x": 1,
    }
    s.server_sends("git", id=number, result={})
    assert 1 not in s.answered
    assert len(s.core.in_flight) == 0


@pytest.mark.requirement("cancelling-what-is-open")
@pytest.mark.parametrize("params", [{"requestId": 9}, {"requestId": "1"}, {}, {"requestId": None}, {"requestId": []}])
def test_cancelling_what_is_not_open_does_nothing(params: dict[str, Any]):
    s = Script(["git"])
    s.host_asks(1, "tools/call", name="git__log")
    s.host_sends(method="notifications/cancelled", params=params)
    assert s.server_heard("git", "notifications/cancelled") == []
    s.server_answers("git", "tools/call")
    assert s.host_hears(1)


def test_a_call_cancelled_while_it_waits_is_never_sent():
    s = Script(["git"])
    s.server_dies("git")
    s.host_asks(1, "tools/call", name="git__log")
    s.host_sends(method="notifications/cancelled", params={"requestId": 1})
    s.advance(2)
    assert s.server_heard("git", "tools/call") == []
    assert 1 not in s.answered
    assert len(s.core.in_flight) == 0


def test_a_list_cancelled_while_it_waits_is_never_answered():
    s = Script(["git"], silent=("git",))
    s.host_asks(1, "tools/list")
    s.host_sends(method="notifications/cancelled", params={"requestId": 1})
    s.advance(40)
    assert 1 not in s.answered


def test_concurrent_calls_come_back_in_any_order():
    s = Script(["git", "hub"])
    for id in range(4):
        s.host_asks(id, "tools/call", name=f"{'git' if id % 2 else 'hub'}__log", arguments={"id": id})
    open_calls = [(name, call) for name in ("git", "hub") for call in s.server_heard(name, "tools/call")]
    for name, call in reversed(open_calls):
        s.server_sends(name, id=call["id"], result={"echo": call["params"]["arguments"]["id"]})
    assert [s.host_hears(id)["result"]["echo"] for id in range(4)] == [0, 1, 2, 3]


def test_an_ending_does_not_overtake_its_own_progress():
    """Queues towards the host are one a server: what belongs together goes through one."""
    s = Script(["git"])
    s.host_asks(1, "tools/call", name="git__log", _meta={"progressToken": "t"})
    number = s.server_hears("git", "tools/call")["id"]
    params = {"progressToken": number, "progress": 1}
    lines = [
        mcpmux.notification_line("notifications/progress", mcpmux.encode(params)),
        b'{"jsonrpc":"2.0","id":%d,"result":oops}' % number,
    ]
    effects = s.core.handle(mcpmux.ServerLines("git", s.runs["git"], lines), s.now)
    assert [effect.source for effect in effects if isinstance(effect, mcpmux.SendHost)] == ["git", "git"]


# ── timeouts ──


@pytest.mark.requirement("timeouts")
def test_a_call_that_takes_too_long_is_cancelled_and_the_host_told():
    s = Script({"git": server(tool_timeout_sec=10)})
    s.host_asks(1, "tools/call", name="git__log")
    number = s.server_hears("git", "tools/call")["id"]
    s.advance(9.9)
    assert 1 not in s.answered
    s.advance(0.2)
    assert s.host_hears(1).is_error
    assert s.host_hears(1).text == "mcpmux: git did not answer tools/call within 10 s (tool_timeout_sec)"
    assert s.server_hears("git", "notifications/cancelled")["params"]["requestId"] == number
    s.server_sends("git", id=number, result={})
    assert s.answered.count(1) == 1


@pytest.mark.requirement("timeouts")
def test_progress_keeps_a_call_alive_up_to_ten_times_its_timeout():
    s = Script({"git": server(tool_timeout_sec=10)})
    s.host_asks(1, "tools/call", name="git__log", _meta={"progressToken": 1})
    number = s.server_hears("git", "tools/call")["id"]
    for second in range(1, 120):
        s.server_sends("git", method="notifications/progress", params={"progressToken": number, "progress": second})
        s.advance(1)
        assert (1 in s.answered) == (second >= 100)
    assert "within 100 s" in s.host_hears(1).text


def test_a_calls_clock_stands_still_while_a_person_is_asked():
    s = Script({"git": server(tool_timeout_sec=10)}, capabilities={"elicitation": {}})
    s.host_asks(1, "tools/call", name="git__log")
    s.server_sends("git", id="q", method="elicitation/create", params={"message": "?", "requestedSchema": {}})
    s.advance(300)
    s.host_sends(id=s.host_told("elicitation/create")[0]["id"], result={"action": "accept"})
    s.advance(9)
    assert 1 not in s.answered
    s.advance(2)
    assert s.host_hears(1).is_error


def test_a_clock_that_wakes_early_loses_no_timer():
    s = Script({"git": server(tool_timeout_sec=10)})
    s.host_asks(1, "tools/call", name="git__log")
    s.feed(mcpmux.TimerDue(("calls", "")))
    s.advance(11)
    assert s.host_hears(1).is_error


# ── bad answers ──


@pytest.mark.requirement("error-shape")
@pytest.mark.parametrize(
    ("template", "words"),
    [
        (b'{"jsonrpc":"2.0","id":%d,"result":{"a":oops}}', "cannot be read"),
        (b'{"jsonrpc":"2.0","id":%d,"result":{"a":1},"error":{"code":1,"message":"m"}}', "both a result and an error"),
        (b'{"jsonrpc":"2.0","id":%d,"result":7}', "a result that is no object"),
        (b'{"jsonrpc":"2.0","id":%d,"result":null}', "a result that is no object"),
        (b'{"jsonrpc":"2.0","id":%d,"error":"boom"}', "an error without a code and a message"),
        (b'{"jsonrpc":"2.0","id":%d,"error":{"code":"x","message":"m"}}', "an error without a code and a message"),
    ],
)
def test_an_answer_that_is_none_ends_its_call_with_the_reason(template: bytes, words: str):
    """Our choice: a call must not wait for a timeout that is sure to come."""
    s = Script(["git"])
    s.host_asks(1, "tools/call", name="git__log")
    s.server_sends("git", template % s.server_hears("git", "tools/call")["id"])
    assert s.host_hears(1).is_error
    assert words in s.host_hears(1).text
    assert "git" in s.host_hears(1).text


@pytest.mark.requirement("line-size-from-server")
def test_an_over_long_answer_ends_its_call_with_the_reason():
    s = Script(["git"])
    s.host_asks(1, "tools/call", name="git__log")
    number = s.server_hears("git", "tools/call")["id"]
    tail = b'"}],"x":1},"jsonrpc":"2.0","id":%d}' % number
    s.feed(mcpmux.ServerLines("git", s.runs["git"], [mcpmux.TooLong(10**9, b'{"result":{"content":[{', tail)]))
    assert "1000000000 bytes, over max_message_mb = 64" in s.host_hears(1).text


@pytest.mark.requirement("message-size-to-host")
def test_an_answer_that_hosts_do_not_take_becomes_an_error_that_names_server_and_size():
    """TypeScript hosts close the connection above 10 MiB a message."""
    s = Script(["git"], options=MuxOptions(host_message_mb=0.01), offers={"git": {**tools("log"), **RESOURCES["a"]}})
    s.host_asks(1, "tools/call", name="git__log")
    s.server_answers("git", "tools/call", {"x": "y" * 20_000})
    assert s.host_hears(1)["result"]["isError"]
    assert "git answered with 200" in s.host_hears(1).text
    s.host_asks(2, "resources/read", uri="mem://a")
    s.server_answers("git", "resources/read", {"x": "y" * 20_000})
    assert s.host_hears(2)["error"]["code"] == -32603


@pytest.mark.requirement("null-id")
def test_an_answer_to_nothing_twice_or_with_a_null_id_is_dropped():
    s = Script(["git", "hub"])
    s.host_asks(1, "tools/call", name="git__log")
    number = s.server_hears("git", "tools/call")["id"]
    s.server_sends("hub", id=number, result={"stolen": True})
    s.server_sends("git", id=number, result={"mine": True})
    s.server_sends("git", id=number, result={"again": True})
    s.server_sends("git", id=None, error={"code": 1, "message": "m"})
    s.server_sends("git", id="zz", result={})
    assert s.host_hears(1)["result"] == {"mine": True}
    s.host_sends(id=77, result={})
    s.host_sends(id=None, error={"code": 1, "message": "m"})
    assert s.answered.count(1) == 1


def test_a_response_with_neither_result_nor_error_ends_its_call():
    """JavaScript writes `result: undefined` so."""
    s = Script(["git"])
    s.host_asks(1, "tools/call", name="git__log")
    s.server_sends("git", id=s.server_hears("git", "tools/call")["id"])
    assert "a result that is no object" in s.host_hears(1).text


def test_no_ending_is_longer_than_hosts_take():
    tables = {"git": ServerOptions(command="git"), "bad": LEGACY}
    s = Script(tables, silent=("bad",), options=MuxOptions(host_message_mb=0.02))
    s.host_asks(1, "tools/call", name="bad__x")
    error = {"code": 1, "message": "m" * 100_000}
    s.server_sends("bad", id=s.server_hears("bad", "initialize")["id"], error=error)
    s.host_asks(2, "resources/read", uri="x://1")
    s.server_answers("git", "resources/read", error=error)
    s.host_asks(3, "tools/call", name="z" * 100_000)
    s.host_asks(4, "m" * 100_000)
    for id in (1, 2, 3, 4):
        assert s.host_hears(id).is_error
        assert len(s.host_hears(id).raw) < 2000


# ── servers that do not read ──


def test_a_server_that_does_not_read_is_refused_new_calls_until_it_does():
    s = Script(["git", "hub"])
    s.feed(mcpmux.ServerClogged("git", s.runs["git"], True))
    assert "git does not read its input" in s.asks(1, "tools/call", name="git__log").text
    s.host_asks(2, "tools/call", name="hub__log")
    assert s.server_heard("hub", "tools/call")
    s.feed(mcpmux.ServerClogged("git", s.runs["git"], False))
    s.host_asks(3, "tools/call", name="git__log")
    assert s.server_heard("git", "tools/call")


def test_a_call_that_waits_for_a_server_that_does_not_even_read_when_it_is_ready_is_refused():
    s = Script(["git"])
    s.server_dies("git")
    s.advance(1)
    s.host_asks(1, "tools/call", name="git__log")
    s.feed(mcpmux.ServerClogged("git", s.runs["git"], True))
    s.advance(0.2)
    assert "does not read" in s.host_hears(1).text


def test_a_server_that_does_not_read_is_told_nothing_more():
    s = Script(["git"])
    s.feed(mcpmux.ServerClogged("git", s.runs["git"], True))
    before = len(s.to_server["git"])
    for number in range(10):
        s.server_sends("git", id=number, method="ping")
    assert len(s.to_server["git"]) == before


@pytest.mark.parametrize(("offered", "owner"), [({"tools": {}, "resources": {}}, "git"), ({"tools": {}}, None)])
def test_a_link_is_remembered_of_a_server_that_has_resources_to_read(offered: dict[str, Any], owner: str | None):
    """Our choice: of another it leads nowhere, and its results need not be searched."""
    s = Script(["git"], server_capabilities=offered)
    s.tools()
    params = '{"name":"git__log","arguments":{}}'
    s.feed(mcpmux.HostLines([f'{{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{params}}}'.encode()]))
    number = s.server_hears("git", "tools/call")["id"]
    content = '{"type":"resource_link","uri":"x://a","name":"a"}'
    line = f'{{"jsonrpc":"2.0","id":{number},"result":{{"content":[{content}]}}}}'.encode()
    s.feed(mcpmux.ServerLines("git", s.runs["git"], [line]))
    assert s.host_hears(9)["result"]["content"][0]["uri"] == "x://a"
    assert s.core.calls.links.owner("x://a") == owner
