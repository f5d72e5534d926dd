"""The one harness round the core: a host, servers and a model played by the test, a clock that the test moves.

Servers greet and list by themselves, from what `offers` says; everything else a test sees and answers on its own.
Each message to the host is checked as it comes: valid, and no request answered twice.
"""

from __future__ import annotations

import copy
import heapq
import json
from typing import Any

import mcpmux
from mcpmux import Core, MuxOptions, SamplingLimits, SamplingOptions, ServerOptions

TOOL = {"name": "log", "description": "Shows the log", "inputSchema": {"type": "object"}}
CAPABILITIES: dict[str, Any] = {
    "tools": {"listChanged": True},
    "prompts": {},
    "resources": {"subscribe": True},
    "logging": {},
    "completions": {},
    "tasks": {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}},
}


SAMPLER, PAGE = mcpmux.Peer.SAMPLER, mcpmux.Peer.PAGE
PREFIX = "io.modelcontextprotocol/"


def envelope(capabilities: dict[str, Any], version: str = "2026-07-28") -> dict[str, Any]:
    """What each modern request has in `_meta`."""
    info = {"name": "script", "version": "1"}
    values = {"protocolVersion": version, "clientInfo": info, "clientCapabilities": capabilities}
    return {PREFIX + key: value for key, value in values.items()}


class Message(dict[str, Any]):
    """A parsed line with its bytes."""

    raw: bytes = b""
    source: mcpmux.Name = mcpmux.Peer.HOST  # of one to the host: through whose queue it came

    @property
    def is_error(self) -> bool:
        return "error" in self or bool(self.get("result", {}).get("isError"))

    @property
    def text(self) -> str:
        """What a person is told: an error's message, or a result's first text."""
        return self["error"]["message"] if "error" in self else self["result"]["content"][0]["text"]


