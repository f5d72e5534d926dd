"""Servers that ask for a model, hosts that have none, and a model of one's own that answers, through real litellm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import pytest
from conftest import PATIENCE, RawHost
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from .harness import FULL, NODE, ChatApi, Launcher, Party, answers_questions, told

SAMPLE = "everything__trigger-sampling-request"
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def everything(parties: dict[str, Party]) -> Party:
    return parties["everything"]


@pytest.fixture(scope="module")
def summarizer(modules: Path) -> Party:
    """The SDK's own example of sampling. It asks whatever the client has declared, and greets with a line that is no
    message."""
    script = modules / "@modelcontextprotocol/sdk/dist/esm/examples/server/toolWithSampleServer.js"
    return Party("summarizer", NODE, [str(script)])


@pytest.fixture(scope="module")
def tool_user(modules: Path) -> Party:
    return Party("user", NODE, [str(HERE / "tool_user.mjs"), str(modules)])


@pytest.fixture(scope="module")
def modest(
    module_launcher: Launcher, everything: Party, summarizer: Party, tool_user: Party, provider: ChatApi
) -> RawHost:
    """A host without sampling, as most are. Several tests share it, since its sampler takes seconds to load litellm."""
    host = module_launcher.through(everything, summarizer, tool_user, sampling=provider.table)
    host.initialize({})
    return host


@pytest.fixture(scope="module")
def plain(module_launcher: Launcher, everything: Party, tool_user: Party, provider: ChatApi) -> RawHost:
    """A host that samples without tools, before a server that may use it and one that must not."""
    local = replace(everything, name="local", keys={"sampling": "local"})
    host = module_launcher.through(local, tool_user, sampling=provider.table)
    answers_questions(host)
    host.initialize({"sampling": {}})
    return host


def texts(result: dict[str, Any]) -> str:
    return "\n".join(block["text"] for block in result["content"])


def sampled(result: dict[str, Any]) -> dict[str, Any]:
    """What everything was answered: it shows it as JSON after a line of its own."""
    return json.loads(texts(result).split("\n", 1)[1])


def was_asked_nothing(host: RawHost) -> bool:
    return told(host, "sampling/createMessage") == []


def files_below(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


def test_sampling_is_answered_by_the_local_model_for_a_host_without_any(
    launcher: Launcher, everything: Party, api: ChatApi
):
    """Spec: 2025-11-25, client/sampling#creating-messages. Nothing of what is said, nor the key, is kept anywhere."""
    host = launcher.through(everything, sampling=api.table)
    host.initialize({})
    assert SAMPLE in host.tools()
    api.says("a secret answer")
    result = sampled(host.call(SAMPLE, prompt="a secret question", maxTokens=5))
    assert result == {
        "model": "x-2026",
        "role": "assistant",
        "stopReason": "endTurn",
        "content": {"type": "text", "text": "a secret answer"},
    }
    [request] = api.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["authorization"] == f"Bearer {api.KEY}"
    assert request["model"] == "x"
    assert request["max_tokens"] == 5
    assert request["temperature"] == 0.7
    assert request["messages"] == [
        {"role": "system", "content": "You are a helpful test server."},
        {"role": "user", "content": "Resource trigger-sampling-request context: a secret question"},
    ]
    assert was_asked_nothing(host)
    assert host.close() == 0
    kept = files_below(Path(launcher.env["HOME"])) + host.log()
    [ledger] = Path(launcher.env["HOME"]).rglob("usage.jsonl")
    settled = json.loads(ledger.read_text().splitlines()[-1])
    assert {"server": "everything", "in": 7, "out": 3}.items() <= settled.items()
    assert settled["model"].startswith("openai/x")
    assert "secret" not in kept
    assert api.KEY not in kept


def test_sampling_is_forwarded_to_a_host_that_has_it(launcher: Launcher, everything: Party, api: ChatApi):
    """Our choice: the host's model is preferred, since the person knows it and sees what is asked."""
    host = launcher.through(everything, sampling=api.table)
    answers_questions(host)
    host.initialize({"sampling": {}})
    assert sampled(host.call(SAMPLE, prompt="hello"))["content"]["text"] == "spoken"
    assert len(told(host, "sampling/createMessage")) == 1
    assert api.requests == []


