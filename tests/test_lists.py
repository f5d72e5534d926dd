"""Servers' lists: how they are read, and what of their changes the host hears.

https://modelcontextprotocol.io/specification/2025-11-25/server
"""

from __future__ import annotations

from typing import Any

import pytest
from script import TOOL, Script, server, tools

import mcpmux


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


def test_a_server_that_changed_while_it_was_away_is_announced():
    s = Script(["git"])
    s.tools()
    s.server_dies("git")
    s.offers["git"] = tools("log", "new")
    s.host_asks(1, "tools/call", name="git__log")
    s.advance(1)
    assert len(s.host_told("notifications/tools/list_changed")) == 1


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


def test_a_late_server_that_answers_after_all_is_waited_for_until_it_is_listed():
    """As `mcpmux check` does: it would count no tools."""
    s = Script({"npx": server(startup_timeout_sec=5)}, silent=("npx",), offers={"npx": {"tools/list": ...}})
    s.advance(6)
    assert not s.core.servers["npx"].settling
    number = s.server_hears("npx", "initialize")["id"]
    s.server_sends("npx", id=number, result={"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}})
    assert s.core.servers["npx"].settling
    s.host_asks(1, "tools/call", name="npx__log")
    s.advance(1)
    s.server_answers("npx", "tools/list", {"tools": [TOOL]})
    assert not s.core.servers["npx"].settling
    s.server_answers("npx", "tools/call", {"content": []})
    assert s.host_hears(1)["result"] == {"content": []}


def test_lists_that_a_server_no_longer_declares_are_gone_after_its_restart():
    s = Script(["git"], offers={"git": {"tools/list": [TOOL], "prompts/list": [{"name": "p"}]}})
    assert s.asks(1, "prompts/list")["result"]["prompts"]
    s.server_dies("git")
    s.server_capabilities = {"tools": {}}
    s.host_asks(2, "tools/call", name="git__log")
    s.advance(1)
    assert len(s.host_told("notifications/prompts/list_changed")) == 1
    assert s.asks(3, "prompts/list")["result"]["prompts"] == []


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
