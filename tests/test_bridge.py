"""What becomes of a server's question. https://modelcontextprotocol.io/specification/2025-11-25/client/elicitation"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

import mcpmux
from mcpmux import INVALID_PARAMS, METHOD_NOT_FOUND, Answer, Forward, RpcError, ServerOptions


def judge(method: str, params: dict[str, Any], host: dict[str, Any], **table: Any) -> Any:
    """`Forward`ed params or an `Answer` as JSON, or a refusal's code."""
    declared = mcpmux.fields_of(msgspec.json.encode(host))
    options = ServerOptions(command="x", **table)
    told = mcpmux.capabilities_for_server(declared, options)
    try:
        verdict = mcpmux.judge_question(method, mcpmux.Raw(msgspec.json.encode(params)), "git", options, declared, told)
    except RpcError as refusal:
        return refusal.code
    match verdict:
        case Forward(forwarded):
            assert not isinstance(forwarded, msgspec.UnsetType)
            return "forward", json.loads(bytes(forwarded))
        case Answer(result):
            return "answer", json.loads(result)


FORM = {"message": "Sure?", "requestedSchema": {"type": "object"}}
URL = {"mode": "url", "message": "Sign in", "url": "https://x", "elicitationId": "7"}
ASK = {"messages": [], "maxTokens": 1}


@pytest.mark.parametrize(
    ("method", "params", "host", "table", "expected"),
    [
        ("elicitation/create", FORM, {"elicitation": {}}, {}, ("forward", {**FORM, "message": "[git] Sure?"})),
        ("elicitation/create", FORM | {"mode": "form"}, {"elicitation": {"form": {}}}, {}, "forward"),
        ("elicitation/create", URL, {"elicitation": {"url": {}}}, {}, ("forward", {**URL, "message": "[git] Sign in"})),
        ("elicitation/create", URL, {"elicitation": {}}, {}, INVALID_PARAMS),
        ("elicitation/create", FORM, {"elicitation": {"url": {}}}, {}, INVALID_PARAMS),
        ("elicitation/create", FORM, {}, {}, ("answer", {"action": "decline"})),
        ("elicitation/create", FORM, {"elicitation": {}}, {"elicitation": False}, ("answer", {"action": "decline"})),
        ("elicitation/create", {"message": 7}, {"elicitation": {}}, {}, INVALID_PARAMS),
        ("elicitation/create", FORM | {"mode": "dance"}, {"elicitation": {}}, {}, INVALID_PARAMS),
        ("elicitation/create", FORM | {"mode": []}, {"elicitation": {}}, {}, INVALID_PARAMS),
        ("sampling/createMessage", ASK, {"sampling": {}}, {}, ("forward", ASK)),
        ("sampling/createMessage", ASK, {}, {}, METHOD_NOT_FOUND),
        ("sampling/createMessage", ASK, {"sampling": {}}, {"sampling": "off"}, METHOD_NOT_FOUND),
        ("sampling/createMessage", ASK | {"tools": []}, {"sampling": {}}, {}, INVALID_PARAMS),
        ("sampling/createMessage", ASK | {"toolChoice": {}}, {"sampling": {}}, {}, INVALID_PARAMS),
        ("sampling/createMessage", ASK | {"tools": []}, {"sampling": {"tools": {}}}, {}, "forward"),
        ("roots/list", {}, {"roots": {}}, {}, ("forward", {})),
        ("roots/list", {}, {}, {}, METHOD_NOT_FOUND),
        ("roots/list", {}, {}, {"roots": ["file:///a"]}, ("answer", {"roots": [{"uri": "file:///a"}]})),
        ("roots/list", {}, {"roots": {}}, {"roots": ["file:///a"]}, ("forward", {})),
    ],
)
def test_a_question_is_forwarded_answered_or_refused(
    method: str, params: dict[str, Any], host: dict[str, Any], table: dict[str, Any], expected: Any
):
    verdict = judge(method, params, host, **table)
    assert verdict == expected or (expected == "forward" and verdict[0] == "forward")


def test_only_the_message_of_an_elicitation_is_changed():
    """2025-11-25, client/elicitation: clients MUST say which server asks; all else is passed on as it is."""
    raw = b'{"x":1.0,"message":"Sure?","requestedSchema":{"b" : 1e2},"_meta":{"goose/id":"7"}}'
    host = mcpmux.fields_of(b'{"elicitation":{}}')
    verdict = mcpmux.judge_question("elicitation/create", mcpmux.Raw(raw), "git", ServerOptions(), host, host)
    assert verdict == Forward(raw.replace(b'"Sure?"', b'"[git] Sure?"'))