def test_with_sampling_local_the_hosts_model_is_not_asked(plain: RawHost, api: ChatApi):
    """Our choice: the key `sampling` of a server's table."""
    api.says("from here")
    assert sampled(plain.call("local__trigger-sampling-request", prompt="hello"))["content"]["text"] == "from here"
    assert was_asked_nothing(plain)


def test_a_server_with_sampling_off_is_told_of_none_and_does_not_offer_what_needs_it(
    launcher: Launcher, everything: Party, api: ChatApi
):
    """As it does alone, before a client without sampling. Spec: 2025-11-25, basic/lifecycle#capability-negotiation."""
    host = launcher.through(replace(everything, keys={"sampling": "off"}), sampling=api.table)
    host.initialize({"sampling": {}})
    alone = launcher.alone(everything)
    alone.initialize({})
    assert host.tools() == [f"everything__{tool}" for tool in alone.tools()]
    refusal = host.call(SAMPLE, prompt="hello")["error"]
    assert refusal["code"] == types.INVALID_PARAMS
    assert refusal["message"].startswith(f"Unknown tool: {SAMPLE}")
    assert was_asked_nothing(host)
    assert api.requests == []


def test_a_server_with_sampling_off_that_asks_all_the_same_is_refused(
    launcher: Launcher, summarizer: Party, api: ChatApi
):
    """The words reach the model, so that the person can be told. Spec: 2025-11-25, client/sampling#error-handling."""
    host = launcher.through(replace(summarizer, keys={"sampling": "off"}), sampling=api.table)
    host.initialize({"sampling": {}})
    result = host.call("summarizer__summarize", text="long")
    assert result["isError"]
    assert 'sampling is not offered to summarizer: its table says sampling = "off"' in texts(result)
    assert was_asked_nothing(host)
    assert api.requests == []


def test_servers_that_ask_at_once_get_each_its_own_answer(modest: RawHost, api: ChatApi):
    """Both requests are open before the first is answered. Our promise: what one server is answered no other sees."""
    first = modest.ask("tools/call", {"name": SAMPLE, "arguments": {"prompt": "one"}})
    assert api.arrived.wait(PATIENCE)
    api.arrived.clear()
    second = modest.ask("tools/call", {"name": "summarizer__summarize", "arguments": {"text": "two"}})
    assert api.arrived.wait(PATIENCE)
    for _ in range(2):
        api.replies.put(lambda request: {"content": f"to {request['messages'][-1]['content'][-3:]}"})
    assert sampled(modest.answer(first)["result"])["content"]["text"] == "to one"
    assert texts(modest.answer(second)["result"]) == "to two"


@pytest.mark.parametrize(
    ("capabilities", "missing", "added"),
    [
        ({}, [], [SAMPLE]),
        ({"sampling": {}}, [], []),
        (FULL, ["everything__trigger-sampling-request-async"], []),  # the model answers at once, never by a task
    ],
    ids=["none", "sampling", "all"],
)
def test_a_server_offers_what_host_and_model_together_make_possible(
    launcher: Launcher, everything: Party, api: ChatApi, capabilities: dict[str, Any], missing: Any, added: Any
):
    """everything offers tools by what the client can do. Spec: 2025-11-25, basic/lifecycle#capability-negotiation."""
    plain = launcher.through(everything)
    plain.initialize(capabilities)
    without_model = plain.tools()
    plain.close()
    for cache in Path(launcher.env["HOME"]).rglob("everything.*.cache"):
        cache.unlink()  # else that is served while the truth is learnt
    host = launcher.through(everything, sampling=api.table)
    host.initialize(capabilities)
    with_model = host.tools()
    assert [tool for tool in without_model if tool not in with_model] == missing
    assert [tool for tool in with_model if tool not in without_model] == added


# ── with tools ──


def plays_two_calls(api: ChatApi) -> None:
    api.calls(call_a=("city", {"of": "Ada"}), call_b=("age", {"of": "Ada"}))
    api.says("Ada, 36, lives in London.")


