"""A server of both eras, written with the official SDK: what it asks of the host, and tells it, in either.

    python sdk_server.py NAME [PORT]

With a port, over Streamable HTTP on loopback; the port, which may be 0 for any, is then printed.
Its tools are those of `raw_server`. Where the SDK's own `Resolve` speaks both eras, that is used.
"""

import socket
import sys
from typing import Annotated

import anyio
import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Resolve
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.server.mcpserver.resolve import AcceptedElicitation, Elicit, ElicitationResult, ListRoots, Sample
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    ClientCapabilities,
    CreateMessageRequest,
    CreateMessageResult,
    CreateMessageResultWithTools,
    ElicitationCapability,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitRequestURLParams,
    ElicitResult,
    EmptyResult,
    InputRequiredResult,
    InputResponses,
    ListRootsResult,
    SamplingMessage,
    SubscribeRequestParams,
    TextContent,
    Tool,
    ToolUseContent,
    UrlElicitationCapability,
)
from pydantic import BaseModel

NAME = sys.argv[1]
RESULTS = {"sampling/createMessage": CreateMessageResult, "elicitation/create": ElicitResult}
SUM = "2 + 2"
ADD = Tool(name="add", input_schema={"type": "object"})

server = MCPServer(NAME)
cancelled = anyio.Semaphore(0)
subscribed: set[str] = set()


class Person(BaseModel):
    name: str


def model_question(text: str, tools: list[Tool] | None = None) -> Sample:
    content = TextContent(type="text", text=text)
    return Sample([SamplingMessage(role="user", content=content)], max_tokens=7, tools=tools)


def form_question(message: str) -> ElicitRequest:
    schema = Person.model_json_schema()
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def is_modern(ctx: Context) -> bool:
    return ctx.protocol_version == "2026-07-28"


async def put(ctx: Context, **questions: CreateMessageRequest | ElicitRequest) -> InputResponses | InputRequiredResult:
    """All at once, as the era has it: what the SDK leaves to its users."""
    if is_modern(ctx):
        return ctx.input_responses or InputRequiredResult(input_requests=questions)
    answers: InputResponses = {}

    async def one(key: str, question: CreateMessageRequest | ElicitRequest) -> None:
        about = ServerMessageMetadata(related_request_id=ctx.request_id)
        answers[key] = await ctx.session.send_request(question, RESULTS[question.method], metadata=about)

    async with anyio.create_task_group() as group:
        for key, question in questions.items():
            group.start_soon(one, key, question)
    return answers


def ask_model() -> Sample:
    return model_question(SUM)


def ask_model_with_tools() -> Sample:
    return model_question(SUM, [ADD])


def ask_form(action: str) -> Elicit[Person]:
    return Elicit(f"please {action}", Person)


def ask_roots() -> ListRoots:
    return ListRoots()


def ask_name() -> Elicit[Person]:
    return Elicit("please accept", Person)


def ask_model_about(person: Annotated[Person, Resolve(ask_name)]) -> Sample:
    return model_question(f"who is {person.name}?")


@server.tool()
def era(ctx: Context) -> str:
    return "modern" if is_modern(ctx) else "legacy"


@server.tool()
def sample(reply: Annotated[CreateMessageResult, Resolve(ask_model)]) -> str:
    assert isinstance(reply.content, TextContent)
    return f"model: {reply.content.text}"


@server.tool(name="sample-with-tools")
def sample_with_tools(reply: Annotated[CreateMessageResultWithTools, Resolve(ask_model_with_tools)]) -> str:
    [use] = reply.content_as_list
    assert isinstance(use, ToolUseContent)
    return f"model: {use.name} {use.input['a']} and {use.input['b']}, {reply.stop_reason}"


@server.tool()
def form(action: str, given: Annotated[ElicitationResult[Person], Resolve(ask_form)]) -> str:
    return f"accept: {given.data.name}" if isinstance(given, AcceptedElicitation) else given.action


