"""A server of one era, strict about it, that asks whatever the host declared. The standard library only.

    python raw_server.py NAME legacy|modern

Its tools are those of `sdk_server`, and three for bytes: `line` answers with the line that it got, `raw` with the
result that it was given as text, `ask` asks for sampling with the params that it was given as text and answers with the
line that brought the answer. What else asks is a generator that yields questions and is sent their answers; how they
travel is the era's matter.
"""

import json
import sys
from collections.abc import Callable, Generator
from typing import Any

NAME, ERA = sys.argv[1:]
MODERN = ERA == "modern"
OF_MCP = "io.modelcontextprotocol/"
LEVELS = ["debug", "info", "notice", "warning", "error"]
CAPABILITIES: dict[str, Any] = {
    "tools": {"listChanged": True},
    "prompts": {},
    "resources": {"subscribe": True},
    "logging": {},
}
SAMPLING, ELICITATION, ROOTS = "sampling/createMessage", "elicitation/create", "roots/list"
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
CLOCK, ASK = f"pair://{NAME}/clock", f"pair://{NAME}/ask/"

Questions = dict[str, tuple[str, dict[str, Any] | None]]
Asking = Generator[Questions, dict[str, Any], str]


class Refusal(Exception):
    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.body = {"code": code, "message": message, **({} if data is None else {"data": data})}


def write(raw: bytes) -> None:
    sys.stdout.buffer.write(raw + b"\n")
    sys.stdout.buffer.flush()


def send(**message: Any) -> None:
    write(json.dumps({"jsonrpc": "2.0", **message}).encode())


# ── what asks ──


