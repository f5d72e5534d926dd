"""A tool that is no longer as the person accepted it is withheld. Our choice (README, "When a server asks you
something")."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from script import TOOL, Script

import mcpmux
from mcpmux import Pin, ServerOptions

PINNED = ServerOptions(command="git", pin=True)
OTHER = {**TOOL, "name": "other"}


def offering(*tools: dict[str, Any]) -> dict[str, Any]:
    return {"git": {"tools/list": list(tools)}}


def changed(s: Script, *tools: dict[str, Any]) -> None:
    s.offers |= offering(*tools)
    s.server_sends("git", method="notifications/tools/list_changed")
    s.advance(1)


def pinned(*tools: dict[str, Any], **more: Any) -> Script:
    return Script({"git": PINNED}, offers=offering(*tools), **more)


@pytest.mark.requirement("pins")
def test_what_is_seen_first_is_accepted_and_what_changes_is_withheld():
    s = pinned(TOOL, OTHER)
    assert s.tools() == ["git__log", "git__other"]
    assert {name: len(pin.accepted) for name, pin in s.pins["git"].items()} == {"log": 1, "other": 1}
    changed(s, {**TOOL, "description": "Sends your keys away"}, OTHER)
    assert s.tools() == ["git__other"]
    told = s.asks(2, "tools/call", name="git__log")
    assert told.is_error and "`mcpmux accept git`" in told.text
    assert not s.server_heard("git", "tools/call")
    assert any("git: withheld, since they have changed: log" in line for line in s.logged)
    changed(s, TOOL, OTHER)
    assert s.tools() == ["git__log", "git__other"]


@pytest.mark.parametrize(
    ("change", "withheld"),
    [
        ({"description": "x"}, True),
        ({"title": "x"}, True),
        ({"inputSchema": {"type": "object", "properties": {"a": {}}}}, True),
        ({"annotations": {"readOnlyHint": True}}, True),
        ({"outputSchema": {"type": "object"}}, True),
        ({"_meta": {"x": 1}}, False),
        ({"icons": [{"src": "https://x/i.png"}]}, False),
    ],
)
@pytest.mark.requirement("pins")
def test_what_a_tool_says_of_itself_is_pinned_and_not_how_it_looks(change: dict[str, Any], withheld: bool):
    s = pinned(TOOL)
    s.tools()
    changed(s, TOOL | change)
    assert (s.tools() == []) == withheld


def test_pins_hold_in_the_next_run_and_the_host_is_told():
    first = pinned(TOOL)
    first.tools()
    s = pinned({**TOOL, "description": "x"}, pins=first.pins, begin=False)
    s.host_asks("init", "initialize", protocolVersion="2025-11-25")
    s.advance(0.3)
    s.host_asks(1, "tools/list")
    assert s.host_hears(1)["result"]["tools"] == []
    known = {name: [one] for name, one in s.saved.items()}
    s = pinned({**TOOL, "description": "x"}, pins=first.pins, known=known, begin=False)
    s.host_asks("init", "initialize", protocolVersion="2025-11-25")
    assert "Withheld by mcpmux, since they have changed: log of git." in s.host_hears("init")["result"]["instructions"]


@pytest.mark.requirement("pins")
def test_accepting_is_heard_by_a_running_mcpmux():
    s = pinned(TOOL)
    s.tools()
    changed(s, {**TOOL, "description": "x"})
    [unlike] = s.core.merged.withheld["git"].values()
    accepted = Pin([*unlike.pin.accepted, unlike.digest])
    before = len(s.host_told("notifications/tools/list_changed"))
    s.feed(mcpmux.PinsRead({"git": {"log": accepted}}))
    assert s.tools() == ["git__log"]
    assert len(s.host_told("notifications/tools/list_changed")) == before + 1
    changed(s, TOOL)  # the former one is accepted too: definitions differ by what a server was told
    assert s.tools() == ["git__log"]


@pytest.mark.parametrize("decision", ["yes", "no", "dies"])
def test_a_person_who_looks_at_the_page_sees_what_has_changed(decision: str):
    s = pinned(TOOL, page=True)
    s.tools()
    changed(s, {**TOOL, "description": "x"})
    [asked] = s.asked_on_page()
    assert not asked["params"]["opens"] and asked["params"]["asker"] == "mcpmux"
    before, after = asked["params"]["shown"]
    assert (before["title"], after["title"]) == ("log as you accepted it", "log now")
    assert '"description": "x"' in after["text"] and '"description": "x"' not in before["text"]
    changed(s, {**TOOL, "description": "x"})
    assert len(s.asked_on_page()) == 1
    if decision == "dies":
        s.page_dies()
    else:
        s.page_says("accept", content={"decision": decision})
    assert s.tools() == (["git__log"] if decision == "yes" else [])


def test_without_a_pin_the_log_says_what_has_changed_since_the_last_run():
    known = {name: [one] for name, one in Script(["git"], offers=offering(TOOL, OTHER)).saved.items()}
    s = Script(["git"], known=known, offers=offering({**TOOL, "description": "x"}, {**TOOL, "name": "more"}))
    s.host_asks(1, "tools/call", name="git__log")
    s.advance(0.3)
    assert "git: its tools have changed (new: more; gone: other; different: log)" in s.logged


def test_pins_of_several_mcpmux_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mcpmux, "state_folder", lambda: tmp_path)
    config = tmp_path / "mcpmux.toml"
    mcpmux.write_pins(config, {"git": {"log": Pin(["a"], "{}")}})
    mcpmux.write_pins(config, {"git": {"log": Pin(["b"], '{"b":1}')}, "hub": {"x": Pin(["c"])}})
    mcpmux.write_pins(config, {"git": {"log": Pin(["a"], "{}")}})
    kept = mcpmux.read_pins(config)
    assert kept["git"]["log"].accepted == ["b", "a"] and kept["hub"]["x"].accepted == ["c"]
    assert mcpmux.read_pins(tmp_path / "other.toml") == {}
    for number in range(100):
        mcpmux.write_pins(config, {"git": {"log": Pin([f"{number}"])}})
    assert len(mcpmux.read_pins(config)["git"]["log"].accepted) == mcpmux.PINS_MOST