class Script:
    def __init__(
        self,
        servers: list[str] | dict[str, ServerOptions] | None = None,
        *,
        options: MuxOptions | None = None,
        sampling: SamplingOptions | None = None,
        capabilities: dict[str, Any] | None = None,
        revision: str = "2025-11-25",
        broken: dict[str, str] | None = None,
        offers: dict[str, dict[str, Any]] | None = None,
        server_capabilities: dict[str, Any] | None = None,
        silent: tuple[str, ...] = (),
        modern: tuple[str, ...] = (),
        known: dict[str, list[mcpmux.Known]] | None = None,
        names: mcpmux.Names | None = None,
        pins: mcpmux.Pins | None = None,
        hosts: dict[str, mcpmux.HostOptions] | None = None,
        consents: dict[str, str] | None = None,
        page: bool = False,
        begin: bool = True,
    ) -> None:
        tables = servers if isinstance(servers, dict) else {name: ServerOptions(command=name) for name in servers or []}
        # Every server's use of the model is consented to, if nothing else is said.
        self.consents = dict.fromkeys(tables, "always") if consents is None else consents
        self.has_all_consents = consents is None
        of_disk: Any = {"known": known, "names": names, "pins": copy.deepcopy(pins), "hosts": hosts}
        of_disk["consents"] = self.consents
        self.core = Core(options or MuxOptions(), tables, sampling=sampling, broken=broken, has_page=page, **of_disk)
        self.now = 1000.0
        self.timers: list[tuple[float, int, mcpmux.TimerKey]] = []
        self.due: dict[mcpmux.TimerKey, float] = {}
        self.set_timers = 0
        self.capabilities = capabilities or {}
        self.server_capabilities = CAPABILITIES if server_capabilities is None else server_capabilities
        self.revision = revision
        self.offers: dict[str, dict[str, Any]] = {name: {"tools/list": [TOOL]} for name in tables} | (offers or {})
        self.silent = set(silent)  # servers that never answer a handshake
        self.modern = set(modern)  # servers of the modern era only
        self.runs: dict[mcpmux.Name, int] = {}
        self.to_host: list[Message] = []
        self.to_server: dict[str, list[Message]] = {name: [] for name in self.core.servers}
        self.prepares = True  # the sampler finds nothing to change in what it is to prepare
        self.to_model: list[Message] = []  # what the sampler process is told
        self.to_page: list[Message] = []  # and the page's
        self.page_starts = 0
        self.said: list[int] = []  # answered there
        self.saved: dict[str, mcpmux.Known] = {}
        self.names = names or {}  # who has which
        self.pins: mcpmux.Pins = copy.deepcopy(pins) or {}  # what was accepted
        self.started: list[mcpmux.Name] = []
        self.stopped: list[mcpmux.Name] = []
        self.sampler_starts: list[mcpmux.Name] = []
        self.sampler_stops: list[mcpmux.Name] = []
        self.logged: list[str] = []
        self.bugs_allowed = False
        self.answered: list[Any] = []
        self.enveloped: set[Any] = set()  # ids of the host's modern requests
        if begin:
            self.initialize()

    # ── the host's part ──

    def initialize(self, **params: Any) -> Message:
        info = {"name": "script", "version": "1"}
        asked = {"protocolVersion": self.revision, "capabilities": self.capabilities, "clientInfo": info}
        self.host_asks("init", "initialize", **(asked | params))
        self.host_sends(method="notifications/initialized")
        self.advance(0.2)
        return self.host_hears("init")

    def host_sends(self, raw: bytes | None = None, **message: Any) -> None:
        line = raw if raw is not None else json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.feed(mcpmux.HostLines([line]))

    def host_asks(self, id: Any, method: str, /, **params: Any) -> None:
        self.host_sends(id=id, method=method, **({"params": params} if params else {}))

    def host_hears(self, id: Any) -> Message:
        """The answer to a request of the host's; there must be exactly one."""
        found = [m for m in self.to_host if "method" not in m and m.get("id") == id and type(m.get("id")) is type(id)]
        assert len(found) == 1, f"{len(found)} answers to {id!r}"
        return found[0]

    def host_told(self, method: str) -> list[Message]:
        """The requests and notifications of this method that came to the host."""
        return [message for message in self.to_host if message.get("method") == method]

    def asks(self, id: Any, method: str, /, **params: Any) -> Message:
        """A request that is answered at once."""
        self.host_asks(id, method, **params)
        return self.host_hears(id)

    def asks_modern(self, id: Any, method: str, /, **params: Any) -> Message:
        """A request with an envelope, answered at once."""
        self.host_asks_modern(id, method, **params)
        return self.host_hears(id)

    def host_asks_modern(
        self,
        id: Any,
        method: str,
        /,
        capabilities: dict[str, Any] | None = None,
        meta: dict[str, Any] | None = None,
        **params: Any,
    ) -> None:
        """A request with an envelope; `capabilities` are those that it declares."""
        declared = self.capabilities if capabilities is None else capabilities
        self.enveloped.add(id)
        self.host_asks(id, method, **params, _meta=envelope(declared) | (meta or {}))

    def tools(self) -> list[str]:
        return [tool["name"] for tool in self.asks(f"list{len(self.answered)}", "tools/list")["result"]["tools"]]

    # ── the servers' part ──

    def server_sends(self, server: str, raw: bytes | None = None, **message: Any) -> None:
        line = raw if raw is not None else json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.feed(mcpmux.ServerLines(server, self.runs[server], [line]))

    def server_hears(self, server: str, method: str) -> Message:
        """The last request or notification of this method that came to a server."""
        return next(one for one in reversed(self.to_server[server]) if one.get("method") == method)

    def server_heard(self, server: str, method: str) -> list[Message]:
        return [message for message in self.to_server[server] if message.get("method") == method]

    def server_answers(self, server: str, method: str, result: Any = None, error: Any = None) -> None:
        """Answers the last request of this method."""
        number = self.server_hears(server, method)["id"]
        self.server_sends(server, id=number, **({"error": error} if error else {"result": result or {}}))

    def answer_to_server(self, server: str, id: Any) -> Message:
        """The one answer to a question that a server asked."""
        found = [m for m in self.to_server[server] if "method" not in m and m.get("id") == id]
        assert len(found) == 1, f"{len(found)} answers to {id!r}"
        return found[0]

    def server_dies(
        self, server: str, code: int = 1, stderr: list[str] | None = None, unread: list[Message] | None = None
    ) -> None:
        """`unread` is what it was sent and has certainly not taken."""
        lines = [message.raw or json.dumps(message).encode() for message in unread or []]
        reason = f"{server} exited with code {code}"
        self.feed(mcpmux.ServerGone(server, self.runs[server], reason, "look", stderr or [], lines))

    # ── the model's part ──

    def model_asked(self) -> list[Message]:
        """The requests that came to the sampler; their params are `server` and that server's `params`."""
        return [message for message in self.to_model if message.get("method") == "sampling/createMessage"]

    def withdrawn_from_model(self) -> list[int]:
        """The ids of the requests that the sampler was told to drop."""
        told = [message for message in self.to_model if message.get("method") == "notifications/cancelled"]
        return [message["params"]["requestId"] for message in told]

    def model_sends(self, raw: bytes | None = None, **message: Any) -> None:
        line = raw if raw is not None else json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.sampler_sends(line)

    def sampler_sends(self, *lines: bytes | mcpmux.TooLong) -> None:
        self.feed(mcpmux.ServerLines(SAMPLER, self.runs.get(SAMPLER, 0), list(lines)))

    def model_answers(self, result: Any = None, error: Any = None) -> None:
        """Answers the last request."""
        self.model_sends(id=self.model_asked()[-1]["id"], **({"error": error} if error else {"result": result or {}}))

    def sampler_dies(self, reason: str = "the sampler exited with code 1") -> None:
        if SAMPLER in self.runs:
            self.feed(mcpmux.ServerGone(SAMPLER, self.runs[SAMPLER], reason, "ask again", []))

    # ── the page's part ──

    def asked_on_page(self) -> list[Message]:
        """What is open there."""
        told = [one["params"]["requestId"] for one in self.to_page if one.get("method") == "notifications/cancelled"]
        return [one for one in self.to_page if one.get("method") == "ask" and one["id"] not in (*told, *self.said)]

    def page_says(self, action: str | None, number: int = -1, **more: Any) -> None:
        """Answers one of those."""
        id = self.asked_on_page()[number]["id"]
        self.said.append(id)
        line = json.dumps({"jsonrpc": "2.0", "id": id, "result": {"action": action, **more}}).encode()
        self.feed(mcpmux.ServerLines(PAGE, self.runs[PAGE], [line]))

    def page_dies(self) -> None:
        self.to_page.clear()
        self.feed(mcpmux.ServerGone(PAGE, self.runs[PAGE], "the page exited with code 1", "", []))

    # ── time ──

    def advance(self, seconds: float) -> None:
        """Moves the clock; timers fire in order."""
        end = self.now + seconds
        while self.timers and self.timers[0][0] <= end:
            at, _, key = heapq.heappop(self.timers)
            if self.due.get(key) == at:
                del self.due[key]
                self.now = at
                self.feed(mcpmux.TimerDue(key))
        self.now = end

    # ── the machine ──

    def feed(self, event: mcpmux.Event) -> None:
        self._perform(self.core.handle(event, self.now))
        if isinstance(event, mcpmux.ConfigChanged):  # the disk is looked at anew
            kept = dict.fromkeys(event.servers, "always") if self.has_all_consents else self.consents
            self.feed(mcpmux.ConsentsRead(kept))

    def _perform(self, effects: list[mcpmux.Effect]) -> None:
        for effect in effects:
            match effect:
                case mcpmux.SendHost(source, line):
                    message = self._parse(line)
                    message.source = source
                    if "method" not in message and "id" in message:
                        self.answered.append(message["id"])
                        is_modern = message["id"] in self.enveloped
                        assert "error" in message or not is_modern or "resultType" in message["result"]
                    self.to_host.append(message)
                case mcpmux.SendServer(server, line) if server in (SAMPLER, PAGE):
                    told = self._parse(line)
                    (self.to_model if server is SAMPLER else self.to_page).append(told)
                    if told.get("method") == "prepare" and self.prepares:
                        params = mcpmux.object_of(mcpmux.decode_line(line).params)["params"]
                        self.model_sends(
                            b'{"jsonrpc":"2.0","id":%d,"result":{"params":%b,"models":["m"],"usd":0}}'
                            % (told["id"], bytes(params))
                        )
                case mcpmux.SendServer(str(server), line):
                    self._server_gets(server, self._parse(line))
                case mcpmux.Start(server, run):
                    self.runs[server] = run
                    self.page_starts += server is PAGE
                    (self.started if isinstance(server, str) else self.sampler_starts).append(server)
                    self.comes_up(server, run)
                case mcpmux.Stop(server, run):
                    (self.stopped if isinstance(server, str) else self.sampler_stops).append(server)
                case mcpmux.SaveCatalogue(server, known):
                    self.saved[server] = known
                case mcpmux.SaveNames(names):
                    self.names = names
                case mcpmux.SaveConsent(server, decision):
                    self.consents[server] = decision
                case mcpmux.SavePins(pins):
                    for server, new in pins.items():
                        self.pins.setdefault(server, {}).update(copy.deepcopy(new))
                case mcpmux.SetTimer(key, at):
                    self.due.pop(key, None)
                    if at is not None:
                        self.due[key] = at
                        self.set_timers += 1  # of two at the same time the first
                        heapq.heappush(self.timers, (at, self.set_timers, key))
                case mcpmux.Log(_, text):
                    assert self.bugs_allowed or not text.startswith("a bug in mcpmux"), text
                    self.logged.append(text)

    def comes_up(self, server: mcpmux.Name, run: int) -> None:
        self.feed(mcpmux.ServerUp(server, run))
        if server is SAMPLER:
            self.model_sends(method="loaded")

    def _parse(self, line: bytes) -> Message:
        assert line.endswith(b"\n") and line.count(b"\n") == 1
        message = Message(json.loads(line))
        message.raw = line[:-1]
        assert message.keys() <= {"jsonrpc", "id", "method", "params", "result", "error"}
        assert ("result" in message) + ("error" in message) + ("method" in message) == 1
        return message

    def _server_gets(self, server: str, message: Message) -> None:
        self.to_server[server].append(message)
        method, offered = message.get("method"), self.offers[server]
        if server in self.silent and method in ("initialize", "server/discover"):
            return
        if server in self.modern and method is not None and "id" in message:
            self._modern_server_gets(server, message)
        elif method == "server/discover":
            self.server_sends(server, id=message["id"], error={"code": -32601, "message": "Method not found"})
        elif method == "initialize":
            asked = message["params"]["protocolVersion"]
            result = {
                "protocolVersion": asked,
                "capabilities": self.server_capabilities,
                "serverInfo": {"name": server},
            }
            self.server_sends(server, id=message["id"], result=result | {"instructions": f"use {server} well"})
        elif method in mcpmux.LISTS and offered.get(method) is not Ellipsis:
            entries = offered.get(method, [])
            if isinstance(entries, dict):  # an error
                self.server_sends(server, id=message["id"], error=entries)
            else:
                self.server_sends(server, id=message["id"], result={mcpmux.LISTS[method].key: entries})
        elif method in ("logging/setLevel", "resources/subscribe", "resources/unsubscribe"):
            self.server_sends(server, id=message["id"], result={})

    def _modern_server_gets(self, server: str, message: Message) -> None:
        method, params = message["method"], message.get("params", {})
        meta = params.get("_meta")
        if not isinstance(meta, dict) or meta.get(PREFIX + "protocolVersion") != "2026-07-28":
            data = {"supported": ["2026-07-28"], "requested": "none"}
            self.server_sends(server, id=message["id"], error={"code": -32022, "message": "old", "data": data})
            return
        assert isinstance(meta[PREFIX + "clientCapabilities"], dict)
        assert isinstance(meta[PREFIX + "clientInfo"], dict)
        more = {"resultType": "complete", "ttlMs": 1, "cacheScope": "public"}
        if method == "server/discover":
            info = {PREFIX + "serverInfo": {"name": server, "version": "2"}}
            result = {"supportedVersions": ["2026-07-28"], "capabilities": self.server_capabilities, "_meta": info}
            self.server_sends(server, id=message["id"], result={**more, **result})
        elif method in mcpmux.LISTS:
            entries = self.offers[server].get(method, [])
            self.server_sends(server, id=message["id"], result={**more, mcpmux.LISTS[method].key: entries})
        elif method == "subscriptions/listen":
            known = {key: value for key, value in params.get("notifications", {}).items() if value}
            acknowledged = {"_meta": {PREFIX + "subscriptionId": message["id"]}, "notifications": known}
            self.server_sends(server, method="notifications/subscriptions/acknowledged", params=acknowledged)