def prompted(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": {"type": "text", "text": text}}], "maxTokens": 7, **more}


def name_in(answer: dict[str, Any]) -> str:
    return answer["content"]["name"] if answer["action"] == "accept" else "nobody"


def sample(_: dict[str, Any]) -> Asking:
    answers = yield {"model": (SAMPLING, prompted("2 + 2"))}
    return f"model: {answers['model']['content']['text']}"


def sample_with_tools(_: dict[str, Any]) -> Asking:
    tools = [{"name": "add", "inputSchema": {"type": "object"}}]
    reply = (yield {"model": (SAMPLING, prompted("2 + 2", tools=tools))})["model"]
    [use] = reply["content"] if isinstance(reply["content"], list) else [reply["content"]]
    return f"model: {use['name']} {use['input']['a']} and {use['input']['b']}, {reply['stopReason']}"


def form(arguments: dict[str, Any]) -> Asking:
    question = {"mode": "form", "message": f"please {arguments['action']}", "requestedSchema": SCHEMA}
    given = (yield {"person": (ELICITATION, question)})["person"]
    return f"accept: {given['content']['name']}" if given["action"] == "accept" else given["action"]


def visit(arguments: dict[str, Any]) -> Asking:
    page = {"mode": "url", "message": f"please {arguments['action']}", "url": "https://example.org/go"}
    answers = yield {"page": (ELICITATION, page if MODERN else page | {"elicitationId": "e-1"})}
    return answers["page"]["action"]


def roots(_: dict[str, Any]) -> Asking:
    answers = yield {"roots": (ROOTS, None)}
    return " ".join(root["uri"] for root in answers["roots"]["roots"])


def two_rounds(_: dict[str, Any]) -> Asking:
    answers = yield {"person": (ELICITATION, {"message": "please accept", "requestedSchema": SCHEMA})}
    name = name_in(answers["person"])
    answers = yield {"model": (SAMPLING, prompted(f"who is {name}?"))}
    return f"{name}, {answers['model']['content']['text']}"


def two_at_once(_: dict[str, Any]) -> Asking:
    person = {"message": "please accept", "requestedSchema": SCHEMA}
    answers = yield {"person": (ELICITATION, person), "model": (SAMPLING, prompted("2 + 2"))}
    return f"{name_in(answers['person'])}, {answers['model']['content']['text']}"


def greet(_: dict[str, Any]) -> Asking:
    answers = yield {"person": (ELICITATION, {"message": "please accept", "requestedSchema": SCHEMA})}
    return f"Hello {name_in(answers['person'])}"


def ask(params: dict[str, Any]) -> Asking:
    answers = yield {"person": (ELICITATION, {"message": "please accept", "requestedSchema": SCHEMA})}
    return f"{name_in(answers['person'])}'s {params['uri'].removeprefix(ASK)}"


ASKING: dict[str, Callable[[dict[str, Any]], Asking]] = {
    "sample": sample,
    "sample-with-tools": sample_with_tools,
    "form": form,
    "visit": visit,
    "roots": roots,
    "two-rounds": two_rounds,
    "two-at-once": two_at_once,
}
tools = [*ASKING, "era", "hold", "cancelled", "log", "grow", "touch", "line", "raw", "ask", "pages"]

# ── how questions travel ──


class Call:
    """A request that asks in its middle."""

    def __init__(self, about: Any, asking: Asking, finish: Callable[[str], dict[str, Any]]) -> None:
        self.about = about  # what a retry must be about too
        self.asking = asking
        self.finish = finish
        self.id: Any = None
        self.open: set[str] = set()
        self.answers: dict[str, Any] = {}
        self.failure: dict[str, Any] | None = None

    def go_on(self, id: Any, answers: dict[str, Any] | None) -> None:
        self.id, self.answers = id, {}
        try:
            questions = self.asking.send(answers)
        except StopIteration as end:
            succeed(id, self.finish(end.value))
            return
        self.open = set(questions)
        if MODERN:
            self.require_input(questions)
            return
        for key, (method, params) in questions.items():
            number = f"q{len(asked)}"
            asked[number] = (self, key)
            send(id=number, method=method, **({} if params is None else {"params": params}))

    def require_input(self, questions: Questions) -> None:
        state = f"{NAME}-{len(states)}"
        states[state] = self
        inputs = {
            key: {"method": method, **({} if params is None else {"params": params})}
            for key, (method, params) in questions.items()
        }
        send(id=self.id, result={"resultType": "input_required", "inputRequests": inputs, "requestState": state})

    def take(self, key: str, message: dict[str, Any]) -> None:
        """Legacy: one answer. An error ends the call when all have come."""
        self.failure = message.get("error", self.failure)
        self.answers[key] = message.get("result")
        if set(self.answers) == self.open:
            if self.failure is not None:
                fail(self.id, self.failure)
            else:
                self.go_on(self.id, self.answers)


asked: dict[Any, tuple[Call, str]] = {}  # legacy: by the question's id
states: dict[str, Call] = {}  # modern: by `requestState`


def begin(id: Any, params: dict[str, Any], asking: Asking, finish: Callable[[str], dict[str, Any]]) -> None:
    about = {key: params[key] for key in params.keys() & {"name", "arguments", "uri"}}
    if "requestState" not in params:
        assert "inputResponses" not in params
        Call(about, asking, finish).go_on(id, None)
        return
    call = states.pop(params["requestState"], None)
    if call is None or call.about != about or set(params["inputResponses"]) != call.open:
        raise Refusal(-32602, "an answer to nothing that was asked")
    call.go_on(id, params["inputResponses"])


def succeed(id: Any, result: dict[str, Any]) -> None:
    send(id=id, result={"resultType": "complete", **result} if MODERN else result)


def fail(id: Any, error: dict[str, Any]) -> None:
    send(id=id, error=error)


def text(value: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": value}]}


def message(value: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": {"type": "text", "text": value}}]}


# ── what tells ──

level = "debug"
subscribed: set[str] = set()
listening: dict[Any, dict[str, Any]] = {}  # modern: filters by subscription
held: list[Any] = []
ended: list[Any] = []  # held calls that were cancelled
wanting: list[Any] = []  # calls of `cancelled` that wait for one
visited: set[str] = set()  # legacy: pages that a call of `pages` needs
waiting: list[Any] = []  # legacy: calls of `ask`


def publish(method: str, params: dict[str, Any], wanted: Callable[[dict[str, Any]], bool]) -> None:
    for subscription, chosen in listening.items():
        if wanted(chosen):
            send(method=method, params={**params, "_meta": {OF_MCP + "subscriptionId": subscription}})


def match_cancelled() -> None:
    while ended and wanting:
        ended.pop()
        succeed(wanting.pop(0), text("it was"))


def call_tool(id: Any, params: dict[str, Any], line: bytes) -> None:
    arguments, meta = params.get("arguments", {}), params.get("_meta", {})
    match name := params["name"]:
        case "hold":
            held.append(id)
            for step in (1, 2, 3):
                progress = {"progressToken": meta["progressToken"], "progress": step, "total": 3}
                send(method="notifications/progress", params=progress | {"message": f"step {step}"})
        case "cancelled":
            wanting.append(id)
            match_cancelled()
        case "raw":
            result = arguments["result"].encode()
            write(b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (json.dumps(id).encode(), result))
        case "ask" if "requestState" in params:
            succeed(id, text(line.decode()))
        case "ask":
            question = arguments["params"].encode()
            if MODERN:
                inputs = b'{"q":{"method":"%b","params":%b}}' % (SAMPLING.encode(), question)
                body = b'{"resultType":"input_required","inputRequests":%b,"requestState":"s"}' % inputs
                write(b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (json.dumps(id).encode(), body))
            else:
                waiting.append(id)
                write(b'{"jsonrpc":"2.0","id":"q","method":"%b","params":%b}' % (SAMPLING.encode(), question))
        case "pages" if visited:
            succeed(id, text("visited"))
        case "pages":
            visited.add("e-9")
            page = {"mode": "url", "elicitationId": "e-9", "url": "https://example.org/in", "message": "please accept"}
            fail(id, {"code": -32042, "message": "visit it first", "data": {"elicitations": [page]}})
            send(method="notifications/elicitation/complete", params={"elicitationId": "e-9"})
        case "line":
            succeed(id, text(line.decode()))
        case "era":
            succeed(id, text(ERA))
        case "log":
            least = meta.get(OF_MCP + "logLevel") if MODERN else level
            for severity, data in (("debug", "too low"), ("warning", "clouds")):
                if least in LEVELS and LEVELS.index(severity) >= LEVELS.index(least):
                    send(method="notifications/message", params={"level": severity, "logger": "sky", "data": data})
            succeed(id, text("logged"))
        case "grow":
            tools.append(arguments["name"])
            if MODERN:
                publish("notifications/tools/list_changed", {}, lambda chosen: chosen.get("toolsListChanged", False))
            else:
                send(method="notifications/tools/list_changed")
            succeed(id, text("grown"))
        case "touch":
            method = "notifications/resources/updated"
            if MODERN:
                publish(method, {"uri": CLOCK}, lambda chosen: CLOCK in chosen.get("resourceSubscriptions", []))
            elif CLOCK in subscribed:
                send(method=method, params={"uri": CLOCK})
            succeed(id, text("touched"))
        case _:
            begin(id, params, ASKING[name](arguments), text)


# ── requests ──


def check_era(method: str, meta: dict[str, Any]) -> None:
    """A modern server wants the whole envelope with each request, a legacy one nothing of it."""
    present = {key for key in meta if key.startswith(OF_MCP) and key != OF_MCP + "related-task"}
    needed = {OF_MCP + "protocolVersion", OF_MCP + "clientCapabilities"}
    if not MODERN:
        if method == "server/discover":
            raise Refusal(-32601, "Method not found")
        assert not present, f"an envelope for a legacy server: {present}"
    elif method == "initialize":
        raise Refusal(-32022, "Unsupported protocol version", {"supported": ["2026-07-28"], "requested": "2025-11-25"})
    else:
        assert needed <= present, f"an envelope without {needed - present}"
        assert meta[OF_MCP + "protocolVersion"] == "2026-07-28"


def whoami() -> dict[str, Any]:
    return {"name": NAME, "version": "1"}


def request(id: Any, method: str, params: dict[str, Any], line: bytes) -> None:
    global level  # noqa: PLW0603
    check_era(method, params.get("_meta", {}))
    fresh = {"ttlMs": 0, "cacheScope": "private"} if MODERN else {}
    match method:
        case "initialize":
            succeed(id, {"protocolVersion": "2025-11-25", "capabilities": CAPABILITIES, "serverInfo": whoami()})
        case "server/discover":
            versions = {"supportedVersions": ["2026-07-28"], "capabilities": CAPABILITIES}
            succeed(id, {**versions, **fresh, "_meta": {OF_MCP + "serverInfo": whoami()}})
        case "tools/list":
            succeed(id, {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in tools], **fresh})
        case "prompts/list":
            succeed(id, {"prompts": [{"name": "greet"}], **fresh})
        case "resources/list":
            succeed(id, {"resources": [{"uri": CLOCK, "name": "clock"}], **fresh})
        case "resources/templates/list":
            succeed(id, {"resourceTemplates": [{"uriTemplate": ASK + "{what}", "name": "ask"}], **fresh})
        case "tools/call":
            call_tool(id, params, line)
        case "prompts/get":
            begin(id, params, greet(params), message)
        case "resources/read":
            begin(
                id,
                params,
                ask(params),
                lambda answer: {"contents": [{"uri": params["uri"], "text": answer}], **fresh},
            )
        case "subscriptions/listen" if MODERN:
            listening[id] = params["notifications"]
            about = {"notifications": listening[id], "_meta": {OF_MCP + "subscriptionId": id}}
            send(method="notifications/subscriptions/acknowledged", params=about)
        case "resources/subscribe" if not MODERN:
            subscribed.add(params["uri"])
            succeed(id, {})
        case "resources/unsubscribe" if not MODERN:
            subscribed.discard(params["uri"])
            succeed(id, {})
        case "logging/setLevel" if not MODERN:
            level = params["level"]
            succeed(id, {})
        case "ping" if not MODERN:
            succeed(id, {})
        case _:
            raise Refusal(-32601, f"Method not found: {method}")


def notified(method: str, params: dict[str, Any]) -> None:
    if method == "notifications/cancelled":
        listening.pop(params["requestId"], None)
        if params["requestId"] in held:
            held.remove(params["requestId"])
            ended.append(params["requestId"])
            match_cancelled()


def handle(line: bytes) -> None:
    received = json.loads(line)
    method, id = received.get("method"), received.get("id")
    if method is None and id == "q":
        succeed(waiting.pop(), text(line.decode()))
    elif method is None:
        call, key = asked.pop(id)
        call.take(key, received)
    elif id is None:
        notified(method, received.get("params") or {})
    else:
        try:
            request(id, method, received.get("params") or {}, line)
        except Refusal as refusal:
            fail(id, refusal.body)
        except Exception as bug:
            fail(id, {"code": -32603, "message": f"{type(bug).__name__}: {bug}"})


for received in iter(sys.stdin.buffer.readline, b""):
    handle(received)
