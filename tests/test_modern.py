"""The core with a modern host and modern servers (2026-07-28), and each with a peer of the legacy era.

https://modelcontextprotocol.io/specification/2026-07-28/basic
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from script import PREFIX, TOOL, Message, Script, envelope

import mcpmux
from mcpmux import SamplingLimits, SamplingOptions, ServerOptions

ELICIT = {"message": "who?", "requestedSchema": {"type": "object", "properties": {}}}
FORM = {"elicitation": {"form": {}}}
ALL = {"elicitation": {"form": {}, "url": {}}, "sampling": {"tools": {}}, "roots": {}}


def modern_host(*servers: str, modern: tuple[str, ...] = (), **more: Any) -> Script:
    """A host that speaks 2026-07-28 only and has listed the tools."""
    s = Script(list(servers), modern=modern, begin=False, capabilities=more.pop("capabilities", ALL), **more)
    s.host_asks_modern("first", "tools/list")
    s.advance(0.3)
    return s


def called(s: Script, server: str) -> Message:
    return s.server_hears(server, "tools/call")


def state_of(answer: Message) -> str:
    assert answer["result"]["resultType"] == "input_required"
    return answer["result"]["requestState"]


# ── the envelope ──


@pytest.mark.requirement("versions-listed", "whole-envelope", "unsupported-version")
@pytest.mark.parametrize(
    ("meta", "code"),
    [
        ({PREFIX + "protocolVersion": "1900-01-01"}, -32022),
        ({PREFIX + "protocolVersion": 5}, -32602),
        ({PREFIX + "clientCapabilities": 5}, -32602),
        ({PREFIX + "logLevel": "loud"}, -32602),
    ],
)
def test_an_envelope_that_is_not_whole_is_refused(meta: dict[str, Any], code: int):
    """basic/index#meta, basic/versioning#protocol-version-negotiation."""
    s = Script(["git"], begin=False)
    answer = s.asks_modern(1, "tools/list", meta=meta)
    assert answer["error"]["code"] == code
    if code == -32022:
        assert answer["error"]["data"]["requested"] == "1900-01-01"
        assert answer["error"]["data"]["supported"] == ["2026-07-28"]


@pytest.mark.requirement("whole-envelope")
def test_an_envelope_without_capabilities_is_refused():
    s = Script(["git"], begin=False)
    s.host_asks(1, "tools/list", _meta={PREFIX + "protocolVersion": "2026-07-28"})
    assert s.host_hears(1)["error"]["code"] == -32602


@pytest.mark.requirement("gone-methods")
@pytest.mark.parametrize("method", ["ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"])
def test_what_the_modern_era_has_no_more_is_not_found(method: str):
    s = Script(["git"], begin=False)
    assert s.asks_modern(1, method, uri="x://1", level="info")["error"]["code"] == -32601


@pytest.mark.requirement("era-by-request")
def test_a_host_that_has_looked_may_still_initialize_and_use_both_eras():
    """basic/versioning#compatibility-matrix: the era goes with each request; `initialize` is always legacy."""
    s = Script(["git"], begin=False)
    s.asks_modern("look", "server/discover")
    answer = s.initialize(_meta=envelope({}))
    assert answer["result"]["protocolVersion"] == "2025-11-25"
    assert "resultType" not in answer["result"]
    assert s.asks(1, "ping").raw == b'{"jsonrpc":"2.0","id":1,"result":{}}'
    assert "resultType" not in s.asks(2, "tools/list")["result"]
    assert s.asks_modern(3, "tools/list")["result"]["resultType"] == "complete"
    assert s.asks(4, "server/discover")["error"]["code"] == -32601


@pytest.mark.requirement("modern-notifications")
def test_a_modern_hosts_notifications_are_never_answered():
    """basic/index#notifications."""
    s = modern_host("git")
    before = len(s.to_host)
    for method in ("notifications/cancelled", "notifications/unknown", "tools/list"):
        s.host_sends(method=method, params={"requestId": "none", "_meta": envelope(ALL)})
    assert len(s.to_host) == before


@pytest.mark.requirement("versions-listed", "discover-served", "caching")
def test_discover_says_who_we_are_and_starts_nothing():
    """server/discover; server/utilities/caching."""
    s = Script(["git"], begin=False)
    result = s.asks_modern(1, "server/discover")["result"]
    assert result["supportedVersions"] == ["2026-07-28"]
    assert result["resultType"] == "complete"
    assert (result["ttlMs"], result["cacheScope"]) == (0, "private")
    assert result["_meta"][PREFIX + "serverInfo"]["name"] == "mcpmux"
    assert result["capabilities"]["tools"] == {"listChanged": True}
    assert s.started == []


@pytest.mark.requirement("caching")
def test_what_may_be_cached_says_for_how_long_and_what_a_legacy_server_is():
    """server/utilities/caching; basic/index#meta."""
    offers = {"git": {"resources/list": [RESOURCE], "prompts/list": [{"name": "p"}]}}
    s = modern_host("git", offers=offers)
    for method in ("tools/list", "prompts/list", "resources/list", "resources/templates/list"):
        result = s.asks_modern(method, method)["result"]
        assert (result["ttlMs"], result["cacheScope"]) == (0, "private")
    s.host_asks_modern(1, "resources/read", uri="x://1")
    s.server_answers("git", "resources/read", {"contents": []})
    result = s.host_hears(1)["result"]
    assert (result["ttlMs"], result["cacheScope"]) == (0, "private")
    assert result["_meta"][PREFIX + "serverInfo"] == {"name": "git"}
    s.host_asks_modern(2, "prompts/get", name="git__p")
    s.server_answers("git", "prompts/get", {"messages": []})
    assert "ttlMs" not in s.host_hears(2)["result"]
    s.host_asks_modern(3, "resources/read", uri="x://1")
    asks_host(s)
    s.advance(0.02)
    assert s.host_hears(3)["result"]["resultType"] == "input_required"
    assert not {"ttlMs", "cacheScope"} & s.host_hears(3)["result"].keys()


@pytest.mark.requirement("client-info")
def test_a_host_that_does_not_say_who_it_is_is_called_by_our_name():
    """basic/index#meta: `clientInfo` is no required field."""
    for modern in ((), ("git",)):
        s = Script(["git"], modern=modern, begin=False)
        meta = {key: value for key, value in envelope({}).items() if not key.endswith("clientInfo")}
        s.host_asks(1, "tools/list", _meta=meta)
        s.advance(0.3)
        s.host_asks(2, "tools/call", name="git__log", _meta=meta)
        if modern:
            info = called(s, "git")["params"]["_meta"][PREFIX + "clientInfo"]
        else:
            info = s.server_hears("git", "initialize")["params"]["clientInfo"]
        assert info["name"] == "mcpmux"


@pytest.mark.requirement("plain-schemas")
def test_a_tools_own_output_schema_is_shown_to_a_modern_host_and_wrapped_for_a_legacy_one():
    """2026-07-28 allows schemas that are no objects; TypeScript's hosts of the legacy era refuse the whole list."""
    tool = {**TOOL, "outputSchema": {"type": "array"}}
    s = Script(["git"], offers={"git": {"tools/list": [tool]}})
    assert s.asks(1, "tools/list")["result"]["tools"][0]["outputSchema"]["type"] == "object"
    assert s.asks_modern(2, "tools/list")["result"]["tools"][0]["outputSchema"] == {"type": "array"}
    for id, ask in ((3, s.host_asks), (4, s.host_asks_modern)):
        ask(id, "tools/call", name="git__log")
        s.server_answers("git", "tools/call", {"content": [], "structuredContent": [1]})
    assert s.host_hears(3)["result"]["structuredContent"] == {"result": [1]}
    assert s.host_hears(4)["result"]["structuredContent"] == [1]


@pytest.mark.requirement("envelope-stays-modern", "result-type", "envelope-to-modern", "trace-context")
@pytest.mark.parametrize("modern", [(), ("git",)])
def test_a_modern_host_lists_and_calls_servers_of_both_eras(modern: tuple[str, ...]):
    s = modern_host("git", modern=modern)
    listed = s.host_hears("first")["result"]
    assert [tool["name"] for tool in listed["tools"]] == ["git__log"]
    assert (listed["resultType"], listed["ttlMs"], listed["cacheScope"]) == ("complete", 0, "private")
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"}
    s.host_asks_modern(2, "tools/call", name="git__log", arguments={"a": 1.0}, meta={"x/y": 1, **trace})
    params = called(s, "git")["params"]
    assert params["name"] == "log"
    assert params["_meta"]["x/y"] == 1
    assert params["_meta"]["traceparent"] == trace["traceparent"]
    assert (PREFIX + "protocolVersion" in params["_meta"]) is bool(modern)
    s.server_answers("git", "tools/call", {"content": [], **({"resultType": "complete"} if modern else {})})
    assert s.host_hears(2)["result"]["resultType"] == "complete"
    assert s.host_hears(2)["result"]["content"] == []