@pytest.mark.parametrize("who", ["modest", "plain"])
def test_sampling_with_tools_is_answered_locally_although_the_host_has_plain_sampling(
    request: pytest.FixtureRequest, api: ChatApi, who: str
):
    """Two calls at once, and their results back. Spec: 2025-11-25, client/sampling#sampling-with-tools. No host
    declares `sampling.tools` yet."""
    host: RawHost = request.getfixturevalue(who)
    plays_two_calls(api)
    assert texts(host.call("user__describe")) == "Ada, 36, lives in London."
    first, second = api.requests
    assert first["tool_choice"] == "required"
    assert [tool["function"]["name"] for tool in first["tools"]] == ["city", "age"]
    assert first["tools"][0]["function"]["parameters"]["required"] == ["of"]
    assert second["tool_choice"] == "auto"
    asked, uses, *results = second["messages"]
    assert asked == {"role": "user", "content": "Describe Ada."}
    assert [call["id"] for call in uses["tool_calls"]] == ["call_a", "call_b"]
    assert [json.loads(call["function"]["arguments"]) for call in uses["tool_calls"]] == [{"of": "Ada"}] * 2
    assert results == [
        {"role": "tool", "tool_call_id": "call_a", "content": "Ada: London"},
        {"role": "tool", "tool_call_id": "call_b", "content": "Ada: 36"},
    ]
    assert was_asked_nothing(host)


def test_sampling_with_tools_is_forwarded_to_a_host_that_declared_them(
    launcher: Launcher, tool_user: Party, api: ChatApi
):
    """Spec: 2025-11-25, client/sampling#capabilities."""
    host = launcher.through(tool_user, sampling=api.table)
    answers_questions(host)
    host.initialize({"sampling": {"tools": {}}})
    assert texts(host.call("user__describe")) == "spoken"
    [asked] = told(host, "sampling/createMessage")
    assert [tool["name"] for tool in asked["tools"]] == ["city", "age"]
    assert api.requests == []


def test_without_a_local_model_a_server_is_not_told_of_tools_that_the_host_did_not_declare(
    launcher: Launcher, tool_user: Party
):
    """The SDK refuses on the server's side then. Spec: 2025-11-25, client/sampling#capabilities."""
    host = launcher.through(tool_user)
    host.initialize({"sampling": {}})
    result = host.call("user__describe")
    assert result["isError"]
    assert "does not support sampling tools" in texts(result)


# ── cancelling ──


def test_when_the_host_cancels_a_call_the_providers_connection_is_closed(modest: RawHost, api: ChatApi):
    """Whether or not the server cancels its question. Spec: 2025-11-25, basic/utilities/cancellation."""
    api.replies.put(None)
    cancelled = modest.ask("tools/call", {"name": "summarizer__summarize", "arguments": {"text": "hello"}})
    assert api.arrived.wait(PATIENCE)
    modest.cancel(cancelled)
    assert api.closed.wait(PATIENCE)
    assert modest.text("everything__echo", message="x") == "Echo: x"
    api.says("after it")
    assert modest.text("summarizer__summarize", text="again") == "after it"
    assert not [message for message in modest.seen if message.get("id") == cancelled and "method" not in message]


# ── the official SDK's client ──


def test_the_official_client_without_a_sampling_callback_gets_what_needs_a_model(
    launcher: Launcher, everything: Party, tool_user: Party, api: ChatApi, tmp_path: Path
):
    """Our promise: a host that has no model need not know that one was asked."""

    async def play() -> None:
        command, *arguments = launcher.command(everything, tool_user, sampling=api.table)
        parameters = StdioServerParameters(command=command, args=arguments, env=launcher.env)
        with anyio.fail_after(2 * PATIENCE), (tmp_path / "mcpmux.log").open("w") as log:
            transport = stdio_client(parameters, errlog=log)
            async with Client(transport, mode="legacy", read_timeout_seconds=PATIENCE) as client:
                for tool, arguments_of_it in ((SAMPLE, {"prompt": "hello"}), ("user__describe", {})):
                    result = await client.call_tool(tool, arguments_of_it)
                    answers.extend(one.text for one in result.content if isinstance(one, types.TextContent))

    answers: list[str] = []
    api.says("spoken by a model")
    plays_two_calls(api)
    anyio.run(play)
    assert "spoken by a model" in answers[0]
    assert answers[1] == "Ada, 36, lives in London."