# ── what many tests say ──


def tools(*names: str) -> dict[str, Any]:
    return {"tools/list": [{**TOOL, "name": name} for name in names]}


def server(**table: Any) -> ServerOptions:
    return ServerOptions(command="x", **table)


LEGACY = server(protocol="legacy")

PAYLOAD = b'{"z":1.0,"a":1e2,"u":"\\u00e9\\/","_x":[ 1 , 2 ],"n":null,"big":123456789012345678901234567890}'

RESOURCES = {
    "a": {"resources/list": [{"uri": "mem://a", "name": "a"}]},
    "b": {"resources/list": [], "resources/templates/list": [{"uriTemplate": "mem://t/{x}", "name": "t"}]},
}

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": {"type": "text", "text": "hi"}}], "maxTokens": 9}

WITH_TOOLS: dict[str, Any] = ASKED | {"tools": [{"name": "t", "inputSchema": {"type": "object"}}]}

SPOKEN: dict[str, Any] = {"role": "assistant", "content": {"type": "text", "text": "ho"}, "model": "m"}


def sampler(timeout_sec: float = 120, **limits: Any) -> SamplingOptions:
    return SamplingOptions(timeout_sec=timeout_sec, limits=SamplingLimits(**limits))


def samples(s: Script, server: str, id: Any, params: dict[str, Any] | None = None) -> None:
    s.server_sends(server, id=id, method="sampling/createMessage", params=ASKED if params is None else params)


def nothing_is_open(s: Script) -> bool:
    return len(s.core.in_flight) == 0


def start_task(s: Script, id: Any = 1, task: str = "t1", server: str = "git", **params: Any) -> int:
    s.host_asks(id, "tools/call", name=f"{server}__log", task={"ttl": 1000}, **params)
    number = s.server_hears(server, "tools/call")["id"]
    s.server_sends(server, id=number, result={"task": {"taskId": task, "status": "working"}})
    return number


HOST_TASKS = {"sampling": {}, "tasks": {"list": {}, "requests": {"sampling": {"createMessage": {}}}}}
