"""The life of a server: its handshake, its deaths, and its starting again.

https://modelcontextprotocol.io/specification/2025-11-25/basic/lifecycle
"""

from __future__ import annotations

from typing import Any

import pytest
from script import LEGACY, Script, tools

import mcpmux
from mcpmux import ServerOptions, State

# ── the handshake ──


@pytest.mark.requirement("greeting-revision")
def test_a_server_is_greeted_in_the_hosts_name_revision_and_capabilities():
    s = Script(["git"], capabilities={"roots": {"listChanged": True}, "x": 1.0}, revision="2025-03-26")
    greeting = s.server_hears("git", "initialize")
    assert b'{"protocolVersion":"2025-03-26","capabilities":{"roots":{"listChanged": true},"x":1.0}' in greeting.raw
    assert greeting["params"]["clientInfo"] == {"name": "script", "version": "1"}
    methods = [message["method"] for message in s.to_server["git"]]
    assert methods[:3] == ["initialize", "notifications/initialized", "tools/list"]


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


def test_a_server_that_dies_while_it_is_listed_is_started_again_by_a_call():
    s = Script(["git"], offers={"git": {"tools/list": ..., "prompts/list": []}})
    s.server_dies("git")
    s.offers["git"] = tools("log")
    s.host_asks(1, "tools/call", name="git__log")
    s.advance(1)
    s.server_answers("git", "tools/call")
    assert s.host_hears(1)["result"] == {}


def test_a_path_that_is_not_unicode_can_be_told():
    s = Script(["git"])
    s.host_asks(1, "tools/call", name="git__log")
    s.feed(mcpmux.ServerGone("git", s.runs["git"], "git: no \udcff", "", []))
    assert s.host_hears(1).text.startswith("mcpmux: git: no ?")


def test_a_server_that_refuses_its_handshake_is_not_started_at_every_call():
    s = Script({"bad": LEGACY}, silent=("bad",))
    for id in range(20):
        s.host_asks(id, "tools/call", name="bad__x")
        if s.core.servers["bad"].state is State.STARTING:
            s.server_sends("bad", id=s.server_hears("bad", "initialize")["id"], error={"code": 1, "message": "no"})
            s.server_dies("bad")
    assert len(s.started) == 1


def test_a_handshake_that_is_answered_while_mcpmux_ends_is_not_heard():
    s = Script(["git"], silent=("git",))
    number = s.server_hears("git", "initialize")["id"]
    s.feed(mcpmux.HostGone("end"))
    s.server_sends("git", id=number, result={"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}})
    assert s.core.servers["git"].state is State.STOPPING