@server.tool()
async def visit(action: str, ctx: Context) -> str | InputRequiredResult:
    needed = ClientCapabilities(elicitation=ElicitationCapability(url=UrlElicitationCapability()))
    if not ctx.session.check_client_capability(needed):
        raise MCPError(
            MISSING_REQUIRED_CLIENT_CAPABILITY, "no URLs here", {"requiredCapabilities": {"elicitation": {}}}
        )
    page = ElicitRequestURLParams(
        message=f"please {action}",
        url="https://example.org/go",
        elicitation_id=None if is_modern(ctx) else "e-1",
    )
    answers = await put(ctx, page=ElicitRequest(params=page))
    return answers if isinstance(answers, InputRequiredResult) else answers["page"].action


@server.tool()
def roots(listed: Annotated[ListRootsResult, Resolve(ask_roots)]) -> str:
    return " ".join(str(root.uri) for root in listed.roots)


@server.tool(name="two-rounds")
def two_rounds(
    person: Annotated[Person, Resolve(ask_name)], reply: Annotated[CreateMessageResult, Resolve(ask_model_about)]
) -> str:
    assert isinstance(reply.content, TextContent)
    return f"{person.name}, {reply.content.text}"


@server.tool(name="two-at-once")
async def two_at_once(ctx: Context) -> str | InputRequiredResult:
    model = CreateMessageRequest(params=model_question(SUM).params)
    answers = await put(ctx, person=form_question("please accept"), model=model)
    if isinstance(answers, InputRequiredResult):
        return answers
    return f"{answers['person'].content['name']}, {answers['model'].content.text}"


@server.tool()
async def hold(ctx: Context) -> str:
    for step in (1, 2, 3):
        await ctx.report_progress(step, 3, f"step {step}")
    try:
        await anyio.sleep_forever()
    except anyio.get_cancelled_exc_class():
        cancelled.release()
        raise
    return "never"


@server.tool(name="cancelled")
async def was_cancelled() -> str:
    await cancelled.acquire()
    return "it was"


@server.tool()
async def log(ctx: Context) -> str:
    await ctx.debug("too low", logger_name="sky")
    await ctx.warning("clouds", logger_name="sky")
    return "logged"


@server.tool()
async def grow(name: str, ctx: Context) -> str:
    server.add_tool(era, name=name)
    if is_modern(ctx):
        await ctx.notify_tools_changed()
    else:
        await ctx.session.send_tool_list_changed()
    return "grown"


@server.tool()
async def touch(ctx: Context) -> str:
    uri = f"pair://{NAME}/clock"
    if is_modern(ctx):
        await ctx.notify_resource_updated(uri)
    elif uri in subscribed:
        await ctx.session.send_resource_updated(uri)
    return "touched"


@server.prompt()
async def greet(ctx: Context) -> UserMessage | InputRequiredResult:
    answers = await put(ctx, person=form_question("please accept"))
    return (
        answers
        if isinstance(answers, InputRequiredResult)
        else UserMessage(f"Hello {answers['person'].content['name']}")
    )


@server.resource(f"pair://{NAME}/clock")
def clock() -> str:
    return "noon"


@server.resource(f"pair://{NAME}/ask/{{what}}")
async def ask(what: str, ctx: Context) -> str | InputRequiredResult:
    answers = await put(ctx, person=form_question("please accept"))
    return answers if isinstance(answers, InputRequiredResult) else f"{answers['person'].content['name']}'s {what}"


async def subscribe(_: object, params: SubscribeRequestParams) -> EmptyResult:
    subscribed.add(str(params.uri))
    return EmptyResult()


async def unsubscribe(_: object, params: SubscribeRequestParams) -> EmptyResult:
    subscribed.discard(str(params.uri))
    return EmptyResult()


# `MCPServer` has nothing for the legacy era's subscriptions; the server inside it has.
inner = server._lowlevel_server
inner.add_request_handler("resources/subscribe", SubscribeRequestParams, subscribe)
inner.add_request_handler("resources/unsubscribe", SubscribeRequestParams, unsubscribe)

if len(sys.argv) > 2:
    listening = socket.create_server(("127.0.0.1", int(sys.argv[2])))
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as servers have it that open their own
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="warning")).run(sockets=[listening])
else:
    server.run("stdio")
