"""The core between a host and servers that the test plays; no process, no clock.

https://modelcontextprotocol.io/specification/2025-11-25/basic
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from script import SAMPLER, TOOL, Script

import mcpmux
from mcpmux import MuxOptions, SamplingLimits, SamplingOptions, ServerOptions, State, ToolOverride


def tools(*names: str) -> dict[str, Any]:
    return {"tools/list": [{**TOOL, "name": name} for name in names]}


def server(**table: Any) -> ServerOptions:
    return ServerOptions(command="x", **table)


LEGACY = server(protocol="legacy")


# ── the handshake with the host ──


def test_initialize_is_answered_before_any_server_is():
    """Our choice: hosts give it 1 to 60 s, and a cold server may take 40."""
    s = Script(["git"], silent=("git",), begin=False)
    s.host_asks(
        0, "initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo={"name": "h", "version": "1"}
    )
    answer = s.host_hears(0)["result"]
    assert answer["protocolVersion"] == "2025-06-18"
    assert answer["serverInfo"] == {"name": "mcpmux", "title": "mcpmux", "version": mcpmux.__version__}
    assert s.started == ["git"]


def test_an_unknown_revision_is_answered_with_the_latest_legacy_one():
    """2025-11-25, basic/lifecycle#version-negotiation."""
    s = Script(begin=False)
    assert s.initialize(protocolVersion="2031-01-01")["result"]["protocolVersion"] == "2025-11-25"


@pytest.mark.requirement("before-initialize")
@pytest.mark.parametrize("method", ["tools/list", "tools/call", "vendor/x", "logging/setLevel"])
def test_nothing_is_served_before_initialize(method: str):
    """Our choice of words; 2025-11-25, basic/lifecycle: initialization MUST be the first interaction."""
    s = Script(begin=False)
    answer = s.asks(1, method)
    assert answer["error"]["code"] == -32602
    assert "initialize" in answer.text


@pytest.mark.requirement("empty-results")
def test_a_ping_is_answered_even_before_initialize():
    """2025-11-25, basic/utilities/ping; the result is exactly {}."""
    s = Script(begin=False)
    assert s.asks(1, "ping").raw == b'{"jsonrpc":"2.0","id":1,"result":{}}'


@pytest.mark.requirement("era-by-request")
def test_a_probe_for_the_modern_era_is_answered_at_once_and_initialize_still_works():
    """VS Code and Claude Code ask server/discover first, then initialize on the same pipe. A probe starts nothing."""
    s = Script(["git"], begin=False)
    assert s.asks_modern(0, "server/discover")["result"]["supportedVersions"] == ["2026-07-28"]
    assert s.started == []
    s.initialize()
    assert s.tools() == ["git__log"]


def test_a_second_initialize_is_answered_and_starts_nothing_twice():
    s = Script(["git"])
    info = {"name": "h", "version": "1"}
    answer = s.asks(9, "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo=info)
    assert answer["result"]["instructions"] == "# git\n\nuse git well"
    assert s.started == ["git"]


def test_initialize_without_its_params_is_refused():
    s = Script(begin=False)
    assert s.asks(1, "initialize")["error"]["code"] == -32602


# ── the handshake with a server ──


@pytest.mark.requirement("greeting-revision")
def test_a_server_is_greeted_in_the_hosts_name_revision_and_capabilities():
    s = Script(["git"], capabilities={"roots": {"listChanged": True}, "x": 1.0}, revision="2025-03-26")
    greeting = s.server_hears("git", "initialize")
    assert b'{"protocolVersion":"2025-03-26","capabilities":{"roots":{"listChanged": true},"x":1.0}' in greeting.raw
    assert greeting["params"]["clientInfo"] == {"name": "script", "version": "1"}
    methods = [message["method"] for message in s.to_server["git"]]
    assert methods[:3] == ["initialize", "notifications/initialized", "tools/list"]


@pytest.mark.requirement("after-initialized")
def test_lists_and_calls_wait_for_what_a_server_asks_after_initialized():
    """server-filesystem refuses every path until its roots/list is answered; server-everything registers tools then."""
    s = Script(["fs"], capabilities={"roots": {}}, begin=False)
    s.host_asks("init", "initialize", protocolVersion="2025-11-25", capabilities={"roots": {}})
    s.host_sends(method="notifications/initialized")
    s.host_asks(1, "tools/call", name="fs__log")
    s.server_sends("fs", id="r", method="roots/list")
    question = s.host_told("roots/list")[0]
    s.advance(5)
    assert s.server_heard("fs", "tools/list") == []
    s.host_sends(id=question["id"], result={"roots": []})
    s.advance(0.05)
    assert s.server_heard("fs", "tools/list") == []
    s.advance(0.06)
    assert s.server_heard("fs", "tools/list")
    assert s.answer_to_server("fs", "r")["result"] == {"roots": []}
    assert s.server_hears("fs", "tools/call")["params"] == {"name": "log"}


@pytest.mark.requirement("after-initialized")
def test_a_server_that_asks_nothing_is_used_after_a_tenth_of_a_second():
    s = Script(["git"], begin=False)
    s.host_asks("init", "initialize", protocolVersion="2025-11-25", capabilities={})
    s.advance(0.09)
    assert s.server_heard("git", "tools/list") == []
    s.advance(0.02)
    assert s.server_heard("git", "tools/list")


@pytest.mark.requirement("after-initialized")
def test_a_host_that_never_answers_what_a_server_asks_first_does_not_keep_its_tools_away_for_ever():
    s = Script(["fs"], capabilities={"roots": {}}, begin=False)
    s.host_asks("init", "initialize", protocolVersion="2025-11-25", capabilities={"roots": {}})
    s.host_sends(method="notifications/initialized")
    s.server_sends("fs", id="r", method="roots/list")
    s.advance(31)
    assert s.tools() == ["fs__log"]


@pytest.mark.requirement("questions-while-listing")
def test_a_servers_question_while_it_is_being_listed_is_answered_from_what_we_have():
    """It may wait for that before it answers us, and the host for us: nobody would move."""
    offers = {"fs": {"tools/list": ...}, "git": tools("log")}
    s = Script({"fs": server(), "git": server()}, capabilities={"roots": {}, "sampling": {}}, offers=offers)
    assert s.server_heard("fs", "tools/list")
    s.server_sends("fs", id="early", method="roots/list")
    assert s.answer_to_server("fs", "early").is_error
    s.server_sends("git", id="r", method="roots/list")
    s.host_sends(id=s.host_told("roots/list")[0]["id"], result={"roots": [{"uri": "file:///x"}]})
    s.server_sends("fs", id="later", method="roots/list")
    assert s.answer_to_server("fs", "later")["result"] == {"roots": [{"uri": "file:///x"}]}
    s.server_sends("fs", id="model", method="sampling/createMessage", params={"messages": [], "maxTokens": 1})
    assert s.answer_to_server("fs", "model").is_error
    assert len(s.host_told("roots/list")) == 1


def test_a_question_in_a_call_reaches_the_host_also_while_the_list_is_read_anew():
    """Our choice: as after a restart. The host waits for the call, and for no list."""
    s = Script(["git"], capabilities={"roots": {}})
    s.tools()
    s.offers["git"] = {"tools/list": ...}
    s.server_sends("git", method="notifications/tools/list_changed")
    s.advance(0.1)
    s.host_asks(1, "tools/call", name="git__log", arguments={})
    s.server_sends("git", id="r", method="roots/list")
    s.host_sends(id=s.host_told("roots/list")[0]["id"], result={"roots": []})
    assert s.answer_to_server("git", "r")["result"] == {"roots": []}


@pytest.mark.requirement("questions-while-listing")
def test_while_a_completion_is_open_the_table_answers_for_roots():
    s = Script(
        {"git": server(roots=["file:///t"])},
        capabilities={"roots": {}},
        offers={"git": {"prompts/list": [{"name": "p"}], "tools/list": []}},
    )
    s.host_asks(
        1, "completion/complete", ref={"type": "ref/prompt", "name": "git__p"}, argument={"name": "a", "value": ""}
    )
    s.server_sends("git", id="r", method="roots/list")
    assert s.answer_to_server("git", "r")["result"] == {"roots": [{"uri": "file:///t"}]}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"error": {"code": -32603, "message": "no"}}, "refused `initialize`: no"),
        ({"result": {"protocolVersion": "2031-01-01"}}, "'2031-01-01'"),
        ({"result": {}}, "None"),
        ({"result": []}, "a result that is no object"),
    ],
)
def test_a_server_whose_handshake_fails_is_stopped_and_says_why(answer: dict[str, Any], words: str):
    s = Script({"git": ServerOptions(command="git"), "bad": LEGACY}, silent=("bad",))
    s.host_asks(1, "tools/call", name="bad__x")
    s.server_sends("bad", id=s.server_hears("bad", "initialize")["id"], **answer)
    assert s.stopped == ["bad"]
    assert words in s.host_hears(1).text
    assert s.host_hears(1).is_error
    assert s.tools() == ["git__log"]


# ── lists ──


