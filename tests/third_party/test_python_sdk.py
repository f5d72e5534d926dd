"""The official Python SDK's client as the host, before a real mcpmux before real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import pytest
from conftest import PATIENCE
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError

from .harness import Launcher, Party, Site

Connect = Callable[..., Any]


@pytest.fixture
def connect(launcher: Launcher, parties: dict[str, Party], tmp_path: Path) -> Connect:
    """`connect(*servers, mode=…, **callbacks)`: a client before an mcpmux before these servers."""

    @asynccontextmanager
    async def connected(*servers: str, mode: str = "legacy", **callbacks: Any) -> AsyncIterator[Client]:
        command, *arguments = launcher.command(*(parties[server] for server in servers))
        parameters = StdioServerParameters(command=command, args=arguments, env=launcher.env)
        with (tmp_path / "mcpmux.log").open("w") as log:
            transport = stdio_client(parameters, errlog=log)
            async with Client(transport, mode=mode, read_timeout_seconds=PATIENCE, **callbacks) as client:
                yield client

    return connected


def run(play: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with anyio.fail_after(2 * PATIENCE):
            await play()

    anyio.run(bounded)


def text(result: types.CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if isinstance(block, types.TextContent))


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_four_servers_are_one(connect: Connect, site: Site, mode: str):
    """Spec: 2025-11-25, server/tools. The client checks each result against the tool's outputSchema. In mode auto it
    asks for the newer era first, and takes what it is given."""

    async def play() -> None:
        async with connect("everything", "filesystem", "git", "time", mode=mode) as client:
            assert client.server_info and client.server_info.name == "mcpmux"
            if mode == "legacy":
                assert client.protocol_version == "2025-11-25"
            tools = await client.list_tools()
            assert tools.next_cursor is None
            servers = [tool.name.partition("__")[0] for tool in tools.tools]
            assert list(dict.fromkeys(servers)) == ["everything", "filesystem", "git", "time"]
            notes = await client.call_tool(
                "filesystem__read_text_file", {"path": str(site.path / "notes.txt"), "head": 1}
            )
            assert notes.structured_content == {"content": "one"}
            weather = await client.call_tool("everything__get-structured-content", {"location": "Chicago"})
            assert weather.structured_content == {
                "temperature": 36,
                "conditions": "Light rain / drizzle",
                "humidity": 82,
            }
            log = await client.call_tool("git__git_log", {"repo_path": str(site.repo)})
            assert "Message: Begin" in text(log)
            now = await client.call_tool("time__get_current_time", {"timezone": "Asia/Tokyo"})
            assert now.structured_content and now.structured_content["timezone"] == "Asia/Tokyo"

    run(play)


def test_errors_arrive_as_what_they_are(connect: Connect, site: Site):
    """A tool's failure is a result, an unknown tool is an error. Spec: 2025-11-25, server/tools#error-handling."""

    async def play() -> None:
        async with connect("git") as client:
            failed = await client.call_tool("git__git_show", {"repo_path": str(site.repo), "revision": "nowhere"})
            assert failed.is_error
            assert "nowhere" in text(failed)
            with pytest.raises(MCPError, match="Unknown tool: git__git_shove") as unknown:
                await client.call_tool("git__git_shove", {})
            assert unknown.value.code == types.INVALID_PARAMS

    run(play)


