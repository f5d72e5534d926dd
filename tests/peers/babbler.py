"""A server that says anything at any time, by its seed: what fits, what does not, and what is no message at all. The
standard library only.

    python babbler.py --name NAME SEED
"""

import json
import random
import sys

name, seed = sys.argv[2:4]
rng = random.Random(int(seed))
CAPABILITIES = {"tools": {"listChanged": True}, "prompts": {}, "resources": {"subscribe": True}, "logging": {}}
TOOLS = [{"name": tool, "inputSchema": {"type": "object"}} for tool in ("log", "danger")]
FITTING: dict[str, dict[str, object]] = {
    "tools/list": {"tools": TOOLS},
    "prompts/list": {"prompts": [{"name": "p"}]},
    "resources/list": {"resources": [{"uri": f"mem://{name}", "name": name}]},
    "resources/templates/list": {"resourceTemplates": [{"name": "t", "uriTemplate": "tpl://{x}"}]},
}
QUESTIONS: list[tuple[str, dict[str, object]]] = [
    ("elicitation/create", {"message": "?", "requestedSchema": {"type": "object", "properties": {}}}),
    ("sampling/createMessage", {"messages": [], "maxTokens": 1}),
    ("roots/list", {}),
    ("vendor/x", {}),
]
JUNK = [b"nonsense", b"{", b"[1]", b"\xff\xfe", b'{"id":7}', b'{"result":{}}', b'{"id":null,"error":{}}', b"\x1b[2J"]
NEWS = ["notifications/tools/list_changed", "notifications/message", "notifications/progress", "notifications/vendor"]


def write(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def send(**message: object) -> None:
    write(json.dumps({"jsonrpc": "2.0", **message}).encode())


asked = 0
for text in sys.stdin.buffer:
    message = json.loads(text)
    method, number = message.get("method"), message.get("id")
    if method == "initialize":
        known = {"protocolVersion": message["params"]["protocolVersion"], "capabilities": CAPABILITIES}
        send(id=number, result={**known, "serverInfo": {"name": name, "version": "1"}})
        continue
    for _ in range(rng.randrange(3)):
        asked += 1
        question, params = rng.choice(QUESTIONS)
        told = {"progressToken": number, "progress": rng.randrange(9), "level": rng.choice(["info", 7]), "data": 1}
        rng.choice(
            [
                lambda: write(rng.choice(JUNK)),
                lambda: send(id=f"q{asked}", method=question, params=params),  # noqa: B023
                lambda: send(method=rng.choice(NEWS), params=told),  # noqa: B023
                lambda: send(id=rng.randrange(60), result={}),
                lambda: print("on stderr \x1b[2J", file=sys.stderr, flush=True),
            ]
        )()
    if number is None or method is None:
        continue
    match rng.randrange(20):
        case 0 if method not in FITTING:
            sys.exit(3)
        case 1 if method not in FITTING:
            send(id=number, error={"code": rng.choice([-32601, -32002, -32042, 1]), "message": "no"})
        case 2:
            send(id=str(number), result=rng.choice([7, None, [], {"content": "x"}]))
        case 3 if method not in FITTING:
            pass  # it never does
        case _:
            send(id=number, result=FITTING.get(method, {"content": [{"type": "text", "text": name}]}))
