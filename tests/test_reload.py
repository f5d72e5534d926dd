"""The config file changes while mcpmux runs. Our choice throughout."""

from __future__ import annotations

from typing import Any

import pytest
from script import TOOL, Script

from mcpmux import (
    ConfigChanged,
    ModelOptions,
    MuxOptions,
    SamplingOptions,
    ServerClogged,
    ServerGone,
    ServerOptions,
    State,
)


def table(*names: str, **more: ServerOptions) -> dict[str, ServerOptions]:
    return {name: ServerOptions(command=name) for name in names} | more


def reload(s: Script, servers: dict[str, ServerOptions], **more: Any) -> None:
    for name in servers:
        s.offers.setdefault(name, {"tools/list": [TOOL]})
        s.to_server.setdefault(name, [])
    broken: dict[str, str] = more.pop("broken", {})
    sampling: SamplingOptions | None = more.pop("sampling", None)
    s.feed(ConfigChanged(more.pop("options", MuxOptions()), servers, broken, sampling))


def test_an_unchanged_server_keeps_its_process_and_its_calls():
    s = Script(["git", "time"])
    s.host_asks(1, "tools/call", name="git__log")
    reload(s, table("new", "git"))
    s.advance(0.3)
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(1)["result"] == {"content": []}
    assert s.started == ["git", "time", "new"]
    assert s.stopped == ["time"]
    assert s.tools() == ["new__log", "git__log"]


def test_the_host_hears_of_changed_lists_once():
    s = Script(["git", "time"])
    s.tools()
    reload(s, table("git", "a", "b"))
    s.advance(5)
    assert len(s.host_told("notifications/tools/list_changed")) == 1
    reload(s, table("git", "a", "b"))
    s.advance(5)
    assert len(s.host_told("notifications/tools/list_changed")) == 1


def test_a_removed_servers_calls_end_with_the_reason_and_its_questions_are_withdrawn():
    s = Script(["git"], capabilities={"elicitation": {}})
    s.host_asks(1, "tools/call", name="git__log")
    s.server_sends("git", id="q", method="elicitation/create", params={"message": "?", "requestedSchema": {}})
    reload(s, {})
    assert "removed from the config" in s.host_hears(1).text
    assert s.host_told("notifications/cancelled")
    assert s.asks(2, "tools/call", name="git__log").is_error
    assert len(s.core.in_flight) == 0
    s.server_sends("git", method="notifications/tools/list_changed")
    s.server_dies("git", 0)


def test_a_changed_server_is_another_one_that_shows_the_formers_tools_until_it_is_listed():
    s = Script(["git"])
    s.tools()
    s.silent = {"git"}
    s.host_asks(1, "tools/call", name="git__log")
    reload(s, table(git=ServerOptions(command="git", args=["x"])))
    assert "has changed" in s.host_hears(1).text
    assert s.stopped == ["git"]
    assert s.started == ["git", "git"]
    assert s.runs["git"] == 2
    assert s.core.catalogue.tools
    s.silent.clear()
    s.offers["git"] = {"tools/list": [{**TOOL, "name": "other"}]}
    s._server_gets("git", s.server_hears("git", "initialize"))
    s.advance(0.3)
    assert s.tools() == ["git__other"]


def test_a_server_that_was_given_up_is_tried_again():
    s = Script(["git"])
    for _ in range(5):
        s.server_dies("git")
        s.advance(31)
        s.host_asks(f"call{len(s.started)}", "tools/call", name="git__log")
    s.core.servers["git"].state = State.FAILED
    reload(s, table("git"))
    assert s.core.servers["git"].state is State.IDLE


def test_a_table_that_breaks_fails_that_server_alone_and_one_that_is_mended_comes_back():
    s = Script(["git", "time"])
    reload(s, table("time"), broken={"git": "mcpmux.toml: mcp_servers.git.comand: unknown key"})
    assert s.tools() == ["time__log"]
    assert "comand" in s.asks(1, "tools/call", name="git__log").text
    reload(s, table("git", "time"))
    s.advance(0.3)
    assert s.tools() == ["git__log", "time__log"]


def test_other_options_rename_what_the_host_sees():
    s = Script(["git"])
    s.tools()
    reload(s, table("git"), options=MuxOptions(separator="-"))
    assert s.tools() == ["git-log"]
    assert len(s.host_told("notifications/tools/list_changed")) == 1


def test_a_call_parked_at_a_server_that_is_removed_ends_with_its_retry():
    s = Script(["git"], begin=False, capabilities={"elicitation": {"form": {}}})
    s.host_asks_modern(0, "tools/list")
    s.advance(0.3)
    s.host_asks_modern(1, "tools/call", name="git__log")
    s.server_sends("git", id="q", method="elicitation/create", params={"message": "?", "requestedSchema": {}})
    s.advance(0.02)
    state = s.host_hears(1)["result"]["requestState"]
    reload(s, {})
    s.host_asks_modern(2, "tools/call", name="git__log", requestState=state, inputResponses={})
    assert s.host_hears(2).is_error
    assert len(s.core.rounds) == 0
    assert len(s.core.in_flight) == 0


