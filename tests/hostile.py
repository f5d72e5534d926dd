"""What hosts and servers of a story say: what fits, what is for something else, and what nobody expects."""

from __future__ import annotations

import json
import random
from typing import Any

from script import TOOL

import mcpmux

SPELT: dict[str, bytes] = {  # what `json.dumps` does not write
    "@huge": b"1e999",
    "@digits": b"9" * 400,
    "@deep": b"[" * 200 + b"]" * 200,
    **{f"@deep{depth}": b"[" * depth + b"]" * depth for depth in (850, 900, 5000)},
    "@half": b'"\\ud83d"',
    "@broken": b'"\xff\xfe"',
    "@twice": b'{"name":"a__log","name":"b__log","taskId":"x","taskId":"t1"}',
}
HOSTILE: list[Any] = [
    None,
    True,
    0,
    -1,
    7.5,
    "",
    "x",
    [],
    {},
    [[]],
    {"": None},
    {"name": {}},
    "\x1b[2J\u202e\n",
    *SPELT,
]
HOSTILE += ["t1", "t2", "a__log", "mem://a/x", "x" * 3000, "mcpmux:1.2.", 10**30, {"taskId": []}, {"_meta": 7}]
NAMES = ("a", "b", "c")
NAMED = [f"{name}__{tool}" for name in NAMES for tool in ("log", "danger")] + ["log", "nobody", "a__p", "b__p"]
URIS = ["mem://a", "mem://b", "mem://a/x", "tpl://1", "ui://page", "strange://x", ""]
TASKS = ["t1", "t2", "t3"]
LEVELS = ["debug", "error"]


def metas(rng: random.Random) -> dict[str, Any]:
    chosen: dict[str, Any] = rng.choice([{}, {}, {"progressToken": rng.choice(["p", 7, 0, ""])}, {"x/y": 1}])
    return dict(chosen)