def test_lists_wait_for_all_servers_and_are_one_page():
    """Claude Desktop and Codex read the first page only."""
    s = Script(["a", "b"], silent=("b",))
    s.host_asks(1, "tools/list")
    assert 1 not in s.answered
    s.silent.clear()
    number = s.server_hears("b", "initialize")["id"]
    s.server_sends("b", id=number, result={"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}})
    s.advance(0.2)
    result = s.host_hears(1)["result"]
    assert [tool["name"] for tool in result["tools"]] == ["a__log", "b__log"]
    assert result.keys() == {"tools"}


@pytest.mark.parametrize("method", list(mcpmux.LISTS))
def test_each_list_is_merged(method: str):
    kind = mcpmux.LISTS[method]
    entry = {**TOOL, "uri": "mem://1", "uriTemplate": "mem://{x}"}
    other = {**entry, "uri": "mem://2", "uriTemplate": "mem2://{x}"}
    s = Script(["a", "b"], offers={"a": {method: [entry]}, "b": {method: [other]}})
    listed = s.asks(1, method)["result"][kind.key]
    assert len(listed) == 2
    assert [one["name"] for one in listed] == (["a__log", "b__log"] if kind.identity == "name" else ["log", "log"])


def test_a_list_of_several_pages_is_read_to_its_end():
    s = Script(["git"], offers={"git": {"tools/list": ...}})
    for cursor, name in (("", "one"), ("x", "two"), (None, "three")):
        s.server_answers("git", "tools/list", {"tools": [{**TOOL, "name": name}], "nextCursor": cursor})
    assert s.tools() == ["git__one", "git__two", "git__three"]
    assert [m.get("params") for m in s.server_heard("git", "tools/list")] == [None, {"cursor": ""}, {"cursor": "x"}]


@pytest.mark.requirement("cursors")
def test_a_cursor_that_does_not_advance_ends_the_list():
    s = Script(["git"], offers={"git": {"tools/list": ...}})
    for _ in range(2):
        s.server_answers("git", "tools/list", {"tools": [TOOL], "nextCursor": "again"})
    assert len(s.server_heard("git", "tools/list")) == 2
    assert s.tools() == ["git__log"]


@pytest.mark.requirement("host-cursor")
def test_a_cursor_that_we_never_gave_is_refused():
    """2025-11-25, server/utilities/pagination: invalid cursors SHOULD result in -32602."""
    s = Script(["git"])
    assert s.asks(1, "tools/list", cursor="x")["error"]["code"] == -32602
    assert s.asks(2, "tools/list", cursor=None)["result"]["tools"]


@pytest.mark.parametrize("wrong", [{"tools": 7}, {}, {"tools": None}, {"tools": {"a": 1}}])
def test_a_list_of_the_wrong_type_is_an_empty_one_and_logged(wrong: dict[str, Any]):
    s = Script(["git", "ok"], offers={"git": {"tools/list": ...}})
    s.server_answers("git", "tools/list", wrong)
    assert s.tools() == ["ok__log"]
    assert any("no list of tools" in line for line in s.logged)


@pytest.mark.requirement("strict-entries")
def test_one_bad_entry_costs_only_itself():
    s = Script(
        ["git"], offers={"git": {"tools/list": [TOOL, {"name": 7}, 7, {**TOOL, "name": "b", "description": None}]}}
    )
    assert s.tools() == ["git__log", "git__b"]
    assert sum("left out" in line for line in s.logged) == 2


def test_a_list_that_a_server_fails_to_give_is_empty_and_the_others_are_kept():
    s = Script(["git"], offers={"git": {"tools/list": [TOOL], "prompts/list": {"code": -32603, "message": "boom"}}})
    assert s.tools() == ["git__log"]
    assert s.asks(1, "prompts/list")["result"] == {"prompts": []}
    assert any("prompts/list failed: boom" in line for line in s.logged)


def test_only_lists_that_a_server_declared_are_read():
    s = Script(["git"], server_capabilities={"tools": {}})
    assert s.server_heard("git", "prompts/list") == []
    assert s.tools() == ["git__log"]


def test_a_list_that_never_comes_ends_with_the_startup_timeout():
    s = Script(
        {"git": server(startup_timeout_sec=5), "ok": server()}, offers={"git": {"tools/list": ...}, "ok": tools("x")}
    )
    s.host_asks(1, "tools/list")
    s.advance(6)
    assert [tool["name"] for tool in s.host_hears(1)["result"]["tools"]] == ["ok__x"]


def test_a_burst_of_changes_reaches_the_host_once_and_only_if_the_list_changed():
    """Our choice: read again after 50 ms of quiet."""
    s = Script(["git"])
    assert s.tools() == ["git__log"]
    for _ in range(4):
        s.server_sends("git", method="notifications/tools/list_changed")
        s.advance(0.01)
    s.advance(1)
    assert len(s.server_heard("git", "tools/list")) == 2
    assert s.host_told("notifications/tools/list_changed") == []
    s.offers["git"] = tools("log", "new")
    for _ in range(4):
        s.server_sends("git", method="notifications/tools/list_changed")
    s.advance(1)
    assert len(s.host_told("notifications/tools/list_changed")) == 1
    assert s.tools() == ["git__log", "git__new"]


def test_a_server_that_never_stops_announcing_changes_is_still_read():
    s = Script(["git"])
    for _ in range(110):
        s.server_sends("git", method="notifications/tools/list_changed")
        s.advance(0.01)
    assert len(s.server_heard("git", "tools/list")) == 2


def test_a_change_announced_during_the_first_listing_is_read_before_the_host_is_answered():
    s = Script(["git"], offers={"git": {"tools/list": ...}})
    s.host_asks(1, "tools/list")
    s.server_sends("git", method="notifications/tools/list_changed")
    s.server_answers("git", "tools/list", {"tools": []})
    assert 1 not in s.answered
    s.advance(0.1)
    s.server_answers("git", "tools/list", {"tools": [TOOL]})
    assert [tool["name"] for tool in s.host_hears(1)["result"]["tools"]] == ["git__log"]
    assert s.host_told("notifications/tools/list_changed") == []


def test_a_change_of_a_list_that_the_host_never_read_is_not_announced():
    s = Script(["git"])
    s.offers["git"] = tools("new")
    s.server_sends("git", method="notifications/tools/list_changed")
    s.advance(1)
    assert s.host_told("notifications/tools/list_changed") == []
    assert s.tools() == ["git__new"]


def test_a_change_of_resources_is_read_with_its_templates_and_told_once():
    s = Script(["git"], offers={"git": {"resources/list": [{"uri": "a:1", "name": "x"}]}})
    s.asks(1, "resources/list")
    s.asks(2, "resources/templates/list")
    template = {"uriTemplate": "b:{x}", "name": "x"}
    s.offers["git"] = {"resources/list": [], "resources/templates/list": [template]}
    s.server_sends("git", method="notifications/resources/list_changed")
    s.advance(1)
    assert len(s.host_told("notifications/resources/list_changed")) == 1
    assert s.asks(3, "resources/templates/list")["result"]["resourceTemplates"] == [template]


# ── calls ──


def test_a_call_goes_to_the_tools_owner_under_the_name_it_knows_and_its_answer_comes_back():
    s = Script(["git", "hub"])
    s.host_asks(7, "tools/call", name="hub__log", arguments={"n": 1})
    assert s.server_hears("hub", "tools/call")["params"] == {"name": "log", "arguments": {"n": 1}}
    assert s.server_heard("git", "tools/call") == []
    s.server_answers("hub", "tools/call", {"content": []})
    assert s.host_hears(7)["result"] == {"content": []}
    assert len(s.core.in_flight) == 0


PAYLOAD = b'{"z":1.0,"a":1e2,"u":"\\u00e9\\/","_x":[ 1 , 2 ],"n":null,"big":123456789012345678901234567890}'


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


@pytest.mark.requirement("request-id")
@pytest.mark.parametrize("id", [b"null", b"true", b"{}", b"[1]"])
def test_a_request_with_an_id_of_another_type_is_refused_without_one(id: bytes):
    """2025-11-25, basic/index#requests: the id MUST NOT be null."""
    s = Script()
    s.host_sends(b'{"jsonrpc":"2.0","id":%b,"method":"ping"}' % id)
    assert s.to_host[-1]["error"]["code"] == -32600
    assert "id" not in s.to_host[-1]


@pytest.mark.requirement("request-id")
def test_an_id_that_is_still_open_is_refused():
    """2025-11-25, basic/index#requests: an id MUST NOT have been used before."""
    s = Script(["git"])
    s.host_asks(1, "tools/call", name="git__log")
    s.host_asks(1, "ping")
    assert s.host_hears(1)["error"]["code"] == -32600
    s.server_answers("git", "tools/call")
    assert s.answered.count(1) == 2


@pytest.mark.requirement("unknown-members")
def test_unknown_top_level_fields_are_not_passed_on():
    """TypeScript 1.x refuses a message that has any."""
    s = Script(["git"])
    s.host_asks(1, "tools/call", name="git__log")
    s.server_sends("git", id=s.server_hears("git", "tools/call")["id"], result={}, extra=1)
    assert s.host_hears(1).raw == b'{"jsonrpc":"2.0","id":1,"result":{}}'


@pytest.mark.requirement("repeated-key")
def test_a_second_name_does_not_get_past_the_filters():
    s = Script({"git": server(disabled_tools=["drop"])}, offers={"git": tools("log", "drop")})
    s.host_sends(b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"git__log","na\\u006de":"drop"}}')
    assert s.host_hears(1)["error"]["code"] == -32602
    assert s.server_heard("git", "tools/call") == []
    s.host_sends(b'{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"drop","name":"git__log"}}')
    assert s.server_hears("git", "tools/call").raw.endswith(b'"params":{"name":"log"}}')


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"name": "git__lgo"}, "Unknown tool: git__lgo (did you mean git__log?)"),
        ({"name": "zzz"}, "Unknown tool: zzz"),
        ({"name": "lo"}, "Unknown tool: lo"),
        ({"name": 7}, "params.name must be a string"),
        ({"x": 1}, "params.name must be a string"),
    ],
)
def test_a_call_to_nothing_is_refused_with_the_nearest_name(params: dict[str, Any], words: str):
    """2025-11-25, server/tools#error-handling: unknown tools are -32602."""
    s = Script(["git"])
    answer = s.asks(1, "tools/call", **params)
    assert answer["error"]["code"] == -32602
    assert answer.text.startswith(words)


def test_params_of_null_are_none():
    s = Script(["git"])
    s.host_sends(b'{"jsonrpc":"2.0","id":1,"method":"tools/list","params":null}')
    assert s.host_hears(1)["result"]


@pytest.mark.parametrize("params", [b"7", b"[]", b'"x"'])
def test_params_that_are_no_object_are_refused(params: bytes):
    s = Script(["git"])
    s.host_sends(b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":%b}' % params)
    assert s.host_hears(1)["error"]["code"] == -32602


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


def test_a_prompt_goes_to_its_owner():
    s = Script(["a", "b"], offers={"b": {"prompts/list": [{"name": "greet"}]}})
    s.host_asks(1, "prompts/get", name="b__greet", arguments={"who": "x"})
    assert s.server_hears("b", "prompts/get")["params"] == {"name": "greet", "arguments": {"who": "x"}}
    assert s.asks(2, "prompts/get", name="b__gret").text == "Unknown prompt: b__gret (did you mean b__greet?)"


@pytest.mark.parametrize(
    ("ref", "owner", "sent"),
    [
        ({"type": "ref/prompt", "name": "b__greet"}, "b", {"type": "ref/prompt", "name": "greet"}),
        ({"type": "ref/resource", "uri": "mem://{x}"}, "a", {"type": "ref/resource", "uri": "mem://{x}"}),
        ({"type": "ref/resource", "uri": "mem://1"}, "a", {"type": "ref/resource", "uri": "mem://1"}),
    ],
)
def test_a_completion_goes_to_the_owner_of_its_prompt_or_template(ref: Any, owner: str, sent: Any):
    template = {"uriTemplate": "mem://{x}", "name": "t"}
    s = Script(
        ["a", "b"],
        offers={"a": {"resources/templates/list": [template]}, "b": {"prompts/list": [{"name": "greet"}]}},
    )
    s.host_asks(1, "completion/complete", ref=ref, argument={"name": "x", "value": "1"})
    assert s.server_hears(owner, "completion/complete")["params"] == {
        "ref": sent,
        "argument": {"name": "x", "value": "1"},
    }


def test_a_completion_at_a_server_without_completions_is_empty():
    s = Script(["a"], server_capabilities={"prompts": {}}, offers={"a": {"prompts/list": [{"name": "p"}]}})
    answer = s.asks(1, "completion/complete", ref={"type": "ref/prompt", "name": "a__p"}, argument={})
    assert answer["result"] == {"completion": {"values": []}}


@pytest.mark.parametrize(
    "ref", [None, 7, {}, {"type": "ref/resource", "uri": "no://x"}, {"type": "ref/prompt", "name": "z"}]
)
def test_a_completion_for_nothing_is_refused(ref: Any):
    s = Script(["a"])
    assert s.asks(1, "completion/complete", ref=ref)["error"]["code"] == -32602


# ── resources ──

RESOURCES = {
    "a": {"resources/list": [{"uri": "mem://a", "name": "a"}]},
    "b": {"resources/list": [], "resources/templates/list": [{"uriTemplate": "mem://t/{x}", "name": "t"}]},
}


@pytest.mark.parametrize(("uri", "owner"), [("mem://a", "a"), ("mem://t/1", "b")])
def test_a_resource_is_read_at_the_owner_of_its_uri_or_template(uri: str, owner: str):
    s = Script(["a", "b"], offers=RESOURCES)
    s.host_asks(1, "resources/read", uri=uri)
    assert s.server_hears(owner, "resources/read")["params"] == {"uri": uri}
    s.server_answers(owner, "resources/read", {"contents": []})
    assert s.host_hears(1)["result"] == {"contents": []}


def test_a_uri_that_nobody_listed_is_asked_of_each_server_in_turn():
    """Our choice: resource links in results need not be listed. Five seconds each."""
    s = Script(["a", "b", "c"], offers=RESOURCES | {"c": RESOURCES["b"]})
    s.host_asks(1, "resources/read", uri="mem://elsewhere")
    s.server_answers("a", "resources/read", error={"code": -32002, "message": "not mine"})
    s.advance(6)
    assert s.server_hears("b", "notifications/cancelled")
    s.server_answers("c", "resources/read", {"contents": [1]})
    assert s.host_hears(1)["result"] == {"contents": [1]}


def test_a_uri_that_no_server_knows_gets_the_last_ones_error():
    s = Script(["a", "b"], offers=RESOURCES)
    s.host_asks(1, "resources/read", uri="mem://elsewhere")
    for name in "ab":
        s.server_answers(name, "resources/read", error={"code": -32002, "message": f"not {name}'s"})
    assert s.host_hears(1)["error"] == {"code": -32002, "message": "not b's"}
    assert len(s.core.in_flight) == 0


def test_a_uri_with_no_server_to_ask_is_not_found():
    """2025-11-25, server/resources#error-handling: -32002."""
    s = Script()
    assert s.asks(1, "resources/read", uri="x://1")["error"] == {
        "code": -32002,
        "message": "Resource not found: no server offers x://1",
        "data": {"uri": "x://1"},
    }


def test_cancelling_a_search_for_a_uri_ends_it():
    s = Script(["a", "b"], offers=RESOURCES)
    s.host_asks(1, "resources/read", uri="mem://elsewhere")
    s.host_sends(method="notifications/cancelled", params={"requestId": 1})
    s.server_answers("a", "resources/read", error={"code": -32002, "message": "no"})
    assert s.server_heard("b", "resources/read") == []
    assert 1 not in s.answered


@pytest.mark.requirement("resource-updates")
def test_updates_reach_the_host_only_from_servers_that_it_subscribed_at():
    """2025-11-25, server/resources#subscriptions; of a sub-resource the subscribers of its server hear too."""
    s = Script(["a", "b"], offers=RESOURCES)
    updated = {"method": "notifications/resources/updated", "params": {"uri": "mem://a"}}
    s.server_sends("a", **updated)
    assert s.host_told("notifications/resources/updated") == []
    assert s.asks(1, "resources/subscribe", uri="mem://a")["result"] == {}
    s.server_sends("a", **updated)
    s.server_sends("a", method=updated["method"], params={"uri": "mem://a/part"})
    s.server_sends("b", **updated)
    assert len(s.host_told("notifications/resources/updated")) == 2
    s.asks(2, "resources/unsubscribe", uri="mem://a")
    s.server_sends("a", **updated)
    assert len(s.host_told("notifications/resources/updated")) == 2


def test_subscriptions_are_made_again_after_a_restart():
    s = Script(["a"], offers=RESOURCES)
    s.asks(1, "resources/subscribe", uri="mem://a")
    s.server_dies("a")
    s.host_asks(2, "resources/read", uri="mem://a")
    s.advance(1)
    assert len(s.server_heard("a", "resources/subscribe")) == 2


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


def test_a_host_that_never_answers_a_question_ends_it_with_an_error():
    s = Script(["git"], capabilities={"sampling": {}}, options=MuxOptions(input_timeout_sec=60))
    s.server_sends("git", id="q", method="sampling/createMessage", params={"messages": [], "maxTokens": 1})
    number = s.host_told("sampling/createMessage")[0]["id"]
    s.advance(61)
    assert s.answer_to_server("git", "q").is_error
    assert s.host_told("notifications/cancelled")[0]["params"]["requestId"] == number
    s.host_sends(id=number, result={})
    assert s.answer_to_server("git", "q").is_error
    assert len(s.core.in_flight) == 0


# ── questions of servers ──


@pytest.mark.requirement("question-answers")
@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("sampling/createMessage", {"messages": [], "maxTokens": 1, "x": 1.0}),
        ("elicitation/create", {"message": "?", "requestedSchema": {}}),
        ("roots/list", {}),
    ],
)
@pytest.mark.parametrize(
    "answer", [{"result": {"a": 1.0}}, {"error": {"code": -1, "message": "User said no", "data": 1.0}}]
)
def test_a_question_goes_to_the_host_and_its_answer_or_error_comes_back(method: str, params: Any, answer: Any):
    """2025-11-25, client/*. A swallowed error would leave the server waiting for ever."""
    s = Script(["git"], capabilities={"sampling": {}, "elicitation": {}, "roots": {}})
    s.server_sends("git", id="q", method=method, params=params)
    (question,) = s.host_told(method)
    s.host_sends(id=question["id"], **answer)
    assert {k: v for k, v in s.answer_to_server("git", "q").items() if k in ("result", "error")} == answer
    assert len(s.core.in_flight) == 0