@pytest.mark.requirement("same-era-bytes")
def test_between_modern_peers_params_and_results_pass_byte_for_byte():
    s = modern_host("git", modern=("git",))
    capabilities = json.dumps(ALL, separators=(",", ":"))
    meta = (
        f'"_meta":{{"{PREFIX}protocolVersion":"2026-07-28","{PREFIX}clientInfo":{{"name":"h"}},'
        f'"{PREFIX}clientCapabilities":{capabilities},"z":1e2}}'
    )
    params = '"params":{"name":"git__log","arguments":{"b":1.0},' + meta + "}"
    s.host_sends(b'{"jsonrpc":"2.0","id":9,"method":"tools/call",' + params.encode() + b"}")
    assert b'"arguments":{"b":1.0},' + meta.encode() in called(s, "git").raw
    number = called(s, "git")["id"]
    result = b'{"x":1.50,"resultType":"complete","content":[],"_meta":{"b":1e3}}'
    s.server_sends("git", b'{"jsonrpc":"2.0","id":%d,"result":%b}' % (number, result))
    assert s.host_hears(9).raw == b'{"jsonrpc":"2.0","id":9,"result":%b}' % result


def test_a_result_without_a_type_is_given_one():
    """basic/index#resulttype: a client takes it for complete, a server has to say so."""
    s = modern_host("git", modern=("git",))
    s.host_asks_modern(1, "tools/call", name="git__log")
    s.server_answers("git", "tools/call", {"content": [], "x": 1})
    assert s.host_hears(1)["result"].items() >= {"resultType": "complete", "content": [], "x": 1}.items()


@pytest.mark.requirement("greeting-revision", "envelope-stays-modern")
def test_a_legacy_server_never_sees_an_envelope():
    """A Python server refuses one in its legacy era."""
    s = modern_host("git")
    s.host_asks_modern(1, "tools/call", name="git__log", inputResponses={}, meta={"progressToken": "p"})
    assert called(s, "git")["params"]["_meta"] == {"progressToken": called(s, "git")["id"]}
    assert "inputResponses" not in called(s, "git")["params"]
    assert s.server_hears("git", "initialize")["params"]["protocolVersion"] == "2025-11-25"


@pytest.mark.requirement("dead-state")
def test_a_request_state_that_nobody_gave_never_goes_to_a_legacy_server():
    s = modern_host("git")
    for state in ("theirs", "mcpmux:1.2.3"):
        answer = s.asks_modern(state, "tools/call", name="git__log", requestState=state)
        assert answer["error"]["code"] == -32602
    assert s.server_heard("git", "tools/call") == []


@pytest.mark.requirement("modern-codes", "defined-codes")
@pytest.mark.parametrize(("code", "becomes"), [(-32002, -32602), (-32050, -32603), (-32601, -32601), (-31000, -31000)])
def test_a_modern_host_hears_no_codes_of_the_legacy_era(code: int, becomes: int):
    """basic/index#error-codes."""
    s = modern_host("git")
    s.host_asks_modern(1, "tools/call", name="git__log")
    s.server_answers("git", "tools/call", error={"code": code, "message": "m", "data": 1})
    assert s.host_hears(1)["error"] == {"code": becomes, "message": "m", "data": 1}


@pytest.mark.requirement("modern-codes")
def test_our_own_refusals_have_codes_of_the_modern_era_too():
    """basic/index#error-codes: -32002 is of 2025-11-25."""
    s = modern_host("git", server_capabilities={"tools": {}})
    assert s.asks_modern(1, "resources/read", uri="x://nobody")["error"]["code"] == -32602
    assert s.asks_modern(2, "tools/list", cursor="c")["error"]["code"] == -32602


@pytest.mark.requirement("modern-host-hears", "subscription-content", "log-messages")
def test_a_modern_host_is_asked_nothing_and_told_nothing_it_did_not_want():
    s = modern_host("git")
    before = len(s.to_host)
    s.server_sends("git", method="notifications/message", params={"level": "error", "data": 1})
    s.server_sends("git", method="notifications/resources/updated", params={"uri": "x://1"})
    s.server_sends("git", method="notifications/elicitation/complete", params={"elicitationId": "1"})
    s.offers["git"] = {"tools/list": [TOOL, {**TOOL, "name": "new"}]}
    s.server_sends("git", method="notifications/tools/list_changed")
    s.server_sends("git", id=1, method="elicitation/create", params=ELICIT)
    s.advance(5)
    assert len(s.to_host) == before


# ── progress and log messages ──


@pytest.mark.requirement("log-level-crosses", "stateless-requests", "log-messages")
@pytest.mark.parametrize("modern", [(), ("git",)])
def test_log_messages_reach_a_modern_host_during_a_call_that_wants_them(modern: tuple[str, ...]):
    """server/utilities/logging."""
    s = modern_host("git", modern=modern)
    s.host_asks_modern(1, "tools/call", name="git__log", meta={PREFIX + "logLevel": "warning"})
    if modern:
        assert called(s, "git")["params"]["_meta"][PREFIX + "logLevel"] == "warning"
    else:
        assert s.server_hears("git", "logging/setLevel")["params"] == {"level": "warning"}
        order = [message.get("method") for message in s.to_server["git"]]
        assert order.index("logging/setLevel") < order.index("tools/call")
    for level in ("info", "error"):
        s.server_sends("git", method="notifications/message", params={"level": level, "data": level})
    assert [m["params"]["data"] for m in s.host_told("notifications/message")] == ["error"]
    assert s.host_told("notifications/message")[0]["params"]["logger"] == "git"
    s.server_answers("git", "tools/call", {"content": []})
    s.server_sends("git", method="notifications/message", params={"level": "error", "data": "late"})
    assert len(s.host_told("notifications/message")) == 1


@pytest.mark.requirement("log-level-crosses")
def test_a_legacy_hosts_log_level_goes_into_each_envelope():
    s = Script(["git"], modern=("git",))
    s.asks(1, "logging/setLevel", level="error")
    s.host_asks(2, "tools/call", name="git__log")
    assert called(s, "git")["params"]["_meta"][PREFIX + "logLevel"] == "error"


# ── finding a server's era ──


def hellos(s: Script, server: str) -> list[str]:
    return [
        message["method"]
        for message in s.to_server[server]
        if message.get("method") in ("initialize", "server/discover")
    ]


@pytest.mark.requirement("era-remembered")
def test_each_hosts_era_is_tried_first():
    assert hellos(Script(["git"]), "git") == ["initialize"]
    assert hellos(modern_host("git", modern=("git",)), "git") == ["server/discover"]


@pytest.mark.requirement("initialize-refused", "envelope-to-modern")
def test_a_modern_server_is_found_by_a_legacy_host_on_the_same_pipe():
    s = Script(["git"], modern=("git",))
    assert hellos(s, "git") == ["initialize", "server/discover"]
    assert s.tools() == ["git__log"]
    assert len(s.started) == 1


@pytest.mark.requirement("legacy-discover")
def test_a_legacy_server_is_found_by_a_modern_host_on_the_same_pipe():
    s = modern_host("git")
    assert hellos(s, "git") == ["server/discover", "initialize"]
    assert len(s.started) == 1


@pytest.mark.requirement("silent-discover")
def test_silence_is_no_answer_and_initialize_follows():
    """A cold npx is silent for 40 s."""
    s = Script(["git"], silent=("git",), begin=False)
    s.host_asks_modern(1, "tools/list")
    s.advance(9)
    assert hellos(s, "git") == ["server/discover"]
    s.advance(2)
    assert hellos(s, "git") == ["server/discover", "initialize"]
    s.silent.clear()
    first, second = (m for m in s.to_server["git"] if m.get("method") in ("initialize", "server/discover"))
    s.server_sends("git", id=first["id"], error={"code": -32601, "message": "?"})
    s._server_gets("git", second)
    s.advance(0.3)
    assert [tool["name"] for tool in s.host_hears(1)["result"]["tools"]] == ["git__log"]


@pytest.mark.requirement("silent-discover")
def test_a_slow_modern_server_is_found_by_its_refusal_of_initialize():
    s = Script(["git"], silent=("git",), begin=False)
    s.host_asks_modern(1, "tools/list")
    s.advance(11)
    s.silent.clear()
    s.modern.add("git")
    for message in [m for m in s.to_server["git"] if m.get("method") in ("initialize", "server/discover")]:
        s._server_gets("git", message)
    s.advance(0.3)
    assert [tool["name"] for tool in s.host_hears(1)["result"]["tools"]] == ["git__log"]


