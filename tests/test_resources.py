"""Resources: whose a URI is, and who hears of its updates.

https://modelcontextprotocol.io/specification/2025-11-25/server/resources
"""

from __future__ import annotations

import pytest
from script import RESOURCES, Script

import mcpmux


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