def test_questions_of_several_servers_with_one_id_are_kept_apart():
    s = Script(["a", "b"], capabilities={"elicitation": {}})
    for name in "ab":
        s.server_sends(name, id=1, method="elicitation/create", params={"message": name, "requestedSchema": {}})
    for question in s.host_told("elicitation/create"):
        s.host_sends(id=question["id"], result={"content": question["params"]["message"]})
    assert s.answer_to_server("a", 1)["result"] == {"content": "[a] a"}
    assert s.answer_to_server("b", 1)["result"] == {"content": "[b] b"}


def test_a_question_before_the_host_has_initialized_waits_for_it():
    """2025-11-25, basic/lifecycle: no requests but pings before `initialized`."""
    s = Script(["git"], begin=False)
    s.host_asks(0, "initialize", protocolVersion="2025-11-25", capabilities={"roots": {}})
    s.server_sends("git", id="q", method="roots/list")
    assert s.host_told("roots/list") == []
    s.host_sends(method="notifications/initialized")
    assert len(s.host_told("roots/list")) == 1


def test_a_host_that_forgets_initialized_is_ready_when_it_asks():
    s = Script(["git"], begin=False)
    s.host_asks(0, "initialize", protocolVersion="2025-11-25", capabilities={"roots": {}})
    s.server_sends("git", id="q", method="roots/list")
    s.host_asks(1, "tools/list")
    assert len(s.host_told("roots/list")) == 1


def test_a_servers_ping_is_answered_here():
    s = Script(["git"])
    s.server_sends("git", id=0, method="ping")
    assert s.answer_to_server("git", 0).raw == b'{"jsonrpc":"2.0","id":0,"result":{}}'


@pytest.mark.requirement("unknown-methods")
def test_a_servers_unknown_request_is_refused():
    s = Script(["git"])
    s.server_sends("git", id="q", method="vendor/ask")
    assert s.answer_to_server("git", "q")["error"]["code"] == -32601


def test_a_question_that_its_server_withdraws_is_withdrawn_from_the_host():
    s = Script(["git"], capabilities={"elicitation": {}})
    s.server_sends("git", id="q", method="elicitation/create", params={"message": "?", "requestedSchema": {}})
    number = s.host_told("elicitation/create")[0]["id"]
    s.server_sends("git", method="notifications/cancelled", params={"requestId": "q", "reason": "r"})
    assert s.host_told("notifications/cancelled")[0]["params"] == {"requestId": number, "reason": "r"}
    s.host_sends(id=number, result={"action": "accept"})
    assert [m for m in s.to_server["git"] if m.get("id") == "q"] == []


def test_questions_of_a_server_that_dies_are_withdrawn():
    s = Script(["git"], capabilities={"elicitation": {}})
    s.server_sends("git", id="q", method="elicitation/create", params={"message": "?", "requestedSchema": {}})
    number = s.host_told("elicitation/create")[0]["id"]
    s.server_dies("git")
    assert s.host_told("notifications/cancelled")[0]["params"]["requestId"] == number
    s.host_sends(id=number, result={})
    assert len(s.core.in_flight) == 0


def test_progress_of_the_host_on_a_question_comes_back_under_the_servers_token():
    s = Script(["git"], capabilities={"sampling": {}})
    params = {"messages": [], "maxTokens": 1, "_meta": {"progressToken": "mine"}}
    s.server_sends("git", id="q", method="sampling/createMessage", params=params)
    question = s.host_told("sampling/createMessage")[0]
    assert question["params"]["_meta"]["progressToken"] == question["id"]
    s.host_sends(method="notifications/progress", params={"progressToken": question["id"], "progress": 1})
    assert s.server_hears("git", "notifications/progress")["params"] == {"progressToken": "mine", "progress": 1}


def test_a_change_of_the_hosts_roots_is_told_to_every_server():
    s = Script(["a", "b"], capabilities={"roots": {"listChanged": True}})
    s.host_sends(method="notifications/roots/list_changed")
    assert len(s.server_heard("a", "notifications/roots/list_changed")) == 1
    assert len(s.server_heard("b", "notifications/roots/list_changed")) == 1


# ── sampling by a model of one's own ──

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": {"type": "text", "text": "hi"}}], "maxTokens": 9}
WITH_TOOLS: dict[str, Any] = ASKED | {"tools": [{"name": "t", "inputSchema": {"type": "object"}}]}
SPOKEN: dict[str, Any] = {"role": "assistant", "content": {"type": "text", "text": "ho"}, "model": "m"}


def sampler(timeout_sec: float = 120, **limits: Any) -> SamplingOptions:
    return SamplingOptions(timeout_sec=timeout_sec, limits=SamplingLimits(**limits))


def samples(s: Script, server: str, id: Any, params: dict[str, Any] | None = None) -> None:
    s.server_sends(server, id=id, method="sampling/createMessage", params=ASKED if params is None else params)


def nothing_is_open(s: Script) -> bool:
    return len(s.core.in_flight) == 0


def test_a_host_without_sampling_has_servers_that_are_told_of_the_models():
    """2025-11-25, client/sampling#capabilities."""
    s = Script({"a": server(), "b": server(sampling="host"), "c": server(sampling="off")}, sampling=sampler())
    told = {name: s.server_hears(name, "initialize")["params"]["capabilities"] for name in "abc"}
    assert told == {"a": {"sampling": {"tools": {}}}, "b": {}, "c": {}}


@pytest.mark.requirement("sampling-comes-back")
@pytest.mark.parametrize(
    "answer", [{"result": SPOKEN}, {"error": {"code": -1, "message": "refused", "data": {"x": 1}}}]
)
def test_the_models_answer_or_error_goes_to_the_server_that_asked(answer: dict[str, Any]):
    """Our choice: a host that cannot sample never hears of it. Also outside any call of the host's."""
    s = Script(["git", "hub"], sampling=sampler())
    before = len(s.to_host)
    samples(s, "git", "q", ASKED | {"x": 1.0})
    (asked,) = s.model_asked()
    told = {"models": ["m"], "usd": 0, "allowed": "person", "seconds": 120}
    assert asked["params"] == {"server": "git", "params": ASKED | {"x": 1.0}} | told
    s.model_sends(id=asked["id"], **answer)
    assert {k: v for k, v in s.answer_to_server("git", "q").items() if k in ("result", "error")} == answer
    assert [message for message in s.to_server["hub"] if "method" not in message] == []
    assert len(s.to_host) == before
    assert nothing_is_open(s)


def test_params_for_the_model_and_its_results_pass_byte_for_byte():
    """Our promise: unknown fields, _meta, key order and number spelling."""
    s = Script(["git"], sampling=sampler())
    s.server_sends("git", b'{"jsonrpc":"2.0","id":"q","method":"sampling/createMessage","params":%b}' % PAYLOAD)
    (asked,) = s.model_asked()
    assert b'"params":{"params":%b,"models":["m"],' % PAYLOAD in asked.raw
    s.model_sends(b'{"jsonrpc":"2.0","id":%d,"result":%b}' % (asked["id"], PAYLOAD))
    assert s.answer_to_server("git", "q").raw == b'{"jsonrpc":"2.0","id":"q","result":%b}' % PAYLOAD


@pytest.mark.requirement("sampling-comes-back")
@pytest.mark.parametrize("id", [b"0", b"7", b'"7"', b'""', b"-3", b"1.0"])
def test_the_models_answer_comes_under_the_servers_own_id(id: bytes):
    """2025-11-25, basic#responses."""
    s = Script(["git"], sampling=sampler())
    s.server_sends("git", b'{"jsonrpc":"2.0","id":%b,"method":"sampling/createMessage","params":{}}' % id)
    s.model_answers(SPOKEN)
    assert s.to_server["git"][-1].raw.startswith(b'{"jsonrpc":"2.0","id":%b,"result":' % id)


@pytest.mark.requirement("sampling-comes-back")
def test_questions_of_many_servers_to_the_model_with_one_id_are_kept_apart():
    names = [f"s{number}" for number in range(8)]
    s = Script(names, sampling=sampler())
    for name in names:
        samples(s, name, 1)
    for asked in reversed(s.model_asked()):
        s.model_sends(id=asked["id"], result={"for": asked["params"]["server"]})
    for name in names:
        assert s.answer_to_server(name, 1)["result"] == {"for": name}
    assert nothing_is_open(s)


def test_where_the_host_samples_without_tools_only_questions_with_tools_go_to_the_model():
    """Our choice: the host is preferred for what it declared. Neither can answer what the other was asked."""
    s = Script(["git"], capabilities={"sampling": {}}, sampling=sampler())
    samples(s, "git", "plain")
    samples(s, "git", "tools", WITH_TOOLS)
    (for_host,), (for_model,) = s.host_told("sampling/createMessage"), s.model_asked()
    assert for_host["params"] == ASKED
    assert for_model["params"]["params"] == WITH_TOOLS
    s.host_sends(id=for_model["id"], result={"from": "host"})
    s.model_sends(id=for_host["id"], result={"from": "model"})
    assert len(s.core.in_flight) == 2
    s.host_sends(id=for_host["id"], result={"from": "host"})
    s.model_sends(id=for_model["id"], result={"from": "model"})
    assert s.answer_to_server("git", "plain")["result"] == {"from": "host"}
    assert s.answer_to_server("git", "tools")["result"] == {"from": "model"}
    assert nothing_is_open(s)


@pytest.mark.parametrize(
    ("table", "params", "code", "words"),
    [
        ({"sampling": "off"}, ASKED, -32601, 'its table says sampling = "off"'),
        ({"sampling": "host"}, ASKED, -32601, "the host declared none"),
        ({}, [], -32602, "params must be an object"),
    ],
)
def test_a_refused_question_reaches_no_model(table: dict[str, Any], params: Any, code: int, words: str):
    s = Script({"git": server(**table)}, sampling=sampler())
    samples(s, "git", "q", params)
    assert s.answer_to_server("git", "q")["error"]["code"] == code
    assert words in s.answer_to_server("git", "q").text
    assert s.to_model == []


