"""What servers ask of the host, and the answers' way back to them.

https://modelcontextprotocol.io/specification/2025-11-25/client
"""

from __future__ import annotations

from typing import Any

import pytest
from script import Script, samples, server, tools

from mcpmux import MuxOptions


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


def test_an_answer_of_the_host_that_cannot_be_read_ends_the_servers_question():
    s = Script(["git"], capabilities={"sampling": {}})
    s.server_sends("git", id="q", method="sampling/createMessage", params={"messages": [], "maxTokens": 1})
    number = s.host_told("sampling/createMessage")[0]["id"]
    before = len(s.to_host)
    s.host_sends(b'{"jsonrpc":"2.0","id":%d,"result":{"a":oops}}' % number)
    assert "cannot be read" in s.answer_to_server("git", "q").text
    assert len(s.to_host) == before


def test_a_second_initialize_with_less_leaves_no_question_without_an_ending():
    s = Script(["git"], capabilities={"sampling": {}})
    s.host_asks("again", "initialize", protocolVersion="2025-11-25", capabilities={})
    samples(s, "git", "q")
    assert not any("a bug in mcpmux" in line for line in s.logged), s.logged
    assert s.answer_to_server("git", "q").is_error


# ── right after the handshake, and while lists are read ──


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


def test_a_server_that_always_asks_something_is_listed_all_the_same():
    s = Script({"git": server(startup_timeout_sec=5)}, capabilities={"roots": {}}, begin=False)
    s.host_asks("init", "initialize", protocolVersion="2025-11-25", capabilities={"roots": {}})
    for number in range(7):
        s.server_sends("git", id=number, method="roots/list")
        s.advance(1)
    assert s.tools() == ["git__log"]


def test_a_waiting_completion_does_not_keep_a_server_from_its_roots():
    s = Script(["git"], capabilities={"roots": {}}, offers={"git": {"prompts/list": [{"name": "p"}]}})
    s.server_dies("git")
    s.host_asks(1, "completion/complete", ref={"type": "ref/prompt", "name": "git__p"}, argument={})
    s.advance(0.55)
    s.server_sends("git", id="r", method="roots/list")
    s.host_sends(id=s.host_told("roots/list")[0]["id"], result={"roots": []})
    assert s.answer_to_server("git", "r")["result"] == {"roots": []}