def test_a_list_that_waits_for_a_server_does_not_wait_for_one_that_is_removed_or_broken():
    for broken in ({}, {"git": "mcpmux.toml: mcp_servers.git.comand: unknown key"}):
        s = Script(["git", "time"], silent=("git",))
        s.host_asks(1, "tools/list")
        reload(s, table("time"), broken=broken)
        assert [tool["name"] for tool in s.host_hears(1)["result"]["tools"]] == ["time__log"]


def test_a_call_that_waits_for_a_server_is_refused_when_that_is_removed():
    s = Script(["git", "time"])
    s.server_dies("git")
    reload(s, table("time"))
    reload(s, table("time", "git"))
    s.silent = {"git"}
    s.host_asks(1, "tools/call", name="git__log")
    reload(s, table("time"))
    assert "git__log" in s.host_hears(1)["error"]["message"]
    assert not s.core.host.held


def test_the_end_of_a_removed_servers_process_is_not_that_of_one_with_its_name():
    s = Script(["git"])
    former = s.runs["git"]
    reload(s, {})
    reload(s, table("git"))
    s.advance(0.3)
    s.host_asks(1, "tools/call", name="git__log")
    s.feed(ServerGone("git", former, "git was killed", "look", []))
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(1)["result"] == {"content": []}


@pytest.mark.parametrize("kept", [("a",), ("b",), ("c",), ()])
@pytest.mark.parametrize("method", ["resources/read", "tasks/list"])
def test_a_request_that_several_servers_are_asked_ends_although_some_are_removed_meanwhile(
    method: str, kept: tuple[str, ...]
):
    s = Script(["a", "b", "c"])
    s.host_asks(1, method, **({"uri": "mem://x"} if method == "resources/read" else {}))
    s.server_answers("a", method, error={"code": -32002, "message": "not mine"})
    reload(s, table(*kept))
    for name in kept:
        if s.server_heard(name, method) and 1 not in s.answered:
            s.server_answers(name, method, error={"code": -32002, "message": "not mine"})
    answer = s.host_hears(1)
    assert "error" in answer or answer["result"] == {"tasks": []}
    assert len(s.core.in_flight) == 0


def test_a_bug_in_what_is_done_with_an_answer_still_ends_the_hosts_request(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    s = Script(["git", "time"])
    s.bugs_allowed = True
    s.host_asks(1, "tools/call", name="git__log")
    s.host_asks(2, "tools/call", name="git__log")
    s.host_asks(3, "tools/call", name="time__log")
    monkeypatch.setattr("mcpmux.wrap_structured", broken)
    for pending in s.core.in_flight:
        pending.wrapped = True
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(2)["error"]["code"] == -32603
    s.server_dies("git")
    s.server_answers("time", "tools/call", {"content": []})
    for id in (1, 3):
        assert s.host_hears(id).is_error
    assert len(s.core.in_flight) == 0


def test_a_changed_server_is_told_things_although_the_former_one_did_not_read():
    s = Script(["git"])
    s.feed(ServerClogged("git", s.runs["git"], True))
    assert "does not read" in s.asks(1, "tools/call", name="git__log").text
    reload(s, table(git=ServerOptions(command="git", args=["x"])))
    s.advance(0.3)
    s.host_asks(2, "tools/call", name="git__log")
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(2)["result"] == {"content": []}


def test_servers_that_leave_at_once_are_not_started_for_each_others_requests_and_a_new_one_is_no_former_one():
    first = Script(
        ["a", "c"], offers={name: {"resources/list": [{"uri": f"mem://{name}", "name": "x"}]} for name in "ac"}
    )
    known = {name: [first.saved[name]] for name in ("a", "c")}
    s = Script(["a", "c"], offers=first.offers, known=known)
    s.host_asks(1, "resources/read", uri="mem://unlisted")  # asked of one after the other
    s.advance(0.3)
    assert s.started == ["a"]
    reload(s, table(a=ServerOptions(command="other"), c=ServerOptions(command="other")))
    assert s.host_hears(1).is_error
    assert s.started == ["a", "a", "c"] and s.stopped == ["a"]
    assert s.runs == {"a": 2, "c": 1}


@pytest.mark.parametrize("is_added", [True, False])
def test_a_legacy_server_hears_at_its_next_use_whether_there_is_a_model(is_added: bool):
    """It is told in `initialize`; a modern one is told with each request."""
    model = SamplingOptions(models=[ModelOptions(model="a/b")], approve="never")
    s = Script(["git", "new"], modern=("new",), sampling=None if is_added else model)
    s.host_asks(1, "tools/call", name="git__log")
    s.host_asks(2, "tools/call", name="new__log")
    reload(s, table("git", "new"), sampling=model if is_added else None)
    s.advance(2)
    assert s.stopped == []  # not in the middle of a call
    s.server_answers("git", "tools/call", {"content": []})
    s.server_answers("new", "tools/call", {"content": []})
    assert s.host_hears(1)["result"] == {"content": []}
    s.advance(2)
    assert s.stopped == ["git"] and s.started == ["git", "new"]
    s.server_dies("git", 0)
    s.host_asks(3, "tools/call", name="git__log")
    s.advance(0.3)
    assert s.started == ["git", "new", "git"]
    assert ("sampling" in s.server_hears("git", "initialize")["params"]["capabilities"]) is is_added
    s.server_answers("git", "tools/call", {"content": []})
    s.advance(60)
    assert s.stopped == ["git"]