def test_a_question_without_params_reaches_the_sampler_which_says_what_is_missing():
    s = Script(["git"], sampling=sampler())
    s.server_sends("git", id="q", method="sampling/createMessage")
    assert s.to_model[0]["method"] == "prepare"
    assert s.to_model[0]["params"] == {"server": "git", "params": {}, "seconds": 120}


def test_an_id_that_the_model_has_not_answered_yet_is_refused():
    """2025-11-25, basic#requests: an id MUST NOT have been used before."""
    s = Script(["git"], sampling=sampler())
    samples(s, "git", "q")
    samples(s, "git", "q")
    assert s.answer_to_server("git", "q")["error"]["code"] == -32600
    assert len(s.model_asked()) == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"result": 7}, "the sampler sent a result that is no object"),
        ({"error": "no"}, "the sampler sent an error without a code and a message"),
        ({}, "the sampler sent a result that is no object"),
    ],
)
def test_an_answer_of_the_sampler_that_is_none_becomes_an_error(answer: dict[str, Any], words: str):
    s = Script(["git"], sampling=sampler())
    samples(s, "git", "q")
    s.model_sends(id=s.model_asked()[0]["id"], **answer)
    assert s.answer_to_server("git", "q").text == words
    assert nothing_is_open(s)


def test_an_answer_of_the_sampler_to_nothing_or_twice_is_dropped():
    s = Script(["git"], sampling=sampler())
    s.host_asks(1, "tools/call", name="git__log")
    samples(s, "git", "q")
    call = s.server_hears("git", "tools/call")["id"]
    for id in (999, call, None, "x", s.model_asked()[0]["id"], s.model_asked()[0]["id"]):
        s.model_sends(id=id, result=SPOKEN)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN
    assert 1 not in s.answered


@pytest.mark.parametrize("line", [b"nonsense", b"{}", b"[]", b'{"method":"log"}', b"\xff"])
def test_a_line_of_the_sampler_that_cannot_be_read_costs_only_itself(line: bytes):
    s = Script(["git"], sampling=sampler())
    samples(s, "git", "q")
    s.sampler_sends(line, b'{"jsonrpc":"2.0","id":%d,"result":{}}' % s.model_asked()[0]["id"])
    assert s.answer_to_server("git", "q")["result"] == {}


@pytest.mark.parametrize("level", ["debug", "warning"])
def test_what_the_sampler_logs_reaches_the_log_at_its_level(level: str):
    s = Script(["git"], sampling=sampler())
    samples(s, "git", "q")
    line = mcpmux.notification_line("log", mcpmux.encode({"level": level, "text": "git: sampled with m"}))
    event = mcpmux.ServerLines(SAMPLER, s.runs[SAMPLER], [line])
    assert s.core.handle(event, s.now) == [mcpmux.Log(level, "git: sampled with m")]


# ── its limits ──


@pytest.mark.requirement("sampling-limits")
def test_a_server_that_asks_the_model_too_often_in_a_minute_is_refused_and_told_for_how_long():
    """Our choice: `sampling.limits.requests_per_minute`, of each server by itself; the minute slides."""
    s = Script(["git", "hub"], sampling=sampler(timeout_sec=0.5, requests_per_minute=3, max_concurrency=9))
    for number in range(3):
        samples(s, "git", number)
        s.model_answers(SPOKEN)
        s.advance(10)
    samples(s, "git", "over")
    refusal = s.answer_to_server("git", "over")["error"]
    assert "git has made 3 requests in a minute; free again in " in refusal["message"]
    assert "(sampling.limits.requests_per_minute)" in refusal["message"]
    assert refusal["data"]["limit"] == "requests_per_minute"
    assert 30 <= refusal["data"]["retryAfterSeconds"] <= 31
    samples(s, "hub", "other")
    assert len(s.model_asked()) == 4
    s.model_answers(SPOKEN)
    s.advance(29)
    samples(s, "git", "still over")
    assert s.answer_to_server("git", "still over").is_error
    s.advance(1)
    samples(s, "git", "free")
    s.model_answers(SPOKEN)
    assert s.answer_to_server("git", "free")["result"] == SPOKEN
    samples(s, "git", "the second is still within a minute")
    assert s.answer_to_server("git", "the second is still within a minute").is_error
    assert nothing_is_open(s)


def test_what_was_refused_does_not_count_for_the_minute():
    s = Script(["git"], sampling=sampler(timeout_sec=1, requests_per_minute=1))
    samples(s, "git", 0)
    s.model_answers(SPOKEN)
    for number in range(1, 50):
        s.advance(1)
        samples(s, "git", number)
    s.advance(11)
    samples(s, "git", "free")
    assert len(s.model_asked()) == 2


def test_waiting_as_long_as_the_refusal_says_is_enough():
    s = Script(["git"], sampling=sampler(timeout_sec=0.1, requests_per_minute=1))
    for pause in (0.25, 13.5, 59.5):
        samples(s, "git", f"first {pause}")
        s.model_answers(SPOKEN)
        s.advance(pause)
        samples(s, "git", f"over {pause}")
        s.advance(s.answer_to_server("git", f"over {pause}")["error"]["data"]["retryAfterSeconds"])
        samples(s, "git", f"again {pause}")
        s.model_answers(SPOKEN)
        assert s.answer_to_server("git", f"again {pause}")["result"] == SPOKEN
        s.advance(60)


def test_a_restart_of_a_server_does_not_begin_its_minute_anew():
    """Our choice: else a server that dies after each request would have no limit."""
    s = Script(["git"], sampling=sampler(timeout_sec=20, requests_per_minute=1))
    samples(s, "git", "q")
    s.server_dies("git")
    s.host_asks(1, "tools/call", name="git__log")
    s.advance(1)
    samples(s, "git", "r")
    assert s.answer_to_server("git", "r")["error"]["data"]["limit"] == "requests_per_minute"


@pytest.mark.requirement("sampling-limits")
@pytest.mark.parametrize("ending", ["answer", "error", "cancel", "timeout"])
def test_a_server_has_so_many_questions_open_at_the_model_and_the_others_wait_their_turn(ending: str):
    """Our choice: `sampling.limits.max_concurrency`. What has ended, in whatever way, makes room; in order."""
    s = Script(["git", "hub"], sampling=sampler(timeout_sec=50, max_concurrency=2))
    for number in range(4):
        samples(s, "git", number)
    samples(s, "hub", 0)
    assert [asked["params"]["server"] for asked in s.model_asked()] == ["git", "git", "hub"]
    first = s.model_asked()[0]["id"]
    match ending:
        case "answer":
            s.model_sends(id=first, result=SPOKEN)
        case "error":
            s.model_sends(id=first, error={"code": -1, "message": "no"})
        case "cancel":
            s.server_sends("git", method="notifications/cancelled", params={"requestId": 0})
        case _:
            s.model_sends(id=s.model_asked()[2]["id"], result=SPOKEN)
            s.advance(49)
            samples(s, "git", "late")
            s.advance(5)  # those that wait have waited long enough; the sampler has its time still
            for number in (2, 3):
                assert "has waited 50 s for its turn, 2 are open" in s.answer_to_server("git", number).text
                assert s.answer_to_server("git", number)["error"]["data"] == {"limit": "max_concurrency"}
            s.advance(2)
            assert s.sampler_stops == [SAMPLER]
            return
    assert [asked["params"]["server"] for asked in s.model_asked()] == ["git", "git", "hub", "git"]
    s.model_sends(id=s.model_asked()[3]["id"], result={"for": 2})
    assert s.answer_to_server("git", 2)["result"] == {"for": 2}
    assert len(s.model_asked()) == 5


def test_ten_at_once_get_ten_answers_in_order():
    s = Script(["git"], sampling=sampler())
    for number in range(10):
        samples(s, "git", number)
    for number in range(10):
        s.model_sends(id=s.model_asked()[number]["id"], result={"for": number})
    assert [s.answer_to_server("git", number)["result"]["for"] for number in range(10)] == [*range(10)]
    assert nothing_is_open(s)


def test_a_server_over_its_minute_waits_if_that_helps_in_time():
    """Its host gives up on a call after 55 s, as far as is known."""
    s = Script(["git"], sampling=sampler(requests_per_minute=2))
    for number in range(2):
        samples(s, "git", number)
        s.model_answers(SPOKEN)
        s.advance(6)
    s.host_asks(1, "tools/call", name="git__log")
    for number in (2, 3):
        samples(s, "git", number)
    s.advance(47)
    assert len(s.model_asked()) == 2
    s.advance(2)
    assert len(s.model_asked()) == 3
    s.model_answers(SPOKEN)
    s.advance(5)
    assert len(s.model_asked()) == 4
    samples(s, "git", "in vain")
    assert "free again in " in s.answer_to_server("git", "in vain").text


def test_what_waits_its_turn_may_be_withdrawn_and_goes_with_its_server():
    s = Script(["git"], sampling=sampler(max_concurrency=1))
    for number in range(5):
        samples(s, "git", number)
    s.server_sends("git", method="notifications/cancelled", params={"requestId": 1})
    s.model_answers(SPOKEN)
    assert len(s.model_asked()) == 2
    s.server_dies("git")
    assert len(s.model_asked()) == 2
    assert nothing_is_open(s)


def test_more_than_may_wait_are_refused():
    s = Script({}, sampling=sampler(max_concurrency=1))
    turns, heir = s.core.turns, mcpmux.Asker()
    for number in range(1 + mcpmux.TURNS_MOST):
        turns.take("git", b"%d" % number, mcpmux.UNSET, heir, 100)
    with pytest.raises(mcpmux.RpcError, match="200 requests of git wait their turn already"):
        turns.take("git", b"x", mcpmux.UNSET, heir, 100)


def test_what_the_sampler_refuses_to_prepare_never_reaches_a_model_and_does_not_count():
    s = Script(["git"], sampling=sampler(requests_per_minute=1))
    s.prepares = False
    for number in range(3):
        samples(s, "git", number)
        s.model_sends(id=s.to_model[-1]["id"], error={"code": -32602, "message": "no"})
        assert s.answer_to_server("git", number)["error"]["message"] == "no"
    samples(s, "git", "q")
    s.model_sends(id=s.to_model[-1]["id"], result={"params": ASKED, "models": ["a", "b"], "usd": 0.5})
    (asked,) = s.model_asked()
    assert (asked["params"]["params"], asked["params"]["models"]) == (ASKED, ["a", "b"])
    s.model_answers(SPOKEN)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN
    assert nothing_is_open(s)


def test_what_the_host_samples_is_not_limited():
    s = Script(["git"], capabilities={"sampling": {}}, sampling=sampler(requests_per_minute=1, max_concurrency=1))
    for number in range(5):
        samples(s, "git", number)
    assert len(s.host_told("sampling/createMessage")) == 5


# ── its endings ──


def test_when_the_sampler_dies_all_its_requests_end_once_and_the_next_one_starts_another():
    s = Script(["git", "hub"], capabilities={"elicitation": {}}, sampling=sampler())
    samples(s, "git", 1)
    samples(s, "git", 2)
    samples(s, "hub", 1)
    s.server_sends("hub", id="person", method="elicitation/create", params={"message": "?", "requestedSchema": {}})
    s.sampler_dies()
    for name, id in (("git", 1), ("git", 2), ("hub", 1)):
        error = s.answer_to_server(name, id)["error"]
        assert error["code"] == -32603
        assert error["message"] == "mcpmux: the sampler exited with code 1 (ask again)"
    assert len(s.core.in_flight) == 1  # a person is asked as before
    assert s.withdrawn_from_model() == []  # there is nobody to tell
    for asked in s.model_asked():
        s.model_sends(id=asked["id"], result=SPOKEN)
    samples(s, "git", 3)
    assert s.sampler_starts == [SAMPLER]
    s.advance(1)  # it rests as a server does
    s.model_answers(SPOKEN)
    assert s.sampler_starts == [SAMPLER] * 2
    assert s.answer_to_server("git", 3)["result"] == SPOKEN
    assert [s.answer_to_server(name, id).is_error for name, id in (("git", 1), ("git", 2), ("hub", 1))] == [True] * 3


def asked_of(s: Script, who: str) -> list[int]:
    """The ids of what was put to the host, or to the model."""
    return [message["id"] for message in (s.model_asked() if who == "model" else s.host_told("sampling/createMessage"))]


def withdrawn_from(s: Script, who: str) -> list[int]:
    if who == "model":
        return s.withdrawn_from_model()
    return [message["params"]["requestId"] for message in s.host_told("notifications/cancelled")]


def asking(who: str, *names: str) -> Script:
    """Servers whose sampling this one answers."""
    if who == "model":
        return Script(list(names), sampling=sampler())
    return Script(list(names), capabilities={"sampling": {}})


