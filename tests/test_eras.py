"""Revisions and capabilities, as values. https://modelcontextprotocol.io/specification/2025-11-25/basic/lifecycle"""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest

import mcpmux
from mcpmux import ServerOptions


def raw(capabilities: dict[str, Any]) -> mcpmux.Fields:
    return mcpmux.fields_of(msgspec.json.encode(capabilities))


def told(host: dict[str, Any], *, has_model: bool = False, **table: Any) -> dict[str, Any]:
    options = ServerOptions(command="x", **table)
    return json.loads(mcpmux.encode(mcpmux.capabilities_for_server(raw(host), options, mcpmux.Own(has_model))))


@pytest.mark.parametrize("revision", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
def test_a_known_revision_is_answered_with_itself(revision: str):
    """2025-11-25, basic/lifecycle#version-negotiation: MUST respond with the same version if it is supported."""
    assert mcpmux.negotiate(revision) == revision


@pytest.mark.requirement("unknown-revision")
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


@pytest.mark.requirement("capabilities-told")
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


@pytest.mark.parametrize(
    ("policy", "host", "without_model", "with_model"),
    [
        ("auto", None, None, {"tools": {}}),
        ("auto", {}, {}, {"tools": {}}),
        ("auto", {"context": {}}, {"context": {}}, {"context": {}, "tools": {}}),
        ("auto", {"tools": {}}, {"tools": {}}, {"tools": {}}),
        ("auto", {"tools": {}, "context": {}}, {"tools": {}, "context": {}}, {"tools": {}, "context": {}}),
        ("auto", False, False, {"tools": {}}),
        ("host", None, None, None),
        ("host", {}, {}, {}),
        ("host", {"context": {}}, {"context": {}}, {"context": {}}),
        ("host", {"tools": {}}, {"tools": {}}, {"tools": {}}),
        ("local", None, None, {"tools": {}}),
        ("local", {}, None, {"tools": {}}),
        ("local", {"tools": {}, "context": {}}, None, {"tools": {}}),
        ("off", None, None, None),
        ("off", {"tools": {}, "context": {}}, None, None),
    ],
)
def test_a_server_is_told_the_sampling_that_host_and_model_give_it_together(
    policy: str, host: Any, without_model: Any, with_model: Any
):
    """2025-11-25, client/sampling#capabilities. The model takes tools; context is the host's alone."""
    declared = {} if host is None else {"sampling": host}
    assert told(declared, sampling=policy).get("sampling") == without_model
    assert told(declared, sampling=policy, has_model=True).get("sampling") == with_model


@pytest.mark.requirement("legacy-tasks")
@pytest.mark.parametrize(
    ("policy", "sampling", "without_model", "with_model"),
    [
        ("auto", {"tools": {}}, True, True),
        ("auto", {}, True, False),  # a question with tools goes to the model, and tasks do not depend on tools
        ("host", {}, True, True),
        ("local", {"tools": {}}, False, False),
        ("off", {"tools": {}}, False, False),
    ],
)
def test_a_server_is_told_of_sampling_by_tasks_only_where_all_its_sampling_is_the_hosts(
    policy: str, sampling: dict[str, Any], without_model: bool, with_model: bool
):
    """2025-11-25, basic/utilities/tasks#capabilities. The model answers at once; other tasks are not its business."""
    requests = {"sampling": {"createMessage": {}}, "elicitation": {"create": {}}}
    host = {"sampling": sampling, "elicitation": {}, "tasks": {"list": {}, "requests": requests}}
    for has_model, expected in ((False, without_model), (True, with_model)):
        tasks = told(host, sampling=policy, has_model=has_model)["tasks"]
        assert ("sampling" in tasks["requests"]) is expected
        assert tasks["requests"]["elicitation"] == {"create": {}}
        assert tasks["list"] == {}


@pytest.mark.requirement("sampling-goes-where", "sampling-tools")
@pytest.mark.parametrize("has_model", [False, True])
@pytest.mark.parametrize("policy", ["auto", "host", "local", "off"])
def test_what_a_server_is_told_of_sampling_is_what_it_then_gets(policy: Any, has_model: bool):
    """Our promise: never more than can be honoured, and never less. The bridge judges by what was told."""
    options = ServerOptions(command="x", sampling=policy)
    for sampling, with_tools in itertools.product([None, {}, {"context": {}}, {"tools": {}}], [False, True]):
        host = raw({} if sampling is None else {"sampling": sampling})
        offered = mcpmux.capabilities_for_server(host, options, mcpmux.Own(has_model))
        params = b'{"messages":[],"maxTokens":1,"tools":[]}' if with_tools else b'{"messages":[],"maxTokens":1}'
        is_told = mcpmux.offers(offered, "sampling", "tools") if with_tools else mcpmux.offers(offered, "sampling")
        try:
            asked = ("sampling/createMessage", mcpmux.Raw(params), "git", options, host, offered)
            mcpmux.judge_question(*asked, mcpmux.Own(has_model))
            is_served = True
        except mcpmux.RpcError:
            is_served = False
        assert is_served is is_told


def test_what_the_host_said_of_its_sampling_stays_as_it_was_beside_the_models_tools():
    """Our promise: what need not change passes byte for byte, here each member."""
    fields = mcpmux.fields_of(b'{"sampling":{"vendor/x":{"b":1.0,"a" : 1e2}}}')
    offered = mcpmux.capabilities_for_server(fields, ServerOptions(), mcpmux.Own(model=True))
    assert mcpmux.encode(offered) == b'{"sampling":{"vendor/x":{"b":1.0,"a" : 1e2},"tools":{}}}'


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


@pytest.mark.requirement("elicitation-modes")
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


@pytest.mark.requirement("united-capabilities", "logging-declared")
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


@pytest.mark.requirement("cursors")
@pytest.mark.parametrize(
    ("body", "expected"),
    [({}, None), ({"nextCursor": None}, None), ({"nextCursor": ""}, b'""'), ({"nextCursor": "x"}, b'"x"')],
)
def test_only_an_absent_or_null_cursor_ends_a_list(body: dict[str, Any], expected: bytes | None):
    """2025-11-25, server/utilities/pagination: an empty string is a cursor."""
    assert mcpmux.next_cursor(raw(body), set()) == expected


@pytest.mark.requirement("cursors")
def test_a_cursor_that_does_not_advance_ends_a_list():
    seen: set[bytes] = set()
    assert mcpmux.next_cursor(raw({"nextCursor": "a"}), seen) == b'"a"'
    assert mcpmux.next_cursor(raw({"nextCursor": "b"}), seen) == b'"b"'
    assert mcpmux.next_cursor(raw({"nextCursor": "a"}), seen) is None


@pytest.mark.requirement("cursors")
def test_a_list_has_at_most_a_thousand_pages():
    seen: set[bytes] = set()
    pages = 1
    while mcpmux.next_cursor(raw({"nextCursor": f"{pages}"}), seen):
        pages += 1
    assert pages == mcpmux.MAX_PAGES == 1000