def request_of_host(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A method, and params that fit it."""
    name, uri, task = rng.choice(NAMED), rng.choice(URIS), rng.choice(TASKS)
    call: dict[str, Any] = {"name": name, "arguments": {"n": rng.randrange(3)}}
    listen = {"toolsListChanged": True, "resourceSubscriptions": [uri], "taskIds": [task], "x": rng.choice([1, {}])}
    table: list[tuple[int, str, dict[str, Any]]] = [
        (12, "tools/call", call),
        (3, "tools/call", call | {"task": {"ttl": 1}}),
        (2, "prompts/get", {"name": name}),
        (3, "resources/read", {"uri": uri}),
        (2, "resources/subscribe", {"uri": uri}),
        (1, "resources/unsubscribe", {"uri": uri}),
        (1, "completion/complete", {"ref": {"type": "ref/prompt", "name": name}, "argument": {}}),
        (1, "completion/complete", {"ref": {"type": "ref/resource", "uri": "tpl://{x}"}, "argument": {}}),
        (1, "logging/setLevel", {"level": rng.choice(LEVELS)}),
        (1, "tasks/list", {}),
        (4, rng.choice(["tasks/get", "tasks/result", "tasks/cancel", "tasks/update"]), {"taskId": task}),
        (4, rng.choice(list(mcpmux.LISTS)), {}),
        (3, "subscriptions/listen", {"notifications": dict(rng.sample(list(listen.items()), rng.randrange(5)))}),
        (1, rng.choice(["ping", "server/discover", "skills/list"]), {}),
        (1, "initialize", {"protocolVersion": rng.choice(REVISIONS), "capabilities": rng.choice(DECLARED)}),
        (2, rng.choice(["vendor/x", "skills/get", "resources/directory/read"]), {"name": name, "uri": uri}),
    ]
    return rng.choices([(method, params) for _, method, params in table], [weight for weight, *_ in table])[0]


REVISIONS = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05", "2026-07-28", "none"]
EXTENSION = {"extensions": {"io.modelcontextprotocol/tasks": {}}}
ALL: dict[str, Any] = {
    "sampling": {"tools": {}},
    "elicitation": {"form": {}, "url": {}},
    "roots": {"listChanged": True},
}
ALL["tasks"] = {
    "list": {},
    "cancel": {},
    "requests": {"elicitation": {"create": {}}, "sampling": {"createMessage": {}}},
}
DECLARED: list[dict[str, Any]] = [ALL, ALL, {}, {"elicitation": {}}, {"sampling": {}}, ALL | EXTENSION, {"roots": {}}]
OFFERED: dict[str, Any] = {  # what servers say they can do
    "tools": {"listChanged": True},
    "prompts": {"listChanged": True},
    "logging": {},
    "completions": {},
    "resources": {"subscribe": True, "listChanged": True},
    "tasks": {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}},
    "extensions": {"io.modelcontextprotocol/tasks": {}, "io.modelcontextprotocol/skills": {}},
}
SOME_OFFERED: list[dict[str, Any]] = [OFFERED, OFFERED, {}, {"tools": {}}, {"extensions": {"x/y": {}}, "resources": {}}]
DANGER = TOOL | {"name": "danger", "annotations": {"destructiveHint": True}, "outputSchema": {"type": "array"}}
PAGE_OF_TOOL = TOOL | {"name": "app", "_meta": {"ui": {"resourceUri": "ui://page"}}}


def question(rng: random.Random) -> tuple[str, dict[str, Any]]:
    said = {"role": "user", "content": {"type": "text", "text": "?"}}
    sampling: dict[str, Any] = {"messages": [said], "maxTokens": 1, **rng.choice([{}, {"tools": []}, {"task": {}}])}
    form = {"message": "?", "requestedSchema": {"type": "object", "properties": {}}}
    table: list[tuple[str, dict[str, Any]]] = [
        ("sampling/createMessage", sampling),
        ("elicitation/create", form),
        ("elicitation/create", form | {"task": {}}),
        ("elicitation/create", {"mode": "url", "message": "?", "url": "https://x", "elicitationId": "e1"}),
        ("roots/list", {}),
        (rng.choice(["tasks/list", "tasks/get", "tasks/result", "ping", "vendor/x"]), {"taskId": rng.choice(TASKS)}),
    ]
    method, params = rng.choice(table)
    return method, params | ({"_meta": meta} if (meta := metas(rng)) else {})


def answer_to(rng: random.Random, method: str) -> dict[str, Any]:
    """A result that fits the method, or one that is for another."""
    id, texts = rng.choice(TASKS), [{"type": "text", "text": "t"}, {"type": "resource_link", "uri": rng.choice(URIS)}]
    asked = {
        f"k{n}": {"method": m, "params": p} for n, (m, p) in enumerate(question(rng) for _ in range(rng.randrange(3)))
    }
    rounds: dict[str, Any] = {
        "resultType": "input_required",
        "inputRequests": asked,
        "requestState": rng.choice(["s", 7]),
    }
    task = {"taskId": id, "status": rng.choice(["working", "completed", "input_required"]), "inputRequests": asked}
    calls: list[dict[str, Any]] = [
        {"content": texts, "structuredContent": {}},
        {"content": texts, "resultType": "complete"},
        {"task": task},
        {"resultType": "task", **task},
        rounds,
        {key: rounds[key] for key in rng.sample(list(rounds), rng.randrange(1, 4))},
    ]
    if method in mcpmux.CARRIERS:
        return rng.choice(calls)
    fitting: dict[str, dict[str, Any]] = {
        "tasks/list": {"tasks": [{"taskId": one} for one in TASKS], "nextCursor": rng.choice([None, "n", 1])},
        "tasks/get": task,
        "elicitation/create": {"action": rng.choice(["accept", "decline", "cancel"]), "content": {}},
        "sampling/createMessage": {"role": "assistant", "content": texts[0], "model": "m"},
        "roots/list": {"roots": [{"uri": "file:///x"}]},
        mcpmux.PREPARE: {"params": {"messages": []}, "models": rng.choice([["m"], 7]), "usd": rng.choice([0.1, "x"])},
        "ask": {"action": rng.choice(["accept", "decline", "cancel"]), "content": {"decision": rng.choice(DECISIONS)}},
        "initialize": {"protocolVersion": rng.choice(REVISIONS), "capabilities": rng.choice(SOME_OFFERED)},
        "server/discover": {"supportedVersions": ["2026-07-28"], "capabilities": rng.choice(SOME_OFFERED)},
        "skills/list": {"skills": [{"uri": "skill://x"}], "nextCursor": rng.choice([None, "n"])},
    }
    for kind in mcpmux.LISTS:
        fitting[kind] = {
            mcpmux.LISTS[kind].key: rng.choice([[], OFFERS[kind], [7]]),
            "nextCursor": rng.choice([None, "n"]),
        }
    return fitting.get(method, {}) if rng.random() < 0.8 else rng.choice(list(fitting.values()))


DECISIONS = ["yes", "once", "always", "no", "nonsense"]
OFFERS: dict[str, list[Any]] = {
    "tools/list": [TOOL, DANGER, PAGE_OF_TOOL],
    "prompts/list": [{"name": "p"}],
    "resources/list": [{"uri": "mem://a", "name": "a"}],
    "resources/templates/list": [{"name": "t", "uriTemplate": "tpl://{x}"}],
}
ERRORS = [(-32601, "none"), (-32002, "not found"), (-32602, "bad"), (-32022, "old"), (-32042, "pages"), (1, "x")]
DATA: list[Any] = [
    None,
    7,
    {"supported": ["2026-07-28"]},
    {"elicitations": [{"url": "https://x", "elicitationId": "e1"}]},
]


def error(rng: random.Random) -> dict[str, Any]:
    code, message = rng.choice(ERRORS)
    return {"code": code, "message": message, "data": rng.choice(DATA)}


def reply_to(rng: random.Random, id: Any, method: str) -> dict[str, Any]:
    """What a peer answers, more or less."""
    body: dict[str, Any] = {"error": error(rng)} if rng.random() < 0.2 else {"result": answer_to(rng, method)}
    if rng.random() < 0.12:
        more: dict[str, Any] = rng.choice([{}, {"error": 7}, {"result": 7}])
        body = {key: bent(rng, value) for key, value in body.items()} | more
    return {"jsonrpc": "2.0", "id": rng.choice([id, id, id, str(id)]), **body}


def told_by_server(rng: random.Random, numbers: list[int]) -> tuple[str, dict[str, Any]]:
    id: Any = rng.choice([*numbers, 7]) if numbers else rng.choice(["q1", 7])
    table: list[tuple[str, dict[str, Any]]] = [
        ("notifications/progress", {"progressToken": id, "progress": rng.randrange(9)}),
        ("notifications/message", {"level": rng.choice(LEVELS), "data": 1, "logger": rng.choice(["x", 7])}),
        ("notifications/cancelled", {"requestId": id}),
        ("notifications/resources/updated", {"uri": rng.choice(URIS)}),
        ("notifications/tasks/status", {"taskId": rng.choice(TASKS), "status": rng.choice(["working", "failed"])}),
        ("notifications/tasks", {"taskId": rng.choice(TASKS), "_meta": {SUBSCRIPTION: id}, "inputRequests": {}}),
        ("notifications/elicitation/complete", {"elicitationId": "e1"}),
        ("notifications/subscriptions/acknowledged", {"_meta": {SUBSCRIPTION: id}}),
        (rng.choice([kind.changed for kind in mcpmux.LISTS.values()]), {}),
        ("notifications/vendor", {}),
    ]
    return rng.choice(table)


SUBSCRIPTION = mcpmux.SUBSCRIPTION_KEY


def told_by_host(rng: random.Random) -> tuple[str, dict[str, Any]]:
    table: list[tuple[str, dict[str, Any]]] = [
        ("notifications/initialized", {}),
        ("notifications/roots/list_changed", {}),
        ("notifications/tasks/status", {"taskId": rng.choice(TASKS), "status": rng.choice(["working", "failed"])}),
        ("notifications/progress", {"progressToken": rng.randrange(60), "progress": rng.randrange(9)}),
        ("notifications/vendor", {}),
    ]
    return rng.choice(table)


def bent(rng: random.Random, value: Any) -> Any:
    """With one node replaced, or left out, at any depth."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        rest = {one: value[one] for one in value if one != key}
        return rest if rng.random() < 0.2 else rest | {key: bent(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], bent(rng, value[at]), *value[at + 1 :]]
    return rng.choice(HOSTILE)


def spelt(message: dict[str, Any]) -> bytes:
    line = json.dumps(message).encode()
    for mark, raw in SPELT.items():
        line = line.replace(b'"%b"' % mark.encode(), raw)
    return line


def torn(rng: random.Random, line: bytes) -> bytes:
    """With some bytes gone, changed, or twice."""
    at, to = sorted((rng.randrange(len(line)), rng.randrange(len(line))))
    return rng.choice(
        [
            line[:at],
            line[:at] + line[to:],
            line[:at] + bytes([rng.randrange(256)]) + line[at + 1 :],
            line[:to] + line[at:],
        ]
    ).replace(b"\n", b" ")