@pytest.mark.requirement("cancelled-with-questions")
@pytest.mark.parametrize("who", ["host", "model"])
def test_when_the_host_cancels_a_call_what_its_server_asks_for_it_is_withdrawn_and_ends_with_an_error(who: str):
    """Our choice. Servers do not cancel what they ask in a call that is cancelled, and nobody should work on it.
    2025-11-25, basic/utilities/cancellation: a cancelled request is not answered, but the server's is another one."""
    s = asking(who, "git", "hub")
    for name, id in (("git", 1), ("hub", 2)):
        s.host_asks(id, "tools/call", name=f"{name}__log")
        samples(s, name, "q")
    mine, other = asked_of(s, who)
    s.host_sends(method="notifications/cancelled", params={"requestId": 1})
    assert withdrawn_from(s, who) == [mine]
    assert s.answer_to_server("git", "q").text == "mcpmux: the host cancelled the call that this was asked for"
    s.model_sends(id=mine, result=SPOKEN)
    s.host_sends(id=mine, result=SPOKEN)
    assert s.answer_to_server("git", "q").is_error
    assert 1 not in s.answered
    (s.model_sends if who == "model" else s.host_sends)(id=other, result=SPOKEN)
    assert s.answer_to_server("hub", "q")["result"] == SPOKEN
    s.server_answers("hub", "tools/call")
    assert nothing_is_open(s)


@pytest.mark.parametrize("who", ["host", "model"])
@pytest.mark.parametrize(
    ("method", "params"), [("prompts/get", {"name": "git__p"}), ("resources/read", {"uri": "mem://1"})]
)
def test_a_question_may_belong_to_any_request_that_carries_one(who: str, method: str, params: dict[str, Any]):
    s = asking(who, "git")
    s.server_dies("git")
    s.offers["git"] = {"prompts/list": [{"name": "p"}], "resources/list": [{"uri": "mem://1", "name": "r"}]}
    s.host_asks(0, "tools/call", name="git__log")
    s.advance(2)
    s.server_answers("git", "tools/call")
    s.host_asks(1, method, **params)
    samples(s, "git", "q")
    s.host_sends(method="notifications/cancelled", params={"requestId": 1})
    assert withdrawn_from(s, who) == asked_of(s, who)
    assert s.answer_to_server("git", "q").is_error


@pytest.mark.requirement("cancelled-with-questions")
@pytest.mark.parametrize("who", ["host", "model"])
def test_a_question_that_another_call_may_have_asked_is_not_withdrawn_until_that_is_cancelled_too(who: str):
    """Our choice: a question does not say for which call it is."""
    s = asking(who, "git")
    for id in (1, 2):
        s.host_asks(id, "tools/call", name="git__log")
    samples(s, "git", "q")
    s.host_asks(3, "tools/call", name="git__log")  # too late to have asked it
    s.host_sends(method="notifications/cancelled", params={"requestId": 1})
    s.host_sends(method="notifications/cancelled", params={"requestId": 3})
    assert withdrawn_from(s, who) == []
    s.host_sends(method="notifications/cancelled", params={"requestId": 2})
    assert withdrawn_from(s, who) == asked_of(s, who)
    assert s.answer_to_server("git", "q").is_error
    assert nothing_is_open(s)


@pytest.mark.requirement("cancelled-with-questions")
@pytest.mark.parametrize("who", ["host", "model"])
def test_a_question_outside_any_call_outlives_calls_that_are_cancelled(who: str):
    s = asking(who, "git", "hub")
    s.host_asks(1, "tools/call", name="hub__log")
    samples(s, "git", "q")
    s.host_asks(2, "tools/call", name="git__log")
    for id in (1, 2):
        s.host_sends(method="notifications/cancelled", params={"requestId": id})
    assert withdrawn_from(s, who) == []
    (number,) = asked_of(s, who)
    (s.model_sends if who == "model" else s.host_sends)(id=number, result=SPOKEN)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN
    assert nothing_is_open(s)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "git__p"}, "argument": {}}),
        ("tasks/result", {"taskId": "t1"}),
    ],
)
def test_a_question_outlives_the_cancelling_of_a_request_that_carries_none(method: str, params: dict[str, Any]):
    """2026-07-28 names tools/call, prompts/get and resources/read as those in which a server may ask."""
    s = Script(["git"], sampling=sampler(), offers={"git": {**tools("log"), "prompts/list": [{"name": "p"}]}})
    start_task(s)
    s.host_asks(2, method, **params)
    samples(s, "git", "q")
    s.host_sends(method="notifications/cancelled", params={"requestId": 2})
    assert s.withdrawn_from_model() == []
    s.model_answers(SPOKEN)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN


def test_what_a_server_asks_is_not_withdrawn_when_its_call_has_an_answer():
    """A server may go on after its answer; only the host's cancelling says that nobody wants the result."""
    s = Script(["git"], sampling=sampler())
    s.host_asks(1, "tools/call", name="git__log")
    samples(s, "git", "q")
    s.server_answers("git", "tools/call")
    s.host_sends(method="notifications/cancelled", params={"requestId": 1})
    assert s.withdrawn_from_model() == []
    s.model_answers(SPOKEN)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN


def test_a_question_that_its_server_withdraws_is_withdrawn_from_the_model_and_never_answered():
    """2025-11-25, basic/utilities/cancellation."""
    s = Script(["git", "hub"], sampling=sampler())
    samples(s, "git", "q")
    samples(s, "hub", "q")
    mine = s.model_asked()[0]["id"]
    s.server_sends("git", method="notifications/cancelled", params={"requestId": "q", "reason": "r"})
    assert s.to_model[-1]["params"] == {"requestId": mine, "reason": "r"}
    s.server_sends("git", method="notifications/cancelled", params={"requestId": "q"})
    assert s.withdrawn_from_model() == [mine]
    s.model_sends(id=mine, result=SPOKEN)
    assert [m for m in s.to_server["git"] if m.get("id") == "q"] == []
    s.model_answers(SPOKEN)
    assert s.answer_to_server("hub", "q")["result"] == SPOKEN
    samples(s, "git", "q")  # the id is free
    s.model_answers(SPOKEN)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN


def test_questions_of_a_server_that_dies_are_withdrawn_from_the_model_and_its_next_process_gets_no_answer_to_them():
    s = Script(["git"], sampling=sampler())
    s.host_asks(1, "tools/call", name="git__log")
    samples(s, "git", "q")
    mine = s.model_asked()[0]["id"]
    s.server_dies("git")
    assert s.withdrawn_from_model() == [mine]
    assert s.host_hears(1).is_error
    s.host_asks(2, "tools/call", name="git__log")
    s.advance(1)
    samples(s, "git", "q")
    s.model_sends(id=mine, result={"for": "the dead"})
    s.model_answers(SPOKEN)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN
    s.server_answers("git", "tools/call")
    assert nothing_is_open(s)


def test_at_the_end_no_question_to_the_model_is_left():
    s = Script(["git"], sampling=sampler())
    samples(s, "git", "q")
    s.feed(mcpmux.HostGone("end"))
    s.server_dies("git")
    assert s.withdrawn_from_model() == [s.model_asked()[0]["id"]]
    assert nothing_is_open(s)


def test_a_sampler_that_is_stuck_is_replaced_and_what_others_asked_is_asked_again():
    """Our choice: its own timeout ends a request; one that does not even do that answers nobody."""
    s = Script(["git", "hub"], sampling=sampler(timeout_sec=20))
    samples(s, "git", "q")
    s.advance(10)
    samples(s, "hub", "r")
    mine, other = (asked["id"] for asked in s.model_asked())
    s.advance(10 + mcpmux.SAMPLER_SLACK - 1)
    assert s.withdrawn_from_model() == []
    s.advance(2)
    assert (
        s.answer_to_server("git", "q").text == "mcpmux: the sampler did not answer sampling/createMessage within 25 s"
    )
    assert s.withdrawn_from_model() == [mine]
    assert s.sampler_stops == [SAMPLER]
    s.model_sends(id=mine, result=SPOKEN)
    assert s.answer_to_server("git", "q").is_error
    s.sampler_dies()
    assert s.sampler_starts == [SAMPLER] * 2
    assert s.model_asked()[-1]["params"] == s.model_asked()[1]["params"]
    s.model_sends(id=other, result=SPOKEN)
    assert s.answer_to_server("hub", "r")["result"] == SPOKEN
    assert nothing_is_open(s)


def test_what_was_asked_twice_in_vain_is_not_asked_again():
    s = Script(["git", "hub"], sampling=sampler(timeout_sec=20))
    for name in ("git", "hub"):
        samples(s, name, "q")
        s.advance(1)
    for _ in range(3):
        s.advance(26)
        if s.core.sampler.state is State.STOPPING:
            s.sampler_dies()
    assert [s.answer_to_server(name, "q").is_error for name in ("git", "hub")] == [True] * 2
    assert nothing_is_open(s)


# ── what goes on meanwhile ──


@pytest.mark.parametrize("ending", ["answer", "death"])
def test_a_calls_clock_stands_still_while_the_model_is_asked(ending: str):
    """As while a person is asked: the call is not the server's to hasten."""
    s = Script({"git": server(tool_timeout_sec=10)}, sampling=sampler())
    s.host_asks(1, "tools/call", name="git__log")
    s.advance(9)
    samples(s, "git", "q")
    s.advance(60)
    assert 1 not in s.answered
    if ending == "answer":
        s.model_answers(SPOKEN)
    else:
        s.sampler_dies()
    s.advance(9)
    assert 1 not in s.answered
    s.advance(2)
    assert s.host_hears(1).is_error


def test_the_clock_of_another_servers_call_goes_on():
    s = Script({"git": server(tool_timeout_sec=10), "hub": server(tool_timeout_sec=10)}, sampling=sampler())
    s.host_asks(1, "tools/call", name="git__log")
    s.host_asks(2, "tools/call", name="hub__log")
    samples(s, "git", "q")
    s.advance(11)
    assert 1 not in s.answered
    assert s.host_hears(2).is_error


def test_lists_and_calls_wait_for_what_a_server_asks_the_model_after_initialized():
    """Some servers offer tools that depend on the answer, or refuse calls until they have it."""
    s = Script(["git"], sampling=sampler(), begin=False)
    s.host_asks("init", "initialize", protocolVersion="2025-11-25", capabilities={})
    s.host_sends(method="notifications/initialized")
    s.host_asks(1, "tools/call", name="git__log")
    samples(s, "git", "q")
    s.advance(5)
    assert s.server_heard("git", "tools/list") == []
    s.model_answers(SPOKEN)
    s.advance(0.05)
    assert s.server_heard("git", "tools/list") == []
    s.advance(0.06)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN
    assert s.server_heard("git", "tools/list")
    assert s.server_hears("git", "tools/call")["params"] == {"name": "log"}


def test_the_model_is_asked_even_before_the_host_has_initialized():
    """The model is nobody's to wait for: only the host may not be asked before it has initialized."""
    s = Script(["git"], sampling=sampler(), begin=False)
    s.host_asks("init", "initialize", protocolVersion="2025-11-25", capabilities={})
    samples(s, "git", "q")
    s.model_answers(SPOKEN)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN


def test_a_model_that_never_answers_what_a_server_asks_first_does_not_keep_its_tools_away_for_ever():
    s = Script({"git": server(startup_timeout_sec=5)}, sampling=sampler(), begin=False)
    s.host_asks("init", "initialize", protocolVersion="2025-11-25", capabilities={})
    s.host_sends(method="notifications/initialized")
    samples(s, "git", "q")
    s.advance(6)
    assert s.tools() == ["git__log"]


@pytest.mark.parametrize("method", ["tools/list", "completion/complete"])
def test_a_server_may_ask_the_model_while_it_lists_or_completes(method: str):
    """The host may not be asked then, since it may wait for us; the model waits for nobody."""
    s = Script(["git"], sampling=sampler(), offers={"git": {"prompts/list": [{"name": "p"}]}})
    if method == "tools/list":
        s.offers["git"]["tools/list"] = ...
        s.server_sends("git", method="notifications/tools/list_changed")
        s.advance(1)
    else:
        s.host_asks(1, method, ref={"type": "ref/prompt", "name": "git__p"}, argument={"name": "a", "value": ""})
    samples(s, "git", "q")
    s.advance(60)  # the listing's clock stands still as well
    s.model_answers(SPOKEN)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN
    if method == "tools/list":
        s.server_answers("git", method, {"tools": [{**TOOL, "name": "chosen"}]})
        assert s.tools() == ["git__chosen"]
    else:
        s.server_answers("git", method, {"completion": {"values": ["x"]}})
        assert s.host_hears(1)["result"] == {"completion": {"values": ["x"]}}


