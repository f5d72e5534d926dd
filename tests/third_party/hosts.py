"""Real hosts that answer what they are asked: the official Python SDK's client, and the TypeScript one.

Both are driven in the same way, whatever the era: a call gives a result, and what came in its course is in `events`.
How they answer is told by the question: an elicitation whose last word is «decline» is declined.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import anyio
import mcp_types as types
from anyio.from_thread import start_blocking_portal
from conftest import PATIENCE
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel

from .harness import NODE

TYPESCRIPT_HOST = Path(__file__).parent / "typescript_host.mjs"
MODERN_REVISION = "2026-07-28"
ROOT = "file:///home/ada"
TOOLS_CHANGED, RESOURCES_CHANGED = "ToolsListChanged", "ResourcesListChanged"
LEVEL_KEY = "io.modelcontextprotocol/logLevel"


class Refused(Exception):
    """The answer was a JSON-RPC error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Host(Protocol):
    events: Events
    modern: bool

    def close(self) -> None: ...

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One of the three methods in whose middle a server may ask."""
        ...

    def call_together(self, *calls: dict[str, Any]) -> list[dict[str, Any]]:
        """Calls of tools, all at once; their results in order."""
        ...

    def listed(self) -> list[str]:
        """The names of all tools and resources."""
        ...

    def set_level(self, level: str) -> None:
        """Of log messages; a modern host says it with each call instead."""
        ...

    def abandon(self, tool: str, **arguments: Any) -> None:
        """Calls, and cancels at the third progress."""
        ...

    def watching(self, uri: str) -> AbstractContextManager[None]:
        """Changes of the lists of tools and resources, and of this resource, are events meanwhile."""
        ...


class Events:
    """What a host is asked and told, as it comes: (kind, value)."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue()

    def put(self, kind: str, value: Any) -> None:
        self._queue.put((kind, value))

    def taken(self, kind: str) -> list[Any]:
        """All of this kind that came until now. What else came is gone, too."""
        values: list[Any] = []
        while not self._queue.empty():
            one, value = self._queue.get()
            values += [value] if one == kind else []
        return values

    def next(self, kind: str) -> Any:
        """The next of this kind, already here or still to come."""
        while True:
            one, value = self._queue.get(timeout=PATIENCE)
            if one == kind:
                return value


# ── Python ──


