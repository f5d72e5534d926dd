"""Revisions and capabilities, as values. https://modelcontextprotocol.io/specification/2025-11-25/basic/lifecycle"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

import mcpmux
from mcpmux import ServerOptions


def raw(capabilities: dict[str, Any]) -> mcpmux.Fields:
    return mcpmux.fields_of(msgspec.json.encode(capabilities))


def told(host: dict[str, Any], **table: Any) -> dict[str, Any]:
    options = ServerOptions(command="x", **table)
    return json.loads(mcpmux.encode(mcpmux.capabilities_for_server(raw(host), options)))


@pytest.mark.parametrize("revision", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
def test_a_known_revision_is_answered_with_itself(revision: str):
    """2025-11-25, basic/lifecycle#version-negotiation: MUST respond with the same version if it is supported."""
    assert mcpmux.negotiate(revision) == revision


@pytest.mark.parametrize("revision", ["1.0", "2099-01-01", "2026-07-28", ""])
def test_an_unknown_revision_is_answered_with_the_latest_legacy_one(revision: str):
    assert mcpmux.negotiate(revision) == "2025-11-25"


FULL = {
    "roots": {"listChanged": True},
    "sampling": {"tools": {}, "context": {}},
    "elicitation": {"form": {}, "url": {}},
    "tasks": {"requests": {"sampling": {"createMessage": {}}, "elicitation": {"create": {}}}},
    "experimental": {"vendor/x": {"a": 1.0}},
}


@pytest.mark.parametrize(
    ("host", "table", "expected"),
    [
        ({}, {}, {}),
        (FULL, {}, FULL),
        ({"sampling": {}}, {}, {"sampling": {}}),
        ({"sampling": {}}, {"sampling": "host"}, {"sampling": {}}),
        ({"sampling": {}}, {"sampling": "local"}, {}),
        ({"sampling": {"tools": {}}, "roots": {}}, {"sampling": "off"}, {"roots": {}}),
        ({"elicitation": {"url": {}}}, {}, {"elicitation": {"url": {}}}),
        ({"elicitation": {"url": {}}}, {"elicitation": False}, {}),
        ({}, {"roots": ["file:///x"]}, {"roots": {}}),
        ({"roots": {"listChanged": True}}, {"roots": ["file:///x"]}, {"roots": {"listChanged": True}}),
        (
            FULL,
            {"sampling": "off", "elicitation": False},
            {"roots": {"listChanged": True}, "tasks": {"requests": {}}, "experimental": {"vendor/x": {"a": 1.0}}},
        ),
    ],
)
def test_a_server_is_told_what_the_host_can_and_its_table_allows(
    host: dict[str, Any], table: dict[str, Any], expected: dict[str, Any]
):
    """Our choice, and never more than can be honoured: servers act on capabilities without asking again."""
    assert told(host, **table) == expected


def test_capabilities_are_passed_on_byte_for_byte():
    fields = mcpmux.fields_of(b'{"x":{"b":1.0,"a" : 1e2}}')
    assert mcpmux.encode(mcpmux.capabilities_for_server(fields, ServerOptions())) == b'{"x":{"b":1.0,"a" : 1e2}}'


@pytest.mark.parametrize(
    ("capabilities", "path", "expected"),
    [
        ({}, ("sampling",), False),
        ({"sampling": {}}, ("sampling",), True),
        ({"sampling": None}, ("sampling",), False),
        ({"sampling": False}, ("sampling",), False),
        ({"sampling": {}}, ("sampling", "tools"), False),
        ({"sampling": {"tools": {}}}, ("sampling", "tools"), True),
        ({"sampling": {"tools": False}}, ("sampling", "tools"), False),
        ({"tasks": []}, ("tasks", "list"), False),
        ({"resources": {"subscribe": True}}, ("resources", "subscribe"), True),
    ],
)
def test_a_capability_is_offered_only_where_it_was_declared(capabilities: dict[str, Any], path: Any, expected: bool):
    assert mcpmux.offers(raw(capabilities), *path) is expected


@pytest.mark.parametrize(
    ("capabilities", "modes"),
    [
        ({}, set()),
        ({"elicitation": {}}, {"form"}),
        ({"elicitation": {"form": {}}}, {"form"}),
        ({"elicitation": {"url": {}}}, {"url"}),
        ({"elicitation": {"form": {}, "url": {}}}, {"form", "url"}),
    ],
)
def test_an_empty_elicitation_capability_means_form(capabilities: dict[str, Any], modes: set[str]):
    """2025-11-25, client/elicitation#capabilities."""
    assert mcpmux.elicitation_modes(raw(capabilities)) == modes


def test_the_host_is_told_the_same_whoever_is_up_and_what_only_servers_can_make_true_is_united():
    nobody = mcpmux.capabilities_for_host([])
    assert nobody == {
        "tools": {"listChanged": True},
        "prompts": {"listChanged": True},
        "resources": {"subscribe": True, "listChanged": True},
        "completions": {},
        "logging": {},
    }
    two = mcpmux.capabilities_for_host(
        [
            raw({"tasks": {"list": {}}, "experimental": {"a": {"x": 1}}, "tools": {}}),
            raw({"tasks": {"requests": {"tools": {"call": {}}}}, "experimental": {"b": {}, "a": {"y": 2}}, "odd": {}}),
        ]
    )
    assert two == nobody | {
        "tasks": {"list": {}, "requests": {"tools": {"call": {}}}},
        "experimental": {"a": {"x": 1, "y": 2}, "b": {}},
    }


@pytest.mark.parametrize(
    ("body", "expected"),
    [({}, None), ({"nextCursor": None}, None), ({"nextCursor": ""}, b'""'), ({"nextCursor": "x"}, b'"x"')],
)
def test_only_an_absent_or_null_cursor_ends_a_list(body: dict[str, Any], expected: bytes | None):
    """2025-11-25, server/utilities/pagination: an empty string is a cursor."""
    assert mcpmux.next_cursor(raw(body), set()) == expected


def test_a_cursor_that_does_not_advance_ends_a_list():
    seen: set[bytes] = set()
    assert mcpmux.next_cursor(raw({"nextCursor": "a"}), seen) == b'"a"'
    assert mcpmux.next_cursor(raw({"nextCursor": "b"}), seen) == b'"b"'
    assert mcpmux.next_cursor(raw({"nextCursor": "a"}), seen) is None


def test_a_list_has_at_most_a_thousand_pages():
    seen: set[bytes] = set()
    pages = 1
    while mcpmux.next_cursor(raw({"nextCursor": f"{pages}"}), seen):
        pages += 1
    assert pages == mcpmux.MAX_PAGES == 1000