def test_a_server_that_does_not_read_loses_the_models_answer_and_nothing_stays_open():
    s = Script(["git"], sampling=sampler())
    samples(s, "git", "q")
    s.feed(mcpmux.ServerClogged("git", s.runs["git"], True))
    s.model_answers(SPOKEN)
    assert [m for m in s.to_server["git"] if m.get("id") == "q"] == []
    assert nothing_is_open(s)


def test_the_trace_tells_nothing_of_what_is_asked_of_the_model():
    s = Script(["git"], options=MuxOptions(log_level="trace"), sampling=sampler())
    samples(s, "git", "q", ASKED | {"systemPrompt": "s3cret"})
    s.model_answers({"content": "s3cret"})
    assert any(line.startswith("< git sampling/createMessage") for line in s.logged)
    assert "s3cret" not in json.dumps(s.logged)


# ── notifications of servers ──


@pytest.mark.parametrize(("logger", "becomes"), [(None, "git"), ("", "git"), ("db", "git/db"), (7, "git")])
def test_log_messages_say_which_server_logs(logger: Any, becomes: str):
    s = Script(["git"])
    s.server_sends("git", method="notifications/message", params={"level": "info", "logger": logger, "data": {"x": 1}})
    assert s.host_told("notifications/message")[0]["params"] == {"level": "info", "logger": becomes, "data": {"x": 1}}


@pytest.mark.requirement("unknown-methods")
def test_other_notifications_pass_to_the_host_as_they_are():
    s, method = Script(["git"]), "notifications/vendor/x"
    s.server_sends("git", b'{"jsonrpc":"2.0","method":"%b","params":{"a":1.0}}' % method.encode())
    assert s.host_told(method)[0].raw == b'{"jsonrpc":"2.0","method":"%b","params":{"a":1.0}}' % method.encode()


@pytest.mark.requirement("notifications-unanswered")
def test_notifications_are_never_answered():
    """2025-11-25, basic/index#notifications."""
    s = Script(["git"])
    before = len(s.to_host), len(s.to_server["git"])
    s.host_sends(method="notifications/unknown", params={"x": 1})
    s.host_sends(method="tools/call", params={"name": "git__log"})
    s.server_sends("git", method="sampling/createMessage", params={})
    assert (len(s.to_host), len(s.to_server["git"])) == (before[0] + 1, before[1])  # the server's is passed on


@pytest.mark.requirement("empty-results")
def test_the_log_level_is_told_to_every_server_with_logging_also_to_later_ones():
    """2025-11-25, server/utilities/logging."""
    s = Script(["git"])
    assert s.asks(1, "logging/setLevel", level="warning").raw.endswith(b'"result":{}}')
    assert s.server_hears("git", "logging/setLevel")["params"] == {"level": "warning"}
    s.server_dies("git")
    s.host_asks(2, "tools/call", name="git__log")
    s.advance(1)
    assert len(s.server_heard("git", "logging/setLevel")) == 2
    assert s.asks(3, "logging/setLevel", level="loud")["error"]["code"] == -32602


# ── tasks (2025-11-25, basic/utilities/tasks) ──


def start_task(s: Script, id: Any = 1, task: str = "t1", server: str = "git", **params: Any) -> int:
    s.host_asks(id, "tools/call", name=f"{server}__log", task={"ttl": 1000}, **params)
    number = s.server_hears(server, "tools/call")["id"]
    s.server_sends(server, id=number, result={"task": {"taskId": task, "status": "working"}})
    return number


@pytest.mark.parametrize("method", ["tasks/get", "tasks/result", "tasks/cancel"])
def test_a_task_is_followed_at_the_server_that_made_it(method: str):
    s = Script(["git", "hub"])
    start_task(s, server="hub")
    s.host_asks(2, method, taskId="t1")
    s.server_answers("hub", method, {"taskId": "t1", "status": "working"})
    assert s.host_hears(2)["result"]["taskId"] == "t1"
    assert s.asks(3, method, taskId="t2")["error"]["code"] == -32602


def test_tasks_of_all_servers_are_listed_together():
    s = Script(["a", "b", "c"])
    s.host_asks(1, "tasks/list")
    s.server_answers("a", "tasks/list", {"tasks": [{"taskId": "1"}], "nextCursor": "n"})
    s.server_answers("a", "tasks/list", {"tasks": [{"taskId": "2"}]})
    s.server_answers("b", "tasks/list", error={"code": -32603, "message": "no"})
    s.server_answers("c", "tasks/list", {"tasks": [{"taskId": "3", "x": 1.0}, 7]})
    assert s.host_hears(1).raw.endswith(
        b'"result":{"tasks":[{"taskId": "1"},{"taskId": "2"},{"taskId": "3", "x": 1.0}]}}'
    )
    s.host_asks(2, "tasks/get", taskId="3")
    assert s.server_hears("c", "tasks/get")


@pytest.mark.requirement("task-progress")
def test_a_tasks_progress_goes_on_after_the_call_is_answered_until_the_task_ends():
    """The token remains valid until the task reaches a terminal status."""
    s = Script(["git"])
    number = start_task(s, _meta={"progressToken": "p"})

    def progress(value: int) -> int:
        s.server_sends("git", method="notifications/progress", params={"progressToken": number, "progress": value})
        return len(s.host_told("notifications/progress"))

    assert progress(1) == 1
    s.server_sends("git", method="notifications/tasks/status", params={"taskId": "t1", "status": "working"})
    assert progress(2) == 2
    s.server_sends("git", method="notifications/tasks/status", params={"taskId": "t1", "status": "completed"})
    assert progress(3) == 2
    assert len(s.host_told("notifications/tasks/status")) == 2


@pytest.mark.requirement("task-progress")
@pytest.mark.parametrize(
    ("method", "result"),
    [("tasks/get", {"status": "failed"}), ("tasks/result", {"content": []}), ("tasks/cancel", {"status": "cancelled"})],
)
def test_a_task_that_is_seen_to_end_ends_its_progress(method: str, result: dict[str, Any]):
    s = Script(["git"])
    number = start_task(s, _meta={"progressToken": "p"})
    s.host_asks(2, method, taskId="t1")
    s.server_answers("git", method, result)
    s.server_sends("git", method="notifications/progress", params={"progressToken": number, "progress": 1})
    assert s.host_told("notifications/progress") == []


HOST_TASKS = {"sampling": {}, "tasks": {"list": {}, "requests": {"sampling": {"createMessage": {}}}}}


@pytest.mark.requirement("server-tasks")
def test_a_server_follows_the_task_that_the_host_made_for_it_and_no_other():
    s = Script(["git", "spy"], capabilities=HOST_TASKS)
    params = {"messages": [], "maxTokens": 1, "task": {}}
    s.server_sends("git", id="q", method="sampling/createMessage", params=params)
    s.host_sends(id=s.host_told("sampling/createMessage")[0]["id"], result={"task": {"taskId": "h1"}})
    s.server_sends("spy", id="g", method="tasks/result", params={"taskId": "h1"})
    assert s.answer_to_server("spy", "g")["error"]["code"] == -32602
    s.server_sends("git", id="g", method="tasks/get", params={"taskId": "h1"})
    s.host_sends(id=s.host_told("tasks/get")[0]["id"], result={"status": "working"})
    assert s.answer_to_server("git", "g")["result"] == {"status": "working"}
    s.host_sends(method="notifications/tasks/status", params={"taskId": "h1", "status": "completed"})
    assert s.server_hears("git", "notifications/tasks/status")
    assert s.server_heard("spy", "notifications/tasks/status") == []
    s.server_sends("spy", id="l", method="tasks/list")
    s.host_sends(id=s.host_told("tasks/list")[0]["id"], result={"tasks": [{"taskId": "h1"}], "x": 1})
    assert s.answer_to_server("spy", "l")["result"] == {"tasks": [], "x": 1}


def test_a_server_may_not_follow_tasks_of_a_host_that_has_none():
    s = Script(["git"])
    s.server_sends("git", id="g", method="tasks/get", params={"taskId": "h1"})
    assert s.answer_to_server("git", "g")["error"]["code"] == -32601


# ── methods of the future ──


@pytest.mark.parametrize(
    ("params", "owner", "sent"),
    [
        ({"name": "git__log", "x": 1}, "git", {"name": "log", "x": 1}),
        ({"uri": "mem://a"}, "a", {"uri": "mem://a"}),
        ({"taskId": "t1"}, "git", {"taskId": "t1"}),
    ],
)
def test_an_unknown_method_goes_to_the_owner_of_what_its_params_name(params: Any, owner: str, sent: Any):
    """Our promise: new protocol features pass through an old mcpmux."""
    s = Script(["a", "git"], offers={"a": RESOURCES["a"]})
    start_task(s)
    s.host_asks(5, "vendor/new", **params)
    assert s.server_hears(owner, "vendor/new")["params"] == sent
    s.server_answers(owner, "vendor/new", {"x": 1})
    assert s.host_hears(5)["result"] == {"x": 1}


@pytest.mark.parametrize("params", [{}, {"name": "nobody"}, {"uri": []}, {"taskId": {}}, {"name": 7}])
def test_an_unknown_method_that_names_nothing_is_refused(params: Any):
    s = Script(["git"])
    assert s.asks(5, "vendor/new", **params)["error"] == {"code": -32601, "message": "Method not found: vendor/new"}


# ── bad messages ──


@pytest.mark.requirement("parse-error-id")
@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"nonsense", -32700),
        (b'{"id":7', -32700),
        (b"\xff\xfe", -32700),
        (b"[1]", -32600),
        (b"7", -32600),
        (b"{}", -32600),
        (b'{"jsonrpc":"2.0"}', -32600),
        (b'{"id":7,"method":7}', -32600),
        (b'{"id":7}', -32600),
        (b'{"id":1,"result":' + b"[" * 100000, -32700),
    ],
)
def test_a_bad_line_of_the_host_is_answered_and_costs_only_itself(line: bytes, code: int):
    """2025-11-25, basic/index#error-responses: a parse error has no id."""
    s = Script(["git"])
    s.host_sends(line)
    assert s.to_host[-1]["error"]["code"] == code
    assert code != -32700 or "id" not in s.to_host[-1]
    assert s.asks(1, "ping")["result"] == {}


def test_an_over_long_line_of_the_host_is_refused():
    s = Script(["git"])
    s.feed(mcpmux.HostLines([mcpmux.TooLong(10**9, b'{"jsonrpc":"2.0","id":7,"method":"x', b"")]))
    assert s.host_hears(7)["error"]["code"] == -32600
    assert "max_message_mb" in s.host_hears(7).text


@pytest.mark.requirement("batches")
def test_a_batch_is_unpacked_where_its_revision_was_negotiated():
    """2025-03-26, basic/index#batching; each member is answered singly."""
    s = Script(["git"], revision="2025-03-26")
    s.host_sends(b'[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":2,"method":"ping"}]')
    assert s.host_hears(1)["result"] == s.host_hears(2)["result"] == {}
    s.host_asks(3, "tools/call", name="git__log")
    number = s.server_hears("git", "tools/call")["id"]
    s.server_sends("git", b'[{"jsonrpc":"2.0","id":%d,"result":{"x":1.0}}]' % number)
    assert s.host_hears(3).raw.endswith(b'{"x":1.0}}')


@pytest.mark.requirement("batches")
@pytest.mark.parametrize("revision", ["2024-11-05", "2025-06-18", "2025-11-25"])
def test_a_batch_is_a_bad_line_in_every_other_revision(revision: str):
    s = Script(["git"], revision=revision)
    s.host_sends(b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]')
    assert s.to_host[-1]["error"]["code"] == -32600
    assert 1 not in s.answered


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


# ── dying and starting ──


def test_a_dead_server_answers_every_call_that_waits_on_it():
    s = Script(["git", "hub"], offers={"git": {**tools("log"), "prompts/list": [{"name": "p"}]}})
    s.host_asks(7, "tools/call", name="git__log")
    s.host_asks(8, "prompts/get", name="git__p")
    s.host_asks(9, "tools/call", name="hub__log")
    s.server_dies("git", code=3, stderr=["Traceback", "boom"])
    expected = 'mcpmux: git exited with code 3; its last words: "Traceback | boom" (look)'
    assert s.host_hears(7)["result"]["isError"] is True
    assert s.host_hears(7).text == s.host_hears(8)["error"]["message"] == expected
    s.server_answers("hub", "tools/call")
    assert s.host_hears(9)["result"] == {}