def body(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(by_alias=True, mode="json", exclude_none=True)


class PythonHost:
    """The SDK's client, in an event loop in a thread of its own."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path, *, modern: bool, able: bool = True) -> None:
        self.events = Events()
        self.modern = modern
        self._stack = ExitStack()
        self._portal = self._stack.enter_context(start_blocking_portal())
        parameters = StdioServerParameters(command=command[0], args=command[1:], env=env)
        abilities: dict[str, Any] = {
            "sampling_callback": self._sample,
            "sampling_capabilities": types.SamplingCapability(tools=types.SamplingToolsCapability()),
            "elicitation_callback": self._elicit,
            "list_roots_callback": self._roots,
        }
        client = Client(
            stdio_client(parameters, errlog=self._stack.enter_context(log.open("w"))),
            mode="auto" if modern else "legacy",
            read_timeout_seconds=PATIENCE,
            logging_callback=self._log,
            message_handler=self._message,
            **(abilities if able else {}),
        )
        self._client = self._stack.enter_context(self._portal.wrap_async_context_manager(client))
        assert (self._client.protocol_version == MODERN_REVISION) is modern

    def close(self) -> None:
        self._stack.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        async def send() -> Any:
            meta = params.get("_meta")
            match method:
                case "tools/call":
                    return await self._client.call_tool(params["name"], params.get("arguments", {}), meta=meta)
                case "prompts/get":
                    return await self._client.get_prompt(params["name"], meta=meta)
                case _:
                    return await self._client.read_resource(params["uri"], meta=meta)

        return body(self._play(send))

    def call_together(self, *calls: dict[str, Any]) -> list[dict[str, Any]]:
        results: dict[int, dict[str, Any]] = {}

        async def one(number: int, params: dict[str, Any]) -> None:
            results[number] = body(await self._client.call_tool(params["name"], params["arguments"]))

        async def send() -> None:
            async with anyio.create_task_group() as group:
                for number, params in enumerate(calls):
                    group.start_soon(one, number, params)

        self._play(send)
        return [results[number] for number in range(len(calls))]

    def listed(self) -> list[str]:
        async def send() -> list[str]:
            tools = await self._client.list_tools(cache_mode="refresh")
            resources = await self._client.list_resources(cache_mode="refresh")
            return [one.name for one in (*tools.tools, *resources.resources)]

        return self._play(send)

    def set_level(self, level: str) -> None:
        assert not self.modern

        async def send() -> None:
            await self._client.set_logging_level(level)

        self._play(send)

    def abandon(self, tool: str, **arguments: Any) -> None:
        async def send() -> None:
            third = anyio.Semaphore(0)

            async def on_progress(*progress: Any) -> None:
                self.events.put("progress", progress)
                third.release()

            async def hold() -> None:
                await self._client.call_tool(tool, arguments, progress_callback=on_progress)

            async with anyio.create_task_group() as group:
                group.start_soon(hold)
                for _ in range(3):
                    await third.acquire()
                group.cancel_scope.cancel()

        self._play(send)

    @contextmanager
    def watching(self, uri: str) -> Iterator[None]:
        manager = self._listening(uri) if self.modern else self._subscribed(uri)
        with self._portal.wrap_async_context_manager(manager):
            yield

    @asynccontextmanager
    async def _listening(self, uri: str) -> Any:
        async def follow(subscription: Any) -> None:
            async for event in subscription:
                self.events.put("changed", getattr(event, "uri", type(event).__name__))

        listen = self._client.listen(tools_list_changed=True, resources_list_changed=True, resource_subscriptions=[uri])
        async with listen as subscription, anyio.create_task_group() as group:
            assert subscription.honored.tools_list_changed
            assert subscription.honored.resources_list_changed
            assert subscription.honored.resource_subscriptions == [uri]
            group.start_soon(follow, subscription)
            yield
            group.cancel_scope.cancel()

    @asynccontextmanager
    async def _subscribed(self, uri: str) -> Any:
        await self._client.subscribe_resource(uri)
        yield
        await self._client.unsubscribe_resource(uri)

    def _play(self, send: Callable[[], Awaitable[Any]]) -> Any:
        async def bounded() -> Any:
            with anyio.fail_after(2 * PATIENCE):
                return await send()

        try:
            return self._portal.call(bounded)
        except MCPError as error:
            raise Refused(error.code, error.message) from None

    async def _sample(self, _: Any, params: types.CreateMessageRequestParams) -> Any:
        self._asked("sampling/createMessage", params)
        if params.tools:
            use = types.ToolUseContent(type="tool_use", id="u-1", name=params.tools[0].name, input={"a": 2, "b": 2})
            return types.CreateMessageResultWithTools(
                role="assistant", content=[use], model="m-1", stop_reason="toolUse"
            )
        [message] = params.messages
        content = types.TextContent(type="text", text=f"{message.content.text} in {params.max_tokens}")
        return types.CreateMessageResult(role="assistant", content=content, model="m-1", stop_reason="endTurn")

    async def _elicit(self, _: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
        self._asked("elicitation/create", params)
        last = params.message.rpartition(" ")[2]
        action = last if last in ("decline", "cancel") else "accept"
        is_filled = action == "accept" and params.mode == "form"
        return types.ElicitResult(action=action, content={"name": "Ada"} if is_filled else None)

    async def _roots(self, _: Any) -> types.ListRootsResult:
        self.events.put("asked", {"method": "roots/list", "params": {}})
        return types.ListRootsResult(roots=[types.Root(uri=ROOT, name="home")])

    def _asked(self, method: str, params: types.RequestParams) -> None:
        self.events.put("asked", {"method": method, "params": body(params)})

    async def _log(self, params: types.LoggingMessageNotificationParams) -> None:
        self.events.put("log", body(params))

    async def _message(self, message: Any) -> None:
        """A modern host hears of changes where it listens."""
        match message:
            case _ if self.modern:
                pass
            case types.ToolListChangedNotification():
                self.events.put("changed", TOOLS_CHANGED)
            case types.ResourceListChangedNotification():
                self.events.put("changed", RESOURCES_CHANGED)
            case types.ResourceUpdatedNotification():
                self.events.put("changed", str(message.params.uri))
            case _:
                pass


# ── TypeScript ──


class TypeScriptHost:
    """`@modelcontextprotocol/client` in a process that is told what to do, a JSON line each."""

    def __init__(self, command: list[str], env: dict[str, str], modules: Path, log: Path, *, modern: bool) -> None:
        self.events = Events()
        self.modern = modern
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._log = log.open("w")
        arguments = [NODE, str(TYPESCRIPT_HOST), str(modules), "modern" if modern else "legacy", ROOT, *command]
        self._process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=env
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        revision = self._answers.get(timeout=PATIENCE)["result"]
        assert (revision == MODERN_REVISION) is modern

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        assert self._process.wait(PATIENCE) == 0
        self._reader.join(PATIENCE)
        self._process.stdout.close()
        self._log.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._do("call", method=method, params=params)

    def call_together(self, *calls: dict[str, Any]) -> list[dict[str, Any]]:
        return self._do("together", calls=calls)

    def listed(self) -> list[str]:
        return self._do("list")

    def set_level(self, level: str) -> None:
        self._do("level", level=level)

    def abandon(self, tool: str, **arguments: Any) -> None:
        self._do("abandon", tool=tool, arguments=arguments)

    @contextmanager
    def watching(self, uri: str) -> Iterator[None]:
        self._do("watch", uri=uri)
        yield
        self._do("unwatch", uri=uri)

    def _do(self, action: str, **more: Any) -> Any:
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"do": action, **more}).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._answers.get(timeout=2 * PATIENCE)
        if "error" in answer:
            raise Refused(answer["error"]["code"], answer["error"]["message"])
        return answer["result"]

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            message = json.loads(line)
            if "event" in message:
                self.events.put(message["event"], message["value"])
            else:
                self._answers.put(message)
        self._answers.put({"error": {"code": 0, "message": f"the host ended; see {self._log.name}"}})


def start_host(kind: str, command: list[str], env: dict[str, str], modules: Path, log: Path) -> Host:
    """A host named LANGUAGE-ERA before this mcpmux."""
    language, era = kind.split("-")
    modern = era == "modern"
    if language == "typescript":
        return TypeScriptHost(command, env, modules, log, modern=modern)
    return PythonHost(command, env, log, modern=modern)