def test_prompts_resources_and_completions_come_through(connect: Connect):
    """Spec: 2025-11-25, server/prompts, server/resources, server/utilities/completion."""

    async def play() -> None:
        async with connect("everything") as client:
            assert [prompt.name for prompt in (await client.list_prompts()).prompts] == [
                "everything__simple-prompt",
                "everything__args-prompt",
                "everything__completable-prompt",
                "everything__resource-prompt",
            ]
            prompt = await client.get_prompt("everything__args-prompt", {"city": "Köln"})
            assert isinstance(prompt.messages[0].content, types.TextContent)
            assert prompt.messages[0].content.text == "What's weather in Köln?"
            resources = (await client.list_resources()).resources
            assert len(resources) == 7
            for resource in resources:
                [content] = (await client.read_resource(resource.uri)).contents
                assert content.uri == resource.uri
            templates = (await client.list_resource_templates()).resource_templates
            assert len(templates) == 2
            reference = types.PromptReference(type="ref/prompt", name="everything__completable-prompt")
            argument = {"name": "name", "value": "E"}
            completed = await client.complete(reference, argument, {"department": "Sales"})
            assert completed.completion.values == ["Eve"]
            template = types.ResourceTemplateReference(type="ref/resource", uri=templates[0].uri_template)
            assert (await client.complete(template, {"name": "resourceId", "value": "7"})).completion.values == ["7"]

    run(play)


def test_sampling_elicitation_and_roots_callbacks_are_asked(connect: Connect, site: Site):
    """Spec: 2025-11-25, client/sampling, client/elicitation, client/roots."""
    asked: list[types.ElicitRequestParams] = []

    async def sample(_: Any, params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
        content = types.TextContent(type="text", text=f"spoken in {params.max_tokens}")
        return types.CreateMessageResult(role="assistant", content=content, model="m-1")

    async def elicit(_: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
        asked.append(params)
        if isinstance(params, types.ElicitRequestURLParams):
            return types.ElicitResult(action="decline")
        return types.ElicitResult(action="accept", content={"name": "Ada"})

    async def roots(_: Any) -> types.ListRootsResult:
        return types.ListRootsResult(roots=[types.Root(uri=site.path.as_uri(), name="site")])

    async def play() -> None:
        callbacks = {"sampling_callback": sample, "elicitation_callback": elicit, "list_roots_callback": roots}
        async with connect("everything", "filesystem", **callbacks) as client:
            sampled = await client.call_tool("everything__trigger-sampling-request", {"prompt": "x", "maxTokens": 5})
            assert "spoken in 5" in text(sampled)
            filled = await client.call_tool("everything__trigger-elicitation-request", {})
            assert "- Name: Ada" in text(filled)
            declined = await client.call_tool("everything__trigger-url-elicitation", {"url": "https://example.org/go"})
            assert "User declined to open the URL" in text(declined)
            listed = await client.call_tool("everything__get-roots-list", {})
            assert site.path.as_uri() in text(listed)
            allowed = await client.call_tool("filesystem__list_allowed_directories", {})
            assert str(site.path) in text(allowed)

    run(play)
    assert [params.message.startswith("[everything] ") for params in asked] == [True, True]


def test_progress_subscriptions_and_logging_reach_their_callbacks(connect: Connect):
    """Spec: 2025-11-25, basic/utilities/progress, server/resources#subscriptions, server/utilities/logging."""
    uri = "demo://resource/static/document/features.md"
    progress: list[tuple[float, float | None]] = []
    updated, logged = anyio.Event(), anyio.Event()

    async def on_progress(done: float, total: float | None, _: str | None) -> None:
        progress.append((done, total))

    async def on_message(message: Any) -> None:
        if isinstance(message, types.ResourceUpdatedNotification) and str(message.params.uri) == uri:
            updated.set()

    async def on_log(params: types.LoggingMessageNotificationParams) -> None:
        assert params.logger == "everything"
        logged.set()

    async def play() -> None:
        async with connect("everything", message_handler=on_message, logging_callback=on_log) as client:
            operation = {"duration": 0.05, "steps": 5}
            await client.call_tool(
                "everything__trigger-long-running-operation", operation, progress_callback=on_progress
            )
            with pytest.warns(MCPDeprecationWarning):
                await client.subscribe_resource(uri)  # everything logs that
            await client.call_tool("everything__toggle-subscriber-updates", {})
            await updated.wait()
            await logged.wait()

    run(play)
    assert sorted(progress) == [(step, 5) for step in range(1, 6)]