def test_a_call_as_a_task_fails_with_a_json_rpc_error():
    """A CreateTaskResult has no isError."""
    s = Script(["git"])
    s.host_asks(1, "tools/call", name="git__log", task={})
    s.server_dies("git")
    assert s.host_hears(1)["error"]["code"] == -32603


@pytest.mark.requirement("restarted")
def test_a_dead_server_stays_listed_and_is_started_again_at_the_next_call():
    s = Script(["git"])
    s.server_dies("git")
    assert s.tools() == ["git__log"]
    s.advance(10)
    assert s.started == ["git"]
    s.host_asks(1, "tools/call", name="git__log")
    s.advance(0.2)
    s.server_answers("git", "tools/call", {"ok": 1})
    assert s.host_hears(1)["result"] == {"ok": 1}
    assert s.started == ["git", "git"]


def test_a_call_that_a_server_never_took_is_for_its_next_run():
    """Of a remote server that is known; what it had taken may have been done, and is not done twice."""
    s = Script(["git"])
    s.host_asks(1, "tools/call", name="git__log", _meta={"progressToken": "p"})
    s.host_asks(2, "tools/call", name="git__log")
    first = s.server_heard("git", "tools/call")[0]
    s.server_dies("git", unread=[first])
    assert s.host_hears(2)["result"]["isError"]
    s.advance(1)
    assert s.started == ["git", "git"]
    again = s.server_heard("git", "tools/call")[2:]
    assert again == [first]
    s.server_answers("git", "tools/call", {"ok": 1})
    assert s.host_hears(1)["result"] == {"ok": 1}


def test_a_call_that_a_server_never_takes_ends_when_the_server_is_given_up():
    s = Script(["git"])
    s.host_asks(1, "tools/call", name="git__log")
    for _ in range(mcpmux.DEATHS_ALLOWED):
        s.server_dies("git", unread=s.server_heard("git", "tools/call")[-1:])
        s.advance(10)
    assert s.host_hears(1)["result"]["isError"]


def test_what_a_server_never_took_and_nobody_wants_any_more_is_not_sent_again():
    s = Script(["git"])
    s.host_asks(1, "tools/call", name="git__log")
    [call] = s.server_heard("git", "tools/call")
    s.host_sends(method="notifications/cancelled", params={"requestId": 1})
    s.server_dies("git", unread=[call])
    s.advance(60)
    assert s.started == ["git"]


def test_a_server_whose_trouble_may_be_over_is_tried_again_at_once():
    """Somebody has logged in; a host that reads its lists but once hears of it."""
    s = Script(["git"], silent=("git",))
    for _ in range(mcpmux.DEATHS_ALLOWED):
        s.host_asks(f"call-{s.now}", "tools/call", name="git__log")
        s.advance(40)
        s.server_dies("git")
    s.silent.clear()
    s.feed(mcpmux.TryAgain("git"))
    s.advance(1)
    assert s.tools() == ["git__log"]
    started = len(s.started)
    s.feed(mcpmux.TryAgain("git"))  # it is well
    s.feed(mcpmux.TryAgain("nobody"))
    assert len(s.started) == started


def test_a_call_to_a_resting_server_waits_until_it_has_rested():
    s = Script(["git"])
    s.server_dies("git")
    s.host_asks(1, "tools/call", name="git__log")
    s.advance(0.4)
    assert s.started == ["git"]
    s.advance(0.3)
    assert s.started == ["git", "git"]
    s.server_answers("git", "tools/call")
    assert s.host_hears(1)


def test_what_a_former_process_still_says_is_not_heard():
    s = Script(["git"])
    s.host_asks(1, "tools/call", name="git__log")
    old, number = s.runs["git"], s.server_hears("git", "tools/call")["id"]
    s.server_dies("git")
    line = b'{"jsonrpc":"2.0","id":%d,"result":{}}' % number
    s.feed(mcpmux.ServerLines("git", old, [line]))
    s.feed(mcpmux.ServerGone("git", old, "again", "", []))
    s.feed(mcpmux.ServerUp("git", old))
    s.feed(mcpmux.ServerClogged("git", old, True))
    assert s.answered.count(1) == 1
    assert s.core.servers["git"].state is State.BACKOFF


def test_a_server_that_changed_while_it_was_away_is_announced():
    s = Script(["git"])
    s.tools()
    s.server_dies("git")
    s.offers["git"] = tools("log", "new")
    s.host_asks(1, "tools/call", name="git__log")
    s.advance(1)
    assert len(s.host_told("notifications/tools/list_changed")) == 1


def test_a_server_that_keeps_dying_is_given_up_and_comes_back_after_five_minutes():
    s = Script(["git"])
    for number in range(5):
        s.server_dies("git")
        if number < 4:
            s.host_asks(number, "tools/call", name="git__log")
            s.advance(5)
    assert s.core.servers["git"].state is State.FAILED
    assert "git exited with code 1" in s.asks(10, "tools/call", name="git__log").text
    s.advance(301)
    s.host_asks(11, "tools/call", name="git__log")
    s.advance(1)
    s.server_answers("git", "tools/call")
    assert s.host_hears(11)


def test_a_server_that_cannot_start_harms_only_itself_and_its_calls_say_why():
    s = Script(["git", "bad"], silent=("bad",))
    s.host_asks(1, "tools/list")
    s.feed(mcpmux.ServerGone("bad", s.runs["bad"], "bad: 'npx' was not found on PATH", "install Node.js", []))
    assert [tool["name"] for tool in s.host_hears(1)["result"]["tools"]] == ["git__log"]
    s.host_asks(2, "tools/call", name="bad__anything")
    s.advance(0.6)
    s.feed(mcpmux.ServerGone("bad", s.runs["bad"], "bad: 'npx' was not found on PATH", "install Node.js", []))
    assert s.host_hears(2).text == "mcpmux: bad: 'npx' was not found on PATH (install Node.js)"
    assert s.started.count("bad") == 2


def test_a_server_with_a_wrong_table_says_so_and_is_never_started():
    s = Script(["git"], broken={"bad": "mcpmux.toml: mcp_servers.bad.comand: unknown key"})
    assert s.tools() == ["git__log"]
    assert "mcp_servers.bad.comand: unknown key" in s.asks(2, "tools/call", name="bad__x").text
    assert s.started == ["git"]


def test_a_server_that_never_answers_its_handshake_delays_the_lists_only_so_long():
    s = Script({"git": server(), "mute": server(startup_timeout_sec=5)}, silent=("mute",), begin=False)
    s.host_asks("init", "initialize", protocolVersion="2025-11-25")
    s.host_asks(1, "tools/list")  # before anything is known
    s.host_asks(2, "tools/call", name="mute__x")
    s.advance(4.9)
    assert 1 not in s.answered
    s.advance(0.2)
    assert [tool["name"] for tool in s.host_hears(1)["result"]["tools"]] == ["git__log"]
    assert "mute has not answered `initialize` within 5 s" in s.host_hears(2).text
    assert s.stopped == []
    s.advance(16)
    assert s.stopped == ["mute"]