@pytest.mark.requirement("legacy-discover")
@pytest.mark.parametrize(
    "answer",
    [
        {"result": {"supportedVersions": ["2025-11-25"], "capabilities": {}}},
        {"error": {"code": -32022, "message": "no", "data": {"supported": ["2025-11-25"]}}},
        {"error": {"code": -31234, "message": "what?"}},
    ],
)
def test_a_server_that_names_no_modern_version_is_a_legacy_one(answer: dict[str, Any]):
    """basic/transports/stdio#backward-compatibility: whatever the code of its error."""
    s = Script(["git"], silent=("git",), begin=False)
    s.host_asks_modern(1, "tools/list")
    s.silent.clear()
    s.server_sends("git", id=s.server_hears("git", "server/discover")["id"], **answer)
    s.advance(0.3)
    assert hellos(s, "git") == ["server/discover", "initialize"]
    assert len(s.started) == 1
    assert [tool["name"] for tool in s.host_hears(1)["result"]["tools"]] == ["git__log"]


@pytest.mark.requirement("dies-of-discover")
def test_a_server_that_dies_of_the_question_is_started_afresh_as_a_legacy_one():
    s = Script(["git"], silent=("git",), begin=False)
    s.host_asks_modern(1, "tools/list")
    s.silent.clear()
    s.server_dies("git")
    s.advance(0.3)
    assert s.started == ["git", "git"]
    assert hellos(s, "git")[-1] == "initialize"
    assert [tool["name"] for tool in s.host_hears(1)["result"]["tools"]] == ["git__log"]


@pytest.mark.requirement("initialize-refused")
def test_a_server_that_its_first_request_has_locked_is_asked_in_a_fresh_process():
    """Python's servers answer -32600 to the other era after their first request."""
    s = Script(["git"], silent=("git",))
    for method in ("initialize", "server/discover"):
        s.server_answers("git", method, error={"code": -32600, "message": "locked"})
    assert s.stopped == ["git"]
    s.silent.clear()
    s.modern.add("git")
    s.server_dies("git", 0)
    s.advance(0.3)
    assert s.tools() == ["git__log"]
    assert s.core.servers["git"].modern


@pytest.mark.requirement("initialize-refused")
def test_what_a_server_asked_before_its_fresh_process_is_not_answered_to_that():
    s = Script(["git"], silent=("git",), capabilities=ALL)
    asks_host(s, "early")
    for method in ("initialize", "server/discover"):
        s.server_answers("git", method, error={"code": -32600, "message": "locked"})
    s.server_dies("git", 0)
    [asked] = s.host_told("elicitation/create")
    assert s.host_told("notifications/cancelled")[0]["params"]["requestId"] == asked["id"]
    s.host_sends(id=asked["id"], result=YES)
    assert not [message for message in s.to_server["git"] if "method" not in message]


@pytest.mark.requirement("era-remembered")
def test_what_was_found_is_remembered_until_it_fails():
    s = Script(["git"], modern=("git",))
    s.server_dies("git")
    s.advance(1)
    s.host_asks(1, "tools/call", name="git__log")
    assert hellos(s, "git") == ["initialize", "server/discover", "server/discover"]
    assert called(s, "git")["params"]["name"] == "log"


@pytest.mark.requirement("dies-of-discover")
def test_a_server_that_cannot_even_be_started_any_more_is_not_taken_for_one_that_died_of_the_question():
    """It would be started again and again without a rest."""
    s = modern_host("git", modern=("git",))
    s.server_dies("git")
    s.advance(1)
    asked = {"name": "git__log", "_meta": envelope(ALL)}
    line = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": asked}).encode()
    [start] = [one for one in s.core.handle(mcpmux.HostLines([line]), s.now) if isinstance(one, mcpmux.Start)]
    gone = mcpmux.ServerGone("git", start.run, "git: no such file", "look", [])
    effects = s.core.handle(gone, s.now)
    assert not [one for one in effects if isinstance(one, mcpmux.Start)]
    assert [one for one in effects if isinstance(one, mcpmux.SendHost)]


@pytest.mark.requirement("era-remembered")
@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_a_table_can_say_the_era(era: Any):
    tables = {"git": ServerOptions(command="git", protocol=era)}
    s = Script(tables, modern=("git",) if era == "modern" else ())
    assert hellos(s, "git") == [{"legacy": "initialize", "modern": "server/discover"}[era]]
    assert s.tools() == ["git__log"]


@pytest.mark.requirement("legacy-tasks")
def test_the_tasks_of_2025_11_25_are_told_only_from_legacy_to_legacy():
    """Whichever handshake was tried before."""
    s = Script(["git"], modern=("git",), capabilities={"tasks": {"list": {}}, "roots": {}})
    assert "tasks" in s.server_hears("git", "initialize")["params"]["capabilities"]
    s.host_asks(1, "tools/call", name="git__log")
    assert called(s, "git")["params"]["_meta"][PREFIX + "clientCapabilities"] == {"roots": {}}
    assert "tasks" not in s.asks_modern(2, "server/discover")["result"]["capabilities"]


@pytest.mark.requirement("unknown-result-type", "extensions-fall-back")
def test_a_result_type_that_nobody_knows_is_refused():
    """basic/index#resulttype."""
    s = modern_host("git", modern=("git",))
    s.host_asks_modern(1, "tools/call", name="git__log")
    s.server_answers("git", "tools/call", {"resultType": "riddle"})
    assert s.host_hears(1)["error"]["code"] == -32603
    s.host_asks_modern(2, "tools/call", name="git__log", capabilities={"extensions": {"x/y": {}}})
    s.server_answers("git", "tools/call", {"resultType": "riddle"})
    assert s.host_hears(2)["result"] == {"resultType": "riddle"}


# ── subscriptions ──


def listens(s: Script, id: Any, **wanted: Any) -> dict[str, Any]:
    s.host_asks_modern(id, "subscriptions/listen", notifications=wanted)
    told = [m for m in s.host_told("notifications/subscriptions/acknowledged") if subscription(m) == id]
    assert len(told) == 1
    return told[0]["params"]["notifications"]


def subscription(message: Message) -> Any:
    return message["params"]["_meta"][PREFIX + "subscriptionId"]


@pytest.mark.requirement("acknowledged-first")
def test_a_subscription_that_waits_for_the_lists_is_acknowledged_before_anything_else_of_it():
    """basic/patterns/subscriptions#acknowledgment."""
    offers = {"git": {"resources/list": [RESOURCE]}}
    s = Script(["git"], begin=False, offers=offers)
    wanted = {"toolsListChanged": True, "resourceSubscriptions": ["x://1"]}
    s.host_asks_modern("a", "subscriptions/listen", notifications=wanted)
    assert s.to_host == []
    s.advance(0.3)
    s.server_sends("git", method="notifications/resources/updated", params={"uri": "x://1"})
    told = [m for m in s.to_host if m.get("method")]
    assert told[0]["method"] == "notifications/subscriptions/acknowledged"
    assert told[0]["params"]["notifications"] == wanted
    assert told[-1]["method"] == "notifications/resources/updated"
    assert {subscription(m) for m in told} == {"a"}


@pytest.mark.requirement("subscription-end")
def test_a_subscription_without_a_filter_is_refused_and_a_cancelled_one_never_answered():
    """basic/patterns/subscriptions#opening-a-stream, #cancellation."""
    s = modern_host("git")
    assert s.asks_modern(1, "subscriptions/listen")["error"]["code"] == -32602
    listens(s, 2, toolsListChanged=True)
    s.host_sends(method="notifications/cancelled", params={"requestId": 2})
    s.offers["git"] = {"tools/list": [TOOL, {**TOOL, "name": "new"}]}
    s.server_sends("git", method="notifications/tools/list_changed")
    s.advance(3)
    s.feed(mcpmux.HostGone("bye"))
    assert not [m for m in s.to_host if m.get("id") == 2 or m.get("method") == "notifications/tools/list_changed"]


@pytest.mark.requirement("filter-keys", "subscription-id")
def test_what_only_extensions_know_of_a_filter_goes_to_modern_servers_and_task_ids_to_their_owner():
    """basic/versioning#extension-negotiation; the tasks extension."""
    tasks = {"extensions": {"io.modelcontextprotocol/tasks": {}}}
    s = modern_host("a", "b", modern=("a", "b"), capabilities=tasks)
    s.host_asks_modern(1, "tools/call", name="a__log")
    s.server_answers("a", "tools/call", {"resultType": "task", "taskId": "t1", "status": "working"})
    assert s.host_hears(1)["result"]["taskId"] == "t1"
    listens(s, 2, taskIds=["t1"], vendor={"x": 1})
    for server, owned in (("a", ["t1"]), ("b", [])):
        wanted = s.server_hears(server, "subscriptions/listen")["params"]["notifications"]
        assert wanted["taskIds"] == owned
        assert wanted["vendor"] == {"x": 1}
    meta = {PREFIX + "subscriptionId": s.server_hears("a", "subscriptions/listen")["id"]}
    s.server_sends("a", method="notifications/tasks", params={"taskId": "t1", "_meta": meta})
    [told] = s.host_told("notifications/tasks")
    assert subscription(told) == 2


