"""A legacy MCP server with every vice. The standard library only; its behaviour is its command line.

    python fake_server.py [--start BEHAVIOUR] [--tools NAME,…] [--name NAME] [--capabilities JSON] …

It never sleeps: a call of `hold` stays open until `release`, and what a test waits for is a message or a process's end.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading

parser = argparse.ArgumentParser()
parser.add_argument("--name", default="fake")
parser.add_argument("--revision", help="answered to initialize; default: the one that was asked for")
parser.add_argument(
    "--capabilities",
    default='{"tools":{"listChanged":true},"logging":{},"prompts":{},"resources":{"subscribe":true},"completions":{}}',
)
parser.add_argument("--exit", type=int, help="exit at once with this code")
parser.add_argument("--stderr", help="say this on stderr first")
parser.add_argument("--flood-stderr", action="store_true", help="a thread that never stops writing to stderr")
parser.add_argument("--silent", action="store_true", help="reads and never answers")
parser.add_argument("--garbage", action="store_true", help="lines that are no JSON before each answer")
parser.add_argument("--refuse", action="store_true", help="answers initialize with an error")
parser.add_argument("--ignore-eof", action="store_true")
parser.add_argument("--ignore-term", action="store_true")
parser.add_argument("--grandchild", help="starts a process that holds the pipes, and writes its pid to this file")
parser.add_argument("--pages", type=int, default=0, help="that many pages of one more tool each")
parser.add_argument("--stuck-cursor", action="store_true", help="the same cursor for ever")
parser.add_argument(
    "--ask-roots", action="store_true", help="asks for roots after initialized; tools fail until they come"
)
parser.add_argument("--pid-file")
parser.add_argument("--grandchild-session", action="store_true", help="the grandchild leads a session of its own")
parser.add_argument("--say-goodbye", action="store_true", help="says on stderr what told it to end")
parser.add_argument("--mute", help="never answers this method")
parser.add_argument("--hello", default="{}", help="JSON members for the result of initialize")
parser.add_argument("--list", help="the result of tools/list, byte for byte")
parser.add_argument("--also", default="", help="NAME,…: lists these tools too (write, where, flood, calm)")
parser.add_argument("--gate", help="initialize is answered when somebody has written to this fifo")
options = parser.parse_args()

stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
if options.stderr:
    print(options.stderr, file=sys.stderr, flush=True)
if options.exit is not None:
    sys.exit(options.exit)
if options.ignore_term:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
elif options.say_goodbye:

    def leave(number: int, _: object) -> None:
        os.write(2, b"goodbye at SIGTERM\n")
        os._exit(0)

    signal.signal(signal.SIGTERM, leave)
if options.pid_file:
    with open(options.pid_file, "a") as file:
        print(os.getpid(), file=file)
if options.grandchild:
    child = subprocess.Popen(
        # not for ever: a test that fails is to leave nothing
        [sys.executable, "-c", "import time; time.sleep(600)"],
        start_new_session=options.grandchild_session,
    )
    with open(options.grandchild, "w") as file:
        file.write(str(child.pid))
if options.flood_stderr:

    def flood() -> None:
        while True:
            os.write(2, b"flood " * 4096 + b"\n")

    threading.Thread(target=flood, daemon=True).start()

TOOLS = [
    "echo",
    "raw",
    "line",
    "hold",
    "release",
    "crash",
    "env",
    "pid",
    "progress",
    "log",
    "burst",
    "ask",
    "notify",
    "big",
]
TOOLS += [name for name in options.also.split(",") if name]
calm = threading.Event()
held: list[object] = []
cancelled: list[object] = []
answers: dict[object, object] = {}  # the host's answers to what we asked
waiting: dict[object, object] = {}  # id of our question -> id of the call that asked it; None: it is over
asked = 0
extra_tools: list[str] = []
roots: object = None


def write(raw: bytes) -> None:
    if options.garbage:
        stdout.write(b'warning: this is not JSON\n{"half": \n\xff\xfe\n[1,2,3]\n')
    stdout.write(raw + b"\n")
    stdout.flush()


def send(**message: object) -> None:
    write(json.dumps({"jsonrpc": "2.0", **message}).encode())


def text(value: object) -> dict[str, object]:
    return {"content": [{"type": "text", "text": value if isinstance(value, str) else json.dumps(value)}]}


def call(id: object, name: str, arguments: dict, params: dict, line: bytes) -> None:
    token = params.get("_meta", {}).get("progressToken")
    match name:
        case "echo":
            send(id=id, result={**text(arguments), "_meta": params.get("_meta", {})})
        case "raw":  # the result is given as text, byte for byte
            write(b'{"jsonrpc":"2.0","id":%s,"result":%s}' % (json.dumps(id).encode(), arguments["result"].encode()))
        case "line":  # what was received, byte for byte
            send(id=id, result=text(line.decode()))
        case "hold":
            held.append(id)
            send(method="notifications/message", params={"level": "info", "data": "held"})
        case "release":
            for one in held:
                send(id=one, result=text("released"))
            send(id=id, result=text({"released": len(held), "cancelled": len(cancelled)}))
            held.clear()
        case "crash":
            print("about to crash", file=sys.stderr, flush=True)
            os._exit(arguments.get("code", 3))
        case "env":
            send(id=id, result=text(dict(os.environ)))
        case "pid":
            send(id=id, result=text(str(os.getpid())))
        case "progress":
            for value in arguments.get("values", [1, 2, 3]):
                send(method="notifications/progress", params={"progressToken": token, "progress": value, "total": 3})
            send(id=id, result=text("done"))
            send(method="notifications/progress", params={"progressToken": token, "progress": 99})
        case "log":
            send(
                method="notifications/message",
                params={"level": "info", "logger": arguments.get("logger"), "data": "hello"},
            )
            send(id=id, result=text("logged"))
        case "burst":
            extra_tools.append(f"extra{len(extra_tools)}")
            for _ in range(arguments.get("times", 4)):
                send(method="notifications/tools/list_changed")
            send(id=id, result=text("changed"))
        case "ask":  # with `later` the call is over first, and the answer comes as a log message
            global asked  # noqa: PLW0603
            asked += 1
            question = arguments.get("id", f"q{asked}")
            if "later" in arguments:
                send(id=id, result=text("asked"))
            waiting[question] = None if "later" in arguments else id
            send(id=question, method=arguments["method"], params=arguments.get("params", {}))
        case "notify":
            send(method=arguments["method"], params=arguments.get("params", {}))
            send(id=id, result=text("notified"))
        case "big":
            send(id=id, result=text("x" * arguments["bytes"]))
        case "write":  # any bytes at all; $ID is this call's id, $OLD that of the call cancelled last, $PAD much
            raw = arguments.get("before", "").encode() * arguments.get("times", 1)
            raw += arguments["text"].encode("latin-1").replace(b"$ID", json.dumps(id).encode())
            raw = raw.replace(b"$OLD", json.dumps(cancelled[-1] if cancelled else None).encode())
            stdout.write(raw.replace(b"$PAD", b"x" * arguments.get("pad", 0)))
            stdout.flush()
            if "exit" in arguments:
                os._exit(arguments["exit"])
            for number in arguments.get("close", []):
                os.close(number)
            if "close" in arguments or "deaf" in arguments:  # and never reads again
                threading.Event().wait()
        case "where":
            send(id=id, result=text({"cwd": os.getcwd(), "argv": sys.argv}))
        case "flood":  # its answer comes first, then log messages without end until `calm`
            send(id=id, result=text("flooding"))

            def pour() -> None:
                while not calm.is_set():
                    send(method="notifications/message", params={"level": "info", "data": "flood " * 400})

            threading.Thread(target=pour, daemon=True).start()
        case "calm":
            calm.set()
            send(id=id, result=text("calm"))
        case _:
            send(id=id, result={**text(f"unknown tool {name}"), "isError": True})


def handle(line: bytes) -> None:
    global roots  # noqa: PLW0603
    message = json.loads(line)
    method, id, params = message.get("method"), message.get("id"), message.get("params") or {}
    match method:
        case options.mute if method is not None:
            pass
        case None:
            if id == "roots":
                roots = message
            elif id in waiting:
                answer = {k: v for k, v in message.items() if k in ("result", "error")}
                call_id = waiting.pop(id)
                if call_id is None:
                    send(method="notifications/message", params={"level": "info", "data": answer})
                else:
                    send(id=call_id, result=text(answer))
        case "initialize":
            if options.refuse:
                send(id=id, error={"code": -32603, "message": "not today"})
                return
            if options.gate:
                with open(options.gate) as gate:
                    gate.read(1)
            global told  # noqa: PLW0603
            told = params
            send(
                id=id,
                result={
                    "protocolVersion": options.revision or params["protocolVersion"],
                    "capabilities": json.loads(options.capabilities),
                    "serverInfo": {"name": options.name, "version": "1"},
                    "instructions": f"how to use {options.name}",
                    **json.loads(options.hello),
                },
            )
        case "notifications/initialized":
            if options.ask_roots:
                send(id="roots", method="roots/list")
        case "notifications/cancelled":
            if params["requestId"] in held:
                held.remove(params["requestId"])
            cancelled.append(params["requestId"])
        case "tools/list":
            names = TOOLS + extra_tools
            tools = [{"name": name, "description": f"does {name}", "inputSchema": {"type": "object"}} for name in names]
            page = 0 if options.stuck_cursor else int(params.get("cursor") or 0)
            if options.list is not None:
                write(b'{"jsonrpc":"2.0","id":%s,"result":%s}' % (json.dumps(id).encode(), options.list.encode()))
            elif options.stuck_cursor:
                send(id=id, result={"tools": tools, "nextCursor": "again"})
            elif page:
                more = {"nextCursor": str(page + 1)} if page < options.pages else {}
                send(id=id, result={"tools": [{**tools[0], "name": f"page{page}"}], **more})
            else:
                send(id=id, result={"tools": tools, **({"nextCursor": "1"} if options.pages else {})})
        case "tools/call":
            if options.ask_roots and roots is None:
                send(id=id, result={**text("no roots yet"), "isError": True})
            elif params["name"] == "told":
                send(id=id, result=text(told))
            elif params["name"] == "roots":
                send(id=id, result=text(roots))
            else:
                call(id, params["name"], params.get("arguments") or {}, params, line)
        case "prompts/list":
            send(id=id, result={"prompts": [{"name": "greet", "arguments": [{"name": "who"}]}]})
        case "prompts/get":
            content = {"type": "text", "text": f"greet {params.get('arguments', {}).get('who')} as {params['name']}"}
            send(id=id, result={"messages": [{"role": "user", "content": content}]})
        case "resources/list":
            send(id=id, result={"resources": [{"uri": f"mem://{options.name}/1", "name": "one"}]})
        case "resources/templates/list":
            send(
                id=id,
                result={"resourceTemplates": [{"uriTemplate": f"mem://{options.name}/by/{{id}}", "name": "by id"}]},
            )
        case "resources/read":
            if params["uri"].startswith("mem://") and options.name not in params["uri"]:
                send(id=id, error={"code": -32002, "message": "not mine", "data": {"uri": params["uri"]}})
            else:
                send(id=id, result={"contents": [{"uri": params["uri"], "text": f"from {options.name}"}]})
        case "completion/complete":
            send(id=id, result={"completion": {"values": [json.dumps(params["ref"])]}})
        case "resources/subscribe" | "resources/unsubscribe" | "logging/setLevel" | "ping":
            send(id=id, result={})
        case _ if id is not None:
            send(id=id, error={"code": -32601, "message": f"Method not found: {method}"})


for received in iter(stdin.readline, b""):
    if not options.silent:
        handle(received)
if options.say_goodbye:
    print("goodbye at end of input", file=sys.stderr, flush=True)
if options.ignore_eof:
    threading.Event().wait()
