"""What becomes of a server's question. https://modelcontextprotocol.io/specification/2025-11-25/client/elicitation"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

import mcpmux
from mcpmux import INVALID_PARAMS, METHOD_NOT_FOUND, Answer, Forward, Locally, RpcError, ServerOptions


def judge(method: str, params: dict[str, Any], host: dict[str, Any], *, has_model: bool = False, **table: Any) -> Any:
    """`Forward`ed params or an `Answer` as JSON, "model", or a refusal's code."""
    try:
        verdict = verdict_on(method, params, host, has_model=has_model, **table)
    except RpcError as refusal:
        return refusal.code
    match verdict:
        case Locally():
            return "model"
        case Forward(forwarded):
            assert not isinstance(forwarded, msgspec.UnsetType)
            return "forward", json.loads(bytes(forwarded))
        case Answer(result):
            return "answer", json.loads(result)


def verdict_on(method: str, params: Any, host: dict[str, Any], *, has_model: bool = False, **table: Any) -> Any:
    declared = mcpmux.fields_of(msgspec.json.encode(host))
    options = ServerOptions(command="x", **table)
    told = mcpmux.capabilities_for_server(declared, options, mcpmux.Own(has_model))
    return mcpmux.judge_question(
        method, mcpmux.Raw(msgspec.json.encode(params)), "git", options, declared, told, mcpmux.Own(has_model)
    )


FORM = {"message": "Sure?", "requestedSchema": {"type": "object"}}
URL = {"mode": "url", "message": "Sign in", "url": "https://x", "elicitationId": "7"}
ASK = {"messages": [], "maxTokens": 1}


@pytest.mark.requirement("never-accepted", "elicitation-modes")
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


NONE, PLAIN, TOOLS = {}, {"sampling": {}}, {"sampling": {"tools": {}}}  # what hosts declare


@pytest.mark.requirement("sampling-goes-where", "sampling-tools")
@pytest.mark.parametrize(
    ("policy", "has_model", "host", "plain", "with_tools"),
    [
        ("auto", False, NONE, METHOD_NOT_FOUND, METHOD_NOT_FOUND),
        ("auto", False, PLAIN, "host", INVALID_PARAMS),
        ("auto", False, TOOLS, "host", "host"),
        ("auto", True, NONE, "model", "model"),
        ("auto", True, PLAIN, "host", "model"),
        ("auto", True, TOOLS, "host", "host"),
        ("host", False, NONE, METHOD_NOT_FOUND, METHOD_NOT_FOUND),
        ("host", True, NONE, METHOD_NOT_FOUND, METHOD_NOT_FOUND),
        ("host", True, PLAIN, "host", INVALID_PARAMS),
        ("host", True, TOOLS, "host", "host"),
        ("local", False, TOOLS, METHOD_NOT_FOUND, METHOD_NOT_FOUND),
        ("local", True, NONE, "model", "model"),
        ("local", True, PLAIN, "model", "model"),
        ("local", True, TOOLS, "model", "model"),
        ("off", False, TOOLS, METHOD_NOT_FOUND, METHOD_NOT_FOUND),
        ("off", True, TOOLS, METHOD_NOT_FOUND, METHOD_NOT_FOUND),
    ],
)
def test_a_servers_policy_the_host_and_the_model_decide_who_is_asked(
    policy: str, has_model: bool, host: dict[str, Any], plain: Any, with_tools: Any
):
    """Our choice: `auto` prefers the host where it declared what the request needs. Codes: 2025-11-25,
    client/sampling#error-handling and #tools-in-sampling."""

    def asked(**extra: Any) -> Any:
        verdict = judge("sampling/createMessage", ASK | extra, host, has_model=has_model, sampling=policy)
        return "host" if isinstance(verdict, tuple) else verdict

    assert asked() == plain
    for extra in ({"tools": []}, {"tools": [{"name": "x"}]}, {"toolChoice": {"mode": "none"}}):
        assert asked(**extra) == with_tools
    assert asked(task={"ttl": 1}) == plain  # who cannot do it as a task does it at once
    assert asked(includeContext="allServers", x=1.0) == plain