RESOURCE = {"uri": "x://1", "name": "one"}


@pytest.mark.requirement("subscription-content")
@pytest.mark.parametrize("modern", [(), ("git",)])
def test_a_listener_hears_what_it_asked_for_and_nothing_else(modern: tuple[str, ...]):
    """basic/patterns/subscriptions."""
    offers = {"git": {"tools/list": [TOOL], "resources/list": [RESOURCE]}}
    s = modern_host("git", modern=modern, offers=offers)
    assert listens(s, "a", toolsListChanged=True) == {"toolsListChanged": True}
    wanted = {"resourceSubscriptions": ["x://1", "y://nobody"], "promptsListChanged": False}
    assert listens(s, 7, **wanted) == {"resourceSubscriptions": ["x://1"]}
    asked = "subscriptions/listen" if modern else "resources/subscribe"
    heard = s.server_hears("git", asked)["params"]
    assert (heard["notifications"]["resourceSubscriptions"] if modern else [heard["uri"]]) == ["x://1"]
    meta = {"_meta": {PREFIX + "subscriptionId": s.server_hears("git", asked)["id"]}} if modern else {}
    s.offers["git"]["tools/list"] = [TOOL, {**TOOL, "name": "new"}]
    for method in ("tools", "prompts", "resources"):
        s.server_sends("git", method=f"notifications/{method}/list_changed", params=dict(meta))
    s.server_sends("git", method="notifications/resources/updated", params={"uri": "x://1", **meta})
    s.advance(3)
    assert [subscription(m) for m in s.host_told("notifications/tools/list_changed")] == ["a"]
    assert [subscription(m) for m in s.host_told("notifications/resources/updated")] == [7]
    assert not s.host_told("notifications/resources/list_changed")
    s.host_sends(method="notifications/cancelled", params={"requestId": 7})
    s.server_sends("git", method="notifications/resources/updated", params={"uri": "x://1", **meta})
    assert len(s.host_told("notifications/resources/updated")) == 1
    if not modern:
        assert s.server_hears("git", "resources/unsubscribe")["params"] == {"uri": "x://1"}


@pytest.mark.requirement("subscription-end")
def test_subscriptions_end_with_their_result_when_we_stop():
    s = modern_host("git")
    listens(s, 5, toolsListChanged=True)
    s.feed(mcpmux.HostGone("bye"))
    result = s.host_hears(5)["result"]
    assert result["resultType"] == "complete"
    assert result["_meta"][PREFIX + "subscriptionId"] == 5


@pytest.mark.requirement("wider-filter", "subscription-id")
def test_a_wider_subscription_at_a_server_is_acknowledged_before_the_narrower_ends():
    offers = {"git": {"tools/list": [TOOL], "resources/list": [RESOURCE]}}
    s = Script(["git"], modern=("git",), offers=offers)
    first = s.server_hears("git", "subscriptions/listen")
    assert s.asks(1, "resources/subscribe", uri="x://1").raw == b'{"jsonrpc":"2.0","id":1,"result":{}}'
    second = s.server_hears("git", "subscriptions/listen")
    assert second["params"]["notifications"]["resourceSubscriptions"] == ["x://1"]
    ended = s.server_hears("git", "notifications/cancelled")["params"]["requestId"]
    assert ended == first["id"] != second["id"]
    meta = {PREFIX + "subscriptionId": second["id"]}
    s.server_sends("git", method="notifications/resources/updated", params={"uri": "x://1", "_meta": meta})
    assert s.host_told("notifications/resources/updated")[0]["params"] == {"uri": "x://1"}


@pytest.mark.requirement("listening-again", "restarted")
def test_a_server_that_ends_our_subscription_is_listened_to_again_with_backoff():
    s = Script(["git"], modern=("git",))
    for wait in (1, 1):
        listen = s.server_hears("git", "subscriptions/listen")
        s.server_sends("git", method="notifications/cancelled", params={"requestId": listen["id"]})
        before = len(s.server_heard("git", "subscriptions/listen"))
        s.advance(wait * 0.9)
        assert len(s.server_heard("git", "subscriptions/listen")) == before
        s.advance(wait * 0.2)
        assert len(s.server_heard("git", "subscriptions/listen")) == before + 1
    s.server_dies("git")
    s.advance(1)
    s.host_asks(1, "tools/call", name="git__log")
    assert len(s.server_heard("git", "subscriptions/listen")) == before + 2


# ── a legacy server's questions and a modern host ──


def asks_host(s: Script, id: Any = "q", method: str = "elicitation/create", params: Any = None) -> None:
    s.server_sends("git", id=id, method=method, params=ELICIT if params is None else params)


@pytest.mark.requirement("parked-progress", "elicitation-unchanged")
def test_a_legacy_servers_question_parks_the_call_and_the_retry_stands_for_it():
    s = modern_host("git")
    s.host_asks_modern(1, "tools/call", name="git__log", arguments={"a": 1}, meta={"progressToken": "old"})
    asks_host(s)
    s.advance(0.02)
    answer = s.host_hears(1)
    state = state_of(answer)
    [(key, request)] = answer["result"]["inputRequests"].items()
    assert request == {"method": "elicitation/create", "params": {**ELICIT, "message": "[git] who?"}}
    number = called(s, "git")["id"]
    s.server_sends("git", method="notifications/progress", params={"progressToken": number, "progress": 1})
    assert not s.host_told("notifications/progress")
    given = {"action": "accept", "content": {"name": "ada"}}
    s.host_asks_modern(
        2,
        "tools/call",
        name="git__log",
        arguments={"a": 1.0},
        requestState=state,
        inputResponses={key: given},
        meta={"progressToken": "new"},
    )
    assert s.answer_to_server("git", "q")["result"] == given
    s.server_sends("git", method="notifications/progress", params={"progressToken": number, "progress": 2})
    assert s.host_told("notifications/progress")[0]["params"]["progressToken"] == "new"
    s.server_sends("git", id=number, result={"content": []})
    assert s.host_hears(2)["result"]["resultType"] == "complete"
    assert len(s.server_heard("git", "tools/call")) == 1
    assert len(s.core.in_flight) == 0
    assert len(s.core.rounds) == 0


def parked(s: Script, *ids: str) -> tuple[str, list[str]]:
    s.host_asks_modern(1, "tools/call", name="git__log", arguments={})
    for id in ids:
        asks_host(s, id)
    s.advance(0.02)
    return state_of(s.host_hears(1)), list(s.host_hears(1)["result"]["inputRequests"])


def retry(s: Script, id: Any, state: str, answers: dict[str, Any], **more: Any) -> None:
    more = {"name": "git__log", "arguments": {}} | more
    s.host_asks_modern(id, "tools/call", requestState=state, inputResponses=answers, **more)


YES = {"action": "accept", "content": {}}


@pytest.mark.requirement("questions-together", "dead-state", "state-is-untrusted")
def test_questions_that_come_together_travel_together_and_missing_answers_are_asked_for_again():
    s = modern_host("git")
    state, keys = parked(s, "a", "b")
    assert len(keys) == 2
    retry(s, 2, state, {keys[1]: YES})
    assert s.answer_to_server("git", "b")["result"] == YES
    again = state_of(s.host_hears(2))
    assert again != state
    assert list(s.host_hears(2)["result"]["inputRequests"]) == [keys[0]]
    retry(s, 3, state, {keys[0]: YES})
    assert s.host_hears(3)["error"]["code"] == -32602
    retry(s, 4, again, {keys[0]: YES})
    assert s.answer_to_server("git", "a")["result"] == YES
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(4)["result"]["content"] == []


@pytest.mark.requirement("message-size-to-host")
def test_questions_that_are_more_together_than_hosts_take_are_refused_and_the_others_asked():
    """Our choice: host_message_mb."""
    s = modern_host("git", options=mcpmux.MuxOptions(host_message_mb=0.1))
    s.host_asks_modern(1, "tools/call", name="git__log", arguments={})
    for id in ("a", "b"):
        asks_host(s, id, params={**ELICIT, "message": "x" * 60_000})
    assert "larger than hosts take" in s.answer_to_server("git", "b").text
    s.advance(0.02)
    [key] = s.host_hears(1)["result"]["inputRequests"]
    retry(s, 2, state_of(s.host_hears(1)), {key: YES})
    assert s.answer_to_server("git", "a")["result"] == YES


@pytest.mark.requirement("state-bound", "state-is-untrusted")
@pytest.mark.parametrize("more", [{"arguments": {"b": 1}}, {"name": "git__other"}])
def test_a_retry_with_other_arguments_is_refused_and_the_right_one_still_works(more: dict[str, Any]):
    s = modern_host("git")
    state, [key] = parked(s, "a")
    retry(s, 2, state, {key: YES}, **more)
    assert s.host_hears(2)["error"]["code"] == -32602
    retry(s, 3, state, {key: YES})
    assert s.answer_to_server("git", "a")["result"] == YES