def test_a_late_server_is_announced_when_it_answers_after_all():
    """A cold npx server takes 40 s and more."""
    s = Script({"git": server(), "npx": server(startup_timeout_sec=5)}, silent=("npx",))
    s.host_asks(1, "tools/list")
    s.advance(10)
    assert len(s.host_hears(1)["result"]["tools"]) == 1
    number = s.server_hears("npx", "initialize")["id"]
    s.server_sends("npx", id=number, result={"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}})
    s.advance(1)
    assert len(s.host_told("notifications/tools/list_changed")) == 1
    assert s.tools() == ["git__log", "npx__log"]


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


def test_at_the_end_every_open_request_is_answered_and_every_server_stopped():
    s = Script(["git", "mute"], silent=("mute",))
    s.host_asks(1, "tools/list")
    s.host_asks(2, "tools/call", name="git__log")
    s.feed(mcpmux.HostGone("SIGTERM"))
    assert "stopping" in s.host_hears(1).text
    assert "stopping" in s.host_hears(2).text
    assert sorted(s.stopped) == ["git", "mute"]
    s.feed(mcpmux.HostGone("SIGTERM"))
    assert sorted(s.stopped) == ["git", "mute"]


# ── the trace ──


def test_the_trace_tells_the_way_of_each_message_and_nothing_of_its_payload():
    s = Script(["git"], options=MuxOptions(log_level="trace"))
    s.host_asks(1, "tools/call", name="git__log", arguments={"key": "s3cret"})
    s.server_answers("git", "tools/call", {"x": "s3cret"})
    lines = [line for line in s.logged if line[:2] in ("< ", "> ")]
    assert any(line.startswith("< host tools/call id=1") for line in lines)
    assert any(line.startswith('> git "id":') for line in lines)
    assert any(line.startswith("< git answer id=") for line in lines)
    assert any(line.startswith('> host "id":1 ') for line in lines)
    assert "s3cret" not in json.dumps(s.logged)


def test_a_call_made_while_a_useless_process_is_being_stopped_goes_to_the_next_one():
    s = Script({"git": LEGACY})
    s.server_dies("git")
    s.silent = {"git"}
    s.host_asks(1, "tools/call", name="git__log")
    s.advance(1)
    s.server_sends("git", id=s.server_hears("git", "initialize")["id"], error={"code": 1, "message": "not now"})
    assert "not now" in s.host_hears(1).text
    s.host_asks(2, "tools/call", name="git__log")
    s.silent.clear()
    s.server_dies("git")
    s.advance(2)
    s.server_answers("git", "tools/call")
    assert s.host_hears(2)["result"] == {}


def test_lists_that_a_server_no_longer_declares_are_gone_after_its_restart():
    s = Script(["git"], offers={"git": {"tools/list": [TOOL], "prompts/list": [{"name": "p"}]}})
    assert s.asks(1, "prompts/list")["result"]["prompts"]
    s.server_dies("git")
    s.server_capabilities = {"tools": {}}
    s.host_asks(2, "tools/call", name="git__log")
    s.advance(1)
    assert len(s.host_told("notifications/prompts/list_changed")) == 1
    assert s.asks(3, "prompts/list")["result"]["prompts"] == []


# ── found by a second look ──


def test_a_server_that_announces_a_change_each_time_it_is_listed_does_not_hold_the_lists():
    s = Script(["git"], offers={"git": {"tools/list": ...}})
    s.host_asks(1, "tools/list")
    for _ in range(200):
        if s.server_heard("git", "tools/list"):
            s.server_sends("git", method="notifications/tools/list_changed")
            s.server_answers("git", "tools/list", {"tools": [TOOL]})
        s.advance(0.06)
    assert s.host_hears(1)["result"]["tools"]
    assert len(s.server_heard("git", "tools/list")) < 40
    assert s.host_told("notifications/tools/list_changed") == []


def test_a_server_that_is_slow_to_list_is_announced_when_its_list_comes():
    s = Script({"git": server(startup_timeout_sec=5)}, offers={"git": {"tools/list": ...}})
    s.host_asks(1, "tools/list")
    s.advance(6)
    assert s.host_hears(1)["result"]["tools"] == []
    s.server_answers("git", "tools/list", {"tools": [TOOL]})
    assert len(s.host_told("notifications/tools/list_changed")) == 1
    assert s.tools() == ["git__log"]


def test_a_server_that_always_asks_something_is_listed_all_the_same():
    s = Script({"git": server(startup_timeout_sec=5)}, capabilities={"roots": {}}, begin=False)
    s.host_asks("init", "initialize", protocolVersion="2025-11-25", capabilities={"roots": {}})
    for number in range(7):
        s.server_sends("git", id=number, method="roots/list")
        s.advance(1)
    assert s.tools() == ["git__log"]


def test_a_server_that_dies_while_it_is_listed_is_started_again_by_a_call():
    s = Script(["git"], offers={"git": {"tools/list": ..., "prompts/list": []}})
    s.server_dies("git")
    s.offers["git"] = tools("log")
    s.host_asks(1, "tools/call", name="git__log")
    s.advance(1)
    s.server_answers("git", "tools/call")
    assert s.host_hears(1)["result"] == {}


def test_a_clock_that_wakes_early_loses_no_timer():
    s = Script({"git": server(tool_timeout_sec=10)})
    s.host_asks(1, "tools/call", name="git__log")
    s.feed(mcpmux.TimerDue(("calls", "")))
    s.advance(11)
    assert s.host_hears(1).is_error


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


def test_a_search_for_a_uri_keeps_the_hosts_token_and_passes_over_who_cannot_answer():
    s = Script(["a", "b", "c"], offers=RESOURCES | {"c": RESOURCES["b"]})
    s.host_asks(1, "resources/read", uri="mem://elsewhere", _meta={"progressToken": "T"})
    for name in ("a", "c"):
        if name == "a":
            s.feed(mcpmux.ServerClogged("b", s.runs["b"], True))
        number = s.server_hears(name, "resources/read")["id"]
        for value in (1, 2 if name == "a" else 3):
            params = {"progressToken": number, "progress": value}
            s.server_sends(name, method="notifications/progress", params=params)
        s.server_answers(name, "resources/read", error={"code": -32002, "message": "no"})
    told = [message["params"] for message in s.host_told("notifications/progress")]
    assert told == [{"progressToken": "T", "progress": value} for value in (1, 2, 3)]
    assert s.host_hears(1)["error"]["message"] == "no"


def test_a_response_with_neither_result_nor_error_ends_its_call():
    """JavaScript writes `result: undefined` so."""
    s = Script(["git"])
    s.host_asks(1, "tools/call", name="git__log")
    s.server_sends("git", id=s.server_hears("git", "tools/call")["id"])
    assert "a result that is no object" in s.host_hears(1).text


def test_one_bad_member_of_a_batch_costs_only_itself():
    s = Script(["git"], revision="2025-03-26")
    s.host_sends(
        b'[{"jsonrpc":"2.0","id":1,"method":"ping"},5,{"jsonrpc":"2.0","id":2,"method":"ping","params":{"a":"\\ud83d"}}]'
    )
    assert s.host_hears(1)["result"] == s.host_hears(2)["result"] == {}
    s.host_sends(b"[]")
    assert [message["error"]["code"] for message in s.to_host if "error" in message] == [-32600, -32600]


def test_a_bug_of_ours_costs_only_the_request_that_shows_it(monkeypatch: pytest.MonkeyPatch):
    s = Script(["git"])
    s.bugs_allowed = True

    def broken(ask: mcpmux.Ask) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(s.core.router.of_host, "vendor/broken", broken)
    lines = [
        b'{"jsonrpc":"2.0","id":%d,"method":"%b"}' % (n, m) for n, m in enumerate((b"ping", b"vendor/broken", b"ping"))
    ]
    s.feed(mcpmux.HostLines(lines))
    assert s.host_hears(0)["result"] == s.host_hears(2)["result"] == {}
    assert s.host_hears(1)["error"]["code"] == -32603
    assert any("a bug in mcpmux" in line and "broken:" in line for line in s.logged)


@pytest.mark.parametrize("task", [[], {}, 7, None])
def test_odd_task_ids_are_nobodys(task: Any):
    s = Script(["git"], capabilities=HOST_TASKS)
    s.host_sends(method="notifications/tasks/status", params={"taskId": task, "status": "completed"})
    s.server_sends("git", method="notifications/tasks/status", params={"taskId": task, "status": "completed"})
    s.server_sends("git", id="l", method="tasks/list")
    s.host_sends(id=s.host_told("tasks/list")[0]["id"], result={"tasks": [{"taskId": task}]})
    assert s.answer_to_server("git", "l")["result"] == {"tasks": []}
    assert not any("bug" in line for line in s.logged)


def test_a_path_that_is_not_unicode_can_be_told():
    s = Script(["git"])
    s.host_asks(1, "tools/call", name="git__log")
    s.feed(mcpmux.ServerGone("git", s.runs["git"], "git: no \udcff", "", []))
    assert s.host_hears(1).text.startswith("mcpmux: git: no ?")


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


def test_no_server_can_claim_the_task_of_another_by_its_status():
    s = Script(["git", "spy"])
    s.server_sends("spy", method="notifications/tasks/status", params={"taskId": "t1", "status": "working"})
    number = start_task(s, _meta={"progressToken": "p"})
    s.server_sends("spy", method="notifications/tasks/status", params={"taskId": "t1", "status": "completed"})
    s.host_asks(2, "tasks/result", taskId="t1")
    assert s.server_hears("git", "tasks/result")
    s.advance(4000)
    s.server_sends("git", method="notifications/progress", params={"progressToken": number, "progress": 1})
    assert len(s.host_told("notifications/progress")) == 1
    s.server_answers("git", "tasks/result", {"content": []})
    assert s.host_hears(2)["result"] == {"content": []}


def test_structured_results_of_a_wrapped_tool_are_wrapped_when_they_come_from_a_task():
    s = Script(["git"], offers={"git": {"tools/list": [{**TOOL, "outputSchema": {"type": "array"}}]}})
    start_task(s)
    s.host_asks(2, "tasks/result", taskId="t1")
    s.server_answers("git", "tasks/result", {"content": [], "structuredContent": [1]})
    assert s.host_hears(2)["result"]["structuredContent"] == {"result": [1]}


def test_progress_on_a_task_of_the_host_goes_on_until_it_ends():
    s = Script(["git"], capabilities=HOST_TASKS)
    params = {"messages": [], "maxTokens": 1, "task": {}, "_meta": {"progressToken": "mine"}}
    s.server_sends("git", id="q", method="sampling/createMessage", params=params)
    number = s.host_told("sampling/createMessage")[0]["id"]
    s.host_sends(id=number, result={"task": {"taskId": "h1"}})
    for value, status in ((1, "working"), (2, "completed"), (3, "completed")):
        s.host_sends(method="notifications/progress", params={"progressToken": number, "progress": value})
        s.host_sends(method="notifications/tasks/status", params={"taskId": "h1", "status": status})
    assert len(s.server_heard("git", "notifications/progress")) == 2


def test_a_refused_initialize_leaves_the_host_uninitialized():
    s = Script(["git"], begin=False)
    assert s.asks(1, "initialize", protocolVersion="2025-11-25", capabilities=5)["error"]["code"] == -32602
    assert s.asks(2, "tools/list")["error"]["code"] == -32602
    s.initialize()
    assert s.tools() == ["git__log"]


def test_a_waiting_completion_does_not_keep_a_server_from_its_roots():
    s = Script(["git"], capabilities={"roots": {}}, offers={"git": {"prompts/list": [{"name": "p"}]}})
    s.server_dies("git")
    s.host_asks(1, "completion/complete", ref={"type": "ref/prompt", "name": "git__p"}, argument={})
    s.advance(0.55)
    s.server_sends("git", id="r", method="roots/list")
    s.host_sends(id=s.host_told("roots/list")[0]["id"], result={"roots": []})
    assert s.answer_to_server("git", "r")["result"] == {"roots": []}


def test_a_chatty_server_does_not_displace_anothers_question_before_the_host_is_ready():
    s = Script(["a", "b"], begin=False)
    s.host_asks(0, "initialize", protocolVersion="2025-11-25", capabilities={"roots": {}})
    for _ in range(3000):
        s.server_sends("a", method="notifications/message", params={"level": "info", "data": 1})
    s.server_sends("b", id="r", method="roots/list")
    s.server_sends("b", method="notifications/message", params={"level": "info", "data": 1})
    s.host_sends(method="notifications/initialized")
    assert len(s.host_told("roots/list")) == 1
    loggers = [message["params"]["logger"] for message in s.host_told("notifications/message")]
    assert 0 < loggers.count("a") < 1000
    assert loggers.count("b") == 1


def test_completion_at_a_server_of_the_first_revision_needs_no_capability():
    """2024-11-05, server/utilities/completion names none."""
    s = Script(
        ["git"],
        revision="2024-11-05",
        server_capabilities={"prompts": {}},
        offers={"git": {"prompts/list": [{"name": "p"}]}},
    )
    s.host_asks(1, "completion/complete", ref={"type": "ref/prompt", "name": "git__p"}, argument={})
    assert s.server_heard("git", "completion/complete")


def test_an_answer_of_the_host_that_cannot_be_read_ends_the_servers_question():
    s = Script(["git"], capabilities={"sampling": {}})
    s.server_sends("git", id="q", method="sampling/createMessage", params={"messages": [], "maxTokens": 1})
    number = s.host_told("sampling/createMessage")[0]["id"]
    before = len(s.to_host)
    s.host_sends(b'{"jsonrpc":"2.0","id":%d,"result":{"a":oops}}' % number)
    assert "cannot be read" in s.answer_to_server("git", "q").text
    assert len(s.to_host) == before


def test_a_server_that_refuses_its_handshake_is_not_started_at_every_call():
    s = Script({"bad": LEGACY}, silent=("bad",))
    for id in range(20):
        s.host_asks(id, "tools/call", name="bad__x")
        if s.core.servers["bad"].state is State.STARTING:
            s.server_sends("bad", id=s.server_hears("bad", "initialize")["id"], error={"code": 1, "message": "no"})
            s.server_dies("bad")
    assert len(s.started) == 1


def test_a_server_that_does_not_read_is_told_nothing_more():
    s = Script(["git"])
    s.feed(mcpmux.ServerClogged("git", s.runs["git"], True))
    before = len(s.to_server["git"])
    for number in range(10):
        s.server_sends("git", id=number, method="ping")
    assert len(s.to_server["git"]) == before


def test_a_second_initialize_with_less_leaves_no_question_without_an_ending():
    s = Script(["git"], capabilities={"sampling": {}})
    s.host_asks("again", "initialize", protocolVersion="2025-11-25", capabilities={})
    samples(s, "git", "q")
    assert not any("a bug in mcpmux" in line for line in s.logged), s.logged
    assert s.answer_to_server("git", "q").is_error


def test_a_question_asked_before_a_waiting_call_was_sent_outlives_its_cancellation():
    """outside any call: the server has not even seen the call. On a restart calls wait in `waiting`."""
    s = Script(["git"], sampling=sampler())
    s.server_dies("git")
    s.host_asks(1, "tools/call", name="git__log")
    s.advance(0.55)
    assert s.server_heard("git", "tools/call") == []
    samples(s, "git", "q")
    s.host_sends(method="notifications/cancelled", params={"requestId": 1})
    assert s.withdrawn_from_model() == []
    s.model_answers(SPOKEN)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN


def test_an_over_long_answer_of_the_sampler_ends_its_question_at_once():
    s = Script(["git"], sampling=sampler())
    samples(s, "git", "q")
    head = b'{"jsonrpc":"2.0","id":%d,"result":{"a":"' % s.model_asked()[0]["id"]
    s.sampler_sends(mcpmux.TooLong(70_000_000, head, b'"}}'))
    assert s.answer_to_server("git", "q").is_error


@pytest.mark.parametrize("has_model", [False, True])
def test_members_that_are_null_are_none(has_model: bool):
    s = Script(["git"], capabilities={"sampling": {}}, sampling=sampler() if has_model else None)
    samples(s, "git", "q", ASKED | {"tools": None, "toolChoice": None})
    assert len(s.host_told("sampling/createMessage")) == 1


def test_a_minute_is_told_as_sixty_seconds():
    s = Script(["git"], sampling=sampler(timeout_sec=1, requests_per_minute=1))
    samples(s, "git", 1)
    s.model_answers(SPOKEN)
    samples(s, "git", 2)
    assert s.answer_to_server("git", 2)["error"]["data"]["retryAfterSeconds"] == 60


def test_a_tasks_question_outlives_another_call_that_is_cancelled():
    """2025-11-25, basic/utilities/tasks: related-task in `_meta` says which task asks, so no call does."""
    s = Script(["git"], sampling=sampler())
    s.host_asks(1, "tools/call", name="git__log", task={})
    s.server_answers("git", "tools/call", {"task": {"taskId": "t", "status": "working"}})
    s.host_asks(2, "tools/call", name="git__log")
    meta = {"io.modelcontextprotocol/related-task": {"taskId": "t"}}
    samples(s, "git", "q", ASKED | {"_meta": meta})
    s.host_sends(method="notifications/cancelled", params={"requestId": 2})
    assert s.withdrawn_from_model() == []


def test_where_the_host_may_not_be_asked_while_we_list_the_model_is():
    """Our choice, for `auto`: nobody would move if the host were asked now."""
    s = Script(["git"], capabilities={"sampling": {}}, sampling=sampler(), offers={"git": {"tools/list": ...}})
    samples(s, "git", "q")
    s.model_answers(SPOKEN)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN


def test_a_clogged_server_is_not_told_that_what_it_never_got_is_cancelled():
    """Our choice: its lists are read again when it reads again."""
    s = Script(["git"])
    s.server_sends("git", method="notifications/tools/list_changed")
    s.feed(mcpmux.ServerClogged("git", s.runs["git"], True))
    s.advance(0.2)
    s.feed(mcpmux.ServerClogged("git", s.runs["git"], False))
    s.advance(200)
    asked = {m["id"] for m in s.to_server["git"] if "method" in m and "id" in m}
    assert {m["params"]["requestId"] for m in s.server_heard("git", "notifications/cancelled")} <= asked
    assert len(s.server_heard("git", "tools/list")) == 2