@pytest.mark.requirement("sampling-goes-where")
@pytest.mark.parametrize(
    ("policy", "has_model", "host", "extra", "words"),
    [
        (
            "auto",
            False,
            NONE,
            {},
            "sampling is not offered to git: the host declared none, and there is no model of your own",
        ),
        ("host", True, NONE, {}, "sampling is not offered to git: the host declared none, and its table says sampling"),
        ("local", False, PLAIN, {}, 'its table says sampling = "local", and there is no model of your own'),
        ("off", True, TOOLS, {}, 'sampling is not offered to git: its table says sampling = "off"'),
        ("auto", False, PLAIN, {"tools": []}, "the host did not declare sampling.tools"),
        ("host", True, PLAIN, {"toolChoice": {}}, "the host did not declare sampling.tools"),
    ],
)
def test_a_refusal_of_sampling_says_what_is_missing(
    policy: str, has_model: bool, host: dict[str, Any], extra: dict[str, Any], words: str
):
    """Our choice of words: the person who reads them can change the config or the host."""
    with pytest.raises(RpcError) as refusal:
        verdict_on("sampling/createMessage", ASK | extra, host, has_model=has_model, sampling=policy)
    assert words in str(refusal.value)


@pytest.mark.parametrize("params", [None, 7, [], "x"])
def test_a_sampling_request_whose_params_are_no_object_is_refused_before_anybody_is_asked(params: Any):
    """2025-11-25, basic#requests: params are an object."""
    with pytest.raises(RpcError) as refusal:
        verdict_on("sampling/createMessage", params, NONE, has_model=True)
    assert refusal.value.code == INVALID_PARAMS


def test_what_is_put_to_the_host_although_there_is_a_model_is_as_the_server_sent_it():
    """Our promise: byte for byte."""
    raw = b'{"maxTokens":1e2,"messages" : [],"x":1.0}'
    host = mcpmux.fields_of(b'{"sampling":{}}')
    told = mcpmux.capabilities_for_server(host, ServerOptions(), mcpmux.Own(model=True))
    verdict = mcpmux.judge_question("sampling/createMessage", mcpmux.Raw(raw), "git", ServerOptions(), host, told)
    assert isinstance(verdict, Forward)
    assert bytes(verdict.params) == raw


@pytest.mark.parametrize(("wait", "data"), [(None, {}), (7, {"retryAfterSeconds": 7})])
def test_a_request_over_a_limit_is_refused_with_the_limits_name_and_when_it_is_free_again(wait: Any, data: Any):
    """Our choice: a server can read `data`, its person the text."""
    refusal = mcpmux.limit_reached("requests_per_minute", "enough", wait)
    assert refusal.code == mcpmux.INTERNAL_ERROR
    assert str(refusal) == "mcpmux: sampling limit reached: enough (sampling.limits.requests_per_minute)"
    assert refusal.data == {"limit": "requests_per_minute", **data}


@pytest.mark.requirement("elicitation-names-server", "elicitation-unchanged")
def test_only_the_message_of_an_elicitation_is_changed():
    """2025-11-25, client/elicitation: clients MUST say which server asks; all else is passed on as it is."""
    raw = b'{"x":1.0,"message":"Sure?","requestedSchema":{"b" : 1e2},"_meta":{"goose/id":"7"}}'
    host = mcpmux.fields_of(b'{"elicitation":{}}')
    verdict = mcpmux.judge_question("elicitation/create", mcpmux.Raw(raw), "git", ServerOptions(), host, host)
    assert verdict == Forward(raw.replace(b'"Sure?"', b'"[git] Sure?"'))


USE = {"type": "tool_use", "id": "1", "name": "t", "input": {}}
RESULT = {"type": "tool_result", "toolUseId": "1", "content": []}
TEXT = {"type": "text", "text": "t"}


@pytest.mark.requirement("tool-results-balanced")
@pytest.mark.parametrize(
    ("contents", "is_balanced"),
    [
        ([TEXT], True),
        ([TEXT, USE, RESULT], True),
        ([TEXT, [TEXT, USE], [RESULT], TEXT], True),
        ([TEXT, USE], False),
        ([TEXT, USE, TEXT], False),
        ([TEXT, USE, [RESULT, TEXT]], False),
        ([TEXT, [USE, {**USE, "id": "2"}], RESULT], False),
        ([TEXT, TEXT, RESULT], False),
    ],
)
def test_each_use_of_a_tool_has_its_result_in_the_next_message_and_that_has_nothing_else(
    contents: list[Any], is_balanced: bool
):
    """2026-07-28, client/sampling#message-content-constraints."""
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": content} for number, content in enumerate(contents)]
    assert (mcpmux.tools_out_of_balance(messages) is None) is is_balanced


@pytest.mark.requirement("max-tokens")
@pytest.mark.parametrize(("asked", "given"), [(5, 5), (50, 10)])
def test_the_model_is_allowed_as_many_tokens_as_were_asked_for_and_never_more_than_the_limit(asked: int, given: int):
    """2026-07-28, client/sampling#sampling-parameters; `sampling.limits.max_tokens`."""
    params = {"messages": [{"role": "user", "content": TEXT}], "maxTokens": asked}
    assert mcpmux.chat_arguments(params, 10)["max_tokens"] == given