@pytest.mark.requirement("question-needs-capability", "stateless-requests")
def test_a_retry_is_asked_again_only_for_what_it_declares_itself():
    """basic/patterns/mrtr#server-requirements-basic-workflow: capabilities are those of the request."""
    s = modern_host("git", capabilities=ALL)
    s.host_asks_modern(1, "tools/call", name="git__log", arguments={})
    asks_host(s, "a")
    asks_host(s, "b", "roots/list", {})
    asks_host(s, "c", "sampling/createMessage", {"messages": [], "maxTokens": 1})
    s.advance(0.02)
    retry(s, 2, state_of(s.host_hears(1)), {}, capabilities={"sampling": {}})
    assert s.answer_to_server("git", "a")["result"] == {"action": "decline"}
    assert s.answer_to_server("git", "b")["error"]["code"] == -32601
    [request] = s.host_hears(2)["result"]["inputRequests"].values()
    assert request["method"] == "sampling/createMessage"


@pytest.mark.requirement("result-while-parked")
def test_a_result_that_comes_while_its_call_is_parked_is_kept_for_the_retry():
    s = modern_host("git")
    state, [key] = parked(s, "a")
    s.server_answers("git", "tools/call", {"content": [{"type": "text", "text": "never mind"}]})
    retry(s, 2, state, {key: YES})
    assert s.host_hears(2).text == "never mind"
    assert s.answer_to_server("git", "a")["result"] == YES


@pytest.mark.requirement("result-while-parked")
def test_a_question_that_outlives_its_call_waits_for_the_next_one():
    """Our choice: its server has neither withdrawn it nor been answered."""
    s = modern_host("git")
    state, _ = parked(s, "a")
    s.server_answers("git", "tools/call", {"content": []})
    retry(s, 2, state, {})
    assert s.host_hears(2)["result"]["content"] == []
    s.host_asks_modern(3, "tools/call", name="git__log", arguments={})
    s.advance(0.02)
    [key] = s.host_hears(3)["result"]["inputRequests"]
    retry(s, 4, state_of(s.host_hears(3)), {key: YES})
    assert s.answer_to_server("git", "a")["result"] == YES


@pytest.mark.requirement("dies-while-parked")
def test_a_server_that_dies_while_parked_fails_the_retry():
    s = modern_host("git")
    state, [key] = parked(s, "a")
    s.server_dies("git")
    retry(s, 2, state, {key: YES})
    assert s.host_hears(2).is_error
    assert "git exited with code 1" in s.host_hears(2).text
    assert len(s.core.in_flight) == 0


@pytest.mark.requirement("host-never-returns", "dead-state", "host-may-leave")
def test_a_host_that_never_comes_back_ends_the_call_and_the_question():
    s = modern_host("git")
    state, [key] = parked(s, "a")
    s.advance(601)
    assert s.answer_to_server("git", "a").is_error
    assert s.server_hears("git", "notifications/cancelled")["params"]["requestId"] == called(s, "git")["id"]
    retry(s, 2, state, {key: YES})
    assert s.host_hears(2)["error"]["code"] == -32602
    assert len(s.core.in_flight) == 0


@pytest.mark.requirement("withdrawn-question")
def test_a_question_that_is_withdrawn_leaves_the_call_to_go_on():
    s = modern_host("git")
    state, [key] = parked(s, "a")
    s.server_sends("git", method="notifications/cancelled", params={"requestId": "a"})
    retry(s, 2, state, {key: YES})
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(2)["result"]["content"] == []
    assert not [m for m in s.to_server["git"] if m.get("id") == "a"]


@pytest.mark.requirement("cancelled-retry")
def test_a_cancelled_retry_cancels_the_servers_call():
    s = modern_host("git")
    state, [key] = parked(s, "a")
    retry(s, 2, state, {key: YES})
    s.host_sends(method="notifications/cancelled", params={"requestId": 2})
    assert s.server_hears("git", "notifications/cancelled")["params"]["requestId"] == called(s, "git")["id"]
    assert len(s.core.in_flight) == 0


@pytest.mark.requirement("parked-once")
def test_a_question_outside_any_call_waits_for_the_next_one_or_for_30_s():
    s = modern_host("git")
    asks_host(s, "a")
    s.host_asks_modern(1, "tools/call", name="git__log", arguments={})
    s.advance(0.02)
    [key] = s.host_hears(1)["result"]["inputRequests"]
    retry(s, 2, state_of(s.host_hears(1)), {key: YES})
    assert s.answer_to_server("git", "a")["result"] == YES
    s.server_answers("git", "tools/call", {"content": []})
    asks_host(s, "b")
    s.advance(31)
    assert s.answer_to_server("git", "b").is_error


@pytest.mark.requirement("parked-once")
def test_a_second_question_while_all_calls_are_parked_travels_in_the_answer_to_the_next_retry():
    s = modern_host("git")
    state, [key] = parked(s, "a")
    asks_host(s, "b")
    s.advance(40)
    retry(s, 2, state, {key: YES})
    assert s.answer_to_server("git", "a")["result"] == YES
    s.advance(0.02)
    [other] = s.host_hears(2)["result"]["inputRequests"]
    retry(s, 3, state_of(s.host_hears(2)), {other: YES})
    assert s.answer_to_server("git", "b")["result"] == YES


def test_a_question_goes_to_another_call_if_the_one_that_it_joined_ends_meanwhile():
    """Our choice: which of its calls a legacy server asks for cannot be known, and the oldest is only a guess."""
    s = modern_host("git")
    for id in (1, 2):
        s.host_asks_modern(id, "tools/call", name="git__log", arguments={})
    asks_host(s, "a")
    s.server_sends("git", id=s.server_heard("git", "tools/call")[0]["id"], result={"content": []})
    assert s.host_hears(1)["result"]["content"] == []
    s.advance(0.02)
    [key] = s.host_hears(2)["result"]["inputRequests"]
    retry(s, 3, state_of(s.host_hears(2)), {key: YES})
    assert s.answer_to_server("git", "a")["result"] == YES


@pytest.mark.requirement("waiting-call-carries")
def test_a_call_that_waits_for_its_server_can_carry_what_that_asks_first():
    """server-filesystem refuses every path until its roots/list is answered."""
    s = Script(["git"], begin=False, capabilities=ALL)
    s.offers["git"]["tools/list"] = [TOOL]
    s.host_asks_modern("first", "tools/list")
    s.advance(0.3)
    s.server_dies("git")
    s.advance(1)
    s.host_asks_modern(1, "tools/call", name="git__log", arguments={})
    asks_host(s, "r", "roots/list", {})
    s.advance(0.02)
    [key] = s.host_hears(1)["result"]["inputRequests"]
    assert not s.server_heard("git", "tools/call")
    retry(s, 2, state_of(s.host_hears(1)), {key: {"roots": []}}, meta={"progressToken": "of the retry"})
    assert s.answer_to_server("git", "r")["result"] == {"roots": []}
    s.advance(0.2)
    call = called(s, "git")
    s.server_sends("git", method="notifications/progress", params={"progressToken": call["id"], "progress": 1})
    assert s.host_told("notifications/progress")[0]["params"]["progressToken"] == "of the retry"
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(2)["result"]["content"] == []


@pytest.mark.requirement("embedded-meta")
def test_what_a_question_says_of_its_own_connection_does_not_reach_a_modern_host():
    """The rest of `_meta` stays: a host may know a call by it."""
    s = modern_host("git")
    s.host_asks_modern(1, "tools/call", name="git__log")
    meta = {"progressToken": 1, PREFIX + "related-task": {"taskId": "t"}, "x/tool-call": "c"}
    asks_host(s, "a", params={**ELICIT, "task": {"ttl": 1}, "_meta": meta})
    s.advance(0.02)
    [request] = s.host_hears(1)["result"]["inputRequests"].values()
    assert request["params"] == {**ELICIT, "message": "[git] who?", "_meta": {"x/tool-call": "c"}}


@pytest.mark.requirement("undeclared-mode")
def test_a_mode_that_was_never_declared_is_an_error_and_one_that_this_call_lacks_a_no():
    """client/elicitation#capabilities."""
    s = modern_host("git", capabilities=FORM)
    s.host_asks_modern(1, "tools/call", name="git__log", capabilities=ALL)
    asks_host(s, "a", params={"mode": "url", "url": "https://x", "message": "m"})
    assert s.answer_to_server("git", "a")["error"]["code"] == -32602
    s = modern_host("git", capabilities=ALL)
    s.host_asks_modern(1, "tools/call", name="git__log", capabilities=FORM)
    asks_host(s, "a", params={"mode": "url", "url": "https://x", "message": "m"})
    assert s.answer_to_server("git", "a")["result"] == {"action": "decline"}


TASKS = {"extensions": {"io.modelcontextprotocol/tasks": {}}}


@pytest.mark.requirement("modern-tasks", "extensions-fall-back")
@pytest.mark.parametrize("makes_tasks", [True, False])
def test_where_a_call_may_become_a_task_of_the_modern_era_the_model_answers_nothing(makes_tasks: bool):
    """What is asked inside such a task is asked of the host, past us. Claude Code declares them in each request."""
    offered = {"tools": {}, **(TASKS if makes_tasks else {})}
    more: dict[str, Any] = {"sampling": SamplingOptions(), "server_capabilities": offered, "capabilities": TASKS}
    s = modern_host("git", modern=("git",), **more)
    s.host_asks_modern(1, "tools/call", name="git__log")
    assert ("sampling" in called(s, "git")["params"]["_meta"][PREFIX + "clientCapabilities"]) is not makes_tasks
    s.host_asks_modern(2, "tools/call", name="git__log", capabilities={})
    assert "sampling" in called(s, "git")["params"]["_meta"][PREFIX + "clientCapabilities"]


@pytest.mark.requirement("modern-tasks")
def test_a_legacy_server_makes_no_such_tasks_and_has_the_model():
    s = modern_host("git", sampling=SamplingOptions(), capabilities=TASKS)
    s.host_asks_modern(1, "tools/call", name="git__log")
    asks_host(s, "a", "sampling/createMessage", {"messages": [], "maxTokens": 1})
    s.model_answers({"role": "assistant", "content": [], "model": "m"})
    assert s.answer_to_server("git", "a")["result"]["model"] == "m"
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(1)["result"]["content"] == []


@pytest.mark.requirement("question-needs-capability")
def test_a_question_for_a_call_whose_host_cannot_answer_falls_back():
    s = modern_host("git")
    s.host_asks_modern(1, "tools/call", name="git__log", capabilities={})
    asks_host(s, "a")
    assert s.answer_to_server("git", "a")["result"] == {"action": "decline"}
    asks_host(s, "b", "roots/list", {})
    assert s.answer_to_server("git", "b")["error"]["code"] == -32601
    asks_host(s, "c", "sampling/createMessage", {"messages": [], "maxTokens": 1})
    assert s.answer_to_server("git", "c")["error"]["code"] == -32601


@pytest.mark.requirement("question-needs-capability")
def test_a_question_that_waited_for_a_call_falls_back_to_the_model_if_that_declares_no_sampling():
    s = modern_host("git", sampling=SamplingOptions())
    asks_host(s, "a", "sampling/createMessage", {"messages": [], "maxTokens": 1})
    assert s.model_asked() == []
    s.host_asks_modern(1, "tools/call", name="git__log", capabilities={})
    s.model_answers({"role": "assistant", "content": [], "model": "m"})
    assert s.answer_to_server("git", "a")["result"]["model"] == "m"
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(1)["result"]["content"] == []


@pytest.mark.requirement("methods-with-rounds")
def test_a_prompt_and_a_resource_can_be_parked_too():
    offers = {"git": {"prompts/list": [{"name": "p"}], "resources/list": [RESOURCE]}}
    for method, params in (("prompts/get", {"name": "git__p"}), ("resources/read", {"uri": "x://1"})):
        s = modern_host("git", offers=offers)
        s.host_asks_modern(1, method, **params)
        asks_host(s, "a")
        s.advance(0.02)
        [key] = s.host_hears(1)["result"]["inputRequests"]
        s.host_asks_modern(2, method, **params, requestState=state_of(s.host_hears(1)), inputResponses={key: YES})
        s.server_answers("git", method, {"contents": [], "messages": []})
        assert s.host_hears(2)["result"]["resultType"] == "complete"


# ── -32042 ──


PAGE = {"mode": "url", "elicitationId": "e1", "url": "https://x/1", "message": "log in"}
REQUIRED = {"code": -32042, "message": "first", "data": {"elicitations": [PAGE]}}


@pytest.mark.requirement("elicitation-id", "pages-become-questions")
def test_pages_to_be_visited_become_questions_and_the_retry_a_new_call():
    s = modern_host("git")
    s.host_asks_modern(1, "tools/call", name="git__log", arguments={})
    s.server_answers("git", "tools/call", error=REQUIRED)
    [(key, request)] = s.host_hears(1)["result"]["inputRequests"].items()
    assert request["params"] == {"mode": "url", "url": "https://x/1", "message": "[git] log in"}
    retry(s, 2, state_of(s.host_hears(1)), {key: {"action": "accept"}})
    assert len(s.server_heard("git", "tools/call")) == 1
    s.server_sends("git", method="notifications/elicitation/complete", params={"elicitationId": "e1"})
    assert len(s.server_heard("git", "tools/call")) == 2
    assert not s.host_told("notifications/elicitation/complete")
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(2)["result"]["content"] == []
    assert len(s.core.rounds) == 0


@pytest.mark.requirement("pages-become-questions", "decline-arrives")
def test_the_new_call_is_made_after_60_s_without_word_and_not_at_all_after_a_no():
    s = modern_host("git")
    s.host_asks_modern(1, "tools/call", name="git__log", arguments={})
    s.server_answers("git", "tools/call", error=REQUIRED)
    [key] = s.host_hears(1)["result"]["inputRequests"]
    retry(s, 2, state_of(s.host_hears(1)), {key: {"action": "accept"}})
    s.advance(61)
    assert len(s.server_heard("git", "tools/call")) == 2
    s.server_answers("git", "tools/call", error=REQUIRED)
    [key] = s.host_hears(2)["result"]["inputRequests"]
    retry(s, 3, state_of(s.host_hears(2)), {key: {"action": "decline"}})
    assert s.host_hears(3).is_error
    assert len(s.server_heard("git", "tools/call")) == 2


@pytest.mark.requirement("pages-become-questions")
def test_pages_that_are_required_while_the_call_is_parked_are_asked_for_on_the_retry():
    """-32042 is no code of the modern era (basic/index#error-codes)."""
    s = modern_host("git")
    state, [key] = parked(s, "a")
    s.server_answers("git", "tools/call", error=REQUIRED)
    retry(s, 2, state, {key: YES})
    [request] = s.host_hears(2)["result"]["inputRequests"].values()
    assert request["params"]["url"] == PAGE["url"]


@pytest.mark.requirement("pages-impossible", "request-capabilities")
def test_a_host_that_cannot_open_pages_is_told_what_is_missing():
    s = modern_host("git")
    s.host_asks_modern(1, "tools/call", name="git__log", capabilities=FORM)
    s.server_answers("git", "tools/call", error=REQUIRED)
    assert s.host_hears(1)["error"]["code"] == -32021
    assert s.host_hears(1)["error"]["data"] == {"requiredCapabilities": {"elicitation": {"url": {}}}}


@pytest.mark.requirement("pages-impossible", "defined-codes")
@pytest.mark.parametrize("elicitation", [True, False])
def test_pages_that_are_none_or_that_the_table_forbids_are_no_missing_capability(elicitation: bool):
    """basic/index#error-codes: a defined code only with its meaning."""
    s = Script({"git": ServerOptions(command="git", elicitation=elicitation)}, begin=False)
    s.host_asks_modern("first", "tools/list", capabilities=ALL)
    s.advance(0.3)
    s.host_asks_modern(1, "tools/call", name="git__log", capabilities=ALL)
    s.server_answers("git", "tools/call", error={**REQUIRED, "data": {}} if elicitation else REQUIRED)
    if elicitation:
        assert s.host_hears(1)["error"]["code"] == -32603
    else:
        assert 'its table says elicitation = "off"' in s.host_hears(1).text


@pytest.mark.requirement("pages-to-legacy")
def test_a_legacy_host_hears_of_pages_as_they_are_with_the_servers_name():
    s = Script(["git"], capabilities=ALL)
    s.host_asks(1, "tools/call", name="git__log")
    s.server_answers("git", "tools/call", error=REQUIRED)
    assert s.host_hears(1)["error"]["data"]["elicitations"] == [{**PAGE, "message": "[git] log in"}]


# ── a modern server's questions ──


def needs(s: Script, state: str | None = "theirs", **requests: Any) -> None:
    """The modern server ends the call with these questions."""
    result: dict[str, Any] = {"resultType": "input_required", "inputRequests": requests}
    s.server_answers("git", "tools/call", result | ({"requestState": state} if state is not None else {}))


ASK = {"method": "elicitation/create", "params": ELICIT}
ROOTS = {"method": "roots/list"}
SAMPLE = {"method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 1}}


@pytest.mark.requirement("retry-shape")
def test_a_legacy_host_is_asked_all_at_once_and_the_call_is_made_again():
    s = Script(["git"], modern=("git",), capabilities=ALL)
    s.host_asks(1, "tools/call", name="git__log", arguments={"a": 1.0}, _meta={"progressToken": "p"})
    first = called(s, "git")
    needs(s, a=ASK, b=ROOTS)
    [asked], [roots] = s.host_told("elicitation/create"), s.host_told("roots/list")
    assert asked["params"]["message"] == "[git] who?"
    s.host_sends(id=roots["id"], result={"roots": []})
    s.advance(400)
    assert not [m for m in s.to_host if m.get("id") == 1]
    s.host_sends(id=asked["id"], result=YES)
    again = called(s, "git")
    assert again["id"] != first["id"]
    assert again["params"]["inputResponses"] == {"b": {"roots": []}, "a": YES}
    assert again["params"]["requestState"] == "theirs"
    assert again["params"]["arguments"] == {"a": 1.0}
    assert again["params"]["_meta"]["progressToken"] == again["id"]
    needs(s, None, c=ASK)
    s.host_sends(id=s.host_told("elicitation/create")[-1]["id"], result=YES)
    third = called(s, "git")["params"]
    assert third["inputResponses"] == {"c": YES}
    assert "requestState" not in third
    s.server_answers("git", "tools/call", {"resultType": "complete", "content": []})
    assert s.host_hears(1)["result"]["content"] == []
    assert len(s.core.rounds) == 0


@pytest.mark.requirement("elicitation-id")
def test_a_page_has_an_elicitation_id_for_a_legacy_host_and_none_for_a_modern_one():
    """2025-11-25 requires it; 2026-07-28 has none."""
    page = {"method": "elicitation/create", "params": {"mode": "url", "url": "https://x", "message": "m"}}
    s = Script(["git"], modern=("git",), capabilities=ALL)
    for id in (1, 2):
        s.host_asks(id, "tools/call", name="git__log")
        needs(s, a=page)
    first, second = (m["params"] for m in s.host_told("elicitation/create"))
    assert first["elicitationId"] != second["elicitationId"]
    s.host_asks_modern(3, "tools/call", name="git__log")
    needs(s, a=page)
    assert "elicitationId" not in s.host_hears(3)["result"]["inputRequests"]["a"]["params"]


@pytest.mark.requirement("input-required")
@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("tools/call", {"inputRequests": {"a": {"method": "tools/list"}}}),
        ("tools/call", {"inputRequests": {"a": 5}}),
        ("completion/complete", {"requestState": "s"}),
    ],
)
def test_questions_that_may_not_be_asked_end_the_request_with_an_error(method: str, answer: dict[str, Any]):
    """basic/patterns/mrtr#supported-requests."""
    s = modern_host("git", modern=("git",), offers={"git": {"tools/list": [TOOL], "prompts/list": [{"name": "p"}]}})
    params: dict[str, Any] = {"name": "git__log"}
    if method == "completion/complete":
        params = {"ref": {"type": "ref/prompt", "name": "git__p"}, "argument": {"name": "a", "value": ""}}
    s.host_asks_modern(1, method, **params)
    s.server_answers("git", method, {"resultType": "input_required", **answer})
    assert s.host_hears(1).is_error
    assert len(s.core.rounds) == 0


@pytest.mark.requirement("answered-here")
def test_what_the_table_and_the_model_answer_a_legacy_host_never_sees():
    table = ServerOptions(command="git", roots=("file:///table",))
    s = Script({"git": table}, modern=("git",), sampling=SamplingOptions(), capabilities=FORM)
    s.host_asks(1, "tools/call", name="git__log")
    needs(s, a=ROOTS, b=SAMPLE, c=ASK)
    s.model_answers({"role": "assistant", "content": [], "model": "m"})
    assert len(s.server_heard("git", "tools/call")) == 1
    s.host_sends(id=s.host_told("elicitation/create")[0]["id"], result=YES)
    assert called(s, "git")["params"]["inputResponses"] == {
        "a": {"roots": [{"uri": "file:///table"}]},
        "b": {"role": "assistant", "content": [], "model": "m"},
        "c": YES,
    }
    assert not s.host_told("roots/list") and not s.host_told("sampling/createMessage")


@pytest.mark.requirement("answered-here")
def test_what_is_answered_here_is_kept_until_a_modern_host_brings_the_rest():
    s = modern_host("git", modern=("git",), sampling=SamplingOptions(), capabilities=FORM)
    s.host_asks_modern(1, "tools/call", name="git__log", arguments={})
    needs(s, b=SAMPLE, c=ASK)
    assert list(s.host_hears(1)["result"]["inputRequests"]) == ["c"]
    retry(s, 2, state_of(s.host_hears(1)), {"c": YES})
    assert len(s.server_heard("git", "tools/call")) == 1
    s.model_answers({"role": "assistant", "content": [], "model": "m"})
    params = called(s, "git")["params"]
    assert params["inputResponses"] == {"b": {"role": "assistant", "content": [], "model": "m"}, "c": YES}
    assert params["requestState"] == "theirs"
    s.server_answers("git", "tools/call", {"resultType": "complete", "content": []})
    assert s.host_hears(2)["result"]["content"] == []


@pytest.mark.requirement("modern-server-hears", "cancelled-notification")
def test_a_modern_server_is_told_of_what_is_cancelled_and_of_nothing_that_its_era_has_not():
    """basic/patterns/cancellation; basic/transports/stdio#cancellation."""
    s = Script(["git"], modern=("git",), capabilities={"roots": {"listChanged": True}})
    s.host_asks(1, "tools/call", name="git__log", _meta={"progressToken": "p"})
    number = called(s, "git")["id"]
    s.host_sends(method="notifications/cancelled", params={"requestId": 1, "reason": "enough"})
    assert s.server_hears("git", "notifications/cancelled")["params"] == {"requestId": number, "reason": "enough"}
    before = len(s.to_host)
    s.server_sends("git", method="notifications/progress", params={"progressToken": number, "progress": 1})
    s.server_sends("git", id=number, result={"resultType": "complete", "content": []})
    assert len(s.to_host) == before
    s.host_sends(method="notifications/roots/list_changed")
    s.server_sends("git", id=1, method="ping")
    assert {m.get("method") for m in s.to_server["git"]} == {
        "initialize",
        "server/discover",
        "subscriptions/listen",
        *mcpmux.LISTS,
        "tools/call",
        "notifications/cancelled",
    }


@pytest.mark.requirement("error-ends-call")
def test_a_refusal_of_the_host_ends_the_call_and_the_other_questions():
    s = Script(["git"], modern=("git",), capabilities=ALL)
    s.host_asks(1, "tools/call", name="git__log")
    needs(s, a=ASK, b=SAMPLE)
    s.host_sends(id=s.host_told("sampling/createMessage")[0]["id"], error={"code": -1, "message": "User rejected"})
    assert s.host_hears(1).is_error
    assert "User rejected" in s.host_hears(1).text
    gone = s.host_told("notifications/cancelled")[0]["params"]["requestId"]
    assert gone == s.host_told("elicitation/create")[0]["id"]
    assert len(s.server_heard("git", "tools/call")) == 1
    assert len(s.core.rounds) == 0
    assert [one.method for one in s.core.in_flight] == ["subscriptions/listen"]


@pytest.mark.requirement("cancelled-retry")
def test_a_host_that_cancels_meanwhile_is_asked_no_more():
    s = Script(["git"], modern=("git",), capabilities=ALL)
    s.host_asks(1, "tools/call", name="git__log")
    needs(s, a=ASK)
    s.host_sends(method="notifications/cancelled", params={"requestId": 1})
    assert s.host_told("notifications/cancelled")
    s.host_sends(id=s.host_told("elicitation/create")[0]["id"], result=YES)
    assert len(s.server_heard("git", "tools/call")) == 1
    assert len(s.core.rounds) == 0


@pytest.mark.requirement("cancelled-retry", "modern-server-hears")
def test_when_another_call_is_cancelled_the_questions_of_this_one_stay_open():
    """A modern server's questions are its call's, and it is sent no answers (basic/transports/stdio)."""
    s = Script(["git"], modern=("git",), capabilities=ALL)
    s.host_asks(1, "tools/call", name="git__log")
    first = called(s, "git")
    s.host_asks(2, "tools/call", name="git__log")
    s.server_sends("git", id=first["id"], result={"resultType": "input_required", "inputRequests": {"a": ASK}})
    s.host_sends(method="notifications/cancelled", params={"requestId": 2})
    assert not s.host_told("notifications/cancelled")
    s.host_sends(id=s.host_told("elicitation/create")[0]["id"], result=YES)
    assert called(s, "git")["params"]["inputResponses"] == {"a": YES}
    assert not [message for message in s.to_server["git"] if "method" not in message]


@pytest.mark.requirement("modern-server-hears")
def test_a_modern_server_hears_no_progress_of_the_host():
    """basic/patterns: a client sends it requests, and notifications that end them."""
    s = Script(["git"], modern=("git",), capabilities=ALL)
    s.host_asks(1, "tools/call", name="git__log")
    needs(s, a={"method": "elicitation/create", "params": {**ELICIT, "_meta": {"progressToken": 7}}})
    token = s.host_told("elicitation/create")[0]["params"]["_meta"]["progressToken"]
    s.host_sends(method="notifications/progress", params={"progressToken": token, "progress": 1})
    assert not s.server_heard("git", "notifications/progress")


@pytest.mark.requirement("rounds-end", "retry-shape")
def test_a_round_with_a_state_only_is_tried_again_after_a_moment():
    s = Script(["git"], modern=("git",))
    s.host_asks(1, "tools/call", name="git__log")
    s.server_answers("git", "tools/call", {"resultType": "input_required", "requestState": "wait"})
    assert len(s.server_heard("git", "tools/call")) == 1
    s.advance(0.25)
    assert called(s, "git")["params"]["requestState"] == "wait"
    assert "inputResponses" not in called(s, "git")["params"]


@pytest.mark.requirement("error-ends-call")
def test_questions_that_nobody_answers_end_their_call_once_even_if_their_time_is_up_together():
    """Our choice: input_timeout_sec."""
    s = Script(["git"], modern=("git",), capabilities=ALL)
    s.host_asks(1, "tools/call", name="git__log")
    needs(s, a=ASK, b=ASK, c=ROOTS)
    s.advance(601)
    assert s.host_hears(1).is_error
    assert len(s.host_told("notifications/cancelled")) == 3
    assert len(s.core.rounds) == 0


@pytest.mark.requirement("rounds-end")
def test_a_server_that_never_has_enough_is_stopped_after_ten_rounds():
    s = Script(["git"], modern=("git",))
    s.host_asks(1, "tools/call", name="git__log")
    for _ in range(12):
        if len(s.answered) < 2:
            s.server_answers("git", "tools/call", {"resultType": "input_required", "requestState": "more"})
            s.advance(0.3)
    assert s.host_hears(1).is_error
    assert len(s.server_heard("git", "tools/call")) == 11


@pytest.mark.requirement("foreign-state", "elicitation-unchanged")
def test_between_modern_peers_questions_pass_with_the_servers_name_and_nothing_is_kept():
    s = modern_host("git", modern=("git",))
    s.host_asks_modern(1, "tools/call", name="git__log", arguments={})
    needs(s, a=ASK, b=ROOTS)
    assert s.host_hears(1)["result"] == {
        "resultType": "input_required",
        "inputRequests": {"a": {**ASK, "params": {**ELICIT, "message": "[git] who?"}}, "b": ROOTS},
        "requestState": "theirs",
    }
    assert len(s.core.rounds) == 0
    retry(s, 2, "theirs", {"a": YES, "b": {"roots": []}})
    assert called(s, "git")["params"]["requestState"] == "theirs"
    assert called(s, "git")["params"]["inputResponses"] == {"a": YES, "b": {"roots": []}}


def test_a_modern_hosts_call_that_cannot_be_fulfilled_ends_with_a_result_of_that_era():
    """basic/index#resulttype: each result says what kind it is, also one that mcpmux made."""
    s = modern_host("git", modern=("git",), capabilities={})
    s.host_asks_modern(1, "tools/call", name="git__log", arguments={})
    needs(s, a=ROOTS)
    assert s.host_hears(1).is_error
    assert s.host_hears(1)["result"]["resultType"] == "complete"


def test_a_model_that_fails_while_the_host_is_asked_the_rest_fails_the_retry():
    s = modern_host("git", modern=("git",), capabilities={"roots": {}}, sampling=SamplingOptions())
    s.host_asks_modern(1, "tools/call", name="git__log", arguments={})
    needs(s, a=ROOTS, b=SAMPLE)
    assert s.host_hears(1)["result"]["inputRequests"] == {"a": ROOTS}
    s.model_answers(error={"code": -32603, "message": "no credit"})
    retry(s, 2, state_of(s.host_hears(1)), {"a": {"roots": []}})
    assert "no credit" in s.host_hears(2).text
    assert s.host_hears(2)["result"]["resultType"] == "complete"
    assert len(s.server_heard("git", "tools/call")) == 1
    assert len(s.core.rounds) == 0


@pytest.mark.requirement("error-ends-call")
def test_a_question_that_cannot_be_answered_here_ends_the_call_before_the_host_is_asked_the_rest():
    """An answer that is an error cannot be given to a modern server."""
    sampling = SamplingOptions(timeout_sec=1, limits=SamplingLimits(requests_per_minute=1))
    s = modern_host("git", modern=("git",), capabilities=FORM, sampling=sampling)
    s.host_asks_modern(1, "tools/call", name="git__log")
    needs(s, a=SAMPLE, b=SAMPLE, c=ASK)
    assert s.host_hears(1).is_error
    assert "requests_per_minute" in s.host_hears(1).text
    assert s.host_hears(1)["result"]["resultType"] == "complete"
    assert s.to_model == []
    assert len(s.core.rounds) == 0


@pytest.mark.requirement("foreign-state")
def test_a_servers_state_that_looks_like_ours_comes_back_to_it_as_it_was():
    s = modern_host("git", modern=("git",))
    s.host_asks_modern(1, "tools/call", name="git__log", arguments={})
    needs(s, "mcpmux:1.1.", a=ASK)
    state = state_of(s.host_hears(1))
    assert state != "mcpmux:1.1."
    retry(s, 2, state, {"a": YES})
    assert called(s, "git")["params"]["requestState"] == "mcpmux:1.1."
    assert called(s, "git")["params"]["inputResponses"] == {"a": YES}


@pytest.mark.requirement("result-type", "input-required")
@pytest.mark.parametrize("result", [{"resultType": "input_required"}, {"content": []}])
def test_every_result_to_a_modern_host_has_its_type(result: dict[str, Any]):
    """basic/index#resulttype: also our own word on a result that is none, and one of a server that gives no type."""
    s = modern_host("git", modern=("git",))
    s.host_asks_modern(1, "tools/call", name="git__log")
    s.server_answers("git", "tools/call", result)
    assert s.host_hears(1).is_error is ("resultType" in result)
    assert s.host_hears(1)["result"]["resultType"] == "complete"


def test_a_server_that_died_meanwhile_is_started_again_for_the_retry():
    s = Script(["git"], modern=("git",), capabilities=ALL)
    s.host_asks(1, "tools/call", name="git__log")
    needs(s, a=ASK)
    s.server_dies("git")
    s.host_sends(id=s.host_told("elicitation/create")[0]["id"], result=YES)
    s.advance(1)
    assert called(s, "git")["params"]["inputResponses"] == {"a": YES}


@pytest.mark.requirement("same-era-bytes", "stateless-requests", "request-capabilities")
def test_a_modern_hosts_envelope_is_never_invented():
    """The capabilities that a request declares go on as they are."""
    s = modern_host("git", modern=("git",))
    s.host_asks_modern(1, "tools/call", name="git__log", capabilities=FORM)
    told = called(s, "git")["params"]["_meta"]
    assert {key: told[key] for key in envelope(FORM)} == envelope(FORM)


def test_a_state_that_a_legacy_server_never_gave_ends_the_call_and_takes_no_question_along():
    declared: dict[str, Any] = {"elicitation": {}}
    s = Script(["old"], begin=False)
    s.asks_modern("d", "server/discover")
    s.host_asks_modern("l", "tools/list", declared)
    s.advance(0.3)
    params = {"message": "?", "requestedSchema": {"type": "object", "properties": {}}}
    s.server_sends("old", id="q", method="elicitation/create", params=params)
    refused = s.asks_modern(1, "tools/call", capabilities=declared, name="old__log", requestState="x")
    assert refused["error"]["code"] == -32602
    s.host_asks_modern(2, "tools/call", declared, name="old__log")
    s.advance(0.1)
    assert list(s.host_hears(2)["result"]["inputRequests"])


@pytest.mark.requirement("waiting-call-carries", "whole-envelope")
def test_a_call_parked_before_its_server_is_ready_reaches_it_in_its_era():
    """A server may ask before it has answered `initialize`; by then its call has no request of the host's."""
    s = modern_host("git")
    s.server_dies("git")
    s.silent.add("git")
    s.host_asks_modern(1, "tools/call", name="git__log", arguments={}, meta={"mine": 1})
    s.advance(1)
    asks_host(s, "q")
    s.advance(0.02)
    state, [key] = state_of(s.host_hears(1)), s.host_hears(1)["result"]["inputRequests"]
    opened = s.server_hears("git", "initialize")
    revision = opened["params"]["protocolVersion"]
    result = {"protocolVersion": revision, "capabilities": s.server_capabilities, "serverInfo": {"name": "git"}}
    s.server_sends("git", id=opened["id"], result=result)
    s.advance(31)  # startup_timeout_sec
    assert called(s, "git")["params"]["_meta"] == {"mine": 1}
    retry(s, 2, state, {key: YES}, meta={"mine": 1})
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(2)["result"]["content"] == []
